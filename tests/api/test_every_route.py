"""Every route of the application, walked by those whom it is not for.

The routes come from the application itself, so that a new one is walked without being named here; only how to ask for it, where
its path or body has something new, is said below (`Victim.path_values`, `bodies`). Whatever a stranger tries, no answer has
anything of the victim's, and the victim's rows stay as they were.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from starlette.routing import WebSocketRoute

from hutch import ids
from hutch.api.app import create_app
from hutch.api.auth import new_token
from hutch.api.routing import PlainRoute
from hutch.clock import now_ms
from hutch.control.permissions import PERMISSIONS, Permission, TokenRole, granted
from hutch.control.records import Scope
from hutch.storage import worker_rows, worker_syncs, worker_views, workers
from hutch.storage.models import Base
from hutch.storage.worker_views import Definition, View
from hutch.workers import manifest, reconcile
from hutch.workers.changes import Upsert
from hutch.workers.merge import merged
from tests.api.conftest import DAY_MS, Api

pytestmark = pytest.mark.section("3")

CANARY = "canary-4f1d2c"
TEAM = "acme-9b07"
NUMBERS = itertools.count()
OWN_NAMES = {"name", "drive", "registry"}
"""Parameters that name something of the caller's own project, unless the query names another."""


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        "HUTCH_LIMITS__REQUESTS_PER_MINUTE": "0",
        "HUTCH_LIMITS__CREATES_PER_MINUTE": "0",
        "HUTCH_LIMITS__DELETES_PER_SECOND": "0",
    }


def routes_of(api: Api) -> Iterator[tuple[str, PlainRoute]]:
    """Every method and route of the running application; WebSockets are opened with tickets that a route gave."""
    app: Any = create_app(api.services)
    while not hasattr(app, "router"):
        app = app._app
    found = [route for route in app.router.routes if not isinstance(route, WebSocketRoute)]
    for route in found:
        assert isinstance(route, PlainRoute), f"{route!r} asks nobody for a permission"
    pairs = [(method, route) for route in found for method in route.methods or ()]
    # What reads comes first: later a stranger has things of its own by the same names.
    yield from sorted(pairs, key=lambda pair: pair[0] != "GET")


