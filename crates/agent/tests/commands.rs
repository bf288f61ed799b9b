//! Commands, run by the real agent as an ordinary process.

mod support;

use std::time::Duration;

use support::{Host, Item, Start, UID, V, descendants, eventually, map};

fn signal(id: &str, signal: i64, group: bool) -> V {
    map([("id", id.into()), ("signal", signal.into()), ("group", group.into())])
}

fn attach(id: &str, offset: i64) -> V {
    map([("id", id.into()), ("offset", offset.into())])
}

#[test]
fn output_and_exit_code_arrive_in_order() {
    let mut host = Host::start();
    let finished = host.connection.run(&Start::shell("echo out; echo err >&2; exit 7"));
    assert_eq!(finished.stdout, b"out\n");
    assert_eq!(finished.stderr, b"err\n");
    assert_eq!(finished.exit_code, Some(7));
    assert!(finished.duration_us > 0);
}

#[test]
fn the_default_user_has_its_ids_home_directory_and_environment() {
    let mut host = Host::start();
    let script = "id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME $CLAIMED $OWN; umask; ulimit -c";
    let finished = host.connection.run(&Start::shell(script).env("OWN", "mine"));
    let home = host.home.to_str().unwrap();
    let expected = format!("{UID}\n{UID}\n{UID} 27\n{home}\n{home} tester tester yes mine\n0022\n0\n");
    assert_eq!(finished.text(), expected);
}

#[test]
fn root_has_its_own_home_and_knows_the_default_user() {
    let mut host = Host::start();
    let script = "id -u; id -G; echo $HOME $USER $SUDO_USER $SUDO_UID $SUDO_GID";
    let finished = host.connection.run(&Start::shell(script).root());
    assert_eq!(finished.text(), format!("0\n0\n/root root tester {UID} {UID}\n"));
}

