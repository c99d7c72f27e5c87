//! Batches and their losses: what `janus train`, `eval` and `probe` all run.
//!
//! The rows of a batch are packed: laid one behind the other in one sequence, each seen by itself alone
//! ([`Placement::packed`]), so that no padding is computed. Only what comes padded from outside stays so.

use candle_core::Tensor;
use janus_core::Janus;
use janus_core::model::decoder::Placement;
use janus_core::ops::{self, HeadLoss};
use janus_core::pass::Pass;
use janus_core::processing::Sample as TextSample;

use super::{PictureBatch, PixelBatch, Sample};
use crate::base::Base;
use crate::cache::{self, Image};
use crate::error::Result;
use crate::heads::Heads;

/// Text around images.
#[derive(Debug, Clone)]
pub struct TextBatch {
    /// Ids, `rows · len`.
    pub ids: Vec<u32>,
    /// Rows of the rectangle; packed samples share one.
    pub rows: usize,
    /// Where the tokens stand and what they see.
    pub placement: Placement,
    /// Places in `ids` from which a label is predicted: one before the label's own.
    pub places: Vec<u32>,
    /// The label of each place.
    pub labels: Vec<u32>,
    /// All images in reading order.
    pub images: Vec<Image>,
    /// The id that image features replace.
    pub placeholder: u32,
    /// How many of each image's last patches are in `ids`; all without.
    pub last_patches: Option<usize>,
}

/// Prompts and the codes of their images.
#[derive(Debug, Clone)]
pub struct CodeBatch {
    /// Ids up to and with `<begin_of_image>`, one row each.
    pub prompts: Vec<Vec<u32>>,
    /// The codes of each row, at least one.
    pub codes: Vec<Vec<u32>>,
    /// Images of the prompts, in reading order.
    pub images: Vec<Image>,
    /// The id that image features replace.
    pub placeholder: u32,
}

/// Samples of one kind, made ready for one forward pass.
#[derive(Debug, Clone)]
pub enum Batch {
    /// Text around images.
    Text(TextBatch),
    /// Prompts and codes.
    Codes(CodeBatch),
    /// Pictures for a head.
    Pictures(PictureBatch),
    /// Pictures that are to come back from their codes.
    Pixels(PixelBatch),
}

/// What one forward pass says of its supervised tokens.
#[derive(Debug)]
pub struct Loss {
    /// Summed cross-entropy, a scalar in f32 with its graph.
    pub sum: Tensor,
    /// Tokens in the sum.
    pub tokens: usize,
    /// Tokens that the largest logit names, a scalar in u32 beside the sum.
    pub correct: Tensor,
    /// What the image tokenizer made of its pictures, where it is what is trained.
    pub coded: Option<Coded>,
}

/// Places of pictures and their codes.
#[derive(Debug, Clone)]
pub struct Coded {
    /// The code of each place.
    pub codes: Vec<u32>,
    /// The unit latent of each place, `[places, embed_dim]`, without a graph.
    pub latents: Tensor,
}

impl Batch {
    /// Samples of one task as a packed batch.
    ///
    /// # Errors
    /// Images of different sizes.
    pub fn collate(base: &Base, samples: &[Sample]) -> Result<Self> {
        let special = base.tokenizer().special();
        let mut texts = Vec::new();
        let mut images = Vec::new();
        let (mut prompts, mut codes) = (Vec::new(), Vec::new());
        let (mut pictures, mut pixels, mut quantize_from) = (Vec::new(), Vec::new(), 0);
        for sample in samples {
            match sample {
                Sample::Text { tokens, images: own } => {
                    texts.push(tokens.clone());
                    images.extend(own.iter().cloned());
                }
                Sample::Codes { prompt, images: own, codes: own_codes, .. } => {
                    prompts.push(prompt.clone());
                    codes.push(own_codes.to_vec());
                    images.extend(own.iter().cloned());
                }
                Sample::Picture(pictured) => pictures.push(pictured.clone()),
                Sample::Pixels { image, quantize_from: from } => {
                    pixels.push(image.clone());
                    quantize_from = *from;
                }
            }
        }
        if !pixels.is_empty() {
            return Ok(Batch::Pixels(PixelBatch { images: pixels, quantize_from }));
        }
        if let Some(batch) = PictureBatch::of(pictures) {
            return Ok(Batch::Pictures(batch));
        }
        if texts.is_empty() {
            let placeholder = special.image_placeholder;
            return Ok(Batch::Codes(CodeBatch { prompts, codes, images, placeholder }));
        }
        Ok(Batch::Text(TextBatch::packed(&texts, images, special.image_placeholder)))
    }

