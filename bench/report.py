"""A result as a table, and `docs/performance.md` from the committed one: `python -m bench.report`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
COMMITTED = Path(__file__).parent / "published.json"
PAGE = CHECKOUT / "docs" / "performance.md"

_INTRODUCTION = """\
# Performance

<!-- Made by `python -m bench.report` from bench/published.json; a test fails when the two differ. -->

Measured with `make bench` on one machine on one day. Absolute times describe that machine; the **ratio** to the peer, which ran
beside it in the same run, is what carries over. Nothing is trimmed, nothing is tried again. A target that is not met says so.
To publish another run: `make bench`, then `python -m bench.report --publish bench/results/….json`.

"""


def table(document: dict[str, Any]) -> str:
    """A Markdown table of all results, and their targets below it."""
    lines = [
        "| id | n | failed | p50 | p95 | p99 | max | peer p50 | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in document["results"]:
        ours, peer = result["ours"], result["peer"]
        values = [f"{ours[name]:.4g} {ours['unit']}" for name in ("p50", "p95", "p99", "max")]
        beside = f"{peer['p50']:.4g} {peer['unit']}" if peer else "–"
        ratio = f"{result['ratio']:.2f}" if result["ratio"] is not None else "–"
        lines.append(f"| `{result['id']}` | {ours['n']} | {ours['failures']} | {' | '.join(values)} | {beside} | {ratio} |")
    lines += ["", "| id | target | measured | |", "| --- | --- | --- | --- |"]
    for result in document["results"]:
        for target in result["targets"]:
            lines.append(
                f"| `{result['id']}` | {target['what']} | {target['measured']:g} | {'met' if target['met'] else '**not met**'} |"
            )
    return "\n".join(lines)


def page(document: dict[str, Any]) -> str:
    """The whole of docs/performance.md."""
    machine = document["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores{' (virtual)' if machine['virtual'] else ''}, {machine['memory_mib']} MiB, "
        f"Linux {machine['kernel']}, cgroup version {machine['cgroup_version']}; {machine['backend']}, runsc {machine['runsc']}, "
        f"Hutch {machine['hutch']}; load {machine.get('load_before', 'unknown')} before; {machine['date']}."
    )
    note = f" {document['note']}" if document.get("note") else ""
    parts = [_INTRODUCTION, f"Machine: {where}{note}\n\n", table(document), "\n\n## What each one is\n\n"]
    for result in document["results"]:
        facts = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["facts"].items())
        peer = f" Peer: {result['peer_is']}." if result["peer_is"] else ""
        parts.append(f"- `{result['id']}`: {result['what']}.{peer}{f' Also: {facts}.' if facts else ''}\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Write docs/performance.md.")
    parser.add_argument("--publish", type=Path, metavar="RESULT", help="make this result the committed one first")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    options = parser.parse_args(argv)
    if options.publish:
        COMMITTED.write_text(options.publish.read_text())
    wanted = page(json.loads(COMMITTED.read_text()))
    if options.check:
        return 0 if PAGE.exists() and PAGE.read_text() == wanted else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
