"""What sandboxes used and what it costs: live and final totals, signed receipts, and sums by day, sandbox, worker or tag."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.commands import call, known_command
from hutch.api.responses import JsonResponse
from hutch.api.routing import Answer, PlainRoute, documented
from hutch.api.sandboxes import find, scope_of
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import BadRequestError, InternalError, NotFoundError
from hutch.host.protocol import OTHER_RULES, WITHOUT_RULE, CommandRef, CommandUsage, RuleTraffic, SessionRef, SessionUsage
from hutch.metering import receipts
from hutch.metering.quantities import Quantities
from hutch.storage import usage as rows
from hutch.storage.sealing import read_or_create
from hutch.storage.usage import DAY_MS

router = APIRouter(route_class=PlainRoute, tags=["usage"])

MAX_DAYS = 400
MAX_RULES = 1000
GROUPS = ("day", "sandbox", "worker", "tag")
_MILLISECONDS = re.compile(r"[0-9]{1,14}")
_LATEST_MS = 32_503_680_000_000


class ReceiptSigner:
    """The key of receipts in a private file, made on first use. Raises `InternalError` for a file that is something else."""

    def __init__(self, path: Path) -> None:
        key = load_pem_private_key(read_or_create(path, _new_key), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InternalError("signing_key_unusable", f"The file {path.name} does not hold an Ed25519 key.")
        self.key = key
        self.public = key.public_key().public_bytes_raw()
        self.key_id = receipts.key_id(self.public)


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True)
class Used:
    """What something used, and whether that is all it ever will."""

    quantities: Quantities
    final: bool
    network: dict[str, RuleTraffic] = field(default_factory=dict)


# -- one sandbox -------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/sandboxes/{name}/usage",
    openapi_extra=documented(query={"projectId": "Id or slug"}, answer=answers.Usage, needs=Permission.USAGE_READ),
)
async def read_usage(request: Request, name: str) -> Response:
    """What a sandbox used in all its sessions until now."""
    services = services_of(request)
    scope = await scope_of(request, services)
    used = await _of_sandbox(services, scope, (await find(services, scope, name)).id)
    return JsonResponse(_priced(services, used) | {"network": _by_rule(used.network)})


@router.get(
    "/hutch/v1/sandboxes/{name}/receipt",
    openapi_extra=documented(query={"projectId": "Id or slug"}, answer=answers.Receipt, needs=Permission.USAGE_READ),
)
async def read_receipt(request: Request, name: str) -> Response:
    """A signed receipt of what a sandbox used in all its sessions until now."""
    services = services_of(request)
    scope = await scope_of(request, services)
    sandbox = await find(services, scope, name)
    used = await _of_sandbox(services, scope, sandbox.id)
    subject = {"kind": "sandbox", "team_id": sandbox.team_id, "project_id": sandbox.project_id}
    return _receipt(services, subject | {"sandbox": name, "sandbox_id": sandbox.id, "final": used.final}, used)


@router.get(
    "/hutch/v1/sessions/{session_id}/receipt",
    openapi_extra=documented(answer=answers.Receipt, errors=(404,), needs=Permission.USAGE_READ),
)
async def read_session_receipt(request: Request, session_id: str) -> Response:
    """A signed receipt of what one session used until now, or in all; also when its sandbox is deleted."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    used = await of_session(services, owner.scope, session_id)
    subject = {"kind": "session", "team_id": owner.team_id, "project_id": owner.project_id}
    return _receipt(services, subject | {"session_id": session_id, "final": used.final}, used)


@router.get(
    "/hutch/v1/sessions/{session_id}/commands/{command_id}/receipt",
    openapi_extra=documented(answer=answers.Receipt, errors=(404,), needs=Permission.USAGE_READ),
)
async def read_command_receipt(request: Request, session_id: str, command_id: str) -> Response:
    """A signed receipt of what a session used while one command ran, until a day after the session's end. `overlapped` in its
    subject says that other commands ran meanwhile, and that what they used is in it too."""
    services = services_of(request)
    owner = await services.auth.session(request, session_id)
    used = await call(services, "usage.command", CommandRef(session_id, known_command(command_id)), CommandUsage)
    subject = {
        "kind": "command",
        "team_id": owner.team_id,
        "project_id": owner.project_id,
        "session_id": session_id,
        "command_id": command_id,
        "overlapped": used.overlapped,
        "final": used.final,
    }
    return _receipt(services, subject, Used(used.quantities, used.final))


