//! Process 1 of a virtual machine: from the initramfs to the sandbox's root, before the agent itself starts.
//!
//! The kernel's command line says what the host attached: `hutch.vm=1`, `hutch.layers=N` (images, found by the serial
//! numbers `layer0`, the lowest, to `layerN-1`) and the disk with the serial number `disk`, formatted by the host before
//! any guest wrote to it. Further disks are drives (`drive0`, `drive1` …; `drives`), mounted when the host says where. `hutch.vsock=PORT` moves the channel from the port named `hutch` to that port of the host.
//! `hutch.address=A/P` and `hutch.gateway=G` are the first network card's, and G is asked for names too.
//! `hutch.disks=order` is for monitors whose disks have no serial numbers of the host's choosing: images and disk are then
//! the first, second … in the order in which they were attached. With `hutch.layers=0` there is no overlay: the root that the
//! kernel started this program from, be it an initramfs or an image, is the sandbox's.
//! With `hutch.wait=1` the agent starts in the initramfs, before anything of a sandbox is mounted, and the host says `machine.begin`:
//! so the memory of a machine that waits can be the beginning of many (*template*). Drivers of disks are loaded only then,
//! since a disk has its size from the moment at which its driver found it.
//!
//! Whatever is missing ends the machine with a line on its console: nobody could ask a guest without a channel.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::net::{AddressFamily, SocketType};
use rustix::system::RebootCommand;

use crate::bare;
use crate::channel::Place;
use crate::drives::{self, Drives};
use crate::netlink::Kernel;
use crate::system;

/// A device appears when its driver has looked at it; under emulation that takes a moment.
const DEVICE_WAIT: Duration = Duration::from_secs(5);
const DEVICE_PAUSE: Duration = Duration::from_millis(5);
/// An overlay of the kernel takes 500 lower directories; a page of mount options takes these.
const MAX_LAYERS: usize = 100;
const PORT: &str = "hutch";
/// The host's address on every vsock.
pub(crate) const VSOCK_HOST: u32 = 2;

/// The network card as the kernel names it, before anybody in the guest may rename it.
const CARD: &str = "eth0";
const CARD_NUMBER: &str = "/sys/class/net/eth0/ifindex";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
/// Of every network of Linux.
const LOOPBACK: u32 = 1;
const RESOLVER: &str = "/etc/resolv.conf";
/// In memory, so that no snapshot of the files has another machine's.
const OWN_DIRECTORY: &str = "/run/hutch";
const OWN_RESOLVER: &str = "/run/hutch/resolv.conf";
/// The kernel's own is part of its memory, and would be the same in all that go on from it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT_ID: &str = "/run/hutch/boot_id";
/// How the names of modules begin that find disks.
const DISK_DRIVERS: &str = "virtio_blk";

/// What the kernel's command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    layers: usize,
    disks: Disks,
    waits: bool,
    vsock: Option<u32>,
    network: Option<Network>,
}

/// The network card's address, the length of its prefix, and where all packets go.
#[derive(Debug, PartialEq, Eq)]
struct Network {
    address: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
}

/// How disks are told from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disks {
    /// By their serial numbers.
    Serial,
    /// By the order in which they were attached.
    Order,
}

/// Why there is no sandbox; for the console, or for the host.
type Failure = String;

/// What the host tells a machine as it begins, or goes on from memory that another one has too.
#[derive(Debug)]
pub(crate) struct Beginning<'a> {
    /// `A/P` and `G`, as on the command line.
    pub(crate) network: Option<(&'a str, &'a str)>,
    pub(crate) entropy: &'a [u8],
    pub(crate) time_ns: i64,
    pub(crate) boot_id: &'a str,
    /// Nothing of a sandbox has run in it.
    pub(crate) is_new: bool,
}

