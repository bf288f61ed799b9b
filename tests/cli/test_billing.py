"""`hutch usage`, `hutch receipt` and `hutch budget`, against the real API over a fake host."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from hutch.host.protocol import RuleTraffic
from hutch.metering.budgets import ALL_TIME, Limits
from hutch.metering.notices import Notice, NoticeKind, Threshold, notice_id
from hutch.metering.quantities import Quantities
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch


async def test_usage_of_a_sandbox_and_of_the_project(api: Api, ask: AsyncHutch) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    api.host.used[session] = Quantities(active_cpu_us=1_500_000, egress_bytes=2048, creations=1)
    one = await ask("usage", "one")
    assert one.code == 0
    assert "1.500 s" in one.out
    assert "connections" not in one.out
    api.host.passed[session] = {
        "00ff": RuleTraffic(sent_bytes=2048, received_bytes=1, connections=3, requests=4),
        "": RuleTraffic(requests=5),
    }
    lines = [line.split() for line in (await ask("usage", "one")).out.splitlines()]
    assert [line for line in lines if line[:1] in (["00ff"], ["-"])] == [
        ["00ff", "2.0", "KiB", "1", "B", "3", "4"],
        ["-", "0", "B", "0", "B", "0", "5"],
    ]
    rules = json.loads((await ask("usage", "one", "--json")).out)["network"]
    assert [rule["rule"] for rule in rules] == ["00ff", None]
    assert json.loads((await ask("usage", "one", "--json")).out)["active_cpu_us"] == 1_500_000
    await api.host.until_delivered(await api.host.close_window(session, active_cpu_us=3_600_000_000, creations=1))
    project = await ask("usage", "--by", "sandbox")
    assert project.code == 0
    assert "one" in project.out
    assert "0.128000600 USD" in project.out.splitlines()[-1]
    report = json.loads((await ask("usage", "--by", "sandbox", "--from", "2020-01-01", "--to", "2020-02-01", "--json")).out)
    assert report["groups"] == []
    refused = await ask("usage", "--from", "yesterday")
    assert refused.code == 1
    assert "`from` should be milliseconds" in refused.err


async def test_a_receipt_is_verified_with_the_servers_keys_or_with_a_file_of_them(
    api: Api, ask: AsyncHutch, tmp_path: Path
) -> None:
    session = (await api.create(name="one"))["session"]["id"]
    api.host.used[session] = Quantities(active_cpu_us=3_600_000_000, creations=1)
    file, keys = tmp_path / "receipt.json", tmp_path / "keys.json"
    for subject in ("one", session):
        shown = await ask("receipt", "show", subject)
        assert shown.code == 0
        file.write_text(shown.out)
        valid = await ask("receipt", "verify", str(file))
        assert (valid.code, valid.err) == (0, "")
        assert valid.out.startswith("valid: 0.128000600 USD")
    started = await api.http.post(f"/v2/sandboxes/sessions/{session}/cmd", json={"command": "echo"})
    command = started.json()["command"]["id"]
    shown = await ask("receipt", "show", session, "--command", command)
    assert json.loads(shown.out)["subject"]["command_id"] == command
    file.write_text(shown.out)
    assert (await ask("receipt", "verify", str(file))).code == 0
    unknown = await ask("receipt", "show", session, "--command", "cmd_none")
    assert (unknown.code, unknown.out) == (1, "")
    keys.write_bytes((await api.http.get("/api/hutch/v1/receipt-keys")).content)
    assert (await ask("receipt", "verify", str(file), "--keys", str(keys))).code == 0
    receipt = json.loads(file.read_text())
    file.write_text(json.dumps(receipt | {"amount_nano": 1}))
    forged = await ask("receipt", "verify", str(file), "--keys", str(keys))
    assert (forged.code, forged.out) == (1, "")
    assert "its signature does not match its contents" in forged.err
    file.write_text(json.dumps(receipt))
    keys.write_text('{"keys": []}')
    unknown = await ask("receipt", "verify", str(file), "--keys", str(keys))
    assert unknown.code == 1
    assert "none of this server's" in unknown.err


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 10_000, b'{"a": 1e999}', None], ids=range(6))
async def test_what_is_no_receipt_is_unreadable(ask: AsyncHutch, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "receipt.json"
    if content is not None:
        file.write_bytes(content)
    done = await ask("receipt", "verify", str(file))
    assert (done.code, done.out) == (2, "")
    assert "can't be read" in done.err
    assert "Traceback" not in done.err


async def test_budgets_are_set_shown_and_removed(api: Api, ask: AsyncHutch) -> None:
    project, team = api.own.project_id, api.own.team_id
    done = await ask("budget", "set", "active_cpu_us=60000000", "money_nano=7", "--project", project, "--period", "day")
    assert done.code == 0, done.err
    assert api.host.budgets[f"project:{project}", "day"].limits == Limits(active_cpu_us=60_000_000, money_nano=7)
    api.host.spent[f"project:{project}"] = Quantities(active_cpu_us=12)
    shown = await ask("budget", "get", "--project", project)
    assert ["day", "active_cpu_us", "12", "60000000"] in [line.split() for line in shown.out.splitlines()]
    assert (await ask("budget", "set", "egress_bytes=1", "--team", team)).code == 0
    assert json.loads((await ask("budget", "get", "--team", team, "--json")).out)["budgets"][0]["limits"] == {"egress_bytes": 1}
    assert (await ask("budget", "set", "--project", project, "--period", "day")).code == 0
    assert f"project:{project}" not in {key for key, _ in api.host.budgets}
    assert (await ask("create", "--name", "one", "--budget", "active_cpu_us=5")).code == 0
    [spec] = api.host.specs.values()
    assert spec.budget == Limits(active_cpu_us=5)


async def test_what_a_budget_tells_is_set_and_shown(api: Api, ask: AsyncHutch) -> None:
    project = api.own.project_id
    told = ("--notify-at", "80", "--notify-at", "50", "--soft", "egress_bytes=9", "--webhook", "https://hooks.example.com/x")
    done = await ask("budget", "set", "concurrency=3", *told, "--project", project)
    assert done.code == 0, done.err
    assert "whsec_" in done.err
    held = api.host.budgets[f"project:{project}", "total"]
    assert (held.limits, held.notify_at, held.soft) == (Limits(concurrency=3), [50, 80], Limits(egress_bytes=9))
    shown = await ask("budget", "get", "--project", project)
    assert "whsec_" not in shown.out + shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["total", "concurrency", "0", "3"] in lines
    assert ["total", "egress_bytes", "(soft)", "0", "9"] in lines
    done = await ask("budget", "set", "concurrency=4", "--no-webhook", "--project", project, "--json")
    assert "webhook" not in [name for name, value in json.loads(done.out)["budgets"][0].items() if value]
    threshold = Threshold(NoticeKind.THRESHOLD, "concurrency", 3, 50)
    key = f"project:{project}"
    await api.host.notice(
        Notice(
            id=notice_id(key, ALL_TIME, threshold), key=key, span=ALL_TIME, threshold=threshold, used=2, at_ms=1_764_158_400_000
        )
    )
    async with asyncio.timeout(10):
        while not (page := json.loads((await ask("budget", "events", "--json")).out))["events"]:
            await asyncio.sleep(0.05)
    assert page["events"][0]["used"] == 2
    table = (await ask("budget", "events")).out
    assert "budget.threshold" in table
    assert "2 of 3" in table
    assert "budget.threshold" not in (await ask("budget", "events", "--after", str(page["next"]))).out
    assert (await ask("budget", "set", "concurrency=4", "--notify-at", "101", "--project", project)).code == 2
    refused = await ask("budget", "set", "concurrency=4", "--webhook", "http://127.0.0.1/", "--project", project)
    assert (refused.code, "webhook_invalid" in refused.err or "can't be used" in refused.err) == (1, True)


@pytest.mark.parametrize("limit", ["cpu=1", "active_cpu_us", "active_cpu_us=-1", "active_cpu_us=1.5", "=1", "active_cpu_us=1e9"])
async def test_a_limit_that_is_none_is_refused(api: Api, ask: AsyncHutch, limit: str) -> None:
    for command in (("budget", "set", limit, "--project", "main"), ("create", "--budget", limit)):
        done = await ask(*command)
        assert done.code == 1
        assert "is no limit" in done.err
    assert not api.host.specs
    assert (await ask("budget", "set", "active_cpu_us=1")).code == 1