@router.get("/hutch/v1/receipt-keys", openapi_extra=documented(public=True, answer=answers.ReceiptKeys))
async def receipt_keys(request: Request) -> Response:
    """The keys that verify this server's receipts."""
    signer = _signer(services_of(request))
    public = base64.urlsafe_b64encode(signer.public).decode().rstrip("=")
    return JsonResponse({"keys": [{"key_id": signer.key_id, "algorithm": "Ed25519", "public_key": public}]})


@router.get("/hutch/v1/price-table", openapi_extra=documented(answer=answers.PriceTable, needs=Permission.USAGE_READ))
async def read_prices(request: Request) -> Response:
    """The prices that amounts and receipts are computed with."""
    services = services_of(request)
    await services.auth.principal(request)
    return JsonResponse(msgspec.to_builtins(services.prices))


def _signer(services: Services) -> ReceiptSigner:
    assert services.receipts is not None
    return services.receipts


def _receipt(services: Services, subject: dict[str, Any], used: Used) -> Response:
    key = _signer(services).key
    return JsonResponse(receipts.issue(subject, used.quantities, services.prices, services.clock(), key))


def _priced(services: Services, used: Used) -> dict[str, Any]:
    table = services.prices
    quantities: dict[str, Any] = msgspec.to_builtins(used.quantities)
    return quantities | {
        "overhead_cpu_us": used.quantities.startup_cpu_us + used.quantities.gateway_cpu_us,
        "final": used.final,
        "amount_nano": table.amount_nano(used.quantities),
        "currency": table.currency,
        "price_table": table.version,
    }


async def of_session(services: Services, scope: Scope, session_id: str) -> Used:
    async with services.database.read() as connection:
        quantities, final = await rows.of_session(connection, scope, session_id)
    if not final and (live := await _live(services, session_id)) is not None:
        return Used(live.quantities, live.final)
    return Used(quantities, final)


async def _of_sandbox(services: Services, scope: Scope, sandbox_id: str) -> Used:
    """The windows of its ended sessions, what the host says of the others, and its snapshots."""
    async with services.database.read() as connection:
        unfinished = await rows.unfinished(connection, scope, sandbox_id)
    live = {session_id: await _live(services, session_id) for session_id in unfinished}
    # Of those the host has more than the database; a window that comes meanwhile must not count twice.
    known = {session_id: usage for session_id, usage in live.items() if usage is not None}
    now = services.clock()
    async with services.database.read() as connection:
        quantities = await rows.of_sandbox(connection, scope, sandbox_id, without=known)
        network = await rows.network_of_sandbox(connection, scope, sandbox_id, without=known)
        kept = await rows.stored(connection, scope, 0, now, sandbox_id)
    for usage in known.values():
        quantities += usage.quantities
        for rule, traffic in usage.network.items():
            network[rule] = network.get(rule, RuleTraffic()) + traffic
    quantities += Quantities(snapshot_byte_seconds=sum(snapshot.byte_seconds(0, now) for snapshot in kept))
    final = all(usage.final for usage in known.values()) and all(snapshot.to_ms is not None for snapshot in kept)
    return Used(quantities, final, network)


def _by_rule(network: dict[str, RuleTraffic]) -> list[dict[str, Any]]:
    """Those with the most bytes first, what passed without a rule as null, and all beyond `MAX_RULES` lines as `*`."""
    others = network.get(OTHER_RULES, RuleTraffic())
    named = [(rule, traffic) for rule, traffic in network.items() if rule != OTHER_RULES]
    named.sort(key=lambda line: (-line[1].sent_bytes - line[1].received_bytes, line[0]))
    others = sum((traffic for _, traffic in named[MAX_RULES:]), others)
    lines = named[:MAX_RULES] + ([(OTHER_RULES, others)] if others != RuleTraffic() else [])
    return [{"rule": None if rule == WITHOUT_RULE else rule, **msgspec.to_builtins(traffic)} for rule, traffic in lines]


