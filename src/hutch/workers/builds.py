"""From an uploaded archive to a snapshot that runs start from.

    archive ─▶ dependencies, installed or a layer of before (registries only, no secrets) ─▶ network closed ─▶ build (secrets)
            ─▶ sealed ─▶ the manifest is read in a run of its own

A deployment serves once its manifest was read; one that fails changes nothing about the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError, PayloadTooLargeError
from hutch.storage import sandboxes, snapshots
from hutch.storage import workers as rows
from hutch.storage.workers import Deployment, Worker
from hutch.workers import destinations, languages, layers, network, sandbox
from hutch.workers.languages import LANGUAGES, PLATFORM, SOURCE, Language
from hutch.workers.lines import Lines
from hutch.workers.sandbox import OwnSandbox

log = logging.getLogger(__name__)

KEPT_ARCHIVE_S = 3600
MAX_ADDRESS_BYTES = 4096

Say = Callable[[str, str], Awaitable[None]]
"""Called with the stream (`stdout`, `stderr`) and each line."""


class BuildFailed(Exception):
    """A build that is over; the text says what to mend."""


class Archives:
    """Uploaded archives, in files that nobody else reads, until they are built."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, deployment_id: str) -> Path:
        return self.directory / f"{deployment_id}.tar.gz"

    def take(self, deployment_id: str) -> bytes:
        """Raises `FileNotFoundError`."""
        return self.path(deployment_id).read_bytes()

    def keep(self, deployment_id: str, content: bytes) -> None:
        """Write it whole or not at all. Raises `OSError`."""
        written = self.path(deployment_id).with_suffix(".new")
        try:
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            written.replace(self.path(deployment_id))
        except OSError:
            written.unlink(missing_ok=True)
            raise

    def drop(self, deployment_id: str) -> None:
        self.path(deployment_id).unlink(missing_ok=True)


def archives(services: Services) -> Archives:
    directory = services.settings.uploads_dir
    directory.mkdir(mode=0o700, exist_ok=True)
    return Archives(directory)


async def build(services: Services, scope: Scope, worker: Worker, say: Say) -> Deployment:
    """Build what was uploaded last. Raises `BuildFailed`, and `HutchError` where it is not the worker's fault."""
    now = services.clock()
    async with services.database.write() as connection:
        found = await rows.latest(connection, scope, worker.id, ("uploaded",), services.sealer)
        if found is None:
            raise NotFoundError("source_not_found", "Nothing was uploaded that is not built yet. Deploy again.")
        begun = await rows.change_deployment(
            connection, scope, found.id, now, status="building", before=("uploaded",), owner=services.process_id
        )
    if not begun:
        raise ConflictError("conflict", "The upload is being built by another request.")
    store = archives(services)
    try:
        archive = await asyncio.to_thread(store.take, found.id)
        async with services.database.read() as connection:
            secrets = await rows.secrets(connection, scope, worker.id, services.sealer)
        return await _build(services, scope, worker, found, archive, secrets, say)
    except BaseException as error:
        async with services.database.write() as connection:
            await rows.change_deployment(connection, scope, found.id, services.clock(), status="failed", before=("building",))
        if isinstance(error, FileNotFoundError):
            raise NotFoundError("source_not_found", "The upload is not kept any more. Deploy again.") from error
        raise
    finally:
        await asyncio.to_thread(store.drop, found.id)


