//! The gateway process: `hutch-net ROOT UID`, started by the host.
//!
//! Standard input is a Unix socket on which the host has sent three descriptors: the listener of redirected connections,
//! the socket of redirected datagrams, and the listener of its own requests. `ROOT` is an empty directory, `UID` a user
//! whom nothing else runs as.

#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};

use hutch_net::{confine, control, datagram::Speaker, gateway::Gateway, syscalls, tcp, udp};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A request makes about a hundred small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MAX_THREADS: usize = 8;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hutch-net: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let root: PathBuf = arguments.next().ok_or_else(|| usage("no root directory"))?.into();
    let user = arguments
        .next()
        .and_then(|text| text.to_str()?.parse().ok())
        .ok_or_else(|| usage("no user id"))?;
    let [tcp_listener, datagrams, control_listener]: [OwnedFd; 3] = descriptors()?
        .try_into()
        .map_err(|_| usage("three descriptors are expected on standard input"))?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    confine::confine(&root, user)?;
    let speaker = Speaker::new()?;
    confine::renounce()?;
    let gateway = Arc::new(Gateway::default());
    let tcp_listener = std::net::TcpListener::from(tcp_listener);
    tcp_listener.set_nonblocking(true)?;
    // A connection stays on the thread that accepted it, with all that it wakes: that halves the cost of a request.
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(MAX_THREADS);
    let started = Arc::new(Barrier::new(threads + 1));
    for _ in 0..threads {
        let (gateway, listener) = (Arc::clone(&gateway), tcp_listener.try_clone()?);
        let started = Arc::clone(&started);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("hutch-net".to_owned())
            .spawn(move || {
                started.wait();
                runtime.block_on(async move {
                    // Connections wait in the kernel until the host has said who its sandboxes are.
                    gateway.opened().await;
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => tcp::serve(gateway, listener).await,
                        Err(error) => eprintln!("hutch-net: {error}"),
                    }
                });
            })?;
    }
    drop(tcp_listener);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The start of a thread takes calls that none makes later.
    started.wait();
    syscalls::restrict()?;
    runtime.block_on(async {
        let control_listener = std::os::unix::net::UnixListener::from(control_listener);
        control_listener.set_nonblocking(true)?;
        let control_listener = tokio::net::UnixListener::from_std(control_listener)?;
        tokio::spawn(Arc::clone(&gateway).flush_for_ever());
        let requests = tokio::spawn(control::serve(Arc::clone(&gateway), control_listener));
        gateway.opened().await;
        tokio::spawn(udp::serve(gateway, datagrams.into(), speaker));
        requests.await.map_err(io::Error::other)
    })
}

fn usage(problem: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{problem}; the host starts this program: hutch-net ROOT UID"),
    )
}

fn descriptors() -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        io::stdin(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut found = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    Ok(found)
}
