"""The built base image, looked at from outside: what the runtime and the SDKs rely on is in it, and nothing of its builder."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.images import Image, ImageStore
from scripts.setup import cache, image_build, recipe, shell
from scripts.setup import image as image_step

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image needs root")]

# What the SDKs' helpers call, and what the image promises beside.
PROGRAMS = (
    "base64 bash cat chmod chown cp env find getent gpasswd groupadd id ls mkdir mktemp mv readlink realpath rm rmdir setpriv sh "
    "sleep stat sudo test truncate useradd usermod tar gzip unzip zip zstd xz bzip2 git git-lfs curl wget jq rg sqlite3 openssl "
    "ps ip dig ping ssh less file rsync tmux vim gh node npm npx pnpm bun bunx python python3 pip pip3 uv apt-get"
).split()


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return ImageStore(shell.HUTCH_DIR / "images")


@pytest.fixture(scope="module")
def mounted(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Every image as its sandboxes see it before they write: name → directory."""
    places: dict[str, Path] = {}
    mounts: list[Path] = []

    def mount(at: Path, *arguments: str) -> None:
        at.mkdir()
        subprocess.run(["mount", *arguments, str(at)], check=True, capture_output=True)
        mounts.append(at)

    base = tmp_path_factory.mktemp("images")
    try:
        layers: dict[str, Path] = {}
        for image in store.list():
            for layer in image.layers:
                if layer.digest not in layers:
                    layers[layer.digest] = base / layer.path.stem[:12]
                    mount(layers[layer.digest], "-t", "erofs", "-o", "loop,ro", str(layer.path))
            places[image.name] = layers[image.layers[0].digest]
            if len(image.layers) > 1:
                places[image.name] = base / image.name.replace("/", "-")
                lower = ":".join(str(layers[layer.digest]) for layer in reversed(image.layers))
                mount(places[image.name], "-t", "overlay", "-o", f"ro,lowerdir={lower}", "overlay")
        yield places
    finally:
        for at in reversed(mounts):
            subprocess.run(["umount", str(at)], check=True)


VARIANTS = ("node26", "node24", "node22", "python3.13")


@pytest.fixture(params=["vercel/sandbox/universal:latest", "vercel/sandbox/node:22", "vercel/sandbox/node:26", *VARIANTS])
def image(request: pytest.FixtureRequest, store: ImageStore) -> Image:
    return store.resolve(request.param)


def inside(root: Path, path: str) -> Path:
    """Where `path` leads inside the image: absolute links in it start at its own root."""
    place = root
    parts = path.strip("/").split("/")
    for depth in range(200):
        assert depth < 199, f"{path} leads in circles"
        if not parts:
            return place
        part = parts.pop(0)
        if part == "..":
            place = place.parent
            continue
        place /= part
        if place.is_symlink():
            target = str(place.readlink())
            place = root if target.startswith("/") else place.parent
            parts = [*target.strip("/").split("/"), *parts]
    raise AssertionError


def test_the_default_image_comes_first_and_runs_as_ubuntu_in_vercel(store: ImageStore) -> None:
    default = store.list()[0]
    assert default.name == "vercel/sandbox/universal:latest"
    assert (default.config.user, default.config.uid, default.config.home, default.config.cwd) == (
        "ubuntu",
        1000,
        "/vercel",
        "/vercel",
    )
    assert len(default.layers) == 1


def test_legacy_runtimes_share_the_base_layer_and_add_little(store: ImageStore) -> None:
    default = store.list()[0]
    for name in VARIANTS:
        image = store.resolve(name)
        assert image.layers[0] == default.layers[0]
        assert sum(layer.size for layer in image.layers[1:]) < 1_000_000
        assert (image.config.user, image.config.cwd) == ("vercel-sandbox", "/vercel/sandbox")


@pytest.mark.section("16.2", "17")
def test_every_program_that_is_called_is_in_the_users_path(image: Image, mounted: dict[str, Path]) -> None:
    root = mounted[image.name]
    places = image.config.env["PATH"].split(":")
    missing = []
    for program in PROGRAMS:
        found = [place for directory in places if (place := inside(root, f"{directory}/{program}")).is_file()]
        if not found or not found[0].stat().st_mode & stat.S_IXOTH:
            missing.append(program)
    assert missing == []


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("vercel/sandbox/universal:latest", "node24"),
        ("vercel/sandbox/node:24", "node24"),
        ("vercel/sandbox/node:22", "node22"),
        ("vercel/sandbox/node:26", "node26"),
        ("node26", "node26"),
        ("node24", "node24"),
        ("node22", "node22"),
    ],
)
def test_the_first_node_in_the_path_is_the_runtimes(store: ImageStore, mounted: dict[str, Path], name: str, node: str) -> None:
    image = store.resolve(name)
    root, path = mounted[image.name], image.config.env["PATH"].split(":")
    first = next(place for directory in path if (place := inside(root, f"{directory}/node")).is_file())
    assert first == root / "opt" / node / "bin" / "node"


