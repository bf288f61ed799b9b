"""What COPY takes of a build's directory, and what it does not."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from hutch.cli.context import Context
from hutch.errors import HutchError


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(name)


def packed(context: Context, source: str, target: str) -> dict[str, bytes | None]:
    """Every entry of the archive; None for directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        added = [name for path in context.find(source) for name in context.pack(archive, path, target)]
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        found = {entry.name: content.read() if (content := archive.extractfile(entry)) else None for entry in archive}
    assert [f"/{name}" for name in found] == added
    return found


def test_a_directory_gives_what_is_in_it(tmp_path: Path) -> None:
    tree(tmp_path, "a/b", "a/c/d", "a/empty/", "e")
    (tmp_path / "a" / "link").symlink_to("../e")
    (tmp_path / "a" / "linked").symlink_to("c")
    assert packed(Context(tmp_path), "a", "/x") == {
        "x/b": b"a/b",
        "x/c": None,
        "x/c/d": b"a/c/d",
        "x/empty": None,
        "x/link": b"e",
        "x/linked": None,
        "x/linked/d": b"a/c/d",
    }
    assert packed(Context(tmp_path), "./e", "/y") == {"y": b"e"}
    assert [path.name for path in Context(tmp_path).find("a/[bc]*")] == ["b", "c"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("missing", "no_such_file"),
        ("*.none", "no_such_file"),
        ("../up", "not_copied"),
        ("a/../../up", "not_copied"),
        ("out", "not_copied"),
        ("through/passwd", "not_copied"),
        ("through/pass*", "not_copied"),
        ("with-link-out", "not_copied"),
        ("up", "not_copied"),
        ("circle", "not_copied"),
        ("itself", "not_readable"),
        ("dangling", "not_readable"),
        ("pipe", "not_copied"),
    ],
)
def test_nothing_outside_is_read(tmp_path: Path, source: str, code: str) -> None:
    root = tmp_path / "root"
    tree(root, "a/b", "with-link-out/x", "circle/x")
    tree(tmp_path, "up")
    (root / "out").symlink_to("/etc/passwd")
    (root / "through").symlink_to("/etc")
    (root / "with-link-out" / "etc").symlink_to("/etc")
    (root / "up").symlink_to("../up")
    (root / "circle" / "again").symlink_to("..")
    (root / "itself").symlink_to("itself")
    (root / "dangling").symlink_to("nothing")
    os.mkfifo(root / "pipe")
    with pytest.raises(HutchError) as refused:
        packed(Context(root), source, "/x")
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ("", {"a.log", "b", "d/c.log", "d/e/f.log", "d/e/g"}),
        ("*.log", {"b", "d/c.log", "d/e/f.log", "d/e/g"}),
        ("**/*.log", {"b", "d/e/g"}),
        ("# d\n\n d/e \n", {"a.log", "b", "d/c.log"}),
        ("/d/", {"a.log", "b"}),
        ("d\n!d/e/g", {"a.log", "b", "d/e/g"}),
        ("*\n!b", {"b"}),
        ("d/?/f.log", {"a.log", "b", "d/c.log", "d/e/g"}),
        ("(.*)+$\n[", {"a.log", "b", "d/c.log", "d/e/f.log", "d/e/g"}),
    ],
)
def test_what_is_ignored_is_left_out(tmp_path: Path, rules: str, left: set[str]) -> None:
    tree(tmp_path, "a.log", "b", "d/c.log", "d/e/f.log", "d/e/g")
    (tmp_path / ".dockerignore").write_text(rules)
    found = packed(Context(tmp_path), ".", "/x")
    assert {name.removeprefix("x/") for name, content in found.items() if content is not None} - {".dockerignore"} == left


def test_what_is_ignored_cannot_be_named(tmp_path: Path) -> None:
    tree(tmp_path, "secret/key", "b")
    (tmp_path / ".dockerignore").write_text("secret")
    for source in ("secret", "secret/key", "s*"):
        with pytest.raises(HutchError, match="no_such_file"):
            Context(tmp_path).find(source)


def test_there_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(HutchError, match="no_such_file"):
        Context(tmp_path / "missing")
