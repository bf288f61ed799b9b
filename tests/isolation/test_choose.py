"""The backend that is used: never weaker than the operator wants, never another one than was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.errors import ConflictError
from hutch.isolation import choose, kvm
from hutch.isolation.choose import NoIsolation, Probe
from hutch.isolation.qemu import Qemu
from hutch.isolation.qemu_command import Accelerator
from hutch.settings import Backend, Settings, load

pytestmark = pytest.mark.root


def settings(**flags: object) -> Settings:
    return load(None, environment={}, flags={f"isolation.{name}": value for name, value in flags.items()})


def test_a_named_backend_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(NoIsolation, match=r"firecracker: isolation\.firecracker\.binary names no program"):
        choose.choose(settings(backend="firecracker"), tmp_path)
    with pytest.raises(NoIsolation, match="qemu: .*no-such-qemu is not installed"):
        choose.choose(settings(backend="qemu", qemu="no-such-qemu"), tmp_path)


def usable_kvm(monkeypatch: pytest.MonkeyPatch, *, usable: bool) -> None:
    monkeypatch.setattr(choose, "kvm_verdict", lambda _: kvm.Verdict(usable, "as the test says"))
    monkeypatch.setattr(choose, "verdict", lambda _: kvm.Verdict(True, "as the test says"))


def test_emulation_is_used_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable_kvm(monkeypatch, usable=False)
    with pytest.raises(NoIsolation, match="qemu: as the test says; nobody named `qemu` to have it emulated"):
        choose.choose(settings(minimum="qemu"), tmp_path)
    with pytest.raises(NoIsolation, match="qemu: as the test says"):
        choose.choose(settings(backend="qemu", qemu_accelerator="kvm"), tmp_path)
    for accelerator in ("auto", "tcg"):
        chosen = choose.choose(settings(backend="qemu", qemu_accelerator=accelerator), tmp_path)
        assert isinstance(chosen, Qemu)
        assert chosen.accelerator is Accelerator.TCG


def test_auto_takes_the_strongest_that_a_probe_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable_kvm(monkeypatch, usable=False)
    assert choose.choose(settings(), tmp_path).name == "gvisor"
    # An emulated machine, which others may name, is none for `auto`.
    found = choose.backends(settings(also="qemu"), tmp_path)
    assert found.names == ("gvisor", "qemu")
    usable_kvm(monkeypatch, usable=True)
    for flags in ({}, {"minimum": "qemu"}, {"qemu_accelerator": "kvm"}, {"also": "qemu"}):
        chosen = choose.choose(settings(**flags), tmp_path)
        assert isinstance(chosen, Qemu)
        assert chosen.accelerator is Accelerator.KVM
    # It emulates nothing.
    assert choose.choose(settings(qemu_accelerator="tcg"), tmp_path).name == "gvisor"
    machines = found.default
    monkeypatch.setattr(choose, "_probe_firecracker", lambda *_: Probe(Backend.FIRECRACKER, machines, "as the test says"))
    assert choose.choose(settings(), tmp_path) is machines
    assert choose.choose(settings(minimum="firecracker"), tmp_path) is machines
    assert isinstance(choose.choose(settings(backend="qemu"), tmp_path), Qemu)
    assert choose.choose(settings(backend="gvisor"), tmp_path).name == "gvisor"


@pytest.mark.parametrize("minimum", ["qemu", "firecracker"])
def test_nothing_weaker_than_the_minimum_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minimum: str) -> None:
    usable_kvm(monkeypatch, usable=False)
    with pytest.raises(NoIsolation, match="weaker than isolation.minimum"):
        choose.choose(settings(minimum=minimum), tmp_path)
    with pytest.raises(NoIsolation, match="weaker than isolation.minimum"):
        choose.choose(settings(backend="gvisor", minimum=minimum), tmp_path)


def test_a_sandbox_may_name_what_the_operator_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable_kvm(monkeypatch, usable=False)
    found = choose.backends(settings(also="qemu,firecracker,gvisor"), tmp_path)
    # Naming it in `also` is naming it: it may be emulated.
    assert found.names == ("gvisor", "qemu")
    assert (found.named("").name, found.named("qemu").name) == ("gvisor", "qemu")
    with pytest.raises(ConflictError, match=r"`firecracker`: isolation\.firecracker\.binary names no program") as refused:
        found.named("firecracker")
    assert refused.value.code == "isolation_unsupported"


def test_what_is_weaker_than_the_minimum_or_not_offered_is_refused_to_every_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable_kvm(monkeypatch, usable=True)
    found = choose.backends(settings(minimum="qemu", also="gvisor"), tmp_path)
    assert found.names == ("qemu",)
    with pytest.raises(ConflictError, match=r"weaker than isolation\.minimum"):
        found.named("gvisor")
    for name in ("firecracker", "chroot"):
        with pytest.raises(ConflictError, match="the operator offers it to none"):
            found.named(name)


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
