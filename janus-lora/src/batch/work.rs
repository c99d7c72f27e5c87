//! Rows go through the engine in their order.

use std::cell::RefCell;
use std::collections::VecDeque;

use janus_core::{Diagnose, Fault, ModelError};

use super::journal::{Journal, Line};
use super::{BatchError, Job};
use crate::data::{DataError, Row, RowFault, Table, WholeBatches, of_pictures};
use crate::error::{Error, Result};
use crate::infer::{Engine, Limits, Request};
use crate::status::Status;
use crate::train::signals;

/// A row, or why it cannot be read, and what its pictures are known by where they may lie in files of their own.
type Read = (Result<Row, String>, Option<String>);

/// Answers the rows that have no line yet.
pub(super) fn answer(job: &Job<'_>, table: &Table, journal: &mut Journal, status: &dyn Status) -> Result<()> {
    let mut engine = Engine::new(job.model, job.base, job.heads, Limits::of(job.model)?);
    let done = journal.rows();
    let mut unreadable = None;
    let mut rows = Rows { batches: table.whole_batches(), rows: Vec::new().into_iter(), failed: &mut unreadable };
    check_answered(&mut rows, journal)?;
    let bar = status.items("answering", table.claimed_rows());
    bar.advance(done as u64);
    let pictures = RefCell::new(VecDeque::new());
    let request = |(place, (row, digest)): (usize, Read)| -> Result<Request> {
        pictures.borrow_mut().push_back(digest);
        let row = row.map_err(|reason| BatchError::Row { reason })?;
        job.asked.request(job.base, &row, done + place)
    };
    engine.answer_each(rows.enumerate().map(request), &mut |place, answer| {
        if let Some(signal) = signals::received() {
            return Err(BatchError::Stopped { signal, rows: journal.rows() }.into());
        }
        let (row, pictures) = (done + place, pictures.borrow_mut().pop_front().flatten());
        let line = match answer.and_then(|answer| job.asked.values(answer)) {
            Ok(values) => Line { row, pictures, values: Some(values), error: None },
            Err(error) => Line { row, pictures, values: None, error: Some(of_row(error)?) },
        };
        journal.push(&line)?;
        bar.advance(1);
        Ok(())
    })?;
    bar.finish();
    match unreadable {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// Passes over the rows that have a line, whose pictures are to be those that were answered.
fn check_answered(rows: &mut Rows<'_>, journal: &mut Journal) -> Result<()> {
    let unreadable = |journal: &Journal, error: std::io::Error| journal.refused(error.to_string());
    for line in journal.lines().map_err(|error| unreadable(journal, error))? {
        let line = line.map_err(|error| unreadable(journal, error))?;
        match rows.next() {
            None => return Err(journal.refused(format!("it has more than the {} rows of the table", line.row)).into()),
            Some((_, digest)) if digest != line.pictures => return Err(journal.of_other_pictures().into()),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Why a row was not answered, unless what is wrong is wrong with more than the row.
fn of_row(error: Error) -> Result<String> {
    let is_of_model = matches!(&error, Error::Core(janus_core::Error::Model(ModelError::NotFinite { .. })));
    if is_of_model || error.fault() == Fault::Internal { Err(error) } else { Ok(error.to_string()) }
}

/// The rows of a table; a file that cannot be read ends them, and is told in `failed`.
struct Rows<'t> {
    batches: WholeBatches<'t>,
    rows: std::vec::IntoIter<Read>,
    failed: &'t mut Option<DataError>,
}

impl Iterator for Rows<'_> {
    type Item = Read;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(row);
            }
            match self.batches.next() {
                Ok(Some(batch)) => {
                    let digest = |row: &Result<Row, RowFault>| {
                        let row = row.as_ref().ok().filter(|_| batch.names_files)?;
                        Some(of_pictures(row).iter().map(|byte| format!("{byte:02x}")).collect())
                    };
                    let digests: Vec<Option<String>> = batch.rows.iter().map(digest).collect();
                    let rows = batch.rows.into_iter().map(|row| row.map_err(|fault| fault.to_string()));
                    self.rows = rows.zip(digests).collect::<Vec<_>>().into_iter();
                }
                Ok(None) => return None,
                Err(error) => {
                    *self.failed = Some(error);
                    return None;
                }
            }
        }
    }
}
