//! File methods and uploads, done by the real agent with the rights of the request's user.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use hutch_wire::ErrorMessage;
use support::{Host, Item, UID, V, map};

fn path_of(path: &Path, user: &str) -> V {
    map([("path", path.into()), ("user", user.into())])
}

fn write_to(path: &Path, user: &str, mode: i64) -> V {
    map([("path", path.into()), ("user", user.into()), ("mode", mode.into())])
}

fn mkdir(path: &Path, recursive: bool) -> V {
    map([
        ("path", path.into()),
        ("user", "default".into()),
        ("recursive", recursive.into()),
    ])
}

fn read(host: &mut Host, path: &Path, user: &str) -> Result<Vec<u8>, ErrorMessage> {
    let stream = host.connection.open("file.read", &path_of(path, user));
    host.connection.end(stream);
    let size = host.connection.reply(stream)?["size"].as_u64().unwrap();
    let mut content = Vec::new();
    loop {
        match host.connection.next(stream) {
            Item::Data(1, data) => content.extend(data),
            Item::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(size == 0 || size == content.len() as u64);
    Ok(content)
}

fn code(outcome: Result<serde_json::Value, ErrorMessage>) -> (u16, String, String) {
    let error = outcome.unwrap_err();
    (error.status, error.code, error.message)
}

fn failure(status: u16, code: &str, message: &str) -> (u16, String, String) {
    (status, code.to_owned(), message.to_owned())
}

#[test]
fn a_written_file_can_be_read_and_belongs_to_the_user() {
    let mut host = Host::start();
    let path = host.home.join("file");
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    let reply = host
        .connection
        .upload("file.write", &write_to(Path::new("file"), "default", 0o664), &body)
        .unwrap();
    assert_eq!(reply["size"], 3_000_000);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (UID, UID, 0o664)
    );
    assert_eq!(read(&mut host, Path::new("file"), "default").unwrap(), body);
    let stat = host.connection.call("file.stat", &path_of(&path, "default")).unwrap();
    assert_eq!(
        (&stat["kind"], &stat["size"], &stat["mode"]),
        (&"file".into(), &3_000_000.into(), &0o664.into())
    );
    assert_eq!((&stat["uid"], &stat["gid"]), (&UID.into(), &UID.into()));
    let mtime = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
    assert_eq!(stat["mtime_ns"], mtime);
    assert_eq!(
        std::fs::read_dir(&host.home).unwrap().count(),
        1,
        "no hidden file is left"
    );
}

#[test]
fn files_of_any_size_are_read_whole() {
    let mut host = Host::start();
    for size in [0, 1, 16_384, 262_143, 262_144, 262_145, 524_288, 700_000] {
        let path = host.home.join("file");
        std::fs::write(&path, vec![b'x'; size]).unwrap();
        assert_eq!(read(&mut host, &path, "default").unwrap().len(), size);
    }
    let version = read(&mut host, Path::new("/proc/version"), "default").unwrap();
    assert!(version.starts_with(b"Linux"));
}

#[test]
fn reading_waits_for_credit_and_costs_no_memory() {
    let mut host = Host::start();
    let path = host.home.join("large");
    std::fs::File::create(&path).unwrap().set_len(200_000_000).unwrap();
    host.connection.credit = false;
    let streams: Vec<_> = (0..20)
        .map(|_| host.connection.open("file.read", &path_of(&path, "default")))
        .collect();
    for stream in &streams {
        host.connection.reply(*stream).unwrap();
        let mut received = 0;
        while let Some(Item::Data(_, data)) = host.connection.try_next(*stream, Duration::from_millis(100)) {
            received += data.len();
        }
        assert_eq!(received, support::WINDOW as usize);
    }
    assert!(host.resident_kib() < 40 * 1024, "{} KiB", host.resident_kib());
    // Stalled readers hold up nobody.
    host.connection.credit = true;
    host.connection.call("file.stat", &path_of(&path, "default")).unwrap();
    for stream in streams {
        host.connection.cancel(stream);
    }
    host.connection.call("ping", &map([])).unwrap();
}

#[test]
fn the_users_rights_decide() {
    let mut host = Host::start();
    let secret = host.directory.join("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let error = read(&mut host, &secret, "default").unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str(), error.message.as_str()),
        (400, "file_error", "Permission denied")
    );
    assert_eq!(read(&mut host, &secret, "root").unwrap(), b"root's");
    assert!(read(&mut host, &secret, "default").is_err(), "rights are taken back");
    let denied = host
        .connection
        .upload("file.write", &write_to(&secret, "default", 0o644), b"mine");
    assert_eq!(code(denied), failure(400, "file_error", "Permission denied"));
    let written = host.directory.join("root-file");
    host.connection
        .upload("file.write", &write_to(&written, "root", 0o644), b"x")
        .unwrap();
    assert_eq!(std::fs::metadata(written).unwrap().uid(), 0);
}

#[test]
fn missing_files_and_directories_have_their_errors() {
    let mut host = Host::start();
    let missing = host.home.join("missing");
    let error = read(&mut host, &missing, "default").unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (404, "not_found"));
    std::fs::write(host.home.join("file"), "").unwrap();
    let below = host.home.join("file/below");
    assert_eq!(read(&mut host, &below, "default").unwrap_err().status, 404);
    assert_eq!(
        code(host.connection.call("file.stat", &path_of(&missing, "default"))).0,
        404
    );
    let home = host.home.clone();
    assert_eq!(read(&mut host, &home, "default").unwrap_err().message, "Is a directory");
    assert_eq!(
        read(&mut host, Path::new("/dev/zero"), "root").unwrap_err().code,
        "file_error"
    );
    let to_directory = host
        .connection
        .upload("file.write", &write_to(&home, "default", 0o644), b"x");
    assert_eq!(code(to_directory), failure(400, "file_error", "Is a directory"));
    let fifo = host.home.join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(read(&mut host, &fifo, "root").unwrap_err().code, "file_error");
}

