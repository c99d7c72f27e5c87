//! What keeps a run from starting or from going on.

use std::io;
use std::path::{Path, PathBuf};

use janus_core::output::is_in_the_way;
use janus_core::{Diagnose, Fault};

use super::files::RECIPE_FILE;
use super::identity::ChangedRows;
use super::signals::StopSignal;
use crate::available_memory::MEMORY_VARIABLE;
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
    /// A factor behind the adapter that a run is to begin from.
    #[error("`adapter.start_from` names `{path}` with a factor of {factor}, and a run begins from an adapter as it is")]
    StartFactor {
        /// The adapter.
        path: String,
        /// On all that it shifts.
        factor: f64,
    },
    /// A pattern of a recipe's table that is of no site.
    #[error("`{pattern}` in `{key}` matches none of the adapter's sites")]
    IdlePattern {
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A layer that no target lies in.
    #[error("`adapter.layers` names layer {layer}, which none of the targets lies in")]
    NoLayer {
        /// Its number.
        layer: u64,
        /// The last layer that a target lies in.
        last: Option<u64>,
    },
    /// Labels that make no table to classify.
    #[error("`{column}` of `{table}` holds {}, expected 2 to {most} labels", labels_counted(*.count, *.most))]
    Labels {
        /// The table.
        table: String,
        /// Its column of labels.
        column: String,
        /// Different labels found.
        count: usize,
        /// The fewest that make a table.
        least: usize,
        /// The most that there may be.
        most: usize,
    },
    /// An alignment that moves nothing.
    #[error("`[mifs]` can teach nothing: nothing is trained at or below the features that it aligns")]
    NothingToAlign,
    /// An alignment without pairs.
    #[error("`[mifs]` can teach nothing: no batch has two pictures to hold against each other")]
    TooFewToAlign,
    /// Codes that are learnt while what makes them changes.
    #[error("`{table}` learns image codes, which change with `{name}`, which is trained beside it")]
    MovingCodes {
        /// The table.
        table: String,
        /// The first such site or parameter.
        name: String,
    },
    /// A site that two stages give different forms.
    #[error(
        "the stage `{stage}` gives `{path}` rank {} and alpha {}, a stage before it rank {} and alpha {}", now.0, now.1, was.0, was.1
    )]
    OtherForm {
        /// The site.
        path: String,
        /// The later stage.
        stage: String,
        /// Rank and alpha of the earlier stage.
        was: (usize, f64),
        /// Those of the later one.
        now: (usize, f64),
    },
    /// A learning rate for what is not there.
    #[error("`train.rates` names `{module}`, of which nothing is trained")]
    UnusedRate {
        /// The module.
        module: String,
    },
    /// A contrastive task whose batches are of one row.
    #[error("`{table}` can teach nothing: no batch has two of its rows to hold against each other")]
    NothingToHoldAgainst {
        /// The table.
        table: String,
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
    /// A loss or a gradient that is no number; nothing has moved.
    #[error("{} on table `{table}`: {what}", step_named(*.step))]
    NotFinite {
        /// The table.
        table: String,
        /// What is no number, and what it is.
        what: String,
        /// The step, from 0.
        step: u64,
        /// Number of the step's batch, from 0; absent where only their sum is no number.
        batch: Option<usize>,
    },
    /// More steps without a finite loss and gradient than the recipe puts up with.
    #[error(
        "{skipped} steps gave no finite loss and gradient, `train.max_skipped_steps` = {allowed}; the last, {reason}, on {}",
        rows_listed(.rows)
    )]
    TooManySkipped {
        /// Steps skipped.
        skipped: u64,
        /// Steps that may be.
        allowed: u64,
        /// What the last was.
        reason: String,
        /// Rows of the last.
        rows: Vec<RowId>,
    },
    /// An evaluation without the figure that the recipe stops by.
    #[error("`train.early_stopping.metric` is `{metric}`, and the evaluation gives {}", listed(.found))]
    NoMetric {
        /// What the recipe names.
        metric: String,
        /// What there is.
        found: Vec<String>,
    },
    /// A signal asked the run to stop.
    #[error("stopped by {signal}{}", .checkpoint.as_ref().map_or_else(
        || " before anything was to be saved".to_owned(),
        |(step, folder)| format!(" after step {step}, saved in `{}`", folder.display()),
    ))]
    Stopped {
        /// Which.
        signal: StopSignal,
        /// Steps done and the checkpoint of them.
        checkpoint: Option<(u64, PathBuf)>,
    },
    /// An output folder that holds a run.
    #[error("output folder `{}` holds a run", folder.display())]
    RunExists {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder to resume in that holds something else.
    #[error("output folder `{}` is not empty and holds no run", folder.display())]
    NotARun {
        /// The folder.
        folder: PathBuf,
    },
    /// A run folder to resume in with a link that leads out of it.
    #[error("`{}` is a link that leads out of the run folder `{}`, to nothing, or past a file of the run", link.display(), folder.display())]
    Link {
        /// The folder.
        folder: PathBuf,
        /// The link.
        link: PathBuf,
    },
    /// A run folder that every user may write to.
    #[error("every user may write to the run folder `{}`", folder.display())]
    WorldWritable {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process works in the run folder.
    #[error("another process is at work in `{}`", folder.display())]
    Busy {
        /// The folder.
        folder: PathBuf,
    },
    /// A run to resume that was another one.
    #[error("the run in `{}` cannot be resumed so: {}", folder.display(), differences.join("; "))]
    OtherRun {
        /// The run folder.
        folder: PathBuf,
        /// What differs, each with what it was and what it is.
        differences: Vec<String>,
        /// What works instead, where there is more to say than the usual.
        instead: Vec<String>,
    },
    /// A run to resume with rows that have changed in files of the same length and footer.
    #[error("the run in `{}` cannot be resumed: {changed}", folder.display())]
    ChangedRows {
        /// The run folder.
        folder: PathBuf,
        /// Which.
        changed: ChangedRows,
    },
    /// A run that an earlier version began, which judged or read its rows otherwise.
    #[error(
        "the run in `{}` began with an earlier version of janus, which took its rows otherwise: {}",
        folder.display(),
        differences.join("; ")
    )]
    OfBefore {
        /// The run folder.
        folder: PathBuf,
        /// What differs, by table.
        differences: Vec<String>,
        /// What today's rules say of the rows, where they refuse them.
        refused: Option<Box<crate::error::Error>>,
    },
    /// A checkpoint that is damaged or not of this run.
    #[error("checkpoint `{}` cannot be used: {problem}", folder.display())]
    Checkpoint {
        /// The checkpoint folder.
        folder: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No checkpoint of several is whole.
    #[error("none of the {count} checkpoints in `{}` can be used", folder.display())]
    NoWholeCheckpoint {
        /// The run folder.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        source: Box<crate::error::Error>,
    },
    /// A run folder that takes no writing, found out before anything is begun.
    #[error("nothing can be written to the run folder `{}`", folder.display())]
    ReadOnly {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A metrics file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A data file that cannot be read any more.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread that reads rows ahead cannot work.
    #[error("no thread to read rows with: {reason}")]
    Thread {
        /// Why.
        reason: String,
    },
    /// A run that needs more memory than there is.
    #[error("the run needs about {predicted_bytes} bytes of memory, {available_bytes} are there")]
    NoRoom {
        /// What it would hold at its largest.
        predicted_bytes: u64,
        /// What the machine, a control group or the user leaves to it.
        available_bytes: u64,
        /// What would make it fit.
        remedies: Vec<String>,
    },
    /// A plot that cannot be drawn.
    #[error("cannot draw the loss: {reason}")]
    Plot {
        /// Why.
        reason: String,
    },
}

/// The command that resumes the run in a folder, by the recipe that it keeps.
pub(super) fn resume_command(run: &Path) -> String {
    format!("janus train {} --resume", shell_word(&run.join(RECIPE_FILE)))
}

/// A folder beside a run's that is not there yet.
fn new_folder_beside(run: &Path) -> PathBuf {
    let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let names = std::iter::once("new".to_owned()).chain((2..100).map(|number| format!("new-{number}")));
    let mut folders = names.map(|end| run.with_file_name(format!("{name}-{end}")));
    folders.find(|folder| !folder.exists()).unwrap_or_else(|| run.with_file_name(format!("{name}-another")))
}

/// A path as a shell reads it.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
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

/// The first few of a list of rows.
pub(super) fn rows_listed(rows: &[RowId]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = rows.iter().take(SHOWN).map(RowId::to_string).collect();
    match rows.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more rows", shown.join(", ")),
        _ => shown.join(", "),
    }
}

