//! `janus adapter`: one file a subcommand.

mod combine;
mod diff;
mod extract;
mod inspect;
mod resize;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use janus_core::output::StagedFolder;

use super::arguments::locate;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::algebra::{AdapterFolder, NewAdapter};
use crate::error::{Error, Result};
use crate::status::Status;

/// Share of a squared norm that is all of it, but for rounding.
const ALL: f64 = 1.0 - 1e-7;

#[derive(Debug, Subcommand)]
pub(super) enum AdapterCommand {
    Inspect(inspect::Inspect),
    Combine(combine::Combine),
    Resize(resize::Resize),
    Extract(extract::Extract),
    Diff(diff::Diff),
}

impl AdapterCommand {
    pub(super) fn run(self) -> Result<()> {
        match self {
            AdapterCommand::Inspect(command) => command.run(),
            AdapterCommand::Combine(command) => command.run(),
            AdapterCommand::Resize(command) => command.run(),
            AdapterCommand::Extract(command) => command.run(),
            AdapterCommand::Diff(command) => command.run(),
        }
    }

    /// What it means to write.
    pub(super) fn writes(&self) -> Writes {
        match self {
            AdapterCommand::Inspect(command) => command.writes(),
            AdapterCommand::Combine(command) => Writes::output(&command.out),
            AdapterCommand::Resize(command) => Writes::output(&command.out),
            AdapterCommand::Extract(command) => Writes::output(&command.out),
            AdapterCommand::Diff(_) => Writes::nothing(),
        }
    }
}

/// The folder that an argument means, which may have no factor behind it.
fn locate_whole(text: &str) -> Result<PathBuf> {
    let (folder, factor) = locate(text, &Terminal)?;
    if factor != 1.0 {
        let message = format!("`{}` is taken as it is, without a factor", folder.display());
        return Err(Error::Usage { message, hint: "leave the number behind the colon out".into() });
    }
    Ok(folder)
}

/// Reads an adapter and says what its files ask for in vain.
fn read(folder: &Path) -> Result<AdapterFolder> {
    let adapter = AdapterFolder::read(folder)?;
    for remark in &adapter.config.passed_over {
        Terminal.warn(&format!("`{}`: {remark}", folder.display()));
    }
    Ok(adapter)
}

/// Writes an adapter to where it is to appear.
fn write(adapter: &NewAdapter, out: StagedFolder) -> Result<()> {
    adapter.write(out.folder())?;
    Ok(out.commit()?)
}
