//! What watches over a run: steps that give no number, losses that jump, an evaluation that gets no better.

use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::eval::Metrics;
use crate::recipe::{EarlyStopping, Goal};

/// Losses of a table that a new one is compared with.
const WINDOW: usize = 100;
/// Fewer losses than these say nothing of what is usual.
const LEAST: usize = 20;
/// A loss is a spike where it lies so many standard deviations above the mean of the window, its logarithm above that of
/// their logarithms, too, so that what is nearly always right and then not quite gives no alarm...
const DEVIATIONS: f64 = 6.0;
/// ...and is larger than the mean by this share of it, so that a loss that hardly moves at all gives none either.
const SHARE: f64 = 0.5;
/// Losses below this have its logarithm.
const LEAST_LOSS: f64 = 1e-9;

/// What a run knows of itself beside its tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Metrics without the adapter.
    pub before: Metrics,
    /// The last step after which an evaluation was due and done.
    pub evaluated_step: u64,
    /// The last step after which there were samples.
    pub sampled_step: Option<u64>,
    /// Steps without a finite loss and gradient.
    pub skipped_steps: u64,
    /// The best evaluation so far by the recipe's `early_stopping`.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_without_gain: u64,
    /// Whether these were enough to stop.
    pub stopped_early: bool,
    /// Usual losses.
    pub watch: LossWatch,
    /// Seconds of the steps, evaluations and checkpoints so far.
    pub training_seconds: f64,
    /// Seconds of them in which steps waited for rows to be read and decoded.
    pub wait_seconds: f64,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps before it; a checkpoint of them is kept.
    pub step: u64,
    /// The figure.
    pub value: f64,
    /// All figures.
    pub metrics: Metrics,
}

/// The last losses of every table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossWatch(Vec<Vec<f64>>);

/// A loss far above what was usual.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spike {
    /// Number of the table.
    #[serde(skip)]
    pub number: usize,
    /// Name of the table.
    pub table: String,
    /// The loss.
    pub loss: f64,
    /// Mean of the losses before it, of at most 100 steps.
    pub mean: f64,
    /// Rows of the step, as text.
    pub rows: Vec<String>,
}

impl LossWatch {
    /// Takes the losses of a step, by table; gives number, loss and usual mean of those that are spikes.
    pub fn observe(&mut self, losses: &[Option<f64>]) -> Vec<(usize, f64, f64)> {
        self.0.resize(losses.len(), Vec::new());
        let mut spikes = Vec::new();
        for (number, (window, loss)) in self.0.iter_mut().zip(losses).enumerate() {
            let Some(loss) = *loss else { continue };
            let (mean, deviation) = mean_and_deviation(window.iter().copied());
            let logarithm = |loss: f64| loss.max(LEAST_LOSS).ln();
            let (usual, spread) = mean_and_deviation(window.iter().map(|x| logarithm(*x)));
            let is_far = loss > mean + (DEVIATIONS * deviation).max(SHARE * mean.abs())
                && logarithm(loss) > usual + DEVIATIONS * spread;
            if window.len() >= LEAST && is_far {
                spikes.push((number, loss, mean));
            }
            if window.len() >= WINDOW {
                window.drain(..=window.len() - WINDOW);
            }
            window.push(loss);
        }
        spikes
    }
}

fn mean_and_deviation(values: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    (mean, (values.map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt())
}

impl Progress {
    /// At the start of a run.
    pub fn new(before: Metrics) -> Self {
        Self { before, ..Self::default() }
    }

    /// Takes an evaluation after `step` steps; says whether it is the best so far. A figure that is no number is no gain.
    pub fn judge(&mut self, rule: &EarlyStopping, step: u64, metrics: &Metrics) -> bool {
        let value = figure(&rule.metric, metrics).and_then(serde_json::Value::as_f64);
        let better = |best: f64, value: f64| match rule.mode {
            Goal::Min => value < best,
            Goal::Max => value > best,
        };
        let gain = value.filter(|value| self.best.as_ref().is_none_or(|best| better(best.value, *value)));
        match gain {
            Some(value) => {
                self.best = Some(Best { step, value, metrics: metrics.clone() });
                self.evaluations_without_gain = 0;
            }
            None => {
                self.evaluations_without_gain += 1;
                self.stopped_early |= rule.patience > 0 && self.evaluations_without_gain >= rule.patience;
            }
        }
        gain.is_some()
    }
}

/// The figure that a metric's name, `table.metric`, stands for.
fn figure<'a>(metric: &str, metrics: &'a Metrics) -> Option<&'a serde_json::Value> {
    let (table, name) = metric.rsplit_once('.')?;
    metrics.get(table)?.get(name).filter(|value| value.is_number() || value.is_null())
}

