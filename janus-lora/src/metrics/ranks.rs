//! Figures of looking for pictures' captions and captions' pictures.
//!
//! Recall at `k` is the share of what is looked for that has something right among its `k` most similar, as CLIP has it
//! (Radford et al., arXiv:2103.00020): torchmetrics' `RetrievalHitRate` (`torchmetrics/functional/retrieval/hit_rate.py`),
//! which leaves open the order of equal similarities.

use serde::Serialize;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RankMetrics {
    /// Rows.
    pub(crate) rows: usize,
    /// Mean loss of the rows, in nats.
    pub(crate) loss: f64,
    /// Share of pictures whose most similar caption is theirs.
    pub(crate) recall_at_1: f64,
    /// Share of pictures that have their caption among the 5 most similar.
    pub(crate) recall_at_5: f64,
    /// Share of pictures that have their caption among the 10 most similar.
    pub(crate) recall_at_10: f64,
    /// Share of captions whose most similar picture is theirs.
    pub(crate) caption_recall_at_1: f64,
    /// Share of captions that have their picture among the 5 most similar.
    pub(crate) caption_recall_at_5: f64,
    /// Share of captions that have their picture among the 10 most similar.
    pub(crate) caption_recall_at_10: f64,
    /// What both have at 1 in a random order, on average.
    pub(crate) chance_recall_at_1: f64,
}

impl RankMetrics {
    /// Of so many pictures and as many captions.
    ///
    /// `similarities` is `[rows, rows]`, a picture's in a line. `same` says whether a picture's own caption is the same as
    /// another: both numbers are those of rows. `loss_sum` is over all rows.
    pub(crate) fn new(similarities: &[f32], rows: usize, same: impl Fn(usize, usize) -> bool, loss_sum: f64) -> Self {
        let by_caption: Vec<f32> =
            (0..rows).flat_map(|caption| similarities.iter().skip(caption).step_by(rows)).copied().collect();
        let of_pictures = ranks(similarities, rows, rows, &same);
        let of_captions = ranks(&by_caption, rows, rows, |caption, picture| same(picture, caption));
        let right: usize = (0..rows).map(|one| (0..rows).filter(|other| same(one, *other)).count()).sum();
        let count = rows.max(1) as f64;
        Self {
            rows,
            loss: loss_sum / count,
            recall_at_1: recall_at(&of_pictures, 1),
            recall_at_5: recall_at(&of_pictures, 5),
            recall_at_10: recall_at(&of_pictures, 10),
            caption_recall_at_1: recall_at(&of_captions, 1),
            caption_recall_at_5: recall_at(&of_captions, 5),
            caption_recall_at_10: recall_at(&of_captions, 10),
            chance_recall_at_1: right as f64 / (count * count),
        }
    }
}

/// For each row how many columns come before the best of those that are the `same`: more similar ones, and those as similar
/// that stand before it. `usize::MAX` where none is the same, or only ones whose similarity is not a number.
///
/// `similarities` is `[rows, columns]`; rows that it does not have are not counted.
fn ranks(similarities: &[f32], rows: usize, columns: usize, same: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let rank = |(row, line): (usize, &[f32])| {
        let right = line.iter().enumerate().filter(|(column, similarity)| !similarity.is_nan() && same(row, *column));
        // Of equal ones the first.
        let best = right.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map_or(usize::MAX, |(place, best)| {
            let is_before =
                |(column, similarity): &(usize, &f32)| *similarity > best || (*similarity == best && *column < place);
            line.iter().enumerate().filter(is_before).count()
        })
    };
    similarities.chunks_exact(columns.max(1)).take(rows).enumerate().map(rank).collect()
}

/// Share of ranks, counted from 0, that are among the first `k`.
fn recall_at(ranks: &[usize], k: usize) -> f64 {
    ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with torchmetrics.
    #[test]
    fn recall_is_that_of_torchmetrics() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/ranks.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let lines: Vec<Vec<f32>> = serde_json::from_value(case["similarities"].clone()).unwrap();
            let same: Vec<Vec<u8>> = serde_json::from_value(case["same"].clone()).unwrap();
            let same = |row: usize, column: usize| same[row][column] == 1;
            let columns = lines[0].len();
            let of_rows = ranks(&lines.concat(), lines.len(), columns, same);
            let near = |got: f64, name: &str| {
                let truth = case[name].as_f64().unwrap();
                assert!((got - truth).abs() < 1e-6, "{name}: {got} {truth}");
            };
            near(recall_at(&of_rows, 1), "recall_at_1");
            near(recall_at(&of_rows, 5), "recall_at_5");
            near(recall_at(&of_rows, 10), "recall_at_10");
            if columns == lines.len() {
                let metrics = RankMetrics::new(&lines.concat(), columns, same, 2.0);
                near(metrics.recall_at_1, "recall_at_1");
                near(metrics.recall_at_5, "recall_at_5");
                near(metrics.recall_at_10, "recall_at_10");
                near(metrics.caption_recall_at_1, "caption_recall_at_1");
                near(metrics.caption_recall_at_5, "caption_recall_at_5");
                near(metrics.caption_recall_at_10, "caption_recall_at_10");
                near(metrics.chance_recall_at_1, "chance_recall_at_1");
                assert_eq!((metrics.rows, metrics.loss), (columns, 2.0 / columns as f64));
            }
        }
    }

    /// A head that says the same of everything finds the first only.
    #[test]
    fn equal_similarities_before_count() {
        assert_eq!(ranks(&[0.5; 9], 3, 3, |row, column| row == column), [0, 1, 2]);
        assert_eq!(ranks(&[0.5; 3], 1, 3, |_, column| column > 0), [1]);
        assert_eq!(ranks(&[0.5, 0.1, 0.7, 0.7], 1, 4, |_, column| column < 2), [2]);
    }

    #[test]
    fn no_numbers_are_found_by_nobody() {
        assert_eq!(ranks(&[f32::NAN; 4], 2, 2, |row, column| row == column), [usize::MAX; 2]);
        assert_eq!(ranks(&[f32::NAN, 0.1], 1, 2, |_, column| column == 1), [0]);
        assert_eq!(ranks(&[0.1; 2], 1, 2, |_, _| false), [usize::MAX]);
    }

    #[test]
    fn no_rows_are_no_division() {
        let metrics = RankMetrics::new(&[], 0, |_, _| true, 0.0);
        assert_eq!((metrics.rows, metrics.loss, metrics.recall_at_1, metrics.chance_recall_at_1), (0, 0.0, 0.0, 0.0));
    }
}
