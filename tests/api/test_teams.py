"""Teams, projects, members, their tokens, and what is written down about changes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from hutch.api import token_uses
from hutch.api.auth import new_token
from hutch.api.startup import identity
from hutch.clock import now_ms
from hutch.control.audit_log import Actor, Chain, Entry, Head
from hutch.control.permissions import Permission, TokenRole
from hutch.storage import tokens
from tests.api.conftest import DAY_MS, Api, Tenant

pytestmark = pytest.mark.section("3")

OWN = "/hutch/v1"


async def owner(api: Api, team: str = "acme") -> Tenant:
    return await api.tenant(team, None, TokenRole.OWNER)


async def send(http: httpx.AsyncClient, method: str, path: str, **body: Any) -> dict[str, Any]:
    response = await http.request(method, OWN + path, json=body or None)
    assert response.is_success, f"{method} {path}: {response.text}"
    return dict(response.json()) if response.content else {}


async def refused(http: httpx.AsyncClient, method: str, path: str, **body: Any) -> tuple[int, str]:
    response = await http.request(method, OWN + path, json=body or None)
    return response.status_code, response.json()["error"]["code"]


async def entries(api: Api, team: str, **query: Any) -> dict[str, Any]:
    response = await api.http.get(f"{OWN}/teams/{team}/audit-log", params=query)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def member(http: httpx.AsyncClient, team: str, identity: str, role: str) -> str:
    return str((await send(http, "POST", f"/teams/{team}/members", identity=identity, role=role))["id"])


async def token_of(api: Api, http: httpx.AsyncClient, **body: Any) -> tuple[httpx.AsyncClient, dict[str, Any]]:
    made = await send(http, "POST", "/tokens", **body)
    return api.client(made["token"]), made


# -- teams and projects -----------------------------------------------------------------------------


async def test_administrators_make_and_list_teams_and_owners_see_their_own(api: Api) -> None:
    made = await send(api.http, "POST", "/teams", slug="acme")
    assert (await refused(api.http, "POST", "/teams", slug="acme")) == (409, "conflict")
    assert {team["slug"] for team in (await send(api.http, "GET", "/teams"))["teams"]} == {"default", "acme"}
    mine = await owner(api)
    assert (await send(mine.http, "GET", "/teams"))["teams"] == [made]
    assert await send(mine.http, "GET", "/teams/acme") == made
    assert (await refused(mine.http, "POST", "/teams", slug="mine"))[0] == 403
    assert (await refused(mine.http, "GET", "/teams/default")) == (404, "not_found")


async def test_pages_of_teams_and_projects_follow_on_each_other(api: Api) -> None:
    for number in range(4):
        await send(api.http, "POST", "/teams", slug=f"team-{number}")
    seen, after = [], ""
    while True:
        page = (await api.http.get(f"{OWN}/teams", params={"limit": 2, "after": after})).json()
        seen += [team["slug"] for team in page["teams"]]
        if "next" not in page:
            break
        after = page["next"]
    assert sorted(seen) == ["default", "team-0", "team-1", "team-2", "team-3"]


async def test_a_renamed_team_is_found_by_its_new_slug_at_once(api: Api) -> None:
    mine = await owner(api)
    bound = await api.tenant("acme", "web")
    assert (await bound.http.get("/v2/sandboxes", params={"slug": "acme"})).status_code == 200
    renamed = await send(mine.http, "PATCH", "/teams/acme", slug="globex")
    assert (renamed["id"], renamed["slug"]) == (mine.team_id, "globex")
    assert (await bound.http.get("/v2/sandboxes", params={"slug": "acme"})).status_code == 403
    assert (await bound.http.get("/v2/sandboxes", params={"slug": "globex"})).status_code == 200
    assert (await refused(mine.http, "PATCH", "/teams/globex", slug="default")) == (409, "conflict")
    assert (await refused(mine.http, "PATCH", "/teams/globex", slug="No")) == (400, "bad_request")


async def test_projects_are_made_listed_and_renamed_by_owners_of_the_whole_team(api: Api) -> None:
    mine = await owner(api)
    made = await send(mine.http, "POST", "/projects", slug="web")
    assert (await refused(mine.http, "POST", "/projects", slug="web")) == (409, "conflict")
    await send(mine.http, "POST", "/projects", slug="jobs")
    assert {one["slug"] for one in (await send(mine.http, "GET", "/projects"))["projects"]} == {"web", "jobs"}
    assert (await refused(mine.http, "PATCH", "/projects/web", slug="jobs")) == (409, "conflict")
    assert (await send(mine.http, "PATCH", "/projects/web", slug="site"))["id"] == made["id"]
    assert (await refused(mine.http, "GET", "/projects/web")) == (404, "not_found")
    bound = await api.tenant("acme", "site", TokenRole.OWNER)
    assert [one["slug"] for one in (await send(bound.http, "GET", "/projects"))["projects"]] == ["site"]
    assert (await refused(bound.http, "POST", "/projects", slug="more")) == (403, "forbidden")
    assert (await refused(bound.http, "GET", "/projects/jobs")) == (404, "not_found")


# -- members ----------------------------------------------------------------------------------------


async def test_members_are_added_changed_and_removed(api: Api) -> None:
    mine = await owner(api)
    ada = await member(mine.http, "acme", "ada@example.com", "owner")
    bob = await member(mine.http, "acme", "oidc|bob", "viewer")
    assert (await refused(mine.http, "POST", "/teams/acme/members", identity="ada@example.com", role="viewer")) == (
        409,
        "conflict",
    )
    found = (await send(mine.http, "GET", "/teams/acme/members"))["members"]
    assert {(one["id"], one["role"]) for one in found} == {(ada, "owner"), (bob, "viewer")}
    changed = await send(mine.http, "PATCH", f"/teams/acme/members/{bob}", role="billing", name="Bob")
    assert (changed["role"], changed["name"]) == ("billing", "Bob")
    await send(mine.http, "DELETE", f"/teams/acme/members/{bob}")
    assert (await refused(mine.http, "GET", f"/teams/acme/members/{bob}")) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"identity": "", "role": "viewer"},
        {"identity": "a b", "role": "viewer"},
        {"identity": "a\0b", "role": "viewer"},
        {"identity": "a@example.com\n", "role": "viewer"},
        {"identity": "x" * 321, "role": "viewer"},
        {"identity": "a@example.com", "role": "admin"},
        {"identity": "a@example.com", "role": "member"},
        {"identity": "a@example.com", "role": "viewer", "name": "x" * 129},
    ],
)
async def test_members_that_can_not_be_meant_are_400(api: Api, body: Any) -> None:
    mine = await owner(api)
    assert (await refused(mine.http, "POST", "/teams/acme/members", **body)) == (400, "bad_request")


@pytest.mark.parametrize("member_id", ["mem_nobody", "a%00b", "x" * 200, "%ff"])
async def test_members_that_are_nobody_are_404(api: Api, member_id: str) -> None:
    mine = await owner(api)
    for method, body in (("GET", {}), ("PATCH", {"role": "viewer"}), ("DELETE", {})):
        assert (await refused(mine.http, method, f"/teams/acme/members/{member_id}", **body))[0] == 404


async def test_the_last_owner_stays_one(api: Api) -> None:
    mine = await owner(api)
    ada = await member(mine.http, "acme", "ada@example.com", "owner")
    assert (await refused(mine.http, "DELETE", f"/teams/acme/members/{ada}")) == (409, "last_owner")
    assert (await refused(mine.http, "PATCH", f"/teams/acme/members/{ada}", role="viewer")) == (409, "last_owner")
    await send(mine.http, "PATCH", f"/teams/acme/members/{ada}", name="Ada")
    bob = await member(mine.http, "acme", "bob@example.com", "owner")
    codes = await asyncio.gather(*(mine.http.delete(f"{OWN}/teams/acme/members/{one}") for one in (ada, bob)))
    assert sorted(answer.status_code for answer in codes) == [204, 409]


# -- tokens -----------------------------------------------------------------------------------------


async def test_a_members_token_may_do_what_the_member_may_and_goes_with_them(api: Api) -> None:
    mine = await owner(api)
    await member(mine.http, "acme", "ada@example.com", "owner")
    bob = await member(mine.http, "acme", "bob@example.com", "developer")
    await send(mine.http, "POST", "/projects", slug="web")
    http, made = await token_of(api, mine.http, member=bob, project="web")
    assert (made["role"], made["member_id"]) == ("developer", bob)
    await api.create(http, name="box")
    await send(mine.http, "PATCH", f"/teams/acme/members/{bob}", role="viewer")
    assert (await http.get("/v2/sandboxes/box")).status_code == 200
    assert (await http.delete("/v2/sandboxes/box")).status_code == 403
    await send(mine.http, "PATCH", f"/teams/acme/members/{bob}", role="owner")
    # The token stays what it was made for.
    assert (await http.get(f"{OWN}/tokens")).status_code == 403
    await send(mine.http, "DELETE", f"/teams/acme/members/{bob}")
    assert (await http.get("/v2/sandboxes/box")).status_code == 401


async def test_scopes_are_all_that_a_token_may_do(api: Api) -> None:
    mine = await owner(api)
    await send(mine.http, "POST", "/projects", slug="web")
    http, made = await token_of(api, mine.http, project="web", role="developer", scopes=["sandbox.write", "sandbox.read"])
    assert made["scopes"] == ["sandbox.read", "sandbox.write"]
    session = (await api.create(http, name="box"))["session"]["id"]
    response = await http.post(f"/v2/sandboxes/sessions/{session}/cmd", json={"command": "echo"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert "'command.run'" in response.json()["error"]["message"]
    assert (await send(http, "GET", "/whoami"))["permissions"] == ["sandbox.read", "sandbox.write", "self"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scopes": ["nothing"]}, (400, "bad_request")),
        ({"scopes": ["a\0b"]}, (400, "bad_request")),
        ({"scopes": ["sandbox.read"] * 65}, (400, "bad_request")),
        ({"scopes": "sandbox.read"}, (400, "bad_request")),
        ({"role": "viewer", "scopes": ["sandbox.write"]}, (400, "bad_request")),
        ({"role": "admin"}, (403, "forbidden")),
        ({"member": "mem_nobody"}, (404, "not_found")),
        ({"role": "nothing"}, (400, "bad_request")),
    ],
)
async def test_tokens_that_can_not_be_meant_are_refused(api: Api, body: Any, expected: tuple[int, str]) -> None:
    mine = await owner(api)
    assert await refused(mine.http, "POST", "/tokens", **body) == expected


async def test_nobody_makes_a_token_that_may_do_more_than_their_own(api: Api) -> None:
    mine = await owner(api)
    narrow, _ = await token_of(api, mine.http, role="owner", scopes=["token.write", "sandbox.read"])
    assert (await refused(narrow, "POST", "/tokens", role="developer")) == (403, "forbidden")
    assert (await refused(narrow, "POST", "/tokens", role="owner", scopes=["member.write"])) == (403, "forbidden")
    made = await send(narrow, "POST", "/tokens", role="developer", scopes=["sandbox.read"])
    assert made["scopes"] == ["sandbox.read"]
    theirs = await owner(api, "other")
    stranger = await member(theirs.http, "other", "eve@example.com", "owner")
    assert (await refused(mine.http, "POST", "/tokens", member=stranger)) == (404, "not_found")


async def test_a_token_that_is_just_being_verified_is_not_remembered_beyond_its_revocation(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await api.tenant("acme")
    auth, read, go = api.services.auth, asyncio.Event(), asyncio.Event()
    find = tokens.find

    async def slow(connection: Any, token_id: str) -> Any:
        record = await find(connection, token_id)
        if token_id == tenant.token_id and not read.is_set():
            read.set()
            await go.wait()
        return record

    monkeypatch.setattr("hutch.storage.tokens.find", slow)
    first = asyncio.create_task(tenant.http.get("/v2/sandboxes"))
    await read.wait()
    await auth.revoke(tenant.token_id, tenant.team_id, Actor())
    go.set()
    # It was good when it was looked up.
    assert (await first).status_code == 200
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 401


async def test_the_servers_own_token_is_never_one_that_may_do_less(api: Api) -> None:
    own = await identity(api.services)
    await send(api.http, "DELETE", f"/tokens/{(await send(api.http, 'GET', '/whoami'))['token_id']}")
    http = api.client((await identity(api.services)).token)
    narrow = await send(http, "POST", "/tokens", role="admin", name="hutch serve", scopes=["sandbox.read"], ttl_s=30_000_000)
    again = await identity(api.services)
    assert again.token not in (own.token, narrow["token"])
    assert (await send(api.client(again.token), "GET", "/whoami"))["permissions"] == sorted(Permission)


async def test_uses_are_shown_at_once_and_written_rarely(api: Api) -> None:
    mine = await owner(api)
    for _ in range(3):
        await mine.http.get("/v2/sandboxes")

    async def row() -> Any:
        async with api.services.database.read() as connection:
            query = text("SELECT use_count, last_used_address FROM tokens WHERE id = :id")
            return (await connection.execute(query, {"id": mine.token_id})).one()

    shown = {one["id"]: one for one in (await send(mine.http, "GET", "/tokens"))["tokens"]}[mine.token_id]
    assert (shown["use_count"], shown["last_used_address"]) == (4, "127.0.0.1")
    assert abs(shown["last_used_at"] - now_ms()) < 60_000
    assert tuple(await row()) == (0, None)
    await api.services.auth.uses.write(api.services.database)
    assert tuple(await row()) == (4, "127.0.0.1")
    shown = {one["id"]: one for one in (await send(mine.http, "GET", "/tokens"))["tokens"]}[mine.token_id]
    assert shown["use_count"] == 5
    assert token_uses.WRITE_EVERY_S >= 60


async def test_what_can_not_be_written_is_counted_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await owner(api)
    await mine.http.get("/v2/sandboxes")
    uses = api.services.auth.uses
    # The writer's only connection is gone.
    with pytest.MonkeyPatch.context() as patch:
        from hutch.errors import UnavailableError

        async def away(*_: object) -> None:
            raise UnavailableError("database_unavailable", "away")

        patch.setattr("hutch.storage.tokens.used", away)
        with pytest.raises(UnavailableError):
            await uses.write(api.services.database)
    await mine.http.get("/v2/sandboxes")
    shown = {one["id"]: one for one in (await send(mine.http, "GET", "/tokens"))["tokens"]}[mine.token_id]
    assert shown["use_count"] == 3


# -- the audit log ----------------------------------------------------------------------------------


async def test_every_change_is_written_with_who_from_where_and_what(api: Api) -> None:
    mine = await owner(api)
    http = mine.http
    bob = await member(http, "acme", "bob@example.com", "developer")
    await send(http, "PATCH", f"/teams/acme/members/{bob}", role="viewer")
    web = (await send(http, "POST", "/projects", slug="web"))["id"]
    made = await send(http, "POST", "/tokens", project="web", role="viewer")
    await send(http, "DELETE", f"/tokens/{made['id']}")
    await send(http, "DELETE", f"/tokens/{made['id']}")
    await http.put(f"{OWN}/credentials/key", params={"projectId": "web"}, json={"value": "hunter2"})
    await http.put(
        f"{OWN}/registries/registry.example", params={"projectId": "web"}, json={"username": "u", "password": "hunter2"}
    )
    await http.put(f"{OWN}/projects/web/ingress", json={"private": True})
    await http.put(f"{OWN}/teams/acme/network-policy", json={"mode": "deny-all"})
    await send(http, "PATCH", "/projects/web", slug="site")
    await send(http, "PATCH", "/teams/acme", slug="globex")
    await send(http, "DELETE", f"/teams/globex/members/{bob}")
    log = (await entries(api, mine.team_id))["entries"]
    # The first is the owner's own token, which the fixture made.
    assert [(one["action"], one["subject"]) for one in log][1:] == [
        ("member.added", bob),
        ("member.changed", bob),
        ("project.created", web),
        ("token.created", made["id"]),
        ("token.revoked", made["id"]),
        ("credential.stored", "key"),
        ("registry.login", "registry.example"),
        ("ingress.changed", web),
        ("policy.changed", mine.team_id),
        ("project.renamed", web),
        ("team.renamed", mine.team_id),
        ("member.removed", bob),
    ]
    assert {(one["token_id"], one["address"], one["outcome"]) for one in log[1:]} == {(mine.token_id, "127.0.0.1", "done")}
    assert "hunter2" not in str(log)


async def test_a_change_that_fails_leaves_no_entry(api: Api) -> None:
    mine = await owner(api)
    await member(mine.http, "acme", "ada@example.com", "owner")
    before = (await entries(api, "acme"))["head"]
    for method, path, body in (
        ("POST", "/teams/acme/members", {"identity": "ada@example.com", "role": "viewer"}),
        ("POST", "/tokens", {"project": "new", "member": "mem_nobody"}),
        ("PATCH", "/teams/acme", {"slug": "default"}),
    ):
        assert (await refused(mine.http, method, path, **body))[0] in (404, 409)
    assert (await entries(api, "acme"))["head"] == before
    # Nor anything else of it.
    assert (await send(mine.http, "GET", "/projects"))["projects"] == []


async def verified(api: Api, team: str) -> list[str]:
    chain, after = Chain(), 0
    page: dict[str, Any] = {}
    while not page or page["next"] < page["head"]["seq"]:
        page = await entries(api, team, after=after, limit=3)
        chain.check((Entry(**{name: one[name] for name in Entry.__slots__}), one["hash"]) for one in page["entries"])
        if page["next"] == after:
            break
        after = page["next"]
    chain.end(Head(**page["head"]))
    return chain.problems


INSERTED = (
    "INSERT INTO audit_log SELECT team_id, 6, at, token_id, member_id, address, action, subject, outcome, detail, hash, hash "
    "FROM audit_log WHERE team_id = :team AND seq = 5"
)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_log SET subject = 'tok_other' WHERE team_id = :team AND seq = 3",
        "UPDATE audit_log SET at = at + 1 WHERE team_id = :team AND seq = 1",
        "UPDATE audit_log SET hash = previous WHERE team_id = :team AND seq = 3",
        "DELETE FROM audit_log WHERE team_id = :team AND seq = 3",
        "DELETE FROM audit_log WHERE team_id = :team AND seq = 1",
        "DELETE FROM audit_log WHERE team_id = :team AND seq = 5",
        "DELETE FROM audit_log WHERE team_id = :team",
        INSERTED,
    ],
)
async def test_a_row_that_was_altered_removed_or_inserted_is_found(api: Api, change: str) -> None:
    mine = await owner(api)
    for number in range(4):
        await send(mine.http, "POST", "/projects", slug=f"p{number}")
    assert await verified(api, "acme") == []
    async with api.services.database.write() as connection:
        await connection.execute(text(change), {"team": mine.team_id})
        if change.startswith("INSERT"):
            await connection.execute(text("UPDATE teams SET audit_seq = 6 WHERE id = :team"), {"team": mine.team_id})
    assert await verified(api, "acme") != []


async def test_changes_at_once_make_one_chain(api: Api) -> None:
    mine = await owner(api)
    await asyncio.gather(*(send(mine.http, "POST", "/projects", slug=f"p{number}") for number in range(12)))
    assert (await entries(api, "acme"))["head"]["seq"] == 13
    assert await verified(api, "acme") == []


async def test_owners_of_one_project_and_developers_do_not_read_it(api: Api) -> None:
    await owner(api)
    for role, project in ((TokenRole.OWNER, "web"), (TokenRole.DEVELOPER, None)):
        tenant = await api.tenant("acme", project, role)
        assert (await refused(tenant.http, "GET", "/teams/acme/audit-log")) == (403, "forbidden")


async def test_a_refused_change_is_written_too_and_only_once_a_minute(api: Api) -> None:
    mine = await owner(api)
    viewer, made = await token_of(api, mine.http, role="viewer")
    for _ in range(3):
        assert (await refused(viewer, "DELETE", "/teams/acme/members/mem_x"))[0] == 403
    await refused(viewer, "POST", "/tokens")
    # What a project's own things are about is no administration.
    assert (await viewer.put(f"{OWN}/credentials/key", params={"projectId": "web"}, json={"value": "x"})).status_code == 403
    log = (await entries(api, "acme"))["entries"]
    assert [(one["action"], one["token_id"], one["subject"]) for one in log if one["outcome"] == "refused"] == [
        ("member.write", made["id"], "/hutch/v1/teams/{team}/members/{member_id}"),
        ("token.write", made["id"], "/hutch/v1/tokens"),
    ]
    assert await verified(api, "acme") == []


async def test_tokens_that_the_server_makes_are_its_own_doing(api: Api) -> None:
    record = new_token(api.own.team_id, None, TokenRole.VIEWER, now=now_ms(), ttl_ms=DAY_MS)
    await api.services.auth.issue(record)
    last = (await entries(api, "default"))["entries"][-1]
    assert (last["token_id"], last["subject"]) == ("server", record.id)
