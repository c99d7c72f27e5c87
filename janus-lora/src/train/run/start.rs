//! The adapter that a run begins from: where it is, and whether it is still what it was.

use std::path::{Path, PathBuf};

use janus_core::hub::Silent;
use janus_core::input::{self, Opened};
use sha2::{Digest, Sha256};

use super::super::TrainError;
use super::super::checkpoint::hex;
use super::super::identity::HashWriter;
use super::super::stages::{self, Stage};
use crate::adapter::{self, Adapter, AdapterError, CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE};
use crate::base::Base;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::status::Status;

/// Reads the adapter that `from` names, a folder or a hub id, for a base; and its digest.
///
/// # Errors
/// What keeps it from being read, or an adapter of another base.
pub(super) fn read(from: &str, base: &Base, status: &dyn Status) -> Result<(Adapter, String)> {
    let folder = adapter::locate(&place(from)?, status.download().as_ref())?;
    let adapter = Adapter::read_for(base, &folder, status)?;
    Ok((adapter, digest(&folder)?))
}

/// Refuses a folder with an adapter that a run cannot begin from, without a look at the base's weights; what is on a hub is left
/// there.
///
/// # Errors
/// What keeps it from being read, or an adapter of another form.
pub(super) fn check(recipe: &Recipe, base: &Base, stages: &[Stage]) -> Result<()> {
    let Some(folder) = recipe.adapter.start_from.as_deref().map(place).transpose()? else { return Ok(()) };
    if adapter::is_of_hub(&folder) {
        return Ok(());
    }
    let (config, tied) = (base.config(), base.checkpoint().is_tied());
    let start = Adapter::read(&adapter::locate(&folder, &Silent)?, config, tied)?;
    Adapter::blank(config, tied, &stages::whole_spec(recipe, base, stages))?.starting_from(start)?;
    Ok(())
}

/// What `from` names, a folder or a hub id: as arguments of the command line do, but without a factor.
fn place(from: &str) -> Result<PathBuf> {
    let (path, factor) = adapter::parse_argument(from)?;
    match factor {
        1.0 => Ok(path),
        _ => Err(TrainError::StartFactor { path: path.display().to_string(), factor }.into()),
    }
}

/// Warns where the folder that a run began from holds another adapter by now; one that is gone is no longer needed.
pub(super) fn tell_changed(from: &str, was: &str, status: &dyn Status) {
    let folder = Some(Path::new(from)).filter(|folder| folder.is_dir());
    let located = folder.and_then(|folder| adapter::locate(folder, &Silent).ok());
    if located.is_some_and(|folder| digest(&folder).is_ok_and(|is| is != was)) {
        status.warn(&format!(
            "`adapter.start_from` = `{from}` holds another adapter than when the run began: the run goes on from its own checkpoint"
        ));
    }
}

/// SHA-256 of the files that make an adapter's numbers; links out of the folder are not followed.
fn digest(folder: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    for name in [CONFIG_FILE, WEIGHTS_FILE, EXTRAS_FILE] {
        let Some(Opened { path, mut file }) = input::open_in(folder, name).map_err(AdapterError::from)? else {
            continue;
        };
        let failed = |source| TrainError::Read { path: path.clone(), source };
        hasher.update(name.as_bytes());
        hasher.update(file.metadata().map_err(failed)?.len().to_le_bytes());
        std::io::copy(&mut file, &mut HashWriter(&mut hasher)).map_err(failed)?;
    }
    Ok(hex(&hasher.finalize()))
}
