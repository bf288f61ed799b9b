"""Where the native programs are: in a checkout's `.hutch/bin`, in the installed package, or as configured."""

from __future__ import annotations

from pathlib import Path

import hutch
from hutch.settings import Settings

AGENT = "hutch-agent"


def agent_path(_settings: Settings) -> Path:
    """The guest agent. Raises `FileNotFoundError` naming every place that was looked at."""
    package = Path(hutch.__file__).resolve().parent
    places = [package.parents[1] / ".hutch" / "bin" / AGENT, package / "bin" / AGENT]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise FileNotFoundError(f"The guest agent is not built (looked at {', '.join(map(str, places))}). Run `make setup`.")
