"""Databases of workers mirrored into Notion, over a fake host. The API in the test keeps pages, and refuses what the real one
does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hutch.client import AsyncClient
from hutch.control.records import Scope
from hutch.storage import worker_mirrors, worker_rows, worker_syncs
from hutch.workers import mirrors, notion_api
from hutch.workers.changes import Delete, Upsert
from hutch.workers.merge import merged
from tests.api.conftest import Api
from tests.api.test_syncs import MANUAL, declared, deployed

TOKEN = "ntn_canary0123456789"
PARENT = "0123456789abcdef0123456789abcdef"
DATABASE = "crm/people"
KINDS = {"title", "rich_text", "number", "select", "multi_select", "status", "checkbox", "date", "url", "relation", "files"}

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = int(probe.getsockname()[1])
BASE = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing waits long. It is here because the server begins to look with it."""
    monkeypatch.setattr(mirrors, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(mirrors, "EVERY_MS", 0)
    monkeypatch.setattr(mirrors, "PAUSES_MS", (20,))
    monkeypatch.setattr(notion_api, "APART_S", 0.0)
    monkeypatch.setattr(notion_api, "PAUSE_S", 0.01)
    return {"HUTCH_WORKERS__NOTION_HOSTS": json.dumps([f"127.0.0.1:{PORT}"])}


class Wrong(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = {"object": "error", "status": status, "code": code, "message": message}
        self.status = status


@dataclass
class Stub:
    """Notion, as far as rows go there. `said` are answers for the next requests that match: `(pattern, status, headers)`; a
    status of 0 is an answer that gets lost after it was done."""

    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    pages: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    token: str = TOKEN

    def live(self) -> list[dict[str, Any]]:
        return [page for page in self.pages.values() if not page["in_trash"]]

    def titles(self) -> list[str]:
        return sorted(title_of(page) for page in self.live())

    def add_source(self, properties: dict[str, Any]) -> str:
        source = str(uuid.uuid4())
        self.sources[source] = {"object": "data_source", "id": source, "in_trash": False, "properties": {}}
        self.declare(source, properties)
        return source

    def declare(self, source: str, properties: dict[str, Any]) -> None:
        for name, item in properties.items():
            (kind, config) = next(iter(item.items()))
            if kind not in KINDS:
                raise Wrong(400, "validation_error", f"{name} is no property")
            self.sources[source]["properties"][name] = {"id": name, "name": name, "type": kind, kind: config}

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        if (method, path) == ("POST", "/v1/databases"):
            if body["parent"] != {"type": "page_id", "page_id": PARENT}:
                raise Wrong(404, "object_not_found", "Could not find page.")
            source = self.add_source(body["initial_data_source"]["properties"])
            return {"object": "database", "id": str(uuid.uuid4()), "data_sources": [{"id": source, "name": "x"}]}
        if match := re.fullmatch("/v1/data_sources/([^/]+)(/query)?", path):
            found = self.sources.get(str(uuid.UUID(match[1])))
            if found is None:
                raise Wrong(404, "object_not_found", "Could not find data source.")
            if match[2]:
                return {"object": "list", "results": self.found(found["id"], body["filter"]), "has_more": False}
            if method == "PATCH":
                self.declare(found["id"], body["properties"])
            return found
        if (method, path) == ("POST", "/v1/pages"):
            return self.create(body)
        page = self.pages.get(path.removeprefix("/v1/pages/"))
        if page is None:
            raise Wrong(404, "object_not_found", "Could not find page.")
        if method == "PATCH":
            if page["in_trash"]:
                raise Wrong(400, "validation_error", "Can't edit block that is archived.")
            if "in_trash" in body:
                page["in_trash"] = body["in_trash"]
            self.write(page, body.get("properties", {}))
        return page

    def found(self, source: str, filter_: dict[str, Any]) -> list[dict[str, Any]]:
        name, wanted = filter_["property"], next(value for key, value in filter_.items() if key != "property")
        pages = [page for page in self.live() if page["parent"]["data_source_id"] == source]
        return [page for page in pages if text_of(page, name).lower() == str(wanted["equals"]).lower()]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        assert set(body) <= {"parent", "properties", "icon", "cover", "children"}
        assert body["parent"]["type"] == "data_source_id"
        if body["parent"]["data_source_id"].replace("-", "") not in {key.replace("-", "") for key in self.sources}:
            raise Wrong(404, "object_not_found", "Could not find data source.")
        if len(body.get("children", ())) > 100:
            raise Wrong(400, "validation_error", "too many children")
        parent = body["parent"] | {"data_source_id": str(uuid.UUID(body["parent"]["data_source_id"]))}
        page = {"object": "page", "id": str(uuid.uuid4()), "in_trash": False, "parent": parent, "properties": {}}
        self.write(page, body["properties"])
        page["children"] = body.get("children", [])
        self.pages[page["id"]] = page
        return page

    def write(self, page: dict[str, Any], properties: dict[str, Any]) -> None:
        there = self.sources[page["parent"]["data_source_id"]]["properties"]
        for name, item in properties.items():
            (kind, value) = next(iter(item.items()))
            if name not in there or there[name]["type"] != kind:
                raise Wrong(400, "validation_error", f"{name} is not a property that exists.")
            texts = value if kind in {"title", "rich_text"} else []
            if len(texts) > 100 or any(len(part["text"]["content"].encode("utf-16-le")) > 4000 for part in texts):
                raise Wrong(400, "validation_error", "content.length should be ≤ 2000")
            if kind == "select" and value is not None and value["name"] == "refused":
                raise Wrong(400, "validation_error", f"{self.token} is not liked")
        for name, item in properties.items():
            page["properties"][name] = item


def text_of(page: dict[str, Any], name: str) -> str:
    item = next(iter(page["properties"].get(name, {"title": []}).values()))
    return "".join(part["text"]["content"] for part in item) if isinstance(item, list) else str(item)


def title_of(page: dict[str, Any]) -> str:
    return next(text_of(page, name) for name, item in page["properties"].items() if "title" in item)


class Server(ThreadingHTTPServer):
    stub: Stub
    daemon_threads = True
    allow_reuse_address = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        stub = self.server.stub
        stub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, headers = 200, {}
        for said in stub.said:
            if re.fullmatch(said[0], f"{self.command} {self.path}"):
                stub.said.remove(said)
                status, headers = said[1], said[2]
                break
        answer: dict[str, Any] = {"object": "error", "status": status, "code": "said", "message": "as the test says"}
        try:
            if self.headers["notion-version"] != "2025-09-03":
                raise Wrong(400, "missing_version", "no version")
            if self.headers["authorization"] != f"Bearer {stub.token}":
                raise Wrong(401, "unauthorized", "API token is invalid.")
            if status in (0, 200):
                answer = stub.answer(self.command, self.path, json.loads(body) if body else None)
        except Wrong as wrong:
            status, answer = wrong.status, wrong.answer
        if status == 0:
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Server(("127.0.0.1", PORT), Handler)
    server.stub = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.stub
    server.shutdown()
    thread.join()
    server.server_close()


async def write(api: Api, worker: str, *changes: tuple[str, dict[str, Any] | None], **more: Any) -> None:
    """Rows as a sync writes them; None deletes one."""
    scope = Scope(api.own.team_id, api.own.project_id)
    given = [
        Delete(key=key) if values is None else Upsert(key=key, properties={"Id": key} | values, **more) for key, values in changes
    ]
    async with api.services.database.write() as connection:
        mark = await worker_syncs.next_mark(connection, scope, worker, api.services.clock())
        assert mark is not None
        known = await worker_rows.databases(connection, scope, worker)
        writes, _ = merged(given, DATABASE, set(known))
        await worker_rows.write(connection, scope, worker, known, writes, mark=mark, now=mark)


def path_of(worker: str) -> str:
    return f"/hutch/v1/workers/{worker}/databases/crm%2Fpeople/notion"


async def mirror(api: Api, worker: str, **body: Any) -> dict[str, Any]:
    wanted = {"token": TOKEN, "parent": {"page_id": PARENT}, "base_url": BASE} | body
    answer = await api.http.put(path_of(worker), json=wanted)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["notion"]
    return found


async def settled(api: Api, worker: str, **wanted: Any) -> dict[str, Any]:
    """The state, once it is as wanted; as long as nothing is said, once all rows are mirrored."""
    expected = wanted or {"waiting": 0, "failed": 0, "last_error": None}
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await api.http.get(path_of(worker))).json()["notion"]
            seen = {name: found.get(name) for name in expected}
            if seen == expected and ("last_success_at" in found or wanted):
                return found
            await asyncio.sleep(0.02)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_rows_become_pages_change_and_go(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {"n": 1, "state": "open", "=cmd": "x" * 4500}), ("b", {"n": 2}), markdown="one\n\ntwo")
    made = await mirror(api, worker)
    assert made["database_id"]
    found = await settled(api, worker)
    assert (found["mirrored"], found["warnings"], found["stopped"]) == (2, [], False)
    source = stub.sources[found["data_source_id"]]
    assert {name: item["type"] for name, item in source["properties"].items()} == {
        "Id": "title",
        "n": "number",
        "state": "select",
        "=cmd": "rich_text",
    }
    first = next(page for page in stub.live() if title_of(page) == "a")
    assert first["properties"]["n"] == {"number": 1}
    assert first["properties"]["state"] == {"select": {"name": "open"}}
    assert [len(part["text"]["content"]) for part in first["properties"]["=cmd"]["rich_text"]] == [2000, 2000, 500]
    assert len(first["children"]) == 2
    await write(api, worker, ("a", {"n": 7}), ("b", None), ("c", {}))
    await until(lambda: stub.titles() == ["a", "c"])
    await settled(api, worker, mirrored=2, waiting=0)
    assert first["properties"]["n"] == {"number": 7}
    assert len(stub.pages) == 3
    asked = len(stub.asked)
    await write(api, worker, ("a", {"n": 7}))
    await settled(api, worker)
    assert [line for line in stub.asked[asked:] if "pages" in line] == [], "what is as it was is not sent"


