"""Who may do what: tokens, teams, projects, ids of others."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hutch.control.permissions import TokenRole
from tests.api.conftest import Api

pytestmark = pytest.mark.section("3")


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


def forged(claims: dict[str, Any], algorithm: str | None, key: Any = None) -> str:
    return jwt.encode(claims, key, algorithm=algorithm)


async def test_a_token_carries_the_claims_that_clients_read(api: Api) -> None:
    claims = claims_of(api.own.token)
    assert claims["owner_id"] == api.own.team_id
    assert claims["project_id"] == api.own.project_id
    assert claims["scope"] == "admin"
    assert claims["exp"] > time.time() + 86_400


async def test_tokens_that_do_not_verify_are_401_and_all_alike(api: Api) -> None:
    claims = claims_of(api.own.token)
    head, payload, signature = api.own.token.split(".")
    other = Ed25519PrivateKey.generate()
    public = api.services.auth._signer._public.public_bytes_raw()
    bad = [
        "x",
        "..",
        "a.b.c",
        head + "." + payload + ".",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        forged(claims, "none"),
        forged(claims, "EdDSA", other),
        forged(claims, "HS256", public + b"0" * 32),
        forged(claims | {"jti": "tok_unknown"}, "EdDSA", api.services.auth._signer._private),
        forged(claims | {"jti": 5}, "EdDSA", api.services.auth._signer._private),
        forged(claims | {"jti": "a\0b"}, "EdDSA", api.services.auth._signer._private),
        forged(claims | {"exp": int(time.time()) - 1}, "EdDSA", api.services.auth._signer._private),
        forged(claims | {"iss": "somebody"}, "EdDSA", api.services.auth._signer._private),
        forged({key: value for key, value in claims.items() if key != "exp"}, "EdDSA", api.services.auth._signer._private),
        api.own.token + "x" * 5000,
    ]
    messages = set()
    for token in bad:
        response = await api.client(token).get("/v2/sandboxes")
        assert response.status_code == 401, token
        assert response.headers["www-authenticate"] == "Bearer"
        messages.add(response.json()["error"]["message"])
    assert len(messages) == 1


@pytest.mark.parametrize("header", [None, "Basic abc", "Bearer", "bearer", "Bearer\tx"])
async def test_without_a_bearer_token_it_is_401(api: Api, header: str | None) -> None:
    client = api.client("")
    headers = {"authorization": header} if header is not None else {}
    for path in ("/v2/sandboxes", "/v2/sandboxes/sessions/sbx_x/cmd", "/hutch/v1/tokens"):
        response = (
            await client.post(path, content=b"{", headers=headers)
            if "tokens" in path
            else await client.get(path, headers=headers)
        )
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")


async def test_an_expired_token_is_401_also_when_it_was_good_a_moment_ago(api: Api) -> None:
    tenant = await api.tenant("acme", ttl_ms=60_000)
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 200
    api.services.auth._clock = lambda: int(time.time() * 1000) + 61_000
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 401


async def test_a_revoked_token_is_refused_from_now_on(api: Api) -> None:
    tenant = await api.tenant("acme")
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 200
    assert (await api.http.delete(f"/hutch/v1/tokens/{tenant.token_id}")).json()["revoked"] is True
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 401


async def test_a_foreign_team_or_project_in_the_query_is_403(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    await api.create(mine.http, name="box")
    for params in (
        {"teamId": theirs.team_id},
        {"slug": "theirs"},
        {"teamId": "team_unknown"},
        {"teamId": "a\0b"},
        {"projectId": theirs.project_id},
        {"projectId": "prj_unknown"},
        {"projectId": "x" * 5000},
    ):
        response = await mine.http.get("/v2/sandboxes/box", params=params)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden"), params
    assert (await mine.http.post("/v3/sandboxes", json={"projectId": theirs.project_id})).status_code == 403
    assert (await mine.http.get("/v2/sandboxes", params={"project": theirs.project_id})).status_code == 403


async def test_a_project_bound_token_may_not_name_another_project_of_its_team(api: Api) -> None:
    first, second = await api.tenant("acme", "one"), await api.tenant("acme", "two")
    assert first.team_id == second.team_id
    created = await api.create(second.http, name="box")
    assert (await first.http.get("/v2/sandboxes/box", params={"projectId": second.project_id})).status_code == 403
    assert (await first.http.get("/v2/sandboxes/box")).status_code == 404
    assert (await first.http.get(f"/v2/sandboxes/sessions/{created['session']['id']}")).status_code == 404


async def test_a_team_token_reaches_its_projects_by_name_and_must_name_one_to_create(api: Api) -> None:
    bound, unbound = await api.tenant("acme", "one"), await api.tenant("acme", None)
    await api.create(bound.http, name="box")
    assert (await unbound.http.get("/v2/sandboxes/box", params={"projectId": "one"})).status_code == 200
    assert [item["name"] for item in (await unbound.http.get("/v2/sandboxes")).json()["sandboxes"]] == ["box"]
    response = await unbound.http.post("/v3/sandboxes", json={})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


async def test_ids_of_another_team_are_404_everywhere(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    created = await api.create(theirs.http, name="box")
    session_id = created["session"]["id"]
    command = (await theirs.http.post(f"/v2/sandboxes/sessions/{session_id}/cmd", json={"command": "wait"})).json()["command"][
        "id"
    ]
    for method, path, body in (
        ("GET", "", None),
        ("POST", "/stop", {}),
        ("POST", "/extend-timeout", {"duration": 1000}),
        ("POST", "/network-policy", {"mode": "allow-all"}),
        ("POST", "/interactive", {}),
        ("POST", "/cmd", {"command": "echo"}),
        ("GET", "/cmd", None),
        ("GET", f"/cmd/{command}", None),
        ("GET", f"/cmd/{command}/logs", None),
        ("POST", f"/cmd/{command}/kill", {"signal": 9}),
        ("POST", f"/cmd/{command}/stdin", {}),
        ("POST", "/fs/read", {"path": "/x"}),
        ("POST", "/fs/mkdir", {"path": "/x"}),
        ("POST", "/fs/write", None),
        ("POST", "/snapshot", None),
    ):
        response = await mine.http.request(method, f"/v2/sandboxes/sessions/{session_id}{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), path
    for method in ("GET", "PATCH", "DELETE"):
        assert (await mine.http.request(method, "/v2/sandboxes/box", json={})).status_code == 404
    assert (await mine.http.post("/v2/sandboxes/box/fork", json={})).status_code == 404
    assert (await mine.http.get("/v2/sandboxes")).json()["sandboxes"] == []
    assert (await mine.http.get("/v2/sandboxes/sessions")).json()["sessions"] == []
    answer = (await theirs.http.get(f"/v2/sandboxes/sessions/{session_id}/cmd/{command}")).json()
    assert answer["command"]["exitCode"] is None


async def test_a_command_of_another_session_is_404(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    session_id = (await api.create(mine.http))["session"]["id"]
    foreign = (await api.create(theirs.http))["session"]["id"]
    command = (await theirs.http.post(f"/v2/sandboxes/sessions/{foreign}/cmd", json={"command": "wait"})).json()["command"]["id"]
    assert (await mine.http.get(f"/v2/sandboxes/sessions/{session_id}/cmd/{command}")).status_code == 404


async def test_names_of_two_teams_do_not_meet(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    first = await api.create(mine.http, name="box")
    second = await api.create(theirs.http, name="box")
    assert first["session"]["id"] != second["session"]["id"]


async def test_an_administrator_acts_for_every_team_that_it_names(api: Api) -> None:
    tenant = await api.tenant("acme")
    created = await api.create(tenant.http, name="box")
    assert (await api.http.get("/v2/sandboxes/box")).status_code == 404
    params = {"teamId": tenant.team_id, "projectId": tenant.project_id}
    assert (await api.http.get("/v2/sandboxes/box", params=params)).status_code == 200
    session = f"/v2/sandboxes/sessions/{created['session']['id']}"
    assert (await api.http.get(session)).status_code == 200
    assert (await api.http.get(session, params={"teamId": api.own.team_id})).status_code == 404


# -- tokens over the API -----------------------------------------------------------------------------


async def test_an_administrator_makes_teams_and_projects_with_their_first_token(api: Api) -> None:
    body = {"team": "acme", "project": "web", "role": "owner", "name": "first", "ttl_s": 3600}
    response = await api.http.post("/api/hutch/v1/tokens", json=body)
    assert response.status_code == 201
    made = response.json()
    assert made["expires_at"] == made["created_at"] + 3_600_000
    assert (made["role"], made["name"], made["revoked"]) == ("owner", "first", False)
    who = (await api.client(made["token"]).get("/api/hutch/v1/whoami")).json()
    assert (who["team"]["slug"], who["project"]["slug"], who["role"]) == ("acme", "web", "owner")
    again = (await api.http.post("/hutch/v1/tokens", json={"team": "acme", "project": "web"})).json()
    assert (again["team_id"], again["project_id"], again["role"]) == (made["team_id"], made["project_id"], "member")


async def test_the_token_itself_is_shown_once(api: Api) -> None:
    made = (await api.http.post("/hutch/v1/tokens", json={})).json()
    listed = (await api.http.get("/hutch/v1/tokens")).json()["tokens"]
    entry = next(token for token in listed if token["id"] == made["id"])
    assert "token" not in entry
    assert entry["project_id"] == api.own.project_id


async def test_members_do_not_manage_tokens_but_may_revoke_their_own(api: Api) -> None:
    tenant, other = await api.tenant("acme"), await api.tenant("acme")
    assert (await tenant.http.post("/hutch/v1/tokens", json={})).status_code == 403
    assert (await tenant.http.get("/hutch/v1/tokens")).status_code == 403
    assert (await tenant.http.delete(f"/hutch/v1/tokens/{other.token_id}")).status_code == 404
    assert (await tenant.http.delete(f"/hutch/v1/tokens/{tenant.token_id}")).status_code == 200
    assert (await tenant.http.get("/v2/sandboxes")).status_code == 401


async def test_owners_manage_their_team_and_nothing_more(api: Api) -> None:
    owner = await api.tenant("acme", None, TokenRole.OWNER)
    theirs = await api.tenant("theirs")
    for body in ({"role": "admin"}, {"team": "theirs"}, {"team": "brand-new"}):
        assert (await owner.http.post("/hutch/v1/tokens", json=body)).status_code == 403, body
    made = (await owner.http.post("/hutch/v1/tokens", json={"project": "web"})).json()
    assert made["team_id"] == owner.team_id
    assert (await owner.http.delete(f"/hutch/v1/tokens/{theirs.token_id}")).status_code == 404
    assert (await owner.http.delete(f"/hutch/v1/tokens/{made['id']}")).status_code == 200
    listed = (await owner.http.get("/hutch/v1/tokens")).json()["tokens"]
    assert {token["team_id"] for token in listed} == {owner.team_id}
    assert (await owner.http.get("/hutch/v1/tokens", params={"teamId": "theirs"})).status_code == 403


async def test_an_owner_of_one_project_stays_in_it(api: Api) -> None:
    owner, other = await api.tenant("acme", "one", TokenRole.OWNER), await api.tenant("acme", "two")
    assert (await owner.http.post("/hutch/v1/tokens", json={"project": "two"})).status_code == 403
    assert (await owner.http.post("/hutch/v1/tokens", json={"project": "three"})).status_code == 403
    assert (await owner.http.post("/hutch/v1/tokens", json={"team": "acme"})).json()["project_id"] == owner.project_id
    assert (await owner.http.delete(f"/hutch/v1/tokens/{other.token_id}")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"role": "king"},
        {"ttl_s": 1},
        {"ttl_s": 10**9},
        {"ttl_s": "30d"},
        {"team": "No Spaces"},
        {"team": "\0"},
        {"name": "x" * 200},
        [],
    ],
)
async def test_bad_token_requests_are_400(api: Api, body: object) -> None:
    assert (await api.http.post("/hutch/v1/tokens", json=body)).status_code == 400


@pytest.mark.parametrize("token_id", ["tok_x", "%00", "x" * 2000])
async def test_revoking_an_unknown_token_is_404(api: Api, token_id: str) -> None:
    assert (await api.http.delete(f"/hutch/v1/tokens/{token_id}")).status_code == 404
