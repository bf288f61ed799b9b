"""An agent's client, that of the official SDK, against a real server: it finds the tools that `ntn` deployed, and calls them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.clients.test_ntn import GREETING, project
from tests.conftest import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]


def scoped_token(watched: RunningServer) -> str:
    """A token that may run workers and nothing else."""
    headers = {"authorization": f"Bearer {watched.where.token}"}
    made = httpx.post(f"{watched.where.url}/api/hutch/v1/tokens", headers=headers, json={"scopes": ["worker.run"]})
    return str(made.raise_for_status().json()["token"])


async def used(url: str, token: str, mode: Any) -> None:
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        (greet,) = (await client.list_tools()).tools
        assert greet.name.endswith("greet")
        assert greet.annotations is not None
        assert greet.annotations.read_only_hint is True
        done = await client.call_tool(greet.name, {"name": "agent"})
        assert (done.is_error, done.structured_content) == (False, {"greeting": "Hello, agent!"})
        german = await client.call_tool(greet.name, {"name": "agent", "language": "de"})
        assert german.structured_content == {"greeting": "Hallo, agent!"}
        wrong = await client.call_tool(greet.name, {"name": 7})
        assert wrong.is_error
        assert isinstance(wrong.content[0], types.TextContent)
        assert wrong.content[0].text.startswith("InvalidToolInputError: ")


def test_an_agent_calls_the_example_s_tool(watched: RunningServer, tmp_path: Path, leak_check: None) -> None:
    ntn = project(GREETING, watched, tmp_path)
    ntn.done("deploy", "--name", "greeting")
    worker = ntn.worker_id()
    token = scoped_token(watched)
    base = f"{watched.where.url}/api/hutch/v1"
    asyncio.run(used(f"{base}/workers/{worker}/mcp", token, "legacy"))
    asyncio.run(used(f"{base}/mcp", token, "auto"))
    assert {run["name"] for run in ntn.json("runs", "list")} == {"fetchAndSaveCapabilities", "tool:greet"}
    refused = httpx.post(f"{base}/workers/{worker}/tools/greet/call", json={"arguments": {"name": "x"}})
    assert refused.status_code == 401
    ntn.done("delete", "--yes")
