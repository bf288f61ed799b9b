"""Commands: waited, detached, logs, kill, stdin."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.section("8")


@pytest.fixture
async def session(api: Api) -> str:
    return str((await api.create(env={"A": "sandbox", "B": "sandbox"}))["session"]["id"])


def path(session_id: str, rest: str = "") -> str:
    return f"/v2/sandboxes/sessions/{session_id}/cmd{rest}"


async def waited(api: Api, session_id: str, command: str, *args: str, **body: Any) -> list[dict[str, Any]]:
    """The records of a waited command."""
    content = {"command": command, "args": list(args), "env": {}, "wait": True, "logs": True} | body
    response = await api.http.post(path(session_id), json=content)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


async def test_a_waited_command_is_two_records_around_its_output(api: Api, session: str) -> None:
    records = await waited(api, session, "both", "x", cwd="/tmp")
    first, *logs, last = records
    assert re.fullmatch(r"cmd_[0-9a-f]{28}", first["command"]["id"])
    assert first["command"] | {"id": "", "startedAt": 0} == {
        "id": "",
        "name": "both",
        "args": ["x"],
        "cwd": "/tmp",
        "sessionId": session,
        "exitCode": None,
        "startedAt": 0,
    }
    assert logs == [{"data": "err\n", "stream": "stderr"}, {"data": "out\n", "stream": "stdout"}]
    assert last["command"] == first["command"] | {"exitCode": 0, "durationMs": 7}


async def test_without_logs_the_two_records_come_alone(api: Api, session: str) -> None:
    records = await waited(api, session, "echo", "hi", logs=False)
    assert [list(record) for record in records] == [["command"], ["command"]]
    assert records[1]["command"]["exitCode"] == 0


async def test_the_exit_code_comes_through(api: Api, session: str) -> None:
    assert (await waited(api, session, "exit", "3"))[-1]["command"]["exitCode"] == 3


@pytest.mark.section("4.6")
async def test_a_command_that_does_not_exist_is_an_http_error(api: Api, session: str) -> None:
    for command in ("nosuch", ""):
        response = await api.http.post(path(session), json={"command": command, "wait": True, "logs": True})
        assert response.status_code == 400
        assert response.json()["error"] == {
            "code": "executable_not_found",
            "message": f"[invalid_argument] executable file not found in $PATH: {command}",
        }


async def test_a_character_in_two_pieces_arrives_whole(api: Api, session: str) -> None:
    logs = (await waited(api, session, "pieces"))[1:-1]
    assert "".join(record["data"] for record in logs) == "größe €"
    assert not any("\ufffd" in record["data"] for record in logs)


async def test_bytes_that_are_not_text_are_replaced_and_nul_survives(api: Api, session: str) -> None:
    logs = (await waited(api, session, "nul"))[1:-1]
    assert "".join(record["data"] for record in logs) == "a\0b\ufffd\ufffd\n"


@pytest.mark.section("6.1")
async def test_env_of_the_command_lies_over_that_of_the_sandbox(api: Api, session: str) -> None:
    logs = (await waited(api, session, "env", env={"B": "command", "C": "command"}))[1:-1]
    assert "".join(record["data"] for record in logs) == "A=sandbox\nB=command\nC=command\n"


async def test_a_flood_streams_through_whole(api: Api, session: str) -> None:
    size = 0
    body = {"command": "flood", "args": ["32"], "wait": True, "logs": True}
    async with api.http.stream("POST", path(session), json=body) as response:
        async for line in response.aiter_lines():
            record = json.loads(line)
            size += len(record.get("data", ""))
    assert size == 32 * 1024 * 1024
    assert record["command"]["exitCode"] == 0


async def test_the_first_record_comes_before_the_command_ends(api: Api, session: str) -> None:
    async with api.http.stream("POST", path(session), json={"command": "wait", "wait": True, "logs": True}) as response:
        lines = response.aiter_lines()
        command = json.loads(await anext(lines))["command"]
        await api.http.post(path(session, f"/{command['id']}/kill"), json={"signal": 15})
        assert json.loads(await anext(lines))["command"]["exitCode"] == 143


@pytest.mark.section("4.5")
async def test_a_session_that_ends_is_reported_in_band(api: Api, session: str) -> None:
    records = await waited(api, session, "gone")
    assert records[1] == {"data": "last words\n", "stream": "stdout"}
    assert records[2]["stream"] == "error"
    assert records[2]["data"]["code"] == "sandbox_stopped"
    assert len(records) == 3


@pytest.mark.section("4.5", "4.6")
async def test_a_host_that_breaks_is_reported_with_the_code_on_which_clients_follow_again(api: Api, session: str) -> None:
    records = await waited(api, session, "die")
    assert records[-1]["data"]["code"] == "sandbox_stream_closed"


async def test_a_client_that_goes_away_leaves_the_command_running(api: Api, session: str) -> None:
    async with api.http.stream("POST", path(session), json={"command": "wait", "wait": True, "logs": True}) as response:
        command = json.loads(await anext(response.aiter_lines()))["command"]
    answer = (await api.http.get(path(session, f"/{command['id']}"))).json()
    assert answer["command"]["exitCode"] is None


async def test_a_detached_command_is_one_json_object(api: Api, session: str) -> None:
    response = await api.http.post(path(session), json={"command": "wait"})
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    command = response.json()["command"]
    assert command["exitCode"] is None
    assert "durationMs" not in command


@pytest.mark.section("4.4")
async def test_get_waits_with_its_head_already_sent(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]
    async with api.http.stream("GET", path(session, f"/{command['id']}"), params={"wait": "true"}) as response:
        assert response.status_code == 200
        await api.http.post(path(session, f"/{command['id']}/kill"), json={"signal": 9})
        body = json.loads(await response.aread())
    assert body["command"]["exitCode"] == 137
    done = (await api.http.get(path(session, f"/{command['id']}"), params={"wait": "true"})).json()
    assert done == body


async def test_a_wait_that_breaks_ends_without_a_body(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]
    with pytest.raises(httpx.RemoteProtocolError):
        async with api.http.stream("GET", path(session, f"/{command['id']}"), params={"wait": "true"}) as response:
            api.host.drop_connections()
            await response.aread()


async def test_list_is_newest_first(api: Api, session: str) -> None:
    ids = [
        (await api.http.post(path(session), json={"command": "echo", "args": [str(n)]})).json()["command"]["id"] for n in range(3)
    ]
    listed = (await api.http.get(path(session))).json()["commands"]
    assert [command["id"] for command in listed] == ids[::-1]


async def test_logs_replay_follow_and_serve_several_readers(api: Api, session: str) -> None:
    body = {"command": "cat", "attachStdin": True}
    command = (await api.http.post(path(session), json=body)).json()["command"]["id"]

    async def read() -> str:
        response = await api.http.get(path(session, f"/{command}/logs"))
        assert response.headers["content-type"] == "application/x-ndjson"
        return "".join(json.loads(line)["data"] for line in response.text.splitlines())

    readers = [asyncio.create_task(read()) for _ in range(3)]
    data = base64.b64encode(b"hello\n").decode()
    written = await api.http.post(path(session, f"/{command}/stdin"), json={"data": data, "offset": 0, "close": True})
    assert written.json() == {"bytesWritten": 6}
    assert await asyncio.gather(*readers) == ["hello\n"] * 3
    assert await read() == "hello\n"


@pytest.mark.section("4.5")
async def test_stdin_skips_what_it_has_and_reports_how_far_it_is(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "cat", "attachStdin": True})).json()["command"]["id"]
    where = path(session, f"/{command}/stdin")
    assert (await api.http.post(where)).json() == {"bytesWritten": 0}
    for _ in range(2):
        body = {"data": base64.b64encode(b"abcdef").decode(), "offset": 0}
        assert (await api.http.post(where, json=body)).json() == {"bytesWritten": 6}
    assert (await api.http.post(where, json={"close": True})).json() == {"bytesWritten": 6}
    closed = await api.http.post(where, json={})
    assert (closed.status_code, closed.json()["error"]["code"]) == (400, "command_stdin_unavailable")


@pytest.mark.section("4.5")
async def test_a_process_that_does_not_read_is_504_with_the_offset(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "cat", "attachStdin": True})).json()["command"]["id"]
    api.host.stall_stdin = True
    response = await api.http.post(path(session, f"/{command}/stdin"), json={"data": base64.b64encode(b"x").decode()})
    assert response.status_code == 504
    assert response.json()["error"]["bytesWritten"] == 0


@pytest.mark.parametrize(
    "body", [{"data": "!!"}, {"data": 5}, {"offset": -1}, {"offset": 2**60}, {"close": "yes"}, {"data": "YQ"}]
)
async def test_bad_stdin_is_400(api: Api, session: str, body: dict[str, object]) -> None:
    command = (await api.http.post(path(session), json={"command": "cat", "attachStdin": True})).json()["command"]["id"]
    assert (await api.http.post(path(session, f"/{command}/stdin"), json=body)).status_code == 400


async def test_a_request_to_stdin_is_at_most_a_mebibyte(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "cat", "attachStdin": True})).json()["command"]["id"]
    where = path(session, f"/{command}/stdin")
    chunk = json.dumps({"data": base64.b64encode(b"x" * 512 * 1024).decode(), "offset": 0})
    assert (await api.http.post(where, content=chunk)).json() == {"bytesWritten": 512 * 1024}
    assert (await api.http.post(where, content=chunk.ljust(1024 * 1024))).json() == {"bytesWritten": 512 * 1024}
    for size in (1024 * 1024 + 1, 3_000_000):
        refused = await api.http.post(where, content=chunk.ljust(size))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("command", ["cmd_" + "0" * 28, "cmd_x", "nope", "%00", "..%2f..", "cmd_" + "f" * 5000])
async def test_an_unknown_command_is_404(api: Api, session: str, command: str) -> None:
    for method, rest in (("GET", ""), ("GET", "?wait=true"), ("GET", "/logs"), ("POST", "/kill"), ("POST", "/stdin")):
        response = await api.http.request(method, path(session, f"/{command}{rest}"), json={} if method == "POST" else None)
        assert response.status_code == 404, (rest, response.text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"command": 5}, "Invalid request: `command` should be string."),
        ({"command": "echo", "args": "x"}, "Invalid request: `args` should be array."),
        ({"command": "echo", "args": [1]}, "Invalid request: `args[0]` should be string."),
        ({"command": "ec\0ho"}, "Invalid request: `command` should NOT contain NUL characters."),
        ({"command": "echo", "args": ["\0"]}, "Invalid request: `args[0]` should NOT contain NUL characters."),
        ({"command": "echo", "args": ["x" * 131_072]}, "Invalid request: `args[0]` should NOT be longer than 131071 bytes."),
        ({"command": "echo", "args": [""] * 32_769}, "Invalid request: `args` should NOT have more than 32768 items."),
        ({"command": "echo", "cwd": ""}, "Invalid request: `cwd` should NOT be shorter than 1 characters."),
        ({"command": "echo", "cwd": "/" + "x" * 4095}, "Invalid request: `cwd` should NOT be longer than 4095 bytes."),
        ({"command": "echo", "timeout": 99}, "Invalid request: `timeout` should be >= 100."),
        ({"command": "echo", "timeout": 2**60}, None),
        ({"command": "echo", "sudo": 1}, "Invalid request: `sudo` should be boolean."),
        ({"command": "echo", "env": {"": "x"}}, None),
        ({"command": "echo", "env": {"A": "x" * 140_000}}, None),
        ([], "Invalid request: the body should be a JSON object."),
        ("echo", "Invalid request: the body should be a JSON object."),
    ],
)
async def test_bad_starts_are_400(api: Api, session: str, body: object, message: str | None) -> None:
    response = await api.http.post(path(session), json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "bad_request"
    if message is not None:
        assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("signal", [0, 65, -1, "TERM", 9.5, True])
async def test_bad_signals_are_400(api: Api, session: str, signal: object) -> None:
    command = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]["id"]
    assert (await api.http.post(path(session, f"/{command}/kill"), json={"signal": signal})).status_code == 400


async def test_a_warm_waited_command_touches_no_database(api: Api, session: str) -> None:
    await waited(api, session, "echo", "warm")

    def refuse() -> Any:
        raise AssertionError("the database was used on the hot path")

    database = api.services.database
    api.services.auth._database = database.__class__.__new__(database.__class__)
    api.services.auth._database.read = refuse  # type: ignore[method-assign]
    assert len(await waited(api, session, "echo", "hot")) == 3


# -- as the vendor says ------------------------------------------------------------------------------


async def test_the_first_record_has_no_exit_code_however_fast_the_command_is(api: Api, session: str) -> None:
    for logs in (True, False):
        for _ in range(5):
            records = await waited(api, session, "echo", "hi", logs=logs)
            first, last = records[0]["command"], records[-1]["command"]
            assert first["exitCode"] is None
            assert "durationMs" not in first
            assert last == first | {"exitCode": 0, "durationMs": 7}


async def test_what_a_start_does_not_say_has_its_default(api: Api, session: str) -> None:
    for body in ({}, {"args": ["x"]}, {"command": None}, {"wait": True, "logs": True}):
        refused = await api.http.post(path(session), json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "executable_not_found")
        assert refused.headers["content-type"] == "application/json; charset=utf-8"
    started = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]
    assert (started["args"], started["cwd"], started["exitCode"]) == ([], "/vercel", None)
    # Without `wait` the answer is one object, whatever `logs` says.
    logged = await api.http.post(path(session), json={"command": "wait", "wait": False, "logs": True})
    assert set(logged.json()) == {"command"}
    assert (await api.http.post(path(session), json={"command": "echo", "timeout": 100})).status_code == 200
    closed = await api.http.post(path(session, f"/{started['id']}/stdin"), json={})
    assert (closed.status_code, closed.json()["error"]["code"]) == (400, "command_stdin_unavailable")


async def test_a_wait_may_be_asked_for_in_words(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]
    for query in ({}, {"wait": "false"}):
        answer = await api.http.get(path(session, f"/{command['id']}"), params=query)
        assert (answer.status_code, answer.json()) == (200, {"command": command})
    assert (await api.http.get(path(session, f"/{command['id']}"), params={"wait": "long"})).status_code == 400


async def test_a_signal_is_a_number_and_ends_a_command_unless_said_otherwise(api: Api, session: str) -> None:
    for body, code in (({}, 143), ({"signal": 1}, 129), ({"signal": 2}, 130), ({"signal": 9}, 137), ({"signal": 31}, 159)):
        command = (await api.http.post(path(session), json={"command": "wait"})).json()["command"]
        where = path(session, f"/{command['id']}")
        killed = await api.http.post(f"{where}/kill", json=body)
        assert (killed.status_code, killed.json()["command"]["exitCode"]) == (200, None)
        assert (await api.http.get(where, params={"wait": "true"})).json()["command"]["exitCode"] == code


async def test_logs_are_only_logs_and_end_with_the_command(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "both"})).json()["command"]["id"]
    for _ in range(2):
        response = await api.http.get(path(session, f"/{command}/logs"))
        assert [json.loads(line) for line in response.text.splitlines()] == [
            {"data": "err\n", "stream": "stderr"},
            {"data": "out\n", "stream": "stdout"},
        ]
        assert response.text.endswith("\n")


@pytest.mark.section("8.5", "4.5")
async def test_stdin_of_what_is_not_there_has_one_code(api: Api, session: str) -> None:
    for command in ("cmd_" + "0" * 28, "cmd_x", "nope"):
        gone = await api.http.post(path(session, f"/{command}/stdin"), json={})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "command_not_found_or_exited")


async def test_stdin_is_resumed_from_where_it_was_and_closed(api: Api, session: str) -> None:
    command = (await api.http.post(path(session), json={"command": "cat", "attachStdin": True})).json()["command"]["id"]
    where = path(session, f"/{command}/stdin")

    async def write(**body: Any) -> Any:
        if isinstance(body.get("data"), bytes):
            body["data"] = base64.b64encode(body["data"]).decode()
        return (await api.http.post(where, json=body)).json()

    assert await write() == {"bytesWritten": 0}
    assert await write(data=b"abc", offset=0) == {"bytesWritten": 3}
    assert await write(data=b"abcdef", offset=0) == {"bytesWritten": 6}
    assert await write(data=b"efgh", offset=4) == {"bytesWritten": 8}
    assert await write(data="", offset=8) == {"bytesWritten": 8}
    assert await write(close=True) == {"bytesWritten": 8}
    output = await api.http.get(path(session, f"/{command}/logs"))
    assert "".join(json.loads(line)["data"] for line in output.text.splitlines()) == "abcdefgh"