async def test_an_existing_data_source_is_completed_and_its_pages_taken_over(api: Api, stub: Stub) -> None:
    source = stub.add_source({"Name": {"title": {}}, "n": {"rich_text": {}}})
    body = {"parent": {"type": "data_source_id", "data_source_id": source}, "properties": {}}
    for name in ("a", "A", "theirs"):
        stub.create(body | {"properties": {"Name": {"title": [{"text": {"content": name}}]}}})
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {"n": 1}), ("b", {"n": 2}))
    made = await mirror(api, worker, parent={"data_source_id": source})
    assert "database_id" not in made
    found = await settled(api, worker)
    assert stub.titles() == ["A", "a", "b", "theirs"]
    assert found["warnings"] == ['The property "n" is not mirrored: it is a "rich_text" in Notion.']
    assert set(stub.sources[source]["properties"]) == {"Name", "n", "state", "=cmd"}


async def test_429_waits_and_errors_are_tried_again(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await mirror(api, worker)
    await settled(api, worker)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    stub.said += [("POST /v1/pages", 429, {"retry-after": "1"}), ("PATCH .*", 500, {}), ("PATCH .*", 409, {})]
    await write(api, worker, ("a", {}))
    await until(lambda: stub.titles() == ["a"])
    assert loop.time() - begun >= 1
    await settled(api, worker, mirrored=1)
    await write(api, worker, ("a", {"n": 3}))
    await until(lambda: stub.live()[0]["properties"]["n"] == {"number": 3})
    assert stub.said == []


@pytest.mark.parametrize("status", [0, 500, 502])
async def test_a_lost_answer_makes_no_second_page(api: Api, stub: Stub, status: int) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await mirror(api, worker)
    await settled(api, worker)
    stub.said += [("POST /v1/pages", status, {})]
    await write(api, worker, ("a", {}), ("b", {}))
    found = await settled(api, worker, mirrored=2, waiting=0, last_error=None)
    assert stub.titles() == ["a", "b"]
    assert found["stopped"] is False
    assert any(line.endswith("/query") for line in stub.asked)


async def test_a_pass_that_dies_between_making_a_page_and_noting_it(
    api: Api, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await mirror(api, worker)
    await settled(api, worker)
    monkeypatch.setattr(mirrors, "LEASE_MS", 200)
    note = mirrors.Pass._note
    died: list[str] = []

    async def dying(self: Any, of: str, page: Any) -> None:
        if page is not None and page.page_id is not None and not died:
            died.append(page.page_id)
            raise RuntimeError("died")
        await note(self, of, page)

    monkeypatch.setattr(mirrors.Pass, "_note", dying)
    await write(api, worker, ("a", {}))
    await settled(api, worker, mirrored=1, waiting=0)
    assert [page["id"] for page in stub.pages.values()] == died


async def test_two_takers_make_no_second_page(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, *((f"k{n}", {}) for n in range(10)))
    others = [asyncio.create_task(mirrors.keep_mirroring(api.services)) for _ in range(3)]
    try:
        await mirror(api, worker)
        await settled(api, worker, mirrored=10)
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    assert stub.titles() == sorted(f"k{n}" for n in range(10))
    assert len(stub.pages) == 10


async def test_a_mirror_that_was_taken_since_writes_nothing(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await mirror(api, worker)
    await settled(api, worker)
    scope, now = Scope(api.own.team_id, api.own.project_id), api.services.clock()
    async with api.services.database.write() as connection:
        found = (await worker_mirrors.of_worker(connection, scope, worker))[DATABASE]
        assert await worker_mirrors.hold(connection, found, now, now + 60_000, take=True)
        assert not await worker_mirrors.hold(connection, found, now, now + 60_000, take=True)
        assert not await worker_mirrors.hold(connection, found, now, now + 60_000)
    with pytest.raises(mirrors.Lost):
        await mirrors.Pass(api.services, found).run()


async def test_a_page_that_was_deleted_in_notion_is_made_again(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {}), ("b", {}), ("c", {}))
    await mirror(api, worker)
    await settled(api, worker)
    gone = {title_of(page): page for page in stub.live()}
    gone["a"]["in_trash"] = True
    del stub.pages[gone["b"]["id"]]
    del stub.pages[gone["c"]["id"]]
    await write(api, worker, ("a", {"n": 1}), ("b", {"n": 1}), ("c", None))
    await until(lambda: stub.titles() == ["a", "b"])
    await settled(api, worker, mirrored=2, waiting=0, last_error=None)


async def test_a_row_that_is_refused_holds_up_no_other(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {"state": "refused"}), ("b", {}))
    await mirror(api, worker)
    found = await settled(api, worker, mirrored=1, failed=1, waiting=0)
    await until(lambda: stub.titles() == ["b"])
    found = await settled(api, worker, failed=1, last_error=None)
    async with asyncio.timeout(20):
        while not found["warnings"]:
            found = await settled(api, worker, failed=1)
    assert found["warnings"] == ['Row "a": Notion answered 400 (validation_error): … is not liked']
    await write(api, worker, ("a", {"state": "fine"}))
    await settled(api, worker, mirrored=2, failed=0, warnings=[])


async def test_a_token_that_is_revoked_stops_it_until_it_is_set_again(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {}))
    await mirror(api, worker)
    first = await settled(api, worker)
    stub.token = "other"
    await write(api, worker, ("a", {"n": 1}))
    found = await settled(api, worker, stopped=True)
    assert found["last_error"] == "Notion answered 401 (unauthorized): API token is invalid."
    assert found["waiting"] == 1
    refused = await api.http.put(path_of(worker), json={"token": "x", "parent": {"page_id": PARENT}, "base_url": BASE})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "notion_refused")
    again = await mirror(api, worker, token="other")
    assert again["data_source_id"] == first["data_source_id"], "the same place goes on"
    await settled(api, worker)
    assert len(stub.pages) == 1


