"""Where things are. What can't be a name or an id never becomes part of a URL, where `..` or `?` would mean something else."""

from __future__ import annotations

import re
from urllib.parse import quote

from hutch.control.names import is_name
from hutch.errors import BadRequestError, NotFoundError

_SESSION = re.compile(r"sbx_[A-Za-z0-9]{1,60}")
_COMMAND = re.compile(r"cmd_[A-Za-z0-9]{1,64}")
_SNAPSHOT = re.compile(r"snap_[A-Za-z0-9]{1,58}")
_REFERENCE = re.compile(r"[A-Za-z0-9_-]{1,64}")

SANDBOXES = "/v2/sandboxes"
SESSIONS = f"{SANDBOXES}/sessions"
SNAPSHOTS = f"{SANDBOXES}/snapshots"
DRIVES = f"{SANDBOXES}/drives"
OWN = "/hutch/v1"


def sandbox(name: str) -> str:
    return f"{SANDBOXES}/{_name(name)}"


def own_sandbox(name: str) -> str:
    return f"{OWN}/sandboxes/{_name(name)}"


def session(session_id: str) -> str:
    if _SESSION.fullmatch(session_id) is None:
        raise NotFoundError("not_found", f"Session '{session_id[:128]}' not found.")
    return f"{SESSIONS}/{session_id}"


def command(session_id: str, command_id: str) -> str:
    if _COMMAND.fullmatch(command_id) is None:
        raise NotFoundError("command_not_found", f"Command '{command_id[:128]}' not found.")
    return f"{session(session_id)}/cmd/{command_id}"


def snapshot_id(given: str) -> str:
    """The id itself, checked."""
    if _SNAPSHOT.fullmatch(given) is None:
        raise NotFoundError("not_found", f"Snapshot '{given[:128]}' not found.")
    return given


def drive(name: str) -> str:
    if not is_name(name):
        raise NotFoundError("not_found", f"Drive '{name[:128]}' not found for this project.")
    return f"{DRIVES}/{name}"


def credential(name: str) -> str:
    if _REFERENCE.fullmatch(name) is None:
        raise BadRequestError("bad_request", f"'{name[:64]}' is no name of a credential: 1 to 64 letters, digits, _ and -.")
    return f"{OWN}/credentials/{name}"


def token(token_id: str) -> str:
    if _REFERENCE.fullmatch(token_id) is None:
        raise NotFoundError("not_found", f"Token '{token_id[:64]}' not found.")
    return f"{OWN}/tokens/{token_id}"


def session_receipt(session_id: str) -> str:
    if _SESSION.fullmatch(session_id) is None:
        raise NotFoundError("not_found", f"Session '{session_id[:128]}' not found.")
    return f"{OWN}/sessions/{session_id}/receipt"


def command_receipt(session_id: str, command_id: str) -> str:
    if _SESSION.fullmatch(session_id) is None or _COMMAND.fullmatch(command_id) is None:
        raise NotFoundError("not_found", f"Command '{command_id[:128]}' of session '{session_id[:128]}' not found.")
    return f"{OWN}/sessions/{session_id}/commands/{command_id}/receipt"


def team(reference: str) -> str:
    return f"{OWN}/teams/{_reference(reference)}"


def project(reference: str) -> str:
    return f"{OWN}/projects/{_reference(reference)}"


def member(team_reference: str, member_id: str) -> str:
    return f"{team(team_reference)}/members/{_reference(member_id)}"


def _reference(reference: str) -> str:
    if _REFERENCE.fullmatch(reference) is None:
        raise BadRequestError("bad_request", f"'{reference[:64]}' is no id or slug: 1 to 64 letters, digits, _ and -.")
    return reference


def bounds(team: str | None, project: str | None, own_team: str) -> tuple[str, dict[str, str]]:
    """Path and query of a team's policy, or of a project's."""
    return place("network-policy", team, project, own_team)


def place(what: str, team: str | None, project: str | None, own_team: str) -> tuple[str, dict[str, str]]:
    """Path and query of what a team has, or a project: of the team that is named, else of the caller's. Ids or slugs."""
    for reference in (team, project):
        if reference is not None and _REFERENCE.fullmatch(reference) is None:
            raise BadRequestError("bad_request", f"'{reference[:64]}' is no id or slug: 1 to 64 letters, digits, _ and -.")
    if project is not None:
        of = team or own_team
        return f"{OWN}/projects/{project}/{what}", {"teamId": of} if of else {}
    if team is None:
        raise BadRequestError("bad_request", "A team or a project must be named.")
    return f"{OWN}/teams/{team}/{what}", {}


def door(name: str) -> str:
    """An endpoint of the Workers door."""
    return f"/v3/workers{name}"


def worker(worker_id: str, *parts: str) -> str:
    """A worker, or something of it: `parts` are steps of the path, in which a key may be anything."""
    if _REFERENCE.fullmatch(worker_id) is None:
        raise NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found.")
    for part in parts:
        if part in ("", ".", ".."):
            raise NotFoundError("not_found", f"The worker has nothing that is called '{part}'.")
    return "/".join((f"{OWN}/workers/{worker_id}", *(quote(part, safe="") for part in parts)))


def worker_tools(worker_id: str) -> str:
    return worker(worker_id, "tools")


def worker_network(worker_id: str) -> str:
    return worker(worker_id, "network")


def worker_review(project: str) -> str:
    if _REFERENCE.fullmatch(project) is None:
        raise NotFoundError("not_found", f"Project '{project[:64]}' not found.")
    return f"{OWN}/projects/{project}/worker-review"


def worker_tool(worker_id: str, name: str) -> str:
    if name in ("", ".", ".."):
        raise NotFoundError("not_found", f"The worker has no tool '{name}'.")
    return f"{worker_tools(worker_id)}/{quote(name, safe='')}"


def image(name: str) -> str:
    if not name or {"", ".", ".."} & set(name.split("/")):
        raise NotFoundError("image_not_found", f"There is no image {name[:256]!r}.")
    return f"{OWN}/images/{quote(name)}"


def registry(name: str) -> str:
    if name in ("", ".", ".."):
        raise BadRequestError("bad_request", f"{name!r} is no registry; it should be HOST[:PORT].")
    return f"{OWN}/registries/{quote(name, safe='')}"


def _name(name: str) -> str:
    if not is_name(name):
        raise NotFoundError("not_found", f"Named sandbox '{name[:256]}' not found for this project.")
    return name
