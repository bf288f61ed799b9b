"""Deleting teams and projects: gone at once for everybody, and then piece by piece, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from hutch.api import teardown
from hutch.api.startup import load as load_installation
from hutch.api.startup import started
from hutch.control.permissions import TokenRole
from hutch.errors import UnavailableError
from hutch.host.protocol import SessionStatus
from hutch.storage.models import Base
from tests.api.conftest import Api, FakeImages, Tenant

pytestmark = pytest.mark.section("3")

OWN = "/hutch/v1"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "RETRY_S", 0.05)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def rows_of(services: Any, team_id: str) -> dict[str, int]:
    """How many rows of each table say anything of a team, but those of others' logs."""
    async with services.database.read() as connection:
        found = {}
        for name in Base.metadata.tables:
            rows = [str(row) for row in await connection.execute(text(f"SELECT * FROM {name}"))]
            found[name] = sum(team_id in row for row in rows if name != "audit_log" or f"('{team_id}'" in row)
        return {name: count for name, count in found.items() if count}


async def filled(api: Api, team: str = "acme") -> tuple[Tenant, str]:
    """A team with something of everything; and its session."""
    tenant = await api.tenant(team, "main", TokenRole.OWNER)
    http = tenant.http
    session = (await api.create(http, name="box", ports=[3000], env={"A": "b"}))["session"]["id"]
    for path, body in (
        (f"/v2/sandboxes/sessions/{session}/snapshot", {"keepRunning": True}),
        (f"/v2/sandboxes/sessions/{session}/cmd", {"command": "echo", "args": ["x"]}),
        ("/v2/sandboxes/drives/data", {}),
        (f"{OWN}/images", {"reference": "docker.io/library/alpine:3"}),
    ):
        response = await http.post(path, json=body)
        assert response.is_success, response.text
    await http.put(f"{OWN}/credentials/key", json={"value": "x"})
    await api.create(http, name="other", budget={"active_cpu_us": 5})
    manager = (await api.tenant(team, None, TokenRole.BILLING)).http
    for place in (f"teams/{tenant.team_id}", f"projects/{tenant.project_id}"):
        assert (await manager.put(f"{OWN}/{place}/budget", json={"active_cpu_us": 7, "period": "day"})).status_code == 200
    await api.host.until_delivered(await api.host.close_window(session, active_cpu_us=5))
    return tenant, session


async def owner(api: Api, team: str) -> Tenant:
    return await api.tenant(team, None, TokenRole.OWNER)


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_IMAGE__REGISTRIES": '["*"]'}


async def test_a_deleted_team_is_gone_at_once_and_then_everywhere(api: Api) -> None:
    tenant, session = await filled(api)
    mine = await owner(api, "acme")
    sandbox_ids = {spec.sandbox_id for spec in api.host.specs.values()}
    assert (await mine.http.delete(f"{OWN}/teams/acme")).status_code == 204
    # From the answer on.
    for http in (tenant.http, mine.http):
        assert (await http.get("/v2/sandboxes")).status_code == 401
    assert (await api.http.get(f"{OWN}/teams/acme")).status_code == 404
    assert (await api.http.get(f"{OWN}/teams/{tenant.team_id}")).status_code == 404

    async def nothing() -> bool:
        return not await rows_of(api.services, tenant.team_id)

    await until(nothing)
    assert session not in api.host.sessions
    assert not api.host.snapshots
    assert not api.host.drives
    assert not api.host.images
    assert not any(told.routes for told in api.host.routes.values())
    assert {session, *sandbox_ids, f"team:{tenant.team_id}", f"project:{tenant.project_id}"} <= api.host.forgotten
    assert not api.host.budgets
    # What the host tells behind that is nobody's.
    await api.host.until_delivered(await api.host.tell_again())
    assert await rows_of(api.services, tenant.team_id) == {}
    assert api.host.scrubbed == 1
    log = (await api.http.get(f"{OWN}/teams/default/audit-log")).json()["entries"]
    assert [(one["action"], one["subject"], one["token_id"]) for one in log[-2:]] == [
        ("team.deleted", tenant.team_id, mine.token_id),
        ("team.removed", tenant.team_id, "server"),
    ]