/// A virtual machine, of which the agent is process 1.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The images below the sandbox's root, none where it has a root of its own, and how their disks are found.
    layers: usize,
    disks: Disks,
    /// Whether the root is still to be mounted.
    waits: bool,
    /// The network card, once it is switched on.
    card: Option<Card>,
    /// Where file systems of drives are mounted, out of sight; there where a root is put together.
    hidden: Option<OwnedFd>,
}

/// A network card that is switched on: its number, whom to ask about it, and what it was set up to be.
#[derive(Debug)]
struct Card {
    number: u32,
    kernel: Kernel,
    network: Option<Network>,
}

impl Machine {
    /// Become a machine of its own: nothing that another one has too is used after that. Mounts the root where that waits.
    pub(crate) fn begin(&mut self, beginning: &Beginning<'_>) -> Result<(), Failure> {
        let network = beginning
            .network
            .map(|(address, gateway)| {
                parse_network(address, gateway).ok_or_else(|| format!("{address} by way of {gateway} is no network"))
            })
            .transpose()?;
        // First: what is mounted draws numbers.
        system::add_entropy(beginning.entropy);
        let _ = system::set_clock(beginning.time_ns);
        if self.waits {
            load_modules(|_| true)?;
            mount_root(self.layers, self.disks)?;
            switch_root()?;
            self.waits = false;
            finish_root();
            if Path::new(CARD_NUMBER).exists() {
                // Others that go on from here only add what is their own.
                self.card = Some(switch_on()?);
                let _ = set_resolver(Ipv4Addr::UNSPECIFIED);
            }
        }
        set_boot_id(beginning.boot_id).map_err(|error| format!("{BOOT_ID} can't be set: {error}"))?;
        if let Some(network) = network {
            let mut card = self.own_card(beginning.is_new)?;
            // One that booted with its address has it.
            if !beginning.is_new || card.network.as_ref() != Some(&network) {
                set_up(&mut card, network, beginning.is_new)?;
            }
            self.card = Some(card);
        }
        Ok(())
    }

    /// The network card, switched on. A guest's root may have made another one of it, or given it another name, and may speak with
    /// whoever asks for long.
    fn own_card(&mut self, is_new: bool) -> Result<Card, Failure> {
        match self.card.take() {
            Some(card) if is_new => Ok(card),
            Some(card) if !Path::new(CARD_NUMBER).exists() => switch_on_number(card.number),
            _ => switch_on(),
        }
    }

    /// Where drives are mounted; `None` while there is nothing to mount them in.
    pub(crate) fn drives(&self) -> io::Result<Option<Drives>> {
        let Some(hidden) = self.hidden.as_ref().filter(|_| !self.waits) else {
            return Ok(None);
        };
        Ok(Some(Drives {
            hidden: hidden.try_clone()?,
            disks: self.disks,
            // Behind the images and the sandbox's own disk.
            first: self.layers + 1,
        }))
    }
}

/// Make the sandbox's root this process's, unless that waits, and say where its channel is. Ends the machine when it can't.
pub(crate) fn enter() -> (Place, Machine) {
    match prepare() {
        Ok(entered) => entered,
        Err(failure) => end(&failure),
    }
}

