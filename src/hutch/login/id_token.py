"""What an ID token has to be before anything in it is believed (OpenID Connect Core, 3.1.3.7). Values in, claims or a reason out.

Only asymmetric signatures count: with HS256 whoever knows a public key could sign, and `none` is no signature. A key is used for
the algorithm that fits it, and never for another. The token must be made by the configured provider, for this client and for
nobody else besides, for the login that is going on (nonce), and just now.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from hutch.login.secrets import same

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
CLOCKS_APART_S = 60
"""How far the provider's clock may be from ours."""
OLDEST_S = 600
"""A token is made while its login goes on: one that was issued longer ago is of another."""
MIN_RSA_BITS = 2048
MAX_TOKEN_LENGTH = 64 * 1024
MAX_KEYS = 100
MAX_SUBJECT_LENGTH = 255


class NotBelieved(Exception):
    """What is wrong with a token. The text is for the server's log and has nothing of the token but names of claims."""


class UnknownKey(NotBelieved):
    """It names a key that is not among those that are known: the provider may have a new one."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the token of a login has to say. `now` in seconds."""

    issuer: str
    client_id: str
    nonce: str
    now: int


def checked(token: str, keys: Sequence[jwt.PyJWK], expected: Expected, access_token: str | None = None) -> dict[str, Any]:
    """The claims of an ID token. Raises `NotBelieved`, and `UnknownKey` where other keys may help."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise NotBelieved("the token is too long")
    key, algorithm = _key_for(token, keys)
    try:
        # Times are compared here, with the one clock.
        options: Any = {
            "require": ["iss", "sub", "aud", "exp", "iat"],
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        }
        claims = jwt.decode(
            token, key.key, algorithms=[algorithm], audience=expected.client_id, issuer=expected.issuer, options=options
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError) as error:
        raise NotBelieved(f"{type(error).__name__}: {error}") from error
    _check(claims, expected)
    _check_access_token(claims, algorithm, access_token)
    return claims


def _key_for(token: str, keys: Sequence[jwt.PyJWK]) -> tuple[jwt.PyJWK, str]:
    """The key that a token names, and its algorithm."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError) as error:
        raise NotBelieved(f"its header is none: {type(error).__name__}") from error
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise NotBelieved("it is signed by an algorithm that is not taken")
    if "crit" in header:
        raise NotBelieved("its header has extensions")
    family = _FAMILIES[algorithm]
    fitting = [key for key in keys if _family(key) == family and _said(key).get("alg", algorithm) == algorithm]
    named = [key for key in fitting if key.key_id == key_id] if key_id is not None else fitting
    if not named:
        raise UnknownKey("it names a key that the provider does not have")
    if len(named) > 1:
        raise NotBelieved("it could be signed by several keys")
    key = named[0]
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        raise NotBelieved("the key is too short")
    return key, str(algorithm)


_FAMILIES = {
    **{f"{kind}{bits}": ("RSA", None) for kind in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}


def _said(key: jwt.PyJWK) -> Mapping[str, Any]:
    return key._jwk_data


def _family(key: jwt.PyJWK) -> tuple[Any, Any]:
    said = _said(key)
    return said.get("kty"), None if said.get("kty") == "RSA" else said.get("crv")


def keys_of(document: Any) -> list[jwt.PyJWK]:
    """The keys of a JWKS that can sign a token; others are passed over. Raises `NotBelieved` for what is no JWKS."""
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise NotBelieved("what the provider has as its keys is no JWKS, or too long a one")
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        operations = entry.get("key_ops", ["verify"])
        if "d" in entry or not isinstance(operations, list) or "verify" not in operations:
            # A private key in public is nobody's any more.
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        if key.algorithm_name in ALGORITHMS:
            found.append(key)
    return found


def _check(claims: Mapping[str, Any], expected: Expected) -> None:
    audience, party = claims["aud"], claims.get("azp")
    if isinstance(audience, list) and len(audience) != 1 and party is None:
        raise NotBelieved("it is for several clients and does not say which of them asked (azp)")
    if party is not None and party != expected.client_id:
        raise NotBelieved("another client asked for it (azp)")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise NotBelieved("its subject is none")
    expires, issued, since = claims["exp"], claims["iat"], claims.get("nbf", 0)
    if not all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in (expires, issued, since)):
        raise NotBelieved("its times are none")
    if not expected.now < expires + CLOCKS_APART_S:
        raise NotBelieved("it is expired")
    if not expected.now - OLDEST_S <= issued <= expected.now + CLOCKS_APART_S:
        raise NotBelieved("it was not issued just now (iat)")
    if not since <= expected.now + CLOCKS_APART_S:
        raise NotBelieved("it does not hold yet (nbf)")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not same(nonce, expected.nonce):
        raise NotBelieved("it is of another login (nonce)")


def _check_access_token(claims: Mapping[str, Any], algorithm: str, access_token: str | None) -> None:
    """`at_hash`, where there is one, binds the access token to it."""
    given = claims.get("at_hash")
    if given is None or access_token is None:
        return
    if algorithm == "EdDSA":
        hashed = hashlib.sha512(access_token.encode()).digest()
    else:
        hashed = _HASHES[algorithm[2:]](access_token.encode()).digest()
    half = base64.urlsafe_b64encode(hashed[: len(hashed) // 2]).rstrip(b"=").decode()
    if not isinstance(given, str) or not same(given, half):
        raise NotBelieved("the access token is of another login (at_hash)")
