//! `janus report`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::report;
use crate::error::Result;
use crate::report::write_report;

/// Write a run's report.html again, from its folder alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus report runs/quickstart
  janus report runs/quickstart --json")]
pub(super) struct RunReport {
    /// Run folder
    #[arg(value_name = "RUN_DIR")]
    folder: PathBuf,
    /// Print one JSON object: file
    #[arg(long)]
    json: bool,
}

impl RunReport {
    pub(super) fn run(self) -> Result<()> {
        let file = write_report(&self.folder)?;
        if self.json {
            report::json(&json!({ "file": file }));
        } else {
            println!("{}", file.display());
        }
        Ok(())
    }
}
