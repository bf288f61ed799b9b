"""Workers' logins with others' services: a person agrees, tokens are kept, and are fresh when a run begins.

    start ─▶ the provider asks a person ─▶ callback: state, code ─▶ token endpoint ─▶ tokens, sealed
    a run ─▶ tokens that live, or are refreshed first, one request at a time for each ─▶ OAUTH_…_ACCESS_TOKEN: a placeholder that
             the gateway replaces, where the hosts that take the token are known, and else the token

What requests say and answers mean is `hutch.workers.oauth`. Token endpoints are where strangers say: what is at a private
address is not asked, unless the operator names it (`workers.oauth_hosts`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets as random
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from hutch import __version__
from hutch.api import credentials
from hutch.api.services import Services
from hutch.control.audit_log import Actor
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ForbiddenError, HutchError, NotFoundError, UnavailableError
from hutch.oci.addresses import AddressClosed, Addresses
from hutch.storage import audit_log, worker_oauth
from hutch.storage import workers as rows
from hutch.storage.worker_oauth import Login
from hutch.storage.workers import Worker
from hutch.workers import oauth, outage, providers
from hutch.workers.environment import Placed
from hutch.workers.manifest import Manifest, OAuth
from hutch.workers.oauth import Refused, Request, Step, Token
from hutch.workers.providers import Client
from hutch.workers.serving import serving

log = logging.getLogger(__name__)

CALLBACK = "/workers/oauth/callback"
TIMEOUT_S = 15.0
UNAUTHORIZED = 401
MAX_CODE = 4096
MAX_VARIABLE = 128
"""Letters of a variable that can hold a placeholder."""
MAX_PLACED = 20
"""Placeholders of one run; tokens beyond are in their variables as they are."""


def redirect_uri(services: Services) -> str:
    """Where providers send people back to."""
    return f"{services.issuer}{CALLBACK}"


async def config(services: Services, scope: Scope, worker: Worker, key: str) -> OAuth:
    """The OAuth capability of a worker that is deployed. Raises `NotFoundError`."""
    found = await serving(services, scope, worker)
    capability = found[1].capability(key, "oauth") if found is not None else None
    if capability is None or not isinstance(capability.config, OAuth):
        raise NotFoundError("not_found", f"The worker has no OAuth capability '{key[:64]}'. Deploy it first.")
    return capability.config


async def start(services: Services, scope: Scope, worker: Worker, key: str) -> tuple[str, str]:
    """Where a person is to agree, and the state that is sent along. Raises `NotFoundError`, `BadRequestError`."""
    found = await _usable(services, await config(services, scope, worker, key))
    assert scope.project_id is not None
    sent = oauth.secrets(random.token_bytes(2 * oauth.RANDOM_BYTES))
    try:
        url = oauth.authorization_url(found, redirect_uri(services), sent)
    except ValueError as error:
        raise BadRequestError("oauth_unusable", f"'{key[:64]}' can't be used: {error}.") from error
    hashed, now = oauth.state_hash(sent.state), services.clock()
    login = Login(hashed, worker.id, scope.team_id, scope.project_id, key, sent.verifier, now)
    async with services.database.write() as connection:
        await worker_oauth.begin(connection, scope, login, services.sealer)
    return url, sent.state


async def finish(services: Services, state: str, code: str) -> None:
    """A person came back from the provider. Raises `BadRequestError` (`oauth_not_valid`), and what the provider's refusal is."""
    hashed = oauth.state_hash(state)
    async with services.database.write() as connection:
        # Used up before anything else: whatever happens, it is good for one try.
        login = await worker_oauth.take(connection, hashed, services.sealer)
    if login is None or not oauth.state_holds(state, login.state_hash, login.made_at, services.clock()):
        raise BadRequestError("oauth_not_valid", "This login is over, was used, or never was. Start it again.")
    if not code or len(code) > MAX_CODE:
        raise BadRequestError("oauth_not_valid", "The provider sent no code. Start again.")
    scope = login.scope
    async with services.database.read() as connection:
        worker = await rows.find(connection, scope, login.worker_id)
    if worker is None:
        raise BadRequestError("oauth_not_valid", "The worker is no more.")
    found = await _usable(services, await config(services, scope, worker, login.key))

    def request(*, basic: bool) -> Request:
        return oauth.code_request(found, code, login.verifier, redirect_uri(services), basic=basic)

    answer = await _asked(services, found, request(basic=False), request(basic=True), None)
    if isinstance(answer, Refused):
        raise BadRequestError("oauth_refused", f"The provider gave no token: {answer.error}.")
    now = services.clock()
    async with services.database.write() as connection:
        await worker_oauth.put_token(connection, scope, worker.id, found.name, answer, services.sealer, now)
        await audit_log.append(
            connection, scope.team_id, Actor(), "worker.oauth_connected", worker.id, now, project=scope.project_id, key=login.key
        )


