//! What heads tell of rows' pictures, and what a tokenizer makes of them, for people to look at.

use std::collections::BTreeSet;

use image::RgbImage;
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::processing::pixels_to_images;

use super::ReportError;
use crate::base::Base;
use crate::data::Row;
use crate::error::Result;
use crate::heads::{HeadSample, Heads};
use crate::infer::{Engine, HeadRequest, Kind, Limits, Request};
use crate::tasks::{Batch, Context, Sample, Task};

/// A row's picture as it comes back from its codes.
fn rebuilt(task: &dyn Task, row: &Row, model: &Janus, base: &Base) -> Result<HeadSample> {
    let sample = task.sample(Context { base, model, draw: None }, row)?;
    let Batch::Pixels(batch) = Batch::collate(base, &[sample])? else {
        return Err(ReportError::Picture { reason: "a row without pixels".into() }.into());
    };
    let again = batch.reconstruction(model, &Pass::inference(), &batch.pixels(model)?)?;
    let different: BTreeSet<u32> = again.codes.iter().copied().collect();
    let answer = format!("{} places, {} different codes", again.codes.len(), different.len());
    let overlay = pixels_to_images(&again.pixels.contiguous()?)?.into_iter().next();
    Ok(HeadSample { expected: String::new(), answer, overlay, truth: None, score: None })
}

/// What the head of a table tells of a row; `None` where the task has none, or nothing that is told of a single picture.
pub(super) fn sample(
    task: &dyn Task,
    name: &str,
    row: &Row,
    model: &Janus,
    base: &Base,
    heads: &Heads,
) -> Result<Option<HeadSample>> {
    if task.rebuilds() {
        return rebuilt(task, row, model, base).map(Some);
    }
    let (Some(kind), true) = (task.head(), heads.contains_key(name)) else { return Ok(None) };
    if kind.form().is_contrastive() {
        return Ok(None);
    }
    let Sample::Picture(pictured) = task.sample(Context { base, model, draw: None }, row)? else { return Ok(None) };
    let asked = HeadRequest::of(&pictured);
    let answers = Engine::new(model, base, heads, Limits::of(model)?)
        .answer_all([Request::plain(Kind::Head(asked))], &mut |_| {})?;
    let Some(answer) = answers.into_iter().next().and_then(|answer| answer.into_head()) else { return Ok(None) };
    let image = row.image("image").ok_or(janus_core::ModelError::NotLoaded { part: "row's image" })?;
    let picture: RgbImage = image.decode()?.into_image();
    let sample = kind.form().sample(answer, &pictured.target, &picture);
    Ok(sample.map_err(|reason| ReportError::Picture { reason })?)
}
