"""Who an image's user is, by files of somebody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import BadRequestError
from hutch.oci.users import MAX_ID, User, find

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
# a comment, and lines that are none:
broken
joe:x:1000:1001:Joe:/home/joe:/bin/sh
joe:x:0:0:a second joe:/root:/bin/sh
far:x:70000:70000::relative/home:/bin/sh
up:x:5:5::/home/../etc:/bin/sh
huge:x:99999999999:1::/:/bin/sh
"""
GROUP = b"root:x:0:\nstaff:x:50:ann,joe\nwheel:x:10:joe,ann\nown:x:1001:joe\nbad:x:x:joe\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ("root", 0, 0, [], "/root")),
        ("0", ("root", 0, 0, [], "/root")),
        ("joe", ("joe", 1000, 1001, [10, 50], "/home/joe")),
        ("1000", ("joe", 1000, 1001, [10, 50], "/home/joe")),
        ("joe:staff", ("joe", 1000, 50, [], "/home/joe")),
        ("joe:7", ("joe", 1000, 7, [], "/home/joe")),
        ("1234", ("1234", 1234, 0, [], "/")),
        ("1234:wheel", ("1234", 1234, 10, [], "/")),
        ("far", ("far", 70000, 70000, [], "/")),
        ("up", ("up", 5, 5, [], "/")),
    ],
)
def test_a_user_is_looked_up_as_container_runtimes_do(user: str, expected: tuple[str, int, int, list[int], str]) -> None:
    name, uid, gid, groups, home = expected
    assert find(user, PASSWD, GROUP) == User(name=name, uid=uid, gid=gid, groups=groups, home=home)


@pytest.mark.parametrize("user", ["ann", "huge", "99999999999", "-1", "joe:nobody", "1:-1", "٣"])
def test_a_user_that_there_is_not_is_refused(user: str) -> None:
    with pytest.raises(BadRequestError, match="image_invalid"):
        find(user, PASSWD, GROUP)


def test_an_image_without_either_file_has_root_and_numbers() -> None:
    assert find("", b"", b"") == User(name="root", uid=0, gid=0, groups=[], home="/")
    assert find("7:8", b"", b"") == User(name="7", uid=7, gid=8, groups=[], home="/")


@given(st.text(max_size=40), st.binary(max_size=400), st.binary(max_size=400))
def test_whatever_the_files_hold_ids_are_in_range_or_it_is_refused(user: str, passwd: bytes, group: bytes) -> None:
    try:
        found = find(user, passwd, group)
    except BadRequestError:
        return
    assert all(0 <= number <= MAX_ID for number in (found.uid, found.gid, *found.groups))
    assert found.home.startswith("/")
