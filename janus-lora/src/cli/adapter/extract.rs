//! `janus adapter extract`.

use std::path::PathBuf;

use clap::Args;
use janus_core::checkpoint::Checkpoint;
use janus_core::output::StagedFolder;
use serde_json::json;

use super::super::out::done;
use super::super::report;
use super::super::status::Terminal;
use super::write;
use crate::algebra::{ExtractOptions, extract};
use crate::base::{Base, resolve};
use crate::error::Result;
use crate::status::Status;

/// Tensors outside the targets that are named on a terminal; `--json` has all.
const NAMED: usize = 8;

/// Make an adapter out of a base and a checkpoint that was trained from it
#[derive(Debug, Args)]
#[command(
    after_help = "At every target the change of the weight is truncated to the rank; the scale is 1. Tensors that
changed and are no target are told: the adapter leaves them as the base has them.

Examples:
  janus adapter extract --base deepseek-ai/Janus-Pro-1B --tuned finetuned --rank 16 --out runs/extracted
  janus adapter extract --base base --tuned tuned --rank 8 --targets decoder,lm_head --out runs/decoder --json"
)]
pub(in super::super) struct Extract {
    /// The checkpoint that training began with: a folder, a hub id, or a built-in name
    #[arg(long)]
    base: String,
    /// The checkpoint that training ended with, of the same shapes
    #[arg(long)]
    tuned: String,
    /// Rank of every site
    #[arg(long, value_name = "R")]
    rank: usize,
    /// Presets (decoder, vision, aligner, generation, all) and patterns of module paths, with commas between them
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', default_value = "all")]
    targets: Vec<String>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Extract {
    pub(super) fn run(self) -> Result<()> {
        let out = StagedFolder::create(&self.out)?;
        let base = Base::open(&self.base, &Terminal)?;
        let tuned = Checkpoint::open(&resolve(&self.tuned, &Terminal)?)?;
        let options = ExtractOptions {
            rank: self.rank,
            targets: &self.targets,
            base_name: base.name(),
            base_fingerprint: base.fingerprint(&Terminal)?,
        };
        let (adapter, told) = extract(base.checkpoint(), &tuned, &options, &Terminal)?;
        write(&adapter, out)?;
        let outside = &told.changed_outside;
        if !outside.is_empty() {
            let named: Vec<String> = outside.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
            let more = outside.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let (count, named) = (outside.len(), named.join(", "));
            Terminal.warn(&format!(
                "{count} tensors outside the targets changed, too, and are not in the adapter: {named}{more}\n\
                 hint: `--targets` may name what is a linear map, a convolution or a table of embeddings"
            ));
        }
        let parameters = adapter.parameter_count();
        if self.json {
            report::json(&json!({
                "out": self.out.display().to_string(), "sites": told.sites, "unchanged_sites": told.unchanged_sites,
                "changed_outside": outside, "kept": told.kept, "parameters": parameters,
                "base_fingerprint": options.base_fingerprint,
            }));
            return Ok(());
        }
        let rank = told.sites.iter().map(|site| site.rank).max().unwrap_or(0);
        let (count, parameters) = (told.sites.len(), report::count(parameters as u64));
        done!("{}: {count} sites of rank {rank}, {parameters} parameters", self.out.display());
        if told.unchanged_sites > 0 {
            done!("{} targets are equal in both checkpoints, and not in the adapter", told.unchanged_sites);
        }
        done!("{:.4} % of the squared norm of the targets' changes is kept", 100.0 * told.kept);
        let worst = told.sites.iter().min_by(|one, other| one.kept.total_cmp(&other.kept));
        if let Some(worst) = worst.filter(|worst| worst.kept < super::ALL) {
            done!("least at {}: {:.4} %", worst.path, 100.0 * worst.kept);
        }
        Ok(())
    }
}
