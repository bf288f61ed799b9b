"""The image store: what references mean, and that a damaged or hostile store is refused with a clear error."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InternalError, NotFoundError
from hutch.images import MAX_DOCUMENT_BYTES, ImageStore

BASE = b"the base layer"
VARIANT = b"what a variant adds"
Change = Callable[[dict[str, Any]], None]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def put_layer(directory: Path, content: bytes) -> dict[str, Any]:
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    digest = sha256(content)
    (blobs / f"{digest.removeprefix('sha256:')}.erofs").write_bytes(content)
    return {"digest": digest, "size": len(content)}


def manifest(name: str, *layers: dict[str, Any]) -> dict[str, Any]:
    config = {"user": "ubuntu", "uid": 1000, "gid": 1000, "groups": [27], "home": "/vercel", "cwd": "/vercel", "env": {"A": "b"}}
    return {"schema": 1, "name": name, "layers": list(layers), "config": config, "debian": {"bash": "5"}}


def put_manifest(directory: Path, document: object) -> str:
    (directory / "manifests").mkdir(parents=True, exist_ok=True)
    content = json.dumps(document).encode()
    digest = sha256(content)
    (directory / "manifests" / f"{digest.removeprefix('sha256:')}.json").write_bytes(content)
    return digest


def put_index(directory: Path, images: object, **extra: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "index.part"
    part.write_text(json.dumps({"schema": 1, "images": images, **extra}))
    part.replace(directory / "index.json")


def entry(name: str, digest: str, *aliases: str) -> dict[str, Any]:
    return {"name": name, "aliases": list(aliases), "manifest": digest}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store with two images that share a layer."""
    base, variant = put_layer(tmp_path, BASE), put_layer(tmp_path, VARIANT)
    first = put_manifest(tmp_path, manifest("vercel/sandbox/universal:latest", base))
    second = put_manifest(tmp_path, manifest("node22", base, variant))
    put_index(tmp_path, [entry("vercel/sandbox/universal:latest", first, "vercel/sandbox/node:24"), entry("node22", second)])
    return tmp_path


def damaged(directory: Path) -> str:
    """The message of the error with which the store is refused."""
    with pytest.raises(InternalError) as caught:
        ImageStore(directory).list()
    assert caught.value.code == "image_damaged"
    return caught.value.message


def test_images_come_in_the_order_of_the_index_with_their_layers_bottom_first(directory: Path) -> None:
    first, second = ImageStore(directory).list()
    assert (first.name, second.name) == ("vercel/sandbox/universal:latest", "node22")
    assert [layer.path.read_bytes() for layer in second.layers] == [BASE, VARIANT]
    assert second.size_bytes == len(BASE) + len(VARIANT)
    assert first.config.groups == (27,)
    assert first.config.env == {"A": "b"}


@pytest.mark.parametrize(
    "reference",
    [
        "vercel/sandbox/universal:latest",
        "vercel/sandbox/universal",
        "vercel/sandbox/node:24",
        "vcr.vercel.com/vercel/sandbox/universal:latest",
    ],
)
def test_a_name_is_found_with_and_without_tag_and_registry(directory: Path, reference: str) -> None:
    assert ImageStore(directory).resolve(reference).name == "vercel/sandbox/universal:latest"


def test_a_runtime_is_found_by_the_name_that_older_clients_have_for_it(directory: Path) -> None:
    store = ImageStore(directory)
    assert store.resolve("vercel/sandbox/node:al-22") == store.resolve("vcr.vercel.com/vercel/sandbox/node:al-22")
    assert store.resolve("vercel/sandbox/node:al-22").name == "node22"
    with pytest.raises(NotFoundError, match="node:al-26"):
        store.resolve("vercel/sandbox/node:al-26")


def test_a_pinned_reference_finds_the_image_and_only_under_its_own_name(directory: Path) -> None:
    store = ImageStore(directory)
    image = store.resolve("node22")
    assert store.resolve(image.pinned) == image
    with pytest.raises(NotFoundError):
        store.resolve(f"vercel/sandbox/universal@{image.digest}")


