//! `janus merge`.

use std::path::PathBuf;

use candle_core::DType;
use clap::Args;
use janus_core::config::Layout;
use janus_core::output::StagedFolder;

use super::arguments::{BaseArguments, DeviceArgument, parse_dtype};
use super::out::done;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::error::{Error, Result};
use crate::merge::{Change, MergeOptions, MergeReport, TensorChange, merge};
use crate::status::Status;

/// Rows of the table of changes.
const SHOWN: usize = 10;

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
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes { on_device: self.device.may_be_gpu(), ..Writes::output(&self.out) }
    }

    pub(super) fn run(self) -> Result<()> {
        // Others that would merge to the same place are told at once, not when they come to write.
        let out = StagedFolder::create(&self.out)?;
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
        let done = merge(&base, &adapters, options, &device, out, &Terminal)?;
        if done.total.is_swallowed() {
            Terminal.warn(&swallowed(&done.total));
        }
        if !done.heads_left.is_empty() {
            let names: Vec<String> = done.heads_left.iter().map(|name| format!("`{name}`")).collect();
            Terminal.warn(&format!("heads are no part of a checkpoint: {} stay with the adapter", names.join(", ")));
        }
        if self.json {
            report::json(&done);
            return Ok(());
        }
        done!("{}: {} tensors changed, {}", self.out.display(), done.changed_tensors, report::bytes(done.bytes));
        done!("{}", changes(&done));
        done!("largest logit difference to base + adapter, computed in f32: {:.3e}", done.largest_logit_difference);
        for head in &done.heads {
            done!(
                "{} head, {} positions: largest difference {:.3e}, KL(attached || merged) {:.3e} nats on average, {:.3e} at most",
                head.head,
                head.positions,
                head.largest_logit_difference,
                head.mean_kl_nats,
                head.max_kl_nats
            );
        }
        done!("peak memory {}", report::bytes(done.peak_rss_bytes));
        Ok(())
    }
}

/// The tensors that moved most, and all of them together.
fn changes(done: &MergeReport) -> String {
    let mut tensors: Vec<&TensorChange> = done.tensors.iter().collect();
    tensors.sort_by(|a, b| b.change.delta_norm.total_cmp(&a.change.delta_norm));
    let rows: Vec<Vec<String>> = tensors.iter().take(SHOWN).map(|tensor| row(tensor)).collect();
    let headings = ["tensor", "type", "|D|", "|D|/|W| %", "rounding %", "unmoved %"];
    let mut text = report::table(&headings, &rows);
    if let Some(more) = tensors.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!("\nand {more} more: `--json` has all"));
    }
    let total = &done.total;
    text.push_str(&format!(
        "\nall together: change {} % of the weights, of which rounding loses {} %; {} % of the shifted values did not move",
        percent(total.relative_change),
        percent(total.rounding_loss),
        percent(Some(total.unmoved_share()))
    ));
    text
}

fn row(tensor: &TensorChange) -> Vec<String> {
    let change = &tensor.change;
    vec![
        tensor.tensor.clone(),
        tensor.dtype.clone(),
        format!("{:.3e}", change.delta_norm),
        percent(change.relative_change),
        percent(change.rounding_loss),
        percent(Some(change.unmoved_share())),
    ]
}

/// A share as percent with three digits; empty where there is none.
fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| match share * 100.0 {
        0.0 => "0".to_owned(),
        percent if !(0.01..10_000.0).contains(&percent) => format!("{percent:.1e}"),
        percent => format!("{percent:.2}"),
    })
}

fn swallowed(total: &Change) -> String {
    format!(
        "rounding loses {} % of what the adapters change, and {} % of the shifted values do not move at all: the merged \
         checkpoint is hardly base + adapter; `--dtype f32` keeps the sum, a larger scale (`DIR:SCALE`) survives rounding, \
         but is another model",
        percent(total.rounding_loss),
        percent(Some(total.unmoved_share()))
    )
}
