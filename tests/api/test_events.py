"""Events of budgets: written once, shown to whom they belong, and sent to webhooks whatever those do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hutch.api import webhooks
from hutch.api.startup import load as load_installation
from hutch.api.startup import started
from hutch.clock import now_ms
from hutch.control.permissions import TokenRole
from hutch.control.webhooks import new_secret, signature
from hutch.metering.budgets import ALL_TIME, Budget, Limits, Period, Span, project_key, sandbox_key, team_key
from hutch.metering.notices import Notice, NoticeKind, Threshold, notice_id
from hutch.settings import load
from hutch.storage import audit_log, budgets
from tests.api.conftest import Api, FakeImages
from tests.api.fake_host import FakeHost

OWN = "/api/hutch/v1"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def notice(key: str, percent: int = 80, span: Span = ALL_TIME, kind: NoticeKind = NoticeKind.THRESHOLD) -> Notice:
    threshold = Threshold(kind, "active_cpu_us", 1000, percent)
    told = notice_id(key, span, threshold)
    return Notice(id=told, key=key, span=span, threshold=threshold, used=801, at_ms=now_ms(), session_ids=[])


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


def says(text: str, body: bytes = b"") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {text}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return answer


@dataclass
class Receiver:
    """Whoever webhooks are sent to: it takes what comes, and answers as it is told to, the last way again and again."""

    listener: socket.socket
    answers: list[Answer] = field(default_factory=lambda: [says("204 No Content")])
    received: list[Received] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=inner"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(Received(head[0].split(" ")[1], headers, body))
            self.came.set()
            await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(writer)
        writer.close()

    async def until(self, count: int) -> None:
        """Wait until that many requests have come."""
        async with asyncio.timeout(10):
            while len(self.received) < count:
                self.came.clear()
                await self.came.wait()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
async def receiver(listener: socket.socket) -> AsyncIterator[Receiver]:
    made = Receiver(listener)
    server = await asyncio.start_server(made.handle, sock=listener)
    yield made
    server.close()


@pytest.fixture
def environment(listener: socket.socket) -> dict[str, str]:
    return {"HUTCH_WEBHOOKS__PRIVATE_HOSTS": f"127.0.0.1:{listener.getsockname()[1]}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that follow each other at once."""
    monkeypatch.setattr(webhooks, "PAUSES_MS", (20, 40))
    monkeypatch.setattr(webhooks, "LEASE_MS", 1500)
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)


async def hooked(api: Api, url: str, **limits: Any) -> dict[str, Any]:
    """A budget of the project with a webhook: the budget, as the answer has it."""
    body = {"active_cpu_us": 1000, "notify_at": [80], "webhook": url} | limits
    response = await api.http.put(f"{OWN}/projects/{api.own.project_id}/budget", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json()["budgets"][0])


