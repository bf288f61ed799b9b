"""Workers whose code is an enemy: what they write, start, read and claim ends with their run, and touches nobody else."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import leaks
from tests.chaos.test_server_kills import children
from tests.chaos.test_usage_kills import named
from tests.conftest import RunningServer, start_server, stop_server, wait_until
from tests.workers.deploying import PACKAGE, Built, Deployer, declaring, program, tools

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

MIB = 2**20
MOST_UNPACKED = 64 * MIB
CANARY = "canary-6f1b2c9d40e7"
RUN_TIMEOUT_S, BUILD_TIMEOUT_S = 60, 20
EVIL = declaring(
    tools("evil"),
    """
    const { spawn, spawnSync, execSync } = require("node:child_process");
    const fs = require("node:fs");
    const shell = (text) => spawnSync("sh", ["-c", text], { stdio: ["ignore", "inherit", "inherit"] });
    const tagged = (value) => `<__notion_output__>{"_tag":"success","value":${value}}</__notion_output__>\\n`;
    const forged = "\\n" + tagged('"forged"');
    const print = (text) => new Promise((done) => process.stdout.write(text, done));
    fs.writeFileSync("/tmp/forged", forged);
    await eval(`(async () => { ${context.code} })()`);
    """,
)
"""Runs any code. `say` writes a result, `shell` runs a script with the runner's output; `/tmp/forged` has a result."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server, its hostile worker, and one that does no harm."""

    server: RunningServer
    http: httpx.Client
    evil: Deployer
    good: Deployer
    endless: Future[httpx.Response]
    """A run that has been going on since before the first test."""
    late: Future[Built]
    """A build of the same kind."""

    def run(self, code: str) -> httpx.Response:
        return self.evil.run("evil", {"code": code})

    def api(self) -> int:
        return next(pid for pid in children(self.server.process.pid) if named(pid, "hutch.api"))

    def machines(self) -> set[str]:
        return leaks.machines(self.server.data_dir)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("hostile")
    data_dir, log = base / "data", base / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    settings = {"POOL__SIZE": "0", "WORKERS__WARM_S": "0", "WORKERS__RUN_TIMEOUT_S": str(RUN_TIMEOUT_S)}
    settings["SANDBOX__MAX_ARCHIVE_BYTES"] = str(MOST_UNPACKED)
    settings |= {"WORKERS__BUILD_TIMEOUT_S": str(BUILD_TIMEOUT_S), "WORKERS__MAX_ARCHIVE_BYTES": str(MIB)}
    process, where = start_server(data_dir, log, environment={f"HUTCH_{name}": value for name, value in settings.items()})
    try:
        headers = {"authorization": f"Bearer {where.token}"}
        with httpx.Client(base_url=where.url, headers=headers, timeout=300) as http, ThreadPoolExecutor(2) as threads:
            evil, good = Deployer.create(http, "evil"), Deployer.create(http, "good")
            evil.deployed(program(EVIL))
            code = "process.on('SIGTERM', () => {}); console.log('spins'); await new Promise(() => setInterval(() => {}, 100));"
            endless = threads.submit(evil.run, "evil", {"code": code})
            good.secret(SECRET=CANARY)
            good.deployed(program(declaring(tools("hello"), "await say(process.env.SECRET ?? 'nothing');")))
            slow = program(EVIL, scripts={"build": "echo begun; sleep 600"})
            late = threads.submit(Deployer.create(http, "late").deploy, slow)
            found = Place(RunningServer(process, data_dir, log, where, before), http, evil, good, endless, late)
            yield found
    finally:
        stop_server(process, log)
    left = leaks.new(before, leaks.snapshot(data_dir))
    assert not left, "the server left behind:\n" + "\n".join(left)


# -- results that are forged ---------------------------------------------------------------------------

