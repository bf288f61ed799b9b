"""Archives that mean harm, into a real sandbox: refused whole, with nothing written, or written exactly."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from hutch.errors import HutchError
from tests.host.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

MIB = 1024 * 1024
LIMIT_BYTES, LIMIT_FILES = 64 * MIB, 200_000


def archive(*entries: tuple[str, dict[str, Any], bytes]) -> bytes:
    """A tar of entries, each with a name, fields of its header and content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, fields, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content) if content else None)
    return buffer.getvalue()


async def upload(box: Guest, content: bytes, *, compressed: bool = True, cwd: bytes = b"/") -> dict[str, int]:
    """What the API does with the body of a write."""
    assert box.session.machine is not None
    params = {"cwd": cwd, "user": "default", "gzip": compressed, "max_bytes": LIMIT_BYTES, "max_files": LIMIT_FILES}
    stream = await box.session.machine.open("archive.write", params)
    try:
        await stream.send_data(content, 0)
        stream.send_end()
        return await stream.reply(dict[str, int])
    finally:
        stream.cancel()


async def refused(box: Guest, content: bytes, **options: Any) -> HutchError:
    with pytest.raises(HutchError) as error:
        await upload(box, content, **options)
    assert error.value.status == 400, error.value
    assert (await box.shell("ls -A /vercel/new /etc/new /new 2>/dev/null")).stdout == b""
    return error.value


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vercel/new", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("vercel/new", {"type": tarfile.LNKTYPE, "linkname": "etc/passwd"}),
        ("vercel/new", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("vercel/new", {"type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 0}),
        ("vercel/new", {"type": tarfile.FIFOTYPE}),
        ("../new", {}),
        ("vercel/../../new", {}),
        ("/etc/new", {}),
        ("vercel/new/..", {}),
    ],
)
async def test_entries_that_are_refused_write_nothing_of_the_archive(box: Guest, name: str, fields: dict[str, Any]) -> None:
    content = archive(("vercel/new/first", {}, b"harmless"), (name, fields, b""))
    error = await refused(box, gzip.compress(content))
    assert error.code == "invalid_archive"


async def test_a_bomb_is_refused_in_bounded_memory(box: Guest) -> None:
    block = gzip.compress(b"\0" * (16 * MIB), 9)
    header = archive(("vercel/new/bomb", {"size": 4 << 30}, b""))[:512]
    error = await refused(box, gzip.compress(header) + block * 64)
    assert error.code == "invalid_archive"
    held = box.supervisor._machines.cgroups.memory_bytes(box.record.cgroup)
    assert held is not None
    assert held < 1024 * MIB


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data[: len(data) // 2],
        lambda data: b"\x1f\x8b" + data[10:],
        lambda _: b"not an archive",
    ],
)
async def test_broken_archives_are_refused(box: Guest, damage: Callable[[bytes], bytes]) -> None:
    content = gzip.compress(archive(*((f"vercel/new/{number}", {}, bytes([number]) * 5000) for number in range(50))))
    await refused(box, damage(content))


async def test_links_of_the_guest_lead_only_where_its_user_may_write(box: Guest) -> None:
    await box.shell("ln -s /etc /vercel/outside; ln -s /etc/passwd /vercel/file; ln -s /tmp /vercel/allowed")
    before = (await box.run("cat", "/etc/passwd")).stdout
    for name in ("vercel/outside/new", "vercel/file"):
        with pytest.raises(HutchError) as error:
            await upload(box, gzip.compress(archive((name, {}, b"x"))))
        assert error.value.code == "file_error"
    await upload(box, gzip.compress(archive(("vercel/allowed/mine", {}, b"y"))))
    assert (await box.run("cat", "/tmp/mine")).stdout == b"y"
    assert (await box.run("cat", "/etc/passwd")).stdout == before


async def test_modes_never_include_setuid(box: Guest) -> None:
    await upload(box, gzip.compress(archive(("vercel/tool", {"mode": 0o6755, "uid": 0, "gid": 0}, b"#!/bin/sh\n"))))
    assert (await box.run("stat", "-c", "%a %U", "/vercel/tool")).stdout == b"755 ubuntu\n"


async def test_names_of_any_bytes_arrive(box: Guest) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        info = tarfile.TarInfo("vercel/" + b"caf\xe9\xff\n".decode("utf-8", "surrogateescape"))
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    await upload(box, gzip.compress(buffer.getvalue()))
    assert (await box.run("cat", b"/vercel/caf\xe9\xff\n")).stdout == b"ok"


async def test_a_hundred_thousand_files(box: Guest) -> None:
    names = (f"vercel/many/{number // 1000}/{number}" for number in range(100_000))
    content = archive(*((name, {}, b"") for name in names))
    written = await upload(box, gzip.compress(content, 1))
    assert written["files"] == 100_000
    assert (await box.shell("find /vercel/many -type f | wc -l")).stdout.strip() == b"100000"
    assert (await box.run("true")).exit_code == 0


async def test_too_many_files_are_refused(box: Guest) -> None:
    one = archive(("vercel/new/file", {}, b""))[:1024]
    header = one[:512]
    error = await refused(box, gzip.compress(header * (LIMIT_FILES + 1) + b"\0" * 1024, 1))
    assert error.code == "invalid_archive"
