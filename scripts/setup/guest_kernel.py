"""The kernel of virtual machines and its initramfs: Debian's cloud kernel, the modules it needs, and the agent as process 1.

    .hutch/guest/vmlinuz          as Debian built and signed the package
    .hutch/guest/initramfs        the agent as /init, modules, and the order to load them in
    .hutch/guest/probe.erofs      an image with nothing in it, to see whether machines start
    .hutch/guest/manifest.json    the package's version, the modules, and the SHA-256 of all files

The package is the one in `images/guest/kernel.lock`, from the mirror that the base image's packages come from.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import stat
import tempfile
from pathlib import Path

from scripts.setup import cache, initramfs, machine, mirror, native, pack, recipe, shell
from scripts.setup.report import SetupError, Step

DIRECTORY = shell.CHECKOUT / "images" / "guest"
SCHEMA = 1
PROBE_UUID = "5d0a3c52-6f2e-4a43-8c1b-0f6b7f0d9a11"
_LOG = "guest-kernel"
_PACKAGE = re.compile(r"linux-image-[0-9a-z.+-]+")
_VERSION = re.compile(r"[0-9a-zA-Z.+:~-]+")


def ensure(step: Step) -> None:
    """Make kernel and initramfs where the cache has none from these sources, and link `.hutch/guest` to them."""
    agent = shell.HUTCH_DIR / "bin" / native.AGENT.file
    sources = [*cache.files_below(DIRECTORY), Path(__file__), Path(initramfs.__file__)]
    # Not the agent's path: the same agent in another checkout makes the same initramfs.
    place = cache.root() / "guest" / cache.content_key(_agent_key(agent), files=sources)
    if not (place / "manifest.json").exists():
        _build(agent, place, step)
        step.done = True
    cache.link(shell.HUTCH_DIR / "guest", place)
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    size = (place / "initramfs").stat().st_size / 1e6
    step.detail = f".hutch/guest (Linux {manifest['release']}, initramfs of {size:.1f} MB)"


def _agent_key(agent: Path) -> str:
    if not agent.is_file():
        raise SetupError(f"There is no agent at {agent}. Run `make setup`, or the step `agent` before this one.")
    return cache.content_key(files=[agent.resolve()], base=agent.resolve().parent)


def _build(agent: Path, place: Path, step: Step) -> None:
    raw = json.loads((DIRECTORY / "kernel.json").read_text(encoding="utf-8"))
    pinned = recipe.pinned_versions(DIRECTORY / "kernel.lock")
    if len(pinned) != 1:
        raise SetupError(f"{DIRECTORY / 'kernel.lock'} must name one package, as NAME=VERSION; it names {len(pinned)}.")
    ((name, version),) = pinned.items()
    with tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch_name, cache.building(place) as made:
        scratch = Path(scratch_name)
        step.say(f"fetching {name} {version}")
        package = _download(raw["suite"], name, version, scratch)
        tree = scratch / "tree"
        shell.logged(["dpkg-deb", "-x", package, tree], _LOG)
        release = name.removeprefix("linux-image-")
        modules = _modules(tree, release, raw["modules"])
        (made / "vmlinuz").write_bytes((tree / "boot" / f"vmlinuz-{release}").read_bytes())
        (made / "initramfs").write_bytes(initramfs.pack(_entries(agent, modules)))
        _probe_root(made / "probe.erofs", scratch / "root")
        hashes = {}
        for file in ("vmlinuz", "initramfs", "probe.erofs"):
            (made / file).chmod(0o444)
            hashes[file] = pack.file_sha256(made / file)
        manifest = {
            "schema": SCHEMA,
            "release": release,
            "package": f"{name}={version}",
            "modules": [module.name for module, _ in modules],
            "sha256": hashes,
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _probe_root(place: Path, tree: Path) -> None:
    """The smallest image that a machine starts from: nothing but places to mount on. What asks whether machines start uses it."""
    for name in ("dev", "proc", "run", "sys"):
        (tree / name).mkdir(parents=True)
    shell.logged(["mkfs.erofs", "-T0", "--all-root", "-U", PROBE_UUID, "-Enoinline_data", place, tree], _LOG)


def lock(step: Step) -> None:
    """Write the mirror's current kernel into `kernel.lock`; the next setup builds with it."""
    raw = json.loads((DIRECTORY / "kernel.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch_name:
        answer = Path(scratch_name) / "answer"
        command = f"apt-cache depends {raw['package']} > {answer} && apt-cache policy {raw['package']} >> {answer}"
        _with_apt(raw["suite"], command, Path(scratch_name))
        text = answer.read_text(encoding="utf-8")
    name, version = re.search(r"Depends: (\S+)", text), re.search(r"Candidate: (\S+)", text)
    if name is None or version is None or not _PACKAGE.fullmatch(name[1]):
        raise SetupError(f"The mirror has no {raw['package']} for {raw['suite']}.")
    head = (
        "# Written by `python3 -m scripts.setup guest-kernel-lock`: the package that the kernel of virtual machines comes from.\n"
    )
    (DIRECTORY / "kernel.lock").write_text(f"{head}{name[1]}={version[1]}\n", encoding="utf-8")
    step.made(f"{name[1]} {version[1]} in images/guest/kernel.lock")


def _download(suite: str, name: str, version: str, scratch: Path) -> Path:
    if not _PACKAGE.fullmatch(name) or not _VERSION.fullmatch(version):
        raise SetupError(f"{DIRECTORY / 'kernel.lock'} names {name}={version}, which is no kernel's package.")
    try:
        _with_apt(suite, f"cd {scratch} && apt-get download {name}={version}", scratch)
    except SetupError as error:
        hint = "The mirror may have replaced it: `python3 -m scripts.setup guest-kernel-lock` writes the current one."
        raise SetupError(f"{error}\n{name} {version} could not be fetched. {hint}") from error
    found = list(scratch.glob("*.deb"))
    if len(found) != 1:
        raise SetupError(f"apt fetched {len(found)} files for {name}; see .hutch/log/{_LOG}.log.")
    return found[0]


def _with_apt(suite: str, command: str, scratch: Path) -> None:
    """Run a shell command with an apt of its own for `suite`, which knows nothing but the mirror and checks its signatures."""
    source = mirror.find(machine.this_system().codename)
    # `null`: no file system is made; the hook is all that happens.
    words: list[str | Path] = ["mmdebstrap", "--mode=chrootless", "--variant=custom", "--format=null", "--components=main"]
    words += [f"--keyring={mirror.keyring()}"]
    words += [f'--customize-hook=export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; {command}', suite, "/dev/null"]
    if source is not None:
        sources = scratch / "hutch.sources"
        sources.write_text(mirror.sources(source, suite, mirror.keyring()), encoding="utf-8")
        words.append(sources)
    shell.logged(words, _LOG, env={"LC_ALL": "C.UTF-8", "TMPDIR": str(scratch)})


def _modules(tree: Path, release: str, wanted: list[str]) -> list[tuple[Path, bytes]]:
    """The modules that `wanted` names, each after what it depends on, decompressed. What is built in is left out."""
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    shell.logged(["depmod", "-b", tree, release], _LOG, env={"PATH": path})
    base = tree / "lib" / "modules" / release
    dependencies = parse_dependencies((base / "modules.dep").read_text(encoding="utf-8"))
    builtin = {module_name(line) for line in (base / "modules.builtin").read_text(encoding="utf-8").split()}
    return [(Path(module_name(file) + ".ko"), _plain(base / file)) for file in load_order(wanted, dependencies, builtin)]


def module_name(file: str) -> str:
    """What a module is called, of its file: `-` and `_` are the same to the kernel."""
    return Path(file).name.partition(".ko")[0].replace("-", "_")


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """`modules.dep`: each file with the files that it needs, those that have to be loaded last first."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {file: needs.split() for file, _, needs in lines}


def load_order(wanted: list[str], dependencies: dict[str, list[str]], builtin: set[str]) -> list[str]:
    """Files to load, in order. Raises `SetupError` for a module that the kernel does not have at all."""
    files = {module_name(file): file for file in dependencies}
    ordered: dict[str, None] = {}
    for name in wanted:
        if name in builtin:
            continue
        if name not in files:
            raise SetupError(f"The kernel has no module {name}, which images/guest/kernel.json wants.")
        # Transitive already, the deepest last.
        for file in [*reversed(dependencies[files[name]]), files[name]]:
            ordered[file] = None
    return list(ordered)


def _plain(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(content)
    if file.suffix == ".ko":
        return content
    raise SetupError(f"{file.name} is compressed in a way that setup does not know.")


def _entries(agent: Path, modules: list[tuple[Path, bytes]]) -> list[initramfs.Entry]:
    order = "".join(f"{name}\n" for name, _ in modules)
    return [
        *(initramfs.directory(name) for name in ("dev", "modules", "proc", "sys")),
        # Before anything is mounted, messages of process 1 go here.
        initramfs.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        initramfs.file("init", agent.read_bytes(), 0o755),
        initramfs.file("modules/order", order.encode()),
        *(initramfs.file(f"modules/{name}", content) for name, content in modules),
    ]
