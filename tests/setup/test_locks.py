"""Lock files: complete, hashed, and of one mind with what asks for the packages."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from scripts.setup import recipe
from scripts.setup.shell import CHECKOUT

EXAMPLES = sorted((CHECKOUT / "examples").glob("*/requirements.txt"))
OWN = [CHECKOUT / "requirements.txt", CHECKOUT / "requirements-dev.txt"]
LOCKS = [*OWN, *EXAMPLES, *sorted((recipe.DIRECTORY / "tools").glob("*.txt"))]
# Installed on purpose by who wants it, not by Hutch.
NOT_DECLARED: frozenset[str] = frozenset()


def normalised(requirement: str) -> str:
    """A requirement's distribution, as PyPI compares names."""
    name = re.split(r"[\[=<>;~! ]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes_and_no_address(path: Path) -> None:
    text = path.read_text()
    entries = [block for block in re.split(r"\n(?=[a-z0-9])", text) if "==" in block.splitlines()[0]]
    # One package may have a version for each of several Pythons.
    assert {normalised(entry) for entry in entries} == {normalised(name) for name in locked(path)} != set()
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)


def test_the_development_lock_has_the_same_versions_as_the_other() -> None:
    development = locked(CHECKOUT / "requirements-dev.txt")
    assert locked(CHECKOUT / "requirements.txt").items() <= development.items()


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_what_is_asked_for_is_locked(name: str) -> None:
    wanted = {normalised(line) for line in recipe.entries(CHECKOUT / f"{name}.in") if not line.startswith("-")}
    assert wanted <= {normalised(entry) for entry in locked(CHECKOUT / f"{name}.txt")}


def test_the_package_depends_on_what_requirements_in_names() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert sorted(project["dependencies"]) == sorted(recipe.entries(CHECKOUT / "requirements.in"))


def test_every_dependency_has_its_reason_in_the_documentation() -> None:
    documented = (CHECKOUT / "docs" / "dependencies.md").read_text()
    names = [*recipe.entries(CHECKOUT / "requirements.in"), *recipe.entries(CHECKOUT / "requirements-dev.in")]
    cargo = tomllib.loads((CHECKOUT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    names += [name for name, entry in cargo.items() if not (isinstance(entry, dict) and "path" in entry)]
    wanted = [re.split(r"[\[=]", name, maxsplit=1)[0] for name in names if not name.startswith("-")]
    assert [name for name in wanted if f"`{name}`" not in documented] == []


def test_everything_that_the_sources_import_is_declared() -> None:
    declared = {normalised(line) for line in recipe.entries(CHECKOUT / "requirements.in")}
    # A declared package's own base, imported where its types are named.
    declared |= {"starlette", "pydantic-core", "click", "anyio", "mcp-types"}
    owners = packages_distributions()
    missing = {}
    for path in (CHECKOUT / "src" / "hutch").rglob("*.py"):
        if "glue" in path.parts:
            continue  # Runs in the client's own environment.
        for module in _imports(path):
            known = module == "hutch" or module in sys.stdlib_module_names
            if not known and not {normalised(owner) for owner in owners.get(module, [])} & (declared | NOT_DECLARED):
                missing[module] = path.name
    assert missing == {}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_runsc_and_its_sources_are_pinned_with_sums() -> None:
    assert ("gvisor.dev/gvisor", "v0.0.0-20260905035102-160fafc42237") in _go_modules("runsc")


def test_the_s3_server_of_the_tests_is_pinned_with_sums() -> None:
    assert ("github.com/versity/versitygw", "v1.8.0") in _go_modules("s3")


def test_the_collector_of_the_tests_is_pinned_with_sums() -> None:
    assert ("go.opentelemetry.io/collector/receiver/otlpreceiver", "v0.165.0") in _go_modules("collector")


def _go_modules(tool: str) -> list[tuple[str, str]]:
    """What a module of `tools` requires. Everything has its sum."""
    module = (CHECKOUT / "tools" / tool / "go.mod").read_text()
    sums = (CHECKOUT / "tools" / tool / "go.sum").read_text()
    required = re.findall(r"^(?:require )?\t?(\S+\.\S+) (v\S+)", module, re.MULTILINE)
    assert all(f"{name} {version}/go.mod h1:" in sums for name, version in required)
    return required


def test_every_package_of_the_image_is_locked_to_a_version() -> None:
    plan = recipe.load()
    assert set(plan.packages) <= plan.pinned.keys()
    assert all(re.fullmatch(r"[0-9A-Za-z.+:~-]+", version) for version in plan.pinned.values())


def test_what_the_image_has_from_npm_is_locked_by_content() -> None:
    lock = json.loads((recipe.DIRECTORY / "npm" / "package-lock.json").read_text())
    modules = {name: entry for name, entry in lock["packages"].items() if name}
    assert "node_modules/pnpm" in modules
    assert all(entry["integrity"].startswith("sha512-") for entry in modules.values())
