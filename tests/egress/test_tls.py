"""TLS of guests and of servers: whose name counts, what is refused, and what the gateway vouches for (`egress.md` T37-T50)."""

from __future__ import annotations

import base64
import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hutch.host import authority
from tests.egress.world import API, CANARY, EVIL, MUTUAL_PORT, OLD_PORT, SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("sealed")]

INJECT = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
MINTED_AT_ONCE = 100
MINTED_PER_S = 20


async def reasons(guest: Guest, count: int, **wanted: Any) -> list[str]:
    """The reasons of the first refusals, once there are so many."""
    while True:
        await guest.audited(decision="deny", **wanted)
        found = await guest.audit(decision="deny", **wanted)
        if len(found) >= count:
            assert {record["generation"] for record in found} == {guest.generation}
            return [record["reason"] for record in found]


# -- whose name counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.defence("host-is-name")
@pytest.mark.section("14.2")
async def test_t37_fronting_is_misdirected(outside: World, version: str) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT], "other.test": [INJECT]}})
    for front in ("evil.test", "other.test", "cdn.test.evil.test", "cdn.test:8443"):
        ran = await guest.curl(version, "-H", f"Host: {front}", "https://cdn.test/")
        assert ran.out.endswith("\n421"), ran
        assert json.loads(ran.out.rpartition("\n")[0])["error"]["code"] == "name_mismatch"
    assert outside.origins.seen().is_silent
    records = await guest.audit(kind="http")
    assert [(record["decision"], record["reason"], record["name"]) for record in records] == [
        ("deny", "name_mismatch", "cdn.test")
    ] * 4


@pytest.mark.defence("host-is-name")
async def test_t37_only_what_is_inspected_can_be_seen(outside: World) -> None:
    """Within a spliced connection nobody sees the host: the documented limit of names without rules."""
    guest = await outside.guest({"allow": ["cdn.test"]})
    ran = await guest.curl("-H", "Host: evil.test", "https://cdn.test/")
    assert ran.out == "ok\n200", ran
    await guest.policy({"allow": ["cdn.test"], "defaults": {"inspect": "all"}})
    ran = await guest.curl("-H", "Host: evil.test", "https://cdn.test/")
    assert ran.out.endswith("\n421"), ran
    assert outside.origins.seen().data.count(b"evil.test") == 1


# Server names as bytes, and why they are refused.
NAMES: dict[str, tuple[str, str]] = {
    "none": ("drop=(0,)", "no_name"),
    "no list": ("drop=(0,), add=((0, b''),)", "protocol_violation"),
    "empty list": ("drop=(0,), add=((0, server_name()),)", "protocol_violation"),
    "empty": ("drop=(0,), add=((0, server_name(b'')),)", "protocol_violation"),
    "two": ("drop=(0,), add=((0, server_name(b'cdn.test', b'evil.test')),)", "protocol_violation"),
    "two extensions": ("add=((0, server_name(b'evil.test')),)", "protocol_violation"),
    "same twice": ("add=((0, server_name(b'cdn.test')),)", "protocol_violation"),
    "other kind": ("drop=(0,), add=((0, server_name(b'cdn.test', kind=1)),)", "protocol_violation"),
    "left over": ("drop=(0,), add=((0, server_name(b'cdn.test') + b'x'),)", "protocol_violation"),
    "address": ("drop=(0,), add=((0, server_name(b'198.51.100.7')),)", "no_name"),
    "NUL": ("drop=(0,), add=((0, server_name(b'cdn.test\\0.evil.test')),)", "name_invalid"),
    "blank": ("drop=(0,), add=((0, server_name(b'cdn.test ')),)", "name_invalid"),
    "underscore": ("drop=(0,), add=((0, server_name(b'a_b.test')),)", "name_invalid"),
    "hyphen": ("drop=(0,), add=((0, server_name(b'-cdn.test')),)", "name_invalid"),
    "empty label": ("drop=(0,), add=((0, server_name(b'cdn..test')),)", "name_invalid"),
    "two dots": ("drop=(0,), add=((0, server_name(b'cdn.test..')),)", "name_invalid"),
    "not ASCII": ("drop=(0,), add=((0, server_name('ćdn.test'.encode())),)", "name_invalid"),
    "number": ("drop=(0,), add=((0, server_name(b'2130706433')),)", "name_invalid"),
    "port": ("drop=(0,), add=((0, server_name(b'cdn.test:443')),)", "name_invalid"),
    "long label": ("drop=(0,), add=((0, server_name(b'a' * 64 + b'.test')),)", "name_invalid"),
    "long": ("drop=(0,), add=((0, server_name(b'a.' * 125 + b'test')),)", "name_invalid"),
    "one label": ("drop=(0,), add=((0, server_name(b'localhost')),)", "name_special"),
    "another": ("drop=(0,), add=((0, server_name(b'evil.test')),)", "domain_deny"),
    "below": ("drop=(0,), add=((0, server_name(b'x.cdn.test')),)", "domain_deny"),
    # T40: versions.
    "TLS 1.1": ("drop=(43,), legacy=0x0302", "protocol_violation"),
    "TLS 1.0": ("drop=(43,), legacy=0x0301", "protocol_violation"),
    "SSL 3": ("drop=(43,), legacy=0x0300", "protocol_violation"),
    "TLS 1.1 in the extension": ("drop=(43,), add=((43, b'\\x02\\x03\\x02'),)", "protocol_violation"),
    "major version": ("legacy=0x0403", "protocol_violation"),
    "record's major version": ("outer=0x0201", "protocol_violation"),
}


