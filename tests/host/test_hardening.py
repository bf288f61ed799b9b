"""What `hutch doctor` says of a machine's settings, for machines that are not this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.host.hardening import CPU, Advice, advice

SWAPS = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
GOOD = {
    f"{CPU}/smt/active": "0\n",
    "sys/kernel/mm/ksm/run": "0\n",
    "sys/kernel/mm/ksm/pages_shared": "0\n",
    "proc/swaps": SWAPS,
    "sys/module/kvm_intel/parameters/ept": "Y\n",
    "proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0xf0\n",
    f"{CPU}/vulnerabilities/l1tf": "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable\n",
    f"{CPU}/vulnerabilities/mds": "Not affected\n",
}


def machine(root: Path, **changed: str | None) -> dict[str, Advice]:
    """`changed` has the ends of files' names, and None for one that is not there."""
    files = dict(GOOD)
    for end, text in changed.items():
        [name] = [name for name in files if name.endswith(f"/{end}")] or [end]
        if text is None:
            del files[name]
        else:
            files[name] = text
    for name, text in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return {found.name: found for found in advice(root)}


def test_a_machine_as_it_should_be(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert list(found) == ["smt", "ksm", "swap", "nested paging", "microcode"]
    assert [advised.ok for advised in found.values()] == [True] * 5
    assert "0xf0" in found["microcode"].detail


def test_nothing_is_fine_that_is_not_told(tmp_path: Path) -> None:
    found = {advised.name: advised for advised in advice(tmp_path)}
    assert {name: advised.ok for name, advised in found.items()} == {
        "smt": None,
        # A kernel that was built without it.
        "ksm": True,
        "swap": None,
        "nested paging": None,
        "microcode": None,
    }
    assert all(advised.detail for advised in found.values())


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("smt", {"active": "1\n"}, "share a core"),
        ("ksm", {"run": "1\n"}, "are merged"),
        ("ksm", {"pages_shared": "12\n"}, "still shared"),
        ("swap", {"swaps": f"{SWAPS}/dev/sda2 partition 8388604 0 -2\n/swapfile file 1 0 -3\n"}, "/dev/sda2, /swapfile"),
        ("nested paging", {"ept": "N\n"}, "EPT is off"),
        ("microcode", {"mds": "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable\n"}, "mds (Vulnerable"),
        ("microcode", {"l1tf": "Mitigation: PTE Inversion; VMX: Vulnerable\n"}, "l1tf"),
        ("microcode", {"mds": "KVM: Vulnerable\n"}, "mds (KVM"),
    ],
)
def test_what_lets_neighbours_learn_of_each_other_is_named(tmp_path: Path, name: str, changed: dict[str, str], said: str) -> None:
    found = machine(tmp_path, **changed)
    assert [advised.name for advised in found.values() if advised.ok is False] == [name]
    assert said in found[name].detail
    assert found[name].hint


def test_swap_that_keeps_secrets_is_fine(tmp_path: Path) -> None:
    encrypted = tmp_path / "sys/block/dm-3/dm/uuid"
    encrypted.parent.mkdir(parents=True)
    encrypted.write_text("CRYPT-PLAIN-cryptswap\n")
    swaps = f"{SWAPS}/dev/zram0 partition 8388604 0 100\n/dev/dm-3 partition 1 0 -2\n"
    assert machine(tmp_path, swaps=swaps)["swap"].ok is True
    encrypted.write_text("LVM-0123\n")
    assert "/dev/dm-3" in machine(tmp_path, swaps=swaps)["swap"].detail


def test_amd_is_told_by_its_own_module(tmp_path: Path) -> None:
    assert machine(tmp_path, ept=None, **{"sys/module/kvm_amd/parameters/npt": "1\n"})["nested paging"].ok is True
