"""Deployments that can't be: each is refused with words that say what to fix, and the one before goes on serving."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import pytest

from tests.conftest import RunningServer
from tests.workers.deploying import PACKAGE, SDK, Built, Deployer, declaring, packed, program, tools

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

GOOD = declaring(tools("hello"), "await say('still here');")
CHANGING = f"""{GOOD}
if (process.env.EXPORTS) module.exports = (0, eval)(process.env.EXPORTS);
"""
"""What it exports is said by a secret: its manifest is read again without another build."""
Bad: TypeAlias = bytes | str
"""An archive, or an expression in JavaScript that is what the worker exports."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Two workers that serve, with a tool `hello`: one that is deployed again and again, and one whose manifest is read again."""

    built: Deployer
    read: Deployer

    def refused(self, bad: Bad) -> tuple[Deployer, Built]:
        if isinstance(bad, bytes):
            return self.built, self.built.deploy(bad)
        self.read.secret(EXPORTS=bad)
        fetched = self.read.call("FetchAndSaveCapabilities")
        return self.read, Built(fetched.is_success, "", fetched)


@pytest.fixture(scope="module")
def workers(watched: RunningServer) -> Iterator[Workers]:
    headers = {"authorization": f"Bearer {watched.where.token}"}
    with httpx.Client(base_url=watched.where.url, headers=headers, timeout=300) as http:
        made = Workers(Deployer.create(http, "built"), Deployer.create(http, "read"))
        made.built.deployed(program(GOOD))
        made.read.deployed(program(CHANGING))
        yield made
        for each in (made.built, made.read):
            each.call("DeleteWorker").raise_for_status()


def exporting(manifest: object, after: str = "") -> str:
    return f"const manifest = {json.dumps(manifest)}; {after}; ({{manifest, run() {{}}}})"


def manifest(**parts: Any) -> str:
    return exporting({"sdkVersion": "0.9.2", "capabilities": [], **parts})


def built(script: str, **package: Any) -> bytes:
    return packed({"package.json": json.dumps({**PACKAGE, "scripts": {"build": script}, **package}), "index.js": GOOD})


def sync(**config: Any) -> dict[str, Any]:
    return {"_tag": "sync", "key": "all", "config": {"databaseKey": "things", "primaryKeyProperty": "Id", **config}}


def things(**more: Any) -> dict[str, Any]:
    properties = {"Name": {"type": "title"}, "Id": {"type": "text"}}
    return {
        "key": "things",
        "config": {"type": "managed", "primaryKeyProperty": "Id", "schema": {"properties": properties}} | more,
    }


def credential(domain: str, header: str = "Authorization", template: str = "{{credential}}") -> dict[str, Any]:
    return {"key": "KEY", "network": [{"domain": domain, "transform": [{"headers": {header: template}}]}]}


def with_schema(schema: object) -> dict[str, Any]:
    return {"_tag": "tool", "key": "t", "config": {"title": "t", "description": "d", "schema": schema}}


def interval(milliseconds: int) -> str:
    return manifest(databases=[things()], capabilities=[sync(schedule={"type": "interval", "intervalMs": milliseconds})])


def cron(expression: str, zone: str = "Europe/Berlin") -> str:
    schedule = {"type": "cron", "expression": expression, "timeZone": zone}
    return manifest(databases=[things()], capabilities=[sync(schedule=schedule)])


