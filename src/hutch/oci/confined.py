"""How the processes that make images are shut in: `python -m hutch.oci.confined DIRECTORY [TREE]`, started by the host as root.

Before one has read a byte of the image, it has a mount namespace whose root holds the system's programs (read-only) and the
directory of this one image, no network, few of root's capabilities, and bounds on memory and processor time. Then it becomes
`hutch.oci.unpack`, which may give files their owners and modes; or, with what a sandbox wrote at TREE (shown read-only),
`hutch.oci.written`, which may read everything in it.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from hutch.oci.unpack import INSIDE
from hutch.oci.written import WRITTEN
from hutch.serving import confine, kernel

MEMORY_BYTES = 3 * 1024**3
"""Room for a million names; an image that needs more is refused."""
CPU_S = 1800
OPEN_FILES = 1024
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
_TO_WRITE = frozenset({0, 1, 3, 4})
# DAC_READ_SEARCH; SYS_ADMIN, without which nobody sees that a directory hides the one below it. `hutch.oci.written` gives up
# what else could be done with it.
_TO_READ = frozenset({2, 21})


def main(directory: Path, tree: Path | None = None) -> None:
    """Start the program with nothing but what it needs, in place of this one."""
    root = directory / "root"
    root.mkdir(mode=0o700)
    # Not /etc: nothing here needs it, and what would be read there could end in an image.
    shown = [item for item in confine.program() if item.target != Path("/etc")]
    interpreter = Path(sys.executable).resolve().parent
    shown.append(confine.Shown(interpreter, interpreter, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV))
    shown.append(confine.Shown(directory, INSIDE, kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC))
    if tree is not None:
        shown.append(confine.Shown(tree, WRITTEN, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC))
    kept = _TO_WRITE if tree is None else _TO_READ
    kernel.unshare_mounts()
    kernel.unshare_network()
    confine.build_root(root, shown)
    for capability in range(confine.LAST_CAPABILITY + 1):
        if capability not in kept:
            kernel.drop_capability(capability)
    kernel.no_new_privileges()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Capabilities that were only forbidden end with the program that had them.
    module = "hutch.oci.unpack" if tree is None else "hutch.oci.written"
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
