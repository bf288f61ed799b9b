"""What three versions of the real SDK wrote, for workers that use everything: manifests are valid, and each run has its outcome.

`recorded.json` holds standard output as it was, without stack frames; `recorded_alpha.json` a manifest as `notion-workers build`
of 0.9.2 writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hutch.workers import rows, values
from hutch.workers.changes import Batch, Upsert
from hutch.workers.checks import check
from hutch.workers.envelope import scan
from hutch.workers.manifest import Layout
from hutch.workers.outcome import Failure, Outcome, Success, judge
from hutch.workers.rows import Row
from hutch.workers.schema import Create, migrate
from tests.workers.declared import CLIENT_SECRET, parsed

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))
VERSIONS = sorted(RECORDED)


def outcome(version: str, run: str) -> Outcome:
    recorded = RECORDED[version]["runs"][run]
    tag = run.partition(" ")[0]
    verify = '"request"' in run
    return judge(tag, scan(recorded["stdout"].encode()), exit_code=recorded["exit_code"], verify=verify)


def failure(version: str, run: str) -> Failure:
    found = outcome(version, run)
    assert isinstance(found, Failure)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_manifest_has_no_problems(version: str) -> None:
    assert check(parsed(RECORDED[version]["manifest"])) == []
    assert CLIENT_SECRET in json.dumps(RECORDED[version]["manifest"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_batch_is_rows_whose_values_are_written_back_as_they_were(version: str) -> None:
    found = outcome(version, "sync s {}")
    assert isinstance(found, Success)
    assert isinstance(found.value, Batch)
    assert found.value.has_more
    assert found.value.state == {"p": 1}
    assert set(found.value.pacers) == {"api"}
    upsert = found.value.changes[0]
    assert isinstance(upsert, Upsert)
    assert upsert.database == "people"
    database = parsed(RECORDED[version]["manifest"]).databases[0]
    row = rows.row(database, upsert)
    assert isinstance(row, Row)
    assert "Name" in row.cells
    for name, cell in row.cells.items():
        assert values.encoded(database.schema.properties[name].type, cell) == upsert.properties[name]
    assert row.warnings == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_real_errors_have_their_names(version: str) -> None:
    assert failure(version, "sync gen {}").name == "ExecutionError"
    assert failure(version, 'tool t {"a":"throw","b":null}').name == "ToolExecutionError"
    assert failure(version, 'tool t {"a":"x"}').name == "InvalidToolInputError"
    # The SDK resolves where a tool failed: the program exits with 0.
    assert RECORDED[version]["runs"]['tool t {"a":"throw","b":null}']["exit_code"] == 0
    assert outcome(version, 'tool t {"a":"x","b":null}') == Success("ok x")
    assert outcome(version, "automation auto {}") == Success(None)


@pytest.mark.parametrize("version", ["0.4.0", "0.9.2"])
def test_a_real_rate_limit_says_how_long(version: str) -> None:
    found = failure(version, "sync rate {}")
    assert (found.rate_limited, found.retry_after_ms) == (True, 7000)


def test_a_real_manifest_of_the_alpha_layout_has_no_problems() -> None:
    found = parsed(json.loads(Path(__file__).with_name("recorded_alpha.json").read_text(encoding="utf-8")))
    assert check(found) == []
    assert found.layout is Layout.ALPHA
    assert [(item.tag, item.key) for item in found.capabilities] == [("sync", "same"), ("tool", "same"), ("workflow", "flow")]
    created = {item.key: item.steps[0] for item in migrate([], found.databases)}
    assert created == {"people": Create("People"), "others": Create("others")}


def test_what_the_newest_has_and_the_others_do_not() -> None:
    assert failure("0.9.2", "webhook h []").name == "WebhookVerificationError"
    assert outcome("0.9.2", 'webhook h {"request":{}}') == Success({"status": 200, "body": "hi"})
    assert failure("0.9.2", "sync gen {}").thrown["message"] == "a < b && c"
    assert failure("0.9.2", "sync nochanges {}").name == "NoResultError"
    assert failure("0.9.2", 'tool t {"a":"bad","b":null}').name == "InvalidToolOutputError"
    assert failure("0.3.0", "sync gen {}").thrown is None
