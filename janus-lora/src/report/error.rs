//! What keeps a report from being written or read.

use std::path::PathBuf;

use janus_core::input::InputError;
use janus_core::output::OutputError;
use janus_core::{Diagnose, Fault};

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A folder in which no run left its metrics.
    #[error("`{}` is no run folder: it has no `metrics.jsonl`", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the run that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the folder that is not read: it leads out of it, is too long or no regular file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Expected losses, or those to be compared with them, that cannot be read.
    #[error("`{}` holds no losses to compare: {reason}", path.display())]
    Curve {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A folder or file that cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A picture that cannot be encoded.
    #[error("cannot encode a picture: {reason}")]
    Picture {
        /// Why.
        reason: String,
    },
}

impl Diagnose for ReportError {
    fn fault(&self) -> Fault {
        match self {
            ReportError::Input(e) => e.fault(),
            ReportError::Output(e) => e.fault(),
            ReportError::NoRun { .. } | ReportError::Read { .. } | ReportError::Curve { .. } => Fault::Input,
            ReportError::Write { .. } | ReportError::Picture { .. } => Fault::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            ReportError::NoRun { .. } => vec!["give the folder that a recipe names as `output.dir`".into()],
            ReportError::Input(e) => e.hints(),
            ReportError::Output(e) => e.hints(),
            ReportError::Read { .. } => {
                vec!["see whether it is there and this user may read it, such as with `ls -l`".into()]
            }
            ReportError::Curve { .. } => {
                vec!["the file is one that `janus train` or `janus report` wrote; without it the report has no such curve".into()]
            }
            ReportError::Write { .. } | ReportError::Picture { .. } => Vec::new(),
        }
    }
}
