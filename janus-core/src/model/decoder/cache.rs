//! Keys and values of the tokens so far.
//!
//! On the processor they lie in buffers of their own, head by head, and attention reads them where they are. Elsewhere
//! candle's cache holds them.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::kv_cache::KvCache;
use half::bf16;

use crate::kernel::Rows;
use crate::ops::is_composed;
use crate::ops::values::{Stored, with_slices};

/// Some of the tokens that a cache holds of one of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The row of the batch.
    pub(crate) row: usize,
    /// Which of its tokens.
    pub(crate) tokens: Range<usize>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    /// Tokens a row there is room for at first.
    capacity: usize,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    Empty,
    F32(HeadMajor<f32>),
    BF16(HeadMajor<bf16>),
    Device(KvCache),
}

/// A type of values that a cache on the processor holds.
pub(crate) trait Cached: Stored {
    /// The store of this type; an empty cache becomes one.
    fn store(cache: &mut LayerCache, batch: usize, kv_heads: usize, head_dim: usize) -> Result<&mut HeadMajor<Self>>;
}

macro_rules! cached {
    ($type:ty, $store:ident) => {
        impl Cached for $type {
            fn store(
                cache: &mut LayerCache,
                batch: usize,
                kv_heads: usize,
                head_dim: usize,
            ) -> Result<&mut HeadMajor<Self>> {
                if let Store::Empty = cache.store {
                    cache.store = Store::$store(HeadMajor::new(batch, kv_heads, head_dim, cache.capacity));
                }
                match &mut cache.store {
                    Store::$store(store)
                        if (store.batch, store.kv_heads, store.head_dim) == (batch, kv_heads, head_dim) =>
                    {
                        Ok(store)
                    }
                    _ => bail!("a cache of another batch, type or head shape is continued"),
                }
            }
        }
    };
}

cached!(f32, F32);
cached!(bf16, BF16);

