"""Firecracker's client, programs, kernel, jail and snapshots, each alone."""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from hutch.host.cgroups import Cgroups
from hutch.isolation import firecracker_binary, firecracker_kernel, firecracker_snapshot
from hutch.isolation.firecracker_api import Api, FirecrackerFailed, Refused
from hutch.isolation.firecracker_binary import NotUsable
from hutch.isolation.firecracker_config import Request, Version
from hutch.isolation.firecracker_jail import Jail, require_safe
from hutch.isolation.firecracker_snapshot import BadSnapshot
from tests.isolation import fake_programs

ASK = Request("GET", "/version")

# -- the client -------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(path: Path, answer: bytes, *, slowly_s: float = 0.0) -> Iterator[list[bytes]]:
    """A server that answers one request so; what it was asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    asked: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                for position in range(0, len(answer), 100 if slowly_s else len(answer) or 1):
                    # It is the slowness that is tested.
                    time.sleep(slowly_s)
                    connection.sendall(answer[position:][: 100 if slowly_s else None])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def http(status: int, body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\n{length}\r\n".encode() + body


def test_a_request_is_sent_as_json(tmp_path: Path) -> None:
    with answering(tmp_path / "s", http(204)) as asked:
        assert Api(tmp_path / "s", 5).do(Request("PUT", "/vsock", {"a": 1})) == {}
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"PUT /vsock HTTP/1.1"
    assert b"Content-Type: application/json\r\nContent-Length: 8" in head
    assert body == b'{"a": 1}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(200, b"nonsense"), "not JSON"),
        (http(200, b"[" * 100_000), "not JSON"),
        (http(200, b"[]"), "not an object"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "a body without a length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "a length that is none"),
        (b"HTTP/1.1 999 OK\r\n\r\n", "not HTTP"),
        (b"\xff" * 30_000, "a head of more than 16384 bytes"),
        (b"", "ended while it was asked"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, answer: bytes, said: str) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(FirecrackerFailed, match=said):
        Api(tmp_path / "s", 5).do(ASK)


@pytest.mark.parametrize(
    ("body", "fault"),
    [(b'{"fault_message": "no such thing"}', "no such thing"), (b"words", "words"), (b"", "gave no reason"), (b"[]", r"\[\]")],
)
def test_a_refusal_has_its_words(tmp_path: Path, body: bytes, fault: str) -> None:
    with answering(tmp_path / "s", http(400, body)), pytest.raises(Refused, match=fault) as refused:
        Api(tmp_path / "s", 5).do(ASK)
    assert refused.value.status == 400


def test_an_answer_in_drops_has_a_deadline(tmp_path: Path) -> None:
    drops = answering(tmp_path / "s", http(200, b" " * 5000), slowly_s=0.1)
    with drops, pytest.raises(FirecrackerFailed, match=r"did not answer GET /version within 0\.5 s"):
        Api(tmp_path / "s", 0.5).do(ASK)


def test_a_socket_that_is_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    answered: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: answered.append(Api(path, 20).do(ASK)))
    asking.start()
    # So that it is refused a few times before somebody listens.
    time.sleep(0.2)
    bound.listen(1)
    connection, _ = bound.accept()
    connection.recv(65536)
    connection.sendall(http(200, b'{"firecracker_version": "1.17.0"}'))
    asking.join()
    connection.close()
    bound.close()
    assert answered == [{"firecracker_version": "1.17.0"}]


def test_who_never_listens_has_a_deadline_and_a_dead_process_none(tmp_path: Path) -> None:
    with pytest.raises(FirecrackerFailed, match=r"did not listen within 0\.2 s"):
        Api(tmp_path / "s", 0.2).do(ASK)
    with pytest.raises(FirecrackerFailed, match="ended before it was asked"):
        Api(tmp_path / "s", 600, lambda: False).do(ASK)


def test_a_link_to_another_socket_is_not_followed(tmp_path: Path) -> None:
    with answering(tmp_path / "other", http(200, b"{}")) as asked:
        (tmp_path / "s").symlink_to(tmp_path / "other")
        with pytest.raises(FirecrackerFailed, match="is no socket"):
            Api(tmp_path / "s", 5).do(ASK)
    assert asked == []


# -- the programs -----------------------------------------------------------------------------------


def test_a_version_is_read_whatever_follows_it(tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    program.write_text("#!/bin/sh\necho 'Firecracker v1.17.0-dev'; echo; echo 'exiting successfully. exit_code=0'\n")
    program.chmod(0o755)
    assert firecracker_binary.version(program) == Version(1, 17, 0)
    program.write_text("#!/bin/sh\necho something else\n")
    with pytest.raises(NotUsable, match="which is none of Firecracker"):
        firecracker_binary.version(program)
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(NotUsable, match="does not tell its version"):
        firecracker_binary.version(program)


def test_programs_that_a_jailer_can_not_start_are_refused(tmp_path: Path) -> None:
    jailer = fake_programs.script(tmp_path / "jailer", "jailer")
    static = fake_programs.compiled(tmp_path / "a")
    assert firecracker_binary.checked(static, jailer) == Version(1, 17, 0)
    with pytest.raises(NotUsable, match="is linked dynamically"):
        firecracker_binary.checked(fake_programs.compiled(tmp_path / "b", "firecracker", "1.17.0", "-O0"), jailer)
    script = fake_programs.script(tmp_path / "firecracker", "firecracker")
    with pytest.raises(NotUsable, match="is no ELF program"):
        firecracker_binary.checked(script, jailer)
    assert firecracker_binary.checked(script, None) == Version(1, 17, 0)
    with pytest.raises(NotUsable, match="without `firecracker` in its name"):
        firecracker_binary.checked(fake_programs.compiled(tmp_path / "c", "fc"), jailer)
    with pytest.raises(NotUsable, match="have to be of the same"):
        firecracker_binary.checked(fake_programs.compiled(tmp_path / "d", "firecracker", "1.16.1"), jailer)


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 58, b"#!/bin/sh"])
def test_what_is_no_program_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    assert firecracker_binary.is_static(tmp_path / "p") is None


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotUsable, match="no-such-program is no program"):
        firecracker_binary.find(tmp_path / "no-such-program")


# -- the kernel -------------------------------------------------------------------------------------

VMLINUX = b"\x7fELF" + bytes(range(256)) * 100


def wrapped(payload: bytes, version: int = 0x20F, setup_sectors: int = 3) -> bytes:
    start = (setup_sectors + 1) * 512
    image = bytearray(start + 64)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + payload + b"behind"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zstandard.ZstdCompressor().compress, bytes])
def test_a_wrapped_kernel_is_unpacked_once(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    kernel = tmp_path / "vmlinuz"
    # The kernel's build puts the unpacked length behind what is packed.
    kernel.write_bytes(wrapped(pack(VMLINUX) + (b"" if pack is bytes else b"\x00\x01\x02\x03")))
    made = firecracker_kernel.loadable(kernel, tmp_path / "made")
    assert made.read_bytes() == VMLINUX
    before = made.stat().st_mtime_ns
    assert firecracker_kernel.loadable(kernel, tmp_path / "made") == made
    assert made.stat().st_mtime_ns == before
    assert [made] == list((tmp_path / "made").iterdir())


def test_a_plain_kernel_is_taken_as_it_is(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(VMLINUX)
    assert firecracker_kernel.loadable(kernel, tmp_path / "made") == kernel
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wrapped(b"unknown"), "packed in a way"),
        (wrapped(b"\xfd7zXZ\x00broken" * 10), "broken bzImage"),
        (wrapped(gzip.compress(b"no kernel")), "without an ELF kernel"),
        (wrapped(VMLINUX, version=0x207), "too old"),
    ],
)
def test_a_broken_kernel_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(OSError, match=said):
        firecracker_kernel.loadable(tmp_path / "k", tmp_path / "made")


# -- the jail ---------------------------------------------------------------------------------------


def jail(directory: Path, jailer: Path | None) -> Jail:
    return Jail(directory, "m0123456789abcdef0123", Path("/opt/firecracker"), jailer)


def test_the_jailers_command_line(tmp_path: Path) -> None:
    made = jail(tmp_path, Path("/opt/jailer"))
    two = Cgroups(2, {})
    uid = str(made.uid)
    assert made.command(two, "/hutch/m1", Path("/run/netns/x"), 1000) == [
        *("/opt/jailer", "--id", "m0123456789abcdef0123", "--exec-file", "/opt/firecracker", "--uid", uid, "--gid", uid),
        *("--chroot-base-dir", str(tmp_path / "jail"), "--new-pid-ns", "--resource-limit", "no-file=1024"),
        *("--resource-limit", f"fsize={1000 + 64 * 1024 * 1024}", "--cgroup-version", "2", "--parent-cgroup", "hutch/m1"),
        *("--netns", "/run/netns/x", "--", "--api-sock", "v/api"),
    ]
    one = made.command(Cgroups(1, {}), "/hutch/m1", None, 1000)
    assert "--parent-cgroup" not in one
    assert one[one.index("--cgroup-version") + 1] == "1"
    assert made.root == tmp_path / "jail/firecracker/m0123456789abcdef0123/root"
    for word in ("--no-seccomp", "--seccomp-filter", "--daemonize"):
        assert word not in one


def test_each_machine_has_a_user_of_its_own(tmp_path: Path) -> None:
    users = {Jail(tmp_path, f"m{number:020x}", Path("/x"), Path("/y")).uid for number in range(200)}
    assert len(users) == 200
    assert all(0x5000_0000 <= uid < 0x6000_0000 for uid in users)


def test_without_a_jailer_it_is_firecracker_itself(tmp_path: Path) -> None:
    made = jail(tmp_path, None)
    assert made.command(None, "", None, 0) == ["/opt/firecracker", "--id", "m0123456789abcdef0123", "--api-sock", "v/api"]
    assert made.uid == os.geteuid()


def test_sockets_of_a_predecessor_are_not_in_the_way(tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    for name in ("api", "vsock", "vsock_5000"):
        (channel / name).touch()
    made = jail(tmp_path, None)
    made.prepare(channel, ())
    assert [entry.name for entry in channel.iterdir()] == ["vsock_5000"]
    assert (channel / "vsock_5000").readlink() == Path("host.sock")
    assert (made.root / "v" / "vsock_5000").is_symlink()
    made.clear()
    assert [entry.name for entry in tmp_path.iterdir()] == ["channel"]


@pytest.mark.root
def test_a_jail_that_others_could_replace_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    require_safe(place)
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(NotUsable, match="others than root may write"):
        require_safe(place)
    # Nobody can replace what is another's there.
    (tmp_path / "a").chmod(0o1777)
    require_safe(place)
    os.chown(tmp_path / "a", 12345, 12345)
    with pytest.raises(NotUsable, match="belongs to user 12345"):
        require_safe(place)


def test_what_is_taken_out_of_a_jail_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    made = jail(tmp_path, None)
    made.root.mkdir()
    (made.root / "memory").write_text("memory")
    made.take("memory", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "memory"
    assert not (made.root / "memory").exists()
    (tmp_path / "secret").write_text("of the host")
    (made.root / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(made.root / "pipe")
    os.link(tmp_path / "secret", made.root / "hard")
    for name in ("link", "pipe", "hard", "missing"):
        with pytest.raises(OSError, match="symbolic links|something else|No such file"):
            made.take(name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_what_lies_on_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    made = jail(tmp_path, None)
    made.root.mkdir()
    (made.root / "memory").write_text("memory")
    monkeypatch.setattr(os, "rename", elsewhere)
    made.take("memory", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "memory"
    assert not (made.root / "memory").exists()


# -- snapshots --------------------------------------------------------------------------------------


def test_only_what_changed_is_written_over_the_base(tmp_path: Path) -> None:
    size = 8 * 1024 * 1024
    base, changes = tmp_path / "base", tmp_path / "changes"
    base.write_bytes(b"b" * size)
    with changes.open("wb") as file:
        file.truncate(size)
        for position in (0, 4 * 1024 * 1024, size - 4096):
            file.seek(position)
            file.write(b"c" * 4096)
    assert firecracker_snapshot.merge(base, changes) == 3 * 4096
    merged = base.read_bytes()
    assert merged.count(b"c") == 3 * 4096
    assert merged[:4096] == merged[-4096:] == b"c" * 4096


def test_nothing_changed_is_nothing_written(tmp_path: Path) -> None:
    base, changes = tmp_path / "base", tmp_path / "changes"
    base.write_bytes(b"b" * 8192)
    with changes.open("wb") as file:
        file.truncate(8192)
    assert firecracker_snapshot.merge(base, changes) == 0
    with changes.open("wb") as file:
        file.truncate(4096)
    with pytest.raises(BadSnapshot, match="not of the same machine"):
        firecracker_snapshot.merge(base, changes)
