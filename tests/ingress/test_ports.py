"""Requests to programs in real sandboxes, through a real ingress."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from pathlib import Path

import httpx
import pytest

from hutch.client import AsyncClient
from tests.conftest import RunningServer, wait_until
from tests.ingress.conftest import PORT, Ingress, sole

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.section("15")]

MIB = 1024 * 1024


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer of the ingress's own."""
    code = response.json()["error"]["code"]
    assert response.headers["x-hutch-error"] == code
    return response.status_code, code


async def test_a_request_reaches_the_program_that_its_host_names(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    subdomain = sole(made)
    assert made.routes[0].url == f"http://{ingress.host(subdomain)}"
    sent = {
        "x-forwarded-for": "203.0.113.9",
        "forwarded": "for=203.0.113.9",
        "x-real-ip": "203.0.113.9",
        "x-hutch-anything": "1",
        "cookie": "a=1; hutch_token=x; b=2",
        "x-own": "kept",
    }
    response = await ingress.get(subdomain, "/some/path?q=1", headers=sent)
    assert response.status_code == 200
    said = response.json()
    headers = {name.lower(): value for name, value in said["headers"]}
    assert said["path"] == "/some/path?q=1"
    assert headers["host"] == ingress.host(subdomain)
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == ingress.host(subdomain)
    assert headers["cookie"] == "a=1; b=2"
    assert headers["x-own"] == "kept"
    assert not {"forwarded", "x-real-ip", "x-hutch-anything"} & headers.keys()


async def test_what_can_not_be_reached_says_why(ingress: Ingress) -> None:
    made = await ingress.sandbox(listens=False)
    subdomain = sole(made)
    assert refusal(await ingress.get("sb-000000000000")) == (404, "SANDBOX_NOT_FOUND")
    assert refusal(await ingress.get(subdomain)) == (502, "SANDBOX_NOT_LISTENING")
    page = await ingress.get(subdomain, headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-hutch-error"] == "SANDBOX_NOT_LISTENING"
    await ingress.client.sandboxes.stop(made.session.id)
    assert refusal(await ingress.get(subdomain)) == (410, "SANDBOX_STOPPED")
    await ingress.client.sandboxes.delete(made.sandbox.name)
    assert refusal(await ingress.get(subdomain)) == (404, "SANDBOX_NOT_FOUND")


async def test_large_bodies_pass_in_both_directions(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    piece = os.urandom(MIB)

    async def body(count: int) -> object:
        for _ in range(count):
            yield piece

    uploaded = await ingress.get(sole(made), "/", method="POST", content=body(100))
    assert uploaded.json()["bytes"] == 100 * MIB
    assert uploaded.json()["sha256"] == hashlib.sha256(piece * 100).hexdigest()
    received = 0
    headers = {"host": ingress.host(sole(made))}
    async with ingress.http.stream("GET", f"/download/{100 * MIB}", headers=headers) as response:
        async for part in response.aiter_bytes():
            received += len(part)
    assert received == 100 * MIB


async def test_events_arrive_as_they_are_sent(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    headers = {"host": ingress.host(sole(made))}
    async with ingress.http.stream("GET", "/events", headers=headers) as response:
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"data: 1\n\n"
        # Only now does the program send the second one.
        await ingress.get(sole(made), "/go-on")
        assert await anext(pieces) == b"data: 2\n\n"


async def test_tunnels_pass_bytes_and_end_with_the_session(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    reader, writer = await asyncio.open_connection(*ingress.address)
    head = f"GET /ws HTTP/1.1\r\nHost: {ingress.host(sole(made))}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    while await reader.readline() != b"\r\n":
        pass
    for line in (b"one\n", b"two\n"):
        writer.write(line)
        assert await reader.readline() == b"echo " + line
    await ingress.client.sandboxes.stop(made.session.id)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_a_program_can_not_answer_as_the_ingress(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    response = await ingress.get(sole(made), "/liar")
    assert response.status_code == 200
    assert not {"x-hutch-error", "x-hop"} & response.headers.keys()


async def test_ports_change_at_once_and_keep_their_names(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    name, first = made.sandbox.name, sole(made)
    answer = await ingress.api.patch(f"/v2/sandboxes/{name}", json={"ports": [PORT, PORT + 1]})
    routes = {route["port"]: route["subdomain"] for route in answer.json()["routes"]}
    assert routes[PORT] == first
    assert refusal(await ingress.get(routes[PORT + 1])) == (502, "SANDBOX_NOT_LISTENING")
    assert (await ingress.get(first)).status_code == 200
    await ingress.api.patch(f"/v2/sandboxes/{name}", json={"ports": []})
    assert refusal(await ingress.get(first)) == (404, "SANDBOX_NOT_FOUND")


@pytest.mark.parametrize(
    "request_head",
    [
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +1\r\n\r\na",
        "GET / HTTP/1.1\r\nHost: {host}\r\nHost: other.localhost\r\n\r\n",
        "GET http://other.localhost/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {host}\r\nX-A : b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@{host}\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "\x16\x03\x01\x02\x00",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(ingress: Ingress, request_head: str) -> None:
    made = await ingress.sandbox()
    data = request_head.format(host=ingress.host(sole(made))).encode("latin-1")
    # What follows must not be a request of its own on this connection when the first one is refused for its lengths.
    answers = await ingress.raw(data + b"GET /go-on HTTP/1.1\r\nHost: x.localhost\r\nConnection: close\r\n\r\n")
    assert b" 200 " not in answers
    assert answers.startswith(b"HTTP/1.1 400") or not answers


async def test_a_chunked_request_is_the_last_on_its_connection(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    head = f"POST / HTTP/1.1\r\nHost: {ingress.host(sole(made))}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    answers = await ingress.raw(head.encode() * 2)
    assert answers.count(b"HTTP/1.1 200 ") == 1


async def test_private_ports_take_a_token(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    other = await ingress.sandbox(listens=False, portsPrivate=True)
    name, subdomain = made.sandbox.name, sole(made)
    await ingress.api.patch(f"/v2/sandboxes/{name}", json={"portsPrivate": True})
    assert refusal(await ingress.get(subdomain)) == (401, "SANDBOX_PORT_PRIVATE")
    link = (await ingress.api.post(f"/hutch/v1/sandboxes/{name}/links", json={"port": PORT, "ttl_s": 60})).json()
    token = link["token"]
    by_header = await ingress.get(subdomain, headers={"x-hutch-ingress-token": token})
    assert by_header.status_code == 200
    moved = await ingress.get(subdomain, f"/page?a=1&hutch_token={token}")
    assert (moved.status_code, moved.headers["location"]) == (302, "/page?a=1")
    cookie = moved.headers["set-cookie"]
    ingress.http.cookies.clear()
    assert cookie == f"hutch_token={token}; Path=/; HttpOnly; SameSite=Lax"
    by_cookie = await ingress.get(subdomain, headers={"cookie": f"hutch_token={token}; own=1"})
    assert token not in by_cookie.text + by_header.text
    assert by_cookie.status_code == 200
    posted = await ingress.get(subdomain, f"/?hutch_token={token}", method="POST", content=b"x")
    assert posted.status_code == 200
    assert token not in posted.text
    assert refusal(await ingress.get(sole(other), headers={"x-hutch-ingress-token": token})) == (401, "SANDBOX_PORT_PRIVATE")
    forged = token[:-2] + ("00" if token[-2:] != "00" else "11")
    assert refusal(await ingress.get(subdomain, headers={"x-hutch-ingress-token": forged})) == (401, "SANDBOX_PORT_PRIVATE")
    assert (await ingress.api.delete(f"/hutch/v1/sandboxes/{name}/links")).status_code == 204
    assert refusal(await ingress.get(subdomain, headers={"x-hutch-ingress-token": token})) == (401, "SANDBOX_PORT_PRIVATE")
    await ingress.api.patch(f"/v2/sandboxes/{name}", json={"portsPrivate": False})
    assert (await ingress.get(subdomain)).status_code == 200


async def test_a_project_says_what_its_sandboxes_do_not(ingress: Ingress, server: RunningServer) -> None:
    made = await ingress.sandbox()
    public = await ingress.sandbox(listens=False, portsPrivate=False)
    path = f"/hutch/v1/projects/{server.where.project_id}/ingress"
    try:
        assert (await ingress.api.put(path, json={"private": True})).json() == {"private": True}
        assert refusal(await ingress.get(sole(made))) == (401, "SANDBOX_PORT_PRIVATE")
        assert refusal(await ingress.get(sole(public))) == (502, "SANDBOX_NOT_LISTENING")
    finally:
        assert (await ingress.api.delete(path)).status_code == 204
    assert (await ingress.get(sole(made))).status_code == 200


async def test_a_request_resumes_a_sandbox_once_for_many(ingress: Ingress) -> None:
    made = await ingress.sandbox(listens=False, persistent=True, wakeOnRequest=True)
    subdomain, first = sole(made), made.session.id
    await ingress.client.sandboxes.stop(first)
    before = await counted(ingress)

    async def asked() -> httpx.Response:
        return await ingress.get(subdomain)

    waiting = [asyncio.create_task(asked()) for _ in range(8)]
    async with asyncio.timeout(60):
        while True:
            now = await ingress.client.sandboxes.get(made.sandbox.name)
            if now.session.id != first and now.session.status == "running":
                break
            await asyncio.sleep(0.05)
    # They wait for the program as well.
    await ingress.listen(now)
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 8
    sessions = (await ingress.api.get(f"/v2/sandboxes/sessions?name={made.sandbox.name}")).json()["sessions"]
    assert len(sessions) == 2
    assert sole(now) == subdomain
    assert (await counted(ingress))['wakes_total{outcome="resumed"}'] - before['wakes_total{outcome="resumed"}'] == 1


async def test_a_sandbox_that_can_not_be_resumed_is_said_to_be(ingress: Ingress) -> None:
    made = await ingress.sandbox(listens=False, persistent=False, wakeOnRequest=True)
    await ingress.client.sandboxes.stop(made.session.id)
    response = await ingress.get(sole(made))
    assert refusal(response) == (503, "SANDBOX_NOT_RESUMED")
    assert int(response.headers["retry-after"]) > 0


async def counted(ingress: Ingress) -> dict[str, float]:
    """Metrics of the ingress, by name and label."""
    text = (await ingress.api.get("/metrics")).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("hutch_ingress_"))
    return {name.removeprefix("hutch_ingress_"): float(value) for name, _, value in lines}


async def test_what_passes_and_what_is_refused_is_counted(ingress: Ingress) -> None:
    made = await ingress.sandbox()
    before = await counted(ingress)
    assert (await ingress.get(sole(made), "/", method="POST", content=b"x" * MIB)).status_code == 200
    assert (await ingress.get(sole(made), f"/download/{2 * MIB}")).status_code == 200
    assert (await ingress.get("sb-000000000000")).status_code == 404
    after = await counted(ingress)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['answers_total{result="2xx"}'] == 2
    assert grown['refusals_total{code="SANDBOX_NOT_FOUND"}'] == 1
    assert 0 <= grown['bytes_total{direction="received"}'] - MIB < 4096
    assert 0 <= grown['bytes_total{direction="sent"}'] - 2 * MIB < 4096
    assert after["up"] == 1
    assert after["routes"] >= 1
    assert after["connections"] >= 1
    assert "sb-" not in " ".join(after)


def process(server: RunningServer) -> int:
    """The pid of the server's ingress."""
    return int((server.data_dir / "host" / "ingress" / "process").read_text().split()[0])


async def test_the_ingress_is_confined(ingress: Ingress, server: RunningServer) -> None:
    status = Path(f"/proc/{process(server)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["CapEff"].strip("0") == fields["CapPrm"].strip("0") == ""
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    users = {int(user) for user in fields["Uid"].split()}
    gateway = int((server.data_dir / "host" / "gateway" / "process").read_text().split()[0])
    assert users.isdisjoint({0, Path(f"/proc/{gateway}").stat().st_uid, 0x4875_0000})
    assert Path(f"/proc/{process(server)}/root").readlink() != Path("/")


async def test_requests_go_on_after_the_death_of_ingress_host_and_api(ingress: Ingress, server: RunningServer) -> None:
    made = await ingress.sandbox()
    subdomain = sole(made)
    before = process(server)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{before}/exe").exists(), 10, "the end of the ingress")
    # The listening socket is there all the time.
    async with httpx.AsyncClient(base_url=ingress.base, timeout=60, trust_env=False) as fresh:
        assert (await fresh.get("/", headers={"host": ingress.host(subdomain)})).status_code == 200
    assert process(server) != before
    for part in ("hutch host", "hutch.api.main"):
        (pid,) = _children(server.process.pid, part)
        os.kill(pid, signal.SIGKILL)
        assert (await ingress.get(subdomain)).status_code == 200
        wait_until(lambda part=part: len(_children(server.process.pid, part)) == 1, 30, part)  # type: ignore[misc]
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await ingress.api.patch(f"/v2/sandboxes/{made.sandbox.name}", json={"ports": [PORT, 9000]})
                if answer.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    added = next(route["subdomain"] for route in answer.json()["routes"] if route["port"] == 9000)
    assert refusal(await ingress.get(added)) == (502, "SANDBOX_NOT_LISTENING")
    assert (await ingress.get(subdomain)).status_code == 200


def _children(parent: int, part: str) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        # Threads and children end while they are read.
        pids: list[str] = []
        with contextlib.suppress(OSError):
            pids = (task / "children").read_text().split()
        for pid in pids:
            with contextlib.suppress(OSError):
                if part in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(int(pid))
    return found


async def test_the_api_answers_nothing_at_names_of_sandboxes(ingress: Ingress, client: AsyncClient) -> None:
    response = await ingress.api.get("/v2/sandboxes", headers={"host": "sb-anything.localhost:7070"})
    assert (response.status_code, response.json()["error"]["code"]) == (421, "misdirected_request")
    own = await ingress.http.get("/healthz")
    assert refusal(own) == (404, "SANDBOX_NOT_FOUND")


async def test_a_guest_reaches_neither_the_ingress_nor_the_api_nor_the_host(ingress: Ingress, server: RunningServer) -> None:
    made = await ingress.sandbox()
    api = int(server.where.url.rpartition(":")[2])
    script = f"""
import socket, struct
own = socket.gethostbyname(socket.gethostname())
def gateway():
    for line in open('/proc/net/route').read().splitlines()[1:]:
        fields = line.split()
        if fields[1] == '00000000':
            return socket.inet_ntoa(struct.pack('<I', int(fields[2], 16)))
for host in (gateway(), '127.0.0.1'):
    for port in ({ingress.address[1]}, {api}, 22):
        try:
            connection = socket.create_connection((host, port), timeout=5)
            connection.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
            got = connection.recv(100)
            assert b'200' not in got and b'x-hutch-error' not in got, (host, port, got)
        except OSError:
            pass
print('closed')
"""
    ran = await ingress.client.commands.run(made.session.id, ["python3", "-c", script])
    assert ran[:2] == (0, "closed\n"), ran
