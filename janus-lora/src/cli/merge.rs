//! `janus merge`.

use std::path::PathBuf;

use candle_core::DType;
use clap::Args;
use janus_core::config::Layout;
use janus_core::output::require_new_folder;

use super::arguments::{BaseArguments, DeviceArgument, parse_dtype};
use super::report;
use super::status::Terminal;
use crate::error::{Error, Result};
use crate::merge::{MergeOptions, merge};

/// Fold adapters into base weights.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus merge --base deepseek-ai/Janus-Pro-1B --adapter runs/inspection --out merged
  janus merge --base base --adapter runs/a:0.5 --adapter runs/b --out merged --dtype f32 --layout deepseek")]
pub(super) struct Merge {
    #[command(flatten)]
    base: BaseArguments,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of every tensor (f32, bf16, f16); by default the base's own
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// native or deepseek; by default the base's own
    #[arg(long, value_parser = parse_layout)]
    layout: Option<Layout>,
    #[command(flatten)]
    device: DeviceArgument,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `native` or `deepseek`.
pub(super) fn parse_layout(text: &str) -> std::result::Result<Layout, String> {
    match text {
        "native" => Ok(Layout::Native),
        "deepseek" => Ok(Layout::DeepSeek),
        other => Err(format!("`{other}` is none of native, deepseek")),
    }
}

impl Merge {
    pub(super) fn run(self) -> Result<()> {
        require_new_folder(&self.out)?;
        if self.base.adapters.is_empty() {
            let message = "no adapter to merge".to_owned();
            return Err(Error::Usage {
                message,
                hint: "give `--adapter DIR`; `janus base convert` copies a base".into(),
            });
        }
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let options = MergeOptions { dtype: self.dtype, layout: self.layout };
        let done = merge(&base, &adapters, options, &device, &self.out, &Terminal)?;
        if self.json {
            report::json(&done);
            return Ok(());
        }
        println!("{}: {} tensors changed, {}", self.out.display(), done.changed_tensors, report::bytes(done.bytes));
        println!(
            "largest logit difference to base + adapter, computed in {}: {:.3e}",
            done.compared_in, done.largest_logit_difference
        );
        Ok(())
    }
}
