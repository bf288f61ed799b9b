"""Where in a sandbox drives can be mounted."""

from __future__ import annotations

MAX_MOUNT_PATH = 256
RESERVED_PATHS = (
    "/proc",
    "/sys",
    "/dev",
    "/run/hutch",
    "/run/cell",
    "/run/vercel/share",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/ssl",
    "/etc/pki",
    "/usr/local/share/ca-certificates",
)
"""The kernel's own file systems, what the host shows the guest, and where it writes what the guest trusts, as it boots."""


def canonical_path(path: str) -> str:
    """An absolute path without repeated and final slashes and without `.`."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def overlap(one: str, other: str) -> bool:
    """Whether of two canonical paths one is the other, or lies below it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def mount_problem(path: str) -> str | None:
    """Why nothing can be mounted at a path; None if something can."""
    if not path.startswith("/"):
        return "is not absolute"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        return "contains control characters"
    if ".." in path.split("/"):
        return "contains '..'"
    canonical = canonical_path(path)
    if canonical == "/":
        return "is the root directory"
    if len(canonical) > MAX_MOUNT_PATH or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in canonical.split("/")):
        return f"is longer than {MAX_MOUNT_PATH} characters"
    for reserved in RESERVED_PATHS:
        if overlap(canonical, reserved):
            return f"is reserved (it overlaps {reserved})"
    return None
