"""Budgets: written down, told to the host, shown with what is spent, and refused when they can't be meant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hutch.api import storage_budgets
from hutch.control.permissions import TokenRole
from hutch.errors import PaymentRequiredError, UnavailableError
from hutch.metering.budgets import Budget, Limits, Period
from hutch.metering.quantities import Quantities
from hutch.storage import budgets as budget_rows
from tests.api.conftest import Api

OWN = "/api/hutch/v1"


async def test_a_project_has_a_budget_for_each_period(api: Api) -> None:
    project = api.own.project_id
    path = f"{OWN}/projects/{project}/budget"
    api.host.spent[f"project:{project}"] = Quantities(active_cpu_us=3_600_000_000)
    day = await api.http.put(path, json={"active_cpu_us": 100, "period": "day"})
    assert day.status_code == 200
    both = (await api.http.put(path, json={"money_nano": 5})).json()
    assert [(budget["period"], budget["limits"]) for budget in both["budgets"]] == [
        ("day", {"active_cpu_us": 100}),
        ("total", {"money_nano": 5}),
    ]
    assert both["budgets"][0]["spent"]["active_cpu_us"] == 3_600_000_000
    assert both["budgets"][0]["spent_money_nano"] == 128_000_000
    assert (await api.http.get(path)).json() == both
    assert api.host.budgets[f"project:{project}", "day"].limits == Limits(active_cpu_us=100)
    left = (await api.http.put(path, json={"period": "day"})).json()
    assert [budget["period"] for budget in left["budgets"]] == ["total"]


async def test_a_team_has_one_and_the_host_is_told_all_of_them_again(api: Api) -> None:
    team = api.own.team_id
    await api.create(name="one", budget={"egress_bytes": 9})
    assert (await api.http.put(f"{OWN}/teams/{team}/budget", json={"active_cpu_us": 1, "period": "month"})).status_code == 200
    api.host.budgets.clear()
    told = len(api.host.kept)
    api.host.drop_connections()
    async with asyncio.timeout(10):
        while len(api.host.kept) == told:
            await asyncio.sleep(0.01)
    limits = {budget.key.partition(":")[0]: budget.limits for budget in api.host.kept[-1]}
    assert limits == {"team": Limits(active_cpu_us=1), "sandbox": Limits(egress_bytes=9)}


async def test_a_sandbox_has_a_budget_that_its_forks_have_too(api: Api) -> None:
    made = await api.create(name="one", budget={"active_cpu_us": 5, "money_nano": 6})
    assert made["sandbox"]["budget"] == {"active_cpu_us": 5, "money_nano": 6}
    [spec] = api.host.specs.values()
    assert spec.budget == Limits(active_cpu_us=5, money_nano=6)
    fork = (await api.http.post("/v2/sandboxes/one/fork", json={"name": "two"})).json()
    assert fork["sandbox"]["budget"] == {"active_cpu_us": 5, "money_nano": 6}
    changed = await api.http.patch("/v2/sandboxes/one", json={"budget": {"active_cpu_us": 50}})
    assert changed.json()["sandbox"]["budget"] == {"active_cpu_us": 50}
    key = f"sandbox:{spec.sandbox_id}"
    assert api.host.budgets[key, "total"] == Budget(key=key, limits=Limits(active_cpu_us=50), period=Period.TOTAL)
    assert (await api.http.patch("/v2/sandboxes/one", json={"timeout": 60_000})).json()["sandbox"]["budget"]
    without = await api.http.patch("/v2/sandboxes/one", json={"budget": None})
    assert "budget" not in without.json()["sandbox"]
    assert (key, "total") not in api.host.budgets


async def test_a_used_up_budget_answers_402_and_leaves_no_name_taken(api: Api) -> None:
    api.host.refuse_create = PaymentRequiredError("budget_exceeded", "The team's budget of active_cpu_us is used up.")
    refused = await api.http.post("/v3/sandboxes", json={"name": "one"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    api.host.refuse_create = None
    await api.create(name="one")


async def test_a_budget_that_could_not_be_told_is_told_later(api: Api) -> None:
    path = f"{OWN}/projects/{api.own.project_id}/budget"
    api.host.refuse_budget = UnavailableError("host_unreachable", "away")
    assert (await api.http.put(path, json={"active_cpu_us": 1})).status_code == 503
    api.host.refuse_budget = None
    told = len(api.host.kept)
    api.host.drop_connections()
    async with asyncio.timeout(10):
        while len(api.host.kept) == told:
            await asyncio.sleep(0.01)
    assert [budget.limits for budget in api.host.kept[-1]] == [Limits(active_cpu_us=1)]


BAD: list[Any] = [
    {"active_cpu_us": -1},
    {"active_cpu_us": 1.5},
    {"active_cpu_us": "1"},
    {"active_cpu_us": True},
    {"active_cpu_us": 2**63},
    {"active_cpu": 1},
    {"cpu": 1, "money_nano": 1},
    {"money_nano": 10**400},
    {"money_nano": [1]},
    {"money_nano": {"$gt": 1}},
    [],
    "budget",
    7,
]


@pytest.mark.parametrize("budget", BAD, ids=range(len(BAD)))
async def test_a_budget_that_can_not_be_meant_is_refused(api: Api, budget: Any) -> None:
    for refused in (
        await api.http.put(f"{OWN}/projects/{api.own.project_id}/budget", json=budget),
        await api.http.post("/v3/sandboxes", json={"name": "one", "budget": budget}),
    ):
        assert refused.status_code == 400, refused.text
    assert not api.host.budgets
    assert not api.host.specs


TENANTS: list[Any] = [
    {"concurrency": -1},
    {"concurrency": 1.5},
    {"creations_per_minute": "5"},
    {"storage_bytes": 2**63},
    {"soft": {"concurrency": -1}},
    {"soft": {"unknown": 1}},
    {"soft": [1]},
    {"notify_at": [0]},
    {"notify_at": [101]},
    {"notify_at": [50.5]},
    {"notify_at": [50, 50]},
    {"notify_at": list(range(1, 50))},
    {"notify_at": 50},
    {"period": "year"},
    {"period": ["day"]},
]


@pytest.mark.parametrize("budget", TENANTS, ids=range(len(TENANTS)))
async def test_a_budget_of_a_team_that_can_not_be_meant_is_refused(api: Api, budget: Any) -> None:
    refused = await api.http.put(f"{OWN}/teams/{api.own.team_id}/budget", json={"active_cpu_us": 1} | budget)
    assert refused.status_code == 400, refused.text
    assert not api.host.budgets


async def test_a_sandbox_has_no_limits_that_only_many_can_reach(api: Api) -> None:
    for limit in ("concurrency", "creations_per_minute", "storage_bytes"):
        refused = await api.http.post("/v3/sandboxes", json={"name": "one", "budget": {limit: 1}})
        assert refused.status_code == 400, refused.text


async def test_counts_soft_limits_and_percentages_are_told_to_the_host_and_shown(api: Api) -> None:
    path = f"{OWN}/teams/{api.own.team_id}/budget"
    body = {"concurrency": 3, "creations_per_minute": 4, "notify_at": [80, 50], "soft": {"egress_bytes": 5}, "period": "month"}
    [shown] = (await api.http.put(path, json=body)).json()["budgets"]
    assert shown["limits"] == {"concurrency": 3, "creations_per_minute": 4}
    assert (shown["notify_at"], shown["soft"]) == ([50, 80], {"egress_bytes": 5})
    assert shown["counts"] == {"concurrency": 0, "creations_per_minute": 0}
    held = api.host.budgets[f"team:{api.own.team_id}", "month"]
    assert (held.limits, held.notify_at, held.soft) == (
        Limits(concurrency=3, creations_per_minute=4),
        [50, 80],
        Limits(egress_bytes=5),
    )
    assert held.set_at > 0
    told = len(api.host.kept)
    api.host.drop_connections()
    async with asyncio.timeout(10):
        while len(api.host.kept) == told:
            await asyncio.sleep(0.01)
    assert api.host.kept[-1] == [held]
    [only_soft] = (await api.http.put(path, json={"soft": {"egress_bytes": 6}, "period": "month"})).json()["budgets"]
    assert (only_soft["limits"], only_soft["soft"]) == ({}, {"egress_bytes": 6})
    assert (await api.http.put(path, json={"period": "month", "notify_at": [5]})).json() == {"budgets": []}


async def test_a_budget_that_is_set_while_its_project_is_deleted_does_not_stay(api: Api) -> None:
    owner = await api.tenant("others", None, TokenRole.OWNER)
    member = await api.tenant("others", "web")
    api.host.budget_gate.clear()
    setting = asyncio.ensure_future(owner.http.put(f"{OWN}/projects/{member.project_id}/budget", json={"active_cpu_us": 1}))
    await asyncio.wait_for(api.host.budgets_waiting.acquire(), 10)
    assert (await owner.http.delete(f"{OWN}/projects/{member.project_id}")).status_code in (200, 202, 204)
    async with asyncio.timeout(10):
        while f"project:{member.project_id}" not in api.host.forgotten:
            await asyncio.sleep(0.01)
    api.host.budget_gate.set()
    await setting
    assert not api.host.budgets
    late = await owner.http.put(f"{OWN}/projects/{member.project_id}/budget", json={"active_cpu_us": 1})
    assert late.status_code == 404
    async with api.services.database.read() as connection:
        assert await budget_rows.of_all(connection) == []


async def test_of_two_who_set_a_budget_at_once_the_host_has_what_is_written(api: Api) -> None:
    path = f"{OWN}/projects/{api.own.project_id}/budget"
    for turn in range(5):
        answers = await asyncio.gather(*(api.http.put(path, json={"active_cpu_us": 10 * turn + one}) for one in range(1, 6)))
        assert {answer.status_code for answer in answers} == {200}
        async with api.services.database.read() as connection:
            [written] = (await budget_rows.of_key(connection, f"project:{api.own.project_id}")).values()
        assert api.host.budgets[f"project:{api.own.project_id}", "total"] == written.budget


async def test_storage_that_is_full_takes_no_more(api: Api) -> None:
    path, project = f"{OWN}/projects/{api.own.project_id}/budget", api.own.project_id
    made = await api.create(name="one", persistent=True)
    session = made["session"]["id"]
    await api.create(name="two")
    drive = await api.http.post("/v2/sandboxes/drives/data", json={})
    assert drive.status_code == 201, drive.text
    [shown] = (await api.http.put(path, json={"storage_bytes": 10**9, "notify_at": [100]})).json()["budgets"]
    held = shown["counts"]["storage_bytes"]
    assert held > 0, "a drive"
    [shown] = (await api.http.put(path, json={"storage_bytes": held + 1})).json()["budgets"]
    assert (await api.http.post("/v2/sandboxes/drives/more", json={})).status_code == 201
    [shown] = (await api.http.get(path)).json()["budgets"]
    assert shown["counts"]["storage_bytes"] > held + 1
    for refused in (
        await api.http.post("/v2/sandboxes/drives/other", json={}),
        await api.http.post(f"/v2/sandboxes/sessions/{session}/snapshot", json={}),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded"), refused.text
        assert "storage_bytes" in refused.json()["error"]["message"]
    # What begins goes by what was counted last.
    await storage_budgets.note(api.services)
    refused = await api.http.post("/v3/sandboxes", json={"name": "three", "persistent": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    assert (await api.http.post("/v3/sandboxes", json={"name": "four", "persistent": False})).status_code == 200
    events = (await api.http.get(f"{OWN}/events")).json()["events"]
    assert [(event["type"], event["limit"], event["bound"]) for event in events] == [
        ("budget.exceeded", "storage_bytes", held + 1)
    ]
    assert events[0]["budget"]["id"] == project
    await storage_budgets.note(api.services)
    assert len((await api.http.get(f"{OWN}/events")).json()["events"]) == 1
    assert (await api.http.put(path, json={})).status_code == 200
    assert (await api.http.post("/v3/sandboxes", json={"name": "three", "persistent": True})).status_code == 200


@pytest.mark.section("3")
async def test_to_loosen_a_sandboxes_budget_takes_what_budgets_of_teams_take(api: Api) -> None:
    developer = await api.tenant("others", "main", TokenRole.DEVELOPER)
    owner = await api.tenant("others", None, TokenRole.OWNER)
    made = await developer.http.post("/v3/sandboxes", json={"name": "one", "budget": {"active_cpu_us": 50, "egress_bytes": 9}})
    assert made.status_code == 200, made.text
    path, project = "/v2/sandboxes/one", {"projectId": developer.project_id}
    for looser in (
        None,
        {},
        {"active_cpu_us": 50},
        {"active_cpu_us": 51, "egress_bytes": 9},
        {"active_cpu_us": 1, "egress_bytes": 10},
        {"money_nano": 1},
    ):
        refused = await developer.http.patch(path, json={"budget": looser})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), looser
        assert "budget.write" in refused.json()["error"]["message"]
    tighter = {"active_cpu_us": 40, "egress_bytes": 9, "money_nano": 5}
    changed = await developer.http.patch(path, json={"budget": tighter})
    assert (changed.status_code, changed.json()["sandbox"]["budget"]) == (200, tighter)
    assert (await developer.http.patch(path, json={"timeout": 60_000})).status_code == 200
    raised = await owner.http.patch(path, params=project, json={"budget": {"active_cpu_us": 400}})
    assert (raised.status_code, raised.json()["sandbox"]["budget"]) == (200, {"active_cpu_us": 400})
    assert (await owner.http.patch(path, params=project, json={"budget": None})).status_code == 200
    # Where there is none, anybody who works with the sandbox may set one.
    assert (await developer.http.patch(path, json={"budget": {"active_cpu_us": 7}})).status_code == 200


@pytest.mark.section("3")
async def test_only_owners_and_billing_of_the_whole_team_change_budgets(api: Api) -> None:
    member = await api.tenant("others")
    owner = await api.tenant("others", None, TokenRole.OWNER)
    billing = await api.tenant("others", None, TokenRole.BILLING)
    developer = await api.tenant("others", None, TokenRole.DEVELOPER)
    viewer = await api.tenant("others", None, TokenRole.VIEWER)
    bound = await api.tenant("others", "main", TokenRole.OWNER)
    bound_billing = await api.tenant("others", "main", TokenRole.BILLING)
    path = f"{OWN}/projects/{member.project_id}/budget"
    team = f"{OWN}/teams/{owner.team_id}/budget"
    for who in (member, developer, viewer, bound, bound_billing):
        assert (await who.http.put(path, json={"active_cpu_us": 1})).status_code == 403
        assert (await who.http.put(team, json={"active_cpu_us": 1})).status_code == 403
        assert (await who.http.get(path)).json() == {"budgets": []}
    for who in (owner, billing):
        assert (await who.http.put(path, json={"active_cpu_us": 1})).status_code == 200
        assert (await who.http.put(team, json={"active_cpu_us": 2})).status_code == 200
    assert (await owner.http.put(team, json={"active_cpu_us": 1, "period": "week"})).status_code == 400
    stranger = await api.tenant("strangers", None, TokenRole.OWNER)
    for place in (path, team):
        assert (await stranger.http.get(place)).status_code == 404
        assert (await stranger.http.put(place, json={"active_cpu_us": 1})).status_code == 404
        assert (await api.client("").put(place, json={"active_cpu_us": 1})).status_code == 401


@pytest.mark.section("3")
async def test_who_changed_a_budget_is_in_the_teams_audit_log(api: Api) -> None:
    owner = await api.tenant("others", None, TokenRole.OWNER)
    member = await api.tenant("others")
    path = f"{OWN}/projects/{member.project_id}/budget"
    for body in ({"active_cpu_us": 1, "period": "day"}, {"period": "day"}):
        assert (await owner.http.put(path, json=body)).status_code == 200
    assert (await member.http.put(path, json={"active_cpu_us": 9})).status_code == 403
    log = (await owner.http.get(f"{OWN}/teams/others/audit-log")).json()["entries"]
    own = [entry for entry in log if entry["action"].startswith("budget.")]
    assert [(entry["action"], entry["outcome"], entry["token_id"]) for entry in own] == [
        ("budget.changed", "done", owner.token_id),
        ("budget.removed", "done", owner.token_id),
        ("budget.write", "refused", member.token_id),
    ]
    assert own[0]["subject"] == own[1]["subject"] == member.project_id
    assert own[0]["detail"] == {"period": "day", "limits": {"active_cpu_us": 1}}
