"""What workers reach and what they know, with the real `ntn`, a real gateway, and a real provider of tokens.

The worker has no dependencies, so that nothing is installed; what it talks to are the origins of the tests' own network.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hutch.client import Server
from hutch.workers import oauth
from tests import leaks
from tests.api.test_worker_oauth_provider import SECRET, agreed, begin, provider
from tests.clients.conftest import installed_from_npm, tool_path
from tests.clients.test_ntn import API_ERROR, CLIENT, Ntn, Said
from tests.conftest import start_server, stop_server, wait_until
from tests.egress.world import NAME_SERVER, Origins
from tests.workers.declared import credential
from tests.workers.declared import oauth as login

__all__ = ["provider"]
pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

SETTLE_S = 20.0
TOKEN = oauth.variable("github-oauth")
KEY = "CANARY-5e0b77d1"
WORKER = """
import { execFileSync } from "node:child_process";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";

const answer = (value) => process.stdout.write(`\\n<__notion_output__>${JSON.stringify(value)}</__notion_output__>\\n`);

// The needle comes in halves, so that looking for it does not put it there.
function inMemory([first, second]) {
  const memory = openSync("/proc/self/mem", "r");
  let found = 0;
  for (const line of readFileSync("/proc/self/maps", "utf8").split("\\n")) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
    if (!range) continue;
    const [start, end] = [parseInt(range[1], 16), parseInt(range[2], 16)];
    for (let at = start; at < end; at += 1 << 20) {
      const part = Buffer.allocUnsafeSlow(Math.min((1 << 20) + 256, end - at));
      let size = 0;
      try { size = readSync(memory, part, 0, part.length, at); } catch { continue; }
      const read = part.subarray(0, size);
      for (let place = read.indexOf(first); place >= 0; place = read.indexOf(first, place + 1)) {
        if (read.subarray(place + first.length, place + first.length + second.length).toString("latin1") === second) found += 1;
      }
    }
  }
  closeSync(memory);
  return found;
}

function inFiles([first, second]) {
  const pattern = `${first}[${second[0]}]${second.slice(1)}`;
  const script = 'grep -rlaE -- "$P" /vercel /tmp /home /etc /run /var /opt /proc/[0-9]*/environ 2>/dev/null; true';
  return execFileSync("sh", ["-c", script], { env: { P: pattern, PATH: process.env.PATH } }).toString();
}

const tools = {
  async ask({ url, token }) {
    const headers = token ? { authorization: `Bearer ${process.env.TOKEN_NAME}` } : {};
    try {
      const response = await fetch(url, { headers, signal: AbortSignal.timeout(10000) });
      return { status: response.status, text: await response.text() };
    } catch (error) {
      return { error: String(error.cause?.code ?? error.name) };
    }
  },
  look: ({ halves }) => ({ memory: inMemory(halves), files: inFiles(halves) }),
  variables: () => process.env,
};