/// Say why, and end the machine. The host starts it so that a restart is its end.
pub(crate) fn end(failure: &str) -> ! {
    let _ = writeln!(io::stderr(), "hutch-agent: this machine can't start: {failure}");
    // The console of an emulated serial line is not buffered in the guest, but its driver is asynchronous.
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
    let _ = rustix::system::reboot(RebootCommand::Restart);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn prepare() -> Result<(Place, Machine), Failure> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    bare::ensure_places(&["proc", "sys", "dev"])?;
    attach("proc", "/proc", "proc", plain, None)?;
    let line = fs::read_to_string("/proc/cmdline").map_err(|error| format!("/proc/cmdline: {error}"))?;
    let wanted = parse(&line)?;
    let described = attach("sysfs", "/sys", "sysfs", plain, None);
    if wanted.layers > 0 {
        described?;
    }
    // The kernel may have mounted it already; a small one may have none.
    if attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None).is_err() && !Path::new("/dev/null").exists() {
        attach("tmpfs", "/dev", "tmpfs", MountFlags::NOSUID, None)
            .or_else(|_| attach("ramfs", "/dev", "ramfs", MountFlags::NOSUID, None))?;
    }
    bare::ensure_devices()?;
    let waits = wanted.waits && wanted.layers > 0;
    let hidden = if wanted.layers > 0 { Some(hidden()?) } else { None };
    load_modules(|name| !(waits && name.starts_with(DISK_DRIVERS)))?;
    if wanted.layers > 0 && !waits {
        mount_root(wanted.layers, wanted.disks)?;
        switch_root()?;
    }
    let mut card = None;
    if !waits {
        finish_root();
        if let Some(network) = wanted.network {
            set_up(card.insert(switch_on()?), network, true)?;
        }
    }
    let place = match wanted.vsock {
        Some(port) => {
            check_vsock()?;
            Place::Vsock(port)
        }
        None => Place::Port(find_port()?),
    };
    let machine = Machine {
        layers: wanted.layers,
        disks: wanted.disks,
        waits,
        card,
        hidden,
    };
    Ok((place, machine))
}

/// A directory that stays in the initramfs when the sandbox's root takes its place.
fn hidden() -> Result<OwnedFd, Failure> {
    directory(drives::HIDDEN)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(drives::HIDDEN, flags, Mode::empty()).map_err(|error| format!("{}: {error}", drives::HIDDEN))
}

/// Refuse a kernel without vsock, which could only try to connect for ever.
fn check_vsock() -> Result<(), Failure> {
    match rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "this kernel has no vsock (CONFIG_VSOCKETS, CONFIG_VIRTIO_VSOCKETS): {error}"
        )),
    }
}

fn parse(line: &str) -> Result<Wanted, Failure> {
    let value = |name: &str| {
        line.split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    };
    if value("hutch.vm") != Some("1") {
        return Err("the kernel's command line has no hutch.vm=1".to_owned());
    }
    let layers = value("hutch.layers").ok_or("the kernel's command line has no hutch.layers")?;
    let layers = layers
        .parse()
        .ok()
        .filter(|count| *count <= MAX_LAYERS)
        .ok_or_else(|| format!("hutch.layers={layers} is not a number from 0 to {MAX_LAYERS}"))?;
    let disks = match value("hutch.disks") {
        None | Some("serial") => Disks::Serial,
        Some("order") => Disks::Order,
        Some(other) => return Err(format!("hutch.disks={other} is neither serial nor order")),
    };
    let waits = match value("hutch.wait") {
        None | Some("0") => false,
        Some("1") => true,
        Some(other) => return Err(format!("hutch.wait={other} is neither 0 nor 1")),
    };
    let vsock = value("hutch.vsock")
        .map(|port| port.parse().map_err(|_| format!("hutch.vsock={port} is not a port")))
        .transpose()?;
    let network = value("hutch.address")
        .map(|address| {
            let gateway = value("hutch.gateway").unwrap_or_default();
            parse_network(address, gateway)
                .ok_or_else(|| format!("hutch.address={address} hutch.gateway={gateway} is no network"))
        })
        .transpose()?;
    Ok(Wanted {
        layers,
        disks,
        waits,
        vsock,
        network,
    })
}

fn parse_network(address: &str, gateway: &str) -> Option<Network> {
    let (address, prefix) = address.split_once('/')?;
    Some(Network {
        address: address.parse().ok()?,
        prefix: prefix.parse().ok().filter(|length| (1..=32).contains(length))?,
        gateway: gateway.parse().ok()?,
    })
}

