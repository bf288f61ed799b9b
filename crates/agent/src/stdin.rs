//! Standard input of one command: bytes from its stream and from `command.stdin` requests, in the order of arrival.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use crate::poller::{Interest, Poller, Token};

/// What a terminal takes for the end of input (`VEOF`).
const END_OF_TRANSMISSION: u8 = 4;

/// Who gave the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The command's own stream, which may go on giving without holding up others.
    CommandStream,
    /// A `command.stdin` request: answered when all of it was taken or its time is up.
    Request {
        offset: Option<u64>,
        close: bool,
        deadline: Instant,
    },
}

#[derive(Debug)]
struct Writer {
    stream: u32,
    source: Source,
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk was taken.
    taken: usize,
    /// How many bytes are still to skip; known once this writer is the first.
    skip: Option<u64>,
    ended: bool,
    close: bool,
}

/// Something to tell the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Bytes of this stream were dealt with.
    Credit { stream: u32, bytes: usize },
    /// The request is done: `written` counts since the command's start.
    Done { stream: u32, written: u64, stalled: bool },
    /// The request's offset is beyond what the process has taken.
    Gap { stream: u32, written: u64 },
    /// The request has bytes, but standard input was closed before.
    Closed { stream: u32 },
}

/// The writing end, while it is open, and what waits for it.
#[derive(Debug)]
pub(crate) struct Stdin {
    descriptor: Option<OwnedFd>,
    was_given: bool,
    is_terminal: bool,
    watched: bool,
    writers: VecDeque<Writer>,
    written: u64,
}

