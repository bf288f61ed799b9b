"""What the vendor's API says about processes and files, asked over bare HTTP of one sandbox of a real server that all share."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]


@dataclass
class Box:
    """HTTP to the session of a running sandbox."""

    http: httpx.Client
    session_id: str

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.http.post(f"/v2/sandboxes/sessions/{self.session_id}{path}", **arguments)

    def get(self, path: str, **query: str) -> httpx.Response:
        return self.http.get(f"/v2/sandboxes/sessions/{self.session_id}{path}", params=query)

    def start(self, command: str, *args: str, **fields: Any) -> str:
        """The id of a detached command."""
        response = self.post("/cmd", json={"command": command, "args": list(args), **fields})
        assert response.status_code == 200, response.text
        return str(response.json()["command"]["id"])

    def wait(self, command: str) -> int:
        return int(self.get(f"/cmd/{command}", wait="true").json()["command"]["exitCode"])

    def records(self, command: str, *args: str, **fields: Any) -> list[dict[str, Any]]:
        body = {"command": command, "args": list(args), "wait": True, "logs": True, **fields}
        response = self.post("/cmd", json=body)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def output(self, script: str, **fields: Any) -> str:
        records = self.records("sh", "-c", script, **fields)
        assert records[-1]["command"]["exitCode"] == 0, records
        return "".join(record["data"] for record in records[1:-1])

    def log(self, command: str) -> str:
        return "".join(json.loads(line)["data"] for line in self.get(f"/cmd/{command}/logs").text.splitlines())

    def write(self, archive: bytes, **headers: str) -> httpx.Response:
        return self.post("/fs/write", content=archive, headers={"content-type": "application/gzip", "x-cwd": "/"} | headers)

    def read(self, path: str, cwd: str | None = None) -> httpx.Response:
        return self.post("/fs/read", json={"path": path} | ({"cwd": cwd} if cwd is not None else {}))


@pytest.fixture(scope="module")
def box(server: RunningServer) -> Iterator[Box]:
    where = server.where
    headers = {"authorization": f"Bearer {where.token}"}
    with httpx.Client(base_url=f"{where.url}/api", headers=headers, params={"teamId": where.team_id}, timeout=60) as http:
        made = http.post("/v3/sandboxes", json={"persistent": False, "env": {"LAYER": "sandbox", "KEPT": "yes"}}).json()
        yield Box(http, made["session"]["id"])
        http.delete(f"/v2/sandboxes/{made['sandbox']['name']}")


def archive(*files: tuple[str, bytes, int], kind: int = tarfile.USTAR_FORMAT, owner: int = 0) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=kind) as tar:
        for name, content, mode in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, owner, owner
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


# -- commands ----------------------------------------------------------------------------------------


@pytest.mark.section("8.1")
def test_a_waited_stream_is_a_command_its_output_and_the_command_again(box: Box) -> None:
    for logs in (True, False):
        first, *between, last = (record for record in box.records("sh", "-c", "echo o; echo e >&2; exit 3", logs=logs))
        assert (first["command"]["exitCode"], last["command"]["exitCode"]) == (None, 3)
        assert type(last["command"]["durationMs"]) is int
        assert last["command"] == first["command"] | {"exitCode": 3, "durationMs": last["command"]["durationMs"]}
        assert (first["command"]["name"], first["command"]["args"]) == ("sh", ["-c", "echo o; echo e >&2; exit 3"])
        assert (first["command"]["cwd"], first["command"]["sessionId"]) == ("/vercel", box.session_id)
        assert all(set(record) == {"data", "stream"} for record in between)
        assert sorted((record["stream"], record["data"]) for record in between) == (
            [("stderr", "e\n"), ("stdout", "o\n")] if logs else []
        )


@pytest.mark.section("8.1", "8.3")
def test_each_piece_of_output_is_sent_at_once(box: Box) -> None:
    # The second line is written only when the first one was seen.
    script = "echo one; while [ ! -e /tmp/seen ]; do sleep 0.01; done; echo two"
    body = {"command": "sh", "args": ["-c", script], "wait": True, "logs": True}
    path = f"/v2/sandboxes/sessions/{box.session_id}/cmd"
    with box.http.stream("POST", path, json=body) as response:
        lines = response.iter_lines()
        command = json.loads(next(lines))["command"]["id"]
        assert json.loads(next(lines)) == {"data": "one\n", "stream": "stdout"}
        with box.http.stream("GET", f"{path}/{command}/logs") as replayed:
            assert json.loads(next(replayed.iter_lines())) == {"data": "one\n", "stream": "stdout"}
        box.output("touch /tmp/seen")
        assert json.loads(next(lines)) == {"data": "two\n", "stream": "stdout"}
        assert json.loads(next(lines))["command"]["exitCode"] == 0
        assert list(lines) == []
    assert box.log(command) == "one\ntwo\n"


@pytest.mark.section("8.1", "16.3")
def test_a_command_has_the_variables_of_image_sandbox_and_its_own(box: Box) -> None:
    script = "echo $LAYER $KEPT $LANG"
    assert box.output(script) == "sandbox yes C.UTF-8\n"
    assert box.output(script, env={"LAYER": "command", "LANG": "C"}) == "command yes C\n"
    assert box.output(script, env={}) == "sandbox yes C.UTF-8\n"


@pytest.mark.section("8.1")
def test_the_time_of_a_detached_command_is_limited_too(box: Box) -> None:
    assert box.wait(box.start("sleep", "600", timeout=100)) == 137


@pytest.mark.section("8.4")
def test_a_signal_is_for_the_commands_own_process(box: Box) -> None:
    command = box.start("sh", "-c", "sleep 600 & echo $!; wait")
    path = f"/v2/sandboxes/sessions/{box.session_id}/cmd/{command}/logs"
    with box.http.stream("GET", path) as response:
        child = json.loads(next(response.iter_lines()))["data"].strip()
        killed = box.post(f"/cmd/{command}/kill", json={"signal": 15})
        assert (killed.status_code, killed.json()["command"]["exitCode"]) == (200, None)
        assert box.wait(command) == 143
    assert box.output(f"kill -9 {child} && echo lived") == "lived\n"


@pytest.mark.section("8.4")
@pytest.mark.parametrize(("signal", "code"), [(1, 129), (2, 130), (3, 131), (9, 137), (15, 143)])
def test_death_by_a_signal_is_128_and_its_number(box: Box, signal: int, code: int) -> None:
    command = box.start("sleep", "600")
    box.post(f"/cmd/{command}/kill", json={"signal": signal})
    assert box.wait(command) == code


@pytest.mark.section("8.4")
def test_a_stopped_process_goes_on(box: Box) -> None:
    command = box.start("cat", attachStdin=True)
    for signal in (19, 18):
        assert box.post(f"/cmd/{command}/kill", json={"signal": signal}).status_code == 200
    box.post(f"/cmd/{command}/stdin", json={"data": base64.b64encode(b"on").decode(), "close": True})
    assert (box.wait(command), box.log(command)) == (0, "on")


@pytest.mark.section("4.5", "8.5")
def test_input_is_taken_once_however_often_it_is_sent(box: Box) -> None:
    command = box.start("cat", attachStdin=True)

    def write(data: bytes | None = None, **body: Any) -> Any:
        content = body if data is None else body | {"data": base64.b64encode(data).decode()}
        return box.post(f"/cmd/{command}/stdin", json=content).json()

    assert write() == {"bytesWritten": 0}
    for _ in range(2):
        assert write(b"abc", offset=0) == {"bytesWritten": 3}
    assert write(b"abcdef", offset=0) == {"bytesWritten": 6}
    assert write(b"gh", offset=6, close=True) == {"bytesWritten": 8}
    assert (box.wait(command), box.log(command)) == (0, "abcdefgh")
    gone = box.post(f"/cmd/{command}/stdin", json={})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "command_not_found_or_exited")
    # Closed, and still running.
    sleeper = box.start("sleep", "600", attachStdin=True)
    box.post(f"/cmd/{sleeper}/stdin", json={"close": True})
    closed = box.post(f"/cmd/{sleeper}/stdin", json={"data": "eA==", "offset": 0})
    assert (closed.status_code, closed.json()["error"]["code"]) == (400, "command_stdin_unavailable")
    box.post(f"/cmd/{sleeper}/kill", json={"signal": 9})


@pytest.mark.section("8.2")
def test_commands_are_listed_newest_first_with_how_they_ended(box: Box) -> None:
    done, running = box.start("true"), box.start("sleep", "600")
    assert box.wait(done) == 0
    listed = box.get("/cmd").json()
    assert set(listed) == {"commands"}
    newest = {command["id"]: command["exitCode"] for command in listed["commands"][:2]}
    assert list(newest.items()) == [(running, None), (done, 0)]
    assert box.get(f"/cmd/{running}", wait="false").json() == {"command": listed["commands"][0]}
    box.post(f"/cmd/{running}/kill", json={"signal": 9})


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.section("9.1")
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["ustar", "pax", "gnu"])
def test_archives_of_both_clients_are_unpacked(box: Box, kind: int) -> None:
    names = ("vercel/a/b.txt", "tmp/x") if kind == tarfile.USTAR_FORMAT else (f"vercel/{'long/' * 40}b.txt", "vercel/grüße 🐇")
    written = box.write(archive(*((name, name.encode(), 0o644) for name in names), kind=kind, owner=4242))
    assert (written.status_code, written.json()) == (200, {})
    for name in names:
        assert box.read(f"/{name}").content == name.encode()
        assert box.output('stat -c "%u:%g %a" "$NAME"', env={"NAME": f"/{name}"}) == "1000:1000 644\n"


@pytest.mark.section("9.1")
def test_modes_are_kept_parents_made_and_files_replaced(box: Box) -> None:
    modes = (0o644, 0o755, 0o600, 0o400)
    for content in (b"first", b"second, longer"):
        written = box.write(archive(*((f"vercel/modes/m{mode:o}", content, mode) for mode in modes)))
        assert (written.status_code, written.json()) == (200, {})
        assert [box.read(f"modes/m{mode:o}").content for mode in modes] == [content] * len(modes)
    shown = box.output("cd modes && stat -c '%n %U %a' m*")
    assert shown == "m400 ubuntu 400\nm600 ubuntu 600\nm644 ubuntu 644\nm755 ubuntu 755\n"


@pytest.mark.section("9.1")
def test_names_are_below_the_directory_that_the_header_says(box: Box) -> None:
    for where in ("/tmp", "/vercel/made/for/it"):
        assert box.write(archive(("d/f", where.encode(), 0o644)), **{"x-cwd": where}).status_code == 200
        assert box.read(f"{where}/d/f").text == where
    refused = box.write(archive(("d/f", b"", 0o644)), **{"x-cwd": "tmp"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.section("9.1")
def test_a_body_may_come_in_pieces_without_a_length(box: Box) -> None:
    packed = archive(("tmp/pieces", bytes(range(256)) * 400, 0o644))
    pieces = (packed[start : start + 1000] for start in range(0, len(packed), 1000))
    written = box.post("/fs/write", content=pieces, headers={"content-type": "application/gzip", "x-cwd": "/"})
    assert (written.status_code, written.json()) == (200, {})
    assert box.read("/tmp/pieces").content == bytes(range(256)) * 400


@pytest.mark.section("9.1")
def test_what_is_no_file_is_refused_whole(box: Box) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("tmp/before"))
        link = tarfile.TarInfo("tmp/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused = box.write(packed.getvalue())
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_archive")
    assert box.read("/tmp/before").status_code == 404


@pytest.mark.section("4.2", "9.2")
def test_a_file_is_read_below_the_sessions_directory_or_the_one_that_is_said(box: Box) -> None:
    box.write(archive(("vercel/r/file.txt", b"text", 0o644), ("vercel/r/empty", b"", 0o644)))
    for path, cwd in (
        ("r/file.txt", None),
        ("file.txt", "/vercel/r"),
        ("/vercel/r/file.txt", "/tmp"),
        ("./r/../r/file.txt", None),
    ):
        read = box.read(path, cwd)
        assert (read.status_code, read.text) == (200, "text"), (path, cwd)
        assert read.headers["content-type"] == "application/octet-stream"
        assert read.headers["content-disposition"] == 'attachment; filename="file.txt"'
        assert read.headers["transfer-encoding"] == "chunked"
    empty = box.read("r/empty")
    assert (empty.status_code, empty.content) == (200, b"")
    missing = box.read("r/none")
    assert missing.status_code == 404
    assert missing.json() == {"error": {"code": "not_found", "message": "File not found."}}


@pytest.mark.section("4.6", "9.3")
def test_directories_are_made_one_by_one_unless_asked_otherwise(box: Box) -> None:
    def mkdir(**body: Any) -> tuple[int, Any]:
        answer = box.post("/fs/mkdir", json=body)
        return answer.status_code, answer.json()

    done: tuple[int, Any] = (200, {})
    exists = "error creating directory: /vercel/mk: File exists"
    orphan = "error creating directory: No such file or directory"
    assert mkdir(path="mk") == done
    assert mkdir(path="no/parent") == (400, {"error": {"code": "file_error", "message": orphan}})
    for said in ({}, {"recursive": False}):
        assert mkdir(path="mk", **said) == (400, {"error": {"code": "file_error", "message": exists}})
    assert mkdir(path="mk", recursive=True) == done
    assert mkdir(path="no/parent", recursive=False) == (400, {"error": {"code": "file_error", "message": orphan}})
    assert mkdir(path="no/parent", recursive=True) == done
    assert mkdir(path="sub", cwd="/vercel/mk") == done
    assert mkdir(path="/tmp/mk/deep", recursive=True) == done
    assert box.output("ls -d mk mk/sub no/parent /tmp/mk/deep") == "/tmp/mk/deep\nmk\nmk/sub\nno/parent\n"
