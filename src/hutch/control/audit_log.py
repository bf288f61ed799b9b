"""The audit log of a team: who changed what, from where and when. Entries are chained, so that a change of one shows.

    hash(n) = SHA-256( canonical form of entry n, in which `previous` is hash(n-1) )        hash(0) = ""

The canonical form is JSON with sorted keys and without spaces, as UTF-8, of all fields but the hash itself. Whoever can write
the whole database can make a new chain; who has kept the number and hash of an earlier entry finds that out too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DONE = "done"
REFUSED = "refused"
SERVER = "server"
"""Who did it where no token is at work: the server itself."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asked, and from which address."""

    token_id: str = SERVER
    member_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change. `subject` is the id of what was changed, `detail` what else is worth knowing of it; never a secret."""

    team_id: str
    seq: int
    at: int
    token_id: str
    member_id: str
    address: str
    action: str
    subject: str
    outcome: str
    previous: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry that there should be; `seq` 0: none."""

    seq: int = 0
    hash: str = ""


class Chain:
    """Entries in their order, checked as they come. `problems` are sentences, one for each place where the chain is broken."""

    def __init__(self, expected: Head | None = None) -> None:
        self._expected = expected
        self._head = Head()
        self.problems: list[str] = []

    @property
    def head(self) -> Head:
        """What was checked last."""
        return self._head

    def check(self, entries: Iterable[tuple[Entry, str]]) -> None:
        """The next entries, each with the hash that it is kept with."""
        for entry, kept in entries:
            if entry.seq != self._head.seq + 1:
                self.problems.append(f"After entry {self._head.seq} comes entry {entry.seq}: something was removed or inserted.")
            elif entry.previous != self._head.hash:
                self.problems.append(f"Entry {entry.seq} does not follow on entry {self._head.seq}: one of them was altered.")
            digest = entry.digest()
            if digest != kept:
                self.problems.append(f"Entry {entry.seq} was altered: its hash is {digest}, and it is kept with {kept}.")
            if self._expected is not None and entry.seq == self._expected.seq and kept != self._expected.hash:
                self.problems.append(f"Entry {entry.seq} is not the one of before, whose hash was {self._expected.hash}.")
            self._head = Head(entry.seq, kept)

    def end(self, head: Head) -> None:
        """There are no more entries, and the last should be this one."""
        if self._head != head:
            self.problems.append(
                f"The log ends with entry {self._head.seq}, and the last was {head.seq}: the end was removed or altered."
            )
        if self._expected is not None and self._expected.seq > self._head.seq:
            self.problems.append(f"Entry {self._expected.seq}, which was there before, is missing.")
