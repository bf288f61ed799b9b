"""A snapshot's tree as an OCI image layout in a tar: one layer, which is what was written over the image. The image's own layers
are not in it; an annotation names it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from hutch.blobs import tarball
from hutch.blobs.pack import Unpackable

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_BASE = "org.opencontainers.image.base.name"
_REFERENCE = "org.opencontainers.image.ref.name"


def export(tree: Path, send: Callable[[bytes], None], *, snapshot_id: str, image: str, created_at: int, max_bytes: int) -> int:
    """Send it; how many entries the layer has. The tree is read twice: a layer's name is its hash, and stands before it. Raises
    what `tarball.export` does."""
    hashed, size = hashlib.sha256(), 0

    def measure(piece: bytes) -> None:
        nonlocal size
        hashed.update(piece)
        size += len(piece)

    tarball.export(tree, measure, max_bytes=max_bytes)
    layer = hashed.hexdigest()
    for name, content in _documents(layer, size, snapshot_id, image, created_at).items():
        send(_header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
    send(_header(f"blobs/sha256/{layer}", size))
    again = hashlib.sha256()

    def pass_on(piece: bytes) -> None:
        again.update(piece)
        send(piece)

    count = tarball.export(tree, pass_on, max_bytes=size)
    if again.hexdigest() != layer:
        raise Unpackable("It changed while it was read.")
    send(bytes(2 * tarfile.BLOCKSIZE))
    return count


def _documents(layer: str, size: int, snapshot_id: str, image: str, created_at: int) -> dict[str, bytes]:
    """Everything but the layer, by its name in the layout."""
    created = datetime.fromtimestamp(created_at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer}"]}
    config = _json({"created": created, "architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [{"mediaType": _LAYER, "digest": f"sha256:{layer}", "size": size}],
            "annotations": {_BASE: image},
        }
    )
    named = _descriptor(_MANIFEST, manifest) | {"annotations": {_REFERENCE: snapshot_id}}
    index = _json({"schemaVersion": 2, "manifests": [named]})
    blobs = {f"blobs/sha256/{hashlib.sha256(content).hexdigest()}": content for content in (config, manifest)}
    return {tarball.OCI_LAYOUT: _json({"imageLayoutVersion": "1.0.0"}), "index.json": index, **blobs}


def _descriptor(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT if size < 8**11 else tarfile.GNU_FORMAT)
