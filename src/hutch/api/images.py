"""Images: those that `make setup` built, which belong to everybody, and those of registries, which the host pulls for a project.

A create that names an image which is not here has it pulled, if the caller may have it pulled, and waits for that, but not for
ever.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.auth import Principal
from hutch.api.body import read
from hutch.api.credentials import logged
from hutch.api.paging import flag
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import ResolvedImage, Services, services_of
from hutch.api.snapshots import check_quota, usable
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.control.requests import BuildImage, LogIn, PullImage
from hutch.errors import BadRequestError, ForbiddenError, NotFoundError, UnavailableError
from hutch.host.protocol import ImageBuild, ImageFound, ImagePull, ImageQuery, ImageRecord, ImageRemove, ImageUser
from hutch.oci import reference
from hutch.storage import credentials as rows

router = APIRouter(route_class=PlainRoute, tags=["images"])

LOGIN = "registry:"
"""What the names of logins begin with among a project's credentials; no rule of a policy can name one, for the colon."""
_REGISTRY = re.compile(r"[a-z0-9.:\[\]-]{1,55}")
_PROJECT = {"projectId": "Id or slug"}
_SHARED = {**_PROJECT, "shared": "`true`: of everybody's images; for administrators"}


@router.get("/hutch/v1/images", openapi_extra=documented(query=_PROJECT, answer=answers.ImageList, needs=Permission.IMAGE_READ))
async def list_images(request: Request) -> Response:
    """Images that sandboxes can start from: this server's own, then the project's and everybody's."""
    services, _, scope = await _caller(request, one=False)
    built = [shapes.built_image(image) for image in services.images.list()]
    pulled = await services.host.collect("image.list", {"project_id": scope.project_id or ""}, ImageRecord)
    return JsonResponse({"images": built + [shapes.pulled_image(record) for record in pulled]})


@router.post(
    "/hutch/v1/images",
    status_code=201,
    openapi_extra=documented(
        PullImage, query=_PROJECT, status=201, answer=answers.Image, errors=(402, 404, 409), needs=Permission.IMAGE_WRITE
    ),
)
async def pull_image(request: Request) -> Response:
    """Fetch an image from its registry, also where it is here already: a tag may mean another one by now."""
    services, principal, scope = await _caller(request)
    body = await read(request, PullImage)
    if body.shared and not principal.is_admin:
        raise ForbiddenError("forbidden", "Only administrators pull images for everybody.")
    wanted = reference.parse(body.reference)
    if not _may_pull(services, principal, wanted):
        raise _not_allowed(wanted)
    pull = await _request(services, principal, scope, wanted, name=body.name, shared=body.shared)
    record = await services.host.call("image.pull", pull, ImageRecord)
    return JsonResponse(shapes.pulled_image(record), status=201)


@router.post(
    "/hutch/v1/images/from-snapshot",
    status_code=201,
    openapi_extra=documented(
        BuildImage, query=_PROJECT, status=201, answer=answers.Image, errors=(402, 404, 409, 410), needs=Permission.IMAGE_WRITE
    ),
)
async def build_image(request: Request) -> Response:
    """Make an image of a snapshot: the layers of the image that the snapshot lies over, and its files as one more. It is not
    needed any more then."""
    services, principal, scope = await _caller(request)
    body = await read(request, BuildImage)
    if body.shared and not principal.is_admin:
        raise ForbiddenError("forbidden", "Only administrators make images for everybody.")
    assert scope.project_id is not None
    async with services.database.read() as connection:
        await usable(connection, scope, body.snapshotId, services.clock())
    await _check_quota(services, scope)
    config = body.config
    build = ImageBuild(
        snapshot_id=body.snapshotId,
        name=body.name,
        project_id="" if body.shared else scope.project_id,
        env=config.env,
        labels=config.labels,
        cwd=config.cwd,
        user=ImageUser(**config.user.model_dump()) if config.user is not None else None,
        cmd=config.cmd,
        entrypoint=config.entrypoint,
    )
    return JsonResponse(shapes.pulled_image(await services.host.call("image.build", build, ImageRecord)), status=201)


@router.delete(
    "/hutch/v1/images/{name:path}",
    status_code=204,
    openapi_extra=documented(query=_SHARED, status=204, errors=(409,), needs=Permission.IMAGE_WRITE),
)
async def remove_image(request: Request, name: str) -> Response:
    """Forget a name of an image; with its last one the image goes, unless something needs it."""
    services, principal, scope = await _caller(request)
    shared = flag(request, "shared")
    if shared and not principal.is_admin:
        raise ForbiddenError("forbidden", "Only administrators remove images of everybody.")
    assert scope.project_id is not None
    await services.host.call("image.remove", ImageRemove(name=name, project_id="" if shared else scope.project_id))
    return Response(status_code=204)


@router.get(
    "/hutch/v1/registries",
    openapi_extra=documented(query=_PROJECT, answer=answers.RegistryList, needs=Permission.CREDENTIAL_READ),
)
async def list_logins(request: Request) -> Response:
    """Registries that the project has a login for."""
    services, _, scope = await _caller(request)
    async with services.database.read() as connection:
        records = await rows.list_names(connection, scope, prefix=LOGIN)
    return JsonResponse({"registries": [shapes.credential(record) for record in records]})


