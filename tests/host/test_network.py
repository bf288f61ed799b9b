"""Networks of sandboxes, in the real kernel: made, refused fast, bound to their address, removed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hutch.host.names import Names
from hutch.host.network import BLOCKS, BLOCKS_DIR, Network, Networks, NoAddressBlock
from tests import leaks

pytestmark = pytest.mark.root

PROBE = """
import errno, json, socket, sys, time
found = {}
for name, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
    for target in json.loads(sys.argv[1]):
        probe = socket.socket(socket.AF_INET, kind)
        probe.settimeout(5)
        began = time.monotonic()
        try:
            probe.connect((target, 80))
            probe.send(b"x")
            probe.recv(1)
            found[f"{name} {target}"] = "answered"
        except OSError as error:
            found[f"{name} {target}"] = errno.errorcode.get(error.errno, "timeout")
        found[f"{name} {target} fast"] = time.monotonic() - began < 2
print(json.dumps(found))
"""


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[Networks]:
    before = leaks.snapshot(tmp_path)
    with ThreadPoolExecutor(2) as executor:
        made = Networks(Names.of(tmp_path), executor)
        made.open(None, set())
        yield made
        made.close()
    assert leaks.new(before, leaks.snapshot(tmp_path)) == []


def inside(network: Network, *command: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", network.namespace, *command], capture_output=True, text=True, check=True)
    return done.stdout


def counters(tmp_path: Path) -> dict[str, int]:
    listed = subprocess.run(
        ["nft", "-j", "list", "table", "inet", Names.of(tmp_path).table], capture_output=True, text=True, check=True
    )
    objects: list[dict[str, Any]] = json.loads(listed.stdout)["nftables"]
    return {item["counter"]["name"]: item["counter"]["packets"] for item in objects if "counter" in item}


def test_everything_is_refused_at_once(networks: Networks) -> None:
    one, other = networks.make(), networks.make()
    targets = [one.host_address, other.guest_address, other.host_address, "203.0.113.9", "169.254.169.254", "10.0.0.1"]
    found = json.loads(inside(one, sys.executable, "-c", PROBE, json.dumps(targets)))
    for target in targets:
        assert found[f"tcp {target}"] == "ECONNREFUSED", found
        assert found[f"udp {target}"] == "ECONNREFUSED", found
        assert found[f"tcp {target} fast"], found


def test_a_foreign_source_address_is_dropped(networks: Networks, tmp_path: Path) -> None:
    one, other = networks.make(), networks.make()
    inside(one, "ip", "addr", "add", f"{other.guest_address}/32", "dev", "eth0")
    # Nobody answers a question about the neighbour from that address; a guest that knows the neighbour need not ask.
    neighbour = Path(f"/sys/class/net/{one.link}/address").read_text().strip()
    inside(one, "ip", "neigh", "replace", one.host_address, "lladdr", neighbour, "dev", "eth0")
    before = counters(tmp_path)
    probe = (
        "import socket, sys\ns = socket.socket(); s.settimeout(0.5); s.bind((sys.argv[1], 0))\n"
        "try: s.connect((sys.argv[2], 80))\nexcept OSError as error: print(type(error).__name__)"
    )
    assert inside(one, sys.executable, "-c", probe, other.guest_address, "203.0.113.9").strip() == "TimeoutError"
    after = counters(tmp_path)
    assert after["spoofed"] > before["spoofed"]
    assert after["refused"] == before["refused"]


def test_there_is_no_ipv6(networks: Networks) -> None:
    one = networks.make()
    assert "inet6" not in inside(one, "ip", "addr")


async def test_ready_networks_are_taken_first(networks: Networks) -> None:
    await networks.refill()
    ready = {network.number for network in networks._ready}
    taken = await networks.take()
    assert taken.number in ready
    await networks.give_back(taken)


def test_a_restart_keeps_what_is_used_and_removes_the_rest(networks: Networks, tmp_path: Path) -> None:
    kept, left = networks.make(), networks.make()
    networks.release()
    with ThreadPoolExecutor(1) as executor:
        again = Networks(Names.of(tmp_path), executor)
        assert again.open(networks.block, {kept.number}) == networks.block
        assert kept.namespace_path.exists()
        assert not left.namespace_path.exists()
        found = json.loads(inside(kept, sys.executable, "-c", PROBE, json.dumps(["203.0.113.9"])))
        assert found["tcp 203.0.113.9"] == "ECONNREFUSED"
        again.close()


def test_two_instances_never_share_addresses(networks: Networks, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        other = Networks(Names.of(tmp_path / "other"), executor)
        other.open(None, set())
        try:
            assert other.block != networks.block
        finally:
            other.close()
        with pytest.raises(NoAddressBlock):
            Networks(Names.of(tmp_path / "third"), executor).open(networks.block, set())


def test_the_block_of_a_dead_instance_is_left_to_it_while_there_are_others(networks: Networks, tmp_path: Path) -> None:
    block = networks.block
    networks.release()
    with ThreadPoolExecutor(1) as executor:
        stranger = Networks(Names.of(tmp_path), executor)
        # Another instance, whose search begins at this very block.
        tag = f"{block + BLOCKS:06x}"
        stranger._names = dataclasses.replace(stranger._names, tag=tag)
        taken = stranger._take_block(None)
        assert taken != block
        stranger.release()
        (BLOCKS_DIR / str(taken)).write_bytes(b"")
        again = Networks(Names.of(tmp_path), executor)
        assert again.open(block, set()) == block
        again.close()


SHARED_MOUNTS = """
import subprocess, sys
from pathlib import Path
from hutch.host import kernel

directory, own = Path("/run/netns"), Path("/run/netns/own")
if sys.argv[1] == "shared":
    kernel.share_mounts(directory)
    kernel.share_mounts(directory)
directory.mkdir(exist_ok=True)
kernel.make_network_namespace(own)
subprocess.run(["ip", "netns", "add", "other"], check=True)
kernel.unmount(own)
own.unlink()
assert sorted(path.name for path in directory.iterdir()) == ["other"]
subprocess.run(["ip", "netns", "del", "other"], check=True)
"""


@pytest.mark.parametrize(("how", "removed"), [("shared", True), ("not shared", False)])
def test_namespaces_that_ip_makes_do_not_keep_ours(how: str, *, removed: bool) -> None:
    # A /run of its own, on which no program has made a namespace yet.
    isolated = 'mount -t tmpfs none /run && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", isolated, "sh", sys.executable, "-c", SHARED_MOUNTS, how]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    # Without it, ours is hidden below the mount of `ip`: what this guards against.
    assert (ran.returncode == 0) == removed, ran.stderr
    assert ("busy" in ran.stderr) != removed
