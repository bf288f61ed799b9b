"""Images that are made to do harm, or are merely broken: each is refused with a reason, and nothing of it is left."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import zstandard

from hutch.errors import BadRequestError, HutchError
from hutch.oci import documents
from tests.oci.conftest import Store
from tests.oci.images import (
    Item,
    Layer,
    Made,
    device,
    digest_of,
    directory,
    file,
    hard_link,
    image,
    index,
    layer,
    symlink,
    tar,
)
from tests.oci.scripted import Answer, Scripted

pytestmark = pytest.mark.root

MIB = 1024 * 1024
NOISE = os.urandom(200_000)
NOISE_TAR = tar(file("a", NOISE))
NO_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class Hostile:
    """An image, and a part of the sentence with which it is refused."""

    name: str
    made: Callable[[], Made]
    said: str


def entries(name: str, said: str, *items: Item) -> Hostile:
    return Hostile(name, lambda: image(layer(file("before", "x"), *items)), said)


def layers(name: str, said: str, *made: Callable[[], Layer]) -> Hostile:
    return Hostile(name, lambda: image(*(one() for one in made)), said)


def spoilt(name: str, said: str, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Hostile:
    return Hostile(name, lambda: image(layer(file("a", "x")), change=change), said)


def says(name: str, said: str, **run: Any) -> Hostile:
    """An image whose configuration has something that can't be meant."""
    return Hostile(name, lambda: image(layer(file("a", "x")), **run), said)


def described(name: str, said: str, **changes: object) -> Hostile:
    """An image whose manifest says something else of its layer."""
    return spoilt(name, said, lambda manifest, _: manifest["layers"][0].update(changes))


