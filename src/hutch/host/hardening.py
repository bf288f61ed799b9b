"""Settings of a machine that decide what neighbours may learn from each other, beside what any backend does: `hutch doctor`.

None is needed for a sandbox to run, so none is ever a reason not to serve; each is named with what to do. What the kernel does
not tell is said to be unknown, not fine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CPU = "sys/devices/system/cpu"
_VULNERABLE = re.compile(r"(?:^|[:;] )Vulnerable\b")
_MICROCODE = re.compile(r"^microcode\s*:\s*(\S+)", re.MULTILINE)
MAX_WORDS = 120


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting: `ok` None where the kernel does not tell; `hint` says how to change it."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def advice(root: Path = Path("/")) -> list[Advice]:
    """All of them, read from `/proc` and `/sys` below `root`."""
    return [_smt(root), _ksm(root), _swap(root), _nested_paging(root), _microcode(root)]


def _read(root: Path, name: str) -> str | None:
    try:
        return (root / name).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _smt(root: Path) -> Advice:
    active = _read(root, f"{CPU}/smt/active")
    if active is None:
        return Advice("smt", None, "the kernel does not tell whether threads share a core")
    if active == "0":
        return Advice("smt", True, "no two threads share a core")
    return Advice(
        "smt",
        False,
        "two threads share a core and its caches: a sandbox may learn what its neighbour computes",
        f"Boot with `nosmt`, or `echo off >/{CPU}/smt/control`, where tenants don't trust each other.",
    )


def _ksm(root: Path) -> Advice:
    run, shared = _read(root, "sys/kernel/mm/ksm/run"), _read(root, "sys/kernel/mm/ksm/pages_shared")
    if run is None:
        return Advice("ksm", True, "the kernel merges no equal pages")
    if run != "1" and shared in (None, "0"):
        return Advice("ksm", True, "equal pages are not merged")
    return Advice(
        "ksm",
        False,
        f"equal pages of different programs are {'merged' if run == '1' else 'still shared'}: how long a write takes tells who "
        "else has the same",
        "`echo 2 >/sys/kernel/mm/ksm/run`, and stop what switches it on (ksmtuned).",
    )


def _swap(root: Path) -> Advice:
    table = _read(root, "proc/swaps")
    if table is None:
        return Advice("swap", None, "the kernel does not tell what it swaps to")
    places = [line.split()[0] for line in table.splitlines()[1:] if line.strip()]
    plain = [place for place in places if not _keeps_secrets(root, place)]
    if not plain:
        return Advice("swap", True, "in memory or encrypted only" if places else "there is none")
    return Advice(
        "swap",
        False,
        f"memory of sandboxes, with what they know, may be written to {', '.join(plain)[:MAX_WORDS]} and stays there",
        "`swapoff -a`, or swap to zram or to an encrypted device.",
    )


def _keeps_secrets(root: Path, place: str) -> bool:
    """Whether a swap device is memory, or encrypted by the kernel."""
    name = Path(place).name
    if name.startswith("zram"):
        return True
    return (_read(root, f"sys/block/{name}/dm/uuid") or "").startswith("CRYPT-")


def _nested_paging(root: Path) -> Advice:
    for module, parameter, name in (("kvm_intel", "ept", "EPT"), ("kvm_amd", "npt", "NPT")):
        found = _read(root, f"sys/module/{module}/parameters/{parameter}")
        if found in ("Y", "1"):
            return Advice("nested paging", True, f"{name} is used")
        if found is not None:
            return Advice(
                "nested paging",
                False,
                f"{name} is off: the host's kernel keeps tables of pages for each virtual machine, slowly and with more code to "
                "attack",
                f"Load {module} with {parameter}=1.",
            )
    return Advice("nested paging", None, "KVM is not there; only virtual machines need it")


def _microcode(root: Path) -> Advice:
    directory = root / CPU / "vulnerabilities"
    version = _MICROCODE.search(_read(root, "proc/cpuinfo") or "")
    revision = f"revision {version[1][:20]}" if version else "its revision is not told"
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return Advice("microcode", None, f"{revision}; the kernel does not tell what the processor is vulnerable to")
    open_ones = [
        f"{name} ({words[:MAX_WORDS]})"
        for name in names
        if _VULNERABLE.search(words := (_read(root, f"{CPU}/vulnerabilities/{name}") or ""))
    ]
    if not open_ones:
        return Advice("microcode", True, f"{revision}; the kernel knows of nothing that it does not mitigate")
    return Advice(
        "microcode",
        False,
        f"{revision}; not mitigated: {', '.join(open_ones)}",
        "Install intel-microcode or amd64-microcode and boot again, without `mitigations=off`; of a virtual machine, its host.",
    )
