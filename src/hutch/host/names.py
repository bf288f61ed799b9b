"""What this instance of Hutch calls its things in the kernel.

Several instances may run on one machine, and a restarted one must find what its predecessor left. So every name carries a
tag made of the data directory, and everything that carries it and is not in use is an orphan.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

NAMESPACE_DIR = Path("/run/netns")
_MACHINE = re.compile(r"m[0-9a-f]{20}")


def machine_id() -> str:
    """A new machine's id. All have one length: `runsc` resolves ids by prefix."""
    return "m" + secrets.token_hex(10)


def is_machine_id(text: str) -> bool:
    return _MACHINE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Names:
    """Kernel names of one instance. Interface names have at most 15 characters."""

    tag: str

    @classmethod
    def of(cls, data_dir: Path) -> Names:
        return cls(hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:6])

    @property
    def link_prefix(self) -> str:
        return f"h{self.tag}n"

    @property
    def namespace_prefix(self) -> str:
        return f"hutch-{self.tag}-"

    @property
    def table(self) -> str:
        return f"hutch_{self.tag}"

    @property
    def cgroup_parent(self) -> str:
        """The cgroup of all sandboxes, below each hierarchy's root."""
        return f"/hutch/{self.tag}"

    def link(self, number: int) -> str:
        return f"{self.link_prefix}{number}"

    def namespace(self, number: int) -> str:
        return f"{self.namespace_prefix}{number}"

    def cgroup(self, machine: str) -> str:
        return f"{self.cgroup_parent}/{machine}"
