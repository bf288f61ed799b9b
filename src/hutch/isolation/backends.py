"""The backends of one host: the one that its sandboxes have, and others that a sandbox may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hutch.errors import ConflictError
from hutch.host.cgroups import Cgroups
from hutch.isolation.protocol import Isolation


class Backends:
    """`default` is for sandboxes that name none, `others` may be named; `refused` says of further ones why they can't be used.
    Under those that are `kept` nothing begins any more, but what runs there is known.

    Backends know of nothing but their own machines, so what is removed is removed from each.
    """

    def __init__(
        self,
        default: Isolation,
        others: tuple[Isolation, ...] = (),
        refused: Mapping[str, str] | None = None,
        kept: tuple[Isolation, ...] = (),
    ) -> None:
        self.default = default
        self._offered = {backend.name: backend for backend in (default, *others)}
        self._found = {backend.name: backend for backend in kept} | self._offered
        self._refused = dict(refused or {})

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Isolation:
        return self._found[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Those that sandboxes begin under, the default one first."""
        return tuple(self._offered)

    @property
    def cgroups(self) -> Cgroups:
        return self.default.cgroups

    def named(self, name: str) -> Isolation:
        """The backend of a sandbox that asks for `name`; empty: the default one. Raises `ConflictError`
        (`isolation_unsupported`)."""
        found = self.default if not name else self._offered.get(name)
        if found is None:
            reason = self._refused.get(name, "the operator offers it to none (isolation.also)")
            raise ConflictError(
                "isolation_unsupported",
                f"No sandbox of this host can be started under `{name}`: {reason}. There is {' and '.join(self.names)}.",
            )
        return found

    def machines(self) -> set[str]:
        """Ids of all machines that any backend still knows anything about. Blocks."""
        return {machine for backend in self._found.values() for machine in backend.machines()}

    def remove(self, machine_id: str, directory: Path) -> None:
        """Kill a machine that nobody uses and remove everything that its backend made, whichever that was. Blocks."""
        for backend in self._found.values():
            backend.remove(machine_id, directory, None)

    def forget_image(self, image: Path) -> None:
        """Let go of an image that no machine uses any more. Blocks."""
        for backend in self._found.values():
            backend.forget_image(image)

    def leave(self) -> None:
        """Let go of what a successor does not use. Blocks."""
        for backend in self._found.values():
            backend.leave()

    def closing(self) -> list[Callable[[], None]]:
        """What undoes what each backend shares between machines; none may be left."""
        return [backend.close for backend in self._found.values()]