@dataclass
class Victim:
    """A project with one of everything. `marks` are texts that only its own team may see; `secrets` what no viewer may."""

    team_id: str
    project_id: str
    session_id: str
    command_id: str
    snapshot_id: str
    token_id: str
    member_id: str
    worker_id: str
    run_id: str
    marks: set[str] = field(default_factory=set)

    def path_values(self, route: PlainRoute) -> dict[str, str]:
        values = {
            "session_id": self.session_id,
            "command_id": self.command_id,
            "snapshot_id": self.snapshot_id,
            "token_id": self.token_id,
            "member_id": self.member_id,
            "team": self.team_id,
            "project": self.project_id,
            "drive": f"drive-{CANARY}",
            "registry": "registry.example",
            "upload": "none",
            "worker_id": self.worker_id,
            "run_id": self.run_id,
            "job_id": self.run_id,
            "button_id": self.run_id,
            "button": "none",
            "project_id": self.project_id,
            "address": "none",
            "webhook": "k",
            "key": "k",
            "sync": f"sync-{CANARY}",
            "database": f"database-{CANARY}",
            "view": f"view-{CANARY}",
            "tool": f"tool-{CANARY}",
            "name": f"cred-{CANARY}" if "credentials" in route.path else f"box-{CANARY}",
        }
        unknown = set(route.param_convertors) - set(values)
        assert not unknown, f"say in `path_values` what {sorted(unknown)} of {route.path} may be"
        return {name: values[name] for name in route.param_convertors}

    def bodies(self, method: str, route: PlainRoute) -> list[dict[str, Any] | None]:
        """Bodies that would be taken; those that name something of the victim's come last."""
        told = route.documentation
        if told.body is None:
            return [None]
        given: dict[str, list[dict[str, Any]]] = {
            "CreateSandbox": [
                {"source": {"type": "snapshot", "snapshotId": self.snapshot_id}},
                {"mounts": {"/data": {"drive": f"drive-{CANARY}"}}},
                {"projectId": self.project_id},
            ],
            "UpdateSandbox": [{"currentSnapshotId": self.snapshot_id}],
            "GetOrCreateDrive": [{"projectId": self.project_id}],
            "ForkDrive": [{"name": "copy"}],
            "CreateToken": [{"team": self.team_id}, {"project": self.project_id}, {"team": self.team_id, "role": "viewer"}],
            "BuildImage": [{"snapshotId": self.snapshot_id, "name": "built"}],
            "PullImage": [{"reference": "docker.io/library/alpine:3"}],
            "PutCredential": [{"value": "x"}],
            "LogIn": [{"username": "a", "password": "b"}],
            "PolicyBody": [{"mode": "deny-all"}],
            "ReadFile": [{"path": "/etc/hostname"}],
            "MakeDirectory": [{"path": "/tmp/x"}],
            "StartCommand": [{"command": "echo"}],
            "KillCommand": [{"signal": 9}],
            "WriteStdin": [{"data": ""}],
            "LinkBody": [{"port": 3000}],
            "ProjectIngress": [{"private": True}],
            "ExtendTimeout": [{"duration": 1000}],
            "NameTeam": [{"slug": f"new-{next(NUMBERS)}"}],
            "AddMember": [{"identity": f"new-{next(NUMBERS)}@example.com", "role": "owner"}],
            "ChangeMember": [{"role": "viewer"}],
            "ChangeTool": [{"enabled": False}],
            "PutNetwork": [{"mode": "learn"}, {"mode": "set", "allow": ["api.example.com"]}],
            "ConfirmNetwork": [{"deployment": self.run_id}],
            "ProjectReview": [{"review": True}],
            "CallTool": [{"arguments": {}}],
            "Message": [{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}],
            "CreateWorker": [{"name": "new"}],
            "OfWorker": [{"workerId": self.worker_id}],
            "UpdateWorker": [{"workerId": self.worker_id}],
            "BuildWorker": [{"workerId": self.worker_id, "stream": True}],
            "RunCapability": [{"workerId": self.worker_id, "capabilityKey": "k", "args": {}}],
            "UpsertSecrets": [{"workerId": self.worker_id, "secrets": [{"key": "NEW", "value": "x"}]}],
            "CreateWorkersToken": [{"name": "new"}],
            "RevokeWorkersToken": [{"tokenId": self.token_id}],
            "OfOauth": [{"workerId": self.worker_id, "oauthCapabilityKey": "k"}],
            "DeleteSecret": [{"workerId": self.worker_id, "key": "K"}],
            "ChangeWebhook": [{"verification": True}],
            "Trigger": [{"event": {}}],
            "NewButton": [{}],
            "PutNotion": [{"token": "t", "parent": {"page_id": "0" * 32}, "base_url": "http://127.0.0.1:1"}],
            "Replay": [{}],
            "SwitchSync": [{"workerId": self.worker_id, "capabilityKey": f"sync-{CANARY}", "disabled": True}],
            "TriggerSync": [{}, {"preview": True}],
            "GetRunLogs": [{"workerId": self.worker_id, "runId": self.run_id}],
        }
        example: Any = told.example or {}
        return [*given.get(told.body.__name__, [example])]


