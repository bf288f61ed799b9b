"""Archives of `hutch cp`: what leaves this machine, and what a hostile sandbox may do to it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from hutch.client.archives import pack, unpack
from hutch.errors import BadRequestError, HutchError, NotFoundError


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    raw.seek(0)
    return raw


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


@pytest.mark.parametrize(
    "hostile",
    [
        [(entry("../outside"), b"x")],
        [(entry("/absolute/outside"), b"x"), (entry("../x"), b"x")],
        [(entry("link", tarfile.SYMTYPE, "/etc"), b""), (entry("link/outside"), b"x")],
        [(entry("link", tarfile.SYMTYPE, "../.."), b"")],
        [(entry("hard", tarfile.LNKTYPE, "../../etc/passwd"), b"")],
        [(entry("device", tarfile.CHRTYPE), b"")],
        [(entry("pipe", tarfile.FIFOTYPE), b"")],
        [(entry("a/b"), b"x"), (entry("a/b/c"), b"x")],
    ],
)
def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, hostile: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    target = tmp_path / "deep" / "target"
    with pytest.raises(HutchError):
        unpack(archive(*hostile), target)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and target not in path.parents] == []
    assert not Path("/absolute").exists()


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", b"\x1f\x8b" + b"\0" * 20, archive((entry("x"), b"y" * 100_000)).getvalue()[:60]],
    ids=["empty", "text", "magic", "cut"],
)
def test_what_is_no_archive_is_reported(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(BadRequestError) as error:
        unpack(io.BytesIO(raw), tmp_path / "target")
    assert error.value.code == "hostile_archive"


def test_modes_do_not_come_out_of_the_sandbox_as_they_are(tmp_path: Path) -> None:
    assert unpack(archive((entry("run", mode=0o6777), b"x")), tmp_path / "target") == 1
    mode = (tmp_path / "target" / "run").stat().st_mode
    assert mode & 0o7022 == 0, oct(mode)


def test_a_tree_goes_in_and_comes_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "file").write_bytes(b"content")
    (tree / "link").symlink_to("file")
    raw = io.BytesIO()
    assert pack(tree, "/vercel/copy", raw) == 14
    raw.seek(0)
    with tarfile.open(fileobj=raw) as tar:
        found = {member.name: member.type for member in tar}
    directory, file = tarfile.DIRTYPE, tarfile.REGTYPE
    names = ["vercel/copy", "vercel/copy/empty", "vercel/copy/file", "vercel/copy/link"]
    assert found == dict(zip(names, [directory, directory, file, file], strict=True))


def test_what_can_not_go_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(".")
    with pytest.raises(BadRequestError, match="link to a directory"):
        pack(tmp_path, "/x", io.BytesIO())
    with pytest.raises(NotFoundError):
        pack(tmp_path / "none", "/x", io.BytesIO())
    with pytest.raises(BadRequestError, match="below /"):
        pack(tmp_path, "/", io.BytesIO())
