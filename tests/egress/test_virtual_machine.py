"""The firewall around a virtual machine, whose root can put on its network card what it likes (frame by frame:
`tests/isolation/test_tap.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hutch.host import kernel
from hutch.host.protocol import NetworkSpec
from hutch.isolation import tap
from tests import leaks
from tests.conftest import wait_until
from tests.egress.world import API, CANARY, EVIL, NAME_SERVER, Origins
from tests.host.guest import guest, real_host

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]
SETTLE_S = 10.0


async def test_all_traffic_is_the_gateways(tmp_path: Path, origins: Origins) -> None:
    before = leaks.snapshot(tmp_path / "data")
    origins.reset()
    flags: dict[str, Any] = {"isolation__backend": "qemu", "isolation__qemu_accelerator": "tcg"}
    flags |= {"egress__dns_upstreams": (f"{NAME_SERVER}:53",), "egress__extra_trust_roots": origins.ca}
    inject = {"allow": {"api.test": [{"transform": [{"headers": {"authorization": CANARY}}]}]}}
    async with real_host(tmp_path / "data", **flags) as host:
        box = await guest(host, network=NetworkSpec(policy=json.dumps(inject)))
        machine = box.session.machine
        assert machine is not None

        async def fetch(url: str) -> bytes:
            return (await box.run("curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", url)).stdout

        assert await fetch("https://api.test/") == b"200"
        assert await fetch("https://evil.test/") != b"200"
        assert await fetch(f"http://{EVIL}:8080/") != b"200"
        seen = origins.seen()
        assert CANARY.encode() in seen.data
        assert seen.to(EVIL) == []
        assert len(seen.to("api.test")) == 1
        # It is nowhere in the guest.
        found = await box.shell(
            f"env | grep -c {CANARY[:12]}; grep -rl {CANARY[:12]} /etc /run /home /tmp /vercel 2>/dev/null | wc -l"
        )
        assert found.stdout.split() == [b"0", b"0"]
        # Root in there has another address, another name server, raw frames: nothing comes out.
        tried = await box.shell(
            f"""
            ip addr add 100.64.0.2/32 dev eth0
            curl -sS -m 3 --interface 100.64.0.2 http://{API}/ && echo out
            ip link set eth0 address 02:00:00:00:00:99 && curl -sS -m 3 http://{API}/ && echo out
            ip link set eth0 address {tap.HARDWARE}
            ip link add link eth0 name eth0.7 type vlan id 7 2>/dev/null && ip link set eth0.7 up
            echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
            ip -6 addr add fd00::2/64 dev eth0 && echo six && ping -6 -c 1 -W 1 fd00::1 && echo out
            ping -c 1 -W 1 {EVIL} && echo out
            true
            """,
            sudo=True,
        )
        assert b"out" not in tried.stdout.split()
        assert b"six" in tried.stdout.split(), tried
        stray = ["nsenter", f"--net={machine.network.namespace_path}", "--", "nft", "list", "counter", "netdev", "hutch", "stray"]
        assert "packets 0 " not in kernel.run(stray)
        # And afterwards it works as before.
        await box.shell(f"ip route replace default via {machine.network.host_address}", sudo=True)
        assert await fetch("https://api.test/") == b"200"
        assert origins.seen().to(EVIL) == []
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(tmp_path / "data")),
        SETTLE_S,
        lambda: f"left behind: {leaks.new(before, leaks.snapshot(tmp_path / 'data'))}",
    )
