"""Where packages of the base image come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.setup import mirror
from scripts.setup.mirror import Mirror
from scripts.setup.report import SetupError

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main contrib
deb-src http://source.example/debian bookworm main
deb http://mirror.example/security bookworm-security main
deb cdrom:[Debian]/ bookworm main
deb http://other.example/debian trixie main
"""
DEB822 = """
Types: deb deb-src
# a comment: with a colon
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Enabled: no

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUTCH_DEBIAN_MIRROR", raising=False)
    monkeypatch.delenv("HUTCH_DEBIAN_SECURITY_MIRROR", raising=False)


def apt(directory: Path, **files: str) -> Path:
    (directory / "sources.list.d").mkdir()
    for name, text in files.items():
        (directory / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return directory


@pytest.mark.parametrize("files", [{"x_list": ONE_LINE}, {"x_sources": DEB822}])
def test_the_hosts_own_mirrors_are_found_in_both_formats(tmp_path: Path, files: dict[str, str]) -> None:
    found = mirror.find("bookworm", apt(tmp_path, **files))
    assert found == Mirror("http://mirror.example/debian", "http://mirror.example/security")


def test_a_host_without_a_debian_of_its_own_names_none(tmp_path: Path) -> None:
    assert mirror.find("jammy", apt(tmp_path, x_list=ONE_LINE, x_sources=DEB822)) is None


def test_a_named_mirror_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_DEBIAN_MIRROR", "https://named.example/debian")
    assert mirror.find("bookworm", apt(tmp_path, x_list=ONE_LINE)) == Mirror("https://named.example/debian", None)


@pytest.mark.parametrize("value", ["named.example", "file:///etc", "ftp://named.example"])
def test_a_named_mirror_that_is_no_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HUTCH_DEBIAN_MIRROR", value)
    with pytest.raises(SetupError, match="HUTCH_DEBIAN_MIRROR"):
        mirror.find("bookworm", apt(tmp_path))


def test_the_guest_gets_the_mirrors_without_the_hosts_password() -> None:
    private = Mirror("https://user:secret@mirror.example:8443/debian", "https://user@mirror.example/security")
    text = mirror.sources(mirror.without_credentials(private), "trixie")
    assert "secret" not in text
    assert "user" not in text
    assert "URIs: https://mirror.example:8443/debian\nSuites: trixie trixie-updates\n" in text
    assert "URIs: https://mirror.example/security\nSuites: trixie-security\n" in text
