"""Every image that this machine can start: those that `make setup` built, those that were pulled from registries, and those that
were made of snapshots.

    pull ─▶ blobs into a directory of its own, checked ─▶ unpacked by a process shut in ─▶ EROFS file by its hash ─▶ journal
    build ─▶ what a snapshot holds, packed by a process shut in ─▶ one more layer over the snapshot's image ─▶ journal
    removal ─▶ name forgotten ─▶ nothing names or needs it any more ─▶ journal ─▶ unmounted ─▶ file removed

A pulled image is known by the digest of its manifest, and unpacked once, whatever names it has and whoever pulls it. One made of
a snapshot has the layers of the image below it, whose files stay as long as either needs them (those of `make setup` where setup
put them), and is known by a digest of its layers and its configuration. A name belongs to a project, or to all; pulling asks the
registry with the project's own rights even where the image is here already.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from hutch.clock import now_ms
from hutch.errors import BadRequestError, ConflictError, NotFoundError, UnavailableError, from_wire
from hutch.host import kernel
from hutch.host.journal import ImageEntry, ImageName, Journal
from hutch.host.protocol import ImageBuild, ImageFound, ImagePull, ImageQuery, ImageRecord, ImageRemove
from hutch.host.storage import MIN_FREE_BYTES
from hutch.images import DEFAULT_TAG, MAX_LAYERS, REGISTRY_PREFIX, Image, ImageConfig, ImageStore, Layer
from hutch.oci import documents, reference, registry, unpack, written
from hutch.oci.addresses import Addresses
from hutch.oci.layers import LayerFile
from hutch.oci.registry import Login, Registry
from hutch.oci.users import User
from hutch.settings import Settings

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 8
UNPACKED_AT_ONCE = 2
"""Pulls wait for somebody else's network, and unpacking for our processors and disk."""
PULL_TIMEOUT_S = 3600.0
UNPACK_TIMEOUT_S = 1800.0
MAX_ANSWER_BYTES = 1024 * 1024
MAX_NAMES = 1000
"""Of one project."""
MAX_AUTH_FILE_BYTES = 1024 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")

R = TypeVar("R")

NeededBy = Callable[[str], list[str]]
Reading = contextlib.AbstractAsyncContextManager[Path]
LetGo = Callable[[str], Awaitable[None]]
"""Sessions and snapshots that need the image with a digest."""

POOL = "the pool"
"""What machines that are kept ready are called among those that need an image."""


