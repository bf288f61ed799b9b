//! Datagrams of guests.
//!
//! The kernel hands every datagram to one socket, with the destination that the guest chose. Questions to port 53 go to our
//! name server whatever server was asked. Others are relayed in user space where the policy admits their destination;
//! elsewhere the guest gets an ICMP error, so that programs fall back at once instead of waiting.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutch_policy::{Defence, Reason};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::audit::{Decision, Kind};
use crate::datagram::Speaker;
use crate::dns;
use crate::flow::Bytes;
use crate::gateway::Gateway;
use crate::locks::lock;
use crate::relay::Way;
use crate::report;
use crate::sandbox::Sandbox;

const DNS_PORT: u16 = 53;
const DATAGRAM_BYTES: usize = 65_536;
const IDLE: Duration = Duration::from_secs(60);
/// Flows of one sandbox, and questions of all that are being answered: a sandbox has a share of its own, so that none takes
/// the places of the others.
const MAX_FLOWS: usize = 512;
const MAX_QUESTIONS: usize = 4096;
/// Datagrams that are read before other tasks have their turn.
const BATCH: usize = 64;

/// One datagram.
struct Datagram {
    from: SocketAddrV4,
    to: SocketAddrV4,
    bytes: Vec<u8>,
}

/// Take datagrams for ever, and answer by `speaker`.
pub async fn serve(gateway: Arc<Gateway>, socket: std::net::UdpSocket, speaker: Speaker) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let relay = Arc::new(Relay {
        gateway,
        flows: Mutex::default(),
        speaker: Arc::new(speaker),
    });
    let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        socket.readable().await?;
        for _ in 0..BATCH {
            match socket.try_io(Interest::READABLE, || receive(&socket, &mut buffer)) {
                Ok(Some(datagram)) => relay.take(datagram, &questions),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!(nix::libc::sockaddr_in);
    let message = recvmsg::<SockaddrIn>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SocketAddrV4::from(SockaddrIn::from(address))),
        _ => None,
    });
    let (from, length) = (message.address.map(SocketAddrV4::from), message.bytes);
    Ok(from.zip(to).map(|(from, to)| Datagram {
        from,
        to,
        bytes: buffer[..length].to_vec(),
    }))
}

/// A relayed flow of datagrams.
struct UdpFlow {
    server: UdpSocket,
    speaker: Arc<Speaker>,
    guest: SocketAddrV4,
    destination: SocketAddrV4,
    ended: Notify,
    limited: AtomicBool,
    bytes: Bytes,
    tallied: [Arc<Bytes>; 2],
}

type FlowKey = (SocketAddrV4, SocketAddrV4);

struct Relay {
    gateway: Arc<Gateway>,
    flows: Mutex<HashMap<FlowKey, Arc<UdpFlow>>>,
    speaker: Arc<Speaker>,
}