fn attach(source: &str, target: &str, kind: &str, flags: MountFlags, options: Option<&CStr>) -> Result<(), Failure> {
    mount(source, target, kind, flags, options)
        .map_err(|error| format!("{source} can't be mounted as {kind} on {target}: {error}"))
}

/// Load what the initramfs has and is `wanted`, in the order of its list: each after what it needs. Without a list the kernel has
/// it all.
fn load_modules(wanted: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let list = match fs::read_to_string("/modules/order") {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("/modules/order: {error}")),
    };
    let mut left = false;
    for name in list.lines() {
        if !wanted(name) {
            left = true;
            continue;
        }
        let path = format!("/modules/{name}");
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("{path}: {error}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("the module {name} can't be loaded: {error}")),
        }
    }
    if !left {
        // Nobody needs them again, and the initramfs is memory.
        let _ = fs::remove_dir_all("/modules");
    }
    Ok(())
}

/// What `find` finds, as soon as it does.
fn awaited(what: &str, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf, Failure> {
    let begin = Instant::now();
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if begin.elapsed() >= DEVICE_WAIT {
            return Err(format!("there is no {what}"));
        }
        std::thread::sleep(DEVICE_PAUSE);
    }
}

/// The device of `class` whose `attribute` is `value`.
fn device(class: &str, attribute: &str, value: &str) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join(attribute)).ok()?;
        let node = Path::new("/dev").join(entry.file_name());
        (found.trim_end() == value && node.exists()).then_some(node)
    })
}

/// The disk called `serial`, which is the one at `place`, from 0, in the order of attachment.
pub(crate) fn find_disk(disks: Disks, serial: &str, place: usize) -> Result<PathBuf, Failure> {
    match disks {
        Disks::Serial => awaited(&format!("disk with the serial number {serial}"), || {
            device("/sys/block", "serial", serial)
        }),
        Disks::Order => {
            let node = PathBuf::from(format!("/dev/{}", disk_name(place)));
            awaited(&format!("{}, which were to be {serial}", node.display()), || {
                node.exists().then(|| node.clone())
            })
        }
    }
}

/// What the kernel calls the virtio disk at `place`, from 0: `vda` to `vdz`, then `vdaa`.
fn disk_name(place: usize) -> String {
    let mut letters = Vec::new();
    let mut left = place + 1;
    while left > 0 {
        letters.push(b'a' + ((left - 1) % 26) as u8);
        left = (left - 1) / 26;
    }
    letters.reverse();
    format!("vd{}", String::from_utf8_lossy(&letters))
}

fn find_port() -> Result<PathBuf, Failure> {
    awaited(&format!("port named {PORT}"), || {
        device("/sys/class/virtio-ports", "name", PORT)
    })
}

fn directory(path: &str) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| format!("{path} can't be made: {error}"))
}

/// Mount the disk alone, for those who use its files and run nothing of them.
pub(crate) fn mount_disk(target: &str, flags: MountFlags) -> Result<(), Failure> {
    directory(target)?;
    let disk = find_disk(Disks::Serial, "disk", 0)?;
    let flags = flags | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    attach(&disk.to_string_lossy(), target, "ext4", flags, None)
}

fn mount_root(layers: usize, disks: Disks) -> Result<(), Failure> {
    let mut lowers = Vec::new();
    for number in 0..layers {
        let target = format!("/layers/{number}");
        directory(&target)?;
        let image = find_disk(disks, &format!("layer{number}"), number)?;
        attach(
            &image.to_string_lossy(),
            &target,
            "erofs",
            MountFlags::RDONLY | MountFlags::NODEV,
            None,
        )?;
        lowers.push(target);
    }
    lowers.reverse();
    directory("/disk")?;
    let disk = find_disk(disks, "disk", layers)?;
    // What is deleted goes back to the host, in whose file everything is zero that was never written.
    let options = c"discard,noinit_itable";
    attach(
        &disk.to_string_lossy(),
        "/disk",
        "ext4",
        MountFlags::NODEV,
        Some(options),
    )?;
    directory("/disk/u")?;
    directory("/disk/w")?;
    directory("/root")?;
    let options = format!(
        "lowerdir={},upperdir=/disk/u,workdir=/disk/w,index=off,metacopy=off,redirect_dir=off",
        lowers.join(":")
    );
    let options = CString::new(options).map_err(|error| error.to_string())?;
    attach("overlay", "/root", "overlay", MountFlags::NODEV, Some(&options))
}

