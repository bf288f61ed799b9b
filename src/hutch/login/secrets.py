"""What belongs to one browser's part of a login. All of it is made of one secret, which only that browser has (in a cookie): the
database knows the hash of it, so that nobody who reads it can go on with a login.

    secret ─▶ digest     how the login is found again
           ─▶ state      goes to the provider and comes back; of another login it does not match
           ─▶ nonce      comes back in the ID token
           ─▶ verifier   of the server's own PKCE
           ─▶ form       of the page that asks: another site can't send it

A command line has its own: what it sends first is the challenge, and what it shows last is the verifier (RFC 7636, S256).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

CHALLENGE = r"^[A-Za-z0-9_-]{43}$"
VERIFIER = r"^[A-Za-z0-9._~-]{43,128}$"
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so that no code is a word (RFC 8628); eight of them are 34 bits, and each guess is a login that was begun."""
USER_CODE_LENGTH = 8


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """How a secret is found again: its SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636."""
    return _text(hashlib.sha256(verifier.encode("ascii", "replace")).digest())


def fits(verifier: str, challenge: str) -> bool:
    return same(challenge_of(verifier), challenge)


def same(one: str, other: str) -> bool:
    """Whether two texts are the same, in a time that does not say how far they are."""
    return hmac.compare_digest(one.encode(), other.encode())


def new_user_code() -> str:
    """What somebody reads in a terminal and finds again in a browser."""
    return "".join(secrets.choice(USER_CODE_LETTERS) for _ in range(USER_CODE_LENGTH))


def shown_code(code: str) -> str:
    """As it is shown: `BCDF-GHJK`."""
    return f"{code[:4]}-{code[4:]}"


def typed_code(text: str) -> str | None:
    """What somebody typed, as a code; None if it can be none."""
    code = re.sub(r"[\s-]", "", text[:64]).upper()
    return code if len(code) == USER_CODE_LENGTH and set(code) <= set(USER_CODE_LETTERS) else None


@dataclass(frozen=True, slots=True)
class BrowserSecrets:
    """Everything that a browser's secret makes."""

    digest: str
    state: str
    nonce: str
    verifier: str
    form: str

    @classmethod
    def of(cls, secret: str) -> BrowserSecrets:
        def made(what: str) -> str:
            return _text(hmac.new(secret.encode(), what.encode(), hashlib.sha256).digest())

        return cls(digest(secret), made("state"), made("nonce"), made("verifier"), made("form"))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
