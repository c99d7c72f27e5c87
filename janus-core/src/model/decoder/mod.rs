//! The decoder (`model.language_model`): a LLaMA trunk that both sides share, and the text head.
//! Source: `modeling_llama.py` of transformers 5.23.0.

mod cache;
mod layer;

use std::sync::Arc;

use candle_core::{DType, Tensor};

pub use cache::Cache;
pub(crate) use cache::{Cached, HeadMajor, Held, LayerCache};
pub use layer::DecoderLayer;

use super::loader::Loader;
use super::norm::RmsNorm;
use super::slice::Slice;
use crate::config::TextConfig;
use crate::error::{ModelError, Result};
use crate::ops::rotary::Rotary;
use crate::ops::{AttentionMask, HeadLoss, on_pool};
use crate::pass::Pass;
use crate::site::Projection;

/// Where the tokens of a batch stand and what they may see.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Position of each token, `[batch, sequence]` row-major.
    pub positions: Vec<u32>,
    /// What each token may see of the keys so far.
    pub mask: AttentionMask,
}

impl Placement {
    /// `batch` rows of `sequence` tokens from position `start` on, nothing masked but the future.
    pub fn plain(batch: usize, start: usize, sequence: usize) -> Self {
        let positions = (0..batch).flat_map(|_| (start..start + sequence).map(|p| p as u32)).collect();
        Self { positions, mask: AttentionMask::causal() }
    }

    /// From an attention mask `[batch, sequence]` (true = a token): positions count the tokens, 0 under padding.
    pub fn masked(mask: &[bool], batch: usize) -> Self {
        let sequence = mask.len() / batch.max(1);
        let mut positions = Vec::with_capacity(mask.len());
        for row in mask.chunks_exact(sequence.max(1)) {
            let mut count = 0u32;
            for token in row {
                count += u32::from(*token);
                positions.push(if *token { count - 1 } else { 0 });
            }
        }
        let keys = if mask.iter().all(|m| *m) { None } else { Some(mask.into()) };
        Self { positions, mask: AttentionMask { keys, ..AttentionMask::causal() } }
    }

    /// Rows of these lengths one behind the other as the only row of a batch, `[1, Σ lengths]`: positions begin anew with
    /// each, and none sees another.
    pub fn packed(lengths: &[usize]) -> Self {
        let positions = lengths.iter().flat_map(|length| (0..*length).map(|p| p as u32)).collect();
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let segments = if lengths.len() > 1 { Some(std::iter::once(0).chain(ends).collect()) } else { None };
        Self { positions, mask: AttentionMask { segments, ..AttentionMask::causal() } }
    }

    /// The last `length` tokens of each row of `mask`, which covers what a cache holds and them.
    pub fn continued(mask: &[Vec<bool>], length: usize) -> Self {
        let whole = Self::masked(&mask.concat(), mask.len());
        let total = mask.first().map_or(0, Vec::len);
        let rows = whole.positions.chunks_exact(total.max(1));
        Self { positions: rows.flat_map(|row| row[total - length..].to_vec()).collect(), ..whole }
    }
}

/// The trunk and the text head.
#[derive(Debug)]
pub struct Decoder {
    embed_tokens: Option<Arc<Projection>>,
    layers: Vec<DecoderLayer>,
    norm: Option<RmsNorm>,
    lm_head: Option<Arc<Projection>>,
    is_whole: bool,
    head_dim: usize,
    rope_theta: f64,
    vocabulary: usize,
}

