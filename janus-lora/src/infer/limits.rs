//! How many requests may go on at once.

use candle_core::DType;
use janus_core::Janus;
use janus_core::config::JanusConfig;

use crate::available_memory::available_bytes;
use crate::error::Result;

/// Rows that go on side by side: what each further one adds to a step is small long before.
const ROWS: usize = 64;
/// Tokens of prompts that are computed in one pass, so that others need not wait long for their next token, and what the pass holds
/// beside keys and values stays small.
const PROMPT_TOKENS: usize = 4096;
/// Share of the memory there is that keys and values take.
const CACHE_SHARE: u64 = 2;

/// How many requests may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows side by side.
    pub rows: usize,
    /// Tokens whose keys and values are held, of all rows together, each up to its longest answer. A row with guidance has them
    /// twice.
    pub cache_tokens: usize,
    /// Tokens of the prompts that join in one pass, each beginning that they share once; a single longer prompt joins alone.
    pub prompt_tokens: usize,
}

impl Limits {
    /// Keys and values may take half of the memory there is, but always those of one request as long as the base allows.
    ///
    /// # Errors
    /// A limit on memory that is no number.
    pub fn of(model: &Janus) -> Result<Self> {
        let config = model.config();
        let longest = 2 * config.text.max_position_embeddings;
        let per_token = bytes_per_cached_token(config, model.dtype());
        let cache_tokens = match available_bytes()? {
            Some(bytes) => usize::try_from(bytes / CACHE_SHARE / per_token).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        Ok(Self { rows: ROWS, cache_tokens: cache_tokens.max(longest), prompt_tokens: PROMPT_TOKENS })
    }
}

/// Keys and values of a token in all layers.
fn bytes_per_cached_token(config: &JanusConfig, dtype: DType) -> u64 {
    let text = &config.text;
    2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.size_in_bytes()) as u64
}
