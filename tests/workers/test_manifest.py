"""Manifests of every SDK are read, hostile ones are refused, and secrets of theirs are never shown."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import BadRequestError
from hutch.workers import manifest
from hutch.workers.checks import check, problems
from hutch.workers.compare import Change, compare
from hutch.workers.manifest import Layout, OAuth, Sync, Tool, Unknown
from tests.workers.declared import CLIENT_SECRET, SCHEMA, database, oauth, parsed, select, sync, whole


def refused(raw: bytes) -> str:
    with pytest.raises(BadRequestError) as caught:
        manifest.parse(raw)
    assert caught.value.code == "worker_manifest_invalid"
    return caught.value.message


def test_a_manifest_with_everything_is_read_and_has_no_problems() -> None:
    found = parsed(whole())
    assert check(found) == []
    assert [item.tag for item in found.capabilities][:3] == ["tool", "sync", "sync"]
    assert found.layout is Layout.CLASSIC
    greet = found.capability("greet")
    assert greet is not None
    assert isinstance(greet.config, Tool)
    assert not greet.config.read_only
    first = found.capability("customersSync")
    assert first is not None
    assert isinstance(first.config, Sync)
    assert first.config.replaces
    assert first.config.schedule is not None
    assert first.config.schedule.interval_ms == 300_000


def test_a_capability_of_an_unknown_kind_is_listed_and_not_run() -> None:
    future = parsed(whole()).capability("future")
    assert future is not None
    assert isinstance(future.config, Unknown)
    assert not future.runnable


@pytest.mark.parametrize("tag", ["oauth", "custom_block"])
def test_configuration_is_not_run(tag: str) -> None:
    assert [item.runnable for item in parsed(whole()).capabilities if item.tag == tag] == [False]


def test_a_manifest_of_an_old_sdk_lacks_arrays_and_is_read() -> None:
    old = {"sdkVersion": "0.3.0", "databases": [], "pacers": [], "capabilities": [], "later": {"x": 1}}
    assert check(parsed(old)) == []
    assert check(parsed({})) == []


def test_the_alpha_layout_means_the_same() -> None:
    alpha = {
        "sdkVersion": "0.9.2",
        "databases": [{"key": "d", "config": {"initialTitle": "D", "primaryKey": "ID", "schema": {"properties": PLAIN}}}],
        "capabilities": [
            {"type": "sync", "key": "same", "config": {"databaseKey": "d"}},
            {"type": "tool", "key": "same", "config": {"title": "T", "description": "", "schema": SCHEMA}},
            {"type": "workflow", "key": "flow", "config": {"name": "F", "triggers": [{"type": "recurrence"}]}},
        ],
    }
    found = parsed(alpha)
    assert found.layout is Layout.ALPHA
    assert check(found) == []
    assert found.databases[0].primary_key_property == "ID"
    tool = found.capability("same", "tool")
    assert tool is not None
    assert tool.tag == "tool"


PLAIN: dict[str, Any] = {"Name": {"type": "title"}, "ID": {"type": "text"}}


def test_the_public_form_has_no_client_secret_and_nothing_of_unknown_kinds() -> None:
    found = parsed(whole())
    shown = json.dumps(manifest.public(found))
    assert CLIENT_SECRET not in shown
    assert "hidden" not in shown
    assert "client-1" in shown
    assert CLIENT_SECRET not in repr(found)
    assert "Bearer {{credential}}" in shown


def test_wrong_types_are_refused_without_their_values() -> None:
    value = {"capabilities": [{"_tag": "oauth", "key": "o", "config": oauth(clientSecret=[CLIENT_SECRET])}]}
    message = refused(json.dumps(value).encode())
    assert "`clientSecret` should be a string" in message
    assert CLIENT_SECRET not in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "should be an object"),
        ({"capabilities": {}}, "a list as `capabilities`"),
        ({"capabilities": [1]}, "`capabilities[0]` is none"),
        ({"capabilities": [{"_tag": "tool", "key": ""}]}, "a key that is not empty"),
        ({"capabilities": [{"_tag": "tool", "key": 7}]}, "a key that is not empty"),
        ({"capabilities": [{"key": "k"}]}, "should say what"),
        ({"capabilities": [{"_tag": "tool", "key": "k", "config": {}}]}, "`schema` is missing"),
        ({"capabilities": [{"_tag": "tool", "key": "k", "config": 3}]}, "an object as the config"),
        ({"capabilities": [{"_tag": "tool", "key": "a\x00b", "config": {}}]}, "control character"),
        ({"capabilities": [{"_tag": "tool", "key": "k" * 300, "config": {}}]}, "256 characters"),
        ({"capabilities": [{"_tag": "tool", "key": "__proto__", "config": {}}]}, "has the key"),
        ({"capabilities": [{"_tag": "sync", "key": "s", "config": {"schedule": {"type": "hourly"}}}]}, "`schedule.type`"),
        ({"capabilities": [{"_tag": "sync", "key": "s", "config": {"mode": "merge"}}]}, "`mode`"),
        ({"databases": [{"key": "d", "config": {"schema": {"properties": {"P": 3}}}}]}, "should be an object"),
        (
            {"pacers": [{"key": "p", "config": {"allowedRequests": "10", "intervalMs": 1}}]},
            "`allowedRequests` should be a number",
        ),
        ({"credentials": [{"key": "C", "network": [{"domain": 1, "transform": []}]}]}, "should be a string"),
        ({"capabilities": [{}] * 1001}, "there may be 1000"),
    ],
)
def test_a_manifest_of_a_wrong_shape_is_refused_with_what_to_fix(value: Any, expected: str) -> None:
    assert expected in refused(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64"),
        (b'{"capabilities":[],"capabilities":[]}', "more than once"),
        (b'{"a":NaN}', "no JSON"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"x":{"__proto__":{"admin":true}}}', "__proto__"),
        (b'{"x":{"constructor":{"prototype":{"admin":true}}}}', "constructor.prototype"),
        (b'"' + b"a" * (3 * 2**20) + b'"', "bytes"),
        (b'{"a":' + b"9" * 5000 + b"}", "64 bits"),
    ],
)
def test_hostile_text_is_refused(raw: bytes, expected: str) -> None:
    assert expected in refused(raw)


def test_a_property_called_constructor_is_fine() -> None:
    value = {"databases": [database("d", PLAIN | {"constructor": {"type": "text"}})]}
    assert check(parsed(value)) == []


NAMES = st.sampled_from(
    "capabilities databases pacers xldbs credentials key _tag type config schema properties network domain transform headers "
    "schedule options groups upsertKey columns $ref anyOf required items".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.sampled_from(["tool", "sync", "managed"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | NAMES, inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_whatever_is_sent_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        found = parsed(value)
    except BadRequestError as error:
        assert error.code == "worker_manifest_invalid"
        return
    problems(found)
    assert isinstance(manifest.public(found), dict)


@given(st.sampled_from(["credentials", "databases", "xldbs", "pacers", "capabilities"]), st.data())
def test_one_spoiled_item_is_found_or_harmless(name: str, data: st.DataObject) -> None:
    value = whole()
    item = data.draw(st.sampled_from(value[name]))
    where = item.get("config", item)
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)
    try:
        problems(parsed(value))
    except BadRequestError as error:
        assert CLIENT_SECRET not in error.message


def messages(value: dict[str, Any]) -> list[str]:
    return [problem.message for problem in problems(parsed(value))]


def one_database(properties: dict[str, Any], **config: Any) -> list[str]:
    return messages({"databases": [database("d", properties, **config)]})


@pytest.mark.parametrize(
    ("properties", "config", "expected"),
    [
        ({"ID": {"type": "text"}}, {}, "exactly one title property, not 0"),
        (PLAIN | {"Other": {"type": "title"}}, {}, "exactly one title property, not 2"),
        ({"Name": {"type": "title"}}, {}, 'primaryKeyProperty "ID" is not declared'),
        ({"Name": {"type": "title"}, "ID": {"type": "checkbox"}}, {}, "should be a title, text or number"),
        (PLAIN | {"X": {"type": "rich_text"}}, {}, 'has the type "rich_text"'),
        (PLAIN | {"X": {"type": "number", "format": "bits"}}, {}, 'has the format "bits"'),
        (PLAIN | {"X": {"type": "date", "date_format": "YY"}}, {}, 'has the format "YY"'),
        (PLAIN | {"X": select("a", "a")}, {}, 'the option "a" twice'),
        (PLAIN | {"X": select("")}, {}, "an option without a name"),
        (PLAIN | {"X": {"type": "multi_select", "options": [{"name": "a,b"}]}}, {}, "no commas"),
        (PLAIN | {"X": {"type": "select", "options": [{"name": "a", "color": "mauve"}]}}, {}, 'the colour "mauve"'),
        (PLAIN | {"X": {"type": "status", "groups": [{"name": "Soon", "options": []}]}}, {}, 'the group "Soon"'),
        (PLAIN | {"X": {"type": "relation", "relatedDatabaseKey": "gone", "config": {"twoWay": False}}}, {}, "not declared"),
        (PLAIN | {"X": {"type": "relation", "relatedDatabaseKey": "d", "config": {"twoWay": True}}}, {}, "relatedPropertyName"),
        (PLAIN, {"type": "borrowed"}, "there are managed and attached"),
    ],
)
def test_a_database_that_cannot_be_meant_is_found(properties: dict[str, Any], config: dict[str, Any], expected: str) -> None:
    found = one_database(properties, **config)
    assert any(expected in message for message in found), found
    assert all('Database "d"' in message for message in found)


def two_way(to: str, name: str) -> dict[str, Any]:
    return {"type": "relation", "relatedDatabaseKey": to, "config": {"twoWay": True, "relatedPropertyName": name}}


def test_two_relations_do_not_make_the_same_property() -> None:
    value = {"databases": [database("a", PLAIN), database("b", PLAIN | {"One": two_way("a", "B"), "Two": two_way("a", "B")})]}
    assert any('two relations make the property "B"' in message for message in messages(value))


def test_the_other_side_of_a_relation_may_be_declared_as_that() -> None:
    one = database("a", PLAIN | {"Bs": two_way("b", "A")})
    good = {"databases": [one, database("b", PLAIN | {"A": two_way("a", "Bs")})]}
    bad = {"databases": [one, database("b", PLAIN | {"A": {"type": "text"}})]}
    assert messages(good) == []
    assert any("declared as something else" in message for message in messages(bad))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"databaseKey": "gone"}, 'the database "gone", which is not declared'),
        ({"databaseKey": "d", "primaryKeyProperty": "Other"}, "primaryKeyProperty"),
        ({"databaseKey": None}, "should name the database"),
        ({"target": {"type": "xldb", "key": "gone"}}, "not declared"),
        ({"databaseKey": "d", "schedule": {"type": "interval", "intervalMs": 59_999}}, "1 minute to 7 days"),
        ({"databaseKey": "d", "schedule": {"type": "interval", "intervalMs": 604_800_001}}, "1 minute to 7 days"),
        ({"databaseKey": "d", "schedule": {"type": "interval"}}, "1 minute to 7 days"),
        ({"databaseKey": "d", "schedule": {"type": "cron", "expression": "61 * * * *"}}, "can't be read"),
        ({"databaseKey": "d", "schedule": {"type": "cron", "expression": "* * * *"}}, "five fields"),
        ({"databaseKey": "d", "schedule": {"type": "cron", "expression": "0 9 * * *", "timeZone": "Mars/Base"}}, "time zone"),
        ({"databaseKey": "d", "schedule": {"type": "cron", "expression": "0 9 * * *", "timeZone": "../etc/passwd"}}, "time zone"),
    ],
)
def test_a_sync_that_cannot_be_meant_is_found(config: dict[str, Any], expected: str) -> None:
    found = messages({"databases": [database("d", PLAIN)], "capabilities": [{"_tag": "sync", "key": "s", "config": config}]})
    assert any(expected in message for message in found), found


@pytest.mark.parametrize("interval", [60_000, 604_800_000])
def test_the_bounds_of_intervals_are_allowed(interval: int) -> None:
    found = sync("s", "d", schedule={"type": "interval", "intervalMs": interval})
    assert messages({"databases": [database("d", PLAIN)], "capabilities": [found]}) == []


def test_keys_share_one_namespace() -> None:
    value = {
        "databases": [database("same", PLAIN)],
        "pacers": [{"key": "same", "config": {"allowedRequests": 1, "intervalMs": 1}}],
    }
    assert messages(value) == ['Worker item with key "same" is registered twice; give one of them another key.']


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (oauth(tokenEndpoint="ftp://x"), "tokenEndpoint"),
        (oauth(tokenEndpoint="https://user:pass@x.example/"), "tokenEndpoint"),
        (oauth(authorizationEndpoint=None), "authorizationEndpoint"),
        (oauth(callbackUrl="javascript:alert(1)"), "callbackUrl"),
        (oauth(accessTokenExpireMs=-1), "accessTokenExpireMs"),
        ({"type": "notion_managed", "name": "n"}, "provider"),
    ],
)
def test_an_oauth_that_cannot_be_meant_is_found(config: dict[str, Any], expected: str) -> None:
    found = messages({"capabilities": [{"_tag": "oauth", "key": "o", "config": config}]})
    assert any(expected in message for message in found), found


def test_an_oauth_before_its_secrets_are_set_can_be_deployed() -> None:
    config = {name: value for name, value in oauth().items() if not name.startswith("client")}
    found = parsed({"capabilities": [{"_tag": "oauth", "key": "o", "config": config}]})
    assert check(found) == []
    assert isinstance(found.capabilities[0].config, OAuth)


def tool(schema: Any) -> dict[str, Any]:
    return {"capabilities": [{"_tag": "tool", "key": "t", "config": {"title": "", "description": "", "schema": schema}}]}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, 'schema: properties [a] must be listed in "required"'),
        (
            {"type": "object", "properties": {"a": {"properties": {"b": {}}}}, "required": ["a"]},
            "schema.properties.a: properties [b]",
        ),
        ({"$ref": "https://elsewhere.example/schema"}, "point into the same schema"),
        ({"$ref": "#/$defs/gone"}, "which the schema does not have"),
        ({"type": "text"}, "does not know"),
        ([], "it is no object"),
        ({"anyOf": []}, "a list of schemas"),
        ({"type": "array", "items": 3}, "should be a schema"),
        ({"type": "text", "minItems": []}, "does not know"),
    ],
)
def test_a_schema_that_cannot_work_is_an_error(schema: Any, expected: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check(parsed(tool(schema)))
    assert expected in str(caught.value.details["problems"])


def test_a_schema_beyond_the_subset_is_a_warning() -> None:
    schema = SCHEMA | {"properties": SCHEMA["properties"] | {"name": {"type": "string", "minLength": 3}}}  # type: ignore[operator]
    found = check(parsed(tool(schema)))
    assert [(problem.key, problem.error) for problem in found] == [("t", False)]
    assert "minLength" in found[0].message


def test_all_errors_come_at_once() -> None:
    value = tool({"type": "text"}) | {"databases": [database("d", {})]}
    with pytest.raises(BadRequestError) as caught:
        check(parsed(value))
    assert {item["key"] for item in caught.value.details["problems"]} == {"t", "d"}  # type: ignore[attr-defined]
    assert "more)" in caught.value.message


def test_the_difference_of_two_manifests_names_every_item() -> None:
    old, new = whole(), whole()
    new["capabilities"][0]["config"]["title"] = "Greets"
    del new["capabilities"][1]
    new["pacers"].append({"key": "slow", "config": {"allowedRequests": 1, "intervalMs": 1000}})
    found = {(item.tag, item.key): item.change for item in compare(parsed(old), parsed(new))}
    assert found["tool", "greet"] is Change.CHANGED
    assert found["sync", "customersSync"] is Change.REMOVED
    assert found["pacer", "slow"] is Change.ADDED
    assert found["oauth", "github"] is Change.SAME
    assert len(found) == 16
    assert {item.change for item in compare(None, parsed(old))} == {Change.ADDED}


def large(kind: str) -> dict[str, Any]:
    """Just less than 2 MiB of one thing."""
    if kind == "databases":
        back = {f"R{number}": two_way(f"d{number}", "B") for number in range(14)}
        return {"databases": [database(f"d{number}", PLAIN | back) for number in range(1000)]}
    if kind == "properties":
        return {"databases": [database("d", PLAIN | {f"P{number}": {"type": "text"} for number in range(70_000)})]}
    if kind == "options":
        return {"databases": [database("d", PLAIN | {"S": select(*(["a"] * 120_000))})]}
    if kind == "headers":
        headers = {f"X-{number}": "{{credential}}" for number in range(60_000)}
        return {"credentials": [{"key": "A", "network": [{"domain": "a.example", "transform": [{"headers": headers}]}]}]}
    if kind == "credentials":
        rule = {"transform": [{"headers": {f"X{number}": "{{credential}}" for number in range(20)}}]}
        return {
            "credentials": [{"key": f"A{number}", "network": [rule | {"domain": "*.a.example"}] * 2} for number in range(1000)]
        }
    if kind == "rules":
        transform = [{"headers": {"X": "{{credential}}"}}]
        rules = [{"domain": f"a{number}.example", "transform": transform} for number in range(20_000)]
        return {"credentials": [{"key": "A", "network": rules}]}
    if kind == "domains":
        transform = [{"headers": {"X": "{{credential}}"}}]
        rules = [{"domain": "a." * 20_000 + "b", "transform": transform} for _ in range(20)]
        return {"credentials": [{"key": "A", "network": rules}, {"key": "B", "network": rules}]}
    node: dict[str, Any] = {"type": "object", "properties": {f"p{number}": {"$ref": "#/a"} for number in range(70_000)}}
    return {"capabilities": [{"_tag": "tool", "key": "t", "config": {"schema": node}}]}


@pytest.mark.parametrize("kind", ["databases", "properties", "options", "headers", "credentials", "rules", "domains", "schema"])
def test_a_large_manifest_is_checked_in_no_time(kind: str) -> None:
    raw = json.dumps(large(kind)).encode()
    assert 2**19 < len(raw) <= manifest.MAX_BYTES
    begin = time.process_time()
    assert problems(manifest.parse(raw))
    assert time.process_time() - begin < 6
