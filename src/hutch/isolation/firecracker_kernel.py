"""The kernel as Firecracker takes it: on x86-64 an ELF file, which distributions wrap and compress (`bzImage`).

Where the wrapped one lies and how long it is, its header says: `Documentation/arch/x86/boot.rst` of Linux.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

MAX_KERNEL_BYTES = 1024 * 1024 * 1024
_HEADER_BYTES = 0x250
_ELF = b"\x7fELF"
_SECTOR = 512
_WITH_PAYLOAD = 0x0208
"""The version of the protocol since which the header says where the payload is."""


def _xz(packed: bytes) -> bytes:
    # The length of the whole stands behind it.
    return lzma.LZMADecompressor().decompress(packed, MAX_KERNEL_BYTES)


def _gzip(packed: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(packed, MAX_KERNEL_BYTES)


def _zstd(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


_PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\x00": _xz,
    b"\x5d\x00\x00": _xz,
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    _ELF: bytes,
}


def loadable(kernel: Path, directory: Path) -> Path:
    """`kernel`, or the one that it wraps, unpacked into `directory` unless it was already. Raises `OSError`."""
    with kernel.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if not _is_wrapped(head):
        return kernel
    content = kernel.read_bytes()
    made = directory / f"vmlinux-{hashlib.sha256(content).hexdigest()[:20]}"
    if made.exists():
        return made
    unpacked = _unpacked(kernel, content)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, part = tempfile.mkstemp(prefix=".vmlinux-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(unpacked)
        Path(part).chmod(0o444)
        Path(part).replace(made)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return made


def _is_wrapped(head: bytes) -> bool:
    return len(head) == _HEADER_BYTES and head[0x202:0x206] == b"HdrS" and not head.startswith(_ELF)


def _unpacked(kernel: Path, content: bytes) -> bytes:
    (version,) = struct.unpack_from("<H", content, 0x206)
    if version < _WITH_PAYLOAD:
        raise OSError(f"{kernel} is too old a bzImage: give its vmlinux instead")
    offset, length = struct.unpack_from("<II", content, 0x248)
    start = ((content[0x1F1] or 4) + 1) * _SECTOR + offset
    payload = content[start : start + length]
    for magic, unpack in _PACKED.items():
        if payload.startswith(magic):
            try:
                found = unpack(payload)
            except (lzma.LZMAError, zlib.error, zstandard.ZstdError, MemoryError) as error:
                raise OSError(f"{kernel} is a broken bzImage: {error}") from error
            if not found.startswith(_ELF):
                raise OSError(f"{kernel} is a bzImage without an ELF kernel inside")
            return found
    raise OSError(f"{kernel} is a bzImage packed in a way that is not known here: give its vmlinux instead")