#[test]
fn the_default_user_may_open_its_standard_streams_again() {
    let mut host = Host::start();
    let finished = host
        .connection
        .run(&Start::shell("echo out > /dev/stdout; echo err > /dev/stderr"));
    assert_eq!(
        (finished.stdout.as_slice(), finished.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

#[test]
fn no_descriptor_of_the_agent_reaches_a_command() {
    let mut host = Host::start();
    // `ls` itself has the directory open as 3.
    let finished = host.connection.run(&Start::new(&["ls", "/proc/self/fd"]));
    assert_eq!(finished.text(), "0\n1\n2\n3\n");
}

#[test]
fn signals_are_unblocked_and_have_their_default_action() {
    let mut host = Host::start();
    let finished = host
        .connection
        .run(&Start::new(&["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]));
    assert_eq!(
        finished.text(),
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

#[test]
fn a_missing_program_is_an_error() {
    let mut host = Host::start();
    for name in ["no-such-program", "/no/such/program"] {
        let error = host.connection.start(&Start::new(&[name])).unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (400, "executable_not_found"));
        assert_eq!(
            error.message,
            format!("[invalid_argument] executable file not found in $PATH: {name}")
        );
    }
    assert!(descendants(host.agent.id()).is_empty());
}

#[test]
fn the_path_of_the_command_is_searched() {
    let mut host = Host::start();
    let tool = host.home.join("tool");
    std::fs::write(&tool, "#!/bin/sh\necho found\n").unwrap();
    let start = Start::new(&["tool"]).env("PATH", &format!("/nowhere:{}:/usr/bin:/bin", host.home.display()));
    assert!(host.connection.start(&start).is_err(), "it is not executable");
    std::os::unix::fs::chown(&tool, Some(UID), None).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&tool, mode).unwrap();
    assert_eq!(host.connection.run(&start).text(), "found\n");
}

#[test]
fn a_missing_working_directory_is_named() {
    let mut host = Host::start();
    let error = host
        .connection
        .start(&Start::new(&["true"]).set("cwd", b"/no/such".as_slice().into()))
        .unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (400, "bad_request"));
    assert!(error.message.contains("/no/such"), "{}", error.message);
}

#[test]
fn arguments_that_are_too_long_are_an_error() {
    let mut host = Host::start();
    let mut start = Start::new(&["true"]);
    start.argv.push(vec![b'x'; 200_000]);
    let error = host.connection.start(&start).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (400, "bad_request"));
    assert!(error.message.contains("Argument list too long"), "{}", error.message);
}

#[test]
fn malformed_requests_are_answered() {
    let mut host = Host::start();
    let cases = [
        ("command.start", map([])),
        ("command.start", map([("id", 3.into())])),
        ("command.start", Start::new(&[]).params()),
        ("command.start", Start::new(&["a\0b"]).params()),
        ("command.start", Start::new(&["true"]).env("A=B", "c").params()),
        (
            "command.start",
            Start::new(&["true"]).set("user", "nobody".into()).params(),
        ),
        ("file.read", map([("path", "a str".into()), ("user", "root".into())])),
        ("no.such.method", map([])),
        ("claim", V::L(vec![])),
    ];
    for (method, params) in cases {
        let error = host.connection.call(method, &params).unwrap_err();
        assert_eq!(
            (error.status, error.code.as_str()),
            (400, "bad_request"),
            "{method} {params:?}"
        );
    }
    host.connection.call("ping", &map([])).unwrap();
}

#[test]
fn signals_reach_the_process_or_its_group() {
    let mut host = Host::start();
    let start = Start::shell("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done");
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "ready");
    host.connection
        .call("command.signal", &signal(&start.id, 10, false))
        .unwrap();
    let finished = host.connection.finish(stream);
    assert_eq!((finished.text().as_str(), finished.exit_code), ("got\n", Some(5)));
    let error = host
        .connection
        .call("command.signal", &signal(&start.id, 9, false))
        .unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (404, "command_not_found_or_exited")
    );

    let start = Start::shell("sleep 100 & echo ready; wait");
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "ready");
    host.connection
        .call("command.signal", &signal(&start.id, 9, true))
        .unwrap();
    assert_eq!(host.connection.finish(stream).exit_code, Some(137));
    eventually("the end of the group", || descendants(host.agent.id()).is_empty());
    let error = host
        .connection
        .call("command.signal", &signal("unknown", 9, false))
        .unwrap_err();
    assert_eq!(error.status, 404);
    assert_eq!(
        host.connection
            .call("command.signal", &signal("unknown", 0, false))
            .unwrap_err()
            .status,
        400
    );
}

#[test]
fn the_timeout_kills_the_group() {
    let mut host = Host::start();
    let finished = host
        .connection
        .run(&Start::shell("sleep 100 & sleep 100").set("timeout_ms", 100.into()));
    assert_eq!(finished.exit_code, Some(137));
    assert!(finished.duration_us >= 100_000);
    eventually("the end of the group", || descendants(host.agent.id()).is_empty());
}

#[test]
fn orphans_are_reaped_without_taking_statuses_of_commands() {
    let mut host = Host::start();
    let commands: Vec<_> = (0..20)
        .map(|code| {
            let script = format!("(sleep 0.01 &) ; (sh -c 'exit 9' &) ; exit {code}");
            host.connection.start(&Start::shell(&script)).unwrap().0
        })
        .collect();
    for (code, stream) in commands.into_iter().enumerate() {
        assert_eq!(host.connection.finish(stream).exit_code, Some(code as i64));
    }
    eventually("the end of all orphans", || descendants(host.agent.id()).is_empty());
}

#[test]
fn a_command_ends_with_its_process_whatever_children_it_left() {
    let mut host = Host::start();
    let file = host.home.join("written");
    let script = format!(
        "(sleep 0.3; yes | head -c 3000000; echo done > {}) & echo here",
        file.display()
    );
    let finished = host.connection.run(&Start::shell(&script));
    assert_eq!(finished.text(), "here\n");
    assert!(finished.duration_us < 250_000, "it waited for its child");
    eventually("the end of a child whose output nobody reads", || file.exists());
    eventually("the release of its pipes", || host.descriptors() < 16);
}

#[test]
fn standard_input_is_empty_unless_asked_for() {
    let mut host = Host::start();
    assert_eq!(host.connection.run(&Start::new(&["cat"])).exit_code, Some(0));
}

#[test]
fn standard_input_comes_from_the_commands_stream() {
    let mut host = Host::start();
    let (stream, _) = host.connection.start(&Start::new(&["wc", "-c"]).stdin()).unwrap();
    host.connection.send(stream, &vec![b'x'; 3_000_000]);
    host.connection.event(stream, &map([("eof", true.into())]));
    assert_eq!(host.connection.finish(stream).text(), "3000000\n");
}

fn stdin(id: &str, offset: Option<i64>, timeout_ms: i64, close: bool) -> V {
    let mut entries = vec![
        ("id".to_owned(), id.into()),
        ("timeout_ms".to_owned(), timeout_ms.into()),
        ("close".to_owned(), close.into()),
    ];
    entries.extend(offset.map(|offset| ("offset".to_owned(), offset.into())));
    V::M(entries)
}

#[test]
fn standard_input_requests_skip_what_was_taken() {
    let mut host = Host::start();
    let start = Start::new(&["cat"]).stdin();
    let (stream, _) = host.connection.start(&start).unwrap();
    let reply = host
        .connection
        .upload("command.stdin", &stdin(&start.id, Some(0), 5000, false), b"hello ")
        .unwrap();
    assert_eq!((&reply["written"], &reply["stalled"]), (&6.into(), &false.into()));
    // The same bytes again, and more of them.
    let again = stdin(&start.id, Some(0), 5000, false);
    assert_eq!(
        host.connection.upload("command.stdin", &again, b"hello world").unwrap()["written"],
        11
    );
    let gap = host
        .connection
        .upload("command.stdin", &stdin(&start.id, Some(50), 5000, false), b"x")
        .unwrap_err();
    assert_eq!(gap.status, 400);
    assert_eq!(
        host.connection
            .upload("command.stdin", &stdin(&start.id, None, 5000, true), b"!")
            .unwrap()["written"],
        12
    );
    assert_eq!(host.connection.finish(stream).text(), "hello world!");
    let error = host
        .connection
        .upload("command.stdin", &stdin(&start.id, None, 100, true), b"!")
        .unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (404, "command_not_found_or_exited")
    );
}

