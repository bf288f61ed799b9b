"""One execution of a worker: a fresh sandbox from its deployment, the runner, what it wrote, and what came of it.

    run row ─▶ sandbox from the deployment's snapshot, with policy and environment ─▶ runner ─▶ envelope ─▶ run row

The row is there before the sandbox is, and closed whatever happens; a process that dies in between has its successor close it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from hutch import ids
from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import (
    BadRequestError,
    ConflictError,
    GoneError,
    HutchError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitedError,
    RunFailedError,
)
from hutch.host.protocol import SessionRecord, SessionRef
from hutch.storage import webhooks as webhook_rows
from hutch.storage import workers as rows
from hutch.storage.workers import Deployment, Run, Worker
from hutch.workers import checks, connections, environment, network, outage, reconcile, sandbox
from hutch.workers import manifest as manifests
from hutch.workers.destinations import Difference
from hutch.workers.envelope import Scanner
from hutch.workers.languages import LANGUAGES, SOURCE
from hutch.workers.lines import Lines, Log
from hutch.workers.manifest import Capability, Manifest
from hutch.workers.outcome import End, Failure, Outcome, judge, recorded_exit_code
from hutch.workers.sandbox import KILLED, Ended, OwnSandbox
from hutch.workers.serving import serving
from hutch.workers.warm import Begin, Ready, WarmRuns, digest

log = logging.getLogger(__name__)

FETCH = "fetchAndSaveCapabilities"
MANIFEST_FILE = "/tmp/hutch-manifest.json"  # noqa: S108 - in the guest
SLACK_MS = 60_000
"""How much longer than its program a run's sandbox may live."""
READ_S = 20.0
"""How long reading a manifest may take that was written."""
WRITE_S = 10.0
"""How long whoever waits for a run also waits until its end is written."""
FAILED = 1
LOST = -1
"""What a program whose session took it with it has for an exit code."""
KEPT_WARM = ("tool",)
"""Capabilities that somebody waits for."""
PREPARED = ("sync", "ai_connector")
"""Capabilities of which it is known when they are due."""
VERIFY = "verify"
"""A webhook's verification, in the name of a run: `webhook:KEY` is the event that was handed over."""
DENY_ALL = "deny-all"
NO_TOKEN = "not-reachable"  # noqa: S105 - none
"""In the place of a token whose hosts a run can't reach."""

Say = Callable[[str, str], Awaitable[None]]
Begins = Callable[[Run], Awaitable[None]]


async def nobody(stream: str, text: str) -> None:
    """Nobody listens."""


CANCELED = "canceled"
"""Why the session of a run was stopped that somebody canceled."""
REASONS = {"budget_exceeded": End.OVER_BUDGET, CANCELED: End.CANCELED}


@dataclass(frozen=True, slots=True)
class How:
    """How a capability is run, besides its input. `begins` is called when the sandbox is ready and before the worker gets its
    input; what it raises ends the run. After `deadline` (of the loop's clock) no program is begun or goes on."""

    verify: bool = False
    job_id: str | None = None
    queued_at: int | None = None
    deployment_id: str | None = None
    """Another deployment than the one that serves."""
    network: Any = None
    """Another network policy than the worker's."""
    deadline: float | None = None
    begins: Begins | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a run does: the runner's arguments behind the entry, what it reads if it does, and who hears what it writes."""

    name: str
    arguments: list[str]
    job: bytes | None = None
    say: Say = nobody
    keep_warm: bool = False
    ahead: bool = False
    """Whether sandboxes are begun before it is due."""
    how: How = How()


@dataclass(frozen=True, slots=True)
class Done:
    """What a run came to. `value` is what the worker returned, as it did."""

    run: Run
    outcome: Outcome
    value: Any


# -- deployments -------------------------------------------------------------------------------------