async def _build(
    services: Services,
    scope: Scope,
    worker: Worker,
    found: Deployment,
    archive: bytes,
    secrets: dict[str, str],
    say: Say,
) -> Deployment:
    step_ms = services.settings.workers.build_timeout_s * 1000
    layer = await _layer(services, scope, worker, found, archive, say)
    async with _box(services, scope, worker, f"worker-build-{found.id}", layer) as box:
        steps = Steps(box, say, step_ms)
        try:
            await box.unpack(archive, SOURCE, gzip=True)
        except BadRequestError as error:
            raise BuildFailed(f"The archive can't be unpacked: {error.message}") from error
        declared = await _destinations(services, scope, worker, found, box, say)
        name = await _language(box, step_ms)
        language = LANGUAGES[name]
        await box.put(language.files(), PLATFORM, sudo=True)
        if layer is None:
            await _install(services, box, steps, language, step_ms)
        for step in language.steps:
            await steps.run(step.name, step.argv, env=secrets if step.secrets else None)
        snapshot = await box.seal()
    async with services.database.write() as connection:
        await rows.change_deployment(
            connection,
            scope,
            found.id,
            services.clock(),
            status="built",
            before=("building",),
            snapshot_id=snapshot.id,
            network=declared,
            language=name,
        )
        built = await rows.deployment(connection, scope, found.id, services.sealer)
    if built is None:
        raise NotFoundError("not_found", "The worker was deleted meanwhile.")
    return built


def _box(
    services: Services, scope: Scope, worker: Worker, name: str, snapshot_id: str | None = None
) -> AbstractAsyncContextManager[OwnSandbox]:
    """A sandbox of a build, without a network."""
    timeout_ms = min(5 * services.settings.workers.build_timeout_s * 1000, services.settings.sandbox.max_timeout_ms)
    return sandbox.opened(
        services, scope, name, policy="deny-all", timeout_ms=timeout_ms, worker_id=worker.id, snapshot_id=snapshot_id
    )


async def _install(services: Services, box: OwnSandbox, steps: Steps, language: Language, step_ms: int) -> None:
    """Install what a worker depends on, with the network open for that. Raises `BuildFailed`."""
    index = await _index(box, language, step_ms)
    hosts = services.settings.workers.registries or languages.registries(index)
    await box.set_policy({"allow": {host: [] for host in hosts}})
    await steps.run("install", language.install, env=language.environment(index))
    await box.set_policy("deny-all")


async def _layer(services: Services, scope: Scope, worker: Worker, found: Deployment, archive: bytes, say: Say) -> str | None:
    """A snapshot with the dependencies of a worker, which are installed now unless they were before; None when they can only be
    installed beside its source. Raises `BuildFailed`, and there is no layer then."""
    settings = services.settings.workers
    given = await asyncio.to_thread(layers.inputs, archive) if settings.keep_layers_s else None
    if given is None:
        return None
    language = LANGUAGES[given.language]
    key = given.key(sandbox.base_image(services).pinned, language.install, settings.registries)
    known = await layers.find(services, scope, given, key)
    if known is not None:
        await say("stdout", "The dependencies are those of before, and installed already.")
        return known
    step_ms = settings.build_timeout_s * 1000
    async with _box(services, scope, worker, f"worker-install-{found.id}") as box:
        await box.unpack(given.archive(), SOURCE, gzip=False)
        await _install(services, box, Steps(box, say, step_ms), language, step_ms)
        snapshot = await box.seal()
    await layers.keep(services, scope, key, snapshot.id)
    return snapshot.id


async def _destinations(services: Services, scope: Scope, worker: Worker, found: Deployment, box: OwnSandbox, say: Say) -> str:
    """What the project's files declare about destinations, as JSON; what that changes is said. Raises `BuildFailed`."""
    files = {}
    try:
        for name in destinations.PLACES:
            with contextlib.suppress(NotFoundError):
                files[name] = await box.read(f"{SOURCE}/{name}", destinations.MAX_FILE_BYTES)
        declared = await asyncio.to_thread(destinations.declared, files, services.boundaries)
        await network.check(services, scope, network.setting_of(worker), declared, None)
    except ValueError as error:
        raise BuildFailed(str(error)) from error
    except (BadRequestError, PayloadTooLargeError) as error:
        raise BuildFailed(error.message) from error
    text = msgspec.json.encode(declared).decode()
    changed = await network.difference(services, scope, worker, dataclasses.replace(found, network=text))
    for each in changed.lines():
        await say("stdout", each)
    return text


