"""`hutch create`: a sandbox that stays."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from hutch.cli import drive, options, output
from hutch.cli.connection import with_client
from hutch.cli.usage import limits_of
from hutch.client import AsyncClient


def fields(
    image: str | None,
    runtime: str | None,
    vcpus: int | None,
    timeout: str | None,
    env: list[str] | None,
    network_policy: str | None,
) -> dict[str, Any]:
    """The fields of a create that `hutch create` and `hutch run` share. Raises `BadRequestError`."""
    return {
        "image": image,
        "runtime": runtime,
        "resources": {"vcpus": vcpus} if vcpus is not None else None,
        "timeout": options.duration_ms(timeout, "--timeout"),
        "env": options.pairs(env, "--env", dict(os.environ)) or None,
        "networkPolicy": options.policy_to_send(network_policy),
    }


def create(
    name: Annotated[str | None, typer.Option("--name", help="Name; made up when left out.")] = None,
    image: options.Image = None,
    runtime: options.Runtime = None,
    vcpus: options.Vcpus = None,
    timeout: options.Timeout = None,
    env: options.Env = None,
    network_policy: options.NetworkPolicy = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="KEY=VALUE. Repeatable.")] = None,
    port: Annotated[list[int] | None, typer.Option("--port", "-p", help="Port to expose. Repeatable.")] = None,
    disk: Annotated[int | None, typer.Option("--disk-bytes", help="Writable space.")] = None,
    snapshot: Annotated[str | None, typer.Option("--snapshot", help="Begin with the files of this snapshot.")] = None,
    mount: Annotated[
        list[str] | None, typer.Option("--mount", help="DRIVE:PATH, or DRIVE:PATH:ro for a drive as it is now. Repeatable.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help="LIMIT=NUMBER, such as active_cpu_us=60000000. Repeatable.")
    ] = None,
    isolation: Annotated[str | None, typer.Option("--isolation", help="gvisor, qemu or firecracker, where offered.")] = None,
    persistent: Annotated[bool, typer.Option("--persistent/--ephemeral", help="Whether its files outlive a session.")] = True,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Create a sandbox and print its name."""

    async def work(client: AsyncClient) -> None:
        created = await client.sandboxes.create(
            **fields(image, runtime, vcpus, timeout, env, network_policy),
            name=name,
            tags=options.pairs(tag, "--tag") or None,
            ports=port or None,
            disk_bytes=disk,
            isolation=isolation,
            persistent=persistent,
            budget=limits_of(budget or []) or None,
            mounts=drive.mounts(mount),
            source={"type": "snapshot", "snapshotId": snapshot} if snapshot is not None else None,
        )
        if as_json:
            output.write_json(created)
        else:
            output.write_line(created.sandbox.name)
            output.note_warnings(created.session.network_policy)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
