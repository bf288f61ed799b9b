"""Names and slugs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.names import check_name, check_slug, generate_name, is_name
from hutch.errors import BadRequestError


@given(st.text(max_size=200))
def test_a_name_is_what_the_documented_pattern_says(name: str) -> None:
    assert is_name(name) == (re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name, re.ASCII) is not None)


@given(st.from_regex(r"[a-zA-Z0-9_-]{1,128}", fullmatch=True))
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 129, "a b", "a\n", "ä", "a/b", "..", "\0", "a.b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequestError):
        check_name(name)


@pytest.mark.section("6.1")
def test_generated_names_are_names_and_differ() -> None:
    names = {generate_name() for _ in range(1000)}
    assert len(names) == 1000
    assert all(is_name(name) for name in names)


@pytest.mark.parametrize("slug", ["a", "acme", "a-b", "a1", "a" * 48])
def test_good_slugs_pass(slug: str) -> None:
    assert check_slug("team", slug) == slug


@pytest.mark.parametrize("slug", ["", "-a", "a-", "A", "a_b", "a" * 49, "a\n", "ä", "../x"])
def test_bad_slugs_are_refused(slug: str) -> None:
    with pytest.raises(BadRequestError):
        check_slug("team", slug)
