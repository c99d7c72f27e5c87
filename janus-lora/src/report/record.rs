//! A run folder read back: everything the page shows, whatever state the run is in.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;
use image::RgbImage;
use janus_core::input;
use janus_core::processing::{Decoding, decode_image};
use serde_json::{Map, Value};

use super::ReportError;
use super::samples::{self, Sample};

/// Longer lines are none of a run's.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Larger files beside the metrics are none of a run's.
const MAX_FILE_BYTES: u64 = 16 << 20;
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
    /// Lines of `metrics.jsonl` that are no objects of a run, a last one that is being written aside.
    pub unreadable_lines: usize,
}

impl Record {
    /// Reads a run folder.
    ///
    /// # Errors
    /// No metrics, or files that cannot be read.
    pub fn read(folder: &Path) -> Result<Self, ReportError> {
        let Some(path) = input::locate(folder, "metrics.jsonl")? else {
            return Err(ReportError::NoRun { path: folder.to_path_buf() });
        };
        let mut record = Self { folder: folder.to_path_buf(), ..Self::default() };
        let failed = |source| ReportError::Read { path: path.clone(), source };
        lines(&path, &mut |line| record.line(line)).map_err(failed)?;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        if let Some(rejected) = input::locate(folder, "rejected.jsonl")? {
            let failed = |source| ReportError::Read { path: rejected.clone(), source };
            lines(&rejected, &mut |line| {
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
        record.facts = text(folder, "run.json")?.and_then(|text| serde_json::from_str(&text).ok());
        Ok(record)
    }

    /// One line of the metrics; `None` for one that is too long.
    fn line(&mut self, line: Option<&[u8]>) {
        let parsed = line.and_then(|line| serde_json::from_slice::<Value>(line).ok());
        let Some((line, step)) = parsed.as_ref().and_then(|line| Some((line, line.get("step")?.as_u64()?))) else {
            self.unreadable_lines += 1;
            return;
        };
        if let Some(eval) = line.get("eval") {
            let part = |name: &str| eval.get(name).and_then(Value::as_object).cloned();
            while self.evaluations.last().is_some_and(|last| last.step > step) {
                self.evaluations.pop();
            }
            self.evaluations.push(Evaluation { step, before: part("before"), after: part("after") });
        } else if let Some(samples) = line.get("samples") {
            let samples = samples.as_array().into_iter().flatten();
            let samples = samples.filter_map(|sample| serde_json::from_value(sample.clone()).ok()).collect();
            while self.samples.last().is_some_and(|last| last.0 >= step) {
                self.samples.pop();
            }
            self.samples.push((step, samples));
        } else if line.get("loss").is_some() {
            self.step(line, step);
        }
    }

    fn step(&mut self, line: &Value, step: u64) {
        // A step that was taken again counts as it was taken last.
        while self.steps.last().is_some_and(|last| last.step >= step) {
            self.steps.pop();
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
                None if self.losses.len() >= MAX_NAMES => continue,
                None => {
                    self.losses.push((name.to_owned(), Vec::new()));
                    self.losses.len() - 1
                }
            };
            if let (Some((_, points)), Some(loss)) = (self.losses.get_mut(place), loss.as_f64()) {
                while points.last().is_some_and(|last| last.0 >= step) {
                    points.pop();
                }
                points.push((step, loss));
            }
        }
    }

    /// Figures by table without the adapter, as the last evaluation that has them tells.
    pub fn before(&self) -> Option<&Map<String, Value>> {
        self.evaluations.iter().rev().find_map(|evaluation| evaluation.before.as_ref())
    }

    /// Figures by table with the adapter as it is now.
    pub fn after(&self) -> Option<&Map<String, Value>> {
        self.evaluations.iter().rev().find_map(|evaluation| evaluation.after.as_ref())
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
        decode_image(&input::read(&self.folder, name, MAX_FILE_BYTES).ok()??, Decoding::default()).ok()
    }
}

/// Hands out the whole lines of a file, `None` for one that is too long. What stands behind the last line feed is being
/// written, or was when the run was ended.
fn lines(path: &Path, take: &mut dyn FnMut(Option<&[u8]>)) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, fs::File::open(path)?);
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
fn text(folder: &Path, name: &str) -> Result<Option<String>, ReportError> {
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
