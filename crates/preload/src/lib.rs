//! What QEMU calls in place of functions of the C library, so that machines begin with memory in files that they share, and give back
//! what they do not use. It is loaded into QEMU alone (`LD_PRELOAD`).
//!
//! **`open`.** QEMU before 8.2 opens the file of a machine's memory for writing, even where it maps it privately and so never writes to it.
//! A file of the host's, that other machines go on from too, it must not be able to write to. Of a descriptor that it was given for
//! reading it gets another one for reading, whatever it asks for.
//!
//! **`fallocate`.** A guest reports pages that it has freed, and QEMU gives each range of them back in two steps: it punches a hole
//! into the file that the memory is in, then it drops its own pages (`madvise`). Where the file can't be written to the first step
//! fails, as it must, and QEMU does not come to the second, which alone would be right: the mapping is private, and without
//! pages of its own the machine reads those of the file again. So a hole in a file that can't be written to is none, and no error.
//!
//! There is `unsafe` code, since whoever replaces a function of the C library is called by its rules, and calls the kernel itself.

#![allow(unsafe_code)]

use std::ffi::CStr;

use libc::{c_char, c_int, mode_t, off64_t};

const HOLE: c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const GIVEN: &[u8] = b"/proc/self/fd/";

/// As the C library's: 0, or -1 and `errno`. A hole in a file that can't be written to is not made, and that is 0.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(descriptor: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    hole_or_room(descriptor, mode, offset, length)
}

/// The same, by the name that programs with small offsets use; on this architecture there is no difference.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate(descriptor: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    hole_or_room(descriptor, mode, offset, length)
}

fn hole_or_room(descriptor: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    if mode == HOLE && (is_sealed(descriptor) || is_for_reading(descriptor)) {
        return 0;
    }
    // SAFETY: the call takes numbers alone and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_fallocate, descriptor, mode, offset, length) as c_int }
}

/// As the C library's: a descriptor, or -1 and `errno`. On this architecture an argument after the named ones is passed like one of them.
///
/// # Safety
///
/// `path` is a string that ends with a zero, as it is for whoever calls `open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: by our caller's promise.
    unsafe { opened(path, flags, mode) }
}

/// The same, by the name that a compiler gives it where it checks that a mode is not forgotten.
///
/// # Safety
///
/// As of `open64`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: by our caller's promise.
    unsafe { opened(path, flags, 0) }
}

/// What both do. Neither calls the other: by its name that may be the C library's.
///
/// # Safety
///
/// As of `open64`.
unsafe fn opened(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: by our caller's promise.
    if let Some(given) = unsafe { given_for_reading(path, flags) } {
        // SAFETY: numbers alone.
        return unsafe { libc::fcntl(given, libc::F_DUPFD_CLOEXEC, 0) };
    }
    // SAFETY: the kernel reads the path, and says so where it can't.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

/// The descriptor that a path names, if it is one for reading and more is asked for.
///
/// # Safety
///
/// `path` is a string that ends with a zero.
unsafe fn given_for_reading(path: *const c_char, flags: c_int) -> Option<c_int> {
    if path.is_null() || flags & libc::O_ACCMODE != libc::O_RDWR {
        return None;
    }
    // SAFETY: by our caller's promise.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    let number = std::str::from_utf8(name.strip_prefix(GIVEN)?).ok()?;
    number.parse().ok().filter(|&descriptor| is_for_reading(descriptor))
}

/// Whether nobody can write to a file; not for one that can't be sealed at all.
fn is_sealed(descriptor: c_int) -> bool {
    // SAFETY: numbers alone.
    let seals = unsafe { libc::fcntl(descriptor, libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_WRITE != 0
}

/// Whether a descriptor can be read and not written to.
fn is_for_reading(descriptor: c_int) -> bool {
    // SAFETY: numbers alone.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE == libc::O_RDONLY
}