/// Refuses a metric that the evaluation does not give.
///
/// # Errors
/// [`TrainError::NoMetric`] with those that it gives.
pub fn require_metric(rule: &EarlyStopping, metrics: &Metrics) -> Result<(), TrainError> {
    if figure(&rule.metric, metrics).is_some() {
        return Ok(());
    }
    let names = |(table, own): (&String, &serde_json::Value)| -> Vec<String> {
        own.as_object().into_iter().flatten().map(|(name, _)| format!("{table}.{name}")).collect()
    };
    Err(TrainError::NoMetric { metric: rule.metric.clone(), found: metrics.iter().flat_map(names).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metrics(loss: f64) -> Metrics {
        let value = json!({ "a.b": { "loss": loss, "rows": 3 } });
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_spike_is_far_above_what_was_usual() {
        let mut watch = LossWatch::default();
        for step in 0..200 {
            let wave = 2.0 + 0.1 * f64::from(step % 7);
            assert_eq!(watch.observe(&[Some(wave), None]), [], "step {step}");
        }
        assert_eq!(watch.0[0].len(), WINDOW);
        let spikes = watch.observe(&[Some(4.2), Some(9.0)]);
        assert_eq!(spikes.len(), 1, "a table's first losses are none");
        assert_eq!((spikes[0].0, spikes[0].1), (0, 4.2));
        assert!((spikes[0].2 - 2.3).abs() < 0.02, "{spikes:?}");
        // A loss that hardly moves: many deviations, no alarm.
        let mut still = LossWatch::default();
        for _ in 0..50 {
            still.observe(&[Some(1.0)]);
        }
        assert_eq!(still.observe(&[Some(1.4)]), []);
        assert_eq!(still.observe(&[Some(1.6)]).len(), 1);
        // Answers that are nearly always right: one that is not is many deviations away, and as usual as that.
        let mut learnt = LossWatch::default();
        for step in 0..100 {
            let loss = if step % 25 == 24 { 0.3 } else { 1e-4 * 4f64.powi(step % 5) };
            assert_eq!(learnt.observe(&[Some(loss)]), [], "step {step}");
        }
        assert_eq!(learnt.observe(&[Some(2.0)]), []);
        assert_eq!(learnt.observe(&[Some(0.0)]), []);
    }

    #[test]
    fn the_best_is_kept_and_patience_ends() {
        let rule = EarlyStopping { metric: "a.b.loss".into(), patience: 2, mode: Goal::Min };
        let mut progress = Progress::new(metrics(9.0));
        let told: Vec<bool> = [3.0, 2.0, 2.0, 1.5, f64::NAN]
            .iter()
            .zip(1..)
            .map(|(loss, step)| progress.judge(&rule, step, &metrics(*loss)))
            .collect();
        assert_eq!(told, [true, true, false, true, false]);
        assert!(!progress.stopped_early);
        assert!(!progress.judge(&rule, 6, &metrics(1.6)));
        assert!(progress.stopped_early);
        assert_eq!(progress.best.as_ref().map(|best| (best.step, best.value)), Some((4, 1.5)));
        let most = EarlyStopping { mode: Goal::Max, patience: 0, ..rule };
        let mut progress = Progress::default();
        for step in 1..20 {
            progress.judge(&most, step, &metrics(-(step as f64)));
        }
        assert_eq!(progress.best.map(|best| best.step), Some(1));
        assert!(!progress.stopped_early, "without patience nothing stops");
    }

    #[test]
    fn a_metric_that_is_not_there_is_refused_with_those_that_are() {
        let rule = |metric: &str| EarlyStopping { metric: metric.into(), patience: 1, mode: Goal::Min };
        require_metric(&rule("a.b.loss"), &metrics(1.0)).unwrap();
        let error = require_metric(&rule("a.b.los"), &metrics(1.0)).unwrap_err().to_string();
        assert!(error.contains("`a.b.loss`, `a.b.rows`"), "{error}");
        assert!(require_metric(&rule("loss"), &metrics(1.0)).is_err());
    }
}
