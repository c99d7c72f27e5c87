//! Batches and their losses: what `janus train`, `eval` and `probe` all run.

use candle_core::{D, DType, Tensor};
use janus_core::Janus;
use janus_core::model::decoder::Placement;
use janus_core::ops;
use janus_core::pass::Pass;
use janus_core::processing::{PaddedBatch, right_pad_samples};

use super::Sample;
use crate::base::Base;
use crate::cache::{self, Image};
use crate::error::Result;

/// Text around images, padded to one length.
#[derive(Debug, Clone)]
pub struct TextBatch {
    /// Ids, `rows · len`.
    pub ids: Vec<u32>,
    /// Which are tokens, `rows · len`.
    pub mask: Vec<bool>,
    /// Labels by place, negative where none, `rows · len`.
    pub labels: Vec<i64>,
    /// Rows.
    pub rows: usize,
    /// All images in reading order.
    pub images: Vec<Image>,
    /// The id that image features replace.
    pub placeholder: u32,
}

/// Prompts and the codes of their images.
#[derive(Debug, Clone)]
pub struct CodeBatch {
    /// Ids up to and with `<begin_of_image>`, one row each.
    pub prompts: Vec<Vec<u32>>,
    /// As many codes in every row.
    pub codes: Vec<Vec<u32>>,
    /// What fills shorter rows at the end.
    pub pad: u32,
    /// Pixels of images in the prompts, in reading order, `[images, 3, side, side]`.
    pub pixels: Option<Tensor>,
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
}

/// What one forward pass says of its supervised tokens.
#[derive(Debug)]
pub struct Loss {
    /// Summed cross-entropy, a scalar in f32 with its graph.
    pub sum: Tensor,
    /// Tokens in the sum.
    pub tokens: usize,
    /// Tokens that the largest logit names, where asked for.
    pub correct: usize,
}

impl Batch {
    /// Samples of one task as a batch, padded on the right.
    ///
    /// # Errors
    /// Images of different sizes.
    pub fn collate(base: &Base, samples: &[Sample]) -> Result<Self> {
        let special = base.tokenizer().special();
        let mut texts = Vec::new();
        let mut images = Vec::new();
        let (mut prompts, mut codes) = (Vec::new(), Vec::new());
        for sample in samples {
            match sample {
                Sample::Text { tokens, images: own } => {
                    texts.push(tokens.clone());
                    images.extend(own.iter().cloned());
                }
                Sample::Codes { prompt, codes: own } => {
                    prompts.push(prompt.clone());
                    codes.push(own.to_vec());
                }
            }
        }
        if texts.is_empty() {
            let placeholder = special.image_placeholder;
            return Ok(Batch::Codes(CodeBatch { prompts, codes, pad: special.pad, pixels: None, placeholder }));
        }
        let padded: PaddedBatch = right_pad_samples(&texts, special.pad);
        Ok(Batch::Text(TextBatch {
            mask: padded.mask.iter().map(|m| *m != 0).collect(),
            labels: padded.labels.unwrap_or_default(),
            rows: padded.rows,
            ids: padded.ids,
            images,
            placeholder: special.image_placeholder,
        }))
    }

    /// Tokens that count in the loss.
    pub fn supervised(&self) -> usize {
        match self {
            Batch::Text(batch) => batch.labels.iter().filter(|label| **label >= 0).count(),
            Batch::Codes(batch) => batch.codes.iter().map(Vec::len).sum(),
        }
    }

    /// Adds each label to its count.
    pub fn count_labels(&self, counts: &mut std::collections::HashMap<u32, usize>) {
        let labels: Vec<u32> = match self {
            Batch::Text(batch) => batch.labels.iter().filter_map(|label| u32::try_from(*label).ok()).collect(),
            Batch::Codes(batch) => batch.codes.concat(),
        };
        for label in labels {
            *counts.entry(label).or_default() += 1;
        }
    }

    /// The summed loss; `count_correct` also compares the largest logits with the labels.
    ///
    /// # Errors
    /// Ids, labels or images that do not fit the model.
    pub fn loss(&self, model: &Janus, pass: &Pass, count_correct: bool) -> Result<Loss> {
        let (logits, labels) = match self {
            Batch::Text(batch) => batch.supervised_logits(model, pass)?,
            Batch::Codes(batch) => batch.supervised_logits(model, pass)?,
        };
        let correct = if count_correct { count_matches(&logits, &labels)? } else { 0 };
        Ok(Loss { sum: ops::cross_entropy(&logits, &labels)?, tokens: labels.len(), correct })
    }
}

fn count_matches(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let best: Vec<u32> = logits.detach().to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1()?;
    Ok(best.iter().zip(labels).filter(|(a, b)| a == b).count())
}

