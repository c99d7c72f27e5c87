//! Batches of pictures for heads, and their losses.

use std::sync::Arc;

use candle_core::Tensor;
use janus_core::model::decoder::Placement;
use janus_core::pass::Pass;
use janus_core::processing::Frame;
use janus_core::{Janus, ModelError};

use super::Pictured;
use super::forward::Loss;
use crate::adapter::AdapterError;
use crate::cache::{self, Image};
use crate::error::Result;
use crate::heads::{Features, Head, Heads, Target};

/// Pictures and what one head is to tell of each.
#[derive(Debug, Clone)]
pub struct PictureBatch {
    /// The head.
    pub head: Arc<str>,
    /// The pictures.
    pub images: Vec<Image>,
    /// Where each lies in the square that the model sees.
    pub frames: Vec<Frame>,
    /// What is true of each, all of the head's own kind; none where a head is asked.
    pub targets: Vec<Target>,
}

impl PictureBatch {
    /// Pictures of one head.
    pub fn of(pictures: Vec<Pictured>) -> Option<Self> {
        let head = pictures.first()?.head.clone();
        let (mut images, mut frames, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for Pictured { image, frame, target, .. } in pictures {
            images.push(image);
            frames.push(frame);
            targets.push(target);
        }
        Some(Self { head, images, frames, targets })
    }

    pub(crate) fn head<'a>(&self, heads: &'a Heads) -> Result<&'a Head> {
        let missing = || AdapterError::NoHead {
            name: self.head.to_string(),
            found: heads.keys().map(ToString::to_string).collect(),
        };
        Ok(heads.get(&self.head).ok_or_else(missing)?)
    }

    /// The numbers of the labels.
    pub fn labels(&self) -> Vec<u32> {
        self.targets.iter().filter_map(Target::label).collect()
    }

    /// What the head computes of the pictures, and of their captions where it reads some.
    ///
    /// # Errors
    /// Images that cannot be decoded or do not fit the model, or a caption beyond its vocabulary.
    fn output(&self, model: &Janus, pass: &Pass, head: &Head) -> Result<Vec<Tensor>> {
        let features = features(model, pass, &self.images, head.kind.form().reads_low())?;
        let captions = self.captions(model, pass)?;
        Ok(head.output(model.config(), &features, captions.as_ref())?)
    }

    /// The same of every picture by itself, whose bits do not depend on the others.
    ///
    /// # Errors
    /// As [`PictureBatch::loss`].
    pub fn output_of_each(&self, model: &Janus, head: &Head) -> Result<Vec<Vec<Tensor>>> {
        let pass = Pass::answering();
        let features = features(model, &pass, &self.images, head.kind.form().reads_low())?;
        let captions = self.captions(model, &pass)?;
        let of_picture = |place: usize| {
            let caption = captions.as_ref().map(|captions| captions.narrow(0, place, 1)).transpose()?;
            Ok(head.output(model.config(), &features.of_picture(place)?, caption.as_ref())?)
        };
        (0..self.images.len()).map(of_picture).collect()
    }

    /// The normed hidden state of the last token of each picture's caption; `None` where they have none.
    fn captions(&self, model: &Janus, pass: &Pass) -> Result<Option<Tensor>> {
        let captions: Vec<&[u32]> = self.targets.iter().map(Target::caption).collect();
        if captions.iter().all(|ids| ids.is_empty()) { Ok(None) } else { last_hidden(model, pass, &captions).map(Some) }
    }

    /// Whether the captions of two pictures are the same.
    fn is_same_caption(&self, one: usize, other: usize) -> bool {
        match (self.targets.get(one), self.targets.get(other)) {
            (Some(one), Some(other)) => one.caption() == other.caption(),
            _ => false,
        }
    }

    /// Whether the loss is of pairs held against each other, which gain nothing by being counted over batches.
    pub fn is_contrastive(&self) -> bool {
        matches!(self.targets.first(), Some(Target::Caption(_)))
    }

    /// Whether a gradient of it reaches every value of its head: a picture without boxes says nothing of sides, a caption
    /// alone is held against none.
    pub fn is_telling(&self) -> bool {
        match self.targets.first() {
            Some(Target::Boxes(_)) => {
                self.targets.iter().any(|target| matches!(target, Target::Boxes(boxes) if !boxes.is_empty()))
            }
            Some(Target::Caption(_)) => (1..self.targets.len()).any(|other| !self.is_same_caption(0, other)),
            Some(Target::Label(_) | Target::Mask(_)) => true,
            None => false,
        }
    }

    /// The summed loss of the pictures.
    ///
    /// # Errors
    /// A head that is not there, images that cannot be decoded or do not fit the model, or a caption beyond its vocabulary.
    pub fn loss(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<Loss> {
        let head = self.head(heads)?;
        self.loss_of(model, head, &self.output(model, pass, head)?)
    }

    /// The summed loss of the pictures, given what the head computed of them.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn loss_of(&self, model: &Janus, head: &Head, output: &[Tensor]) -> Result<Loss> {
        let form = head.kind.form();
        let (sum, correct) = form.loss(head, model.config(), output, &self.targets, &self.frames)?;
        let correct = correct.map_or_else(|| Tensor::new(0u32, sum.device()), Ok)?;
        Ok(Loss { sum, tokens: self.images.len(), correct, coded: None })
    }
}

/// What heads read of some pictures.
///
/// # Errors
/// Images that cannot be decoded or do not fit the model.
pub(crate) fn features(model: &Janus, pass: &Pass, images: &[Image], reads_low: bool) -> Result<Features> {
    if reads_low {
        let (low, mid) = cache::low_and_mid_features(model, pass, images)?;
        return Ok(Features { low: Some(low), mid });
    }
    let mid = cache::features(model, pass, images)?.ok_or(ModelError::NotLoaded { part: "batch's images" })?;
    Ok(Features { low: None, mid })
}

/// The normed hidden state of the last token of each row, `[rows, hidden]`.
pub(crate) fn last_hidden(model: &Janus, pass: &Pass, rows: &[&[u32]]) -> Result<Tensor> {
    let lengths: Vec<usize> = rows.iter().map(|ids| ids.len()).collect();
    let mut places = Vec::with_capacity(rows.len());
    let mut end = 0;
    for length in &lengths {
        end += length;
        places.push((end as u32).saturating_sub(1));
    }
    let embeds = model.decoder().embed(pass, &rows.concat(), 1)?;
    Ok(model.decoder().forward_tokens(pass, &embeds, &Placement::packed(&lengths), &places)?)
}
