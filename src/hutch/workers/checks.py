"""What of a well-formed manifest can't be meant: found when it is deployed, and not in a run at night.

Each problem names the key that it is about and says what to fix. An error refuses the deployment, and the old one goes on; a
warning is shown. The SDK looks at some of this itself; an old or changed one may not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from zoneinfo import available_timezones

import msgspec

from hutch.errors import BadRequestError
from hutch.workers import credentials, tool_schemas
from hutch.workers.manifest import (
    MAX_KEY,
    MINUTE_MS,
    AiConnector,
    Capability,
    Database,
    Layout,
    Manifest,
    Mode,
    OAuth,
    Property,
    Schedule,
    Sync,
    Tool,
    invalid,
)
from hutch.workers.reading import shown

MIN_INTERVAL_MS = MINUTE_MS
MAX_INTERVAL_MS = 7 * 24 * 60 * MINUTE_MS
MAX_PROPERTIES = 500
MAX_OPTIONS = 1000
MAX_PROBLEMS = 50
MAX_EXPRESSION = 128
PROPERTY_TYPES = frozenset(
    "title text url email phone_number checkbox file people place number date select multi_select status relation".split()
)
ROW_KEY = "_key"
"""The property that rows of XLDBs and records of AI connectors are found by."""
GROUPS = frozenset({"To-do", "In progress", "Complete"})
NUMBER_FORMATS = frozenset("number number_with_commas percent dollar euro pound yen rupee won yuan".split())
DATE_FORMATS = frozenset({"relative", "MM/DD/YYYY", "DD/MM/YYYY", "YYYY/MM/DD", "ll", "MMM d"})
COLORS = frozenset("default gray brown orange yellow green blue purple pink red".split())
COLUMN_TYPES = frozenset(
    "text number checkbox date timestamp json select multi_select "
    "array_text array_number array_checkbox array_date array_timestamp".split()
)
KEY_COLUMN_TYPES = frozenset("text number checkbox date timestamp select".split())


class Problem(msgspec.Struct, frozen=True):
    """Something to fix. `key` is that of the capability or resource."""

    key: str
    message: str
    error: bool = True


def check(manifest: Manifest) -> list[Problem]:
    """The warnings. Raises `BadRequestError` (`worker_manifest_invalid`) with all errors in `details.problems`."""
    found = problems(manifest)
    errors = [problem for problem in found if problem.error]
    if errors:
        raise _refused(errors)
    return found


def _refused(errors: list[Problem]) -> BadRequestError:
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return invalid(f"{errors[0].message.removesuffix('.')}{more}", {"problems": msgspec.to_builtins(errors)})


def problems(manifest: Manifest) -> list[Problem]:
    """Everything that is wrong, errors first, at most `MAX_PROBLEMS`."""
    found: list[Problem] = []
    for problem in _all(manifest):
        if problem not in found:
            found.append(problem)
        if len(found) >= MAX_PROBLEMS * 4:
            break
    return sorted(found, key=lambda problem: not problem.error)[:MAX_PROBLEMS]


def _all(manifest: Manifest) -> Iterator[Problem]:
    yield from _namespace(manifest)
    for key, message in credentials.problems(manifest.credentials):
        yield Problem(key, message)
    databases = {item.key: item for item in manifest.databases}
    for database in manifest.databases:
        for message in _wrong_database(databases, database):
            yield Problem(database.key, f"Database {shown(database.key)}: {message}")
    for key, message in _wrong_relations(databases):
        yield Problem(key, f"Database {shown(key)}: {message}")
    yield from _xldbs(manifest)
    for pacer in manifest.pacers:
        if not (pacer.allowed_requests >= 1 and 1 <= pacer.interval_ms <= MAX_INTERVAL_MS):
            message = f"allowedRequests should be 1 or more, and intervalMs 1 to {MAX_INTERVAL_MS}."
            yield Problem(pacer.key, f"Pacer {shown(pacer.key)}: {message}")
    for item in manifest.capabilities:
        yield from _capability(manifest, item)


def _namespace(manifest: Manifest) -> Iterator[Problem]:
    alpha = manifest.layout is Layout.ALPHA
    keys = [f"{item.tag}/{item.key}" if alpha else item.key for item in manifest.capabilities]
    for group in (manifest.databases, manifest.xldbs, manifest.pacers, manifest.credentials):
        keys += [item.key for item in group]
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            yield Problem(key, f"Worker item with key {shown(key, MAX_KEY)} is registered twice; give one of them another key.")
        seen.add(key)


def _capability(manifest: Manifest, item: Capability) -> Iterator[Problem]:
    subject = f"{item.tag} {shown(item.key)}"
    config = item.config
    if isinstance(config, Sync):
        for message in _wrong_sync(manifest, config):
            yield Problem(item.key, f"{subject}: {message}")
    if isinstance(config, Sync | AiConnector) and config.schedule:
        for message in wrong_schedule(config.schedule):
            yield Problem(item.key, f"{subject}: {message}")
    if isinstance(config, AiConnector) and (config.archetype not in {"chat", "project"} or config.mode is Mode.REPLACE):
        yield Problem(item.key, f"{subject}: its archetype should be chat or project, its mode incremental.")
    if isinstance(config, Tool):
        schemas = [("schema", config.schema)]
        if config.output_schema is not None:
            schemas.append(("outputSchema", config.output_schema))
        for name, schema in schemas:
            for error, message in tool_schemas.problems(schema, name):
                yield Problem(item.key, f"{subject}: {message}", error)
    if isinstance(config, OAuth):
        for message in _wrong_oauth(config):
            yield Problem(item.key, f"{subject}: {message}")


def wrong_schedule(schedule: Schedule) -> Iterator[str]:
    """What is wrong with a schedule, as sentences."""
    from hutch.workers.schedule import wrong_expression

    if schedule.type == "interval":
        interval = schedule.interval_ms
        if interval is None or not MIN_INTERVAL_MS <= interval <= MAX_INTERVAL_MS:
            yield f"its schedule should be 1 minute to 7 days (intervalMs {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS})."
    if schedule.type == "cron":
        wrong = wrong_expression(schedule.expression or "")
        if wrong:
            yield f"its schedule {wrong}."
        if schedule.time_zone is not None and schedule.time_zone not in available_timezones():
            yield f"the time zone {shown(schedule.time_zone)} of its schedule is not known; use a name such as Europe/Berlin."


def _wrong_sync(manifest: Manifest, sync: Sync) -> Iterator[str]:
    if sync.target is not None:
        known = {item.key for item in (manifest.xldbs if sync.target.type == "xldb" else manifest.databases)}
        if sync.target.key not in known:
            yield f"it writes to {shown(sync.target.key)}, which is not declared."
        return
    if sync.database_key is None:
        yield "it should name the database that it writes to (databaseKey)."
        return
    database = manifest.database(sync.database_key)
    if database is None:
        yield f"it writes to the database {shown(sync.database_key)}, which is not declared; declare it with worker.database."
    elif sync.primary_key_property not in {None, database.primary_key_property}:
        yield (
            f"its primaryKeyProperty is {shown(sync.primary_key_property or '')}, "
            f"that of its database {shown(database.primary_key_property)}."
        )


def _wrong_oauth(config: OAuth) -> Iterator[str]:
    if not config.name or len(config.name) > MAX_KEY:
        yield f"its name should have 1 to {MAX_KEY} characters."
    if config.access_token_expire_ms is not None and config.access_token_expire_ms <= 0:
        yield "accessTokenExpireMs should be more than 0."
    if config.type == "notion_managed":
        if not config.provider:
            yield "it should name its provider."
        return
    for name, address in (("authorizationEndpoint", config.authorization_endpoint), ("tokenEndpoint", config.token_endpoint)):
        if not address or not _is_address(address):
            yield f"{name} should be an address that begins with https://, without a password in it."
    if config.callback_url is not None and not _is_address(config.callback_url):
        yield "callbackUrl should be an address that begins with https://, without a password in it."
    for name, value in (("clientId", config.client_id), ("clientSecret", config.client_secret)):
        if value is None:
            # Before the secrets are set, `process.env.X` is undefined: the documented order is deploy, set, deploy again.
            continue
        if any(ord(letter) < 0x20 for letter in value):
            yield f"{name} has control characters."


def _is_address(address: str) -> bool:
    from hutch.workers.oauth import is_endpoint

    return is_endpoint(address)


def _wrong_database(databases: Mapping[str, Database], database: Database) -> Iterator[str]:
    properties = database.schema.properties
    if database.type not in {"managed", "attached"}:
        yield f"its type is {shown(database.type)}; there are managed and attached."
    if len(properties) > MAX_PROPERTIES:
        yield f"it has {len(properties)} properties; there may be {MAX_PROPERTIES}."
    titles = [name for name, item in properties.items() if item.type == "title"]
    if len(titles) != 1:
        names = f" ({', '.join(shown(name) for name in titles[:4])})" if titles else ""
        yield f"it should have exactly one title property, not {len(titles)}{names}."
    if database.primary_key_property not in properties:
        yield f"its primaryKeyProperty {shown(database.primary_key_property)} is not declared; add it to the properties."
    elif properties[database.primary_key_property].type not in {"title", "text", "url", "email", "phone_number", "number"}:
        yield f"its primaryKeyProperty {shown(database.primary_key_property)} should be a title, text or number."
    for name, item in properties.items():
        if not name or len(name) > MAX_KEY:
            yield f"the property {shown(name)} should have a name of 1 to {MAX_KEY} characters."
        for message in _wrong_property(databases, item):
            yield f"the property {shown(name)} {message}."
    sub_items = database.schema.sub_items
    if sub_items is not None and sub_items.parent_property_name == sub_items.child_property_name:
        yield "subItems should have two different names."


def _wrong_property(databases: Mapping[str, Database], item: Property) -> Iterator[str]:
    if item.type not in PROPERTY_TYPES:
        yield f"has the type {shown(item.type)}; there are {', '.join(sorted(PROPERTY_TYPES))}"
    if item.type == "number" and item.format is not None and item.format not in NUMBER_FORMATS:
        yield f"has the format {shown(item.format)}; there are {', '.join(sorted(NUMBER_FORMATS))}"
    if item.type == "date" and item.date_format is not None and item.date_format not in DATE_FORMATS:
        yield f"has the format {shown(item.date_format)}; there are {', '.join(sorted(DATE_FORMATS))}"
    if item.type in {"select", "multi_select", "status"}:
        yield from _wrong_options(item)
    if item.type == "relation":
        if item.related_database_key not in databases:
            yield f"relates to the database {shown(item.related_database_key or '')}, which is not declared"
        if item.config and item.config.two_way and not item.config.related_property_name:
            yield "is a relation both ways; it needs a relatedPropertyName"


def _wrong_options(item: Property) -> Iterator[str]:
    names = item.option_names
    if len(names) > MAX_OPTIONS:
        yield f"has {len(names)} options; there may be {MAX_OPTIONS}"
    if not all(names):
        yield "has an option without a name"
    times = Counter(names)
    for name in sorted(name for name in times if times[name] > 1)[:4]:
        yield f"has the option {shown(name)} twice"
    if item.type == "multi_select":
        for name in [name for name in names if "," in name][:4]:
            yield f"has the option {shown(name)}; names of options of a multi_select have no commas, which part them in values"
    for group in item.groups or ():
        if group.name not in GROUPS:
            yield f"has the group {shown(group.name)}; there are {', '.join(sorted(GROUPS))}"
    grouped = [option for group in item.groups or () for option in group.options]
    for option in (item.options or grouped)[:MAX_OPTIONS]:
        if option.color is not None and option.color not in COLORS:
            yield f"has the colour {shown(option.color)}; there are {', '.join(sorted(COLORS))}"


def _wrong_relations(databases: Mapping[str, Database]) -> Iterator[tuple[str, str]]:
    """The other side of a relation is a property of its own: it may not be declared as something else, nor made twice."""
    made: set[tuple[str, str]] = set()
    for key, owner in databases.items():
        for name, item in owner.schema.properties.items():
            if item.type != "relation" or not (item.config and item.config.two_way and item.config.related_property_name):
                continue
            side = (item.related_database_key or "", item.config.related_property_name)
            if side in made:
                yield key, f"two relations make the property {shown(side[1])} of the database {shown(side[0])}; rename one."
            made.add(side)
            other = databases.get(side[0])
            declared = other.schema.properties.get(side[1]) if other else None
            if declared is not None and not _is_back(declared, key, name):
                message = f"the relation {shown(name)} makes the property {shown(side[1])} of the database {shown(side[0])}, "
                yield key, f"{message}which is declared as something else."


def _is_back(declared: Property, key: str, name: str) -> bool:
    config = declared.config
    return (
        declared.type == "relation"
        and declared.related_database_key == key
        and (config is None or not config.two_way or config.related_property_name == name)
    )


def _xldbs(manifest: Manifest) -> Iterator[Problem]:
    for table in manifest.xldbs:
        columns = {column.name: column for column in table.schema.columns}
        wrong = []
        if len(columns) != len(table.schema.columns):
            wrong.append("it has two columns of one name.")
        if ROW_KEY in columns:
            wrong.append(f"the column {ROW_KEY} is made by the server; give it another name.")
        if len(columns) > MAX_PROPERTIES:
            wrong.append(f"it has {len(columns)} columns; there may be {MAX_PROPERTIES}.")
        wrong += [
            f"the column {shown(column.name)} has the type {shown(column.type)}; there are {', '.join(sorted(COLUMN_TYPES))}."
            for column in table.schema.columns
            if column.type not in COLUMN_TYPES
        ]
        if not table.upsert_key or len(set(table.upsert_key)) != len(table.upsert_key):
            wrong.append("its upsertKey should be one or more columns, each once.")
        wrong += [
            f"its upsertKey names {shown(name)}, which is not a column of a single value."
            for name in table.upsert_key
            if name not in columns or columns[name].type not in KEY_COLUMN_TYPES
        ]
        for message in wrong:
            yield Problem(table.key, f"XLDB {shown(table.key)}: {message}")
