//! What belongs to the guest as a whole: limits of all processes, hostname, clock, entropy.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use hutch_wire::ErrorMessage;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::time::{ClockId, Timespec};

use crate::errors::{bad_request, system_failure};
use crate::sys_unsafe;

const OPEN_FILES: u64 = 65_536;
const MAX_COMPLAINTS: u32 = 20;

/// Prepare this process; what the guest's kernel does not have is left out.
pub(crate) fn prepare_process() {
    sys_unsafe::use_little_memory();
    // No process of the guest but root's may trace us or read our memory.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(Resource::Core, no_core);
    let files = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    if rustix::process::setrlimit(Resource::Nofile, files).is_err() {
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let _ = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
    if is_init() {
        let _ = rustix::process::chdir("/");
    } else {
        // So that orphans come to us as they do to process 1.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    open_standard_descriptors();
}

/// Make sure that descriptors 0 to 2 are taken: a pipe that got one of them would be lost when a program starts.
fn open_standard_descriptors() {
    while let Ok(descriptor) = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        if std::os::fd::AsRawFd::as_raw_fd(&descriptor) > 2 {
            return;
        }
        std::mem::forget(descriptor);
    }
}

/// Whether this is process 1, to which the guest belongs.
pub(crate) fn is_init() -> bool {
    rustix::process::getpid().is_init()
}

/// Tell whoever started us, a few times: nobody may read it any more, and a full pipe would hold us for ever.
pub(crate) fn complain(text: &str) {
    static TOLD: AtomicU32 = AtomicU32::new(0);
    if TOLD.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
        let _ = writeln!(std::io::stderr(), "hutch-agent: {text}");
    }
}

/// 32 hexadecimal digits that no other start of an agent has.
pub(crate) fn boot_id() -> String {
    let mut random = [0; 16];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    format!("{:032x}", u128::from_ne_bytes(random))
}

/// Refuse what is not a host name: it goes into `/etc/hosts`.
pub(crate) fn check_hostname(name: &str) -> Result<(), ErrorMessage> {
    let fits = !name.is_empty() && name.len() <= 64;
    if fits
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    {
        return Ok(());
    }
    Err(bad_request(
        "Invalid request: hostname is not a host name of at most 64 characters",
    ))
}

/// Set hostname and `/etc/hosts`. The file may be a mount: it is written in place; a read-only one is the host's.
pub(crate) fn set_hostname(name: &str) -> Result<(), ErrorMessage> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| system_failure("The hostname cannot be set", error))?;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n");
    match write_over("/etc/hosts", hosts.as_bytes()) {
        // Nor is a pipe what names are looked up in.
        Ok(()) | Err(Errno::ROFS | Errno::NOENT | Errno::NXIO | Errno::AGAIN) => Ok(()),
        Err(error) => Err(system_failure("/etc/hosts cannot be written", error)),
    }
}

/// Have a file be `data`, in place. One that is made empty first is given its blocks anew, and written to the disk when it is closed.
pub(crate) fn write_over(path: &str, data: &[u8]) -> Result<(), Errno> {
    // What is a pipe without a reader is an error instead of a wait.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    let mut written = 0;
    while let Some(left) = data.get(written..).filter(|left| !left.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::write(&file, left))? {
            0 => return Err(Errno::IO),
            count => written += count,
        }
    }
    let length = data.len() as u64;
    if u64::try_from(rustix::fs::fstat(&file)?.st_size).is_ok_and(|size| size > length) {
        rustix::fs::ftruncate(&file, length)?;
    }
    Ok(())
}

/// Set the clock.
pub(crate) fn set_clock(time_ns: i64) -> Result<(), Errno> {
    let tv_sec = time_ns.div_euclid(1_000_000_000);
    let tv_nsec = time_ns.rem_euclid(1_000_000_000);
    rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })
}

/// Mix `data` into the kernel's random numbers.
pub(crate) fn add_entropy(data: &[u8]) {
    if data.is_empty() {
        return;
    }
    if let Ok(random) = rustix::fs::open(c"/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        sys_unsafe::add_entropy(random.as_fd(), data);
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode};
    use rustix::io::Errno;

    use super::write_over;

    #[test]
    fn a_file_becomes_what_it_is_to_be() {
        let directory = std::env::temp_dir().join(format!("hutch-write-over-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("file");
        let name = path.to_str().unwrap();
        for text in ["new", "longer than that", "short", ""] {
            write_over(name, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(write_over(&format!("{name}/below"), b""), Err(Errno::NOTDIR));
        assert_eq!(write_over(directory.to_str().unwrap(), b""), Err(Errno::ISDIR));
        let pipe = directory.join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(write_over(pipe.to_str().unwrap(), b"x"), Err(Errno::NXIO));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
