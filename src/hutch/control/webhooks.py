"""Webhooks: which URLs can be meant, and how a delivery is signed (Standard Webhooks).

    webhook-id: evt_…   webhook-timestamp: seconds   webhook-signature: v1,base64(HMAC-SHA256(secret, id.timestamp.body))

The secret is `whsec_` and 32 bytes as base64. A receiver compares the signature, and refuses timestamps that are some minutes
off; the same id may come twice.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from hutch.errors import BadRequestError

SECRET_BYTES = 32
_PREFIX = "whsec_"
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts. `authority` is `HOST[:PORT]` in small letters, `path` has the query."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"


def new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def target(url: str, private_hosts: Collection[str]) -> Target:
    """The parts of a URL that events can be sent to: HTTPS, or HTTP at one of the operator's `private_hosts`. Raises
    `BadRequestError` (`webhook_invalid`)."""
    if not url.isascii() or not url.isprintable() or any(sign in url for sign in ' "<>\\^`{|}'):
        raise _invalid("it has characters that a URL has only encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _invalid(str(error)) from error
    if "@" in parts.netloc:
        raise _invalid("it has a user or a password; put what is secret into its path or query")
    if "#" in url:
        raise _invalid("it has a fragment, which is never sent")
    if parts.scheme not in _PORTS or not host or len(host) > 253 or "%" in parts.netloc or port == 0:
        raise _invalid("it should be https://HOST[:PORT]/PATH")
    authority = parts.netloc.lower()
    if parts.scheme == "http" and authority not in private_hosts:
        raise _invalid("it has no TLS; use https://")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], authority, path)


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _invalid(reason: str) -> BadRequestError:
    return BadRequestError("webhook_invalid", f"The webhook's URL can't be used: {reason}.")
