"""What every answer of the API looks like: the one place that says it.

Each class is a JSON object: a field that is `NotRequired` may be left out, and is never null; nothing else may be in it. From
here come the responses in the OpenAPI document (`api.openapi`), and the check that the tests make of every answer they get
(`tests.answers`). A new field of an answer is one line here.

Times are milliseconds since 1970, durations milliseconds, sizes bytes, memory MB, all of them integers. The vendor's objects have
the vendor's names (camelCase), Hutch's own have snake_case; what Hutch adds to one of the vendor's is marked so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field

# pydantic needs this one before Python 3.12.
from typing_extensions import TypedDict, is_typeddict

from hutch.control.permissions import MemberRole, Role

Time: TypeAlias = Annotated[int, Field(ge=1_000_000_000_000, le=64_060_588_800_000, description="Milliseconds since 1970.")]
Duration: TypeAlias = Annotated[int, Field(ge=0, description="Milliseconds.")]
Bytes: TypeAlias = Annotated[int, Field(ge=0, description="Bytes.")]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Memory: TypeAlias = Annotated[int, Field(ge=1, description="MB.")]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
SessionId: TypeAlias = Annotated[str, Field(pattern=r"^sbx_[A-Za-z0-9]{1,64}$")]
CommandId: TypeAlias = Annotated[str, Field(pattern=r"^cmd_[0-9a-f]{1,64}$")]
SnapshotId: TypeAlias = Annotated[str, Field(pattern=r"^snap_[A-Za-z0-9]{1,64}$")]
Architecture: TypeAlias = Literal["amd64", "arm64"]
SessionState: TypeAlias = Literal["pending", "running", "stopping", "stopped", "failed", "aborted", "snapshotting"]


# -- errors and pages -------------------------------------------------------------------------------


class ErrorBody(TypedDict):
    """What was wrong. The fields after `message` are only in errors whose documentation names them."""

    code: Annotated[str, Field(pattern=r"^[a-z]+(_[a-z]+)*$", description="Stable: compare it.")]
    message: Annotated[str, Field(min_length=1)]
    added: NotRequired[list[str]]
    bytesWritten: NotRequired[Bytes]
    deployment: NotRequired[str]
    destinations: NotRequired[list[str]]
    exitCode: NotRequired[int]
    generation: NotRequired[Count]
    line: NotRequired[Count]
    pointer: NotRequired[str]
    removed: NotRequired[list[str]]
    users: NotRequired[list[str]]


class Error(TypedDict):
    """The one shape of errors. Those of the Workers door have `name` and `message` again, as its client reads them."""

    error: ErrorBody
    name: NotRequired[str]
    message: NotRequired[str]


class Pagination(TypedDict):
    """`next` is the `cursor` of the next page; null on the last one."""

    count: Count
    next: str | None


# -- network policies -------------------------------------------------------------------------------


class InjectionRule(TypedDict):
    """Headers that are added to requests; their values are never shown."""

    domain: str
    headerNames: list[str]
    match: NotRequired[dict[str, Any]]


class ForwardRule(TypedDict):
    domain: str
    forwardURL: str
    match: NotRequired[dict[str, Any]]


class ResponseRule(TypedDict):
    domain: str
    statusCode: Annotated[int, Field(ge=200, le=599)]


class PolicyWarning(TypedDict):
    """Something valid that its author may not have meant."""

    pointer: str
    code: str
    message: str


class PolicyRemarks(TypedDict):
    """Hutch's own: what the vendor's form of a network policy has no place for."""

    generation: Count
    warnings: list[PolicyWarning]
    bounded: NotRequired[Literal[True]]
    closedFlows: NotRequired[Count]
    keptFlows: NotRequired[Count]
    policy: NotRequired[dict[str, Any]]


class NetworkPolicy(TypedDict):
    """A network policy as it is read back."""

    mode: Literal["allow-all", "deny-all", "custom"]
    allowedDomains: NotRequired[list[str]]
    allowedCIDRs: NotRequired[list[str]]
    deniedCIDRs: NotRequired[list[str]]
    injectionRules: NotRequired[list[InjectionRule]]
    forwardRules: NotRequired[list[ForwardRule]]
    responseRules: NotRequired[list[ResponseRule]]
    hutch: PolicyRemarks


# -- sandboxes and sessions -------------------------------------------------------------------------


class Mount(TypedDict):
    drive: str
    mode: Literal["read-write", "snapshot"]


class KeepLastSnapshots(TypedDict):
    count: Annotated[int, Field(ge=1, le=10)]
    expiration: NotRequired[Duration]
    deleteEvicted: bool


class BudgetLimits(TypedDict):
    """What may be used, each limit optional."""

    active_cpu_us: NotRequired[Count]
    memory_byte_seconds: NotRequired[Count]
    egress_bytes: NotRequired[Count]
    money_nano: NotRequired[Count]


class Sandbox(TypedDict):
    """A named record with at most one live session. `cgroup` (for administrators), `isolation` (for them, and where
    it was asked for), `portsPrivate`, `wakeOnRequest` and `budget` are Hutch's own."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    currentSessionId: SessionId
    status: Literal["running", "stopping", "stopped"]
    statusUpdatedAt: Time
    persistent: bool
    createdAt: Time
    updatedAt: Time
    region: str
    failoverRegions: list[str]
    vcpus: Annotated[int, Field(ge=1)]
    memory: Memory
    runtime: str
    image: str
    timeout: Duration
    cwd: str
    architecture: Architecture
    currentSnapshotId: NotRequired[SnapshotId]
    networkPolicy: NotRequired[NetworkPolicy]
    tags: NotRequired[dict[str, str]]
    snapshotExpiration: NotRequired[Duration]
    keepLastSnapshots: NotRequired[KeepLastSnapshots]
    mounts: NotRequired[dict[str, Mount]]
    totalEgressBytes: NotRequired[Bytes]
    totalIngressBytes: NotRequired[Bytes]
    totalActiveCpuDurationMs: NotRequired[Duration]
    totalDurationMs: NotRequired[Duration]
    expiresAt: NotRequired[Time]
    cgroup: NotRequired[str]
    isolation: NotRequired[str]
    portsPrivate: NotRequired[bool]
    wakeOnRequest: NotRequired[Literal[True]]
    budget: NotRequired[BudgetLimits]


