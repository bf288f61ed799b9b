//! The one connection to the host: made again whenever it breaks, with growing pauses.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hutch_wire::{Hello, Mux, Side, Violation};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::poller::{Interest, Poller, Token};
use crate::sys_unsafe::{connect_vsock, read_into};
use crate::system::complain;
use crate::vm::VSOCK_HOST;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A port is closed for so long after its host went: the monitor tells by that whether this was noticed.
const PORT_CLOSED: Duration = Duration::from_millis(50);
/// How often an open port is looked at for whether its host has come.
const PORT_PAUSE: Duration = Duration::from_millis(20);
/// The same two while programs stand still: the monitor listens for that, and they wait for the host.
const HASTY_PORT_CLOSED: Duration = Duration::from_millis(12);
const HASTY_PORT_PAUSE: Duration = Duration::from_millis(3);
/// A connection that lived this long, or over which a host asked something, was a good one: the next is tried soon.
const GOOD_CONNECTION: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 64 * 1024;
const LARGE_READ_BYTES: usize = 272 * 1024;
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
/// While this much waits for a host that does not read, its requests are not read either.
const OUTGOING_HIGH_BYTES: usize = 4 * 1024 * 1024;
const MAX_SLICES: usize = 64;

/// Where the host is.
#[derive(Debug)]
pub(crate) enum Place {
    /// A Unix socket's path.
    Unix(Vec<u8>),
    /// The device of a virtio-serial port.
    Port(PathBuf),
    /// A port of the host over vsock.
    Vsock(u32),
}

/// Why a connection ended.
pub(crate) enum Broken {
    Closed,
    Failed,
    Violation(Violation),
}

struct Connection {
    socket: OwnedFd,
    mux: Mux,
    interest: Interest,
    since: Instant,
    asked: bool,
    large_reads: bool,
}

impl Place {
    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match self {
            Self::Port(device) => {
                // Whether the host is there shows when it is read.
                let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                return rustix::fs::open(device, flags, Mode::empty());
            }
            Self::Vsock(port) => return connect_vsock(VSOCK_HOST, *port),
            Self::Unix(path) => {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                connect(&socket, &SocketAddrUnix::new(path.as_slice())?)?;
                socket
            }
        };
        if sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        }
        Ok(socket)
    }
}

/// Whether a host is at the other end of a port.
fn has_host(port: &OwnedFd) -> Result<bool, Errno> {
    let mut looked = [PollFd::new(port, PollFlags::IN)];
    poll(&mut looked, Some(&Timespec::default()))?;
    Ok(!looked[0].revents().contains(PollFlags::HUP))
}

/// The channel, connected or not.
pub(crate) struct Channel {
    place: Place,
    connection: Option<Connection>,
    /// Counts connections, so that what belongs to a former one can be told.
    number: u64,
    pause: Duration,
    /// Whether somebody waits for the next host.
    pub(crate) hurries: bool,
    /// A port that is open while there is no host. What a host says at once would be lost with a port that is closed.
    port: Option<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            connection: None,
            number: 0,
            pause: FIRST_PAUSE,
            hurries: false,
            port: None,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn mux(&mut self) -> Option<&mut Mux> {
        self.connection.as_mut().map(|connection| &mut connection.mux)
    }

    /// Try to connect; on failure, how long to wait before the next try.
    pub(crate) fn connect(&mut self, poller: &Poller, hello: Hello) -> Result<(), Duration> {
        match self.try_connect(poller, hello) {
            Ok(connection) => {
                self.number += 1;
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                if let Place::Vsock(port) = self.place {
                    // Somebody who reads the console of a machine that does not answer wants to know.
                    complain(&format!("port {port} of the host can't be reached over vsock: {error}"));
                }
                if self.port.is_some() {
                    return Err(if self.hurries { HASTY_PORT_PAUSE } else { PORT_PAUSE });
                }
                Err(self.next_pause())
            }
        }
    }

    fn try_connect(&mut self, poller: &Poller, hello: Hello) -> Result<Connection, Errno> {
        let socket = match self.port.take() {
            Some(port) => port,
            None => self.place.open()?,
        };
        if matches!(self.place, Place::Port(_)) && !has_host(&socket)? {
            self.port = Some(socket);
            return Err(Errno::NOTCONN);
        }
        poller.add(&socket, Token::Channel, Interest::READ)?;
        let mux = Mux::new(Side::Server, hello);
        Ok(Connection {
            socket,
            mux,
            interest: Interest::READ,
            since: Instant::now(),
            asked: false,
            large_reads: false,
        })
    }

    /// The host asked something.
    pub(crate) fn asked(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.asked = true;
        }
    }

    /// Close; how long to wait before the next try.
    pub(crate) fn close(&mut self, broken: &Broken) -> Duration {
        if let Some(connection) = self.connection.take()
            && (connection.since.elapsed() >= GOOD_CONNECTION
                || (connection.asked && !matches!(broken, Broken::Violation(_))))
        {
            self.pause = FIRST_PAUSE;
        }
        self.next_pause().max(match self.place {
            Place::Port(_) if self.hurries => HASTY_PORT_CLOSED,
            Place::Port(_) => PORT_CLOSED,
            _ => Duration::ZERO,
        })
    }

    /// The pause, with jitter so that the guests of a restarted host do not come all at once.
    fn next_pause(&mut self) -> Duration {
        let mut random = [0; 1];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause / 2 + pause / 2 * u32::from(random[0]) / 255
    }

    /// Read once; the mux then has the events. False when there was nothing.
    pub(crate) fn receive(&mut self) -> Result<bool, Broken> {
        let Some(connection) = &mut self.connection else {
            return Ok(false);
        };
        let wanted = if connection.large_reads {
            LARGE_READ_BYTES
        } else {
            READ_BYTES
        };
        let buffer = connection.mux.decoder.space(wanted);
        match read_into(std::os::fd::AsFd::as_fd(&connection.socket), buffer, wanted) {
            Ok(0) => Err(Broken::Closed),
            Ok(count) => {
                connection.large_reads = count == wanted || (connection.large_reads && count > READ_BYTES);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Broken::Failed),
        }
    }

    /// Write what waits; true when the transport takes no more for now.
    pub(crate) fn flush(&mut self, poller: &Poller) -> Result<bool, Broken> {
        let Some(connection) = &mut self.connection else {
            return Ok(false);
        };
        let mut blocked = false;
        while !connection.mux.outgoing.is_empty() {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(MAX_SLICES);
            connection.mux.outgoing.slices(&mut slices, MAX_SLICES);
            match rustix::io::writev(&connection.socket, &slices) {
                Ok(count) => {
                    drop(slices);
                    connection.mux.outgoing.consume(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    blocked = true;
                    break;
                }
                Err(_) => return Err(Broken::Failed),
            }
        }
        let read = connection.mux.outgoing.len() < OUTGOING_HIGH_BYTES;
        let interest = Interest { read, write: blocked };
        if interest != connection.interest {
            poller
                .modify(&connection.socket, Token::Channel, interest)
                .map_err(|_| Broken::Failed)?;
            connection.interest = interest;
        }
        Ok(blocked)
    }

    /// Give memory back that an idle channel does not need.
    pub(crate) fn release(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.mux.decoder.release();
        }
    }
}
