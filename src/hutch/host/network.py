"""A network per sandbox: a namespace, a pair of links, and a packet baseline that lets nothing through but to the gateway.

The host's end of a sandbox's link is the only way out of its namespace. Rules of the instance's own nft tables match that
link by name before any routing decision. A packet whose source is not the address bound to the interface is dropped, before
fragments are put together; so is an ARP packet that is not about the link's own two addresses, because the kernel would answer
for all of this machine's, and has one table of neighbours for all links. TCP and UDP are handed to the gateway's sockets,
whatever their destination (`tproxy`, which keeps it readable and needs no entry in the kernel's connection table that a guest
could fill); everything else is refused at once, so that programs fail fast instead of waiting. Without a gateway, that is
everything. Nothing is ever forwarded.

The gateway's own user cannot reach closed addresses either (`close_addresses`), nor begin anything with a sandbox: what its
policies deny, the kernel denies again. The ingress's user is the opposite: it may begin connections with this instance's
sandboxes, and with nobody else.

Making a network costs about 30 ms, so a few are kept ready. A used one is not reused: `runsc` takes the addresses of the
link away, and a fresh one has no history.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.host.names import NAMESPACE_DIR, Names

BLOCKS_DIR = Path("/run/hutch/net")
BLOCKS = 64
NETWORKS_PER_BLOCK = 2**14
_RULES = """
table inet {table}
delete table inet {table}
table inet {table} {{
  set bound {{ type ifname . ipv4_addr; }}
  counter spoofed {{ }}
  counter refused {{ }}
  chain arrival {{
    type filter hook prerouting priority {before_reassembly}; policy accept;
    iifname "{links}*" jump guard
  }}
  chain guard {{
    meta nfproto != ipv4 counter name spoofed drop
    iifname . ip saddr != @bound counter name spoofed drop
    ip hdrlength > 5 counter name spoofed drop
  }}
  chain before {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{links}*" notrack
  }}
  chain divert {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "{links}*" jump hand
    iifname "{links}*" meta mark != {mark} counter name refused jump answer
  }}
  chain hand {{
  }}
  chain answer {{
    ip protocol tcp reject with tcp reset
    ip protocol udp reject with icmp type port-unreachable
    reject with icmp type admin-prohibited
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{links}*" meta mark {mark} accept
    iifname "{links}*" drop
  }}
  chain replies {{
    type filter hook output priority raw; policy accept;
    oifname "{links}*" notrack
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{links}*" drop
    oifname "{links}*" drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{links}*" meta nfproto ipv6 drop
    oifname "{links}*" meta skuid {user} tcp flags & (syn | ack) == syn drop
    oifname "{links}*" meta skuid {user} fib saddr type local udp sport != 53 drop
    oifname != "{links}*" meta skuid {user} jump gateway
  }}
  chain gateway {{
  }}
}}
"""
_INGRESS = """
add chain inet {table} public
add chain inet {table} to_guests
add chain inet {table} to_others
add rule inet {table} public tcp flags & (syn | ack) == syn return
add rule inet {table} public tcp flags & (ack | rst) == 0x0 return
add rule inet {table} public fib daddr . iif type local socket transparent 0 socket wildcard 0 meta mark set {mark} accept
add rule inet {table} to_guests meta l4proto tcp oifname . ip daddr @bound fib saddr type local return
add rule inet {table} to_guests drop
add rule inet {table} to_others meta l4proto != tcp drop
add rule inet {table} to_others tcp flags & (syn | ack) == syn drop
insert rule inet {table} divert iifname "{links}*" meta nfproto ipv4 meta l4proto tcp jump public
insert rule inet {table} input iifname "{links}*" meta mark {mark} drop
insert rule inet {table} input iifname "{links}*" meta mark {mark} meta skuid {user} accept
insert rule inet {table} output oifname != "{links}*" meta skuid {user} jump to_others
insert rule inet {table} output oifname "{links}*" meta skuid {user} jump to_guests
"""
"""The ingress begins connections with sandboxes, and they may answer: a packet that is no beginning, for a socket that it has at
the link's own address. The first rules find such a socket; whose it is the kernel knows when the packet is delivered (`skuid`, by
early demultiplexing). The gateway's sockets are transparent, those of servers that listen everywhere wildcards."""
_WEBHOOKS = """
add chain inet {table} to_server
flush chain inet {table} to_server
add rule inet {table} to_server oifname "lo" ip daddr 127.0.0.1 tcp dport {port} accept
"""
_NEIGHBOURS = """
table arp {table} {{
  set bound {{ type ifname . ipv4_addr . ipv4_addr; }}
  chain input {{
    type filter hook input priority filter; policy accept;
  }}
}}
flush chain arp {table} input
add rule arp {table} input iifname "{links}*" iifname . arp saddr ip . arp daddr ip != @bound drop
"""
BEFORE_REASSEMBLY = -450
"""Of a chain that sees fragments as they arrive (the kernel puts them together at -400). It does so for all links at once, so
that a fragment with another sandbox's address would become a part of that sandbox's packet."""
_HAND = """
flush chain inet {table} hand
add rule inet {table} hand meta nfproto ipv4 ip protocol tcp tproxy ip to 127.0.0.1:{tcp} meta mark set {mark} accept
add rule inet {table} hand meta nfproto ipv4 ip protocol udp tproxy ip to 127.0.0.1:{udp} meta mark set {mark} accept
"""
MARK = 0x4875_0000
"""Of packets that are the gateway's; the instance's block of addresses is added. It never leaves this machine."""
ROUTES = 0x4875_00
"""The routing table that makes packets with the mark this machine's own; the block is added."""
PREFERENCE = 20_000
"""Of the rule that looks there, before the main table is asked; the block is added."""
INGRESS_MARK = 0x4876_0000
"""Of packets that answer the ingress; the block is added."""
INGRESS_USER = 0x4876_0000
"""The ingress's user and group id; the block is added."""
GATEWAY_USER = 0x4875_0000
"""The gateway's user and group id: nothing else runs as it, and no user database has it. The block is added."""