class NetworkTransfer(TypedDict):
    ingress: Bytes
    egress: Bytes


class Session(TypedDict):
    """One run of a sandbox. `stopReason` is Hutch's own."""

    id: SessionId
    status: SessionState
    memory: Memory
    vcpus: Annotated[int, Field(ge=1)]
    region: str
    timeout: Duration
    cwd: str
    requestedAt: Time
    createdAt: Time
    updatedAt: Time
    runtime: str
    interactivePort: Port
    sourceSandboxName: str
    projectId: str
    architecture: Architecture
    startedAt: NotRequired[Time]
    requestedStopAt: NotRequired[Time]
    stoppedAt: NotRequired[Time]
    abortedAt: NotRequired[Time]
    snapshottedAt: NotRequired[Time]
    sourceSnapshotId: NotRequired[SnapshotId]
    stopReason: NotRequired[str]
    duration: NotRequired[Duration]
    networkPolicy: NotRequired[NetworkPolicy]
    activeCpuDurationMs: NotRequired[Duration]
    networkTransfer: NotRequired[NetworkTransfer]


class Route(TypedDict):
    """The public URL of a port."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    subdomain: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
    port: Port
    system: NotRequired[Literal[True]]


class SandboxStarted(TypedDict):
    """A new sandbox, its first session and its routes."""

    sandbox: Sandbox
    session: Session
    routes: list[Route]


class SandboxForked(TypedDict):
    """The same; Hutch's own `forks` is there when `memory` or `count` was asked for, with the first one repeated."""

    sandbox: Sandbox
    session: Session
    routes: list[Route]
    forks: NotRequired[list[SandboxStarted]]


class SandboxRead(TypedDict):
    """A sandbox and its current or last session; `resumed` says whether this request began it."""

    sandbox: Sandbox
    session: Session
    routes: list[Route]
    resumed: bool


