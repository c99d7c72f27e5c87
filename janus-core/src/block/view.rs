//! A block's frozen parameters as slices.

use crate::kernel::Rows;

/// A norm: root-mean-square without bias, layer norm with one.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormView<'a, E> {
    pub(super) weight: &'a [E],
    pub(super) bias: Option<&'a [E]>,
    pub(super) eps: f32,
}

/// A linear map.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinearView<'a, E> {
    /// `[output, input]`.
    pub(super) weight: Rows<'a, E>,
    /// `[output]`.
    pub(super) bias: Option<&'a [E]>,
}

/// All of a block: q, k, v, o, then the maps of the MLP.
#[derive(Debug)]
pub(super) struct BlockView<'a, E> {
    /// A single site has none.
    pub(super) norms: Option<[NormView<'a, E>; 2]>,
    pub(super) linears: Vec<LinearView<'a, E>>,
}

impl<'a, E> BlockView<'a, E> {
    /// The norms of a whole block.
    pub(super) fn block_norms(&self) -> &[NormView<'a, E>; 2] {
        self.norms.as_ref().expect("a block has two norms")
    }
}

/// Place of q in [`BlockView::linears`]; k and v follow.
pub(super) const Q: usize = 0;
/// Place of the attention's output map.
pub(super) const O: usize = 3;
/// First map of the MLP: gate (then up and down), or fc1 (then fc2).
pub(super) const MLP: usize = 4;
