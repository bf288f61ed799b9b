"""The guest agent, one static binary from this checkout's Rust sources."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from scripts.setup import cache, packages, shell
from scripts.setup.report import SetupError, Step

TARGET = "x86_64-unknown-linux-gnu"
CRATES = ("agent", "wire")
# ELF's type of a program header that names a dynamic loader (PT_INTERP): a static binary has none.
_PT_INTERP = 3


def target_dir() -> Path:
    """Where cargo builds, for setup and tests alike: outside the checkout, so that a fresh one is warm."""
    return cache.root() / "cargo-target"


def wanted_version() -> tuple[int, ...]:
    """The oldest Rust that the workspace accepts."""
    text = (shell.CHECKOUT / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r'^rust-version = "([\d.]+)"$', text, re.MULTILINE)
    if found is None:
        raise SetupError("Cargo.toml has no rust-version.")
    return tuple(int(number) for number in found[1].split("."))


def rust_version(text: str) -> tuple[int, ...]:
    """The version in `rustc --version`'s answer: (1, 95, 0); empty where it has none."""
    found = re.search(r"^(?:rustc|cargo) (\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(number) for number in found.groups()) if found else ()


def sources() -> list[Path]:
    """Everything that the binary depends on."""
    root = shell.CHECKOUT
    found = [root / "Cargo.toml", root / "Cargo.lock", Path(__file__)]
    for crate in CRATES:
        found += [root / "crates" / crate / "Cargo.toml", *cache.files_below(root / "crates" / crate / "src")]
    return found


def ensure(step: Step) -> None:
    """Build the agent where the cache has none from these sources, and link `.hutch/bin/hutch-agent` to it."""
    said = _rustc_says()
    place = _place(said)
    if not (place / "hutch-agent").exists():
        _require_rust(rust_version(said), step)
        said = _rustc_says()
        place = _place(said)
        step.say(f"building it with {said} (half a minute when nothing is compiled yet)")
        with cache.building(place) as made:
            _build(made / "hutch-agent")
        step.done = True
    cache.link(shell.HUTCH_DIR / "bin" / "hutch-agent", place / "hutch-agent")
    step.detail = f".hutch/bin/hutch-agent ({(place / 'hutch-agent').stat().st_size / 1e6:.1f} MB, static)"


def _rustc_says() -> str:
    return shell.output_of(["rustc", "--version"]) or ""


def _place(rustc: str) -> Path:
    return cache.root() / "agent" / cache.content_key(rustc, files=sources())


def _build(binary: Path) -> None:
    shell.logged(
        ["cargo", "build", "--release", "--locked", "--package", "hutch-agent", "--target", TARGET],
        "agent",
        env={"RUSTFLAGS": "-C target-feature=+crt-static", "CARGO_TARGET_DIR": str(target_dir())},
    )
    built = target_dir() / TARGET / "release" / "hutch-agent"
    if not is_static(built.read_bytes()):
        raise SetupError(f"{built} is linked dynamically, so it would not start in every image. See .hutch/log/agent.log.")
    shutil.copy(built, binary)


def is_static(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file needs no dynamic loader."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return False
    table = int.from_bytes(elf[32:40], "little")
    entry, count = int.from_bytes(elf[54:56], "little"), int.from_bytes(elf[56:58], "little")
    kinds = [int.from_bytes(elf[table + entry * number :][:4], "little") for number in range(count)]
    return bool(kinds) and _PT_INTERP not in kinds


def _require_rust(have: tuple[int, ...], step: Step) -> None:
    wanted = wanted_version()
    if have >= wanted and shutil.which("cargo"):
        return
    number = ".".join(str(part) for part in wanted)
    if not have:
        if (packages.candidate("cargo") or (0,)) >= (0, wanted[1]) and (packages.candidate("rustc") or (0,)) >= wanted:
            packages.install(["cargo", "rustc"], step)
            return
        if packages.candidate("rustup"):
            packages.install(["rustup"], step)
            shell.logged(["rustup", "toolchain", "install", "stable", "--profile", "minimal"], "agent")
            return
    found = f"rustc {'.'.join(map(str, have))}" if have else "no rustc"
    raise SetupError(
        f"The agent is built from source, which needs Rust {number} or newer with cargo; there is {found} in "
        f"{os.environ.get('PATH', '')}, and this distribution's is too old. Install Rust as its site describes "
        "(rust-lang.org/tools/install), put it in PATH and run `make setup` again."
    )