fn switch_root() -> Result<(), Failure> {
    for name in ["proc", "sys", "dev"] {
        let target = format!("/root/{name}");
        directory(&target)?;
        mount_move(format!("/{name}"), &target)
            .map_err(|error| format!("{name} can't be moved to {target}: {error}"))?;
    }
    let moved = rustix::process::chdir("/root")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    moved.map_err(|error| format!("the root can't be switched: {error}"))
}

/// What programs expect around them. An image that has no place for some of it goes without.
fn finish_root() {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let mounts = [
        (
            "devpts",
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"mode=620,gid=5,ptmxmode=666",
        ),
        ("tmpfs", "/dev/shm", "tmpfs", plain, c"mode=1777,size=64m"),
        ("tmpfs", "/run", "tmpfs", plain, c"mode=755"),
    ];
    for (source, target, kind, flags, options) in mounts {
        let _ = fs::create_dir_all(target);
        let _ = mount(source, target, kind, flags, options);
    }
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"));
    }
    // A kernel without one goes without.
    let _ = Kernel::reach().and_then(|kernel| kernel.switch(LOOPBACK, true));
}

/// Switch the card on. It has no address of IPv6: nobody would hear from it.
fn switch_on() -> Result<Card, Failure> {
    let number = awaited("network card", || {
        Path::new(CARD_NUMBER).exists().then(|| PathBuf::from(CARD_NUMBER))
    })?;
    let number = fs::read_to_string(number)
        .ok()
        .and_then(|text| text.trim_end().parse().ok())
        .ok_or_else(|| format!("{CARD} has no number"))?;
    let _ = fs::write(NO_IPV6, "1");
    switch_on_number(number)
}

fn switch_on_number(number: u32) -> Result<Card, Failure> {
    let kernel = Kernel::reach().and_then(|kernel| kernel.switch(number, true).map(|()| kernel));
    let kernel = kernel.map_err(|error| format!("{CARD} can't be switched on: {error}"))?;
    Ok(Card {
        number,
        kernel,
        network: None,
    })
}

/// Have the card, which is on, be `network`'s. What it was to somebody else, routes over it too, ends with being switched off.
fn set_up(card: &mut Card, network: Network, is_new: bool) -> Result<(), Failure> {
    let Card { number, kernel, .. } = card;
    let set = || {
        if !is_new || card.network.is_some() {
            kernel.switch(*number, false)?;
            kernel.remove_addresses(*number)?;
            kernel.switch(*number, true)?;
        }
        kernel.add_address(*number, network.address, network.prefix)?;
        kernel.add_default_route(*number, network.gateway)
    };
    set().map_err(|error: io::Error| format!("{CARD} can't have the address {}: {error}", network.address))?;
    // An image that has no /etc resolves no names.
    let _ = set_resolver(network.gateway);
    card.network = Some(network);
    Ok(())
}

/// Have names asked for at `server`, by a mount over whatever file a former session left there.
fn set_resolver(server: Ipv4Addr) -> io::Result<()> {
    let lies_over = is_there(OWN_RESOLVER)?;
    let text = format!("nameserver {server}\noptions timeout:2 attempts:2\n");
    system::write_over(OWN_RESOLVER, text.as_bytes())?;
    if lies_over {
        return Ok(());
    }
    if !fs::symlink_metadata(RESOLVER).is_ok_and(|found| found.is_file()) {
        let _ = fs::remove_file(RESOLVER);
        fs::write(RESOLVER, "")?;
    }
    rustix::mount::mount_bind(OWN_RESOLVER, RESOLVER)?;
    Ok(())
}

