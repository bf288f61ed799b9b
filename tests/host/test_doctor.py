"""`hutch doctor` does what it checks, says why, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.host import doctor
from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.isolation import kvm
from hutch.isolation.qemu import Guest, Qemu
from hutch.isolation.qemu_command import Accelerator
from hutch.isolation.qemu_probe import kvm_verdict
from hutch.settings import load
from tests import leaks

pytestmark = pytest.mark.root


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_every_duty_is_checked_here_and_nothing_is_left(tmp_path: Path) -> None:
    before = leaks.snapshot()
    checks = by_name(doctor.run(load(None, environment={}, flags={"server.data_dir": tmp_path})))
    assert [check.name for check in checks.values() if check.required and check.ok is False] == []
    assert [check.name for check in checks.values() if not check.required] == ["smt", "ksm", "swap", "nested paging", "microcode"]
    assert all(check.detail for check in checks.values())
    assert checks["isolation gvisor"].ok
    assert checks["isolation"].detail.startswith("gvisor is used")
    assert checks["kvm"].ok is (True if kvm.probe().usable else None)
    assert [line for line in leaks.new(before, leaks.snapshot()) if "hutch-doctor" in line] == []


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    flags = {
        "server.data_dir": tmp_path,
        "isolation.runsc": tmp_path / "none",
        "image.dir": tmp_path / "none",
        "isolation.minimum": "qemu",
    }
    checks = by_name(doctor.run(load(None, environment={}, flags=flags)))
    for name in ("image", "isolation gvisor", "isolation"):
        assert checks[name].ok is False
        assert checks[name].hint
    assert "runsc is not installed" in checks["isolation gvisor"].detail


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_virtual_machines_are_tried_where_they_are_wanted(tmp_path: Path, accelerator: str) -> None:
    flags = {"server.data_dir": tmp_path, "isolation.backend": "qemu", "isolation.qemu_accelerator": accelerator}
    checks = by_name(doctor.run(load(None, environment={}, flags=flags)))
    works = accelerator == "tcg" or kvm_verdict(Qemu(Guest(guest_path()), tmp_path, Cgroups.detect(), Accelerator.KVM)).usable
    assert (checks["isolation qemu"].ok, checks["isolation"].ok) == (works, works)
    if works:
        assert "the guest's kernel booted" in checks["isolation qemu"].detail
        assert checks["isolation"].detail.startswith("qemu is used")
    else:
        assert checks["isolation qemu"].hint
        assert checks["kvm"].ok is False
        assert checks["kvm"].hint


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (check,) = doctor.run(load(None, environment={}))
    assert check.ok is False
    assert "root" in check.hint
