"""Images made of snapshots by a real host, and run on real gVisor."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import BadRequestError, ConflictError, GoneError, NotFoundError, UnavailableError
from hutch.host.protocol import ImageBuild, ImagePull, ImageQuery, ImageRecord, ImageRemove, ImageUser
from hutch.host.service import Service
from hutch.oci import written
from tests.host.guest import guest, real_host
from tests.oci.images import busybox, directory, file, image, layer
from tests.oci.registry import RunningRegistry

pytestmark = [pytest.mark.root, pytest.mark.sandbox]


async def pulled(host: Service, registry: RunningRegistry) -> str:
    made = image(
        layer(*busybox(), directory("replaced"), file("replaced/below", "x"), file("gone", "x"), file("kept", "kept\n")),
        Env=["PATH=/bin", "A=base"],
        Labels={"from": "below"},
    )
    reference = registry.push("tests/below", "1", made)
    await host.supervisor.images.pull(ImagePull(reference=reference, project_id="prj"))
    return reference


def found(host: Service, name: str) -> str:
    return host.supervisor.images.find(ImageQuery(reference=name, project_id="prj")).pinned


async def written_over(host: Service, image: str, script: str) -> str:
    """A snapshot with what a script wrote."""
    box = await guest(host, image=image, persistent=True)
    ran = await box.run("/bin/sh", "-ec", script, sudo=True)
    assert ran.exit_code == 0, ran.stderr
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    return snapshot.snapshot_id


async def build(host: Service, snapshot_id: str, name: str, **fields: object) -> ImageRecord:
    return await host.supervisor.build_image(ImageBuild(snapshot_id=snapshot_id, name=name, project_id="prj", **fields))  # type: ignore[arg-type]


def blobs(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "host" / "pulled" / "blobs" / "sha256").iterdir()}


CHANGES = """
rm /gone
rm -r /replaced; mkdir /replaced; echo new > /replaced/above
mkdir -p /srv/app; chown 1001:1002 /srv/app; ln -s /etc/shadow /srv/link; ln /kept /srv/hard; mkfifo /srv/pipe
echo '#!/bin/sh' > /srv/tool; chmod 4755 /srv/tool
"""


async def test_what_was_deleted_and_replaced_stays_so(no_leaks: Path, registry: RunningRegistry) -> None:
    async with real_host(no_leaks, image__insecure_registries=registry.host, end_all=False) as host:
        below = found(host, await pulled(host, registry))
        snapshot = await written_over(host, below, CHANGES)
        user = ImageUser(name="joe", uid=1001, gid=1002, groups=[7], home="/srv")
        made = await build(host, snapshot, "app", cwd="/srv/app", env={"A": "built"}, labels={"x": "y"}, user=user, cmd=["sh"])
        assert (made.name, made.user, made.cwd, made.cmd) == ("app:latest", "joe", "/srv/app", ["sh"])
        assert made.labels == {"from": "below", "x": "y"}
        assert len(made.layers) == 2
        await host.supervisor.remove_snapshot(snapshot)
        # The one below goes, and its file stays as long as the one above needs it.
        await host.supervisor.images.remove(ImageRemove(name=f"{registry.host}/tests/below:1", project_id="prj"))
        with pytest.raises(NotFoundError):
            host.supervisor.images.exact(below)
        assert len(blobs(no_leaks)) == 2
    async with real_host(no_leaks, image__insecure_registries=registry.host) as host:
        box = await guest(host, image=found(host, "app"))
        ran = await box.run(
            "/bin/sh", "-c", "id -u; id -g; pwd; echo $A $HOME; ls /replaced /gone; cat /kept; ls -l /srv; cat /srv/link"
        )
        lines = ran.stdout.decode().splitlines()
        assert lines[:6] == ["1001", "1002", "/srv/app", "built /srv", "/replaced:", "above"], ran
        assert "kept" in lines
        assert b"/gone" in ran.stderr
        assert "-rwsr-xr-x" in ran.stdout.decode()
        # Another layer over it.
        again = await written_over(host, found(host, "app"), "echo more > /replaced/more; rm /kept")
        third = await build(host, again, "app:2")
        assert (len(third.layers), third.user, third.env["A"]) == (3, "joe", "built")
        await host.supervisor.remove_snapshot(again)
        box2 = await guest(host, image=found(host, "app:2"))
        ran = await box2.run("/bin/sh", "-c", "ls /replaced; ls /kept")
        assert (ran.stdout, b"/kept" in ran.stderr) == (b"above\nmore\n", True)
        with pytest.raises(ConflictError):
            await host.supervisor.images.remove(ImageRemove(name="app", project_id="prj"))
        await box.stop()
        await host.supervisor.images.remove(ImageRemove(name="app", project_id="prj"))
        assert len(blobs(no_leaks)) == 3
        await box2.stop()
        await host.supervisor.images.remove(ImageRemove(name="app:2", project_id="prj"))
        assert blobs(no_leaks) == set()


async def test_one_over_an_image_of_the_server_leaves_that_alone(no_leaks: Path) -> None:
    async with real_host(no_leaks) as host:
        images = host.supervisor.images
        below = images.built.list()[0]
        snapshot = await written_over(host, below.pinned, "echo hello > /etc/greeting; rm /etc/debian_version")
        made = await build(host, snapshot, "mine")
        assert made.layers[:-1] == [(layer.digest, layer.size) for layer in below.layers]
        assert (made.user, made.cwd) == (below.config.user, below.config.cwd)
        box = await guest(host, image=found(host, "mine"))
        ran = await box.run("sh", "-c", "cat /etc/greeting; ls /etc/debian_version; id -un")
        assert (ran.stdout, b"debian_version" in ran.stderr) == (f"hello\n{below.config.user}\n".encode(), True)
        await box.stop()
        await host.supervisor.remove_snapshot(snapshot)
        await images.remove(ImageRemove(name="mine", project_id="prj"))
        assert blobs(no_leaks) == set()
        assert all(layer.path.is_file() for layer in below.layers)
        assert (await (await guest(host, image=below.pinned)).run("cat", "/etc/debian_version")).exit_code == 0


@pytest.fixture
async def host(no_leaks: Path, registry: RunningRegistry) -> AsyncIterator[Service]:
    async with real_host(no_leaks, image__insecure_registries=registry.host, image__max_bytes=8 * 1024 * 1024) as service:
        yield service


async def test_what_is_too_large_is_refused_and_leaves_nothing(host: Service, registry: RunningRegistry, no_leaks: Path) -> None:
    below = found(host, await pulled(host, registry))
    there = blobs(no_leaks)
    # All of it a hole, which takes no space until it is packed.
    snapshot = await written_over(host, below, "truncate -s 1G /large")
    with pytest.raises(BadRequestError, match="image.max_bytes"):
        await build(host, snapshot, "large")
    assert blobs(no_leaks) == there
    assert list((no_leaks / "host" / "pulled" / "staging").iterdir()) == []
    for name in ("node22", "UPPER", "registry.example.com/x"):
        with pytest.raises((BadRequestError, ConflictError)):
            await build(host, snapshot, name)
    await host.supervisor.remove_snapshot(snapshot)
    with pytest.raises(GoneError):
        await build(host, snapshot, "gone")


async def test_what_is_removed_while_it_is_read_becomes_no_image(host: Service, registry: RunningRegistry) -> None:
    snapshot = await written_over(host, found(host, await pulled(host, registry)), "echo x > /x")
    with pytest.raises(GoneError):
        async with host.supervisor.snapshots.reading(snapshot):
            await host.supervisor.remove_snapshot(snapshot)


def test_a_process_that_packs_can_do_little_else(tmp_path: Path) -> None:
    """The calls that are given up fail in every program that is started afterwards."""
    import subprocess
    import sys

    script = (
        "import ctypes, os, socket, threading\n"
        "from hutch.serving import kernel\n"
        "from hutch.oci import written\n"
        "kernel.no_new_privileges(); kernel.refuse_calls(written._REFUSED_CALLS)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def tried(call):\n"
        "    try: call()\n"
        "    except OSError as error: return error.errno\n"
        "print(tried(lambda: kernel.mount('tmpfs', __import__('pathlib').Path('/mnt'), 0, 'tmpfs')), tried(socket.socket),\n"
        "      tried(lambda: os.kill(os.getppid(), 0)), tried(kernel.unshare_network), flush=True)\n"
        "thread = threading.Thread(target=lambda: print('threads', flush=True)); thread.start(); thread.join()\n"
        "print(libc.syscall(435, 0, 0), ctypes.get_errno(),\n"
        "      os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1], flush=True)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'mount -t tmpfs none /mnt 2>/dev/null || echo refused; exit 0'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("13 13 13 13\nthreads\n-1 38 0\nrefused\n", 0), done.stderr


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "root").symlink_to("/")
    os.mkfifo(tmp_path / "pipe")
    assert written.count(tmp_path, written.Request(max_bytes=10, room_bytes=10, max_entries=4)) == 4
    with pytest.raises(BadRequestError, match="max_entries"):
        written.count(tmp_path, written.Request(max_bytes=10, room_bytes=10, max_entries=3))
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(1024**3)
    assert written.count(tmp_path, written.Request(max_bytes=1024**3, room_bytes=1024**3, max_entries=5)) == 5
    with pytest.raises(UnavailableError, match="bytes of disk"):
        written.count(tmp_path, written.Request(max_bytes=1024**3, room_bytes=1024**3 - 1, max_entries=5))
