//! What the program says: results on stdout, everything else on stderr.
//!
//! Telling is never fatal to doing: a reader that has gone away, a full disk below a log or a terminal that was closed ends
//! no run and loses no step. Only where stdout is what the command was asked for is a failed write an error, and not where
//! the reader has had enough (`| head`). So nothing here is printed by the macros of `std`, which panic.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::closed::stdout_was_closed;
use super::report::INTERNAL;
use crate::visible;

/// Whether remarks and progress are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// What has become of stdout.
static STDOUT: Mutex<Stdout> = Mutex::new(Stdout::Open);

enum Stdout {
    Open,
    /// Its reader has gone: the rest is for nobody.
    Gone,
    /// It takes no more.
    Failed {
        error: io::Error,
        /// Whether what the command was asked for is lost.
        lost_result: bool,
    },
}

/// From now on only results, warnings and errors are printed.
pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether remarks and progress are left out.
pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line on stdout; see [`result!`] and [`done!`].
pub(super) fn line(text: fmt::Arguments<'_>, is_result: bool) {
    let mut state = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *state {
        Stdout::Open => {
            let mut stdout = io::stdout().lock();
            let open = if stdout_was_closed() { Err(closed()) } else { Ok(()) };
            let text = text.to_string();
            // An answer says what it says; of what was done only names are of strangers.
            let shown = if is_result { visible::lines(&text) } else { visible::message(&text) };
            let written = open.and_then(|()| writeln!(stdout, "{shown}")).and_then(|()| stdout.flush());
            *state = match written {
                Ok(()) => Stdout::Open,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Stdout::Gone,
                Err(error) => Stdout::Failed { error, lost_result: is_result },
            };
        }
        Stdout::Gone => {}
        Stdout::Failed { lost_result, .. } => *lost_result |= is_result,
    }
}

/// Prints a line of what the command was asked for, as `println!` does.
macro_rules! result {
    ($($text:tt)*) => { $crate::cli::out::line(format_args!($($text)*), true) };
}

/// Prints a line about what the command has done, as `println!` does: the command has succeeded whether it is read or not.
macro_rules! done {
    ($($text:tt)*) => { $crate::cli::out::line(format_args!($($text)*), false) };
}

pub(super) use {done, result};

/// A line on stderr. Where nobody can read it there is nobody to tell.
pub(super) fn error_line(text: &str) {
    let _ = io::stderr().lock().write_all(format!("{}\n", visible::lines(text)).as_bytes());
}

fn closed() -> io::Error {
    io::Error::other("it is closed")
}

/// The exit code of a command that has done its work: a result that could not be written is a failure.
pub(super) fn outcome() -> ExitCode {
    match &*STDOUT.lock().unwrap_or_else(PoisonError::into_inner) {
        Stdout::Open | Stdout::Gone => ExitCode::SUCCESS,
        Stdout::Failed { error, lost_result: true } => {
            error_line(&format!("error: the result cannot be written to stdout\n  caused by: {error}"));
            ExitCode::from(INTERNAL)
        }
        Stdout::Failed { error, lost_result: false } => {
            error_line(&format!("warning: stdout cannot be written: {error}; the work itself is done"));
            ExitCode::SUCCESS
        }
    }
}

/// Prints help, a version or what is wrong with the arguments; gives the exit code.
pub(super) fn usage(message: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(INTERNAL));
    if message.use_stderr() {
        error_line(&wrong_words(message));
        return code;
    }
    let printed = if stdout_was_closed() { Err(closed()) } else { message.print().and_then(|()| io::stdout().flush()) };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            error_line(&format!("error: the result cannot be written to stdout\n  caused by: {error}"));
            ExitCode::from(INTERNAL)
        }
        _ => code,
    }
}

/// What is wrong with the words of a command line, with its last line, which leads on, as a hint like all others.
fn wrong_words(message: &clap::Error) -> String {
    let text = message.render().to_string();
    let text = text.trim_end();
    let text = text.rsplit_once("\n\nFor more information, try '").map_or(text, |(text, _)| text);
    format!("{}\nhint: `--help` behind a command shows what it takes, with examples", visible::message(text))
}
