"""A stand-in for Firecracker and its jailer: programs that answer as the real ones do, and fail as they do.

Its API is that of Firecracker 1.17 as its description (`firecracker.yaml`) and its sources have it: what is asked for too early
or too late is a 400 with a `fault_message`, unknown fields are refused, the socket's path exists before anybody listens. Its
guest is the real agent, as an ordinary process: what the agent sends goes through this process, which connects to
`<uds_path>_<port>` with the rights that Firecracker has. Its root may be made of the machine's drives (`Behaviour.own_root`).
What is not here: a kernel, and what goes through the network card.

Saved memory has what the agent last knew itself by, its token, and not its processes: what goes on is a new agent, on the
drives of the same moment, that proves itself with that token. The file is mapped privately and looked at again, so that one
which is another machine's, is changed or shortened later ends the guest, as it would. `machine.begin` and `clock.set` are
answered for the agent, which is no virtual machine's, and what they told goes to the console.

    fake_firecracker.py firecracker ARGUMENTS…     the program
    fake_firecracker.py jailer ARGUMENTS…          the jailer: checks what the real one does, shuts itself in, then is the program

Whoever writes the wrapper that starts it says in variables how it misbehaves (`Behaviour`), which agent its guest runs, and where
it may keep a socket: its caller hands no variables on.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

VERSION = "1.17.0-dev"
AGENT_VARIABLE = "FAKE_FIRECRACKER_AGENT"
BEHAVIOUR_VARIABLE = "FAKE_FIRECRACKER_BEHAVIOUR"
SCRATCH_VARIABLE = "FAKE_FIRECRACKER_SCRATCH"
FIELDS = {
    "/machine-config": {"vcpu_count", "mem_size_mib", "smt", "track_dirty_pages", "cpu_template", "huge_pages"},
    "/boot-source": {"kernel_image_path", "initrd_path", "boot_args"},
    "/drives/": {
        "drive_id", "partuuid", "is_root_device", "cache_type", "is_read_only", "path_on_host", "rate_limiter", "io_engine",
        "socket",
    },
    "/network-interfaces/": {"iface_id", "host_dev_name", "guest_mac", "mtu", "rx_rate_limiter", "tx_rate_limiter"},
    "/vsock": {"guest_cid", "uds_path", "vsock_id"},
    "/entropy": {"rate_limiter"},
    "/balloon": {
        "amount_mib", "deflate_on_oom", "stats_polling_interval_s", "free_page_hinting", "free_page_reporting",
    },
    "/actions": {"action_type"},
    "/vm": {"state"},
    "/snapshot/create": {"snapshot_type", "snapshot_path", "mem_file_path"},
    "/snapshot/load": {
        "snapshot_path", "mem_backend", "mem_file_path", "track_dirty_pages", "enable_diff_snapshots", "resume_vm",
        "network_overrides", "vsock_override", "clock_realtime",
    },
}  # fmt: skip
BEFORE_BOOT = "The requested operation is not supported before starting the microVM."
AFTER_BOOT = "The requested operation is not supported after starting the microVM."
DIRTY_AT = 4096 * 3
ZEROS = 1024 * 1024
KEPT: list[int] = []
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE, MNT_DETACH = 4096, 1 << 14, 1 << 19, 2
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """A 400 with these words."""


@dataclass
class Behaviour:
    """What goes wrong. Names of requests are `METHOD /path`."""

    listen_after_s: float = 0.0
    """The socket's path exists meanwhile."""
    answers: dict[str, str] = field(default_factory=dict)
    """Bytes that are sent instead of the answer to a request; `` for a hang-up, `hang` for silence."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Requests that get a 400 with this fault."""
    crash_after_start: bool = False
    """The guest crashes, and Firecracker ends with code 0."""
    console: str = ""
    no_agent: bool = False
    no_filter: bool = False
    end_at_once: bool = False
    version: str = VERSION
    state_link: str = ""
    """The state file of a snapshot is a link to this."""
    save_fails: str = ""
    """Writing a snapshot ends with this, in the middle."""
    keeps_memory_open: bool = False
    own_root: bool = False
    """The guest's root is an overlay of the machine's drives, in namespaces of its own: for those who have it write files."""
    vcpu_thread: str = "fc_vcpu"

    @classmethod
    def found(cls) -> Behaviour:
        return cls(**json.loads(os.environ.get(BEHAVIOUR_VARIABLE) or "{}"))


