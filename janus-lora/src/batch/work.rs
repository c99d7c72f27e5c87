//! Rows go through the engine in their order.

use std::collections::BTreeMap;

use janus_core::{Diagnose, Fault, ModelError};

use super::journal::{Journal, Line};
use super::{BatchError, Job};
use crate::data::Table;
use crate::error::{Error, Result};
use crate::infer::{Engine, Event, Limits, RequestId};
use crate::status::Status;
use crate::train::signals;

/// Rows that wait or go on for each that may go on, so that the engine never runs dry.
const AHEAD: usize = 2;

/// What a row came to.
enum Outcome {
    Waiting,
    Known(Line),
}

/// Rows that are under way.
struct Work<'j, 'm> {
    job: &'j Job<'m>,
    engine: Engine<'j>,
    journal: &'j mut Journal,
    /// By its number in the table: rows from the first on that has no line.
    rows: BTreeMap<usize, Outcome>,
    asked: BTreeMap<RequestId, usize>,
}

/// Answers the rows that have no line yet.
pub(super) fn answer<'j>(job: &'j Job<'_>, table: &Table, journal: &'j mut Journal, status: &dyn Status) -> Result<()> {
    let limits = Limits::of(job.model)?;
    let engine = Engine::new(job.model, job.base, job.heads, limits);
    let bar = status.items("answering", table.claimed_rows());
    let done = journal.rows();
    bar.advance(done as u64);
    let mut work = Work { job, engine, journal, rows: BTreeMap::new(), asked: BTreeMap::new() };
    let (mut batches, mut number) = (table.whole_batches(), 0);
    while let Some(batch) = batches.next()? {
        for row in batch.rows {
            if number >= done {
                let request =
                    row.map_err(|fault| fault.to_string()).map(|row| job.asked.request(job.base, &row, number));
                match request {
                    Err(fault) => work.failed(number, fault),
                    Ok(Err(error)) => work.refused(number, error)?,
                    Ok(Ok(request)) => match work.engine.submit(request) {
                        Ok(id) => {
                            work.rows.insert(number, Outcome::Waiting);
                            work.asked.insert(id, number);
                        }
                        Err(error) => work.refused(number, error)?,
                    },
                }
                while work.engine.pending() > AHEAD * limits.rows {
                    work.step(&*bar)?;
                }
            }
            number += 1;
        }
    }
    while work.engine.pending() > 0 {
        work.step(&*bar)?;
    }
    work.write(&*bar)?;
    bar.finish();
    Ok(())
}

impl Work<'_, '_> {
    fn failed(&mut self, number: usize, reason: String) {
        self.rows.insert(number, Outcome::Known(Line { values: None, error: Some(reason) }));
    }

    /// A row whose request or answer is not to be had; what is wrong with more than the row ends all.
    fn refused(&mut self, number: usize, error: Error) -> Result<()> {
        let is_of_model = matches!(&error, Error::Core(janus_core::Error::Model(ModelError::NotFinite { .. })));
        if is_of_model || error.fault() == Fault::Internal {
            return Err(error);
        }
        self.failed(number, error.to_string());
        Ok(())
    }

    fn step(&mut self, bar: &dyn crate::status::Bar) -> Result<()> {
        if let Some(signal) = signals::received() {
            return Err(BatchError::Stopped { signal, rows: self.journal.rows() }.into());
        }
        for event in self.engine.step()? {
            let Event::Ended { request, answer } = event else { continue };
            let Some(number) = self.asked.remove(&request) else { continue };
            match answer.and_then(|answer| self.job.asked.values(answer)) {
                Ok(values) => {
                    self.rows.insert(number, Outcome::Known(Line { values: Some(values), error: None }));
                }
                Err(error) => self.refused(number, error)?,
            }
        }
        self.write(bar)
    }

    /// Writes the lines of the rows that are known, up to the first that is not.
    fn write(&mut self, bar: &dyn crate::status::Bar) -> Result<()> {
        while let Some(entry) = self.rows.first_entry() {
            let Outcome::Known(line) = entry.get() else { break };
            self.journal.push(line)?;
            entry.remove();
            bar.advance(1);
        }
        Ok(())
    }
}
