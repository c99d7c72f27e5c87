//! Figures of answers that are one of some labels.
//!
//! Accuracy, macro F1 and confusion matrix as scikit-learn has them (`sklearn/metrics/_classification.py`): F1 of a label is
//! 2·TP / (2·TP + FP + FN), zero where that is 0 / 0, and counts where the label was expected or answered.

use serde::Serialize;

/// Largest confusion matrix that is written down, labels a side.
const MAX_CONFUSION_LABELS: usize = 100;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ClassMetrics {
    /// Rows.
    pub(crate) rows: usize,
    /// Mean cross-entropy of the labels, in nats.
    pub(crate) loss: f64,
    /// Share of rows whose label was answered.
    pub(crate) accuracy: f64,
    /// Mean over labels of F1.
    pub(crate) macro_f1: f64,
    /// Share of the rows that have the most frequent label: what the best answer without looking gets.
    pub(crate) majority_accuracy: f64,
    /// The labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<String>,
    /// Rows by expected (first index) and answered label; absent of more than 100 labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) confusion: Vec<Vec<usize>>,
}

/// Counts of expected and answered labels.
#[derive(Debug, Clone)]
pub(crate) struct Confusion {
    counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// Of so many labels.
    pub(crate) fn new(labels: usize) -> Self {
        Self { counts: vec![vec![0; labels]; labels] }
    }

    /// Takes one row's.
    pub(crate) fn add(&mut self, expected: usize, answered: usize) {
        if let Some(count) = self.counts.get_mut(expected).and_then(|row| row.get_mut(answered)) {
            *count += 1;
        }
    }

    fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// Share of rows on the diagonal.
    pub(crate) fn accuracy(&self) -> f64 {
        let right: usize = self.counts.iter().enumerate().map(|(label, row)| row[label]).sum();
        right as f64 / self.total().max(1) as f64
    }

    /// Mean of F1 over the labels that were expected or answered.
    pub(crate) fn macro_f1(&self) -> f64 {
        let f1 = |label: usize| -> Option<f64> {
            let right = self.counts[label][label];
            let expected: usize = self.counts[label].iter().sum();
            let answered: usize = self.counts.iter().map(|row| row[label]).sum();
            (expected + answered > 0).then(|| 2.0 * right as f64 / (expected + answered) as f64)
        };
        let all: Vec<f64> = (0..self.counts.len()).filter_map(f1).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    /// Share of the most frequent expected label.
    pub(crate) fn majority(&self) -> f64 {
        let most = self.counts.iter().map(|row| row.iter().sum::<usize>()).max().unwrap_or(0);
        most as f64 / self.total().max(1) as f64
    }

    /// All figures; `loss_sum` over all rows.
    pub(crate) fn metrics(self, labels: &[String], loss_sum: f64) -> ClassMetrics {
        let rows = self.total();
        let shown = labels.len() <= MAX_CONFUSION_LABELS;
        ClassMetrics {
            rows,
            loss: loss_sum / rows.max(1) as f64,
            accuracy: self.accuracy(),
            macro_f1: self.macro_f1(),
            majority_accuracy: self.majority(),
            labels: if shown { labels.to_vec() } else { Vec::new() },
            confusion: if shown { self.counts } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with scikit-learn.
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/classes.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let numbers = |name: &str| -> Vec<usize> { serde_json::from_value(case[name].clone()).unwrap() };
            let (expected, answered) = (numbers("expected"), numbers("answered"));
            let labels = case["labels"].as_u64().unwrap() as usize;
            let mut confusion = Confusion::new(labels);
            for (expected, answered) in expected.iter().zip(&answered) {
                confusion.add(*expected, *answered);
            }
            let near = |got: f64, name: &str| {
                let truth = case[name].as_f64().unwrap();
                assert!((got - truth).abs() < 1e-12, "{name}: {got} {truth}");
            };
            near(confusion.accuracy(), "accuracy");
            near(confusion.macro_f1(), "macro_f1");
            let counts: Vec<Vec<usize>> = serde_json::from_value(case["confusion"].clone()).unwrap();
            assert_eq!(confusion.counts, counts);
        }
    }

    #[test]
    fn no_rows_are_no_division() {
        let metrics = Confusion::new(3).metrics(&["a".into(), "b".into(), "c".into()], 0.0);
        assert_eq!((metrics.rows, metrics.accuracy, metrics.macro_f1, metrics.loss), (0, 0.0, 0.0, 0.0));
    }
}
