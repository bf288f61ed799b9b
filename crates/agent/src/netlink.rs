//! Network cards, their addresses and routes, asked of the kernel over rtnetlink(7).
//!
//! One message says all of an address or a route. With the older `ioctl`s an address first gets the mask of its class, and all that
//! follows from it is made and taken away again.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const ERROR: u16 = 2;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const HEADER_BYTES: usize = 16;
const MOST_ANSWER_BYTES: usize = 4096;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const INET: u8 = 2;

/// The kernel's end of a conversation about its network.
#[derive(Debug)]
pub(crate) struct Kernel(OwnedFd);

impl Kernel {
    pub(crate) fn reach() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// Switch a card on, or off, which ends the routes over it. It asks for hardware addresses then.
    pub(crate) fn switch(&self, card: u32, on: bool) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend(card.to_ne_bytes());
        body.extend((if on { IFF_UP } else { 0 }).to_ne_bytes());
        body.extend((IFF_UP | IFF_NOARP).to_ne_bytes());
        self.ask(NEWLINK, 0, &body)
    }

    pub(crate) fn add_address(&self, card: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = vec![INET, prefix, 0, 0];
        body.extend(card.to_ne_bytes());
        let others = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        attribute(&mut body, IFA_LOCAL, &address.octets());
        attribute(&mut body, IFA_ADDRESS, &address.octets());
        attribute(&mut body, IFA_BROADCAST, &(address | Ipv4Addr::from(others)).octets());
        self.ask(NEWADDR, CREATE | EXCLUSIVE, &body)
    }

    /// Take all of a card's addresses away, and with them their routes.
    pub(crate) fn remove_addresses(&self, card: u32) -> io::Result<()> {
        let mut body = vec![INET, 0, 0, 0];
        body.extend(card.to_ne_bytes());
        loop {
            // The first one, whichever that is.
            match self.ask(DELADDR, 0, &body) {
                Ok(()) => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Have all packets for others go to `gateway`, over `card`: before any other route of that kind, which may be there.
    pub(crate) fn add_default_route(&self, card: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut body = vec![INET, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST, 0, 0, 0, 0];
        attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        attribute(&mut body, RTA_OIF, &card.to_ne_bytes());
        self.ask(NEWROUTE, CREATE, &body)
    }

    /// Ask for one thing, and wait until it is done.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = (HEADER_BYTES + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
        // Sequence and port: one asks at a time, and the kernel tells who by the socket.
        message.extend([0; 8]);
        message.extend(body);
        send(&self.0, &message, SendFlags::empty())?;
        let mut answer = [0; MOST_ANSWER_BYTES];
        let (_, count) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        outcome(&answer[..count])
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// What an answer says: an error's number, which is 0 for none.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let number = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|bytes| bytes.try_into().ok());
    match (kind, number.map(i32::from_ne_bytes)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(number)) => Err(Errno::from_raw_os_error(number.wrapping_neg()).into()),
        _ => Err(io::Error::other("the kernel's answer is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::{attribute, outcome};

    fn answer(kind: u16, number: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(number.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn an_answer_is_an_error_or_none() {
        assert!(outcome(&answer(2, 0)).is_ok());
        assert_eq!(outcome(&answer(2, -17)).unwrap_err().raw_os_error(), Some(17));
        for broken in [answer(3, 0), answer(2, 0)[..18].to_vec(), vec![]] {
            assert!(outcome(&broken).unwrap_err().to_string().contains("is none"));
        }
    }

    #[test]
    fn attributes_begin_where_the_kernel_looks_for_them() {
        let mut body = Vec::new();
        attribute(&mut body, 7, b"abcde");
        attribute(&mut body, 8, b"");
        assert_eq!(body[..2], 9_u16.to_ne_bytes());
        assert_eq!(body[4..12], *b"abcde\0\0\0");
        assert_eq!(body[12..], [4_u16.to_ne_bytes(), 8_u16.to_ne_bytes()].concat());
    }
}
