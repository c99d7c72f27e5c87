//! Whether stdout could be written when the process began.
//!
//! Before `main`, the runtime of `std` opens `/dev/null` wherever one of the three standard streams is closed (`>&-`), and
//! passes over EBADF of one that is open for reading alone: afterwards every line seems to be written. `/dev/null` itself
//! says nothing, a user's own and that of `std` look alike. So a function that the loader calls looks before `std` does.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether stdout was closed, or open for reading alone, when the process began.
pub(super) fn stdout_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Called by the loader, in one thread, before `main`: it may use nothing of `std` that needs the runtime.
#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look() {
    // SAFETY: asks for the flags of a descriptor, which need not be open; no memory is touched.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFL) };
    let is_writable = flags != -1 && flags & libc::O_ACCMODE != libc::O_RDONLY;
    CLOSED.store(!is_writable, Ordering::Relaxed);
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[used]
// SAFETY: the section is the one for pointers to functions that are called before `main`, and this is one.
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static BEFORE_MAIN: extern "C" fn() = look;
