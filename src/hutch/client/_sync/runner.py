# Written by scripts/write_sync_client.py from `_async/runner.py`; change that one.
"""What sandboxes and sessions have in common: commands, files, terminals, in whatever session `_do` finds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from hutch.client import models
from hutch.client._sync.command import Command
from hutch.client._sync.filesystem import Filesystem
from hutch.client._sync.snapshot import Snapshot
from hutch.client._sync.terminal import InteractiveSession, open_terminal
from hutch.client._sync.waiting import Hook, notify, sleep
from hutch.client.inputs import Duration, NetworkPolicy, milliseconds
from hutch.client.results import CompletedCommand
from hutch.client.wire import Finished, Output, Started
from hutch.errors import HutchError, UnavailableError

if TYPE_CHECKING:
    from hutch.client._sync.client import Client
    from hutch.egress.policy import Explanation

T = TypeVar("T")
BROKEN_OFF = ("server_unreachable", "stream_ended_early", "sandbox_stream_closed", "host_unreachable", "peer_unreachable")
"""Codes of streams that ended while their command, as far as anybody knows, did not."""
REATTACH_ATTEMPTS = 40
REATTACH_PAUSE_S = 0.25
"""A server needs some seconds to start again."""


class Runner:
    """Base of sandboxes, which resume, and sessions, which do not."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.fs = Filesystem(self)

    @property
    def cwd(self) -> str:
        """The working directory of commands."""
        raise NotImplementedError

    def _do(self, work: Callable[[str], T]) -> T:
        """Do something with the id of a session."""
        raise NotImplementedError

    def _ready(self) -> str:
        """The id of a session that is alive, for what can't be done twice."""
        raise NotImplementedError

    def _took(self, session: models.Session) -> None:
        """What was heard of the current session."""
        raise NotImplementedError

    # -- commands --------------------------------------------------------------------------------------

    def run_command(
        self,
        command: str,
        args: Sequence[str] | None = None,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        kill_after: Duration | None = None,
        check: bool = False,
        input: str | bytes | None = None,
        on_output: Hook[Output] | None = None,
    ) -> CompletedCommand:
        """Run a program to its end. `command` is looked up in PATH, no shell is involved.

        `kill_after` (seconds or `timedelta`) ends it with SIGKILL, exit code 137; `sudo` runs it as root; `on_output` gets what
        it writes while it runs, and holds it back while it does not return. With `input` the output comes once all of that is
        written. Cancelling leaves the command running: use `create_command` for one that has to be killed.

        Raises `BadRequestError` (`executable_not_found`), with `check` `CommandFailedError`, `GoneError` when the session ends
        first.
        """
        if input is not None:
            started = self.create_command(command, args, cwd=cwd, env=env, sudo=sudo, kill_after=kill_after, stdin=True)
            done = started.communicate(input)
            for stream, text in (("stdout", done.stdout), ("stderr", done.stderr)):
                if text:
                    notify(on_output, Output("stdout" if stream == "stdout" else "stderr", text))
        else:
            done = self._ran(command, args, cwd, env, sudo, kill_after, on_output)
        if check:
            done.check_returncode()
        return done

    def _ran(
        self,
        command: str,
        args: Sequence[str] | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
        sudo: bool,
        kill_after: Duration | None,
        on_output: Hook[Output] | None,
    ) -> CompletedCommand:
        parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        started: models.Command | None = None
        events = self.stream_command(command, args, cwd=cwd, env=env, sudo=sudo, kill_after=kill_after)
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, Output):
                        parts[event.stream].append(event.text)
                        notify(on_output, event)
                    elif isinstance(event, Finished):
                        return CompletedCommand(event.command, "".join(parts["stdout"]), "".join(parts["stderr"]))
                    else:
                        started = event.command
        except HutchError as error:
            if started is None or error.code not in BROKEN_OFF:
                raise
            seen = {stream: "".join(texts) for stream, texts in parts.items()}
            return self._caught_up(Command(self._client, started), seen, on_output, error)
        raise AssertionError("a stream ends with Finished or raises")

    def _caught_up(
        self, command: Command, seen: dict[str, str], on_output: Hook[Output] | None, broken: HutchError
    ) -> CompletedCommand:
        """The end of a command whose stream broke off: its log has what was missed. Raises `broken` where it does not go on from
        what was seen, because there was more than is kept."""
        attempt = 0
        while True:
            try:
                done = command.output()
                break
            except UnavailableError:
                attempt += 1
                if attempt >= REATTACH_ATTEMPTS:
                    raise
                sleep(REATTACH_PAUSE_S)
        if not (done.stdout.startswith(seen["stdout"]) and done.stderr.startswith(seen["stderr"])):
            raise broken
        if rest := done.stdout[len(seen["stdout"]) :]:
            notify(on_output, Output("stdout", rest))
        if rest := done.stderr[len(seen["stderr"]) :]:
            notify(on_output, Output("stderr", rest))
        return done

    def stream_command(
        self,
        command: str,
        args: Sequence[str] | None = None,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        kill_after: Duration | None = None,
    ) -> Generator[Started | Output | Finished, None, None]:
        """Run a program and yield `Started`, its `Output` as it comes, then `Finished`. Whoever reads slowly holds it back;
        closing the iterator leaves it running."""
        argv = [command, *(args or ())]
        limit = milliseconds(kill_after)

        def begin(
            session: str,
        ) -> tuple[Generator[Started | Output | Finished, None, None], Started | Output | Finished]:
            events = self._client.commands.follow(session, argv, cwd=cwd, env=env, sudo=sudo, timeout_ms=limit)
            return events, next(events)

        # Only until it has started: twice is worse than not at all.
        events, first = self._do(begin)
        with closing(events):
            yield first
            for event in events:
                yield event

    def create_command(
        self,
        command: str,
        args: Sequence[str] | None = None,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        kill_after: Duration | None = None,
        stdin: bool = False,
    ) -> Command:
        """Start a program and leave it running; with `stdin` it waits for input (`write_stdin`, `close_stdin`)."""
        argv = [command, *(args or ())]
        limit = milliseconds(kill_after)
        record = self._do(
            lambda session: self._client.commands.start(session, argv, cwd=cwd, env=env, sudo=sudo, timeout_ms=limit, stdin=stdin)
        )
        return Command(self._client, record)

    def get_command(self, command_id: str) -> Command:
        """A command of the current session, to wait for it or to read its output again."""
        record = self._do(lambda session: self._client.commands.get(session, command_id))
        return Command(self._client, record)

    def query_commands(self) -> list[Command]:
        """The commands of the current session, newest first."""
        records = self._do(self._client.commands.list)
        return [Command(self._client, record) for record in records]

    @contextmanager
    def open_interactive(
        self,
        command: str = "/bin/sh",
        args: Sequence[str] | None = None,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        cols: int = 80,
        rows: int = 24,
    ) -> Iterator[InteractiveSession]:
        """A program with a terminal, until the block is left; that hangs it up."""
        argv = ["sudo", command, *(args or ())] if sudo else [command, *(args or ())]
        where = self._do(self._client.sandboxes.terminal)
        variables = {"TERM": "xterm-256color", **(env or {})}
        with open_terminal(where, argv, cols=cols, rows=rows, env=variables, cwd=cwd) as opened:
            yield opened

    # -- the session itself ----------------------------------------------------------------------------

    def extend_execution_time_limit(self, duration: Duration) -> None:
        """Let the session live longer by so many seconds. Raises `BadRequestError` (`sandbox_timeout_invalid`)."""
        longer = milliseconds(duration) or 0
        self._took(self._do(lambda session: self._client.sandboxes.extend(session, longer)))

    def update_network_policy(self, network_policy: NetworkPolicy, *, generation: int | None = None) -> None:
        """Replace the policy; when this returns, it is enforced. With `generation` only if the old one has that number
        (`PreconditionFailedError`)."""
        self._took(
            self._do(lambda session: self._client.sandboxes.set_network_policy(session, network_policy, generation=generation))
        )

    @property
    def network_policy(self) -> models.Json | None:
        """As it was last heard of, without secret values; None: allow-all."""
        raise NotImplementedError

    def explain(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        address: str | None = None,
        bounds: Sequence[NetworkPolicy] = (),
    ) -> Explanation:
        """What the policy (as last heard of) would do to a request, and which rule decides; see
        `hutch.client.policies.explain`."""
        from hutch.client.policies import explain

        return explain(self.network_policy, url, method=method, headers=headers, address=address, bounds=bounds)

    def snapshot(self, *, expiration: Duration | None = None, memory: bool = False, keep_running: bool = False) -> Snapshot:
        """Keep the files, and with `memory` all processes. The session ends with that, unless `keep_running`. `expiration`:
        seconds after its last use; 0 for ever."""
        limit = milliseconds(expiration)
        taken = self._do(
            lambda session: self._client.snapshots.take(session, expiration_ms=limit, keep_running=keep_running, memory=memory)
        )
        self._took(taken.session)
        return Snapshot(self._client, taken.snapshot)
