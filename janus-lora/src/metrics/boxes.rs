//! Figures of answers that are boxes with labels.
//!
//! Mean average precision as COCO has it (Lin et al., arXiv:1405.0312; `pycocotools/cocoeval.py`) of boxes of every size, at
//! most 100 a picture and label, without crowds: precision at 101 recalls, the best that this or a higher recall has, mean
//! over the labels that are in some picture.

use std::cmp::Ordering;

use serde::Serialize;

use crate::detection::{Detection, LabelledBox};

/// Boxes of a label that count, of each picture.
const MOST_BOXES: usize = 100;
/// Recalls whose precision counts, from 0 to 1 in equal steps.
const RECALLS: usize = 101;
/// Overlaps that `map_50_95` is the mean of, from 0.5 to 0.95 in equal steps.
const OVERLAPS: usize = 10;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BoxMetrics {
    /// Rows.
    pub(crate) rows: usize,
    /// Mean loss of the rows.
    pub(crate) loss: f64,
    /// Mean average precision of boxes that overlap by half.
    pub(crate) map_50: f64,
    /// Mean average precision over overlaps from 0.5 to 0.95.
    pub(crate) map_50_95: f64,
    /// Mean over true boxes of the overlap with the best of the answer; see [`Detections::mean_iou`].
    pub(crate) mean_iou: f64,
    /// `map_50` of the mean true box with the most frequent label in every row: an answer without looking.
    pub(crate) mean_box_map_50: f64,
    /// `mean_iou` of the same.
    pub(crate) mean_box_iou: f64,
    /// The labels.
    pub(crate) labels: Vec<String>,
}

/// Intersection over union, from 0 to 1; 0 of boxes without area or with corners that are no numbers.
fn iou(one: [f32; 4], other: [f32; 4]) -> f64 {
    let area = |[left, top, right, bottom]: [f64; 4]| (right - left).max(0.0) * (bottom - top).max(0.0);
    let is_finite = one.iter().chain(&other).all(|corner| corner.is_finite());
    let (one, other) = (one.map(f64::from), other.map(f64::from));
    let shared = area([one[0].max(other[0]), one[1].max(other[1]), one[2].min(other[2]), one[3].min(other[3])]);
    let whole = area(one) + area(other) - shared;
    if is_finite && whole > 0.0 { shared / whole } else { 0.0 }
}

/// The highest score first.
fn by_score(one: &Detection, other: &Detection) -> Ordering {
    other.score.total_cmp(&one.score)
}

/// True and found boxes of rows.
#[derive(Debug, Clone)]
pub(crate) struct Detections {
    labels: usize,
    rows: Vec<(Vec<LabelledBox>, Vec<Detection>)>,
}

/// One label's boxes of one row.
struct Pair {
    row: usize,
    truth: Vec<[f32; 4]>,
    found: Vec<Detection>,
}

impl Pair {
    /// For each of the found boxes whether it has a true one at an overlap.
    ///
    /// `overlaps` has a line for each found box. Those with higher scores choose first, each the true box that it overlaps
    /// most and that is left, of equal ones the last.
    fn hits(&self, overlaps: &[Vec<f64>], least: f64) -> Vec<bool> {
        let mut left = vec![true; self.truth.len()];
        let mut hit = |line: &Vec<f64>| {
            let free = line.iter().zip(&mut left).filter(|(overlap, left)| **left && **overlap >= least);
            let best = free.max_by(|one, other| one.0.total_cmp(other.0));
            best.map(|(_, left)| *left = false).is_some()
        };
        overlaps.iter().map(&mut hit).collect()
    }
}

/// A label's boxes of the last row of these, which is made one of if it is another.
fn of_row(pairs: &mut Vec<Pair>, row: usize) -> &mut Pair {
    if pairs.last().is_none_or(|pair| pair.row != row) {
        pairs.push(Pair { row, truth: Vec::new(), found: Vec::new() });
    }
    pairs.last_mut().expect("there is one")
}

impl Detections {
    /// Of so many labels.
    pub(crate) fn new(labels: usize) -> Self {
        Self { labels, rows: Vec::new() }
    }

    /// Takes one row's; boxes of other labels are left out.
    pub(crate) fn add(&mut self, truth: &[LabelledBox], found: &[Detection]) {
        let is_known = |label: u32| (label as usize) < self.labels;
        let truth = truth.iter().filter(|marked| is_known(marked.label)).copied().collect();
        let found = found.iter().filter(|found| is_known(found.label)).copied().collect();
        self.rows.push((truth, found));
    }

