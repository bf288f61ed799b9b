"""A tree packed as an EROFS file, by `mkfs.erofs`."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

from hutch.oci.documents import invalid
from hutch.oci.tar import MAX_TIME_S
from hutch.serving import kernel

_UUID = "00000000-0000-0000-0000-000000000000"


def pack(trunk: Path, image: Path, *, attributes: bool) -> None:
    """As `make setup` packs its images: uncompressed and never inline. With or without extended `attributes`. Raises
    `BadRequestError` (`image_invalid`)."""
    command = [
        "mkfs.erofs",
        *([] if attributes else ["-x-1"]),
        "-U",
        _UUID,
        "-Enoinline_data",
        os.fspath(image),
        os.fspath(trunk),
    ]
    environment = {
        "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        # The time at which it was packed, so that the same files are the same bytes, and the latest that a file may have.
        "SOURCE_DATE_EPOCH": str(MAX_TIME_S),
    }
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        # With this process, which ends with the host.
        preexec_fn=lambda: kernel.die_with_parent(signal.SIGKILL),
    )
    if done.returncode != 0:
        raise invalid(f"it can't be packed: {(done.stderr or done.stdout).strip()[-300:]}")
    assert stat.S_ISREG(image.lstat().st_mode)
