"""Reads a web server's access log and writes what an operator wants to know. Runs inside the sandbox."""

import json
import re
import sys
from collections import Counter

LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[[^\]]+\] "(?P<method>\S+) (?P<path>[^ ?"]+)[^"]*" (?P<status>\d{3}) (?P<size>\d+) (?P<ms>\d+)'
)


def main(source: str, target: str) -> None:
    statuses: Counter[str] = Counter()
    paths: Counter[str] = Counter()
    clients = set()
    durations = []
    total = bad = 0
    with open(source, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            match = LINE.match(line)
            if match is None:
                bad += 1
                continue
            statuses[match["status"]] += 1
            paths[match["path"]] += 1
            clients.add(match["client"])
            durations.append(int(match["ms"]))
            total += int(match["size"])
            if number % 500 == 0:
                print(f"read {number} lines, {len(clients)} clients so far", flush=True)
    durations.sort()
    report = {
        "requests": len(durations),
        "unreadable": bad,
        "clients": len(clients),
        "bytes": total,
        "statuses": dict(sorted(statuses.items())),
        "busiest": sorted(paths.items(), key=lambda item: (-item[1], item[0]))[:5],
        "p95_ms": durations[(len(durations) * 95 - 1) // 100],
    }
    with open(target, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print(f"wrote {target}", flush=True)


main(*sys.argv[1:3])
