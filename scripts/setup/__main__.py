"""`python3 -m scripts.setup [STEP…]`: all steps of setup, or the named ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from scripts.setup import (
    cache,
    guest_kernel,
    image,
    machine,
    native,
    node,
    packages,
    python_env,
    report,
    runsc,
    service_user,
    test_tools,
)
from scripts.setup.report import SetupError, Step

STEPS: dict[str, Callable[[Step], None]] = {
    "packages": packages.ensure,
    "machine": machine.ensure,
    "python": python_env.ensure,
    "node": node.ensure,
    "runsc": runsc.ensure,
    **{program.name: native.step(program) for program in native.PROGRAMS},
    "guest-kernel": guest_kernel.ensure,
    "image": image.ensure,
    "user": service_user.ensure,
}
# What a step named alone finds missing: done first.
NEEDS = {
    "node": ("python",),
    "guest-kernel": ("packages", "agent"),
    "guest-kernel-lock": ("packages",),
    "image": ("packages", "python", "node"),
    "test-tools": ("python", "node"),
    "image-lock": ("packages",),
}
# Only when they are named.
EXTRA: dict[str, Callable[[Step], None]] = {
    "test-tools": test_tools.ensure,
    "image-lock": image.lock,
    "guest-kernel-lock": guest_kernel.lock,
}


def main(arguments: list[str]) -> int:
    known = {**STEPS, **EXTRA}
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"setup: there is no step {', '.join(unknown)}; steps: {', '.join(known)}", file=sys.stderr)
        return 2
    wanted = arguments or list(STEPS)
    # Each once, with what it needs before it.
    names = list(dict.fromkeys(each for name in wanted for each in (*NEEDS.get(name, ()), name)))
    started = time.monotonic()
    try:
        machine.require_supported()
        with cache.locked(report.warn):
            cache.sweep()
            for number, name in enumerate(names, start=1):
                with report.step(name, number, len(names)) as step:
                    known[name](step)
    except SetupError as error:
        print(f"\nsetup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again to go on where it was", file=sys.stderr)
        return 130
    print(f"setup: ready in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
