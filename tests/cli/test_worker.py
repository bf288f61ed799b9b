"""`hutch worker`, against the real API over a fake host."""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api
from tests.api.serving import ANY, deployed, tool
from tests.cli.conftest import AsyncHutch


async def test_workers_are_listed_shown_and_deleted(api: Api, ask: AsyncHutch) -> None:
    worker = await deployed(api, tool("greet"), name="greeting")
    listed = await ask("worker", "ls")
    assert worker in listed.out
    assert "greeting" in listed.out
    shown = json.loads((await ask("worker", "get", "greeting", "--json")).out)
    assert shown["worker"]["workerId"] == worker
    assert [item["key"] for item in shown["capabilities"]] == ["greet"]
    assert "greet" in (await ask("worker", "get", worker)).out
    assert (await ask("worker", "rm", "greeting")).code == 0
    gone = await ask("worker", "get", "greeting", "--json")
    assert (gone.code, json.loads(gone.err)["error"]["code"]) == (1, "not_found")


async def test_a_name_that_two_have_names_none(api: Api, ask: AsyncHutch) -> None:
    first = await deployed(api, name="twin")
    await deployed(api, name="twin")
    refused = await ask("worker", "runs", "twin", "--json")
    assert (refused.code, json.loads(refused.err)["error"]["code"]) == (1, "bad_option")
    assert (await ask("worker", "runs", first)).code == 0


async def test_a_capability_is_run_and_its_run_is_shown(api: Api, ask: AsyncHutch) -> None:
    await deployed(api, tool("fail", ANY), tool("greet"), name="one")
    done = await ask("worker", "run", "one", "greet", "-d", '{"name": "x", "note": null}')
    assert json.loads(done.out) == {"name": "x", "note": None}
    called = await ask("worker", "call", "one", "greet", "-d", "-", stdin=b'{"name": "y"}')
    assert json.loads(called.out) == {"name": "y", "note": None}
    failed = await ask("worker", "call", "one", "fail", "-d", '{"throw": {"name": "E", "message": "no luck"}}', "--json")
    assert (failed.code, json.loads(failed.err)["error"]["code"]) == (1, "run_failed")
    runs = json.loads((await ask("worker", "runs", "one", "--json")).out)["runs"]
    assert [run["name"] for run in runs] == ["tool:fail", "tool:greet", "tool:greet"]
    assert "tool:fail" in (await ask("worker", "runs", "one")).out
    assert '"name":"x"' in (await ask("worker", "logs", "one", runs[2]["runId"])).out.replace(" ", "")
    assert "no luck" in json.loads((await ask("worker", "logs", "one", "--json")).out)["logs"]


@pytest.mark.parametrize("data", ["{", "[" * 100_000, "nonsense"])
async def test_data_that_is_no_json_is_refused(api: Api, ask: AsyncHutch, data: str) -> None:
    refused = await ask("worker", "run", "one", "greet", "-d", data, "--json")
    assert (refused.code, json.loads(refused.err)["error"]["code"]) == (1, "bad_option")


async def test_tools_are_shown_and_switched(api: Api, ask: AsyncHutch) -> None:
    await deployed(api, tool("greet", hints={"readOnlyHint": True}), tool("a/b"), name="one")
    shown = json.loads((await ask("worker", "tools", "one", "--json")).out)["tools"]
    assert [(item["key"], item["readOnly"], item["enabled"]) for item in shown] == [("greet", True, True), ("a/b", False, True)]
    changed = await ask("worker", "tool", "one", shown[1]["name"], "--disable", "--confirm")
    assert changed.code == 0
    assert "off" in changed.out
    assert "asks" in (await ask("worker", "tools", "one")).out
    functions = json.loads((await ask("worker", "tools", "one", "--format", "anthropic")).out)
    assert [item["name"] for item in functions] == ["greet"]
    assert (await ask("worker", "tools", "one", "--format", "cobol")).code == 1
    assert (await ask("worker", "tool", "one", "..", "--disable")).code == 1


async def test_secrets_are_set_from_standard_input_listed_and_deleted(api: Api, ask: AsyncHutch) -> None:
    await deployed(api, name="one")
    assert (await ask("worker", "env", "set", "one", "KEY", stdin=b"secret-value\n")).code == 0
    assert (await ask("worker", "env", "ls", "one")).out == "KEY\n"
    assert json.loads((await ask("worker", "env", "ls", "one", "--values", "--json")).out) == {"env": {"KEY": "secret-value"}}
    assert (await ask("worker", "env", "set", "one", "NOTION_INPUT_PAYLOAD_PATH", stdin=b"x")).code == 1
    assert (await ask("worker", "env", "rm", "one", "KEY")).code == 0
    assert json.loads((await ask("worker", "env", "ls", "one", "--json")).out) == {"names": []}
