"""Which addresses we connect to where somebody else names them: registries with their token servers and redirects, webhooks.

What the firewall keeps closed to every sandbox (loopback, private and link-local ranges, metadata services) is closed here too. A
place that the operator's settings name may be at a private or loopback address; metadata services stay closed for it as well.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from concurrent.futures import Executor
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hutch.egress.policy import Boundaries, closed_ranges
from hutch.errors import ForbiddenError, UnavailableError

_OPENED = frozenset(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"))
)
"""Ranges of the closed ones in which a place that the operator names may be."""


class AddressClosed(Exception):
    """An address that nobody may have us connect to."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is a private address")
        self.address = address


@dataclass(frozen=True, slots=True)
class Addresses:
    """`known` are places (`HOST[:PORT]`) that the operator names."""

    known: frozenset[str]
    _closed: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, known: frozenset[str]) -> Addresses:
        return cls(known, tuple(ip_network(text) for text in closed_ranges(Boundaries())))

    def may_connect(self, authority: str, address: str) -> bool:
        """Whether `address` is one at which `authority` (`HOST[:PORT]`) may be."""
        place = ip_address(address.partition("%")[0])
        if isinstance(place, IPv6Address) and place.ipv4_mapped is not None:
            # The kernel connects to the IPv4 address itself.
            place = place.ipv4_mapped
        closed = {found for found in self._closed if found.version == place.version and place in found}
        if place.is_loopback:
            # It also lies in a range of addresses that are IPv4's in another form.
            closed.discard(ip_network("::/96"))
        return not (closed - _OPENED if authority in self.known else closed)

    async def resolve(self, authority: str, host: str, port: int) -> str:
        """An address of a registry. Raises `ForbiddenError` (`registry_not_allowed`), `UnavailableError`."""
        try:
            return await self.find(authority, host, port)
        except AddressClosed as closed:
            raise ForbiddenError(
                "registry_not_allowed",
                f"{authority} is at {closed.address}, a private address, and no registry that the server's settings name "
                "(image.registries).",
            ) from closed
        except (OSError, UnicodeError) as error:
            raise UnavailableError(
                "registry_unreachable", f"The name {host} can't be resolved: {error}.", retry_after_s=5
            ) from error

    async def find(self, authority: str, host: str, port: int, executor: Executor | None = None) -> str:
        """An address of `host`, looked up in a thread of `executor` or of the loop's. Raises `AddressClosed` when any of its
        addresses may not be connected to: the next answer of its name server would be that one. `OSError` or `UnicodeError`: it
        can't be resolved."""
        lookup = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(executor, lookup)
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not self.may_connect(authority, address):
                raise AddressClosed(address)
        # Most registries have both kinds of addresses, most machines one kind of network.
        return min(addresses, key=lambda address: ":" in address)
