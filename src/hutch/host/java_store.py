"""A file of trusted certificates as every JDK since 8 reads it (`lib/security/cacerts`, `javax.net.ssl.trustStore`).

The format is JKS. JDKs take it although PKCS #12 is their default; it opens with the usual password and without one; and it ends
with a digest of all before it, so that a store with one more certificate is a copy and some bytes more, not another encryption.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

OPENS_WITH = "changeit"
"""The password of every JDK's own store. It protects nothing: certificates are no secrets."""
_MAGIC, _VERSION, _TRUSTED_CERTIFICATE = 0xFEEDFEED, 2, 2
_WHITENING = b"Mighty Aphrodite"
"""`sun.security.provider.JavaKeyStore.getPreKeyedHash` has it between password and data."""


class JavaStore:
    """Certificates (DER) that every store made here has."""

    def __init__(self, certificates: Sequence[bytes]) -> None:
        entries = [_entry(f"root-{number}", certificate) for number, certificate in enumerate(certificates)]
        self.head = struct.pack("!III", _MAGIC, _VERSION, len(entries) + 1) + b"".join(entries)
        # A guest's store must not depend on when it was made, and this digest of most of it is made once.
        self._digest = hashlib.sha1(OPENS_WITH.encode("utf-16-be") + _WHITENING + self.head, usedforsecurity=False)

    def ending(self, certificate: bytes) -> bytes:
        """What follows `head` in the file with these certificates and one more."""
        last = _entry("hutch", certificate)
        digest = self._digest.copy()
        digest.update(last)
        return last + digest.digest()


def _entry(alias: str, certificate: bytes) -> bytes:
    created_ms = 0
    return (
        struct.pack("!I", _TRUSTED_CERTIFICATE)
        + _text(alias)
        + struct.pack("!Q", created_ms)
        + _text("X.509")
        + struct.pack("!I", len(certificate))
        + certificate
    )


def _text(text: str) -> bytes:
    """As Java's `writeUTF`, for ASCII."""
    return struct.pack("!H", len(text)) + text.encode("ascii")
