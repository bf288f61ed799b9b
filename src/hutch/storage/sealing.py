"""Encryption of columns that may hold secrets: AES-256-GCM with a key that lives in a file, never in the database.

A sealed value is a version byte, a 12-byte random nonce, and the ciphertext of compact JSON; the row's id is authenticated
with it, so that a sealed value can't be moved to another row.

A key file may hold several keys, one behind the other: the last one seals, every one opens. It is read again when it changes, so
that a key is replaced by appending one, without a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hutch.errors import InternalError

log = logging.getLogger(__name__)

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"


class KeyFile:
    """A private file of keys, made with one on first use. What can't be read as keys later leaves those that were read before.

    Raises `InternalError` when it holds none to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = load_or_create_key(path)
        if not _are_keys(self._keys):
            raise InternalError("sealing_key_unusable", f"The file {path.name} does not hold keys of {KEY_BYTES} bytes.")
        self._seen: tuple[int, ...] = ()

    def keys(self) -> bytes:
        """The keys that the file holds now."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                # Remembered first: a file that is of no use is complained about once, not at every value.
                self._seen = seen
                keys = self._path.read_bytes()
                if _are_keys(keys):
                    self._keys = keys
                else:
                    log.error("%s does not hold keys of %d bytes; those of before stay in use", self._path.name, KEY_BYTES)
        except OSError as error:
            if self._seen:
                self._seen = ()
                log.error("%s can't be read (%s); the keys of before stay in use", self._path.name, error.strerror)
        return self._keys


def _are_keys(content: bytes) -> bool:
    return bool(content) and len(content) % KEY_BYTES == 0


class Sealer:
    """Seals and opens JSON values. `keys` are one or more of 32 bytes, the newest last, or the file that has them."""

    def __init__(self, keys: bytes | KeyFile) -> None:
        self._source = keys
        self._keys = b""
        self._ciphers: list[AESGCM] = []

    def seal(self, value: Any, row_id: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._newest_first()[0].encrypt(nonce, msgspec.json.encode(value), row_id.encode())

    def open(self, sealed: bytes, row_id: str) -> Any:
        """The value. Raises `InternalError` when no key is the one that it was sealed with."""
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._newest_first() if sealed[:1] == _VERSION else ():
            with contextlib.suppress(InvalidTag, ValueError):
                return msgspec.json.decode(cipher.decrypt(nonce, ciphertext, row_id.encode()))
        raise InternalError(
            "sealed_value_unreadable",
            f"A stored secret of {row_id} can't be decrypted: the key file does not belong to this database. "
            "Restore control/secrets.key.",
        )

    def _newest_first(self) -> list[AESGCM]:
        keys = self._source.keys() if isinstance(self._source, KeyFile) else self._source
        if keys != self._keys:
            starts = range(0, len(keys), KEY_BYTES)
            self._ciphers = [AESGCM(keys[start : start + KEY_BYTES]) for start in reversed(starts)]
            self._keys = keys
        return self._ciphers


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