async def listed(api: Api, http: Any = None, **query: Any) -> dict[str, Any]:
    response = await (http or api.http).get(f"{OWN}/events", params=query)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def until(api: Api, wanted: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The events, once they are so."""
    async with asyncio.timeout(15):
        while True:
            events: list[dict[str, Any]] = (await listed(api))["events"]
            if wanted(events):
                return events
            await asyncio.sleep(0.02)


def states(events: list[dict[str, Any]]) -> list[str]:
    return [event["delivery"]["state"] for event in events]


async def test_what_a_host_tells_twice_is_one_event(api: Api) -> None:
    key = project_key(api.own.project_id)
    day = Span.of(Period.DAY, now_ms())
    first, second = notice(key, span=day), notice(key, kind=NoticeKind.EXCEEDED, percent=100)
    for told in (first, first, second):
        await api.host.notice(told)
    events = await until(api, lambda events: len(events) == 2)
    api.host.drop_connections()
    api.host.notices.insert(0, api.host.notices[1])
    await api.host.notice(first)
    await api.host.notice(notice(key, percent=81))
    events = await until(api, lambda events: len(events) >= 3)
    assert [event["id"] for event in events] == [first.id, second.id, notice(key, percent=81).id]
    assert events[0] == {
        "seq": events[0]["seq"],
        "id": first.id,
        "type": "budget.threshold",
        "at": first.at_ms,
        "team_id": api.own.team_id,
        "project_id": api.own.project_id,
        "budget": {"of": "project", "id": api.own.project_id, "period": "day", "span": day.text},
        "limit": "active_cpu_us",
        "bound": 1000,
        "percent": 80,
        "used": 801,
        "session_ids": [],
        "delivery": {"state": "none", "attempts": 0},
    }
    page = await listed(api, limit=2)
    assert (page["events"], page["next"]) == (events[:2], events[1]["seq"])
    page = await listed(api, after=page["next"])
    assert (page["events"], page["next"]) == (events[2:], events[2]["seq"])
    assert await listed(api, after=events[2]["seq"]) == {"events": [], "next": events[2]["seq"]}
    for query in ({"after": "-1"}, {"after": "x"}, {"limit": "0"}, {"after": "9" * 30}):
        assert (await api.http.get(f"{OWN}/events", params=query)).status_code == 400


@pytest.mark.section("3")
async def test_events_are_shown_to_those_whose_budget_it_is(api: Api) -> None:
    made = await api.create(name="one")
    [spec] = api.host.specs.values()
    assert made["sandbox"]["name"] == "one"
    web, jobs = await api.tenant("theirs", "web"), await api.tenant("theirs", "jobs")
    team = await api.tenant("theirs", None, TokenRole.BILLING)
    stranger = await api.tenant("strangers", None, TokenRole.OWNER)
    for key in (project_key(web.project_id), team_key(web.team_id), project_key("prj_gone"), sandbox_key(spec.sandbox_id)):
        await api.host.notice(notice(key))
    await until(api, lambda events: len(events) == 1)
    seen = [[one["budget"]["of"] for one in (await listed(api, who.http))["events"]] for who in (web, jobs, team)]
    assert seen == [["project"], [], ["project", "team"]]
    assert (await listed(api, stranger.http))["events"] == []
    [own] = (await listed(api))["events"]
    assert (own["budget"], own["project_id"]) == (
        {"of": "sandbox", "id": spec.sandbox_id, "period": "total", "span": ""},
        api.own.project_id,
    )
    assert (await stranger.http.get(f"{OWN}/events", params={"projectId": web.project_id})).status_code == 403
    assert (await api.client("").get(f"{OWN}/events")).status_code == 401


async def test_a_webhook_is_signed_and_sent_until_it_is_taken(api: Api, receiver: Receiver) -> None:
    receiver.answers = [says("500 Oh"), says("302 Found"), says("200 OK")]
    budget = await hooked(api, receiver.url)
    secret = budget["webhook"]["secret"]
    assert budget["webhook"]["origin"] == f"http://127.0.0.1:{receiver.port}"
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: states(events) == ["delivered"])
    assert event["delivery"] == {"state": "delivered", "attempts": 3}
    assert len(receiver.received) == 3
    assert len({one.body for one in receiver.received}) == 1
    for one in receiver.received:
        assert one.path == "/hook?token=inner"
        assert one.headers["webhook-id"] == event["id"]
        at = one.headers["webhook-timestamp"]
        assert abs(int(at) - now_ms() / 1000) < 30
        signed = f"{event['id']}.{at}.".encode() + one.body
        mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
        assert one.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
        assert "authorization" not in one.headers
    told = json.loads(receiver.received[0].body)
    shown = {name: value for name, value in event.items() if name not in ("type", "delivery")}
    assert (told["type"], told["data"]) == ("budget.threshold", shown)
    assert told["timestamp"].endswith("Z")


def test_a_signature_is_that_of_the_standards_example() -> None:
    """The vector of the Standard Webhooks libraries."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    assert (
        signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    assert new_secret() != new_secret()


async def test_a_secret_is_shown_once_and_a_webhook_stays_until_it_is_removed(api: Api, receiver: Receiver) -> None:
    path = f"{OWN}/projects/{api.own.project_id}/budget"
    first = (await hooked(api, receiver.url))["webhook"]["secret"]
    read = (await api.http.get(path)).text
    assert first not in read
    assert "inner" not in read
    assert "secret" not in (await hooked(api, receiver.url))["webhook"], "it is the same one"
    changed = (await api.http.put(path, json={"active_cpu_us": 2000})).json()["budgets"][0]
    assert changed["webhook"] == {"origin": f"http://127.0.0.1:{receiver.port}"}
    assert changed["notify_at"] == []
    await api.host.notice(notice(project_key(api.own.project_id)))
    await receiver.until(1)
    other = (await hooked(api, receiver.url + "2"))["webhook"]["secret"]
    assert other != first
    gone = (await api.http.put(path, json={"active_cpu_us": 2000, "webhook": None})).json()["budgets"][0]
    assert "webhook" not in gone
    async with api.services.database.read() as connection:
        entries = [entry for entry, _ in await audit_log.page(connection, api.own.team_id, after=0, until=99, limit=99)]
    assert first not in str(entries)
    assert "inner" not in str(entries)
    log = (await api.http.get(f"{OWN}/teams/{api.own.team_id}/audit-log")).text
    assert f"http://127.0.0.1:{receiver.port}" in log


async def test_nothing_waits_for_a_webhook_that_was_removed(api: Api, receiver: Receiver) -> None:
    receiver.answers = [says("500 Oh")]
    await hooked(api, receiver.url)
    await api.host.notice(notice(project_key(api.own.project_id)))
    await receiver.until(2)
    await api.http.put(f"{OWN}/projects/{api.own.project_id}/budget", json={"active_cpu_us": 5, "webhook": None})
    [event] = await until(api, lambda events: states(events) == ["given_up"])
    assert "has no webhook any more" in event["delivery"]["failure"]


async def test_an_event_outlives_the_server_until_it_is_taken(
    tmp_path: Path, host: FakeHost, receiver: Receiver, environment: dict[str, str]
) -> None:
    receiver.answers = [says("503 Later")]
    settings = load(Path("/dev/null"), environment=environment, flags={"server.data_dir": tmp_path})
    async with started(settings, load_installation(settings), FakeImages()) as services:  # type: ignore[arg-type]
        key = project_key(services.default_project_id)
        sealed = services.sealer.seal({"url": receiver.url, "secret": new_secret()}, f"{key} total")
        async with services.database.write() as connection:
            await budgets.put(connection, services.default_team_id, Budget(key=key, limits=Limits(active_cpu_us=1)), sealed)
        await host.notice(notice(key))
        await receiver.until(2)
    before = len(receiver.received)
    receiver.answers = [says("200 OK")]
    async with started(settings, load_installation(settings), FakeImages()):  # type: ignore[arg-type]
        await receiver.until(before + 1)
    assert receiver.received[-1].headers["webhook-id"] == receiver.received[0].headers["webhook-id"]


async def test_after_a_day_it_is_given_up(api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "GIVE_UP_MS", 100)
    receiver.answers = [says("500 Oh")]
    await hooked(api, receiver.url)
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: states(events) == ["given_up"])
    assert event["delivery"]["failure"] == "The webhook did not take it: it answered 500."
    assert event["delivery"]["attempts"] >= 2


