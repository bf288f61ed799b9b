//! Which method does what.

use hutch_wire::ErrorMessage;

use super::Agent;
use super::shutdown::SyncDisks;
use crate::archive::WriteArchive;
use crate::drives::{self, MountDrives};
use crate::endings;
use crate::errors::{bad_request, system_failure};
use crate::files::{MakeDirectory, ReadFile, Stat, WriteFile};
use crate::freezer::Freezer;
use crate::identity::Identity;
use crate::requests::{
    ArchiveWrite, Begun, Claim, ClockSet, DrivesMount, EntropyAdd, FileMkdir, FilePath, FileWrite, MachineBegin, Name,
    UserName, nothing, parse,
};
use crate::system;
use crate::vm::{Beginning, Machine};

const MAX_ENTROPY_BYTES: usize = 4096;

impl Agent {
    pub(super) fn open(&mut self, stream: u32, method: &str, params: &[u8]) -> Result<(), ErrorMessage> {
        match method {
            "ping" => self.finish(stream, &nothing()),
            "claim" => self.claim(stream, &parse(params)?)?,
            "command.start" => self.start(stream, &parse(params)?)?,
            "command.attach" => self.attach(stream, &parse(params)?)?,
            "command.signal" => self.signal(stream, &parse(params)?)?,
            "command.stdin" => self.stdin(stream, &parse(params)?)?,
            "command.forget" => self.forget(stream, &parse(params)?)?,
            "command.list" => self.list(stream),
            "file.read" => {
                let request: FilePath = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(
                    stream,
                    request.user,
                    Box::new(ReadFile {
                        path,
                        file: None,
                        position: 0,
                    }),
                );
            }
            "file.write" => {
                let request: FileWrite = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                let operation = WriteFile {
                    path,
                    mode: request.mode,
                    target: None,
                    size: 0,
                };
                self.work(stream, request.user, Box::new(operation));
            }
            "file.mkdir" => {
                let request: FileMkdir = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(
                    stream,
                    request.user,
                    Box::new(MakeDirectory {
                        path,
                        recursive: request.recursive,
                    }),
                );
            }
            "file.stat" => {
                let request: FilePath = parse(params)?;
                let path = self.path(request.cwd.as_ref(), &request.path)?;
                self.work(stream, request.user, Box::new(Stat { path }));
            }
            "archive.write" => {
                let request: ArchiveWrite = parse(params)?;
                let cwd = self.identity.resolve(Some(&request.cwd.0), b"");
                let operation = WriteArchive::new(cwd, request.gzip, request.max_bytes, request.max_files);
                self.work(stream, request.user, Box::new(operation));
            }
            "clock.set" => {
                let request: ClockSet = parse(params)?;
                if system::is_init() {
                    system::set_clock(request.time_ns)
                        .map_err(|error| system_failure("The clock cannot be set", error))?;
                }
                self.finish(stream, &nothing());
            }
            "entropy.add" => {
                let request: EntropyAdd = parse(params)?;
                if request.data.0.len() > MAX_ENTROPY_BYTES {
                    return Err(bad_request("Invalid request: more than 4096 bytes of entropy"));
                }
                system::add_entropy(&request.data.0);
                self.finish(stream, &nothing());
            }
            "sync" => self.work(stream, UserName::Root, Box::new(SyncDisks)),
            "machine.begin" => self.begin(stream, &parse(params)?)?,
            "machine.freeze" => self.prepare_to_freeze(stream)?,
            "drives.mount" => self.mount_drives(stream, parse(params)?)?,
            "shutdown" => self.shut_down(stream, &parse(params)?),
            _ => return Err(bad_request(format!("Invalid request: unknown method {method:?}"))),
        }
        Ok(())
    }