async def fetch_manifest(services: Services, scope: Scope, worker: Worker) -> tuple[Manifest, Difference]:
    """Read the manifest of the newest build in a run of its own, and have that deployment serve; the manifest, and what changed
    about what the worker may reach. Raises `HutchError`; the one that served before goes on then."""
    async with services.database.read() as connection:
        found = await rows.latest(connection, scope, worker.id, ("built", "ready"), services.sealer)
    if found is None:
        raise ConflictError("worker_not_built", "The worker has no build. Deploy it.")
    content: bytes | None = None

    async def take(box: OwnSandbox) -> None:
        nonlocal content
        # The worker's own code could have put anything there.
        try:
            async with asyncio.timeout(READ_S):
                content = await box.read(MANIFEST_FILE, manifests.MAX_BYTES)
        except PayloadTooLargeError as error:
            message = f"The worker's manifest can't be used: it has more than {manifests.MAX_BYTES} bytes. Declare less."
            raise execution.failed("ManifestError", message) from error
        except (NotFoundError, BadRequestError, TimeoutError) as error:
            message = "The worker can't be loaded: it ended before its manifest was written. Does it call process.exit?"
            raise execution.failed("ManifestError", message) from error

    work = Work(FETCH, ["--manifest", MANIFEST_FILE])
    execution = _Execution(services, scope, worker, found, None, work)
    async with execution:
        ended = await execution.go(then=take)
        if ended.exit_code != 0 or content is None:
            raise execution.failed(
                "ManifestError", f"The worker can't be loaded: {execution.last_words() or 'it wrote nothing.'}"
            )
        try:
            manifest = manifests.parse(content)
            checks.check(manifest)
        except BadRequestError as error:
            raise execution.failed("ManifestError", error.message) from error
        changed = await network.review(services, scope, worker, found, manifest)
        for line in changed.lines():
            await execution.note(line)
        async with services.database.read() as connection:
            for sentence in await reconcile.losses(connection, scope, worker.id, manifest):
                await execution.note(sentence)
        execution.succeeded(None)
    now = services.clock()
    sealed = services.sealer.seal(json.loads(content), found.id)
    async with services.database.write() as connection:
        # Locked first: one that was built meanwhile may be about to serve, and what it had migrated would be migrated back.
        await reconcile.lock(connection, scope, worker.id, services.sealer, now)
        newest = await rows.latest(connection, scope, worker.id, ("built", "ready"), services.sealer)
        if newest is None or newest.id != found.id:
            raise ConflictError("deployment_replaced", "A newer deployment was built while the manifest of this one was read.")
        await reconcile.apply(connection, scope, worker.id, manifest, services.sealer, now)
        await rows.change_deployment(connection, scope, found.id, now, status="ready", before=("built", "ready"), manifest=sealed)
        await rows.touch(connection, scope, worker.id, now, deployment_id=found.id)
        addresses = {item.key: ids.webhook_address() for item in manifest.capabilities if item.tag == "webhook"}
        await webhook_rows.ensure(connection, scope, worker.id, addresses, now, deployed=True)
    services.syncs_due.set()
    return manifest, changed


# -- capabilities ------------------------------------------------------------------------------------


async def run(services: Services, scope: Scope, worker: Worker, key: str, context: Any, say: Say = nobody) -> Any:
    """Run a capability once; its value. Raises `RunFailedError` for what is the worker's fault, and `HutchError`."""
    done = await execute(services, scope, worker, key, context, say)
    if isinstance(done.outcome, Failure):
        raise RunFailedError(done.outcome.name, done.outcome.message)
    return done.value


async def execute(
    services: Services, scope: Scope, worker: Worker, key: str, context: Any, say: Say = nobody, how: How = How()
) -> Done:
    """Run a capability once; what that came to. Raises `HutchError` for what is not the worker's doing."""
    found = await serving(services, scope, worker, how.deployment_id)
    if found is None:
        raise ConflictError("worker_not_deployed", "The worker has no deployment that serves. Deploy it.")
    deployment, manifest = found
    capability = manifest.capability(key)
    if capability is None:
        raise NotFoundError("not_found", f"The worker has no capability '{key[:64]}'.")
    if not capability.runnable:
        raise BadRequestError(
            "capability_not_runnable", f"'{key[:64]}' is configuration ({capability.tag}): there is nothing to run."
        )
    execution = _Execution(services, scope, worker, deployment, manifest, _work(capability, context, say, how), context)
    async with execution:
        if capability.tag == "tool":
            execution.admit()
        ended = await execution.go()
        return execution.outcome(capability, ended)


