"""The benchmarks by id, in the order in which they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bench import api, cpu, density, egress, execute, files, ingress, metering, npm, start, state, virtual, workers
from bench.measure import Result

Benchmark = Callable[[bool], Awaitable[list[Result]]]

BENCHMARKS: dict[str, Benchmark] = {
    "tti.seq": start.tti_seq,
    "create.first": start.create_first,
    "tti.burst": start.tti_burst,
    "exec.rt": execute.exec_rt,
    "exec.stream": execute.exec_stream,
    "files": files.put_and_get,
    "snap.create": state.snap_create,
    "snap.start": state.snap_start,
    "fork.n": state.fork_n,
    "io.npm": npm.io_npm,
    "density": density.density,
    "vm": virtual.vm,
    "cpu.overhead": cpu.cpu_overhead,
    "api.overhead": api.api_overhead,
    "egress.rps": egress.egress_rps,
    "egress.conn": egress.egress_conn,
    "egress.added": egress.egress_added,
    "egress.patterns": egress.egress_patterns,
    "egress.memory": egress.egress_memory,
    "egress.restart": egress.egress_restart,
    "policy.live": egress.policy_live,
    "meter.error": metering.meter_error,
    "meter.cost": metering.meter_cost,
    "ingress": ingress.ingress,
    "worker.tool": workers.worker_tool,
    "worker.rate": workers.worker_rate,
    "worker.syncs": workers.worker_syncs,
}
