"""Trees as tars: as OCI lays layers out, back as they were; and tars that want something else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from hutch.blobs import oci
from hutch.blobs.pack import Unpackable
from hutch.blobs.tarball import Refused, export, load
from tests.blobs.trees import EXAMPLES, Node, make, seen, trees

pytestmark = pytest.mark.root

MIB = 1024 * 1024
MUCH = 1 << 40


def exported(tree: Path, most: int = MUCH) -> bytes:
    pieces: list[bytes] = []
    export(tree, pieces.append, max_bytes=most)
    return b"".join(pieces)


def loaded(tar: bytes, tree: Path, *, piece: int = 65536, max_bytes: int = 64 * MIB, max_files: int = 1000) -> int:
    pieces = (tar[at : at + piece] for at in range(0, len(tar), piece))
    return load(pieces, tree, max_bytes=max_bytes, max_files=max_files)


def has_form(tree: Node) -> bool:
    """Not sockets, which no tar has, and not names that mean something in a layer's tar."""
    return all(
        not name.startswith(b".wh.") and child.kind != "socket" and has_form(child) for name, child in tree.children.items()
    )


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(trees().filter(has_form))
def test_what_is_exported_is_imported_as_it_was(tree: Node) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, copy = Path(directory, "source"), Path(directory, "copy")
        make(tree, os.fsencode(source))
        before = seen(source)
        tar = exported(source)
        assert seen(source) == before
        loaded(tar, copy, max_bytes=256 * MIB)
        assert seen(copy) == before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"file")
    os.link(tree / "d" / "f", tree / "linked")
    os.mknod(tree / "d" / "gone", 0o020000, 0)
    os.setxattr(tree / "d" / "e", "trusted.overlay.opaque", b"y")
    with (tree / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    return tree


def test_it_is_a_layer_that_others_read(tree: Path, tmp_path: Path) -> None:
    tar = exported(tree)
    assert len(tar) < MIB
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
        assert names == [".", "d", "d/e", "d/e/.wh..wh..opq", "d/f", "d/.wh.gone", "linked", "sparse"]
        assert archive.getmember("linked").linkname == "d/f"
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "out"], input=tar, check=True)
    assert (tmp_path / "out" / "sparse").stat().st_size == (1 << 30) + 3
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < MIB
    assert (tmp_path / "out" / "linked").samefile(tmp_path / "out" / "d" / "f")


def test_what_others_write_is_read(tree: Path, tmp_path: Path) -> None:
    (tree / "d" / "gone").unlink()
    os.removexattr(tree / "d" / "e", "trusted.overlay.opaque")
    os.setxattr(tree / "d" / "f", "user.note", b"\xff")
    for number, form in enumerate(("pax", "gnu")):
        tar = subprocess.run(
            ["tar", "-c", "--format", form, "-S", "--xattrs", "-C", tree, "."]
            if form == "pax"
            else ["tar", "-c", "-S", "-C", tree, "."],
            check=True,
            capture_output=True,
        ).stdout
        loaded(tar, tmp_path / f"copy{number}", piece=777)
        assert (tmp_path / f"copy{number}" / "sparse").stat().st_size == (1 << 30) + 3
        assert (tmp_path / f"copy{number}" / "d" / "f").read_bytes() == b"file"
    assert os.getxattr(tmp_path / "copy0" / "d" / "f", "user.note") == b"\xff"
    assert seen(tmp_path / "copy0") == seen(tree)


def test_trees_without_such_a_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".wh.x").touch()
    with pytest.raises(Unpackable, match="something else"):
        exported(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "large").write_bytes(bytes(range(256)) * 4096)
    with pytest.raises(Unpackable, match="larger"):
        exported(tmp_path / "b", MIB // 2)


# -- hostile -----------------------------------------------------------------------------------------


def tar_of(*members: tuple[str, bytes, dict[str, object]], end: bool = True) -> bytes:
    """A tar of (name, content, attributes), whatever they are."""
    made = io.BytesIO()
    archive = tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    for name, content, attributes in members:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in attributes.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(content))
    if end:
        archive.close()
    return made.getvalue()


DIRECTORY: dict[str, object] = {"type": tarfile.DIRTYPE}


def link(target: str) -> dict[str, object]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


def symlink(target: str) -> dict[str, object]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


OUTSIDE = f"/tmp/hutch-outside-{os.getpid()}"

