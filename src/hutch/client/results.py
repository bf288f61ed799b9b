"""What commands and directories come to: values, the same in both flavours."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any, Literal

from hutch.client.models import Command
from hutch.errors import BadRequestError, HutchError, InternalError, NotFoundError

MISSING = 44
"""How the scripts below say that there is no such file."""
LIST = """
[ -e "$1" ] || [ -L "$1" ] || exit 44
cd -- "$1" || exit 1
for name in * .[!.]* ..?*; do
  if [ -L "$name" ]; then kind=symlink
  elif [ -d "$name" ]; then kind=directory
  elif [ -f "$name" ]; then kind=file
  elif [ -e "$name" ]; then kind=other
  else continue
  fi
  printf '%s\\0%s\\0' "$kind" "$name"
done
"""
STAT = """
[ -e "$1" ] || [ -L "$1" ] || exit 44
stat -c '%s %f %u %g %Y' -- "$1"
"""
REMOVE = """
if [ -d "$1" ] && [ ! -L "$1" ]; then exec rmdir -- "$1"; fi
[ -e "$1" ] || [ -L "$1" ] || exit 44
exec rm -f -- "$1"
"""
REMOVE_ALL = """
[ -e "$1" ] || [ -L "$1" ] || exit 44
exec rm -rf -- "$1"
"""
RENAME = """
[ -e "$1" ] || [ -L "$1" ] || exit 44
exec mv -f -T -- "$1" "$2"
"""

Kind = Literal["file", "directory", "symlink", "other"]


class CommandFailedError(HutchError):
    """A command ended with another code than 0, where that was to be an error (`check`). `completed` has its output."""

    status = 400

    def __init__(self, completed: CompletedCommand) -> None:
        said = completed.stderr.strip()[-500:]
        message = f"{completed.name} ended with {completed.returncode}{': ' + said if said else ''}."
        super().__init__("command_failed", message, details={"exitCode": completed.returncode})
        self.completed = completed


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """A command that has ended, and all that it wrote. `returncode` is 128 + n after signal n."""

    command: Command
    stdout: str
    stderr: str

    @property
    def id(self) -> str:
        return self.command.id

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def args(self) -> list[str]:
        return self.command.args

    @property
    def returncode(self) -> int:
        if self.command.exit_code is None:
            raise InternalError("unexpected_answer", "The server said that the command has ended, and not how.")
        return self.command.exit_code

    def check_returncode(self) -> None:
        """Raises `CommandFailedError` unless the command ended with 0."""
        if self.returncode != 0:
            raise CommandFailedError(self)

    def _repr_html_(self) -> str:
        from hutch.client.display import table

        return table("Command", [("exit code", self.returncode), ("stdout", self.stdout), ("stderr", self.stderr)])


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    path: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file's status; a link's own, not its target's. `modified_s` is in seconds since the epoch."""

    size_bytes: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    modified_s: int


_KINDS: dict[int, Kind] = {0o100000: "file", 0o040000: "directory", 0o120000: "symlink"}


def entries(directory: str, text: str) -> list[DirectoryEntry]:
    """What `LIST` wrote. A guest wrote it: raises `InternalError` for what can't be."""
    fields = text.split("\0")
    found = []
    if len(fields) % 2 != 1 or fields[-1]:
        raise _not_understood("list of a directory")
    for kind, name in zip(fields[:-1:2], fields[1::2], strict=True):
        if kind not in ("file", "directory", "symlink", "other") or not name or "/" in name or name in (".", ".."):
            raise _not_understood("list of a directory")
        found.append(DirectoryEntry(posixpath.join(directory, name), kind))  # type: ignore[arg-type]  # one of them: see above
    return sorted(found, key=lambda entry: entry.path)


def status(text: str) -> FileStat:
    """What `STAT` wrote, as carefully."""
    try:
        size, mode, uid, gid, modified = text.split()
        bits = int(mode, 16)
        return FileStat(int(size), _KINDS.get(bits & 0o170000, "other"), bits & 0o7777, int(uid), int(gid), int(modified))
    except ValueError:
        raise _not_understood("status of a file") from None


def refused(path: str, done: CompletedCommand) -> HutchError:
    """Why a script ended with another code than 0."""
    if done.returncode == MISSING:
        return NotFoundError("not_found", f"There is no {path} in the sandbox.")
    return BadRequestError("file_error", done.stderr.strip()[:1000] or f"{path}: the sandbox refused ({done.returncode}).")


def _not_understood(what: str) -> InternalError:
    return InternalError("unexpected_answer", f"The sandbox's {what} is not understood.")


def session_over(error: HutchError) -> bool:
    """Whether the sandbox has to be resumed before the same can work."""
    if error.code == "sandbox_stream_closed":
        return False
    return error.status == 410 or (error.status == 422 and error.code in ("sandbox_stopping", "sandbox_snapshotting"))


def shown(values: dict[str, Any]) -> str:
    """Arguments of a `repr`."""
    return ", ".join(f"{key}={value!r}" for key, value in values.items() if value not in (None, ""))
