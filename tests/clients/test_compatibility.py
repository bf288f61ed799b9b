"""docs/compatibility.md says what tests of real clients have shown, about everything that these clients have."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients import compatibility, shown
from tests.clients.compatibility import PAGE, generated, page, results, rows, unshown

MEMBER = re.compile(r"  (?:static )?(?:get )?([a-zA-Z]\w*)(?:<[^(]*>)?\(")
DECLARATIONS = ("sandbox", "session", "command", "filesystem", "sandbox-user", "snapshot", "drive")


def javascript_surface(package: Path) -> set[str]:
    """Public methods and properties of the classes that the SDK's declarations have."""
    found = set()
    for name in DECLARATIONS:
        kind = None
        for line in (package / "dist" / f"{name}.d.ts").read_text(encoding="utf-8").splitlines():
            if declared := re.match(r"declare class (\w+)", line):
                kind = declared[1]
            elif line.startswith("}"):
                kind = None
            elif kind is not None and (member := MEMBER.match(line)) and member[1] != "constructor":
                found.add(f"js:{kind}.{member[1]}")
    return found


def of(key: str) -> set[str]:
    return {row for row in compatibility.listed(rows()) if row.startswith(f"{key}:")}


def test_the_page_is_what_rows_and_results_make_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text, rows(), results()), "run `make compatibility`"


def test_what_works_was_shown_by_a_test() -> None:
    assert unshown(rows(), results()) == []


def test_a_claim_without_a_test_is_noticed() -> None:
    emptied = {row: tests for row, tests in results().items() if row != "js:Sandbox.create"}
    assert unshown(rows(), emptied) == ["js:Sandbox.create"]
    assert generated(rows(), emptied) != generated(rows(), results())


def test_remarks_are_about_rows_and_say_why() -> None:
    remarks = rows()["remark"]
    assert set(remarks) <= compatibility.listed(rows())
    assert {remark["state"] for remark in remarks.values()} <= {"differs", "not offered"}
    assert all(remark["text"] for remark in remarks.values())


def test_every_member_of_the_javascript_sdk_has_a_row(javascript_sdk: Path) -> None:
    surface = javascript_surface(javascript_sdk / "node_modules" / "@vercel" / "sandbox")
    assert len(surface) > 150
    assert surface == of("js")


def test_every_member_of_the_python_sdk_has_a_row() -> None:
    assert len(shown.python_surface()) > 400
    assert shown.python_surface() == of("py")


def test_endpoints_are_found_again_in_what_was_asked() -> None:
    line = (
        '{"test": "t", "shown": ["http:GET /api/v3/sandboxes/drives/x", "http:POST /v2/sandboxes/x/fork", "http:GET /metrics"]}'
    )
    assert compatibility.collect([line]) == {
        "http:GET /v2/sandboxes/drives/{drive}": ["t"],
        "http:POST /v2/sandboxes/{name}/fork": ["t"],
    }