class SandboxUpdated(TypedDict):
    """A changed sandbox; with `resume=true` all that a get answers."""

    sandbox: Sandbox
    routes: list[Route]
    session: NotRequired[Session]
    resumed: NotRequired[bool]


class SandboxDeleted(TypedDict):
    """A sandbox as it was."""

    sandbox: Sandbox


class SandboxPage(TypedDict):
    sandboxes: list[Sandbox]
    pagination: Pagination


class SessionRead(TypedDict):
    session: Session
    routes: list[Route]


class SessionPage(TypedDict):
    sessions: list[Session]
    pagination: Pagination


class SessionExtended(TypedDict):
    session: Session


class SessionPolicy(TypedDict):
    """A session with its new network policy, and what that did."""

    session: Session
    hutch: PolicyRemarks


class Terminal(TypedDict):
    """Where a terminal's WebSocket is, and the token that opens it once."""

    url: Annotated[str, Field(pattern=r"^wss?://[^?]+$")]
    token: Annotated[str, Field(min_length=1)]


# -- exposed ports ----------------------------------------------------------------------------------


class Link(TypedDict):
    """Opens a private port until `expiresAt`: as it is, or with the token in a header or cookie."""

    url: str
    token: str
    expiresAt: Time


class ProjectIngress(TypedDict):
    private: bool


# -- snapshots --------------------------------------------------------------------------------------


class Snapshot(TypedDict):
    """Saved files. `sourceSandboxName`, `durableAt`, `memoryBytes`, `storedAt` and `storeError` are Hutch's own. The source
    session of an imported one is empty."""

    id: SnapshotId
    sourceSessionId: Annotated[str, Field(pattern=r"^(sbx_[A-Za-z0-9]{1,64})?$")]
    sourceSandboxName: str
    region: str
    regions: list[str]
    status: Literal["created", "deleted", "failed"]
    sizeBytes: Bytes
    createdAt: Time
    updatedAt: Time
    lastUsedAt: Time
    creationMethod: Literal["manual", "automatic"]
    architecture: Architecture
    expiresAt: NotRequired[Time]
    parentId: NotRequired[SnapshotId]
    durableAt: NotRequired[Time]
    memoryBytes: NotRequired[Bytes]
    storedAt: NotRequired[Time]
    storeError: NotRequired[str]


class SnapshotTaken(TypedDict):
    snapshot: Snapshot
    session: Session


class SnapshotRead(TypedDict):
    snapshot: Snapshot


class SnapshotPage(TypedDict):
    snapshots: list[Snapshot]
    pagination: Pagination


class SnapshotNode(TypedDict):
    """A snapshot and those that came from the same one; `count` is of both, in words where there are many."""

    snapshot: Snapshot
    siblings: list[Snapshot]
    count: Annotated[str, Field(pattern=r"^[0-9]+\+?$")]


class SnapshotTree(TypedDict):
    snapshots: list[SnapshotNode]
    anchor: NotRequired[SnapshotNode]
    pagination: Pagination


class SessionStopped(TypedDict):
    """A session that is over; its sandbox, unless that was deleted; and the snapshot that it left."""

    sandbox: NotRequired[Sandbox]
    session: Session
    snapshot: NotRequired[Snapshot]


class SnapshotVerified(TypedDict):
    """Hutch's own: a copy that is whole; `compared` with the files on the machine."""

    snapshotId: SnapshotId
    manifest: str
    files: Count
    bytes: Bytes
    compared: bool


# -- commands ---------------------------------------------------------------------------------------


class Command(TypedDict):
    """A process of a session; `exitCode` is null while it runs."""

    id: CommandId
    name: str
    args: list[str]
    cwd: str
    sessionId: SessionId
    exitCode: int | None
    startedAt: Time
    durationMs: NotRequired[Duration]


class CommandRead(TypedDict):
    command: Command


class CommandList(TypedDict):
    commands: list[Command]


class StdinWritten(TypedDict):
    bytesWritten: Bytes


class Output(TypedDict):
    """A record of a stream: what a command wrote."""

    data: str
    stream: Literal["stdout", "stderr"]


