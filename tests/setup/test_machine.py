"""What setup says on machines that it can't serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.setup import go, machine, native, packages
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
    assert go.parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [("rustc 1.95.0 (59807616e 2026-04-14)", (1, 95, 0)), ("rustc 1.96.0-nightly (x)", (1, 96, 0)), ("error: no toolchain", ())],
)
def test_versions_of_rust(text: str, version: tuple[int, ...]) -> None:
    assert native.rust_version(text) == version


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


@pytest.mark.parametrize(
    ("have", "toolchain", "enough"),
    [
        ((), "", False),
        ((1, 19, 8), "", False),
        ((1, 22, 2), "auto", True),
        ((1, 22, 2), "local", False),
        ((1, 22, 2), "go1.22.2", False),
        ((1, 26, 3), "local", True),
        ((1, 27), "local", True),
        ((2, 0), "", True),
    ],
)
def test_a_go_is_enough_when_it_is_recent_or_fetches_a_recent_one(have: tuple[int, ...], toolchain: str, enough: bool) -> None:
    assert go.wanted() == "1.26.3"
    assert go.enough(have, toolchain) is enough


def test_the_sum_of_the_go_that_old_ones_fetch_is_known() -> None:
    assert go.sums()[f"v0.0.1-go{go.wanted()}.linux-amd64"].startswith("h1:")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH, and an empty cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HUTCH_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tmp").mkdir(parents=True)
    return tmp_path / "bin"


def old_go(place: Path, total: str, module: Path) -> None:
    """A Go 1.19 in `place` whose download of a toolchain has that sum."""
    answer = f'{{"Dir": "{module}", "Sum": "{total}"}}'
    (place / "go").write_text(f"#!/bin/sh\ncase $1 in env) [ $2 = GOVERSION ] && echo go1.19.8;; mod) echo '{answer}';; esac\n")
    (place / "go").chmod(0o755)
    (place / "env").symlink_to("/usr/bin/env")
    (module / "bin").mkdir(parents=True)
    (module / "bin" / "go").write_text("#!/bin/sh\n")
    (module / "bin" / "go").chmod(0o444)


def test_an_old_go_fetches_the_one_that_is_needed_once(programs: Path, tmp_path: Path, no_distribution: list[str]) -> None:
    old_go(programs, go.sums()[f"v0.0.1-go{go.wanted()}.linux-amd64"], tmp_path / "module")
    assert go.find() is None
    fetched = go.obtain(Step("runsc"))
    assert Path(fetched).stat().st_mode & 0o111
    (programs / "go").unlink()
    assert go.obtain(Step("runsc")) == go.find() == fetched
    assert no_distribution == []


def test_a_fetched_go_with_another_sum_is_refused(programs: Path, tmp_path: Path) -> None:
    old_go(programs, "h1:AAAA", tmp_path / "module")
    with pytest.raises(SetupError, match="h1:AAAA"):
        go.obtain(Step("runsc"))
    assert go.find() is None


@pytest.mark.usefixtures("programs")
def test_without_any_go_the_distributions_is_installed_and_else_setup_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, no_distribution: list[str]
) -> None:
    with pytest.raises(SetupError, match="Install Go"):
        go.obtain(Step("runsc"))
    assert no_distribution == ["golang-go"]
    monkeypatch.setattr(packages, "candidate", lambda name: None)
    with pytest.raises(SetupError, match="Go 1.26.3 or newer"):
        go.obtain(Step("runsc"))
    assert no_distribution == ["golang-go"]


@pytest.mark.parametrize("have", [(), (1, 63, 0), (1, 87, 0)])
def test_without_a_rust_that_is_recent_enough_setup_says_how_to_get_one(
    no_distribution: list[str], have: tuple[int, ...]
) -> None:
    with pytest.raises(SetupError, match="Rust 1\\.88 or newer"):
        native._require_rust(have, Step("agent"))
    assert no_distribution == []


def test_the_distributions_rust_is_taken_where_it_is_recent_enough(
    monkeypatch: pytest.MonkeyPatch, no_distribution: list[str]
) -> None:
    monkeypatch.setattr(packages, "candidate", lambda name: (1, 90, 0))
    native._require_rust((), Step("agent"))
    assert no_distribution == ["cargo", "rustc"]
