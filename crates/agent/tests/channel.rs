//! The channel itself: reconnection, and whatever bytes a host may send.

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use hutch_wire::{Header, Kind, encode};
use support::{Host, Item, Start, V, map};

#[test]
fn the_agent_says_who_it_is() {
    let mut host = Host::unclaimed();
    let hello = host.connection.hello.clone();
    assert_eq!(
        (hello.version, hello.role.as_str(), hello.token.as_str()),
        (1, "agent", "")
    );
    assert_eq!(hello.boot.len(), 32);
    assert!(hello.boot.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(hello.agent, env!("CARGO_PKG_VERSION"));
    host.claim("first");
    host.reconnect();
    assert_eq!(
        (&host.connection.hello.boot, host.connection.hello.token.as_str()),
        (&hello.boot, "first")
    );
    host.claim("second");
    host.reconnect();
    assert_eq!(host.connection.hello.token, "second");
}

#[test]
fn an_unclaimed_agent_runs_commands_as_root() {
    let mut host = Host::unclaimed();
    assert_eq!(
        host.connection
            .run(&Start::shell("id -u; pwd; echo $HOME $SUDO_USER"))
            .text(),
        "0\n/\n/root\n"
    );
}

#[test]
fn claims_that_make_no_sense_are_refused() {
    let mut host = Host::unclaimed();
    let user = |uid: i64| {
        map([
            ("name", "x".into()),
            ("uid", uid.into()),
            ("gid", 5.into()),
            ("groups", V::L(vec![])),
            ("home", "/".into()),
        ])
    };
    let claim = |hostname: &str, uid: i64, cwd: &[u8]| {
        map([
            ("hostname", hostname.into()),
            ("env", map([])),
            ("user", user(uid)),
            ("cwd", cwd.into()),
            ("token", "t".into()),
            ("entropy", b"".as_slice().into()),
            ("time_ns", 0.into()),
        ])
    };
    let cases = [
        claim("a\nb", 5, b"/"),
        claim("", 5, b"/"),
        claim("a", -1, b"/"),
        claim("a", 0xffff_ffff, b"/"),
        claim("a", 5, b"x"),
    ];
    for params in cases {
        assert_eq!(
            host.connection.call("claim", &params).unwrap_err().code,
            "bad_request",
            "{params:?}"
        );
    }
    host.connection.call("claim", &claim("a", 5, b"/")).unwrap();
}

#[test]
fn ping_is_answered() {
    let mut host = Host::unclaimed();
    host.connection.call("ping", &map([])).unwrap();
    host.connection
        .call("entropy.add", &map([("data", [1; 64].as_slice().into())]))
        .unwrap();
    let too_much = map([("data", [1; 4097].as_slice().into())]);
    assert_eq!(host.connection.call("entropy.add", &too_much).unwrap_err().status, 400);
    host.connection
        .call("clock.set", &map([("time_ns", 1.into())]))
        .unwrap();
}

/// Frames that a receiver must take for a violation.
fn violations() -> Vec<Vec<u8>> {
    let frame = |kind: Kind, channel: u8, stream: u32, payload: &[u8]| {
        let header = Header {
            length: payload.len() as u32,
            kind,
            channel,
            stream,
        };
        [&header.to_bytes()[..], payload].concat()
    };
    let open = |params: &[u8]| [b"\x82\xa1m\xa4ping\xa1p".as_slice(), params].concat();
    let deep = [vec![0x91; 17], vec![0xc0]].concat();
    let too_much = vec![0; 262_144];
    let mut reserved = frame(Kind::Ping, 0, 0, &[0; 8]);
    reserved[6] = 1;
    vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 100],
        reserved,
        frame(Kind::Ping, 0, 0, &[0; 7]),
        frame(Kind::Data, 3, 1, b"x"),
        frame(Kind::Data, 0, 77, b"x"),
        frame(Kind::Hello, 0, 0, &encode(&support::hello())),
        frame(Kind::Open, 0, 1000, &open(&deep)),
        frame(Kind::Open, 0, 1000, b"\xc1"),
        frame(Kind::Open, 0, 1000, b"\x81\x01\x02"),
        frame(Kind::Reply, 0, 1, b"\x80"),
        frame(Kind::Credit, 0, 9, &[0; 4]),
        [
            frame(Kind::Open, 0, 1000, &open(b"\x80")),
            frame(Kind::Open, 0, 1000, &open(b"\x80")),
        ]
        .concat(),
        [
            frame(Kind::Open, 0, 1000, b"\x82\xa1m\xacarchive.writ\xa1p\x80"),
            frame(Kind::Open, 0, 999, &open(b"\x80")),
        ]
        .concat(),
        // A command that does not read, and more input than there is credit for.
        [
            frame(Kind::Open, 0, 1000, &start_sleep()),
            frame(Kind::Data, 0, 1000, &too_much).repeat(5),
        ]
        .concat(),
        [
            frame(Kind::Open, 0, 1000, &start_sleep()),
            frame(Kind::Credit, 0, 1000, &[0xff; 4]),
        ]
        .concat(),
    ]
}

fn start_sleep() -> Vec<u8> {
    let start = Start::new(&["sleep", "100"]).stdin().params();
    [b"\x82\xa1m\xadcommand.start\xa1p".as_slice(), &encode(&start)].concat()
}

