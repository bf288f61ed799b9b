"""Requests made of the API's own document, and what must hold of their answers.

schemathesis makes them: values at the edges of every parameter and field, and random ones, of a seed that does not change.
`Asking` sends them and checks what comes back: the status, the content type, the fields and the headers are those that the
document names, what it allows is taken, what it does not is refused, and so is whoever has no token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis
from schemathesis import Case, GenerationMode, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.coverage import GenerationSession
from schemathesis.specs.openapi.checks import ignored_auth

from hutch.api import openapi
from tests.answers import ROUTES

CONFIG = SchemathesisConfig.from_dict(
    {
        # The token comes with every request.
        "generation": {"with-security-parameters": False},
        "checks": {
            # `accepts_what_is_allowed` does that.
            "positive_data_acceptance": {"enabled": False},
            "negative_data_rejection": {"expected-statuses": [400, 401, 402, 403, 404, 405, 409, 410, 412, 413, 422]},
        },
    }
)
SCHEMA = schemathesis.openapi.from_dict(openapi.document(ROUTES), config=CONFIG)
OPERATIONS: dict[str, Any] = {found.ok().definition.raw["operationId"]: found.ok() for found in SCHEMA.get_all_operations()}  # type: ignore[union-attr]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
TIMEOUT_S = 20

POLICY = "invalid_network_policy"
SANDBOX = (POLICY, "not_supported", "sandbox_timeout_invalid")
"""Grammar of policies; `networkId`, which only the vendor has; a limit that is a setting."""
UNSAID: dict[str, tuple[str, ...]] = {
    "create_sandbox": SANDBOX,
    "fork_sandbox": SANDBOX,
    "update_sandbox": SANDBOX,
    "extend_timeout": ("sandbox_timeout_invalid",),
    "set_network_policy": (POLICY,),
    "put_team_policy": (POLICY,),
    "put_project_policy": (POLICY,),
    "put_worker_network": (POLICY,),
    # A grammar of its own.
    "pull_image": ("image_reference_invalid",),
    "build_image": ("image_reference_invalid",),
    "schedule_sync": ("schedule_invalid",),
    # That of URLs, and where those may lead.
    "put_team_budget": ("webhook_invalid",),
    "put_project_budget": ("webhook_invalid",),
    # Programs are those of the image.
    "start_command": ("executable_not_found",),
    # What is uploaded is random.
    "write_files": ("invalid_archive",),
    "import_snapshot": ("invalid_archive",),
}
"""Codes with which an operation may refuse what the document allows: what the document can't say."""
RELATIONS = (
    "`source.url` should",
    "the form has no `press`",
    "`port` and `state` together",
    "is not a cursor of this list",
    "is only valid when",
    "are only valid when",
    "can't be used together",
    "per vCPU",
    "64 bits don't hold",
    "should be base64",
    "lowercase letters, digits and inner hyphens",
    "`mounts` has",
    "`ttl_s` should be <=",
    "one of `page_id` and `data_source_id`",
    "`base_url` should be http(s)",
    "`expiresIn` should be",
    "`scopes` has what the role",
    # Regions are a setting.
    'allowed values "arn1", "bom1"',
    # A class of what a text does not have; in one case schemathesis makes it without.
    "`identity` should match pattern",
)
"""Parts of messages about what a JSON schema can't say, or only at great length: relations between fields, names of reserved
directories, limits that are settings."""
PAGES = ("workers_oauth_callback", "confirm_worker_login")
"""Operations that answer people with pages; what makes them a success is made for each of them."""
STATES = {401, 402, 403, 404, 409, 410, 412, 422}
"""What a request may be answered that is well-formed."""


@schemathesis.serializer("application/gzip", "application/x-tar")
def _bytes(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def at_the_edges(operation: Any, mode: GenerationMode) -> Iterator[Case[Any]]:
    """Every case of an operation that is not random."""
    configured = SCHEMA.config.generation_for(operation=operation)
    # Methods that a path does not have are tried once in each session, and other tests in this process try them too.
    yield from SCHEMA.iter_coverage_cases(
        operation, generation_modes=[mode], generation_config=configured, session=GenerationSession()
    )


class Asking:
    """Sends cases to the server, and looks at what comes back."""

    def __init__(self, url: str, token: str) -> None:
        self._base_url = f"{url}/api"
        self._session = requests.Session()
        self._headers = {"Authorization": f"Bearer {token}"}
        self._guarded: set[str] = set()
        """Operations that were seen to refuse requests without a token."""
        self.statuses: Counter[int] = Counter()
        self.operations: set[str] = set()

    def close(self) -> None:
        self._session.close()

    def __call__(self, case: Case[Any]) -> bool:
        """Whether it was a success."""
        if case.meta is not None and case.meta.is_negative_at(ParameterLocation.QUERY) and "" in case.query.values():
            # An empty parameter counts as one that is not there (`allowEmptyValue`).
            return False
        label = case.operation.label
        response = case.call(self._base_url, self._session, self._headers, timeout=TIMEOUT_S)
        case.validate_response(
            response,
            headers=self._headers,
            additional_checks=[accepts_what_is_allowed],
            excluded_checks=[ignored_auth] if label in self._guarded else [],
            transport_kwargs={"base_url": self._base_url, "headers": self._headers, "timeout": TIMEOUT_S},
        )
        self.statuses[response.status_code] += 1
        self.operations.add(case.operation.definition.raw["operationId"])
        if response.status_code < 300:
            self._guarded.add(label)
        return response.status_code < 300


def accepts_what_is_allowed(context: Any, response: Response, case: Case[Any]) -> bool | None:
    """Schemathesis has such a check, which can't tell 400 from 400."""
    if (
        case.meta is None
        or not case.meta.generation.mode.is_positive
        or response.status_code < 400
        or response.status_code in STATES
    ):
        return None
    if case.method not in case.operation.method.upper():
        return None
    name = case.operation.definition.raw["operationId"]
    if name in PAGES:
        assert response.status_code == 400
        return None
    error = response.json()["error"]
    said = error["code"] in UNSAID.get(name.removeprefix(openapi.FIRST), ()) or any(
        part in error["message"] for part in RELATIONS
    )
    assert response.status_code == 400, f"refused: {response.status_code} {error}"
    assert said, f"refused: {error}"
    return None
