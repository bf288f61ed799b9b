"""Requests and answers of the Workers door: `POST /api/v3/workers…`, as `ntn` sends and reads them.

Times are ISO 8601 texts here, as the vendor's are; a space is a project.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from hutch.control.requests import Body, Text

MAX_SECRET_BYTES = 64 * 1024
UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

WorkerId = Annotated[Text, Field(min_length=1, max_length=64)]
SecretName = Annotated[Text, Field(min_length=1, max_length=256)]
CapabilityKey = Annotated[Text, Field(min_length=1, max_length=256)]


class Nothing(Body):
    """No arguments."""


class SetTosConsent(Body):
    accepted: bool


class OfWorker(Body):
    workerId: WorkerId


class CreateWorker(Body):
    name: Text = Field(min_length=1, max_length=128)
    uploadType: Literal["source"] = "source"


class UpdateWorker(OfWorker):
    uploadType: Literal["source"] = "source"


class BuildWorker(OfWorker):
    stream: bool = False


class RunCapability(OfWorker):
    capabilityKey: CapabilityKey
    args: Any = None
    stream: bool = False


class Secret(Body):
    key: SecretName
    value: Annotated[Text, Field(max_length=MAX_SECRET_BYTES)]


class UpsertSecrets(OfWorker):
    secrets: list[Secret] = Field(max_length=500)


class DeleteSecret(OfWorker):
    key: SecretName


class SwitchSync(OfWorker):
    capabilityKey: CapabilityKey
    disabled: bool


class GetRunLogs(OfWorker):
    runId: WorkerId


class OfOauth(OfWorker):
    oauthCapabilityKey: CapabilityKey


class CreateWorkersToken(Body):
    """`expiresIn`: `30 days`, `12h`, `1 year`."""

    name: Text = Field(min_length=1, max_length=128)
    expiresIn: Text | None = Field(None, max_length=64)


class RevokeWorkersToken(Body):
    tokenId: WorkerId


class RedeemLogin(Body):
    sessionId: Text = Field(min_length=1, max_length=128)


# -- answers -----------------------------------------------------------------------------------------

Id: TypeAlias = Annotated[str, Field(pattern=UUID)]
Moment: TypeAlias = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", description="ISO 8601, UTC.")]


class WorkerShape(TypedDict):
    """A worker. `spaceId` is its project."""

    workerId: Id
    name: str
    spaceId: str
    createdAt: Moment
    updatedAt: Moment


class WorkerRead(TypedDict):
    worker: WorkerShape


class TosAccepted(TypedDict):
    accepted: bool
    tosVersion: int
    currentTosVersion: int


class TosConsent(TosAccepted):
    """What `ntn` asks for when it is told that terms of service have to be accepted."""

    needsConsent: bool
    canConsent: bool


class WorkerList(TypedDict):
    workers: list[WorkerShape]


class Upload(TypedDict):
    """Where the source goes: `multipart/form-data` with these fields and a `file`."""

    url: str
    fields: dict[str, str]


class WorkerCreated(Upload):
    worker: WorkerShape


class Capability(TypedDict):
    """What a worker can do, without what is secret of its configuration."""

    _tag: str
    key: str
    config: NotRequired[dict[str, Any]]


class CapabilityRead(TypedDict):
    capability: dict[str, Any]


class CapabilityList(TypedDict):
    capabilities: list[dict[str, Any]]


class DestinationChanges(TypedDict):
    """What a deployment may reach that the one before could not, and the other way round: names, ranges, `plaintextHttp`."""

    added: list[str]
    removed: list[str]


class Deployed(CapabilityList):
    network: DestinationChanges


class SecretShape(TypedDict):
    key: str
    createdAt: Moment


class SecretList(TypedDict):
    secrets: list[SecretShape]


class EnvEntry(TypedDict):
    key: str
    value: str


class Env(TypedDict):
    env: list[EnvEntry]


class OauthStarted(TypedDict):
    """Where a person is sent, and what comes back with them."""

    authorizationUrl: str
    state: str


class OauthToken(TypedDict):
    """`expiresAt` is null for a token that does not end."""

    accessToken: str
    expiresAt: Moment | None


class LoginBegun(TypedDict):
    """A login that waits for somebody who finds `verificationCode` at `browserUrl`. `sessionId` is what to ask with."""

    sessionId: str
    verificationCode: str
    browserUrl: str


class LoginWaits(TypedDict):
    status: Literal["pending", "expired"]


class LoginConfirmed(TypedDict):
    """Somebody said yes. The token is shown in this answer only; `spaceName` is TEAM/PROJECT."""

    status: Literal["confirmed"]
    token: str
    spaceId: str
    spaceName: str


LoginState: TypeAlias = LoginWaits | LoginConfirmed


class TokenMade(TypedDict):
    token: str


class TokenShape(TypedDict):
    """A token without what makes it one."""

    id: str
    name: str
    issuedAt: Moment
    expiresAt: Moment
    revokedAt: Moment | None


class TokensListed(TypedDict):
    tokens: list[TokenShape]


class RunShape(TypedDict):
    """One execution; `exitCode` and `endedAt` are null while it goes on."""

    workerId: Id
    spaceId: str
    runId: Id
    name: str
    startedAt: Moment
    endedAt: Moment | None
    exitCode: int | None


class RunList(TypedDict):
    runs: list[RunShape]


class RunLogs(TypedDict):
    logs: str


class Result(TypedDict):
    result: Any


class Done(TypedDict):
    """It is done; there is nothing to say."""


class StreamLog(TypedDict):
    _tag: Literal["log"]
    event: dict[str, str]


class StreamResult(TypedDict):
    _tag: Literal["result"]
    result: Any


class StreamFailure(TypedDict):
    _tag: Literal["error"]
    error: str


StreamRecord: TypeAlias = StreamLog | StreamResult | StreamFailure
