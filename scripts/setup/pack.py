"""Trees of files into EROFS images, manifests and the index: the directory that `hutch.images.ImageStore` reads.

    index.json                     names → manifests
    manifests/<hex>.json           layers, configuration and package versions of one image; its name is its SHA-256
    blobs/sha256/<hex>.erofs       one layer; its name is its SHA-256

`manifests` and `blobs` are shared by all builds in the cache, so that a sandbox made from an earlier image still finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from scripts.setup import shell

SCHEMA = 1


def layer(tree: Path, blobs: Path, epoch_s: int, uuid: str, log: str) -> dict[str, object]:
    """Pack `tree` and put the result under its hash. Returns the layer's entry of a manifest.

    Uncompressed and never inline, so that the page cache holds file data as it lies in the image and shares it with all guests.
    """
    blobs.mkdir(parents=True, exist_ok=True)
    packed = blobs / f".{os.getpid()}.part"
    try:
        shell.logged(["mkfs.erofs", f"-T{epoch_s}", "-U", uuid, "-Enoinline_data", packed, tree], log)
        hexadecimal = file_sha256(packed)
        size = packed.stat().st_size
        with packed.open("rb") as file:
            os.fsync(file.fileno())
        packed.chmod(0o444)
        packed.replace(blobs / f"{hexadecimal}.erofs")
    finally:
        packed.unlink(missing_ok=True)
    return {"digest": f"sha256:{hexadecimal}", "size": size}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest(
    name: str, layers: list[dict[str, object]], config: dict[str, object], contents: dict[str, object], manifests: Path
) -> str:
    """Write one image's manifest under its hash. Returns its digest."""
    manifests.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA, "name": name, "layers": layers, "config": config, **contents}
    text = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    hexadecimal = hashlib.sha256(text).hexdigest()
    _write(manifests / f"{hexadecimal}.json", text)
    return f"sha256:{hexadecimal}"


def index(images: list[dict[str, object]], place: Path) -> None:
    """Write the index: `[{"name", "aliases", "manifest"}]`, the default image first."""
    _write(place, json.dumps({"schema": SCHEMA, "images": images}, indent=1).encode() + b"\n")


def _write(place: Path, content: bytes) -> None:
    part = place.with_name(f".{place.name}.part")
    part.write_bytes(content)
    part.chmod(0o644)
    part.replace(place)
