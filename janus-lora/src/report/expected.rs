//! The losses that a recipe's runs are expected to have, kept beside the recipe as `NAME.curve.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use janus_core::directory::Directory;
use janus_core::input;
use janus_core::output::write_file;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ReportError;
use super::record::lines;
use crate::train::metrics;

/// Steps whose mean loss is compared.
const WINDOW: u64 = 10;
/// How far above or below the mean of the run that it was made from a loss may lie, as a share of it, and beside that: what
/// another machine's order of sums, and another number of threads, make of a run.
const SHARE: f64 = 0.08;
const BESIDE: f64 = 0.05;
/// Longest file that is read.
const LIMIT_BYTES: u64 = 1 << 20;

/// A range of mean losses for each window of steps, by table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedCurve {
    /// Steps of a window.
    window: u64,
    /// Least and greatest mean loss of each window.
    tables: BTreeMap<String, Vec<[f64; 2]>>,
}

/// Mean losses that are not as expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outside {
    /// The table.
    pub table: String,
    /// First and last step of the window.
    pub steps: [u64; 2],
    /// The mean loss, absent where the run has none there.
    pub loss: Option<f64>,
    /// Least and greatest that was expected.
    pub expected: [f64; 2],
}

/// Where the curve of a recipe file is looked for.
pub fn curve_path(recipe: &Path) -> PathBuf {
    recipe.with_extension("curve.json")
}

impl ExpectedCurve {
    /// What a run of the same recipe is expected to come to, by the metrics of this one.
    ///
    /// # Errors
    /// Metrics that cannot be read, or without losses.
    pub fn of_run(folder: &Path) -> Result<Self, ReportError> {
        let means = window_means(folder, WINDOW)?;
        let range = |mean: &f64| {
            let slack = SHARE * mean.abs() + BESIDE;
            // As many digits as tell a range apart.
            [mean - slack, mean + slack].map(|edge| (edge * 1e4).round() / 1e4)
        };
        let tables = means.into_iter().map(|(table, means)| (table, means.iter().map(range).collect())).collect();
        Ok(Self { window: WINDOW, tables })
    }

    /// The curve of a recipe file, where there is one beside it.
    ///
    /// # Errors
    /// A file that is none.
    pub fn beside(recipe: &Path) -> Result<Option<Self>, ReportError> {
        let path = curve_path(recipe);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(None);
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let broken = |reason: String| ReportError::Curve { path: path.clone(), reason };
        let bytes = input::read(folder, name, LIMIT_BYTES).map_err(|e| broken(e.to_string()))?;
        let Some(bytes) = bytes else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| broken(e.to_string()))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let text = serde_json::to_string(self).expect("numbers and names are JSON") + "\n";
        Ok(write_file(path, |file| file.write_all(text.as_bytes()))?)
    }

    /// Windows in which a run's mean losses are not as expected; none where all are.
    ///
    /// # Errors
    /// Metrics that cannot be read.
    pub fn outside(&self, folder: &Path) -> Result<Vec<Outside>, ReportError> {
        let window = self.window.max(1);
        let means = window_means(folder, window)?;
        let mut outside = Vec::new();
        for (table, ranges) in &self.tables {
            for (number, expected) in (0..).zip(ranges) {
                let loss = means.get(table).and_then(|means| means.get(number as usize)).copied();
                if !loss.is_some_and(|loss| (expected[0]..=expected[1]).contains(&loss)) {
                    let steps = [number * window + 1, (number + 1) * window];
                    outside.push(Outside { table: table.clone(), steps, loss, expected: *expected });
                }
            }
        }
        Ok(outside)
    }
}

/// Windows of steps that are compared, and tables; what lies beyond is none of a run's that was expected.
const MAX_WINDOWS: u64 = 1 << 16;
const MAX_TABLES: usize = 64;