# -- receivers that mean ill -------------------------------------------------------------------------


async def slow(writer: asyncio.StreamWriter) -> None:
    for _ in range(200):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def huge(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()


async def garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01 not http\r\n\r\n")
    await writer.drain()


async def headers_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x: " + b"y" * 4096 + b"\r\n")
            await writer.drain()


async def nothing(writer: asyncio.StreamWriter) -> None:
    """It hangs up."""


@pytest.mark.section("6")
@pytest.mark.parametrize("answer", [slow, garbage, headers_without_end, nothing], ids=lambda one: str(one.__name__))
async def test_a_receiver_that_answers_nonsense_is_asked_again(api: Api, receiver: Receiver, answer: Answer) -> None:
    receiver.answers = [answer, says("200 OK")]
    await hooked(api, receiver.url)
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: states(events) == ["delivered"])
    assert event["delivery"]["attempts"] == 2


@pytest.mark.section("6")
async def test_an_answer_without_end_is_not_read(api: Api, receiver: Receiver) -> None:
    receiver.answers = [huge]
    await hooked(api, receiver.url)
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: states(events) == ["delivered"])
    assert event["delivery"]["attempts"] == 1


@pytest.mark.section("6")
async def test_no_redirect_is_followed(api: Api, receiver: Receiver) -> None:
    async def redirect(writer: asyncio.StreamWriter) -> None:
        place = f"http://127.0.0.1:{receiver.port}/elsewhere"
        writer.write(f"HTTP/1.1 307 Moved\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()

    receiver.answers = [redirect, says("410 Gone")]
    await hooked(api, receiver.url)
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: states(events) == ["given_up"])
    assert "410" in event["delivery"]["failure"]
    assert {one.path for one in receiver.received} == {"/hook?token=inner"}