impl Decoder {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        config: &TextConfig,
        dtype: DType,
        text_head: bool,
        slice: &Slice,
    ) -> Result<Self> {
        let path = "model.language_model";
        let mut projection = |path: &str, wanted: bool| match wanted {
            true => loader.projection(path, false, dtype).map(Some),
            false => Ok(None),
        };
        let embed_tokens = projection(&format!("{path}.embed_tokens"), slice.embeddings)?;
        let lm_head = projection("lm_head", text_head)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in (0..config.num_hidden_layers).filter(|i| slice.layers.contains(i)) {
            layers.push(DecoderLayer::load(loader, &format!("{path}.layers.{i}"), config, dtype)?);
        }
        let norm = match slice.norm {
            true => Some(RmsNorm::load(loader, &format!("{path}.norm"), config.rms_norm_eps, dtype)?),
            false => None,
        };
        let is_whole = slice.embeddings && layers.len() == config.num_hidden_layers && slice.norm;
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            is_whole,
            head_dim: config.head_dim,
            rope_theta: config.rope_theta,
            vocabulary: config.vocab_size,
        })
    }

    /// Embeddings of `ids`, `batch` rows of equal length: `[batch, sequence, hidden]`.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or the table was not loaded.
    pub fn embed(&self, pass: &Pass, ids: &[u32], batch: usize) -> Result<Tensor> {
        let sequence = ids.len() / batch.max(1);
        if let Some(place) = ids.iter().position(|id| *id as usize >= self.vocabulary) {
            return Err(ModelError::TokenOutOfRange {
                id: i64::from(ids[place]),
                row: place / sequence,
                position: place % sequence,
                vocabulary: self.vocabulary,
            }
            .into());
        }
        // The site looks ids up by their values: they stay on the processor wherever the table lies.
        let ids = Tensor::from_slice(ids, (batch, sequence), &candle_core::Device::Cpu)?;
        let table = self.embed_tokens.as_ref().ok_or(ModelError::NotLoaded { part: "embedding table" })?;
        table.forward(pass, &ids)
    }

    /// Whether embedding table, all blocks and final norm are loaded.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The blocks that are loaded, in order.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// Rotary tables for the positions of a batch.
    pub fn rotary(&self, positions: &[u32], batch: usize) -> Rotary {
        Rotary::new(positions, batch, self.head_dim, self.rope_theta)
    }

    /// All blocks and the final norm, as far as they are loaded: `[batch, sequence, hidden]` to the same.
    ///
    /// With a cache, `embeds` continues what the cache holds and the mask covers all keys.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        pass: &Pass,
        embeds: &Tensor,
        placement: &Placement,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        self.run(pass, embeds, placement, cache, None)
    }

    /// As [`Decoder::forward`] of whole sequences, for some of their tokens (rows of `batch · sequence`) only:
    /// `[tokens, hidden]`. What the others would cost after the last attention is not computed.
    ///
    /// # Errors
    /// Shapes that do not fit, or a token beyond the batch.
    pub fn forward_tokens(
        &self,
        pass: &Pass,
        embeds: &Tensor,
        placement: &Placement,
        tokens: &[u32],
    ) -> Result<Tensor> {
        let count = embeds.dim(0)? * embeds.dim(1)?;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= count) {
            let expected = format!("tokens below {count}");
            return Err(ModelError::Shape { what: "tokens", expected, got: vec![*token as usize] }.into());
        }
        self.run(pass, embeds, placement, None, Some(tokens.into()))
    }

    /// As [`Decoder::forward`] with a cache, for the last token of each row only: `[batch, hidden]`, from which the next
    /// one is drawn.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_last(
        &self,
        pass: &Pass,
        embeds: &Tensor,
        placement: &Placement,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (batch, sequence, _) = embeds.dims3()?;
        if sequence == 0 {
            let expected = "[batch, at least one token, hidden]".to_string();
            return Err(ModelError::Shape { what: "embeddings", expected, got: embeds.dims().to_vec() }.into());
        }
        let last: Arc<[u32]> = (1..=batch).map(|row| (row * sequence - 1) as u32).collect();
        self.run(pass, embeds, placement, Some(cache), Some(last))
    }

    /// One token of each row, `embeds: [rows, 1, hidden]`, each of which continues a cache of its own: `[rows, hidden]`, from which
    /// the next one is drawn. Rows may be of different lengths.
    ///
    /// # Errors
    /// Shapes that do not fit, another number of caches than rows, or one of several rows.
    pub(crate) fn forward_each(&self, pass: &Pass, embeds: &Tensor, caches: &mut [&mut Cache]) -> Result<Tensor> {
        let positions: Vec<u32> = caches.iter().map(|cache| cache.len() as u32).collect();
        let layers = || {
            let rotary = self.rotary(&positions, positions.len());
            let mut x = embeds.clone();
            let mut of_rows: Vec<_> = caches.iter_mut().map(|cache| cache.layers().iter_mut()).collect();
            for layer in &self.layers {
                let own = of_rows.iter_mut().filter_map(Iterator::next).collect();
                x = layer.forward_each(pass, &x, &rotary, own)?;
            }
            let x = x.squeeze(1)?;
            match &self.norm {
                Some(norm) => norm.forward(&x),
                None => Ok(x),
            }
        };
        on_pool(embeds.device(), layers)
    }

    fn run(
        &self,
        pass: &Pass,
        embeds: &Tensor,
        placement: &Placement,
        cache: Option<&mut Cache>,
        kept: Option<Arc<[u32]>>,
    ) -> Result<Tensor> {
        let layers = || {
            let rotary = self.rotary(&placement.positions, embeds.dim(0)?);
            let mut x = embeds.clone();
            let mut caches = cache.map(|cache| cache.layers().iter_mut());
            let last = self.layers.len().saturating_sub(1);
            for (number, layer) in self.layers.iter().enumerate() {
                let kept = kept.clone().filter(|_| number == last);
                let cache = caches.as_mut().and_then(Iterator::next);
                x = layer.forward_kept(pass, &x, &rotary, &placement.mask, cache, kept)?;
            }
            match &self.norm {
                Some(norm) => norm.forward(&x),
                None => Ok(x),
            }
        };
        on_pool(embeds.device(), layers)
    }

    /// The norm that both heads read through.
    ///
    /// # Errors
    /// Shapes that do not fit, or the norm was not loaded.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.as_ref().ok_or(ModelError::NotLoaded { part: "final norm" })?.forward(x)
    }

    /// Text logits of normed hidden states: `[.., hidden]` to `[.., vocabulary]`.
    ///
    /// # Errors
    /// The text head was not loaded.
    pub fn text_logits(&self, pass: &Pass, hidden: &Tensor) -> Result<Tensor> {
        self.text_head()?.forward(pass, hidden)
    }

    /// Summed loss of normed hidden states `[rows, hidden]` against one label each, without holding all logits where the
    /// text head is frozen.
    ///
    /// # Errors
    /// The text head was not loaded, or a label beyond the vocabulary.
    pub fn text_loss(&self, pass: &Pass, hidden: &Tensor, labels: &[u32]) -> Result<HeadLoss> {
        self.text_head()?.loss(pass, hidden, labels)
    }

    fn text_head(&self) -> Result<&Projection> {
        Ok(self.lm_head.as_ref().ok_or(ModelError::NotLoaded { part: "text head" })?)
    }

    /// An empty cache for up to `capacity` tokens a row; it grows beyond if need be.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.layers.len(), capacity)
    }
}