async def _language(box: OwnSandbox, timeout_ms: int) -> str:
    """What a project is written in. Raises `BuildFailed`."""
    found = languages.detected(await _said(box, languages.DETECT, SOURCE, timeout_ms) or "")
    if found is None:
        raise BuildFailed(languages.UNKNOWN)
    return found


async def _index(box: OwnSandbox, language: Language, timeout_ms: int) -> str:
    """The address of the registry that the image is set to; nothing of the worker has run yet. Raises `BuildFailed`."""
    if language.index is None:
        return ""
    address = await _said(box, language.index, "/", timeout_ms)
    if not address or not languages.registries(address):
        raise BuildFailed("The image does not say which registry it is set to; name some in `workers.registries`.")
    return address


async def _said(box: OwnSandbox, argv: list[str], cwd: str, timeout_ms: int) -> str | None:
    """What a program prints; None where it fails."""
    said = bytearray()

    async def written(channel: int, data: bytes) -> None:
        if channel == 1:
            said.extend(data[:MAX_ADDRESS_BYTES])

    ended = await box.run(argv, cwd=cwd, timeout_ms=timeout_ms, written=written)
    return said.decode("utf-8", "replace").strip() if ended.exit_code == 0 else None


class Steps:
    """Programs of a build, one after another, with what they write told line by line."""

    def __init__(self, box: OwnSandbox, say: Say, timeout_ms: int) -> None:
        self._box = box
        self._say = say
        self._timeout_ms = timeout_ms

    async def run(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Raises `BuildFailed`."""
        lines = Lines(self._say)
        try:
            ended = await self._box.run(
                argv, cwd=SOURCE, timeout_ms=self._timeout_ms, written=lines.feed, env={"CI": "1", **(env or {})}
            )
        except HutchError as error:
            raise BuildFailed(f"The sandbox ended during {name}: {error.message}") from error
        await lines.finish()
        if ended.timed_out:
            raise BuildFailed(f"`{name}` took longer than {self._timeout_ms // 1000} s (workers.build_timeout_s).")
        if ended.exit_code != 0:
            raise BuildFailed(f"`{' '.join(argv) if name == 'build' else name}` ended with exit code {ended.exit_code}.")


async def forget(services: Services, scope: Scope, worker: Worker) -> None:
    """Delete the snapshots of a worker that is being deleted."""
    async with services.database.write() as connection:
        for snapshot_id in await rows.snapshots(connection, scope, worker.id):
            await snapshots.mark_deleted(connection, snapshot_id, services.clock())
    services.snapshots_due.set()


async def give_up(services: Services, alive: Collection[str]) -> list[tuple[Scope, str]]:
    """What processes were building or running that live no more is over, and archives that nobody waits for go. The sandboxes
    that they had are answered, for `sandbox.end_leftovers`."""
    async with services.database.write() as connection:
        await rows.give_up(connection, services.clock(), alive)
        found = await sandboxes.of_workers(connection)
    await drop_archives(services)
    return [(scope, name) for scope, name in found if sandbox.owner_of(name) not in alive]


async def drop_archives(services: Services) -> None:
    """Remove what was uploaded and nobody waits for."""
    store = archives(services)
    # Before what is wanted: an archive that comes in between belongs to a deployment that would not be known here.
    found = await asyncio.to_thread(list, store.directory.iterdir())
    async with services.database.read() as connection:
        wanted = await rows.awaited_uploads(connection)
    await asyncio.to_thread(_sweep, found, wanted)


def _sweep(found: list[Path], wanted: set[str]) -> None:
    for path in found:
        # Another process may remove it, or whoever builds it.
        with contextlib.suppress(FileNotFoundError):
            if path.name.partition(".")[0] not in wanted or time.time() - path.stat().st_mtime > KEPT_ARCHIVE_S:
                path.unlink()
