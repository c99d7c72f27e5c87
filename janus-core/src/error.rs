//! The crate's error type, and the two things the program needs to know of any error: whose fault it is and what helps.
//!
//! Each room has an enum of its own whose variants carry the facts (what, where, expected, got); [`Error`] gathers them.
//! Advice is kept apart from facts: [`Diagnose::hints`] is printed as `hint:` lines after the chain of causes.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::hub::HubError;
use crate::output::OutputError;
use crate::processing::ProcessingError;

/// Whose fault an error is; the program's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What the user gave is wrong: usage, recipe, data, weights (exit code 2).
    Input,
    /// Anything else: a full disk, a broken network, a defect of ours (exit code 1).
    Internal,
}

/// What the program needs to know of an error besides its message.
pub trait Diagnose: std::error::Error {
    /// Whose fault it is.
    fn fault(&self) -> Fault {
        Fault::Input
    }

    /// Advice, one sentence each, lower-case and without a full stop.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Anything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `config.json` that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A weights file or checkpoint folder that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A download or a cached repository that cannot be used.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// An image, a text or a tokenizer that cannot be used.
    #[error(transparent)]
    Processing(#[from] ProcessingError),
    /// A file or folder that cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A device that cannot be computed on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What a forward pass was given does not fit the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tensor engine failed.
    #[error("computation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Diagnose for Error {
    fn fault(&self) -> Fault {
        match self {
            Error::Config(e) => e.fault(),
            Error::Checkpoint(e) => e.fault(),
            Error::Hub(e) => e.fault(),
            Error::Processing(e) => e.fault(),
            Error::Output(e) => e.fault(),
            Error::Device(e) => e.fault(),
            Error::Model(_) => Fault::Input,
            Error::Tensor(_) => Fault::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Error::Config(e) => e.hints(),
            Error::Checkpoint(e) => e.hints(),
            Error::Hub(e) => e.hints(),
            Error::Processing(e) => e.hints(),
            Error::Output(e) => e.hints(),
            Error::Device(e) => e.hints(),
            Error::Model(e) => e.hints(),
            Error::Tensor(_) => Vec::new(),
        }
    }
}

/// What a forward pass was given does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A token id beyond the embedding table.
    #[error("token id {id} at row {row}, position {position} is outside the vocabulary of {vocabulary} rows")]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// Batch row.
        row: usize,
        /// Position in the row.
        position: usize,
        /// Rows of the table.
        vocabulary: usize,
    },
    /// Image features and placeholders do not match in number.
    #[error("the prompt has {placeholders} image placeholders, but the images give {features} feature rows")]
    PlaceholderCount {
        /// Placeholders counted in the ids.
        placeholders: usize,
        /// Rows the aligner gave.
        features: usize,
    },
    /// An input of the wrong shape.
    #[error("`{what}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The input's name.
        what: &'static str,
        /// What was expected, in words.
        expected: String,
        /// What came.
        got: Vec<usize>,
    },
    /// A part that was not asked for when the model was opened.
    #[error("the {part} was not loaded")]
    NotLoaded {
        /// The part.
        part: &'static str,
    },
    /// A type the frozen weights cannot be computed in.
    #[error("cannot compute in {dtype:?}, only in f32 and bf16")]
    ComputeType {
        /// The type asked for.
        dtype: candle_core::DType,
    },
    /// NaN or infinity where a token, a code or a pixel is to be chosen.
    #[error("the {what} of the model are not finite (row {row} has {value})")]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// Batch row, counted from 0.
        row: usize,
        /// The first such value.
        value: f32,
    },
    /// Routes that leave rows out or overlap.
    #[error(
        "routes of a pass give every row exactly one mixture: they do not at row {row} (a route of {start}..{end})"
    )]
    Routes {
        /// The first row without a route, or with two.
        row: usize,
        /// First row of the route behind it.
        start: usize,
        /// The row behind its last one.
        end: usize,
    },
    /// A part with another number of rows than routes say.
    #[error("a pass over {rows} rows has routes for {routed}")]
    Unrouted {
        /// Rows of the input.
        rows: usize,
        /// Rows with a route.
        routed: usize,
    },
    /// Rows that a session could not hold even if it held no others.
    #[error("the rows need keys and values of {tokens} tokens, and there is room for {budget} in all")]
    NoRoom {
        /// Tokens of the prompts and of the longest answers.
        tokens: usize,
        /// Tokens that there is room for.
        budget: usize,
    },
    /// A route to a slot that the model does not hold.
    #[error("the model holds nothing in slot {slot}")]
    UnknownSlot {
        /// Its number.
        slot: u32,
    },
    /// A pass with routes through a site that something is attached to.
    #[error("`{path}` has a correction attached to it, which routes would leave out")]
    AttachedBesideRoutes {
        /// The site.
        path: String,
    },
    /// A value of a slot for a parameter that all rows share.
    #[error("`{name}` cannot differ from row to row")]
    NotRouted {
        /// The parameter.
        name: String,
    },
    /// No parameter of that name.
    #[error("the model has no parameter `{name}`")]
    UnknownParameter {
        /// The name asked for.
        name: String,
    },
}

impl Diagnose for ModelError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            ModelError::TokenOutOfRange { .. } => "tokenizer and weights have to come from one checkpoint",
            ModelError::PlaceholderCount { .. } => {
                "write `<image_placeholder>` once for each image, or not at all: then the images come first"
            }
            ModelError::ComputeType { .. } => "for example `bf16`",
            ModelError::NotFinite { .. } => {
                "take the base from where it was published, and leave out what was trained by a run that diverged"
            }
            ModelError::Shape { .. } => "give tensors of the shapes that the base's `config.json` asks for",
            ModelError::UnknownParameter { .. } => "`janus base inspect` lists the names",
            ModelError::NoRoom { .. } => "ask for a shorter answer, or for fewer at once",
            ModelError::AttachedBesideRoutes { .. } => "take it out, and give the model what it held as a slot",
            ModelError::NotLoaded { .. }
            | ModelError::Routes { .. }
            | ModelError::Unrouted { .. }
            | ModelError::UnknownSlot { .. }
            | ModelError::NotRouted { .. } => return Vec::new(),
        };
        vec![hint.into()]
    }
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