@pytest.mark.parametrize("rules", [[], [INJECT]], ids=["splice", "intercept"])
@pytest.mark.defence("name-grammar")
@pytest.mark.defence("strict-hello")
async def test_t38_a_server_name_is_a_name_or_refused(outside: World, rules: list[Any]) -> None:
    guest = await outside.guest({"allow": {"cdn.test": rules}})
    program = """
    base = hello("cdn.test")
    say([outcome(sys.argv[1], 443, eval(f"rebuilt(base, {change})"))["end"] for change in json.loads(sys.argv[2])])
    """
    ran = await guest.python(program, SHARED, json.dumps([change for change, _ in NAMES.values()]))
    assert dict(zip(NAMES, ran.json(), strict=True)) == dict.fromkeys(NAMES, "ECONNRESET")
    found = await reasons(guest, len(NAMES))
    assert dict(zip(NAMES, found, strict=True)) == {name: reason for name, (_, reason) in NAMES.items()}
    assert outside.origins.seen().is_silent
    assert outside.origins.seen().questions == []


@pytest.mark.parametrize("rules", [[], [INJECT]], ids=["splice", "intercept"])
async def test_t38_a_name_has_other_spellings(outside: World, rules: list[Any]) -> None:
    guest = await outside.guest({"allow": {"cdn.test": rules}})
    program = """
    base = hello("cdn.test")
    for name in b"CDN.Test", b"cdn.test.", b"cdn.test":
        answer = outcome(sys.argv[1], 443, rebuilt(base, drop=(0,), add=((0, server_name(name)),)))
        print(answer["data"][:1].encode("latin-1").hex() or answer["end"])
    """
    # 0x16: the server has greeted.
    assert (await guest.python(program, SHARED)).out.split() == ["16", "16", "16"]


