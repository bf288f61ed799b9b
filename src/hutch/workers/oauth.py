"""OAuth for workers, as values: addresses to send people to, requests for tokens, what answers mean, when to refresh.

Gaps of the contract and what fills them: PKCE (S256) is always used, as providers that don't know it ignore it; a state is
random, kept as a hash, good for ten minutes and one use; parameters of ours can't be replaced by those of a worker; a token
is refreshed `MARGIN_MS` before it ends; an answer without a refresh token keeps the old one.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import math
from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from hutch.workers import reading
from hutch.workers.manifest import OAuth

STATE_LIFE_MS = 10 * 60_000
MARGIN_MS = 60_000
"""A token that ends within this time is refreshed before a run."""
RANDOM_BYTES = 32
MAX_ANSWER_BYTES = 64 * 1024
MAX_TOKEN = 16 * 1024
MAX_LIFE_S = 10 * 366 * 86_400
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OURS = frozenset("client_id client_secret redirect_uri response_type scope state code_challenge code_challenge_method".split())


def variable(name: str) -> str:
    """The variable that holds the access token: the OAuth's *name* (not its key) in hexadecimal."""
    return f"OAUTH_{name.encode().hex().upper()}_ACCESS_TOKEN"


def is_endpoint(address: str) -> bool:
    """Whether a provider may be found there: `https://`, or `http://` on this machine; no password, no fragment."""
    if len(address) > 2048 or not address.isascii() or any(letter <= " " or letter in '\\"<>^`{|}\x7f' for letter in address):
        return False
    try:
        parts = urlsplit(address)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What a person's way to the provider and back is bound to: `state` goes along, `verifier` stays here, sealed."""

    state: str
    verifier: str

    def __repr__(self) -> str:
        return "Secrets()"


def secrets(random: bytes) -> Secrets:
    """Made of twice `RANDOM_BYTES` random bytes."""
    if len(random) != 2 * RANDOM_BYTES:
        raise ValueError(f"{2 * RANDOM_BYTES} random bytes are needed")
    return Secrets(state=_base64url(random[:RANDOM_BYTES]), verifier=_base64url(random[RANDOM_BYTES:]))


def state_hash(state: str) -> str:
    """What is kept of a state: who reads the database can't finish somebody else's login."""
    return hashlib.sha256(state.encode("utf-8", "replace")).hexdigest()


def state_holds(state: str, kept_hash: str, made_ms: int, now_ms: int) -> bool:
    """Whether a state that came back is the one that was sent, and in time. The caller deletes it before it is used."""
    return hmac.compare_digest(state_hash(state), kept_hash) and 0 <= now_ms - made_ms <= STATE_LIFE_MS


def authorization_url(config: OAuth, redirect_uri: str, sent: Secrets) -> str:
    """Where a person is sent to agree. Raises `ValueError` for what is missing."""
    endpoint, client_id = config.authorization_endpoint, config.client_id
    if not endpoint or not is_endpoint(endpoint):
        raise ValueError("the OAuth capability has no authorizationEndpoint that can be used")
    if not client_id:
        raise ValueError("the client id is not set: set it as a secret of the worker, and deploy again")
    parts = urlsplit(endpoint)
    extra = [*parse_qsl(parts.query, keep_blank_values=True), *(config.authorization_params or {}).items()]
    query = [(name, value) for name, value in dict(extra).items() if name.lower() not in _OURS]
    query += [("client_id", client_id), ("redirect_uri", config.callback_url or redirect_uri), ("response_type", "code")]
    if config.scope:
        query.append(("scope", config.scope))
    query += [("state", sent.state), ("code_challenge", challenge(sent.verifier)), ("code_challenge_method", "S256")]
    return urlunsplit(parts._replace(query=urlencode(query)))


def challenge(verifier: str) -> str:
    """The S256 challenge of a verifier (RFC 7636)."""
    return _base64url(hashlib.sha256(verifier.encode()).digest())


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A POST of a form to the provider's token endpoint."""

    url: str
    form: dict[str, str]
    headers: dict[str, str]

    def __repr__(self) -> str:
        return f"Request(url={self.url!r})"


