//! Figures of answers that are masks.
//!
//! Dice is 2·|A∩B| / (|A| + |B|) and intersection over union |A∩B| / |A∪B|: scikit-learn's `f1_score` and `jaccard_score` of
//! a row's pixels with `zero_division=1` (`sklearn/metrics/_classification.py`). Both are 1 of two empty masks. torchmetrics'
//! `dice_score` (`functional/segmentation/dice.py`) has no number there and is the same elsewhere; its `BinaryF1Score` has 0
//! there unless told otherwise.

use serde::Serialize;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MaskMetrics {
    /// Rows.
    pub(crate) rows: usize,
    /// Mean loss of the rows.
    pub(crate) loss: f64,
    /// Mean over rows of Dice.
    pub(crate) dice: f64,
    /// Mean over rows of the intersection over union.
    pub(crate) iou: f64,
    /// Dice of all rows' pixels together.
    pub(crate) pooled_dice: f64,
    /// What empty masks would have as `dice`: the share of rows whose mask is empty.
    pub(crate) empty_mask_dice: f64,
}

/// Sums over rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct MaskFigures {
    rows: usize,
    dice: f64,
    iou: f64,
    empty_rows: usize,
    /// Pixels that both masks of a row have.
    shared: usize,
    /// Pixels of the one and pixels of the other.
    either: usize,
}

impl MaskFigures {
    /// Of no rows.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes one row's, all `[height · width]` at the picture's own size; pixels that one lacks are not in its mask. Those that
    /// are `ignored` count in none.
    pub(crate) fn add(&mut self, truth: &[bool], answered: &[bool], ignored: &[bool]) {
        let is_counted = |place: usize| !ignored.get(place).copied().unwrap_or(false);
        let count =
            |mask: &[bool]| mask.iter().enumerate().filter(|(place, pixel)| **pixel && is_counted(*place)).count();
        let both = truth.iter().zip(answered).enumerate();
        let shared = both.filter(|(place, (truth, answered))| **truth && **answered && is_counted(*place)).count();
        let (own, either) = (count(truth), count(truth) + count(answered));
        self.rows += 1;
        self.dice += share(2 * shared, either);
        self.iou += share(shared, either - shared);
        self.empty_rows += usize::from(own == 0);
        self.shared += shared;
        self.either += either;
    }

    /// All figures; `loss_sum` over all rows.
    pub(crate) fn metrics(self, loss_sum: f64) -> MaskMetrics {
        let rows = self.rows.max(1) as f64;
        MaskMetrics {
            rows: self.rows,
            loss: loss_sum / rows,
            dice: self.dice / rows,
            iou: self.iou / rows,
            pooled_dice: if self.rows > 0 { share(2 * self.shared, self.either) } else { 0.0 },
            empty_mask_dice: self.empty_rows as f64 / rows,
        }
    }
}

/// 1 of nothing.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with scikit-learn, and with torchmetrics where it agrees.
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/masks.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let masks = |name: &str| -> Vec<Vec<u8>> { serde_json::from_value(case[name].clone()).unwrap() };
            let mut figures = MaskFigures::new();
            for (truth, answered) in masks("truth").iter().zip(&masks("answered")) {
                let pixels = |mask: &[u8]| -> Vec<bool> { mask.iter().map(|pixel| *pixel == 1).collect() };
                figures.add(&pixels(truth), &pixels(answered), &[]);
            }
            let metrics = figures.metrics(3.0);
            let near = |got: f64, name: &str| {
                let truth = case[name].as_f64().unwrap();
                assert!((got - truth).abs() < 1e-12, "{name}: {got} {truth}");
            };
            near(metrics.dice, "dice");
            near(metrics.iou, "iou");
            near(metrics.pooled_dice, "pooled_dice");
            near(metrics.empty_mask_dice, "empty_mask_dice");
            assert_eq!(metrics.loss, 3.0 / metrics.rows as f64);
        }
    }

    #[test]
    fn masks_of_different_lengths_are_no_panic() {
        let mut figures = MaskFigures::new();
        figures.add(&[true], &[true, true, false], &[]);
        assert!((figures.metrics(0.0).dice - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn ignored_pixels_count_in_neither_mask() {
        let truth = [true, true, false, false, true, false];
        let answered = [true, false, true, false, false, true];
        let ignored = [false, false, false, false, true, true];
        let (mut with, mut without) = (MaskFigures::new(), MaskFigures::new());
        with.add(&truth, &answered, &ignored);
        without.add(&truth[..4], &answered[..4], &[]);
        let (with, without) = (with.metrics(1.0), without.metrics(1.0));
        assert_eq!(with, without);
        assert_eq!((with.dice, with.iou), (0.5, 1.0 / 3.0));
        let mut all = MaskFigures::new();
        all.add(&truth, &answered, &[true; 6]);
        assert_eq!(all.metrics(0.0).dice, 1.0, "as of two empty masks");
    }

    #[test]
    fn no_rows_are_no_division() {
        let metrics = MaskFigures::new().metrics(0.0);
        assert_eq!((metrics.rows, metrics.loss, metrics.dice, metrics.pooled_dice), (0, 0.0, 0.0, 0.0));
    }
}
