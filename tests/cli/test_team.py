"""`hutch team`, `project`, `member`, `audit-log` and tokens with scopes, against the real API over a fake host."""

from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import text

from hutch.cli.audit_log import line
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch


async def test_a_team_from_its_making_to_its_end(api: Api, ask: AsyncHutch) -> None:
    team = (await ask("team", "create", "acme")).out.strip()
    assert team.startswith("team_")
    again = await ask("team", "create", "acme", "--json")
    assert (again.code, json.loads(again.err)["error"]["code"]) == (1, "conflict")
    assert "acme" in (await ask("team", "ls")).out
    assert (await ask("project", "create", "web", "--team", "acme")).out.startswith("prj_")
    assert (await ask("project", "rename", "web", "site", "--team", "acme")).code == 0
    assert "site" in (await ask("project", "ls", "--team", "acme")).out
    ada = (await ask("member", "add", "ada@example.com", "--role", "owner", "--team", "acme")).out.strip()
    last = await ask("member", "rm", ada, "--team", "acme", "--json")
    assert (last.code, json.loads(last.err)["error"]["code"]) == (1, "last_owner")
    bob = (await ask("member", "add", "bob", "--role", "viewer", "--team", "acme")).out.strip()
    assert (await ask("member", "set", bob, "--role", "developer", "--name", "Bob", "--team", "acme")).code == 0
    shown = json.loads((await ask("member", "ls", "--team", "acme", "--json")).out)["members"]
    assert {(one["identity"], one["role"], one["name"]) for one in shown} == {
        ("ada@example.com", "owner", ""),
        ("bob", "developer", "Bob"),
    }
    made = json.loads(
        (
            await ask(
                "token", "create", "--team", "acme", "--project", "site", "--member", bob, "--scope", "sandbox.read", "--json"
            )
        ).out
    )
    assert (made["role"], made["scopes"], made["member_id"]) == ("developer", ["sandbox.read"], bob)
    assert "sandbox.read" in (await ask("token", "ls")).out
    assert (await ask("project", "rm", "site", "--team", "acme", "--yes")).code == 0
    assert (await ask("team", "rename", "acme", "globex")).code == 0
    unsure = await ask("team", "rm", "globex", stdin=b"n\n")
    assert unsure.code != 0
    assert (await ask("team", "rm", "globex", "--yes")).code == 0
    assert "globex" not in (await ask("team", "ls")).out


async def test_the_log_is_shown_and_verified(api: Api, ask: AsyncHutch) -> None:
    for slug in ("one", "two"):
        await ask("project", "create", slug)
    shown = await ask("audit-log", "ls")
    assert len(re.findall("project.created", shown.out)) == 2
    assert [json.loads(row)["seq"] for row in (await ask("audit-log", "ls", "--json")).out.splitlines()] == [1, 2, 3]
    whole = await ask("audit-log", "verify")
    assert whole.code == 0
    assert re.fullmatch("3:[0-9a-f]{64}\n", whole.out)
    await ask("project", "create", "three")
    assert (await ask("audit-log", "verify", "--expect", whole.out.strip())).code == 0
    other = await ask("audit-log", "verify", "--expect", "3:" + "0" * 64)
    assert (other.code, "not the one of before" in other.err) == (1, True)
    assert (await ask("audit-log", "verify", "--expect", "3")).code == 1
    async with api.services.database.write() as connection:
        await connection.execute(text("UPDATE audit_log SET subject = 'prj_other' WHERE seq = 2"))
    broken = await ask("audit-log", "verify", "--json")
    assert broken.code == 1
    assert "Entry 2 was altered" in json.loads(broken.out)["problems"][0]


@pytest.mark.parametrize("outcome", ["done", "refused"])
def test_an_entry_is_one_line(outcome: str) -> None:
    entry = {
        "seq": 1,
        "at": 1_700_000_000_000,
        "token_id": "tok_a",
        "member_id": "",
        "address": "192.0.2.1",
        "action": "member.added",
        "subject": "mem_b",
        "outcome": outcome,
        "detail": {"name": "two\nlines"},
    }
    shown = line(entry)
    assert "\n" not in shown
    assert ("(refused)" in shown) is (outcome == "refused")
