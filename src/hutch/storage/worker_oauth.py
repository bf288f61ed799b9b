"""Workers' logins with others: those that were begun, and the tokens that came of them. Verifiers and tokens are sealed."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import OauthLoginModel, OauthTokenModel
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer
from hutch.workers.oauth import Token


@dataclass(frozen=True, slots=True)
class Login:
    """A login that a person was sent to. `key` is that of the capability."""

    state_hash: str
    worker_id: str
    team_id: str
    project_id: str
    key: str
    verifier: str
    made_at: int

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


async def begin(connection: AsyncConnection, scope: Scope, login: Login, sealer: Sealer) -> None:
    """Keep a login; one that was begun before for the same capability is over."""
    mine = (*within(scope, OauthLoginModel), OauthLoginModel.worker_id == login.worker_id, OauthLoginModel.key == login.key)
    await connection.execute(delete(OauthLoginModel).where(*mine))
    await connection.execute(
        insert(OauthLoginModel).values(
            state_hash=login.state_hash,
            worker_id=login.worker_id,
            team_id=login.team_id,
            project_id=login.project_id,
            key=login.key,
            verifier=sealer.seal(login.verifier, login.state_hash),
            made_at=login.made_at,
        )
    )


async def take(connection: AsyncConnection, state_hash: str, sealer: Sealer) -> Login | None:
    """The login of a state, which is used up by that. None for one that was not begun, or is used up."""
    query = select(
        OauthLoginModel.state_hash,
        OauthLoginModel.worker_id,
        OauthLoginModel.team_id,
        OauthLoginModel.project_id,
        OauthLoginModel.key,
        OauthLoginModel.verifier,
        OauthLoginModel.made_at,
    ).where(OauthLoginModel.state_hash == state_hash)
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    statement = delete(OauthLoginModel).where(OauthLoginModel.state_hash == state_hash)
    if (await connection.execute(statement)).rowcount == 0:
        return None
    return Login(row[0], row[1], row[2], row[3], row[4], sealer.open(row[5], state_hash), row[6])


async def put_token(
    connection: AsyncConnection, scope: Scope, worker_id: str, name: str, token: Token, sealer: Sealer, now: int
) -> None:
    """Keep a token over the one before."""
    await remove_token(connection, scope, worker_id, name)
    await connection.execute(
        insert(OauthTokenModel).values(
            worker_id=worker_id,
            name=name,
            team_id=scope.team_id,
            project_id=scope.project_id,
            token=sealer.seal(msgspec.to_builtins(token), f"{worker_id}/oauth/{name}"),
            updated_at=now,
        )
    )


async def remove_token(connection: AsyncConnection, scope: Scope, worker_id: str, name: str) -> None:
    mine = (*within(scope, OauthTokenModel), OauthTokenModel.worker_id == worker_id, OauthTokenModel.name == name)
    await connection.execute(delete(OauthTokenModel).where(*mine))


async def holds(connection: AsyncConnection, scope: Scope, worker_id: str, name: str, refresh_token: str, sealer: Sealer) -> bool:
    """Whether the token that is kept has this refresh token. It is locked until the transaction ends."""
    mine = (*within(scope, OauthTokenModel), OauthTokenModel.worker_id == worker_id, OauthTokenModel.name == name)
    query = select(OauthTokenModel.token).where(*mine).with_for_update()
    sealed = (await connection.execute(query)).scalar_one_or_none()
    if sealed is None:
        return False
    return msgspec.convert(sealer.open(sealed, f"{worker_id}/oauth/{name}"), Token).refresh_token == refresh_token


async def tokens(connection: AsyncConnection, scope: Scope, worker_id: str, sealer: Sealer) -> dict[str, Token]:
    """By the names of the OAuth capabilities."""
    query = select(OauthTokenModel.name, OauthTokenModel.token).where(
        *within(scope, OauthTokenModel), OauthTokenModel.worker_id == worker_id
    )
    return {
        name: msgspec.convert(sealer.open(sealed, f"{worker_id}/oauth/{name}"), Token)
        for name, sealed in await connection.execute(query)
    }