class StreamErrorData(TypedDict):
    code: Annotated[str, Field(pattern=r"^[a-z]+(_[a-z]+)*$")]
    message: str


class StreamError(TypedDict):
    """The last record of a stream that broke off."""

    stream: Literal["error"]
    data: StreamErrorData


CommandRecord: TypeAlias = CommandRead | Output | StreamError
LogRecord: TypeAlias = Output | StreamError


# -- drives -----------------------------------------------------------------------------------------


class Drive(TypedDict):
    """A named file system. `usedBytes` is Hutch's own, where one drive is read."""

    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    projectId: str
    region: str
    maxSizeBytes: Bytes
    createdAt: Time
    updatedAt: Time
    currentSessionId: NotRequired[SessionId]
    currentSandboxName: NotRequired[str]
    parentDriveId: NotRequired[str]
    rootDriveId: NotRequired[str]
    usedBytes: NotRequired[Bytes]


class DriveRead(TypedDict):
    drive: Drive


class DrivePage(TypedDict):
    drives: list[Drive]
    pagination: Pagination


class Nothing(TypedDict):
    """`{}`."""


# -- Hutch's own ------------------------------------------------------------------------------------


class Token(TypedDict):
    """A token without what makes it one."""

    id: str
    team_id: str
    project_id: NotRequired[str]
    role: Role
    name: str
    created_at: Time
    expires_at: Time
    revoked: bool
    revoked_at: NotRequired[Time]
    member_id: NotRequired[str]
    scopes: NotRequired[list[str]]
    use_count: Annotated[int, Field(ge=0)]
    last_used_at: NotRequired[Time]
    last_used_address: NotRequired[str]


class NewToken(Token):
    """A token, shown only once."""

    token: Annotated[str, Field(min_length=1)]


class TokenList(TypedDict):
    tokens: list[Token]


class Credential(TypedDict):
    """A stored credential, without its value."""

    name: str
    created_at: Time
    updated_at: Time


class CredentialList(TypedDict):
    credentials: list[Credential]


class RegistryList(TypedDict):
    registries: list[Credential]


class Layer(TypedDict):
    digest: str
    size_bytes: Bytes


class Image(TypedDict):
    """An image; the fields after `cwd` are those of registries, and of snapshots, only."""

    name: str
    aliases: list[str]
    digest: str
    size_bytes: Bytes
    layers: list[Layer]
    user: str
    home: str
    cwd: str
    source: NotRequired[str]
    shared: NotRequired[bool]
    pulled_at: NotRequired[Time]
    env: NotRequired[dict[str, str]]
    labels: NotRequired[dict[str, str]]
    cmd: NotRequired[list[str]]
    entrypoint: NotRequired[list[str]]


class ImageList(TypedDict):
    images: list[Image]


class BoundsApplied(TypedDict):
    warnings: list[PolicyWarning]
    sessions: Count
    closedFlows: Count
    keptFlows: Count


class BoundsWritten(TypedDict):
    """The policy of a team or project in request form, and what it did to running sandboxes."""

    networkPolicy: dict[str, Any]
    hutch: BoundsApplied


class BoundsRead(TypedDict):
    """The policy of a team or project in request form; null: none."""

    networkPolicy: dict[str, Any] | None


class AuditPage(TypedDict):
    """Records as the gateway wrote them (docs/network.md), and where to read on."""

    records: list[dict[str, Any]]
    next: Count


class TrafficPayload(TypedDict):
    up: Bytes
    down: Bytes


class TrafficCounts(TypedDict):
    connections: Count
    requests: Count
    denied: Count
    injected: Count
    up: Bytes
    down: Bytes


class NameTraffic(TrafficCounts):
    name: str


class RuleTraffic(TrafficCounts):
    rule: str


class Traffic(TypedDict):
    """What passed for a session."""

    sessionId: SessionId
    payload: TrafficPayload
    interface: NetworkTransfer
    flows: Count
    names: list[NameTraffic]
    rules: list[RuleTraffic]