/// Whether there is this file of our own, which then lies over another one already; at least there is a directory for it.
fn is_there(path: &str) -> io::Result<bool> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(true);
    }
    fs::create_dir_all(OWN_DIRECTORY)?;
    Ok(false)
}

/// Have programs see this as the id of the kernel's boot.
fn set_boot_id(boot_id: &str) -> io::Result<()> {
    let lies_over = is_there(OWN_BOOT_ID)?;
    system::write_over(OWN_BOOT_ID, format!("{boot_id}\n").as_bytes())?;
    if !lies_over {
        rustix::mount::mount_bind(OWN_BOOT_ID, BOOT_ID)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount_remount(BOOT_ID, flags, c"")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Disks, Network, Wanted, disk_name, parse};

    #[test]
    fn a_command_line_says_what_is_attached() {
        let wanted = |layers, disks, vsock| {
            Ok(Wanted {
                layers,
                disks,
                waits: false,
                vsock,
                network: None,
            })
        };
        let found = parse("console=ttyS0 hutch.vm=1 hutch.layers=2 quiet\n");
        assert_eq!(found, wanted(2, Disks::Serial, None));
        let found = parse("hutch.layers=1 hutch.vsock=5000 hutch.vm=1");
        assert_eq!(found, wanted(1, Disks::Serial, Some(5000)));
        let found = parse("hutch.vm=1 hutch.layers=0 hutch.disks=order hutch.vsock=1");
        assert_eq!(found, wanted(0, Disks::Order, Some(1)));
        let found = parse("hutch.vm=1 hutch.layers=1 hutch.wait=1");
        assert_eq!(found.map(|found| found.waits), Ok(true));
        let found = parse("hutch.vm=1 hutch.layers=1 hutch.address=100.64.0.6/30 hutch.gateway=100.64.0.5");
        let network = Network {
            address: [100, 64, 0, 6].into(),
            prefix: 30,
            gateway: [100, 64, 0, 5].into(),
        };
        assert_eq!(found.map(|found| found.network), Ok(Some(network)));
    }

    #[test]
    fn disks_are_called_as_the_kernel_does() {
        let names: Vec<_> = [0, 1, 25, 26, 27, 51, 52].into_iter().map(disk_name).collect();
        assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdab", "vdaz", "vdba"]);
    }

    #[test]
    fn a_broken_command_line_is_refused_with_its_word() {
        for (line, said) in [
            ("", "no hutch.vm=1"),
            ("hutch.vm=0 hutch.layers=1", "no hutch.vm=1"),
            ("hutch.vm=1", "no hutch.layers"),
            (
                "hutch.vm=1 hutch.layers=1 hutch.disks=uuid",
                "hutch.disks=uuid is neither",
            ),
            ("hutch.vm=1 hutch.layers=101", "hutch.layers=101 is not"),
            ("hutch.vm=1 hutch.layers=-1", "hutch.layers=-1 is not"),
            ("hutch.vm=1 hutch.layers=1 hutch.vsock=x", "hutch.vsock=x is not"),
            ("hutch.vm=1 hutch.layers=1 hutch.wait=yes", "hutch.wait=yes is neither"),
            ("hutch.vm=1 hutch.layers=1 hutch.address=1.2.3.4/30", "is no network"),
            (
                "hutch.vm=1 hutch.layers=1 hutch.address=1.2.3.4/0 hutch.gateway=1.2.3.5",
                "is no network",
            ),
            (
                "hutch.vm=1 hutch.layers=1 hutch.address=1.2.3/30 hutch.gateway=1.2.3.5",
                "is no network",
            ),
        ] {
            assert!(parse(line).unwrap_err().contains(said), "{line}");
        }
    }
}
