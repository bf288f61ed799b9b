"""The recipes in `examples/`, as they stand there, with the real packages of their lock files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.setup import cache, python_env
from tests.clients.conftest import installed_from_npm, node_tool
from tests.conftest import CHECKOUT

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(420)]

AI_SDK = CHECKOUT / "examples" / "ai-sdk"
COMPUTESDK = CHECKOUT / "examples" / "computesdk"
OPENAI_AGENTS = CHECKOUT / "examples" / "openai-agents"
DEEP_AGENTS = CHECKOUT / "examples" / "deep-agents"


def python_with(lock: Path) -> Path:
    """A Python with the packages of a lock file, in an environment of its own below the cache directory."""
    place = cache.root() / "examples-python" / cache.content_key(sys.version, files=[lock])
    if not place.exists():
        uv = CHECKOUT / ".venv" / "bin" / "uv"
        environment = os.environ | python_env.index_for_uv()
        with cache.building(place) as made:
            commands: list[list[str | Path]] = [
                [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, made / "venv"],
                [uv, "pip", "install", "--quiet", "--require-hashes", "--python", made / "venv" / "bin" / "python", "-r", lock],
            ]
            for command in commands:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
                assert done.returncode == 0, done.stderr
    return place / "venv" / "bin" / "python"


def run(command: list[str | Path], directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_ai_sdk(client_environment: dict[str, str], leak_check: None) -> None:
    directory = installed_from_npm(AI_SDK)
    sieve = [n for n in range(2, 10_000) if all(n % d for d in range(2, int(n**0.5) + 1))]
    printed = run([node_tool("node"), "agent.mjs"], directory, client_environment)
    assert printed == f"There are {len(sieve)} primes below 10000; their sum is {sum(sieve)}.\n"


def test_computesdk(client_environment: dict[str, str], leak_check: None) -> None:
    """Its provider is pinned to `@vercel/sandbox` 1.x, which speaks the first API."""
    printed = run([node_tool("node"), "program.mjs"], installed_from_npm(COMPUTESDK), client_environment)
    assert printed == 'The most frequent word is "the", 3 times.\n'


def test_the_openai_agents_sdk(client_environment: dict[str, str], leak_check: None) -> None:
    printed = run([python_with(OPENAI_AGENTS / "requirements.txt"), "agent.py"], OPENAI_AGENTS, client_environment)
    assert printed == f"The sum of the first hundred squares is {sum(n * n for n in range(1, 101))}.\n"


def test_deep_agents(client_environment: dict[str, str], leak_check: None) -> None:
    """Its sandbox is that of `vercel` 0.5 for Python, which speaks the first API."""
    printed = run([python_with(DEEP_AGENTS / "requirements.txt"), "agent.py"], DEEP_AGENTS, client_environment)
    assert printed == f"That is what the orders come to. {3 * 250 + 7 * 1999 + 12 * 5} cents\n"