impl LayerCache {
    fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), store: Store::Empty }
    }

    /// Tokens held.
    pub(super) fn len(&self) -> usize {
        match &self.store {
            Store::Empty => 0,
            Store::F32(store) => store.len,
            Store::BF16(store) => store.len,
            Store::Device(cache) => cache.current_seq_len(),
        }
    }

    /// Appends `[batch, sequence, kv_heads, head_dim]` and returns all of them, copied out where they lie head by head.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = (keys.contiguous()?, values.contiguous()?);
        if matches!(self.store, Store::Empty) && is_composed(keys.device()) {
            self.store = Store::Device(KvCache::new(1, self.capacity));
        }
        if let Store::Device(cache) = &mut self.store {
            return cache.append(&keys, &values);
        }
        match keys.dtype() {
            DType::F32 => self.append_typed::<f32>(&keys, &values),
            DType::BF16 => self.append_typed::<bf16>(&keys, &values),
            other => bail!("keys are f32 or bf16, got {other:?}"),
        }
    }

    fn append_typed<E: Cached>(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, sequence, kv_heads, head_dim) = keys.dims4()?;
        let store = E::store(self, batch, kv_heads, head_dim)?;
        let width = kv_heads * head_dim;
        with_slices::<E, _>(&[keys, values], |slices| {
            let rows = |values| Rows::dense(values, batch * sequence, width);
            store.append(rows(slices[0]), rows(slices[1]), sequence)
        })?;
        let shape = (batch, kv_heads, store.capacity, head_dim);
        let all = |values: &[E]| -> Result<Tensor> {
            let whole = Tensor::from_slice(values, shape, keys.device())?;
            whole.narrow(2, 0, store.len)?.transpose(1, 2)?.contiguous()
        };
        Ok((all(&store.keys)?, all(&store.values)?))
    }

    /// Forgets all tokens from `length` on.
    fn truncate(&mut self, length: usize) -> Result<()> {
        match &mut self.store {
            Store::Empty => {}
            Store::F32(store) => store.len = store.len.min(length),
            Store::BF16(store) => store.len = store.len.min(length),
            Store::Device(cache) => {
                if let (Some(keys), Some(values)) = (cache.k()?, cache.v()?) {
                    let length = length.min(cache.current_seq_len());
                    let (keys, values) = (keys.narrow(1, 0, length)?.copy()?, values.narrow(1, 0, length)?.copy()?);
                    cache.reset();
                    if length > 0 {
                        cache.append(&keys, &values)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn picked(&self, parts: &[Held], length: usize, capacity: usize) -> Result<Self> {
        let held = self.len();
        if let Some(part) = parts.iter().find(|part| part.tokens.end > held || part.tokens.len() > length) {
            bail!("{part:?} is no part of a cache of {held} tokens a row, or more than {length} tokens");
        }
        let capacity = capacity.max(length).max(1);
        let store = match &self.store {
            Store::Empty => Store::Empty,
            Store::F32(store) => Store::F32(store.picked(parts, length, capacity)?),
            Store::BF16(store) => Store::BF16(store.picked(parts, length, capacity)?),
            Store::Device(cache) => {
                let mut picked = KvCache::new(1, capacity);
                if let (Some(keys), Some(values)) = (cache.k()?, cache.v()?) {
                    picked.append(&picked_rows(&keys, parts, length)?, &picked_rows(&values, parts, length)?)?;
                }
                Store::Device(picked)
            }
        };
        Ok(Self { capacity, store })
    }
}

/// Of `[batch, tokens, kv_heads, head_dim]` these parts as `[parts, length, kv_heads, head_dim]`, zeros before each.
fn picked_rows(all: &Tensor, parts: &[Held], length: usize) -> Result<Tensor> {
    let (batch, tokens, kv_heads, head_dim) = all.dims4()?;
    let flat = all.contiguous()?.reshape((batch * tokens, kv_heads, head_dim))?;
    let table = Tensor::cat(&[&flat, &Tensor::zeros((1, kv_heads, head_dim), all.dtype(), all.device())?], 0)?;
    let mut order = vec![(batch * tokens) as u32; parts.len() * length];
    for (row, part) in order.chunks_exact_mut(length.max(1)).zip(parts) {
        if part.row >= batch {
            bail!("{part:?} is no part of a cache of {batch} rows");
        }
        let first = part.row * tokens;
        for (place, token) in row[length - part.tokens.len()..].iter_mut().zip(part.tokens.clone()) {
            *place = (first + token) as u32;
        }
    }
    let order = Tensor::from_vec(order, parts.len() * length, all.device())?;
    table.index_select(&order, 0)?.reshape((parts.len(), length, kv_heads, head_dim))
}

/// Keys and values on the processor, `[batch, kv_heads, capacity, head_dim]` each, of which the first `len` tokens are
/// held.
#[derive(Debug, Clone)]
pub(crate) struct HeadMajor<E> {
    keys: Vec<E>,
    values: Vec<E>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

impl<E: Stored> HeadMajor<E> {
    fn new(batch: usize, kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        let count = batch * kv_heads * capacity * head_dim;
        Self { keys: E::zeros(count), values: E::zeros(count), batch, kv_heads, head_dim, capacity, len: 0 }
    }

    /// Tokens held of each row.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Keys and values as `[batch · kv_heads · capacity, head_dim]`, and the capacity.
    pub(crate) fn matrices(&self) -> (Rows<'_, E>, Rows<'_, E>, usize) {
        let rows = self.batch * self.kv_heads * self.capacity;
        (Rows::dense(&self.keys, rows, self.head_dim), Rows::dense(&self.values, rows, self.head_dim), self.capacity)
    }

    /// Appends `sequence` tokens of every row of the batch, `[batch · sequence, kv_heads · head_dim]` each.
    pub(crate) fn append(&mut self, keys: Rows<'_, E>, values: Rows<'_, E>, sequence: usize) -> Result<()> {
        let width = self.kv_heads * self.head_dim;
        if keys.count() != self.batch * sequence || keys.width() != width || values.width() != width {
            bail!(
                "{} rows of width {} do not continue a cache of {} rows of width {width}",
                keys.count(),
                keys.width(),
                self.batch
            );
        }
        if self.len + sequence > self.capacity {
            self.grow((self.len + sequence).max(2 * self.capacity));
        }
        for (target, source) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for token in 0..source.count() {
                let (row, place) = (token / sequence, self.len + token % sequence);
                for (head, values) in source.row(token).chunks_exact(self.head_dim).enumerate() {
                    let at = ((row * self.kv_heads + head) * self.capacity + place) * self.head_dim;
                    target[at..at + self.head_dim].copy_from_slice(values);
                }
            }
        }
        self.len += sequence;
        Ok(())
    }

    /// These parts as rows of `length` tokens, zeros before each.
    fn picked(&self, parts: &[Held], length: usize, capacity: usize) -> Result<Self> {
        let mut picked = Self::new(parts.len(), self.kv_heads, self.head_dim, capacity);
        picked.len = length;
        for (row, part) in parts.iter().enumerate() {
            if part.row >= self.batch {
                bail!("{part:?} is no part of a cache of {} rows", self.batch);
            }
            let size = part.tokens.len() * self.head_dim;
            for head in 0..self.kv_heads {
                let from = ((part.row * self.kv_heads + head) * self.capacity + part.tokens.start) * self.head_dim;
                let to = ((row * self.kv_heads + head + 1) * capacity - (capacity - length)) * self.head_dim - size;
                picked.keys[to..to + size].copy_from_slice(&self.keys[from..from + size]);
                picked.values[to..to + size].copy_from_slice(&self.values[from..from + size]);
            }
        }
        Ok(picked)
    }

    fn grow(&mut self, capacity: usize) {
        let (old, new) = (self.capacity * self.head_dim, capacity * self.head_dim);
        for values in [&mut self.keys, &mut self.values] {
            let mut grown = E::zeros(self.batch * self.kv_heads * new);
            for (target, source) in grown.chunks_exact_mut(new).zip(values.chunks_exact(old)) {
                target[..old].copy_from_slice(source);
            }
            *values = grown;
        }
        self.capacity = capacity;
    }
}

/// Keys and values of all layers.
#[derive(Debug, Clone)]
pub struct Cache(Vec<LayerCache>);

impl Cache {
    pub(crate) fn new(layers: usize, capacity: usize) -> Self {
        Self((0..layers).map(|_| LayerCache::new(capacity)).collect())
    }

    pub(crate) fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.0
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.0.first().map_or(0, LayerCache::len)
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another cache, with room for `capacity` tokens a row, whose rows end in these parts of this one's and hold `length`
    /// tokens each; what stands before a part is zero and has to be masked.
    ///
    /// # Errors
    /// A part that is not held or longer than `length`.
    pub(crate) fn picked(&self, parts: &[Held], length: usize, capacity: usize) -> crate::error::Result<Self> {
        let layers = self.0.iter().map(|layer| layer.picked(parts, length, capacity));
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// Forgets all tokens from `length` on, so that another continuation of the same beginning can follow.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn truncate(&mut self, length: usize) -> crate::error::Result<()> {
        self.0.iter_mut().try_for_each(|layer| layer.truncate(length)).map_err(Into::into)
    }
}
