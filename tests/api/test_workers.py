"""The Workers door over a fake host: what is taken, what is refused, and whose it is."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.api.workers import MAX_WAITING, UPLOAD_LIFE_MS, _told
from hutch.control.permissions import TokenRole
from hutch.storage import workers as rows
from hutch.workers import builds, retention
from hutch.workers.lines import MAX_LINE_BYTES
from tests.api.conftest import Api

MOST = 1024 * 1024


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as written:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            written.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


async def call(http: httpx.AsyncClient, endpoint: str, **body: Any) -> httpx.Response:
    return await http.post(f"/v3/workers{endpoint}", json=body)


async def created(api: Api, name: str = "one") -> tuple[str, str]:
    """A new worker, and the path of its upload."""
    made = (await call(api.http, "CreateWorker", name=name, uploadType="source")).json()
    return made["worker"]["workerId"], httpx.URL(made["url"]).path


async def test_there_are_no_terms_of_service(api: Api) -> None:
    """What `ntn` asks after a 403 of that name, which this server never gives."""
    asked = (await call(api.http, "GetTosConsent")).json()
    assert asked == {"accepted": True, "tosVersion": 0, "currentTosVersion": 0, "needsConsent": False, "canConsent": True}
    said = await call(api.http, "SetTosConsent", accepted=True)
    assert said.json() == {"accepted": True, "tosVersion": 0, "currentTosVersion": 0}
    assert (await call(api.http, "SetTosConsent", accepted="perhaps")).status_code == 400
    assert (await call(api.client(""), "GetTosConsent")).status_code == 401


async def test_workers_are_listed_newest_first_and_deleted(api: Api) -> None:
    first, _ = await created(api, "one")
    second, _ = await created(api, "two")
    listed = (await call(api.http, "ListWorkers")).json()["workers"]
    assert [(worker["workerId"], worker["name"], worker["spaceId"]) for worker in listed] == [
        (second, "two", api.own.project_id),
        (first, "one", api.own.project_id),
    ]
    assert first < second, "ids of version 7 sort by time"
    assert (await call(api.http, "DeleteWorker", workerId=first)).status_code == 200
    gone = await call(api.http, "GetWorker", workerId=first)
    assert (gone.status_code, gone.json()["name"], gone.json()["error"]["code"]) == (404, "NotFoundError", "not_found")
    assert gone.json()["message"] == gone.json()["error"]["message"]


async def test_an_upload_is_taken_once_by_whoever_has_its_address(api: Api) -> None:
    worker, path = await created(api)
    nobody = api.client("")
    wrong = await nobody.post(path[:-1] + ("A" if path[-1] != "A" else "B"), files={"file": b"x"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "not_found")
    taken = await nobody.post(path, data={"policy": "any", "key": "x"}, files={"file": ("archive.tar.gz", archive(a="b"))})
    assert (taken.status_code, taken.content) == (204, b"")
    assert (await nobody.post(path, files={"file": archive()})).status_code == 404
    uploads = api.services.settings.control_dir / "uploads"
    assert [entry.stat().st_mode & 0o777 for entry in uploads.iterdir()] == [0o600]
    again = (await call(api.http, "UpdateWorker", workerId=worker, uploadType="source")).json()
    assert httpx.URL(again["url"]).path != path


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\ncontent-disposition: form-data; name=file\r\n\r\nno file\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nno header\r\n\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n--x--", "multipart/form-data; boundary=x"),
        (b'--x\r\ncontent-disposition: form-data; name="f"\r\n\r\n\r\n' * 50 + b"--x--", "multipart/form-data; boundary=x"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=" + "y" * 5000),
        (b"{}", "application/json"),
    ],
    ids=range(9),
)
async def test_what_is_no_form_with_a_file_is_refused_and_may_be_sent_again(api: Api, content: bytes, kind: str) -> None:
    _, path = await created(api)
    refused = await api.client("").post(path, content=content, headers={"content-type": kind})
    assert (refused.status_code, refused.json()["error"]["code"]) in {(400, "bad_request"), (400, "malformed_request")}
    assert (await api.client("").post(path, files={"file": b"x"})).status_code == 204


async def test_an_archive_that_is_too_large_is_refused(api: Api) -> None:
    _, path = await created(api)
    limit = api.services.settings.workers.max_archive_bytes
    refused = await api.client("").post(path, files={"file": b"\0" * (limit + 100_000)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")
    assert list((api.services.settings.control_dir / "uploads").iterdir()) == []


async def test_an_archive_that_there_is_no_room_for_is_refused_and_may_be_sent_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = await created(api)

    def full(written: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        refused = await api.client("").post(path, files={"file": archive(a="b")})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "disk_full")
    assert list((api.services.settings.control_dir / "uploads").iterdir()) == []
    assert (await api.client("").post(path, files={"file": archive(a="b")})).status_code == 204


async def test_secrets_are_sealed_named_and_shown_to_those_who_may(api: Api) -> None:
    worker, _ = await created(api)
    secrets = [{"key": "B", "value": "two"}, {"key": "A", "value": "sealed-value"}, {"key": "B", "value": "three"}]
    assert (await call(api.http, "UpsertSecrets", workerId=worker, secrets=secrets)).status_code == 200
    listed = (await call(api.http, "ListSecrets", workerId=worker)).json()["secrets"]
    assert [secret["key"] for secret in listed] == ["A", "B"]
    assert all(set(secret) == {"key", "createdAt"} for secret in listed)
    pulled = (await call(api.http, "PullEnv", workerId=worker)).json()["env"]
    assert pulled == [{"key": "A", "value": "sealed-value"}, {"key": "B", "value": "three"}]
    assert (await call(api.http, "DeleteSecret", workerId=worker, key="A")).status_code == 200
    assert (await call(api.http, "DeleteSecret", workerId=worker, key="A")).status_code == 200
    database = (api.services.settings.control_dir / "hutch.db").read_bytes()
    assert b"sealed-value" not in database


@pytest.mark.parametrize("name", ["", "A=B", "A\nB", "A\0", "NOTION_INPUT_PAYLOAD_PATH", "x" * 257])
async def test_names_that_no_secret_can_have_are_refused(api: Api, name: str) -> None:
    worker, _ = await created(api)
    refused = await call(api.http, "UpsertSecrets", workerId=worker, secrets=[{"key": name, "value": "x"}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")
    assert (await call(api.http, "ListSecrets", workerId=worker)).json()["secrets"] == []


async def test_a_worker_has_so_many_secrets_and_no_more(api: Api) -> None:
    worker, _ = await created(api)
    many = [{"key": f"K{number}", "value": "x"} for number in range(rows.MAX_SECRETS)]
    assert (await call(api.http, "UpsertSecrets", workerId=worker, secrets=many)).status_code == 200
    refused = await call(api.http, "UpsertSecrets", workerId=worker, secrets=[{"key": "more", "value": "x"}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_secrets")
    assert (await call(api.http, "UpsertSecrets", workerId=worker, secrets=[{"key": "K1", "value": "y"}])).status_code == 200


async def test_what_is_not_deployed_does_not_run(api: Api) -> None:
    worker, _ = await created(api)
    assert (await call(api.http, "ListCapabilities", workerId=worker)).json() == {"capabilities": []}
    refused = await call(api.http, "RunCapability", workerId=worker, capabilityKey="k", args={}, stream=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "worker_not_deployed")
    unbuilt = await call(api.http, "FetchAndSaveCapabilities", workerId=worker)
    assert (unbuilt.status_code, unbuilt.json()["error"]["code"]) == (409, "worker_not_built")
    built = await call(api.http, "BuildWorker", workerId=worker, stream=True)
    assert built.headers["content-type"] == "application/x-ndjson"
    records = [line for line in built.text.split("\n") if line]
    assert "Nothing was uploaded" in records[0]
    assert records[-1] == '{"_tag":"result","result":{"ok":false}}'
    assert (await call(api.http, "ListRunsForWorker", workerId=worker)).json() == {"runs": []}


async def test_strangers_find_no_worker(api: Api) -> None:
    worker, _ = await created(api)
    stranger = await api.tenant("strangers")
    for name, more in (
        ("GetWorker", {}),
        ("UpdateWorker", {}),
        ("DeleteWorker", {}),
        ("BuildWorker", {"stream": True}),
        ("ListCapabilities", {}),
        ("PullEnv", {}),
        ("RunCapability", {"capabilityKey": "k"}),
        ("GetRunLogs", {"runId": worker}),
    ):
        refused = await call(stranger.http, name, workerId=worker, **more)
        assert refused.status_code == 404, name
    assert (await call(stranger.http, "ListWorkers")).json() == {"workers": []}
    assert (await call(api.client(""), "ListWorkers")).status_code == 401
    assert (await call(api.http, "GetWorker", workerId="../../etc")).status_code == 404
    assert (await call(api.http, "GetWorker", workerId=7)).status_code == 400


async def test_tokens_for_workers_are_good_for_nothing_else(api: Api) -> None:
    async def send(endpoint: str, http: httpx.AsyncClient | None = None, **body: Any) -> httpx.Response:
        return await (http or api.http).post(f"/v3/workers{endpoint}", json=body)

    made = await send("CreateToken", name="one", expiresIn="30 days")
    http = api.client(made.json()["token"])
    assert (await send("ListWorkers", http)).status_code == 200
    assert (await http.get("/v2/sandboxes")).status_code == 403
    assert (await send("CreateToken", http, name="more")).status_code == 403
    (listed,) = (await send("ListTokens")).json()["tokens"]
    assert (listed["name"], listed["revokedAt"]) == ("one", None)
    for life in ("soon", "0 days", "9999 years", "-1 day", "1e3 days", "1 day" * 8):
        assert (await send("CreateToken", name="x", expiresIn=life)).status_code == 400, life
    stranger = await api.tenant("strangers", role=TokenRole.OWNER)
    assert (await send("ListTokens", stranger.http)).json() == {"tokens": []}
    assert (await send("RevokeToken", stranger.http, tokenId=listed["id"])).status_code == 404
    # Others than those for workers are not seen here.
    own = (await api.http.get("/hutch/v1/tokens")).json()["tokens"]
    other = next(token["id"] for token in own if token["id"] != listed["id"])
    assert (await send("RevokeToken", tokenId=other)).status_code == 404
    assert (await send("RevokeToken", tokenId=listed["id"])).status_code == 200
    assert (await send("ListWorkers", http)).status_code == 401


async def test_an_address_for_an_upload_is_good_for_an_hour(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = await created(api)
    clock = api.services.clock
    with monkeypatch.context() as patched:
        patched.setattr(api.services, "clock", lambda: clock() + UPLOAD_LIFE_MS)
        late = await api.client("").post(path, files={"file": b"x"})
    assert (late.status_code, late.json()["error"]["code"]) == (404, "not_found")
    assert (await api.client("").post(path, files={"file": b"x"})).status_code == 204


async def test_of_what_nobody_builds_the_newest_is_kept(api: Api) -> None:
    worker, path = await created(api)
    other, kept = await created(api)
    assert (await api.client("").post(kept, files={"file": b"another's"})).status_code == 204
    for number in range(MAX_WAITING + 2):
        assert (await api.client("").post(path, files={"file": str(number).encode()})).status_code == 204
        again = (await call(api.http, "UpdateWorker", workerId=worker, uploadType="source")).json()
        path = httpx.URL(again["url"]).path
    uploads = api.services.settings.control_dir / "uploads"
    newest = {str(number).encode() for number in range(3, MAX_WAITING + 2)}
    assert {entry.read_bytes() for entry in uploads.iterdir()} == newest | {b"another's"}
    assert (await api.client("").post(path, files={"file": b"last"})).status_code == 204
    assert (await call(api.http, "DeleteWorker", workerId=worker)).status_code == 200
    assert [entry.read_bytes() for entry in uploads.iterdir()] == [b"another's"]
    assert (await call(api.http, "GetWorker", workerId=other)).status_code == 200


async def test_archives_that_nobody_waits_for_go_with_time(api: Api) -> None:
    for content in (b"young", b"old"):
        _, path = await created(api)
        assert (await api.client("").post(path, files={"file": content})).status_code == 204
    uploads = api.services.settings.control_dir / "uploads"
    (old,) = (entry for entry in uploads.iterdir() if entry.read_bytes() == b"old")
    os.utime(old, (0, 0))
    (uploads / "nobody.tar.gz").touch()
    following = asyncio.create_task(retention.follow(api.services))
    try:
        async with asyncio.timeout(20):
            while len(list(uploads.iterdir())) > 1:
                await asyncio.sleep(0.05)
    finally:
        following.cancel()
    assert [entry.read_bytes() for entry in uploads.iterdir()] == [b"young"]


async def test_an_archive_that_goes_meanwhile_is_no_error(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = await created(api)
    assert (await api.client("").post(path, files={"file": b"x"})).status_code == 204
    awaited = rows.awaited_uploads

    async def slow(connection: Any) -> set[str]:
        for entry in (api.services.settings.control_dir / "uploads").iterdir():
            entry.unlink()
        return await awaited(connection)

    monkeypatch.setattr(rows, "awaited_uploads", slow)
    await builds.drop_archives(api.services)


async def test_a_deleted_project_leaves_no_archive(api: Api) -> None:
    tenant = await api.tenant("leaving", "main", TokenRole.OWNER)
    made = (await call(tenant.http, "CreateWorker", name="one")).json()
    assert (await api.client("").post(httpx.URL(made["url"]).path, files={"file": b"canary"})).status_code == 204
    _, kept = await created(api)
    assert (await api.client("").post(kept, files={"file": b"stays"})).status_code == 204
    assert (await api.http.delete(f"/hutch/v1/teams/{tenant.team_id}")).is_success
    uploads = api.services.settings.control_dir / "uploads"
    async with asyncio.timeout(20):
        while len(list(uploads.iterdir())) > 1:
            await asyncio.sleep(0.05)
    assert [path.read_bytes() for path in uploads.iterdir()] == [b"stays"]


async def test_a_reader_that_is_slow_has_few_records_wait_for_it() -> None:
    begun = 0

    async def floods(records: asyncio.Queue[bytes | None]) -> None:
        nonlocal begun
        while True:
            begun += 1
            await records.put(b"x" * MAX_LINE_BYTES)

    stream = _told(floods)
    await anext(stream)
    for _ in range(5000):
        await asyncio.sleep(0)
    assert begun * MAX_LINE_BYTES <= 2 * 1024 * 1024
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_stream_ends_though_nobody_reads_what_a_worker_floods_it_with() -> None:
    full = asyncio.Event()

    async def floods(records: asyncio.Queue[bytes | None]) -> None:
        while True:
            if records.full():
                full.set()
            await records.put(b"x")

    stream = _told(floods)
    assert await anext(stream) == b"x"
    await full.wait()
    async with asyncio.timeout(10):
        await stream.aclose()  # type: ignore[attr-defined]
