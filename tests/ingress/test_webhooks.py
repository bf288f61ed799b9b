"""Webhooks of workers at the ingress: a name and a path of their own, and nothing else of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hutch.settings import Settings
from tests.conftest import RunningServer
from tests.ingress.conftest import Ingress
from tests.workers.deploying import Deployer, declaring, program

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]

UNKNOWN = "/webhooks/worker/prj_0/01a0/none/none"
MANIFEST = {
    "sdkVersion": "0.9.2",
    "capabilities": [
        {"_tag": "webhook", "key": "asked", "config": {"title": "t", "description": "d", "hasVerify": True}},
        {"_tag": "webhook", "key": "told", "config": {"title": "t", "description": "d"}},
    ],
}
VERIFY = """
const request = context.request;
await say({ status: 203, body: JSON.stringify(request), contentType: "application/json", deliver: false });
"""


@pytest.fixture(scope="module")
def deployed(server: RunningServer) -> Iterator[Deployer]:
    headers = {"authorization": f"Bearer {server.where.token}"}
    with httpx.Client(base_url=server.where.url, headers=headers, timeout=120) as http:
        worker = Deployer.create(http, "webhooks at the ingress")
        worker.deployed(program(declaring(MANIFEST, VERIFY)))
        yield worker
        http.post("/api/v3/workersDeleteWorker", json={"workerId": worker.worker}).raise_for_status()


def url_of(worker: Deployer, key: str) -> str:
    found: str = next(one["url"] for one in worker.get("/webhooks")["webhooks"] if one["key"] == key)
    return found


async def sent(ingress: Ingress, method: str, url: str, **more: Any) -> httpx.Response:
    """As senders do, who try again when the worker took too long to verify: an emulated one may."""
    async with asyncio.timeout(120):
        while True:
            answer = await ingress.http.request(method, url, **more)
            if answer.status_code != 503:
                return answer
            assert answer.headers["retry-after"], answer.text
            await asyncio.sleep(1)


@pytest.mark.parametrize("name", ["", "webhooks"])
async def test_an_event_comes_by_the_ingress(ingress: Ingress, deployed: Deployer, name: str) -> None:
    url = url_of(deployed, "told")
    assert url.startswith(f"{ingress.base}/webhooks/worker/")
    host = {"host": ingress.host(name)} if name else {}
    answer = await ingress.http.post(urlsplit(url).path, headers=host, content=b"\xff not json")
    assert answer.status_code == 202, answer.text
    assert "x-hutch-error" not in answer.headers
    events = deployed.get("/deliveries", webhook="told")["deliveries"]
    assert answer.json()["eventId"] in [one["id"] for one in events]
    assert (await ingress.http.get(urlsplit(url).path, headers=host)).status_code == 405


async def test_what_a_worker_verifies_is_what_the_sender_has_sent(ingress: Ingress, deployed: Deployer) -> None:
    url = url_of(deployed, "asked")
    forged = {"x-forwarded-for": "198.51.100.7", "x-signature": "v1=0", "content-type": "text/plain"}
    answer = await sent(ingress, "POST", f"{url}?a=1&hub.challenge=x", content="körper".encode(), headers=forged)
    assert answer.status_code == 203, answer.text
    seen = answer.json()
    assert (seen["method"], seen["rawBody"]) == ("POST", "körper")
    assert seen["query"] == {"a": "1", "hub.challenge": "x"}
    assert seen["url"] == f"{url}?a=1&hub.challenge=x"
    assert seen["headers"]["x-signature"] == "v1=0"
    assert "198.51.100.7" not in str(seen["headers"])
    head = await sent(ingress, "HEAD", url)
    assert (head.status_code, head.content) == (203, b"")


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("POST", UNKNOWN, "", 404),
        ("POST", "/webhooks/worker/", "", 404),
        ("POST", "/webhooks/worker/%00/%2e%2e/x/y", "", 404),
        ("POST", "/webhooks/worker/../../api/hutch/v1/workers/x", "", 404),
        ("DELETE", UNKNOWN, "", 405),
        ("GET", "/api/hutch/v1/whoami", "", 404),
        ("GET", "/metrics", "", 404),
        ("GET", "/api/hutch/v1/whoami", "webhooks", 404),
        ("POST", UNKNOWN, "sb-none", 404),
        ("POST", UNKNOWN, "webhooks.deeper", 404),
    ],
)
async def test_there_is_nothing_else_of_the_api(ingress: Ingress, method: str, path: str, host: str, status: int) -> None:
    token = ingress.api.headers["authorization"]
    address = f"{ingress.address[0]}:{ingress.address[1]}"
    name = ingress.host(host) if host else address
    head = f"{method} {path} HTTP/1.1\r\nhost: {name}\r\nauthorization: {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    answer = await ingress.raw(head.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert b"permissions" not in answer


async def test_a_websocket_is_refused(ingress: Ingress) -> None:
    key = "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
    upgrade = f"connection: close, upgrade\r\nupgrade: websocket\r\n{key}"
    answer = await ingress.raw(f"GET {UNKNOWN} HTTP/1.1\r\nhost: 127.0.0.1\r\n{upgrade}\r\n\r\n".encode())
    assert not answer.startswith((b"HTTP/1.1 101", b"HTTP/1.1 2")), answer[:300]


def test_a_domain_has_a_name_for_webhooks() -> None:
    """Where names are only this machine's, they are reached by its address."""
    listen = {"listen": "127.0.0.1:7071"}
    assert Settings(ingress=listen).ingress_webhook_url() == "http://127.0.0.1:7071"
    given = listen | {"domain": "boxes.example.com", "public_url": "https://boxes.example.com"}
    assert Settings(ingress=given).ingress_webhook_url() == "https://webhooks.boxes.example.com"
    assert Settings(ingress=listen | {"domain": "boxes.example.com"}).ingress_webhook_url() == (
        "http://webhooks.boxes.example.com:7071"
    )