async def test_others_keep_everything(api: Api) -> None:
    theirs, session = await filled(api, "theirs")
    await filled(api, "acme")
    before = await rows_of(api.services, theirs.team_id)
    held = (set(api.host.drives), set(api.host.images))
    mine = await owner(api, "acme")
    await mine.http.delete(f"{OWN}/teams/acme")

    async def nothing() -> bool:
        return not await rows_of(api.services, mine.team_id)

    await until(nothing)
    assert await rows_of(api.services, theirs.team_id) == before
    assert before["usage_windows"] == 1
    assert before["budgets"] == 2
    assert {key for key, _ in api.host.budgets} == {f"team:{theirs.team_id}", f"project:{theirs.project_id}"}
    assert api.host.sessions[session].status is SessionStatus.RUNNING
    assert (len(api.host.drives), len(api.host.images)) == (len(held[0]) // 2, len(held[1]) // 2)
    assert (await theirs.http.get("/v2/sandboxes/box")).status_code == 200


async def test_a_deleted_project_goes_alone(api: Api) -> None:
    await filled(api)
    other = await api.tenant("acme", "other")
    await api.create(other.http, name="stays")
    mine = await owner(api, "acme")
    project = (await mine.http.get(f"{OWN}/projects/main")).json()["id"]
    assert (await mine.http.delete(f"{OWN}/projects/main")).status_code == 204
    assert (await mine.http.get(f"{OWN}/projects/main")).status_code == 404
    assert (await mine.http.post(f"{OWN}/projects", json={"slug": "main"})).status_code == 201

    async def removed() -> bool:
        log = (await mine.http.get(f"{OWN}/teams/acme/audit-log")).json()["entries"]
        # The new one of that name may be written down before or after.
        return any(entry["action"] == "project.removed" for entry in log)

    await until(removed)
    assert await rows_of(api.services, project) == {}
    await api.host.until_delivered(await api.host.tell_again())
    assert await rows_of(api.services, project) == {}
    async with api.services.database.read() as connection:
        left = [row[0] for row in await connection.execute(text("SELECT key FROM budgets"))]
    assert left == [f"team:{mine.team_id}"]
    assert [key for key, _ in api.host.budgets] == left
    assert (await other.http.get("/v2/sandboxes/stays")).status_code == 200


async def test_what_failed_is_tried_again(api: Api) -> None:
    await filled(api)
    mine = await owner(api, "acme")
    away = UnavailableError("host_unavailable", "away")
    api.host.refuse_delete = api.host.refuse_drive = api.host.refuse_scrub = away
    await mine.http.delete(f"{OWN}/teams/acme")
    for name in ("refuse_delete", "refuse_drive", "refuse_scrub"):
        await asyncio.sleep(0.2)
        assert await rows_of(api.services, mine.team_id)
        setattr(api.host, name, None)

    async def nothing() -> bool:
        return not await rows_of(api.services, mine.team_id)

    await until(nothing)


async def test_the_next_start_goes_on(api: Api, tmp_path: Path) -> None:
    await filled(api)
    mine = await owner(api, "acme")
    api.host.refuse_scrub = UnavailableError("host_unavailable", "away")
    await mine.http.delete(f"{OWN}/teams/acme")

    async def only_the_mark() -> bool:
        return set(await rows_of(api.services, mine.team_id)) == {"teams"}

    await until(only_the_mark)
    api.host.refuse_scrub = None
    # Another process on the same database, as after kill -9.
    async with started(api.services.settings, load_installation(api.services.settings), FakeImages()) as again:  # type: ignore[arg-type]

        async def nothing() -> bool:
            return not await rows_of(again, mine.team_id)

        await until(nothing)


async def test_the_servers_own_team_and_project_stay(api: Api) -> None:
    for path in ("/teams/default", "/projects/default"):
        response = await api.http.delete(OWN + path)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")


async def test_only_owners_of_the_whole_team_delete(api: Api) -> None:
    bound = await api.tenant("acme", "web", TokenRole.OWNER)
    developer = await api.tenant("acme", None, TokenRole.DEVELOPER)
    stranger = await owner(api, "other")
    for tenant, status in ((bound, 403), (developer, 403), (stranger, 404)):
        assert (await tenant.http.delete(f"{OWN}/teams/{bound.team_id}")).status_code == status
        assert (await tenant.http.delete(f"{OWN}/projects/{bound.project_id}")).status_code == status
