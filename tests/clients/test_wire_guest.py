"""What the vendor's API says about the guest, its ports, its life and its usage, asked of a real server over bare HTTP. What only
looks shares one sandbox."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import leaks
from tests.clients.test_wire import CA_VARIABLES, refusal
from tests.conftest import SETTLE_S, RunningServer, wait_until
from tests.host.guest import ON_MACHINES

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]

TOOLS = (
    "node npm npx pnpm bun python3 pip uv git git-lfs gh jq rg tmux vim sqlite3 rsync curl wget zip dig nslookup ip ps top free"
)
STARTED = ("node --version", "bun --version", "python3 --version", "pnpm --version", "gh --version", "uv --version")
AUTHORITY = "/usr/local/share/ca-certificates/vercel-proxy-ca.pem"
AUTHORITY_TOO = "/etc/pki/ca-trust/source/anchors/vercel-proxy-ca.pem"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
STAT = "%s|%f|%u|%g|%X|%Y|%Z|%W|%h|%i|%d|%B|%b"


class Guest:
    """A sandbox on the wire."""

    def __init__(self, http: httpx.Client, **body: Any) -> None:
        self.http = http
        response = http.post("/v3/sandboxes", json=body)
        assert response.status_code == 200, response.text
        self.made: dict[str, Any] = response.json()
        self.name = self.made["sandbox"]["name"]
        self.session_id = self.made["session"]["id"]

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.http.post(f"/v2/sandboxes/sessions/{self.session_id}{path}", **arguments)

    def read(self, **query: str) -> dict[str, Any]:
        """The sandbox and its session; with `resume` the next one."""
        response = self.http.get(f"/v2/sandboxes/{self.name}", params=query)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        self.session_id = answer["session"]["id"]
        return answer

    def run(self, *argv: str, **fields: Any) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        body = {"command": argv[0], "args": list(argv[1:]), "wait": True, "logs": True, **fields}
        response = self.post("/cmd", json=body)
        assert response.status_code == 200, response.text
        records = [json.loads(line) for line in response.text.splitlines()]
        shown = {
            stream: "".join(one["data"] for one in records if one.get("stream") == stream) for stream in ("stdout", "stderr")
        }
        return records[-1]["command"]["exitCode"], shown["stdout"], shown["stderr"]

    def sh(self, script: str, **fields: Any) -> str:
        """The standard output of a script that does what it should."""
        code, out, err = self.run("sh", "-ec", script, **fields)
        assert code == 0, (out, err)
        return out

    def delete(self) -> None:
        self.http.delete(f"/v2/sandboxes/{self.name}", params={"deleteOrphanSnapshots": "true"})


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """Nothing is left when all tests are through: while they run, they share a sandbox."""
    where, found = server.where, [""]
    with httpx.Client(
        base_url=f"{where.url}/api",
        headers={"authorization": f"Bearer {where.token}"},
        params={"teamId": where.team_id},
        timeout=60,
    ) as client:
        yield client

    def settled() -> bool:
        found[:] = leaks.grown(server.idle, leaks.snapshot(server.data_dir))
        return not found

    wait_until(settled, SETTLE_S, lambda: "left behind:\n" + "\n".join(found))


@pytest.fixture(scope="module")
def guest(http: httpx.Client) -> Iterator[Guest]:
    """A sandbox for all tests that leave it as it is."""
    made = Guest(
        http,
        persistent=False,
        timeout=900_000,
        ports=[3000, 8080],
        env={"LAYER": "sandbox", "OTHER": "sandbox", "LANG": "C.UTF-8"},
    )
    yield made
    made.delete()


# -- what is kept ------------------------------------------------------------------------------------


@pytest.mark.section("14.2")
def test_each_session_trusts_an_authority_of_its_own_and_its_root_changes_nothing(http: httpx.Client) -> None:
    one, tell = Guest(http, networkPolicy={"mode": "deny-all"}), f"sha256sum < {AUTHORITY}; cmp {AUTHORITY} {AUTHORITY_TOO}"
    bundled = f"openssl verify -CAfile {BUNDLE} {AUTHORITY}; grep -c CERTIFICATE {BUNDLE}"
    try:
        found = [one.sh(tell)]
        assert int(one.sh(bundled).split()[-1]) > 100, "the roots of the Internet are there as well"
        one.sh(
            "iptables -F 2>/dev/null || true; ip route del default 2>/dev/null || true; rm -f /etc/resolv.conf || true", sudo=True
        )
        assert one.run("curl", "-sS", "--max-time", "5", "https://example.com/")[0] != 0
        one.post("/stop")
        one.read(resume="true")
        found.append(one.sh(tell))
        assert one.sh(bundled).startswith(f"{AUTHORITY}: OK\n")
        assert len(set(found)) == 2
    finally:
        one.delete()


@pytest.mark.section("11", "13.4")
def test_what_goes_on_has_the_files_and_no_processes(http: httpx.Client) -> None:
    drive = http.post("/v2/sandboxes/drives/beside", json={"maxSizeBytes": 1 << 24})
    assert drive.status_code == 201
    one = Guest(http, env={"KEPT": "yes"}, mounts={"/vercel/drive": {"drive": "beside", "mode": "read-write"}})
    try:
        one.sh("echo tmp > /tmp/file; echo home > file; mkdir -p /tmp/deep/er; echo lost > /vercel/drive/file; chmod 600 file")
        one.post("/cmd", json={"command": "sleep", "args": ["4242"]})
        one.sh("pgrep -x sleep > /dev/null")
        stopped = one.post("/stop").json()
        snapshot = stopped["snapshot"]["id"]
        look = "cat /tmp/file file; stat -c %a file; ls -d /tmp/deep/er; ls /vercel/drive; pgrep -x sleep || echo none"
        other = Guest(http, persistent=False, source={"type": "snapshot", "snapshotId": snapshot})
        try:
            assert other.sh(look) == "tmp\nhome\n600\n/tmp/deep/er\nnone\n"
        finally:
            other.delete()
        assert one.read(resume="true")["resumed"] is True
        assert one.sh(look + "; echo $KEPT") == "tmp\nhome\n600\n/tmp/deep/er\nfile\nnone\nyes\n"
    finally:
        one.delete()
        assert http.delete("/v2/sandboxes/drives/beside").status_code == 200


# -- life --------------------------------------------------------------------------------------------


@pytest.mark.section("5.1", "13.1", "7.2")
def test_a_stop_goes_through_the_states_and_the_sandbox_shows_three(http: httpx.Client) -> None:
    one = Guest(http)
    sandboxes, sessions = [one.made["sandbox"]["status"]], [one.made["session"]["status"]]
    try:
        one.sh("head -c 60000000 /dev/urandom > big")
        stopping = threading.Thread(target=one.post, args=("/stop",))
        stopping.start()
        while sessions[-1] != "stopped":
            answer = one.read()
            sandboxes.append(answer["sandbox"]["status"])
            sessions.append(answer["session"]["status"])
        stopping.join()
        for found, order in (
            (sandboxes, ["running", "stopping", "stopped"]),
            (sessions, ["running", "stopping", "snapshotting", "stopped"]),
        ):
            seen = list(dict.fromkeys(found))
            assert seen == [state for state in order if state in seen]
            assert {"running", "stopped"} <= set(seen)
        ended = one.read()
        assert ended["sandbox"]["statusUpdatedAt"] >= ended["session"]["stoppedAt"] - 1000
    finally:
        one.delete()


@pytest.mark.section("13.1", "13.2", "13.4")
def test_time_is_counted_from_the_start_and_anew_with_each_session(http: httpx.Client) -> None:
    one = Guest(http, timeout=4_000)
    try:
        first = one.read()
        session = first["session"]
        assert first["sandbox"]["expiresAt"] == session["startedAt"] + 4_000
        extended = one.post("/extend-timeout", json={"duration": 1_000}).json()["session"]
        assert (extended["timeout"], extended["startedAt"]) == (5_000, session["startedAt"])
        deadline = time.monotonic() + 30
        while (ended := one.read())["session"]["status"] != "stopped":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert 5_000 <= ended["session"]["duration"] < 9_000
        assert ended["session"]["timeout"] == 5_000
        assert ended["sandbox"]["timeout"] == 4_000
        # An end that nobody asked for is kept like one that somebody did.
        snapshots = http.get("/v2/sandboxes/snapshots", params={"name": one.name}).json()["snapshots"]
        assert [(item["creationMethod"], item["sourceSessionId"]) for item in snapshots] == [("automatic", session["id"])]
        assert ended["sandbox"]["currentSnapshotId"] == snapshots[0]["id"]
        again = one.read(resume="true")
        assert (again["session"]["timeout"], again["sandbox"]["timeout"]) == (4_000, 4_000)
        assert again["sandbox"]["expiresAt"] == again["session"]["startedAt"] + 4_000
    finally:
        one.delete()


@pytest.mark.section("13.3")
def test_on_a_live_session_nothing_is_gone(guest: Guest) -> None:
    unknown = "/cmd/cmd_" + "0" * 28
    responses = [
        guest.http.get(f"/v2/sandboxes/sessions/{guest.session_id}{unknown}"),
        guest.http.get(f"/v2/sandboxes/sessions/{guest.session_id}{unknown}/logs"),
        guest.post(f"{unknown}/kill", json={"signal": 9}),
        guest.post(f"{unknown}/stdin", json={}),
        guest.post("/fs/read", json={"path": "/no/such"}),
        guest.post("/fs/mkdir", json={"path": "/no/such/parent"}),
        guest.post("/cmd", json={"command": "no-such-program"}),
        guest.post("/cmd", json={"command": "true", "cwd": "/no/such"}),
        guest.http.get("/v2/sandboxes/snapshots/snap_none"),
        guest.http.get("/v2/sandboxes/sessions/sbx_none"),
    ]
    assert [response.status_code for response in responses] == [404, 404, 404, 404, 404, 400, 400, 400, 404, 404]


@pytest.mark.section("13.3", "13.4")
def test_a_session_that_is_over_is_gone_for_all_that_needs_it(http: httpx.Client) -> None:
    one = Guest(http, persistent=False)
    try:
        one.post("/stop")
        gone = (410, "sandbox_stopped", "Sandbox has stopped execution and is no longer available")
        for path, body in (
            ("/cmd", {"command": "true"}),
            ("/fs/read", {"path": "x"}),
            ("/fs/mkdir", {"path": "x"}),
            ("/interactive", {}),
            ("/extend-timeout", {"duration": 1000}),
            ("/network-policy", {"mode": "deny-all"}),
            ("/snapshot", {}),
            ("/cmd/cmd_" + "0" * 28 + "/kill", {"signal": 9}),
        ):
            assert refusal(one.post(path, json=body)) == gone, path
        assert one.post("/stop").status_code == 200
        # Nothing was kept, and there is nothing that could be gone on from.
        resumed = http.get(f"/v2/sandboxes/{one.name}", params={"resume": "true"})
        assert refusal(resumed) == (400, "snapshot_not_found", "Cannot resume sandbox: no snapshot available.")
    finally:
        one.delete()


@pytest.mark.section("13.4")
def test_what_keeps_nothing_goes_on_from_what_it_began_with(http: httpx.Client) -> None:
    source = Guest(http, persistent=False)
    made = []
    try:
        source.sh("echo first > file")
        snapshot = source.post("/snapshot", json={}).json()["snapshot"]["id"]
        one = Guest(http, persistent=False, tags={"t": "x"}, source={"type": "snapshot", "snapshotId": snapshot})
        made.append(one)
        one.sh("echo second > file")
        stopped = one.post("/stop").json()
        assert "snapshot" not in stopped
        assert stopped["sandbox"]["currentSnapshotId"] == snapshot
        answer = one.read(resume="true")
        assert (answer["resumed"], answer["session"]["sourceSnapshotId"]) == (True, snapshot)
        assert answer["sandbox"]["tags"] == {"t": "x"}
        assert one.sh("cat file") == "first\n"
    finally:
        for one in (*made, source):
            one.delete()


# -- ports -------------------------------------------------------------------------------------------


@pytest.mark.section("15")
def test_each_port_has_a_name_that_tells_nothing(guest: Guest) -> None:
    routes = guest.made["routes"]
    assert [route["port"] for route in routes] == [3000, 8080]
    for route in routes:
        assert set(route) == {"url", "subdomain", "port"}
        assert re.fullmatch(r"sb-[0-9a-z]{12}", route["subdomain"])
        assert re.fullmatch(rf"https?://{route['subdomain']}\.[^/]+", route["url"])
    assert len({route["subdomain"] for route in routes}) == 2
    assert guest.read()["routes"] == routes
    session = guest.http.get(f"/v2/sandboxes/sessions/{guest.session_id}").json()
    assert session["routes"] == routes
    for query in ({}, {"__includeSystemRoutes": "false"}):
        assert not any("system" in route for route in guest.read(**query)["routes"])
    own = [route for route in guest.read(__includeSystemRoutes="true")["routes"] if "system" not in route]
    assert own == routes


@pytest.mark.section("15")
def test_a_port_is_open_to_everybody_while_something_listens(http: httpx.Client, server: RunningServer) -> None:
    one = Guest(http, ports=[3000])
    ingress = server.where.ingress_url
    assert ingress is not None
    host = one.made["routes"][0]["url"].removeprefix("http://")

    def ask() -> httpx.Response:
        return httpx.get(f"{ingress}/file", headers={"host": host, "accept": "application/json"})

    try:
        assert (ask().status_code, ask().json()["error"]["code"]) == (502, "SANDBOX_NOT_LISTENING")
        one.sh("mkdir www; echo served > www/file")
        one.post("/cmd", json={"command": "python3", "args": ["-m", "http.server", "3000", "--directory", "www"]})
        deadline = time.monotonic() + 20
        while (answer := ask()).status_code == 502:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.text) == (200, "served\n")
        one.post("/stop")
        assert (ask().status_code, ask().json()["error"]["code"]) == (410, "SANDBOX_STOPPED")
        # Asking does not begin the next session.
        answer_ = one.read()
        assert (answer_["session"]["status"], answer_["routes"]) == ("stopped", one.made["routes"])
        one.delete()
        assert (ask().status_code, ask().json()["error"]["code"]) == (404, "SANDBOX_NOT_FOUND")
    finally:
        one.delete()


# -- the guest ---------------------------------------------------------------------------------------


@pytest.mark.section("16.1")
def test_the_machine_is_linux_with_a_kernel_and_a_root_of_its_own(guest: Guest) -> None:
    assert guest.sh("uname -sm") == "Linux x86_64\n"
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert file.read() != guest.sh("cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo none")
    assert (
        guest.sh("id -u; touch /usr/local/made; rm /usr/local/made; chown 12:34 /tmp; chown 0:0 /tmp; ps -o uid= 1", sudo=True)
        == "0\n    0\n"
    )
    assert guest.made["session"]["memory"] == 4096
    assert guest.sh("nproc") == "2\n"
    total = int(guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    # A kernel of its own has a part of it for itself.
    assert 4096 * 1024 * (0.94 if ON_MACHINES else 1) <= total <= 4096 * 1024


@pytest.mark.section("16.2")
def test_the_default_image_has_the_documented_tools(guest: Guest) -> None:
    missing = guest.sh(f"for name in {TOOLS}; do command -v $name > /dev/null || echo $name; done")
    assert missing == ""
    for command in STARTED:
        assert guest.sh(command), command
    assert guest.sh("node --version").startswith("v24.")
    assert guest.sh("pnpm --version").startswith("11.")
    assert guest.sh("python3 --version").startswith("Python 3.")
    assert guest.made["sandbox"]["image"].startswith("vercel/sandbox/universal@sha256:")


@pytest.mark.section("16.2")
@pytest.mark.parametrize(
    ("reference", "node"),
    [
        ("vercel/sandbox/universal:latest", "v24."),
        ("vcr.vercel.com/vercel/sandbox/universal", "v24."),
        ("vercel/sandbox/node:22", "v22."),
        ("vercel/sandbox/node:24", "v24."),
        ("vercel/sandbox/node:26", "v26."),
        ("vercel/sandbox/ubuntu:latest", "v"),
    ],
)
def test_the_vendors_images_are_there_by_their_names(http: httpx.Client, reference: str, node: str) -> None:
    one = Guest(http, persistent=False, image=reference)
    try:
        assert re.fullmatch(r"vercel/sandbox/[a-z]+(:\d+)?@sha256:[0-9a-f]{64}", one.made["sandbox"]["image"])
        assert one.made["session"]["cwd"] == "/vercel"
        user, directory, version = one.sh("id -un; pwd; node --version; pnpm --version > /dev/null; sudo -n true").split()
        assert (user, directory) == ("ubuntu", "/vercel")
        assert version.startswith(node)
        again = Guest(http, persistent=False, image=one.made["sandbox"]["image"])
        again.delete()
        assert again.made["sandbox"]["image"] == one.made["sandbox"]["image"]
    finally:
        one.delete()


@pytest.mark.section("16.2")
@pytest.mark.parametrize(
    "reference", ["vercel/sandbox/python:3.14", "vercel/sandbox/arch:latest", "vercel/sandbox/node:21", "nope"]
)
def test_an_image_that_is_not_here_is_404(http: httpx.Client, reference: str) -> None:
    assert refusal(http.post("/v3/sandboxes", json={"image": reference}))[0] == 404


@pytest.mark.section("16.2")
@pytest.mark.parametrize(
    ("runtime", "program", "version"),
    [("node22", "node", "v22."), ("node24", "node", "v24."), ("node26", "node", "v26."), ("python3.13", "python", "Python 3.13")],
)
def test_legacy_runtimes_have_a_user_a_place_and_tools_of_their_own(
    http: httpx.Client, runtime: str, program: str, version: str
) -> None:
    response = http.post("/v2/sandboxes", json={"runtime": runtime, "persistent": False})
    assert response.status_code == 200, response.text
    made = response.json()
    one = Guest.__new__(Guest)
    one.http, one.made, one.name, one.session_id = http, made, made["sandbox"]["name"], made["session"]["id"]
    try:
        assert (made["sandbox"]["runtime"], made["session"]["runtime"], made["session"]["cwd"]) == (
            runtime,
            runtime,
            "/vercel/sandbox",
        )
        place = {"python3.13": "python"}.get(runtime, runtime)
        assert one.sh("id -un; pwd; ls /vercel/runtimes") == f"vercel-sandbox\n/vercel/sandbox\n{place}\n"
        assert one.sh(f"command -v {program}") == f"/vercel/runtimes/{place}/bin/{program}\n"
        assert one.sh(f"{program} --version").startswith(version)
        wanted = "dig bzip2 find git gzip ping ps openssl tar unzip which whois zstd"
        assert one.sh(f"for name in {wanted}; do command -v $name > /dev/null || echo $name; done") == ""
        assert one.sh("sudo -n id -u") == "0\n"
    finally:
        one.delete()


@pytest.mark.section("16.3")
def test_the_user_has_its_home_its_groups_and_its_variables(guest: Guest) -> None:
    assert guest.sh("id -un; id -u; id -g; id -Gn; pwd; umask") == "ubuntu\n1000\n1000\nubuntu sudo\n/vercel\n0022\n"
    variables = dict(line.split("=", 1) for line in guest.run("env")[1].splitlines())
    assert (variables["HOME"], variables["USER"], variables["LANG"]) == ("/vercel", "ubuntu", "C.UTF-8")
    assert {"/vercel/bin", "/usr/local/bin", "/vercel/.local/bin", "/vercel/.global/pnpm/bin", "/vercel/.global/npm/bin"} <= set(
        variables["PATH"].split(":")
    )
    assert {variables.get(name) for name in CA_VARIABLES} == {"/etc/ssl/certs/ca-certificates.crt"}
    assert variables["NODE_USE_SYSTEM_CA"] == "1"
    assert guest.made["session"]["cwd"] == guest.made["sandbox"]["cwd"] == "/vercel"
    # Programs that are installed without sudo are found.
    guest.sh("printf '#!/bin/sh\\necho own\\n' > /vercel/bin/own; chmod +x /vercel/bin/own")
    assert guest.run("own")[:2] == (0, "own\n")


@pytest.mark.section("16.3")
def test_a_commands_variables_come_over_the_sandboxs_and_those_over_the_images(guest: Guest) -> None:
    tell = "echo $LAYER $OTHER $NODE_USE_SYSTEM_CA"
    assert guest.sh(tell) == "sandbox sandbox 1\n"
    assert guest.sh(tell, env={"LAYER": "command"}) == "command sandbox 1\n"
    assert guest.sh(tell, env={"NODE_USE_SYSTEM_CA": "0"}) == "sandbox sandbox 0\n"
    assert guest.sh("echo $HOME $PATH", env={"HOME": "/tmp", "PATH": "/usr/bin:/bin"}) == "/tmp /usr/bin:/bin\n"
    assert guest.sh(tell) == "sandbox sandbox 1\n", "nothing of a command is left for the next"


@pytest.mark.section("16.3")
def test_a_sandboxs_variables_come_over_the_images(http: httpx.Client) -> None:
    one = Guest(http, persistent=False, env={"LANG": "POSIX", "NODE_USE_SYSTEM_CA": "2", "PATH": "/opt:/usr/bin:/bin"})
    try:
        assert one.sh("echo $LANG $NODE_USE_SYSTEM_CA $PATH") == "POSIX 2 /opt:/usr/bin:/bin\n"
    finally:
        one.delete()


@pytest.mark.section("16.4")
def test_sudo_changes_who_and_home_and_nothing_else(guest: Guest) -> None:
    plain = dict(line.split("=", 1) for line in guest.run("env", env={"OWN": "1"})[1].splitlines())
    for argv, fields in ((["env"], {"sudo": True}), (["sudo", "env"], {}), (["sudo", "-n", "--", "env"], {})):
        code, out, _ = guest.run(*argv, env={"OWN": "1"}, **fields)
        root = dict(line.split("=", 1) for line in out.splitlines())
        assert code == 0
        assert (root["USER"], root["SUDO_USER"], root["HOME"]) == ("root", "ubuntu", "/root")
        changed = {"HOME", "USER", "LOGNAME", "MAIL", "_", "TERM", "SHLVL"}
        kept = {name: value for name, value in plain.items() if name not in changed}
        assert {name: root.get(name) for name in kept} == kept
    assert guest.sh("id -u; pwd", sudo=True) == "0\n/vercel\n"
    assert guest.sh("id -u; pwd", sudo=True, cwd="/tmp") == "0\n/tmp\n"


@pytest.mark.section("16.4", "17.2")
def test_another_user_is_reached_by_sudo_and_has_none(http: httpx.Client) -> None:
    one = Guest(http, persistent=False)
    try:
        made = one.sh("useradd -m -s /bin/bash other; useradd -m -s /bin/bash other || echo $?", sudo=True)
        assert made == "9\n"
        assert one.sh("sudo -u other -- id -un; sudo -u other -- sh -c 'cd; pwd'") == "other\n/home/other\n"
        code, _, err = one.run("sudo", "-u", "other", "--", "sudo", "-n", "id")
        assert code != 0
        assert err
        script = 'cd "$1" || exit 1; shift; exec "$@"'
        words = [
            "sudo",
            "-u",
            "other",
            "--",
            "bash",
            "-c",
            script,
            "bash",
            "/home/other",
            "env",
            "K=V",
            "sh",
            "-c",
            "pwd; echo $K",
        ]
        assert one.run(*words)[:2] == (0, "/home/other\nV\n")
        shared = "groupadd team; mkdir -p /shared/team; chown ubuntu:team /shared/team; chmod 2770 /shared/team"
        one.sh(
            f"chown other:ubuntu /home/other; chmod 770 /home/other; {shared}; usermod -aG team other; gpasswd -d other team",
            sudo=True,
        )
        assert (
            one.sh("stat -c '%U:%G %a' /home/other /shared/team; id -gn other") == "other:ubuntu 770\nubuntu:team 2770\nother\n"
        )
        assert (
            one.sh("echo hidden | sudo -u other -- tee /home/other/f > /dev/null; sudo -u other -- base64 /home/other/f")
            == "aGlkZGVuCg==\n"
        )
        assert one.run("sh", "-c", "id -un; id -gn")[:2] == (0, "ubuntu\nubuntu\n")
    finally:
        one.delete()


# -- what clients run in it --------------------------------------------------------------------------


@pytest.mark.section("17.1")
def test_the_programs_are_gnus_and_speak_english(guest: Guest) -> None:
    for name in ("ls", "stat", "mktemp", "truncate", "realpath", "readlink", "cp", "mv", "rm", "chmod"):
        assert "GNU coreutils" in guest.run(name, "--version")[1], name
    assert "GNU findutils" in guest.run("find", "--version")[1]
    place = guest.sh("mktemp -d /tmp/prefixXXXXXX").strip()
    guest.sh(f"cd {place}; mkdir dir; echo abc > file; ln -s file link; touch dir/in")
    assert guest.run("ls", "-1", place)[1] == "dir\nfile\nlink\n"
    found = guest.run("find", place, "-maxdepth", "1", "-mindepth", "1", "-printf", "%f|%y\\n")[1]
    assert sorted(found.splitlines()) == ["dir|d", "file|f", "link|l"]
    followed = guest.run("stat", "-L", "-c", STAT, f"{place}/link")[1].strip().split("|")
    itself = guest.run("stat", "-c", STAT, f"{place}/link")[1].strip().split("|")
    assert (len(followed), len(itself)) == (13, 13)
    assert (followed[0], int(followed[1], 16) & 0o170000, followed[2:4]) == ("4", 0o100000, ["1000", "1000"])
    assert int(itself[1], 16) & 0o170000 == 0o120000
    assert guest.run("readlink", f"{place}/link")[1] == "file\n"
    assert guest.run("realpath", f"{place}/link")[1] == f"{place}/file\n"
    guest.sh(f"truncate -s 2 {place}/file; cp {place}/file {place}/copy; mv {place}/copy {place}/moved")
    assert guest.run("cat", f"{place}/moved")[1] == "ab"
    assert [guest.run("test", "-e", f"{place}/{name}")[0] for name in ("file", "nothing")] == [0, 1]
    for argv, words in (
        (("rm", f"{place}/nothing"), "No such file or directory"),
        (("rmdir", f"{place}/dir"), "not empty"),
        (("mkdir", f"{place}/dir"), "File exists"),
        (("ls", "-1", f"{place}/nothing"), "No such file or directory"),
        (("ln", "-s", "x", f"{place}/file"), "File exists"),
    ):
        code, _, err = guest.run(*argv)
        assert code != 0
        assert words in err
    guest.sh(f"rm -r -f {place}")


@pytest.mark.section("17.3")
def test_nul_bytes_in_output_arrive(guest: Guest) -> None:
    assert guest.run("printf", "a\\0b\\0\\0c")[1] == "a\0b\0\0c"
    started = guest.post("/cmd", json={"command": "printf", "args": ["x\\0y"]}).json()["command"]["id"]
    path = f"/v2/sandboxes/sessions/{guest.session_id}/cmd/{started}"
    assert guest.http.get(path, params={"wait": "true"}).json()["command"]["exitCode"] == 0
    logs = [json.loads(line) for line in guest.http.get(f"{path}/logs").text.splitlines()]
    assert "".join(one["data"] for one in logs) == "x\0y"


@pytest.mark.section("17.3")
def test_what_the_python_sdks_users_need_works(guest: Guest) -> None:
    script = (
        "set -m; coproc CAT { cat; }; echo through >&${CAT[1]}; read -r line <&${CAT[0]}; echo $line; kill %1; "
        "getent passwd ubuntu; /usr/bin/setpriv --pdeathsig KILL /usr/bin/env --default-signal echo signals; "
        "/usr/bin/sleep 0.01; printf abc | base64 -w 0; echo; id -g; find /etc/passwd -printf '%s\\0' | tr '\\0' '!'; echo"
    )
    code, out, err = guest.run("/bin/bash", "-c", script)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "through"
    assert lines[1] == "ubuntu:x:1000:1000::/vercel:/bin/bash"
    assert lines[2:5] == ["signals", "YWJj", "1000"]
    assert re.fullmatch(r"\d+!", lines[5])


@pytest.mark.section("17.3")
def test_a_process_ends_when_its_time_is_over(guest: Guest) -> None:
    begun = time.monotonic()
    assert guest.run("sleep", "60", timeout=300)[0] == 137
    assert time.monotonic() - begun < 10
    assert refusal(guest.post("/cmd", json={"command": "true", "timeout": 99}))[:2] == (400, "bad_request")


# -- usage -------------------------------------------------------------------------------------------


@pytest.mark.section("18.1", "18.2")
def test_usage_is_the_sessions_when_it_is_over_and_the_sandboxs_in_sum(http: httpx.Client) -> None:
    one = Guest(http)
    names = ("totalActiveCpuDurationMs", "totalIngressBytes", "totalEgressBytes", "totalDurationMs")
    sums = dict.fromkeys(names, 0)
    try:
        for _ in range(2):
            live = one.read(resume="true")
            assert not {"activeCpuDurationMs", "networkTransfer"} & set(live["session"])
            assert {name: live["sandbox"][name] for name in names} == sums
            one.sh("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
            stopped = one.post("/stop").json()
            session, sandbox = stopped["session"], stopped["sandbox"]
            used = (
                session["activeCpuDurationMs"],
                session["networkTransfer"]["ingress"],
                session["networkTransfer"]["egress"],
                session["duration"],
            )
            assert all(type(value) is int for value in used)
            assert used[0] > 50
            assert used[0] <= 2 * used[3] + 1000
            sums = {name: sums[name] + value for name, value in zip(names, used, strict=True)}
            assert {name: sandbox[name] for name in names} == sums
        listed = http.get("/v2/sandboxes/sessions", params={"name": one.name}).json()["sessions"]
        assert sum(item["activeCpuDurationMs"] for item in listed) == sums["totalActiveCpuDurationMs"]
    finally:
        one.delete()
