"""Images that tests make: layers byte by byte, and what registries say about them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from hutch.oci import documents

BUSYBOX = Path("/bin/busybox")


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a layer, with what a tar can say and a file system would not."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_000_000_000
    pax: dict[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def file(name: str, content: bytes | str = b"", **rest: Any) -> Item:
    return Item(name, content.encode() if isinstance(content, str) else content, **rest)


def directory(name: str, mode: int = 0o755, **rest: Any) -> Item:
    return Item(name, kind=tarfile.DIRTYPE, mode=mode, **rest)


def symlink(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.LNKTYPE, link=target)


def device(name: str, kind: bytes = tarfile.CHRTYPE, numbers: tuple[int, int] = (0, 0)) -> Item:
    return Item(name, kind=kind, device=numbers, mode=0o666)


def tar(*items: Item, form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for item in items:
            entry = tarfile.TarInfo(item.name)
            entry.type, entry.linkname, entry.mode = item.kind, item.link, item.mode
            entry.uid, entry.gid, entry.mtime = item.uid, item.gid, item.mtime
            entry.size, entry.pax_headers = len(item.content), item.pax
            entry.devmajor, entry.devminor = item.device
            archive.addfile(entry, io.BytesIO(item.content))
    return packed.getvalue()


_SUFFIX = {"": "", "gzip": "+gzip", "zstd": "+zstd"}


def compressed(content: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(content, 1)
    return zstandard.ZstdCompressor().compress(content) if compression == "zstd" else content


@dataclass(slots=True)
class Layer:
    """A layer: its tar and how it is compressed. `blob` and `diff_id` may be set to something that does not fit."""

    tar: bytes
    compression: str = "gzip"
    blob: bytes = b""
    diff_id: str = ""
    media_type: str = ""

    def __post_init__(self) -> None:
        self.blob = self.blob or compressed(self.tar, self.compression)
        self.diff_id = self.diff_id or digest_of(self.tar)
        self.media_type = self.media_type or f"application/vnd.oci.image.layer.v1.tar{_SUFFIX[self.compression]}"

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": digest_of(self.blob), "size": len(self.blob)}


def layer(*items: Item, compression: str = "gzip") -> Layer:
    return Layer(tar(*items), compression)


@dataclass(slots=True)
class Made:
    """An image: blobs by digest, and its manifest."""

    manifest: bytes
    blobs: dict[str, bytes]
    media_type: str = documents.OCI_MANIFEST

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def image(*layers: Layer, change: Any = None, architecture: str = "amd64", **run: Any) -> Made:
    """An image of layers, whose configuration says `run` (`Env`, `User`, `WorkingDir`, …). `change` may spoil manifest and
    configuration."""
    config: dict[str, Any] = {
        "os": "linux",
        "architecture": architecture,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": documents.OCI_MANIFEST,
        "config": {"mediaType": documents.CONFIGS[0]},
        "layers": [one.descriptor for one in layers],
    }
    if change is not None:
        change(manifest, config)
    raw = json.dumps(config).encode()
    manifest["config"] = {"digest": digest_of(raw), "size": len(raw)} | manifest["config"]
    blobs = {digest_of(one.blob): one.blob for one in layers} | {digest_of(raw): raw}
    return Made(json.dumps(manifest).encode(), blobs)


def index(*made: tuple[Made, str]) -> bytes:
    """An index of images, each with its architecture."""
    entries = [
        {
            "mediaType": one.media_type,
            "digest": one.digest,
            "size": len(one.manifest),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for one, architecture in made
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": documents.OCI_INDEX, "manifests": entries}).encode()


def busybox(*programs: str) -> list[Item]:
    """A root with one program of many names, and nothing else."""
    names = programs or (
        "sh",
        "cat",
        "ls",
        "echo",
        "id",
        "pwd",
        "env",
        "stat",
        "sleep",
        "test",
        "readlink",
        "mkdir",
        "touch",
        "find",
    )
    return [
        directory("bin"),
        file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(hard_link(f"bin/{name}", "bin/busybox") for name in names),
    ]


def small(**run: Any) -> Made:
    """An image with a user, a working directory and a greeting; `run` says more."""
    files = [*busybox(), directory("home/joe", uid=1001, gid=1001), file("etc/passwd", "joe:x:1001:1001::/home/joe:/bin/sh\n")]
    said = {"User": "joe", "WorkingDir": "/srv", "Env": ["GREETING=hello", "PATH=/bin"]} | run
    return image(layer(*files, directory("srv", uid=1001)), **said)
