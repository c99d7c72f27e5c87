//! `janus adapter resize`.

use std::path::PathBuf;

use clap::Args;
use janus_core::output::StagedFolder;
use serde_json::json;

use super::super::out::done;
use super::super::report;
use super::super::status::Terminal;
use super::{locate_whole, read, write};
use crate::algebra::{Size, kept_of_all, resize};
use crate::error::Result;
use crate::status::Status;

/// Give an adapter another rank, with the best approximation of what it shifts
#[derive(Debug, Args)]
#[command(after_help = "Scales stay as they are: alpha becomes scale · rank. Beyond the rank of what there is, new
directions begin as in a new adapter: they change nothing until they are trained.

Examples:
  janus adapter resize runs/inspection --rank 4 --out runs/inspection-4
  janus adapter resize runs/inspection --variance 0.95 --out runs/inspection-small --json")]
pub(in super::super) struct Resize {
    /// Adapter folder or hub id
    folder: String,
    /// The rank of every site
    #[arg(long, value_name = "R", required_unless_present = "variance", conflicts_with = "variance")]
    rank: Option<usize>,
    /// At every site the least rank that keeps this share of the squared singular values, above 0 and at most 1
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    variance: Option<f64>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Resize {
    pub(super) fn run(self) -> Result<()> {
        let out = StagedFolder::create(&self.out)?;
        let adapter = read(&locate_whole(&self.folder)?)?;
        let size = match (self.rank, self.variance) {
            (_, Some(share)) => Size::Variance(share),
            (rank, None) => Size::Rank(rank.unwrap_or(0)),
        };
        let bar = Terminal.items("resizing", adapter.sites.len() as u64);
        let (resized, sites) = resize(&adapter, size, bar.as_ref())?;
        bar.finish();
        write(&resized, out)?;
        let (kept, parameters) = (kept_of_all(&sites), resized.parameter_count());
        if self.json {
            let out = self.out.display().to_string();
            report::json(&json!({ "out": out, "sites": sites, "kept": kept, "parameters": parameters }));
            return Ok(());
        }
        let ranks = || sites.iter().map(|site| site.rank);
        let (least, most) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
        let rank = if least == most { format!("rank {least}") } else { format!("ranks {least} to {most}") };
        done!(
            "{}: {} sites of {rank}, {} parameters",
            self.out.display(),
            sites.len(),
            report::count(parameters as u64)
        );
        done!("{:.4} % of the squared norm of all shifts is kept", 100.0 * kept);
        let worst = sites.iter().min_by(|one, other| one.kept.total_cmp(&other.kept));
        if let Some(worst) = worst.filter(|worst| worst.kept < super::ALL) {
            done!("least at {}: {:.4} %", worst.path, 100.0 * worst.kept);
        }
        Ok(())
    }
}
