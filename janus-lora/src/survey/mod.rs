//! Looking at data before a run: what a table's rows come to, and what the model will see of them.

pub mod preview;
mod sheet;
pub mod stats;
#[cfg(test)]
mod tests;

pub use preview::preview;
pub use stats::{Distribution, TableStats};

use janus_core::{Diagnose, Fault};

/// A picture of data that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// The drawing library's own.
    #[error("cannot draw the rows: {reason}")]
    Draw {
        /// Why.
        reason: String,
    },
    /// A picture larger than any viewer opens.
    #[error("{rows} rows make a picture of {width} x {height} pixels, at most {limit} pixels are drawn")]
    TooLarge {
        /// Rows asked for.
        rows: usize,
        /// In pixels.
        width: u64,
        /// In pixels.
        height: u64,
        /// Most pixels.
        limit: u64,
    },
}

impl Diagnose for SurveyError {
    fn fault(&self) -> Fault {
        match self {
            SurveyError::Draw { .. } => Fault::Internal,
            SurveyError::TooLarge { .. } => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            SurveyError::Draw { .. } => Vec::new(),
            SurveyError::TooLarge { .. } => vec!["`--rows` takes a smaller number".into()],
        }
    }
}