def code_request(config: OAuth, code: str, verifier: str, redirect_uri: str, *, basic: bool = False) -> Request:
    """Exchanges a code. The client's secret is part of the form, or with `basic` in a header: try that when the first way is
    answered with 401."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": config.callback_url or redirect_uri,
        "code_verifier": verifier,
    }
    return _request(config, form, basic)


def refresh_request(config: OAuth, refresh_token: str, *, basic: bool = False) -> Request:
    """Asks for a new access token."""
    return _request(config, {"grant_type": "refresh_token", "refresh_token": refresh_token}, basic)


def _request(config: OAuth, form: dict[str, str], basic: bool) -> Request:
    if not config.token_endpoint or not is_endpoint(config.token_endpoint) or not config.client_id:
        raise ValueError("the OAuth capability has no tokenEndpoint or client id that can be used")
    secret = config.client_secret or ""
    headers = {"accept": "application/json"}
    if basic:
        # Both halves are form-encoded first: RFC 6749, 2.3.1.
        pair = f"{_form(config.client_id)}:{_form(secret)}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    else:
        form = {**form, "client_id": config.client_id} | ({"client_secret": secret} if secret else {})
    return Request(url=config.token_endpoint, form=form, headers=headers)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, sealed. `expires_at_ms` is None for a token that does not end."""

    access_token: str
    refresh_token: str | None = None
    expires_at_ms: int | None = None

    def __repr__(self) -> str:
        return f"Token(expires_at_ms={self.expires_at_ms})"


class Refused(msgspec.Struct, frozen=True):
    """A provider's no. `final` when asking again can't help: a person has to agree anew. `error` is its code."""

    error: str
    final: bool


def answer(status: int, body: bytes, now_ms: int, expire_ms: float | None = None, before: Token | None = None) -> Token | Refused:
    """What an answer of a token endpoint means. `expire_ms` is the worker's own word on how long tokens live, for providers that
    don't say; `before` the token that is refreshed."""
    fields = _fields(body)
    error = fields.get("error")
    if error is not None or not 200 <= status < 300:
        code = error if isinstance(error, str) and error.isprintable() else f"http_{status}"
        return Refused(code[: reading.MAX_SHOWN], final=code in {"invalid_grant", "access_denied"})
    access = fields.get("access_token")
    if not _is_token(access):
        return Refused("no_access_token", final=False)
    refresh = fields.get("refresh_token")
    kept = refresh if _is_token(refresh) else before.refresh_token if before else None
    return Token(access_token=access, refresh_token=kept, expires_at_ms=_expiry(fields.get("expires_in"), now_ms, expire_ms))


def _fields(body: bytes) -> Mapping[str, Any]:
    try:
        value = reading.load(body, most_bytes=MAX_ANSWER_BYTES, most_depth=16)
    except ValueError:
        if len(body) > MAX_ANSWER_BYTES:
            return {}
        # What GitHub sends whatever it is asked for.
        try:
            return dict(parse_qsl(body.decode("ascii"), max_num_fields=50))
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _is_token(value: object) -> TypeGuard[str]:
    """Tokens go into variables and headers."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TOKEN and all("!" <= letter <= "~" for letter in value)


def _expiry(expires_in: object, now_ms: int, expire_ms: float | None) -> int | None:
    try:
        seconds = float(expires_in) if isinstance(expires_in, str | int | float) and not isinstance(expires_in, bool) else None
    except (ValueError, OverflowError):
        seconds = None
    if seconds is not None and math.isfinite(seconds) and seconds > 0:
        return now_ms + round(min(seconds, MAX_LIFE_S) * 1000)
    return now_ms + round(min(expire_ms, MAX_LIFE_S * 1000)) if expire_ms else None


class Step(enum.StrEnum):
    """What to do before a run."""

    USE = "use"
    REFRESH = "refresh"
    """Refresh; when that fails for now, a token that still lives is used."""
    RECONNECT = "reconnect"
    """It ended and can't be refreshed: the run goes without, and the owner is told."""


def before_run(token: Token, now_ms: int) -> Step:
    """Whether a token is good for a run that begins now."""
    ends = token.expires_at_ms
    if ends is None or ends - now_ms > MARGIN_MS:
        return Step.USE
    if token.refresh_token:
        return Step.REFRESH
    return Step.USE if ends > now_ms else Step.RECONNECT


def _form(text: str) -> str:
    return urlencode({"": text})[1:]


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
