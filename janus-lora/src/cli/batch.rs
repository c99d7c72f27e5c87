//! `janus batch`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use janus_core::Parts;
use janus_core::home;
use janus_core::hub::HubError;
use janus_core::output::require_file;
use janus_core::processing::find_placeholders;
use serde_json::json;

use super::arguments::{BaseArguments, DeviceArgument, PictureArguments, TypeArgument};
use super::ask::chosen_head;
use super::data::{named_columns, orientation_of};
use super::generate::check_guidance;
use super::out::done;
use super::picture_words::check_question;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use super::understand::check_temperature;
use crate::batch::{Asked, Done, Format, Job};
use crate::culprit::explain;
use crate::data::{DataError, Split};
use crate::error::{Error, Result};
use crate::recipe::{DataLimits, DataSection, Task};
use crate::train::signals;
use crate::train::tables::Part;

/// What each row is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BatchTask {
    /// A question about its pictures, or about nothing but the question
    Understand,
    /// A picture of its prompt
    Generate,
    /// A picture made of its own as its prompt says
    Edit,
    /// Which label its picture has
    Classify,
    /// Boxes around things in its picture
    Locate,
    /// A mask of what is looked for in its picture
    Segment,
    /// How close its picture is to its caption
    Retrieve,
}

impl BatchTask {
    fn task(self) -> Task {
        match self {
            BatchTask::Understand => Task::Understand,
            BatchTask::Generate => Task::Generate,
            BatchTask::Edit => Task::Edit,
            BatchTask::Classify => Task::Classify,
            BatchTask::Locate => Task::Locate,
            BatchTask::Segment => Task::Segment,
            BatchTask::Retrieve => Task::Retrieve,
        }
    }
}

/// Answer every row of a table.
#[derive(Debug, Args)]
#[command(
    after_help = "The table comes out with its columns and those that the task adds: `answer`; `image`; `label` and
`probability`; `boxes`, `box_labels` and `scores`; `mask` and `share`; or `similarity`. A column of such a name that
the table has already is kept as `input_NAME`. A row that cannot be answered has the reason in the column `error`.
Answers are kept beside the output until all are there: `--resume` goes on after a batch was cut off.

Examples:
  janus batch --base deepseek-ai/Janus-Pro-1B --task understand --input rows.parquet --out answers.parquet
  janus batch --base base --adapter runs/parts --task understand --input 'rows-*.parquet' --question \"Is there a defect?\" --out answers.jsonl
  janus batch --base base --task generate --input prompts.parquet --column prompt=caption --guidance 5 --seed 7 --out drawn.parquet
  janus batch --base base --adapter runs/defects --task locate --input rows.parquet --out found.parquet --resume"
)]
pub(super) struct Batch {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    dtype: TypeArgument,
    #[command(flatten)]
    device: DeviceArgument,
    /// What each row is asked
    #[arg(long, value_enum)]
    task: BatchTask,
    /// Rows: a Parquet file, a pattern, a folder, `hf://datasets/owner/name/...` or `synth:name?rows=512&seed=1`
    #[arg(long, value_name = "ROWS")]
    input: String,
    /// The table with its answers: `.parquet` or `.jsonl`, where pictures are base64
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Column of the table for a role: image, images, question; prompt; source; caption
    #[arg(long = "column", value_name = "ROLE=COLUMN")]
    columns: Vec<String>,
    /// Asked of every row in the place of a column of questions
    #[arg(long, value_name = "Q")]
    question: Option<String>,
    /// Which head of the adapters is asked, where several fit the task
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Folder that paths of the table's pictures may lead into besides the table's own
    #[arg(long, value_name = "FOLDER")]
    image_root: Option<String>,
    #[command(flatten)]
    reading: PictureArguments,
    /// Tokens of an answer at most; it ends with the base's positions, too
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    max_new_tokens: u32,
    /// 0 takes the best each time [default: 0 of texts; of pictures the base's `generation_config.json`, else 1]
    #[arg(long)]
    temperature: Option<f64>,
    /// Strength of the prompts of pictures; 1 is without guidance [default: the base's `generation_config.json`, else 5]
    #[arg(long)]
    guidance: Option<f64>,
    /// Seed of the first row's draws; each further row has the next one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on with a batch that was cut off
    #[arg(long)]
    resume: bool,
    /// Print one JSON object: out, rows, failed, resumed
    #[arg(long)]
    json: bool,
}