@pytest.mark.parametrize("rules", [[], [INJECT]], ids=["splice", "intercept"])
@pytest.mark.defence("whole-hello")
async def test_t39_how_a_hello_is_cut_changes_nothing(outside: World, rules: list[Any]) -> None:
    guest = await outside.guest({"allow": {"cdn.test": rules}})
    outside.origins.script("cdn.test", OK, close=True)
    program = """
    def go(name, cut):
        context = ssl.create_default_context(cafile=BUNDLE)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname=name)
        stream = socket.create_connection((sys.argv[1], 443), 5)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = True
        def step(action):
            nonlocal first
            while True:
                try:
                    done = action()
                except ssl.SSLWantReadError:
                    done = None
                waiting = outgoing.read()
                if waiting:
                    for piece in cut(waiting) if first else [waiting]:
                        stream.sendall(piece)
                    first = False
                if done is not None:
                    return done
                received = stream.recv(65536)
                if not received:
                    raise ConnectionResetError
                incoming.write(received)
        step(lambda: session.do_handshake() or True)
        step(lambda: session.write(f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode()))
        return step(lambda: session.read(15)).decode()

    whole = hello("cdn.test")
    at = whole.index(b"cdn.test") - 5
    def split(size):
        return lambda record: [records(record[5:], size)]
    def once(where):
        def cut(record):
            message = record[5:]
            return [records(message[:where], 16384), records(message[where:], 16384)]
        return cut
    cuts = {
        "record of 1": once(1), "at 50": once(50), "in the name": once(at + 3), "in the header": once(3),
        "records of 1": split(1), "records of 7": split(7),
        "segments of 1": lambda record: [record[i : i + 1] for i in range(len(record))],
    }
    out = {}
    for name in "cdn.test", "evil.test":
        for key, cut in cuts.items():
            try:
                out[f"{name} {key}"] = go(name, cut)
            except ConnectionResetError:
                out[f"{name} {key}"] = "reset"
    base = rebuilt(whole, drop=(21,), add=((21, bytes(1300)),))
    out["padding"] = outcome(sys.argv[1], 443, base)["data"][:1]
    big = rebuilt(whole, drop=(21,), add=((21, bytes(17000)),))
    out["too much"] = outcome(sys.argv[1], 443, big)["end"]
    evil = hello("evil.test")
    out["two messages"] = outcome(sys.argv[1], 443, records(whole[5:] + evil[5:], 16384))["end"]
    out["another type between"] = outcome(sys.argv[1], 443, whole[:60] + b"\\x15\\3\\1\\0\\2\\1\\0" + whole[60:])["end"]
    say(out)
    """
    ran = await guest.python("import ssl\n" + "\n".join(line[4:] for line in program.splitlines()), SHARED)
    out = ran.json()
    assert {value for key, value in out.items() if key.startswith("cdn.test ")} == {"HTTP/1.1 200 OK"}, out
    assert {value for key, value in out.items() if key.startswith("evil.test ")} == {"reset"}, out
    assert out["padding"] == "\x16"
    assert out["too much"] == out["two messages"] == "ECONNRESET"
    assert out["another type between"] == "ECONNRESET"
    assert not outside.origins.seen().to("evil.test")
    found = await reasons(guest, 10)
    assert (found[:7], set(found[7:])) == (["domain_deny"] * 7, {"protocol_violation"})


@pytest.mark.defence("strict-hello")
@pytest.mark.defence("plaintext-http")
async def test_t40_what_is_not_tls_is_no_tls(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": []}})
    ssl2 = "bytes.fromhex('802e0100020015000000100100800200800300800400800500800600400700c0') + bytes(16)"
    first = {
        ssl2: "protocol_violation",
        "b'x' + hello('cdn.test')": "no_name",
        "b'\\x15\\3\\1\\0\\2\\1\\0' + hello('cdn.test')": "no_name",
        "b'\\0' * 8 + hello('cdn.test')": "no_name",
        "b'\\x16\\3\\1\\0\\0' + hello('cdn.test')": "protocol_violation",
        "b'GET / HTTP/1.1\\r\\nHost: cdn.test\\r\\n\\r\\n'": "plaintext_http",
    }
    ran = await guest.python(f"say([outcome(sys.argv[1], 443, data)['end'] for data in ({', '.join(first)})])", SHARED)
    assert ran.json() == ["ECONNRESET"] * len(first)
    assert await reasons(guest, len(first)) == list(first.values())
    assert outside.origins.seen().is_silent
    for version in ("-tls1", "-tls1_1"):
        ran = await guest.run(
            "openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", f"{SHARED}:443", "-servername", "cdn.test"
        )
        assert ran.code != 0
    assert outside.origins.seen().is_silent


@pytest.mark.defence("domain-patterns")
async def test_t41_the_outer_name_is_judged(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT]}})
    program = """
    # The shape of a real one: outer, HKDF-SHA256, AES-128-GCM, an id, a key and a payload.
    ech = bytes.fromhex("0000010001ab0020") + bytes(32) + bytes.fromhex("0090") + bytes(144)
    for name in "cdn.test", "evil.test":
        answer = outcome(sys.argv[1], 443, rebuilt(hello(name), add=((0xfe0d, ech),)))
        # No acceptance is signalled by anything that the server greets with.
        print(answer["end"], answer["data"][:1].encode("latin-1").hex(), "fe0d" in answer["data"].encode("latin-1").hex())
    """
    ran = await guest.python(program, SHARED)
    assert ran.out.splitlines() == ["data 16 False", "ECONNRESET  False"]
    assert await guest.audited(kind="tls", decision="deny", name="evil.test", reason="domain_deny")
    assert outside.origins.seen().is_silent


