//! The crate's error type: each room's own, gathered.

use janus_core::checkpoint::CheckpointError;
use janus_core::config::ConfigError;
use janus_core::hub::HubError;
use janus_core::output::OutputError;
use janus_core::processing::ProcessingError;
use janus_core::{DeviceError, Diagnose, Fault, ModelError};

use crate::adapter::AdapterError;
use crate::algebra::AlgebraError;
use crate::available_memory::MemoryLimitError;
use crate::base::BaseError;
use crate::batch::BatchError;
use crate::cache::CacheError;
use crate::culprit::Culprit;
use crate::data::DataError;
use crate::eval::NetworkError;
use crate::merge::MergeError;
use crate::probe::ProbeError;
use crate::recipe::RecipeError;
use crate::report::ReportError;
use crate::survey::SurveyError;
use crate::target::TargetError;
use crate::tasks::TaskError;
use crate::train::TrainError;

/// Anything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The frozen model's own.
    #[error(transparent)]
    Core(#[from] janus_core::Error),
    /// A base that cannot be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A table that cannot be answered.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Settings of the cache that cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Rows that cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A recipe that cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// An adapter that cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Adapters or checkpoints that cannot be computed with.
    #[error(transparent)]
    Algebra(#[from] AlgebraError),
    /// Targets that cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Rows that as a whole are not what the recipe says, or a prompt without room.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A run that cannot start or go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Weights of a network that measures pictures.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A picture of data that cannot be made.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// Adapters that must not be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Inputs that cannot be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A report that cannot be made.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A limit on memory that is none.
    #[error(transparent)]
    MemoryLimit(#[from] MemoryLimitError),
    /// A model whose values are not finite.
    #[error("{culprit}")]
    NotFinite {
        /// Where they come from.
        culprit: Box<Culprit>,
        /// What was being computed.
        source: Box<Error>,
    },
    /// What was typed does not make sense.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What helps.
        hint: String,
    },
}

impl Diagnose for Error {
    fn fault(&self) -> Fault {
        match self {
            Error::Core(e) => e.fault(),
            Error::Base(e) => e.fault(),
            Error::Batch(e) => e.fault(),
            Error::Cache(e) => e.fault(),
            Error::Data(e) => e.fault(),
            Error::Recipe(e) => e.fault(),
            Error::Adapter(e) => e.fault(),
            Error::Algebra(e) => e.fault(),
            Error::Target(e) => e.fault(),
            Error::Task(e) => e.fault(),
            Error::Train(e) => e.fault(),
            Error::Merge(e) => e.fault(),
            Error::Probe(e) => e.fault(),
            Error::Network(e) => e.fault(),
            Error::Survey(e) => e.fault(),
            Error::Report(e) => e.fault(),
            Error::MemoryLimit(_) | Error::NotFinite { .. } | Error::Usage { .. } => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Error::Core(e) => e.hints(),
            Error::Base(e) => e.hints(),
            Error::Batch(e) => e.hints(),
            Error::Cache(e) => e.hints(),
            Error::Data(e) => e.hints(),
            Error::Recipe(e) => e.hints(),
            Error::Adapter(e) => e.hints(),
            Error::Algebra(e) => e.hints(),
            Error::Target(e) => e.hints(),
            Error::Task(e) => e.hints(),
            Error::Train(e) => e.hints(),
            Error::Merge(e) => e.hints(),
            Error::Probe(e) => e.hints(),
            Error::Network(e) => e.hints(),
            Error::Survey(e) => e.hints(),
            Error::Report(e) => e.hints(),
            Error::MemoryLimit(_) => vec!["for example 8000000000; without the variable the machine is asked".into()],
            Error::NotFinite { culprit, .. } => vec![culprit.hint()],
            Error::Usage { hint, .. } => vec![hint.clone()],
        }
    }
}

/// Errors of the core's rooms come in through the core's own type.
macro_rules! through_core {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Core(error.into())
            }
        }
    )*};
}

through_core!(
    CheckpointError,
    ConfigError,
    DeviceError,
    HubError,
    ModelError,
    OutputError,
    ProcessingError,
    candle_core::Error
);

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
