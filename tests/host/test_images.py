"""Images of a real registry, pulled by a real host and run on real gVisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.host.protocol import ImagePull, ImageQuery
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
