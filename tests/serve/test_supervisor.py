"""The supervisor and its children, with real processes, privileges and signals; only the sandboxes are missing."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from hutch.serving.supervisor import READY_AGAIN_S
from tests.serve.conftest import DEADLINE_S, Served, Start, eventually, gone


def test_the_ready_file_says_everything_and_to_its_owner_only(shared: Served) -> None:
    server = shared
    ready = server.ready
    assert list(ready) == ["url", "token", "team_id", "project_id", "dashboard_url", "ingress_url", "isolation", "pid"]
    assert (ready["isolation"], ready["pid"], ready["dashboard_url"]) == ("gvisor", server.process.pid, None)
    assert ready["ingress_url"].startswith("http://127.0.0.1:")
    for path in (server.ready_file, server.data_dir / "run" / "server.json"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(path.read_text()) == ready
    with server.http() as http:
        assert http.post("/api/v3/sandboxes", json={"image": "nope"}).json()["error"]["code"] == "not_found"
        who = http.get("/api/hutch/v1/whoami").json()
    assert (who["team"]["id"], who["project"]["id"], who["role"]) == (ready["team_id"], ready["project_id"], "admin")


def test_a_ready_file_that_could_not_be_written_is_written_later(start: Start, tmp_path: Path) -> None:
    blocked = tmp_path / "ready-0.json"
    (blocked / "taken").mkdir(parents=True)
    server = start(wait=False)
    assert server.ready_file == blocked
    eventually(lambda: "the ready file could not be written" in server.log.read_text(), "nothing is said")
    # It is tried again meanwhile, and says nothing new: that something is not said can only be waited for.
    time.sleep(2 * READY_AGAIN_S)
    (blocked / "taken").rmdir()
    blocked.rmdir()
    eventually(blocked.is_file, "the server is not ready")
    assert server.log.read_text().count("the ready file could not be written") == 1
    with server.http() as http:
        assert http.get("/api/hutch/v1/whoami").status_code == 200


def test_the_api_process_is_shut_in(shared: Served, user: str) -> None:
    server = shared
    pid = server.children()["api"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {str(pwd.getpwnam(user).pw_uid)}
    assert len(status["Groups"].split()) == 1
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    seen = {path.name for path in Path(f"/proc/{pid}/root").iterdir()}
    assert not seen & {"proc", "sys", "home", "var", "srv", "boot", "run"}
    assert {path.name for path in Path(f"/proc/{pid}/root/data").iterdir()} == {"control", "run"}
    mounts = Path(f"/proc/{pid}/mounts").read_text()
    writable = [line.split()[1] for line in mounts.splitlines() if line.split()[3].startswith("rw")]
    assert sorted(path for path in writable if not path.startswith("/dev")) == ["/", "/data/control", "/data/run"]


def test_an_archive_larger_than_the_api_process_s_root_is_taken(shared: Served) -> None:
    content = os.urandom(6 * 1024 * 1024)
    with shared.http() as http:
        made = http.post("/api/v3/workersCreateWorker", json={"name": "large", "uploadType": "source"}).json()
        taken = http.post(httpx.URL(made["url"]).path, files={"file": content})
    assert taken.status_code == 204, taken.text
    assert [path.read_bytes() == content for path in (shared.data_dir / "control" / "uploads").iterdir()] == [True]


def test_directories_belong_to_whom_they_should(shared: Served, user: str) -> None:
    server = shared
    account = pwd.getpwnam(user)
    expected = {
        ".": (0, 0, 0o711),
        "control": (account.pw_uid, account.pw_gid, 0o700),
        "host": (0, 0, 0o700),
        "run": (0, account.pw_gid, 0o2750),
        "run/host.sock": (0, account.pw_gid, 0o660),
    }
    for name, (uid, gid, mode) in expected.items():
        stat = (server.data_dir / name).stat()
        assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (uid, gid, mode), name
    for path in (server.data_dir / "control").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_sigterm_ends_everything_with_0_and_takes_the_files_along(start: Start) -> None:
    server = start()
    children = server.children()
    server.process.terminate()
    assert server.process.wait(DEADLINE_S) == 0, server.log.read_text()
    assert all(gone(pid) for pid in children.values())
    assert not server.ready_file.exists()
    assert not (server.data_dir / "run" / "server.json").exists()


def test_a_host_that_could_not_end_cleanly_is_not_called_well(start: Start) -> None:
    server = start(STUB_HOST_ENDS_WITH="3")
    server.process.terminate()
    assert server.process.wait(DEADLINE_S) == 1, server.log.read_text()
    assert "the host ended with exit code 3 when it was stopped" in server.log.read_text()


def test_a_request_that_runs_is_answered_before_the_end(start: Start) -> None:
    server = start(HUTCH_SERVER__SHUTDOWN_GRACE_S="20")
    url = server.ready["url"]
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as running:
        body = b'{"image":"nope"}'
        head = f"POST /v3/sandboxes HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.ready['token']}\r\n"
        running.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body[:5])
        with server.http() as http:
            http.get("/healthz")  # one turn of the API's loop, so that it has seen the head
        server.process.terminate()
        eventually(lambda: _refuses(address), "the server still listens")
        assert server.process.poll() is None
        running.sendall(body[5:])
        assert running.recv(65536).startswith(b"HTTP/1.1 404")
    assert server.process.wait(DEADLINE_S) == 0


def _refuses(address: list[str]) -> bool:
    """Nobody answers there any more (the supervisor's backlog may still take a connection)."""
    try:
        with socket.create_connection((address[0], int(address[1])), 0.5) as probe:
            probe.settimeout(0.5)
            probe.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            return not probe.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return True


def test_a_second_server_on_the_same_directory_is_refused(shared: Served, start: Start) -> None:
    second = start(wait=False, HUTCH_SERVER__DATA_DIR=str(shared.data_dir))
    assert second.process.wait(DEADLINE_S) == 9
    assert "server_running" in second.log.read_text()


def test_a_host_that_dies_is_started_again_and_the_api_says_so_meanwhile(start: Start) -> None:
    server = start()
    with server.http() as http:
        os.kill(server.children()["host"], signal.SIGSTOP)
        assert http.get("/healthz").status_code == 200
        os.kill(server.children()["host"], signal.SIGKILL)
        statuses = []

        def ready() -> bool:
            response = http.get("/readyz")
            statuses.append((response.status_code, response.json().get("error", {}).get("code")))
            return response.status_code == 200

        eventually(ready, "the host does not come back")
        assert {status for status, _ in statuses} <= {200, 503}
        assert {code for _, code in statuses} <= {None, "host_unreachable", "peer_unreachable"}
    assert server.process.poll() is None


def test_an_api_that_dies_is_started_again_and_no_connection_is_refused(start: Start) -> None:
    server = start()
    before = server.ready
    former = server.children()["api"]
    os.kill(former, signal.SIGKILL)
    eventually(lambda: gone(former), "the API process is still there")
    with server.http() as http:
        # The socket is the supervisor's, so this waits for the next API process instead of failing.
        assert http.get("/api/hutch/v1/whoami").status_code == 200
    eventually(lambda: server.children().get("api") not in (None, former), "the API process does not come back")
    assert server.ready == before


def test_the_death_of_the_supervisor_ends_both_children_and_the_next_start_works(start: Start) -> None:
    server = start()
    token, children = server.ready["token"], server.children()
    assert set(children) == {"host", "api"}
    server.process.kill()
    server.process.wait(DEADLINE_S)
    for pid in children.values():
        eventually(lambda pid=pid: gone(pid), "a child outlived the supervisor")  # type: ignore[misc]
    again = start()
    assert again.ready["token"] == token
    with again.http() as http:
        assert http.get("/v2/sandboxes").status_code == 200


def test_a_host_that_can_not_start_ends_the_server_with_1(start: Start) -> None:
    server = start(wait=False, STUB_HOST_FAILS="1")
    assert server.process.wait(DEADLINE_S) == 1
    assert "giving up" in server.log.read_text()
    assert not server.ready_file.exists()


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"HUTCH_SERVER__USER": "nobody_like_that"}, "user_missing"),
        ({"HUTCH_SERVER__USER": "root"}, "user_missing"),
        ({"HUTCH_SERVER__DATA_DIR": "/proc/nowhere"}, "data_dir_unusable"),
        ({"HUTCH_SERVER__LISTEN": "203.0.113.254:1"}, "listen_failed"),
    ],
)
def test_what_can_not_be_served_is_refused_with_a_reason(start: Start, environment: dict[str, str], code: str) -> None:
    server = start(wait=False, **environment)
    assert server.process.wait(DEADLINE_S) == 9
    assert code in server.log.read_text()


def test_a_port_in_use_is_said_to_be(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(wait=False, HUTCH_SERVER__LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        assert server.process.wait(DEADLINE_S) == 9
    assert "Another program uses it." in server.log.read_text()


def test_concurrent_requests_across_a_restart_of_the_api_are_answered_or_broken_off_but_never_wrong(start: Start) -> None:
    server = start()
    statuses: list[int] = []

    def ask() -> None:
        with server.http() as http:
            for _ in range(20):
                try:
                    statuses.append(http.get("/v2/sandboxes").status_code)
                except httpx.TransportError:
                    statuses.append(0)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.kill(server.children()["api"], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 0}
    assert 200 in statuses