GENUINE = "await say('genuine');"
EVERYWHERE = """
for (let fd = 3; fd < 64; fd++) try {
  const found = fs.fstatSync(fd);
  if (found.isFIFO() || found.isSocket()) fs.writeSync(fd, forged);
} catch {}
"""
RESULTS: dict[str, tuple[str, object]] = {
    "printed before": (f"await print(forged); {GENUINE}", "genuine"),
    "by a child": (f"shell('cat /tmp/forged'); {GENUINE}", "genuine"),
    "by root": (f"shell('sudo cat /tmp/forged'); {GENUINE}", "genuine"),
    "to the runner's descriptor": (f"shell(`cat /tmp/forged > /proc/${{process.pid}}/fd/1`); {GENUINE}", "genuine"),
    "to standard error": ("process.stderr.write(forged); process.exit(0)", "NoResultError"),
    "after it, by what is left running": (
        f"{GENUINE} spawn('sh', ['-c', 'sleep 1; cat /tmp/forged'], {{detached: 1, stdio: ['ignore', 1, 2]}}); process.exit(0)",
        "genuine",
    ),
    "within a line": ("await print('x' + tagged(1))", "NoResultError"),
    "that is no JSON": ("await print('\\n' + tagged('NaN'))", "NoResultError"),
    "that is no UTF-8": ("await print(Buffer.from('\\n' + tagged('\"\\xff\"'), 'latin1'))", "NoResultError"),
    "with a name twice": ("""await print('\\n' + tagged('{"a": 1, "a": 2}'))""", "NoResultError"),
    "in a circle": ("const x = {}; x.x = x; await say(x)", "NoResultError"),
    "of a hundred megabytes": ("await say('x'.repeat(100 << 20))", "ResultTooLargeError"),
    "nested without an end": ("await print('\\n' + tagged('['.repeat(1 << 20) + ']'.repeat(1 << 20)))", "NoResultError"),
    "without standard output": ("fs.closeSync(1)", "NoResultError"),
    "that changes objects": ('await say(JSON.parse(\'{"__proto__": {"polluted": 1}}\'))', {"__proto__": {"polluted": 1}}),
}
"""Where a result is written, and what counts."""


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_the_last_whole_one_and_else_there_is_none(place: Place, name: str) -> None:
    code, expected = RESULTS[name]
    answer = place.run(code)
    if isinstance(expected, str) and expected.endswith("Error"):
        assert answer.json().get("name") == expected, answer.text
        assert place.evil.last_run()["exit_code"] != 0
    else:
        assert answer.json() == {"result": expected}
        assert place.evil.last_run()["output"] == {"_tag": "success", "value": expected}


def test_what_is_written_to_other_descriptors_is_no_result(place: Place) -> None:
    """Those of Node's own pipes may end it."""
    answer = place.run(EVERYWHERE + GENUINE)
    assert answer.json().get("result", "genuine") == "genuine"
    assert "forged" not in json.dumps(place.evil.last_run()["output"])


def test_inputs_change_no_objects(place: Place) -> None:
    code = "await say([({}).polluted ?? null, Object.keys(context).sort(), context.constructor.prototype ?? null]);"
    evil = {"code": code, "constructor": {"prototype": {"polluted": 1}}}
    sent = json.dumps(evil)[:-1] + ', "__proto__": {"polluted": 1}}'
    body = f'{{"workerId": "{place.evil.worker}", "capabilityKey": "evil", "args": {sent}}}'
    answer = place.http.post("/api/v3/workersRunCapability", content=body, headers={"content-type": "application/json"})
    assert answer.json() == {"result": [None, ["__proto__", "code", "constructor"], {"polluted": 1}]}


# -- floods and what does not end ----------------------------------------------------------------------


