"""What decides which dependencies are installed, read from an archive that anybody may have made."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import layers

PACKAGE: dict[str, Any] = {"name": "w", "scripts": {"build": "tsc"}, "dependencies": {"a": "^1.0.0"}}
LOCK: dict[str, Any] = {"lockfileVersion": 3, "packages": {"node_modules/a": {"version": "1.0.1"}}}


def archive(files: dict[str, bytes | None], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """None is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=kind) as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type = tarfile.DIRTYPE
            entry.size = len(content or b"")
            made.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


def source(package: Any = PACKAGE, lock: Any = LOCK, **more: bytes | None) -> bytes:
    files: dict[str, bytes | None] = {"package.json": json.dumps(package).encode(), **more}
    if lock is not None:
        files["package-lock.json"] = json.dumps(lock).encode()
    return archive(files)


def test_only_the_files_that_decide_are_taken() -> None:
    found = layers.inputs(source(**{"src/index.ts": b"x", "src/package.json": b"{}", ".npmrc": b"fund=false\n"}))
    assert found is not None
    assert set(found.files) == {"package.json", "package-lock.json", ".npmrc"}
    assert found.locked
    with tarfile.open(fileobj=io.BytesIO(found.archive())) as alone:
        assert sorted(alone.getnames()) == [".npmrc", "package-lock.json", "package.json"]
    unlocked = layers.inputs(source(lock=None))
    assert unlocked is not None
    assert not unlocked.locked


def key(content: bytes, *settings: object) -> str:
    found = layers.inputs(content)
    assert found is not None
    return found.key(*settings)


def test_the_key_changes_with_each_of_them_and_with_nothing_else() -> None:
    base = key(source(), "image", [])
    assert key(source(**{"src/index.ts": b"other"}), "image", []) == base
    other_lock = {**LOCK, "packages": {"node_modules/a": {"version": "1.0.2"}}}
    others = [
        key(source(lock=other_lock), "image", []),
        key(source(lock=None), "image", []),
        key(source(package={**PACKAGE, "dependencies": {"a": "^2.0.0"}}), "image", []),
        key(source(**{".npmrc": b"registry=https://npm.example/\n"}), "image", []),
        key(source(), "newer image", []),
        key(source(), "image", ["npm.example"]),
    ]
    assert len({base, *others}) == 7


@pytest.mark.parametrize(
    "package",
    [
        {**PACKAGE, "scripts": {"postinstall": "cp -r src x"}},
        {**PACKAGE, "scripts": {"prepare": "tsc"}},
        {**PACKAGE, "scripts": "no"},
        {**PACKAGE, "workspaces": ["packages/*"]},
        {**PACKAGE, "dependencies": {"b": "file:../b"}},
        {**PACKAGE, "devDependencies": {"b": "./b"}},
        {**PACKAGE, "optionalDependencies": {"b": 7}},
        {**PACKAGE, "dependencies": ["a"]},
        [],
        7,
    ],
)
def test_what_needs_the_source_has_no_layer(package: Any) -> None:
    assert layers.inputs(source(package)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        gzip.compress(b"no tar" * 1000),
        source()[:-20],
        archive({"src/index.ts": b"x"}),
        source(**{"binding.gyp": b"{}"}),
        source(**{"node_modules/a/index.js": b"evil"}),
        source(lock={"packages": {"b": {"link": True}}}),
        source(lock={"packages": []}),
        archive({"package.json": b"[" * 100_000}),
        archive({"package.json": b"\xff{}"}),
        gzip.compress(b"\0" * (layers.MAX_INFLATED + 1)),
    ],
    # An archive has the time in it, and a test the same name in each process.
    ids=range(12),
)
def test_odd_archives_have_no_layer(content: bytes) -> None:
    assert layers.inputs(content) is None


UV_LOCK = b"""version = 1
[[package]]
name = "a"
version = "1.0.1"
source = { registry = "https://packages.example/simple" }
[[package]]
name = "w"
source = { virtual = "." }
"""
PROJECT = b"[project]\nname = 'w'\nversion = '1'\ndependencies = ['a>=1', 'b[c]~=2.0; python_version >= \"3.11\"']\n"
HASHED = b"# locked\na==1.0.1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\nb[c]==2 ; os_name == 'x' --hash=sha256:02\n"