@pytest.fixture
async def victim(api: Api) -> Victim:
    tenant = await api.tenant(TEAM, "main", TokenRole.OWNER)
    http = tenant.http

    async def send(method: str, path: str, **body: Any) -> dict[str, Any]:
        response = await http.request(method, path, json=body)
        assert response.is_success, f"{path}: {response.text}"
        return dict(response.json()) if response.content else {}

    whole_team = await client_of(api, tenant.team_id, None, TokenRole.OWNER)
    identity = {"identity": f"{CANARY}@example.com", "role": "developer"}
    added = await whole_team.post(f"/hutch/v1/teams/{tenant.team_id}/members", json=identity)
    await send("POST", f"/v2/sandboxes/drives/drive-{CANARY}")
    await send("PUT", f"/hutch/v1/credentials/cred-{CANARY}", value=f"secret-{CANARY}")
    await send("PUT", "/hutch/v1/registries/registry.example", username="u", password=f"secret-{CANARY}")
    made = await send(
        "POST",
        "/v3/sandboxes",
        name=f"box-{CANARY}",
        ports=[3000],
        env={"K": f"secret-{CANARY}"},
        tags={"t": CANARY},
        networkPolicy={"allow": {"a.test": [{"transform": [{"headers": {"authorization": f"secret-{CANARY}"}}]}]}},
    )
    session = made["session"]["id"]
    taken = await send("POST", f"/v2/sandboxes/sessions/{session}/snapshot", keepRunning=True)
    command = await send("POST", f"/v2/sandboxes/sessions/{session}/cmd", command="wait", args=[f"secret-{CANARY}"])
    worker = (await send("POST", "/v3/workersCreateWorker", name=f"worker-{CANARY}"))["worker"]["workerId"]
    secrets = [{"key": f"KEY_{CANARY}", "value": f"secret-{CANARY}"}]
    await send("POST", "/v3/workersUpsertSecrets", workerId=worker, secrets=secrets)
    run = await ended_run(api, tenant.team_id, tenant.project_id, worker)
    await synced(api, tenant.team_id, tenant.project_id, worker)
    found = Victim(
        tenant.team_id,
        tenant.project_id,
        session,
        command["command"]["id"],
        taken["snapshot"]["id"],
        tenant.token_id,
        added.json()["id"],
        worker,
        run,
    )
    # What the fake host keeps of pulled images and logs is everybody's; ids and names of ours are not.
    found.marks = {
        CANARY,
        TEAM,
        found.team_id,
        found.project_id,
        session,
        found.command_id,
        found.snapshot_id,
        found.token_id,
        found.member_id,
        worker,
        run,
    }
    return found


async def ended_run(api: Api, team_id: str, project_id: str, worker_id: str) -> str:
    """A run whose log and result have the canary."""
    sealer, now = api.services.sealer, now_ms()
    run = workers.Run(ids.worker_id(), worker_id, team_id, project_id, ids.worker_id(), None, f"tool:{CANARY}", None, now, None)
    said = sealer.seal(f"secret-{CANARY}", run.id)
    result = sealer.seal(f"secret-{CANARY}", f"{run.id}/result")
    async with api.services.database.write() as connection:
        await workers.add_run(connection, run)
        await workers.end_run(connection, Scope(team_id, project_id), run, now, exit_code=0, result=result, logs=said)
    return run.id


async def synced(api: Api, team_id: str, project_id: str, worker_id: str) -> None:
    """A sync with an error and a warning, and a database with a row, which have the canary."""
    scope, sealer, now = Scope(team_id, project_id), api.services.sealer, now_ms()
    properties = {"Id": {"type": "title"}, f"p-{CANARY}": {"type": "text"}}
    declared = {"primaryKeyProperty": "Id", "schema": {"properties": properties}}
    sync = {"databaseKey": f"database-{CANARY}", "schedule": {"type": "manual"}}
    content = {
        "capabilities": [{"_tag": "sync", "key": f"sync-{CANARY}", "config": sync}],
        "databases": [{"key": f"database-{CANARY}", "config": declared}],
    }
    upsert = Upsert(key=f"secret-{CANARY}", properties={"Id": f"secret-{CANARY}", f"p-{CANARY}": f"secret-{CANARY}"})
    async with api.services.database.write() as connection:
        await reconcile.apply(connection, scope, worker_id, manifest.parse(json.dumps(content).encode()), sealer, now)
        known = await worker_rows.databases(connection, scope, worker_id)
        writes, _ = merged([upsert], f"database-{CANARY}", set(known))
        await worker_rows.write(connection, scope, worker_id, known, writes, mark=now, now=now)
        view = View(f"view-{CANARY}", Definition(properties=(f"p-{CANARY}",)), now)
        await worker_views.put(connection, scope, worker_id, f"database-{CANARY}", view, 1)
        found = await worker_syncs.find(connection, scope, worker_id, f"sync-{CANARY}", sealer, lock=True)
        assert found is not None
        state = msgspec.structs.replace(found.state, last_error=f"secret-{CANARY}", failures=1)
        await worker_syncs.put(connection, found, state, sealer, warnings=[f"secret-{CANARY}"])


