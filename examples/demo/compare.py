"""Runs the same program through three clients; they must print the same lines. Printed side by side, with the time of each."""

import itertools
import subprocess
import sys
import time

PROGRAMS = {
    "@vercel/sandbox": ["node", "same.mjs"],
    "vercel-sandbox": [sys.executable, "same.py"],
    "sandbox (command line)": ["./same.sh"],
}
WIDTH = 26

outputs, times = {}, []
for client, command in PROGRAMS.items():
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    times.append(f"{(time.monotonic() - start) * 1000:.0f} ms")
    if done.returncode != 0:
        sys.exit(f"demo: {' '.join(command)} ended with {done.returncode}")
    outputs[client] = done.stdout.splitlines()

for row in [list(PROGRAMS), *itertools.zip_longest(*outputs.values(), fillvalue="(nothing)"), times]:
    print("".join(cell.ljust(WIDTH) for cell in row).rstrip())
first, *others = outputs.values()
if not first or any(lines != first for lines in others):
    sys.exit("demo: the clients do not print the same lines")
print("three clients, the same lines")
