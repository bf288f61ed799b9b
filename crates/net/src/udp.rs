//! Datagrams of guests.
//!
//! The kernel hands every datagram to one socket, with the destination that the guest chose. Questions to port 53 go to our
//! name server whatever server was asked. Others are relayed in user space where the policy admits their destination;
//! elsewhere the guest gets an ICMP error, so that programs fall back at once instead of waiting.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutch_policy::Reason;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use crate::audit::{Decision, Kind};
use crate::dns;
use crate::gateway::Gateway;
use crate::locks::lock;
use crate::report;
use crate::sandbox::Sandbox;

const DNS_PORT: u16 = 53;
const DATAGRAM_BYTES: usize = 65_536;
const IDLE: Duration = Duration::from_secs(60);
/// Flows of one sandbox, and questions that are being answered.
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

/// Take datagrams for ever.
pub async fn serve(gateway: Arc<Gateway>, socket: std::net::UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let relay = Arc::new(Relay {
        gateway,
        flows: Mutex::default(),
        errors: icmp().ok(),
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

/// A socket that speaks from an address that is not ours.
fn speaking_as(address: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::V4(address).into())?;
    Ok(socket)
}

fn icmp() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::ICMPV4))
}

/// A relayed flow of datagrams.
struct UdpFlow {
    server: UdpSocket,
    guest: UdpSocket,
    destination: SocketAddrV4,
    ended: Notify,
    bytes: (AtomicU64, AtomicU64),
}

type FlowKey = (SocketAddrV4, SocketAddrV4);

struct Relay {
    gateway: Arc<Gateway>,
    flows: Mutex<HashMap<FlowKey, Arc<UdpFlow>>>,
    errors: Option<Socket>,
}

