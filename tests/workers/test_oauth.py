"""OAuth as values: addresses with PKCE and a state, answers of every kind of provider, refreshing in time."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import oauth as flow
from hutch.workers.manifest import OAuth
from hutch.workers.oauth import MARGIN_MS, STATE_LIFE_MS, Refused, Step, Token
from tests.workers.declared import CLIENT_SECRET, oauth

NOW = 10**12
SENT = flow.secrets(bytes(range(64)))
CALLBACK = "https://hutch.example/workers/oauth/callback"


def config(**changes: Any) -> OAuth:
    return msgspec.convert({name: value for name, value in oauth(**changes).items() if value is not None}, OAuth)


def query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


def test_the_variable_is_named_by_the_name_in_hexadecimal() -> None:
    assert flow.variable("github-oauth") == "OAUTH_6769746875622D6F61757468_ACCESS_TOKEN"


def test_a_person_is_sent_with_a_state_and_a_challenge() -> None:
    url = flow.authorization_url(config(authorizationParams={"access_type": "offline"}), CALLBACK, SENT)
    assert url.startswith("https://github.example/login/oauth/authorize?")
    expected = base64.urlsafe_b64encode(hashlib.sha256(SENT.verifier.encode()).digest()).rstrip(b"=").decode()
    assert query(url) == {
        "access_type": ["offline"],
        "client_id": ["client-1"],
        "redirect_uri": [CALLBACK],
        "response_type": ["code"],
        "scope": ["repo user"],
        "state": [SENT.state],
        "code_challenge": [expected],
        "code_challenge_method": ["S256"],
    }
    assert CLIENT_SECRET not in url
    assert SENT.verifier not in url


def test_the_challenge_is_that_of_the_standard() -> None:
    # RFC 7636, appendix B.
    assert flow.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_a_worker_cannot_replace_our_parameters() -> None:
    url = flow.authorization_url(
        config(
            authorizationEndpoint="https://x.example/a?tenant=1&state=forged",
            authorizationParams={"state": "forged", "Redirect_URI": "https://evil.example", "code_challenge": "forged"},
        ),
        CALLBACK,
        SENT,
    )
    found = query(url)
    assert found["tenant"] == ["1"]
    assert found["state"] == [SENT.state]
    assert "forged" not in url
    assert "evil" not in url


def test_a_callback_of_its_own_is_used_both_times() -> None:
    own = config(callbackUrl="https://own.example/cb")
    assert query(flow.authorization_url(own, CALLBACK, SENT))["redirect_uri"] == ["https://own.example/cb"]
    assert flow.code_request(own, "c", "v", CALLBACK).form["redirect_uri"] == "https://own.example/cb"


@pytest.mark.parametrize(
    "changes", [{"clientId": None}, {"authorizationEndpoint": None}, {"authorizationEndpoint": "javascript:x"}]
)
def test_what_is_missing_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"client id|authorizationEndpoint"):
        flow.authorization_url(config(**changes), CALLBACK, SENT)


@pytest.mark.parametrize(
    "address", ["https://a.example", "https://a.example:8443/x?y=1", "http://localhost:3000/t", "http://127.0.0.1/t"]
)
def test_good_endpoints(address: str) -> None:
    assert flow.is_endpoint(address)


@pytest.mark.parametrize(
    "address",
    [
        *("", "a.example", "http://a.example", "ftp://a.example", "https://", "https://u:p@a.example", "https://u@a.example"),
        *(
            "https://a.example/#x",
            "https://a.example/ x",
            "https://a.example\r\nx",
            "https://a.example:port",
            "https://a.example\\b",
        ),
        *("https://exämple.com", "https://[::1", "https://a.example/" + "a" * 3000, "http://localhost.evil.example"),
    ],
)
def test_bad_endpoints(address: str) -> None:
    assert not flow.is_endpoint(address)


def test_a_state_counts_once_in_time_and_only_itself() -> None:
    kept = flow.state_hash(SENT.state)
    assert SENT.state not in kept
    assert flow.state_holds(SENT.state, kept, NOW, NOW + STATE_LIFE_MS)
    assert not flow.state_holds(SENT.state, kept, NOW, NOW + STATE_LIFE_MS + 1)
    assert not flow.state_holds(SENT.state, kept, NOW, NOW - 1)
    assert not flow.state_holds("other", kept, NOW, NOW)
    assert not flow.state_holds("\ud800", kept, NOW, NOW)


def test_random_bytes_make_secrets_that_differ() -> None:
    assert SENT.state != SENT.verifier
    assert 43 <= len(SENT.verifier) <= 128
    assert SENT.verifier not in repr(SENT)
    with pytest.raises(ValueError, match="64 random bytes"):
        flow.secrets(b"short")


def test_a_code_is_exchanged_with_the_secret_in_the_form_or_in_a_header() -> None:
    found = flow.code_request(config(), "the-code", "the-verifier", CALLBACK)
    assert found.form == {
        "grant_type": "authorization_code",
        "code": "the-code",
        "redirect_uri": CALLBACK,
        "code_verifier": "the-verifier",
        "client_id": "client-1",
        "client_secret": CLIENT_SECRET,
    }
    basic = flow.code_request(config(clientId="a:b", clientSecret="c d"), "c", "v", CALLBACK, basic=True)
    assert "client_secret" not in basic.form
    assert base64.b64decode(basic.headers["authorization"].removeprefix("Basic ")) == b"a%3Ab:c+d"
    assert CLIENT_SECRET not in repr(found)
    refresh = flow.refresh_request(config(), "r")
    assert (refresh.form["grant_type"], refresh.form["refresh_token"]) == ("refresh_token", "r")


def answer(value: Any, status: int = 200, **fields: Any) -> Token | Refused:
    return flow.answer(status, json.dumps(value).encode(), NOW, **fields)


@pytest.mark.parametrize("expires", [3600, "3600", 3600.0])
def test_a_token_is_read_with_its_end(expires: Any) -> None:
    found = answer({"access_token": "a", "refresh_token": "r", "expires_in": expires})
    assert found == Token(access_token="a", refresh_token="r", expires_at_ms=NOW + 3_600_000)
    assert "'a'" not in repr(found)


@pytest.mark.parametrize("expires", [None, 0, -5, "soon", True, [], 1e400])
def test_the_workers_word_on_the_end_counts_where_the_provider_has_none(expires: Any) -> None:
    value = {"access_token": "a"} | ({} if expires is None else {"expires_in": "inf" if expires == float("inf") else expires})
    assert answer(value) == Token(access_token="a")
    assert answer(value, expire_ms=5000.0) == Token(access_token="a", expires_at_ms=NOW + 5000)


def test_a_refresh_keeps_the_old_refresh_token() -> None:
    before = Token(access_token="old", refresh_token="r1")
    assert answer({"access_token": "a"}, before=before) == Token(access_token="a", refresh_token="r1")
    assert answer({"access_token": "a", "refresh_token": "r2"}, before=before) == Token(access_token="a", refresh_token="r2")


def test_a_form_is_an_answer_too() -> None:
    assert flow.answer(200, b"access_token=gho_1&scope=repo&token_type=bearer", NOW) == Token(access_token="gho_1")


@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [
        (400, {"error": "invalid_grant"}, Refused("invalid_grant", final=True)),
        (200, {"error": "bad_verification_code"}, Refused("bad_verification_code", final=False)),
        (503, {}, Refused("http_503", final=False)),
        (500, {"access_token": "a"}, Refused("http_500", final=False)),
        (200, {}, Refused("no_access_token", final=False)),
        (200, [], Refused("no_access_token", final=False)),
        (200, {"access_token": "a\r\nx: y"}, Refused("no_access_token", final=False)),
        (200, {"access_token": ""}, Refused("no_access_token", final=False)),
        (200, {"access_token": 5}, Refused("no_access_token", final=False)),
        (400, {"error": "\x1b[31m"}, Refused("http_400", final=False)),
    ],
)
def test_a_refusal_is_told_apart(status: int, value: Any, expected: Refused) -> None:
    assert answer(value, status) == expected


@given(st.integers(100, 599), st.binary(max_size=100))
def test_any_answer_is_a_token_or_a_refusal(status: int, body: bytes) -> None:
    assert isinstance(flow.answer(status, body, NOW), Token | Refused)


def test_an_endless_answer_is_refused() -> None:
    assert flow.answer(200, b"access_token=" + b"a" * 100_000, NOW) == Refused("no_access_token", final=False)


@pytest.mark.parametrize(
    ("left_ms", "refresh", "expected"),
    [
        (None, None, Step.USE),
        (MARGIN_MS + 1, "r", Step.USE),
        (MARGIN_MS, "r", Step.REFRESH),
        (-1, "r", Step.REFRESH),
        (1, None, Step.USE),
        (0, None, Step.RECONNECT),
    ],
)
def test_a_token_is_refreshed_in_time(left_ms: int | None, refresh: str | None, expected: Step) -> None:
    token = Token(access_token="a", refresh_token=refresh, expires_at_ms=None if left_ms is None else NOW + left_ms)
    assert flow.before_run(token, NOW) is expected