async def _live(services: Services, session_id: str) -> SessionUsage | None:
    """What the host says; None when it knows the session no more."""
    try:
        return await services.host.call("usage.read", SessionRef(session_id), SessionUsage)
    except NotFoundError:
        return None


# -- many --------------------------------------------------------------------------------------------

_REPORT = {
    "from": "Milliseconds since 1970, or a date or time of ISO 8601 (UTC unless it says otherwise); default: 30 days before `to`",
    "to": "likewise, exclusive; default: now",
    "group_by": f"{', '.join(GROUPS)}; default day",
    "tag": "the tag's key, with group_by=tag",
    "project": "Id or slug; default: the token's, or all of the team",
    "format": "json (default), csv or focus (CSV by the FinOps FOCUS 1.0 columns)",
}


@router.get(
    "/hutch/v1/usage",
    openapi_extra=documented(
        query=_REPORT, answer=answers.UsageReport, more=(Answer(200, "text/csv", None),), needs=Permission.USAGE_READ
    ),
)
async def report(request: Request) -> Response:
    """What a project or team used in a time, by closed windows: those of running sandboxes are at most a minute behind."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = request.query_params.get("project") or request.query_params.get("projectId")
    scope = await services.auth.scope(request, principal, project, one=False)
    now = services.clock()
    to_ms = _time(request, "to", now)
    from_ms = _time(request, "from", max(0, to_ms - 30 * DAY_MS))
    if not 0 <= to_ms - from_ms <= MAX_DAYS * DAY_MS:
        raise BadRequestError("bad_request", f"Invalid request: `from` should be before `to`, by at most {MAX_DAYS} days.")
    by = paging.choice(request, "group_by", "day", GROUPS)
    kind = paging.choice(request, "format", "json", ("json", "csv", "focus"))
    tag = paging.text(request, "tag", 256)
    if (by == "tag") != (tag is not None):
        raise BadRequestError("bad_request", "Invalid request: `tag` belongs to `group_by=tag`, and is needed there.")
    groups = await _groups(services, scope, from_ms, to_ms, by, tag)
    if kind == "csv":
        return _csv(_plain_csv(services, groups), f"usage-by-{by}")
    if kind == "focus":
        return _csv(_focus(services, scope, groups, from_ms, to_ms), f"focus-by-{by}")
    total = sum((group.quantities for group in groups), Quantities())
    table = services.prices
    return JsonResponse(
        {
            "from": from_ms,
            "to": to_ms,
            "groups": [
                {"key": group.key or None, "usage": msgspec.to_builtins(group.quantities)}
                | ({"sandbox_id": group.sandbox_id} if group.sandbox_id is not None else {})
                | {"amount_nano": table.amount_nano(group.quantities)}
                for group in groups
            ],
            "total": msgspec.to_builtins(total),
            "amount_nano": table.amount_nano(total),
            "currency": table.currency,
            "price_table": table.version,
        }
    )


async def _groups(services: Services, scope: Scope, from_ms: int, to_ms: int, by: str, tag: str | None) -> list[rows.Group]:
    if by == "worker":
        async with services.database.read() as connection:
            workers = await rows.by_worker(connection, scope, from_ms, to_ms)
        return [rows.Group(worker, None, quantities) for worker, quantities in sorted(workers.items())]
    now = min(to_ms, services.clock())
    async with services.database.read() as connection:
        kept = await rows.stored(connection, scope, from_ms, now)
        if by == "day":
            days = await rows.by_day(connection, scope, from_ms, to_ms)
            for day in range(from_ms // DAY_MS, now // DAY_MS + 1) if kept else ():
                held = Quantities(snapshot_byte_seconds=sum(_within_day(one, day, from_ms, now) for one in kept))
                if held != Quantities():
                    days[day] = days.get(day, Quantities()) + held
            return [rows.Group(_date(day), None, quantities) for day, quantities in sorted(days.items())]
        found = await rows.by_sandbox(connection, scope, from_ms, to_ms)
        for one in kept:
            name, quantities = found.get(one.sandbox_id, (one.sandbox_name, Quantities()))
            found[one.sandbox_id] = (
                name,
                quantities + Quantities(snapshot_byte_seconds=one.byte_seconds(from_ms, now)),
            )
        values = await rows.tag_values(connection, found, tag) if tag is not None else {}
    if tag is None:
        groups = [rows.Group(name, sandbox_id, quantities) for sandbox_id, (name, quantities) in found.items()]
        return sorted(groups, key=lambda group: (group.key, group.sandbox_id or ""))
    sums: defaultdict[str, Quantities] = defaultdict(Quantities)
    for sandbox_id, (_, quantities) in found.items():
        sums[values.get(sandbox_id, "")] += quantities
    return [rows.Group(value, None, quantities) for value, quantities in sorted(sums.items())]


def _within_day(one: rows.Stored, day: int, from_ms: int, to_ms: int) -> int:
    return one.byte_seconds(max(day * DAY_MS, from_ms), min((day + 1) * DAY_MS, to_ms))


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()


def _time(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if not text:
        return default
    try:
        if _MILLISECONDS.fullmatch(text):
            found = int(text)
        else:
            moment = datetime.fromisoformat(text)
            found = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise _no_time(name) from error
    if not 0 <= found <= _LATEST_MS:
        raise _no_time(name)
    return found


def _no_time(name: str) -> BadRequestError:
    return BadRequestError("bad_request", f"Invalid request: `{name}` should be milliseconds since 1970 or a date of ISO 8601.")


# -- exports -----------------------------------------------------------------------------------------

UNITS = {
    "active_cpu_us": ("Active CPU", "Microseconds", "Compute"),
    "memory_byte_seconds": ("Memory held", "Byte-Seconds", "Compute"),
    "ingress_bytes": ("Data received", "Bytes", "Networking"),
    "egress_bytes": ("Data sent", "Bytes", "Networking"),
    "snapshot_byte_seconds": ("Snapshot storage", "Byte-Seconds", "Storage"),
    "creations": ("Creations", "Count", "Compute"),
    "disk_byte_seconds": ("Disk held", "Byte-Seconds", "Storage"),
}
"""What a bill calls each dimension, its unit, and the FOCUS service category."""


def _plain_csv(services: Services, groups: list[rows.Group]) -> list[Mapping[str, object]]:
    table = services.prices
    return [
        {"key": group.key, "sandbox_id": group.sandbox_id or ""}
        | msgspec.to_builtins(group.quantities)
        | {"amount_nano": table.amount_nano(group.quantities), "currency": table.currency, "price_table": table.version}
        for group in groups
    ]


def _focus(services: Services, scope: Scope, groups: list[rows.Group], from_ms: int, to_ms: int) -> list[Mapping[str, object]]:
    """One row for each line of each group, by the columns of FOCUS 1.0 that a provider of one service can fill."""
    table = services.prices
    found: list[Mapping[str, object]] = []
    for group in groups:
        for line in table.lines(group.quantities):
            name, unit, category = UNITS[line.dimension]
            cost = _decimal(line.amount_nano)
            found.append(
                {
                    "BilledCost": cost,
                    "BillingAccountId": scope.team_id,
                    "BillingCurrency": table.currency,
                    "BillingPeriodStart": _instant(from_ms),
                    "BillingPeriodEnd": _instant(to_ms),
                    "ChargeCategory": "Usage",
                    "ChargeDescription": name,
                    "ChargePeriodStart": _instant(from_ms),
                    "ChargePeriodEnd": _instant(to_ms),
                    "ConsumedQuantity": line.quantity,
                    "ConsumedUnit": unit,
                    "ContractedCost": cost,
                    "EffectiveCost": cost,
                    "ListCost": cost,
                    "ProviderName": "Hutch",
                    "PublisherName": "Hutch",
                    "ResourceId": group.sandbox_id or group.key,
                    "ResourceName": group.key,
                    "ServiceCategory": category,
                    "ServiceName": "Hutch Sandbox",
                    "SkuId": line.dimension,
                    "SkuPriceId": f"{table.version}/{line.dimension}",
                    "SubAccountId": scope.project_id or "",
                }
            )
    return found


def _decimal(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09d}"


def _instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _csv(lines: list[Mapping[str, object]], name: str) -> Response:
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({column: _cell(value) for column, value in line.items()} for line in lines)
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object) -> object:
    """Spreadsheets compute what begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