@pytest.mark.defence("no-tickets")
async def test_t42_no_session_outlives_its_connection(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT], "other.test": [INJECT]}})
    program = """
    import ssl
    for newest in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
        context = ssl.create_default_context(cafile=BUNDLE)
        context.maximum_version = newest
        session = None
        for name in "cdn.test", "cdn.test", "other.test":
            stream = context.wrap_socket(socket.create_connection((sys.argv[1], 443), 5), server_hostname=name, session=session)
            wire = Wire(stream)
            wire.send(request(host=name))
            print(wire.answer()["status"], stream.session_reused, stream.session is not None and stream.session.has_ticket)
            session = stream.session or session
            stream.close()
    """
    ran = await guest.python(program, SHARED)
    assert ran.out.splitlines() == ["200 False False"] * 6, ran
    versions = [record["tlsVersion"] for record in await guest.audit(kind="tls", decision="allow")]
    assert versions == ["1.2"] * 3 + ["1.3"] * 3


# -- what is spoken inside ---------------------------------------------------------------------------------------------


@pytest.mark.defence("alpn")
async def test_t43_what_is_negotiated_is_spoken(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    program = """
    out = []
    for alpn in None, ["http/1.1"], ["h2", "http/1.1"], ["x", "http/1.1"], ["acme-tls/1"], ["h3"], ["http/1.0", "x"]:
        try:
            with tls(sys.argv[1], "api.test", alpn=alpn) as stream:
                out.append(stream.selected_alpn_protocol())
        except OSError:
            out.append("refused")
    for alpn, data in (("h2", request()), ("http/1.1", b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\4\\0\\0\\0\\0\\0")):
        with tls(sys.argv[1], "api.test", alpn=[alpn]) as stream:
            stream.sendall(data)
            out.append(read_all(stream)[:12].decode("latin-1"))
    say(out)
    """
    out = (await guest.python(program, API)).json()
    assert out[:7] == [None, "http/1.1", "h2", "http/1.1", "refused", "refused", "refused"]
    assert "HTTP/1.1 400" not in out[7]
    assert out[8] == "HTTP/1.1 400"
    assert await reasons(guest, 5) == ["protocol_violation"] * 5
    assert outside.origins.seen().is_silent


GARBAGE = {
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "postgres": b"\0\0\0\x08\x04\xd2\x16\x2f",
    "tls in tls": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    "mysql": b"\x85\xa6\xff\x20\0\0\0\x01",
    "smtp": b"EHLO x\r\n",
    "socks": b"\x05\x01\0",
    "json lines": b'{"jsonrpc": "2.0"}\n',
}


@pytest.mark.defence("interception")
@pytest.mark.section("14.2")
async def test_t44_a_name_with_rules_speaks_http(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [INJECT]}})
    program = """
    for data in json.loads(sys.argv[2]):
        with tls(sys.argv[1], "api.test") as stream:
            stream.sendall(data.encode("latin-1"))
            print(read_all(stream)[:12].decode("latin-1"))
    """
    sent = json.dumps([data.decode("latin-1") for data in GARBAGE.values()])
    assert (await guest.python(program, API, sent)).out.splitlines() == ["HTTP/1.1 400"] * len(GARBAGE)
    assert await reasons(guest, len(GARBAGE), kind="http") == ["protocol_violation"] * len(GARBAGE)
    assert outside.origins.seen().is_silent


# -- servers -----------------------------------------------------------------------------------------------------------