#[test]
fn a_process_that_does_not_read_stalls_a_standard_input_request() {
    let mut host = Host::start();
    let start = Start::new(&["sleep", "100"]).stdin();
    host.connection.start(&start).unwrap();
    let reply = host
        .connection
        .upload("command.stdin", &stdin(&start.id, None, 150, false), &vec![0; 300_000])
        .unwrap();
    assert_eq!((&reply["written"], &reply["stalled"]), (&65_536.into(), &true.into()));
    let second = host
        .connection
        .upload("command.stdin", &stdin(&start.id, None, 50, false), b"x")
        .unwrap();
    assert_eq!(second["stalled"], true);
}

#[test]
fn a_closed_standard_input_ends_a_request() {
    let mut host = Host::start();
    let start = Start::shell("exec 0<&-; echo closed; sleep 100").stdin();
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "closed");
    let reply = host
        .connection
        .upload("command.stdin", &stdin(&start.id, None, 5000, false), b"x")
        .unwrap();
    assert_eq!((&reply["written"], &reply["stalled"]), (&0.into(), &false.into()));
    let error = host
        .connection
        .upload("command.stdin", &stdin(&start.id, None, 5000, false), b"x")
        .unwrap_err();
    assert_eq!(error.status, 400);
}

#[test]
fn a_terminal_has_a_size_that_can_change() {
    let mut host = Host::start();
    let start = Start::shell("trap 'stty size' WINCH; stty size; tty; echo ready; while :; do sleep 0.02; done");
    let (stream, _) = host.connection.start(&start.pty(90, 33)).unwrap();
    let shown = host.connection.expect(stream, "ready");
    assert!(shown.contains("33 90") && shown.contains("/dev/pts/"), "{shown}");
    host.connection
        .event(stream, &map([("resize", V::L(vec![120.into(), 40.into()]))]));
    host.connection.expect(stream, "40 120");
    host.connection.send(stream, b"\x03");
    let finished = host.connection.finish(stream);
    assert_eq!(finished.exit_code, Some(130), "Ctrl-C interrupts the foreground group");
}

