//! `janus data`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Subcommand, ValueEnum};
use janus_core::home;
use janus_core::hub::HubError;
use janus_core::output::{require_file, write_file};
use janus_core::processing::Decoding;
use serde_json::json;

use super::arguments::PictureArguments;
use super::out::{done, result};
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::base::Base;
use crate::data::synth::{Domain, SynthSpec};
use crate::data::{BadRowLimit, CheckReport, DataError, Index, Split};
use crate::error::{Error, Result};
use crate::recipe::{Columns, DataLimits, DataSection, Orientation, Task};
use crate::status::Status;
use crate::survey::{self, Distribution, SurveyError, TableStats};
use crate::train::tables::{Part, Scan, Source, open_tables, open_task};
use crate::visible::one_line;

/// Rejected rows that are printed of a table for people to read; `--json` has all that are listed.
const MAX_SHOWN_ROWS: usize = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Look at every row of a recipe's tables and tell which ones a run would leave out, and why
    #[command(
        after_help = "Every row that would be left out is listed with file, row group, row and reason, beside how many
`data_limits.max_bad_rows` allows; more than that is exit code 2. What was decided of a table as a whole is
told, too: values of masks, placeholders of other toolkits, questions that are cut.

Examples:
  janus data check recipes/quickstart.toml
  janus data check my.toml data.0.train=rows.parquet --json
  janus data check my.toml data.0.train=hf://datasets/owner/name/data data_limits.max_bad_rows=20"
    )]
    Check {
        /// Recipe file
        recipe: PathBuf,
        /// Keys of the recipe to set, as `section.key=value`
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Count rows, tokens, supervised tokens and pictures of a recipe's tables, or of one table
    #[command(after_help = "Examples:
  janus data stats recipes/quickstart.toml
  janus data stats my.toml data.0.train=rows.parquet --json
  janus data stats 'rows-*.parquet' --base deepseek-ai/Janus-Pro-1B --task generate --column prompt=caption
  janus data stats tables/rows.parquet --base deepseek-ai/Janus-Pro-1B --image-root pictures
  janus data stats hf://datasets/owner/name/data --base deepseek-ai/Janus-Pro-1B")]
    Stats {
        /// Recipe file (`*.toml`), or a table: a Parquet file, glob, folder, `hf://datasets/owner/name/...` or `synth:...`
        #[arg(value_name = "RECIPE|TABLE")]
        subject: String,
        /// Keys of the recipe to set, as `section.key=value`
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// Base whose tokenizer counts the rows of a table
        #[arg(long)]
        base: Option<String>,
        /// What the rows of a table teach
        #[arg(long, value_enum, default_value_t = TaskArgument::Understand)]
        task: TaskArgument,
        /// Column of a table for a role
        #[arg(long = "column", value_name = "ROLE=COLUMN")]
        columns: Vec<String>,
        /// Folder that paths of a table's pictures may lead into besides the table's own
        #[arg(long, value_name = "FOLDER")]
        image_root: Option<String>,
        #[command(flatten)]
        reading: PictureArguments,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Draw the first rows of a run as the model sees them: pictures, and text with what is learnt set off
    #[command(after_help = "Examples:
  janus data preview recipes/quickstart.toml --out preview.png
  janus data preview my.toml data.0.train=rows.parquet --rows 24 --out rows.png")]
    Preview {
        /// Recipe file
        recipe: PathBuf,
        /// Keys of the recipe to set, as `section.key=value`
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// The PNG file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Rows, shared out among the tables
        #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=500))]
        rows: u16,
    },
    /// Draw a small data set into a Parquet file: pictures with masks, boxes, labels, captions and questions
    #[command(
        after_help = "A recipe takes the same rows for a table as `synth:DOMAIN?rows=N&seed=N&size=N&split=SPLIT`.
The same numbers give the same bytes. Some combinations are in the split `eval` only.

  inspection   metal plates with a part and a defect:
               image, mask, boxes, box_labels, label, severity, advice, question, answer, caption
  medical      chests with nodules in the lungs:
               image, mask, boxes, box_labels, label, report, question, answer, caption
  creative     products, and the same in a style:
               image, source, prompt, instruction, caption, copy, palette, label, question, answer
  world        parts of many kinds on a ground, what a base learns from:
               image, caption, label, about, question, answer, text_question, text_answer

Examples:
  janus data synth --domain inspection --out train.parquet
  janus data synth --domain medical --rows 64 --split eval --out eval.parquet
  janus data synth --domain creative --rows 2000 --seed 7 --size 384 --out products.parquet"
    )]
    Synth {
        /// What to draw
        #[arg(long, value_parser = PossibleValuesParser::new(Domain::NAMES))]
        domain: String,
        /// Number of rows [default: 512]
        #[arg(long, value_name = "N")]
        rows: Option<u32>,
        /// Which data set [default: 1]
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Width and height of the images in pixels, from 32 to 1024 [default: 64]
        #[arg(long, value_name = "N")]
        size: Option<u32>,
        /// Rows of one split never come in the other [default: train]
        #[arg(long, value_parser = ["train", "eval"])]
        split: Option<String>,
        /// The Parquet file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// What the rows of a table teach.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TaskArgument {
    Understand,
    Generate,
    Text,
    Classify,
    Locate,
    Segment,
    Retrieve,
    Edit,
}