class Images:
    """Owner of the pulled images of one instance on this machine. `directory` is theirs alone."""

    def __init__(
        self, settings: Settings, journal: Journal, directory: Path, built: ImageStore, forget_mount: Callable[[Path], None]
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._blobs = directory / "blobs" / "sha256"
        self._staging = directory / "staging"
        self.built = built
        self._forget_mount = forget_mount
        self._entries: dict[str, ImageEntry] = {}
        self._names: dict[tuple[str, str], ImageName] = {}
        self._held: Counter[str] = Counter()
        self._needed_by: NeededBy = lambda _: []
        self._let_go: LetGo | None = None
        self._pulling: dict[ImagePull, asyncio.Task[ImageRecord]] = {}
        self._building: set[asyncio.Task[ImageRecord]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(PULLS_AT_ONCE)
        self._unpacking = asyncio.Semaphore(UNPACKED_AT_ONCE)
        self._promised = 0
        """Bytes of disk that those who unpack now may write."""
        self._given_back = asyncio.Condition()
        # Held while files appear or go: two images may have the same one.
        self._placing = asyncio.Lock()

    def open(self) -> None:
        """Read what there is, and remove what a predecessor was making. Before the journal is started; blocks."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True, mode=0o700)
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._journal.images():
            if all(self._file(digest).is_file() for digest, _ in entry.layers):
                self._entries[entry.digest] = entry
            else:
                log.error("the files of image %s are not there any more; pull or build it again", entry.digest)
        names = [name for name in self._journal.image_names() if name.digest in self._entries]
        self._names = {(name.project_id, name.name): name for name in names}
        known = {self._blob(digest).name for entry in self._entries.values() for digest, _ in entry.layers}
        for path in self._blobs.iterdir():
            if path.name not in known:
                path.unlink()

    def start(self, needed_by: NeededBy, let_go: LetGo | None = None) -> None:
        """From here on images may be pulled and removed. `let_go` is told of one that is about to be removed."""
        self._needed_by = needed_by
        self._let_go = let_go

    async def close(self) -> None:
        """End what is being pulled and built."""
        tasks = [*self._pulling.values(), *self._building]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- finding -----------------------------------------------------------------------------------

    def exact(self, pinned: str) -> Image:
        """The image of a session or snapshot. Raises `NotFoundError` (`image_not_found`)."""
        name, at, digest = pinned.partition("@")
        entry = self._entries.get(digest) if at else None
        return self._image(name, entry) if entry is not None else self.built.resolve(pinned)

    def find(self, query: ImageQuery) -> ImageFound:
        """Raises `NotFoundError` (`image_not_found`)."""
        image = self.exact(query.reference) if query.exact else self.resolve(query.reference, query.project_id)
        return ImageFound(pinned=image.pinned, cwd=image.config.cwd)

    def resolve(self, text: str, project_id: str) -> Image:
        """What a reference means to a project: an image that was built here, one of its own, or one of everybody's. Raises
        `NotFoundError` (`image_not_found`)."""
        try:
            return self.built.resolve(text)
        except NotFoundError:
            wanted = _name_of(text)
            repository, _, digest = wanted.partition("@")
            for scope in (project_id, ""):
                found = self._names.get((scope, wanted))
                if found is None and digest:
                    found = self._by_digest(scope, _repository(repository), digest)
                if found is not None:
                    return self._image(_repository(found.name), self._entries[found.digest])
            raise

    def _by_digest(self, scope: str, repository: str, digest: str) -> ImageName | None:
        for name in self._names.values():
            if name.project_id == scope and digest in (name.digest, name.index_digest) and _repository(name.name) == repository:
                return name
        return None

    def _image(self, name: str, entry: ImageEntry) -> Image:
        layers = tuple(Layer(self._file(digest), digest, size) for digest, size in entry.layers)
        config = ImageConfig(entry.user, entry.uid, entry.gid, tuple(entry.groups), entry.home, entry.cwd, dict(entry.env))
        return Image(name, (), entry.digest, layers, config)

    def _blob(self, digest: str) -> Path:
        return self._blobs / f"{digest.removeprefix('sha256:')}.erofs"

    def _file(self, digest: str) -> Path:
        """A layer: one of ours, or one that `make setup` built."""
        own = self._blob(digest)
        return own if own.is_file() else self.built.directory / "blobs" / "sha256" / own.name

    def list(self, project_id: str) -> list[ImageRecord]:
        """A project's images and everybody's, by name."""
        names = [name for name in self._names.values() if name.project_id in (project_id, "")]
        return [self._record(name) for name in sorted(names, key=lambda name: (name.name, name.project_id))]

    def _record(self, name: ImageName) -> ImageRecord:
        entry = self._entries[name.digest]
        return ImageRecord(
            name=name.name,
            digest=name.digest,
            source=name.source,
            shared=not name.project_id,
            size_bytes=sum(size for _, size in entry.layers),
            pulled_at=name.pulled_at,
            user=entry.user,
            home=entry.home,
            cwd=entry.cwd,
            env=entry.env,
            labels=entry.labels,
            cmd=entry.cmd,
            entrypoint=entry.entrypoint,
            layers=entry.layers,
        )

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """An image that is about to be needed is not removed meanwhile."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1

    # -- pulling -----------------------------------------------------------------------------------

    async def pull(self, request: ImagePull) -> ImageRecord:
        """Fetch an image; several who ask for the same at once get one pull. Raises `HutchError`."""
        task = self._pulling.get(request)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._pull(request))
            self._pulling[request] = task
            task.add_done_callback(lambda _: self._pulling.pop(request, None))
        # The caller may go away; the next one then finds the image.
        return await asyncio.shield(task)

    async def _pull(self, request: ImagePull) -> ImageRecord:
        wanted = reference.parse(request.reference)
        alias = self._alias(request.name) if request.name is not None else None
        self._check_room(request.project_id)
        login = self._login(request, wanted)
        try:
            access = await self._access()
            async with self._slots, asyncio.timeout(PULL_TIMEOUT_S), Registry(wanted, access, login) as source:
                index_digest, manifest = "", await source.document(wanted.digest or wanted.tag)
                if manifest.media_type in documents.INDEXES:
                    chosen = documents.choose(manifest.raw, manifest.media_type)
                    index_digest, manifest = manifest.digest, await source.document(chosen.digest)
                with self.held(manifest.digest):
                    # Somebody else may be unpacking it under another name.
                    async with self._turns.setdefault(manifest.digest, asyncio.Lock()):
                        if manifest.digest not in self._entries:
                            await self._fetch(source, manifest)
                    name = await self._named(request.project_id, str(wanted), manifest.digest, request.reference, index_digest)
                    if alias is not None:
                        name = await self._named(request.project_id, alias, manifest.digest, request.reference, index_digest)
        except TimeoutError as error:
            raise UnavailableError("image_pull_failed", f"{wanted} was not here within {PULL_TIMEOUT_S:.0f} s.") from error
        except OSError as error:
            log.error("%s could not be pulled: %s", wanted, error)
            raise UnavailableError("image_pull_failed", f"{wanted} could not be kept here: {error.strerror or error}.") from error
        await self.collect()
        return self._record(name)

    def _alias(self, name: str) -> str:
        wanted = _name_of(name)
        if len(name) > reference.MAX_LENGTH or _NAME.fullmatch(wanted) is None or reference.names_registry(name):
            raise BadRequestError(
                "bad_request", f"{name[:255]!r} is no name for an image: lower-case letters, digits, `.`, `_`, `-`, `/`."
            )
        for meant in (wanted, wanted.removesuffix(f":{DEFAULT_TAG}")):
            with contextlib.suppress(NotFoundError):
                self.built.resolve(meant)
                raise ConflictError("image_name_taken", f"{meant} is an image of this server's own.")
        return wanted

    def _check_room(self, project_id: str) -> None:
        if sum(name.project_id == project_id for name in self._names.values()) >= MAX_NAMES:
            raise BadRequestError(
                "too_many_images", f"There are {MAX_NAMES} names of images, the most that are kept. Remove some."
            )

    async def _named(self, project_id: str, name: str, digest: str, source: str, index_digest: str = "") -> ImageName:
        made = ImageName(
            project_id=project_id,
            name=name,
            digest=digest,
            source=source,
            pulled_at=now_ms(),
            index_digest=index_digest,
        )
        await self._journal.put_image_name(made)
        self._names[made.project_id, made.name] = made
        return made

    async def _access(self) -> registry.Access:
        settings = self._settings.image
        known = {reference.served_at(name) for name in (*settings.registries, *settings.insecure_registries) if name != "*"}
        trust = await asyncio.to_thread(registry.trust, self._settings.egress.extra_trust_roots)
        return registry.Access(Addresses.of(frozenset(known)), frozenset(settings.insecure_registries), trust)

    def _login(self, request: ImagePull, wanted: reference.Reference) -> Login | None:
        if request.username is not None and request.password is not None:
            return Login(request.username, request.password)
        file = self._settings.image.auth_file
        return read_login(file, wanted.registry) if request.operator and file is not None else None

    async def _fetch(self, source: Registry, found: registry.Document) -> None:
        """Bring an image here. Whatever goes wrong, nothing of it is left."""
        limits = self._settings.image
        manifest = documents.manifest(found.raw, found.media_type, limits.max_bytes)
        # The blobs, what they unpack to, and that packed; three times as much is usual for text. What it really is shows later.
        needed = sum(layer.size for layer in manifest.layers) * 4 + MIN_FREE_BYTES
        if shutil.disk_usage(self._staging).free < needed:
            raise UnavailableError("disk_full", f"The image needs about {needed} bytes of free disk space.", retry_after_s=60)
        directory = self._staging / secrets.token_hex(8)
        try:
            (directory / "blobs").mkdir(parents=True, mode=0o700)
            await source.blob(manifest.config, directory / "config")
            config = documents.config((directory / "config").read_bytes(), len(manifest.layers))
            places: dict[str, str] = {}
            for layer in manifest.layers:
                if layer.digest not in places:
                    places[layer.digest] = f"blobs/{len(places)}"
                    await source.blob(layer, directory / places[layer.digest])
            layers = [
                LayerFile(
                    path=f"{unpack.INSIDE}/{places[layer.digest]}",
                    compression=documents.LAYERS[layer.media_type],
                    diff_id=diff_id,
                )
                for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
            ]
            # What it unpacks to, and that packed.
            async with self._room(copies=2) as room_bytes:
                request = unpack.Request(
                    layers=layers,
                    user=config.user,
                    cwd=config.cwd,
                    max_bytes=limits.max_bytes,
                    room_bytes=room_bytes,
                    max_entries=limits.max_entries,
                )
                unpacked = await _confined([directory], request, unpack.Result)
            async with self._placing:
                packed = await asyncio.to_thread(self._put, directory / "image.erofs")
                entry = _entry(found.digest, packed, unpacked.user, config)
                await self._journal.put_image(entry)
                self._entries[entry.digest] = entry
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _room(self, copies: int) -> AsyncIterator[int]:
        """A turn at unpacking, and how many bytes an image may have of which `copies` are written. Who would have less than
        others leave waits for them."""
        wanted = self._settings.image.max_bytes * copies
        async with self._unpacking:
            async with self._given_back:
                await self._given_back.wait_for(lambda: not self._promised or self._free() >= wanted)
                room = max(0, min(self._free(), wanted))
                self._promised += room
            try:
                yield room // copies
            finally:
                self._promised -= room
                async with self._given_back:
                    self._given_back.notify_all()

    def _free(self) -> int:
        return shutil.disk_usage(self._staging).free - MIN_FREE_BYTES - self._promised

    def _put(self, packed: Path) -> tuple[str, int]:
        """An EROFS file among the others, under its hash; its digest and size. Durable when it returns."""
        with packed.open("rb") as file:
            hexadecimal = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        packed.chmod(0o444)
        size = packed.stat().st_size
        digest = f"sha256:{hexadecimal}"
        packed.replace(self._blob(digest))
        kernel.sync_directory(self._blobs)
        return digest, size

    # -- building ----------------------------------------------------------------------------------

    async def build(self, request: ImageBuild, base: Image, reading: Reading) -> ImageRecord:
        """Make an image of what lies in the upper directory of an overlay over `base`, to which nobody writes. Raises
        `HutchError`; `reading` does when the directory was removed meanwhile."""
        task = asyncio.get_running_loop().create_task(self._build(request, base, reading))
        self._building.add(task)
        task.add_done_callback(self._building.discard)
        # The caller may go away; half of what is to be written down would be worse than the image.
        return await asyncio.shield(task)

    async def _build(self, request: ImageBuild, base: Image, reading: Reading) -> ImageRecord:
        alias = self._alias(request.name)
        self._check_room(request.project_id)
        if len(base.layers) >= MAX_LAYERS:
            raise documents.invalid(f"it would have more than {MAX_LAYERS} layers; begin with an image that has fewer")
        limits = self._settings.image
        directory = self._staging / secrets.token_hex(8)
        with self.held(base.digest):
            try:
                directory.mkdir(mode=0o700)
                async with self._room(copies=1) as room_bytes, reading as tree:
                    bounds = written.Request(max_bytes=limits.max_bytes, room_bytes=room_bytes, max_entries=limits.max_entries)
                    await _confined([directory, tree], bounds, written.Result)
                async with self._placing:
                    packed = await asyncio.to_thread(self._put, directory / "image.erofs")
                    entry = self._over(base, packed, request)
                    await self._journal.put_image(entry)
                    self._entries[entry.digest] = entry
                    # Before anybody collects what has no name.
                    name = await self._named(request.project_id, alias, entry.digest, "")
            except TimeoutError as error:
                raise UnavailableError("image_pull_failed", f"It was not packed within {UNPACK_TIMEOUT_S:.0f} s.") from error
            except OSError as error:
                log.error("an image of %s could not be kept: %s", request.snapshot_id, error)
                reason = error.strerror or error
                raise UnavailableError("image_pull_failed", f"The image could not be kept here: {reason}.") from error
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await self.collect()
        return self._record(name)

    def _over(self, base: Image, packed: tuple[str, int], request: ImageBuild) -> ImageEntry:
        below = self._entries.get(base.digest)
        config, user = base.config, request.user
        entry = ImageEntry(
            digest="",
            layers=[*((layer.digest, layer.size) for layer in base.layers), packed],
            user=user.name if user is not None else config.user,
            uid=user.uid if user is not None else config.uid,
            gid=user.gid if user is not None else config.gid,
            groups=list(user.groups if user is not None else config.groups),
            home=user.home if user is not None else config.home,
            cwd=request.cwd or config.cwd,
            env=config.env | request.env,
            labels=(below.labels if below is not None else {}) | request.labels,
            cmd=request.cmd if request.cmd is not None else below.cmd if below is not None else [],
            entrypoint=request.entrypoint if request.entrypoint is not None else below.entrypoint if below is not None else [],
        )
        described = msgspec.json.encode(entry, order="sorted")
        return msgspec.structs.replace(entry, digest=f"sha256:{hashlib.sha256(described).hexdigest()}", created_at=now_ms())

    # -- removing ----------------------------------------------------------------------------------

    async def remove(self, request: ImageRemove) -> None:
        """Forget a name, and with its last one the image. Raises `NotFoundError`, and `ConflictError` (`image_in_use`) while the
        last name is that of an image which a session or a snapshot needs. `request.needed` takes the name all the same, unless
        only the pool needs it, which soon lets go."""
        wanted = _name_of(request.name)
        name = self._names.get((request.project_id, wanted))
        if name is None:
            raise NotFoundError("image_not_found", f"There is no image {request.name[:255]!r} to remove.")
        others = [other for other in self._names.values() if other.digest == name.digest and other is not name]
        users = self._needed_by(name.digest)
        if users and not others and not (request.needed and users != [POOL]):
            raise ConflictError(
                "image_in_use",
                f"{wanted} is needed by {', '.join(users[:10])}{' and others' if len(users) > 10 else ''}.",
                details={"users": users[:100]},
            )
        await self._journal.delete_image_name(name.project_id, name.name)
        del self._names[name.project_id, name.name]
        await self.collect()

    async def collect(self) -> None:
        """Remove images that have no name and that nothing needs."""
        async with self._placing:
            for digest, entry in list(self._entries.items()):
                named = any(name.digest == digest for name in self._names.values())
                if named or self._held[digest] or self._needed_by(digest):
                    continue
                del self._entries[digest]
                if self._let_go is not None:
                    await self._let_go(digest)
                await self._journal.delete_image(digest)
                in_use = {layer for other in self._entries.values() for layer, _ in other.layers}
                for layer, _ in entry.layers:
                    # Those of `make setup` are not ours, and mounted under the same name.
                    if layer not in in_use and self._blob(layer).is_file():
                        await asyncio.to_thread(self._forget_mount, self._blob(layer))
                        self._blob(layer).unlink(missing_ok=True)


def _entry(digest: str, packed: tuple[str, int], user: User, config: documents.Config) -> ImageEntry:
    return ImageEntry(
        digest=digest,
        layers=[packed],
        user=user.name,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        home=user.home,
        cwd=config.cwd,
        env=config.env,
        labels=config.labels,
        cmd=config.cmd,
        entrypoint=config.entrypoint,
        created_at=now_ms(),
    )


def _name_of(text: str) -> str:
    """A reference as names are kept: with its registry's own name and a tag, or a digest."""
    text = text.removeprefix(REGISTRY_PREFIX)
    if reference.names_registry(text):
        try:
            return str(reference.parse(text))
        except BadRequestError:
            return text
    return text if "@" in text or ":" in text else f"{text}:{DEFAULT_TAG}"


def _repository(name: str) -> str:
    """A name without tag and digest."""
    name = name.partition("@")[0]
    path, slash, last = name.rpartition("/")
    return path + slash + last.partition(":")[0]


class _StoredLogin(msgspec.Struct, frozen=True):
    auth: str


class _Logins(msgspec.Struct, frozen=True):
    auths: dict[str, _StoredLogin] = {}


def read_login(file: Path, name: str) -> Login | None:
    """The login of a registry in a file such as Docker's `config.json`. Raises `UnavailableError` for a file that can't be
    read."""
    try:
        with file.open("rb") as opened:
            logins = msgspec.json.decode(opened.read(MAX_AUTH_FILE_BYTES), type=_Logins).auths
        for known in (name, f"https://{name}", f"https://{name}/v1/", f"https://{name}/v2/", f"https://index.{name}/v1/"):
            if known in logins:
                username, _, password = base64.b64decode(logins[known].auth, validate=True).decode().partition(":")
                return Login(username, password)
    except (OSError, msgspec.DecodeError, binascii.Error, UnicodeDecodeError) as error:
        raise UnavailableError("image_pull_failed", f"The logins in {file} can't be read (image.auth_file).") from error
    return None


async def _confined(paths: list[Path], request: unpack.Request | written.Request, kind: type[R]) -> R:
    """What `hutch.oci.confined` says. Raises `HutchError` for an image that is refused."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "hutch.oci.confined", *map(os.fspath, paths)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=kernel.command_environment(),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(UNPACK_TIMEOUT_S):
            answer, said = await process.communicate(msgspec.json.encode(request))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode and process.returncode < 0:
        raise documents.invalid(f"making it took more than it may ({signal.Signals(-process.returncode).name})")
    try:
        result = msgspec.json.decode(answer[:MAX_ANSWER_BYTES], type=unpack.Result | written.Result | unpack.Refusal)
    except msgspec.DecodeError as error:
        log.error("an image could not be made: %s", said.decode(errors="replace")[-4000:])
        reason = said.decode(errors="replace").strip().rpartition("\n")[2][-300:]
        raise UnavailableError("image_pull_failed", f"The image could not be made: {reason or process.returncode}.") from error
    if isinstance(result, unpack.Refusal):
        raise from_wire(result.status, result.code, result.message)
    assert isinstance(result, kind)
    return result
