"""The native programs, from this checkout's Rust sources: the guest agent, the gateway, the policy engine for Python, and what
QEMU calls in place of functions of the C library."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.setup import cache, packages, shell
from scripts.setup.report import SetupError, Step

TARGET = "x86_64-unknown-linux-gnu"
# ELF's type of a program header that names a dynamic loader (PT_INTERP): a static binary has none.
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class Program:
    """One thing that cargo builds. `crates` are the directories below `crates/` that it depends on."""

    name: str
    package: str
    crates: tuple[str, ...]
    built: str
    """Below cargo's target directory."""
    link: str
    """Where the checkout has it; the file of that name is in the cache."""
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    static: bool = False

    @property
    def file(self) -> str:
        return Path(self.link).name


AGENT = Program(
    name="agent",
    package="hutch-agent",
    crates=("agent", "wire"),
    built=f"{TARGET}/release/hutch-agent",
    link=".hutch/bin/hutch-agent",
    arguments=("--target", TARGET),
    env={"RUSTFLAGS": "-C target-feature=+crt-static"},
    # It starts in images that have no loader, or one of another system.
    static=True,
)
ENGINE = Program(
    name="engine",
    package="hutch-python",
    crates=("policy", "python"),
    built="release/libhutch_native.so",
    link="src/hutch/egress/hutch_native.abi3.so",
    # A fault becomes an exception; with the workspace's `abort` it would end the process that asked.
    env={"CARGO_PROFILE_RELEASE_PANIC": "unwind"},
)
GATEWAY = Program(
    name="gateway",
    package="hutch-net",
    crates=("net", "policy", "wire"),
    built="release/hutch-net",
    link=".hutch/bin/hutch-net",
)
PRELOAD = Program(
    name="preload",
    package="hutch-preload",
    crates=("preload",),
    built="release/libhutch_preload.so",
    link=".hutch/bin/hutch-preload.so",
)
PROGRAMS = (AGENT, ENGINE, GATEWAY, PRELOAD)


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


def sources(program: Program) -> list[Path]:
    """Everything that the program depends on."""
    root = shell.CHECKOUT
    found = [root / "Cargo.toml", root / "Cargo.lock", root / ".cargo" / "config.toml", Path(__file__)]
    for crate in program.crates:
        found += [root / "crates" / crate / "Cargo.toml", *cache.files_below(root / "crates" / crate / "src")]
    return found


def step(program: Program) -> Callable[[Step], None]:
    """The step of setup that makes the program."""

    def ensure(running: Step) -> None:
        """Build the program where the cache has none from these sources, and link to it."""
        said = _rustc_says()
        place = _place(program, said)
        if not (place / program.file).exists():
            _require_rust(rust_version(said), running)
            said = _rustc_says()
            place = _place(program, said)
            running.say(f"building it with {said} (up to a few minutes when nothing is compiled yet)")
            with cache.building(place) as made:
                _build(program, made / program.file)
            running.done = True
        cache.link(shell.CHECKOUT / program.link, place / program.file)
        size = (place / program.file).stat().st_size / 1e6
        running.detail = f"{program.link} ({size:.1f} MB{', static' if program.static else ''})"

    return ensure


def _rustc_says() -> str:
    return shell.output_of(["rustc", "--version"]) or ""


def _place(program: Program, rustc: str) -> Path:
    return cache.root() / program.name / cache.content_key(rustc, files=sources(program))


def _build(program: Program, file: Path) -> None:
    shell.logged(
        ["cargo", "build", "--release", "--locked", "--package", program.package, *program.arguments],
        program.name,
        env={"CARGO_TARGET_DIR": str(target_dir()), **program.env},
    )
    built = target_dir() / program.built
    if program.static and not is_static(built.read_bytes()):
        raise SetupError(
            f"{built} is linked dynamically, so it would not start in every image. See .hutch/log/{program.name}.log."
        )
    shutil.copy(built, file)
    # Users that own nothing read it.
    file.chmod(0o755)


def is_static(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file needs no dynamic loader."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return False
    table = int.from_bytes(elf[32:40], "little")
    entry, count = int.from_bytes(elf[54:56], "little"), int.from_bytes(elf[56:58], "little")
    kinds = [int.from_bytes(elf[table + entry * number :][:4], "little") for number in range(count)]
    return bool(kinds) and _PT_INTERP not in kinds


def _require_rust(have: tuple[int, ...], running: Step) -> None:
    wanted = wanted_version()
    if have >= wanted and shutil.which("cargo"):
        return
    number = ".".join(str(part) for part in wanted)
    if not have:
        if (packages.candidate("cargo") or (0,)) >= (0, wanted[1]) and (packages.candidate("rustc") or (0,)) >= wanted:
            packages.install(["cargo", "rustc"], running)
            return
        if packages.candidate("rustup"):
            packages.install(["rustup"], running)
            shell.logged(["rustup", "toolchain", "install", "stable", "--profile", "minimal"], "rust")
            return
    found = f"rustc {'.'.join(map(str, have))}" if have else "no rustc"
    raise SetupError(
        f"The native programs are built from source, which needs Rust {number} or newer with cargo; there is {found} in "
        f"{os.environ.get('PATH', '')}, and this distribution's is too old. Install Rust as its site describes "
        "(rust-lang.org/tools/install), put it in PATH and run `make setup` again."
    )
