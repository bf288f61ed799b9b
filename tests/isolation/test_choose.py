"""The backend that is used: never weaker than the operator wants, never another one than was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.isolation import choose, kvm
from hutch.isolation.choose import NoIsolation
from hutch.settings import Settings, load

pytestmark = pytest.mark.root


def settings(**flags: object) -> Settings:
    return load(None, environment={}, flags={f"isolation.{name}": value for name, value in flags.items()})


def test_auto_takes_what_a_probe_boots(tmp_path: Path) -> None:
    assert choose.choose(settings(), tmp_path).name == "gvisor"


@pytest.mark.parametrize("backend", ["qemu", "firecracker"])
def test_a_named_backend_is_never_replaced(tmp_path: Path, backend: str) -> None:
    with pytest.raises(NoIsolation, match=f"{backend}: this release has no such backend yet"):
        choose.choose(settings(backend=backend), tmp_path)


@pytest.mark.parametrize("minimum", ["qemu", "firecracker"])
def test_nothing_weaker_than_the_minimum_is_taken(tmp_path: Path, minimum: str) -> None:
    with pytest.raises(NoIsolation, match="weaker than isolation.minimum"):
        choose.choose(settings(minimum=minimum), tmp_path)
    with pytest.raises(NoIsolation, match="weaker than isolation.minimum"):
        choose.choose(settings(backend="gvisor", minimum=minimum), tmp_path)


def test_a_runsc_that_does_not_work_is_refused_with_what_it_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho the platform is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(NoIsolation, match="the platform is broken"):
        choose.choose(settings(runsc=broken), tmp_path)


def test_a_missing_runsc_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoIsolation, match="runsc is not installed"):
        choose.choose(settings(runsc=tmp_path / "nothing"), tmp_path)


def test_a_verdict_about_kvm_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kvm.probe().reason
    monkeypatch.setattr(kvm, "DEVICE", "/nonexistent")
    assert kvm.probe() == kvm.Verdict(
        False, "/nonexistent does not exist: no hardware virtualization, or it is not passed on to this machine"
    )
