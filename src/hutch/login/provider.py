"""The OpenID provider: its configuration, its keys, and what its code becomes. The one place that speaks with it.

Its answers are bounded in size and time, redirects are not followed, and what it says of itself is kept for an hour. A token that
names a key which is not known has the keys fetched again, but not twice within half a minute: whoever makes tokens up can't make
this server ask again and again. What it says is in the log where a login fails, but for tokens and codes.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import jwt

from hutch.clock import Clock, now_ms
from hutch.control import strict_json
from hutch.errors import BadRequestError, ForbiddenError, UnavailableError
from hutch.login import id_token, roles
from hutch.login.id_token import Expected, NotBelieved, UnknownKey
from hutch.login.roles import NotAdmitted, Person
from hutch.login.secrets import BrowserSecrets, challenge_of
from hutch.settings import SsoSettings

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 1024 * 1024
KEPT_S = 3600.0
REFETCH_S = 30.0
"""Between two fetches of the keys, and of a configuration that could not be had."""
MAX_CODE_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the provider says of itself (OpenID Connect Discovery)."""

    authorization: str
    token: str
    keys: str
    userinfo: str | None
    basic: bool
    """Whether it takes the client's secret as HTTP's basic authorization; in the body otherwise."""
    names_itself: bool
    """Whether it says who it is as it sends the browser back (RFC 9207)."""


