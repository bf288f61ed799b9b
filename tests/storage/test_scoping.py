"""Every statement about tenants' rows says whose they are; those that don't are known, each with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from hutch.control.records import Scope
from hutch.storage import removals
from hutch.storage.models import Base, HostCursorModel, MemberModel, SandboxModel, SandboxTagModel
from hutch.storage.scoping import within

SOURCE = Path(__file__).resolve().parents[2] / "src" / "hutch"
STORAGE = SOURCE / "storage"
MAKING = {"select", "update", "delete"}

SERVER = "it speaks with the host, for all teams, and no caller asks for it"
LOGIN = "it is about a login, which only its secrets find, before anybody knows whose it is"
FOUND = "it goes on with the id of what a scope has found"
UNSCOPED = {
    "budget_events.apply": SERVER,
    "budget_events._owners": SERVER,
    "budget_events._hooked": SERVER,
    "budget_events.take_due": SERVER,
    "budget_events.next_due": SERVER,
    "budget_events.delivered": SERVER,
    "budget_events.failed": SERVER,
    "budgets.of_key": "the key is that of the team or project that the scope itself is",
    "budgets.of_sandbox": FOUND,
    "budgets.every": SERVER,
    "budgets.of_all": SERVER,
    "budgets._gone": SERVER,
    "budgets.snapshot_bytes": "the key is that of the team or project that the scope itself is",
    "drives.there": "the key is that of the team or project that the scope itself is",
    "drives.deleting": SERVER,
    "drives.holders": FOUND,
    "drives.used": FOUND,
    "drives._set": FOUND,
    "drives.remove": FOUND,
    "ingress.routes": SERVER,
    "ingress.named": SERVER,
    "ingress.sandboxes_of": FOUND,
    "ingress.project_is_private": FOUND,
    "ingress.set_project": FOUND,
    "ingress.revoke_links": FOUND,
    "logins.begin": LOGIN,
    "logins.end": LOGIN,
    "logins._found": LOGIN,
    "logins._changed": LOGIN,
    "members._keep_an_owner": FOUND,
    "members._drop": FOUND,
    "members._revoke_tokens": FOUND,
    "members.of_identity": "it is about a person whom the provider vouches for, in whatever teams",
    "members.logged_in": FOUND,
    "network_bounds.put": "it is about the team or project that the scope itself is",
    "network_bounds.find": "it is about the team or project that the scope itself is",
    "removals.due": SERVER,
    "removals._remove_budgets": "it is about the project that the scope itself is",
    "removals.projects": "it is about the team or project that the scope itself is",
    "removals.finish": "it is about the team or project that the scope itself is",
    "worker_oauth.take": "the state of a login is what one has to know",
    "workers.reviews": "it is about the project that the scope itself is",
    "workers.set_reviews": "it is about the project that the scope itself is",
    "workers.uploading": "the secret of an upload is what one has to know",
    "workers.give_up": SERVER,
    "workers.awaited_uploads": SERVER,
    "sandboxes.of_workers": SERVER,
    "worker_mirrors.due": SERVER,
    "worker_mirrors.put": FOUND,
    "worker_mirrors.fingerprint": FOUND,
    "worker_mirrors.hold": FOUND,
    "worker_mirrors.release": FOUND,
    "worker_mirrors.taken": FOUND,
    "worker_mirrors.put_page": FOUND,
    "worker_mirrors.orphans": FOUND,
    "worker_jobs.due_projects": SERVER,
    "worker_jobs.claim": SERVER,
    "worker_jobs.renew": FOUND,
    "worker_jobs.begin": FOUND,
    "worker_jobs.put_back": FOUND,
    "worker_jobs.finish": FOUND,
    "worker_jobs.next_due": SERVER,
    "worker_jobs.forget": SERVER,
    "webhooks.addressed": "the secret of a webhook is what one has to know",
    "buttons.opened": "the secret of a button is what one has to know",
    "worker_syncs.retire": FOUND,
    "worker_syncs.revive": FOUND,
    "worker_syncs._put": FOUND,
    "processes.seen": SERVER,
    "processes.alive": SERVER,
    "processes.gone": SERVER,
    "worker_layers.unused": SERVER,
    "workers.forget_runs": SERVER,
    "worker_syncs.upcoming": SERVER,
    "worker_syncs.waiting": SERVER,
    "worker_syncs.take": SERVER,
    "worker_syncs.prolong": FOUND,
    "worker_syncs.held": FOUND,
    "sandboxes.save": FOUND,
    "sandboxes.set_session": FOUND,
    "sandboxes.next_generation": FOUND,
    "sessions.fetching": SERVER,
    "sessions.find_any": SERVER,
    "sessions.owner": "it tells whose a session is, and the caller compares that",
    "sessions.change": FOUND,
    "sessions._add_usage": FOUND,
    "snapshots.of_session": FOUND,
    "snapshots.reported": SERVER,
    "snapshots.told": SERVER,
    "snapshots.held_bytes": FOUND,
    "snapshots.holding_more": SERVER,
    "snapshots._evict": FOUND,
    "snapshots._expire_after": FOUND,
    "snapshots.used": FOUND,
    "snapshots.mark_deleted": FOUND,
    "snapshots.expire": SERVER,
    "snapshots.delete_orphans": FOUND,
    "snapshots.to_purge": SERVER,
    "snapshots.purged": SERVER,
    "snapshots.known": SERVER,
    "tenants.find_team": "it finds whose a request may be, and the caller compares that",
    "tenants.find_project_of_any_team": "for administrators only",
    "tenants.page_of_teams": "for administrators only",
    "tokens.find": "it finds who asks",
    "tokens.used": SERVER,
    "usage._apply_network": SERVER,
    "usage.apply": SERVER,
    "usage._sums": "it makes columns of a statement, which its callers bind",
    "usage.tag_values": FOUND,
}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Those of the package that make a statement about tenants' rows."""
    of_tenants = {mapper.class_.__name__ for mapper in Base.registry.mappers} - {HostCursorModel.__name__}
    for path in sorted(STORAGE.glob("*.py")):
        if path.stem in ("models", "scoping", "hosts", "database", "migrate"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
                made = names & MAKING and names & of_tenants
                if made or names & {"_TABLE", "_QUERY", "_TEAM", "_PROJECT"}:
                    yield f"{path.stem}.{node.name}", node


def is_scoped(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it takes a scope and uses it, or compares with the team that it takes."""
    parameters = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    if "scope" in parameters and names & {"within", "_named", "_rows_of", "_pairs_of", "_views_of", "_pages_of"}:
        return True
    compared = {
        one.comparators[0].id
        for one in ast.walk(node)
        if isinstance(one, ast.Compare) and isinstance(one.comparators[0], ast.Name) and isinstance(one.ops[0], ast.Eq)
    }
    handed_on = {
        argument.id
        for one in ast.walk(node)
        if isinstance(one, ast.Call)
        for argument in one.args
        if isinstance(argument, ast.Name)
    }
    return "team_id" in parameters and "team_id" in compared | handed_on


def test_every_function_is_scoped_or_known_not_to_be() -> None:
    found = dict(functions())
    assert len(found) > 60
    unknown = [name for name, node in found.items() if not is_scoped(node) and name not in UNSCOPED]
    assert not unknown, f"they ask for rows of whatever team: {unknown}"


def test_what_is_known_is_there_and_not_scoped() -> None:
    found = dict(functions())
    assert [name for name in UNSCOPED if name not in found or is_scoped(found[name])] == []


def test_nothing_outside_makes_statements() -> None:
    outside = [path for path in SOURCE.rglob("*.py") if STORAGE not in path.parents]
    importing = [
        str(path.relative_to(SOURCE))
        for path in outside
        if "hutch.storage.models" in (text := path.read_text(encoding="utf-8")) or "from sqlalchemy import" in text
    ]
    assert importing == []


def test_conditions_are_a_teams_or_a_projects_of_it() -> None:
    whole, part = Scope("team_a"), Scope("team_a", "prj_b")
    for table in removals.tables():
        compiled = str(select(table).where(*within(whole, table)).compile(compile_kwargs={"literal_binds": True}))
        assert "team_id = 'team_a'" in compiled
        if "project_id" in table.columns:
            compiled = str(select(table).where(*within(part, table)).compile(compile_kwargs={"literal_binds": True}))
            assert "project_id = 'prj_b'" in compiled
            assert ("team_id = 'team_a'" in compiled) is ("team_id" in table.columns)
    assert len(within(part, SandboxModel)) == 2


@pytest.mark.parametrize(
    ("scope", "model"), [(Scope("a", "b"), MemberModel), (Scope("a"), SandboxTagModel), (Scope("a"), HostCursorModel)]
)
def test_a_table_that_can_not_tell_is_refused(scope: Scope, model: type[Base]) -> None:
    with pytest.raises(TypeError):
        within(scope, model)