impl DataCommand {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        match self {
            DataCommand::Preview { out, .. } | DataCommand::Synth { out, .. } => Writes::output(out),
            DataCommand::Check { .. } | DataCommand::Stats { .. } => Writes::nothing(),
        }
    }

    pub(super) fn run(self) -> Result<()> {
        match self {
            DataCommand::Check { recipe, overrides, json } => check(&recipe, &overrides, json),
            DataCommand::Stats { subject, overrides, base, task, columns, image_root, reading, json } => {
                let subject = home::expand_text(&subject).map_err(HubError::from)?;
                let mut none_good = None;
                let stats = if subject.to_lowercase().ends_with(".toml") {
                    for (name, given) in [
                        ("--base", base.is_some()),
                        ("--column", !columns.is_empty()),
                        ("--image-root", image_root.is_some()),
                    ] {
                        if given {
                            return Err(usage(format!("`{name}` belongs to a table, the recipe says it itself")));
                        }
                    }
                    if let Some(name) = reading.given() {
                        return Err(usage(format!("`{name}` belongs to a table, the recipe says it itself")));
                    }
                    stats_of_recipe(&PathBuf::from(&subject), &overrides, &mut none_good)?
                } else {
                    if let Some(first) = overrides.first() {
                        return Err(usage(format!("`{first}` sets a key of a recipe, and `{subject}` is a table")));
                    }
                    let place = image_root.as_deref();
                    let stats =
                        stats_of_table(&subject, base, task, &columns, place, reading.decoding(), &mut none_good)?;
                    vec![("rows".to_owned(), stats)]
                };
                if json {
                    report::json(&stats.into_iter().collect::<BTreeMap<_, _>>());
                } else {
                    let texts: Vec<String> = stats.iter().map(|(title, stats)| stats_text(title, stats)).collect();
                    result!("{}", texts.join("\n\n"));
                }
                none_good.map_or(Ok(()), |error| Err(Error::Data(error)))
            }
            DataCommand::Preview { recipe, overrides, out, rows } => {
                let file = require_file(&out)?;
                let recipe = super::train::load(&recipe, &overrides)?;
                let base = Base::open(&recipe.base.path, &Terminal)?;
                let tables = open_tables(&recipe, &base, &Terminal)?;
                let sheet = survey::preview(&recipe, &base, &tables, rows.into())?;
                let mut bytes = std::io::Cursor::new(Vec::new());
                let failed = |e: image::ImageError| SurveyError::Draw { reason: e.to_string() };
                sheet.write_to(&mut bytes, image::ImageFormat::Png).map_err(failed)?;
                write_file(&file, |file| file.write_all(bytes.get_ref()))?;
                done!("{rows} rows, {} x {} pixels: {}", sheet.width(), sheet.height(), out.display());
                Ok(())
            }
            DataCommand::Synth { domain, rows, seed, size, split, out } => {
                let pairs = [
                    rows.map(|rows| format!("rows={rows}")),
                    seed.map(|seed| format!("seed={seed}")),
                    size.map(|size| format!("size={size}")),
                    split.map(|split| format!("split={split}")),
                ];
                let pairs: Vec<String> = pairs.into_iter().flatten().collect();
                let spec: SynthSpec = format!("synth:{domain}?{}", pairs.join("&")).parse()?;
                spec.write(&require_file(&out)?)?;
                done!("{} rows of {spec}: {}", spec.rows(), out.display());
                Ok(())
            }
        }
    }
}

fn usage(message: String) -> Error {
    Error::Usage { message, hint: "`janus data stats --help` has an example of each".into() }
}

