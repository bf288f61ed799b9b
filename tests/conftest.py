"""Fixtures that many tests share: a real server, clients of it, and the check that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from hutch.client import AsyncClient, Server
from hutch.client.places import find_server, server_file
from tests import builds, leaks
from tests.oci.images import small
from tests.oci.registry import RunningRegistry, running_registry

START_S = 120.0
STOP_S = 60.0
SETTLE_S = 20.0
POLL_S = 0.02
POOL_SIZE = 2
EMULATED_START_S = 3.0
"""A machine that is emulated has begun after that."""
CHECKOUT = Path(__file__).resolve().parents[1]

# How fast a machine is decides no test.
hypothesis.settings.register_profile("hutch", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("hutch")


TOGETHER = ("egress",)
"""Directories whose tests share something of the machine that can't be had twice: addresses of documentation, for one."""


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """What stays in one process when tests run in several (`-n`): a file, so that what its tests share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        directory = file.split("/")[1]
        return directory if directory in TOGETHER else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together:
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a build comes last: it is done by then, and nobody waits for it. What takes long comes first among its like: one
    process would be at it when all others are done."""
    built = {build.fixture for build in builds.ALL}

    def place(item: pytest.Item) -> tuple[bool, bool]:
        return not built.isdisjoint(getattr(item, "fixturenames", ())), item.get_closest_marker("campaign") is None

    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        # Every process collects all tests; those that need a build wait for it wherever it was begun.
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for build in builds.ALL:
        if build.fixture in wanted and not session.config.option.collectonly:
            build.start()


def pytest_sessionfinish() -> None:
    for build in builds.ALL:
        build.end()


@pytest.fixture
def full_campaign() -> bool:
    """Whether this is `make test-all`."""
    return os.environ.get("HUTCH_CAMPAIGN") == "full"


@dataclass(slots=True)
class RunningServer:
    """A real `hutch serve`. `where` has URL, token, team and project; `idle` what it holds in the kernel without sandboxes."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path
    where: Server
    idle: leaks.Snapshot

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, and what finds the server."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HUTCH_", "VERCEL_"))}
        where = {"HUTCH_URL": self.where.url, "HUTCH_TOKEN": self.where.token, "HUTCH_INGRESS_URL": self.where.ingress_url}
        return own | where


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str | Callable[[], str]) -> None:
    """Wait for something that has no event of its own. Fails with `what`."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)


def start_server(
    data_dir: Path, log: Path, *flags: str, environment: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], Server]:
    """Start `hutch serve` on a free port and wait until a create would succeed."""
    ready_file = data_dir.parent / f"{data_dir.name}.ready.json"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "hutch", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("HUTCH_") or key == "HUTCH_CACHE_DIR"}
    # `auto` would have other sandboxes on other machines.
    own["HUTCH_ISOLATION__BACKEND"] = os.environ.get("HUTCH_ISOLATION", "gvisor")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready_file), *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=CHECKOUT,
            env=own | (environment or {}),
        )
    end = time.monotonic() + START_S
    while not ready_file.exists():
        if process.poll() is not None:
            pytest.fail(f"hutch serve ended with {process.returncode} before it was ready:\n{tail(log)}")
        if time.monotonic() > end:
            stop_server(process, log, check=False)
            pytest.fail(f"hutch serve was not ready within {START_S:g} s:\n{tail(log)}")
        time.sleep(POLL_S)
    return process, find_server(data_dir, {})


def stop_server(process: subprocess.Popen[bytes], log: Path, *, check: bool = True) -> None:
    """SIGTERM, and wait; the exit code must be 0."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"hutch serve did not stop within {STOP_S:g} s:\n{tail(log)}")
    if check and code != 0:
        pytest.fail(f"hutch serve ended with {code}:\n{tail(log)}")


def tail(log: Path, lines: int = 60) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


@pytest.fixture(scope="session")
def registry() -> Iterator[RunningRegistry]:
    """A real registry of images, which the server may pull from."""
    with running_registry() as running:
        yield running


@pytest.fixture(scope="session")
def small_image(registry: RunningRegistry) -> str:
    """The reference of a small image with a user, a working directory and a greeting, which nobody has pulled yet."""
    return registry.push("tests/small", "1", small())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, registry: RunningRegistry) -> Iterator[RunningServer]:
    """A real server for the whole run, on a free port with a data directory of its own. Leaves nothing behind, or fails."""
    if os.geteuid() != 0:
        pytest.fail("This test starts a real server, which needs root. Run `make test` as root or with sudo.")
    base = tmp_path_factory.mktemp("server")
    data_dir, log = base / "data", base / "serve.log"
    data_dir.mkdir()
    before = leaks.snapshot(data_dir)
    # A pool that grows with demand would look like a leak.
    sizes = {"HUTCH_POOL__SIZE": str(POOL_SIZE), "HUTCH_POOL__MAX_SIZE": str(POOL_SIZE)}
    sizes["HUTCH_WORKERS__WARM_S"] = "5"
    environment = {**sizes, "HUTCH_IMAGE__INSECURE_REGISTRIES": registry.host}
    process, where = start_server(data_dir, log, environment=environment)
    wait_until(lambda: len(leaks.machines(data_dir)) >= POOL_SIZE, SETTLE_S, f"a pool of {POOL_SIZE} machines")
    pause_s = EMULATED_START_S if os.environ.get("HUTCH_ISOLATION") == "qemu" else 0.0
    running = RunningServer(process, data_dir, log, where, leaks.settled(data_dir, pause_s))
    yield running
    died = process.poll()
    stop_server(process, log)
    assert died is None, f"hutch serve died with {died} during the tests:\n{tail(log)}"
    left = leaks.new(before, leaks.snapshot(data_dir))
    assert not left, "the server left behind:\n" + "\n".join(left)
    assert not server_file(data_dir).exists(), "a stopped server must not say where it is"


@pytest.fixture
def leak_check(server: RunningServer) -> Iterator[None]:
    """Fails a test after which the server holds more than it did when it was idle."""
    yield
    found: list[str] = []

    def settled() -> bool:
        found[:] = leaks.grown(server.idle, leaks.snapshot(server.data_dir))
        return not found

    end = time.monotonic() + SETTLE_S
    while not settled():
        if time.monotonic() > end:
            pytest.fail("left behind:\n" + "\n".join(found))
        time.sleep(POLL_S)


@pytest.fixture
async def client(server: RunningServer, leak_check: None) -> AsyncIterator[AsyncClient]:
    """A client of the real server; deletes what the test created and did not delete."""
    async with AsyncClient(server.where) as made:
        before = {sandbox.name async for sandbox in made.sandboxes.all()}
        yield made
        async for sandbox in made.sandboxes.all():
            if sandbox.name not in before:
                await made.sandboxes.delete(sandbox.name)