    /// By label, the rows that have boxes of it.
    fn pairs(&self) -> Vec<Vec<Pair>> {
        let mut pairs: Vec<Vec<Pair>> = (0..self.labels).map(|_| Vec::new()).collect();
        for (row, (truth, found)) in self.rows.iter().enumerate() {
            for marked in truth {
                of_row(&mut pairs[marked.label as usize], row).truth.push(marked.corners);
            }
            for found in found {
                of_row(&mut pairs[found.label as usize], row).found.push(*found);
            }
        }
        for pair in pairs.iter_mut().flatten() {
            pair.found.sort_by(by_score);
            pair.found.truncate(MOST_BOXES);
        }
        pairs
    }

    /// Mean over the labels that have true boxes of the mean over overlaps of average precision; 0 where none has.
    fn mean_average_precision(&self, overlaps: &[f64]) -> f64 {
        let precisions: Vec<f64> = self.pairs().iter().filter_map(|pairs| average_precision(pairs, overlaps)).collect();
        precisions.iter().sum::<f64>() / precisions.len().max(1) as f64
    }

    /// Mean average precision of boxes that overlap by half.
    pub(crate) fn map_50(&self) -> f64 {
        self.mean_average_precision(&[0.5])
    }

    /// Mean average precision over overlaps from 0.5 to 0.95.
    pub(crate) fn map_50_95(&self) -> f64 {
        // To the last bit as numpy has these: an overlap may be just as large.
        let step = (0.95 - 0.5) / (OVERLAPS - 1) as f64;
        let overlaps: Vec<f64> = (0..OVERLAPS).map(|number| (0.5 + number as f64 * step).min(0.95)).collect();
        self.mean_average_precision(&overlaps)
    }

    /// Mean over all true boxes of the overlap with the best of the row's found boxes that have the same label.
    ///
    /// Of a row with `n` true boxes only the `n` found ones with the highest scores are looked at, so that many guesses are no
    /// help; one may be the best of several true ones.
    pub(crate) fn mean_iou(&self) -> f64 {
        let (mut sum, mut boxes) = (0.0, 0);
        for (truth, found) in &self.rows {
            let mut found = found.clone();
            found.sort_by(by_score);
            found.truncate(truth.len());
            for marked in truth {
                let same = found.iter().filter(|found| found.label == marked.label);
                sum += same.map(|found| iou(found.corners, marked.corners)).fold(0.0, f64::max);
            }
            boxes += truth.len();
        }
        sum / boxes.max(1) as f64
    }

    /// Mean of all true boxes; `None` where there are none.
    fn mean_box(&self) -> Option<[f32; 4]> {
        let (mut sum, mut boxes) = ([0f64; 4], 0usize);
        for marked in self.rows.iter().flat_map(|(truth, _)| truth) {
            sum.iter_mut().zip(marked.corners).for_each(|(sum, corner)| *sum += f64::from(corner));
            boxes += 1;
        }
        (boxes > 0).then(|| sum.map(|sum| (sum / boxes as f64) as f32))
    }

    /// The label that most true boxes have, of equal ones the first.
    fn most_frequent_label(&self) -> u32 {
        let mut counts = vec![0; self.labels];
        for marked in self.rows.iter().flat_map(|(truth, _)| truth) {
            counts[marked.label as usize] += 1;
        }
        (0..).zip(counts).max_by_key(|(label, count)| (*count, std::cmp::Reverse(*label))).map_or(0, |(label, _)| label)
    }

    /// The same rows, each answered with the mean true box and the most frequent label.
    pub(crate) fn baseline(&self) -> Detections {
        let label = self.most_frequent_label();
        let answer = self.mean_box().map(|corners| Detection { corners, label, score: 1.0 });
        let rows = self.rows.iter().map(|(truth, _)| (truth.clone(), answer.into_iter().collect())).collect();
        Detections { labels: self.labels, rows }
    }

    /// All figures; `loss_sum` over all rows.
    pub(crate) fn metrics(self, labels: &[String], loss_sum: f64) -> BoxMetrics {
        let baseline = self.baseline();
        BoxMetrics {
            rows: self.rows.len(),
            loss: loss_sum / self.rows.len().max(1) as f64,
            map_50: self.map_50(),
            map_50_95: self.map_50_95(),
            mean_iou: self.mean_iou(),
            mean_box_map_50: baseline.map_50(),
            mean_box_iou: baseline.mean_iou(),
            labels: labels.to_vec(),
        }
    }
}