/// What a recipe's table has rows for, with a title each.
fn parts(section: &DataSection, number: usize) -> impl Iterator<Item = (Part<'_>, String)> {
    let part = move |split| Part { section, number: Some(number), split };
    let train = (part(Split::Train), format!("{} train", section.name));
    let eval = section.eval.as_ref().map(|_| (part(Split::Eval), format!("{} eval", section.name)));
    std::iter::once(train).chain(eval)
}

fn check(recipe: &std::path::Path, overrides: &[String], json: bool) -> Result<()> {
    let recipe = super::train::load(recipe, overrides)?;
    let base = Base::open(&recipe.base.path, &Terminal)?;
    let limit = recipe.data_limits.max_bad_rows;
    let mut reports = serde_json::Map::new();
    let mut first_error = None;
    let scan = Scan::of_everything(&recipe.data_limits);
    for (number, section) in recipe.data.iter().enumerate() {
        let task = open_task(section, Some(number), &recipe.data_limits, base.place(), &Terminal)?;
        for (part, title) in parts(section, number) {
            let source = Source::open(part, task.as_ref(), &base, scan, &Terminal)?;
            let report = CheckReport::new(&source.table, &source.index);
            let error = source.index.enforce(limit).err();
            let (allowed, verdict) = (limit.allowed(report.rows), if error.is_none() { "kept" } else { "exceeded" });
            if !json {
                result!("{title}: {} rows, {} good, {} left out", report.rows, report.accepted, report.rejected);
                result!("  budget: {allowed} rows (max_bad_rows = {limit}), {verdict}");
                source.notes.iter().for_each(|note| result!("  {}", one_line(note)));
                for reason in &report.reasons {
                    result!("  {} x {}", reason.rows, one_line(&reason.reason));
                }
                let (listed, shown) = (source.index.rejected(), source.index.rejected().len().min(MAX_SHOWN_ROWS));
                for row in &listed[..shown] {
                    result!("    {}", one_line(&row.to_string()));
                }
                match (report.rejected.saturating_sub(shown), listed.len() - shown) {
                    (0, _) => {}
                    (more, 0) => result!("    and {more} rows more, which are not listed"),
                    (more, of_these) => result!("    and {more} rows more: `--json` lists {of_these} of them"),
                }
                if let Some(clipped) = source.clipped_greys() {
                    result!("  {clipped}");
                }
            }
            let mut value = serde_json::to_value(report).expect("a report is plain data");
            value["rejected_rows"] = serde_json::to_value(source.index.rejected()).expect("rows are plain data");
            value["notes"] = json!(source.notes.to_vec());
            value["budget"] = json!({ "max_bad_rows": limit, "rows": allowed, "kept": error.is_none() });
            first_error = first_error.or(error);
            reports.insert(title, value);
        }
    }
    if json {
        report::json(&reports);
    }
    first_error.map_or(Ok(()), |error| Err(Error::Data(error)))
}

/// `none_good`: what to say at the end where a table has no row that can be used.
fn stats_of_recipe(
    path: &std::path::Path,
    overrides: &[String],
    none_good: &mut Option<DataError>,
) -> Result<Vec<(String, TableStats)>> {
    let recipe = super::train::load(path, overrides)?;
    let base = Base::open(&recipe.base.path, &Terminal)?;
    let mut all = Vec::new();
    let scan = Scan::of_a_look(&recipe.data_limits);
    for (number, section) in recipe.data.iter().enumerate() {
        let task = open_task(section, Some(number), &recipe.data_limits, base.place(), &Terminal)?;
        for (part, title) in parts(section, number) {
            let source = Source::open(part, task.as_ref(), &base, scan, &Terminal)?;
            warn_of_clipped(&source, &title);
            *none_good = none_good.take().or(without_good_row(&source.index));
            let stats = TableStats::new(&source, task.as_ref(), &base, &title, &Terminal)?;
            all.push((title, stats));
        }
    }
    Ok(all)
}

/// What to say of rows none of which can be used.
fn without_good_row(index: &Index) -> Option<DataError> {
    index.enforce(BadRowLimit::Share(1.0)).err().filter(|_| index.rows() > 0)
}

/// Says that pictures lose their shades.
fn warn_of_clipped(source: &Source, title: &str) {
    if let Some(clipped) = source.clipped_greys() {
        Terminal.warn(&format!("{title}: {clipped}"));
    }
}

