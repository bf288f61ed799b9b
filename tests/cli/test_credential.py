"""`hutch credential` and `hutch audit`, against the real API over a fake host."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.cli.audit import line
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch
from tests.conftest import CHECKOUT

SECRET = "CANARY-90b1ee27aa"


async def test_a_credential_is_set_from_standard_input_or_a_file_listed_and_deleted(
    api: Api, ask: AsyncHutch, tmp_path: Path
) -> None:
    done = await ask("credential", "set", "KEY", stdin=SECRET.encode() + b"\n")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert api.host.changes[-1].value == SECRET
    file = tmp_path / "value"
    file.write_bytes(SECRET.encode() + b"-2\r\n")
    assert (await ask("credential", "set", "OTHER", "--file", str(file), "--json")).code == 0
    assert api.host.changes[-1].value == SECRET + "-2"
    listed = await ask("credential", "ls")
    assert "KEY" in listed.out
    assert "OTHER" in listed.out
    shown = json.loads((await ask("credential", "ls", "--json")).out)
    assert [item["name"] for item in shown["credentials"]] == ["KEY", "OTHER"]
    assert (await ask("credential", "rm", "KEY", "OTHER")).code == 0
    assert SECRET not in listed.out
    gone = await ask("credential", "rm", "KEY", "--json")
    assert (gone.code, json.loads(gone.err)["error"]["code"]) == (1, "not_found")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["KEY"], b"", "bad_request"),
        (["KEY"], b"two\nlines\n", "bad_request"),
        (["KEY"], b"two breaks\n\n", "bad_request"),
        (["KEY"], b"\xff\xfe", "bad_request"),
        (["KEY"], b"x" * 10_000, "bad_request"),
        (["a.b"], b"x", "bad_request"),
        (["../../v2/sandboxes"], b"x", "bad_request"),
        (["KEY", "--file", "/no/such/file"], b"", "not_readable"),
        (["KEY", "--file", "/"], b"", "not_readable"),
    ],
)
async def test_what_is_no_credential_is_refused(api: Api, ask: AsyncHutch, arguments: list[str], stdin: bytes, code: str) -> None:
    done = await ask("credential", "set", "--json", *arguments, stdin=stdin)
    assert (done.code, json.loads(done.err)["error"]["code"]) == (1, code)
    assert api.host.changes == []


async def test_a_value_is_not_taken_from_the_command_line(ask: AsyncHutch) -> None:
    assert (await ask("credential", "set", "KEY", "value")).code == 2


# -- audit -------------------------------------------------------------------------------------------


def records(first: int, last: int) -> list[str]:
    return [
        json.dumps(
            {
                "seq": seq,
                "ts": 1_700_000_000_000 + seq,
                "kind": "dns",
                "decision": "deny",
                "reason": "domain_deny",
                "name": f"h{seq}.test",
            }
        )
        for seq in range(first, last + 1)
    ]


async def test_the_audit_is_written_page_by_page(api: Api, ask: AsyncHutch) -> None:
    created = await api.create(name="one")
    sandbox_id = api.host.specs[created["session"]["id"]].sandbox_id
    api.host.audits[sandbox_id] = records(1, 1203)
    done = await ask("audit", "one")
    lines = done.out.splitlines()
    assert len(lines) == 1203
    assert "h1203.test" in lines[-1]
    assert "domain_deny" in lines[-1]
    done = await ask("audit", "one", "--json", "--after", "1201")
    assert [json.loads(text)["seq"] for text in done.out.splitlines()] == [1202, 1203]
    assert (await ask("audit", "nope")).code == 1
    assert (await ask("audit", "../x", "--json")).code == 1


async def test_following_shows_what_comes(api: Api) -> None:
    created = await api.create(name="one")
    sandbox_id = api.host.specs[created["session"]["id"]].sandbox_id
    api.host.audits[sandbox_id] = records(1, 1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hutch", "audit", "-f", "--json", "one"),
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "HUTCH_URL": api.url, "HUTCH_TOKEN": api.own.token},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["seq"] == 1
        api.host.audits[sandbox_id] += records(2, 2)
        assert json.loads(await process.stdout.readline())["seq"] == 2
        process.terminate()
        assert await process.wait() == 128 + 15


def test_a_record_is_one_line_whatever_a_guest_put_into_it() -> None:
    hostile = {"seq": 1, "ts": "2026-11-25T10:00:00Z", "name": "a\nb\x1b[31m", "path": "/\n", "status": 403, "kind": None}
    shown = line(hostile)
    assert "\n" not in shown
    assert "→ 403" in shown
    assert line({})
    assert "203.0.113.1:443" in line({"origDst": "203.0.113.1:443"})
