"""What is not documented fails the build: settings, error codes, routes, metrics."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from hutch.api.app import ROUTERS
from hutch.api.interactive import TERMINAL_PATH
from hutch.api.metrics import Metrics
from hutch.control.permissions import Permission, TokenRole, granted
from hutch.errors import BY_STATUS
from hutch.settings import ENVIRONMENT_PREFIX, Settings

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCE = CHECKOUT / "src" / "hutch"
ERRORS = {kind.__name__ for kind in BY_STATUS.values()} | {"HutchError"}
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def document(name: str) -> str:
    return (CHECKOUT / "docs" / name).read_text(encoding="utf-8")


def settings() -> list[str]:
    return [key for key, _ in Settings().leaves()]


def codes() -> set[str]:
    """Every code that is written as the first argument of an error of the tree."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function = node.func
            name = function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
            # `answer(STATUS, CODE, …)` writes the same shape below ASGI.
            argument = node.args[0] if name in ERRORS else node.args[1] if name == "answer" and len(node.args) > 1 else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and CODE.fullmatch(argument.value):
                found.add(argument.value)
    return found


def routes() -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


@pytest.mark.parametrize("key", settings())
def test_every_setting_is_documented_with_its_variable(key: str) -> None:
    variable = ENVIRONMENT_PREFIX + key.replace(".", "__").upper()
    rows = [line for line in document("configuration.md").splitlines() if line.startswith(f"| `{key}` |")]
    assert len(rows) == 1, f"docs/configuration.md needs one table row for `{key}`"
    assert f"`{variable}`" in rows[0]


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([a-z]+(?:\.[a-z_]+)+)` \|", document("configuration.md"), re.MULTILINE)
    assert sorted(documented) == sorted(settings())


def test_the_search_for_codes_finds_them() -> None:
    assert {"not_found", "bad_request", "sandbox_stopped", "header_too_large", "host_full"} <= codes()


def test_every_error_code_is_documented() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", document("errors.md"), re.MULTILINE))
    missing = codes() - documented
    assert not missing, f"docs/errors.md lacks {sorted(missing)}"


def test_every_documented_code_exists() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", document("errors.md"), re.MULTILINE))
    sources = [*SOURCE.rglob("*.py"), *(CHECKOUT / "crates").rglob("*.rs")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    gone = {code for code in documented if f'"{code}"' not in text}
    assert not gone, f"docs/errors.md names codes that nothing raises: {sorted(gone)}"


def test_every_route_is_documented() -> None:
    text = document("compatibility.md")
    missing = [f"{method} {path}" for method, path in sorted(routes()) if f"| `{method} {path}` |" not in text]
    assert not missing, f"docs/compatibility.md lacks {missing}"
    assert f"`{TERMINAL_PATH}`" in text


def test_no_route_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", document("compatibility.md"), re.MULTILINE)
    assert set(documented) <= routes()


def test_every_metric_is_documented() -> None:
    names = re.findall(r"^# TYPE (\w+) ", Metrics().render().decode(), re.MULTILINE)
    assert names
    missing = [name for name in names if not name.endswith("_created") and f"| `{name}` |" not in document("metrics.md")]
    assert not missing, f"docs/metrics.md lacks {missing}"


def test_the_table_of_roles_is_the_one_that_holds() -> None:
    rows = re.findall(r"^\| `([a-z.]+)` \|.*?\|(.*)\|$", document("tenancy.md"), re.MULTILINE)
    columns = [TokenRole.VIEWER, TokenRole.BILLING, TokenRole.DEVELOPER, TokenRole.OWNER, TokenRole.ADMIN]
    found = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert found == {
        str(permission): [
            "" if permission not in granted(role) else "yes" if permission in granted(role, one_project=True) else "team"
            for role in columns
        ]
        for permission in Permission
    }
