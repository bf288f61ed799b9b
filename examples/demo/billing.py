"""What it costs: a budget stops a program that never ends, and a signed receipt says what was used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from hutch.client import Client, SandboxResources

BUDGET_US = 1_000_000
WITHIN_US = 1_000_000
"""The most by which a budget is over-run: a second at the sandbox's full rate (one vCPU here)."""

hutch, scratch = os.environ["DEMO_HUTCH"], Path(os.environ["DEMO_SCRATCH"])
with Client() as client:
    budget = {"active_cpu_us": BUDGET_US}
    sandbox = client.create_sandbox(
        name="runaway", resources=SandboxResources(vcpus=1), persistent=False, budget={"active_cpu_us": BUDGET_US}
    )
    sandbox.create_command("sh", ["-c", "while :; do :; done"])
    began = time.monotonic()
    while True:
        session = client.sandboxes.session(sandbox.session_id)
        if session.status not in ("running", "stopping"):
            break
        if time.monotonic() - began > 60:
            sys.exit("demo: the budget did not stop the program")
        # The API has no event for the end of a session.
        time.sleep(0.05)
    used = client.usage.of("runaway")
    print(f"a loop without end, with a budget of {BUDGET_US / 1e6:g} s of CPU: {session.stop_reason}")
    if session.stop_reason != "budget_exceeded" or not BUDGET_US <= used.active_cpu_us <= BUDGET_US + WITHIN_US:
        sys.exit(f"demo: it was stopped after {used.active_cpu_us} µs, for {session.stop_reason}")
    file = scratch / "receipt.json"
    receipt = client.usage.receipt("runaway")
    file.write_text(json.dumps(receipt))
    verified = subprocess.run([hutch, "receipt", "verify", str(file)], capture_output=True, text=True, check=False)
    if verified.returncode != 0:
        sys.exit(f"demo: the receipt is not valid: {verified.stderr}")
    print(f"its receipt: {used.active_cpu_us / 1e6:.3f} s of CPU, {verified.stdout.strip()}")
    file.write_text(json.dumps(receipt | {"amount_nano": 1}))
    forged = subprocess.run([hutch, "receipt", "verify", str(file)], capture_output=True, text=True, check=False)
    if forged.returncode != 1:
        sys.exit(f"demo: a forged receipt was answered {forged.returncode}")
    print("with another amount in it: not valid")
    client.sandboxes.delete("runaway")