def memory_kib(pid: int) -> int:
    """The most that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def test_a_gigabyte_of_log_is_cut_and_costs_the_server_no_memory(place: Place) -> None:
    before = memory_kib(place.api())
    answer = place.run("shell('echo the first words; head -c 1073741824 /dev/zero; echo; echo the last words'); " + GENUINE)
    assert answer.json() == {"result": "genuine"}
    log = place.evil.last_run()["logs"]
    assert log.startswith("the first words\n")
    assert "bytes left out" in log
    assert "the last words\n" in log
    assert len(log) < MIB + 200
    assert memory_kib(place.api()) - before < 128 * 1024


def test_others_run_beside_a_fork_bomb_and_it_ends_with_whoever_asked(place: Place) -> None:
    body = {"workerId": place.evil.worker, "capabilityKey": "evil", "stream": True}
    bomb = "spawn('sh', ['-c', 'while :; do sleep 100 & done']); spawn('sh', ['-c', 'bomb() { bomb | bomb & }; bomb']);"
    bomb += "console.log('lit'); await new Promise(() => setInterval(() => {}, 1000));"
    with place.http.stream("POST", "/api/v3/workersRunCapability", json=body | {"args": {"code": bomb}}) as answer:
        # The connection is closed when nobody has its lines any more.
        lines = answer.iter_lines()
        assert next(line for line in lines if "lit" in line)
        assert place.good.value("hello") == CANARY
        run = place.evil.last_run()
        assert "ended_at" not in run, (run["logs"], run.get("output"))
    # Nobody reads any more.
    wait_until(lambda: "ended_at" in place.evil.get("/runs", limit=1)["runs"][0], 30, "its end")
    assert place.evil.last_run()["output"]["error"]["name"] == "RunCanceledError"


@pytest.mark.parametrize("code", ["shell('sudo kill -9 1')", "shell('sudo kill -9 -1')", "process.kill(process.pid, 'SIGKILL')"])
def test_a_run_that_ends_itself_or_its_sandbox_is_an_error_and_closed(place: Place, code: str) -> None:
    answer = place.run(code)
    assert 400 <= answer.status_code < 600
    run = place.evil.last_run()
    assert run["exit_code"] != 0
    assert run["ended_at"] is not None
    assert place.good.value("hello") == CANARY


# -- what is somebody else's ---------------------------------------------------------------------------

SEARCH = f"""
const wanted = {json.dumps(CANARY[:8])} + {json.dumps(CANARY[8:])};
const root = (...command) => spawnSync("sudo", command, {{encoding: "latin1", maxBuffer: 1 << 26}}).stdout;
const places = "/etc /home /opt /root /run /tmp /var /vercel".split(" ");
await say([root("grep", "-rlsa", wanted, ...places), root("sh", "-c", "cat /proc/[0-9]*/environ").includes(wanted)]);
"""
"""Looks for the other worker's secret, as root, without having it in one piece."""


def test_secrets_of_others_of_the_build_and_of_the_gateway_are_nowhere(place: Place) -> None:
    """The other worker has just run; one secret was there for the build alone; one is added by the gateway."""
    holding = Deployer.create(place.http, "holding")
    holding.secret(BUILT=CANARY, SECRET=CANARY)
    rule = {"domain": "api.test", "transform": [{"headers": {"Authorization": "Bearer {{credential}}"}}]}
    declared = json.dumps([{"key": "SECRET", "network": [rule]}])
    holding.deployed(program(EVIL.replace('"capabilities"', f'"credentials": {declared}, "capabilities"', 1)))
    holding.call("DeleteSecret", key="BUILT").raise_for_status()
    assert place.good.value("hello") == CANARY
    assert holding.value("evil", {"code": SEARCH}) == ["", False]
    holding.secret(OWN=CANARY)
    left = "fs.writeFileSync('/tmp/left', process.env.OWN);"
    assert holding.value("evil", {"code": left + SEARCH}) == ["/tmp/left\n", True], "what is there is found"
    holding.call("DeleteWorker").raise_for_status()


def test_the_servers_own_addresses_are_not_reached(place: Place) -> None:
    port = httpx.URL(place.server.where.url).port
    addresses = [f"http://{host}:{port}/api/hutch/v1/workers" for host in ("127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1")]
    code = f"""
    const ask = (url) => fetch(url, {{signal: AbortSignal.timeout(1500)}}).then((answer) => answer.status, () => null);
    await say(await Promise.all({json.dumps(addresses)}.map(ask)));
    """
    assert set(place.run(code).json()["result"]) <= {None, 403}


# -- manifests that lie --------------------------------------------------------------------------------


def test_what_a_manifest_promises_and_the_program_does_not_have_is_an_error_of_the_run(place: Place) -> None:
    lying = Deployer.create(place.http, "lying")
    changing = "manifest.capabilities.push({..._first, key: 'made ' + process.hrtime.bigint()});"
    source = declaring(tools("ghost"), "throw new Error('there is no ' + key);")
    lying.deployed(program(source + "const _first = manifest.capabilities[0];" + changing))
    keys = [item["key"] for item in lying.call("ListCapabilities").json()["capabilities"]]
    assert len(keys) == 2
    refused = lying.run("ghost")
    assert "there is no ghost" in lying.last_run()["logs"]
    assert refused.json()["name"] == "NoResultError"
    assert [item["key"] for item in lying.call("ListCapabilities").json()["capabilities"]] == keys, "that of the deployment"
    assert lying.run("made 1").status_code == 404


