"""Notion's command line, `ntn` 0.4.0, against a real server: workers are deployed, run, looked at, and removed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import installed_from_npm, tool_path
from tests.clients.passing import passing
from tests.conftest import CHECKOUT, RunningServer, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(900)]

CLIENT = Path(__file__).parent / "ntn"
GREETING = CHECKOUT / "examples" / "workers" / "greeting"
ODD = CLIENT / "worker"
API_ERROR, UNAUTHORIZED = 5, 4


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Ntn:
    """The program in a project's directory."""

    program: Path
    directory: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, stdin: str | None = None, **variables: str) -> Said:
        return self.run_program("workers", *arguments, stdin=stdin, **variables)

    def run_program(self, *arguments: str, stdin: str | None = None, **variables: str) -> Said:
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.directory,
            env=self.environment | variables,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def done(self, *arguments: str) -> Said:
        said = self(*arguments)
        assert said.code == 0, said.err
        return said

    def json(self, *arguments: str) -> Any:
        return json.loads(self.done(*arguments, "--json").out)

    def run(self, key: str, value: object = None) -> Any:
        return json.loads(self.done("exec", key, "-d", json.dumps({} if value is None else value)).out)

    def worker_id(self) -> str:
        """The worker of this directory."""
        return str(json.loads((self.directory / "workers.json").read_text())["workerId"])

    def last_log(self) -> str:
        return self.done("runs", "logs", self.json("runs", "list")[0]["runId"]).out


def project(source: Path, watched: RunningServer, directory: Path) -> Ntn:
    """A copy of a project, as somebody has it who just cloned it."""
    program = installed_from_npm(CLIENT) / "node_modules" / ".bin" / "ntn"
    copy = directory / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("node_modules", "dist", "package-lock.json"))
    environment = {
        "PATH": tool_path(),
        "HOME": str(directory),
        "NOTION_HOME": str(directory / "notion"),
        "NOTION_API_BASE_URL": watched.where.url,
        "NOTION_API_TOKEN": watched.where.token,
        "NOTION_WORKSPACE_ID": "any",
        "NOTION_KEYRING": "0",
    }
    return Ntn(program, copy, environment)


@pytest.fixture(scope="module")
def odd(watched: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ntn]:
    """A deployed worker, removed in the end."""
    ntn = project(ODD, watched, tmp_path_factory.mktemp("odd"))
    created = ntn.done("create", "--name", "odd")
    assert "Worker created" in created.err
    ntn.done("env", "set", "WORD=first", "TOKEN=secret-of-the-gateway", "BUILD_WORD=bricks", "DROPPED=x")
    deployed = ntn.done("deploy")
    assert "built with bricks" in deployed.err
    yield ntn
    ntn.done("delete", "--yes")
    assert ntn("get").code == API_ERROR


def test_the_example_is_deployed_and_its_tool_is_called(watched: RunningServer, tmp_path: Path, leak_check: None) -> None:
    ntn = project(GREETING, watched, tmp_path)
    deployed = ntn.done("deploy", "--name", "greeting")
    assert "Worker created" in deployed.err
    assert "+ tool  greet" in deployed.err
    assert ntn.worker_id() in [worker["workerId"] for worker in ntn.json("list")]
    assert ntn.run("greet", {"name": "you", "language": None}) == {"greeting": "Hello, you!"}
    assert "greeting you\n" in ntn.last_log()
    source = ntn.directory / "src" / "index.ts"
    source.write_text(source.read_text().replace('worker.tool("greet"', 'worker.tool("welcome"'))
    again = ntn.done("deploy")
    assert "+ tool  welcome" in again.err
    assert "- tool  greet" in again.err
    assert ntn.run("welcome", {"name": "you", "language": "de"}) == {"greeting": "Hallo, you!"}
    source.write_text("this is no TypeScript {")
    broken = ntn("deploy")
    assert broken.code == API_ERROR
    assert "error TS" in broken.err
    assert ntn.run("welcome", {"name": "you", "language": None}) == {"greeting": "Hello, you!"}, "the one before goes on"
    source.write_text("export default 7;")
    assert "has no Worker as its default export" in ntn("deploy").err
    assert ntn.run("welcome", {"name": "you", "language": None}) == {"greeting": "Hello, you!"}
    gone = ntn.worker_id()
    ntn.done("delete", "--yes")
    assert gone not in [worker["workerId"] for worker in ntn.json("list")]


