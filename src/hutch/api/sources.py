"""Fetching the source of a new sandbox, in the sandbox, before its create is answered.

While that goes on the session is pending, leaves no snapshot however it ends, and has the source's network policy
(`control.sources`) within the bounds of operator, team and project; the sandbox's own holds from the moment the create is
answered. What fails here makes the create fail. An API process that dies meanwhile has failed it as well: its caller never got an
answer, and what there is of the source is of no use.
"""

from __future__ import annotations

import asyncio
import codecs
import logging

from hutch import ids
from hutch.api.commands import host_errors, open_stream
from hutch.api.services import Services
from hutch.control.lifecycle import SOURCE_MISSING, lost
from hutch.control.records import Scope, SessionRow
from hutch.control.sources import Source
from hutch.egress.policy import Question, explain
from hutch.errors import BadRequestError, GoneError, NotReadyError
from hutch.host.protocol import CommandRecord, CommandStart, NetworkSpec
from hutch.storage import sandboxes, sessions
from hutch.wire.connection import Data, Message

log = logging.getLogger(__name__)

PHASE_GENERATION = 0
"""Below that of every policy of a sandbox, so that any of them replaces this one."""
MAX_OUTPUT_BYTES = 64 * 1024
KILLED = 137


def network(source: Source, bounds: list[str]) -> NetworkSpec:
    """What the host enforces while the source is fetched."""
    return NetworkSpec(policy=source.policy(), bounds=bounds, generation=PHASE_GENERATION)


async def require_allowed(services: Services, source: Source, bounds: list[str]) -> None:
    """Raises `BadRequestError` where operator, team or project forbid what would be fetched."""
    if not bounds:
        return
    question = Question(source.url)
    answer = await asyncio.to_thread(explain, [*bounds, source.policy()], question, services.boundaries)
    if answer.decision == "deny":
        raise failed(source, f"the network policy of the operator, the team or the project does not allow {source.host}.")


async def fetch(services: Services, session: SessionRow, source: Source) -> None:
    """Run the program that fetches it. Raises `BadRequestError` with what that said last."""
    limits = services.settings.sandbox
    start = CommandStart(
        session_id=session.id,
        command_id=ids.command_id(),
        argv=[argument.encode() for argument in source.argv(limits.max_archive_bytes)],
        env={"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "LC_ALL": "C.UTF-8"},
        timeout_ms=limits.source_timeout_ms,
        follow=True,
    )
    output, final = b"", None
    try:
        stream = await open_stream(services, "command.start", start)
        try:
            with host_errors():
                await stream.reply(CommandRecord)
                async for item in stream:
                    if isinstance(item, Data):
                        output = (output + item.data)[-MAX_OUTPUT_BYTES:]
                    elif isinstance(item, Message):
                        final = item.decode(CommandRecord)
        finally:
            stream.cancel()
    except (GoneError, NotReadyError):
        # A create that is answered 410 would be taken for one from a snapshot that is gone.
        final = None
    if final is None or final.exit_code is None:
        raise failed(source, "the sandbox ended before it was there.")
    if final.exit_code == KILLED and (final.duration_ms or 0) >= limits.source_timeout_ms:
        raise failed(source, f"it was not there within {limits.source_timeout_ms} ms.")
    if final.exit_code != 0:
        text = codecs.decode(output, "utf-8", "replace")
        raise failed(source, source.said(text) or f"its program ended with {final.exit_code}.")


async def give_up(services: Services) -> None:
    """Let the creates fail that a predecessor did not live to answer, before anything is asked. What their sandboxes are is free
    again; the host is told to end them when it is compared with (`host_events`)."""
    now = services.clock()
    async with services.database.write() as connection:
        for row in await sessions.fetching(connection, services.sealer):
            log.warning("sandbox %s is given up: its source was not there when the API process ended", row.sandbox_name)
            await sessions.change(connection, row.id, services.sealer, lambda found: lost(found, now, SOURCE_MISSING))
            await sandboxes.remove(connection, Scope(row.team_id, row.project_id), row.sandbox_id, now)


def failed(source: Source, why: str) -> BadRequestError:
    what = "repository" if source.type == "git" else "archive"
    return BadRequestError("source_failed", f"The {what} {source.url} could not be fetched: {why}")
