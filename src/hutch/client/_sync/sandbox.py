# Written by scripts/write_sync_client.py from `_async/sandbox.py`; change that one.
"""One sandbox: a name, and whatever session runs under it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hutch.client import models
from hutch.client._sync.runner import Runner
from hutch.client._sync.session import Session
from hutch.client._sync.snapshot import Snapshot
from hutch.client._sync.waiting import Hook, Lock, notify
from hutch.client.display import table
from hutch.client.inputs import (
    Duration,
    Mounts,
    NetworkPolicy,
    SandboxResources,
    SnapshotRetention,
    sandbox_fields,
)
from hutch.client.results import session_over, shown
from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.client._sync.client import Client

T = TypeVar("T")


class Sandbox(Runner):
    """A sandbox by its name. What needs a session finds one: when the session is over, the sandbox is resumed once, `on_resume`
    is called, and the call is done once more, unless a process had started. Calls that notice it at the same time resume it
    together.

    `stop`, `update`, `destroy` and lists never resume. Sandboxes that have no snapshot raise the `GoneError` of their session.
    As a context manager it is destroyed at the end. `record` and `session` have what was last heard.
    """

    def __init__(self, client: Client, created: models.Created, *, on_resume: Hook[Sandbox] | None = None) -> None:
        super().__init__(client)
        self.record = created.sandbox
        self.routes = created.routes
        self._session = created.session
        self._on_resume = on_resume
        self._resuming = Lock()

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def status(self) -> str:
        """`running`, `stopping` or `stopped`, as it was last heard."""
        return self.record.status

    @property
    def session(self) -> Session:
        """The current session, or the last one."""
        return Session(self._client, self._session)

    @property
    def session_id(self) -> str:
        return self._session.id

    @property
    def cwd(self) -> str:
        return self._session.cwd

    @property
    def persistent(self) -> bool:
        return self.record.persistent

    @property
    def image(self) -> str:
        return self.record.image

    @property
    def tags(self) -> dict[str, str]:
        return self.record.tags

    @property
    def current_snapshot_id(self) -> str | None:
        """What the next session begins with."""
        return self.record.current_snapshot_id

    @property
    def network_policy(self) -> models.Json | None:
        return self._session.network_policy or self.record.network_policy

    def domain(self, port: int) -> str:
        """The URL of a port. Raises `LookupError` for one that is not exposed."""
        for route in self.routes:
            if route.port == port:
                return route.url
        raise LookupError(f"The sandbox {self.name} does not expose port {port}.")

    # -- its life --------------------------------------------------------------------------------------

    def refresh(self) -> Sandbox:
        """Ask how it is."""
        self._heard(self._client.sandboxes.get(self.name))
        return self

    def resume(self) -> Sandbox:
        """A new session with the files of the current snapshot, unless one is alive. Raises `BadRequestError`, `GoneError`
        (`snapshot_not_found`)."""
        self._resumed()
        return self

    def stop(self) -> Session:
        """Stop the session; the sandbox stays. The session has its usage."""
        self._session = self._client.sandboxes.stop(self._session.id)
        self.refresh()
        return self.session

    def destroy(self, *, delete_orphan_snapshots: bool = False) -> None:
        """Stop it, and forget it. Its snapshots stay, unless `delete_orphan_snapshots`, and then those that others use."""
        self._client.sandboxes.delete(self.name, orphan_snapshots=delete_orphan_snapshots)

    def update(
        self,
        *,
        ports: Sequence[int] | None = None,
        execution_time_limit: Duration | None = None,
        resources: SandboxResources | None = None,
        persistent: bool | None = None,
        network_policy: NetworkPolicy | None = None,
        env: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        mounts: Mounts | None = None,
        snapshot_expiration: Duration | None = None,
        snapshot_retention: SnapshotRetention | None = None,
        current_snapshot_id: str | None = None,
    ) -> Sandbox:
        """Change its configuration; None leaves a field as it is, maps and lists are replaced. Ports and tags change at once, a
        network policy too while a session runs, the rest with the next session."""
        fields = sandbox_fields(
            ports=ports,
            execution_time_limit=execution_time_limit,
            resources=resources,
            persistent=persistent,
            network_policy=network_policy,
            env=env,
            tags=tags,
            mounts=mounts,
            snapshot_expiration=snapshot_expiration,
            snapshot_retention=snapshot_retention,
            currentSnapshotId=current_snapshot_id,
        )
        changed = self._client.sandboxes.update(self.name, **fields)
        self.record, self.routes = changed.sandbox, changed.routes
        if network_policy is not None:
            try:
                self._session = self._client.sandboxes.set_network_policy(self._session.id, network_policy)
            except HutchError as error:
                # Nothing runs; the next session has the new one.
                if not session_over(error):
                    raise
        return self

    def fork(
        self,
        *,
        name: str | None = None,
        memory: bool = False,
        count: int = 1,
        on_resume: Hook[Sandbox] | None = None,
        **overrides: Any,
    ) -> list[Sandbox]:
        """`Client.fork_sandbox` of this one."""
        return self._client.fork_sandbox(self.name, name=name, memory=memory, count=count, on_resume=on_resume, **overrides)

    def list_sessions(self) -> Generator[Session, None, None]:
        """Its sessions, newest first."""
        return self._client.query_sessions(name=self.name)

    def list_snapshots(self) -> Generator[Snapshot, None, None]:
        """Its snapshots, newest first; deleted ones too."""
        return self._client.query_snapshots(name=self.name)

    # -- what it did -----------------------------------------------------------------------------------

    def audit(self, *, after: int = 0, follow: bool = False) -> Generator[models.Json, None, None]:
        """What its egress firewall decided, and why: records behind number `after`, oldest first; with `follow` for ever."""
        return self._client.audit.all(self.name, after=after, follow=follow)

    def traffic(self) -> models.Traffic:
        """What passed for its current session, by name and by rule. Raises `NotFoundError` a day after its end."""
        return self._client.audit.traffic(self.name)

    def usage(self) -> models.Usage:
        """What it has used in all its sessions until now, and what that costs."""
        return self._client.usage.of(self.name)

    def receipt(self) -> models.Json:
        """A signed receipt of that."""
        return self._client.usage.receipt(self.name)

    # -- sessions --------------------------------------------------------------------------------------

    def _do(self, work: Callable[[str], T]) -> T:
        used = self._session.id
        try:
            return work(used)
        except HutchError as error:
            if not session_over(error):
                raise
            self._resume_after(used, error)
        return work(self._session.id)

    def _ready(self) -> str:
        self._resumed()
        return self._session.id

    def _resume_after(self, used: str, error: HutchError) -> None:
        """Another session than `used`, of whoever resumes first. Raises `error` where there is nothing to go on from."""
        try:
            self._resumed(used)
        except HutchError as failed:
            if failed.status == 400 and failed.code == "snapshot_not_found":
                raise error from failed
            raise

    def _resumed(self, used: str | None = None) -> None:
        with self._resuming:
            if used is not None and self._session.id != used:
                return
            created = self._client.sandboxes.resume(self.name)
            self._heard(created)
        # Outside: what the hook does may need to resume again.
        if created.resumed:
            notify(self._on_resume, self)

    def _heard(self, created: models.Created) -> None:
        self.record, self.routes, self._session = created.sandbox, created.routes, created.session

    def _took(self, session: models.Session) -> None:
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.destroy()
        except HutchError as failed:
            if failed.status != 404:
                raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'name': self.name, 'status': self.status, 'session': self.session_id})})"

    def _repr_html_(self) -> str:
        names = ("name", "status", "image", "vcpus", "memory", "persistent", "tags", "current_snapshot_id")
        rows: list[tuple[str, object]] = [(name, getattr(self.record, name)) for name in names]
        return table("Sandbox", [*rows, ("session", self.session_id)])
