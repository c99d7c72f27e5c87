//! What can go wrong with a table that is to be answered.

use std::path::PathBuf;

use janus_core::{Diagnose, Fault};

use crate::train::signals::StopSignal;

/// What can go wrong with a table that is to be answered.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// An output that is there.
    #[error("`{}` is there already", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
        /// Whether a batch was to go on.
        resume: bool,
    },
    /// Answers of a batch that was cut off, which nobody asked to go on with.
    #[error("`{}` has answers of a batch that was cut off", path.display())]
    CutOff {
        /// Where they are.
        path: PathBuf,
    },
    /// Answers of a batch that was asked otherwise.
    #[error("`{}` has answers of another batch, not of the same {what}", path.display())]
    Another {
        /// Where they are.
        path: PathBuf,
        /// What was different.
        what: String,
    },
    /// A file of answers that is none.
    #[error("`{}` has no answers of a batch: {reason}", path.display())]
    NoJournal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process that answers the same table.
    #[error("`{}` is in use: another process answers this table", path.display())]
    InUse {
        /// Where its answers are.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Files of one table that have a column in different types.
    #[error("the column `{column}` is {first} in some of the table's files and {other} in others")]
    Types {
        /// The column.
        column: String,
        /// Its type in the first file that has it.
        first: String,
        /// Another one.
        other: String,
    },
    /// Two columns of one name.
    #[error("`{}` has several columns `{column}`", path.display())]
    Repeated {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },
    /// A row that cannot be read.
    #[error("{reason}")]
    Row {
        /// Why.
        reason: String,
    },
    /// A signal.
    #[error("stopped by {signal} with the answers of {rows} rows, which are kept")]
    Stopped {
        /// Which.
        signal: StopSignal,
        /// Rows with an answer.
        rows: usize,
    },
}

impl Diagnose for BatchError {
    fn fault(&self) -> Fault {
        match self {
            BatchError::Write { .. } | BatchError::Stopped { .. } => Fault::Internal,
            BatchError::OutputExists { .. }
            | BatchError::CutOff { .. }
            | BatchError::Another { .. }
            | BatchError::NoJournal { .. }
            | BatchError::InUse { .. }
            | BatchError::Read { .. }
            | BatchError::Repeated { .. }
            | BatchError::Row { .. }
            | BatchError::Types { .. } => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            BatchError::OutputExists { resume: true, .. } => {
                "a batch that goes on writes it at its end: move it away, or if it is that batch's own, remove `OUT.answers`"
            }
            BatchError::OutputExists { .. } => "name another file, or move this one away",
            BatchError::CutOff { .. } => {
                "the same command with `--resume` goes on from there; remove the file to begin anew"
            }
            BatchError::Another { .. } => "give what was given then, or remove the file to begin anew",
            BatchError::NoJournal { .. } => "move it away",
            BatchError::InUse { .. } => "wait until that has ended, or name another output",
            BatchError::Read { .. } => "see whether it is a file that this user may read",
            BatchError::Types { .. } => "give the files as tables of their own",
            BatchError::Repeated { .. } => "give them names of their own: one of them would be lost",
            BatchError::Stopped { .. } => "the same command with `--resume` goes on from there",
            BatchError::Write { .. } => {
                "see whether there is room and whether this user may write there; answers are kept in `OUT.answers` meanwhile"
            }
            BatchError::Row { .. } => return Vec::new(),
        };
        vec![hint.into()]
    }
}
