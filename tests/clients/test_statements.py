"""Each statement of the vendor's API has a test that would fail if the server did otherwise.

`statements/NN.toml` has those of a section of the reference, one `[[statement]]` each: its `section`, what it `says` in our
words, and the `tests` that show it. What only a client does is `client = true`, and needs no test. Where the server does
otherwise on purpose, `differs` says why, and the tests show what it does instead.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

STATEMENTS = Path(__file__).parent / "statements"
FILES = sorted(STATEMENTS.glob("*.toml"))
SECTION = re.compile(r"[1-9]\d?(\.\d\d?)?")
TITLE = re.compile(r"""^\s*test\(\s*(["'`])(.+?)\1\s*,""", re.MULTILINE)
NUMBER = re.compile(r"§(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Statement:
    """What the reference says somewhere. Only statements about the server need tests."""

    section: str
    says: str
    tests: tuple[str, ...] = ()
    client: bool = False
    differs: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tests", tuple(self.tests))


def statements(path: Path) -> list[Statement]:
    """Raises `TypeError` for a key that a statement does not have."""
    return [Statement(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["statement"]]


def sections_of(test: str) -> set[str]:
    """The sections that a test is about. Raises `LookupError` when there is no such test."""
    path, _, name = test.partition("::")
    return (_titled if path.endswith(".mjs") else _marked)(path)[name.partition("[")[0]]


@functools.cache
def _titled(path: str) -> dict[str, set[str]]:
    source = (CHECKOUT / path).read_text(encoding="utf-8")
    return {title: set(NUMBER.findall(title)) for _, title in TITLE.findall(source)}


@functools.cache
def _marked(path: str) -> dict[str, set[str]]:
    module = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
    of_all: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            of_all |= _numbers(node.value)
    return dict(_tests(module.body, of_all))


def _tests(body: list[ast.stmt], inherited: set[str], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            numbers = inherited.union(*(_numbers(mark) for mark in node.decorator_list))
            if isinstance(node, ast.ClassDef):
                yield from _tests(node.body, numbers, f"{prefix}{node.name}::")
            elif node.name.startswith("test_"):
                yield prefix + node.name, numbers


def _numbers(marks: ast.expr) -> set[str]:
    """What `pytest.mark.section(…)` names somewhere in an expression."""
    calls = [node for node in ast.walk(marks) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.section"]
    return {str(argument.value) for call in calls for argument in call.args if isinstance(argument, ast.Constant)}


def about(section: str, number: str) -> bool:
    """Whether a test of section `number` can be one of a statement in `section`: that one, or one of which it is part."""
    return f"{number}.".startswith(f"{section}.") or f"{section}.".startswith(f"{number}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_each_statement_names_tests_that_there_are(path: Path) -> None:
    wrong = []
    for statement in statements(path):
        for test in statement.tests:
            try:
                numbers = sections_of(test)
            except (LookupError, FileNotFoundError):
                wrong.append(f"{statement.section}: there is no test {test}")
                continue
            if not any(about(statement.section, number) for number in numbers):
                wrong.append(f"{statement.section}: {test} is about {', '.join(sorted(numbers)) or 'no section'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_what_the_server_does_has_a_test(path: Path) -> None:
    assert [one.says for one in statements(path) if not one.client and not one.tests] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_statements_stand_once_in_the_file_of_their_section(path: Path) -> None:
    found = statements(path)
    assert len({(one.section, one.says) for one in found}) == len(found)
    for one in found:
        assert SECTION.fullmatch(one.section), one
        assert one.section.split(".")[0] == path.stem.lstrip("0"), one
        assert one.says, one


def test_a_test_that_is_not_there_is_noticed() -> None:
    here = "tests/clients/test_wire.py"
    assert sections_of(f"{here}::test_words_are_passed_as_they_are") == {"8.1"}
    assert sections_of("tests/clients/js/stop.test.mjs::§7.2 a deleted sandbox is gone, and its name is free") == {"7.2"}
    for gone in (f"{here}::test_nothing", f"{here}::refusal", "tests/clients/js/stop.test.mjs::§7.2 nothing"):
        with pytest.raises(LookupError):
            sections_of(gone)
    assert about("6.1", "6")
    assert about("6", "6.1")
    assert about("6.1", "6.1")
    assert not about("6.1", "6.10")
    assert not about("1", "11.2")
