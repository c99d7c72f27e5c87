//! Adapters out of adapters and out of checkpoints, and what two of them differ by. None of it computes with a model, and only
//! extraction reads weights of a base: an adapter is its shifts, B·A times a scale at each site.
//!
//! | file | what |
//! | --- | --- |
//! | `folder` | adapter folders read without a base, and new ones written |
//! | `factors` | the factors of one site |
//! | `rules` | sums, pruning, majority of signs |
//! | `combine` | one adapter out of several, as PEFT's `add_weighted_adapter` |
//! | `resize` | another rank |
//! | `extract` | an adapter out of two checkpoints |
//! | `diff` | two adapters, site by site |
//! | `spectrum`, `picture` | norm, effective rank and singular values of a shift |
//! | `error` | what is refused |

mod combine;
mod diff;
mod error;
mod extract;
mod factors;
mod folder;
mod picture;
mod resize;
mod rules;
mod spectrum;
#[cfg(test)]
pub(crate) mod testing;

pub use combine::{CombineOptions, Method, combine};
pub use diff::{Difference, Norms, SiteDifference, TensorDifference, diff};
pub use error::AlgebraError;
pub use extract::{ExtractOptions, Extracted, ExtractedSite, extract};
pub use factors::{Factors, Kind};
pub use folder::{AdapterFolder, NewAdapter};
pub use picture::{SiteSpectrum, picture};
pub use resize::{Resized, Size, kept_of_all, resize};
pub use rules::MajoritySign;
pub use spectrum::Spectrum;
