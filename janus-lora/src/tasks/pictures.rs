//! Batches of pictures for heads, and their losses.

use std::sync::Arc;

use candle_core::Tensor;
use janus_core::model::decoder::Placement;
use janus_core::ops::HeadLoss;
use janus_core::pass::Pass;
use janus_core::processing::Frame;
use janus_core::{Janus, ModelError};

use super::forward::Loss;
use super::{Pictured, Target};
use crate::adapter::AdapterError;
use crate::cache::{self, Image};
use crate::error::{Error, Result};
use crate::heads::contrast::info_nce;
use crate::heads::locate::Marked;
use crate::heads::{Head, HeadKind, Heads, classify, locate, retrieve, segment};

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

    /// Mid features, `[images, patches, hidden]`.
    fn features(&self, model: &Janus, pass: &Pass) -> Result<Tensor> {
        let features = cache::features(model, pass, &self.images)?;
        Ok(features.ok_or(ModelError::NotLoaded { part: "batch's images" })?)
    }

    /// The numbers of the labels.
    pub fn labels(&self) -> Vec<u32> {
        let label = |target: &Target| if let Target::Label(label) = target { Some(*label) } else { None };
        self.targets.iter().filter_map(label).collect()
    }

    /// The boxes of each picture, in the picture's pixels.
    pub fn boxes(&self) -> Vec<Vec<Marked>> {
        let boxes = |target: &Target| if let Target::Boxes(boxes) = target { boxes.to_vec() } else { Vec::new() };
        self.targets.iter().map(boxes).collect()
    }

    /// Logits of every picture's label, `[images, labels]` in f32.
    ///
    /// # Errors
    /// Images that do not fit the model, or a head that is not there.
    pub fn label_logits(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<Tensor> {
        Ok(classify::logits(self.head(heads)?, &self.features(model, pass)?)?)
    }

    /// What the places of every picture say of boxes.
    ///
    /// # Errors
    /// As [`PictureBatch::label_logits`].
    pub fn places(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<locate::Places> {
        Ok(locate::places(self.head(heads)?, model.config(), &self.features(model, pass)?)?)
    }

    /// The boxes of each picture, in the pixels of the square.
    pub fn boxes_in_square(&self) -> Vec<Vec<Marked>> {
        let mut all = self.boxes();
        for (boxes, frame) in all.iter_mut().zip(&self.frames) {
            for marked in boxes {
                let [left, top, right, bottom] = marked.corners;
                let ((x1, y1), (x2, y2)) = (frame.to_square((left, top)), frame.to_square((right, bottom)));
                marked.corners = [x1, y1, x2, y2];
            }
        }
        all
    }

    /// Boxes that are found in each picture, the surest first, in its own pixels.
    ///
    /// # Errors
    /// As [`PictureBatch::label_logits`].
    pub fn found(&self, places: &locate::Places) -> Result<Vec<Vec<locate::Found>>> {
        let mut all = locate::found(places)?;
        for (found, frame) in all.iter_mut().zip(&self.frames) {
            let (width, height) = (frame.picture.0 as f32, frame.picture.1 as f32);
            for found in found.iter_mut() {
                let [left, top, right, bottom] = found.corners;
                let ((x1, y1), (x2, y2)) = (frame.to_picture((left, top)), frame.to_picture((right, bottom)));
                let inside = |at: f32, limit: f32| at.clamp(0.0, limit);
                found.corners = [inside(x1, width), inside(y1, height), inside(x2, width), inside(y2, height)];
            }
            // What lay beside the picture has nothing left.
            found.retain(|found| found.corners[0] < found.corners[2] && found.corners[1] < found.corners[3]);
        }
        Ok(all)
    }

    /// Logits of every picture's mask, `[images, side, side]`.
    ///
    /// # Errors
    /// As [`PictureBatch::label_logits`].
    pub fn mask_logits(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<Tensor> {
        let head = self.head(heads)?;
        let (low, mid) = cache::low_and_mid_features(model, pass, &self.images)?;
        Ok(segment::logits(head, model.config(), &low, &mid)?)
    }

    /// The share of each place in the masks, `[images, side, side]`.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn mask_places(&self, model: &Janus) -> Result<Tensor> {
        let side = segment::side(model.config());
        let places = |target: &Target| if let Target::Mask(mask) = target { mask.places.clone() } else { Vec::new() };
        let places: Vec<f32> = self.targets.iter().flat_map(places).collect();
        Ok(Tensor::from_vec(places, (self.targets.len(), side, side), model.device())?)
    }

    /// The share of each place that is counted, `[images, side, side]`; `None` where all of them are.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn mask_counted(&self, model: &Janus) -> Result<Option<Tensor>> {
        let side = segment::side(model.config());
        let counted = |target: &Target| match target {
            Target::Mask(mask) => mask.counted.clone(),
            _ => None,
        };
        let all: Vec<Option<Vec<f32>>> = self.targets.iter().map(counted).collect();
        if all.iter().all(Option::is_none) {
            return Ok(None);
        }
        let shares: Vec<f32> =
            all.into_iter().flat_map(|counted| counted.unwrap_or_else(|| vec![1.0; side * side])).collect();
        Ok(Some(Tensor::from_vec(shares, (self.targets.len(), side, side), model.device())?))
    }

    /// The summed loss of the pictures' masks, of logits `[images, side, side]`.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn mask_loss(&self, model: &Janus, logits: &Tensor) -> Result<Tensor> {
        let counted = self.mask_counted(model)?;
        Ok(segment::loss(logits, &self.mask_places(model)?, counted.as_ref())?)
    }

    /// Vectors of length one of the pictures and of their captions, `[images, width]` each.
    ///
    /// # Errors
    /// As [`PictureBatch::label_logits`], or a caption beyond the model's vocabulary.
    pub fn vectors(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<(Tensor, Tensor)> {
        let head = self.head(heads)?;
        let images = retrieve::image_vectors(head, &self.features(model, pass)?)?;
        let captions: Vec<&[u32]> = self.targets.iter().map(Target::caption).collect();
        Ok((images, retrieve::text_vectors(head, &last_hidden(model, pass, &captions)?)?))
    }

    /// Whether the captions of two pictures are the same.
    pub fn is_same_caption(&self, one: usize, other: usize) -> bool {
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
    /// As [`PictureBatch::label_logits`].
    pub fn loss(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<Loss> {
        let head = self.head(heads)?;
        let tokens = self.images.len();
        let told =
            |sum: Tensor| Ok::<_, Error>(Loss { correct: Tensor::new(0u32, sum.device())?, sum, tokens, coded: None });
        Ok(match &head.kind {
            HeadKind::Classify { .. } => {
                Loss::of(HeadLoss::of_logits(&self.label_logits(model, pass, heads)?, &self.labels())?, tokens)
            }
            HeadKind::Locate { .. } => told(locate::loss(&self.places(model, pass, heads)?, &self.boxes_in_square())?)?,
            HeadKind::Segment {} => told(self.mask_loss(model, &self.mask_logits(model, pass, heads)?)?)?,
            HeadKind::Retrieve {} => {
                let (images, captions) = self.vectors(model, pass, heads)?;
                let same = |one, other| self.is_same_caption(one, other);
                let contrast = info_nce(&images, &captions, retrieve::log_temperature(head), same)?;
                Loss { sum: contrast.sum, tokens, correct: contrast.correct, coded: None }
            }
        })
    }
}

/// The normed hidden state of the last token of each row, `[rows, hidden]`.
fn last_hidden(model: &Janus, pass: &Pass, rows: &[&[u32]]) -> Result<Tensor> {
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
