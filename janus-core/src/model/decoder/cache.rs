//! Keys and values of the tokens so far.

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

use crate::error::Result;

/// Keys and values of one layer, `[batch, tokens, kv_heads, head_dim]` each.
#[derive(Debug, Clone)]
pub struct LayerCache(KvCache);

impl LayerCache {
    /// Appends and returns all of them.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(self.0.append(&keys.contiguous()?, &values.contiguous()?)?)
    }
}

/// Keys and values of all layers.
#[derive(Debug, Clone)]
pub struct Cache(Vec<LayerCache>);

impl Cache {
    pub(crate) fn new(layers: usize, capacity: usize) -> Self {
        Self((0..layers).map(|_| LayerCache(KvCache::new(1, capacity.max(1)))).collect())
    }

    pub(crate) fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.0
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.0.first().map_or(0, |layer| layer.0.current_seq_len())
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