    /// Tokens that count in the loss.
    pub fn supervised(&self) -> usize {
        match self {
            Batch::Text(batch) => batch.labels.len(),
            Batch::Codes(batch) => batch.codes.iter().map(Vec::len).sum(),
            Batch::Pictures(batch) => batch.images.len(),
            Batch::Pixels(batch) => batch.images.len(),
        }
    }

    /// Whether the loss is of pairs held against each other.
    pub fn is_contrastive(&self) -> bool {
        matches!(self, Batch::Pictures(batch) if batch.is_contrastive())
    }

    /// Whether a gradient of it reaches all that its task reaches.
    pub fn is_telling(&self) -> bool {
        match self {
            Batch::Pictures(batch) => batch.is_telling(),
            Batch::Text(_) | Batch::Codes(_) | Batch::Pixels(_) => self.supervised() > 0,
        }
    }

    /// Adds each label to its count.
    pub fn count_labels(&self, counts: &mut std::collections::HashMap<u32, usize>) {
        let labels: Vec<u32> = match self {
            Batch::Text(batch) => batch.labels.clone(),
            Batch::Codes(batch) => batch.codes.concat(),
            Batch::Pictures(batch) => batch.labels(),
            Batch::Pixels(_) => Vec::new(),
        };
        for label in labels {
            *counts.entry(label).or_default() += 1;
        }
    }

    /// The summed loss; `heads` are those under training, or of an adapter.
    ///
    /// # Errors
    /// Ids, labels or images that do not fit the model, or a head that is not there.
    pub fn loss(&self, model: &Janus, pass: &Pass, heads: &Heads) -> Result<Loss> {
        match self {
            Batch::Text(batch) => {
                let features = batch.features(model, pass)?;
                let embeds = batch.embed(model, pass, features.as_ref())?;
                let hidden = model.decoder().forward_tokens(pass, &embeds, &batch.placement, &batch.places)?;
                batch.loss_of_places(model, pass, &hidden)
            }
            Batch::Codes(batch) => {
                let (hidden, labels) = (batch.hidden(model, pass)?, batch.codes.concat());
                Ok(Loss::of(model.generation()?.loss(pass, &hidden, &labels)?, labels.len()))
            }
            Batch::Pictures(batch) => batch.loss(model, pass, heads),
            Batch::Pixels(batch) => batch.loss(model, pass),
        }
    }
}

impl Loss {
    pub(super) fn of(loss: HeadLoss, tokens: usize) -> Self {
        Self { sum: loss.sum, tokens, correct: loss.correct, coded: None }
    }
}

impl TextBatch {
    /// Samples one behind the other, with all their images in reading order.
    pub fn packed(samples: &[TextSample], images: Vec<Image>, placeholder: u32) -> Self {
        let (mut ids, mut places, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            predict(&sample.labels, ids.len(), &mut places, &mut labels);
            ids.extend_from_slice(&sample.ids);
        }
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
        let placement = Placement::packed(&lengths);
        Self { ids, rows: 1, placement, places, labels, images, placeholder, last_patches: None }
    }

    /// `rows` rows of equal length as they are, padding included: `ids`, `mask` (true = a token) and `labels` (negative
    /// where there is none) are `[rows, len]`; `labels` may be empty.
    pub fn padded(
        ids: Vec<u32>,
        mask: &[bool],
        labels: &[i64],
        rows: usize,
        images: Vec<Image>,
        placeholder: u32,
    ) -> Self {
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        let length = ids.len() / rows.max(1);
        for (row, labels) in labels.chunks(length.max(1)).enumerate() {
            predict(labels, row * length, &mut places, &mut targets);
        }
        let placement = Placement::masked(mask, rows);
        Self { ids, rows, placement, places, labels: targets, images, placeholder, last_patches: None }
    }