/// Of one label's boxes, mean over overlaps; `None` without true ones.
fn average_precision(pairs: &[Pair], overlaps: &[f64]) -> Option<f64> {
    let boxes: usize = pairs.iter().map(|pair| pair.truth.len()).sum();
    if boxes == 0 {
        return None;
    }
    let shares: Vec<Vec<Vec<f64>>> = pairs
        .iter()
        .map(|pair| {
            let line = |found: &Detection| pair.truth.iter().map(|truth| iou(found.corners, *truth)).collect();
            pair.found.iter().map(line).collect()
        })
        .collect();
    let mut sum = 0.0;
    for least in overlaps {
        let hits = pairs.iter().zip(&shares).flat_map(|(pair, shares)| pair.hits(shares, *least));
        let mut all: Vec<(&Detection, bool)> = pairs.iter().flat_map(|pair| &pair.found).zip(hits).collect();
        // Equal scores stay in the order of the rows.
        all.sort_by(|one, other| by_score(one.0, other.0));
        sum += area(all.into_iter().map(|(_, hit)| hit), boxes);
    }
    Some(sum / overlaps.len() as f64)
}

/// Mean of the precisions at 101 recalls, of hits and misses by falling score.
fn area(hits: impl Iterator<Item = bool>, boxes: usize) -> f64 {
    let (mut right, mut curve) = (0, Vec::new());
    for (answered, hit) in (1usize..).zip(hits) {
        right += usize::from(hit);
        curve.push((right as f64 / boxes as f64, right as f64 / answered as f64));
    }
    let mut best = 0.0;
    for (_, precision) in curve.iter_mut().rev() {
        best = f64::max(best, *precision);
        *precision = best;
    }
    // Multiplied, as numpy does: a recall may be just as large.
    let at = |number: usize| {
        let least = number as f64 * (1.0 / (RECALLS - 1) as f64);
        curve.get(curve.partition_point(|(recall, _)| *recall < least)).map_or(0.0, |(_, precision)| *precision)
    };
    (0..RECALLS).map(at).sum::<f64>() / RECALLS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(corners: [f32; 4], label: u32, score: f32) -> Detection {
        Detection { corners, label, score }
    }

    /// Made by `tests/metrics_golden.py` with pycocotools.
    #[test]
    fn figures_are_those_of_pycocotools() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/boxes.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 7);
        for case in cases {
            let mut detections = Detections::new(case["labels"].as_u64().unwrap() as usize);
            for image in case["images"].as_array().unwrap() {
                let truth: Vec<(u32, [f32; 4])> = serde_json::from_value(image["truth"].clone()).unwrap();
                let answer: Vec<(u32, [f32; 4], f32)> = serde_json::from_value(image["found"].clone()).unwrap();
                let truth: Vec<LabelledBox> = truth.iter().map(|(label, corners)| marked(*corners, *label)).collect();
                let answer: Vec<Detection> =
                    answer.iter().map(|(label, at, score)| found(*at, *label, *score)).collect();
                detections.add(&truth, &answer);
            }
            let metrics = detections.metrics(&["a".into()], 2.0);
            let near = |got: f64, name: &str| {
                let truth = case[name].as_f64().unwrap();
                assert!((got - truth).abs() < 1e-12, "{}: {name}: {got} {truth}", case["name"]);
            };
            near(metrics.map_50, "map_50");
            near(metrics.map_50_95, "map_50_95");
            near(metrics.mean_iou, "mean_iou");
            near(metrics.mean_box_map_50, "mean_box_map_50");
            near(metrics.mean_box_iou, "mean_box_iou");
            assert_eq!(metrics.loss, 2.0 / metrics.rows as f64);
        }
    }

    fn marked(corners: [f32; 4], label: u32) -> LabelledBox {
        LabelledBox { corners, label }
    }

    #[test]
    fn boxes_that_are_none_overlap_nothing() {
        let unit = [0.0, 0.0, 1.0, 1.0];
        assert_eq!(iou(unit, unit), 1.0);
        for other in [[0.5; 4], [1.0, 0.0, 0.0, 1.0], [f32::NAN, 0.0, 1.0, 1.0], [0.0, 0.0, f32::INFINITY, 1.0]] {
            assert_eq!((iou(unit, other), iou(other, unit), iou(other, other)), (0.0, 0.0, 0.0));
        }
    }

    #[test]
    fn other_labels_and_scores_are_no_panic() {
        let mut detections = Detections::new(1);
        let unit = [0.0, 0.0, 1.0, 1.0];
        detections.add(&[marked(unit, 0), marked(unit, 7)], &[found(unit, 9, 1.0), found(unit, 0, f32::NAN)]);
        let metrics = detections.metrics(&[], 0.0);
        assert_eq!((metrics.map_50, metrics.mean_iou, metrics.mean_box_map_50), (1.0, 1.0, 1.0));
    }

    #[test]
    fn no_rows_are_no_division() {
        let metrics = Detections::new(0).metrics(&[], 0.0);
        assert_eq!((metrics.rows, metrics.loss, metrics.map_50, metrics.mean_box_iou), (0, 0.0, 0.0, 0.0));
    }
}
