"""`forwardURL`: what the other end is told, by whom, and what the guest never learns."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.egress.world import SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("canary_stays"), pytest.mark.section("14.4")]

ISSUER = "https://hutch.example"
KEY_ID = "key-1"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
FORWARD = {"allow": {"api.test": [{"forwardURL": "https://cdn.test/hook/"}]}}
SAID = ("host", "scheme", "port", "path")
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def signing(outside: World) -> AsyncIterator[World]:
    """A world whose gateway signs."""
    await outside.gateway.identify(ISSUER, PEM, KEY_ID)
    yield outside
    # The key is one of the secrets that go nowhere.
    assert outside.places_of(PEM.splitlines()[3]) == []


def heads(data: bytes) -> list[dict[str, list[str]]]:
    """The heads that an origin got, each by its names in lower case; the request line is under the empty name."""
    found = []
    for text in data.split(b"\r\n\r\n")[:-1]:
        first, *lines = text.decode().split("\r\n")
        head: dict[str, list[str]] = {"": [first]}
        for line in lines:
            name, _, value = line.partition(": ")
            head.setdefault(name.lower(), []).append(value)
        found.append(head)
    return found


def verified(token: str, audience: str) -> dict[str, Any]:
    """What a verifier reads, if it accepts the token."""
    claims: dict[str, Any] = jwt.decode(
        token,
        KEY.public_key(),
        algorithms=["RS256"],
        audience=audience,
        issuer=ISSUER,
        options={"require": ["exp", "iat", "nbf", "jti", "sub", "aud", "iss"]},
    )
    return claims


async def forwarded(guest: Guest, *arguments: str, host: str = "cdn.test") -> dict[str, list[str]]:
    """Ask, and the head that the other end got."""
    ran = await guest.curl(*arguments)
    assert ran.out.endswith("200"), ran
    return heads(guest.world.origins.seen().to(host)[-1]["data"])[-1]


async def test_the_other_end_is_told_everything_under_both_spellings(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    head = await forwarded(guest, "-X", "PURGE", "-H", "x-mine: kept", "https://api.test/v1/items?a=1&b=%20x")
    assert head[""] == ["PURGE /hook/v1/items?a=1&b=%20x HTTP/1.1"]
    told = dict(zip(SAID, ("api.test", "https", "443", "/v1/items?a=1&b=%20x"), strict=True))
    for name, value in told.items():
        assert head[f"vercel-forwarded-{name}"] == [value]
        assert head[f"x-egress-forwarded-{name}"] == [value]
    assert head["host"] == ["cdn.test"]
    assert head["x-mine"] == ["kept"]
    assert head["accept-encoding"] == ["identity"]
    assert len(head["vercel-sandbox-oidc-token"]) == 1
    seen = signing.origins.seen()
    assert not seen.to("api.test")
    assert seen.to("cdn.test")[0]["alpn"] in (None, "http/1.1")
    record = await guest.audited(kind="http", decision="forward")
    assert (record["name"], record["reason"], record["dst"]) == ("api.test", "forward", f"{SHARED}:443")


async def test_the_token_is_what_verifiers_want(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    head = await forwarded(guest, "https://api.test/")
    (token,) = head["vercel-sandbox-oidc-token"]
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": KEY_ID, "typ": "JWT"}
    claims = verified(token, "https://cdn.test/hook")
    assert claims["exp"] - claims["iat"] == 60
    assert abs(claims["iat"] - time.time()) < 5
    wanted = {
        "team_id": "team_test",
        "project_id": "prj_test",
        "sandbox_id": "sand_0",
        "sandbox_name": "sand_0",
        "sub": "sandbox:sand_0",
    }
    assert {name: claims[name] for name in wanted} == wanted
    for audience in ("https://cdn.test", "https://cdn.test/hook/", "https://other.test/hook"):
        with pytest.raises(jwt.InvalidAudienceError):
            verified(token, audience)


@pytest.mark.parametrize(
    ("url", "audience", "target"),
    [
        ("https://cdn.test", "https://cdn.test", "/v1?q=1"),
        ("https://cdn.test/", "https://cdn.test", "/v1?q=1"),
        ("https://CDN.test:443/A/b", "https://cdn.test/A/b", "/A/b/v1?q=1"),
        ("https://cdn.test:8443/x", "https://cdn.test:8443/x", "/x/v1?q=1"),
    ],
)
async def test_audience_and_target_of_a_url(signing: World, url: str, audience: str, target: str) -> None:
    signing.origins.answer("cdn.test", SHARED)
    guest = await signing.guest({"allow": {"api.test": [{"forwardURL": url}]}})
    head = await forwarded(guest, "https://api.test/v1?q=1")
    assert head[""] == [f"GET {target} HTTP/1.1"]
    assert verified(head["vercel-sandbox-oidc-token"][0], audience)


async def test_tokens_are_each_for_one_sandbox(signing: World) -> None:
    tokens = []
    for _ in range(2):
        guest = await signing.guest(FORWARD)
        tokens.append((await forwarded(guest, "https://api.test/"))["vercel-sandbox-oidc-token"][0])
    claims = [verified(token, "https://cdn.test/hook") for token in tokens]
    assert [claim["sandbox_id"] for claim in claims] == ["sand_0", "sand_1"]
    assert claims[0]["jti"] != claims[1]["jti"]


@pytest.mark.defence("identity-headers")
async def test_what_the_client_says_of_itself_is_dropped(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    names = [f"{prefix}-forwarded-{name}" for prefix in ("vercel", "x-egress", "Vercel", "X_Egress") for name in (*SAID, "more")]
    names += ["vercel-sandbox-oidc-token", "Vercel_Sandbox_OIDC_Token", "x-hutch-sandbox", "x-forwarded-for", "forwarded", "via"]
    lies = [part for name in names for part in ("-H", f"{name}: lie")]
    head = await forwarded(guest, "--http1.1", *lies, "-H", "range: bytes=0-3", "-H", "if-range: x", "https://api.test/")
    assert "lie" not in [value for values in head.values() for value in values]
    assert all(len(values) == 1 for values in head.values()), head
    assert "range" not in head
    assert "if-range" not in head
    assert verified(head["vercel-sandbox-oidc-token"][0], "https://cdn.test/hook")


async def test_the_body_arrives_and_the_answer_goes_back(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    signing.origins.script("cdn.test", b"HTTP/1.1 418 Teapot\r\nx-answer: yes\r\ncontent-length: 5\r\n\r\nshort", whole=True)
    ran = await guest.curl("-i", "-d", "x" * 100_000, "https://api.test/")
    assert ran.out.endswith("short\n418")
    assert "x-answer: yes" in ran.out
    [request] = signing.origins.seen().requests
    assert (request["length"], request["sha256"]) == (100_000, hashlib.sha256(b"x" * 100_000).hexdigest())
    assert (await guest.audited(kind="http", decision="forward"))["status"] == 418


@pytest.mark.defence("scrub-bodies")
@pytest.mark.defence("scrub-heads")
async def test_an_echo_of_the_token_is_masked_and_disables_the_rule(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    signing.origins.script("cdn.test", OK + b"content-length: 3000\r\n\r\n" + b"%HEAD%".ljust(3000))
    ran = await guest.curl("--http1.1", "-m", "2", "https://api.test/")
    assert "vercel-forwarded-host: api.test" in ran.out
    (token,) = heads(signing.origins.seen().to("cdn.test")[0]["data"])[0]["vercel-sandbox-oidc-token"]
    assert "vercel-sandbox-oidc-token: " + "*" * len(token) in ran.out
    assert signing.places_of(token) == []
    assert signing.places_of(token.rsplit(".", 1)[1]) == []
    for text in (token.encode(), base64.b64encode(token.encode())):
        # The token is kept for half a minute.
        signing.origins.script("cdn.test", OK + b"x-echo: " + text + b"\r\ncontent-length: 0\r\n\r\n")
        await guest.policy(FORWARD)
        ran = await guest.curl("-i", "https://api.test/")
        assert text.decode()[40:-40] not in ran.out
    signing.origins.script(
        "cdn.test", OK + b"x-a: " + token.encode() + b"\r\nx-b: " + token.encode() + b"\r\ncontent-length: 0\r\n\r\n"
    )
    await guest.policy(FORWARD)
    for _ in range(2):
        assert (await guest.curl("https://api.test/")).out.endswith("200")
    assert (await guest.curl("https://api.test/")).out.endswith("403")
    assert await guest.audited(kind="http", reason="credential_reflected", decision="deny")


@pytest.mark.defence("encodings")
async def test_an_encoding_that_cannot_be_searched_is_refused(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    signing.origins.script("cdn.test", OK + b"content-encoding: br\r\ncontent-length: 2\r\n\r\nxx")
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.out.endswith("502")
    assert "x-hutch-reason: unscannable" in ran.out


@pytest.mark.parametrize("address", ["10.9.9.9", "169.254.169.254", "100.100.100.200", "127.0.0.1", "198.51.100.1"])
@pytest.mark.parametrize("how", ["name", "address"])
@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_closed_addresses_stay_closed(signing: World, address: str, how: str) -> None:
    signing.origins.answer("cdn.test", address)
    url = "https://cdn.test/hook" if how == "name" else f"https://{address}/hook"
    guest = await signing.guest({"allow": {"api.test": [{"forwardURL": url}]}})
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.out.splitlines()[-1] in ("403", "502"), ran
    record = await guest.audited(kind="http", name="api.test")
    assert record["decision"] == "deny"
    assert record["reason"] in ("hard_deny", "self", "address_class", "domain_deny")
    assert not signing.origins.seen().connections


@pytest.mark.defence("server-certificates")
async def test_the_other_end_must_vouch_for_itself(signing: World) -> None:
    guest = await signing.guest({"allow": {"api.test": [{"forwardURL": "https://wrongname.test/"}]}})
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.out.endswith("502")
    assert "x-hutch-reason: upstream_tls" in ran.out
    assert b"vercel" not in signing.origins.seen().data


async def test_without_a_signer_nothing_is_forwarded(outside: World) -> None:
    guest = await outside.guest(FORWARD)
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.out.endswith("503"), ran
    assert not outside.origins.seen().connections
    assert await guest.audited(kind="http", status=503)
    # A gateway that was killed has its key again before it takes connections.
    await outside.gateway.identify(ISSUER, PEM, KEY_ID)
    assert (await guest.curl("https://api.test/")).out.endswith("200")


@pytest.mark.defence("updates-hold")
async def test_a_request_is_not_forwarded_under_a_policy_that_is_gone(signing: World) -> None:
    guest = await signing.guest(FORWARD)
    assert (await guest.curl("https://api.test/")).out.endswith("200")
    await guest.policy({"allow": {"api.test": [{"forwardURL": "https://other.test/"}]}})
    head = await forwarded(guest, "https://api.test/", host="other.test")
    assert verified(head["vercel-sandbox-oidc-token"][0], "https://other.test")
    assert len(signing.origins.seen().to("cdn.test")) == 1
