"""Tables and custom blocks beside the vendor's SDK, and declarations and rows that can't be.

`tests/workers/recorded_tables.json` is what version 0.9.2 wrote for the worker of `table_twin.py`.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.worker import Worker, WorkerError, block_property, data_source, delete_row, page, row, upsert
from hutch.worker import columns as c
from hutch.workers import manifest as manifests
from hutch.workers import tables
from hutch.workers.changes import Batch, Delete, Upsert
from hutch.workers.checks import check
from hutch.workers.envelope import scan
from hutch.workers.outcome import Success, judge

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "workers" / "recorded_tables.json").read_text())
TWIN = Path(__file__).with_name("table_twin.py")


def runner(*arguments: str, written: str = "") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "hutch.worker", str(TWIN), *arguments]
    return subprocess.run(command, input=written.encode(), capture_output=True, timeout=60, check=False)


def test_the_manifest_is_that_of_the_vendors_sdk(tmp_path: Path) -> None:
    assert runner("--manifest", str(tmp_path / "manifest")).returncode == 0
    raw = (tmp_path / "manifest").read_bytes()
    mine, theirs = json.loads(raw), json.loads(json.dumps(RECORDED["manifest"]))
    del mine["sdkVersion"], theirs["sdkVersion"]
    assert mine == theirs
    assert check(manifests.parse(raw)) == []


def test_a_run_comes_to_rows_of_its_table() -> None:
    ended = runner("--run", written=json.dumps({"key": "rows", "context": {}}))
    assert ended.returncode == 0, ended.stderr
    declared = manifests.parse(json.dumps(RECORDED["manifest"]).encode())
    sync = declared.capability("rows", "sync")
    assert sync is not None
    mine, theirs = (
        tables.converted(declared, sync, judge("sync", scan(written), exit_code=0))
        for written in (ended.stdout, RECORDED["runs"]["sync rows {}"]["stdout"].encode())
    )
    assert isinstance(mine, Success)
    assert isinstance(mine.value, Batch)
    assert mine == theirs
    assert [type(change) for change in mine.value.changes] == [Upsert, Delete]


def test_a_block_is_not_run() -> None:
    ended = runner("--run", written=json.dumps({"key": "board", "context": {}}))
    assert ended.returncode == 1
    assert RECORDED["refused"]["board"] in ended.stderr.decode()


def table(worker: Worker, key: str = "t", **changed: Any) -> Any:
    wanted = {"title": "T", "upsert_key": ["id"], "columns": {"id": c.text(), "tags": c.multi_select(), "at": c.timestamp()}}
    return worker.table(key, **(wanted | changed))


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda worker: table(worker, upsert_key=[]), "one or more columns"),
        (lambda worker: table(worker, upsert_key=["id", "id"]), "each once"),
        (lambda worker: table(worker, upsert_key="id"), "should be a list"),
        (lambda worker: table(worker, upsert_key=["no"]), "none of its columns"),
        (lambda worker: table(worker, upsert_key=["tags"]), "more than one value"),
        (lambda worker: table(worker, upsert_key=["l"], columns={"l": c.array("text")}), "more than one value"),
        (lambda worker: table(worker, upsert_key=["l"], columns={"l": c.json()}), "more than one value"),
        (lambda worker: table(worker, key=""), "not empty"),
        (lambda worker: (table(worker), table(worker)), "already registered"),
        (lambda worker: c.array("json"), "no arrays"),  # type: ignore[arg-type]
        (lambda worker: worker.custom_block("b", path=""), "`path`"),
        (lambda worker: worker.custom_block("b", path="x", type="other"), "`static`"),
        (lambda worker: worker.custom_block("b", path="x", type="static", command="make"), "nothing is built"),
        (lambda worker: worker.custom_block("b", path="x", name="n" * 129), "at most 128"),
        (lambda worker: worker.custom_block("b", path="x", description="😀" * 513), "at most 1024"),
        (lambda worker: worker.custom_block("b", path="x", icon="hammer"), "one emoji"),
        (lambda worker: worker.custom_block("b", path="x", icon=""), "one emoji"),
        (lambda worker: worker.custom_block("b", path="x", slash_command="//x"), "slash command"),
        (lambda worker: worker.custom_block("b", path="x", slash_command="Upper"), "slash command"),
        (lambda worker: worker.custom_block("b", path="x", slash_command="a\n"), "slash command"),
        (lambda worker: [worker.custom_block(key, path="x", slash_command="a") for key in "bc"], "another custom block's"),
        (lambda worker: data_source("S", icon="x y"), "one emoji"),
        (lambda worker: block_property("P", "text"), "no property of the type"),
    ],
)
def test_what_can_not_be_declared_says_so(declare: Callable[[Worker], Any], said: str) -> None:
    worker = Worker()
    with pytest.raises(WorkerError, match=said):
        declare(worker)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (row(tags=["x"]), "part of its key"),
        (row(id=None), "part of its key"),
        (row(id=1), "should be a text"),
        (row(id="1", no=1), "no column 'no'"),
        (row(id="1", tags="x"), "should be a list"),
        (row(id="1", tags=[1]), "should be a text"),
        (row(id="1", at=dt.datetime(2026, 1, 1)), "time zone"),  # noqa: DTZ001 - that is what is refused
        (row(id="1", at=dt.date(2026, 1, 1)), "should be a text"),
        (delete_row(), "deleted by id"),
        (delete_row(id="1", tags=[]), "deleted by id"),
        (upsert("1"), "`row`s and `delete_row`s"),
    ],
)
def test_rows_that_can_not_be_fail_the_run(change: Any, said: str) -> None:
    worker = Worker()

    @worker.sync(table(worker))
    def all_rows(state: object) -> Any:
        return page([change])

    execute = worker.capability("all_rows").execute
    assert execute is not None
    with pytest.raises((WorkerError, TypeError), match=said):
        execute({})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (c.number(), True),
        (c.number(), float("nan")),
        (c.number(), "1"),
        (c.checkbox(), 1),
        (c.date(), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        (c.array("number"), {"a": 1}),
        (c.array("date"), [1]),
        (c.select("a"), ["a"]),
    ],
)
def test_values_of_another_type_are_refused(kind: Any, value: Any) -> None:
    worker = Worker()
    made = table(worker, columns={"id": c.text(), "v": kind})
    with pytest.raises(TypeError, match="'v'"):
        row(id="1", v=value).sent(made)
    assert row(id="1", v=None).sent(made) == {"type": "upsert", "values": {"id": "1", "v": None}}
