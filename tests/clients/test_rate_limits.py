"""The vendor's JavaScript SDK waits as a 429 says, and succeeds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from hutch.cli.env import variables
from hutch.client import Server
from tests.api.conftest import Api, api, host, installed
from tests.clients.conftest import node_tool

__all__ = ["api", "host", "installed"]

pytestmark = [pytest.mark.clients, pytest.mark.section("4.4")]

PROGRAM = """
import { Sandbox } from "@vercel/sandbox";
const answers = [];
const fetch = async (url, init) => {
  const answer = await globalThis.fetch(url, init);
  answers.push([init?.method ?? "GET", answer.status, answer.headers.get("retry-after")]);
  return answer;
};
const names = ["a", "b", "c"];
const sandboxes = [];
for (const name of names) sandboxes.push(await Sandbox.create({ name, persistent: false, fetch }));
for (const sandbox of sandboxes) await sandbox.delete();
console.log(JSON.stringify(answers));
"""


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_LIMITS__DELETES_PER_SECOND": "1"}


@pytest.mark.section("6.5")
async def test_javascript_waits_and_tries_again(api: Api, javascript_sdk: Path) -> None:
    server = Server(api.url, api.own.token, api.own.team_id, api.own.project_id)
    done = await asyncio.to_thread(
        subprocess.run,
        [node_tool("node"), "--input-type=module"],
        input=PROGRAM,
        cwd=javascript_sdk,
        env=os.environ | variables(server, os.environ),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    deletes = [(status, wait) for method, status, wait in json.loads(done.stdout) if method == "DELETE"]
    assert [answer for answer in deletes if answer[0] == 200] == [(200, None)] * 3
    assert (429, "1") in deletes
    assert (await api.http.get("/v2/sandboxes")).json()["sandboxes"] == []
