"""Transactions: what of one that nobody waits for any more is left in the way of the next."""

from __future__ import annotations

import asyncio
import random

from sqlalchemy import text

from hutch.storage.database import Database

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
