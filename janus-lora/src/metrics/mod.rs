//! Figures of answers beside what is expected: pure functions of texts, pictures, labels, boxes, masks and similarities.
//!
//! | file | what |
//! | --- | --- |
//! | `bleu`, `rouge` | texts |
//! | `image_similarity`, `frechet` | two pictures, and many |
//! | `classes`, `boxes`, `masks`, `ranks` | labels, boxes, masks and retrieval |

pub(crate) mod bleu;
pub(crate) mod boxes;
pub(crate) mod classes;
pub(crate) mod frechet;
pub(crate) mod image_similarity;
pub(crate) mod masks;
pub(crate) mod ranks;
pub(crate) mod rouge;

use crate::detection::{Detection, LabelledBox};

/// How far the best of a row's detected boxes overlap its true ones as intersection over union, on average; of a row without true
/// ones, whether nothing was detected.
pub(crate) fn row_iou(labels: usize, truth: &[LabelledBox], detected: &[Detection]) -> f64 {
    if truth.is_empty() {
        return if detected.is_empty() { 1.0 } else { 0.0 };
    }
    let mut detections = boxes::Detections::new(labels);
    detections.add(truth, detected);
    detections.mean_iou()
}

/// How far a mask overlaps the true one, as Dice, without the pixels that are `ignored`.
pub(crate) fn row_dice(truth: &[bool], answered: &[bool], ignored: &[bool]) -> f64 {
    let mut figures = masks::MaskFigures::new();
    figures.add(truth, answered, ignored);
    figures.metrics(0.0).dice
}
