//! A run folder read back: everything the page shows, whatever state the run is in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use image::RgbImage;
use janus_core::directory::{Directory, Place};
use janus_core::input::{self, InputError};
use janus_core::processing::{Decoding, decode_image};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ReportError;
use super::facts::{self, Left};
use super::samples::{self, Sample};
use crate::adapter::NOTE_FILE;
use crate::recipe::{EarlyStopping, Goal};
use crate::train::ending::Ending;
use crate::train::guard::Best;
use crate::train::metrics::{self, MAX_LINE_BYTES, MAX_METRICS_BYTES};

/// Steps that are kept of a run, and losses, samples and evaluations of them; lines of more are passed over.
const MAX_STEPS: usize = 1 << 22;
/// Bytes of evaluations and samples that are read.
const MAX_TOLD_BYTES: usize = 64 << 20;
/// Longest name of a table.
const MAX_NAME_BYTES: usize = 1 << 10;
/// Larger files beside the metrics are none of a run's.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;
/// Tables, reasons and the like that are told apart; the rest is added up.
const MAX_NAMES: usize = 64;

/// What one step told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Steps done, from 1.
    pub step: u64,
    /// `Σ loss_weight · loss`; not a number where the line has none.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that the decoder read.
    pub tokens: f64,
    /// The same per second.
    pub tokens_per_second: f64,
    /// Largest resident memory so far.
    pub peak_rss_bytes: u64,
}

/// What one evaluation told.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// Figures by table without the adapter, where they are given.
    pub before: Option<Map<String, Value>>,
    /// Figures by table with it.
    pub after: Option<Map<String, Value>>,
}

/// Everything that a run folder tells.
#[derive(Debug, Default)]
pub struct Record {
    /// The folder.
    pub folder: PathBuf,
    /// The same, held open.
    directory: Option<Directory>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Step and loss by table, in order.
    pub losses: Vec<(String, Vec<(u64, f64)>)>,
    /// The evaluations, in order.
    pub evaluations: Vec<Evaluation>,
    /// The samples by step, in order.
    pub samples: Vec<(u64, Vec<Sample>)>,
    /// Rows left out by reason, the most frequent first.
    pub rejected: Vec<(String, usize)>,
    /// `recipe.toml`.
    pub recipe: Option<String>,
    /// `run.json`.
    pub facts: Option<Value>,
    /// What the run left, where it is over.
    pub left: Option<Left>,
    /// Lines of `metrics.jsonl` that are no objects of a run, a last one that is being written aside, or too many.
    pub unreadable_lines: usize,
    /// Bytes of the lines of evaluations and samples.
    told_bytes: usize,
    /// Losses of tables.
    points: usize,
}

