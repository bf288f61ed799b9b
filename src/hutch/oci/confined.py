"""How the process that unpacks an image is shut in: `python -m hutch.oci.confined DIRECTORY`, started by the host as root.

Before it has read a byte of the image, it has a mount namespace whose root holds the system's programs (read-only) and the
directory of this one pull, no network, of root's capabilities only those that give files their owners and modes, and bounds on
memory and processor time. Then it becomes `hutch.oci.unpack`.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from hutch.oci.unpack import INSIDE
from hutch.serving import confine, kernel

MEMORY_BYTES = 3 * 1024**3
"""Room for a million names; an image that needs more is refused."""
CPU_S = 1800
OPEN_FILES = 1024
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
_KEPT_CAPABILITIES = frozenset({0, 1, 3, 4})


def main(directory: Path) -> None:
    """Start `hutch.oci.unpack` with nothing but what it needs, in place of this program."""
    root = directory / "root"
    root.mkdir(mode=0o700)
    # Not /etc: nothing here needs it, and what would be read there could end in an image.
    shown = [item for item in confine.program() if item.target != Path("/etc")]
    interpreter = Path(sys.executable).resolve().parent
    shown.append(confine.Shown(interpreter, interpreter, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV))
    shown.append(confine.Shown(directory, INSIDE, kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC))
    kernel.unshare_mounts()
    kernel.unshare_network()
    confine.build_root(root, shown)
    for capability in range(confine.LAST_CAPABILITY + 1):
        if capability not in _KEPT_CAPABILITIES:
            kernel.drop_capability(capability)
    kernel.no_new_privileges()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Capabilities that were only forbidden end with the program that had them.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "hutch.oci.unpack"])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(Path(sys.argv[1]))
