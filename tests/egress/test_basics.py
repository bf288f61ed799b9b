"""Allowed, denied, injected: once through everything."""

from __future__ import annotations

import asyncio

import pytest

from tests.egress.world import API, CANARY, EVIL, World

pytestmark = pytest.mark.root


async def test_an_allowed_name_is_spliced(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    ran = await guest.curl("https://api.test/hello")
    assert ran.out == "ok\n200", ran
    connection = outside.origins.seen().to("api.test")[0]
    assert b"GET /hello" in connection["data"]
    record = await guest.audited(kind="tls", name="api.test")
    assert (record["decision"], record["mode"], record["reason"], record["dst"]) == ("allow", "splice", "domain", f"{API}:443")


async def test_another_name_is_refused_before_anybody_is_asked(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    ran = await guest.curl("https://evil.test/")
    assert ran.code == 6, ran
    ran = await guest.curl("--resolve", f"evil.test:443:{EVIL}", "https://evil.test/")
    assert ran.code == 35, ran
    seen = outside.origins.seen()
    assert seen.is_silent
    assert "evil.test" not in seen.questions
    assert await guest.audited(kind="tls", name="evil.test", reason="domain_deny")


async def test_a_credential_is_injected_and_never_seen(outside: World) -> None:
    rule = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
    guest = await outside.guest({"allow": {"api.test": [rule]}})
    outside.origins.script("api.test", b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n" + b"%HEAD%".ljust(400))
    ran = await guest.curl("-H", "authorization: mine", "https://api.test/v1")
    assert ran.code in (0, 18), ran
    assert CANARY not in ran.out + ran.err
    data = outside.origins.seen().data
    assert data.count(CANARY.encode()) == 1
    assert b"mine" not in data


async def test_lock_down_cuts_what_is_open(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": ["198.51.100.0/24"]}})
    outside.origins.script(f"{EVIL}:8080", echo=True)
    program = """
    stream = socket.create_connection((sys.argv[1], 8080))
    stream.sendall(b"x")
    first = stream.recv(100)
    try:
        say([len(first), len(stream.recv(100))])
    except OSError as error:
        say([len(first), type(error).__name__])
    """
    running = asyncio.ensure_future(guest.python(program, EVIL))
    await outside.origins.wait(lambda seen: bool(seen.data), "the bytes did not arrive")
    applied = await guest.policy("deny-all")
    assert applied.closed_flows == 1
    assert (await running).json() == [1, "ConnectionResetError"]
    await outside.origins.wait(
        lambda seen: seen.connections[0]["ended"] == "ConnectionResetError", "the origin was not told that it was cut"
    )
    record = await guest.audited(kind="revoke")
    assert (record["decision"], record["reason"], record["origDst"], record["up"]) == ("revoked", "deny_all", f"{EVIL}:8080", 1)