class Quantities(TypedDict):
    """What was used: CPU and wall time in microseconds, memory, disk and snapshots in byte-seconds."""

    active_cpu_us: Count
    startup_cpu_us: Count
    wall_us: Count
    memory_byte_seconds: Count
    memory_peak_bytes: Bytes
    ingress_bytes: Bytes
    egress_bytes: Bytes
    snapshot_byte_seconds: Count
    creations: Count
    gateway_cpu_us: Count
    disk_byte_seconds: Count
    disk_peak_bytes: Bytes


class RuleUsage(TypedDict):
    """Payload that passed the gateway under one rule: by its id, null: without one, `*`: those that are too many."""

    rule: str | None
    sent_bytes: Bytes
    received_bytes: Bytes
    connections: Count
    requests: Count


class Usage(Quantities):
    """What a sandbox used until now, or in all when `final`, and what that costs."""

    overhead_cpu_us: Annotated[Count, Field(description="What starting it and its part of the gateway took; free.")]
    final: bool
    amount_nano: Count
    currency: str
    price_table: str
    network: list[RuleUsage]


class ReceiptLine(TypedDict):
    """`quantity` × `nano` ÷ `per`, rounded down, is `amount_nano`."""

    dimension: str
    quantity: Count
    nano: Count
    per: Annotated[int, Field(ge=1)]
    amount_nano: Count


class Receipt(TypedDict):
    """What something used and what it costs, signed with Ed25519 over the canonical form of everything else."""

    subject: dict[str, Any]
    usage: Quantities
    price_table: str
    lines: list[ReceiptLine]
    amount_nano: Count
    currency: str
    issued_at: Time
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{86}$")]


class ReceiptKey(TypedDict):
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    algorithm: Literal["Ed25519"]
    public_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$", description="The raw 32 bytes, base64url.")]


class ReceiptKeys(TypedDict):
    keys: list[ReceiptKey]


class UsageGroup(TypedDict):
    """`key` is a day in UTC, a sandbox's name (then with its id), a worker or a value of a tag; null: without that tag."""

    key: str | None
    sandbox_id: NotRequired[str]
    usage: Quantities
    amount_nano: Count


UsageReport = TypedDict(
    "UsageReport",
    {
        "from": int,
        "to": int,
        "groups": list[UsageGroup],
        "total": Quantities,
        "amount_nano": Count,
        "currency": str,
        "price_table": str,
    },
)
"""Usage of a project or team in a time, `from` and `to` in milliseconds since 1970."""


class TenantLimits(BudgetLimits):
    """What all sandboxes of a team or project may use together."""

    concurrency: NotRequired[Count]
    creations_per_minute: NotRequired[Count]
    storage_bytes: NotRequired[Count]


class BudgetCounts(TypedDict):
    """What counts now. `storage_bytes` is there where it has a limit."""

    concurrency: Count
    creations_per_minute: Count
    storage_bytes: NotRequired[Count]


class Webhook(TypedDict):
    """Where events are sent: scheme, host and port, because the rest of the URL may be a secret. `secret` is only in the answer
    to the request that set it."""

    origin: str
    secret: NotRequired[Annotated[str, Field(pattern=r"^whsec_[A-Za-z0-9+/]{43}=$")]]


class BudgetRead(TypedDict):
    """A budget, and what is spent of it in the period that lasts now."""

    period: Literal["day", "month", "total"]
    limits: TenantLimits
    spent: Quantities
    spent_money_nano: Count
    counts: BudgetCounts
    notify_at: list[Annotated[int, Field(ge=1, le=100)]]
    soft: TenantLimits
    webhook: NotRequired[Webhook]


class Budgets(TypedDict):
    budgets: list[BudgetRead]


class EventBudget(TypedDict):
    """Whose budget. `span` is the day (`2026-11-26`) or month (`2026-11`) in UTC, empty for all time."""

    of: Literal["team", "project", "sandbox"]
    id: str
    period: Literal["day", "month", "total"]
    span: Annotated[str, Field(pattern=r"^([0-9]{4}-[0-9]{2}(-[0-9]{2})?)?$")]


class EventDelivery(TypedDict):
    """How far its webhook is; `none` has none."""

    state: Literal["none", "pending", "delivered", "given_up"]
    attempts: Count
    failure: NotRequired[str]


