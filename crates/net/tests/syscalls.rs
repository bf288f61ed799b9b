//! What a process still can when only the gateway's system calls are left to it. Without a harness: that has threads of its own,
//! and each attempt takes a process.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, exit};

use hutch_net::syscalls;
use memmap2::MmapMut;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, getppid};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const CHILD: &str = "HUTCH_TEST_ATTEMPT";
const BAD_SYSTEM_CALL: i32 = 31;
const NETLINK: i32 = 16;
const PACKET: i32 = 17;

/// What is made before.
struct Prepared {
    listener: TcpListener,
    parent: Pid,
    no_core: Rlimit,
}

type Attempt = (&'static str, fn(&Prepared) -> io::Result<()>);

const KEPT: &[Attempt] = &[
    ("a connection", |made| {
        let mut client = TcpStream::connect(made.listener.local_addr()?)?;
        let (mut server, _) = made.listener.accept()?;
        client.set_nodelay(true)?;
        client.set_nonblocking(false)?;
        client.write_all(b"hello")?;
        server.read_exact(&mut [0; 5])
    }),
    ("a datagram", |_| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.send(b"hello")?;
        socket.recv(&mut [0; 5]).map(drop)
    }),
    ("IPv6", |_| {
        Socket::new(Domain::IPV6, Type::STREAM, None)?;
        Socket::new(Domain::IPV6, Type::DGRAM, None).map(drop)
    }),
    ("much memory, given back", |_| {
        (0..64).for_each(|_| drop(std::hint::black_box(vec![1_u8; 1 << 20])));
        Ok(())
    }),
    ("random numbers", |_| {
        let _ = HashSet::from([1]);
        SystemRandom::new()
            .fill(&mut [0; 8])
            .map_err(|_| io::ErrorKind::Other.into())
    }),
];

const DENIED: &[Attempt] = &[
    ("a file to read", |_| File::open("/proc/self/status").map(drop)),
    ("a file to write", |_| File::create("/dev/null").map(drop)),
    ("a file in memory", |_| {
        Ok(memfd_create("x", MemfdFlags::CLOEXEC).map(drop)?)
    }),
    ("memory with code", |_| MmapMut::map_anon(1)?.make_exec().map(drop)),
    ("a listener", |_| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).map(drop)
    }),
    ("a Unix socket", |_| {
        Socket::new(Domain::UNIX, Type::STREAM, None).map(drop)
    }),
    ("a raw socket", |_| Socket::new(Domain::IPV4, Type::RAW, None).map(drop)),
    ("a packet socket", |_| {
        Socket::new(Domain::from(PACKET), Type::RAW, None).map(drop)
    }),
    ("a netlink socket", |_| {
        Socket::new(Domain::from(NETLINK), Type::RAW, None).map(drop)
    }),
    ("another option of a socket", |made| {
        socket2::SockRef::from(&made.listener).set_reuse_address(true)
    }),
    ("a thread", |_| std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("a child", |_| Command::new("/bin/true").spawn().map(drop)),
    ("a signal to another process", |made| Ok(kill(made.parent, None)?)),
    ("another limit", |made| Ok(setrlimit(Resource::Core, made.no_core)?)),
];

const FATAL: &[Attempt] = &[
    ("another program", |_| Err(Command::new("/bin/true").exec())),
    ("a debugger", |_| Ok(nix::sys::ptrace::traceme()?)),
    ("another process's memory", |made| {
        let mut byte = [0];
        let remote = [RemoteIoVec { base: 1 << 16, len: 1 }];
        Ok(process_vm_readv(made.parent, &mut [IoSliceMut::new(&mut byte)], &remote).map(drop)?)
    }),
    ("a namespace", |_| Ok(unshare(CloneFlags::CLONE_NEWNET)?)),
    ("a mount", |_| {
        let none: Option<&str> = None;
        Ok(mount(none, "/nowhere", Some("tmpfs"), MsFlags::empty(), none)?)
    }),
];

fn main() {
    if let Ok(name) = std::env::var(CHILD) {
        return attempt(&name);
    }
    let not_there = Errno::NOSYS.raw_os_error();
    let expected = [
        (KEPT, (Some(0), None)),
        (DENIED, (Some(not_there), None)),
        (FATAL, (None, Some(BAD_SYSTEM_CALL))),
    ];
    for (attempts, end) in expected {
        for (name, _) in attempts {
            assert_eq!(ended(name), end, "{name}");
        }
    }
}

/// The exit code of a process that attempts this, or the signal that ended it.
fn ended(name: &str) -> (Option<i32>, Option<i32>) {
    let status = Command::new("/proc/self/exe").env(CHILD, name).status().unwrap();
    (status.code(), status.signal())
}

/// Try it, with what came of it as the exit code.
fn attempt(name: &str) {
    let all = [KEPT, DENIED, FATAL].concat();
    let (_, act) = all.iter().find(|(known, _)| *known == name).unwrap();
    let made = Prepared {
        listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        parent: getppid(),
        no_core: Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    };
    setrlimit(Resource::Core, made.no_core).unwrap();
    syscalls::restrict().unwrap();
    exit(match act(&made) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    });
}
