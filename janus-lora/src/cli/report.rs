//! How results and errors are told.

use std::error::Error as _;
use std::process::ExitCode;

use janus_core::{Diagnose, Fault};
use serde::Serialize;

use super::out;
use crate::batch::BatchError;
use crate::error::Error;
use crate::train::TrainError;
use crate::visible::{message, one_line};

/// The input was wrong; nothing was written.
const INPUT: u8 = 2;
/// Anything else.
pub(super) const INTERNAL: u8 = 1;

/// Prints one error chain with its hints and gives the exit code.
pub(super) fn failure(error: &Error) -> ExitCode {
    let stopped = match error {
        Error::Train(TrainError::Stopped { signal, .. }) | Error::Batch(BatchError::Stopped { signal, .. }) => {
            Some(*signal)
        }
        _ => None,
    };
    let mut text = match stopped {
        Some(_) => message(&error.to_string()).into_owned(),
        None => format!("error: {}", message(&error.to_string())),
    };
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n  caused by: {}", message(&cause.to_string())));
        source = cause.source();
    }
    for hint in error.hints() {
        text.push_str(&format!("\nhint: {}", message(&hint)));
    }
    out::error_line(&text);
    if let Some(signal) = stopped {
        return ExitCode::from(signal.exit_code());
    }
    match error.fault() {
        Fault::Input => ExitCode::from(INPUT),
        Fault::Internal => ExitCode::from(INTERNAL),
    }
}

/// A panic is a defect of ours: told as an error, without a backtrace.
pub(super) fn tell_panics_as_errors() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or("no message");
        out::error_line(&format!(
            "error: internal error{place}: {said}\nhint: this is a defect of janus, please report it"
        ));
    }));
}

/// Prints one line with one JSON object.
pub(super) fn json(value: &impl Serialize) {
    out::result!("{}", serde_json::to_string(value).expect("reports are plain data"));
}

/// `1234567` as `1.23 M`, and so on.
pub(super) fn count(value: u64) -> String {
    match value {
        0..10_000 => value.to_string(),
        10_000..1_000_000 => format!("{:.1} k", value as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", value as f64 / 1e6),
        _ => format!("{:.2} G", value as f64 / 1e9),
    }
}

/// What to set where this processor computes faster in f32 than in bf16, and about how much more memory that takes.
pub(super) fn faster_type(setting: &str, more_bytes: Option<u64>) -> Option<String> {
    let cost = more_bytes.map(|more| format!(", and takes about {} more", bytes(more))).unwrap_or_default();
    janus_core::prefers_f32()
        .then(|| format!("{setting} is faster on this processor, which has AVX-512 without its products of bf16{cost}"))
}

/// Bytes in the unit that fits.
pub(super) fn bytes(value: u64) -> String {
    match value {
        0..10_000 => format!("{value} B"),
        10_000..1_000_000 => format!("{:.1} kB", value as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value as f64 / 1e6),
        _ => format!("{:.2} GB", value as f64 / 1e9),
    }
}

/// A table with a line of headings, columns wide enough for their contents; columns of numbers stand to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    // Before widths are counted.
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell).into_owned()).collect()).collect();
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column)).map(String::as_str);
    let width =
        |column: usize| cells(column).chain([headings[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let is_number = |cell: &str| cell.is_empty() || cell.parse::<f64>().is_ok();
    let columns: Vec<(usize, bool)> = (0..headings.len()).map(|i| (width(i), cells(i).all(is_number))).collect();
    let line = |cells: Vec<&str>| {
        let pad = |(cell, (width, numbers)): (&&str, &(usize, bool))| {
            if *numbers { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let padded: Vec<String> = cells.iter().zip(&columns).map(pad).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(headings.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}