def patched(offset: int, value: bytes) -> bytes:
    """A tar of one file whose header has something else at a place, with the right checksum."""
    raw = bytearray(tar(file("a", "x"), form=tarfile.USTAR_FORMAT))
    raw[offset : offset + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    return bytes(raw)


CORPUS = [
    # Names.
    entries("name upwards", "leads upwards", file("../x", "x")),
    entries("name upwards in the middle", "leads upwards", file("a/../../x", "x")),
    entries("absolute name upwards", "leads upwards", file("/../etc/passwd", "x")),
    entries("directory upwards", "leads upwards", directory("a/..")),
    entries("name too long", "more than 255 bytes", file("x" * 256, "x")),
    entries("path too long", "a path of", file("x/" * 2100 + "y", "x")),
    entries("too deep", "more than 256 deep", file("x/" * 300 + "y", "x")),
    entries("root as a link", "replaces the root", symlink("./", "/etc")),
    entries("below a file", "a file to another", file("a", "x"), file("a/b", "x")),
    entries("below a fifo", "a file to another", Item("a", kind=tarfile.FIFOTYPE), file("a/b", "x")),
    entries("whiteout of itself", "hides nothing", file(".wh.", "")),
    entries("whiteout of the directory", "hides nothing", directory("d"), file("d/.wh..", "")),
    entries("through a whiteout", "through a whiteout", file("d/.wh.a/b", "x")),
    entries("whiteout of the parent", "hides nothing", directory("d"), file("d/.wh...", "")),
    # Links.
    entries("hard link out", "leads upwards", hard_link("a", "../../../etc/passwd")),
    entries("hard link to what is not there", "no file of the image", hard_link("a", "/etc/shadow")),
    entries("hard link to a directory", "no file of the image", directory("d"), hard_link("a", "d")),
    entries("hard link through a link out", "no file of the image", symlink("a", "/../../etc"), hard_link("b", "a/shadow")),
    entries("links in a circle", "more than 40 symbolic links", symlink("a", "b"), symlink("b", "a"), file("a/x", "x")),
    entries("a link to itself", "more than 40 symbolic links", symlink("a", "a"), file("a/x", "x")),
    entries("a link to nothing", "no target", symlink("a", "")),
    entries("a link through a file", "a file to another", file("a", "x"), symlink("b", "a"), file("b/x", "x")),
    # Bombs.
    layers("zeros, gzip", "more than 200 times", lambda: layer(file("a", bytes(100 * MIB)))),
    layers("zeros, zstd", "more than 200 times", lambda: layer(file("a", bytes(100 * MIB)), compression="zstd")),
    layers("too many bytes", "image.max_bytes", *[lambda: layer(file("a", NOISE * 310), compression="zstd")] * 2),
    layers("too many entries", "image.max_entries", lambda: layer(*(file(f"f{n}") for n in range(2001)))),
    layers("too many directories", "image.max_entries", lambda: layer(*(file(f"{n}/" + "x/" * 200 + "y") for n in range(20)))),
    layers("an extended header without end", "extended header", lambda: layer(file("a", "x", pax={"comment": "x" * 2 * MIB}))),
    # Layers that are not what they say.
    layers("other content", "unpacks to content with the digest", lambda: replace(layer(file("a")), diff_id=NO_DIGEST)),
    layers("no gzip", "can't be decompressed", lambda: Layer(b"", blob=b"hello", diff_id=digest_of(b""))),
    layers("no zstd", "can't be decompressed", lambda: Layer(b"", "zstd", blob=b"hello", diff_id=digest_of(b""))),
    layers("gzip cut short", "can't be decompressed", lambda: Layer(NOISE_TAR, blob=gzip.compress(NOISE_TAR)[:-100])),
    layers(
        "zstd cut short",
        "ends within a file",
        lambda: Layer(NOISE_TAR, "zstd", blob=zstandard.ZstdCompressor().compress(NOISE_TAR)[:-100]),
    ),
    layers("gzip with a wrong checksum", "can't be decompressed", lambda: Layer(b"x", blob=gzip.compress(NOISE)[:-8] + bytes(8))),
    layers(
        "zstd with a window beyond all",
        "can't be decompressed",
        lambda: Layer(b"x", "zstd", blob=b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xa8" + b"\x01\x00\x00"),
    ),
    layers("no tar", "checksum", lambda: Layer(NOISE)),
    layers("tar cut within a file", "ends within a file", lambda: Layer(tar(file("a", NOISE))[:5000])),
    layers("tar cut within a header", "ends within an entry", lambda: Layer(tar(file("a", "x"))[:1200])),
    layers("something after the end", "goes on after its end", lambda: Layer(tar(file("a", "x")) + tar(file("b", "x")))),
    layers("a negative size", "size is no number", lambda: Layer(patched(124, b"\xff" * 12))),
    layers("a size that is no number", "size is no number", lambda: Layer(patched(124, b"12345678xyz\0"))),
    layers("a huge size", "ends within a file", lambda: Layer(patched(124, b"\x80" + b"\0" * 3 + b"\x7f" * 8))),
    layers("an owner beyond 32 bits", "beyond 32 bits", lambda: Layer(patched(108, b"\x80\0\0\xff\xff\xff\xff\xff"))),
    layers("an unknown type", "unknown type", lambda: Layer(patched(156, b"Z"))),
    layers("a sparse file", "sparse", lambda: Layer(patched(156, b"S"))),
    layers("a sparse file, pax", "sparse", lambda: layer(file("a", "x", pax={"GNU.sparse.major": "1"}))),
    layers("a size in pax that is no number", "size is no number", lambda: layer(file("a", "x", pax={"size": "-1"}))),
    # Documents.
    spoilt("a configuration for others", "arm64", lambda _, config: config.update(architecture="arm64")),
    spoilt("more digests than layers", "2 layers", lambda _, config: config["rootfs"]["diff_ids"].append("sha256:" + "0" * 64)),
    says("an environment that is none", "no variable", Env=["=x"]),
    says("an environment with NUL", "no variable", Env=["A=\0"]),
    spoilt(
        "an environment without end",
        "its environment has more",
        lambda _, config: config["config"].update(Env=["A=" + "x" * 10**6]),
    ),
    says("an environment of another kind", "can't be read", Env={"A": 1}),
    says("a user that there is not", "not in its /etc/passwd", User="joe"),
    says("a group that there is not", "not in its /etc/group", User="0:wheel"),
    says("a directory that is none", "no path", WorkingDir="/a\0b"),
    says("a directory that is a file", "no directory", WorkingDir="/a/b"),
    says("a directory that is itself a file", "a file to another", WorkingDir="/a"),
    spoilt(
        "a layer of an unknown type", "not known", lambda m, _: m["layers"][0].update(mediaType="application/x-tar+encrypted")
    ),
    spoilt("an artifact", "no file system", lambda m, _: m["config"].update(mediaType="application/vnd.cncf.helm+json")),
    spoilt("no layers", "0 layers", lambda m, _: m.update(layers=[])),
    spoilt("too many layers", "300 layers", lambda m, _: m.update(layers=m["layers"] * 300)),
    spoilt(
        "a layer with a path for a digest", "has the digest", lambda m, _: m["layers"][0].update(digest="sha256:../../../etc/x")
    ),
    described("a layer with another hash", "has the digest", digest="sha512:" + "0" * 128),
    described("a layer larger than allowed", "image.max_bytes", size=10**12),
    described("a layer of negative size", "has -1 bytes", size=-1),
    described("a layer shorter than it is", "more than the 3 bytes", size=3),
    described("a layer longer than it is", "its manifest says 9999", size=9999),
    spoilt("a configuration that is huge", "at most", lambda m, _: m["config"].update(size=10**9)),
    spoilt("another schema", "schema version 1", lambda m, _: m.update(schemaVersion=1)),
    spoilt("a type that is not its own", "says that it is", lambda m, _: m.update(mediaType=documents.OCI_INDEX)),
    spoilt("an index for a manifest", "says that it is", lambda m, _: m.update(mediaType=documents.DOCKER_MANIFEST)),
]


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
async def test_it_is_refused_and_nothing_is_left(hostile: Hostile, store: Store, script: Scripted) -> None:
    with pytest.raises(BadRequestError) as refused:
        await store.pull(script.put(hostile.made()))
    assert refused.value.code == "image_invalid"
    assert hostile.said in refused.value.message
    assert store.left() == []


def _other_blob(script: Scripted, made: Made) -> None:
    blob = json.loads(made.manifest)["layers"][0]["digest"]
    size = len(script.answers[f"/v2/a/blobs/{blob}"].body)
    script.answers[f"/v2/a/blobs/{blob}"] = Answer(body=b"x" * size)


def _other_config(script: Scripted, made: Made) -> None:
    config = json.loads(made.manifest)["config"]["digest"]
    body = script.answers[f"/v2/a/blobs/{config}"].body
    script.answers[f"/v2/a/blobs/{config}"] = Answer(body=body.replace(b'"linux"', b'"Linux"'))


def _manifest(body: bytes, media_type: str = documents.OCI_MANIFEST) -> Callable[[Scripted, Made], None]:
    def change(script: Scripted, made: Made) -> None:
        script.answers["/v2/a/manifests/latest"] = Answer(body=body, headers={"content-type": media_type})

    return change


def _nested(script: Scripted, made: Made) -> None:
    inner = Made(index((made, "amd64")), {}, documents.OCI_INDEX)
    script.put(inner)
    _manifest(index((inner, "amd64")), documents.OCI_INDEX)(script, made)


def _swapped(script: Scripted, made: Made) -> None:
    _manifest(index((made, "amd64")), documents.OCI_INDEX)(script, made)
    other = image(layer(file("evil", "x")))
    script.answers[f"/v2/a/manifests/{made.digest}"] = Answer(body=other.manifest, headers={"content-type": other.media_type})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_blob, "came with other content"),
        (_other_config, "came with other content"),
        (_swapped, "a manifest with the digest"),
        (_nested, "manifest of the type"),
        (_manifest(b"{}"), "can't be read"),
        (_manifest(b"[" * 100_000), "can't be read"),
        (_manifest(b"\xff\xfe"), "can't be read"),
        (_manifest(b" " * (documents.MAX_BYTES + 1)), "has more than"),
        (_manifest(b"{}", "text/html"), "neither a manifest nor an index"),
        (_manifest(b'{"schemaVersion":2,"manifests":[]}', documents.OCI_INDEX), "nothing for linux/amd64"),
        (_manifest(index((image(layer(file("a"))), "arm64")), documents.OCI_INDEX), "only for linux/arm64"),
    ],
)
async def test_a_registry_that_lies_is_found_out(
    store: Store, script: Scripted, change: Callable[[Scripted, Made], None], said: str
) -> None:
    made = image(layer(file("a", NOISE)))
    reference = script.put(made)
    change(script, made)
    with pytest.raises(HutchError) as refused:
        await store.pull(reference)
    assert refused.value.code == "image_invalid"
    assert said in refused.value.message
    assert store.left() == []


async def test_devices_are_dropped_and_do_not_hide_anything(store: Store, script: Scripted) -> None:
    made = image(layer(file("dev/null", "x"), file("a", "x")), layer(device("a"), device("dev/sda", tarfile.BLKTYPE, (8, 0))))
    await store.pull(script.put(made))
    assert len(store.files()) == 1
