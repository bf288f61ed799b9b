"""What the API answers. Times are integer milliseconds since the epoch, sizes bytes; unknown fields are ignored."""

from __future__ import annotations

import base64
import contextlib
from typing import Any, Protocol

import msgspec

Json = dict[str, Any]


class Sandbox(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A named sandbox. Totals sum over its finished sessions."""

    name: str
    current_session_id: str
    status: str
    persistent: bool
    current_snapshot_id: str | None = None
    created_at: int
    updated_at: int
    image: str = ""
    runtime: str = ""
    cwd: str = ""
    vcpus: int = 0
    memory: int = 0
    timeout: int = 0
    expires_at: int | None = None
    tags: dict[str, str] = {}
    network_policy: Json | None = None
    mounts: dict[str, dict[str, str]] = {}
    total_active_cpu_duration_ms: int | None = None
    total_duration_ms: int | None = None
    total_egress_bytes: int | None = None
    total_ingress_bytes: int | None = None
    region: str = ""
    status_updated_at: int | None = None
    snapshot_expiration: int | None = None
    keep_last_snapshots: Json | None = None
    budget: dict[str, int] | None = None
    isolation: str | None = None
    cgroup: str | None = None
    """Where its processes are counted: for administrators."""


class Session(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One run of a sandbox. Usage is there once it ended."""

    id: str
    status: str
    cwd: str
    timeout: int
    memory: int
    vcpus: int
    requested_at: int
    source_sandbox_name: str = ""
    source_snapshot_id: str | None = None
    region: str = ""
    started_at: int | None = None
    stopped_at: int | None = None
    stop_reason: str | None = None
    network_policy: Json | None = None
    duration: int | None = None
    active_cpu_duration_ms: int | None = None
    network_transfer: dict[str, int] | None = None


class Route(msgspec.Struct, frozen=True):
    url: str
    subdomain: str
    port: int


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox, its current session and its routes: the answer to create and get. `resumed`: this request began the session."""

    sandbox: Sandbox
    session: Session
    routes: list[Route] = []
    resumed: bool = False


class Updated(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox after a change."""

    sandbox: Sandbox
    routes: list[Route] = []


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    forks: list[Created]


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    session: Session
    sandbox: Sandbox | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Files that a session left, and its memory if it has `memory_bytes`. `expires_at` None: never; `durable_at`: since when it
    survives a power cut; `stored_at`: since when a copy is in the blob store, `store_error`: why it is not there yet."""

    id: str
    source_session_id: str
    source_sandbox_name: str
    status: str
    size_bytes: int
    created_at: int
    updated_at: int
    last_used_at: int
    creation_method: str
    parent_id: str | None = None
    expires_at: int | None = None
    durable_at: int | None = None
    memory_bytes: int = 0
    stored_at: int | None = None
    store_error: str | None = None


class SnapshotVerified(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A snapshot's copy in the blob store is whole, and, where `compared`, the same as the files on the machine."""

    snapshot_id: str
    manifest: str
    files: int
    bytes: int
    compared: bool


class SnapshotOnly(msgspec.Struct, frozen=True):
    snapshot: Snapshot


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: Snapshot
    session: Session


class SnapshotPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    snapshots: list[Snapshot]
    pagination: Pagination


class SnapshotNode(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot among those that came from the same one; `count` of them all, cut at 10 (`10+`)."""

    snapshot: Snapshot
    siblings: list[Snapshot]
    count: str


class SnapshotTree(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots one behind the other, the nearest to `anchor` first."""

    snapshots: list[SnapshotNode]
    anchor: SnapshotNode | None = None


class Drive(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A named file system of a project, and the session that has it read-write. `used_bytes` is only in the answer to a get."""

    id: str
    name: str
    project_id: str
    region: str
    max_size_bytes: int
    created_at: int
    updated_at: int
    used_bytes: int | None = None
    current_session_id: str | None = None
    current_sandbox_name: str | None = None
    parent_drive_id: str | None = None
    root_drive_id: str | None = None


class OneDrive(msgspec.Struct, frozen=True, kw_only=True):
    drive: Drive


class DrivePage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    drives: list[Drive]
    pagination: Pagination


class Command(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A process that was started. `exit_code` None while it runs."""

    id: str
    name: str
    args: list[str]
    cwd: str
    session_id: str
    started_at: int
    exit_code: int | None = None
    duration_ms: int | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    sandboxes: list[Sandbox]
    pagination: Pagination


class Pagination(msgspec.Struct, frozen=True):
    count: int
    next: str | None


class SessionPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `next` is the cursor of the following one."""

    sessions: list[Session]
    pagination: Pagination


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A team or project: id and slug."""

    id: str
    slug: str


class WhoMember(msgspec.Struct, frozen=True, kw_only=True):
    """The member whose token it is."""

    id: str
    identity: str
    name: str = ""
    email: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose token it is, and the server's version."""

    token_id: str
    role: str
    version: str
    team: Named | None = None
    project: Named | None = None
    permissions: list[str] = []
    member: WhoMember | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """A server that can start sandboxes: `isolation` is what they run in."""

    status: str
    isolation: str
    version: str


class Quantities(msgspec.Struct, frozen=True, kw_only=True):
    """What was used. CPU and wall time in microseconds, memory, disk and snapshots in byte-seconds; `startup_cpu_us` and
    `gateway_cpu_us` cost nothing."""

    active_cpu_us: int
    startup_cpu_us: int
    wall_us: int
    memory_byte_seconds: int
    memory_peak_bytes: int
    ingress_bytes: int
    egress_bytes: int
    snapshot_byte_seconds: int
    creations: int
    gateway_cpu_us: int = 0
    disk_byte_seconds: int = 0
    disk_peak_bytes: int = 0


class RuleUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Payload that passed the gateway under one rule; None: without one, `*`: those that are too many."""

    rule: str | None
    sent_bytes: int
    received_bytes: int
    connections: int
    requests: int


class Usage(Quantities, frozen=True, kw_only=True):
    """What a sandbox used until now, in all when `final`, and what that costs in nano-units of the currency."""

    final: bool
    amount_nano: int
    currency: str
    price_table: str
    network: list[RuleUsage] = []


class ReceiptKey(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    public_key: str


class ReceiptKeys(msgspec.Struct, frozen=True, kw_only=True):
    keys: list[ReceiptKey]

    def raw(self) -> dict[str, bytes]:
        """The public keys by id. One that is none is left out: it verifies nothing."""
        found = {}
        for key in self.keys:
            with contextlib.suppress(ValueError):
                found[key.key_id] = base64.urlsafe_b64decode(key.public_key + "=" * (-len(key.public_key) % 4))
        return found


class UsageGroup(msgspec.Struct, frozen=True, kw_only=True):
    key: str | None
    usage: Quantities
    amount_nano: int
    sandbox_id: str | None = None


class UsageReport(msgspec.Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """What a project or team used from `start` to `end` (milliseconds since 1970)."""

    start: int
    end: int
    groups: list[UsageGroup]
    total: Quantities
    amount_nano: int
    currency: str
    price_table: str


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where a budget's events are sent: scheme, host and port. `secret`, with which they are signed, is only in the answer to the
    request that set it."""

    origin: str
    secret: str | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a period, what is spent in the one that lasts now, and what counts now (`concurrency` and so on). `soft` limits
    stop nothing; they and the percentages `notify_at` make events."""

    period: str
    limits: dict[str, int]
    spent: Quantities
    spent_money_nano: int
    counts: dict[str, int] = {}
    notify_at: list[int] = []
    soft: dict[str, int] = {}
    webhook: Webhook | None = None


class BudgetList(msgspec.Struct, frozen=True, kw_only=True):
    budgets: list[Budget]


class BudgetOf(msgspec.Struct, frozen=True, kw_only=True):
    """Whose budget: `of` is `team`, `project` or `sandbox`; `span` the day or month in UTC, empty for all time."""

    of: str
    id: str
    period: str
    span: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How far a webhook is: `none`, `pending`, `delivered` or `given_up`."""

    state: str
    attempts: int
    failure: str | None = None


class BudgetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`percent` of the limit `bound` was reached: `budget.threshold`, `budget.soft_limit` or `budget.exceeded`."""

    seq: int
    id: str
    type: str
    at: int
    team_id: str
    budget: BudgetOf
    limit: str
    bound: int
    percent: int
    used: int
    session_ids: list[str]
    delivery: Delivery
    project_id: str | None = None


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first; `next` is what to ask for events after."""

    events: list[BudgetEvent]
    next: int


class Paged(Protocol):
    """A page of whatever list."""

    @property
    def pagination(self) -> Pagination: ...


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is listed; `token` itself is only in the answer to its creation."""

    id: str
    team_id: str
    role: str
    created_at: int
    expires_at: int
    project_id: str | None = None
    name: str = ""
    revoked: bool = False
    member_id: str | None = None
    scopes: list[str] | None = None
    use_count: int = 0
    last_used_at: int | None = None
    last_used_address: str | None = None
    token: str | None = None


class BegunLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A login that waits for somebody at `url`. `code` is what it is ended with, where it was begun without a port."""

    url: str
    expires_at: int
    user_code: str = ""
    code: str = ""
    interval_s: int = 3


class EndedLogin(msgspec.Struct, frozen=True, kw_only=True):
    """What a login gave; no `token`: nobody has decided yet. `project` is the one to begin with."""

    token: str = ""
    id: str = ""
    role: str = ""
    expires_at: int = 0
    project_id: str | None = None
    team: Named | None = None
    project: Named | None = None
    identity: str = ""
    email: str = ""
    ingress_url: str = ""
    interval_s: int = 3

    def __repr__(self) -> str:
        # Never the token.
        return f"EndedLogin({self.id!r}, {self.identity!r})"


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """A team. Its id stays when it is renamed."""

    id: str
    slug: str
    created_at: int


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project of a team."""

    id: str
    team_id: str
    slug: str
    created_at: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Who belongs to a team. `identity` is an address, or issuer and subject of a provider. `by_provider`: its claims say
    what the role is."""

    id: str
    team_id: str
    identity: str
    role: str
    created_at: int
    name: str = ""
    email: str = ""
    by_provider: bool = False
    last_login_at: int | None = None
    disabled: bool = False
    disabled_at: int | None = None


class LogHead(msgspec.Struct, frozen=True, kw_only=True):
    """The last entry of an audit log; `seq` 0: none."""

    seq: int
    hash: str


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of a team's audit log as they are kept, and where to read on."""

    entries: list[dict[str, Any]]
    next: int
    head: LogHead


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A stored credential as it is listed: without its value."""

    name: str
    created_at: int
    updated_at: int


class Worker(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A worker. `space_id` is its project; times are ISO 8601."""

    worker_id: str
    name: str
    space_id: str
    created_at: str
    updated_at: str


class WorkerRun(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One execution of a worker; `ended_at` and `exit_code` None while it goes on."""

    worker_id: str
    space_id: str
    run_id: str
    name: str
    started_at: str
    ended_at: str | None = None
    exit_code: int | None = None


class WorkerTool(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A tool of a worker. `name` is what agents call it by; `confirm`: a person agrees to each call over MCP."""

    key: str
    name: str
    title: str
    description: str
    read_only: bool
    enabled: bool
    confirm: bool
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None


class Destinations(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a worker reaches: names (patterns), ranges of addresses, and whether plain HTTP is spoken to the names."""

    allow: list[str] = []
    subnets: list[str] = []
    plaintext_http: bool = False


class RefusedDestination(msgspec.Struct, frozen=True, kw_only=True):
    """A name or an address that runs did not reach, the code of the reason, and how often."""

    name: str
    reason: str
    count: int


class LearnedDestinations(msgspec.Struct, frozen=True, kw_only=True):
    """What runs used since a time in milliseconds."""

    since: int
    runs: int
    network: Destinations


class WaitingDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment that reaches more than the one that serves, until somebody agrees."""

    deployment: str
    added: list[str]
    removed: list[str]


class WorkerNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker may connect to and where its last `runs` did. `outside`: what of it the bounds don't allow."""

    mode: str
    allowed: Destinations
    outside: list[str]
    used: Destinations
    refused: list[RefusedDestination]
    runs: int
    review: bool
    declared: Destinations | None = None
    learned: LearnedDestinations | None = None
    waiting: WaitingDeployment | None = None


class WorkerSync(msgspec.Struct, frozen=True, kw_only=True):
    """A sync: how it does (`label`), whether it runs now, when it runs next (ms since 1970), and what it did (`stats`)."""

    key: str
    label: str
    executing: bool
    paused: bool
    mode: str
    schedule: dict[str, Any]
    failures: int
    stats: dict[str, Any]
    warnings: list[str]
    schedule_from: str = "deployment"
    database: str | None = None
    next_run_at: int | None = None
    last_error: str | None = None


class SyncPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a sync returned. Nothing was written."""

    changes: list[Any]
    has_more: bool
    next_context: Any = None


class WorkerDatabase(msgspec.Struct, frozen=True, kw_only=True):
    """A database that syncs write to; `declared`: the deployment that serves has it."""

    key: str
    title: str
    declared: bool
    primary_key: str
    rows: int
    properties: dict[str, Any]


class WorkerDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A worker with what it can do. Times are milliseconds since 1970."""

    id: str
    name: str
    project_id: str
    created_at: int
    updated_at: int
    capabilities: list[dict[str, Any]]
    syncs: list[WorkerSync]
    databases: list[WorkerDatabase]
    webhook_urls: list[dict[str, str]] = []
    deployment_id: str | None = None


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a database, with plain values."""

    key: str
    properties: dict[str, Any]
    updated_at: int
    icon: dict[str, Any] | None = None
    cover: dict[str, Any] | None = None
    markdown: str | None = None


class WorkerRowPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is the `after` of the next page, None on the last one."""

    rows: list[WorkerRow]
    next: str | None


class NotionTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database is mirrored to. `mirrored`, `waiting` and `failed` are numbers of rows; `stopped`: nothing is tried until
    it is set anew."""

    parent: dict[str, str]
    base_url: str
    database_id: str | None = None
    data_source_id: str
    stopped: bool
    mirrored: int
    waiting: int
    failed: int
    last_success_at: int | None = None
    last_error: str | None = None
    warnings: list[str]


class WorkerWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook. Whoever knows its `url` may call it. `verification`: its `verify` is used; `blocked`: too many failed."""

    key: str
    url: str
    can_verify: bool
    verification: bool
    failures: int
    blocked: bool


class WorkerRunDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A run with its input, output, log, the phases of its time, and what it cost."""

    id: str
    name: str
    deployment_id: str
    started_at: int
    phases: dict[str, int]
    logs: str
    ended_at: int | None = None
    exit_code: int | None = None
    job_id: str | None = None
    session_id: str | None = None
    input: Any = None
    output: Any = None
    cost: dict[str, Any] | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox can start from. `source` is where it came from; "" for the server's own."""

    name: str
    aliases: list[str]
    digest: str
    size_bytes: int
    user: str
    home: str
    cwd: str
    layers: list[Json] = []
    source: str = ""
    shared: bool = True
    pulled_at: int | None = None
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    cmd: list[str] = []
    entrypoint: list[str] = []


class BoundsSet(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A policy of a team or project that was set; `hutch` has `warnings`, and what came of it for running sandboxes."""

    network_policy: Json
    hutch: Json


class AuditRecords(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a sandbox's audit, oldest first; `next` is where to read on."""

    records: list[Json]
    next: int


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Payload from the sandbox and to it, as its gateway counts it."""

    up: int
    down: int


class InterfaceBytes(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox's interface carried from it and to it, as the kernel counts it: with headers and refused packets."""

    egress: int
    ingress: int


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one name or rule."""

    connections: int
    requests: int
    denied: int
    injected: int
    up: int
    down: int


class NameTally(Tally, frozen=True, kw_only=True):
    """Counters of a name or address; `*` for all that have no line of their own."""

    name: str


class RuleTally(Tally, frozen=True, kw_only=True):
    """Counters of a rule by its id; `*` for all that have no line of their own."""

    rule: str


class Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What passed for a session; names and rules with the most bytes first."""

    session_id: str
    payload: Bytes
    interface: InterfaceBytes
    flows: int
    names: list[NameTally]
    rules: list[RuleTally]


class Terminal(msgspec.Struct, frozen=True):
    """Where a terminal's WebSocket is; the token is good for one connection."""

    url: str
    token: str