export default {
  manifest: MANIFEST,
  async run(key, context) {
    answer({ _tag: "success", value: await tools[key](context) });
  },
};
""".replace("TOKEN_NAME", TOKEN)


@dataclass
class Place:
    """A server whose sandboxes reach the origins, and a project that is deployed to it."""

    where: Server
    origins: Origins
    ntn: Ntn
    issuer: str
    process: subprocess.Popen[str]

    def write(self, declared: Any, **manifest: Any) -> None:
        """The project with what it declares."""
        directory = self.ntn.directory
        any_object = {"type": "object", "properties": {}, "required": []}
        capabilities = [
            {"_tag": "tool", "key": key, "config": {"title": key, "description": key, "schema": any_object}}
            for key in ("ask", "look", "variables")
        ]
        config = login(
            authorizationEndpoint=f"{self.issuer}/auth",
            tokenEndpoint=f"{self.issuer}/token",
            scope="openid email",
            clientId="worker",
            clientSecret=SECRET,
        )
        capabilities.append({"_tag": "oauth", "key": "login", "config": config})
        whole = {"sdkVersion": "0.9.2", "capabilities": capabilities, **manifest}
        (directory / "src").mkdir(exist_ok=True)
        (directory / "src" / "index.js").write_text(WORKER.replace("MANIFEST", json.dumps(whole)))
        scripts = {"build": "mkdir -p dist && cp src/index.js dist/index.js"}
        package = {"name": "guarded", "private": True, "type": "module", "scripts": scripts}
        (directory / "package.json").write_text(json.dumps(package))
        (directory / "hutch.worker.json").write_text(declared if isinstance(declared, str) else json.dumps(declared))

    def deploy(self) -> Said:
        known = (self.ntn.directory / "workers.json").exists()
        return self.ntn("deploy", *([] if known else ["--name", "guarded"]))

    def ask(self, name: str, **more: Any) -> Any:
        return self.ntn.run("ask", {"url": f"https://{name}/", **more})

    @property
    def worker(self) -> str:
        return str(self.ntn.json("list")[0]["workerId"])

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.where.token}"}
        return httpx.Client(base_url=f"{self.where.url}/api", headers=headers, timeout=60)

    def bound(self, http: httpx.Client, policy: Any) -> None:
        """Bound the project, or not any more. A sandbox that is just ending may not be told (503): it holds all the same."""
        path = f"/hutch/v1/projects/{self.where.project_id}/network-policy"
        answer = http.delete(path) if policy is None else http.put(path, json=policy)
        assert answer.status_code in (200, 204) or answer.json()["error"]["code"] == "bounds_not_announced", answer.text

    def last_network(self) -> dict[str, Any]:
        """What the last run did, once that is written down."""
        with self.http() as http:
            run = http.get(f"/hutch/v1/workers/{self.worker}/runs").json()["runs"][0]["id"]
            found: dict[str, Any] = {}

            def told() -> bool:
                nonlocal found
                found = http.get(f"/hutch/v1/workers/{self.worker}/runs/{run}").json()["run"].get("network", {})
                return bool(found.get("refused") or found.get("used", {}).get("allow"))

            wait_until(told, SETTLE_S, "what the run did with the network")
            return found

    def hutch(self, *arguments: str) -> str:
        environment = {"HUTCH_URL": self.where.url, "HUTCH_TOKEN": self.where.token, "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [sys.executable, "-m", "hutch", "worker", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(
    origins: Origins, provider: tuple[subprocess.Popen[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("guarded")
    data_dir, log, directory = base / "data", base / "serve.log", base / "project"
    data_dir.mkdir()
    directory.mkdir()
    origins.reset()
    before = leaks.snapshot(data_dir)
    environment = {
        "HUTCH_EGRESS__DNS_UPSTREAMS": f"{NAME_SERVER}:53",
        "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": str(origins.ca),
        "HUTCH_WORKERS__OAUTH_HOSTS": json.dumps([urlsplit(provider[1]).netloc]),
    }
    server, where = start_server(data_dir, log, environment=environment)
    variables = {
        "PATH": tool_path(),
        "HOME": str(base),
        "NOTION_HOME": str(base / "notion"),
        "NOTION_API_BASE_URL": where.url,
        "NOTION_API_TOKEN": where.token,
        "NOTION_WORKSPACE_ID": "any",
        "NOTION_KEYRING": "0",
    }
    program = installed_from_npm(CLIENT) / "node_modules" / ".bin" / "ntn"
    yield Place(where, origins, Ntn(program, directory, variables), provider[1], provider[0])
    stop_server(server, log)
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(data_dir)),
        SETTLE_S,
        lambda: str(leaks.new(before, leaks.snapshot(data_dir))),
    )


def test_a_worker_reaches_what_it_declares_within_its_bounds_and_more_after_a_review(place: Place) -> None:
    origins = place.origins
    place.write({"network": {"allow": ["api.test"]}}, credentials=[credential("KEY", "api.test")])
    deployed = place.deploy()
    assert deployed.code == 0, deployed.err
    assert "network  + api.test" in deployed.err
    place.ntn.done("env", "set", f"KEY={KEY}")
    assert place.ask("api.test")["status"] == 200
    assert f"Bearer {KEY}".encode() in origins.seen().data
    assert "error" in place.ask("evil.test")
    assert "error" in place.ntn.run("ask", {"url": "https://198.51.100.66/"})
    assert origins.seen().to("evil.test") == []
    assert "error" in place.ask("evil.test")
    found = place.last_network()
    assert "evil.test" in {item["name"] for item in found["refused"]}, found
    shown = place.hutch("network", "guarded")
    assert "api.test" in shown
    assert "evil.test (domain_deny" in shown

    # What lies beyond the bounds is refused when it is deployed, and by the gateway whatever was deployed.
    with place.http() as http:
        place.bound(http, {"allow": ["api.test"]})
        place.write({"network": {"allow": ["api.test", "evil.test"]}})
        refused = place.deploy()
        assert refused.code == API_ERROR
        assert "declares evil.test" in refused.err
        place.write({"network": {"allow": ["api.test"]}}, credentials=[credential("KEY", "*.wild.test")])
        refused = place.deploy()
        assert refused.code == API_ERROR
        assert "credential KEY is for *.wild.test" in refused.err
        place.bound(http, {"allow": ["cdn.test"]})
        assert "error" in place.ask("api.test")
        place.bound(http, None)
        place.write('{"network": {"alow": []}}')
        refused = place.deploy()
        assert "unknown field `alow`" in refused.err
        assert place.ask("api.test")["status"] == 200

    # With reviews, what reaches more waits, and `ntn` says for what.
    assert place.hutch("review", place.where.project_id, "--on") == "on\n"
    place.write({"network": {"allow": ["api.test", "evil.test"]}})
    waits = place.deploy()
    assert waits.code == API_ERROR
    assert "network  + evil.test" in waits.err
    assert "reaches more than the one that serves: evil.test" in waits.err
    assert "error" in place.ask("evil.test")
    waiting = json.loads(place.hutch("network", "guarded", "--json"))["network"]["waiting"]
    assert waiting["added"] == ["evil.test"]
    place.hutch("network", "guarded", "--confirm", waiting["deployment"])
    assert place.ask("evil.test")["status"] == 200
    place.hutch("review", place.where.project_id, "--off")

    # Learned instead of declared.
    place.hutch("network", "guarded", "--learn")
    assert place.ask("cdn.test")["status"] == 200
    wait_until(lambda: "LEARNED (1 runs)" in place.hutch("network", "guarded"), SETTLE_S, "what was learned")
    assert "cdn.test" in place.hutch("network", "guarded", "--accept")
    assert place.ask("cdn.test")["status"] == 200
    assert "error" in place.ask("api.test")
    place.hutch("network", "guarded", "--declared")


def test_a_token_is_at_the_service_and_never_in_the_sandbox(place: Place) -> None:
    place.write({"oauth": {"login": ["api.test"]}})
    deployed = place.deploy()
    assert deployed.code == 0, deployed.err
    begin(place.process, f"{place.where.url}/workers/oauth/callback")
    tokens: list[str] = []
    for _ in range(2):
        with place.http() as http:
            asked = {"workerId": place.worker, "oauthCapabilityKey": "login"}
            url = http.post("/v3/workersStartOauth", json=asked).json()["authorizationUrl"]
            assert "Connected" in httpx.get(asyncio.run(agreed(url, place.where.url))).text
            tokens.append(http.post("/v3/workersGetOauthToken", json=asked).json()["accessToken"])
        place.origins.reset()
        assert place.ask("api.test", token=True)["status"] == 200
        data = place.origins.seen().data
        assert f"Bearer {tokens[-1]}".encode() in data, "the service has it, and also after another login"
        assert tokens[0] == tokens[-1] or tokens[0].encode() not in data
    token = tokens[-1]
    variables = place.ntn.run("variables")
    placeholder = variables[TOKEN]
    assert token not in json.dumps(variables)
    # Elsewhere the placeholder is all that anybody gets.
    assert place.ask("cdn.test", token=True)["status"] == 200
    assert token.encode() not in place.origins.seen().to("cdn.test")[-1]["data"]
    halves = [token[: len(token) // 2], token[len(token) // 2 :]]
    assert place.ntn.run("look", {"halves": halves}) == {"memory": 0, "files": ""}
    mine = place.ntn.run("variables")[TOKEN]
    assert mine != token
    assert mine != placeholder, "each sandbox has its own"
    # The search finds what is there.
    there = place.ntn.run("look", {"halves": [TOKEN[:10], TOKEN[10:]]})
    assert there["memory"] > 0
    assert "/environ" in there["files"]