class BudgetEvent(TypedDict):
    """Something that a budget's owner is told once: `percent` of the limit `bound` was reached. `session_ids` are some of those
    that ran when a hard limit was reached."""

    seq: Annotated[int, Field(ge=1)]
    id: Annotated[str, Field(pattern=r"^evt_[0-9a-f]{32}$")]
    type: Literal["budget.threshold", "budget.soft_limit", "budget.exceeded"]
    at: Time
    team_id: str
    project_id: NotRequired[str]
    budget: EventBudget
    limit: Literal[
        "active_cpu_us",
        "memory_byte_seconds",
        "egress_bytes",
        "money_nano",
        "concurrency",
        "creations_per_minute",
        "storage_bytes",
    ]
    bound: Count
    percent: Annotated[int, Field(ge=1, le=100)]
    used: Count
    session_ids: list[str]
    delivery: EventDelivery


class EventPage(TypedDict):
    """`next` is what to ask for events after."""

    events: list[BudgetEvent]
    next: Count


class PriceRate(TypedDict):
    nano: Count
    per: Annotated[int, Field(ge=1)]


class PriceTable(TypedDict):
    version: str
    currency: str
    rates: dict[str, PriceRate]


class Tenant(TypedDict):
    id: str
    slug: str


class Team(TypedDict):
    id: str
    slug: str
    created_at: Time


class TeamPage(TypedDict):
    """`next` is where to read on, if there is more."""

    teams: list[Team]
    next: NotRequired[str]


class TenantProject(TypedDict):
    id: str
    team_id: str
    slug: str
    created_at: Time


class ProjectPage(TypedDict):
    """`next` is where to read on, if there is more."""

    projects: list[TenantProject]
    next: NotRequired[str]


class Member(TypedDict):
    """`identity` is an address, or issuer and subject of a provider; `email` what the provider has verified. `by_provider`: its
    claims say what the role is."""

    id: str
    team_id: str
    identity: str
    name: str
    role: MemberRole
    created_at: Time
    email: NotRequired[str]
    by_provider: bool
    last_login_at: NotRequired[Time]
    disabled: bool
    disabled_at: NotRequired[Time]


class MemberPage(TypedDict):
    """`next` is where to read on, if there is more."""

    members: list[Member]
    next: NotRequired[str]


class LogEntry(TypedDict):
    """Who changed what in a team. `hash` is the SHA-256 of all other fields, in which `previous` is that of the entry before."""

    team_id: str
    seq: Annotated[int, Field(ge=1)]
    at: Time
    token_id: str
    member_id: str
    address: str
    action: str
    subject: str
    outcome: Literal["done", "refused"]
    detail: dict[str, Any]
    previous: str
    hash: str


class LogHead(TypedDict):
    seq: Annotated[int, Field(ge=0)]
    hash: str


class LogPage(TypedDict):
    """`next` is where to read on; `head` the last entry that there is."""

    entries: list[LogEntry]
    next: Annotated[int, Field(ge=0)]
    head: LogHead


class BegunLogin(TypedDict):
    """Where a browser goes. Without a port, `user_code` is what its page shows as well, and `code` is asked with every
    `interval_s`."""

    url: str
    expires_at: Time
    user_code: NotRequired[str]
    code: NotRequired[str]
    interval_s: NotRequired[int]


class PendingLogin(TypedDict):
    """Nobody has decided yet: ask again after `interval_s`."""

    status: Literal["pending"]
    interval_s: int


class EndedLogin(NewToken):
    """The token of a login, shown only once. `project`: the one that it is bound to, or else one to begin with."""

    team: Tenant
    project: NotRequired[Tenant]
    identity: str
    email: NotRequired[str]
    ingress_url: NotRequired[str]


class WhoMember(TypedDict):
    """Whose token it is."""

    id: str
    identity: str
    name: str
    email: NotRequired[str]


class WhoAmI(TypedDict):
    token_id: str
    member: NotRequired[WhoMember]
    role: Role
    permissions: list[str]
    member_id: NotRequired[str]
    version: str
    team: NotRequired[Tenant]
    project: NotRequired[Tenant]


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    status: Literal["ready"]
    isolation: str
    version: str


