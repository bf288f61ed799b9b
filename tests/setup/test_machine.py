"""What setup says on machines that it can't serve."""

from __future__ import annotations

import pytest

from scripts.setup import agent, machine, packages, runsc
from scripts.setup.report import SetupError, Step

DEBIAN = (
    'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n'
)
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n'
MINT = 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="21.3"\n'
FEDORA = "ID=fedora\nVERSION_ID=41\n"


@pytest.mark.parametrize("text", [DEBIAN, UBUNTU, MINT, DEBIAN.replace("13", "12"), "ID=debian\nVERSION_CODENAME=forky\n"])
def test_supported_systems_are_accepted(text: str) -> None:
    assert machine.unsupported(machine.parse_os_release(text), "x86_64", apt=True, root=True) == []


@pytest.mark.parametrize(
    ("text", "architecture", "apt", "root", "said"),
    [
        (FEDORA, "x86_64", True, True, "fedora"),
        ("", "x86_64", True, True, "unknown"),
        (DEBIAN, "x86_64", False, True, "apt-get"),
        (DEBIAN.replace("13", "11"), "x86_64", True, True, "debian 11"),
        (UBUNTU.replace("22.04", "20.04"), "x86_64", True, True, "ubuntu 20.04"),
        (DEBIAN, "aarch64", True, True, "aarch64"),
        (DEBIAN, "x86_64", True, False, "no sudo"),
    ],
)
def test_an_unsupported_machine_is_told_why(text: str, architecture: str, apt: bool, root: bool, said: str) -> None:
    reasons = machine.unsupported(machine.parse_os_release(text), architecture, apt=apt, root=root)
    assert len(reasons) == 1
    assert said in reasons[0].replace("22.04 ", "")


def test_every_reason_is_named_at_once() -> None:
    assert len(machine.unsupported(machine.parse_os_release(FEDORA), "riscv64", apt=False, root=False)) == 3


def test_this_machine_has_what_it_runs_the_tests_on() -> None:
    machine.require_supported()
    assert machine.kernel_problems() == []


def test_a_kernel_without_a_file_system_is_told_which_and_why_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_FILE_SYSTEMS", {"hutchfs": "is only in this test"})
    problems = machine.kernel_problems()
    assert len(problems) == 1
    assert "hutchfs" in problems[0]
    assert "is only in this test" in problems[0]
    with pytest.raises(SetupError, match="hutchfs"):
        machine.ensure(Step("machine"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.19 linux/amd64", (1, 19)),
        ("go version devel +abc", ()),
        ("", ()),
    ],
)
def test_versions_of_go(text: str, version: tuple[int, ...]) -> None:
    assert runsc.go_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [("rustc 1.95.0 (59807616e 2026-04-14)", (1, 95, 0)), ("rustc 1.96.0-nightly (x)", (1, 96, 0)), ("error: no toolchain", ())],
)
def test_versions_of_rust(text: str, version: tuple[int, ...]) -> None:
    assert agent.rust_version(text) == version


@pytest.mark.parametrize(
    ("policy", "version"),
    [
        ("golang-go:\n  Installed: (none)\n  Candidate: 2:1.19~1\n", (1, 19)),
        ("cargo:\n  Installed: (none)\n  Candidate: 1.85.0+dfsg3-1\n", (1, 85, 0)),
        ("rustup:\n  Installed: (none)\n  Candidate: (none)\n", None),
        ("", None),
    ],
)
def test_the_distributions_candidate(policy: str, version: tuple[int, ...] | None) -> None:
    assert packages.parse_candidate(policy) == version


@pytest.fixture
def no_distribution(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A distribution that offers old compilers. Returns what setup installs from it."""
    installed: list[str] = []
    monkeypatch.setattr(packages, "candidate", {"golang-go": (1, 19), "cargo": (0, 66), "rustc": (1, 63)}.get)
    monkeypatch.setattr(packages, "install", lambda names, step: installed.extend(names))
    return installed


@pytest.mark.parametrize("have", [(), (1, 19), (1, 20, 5)])
def test_without_a_go_that_is_recent_enough_setup_says_how_to_get_one(no_distribution: list[str], have: tuple[int, ...]) -> None:
    with pytest.raises(SetupError, match="Go 1\\.26.* or newer") as caught:
        runsc._require_go(have, Step("runsc"))
    assert "install" in str(caught.value).lower()
    assert no_distribution == []


def test_a_go_that_fetches_newer_ones_is_enough(monkeypatch: pytest.MonkeyPatch, no_distribution: list[str]) -> None:
    monkeypatch.setenv("GOTOOLCHAIN", "auto")
    runsc._require_go((1, 22, 2), Step("runsc"))
    monkeypatch.setenv("GOTOOLCHAIN", "local")
    with pytest.raises(SetupError):
        runsc._require_go((1, 22, 2), Step("runsc"))


def test_the_distributions_go_is_taken_where_it_is_recent_enough(
    monkeypatch: pytest.MonkeyPatch, no_distribution: list[str]
) -> None:
    monkeypatch.setattr(packages, "candidate", lambda name: (1, 24))
    runsc._require_go((), Step("runsc"))
    assert no_distribution == ["golang-go"]


@pytest.mark.parametrize("have", [(), (1, 63, 0), (1, 87, 0)])
def test_without_a_rust_that_is_recent_enough_setup_says_how_to_get_one(
    no_distribution: list[str], have: tuple[int, ...]
) -> None:
    with pytest.raises(SetupError, match="Rust 1\\.88 or newer"):
        agent._require_rust(have, Step("agent"))
    assert no_distribution == []


def test_the_distributions_rust_is_taken_where_it_is_recent_enough(
    monkeypatch: pytest.MonkeyPatch, no_distribution: list[str]
) -> None:
    monkeypatch.setattr(packages, "candidate", lambda name: (1, 90, 0))
    agent._require_rust((), Step("agent"))
    assert no_distribution == ["cargo", "rustc"]