@router.put(
    "/hutch/v1/registries/{registry}",
    status_code=204,
    openapi_extra=documented(LogIn, query=_PROJECT, status=204, needs=Permission.CREDENTIAL_WRITE),
)
async def log_in(request: Request, registry: str) -> Response:
    """Store the project's login for a registry; it is sealed, and shown to nobody but that registry."""
    services, _, scope = await _caller(request)
    if _REGISTRY.fullmatch(registry) is None:
        raise BadRequestError("bad_request", "Invalid request: the registry should be HOST[:PORT] of at most 55 characters.")
    body = await read(request, LogIn)
    async with services.database.write() as connection:
        login = f"{body.username}:{body.password}"
        await rows.put(connection, scope, LOGIN + registry, login, services.sealer, services.clock())
        await logged(connection, services, request, scope, "registry.login", registry)
    return Response(status_code=204)


@router.delete(
    "/hutch/v1/registries/{registry}",
    status_code=204,
    openapi_extra=documented(query=_PROJECT, status=204, needs=Permission.CREDENTIAL_WRITE),
)
async def log_out(request: Request, registry: str) -> Response:
    """Forget a login. Images that it pulled stay."""
    services, _, scope = await _caller(request)
    async with services.database.write() as connection:
        if _REGISTRY.fullmatch(registry) is None or not await rows.remove(connection, scope, LOGIN + registry):
            raise NotFoundError("not_found", f"The project has no login for '{registry[:128]}'.")
        await logged(connection, services, request, scope, "registry.logout", registry)
    return Response(status_code=204)


async def _check_quota(services: Services, scope: Scope) -> None:
    """Raises `PaymentRequiredError` when a project's snapshots and the images that were made of them hold as much as they may."""
    if not services.settings.limits.snapshot_bytes_per_project:
        await check_quota(services, scope)
        return
    records = await services.host.collect("image.list", {"project_id": scope.project_id}, ImageRecord)
    layers = {layer: size for one in records if not one.source and not one.shared for layer, size in one.layers}
    servers = {layer.digest for image in services.images.list() for layer in image.layers}
    await check_quota(services, scope, sum(size for layer, size in layers.items() if layer not in servers))


async def _caller(request: Request, *, one: bool = True) -> tuple[Services, Principal, Scope]:
    services = services_of(request)
    principal = await services.auth.principal(request)
    project = request.query_params.get("projectId") or request.query_params.get("project")
    return services, principal, await services.auth.scope(request, principal, project, one=one)


# -- shared with sandboxes.py -----------------------------------------------------------------------


async def resolve(services: Services, principal: Principal, scope: Scope, text: str, runtime: str | None) -> ResolvedImage:
    """What a create means by an image. Raises `NotFoundError`, and `UnavailableError` (`image_not_ready`) while it is being
    pulled."""
    try:
        return await _resolved(services, principal, scope, text, runtime)
    except NotFoundError as error:
        # The vendor's code for whatever a create names and nobody has.
        raise NotFoundError("not_found", error.message) from error


async def _resolved(services: Services, principal: Principal, scope: Scope, text: str, runtime: str | None) -> ResolvedImage:
    try:
        return _found(services.images.resolve(text, runtime))
    except NotFoundError:
        if runtime is not None:
            raise
    query = ImageQuery(reference=text, project_id=scope.project_id or "")
    try:
        return _found(await services.host.call("image.resolve", query, ImageFound))
    except NotFoundError:
        if not reference.names_registry(text):
            raise
    wanted = reference.parse(text)
    if not _may_pull(services, principal, wanted):
        raise NotFoundError(
            "image_not_found",
            f"There is no image {text!r} here, and the project may not pull from {wanted.registry} (image.registries). "
            f"An administrator can: `hutch image pull {text}`.",
        )
    pull = await _request(services, principal, scope, wanted)
    wait_s = services.settings.image.pull_wait_s
    try:
        await asyncio.wait_for(services.host.call("image.pull", pull, ImageRecord), wait_s)
    except TimeoutError as error:
        raise UnavailableError(
            "image_not_ready", f"The image {text} is still being pulled after {wait_s} s. Try again.", retry_after_s=10
        ) from error
    return _found(await services.host.call("image.resolve", query, ImageFound))


async def resolve_exact(services: Services, pinned: str) -> ResolvedImage:
    """The image of a sandbox or snapshot that is there. Raises `NotFoundError` (`image_not_found`)."""
    try:
        return _found(services.images.resolve(pinned, None))
    except NotFoundError:
        return _found(await services.host.call("image.resolve", ImageQuery(reference=pinned, exact=True), ImageFound))


def _found(image: Any) -> ResolvedImage:
    return ResolvedImage(image.pinned, image.cwd)


# -- pulling ----------------------------------------------------------------------------------------


def _may_pull(services: Services, principal: Principal, wanted: reference.Reference) -> bool:
    registries = services.settings.image.registries
    return principal.is_admin or "*" in registries or wanted.registry in registries


def _not_allowed(wanted: reference.Reference) -> ForbiddenError:
    return ForbiddenError(
        "registry_not_allowed",
        f"Projects may not pull from {wanted.registry}: the server's settings do not name it (image.registries).",
    )


async def _request(
    services: Services,
    principal: Principal,
    scope: Scope,
    wanted: reference.Reference,
    *,
    name: str | None = None,
    shared: bool = False,
) -> ImagePull:
    """A pull, with the project's login for the registry."""
    assert scope.project_id is not None
    stored = LOGIN + wanted.registry
    async with services.database.read() as connection:
        login = (await rows.values(connection, scope, [stored], services.sealer)).get(stored)
    username, _, password = (login or "").partition(":")
    return ImagePull(
        reference=str(wanted),
        project_id="" if shared else scope.project_id,
        name=name,
        username=username if login is not None else None,
        password=password if login is not None else None,
        operator=principal.is_admin,
    )