async def rows_of(api: Api, victim: Victim) -> dict[str, list[str]]:
    """All of the victim's rows, as text, but for its log of refusals."""
    ours = re.compile(f"{CANARY}|{victim.team_id}|{victim.project_id}")
    queries = {name: f"SELECT * FROM {name}" for name in Base.metadata.tables}
    queries["audit_log"] += f" WHERE outcome <> 'refused' AND team_id = '{victim.team_id}'"
    # When a token was used last is written a while later, in the middle of a long test.
    lasting = [column.name for column in Base.metadata.tables["tokens"].columns if "use" not in column.name]
    queries["tokens"] = f"SELECT {', '.join(lasting)} FROM tokens"
    queries["teams"] = "SELECT id, slug, network_policy, deleting_at FROM teams"
    async with api.services.database.read() as connection:
        return {
            name: sorted(row for row in map(str, await connection.execute(text(query))) if ours.search(row))
            for name, query in queries.items()
        }


async def client_of(api: Api, team_id: str, project_id: str | None, role: TokenRole) -> httpx.AsyncClient:
    record = new_token(team_id, project_id, role, now=now_ms(), ttl_ms=DAY_MS)
    return api.client(await api.services.auth.issue(record))


def queries(victim: Victim) -> list[dict[str, str]]:
    """What a stranger may write behind a path to get at the victim's."""
    return [
        {},
        {"teamId": victim.team_id},
        {"slug": TEAM},
        {"projectId": victim.project_id, "project": victim.project_id},
        {"teamId": victim.team_id, "projectId": victim.project_id, "project": victim.project_id},
    ]


async def ask(
    http: httpx.AsyncClient, method: str, route: PlainRoute, victim: Victim, query: dict[str, str], body: Any
) -> httpx.Response:
    path = route.path_format.format(**victim.path_values(route))
    if route.documentation.body is None and route.documentation.content != "application/json":
        return await http.request(method, path, params=query, content=b"")
    return await http.request(method, path, params=query, json=body)


def leaks(victim: Victim, response: httpx.Response, asked: str) -> set[str]:
    """Marks of the victim's in an answer, but those that the question had."""
    if response.is_error or response.request.method != "GET":
        # A refusal says again what was asked for, and so does what was made by that name.
        return {mark for mark in victim.marks if mark in response.text and mark not in asked}
    return {mark for mark in victim.marks if mark in response.text}


@pytest.mark.parametrize(("role", "bound"), [(TokenRole.OWNER, True), (TokenRole.OWNER, False), (TokenRole.DEVELOPER, True)])
async def test_a_stranger_gets_nothing_from_any_route(api: Api, victim: Victim, role: TokenRole, bound: bool) -> None:
    stranger = await api.tenant("stranger", "main")
    http = await client_of(api, stranger.team_id, stranger.project_id if bound else None, role)
    before = await rows_of(api, victim)
    asked = 0
    for method, route in routes_of(api):
        if route.documentation.public:
            continue
        for query, body in itertools.product(queries(victim), victim.bodies(method, route)):
            response = await ask(http, method, route, victim, query, body)
            question = f"{method} {route.path} {query} {body}"
            known = f"{response.request.url} {body}"
            assert not leaks(victim, response, known), f"{question} → {response.status_code} {response.text}"
            names = set(route.param_convertors)
            if names - OWN_NAMES:
                # By an id that exists.
                assert response.status_code in (403, 404), f"{question} → {response.status_code} {response.text}"
            elif response.is_success and method != "GET":
                # Something of the stranger's own: it said nothing of the victim.
                assert not query or method == "DELETE" or "tokens" in route.path, f"{question} → {response.text}"
                assert not body or not (set(json.dumps(body).split('"')) & victim.marks), f"{question} → {response.text}"
            asked += 1
    assert asked > 200
    assert await rows_of(api, victim) == before