@pytest.mark.section("6")
@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://127.0.0.1/hook",
        "https://127.0.0.1:1/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/",
        "https://192.168.1.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00::1]/",
        "https://[fe80::1%25eth0]/",
        "https://0.0.0.0/",
        "https://user:password@example.com/",
        "https://example.com/#fragment",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https:///hook",
        "https://exa mple.com/",
        "https://example.com/\n",
        "https://ex\u00e4mple.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://example.com\\@127.0.0.1/",
        "x" * 3000,
        "",
        7,
        True,
        ["https://example.com"],
    ],
)
async def test_what_is_no_webhook_is_refused(api: Api, url: Any) -> None:
    path = f"{OWN}/projects/{api.own.project_id}/budget"
    refused = await api.http.put(path, json={"active_cpu_us": 5, "webhook": url})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] in ("webhook_invalid", "bad_request")
    assert not api.host.budgets


@pytest.mark.section("6")
@pytest.mark.parametrize("name", ["localhost", "2130706433", "0x7f.1", "127.1", "localhost."])
async def test_a_name_of_a_private_address_is_never_connected_to(api: Api, receiver: Receiver, name: str) -> None:
    await hooked(api, f"https://{name}:{receiver.port}/hook")
    await api.host.notice(notice(project_key(api.own.project_id)))
    [event] = await until(api, lambda events: bool(events) and events[0]["delivery"]["attempts"] > 1)
    assert event["delivery"]["state"] == "pending"
    assert event["delivery"]["failure"] in (
        "The webhook did not take it: its address is a private one.",
        "The webhook did not take it: its name can't be resolved.",
    )
    assert not receiver.received


@pytest.mark.section("6")
async def test_a_teams_receivers_that_hang_keep_no_other_team_waiting(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(webhooks, "LEASE_MS", 60_000)
    owner = await api.tenant("others", None, TokenRole.OWNER)
    member = await api.tenant("others", "main")
    never = asyncio.Event()
    hung = 0

    async def hang(writer: asyncio.StreamWriter) -> None:
        nonlocal hung
        hung += 1
        await never.wait()

    async def by_path(writer: asyncio.StreamWriter) -> None:
        await (hang if receiver.received[-1].path == "/hang" else says("200 OK"))(writer)

    receiver.answers = [by_path]
    hanging = {"active_cpu_us": 1000, "webhook": f"http://127.0.0.1:{receiver.port}/hang"}
    assert (await owner.http.put(f"{OWN}/projects/{member.project_id}/budget", json=hanging)).status_code == 200
    await hooked(api, receiver.url)
    for percent in range(1, 80):
        await api.host.notice(notice(project_key(member.project_id), percent=percent))
    await receiver.until(2)
    for percent in range(1, 6):
        await api.host.notice(notice(project_key(api.own.project_id), percent=percent))
    await until(api, lambda events: states(events) == ["delivered"] * 5)
    assert hung == webhooks.OF_TEAM_AT_ONCE
    never.set()