#[test]
fn a_terminals_last_output_and_its_end_arrive() {
    let mut host = Host::start();
    for round in 0..200 {
        // The last output may come just before the end or long before, and a child may keep the terminal open.
        let script = format!(
            "{} head -c {} /dev/zero | tr '\\0' x; echo; echo last",
            if round % 3 == 0 {
                "(trap '' HUP; sleep 0.3) &"
            } else {
                ""
            },
            round * 50
        );
        let (stream, _) = host.connection.start(&Start::shell(&script).pty(80, 24)).unwrap();
        let finished = host.connection.finish(stream);
        assert!(
            finished.text().ends_with("last\r\n"),
            "round {round}: {:?}",
            finished.text()
        );
        assert_eq!(finished.text().matches('x').count(), round * 50);
        host.connection.end(stream);
    }
}

#[test]
fn a_terminals_end_is_told_to_a_client_that_credits_late() {
    let mut host = Host::start();
    host.connection.credit = false;
    // More than the window, and a child that keeps the terminal open without writing to it.
    let script = "(trap '' HUP; sleep 1000) & stty raw; head -c 300000 /dev/zero";
    let (stream, _) = host.connection.start(&Start::shell(script).pty(80, 24)).unwrap();
    let mut received = 0;
    while received < support::WINDOW as usize {
        match host.connection.next(stream) {
            Item::Data(1, data) => received += data.len(),
            other => panic!("{other:?}"),
        }
    }
    host.connection.credit = true;
    host.connection.mux.grant(stream, received as u32);
    host.connection.flush();
    assert_eq!(host.connection.finish(stream).stdout.len() + received, 300_000);
}

#[test]
fn a_terminal_takes_input_and_its_end() {
    let mut host = Host::start();
    let (stream, _) = host
        .connection
        .start(&Start::shell("stty -echo; echo ready; cat; echo over").pty(80, 24))
        .unwrap();
    host.connection.expect(stream, "ready");
    host.connection.send(stream, b"line\n");
    host.connection.expect(stream, "line");
    host.connection.event(stream, &map([("eof", true.into())]));
    let finished = host.connection.finish(stream);
    assert_eq!((finished.text().as_str(), finished.exit_code), ("over\r\n", Some(0)));
    eventually("the release of the terminal", || host.descriptors() < 12);
}

#[test]
fn a_command_goes_on_while_the_channel_is_down_and_is_attached_again() {
    let mut host = Host::start();
    let start = Start::shell("echo one; while [ ! -e go ]; do sleep 0.01; done; echo two; exit 3");
    let (stream, pid) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "one\n");
    host.reconnect();
    assert_eq!(host.connection.hello.token, "token-1");
    std::fs::write(host.home.join("go"), "").unwrap();
    let stream = host.connection.open("command.attach", &attach(&start.id, 4));
    let reply = host.connection.reply(stream).unwrap();
    assert_eq!((&reply["pid"], &reply["offset"]), (&pid.into(), &4.into()));
    let finished = host.connection.finish(stream);
    assert_eq!((finished.text().as_str(), finished.exit_code), ("two\n", Some(3)));
    // Finished, it is still there until it is forgotten.
    let stream = host.connection.open("command.attach", &attach(&start.id, 8));
    assert_eq!(host.connection.reply(stream).unwrap()["running"], false);
    assert_eq!(host.connection.finish(stream).exit_code, Some(3));
    host.connection
        .call("command.forget", &map([("id", start.id.as_str().into())]))
        .unwrap();
    host.connection
        .call("command.forget", &map([("id", start.id.as_str().into())]))
        .unwrap();
    assert_eq!(
        host.connection
            .call("command.attach", &attach(&start.id, -1))
            .unwrap_err()
            .status,
        404
    );
}

#[test]
fn output_that_was_not_credited_is_sent_again() {
    let mut host = Host::start();
    let start = Start::shell("echo 0123456789; sleep 100");
    host.connection.credit = false;
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.expect(stream, "9\n");
    host.connection.mux.grant(stream, 4);
    host.connection.flush();
    host.connection.call("ping", &map([])).unwrap();
    host.reconnect();
    host.connection.credit = false;
    let stream = host.connection.open("command.attach", &attach(&start.id, -1));
    let offset = host.connection.reply(stream).unwrap()["offset"].as_u64().unwrap();
    assert!(offset <= 4, "acknowledged bytes may be gone, others not");
    assert_eq!(
        host.connection.expect(stream, "9\n"),
        &"0123456789\n"[offset as usize..]
    );
    let replaced = stream;
    let stream = host.connection.open("command.attach", &attach(&start.id, 7));
    assert_eq!(host.connection.reply(stream).unwrap()["offset"], 7);
    assert_eq!(host.connection.expect(stream, "9\n"), "789\n");
    assert_eq!(host.connection.next(replaced), Item::End);
    assert_eq!(
        host.connection
            .call("command.attach", &attach(&start.id, 12))
            .unwrap_err()
            .status,
        400
    );
    assert_eq!(
        host.connection
            .call("command.attach", &attach(&start.id, -2))
            .unwrap_err()
            .status,
        400
    );
}

