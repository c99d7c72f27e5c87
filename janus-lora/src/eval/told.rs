//! What heads tell of pictures, and its figures.

use candle_core::{D, Tensor};
use janus_core::ops::HeadLoss;
use janus_core::pass::Pass;
use serde_json::Value;

use super::Evaluation;
use super::boxes::Detections;
use super::classes::Confusion;
use super::masks::MaskFigures;
use super::ranks::RankMetrics;
use crate::adapter::AdapterError;
use crate::error::Result;
use crate::heads::contrast::info_nce;
use crate::heads::{HeadKind, locate, retrieve, segment};
use crate::tasks::{Batch, PictureBatch, Target};

/// Evaluates a table of a head of this kind; `None` without its head.
pub(super) fn evaluate(evaluation: &Evaluation<'_>, kind: &HeadKind) -> Result<Option<Value>> {
    let Some(head) = evaluation.heads.get(evaluation.name) else { return Ok(None) };
    if head.kind != *kind {
        let name = evaluation.name.to_owned();
        if head.kind.task() != kind.task() {
            let (expected, got) = (kind.task(), head.kind.task());
            return Err(AdapterError::OtherTask { name, expected, got }.into());
        }
        let (expected, got) = (kind.labels().to_vec(), head.kind.labels().to_vec());
        return Err(AdapterError::OtherLabels { name, expected, got }.into());
    }
    let value = match kind {
        HeadKind::Classify { labels } => serde_json::to_value(classes(evaluation, labels)?),
        HeadKind::Locate { labels } => serde_json::to_value(boxes(evaluation, labels)?),
        HeadKind::Segment {} => serde_json::to_value(masks(evaluation)?),
        HeadKind::Retrieve {} => serde_json::to_value(ranks(evaluation)?),
    };
    Ok(Some(value.expect("plain numbers are JSON")))
}

/// Hands out all batches of pictures.
fn each(evaluation: &Evaluation<'_>, mut f: impl FnMut(&PictureBatch) -> Result<()>) -> Result<()> {
    evaluation.each(|_, batch| if let Batch::Pictures(batch) = batch { f(&batch) } else { Ok(()) })
}

fn number(scalar: &Tensor) -> Result<f64> {
    Ok(f64::from(scalar.to_scalar::<f32>()?))
}

fn classes(evaluation: &Evaluation<'_>, labels: &[String]) -> Result<super::classes::ClassMetrics> {
    let (model, heads, pass) = (evaluation.model, evaluation.heads, Pass::inference());
    let (mut confusion, mut sum) = (Confusion::new(labels.len()), 0.0);
    each(evaluation, |batch| {
        let logits = batch.label_logits(model, &pass, heads)?;
        let expected = batch.labels();
        sum += number(&HeadLoss::of_logits(&logits, &expected)?.sum)?;
        let answered: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        for (expected, answered) in expected.iter().zip(answered) {
            confusion.add(*expected as usize, answered as usize);
        }
        Ok(())
    })?;
    Ok(confusion.metrics(labels, sum))
}

fn boxes(evaluation: &Evaluation<'_>, labels: &[String]) -> Result<super::boxes::BoxMetrics> {
    let (model, heads, pass) = (evaluation.model, evaluation.heads, Pass::inference());
    let (mut detections, mut sum) = (Detections::new(labels.len()), 0.0);
    each(evaluation, |batch| {
        let places = batch.places(model, &pass, heads)?;
        sum += number(&locate::loss(&places, &batch.boxes_in_square())?)?;
        for (truth, found) in batch.boxes().iter().zip(batch.found(&places)?) {
            detections.add(truth, &found);
        }
        Ok(())
    })?;
    Ok(detections.metrics(labels, sum))
}

fn masks(evaluation: &Evaluation<'_>) -> Result<super::masks::MaskMetrics> {
    let (model, heads, pass) = (evaluation.model, evaluation.heads, Pass::inference());
    let side = segment::side(model.config());
    let (mut figures, mut sum) = (MaskFigures::new(), 0.0);
    each(evaluation, |batch| {
        let logits = batch.mask_logits(model, &pass, heads)?;
        sum += number(&batch.mask_loss(model, &logits)?)?;
        for ((target, frame), logits) in batch.targets.iter().zip(&batch.frames).zip(logits.to_vec3::<f32>()?) {
            let Target::Mask(mask) = target else { continue };
            let Some(truth) = &mask.pixels else { continue };
            let answered = segment::mask(&logits.concat(), side, model.config().vision.image_size, frame);
            figures.add(truth, &answered, &mask.ignored);
        }
        Ok(())
    })?;
    Ok(figures.metrics(sum))
}

/// Over all rows: a caption is looked for among those of the whole table.
fn ranks(evaluation: &Evaluation<'_>) -> Result<RankMetrics> {
    let (model, heads, pass) = (evaluation.model, evaluation.heads, Pass::inference());
    let (mut images, mut captions, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let mut sum = 0.0;
    each(evaluation, |batch| {
        let (own_images, own_captions) = batch.vectors(model, &pass, heads)?;
        let temperature = retrieve::log_temperature(batch.head(heads)?);
        let same = |one, other| batch.is_same_caption(one, other);
        sum += number(&info_nce(&own_images, &own_captions, temperature, same)?.sum)?;
        images.push(own_images);
        captions.push(own_captions);
        ids.extend(batch.targets.iter().map(|target| target.caption().to_vec()));
        Ok(())
    })?;
    let similarities = if images.is_empty() {
        Vec::new()
    } else {
        Tensor::cat(&images, 0)?.matmul(&Tensor::cat(&captions, 0)?.t()?)?.flatten_all()?.to_vec1::<f32>()?
    };
    Ok(RankMetrics::new(&similarities, ids.len(), |one, other| ids[one] == ids[other], sum))
}
