//! What keeps a run from starting or from going on.

use janus_core::{Diagnose, Fault};

use crate::data::RowId;
use crate::data::index::FULL_DECODE_ROWS;

/// A run that cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Trainable tensors that the tasks should reach get no gradient.
    #[error("{} trainable tensors get no gradient: {}", .tensors.len(), listed(.tensors))]
    NoGradient {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Targets that no task of the recipe uses.
    #[error("no task of the recipe ({}) uses {}", .tasks.join(", "), listed(.paths))]
    Unreached {
        /// Site paths or modules.
        paths: Vec<String>,
        /// Tasks of the recipe.
        tasks: Vec<String>,
    },
    /// Nothing is left to train.
    #[error("the targets {} leave nothing to train for the tasks {}", listed(.targets), .tasks.join(", "))]
    NothingToTrain {
        /// Targets as written.
        targets: Vec<String>,
        /// Tasks of the recipe.
        tasks: Vec<String>,
    },
    /// A name in `modules_to_save` that is no module.
    #[error("`modules_to_save` names `{module}`, which is no module of the model")]
    UnknownModule {
        /// The name.
        module: String,
    },
    /// A row that was good when it was looked through and makes no sample now.
    #[error("row {} of row group {} in `{}` cannot be used", row.row, row.row_group, row.file.display())]
    Row {
        /// Where it stands.
        row: RowId,
        /// Why.
        source: Box<crate::error::Error>,
    },
    /// A loss that is no number.
    #[error("the loss of table `{table}` is {loss} at step {step}")]
    NotFinite {
        /// The table.
        table: String,
        /// The loss.
        loss: f64,
        /// The step.
        step: u64,
    },
    /// A metrics file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread that reads rows ahead cannot work.
    #[error("no thread to read rows with: {reason}")]
    Thread {
        /// Why.
        reason: String,
    },
    /// A plot that cannot be drawn.
    #[error("cannot draw the loss: {reason}")]
    Plot {
        /// Why.
        reason: String,
    },
}

/// The first few of a list of names.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

impl Diagnose for TrainError {
    fn fault(&self) -> Fault {
        match self {
            TrainError::NoGradient { .. }
            | TrainError::Write { .. }
            | TrainError::Thread { .. }
            | TrainError::Plot { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            TrainError::NoGradient { .. } => {
                vec!["an operation between them and the loss cuts the graph: they would never learn".into()]
            }
            TrainError::Unreached { .. } => {
                vec!["take these targets out, or add a table with a task that uses them".into()]
            }
            TrainError::NothingToTrain { .. } => vec!["`decoder` is used by every task".into()],
            TrainError::UnknownModule { .. } => {
                vec!["modules are named as in the checkpoint, for example `generation_head` or `lm_head`".into()]
            }
            TrainError::Row { .. } => vec![format!(
                "tables of more than {FULL_DECODE_ROWS} rows are not decoded beforehand; `janus data check` tells of every row's header and text"
            )],
            TrainError::NotFinite { .. } => vec!["lower `train.learning_rate`, or set `train.clip_norm`".into()],
            TrainError::Write { .. } | TrainError::Thread { .. } | TrainError::Plot { .. } => Vec::new(),
        }
    }
}