BAD: dict[str, tuple[Callable[[], Bad], list[str]]] = {
    "nothing": (lambda: packed({}), ["The project has none of package.json", "at its top"]),
    "no package": (lambda: packed({"index.js": GOOD}), ["The project has none of package.json", "at its top"]),
    "a package that is no JSON": (lambda: packed({"package.json": "{name: x}"}), ["package.json", "JSON"]),
    "no build script": (lambda: built("true", scripts={}), ["Missing script", "build"]),
    "a build that fails": (lambda: built("echo cannot find the tiles >&2; exit 3"), ["cannot find the tiles", "exit code 3"]),
    "a build that leaves nothing": (lambda: built("true"), ["The build left no dist/index.js"]),
    "a dependency that nobody has": (
        lambda: program(GOOD, dependencies={"left-pad": "99.99.99"}),
        ["left-pad@99.99.99", "`install` ended with exit code 1"],
    ),
    "an import that is not installed": (
        lambda: program("require('not-declared-anywhere');\n" + GOOD),
        ["can't be loaded", "Cannot find module 'not-declared-anywhere'"],
    ),
    "another Node": (
        lambda: packed(
            {
                "package.json": json.dumps(PACKAGE | {"engines": {"node": ">=99"}}),
                ".npmrc": "engine-strict=true\n",
                "index.js": GOOD,
            }
        ),
        ["Unsupported engine", ">=99"],
    ),
    "a syntax error": (lambda: program("const x = ;"), ["can't be loaded", "SyntaxError", "dist/index.js"]),
    "an error while it is loaded": (lambda: "throw new Error('no key')", ["can't be loaded", "no key"]),
    "no worker": (lambda: "7", ["has no Worker as its default export", "export default worker"]),
    "an exit while it is loaded": (lambda: "process.exit(0)", ["can't be loaded", "process.exit"]),
    "no manifest": (lambda: "({run() {}})", ["manifest"]),
    "one key twice": (lambda: exporting(tools("a", "a")), ['key "a" is registered twice', "another key"]),
    "a tool whose schema can't be compiled": (
        lambda: manifest(capabilities=[with_schema({"type": "object", "properties": {"x": {"type": "strange"}}})]),
        ['tool "t"', "schema"],
    ),
    "a sync to no database": (lambda: manifest(capabilities=[sync()]), ['database "things"', "worker.database"]),
    "a database without a title": (
        lambda: manifest(databases=[things(schema={"properties": {"Id": {"type": "text"}}})]),
        ['Database "things"', "exactly one title"],
    ),
    "a primary key that is no property": (
        lambda: manifest(databases=[things(primaryKeyProperty="Nr")]),
        ['primaryKeyProperty "Nr" is not declared', "add it to the properties"],
    ),
    "an interval of a second": (lambda: interval(1000), ['sync "all"', "1 minute to 7 days"]),
    "an interval of a month": (lambda: interval(31 * 86_400_000), ["1 minute to 7 days"]),
    "a cron of four fields": (lambda: cron("* * * *"), ['sync "all"', "its schedule", "five fields"]),
    "a cron without an hour": (lambda: cron("0 25 * * *"), ["its schedule", "Bad hour"]),
    "a time zone of nowhere": (lambda: cron("0 6 * * *", "Mars/Olympus"), ["Mars/Olympus", "Europe/Berlin"]),
    "a credential for an address": (lambda: manifest(credentials=[credential("10.0.0.1")]), ["KEY", "10.0.0.1"]),
    "a credential for strangers": (lambda: manifest(credentials=[credential("*.github.io")]), ["KEY", "*.github.io"]),
    "a credential for everybody": (lambda: manifest(credentials=[credential("*")]), ["KEY", "*"]),
    "a credential with a path": (lambda: manifest(credentials=[credential("api.test/v1")]), ["KEY", "api.test/v1"]),
    "a credential as the host": (lambda: manifest(credentials=[credential("api.test", "Host")]), ["KEY", "header host"]),
    "a credential that is not used": (
        lambda: manifest(credentials=[credential("api.test", template="x")]),
        ["KEY", "{{credential}}"],
    ),
    "a manifest of megabytes": (
        lambda: exporting({}, "manifest.x = 'x'.repeat(3 << 20)"),
        ["manifest", "2097152"],
    ),
    "a manifest without an end": (
        lambda: exporting({}, "let m = manifest; for (let i = 0; i < 500; i++) m = m.x = {}"),
        ["manifest", "nested more than 64"],
    ),
    "a manifest in a circle": (lambda: exporting({}, "manifest.self = manifest"), ["can't be loaded", "circular"]),
    "a manifest that is none": (lambda: exporting([1, 2]), ["manifest", "should be an object"]),
    "a manifest that changes objects": (
        lambda: program('module.exports = {run() {}, manifest: JSON.parse(\'{"capabilities": [], "__proto__": {"x": 1}}\')};'),
        ["manifest", "__proto__"],
    ),
    "a manifest with a changed constructor": (
        lambda: manifest(capabilities=[{"_tag": "tool", "key": "t", "constructor": {"prototype": {"x": 1}}}]),
        ["manifest", "constructor.prototype"],
    ),
    "a tool that is no object": (lambda: manifest(capabilities=[7]), ["capabilities[0]"]),
    "a thousand and one tools": (
        lambda: exporting({"capabilities": []}, "for (let n = 0; n < 1001; n++) manifest.capabilities.push({})"),
        ["1001", "1000"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_deployment_that_cannot_be_says_what_to_fix(workers: Workers, name: str) -> None:
    bad, words = BAD[name]
    worker, refused = workers.refused(bad())
    assert not refused.ok, refused.words
    missing = [word for word in words if word not in refused.words.replace('\\"', '"')]
    assert not missing, refused.words
    if refused.manifest is not None:
        assert refused.manifest.status_code in (400, 422), refused.words
    listed = worker.call("ListCapabilities").json()["capabilities"]
    assert [item["key"] for item in listed] == ["hello"], "the one before"


def test_after_all_of_them_the_one_before_serves_and_a_good_one_is_taken(workers: Workers) -> None:
    assert workers.built.value("hello") == "still here"
    workers.read.secret(EXPORTS="")
    assert workers.read.value("hello") == "still here"
    workers.built.deployed(program(declaring(tools("hello", "more"), "await say(key);"), **SDK))
    assert workers.built.value("more") == "more"
