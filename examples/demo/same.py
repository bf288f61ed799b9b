"""The program of same.mjs and same.sh, through `vercel-sandbox`. All three print the same lines."""

import subprocess
import sys

from vercel.sandbox.sync import SandboxApiError, create_sandbox, get_sandbox

PROGRAM = "import sys\nfor n in range(1, 6):\n    print(n, n ** n, flush=True)\nprint('done', file=sys.stderr)\nsys.exit(3)\n"

sandbox = create_sandbox(persistent=False)
try:
    print(f"created {sandbox.status}")
    sandbox.fs.write_text("powers.py", PROGRAM)
    running = sandbox.create_process("python3", ["powers.py"], stdout=subprocess.PIPE)
    for text in running.stdout:
        sys.stdout.write(text)
    print(f"exit code {running.wait()}")
    counted = sandbox.run_process("wc", ["-c", "powers.py"], capture_output=True)
    sys.stdout.write(counted.stdout)
finally:
    sandbox.stop()
    sandbox.destroy()
try:
    get_sandbox(name=sandbox.name)
except SandboxApiError as error:
    print(f"deleted {error.status_code}")
