//! Whole transformer blocks with hand-written backward, one node each on candle's tape.
//!
//! A block of the decoder or of the vision tower whose maps stand as the checkpoint has them, and which nothing
//! stands before, is computed here in one piece, its norms frozen or trained: between its input and its output nothing
//! is put on the tape, sums are rounded where they are stored and nowhere else, and what the backward needs is kept in the
//! storage type, or not at all (recomputation). Everything else goes through the layers' own operation by operation path,
//! which is the slow truth of this room's tests.
//!
//! | file | holds |
//! | --- | --- |
//! | [`view`] | the block's parameters as slices |
//! | [`thin`] | the corrections of all sites and trained norms in one flat tensor, and their gradients |
//! | [`kronecker`] | Kronecker products of sites |
//! | [`routed`] | sites and norms whose rows have routes |
//! | [`rows`] | norms, activations and rotation, row by row |
//! | [`forward`], [`backward`] | the block |
//! | [`sink`] | where keys and values go, and what attention then reads |
//! | [`node`] | the block as an operation on the tape |
//! | [`linear`] | a single site likewise, for those outside of blocks |

#![allow(clippy::too_many_arguments, reason = "a block's parameters, plan, values and gradients are its interface")]

mod backward;
mod forward;
mod kronecker;
mod linear;
mod node;
mod routed;
mod rows;
mod sink;
mod thin;
mod view;

#[cfg(test)]
mod tests;

pub(crate) use linear::{corrected_linear, routed_linear};
pub(crate) use node::{Block, BlockNorm, Extent, Mlp};
pub(crate) use thin::SiteForm;
