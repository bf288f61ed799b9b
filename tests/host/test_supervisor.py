"""Sessions on real gVisor: created, used, timed out, stopped, adopted, swept up after."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, NotFoundError, UnavailableError
from hutch.host.protocol import Forget, SessionEvent, SessionStatus, Traffic
from hutch.host.service import Service
from hutch.host.supervisor import KEEP_LOGS_MS, KEEP_RECORDS_MS
from hutch.isolation import choose, kvm
from tests.host.guest import Guest, finished, guest, real_host, spec

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(500), ('203.0.113.9', 9))"


async def until_ended(box: Guest) -> None:
    """Wait for the event that a session ended."""
    ended = asyncio.Event()

    async def seen(event: SessionEvent) -> None:
        if event.session.session_id == box.session_id and event.session.stopped_at is not None:
            ended.set()

    watching = asyncio.ensure_future(box.supervisor.events(0, seen))
    try:
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        watching.cancel()


async def until_it_passes(box: Guest) -> Traffic:
    """Send a datagram, and wait until the gateway has counted it."""
    assert (await box.run("python3", "-c", SEND)).exit_code == 0
    async with asyncio.timeout(20):
        while "203.0.113.9" not in (passed := await box.supervisor.traffic(box.session_id)).tallies:
            await asyncio.sleep(0.01)
    return passed


async def test_a_command_runs_as_the_images_user(box: Guest) -> None:
    ran = await box.shell("id -un; pwd; hostname; echo error >&2; exit 7")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (7, b"ubuntu\n/vercel\nbox\n", b"error\n")
    assert (await box.run("id", "-u", sudo=True)).stdout == b"0\n"
    assert (await box.shell("sudo id -u")).stdout == b"0\n"


async def test_create_is_idempotent(host: Service) -> None:
    wanted = spec()
    first, second = await asyncio.gather(host.supervisor.create(wanted), host.supervisor.create(wanted))
    assert first == second == await host.supervisor.create(wanted)
    assert host.supervisor.live_sessions == 1


async def test_a_stopped_session_answers_gone_and_has_its_usage(box: Guest) -> None:
    await box.run("python3", "-c", "sum(range(10**6))")
    stopped, again = await asyncio.gather(box.stop(), box.stop())
    assert stopped == again
    assert stopped.status is SessionStatus.STOPPED
    assert stopped.stop_reason == "stop"
    assert stopped.active_cpu_us is not None
    assert stopped.active_cpu_us > 10_000
    with pytest.raises(GoneError):
        await box.run("true")


async def test_a_session_ends_at_its_timeout(host: Service) -> None:
    box = await guest(host, timeout_ms=1500)
    command = await box.start("sleep", "60")
    await until_ended(box)
    assert box.record.status is SessionStatus.STOPPED
    assert box.record.stop_reason == "timeout"
    assert box.record.started_at is not None
    assert box.record.stopped_at is not None
    assert 1500 <= box.record.stopped_at - box.record.started_at < 6000
    with pytest.raises(GoneError):
        await command.finished


async def test_an_extended_session_lives_on(host: Service) -> None:
    box = await guest(host, timeout_ms=2000)
    record = await box.supervisor.extend(box.session_id, 60_000, 100_000)
    assert record.timeout_ms == 62_000
    assert (await box.run("sleep", "2.2")).exit_code == 0
    with pytest.raises(BadRequestError) as refused:
        await box.supervisor.extend(box.session_id, 60_000, 100_000)
    assert refused.value.code == "sandbox_timeout_invalid"


async def test_sandboxes_do_not_see_each_other(host: Service) -> None:
    one, other = await guest(host), await guest(host)
    await one.shell("echo secret > /tmp/mine; echo secret > mine; sleep 100 &")
    assert (await other.shell("cat /tmp/mine /vercel/mine")).exit_code != 0
    assert b"sleep" not in (await other.run("ps", "aux")).stdout
    assert (await one.run("cat", "/tmp/mine")).stdout == b"secret\n"


async def test_unknown_sessions_commands_and_programs_are_errors(box: Guest) -> None:
    with pytest.raises(NotFoundError):
        box.supervisor.get("sbx_nothing")
    with pytest.raises(NotFoundError):
        box.commands.get("cmd_nothing")
    with pytest.raises(BadRequestError) as missing:
        await box.run("no-such-program")
    assert missing.value.code == "executable_not_found"
    assert box.commands.newest_first() == []


async def test_an_unknown_image_makes_no_session(host: Service) -> None:
    with pytest.raises(NotFoundError):
        await host.supervisor.create(spec(image="nothing"))
    assert host.supervisor.records() == []


async def test_a_full_host_refuses(no_leaks: Path) -> None:
    async with real_host(no_leaks, host__max_sessions=1) as service:
        await guest(service)
        with pytest.raises(UnavailableError) as refused:
            await guest(service)
        assert refused.value.code == "host_full"
        assert refused.value.retry_after_s is not None


async def test_a_hundred_commands_at_once(box: Guest) -> None:
    ran = await asyncio.gather(*(box.run("echo", str(number)) for number in range(100)))
    assert [one.stdout for one in ran] == [f"{number}\n".encode() for number in range(100)]


async def test_signals_end_a_command_with_128_and_their_number(box: Guest) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        command = await box.start("sleep", "100")
        await box.commands.kill(command, number)
        assert (await finished(command)).exit_code == 128 + number
        await box.commands.kill(command, number)


async def test_a_command_ends_at_its_timeout(box: Guest) -> None:
    assert (await finished(await box.start("sleep", "100", timeout_ms=300))).exit_code == 137


async def test_the_pool_is_claimed_and_refilled(no_leaks: Path) -> None:
    async with real_host(no_leaks, pool__size=1, sandbox__default_vcpus=1) as service:
        pool = service.supervisor.pool

        async def filled() -> None:
            while len(pool) < 1:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(filled(), 30)
        (ready,) = (one for shelf in pool._shelves.values() for one in shelf.ready)
        box = await guest(service)
        assert box.session.machine is ready
        assert (await box.run("hostname")).stdout == b"box\n"
        await asyncio.wait_for(filled(), 30)
        # Where a start takes long, there may be one more for those who come next.
        waiting = next(one for shelf in pool._shelves.values() for one in shelf.ready)
        os.kill(waiting.process.pid, signal.SIGKILL)
        await asyncio.wait_for(waiting.died, 10)
        other = await guest(service)
        assert other.session.machine is not waiting
        assert (await other.run("true")).exit_code == 0


async def test_a_dead_machine_is_a_failed_session(box: Guest) -> None:
    assert box.session.machine is not None
    command = await box.start("sleep", "100")
    os.kill(box.session.machine.process.pid, signal.SIGKILL)
    await until_ended(box)
    assert box.record.status is SessionStatus.FAILED
    assert box.record.stop_reason is not None
    with pytest.raises(GoneError):
        await command.finished
    with pytest.raises(GoneError):
        await box.run("true")


async def test_a_boot_that_fails_leaves_nothing(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    isolation = host._supervisor._machines.backends.default
    monkeypatch.setattr(isolation, "traits", replace(isolation.traits, boot_timeout_s=0.001))
    with pytest.raises(UnavailableError) as failed:
        await guest(host)
    assert failed.value.code == "sandbox_start_failed"
    assert await asyncio.to_thread(host.supervisor._machines.left_behind) == set()


async def test_sandboxes_run_on_where_auto_takes_another_backend_for_new_ones(
    no_leaks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real_host(no_leaks, end_all=False, isolation__backend="gvisor") as service:
        box = await guest(service)
        assert (await box.shell("echo kept > file")).exit_code == 0
    # As with hardware virtualization.
    monkeypatch.setattr(choose, "kvm_verdict", lambda _: kvm.Verdict(True, "as the test says"))
    async with real_host(no_leaks, isolation__backend="auto") as service:
        assert service.supervisor._machines.backends.names == ("qemu",)
        again = Guest(service.supervisor, box.session_id)
        assert (await again.shell("cat file")).stdout == b"kept\n"
        with pytest.raises(ConflictError, match="offers it to none"):
            await guest(service, isolation="gvisor")
        assert (await again.stop()).status is SessionStatus.STOPPED


async def test_live_sessions_are_adopted_with_their_commands(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service)
        done = await box.start("sh", "-c", "echo before; exit 4")
        await finished(done)
        running_on = await box.start("sh", "-c", "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.2; done; exit 9")
        reader = running_on.output.reader()
        for _ in range(2):
            await asyncio.wait_for(reader.next(), 20)
        reader.close()
        ended = await guest(service)
        await ended.stop()
    async with real_host(no_leaks) as again:
        adopted = Guest(again.supervisor, box.session_id)
        assert adopted.record == box.record
        ran = await finished(adopted.commands.get(running_on.record.command_id))
        assert (ran.exit_code, ran.stdout) == (9, b"1\n2\n3\n4\n5\n6\n7\n8\n")
        ran = await finished(adopted.commands.get(done.record.command_id))
        assert (ran.exit_code, ran.stdout) == (4, b"before\n")
        assert again.supervisor.get(ended.session_id).record.status is SessionStatus.STOPPED
        assert (await adopted.run("true")).exit_code == 0


async def test_what_passed_is_known_after_gateway_host_and_session_ended(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service)
        # The datagram is on its way to the gateway when the program ends.
        before = await until_it_passes(box)
        assert before.egress_bytes >= 500
    # With the gateway that counted it.
    async with real_host(no_leaks, end_all=False) as again:
        assert (await again.supervisor.traffic(box.session_id)).tallies == before.tallies
    os.kill(int((no_leaks / "host" / "gateway" / "process").read_text().split()[0]), signal.SIGKILL)
    # With another one.
    async with real_host(no_leaks) as last:
        adopted = Guest(last.supervisor, box.session_id)
        assert (await last.supervisor.traffic(box.session_id)).tallies == before.tallies
        record = await adopted.stop()
        final = await last.supervisor.traffic(box.session_id)
        assert final.tallies == before.tallies
        assert final.egress_bytes == record.egress_bytes
        assert final.egress_bytes >= before.egress_bytes
        assert record.stopped_at is not None
        await last.supervisor.tidy(record.stopped_at + KEEP_RECORDS_MS + 1)
        with pytest.raises(NotFoundError):
            await last.supervisor.traffic(box.session_id)


async def test_the_gateway_is_handed_packets_by_a_host_that_found_it_and_no_sandbox(no_leaks: Path) -> None:
    """Without a sandbox that runs on, a host that starts makes its rules anew: they must name the gateway that is there."""
    async with real_host(no_leaks, end_all=False) as service:
        await (await guest(service)).stop()
        gateway = service.supervisor._gateway._process
        assert gateway is not None
    async with real_host(no_leaks) as again:
        assert again.supervisor._gateway._process == gateway, "it runs on"
        box = await guest(again)
        await until_it_passes(box)


@pytest.mark.parametrize("is_alone", [False, True], ids=["sandboxes", "alone"])
async def test_a_gateway_that_does_not_say_where_it_listens_is_replaced_if_rules_are_new(no_leaks: Path, is_alone: bool) -> None:
    """As one that a former release started: with sandboxes that run on it has their packets already."""
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service)
        if is_alone:
            await box.stop()
    record = no_leaks / "host" / "gateway" / "process"
    pid, ticks, *_ = record.read_text().split()
    record.write_text(f"{pid} {ticks}")
    async with real_host(no_leaks) as again:
        assert (record.read_text().split()[0] != pid) is is_alone
        await until_it_passes(await guest(again) if is_alone else Guest(again.supervisor, box.session_id))


async def test_a_session_that_died_while_the_host_was_down_has_failed(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service)
        assert box.session.machine is not None
        process = box.session.machine.process
    process.kill()
    assert process.wait_gone(10)
    async with real_host(no_leaks) as again:
        record = again.supervisor.get(box.session_id).record
        assert record.status is SessionStatus.FAILED
        assert "died while the host was down" in (record.stop_reason or "")
        assert await asyncio.to_thread(again.supervisor._machines.left_behind) == set()


async def test_what_no_session_uses_is_swept(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service)
        kind = service.supervisor.claims.kind(
            service.supervisor.images.exact(spec().image), 1, 2048, None, service.supervisor._machines.backends.default.name
        )
        orphan = await service.supervisor.claims.boot_for_pool(kind, None)
    async with real_host(no_leaks) as again:
        left = await asyncio.to_thread(again.supervisor._machines.left_behind)
        assert orphan.machine_id not in left
        assert not orphan.process.alive()
        assert not orphan.network.namespace_path.exists()
        assert (await Guest(again.supervisor, box.session_id).run("true")).exit_code == 0


async def test_two_hosts_never_share_a_data_directory(host: Service, no_leaks: Path) -> None:
    with pytest.raises(BlockingIOError, match="Another `hutch host`"):
        async with real_host(no_leaks):
            pass


async def test_old_output_and_records_are_forgotten(box: Guest, no_leaks: Path) -> None:
    await box.run("echo", "output")
    logs = no_leaks / "host" / "logs" / box.session_id
    assert list(logs.iterdir())
    record = await box.stop()
    assert record.stopped_at is not None
    await box.supervisor.tidy(record.stopped_at + KEEP_LOGS_MS + 1)
    assert not logs.exists()
    await box.supervisor.tidy(record.stopped_at + KEEP_RECORDS_MS + 1)
    with pytest.raises(NotFoundError):
        box.supervisor.get(box.session_id)


async def test_what_is_over_is_forgotten_when_it_is_asked_for(box: Guest, no_leaks: Path) -> None:
    await box.run("echo", "output")
    logs = no_leaks / "host" / "logs" / box.session_id
    audit = no_leaks / "host" / "audit" / "sand_a.jsonl"
    audit.write_text('{"seq":1}\n')
    wanted = Forget([box.session_id, "sbx_nobody", "../../audit"], ["sand_a", "sand_nobody"])
    with pytest.raises(ConflictError) as live:
        await box.supervisor.forget(wanted)
    assert live.value.code == "session_live"
    assert logs.exists()
    await box.stop()
    await box.supervisor.forget(wanted)
    assert not logs.exists()
    assert not audit.exists()
    assert audit.parent.exists()
    with pytest.raises(NotFoundError):
        box.supervisor.get(box.session_id)
    # And once more.
    await box.supervisor.forget(wanted)


async def test_a_caller_that_goes_away_still_gets_its_session(host: Service) -> None:
    wanted = spec()
    creating = asyncio.ensure_future(host.supervisor.create(wanted))
    await asyncio.sleep(0)
    creating.cancel()
    record = await host.supervisor.create(wanted)
    assert record.status is SessionStatus.RUNNING
    assert host.supervisor.live_sessions == 1


async def test_a_command_whose_caller_goes_away_before_it_started_does_not_run_on(box: Guest) -> None:
    starting = asyncio.ensure_future(box.start("sh", "-c", "sleep 0.2; echo ran > /tmp/ran; sleep 100"))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises((asyncio.CancelledError, HutchError)):
        await starting
    assert b"sleep 100" not in (await box.run("ps", "aux")).stdout
    assert box.commands.newest_first()[0].argv == [b"ps", b"aux"]