fn stats_of_table(
    spec: &str,
    base: Option<String>,
    task: TaskArgument,
    columns: &[String],
    image_root: Option<&str>,
    decoding: Decoding,
    none_good: &mut Option<DataError>,
) -> Result<TableStats> {
    let base = base.ok_or_else(|| usage("a table has no tokens without a tokenizer: `--base` names one".into()))?;
    let task = match task {
        TaskArgument::Understand => Task::Understand,
        TaskArgument::Generate => Task::Generate,
        TaskArgument::Text => Task::Text,
        TaskArgument::Classify => Task::Classify,
        TaskArgument::Locate => Task::Locate,
        TaskArgument::Segment => Task::Segment,
        TaskArgument::Retrieve => Task::Retrieve,
        TaskArgument::Edit => Task::Edit,
    };
    let given = named_columns(columns, task.name(), task.roles())?;
    let section = DataSection {
        columns: given,
        image_root: image_root.map(home::expand_text).transpose().map_err(HubError::from)?,
        orientation: Some(orientation_of(decoding)),
        grey_bits: decoding.grey_bits.map(u64::from),
        ..DataSection::new("rows", task, spec)
    };
    let base = Base::open(&base, &Terminal)?;
    let limits = DataLimits::default();
    let stats = || {
        let task = open_task(&section, None, &limits, base.place(), &Terminal)?;
        let part = Part { section: &section, number: None, split: Split::Train };
        let source = Source::open(part, task.as_ref(), &base, Scan::of_a_look(&limits), &Terminal)?;
        warn_of_clipped(&source, spec);
        let fault = without_good_row(&source.index);
        Ok((TableStats::new(&source, task.as_ref(), &base, spec, &Terminal)?, fault))
    };
    let of_options = |fault: DataError| DataError::OnCommandLine(fault.into());
    match stats() {
        Ok((stats, fault)) => {
            *none_good = fault.map(of_options);
            Ok(stats)
        }
        Err(Error::Data(fault)) => Err(of_options(fault).into()),
        Err(other) => Err(other),
    }
}

/// Columns by role, each given as `ROLE=COLUMN`.
pub(super) fn named_columns(columns: &[String], task: &str, roles: &[&str]) -> Result<Columns> {
    let mut given = BTreeMap::new();
    for column in columns {
        let (role, name) =
            column.split_once('=').ok_or_else(|| usage(format!("`{column}` is not of the form `ROLE=COLUMN`")))?;
        if !roles.contains(&role) || name.is_empty() {
            let message = match roles.contains(&role) {
                true => format!("`--column {column}` names no column"),
                false => format!("`{role}` is no role of {task}"),
            };
            return Err(Error::Usage { message, hint: format!("give `ROLE=COLUMN`; roles are {}", roles.join(", ")) });
        }
        if given.insert(role.to_owned(), name.to_owned()).is_some() {
            let message = format!("`--column` names a column for `{role}` twice");
            return Err(Error::Usage { message, hint: "leave one of them out".into() });
        }
    }
    Ok(Columns::new(given))
}

/// Which way up a table's pictures are read, as a recipe says it.
pub(super) fn orientation_of(decoding: Decoding) -> Orientation {
    match decoding.orientation {
        janus_core::processing::Orientation::Upright => Orientation::Upright,
        janus_core::processing::Orientation::Stored => Orientation::Stored,
    }
}

/// The counts of a table in words and columns.
fn stats_text(title: &str, stats: &TableStats) -> String {
    let mut lines = vec![format!("{title}: {} rows, {} good, {} left out", stats.rows, stats.accepted, stats.rejected)];
    lines.extend(stats.reasons.iter().map(|(reason, rows)| format!("  {rows} x {reason}")));
    lines.extend(stats.notes.iter().map(|note| format!("  {note}")));
    if stats.images > 0 {
        lines.push(format!(
            "  {} images, {} of them repeat another one byte for byte",
            stats.images, stats.repeated_images
        ));
    }
    let line = |what: &str, found: Option<Distribution>| {
        let Distribution { min, median, p95, max, mean, total } = found?;
        let numbers = [min, median, p95, max].map(|number| number.to_string());
        Some([vec![what.to_owned()], numbers.to_vec(), vec![format!("{mean:.1}"), total.to_string()]].concat())
    };
    let rows: Vec<Vec<String>> = [
        ("tokens per row", stats.tokens),
        ("supervised tokens per row", stats.supervised),
        ("image width", stats.image_width),
        ("image height", stats.image_height),
        ("image bytes", stats.image_bytes),
    ]
    .into_iter()
    .filter_map(|(what, found)| line(what, found))
    .collect();
    if !rows.is_empty() {
        let table = report::table(&["", "min", "median", "p95", "max", "mean", "total"], &rows);
        lines.extend(table.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}
