"""Which addresses the host connects to for a pull: somebody else names registry, token server and redirects.

What the firewall keeps closed to every sandbox (loopback, private and link-local ranges, metadata services) is closed here too. A
registry that the operator's settings name may be at a private or loopback address; metadata services stay closed for it as well.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hutch.egress.policy import Boundaries, closed_ranges
from hutch.errors import ForbiddenError, UnavailableError

_OPENED = frozenset(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"))
)
"""Ranges of the closed ones in which a registry of the operator's may be."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """`known` are registries (`HOST[:PORT]`) that the operator names."""

    known: frozenset[str]
    _closed: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, known: frozenset[str]) -> Addresses:
        return cls(known, tuple(ip_network(text) for text in closed_ranges(Boundaries())))

    def may_connect(self, authority: str, address: str) -> bool:
        """Whether `address` is one at which `authority` (`HOST[:PORT]`) may be."""
        place = ip_address(address.partition("%")[0])
        closed = {found for found in self._closed if found.version == place.version and place in found}
        if place.is_loopback:
            # It also lies in a range of addresses that are IPv4's in another form.
            closed.discard(ip_network("::/96"))
        return not (closed - _OPENED if authority in self.known else closed)

    async def resolve(self, authority: str, host: str, port: int) -> str:
        """An address of `host`. Raises `ForbiddenError` (`registry_not_allowed`) when any of its addresses may not be connected
        to: the next answer of its name server would be that one."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnavailableError(
                "registry_unreachable", f"The name {host} can't be resolved: {error}.", retry_after_s=5
            ) from error
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not self.may_connect(authority, address):
                raise ForbiddenError(
                    "registry_not_allowed",
                    f"{authority} is at {address}, a private address, and no registry that the server's settings name "
                    "(image.registries).",
                )
        # Most registries have both kinds of addresses, most machines one kind of network.
        return min(addresses, key=lambda address: ":" in address)