def test_the_accounts_are_those_of_the_configuration(image: Image, mounted: dict[str, Path]) -> None:
    root, config = mounted[image.name], image.config
    accounts = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    ordinary = [account for account in accounts if 1000 <= int(account[2]) < 60000]
    assert ordinary == [[config.user, "x", str(config.uid), str(config.gid), "", config.home, "/bin/bash"]]
    groups = [line.split(":") for line in (root / "etc/group").read_text().splitlines()]
    assert [int(group[2]) for group in groups if config.user in group[3].split(",")] == list(config.groups)
    # No password opens anything: neither root's nor the user's.
    passwords = {line.split(":")[1] for line in (root / "etc/shadow").read_text().splitlines()}
    assert passwords <= {"*", "!", "!*"}
    assert stat.S_IMODE((root / "etc/shadow").stat().st_mode) == 0o640


def test_home_and_working_directory_are_the_users(image: Image, mounted: dict[str, Path]) -> None:
    root, config = mounted[image.name], image.config
    for place in {
        config.home,
        config.cwd,
        "/vercel",
        *(entry for entry in config.env["PATH"].split(":") if entry.startswith(config.home)),
    }:
        status = (root / place.lstrip("/")).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (config.uid, config.gid, 0o755), place


def test_only_the_default_user_has_sudo_and_the_file_is_one_that_sudo_accepts(image: Image, mounted: dict[str, Path]) -> None:
    directory = mounted[image.name] / "etc/sudoers.d"
    rules = [
        line
        for file in directory.iterdir()
        if file.name != "README"
        for line in file.read_text().splitlines()
        if "NOPASSWD" in line
    ]
    assert rules == [f"{image.config.user} ALL=(ALL:ALL) NOPASSWD: ALL"]
    status = (directory / "hutch").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o440)
    sudo = (mounted[image.name] / "usr/bin/sudo").stat()
    assert sudo.st_mode & stat.S_ISUID


def test_the_places_where_the_host_mounts_something_exist(image: Image, mounted: dict[str, Path]) -> None:
    root = mounted[image.name]
    for directory in ("proc", "sys", "dev", "dev/pts", "dev/shm", "run/hutch", "tmp"):
        assert (root / directory).is_dir()
        assert not (root / directory).is_symlink()
    for file in ("etc/resolv.conf", "etc/hosts", "etc/hostname"):
        assert stat.S_ISREG((root / file).lstat().st_mode), file
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777


def test_nothing_of_the_build_is_left(image: Image, mounted: dict[str, Path]) -> None:
    root = mounted[image.name]
    assert (root / "etc/machine-id").read_bytes() == b""
    assert list((root / "etc/ssh").glob("ssh_host_*")) == []
    for directory in ("var/log", "var/tmp", "tmp", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial"):
        assert list((root / directory).iterdir()) == [], directory
    assert [path.name for path in (root / "var/lib/apt/lists").iterdir()] == ["partial"]
    assert list((root / "etc/apt/preferences.d").iterdir()) == []
    assert list((root / "usr/share/man").rglob("*.gz")) == []
    host_name = os.uname().nodename
    assert host_name not in (root / "etc/hostname").read_text()
    assert host_name not in (root / "etc/hosts").read_text().split()
    assert "nameserver" not in (root / "etc/resolv.conf").read_text()


def test_every_file_has_the_images_time(mounted: dict[str, Path]) -> None:
    root = mounted["vercel/sandbox/universal:latest"]
    times = {path.lstat().st_mtime for path in (root / "etc").rglob("*")}
    assert times == {recipe.load().epoch_s}


def test_python_does_not_compile_the_standard_library_again(mounted: dict[str, Path]) -> None:
    root = mounted["vercel/sandbox/universal:latest"]
    compiled = root / "usr/lib/python3.13/json/__pycache__/decoder.cpython-313.pyc"
    source = root / "usr/lib/python3.13/json/decoder.py"
    flags, mtime, size = struct.unpack("<III", compiled.read_bytes()[4:16])
    assert flags == 0
    assert (mtime, size) == (int(source.stat().st_mtime), source.stat().st_size)


def test_the_guests_apt_trusts_debians_keys_and_holds_no_password(mounted: dict[str, Path]) -> None:
    root = mounted["vercel/sandbox/universal:latest"]
    sources = "".join(path.read_text() for path in (root / "etc/apt/sources.list.d").iterdir())
    assert "trixie-security" in sources
    assert "@" not in sources
    assert (root / "usr/share/keyrings/debian-archive-keyring.gpg").exists() or (
        root / "usr/share/keyrings/debian-archive-keyring.pgp"
    ).exists()


def test_the_manifest_records_every_package_with_its_version(store: ImageStore, mounted: dict[str, Path]) -> None:
    default = store.list()[0]
    status = (mounted[default.name] / "var/lib/dpkg/status").read_text()
    stanzas = [
        dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        for stanza in status.strip().split("\n\n")
    ]
    path = shell.HUTCH_DIR / "images" / "manifests" / f"{default.digest.removeprefix('sha256:')}.json"
    recorded = json.loads(path.read_text())["debian"]
    assert recorded == {stanza["Package"]: stanza["Version"] for stanza in stanzas if stanza["Status"].endswith(" installed")}


def test_the_built_images_verify(store: ImageStore) -> None:
    for image in store.list():
        store.verify(image)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    os.environ.get("HUTCH_CAMPAIGN") != "full", reason="builds the image again, a minute: only in `make test-all`"
)
def test_a_second_build_is_the_same_bytes(tmp_path: Path) -> None:
    # A setup that ran meanwhile would sweep the build away.
    with cache.locked(print):
        image_build.build(tmp_path / "store", tmp_path / "index.json")
    assert (tmp_path / "index.json").read_bytes() == (image_step.directory() / "index.json").read_bytes()