#[test]
fn violations_close_the_channel_and_the_agent_comes_back() {
    let mut host = Host::start();
    let running = Start::shell("echo ready; sleep 100");
    let (stream, _) = host.connection.start(&running).unwrap();
    host.connection.expect(stream, "ready");
    for bytes in violations() {
        host.connection
            .socket
            .set_read_timeout(Some(support::PATIENCE))
            .unwrap();
        let _ = host.connection.socket.write_all(&bytes);
        let mut rest = vec![0; 65536];
        while let Ok(1..) = host.connection.socket.read(&mut rest) {}
        host.reconnect();
        host.connection
            .call("ping", &map([]))
            .unwrap_or_else(|error| panic!("{error:?} after {bytes:?}"));
    }
    let list = host.connection.call("command.list", &map([])).unwrap();
    let commands = list["commands"].as_array().unwrap();
    assert!(
        commands
            .iter()
            .any(|info| info["id"] == running.id.as_str() && info["running"] == true)
    );
}

#[test]
fn random_bytes_do_no_harm() {
    let mut host = Host::start();
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    for round in 0..12 {
        let mut bytes = vec![0; 2000];
        random.read_exact(&mut bytes).unwrap();
        if round % 2 == 0 {
            // A valid header first, so that the payload is reached.
            let kind = [Kind::Open, Kind::Event, Kind::Data, Kind::Credit][round / 2 % 4];
            let length = if kind == Kind::Credit { 4 } else { 500 };
            let header = Header {
                length,
                kind,
                channel: 0,
                stream: 2000 + round as u32,
            };
            bytes[..12].copy_from_slice(&header.to_bytes());
        }
        let _ = host.connection.socket.write_all(&bytes);
        host.reconnect();
    }
    assert_eq!(host.connection.run(&Start::new(&["echo", "alive"])).text(), "alive\n");
}

#[test]
fn too_many_streams_are_a_violation() {
    let mut host = Host::start();
    let start = Start::new(&["sleep", "100"]).stdin();
    host.connection.start(&start).unwrap();
    let stdin = map([
        ("id", start.id.as_str().into()),
        ("timeout_ms", 60_000.into()),
        ("close", false.into()),
    ]);
    while host.connection.mux.open("command.stdin", &encode(&stdin)).is_some() {}
    assert_eq!(host.connection.mux.open_streams(), 1024);
    host.connection.flush();
    let payload = b"\x82\xa1m\xa4ping\xa1p\x80";
    let header = Header {
        length: payload.len() as u32,
        kind: Kind::Open,
        channel: 0,
        stream: 1_000_000,
    };
    host.connection
        .socket
        .write_all(&[&header.to_bytes()[..], payload].concat())
        .unwrap();
    while host.connection.receive() {}
    host.reconnect();
    host.connection.call("ping", &map([])).unwrap();
}

#[test]
fn a_host_that_is_away_is_looked_for_with_growing_pauses() {
    let mut host = Host::start();
    let path = host.directory.join("h.sock");
    let away = host.directory.join("away.sock");
    std::fs::rename(&path, &away).unwrap();
    let _ = host.connection.socket.shutdown(std::net::Shutdown::Both);
    std::thread::sleep(Duration::from_millis(300));
    std::fs::rename(&away, &path).unwrap();
    let since = Instant::now();
    host.connection = support::Connection::accept(&host.listener, support::hello());
    assert!(since.elapsed() < Duration::from_millis(1500));
    host.connection.call("ping", &map([])).unwrap();
}

#[test]
fn a_host_that_asks_nothing_is_not_looked_for_without_pause() {
    let mut host = Host::start();
    let began = Instant::now();
    for _ in 0..6 {
        host.reconnect();
    }
    assert!(began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());
    for _ in 0..6 {
        host.connection.call("ping", &map([])).unwrap();
        host.reconnect();
    }
    let began = Instant::now();
    for _ in 0..6 {
        host.connection.call("ping", &map([])).unwrap();
        host.reconnect();
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[test]
fn an_idle_agent_is_small_and_asleep() {
    let mut host = Host::start();
    host.connection.run(&Start::shell("head -c 3000000 /dev/zero"));
    let before = switches(&host);
    std::thread::sleep(Duration::from_millis(700));
    assert!(switches(&host) - before <= 1, "it wakes up without a reason");
    assert!(host.resident_kib() < 12 * 1024, "{} KiB", host.resident_kib());
}

fn switches(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.agent.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt_switches"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_cancelled_request_is_not_answered() {
    let mut host = Host::start();
    let stream = host.connection.open(
        "file.stat",
        &map([("path", b"/".as_slice().into()), ("user", "root".into())]),
    );
    host.connection.cancel(stream);
    host.connection.call("ping", &map([])).unwrap();
    assert!(!matches!(
        host.connection.try_next(stream, Duration::from_millis(50)),
        Some(Item::Error(_))
    ));
}

#[test]
fn version_and_help() {
    let run = |argument: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_hutch-agent"))
            .arg(argument)
            .output()
            .unwrap()
    };
    let version = String::from_utf8(run("--version").stdout).unwrap();
    assert_eq!(version, format!("hutch-agent {}\n", env!("CARGO_PKG_VERSION")));
    assert!(
        String::from_utf8(run("--help").stdout)
            .unwrap()
            .contains("--connect PATH")
    );
    assert_eq!(run("--bogus").status.code(), Some(2));
}
