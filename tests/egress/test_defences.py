"""Every test of a threat fails when the defence that it is about is switched off (`defences.py`).

A test that passes all the same would be a test of nothing. Each set of defences has a run of pytest of its own, in a network
of its own, with builds of gateway and engine that can be without them.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hutch.egress import hutch_native
from tests.builds import CHECKOUT, DEFENCES_OFF
from tests.egress import defences
from tests.egress.undefended import UNDEFENDED

MODULES = sorted(f"egress.{path.stem}" for path in Path(__file__).parent.glob("test_*.py") if path.stem != "test_defences")
"""Of the firewall; and what the kernel's rules keep the ingress from."""
MODULES.append("ingress.test_kernel")
THREAT = re.compile(r"test_t(\d+)_")
QUICK, SEED = 3, 20261126
"""Sets of defences in an ordinary run; a campaign has all."""


def functions() -> Iterator[tuple[str, Any]]:
    """Every test function, with its address."""
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"tests.{module}")).items():
            if name.startswith("test_") and callable(value):
                yield f"tests/{module.replace('.', '/')}.py::{name}", value


def marked() -> dict[tuple[str, ...], list[str]]:
    """Tests by the defences that they are about."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for address, test in functions():
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "defence":
                found[tuple(sorted(mark.args))].append(address)
    return dict(found)


@dataclass(frozen=True)
class Builds:
    """Gateway and engine that can be without defences."""

    gateway: Path
    engine: Path


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    files: dict[str, Path] = {}
    for line in DEFENCES_OFF.output().splitlines():
        artifact = json.loads(line)
        if artifact["reason"] == "compiler-artifact" and artifact["target"]["name"] in ("hutch-net", "hutch_native"):
            files[artifact["target"]["name"]] = Path(artifact["filenames"][-1])
    # The next build of these takes their places.
    directory = tmp_path_factory.mktemp("defences-off")
    directory.chmod(0o755)
    return Builds(
        Path(shutil.copy(files["hutch-net"], directory / "hutch-net")),
        Path(shutil.copy(files["hutch_native"], directory / "hutch_native.abi3.so")),
    )


def outcomes(builds: Builds, off: tuple[str, ...], addresses: list[str], directory: Path) -> dict[str, list[str]]:
    """What became of the cases of each test without these defences: for each case how it failed, or nothing."""
    report = directory / "report.xml"
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=40",
        f"--junitxml={report}",
        *addresses,
    ]
    # A network of its own: the origins' addresses are in use here.
    isolated = 'ip link set lo up && exec "$@"'
    ran = subprocess.run(
        ["unshare", "-n", "-m", "--propagation", "slave", "sh", "-c", isolated, "sh", *pytest_command],
        cwd=CHECKOUT,
        env=os.environ
        | {
            defences.VARIABLE: ",".join(off),
            defences.ENGINE_VARIABLE: str(builds.engine),
            "HUTCH_TEST_GATEWAY": str(builds.gateway),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Some tests are to fail.
        check=False,
    )
    assert report.exists(), ran.stdout
    found: dict[str, list[str]] = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = re.sub(r"\[.*", "", case.attrib["name"], flags=re.DOTALL)
        failure = case.find("failure")
        if failure is not None:
            found[name].append(failure.attrib["message"].splitlines()[0])
        # Fixtures look for what was spilled afterwards. What goes wrong before a test begins is no answer.
        elif (error := case.find("error")) is not None and error.attrib["message"].startswith("failed on teardown"):
            found[name].append(error.attrib["message"])
        elif error is not None:
            pytest.fail(f"{name} without {', '.join(off)}: {error.attrib['message']}\n{error.text}")
    return found


def survivors(builds: Builds, off: tuple[str, ...], addresses: list[str], directory: Path) -> list[str]:
    """Tests that none of their cases noticed anything in."""
    found = outcomes(builds, off, addresses, directory)
    for address in addresses:
        name = address.rpartition("::")[2]
        print(f"without {', '.join(off)}: {name}: {found[name][0] if found[name] else 'PASSES'}")
    return [address for address in addresses if not found[address.rpartition("::")[2]]]


def test_every_test_of_a_threat_names_its_defence() -> None:
    named = {address for addresses in marked().values() for address in addresses}
    names = {address.rpartition("::")[2] for address, _ in functions()}
    missing = [
        address
        for address, _ in functions()
        if THREAT.search(address) and address not in named and address.rpartition("::")[2] not in UNDEFENDED
    ]
    assert not missing
    assert names >= UNDEFENDED.keys()


def test_every_defence_has_a_test() -> None:
    declared = re.findall(r'^    \w+ "([a-z0-9-]+)" "', (CHECKOUT / "crates/policy/src/defence.rs").read_text(), re.MULTILINE)
    assert len(declared) > 50
    assert {name for names in marked() for name in names} == {*declared, *defences.HOST}


def test_what_is_installed_cannot_be_without_a_defence() -> None:
    from hutch.host.binaries import gateway_path
    from hutch.settings import load

    for path in (gateway_path(load(None, environment={}, flags={})), Path(hutch_native.__file__)):
        assert defences.VARIABLE.encode() not in path.read_bytes()


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_without_its_defence_a_test_fails(builds: Builds, tmp_path: Path) -> None:
    assert defences.VARIABLE.encode() in builds.gateway.read_bytes()
    sets = sorted(marked().items())
    wanted = os.environ.get("HUTCH_TEST_DEFENCES")
    if wanted:
        sets = [(off, addresses) for off, addresses in sets if set(off) & set(wanted.split(","))]
    elif os.environ.get("HUTCH_CAMPAIGN") != "full":
        sets = random.Random(SEED).sample(sets, QUICK)
    passed = []
    for number, (off, addresses) in enumerate(sets):
        directory = tmp_path / str(number)
        directory.mkdir()
        passed += [(off, address) for address in survivors(builds, off, addresses, directory)]
    assert not passed
