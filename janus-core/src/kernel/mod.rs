//! Products, loops and attention on the processor: what the operations and the fused blocks stand on.
//!
//! A product is cut into blocks of 64 result columns. For each, the matching part of the weight is laid out as panels in
//! the core's own cache and met by tiles of rows, so a weight stays in memory as the checkpoint has it, row by row, and
//! serves both directions: `x·Wᵀ` forward and `dy·W` backward. Sums are f32 in an order that does not depend on the number of
//! threads, nor, where [`SumOrder`] says so, on that of rows. Why weights are not packed at load: `docs/decisions/0007-row-major-weights.md`.
//!
//! | file | holds |
//! | --- | --- |
//! | [`level`] | what the processor can do, asked once |
//! | [`element`] | f32 and bf16 values |
//! | [`rows`] | matrices as rows inside a slice |
//! | [`weights`] | the matrix of a product, of the values' type or bf16 under f32 values |
//! | [`product`] | the driver: blocks, panels, threads, what is added before rounding |
//! | [`chunk`] | what one filling of the panels holds, and how it gets there |
//! | [`panel`] | a block of a weight as panels |
//! | [`tile`] | rows times a panel: the level's tile, and plain Rust, the slow truth |
//! | `avx512` | panels, tiles and dot products by AVX-512 and AVX512-BF16 |
//! | `avx2` | the same by AVX2, in f32 |
//! | `prefetch` | lines asked for ahead |
//! | [`finish`] | what is added to a product's sums, and their rounding |
//! | [`few_rows`] | few rows: the matrix read once where it lies, at memory speed |
//! | [`blocks`] | thin factors in blocks of columns, as slots hold them |
//! | [`picture`] | pictures with their channels side by side, group norm |
//! | [`winograd`] | 3 x 3 convolutions |
//! | [`low_rank`] | products with thin f32 factors |
//! | [`attention`] | attention and its backward, head by head in blocks |
//! | [`row_math`] | norms, activations and rotations of one row, forward and backward |
//! | [`vector`] | loops compiled for each level, elementary functions |
//! | [`matrix`] | a matrix of its own memory, reused |

#![allow(clippy::too_many_arguments, reason = "a kernel's slices, sizes and strides are its interface")]

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod blocks;
mod chunk;
pub(crate) mod element;
mod few_rows;
mod finish;
pub(crate) mod level;
pub(crate) mod low_rank;
pub(crate) mod matrix;
mod panel;
pub(crate) mod picture;
#[cfg(target_arch = "x86_64")]
mod prefetch;
pub(crate) mod product;
pub(crate) mod row_math;
mod rows;
#[cfg(test)]
pub(crate) mod testing;
mod tile;
pub(crate) mod vector;
mod weights;
pub(crate) mod winograd;

pub(crate) use blocks::Blocks;
pub(crate) use element::Element;
pub(crate) use finish::{Finish, Share};
pub use level::prefers_f32;
pub(crate) use matrix::Matrix;
pub use matrix::free_spares;
pub use product::SumOrder;
pub(crate) use product::{Job, Term, product, products};
pub(crate) use rows::Rows;
pub(crate) use weights::Weights;
