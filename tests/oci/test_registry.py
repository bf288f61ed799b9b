"""The protocol against a registry that says what a test wants: logins, redirects, addresses, and what is asked how often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.errors import BadRequestError, ConflictError, ForbiddenError, HutchError, NotFoundError, UnavailableError
from hutch.host.images import read_login
from hutch.host.protocol import ImagePull, ImageQuery, ImageRemove
from hutch.oci import documents
from hutch.oci.addresses import Addresses
from hutch.oci.reference import parse
from tests.oci.conftest import Store
from tests.oci.images import Made, file, image, index, layer
from tests.oci.scripted import Answer, Scripted, Seen, basic, scripted_registry

pytestmark = pytest.mark.root


def made(content: str = "x", **run: object) -> Made:
    return image(layer(file("a", content)), **run)  # type: ignore[arg-type]


# -- what is asked ----------------------------------------------------------------------------------


async def test_several_who_ask_at_once_get_one_pull(store: Store, script: Scripted) -> None:
    reference = script.put(made())
    pulled = await asyncio.gather(*(store.pull(reference) for _ in range(5)))
    assert len({one.digest for one in pulled}) == 1
    assert (script.asked("/manifests/"), script.asked("/blobs/")) == (1, 2)


async def test_another_name_of_the_same_image_is_not_unpacked_again(store: Store, script: Scripted) -> None:
    one = made()
    await store.pull(script.put(one, tag="1"))
    asked = script.asked("/blobs/")
    await store.pull(script.put(one, tag="2"))
    await store.pull(script.put(one, "elsewhere"), project_id="other", name="mine")
    assert script.asked("/blobs/") == asked
    assert len(store.files()) == 1
    assert [record.name for record in store.images.list("other")] == [f"{script.host}/elsewhere:latest", "mine:latest"]


async def test_an_index_is_answered_with_what_is_for_this_machine(store: Store, script: Scripted) -> None:
    own, other = made("amd64"), image(layer(file("a", "arm64")), architecture="arm64")
    script.put(own)
    raw = index((other, "arm64"), (own, "amd64"))
    reference = script.put(Made(raw, {}, documents.OCI_INDEX), tag="multi")
    assert (await store.pull(reference)).digest == own.digest
    by_index = f"{script.host}/a@{Made(raw, {}).digest}"
    for named in (reference, by_index, f"{script.host}/a@{own.digest}"):
        assert store.images.find(ImageQuery(reference=named, project_id="prj")).pinned == f"{script.host}/a@{own.digest}"
    with pytest.raises(NotFoundError):
        store.images.find(ImageQuery(reference=f"{script.host}/b@{own.digest}", project_id="prj"))


async def test_a_name_that_is_pulled_again_means_what_the_registry_has_now(store: Store, script: Scripted) -> None:
    first, second = made("1"), made("2")
    reference = script.put(first)
    needed: list[str] = []
    store.images.start(lambda digest: ["snap_1"] if digest in needed else [])
    await store.pull(reference)
    needed.append(first.digest)
    script.put(second)
    await store.pull(reference)
    assert store.images.find(ImageQuery(reference=reference, project_id="prj")).pinned.endswith(second.digest)
    # What a snapshot lies over stays what it was.
    assert store.images.exact(f"{script.host}/a@{first.digest}").digest == first.digest
    needed.clear()
    await store.images.collect()
    with pytest.raises(NotFoundError):
        store.images.exact(f"{script.host}/a@{first.digest}")
    assert len(store.files()) == 1


async def test_a_removed_image_goes_with_its_last_name_and_not_while_it_is_needed(store: Store, script: Scripted) -> None:
    reference = script.put(one := made())
    await store.pull(reference, name="mine")
    store.images.start(lambda _: ["sbx_1", "snap_2"])
    await store.images.remove(ImageRemove(name="mine", project_id="prj"))
    with pytest.raises(ConflictError) as refused:
        await store.images.remove(ImageRemove(name=reference, project_id="prj"))
    assert (refused.value.code, refused.value.details) == ("image_in_use", {"users": ["sbx_1", "snap_2"]})
    assert store.images.exact(f"x@{one.digest}").digest == one.digest
    store.images.start(lambda _: [])
    with pytest.raises(NotFoundError):
        await store.images.remove(ImageRemove(name=reference, project_id="other"))
    await store.images.remove(ImageRemove(name=reference, project_id="prj"))
    assert store.left() == []


async def test_what_was_pulled_is_there_after_a_restart_and_what_was_begun_is_not(
    open_store: Callable[..., Store], script: Scripted
) -> None:
    reference = script.put(made())
    store = open_store()
    await store.pull(reference)
    kept = store.files()
    (store.directory / "staging" / "begun").mkdir()
    (store.directory / "staging" / "begun" / "file").touch()
    (store.directory / "blobs" / "sha256" / "nobody.erofs").touch()
    again = open_store()
    assert again.files() == kept
    assert again.images.find(ImageQuery(reference=reference, project_id="prj")).cwd == "/"


async def test_an_image_whose_file_was_lost_is_pulled_again(open_store: Callable[..., Store], script: Scripted) -> None:
    reference = script.put(made())
    store = open_store()
    await store.pull(reference)
    kept = store.files()
    (store.directory / kept[0]).unlink()
    again = open_store()
    with pytest.raises(NotFoundError):
        again.images.find(ImageQuery(reference=reference, project_id="prj"))
    await again.pull(reference)
    assert again.images.find(ImageQuery(reference=reference, project_id="prj")).cwd == "/"
    assert len(again.files()) == 1


async def test_images_with_the_same_files_are_one_file_that_stays_until_the_last_goes(store: Store, script: Scripted) -> None:
    one, other = script.put(made(Env=["A=1"]), "one"), script.put(made(Env=["A=2"]), "two")
    assert len({(await store.pull(reference)).digest for reference in (one, other)}) == 2
    assert len(store.files()) == 1
    await store.images.remove(ImageRemove(name=one, project_id="prj"))
    assert len(store.files()) == 1
    await store.images.remove(ImageRemove(name=other, project_id="prj"))
    assert store.left() == []


async def test_a_pull_whose_host_ends_leaves_nothing(store: Store, script: Scripted) -> None:
    reference = script.put(made())
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(seen: Seen) -> Answer | None:
        if "/blobs/" in seen.path:
            loop.call_soon_threadsafe(asked.set)
            # Promises more than it sends.
            return Answer(headers={"content-length": "1000000"})
        return None

    script.guard = hang
    pulling = asyncio.ensure_future(store.pull(reference))
    await asyncio.wait_for(asked.wait(), 10)
    await store.images.close()
    with pytest.raises((HutchError, asyncio.CancelledError)):
        await pulling
    assert store.left() == []


@pytest.mark.parametrize("name", ["UPPER", "a b", "", "registry.example.com/a", "../a", "a@b", "a:b:c"])
async def test_a_name_that_none_can_have_is_refused(store: Store, script: Scripted, name: str) -> None:
    with pytest.raises(BadRequestError):
        await store.pull(script.put(made()), name=name)
    assert store.left() == []


# -- logins -----------------------------------------------------------------------------------------


def with_tokens(script: Scripted, accepted: str | None) -> None:
    """Have the registry ask for a token of its own token server, which gives one to `accepted`."""
    realm = f'Bearer realm="http://{script.host}/token",service="test",scope="ignored"'

    def guard(seen: Seen) -> Answer | None:
        if seen.path.startswith("/token"):
            if seen.authorization != accepted:
                return Answer(401)
            return Answer(body=json.dumps({"token": "t0ken"}).encode())
        return None if seen.authorization == "Bearer t0ken" else Answer(401, headers={"www-authenticate": realm})

    script.guard = guard


async def test_a_token_is_fetched_for_reading_this_repository(store: Store, script: Scripted) -> None:
    with_tokens(script, None)
    await store.pull(script.put(made(), "team/app"))
    [token] = [seen for seen in script.seen if seen.path.startswith("/token")]
    assert "scope=repository%3Ateam%2Fapp%3Apull" in token.path
    assert "service=test" in token.path


async def test_a_login_goes_to_the_token_server_and_a_wrong_one_is_denied(store: Store, script: Scripted) -> None:
    with_tokens(script, basic("joe", "pass:word"))
    reference = script.put(made())
    for login in ({}, {"username": "joe", "password": "wrong"}):
        with pytest.raises(ForbiddenError) as denied:
            await store.pull(reference, **login)
        assert denied.value.code == "registry_denied"
        assert "wrong" not in denied.value.message
    assert store.left() == []
    await store.pull(reference, username="joe", password="pass:word")


async def test_basic_authorization(store: Store, script: Scripted) -> None:
    challenge = Answer(401, headers={"www-authenticate": 'Basic realm="x"'})
    script.guard = lambda seen: None if seen.authorization == basic("joe", "secret") else challenge
    reference = script.put(made())
    with pytest.raises(ForbiddenError, match="registry_denied"):
        await store.pull(reference)
    await store.pull(reference, username="joe", password="secret")


async def test_an_operators_logins_are_for_administrators(
    open_store: Callable[..., Store], script: Scripted, tmp_path: Path
) -> None:
    logins = tmp_path / "config.json"
    logins.write_text(json.dumps({"auths": {script.host: {"auth": "am9lOnNlY3JldA=="}}, "credsStore": "none"}))
    store = open_store(image__auth_file=logins)
    with_tokens(script, basic("joe", "secret"))
    reference = script.put(made())
    with pytest.raises(ForbiddenError, match="registry_denied"):
        await store.pull(reference)
    await store.pull(reference, operator=True)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"auths": 7}', '{"auths": {"a.example": {}}}', '{"auths": {"a.example": {"auth": "%"}}}']
)
def test_logins_that_cannot_be_read_are_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "logins").write_text(content)
    with pytest.raises(UnavailableError, match="image_pull_failed"):
        read_login(tmp_path / "logins", "a.example")


# -- addresses and redirects ------------------------------------------------------------------------


async def test_a_registry_that_the_settings_do_not_name_is_not_reached_at_a_private_address(
    open_store: Callable[..., Store], script: Scripted
) -> None:
    store = open_store(image__insecure_registries=())
    for reference in (script.put(made()), "localhost/a", "169.254.169.254/a", "[::1]:5000/a"):
        with pytest.raises(ForbiddenError) as refused:
            await store.pull(reference)
        assert refused.value.code == "registry_not_allowed"
    assert script.seen == []


async def test_a_redirect_into_the_network_is_not_followed(store: Store, script: Scripted) -> None:
    reference = script.put(one := made())
    config = json.loads(one.manifest)["config"]["digest"]
    with scripted_registry() as inside:
        for target in (f"http://{inside.host}/x", f"https://{inside.host}/x", "http://169.254.169.254/latest", "ftp://x/", "//"):
            script.answers[f"/v2/a/blobs/{config}"] = Answer(307, headers={"location": target})
            with pytest.raises((ForbiddenError, UnavailableError)):
                await store.pull(reference)
        assert inside.seen == []
    assert store.left() == []


async def test_a_token_server_in_the_network_is_not_asked(store: Store, script: Scripted) -> None:
    with scripted_registry() as inside:
        realm = f'Bearer realm="https://{inside.host}/token"'
        script.guard = lambda _: Answer(401, headers={"www-authenticate": realm})
        with pytest.raises(ForbiddenError, match="registry_not_allowed"):
            await store.pull(script.put(made()), username="joe", password="secret")
        assert inside.seen == []


async def test_a_redirect_is_followed_without_the_token(open_store: Callable[..., Store], script: Scripted) -> None:
    with scripted_registry() as storage:
        store = open_store(image__insecure_registries=(script.host, storage.host))
        with_tokens(script, None)
        reference = script.put(one := made())
        for digest, blob in one.blobs.items():
            script.answers[f"/v2/a/blobs/{digest}"] = Answer(
                307, headers={"location": f"http://{storage.host}/{digest}?signed=1"}
            )
            storage.answers[f"/{digest}"] = Answer(body=blob)
        await store.pull(reference)
        assert [seen.authorization for seen in storage.seen] == [None, None]


async def test_redirects_end(store: Store, script: Scripted) -> None:
    script.guard = lambda seen: Answer(302, headers={"location": seen.path + "x"})
    with pytest.raises(UnavailableError, match="redirects more than"):
        await store.pull(script.put(made()))
    assert len(script.seen) == 6


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "image_not_found"),
        (403, "registry_denied"),
        (400, "registry_refused"),
        (429, "registry_unreachable"),
        (500, "registry_unreachable"),
    ],
)
async def test_what_a_registry_answers_is_told(store: Store, script: Scripted, status: int, code: str) -> None:
    script.guard = lambda _: Answer(status)
    with pytest.raises(HutchError) as refused:
        await store.pull(script.put(made()))
    assert refused.value.code == code


async def test_a_registry_that_is_not_there(store: Store, script: Scripted, open_store: Callable[..., Store]) -> None:
    with scripted_registry() as gone:
        store = open_store(image__insecure_registries=gone.host)
        reference = gone.put(made())
    with pytest.raises(UnavailableError, match="registry_unreachable"):
        await store.pull(reference)


@pytest.mark.parametrize(
    ("address", "anybody", "known"),
    [
        ("93.184.215.14", True, True),
        ("2606:2800:220:1::1", True, True),
        ("10.1.2.3", False, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("100.64.1.1", False, True),
        ("fd12::1", False, True),
        ("169.254.169.254", False, False),
        ("100.100.100.200", False, False),
        ("168.63.129.16", False, False),
        ("fd00:ec2::254", False, False),
        ("fe80::1", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("64:ff9b::7f00:1", False, False),
        ("::ffff:127.0.0.1", False, True),
        ("::ffff:169.254.169.254", False, False),
        ("::ffff:93.184.215.14", True, True),
    ],
)
def test_where_a_registry_may_be(address: str, anybody: bool, known: bool) -> None:
    addresses = Addresses.of(frozenset({"known.example"}))
    assert addresses.may_connect("other.example", address) is anybody
    assert addresses.may_connect("known.example", address) is known


# -- references -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "host"),
    [
        ("docker.io/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1", "registry-1.docker.io"),
        ("ghcr.io/a/b/c:v1.2-x_y", "ghcr.io/a/b/c:v1.2-x_y", "ghcr.io"),
        ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000"),
        (f"r.example/a@sha256:{'a' * 64}", f"r.example/a@sha256:{'a' * 64}", "r.example"),
        (f"r.example/a:1@sha256:{'a' * 64}", f"r.example/a:1@sha256:{'a' * 64}", "r.example"),
    ],
)
def test_references(text: str, shown: str, host: str) -> None:
    assert (str(parse(text)), parse(text).host) == (shown, host)


def test_a_pull_is_one_for_all_who_ask_for_the_same() -> None:
    assert len({ImagePull(reference="a"), ImagePull(reference="a"), ImagePull(reference="b")}) == 2
