//! The gateway process: `hutch-net ROOT UID`, started by the host; and the ingress, `hutch-net ingress ROOT UID`.
//!
//! Standard input is a Unix socket on which the host has sent three descriptors: the listener of redirected connections,
//! the socket of redirected datagrams, and the listener of its own requests; two for the ingress, the listener of clients and that
//! of its own requests. `ROOT` is an empty directory, `UID` a user
//! whom nothing else runs as.

#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};

use hutch_net::{confine, control, datagram::Speaker, gateway::Gateway, ingress, ingress::Ingress, syscalls, tcp, udp};
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
    let mut arguments = std::env::args_os().skip(1).peekable();
    let is_ingress = arguments.next_if(|first| first == "ingress").is_some();
    let root: PathBuf = arguments.next().ok_or_else(|| usage("no root directory"))?.into();
    let user = arguments
        .next()
        .and_then(|text| text.to_str()?.parse().ok())
        .ok_or_else(|| usage("no user id"))?;
    if is_ingress {
        return run_ingress(&root, user);
    }
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
    let started = on_threads(&tcp_listener, {
        let gateway = Arc::clone(&gateway);
        move |listener| {
            let gateway = Arc::clone(&gateway);
            gateway.cpu.clone().metered(async move {
                // Connections wait in the kernel until the host has said who its sandboxes are.
                gateway.opened().await;
                tcp::serve(gateway, listener).await;
            })
        }
    })?;
    drop(tcp_listener);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The start of a thread takes calls that none makes later.
    started.wait();
    syscalls::restrict()?;
    runtime.block_on(async {
        let control_listener = std::os::unix::net::UnixListener::from(control_listener);
        control_listener.set_nonblocking(true)?;
        let control_listener = tokio::net::UnixListener::from_std(control_listener)?;
        let cpu = gateway.cpu.clone();
        cpu.spawn(Arc::clone(&gateway).flush_for_ever());
        let requests = cpu.spawn(control::serve(Arc::clone(&gateway), control_listener));
        gateway.opened().await;
        // Not metered as a whole: waking up for a datagram and reading it is a sandbox's own too.
        tokio::spawn(udp::serve(gateway, datagrams.into(), speaker));
        requests.await.map_err(io::Error::other)
    })
}

fn run_ingress(root: &Path, user: u32) -> io::Result<()> {
    let [listener, control_listener]: [OwnedFd; 2] = descriptors()?
        .try_into()
        .map_err(|_| usage("two descriptors are expected on standard input"))?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    confine::confine_ingress(root, user)?;
    let ingress = Arc::new(Ingress::default());
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let started = on_threads(&listener, {
        let ingress = Arc::clone(&ingress);
        move |listener| {
            let ingress = Arc::clone(&ingress);
            async move {
                ingress.opened().await;
                ingress::serve::serve(ingress, listener).await;
            }
        }
    })?;
    drop(listener);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    started.wait();
    syscalls::restrict()?;
    runtime.block_on(async {
        let control_listener = std::os::unix::net::UnixListener::from(control_listener);
        control_listener.set_nonblocking(true)?;
        let control_listener = tokio::net::UnixListener::from_std(control_listener)?;
        ingress::control::serve(ingress, control_listener).await;
        Ok(())
    })
}

/// Threads that each accept connections and serve them. They wait at the barrier, with whoever calls this.
fn on_threads<S, F>(listener: &std::net::TcpListener, serve: S) -> io::Result<Arc<Barrier>>
where
    S: Fn(tokio::net::TcpListener) -> F + Clone + Send + 'static,
    F: Future<Output = ()>,
{
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(MAX_THREADS);
    let started = Arc::new(Barrier::new(threads + 1));
    for _ in 0..threads {
        let (serve, listener, started) = (serve.clone(), listener.try_clone()?, Arc::clone(&started));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("hutch-net".to_owned())
            .spawn(move || {
                started.wait();
                runtime.block_on(async move {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => serve(listener).await,
                        Err(error) => eprintln!("hutch-net: {error}"),
                    }
                });
            })?;
    }
    Ok(started)
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
