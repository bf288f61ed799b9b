"""Sources of creates: what is fetched, under which policy, and what is refused before anything runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hutch.control.requests import SandboxSource
from hutch.control.sources import MASK, Source, read
from hutch.egress.policy import check
from hutch.errors import BadRequestError


def source(**fields: Any) -> Source:
    return read(SandboxSource.model_validate({"type": "git", **fields}))


def test_a_repository_becomes_a_program_and_a_policy_that_knows_no_password() -> None:
    plain = source(url="https://git.test/team/Repo.git/", depth=3, revision="v1")
    assert plain.argv(10)[3:] == ["sh", "https://git.test/team/Repo.git/", "Repo", "v1", "--depth", "3"]
    assert plain.policy() == '{"mode":"allow-all"}'
    archive = read(SandboxSource(type="tarball", url="http://files.test:8080/a.tgz?x=1#part"))
    assert archive.argv(10)[3:] == ["sh", "http://files.test:8080/a.tgz?x=1", "10"]


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://git.test/r.git", "username": "u", "password": "p@ss/word"},
        {"url": "https://u:p%40ss%2Fword@git.test/r.git"},
        {"url": "https://other:thing@git.test/r.git", "username": "u", "password": "p@ss/word"},
    ],
)
def test_a_login_is_in_the_policy_of_its_host_and_nowhere_else(fields: dict[str, Any]) -> None:
    private = source(**fields)
    assert "p@ss" not in repr(private)
    assert not any("p@ss" in word or "thing" in word for word in private.argv(1))
    policy = json.loads(private.policy())
    assert policy["allow"]["git.test"] == [{"transform": [{"headers": {"authorization": "Basic dTpwQHNzL3dvcmQ="}}]}]
    assert policy["allow"]["*"] == []
    assert check(private.policy()).mode == "custom"
    assert private.said("fatal: p@ss/word and dTpwQHNzL3dvcmQ=\n\n  end\n") == f"fatal: {MASK} and {MASK} end"


@pytest.mark.parametrize(
    "url",
    [
        "ssh://git.test/r",
        "git@git.test:r.git",
        "file:///etc",
        "ext::sh -c id",
        "ext::sh",
        "-u/x",
        "--upload-pack=x",
        "https://",
        "https:///r.git",
        "https://git.test/",
        "https://git.test/..",
        "https://git.test/%2e%2e",
        "https://git.test/-x.git",
        "https://git.test/a b",
        "https://git.test/a\nb",
        "https://git.test:99999/r.git",
        "https://[x/r.git",
        "https://git.test/" + "r" * 5000,
        "git://git.test/r",
        "/etc/passwd",
        "https://git.test/r\\..",
        "http://u:p@git.test/r.git",
        "https://git.test/r;id.git",
    ],
)
def test_what_is_no_url_of_a_repository_is_refused(url: str) -> None:
    with pytest.raises(BadRequestError) as error:
        source(url=url)
    assert error.value.code == "bad_request"
    assert "`source.url`" in error.value.message


@pytest.mark.parametrize(
    "revision", ["-x", "--upload-pack=x", "a b", "a..b", "HEAD@{1}", "a:b", "+a", "^a", "a\nb", "r" * 300, "/a"]
)
def test_what_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises(BadRequestError) as error:
        source(url="https://git.test/r.git", revision=revision)
    assert "`source.revision`" in error.value.message


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_is_a_source_or_a_bad_request(url: str, revision: str) -> None:
    try:
        made = source(url=f"https://git.test/{url}", revision=revision)
    except (BadRequestError, ValidationError):
        return
    assert made.url.startswith("https://git.test")
    assert not made.directory.startswith("-")
    assert made.directory not in ("", ".", "..")
    assert "/" not in made.directory
    assert not made.revision.startswith("-")
