"""`hutch worker sync|database|webhook|…` against the real API over a fake host."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.api import deployed as hooks
from tests.api.conftest import Api
from tests.api.test_syncs import MANUAL, Answers, answers, declared, deployed, rows
from tests.cli.conftest import AsyncHutch

__all__ = ["answers"]


async def asked(ask: AsyncHutch, *arguments: str) -> Any:
    done = await ask("worker", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


async def refused(ask: AsyncHutch, *arguments: str) -> str:
    done = await ask("worker", *arguments, "--json")
    assert done.code == 1
    code: str = json.loads(done.err)["error"]["code"]
    return code


async def test_a_sync_is_triggered_previewed_paused_scheduled_and_reset(
    api: Api, ask: AsyncHutch, answers: list[Answers]
) -> None:
    await deployed(api, declared(**{"all/people": MANUAL}))
    answers.append(lambda key, state: rows(("ada", 1), ("bob", 2), state={"seen": state}))
    shown = await asked(ask, "sync", "preview", "w", "all/people", "--context", '{"page": 2}')
    assert (len(shown["changes"]), shown["next_context"], shown["has_more"]) == (2, {"seen": {"page": 2}}, False)
    assert (await asked(ask, "sync", "status", "w"))["syncs"][0]["stats"]["cycles"] == 0, "a preview writes nothing"
    done = await asked(ask, "sync", "trigger", "w", "all/people", "--wait")
    assert (done["sync"]["label"], done["sync"]["stats"]["total_upserts"]) == ("HEALTHY", 2)
    assert (await asked(ask, "sync", "pause", "w", "all/people"))["sync"]["paused"] is True
    assert "paused" in (await ask("worker", "sync", "status", "w", "all/people")).out
    assert (await asked(ask, "sync", "resume", "w", "all/people"))["sync"]["paused"] is False
    by_cron = ("--cron", "0 6 * * 1-5", "--time-zone", "Europe/Berlin")
    timed = (await asked(ask, "sync", "schedule", "w", "all/people", *by_cron))["sync"]
    assert timed["schedule"] == {"type": "cron", "expression": "0 6 * * 1-5", "time_zone": "Europe/Berlin"}
    assert timed["schedule_from"] == "request"
    every = (await asked(ask, "sync", "schedule", "w", "all/people", "--every", "10m"))["sync"]
    assert every["schedule"] == {"type": "interval", "interval_ms": 600_000}
    assert (await asked(ask, "sync", "schedule", "w", "all/people", "--default"))["sync"]["schedule"] == MANUAL
    assert (await asked(ask, "sync", "reset", "w", "all/people"))["sync"]["stats"]["cycles"] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("sync", "trigger", "w", "none"), "not_found"),
        (("sync", "pause", "w", ".."), "not_found"),
        (("sync", "status", "w", "none"), "not_found"),
        (("sync", "status", "nobody"), "not_found"),
        (("sync", "preview", "w", "one", "--context", "{"), "bad_option"),
        (("sync", "schedule", "w", "one"), "bad_option"),
        (("sync", "schedule", "w", "one", "--every", "1h", "--manual"), "bad_option"),
        (("sync", "schedule", "w", "one", "--every", "soon"), "bad_option"),
        (("sync", "schedule", "w", "one", "--cron", "* * *"), "schedule_invalid"),
        (("database", "rows", "w", "none"), "not_found"),
        (("database", "rows", "w", "crm/people", "--filter", "x"), "bad_option"),
        (("database", "rows", "w", "crm/people", "--sort", "none"), "bad_request"),
        (("database", "export", "w", "crm/people", "--view", "none"), "not_found"),
        (("database", "export", "w", "crm/people", "--file", "/nowhere/rows.json"), "not_writable"),
        (("database", "mirror", "w", "crm/people"), "bad_option"),
        (("database", "mirror", "w", "crm/people", "--status", "--page", "x"), "bad_option"),
        (("database", "mirror", "w", "crm/people", "--status"), "not_found"),
        (("database", "mirror", "w", "crm/people", "--off"), "not_found"),
        (("webhook", "verification", "w", "none", "--enable"), "not_found"),
        (("connect", "w", "none"), "not_found"),
        (("result", "w", "none"), "not_found"),
        (("replay", "w", "../x"), "not_found"),
        (("cancel", "w", "none"), "not_found"),
        (("rename", "w", ""), "bad_request"),
    ],
)
async def test_what_is_not_there_or_can_not_be_meant_is_said(
    api: Api, ask: AsyncHutch, arguments: tuple[str, ...], code: str
) -> None:
    await deployed(api, declared(one=MANUAL))
    assert await refused(ask, *arguments) == code


async def test_rows_are_shown_and_exported(api: Api, ask: AsyncHutch, answers: list[Answers], tmp_path: Path) -> None:
    await deployed(api, declared(one=MANUAL))
    answers.append(lambda key, state: rows(("ada", 1), ("bob", 2), ("cyd", 3)))
    await asked(ask, "sync", "trigger", "w", "one", "--wait")
    assert (await asked(ask, "database", "ls", "w"))["databases"][0]["rows"] == 3
    page = await asked(ask, "database", "rows", "w", "crm/people", "--sort", "-n", "--limit", "2")
    assert [row["key"] for row in page["rows"]] == ["cyd", "bob"]
    rest = await asked(ask, "database", "rows", "w", "crm/people", "--sort", "-n", "--limit", "2", "--after", page["next"])
    assert ([row["key"] for row in rest["rows"]], rest["next"]) == (["ada"], None)
    some = await asked(ask, "database", "rows", "w", "crm/people", "--filter", "state=new", "--filter", "n=2.0")
    assert [row["key"] for row in some["rows"]] == ["bob"]
    assert "there is more" in (await ask("worker", "database", "rows", "w", "crm/people", "--limit", "1")).err
    file = tmp_path / "rows.csv"
    exported = await ask("worker", "database", "export", "w", "crm/people", "--format", "csv", "--file", str(file))
    assert (exported.code, exported.out) == (0, "")
    assert [line["key"] for line in csv.DictReader(io.StringIO(file.read_text()))] == ["ada", "bob", "cyd"]
    piped = json.loads((await ask("worker", "database", "export", "w", "crm/people", "--filter", "n=3")).out)
    assert [row["key"] for row in piped["rows"]] == ["cyd"]


async def test_webhooks_are_listed_and_switched(api: Api, ask: AsyncHutch) -> None:
    await hooks.deployed(api, lambda job: {"status": "success"})
    listed = (await asked(ask, "webhook", "ls", "hooks"))["webhooks"]
    assert {item["key"] for item in listed} == {"plain", "signed", "odd/ключ ?#%"}
    assert all("/webhooks/worker/" in item["url"] for item in listed)
    table = (await ask("worker", "webhook", "ls", "hooks")).out
    assert all(item["url"] in table for item in listed)
    changed = (await asked(ask, "webhook", "verification", "hooks", "signed", "--disable"))["webhook"]
    assert (changed["verification"], changed["url"]) == (False, next(one["url"] for one in listed if one["key"] == "signed"))


async def test_a_run_is_shown_repeated_and_followed_and_a_worker_renamed(api: Api, ask: AsyncHutch) -> None:
    worker = await hooks.deployed(api, lambda job: {"heard": job["context"]})
    await ask("worker", "run", "hooks", "ask", "-d", '{"word": "carrots"}')
    assert (await ask("worker", "rename", "hooks", "ears")).code == 0
    (run,) = (await asked(ask, "runs", "ears"))["runs"]
    shown = (await asked(ask, "result", "ears", run["runId"]))["run"]
    assert (shown["input"], shown["exit_code"]) == ({"word": "carrots"}, 0)
    assert '"carrots"' in (await ask("worker", "result", "ears", run["runId"])).out
    again = (await asked(ask, "replay", "ears", run["runId"], "--deny-network"))["run"]
    assert again["output"] == {"_tag": "success", "value": {"heard": {"word": "carrots"}}}
    followed = await asked(ask, "logs", "ears", again["id"], "--follow")
    assert "carrots" in followed["logs"]
    assert await refused(ask, "cancel", "ears", run["runId"]) == "run_not_cancelable"
    used = await asked(ask, "usage", "ears")
    assert used["worker"] == worker
    assert (await ask("worker", "usage", "ears")).code == 0