async def current(services: Services, scope: Scope, worker: Worker, found: OAuth) -> Token | None:
    """The token of an OAuth capability, refreshed when it ends soon; None when there is none that can be used. Raises
    `HutchError` when a provider can't be asked and the token is over."""
    token = await _kept(services, scope, worker, found)
    if token is None or oauth.before_run(token, services.clock()) is Step.USE:
        return token
    refreshing = asyncio.create_task(_fresh(services, scope, worker, found))
    services.working.add(refreshing)
    refreshing.add_done_callback(services.working.discard)
    # The caller may go away. What it had sent may be used up by then, and the provider's answer all that is left of the login.
    return await asyncio.shield(refreshing)


async def _fresh(services: Services, scope: Scope, worker: Worker, found: OAuth) -> Token | None:
    async with services.turns.setdefault(f"oauth/{worker.id}/{found.name}", asyncio.Lock()):
        # Who waited finds what the one before got: a refresh token is often good for one use.
        token = await _kept(services, scope, worker, found)
        step = oauth.before_run(token, services.clock()) if token is not None else Step.RECONNECT
        if token is None or step is not Step.REFRESH:
            return token if step is Step.USE else None
        return await _refreshed(services, scope, worker, found, token)


async def _refreshed(services: Services, scope: Scope, worker: Worker, found: OAuth, token: Token) -> Token | None:
    lives = token.expires_at_ms is not None and token.expires_at_ms > services.clock()
    sent = token.refresh_token
    assert sent is not None
    try:
        usable = await _usable(services, found)
        answer = await _asked(
            services,
            usable,
            oauth.refresh_request(usable, sent),
            oauth.refresh_request(usable, sent, basic=True),
            token,
        )
    except HutchError as error:
        log.warning("the token '%s' of worker %s can't be refreshed: %s", found.name, worker.id, error.message)
        if lives:
            return token
        raise
    if isinstance(answer, Refused):
        log.warning("the token '%s' of worker %s was not refreshed: %s", found.name, worker.id, answer.error)
        if answer.final and (newer := await _given_up(services, scope, worker, found, sent)) is not None:
            return newer
        return token if lives else None
    refreshed = answer

    async def write() -> None:
        async with services.database.write() as connection:
            # Not over another login, nor for a worker that is gone.
            if await worker_oauth.holds(connection, scope, worker.id, found.name, sent, services.sealer):
                now = services.clock()
                await worker_oauth.put_token(connection, scope, worker.id, found.name, refreshed, services.sealer, now)

    await outage.written(write)
    return refreshed


async def _given_up(services: Services, scope: Scope, worker: Worker, found: OAuth, sent: str) -> Token | None:
    """Forget a login whose refresh token was refused; the token that somebody else got for it meanwhile, if it can be used."""
    async with services.database.write() as connection:
        if await worker_oauth.holds(connection, scope, worker.id, found.name, sent, services.sealer):
            await worker_oauth.remove_token(connection, scope, worker.id, found.name)
            return None
    newer = await _kept(services, scope, worker, found)
    return newer if newer is not None and oauth.before_run(newer, services.clock()) is Step.USE else None


async def tokens(services: Services, scope: Scope, worker: Worker, manifest: Manifest | None) -> dict[str, tuple[OAuth, str]]:
    """The access tokens of a worker's logins, with what each is for, by key of the capability. One without a token that can be
    used is not among them."""
    found: dict[str, tuple[OAuth, str]] = {}
    for item in manifest.capabilities if manifest is not None else ():
        if not isinstance(item.config, OAuth):
            continue
        try:
            token = await current(services, scope, worker, item.config)
        except HutchError as error:
            # The run says it better than we would: it fails where it needs the token, and only there.
            log.warning("a run of worker %s goes without '%s': %s", worker.id, item.config.name, error.message)
            continue
        if token is not None:
            found[item.key] = (item.config, token.access_token)
    return found


async def variables(services: Services, scope: Scope, worker: Worker, manifest: Manifest | None) -> dict[str, str]:
    """A worker's access tokens by their variables, as somebody needs them who runs it elsewhere."""
    found = await tokens(services, scope, worker, manifest)
    return {oauth.variable(config.name): token for config, token in found.values()}