HOSTILE: dict[str, bytes] = {
    "absolute": tar_of(("/etc/passwd", b"x", {})),
    "up": tar_of(("../x", b"x", {})),
    "up in the middle": tar_of(("a/../../x", b"x", {})),
    "through a link": tar_of(("a", b"", symlink("/tmp")), ("a/.hutch-x", b"x", {})),
    "through a relative link": tar_of(("a", b"", symlink("..")), ("a/x", b"x", {})),
    "a link instead of a directory": tar_of(("a", b"", DIRECTORY), ("a/b", b"", symlink("/")), ("a/b/c/d", b"x", {})),
    "a directory over a link": tar_of(("a", b"", symlink("/tmp")), ("a", b"", DIRECTORY)),
    "a file over a link": tar_of(("a", b"", symlink(OUTSIDE)), ("a", b"x", {})),
    "a hard link out": tar_of(("a", b"", link("/etc/passwd"))),
    "a hard link up": tar_of(("a", b"", link("../../etc/passwd"))),
    "a hard link through a link": tar_of(("d", b"", symlink("/etc")), ("a", b"", link("d/passwd"))),
    "a hard link to a directory": tar_of(("d", b"", DIRECTORY), ("a", b"", link("d"))),
    "a hard link to nothing": tar_of(("a", b"", link("b"))),
    "a device": tar_of(("sda", b"", {"type": tarfile.BLKTYPE, "devmajor": 8})),
    "a terminal": tar_of(("tty", b"", {"type": tarfile.CHRTYPE, "devmajor": 5})),
    "a whiteout that is none": tar_of(("null", b"", {"type": tarfile.CHRTYPE})),
    "twice": tar_of(("a", b"x", {}), ("a", b"y", {})),
    "twice as a directory": tar_of(("a", b"", DIRECTORY), ("a", b"", DIRECTORY)),
    "a file as a directory": tar_of(("a", b"x", {}), ("a/b", b"y", {})),
    "hides nothing": tar_of((".wh.", b"", {})),
    "hides above": tar_of((".wh...", b"", {})),
    "hides a mark": tar_of((".wh..wh.x", b"", {})),
    "a long name": tar_of(("x" * 256, b"", {})),
    "a long path": tar_of(("/".join(["x" * 200] * 30), b"", {})),
    "a long target": tar_of(("a", b"", symlink("x" * 5000))),
    "no target": tar_of(("a", b"", symlink(""))),
    "a root that is a file": tar_of((".", b"x", {})),
    "a strange owner": tar_of(("a", b"", {"pax_headers": {"uid": "-5"}})),
    "a time without end": tar_of(("a", b"", {"pax_headers": {"mtime": "9" * 30}})),
    "no number as a time": tar_of(("a", b"", {"pax_headers": {"mtime": "nan"}})),
    "overlay's own": tar_of(("a", b"", {"type": b"Z"})),
    "too much": tar_of(*((f"{number}", bytes(MIB), {}) for number in range(9))),
    "too many": tar_of(*((f"{number}", b"", {}) for number in range(101))),
    "a header of many megabytes": tar_of(("a", b"", {"pax_headers": {"comment": "x" * (9 * MIB)}})),
    "holes that go back": tar_of(
        ("a", b"2\n5\n1\n0\n1\n".ljust(512, b"\0") + b"xy", {"pax_headers": {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "10"}})
    ),
    "more than it holds": tar_of(
        ("a", b"1\n0\n99999999\n".ljust(512, b"\0") + b"xy", {"pax_headers": {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "99999999"}})
    ),
    "the layout of an image": tar_of(("oci-layout", b"{}", {})),
    "without its end": tar_of(("a", bytes(2048), {}), end=False),
    "cut": tar_of(("a", b"x" * 9000, {}))[:3000],
    "noise": random.Random(1).randbytes(10_000),
    "nothing": b"",
    "gzip": b"\x1f\x8b" + bytes(600),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tars_are_refused_and_touch_nothing_else(tmp_path: Path, kind: str) -> None:
    before = Path("/etc/passwd").read_bytes()
    (tmp_path / "in").mkdir()
    with pytest.raises(Refused):
        loaded(HOSTILE[kind], tmp_path / "in" / "tree", max_bytes=8 * MIB, max_files=100)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["tree"]
    assert not Path(OUTSIDE).exists()
    assert not Path("/tmp/.hutch-x").exists()
    assert Path("/etc/passwd").read_bytes() == before


def test_links_that_lead_out_are_only_links(tmp_path: Path) -> None:
    """A symbolic link is the guest's own affair: nothing here follows it."""
    assert loaded(tar_of(("a", b"", symlink("/etc/passwd")), ("b", b"", link("a"))), tmp_path / "tree") == 2
    assert (tmp_path / "tree" / "b").readlink() == Path("/etc/passwd")


def test_overlays_own_attributes_are_not_taken(tmp_path: Path) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.x": "y",
        "SCHILY.xattr.security.capability": "z",
    }
    loaded(tar_of(("d", b"", {**DIRECTORY, "pax_headers": headers})), tmp_path / "tree")
    assert os.listxattr(tmp_path / "tree" / "d") == ["user.x"]


def _flips(tar: bytes) -> Iterator[bytes]:
    generator = random.Random(3)
    for _ in range(400):
        noise = bytearray(tar)
        for _ in range(generator.randrange(1, 6)):
            noise[generator.randrange(len(noise))] = generator.randrange(256)
        yield bytes(noise[: generator.randrange(len(noise) + 1)] if generator.random() < 0.3 else noise)


def test_mutated_tars_are_refused_or_loaded(tree: Path, tmp_path: Path) -> None:
    refused = 0
    for number, tar in enumerate(_flips(exported(tree))):
        try:
            loaded(tar, tmp_path / f"{number}")
        except Refused:
            refused += 1
    assert 100 < refused < 400


def test_a_layout_has_the_layer_by_its_hash(tree: Path) -> None:
    pieces: list[bytes] = []
    oci.export(tree, pieces.append, snapshot_id="snap_a", image="base@sha256:00", created_at=1_700_000_000_123, max_bytes=MUCH)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert json.loads(contents.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    [named] = json.loads(contents.pop("index.json"))["manifests"]
    for name, content in contents.items():
        assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    manifest = json.loads(contents[f"blobs/{named['digest'].replace(':', '/')}"])
    [layer] = manifest["layers"]
    config = json.loads(contents[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert (named["annotations"], manifest["annotations"]) == (
        {"org.opencontainers.image.ref.name": "snap_a"},
        {"org.opencontainers.image.base.name": "base@sha256:00"},
    )
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert config["created"] == "2023-11-14T22:13:20.123Z"
    assert contents[f"blobs/{layer['digest'].replace(':', '/')}"] == exported(tree)
    assert layer["size"] == len(exported(tree))