impl Batch {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes { on_device: self.device.may_be_gpu(), ..Writes::output(&self.out) }
    }

    /// What does not go together, before anything is read.
    fn check(&self) -> Result<Format> {
        let usage = |message: String, hint: &str| Err(Error::Usage { message, hint: hint.into() });
        let (task, draws) = (self.task.task(), matches!(self.task, BatchTask::Generate | BatchTask::Edit));
        if let Some(temperature) = self.temperature {
            check_temperature(temperature)?;
        }
        if let Some(guidance) = self.guidance {
            check_guidance(guidance)?;
        }
        let takes_head = !draws && self.task != BatchTask::Understand;
        for (name, given, fits) in [
            ("--question", self.question.is_some(), self.task == BatchTask::Understand),
            ("--guidance", self.guidance.is_some(), draws),
            ("--head", self.head.is_some(), takes_head),
            ("--temperature", self.temperature.is_some(), !takes_head),
        ] {
            if given && !fits {
                return usage(format!("`--task {}` takes no `{name}`", task.name()), "leave it out");
            }
        }
        if let Some(question) = &self.question {
            check_question(question)?;
            if question.trim().is_empty() {
                return usage(
                    "`--question` is empty".into(),
                    "leave it out: rows without one are asked to describe the picture",
                );
            }
            if let Some((spelling, _)) = find_placeholders(question).video {
                return usage(
                    format!("the question contains `{spelling}`, which stands for a video"),
                    "rows have pictures alone",
                );
            }
        }
        let extension = self.out.extension().and_then(|name| name.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("parquet") => Ok(Format::Parquet),
            Some("jsonl") => Ok(Format::JsonLines),
            _ => usage(
                format!("`--out {}` is named neither `.parquet` nor `.jsonl`", self.out.display()),
                "the name says the format",
            ),
        }
    }

    pub(super) fn run(self) -> Result<()> {
        let format = self.check()?;
        let task = self.task.task();
        let columns = named_columns(&self.columns, task.name(), Asked::roles(task))?;
        for (one, other) in [("image", "images"), ("question", "")] {
            let is_other = if other.is_empty() { self.question.is_some() } else { columns.is_given(other) };
            if columns.is_given(one) && is_other {
                let other =
                    if other.is_empty() { "`--question`".to_owned() } else { format!("`--column {other}=…`") };
                let message = format!("`--column {one}=…` and {other} say the same thing twice");
                return Err(Error::Usage { message, hint: "leave one of them out".into() });
            }
        }
        if self.out.symlink_metadata().is_err() {
            require_file(&self.out)?;
        }
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let takes_head = !task.draws() && task != Task::Understand;
        let head = match takes_head {
            true => {
                let (name, head) = chosen_head(task.name(), self.head.as_deref(), &adapters)?;
                Some((name.to_owned(), head.kind.clone()))
            }
            false => None,
        };
        let mut asked = Asked::new(task, columns, head);
        asked.question = self.question.clone();
        asked.options.max_new_tokens = self.max_new_tokens as usize;
        (asked.options.temperature, asked.options.guidance) = (self.temperature, self.guidance);
        asked.options.seed = self.seed;
        let mut decoding = self.reading.decoding();
        self.reading.settle_decoding(&mut decoding, &adapters, task.name(), &Terminal);
        let section = DataSection {
            image_root: self.image_root.as_deref().map(home::expand_text).transpose().map_err(HubError::from)?,
            orientation: Some(orientation_of(decoding)),
            grey_bits: decoding.grey_bits.map(u64::from),
            ..DataSection::new("rows", task, &self.input)
        };
        let of_options = |error: Error| match error {
            Error::Data(fault) => DataError::OnCommandLine(fault.into()).into(),
            other => other,
        };
        let limits = DataLimits::default();
        let part = Part { section: &section, number: None, split: Split::Train };
        let files = part.files(base.place(), limits.max_download_bytes, &Terminal).map_err(of_options)?;
        let parts = Parts {
            text_head: task == Task::Understand,
            vision: task != Task::Generate,
            generation: task.draws(),
            image_tokenizer: task.draws(),
        };
        let (model, heads) = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
        signals::listen();
        let options = part.read_options(limits.max_page_bytes);
        let job = Job {
            model: &model,
            base: &base,
            adapters: &adapters,
            heads: &heads,
            asked: &asked,
            files: &files,
            options,
            decoding,
        };
        let done = job.run(&self.out, format, self.resume, &Terminal);
        let Done { rows, failed, resumed } = done.map_err(|error| explain(of_options(error), &base, &adapters))?;
        if self.json {
            report::json(&json!({ "out": self.out, "rows": rows, "failed": failed, "resumed": resumed }));
        } else {
            let not_answered = if failed > 0 { format!(", {failed} of them not answered") } else { String::new() };
            done!("{rows} rows{not_answered}: {}", self.out.display());
        }
        Ok(())
    }
}