/// Places for a question: one of its sandbox's, and one of everybody's.
fn places(own: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<[OwnedSemaphorePermit; 2]> {
    let own = Arc::clone(own).try_acquire_owned().ok()?;
    let of_all = Arc::clone(all).try_acquire_owned().ok()?;
    Some([own, of_all])
}

impl Relay {
    fn take(self: &Arc<Self>, datagram: Datagram, questions: &Arc<Semaphore>) {
        if let Some(sandbox) = self.gateway.sandbox(IpAddr::V4(*datagram.from.ip())) {
            let cpu = sandbox.cpu().clone();
            cpu.during(|| self.take_from(sandbox, datagram, questions));
        }
    }

    fn take_from(self: &Arc<Self>, sandbox: Arc<Sandbox>, datagram: Datagram, questions: &Arc<Semaphore>) {
        if datagram.to.port() == DNS_PORT && Defence::EveryServer.holds() {
            let Some(places) = places(&sandbox.questions, questions) else {
                return;
            };
            let relay = Arc::clone(self);
            let cpu = sandbox.cpu().clone();
            cpu.spawn(async move {
                let answer = dns::answer(&relay.gateway, &sandbox, &datagram.bytes, true).await;
                if let Some(answer) = answer {
                    relay.speaker.say(datagram.to, datagram.from, &answer);
                }
                drop(places);
            });
            return;
        }
        let current = sandbox.current();
        let key = (datagram.from, datagram.to);
        let verdict = current.policy.datagram(SocketAddr::V4(datagram.to));
        let known = lock(&self.flows).get(&key).cloned();
        match (verdict, known) {
            (Err(reason), known) => {
                if let Some(flow) = known {
                    flow.ended.notify_waiters();
                }
                self.refuse(&sandbox, &datagram, reason);
            }
            (Ok(_), Some(flow)) => flow.up(&sandbox, &datagram.bytes),
            (Ok(reason), None) => self.open(&sandbox, &datagram, reason),
        }
    }

    fn refuse(&self, sandbox: &Sandbox, datagram: &Datagram, reason: Reason) {
        let current = sandbox.current();
        let record = report::record(&current, Kind::Udp, Decision::Deny, reason);
        sandbox.report(record.dst_original(SocketAddr::V4(datagram.to)));
        sandbox
            .counters
            .tally(&datagram.to.ip().to_string(), |tally| tally.denied += 1);
        self.speaker.refuse(datagram.from, datagram.to, datagram.bytes.len());
    }

    fn open(self: &Arc<Self>, sandbox: &Arc<Sandbox>, datagram: &Datagram, reason: Reason) {
        let (key, count) = ((datagram.from, datagram.to), {
            let flows = lock(&self.flows);
            flows.keys().filter(|(from, _)| from.ip() == datagram.from.ip()).count()
        });
        if count >= MAX_FLOWS || !lock(&sandbox.arrivals).take() {
            return self.refuse(sandbox, datagram, Reason::Limit);
        }
        let opened = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|server| {
            server.set_nonblocking(true)?;
            server.connect(datagram.to)?;
            UdpSocket::from_std(server)
        });
        let Ok(server) = opened else {
            return self.refuse(sandbox, datagram, Reason::Limit);
        };
        let address = datagram.to.ip().to_string();
        sandbox.counters.tally(&address, |tally| tally.connections += 1);
        sandbox.counters.tally_under(None, |tally| tally.connections += 1);
        let flow = Arc::new(UdpFlow {
            server,
            speaker: Arc::clone(&self.speaker),
            guest: datagram.from,
            destination: datagram.to,
            ended: Notify::new(),
            limited: AtomicBool::new(false),
            bytes: Bytes::default(),
            tallied: [sandbox.counters.passing(&address), sandbox.counters.passing_under(None)],
        });
        lock(&self.flows).insert(key, Arc::clone(&flow));
        flow.up(sandbox, &datagram.bytes);
        let (relay, sandbox, cpu) = (Arc::clone(self), Arc::clone(sandbox), sandbox.cpu());
        cpu.spawn(async move {
            let began = Instant::now();
            let cut = flow.down(&sandbox).await;
            lock(&relay.flows).remove(&key);
            let (kind, decision, reason) = match cut {
                None => (Kind::Udp, Decision::Allow, reason),
                Some(cut @ Reason::ByteLimit) => (Kind::Limit, Decision::Deny, cut),
                Some(cut) => (Kind::Revoke, Decision::Revoked, cut),
            };
            let (up, down) = flow.bytes.read();
            let record = report::record(&sandbox.current(), kind, decision, reason)
                .dst_original(SocketAddr::V4(flow.destination))
                .bytes(up, down)
                .dur_ms(u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
            sandbox.report(record);
        });
    }
}

impl UdpFlow {
    fn passed(&self, way: Way, bytes: usize) {
        for counter in [&self.bytes, &*self.tallied[0], &*self.tallied[1]] {
            counter.side(way).fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn up(&self, sandbox: &Sandbox, bytes: &[u8]) {
        if sandbox.count(bytes.len() as u64, 0) {
            self.passed(Way::Up, bytes.len());
            // A full queue drops, as a network would. The runtime would not try before it has seen the socket ready.
            let _ = SockRef::from(&self.server).send(bytes);
        } else {
            self.limited.store(true, Ordering::Relaxed);
            self.ended.notify_waiters();
        }
    }

    /// Relay answers until nothing comes, or the policy does not admit the destination any more: then why.
    async fn down(&self, sandbox: &Sandbox) -> Option<Reason> {
        let mut version = sandbox.current().version;
        loop {
            let ready = tokio::select! {
                () = self.ended.notified() => Ok(()),
                () = sandbox.changed(version) => Ok(()),
                ready = timeout(IDLE, self.server.readable()) => ready.map(|_| ()),
            };
            // Only where something waits: a flow that is idle keeps no buffer.
            let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
            let received = ready.map(|()| self.server.try_recv_buf(&mut buffer));
            if sandbox.is_gone() && Defence::DatagramsEnd.holds() {
                return Some(Reason::Revoked);
            }
            let current = sandbox.current();
            version = current.version;
            if let Err(reason) = current.policy.datagram(SocketAddr::V4(self.destination))
                && Defence::DatagramsEnd.holds()
            {
                return Some(reason);
            }
            match received {
                Err(_) => return None,
                Ok(Ok(count)) if count > 0 => {
                    if !sandbox.count(0, count as u64) {
                        return Some(Reason::ByteLimit);
                    }
                    self.passed(Way::Down, count);
                    self.speaker.say(self.destination, self.guest, &buffer[..count]);
                }
                Ok(Ok(_)) if self.limited.load(Ordering::Relaxed) => return Some(Reason::ByteLimit),
                // An ICMP error of the server's side is an answer too; the next datagram may fare better.
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::MAX_PENDING_QUESTIONS;

    #[test]
    fn a_sandbox_that_asks_much_leaves_places_to_the_others() {
        let all = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let [one, other] = [(); 2].map(|()| Arc::new(Semaphore::new(MAX_PENDING_QUESTIONS)));
        let taken: Vec<_> = (0..=MAX_QUESTIONS).map_while(|_| places(&one, &all)).collect();
        assert_eq!(taken.len(), MAX_PENDING_QUESTIONS);
        assert!(places(&other, &all).is_some());
        drop(taken);
        assert!(places(&one, &all).is_some());
        assert_eq!(all.available_permits(), MAX_QUESTIONS);
    }
}
