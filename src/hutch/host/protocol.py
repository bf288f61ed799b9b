"""Values that the control plane and a host exchange. Times are integer milliseconds since the epoch, sizes bytes.

Methods over `hutch.wire` (client = control plane):

    host.info        {}                         → HostInfo
    session.create   SessionSpec                → SessionRecord (answers when a command would succeed)
    session.get      SessionRef                 → SessionRecord
    session.list     {}                         → {}, EVENT SessionRecord …
    session.stop     StopRequest                → SessionRecord (answers when it is down)
    session.extend   ExtendRequest              → SessionRecord
    session.persist  PersistRequest             → SessionRecord
    session.snapshot SnapshotRequest            → SnapshotTaken (answers when the snapshot exists)
    snapshot.delete  SnapshotRef                → {} (of a snapshot that there is not, too)
    snapshot.list    {}                         → {}, EVENT SnapshotRecord …
    drive.create     DriveSpec                  → DriveRecord (of a drive that there is, too)
    drive.usage      DriveRef                   → DriveUsage
    drive.delete     DriveRef                   → {} (of a drive that there is not, too)
    snapshot.verify  SnapshotRef                → Verified (of `hutch.blobs.jobs`)
    snapshot.export  SnapshotExport             → {}, DATA 1 …
    snapshot.import  SnapshotImport, DATA 0, END → SnapshotRecord
    image.resolve    ImageQuery                 → ImageFound
    image.pull       ImagePull                  → ImageRecord (answers when a session can begin with it)
    image.list       {"project_id": id}         → {}, EVENT ImageRecord …
    image.remove     ImageRemove                → {}
    session.network  NetworkUpdate              → NetworkApplied (answers when the policy is enforced)
    forwarding.key   ForwardingKey              → {}
    events           {"after": seq}             → {}, then EVENT SessionEvent …, for ever
    command.start    CommandStart               → CommandRecord; with `follow`: DATA 1/2 …, EVENT CommandRecord (final)
    command.get      CommandGet                 → CommandRecord; with `wait` an EVENT CommandRecord (final) follows
    command.list     SessionRef                 → {}, EVENT CommandRecord …, newest first
    command.logs     CommandRef                 → {}, DATA 1/2 … until the command ended
    command.kill     CommandKill                → CommandRecord
    command.stdin    CommandStdin, DATA 0, END  → {"written": int, "stalled": bool}
    pty.open         PtyOpen                    → {}, DATA both ways, EVENT {"resize": [c, r]} in, EVENT {"exit_code": n} out
    file.read        FileRead                   → {"size": int}, DATA 1 …
    file.mkdir       FileMkdir                  → {}
    archive.write    ArchiveWrite, DATA 0, END  → {"files": int, "bytes": int}
    credentials.change  CredentialChange        → {} (answers when every live session that names it has the new value)
    audit.read       AuditRead                  → AuditPage
    session.traffic  SessionRef                 → Traffic (of a session that runs or ended within a day)
    usage.read       SessionRef                 → SessionUsage (likewise)
    usage.command    CommandRef                 → CommandUsage (likewise)
    usage.windows    {"after": seq}             → {}, then EVENT NumberedWindow …, for ever
    usage.delivered  {"seq": seq}               → {} (all windows up to this one are written down)
    budget.set       Budget                     → {} (answers when it holds)
    budget.keep      Budgets                    → {} (of all budgets that were set, these hold)
    budget.read      {"key": key}               → BudgetStates
    budget.notices   {"after": seq}             → {}, then EVENT NumberedNotice …, for ever
    ingress.state    {}                         → IngressState
    session.forget   Forget                     → {} (409 `session_live` for one that is not over)
    host.scrub       {}                         → {} (answers when the host's files hold nothing of what was forgotten)

`session.create` and `session.network` may be larger than a frame (`Connection.call_large`), up to `MAX_LARGE_BYTES`.

Errors: 404 `session_not_found`, `command_not_found`, `image_not_found`, `not_found` (a drive); 409 `image_in_use`,
`drive_attached`, `drive_not_initialized`, `drive_unpackable`; 410 `snapshot_not_found`, `sandbox_stopped`; those of the agent
protocol; 503 `host_full`; 402 `budget_exceeded` (session.create).
"""

from __future__ import annotations

import enum

import msgspec