async def outcome(
    services: Services,
    scope: Scope,
    worker: Worker,
    deployment: Deployment,
    manifest: Manifest,
    capability: Capability,
    context: Any,
) -> Outcome:
    """Run a capability of a deployment once; what it came to. Raises `HutchError` for what is not the worker's fault."""
    execution = _Execution(services, scope, worker, deployment, manifest, _work(capability, context, nobody, How()), context)
    async with execution:
        ended = await execution.go()
        return execution.outcome(capability, ended).outcome


def _work(capability: Capability, context: Any, say: Say, how: How) -> Work:
    job = json.dumps({"key": capability.key, "context": context}).encode()
    name = f"{capability.tag}:{capability.key}" if not how.verify else f"{capability.tag}-{VERIFY}:{capability.key}"
    warm, ahead = capability.tag in KEPT_WARM or how.verify, capability.tag in PREPARED
    return Work(name, ["--run"], job, say, keep_warm=warm, ahead=ahead, how=how)


async def preparation(
    services: Services, scope: Scope, worker: Worker, deployment: Deployment, manifest: Manifest
) -> tuple[str, Begin]:
    """What runs of a deployment depend on now, and what begins one that waits for its input. Raises `HutchError`."""
    return await _Execution(services, scope, worker, deployment, manifest, Work("", ["--run"])).prepare()


def _warm(services: Services) -> WarmRuns:
    assert services.warm is not None
    return services.warm


