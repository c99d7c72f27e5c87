//! Sight: what a run shows while it goes on and leaves behind.
//!
//! [`Sight`] stands beside the loop and is told of every step and evaluation: it writes TensorBoard event files
//! ([`events`]), samples answers and pictures at times ([`samples`]), notes what the run was made with ([`facts`]), and
//! writes `report.html`. Losses are held against those that a recipe's runs are expected to have ([`expected`]). The page
//! ([`page`], of figures by `held_out` with their `glossary`, curves by `chart` on a `scale`, samples by `shown`, and commands
//! by `command`) is made from the run folder alone, which [`record`] reads back, so that it can be made again at any time.
//! What it tells is of the adapter that the run left ([`facts::Left`]). Everything in a run folder counts as hostile: texts
//! are escaped, and no file outside it is read.

mod chart;
mod command;
mod error;
pub mod events;
pub mod expected;
pub mod facts;
mod figures;
mod glossary;
mod head_samples;
mod held_out;
pub mod page;
mod picture;
pub mod record;
pub mod samples;
pub(crate) mod scale;
mod shown;
mod sight;

pub use error::ReportError;
pub use page::write_report;
pub(crate) use picture::png as picture_png;
pub use sight::Sight;
