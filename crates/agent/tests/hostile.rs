//! What guests and broken hosts may try: the agent stays what it is, and small. `HUTCH_CAMPAIGN=full` tries much more.

mod support;

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use hutch_wire::{Header, Kind, encode};
use support::{Host, Start, V, eventually, map};

fn is_full() -> bool {
    std::env::var("HUTCH_CAMPAIGN").is_ok_and(|campaign| campaign == "full")
}

// -- a guest's processes -----------------------------------------------------------------------------------------

#[test]
fn the_default_user_can_neither_signal_nor_look_into_the_agent() {
    let mut host = Host::start();
    // A thread that has taken on the user's rights must not be within the user's reach either.
    let params = map([
        ("path", b"f".as_slice().into()),
        ("user", "default".into()),
        ("mode", 0o600.into()),
    ]);
    let upload = host.connection.open("file.write", &params);
    host.connection.send(upload, b"begun");
    let agent = host.agent.id();
    eventually("a thread for the upload", || {
        std::fs::read_dir(format!("/proc/{agent}/task")).unwrap().count() > 1
    });
    let script = format!(
        "for pid in $(ls /proc/{agent}/task); do
            for signal in 9 15 19 11; do kill -$signal $pid && echo \"sent $signal to $pid\"; done
            for name in environ mem maps stack syscall; do cat /proc/$pid/$name && echo \"read $name of $pid\"; done
            ls /proc/$pid/fd /proc/$pid/cwd/. /proc/$pid/root/. && echo \"listed $pid\"
            echo 1000 > /proc/$pid/oom_score_adj && echo \"changed $pid\"
        done 2>/dev/null
        kill -9 -1; echo done"
    );
    assert_eq!(host.connection.run(&Start::shell(&script)).text(), "done\n");
    host.connection.end(upload);
    assert_eq!(host.connection.reply(upload).unwrap()["size"], 5);
}

#[test]
fn a_killed_command_is_only_that() {
    let mut host = Host::start();
    // Whatever a program does to itself and to its group, its end is told once and the next one runs.
    for script in [
        "kill -9 $$",
        "kill -9 0",
        "(sleep 0.05; kill -9 $$) & kill -STOP $$",
        "ulimit -c 0; kill -SEGV $$",
        "exec 0<&- 1>&- 2>&-; exec true",
        "trap '' CHLD; true",
    ] {
        let (stream, _) = host.connection.start(&Start::shell(script)).unwrap();
        assert!(host.connection.finish(stream).exit_code.is_some(), "{script}");
    }
    assert_eq!(host.connection.run(&Start::new(&["echo", "alive"])).text(), "alive\n");
}

#[test]
fn background_processes_that_go_on_writing_cost_nothing_for_long() {
    let mut host = Host::start();
    host.connection.run(&Start::new(&["true"]));
    let before = host.descriptors();
    for _ in 0..20 {
        host.connection.run(&Start::shell(
            "(head -c 3000000 /dev/zero; sleep 0.2; echo late >&2) & echo now",
        ));
    }
    eventually("all descriptors to be closed", || host.descriptors() <= before);
    assert!(host.resident_kib() < 24 * 1024, "{} KiB", host.resident_kib());
}

#[test]
fn a_terminal_hangs_up_when_its_command_ends() {
    let mut host = Host::start();
    host.connection.run(&Start::new(&["true"]));
    let before = host.descriptors();
    let script = "setsid -f sh -c 'sleep 1000' </dev/null >/dev/null 2>&1; \
                  (trap 'echo hung up > hup; exit' HUP; echo ready; while :; do sleep 0.05; done) & \
                  read line; exit 3";
    let start = Start::shell(script).pty(80, 24);
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "ready");
    host.connection.send(stream, b"\n");
    assert_eq!(host.connection.finish(stream).exit_code, Some(3));
    let mark = host.home.join("hup");
    eventually("the background process to get SIGHUP", || mark.exists());
    eventually("all descriptors to be closed", || host.descriptors() <= before);
}

#[test]
fn many_arguments_and_a_large_environment_arrive_whole() {
    let mut host = Host::start();
    let arguments: Vec<String> = (0..2000).map(|number| format!("{number:050}")).collect();
    let mut argv = vec!["sh", "-c", "echo $# $LARGE | wc -c"];
    argv.push("sh");
    argv.extend(arguments.iter().map(String::as_str));
    let start = Start::new(&argv).env("LARGE", &"x".repeat(100_000));
    assert_eq!(host.connection.run(&start).text(), "100006\n");
}

#[test]
fn a_limit_on_each_of_many_commands_is_not_kept_for_long() {
    let mut host = Host::start();
    host.connection.run(&Start::new(&["true"]));
    let before = host.resident_kib();
    for _ in 0..300 {
        let start = Start::new(&["true"]).set("timeout_ms", V::I(i64::MAX));
        let (stream, _) = host.connection.start(&start).unwrap();
        host.connection.finish(stream);
        host.connection.end(stream);
        host.connection
            .call("command.forget", &map([("id", start.id.as_str().into())]))
            .unwrap();
    }
    let list = host.connection.call("command.list", &map([])).unwrap();
    assert_eq!(list["commands"].as_array().unwrap().len(), 1);
    assert!(host.resident_kib() < before + 2048);
}

