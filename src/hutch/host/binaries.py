"""Where the native programs are: in a checkout's `.hutch/bin`, in the installed package, or as configured."""

from __future__ import annotations

from pathlib import Path

import hutch
from hutch.settings import Settings

AGENT = "hutch-agent"
GATEWAY = "hutch-net"
PRELOAD = "hutch-preload.so"


def agent_path(_settings: Settings) -> Path:
    """The guest agent. Raises `FileNotFoundError` naming every place that was looked at."""
    return _find(AGENT, "guest agent")


def gateway_path(_settings: Settings) -> Path:
    """The gateway. Raises `FileNotFoundError` naming every place that was looked at."""
    return _find(GATEWAY, "gateway")


def preload_path() -> Path:
    """What QEMU calls in place of functions of the C library (`crates/preload`). Raises `FileNotFoundError` as above."""
    return _find(PRELOAD, "library for QEMU")


def guest_path() -> Path:
    """The directory with the kernel of virtual machines, made or not."""
    return Path(hutch.__file__).resolve().parents[2] / ".hutch" / "guest"


def _find(name: str, what: str) -> Path:
    package = Path(hutch.__file__).resolve().parent
    places = [package.parents[1] / ".hutch" / "bin" / name, package / "bin" / name]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise FileNotFoundError(f"The {what} is not built (looked at {', '.join(map(str, places))}). Run `make setup`.")
