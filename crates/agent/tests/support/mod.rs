//! A host for tests: it listens on a Unix socket, starts the real agent as an ordinary process and speaks the protocol
//! with the client side of `hutch-wire`. Whatever the agent leaves behind is killed and removed when it is dropped.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hutch_wire::{ErrorMessage, Event, Hello, MAX_PAYLOAD_BYTES, Mux, Side, encode};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

/// Nothing in these tests takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The user that the agent is claimed for; it has no entry in any password file.
pub(crate) const UID: u32 = 61_234;
pub(crate) const WINDOW: u32 = 256 * 1024;

/// A MessagePack value.
#[derive(Clone, Debug)]
pub(crate) enum V {
    S(String),
    B(Vec<u8>),
    I(i64),
    Bool(bool),
    L(Vec<V>),
    M(Vec<(String, V)>),
}

impl Serialize for V {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::S(text) => serializer.serialize_str(text),
            Self::B(bytes) => serializer.serialize_bytes(bytes),
            Self::I(number) => serializer.serialize_i64(*number),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::L(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| list.serialize_element(value))?;
                list.end()
            }
            Self::M(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries
                    .iter()
                    .try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl From<&str> for V {
    fn from(text: &str) -> Self {
        Self::S(text.to_owned())
    }
}
impl From<i64> for V {
    fn from(number: i64) -> Self {
        Self::I(number)
    }
}
impl From<bool> for V {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<&[u8]> for V {
    fn from(bytes: &[u8]) -> Self {
        Self::B(bytes.to_vec())
    }
}
impl From<&Path> for V {
    fn from(path: &Path) -> Self {
        Self::B(path.as_os_str().as_encoded_bytes().to_vec())
    }
}
impl From<&PathBuf> for V {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

/// A map of the entries.
pub(crate) fn map<const N: usize>(entries: [(&str, V); N]) -> V {
    V::M(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

/// What happened on one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Reply(serde_json::Value),
    Event(serde_json::Value),
    Data(u8, Vec<u8>),
    End,
    Error(ErrorMessage),
}

/// One accepted connection of the agent.
pub(crate) struct Connection {
    pub socket: UnixStream,
    pub mux: Mux,
    pub hello: Hello,
    items: HashMap<u32, VecDeque<Item>>,
    /// Whether received bytes are credited at once.
    pub credit: bool,
}

/// A directory that is removed with everything in it.
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hutch-agent-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Host {
    pub agent: Child,
    pub listener: UnixListener,
    pub directory: PathBuf,
    pub connection: Connection,
    /// Where the default user may write; also its home and working directory.
    pub home: PathBuf,
    _scratch: Scratch,
}

pub(crate) fn hello() -> Hello {
    Hello {
        version: 1,
        role: "host".to_owned(),
        window: WINDOW,
        max_streams: 1024,
        boot: String::new(),
        token: String::new(),
        agent: String::new(),
    }
}

impl Host {
    /// A started and connected agent that nobody has claimed.
    pub(crate) fn unclaimed() -> Self {
        Self::with(hello(), |command| command)
    }

    /// An agent that is claimed for `UID`.
    pub(crate) fn start() -> Self {
        let mut host = Self::unclaimed();
        host.claim("token-1");
        host
    }

    pub(crate) fn with(hello: Hello, adapt: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let scratch = Scratch::new();
        let directory = scratch.0.clone();
        let home = directory.join("home");
        std::fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(UID), Some(UID)).unwrap();
        let socket = directory.join("h.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hutch-agent"));
        command
            .arg("--connect")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let agent = adapt(&mut command).spawn().unwrap();
        let connection = Connection::accept(&listener, hello);
        Self {
            agent,
            listener,
            directory,
            connection,
            home,
            _scratch: scratch,
        }
    }

    pub(crate) fn claim(&mut self, token: &str) {
        let user = map([
            ("name", "tester".into()),
            ("uid", i64::from(UID).into()),
            ("gid", i64::from(UID).into()),
            ("groups", V::L(vec![i64::from(UID).into(), 27.into()])),
            ("home", self.home.to_str().unwrap().into()),
        ]);
        let claim = map([
            ("hostname", "sandbox".into()),
            (
                "env",
                map([
                    ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
                    ("CLAIMED", "yes".into()),
                ]),
            ),
            ("user", user),
            ("cwd", (&self.home).into()),
            ("token", token.into()),
            ("entropy", b"entropy".as_slice().into()),
            ("time_ns", 0.into()),
        ]);
        self.connection.call("claim", &claim).unwrap();
    }

    /// Break the channel and take the agent's next connection.
    pub(crate) fn reconnect(&mut self) {
        let _ = self.connection.socket.shutdown(std::net::Shutdown::Both);
        self.connection = Connection::accept(&self.listener, hello());
    }

    /// Memory of the agent that is in use, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent.id()))
            .unwrap()
            .count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let family = descendants(self.agent.id());
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        for pid in family {
            let _ = Command::new("kill")
                .args(["-9", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// All processes below `root`.
pub(crate) fn descendants(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let Some(Ok(parent)) = rest.split_whitespace().nth(1).map(str::parse::<u32>) else {
            continue;
        };
        parents.push((pid, parent));
    }
    let mut family = vec![root];
    let mut index = 0;
    while let Some(parent) = family.get(index).copied() {
        family.extend(
            parents
                .iter()
                .filter(|(_, other)| *other == parent)
                .map(|(pid, _)| *pid),
        );
        index += 1;
    }
    family.split_off(1)
}

impl Connection {
    pub(crate) fn accept(listener: &UnixListener, hello: Hello) -> Self {
        let socket = accept(listener);
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut connection = Self {
            socket,
            mux: Mux::new(Side::Client, hello.clone()),
            hello,
            items: HashMap::new(),
            credit: true,
        };
        connection.flush();
        let deadline = Instant::now() + PATIENCE;
        while connection.mux.peer().is_none() {
            assert!(Instant::now() < deadline, "the agent did not say HELLO");
            assert!(connection.receive(), "the agent closed the connection");
        }
        connection.hello = connection.mux.peer().unwrap().clone();
        connection
    }

    pub(crate) fn flush(&mut self) {
        let bytes = self.mux.outgoing.take();
        let _ = self.socket.write_all(&bytes);
    }

    /// Read what there is; false when the agent closed the connection.
    pub(crate) fn receive(&mut self) -> bool {
        let mut buffer = vec![0; 65536];
        match self.socket.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.mux.decoder.feed(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    // A read with a time-out may be interrupted without any signal's handler (signal(7)).
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted
                ) => {}
            Err(_) => return false,
        }
        while let Some(event) = self.mux.next_event().expect("the agent keeps to the protocol") {
            let (stream, item) = match event {
                Event::Reply { stream, payload } => (stream, Item::Reply(hutch_wire::decode(&payload).unwrap())),
                Event::Event { stream, payload } => {
                    if self.credit {
                        self.mux.grant(stream, payload.len() as u32);
                    }
                    (stream, Item::Event(hutch_wire::decode(&payload).unwrap()))
                }
                Event::Data { stream, channel, data } => {
                    if self.credit {
                        self.mux.grant(stream, data.len() as u32);
                    }
                    (stream, Item::Data(channel, data))
                }
                Event::End { stream } => (stream, Item::End),
                Event::Error { stream, error } => (stream, Item::Error(error)),
                _ => continue,
            };
            self.items.entry(stream).or_default().push_back(item);
        }
        self.flush();
        true
    }

    pub(crate) fn open(&mut self, method: &str, params: &V) -> u32 {
        let stream = self.mux.open(method, &encode(params)).expect("a free stream");
        self.flush();
        stream
    }

    pub(crate) fn end(&mut self, stream: u32) {
        self.mux.end(stream);
        self.flush();
    }

    pub(crate) fn cancel(&mut self, stream: u32) {
        self.mux.cancel(stream);
        self.flush();
    }

    pub(crate) fn event(&mut self, stream: u32, message: &V) {
        self.mux.event(stream, &encode(message));
        self.flush();
    }

    /// Send bytes of any length, as credit comes.
    pub(crate) fn send(&mut self, stream: u32, mut data: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !data.is_empty() && self.mux.is_open(stream) {
            let length = self.mux.send_credit(stream).min(data.len()).min(MAX_PAYLOAD_BYTES);
            if length == 0 {
                assert!(Instant::now() < deadline, "no credit came");
                assert!(self.receive(), "the agent closed the connection");
                continue;
            }
            self.mux.data(stream, 0, &Arc::new(data[..length].to_vec()), 0, length);
            self.flush();
            data = &data[length..];
        }
    }

    /// The next item of `stream` if one comes within `patience`.
    pub(crate) fn try_next(&mut self, stream: u32, patience: Duration) -> Option<Item> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(item) = self.items.get_mut(&stream).and_then(VecDeque::pop_front) {
                return Some(item);
            }
            if Instant::now() >= deadline {
                return None;
            }
            assert!(self.receive(), "the agent closed the connection");
        }
    }

    pub(crate) fn next(&mut self, stream: u32) -> Item {
        self.try_next(stream, PATIENCE).expect("an item in time")
    }

    /// The reply or the error.
    pub(crate) fn reply(&mut self, stream: u32) -> Result<serde_json::Value, ErrorMessage> {
        match self.next(stream) {
            Item::Reply(value) => Ok(value),
            Item::Error(error) => Err(error),
            other => panic!("{other:?} before the reply"),
        }
    }

    pub(crate) fn call(&mut self, method: &str, params: &V) -> Result<serde_json::Value, ErrorMessage> {
        let stream = self.open(method, params);
        self.end(stream);
        self.reply(stream)
    }

    /// A request with a body.
    pub(crate) fn upload(&mut self, method: &str, params: &V, body: &[u8]) -> Result<serde_json::Value, ErrorMessage> {
        let stream = self.open(method, params);
        self.send(stream, body);
        self.end(stream);
        self.reply(stream)
    }

    /// Read a command's stream until END.
    pub(crate) fn finish(&mut self, stream: u32) -> Finished {
        let mut finished = Finished::default();
        loop {
            match self.next(stream) {
                Item::Data(1, data) => finished.stdout.extend(data),
                Item::Data(_, data) => finished.stderr.extend(data),
                Item::Event(event) => {
                    if let Some(skipped) = event["skipped"].as_u64() {
                        finished.skipped += skipped;
                    }
                    if let Some(code) = event["exit"]["exit_code"].as_i64() {
                        finished.exit_code = Some(code);
                        finished.duration_us = event["exit"]["duration_us"].as_u64().unwrap();
                    }
                }
                Item::End => return finished,
                other => panic!("{other:?} on a command's stream"),
            }
        }
    }

    /// Wait until standard output contains `text`.
    pub(crate) fn expect(&mut self, stream: u32, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.next(stream) {
                Item::Data(_, data) => seen.extend(data),
                other => panic!("{other:?} before {text:?}; seen {:?}", String::from_utf8_lossy(&seen)),
            }
            let shown = String::from_utf8_lossy(&seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
        }
    }

    /// Start a command and take its reply.
    pub(crate) fn start(&mut self, start: &Start) -> Result<(u32, i64), ErrorMessage> {
        let stream = self.open("command.start", &start.params());
        let reply = self.reply(stream)?;
        Ok((stream, reply["pid"].as_i64().unwrap()))
    }

    /// Run a command to its end.
    pub(crate) fn run(&mut self, start: &Start) -> Finished {
        let (stream, _) = self.start(start).unwrap();
        self.finish(stream)
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: Option<i64>,
    pub duration_us: u64,
    pub skipped: u64,
}

impl Finished {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A command to start.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub id: String,
    pub argv: Vec<Vec<u8>>,
    pub user: &'static str,
    pub stdin: bool,
    pub env: Vec<(String, V)>,
    pub more: Vec<(String, V)>,
}

impl Start {
    pub(crate) fn new(argv: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self {
            id: format!("cmd-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
            user: "default",
            stdin: false,
            env: Vec::new(),
            more: Vec::new(),
        }
    }

    pub(crate) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn root(mut self) -> Self {
        self.user = "root";
        self
    }

    pub(crate) fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub(crate) fn set(mut self, key: &str, value: V) -> Self {
        self.more.push((key.to_owned(), value));
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn pty(self, cols: i64, rows: i64) -> Self {
        self.set("pty", map([("cols", cols.into()), ("rows", rows.into())]))
    }

    pub(crate) fn params(&self) -> V {
        let mut entries = vec![
            ("id".to_owned(), self.id.as_str().into()),
            (
                "argv".to_owned(),
                V::L(self.argv.iter().map(|argument| V::B(argument.clone())).collect()),
            ),
            ("env".to_owned(), V::M(self.env.clone())),
            ("user".to_owned(), self.user.into()),
            ("stdin".to_owned(), self.stdin.into()),
        ];
        entries.extend(self.more.clone());
        V::M(entries)
    }
}

pub(crate) fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((socket, _)) = listener.accept() {
            socket.set_nonblocking(false).unwrap();
            return socket;
        }
        assert!(Instant::now() < deadline, "the agent did not connect");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Wait until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
