//! `janus bench`.

use candle_core::DType;
use clap::{Args, Subcommand};
use janus_core::config::JanusConfig;
use serde::Serialize;

use super::arguments::DeviceArgument;
use super::out::result;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::base::shape_hint;
use crate::bench::{
    self, BankOptions, Figures, GenerateOptions, Model, SwitchOptions, TrainOptions, UnderstandOptions,
};
use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::recipe::{AdapterMethod, Task};
use crate::status::{Status, duration};

/// Rows of one step at most: each keeps its activations.
const MAX_BATCH: i64 = 1024;
/// Steps, rounds and tokens at most.
const MAX_COUNT: i64 = 16_384;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Optimiser steps of an adapter, LoRA of rank 8 by default: one image and 64 text tokens, 32 of them supervised
    #[command(after_help = "Examples:
  janus bench train --shape janus-pro-1b --dtype bf16 --json
  janus bench train --shape janus-pro-1b --targets decoder,vision,aligner
  janus bench train --shape janus-pro-1b --method dora
  janus bench train --shape janus-pro-1b --cached-features --steps 8
  janus bench train --shape janus-small --dtype f32 --task generate --batch 4")]
    Train {
        #[command(flatten)]
        model: ModelArguments,
        /// What a row teaches: understand, generate (a prompt of 32 tokens and an image's codes) or text
        #[arg(long, default_value = "understand")]
        task: String,
        /// Method of the adapter: lora, dora, loha, lokr, vera or ia3, of rank 8 where it has one
        #[arg(long, default_value = "lora")]
        method: String,
        /// Presets (decoder, vision, aligner, generation, all) or path patterns, with commas between them
        #[arg(long, value_delimiter = ',', default_value = "decoder")]
        targets: Vec<String>,
        /// Optimiser steps; the first is left out of the median
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=MAX_COUNT))]
        steps: u32,
        /// Rows of a step
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH))]
        batch: u32,
        /// Compute the image's features once before the first step, as later epochs find them
        #[arg(long)]
        cached_features: bool,
        /// Keep the inputs of blocks alone and compute the rest again in the backward
        #[arg(long)]
        recompute: bool,
    },
    /// Answers about one image and 64 text tokens: time to the first token, then tokens per second
    #[command(after_help = "Examples:
  janus bench understand --shape janus-pro-1b --dtype bf16 --json
  janus bench understand --shape janus-small --tokens 8 --rounds 5")]
    Understand {
        #[command(flatten)]
        model: ModelArguments,
        /// Tokens drawn after the first
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
        tokens: u32,
        /// Answers; the first is left out where there are several
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
        rounds: u32,
    },
    /// The codes of one image with guidance 5, and its decoding
    #[command(after_help = "Examples:
  janus bench generate --shape janus-pro-1b --dtype bf16 --json
  janus bench generate --shape janus-pro-1b --tokens 32")]
    Generate {
        #[command(flatten)]
        model: ModelArguments,
        /// Codes to draw; without it all codes of an image
        #[arg(long, value_parser = clap::value_parser!(u32).range(2..=MAX_COUNT))]
        tokens: Option<u32>,
    },
    /// Many adapters over one base: rows of different ones in one pass against rows of the same one
    #[command(after_help = "Examples:
  janus bench bank --shape janus-pro-1b --dtype bf16 --json
  janus bench bank --shape janus-pro-1b --dtype bf16 --prompt-tokens 640
  janus bench bank --shape janus-small --adapters 4 --rank 16 --rows 8")]
    Bank {
        #[command(flatten)]
        model: ModelArguments,
        /// Adapters that are held
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH))]
        adapters: u32,
        /// Rank of each
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH))]
        rank: u32,
        /// Presets (decoder) or path patterns, with commas between them
        #[arg(long, value_delimiter = ',', default_value = "decoder")]
        targets: Vec<String>,
        /// Rows of a pass, one token each
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH))]
        rows: u32,
        /// Tokens of each row before the first measured one
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
        prompt_tokens: u32,
        /// Steps of each kind; the first is left out
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(2..=MAX_COUNT))]
        rounds: u32,
    },
    /// What it costs to turn from one modality to the other with a dynamic visual encoder
    #[command(after_help = "Examples:
  janus bench switch --shape janus-pro-1b --dtype bf16 --json
  janus bench switch --shape janus-small --rounds 200")]
    Switch {
        #[command(flatten)]
        model: ModelArguments,
        /// Turns there and back; the first is left out
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=MAX_COUNT))]
        rounds: u32,
    },
}