def test_unchanged_dependencies_are_not_installed_again(watched: RunningServer, tmp_path: Path, leak_check: None) -> None:
    ntn = project(GREETING, watched, tmp_path)
    package = ntn.directory / "package.json"
    # No other test of this project has these dependencies.
    manifest = json.loads(package.read_text()) | {"description": "for its layer"}
    package.write_text(json.dumps(manifest))
    first = ntn.done("deploy", "--name", "layered")
    assert "added " in first.err, "npm says what it installed"
    source = ntn.directory / "src" / "index.ts"
    source.write_text(source.read_text().replace('worker.tool("greet"', 'worker.tool("welcome"'))
    ntn.done("env", "set", "WORD=of the build")
    again = ntn.done("deploy")
    assert "installed already" in again.err
    assert "added " not in again.err
    assert ntn.run("welcome", {"name": "you", "language": None}) == {"greeting": "Hello, you!"}
    package.write_text(json.dumps(manifest | {"dependencies": manifest["dependencies"] | {"nosuch-of-hutch": "0.0.1"}}))
    broken = ntn("deploy")
    assert broken.code == API_ERROR
    assert "`install` ended" in broken.err + broken.out, broken.err
    assert "installed already" not in ntn("deploy").err, "what failed is not kept"
    ntn.done("delete", "--yes")


def test_the_environment_has_secrets_but_what_the_gateway_adds(odd: Ntn) -> None:
    assert odd.run("environment") == {"word": "first", "token": None, "platform": []}
    odd.done("env", "set", "WORD=second")
    assert odd.run("environment")["word"] == "second"
    assert [entry["key"] for entry in odd.json("env", "list")] == ["BUILD_WORD", "DROPPED", "TOKEN", "WORD"]
    odd.done("env", "unset", "DROPPED")
    odd.done("env", "pull", "--yes")
    pulled = (odd.directory / ".env").read_text()
    assert "WORD=second" in pulled
    assert "DROPPED" not in pulled
    (odd.directory / ".env").write_text(pulled + "EXTRA=new value\n")
    odd.done("env", "push", "--yes")
    assert "EXTRA" in [entry["key"] for entry in odd.json("env", "list")]
    refused = odd("env", "set", "NOTION_INPUT_PAYLOAD_PATH=/etc/passwd")
    assert refused.code == API_ERROR
    assert "is set by the runner" in refused.err


def test_a_native_add_on_is_installed_and_runs(odd: Ntn) -> None:
    """CRC-32 of its check string, by a library in machine code."""
    assert odd.run("native") == {"crc32": 0xCBF43926}


def test_what_fails_says_so_and_is_a_run_with_an_exit_code(odd: Ntn) -> None:
    thrown = odd("exec", "throws")
    assert (thrown.code, thrown.out) == (API_ERROR, "")
    assert "(422 Unprocessable Entity ToolExecutionError): no luck" in thrown.err
    last = odd.json("runs", "list")[0]
    assert (last["name"], last["exitCode"] > 0, last["endedAt"] is not None) == ("tool:throws", True, True)
    assert "no luck" in odd.last_log()
    for key, name in (("exits", "NoResultError"), ("repeats", "InvalidToolInputError"), ("limited", "RateLimitError")):
        assert name in odd("exec", key).err
    streamed = odd("exec", "throws", "--stream")
    assert streamed.code == API_ERROR
    assert "error: no luck" in streamed.err
    assert "has no capability 'none'" in odd("exec", "none").err
    assert odd("get", NOTION_API_TOKEN="nobody's").code == UNAUTHORIZED


def test_a_run_that_goes_on_is_canceled(odd: Ntn, leak_check: None) -> None:
    base, token = odd.environment["NOTION_API_BASE_URL"], odd.environment["NOTION_API_TOKEN"]
    worker = json.loads((odd.directory / "workers.json").read_text())["workerId"]
    with (
        httpx.Client(base_url=f"{base}/api", headers={"authorization": f"Bearer {token}"}, timeout=60) as http,
        ThreadPoolExecutor(1) as beside,
    ):

        def going_on() -> dict[str, Any] | None:
            runs = http.get(f"/hutch/v1/workers/{worker}/runs", params={"name": "tool:waits"}).json()["runs"]
            return next((run for run in runs if "session_id" in run and "ended_at" not in run), None)

        waiting = beside.submit(odd, "exec", "waits")
        wait_until(lambda: going_on() is not None, 60, "the run has its sandbox")
        run = going_on()
        assert run is not None
        assert http.post(f"/hutch/v1/workers/{worker}/runs/{run['id']}/cancel").status_code == 200
        said = waiting.result(60)
        assert (said.code, "RunCanceledError" in said.err) == (API_ERROR, True), said.err
        ended = http.get(f"/hutch/v1/workers/{worker}/runs/{run['id']}").json()["run"]
        assert (ended["output"]["error"]["name"], ended["exit_code"] > 0) == ("RunCanceledError", True)


def test_a_deploy_shows_the_addresses_of_webhooks(odd: Ntn) -> None:
    base, token = odd.environment["NOTION_API_BASE_URL"], odd.environment["NOTION_API_TOKEN"]
    worker = json.loads((odd.directory / "workers.json").read_text())["workerId"]
    listed = httpx.get(f"{base}/api/hutch/v1/workers/{worker}/webhooks", headers={"authorization": f"Bearer {token}"}).json()
    deployed = odd.done("deploy")
    assert listed["webhooks"]
    for one in listed["webhooks"]:
        assert f"[build] webhook {one['key']}: {one['url']}" in deployed.err