class JsonWebKey(TypedDict):
    kty: Literal["RSA"]
    use: Literal["sig"]
    alg: Literal["RS256"]
    kid: str
    n: str
    e: str


class JsonWebKeys(TypedDict):
    keys: list[JsonWebKey]


# -- workers ----------------------------------------------------------------------------------------


class WorkerRecord(TypedDict):
    """A worker. `deployment_id` is the deployment that serves."""

    id: str
    name: str
    project_id: str
    deployment_id: NotRequired[str]
    created_at: Time
    updated_at: Time


class WorkerRecordRead(TypedDict):
    worker: WorkerRecord


class WorkerRecords(TypedDict):
    workers: list[WorkerRecord]


class SyncSchedule(TypedDict):
    """`interval_ms` for an interval; `expression` and `time_zone` for cron."""

    type: Literal["interval", "continuous", "manual", "cron"]
    interval_ms: NotRequired[Duration]
    expression: NotRequired[str]
    time_zone: NotRequired[str]


class SyncStats(TypedDict):
    """Changes are counted as the worker returned them. A cycle is a chain of runs."""

    last_succeeded_at: NotRequired[Time]
    last_completed_at: NotRequired[Time]
    last_failed_at: NotRequired[Time]
    recent_run_durations_ms: list[Duration]
    total_upserts: Count
    total_deletes: Count
    cycle_upserts: Count
    cycle_deletes: Count
    cycles: Count


class Sync(TypedDict):
    """A sync. `last_error` and `warnings` are shown to those with the permission worker.logs."""

    key: str
    label: Literal["DISABLED", "ERROR", "WARNING", "INITIALIZING", "HEALTHY"]
    executing: bool
    paused: bool
    database: NotRequired[str]
    mode: Literal["replace", "incremental"]
    schedule: SyncSchedule
    schedule_from: Literal["deployment", "request"]
    next_run_at: NotRequired[Time]
    failures: Count
    last_error: NotRequired[str]
    warnings: list[str]
    stats: SyncStats


class SyncRead(TypedDict):
    sync: Sync


class SyncPreview(TypedDict):
    """What one run returned. Nothing was written."""

    changes: list[Any]
    has_more: bool
    next_context: Any


class SyncTriggered(TypedDict):
    """The sync, or the preview that was asked for."""

    sync: NotRequired[Sync]
    preview: NotRequired[SyncPreview]


class WorkerDatabase(TypedDict):
    """A database that syncs write to. `declared`: whether the deployment that serves has it; `added_options` are names that rows
    brought, by property."""

    key: str
    title: str
    declared: bool
    primary_key: str
    properties: dict[str, Any]
    added_options: dict[str, list[str]]
    rows: Count


class WebhookUrl(TypedDict):
    """Where a webhook is called; whoever knows it may."""

    key: str
    url: str


class WorkerDetails(WorkerRecord):
    capabilities: list[dict[str, Any]]
    syncs: list[Sync]
    webhook_urls: list[WebhookUrl]
    databases: list[WorkerDatabase]


class WorkerDetailsRead(TypedDict):
    worker: WorkerDetails


class Row(TypedDict):
    """`properties` are plain values by name; `updated_at` is when it was last changed here."""

    key: str
    properties: dict[str, Any]
    updated_at: Time
    icon: NotRequired[dict[str, Any]]
    cover: NotRequired[dict[str, Any]]
    markdown: NotRequired[str]


class RowPage(TypedDict):
    rows: list[Row]
    next: str | None


class DatabaseView(TypedDict):
    """A way to look at a database. `properties` null: all of them; `sort` null: in the order of creation."""

    name: str
    filter: dict[str, str]
    sort: str | None
    properties: list[str] | None
    updated_at: Time


class ViewRead(TypedDict):
    view: DatabaseView


class ViewRecords(TypedDict):
    views: list[DatabaseView]


class NotionTarget(TypedDict):
    """Where a database is mirrored to. `mirrored`, `waiting` and `failed` are numbers of rows; `stopped`: nothing is tried until
    it is set anew; `warnings`: properties that are left out, and rows that Notion did not take."""

    parent: dict[str, str]
    base_url: str
    database_id: NotRequired[str]
    data_source_id: str
    stopped: bool
    mirrored: int
    waiting: int
    failed: int
    last_success_at: NotRequired[Time]
    last_error: NotRequired[str]
    warnings: list[str]


