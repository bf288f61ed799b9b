"""Layers merged: whiteouts, links and names, as container runtimes mean them, and nothing outside the tree."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import BadRequestError
from hutch.oci import layers
from hutch.oci.layers import LayerFile
from hutch.oci.tree import Directory, File, Node, Symlink, Tree
from tests.oci.conftest import Store
from tests.oci.images import Item, Layer, directory, file, hard_link, image, layer, symlink, tar
from tests.oci.scripted import Scripted


def merged(tmp_path: Path, *made: Layer) -> Tree:
    files = []
    for number, one in enumerate(made):
        (tmp_path / str(number)).write_bytes(one.blob)
        files.append(LayerFile(path=str(tmp_path / str(number)), compression=one.compression, diff_id=one.diff_id))
    return layers.merge(files, layers.Budget(10**8), 10**4)


def names(node: Node, prefix: str = "") -> list[str]:
    """Every path of a tree; directories end with a slash, links say where to."""
    if not isinstance(node, Directory):
        return [prefix + (f" -> {node.target.decode()}" if isinstance(node, Symlink) else "")]
    below = [path for name, child in sorted(node.children.items()) for path in names(child, f"{prefix}/{name.decode()}")]
    return below or [prefix + "/"]


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_later_layers_lie_over_earlier_ones(tmp_path: Path, compression: str) -> None:
    tree = merged(
        tmp_path,
        layer(file("a/one", "1"), file("a/two", "1"), compression=compression),
        layer(file("a/two", "22"), file("./b", "2"), compression=compression),
    )
    assert names(tree.root) == ["/a/one", "/a/two", "/b"]
    two = tree.find(b"/a/two")
    assert isinstance(two, File)
    assert (two.layer, two.size) == (1, 2)


def test_a_whiteout_hides_what_earlier_layers_have_and_nothing_else(tmp_path: Path) -> None:
    tree = merged(
        tmp_path,
        layer(file("a", "1"), file("d/x", "1"), file("d/deep/y", "1"), file("kept", "1")),
        layer(file(".wh.a"), file(".wh.d"), file(".wh.nothing"), file("none/.wh.x")),
        layer(file("d/z", "3")),
        layer(file("kept", "4"), file(".wh.kept")),
    )
    assert names(tree.root) == ["/d/z", "/kept"]


@pytest.mark.parametrize("opaque_first", [True, False])
def test_an_opaque_directory_has_only_what_its_own_layer_has(tmp_path: Path, opaque_first: bool) -> None:
    mark, own = file("d/.wh..wh..opq"), [directory("d"), file("d/new", "2"), file("d/sub/new", "2")]
    upper = [mark, *own] if opaque_first else [*own, mark]
    tree = merged(tmp_path, layer(file("d/old", "1"), file("d/sub/old", "1"), file("e/old", "1")), layer(*upper))
    assert names(tree.root) == ["/d/new", "/d/sub/new", "/e/old"]


def test_a_whiteout_and_what_replaces_it_in_one_layer(tmp_path: Path) -> None:
    tree = merged(tmp_path, layer(file("d/old", "1")), layer(file("d/new", "2"), file(".wh.d")))
    assert names(tree.root) == ["/d/new"]


def test_marks_of_other_file_systems_are_no_files(tmp_path: Path) -> None:
    assert names(merged(tmp_path, layer(file(".wh..wh.aufs"), file(".wh..wh.plnk/1.2"), file("a"))).root) == ["/a"]


def test_kinds_replace_each_other(tmp_path: Path) -> None:
    tree = merged(
        tmp_path,
        layer(file("a/x"), file("b"), symlink("c", "a"), file("twice", "1"), file("twice", "22")),
        layer(file("a"), directory("b"), directory("c"), file("c/y")),
    )
    assert names(tree.root) == ["/a", "/b/", "/c/y", "/twice"]
    twice = tree.find(b"twice")
    assert isinstance(twice, File)
    assert twice.size == 2


def test_links_lead_to_places_in_the_image(tmp_path: Path) -> None:
    tree = merged(
        tmp_path,
        layer(directory("usr/bin"), symlink("bin", "usr/bin"), symlink("a", "/etc"), symlink("up", "../../../../var")),
        layer(file("bin/tool"), file("a/passwd"), file("up/log"), file("/absolute/file")),
    )
    assert names(tree.root) == [
        "/a -> /etc",
        "/absolute/file",
        "/bin -> usr/bin",
        "/etc/passwd",
        "/up -> ../../../../var",
        "/usr/bin/tool",
        "/var/log",
    ]


def test_hard_links_share_what_they_link_to_also_when_its_name_goes(tmp_path: Path) -> None:
    tree = merged(tmp_path, layer(file("a", "1"), hard_link("b", "/a")), layer(file(".wh.a"), hard_link("d/c", "b")))
    assert names(tree.root) == ["/b", "/d/c"]
    assert tree.find(b"b") is tree.find(b"d/c")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_kind_of_tar(tmp_path: Path, form: int) -> None:
    long = "x" * 90 + "/" + "y" * 90
    assert names(merged(tmp_path, Layer(tar(file(long, "1"), file("b"), form=form))).root) == [
        "/b",
        f"/{long}",
    ]


_NAMES = st.lists(st.sampled_from(["a", "b", ".wh.a", ".wh..wh..opq", "c"]), min_size=1, max_size=4).map("/".join)
_ITEMS = st.one_of(
    st.builds(file, _NAMES, st.sampled_from(["", "x"])),
    st.builds(directory, _NAMES),
    st.builds(symlink, _NAMES, st.sampled_from(["a", "/b", "../c", "..", "/", "a/b"])),
    st.builds(hard_link, _NAMES, _NAMES),
)


@given(st.lists(st.lists(_ITEMS, max_size=8), min_size=1, max_size=4))
def test_whatever_layers_say_it_is_a_tree_or_refused(tmp_path_factory: pytest.TempPathFactory, made: list[list[Item]]) -> None:
    try:
        tree = merged(tmp_path_factory.mktemp("layers"), *(layer(*items, compression="") for items in made))
    except BadRequestError as error:
        assert error.code == "image_invalid"
        return
    found = names(tree.root)
    assert len(found) == len(set(found))
    assert not any(".wh." in path.partition(" -> ")[0] for path in found)


@given(st.binary(max_size=2000))
def test_no_bytes_are_anything_but_a_tree_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    with pytest.raises(BadRequestError, match="image_invalid"):
        merged(tmp_path_factory.mktemp("layers"), Layer(raw + b"\1", ""))


@contextmanager
def mounted(store: Store, tmp_path: Path) -> Iterator[Path]:
    """The only image of a store."""
    [packed] = store.files()
    point = tmp_path / "mounted"
    point.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", store.directory / packed, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.root
async def test_what_is_packed_has_owners_modes_times_and_links(store: Store, script: Scripted, tmp_path: Path) -> None:
    attributes = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.capability": "x", "SCHILY.xattr.user.a": "b"}
    made = image(
        layer(
            directory("d", mode=0o1777, uid=7, gid=70_000, pax=attributes),
            file("d/suid", "root me", mode=0o4755, uid=100_000, gid=8, mtime=1_234_567_890, pax=attributes),
            hard_link("same", "d/suid"),
            symlink("out", "/etc/shadow"),
            symlink("etc/resolv.conf", "/d/suid"),
            Item("pipe", kind=tarfile.FIFOTYPE, mode=0o600),
            file("empty", mode=0o000),
        ),
        WorkingDir="deep/here/../there",
    )
    assert (await store.pull(script.put(made))).cwd == "/deep/there"
    with mounted(store, tmp_path) as root:
        suid, directory_ = (root / "d/suid").lstat(), (root / "d").lstat()
        assert (suid.st_mode, suid.st_uid, suid.st_gid, int(suid.st_mtime)) == (0o104755, 100_000, 8, 1_234_567_890)
        assert (directory_.st_mode, directory_.st_uid, directory_.st_gid) == (0o041777, 7, 70_000)
        assert (root / "same").lstat().st_ino == suid.st_ino
        assert suid.st_nlink == 2
        assert (root / "same").read_bytes() == b"root me"
        assert (root / "out").readlink() == Path("/etc/shadow")
        assert not (root / "etc/resolv.conf").is_symlink()
        assert (root / "pipe").is_fifo()
        assert (root / "deep/there").is_dir()
        assert (root / "tmp").lstat().st_mode == 0o041777
        assert [os.listxattr(root / name) for name in ("d", "d/suid")] == [[], []]