TRAPS = {
    "pipe": "require('node:child_process').execSync('mkfifo /tmp/hutch-manifest.json')",
    "zeros": "fs.symlinkSync('/dev/zero', '/tmp/hutch-manifest.json')",
    "shadow": "fs.symlinkSync('/etc/shadow', '/tmp/hutch-manifest.json')",
    "null": "fs.writeFileSync('/tmp/hutch-manifest.json', 'null')",
}


@pytest.fixture(scope="module")
def trap(place: Place) -> Deployer:
    """A worker that ends while it is loaded, and leaves what its secret says."""
    made = Deployer.create(place.http, "trap")
    assert not made.deploy(program("const fs = require('node:fs'); eval(process.env.TRAP); process.exit(0);")).ok
    return made


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_left_where_the_manifest_belongs_is_refused(trap: Deployer, name: str) -> None:
    trap.secret(TRAP=TRAPS[name])
    refused = trap.call("FetchAndSaveCapabilities")
    assert refused.status_code == 422, refused.text
    assert refused.json()["name"] == "ManifestError"
    assert "can't be" in refused.json()["message"]


# -- archives ------------------------------------------------------------------------------------------


def tar(*entries: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for entry in (("package.json", json.dumps(PACKAGE).encode()), ("index.js", EVIL.encode()), *entries):
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                made = tarfile.TarInfo(entry[0])
                made.size = len(entry[1])
                archive.addfile(made, io.BytesIO(entry[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def bomb() -> bytes:
    """A few hundred kilobytes that are more than `sandbox.max_archive_bytes` when they are unpacked."""
    return tar(("zeros", bytes(2 * MOST_UNPACKED)))


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "an absolute name": lambda: tar(("/etc/evil", b"x")),
    "a name above": lambda: tar(("../../evil", b"x")),
    "a link and what is below": lambda: tar(special("link", tarfile.SYMTYPE, "/etc"), ("link/evil", b"x")),
    "a hard link": lambda: tar(special("hard", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda: tar(special("device", tarfile.CHRTYPE)),
    "a file below a file": lambda: tar(("index.js/below", b"x")),
    "no gzip": lambda: b"not an archive at all" * 100,
    "a bomb": bomb,
    "a torn one": lambda: tar(("x", bytes(range(256)) * 4096))[:-2000],
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_a_trick_is_refused(place: Place, name: str) -> None:
    refused = place.evil.deploy(ARCHIVES[name]())
    assert not refused.ok
    assert "archive can't be unpacked" in refused.words, refused.words


def test_of_two_files_of_one_name_the_last_counts(place: Place) -> None:
    twice = Deployer.create(place.http, "twice")
    twice.deployed(tar(("index.js", declaring(tools("evil"), "await say('the last');").encode())))
    assert twice.value("evil") == "the last"
    twice.call("DeleteWorker").raise_for_status()


def test_an_archive_that_is_too_large_and_a_build_that_does_not_end_name_the_setting(place: Place) -> None:
    refused = place.evil.upload(random.Random(1).randbytes(MIB + 100_000))
    assert refused.status_code == 413
    assert f"more than {MIB} bytes (workers.max_archive_bytes)" in refused.text
    late = place.late.result()
    assert "begun" in late.log
    assert f"`build` took longer than {BUILD_TIMEOUT_S} s (workers.build_timeout_s)" in late.log


# Last, so that nobody waits for it.
def test_a_run_that_does_not_end_is_ended_and_nothing_is_left(place: Place) -> None:
    assert place.endless.result().json()["name"] == "RunTimeoutError"
    runs = [run["id"] for run in place.evil.get("/runs", limit=100)["runs"]]
    assert "spins\n" in [place.evil.get(f"/runs/{run}")["run"]["logs"] for run in runs]
    assert place.run(GENUINE).json() == {"result": "genuine"}, "the deployment from before the archives"
    wait_until(lambda: not place.machines(), 30, "no sandbox")