BAD_SERVERS = ["selfsigned.test", "wrongname.test", "expired.test", f"cdn.test:{OLD_PORT}"]


@pytest.mark.parametrize("server", BAD_SERVERS, ids=["self-signed", "other name", "expired", "TLS 1.1"])
@pytest.mark.defence("server-certificates")
async def test_t45_a_server_that_cannot_prove_its_name_gets_nothing(outside: World, server: str) -> None:
    name = server.partition(":")[0]
    guest = await outside.guest({"allow": {name: [INJECT]}, "defaults": {"ports": [443, OLD_PORT]}})
    for version in ("--http1.1", "--http2"):
        ran = await guest.curl(version, "-D", "-", f"https://{server}/")
        assert ran.out.endswith("\n502"), ran
        assert "x-hutch-reason: upstream_tls" in ran.out
        # Nothing of the certificate, of the address or of the library's words.
        assert all(word not in ran.out.lower() for word in ("198.51", "expired", "issuer", "rustls"))
    assert outside.origins.seen().connections == []
    records = await guest.audit(least=2, kind="http")
    assert [(record["status"], record["error"]) for record in records] == [(502, "upstream_tls")] * 2


@pytest.mark.defence("interception")
async def test_t46_a_server_that_wants_a_certificate_is_not_for_rules(outside: World) -> None:
    ports = {"ports": [MUTUAL_PORT]}
    guest = await outside.guest({"allow": {"cdn.test": [INJECT]}, "defaults": ports})
    url = f"https://cdn.test:{MUTUAL_PORT}/"
    certificate = str(outside.origins.directory / "certificates" / "api.test.pem")
    ran = await guest.curl("--cert", certificate, url)
    assert ran.out.endswith("\n502"), ran
    assert outside.origins.seen().data == b""
    # Without rules the handshake is the guest's own.
    await guest.policy({"allow": ["cdn.test"], "defaults": ports})
    ran = await guest.curl("--cert", certificate, url)
    assert ran.out == "ok\n200", ran


# -- what the gateway vouches for --------------------------------------------------------------------------------------


@pytest.mark.defence("mint-rate")
async def test_t47_certificates_are_made_at_a_rate(outside: World) -> None:
    first = await outside.guest({"allow": {"*.wild.test": [INJECT]}})
    second = await outside.guest({"allow": {"*.wild.test": [INJECT]}})
    program = """
    import collections
    began = time.monotonic()
    base = hello("api.test")
    streams = []
    for number in range(int(sys.argv[3])):
        streams.append(socket.create_connection((sys.argv[1], 443), 5))
        name = sys.argv[2].format(number).encode()
        streams[-1].sendall(rebuilt(base, drop=(0,), add=((0, server_name(name)),)))
    ends = collections.Counter()
    for stream in streams:
        try:
            ends[stream.recv(1).hex() or "closed"] += 1
        except OSError as error:
            ends[type(error).__name__] += 1
    say([ends, time.monotonic() - began])
    """
    # Refused names cost nothing of it.
    ends, _ = (await first.python(program, SHARED, "x{}.evil.test", "150")).json()
    assert ends == {"ConnectionResetError": 150}
    ends, took = (await first.python(program, SHARED, "x{}.wild.test", "400")).json()
    assert MINTED_AT_ONCE - 1 <= ends["16"] <= MINTED_AT_ONCE + MINTED_PER_S * (took + 1), (ends, took)
    assert ends["ConnectionResetError"] > 0
    assert ends["16"] + ends["ConnectionResetError"] == 400
    await first.audited(kind="tls", decision="deny", reason="limit")
    ends, _ = (await second.python(program, SHARED, "y{}.wild.test", "20")).json()
    assert ends == {"16": 20}, "another sandbox has its own"
    assert outside.origins.seen().is_silent


async def leaf(guest: Guest, name: str = "cdn.test") -> x509.Certificate:
    program = """
    import ssl
    with tls(sys.argv[1], sys.argv[2]) as stream:
        print(ssl.DER_cert_to_PEM_cert(stream.getpeercert(True)))
    """
    ran = await guest.python(program, SHARED, name)
    return x509.load_pem_x509_certificate(ran.out.encode())


