//! `janus report`.

use std::path::PathBuf;

use clap::Args;
use janus_core::directory::Directory;
use janus_core::output::{require_below, require_file};
use serde_json::json;

use super::out::done;
use super::report;
use super::sandbox::Writes;
use crate::error::{Error, Result};
use crate::report::expected::ExpectedCurve;
use crate::report::{page, write_report};

/// Write a run's report.html again, from its folder alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus report runs/quickstart
  janus report runs/quickstart --json
  janus report runs/quickstart --curve recipes/quickstart.curve.json")]
pub(super) struct RunReport {
    /// Run folder
    #[arg(value_name = "RUN_DIR")]
    folder: PathBuf,
    /// Write the range of losses that a run of the same recipe is expected to have; beside a recipe, as NAME.curve.json,
    /// `janus train` holds its runs against it
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
    /// Print one JSON object: file
    #[arg(long)]
    json: bool,
}

impl RunReport {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes {
            outputs: [self.folder.join("report.html")].into_iter().chain(self.curve.clone()).collect(),
            on_device: false,
        }
    }

    pub(super) fn run(self) -> Result<()> {
        let curve = self.curve.as_deref().map(require_file).transpose()?;
        if let Ok(run) = Directory::open(&self.folder) {
            require_below(&run, page::FILE)?;
        }
        // Before anything is written: a run without losses has none.
        let curve = curve.map(|file| Ok::<_, Error>((ExpectedCurve::of_run(&self.folder)?, file))).transpose()?;
        let file = write_report(&self.folder)?;
        if let Some((expected, file)) = curve {
            expected.write(&file)?;
        }
        if self.json {
            report::json(&json!({ "file": file }));
        } else {
            done!("{}", file.display());
        }
        Ok(())
    }
}
