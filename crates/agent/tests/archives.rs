//! Uploaded archives, honest and hostile.

mod support;

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use hutch_wire::ErrorMessage;
use support::{Host, UID, V, map};
use tar::{Builder, EntryType, Header};

fn request(directory: &Path, gzip: bool) -> V {
    limited(directory, gzip, 1 << 30, 10_000)
}

fn limited(directory: &Path, gzip: bool, max_bytes: i64, max_files: i64) -> V {
    map([
        ("cwd", directory.into()),
        ("user", "default".into()),
        ("gzip", gzip.into()),
        ("max_bytes", max_bytes.into()),
        ("max_files", max_files.into()),
    ])
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A header whose name is exactly `name`, whatever that is.
fn header(name: &[u8], kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

/// An honest file and then `entries`.
fn archive(entries: &[(Header, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder
        .append(&header(b"honest", EntryType::Regular, 0o644, 5), &b"hello"[..])
        .unwrap();
    for (header, data) in entries {
        builder.append(header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn entries_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Upload, expect a refusal, and that nothing was written.
fn refused(host: &mut Host, params: &V, body: &[u8]) -> ErrorMessage {
    let error = host.connection.upload("archive.write", params, body).unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (400, "invalid_archive"),
        "{}",
        error.message
    );
    assert_eq!(entries_in(&host.home), Vec::<String>::new(), "{}", error.message);
    error
}

#[test]
fn files_and_directories_are_written_with_their_modes() {
    let mut host = Host::start();
    let body = archive(&[
        (header(b"deep/er/file", EntryType::Regular, 0o6777, 3), b"abc"),
        (header(b"closed/", EntryType::Directory, 0o500, 0), b""),
        (header(b"closed/inside", EntryType::Regular, 0o400, 1), b"x"),
        (header(b"shared/", EntryType::Directory, 0o775, 0), b""),
        (header(b"./dotted//name", EntryType::Regular, 0o600, 0), b""),
        (header(b"./", EntryType::Directory, 0o700, 0), b""),
    ]);
    for (gzip, body) in [(false, body.clone()), (true, compressed(&body))] {
        let directory = host.home.join(format!("into-{gzip}"));
        let reply = host
            .connection
            .upload("archive.write", &request(&directory, gzip), &body)
            .unwrap();
        assert_eq!((&reply["files"], &reply["bytes"]), (&7.into(), &9.into()));
        assert_eq!(std::fs::read(directory.join("honest")).unwrap(), b"hello");
        let mode = |name: &str| {
            let metadata = std::fs::metadata(directory.join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (UID, UID));
            metadata.mode() & 0o7777
        };
        assert_eq!(
            [
                mode("deep/er/file"),
                mode("deep/er"),
                mode("closed"),
                mode("closed/inside")
            ],
            [0o777, 0o755, 0o500, 0o400]
        );
        assert_eq!(
            [mode("shared"), mode("dotted/name"), mode("honest")],
            [0o775, 0o600, 0o644]
        );
        assert_eq!(mode("."), 0o755, "a directory that was there keeps its mode");
    }
}

#[test]
fn what_is_there_is_replaced() {
    let mut host = Host::start();
    let outside = host.directory.join("outside");
    std::fs::write(&outside, "untouched").unwrap();
    std::fs::write(host.home.join("honest"), "old, and longer").unwrap();
    std::fs::hard_link(host.home.join("honest"), host.home.join("other-name")).unwrap();
    std::fs::write(host.home.join("target"), "old").unwrap();
    std::os::unix::fs::chown(host.home.join("target"), Some(UID), Some(UID)).unwrap();
    symlink("target", host.home.join("link")).unwrap();
    std::fs::create_dir(host.home.join("real")).unwrap();
    std::os::unix::fs::chown(host.home.join("real"), Some(UID), Some(UID)).unwrap();
    symlink("real", host.home.join("linked")).unwrap();
    let body = archive(&[
        (header(b"link", EntryType::Regular, 0o644, 3), b"new"),
        (header(b"linked/file", EntryType::Regular, 0o644, 3), b"new"),
        (header(b"linked/", EntryType::Directory, 0o755, 0), b""),
    ]);
    host.connection
        .upload("archive.write", &request(&host.home.clone(), false), &body)
        .unwrap();
    let content = |name: &str| std::fs::read_to_string(host.home.join(name)).unwrap();
    assert_eq!(content("honest"), "hello");
    assert_eq!(
        content("other-name"),
        "old, and longer",
        "the old file itself is not changed"
    );
    assert_eq!(content("target"), "new", "a symlink of the guest is followed");
    assert_eq!(content("real/file"), "new");
    // With that user's rights: root's file behind a symlink stays.
    std::fs::remove_file(host.home.join("link")).unwrap();
    symlink(&outside, host.home.join("link")).unwrap();
    let error = host
        .connection
        .upload("archive.write", &request(&host.home.clone(), false), &body)
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("file_error", "link: Permission denied")
    );
    assert_eq!(std::fs::read_to_string(outside).unwrap(), "untouched");
}

#[test]
fn names_outside_the_destination_are_refused() {
    let mut host = Host::start();
    let home = host.home.clone();
    for name in ["../escape", "a/../../escape", "..", "/etc/hutch-escape", "/", ""] {
        let body = archive(&[(header(name.as_bytes(), EntryType::Regular, 0o644, 0), b"")]);
        refused(&mut host, &request(&home, false), &body);
        refused(&mut host, &request(&home, true), &compressed(&body));
    }
    assert!(!host.directory.join("escape").exists());
}

#[test]
fn everything_but_files_and_directories_is_refused() {
    let mut host = Host::start();
    let home = host.home.clone();
    let kinds = [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ];
    for kind in kinds {
        refused(
            &mut host,
            &request(&home, false),
            &archive(&[(header(b"entry", kind, 0o644, 0), b"")]),
        );
    }
    let mut strange = header(b"entry", EntryType::Regular, 0o644, 0);
    strange.as_old_mut().linkflag = *b"Z";
    strange.set_cksum();
    refused(&mut host, &request(&home, false), &archive(&[(strange, b"")]));
    refused(
        &mut host,
        &request(&home, false),
        &archive(&[(header(b"directory/", EntryType::Regular, 0o644, 0), b"")]),
    );
    refused(
        &mut host,
        &request(&home, false),
        &archive(&[(header(b"d", EntryType::Directory, 0o755, 4), b"data")]),
    );
}

fn extended(kind: EntryType, data: &[u8]) -> (Header, Vec<u8>) {
    (header(b"extension", kind, 0o644, data.len() as u64), data.to_vec())
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

#[test]
fn names_with_nul_bytes_are_refused_and_others_kept_as_they_are() {
    let mut host = Host::start();
    let home = host.home.clone();
    let file = || header(b"plain", EntryType::Regular, 0o644, 0);
    let cases = [
        extended(EntryType::XHeader, &pax("path", b"a\0b")),
        extended(EntryType::GNULongName, b"a\0b"),
        extended(EntryType::XHeader, &pax("path", b"")),
        extended(EntryType::XHeader, &pax("path", b"../x")),
        extended(EntryType::XHeader, &pax("size", b"-1")),
        extended(EntryType::XHeader, b"99 path=x\n"),
        extended(EntryType::XHeader, b"path=x\n"),
        extended(EntryType::XHeader, &pax("GNU.sparse.major", b"1")),
        extended(EntryType::XGlobalHeader, &pax("path", b"everything")),
        extended(EntryType::XHeader, &pax("path", &[b'x'; 300])),
        extended(EntryType::XHeader, &pax("path", &b"x/".repeat(2100))),
        extended(EntryType::XHeader, &vec![b'x'; 2_000_000]),
    ];
    for (head, data) in cases {
        refused(
            &mut host,
            &request(&home, false),
            &archive(&[(head, &data), (file(), b"")]),
        );
    }
    let many: Vec<_> = (0..20)
        .map(|_| extended(EntryType::XHeader, &pax("path", b"x")))
        .collect();
    let many: Vec<_> = many
        .iter()
        .map(|(head, data)| (head.clone(), data.as_slice()))
        .collect();
    refused(&mut host, &request(&home, false), &archive(&many));

    let long = [b"l".repeat(200), b"/".to_vec(), b"n\xff\xfe".to_vec()].concat();
    let (pax_head, pax_data) = extended(EntryType::XHeader, &pax("path", &long));
    let gnu = [&long[..], b"-gnu\0"].concat();
    let (gnu_head, gnu_data) = extended(EntryType::GNULongName, &gnu);
    let (global, global_data) = extended(EntryType::XGlobalHeader, &pax("comment", b"made by a tool"));
    let body = archive(&[
        (global, &global_data),
        (pax_head, &pax_data),
        (file(), b""),
        (gnu_head, &gnu_data),
        (file(), b""),
        (header(b"\xc3(", EntryType::Regular, 0o644, 0), b""),
    ]);
    host.connection
        .upload("archive.write", &request(&home, false), &body)
        .unwrap();
    let name = |bytes: &[u8]| home.join(std::ffi::OsStr::from_bytes(bytes));
    assert!(name(&long).exists() && name(&gnu[..gnu.len() - 1]).exists() && name(b"\xc3(").exists());
}

#[test]
fn broken_archives_are_refused() {
    let mut host = Host::start();
    let home = host.home.clone();
    let good = archive(&[(header(b"second", EntryType::Regular, 0o644, 2000), &[7; 2000])]);
    let zipped = compressed(&good);
    let mut wrong_sum = good.clone();
    wrong_sum[1024] ^= 1;
    let mut wrong_number = good.clone();
    wrong_number[1024 + 124] = b'9';
    let mut no_end = good.clone();
    no_end.truncate(1024 + 512 + 2048);
    let mut after_end = good.clone();
    after_end.extend_from_slice(&[1; 512]);
    for body in [
        &wrong_sum,
        &wrong_number,
        &no_end,
        &after_end,
        &good[..1100].to_vec(),
        &vec![],
        &vec![0xff; 5000],
    ] {
        refused(&mut host, &request(&home, false), body);
        refused(&mut host, &request(&home, true), &compressed(body));
    }
    let mut wrong_crc = zipped.clone();
    let at = wrong_crc.len() - 8;
    wrong_crc[at] ^= 1;
    let mut flipped = zipped.clone();
    flipped[40] ^= 0x55;
    let trailing = [&zipped[..], b"more"].concat();
    let zeros = [&zipped[..], &[0; 20]].concat();
    for body in [
        &zipped[..zipped.len() - 1],
        &zipped[..zipped.len() / 2],
        &wrong_crc,
        &flipped,
        &trailing,
        &zeros,
        b"",
        &good,
    ] {
        refused(&mut host, &request(&home, true), body);
    }
    refused(&mut host, &request(&home, false), &zipped);
    // Two members are one stream.
    let (first, second) = good.split_at(700);
    let members = [compressed(first), compressed(second)].concat();
    host.connection
        .upload("archive.write", &request(&home, true), &members)
        .unwrap();
}

#[test]
fn limits_are_kept() {
    let mut host = Host::start();
    let home = host.home.clone();
    let zeros = vec![0; 20_000_000];
    let bomb = compressed(&archive(&[(
        header(b"bomb", EntryType::Regular, 0o644, 20_000_000),
        &zeros,
    )]));
    assert!(bomb.len() < 200_000);
    let error = refused(&mut host, &limited(&home, true, 10_000_000, 10), &bomb);
    assert!(error.message.contains("10000000"), "{}", error.message);
    let mut builder = Builder::new(Vec::new());
    for number in 0..100_000 {
        builder
            .append(
                &header(format!("{number}").as_bytes(), EntryType::Regular, 0o644, 0),
                &b""[..],
            )
            .unwrap();
    }
    let many = compressed(&builder.into_inner().unwrap());
    refused(&mut host, &limited(&home, true, 10_000_000, 50_000), &many);
    let lying = archive(&[(header(b"large", EntryType::Regular, 0o644, 1 << 32), b"")]);
    refused(&mut host, &limited(&home, false, 10_000_000, 10), &lying);
    let padded = [archive(&[]), vec![0; 20_000_000]].concat();
    refused(&mut host, &request(&home, true), &compressed(&padded));
    let zipped_padding = compressed(&vec![0; 40_000_000]);
    refused(&mut host, &request(&home, true), &zipped_padding);
    assert!(host.resident_kib() < 40 * 1024, "{} KiB", host.resident_kib());
}

#[test]
fn large_files_and_large_archives_are_written_whole() {
    let mut host = Host::start();
    let home = host.home.clone();
    let content: Vec<u8> = (0..5_000_000_u32).map(|number| ((number * 13) >> 4) as u8).collect();
    let mut builder = Builder::new(Vec::new());
    for number in 0..60 {
        let name = format!("small/{number}");
        builder
            .append(
                &header(name.as_bytes(), EntryType::Regular, 0o644, 150_000),
                &content[number..number + 150_000],
            )
            .unwrap();
    }
    for number in 0..3 {
        let name = format!("large-{number}/file");
        builder
            .append(
                &header(name.as_bytes(), EntryType::Regular, 0o755, 5_000_000),
                &content[..],
            )
            .unwrap();
    }
    let body = builder.into_inner().unwrap();
    for _ in 0..2 {
        host.connection
            .upload("archive.write", &request(&home, true), &compressed(&body))
            .unwrap();
        for number in 0..60 {
            assert_eq!(
                std::fs::read(home.join(format!("small/{number}"))).unwrap(),
                content[number..number + 150_000]
            );
        }
        for number in 0..3 {
            let path = home.join(format!("large-{number}/file"));
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
        }
        assert_eq!(
            entries_in(&home),
            ["large-0", "large-1", "large-2", "small"],
            "no hidden file is left"
        );
    }
    // Refused after a large file was spooled.
    let mut broken = body.clone();
    broken.extend_from_slice(&[1; 512]);
    let before = entries_in(&home);
    let error = host
        .connection
        .upload("archive.write", &request(&home, false), &broken)
        .unwrap_err();
    assert_eq!(error.code, "invalid_archive");
    assert_eq!(entries_in(&home), before);
}

#[test]
fn a_destination_that_the_user_may_not_write_to_is_an_error() {
    let mut host = Host::start();
    let theirs = host.directory.join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o755)).unwrap();
    let large = vec![1; 3_000_000];
    let body = archive(&[(header(b"large", EntryType::Regular, 0o644, 3_000_000), &large)]);
    let error = host
        .connection
        .upload("archive.write", &request(&theirs, false), &body)
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("file_error", "honest: Permission denied")
    );
    assert!(entries_in(&theirs).is_empty());
    let into_file = host.home.join("file");
    std::fs::write(&into_file, "").unwrap();
    let error = host
        .connection
        .upload("archive.write", &request(&into_file, false), &body)
        .unwrap_err();
    assert_eq!(error.code, "file_error");
}