/// What is measured, and how it is told.
#[derive(Debug, Args)]
pub(super) struct ModelArguments {
    /// janus-tiny, janus-small, janus-1.3b, janus-pro-1b or janus-pro-7b
    #[arg(long, default_value = "janus-pro-1b")]
    shape: String,
    /// What the frozen weights are computed in: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: String,
    #[command(flatten)]
    device: DeviceArgument,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl ModelArguments {
    fn model(&self) -> Result<Model> {
        let shape = self.shape.clone();
        let config = JanusConfig::shape(&shape).ok_or_else(|| Error::Usage {
            message: format!("there is no shape `{shape}`"),
            hint: shape_hint(&shape),
        })?;
        let dtype = match self.dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            other => return Err(unknown("computed type", other, &["f32", "bf16"])),
        };
        Ok(Model { shape, config, dtype, device: self.device.open()? })
    }

    /// Prints a report: one JSON object, or a table of its `rows` and what every measurement tells.
    fn tell(&self, report: &impl Serialize, figures: &Figures, rows: Vec<(&str, String)>) {
        if figures.dtype == "bf16"
            && figures.device == "cpu"
            && let Some(hint) = report::faster_type("--dtype f32", None)
        {
            Terminal.note(&format!("hint: {hint}"));
        }
        if self.json {
            return report::json(report);
        }
        let place = match figures.device {
            "cpu" => format!("{} threads", figures.threads),
            device => format!("on {device}"),
        };
        let model = format!("{} in {}, {place}", figures.shape, figures.dtype);
        let mut lines = vec![("model", model), ("weights drawn in", seconds(figures.opening_seconds))];
        lines.extend(rows);
        lines.push(("peak memory", report::bytes(figures.peak_rss_bytes)));
        let lines: Vec<Vec<String>> = lines.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        result!("{}", report::table(&["measured", "value"], &lines));
    }
}

/// A word that is none of `legal`.
fn unknown(what: &str, got: &str, legal: &[&str]) -> Error {
    let hint = match nearest(got, legal.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("one of {}", legal.join(", ")),
    };
    Error::Usage { message: format!("there is no {what} `{got}`"), hint }
}

fn seconds(value: f64) -> String {
    match value {
        value if value.abs() < 1.0 => format!("{:.2} ms", value * 1e3),
        value if value < 60.0 => format!("{value:.2} s"),
        value => duration(value),
    }
}

impl BenchCommand {
    pub(super) fn writes(&self) -> Writes {
        let (BenchCommand::Train { model, .. }
        | BenchCommand::Understand { model, .. }
        | BenchCommand::Generate { model, .. }
        | BenchCommand::Bank { model, .. }
        | BenchCommand::Switch { model, .. }) = self;
        Writes { on_device: model.device.may_be_gpu(), ..Writes::nothing() }
    }