/// The mean loss of each whole window of steps, by table.
fn window_means(folder: &Path, window: u64) -> Result<BTreeMap<String, Vec<f64>>, ReportError> {
    let path = folder.join(metrics::FILE);
    let unreadable = |reason: String| ReportError::Curve { path: path.clone(), reason };
    let run = Directory::open(folder).map_err(|error| unreadable(error.to_string()))?;
    let opened = input::open_in(&run, metrics::FILE).map_err(|error| unreadable(error.to_string()))?;
    let input::Opened { file, .. } = opened.ok_or_else(|| unreadable("it is not there".into()))?;
    let mut sums: BTreeMap<String, Vec<(f64, u64)>> = BTreeMap::new();
    let mut last = 0;
    let told = lines(file, &mut |line| {
        let Some(Ok(line)) = line.map(serde_json::from_slice::<Value>) else { return };
        let (Some(step), Some(losses)) = (line["step"].as_u64().filter(|step| *step > 0), line["losses"].as_object())
        else {
            return;
        };
        let number = (step - 1) / window.max(1);
        if number >= MAX_WINDOWS {
            return;
        }
        last = last.max(step);
        for (table, loss) in losses.iter().filter_map(|(table, loss)| Some((table, loss.as_f64()?))) {
            if sums.len() >= MAX_TABLES && !sums.contains_key(table) {
                continue;
            }
            let windows = sums.entry(table.clone()).or_default();
            windows.resize(windows.len().max(number as usize + 1), (0.0, 0));
            windows[number as usize].0 += loss;
            windows[number as usize].1 += 1;
        }
    });
    told.map_err(|error| unreadable(error.to_string()))?;
    if sums.is_empty() {
        return Err(unreadable("it has no losses".into()));
    }
    let whole = (last / window.max(1)) as usize;
    let mean = |(sum, count): (f64, u64)| sum / count.max(1) as f64;
    Ok(sums.into_iter().map(|(table, windows)| (table, windows.into_iter().take(whole).map(mean).collect())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(factor: f64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64| {
            let loss = factor * (1.0 + 9.0 / step as f64);
            format!("{{\"step\":{step},\"losses\":{{\"a\":{loss},\"b\":{}}}}}\n", 2.0)
        };
        let eval = "{\"step\":0,\"eval\":{\"before\":{}}}\n".to_owned();
        let text: String = std::iter::once(eval).chain((1..=34).map(line)).collect();
        fs_err::write(folder.path().join("metrics.jsonl"), text).unwrap();
        folder
    }

    #[test]
    fn a_run_is_inside_its_own_curve_and_another_one_is_not() {
        let (own, near, far) = (run(1.0), run(1.06), run(1.4));
        let curve = ExpectedCurve::of_run(own.path()).unwrap();
        let recipe = own.path().join("r.toml");
        assert_eq!(ExpectedCurve::beside(&recipe).unwrap(), None);
        curve.write(&curve_path(&recipe)).unwrap();
        let read = ExpectedCurve::beside(&recipe).unwrap().unwrap();
        assert_eq!(read, curve);
        assert_eq!(curve.tables["a"].len(), 3, "the steps after the last whole window say nothing");
        assert!(read.outside(own.path()).unwrap().is_empty() && read.outside(near.path()).unwrap().is_empty());
        let outside = read.outside(far.path()).unwrap();
        assert!(outside.iter().all(|outside| outside.table == "a") && outside.len() == 3, "{outside:?}");
        assert_eq!(outside[1].steps, [11, 20]);
        // A run that ended early is not as expected, either.
        let text = fs_err::read_to_string(own.path().join("metrics.jsonl")).unwrap();
        let short: String = text.lines().take(12).map(|line| format!("{line}\n")).collect();
        fs_err::write(near.path().join("metrics.jsonl"), short).unwrap();
        let missing = read.outside(near.path()).unwrap();
        assert!(missing.iter().any(|outside| outside.table == "b" && outside.loss.is_none()), "{missing:?}");
        fs_err::write(curve_path(&recipe), "[]").unwrap();
        assert!(ExpectedCurve::beside(&recipe).is_err());
    }
}
