//! Differentiable operations: each has an analytic backward, so that nothing on a training path cuts the graph.
//!
//! candle's own fused forms of these (`softmax_last_dim`, `RmsNorm`, `LayerNorm`, `rope`) return tensors without history,
//! and its matrix product always fills the gradient of both sides. Here a frozen weight is captured by the operation and
//! only the input's gradient is formed.
//!
//! | operation | file |
//! | --- | --- |
//! | a frozen weight and its rows | [`Weight`] |
//! | product with a frozen weight, and with one under training | [`linear`], `tracked_linear` |
//! | convolution | [`conv2d`] |
//! | normalisation | [`rms_norm`](mod@rms_norm), [`layer_norm`](mod@layer_norm), [`group_norm`](mod@group_norm) |
//! | attention in blocks of queries | [`attention`](mod@attention) |
//! | rotary position embedding | [`rotary`] |
//! | activations | [`activation`] |
//! | rows of a table | [`select_rows`](mod@select_rows) |
//! | a stored matrix times a few rows, without graph | [`thin`] |
//! | dropout from a key | [`dropout`](mod@dropout) |
//! | cross-entropy | [`cross_entropy`](mod@cross_entropy), through a frozen head [`head_loss`](mod@head_loss) |
//!
//! Every operation computes in f32 whatever the storage type (f32 or bf16) and rounds once. On devices other than the
//! processor each is composed of candle's differentiable operations; the same compositions are the slow truth of the
//! tests, and [`with_composed`] runs any pass through them.

pub mod activation;
pub mod attention;
pub(crate) mod channels_last;
mod composed;
pub mod conv2d;
pub mod cross_entropy;
pub mod dropout;
pub mod group_norm;
pub mod head_loss;
mod input_gradient;
pub mod layer_norm;
pub mod linear;
mod norm_rows;
pub(crate) mod residual;
pub mod rms_norm;
pub mod rotary;
pub mod select_rows;
pub mod thin;
mod tracked_conv2d;
mod tracked_group_norm;
mod tracked_linear;
mod unrolled;
pub(crate) mod values;
pub(crate) mod weight;

pub use crate::kernel::SumOrder;
pub use attention::{AttentionMask, attention, attention_in};
pub use composed::{is_composed, on_pool, with_composed};
pub use cross_entropy::cross_entropy;
pub use dropout::dropout;
pub use group_norm::{GroupNorm, group_norm, group_norm_silu};
pub use head_loss::{HeadLoss, head_loss};
pub use layer_norm::layer_norm;
pub use rms_norm::rms_norm;
pub use select_rows::select_rows;
pub use weight::Weight;

#[cfg(test)]
pub(crate) mod check;
