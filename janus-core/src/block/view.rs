//! A block's parameters as slices.

use crate::kernel::{SumOrder, Weights};

/// A norm: root-mean-square without bias, layer norm with one. Its parameters are few, so that they are widened once.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormView<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) eps: f32,
    /// Where the flat gradient has that of the weight and that of the bias, if they are trained.
    pub(super) gradients: [Option<usize>; 2],
}

impl NormView<'_> {
    /// Whether a parameter of it is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.gradients.iter().any(Option::is_some)
    }
}

/// A linear map.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinearView<'a, E> {
    /// `[output, input]`.
    pub(super) weight: Weights<'a, E>,
    /// `[output]`.
    pub(super) bias: Option<&'a [E]>,
}

/// All of a block: q, k, v, o, then the maps of the MLP.
#[derive(Debug)]
pub(super) struct BlockView<'a, E> {
    /// A single site has none.
    pub(super) norms: Option<[NormView<'a>; 2]>,
    pub(super) linears: Vec<LinearView<'a, E>>,
    /// That of the sums of every product forward.
    pub(super) order: SumOrder,
}

impl<'a, E> BlockView<'a, E> {
    /// The norms of a whole block.
    pub(super) fn block_norms(&self) -> &[NormView<'a>; 2] {
        self.norms.as_ref().expect("a block has two norms")
    }
}

/// Place of q in [`BlockView::linears`]; k and v follow.
pub(super) const Q: usize = 0;
/// Place of the attention's output map.
pub(super) const O: usize = 3;
/// First map of the MLP: gate (then up and down), or fc1 (then fc2).
pub(super) const MLP: usize = 4;
