//! Adapters folded into base weights: a new checkpoint that computes the same without them, and a receipt.
//!
//! The shifts of all adapters, each times its factor, are summed in f32 and rounded once, to the base's stored type unless told
//! otherwise. The receipt says of each tensor how far it moved and what rounding took back; the result is opened again and
//! compared with base and adapters on a fixed input.
//!
//! | file | what |
//! | --- | --- |
//! | `sources` | which tensors change, and by what |
//! | `fold` | one tensor with the adapters' share in it, some rows at a time |
//! | `receipt` | norms of change and rounding loss |
//! | `check` | logits and KL of attached and merged |
//! | `error` | what is refused: no change, values that are not finite |
//!
//! Writing holds one tensor of the base and the one that replaces it, the check one block or head of a model at a time.

mod check;
mod error;
mod fold;
mod receipt;
mod sources;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD, WriteOptions, write_checkpoint};
use janus_core::config::Layout;
use janus_core::output::StagedFolder;
use serde::Serialize;

pub use check::Comparison;
pub use error::MergeError;
pub use receipt::{Change, TensorChange};

use crate::adapter::{Adapter, AdapterError, Placed, Together};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::status::Status;
use crate::train::metrics::peak_rss_bytes;
use check::Subject;
use receipt::Receipt;
use sources::Sources;

/// How to write the merged checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// Type of every tensor; the base's own where absent.
    pub dtype: Option<DType>,
    /// Layout; the base's own where absent.
    pub layout: Option<Layout>,
}

/// What a merge did.
#[derive(Debug, Clone, Serialize)]
pub struct MergeReport {
    /// Tensors that adapters spoke of; each has an entry in `tensors`.
    pub changed_tensors: usize,
    /// Bytes written.
    pub bytes: u64,
    /// Largest difference between logits of base + adapters and of the merged checkpoint.
    pub largest_logit_difference: f32,
    /// The comparison, head by head; it computes in f32.
    pub heads: [Comparison; 2],
    /// Largest resident memory of the process when tensors and comparison were done.
    pub peak_rss_bytes: u64,
    /// Change of all changed tensors together.
    pub total: Change,
    /// Change of each, in the order written.
    pub tensors: Vec<TensorChange>,
    /// Heads of the adapters: they are no part of a checkpoint, and stay with their adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads_left: Vec<String>,
}

/// Folds adapters, each with a factor on all that it shifts, into `base` and puts the result where `out` is to appear. The comparison
/// runs on `device`.
///
/// # Errors
/// Adapters that do not fit, [`MergeError`], or what reading and writing report;
/// nothing is written then.
pub fn merge(
    base: &Base,
    adapters: &[(Adapter, f64)],
    options: MergeOptions,
    device: &Device,
    out: StagedFolder,
    status: &dyn Status,
) -> Result<MergeReport> {
    refuse_no_ops(adapters)?;
    let checkpoint = base.checkpoint();
    let placed = adapters.iter().map(|(adapter, factor)| Placed::own(adapter, *factor, &Device::Cpu));
    let placed = placed.collect::<std::result::Result<Vec<_>, AdapterError>>()?;
    let sources = Sources::of(base, Together::of(&placed, base.config())?)?;
    // A tied head reads the embedding table; once the two differ, both must be stored.
    let untie = checkpoint.is_tied() && (sources.differs(EMBED_TOKENS) || sources.differs(LM_HEAD));
    let mut write = WriteOptions::new(options.layout.unwrap_or_else(|| checkpoint.layout())).with_untied_head(untie);
    if let Some(dtype) = options.dtype {
        write = write.with_dtype(dtype);
    }
    let mut receipt = Receipt::default();
    let mut transform = |name: &str, stored: Tensor| -> Result<Tensor> {
        if !sources.differs(name) {
            return Ok(stored);
        }
        let dtype = options.dtype.unwrap_or(stored.dtype());
        let (merged, sums) = sources.fold(name, &stored, dtype)?;
        receipt.enter(name, dtype, &sums);
        Ok(merged)
    };
    let bar = status.bytes("writing", 0);
    let report = write_checkpoint::<Error>(checkpoint, &write, &mut transform, out.folder(), &mut |done, total| {
        bar.set(done, total)
    })?;
    bar.finish();
    let total = receipt.total();
    if total.delta_norm == 0.0 {
        return Err(MergeError::NothingChanged { tensors: receipt.tensors.len() }.into());
    }

    let merged = Base::open_folder(base.name(), out.path())?;
    let values: u64 = checkpoint.tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let bar = status.bytes("comparing", 2 * values * DType::F32.size_in_bytes() as u64);
    let subject = |name, base, adapters| Subject { name, base, adapters, device, bar: bar.as_ref() };
    let attached = subject("base + adapters", base, adapters).logits()?;
    let heads = check::compare(&attached, &subject("the merged checkpoint", &merged, &[]).logits()?);
    bar.finish();
    out.commit()?;
    Ok(MergeReport {
        changed_tensors: receipt.tensors.len(),
        bytes: report.bytes,
        largest_logit_difference: heads.iter().map(|head| head.largest_logit_difference).fold(0.0, f32::max),
        heads,
        peak_rss_bytes: peak_rss_bytes(),
        total,
        tensors: receipt.tensors,
        heads_left: adapters.iter().flat_map(|(adapter, _)| adapter.heads.keys()).map(ToString::to_string).collect(),
    })
}

/// Refuses an adapter that can be seen to change nothing, before anything is written.
fn refuse_no_ops(adapters: &[(Adapter, f64)]) -> Result<()> {
    for (index, (adapter, factor)) in adapters.iter().enumerate() {
        if !adapter.acts(*factor)? {
            return Err(MergeError::NoOp { number: index + 1, count: adapters.len() }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