class _Execution:
    """A run from its row to its end: `async with` writes both."""

    def __init__(
        self,
        services: Services,
        scope: Scope,
        worker: Worker,
        deployment: Deployment,
        manifest: Manifest | None,
        work: Work,
        context: Any = None,
    ) -> None:
        assert scope.project_id is not None
        self._services = services
        self._scope = scope
        self._worker = worker
        self._deployment = deployment
        self._manifest = manifest
        self._work = work
        self._context = context
        self._log = Log(services.settings.workers.log_bytes)
        self._scanner = Scanner()
        self._lines = Lines(work.say)
        self._result: dict[str, Any] = {"_tag": "error", "error": {"name": "Interrupted", "message": "The run did not end."}}
        self._exit_code = FAILED
        self._refusal: dict[str, Any] | None = None
        self._lost = End.LOST
        self._run = Run(
            id=ids.worker_id(),
            worker_id=worker.id,
            team_id=scope.team_id,
            project_id=scope.project_id,
            deployment_id=deployment.id,
            session_id=None,
            name=work.name,
            exit_code=None,
            started_at=services.clock(),
            ended_at=None,
            job_id=work.how.job_id,
            queued_at=work.how.queued_at,
            owner=services.process_id,
        )

    async def __aenter__(self) -> _Execution:
        async with self._services.database.write() as connection:
            given = None
            if self._work.job is not None:
                given = self._services.sealer.seal({"context": self._context}, f"{self._run.id}/input")
            await rows.add_run(connection, self._run, given)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._result = {"_tag": "error", "error": {"name": "RunCanceledError", "message": "The run was canceled."}}
        if isinstance(error, HutchError) and not isinstance(error, RunFailedError):
            self._result = self._refusal or {"_tag": "error", "error": {"name": error.code, "message": error.message}}
            await self._log.feed(2, f"\nhutch: {error.message}\n".encode())
        working = self._services.working
        writing = asyncio.create_task(self._close(self._services.clock()))
        working.add(writing)
        writing.add_done_callback(working.discard)
        # What came of the run is known, also when it is written late or whoever waits for it goes away.
        done, _ = await asyncio.wait({writing}, timeout=WRITE_S)
        if done:
            writing.result()
        else:
            log.warning("the end of run %s is written when the database answers", self._run.id)
            self._services.ending.add(writing)
            writing.add_done_callback(self._services.ending.discard)

    async def _close(self, now: int) -> None:
        """Write what came of it."""
        sealer = self._services.sealer
        result = sealer.seal(self._result, f"{self._run.id}/result")
        logs = sealer.seal(self._log.text(), self._run.id)

        async def write() -> None:
            async with self._services.database.write() as connection:
                await rows.end_run(connection, self._scope, self._run, now, exit_code=self._exit_code, result=result, logs=logs)

        await outage.written(write)

    def admit(self) -> None:
        """Raises `RateLimitedError` when the project has run too many; the run says so, as the vendor's do."""
        rates, project_id = self._services.worker_rates, self._scope.project_id
        wait_ms = rates.tool(project_id, self._services.clock()) if rates is not None and project_id is not None else 0
        if wait_ms:
            wait_s = -(-wait_ms // 1000)
            self._refusal = {"_tag": "rate_limit_error", "retryAfterSeconds": wait_s}
            message = "The project has run too many tools and queued events (workers.queued_runs_per_minute, per_hour)."
            raise RateLimitedError("rate_limited", message, retry_after_s=wait_s)

    async def prepare(self) -> tuple[str, Begin]:
        """What it depends on, but for its input, and what begins it. Raises `HutchError`."""
        services = self._services
        async with services.database.read() as connection:
            secrets = await rows.secrets(connection, self._scope, self._worker.id, services.sealer)
        policy, tokens, values = await self._network(secrets)
        variables = environment.variables(secrets, self._manifest, tokens)
        key = digest(self._deployment.id, variables, [policy, sorted(values.items())])
        return key, functools.partial(self._begin, variables, policy, values)

    async def go(self, then: Callable[[OwnSandbox], Awaitable[None]] | None = None) -> Ended:
        """Run the program; `then` looks at what it left when it was a success. Raises `HutchError`."""
        services, warm = self._services, _warm(self._services)
        key, begin = await self.prepare()
        ready = await self._waiting(key) or await self._begun(begin)
        try:
            self._run = replace(self._run, session_id=ready.box.session_id, program_at=services.clock())
            async with services.database.write() as connection:
                await rows.run_began(connection, self._scope, self._run)
            if self._work.how.begins is not None:
                await self._work.how.begins(self._run)
            ended = await self._finish(ready)
            if self._work.ahead:
                await warm.others_first()
            if then is not None and ended.exit_code == 0:
                await then(ready.box)
        finally:
            await self._lines.finish()
            warm.later(ready, self._recorded)
        if self._work.keep_warm and self._deployment.id == self._worker.deployment_id:
            warm.want(self._worker.id, key, begin)
        return ended

    async def _waiting(self, key: str) -> Ready | None:
        """One that waits, with the beginning of its input: until the end of that comes no code of the capability runs. Those that
        died while they waited are none."""
        services, work = self._services, self._work
        while work.job is not None:
            ready = _warm(services).take(key) if work.keep_warm else None
            if ready is None and work.ahead and services.ahead is not None:
                ready = services.ahead.take(key)
            if ready is None:
                return None
            try:
                if await ready.program.offer(work.job):
                    return ready
            except BaseException:
                _warm(services).later(ready)
                raise
            _warm(services).later(ready)
        return None

    async def _begun(self, begin: Begin) -> Ready:
        ahead = self._services.ahead
        return await (ahead.begin(begin) if self._work.ahead and ahead is not None else begin())

    async def _network(self, secrets: dict[str, str]) -> tuple[Any, dict[str, str], dict[str, str]]:
        """The network policy, the variables of OAuth tokens that it has no placeholders for, and the values of those for which it
        has."""
        services, manifest, worker = self._services, self._manifest, self._worker
        if manifest is None:
            return DENY_ALL, {}, {}
        declared = network.declared_of(self._deployment)
        found = await connections.tokens(services, self._scope, worker, manifest)
        placed, tokens = await connections.placed(services, worker, found, declared.oauth)
        if self._work.how.network is not None:
            # A token that the gateway would have put in goes nowhere.
            return self._work.how.network, tokens | {one.variable: NO_TOKEN for one in placed}, {}
        allowed = await network.allowed_for(services, self._scope, worker, self._deployment)
        try:
            policy = environment.policy(secrets, manifest, allowed, placed)
        except ValueError:
            tokens |= {one.variable: one.token for one in placed}
            return environment.policy(secrets, manifest, allowed), tokens, {}
        named = json.dumps(policy)
        for one in placed:
            if one.credential not in named:
                # None of its hosts may be reached.
                tokens[one.variable] = NO_TOKEN
        return policy, tokens, {one.credential: one.token for one in placed if one.credential in named}

    async def _recorded(self) -> None:
        """The sandbox is gone: write down what it did with the network."""
        if self._manifest is not None and self._run.session_id is not None:
            await network.record_later(self._services, self._scope, self._run.id, self._run.session_id)

    async def _finish(self, ready: Ready) -> Ended:
        """Hand over the job, and take what comes of it."""
        end = asyncio.get_running_loop().time() + self._services.settings.workers.run_timeout_s
        if self._work.how.deadline is not None:
            end = min(end, self._work.how.deadline)
        try:
            async with asyncio.timeout_at(end):
                if self._work.job is not None:
                    await ready.program.write(self._work.job)
                ended = await ready.program.finish(self._written)
        except TimeoutError:
            return Ended(KILLED, timed_out=True)
        except GoneError:
            self._lost = await self._reason(ready.box)
            if self._lost is End.LOST:
                raise
            return Ended(LOST, timed_out=False)
        if ended.exit_code < 0:
            self._lost = await self._reason(ready.box)
        return ended

    async def _reason(self, box: OwnSandbox) -> End:
        """Why a sandbox is gone: it had used up a budget, somebody canceled its run, or nobody knows."""
        with contextlib.suppress(HutchError):
            record = await self._services.host.call("session.get", SessionRef(box.session_id), SessionRecord)
            return REASONS.get((record.stop_reason or "").partition(" ")[0].rstrip("."), End.LOST)
        return End.LOST

    async def _begin(self, variables: dict[str, str], policy: Any, values: dict[str, str]) -> Ready:
        """A sandbox from the deployment, with its runner started."""
        settings = self._services.settings
        lives_ms = (settings.workers.run_timeout_s + settings.workers.warm_s) * 1000
        async with contextlib.AsyncExitStack() as stack:
            box = await stack.enter_async_context(
                sandbox.opened(
                    self._services,
                    self._scope,
                    f"worker-run-{ids.worker_id()}",
                    policy=policy,
                    timeout_ms=min(lives_ms + SLACK_MS, settings.sandbox.max_timeout_ms),
                    worker_id=self._worker.id,
                    budget=settings.workers.run_budget(),
                    snapshot_id=self._deployment.snapshot_id,
                    values=values,
                )
            )
            program = await box.start(
                [*LANGUAGES[self._deployment.language].start, *self._work.arguments],
                cwd=SOURCE,
                timeout_ms=lives_ms,
                env=variables,
                stdin=True,
            )
            return Ready(box, program, stack.pop_all())

    async def _written(self, channel: int, data: bytes) -> None:
        await self._log.feed(channel, data)
        if channel == 1:
            self._scanner.feed(data)
        await self._lines.feed(channel, data)

    # -- how it came out ---------------------------------------------------------------------------

    def outcome(self, capability: Capability, ended: Ended) -> Done:
        """What the program's end and what it printed come to."""
        printed = self._scanner.finish()
        # A program that its session took with it has no exit code of its own.
        end = End.TIMED_OUT if ended.timed_out else self._lost if ended.exit_code < 0 else End.EXITED
        found = judge(capability.tag, printed, end, ended.exit_code, verify=self._work.how.verify)
        self._exit_code = recorded_exit_code(found, ended.exit_code)
        if isinstance(found, Failure):
            self._result = {"_tag": "error", "error": msgspec.to_builtins(found)}
            return Done(self._run, found, None)
        assert printed.envelope is not None
        self.succeeded(printed.envelope.value)
        return Done(self._run, found, printed.envelope.value)

    def succeeded(self, value: Any) -> None:
        self._result, self._exit_code = {"_tag": "success", "value": value}, 0

    def failed(self, name: str, message: str) -> RunFailedError:
        self._result = {"_tag": "error", "error": {"name": name, "message": message}}
        return RunFailedError(name, message)

    async def note(self, sentence: str) -> None:
        """Say something in the run's log."""
        await self._log.feed(2, f"hutch: {sentence}\n".encode())

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self._log.text().strip()[-2000:]