#[test]
fn end_detaches_and_the_command_goes_on() {
    let mut host = Host::start();
    let start = Start::shell("while [ ! -e go ]; do sleep 0.01; done; echo done");
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.end(stream);
    assert_eq!(host.connection.next(stream), Item::End);
    let list = host.connection.call("command.list", &map([])).unwrap();
    assert_eq!(
        (&list["commands"][0]["id"], &list["commands"][0]["running"]),
        (&start.id.as_str().into(), &true.into())
    );
    assert!(
        host.connection
            .call("command.forget", &map([("id", start.id.as_str().into())]))
            .is_err()
    );
    std::fs::write(host.home.join("go"), "").unwrap();
    let stream = host.connection.open("command.attach", &attach(&start.id, -1));
    host.connection.reply(stream).unwrap();
    assert_eq!(host.connection.finish(stream).text(), "done\n");
    let list = host.connection.call("command.list", &map([])).unwrap();
    let info = &list["commands"][0];
    assert_eq!(
        (&info["running"], &info["exit_code"], &info["end"]),
        (&false.into(), &0.into(), &5.into())
    );
}

#[test]
fn the_same_id_twice_is_refused() {
    let mut host = Host::start();
    let start = Start::new(&["true"]);
    host.connection.run(&start);
    assert_eq!(host.connection.start(&start).unwrap_err().status, 409);
}

#[test]
fn a_client_that_does_not_credit_blocks_the_command_and_costs_no_memory() {
    let mut host = Host::start();
    host.connection.credit = false;
    let start = Start::new(&["yes"]);
    let (stream, _) = host.connection.start(&start).unwrap();
    let mut received = 0;
    while let Some(item) = host.connection.try_next(stream, Duration::from_millis(400)) {
        let Item::Data(1, data) = item else { panic!("{item:?}") };
        received += data.len();
    }
    assert_eq!(received, support::WINDOW as usize);
    // Others are served meanwhile.
    host.connection.credit = true;
    assert_eq!(host.connection.run(&Start::new(&["echo", "hello"])).text(), "hello\n");
    let list = host.connection.call("command.list", &map([])).unwrap();
    let commands = list["commands"].as_array().unwrap();
    let info = commands.iter().find(|info| info["id"] == start.id.as_str()).unwrap();
    assert!(info["end"].as_u64().unwrap() <= u64::from(support::WINDOW));
    assert!(host.resident_kib() < 16 * 1024, "{} KiB", host.resident_kib());
    // Credit lets it go on.
    host.connection.mux.grant(stream, received as u32);
    host.connection.flush();
    assert!(matches!(host.connection.next(stream), Item::Data(1, _)));
}

#[test]
fn a_command_blocks_while_nobody_is_attached() {
    let mut host = Host::start();
    let start = Start::shell("yes | head -c 5000000; echo done > finished");
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.cancel(stream);
    let mut end = 0;
    eventually("a full window", || {
        let list = host.connection.call("command.list", &map([])).unwrap();
        end = list["commands"][0]["end"].as_u64().unwrap();
        end == u64::from(support::WINDOW)
    });
    assert!(!host.home.join("finished").exists());
    let stream = host.connection.open("command.attach", &attach(&start.id, -1));
    host.connection.reply(stream).unwrap();
    let finished = host.connection.finish(stream);
    assert_eq!((finished.stdout.len(), finished.exit_code), (5_000_000, Some(0)));
}