impl Relay {
    fn take(self: &Arc<Self>, datagram: Datagram, questions: &Arc<Semaphore>) {
        let Some(sandbox) = self.gateway.sandbox(IpAddr::V4(*datagram.from.ip())) else {
            return;
        };
        if datagram.to.port() == DNS_PORT {
            let Ok(place) = Arc::clone(questions).try_acquire_owned() else {
                return;
            };
            let gateway = Arc::clone(&self.gateway);
            tokio::spawn(async move {
                let answer = dns::answer(&gateway, &sandbox, &datagram.bytes, true).await;
                if let Some(answer) = answer
                    && let Ok(socket) = speaking_as(datagram.to)
                {
                    let _ = socket.send_to(&answer, &SocketAddr::V4(datagram.from).into());
                }
                drop(place);
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
        if let Some(socket) = &self.errors {
            let message = unreachable(datagram);
            let to = SocketAddr::V4(SocketAddrV4::new(*datagram.from.ip(), 0));
            let _ = socket.send_to(&message, &to.into());
        }
    }

    fn open(self: &Arc<Self>, sandbox: &Arc<Sandbox>, datagram: &Datagram, reason: Reason) {
        let (key, count) = ((datagram.from, datagram.to), {
            let flows = lock(&self.flows);
            flows.keys().filter(|(from, _)| from.ip() == datagram.from.ip()).count()
        });
        if count >= MAX_FLOWS || !lock(&sandbox.arrivals).take() {
            return self.refuse(sandbox, datagram, Reason::Limit);
        }
        let opened = speaking_as(datagram.to).and_then(|guest| {
            guest.connect(&SocketAddr::V4(datagram.from).into())?;
            let server = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            server.set_nonblocking(true)?;
            server.connect(datagram.to)?;
            Ok((UdpSocket::from_std(guest.into())?, UdpSocket::from_std(server)?))
        });
        let Ok((guest, server)) = opened else {
            return self.refuse(sandbox, datagram, Reason::Limit);
        };
        let flow = Arc::new(UdpFlow {
            server,
            guest,
            destination: datagram.to,
            ended: Notify::new(),
            bytes: Default::default(),
        });
        lock(&self.flows).insert(key, Arc::clone(&flow));
        flow.up(sandbox, &datagram.bytes);
        let (relay, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            let began = Instant::now();
            let cut = flow.down(&sandbox).await;
            lock(&relay.flows).remove(&key);
            let (kind, decision, reason) = match cut {
                None => (Kind::Udp, Decision::Allow, reason),
                Some(cut @ Reason::ByteLimit) => (Kind::Limit, Decision::Deny, cut),
                Some(cut) => (Kind::Revoke, Decision::Revoked, cut),
            };
            let (up, down) = (
                flow.bytes.0.load(Ordering::Relaxed),
                flow.bytes.1.load(Ordering::Relaxed),
            );
            let record = report::record(&sandbox.current(), kind, decision, reason)
                .dst_original(SocketAddr::V4(flow.destination))
                .bytes(up, down)
                .dur_ms(u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
            sandbox.report(record);
        });
    }
}

impl UdpFlow {
    fn up(&self, sandbox: &Sandbox, bytes: &[u8]) {
        self.bytes.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if sandbox.count(bytes.len() as u64, 0) {
            // A full queue drops, as a network would.
            let _ = self.server.try_send(bytes);
        } else {
            self.ended.notify_waiters();
        }
    }

    /// Relay answers until nothing comes, or the policy does not admit the destination any more: then why.
    async fn down(&self, sandbox: &Sandbox) -> Option<Reason> {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut version = sandbox.current().version;
        loop {
            let received = tokio::select! {
                () = self.ended.notified() => Ok(Ok(0)),
                () = sandbox.changed(version) => Ok(Ok(0)),
                received = timeout(IDLE, self.server.recv(&mut buffer)) => received,
            };
            let current = sandbox.current();
            version = current.version;
            if let Err(reason) = current.policy.datagram(SocketAddr::V4(self.destination)) {
                return Some(reason);
            }
            match received {
                Err(_) => return None,
                Ok(Ok(count)) if count > 0 => {
                    self.bytes.1.fetch_add(count as u64, Ordering::Relaxed);
                    if !sandbox.count(0, count as u64) {
                        return Some(Reason::ByteLimit);
                    }
                    let _ = self.guest.try_send(&buffer[..count]);
                }
                Ok(Ok(_)) if !sandbox.count(0, 0) => return Some(Reason::ByteLimit),
                // An ICMP error of the server's side is an answer too; the next datagram may fare better.
                Ok(_) => {}
            }
        }
    }
}

/// An ICMP message that says that a datagram was refused: type 3, code 13, with the head of the datagram.
fn unreachable(datagram: &Datagram) -> Vec<u8> {
    const PROHIBITED: [u8; 8] = [3, 13, 0, 0, 0, 0, 0, 0];
    let udp_length = u16::try_from(datagram.bytes.len() + 8).unwrap_or(u16::MAX);
    let mut ip = Vec::with_capacity(28);
    ip.extend_from_slice(&[0x45, 0]);
    ip.extend_from_slice(&udp_length.saturating_add(20).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&datagram.from.ip().octets());
    ip.extend_from_slice(&datagram.to.ip().octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(&datagram.from.port().to_be_bytes());
    ip.extend_from_slice(&datagram.to.port().to_be_bytes());
    ip.extend_from_slice(&udp_length.to_be_bytes());
    ip.extend_from_slice(&[0, 0]);
    let mut message = PROHIBITED.to_vec();
    message.extend_from_slice(&ip);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn an_error_quotes_the_datagram() {
        let message = unreachable(&Datagram {
            from: "100.64.0.2:4000".parse().unwrap(),
            to: "203.0.113.9:443".parse().unwrap(),
            bytes: vec![0; 100],
        });
        assert_eq!(message.len(), 36);
        assert_eq!(checksum(&message), 0);
        assert_eq!(checksum(&message[8..28]), 0);
        assert_eq!(message[20..24], [100, 64, 0, 2]);
        assert_eq!(message[30..32], 443_u16.to_be_bytes());
    }
}