class NoAddressBlock(OSError):
    """Every block of addresses is in use by another instance."""


@dataclass(frozen=True, slots=True)
class Network:
    """One sandbox's network: a /30 out of 100.64.0.0/10."""

    number: int
    block: int
    link: str
    namespace: str

    @property
    def _base(self) -> int:
        return (100 << 24) + (64 << 16) + (self.block << 16) + self.number * 4

    @property
    def host_address(self) -> str:
        return _dotted(self._base + 1)

    @property
    def guest_address(self) -> str:
        return _dotted(self._base + 2)

    @property
    def namespace_path(self) -> Path:
        return NAMESPACE_DIR / self.namespace


class Networks:
    """Makes, keeps ready and removes the networks of one instance."""

    def __init__(self, names: Names, executor: Executor, ready: int = 4) -> None:
        self._names = names
        self._executor = executor
        self._ready_target = ready
        self._ready: list[Network] = []
        self._used: set[int] = set()
        self._next = 1
        self._block_file: int | None = None
        self.block = -1
        self.is_new = False
        """Whether `open` made the rules anew, which then name no gateway."""
        self._refill: asyncio.Task[None] | None = None

    # -- the instance ------------------------------------------------------------------------------

    def open(self, preferred_block: int | None, keep: set[int]) -> int:
        """Take a block of addresses, set the rules, remove networks that are not in `keep`; the block. Blocks.

        `preferred_block` is the one of the sandboxes that run on.
        """
        self.block = self._take_block(preferred_block)
        self._used = set(keep)
        kernel.share_mounts(NAMESPACE_DIR)
        self._route()
        existing = self._existing()
        ingress = _INGRESS.format(
            table=self._names.table, links=self._names.link_prefix, mark=hex(INGRESS_MARK + self.block), user=self.ingress_user
        )
        if not existing & keep or not self._has("table", self._names.table):
            # With running sandboxes the table stays as it is: replacing it would open a gap.
            rules = _RULES.format(
                table=self._names.table,
                links=self._names.link_prefix,
                mark=self._mark,
                user=self.gateway_user,
                before_reassembly=BEFORE_REASSEMBLY,
            )
            kernel.run(["nft", "-f", "-"], stdin=rules + ingress)
            self.is_new = True
        elif not self._has("chain", self._names.table, "public"):
            # A former release made it.
            kernel.run(["nft", "-f", "-"], stdin=ingress)
        kernel.run(["nft", "-f", "-"], stdin=_NEIGHBOURS.format(table=self._names.table, links=self._names.link_prefix))
        for number in sorted(existing - keep):
            self._remove(self.network(number))
        for number in keep:
            self._bind(self.network(number))
        return self.block

    def close(self) -> None:
        """Remove what is left, the table too. Blocks. All is tried before an error is raised."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self.release)
            if self._block_file is not None:
                last_first.callback(os.ftruncate, self._block_file, 0)
            last_first.callback(self._unroute)
            for family in ("inet", "arp"):
                last_first.callback(self._remove_table, family)
            for number in self._existing():
                last_first.callback(self._remove, self.network(number))

    def _remove_table(self, family: str) -> None:
        with contextlib.suppress(kernel.CommandFailed):
            kernel.run(["nft", "delete", "table", family, self._names.table])

    # -- the gateway -------------------------------------------------------------------------------

    @property
    def _mark(self) -> str:
        return hex(MARK + self.block)

    @property
    def gateway_user(self) -> int:
        """Whom the instance's gateway runs as."""
        return GATEWAY_USER + self.block

    @property
    def ingress_user(self) -> int:
        """Whom the instance's ingress runs as."""
        return INGRESS_USER + self.block

    def hand_to(self, tcp: int, udp: int) -> None:
        """Hand guests' packets to sockets on these ports of the loopback interface, in one step. Blocks."""
        kernel.run(["nft", "-f", "-"], stdin=_HAND.format(table=self._names.table, mark=self._mark, tcp=tcp, udp=udp))

    def open_webhooks(self, port: int) -> None:
        """Let the ingress begin connections with the server at 127.0.0.1, where it has its webhooks on this port, in one step.
        Blocks."""
        table = self._names.table
        rules = _WEBHOOKS.format(table=table, port=port)
        if not self._has("chain", table, "to_server"):
            rules += f"insert rule inet {table} to_others jump to_server\n"
        kernel.run(["nft", "-f", "-"], stdin=rules)

    def close_addresses(self, closed: Iterable[str], name_servers: Iterable[str]) -> None:
        """The ranges that the gateway may not reach, but for these name servers (`ADDRESS:PORT`). Blocks."""
        table = self._names.table
        lines = [f"flush chain inet {table} gateway"]
        for server in name_servers:
            address, _, port = server.rpartition(":")
            match = f"{'ip6' if ':' in address else 'ip'} daddr {address.strip('[]')} meta l4proto {{ tcp, udp }} th dport {port}"
            lines.append(f"add rule inet {table} gateway {match} accept")
        lines.append(f"add rule inet {table} gateway meta nfproto ipv6 counter drop")
        # This machine's addresses as they are now: some come and go while the gateway runs.
        lines.append(f"add rule inet {table} gateway fib daddr type local counter reject with icmp type admin-prohibited")
        ranges = ", ".join(closed)
        lines.append(f"add rule inet {table} gateway ip daddr {{ {ranges} }} counter reject with icmp type admin-prohibited")
        kernel.run(["nft", "-f", "-"], stdin="\n".join(lines))

    def _route(self) -> None:
        """Packets with the mark are for this machine, wherever they were sent. Idempotent."""
        kernel.run(["ip", "route", "replace", "local", "default", "dev", "lo", "table", str(ROUTES + self.block)])
        # Added twice it is there twice, and with sandboxes that run on it must not be gone for a moment.
        preference = str(PREFERENCE + self.block)
        if not kernel.run(["ip", "rule", "show", "pref", preference]).strip():
            table = str(ROUTES + self.block)
            kernel.run(["ip", "rule", "add", "pref", preference, "fwmark", self._mark, "lookup", table])

    def _unroute(self) -> None:
        for command in (
            ["ip", "rule", "del", "pref", str(PREFERENCE + self.block)],
            ["ip", "route", "flush", "table", str(ROUTES + self.block)],
        ):
            with contextlib.suppress(kernel.CommandFailed):
                kernel.run(command)

    def release(self) -> None:
        """Let go without removing anything; the next start takes the same block."""
        if self._block_file is not None:
            os.close(self._block_file)
            self._block_file = None

    def network(self, number: int) -> Network:
        return Network(number, self.block, self._names.link(number), self._names.namespace(number))

    def _take_block(self, preferred: int | None) -> int:
        BLOCKS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        start = int(self._names.tag, 16) % BLOCKS
        order = [preferred] if preferred is not None else [(start + offset) % BLOCKS for offset in range(BLOCKS)]
        # A dead instance that comes back wants its block again: others take one that nobody has while there is any.
        for block, of_the_dead in [(block, of_the_dead) for of_the_dead in (False, True) for block in order]:
            descriptor = os.open(BLOCKS_DIR / str(block), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            owner = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
            if owner not in ("", self._names.tag) and (not of_the_dead or self._alive(owner)):
                os.close(descriptor)
                continue
            # Never empty in between: an empty one says that whoever had the block has let go of everything.
            os.pwrite(descriptor, self._names.tag.encode(), 0)
            os.ftruncate(descriptor, len(self._names.tag))
            self._block_file = descriptor
            return block
        raise NoAddressBlock(f"No address block of {len(order)} is free; other instances of Hutch hold them ({BLOCKS_DIR}).")

    @staticmethod
    def _alive(tag: str) -> bool:
        """Whether the sandboxes of a dead instance may still run with the block's addresses."""
        return NAMESPACE_DIR.is_dir() and any(
            entry.name.startswith(Names(tag).namespace_prefix) for entry in NAMESPACE_DIR.iterdir()
        )

    @staticmethod
    def _has(kind: str, *name: str) -> bool:
        try:
            kernel.run(["nft", "list", kind, "inet", *name])
        except kernel.CommandFailed:
            return False
        return True

    def _existing(self) -> set[int]:
        found: set[int] = set()
        for directory, prefix in (
            (NAMESPACE_DIR, self._names.namespace_prefix),
            (Path("/sys/class/net"), self._names.link_prefix),
        ):
            if directory.is_dir():
                rests = (entry.name.removeprefix(prefix) for entry in directory.iterdir() if entry.name.startswith(prefix))
                found.update(int(rest) for rest in rests if rest.isdecimal())
        return found

    # -- one network -------------------------------------------------------------------------------

    async def take(self) -> Network:
        """A network for a new sandbox."""
        loop = asyncio.get_running_loop()
        return self._ready.pop() if self._ready else await loop.run_in_executor(self._executor, self._make, self._number())

    def make(self) -> Network:
        """A new network. Blocks."""
        return self._make(self._number())

    async def refill(self) -> None:
        """Make networks until enough are ready."""
        loop = asyncio.get_running_loop()
        while len(self._ready) < self._ready_target:
            self._ready.append(await loop.run_in_executor(self._executor, self._make, self._number()))

    async def give_back(self, network: Network) -> None:
        """Remove a network whose sandbox is gone."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._remove, network)

    def _number(self) -> int:
        while self._next in self._used:
            self._next = self._next % (NETWORKS_PER_BLOCK - 1) + 1
        number = self._next
        self._used.add(number)
        self._next = self._next % (NETWORKS_PER_BLOCK - 1) + 1
        return number

    def _make(self, number: int) -> Network:
        network = self.network(number)
        try:
            kernel.make_network_namespace(network.namespace_path)
            # The rule stands before the link is up.
            self._bind(network)
            kernel.run(
                ["ip", "-batch", "-"],
                stdin=f"link add {network.link} type veth peer name eth0 netns {network.namespace}\n"
                f"addr add {network.host_address}/30 dev {network.link}\n",
            )
            setting = Path(f"/proc/sys/net/ipv6/conf/{network.link}/disable_ipv6")
            if setting.exists():
                setting.write_text("1")
            # In the name of the link's own address, whatever address it is that answers the guest.
            Path(f"/proc/sys/net/ipv4/conf/{network.link}/arp_announce").write_text("2")
            kernel.run(["ip", "link", "set", network.link, "up"])
            kernel.run(
                ["ip", "-n", network.namespace, "-batch", "-"],
                stdin=f"link set lo up\naddr add {network.guest_address}/30 dev eth0\nlink set eth0 up\n"
                f"route add default via {network.host_address}\n",
            )
        except BaseException:
            self._remove(network)
            raise
        return network

    def _bind(self, network: Network) -> None:
        kernel.run(["nft", "-f", "-"], stdin="\n".join(f"add element {element}" for element in self._elements(network)))

    def _elements(self, network: Network) -> tuple[str, str]:
        """Whom packets on the link may come from, and what its ends may ask each other's hardware address for."""
        table, link, guest = self._names.table, network.link, network.guest_address
        return (
            f'inet {table} bound {{ "{link}" . {guest} }}',
            f'arp {table} bound {{ "{link}" . {guest} . {network.host_address} }}',
        )

    def _remove(self, network: Network) -> None:
        """Idempotent. The element goes first: a link that got the same name would inherit it."""
        for element in self._elements(network):
            with contextlib.suppress(kernel.CommandFailed):
                kernel.run(["nft", "-f", "-"], stdin=f"delete element {element}")
        if Path(f"/sys/class/net/{network.link}").exists():
            with contextlib.suppress(kernel.CommandFailed):
                kernel.run(["ip", "link", "del", network.link])
        kernel.unmount(network.namespace_path)
        network.namespace_path.unlink(missing_ok=True)
        self._used.discard(network.number)


def _dotted(address: int) -> str:
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def interface_bytes() -> dict[str, tuple[int, int]]:
    """What the host's ends of links, by their names, have had from guests and sent to them."""
    # Of the network that we are in; `/sys` may have been mounted in another one.
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    links = {link.strip(): fields.split() for link, _, fields in (line.partition(":") for line in lines)}
    return {link: (int(fields[0]), int(fields[8])) for link, fields in links.items()}