// -- a host that errs ----------------------------------------------------------------------------------------------

#[test]
fn complaints_that_nobody_reads_are_not_the_end() {
    // A reader that is gone would be a broken pipe, one that does not read would block.
    for keep in [false, true] {
        let mut host = Host::with(support::hello(), |command| command.stderr(Stdio::piped()));
        let unread = host.agent.stderr.take().filter(|_| keep);
        for _ in 0..30 {
            let _ = host.connection.socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            host.reconnect();
            // A good connection in between, so that the agent's pauses stay short.
            host.connection.call("ping", &map([])).unwrap();
            host.reconnect();
        }
        host.connection.call("ping", &map([])).unwrap();
        drop(unread);
    }
}

#[test]
fn a_bomb_of_headers_is_refused() {
    let mut host = Host::start();
    // PAX headers of a megabyte each, which no limit on files or their bytes sees.
    let mut record = b"1000000 comment=".to_vec();
    record.resize(999_999, b'x');
    record.push(b'\n');
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(record.len() as u64);
    header.set_path("pax").unwrap();
    header.set_cksum();
    let mut file = tar::Header::new_ustar();
    file.set_size(0);
    file.set_mode(0o644);
    file.set_path("f").unwrap();
    file.set_cksum();
    let padding = vec![0; record.len().next_multiple_of(512) - record.len()];
    let entry = [header.as_bytes().as_slice(), &record, &padding, file.as_bytes()].concat();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..100 {
        encoder.write_all(&entry).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let bomb = encoder.finish().unwrap();
    let request = |max_files: i64| {
        map([
            ("cwd", (&host.home).into()),
            ("user", "default".into()),
            ("gzip", true.into()),
            ("max_bytes", 1_000_000.into()),
            ("max_files", max_files.into()),
        ])
    };
    let (small, large) = (request(100), request(10_000));
    let error = host.connection.upload("archive.write", &small, &bomb).unwrap_err();
    assert_eq!(error.code, "invalid_archive");
    assert!(error.message.contains("headers"), "{}", error.message);
    assert_eq!(
        host.connection.upload("archive.write", &large, &bomb).unwrap()["files"],
        100
    );
    assert!(host.resident_kib() < 24 * 1024, "{} KiB", host.resident_kib());
}

/// A small generator, the same sequence for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

fn frame(kind: Kind, channel: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        length: payload.len() as u32,
        kind,
        channel,
        stream,
    };
    [header.to_bytes().as_slice(), payload].concat()
}

/// A value of any type, now and then instead of the right one.
fn odd(random: &mut Random, right: V) -> V {
    let length = random.below(300);
    if random.below(12) > 0 {
        return right;
    }
    let text = String::from_utf8_lossy(&random.bytes(length)).into_owned();
    match random.below(6) {
        0 => V::I(random.next() as i64),
        1 => V::B(random.bytes(length)),
        2 => V::S(text),
        3 => V::L(vec![V::I(1), V::Bool(true)]),
        4 => V::M(vec![(text, V::I(0))]),
        _ => V::Bool(false),
    }
}

/// A request that makes sense, or nearly. None that changes whose guest it is: this agent runs on the host.
fn request(random: &mut Random) -> Vec<u8> {
    let id = V::S(format!("c{}", random.below(6)));
    let user = V::from("default");
    let path = V::B(random.pick(&[b"a".to_vec(), b"a/b".to_vec(), b"./x".to_vec(), b"\xff".to_vec()]));
    let argv = |words: &[&str]| V::L(words.iter().map(|word| word.as_bytes().into()).collect());
    let program = random.pick(&[
        argv(&["true"]),
        argv(&["cat"]),
        argv(&["sleep", "3"]),
        argv(&["head", "-c", "700000", "/dev/zero"]),
        argv(&["sh", "-c", "echo a; echo b >&2; exit 3"]),
        argv(&["no-such-program"]),
    ]);
    let mut entries = match random.below(11) {
        0..=2 => vec![
            ("id", id),
            ("argv", program),
            ("env", map([])),
            ("user", user),
            ("stdin", V::Bool(random.below(2) == 0)),
            ("timeout_ms", V::I(random.below(3000) as i64)),
        ],
        3 => vec![("id", id), ("offset", V::I(random.below(1_000_000) as i64 - 2))],
        4 => vec![
            ("id", id),
            ("signal", V::I(random.below(66) as i64)),
            ("group", V::Bool(true)),
        ],
        5 => vec![
            ("id", id),
            ("offset", V::I(random.below(20) as i64)),
            ("timeout_ms", V::I(random.below(200) as i64)),
            ("close", V::Bool(random.below(2) == 0)),
        ],
        6 => vec![
            ("cwd", V::from(b".".as_slice())),
            ("user", user),
            ("gzip", V::Bool(random.below(2) == 0)),
            ("max_bytes", V::I(100_000)),
            ("max_files", V::I(10)),
        ],
        7 | 8 => vec![("path", path), ("user", user), ("mode", V::I(0o600))],
        9 => vec![("path", path), ("user", user), ("recursive", V::Bool(true))],
        _ => vec![],
    };
    if random.below(8) == 0 && !entries.is_empty() {
        entries.remove(random.below(entries.len()));
    }
    let params = V::M(
        entries
            .into_iter()
            .map(|(key, value)| {
                // An odd user or directory could reach beyond the test's own files.
                let value = if matches!(key, "user" | "cwd" | "path" | "argv") {
                    value
                } else {
                    odd(random, value)
                };
                (key.to_owned(), value)
            })
            .collect(),
    );
    let method = random.pick(&[
        "command.start",
        "command.start",
        "command.start",
        "command.attach",
        "command.signal",
        "command.stdin",
        "command.forget",
        "command.list",
        "file.read",
        "file.write",
        "file.stat",
        "file.mkdir",
        "archive.write",
        "entropy.add",
        "ping",
    ]);
    encode(&V::M(vec![("m".to_owned(), method.into()), ("p".to_owned(), params)]))
}

