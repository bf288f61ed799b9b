"""What the vendor's API says about sandboxes, asked of a real server over bare HTTP: statuses, codes, messages and fields that
the SDKs hide."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]

CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
CA_VARIABLES = (
    "AWS_CA_BUNDLE CARGO_HTTP_CAINFO CURL_CA_BUNDLE GIT_SSL_CAINFO GRPC_DEFAULT_SSL_ROOTS_FILE_PATH NODE_EXTRA_CA_CERTS "
    "NPM_CONFIG_CAFILE PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE"
).split()


@dataclass
class Wire:
    """A running sandbox, and HTTP to its session."""

    http: httpx.AsyncClient
    name: str
    session_id: str

    async def post(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.http.post(f"/v2/sandboxes/sessions/{self.session_id}{path}", **arguments)

    async def get(self, path: str = "", **query: str) -> httpx.Response:
        return await self.http.get(f"/v2/sandboxes/sessions/{self.session_id}{path}", params=query)

    async def start(self, command: str, *args: str, **fields: Any) -> httpx.Response:
        return await self.post("/cmd", json={"command": command, "args": list(args), "env": {}, **fields})

    async def run(self, command: str, *args: str, **fields: Any) -> tuple[int, str]:
        """Exit code and standard output."""
        response = await self.start(command, *args, wait=True, logs=True, **fields)
        assert response.status_code == 200, response.text
        records = [json.loads(line) for line in response.text.splitlines()]
        output = "".join(record["data"] for record in records if record.get("stream") == "stdout")
        return records[-1]["command"]["exitCode"], output

    async def write(self, *files: tuple[str, bytes, int]) -> httpx.Response:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, content, mode in files:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), mode
                archive.addfile(entry, io.BytesIO(content))
        headers = {"content-type": "application/gzip", "x-cwd": "/"}
        return await self.post("/fs/write", content=packed.getvalue(), headers=headers)


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


@pytest.fixture
async def http(server: RunningServer, leak_check: None) -> AsyncIterator[httpx.AsyncClient]:
    where = server.where
    headers = {"authorization": f"Bearer {where.token}"}
    async with httpx.AsyncClient(
        base_url=f"{where.url}/api", headers=headers, params={"teamId": where.team_id}, timeout=60
    ) as client:
        yield client


@pytest.fixture
async def wire(http: httpx.AsyncClient) -> AsyncIterator[Wire]:
    made = (await http.post("/v3/sandboxes", json={"persistent": False, "env": {"LAYER": "sandbox"}})).json()
    yield Wire(http, made["sandbox"]["name"], made["session"]["id"])
    await http.delete(f"/v2/sandboxes/{made['sandbox']['name']}")


@pytest.mark.section("8.1", "4.6")
@pytest.mark.parametrize("command", ["no-such-program", "/no/such/program", "./nothing"])
@pytest.mark.parametrize("sudo", [False, True])
async def test_a_program_that_is_not_there_is_an_http_error(wire: Wire, command: str, sudo: bool) -> None:
    message = f"[invalid_argument] executable file not found in $PATH: {command}"
    assert refusal(await wire.start(command, sudo=sudo, wait=True)) == (400, "executable_not_found", message)


@pytest.mark.section("8.1")
async def test_what_can_not_be_run_is_an_http_error(wire: Wire) -> None:
    for fields in ({"cwd": "/no/such/directory"}, {"cwd": "/etc/passwd"}):
        status, code, message = refusal(await wire.start("true", wait=True, **fields))
        assert (status, code) == (400, "bad_request")
        assert fields["cwd"] in message
    for path in ("/etc/passwd", "/etc"):
        assert refusal(await wire.start(path))[:2] == (400, "bad_request")


@pytest.mark.section("8.1", "8.4")
async def test_exit_codes_are_those_of_a_shell(wire: Wire) -> None:
    for script, wanted in (("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -11 $$", 139)):
        assert await wire.run("sh", "-c", script) == (wanted, "")
    assert await wire.run("sleep", "100", timeout=100) == (137, "")
    assert await wire.run("cat") == (0, "")


@pytest.mark.section("8.1")
async def test_words_are_passed_as_they_are(wire: Wire) -> None:
    assert await wire.run("printf", "%s|", "$HOME", "*", "a b", "", ";") == (0, "$HOME|*|a b||;|")
    assert await wire.run("sh", "-c", "echo $LAYER; pwd", env={"LAYER": "command"}, cwd="/tmp") == (0, "command\n/tmp\n")


@pytest.mark.section("8.2", "8.4", "8.5", "13.3")
async def test_commands_are_found_killed_and_listed(wire: Wire) -> None:
    first = (await wire.start("sleep", "600")).json()["command"]
    second = (await wire.start("sleep", "600")).json()["command"]
    assert set(first) == {"id", "name", "args", "cwd", "sessionId", "exitCode", "startedAt"}
    assert first["exitCode"] is None
    listed = (await wire.get("/cmd")).json()["commands"]
    assert [command["id"] for command in listed] == [second["id"], first["id"]]
    killed = await wire.post(f"/cmd/{first['id']}/kill", json={"signal": 2})
    assert (killed.status_code, killed.json()["command"]["exitCode"]) == (200, None)
    ended = (await wire.get(f"/cmd/{first['id']}", wait="true")).json()["command"]
    assert (ended["exitCode"], type(ended["durationMs"])) == (130, int)
    assert refusal(await wire.post(f"/cmd/{second['id']}/stdin", json={}))[:2] == (400, "command_stdin_unavailable")
    assert refusal(await wire.post(f"/cmd/{first['id']}/stdin", json={}))[:2] == (404, "command_not_found_or_exited")
    unknown = "cmd_" + "0" * 28
    for response in (
        await wire.get(f"/cmd/{unknown}"),
        await wire.get(f"/cmd/{unknown}/logs"),
        await wire.post(f"/cmd/{unknown}/kill"),
    ):
        assert response.status_code == 404, "410 would make clients resume"


@pytest.mark.section("4.4")
async def test_a_command_that_arrives_twice_is_two_commands_and_a_create_one_sandbox(wire: Wire) -> None:
    twice = [(await wire.start("true")).json()["command"]["id"] for _ in range(2)]
    assert len(set(twice)) == 2
    again = await asyncio.gather(
        *(wire.http.post("/v3/sandboxes", json={"name": f"{wire.name}-2", "persistent": False}) for _ in range(2))
    )
    assert sorted(response.status_code for response in again) == [200, 409]
    await wire.http.delete(f"/v2/sandboxes/{wire.name}-2")


@pytest.mark.section("4.5", "4.6", "9.3")
async def test_directories_are_made_as_asked(wire: Wire) -> None:
    async def mkdir(**body: Any) -> httpx.Response:
        return await wire.post("/fs/mkdir", json=body)

    made = await mkdir(path="probe-dir")
    assert (made.status_code, made.json()) == (200, {})
    exists = "error creating directory: /vercel/probe-dir: File exists"
    for path in ("probe-dir", "/vercel/probe-dir"):
        assert refusal(await mkdir(path=path)) == (400, "file_error", exists)
    orphan = (400, "file_error", "error creating directory: No such file or directory")
    assert refusal(await mkdir(path="no/parent/here")) == orphan
    assert refusal(await mkdir(path="x", cwd="/nowhere")) == orphan
    for _ in range(2):
        assert (await mkdir(path="a/b/c", recursive=True)).status_code == 200
    assert refusal(await mkdir(path="/root/x"))[:2] == (400, "file_error")
    assert await wire.run("stat", "-c", "%U %a", "probe-dir", "a/b") == (0, "ubuntu 755\nubuntu 755\n")


@pytest.mark.section("9.2")
async def test_what_is_read_is_a_file_that_the_user_may_read(wire: Wire) -> None:
    await wire.run("sh", "-c", "echo secret > /tmp/s; chmod 600 /tmp/s; mkfifo /tmp/pipe", sudo=True)
    missing = (404, "not_found", "File not found.")
    for path in ("nothing", "/no/where", "/etc/passwd/x"):
        assert refusal(await wire.post("/fs/read", json={"path": path})) == missing
    for path in ("/tmp/s", "/etc", "/tmp/pipe"):
        response = await wire.post("/fs/read", json={"path": path})
        assert refusal(response)[:2] == (400, "file_error")
        assert "secret" not in response.text
    read = await wire.post("/fs/read", json={"path": "passwd", "cwd": "/etc"})
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["content-disposition"] == 'attachment; filename="passwd"'
    assert "ubuntu:x:1000:1000" in read.text


@pytest.mark.section("9.1")
async def test_files_are_written_as_the_user_with_their_modes(wire: Wire) -> None:
    written = await wire.write(("vercel/deep/er/a", b"x", 0o644), ("tmp/run", b"#!/bin/sh\n", 0o755))
    assert (written.status_code, written.json()) == (200, {})
    stat = await wire.run("stat", "-c", "%U:%G %a", "/vercel/deep/er/a", "/tmp/run", "/vercel/deep")
    assert stat == (0, "ubuntu:ubuntu 644\nubuntu:ubuntu 755\nubuntu:ubuntu 755\n")
    for name in ("root/x", "etc/x", "made/x"):
        assert refusal(await wire.write((name, b"x", 0o644)))[:2] == (400, "file_error")


@pytest.mark.section("8.1", "16.3", "16.4")
async def test_commands_have_the_documented_user_directories_and_variables(wire: Wire) -> None:
    _, printed = await wire.run("env")
    variables = dict(line.split("=", 1) for line in printed.splitlines())
    assert (variables["HOME"], variables["USER"], variables["LANG"]) == ("/vercel", "ubuntu", "C.UTF-8")
    path = variables["PATH"].split(":")
    for directory in (
        "/vercel/bin",
        "/usr/local/bin",
        "/vercel/.local/bin",
        "/vercel/.global/pnpm/bin",
        "/vercel/.global/npm/bin",
    ):
        assert directory in path
    assert {variables.get(name) for name in CA_VARIABLES} == {CA_FILE}
    assert variables["NODE_USE_SYSTEM_CA"] == "1"
    assert await wire.run("id") == (0, "uid=1000(ubuntu) gid=1000(ubuntu) groups=1000(ubuntu),27(sudo)\n")
    for script in (
        "test -s /etc/pki/ca-trust/source/anchors/vercel-proxy-ca.pem",
        "test -s /usr/local/share/ca-certificates/vercel-proxy-ca.pem",
        f"openssl x509 -in /usr/local/share/ca-certificates/vercel-proxy-ca.pem -noout && test -s {CA_FILE}",
    ):
        assert await wire.run("sh", "-c", script) == (0, "")
    tell = "echo $(id -u) $USER $SUDO_USER $HOME $LAYER; echo $PATH"
    wanted = (0, f"0 root ubuntu /root sandbox\n{variables['PATH']}\n")
    assert await wire.run("sh", "-c", tell, sudo=True) == wanted
    assert await wire.run("sudo", "sh", "-c", tell) == wanted
    assert await wire.run("sudo", "-u", "nobody", "--", "id", "-un") == (0, "nobody\n")


@pytest.mark.section("17")
async def test_the_programs_that_clients_run_are_there(wire: Wire) -> None:
    programs = (
        "ls find stat rm rmdir mv cp test chmod chown ln readlink realpath truncate mktemp mkdir cat "
        "sh bash id useradd usermod gpasswd groupadd sudo base64 env sleep getent setpriv timeout tar gzip git"
    )
    script = f"for name in {programs}; do command -v $name > /dev/null || echo $name; done"
    assert await wire.run("sh", "-c", script) == (0, "")
    assert await wire.run("sh", "-c", "test -x /usr/bin/setpriv -a -x /bin/bash -a -x /usr/bin/env -a -x /usr/bin/sleep") == (
        0,
        "",
    )
    assert await wire.run("/usr/bin/env", "--default-signal", "true") == (0, "")


@pytest.mark.section("4.5", "4.6", "7.2", "13.1", "13.3")
async def test_a_stopping_session_is_422_and_a_stopped_one_410(http: httpx.AsyncClient) -> None:
    made = (await http.post("/v3/sandboxes", json={})).json()
    wire = Wire(http, made["sandbox"]["name"], made["session"]["id"])
    try:
        await wire.run("sh", "-c", "head -c 40000000 /dev/urandom > big")
        stopping = asyncio.create_task(wire.post("/stop"))
        # None waits for the one before it: on a busy machine a command can take as long as the stop.
        asked = []
        while not stopping.done():
            asked.append(asyncio.create_task(wire.start("true", wait=True)))
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*asked)
        seen = {refusal(response)[:2] for response in answers if response.status_code != 200}
        assert seen <= {(422, "sandbox_stopping"), (422, "sandbox_snapshotting"), (410, "sandbox_stopped")}
        assert {status for status, _ in seen} & {422}, "the stop takes longer than a request"
        stopped = stopping.result()
        assert stopped.status_code == 200
        answer = stopped.json()
        assert set(answer) == {"sandbox", "session", "snapshot"}
        assert answer["sandbox"]["currentSnapshotId"] == answer["snapshot"]["id"]
        assert answer["snapshot"]["creationMethod"] == "automatic"
        gone = (410, "sandbox_stopped", "Sandbox has stopped execution and is no longer available")
        for path, body in (
            ("/cmd", {"command": "true"}),
            ("/fs/read", {"path": "x"}),
            ("/fs/mkdir", {"path": "x"}),
            ("/interactive", {}),
            ("/extend-timeout", {"duration": 1000}),
            ("/network-policy", {"mode": "deny-all"}),
            ("/snapshot", {}),
        ):
            assert refusal(await wire.post(path, json=body)) == gone, path
        assert refusal(await wire.write(("vercel/x", b"", 0o644))) == gone
        assert refusal(await wire.get("/cmd")) == gone
        assert (await wire.get()).status_code == 200
    finally:
        await http.delete(f"/v2/sandboxes/{wire.name}", params={"deleteOrphanSnapshots": "true"})


@pytest.mark.section("5.1", "5.2", "7.3", "18.1")
async def test_fields_are_there_when_they_mean_something(http: httpx.AsyncClient) -> None:
    made = (await http.post("/v3/sandboxes", json={"persistent": False, "timeout": 100_000})).json()
    wire = Wire(http, made["sandbox"]["name"], made["session"]["id"])
    totals = {"totalEgressBytes", "totalIngressBytes", "totalActiveCpuDurationMs", "totalDurationMs"}
    try:
        assert None not in [*made["sandbox"].values(), *made["session"].values()]
        assert not (totals | {"expiresAt", "tags", "networkPolicy", "mounts", "keepLastSnapshots"}) & set(made["sandbox"])
        running = (await http.get(f"/v2/sandboxes/{wire.name}")).json()
        assert {running["sandbox"][name] for name in totals} == {0}
        assert running["sandbox"]["expiresAt"] == running["session"]["startedAt"] + 100_000
        extended = (await wire.post("/extend-timeout", json={"duration": 5_000})).json()["session"]
        assert extended["timeout"] == 105_000
        assert extended["updatedAt"] == running["session"]["updatedAt"]
        later = (await http.get(f"/v2/sandboxes/{wire.name}")).json()["sandbox"]
        assert later["timeout"] == 100_000
        assert later["expiresAt"] == running["sandbox"]["expiresAt"] + 5_000
        assert refusal(await wire.post("/extend-timeout", json={"duration": 5 * 86_400_000}))[:2] == (
            400,
            "sandbox_timeout_invalid",
        )
        await wire.run("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
        stopped = (await wire.post("/stop")).json()
        session = stopped["session"]
        assert session["duration"] == session["stoppedAt"] - session["startedAt"]
        assert session["activeCpuDurationMs"] > 0
        assert set(session["networkTransfer"]) == {"ingress", "egress"}
        assert "expiresAt" not in stopped["sandbox"]
        assert stopped["sandbox"]["totalDurationMs"] == session["duration"]
        assert stopped["sandbox"]["totalActiveCpuDurationMs"] == session["activeCpuDurationMs"]
        assert "snapshot" not in stopped
        resumed = await http.get(f"/v2/sandboxes/{wire.name}", params={"resume": "true"})
        assert refusal(resumed) == (400, "snapshot_not_found", "Cannot resume sandbox: no snapshot available.")
    finally:
        deleted = await http.delete(f"/v2/sandboxes/{wire.name}")
    assert deleted.json()["sandbox"]["name"] == wire.name
    gone = (404, "not_found", f"Named sandbox '{wire.name}' not found for this project.")
    assert refusal(await http.get(f"/v2/sandboxes/{wire.name}")) == gone


@pytest.mark.section("6.1", "7.5", "11", "13.4")
async def test_a_snapshot_is_201_and_counts_from_its_last_use(http: httpx.AsyncClient) -> None:
    made = (await http.post("/v3/sandboxes", json={"persistent": False})).json()
    wire = Wire(http, made["sandbox"]["name"], made["session"]["id"])
    forks = []
    try:
        taken = await wire.post("/snapshot", json={"expiration": 86_400_000})
        assert taken.status_code == 201
        snapshot, session = taken.json()["snapshot"], taken.json()["session"]
        assert (session["status"], snapshot["creationMethod"]) == ("snapshotting", "manual")
        assert session["snapshottedAt"] > 0
        assert snapshot["expiresAt"] == snapshot["lastUsedAt"] + 86_400_000
        assert "parentId" not in snapshot
        record = (await http.get(f"/v2/sandboxes/{wire.name}")).json()
        assert (record["sandbox"]["status"], record["sandbox"]["currentSnapshotId"]) == ("stopped", snapshot["id"])
        source = {"type": "snapshot", "snapshotId": snapshot["id"]}
        child = (await http.post("/v3/sandboxes", json={"source": source, "persistent": False})).json()
        forks.append(child["sandbox"]["name"])
        assert child["sandbox"]["currentSnapshotId"] == child["session"]["sourceSnapshotId"] == snapshot["id"]
        used = (await http.get(f"/v2/sandboxes/snapshots/{snapshot['id']}")).json()["snapshot"]
        assert used["lastUsedAt"] > snapshot["lastUsedAt"]
        assert used["expiresAt"] == used["lastUsedAt"] + 86_400_000
        resumed = (await http.get(f"/v2/sandboxes/{wire.name}", params={"resume": "true"})).json()
        assert resumed["resumed"] is True
        assert resumed["session"]["id"] != wire.session_id
        assert resumed["session"]["timeout"] == 300_000
        again = (await http.get(f"/v2/sandboxes/{wire.name}", params={"resume": "true"})).json()
        assert (again["resumed"], again["session"]["id"]) == (False, resumed["session"]["id"])
        deleted = await http.delete(f"/v2/sandboxes/snapshots/{snapshot['id']}")
        assert (deleted.status_code, deleted.json()["snapshot"]["status"]) == (200, "deleted")
        listed = (await http.get("/v2/sandboxes/snapshots", params={"name": wire.name})).json()["snapshots"]
        assert [(one["id"], one["status"]) for one in listed] == [(snapshot["id"], "deleted")]
        assert refusal(await http.post("/v3/sandboxes", json={"source": source}))[:2] == (410, "snapshot_not_found")
    finally:
        for name in (wire.name, *forks):
            await http.delete(f"/v2/sandboxes/{name}")


@pytest.mark.section("6.2", "13.3")
async def test_a_resume_waits_for_the_shutdown_and_then_boots(http: httpx.AsyncClient) -> None:
    made = (await http.post("/v3/sandboxes", json={})).json()
    wire = Wire(http, made["sandbox"]["name"], made["session"]["id"])
    try:
        await wire.run("sh", "-c", "head -c 40000000 /dev/urandom > big")
        stopping = asyncio.create_task(wire.post("/stop"))
        while (going := (await wire.get()).json()["session"]["status"]) == "running":
            pass
        # On a busy machine it may have stopped before anybody saw it go down.
        assert going in ("stopping", "snapshotting", "stopped")
        shown = (await http.get(f"/v2/sandboxes/{wire.name}")).json()
        assert (shown["sandbox"]["status"], shown["resumed"]) in {("stopping", False), ("stopped", False)}
        resumed = await asyncio.gather(*(http.get(f"/v2/sandboxes/{wire.name}", params={"resume": "true"}) for _ in range(3)))
        assert {answer.status_code for answer in resumed} == {200}
        assert [answer.json()["resumed"] for answer in resumed].count(True) == 1
        [session_id] = {answer.json()["session"]["id"] for answer in resumed}
        assert session_id != wire.session_id
        stopped = (await stopping).json()
        assert resumed[0].json()["session"]["sourceSnapshotId"] == stopped["snapshot"]["id"]
        again = Wire(http, wire.name, session_id)
        assert await again.run("stat", "-c", "%s", "big") == (0, "40000000\n")
    finally:
        await http.delete(f"/v2/sandboxes/{wire.name}", params={"deleteOrphanSnapshots": "true"})