async def test_it_ends_and_pages_stay(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {}))
    await mirror(api, worker)
    await settled(api, worker)
    assert (await api.http.delete(path_of(worker))).status_code == 204
    assert (await api.http.delete(path_of(worker))).status_code == 404
    assert (await api.http.get(path_of(worker))).status_code == 404
    assert stub.titles() == ["a"]


async def test_relations_lead_to_pages_once_there_are_some(api: Api, stub: Stub) -> None:
    content = declared(s=MANUAL)
    content["databases"][0]["config"]["schema"]["properties"] = {
        "Id": {"type": "title"},
        "boss": {"type": "relation", "relatedDatabaseKey": DATABASE, "config": {"twoWay": False}},
    }
    worker = await deployed(api, content)
    await write(api, worker, ("a", {"boss": ["b"]}), ("b", {}))
    await mirror(api, worker)

    def related() -> bool:
        pages = {title_of(page): page for page in stub.live()}
        if set(pages) != {"a", "b"}:
            return False
        return bool(pages["a"]["properties"].get("boss") == {"relation": [{"id": pages["b"]["id"]}]})

    await until(related)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"parent": {}}, 400, "bad_request"),
        ({"parent": {"page_id": PARENT, "data_source_id": PARENT}}, 400, "bad_request"),
        ({"parent": {"page_id": "../users"}}, 400, "bad_request"),
        ({"parent": {"page_id": PARENT + "\n"}}, 400, "bad_request"),
        ({"parent": {"page_id": "f" * 32}}, 400, "notion_refused"),
        ({"token": ""}, 400, "bad_request"),
        ({"token": "a\r\nx: y"}, 400, "bad_request"),
        ({"token": "ä"}, 400, "bad_request"),
        ({"base_url": "ftp://a.example"}, 400, "bad_request"),
        ({"base_url": "https://u:p@a.example"}, 400, "bad_request"),
        ({"base_url": "https://a.example?x=1"}, 400, "bad_request"),
        ({"base_url": "https://[::1"}, 400, "bad_request"),
        ({"base_url": "https://a.example:99999"}, 400, "bad_request"),
        ({"base_url": "http://127.0.0.1:1"}, 403, "notion_not_allowed"),
        ({"base_url": "http://169.254.169.254"}, 403, "notion_not_allowed"),
        ({"base_url": "https://[::ffff:127.0.0.1]"}, 403, "notion_not_allowed"),
        ({"base_url": "https://name.invalid"}, 503, "notion_unreachable"),
    ],
)
async def test_hostile_bodies(api: Api, stub: Stub, body: dict[str, Any], status: int, code: str) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    wanted = {"token": TOKEN, "parent": {"page_id": PARENT}, "base_url": BASE} | body
    answer = await api.http.put(path_of(worker), json=wanted)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert TOKEN not in answer.text
    assert (await api.http.get(path_of(worker))).status_code == 404


