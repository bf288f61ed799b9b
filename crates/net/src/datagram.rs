//! Datagrams to guests, from whatever address the guest asked.
//!
//! They are written with their heads and leave through one raw socket. A socket bound to the address would do as well, but
//! for ports that a program of this host has for all addresses, and it would take the guest's next datagrams for itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};

/// What a sandbox's link carries in one piece.
const MTU: usize = 1500;
const IP_HEAD: usize = 20;
const UDP_HEAD: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const RAW: i32 = 255;

/// Sends what guests are answered.
pub struct Speaker {
    datagrams: Socket,
    errors: Socket,
}

impl Speaker {
    /// Needs `CAP_NET_RAW`.
    pub fn new() -> io::Result<Self> {
        let datagrams = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::from(RAW)))?;
        datagrams.set_header_included_v4(true)?;
        let errors = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::ICMPV4))?;
        Ok(Self { datagrams, errors })
    }

    /// A datagram to the guest `to` that comes from `from`. A full queue drops it, as a network would.
    pub fn say(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let mut number = [0; 2];
        if SystemRandom::new().fill(&mut number).is_err() {
            return;
        }
        for packet in packets(from, to, payload, u16::from_ne_bytes(number)) {
            let _ = self.datagrams.send_to(&packet, &SocketAddr::V4(to).into());
        }
    }

    /// Tell the guest `from` that its datagram of `bytes` to `to` was refused.
    pub fn refuse(&self, from: SocketAddrV4, to: SocketAddrV4, bytes: usize) {
        let guest = SocketAddr::V4(SocketAddrV4::new(*from.ip(), 0));
        let _ = self.errors.send_to(&unreachable(from, to, bytes), &guest.into());
    }
}

/// A datagram as IPv4 packets that fit on the link; none if there is no such datagram.
fn packets(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8], number: u16) -> Vec<Vec<u8>> {
    let Ok(length) = u16::try_from(UDP_HEAD + payload.len()) else {
        return Vec::new();
    };
    let mut datagram = udp_head(from, to, length).to_vec();
    datagram.extend_from_slice(payload);
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&datagram);
    // Zero would say that there is no sum.
    let sum = Some(checksum(&pseudo)).filter(|sum| *sum != 0).unwrap_or(u16::MAX);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    // Offsets count eight bytes.
    let piece = (MTU - IP_HEAD) / 8 * 8;
    let last = datagram.len().div_ceil(piece) - 1;
    datagram
        .chunks(piece)
        .enumerate()
        .map(|(index, part)| {
            let more = if index < last { MORE_FRAGMENTS } else { 0 };
            let fragment = (index * piece / 8) as u16 | more;
            let mut packet = ip_head(*from.ip(), *to.ip(), part.len(), number, fragment).to_vec();
            packet.extend_from_slice(part);
            packet
        })
        .collect()
}

fn udp_head(from: SocketAddrV4, to: SocketAddrV4, length: u16) -> [u8; UDP_HEAD] {
    let mut head = [0; UDP_HEAD];
    head[..2].copy_from_slice(&from.port().to_be_bytes());
    head[2..4].copy_from_slice(&to.port().to_be_bytes());
    head[4..6].copy_from_slice(&length.to_be_bytes());
    head
}

fn ip_head(from: Ipv4Addr, to: Ipv4Addr, length: usize, number: u16, fragment: u16) -> [u8; IP_HEAD] {
    let mut head = [0; IP_HEAD];
    head[0] = 0x45;
    let length = u16::try_from(IP_HEAD + length).unwrap_or(u16::MAX);
    head[2..4].copy_from_slice(&length.to_be_bytes());
    head[4..6].copy_from_slice(&number.to_be_bytes());
    head[6..8].copy_from_slice(&fragment.to_be_bytes());
    (head[8], head[9]) = (64, 17);
    head[12..16].copy_from_slice(&from.octets());
    head[16..].copy_from_slice(&to.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head
}

/// An ICMP message that says that a datagram was refused, with its head: type 3, code 3. gVisor tells sockets of datagrams of
/// no other code, and a program that is told nothing waits.
fn unreachable(from: SocketAddrV4, to: SocketAddrV4, bytes: usize) -> Vec<u8> {
    const PORT_UNREACHABLE: [u8; 8] = [3, 3, 0, 0, 0, 0, 0, 0];
    let length = u16::try_from(bytes + UDP_HEAD).unwrap_or(u16::MAX);
    let mut message = PORT_UNREACHABLE.to_vec();
    message.extend_from_slice(&ip_head(*from.ip(), *to.ip(), usize::from(length), 0, 0));
    message.extend_from_slice(&udp_head(from, to, length));
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

    fn ends() -> (SocketAddrV4, SocketAddrV4) {
        ("100.64.0.2:4000".parse().unwrap(), "203.0.113.9:443".parse().unwrap())
    }

    #[test]
    fn a_checksum_is_that_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn an_error_quotes_the_datagram() {
        let (guest, server) = ends();
        let message = unreachable(guest, server, 100);
        assert_eq!(message.len(), 36);
        assert_eq!(checksum(&message), 0);
        assert_eq!(checksum(&message[8..28]), 0);
        assert_eq!(message[20..24], [100, 64, 0, 2]);
        assert_eq!(message[30..32], 443_u16.to_be_bytes());
    }

    #[test]
    fn a_small_datagram_is_one_packet() {
        let (guest, server) = ends();
        let found = packets(server, guest, b"hello", 7);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].len(), 33);
        assert_eq!(found[0][6..8], [0, 0]);
        assert_eq!(&found[0][28..], b"hello");
    }

    #[test]
    fn a_large_datagram_comes_in_pieces_that_fit() {
        let (guest, server) = ends();
        let payload: Vec<u8> = (0..4000_u32).map(|n| n as u8).collect();
        let found = packets(server, guest, &payload, 7);
        assert!(
            found
                .iter()
                .all(|packet| packet.len() <= MTU && checksum(&packet[..20]) == 0)
        );
        let whole: Vec<u8> = found.iter().flat_map(|packet| packet[20..].to_vec()).collect();
        assert_eq!(whole[8..], payload);
        let offsets: Vec<u16> = found
            .iter()
            .map(|packet| u16::from_be_bytes([packet[6], packet[7]]))
            .collect();
        assert_eq!(offsets, [MORE_FRAGMENTS, MORE_FRAGMENTS + 185, 370]);
    }

    #[test]
    fn what_no_datagram_can_carry_is_not_sent() {
        let (guest, server) = ends();
        assert!(packets(server, guest, &vec![0; 65_528], 7).is_empty());
    }
}
