//! What heads tell of rows' pictures, in words and drawn over them.

use candle_core::D;
use image::RgbImage;
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::processing::pixels_to_images;

use super::ReportError;
use crate::base::Base;
use crate::data::Row;
use crate::error::Result;
use crate::eval::{row_dice, row_iou};
use crate::heads::locate::Marked;
use crate::heads::{HeadKind, Heads, segment};
use crate::overlay::{Overlay, SHOWN_SCORE, words};
use crate::tasks::{Batch, Context, PictureBatch, Sample, Target, Task};

/// What is told of one row.
#[derive(Debug)]
pub(super) struct Told {
    /// What is true of it.
    pub(super) expected: String,
    pub(super) answer: String,
    /// The picture with what was found drawn over it.
    pub(super) overlay: Option<RgbImage>,
    /// The picture with what is true drawn over it.
    pub(super) truth: Option<RgbImage>,
    /// How far what was found overlaps what is true, from 0 to 1: of boxes IoU, of masks Dice.
    pub(super) score: Option<f64>,
}

/// A row's picture as it comes back from its codes.
fn rebuilt(task: &dyn Task, row: &Row, model: &Janus, base: &Base) -> Result<Told> {
    let sample = task.sample(Context { base, model, draw: None }, row)?;
    let Batch::Pixels(batch) = Batch::collate(base, &[sample])? else {
        return Err(ReportError::Picture { reason: "a row without pixels".into() }.into());
    };
    let again = batch.reconstruction(model, &Pass::inference(), &batch.pixels(model)?)?;
    let different: std::collections::BTreeSet<u32> = again.codes.iter().copied().collect();
    let answer = format!("{} places, {} different codes", again.codes.len(), different.len());
    let overlay = pixels_to_images(&again.pixels.contiguous()?)?.into_iter().next();
    Ok(Told { expected: String::new(), answer, overlay, truth: None, score: None })
}

/// What the head of a table tells of a row; `None` where the task has none, or nothing that is told of a single picture.
pub(super) fn told(
    task: &dyn Task,
    name: &str,
    row: &Row,
    model: &Janus,
    base: &Base,
    heads: &Heads,
) -> Result<Option<Told>> {
    if task.rebuilds() {
        return rebuilt(task, row, model, base).map(Some);
    }
    let (Some(kind), true) = (task.head(), heads.contains_key(name)) else { return Ok(None) };
    let Sample::Picture(pictured) = task.sample(Context { base, model, draw: None }, row)? else { return Ok(None) };
    let Some(batch) = PictureBatch::of(vec![pictured]) else { return Ok(None) };
    let pass = Pass::inference();
    let picture = || -> Result<RgbImage> {
        let image = row.image("image").ok_or(janus_core::ModelError::NotLoaded { part: "row's image" })?;
        Ok(image.decode()?.into_image())
    };
    Ok(match kind {
        HeadKind::Classify { labels } => {
            let label = |number: Option<&u32>| number.and_then(|number| labels.get(*number as usize)).cloned();
            let answered: Vec<u32> = batch.label_logits(model, &pass, heads)?.argmax(D::Minus1)?.to_vec1()?;
            Some(Told {
                expected: label(batch.labels().first()).unwrap_or_default(),
                answer: label(answered.first()).unwrap_or_default(),
                overlay: None,
                truth: None,
                score: None,
            })
        }
        HeadKind::Locate { labels } => {
            let mut found = batch.found(&batch.places(model, &pass, heads)?)?.concat();
            found.retain(|found| found.score >= SHOWN_SCORE);
            let (picture, truth) = (picture()?, batch.boxes().concat());
            let failed = |reason| ReportError::Picture { reason };
            let drawn = Overlay::new(&picture).boxes(&found, &labels).map_err(failed)?;
            let mut true_ones = Overlay::new(&picture);
            for marked in &truth {
                let label = labels.get(marked.label as usize).map_or("", String::as_str);
                true_ones = true_ones.outlined(marked.corners, marked.label as usize, label).map_err(failed)?;
            }
            let marked = |marked: &Marked| {
                let label = labels.get(marked.label as usize).map_or("", String::as_str);
                format!("{label} at {}", marked.corners.map(|corner| format!("{corner:.1}")).join(", "))
            };
            let expected: Vec<String> = truth.iter().map(marked).collect();
            let expected = if expected.is_empty() { "nothing".to_owned() } else { expected.join("; ") };
            let score = row_iou(labels.len(), &truth, &found);
            Some(Told {
                expected,
                answer: words(&found, &labels),
                overlay: Some(drawn.into_picture()),
                truth: Some(true_ones.into_picture()),
                score: Some(score),
            })
        }
        HeadKind::Segment {} => {
            let logits: Vec<f32> = batch.mask_logits(model, &pass, heads)?.flatten_all()?.to_vec1()?;
            let (Some(frame), Some(Target::Mask(truth))) = (batch.frames.first(), batch.targets.first()) else {
                return Ok(None);
            };
            let config = model.config();
            let mask = segment::mask(&logits, segment::side(config), config.vision.image_size, frame);
            let share = |mask: &[bool]| {
                let inside = mask.iter().filter(|inside| **inside).count();
                format!("{:.2} % of the picture", 100.0 * inside as f64 / mask.len().max(1) as f64)
            };
            let picture = picture()?;
            let drawn = Overlay::new(&picture).mask(&mask, 0);
            let true_one = truth.pixels.as_deref().map(|truth| Overlay::new(&picture).mask(truth, 0).into_picture());
            let score = row_dice(truth, &mask);
            let expected = truth.pixels.as_deref().map(share).unwrap_or_default();
            let overlay = Some(drawn.into_picture());
            Some(Told { expected, answer: share(&mask), overlay, truth: true_one, score })
        }
        HeadKind::Retrieve {} => None,
    })
}
