//! Parameters and replies of the methods, as `docs/agent-protocol.md` lists them.

use std::collections::BTreeMap;
use std::fmt;

use hutch_wire::{Bin, ErrorMessage, encode};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::errors::bad_request;

/// Whose rights a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UserName {
    Default,
    Root,
}

/// `bin`, without NUL: a path or an argument.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Bin")]
pub(crate) struct Name(pub(crate) Vec<u8>);

impl TryFrom<Bin> for Name {
    type Error = &'static str;
    fn try_from(bytes: Bin) -> Result<Self, Self::Error> {
        if bytes.0.contains(&0) {
            Err("a NUL byte in a path or argument")
        } else {
            Ok(Self(bytes.0))
        }
    }
}

/// `str` or `bin`, for the one field whose type the specification leaves open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("str or bin")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                self.visit_bytes(text.as_bytes())
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Text, E> {
                if bytes.contains(&0) {
                    return Err(E::custom("a NUL byte in a path"));
                }
                Ok(Text(bytes.to_vec()))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ClaimUser {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Text,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Claim {
    pub(crate) hostname: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: ClaimUser,
    pub(crate) cwd: Name,
    pub(crate) token: String,
    pub(crate) entropy: Bin,
    pub(crate) time_ns: i64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct TerminalSize {
    pub(crate) cols: u16,
    pub(crate) rows: u16,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandStart {
    pub(crate) id: String,
    pub(crate) argv: Vec<Name>,
    pub(crate) cwd: Option<Name>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: UserName,
    pub(crate) stdin: bool,
    pub(crate) pty: Option<TerminalSize>,
    pub(crate) timeout_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandAttach {
    pub(crate) id: String,
    pub(crate) offset: i64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandSignal {
    pub(crate) id: String,
    pub(crate) signal: i32,
    pub(crate) group: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandStdin {
    pub(crate) id: String,
    pub(crate) offset: Option<u64>,
    pub(crate) timeout_ms: u64,
    pub(crate) close: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandForget {
    pub(crate) id: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FilePath {
    pub(crate) path: Name,
    pub(crate) cwd: Option<Name>,
    pub(crate) user: UserName,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FileWrite {
    pub(crate) path: Name,
    pub(crate) cwd: Option<Name>,
    pub(crate) user: UserName,
    pub(crate) mode: u32,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FileMkdir {
    pub(crate) path: Name,
    pub(crate) cwd: Option<Name>,
    pub(crate) user: UserName,
    pub(crate) recursive: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ArchiveWrite {
    pub(crate) cwd: Name,
    pub(crate) user: UserName,
    pub(crate) gzip: bool,
    pub(crate) max_bytes: u64,
    pub(crate) max_files: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ClockSet {
    pub(crate) time_ns: i64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct EntropyAdd {
    pub(crate) data: Bin,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MachineBegin {
    pub(crate) network: Option<MachineNetwork>,
    pub(crate) entropy: Bin,
    pub(crate) time_ns: i64,
    pub(crate) boot_id: String,
    #[serde(default)]
    pub(crate) endings: Vec<Ending>,
}

/// What comes last in a file that has `size` bytes before.
#[derive(Debug, Deserialize)]
pub(crate) struct Ending {
    pub(crate) path: Name,
    pub(crate) size: u64,
    pub(crate) data: Bin,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MachineNetwork {
    pub(crate) address: String,
    pub(crate) gateway: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DrivesMount {
    pub(crate) mounts: Vec<DriveMount>,
}

/// A drive, in the order of their disks. `owner`: whom its directory is to belong to from now on.
#[derive(Debug, Deserialize)]
pub(crate) struct DriveMount {
    pub(crate) path: Name,
    pub(crate) read_only: bool,
    pub(crate) owner: Option<(u32, u32)>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Shutdown {
    pub(crate) grace_ms: u64,
}

/// The EVENTs of a client on a command stream. One message has one of the keys.
#[derive(Debug, Deserialize)]
pub(crate) struct CommandInput {
    pub(crate) eof: Option<bool>,
    pub(crate) resize: Option<(u16, u16)>,
    pub(crate) sink: Option<Sink>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sink {
    Discard,
    Forward,
}

#[derive(Debug, Serialize)]
pub(crate) struct Nothing {}

#[derive(Debug, Serialize)]
pub(crate) struct Begun {
    /// Whether the endings are written.
    pub(crate) ended: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Started {
    pub(crate) pid: i32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Attached {
    pub(crate) pid: i32,
    pub(crate) offset: u64,
    pub(crate) running: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct StdinTaken {
    pub(crate) written: u64,
    pub(crate) stalled: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct CommandInfo<'a> {
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) running: bool,
    pub(crate) exit_code: Option<i32>,
    pub(crate) duration_us: Option<u64>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct CommandList<'a> {
    pub(crate) commands: Vec<CommandInfo<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct FileSize {
    pub(crate) size: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct FileStat {
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_ns: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct ArchiveWritten {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ExitDetails {
    pub(crate) exit_code: i32,
    pub(crate) duration_us: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Exited {
    pub(crate) exit: ExitDetails,
}

#[derive(Debug, Serialize)]
pub(crate) struct Skipped {
    pub(crate) skipped: u64,
}

/// Parameters as a value, or the error to answer.
pub(crate) fn parse<T: DeserializeOwned>(params: &[u8]) -> Result<T, ErrorMessage> {
    hutch_wire::decode(params).map_err(bad_request)
}

/// The reply to a request that has nothing to tell.
pub(crate) fn nothing() -> Vec<u8> {
    encode(&Nothing {})
}