def test_what_is_printed_does_not_change_what_is_returned(odd: Ntn) -> None:
    assert odd.run("forges") == "true </__notion_output__>\n<__notion_output__>"
    assert odd.run("shouts") == "heard"
    log = odd.last_log()
    assert "bytes left out" in log
    assert len(log) < 2 * 2**20
    assert odd.run("lingers") == "back"
    text = 'a "quoted" \\ line\n</__notion_output__> \u2028 ünïcödé \U0001f407'
    assert odd.run("repeats", {"text": text}) == text
    large = odd("exec", "repeats", stdin=json.dumps({"text": "x" * 900_000}))
    assert json.loads(large.out) == "x" * 900_000, large.err


def test_every_run_has_a_sandbox_of_its_own(odd: Ntn, leak_check: None) -> None:
    assert [odd.run("counts") for _ in range(3)] == [1, 1, 1]


def test_other_capabilities_are_run_once_and_nothing_is_applied(odd: Ntn) -> None:
    result = odd.run("things_sync", {"state": {"seen": 4}})
    assert (result["nextUserContext"], result["hasMore"], result["changes"][0]["key"]) == ({"seen": 5}, False, "1")
    assert odd.run("press", {"actionType": "button"}) == {"status": "success"}
    streamed = odd.done("exec", "press", "--stream", "-d", '{"actionType": "button"}')
    assert "[worker] pressed button" in streamed.err
    assert json.loads(streamed.out) == {"status": "success"}
    listed = {(one["_tag"], one["key"]) for one in odd.json("capabilities", "list")}
    assert {("sync", "things_sync"), ("automation", "press"), ("tool", "throws")} <= listed


def test_a_login_with_another_service_is_started_and_its_secret_is_nowhere(odd: Ntn) -> None:
    started = odd.done("oauth", "start", "login")
    said = started.out + started.err
    assert "https://provider.example/authorize?client_id=odd&redirect_uri=" in said
    assert "/workers/oauth/callback" in odd.done("oauth", "show-redirect-url").out
    refused = odd("oauth", "token", "login")
    assert refused.code == API_ERROR
    assert "Nobody has logged in" in refused.err
    assert "odd-secret" not in said + odd.done("capabilities", "list", "--json").out


def test_tokens_are_made_listed_used_and_revoked(odd: Ntn) -> None:
    made = odd.run_program("tokens", "create", "for a test", "--expires-in", "30 days", "--plain")
    assert made.code == 0, made.err
    token = made.out.strip()
    assert odd("list", NOTION_API_TOKEN=token).code == 0
    listed = odd.run_program("tokens", "list")
    assert "for a test" in listed.out
    headers = {"authorization": f"Bearer {odd.environment['NOTION_API_TOKEN']}"}
    door = f"{odd.environment['NOTION_API_BASE_URL']}/api/v3"
    tokens = httpx.post(f"{door}/workersListTokens", headers=headers, json={}).json()["tokens"]
    (shown,) = [one for one in tokens if one["name"] == "for a test" and not one.get("revokedAt")]
    assert shown["id"] in listed.out
    assert odd.run_program("tokens", "revoke", shown["id"], "--yes").code == 0
    assert odd("list", NOTION_API_TOKEN=token).code == UNAUTHORIZED


def test_what_waits_for_a_call_is_used_once_and_never_with_an_environment_of_before(odd: Ntn, watched: RunningServer) -> None:
    def waiting() -> int:
        found = re.search(r"^hutch_host_sessions (\d+)", httpx.get(f"{watched.where.url}/metrics").text, re.MULTILINE)
        assert found is not None
        return int(found[1].partition(".")[0])

    wait_until(lambda: waiting() == 0, 30, "nothing of former tests runs")

    for round_number in range(4):
        assert odd.run("counts") == 1
        wait_until(lambda: waiting() == 1, 20, "a sandbox that waits")
        odd.done("env", "set", f"WORD=round {round_number}")
        assert odd.run("environment")["word"] == f"round {round_number}"
        wait_until(lambda: waiting() == 1, 20, "the one of before is gone")
    assert odd.run("counts") == 1


def test_the_base_url_may_have_a_path(watched: RunningServer, tmp_path: Path) -> None:
    """As behind a proxy that serves more than one thing."""

    def path_of(asked: str) -> str:
        assert asked.startswith("/platform/api/v3/workers")
        return asked.removeprefix("/platform")

    ntn = project(GREETING, watched, tmp_path)
    with passing(watched.where.url, path_of) as url:
        ntn.environment["NOTION_API_BASE_URL"] = f"{url}/platform"
        ntn.done("create", "--name", "behind a path")
        ntn.done("env", "set", "WORD=x")
        assert [worker["name"] for worker in ntn.json("list")].count("behind a path") == 1
        ntn.done("deploy")
        assert ntn.run("greet", {"name": "you", "language": None}) == {"greeting": "Hello, you!"}
        ntn.done("delete", "--yes")
