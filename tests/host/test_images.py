"""Images of a real registry, pulled by a real host and run on real gVisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import ConflictError, NotFoundError
from hutch.host.protocol import ImagePull, ImageQuery, ImageRemove
from hutch.host.service import Service
from tests.host.guest import guest, real_host
from tests.oci.images import busybox, directory, file, image, layer, symlink
from tests.oci.registry import RunningRegistry

pytestmark = [pytest.mark.root, pytest.mark.sandbox]


@pytest.fixture
async def host(no_leaks: Path, registry: RunningRegistry) -> AsyncIterator[Service]:
    """A host that may pull from the registry."""
    async with real_host(no_leaks, image__insecure_registries=registry.host) as service:
        yield service


async def test_a_pulled_image_runs_as_it_says(host: Service, registry: RunningRegistry) -> None:
    made = image(
        layer(*busybox(), directory("etc"), file("etc/passwd", "joe:x:1001:1002::/home/joe:/bin/sh\n"), file("gone", "x")),
        layer(file("etc/group", "box:x:7:joe\n"), file(".wh.gone"), compression="zstd"),
        User="joe",
        WorkingDir="/srv/app",
        Env=["PATH=/bin", "GREETING=hello world"],
        Cmd=["/bin/false"],
        Entrypoint=["/bin/false"],
    )
    pulled = await host.supervisor.images.pull(ImagePull(reference=registry.push("team/app", "1", made), project_id="prj"))
    assert (pulled.digest, pulled.user, pulled.cwd) == (made.digest, "joe", "/srv/app")
    found = host.supervisor.images.find(ImageQuery(reference=f"{registry.host}/team/app:1", project_id="prj"))
    assert found.pinned == f"{registry.host}/team/app@{made.digest}"
    box = await guest(host, image=found.pinned)
    ran = await box.run("sh", "-c", "id; pwd; echo $GREETING $HOME $USER; ls -a /gone; cat /etc/resolv.conf")
    assert ran.stdout.startswith(b"uid=1001(joe) gid=1002 groups=7(box)\n/srv/app\nhello world /home/joe joe\n")
    assert b"/gone" in ran.stderr
    assert (await box.run("id", "-u", sudo=True)).stdout == b"0\n"
    assert (await box.run("cat", "/etc/ssl/certs/ca-certificates.crt")).stdout.startswith(b"-----BEGIN CERTIFICATE-----")


async def test_an_image_without_anything_but_a_program_runs(host: Service, registry: RunningRegistry) -> None:
    made = image(layer(file("busybox", Path("/bin/busybox").read_bytes(), mode=0o755)))
    await host.supervisor.images.pull(ImagePull(reference=registry.push("bare", "latest", made), project_id="prj"))
    found = host.supervisor.images.find(ImageQuery(reference=f"{registry.host}/bare", project_id="prj"))
    box = await guest(host, image=found.pinned)
    ran = await box.run("/busybox", "id")
    assert ran.stdout == b"uid=0 gid=0\n"


async def test_trust_is_installed_through_the_links_of_an_image(host: Service, registry: RunningRegistry) -> None:
    made = image(
        layer(*busybox(), directory("etc/pki/tls/certs"), directory("etc/ssl"), symlink("etc/ssl/certs", "../pki/tls/certs"))
    )
    await host.supervisor.images.pull(ImagePull(reference=registry.push("linked", "latest", made), project_id="prj"))
    found = host.supervisor.images.find(ImageQuery(reference=f"{registry.host}/linked", project_id="prj"))
    box = await guest(host, image=found.pinned)
    ran = await box.run("/bin/ls", "-la", "/etc/ssl", "/etc/pki/tls/certs/")
    assert b"ca-certificates.crt" in ran.stdout


async def test_a_snapshot_lies_over_the_image_that_it_was_made_on(no_leaks: Path, registry: RunningRegistry) -> None:
    def labelled(content: str) -> str:
        return registry.push("moving", "latest", image(layer(*busybox(), file("version", content))))

    async with real_host(no_leaks, image__insecure_registries=registry.host, end_all=False) as host:
        reference = labelled("old")
        images = host.supervisor.images
        await images.pull(ImagePull(reference=reference, project_id="prj"))
        old = images.find(ImageQuery(reference=reference, project_id="prj")).pinned
        box = await guest(host, image=old, persistent=True)
        assert (await box.run("/bin/sh", "-c", "cat /version; echo mine > /note")).stdout == b"old"
        with pytest.raises(ConflictError) as refused:
            await images.remove(ImageRemove(name=reference, project_id="prj"))
        assert refused.value.details == {"users": [box.session_id]}
        snapshot = (await box.stop()).snapshot
        assert snapshot is not None
        assert snapshot.image == old
        labelled("new")
        await images.pull(ImagePull(reference=reference, project_id="prj"))
        new = images.find(ImageQuery(reference=reference, project_id="prj")).pinned
        fresh = await guest(host, image=new)
        assert (await fresh.run("/bin/cat", "/version")).stdout == b"new"
    # Another process now: what it knows is what was written down.
    async with real_host(no_leaks, image__insecure_registries=registry.host) as host:
        images = host.supervisor.images
        resumed = await guest(host, image=snapshot.image, source_snapshot=snapshot.snapshot_id)
        assert (await resumed.run("/bin/cat", "/version", "/note")).stdout == b"oldmine\n"
        await resumed.stop()
        await images.collect()
        assert images.exact(old).digest in old
        await host.supervisor.snapshots.remove(snapshot.snapshot_id)
        await images.collect()
        with pytest.raises(NotFoundError):
            images.exact(old)
        [kept] = (no_leaks / "host" / "pulled" / "blobs" / "sha256").iterdir()
        assert kept == images.exact(new).layers[0].path


async def test_a_name_of_this_servers_own_is_not_given_to_another_image(host: Service, registry: RunningRegistry) -> None:
    reference = registry.push("own", "latest", image(layer(file("a"))))
    for name in ("node22", "vercel/sandbox/universal", "vercel/sandbox/node:24"):
        with pytest.raises(ConflictError, match="image_name_taken"):
            await host.supervisor.images.pull(ImagePull(reference=reference, project_id="prj", name=name))
    assert host.supervisor.images.list("prj") == []
