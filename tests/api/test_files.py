"""Files: archives in, bytes out, directories."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import AsyncIterator

import pytest

from hutch.api.files import disposition
from tests.api.conftest import Api

pytestmark = pytest.mark.section("9")


@pytest.fixture
async def session(api: Api) -> str:
    return str((await api.create())["session"]["id"])


def path(session_id: str, rest: str) -> str:
    return f"/v2/sandboxes/sessions/{session_id}/fs/{rest}"


def archive(files: dict[str, bytes], *, compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue()) if compressed else buffer.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
async def test_an_archive_is_written_and_its_files_read_back(api: Api, session: str, compressed: bool) -> None:
    headers = {"x-cwd": "/"} | ({"content-type": "application/gzip"} if compressed else {})
    body = archive({"vercel/a.txt": b"hello", "tmp/b": os.urandom(3_000_000)}, compressed=compressed)
    written = await api.http.post(path(session, "write"), content=body, headers=headers)
    assert (written.status_code, written.json()) == (200, {})
    read = await api.http.post(path(session, "read"), json={"path": "a.txt"})
    assert (read.status_code, read.content) == (200, b"hello")
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["content-disposition"] == 'attachment; filename="a.txt"'
    big = await api.http.post(path(session, "read"), json={"path": "/tmp/b"})
    assert big.content == api.host.files[session][b"/tmp/b"]


async def test_a_chunked_upload_without_a_length_streams_through(api: Api, session: str) -> None:
    body = archive({"x": os.urandom(1_000_000)})

    async def chunks() -> AsyncIterator[bytes]:
        yield body[:1]
        for start in range(1, len(body), 10_007):
            yield body[start : start + 10_007]

    assert (await api.http.post(path(session, "write"), content=chunks(), headers={"x-cwd": "/w"})).status_code == 200
    assert set(api.host.files[session]) == {b"/w/x"}


async def test_without_x_cwd_the_sessions_directory_is_meant(api: Api, session: str) -> None:
    await api.http.post(path(session, "write"), content=archive({"x": b"1"}))
    assert set(api.host.files[session]) == {b"/vercel/x"}


@pytest.mark.parametrize("cwd", ["relative", "", "/" + "x" * 4095])
async def test_a_bad_x_cwd_is_400(api: Api, session: str, cwd: str) -> None:
    response = await api.http.post(path(session, "write"), content=archive({"x": b"1"}), headers={"x-cwd": cwd})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [b"", b"junk", b"\x1f\x8bjunk", archive({"x": b"1" * 5000})[:-20], os.urandom(100_000)],
    ids=["empty", "text", "magic", "cut", "random"],
)
async def test_what_is_no_archive_is_400(api: Api, session: str, body: bytes) -> None:
    response = await api.http.post(
        path(session, "write"), content=body, headers={"x-cwd": "/", "content-type": "application/gzip"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_archive")
    assert api.host.files[session] == {}


async def test_an_upload_that_breaks_off_is_not_written(api: Api, session: str) -> None:
    body = archive({"x": b"1" * 100_000})
    head = f"POST {path(session, 'write')} HTTP/1.1\r\nhost: x\r\nx-cwd: /\r\nauthorization: Bearer {api.own.token}\r\n"
    _, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:50])
    await writer.drain()
    async with asyncio.timeout(10):
        while "archive.write" not in api.host.calls:
            await asyncio.sleep(0.005)
    writer.close()
    assert (await api.http.post(path(session, "read"), json={"path": "/x"})).status_code == 404
    assert api.host.files[session] == {}


async def test_more_compressed_bytes_than_an_archive_may_unpack_to_are_413(api: Api, session: str) -> None:
    limit = api.services.settings.sandbox.max_archive_bytes
    head = f"POST {path(session, 'write')} HTTP/1.1\r\nhost: x\r\nx-cwd: /\r\nauthorization: Bearer {api.own.token}\r\n"
    answer = await api.raw(f"{head}connection: close\r\ncontent-length: {limit * 2}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.section("4.5", "4.6")
async def test_a_missing_file_is_404_and_not_410(api: Api, session: str) -> None:
    response = await api.http.post(path(session, "read"), json={"path": "/nope"})
    assert response.status_code == 404
    assert response.json()["error"] == {"code": "not_found", "message": "File not found."}


@pytest.mark.parametrize("name", ["read", "mkdir"])
@pytest.mark.parametrize(
    "body", [{}, {"path": ""}, {"path": 5}, {"path": "a\0b"}, {"path": "x" * 4096}, {"path": "a", "cwd": ""}, []]
)
async def test_bad_paths_are_400(api: Api, session: str, name: str, body: object) -> None:
    response = await api.http.post(path(session, name), json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


async def test_mkdir_answers_an_empty_object_or_what_the_guest_said(api: Api, session: str) -> None:
    assert (await api.http.post(path(session, "mkdir"), json={"path": "a/b", "recursive": True})).json() == {}
    response = await api.http.post(path(session, "mkdir"), json={"path": "/exists"})
    assert response.status_code == 400
    assert response.json()["error"] == {"code": "file_error", "message": "error creating directory: /exists: File exists"}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("/a/b.txt", 'attachment; filename="b.txt"'),
        ('/x/a"b\r\nset-cookie: x', "attachment; filename=\"a_b__set-cookie: x\"; filename*=UTF-8''a%22b%0D%0Aset-cookie%3A%20x"),
        ("/größe", "attachment; filename=\"gr__e\"; filename*=UTF-8''gr%C3%B6%C3%9Fe"),
        ("/", 'attachment; filename="file"'),
    ],
)
def test_a_file_name_can_not_break_out_of_its_header(name: str, header: str) -> None:
    assert disposition(name) == header.encode()
