"""Write the blocking flavour of the client (`hutch/client/_sync`) from the asynchronous one (`hutch/client/_async`).

    .venv/bin/python scripts/write_sync_client.py           write it
    .venv/bin/python scripts/write_sync_client.py --check   exit with 1 if what is there is not what would be written

Tokens are replaced, nothing is understood: `await` goes, `AsyncSandbox` becomes `Sandbox`. What can't be said that way is in
`waiting.py`, whose two versions are written by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "src" / "hutch" / "client"
SOURCE, TARGET = CLIENT / "_async", CLIENT / "_sync"
BY_HAND = {"waiting.py"}
NOTE = "# Written by scripts/write_sync_client.py from `_async/{name}`; change that one.\n"

WORDS = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncGenerator\[([^\[\]]+|[^\[\]]*\[[^\[\]]*\][^\[\]]*), None\]", r"Generator[\1, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (
        r"\bAsync(Iterator|Iterable|BaseTransport|HTTPTransport|Client|Sandbox|Session|Command|Filesystem|Snapshot|Drive|Image|InteractiveSession)",
        r"\1",
    ),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b__a(enter|exit|iter)__\b", r"__\1__"),
    (r"\ba(closing|close|read)\b", r"\1"),
    (r"\ba(iter_bytes)\b", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\banext\b", "next"),
    (r"\b_async\b", "_sync"),
    (r"websockets\.asyncio", "websockets.sync"),
    (r"\bAn asynchronous\b", "A blocking"),
    (r"\basynchronous\b", "blocking"),
)


def blocking(source: str, name: str) -> str:
    """The blocking twin of a module's text, not yet laid out."""
    for pattern, replacement in WORDS:
        source = re.sub(pattern, replacement, source)
    return NOTE.format(name=name) + source


def laid_out(text: str, path: Path) -> str:
    """As `make format` would leave it."""
    ruff = str(Path(sysconfig.get_path("scripts")) / "ruff")
    for command in (["check", "--quiet", "--select", "I", "--fix-only"], ["format", "--quiet"]):
        arguments = [ruff, *command, "--stdin-filename", str(path), "-"]
        text = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True).stdout
    return text


def written() -> dict[Path, str]:
    """Every file of the blocking flavour, and what belongs into it."""
    sources = [path for path in sorted(SOURCE.glob("*.py")) if path.name not in BY_HAND]
    texts = {TARGET / path.name: blocking(path.read_text(encoding="utf-8"), path.name) for path in sources}
    return {path: laid_out(text, path) for path, text in texts.items()}


def differences() -> list[str]:
    """Names of files that are not what would be written."""
    wanted = written()
    there = {path for path in TARGET.glob("*.py") if path.name not in BY_HAND}
    stale = {path for path, text in wanted.items() if path not in there or path.read_text(encoding="utf-8") != text}
    return sorted(path.name for path in stale | (there - wanted.keys()))


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        stale = differences()
        if stale:
            print(f"not as scripts/write_sync_client.py writes them: {', '.join(stale)}", file=sys.stderr)
        return bool(stale)
    wanted = written()
    for path in TARGET.glob("*.py"):
        if path not in wanted and path.name not in BY_HAND:
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
