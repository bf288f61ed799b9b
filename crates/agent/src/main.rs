//! Hutch's guest agent: PID 1 of a sandbox. It connects to the host's socket and does what the host asks, as
//! `docs/agent-protocol.md` specifies.
//!
//! * `agent`: the main thread's loop; commands, the channel and timers live there and never wait
//! * `channel`, `poller`: the socket and epoll
//! * `command`, `output`, `stdin`: one command and its bytes
//! * `identity`: what a claim made of the guest
//! * `work`, `files`, `archive`, `tar`: file methods, in threads with the rights of the request's user
//! * `system`: hostname, clock, entropy, limits
//! * `conversion`: the files of a disk as a stream, and back
//! * `drives`: disks of a virtual machine that are mounted where the host says
//! * `freezer`: a virtual machine's programs stand still while its memory is saved
//! * `vm`: from a virtual machine's initramfs to the sandbox's root; `bare`: a root that has nothing but the agent
//! * `sys_unsafe`: the only `unsafe` code, with its reasons

mod agent;
mod archive;
mod bare;
mod channel;
mod command;
mod conversion;
mod drives;
mod endings;
mod errors;
mod files;
mod freezer;
mod identity;
mod netlink;
mod output;
mod poller;
mod requests;
mod stdin;
mod sys_unsafe;
mod system;
mod tar;
mod vm;
mod work;

use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use crate::channel::Place;

const HELP: &str = "\
Hutch's guest agent. It connects to the host's Unix socket, again whenever that breaks, and does what the host asks.

Usage: hutch-agent --connect PATH
       hutch-agent --send-disk | --receive-disk
       hutch-agent --send-tree DIRECTORY | --receive-tree DIRECTORY

Options:
  --connect PATH  the host's socket
  --send-disk     in a virtual machine: its disk's files as a stream to standard output
  --receive-disk  in a virtual machine: the same from standard input
  --send-tree DIRECTORY, --receive-tree DIRECTORY
                  the same with a directory; one that is received must not be there
  --version       print the version
  --help          print this help

As process 1 it reaps all orphans and sets hostname, /etc/hosts, clock and entropy as the host says. As an
ordinary process it leaves those alone and, on shutdown, signals only the commands that it started.
With anything else as process 1 it is the init of a virtual machine, which the kernel's command line describes.
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = conversion::run(&arguments) {
        return code;
    }
    match arguments.as_slice() {
        [option] if option == "--version" => println!("hutch-agent {}", env!("CARGO_PKG_VERSION")),
        [option] if option == "--help" => print!("{HELP}"),
        [option, path] if option == "--connect" => {
            sys_unsafe::close_inherited_descriptors();
            return run(Place::Unix(path.clone().into_vec()), None);
        }
        // Words of its command line that a kernel does not know, such as `nomodule`, are init's arguments.
        _ if system::is_init() => {
            // Before it opens its own.
            sys_unsafe::close_inherited_descriptors();
            let (place, machine) = vm::enter();
            if run(place, Some(machine)) == ExitCode::FAILURE {
                vm::end("the agent did not start");
            }
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(place: Place, machine: Option<vm::Machine>) -> ExitCode {
    match agent::Agent::new(place, machine) {
        Ok(agent) => agent.run(),
        Err(error) => {
            eprintln!("hutch-agent: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