from hutch.metering.budgets import Budget, Limits, UsageOwner
from hutch.metering.quantities import Quantities
from hutch.metering.windows import UsageWindow

MAX_LARGE_BYTES = 16 * 1024 * 1024
"""Four policies of at most 1 MiB each, the values of the credentials that they name, and a sandbox's environment."""


class SessionStatus(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    ABORTED = "aborted"
    SNAPSHOTTING = "snapshotting"


LIVE = frozenset(
    {SessionStatus.PENDING, SessionStatus.RUNNING, SessionStatus.STOPPING, SessionStatus.SNAPSHOTTING},
)


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a session may reach. `policy` and `bounds` are policies in request form, as JSON text; no policy is `allow-all`.

    `bounds` are those of the operator, the team and the project, of which any may be missing. The policy is not changed by them:
    the gateway asks each, and the strictest answer counts.

    `credentials` has the values of the stored credentials that the policy names: one that is missing here does not exist,
    and the rules that name it are closed. `generation` grows with every policy of a sandbox and never repeats.
    """

    policy: str | None = None
    bounds: list[str] = []
    credentials: dict[str, str] = {}
    generation: int = 1


class DriveMode(enum.StrEnum):
    READ_WRITE = "read-write"
    SNAPSHOT = "snapshot"


class DriveMount(msgspec.Struct, frozen=True, kw_only=True):
    """A drive at a path of the guest: to write to, which one session at a time can, or as it was at the session's start."""

    path: str
    drive_id: str
    mode: DriveMode


class DriveSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A drive of at most `size_bytes`, empty or with what another one holds."""

    drive_id: str
    size_bytes: int
    source_id: str | None = None


class DriveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A drive. `inherited_bytes` of it came with the drive that it is a copy of; `written`: somebody had it read-write; `disk`:
    it is a virtual machine's disk and no tree."""

    drive_id: str
    size_bytes: int
    created_at: int
    inherited_bytes: int = 0
    written: bool = False
    disk: bool = False


class DriveRef(msgspec.Struct, frozen=True):
    drive_id: str


class Forget(msgspec.Struct, frozen=True):
    """Sessions that are over, and sandboxes whose audit and usage nobody will read. `owners`: keys of budgets
    (`hutch.metering.budgets`) of teams and projects whose usage nobody will read either."""

    session_ids: list[str]
    sandbox_ids: list[str]
    owners: list[str] = []


class DriveUsage(msgspec.Struct, frozen=True):
    used_bytes: int


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a host needs to start a session. `image` is a reference; `env` the sandbox's; `timeout_ms` from the start."""

    session_id: str
    sandbox_name: str
    project_id: str
    image: str
    vcpus: int
    memory_mb: int
    timeout_ms: int
    env: dict[str, str] = {}
    hostname: str = "sandbox"
    disk_bytes: int | None = None
    persistent: bool = False
    sandbox_id: str = ""
    team_id: str = ""
    network: NetworkSpec = NetworkSpec()
    source_snapshot: str | None = None
    """The snapshot whose files it begins with. `image` is the one that the snapshot was made on."""
    with_memory: bool = True
    """Whether it goes on from the memory of the snapshot, if that has any."""
    mounts: list[DriveMount] = []
    budget: Limits | None = None
    """What its sandbox may use in all."""
    isolation: str = ""
    """The backend that it runs under; empty: the host's default one."""


class SnapshotMethod(enum.StrEnum):
    MANUAL = "manual"
    AUTOMATIC = "automatic"


class CopyState(enum.StrEnum):
    """How far a snapshot's copy in the blob store is. From `PACKING` on something of it may be there."""

    NONE = "none"
    PACKING = "packing"
    STORED = "stored"


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's file system was when it ended. `parent_id` is the snapshot that the session began with; `size_bytes` what
    was written over the image, `inherited_bytes` of it in the sessions before. `memory_bytes` is the size of its memory, if
    that was saved too, with all its processes."""

    snapshot_id: str
    session_id: str
    image: str
    size_bytes: int
    created_at: int
    method: SnapshotMethod
    inherited_bytes: int = 0
    image_bytes: int = 0
    memory_bytes: int = 0
    for_forks: bool = False
    """Made for forks to begin with, and for nothing else: it goes when they run."""
    parent_id: str | None = None
    durable_at: int | None = None
    """Since when it also survives a power cut."""
    copy: CopyState = CopyState.NONE
    manifest: str | None = None
    """What it is in the blob store (`hutch.blobs`)."""
    stored_at: int | None = None
    store_error: str | None = None
    """Why it is not there yet. It is tried again."""
    disk: bool = False
    """Its files are in the disk of a virtual machine: only such machines begin with it, and it has no copy in the blob store."""


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its host knows it. `timeout_ms` includes extensions; usage fields are set once it ended."""

    session_id: str
    sandbox_name: str
    project_id: str
    status: SessionStatus
    image: str
    cwd: str
    vcpus: int
    memory_mb: int
    timeout_ms: int
    requested_at: int
    started_at: int | None = None
    requested_stop_at: int | None = None
    stopped_at: int | None = None
    stop_reason: str | None = None
    active_cpu_us: int | None = None
    ingress_bytes: int | None = None
    egress_bytes: int | None = None
    cgroup: str = ""
    isolation: str = ""
    source_snapshot: str | None = None
    persistent: bool = False
    snapshot: SnapshotRecord | None = None
    """What it left: set with the last state, and before, while it is being made (`snapshotting`), without a size."""
    mounts: list[DriveMount] = []
    """The drives that it has while it lives."""
    sandbox_id: str = ""
    team_id: str = ""


class PersistRequest(msgspec.Struct, frozen=True):
    """Whether the end of a session is to leave a snapshot."""

    session_id: str
    persistent: bool


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Keep the files of a session, persistent or not. It ends with that, unless it is kept running: then the snapshot has the
    files of one moment, as after a power cut, and only a store that can do that makes it (409 `live_snapshot_unsupported`). With
    `memory` it has the processes too, and they find the files of that moment."""

    session_id: str
    keep_running: bool = False
    memory: bool = False
    for_forks: bool = False


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: SnapshotRecord
    session: SessionRecord


class SnapshotImport(msgspec.Struct, frozen=True, kw_only=True):
    """A new snapshot over an image, out of a tar of at most `max_bytes` of contents and `max_files` entries."""

    snapshot_id: str
    image: str
    max_bytes: int
    max_files: int


class SnapshotExport(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as a tar of at most `max_bytes`, or with `oci` as an OCI image layout in one."""

    snapshot_id: str
    max_bytes: int
    oci: bool = False


class SnapshotRef(msgspec.Struct, frozen=True):
    snapshot_id: str


class ImageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What `reference` means to a project. `exact`: it is one that a session or snapshot has, whoever's name it was."""

    reference: str
    project_id: str = ""
    exact: bool = False


class ImageFound(msgspec.Struct, frozen=True, kw_only=True):
    """`pinned` means this very image, whatever its name is given to later."""

    pinned: str
    cwd: str


class ImagePull(msgspec.Struct, frozen=True, kw_only=True):
    """Fetch an image from a registry. It gets its reference as a name, and `name` as another one, for a project or (`project_id`
    "") for everybody. `operator` uses the operator's logins, where the request brings none."""

    reference: str
    project_id: str = ""
    name: str | None = None
    username: str | None = None
    password: str | None = None
    operator: bool = False


class ImageUser(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs commands in an image, looked up."""

    name: str
    uid: int
    gid: int
    groups: list[int] = []
    home: str = "/"


class ImageBuild(msgspec.Struct, frozen=True, kw_only=True):
    """Make an image of a snapshot: the layers of its image, and one more. `env` and `labels` come over those of its image; what
    is None stays as it is there."""

    snapshot_id: str
    name: str
    project_id: str = ""
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    cwd: str | None = None
    user: ImageUser | None = None
    cmd: list[str] | None = None
    entrypoint: list[str] | None = None


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An image under one of its names. `cmd` and `entrypoint` are never run."""

    name: str
    digest: str
    source: str
    shared: bool
    size_bytes: int
    pulled_at: int
    user: str
    home: str
    cwd: str
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    cmd: list[str] = []
    entrypoint: list[str] = []
    layers: list[tuple[str, int]] = []


class ImageRemove(msgspec.Struct, frozen=True, kw_only=True):
    """`needed`: the name goes also while sessions or snapshots need the image, which then stays until none does."""

    name: str
    project_id: str = ""
    needed: bool = False


class SessionEvent(msgspec.Struct, frozen=True):
    """A change of a session; `seq` increases by at least 1 and survives restarts of the host."""

    seq: int
    session: SessionRecord


class SessionRef(msgspec.Struct, frozen=True):
    session_id: str


class StopRequest(msgspec.Struct, frozen=True):
    session_id: str
    reason: str = "stop"


class ExtendRequest(msgspec.Struct, frozen=True):
    session_id: str
    duration_ms: int
    max_timeout_ms: int


class NetworkUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What holds from now on. A generation may come again: because an answer was lost, or with other bounds, which have no
    generation of their own."""

    session_id: str
    network: NetworkSpec


class NetworkApplied(msgspec.Struct, frozen=True, kw_only=True):
    """Enforced: connections that the policy of `generation` does not allow are closed, `kept_flows` others live on."""

    generation: int
    closed_flows: int
    kept_flows: int


class CredentialChange(msgspec.Struct, frozen=True, kw_only=True):
    """A stored credential of a project has this value from now on; None: it was deleted."""

    project_id: str
    name: str
    value: str | None


class ForwardingKey(msgspec.Struct, frozen=True, kw_only=True):
    """What signs the tokens of forwarded requests: an RSA key (PKCS #8 in PEM), its id, and who issues them."""

    issuer: str
    key_pem: str
    key_id: str


class AuditRead(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` records of a sandbox whose `seq` is greater than `after`, oldest first."""

    sandbox_id: str
    after: int
    limit: int


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """`records` are JSON texts; `next` is the `seq` to read on after (that of the last record, or `after` without any)."""

    records: list[str]
    next: int


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What passed under one name or one rule; bytes of payload from and to the guest."""

    connections: int = 0
    requests: int = 0
    denied: int = 0
    injected: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


RULE = "rule:"
"""What keys of rules begin with; the others are names and addresses."""
WITHOUT_RULE, OTHER_RULES = "", "*"


class RuleTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What passed under one rule: bytes of payload that the sandbox sent and received."""

    sent_bytes: int = 0
    received_bytes: int = 0
    connections: int = 0
    requests: int = 0

    @classmethod
    def of(cls, tally: Tally) -> RuleTraffic:
        return cls(
            sent_bytes=tally.up_bytes,
            received_bytes=tally.down_bytes,
            connections=tally.connections,
            requests=tally.requests,
        )

    def __add__(self, other: RuleTraffic) -> RuleTraffic:
        return RuleTraffic(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What passed for a session. The gateway counts payload and open flows, the kernel what was on the session's interface:
    `egress_bytes` from the guest. `tallies` are by name or address and by `rule:ID`, those with the most bytes; `*` and `rule:*`
    have the sum of the others, and `unruled` is what passed without a rule: what nobody looked into, or what none is about.
    """

    up_bytes: int
    down_bytes: int
    flows: int
    egress_bytes: int
    ingress_bytes: int
    tallies: dict[str, Tally]
    unruled: Tally = Tally()
    gateway_cpu_us: int = 0

    @property
    def network(self) -> dict[str, RuleTraffic]:
        """What passed by rule, as `SessionUsage` has it."""
        tallies = {key.removeprefix(RULE): tally for key, tally in self.tallies.items() if key.startswith(RULE)}
        found = {key: RuleTraffic.of(tally) for key, tally in ({WITHOUT_RULE: self.unruled} | tallies).items()}
        return {key: traffic for key, traffic in found.items() if traffic != RuleTraffic()}


class CommandStart(msgspec.Struct, frozen=True, kw_only=True):
    """`argv` and `cwd` are bytes of the guest; `cwd` None is the session's. `timeout_ms` ends it with SIGKILL."""

    session_id: str
    command_id: str
    argv: list[bytes]
    cwd: bytes | None = None
    env: dict[str, str] = {}
    sudo: bool = False
    timeout_ms: int | None = None
    stdin: bool = False
    follow: bool = False


class CommandRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A command. `exit_code` None while it runs.

    `before` is what its session had used when it began, `used` what the session used until it was over; None where nobody read
    it. When it is `overlapped`, other commands ran meanwhile, and their use is in it too.
    """

    command_id: str
    session_id: str
    argv: list[bytes]
    cwd: bytes
    started_at: int
    exit_code: int | None = None
    duration_ms: int | None = None
    before: Quantities | None = None
    used: Quantities | None = None
    overlapped: bool = False


class CommandRef(msgspec.Struct, frozen=True):
    session_id: str
    command_id: str


class CommandGet(msgspec.Struct, frozen=True):
    session_id: str
    command_id: str
    wait: bool = False


class CommandKill(msgspec.Struct, frozen=True):
    session_id: str
    command_id: str
    signal: int


class CommandStdin(msgspec.Struct, frozen=True):
    session_id: str
    command_id: str
    offset: int | None
    timeout_ms: int
    close: bool


class PtyOpen(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    argv: list[bytes]
    cwd: bytes | None = None
    env: dict[str, str] = {}
    sudo: bool = False
    cols: int = 80
    rows: int = 24


class FileRead(msgspec.Struct, frozen=True):
    session_id: str
    path: bytes
    cwd: bytes | None = None


class FileMkdir(msgspec.Struct, frozen=True):
    session_id: str
    path: bytes
    cwd: bytes | None = None
    recursive: bool = False
    sudo: bool = False


class ArchiveWrite(msgspec.Struct, frozen=True):
    session_id: str
    cwd: bytes
    gzip: bool
    max_bytes: int
    max_files: int
    sudo: bool = False


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`ready` is true once a create would succeed. `platform_cpu_us` is CPU time of the platform's processes here, by component,
    since each started."""

    host_id: str
    ready: bool
    isolation: str
    version: str
    sessions: int
    pooled: int
    max_timeout_ms: int
    reason: str = ""
    platform_cpu_us: dict[str, int] = {}


class IngressRoutes(msgspec.Struct, frozen=True, kw_only=True):
    """All names of a sandbox: subdomain and port each. None: it is deleted, or exposes nothing. `private` ports take a token of
    this `epoch`; with `wake` a request resumes it."""

    sandbox_id: str
    routes: list[tuple[str, int]] = []
    private: bool = False
    wake: bool = False
    epoch: int = 0


class IngressUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Names of these sandboxes; `complete`: there are no others."""

    sandboxes: list[IngressRoutes]
    complete: bool = False


class IngressKey(msgspec.Struct, frozen=True):
    """What tokens for private ports are verified with, in hexadecimal digits."""

    key: str


class IngressState(msgspec.Struct, frozen=True, kw_only=True):
    """Connections of clients and names, as of now, and whether all names are known. Since the process started: answers of
    programs by class of status (and `other`, `reset`), requests refused by code, connections closed unread (`all`, `client`:
    whose are as many as may be), sandboxes that requests had `resumed` or whose resuming `failed`, bytes from and to clients,
    without TLS's own."""

    connections: int
    routes: int
    complete: bool
    results: dict[str, int]
    refusals: dict[str, int]
    closed: dict[str, int]
    wakes: dict[str, int]
    received_bytes: int
    sent_bytes: int


class IngressWake(msgspec.Struct, frozen=True):
    """A sandbox that a request asks for and that is to be resumed."""

    sandbox_id: str


class SessionUsage(msgspec.Struct, frozen=True):
    """What a session used from its begin until `to_ms`; all that it ever will when `final`. `network` is by the id of a rule, ``
    for what passed without one, and `*` for those that are too many."""

    session_id: str
    from_ms: int
    to_ms: int
    final: bool
    quantities: Quantities
    network: dict[str, RuleTraffic] = {}


class CommandUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a session used while a command ran: until it was over (`final`), or until now. `overlapped`: others ran too."""

    session_id: str
    command_id: str
    started_at: int
    final: bool
    overlapped: bool
    quantities: Quantities


class NumberedWindow(msgspec.Struct, frozen=True):
    """A closed window as it is told to the control plane. `seq` only grows on one host; a window that is told twice has the same
    session and number. With the final one comes what passed by rule in the whole session."""

    seq: int
    owner: UsageOwner
    window: UsageWindow
    network: dict[str, RuleTraffic] = {}


class BudgetState(msgspec.Struct, frozen=True):
    """A budget and what is spent of it in the period that lasts now."""

    budget: Budget
    spent: Quantities
    counts: dict[str, int] = {}
    """What counts now of `hutch.metering.budgets.COUNTS`."""


class BudgetStates(msgspec.Struct, frozen=True):
    """All budgets of a key."""

    states: list[BudgetState]


class Budgets(msgspec.Struct, frozen=True):
    """All budgets that there are."""

    budgets: list[Budget]
