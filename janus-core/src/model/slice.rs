//! Some of the decoder and of the vision tower, for a pass that holds one slice after the other.

use std::ops::Range;

/// Which of the decoder to load, beside the text head, and which of the vision part where [`super::Parts`] asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// The decoder's embedding table.
    pub embeddings: bool,
    /// Blocks of the decoder, those beyond the last left out.
    pub layers: Range<usize>,
    /// The decoder's final norm.
    pub norm: bool,
    /// What is below and above the tower's blocks: patch and position embeddings, `post_layernorm` and the aligner.
    pub vision_ends: bool,
    /// Blocks of the tower, those beyond the last left out.
    pub vision_layers: Range<usize>,
}

impl Slice {
    /// All of both. [`Slice::default`] is nothing of either.
    pub fn whole() -> Self {
        let all = 0..usize::MAX;
        Self { embeddings: true, layers: all.clone(), norm: true, vision_ends: true, vision_layers: all }
    }
}
