"""Encryption of columns that may hold secrets: AES-256-GCM with a key that lives in a file, never in the database.

A sealed value is a version byte, a 12-byte random nonce, and the ciphertext of compact JSON; the row's id is authenticated
with it, so that a sealed value can't be moved to another row.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hutch.errors import InternalError

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"


class Sealer:
    """Seals and opens JSON values. `key` is 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, value: Any, row_id: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, msgspec.json.encode(value), row_id.encode())

    def open(self, sealed: bytes, row_id: str) -> Any:
        """The value. Raises `InternalError` when the key is not the one it was sealed with."""
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            return msgspec.json.decode(self._cipher.decrypt(nonce, ciphertext, row_id.encode()))
        except (InvalidTag, ValueError) as error:
            raise InternalError(
                "sealed_value_unreadable",
                f"A stored secret of {row_id} can't be decrypted: the key file does not belong to this database. "
                "Restore control/secrets.key.",
            ) from error


def load_or_create_key(path: Path) -> bytes:
    """The key in the file `path` (mode 0600), made on first use."""
    return read_or_create(path, lambda: secrets.token_bytes(KEY_BYTES))


def read_or_create(path: Path, make: Any) -> bytes:
    """The content of the private file `path`; where there is none, `make()` is written to it. Safe against a second process."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return path.read_bytes()
