"""Time: policies that change under open flows, pools, credentials that are rotated, restarts (threats T87 to T93)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError, InternalError
from tests.egress.world import API, CANARY, EVIL, NAME_SERVER, SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("canary_stays")]

LATEST_S = 0.1
"""How long after the acknowledgement of an update the last byte may arrive (T87)."""
OK = b"HTTP/1.1 200 OK\r\n"
RULE = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
STORED = {"transform": [{"headers": {"authorization": {"credential": "key", "format": "Bearer {}"}}}]}
EVERYTHING = {"allow": {"api.test": [RULE], "cdn.test": []}, "subnets": {"allow": [f"{EVIL}/32"]}}
ROTATED = CANARY[::-1].replace("YRANAC", "ROTATED")

PRELUDE = """
import threading
def until_cut(act, every_s=0.002):
    # What an attacker does: go on until it fails, and say how.
    end = time.monotonic() + 15
    count = 0
    try:
        while time.monotonic() < end:
            act(count)
            count += 1
            time.sleep(every_s)
    except OSError as error:
        return say([type(error).__name__, count])
    return say(["alive", count])
"""

FLOWS = {
    "keep-alive": """
    stream = tls(API, "api.test", alpn=["http/1.1"])
    def act(count):
        if count == 0:
            stream.sendall(b"GET /first HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n")
            assert stream.recv(100000)
            stream.settimeout(0.01)
        else:
            try:
                if not stream.recv(100):
                    raise ConnectionAbortedError
            except TimeoutError:
                pass
    until_cut(act)
    """,
    "sized body": """
    stream = tls(API, "api.test", alpn=["http/1.1"])
    stream.sendall(b"POST / HTTP/1.1\\r\\nhost: api.test\\r\\ncontent-length: 100000000\\r\\n\\r\\n")
    until_cut(lambda count: stream.sendall(b"x" * 100))
    """,
    "chunked body": """
    stream = tls(API, "api.test", alpn=["http/1.1"])
    stream.sendall(b"POST / HTTP/1.1\\r\\nhost: api.test\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
    until_cut(lambda count: stream.sendall(b"64\\r\\n" + b"x" * 100 + b"\\r\\n"))
    """,
    "events": """
    stream = tls(API, "api.test", alpn=["http/1.1"])
    stream.sendall(b"GET /events HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n")
    def act(count):
        if not stream.recv(100000):
            raise ConnectionAbortedError
    until_cut(act, 0)
    """,
    "websocket": """
    stream = tls(API, "api.test", alpn=["http/1.1"])
    stream.sendall(b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: Upgrade\\r\\nupgrade: websocket\\r\\n"
        b"sec-websocket-version: 13\\r\\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
    assert b"101" in stream.recv(100000)
    until_cut(lambda count: stream.sendall(b"\\x82\\x02hi"))
    """,
    "download": """
    stream = tls(SHARED, "cdn.test", alpn=["http/1.1"])
    stream.sendall(b"GET / HTTP/1.1\\r\\nhost: cdn.test\\r\\n\\r\\n")
    def act(count):
        if not stream.recv(100000):
            raise ConnectionAbortedError
    until_cut(act, 0)
    """,
    "raw": """
    stream = socket.create_connection((EVIL, 8080))
    until_cut(lambda count: stream.sendall(b"x"))
    """,
    "datagrams": """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((EVIL, 5353))
    until_cut(lambda count: sock.send(b"x"))
    """,
    "dns over tcp": """
    stream = socket.create_connection((sys.argv[1], 53))
    def act(count):
        asked = question("n%d.cdn.test" % count if count % 2 else "cdn.test")
        stream.sendall(struct.pack("!H", len(asked)) + asked)
        answer = stream.recv(1000)
        if not answer or answer[5] & 15 == 5 and count % 2 == 0:
            raise ConnectionRefusedError
    until_cut(act, 0.05)
    """,
}


def began(seen: Any, kind: str) -> bool:
    if kind == "datagrams":
        return bool(seen.raw["udp"])
    if kind == "dns over tcp":
        return "cdn.test" in seen.questions
    return any(connection["heads"] or connection["data"] for connection in seen.connections)


def last_at(seen: Any, kind: str) -> float:
    """When the last byte of a guest arrived outside."""
    if kind == "datagrams":
        return max(float(datagram["at"]) for datagram in seen.raw["udp"])
    if kind == "dns over tcp":
        return max(float(asked["at"]) for asked in seen.raw["dns"])
    return max(float(connection["last"]) for connection in seen.raw["tcp"])


async def start(guest: Guest, kind: str, api: str = API) -> asyncio.Future[Any]:
    """Open a flow of a kind that its program keeps busy, through an address that the guest chose for `api.test`."""
    origins = guest.world.origins
    event = b"data: x\n\n"
    endless = OK + b"transfer-encoding: chunked\r\n\r\n"
    switch = (
        b"HTTP/1.1 101 x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    match kind:
        case "events":
            origins.script("api.test", endless, repeat=b"%x\r\n%s\r\n" % (len(event), event))
        case "websocket":
            origins.script("api.test", switch)
        case "download":
            origins.script("cdn.test", OK + b"content-length: 1000000000\r\n\r\n", repeat=bytes(20_000))
        case "sized body" | "chunked body":
            origins.script("api.test", OK + endless[len(OK) :], delay_s=0)
    constants = f"API, SHARED, EVIL = {api!r}, {SHARED!r}, {EVIL!r}\n"
    running = asyncio.ensure_future(guest.python(constants + PRELUDE + _dedent(FLOWS[kind]), guest.network.host_address))
    await origins.wait(lambda seen: began(seen, kind), f"the flow ({kind}) did not begin")
    return running


def _dedent(text: str) -> str:
    return "\n".join(line[4:] for line in text.splitlines())


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.defence("sweep")
@pytest.mark.defence("datagrams-end")
@pytest.mark.defence("updates-hold")
@pytest.mark.section("14.2")
async def test_t87_lock_down_ends_every_kind_of_flow(outside: World, kind: str) -> None:
    guest = await outside.guest(EVERYTHING)
    running = await start(guest, kind)
    applied = await guest.policy("deny-all")
    acknowledged = time.monotonic()
    if kind not in ("datagrams", "dns over tcp"):
        assert applied.closed_flows == 1
    how, _ = (await running).json()
    assert how != "alive"
    if kind not in ("datagrams", "dns over tcp"):
        # The origin is told too, by a reset or the end of its connection; nothing looks complete that is not.
        seen = await outside.origins.wait(
            lambda seen: all(connection["ended"] for connection in seen.raw["tcp"]), "a connection of the origin is still open"
        )
        assert b"\r\n0\r\n\r\n" not in seen.data
    seen = outside.origins.seen()
    assert last_at(seen, kind) <= acknowledged + LATEST_S
    if kind != "dns over tcp":
        record = await guest.audited(kind="revoke")
        assert (record["decision"], record["reason"], record["generation"]) == ("revoked", "deny_all", 2)
    else:
        assert await guest.audited(kind="dns", reason="deny_all", generation=2)


@pytest.mark.parametrize("kind", ["sized body", "chunked body", "events", "websocket"])
@pytest.mark.defence("swept-addresses")
async def test_t87_an_exchange_ends_where_its_address_is_denied(outside: World, kind: str) -> None:
    # The guest dialled another address: the flow itself has nothing that the new policy denies.
    guest = await outside.guest(EVERYTHING)
    running = await start(guest, kind, api=SHARED)
    applied = await guest.policy(EVERYTHING | {"subnets": {"allow": [f"{EVIL}/32"], "deny": [f"{API}/32"]}})
    acknowledged = time.monotonic()
    assert (applied.closed_flows, applied.kept_flows) == (0, 1)
    how, _ = (await running).json()
    assert how != "alive"
    seen = await outside.origins.wait(
        lambda seen: all(connection["ended"] for connection in seen.raw["tcp"]), "a connection of the origin is still open"
    )
    assert last_at(seen, kind) <= acknowledged + LATEST_S
    record = await guest.audited(kind="http", decision="revoked")
    assert (record["reason"], record["dst"]) == ("subnet_deny", f"{API}:443")


@pytest.mark.defence("whole-bodies")
async def test_t87_a_half_sent_body_never_looks_whole(outside: World) -> None:
    # The response has begun already, and the request's chunks go on.
    guest = await outside.guest(EVERYTHING)
    early = OK + b"transfer-encoding: chunked\r\n\r\n5\r\nearly\r\n"
    outside.origins.script("api.test", early)
    program = """
    stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
    stream.sendall(b"POST / HTTP/1.1\\r\\nhost: api.test\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
    stream.sendall(b"5\\r\\nfirst\\r\\n")
    while b"early" not in stream.recv(100000):
        pass
    say("begun") or sys.stdout.flush()
    stream.settimeout(10)
    try:
        stream.recv(1)
    except OSError:
        pass
    """
    running = asyncio.ensure_future(guest.python(program, API))
    await outside.origins.wait(lambda seen: b"first" in seen.data, "the body did not begin")
    await guest.policy("deny-all")
    await running
    seen = await outside.origins.wait(lambda seen: bool(seen.connections[0]["ended"]), "the origin was not told")
    assert b"\r\n0\r\n\r\n" not in seen.data


@pytest.mark.defence("whole-bodies")
async def test_t87_a_client_that_breaks_off_sends_no_whole_body(outside: World) -> None:
    guest = await outside.guest(EVERYTHING)
    program = """
    stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
    stream.sendall(b"POST / HTTP/1.1\\r\\nhost: api.test\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n5\\r\\nfirst\\r\\n")
    # Long enough for the gateway to have sent it on.
    read_all(stream, 1)
    """
    outside.origins.script("api.test", b"")
    await guest.python(program, API)
    last = b"\r\n0\r\n\r\n"
    told = await outside.origins.wait(
        lambda seen: last in seen.data or any(c["ended"] for c in seen.connections), "the origin was not told"
    )
    assert b"first" in told.data
    assert last not in told.data


@pytest.mark.defence("pending-questions")
async def test_t87_a_question_on_its_way_is_answered_by_the_new_policy(outside: World) -> None:
    guest = await outside.guest({"allow": ["slow.test"]})
    outside.origins.zone("slow.test", [{"silent": True}])
    running = asyncio.ensure_future(guest.python("say(ask(sys.argv[1], question('slow.test'), 8))", guest.network.host_address))
    await outside.origins.wait(lambda seen: "slow.test" in seen.questions, "nobody asked")
    await guest.policy("deny-all")
    acknowledged = time.monotonic()
    assert (await running).json()["code"] == 5
    await guest.audited(kind="dns", reason="deny_all")
    assert last_at(outside.origins.seen(), "dns over tcp") <= acknowledged + LATEST_S


@pytest.mark.section("14.2")
async def test_t87_what_the_new_policy_admits_goes_on(outside: World) -> None:
    guest = await outside.guest(EVERYTHING)
    running = await start(guest, "download")
    applied = await guest.policy({"allow": ["cdn.test"]})
    assert (applied.closed_flows, applied.kept_flows) == (0, 1)
    before = time.monotonic()
    # It still brings something after the update.
    first = (await guest.counters()).down_bytes
    while (await guest.counters()).down_bytes < first + 200_000:
        assert time.monotonic() < before + 5
    await guest.policy("deny-all")
    assert (await running).json()[0] != "alive"


@pytest.mark.defence("sweep")
@pytest.mark.section("14.2")
async def test_t88_a_splice_does_not_survive_a_rule(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    running = asyncio.ensure_future(
        guest.python(
            """
            import ssl
            context = ssl._create_unverified_context()
            stream = context.wrap_socket(socket.create_connection((sys.argv[1], 443)), server_hostname="api.test")
            request = b"GET /spliced HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n"
            try:
                while True:
                    stream.sendall(request)
                    if not stream.recv(1000):
                        say("end")
                        break
                    time.sleep(0.005)  # one request after another, not a flood
            except OSError as error:
                say(type(error).__name__)
            """,
            API,
        )
    )
    await outside.origins.wait(lambda seen: seen.data.count(b"/spliced") > 2, "no requests")
    applied = await guest.policy({"allow": {"api.test": [{"response": {"statusCode": 403}}]}})
    acknowledged = time.monotonic()
    assert applied.closed_flows == 1
    # The last two are what OpenSSL makes of a reset while it reads.
    assert (await running).json() in ("ConnectionResetError", "BrokenPipeError", "SSLEOFError", "end")
    seen = outside.origins.seen()
    assert last_at(seen, "raw") <= acknowledged + LATEST_S
    assert (await guest.curl("https://api.test/after")).out.endswith("403")
    assert b"/after" not in outside.origins.seen().data
    assert (await guest.audited(kind="revoke"))["reason"] == "revoked"


@pytest.mark.defence("own-pool")
async def test_t89_guests_share_no_connection(outside: World) -> None:
    rules = [{"transform": [{"headers": {"authorization": f"Bearer {CANARY}-{who}"}}]} for who in "ab"]
    guests = [await outside.guest({"allow": {"api.test": [rule]}}) for rule in rules]
    for _ in range(3):
        for guest in guests:
            assert (await guest.curl("https://api.test/")).out == "ok\n200"
    connections = outside.origins.seen().to("api.test")
    # However many connections they needed, each carried requests of one guest only.
    assert sum(connection["heads"] for connection in connections) == 6
    for connection in connections:
        assert len({who for who in (b"-a\r\n", b"-b\r\n") if CANARY.encode() + who in connection["data"]}) == 1


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.defence("rotation")
async def test_t89_a_rotated_credential_never_goes_out_again(outside: World, idle: bool) -> None:
    policy = {"allow": {"api.test": [STORED]}}
    guest = await outside.guest(policy, credentials={"key": CANARY})
    program = """
    stop = time.monotonic() + 10
    codes = []
    while time.monotonic() < stop and len(codes) < 400 and "rotated" not in codes[-20:].__repr__():
        try:
            with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
                for _ in range(20):
                    stream.sendall(b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n")
                    answer = stream.recv(100000)
                    codes.append(answer[9:12].decode())
                    if not answer:
                        break
        except OSError as error:
            codes.append(type(error).__name__)
    say(codes)
    """
    if idle:
        assert (await guest.curl("https://api.test/")).out == "ok\n200"
    running = asyncio.ensure_future(guest.python(program, API))
    await outside.origins.wait(lambda seen: seen.data.count(CANARY.encode()) > 5, "no requests")
    await guest.policy(policy, credentials={"key": ROTATED})
    at_update = outside.origins.seen().data.count(CANARY.encode())
    await outside.origins.wait(lambda seen: seen.data.count(ROTATED.encode()) > 5, "the new credential is not used")
    assert outside.origins.seen().data.count(CANARY.encode()) == at_update
    await running
    assert outside.origins.seen().data.count(CANARY.encode()) == at_update


@pytest.mark.defence("rotated-exchanges")
async def test_t89_a_request_on_its_way_does_not_carry_a_rotated_credential(outside: World) -> None:
    # It was judged, and waits for a name server; the credential is rotated before anything was sent.
    policy = {"allow": {"slow.test": [STORED]}}
    guest = await outside.guest(policy, credentials={"key": CANARY})
    outside.origins.zone("slow.test", [{"silent": True}])
    running = asyncio.ensure_future(guest.curl("--max-time", "8", "--resolve", f"slow.test:443:{SHARED}", "https://slow.test/"))
    await outside.origins.wait(lambda seen: "slow.test" in seen.questions, "nobody asked")
    await guest.policy(policy, credentials={"key": ROTATED})
    outside.origins.answer("slow.test", SHARED)
    ran = await running
    assert ran.code != 0 or ran.out.splitlines()[-1] != "200"
    record = await guest.audited(kind="http", name="slow.test")
    assert (record["decision"], record["reason"]) == ("revoked", "rule_changed")
    assert CANARY.encode() not in outside.origins.seen().data


@pytest.mark.defence("rotation")
async def test_t89_a_removed_credential_fails_closed(outside: World) -> None:
    policy = {"allow": {"api.test": [STORED]}}
    guest = await outside.guest(policy, credentials={"key": CANARY})
    assert (await guest.curl("https://api.test/")).out == "ok\n200"
    await guest.policy(policy)
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.out.endswith("503")
    assert "x-hutch-reason: credential_missing" in ran.out
    assert len(outside.origins.seen().to("api.test")[0]["data"].split(b"\r\n\r\n")) == 2
    assert (await guest.audited(kind="http", reason="credential_missing"))["decision"] == "deny"


@pytest.mark.defence("stamped-generations")
async def test_t90_no_generation_admits_both(outside: World) -> None:
    block = {"response": {"statusCode": 403}}
    mark = [{"transform": [{"headers": {"x-policy": "first"}}]}, {"transform": [{"headers": {"x-policy": "second"}}]}]
    policies = [{"allow": {"api.test": [mark[0]], "cdn.test": [block]}}, {"allow": {"api.test": [block], "cdn.test": [mark[1]]}}]
    guest = await outside.guest(policies[0])
    program = """
    import threading, time
    counts = [0, 0]
    def ask_all(index, address, name):
        stream, codes = None, []
        while len(codes) < 500:
            try:
                if stream is None:
                    stream = tls(address, name, alpn=["http/1.1"])
                stream.sendall(b"GET /%d HTTP/1.1\\r\\nhost: %s\\r\\n\\r\\n" % (len(codes), name.encode()))
                answer = stream.recv(100000)
                if not answer:
                    raise ConnectionAbortedError
                codes.append(answer[9:12].decode())
                # Not faster than policies change.
                time.sleep(0.002)
            except OSError:
                stream = None
        counts[index] = {code: codes.count(code) for code in set(codes)}
    threads = [threading.Thread(target=ask_all, args=(index, *sys.argv[1 + index * 2 : 3 + index * 2])) for index in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    say(counts)
    """
    running = asyncio.ensure_future(guest.python(program, API, "api.test", SHARED, "cdn.test", timeout_s=60))
    await outside.origins.wait(lambda seen: bool(seen.data), "no requests")
    flips, before = 0, 0
    while not running.done():
        # Some requests under each of them.
        while (
            not running.done()
            and (now := sum(tally.requests for tally in (await guest.counters()).tallies.values())) < before + 8
        ):
            await asyncio.sleep(0.001)
        flips, before = flips + 1, now
        applied = await guest.policy(policies[flips % 2])
        assert applied.generation == guest.generation
    counts = (await running).json()
    assert all(set(codes) <= {"200", "403"} for codes in counts)
    assert sum(sum(codes.values()) for codes in counts) == 1000
    assert flips >= 20
    seen = outside.origins.seen()
    for name, mark_of in (("api.test", b"x-policy: first"), ("cdn.test", b"x-policy: second")):
        data = b"".join(connection["data"] for connection in seen.to(name))
        assert data.count(mark_of) == data.count(b"GET /") > 0
    await guest.audited(kind="policy", generation=guest.generation)
    records = await guest.audit()
    allowed: dict[int, set[str]] = {}
    for record in records:
        if record["kind"] == "http" and record["decision"] == "inject":
            allowed.setdefault(record["generation"], set()).add(record["name"])
    assert allowed
    assert all(len(names) == 1 for names in allowed.values())
    generations = [record["generation"] for record in records if record["kind"] == "policy"]
    assert generations == sorted(generations)


@pytest.mark.defence("ordered-updates", "update-order")
async def test_t90_updates_of_one_sandbox_keep_their_order(outside: World) -> None:
    guest = await outside.guest("deny-all")
    large = {"allow": [f"n{number}.example.com" for number in range(900)]}
    for _ in range(10):
        # A policy that takes long to compile, and right behind it one that does not.
        slow = asyncio.ensure_future(guest.policy(large))
        await asyncio.sleep(0)
        fast = asyncio.ensure_future(guest.policy("deny-all"))
        await asyncio.gather(slow, fast)
        ran = await guest.python("say(ask(sys.argv[1], question('n1.example.com')))", guest.network.host_address)
        assert ran.json()["code"] == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"subnets": {"allow": [f"{EVIL}/32", "198.51.100.7/99", "198.51.100.8/32"]}},
        {"allow": {"evil.test": [{"transform": [{"headers": {"a": "b\r\nc: d"}}]}]}},
        {"allow": ["evil.test"], "unknown": True},
    ],
)
@pytest.mark.defence("known-members")
@pytest.mark.section("14.2")
async def test_t91_a_rejected_update_changes_nothing(outside: World, bad: Any) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE]}})
    with pytest.raises(HutchError) as refused:
        await guest.policy(bad)
    assert CANARY not in str(refused.value)
    assert (await guest.curl("https://api.test/")).out == "ok\n200"
    ran = await guest.curl("--resolve", f"evil.test:443:{EVIL}", "https://evil.test/")
    assert ran.code == 35
    assert not outside.origins.seen().to("evil.test")
    assert (await guest.audited(kind="tls", name="evil.test"))["generation"] == 1


@pytest.mark.parametrize("empty", [{"allow": {}}, {"allow": []}, {}, {"subnets": {}}, {"subnets": {"deny": ["192.0.2.0/24"]}}])
@pytest.mark.defence("empty-is-closed")
@pytest.mark.section("14.2")
async def test_t92_no_entries_allow_nothing(outside: World, empty: Any) -> None:
    guest = await outside.guest({"allow": {"api.test": []}})
    assert (await guest.curl("https://api.test/")).out == "ok\n200"
    await guest.policy(empty)
    assert (await guest.curl("https://api.test/")).code == 6
    assert (await guest.curl("--resolve", f"api.test:443:{API}", "https://api.test/")).code in (7, 35)
    ran = await guest.python("say(outcome(sys.argv[1], 8080))", EVIL)
    assert ran.json()["end"] == "ECONNRESET"
    assert len(outside.origins.seen().connections) == 1
    assert await guest.audited(decision="deny", reason="deny_all")


@pytest.mark.defence("backdated")
async def test_t93_certificates_hold_for_a_guest_whose_clock_is_behind(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE]}})
    program = """
    import ssl
    with tls(sys.argv[1], "api.test") as stream:
        leaf = stream.getpeercert()
    now = time.time()
    say([now - ssl.cert_time_to_seconds(leaf["notBefore"]), ssl.cert_time_to_seconds(leaf["notAfter"]) - now])
    """
    before_s, after_s = (await guest.python(program, API)).json()
    assert before_s >= 3595
    assert 23 * 3600 <= after_s <= 24 * 3600


# -- restarts --------------------------------------------------------------------------------------


def chained(records: list[str]) -> bool:
    """Whether each record has the hash of the one before it, and none is missing."""
    previous = "0" * 64
    for number, record in enumerate(records, 1):
        read = json.loads(record)
        if (read["prev"], read["seq"]) != (previous, number):
            return False
        previous = hashlib.sha256(record.encode()).hexdigest()
    return True


@pytest.mark.defence("policies-again")
async def test_a_killed_gateway_is_back_with_everything_in_a_second(outside: World) -> None:
    policy = {"allow": {"api.test": [STORED]}}
    guest, other = await outside.guest(policy, credentials={"key": CANARY}), await outside.guest("deny-all")
    assert (await guest.curl("https://api.test/before")).out == "ok\n200"
    await guest.audited(kind="http", path="/before")
    pid = outside.gateway_pid
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while outside.gateway.restarts == 0:
        assert time.monotonic() < killed + 1.0, "nobody noticed"
        await asyncio.sleep(0.005)
    # Answered when the new one knows everybody again.
    await other.policy("deny-all")
    assert time.monotonic() < killed + 1.0, "the gateway took more than a second"
    assert outside.gateway_pid != pid
    assert (await guest.curl("https://api.test/after")).out == "ok\n200"
    assert (await guest.curl("--resolve", f"evil.test:443:{EVIL}", "https://evil.test/")).code == 35
    assert outside.origins.seen().data.count(b"Bearer " + CANARY.encode()) == 2
    assert not outside.origins.seen().to("evil.test")
    await guest.audited(kind="http", path="/after")
    records, _ = await outside.audit.read(guest.sandbox_id, 0, 1000)
    assert chained(records)
    assert {json.loads(record)["lifecycle"] for record in records} == {"session_sand_0"}


@pytest.mark.parametrize("at", ["sandbox.add", "sandbox.policy"])
async def test_a_sandbox_that_ends_while_a_gateway_starts_again_leaves_the_others_theirs(
    outside: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    ending, staying = await outside.guest({"allow": ["api.test"]}), await outside.guest({"allow": ["api.test"]})
    call, ended = outside.gateway._call, False

    async def meanwhile(method: str, body: dict[str, Any], *more: Any) -> Any:
        nonlocal ended
        if method == at and body["address"] == ending.network.guest_address and not ended:
            ended = True
            await outside.gateway.remove(ending.network)
        return await call(method, body, *more)

    monkeypatch.setattr(outside.gateway, "_call", meanwhile)
    os.kill(outside.gateway_pid, signal.SIGKILL)
    while outside.gateway.restarts == 0:
        await asyncio.sleep(0.005)
    await staying.policy({"allow": ["api.test"]})
    assert ended
    assert outside.gateway.restarts == 1
    assert (await staying.curl("https://api.test/after")).out == "ok\n200"
    listed = await call("sandbox.list", {})
    assert [each["address"] for each in listed["sandboxes"]] == [staying.network.guest_address]


async def test_a_gateway_that_could_not_be_told_everything_is_replaced(outside: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    call, refused = outside.gateway._call, False

    async def refusing(method: str, body: dict[str, Any], *more: Any) -> Any:
        nonlocal refused
        if method == "sandbox.policy" and not refused:
            refused = True
            raise InternalError("gateway_refused", "It does not want to.")
        return await call(method, body, *more)

    monkeypatch.setattr(outside.gateway, "_call", refusing)
    os.kill(outside.gateway_pid, signal.SIGKILL)
    while outside.gateway.restarts < 2:
        await asyncio.sleep(0.005)
    await guest.policy({"allow": ["api.test"]})
    assert refused
    assert (await guest.curl("https://api.test/after")).out == "ok\n200"


@pytest.mark.parametrize("step", ["_kill", "hand_to"])
async def test_a_gateway_that_could_not_be_replaced_once_is_replaced_later(
    outside: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    owner = outside.gateway if step == "_kill" else outside.networks
    real, failed = getattr(owner, step), False

    def failing(*arguments: Any) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError(24, "Too many open files")
        real(*arguments)

    monkeypatch.setattr(owner, step, failing)
    os.kill(outside.gateway_pid, signal.SIGKILL)
    while outside.gateway.restarts < 2:
        await asyncio.sleep(0.005)
    await guest.policy({"allow": ["api.test"]})
    assert (await guest.curl("https://api.test/after")).out == "ok\n200"
    own = os.fsencode(outside.directory / "gateway" / "root")
    alive = [entry for entry in Path("/proc").glob("[0-9]*") if own in (entry / "cmdline").read_bytes().split(b"\0")]
    assert [int(entry.name) for entry in alive] == [outside.gateway_pid]


async def test_nothing_passes_while_the_gateway_is_away(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": [f"{EVIL}/32"]}})
    outside.origins.script(f"{EVIL}:8080", echo=True)
    program = """
    ends = []
    stop = time.monotonic() + 1.5
    while time.monotonic() < stop:
        ends.append(outcome(sys.argv[1], 8080, b"first", 1.0)["end"])
        ends.append(outcome(sys.argv[2], 8080, b"never", 1.0)["end"])
    say(sorted(set(ends)))
    """
    running = asyncio.ensure_future(guest.python(program, EVIL, SHARED))
    await outside.origins.wait(lambda seen: b"first" in seen.data, "no connection")
    os.kill(outside.gateway_pid, signal.SIGKILL)
    await running
    assert b"never" not in outside.origins.seen().data


async def test_a_host_that_starts_again_finds_its_gateway(outside: World) -> None:
    policy = {"allow": {"api.test": [STORED], "cdn.test": []}}
    guest = await outside.guest(policy, credentials={"key": CANARY})
    running = await start(guest, "download")
    pid = outside.gateway_pid
    await outside.gateway.leave()
    # Sandboxes go on without a host.
    assert (await guest.curl("https://api.test/alone")).out == "ok\n200"
    await outside.start_host_again()
    assert outside.gateway_pid == pid
    assert (await guest.curl("https://api.test/again")).out == "ok\n200"
    assert not running.done()
    await guest.audited(kind="http", path="/alone")
    await guest.audited(kind="http", path="/again")
    assert (await guest.policy("deny-all")).closed_flows >= 1
    assert (await running).json()[0] != "alive"
    records, _ = await outside.audit.read(guest.sandbox_id, 0, 1000)
    assert chained(records)


async def test_the_audit_goes_on_when_a_sandbox_starts_again(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    # Records of one session are still on their way when the next one begins.
    outside.stores_audit.clear()
    for number in range(3):
        await guest.curl("--resolve", f"evil.test:443:{EVIL}", "https://evil.test/")
        await guest.start_again(f"session_{number}", {"allow": ["api.test"]})
    await guest.curl("--resolve", f"evil.test:443:{EVIL}", "https://evil.test/")
    outside.stores_audit.set()
    await guest.audited(kind="tls", lifecycle="session_2")
    records, _ = await outside.audit.read(guest.sandbox_id, 0, 1000)
    assert chained(records)
    assert len([record for record in map(json.loads, records) if record["kind"] == "tls"]) == 4


@pytest.mark.defence("datagrams-end")
async def test_a_sandbox_that_is_gone_leaves_no_flow_to_the_next(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": [f"{EVIL}/32"]}})
    running = await start(guest, "datagrams")
    await outside.gateway.remove(guest.network)
    removed = time.monotonic()
    # Nobody answers any more, as the address is nobody's.
    await guest.audited(kind="revoke")
    assert last_at(outside.origins.seen(), "datagrams") <= removed + LATEST_S
    running.cancel()
    assert NAME_SERVER not in {datagram["peer"].partition(":")[0] for datagram in outside.origins.seen().raw["udp"]}
