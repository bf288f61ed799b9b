"""`hutch drive` and `hutch create --mount`, against the real API over a fake host; and in a real sandbox."""

from __future__ import annotations

import json

import pytest

from hutch.cli.drive import mounts, size_bytes
from hutch.errors import BadRequestError
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch, Hutch


async def test_one_is_made_shown_mounted_copied_and_deleted(api: Api, ask: AsyncHutch) -> None:
    assert (await ask("drive", "create", "cache", "--size", "10g")).out == "cache\n"
    again = json.loads((await ask("drive", "create", "cache", "--json")).out)
    assert again["maxSizeBytes"] == 10 * 1024**3
    assert (await ask("drive", "create", "cache", "--size", "1g", "--json")).code == 1
    made = json.loads((await ask("create", "--name", "one", "--mount", "cache:/cache", "--json")).out)
    assert made["sandbox"]["mounts"] == {"/cache": {"drive": "cache", "mode": "read-write"}}
    assert (await ask("create", "--name", "two", "--mount", "cache:/seen:ro")).code == 0
    header, line = (await ask("drive", "ls")).out.splitlines()
    assert header.split() == ["NAME", "SIZE", "REGION", "SANDBOX", "CREATED", "ID"]
    assert line.split()[:4] == ["cache", str(10 * 1024**3), "iad1", "one"]
    assert (await ask("drive", "get", "cache")).out.splitlines()[1].split()[-1] == str(len(again["id"]))
    assert (await ask("drive", "fork", "cache", "copy")).out == "copy\n"
    refused = await ask("drive", "rm", "cache", "--json")
    assert (refused.code, json.loads(refused.err)["error"]["code"]) == (1, "drive_attached")
    assert (await ask("rm", "one", "two")).code == 0
    assert (await ask("drive", "rm", "cache", "copy")).code == 0
    assert json.loads((await ask("drive", "ls", "--json")).out) == {"drives": []}


@pytest.mark.parametrize("arguments", [("rm", "none"), ("get", "../x"), ("fork", "none", "x"), ("get", "x" * 300)])
async def test_what_there_is_not_is_1(ask: AsyncHutch, arguments: tuple[str, ...]) -> None:
    done = await ask("drive", *arguments, "--json")
    assert (done.code, done.out) == (1, "")
    assert json.loads(done.err)["error"]["code"] == "not_found"


def test_sizes_and_mounts_as_people_write_them() -> None:
    assert [size_bytes(text) for text in ("1", "2k", "3MiB", "4g", "1T", None)] == [
        1,
        2048,
        3 * 1024**2,
        4 * 1024**3,
        1024**4,
        None,
    ]
    for text in ("", "g", "-1", "1x", "1.5g", "9" * 16):
        with pytest.raises(BadRequestError):
            size_bytes(text)
    assert mounts(["a:/x", "b:/y:ro"]) == {
        "/x": {"drive": "a", "mode": "read-write"},
        "/y": {"drive": "b", "mode": "snapshot"},
    }
    for item in ("a", ":/x", "a:"):
        with pytest.raises(BadRequestError):
            mounts([item])


@pytest.mark.root
@pytest.mark.sandbox
def test_files_go_from_one_sandbox_to_another(hutch: Hutch) -> None:
    assert hutch("drive", "create", "shared", "--size", "64m").code == 0
    one = hutch("create", "--ephemeral", "--mount", "shared:/data").out.strip()
    assert hutch("exec", one, "--", "sh", "-c", "echo here > /data/f").code == 0
    two = hutch("create", "--ephemeral", "--mount", "shared:/seen:ro").out.strip()
    try:
        assert hutch("exec", two, "--", "cat", "/seen/f").out == "here\n"
        assert hutch("exec", two, "--", "touch", "/seen/x").code != 0
    finally:
        hutch("rm", one, two)
    assert hutch("drive", "rm", "shared").code == 0