impl Record {
    /// Reads a run folder.
    ///
    /// # Errors
    /// No metrics, or files that cannot be read.
    pub fn read<'a>(folder: impl Into<Place<'a>>) -> Result<Self, ReportError> {
        Self::open(folder).map(|(record, _)| record)
    }

    /// As [`Record::read`], with the folder held open.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn open<'a>(folder: impl Into<Place<'a>>) -> Result<(Self, Directory), ReportError> {
        let folder = folder.into();
        let no_run = || ReportError::NoRun { path: folder.path().to_path_buf() };
        let opened = folder.open().map_err(|_| no_run())?;
        let folder = &opened;
        let input::Opened { path, file } = input::open_in(folder, metrics::FILE)?.ok_or_else(no_run)?;
        let mut record =
            Self { folder: folder.path().to_path_buf(), directory: Some(folder.clone()), ..Self::default() };
        let failed = |source| ReportError::Read { path: path.clone(), source };
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes > MAX_METRICS_BYTES {
            return Err(InputError::TooLarge { path, bytes, limit_bytes: MAX_METRICS_BYTES }.into());
        }
        lines(file, &mut |line| record.line(line)).map_err(failed)?;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        if let Some(input::Opened { path: rejected, file }) = input::open_in(folder, "rejected.jsonl")? {
            let failed = |source| ReportError::Read { path: rejected.clone(), source };
            lines(file, &mut |line| {
                let Some(Ok(line)) = line.map(serde_json::from_slice::<Value>) else { return };
                let mut reason = general(line.get("reason").and_then(Value::as_str).unwrap_or("no reason given"));
                if reasons.len() >= MAX_NAMES && !reasons.contains_key(&reason) {
                    reason = "other reasons".into();
                }
                *reasons.entry(reason).or_default() += 1;
            })
            .map_err(failed)?;
        }
        record.rejected = reasons.into_iter().collect();
        record.rejected.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
        record.recipe = text(folder, "recipe.toml")?;
        record.facts = text(folder, facts::FILE)?.and_then(|text| serde_json::from_str(&text).ok());
        record.left = record.facts.as_ref().and_then(|facts| Left::deserialize(facts.get("left")?).ok());
        if record.left.is_none() {
            let note = text(folder, NOTE_FILE)?.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            record.left = note.and_then(|note| record.left_before(note.get("metrics")?));
            record.rename_samples();
        }
        Ok((record, opened))
    }

    /// What a run left that ended before `run.json` told it: from the metrics in its adapter's note.
    fn left_before(&self, metrics: &Value) -> Option<Left> {
        let facts = self.facts.as_ref()?;
        // The note of a run that is gone on with is that of its end before.
        facts.get("measured_peak_bytes")?.as_u64()?;
        let part = |name: &str| metrics.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let (steps, after) = (metrics.get("steps")?.as_u64()?, part("after"));
        let planned = facts.get("plan").and_then(|plan| plan.get("steps")?.as_u64()).unwrap_or(steps);
        let recipe = self.recipe.as_ref().and_then(|recipe| recipe.parse::<toml::Table>().ok());
        let rule = recipe.as_ref().and_then(|recipe| recipe.get("train")?.get("early_stopping")).and_then(|rule| {
            let metric = rule.get("metric")?.as_str()?.to_owned();
            let patience = rule.get("patience").and_then(toml::Value::as_integer).unwrap_or_default();
            Some(EarlyStopping { metric, patience: patience.try_into().unwrap_or_default(), mode: Goal::Min })
        });
        let best = rule.as_ref().zip(metrics.get("best_step").and_then(Value::as_u64)).map(|(rule, step)| {
            let figure = rule.metric.rsplit_once('.').and_then(|(table, name)| after.get(table)?.get(name)?.as_f64());
            Best { step, value: figure.unwrap_or(f64::NAN), metrics: after.clone() }
        });
        Some(Left { ending: Ending::new(steps, planned, rule.as_ref(), best.as_ref()), before: part("before"), after })
    }

    /// Runs that ended before `run.json` told what they left named their last samples by the last step, though they were
    /// made with the adapter that was left.
    fn rename_samples(&mut self) {
        let Some(Left { ending: Ending { step, steps, .. }, .. }) = &self.left else { return };
        let (step, steps) = (*step, *steps);
        if step < steps && self.samples.last().is_some_and(|(last, _)| *last == steps) {
            let (_, own) = self.samples.pop().unwrap_or_default();
            self.sampled(step, own);
        }
    }

    /// Samples take the place of those of the same step; those of the adapter that is left come last and may be of an
    /// earlier one.
    fn sampled(&mut self, step: u64, samples: Vec<Sample>) {
        let place = self.samples.partition_point(|(other, _)| *other < step);
        match self.samples.get_mut(place) {
            Some((other, own)) if *other == step => *own = samples,
            _ => self.samples.insert(place, (step, samples)),
        }
    }

    /// One line of the metrics; `None` for one that is too long.
    fn line(&mut self, line: Option<&[u8]>) {
        let bytes = line.map_or(0, <[u8]>::len);
        let parsed = line.and_then(|line| serde_json::from_slice::<Value>(line).ok());
        let Some((line, step)) = parsed.as_ref().and_then(|line| Some((line, line.get("step")?.as_u64()?))) else {
            self.unreadable_lines += 1;
            return;
        };
        let is_told = line.get("eval").is_some() || line.get("samples").is_some();
        if is_told {
            self.told_bytes = self.told_bytes.saturating_add(bytes);
        }
        if (is_told && self.told_bytes > MAX_TOLD_BYTES) || self.steps.len() >= MAX_STEPS || self.points >= MAX_STEPS {
            self.unreadable_lines += 1;
            return;
        }
        if let Some(eval) = line.get("eval") {
            let part = |name: &str| eval.get(name).and_then(Value::as_object).cloned();
            let (before, after) = (part("before"), part("after"));
            while self.evaluations.last().is_some_and(|last| last.step > step) {
                self.evaluations.pop();
            }
            match self.evaluations.last_mut() {
                // The end of a run that stopped at an evaluation, or another evaluation of a step taken again.
                Some(last) if last.step == step && last.after.is_some() && after.is_some() => {
                    last.after = after;
                    last.before = before.or(last.before.take());
                }
                _ => self.evaluations.push(Evaluation { step, before, after }),
            }
        } else if let Some(samples) = line.get("samples") {
            let samples = samples.as_array().into_iter().flatten();
            self.sampled(step, samples.filter_map(|sample| Sample::deserialize(sample).ok()).collect());
        } else if line.get("loss").is_some() {
            self.step(line, step);
        }
    }

    fn step(&mut self, line: &Value, step: u64) {
        // A step that was taken again counts as it was taken last.
        while self.steps.last().is_some_and(|last| last.step >= step) {
            self.steps.pop();
            self.samples.retain(|(sampled, _)| *sampled < step);
        }
        let number = |name: &str| line.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        self.steps.push(Step {
            step,
            loss: number("loss"),
            lr: number("lr"),
            grad_norm: number("grad_norm"),
            tokens: number("tokens"),
            tokens_per_second: number("tokens_per_second"),
            peak_rss_bytes: line.get("peak_rss_bytes").and_then(Value::as_u64).unwrap_or(0),
        });
        let tables = line.get("losses").and_then(Value::as_object).into_iter().flatten();
        let alignment = line.get("alignment").map(|loss| ("alignment of both visual paths", loss));
        for (name, loss) in tables.map(|(name, loss)| (name.as_str(), loss)).chain(alignment) {
            let known = self.losses.iter().position(|(known, _)| known == name);
            let place = match known {
                Some(place) => place,
                None if self.losses.len() >= MAX_NAMES || name.len() > MAX_NAME_BYTES => continue,
                None => {
                    self.losses.push((name.to_owned(), Vec::new()));
                    self.losses.len() - 1
                }
            };
            if let (Some((_, points)), Some(loss)) = (self.losses.get_mut(place), loss.as_f64()) {
                while points.last().is_some_and(|last| last.0 >= step) {
                    points.pop();
                    self.points -= 1;
                }
                points.push((step, loss));
                self.points += 1;
            }
        }
    }

    /// Figures by table without the adapter.
    pub fn before(&self) -> Option<&Map<String, Value>> {
        let left = self.left.as_ref().map(|left| &left.before).filter(|before| !before.is_empty());
        left.or_else(|| self.told_before())
    }

    fn told_before(&self) -> Option<&Map<String, Value>> {
        self.evaluations.iter().rev().find_map(|evaluation| evaluation.before.as_ref())
    }

    /// Figures by table with the adapter: that which the run left, or else as the last evaluation tells.
    pub fn after(&self) -> Option<&Map<String, Value>> {
        let told = || self.evaluations.iter().rev().find_map(|evaluation| evaluation.after.as_ref());
        match &self.left {
            Some(left) if !left.after.is_empty() => Some(&left.after),
            _ => told(),
        }
    }

    /// The step that [`after`](Self::after) is of.
    pub fn after_step(&self) -> Option<u64> {
        let left = self.left.as_ref().filter(|left| !left.after.is_empty()).map(|left| left.ending.step);
        let told = || self.evaluations.iter().rev().find(|evaluation| evaluation.after.is_some());
        left.or_else(|| told().map(|evaluation| evaluation.step))
    }

    /// Steps after which the adapter was as it is left; of a run under way, those that are done.
    pub fn adapter_step(&self) -> u64 {
        let done = || self.steps.last().map_or(0, |step| step.step);
        self.left.as_ref().map_or_else(done, |left| left.ending.step)
    }

    /// The samples of the adapter that the run left; of a run under way, the last ones.
    pub fn left_samples(&self) -> Option<&(u64, Vec<Sample>)> {
        let step = self.left.as_ref().map(|left| left.ending.step);
        self.samples.iter().find(|(sampled, _)| Some(*sampled) == step).or(self.samples.last())
    }

    /// Largest resident memory that the run told.
    pub fn measured_peak_bytes(&self) -> u64 {
        let told = self.facts.as_ref().and_then(|facts| facts.get("measured_peak_bytes")?.as_u64()).unwrap_or(0);
        self.steps.iter().map(|step| step.peak_rss_bytes).fold(told, u64::max)
    }

    /// A picture that a sample names, if it lies in the run folder's own `samples` and is one.
    pub fn picture(&self, name: &str) -> Option<RgbImage> {
        if !Path::new(name).starts_with(samples::FOLDER) {
            return None;
        }
        decode_image(&input::read(self.directory.as_ref()?, name, MAX_FILE_BYTES).ok()??, Decoding::default()).ok()
    }
}

