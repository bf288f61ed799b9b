//! One epoll instance and the names of what it watches.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// What became ready. Commands and drains are named by serial numbers that are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Channel,
    Children,
    Workers,
    /// The output source (0 or 1) of a command.
    Output(u64, usize),
    Stdin(u64),
    Drain(u64),
}

impl Token {
    fn to_u64(self) -> u64 {
        match self {
            Self::Channel => 0,
            Self::Children => 8,
            Self::Workers => 16,
            Self::Output(serial, index) => serial << 3 | (1 + index as u64),
            Self::Stdin(serial) => serial << 3 | 3,
            Self::Drain(serial) => serial << 3 | 4,
        }
    }

    fn from_u64(number: u64) -> Option<Self> {
        let serial = number >> 3;
        Some(match number & 7 {
            0 => match serial {
                0 => Self::Channel,
                1 => Self::Children,
                2 => Self::Workers,
                _ => return None,
            },
            1 => Self::Output(serial, 0),
            2 => Self::Output(serial, 1),
            3 => Self::Stdin(serial),
            4 => Self::Drain(serial),
            _ => return None,
        })
    }
}

/// An epoll instance, level-triggered.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const READ: Self = Self {
        read: true,
        write: false,
    };
    pub(crate) const WRITE: Self = Self {
        read: false,
        write: true,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn add(&self, descriptor: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::add(
            &self.epoll,
            descriptor,
            epoll::EventData::new_u64(token.to_u64()),
            interest.flags(),
        )
    }

    pub(crate) fn modify(&self, descriptor: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::modify(
            &self.epoll,
            descriptor,
            epoll::EventData::new_u64(token.to_u64()),
            interest.flags(),
        )
    }

    /// Stop watching. Needed for a source that is not read for now: a hang-up would be reported again and again.
    pub(crate) fn remove(&self, descriptor: impl AsFd) {
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    /// Wait for at most `timeout`, or for ever, and put what is ready into `ready`: its token, and whether it can be
    /// read (or was hung up) and written.
    pub(crate) fn wait(&self, timeout: Option<std::time::Duration>, ready: &mut Vec<(Token, bool, bool)>) {
        let mut events: [std::mem::MaybeUninit<epoll::Event>; 64] = [std::mem::MaybeUninit::uninit(); 64];
        let timeout = timeout.map(|duration| Timespec {
            tv_sec: duration.as_secs().min(3600) as i64,
            tv_nsec: duration.subsec_nanos().into(),
        });
        ready.clear();
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            for event in events {
                let (data, flags) = (event.data, event.flags);
                let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                if let Some(token) = Token::from_u64(data.u64()) {
                    let readable = hung_up || flags.contains(epoll::EventFlags::IN);
                    ready.push((token, readable, hung_up || flags.contains(epoll::EventFlags::OUT)));
                }
            }
        }
    }
}
