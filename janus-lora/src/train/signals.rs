//! Ctrl-C, SIGTERM and SIGHUP: the first asks a run to save and leave, the second ends the process at once.
//!
//! SIGHUP comes when a terminal is closed, once from the system and once more from the shell: it is no second signal.
//!
//! Nothing happens until [`listen`] is called, as `janus train` does; a program that uses this crate as a library keeps its
//! own signal handlers.

use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};

use super::TrainError;

/// Number of the signal that came, 0 for none.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// A signal that asks a run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT, what Ctrl-C sends.
    Interrupt,
    /// SIGTERM, what `kill` and batch systems send.
    Terminate,
    /// SIGHUP, what comes when a terminal or a connection is closed.
    Hangup,
}

impl StopSignal {
    /// 128 and the signal's number, as shells have it.
    pub fn exit_code(self) -> u8 {
        match self {
            StopSignal::Hangup => 129,
            StopSignal::Interrupt => 130,
            StopSignal::Terminate => 143,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopSignal::Interrupt => "SIGINT",
            StopSignal::Terminate => "SIGTERM",
            StopSignal::Hangup => "SIGHUP",
        })
    }
}

/// From now on a write beyond the limit on the length of files (`ulimit -f`) is an error like that of a full disk, not the end of
/// the process.
pub fn survive_file_limit() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code of ours, at whatever time.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// From now on the first SIGINT, SIGTERM or SIGHUP is only noted; a SIGINT or SIGTERM after it has its usual effect. A signal
/// that the process was started to ignore (`nohup`) stays ignored. Does nothing on systems without POSIX signals.
pub fn listen() {
    #[cfg(unix)]
    posix::listen();
}

/// The signal that has come.
pub fn received() -> Option<StopSignal> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        #[cfg(unix)]
        libc::SIGTERM => Some(StopSignal::Terminate),
        #[cfg(unix)]
        libc::SIGHUP => Some(StopSignal::Hangup),
        _ => Some(StopSignal::Interrupt),
    }
}

/// For the places where work can be left.
///
/// # Errors
/// [`TrainError::Stopped`] once a signal has come.
pub fn check() -> Result<(), TrainError> {
    match received() {
        Some(signal) => Err(TrainError::Stopped { signal, checkpoint: None }),
        None => Ok(()),
    }
}

#[cfg(unix)]
mod posix {
    use std::sync::atomic::Ordering;

    use super::RECEIVED;

    const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    const TOLD: &[u8] = b"\nstopping after this step and saving; a second signal leaves at once\n";

    pub(super) fn listen() {
        for signal in SIGNALS {
            // SAFETY: `sigaction` reads and fills plain C structs, for which all zeros is a valid value. The handler does
            // nothing but what is safe in one: see there.
            unsafe {
                let mut old: libc::sigaction = std::mem::zeroed();
                let asked = libc::sigaction(signal, std::ptr::null(), &mut old);
                if asked != 0 || old.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
                new.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&mut new.sa_mask);
                libc::sigaction(signal, &new, std::ptr::null_mut());
            }
        }
    }

    extern "C" fn note(signal: libc::c_int) {
        // The first says why the run ends.
        let _ = RECEIVED.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        // SAFETY: `signal` and `write` are async-signal-safe (POSIX.1-2017, 2.4.3); the bytes are static, and the error number
        // of what was interrupted is put back.
        unsafe {
            #[cfg(any(target_os = "linux", target_vendor = "apple"))]
            let error = errno();
            #[cfg(any(target_os = "linux", target_vendor = "apple"))]
            let kept = *error;
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            if signal != libc::SIGHUP {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                libc::signal(libc::SIGTERM, libc::SIG_DFL);
            }
            libc::write(libc::STDERR_FILENO, TOLD.as_ptr().cast(), TOLD.len());
            #[cfg(any(target_os = "linux", target_vendor = "apple"))]
            {
                *error = kept;
            }
        }
    }

    /// Where this thread's error number stands.
    #[cfg(target_os = "linux")]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: no requirements; the place is valid while the thread lives.
        unsafe { libc::__errno_location() }
    }

    /// Where this thread's error number stands.
    #[cfg(target_vendor = "apple")]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: no requirements; the place is valid while the thread lives.
        unsafe { libc::__error() }
    }
}
