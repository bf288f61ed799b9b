"""Logins that go on: each step holds once, on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hutch.control.permissions import TokenRole
from hutch.control.records import Login, Member, Scope
from hutch.errors import UnavailableError
from hutch.storage import logins, members
from hutch.storage.database import Database

LIFE = 1000


def login(name: str = "login_1", **fields: Any) -> Login:
    return Login(name, 1, 1 + LIFE, "challenge", **fields)


async def begun(database: Database, made: Login, **options: Any) -> None:
    async with database.write() as connection:
        await logins.begin(connection, made, **options)


async def test_a_login_goes_its_way_and_every_step_holds_once(database: Database, scope: Scope) -> None:
    member = Member("mem_1", scope.team_id, "https://id.example#ada", "Ada", TokenRole.VIEWER, 1)
    await begun(database, login(port=5000))
    async with database.write() as connection:
        await members.add(connection, member)
        assert await logins.returned(connection, 2, "browser") is None, "no browser has it yet"
        opened = await logins.opened(connection, 2, "browser", id="login_1")
        assert opened is not None
        assert (opened.port, opened.browser_hash) == (5000, "browser")
        assert await logins.identified(connection, 2, "browser", member.identity) is None, "the provider was not asked yet"
        assert await logins.decided(connection, 2, "browser", member_id="mem_1", code_hash="code") is None
        assert await logins.returned(connection, 3, "browser") is not None
        assert await logins.returned(connection, 3, "browser") is None
        assert await logins.decided(connection, 3, "browser", member_id="mem_1", code_hash="code") is None
        assert await logins.identified(connection, 3, "browser", member.identity) is not None
        assert await logins.of_code(connection, 3, "code") is None
        assert await logins.decided(connection, 4, "browser", member_id="mem_1", code_hash="code") is not None
        assert await logins.decided(connection, 4, "browser", member_id="mem_1", code_hash="other") is None
        assert await logins.opened(connection, 4, "another", id="login_1") is None, "it is decided"
        found = await logins.of_code(connection, 4, "code")
        assert found is not None
        assert (found.member_id, found.identity, found.decided_at) == ("mem_1", member.identity, 4)
        assert await logins.end(connection, "login_1")
        assert not await logins.end(connection, "login_1")
        assert await logins.of_code(connection, 4, "code") is None


async def test_another_browser_takes_a_login_over_without_what_the_first_had(database: Database) -> None:
    await begun(database, login(user_code="BCDFGHJK", code_hash="code"))
    async with database.write() as connection:
        await logins.opened(connection, 2, "first", user_code="BCDFGHJK")
        await logins.returned(connection, 2, "first")
        await logins.identified(connection, 2, "first", "ada")
        taken = await logins.opened(connection, 2, "second", user_code="BCDFGHJK")
        assert taken is not None
        assert (taken.identity, taken.returned_at) == (None, None)
        assert await logins.of_browser(connection, 2, "first") is None
        assert await logins.decided(connection, 2, "second", member_id=None, code_hash=None) is None


async def test_of_many_at_once_one_ends_a_login(database: Database) -> None:
    await begun(database, login())

    async def end() -> bool:
        async with database.write() as connection:
            return await logins.end(connection, "login_1")

    assert sorted(await asyncio.gather(*(end() for _ in range(8)))) == [*[False] * 7, True]


async def test_of_many_at_once_one_comes_back(database: Database) -> None:
    await begun(database, login())
    async with database.write() as connection:
        await logins.opened(connection, 2, "browser", id="login_1")

    async def back() -> bool:
        async with database.write() as connection:
            return await logins.returned(connection, 3, "browser") is not None

    assert sorted(await asyncio.gather(*(back() for _ in range(8)))) == [*[False] * 7, True]


async def test_a_login_that_is_over_is_found_by_nobody_and_forgotten_with_the_next(database: Database) -> None:
    await begun(database, login(user_code="BCDFGHJK", code_hash="code"))
    late = 1 + LIFE
    async with database.write() as connection:
        assert await logins.opened(connection, late, "browser", user_code="BCDFGHJK") is None
        assert await logins.of_code(connection, late, "code") is None
        assert await logins.of_code(connection, late - 1, "code") is not None
    await begun(database, Login("login_2", late, late + LIFE, "challenge"), most=1)
    async with database.read() as connection:
        assert await logins.of_code(connection, 2, "code") is None


async def test_there_are_bounds_and_codes_that_are_taken_begin_nothing(database: Database) -> None:
    await begun(database, login(user_code="BCDFGHJK"))
    for options in ({"most": 1}, {}):
        with pytest.raises(UnavailableError) as refused:
            await begun(database, login("login_2", user_code="BCDFGHJK"), **options)
        assert refused.value.code == "too_many_logins"
    await begun(database, login("login_2", user_code="CCCCCCCC"))


async def test_a_login_goes_with_the_member_who_said_yes(database: Database, scope: Scope) -> None:
    await begun(database, login())
    async with database.write() as connection:
        await members.add(connection, Member("mem_1", scope.team_id, "ada", "", TokenRole.VIEWER, 1))
        await logins.opened(connection, 2, "browser", id="login_1")
        await logins.returned(connection, 2, "browser")
        await logins.identified(connection, 2, "browser", "ada")
        await logins.decided(connection, 2, "browser", member_id="mem_1", code_hash="code")
        assert await members.remove(connection, scope.team_id, "mem_1", 3) is not None
    async with database.read() as connection:
        assert await logins.of_code(connection, 3, "code") is None


async def test_a_team_keeps_an_owner_who_is_not_disabled(database: Database, scope: Scope) -> None:
    async with database.write() as connection:
        for name in ("mem_1", "mem_2"):
            await members.add(connection, Member(name, scope.team_id, name, "", TokenRole.OWNER, 1))
        first = await members.change(connection, scope.team_id, "mem_1", now=2, disabled=True)
        assert first is not None
        assert first.disabled_at == 2
        again = await members.change(connection, scope.team_id, "mem_1", now=3, disabled=True)
        assert again is not None
        assert again.disabled_at == 2
    for change in ({"disabled": True}, {"role": TokenRole.VIEWER}):
        with pytest.raises(Exception, match="last_owner"):
            async with database.write() as connection:
                await members.change(connection, scope.team_id, "mem_2", now=3, **change)