#[test]
fn discarded_output_is_counted() {
    let mut host = Host::start();
    let until = |file: &str| format!("while [ ! -e {file} ]; do sleep 0.01; done");
    let script = format!(
        "yes & sleep 0.2; {}; kill $!; wait; {}; echo last",
        until("go"),
        until("on")
    );
    let start = Start::shell(&script);
    let (stream, _) = host.connection.start(&start).unwrap();
    host.connection.next(stream);
    host.connection.event(stream, &map([("sink", "discard".into())]));
    let mut end = 0;
    eventually("much dropped output", || {
        let list = host.connection.call("command.list", &map([])).unwrap();
        end = list["commands"][0]["end"].as_u64().unwrap();
        end > 50_000_000
    });
    std::fs::write(host.home.join("go"), "").unwrap();
    eventually("the end of the flood", || descendants(host.agent.id()).len() <= 2);
    host.connection.event(stream, &map([("sink", "forward".into())]));
    // What is answered after it was read after it.
    host.connection.call("command.list", &map([])).unwrap();
    std::fs::write(host.home.join("on"), "").unwrap();
    let finished = host.connection.finish(stream);
    assert!(finished.skipped > 40_000_000, "{}", finished.skipped);
    assert!(finished.text().ends_with("last\n"));
    assert!(host.resident_kib() < 16 * 1024, "{} KiB", host.resident_kib());
}

#[test]
fn ten_gigabytes_of_output_do_not_grow_memory() {
    let mut host = Host::start();
    let script = "head -c 300000000 /dev/zero";
    let finished = host.connection.run(&Start::shell(script));
    assert_eq!(finished.stdout.len(), 300_000_000);
    assert!(host.resident_kib() < 24 * 1024, "{} KiB", host.resident_kib());
}

#[test]
fn single_bytes_on_two_channels_do_not_grow_memory() {
    let mut host = Host::start();
    host.connection.credit = false;
    let script = "i=0; while [ $i -lt 20000 ]; do printf a; printf b >&2; i=$((i+1)); done";
    let (stream, _) = host.connection.start(&Start::shell(script)).unwrap();
    while host.connection.try_next(stream, Duration::from_millis(400)).is_some() {}
    assert!(host.resident_kib() < 16 * 1024, "{} KiB", host.resident_kib());
}

#[test]
fn a_hundred_commands_run_at_once() {
    let mut host = Host::start();
    let commands: Vec<_> = (0..100)
        .map(|number| {
            host.connection
                .start(&Start::shell(&format!("sleep 0.1; echo {number}")))
                .unwrap()
                .0
        })
        .collect();
    for (number, stream) in commands.into_iter().enumerate() {
        assert_eq!(host.connection.finish(stream).text(), format!("{number}\n"));
    }
    eventually("the release of all pipes", || host.descriptors() < 12);
}

#[test]
fn shutdown_asks_first_and_kills_then() {
    let mut host = Host::start();
    let polite = Start::shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    let stubborn = Start::shell("trap '' TERM; echo ready; while :; do sleep 0.02; done");
    let (polite, _) = host.connection.start(&polite).unwrap();
    let (stubborn, _) = host.connection.start(&stubborn).unwrap();
    host.connection.expect(polite, "ready");
    host.connection.expect(stubborn, "ready");
    host.connection
        .call("shutdown", &map([("grace_ms", 300.into())]))
        .unwrap();
    assert_eq!(host.connection.finish(polite).exit_code, Some(0));
    assert_eq!(host.connection.finish(stubborn).exit_code, Some(137));
}

#[test]
fn no_descriptors_left_is_an_error_and_not_the_end() {
    let mut host = Host::start();
    let agent = host.agent.id().to_string();
    let limit = std::process::Command::new("prlimit")
        .args(["--pid", &agent, "--nofile=14:"])
        .status()
        .unwrap();
    assert!(limit.success());
    let mut running = Vec::new();
    let error = loop {
        match host.connection.start(&Start::new(&["sleep", "100"])) {
            Ok((_, _)) => running.push(()),
            Err(error) => break error,
        }
        assert!(running.len() < 20);
    };
    assert_eq!((error.status, error.code.as_str()), (503, "resource_exhausted"));
    std::process::Command::new("prlimit")
        .args(["--pid", &agent, "--nofile=1000:"])
        .status()
        .unwrap();
    assert_eq!(host.connection.run(&Start::new(&["echo", "again"])).text(), "again\n");
}