    fn begin(&mut self, stream: u32, request: &MachineBegin) -> Result<(), ErrorMessage> {
        let machine = self
            .machine
            .as_mut()
            .ok_or_else(|| bad_request("Invalid request: this is no virtual machine"))?;
        if request.entropy.0.len() > MAX_ENTROPY_BYTES {
            return Err(bad_request("Invalid request: more than 4096 bytes of entropy"));
        }
        let text = request.boot_id.as_bytes();
        if text.len() != 36 || !text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-') {
            return Err(bad_request("Invalid request: boot_id is no UUID"));
        }
        let network = request.network.as_ref();
        let beginning = Beginning {
            network: network.map(|network| (network.address.as_str(), network.gateway.as_str())),
            entropy: &request.entropy.0,
            time_ns: request.time_ns,
            boot_id: &request.boot_id,
            is_new: self.identity.token.is_empty(),
        };
        machine.begin(&beginning).map_err(|failure| {
            let message = format!("The machine can't begin: {failure}");
            ErrorMessage::new(500, "agent_error", &message)
        })?;
        self.boot = system::boot_id();
        let ended = !request.endings.is_empty()
            && endings::write(&request.endings).map_err(|error| system_failure("A file can't be ended", error))?;
        self.finish(stream, &hutch_wire::encode(&Begun { ended }));
        Ok(())
    }

    fn prepare_to_freeze(&mut self, stream: u32) -> Result<(), ErrorMessage> {
        if self.machine.is_none() {
            return Err(bad_request("Invalid request: this is no virtual machine"));
        }
        let prepared = match &self.freezer {
            Some(freezer) => freezer.gather(),
            None => Freezer::new().and_then(|freezer| self.freezer.insert(freezer).gather()),
        };
        prepared.map_err(|error| {
            ErrorMessage::new(
                500,
                "agent_error",
                format!("Programs can't be made to stand still: {error}"),
            )
        })?;
        self.freezes = true;
        self.finish(stream, &nothing());
        Ok(())
    }

    /// Have all programs stand still if the channel ends because memory is to be saved.
    pub(super) fn freeze(&mut self) {
        if !std::mem::take(&mut self.freezes) {
            return;
        }
        let Some(freezer) = &mut self.freezer else { return };
        self.channel.hurries = true;
        if let Err(error) = freezer.freeze() {
            system::complain(&format!("programs can't be made to stand still: {error}"));
        }
    }

    /// Have them go on after a request, but for one that makes this machine another one than that whose memory it has.
    pub(super) fn thaw(&mut self, method: &str) {
        if !matches!(method, "machine.begin" | "archive.write" | "ping" | "machine.freeze")
            && let Some(freezer) = &mut self.freezer
        {
            freezer.thaw();
            self.channel.hurries = false;
        }
    }

    fn mount_drives(&mut self, stream: u32, request: DrivesMount) -> Result<(), ErrorMessage> {
        if request.mounts.len() > drives::MOST {
            return Err(bad_request("Invalid request: too many drives"));
        }
        let found = self.machine.as_ref().map(Machine::drives).transpose();
        let drives = found
            .map_err(|error| ErrorMessage::new(500, "agent_error", format!("Drives have no place: {error}")))?
            .flatten()
            .ok_or_else(|| bad_request("Invalid request: this is no virtual machine that has begun"))?;
        let operation = MountDrives {
            drives,
            mounts: request.mounts,
        };
        self.work(stream, UserName::Root, Box::new(operation));
        Ok(())
    }

    fn claim(&mut self, stream: u32, claim: &Claim) -> Result<(), ErrorMessage> {
        system::check_hostname(&claim.hostname)?;
        let identity = Identity::claimed(claim)?;
        if system::is_init() {
            system::set_hostname(&claim.hostname)?;
            system::add_entropy(&claim.entropy.0);
            if claim.time_ns != 0 {
                // A guest that shares the host's clock refuses this, and needs it the least.
                let _ = system::set_clock(claim.time_ns);
            }
        }
        self.identity = identity;
        self.credentials.clear();
        self.finish(stream, &nothing());
        Ok(())
    }

    fn path(&self, cwd: Option<&Name>, path: &Name) -> Result<Vec<u8>, ErrorMessage> {
        if path.0.is_empty() {
            return Err(bad_request("Invalid request: the path is empty"));
        }
        Ok(self.identity.resolve(cwd.map(|cwd| cwd.0.as_slice()), &path.0))
    }
}