impl TextBatch {
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
        cache::features(model, pass, &self.images)
    }

    /// Normed hidden states, `[rows, len, hidden]`.
    ///
    /// # Errors
    /// Ids or images that do not fit the model.
    pub fn hidden(&self, model: &Janus, pass: &Pass, features: Option<&Tensor>) -> Result<Tensor> {
        let embeds = model.embed_with_images(pass, &self.ids, self.rows, self.placeholder, features)?;
        Ok(model.decoder().forward(pass, &embeds, &Placement::masked(&self.mask, self.rows), None)?)
    }

    /// Logits of the places before each label, `[labels, vocabulary]`, and the labels.
    fn supervised_logits(&self, model: &Janus, pass: &Pass) -> Result<(Tensor, Vec<u32>)> {
        let features = self.features(model, pass)?;
        let hidden = self.hidden(model, pass, features.as_ref())?;
        let (places, labels) = self.supervised_places();
        let hidden = ops::select_rows(&hidden.flatten_to(1)?, &places)?;
        Ok((model.decoder().text_logits(pass, &hidden)?, labels))
    }

    /// Summed loss and supervised tokens, given the hidden states; `None` where nothing is labelled.
    ///
    /// # Errors
    /// Labels beyond the vocabulary.
    pub fn loss_of_hidden(&self, model: &Janus, pass: &Pass, hidden: &Tensor) -> Result<Option<(Tensor, usize)>> {
        let (places, labels) = self.supervised_places();
        if labels.is_empty() {
            return Ok(None);
        }
        let hidden = ops::select_rows(&hidden.flatten_to(1)?, &places)?;
        let logits = model.decoder().text_logits(pass, &hidden)?;
        Ok(Some((ops::cross_entropy(&logits, &labels)?, labels.len())))
    }

    /// The place before each label, and the labels.
    fn supervised_places(&self) -> (Vec<u32>, Vec<u32>) {
        let length = self.len();
        let labelled = self.labels.iter().enumerate().filter_map(|(place, label)| {
            // A label in the first column has no place before it, as in transformers' shifted loss.
            let label = u32::try_from(*label).ok().filter(|_| place % length != 0)?;
            Some((place as u32 - 1, label))
        });
        labelled.unzip()
    }
}

impl CodeBatch {
    /// Logits of every code, `[rows · codes, classes]`.
    ///
    /// # Errors
    /// Ids or codes beyond the model's, or rows of codes that differ in length.
    pub fn logits(&self, model: &Janus, pass: &Pass) -> Result<Tensor> {
        let rows = self.prompts.len();
        let count = self.codes.first().map_or(0, Vec::len);
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let length = longest + count.saturating_sub(1);
        if let Some(other) = self.codes.iter().find(|codes| codes.len() != count || count == 0) {
            let expected = format!("[{rows}, {count}], at least one code a row");
            return Err(janus_core::ModelError::Shape { what: "image codes", expected, got: vec![other.len()] }.into());
        }
        let generation = model.generation()?;
        // One row of text embeddings per prompt, its padding included; the padding also stands for the end of short rows.
        let mut ids = Vec::with_capacity(rows * (longest + 1));
        for prompt in &self.prompts {
            ids.extend_from_slice(prompt);
            ids.resize(ids.len() + longest + 1 - prompt.len(), self.pad);
        }
        let features = match &self.pixels {
            Some(pixels) => Some(model.vision()?.forward(pass, pixels)?),
            None => None,
        };
        let text = model.embed_with_images(pass, &ids, rows, self.placeholder, features.as_ref())?.flatten_to(1)?;
        let inputs: Vec<u32> = self.codes.iter().flat_map(|codes| codes[..count - 1].iter().copied()).collect();
        let table = if inputs.is_empty() {
            text.clone()
        } else {
            Tensor::cat(&[text.clone(), generation.embed(pass, &inputs, rows)?.flatten_to(1)?], 0)?
        };
        let (mut order, mut mask, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (row, prompt) in self.prompts.iter().enumerate() {
            let text_start = row * (longest + 1);
            let code_start = rows * (longest + 1) + row * (count - 1);
            let used = prompt.len() + count - 1;
            order.extend((0..prompt.len()).map(|i| (text_start + i) as u32));
            order.extend((0..count - 1).map(|i| (code_start + i) as u32));
            order.extend((used..length).map(|_| (text_start + longest) as u32));
            mask.extend((0..length).map(|i| i < used));
            places.extend((0..count).map(|k| (row * length + prompt.len() - 1 + k) as u32));
        }
        let hidden_size = table.dim(1)?;
        let embeds = ops::select_rows(&table, &order)?.reshape((rows, length, hidden_size))?;
        let hidden = model.decoder().forward(pass, &embeds, &Placement::masked(&mask, rows), None)?;
        Ok(generation.logits(pass, &ops::select_rows(&hidden.flatten_to(1)?, &places)?)?)
    }

    fn supervised_logits(&self, model: &Janus, pass: &Pass) -> Result<(Tensor, Vec<u32>)> {
        Ok((self.logits(model, pass)?, self.codes.concat()))
    }
}
