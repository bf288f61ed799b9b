"""The audit of a sandbox, passed on from the host."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.api.conftest import Api


def chain(count: int) -> list[str]:
    """Records as the gateway writes them: canonical JSON, each with the hash of the one before."""
    records, previous = [], "0" * 64
    for seq in range(1, count + 1):
        record = {"decision": "deny", "kind": "dns", "name": "größe €", "prev": previous, "reason": "domain_deny", "seq": seq}
        records.append(json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        previous = hashlib.sha256(records[-1].encode()).hexdigest()
    return records


async def sandbox_with(api: Api, count: int, name: str = "one", http: Any = None) -> list[str]:
    created = await api.create(http, name=name)
    records = chain(count)
    api.host.audits[api.host.specs[created["session"]["id"]].sandbox_id] = records
    return records


async def test_records_come_in_pages_byte_for_byte(api: Api) -> None:
    records = await sandbox_with(api, 250)
    seen, after = b"", 0
    for size in (100, 100, 50, 0):
        answer = await api.http.get("/api/hutch/v1/sandboxes/one/audit", params={"after": str(after)})
        body = answer.json()
        assert set(body) == {"records", "next"}
        assert len(body["records"]) == size
        after = body["next"]
        seen += answer.content
    assert after == 250
    for record in records:
        assert record.encode() in seen


async def test_the_chain_can_be_checked_from_what_is_answered(api: Api) -> None:
    await sandbox_with(api, 30)
    body = (await api.http.get("/hutch/v1/sandboxes/one/audit", params={"limit": "30"})).json()
    previous = "0" * 64
    for record in body["records"]:
        assert record["prev"] == previous
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(("limit", "size"), [("1", 1), ("1000", 1000), ("99999", 1000), ("", 100)])
async def test_limits(api: Api, limit: str, size: int) -> None:
    await sandbox_with(api, 1100)
    body = (await api.http.get("/hutch/v1/sandboxes/one/audit", params={"limit": limit})).json()
    assert (len(body["records"]), body["next"]) == (size, size)


@pytest.mark.parametrize(
    "params",
    [{"after": "-1"}, {"after": "x"}, {"after": "9" * 19}, {"after": "²"}, {"limit": "0"}, {"limit": "1e3"}, {"after": "1.0"}],
)
async def test_bad_queries_are_400(api: Api, params: dict[str, str]) -> None:
    await sandbox_with(api, 1)
    answer = await api.http.get("/hutch/v1/sandboxes/one/audit", params=params)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


async def test_a_position_behind_the_end_is_kept(api: Api) -> None:
    await sandbox_with(api, 3)
    body = (await api.http.get("/hutch/v1/sandboxes/one/audit", params={"after": "999999999999999999"})).json()
    assert body == {"records": [], "next": 999999999999999999}


async def test_the_audit_of_somebody_else_is_404(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    await sandbox_with(api, 3, "box", theirs.http)
    assert (await theirs.http.get("/hutch/v1/sandboxes/box/audit")).json()["next"] == 3
    assert (await mine.http.get("/hutch/v1/sandboxes/box/audit")).status_code == 404
    answer = await mine.http.get("/hutch/v1/sandboxes/box/audit", params={"projectId": theirs.project_id})
    assert answer.status_code == 403
    assert (await api.client("").get("/hutch/v1/sandboxes/box/audit")).status_code == 401
    # The same name in another project is another sandbox.
    await api.create(mine.http, name="box")
    assert (await mine.http.get("/hutch/v1/sandboxes/box/audit")).json() == {"records": [], "next": 0}


@pytest.mark.parametrize("name", ["nope", "%00", "a%2Fb", "x" * 5000])
async def test_an_unknown_sandbox_is_404(api: Api, name: str) -> None:
    answer = await api.http.get(f"/hutch/v1/sandboxes/{name}/audit")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_host_that_is_away_is_503(api: Api) -> None:
    await sandbox_with(api, 1)
    await api.host.stop()
    assert (await api.http.get("/hutch/v1/sandboxes/one/audit")).status_code == 503
    await api.host.start()
