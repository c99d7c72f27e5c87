//! `janus base`.

use std::path::PathBuf;

use candle_core::DType;
use clap::Subcommand;
use janus_core::checkpoint::{WriteOptions, convert_checkpoint, init_checkpoint, write_tokenizer};
use janus_core::config::{JanusConfig, Layout};
use janus_core::output::StagedFolder;
use serde_json::json;

use super::arguments::parse_dtype;
use super::merge::parse_layout;
use super::out::{done, result};
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::base::{Base, resolve, shape_hint, vocabulary_of};
use crate::error::{Error, Result};
use crate::status::Status;

#[derive(Debug, Subcommand)]
pub(super) enum BaseCommand {
    Features(super::features::Features),
    /// Tell what a checkpoint holds
    #[command(after_help = "Examples:
  janus base inspect deepseek-ai/Janus-Pro-1B
  janus base inspect base --json --fingerprint")]
    Inspect {
        /// `janus-nano` (built in), folder, hub id or `init:SHAPE?seed=N`
        base: String,
        /// Also compute the fingerprint, which reads every weight
        #[arg(long)]
        fingerprint: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Download a base into the Hugging Face cache and print its folder
    #[command(after_help = "Examples:
  janus base fetch deepseek-ai/Janus-Pro-1B
  HF_HOME=/data/hf janus base fetch deepseek-community/Janus-Pro-1B@main")]
    Fetch {
        /// Hub id, with a revision after an @
        base: String,
    },
    /// Write a checkpoint in another layout or precision
    #[command(after_help = "Examples:
  janus base convert deepseek-ai/Janus-Pro-1B --layout native --out native
  janus base convert native --layout deepseek --dtype bf16 --out original")]
    Convert {
        /// `janus-nano` (built in), folder, hub id or `init:SHAPE?seed=N`
        base: String,
        /// native or deepseek
        #[arg(long, value_parser = parse_layout)]
        layout: Layout,
        /// Type of every tensor (f32, bf16, f16); by default as stored
        #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
        dtype: Option<DType>,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a checkpoint of a named shape with random weights
    #[command(after_help = "Examples:
  janus base init --shape janus-small --seed 1 --out base
  janus base init --shape janus-nano --vocabulary world --out nano
  janus base init --shape janus-pro-1b --seed 1 --out pro-1b --dtype bf16")]
    Init {
        /// janus-tiny, janus-small, janus-nano, janus-1.3b, janus-pro-1b or janus-pro-7b
        #[arg(long)]
        shape: String,
        /// Seed of the weights
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Domain of drawn data whose texts the tokenizer learns merges from; without, it knows bytes alone
        #[arg(long, value_name = "DOMAIN")]
        vocabulary: Option<String>,
        /// Type of every tensor (f32, bf16, f16)
        #[arg(long, value_name = "TYPE", value_parser = parse_dtype, default_value = "bf16")]
        dtype: DType,
        /// native or deepseek
        #[arg(long, value_parser = parse_layout, default_value = "native")]
        layout: Layout,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

impl BaseCommand {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        match self {
            BaseCommand::Features(features) => features.writes(),
            BaseCommand::Convert { out, .. } | BaseCommand::Init { out, .. } => Writes::output(out),
            BaseCommand::Inspect { .. } | BaseCommand::Fetch { .. } => Writes::nothing(),
        }
    }

    pub(super) fn run(self) -> Result<()> {
        match self {
            BaseCommand::Features(features) => features.run(),
            BaseCommand::Inspect { base, fingerprint, json } => inspect(&base, fingerprint, json),
            BaseCommand::Fetch { base } => {
                let folder = resolve(&base, &Terminal)?;
                result!("{}", folder.display());
                Ok(())
            }
            BaseCommand::Convert { base, layout, dtype, out } => {
                let staged = StagedFolder::create(&out)?;
                let base = Base::open(&base, &Terminal)?;
                let mut options = WriteOptions::new(layout);
                if let Some(dtype) = dtype {
                    options = options.with_dtype(dtype);
                }
                let bar = Terminal.bytes("writing", 0);
                let report = convert_checkpoint(base.checkpoint(), &options, staged.folder(), &mut |done, total| {
                    bar.set(done, total)
                })?;
                staged.commit()?;
                bar.finish();
                done!("{}: {} tensors, {}", out.display(), report.tensors, report::bytes(report.bytes));
                Ok(())
            }
            BaseCommand::Init { shape, seed, vocabulary, dtype, layout, out } => {
                let config = JanusConfig::shape(&shape).ok_or_else(|| Error::Usage {
                    message: format!("there is no shape `{shape}`"),
                    hint: shape_hint(&shape),
                })?;
                let staged = StagedFolder::create(&out)?;
                let bar = Terminal.bytes("drawing weights", 0);
                let mut progress = |done, total| bar.set(done, total);
                let report = init_checkpoint(&config, seed, dtype, staged.folder(), layout, &mut progress)?;
                if let Some(domain) = vocabulary {
                    write_tokenizer(&config, &vocabulary_of(&config, &domain, seed)?, staged.folder())?;
                }
                staged.commit()?;
                bar.finish();
                done!(
                    "{}: {} tensors, {} parameters, {}",
                    out.display(),
                    report.tensors,
                    report::count(report.parameters),
                    report::bytes(report.bytes)
                );
                Ok(())
            }
        }
    }
}

fn inspect(spec: &str, fingerprint: bool, json: bool) -> Result<()> {
    let base = Base::open(spec, &Terminal)?;
    let checkpoint = base.checkpoint();
    let config = base.config();
    let parameters: u64 = checkpoint.tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let bytes: u64 = checkpoint.tensors().map(|t| t.bytes).sum();
    let fingerprint = if fingerprint { Some(base.read_fingerprint(&Terminal)?) } else { None };
    let unused: Vec<&str> = checkpoint.unused().iter().map(|t| t.name.as_str()).collect();
    let special = base.tokenizer().special();
    if json {
        report::json(&json!({
            "folder": checkpoint.folder(),
            "layout": checkpoint.layout().to_string(),
            "dtype": checkpoint.stored_dtype().as_str(),
            "tensors": checkpoint.tensors().len(),
            "unused_tensors": unused,
            "parameters": parameters,
            "bytes": bytes,
            "tied_head": checkpoint.is_tied(),
            "hidden_size": config.text.hidden_size,
            "layers": config.text.num_hidden_layers,
            "vocabulary": config.text.vocab_size,
            "image_size": config.vision.image_size,
            "image_tokens": config.vision.num_patches(),
            "codes": config.vq.num_embeddings,
            "fingerprint": fingerprint,
        }));
        return Ok(());
    }
    let (text, vision, vq) = (&config.text, &config.vision, &config.vq);
    result!("folder       {}", checkpoint.folder().display());
    result!("layout       {}, stored in {}", checkpoint.layout(), checkpoint.stored_dtype().as_str());
    result!(
        "tensors      {}, {} parameters, {}{}",
        checkpoint.tensors().len(),
        report::count(parameters),
        report::bytes(bytes),
        if unused.is_empty() { String::new() } else { format!(", and {} that nothing reads", unused.len()) }
    );
    result!(
        "decoder      {} layers of {}, {} heads ({} for keys), {} tokens of vocabulary{}",
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.vocab_size,
        if checkpoint.is_tied() { ", head tied to the embeddings" } else { "" }
    );
    result!(
        "vision       {} layers of {}, images of {} in patches of {}: {} tokens",
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.image_size,
        vision.patch_size,
        vision.num_patches()
    );
    result!("image codes  {} of width {}, one for {} pixels a side", vq.num_embeddings, vq.embed_dim, vq.down_factor());
    result!(
        "special ids  bos {}, eos {}, pad {}, begin of image {}, placeholder {}",
        special.bos,
        special.eos,
        special.pad,
        special.begin_of_image,
        special.image_placeholder
    );
    if let Some(fingerprint) = fingerprint {
        result!("fingerprint  {fingerprint}");
    }
    Ok(())
}