/// Frames of a host that knows the protocol and errs.
fn session(random: &mut Random) -> Vec<u8> {
    let (mut bytes, mut stream) = (frame(Kind::Hello, 0, 0, &encode(&support::hello())), 0_u32);
    for _ in 0..random.below(40) {
        if stream == 0 || random.below(3) == 0 {
            stream += 1 + random.below(3) as u32;
            bytes.extend(frame(Kind::Open, 0, stream, &request(random)));
            continue;
        }
        let target = (1 + random.below(stream as usize)) as u32;
        let length = 1 + random.below(3000);
        let message = random.pick(&[
            map([("eof", true.into())]),
            map([("resize", V::L(vec![80.into(), 24.into()]))]),
            map([("sink", "discard".into())]),
            map([("sink", "forward".into())]),
            map([("sink", 7.into())]),
        ]);
        let next = match random.below(20) {
            0..=6 => frame(Kind::Data, 0, target, &random.bytes(length)),
            7..=9 => frame(Kind::Event, 0, target, &encode(&message)),
            10..=12 => frame(Kind::Credit, 0, target, &(length as u32).to_le_bytes()),
            13..=15 => frame(Kind::End, 0, target, b""),
            16 => frame(Kind::Cancel, 0, target, b""),
            17 => frame(Kind::Ping, 0, 0, &[1; 8]),
            18 => frame(Kind::Data, 2, target, b"x"),
            _ => frame(Kind::Event, 0, target, &random.bytes(20)),
        };
        bytes.extend(next);
    }
    // Some bytes are not what they should be.
    for _ in 0..random.below(3) {
        let place = 40 + random.below(bytes.len());
        if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 1 << random.below(8);
        }
    }
    bytes
}

#[test]
fn hosts_that_err_do_no_harm() {
    let mut host = Host::start();
    let rounds = if is_full() { 3000 } else { 40 };
    for seed in 0..rounds {
        let bytes = session(&mut Random(seed));
        // The mutated bytes must not name another program, user or place than those above.
        let foreign = [b"root".as_slice(), b"/etc", b"..", b"claim", b"shutdown", b"clock.set"];
        if foreign
            .iter()
            .any(|word| bytes.windows(word.len()).any(|window| window == *word))
        {
            continue;
        }
        // This session greets for itself, so that all of it is the seed's.
        let _ = host.connection.socket.shutdown(std::net::Shutdown::Both);
        let mut socket = support::accept(&host.listener);
        socket.set_read_timeout(Some(Duration::from_millis(3))).unwrap();
        let mut answers = vec![0; 65536];
        let mut random = Random(!seed);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(1 + random.below(2000)));
            if socket.write_all(part).is_err() {
                break;
            }
            rest = after;
            let _ = socket.read(&mut answers);
        }
        drop(socket);
        host.connection = support::Connection::accept(&host.listener, support::hello());
        host.connection
            .call("ping", &map([]))
            .unwrap_or_else(|error| panic!("{error:?} after seed {seed}"));
        if seed % 20 == 19 {
            assert!(
                host.resident_kib() < 64 * 1024,
                "{} KiB, seed {seed}",
                host.resident_kib()
            );
            assert!(
                host.descriptors() < 120,
                "{} descriptors, seed {seed}",
                host.descriptors()
            );
        }
        for number in 0..6 {
            let id = format!("c{number}");
            let kill = map([("id", id.as_str().into()), ("signal", 9.into()), ("group", true.into())]);
            let _ = host.connection.call("command.signal", &kill);
            let forget = map([("id", id.as_str().into())]);
            eventually("the command to be forgotten", || {
                host.connection.call("command.forget", &forget).is_ok()
            });
        }
    }
    assert_eq!(host.connection.run(&Start::new(&["echo", "alive"])).text(), "alive\n");
    let home = host.home.clone();
    eventually("unfinished files to be removed", || {
        std::fs::read_dir(&home)
            .unwrap()
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with(".hutch-"))
    });
}