@pytest.mark.parametrize(
    ("files", "taken", "locked"),
    [
        ({"uv.lock": UV_LOCK, "pyproject.toml": PROJECT, "requirements.txt": b"-e .\n"}, {"uv.lock", "pyproject.toml"}, True),
        ({"requirements.txt": HASHED, "pyproject.toml": b"no"}, {"requirements.txt"}, True),
        (
            {"requirements.txt": b"a\nb >= 2  # why\n\n", ".python-version": b"3.12"},
            {"requirements.txt", ".python-version"},
            False,
        ),
        ({"pyproject.toml": PROJECT}, {"pyproject.toml"}, False),
    ],
    ids=["uv", "hashes", "names", "project"],
)
def test_what_python_installs_from_is_taken(files: dict[str, bytes], taken: set[str], locked: bool) -> None:
    found = layers.inputs(archive({**files, "worker.py": b"x", "src/requirements.txt": b"z"}))
    assert found is not None
    assert (set(found.files), found.locked, found.language) == (taken, locked, "python")
    assert found.key() == key(archive({**files, "worker.py": b"other"}))
    assert found.key() != key(source())


@pytest.mark.parametrize(
    "files",
    [
        {"requirements.txt": b"-r more.txt\n"},
        {"requirements.txt": b"-e .\n"},
        {"requirements.txt": b"--find-links wheels\na\n"},
        {"requirements.txt": b"./wheels/a.whl\n"},
        {"requirements.txt": b"a @ file:///vercel/sandbox/a\n"},
        {"requirements.txt": b"a --global-option=x\n"},
        {"requirements.txt": b"https://packages.example/a.whl\n"},
        {"requirements.txt": b"\xff"},
        {"requirements.txt": b"a\n", ".venv/bin/python": b"evil"},
        {"uv.lock": b'[[package]]\nname = "b"\nsource = { directory = "b" }\n', "pyproject.toml": PROJECT},
        {"uv.lock": b'[[package]]\nname = "b"\nsource = { editable = "../b" }\n', "pyproject.toml": PROJECT},
        {"uv.lock": b'[[package]]\nname = "b"\nsource = 7\n', "pyproject.toml": PROJECT},
        {"uv.lock": UV_LOCK.replace(b"https://packages.example/simple", b"wheels"), "pyproject.toml": PROJECT},
        {"uv.lock": b"package = [7]\n"},
        {"uv.lock": b"package = 7\n"},
        {"uv.lock": b"[["},
        {"pyproject.toml": PROJECT + b"[tool.uv.sources]\na = { path = 'a' }\n"},
        {"pyproject.toml": b"[project]\ndynamic = ['dependencies']\n"},
        {"pyproject.toml": b"[project]\ndependencies = ['a @ file:///a']\n"},
        {"pyproject.toml": b"[project]\ndependencies = 'a'\n"},
        {"pyproject.toml": b"project = 7\n"},
        {"worker.py": b"x"},
    ],
)
def test_what_python_needs_the_source_for_has_no_layer(files: dict[str, bytes | None]) -> None:
    assert layers.inputs(archive(files)) is None


def test_long_names_hide_nothing() -> None:
    deep = "src/" + "d/" * 80 + "index.ts"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = layers.inputs(archive({deep: b"x", "package.json": json.dumps(PACKAGE).encode()}, kind))
        assert found is not None
        assert set(found.files) == {"package.json"}


@given(st.binary(max_size=4096))
def test_no_bytes_are_too_odd_to_be_looked_at(content: bytes) -> None:
    assert layers.inputs(content) is None or content
    assert layers.inputs(gzip.compress(content)) is None


@given(st.data())
def test_nor_is_a_damaged_archive(data: st.DataObject) -> None:
    whole = bytearray(gzip.decompress(source(**{"src/a": b"1" * 700})))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    found = layers.inputs(gzip.compress(bytes(whole), 1))
    assert found is None or set(found.files) <= set(layers.READ)
