"""Transactions: what of one that nobody waits for any more is left in the way of the next."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from hutch.errors import UnavailableError
from hutch.storage.database import Database, _translated

ROUNDS = 400
LONGEST_S = 0.002
"""Less than such a transaction takes, so that every step of it is canceled in some round."""


async def test_a_write_that_was_canceled_anywhere_is_in_nobodys_way(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE numbers (number INTEGER NOT NULL)"))

    async def add(number: int) -> None:
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})
            await connection.execute(text("SELECT count(*) FROM numbers"))

    moments = random.Random(1)
    canceled: list[BaseException] = []
    """They, and with them all that a task held, are kept: as by whoever keeps its tasks."""
    completed = set()
    for number in range(ROUNDS):
        task = asyncio.create_task(add(number))
        await asyncio.sleep(moments.random() * LONGEST_S)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            canceled.append(error)
        else:
            completed.add(number)
        # Waits for a lock in vain, and raises, if there is one.
        await add(ROUNDS + number)
    assert canceled
    async with database.read() as connection:
        rows = (await connection.execute(text("SELECT number FROM numbers"))).scalars().all()
    # What ended did so as a whole; what was canceled may have committed in the moment that it was.
    assert len(rows) == len(set(rows))
    assert completed | set(range(ROUNDS, 2 * ROUNDS)) <= set(rows)


async def test_a_database_that_can_not_be_reached_in_time_does_not_answer(database: Database) -> None:
    waiting: Any = database._writer.pool
    waiting._timeout = 0.05
    async with contextlib.AsyncExitStack() as held:
        for _ in range(waiting.size() + max(waiting._max_overflow, 0)):
            await held.enter_async_context(database.write())
        with pytest.raises(UnavailableError, match="does not answer"):
            async with database.write():
                raise AssertionError("there is room for one more")
    async with database.write() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize(
    ("state", "is_away"), [("57P03", True), ("53300", True), ("40001", True), ("40P01", True), ("23505", False)]
)
def test_what_another_try_may_find_otherwise_is_a_503(state: str, is_away: bool) -> None:
    """What the driver says of PostgreSQL: it starts, has no room, transactions are in each other's way; a name is taken."""

    class Said(Exception):
        sqlstate = state

    with pytest.raises(UnavailableError if is_away else DBAPIError), _translated():
        raise DBAPIError("", {}, Said())