def test_a_pinned_reference_finds_an_image_that_the_index_has_forgotten(directory: Path) -> None:
    old = ImageStore(directory).resolve("node22")
    put_index(directory, [])
    store = ImageStore(directory)
    assert store.list() == []
    assert store.resolve(old.pinned).layers == old.layers


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "@",
        ":latest",
        "node22:latest:latest",
        "NODE22",
        "node22@sha256:",
        "node22@sha256:" + "0" * 64,
        "node22@sha256:../../index",
        "node22@sha256:" + "A" * 64,
        "../index",
        "/etc/passwd",
        "node22\0",
        "x" * 100_000,
    ],
)
def test_any_other_reference_is_not_found(directory: Path, reference: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        ImageStore(directory).resolve(reference)
    assert caught.value.code == "image_not_found"
    assert len(caught.value.message) < 1500


@given(st.text(max_size=200))
def test_no_text_is_anything_but_found_or_not_found(text: str) -> None:
    with pytest.raises(NotFoundError):
        ImageStore(Path("/nonexistent")).resolve(text)


def test_a_missing_store_is_empty_and_says_how_to_fill_it(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "none")
    assert store.list() == []
    with pytest.raises(NotFoundError, match="make setup"):
        store.resolve("node22")


def test_a_rebuilt_index_is_seen_without_a_restart(directory: Path) -> None:
    store = ImageStore(directory)
    before = store.resolve("node22")
    digest = put_manifest(directory, manifest("node22", put_layer(directory, b"new")))
    put_index(directory, [entry("node22", digest)])
    assert store.resolve("node22").digest == digest
    assert store.resolve(before.pinned) == before


def test_a_store_out_of_reach_keeps_what_it_had_read(directory: Path) -> None:
    child = os.fork()
    if child == 0:
        # In a process of its own, which gives up root as the API process does.
        status = 1
        try:
            store = ImageStore(directory)
            directory.chmod(0o700)
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            else:
                directory.chmod(0)
            status = 0 if store.resolve("node22").name == "node22" and len(store.list()) == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    directory.chmod(0o700)


def test_resolving_reads_no_layer(directory: Path) -> None:
    store = ImageStore(directory)
    layer = store.resolve("node22").layers[1]
    layer.path.write_bytes(VARIANT.upper())
    assert ImageStore(directory).resolve("node22").layers[1] == layer


def test_verify_accepts_what_was_built(directory: Path) -> None:
    store = ImageStore(directory)
    for image in store.list():
        store.verify(image)


def test_verify_finds_a_changed_byte(directory: Path) -> None:
    store = ImageStore(directory)
    image = store.resolve("node22")
    image.layers[1].path.write_bytes(VARIANT.upper())
    with pytest.raises(InternalError, match="SHA-256") as caught:
        store.verify(image)
    assert caught.value.code == "image_damaged"


def test_verify_finds_a_changed_manifest(directory: Path) -> None:
    store = ImageStore(directory)
    image = store.resolve("node22")
    path = directory / "manifests" / f"{image.digest.removeprefix('sha256:')}.json"
    path.write_bytes(path.read_bytes().replace(b"ubuntu", b"ubunto"))
    with pytest.raises(InternalError, match=path.name):
        store.verify(image)


def test_a_missing_or_shortened_layer_is_damage_that_names_the_file(directory: Path) -> None:
    path = ImageStore(directory).resolve("node22").layers[1].path
    path.write_bytes(VARIANT[:-1])
    assert path.name in damaged(directory)
    path.unlink()
    assert path.name in damaged(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}'])
def test_an_index_that_is_no_index_is_damage(directory: Path, content: bytes) -> None:
    (directory / "index.json").write_bytes(content)
    assert "index.json" in damaged(directory)


def test_an_index_beyond_its_bound_is_not_read_whole(directory: Path) -> None:
    with (directory / "index.json").open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    assert "larger" in damaged(directory)


def test_a_format_of_another_version_is_refused(directory: Path) -> None:
    put_index(directory, [], schema=2)
    assert "schema" in damaged(directory)


def test_a_name_that_stands_for_two_images_is_refused(directory: Path) -> None:
    base = put_layer(directory, BASE)
    one, two = put_manifest(directory, manifest("a", base)), put_manifest(directory, manifest("b", base))
    put_index(directory, [entry("a", one), entry("b", two, "a")])
    assert "two images" in damaged(directory)


def test_an_index_may_not_call_an_image_by_a_name_that_is_not_its_own(directory: Path) -> None:
    put_index(directory, [entry("other", put_manifest(directory, manifest("a", put_layer(directory, BASE))))])
    assert "other" in damaged(directory)


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "md5:" + "0" * 64, "", "sha256:" + "0" * 63, "sha256:" + "0" * 64]
)
def test_an_index_may_only_name_manifests_by_digest(directory: Path, digest: str) -> None:
    put_index(directory, [entry("a", digest)])
    damaged(directory)


def _set(*keys: str | int, to: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("schema", to=2), "schema"),
        (_set("schema", to="1"), "schema"),
        (_set("name", to="../../etc"), "name"),
        (_set("name", to="a@b"), "name"),
        (_set("layers", to=[]), "layers"),
        (_set("layers", to=None), "layers"),
        (_set("layers", 0, "digest", to="sha256:../../../../etc/shadow"), "layers.0.digest"),
        (_set("layers", 0, "digest", to=7), "layers.0.digest"),
        (_set("layers", 0, "size", to=-1), "layers.0.size"),
        (_set("layers", 0, "size", to="14"), "layers.0.size"),
        (_set("layers", to=[{"digest": sha256(BASE), "size": len(BASE)}] * 1000), "layers"),
        (_set("config", to={}), "config"),
        (_set("config", "user", to="root; reboot"), "config.user"),
        (_set("config", "uid", to=-1), "config.uid"),
        (_set("config", "uid", to=2**32), "config.uid"),
        (_set("config", "uid", to=True), "config.uid"),
        (_set("config", "groups", to=[1.5]), "config.groups"),
        (_set("config", "groups", to=list(range(1000))), "config.groups"),
        (_set("config", "home", to="vercel"), "config.home"),
        (_set("config", "cwd", to="/vercel/../../etc"), "config.cwd"),
        (_set("config", "cwd", to="/a\0b"), "config.cwd"),
        (_set("config", "env", to={"A=B": "c"}), "config.env"),
        (_set("config", "env", to={"A": "b\0c"}), "config.env"),
        (_set("config", "env", to={"": "x"}), "config.env"),
        (_set("config", "env", to={"A": 1}), "config.env"),
    ],
)
def test_a_hostile_manifest_is_refused_and_the_error_names_the_field(directory: Path, change: Change, said: str) -> None:
    document = manifest("a", put_layer(directory, BASE))
    put_index(directory, [entry("a", put_manifest(directory, document))])
    assert ImageStore(directory).resolve("a").name == "a"
    change(document)
    put_index(directory, [entry("a", put_manifest(directory, document))])
    assert said in damaged(directory)


def test_a_manifest_under_another_ones_digest_is_refused(directory: Path) -> None:
    digest = put_manifest(directory, manifest("a", put_layer(directory, BASE)))
    path = directory / "manifests" / f"{digest.removeprefix('sha256:')}.json"
    path.write_text(json.dumps(manifest("a", put_layer(directory, VARIANT))))
    put_index(directory, [entry("a", digest)])
    assert "SHA-256" in damaged(directory)