@pytest.mark.defence("own-authority")
@pytest.mark.section("14.2")
async def test_t48_t49_each_sandbox_trusts_an_authority_of_its_own(outside: World) -> None:
    policy = {"allow": {"cdn.test": [INJECT]}}
    first, second = await outside.guest(policy), await outside.guest(policy)
    leaves = [await leaf(first), await leaf(second)]
    assert leaves[0].issuer != leaves[1].issuer
    for guest, own, other in ((first, leaves[0], leaves[1]), (second, leaves[1], leaves[0])):
        for certificate, code in ((own, 0), (other, 2)):
            file = guest.directory / "leaf.pem"
            file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            ran = await guest.run("openssl", "verify", "-x509_strict", "-CAfile", str(guest.bundle), str(file))
            assert ran.code == code, ran
            # Whoever has only this host's trust has none in either.
            bundle = next(path for path in authority.HOST_BUNDLES if path.exists())
            ran = await guest.run("openssl", "verify", "-no-CApath", "-CAfile", str(bundle), str(file))
            assert ran.code == 2, ran
    # The keys are nowhere where a guest or a copy of the disk would have them.
    keys = [authority.derive(outside.secret, f"machine-{number}").key for number in range(2)]
    for path in outside.directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PRIVATE KEY" not in data, path
            assert all(key not in data and base64.b64encode(key) not in data for key in keys), path


@pytest.mark.defence("leaf-profile")
async def test_t50_the_profile_of_the_certificates(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT]}})
    certificate = await leaf(guest)
    root = x509.load_pem_x509_certificate(authority.derive(outside.secret, "machine-0").certificate_pem)
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, True)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate.verify_directly_issued_by(root)
    extensions = certificate.extensions
    assert extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["cdn.test"]
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == identifier.digest
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not any(isinstance(extension.value, x509.BasicConstraints) and extension.value.ca for extension in extensions)
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - timedelta(minutes=55)
    assert now + timedelta(hours=12) < certificate.not_valid_after_utc < now + timedelta(days=397)
    assert 64 <= certificate.serial_number.bit_length() <= 159
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.defence("leaf-profile")
async def test_t50_strict_clients_are_content(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT]}})
    # What Python 3.13 has by default.
    program = """
    import ssl
    context = ssl.create_default_context(cafile=BUNDLE)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    with context.wrap_socket(socket.create_connection((sys.argv[1], 443)), server_hostname="cdn.test") as stream:
        print(stream.version())
    """
    assert hasattr(ssl, "VERIFY_X509_STRICT")
    assert (await guest.python(program, SHARED)).out == "TLSv1.3\n"
    arguments = ("-x509_strict", "-verify_return_error", "-verify_hostname", "cdn.test", "-CAfile", str(guest.bundle))
    for version in ("-tls1_2", "-tls1_3"):
        sent = b"GET / HTTP/1.1\r\nHost: cdn.test\r\nConnection: close\r\n\r\n"
        connect = ("openssl", "s_client", "-quiet", version, "-connect", f"{SHARED}:443", "-servername", "cdn.test")
        ran = await guest.run(*connect, *arguments, stdin=sent)
        assert ran.out.startswith("HTTP/1.1 200 OK\r\n"), ran
    assert (await guest.run("node", "-e", "fetch('https://cdn.test').then(r => r.text()).then(console.log)")).out == "ok\n"
    assert (await guest.curl("--tlsv1.3", "https://cdn.test/")).out == "ok\n200"
    assert (await guest.curl("--tls-max", "1.2", "https://cdn.test/")).out == "ok\n200"


@pytest.mark.defence("interception")
async def test_t50_a_client_that_trusts_another_fails_closed(outside: World) -> None:
    guest = await outside.guest({"allow": {"cdn.test": [INJECT]}})
    ran = await guest.curl("--cacert", str(outside.origins.ca), "https://cdn.test/")
    assert ran.code == 60, ran
    assert outside.origins.seen().is_silent
    await guest.audited(kind="tls", decision="deny", name="cdn.test", reason="protocol_violation")
    assert EVIL not in str(await guest.audit())
