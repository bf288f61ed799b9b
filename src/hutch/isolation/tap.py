"""A virtual machine's network card: a tap in the network namespace of its sandbox.

    guest ─ QEMU ─ tap0 ─▶ rules ─▶ eth0 ═ the host's end of the link ─▶ the instance's rules, the gateway

The namespace has `eth0`, as for every backend. Rules at the arrival of frames hand them from one device to the other, so that the
namespace's own stack never sees one. From the guest come frames of its own hardware address and nothing but whole IPv4 packets of
its own address to one receiver, and ARP about the link's two addresses. All else, VLANs, IPv6, multicast, is dropped before the
host has to judge it. The host's own rules are the same as for every backend, and would drop it once more.

QEMU gets the tap as a descriptor: it makes no device and opens no path, and the tap ends with it. Firecracker opens one by its
name, as the user that owns it; that one ends with the namespace.
"""

from __future__ import annotations

from pathlib import Path

from hutch.host import kernel

NAME = "tap0"
LINK = "eth0"
"""What the host calls the namespace's end of the link."""
_RULES = """
table netdev hutch {{ }}
delete table netdev hutch
table netdev hutch {{
  counter stray {{ }}
  chain outward {{
    type filter hook ingress device "{tap}" priority 0; policy drop;
    ether saddr {hardware} ether type ip ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 ip saddr {guest} fwd to "{link}"
    ether saddr {hardware} ether type arp arp saddr ether {hardware} arp saddr ip {guest} arp daddr ip {host} fwd to "{link}"
    counter name stray drop
  }}
  chain inward {{
    type filter hook ingress device "{link}" priority 0; policy drop;
    ether type {{ ip, arp }} fwd to "{tap}"
  }}
}}
"""


HARDWARE = "02:48:00:00:00:01"
"""Every card's, locally administered: each is alone on its link, and memory that many machines begin with has it."""


def attach(namespace: Path) -> int:
    """The descriptor of a tap in a namespace; no frame passes before it is joined. Blocks. Raises `OSError`."""
    return kernel.open_tap(namespace, NAME)


def give(namespace: Path, guest: str, host: str, user: int) -> None:
    """The same tap, `NAME`, for whoever opens it in the namespace as `user`; it stays as long as the namespace does. Blocks.
    Raises `OSError`."""
    owner = ["user", str(user), "group", str(user)]
    kernel.run([*_inside(namespace), "ip", "tuntap", "add", "dev", NAME, "mode", "tap", *owner, "vnet_hdr"])
    join(namespace, guest, host)


def join(namespace: Path, guest: str, host: str) -> None:
    """Let frames pass between the namespace's tap and its link, whose two ends have the addresses `guest` and `host`. Blocks.
    Raises `OSError`."""
    rules = _RULES.format(tap=NAME, link=LINK, guest=guest, host=host, hardware=HARDWARE)
    kernel.run([*_inside(namespace), "nft", "-f", "-"], stdin=rules)
    # Last: a guest may run already. The addresses are its own.
    kernel.run([*_inside(namespace), "ip", "-batch", "-"], stdin=f"addr flush dev {LINK}\nlink set {NAME} up\n")


def _inside(namespace: Path) -> list[str]:
    return ["nsenter", f"--net={namespace}", "--"]


def alone() -> int:
    """The descriptor of a tap that leads nowhere, in a network namespace that ends with it. Blocks. Raises `OSError`."""

    def apart() -> int:
        kernel.unshare(kernel.CLONE_NEWNET)
        return kernel.open_tap(Path("/proc/thread-self/ns/net"), NAME)

    return kernel.apart(apart)