    pub(super) fn run(self) -> Result<()> {
        match self {
            BenchCommand::Train { model, task, method, targets, steps, batch, cached_features, recompute } => {
                let task = Task::from_name(&task).ok_or_else(|| unknown("task", &task, Task::CHOICES.names))?;
                let method = AdapterMethod::from_name(&method)
                    .ok_or_else(|| unknown("method", &method, AdapterMethod::CHOICES.names))?;
                let (steps, batch) = (steps as usize, batch as usize);
                let options = TrainOptions { task, method, targets, steps, batch, cached_features, recompute };
                let report = bench::train(&model.model()?, &options, &Terminal)?;
                let tokens = format!("{}, {} supervised", report.tokens, report.supervised_tokens);
                let figures = &report.figures;
                let rows = vec![
                    ("task", report.task.clone()),
                    ("method", report.method.to_owned()),
                    ("targets", report.targets.join(", ")),
                    ("trainable values", report::count(report.trainable_parameters as u64)),
                    ("tokens of a step", tokens),
                    ("first step", seconds(report.first_step_seconds)),
                    ("step", seconds(figures.step_seconds)),
                    ("tokens per second", format!("{:.1}", figures.tokens_per_second)),
                ];
                model.tell(&report, figures, rows);
            }
            BenchCommand::Understand { model, tokens, rounds } => {
                let options = UnderstandOptions { tokens: tokens as usize, rounds: rounds as usize };
                let report = bench::understand(&model.model()?, &options, &Terminal)?;
                let figures = &report.figures;
                let mut rows = vec![
                    ("tokens of the prompt", report.prompt_tokens.to_string()),
                    ("vision tower", seconds(report.vision_seconds)),
                    ("first token", seconds(report.first_token_seconds)),
                    ("each further token", seconds(figures.step_seconds)),
                    ("tokens per second", format!("{:.2}", figures.tokens_per_second)),
                    ("weights read per token", report::bytes(report.weight_bytes_per_token)),
                ];
                if let Some(bytes_per_second) = report.memory_bandwidth_bytes_per_second {
                    rows.push(("memory bandwidth", format!("{:.1} GB/s", bytes_per_second / 1e9)));
                }
                if let Some(share) = report.memory_bandwidth_share {
                    rows.push(("share of it", format!("{:.1} %", 100.0 * share)));
                }
                model.tell(&report, figures, rows);
            }
            BenchCommand::Bank { model, adapters, rank, targets, rows, prompt_tokens, rounds } => {
                let counts = [adapters, rank, rows, prompt_tokens, rounds];
                let [adapters, rank, rows, prompt_tokens, rounds] = counts.map(|count| count as usize);
                let options = BankOptions { adapters, rank, targets, rows, prompt_tokens, rounds };
                let report = bench::bank(&model.model()?, &options, &Terminal)?;
                let different = format!(
                    "{} ({:.3} times the same one)",
                    seconds(report.different_seconds),
                    report.different_to_same
                );
                let rows = vec![
                    ("adapters", format!("{} of rank {}", report.adapters, report.rank)),
                    ("one of them", report::bytes(report.adapter_bytes as u64)),
                    ("making one ready", seconds(report.insert_seconds)),
                    ("choosing for all rows", seconds(report.choose_seconds)),
                    ("rows of a pass", report.rows.to_string()),
                    ("the base alone", seconds(report.base_seconds)),
                    ("the same adapter", seconds(report.same_seconds)),
                    ("different adapters", different),
                ];
                model.tell(&report, &report.figures, rows);
            }
            BenchCommand::Switch { model, rounds } => {
                let options = SwitchOptions { rounds: rounds as usize };
                let report = bench::switch(&model.model()?, &options, &Terminal)?;
                let rows = vec![
                    ("a switch", format!("{} (± {})", seconds(report.switch_seconds), seconds(report.scatter_seconds))),
                    ("rebuilding instead", seconds(report.rebuild_seconds)),
                ];
                model.tell(&report, &report.figures, rows);
            }
            BenchCommand::Generate { model, tokens } => {
                let options = GenerateOptions { tokens: tokens.map(|tokens| tokens as usize) };
                let report = bench::generate(&model.model()?, &options, &Terminal)?;
                let figures = &report.figures;
                let whole = report.image_seconds.map_or_else(|| "not all codes were drawn".to_owned(), seconds);
                let rows = vec![
                    ("codes drawn", format!("{} of {}", report.codes, report.codes_per_image)),
                    ("first code", seconds(report.first_code_seconds)),
                    ("each further code", seconds(figures.step_seconds)),
                    ("codes per second", format!("{:.2}", figures.tokens_per_second)),
                    ("all drawn codes", seconds(report.codes_seconds)),
                    ("image decoder", seconds(report.vq_decode_seconds)),
                    ("the whole image", whole),
                ];
                model.tell(&report, figures, rows);
            }
        }
        Ok(())
    }
}
