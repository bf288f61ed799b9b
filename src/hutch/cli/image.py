"""`hutch image pull|build|ls|rm|login|logout`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import build as building
from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.cli.context import Context
from hutch.cli.credential import read_secret
from hutch.client import AsyncClient, find_server
from hutch.client.models import Image
from hutch.errors import HutchError

app = typer.Typer(no_args_is_help=True, help="Images: root file systems of sandboxes.")

Shared = Annotated[bool, typer.Option("--shared", help="Of every project; for administrators.")]
Registry = Annotated[str, typer.Argument(help="HOST[:PORT].")]


@app.callback()
def image() -> None:
    """Images: root file systems of sandboxes."""


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(help="REGISTRY/REPOSITORY[:TAG] or …@sha256:DIGEST.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for it.")] = None,
    shared: Shared = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Fetch an image from a registry, so that sandboxes can start from it. A tag keeps its meaning until it is pulled again."""

    async def work(client: AsyncClient) -> None:
        pulled = await client.images.pull(reference, name=name, shared=shared)
        if as_json:
            output.write_json(pulled)
        else:
            output.write_line(f"{pulled.name} {pulled.digest}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def build(
    directory: Annotated[Path, typer.Argument(help="What COPY may take files of.")],
    name: Annotated[str, typer.Option("--name", help="Name of the image: NAME[:TAG].")],
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Default: DIRECTORY/Dockerfile.")] = None,
    build_arg: Annotated[
        list[str] | None, typer.Option("--build-arg", help="KEY=VALUE; KEY alone takes it from here. Repeatable.")
    ] = None,
    network_policy: options.NetworkPolicy = None,
    vcpus: options.Vcpus = None,
    timeout: Annotated[str, typer.Option("--timeout", help="How long all steps may take, such as 90s, 5m or 2h.")] = "30m",
    shared: Shared = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Build an image from a Dockerfile: its steps run in a sandbox. A step that fails ends the build with its exit code."""

    async def work(client: AsyncClient) -> int:
        wanted = building.Build(
            context=Context(directory),
            file=building.read_dockerfile(file if file is not None else directory / "Dockerfile"),
            given=options.pairs(build_arg, "--build-arg", dict(os.environ)),
            name=name,
            shared=shared,
            fields={
                "resources": {"vcpus": vcpus} if vcpus is not None else None,
                "timeout": options.duration_ms(timeout, "--timeout"),
                "networkPolicy": options.policy_to_send(network_policy),
            },
        )
        try:
            made = await building.build(client, wanted)
        except building.StepFailed as failed:
            return building.report(failed, as_json=as_json)
        if as_json:
            output.write_json(made)
        else:
            output.write_line(f"{made.name} {made.digest}")
        return 0

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(config_file: options.ConfigFile = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List images: the project's, where there is a server; without one, those that `make setup` built on this machine."""

    async def work(client: AsyncClient) -> None:
        _show(await client.images.list(), as_json=as_json)

    try:
        find_server(data_dir)
    except HutchError:
        _show(_built(config_file, data_dir, as_json=as_json), as_json=as_json)
    else:
        raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _built(config_file: Path | None, data_dir: Path | None, *, as_json: bool) -> list[Image]:
    from hutch.images import ImageStore
    from hutch.settings import load

    try:
        images = ImageStore(load(config_file, flags={"server.data_dir": data_dir}).image_dir()).list()
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    return [
        Image(
            name=found.name,
            aliases=list(found.aliases),
            digest=found.digest,
            size_bytes=found.size_bytes,
            user=found.config.user,
            home=found.config.home,
            cwd=found.config.cwd,
            layers=[{"digest": layer.digest, "size_bytes": layer.size} for layer in found.layers],
        )
        for found in images
    ]


def _show(images: list[Image], *, as_json: bool) -> None:
    if as_json:
        output.write_json({"images": images})
        return
    rows = [
        (
            found.name,
            ", ".join(found.aliases) or (found.source if found.source != found.name else "") or "-",
            found.digest.removeprefix("sha256:")[:12],
            output.size(found.size_bytes),
        )
        for found in images
    ]
    output.write_table(("NAME", "ALSO", "DIGEST", "SIZE"), rows)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Names, as `ls` shows them.")],
    shared: Shared = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Forget names of images. With its last name an image goes, unless a session or a snapshot needs it."""

    async def work(client: AsyncClient) -> None:
        for name in names:
            await client.images.remove(name, shared=shared)
        if as_json:
            output.write_json({"deleted": names})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def login(
    registry: Registry,
    username: Annotated[str, typer.Option("--username", "-u", help="User, as the registry knows it.")],
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the password from this file instead of standard input.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Store the project's login for a registry, with which its images are pulled."""
    try:
        password = read_secret(f"Password of {username} at {registry}", file)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None

    async def work(client: AsyncClient) -> None:
        await client.images.log_in(registry, username, password)
        if as_json:
            output.write_json({"registry": registry})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def logout(registry: Registry, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Forget a login. Images that it pulled stay."""

    async def work(client: AsyncClient) -> None:
        await client.images.log_out(registry)
        if as_json:
            output.write_json({"registry": registry})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