/// Hands out the whole lines of a file, `None` for one that is too long. What stands behind the last line feed is being
/// written, or was when the run was ended.
pub(super) fn lines(file: File, take: &mut dyn FnMut(Option<&[u8]>)) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, file.take(MAX_METRICS_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match line.strip_suffix(b"\n") {
            Some(line) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(line) => take(Some(line)),
            None if (line.len() as u64) < MAX_LINE_BYTES => return Ok(()),
            None => {
                reader.skip_until(b'\n')?;
                take(None);
            }
        }
    }
}

/// A small text file of the run folder, `None` where there is none.
fn text(folder: &Directory, name: &str) -> Result<Option<String>, ReportError> {
    let bytes = input::read(folder, name, MAX_FILE_BYTES)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// A reason without the particulars of one row: runs of digits become `…`.
fn general(reason: &str) -> String {
    let mut text = String::new();
    for c in reason.chars().take(200) {
        match c.is_ascii_digit() {
            true if text.ends_with('…') => {}
            true => text.push('…'),
            false => text.push(c),
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resumed_run_counts_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let step = |step: u64, loss: f64| format!("{{\"step\":{step},\"loss\":{loss},\"losses\":{{\"a\":{loss}}}}}\n");
        let text = [
            step(1, 5.0),
            step(2, 4.0),
            step(3, 3.5),
            "not json\n".into(),
            "{\"step\":3,\"loss\":null}\n".into(),
            step(2, 4.5),
            step(3, 3.25),
            "{\"step\":3,\"eval\":{\"after\":{\"a\":{\"loss\":3.0}}}}\n".into(),
            "{\"step\":4,\"lo".into(),
        ];
        std::fs::write(folder.path().join("metrics.jsonl"), text.concat()).unwrap();
        let record = Record::read(folder.path()).unwrap();
        let losses: Vec<(u64, f64)> = record.steps.iter().map(|step| (step.step, step.loss)).collect();
        assert_eq!(losses, [(1, 5.0), (2, 4.5), (3, 3.25)]);
        assert_eq!(record.losses, [("a".to_owned(), vec![(1, 5.0), (2, 4.5), (3, 3.25)])]);
        assert_eq!(record.unreadable_lines, 1);
        assert_eq!(record.after().unwrap()["a"]["loss"], 3.0);
    }

    /// A run folder with these lines of metrics, and `run.json` and the adapter's note where they are given.
    fn folder(lines: &[Value], facts: Option<Value>, note: Option<Value>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let files =
            [(facts::FILE, facts), (NOTE_FILE, note.map(|metrics| json!({ "version": 1, "metrics": metrics })))];
        for (name, value) in files.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        let recipe = "[train]\nearly_stopping = { metric = \"q.loss\", patience = 2, mode = \"min\" }\n";
        std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        folder
    }

    fn figures(loss: f64) -> Value {
        json!({ "q": { "loss": loss } })
    }

    fn eval(step: u64, loss: f64) -> Value {
        json!({ "step": step, "eval": { "after": figures(loss) } })
    }

    fn samples(step: u64, answer: &str) -> Value {
        json!({ "step": step, "samples": [{ "table": "q", "row": 0, "answer": answer }] })
    }

    fn step(step: u64) -> Value {
        json!({ "step": step, "loss": 1.0 })
    }

    fn told(record: &Record) -> (u64, f64, String) {
        let loss = record.after().unwrap()["q"]["loss"].as_f64().unwrap();
        let (step, samples) = record.left_samples().unwrap();
        assert_eq!(*step, record.adapter_step());
        (*step, loss, samples[0].answer.clone().unwrap())
    }

    #[test]
    fn what_is_told_is_of_the_adapter_that_is_left() {
        let all = [
            eval(2, 0.5),
            samples(2, "two"),
            step(3),
            step(4),
            eval(4, 0.9),
            samples(4, "four"),
            step(5),
            step(6),
            eval(6, 0.8),
        ];
        let last = json!({ "step": 6, "eval": { "before": figures(3.0), "after": figures(0.8) } });
        let ending = json!({ "step": 2, "steps": 6, "planned_steps": 9, "stopped_early": true, "reason": "so",
            "before": figures(3.0), "after": figures(0.5) });
        // As runs end now: samples of the adapter come last, under its own step.
        let lines = [&all[..], &[last.clone(), samples(2, "two again")]].concat();
        let facts = json!({ "measured_peak_bytes": 1, "left": ending });
        let now = folder(&lines, Some(facts), None);
        let record = Record::read(now.path()).unwrap();
        assert_eq!(told(&record), (2, 0.5, "two again".into()));
        assert_eq!(record.samples.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(record.evaluations.iter().map(|evaluation| evaluation.step).collect::<Vec<_>>(), [2, 4, 6]);

        // As they ended before: the adapter's note alone says of which step it is, and its samples bear the last step.
        let lines = [&all[..], &[last, samples(6, "of two")]].concat();
        let facts = json!({ "measured_peak_bytes": 1, "plan": { "steps": 9 } });
        let note = json!({ "steps": 6, "before": figures(3.0), "after": figures(0.5), "best_step": 2 });
        let before = folder(&lines, Some(facts.clone()), Some(note.clone()));
        let record = Record::read(before.path()).unwrap();
        assert_eq!(told(&record), (2, 0.5, "of two".into()));
        let reason = &record.left.as_ref().unwrap().ending.reason;
        assert!(reason.starts_with("stopped early after step 6 of 9: `q.loss` has not got better in 2"), "{reason}");

        // Nothing stopped it, and the best step is not the last one.
        let facts_all = json!({ "measured_peak_bytes": 1, "plan": { "steps": 6 } });
        let record = Record::read(folder(&lines, Some(facts_all), Some(note.clone())).path()).unwrap();
        assert_eq!(told(&record), (2, 0.5, "of two".into()));
        assert!(!record.left.as_ref().unwrap().ending.stopped_early);

        // Under way, also where an earlier end left a note: what was told last.
        for (facts, note) in
            [(None, None), (Some(json!({ "measured_peak_bytes": null })), Some(note.clone())), (None, Some(note))]
        {
            let record = Record::read(folder(&all, facts, note).path()).unwrap();
            assert!(record.left.is_none());
            assert_eq!(record.after().unwrap()["q"]["loss"], 0.8);
            assert_eq!(record.left_samples().unwrap().1[0].answer.as_deref(), Some("four"));
        }
    }

    #[test]
    fn a_line_without_end_is_no_line_and_an_endless_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = vec![b'x'; MAX_LINE_BYTES as usize + 10];
        text.extend_from_slice(b"\n{\"step\":1,\"loss\":2.0}\n");
        std::fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        let record = Record::read(folder.path()).unwrap();
        assert_eq!((record.unreadable_lines, record.steps.len()), (1, 1));
    }

    #[test]
    fn no_picture_outside_the_run_folder_is_read() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("run");
        std::fs::create_dir_all(folder.join("samples/step-1")).unwrap();
        std::fs::write(folder.join("metrics.jsonl"), "").unwrap();
        let picture = RgbImage::new(3, 2);
        picture.save(outer.path().join("secret.png")).unwrap();
        picture.save(folder.join("loss.png")).unwrap();
        picture.save(folder.join("samples/step-1/0-0.png")).unwrap();
        let record = Record::read(&folder).unwrap();
        assert_eq!(record.picture("samples/step-1/0-0.png").unwrap().dimensions(), (3, 2));
        let absolute = outer.path().join("secret.png");
        for name in
            ["samples/../../secret.png", absolute.to_str().unwrap(), "loss.png", "samples/../loss.png", "samples"]
        {
            assert!(record.picture(name).is_none(), "{name}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&absolute, folder.join("samples/step-1/link.png")).unwrap();
            assert!(record.picture("samples/step-1/link.png").is_none());
            let other = outer.path().join("other");
            std::fs::create_dir(&other).unwrap();
            std::fs::write(other.join("metrics.jsonl"), "").unwrap();
            std::os::unix::fs::symlink(outer.path(), other.join("samples")).unwrap();
            assert!(Record::read(&other).unwrap().picture("samples/secret.png").is_none(), "a folder that is a link");
        }
    }

    #[test]
    fn reasons_are_counted_without_their_particulars() {
        assert_eq!(general("the image has 12 x 3456 pixels"), "the image has … x … pixels");
    }
}