impl Stdin {
    /// `None` is a command without standard input.
    pub(crate) fn new(descriptor: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self {
            was_given: descriptor.is_some(),
            descriptor,
            is_terminal,
            watched: false,
            writers: VecDeque::new(),
            written: 0,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Whether the command was started with one.
    pub(crate) fn was_given(&self) -> bool {
        self.was_given
    }

    /// Whether somebody waits for an answer.
    pub(crate) fn has_requests(&self) -> bool {
        self.writers.iter().any(|writer| writer.source != Source::CommandStream)
    }

    /// Start a `command.stdin` request.
    pub(crate) fn request(&mut self, stream: u32, offset: Option<u64>, close: bool, deadline: Instant) {
        self.writers.push_back(Writer {
            stream,
            source: Source::Request {
                offset,
                close,
                deadline,
            },
            chunks: VecDeque::new(),
            taken: 0,
            skip: None,
            ended: false,
            close,
        });
    }

    /// Bytes of a stream; those of the command's own stream need no request before.
    pub(crate) fn push(&mut self, stream: u32, data: Vec<u8>) {
        self.writer(stream).chunks.push_back(data);
    }

    /// No more bytes of this stream; with `close`, none of anybody after them.
    pub(crate) fn end(&mut self, stream: u32, close: bool) {
        let writer = self.writer(stream);
        writer.ended = true;
        writer.close |= close;
    }

    /// Forget a request whose stream is over, and what it still has to give.
    pub(crate) fn cancel(&mut self, stream: u32) {
        self.writers
            .retain(|writer| writer.stream != stream || writer.source == Source::CommandStream);
    }

    /// Forget all requests: the channel broke.
    pub(crate) fn cancel_all(&mut self) {
        self.writers.retain(|writer| writer.source == Source::CommandStream);
        for writer in &mut self.writers {
            writer.stream = 0;
            writer.ended = true;
        }
    }

    fn writer(&mut self, stream: u32) -> &mut Writer {
        let index = self
            .writers
            .iter()
            .position(|writer| writer.stream == stream && !writer.ended);
        let index = index.unwrap_or_else(|| {
            self.writers.push_back(Writer {
                stream,
                source: Source::CommandStream,
                chunks: VecDeque::new(),
                taken: 0,
                skip: Some(0),
                ended: false,
                close: false,
            });
            self.writers.len() - 1
        });
        &mut self.writers[index]
    }

    /// Close it at once: the process has ended. Whoever waits is told.
    pub(crate) fn shut(&mut self, poller: &Poller, notices: &mut Vec<Notice>) {
        self.drop_descriptor(poller);
        for mut writer in std::mem::take(&mut self.writers) {
            drop_chunks(&mut writer, notices);
            if let Source::Request { .. } = writer.source {
                notices.push(Notice::Done {
                    stream: writer.stream,
                    written: self.written,
                    stalled: false,
                });
            }
        }
    }

    /// Give the process what it takes now.
    pub(crate) fn advance(&mut self, now: Instant, poller: &Poller, token: Token, notices: &mut Vec<Notice>) {
        let mut blocked = false;
        while let Some(mut writer) = self.writers.pop_front() {
            if let (None, Source::Request { offset, .. }) = (writer.skip, writer.source) {
                let skip = self.written.checked_sub(offset.unwrap_or(self.written));
                if skip.is_none() {
                    notices.push(Notice::Gap {
                        stream: writer.stream,
                        written: self.written,
                    });
                    continue;
                }
                writer.skip = skip;
            }
            blocked = !self.write(&mut writer, poller, notices);
            let empty = writer.chunks.is_empty();
            match writer.source {
                Source::Request { deadline, .. } if blocked || !empty || !writer.ended => {
                    if now >= deadline {
                        blocked = false;
                        notices.push(Notice::Done {
                            stream: writer.stream,
                            written: self.written,
                            stalled: true,
                        });
                        continue;
                    }
                    self.writers.push_front(writer);
                    break;
                }
                Source::CommandStream if !empty => {
                    self.writers.push_front(writer);
                    break;
                }
                Source::Request { .. } => {
                    notices.push(Notice::Done {
                        stream: writer.stream,
                        written: self.written,
                        stalled: false,
                    });
                }
                Source::CommandStream => {}
            }
            if writer.close && !self.close(poller) {
                // The terminal's buffer is full; its end mark waits like a byte.
                blocked = true;
                let mark = Writer {
                    stream: 0,
                    source: Source::CommandStream,
                    chunks: VecDeque::new(),
                    taken: 0,
                    skip: Some(0),
                    ended: true,
                    close: true,
                };
                self.writers.push_front(mark);
                break;
            }
        }
        self.watch(blocked && self.descriptor.is_some(), poller, token);
    }

    /// Write the chunks of one writer; false when the process takes no more now.
    fn write(&mut self, writer: &mut Writer, poller: &Poller, notices: &mut Vec<Notice>) -> bool {
        while let Some(chunk) = writer.chunks.front() {
            let skip = writer.skip.unwrap_or(0).min((chunk.len() - writer.taken) as u64);
            if skip > 0 {
                writer.taken += skip as usize;
                writer.skip = writer.skip.map(|rest| rest - skip);
                notices.push(Notice::Credit {
                    stream: writer.stream,
                    bytes: skip as usize,
                });
            }
            if writer.taken == chunk.len() {
                writer.chunks.pop_front();
                writer.taken = 0;
                continue;
            }
            let Some(descriptor) = &self.descriptor else {
                if let Source::Request { .. } = writer.source {
                    notices.push(Notice::Closed { stream: writer.stream });
                }
                drop_chunks(writer, notices);
                return true;
            };
            match rustix::io::write(descriptor, &chunk[writer.taken..]) {
                Ok(count) => {
                    writer.taken += count;
                    self.written += count as u64;
                    notices.push(Notice::Credit {
                        stream: writer.stream,
                        bytes: count,
                    });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => {
                    // The process closed its standard input: what was taken so far is the answer.
                    self.drop_descriptor(poller);
                    drop_chunks(writer, notices);
                    return true;
                }
            }
        }
        true
    }

    /// Close standard input, or mark its end on a terminal; false when that has to wait.
    fn close(&mut self, poller: &Poller) -> bool {
        if self.is_terminal
            && let Some(descriptor) = &self.descriptor
        {
            return !matches!(rustix::io::write(descriptor, &[END_OF_TRANSMISSION]), Err(Errno::AGAIN));
        }
        self.drop_descriptor(poller);
        true
    }

    /// A terminal is shared with the command's output, so closing alone would leave it watched.
    fn drop_descriptor(&mut self, poller: &Poller) {
        self.watch(false, poller, Token::Channel);
        self.descriptor = None;
    }

    fn watch(&mut self, wanted: bool, poller: &Poller, token: Token) {
        let Some(descriptor) = &self.descriptor else { return };
        if wanted && !self.watched {
            self.watched = poller.add(descriptor.as_fd(), token, Interest::WRITE).is_ok();
        } else if !wanted && self.watched {
            poller.remove(descriptor.as_fd());
            self.watched = false;
        }
    }
}

fn drop_chunks(writer: &mut Writer, notices: &mut Vec<Notice>) {
    let bytes = writer.chunks.iter().map(Vec::len).sum::<usize>() - writer.taken;
    writer.chunks.clear();
    writer.taken = 0;
    if bytes > 0 {
        notices.push(Notice::Credit {
            stream: writer.stream,
            bytes,
        });
    }
}
