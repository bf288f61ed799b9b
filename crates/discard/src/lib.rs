//! What QEMU calls in place of the C library's `fallocate`, so that memory which a guest does not use goes back to the host.
//!
//! A guest reports pages that it has freed, and QEMU gives each range of them back in two steps: it punches a hole into the file
//! that the memory is in, then it drops its own pages (`madvise`). A machine that began with a template, or with saved memory, has a
//! file that it shares with others and that is sealed, so that nobody can change it. There the first step fails, as it must, and QEMU
//! does not come to the second, which alone would be right: the mapping is private, and without pages of its own the machine
//! reads those of the file again. Here a hole in a file that can't be written to is none, and no error.
//!
//! This is loaded into QEMU alone (`LD_PRELOAD`). It has `unsafe` code, since whoever replaces a function of the C library is called
//! by its rules, and calls the kernel itself.

#![allow(unsafe_code)]

use libc::{c_int, off64_t};

const HOLE: c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// As the C library's: 0, or -1 and `errno`. A hole in a sealed file is not made, and that is 0.
///
/// # Safety
///
/// None is needed: it takes numbers, and the kernel judges them.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(descriptor: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    if mode == HOLE && is_sealed(descriptor) {
        return 0;
    }
    // SAFETY: the call takes numbers alone and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_fallocate, descriptor, mode, offset, length) as c_int }
}

/// The same, by the name that programs with small offsets use; on this architecture there is no difference.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate(descriptor: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    fallocate64(descriptor, mode, offset, length)
}

/// Whether nobody can write to a file; not for one that can't be sealed at all.
fn is_sealed(descriptor: c_int) -> bool {
    // SAFETY: as above.
    let seals = unsafe { libc::fcntl(descriptor, libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_WRITE != 0
}
