"""A worker: deployed by the real `ntn`; its tool called by an agent's client over MCP, its sync run twice, its webhook with a
good and a bad signature, its button clicked; and a receipt for each run."""

import asyncio
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import httpx2
from mcp.client.client import Client as Agent
from mcp.client.streamable_http import streamable_http_client

from hutch.client import Client

HERE = Path(__file__).parent
SECRET = "the secret that sender and worker share"
MAIL = json.dumps({"from": "ada@example.com", "subject": "It does not work"})

hutch, scratch = os.environ["DEMO_HUTCH"], Path(os.environ["DEMO_SCRATCH"])
where = json.loads((scratch / "ready.json").read_text())
url, token = where["url"], where["token"]
api = httpx.Client(base_url=f"{url}/api", headers={"authorization": f"Bearer {token}"}, timeout=120)


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"demo: {what}: {found!r} instead of {wanted!r}")


def answer(response: httpx.Response) -> Any:
    if not response.is_success:
        sys.exit(f"demo: {response.request.url} → {response.status_code} {response.text}")
    return response.json()


def ntn(*arguments: str) -> str:
    """The vendor's command line, in a copy of the example."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(scratch),
        "NOTION_HOME": str(scratch / "notion"),
        "NOTION_API_BASE_URL": url,
        "NOTION_API_TOKEN": token,
        "NOTION_WORKSPACE_ID": "any",
        "NOTION_KEYRING": "0",
    }
    program = [HERE / "node_modules" / ".bin" / "ntn", "workers", *arguments]
    done = subprocess.run(program, cwd=scratch / "desk", env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"demo: ntn {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout


async def ask_over_mcp(worker: str, connection: str) -> Any:
    """What an agent gets."""
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {connection}"}, timeout=120) as http,
        Agent(streamable_http_client(f"{url}/api/hutch/v1/workers/{worker}/mcp", http_client=http)) as agent,
    ):
        (tool,) = (await agent.list_tools()).tools
        return tool.name, (await agent.call_tool(tool.name, {"email": "ada@example.com"})).structured_content


shutil.copytree(HERE.parent / "workers" / "desk", scratch / "desk", ignore=shutil.ignore_patterns("node_modules", "dist"))
began = time.monotonic()
ntn("create", "--name", "desk")
ntn("env", "set", f"MAIL_SECRET={SECRET}")
ntn("deploy")
worker = json.loads((scratch / "desk" / "workers.json").read_text())["workerId"]
print(f"a worker, deployed by ntn in {time.monotonic() - began:.0f} s")

# A token that may run workers and nothing else.
connection = answer(api.post("/hutch/v1/tokens", json={"scopes": ["worker.run"], "name": "an agent"}))["token"]
tool, plan = asyncio.run(ask_over_mcp(worker, connection))
expect("the tool's result", plan, {"plan": "team"})
print(f"an agent calls {tool} over MCP: {plan}")

for number in (1, 2):
    answer(api.post(f"/hutch/v1/workers/{worker}/syncs/new_tickets/trigger", json={"wait": True}))
    rows = answer(api.get(f"/hutch/v1/workers/{worker}/databases/tickets/rows"))["rows"]
    print(f"sync {number}: " + ", ".join(f"{row['key']} {row['properties']['State']}" for row in rows))
expect("the rows", {row["key"]: row["properties"]["State"] for row in rows}, {"T-1": "closed", "T-2": "open", "T-3": "open"})

(webhook,) = answer(api.get(f"/hutch/v1/workers/{worker}/webhooks"))["webhooks"]
signature = hmac.new(SECRET.encode(), MAIL.encode(), hashlib.sha256).hexdigest()
for signed, status, said in ((signature, 200, "thank you"), ("0" * 64, 401, "this is not signed by us")):
    deadline = time.monotonic() + 300
    while True:
        told = httpx.post(webhook["url"], content=MAIL, headers={"x-signature": signed}, timeout=120)
        # As any sender does: an emulated machine may not verify one in the time that senders wait.
        if told.status_code != 503 or time.monotonic() > deadline:
            break
        time.sleep(float(told.headers.get("retry-after", 1)))
    expect("the webhook's answer", (told.status_code, told.text), (status, said))
    print(f"a webhook, {'well' if status == 200 else 'badly'} signed: {status} {said}")

button = answer(api.post(f"/hutch/v1/workers/{worker}/automations/escalate/buttons", json={}))["url"]
with httpx.Client(timeout=120, follow_redirects=True) as browser:
    page = browser.get(button).text
    press = re.search(r'name="press" value="([^"]+)"', page)
    if press is None:
        sys.exit(f"demo: the page has no button: {page}")
    seen = browser.post(button, data={"press": press[1]}, headers={"origin": url, "sec-fetch-site": "same-origin"})
    deadline = time.monotonic() + 300
    while "Done." not in seen.text:
        if time.monotonic() > deadline:
            sys.exit(f"demo: the button did nothing: {seen.text}")
        # The page has no script that would wait.
        time.sleep(0.2)
        seen = browser.get(seen.url)
print("a button, clicked: done")

deadline = time.monotonic() + 300
while True:
    runs = answer(api.get(f"/hutch/v1/workers/{worker}/runs"))["runs"]
    if all(run["ended_at"] for run in runs) and any(run["name"] == "webhook:mail" for run in runs):
        break
    if time.monotonic() > deadline:
        sys.exit(f"demo: not all runs ended: {runs}")
    # The API has no event for the end of a run.
    time.sleep(0.2)
with Client() as client:
    for run in reversed(runs):
        detail = answer(api.get(f"/hutch/v1/workers/{worker}/runs/{run['id']}"))["run"]
        receipt = client.usage.session_receipt(detail["session_id"])
        file = scratch / "run.json"
        file.write_text(json.dumps(receipt))
        verified = subprocess.run([hutch, "receipt", "verify", str(file)], capture_output=True, text=True, check=False)
        expect("the receipt's check", verified.returncode, 0)
        print(f"{run['name']:28} {receipt['usage']['active_cpu_us'] / 1e3:7.1f} ms of CPU, {verified.stdout.strip()}")
ntn("delete", "--yes")