fn labels_counted(count: usize, most: usize) -> String {
    match count {
        1 => "one label".into(),
        count if count > most => format!("more than {most} labels"),
        count => format!("{count} labels"),
    }
}

/// Whether something else lies where a run writes.
fn lies_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput || is_in_the_way(error)
}

/// A step from 0 on; the check before the first one is at the end of all steps.
fn step_named(step: u64) -> String {
    step.checked_add(1).map_or_else(|| "before the first step".into(), |number| format!("step {number}"))
}

impl Diagnose for TrainError {
    fn fault(&self) -> Fault {
        match self {
            TrainError::Write { source, .. } if lies_there(source) => Fault::Input,
            TrainError::NoGradient { .. }
            | TrainError::Write { .. }
            | TrainError::Thread { .. }
            | TrainError::Plot { .. }
            | TrainError::Stopped { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            TrainError::Write { source, .. } if lies_there(source) => {
                vec!["move it away: a run writes a file of its own there".into()]
            }
            TrainError::NoGradient { .. } => {
                vec!["an operation between them and the loss cuts the graph: they would never learn".into()]
            }
            TrainError::Unreached { .. } => {
                vec!["take these targets out, or add a table with a task that uses them".into()]
            }
            TrainError::Labels { table, .. } => {
                vec![format!(
                    "`columns` names the column of `{table}` that has them; numbers to predict are no labels"
                )]
            }
            TrainError::NothingToAlign => vec![
                "add `vision`, `aligner` or `generation` to `adapter.targets`, or a `[dynamic]` section, or leave `[mifs]` out"
                    .into(),
            ],
            TrainError::UnusedRate { .. } => {
                vec!["name whole segments of a checkpoint path, such as `vision_model` or `language_model.layers.0`".into()]
            }
            TrainError::OtherForm { .. } => {
                vec!["all stages train one adapter: give `rank_pattern` and `alpha_pattern` in `[adapter]`, for all stages".into()]
            }
            TrainError::MovingCodes { .. } => {
                vec!["train the image tokenizer in a `[[stage]]` of its own, before the tables that learn its codes".into()]
            }
            TrainError::TooFewToAlign | TrainError::NothingToHoldAgainst { .. } => {
                vec!["set `train.batch_size` higher, or `train.mixture = \"each\"`".into()]
            }
            TrainError::StartFactor { path, factor } => vec![
                "leave the factor out, or write the adapter with it first".into(),
                format!(
                    "`janus adapter combine {}:{factor} --method cat --out FOLDER` does that; its scale is 1, as `adapter.scale` is to be then",
                    shell_word(Path::new(path))
                ),
            ],
            TrainError::IdlePattern { .. } => {
                vec!["a pattern matches trailing whole segments of a path; `janus train RECIPE --dry-run` lists the sites".into()]
            }
            TrainError::NoLayer { last: Some(last), .. } => vec![format!("layers are counted from 0, here up to {last}")],
            TrainError::NoLayer { last: None, .. } => vec!["leave `layers` out: no target lies in a layer".into()],
            TrainError::NothingToTrain { .. } => vec!["`decoder` is used by every task".into()],
            TrainError::UnknownModule { .. } => {
                vec!["modules are named as in the checkpoint, for example `generation_head` or `lm_head`".into()]
            }
            TrainError::Row { .. } => vec![format!(
                "a run that reads fewer rows than a table of more than {FULL_DECODE_ROWS} has does not decode it beforehand; `janus data check` finds all damaged pictures"
            )],
            TrainError::NoRoom { remedies, .. } => {
                let limit = format!("`{MEMORY_VARIABLE}` says how many bytes to count on, whatever the machine tells");
                remedies.iter().cloned().chain([limit]).collect()
            }
            TrainError::NotFinite { step: u64::MAX, .. } => {
                vec!["lower `adapter.scale`, or take another `adapter.init`; without either, look at the base and the rows".into()]
            }
            TrainError::NotFinite { .. } => vec!["lower `train.learning_rate`, or set `train.clip_norm`".into()],
            TrainError::TooManySkipped { .. } => vec![
                "look at these rows with `janus data check`".into(),
                "lower `train.learning_rate`, or set `train.clip_norm`".into(),
            ],
            TrainError::NoMetric { .. } => vec!["name one of these, as `table.metric`".into()],
            TrainError::Stopped { checkpoint: Some((_, checkpoint)), .. } => {
                let run = checkpoint.ancestors().nth(2).unwrap_or(checkpoint);
                vec![format!("`{}` goes on from there", resume_command(run))]
            }
            TrainError::RunExists { folder } => {
                vec![format!("`{}` resumes it; a new run needs another `output.dir`", resume_command(folder))]
            }
            TrainError::NotARun { .. } => vec!["choose the folder of the run, or a new one".into()],
            TrainError::Link { .. } => vec!["put the file or folder itself there, or remove the link".into()],
            TrainError::WorldWritable { folder } => {
                vec![format!("`chmod o-w {}` keeps others from changing what the run goes on with", shell_word(folder))]
            }
            TrainError::ReadOnly { .. } => vec![
                "make it writable, or copy it to where you may write and give the copy as `output.dir`: the run goes on there"
                    .into(),
            ],
            TrainError::Busy { .. } => vec!["wait for its end, or choose another `output.dir`".into()],
            TrainError::OtherRun { instead, .. } if !instead.is_empty() => instead.clone(),
            TrainError::OtherRun { .. } => {
                vec!["resume with what the run began with, or start a new run in another `output.dir`".into()]
            }
            TrainError::ChangedRows { folder, .. } => vec![
                "put back the file that the run began with, and the pictures that its rows name".into(),
                format!(
                    "or begin a new run with the rows of today: `janus train {} output.dir={}`",
                    shell_word(&folder.join(RECIPE_FILE)),
                    shell_word(&new_folder_beside(folder))
                ),
            ],
            TrainError::OfBefore { folder, refused, .. } => {
                let mut hints = vec!["finish it with the version of janus that began it".to_owned()];
                match refused.as_deref() {
                    None => hints.push(format!(
                        "or begin a new run: `janus train {} output.dir={}`",
                        shell_word(&folder.join(RECIPE_FILE)),
                        shell_word(&new_folder_beside(folder))
                    )),
                    Some(crate::error::Error::Task(error)) => {
                        hints.extend(error.hints().iter().map(|hint| format!("for a new run in another folder: {hint}")));
                    }
                    Some(_) => hints.push("a new run needs other rows: `janus data check` tells what is wrong with each".into()),
                }
                hints
            }
            TrainError::Checkpoint { .. } | TrainError::NoWholeCheckpoint { .. } => {
                vec!["without the folder `checkpoints`, `--resume` starts at step 0".into()]
            }
            TrainError::Read { .. } => {
                vec!["see whether it is a file that is whole and that this user may read, such as with `ls -l`".into()]
            }
            TrainError::Stopped { .. }
            | TrainError::Write { .. }
            | TrainError::Thread { .. }
            | TrainError::Plot { .. } => Vec::new(),
        }
    }
}