class NotionTargetRead(TypedDict):
    notion: NotionTarget


class RowExport(TypedDict):
    rows: list[Row]


# -- the vendor's first API -------------------------------------------------------------------------
# `hutch.api.first_version` makes these of the ones above: a sandbox is a session there.


class FirstSandboxRead(TypedDict):
    sandbox: Session
    routes: list[Route]


class FirstPagination(TypedDict):
    """There is one page."""

    count: Count
    next: None
    prev: None


class FirstSandboxPage(TypedDict):
    sandboxes: list[Session]
    pagination: FirstPagination


class FirstSandboxExtended(TypedDict):
    sandbox: Session


class FirstSandboxPolicy(TypedDict):
    sandbox: Session
    hutch: PolicyRemarks


class FirstSnapshot(TypedDict):
    """`Snapshot` with `sourceSandboxId`."""

    id: SnapshotId
    sourceSandboxId: Annotated[str, Field(pattern=r"^(sbx_[A-Za-z0-9]{1,64})?$")]
    sourceSandboxName: str
    region: str
    regions: list[str]
    status: Literal["created", "deleted", "failed"]
    sizeBytes: Bytes
    createdAt: Time
    updatedAt: Time
    lastUsedAt: Time
    creationMethod: Literal["manual", "automatic"]
    architecture: Architecture
    expiresAt: NotRequired[Time]
    parentId: NotRequired[SnapshotId]
    durableAt: NotRequired[Time]
    memoryBytes: NotRequired[Bytes]
    storedAt: NotRequired[Time]
    storeError: NotRequired[str]


class FirstSandboxStopped(TypedDict):
    sandbox: Session
    snapshot: NotRequired[FirstSnapshot]


class FirstSnapshotTaken(TypedDict):
    snapshot: FirstSnapshot
    sandbox: Session


class FirstSnapshotRead(TypedDict):
    snapshot: FirstSnapshot


class FirstSnapshotPage(TypedDict):
    snapshots: list[FirstSnapshot]
    pagination: FirstPagination


class FirstSnapshotNode(TypedDict):
    snapshot: FirstSnapshot
    siblings: list[FirstSnapshot]
    count: Annotated[str, Field(pattern=r"^[0-9]+\+?$")]


class FirstSnapshotTree(TypedDict):
    snapshots: list[FirstSnapshotNode]
    anchor: NotRequired[FirstSnapshotNode]
    pagination: FirstPagination


class FirstCommand(TypedDict):
    """`Command` with `sandboxId`."""

    id: CommandId
    name: str
    args: list[str]
    cwd: str
    sandboxId: SessionId
    exitCode: int | None
    startedAt: Time
    durationMs: NotRequired[Duration]


class FirstCommandRead(TypedDict):
    command: FirstCommand


class FirstCommandList(TypedDict):
    commands: list[FirstCommand]


FirstCommandRecord: TypeAlias = FirstCommandRead | Output | StreamError

FIRST_VERSION: dict[Any, Any] = {
    SandboxStarted: FirstSandboxRead,
    SessionRead: FirstSandboxRead,
    SessionPage: FirstSandboxPage,
    SessionExtended: FirstSandboxExtended,
    SessionPolicy: FirstSandboxPolicy,
    SessionStopped: FirstSandboxStopped,
    SnapshotTaken: FirstSnapshotTaken,
    SnapshotRead: FirstSnapshotRead,
    SnapshotPage: FirstSnapshotPage,
    SnapshotTree: FirstSnapshotTree,
    CommandRead: FirstCommandRead,
    CommandList: FirstCommandList,
    CommandRecord: FirstCommandRecord,
}
"""What the first API makes of an answer; all others are the same there."""

for _kind in list(globals().values()):
    if is_typeddict(_kind) and _kind.__module__ == __name__:
        # A field that is not declared is a mistake, and so is a number that is written as text.
        _kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
