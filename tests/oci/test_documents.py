"""Manifests and configurations: whatever they hold, they are read within bounds or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import BadRequestError
from hutch.oci import documents

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_DIGEST = "sha256:" + "a" * 64


def configuration(**run: Any) -> documents.Config:
    said = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [_DIGEST]}, "config": run}
    return documents.config(json.dumps(said).encode(), 1)


@pytest.mark.parametrize(
    ("said", "cwd"),
    [("", "/"), (None, "/"), ("/srv", "/srv"), ("srv/app/", "/srv/app"), ("/a/../../b", "/b"), ("//a//b", "/a/b"), (".", "/")],
)
@pytest.mark.section("16.3")
def test_a_working_directory_is_absolute_and_plain(said: str | None, cwd: str) -> None:
    assert configuration(WorkingDir=said).cwd == cwd


def test_what_is_only_shown_is_left_out_where_it_is_too_long() -> None:
    found = configuration(Labels={"a": "x" * 20_000}, Cmd=["x" * 20_000], Entrypoint=["/init"], Env=["A=b=c", "EMPTY="])
    assert (found.labels, found.cmd, found.entrypoint) == ({}, [], ["/init"])
    assert found.env == {"A": "b=c", "EMPTY": ""}


@given(_JSON)
def test_no_document_is_anything_but_read_or_refused(document: Any) -> None:
    raw = json.dumps(document).encode()
    for reading in (
        lambda: documents.choose(raw, documents.OCI_INDEX),
        lambda: documents.manifest(raw, documents.OCI_MANIFEST, 10**9),
        lambda: documents.config(raw, 1),
    ):
        with pytest.raises(BadRequestError, match="image_invalid"):
            reading()


@given(_JSON)
def test_no_part_of_a_configuration_is_anything_but_read_or_refused(value: Any) -> None:
    for field in ("User", "Env", "WorkingDir", "Labels", "Cmd", "Entrypoint"):
        try:
            found = configuration(**{field: value})
        except BadRequestError:
            continue
        assert found.cwd.startswith("/")
        assert all(name and "\0" not in name + content for name, content in found.env.items())
