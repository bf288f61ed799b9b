"""What is believed of an ID token: only one that its provider signed, for this client, for this login, just now."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hutch.login.id_token import Expected, NotBelieved, UnknownKey, checked, keys_of
from tests.login.hostile import EC, ED, OTHER_RSA, RSA, SHORT_RSA, forged, public_jwk, signed

NOW = 1_800_000_000
EXPECTED = Expected("https://id.example", "client", "a-nonce", NOW)
GOOD: dict[str, Any] = {
    "iss": "https://id.example",
    "sub": "ada",
    "aud": "client",
    "iat": NOW,
    "exp": NOW + 300,
    "nonce": "a-nonce",
}
KEYS = keys_of({"keys": [public_jwk(RSA, "one")]})
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in (GOOD | changed).items() if value is not None}


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (RSA, "RS512"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA")])
@pytest.mark.parametrize("kid", ["one", None])
def test_a_token_of_the_provider_is_believed(key: Any, algorithm: str, kid: str | None) -> None:
    keys = keys_of({"keys": [public_jwk(key, "one")]})
    assert checked(signed(claims(), key, algorithm, kid), keys, EXPECTED)["sub"] == "ada"


@pytest.mark.parametrize("audience", [["client"], ["client", "other"]])
def test_one_for_several_clients_is_believed_when_this_one_asked(audience: list[str]) -> None:
    assert checked(signed(claims(aud=audience, azp="client")), KEYS, EXPECTED)["sub"] == "ada"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"iss": "https://evil.example"}, "InvalidIssuerError"),
        ({"iss": "https://id.example/"}, "InvalidIssuerError"),
        ({"iss": ["https://id.example"]}, "InvalidIssuerError"),
        ({"iss": None}, "MissingRequiredClaimError"),
        ({"aud": "other"}, "InvalidAudienceError"),
        ({"aud": ["other"]}, "InvalidAudienceError"),
        ({"aud": []}, "InvalidAudienceError|MissingRequiredClaimError"),
        ({"aud": None}, "MissingRequiredClaimError"),
        ({"aud": ["client", "other"]}, "azp"),
        ({"aud": ["client", "other"], "azp": "other"}, "azp"),
        ({"azp": "other"}, "azp"),
        ({"azp": ["client"]}, "azp"),
        ({"exp": NOW - 61}, "expired"),
        ({"exp": "soon"}, "times"),
        ({"exp": True}, "times"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"iat": NOW - 601}, "iat"),
        ({"iat": NOW + 61}, "iat"),
        ({"iat": None}, "MissingRequiredClaimError"),
        ({"iat": float("nan")}, "iat"),
        ({"nbf": NOW + 61}, "nbf"),
        ({"nonce": "another"}, "nonce"),
        ({"nonce": ""}, "nonce"),
        ({"nonce": ["a-nonce"]}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"sub": ""}, "subject"),
        ({"sub": "x" * 256}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": None}, "MissingRequiredClaimError"),
    ],
)
def test_one_that_is_not_of_this_login_is_not_believed(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(NotBelieved, match=why):
        checked(signed(claims(**changed)), KEYS, EXPECTED)


def hs256(secret: bytes, **header: Any) -> str:
    token = forged(claims(), {"alg": "HS256", "kid": "one", **header})
    message = token.rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.new(secret, message.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{message}.{signature}"


@pytest.mark.parametrize(
    "token",
    [
        forged(claims(), {"alg": "none"}),
        forged(claims(), {"alg": "None", "kid": "one"}),
        forged(claims(), {"alg": "nOnE", "kid": "one"}),
        forged(claims(), {"kid": "one"}),
        forged(claims(), {"alg": ["RS256"], "kid": "one"}),
        forged(claims(), {"alg": "RS256", "kid": "one"}),
        forged(claims(), {"alg": "RS256", "kid": "one"}, b"x" * 256),
        hs256(PEM),
        hs256(PEM.strip()),
        hs256(b""),
        hs256(json.dumps(public_jwk(RSA, "one")).encode()),
        signed(claims(), OTHER_RSA),
        signed(claims(), OTHER_RSA, kid=None),
        signed(claims(), OTHER_RSA, jwk=public_jwk(OTHER_RSA, "one")),
        signed(claims(), OTHER_RSA, jku="https://evil.example/keys"),
        signed(claims(), OTHER_RSA, x5c=["MIIB"]),
        signed(claims(), RSA, crit=["b64"], b64=True),
        signed(claims(), EC, "ES256"),
        signed(claims())[:-4] + "AAAA",
        "",
        "a.b.c",
        "." * 5,
        "e30.e30.",
        "x" * 70_000,
    ],
)
def test_one_that_the_provider_did_not_sign_is_not_believed(token: str) -> None:
    with pytest.raises(NotBelieved):
        checked(token, KEYS, EXPECTED)


def test_a_key_is_not_used_for_an_algorithm_that_it_is_not_for() -> None:
    keys = keys_of({"keys": [public_jwk(RSA, "one", alg="RS512")]})
    assert checked(signed(claims(), RSA, "RS512"), keys, EXPECTED)
    with pytest.raises(NotBelieved):
        checked(signed(claims(), RSA, "RS256"), keys, EXPECTED)
    p384 = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(NotBelieved):
        checked(signed(claims(), EC, "ES256"), keys_of({"keys": [public_jwk(p384, "one")]}), EXPECTED)


def test_a_key_that_is_too_short_is_not_used() -> None:
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = signed(claims(), SHORT_RSA)
    with pytest.raises(NotBelieved, match="too short"):
        checked(token, keys_of({"keys": [public_jwk(SHORT_RSA, "one")]}), EXPECTED)


def test_a_key_that_is_not_there_is_told_apart_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(UnknownKey):
        checked(signed(claims(), kid="two"), KEYS, EXPECTED)
    both = keys_of({"keys": [public_jwk(RSA, "one"), public_jwk(OTHER_RSA, "one")]})
    with pytest.raises(NotBelieved, match="several"):
        checked(signed(claims()), both, EXPECTED)


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"},
        {**public_jwk(RSA, "one"), "use": "enc"},
        {**public_jwk(RSA, "one"), "key_ops": ["encrypt"]},
        {**public_jwk(RSA, "one"), "d": "AQAB"},
        {**public_jwk(RSA, "one"), "n": 5},
        {**public_jwk(RSA, "one"), "n": "!"},
        {"kty": "RSA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        "one",
        None,
    ],
)
def test_what_is_no_key_for_signatures_is_passed_over(entry: Any) -> None:
    assert keys_of({"keys": [entry]}) == []
    assert len(keys_of({"keys": [entry, public_jwk(EC, "two")]})) == 1


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": [{}] * 101}])
def test_what_is_no_jwks_is_refused(document: Any) -> None:
    with pytest.raises(NotBelieved):
        keys_of(document)


def test_an_access_token_of_another_login_is_refused() -> None:
    half = base64.urlsafe_b64encode(hashlib.sha256(b"access").digest()[:16]).rstrip(b"=").decode()
    token = signed(claims(at_hash=half))
    assert checked(token, KEYS, EXPECTED, "access")
    with pytest.raises(NotBelieved, match="at_hash"):
        checked(token, KEYS, EXPECTED, "another")
    with pytest.raises(NotBelieved, match="at_hash"):
        checked(signed(claims(at_hash=5)), KEYS, EXPECTED, "access")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part, max_size=2))


@given(name=st.sampled_from(sorted(GOOD)), value=JSON)
def test_no_value_of_a_claim_is_more_than_a_refusal(name: str, value: Any) -> None:
    try:
        found = checked(signed({**GOOD, name: value}), KEYS, EXPECTED)
    except NotBelieved:
        return
    assert found["iss"] == GOOD["iss"]
    assert found["nonce"] == GOOD["nonce"]
    assert found["aud"] in ("client", ["client"])
    assert found["exp"] > NOW - 61


@given(text=st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_is_more_than_a_refusal(text: str) -> None:
    with pytest.raises(NotBelieved):
        checked(text, KEYS, EXPECTED)