async def test_another_project_of_the_same_team_gets_nothing_of_this_one(api: Api, victim: Victim) -> None:
    sibling = await api.tenant(TEAM, "other", TokenRole.OWNER)
    before = await rows_of(api, victim)
    # Its own team it may know.
    ours = {TEAM, victim.team_id}
    for method, route in routes_of(api):
        if route.documentation.public:
            continue
        for query, body in itertools.product(queries(victim), victim.bodies(method, route)):
            if route.name == "create_token" and body and "project" not in body:
                continue
            response = await ask(sibling.http, method, route, victim, query, body)
            found = leaks(victim, response, f"{response.request.url} {body}") - ours
            assert not found, f"{method} {route.path} {query} {body} → {response.status_code} {response.text}"
            names = set(route.param_convertors) - {"team"}
            if names - OWN_NAMES or (names and "projectId" in query):
                assert response.status_code in (403, 404), f"{method} {route.path} {query} → {response.status_code}"
    after = await rows_of(api, victim)
    for name in ("sandboxes", "credentials", "drives", "tokens", "snapshots"):
        assert [row for row in before[name] if row not in after[name]] == []


@pytest.mark.parametrize("role", list(TokenRole))
async def test_every_role_is_refused_what_the_table_does_not_give_it(api: Api, victim: Victim, role: TokenRole) -> None:
    """With ids that exist, in the role's own project: what is not in its row is 403, and changes nothing."""
    http = await client_of(api, victim.team_id, None, role)
    before = await rows_of(api, victim)
    allowed = granted(role)
    for method, route in routes_of(api):
        needs = route.documentation.needs
        if needs is None or needs in allowed:
            continue
        for body in victim.bodies(method, route):
            response = await ask(http, method, route, victim, {"projectId": victim.project_id}, body)
            assert response.status_code == 403, f"{method} {route.path} → {response.status_code} {response.text}"
            error = response.json()["error"]
            assert error["code"] == "forbidden"
            assert f"'{needs}'" in error["message"]
            assert f"'{role}'" in error["message"]
    assert await rows_of(api, victim) == before


@pytest.mark.parametrize("role", list(TokenRole))
async def test_what_reads_is_refused_to_no_role_that_has_the_permission(api: Api, victim: Victim, role: TokenRole) -> None:
    http = await client_of(api, victim.team_id, None, role)
    for method, route in routes_of(api):
        needs = route.documentation.needs
        if method == "GET" and needs in granted(role):
            query = {"projectId": victim.project_id} | ({"name": f"box-{CANARY}"} if route.name == "snapshot_tree" else {})
            if route.name == "follow_logs":
                # It goes on as long as the command.
                continue
            response = await ask(http, method, route, victim, query, None)
            assert response.status_code not in (401, 403), f"{route.path} → {response.text}"


async def test_a_viewer_sees_no_secret_and_starts_nothing(api: Api, victim: Victim) -> None:
    http = await client_of(api, victim.team_id, victim.project_id, TokenRole.VIEWER)
    for method, route in routes_of(api):
        if route.documentation.needs is None:
            continue
        for body in victim.bodies(method, route):
            response = await ask(http, method, route, victim, {}, body)
            assert f"secret-{CANARY}" not in response.text, f"{method} {route.path}"
            reads = method == "GET" or route.documentation.needs is Permission.WORKER_READ
            assert reads or response.status_code == 403 or route.name in ("revoke_token", "verify_snapshot")
    response = await http.get(f"/v2/sandboxes/box-{CANARY}", params={"resume": "true"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert Permission.SANDBOX_WRITE not in PERMISSIONS[TokenRole.VIEWER]


async def test_without_a_token_every_route_that_is_not_public_is_401(api: Api, victim: Victim) -> None:
    for method, route in routes_of(api):
        if not route.documentation.public:
            response = await ask(api.client(""), method, route, victim, {}, victim.bodies(method, route)[0])
            assert response.status_code == 401, route.path
