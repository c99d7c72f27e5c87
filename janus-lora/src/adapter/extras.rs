//! `janus_extras.safetensors`: what PEFT has no place for, the dynamic encoder and task heads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use janus_core::config::JanusConfig;
use janus_core::input;

use super::Adapter;
use super::error::AdapterError;
use super::file::{WeightsFile, write_weights};
use super::folder::{Place, Slot, read_tensors};
use crate::dynamic::{self, Dynamic};
use crate::heads::{self, Head, HeadKind, Heads};
use crate::mifs;

/// Its name.
pub(super) const EXTRAS_FILE: &str = "janus_extras.safetensors";

/// Key of the metadata that says what heads are for: JSON of kinds by name.
const HEADS_KEY: &str = "heads";

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Extras {
    pub(super) dynamic: Option<Dynamic>,
    pub(super) heads: Heads,
    pub(super) alignment: Option<Tensor>,
}

/// Reads the file of an adapter folder, where there is one; every tensor in it is accounted for.
pub(super) fn read(folder: &Path, base: &JanusConfig) -> Result<Extras, AdapterError> {
    let Some(path) = input::locate(folder, EXTRAS_FILE)? else { return Ok(Extras::default()) };
    read_file(&path, base).map_err(|source| AdapterError::File { file: EXTRAS_FILE, source: Box::new(source) })
}

fn read_file(path: &Path, base: &JanusConfig) -> Result<Extras, AdapterError> {
    let file = WeightsFile::open(path)?;
    let kinds: BTreeMap<String, HeadKind> = match file.metadata(HEADS_KEY) {
        Some(text) => serde_json::from_str(text).map_err(|source| AdapterError::Json { file: EXTRAS_FILE, source })?,
        None => BTreeMap::new(),
    };
    for (name, kind) in &kinds {
        kind.check().map_err(|problem| AdapterError::Head { name: name.clone(), problem })?;
    }
    let paths = dynamic::paths_of(file.tensors().iter().map(|(name, _)| name.as_str()));
    let dynamic = dynamic::shapes(base, paths).into_iter().map(|(name, shape)| (name.to_owned(), shape));
    let heads = kinds.iter().flat_map(|(name, kind)| heads::shapes(base, name, kind));
    let is_aligned = file.tensors().iter().any(|(name, _)| name == mifs::TEMPERATURE);
    let alignment = is_aligned.then(|| (mifs::TEMPERATURE.to_owned(), vec![1]));
    let slots = dynamic.chain(heads).chain(alignment).map(|(name, shape)| {
        let slot = Slot { place: Place::Extra(name.as_str().into()), shape, required: true };
        (name, slot)
    });
    let values = read_tensors(&file, &slots.collect())?;
    let mut values: BTreeMap<Arc<str>, Tensor> = values
        .into_iter()
        .filter_map(|(place, value)| match place {
            Place::Extra(name) => Some((name, value)),
            _ => None,
        })
        .collect();
    let alignment = values.remove(mifs::TEMPERATURE);
    let mut take = |names: BTreeSet<String>| -> BTreeMap<Arc<str>, Tensor> {
        names.iter().filter_map(|name| values.remove_entry(name.as_str())).collect()
    };
    let names = dynamic::shapes(base, paths).into_iter().map(|(name, _)| name.to_owned()).collect();
    let dynamic = paths.any().then(|| Dynamic::of(paths, take(names)));
    let heads = kinds.into_iter().map(|(name, kind)| {
        let names = heads::shapes(base, &name, &kind).into_iter().map(|(name, _)| name).collect();
        (name.as_str().into(), Head::of(&name, kind, take(names)))
    });
    Ok(Extras { dynamic, heads: heads.collect(), alignment })
}

/// Writes the file into an adapter folder, where there is something to write.
pub(super) fn write(folder: &Path, adapter: &Adapter) -> Result<(), AdapterError> {
    let tensors = adapter.extras();
    if tensors.is_empty() {
        return Ok(());
    }
    let kinds: BTreeMap<&str, &HeadKind> = adapter.heads.iter().map(|(name, head)| (&**name, &head.kind)).collect();
    let told = (!kinds.is_empty()).then(|| {
        let text = serde_json::to_string(&kinds).expect("names and labels are plain data");
        (HEADS_KEY, text)
    });
    write_weights(&folder.join(EXTRAS_FILE), &tensors, told)
}
