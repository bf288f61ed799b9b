"""`hutch image build`: a Dockerfile, run step by step in a sandbox whose files then become an image.

    FROM ─▶ sandbox ─▶ RUN: a command · COPY: an archive · ENV, WORKDIR, USER: what holds for the next steps ─▶ snapshot ─▶ image

The sandbox and the snapshot are deleted at the end, whatever that is. What steps print goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import tarfile
import tempfile
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hutch.cli import errors, output, stdio
from hutch.cli.context import Context
from hutch.client import AsyncClient, Finished, Output
from hutch.client.models import Created, Image
from hutch.control import dockerfile
from hutch.control.dockerfile import Copy, Dockerfile, Ignored, Instruction, Run, Stage, User, Workdir
from hutch.errors import BadRequestError, HutchError, NotFoundError
from hutch.oci import users

CLEAN_UP_S = 60.0
OWNED_AT_ONCE = 500
MAX_SHOWN = 200


class StepFailed(Exception):
    """A RUN ended with another code than 0."""

    def __init__(self, code: int, error: HutchError) -> None:
        super().__init__(error.message)
        self.code = code
        self.error = error


@dataclass(frozen=True, slots=True)
class Build:
    """What is to be built. `fields` are those of a create, without the image."""

    context: Context
    file: Dockerfile
    given: dict[str, str]
    name: str
    shared: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


def read_dockerfile(path: Path) -> Dockerfile:
    """Raises `NotFoundError` and `BadRequestError`."""
    try:
        with path.open("rb") as file:
            text = file.read(dockerfile.MAX_BYTES + 1).decode()
    except FileNotFoundError as error:
        raise NotFoundError("no_such_file", f"There is no file {path}.") from error
    except OSError as error:
        raise BadRequestError("not_readable", f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadRequestError("dockerfile_invalid", f"{path} is not UTF-8.") from error
    return dockerfile.parse(text)


async def build(client: AsyncClient, wanted: Build) -> Image:
    """The image. Raises `StepFailed` and `HutchError`; nothing is left then."""
    wanted.file.check(wanted.given)
    image = wanted.file.base(wanted.given)
    name = f"build-{secrets.token_hex(8)}"
    output.note(f"FROM {image}")
    creating = asyncio.ensure_future(client.sandboxes.create(**wanted.fields, image=image, name=name, persistent=False))
    try:
        # Shielded: what is being made can't be deleted yet.
        created = await asyncio.shield(creating)
        config = await _Steps(client, created, wanted).run()
        snapshot = (await client.snapshots.take(created.session.id)).snapshot
        return await client.images.build(snapshot.id, wanted.name, config, shared=wanted.shared)
    finally:
        await asyncio.shield(_clean_up(client, name, creating))


async def _clean_up(client: AsyncClient, name: str, creating: asyncio.Future[Created]) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_S):
            with contextlib.suppress(HutchError):
                await creating
            with contextlib.suppress(NotFoundError):
                await client.sandboxes.delete(name)
            async for snapshot in client.snapshots.all(name):
                if snapshot.status != "deleted":
                    await client.snapshots.delete(snapshot.id)
    except (HutchError, TimeoutError) as error:
        output.note(f"the sandbox {name} or its snapshot could not be deleted: {error}")


class _Steps:
    """The steps of one build, in its sandbox."""

    def __init__(self, client: AsyncClient, created: Created, wanted: Build) -> None:
        self._client = client
        self._session_id = created.session.id
        self._cwd = created.session.cwd
        self._wanted = wanted
        self._user: users.User | None = None

    async def run(self) -> dict[str, Any]:
        """Run them; the configuration of the image."""
        file = self._wanted.file
        stage = file.stage(self._wanted.given, cwd=self._cwd, below=await self._environment())
        for number, instruction in enumerate(file.instructions, start=1):
            step = stage.step(instruction)
            output.note(f"[{number}/{len(file.instructions)}] {_shown(step)}")
            if isinstance(step, Run):
                await self._run(step, stage)
            elif isinstance(step, Copy):
                await self._copy(step)
            elif isinstance(step, Workdir):
                await self._client.files.mkdir(self._session_id, step.path, recursive=True, sudo=True)
            elif isinstance(step, User):
                self._user = await self._lookup(step.user)
        config: dict[str, Any] = {"env": stage.env, "cwd": stage.cwd, "labels": stage.labels}
        if stage.user:
            # Again: a later step may have changed it.
            user = await self._lookup(stage.user)
            config["user"] = {"name": user.name, "uid": user.uid, "gid": user.gid, "groups": user.groups, "home": user.home}
        if stage.cmd is not None:
            config["cmd"] = stage.cmd
        if stage.entrypoint is not None:
            config["entrypoint"] = stage.entrypoint
        return config

    async def _environment(self) -> dict[str, str]:
        """What programs find set, for variables such as `$PATH`; nothing where the image can't say."""
        try:
            _, said, _ = await self._client.commands.run(self._session_id, ["env", "-0"])
        except BadRequestError:
            return {}
        return {name: value for name, separator, value in (item.partition("=") for item in said.split("\0")) if separator}

    async def _lookup(self, user: str) -> users.User:
        """Who that is in the sandbox. Raises `BadRequestError`."""
        return users.find(user, await self._small_file("/etc/passwd"), await self._small_file("/etc/group"))

    async def _small_file(self, path: str) -> bytes:
        content = b""
        with contextlib.suppress(NotFoundError):
            async with aclosing(self._client.files.read(self._session_id, path)) as chunks:
                async for chunk in chunks:
                    content += chunk
                    if len(content) >= users.MAX_BYTES:
                        break
        return content

    # -- RUN ---------------------------------------------------------------------------------------

    async def _run(self, step: Run, stage: Stage) -> None:
        try:
            code = await self._ran(step, stage)
        except BadRequestError as error:
            raise dockerfile.invalid(step.line, f"RUN: {error.message.rstrip('.')}") from error
        if code != 0:
            message = f"Line {step.line} of the Dockerfile: RUN {step.text[:MAX_SHOWN]} ended with {code}."
            raise StepFailed(code, BadRequestError("build_step_failed", message, details={"line": step.line, "exitCode": code}))

    async def _ran(self, step: Run, stage: Stage) -> int:
        user, environment = self._user, stage.environment
        if user is None or user.uid == 0:
            # Nobody said a user, so that of the image; or root.
            return await self._followed(step.argv, stage.cwd, environment, sudo=user is not None)
        environment = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, **environment}
        groups = ["--groups", ",".join(map(str, user.groups))] if user.groups else ["--clear-groups"]
        become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", *groups, "--"]
        try:
            return await self._followed([*become, *step.argv], stage.cwd, environment, sudo=True)
        except BadRequestError as error:
            if error.code != "executable_not_found":
                raise
        # Of small images, which have busybox's.
        become = ["su", "-p", "-s", "/bin/sh", user.name, "-c", 'exec "$@"', "sh"]
        return await self._followed([*become, *step.argv], stage.cwd, environment, sudo=True)

    async def _followed(self, argv: Any, cwd: str, env: dict[str, str], *, sudo: bool) -> int:
        async with aclosing(self._client.commands.follow(self._session_id, argv, cwd=cwd, env=env, sudo=sudo)) as events:
            async for event in events:
                if isinstance(event, Output):
                    await stdio.write_all(sys.stderr.fileno(), event.text.encode("utf-8", "surrogatepass"))
                elif isinstance(event, Finished):
                    assert event.command.exit_code is not None
                    return event.command.exit_code
        raise AssertionError("follow ends with Finished or raises")

    # -- COPY --------------------------------------------------------------------------------------

    async def _copy(self, step: Copy) -> None:
        try:
            await self._copied(step)
        except (BadRequestError, NotFoundError) as error:
            if error.code == "dockerfile_invalid":
                raise
            raise dockerfile.invalid(step.line, f"COPY: {error.message.rstrip('.')}") from error

    async def _copied(self, step: Copy) -> None:
        context = self._wanted.context
        sources = [path for source in step.sources for path in context.find(source)]
        owner = await self._lookup(step.owner) if step.owner else None
        target = step.target.rstrip("/") or "/"
        if len(sources) > 1 and not step.target.endswith("/"):
            raise dockerfile.invalid(step.line, f"COPY of several sources needs a target that ends with a slash: {target}/")
        there = await self._is_directory(target)
        into = there or step.target.endswith("/") or any(context.is_directory(path) for path in sources)
        made = []
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for source in sources:
                    within = into and not context.is_directory(source)
                    place = f"{target.rstrip('/')}/{source.name}" if within else target
                    made += await asyncio.to_thread(context.pack, tar, source, place)
            archive.seek(0)
            if into and not there:
                await self._client.files.mkdir(self._session_id, target, recursive=True, sudo=True)
                made.append(target)
            if made:
                await self._client.files.write_archive(self._session_id, stdio.chunks_of(archive), sudo=True)
        if owner is not None:
            for start in range(0, len(made), OWNED_AT_ONCE):
                argv = ["chown", "-h", f"{owner.uid}:{owner.gid}", "--", *made[start : start + OWNED_AT_ONCE]]
                code, _, complaint = await self._client.commands.run(self._session_id, argv, sudo=True)
                if code != 0:
                    raise dockerfile.invalid(step.line, f"COPY --chown: {complaint.strip()[:MAX_SHOWN]}")

    async def _is_directory(self, path: str) -> bool:
        try:
            code, _, _ = await self._client.commands.run(self._session_id, ["test", "-d", path], sudo=True)
        except BadRequestError:
            return False
        return code == 0


def _shown(step: Instruction) -> str:
    """One line of an instruction; values of ARG and ENV may be secrets, and are left out."""
    if isinstance(step, Run):
        text = f"RUN {step.text}"
    elif isinstance(step, Copy):
        text = f"COPY {' '.join(step.sources)} {step.target}"
    elif isinstance(step, Workdir):
        text = f"WORKDIR {step.path}"
    elif isinstance(step, User):
        text = f"USER {step.user}"
    elif isinstance(step, Ignored):
        text = f"{step.keyword} (line {step.line}) changes nothing: {step.why}"
    else:
        text = type(step).__name__.upper()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def report(failed: StepFailed, *, as_json: bool) -> int:
    """Say which step failed; its exit code."""
    errors.report(failed.error, as_json=as_json)
    return failed.code
