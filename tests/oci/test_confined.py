"""What the process that unpacks images is left with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

_INSIDE = """
import ctypes, json, os, resource, socket
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capget(header, data) == 0
effective = data[0] | data[3] << 32
print(json.dumps({
    "capabilities": [number for number in range(64) if effective >> number & 1],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "there": [path for path in PATHS if os.path.exists(path)],
    "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
    "writable": [path for path in ("/", "/usr", "/hutch-image") if os.access(path, os.W_OK)],
}))
"""
_OUTSIDE = """
import os, sys
from pathlib import Path
from hutch.oci import confined
start = os.execv
os.execv = lambda program, _: start(program, [program, "-P", "-c", sys.argv[2]])
confined.main(Path(sys.argv[1]))
"""


def test_it_has_no_network_no_files_and_few_rights(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    work = tmp_path / "work"
    work.mkdir()
    (work / "own").touch()
    places = ["/etc/shadow", "/proc/self", "/sys/kernel", "/dev/sda", str(secret), "/hutch-image/own", "/usr/bin"]
    inside = f"PATHS = {places!r}\n{_INSIDE}"
    done = subprocess.run([sys.executable, "-c", _OUTSIDE, work, inside], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    # CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
    assert found["capabilities"] == [0, 1, 3, 4]
    assert found["interfaces"] == ["lo"]
    assert found["there"] == ["/hutch-image/own", "/usr/bin"]
    assert found["memory"] == 3 * 1024**3
    assert "/usr" not in found["writable"]
    assert "/hutch-image" in found["writable"]