async def test_the_token_is_nowhere(api: Api, stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    worker = await deployed(api, declared(s=MANUAL))
    await write(api, worker, ("a", {"state": "refused"}))
    await mirror(api, worker)
    await settled(api, worker, failed=1)
    paths = (path_of(worker), f"/hutch/v1/workers/{worker}", f"/hutch/v1/teams/{api.own.team_id}/audit-log")
    seen = [(await api.http.get(path)).text for path in paths]
    assert "worker.notion_set" in seen[2]
    async with api.services.database.read() as connection:
        held = (await worker_mirrors.of_worker(connection, Scope(api.own.team_id, api.own.project_id), worker))[DATABASE]
    assert not [text for text in (*seen, caplog.text, repr(held)) if TOKEN in text]


async def test_the_client_mirrors_shows_and_ends_it(api: Api, stub: Stub) -> None:
    worker = await deployed(api, declared(s=MANUAL))
    async with AsyncClient(url=api.url, token=api.own.token) as client:
        made = await client.workers.mirror(worker, DATABASE, TOKEN, {"page_id": PARENT}, base_url=BASE)
        assert (await client.workers.notion(worker, DATABASE)).data_source_id == made.data_source_id
        await client.workers.unmirror(worker, DATABASE)
    assert (await api.http.get(path_of(worker))).status_code == 404