#[test]
fn directories_are_made_with_the_expected_errors() {
    let mut host = Host::start();
    let home = host.home.clone();
    let new = home.join("new");
    host.connection
        .call("file.mkdir", &mkdir(Path::new("new"), false))
        .unwrap();
    let metadata = std::fs::metadata(&new).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (UID, 0o755));
    let again = code(host.connection.call("file.mkdir", &mkdir(&new, false)));
    let message = format!("error creating directory: {}: File exists", new.display());
    assert_eq!(again, failure(400, "file_error", &message));
    let deep = home.join("a/b/c");
    let orphan = code(host.connection.call("file.mkdir", &mkdir(&deep, false)));
    assert_eq!(
        orphan,
        failure(400, "file_error", "error creating directory: No such file or directory")
    );
    host.connection.call("file.mkdir", &mkdir(&deep, true)).unwrap();
    host.connection.call("file.mkdir", &mkdir(&deep, true)).unwrap();
    assert!(deep.is_dir());
    std::fs::write(home.join("file"), "").unwrap();
    assert_eq!(
        code(host.connection.call("file.mkdir", &mkdir(&home.join("file/x"), true))).1,
        "file_error"
    );
    assert_eq!(
        code(host.connection.call("file.mkdir", &mkdir(&home.join("file"), true))).1,
        "file_error"
    );
}

#[test]
fn a_final_symlink_is_followed_when_written_and_not_when_looked_at() {
    let mut host = Host::start();
    let (target, link) = (host.home.join("target"), host.home.join("link"));
    std::fs::write(&target, "old").unwrap();
    symlink("target", &link).unwrap();
    host.connection
        .upload("file.write", &write_to(&link, "default", 0o600), b"new")
        .unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"new");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        host.connection.call("file.stat", &path_of(&link, "default")).unwrap()["kind"],
        "symlink"
    );
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let mut host = Host::start();
    let stream = host
        .connection
        .open("file.write", &write_to(Path::new("half"), "default", 0o644));
    host.connection.send(stream, &vec![0; 100_000]);
    support::eventually("the hidden file", || {
        std::fs::read_dir(&host.home).unwrap().count() == 1
    });
    host.connection.cancel(stream);
    support::eventually("its removal", || std::fs::read_dir(&host.home).unwrap().count() == 0);
    let stream = host
        .connection
        .open("file.write", &write_to(Path::new("half"), "default", 0o644));
    host.connection.send(stream, &vec![0; 100_000]);
    support::eventually("the hidden file", || {
        std::fs::read_dir(&host.home).unwrap().count() == 1
    });
    host.reconnect();
    support::eventually("its removal", || std::fs::read_dir(&host.home).unwrap().count() == 0);
}

#[test]
fn a_full_file_system_is_an_error() {
    let mut host = Host::start();
    let small = host.directory.join("small");
    std::fs::create_dir(&small).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=64k,mode=777", "tmpfs"])
        .arg(&small)
        .stderr(std::process::Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("left out: this environment may not mount a file system");
        return;
    }
    let outcome = host.connection.upload(
        "file.write",
        &write_to(&small.join("file"), "default", 0o644),
        &vec![1; 500_000],
    );
    let left = std::fs::read_dir(&small).unwrap().count();
    assert!(
        std::process::Command::new("umount")
            .arg(&small)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(code(outcome), failure(400, "no_space", "No space left on device"));
    assert_eq!(left, 0);
}

#[test]
fn ownership_of_replaced_files_is_the_users() {
    let mut host = Host::start();
    let path = host.home.join("file");
    std::fs::write(&path, "old").unwrap();
    chown(&path, Some(0), Some(0)).unwrap();
    host.connection
        .upload("file.write", &write_to(&path, "default", 0o640), b"new")
        .unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (UID, 0o640));
}