class Guest:
    """The agent, in a process that was made before this one gave up its rights and its view of the files."""

    def __init__(self, root: Path | None = None) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.token = ""
        self.remembers = False
        agent = os.environ.get(AGENT_VARIABLE, "")
        if os.fork() == 0:
            self.ours.close()
            _keep_agent(theirs, agent, root)
            os._exit(0)
        theirs.close()

    def tell(self, what: bytes) -> None:
        self.ours.send(what)

    def serve(self, uds: str, port: int) -> None:
        """Connect what the agent opens to the host's socket, one thread each, as Firecracker's vsock does."""

        def accept() -> None:
            while True:
                try:
                    _, descriptors, _, _ = socket.recv_fds(self.ours, 1, 1)
                except OSError:
                    return
                if not descriptors:
                    return
                agent = socket.socket(fileno=descriptors[0])
                host = socket.socket(socket.AF_UNIX)
                try:
                    host.connect(f"{uds}_{port}")
                except OSError:
                    # Firecracker resets what nobody listens for.
                    agent.close()
                    continue
                threading.Thread(target=_pump, args=(Told(self), agent, host), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


# In a mount namespace of its own: the image's layers, the disk over them, and the agent and its way out in /run.
_OWN_ROOT = r"""
set -e
agent=$1 root=$2; shift 2
mkdir disk merged
lower=
for name; do mkdir "$name"; mount -t erofs -o loop,ro "$root/$name" "$name"; lower=$PWD/$name${lower:+:$lower}; done
mount -t ext4 -o loop "$root/disk" disk
mkdir -p -m 755 disk/u disk/w
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$PWD/disk/u,workdir=$PWD/disk/w" merged
mount -t proc proc merged/proc
mount --rbind /dev merged/dev
mount -t tmpfs tmpfs merged/run
touch merged/run/s merged/run/agent
mount --bind s merged/run/s
mount --bind "$agent" merged/run/agent
exec chroot merged setpriv --bounding-set -sys_time /run/agent --connect /run/s
"""


def _guest_command(agent: str, root: Path | None, layers: list[str]) -> list[str]:
    if not layers:
        return [agent, "--connect", "s"]
    own = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--"]
    return [*own, "sh", "-c", _OWN_ROOT, "sh", agent, str(root), *layers]


def _keep_agent(commands: socket.socket, agent: str, root: Path | None) -> None:
    """Start, stop and end the agent as told; all ends with the other end of `commands`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    directory = Path(tempfile.mkdtemp(prefix="g-", dir=os.environ[SCRATCH_VARIABLE]))
    # A socket's path has a bound that the directory's may be beyond.
    os.chdir(directory)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("s")
    listener.listen(8)
    process: subprocess.Popen[bytes] | None = None
    try:
        while True:
            ready, _, _ = select.select([commands, listener], [], [])
            if listener in ready:
                connection, _ = listener.accept()
                socket.send_fds(commands, [b"c"], [connection.fileno()])
                connection.close()
            if commands in ready:
                told = commands.recv(100)
                if not told:
                    return
                if told.startswith(b"start"):
                    words = _guest_command(agent, root, told.decode().split()[1:])
                    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
                elif process is not None:
                    process.send_signal(signal.SIGSTOP if told == b"pause" else signal.SIGCONT)
    except OSError:
        pass
    finally:
        if process is not None:
            process.kill()
            process.wait()
        listener.close()
        shutil.rmtree(directory, ignore_errors=True)


class Told:
    """One connection between host and agent, as frames: what the guest's memory would have known is put there."""

    HELLO, OPEN, REPLY, END = 1, 2, 3, 7
    ANSWERED = ("machine.begin", "clock.set")

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._ours: set[int] = set()

    def from_host(self, frame: bytes, answer: Callable[[bytes], None]) -> bytes:
        """What the agent gets of it."""
        kind, stream = frame[4], int.from_bytes(frame[8:12], "little")
        if kind == self.OPEN:
            asked = msgspec.msgpack.decode(frame[12:])
            if asked["m"] == "claim":
                self._guest.token = asked["p"]["token"]
            if asked["m"] in self.ANSWERED:
                print(f"the host told {asked['m']}: {asked['p'].get('network')}", flush=True)
                self._ours.add(stream)
                answer(_frame(self.REPLY, stream, msgspec.msgpack.encode({})) + _frame(self.END, stream, b""))
        return b"" if stream in self._ours else frame

    def from_agent(self, frame: bytes) -> bytes:
        if frame[4] == self.HELLO and self._guest.remembers:
            hello = msgspec.msgpack.decode(frame[12:])
            hello["token"] = self._guest.token
            return _frame(self.HELLO, 0, msgspec.msgpack.encode(hello))
        return frame


def _frame(kind: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("<IBBHI", len(payload), kind, 0, 0, stream) + payload


def _frames(source: socket.socket) -> Iterator[bytes]:
    received = b""
    while block := source.recv(65536):
        received += block
        while len(received) >= 12 and len(received) >= (whole := 12 + int.from_bytes(received[:4], "little")):
            yield received[:whole]
            received = received[whole:]


def _pump(told: Told, agent: socket.socket, host: socket.socket) -> None:
    sending = threading.Lock()

    def to_host(block: bytes) -> None:
        with sending:
            host.sendall(block)

    def copy(source: socket.socket, pass_on: Callable[[bytes], None]) -> None:
        try:
            for frame in _frames(source):
                pass_on(frame)
        except OSError:
            pass
        for end in (agent, host):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    PUMPED.extend((agent, host))
    back = threading.Thread(target=copy, args=(host, lambda frame: agent.sendall(told.from_host(frame, to_host))), daemon=True)
    back.start()
    copy(agent, lambda frame: to_host(told.from_agent(frame)))
    back.join()


PUMPED: list[socket.socket] = []


class Vmm:
    """One Firecracker."""

    def __init__(self, identifier: str, behaviour: Behaviour, guest: Guest) -> None:
        self.identifier = identifier
        self.behaviour = behaviour
        self.guest = guest
        self.state = "Not started"
        self.config: dict[str, Any] = {"drives": {}, "network-interfaces": {}}
        self.boot_path = False
        self.tracks = False
        self.marked = False
        self.taps: list[int] = []
        self.memory: mmap.mmap | None = None
        self.own_mark = b"memory" + os.urandom(13).hex().encode()
        self.mark = b""

    def handle(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        known = None
        for name, fields in FIELDS.items():
            if path == name or (name.endswith("/") and path.startswith(name)):
                known = fields
        if body is not None:
            if known is None:
                raise Refused(f"Invalid request method and/or path: {method} {path}.")
            if unknown := set(body) - known:
                raise Refused(
                    f"An error occurred when deserializing the json body of a request: unknown field `{unknown.pop()}`, "
                    f"expected one of {sorted(known)}."
                )
        if method == "GET":
            return self._tell(path)
        if body is None:
            raise Refused(f"Empty {method} request.")
        if path == "/vm" and method == "PATCH":
            return self._change(body["state"])
        if method != "PUT":
            raise Refused(f"Invalid request method and/or path: {method} {path}.")
        if path == "/snapshot/create":
            return self._save(body)
        if self.state != "Not started":
            raise Refused(AFTER_BOOT)
        if path == "/snapshot/load":
            return self._load(body)
        if path == "/actions":
            return self._act(body["action_type"])
        self.boot_path = True
        self._configure(path, body)
        return {}

    def _tell(self, path: str) -> dict[str, Any]:
        if path == "/":
            return {"id": self.identifier, "state": self.state, "vmm_version": VERSION, "app_name": "Firecracker"}
        if path == "/version":
            return {"firecracker_version": VERSION}
        raise Refused(f"Invalid request method and/or path: GET {path}.")

    def _configure(self, path: str, body: dict[str, Any]) -> None:
        if path == "/machine-config":
            if not 1 <= body["vcpu_count"] <= 32 or body["mem_size_mib"] < 1:
                raise Refused("The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled.")
            self.tracks = body.get("track_dirty_pages", False)
        elif path == "/boot-source":
            for name in ("kernel_image_path", "initrd_path"):
                if name in body:
                    _readable(body[name], f"The {name} file cannot be opened")
        elif path.startswith("/drives/"):
            self._attach(path, body)
            return
        elif path.startswith("/network-interfaces/"):
            self.taps.append(_open_tap(body["host_dev_name"]))
            self.config["network-interfaces"][body["iface_id"]] = body
            return
        elif path == "/vsock":
            if body["guest_cid"] < 3:
                raise Refused("guest_cid: invalid value")
        elif path == "/balloon":
            if "free_page_reporting" in body and _numbers(self.behaviour.version) < (1, 14):
                raise Refused("An error occurred when deserializing the json body of a request: unknown field.")
            if body["amount_mib"] > self.config["/machine-config"]["mem_size_mib"]:
                raise Refused("Target amount is too large.")
        elif path != "/entropy":
            raise Refused(f"Invalid request method and/or path: PUT {path}.")
        self.config[path] = body

    def _attach(self, path: str, body: dict[str, Any]) -> None:
        if path != f"/drives/{body['drive_id']}":
            raise Refused("The id from the path does not match the id from the body!")
        flags = os.O_RDONLY if body.get("is_read_only") else os.O_RDWR
        _readable(body["path_on_host"], "Unable to create the virtio block device: backing file", flags)
        if body["is_root_device"] and any(drive["is_root_device"] for drive in self.config["drives"].values()):
            raise Refused("A root block device already exists!")
        self.config["drives"][body["drive_id"]] = body

    def _act(self, action: str) -> dict[str, Any]:
        if action != "InstanceStart":
            raise Refused(BEFORE_BOOT)
        if "/boot-source" not in self.config:
            raise Refused("Cannot start microvm without kernel configuration.")
        self._serial(self.config["/boot-source"].get("boot_args", ""))
        self._run()
        return {}

    def _serial(self, line: str) -> None:
        print(f"[    0.000000] Command line: {line}", flush=True)
        if self.behaviour.console:
            print(self.behaviour.console, flush=True)

    def _run(self) -> None:
        vsock = self.config.get("/vsock")
        if vsock is not None:
            self._listen(vsock["uds_path"])
        for number in range(self.config["/machine-config"]["vcpu_count"]):
            _run_processor(f"{self.behaviour.vcpu_thread} {number}")
        if not self.behaviour.no_filter:
            _filter()
        self.state = "Running"
        if self.behaviour.crash_after_start:
            threading.Timer(0.1, _crash).start()
            return
        if vsock is not None and not self.behaviour.no_agent:
            port = re.search(r"hutch\.vsock=(\d+)", self.config["/boot-source"]["boot_args"])
            self.guest.serve(vsock["uds_path"], int(port[1]) if port else 0)
            layers = sorted(name for name in self.config["drives"] if name.startswith("layer"))
            self.guest.tell(" ".join(["start", *(layers if self.behaviour.own_root else [])]).encode())

    def _listen(self, path: str) -> None:
        """The host's way in: `CONNECT PORT` is answered by a reset, as no program of this guest listens."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
        except OSError as error:
            raise Refused(f"Cannot create backend for vsock device: UnixBind({error})") from error
        listener.listen(8)

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                connection.close()

        threading.Thread(target=serve, daemon=True).start()

    def _change(self, wanted: str) -> dict[str, Any]:
        if self.state == "Not started":
            raise Refused(BEFORE_BOOT)
        self._touch()
        self.guest.tell(b"pause" if wanted == "Paused" else b"resume")
        self.state = "Paused" if wanted == "Paused" else "Running"
        return {}

    def _save(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.state == "Not started":
            raise Refused(BEFORE_BOOT)
        if self.state != "Paused":
            raise Refused("Create snapshot error: Cannot save the microVM: it is not paused")
        if body["snapshot_type"] == "Diff" and not self.tracks:
            raise Refused("Create snapshot error: Dirty page tracking is not enabled")
        try:
            self._save_memory(body["mem_file_path"], diff=body["snapshot_type"] == "Diff")
            if self.behaviour.save_fails:
                raise OSError(self.behaviour.save_fails)
            if self.behaviour.state_link:
                Path(body["snapshot_path"]).symlink_to(self.behaviour.state_link)
            else:
                Path(body["snapshot_path"]).write_bytes(
                    _summed({"config": self.config, "kind": body["snapshot_type"], "mark": self.own_mark.decode()})
                )
        except OSError as error:
            raise Refused(f"Create snapshot error: Cannot write memory file: {error}") from error
        # The device tells the guest that its connections are gone.
        while PUMPED:
            try:
                PUMPED.pop().shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return {}

    def _save_memory(self, path: str, *, diff: bool) -> None:
        size = self.config["/machine-config"]["mem_size_mib"] * 1024 * 1024
        if self.behaviour.keeps_memory_open:
            KEPT.append(os.open(path, os.O_WRONLY | os.O_CREAT))
        with open(path, "wb") as memory:
            memory.truncate(size)
            if diff:
                memory.seek(DIRTY_AT)
                memory.write(b"changed!")
                return
            # The real one writes pages of zeros too.
            memory.writelines(bytes(ZEROS) for _ in range(size // ZEROS))
            memory.seek(0)
            known = self.own_mark + json.dumps({"token": self.guest.token}).encode()
            memory.write(known.ljust(DIRTY_AT, b"\0") + b"before!")

    def _load(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.boot_path:
            raise Refused(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )
        try:
            saved = state_of(Path(body["snapshot_path"]).read_bytes())
            self.config = saved["config"]
            self._map(body["mem_backend"]["backend_path"], saved)
            for drive in self.config["drives"].values():
                os.close(os.open(drive["path_on_host"], os.O_RDONLY if drive["is_read_only"] else os.O_RDWR))
        except (OSError, ValueError, KeyError) as error:
            # The process is then in no state to go on.
            threading.Timer(0.05, os._exit, (1,)).start()
            raise Refused(f"Load snapshot error: Failed to restore from snapshot: {error}") from error
        for override, since in (("network_overrides", (1, 12)), ("vsock_override", (1, 16))):
            if override in body and _numbers(self.behaviour.version) < since:
                raise Refused(f"An error occurred when deserializing the json body of a request: unknown field `{override}`.")
        for interface in self.config["network-interfaces"].values():
            self.taps.append(_open_tap(interface["host_dev_name"]))
        if "vsock_override" in body:
            self.config["/vsock"]["uds_path"] = body["vsock_override"]["uds_path"]
        self.tracks = body.get("track_dirty_pages", False)
        if not self._knows_its_memory():
            self.behaviour.crash_after_start = True
        self._run()
        if not body.get("resume_vm"):
            self.state = "Paused"
        return {}

    def _map(self, path: str, saved: dict[str, Any]) -> None:
        size = self.config["/machine-config"]["mem_size_mib"] * 1024 * 1024
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError("Cannot create memory: the file is smaller than the guest's memory")
            self.memory = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ)
        self.mark = saved["mark"].encode()
        known = self.memory[32:DIRTY_AT].split(b"\0")[0]
        self.guest.token = json.loads(known)["token"] if known.startswith(b"{") else ""
        self.guest.remembers = True

    def _touch(self) -> None:
        """The guest runs on what is in the file: nothing good comes of another one's."""
        if not self._knows_its_memory():
            _crash()

    def _knows_its_memory(self) -> bool:
        return self.memory is None or self.memory[: len(self.mark)] == self.mark


def _summed(state: dict[str, Any]) -> bytes:
    written = json.dumps(state).encode()
    return b"%08x" % zlib.crc32(written) + written


def state_of(written: bytes) -> dict[str, Any]:
    """What a state file tells."""
    if b"%08x" % zlib.crc32(written[8:]) != written[:8]:
        raise ValueError("Failed to load snapshot state from file: CRC64 validation failed")
    found: dict[str, Any] = json.loads(written[8:])
    return found


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _open_tap(name: str) -> int:
    """As the real one: a tap that is its user's already, or the right to make one."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        # TUNSETIFF with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    except OSError as error:
        raise Refused(f"Could not create the network device: Open tap device failed: {name}: {error}") from error
    return descriptor


def _run_processor(name: str) -> None:
    """A thread that has the name of one that runs a guest's processor."""
    named = threading.Event()

    def run() -> None:
        _libc.prctl(15, name.encode(), 0, 0, 0)
        named.set()
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    named.wait()


def _crash() -> None:
    print("Kernel panic - not syncing: Attempted to kill init!", flush=True)
    print("Firecracker exiting successfully. exit_code=0", flush=True)
    os._exit(0)


def _readable(path: str, what: str, flags: int = os.O_RDONLY) -> None:
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        raise Refused(f"{what} {path}: {error}") from error


def _filter() -> None:
    """A filter of system calls that allows all, for this thread and all others."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = Program(1, ctypes.addressof(instruction))
    _libc.prctl(38, 1, 0, 0, 0)
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_TSYNC.
    if _libc.syscall(317, 1, 1, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def serve(arguments: dict[str, str], guest: Guest, behaviour: Behaviour) -> None:
    """Be Firecracker."""
    print(f"Running Firecracker v{VERSION}", flush=True)
    if behaviour.end_at_once:
        print("Error: RunWithApi(FailedToBindSocket)", flush=True)
        os._exit(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(arguments["--api-sock"])
    # As the real one: the socket's path is there before anybody listens.
    time.sleep(behaviour.listen_after_s)
    listener.listen(8)
    vmm = Vmm(arguments.get("--id", "anonymous-instance"), behaviour, guest)
    while True:
        connection, _ = listener.accept()
        with connection:
            _converse(connection, vmm)


def _converse(connection: socket.socket, vmm: Vmm) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        block = connection.recv(65536)
        if not block:
            return
        received += block
    head, _, body = received.partition(b"\r\n\r\n")
    method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while len(body) < (int(length[1]) if length else 0):
        body += connection.recv(65536)
    name = f"{method} {path}"
    print(f"The API server received a {name}", flush=True)
    if name in vmm.behaviour.answers:
        instead = vmm.behaviour.answers[name]
        if instead == "hang":
            # Longer than any deadline of a test.
            time.sleep(600)
        try:
            connection.sendall(instead.encode("latin-1"))
        except OSError:
            pass
        return
    try:
        if name in vmm.behaviour.refuses:
            raise Refused(vmm.behaviour.refuses[name])
        found = vmm.handle(method, path, json.loads(body) if body else None)
    except Refused as refusal:
        text = json.dumps({"fault_message": str(refusal)}).encode()
        connection.sendall(
            b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(text)}\r\n\r\n".encode()
            + text
        )
        return
    if not found:
        connection.sendall(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
        return
    text = json.dumps(found).encode()
    connection.sendall(
        b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(text)}\r\n\r\n".encode()
        + text
    )


# -- the jailer -------------------------------------------------------------------------------------

REQUIRED = {"--id", "--exec-file", "--uid", "--gid"}
KNOWN = REQUIRED | {"--chroot-base-dir", "--netns", "--cgroup-version", "--parent-cgroup", "--cgroup", "--resource-limit"}
FLAGS = {"--new-pid-ns", "--daemonize"}


def fail(message: str) -> None:
    print(f"Jailer error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def jail(words: list[str], behaviour: Behaviour) -> None:
    """Be the jailer, then Firecracker."""
    at = words.index("--") if "--" in words else len(words)
    given: dict[str, str] = {}
    own = iter(words[:at])
    for word in own:
        if word in KNOWN:
            given[word] = next(own)
        elif word in FLAGS:
            given[word] = ""
        else:
            fail(f"Failed to parse arguments: Found argument '{word}' which wasn't expected, or isn't valid in this context.")
    if missing := REQUIRED - set(given):
        fail(f"Failed to parse arguments: Argument '{missing.pop()}' required, but not found.")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", given["--id"]):
        fail("Invalid instance ID")
    program = Path(given["--exec-file"]).resolve(strict=True)
    if "firecracker" not in program.name:
        fail(f'Invalid filename. The filename of `--exec-file` option must contain "firecracker": {program.name}')
    if not program.read_bytes().startswith(b"\x7fELF"):
        fail("Failed to exec into Firecracker: No such file or directory (os error 2)")
    base = Path(given.get("--chroot-base-dir", "/srv/jailer")).resolve(strict=True)
    for above in (base, *base.parents):
        found = above.stat()
        if found.st_uid != 0 or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            fail(f"{above} can be written by others")
    uid, gid = int(given["--uid"]), int(given["--gid"])
    root = base / program.name / given["--id"] / "root"
    root.mkdir(parents=True, exist_ok=True)
    (root / program.name).write_bytes(program.read_bytes())
    arguments = dict(zip(words[at + 1 :: 2], words[at + 2 :: 2], strict=True)) | {"--id": given["--id"]}
    guest = Guest(root)
    _enter_network(given.get("--netns"))
    # What Python loads late is there before it can't be found any more.
    "x".encode("latin-1")
    _check(_libc.unshare(CLONE_NEWNS), "Failed to unshare into new mount namespace")
    _check(
        _libc.mount(None, b"/", None, ctypes.c_ulong(MS_SLAVE | MS_REC), None), "Failed to change the propagation type to slave"
    )
    _check(
        _libc.mount(bytes(root), bytes(root), None, ctypes.c_ulong(MS_BIND | MS_REC), None), "Failed to bind mount the jail root"
    )
    os.chdir(root)
    os.chroot(".")
    for place in ("/", "/dev", "/dev/net", "/run"):
        Path(place).mkdir(exist_ok=True)
        Path(place).chmod(0o700)
        os.chown(place, uid, gid)
    for name, numbers in (("/dev/net/tun", (10, 200)), ("/dev/kvm", (10, 232)), ("/dev/urandom", (1, 9))):
        os.mknod(name, 0o600 | stat.S_IFCHR, os.makedev(*numbers))
        os.chown(name, uid, gid)
    if "--new-pid-ns" in given:
        _check(_libc.unshare(CLONE_NEWPID), "Failed cloning into a new child process")
        if pid := os.fork():
            descriptor = os.open(f"/{program.name}.pid", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, str(pid).encode())
            os._exit(0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    serve(arguments, guest, behaviour)


def _enter_network(namespace: str | None) -> None:
    if namespace is not None:
        with open(namespace, "rb") as there:
            _check(_libc.setns(there.fileno(), CLONE_NEWNET), "Failed to join the network namespace")


def _check(result: int, what: str) -> None:
    if result != 0:
        fail(f"{what}: {os.strerror(ctypes.get_errno())}")


def main(words: list[str]) -> None:
    behaviour = Behaviour.found()
    role, arguments = words[0], words[1:]
    if arguments == ["--version"]:
        print(f"{role.capitalize()} v{behaviour.version}\n")
        return
    if role == "jailer":
        jail(arguments, behaviour)
    serve(dict(zip(arguments[::2], arguments[1::2], strict=True)), Guest(), behaviour)


if __name__ == "__main__":
    main(sys.argv[1:])
