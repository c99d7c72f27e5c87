//! What stands beside the loop and is told of everything.

use std::io::Read;

use candle_core::Device;
use janus_core::directory::Directory;
use janus_core::processing::{Decoding, decode_image};
use serde_json::json;

use super::ReportError;
use super::events::{EventFile, Summary};
use super::facts::{Facts, Left};
use super::page::write_report;
use super::picture::{Encoded, thumbnail};
use super::record::MAX_FILE_BYTES;
use super::samples::{Sample, Sampler, Stand};
use crate::error::Result;
use crate::eval::{Metrics, in_one_line};
use crate::recipe::Recipe;
use crate::status::Status;
use crate::train::metrics::{MetricsFile, StepLine};
use crate::train::plan::Plan;
use crate::train::tables::RecipeTable;

/// Longer side of pictures in event files, in pixels.
const EVENT_SIDE: u32 = 256;

/// Writes event files, samples, `run.json` and `report.html` of one run.
///
/// A view must not end a run: where event files or the report cannot be written, that is a warning.
#[derive(Debug)]
pub struct Sight {
    folder: Directory,
    facts: Facts,
    events: Option<EventFile>,
    sampler: Sampler,
}

impl Sight {
    /// Starts in a run folder that exists, after `first_step` steps of an earlier start.
    ///
    /// # Errors
    /// Rows to sample that cannot be read, or `run.json` that cannot be written.
    pub fn open(
        folder: &Directory,
        recipe: &Recipe,
        plan: &Plan,
        tables: &[RecipeTable],
        first_step: u64,
        device: &Device,
        status: &dyn Status,
    ) -> Result<Self> {
        let facts = Facts::new(folder, first_step, &recipe.base.path, plan, device);
        facts.write(folder)?;
        let mut sight =
            Self { folder: folder.clone(), facts, events: None, sampler: Sampler::new(tables, recipe.train.seed)? };
        match EventFile::create(folder, first_step) {
            Ok(events) => sight.events = Some(events),
            Err(error) => sight.give_up_events(&error, status),
        }
        Ok(sight)
    }

    /// A step is done.
    pub fn stepped(&mut self, line: &StepLine, status: &dyn Status) {
        let mut values = vec![
            ("train/loss".to_owned(), line.loss),
            ("train/learning_rate".to_owned(), line.lr),
            ("train/gradient_norm".to_owned(), line.grad_norm),
            ("train/tokens_per_second".to_owned(), line.tokens_per_second),
            ("train/epoch".to_owned(), line.epoch),
            ("train/rss_bytes".to_owned(), line.rss_bytes as f64),
            ("train/peak_rss_bytes".to_owned(), line.peak_rss_bytes as f64),
        ];
        let losses = line.losses.iter().filter_map(|(table, loss)| Some((format!("loss/{table}"), loss.as_f64()?)));
        values.extend(losses);
        values.extend(line.codes_alive.map(|share| ("train/codes_alive".to_owned(), share)));
        values.extend(line.alignment.map(|loss| ("loss/alignment".to_owned(), loss)));
        let values = values.into_iter().map(|(tag, value)| (tag, Summary::Scalar(value))).collect();
        self.event(line.step, values, status);
    }

    /// Figures are known; `with_adapter` says of what. Those of the base alone are where the adapter's curves begin, too.
    pub fn evaluated(&mut self, step: u64, with_adapter: bool, metrics: &Metrics, status: &dyn Status) {
        if !metrics.is_empty() {
            let of_what = if with_adapter { "" } else { " (the base alone)" };
            status.note(&format!("evaluation at step {step}{of_what}: {}", in_one_line(metrics)));
        }
        let groups: &[&str] = if with_adapter { &["eval"] } else { &["eval_base", "eval"] };
        let mut values = Vec::new();
        for (group, (table, figures)) in groups.iter().flat_map(|group| metrics.iter().map(move |own| (group, own))) {
            for (metric, value) in figures.as_object().into_iter().flatten() {
                values
                    .extend(value.as_f64().map(|value| (format!("{group}/{table}/{metric}"), Summary::Scalar(value))));
            }
        }
        self.event(step, values, status);
    }

    /// Samples the wanted tables, and notes what came of it.
    ///
    /// # Errors
    /// Rows that make no prompt, or files that cannot be written.
    pub fn sample(
        &mut self,
        stand: &Stand<'_>,
        is_wanted: &dyn Fn(&str) -> bool,
        metrics: &mut MetricsFile,
        status: &dyn Status,
    ) -> Result<()> {
        if self.sampler.is_empty() {
            return Ok(());
        }
        let samples = self.sampler.sample(stand, &self.folder, is_wanted, status)?;
        metrics.write(&json!({ "step": stand.step, "samples": samples }))?;
        self.sampled(stand.step, &samples, status);
        Ok(())
    }

    fn sampled(&mut self, step: u64, samples: &[Sample], status: &dyn Status) {
        let picture = |name: &String| -> Option<Encoded> {
            let mut bytes = Vec::new();
            self.folder.open_file(name).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
            thumbnail(&decode_image(&bytes, Decoding::default()).ok()?, EVENT_SIDE).ok()
        };
        let shown: Vec<(String, Option<Encoded>, String)> = samples
            .iter()
            .map(|sample| {
                let answer = sample.answer.as_deref().unwrap_or_default();
                let expected = sample.expected.as_deref().unwrap_or_default();
                let text = format!("{}\n\nexpected: {expected}\n\nanswer: {answer}", sample.prompt);
                (format!("samples/{}/{}", sample.table, sample.row), sample.picture.as_ref().and_then(picture), text)
            })
            .collect();
        let values = (shown.iter())
            .map(|(tag, picture, text)| {
                let value = match picture {
                    Some(Encoded { width, height, bytes, .. }) => {
                        Summary::Picture { width: *width, height: *height, encoded: bytes }
                    }
                    None => Summary::Text(text),
                };
                (tag.clone(), value)
            })
            .collect();
        self.event(step, values, status);
    }

    /// Writes `report.html` as the run stands.
    pub fn report(&self, status: &dyn Status) {
        if let Err(error) = write_report(&self.folder) {
            status.warn(&format!("no report is written: {error}"));
        }
    }

    /// The run is over, and this is the adapter it leaves.
    ///
    /// # Errors
    /// `run.json` cannot be written.
    pub fn finish(&mut self, left: Left, measured_peak_bytes: u64, status: &dyn Status) -> Result<()> {
        self.facts.end(left, measured_peak_bytes);
        self.facts.write(&self.folder)?;
        self.report(status);
        Ok(())
    }

    fn event(&mut self, step: u64, values: Vec<(String, Summary<'_>)>, status: &dyn Status) {
        if values.is_empty() {
            return;
        }
        let written = self.events.as_mut().map_or(Ok(()), |events| events.write(step, &values));
        if let Err(error) = written {
            self.give_up_events(&error, status);
        }
    }

    fn give_up_events(&mut self, error: &ReportError, status: &dyn Status) {
        self.events = None;
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        status.warn(&format!("no more TensorBoard events are written: {error}{cause}"));
    }
}