    /// Tokens of a row, padding included.
    pub fn len(&self) -> usize {
        self.ids.len() / self.rows.max(1)
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Aligned image features, `[images, patches, hidden]`, if there are images.
    ///
    /// # Errors
    /// Images that cannot be decoded, or pixels of another size than the model's.
    pub fn features(&self, model: &Janus, pass: &Pass) -> Result<Option<Tensor>> {
        let features = cache::features(model, pass, &self.images)?;
        let (Some(features), Some(last)) = (&features, self.last_patches) else { return Ok(features) };
        let skipped = features.dim(1)?.saturating_sub(last);
        Ok(Some(features.narrow(1, skipped, last)?.contiguous()?))
    }

    /// Normed hidden states, `[rows, len, hidden]`.
    ///
    /// # Errors
    /// Ids or images that do not fit the model.
    pub fn hidden(&self, model: &Janus, pass: &Pass, features: Option<&Tensor>) -> Result<Tensor> {
        let embeds = self.embed(model, pass, features)?;
        Ok(model.decoder().forward(pass, &embeds, &self.placement, None)?)
    }

    fn embed(&self, model: &Janus, pass: &Pass, features: Option<&Tensor>) -> Result<Tensor> {
        Ok(model.embed_with_images(pass, &self.ids, self.rows, self.placeholder, features)?)
    }

    /// The loss of the labels, given the hidden states.
    ///
    /// # Errors
    /// Labels beyond the vocabulary.
    pub fn loss_of_hidden(&self, model: &Janus, pass: &Pass, hidden: &Tensor) -> Result<Loss> {
        self.loss_of_places(model, pass, &ops::select_rows(&hidden.flatten_to(1)?, &self.places)?)
    }

    /// The loss of the labels, given the hidden states of their places, `[labels, hidden]`.
    fn loss_of_places(&self, model: &Janus, pass: &Pass, hidden: &Tensor) -> Result<Loss> {
        Ok(Loss::of(model.decoder().text_loss(pass, hidden, &self.labels)?, self.labels.len()))
    }
}

/// Adds the places and labels of one row, whose first token stands at `start`.
fn predict(row: &[i64], start: usize, places: &mut Vec<u32>, labels: &mut Vec<u32>) {
    // A row's first label has no place before it, as in transformers' shifted loss.
    for (place, label) in row.iter().enumerate().skip(1) {
        if let Ok(label) = u32::try_from(*label) {
            places.push((start + place - 1) as u32);
            labels.push(label);
        }
    }
}

impl CodeBatch {
    /// Aligned image features, `[images, patches, hidden]`, if there are images.
    ///
    /// # Errors
    /// As [`TextBatch::features`].
    pub fn features(&self, model: &Janus, pass: &Pass) -> Result<Option<Tensor>> {
        cache::features(model, pass, &self.images)
    }

    /// Normed hidden states from which each code is predicted, `[Σ codes, hidden]`.
    ///
    /// # Errors
    /// Ids or codes beyond the model's, or a row without prompt or codes.
    pub fn hidden(&self, model: &Janus, pass: &Pass) -> Result<Tensor> {
        let rows = self.prompts.len();
        let empty = self.prompts.iter().chain(&self.codes).any(Vec::is_empty);
        if empty || self.codes.len() != rows {
            let expected = format!("{rows} rows of at least one prompt token and one code");
            let got = self.prompts.iter().chain(&self.codes).map(Vec::len).collect();
            return Err(janus_core::ModelError::Shape { what: "prompts and image codes", expected, got }.into());
        }
        let ids = self.prompts.concat();
        let features = self.features(model, pass)?;
        let text = model.embed_with_images(pass, &ids, 1, self.placeholder, features.as_ref())?.flatten_to(1)?;
        // The last code of a row predicts nothing.
        let inputs: Vec<u32> = self.codes.iter().flat_map(|codes| &codes[..codes.len() - 1]).copied().collect();
        let table = if inputs.is_empty() {
            text
        } else {
            Tensor::cat(&[text, model.generation()?.embed(pass, &inputs, 1)?.flatten_to(1)?], 0)?
        };
        let (mut order, mut lengths, mut places) = (Vec::new(), Vec::with_capacity(rows), Vec::new());
        let (mut text_start, mut code_start) = (0, ids.len());
        for (prompt, codes) in self.prompts.iter().zip(&self.codes) {
            let last = order.len() + prompt.len() - 1;
            places.extend((last..last + codes.len()).map(|place| place as u32));
            order.extend((text_start..text_start + prompt.len()).map(|row| row as u32));
            order.extend((code_start..code_start + codes.len() - 1).map(|row| row as u32));
            lengths.push(prompt.len() + codes.len() - 1);
            text_start += prompt.len();
            code_start += codes.len() - 1;
        }
        let embeds = ops::select_rows(&table, &order)?.unsqueeze(0)?;
        Ok(model.decoder().forward_tokens(pass, &embeds, &Placement::packed(&lengths), &places)?)
    }

    /// Logits of every code, row after row: `[Σ codes, classes]`.
    ///
    /// # Errors
    /// Ids or codes beyond the model's, or a row without prompt or codes.
    pub fn logits(&self, model: &Janus, pass: &Pass) -> Result<Tensor> {
        Ok(model.generation()?.logits(pass, &self.hidden(model, pass)?)?)
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
