"""`python -m bench`: run benchmarks, print a table, write JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from bench.catalogue import BENCHMARKS
from bench.machine import facts
from bench.measure import Result
from bench.report import table

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """0 when everything ran, whether the targets are met or not: a table says that. 1 when something could not run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("ids", nargs="*", help=f"ID=a,b or names; known: {', '.join(BENCHMARKS)}. Default: all")
    parser.add_argument("--id", default="", help="the same, as `make bench ID=…` says it")
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works; the figures mean little")
    parser.add_argument("--note", default="", help="a sentence about the circumstances, kept with the result")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: bench/results/DATE.json")
    options = parser.parse_args(argv)
    wanted = [name for word in [*options.ids, options.id] for name in word.removeprefix("ID=").split(",") if name]
    unknown = [name for name in wanted if not any(_matches(name, known) for known in BENCHMARKS)]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        parser.error("benchmarks start real servers and need root")
    # Told to leave, a benchmark still stops its server and unmounts its peer.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return asyncio.run(_run(wanted, options.quick, options.note, options.output))


def _matches(wanted: str, known: str) -> bool:
    """`files.put` asks for `files`, `tti` for everything below it."""
    return wanted == known or wanted.startswith(f"{known}.") or known.startswith(f"{wanted}.")


async def _run(wanted: list[str], quick: bool, note: str, output: Path | None) -> int:
    results: list[Result] = []
    broken = 0
    machine = facts()
    for known, benchmark in BENCHMARKS.items():
        if wanted and not any(_matches(name, known) for name in wanted):
            continue
        print(f"{known} …", file=sys.stderr, flush=True)
        try:
            results += await benchmark(quick)
        except Exception as error:  # noqa: BLE001 - one broken benchmark must not hide the others
            print(f"{known} could not run: {type(error).__name__}: {error}", file=sys.stderr)
            broken += 1
    document = {"machine": machine, "quick": quick, "note": note, "results": [result.as_json() for result in results]}
    path = output or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    print(f"\nwritten to {path}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