class Provider:
    """A provider that is asked when it is needed; nothing is asked of it at start. `trust`: whom its certificate has to be of."""

    def __init__(
        self,
        settings: SsoSettings,
        trust: ssl.SSLContext,
        clock: Clock = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        assert settings.issuer is not None
        assert settings.client_id is not None
        self.settings = settings
        self.issuer = settings.issuer
        self._client_id = settings.client_id
        self._clock, self._monotonic, self._timeout_s = clock, monotonic, timeout_s
        self._http = httpx.AsyncClient(
            verify=trust,
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "hutch"},
        )
        self._turn = asyncio.Lock()
        self._endpoints: Endpoints | None = None
        self._endpoints_at = 0.0
        self._keys: list[jwt.PyJWK] = []
        self._keys_at: float | None = None
        self._failed_at: float | None = None

    async def aclose(self) -> None:
        await self._http.aclose()

    # -- to the provider and back ----------------------------------------------------------------------

    async def address(self, secrets: BrowserSecrets, redirect_uri: str) -> str:
        """Where a browser goes to log in. Raises `UnavailableError` (`provider_unavailable`)."""
        endpoints = await self._known()
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": secrets.state,
            "nonce": secrets.nonce,
            "code_challenge": challenge_of(secrets.verifier),
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(endpoints.authorization).query else "?"
        return f"{endpoints.authorization}{joint}{urlencode(query)}"

    async def check_sender(self, named: str | None) -> None:
        """Whether it was this provider that sent a browser back (RFC 9207). Raises `BadRequestError`, `UnavailableError`."""
        if named != self.issuer and (named is not None or (await self._known()).names_itself):
            raise BadRequestError("login_not_valid", "Another provider than this server's sent you here. Begin again.")

    async def person(self, code: str, secrets: BrowserSecrets, redirect_uri: str) -> Person:
        """Who came back with a code. Raises `BadRequestError` (`login_not_valid`), `ForbiddenError` (`login_refused`) and
        `UnavailableError` (`provider_unavailable`)."""
        endpoints = await self._known()
        answer = await self._exchange(endpoints, code, secrets.verifier, redirect_uri)
        token, access_token = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str) or not isinstance(access_token, str | None):
            raise self._away("its answer to a code has no ID token")
        try:
            claims = await self._claims(endpoints, token, access_token, secrets.nonce)
        except NotBelieved as error:
            log.warning("a login was refused: the ID token can't be believed: %s", error)
            raise BadRequestError(
                "login_not_valid", "What the provider says of you can't be believed. Begin again; the server's log says why."
            ) from error
        rules = self.settings.roles
        if endpoints.userinfo is not None and access_token is not None and roles.lacks(claims, rules):
            claims = roles.joined(claims, await self._userinfo(endpoints.userinfo, access_token, claims["sub"]))
        try:
            return roles.person(claims, rules, self.settings.email_domains)
        except NotAdmitted as error:
            log.warning("a login of the subject %r was refused: %s", claims["sub"], error)
            raise ForbiddenError("login_refused", str(error)) from error

    async def _exchange(self, endpoints: Endpoints, code: str, verifier: str, redirect_uri: str) -> dict[str, Any]:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": verifier}
        secret, headers = self.settings.client_secret, {}
        if secret is not None and endpoints.basic:
            # Both parts are form-encoded first (RFC 6749, 2.3.1).
            login = httpx.BasicAuth(quote(self._client_id, safe=""), quote(secret, safe=""))
            headers["authorization"] = login._auth_header
        else:
            form["client_id"] = self._client_id
            if secret is not None:
                form["client_secret"] = secret
        status, answer = await self._ask("POST", endpoints.token, form=form, headers=headers)
        if 400 <= status < 500:
            reason = answer.get("error")
            log.warning("the provider refused a code: %d %.100r", status, reason)
            if reason == "invalid_grant":
                raise BadRequestError("login_not_valid", "The provider says that this login is over, or was used. Begin again.")
            raise self._away(f"it refused this server ({status})")
        if status != 200:
            raise self._away(f"it answered a code with {status}")
        return answer

    async def _claims(self, endpoints: Endpoints, token: str, access_token: str | None, nonce: str) -> dict[str, Any]:
        expected = Expected(self.issuer, self._client_id, nonce, self._clock() // 1000)
        keys = await self._fresh_keys(endpoints)
        try:
            return id_token.checked(token, keys, expected, access_token)
        except UnknownKey:
            renewed = await self._fresh_keys(endpoints, another=True)
            if renewed is keys:
                raise
            return id_token.checked(token, renewed, expected, access_token)

    async def _userinfo(self, url: str, access_token: str, subject: str) -> Mapping[str, Any]:
        status, answer = await self._ask("GET", url, headers={"authorization": f"Bearer {access_token}"})
        if status != 200:
            raise self._away(f"it answered {status} at its userinfo endpoint")
        if answer.get("sub") != subject:
            raise BadRequestError("login_not_valid", "The provider told of somebody else than who logged in. Begin again.")
        return answer

    # -- what it says of itself ------------------------------------------------------------------------

    async def _known(self) -> Endpoints:
        async with self._turn:
            now = self._monotonic()
            if self._endpoints is None or now - self._endpoints_at >= KEPT_S:
                if self._failed_at is not None and now - self._failed_at < 1.0:
                    raise self._away("it could not be asked a moment ago")
                try:
                    self._endpoints = await self._discovered()
                except UnavailableError:
                    self._failed_at = self._monotonic()
                    raise
                self._endpoints_at = self._monotonic()
            return self._endpoints

    async def _discovered(self) -> Endpoints:
        status, said = await self._ask("GET", f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != 200:
            raise self._away(f"it answered {status} for its configuration")
        if said.get("issuer") != self.issuer:
            raise self._away(f"it calls itself {str(said.get('issuer'))[:200]!r}, and sso.issuer is {self.issuer!r}")
        userinfo = said.get("userinfo_endpoint")
        methods = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return Endpoints(
            authorization=self._url(said, "authorization_endpoint"),
            token=self._url(said, "token_endpoint"),
            keys=self._url(said, "jwks_uri"),
            userinfo=self._url(said, "userinfo_endpoint") if userinfo is not None else None,
            basic=not isinstance(methods, list) or "client_secret_basic" in methods or "client_secret_post" not in methods,
            names_itself=said.get("authorization_response_iss_parameter_supported") is True,
        )

    def _url(self, said: Mapping[str, Any], name: str) -> str:
        """An endpoint: by TLS, as the provider is itself."""
        value = said.get(name)
        parts = urlsplit(value) if isinstance(value, str) and len(value) <= 2048 else None
        plain = self.issuer.startswith("http://")
        if (
            parts is None
            or parts.scheme not in (("http", "https") if plain else ("https",))
            or not parts.hostname
            or parts.fragment
        ):
            raise self._away(f"its configuration has no `{name}` that can be used")
        return str(value)

    async def _fresh_keys(self, endpoints: Endpoints, *, another: bool = False) -> list[jwt.PyJWK]:
        """Its keys; those that are known, unless they are old, or `another` is wanted and the last fetch is a while ago."""
        async with self._turn:
            age = None if self._keys_at is None else self._monotonic() - self._keys_at
            if age is None or age >= KEPT_S or (another and age >= REFETCH_S):
                status, document = await self._ask("GET", endpoints.keys)
                if status != 200:
                    raise self._away(f"it answered {status} for its keys")
                self._keys_at = self._monotonic()
                self._keys = id_token.keys_of(document)
            return self._keys

    # -- asking ----------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer; of one that is none of success, an empty object where it has none."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, url, data=form, headers=headers) as response,
            ):
                raw = bytearray()
                async for chunk in response.aiter_raw():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise self._away(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise self._away(f"it does not answer within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, ValueError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from error
        try:
            answer = strict_json.load(bytes(raw))
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return response.status_code, answer
        if response.status_code == 200:
            raise self._away("its answer is not a JSON object")
        return response.status_code, {}

    def _away(self, why: str) -> UnavailableError:
        """It can't be used. What it said stays in the log."""
        log.warning("the provider %s can't be used: %s", self.issuer, why)
        return UnavailableError(
            "provider_unavailable", "The provider of logins can't be used now; the server's log says why.", retry_after_s=5
        )