async def placed(
    services: Services, worker: Worker, found: dict[str, tuple[OAuth, str]], declared: Mapping[str, tuple[str, ...]]
) -> tuple[list[Placed], dict[str, str]]:
    """How a run gets tokens: as placeholders, which the gateway replaces, where hosts are declared or known; and the variables
    that hold all others."""
    as_placeholders: list[Placed] = []
    plain: dict[str, str] = {}
    known = await _clients(services, strict=False) if found else {}
    for key, (config, token) in found.items():
        variable = oauth.variable(config.name)
        hosts = declared.get(key, providers.hosts(config, known))
        if hosts and len(variable) <= MAX_VARIABLE and len(as_placeholders) < MAX_PLACED:
            name = credentials.RESERVED + hashlib.sha256(f"{worker.id}/{config.name}".encode()).hexdigest()[:32]
            as_placeholders.append(Placed(variable=variable, credential=name, token=token, hosts=hosts))
        else:
            plain[variable] = token
    # Two capabilities of one name have one token, and one variable.
    for_variable = {one.variable: one for one in as_placeholders}
    return list(for_variable.values()), {name: token for name, token in plain.items() if name not in for_variable}


async def _usable(services: Services, found: OAuth) -> OAuth:
    """A capability with endpoints and a client. Raises `BadRequestError` (`oauth_unusable`)."""
    if found.type == "user_managed":
        return found
    usable = providers.managed(found, await _clients(services))
    if usable is None:
        raise BadRequestError("oauth_unusable", providers.unconfigured(found.provider or ""))
    return usable


async def _clients(services: Services, *, strict: bool = True) -> dict[str, Client]:
    """The operator's apps with providers. Raises `BadRequestError` (`oauth_unusable`), if `strict`, when the file is none."""
    path = services.settings.workers.oauth_clients
    if path is None:
        return {}
    try:
        return await asyncio.to_thread(providers.clients, path)
    except (OSError, ValueError) as error:
        log.warning("workers.oauth_clients can't be read: %s", error)
        if not strict:
            return {}
        raise BadRequestError(
            "oauth_unusable",
            "The operator's file of OAuth clients (workers.oauth_clients) can't be read; the server's log says why.",
        ) from error


async def _kept(services: Services, scope: Scope, worker: Worker, found: OAuth) -> Token | None:
    async with services.database.read() as connection:
        return (await worker_oauth.tokens(connection, scope, worker.id, services.sealer)).get(found.name)


# -- the token endpoint ------------------------------------------------------------------------------


async def _asked(services: Services, found: OAuth, request: Request, basic: Request, before: Token | None) -> Token | Refused:
    """What the provider says, with the client's secret in the form or, where it is refused so, in a header."""
    status, body = await _post(services, request)
    if status == UNAUTHORIZED and found.client_secret:
        status, body = await _post(services, basic)
    return oauth.answer(status, body, services.clock(), found.access_token_expire_ms, before)


async def _post(services: Services, request: Request) -> tuple[int, bytes]:
    """Raises `ForbiddenError` (`oauth_not_allowed`) and `UnavailableError` (`oauth_unreachable`). Redirects are answers."""
    parts = urlsplit(request.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = await _address(services, parts.netloc, host, port)
    at = f"[{address}]" if ":" in address else address
    headers = {
        **request.headers,
        "host": parts.netloc,
        "accept-encoding": "identity",
        "user-agent": f"hutch/{__version__}",
    }
    # Neither a proxy nor a .netrc of this machine has a part in this.
    async with httpx.AsyncClient(verify=services.trust, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
        url = parts._replace(netloc=f"{at}:{port}").geturl()
        sent = client.build_request("POST", url, data=request.form, headers=headers, extensions={"sni_hostname": host})
        content = bytearray()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await client.send(sent, stream=True)
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > oauth.MAX_ANSWER_BYTES:
                        break
                await response.aclose()
        except (httpx.HTTPError, TimeoutError) as error:
            raise UnavailableError(
                "oauth_unreachable", f"The token endpoint {parts.netloc} can't be asked: {type(error).__name__}.", retry_after_s=5
            ) from error
    return response.status_code, bytes(content)


async def _address(services: Services, authority: str, host: str, port: int) -> str:
    """A vetted address of a host."""
    try:
        return await Addresses.of(frozenset(services.settings.workers.oauth_hosts)).find(authority, host, port)
    except AddressClosed as error:
        raise ForbiddenError(
            "oauth_not_allowed",
            f"{authority} is at a private address, and the operator does not name it (workers.oauth_hosts).",
        ) from error
    except (OSError, UnicodeError) as error:
        raise UnavailableError("oauth_unreachable", f"The name {host} can't be resolved.", retry_after_s=5) from error
