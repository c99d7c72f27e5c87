//! The adapter folder: read with every tensor accounted for, written so that equal adapters are equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD};
use janus_core::config::JanusConfig;
use janus_core::directory::Place as Folder;
use janus_core::input;

use super::Adapter;
use super::error::{AdapterError, Mismatch, Misshapen};
use super::extras::{self, Extras};
use super::file::{WEIGHTS_FILE, WeightsFile, is_read, read_json_text, write_text, write_weights};
use super::note::{NOTE_FILE, Note};
use super::pair::{KEY_PREFIX, Pair, pair_keys, pair_shapes};
use super::peft_config::{CONFIG_FILE, PeftConfig};
use super::select::{Selection, select};
use crate::mifs;

/// Longest configuration that is read; one that lists every site of the largest model has 40 kB.
pub(crate) const CONFIG_LIMIT_BYTES: u64 = 1 << 20;

/// PEFT's weights file without `safe_serialization`.
const PICKLE_FILE: &str = "adapter_model.bin";

/// How names of the original layout begin.
const ORIGINAL_PREFIXES: &[&str] = &[
    "aligner.layers.",
    "gen_aligner.",
    "gen_embed.",
    "gen_head.",
    "gen_vision_model.",
    "language_model.lm_head.",
    "language_model.model.",
    "vision_model.vision_tower.",
];

/// What a tensor in the file is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    A(Arc<str>),
    B(Arc<str>),
    /// A copy of a native parameter that takes its place.
    Saved(Arc<str>),
    /// A copy of a native parameter that PEFT adds to the file and that must equal the base's.
    BaseCopy(Arc<str>),
    /// A value of the dynamic encoder or of a head.
    Extra(Arc<str>),
}

/// A tensor that may or must be in the file.
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) shape: Vec<usize>,
    pub(super) required: bool,
}

impl Adapter {
    /// Reads an adapter folder for a base; `tied` where the base's text head is its embedding table.
    ///
    /// Every selected site must have its two factors, every tensor in the file must be used, all of the right shape and
    /// finite. Copies of the base's embedding are kept for [`Adapter::check_base_copies`].
    ///
    /// # Errors
    /// [`AdapterError::Folder`] around whatever is wrong: files that are missing, broken or unsupported; a configuration
    /// with unsupported fields; tensors that do not match it.
    pub fn read<'a>(folder: impl Into<Folder<'a>>, base: &JanusConfig, tied: bool) -> Result<Self, AdapterError> {
        let folder = folder.into();
        read_folder(folder, base, tied)
            .map_err(|source| AdapterError::Folder { folder: folder.path().to_path_buf(), source: Box::new(source) })
    }

    /// Writes the files of an adapter into an existing folder: `adapter_config.json`, `adapter_model.safetensors`,
    /// `janus_extras.safetensors` where there is a dynamic encoder or a head, and `janus_adapter.json` where there is a note.
    /// Copies of the base's embedding are not written: PEFT loads without.
    /// The weights come last: a folder that has them has everything.
    ///
    /// # Errors
    /// The system's.
    pub fn write<'a>(&self, into: impl Into<Folder<'a>>) -> Result<(), AdapterError> {
        let into = into.into();
        let into = &into.make().map_err(|source| AdapterError::Io { path: into.path().to_path_buf(), source })?;
        let mut config = self.config.clone();
        config.record_extras(extras::parts(self.dynamic.as_ref(), &self.heads));
        write_text(into, CONFIG_FILE, &config.to_json())?;
        if let Some(note) = &self.note {
            write_text(into, NOTE_FILE, &note.to_json())?;
        }
        extras::write(into, self)?;
        write_weights(into, WEIGHTS_FILE, &self.tensors(), None)
    }

    /// All tensors of `janus_extras.safetensors`, by their names there, in order.
    pub fn extras(&self) -> Vec<(String, Tensor)> {
        let dynamic = self.dynamic.iter().flat_map(|dynamic| dynamic.values());
        let values = dynamic.chain(self.heads.values().flat_map(|head| head.values()));
        let values = values.map(|(name, value)| (name.to_string(), value.clone()));
        values.chain(self.alignment.iter().map(|value| (mifs::TEMPERATURE.to_owned(), value.clone()))).collect()
    }

    /// All tensors of the weights file, by their names there, in order.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::with_capacity(2 * self.pairs.len() + self.saved.len());
        for pair in self.pairs.values() {
            let (a, b) = pair_keys(&pair.site);
            tensors.push((a, pair.a.clone()));
            tensors.push((b, pair.b.clone()));
        }
        for (name, copy) in &self.saved {
            tensors.push((format!("{KEY_PREFIX}{name}"), copy.clone()));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        tensors
    }
}

fn read_folder(folder: Folder<'_>, base: &JanusConfig, tied: bool) -> Result<Adapter, AdapterError> {
    if let Folder::Named(path) = folder
        && !path.is_dir()
    {
        return Err(AdapterError::NotAFolder { path: path.to_path_buf() });
    }
    let text =
        read_json_text(folder, CONFIG_FILE, CONFIG_LIMIT_BYTES)?.ok_or(AdapterError::NoFile { file: CONFIG_FILE })?;
    let mut config = PeftConfig::from_json(&text)?;
    let Extras { dynamic, heads, alignment } = extras::read(folder, base)?;
    let Some(weights) = input::open_in(folder, WEIGHTS_FILE)? else {
        let is_pickle = folder.path().join(PICKLE_FILE).exists();
        return Err(match is_pickle {
            true => AdapterError::Pickle { file: PICKLE_FILE },
            false => AdapterError::NoFile { file: WEIGHTS_FILE },
        });
    };
    let note = Note::read(folder)?;
    let parts = extras::parts(dynamic.as_ref(), &heads);
    extras::check_complete(folder, &parts, &config, note.as_ref())?;
    config.record_extras(parts);
    let file = WeightsFile::of(weights)?;
    if let Some((tensor, _)) = file.tensors().iter().find(|(name, _)| is_original_layout(name)) {
        return Err(AdapterError::OriginalLayout { tensor: tensor.clone() });
    }
    let selection = select(&config, base, tied)?;
    selection.require_some(&config, dynamic.is_some() || !heads.is_empty())?;
    let mut values = read_tensors(&file, &slots(&selection, base))?;

    let remarks = config.passed_over.iter().cloned().chain(selection.remarks.iter().cloned()).collect();
    let mut adapter = Adapter {
        config,
        pairs: BTreeMap::new(),
        saved: BTreeMap::new(),
        dynamic,
        heads,
        alignment,
        base_copies: BTreeMap::new(),
        note,
        remarks,
    };
    for selected in selection.sites {
        let path = selected.site.path.clone();
        if let (Some(a), Some(b)) = (values.remove(&Place::A(path.clone())), values.remove(&Place::B(path.clone()))) {
            let (rank, alpha) = (selected.rank, selected.alpha);
            let scale = adapter.config.scaling(rank, alpha);
            adapter.pairs.insert(path, Pair { site: selected.site, a, b, rank, alpha, scale });
        }
    }
    for (place, tensor) in values {
        match place {
            Place::Saved(name) => adapter.saved.insert(name, tensor),
            Place::BaseCopy(name) => adapter.base_copies.insert(name, tensor),
            Place::A(_) | Place::B(_) | Place::Extra(_) => None,
        };
    }
    Ok(adapter)
}

pub(crate) fn is_original_layout(name: &str) -> bool {
    let native = name.strip_prefix(KEY_PREFIX).unwrap_or(name);
    ORIGINAL_PREFIXES.iter().any(|prefix| native.starts_with(prefix))
}

/// Every tensor that may be in the file, by the name PEFT gives it.
fn slots(selection: &Selection, base: &JanusConfig) -> BTreeMap<String, Slot> {
    let mut slots = BTreeMap::new();
    for selected in &selection.sites {
        let path = &selected.site.path;
        let (a, b) = pair_keys(&selected.site);
        let (a_shape, b_shape) = pair_shapes(&selected.site, selected.rank);
        slots.insert(a, Slot { place: Place::A(path.clone()), shape: a_shape, required: true });
        slots.insert(b, Slot { place: Place::B(path.clone()), shape: b_shape, required: true });
    }
    for parameter in &selection.saved {
        let place = Place::Saved(parameter.name.as_str().into());
        let slot = Slot { place, shape: parameter.shape.clone(), required: true };
        slots.insert(format!("{KEY_PREFIX}{}", parameter.name), slot);
    }
    // PEFT's `save_embedding_layers`: "auto" adds the embedding and the head where they are targets, `True` always.
    let shape = vec![base.text.vocab_size, base.text.hidden_size];
    for name in [EMBED_TOKENS, LM_HEAD] {
        let path = name.trim_end_matches(".weight");
        let is_target = selection.sites.iter().any(|selected| &*selected.site.path == path);
        let key = if is_target { format!("{path}.base_layer.weight") } else { name.to_string() };
        let slot = Slot { place: Place::BaseCopy(name.into()), shape: shape.clone(), required: false };
        slots.entry(format!("{KEY_PREFIX}{key}")).or_insert(slot);
    }
    slots
}

/// The name a tensor has in files PEFT saves, whose adapter has no name and whose copies lie where the originals do.
/// Raw state dicts have both.
pub(crate) fn canonical(name: &str) -> String {
    let mut canonical = name.replacen(".modules_to_save.default.", ".", 1);
    canonical = canonical.replacen(".modules_to_save.", ".", 1);
    for factor in ["lora_A", "lora_B"] {
        if let Some(stem) = canonical.strip_suffix(&format!(".{factor}.default.weight")) {
            return format!("{stem}.{factor}.weight");
        }
    }
    for factor in ["lora_embedding_A", "lora_embedding_B"] {
        if let Some(stem) = canonical.strip_suffix(&format!(".{factor}.default")) {
            return format!("{stem}.{factor}");
        }
    }
    canonical
}

/// Reads all tensors into their places, or says of every single one what is wrong with it.
pub(super) fn read_tensors(
    file: &WeightsFile,
    slots: &BTreeMap<String, Slot>,
) -> Result<BTreeMap<Place, Tensor>, AdapterError> {
    let mut mismatch = Mismatch::default();
    let mut filled = BTreeSet::new();
    let mut readable = Vec::new();
    for (name, info) in file.tensors() {
        let key = canonical(name);
        let Some(slot) = slots.get(&key) else {
            mismatch.leftover.push(name.clone());
            continue;
        };
        if !filled.insert(key) {
            mismatch.leftover.push(name.clone());
        } else if info.shape != slot.shape {
            let (expected, got) = (slot.shape.clone(), info.shape.clone());
            mismatch.misshapen.push(Misshapen { name: name.clone(), expected, got });
        } else if !is_read(info.dtype) {
            mismatch.mistyped.push((name.clone(), format!("{:?}", info.dtype)));
        } else {
            readable.push((name, info, slot));
        }
    }
    let missing = slots.iter().filter(|(key, slot)| slot.required && !filled.contains(*key));
    mismatch.missing = missing.map(|(key, _)| key.clone()).collect();

    let mut values = BTreeMap::new();
    for (name, info, slot) in readable {
        let tensor = file.read(info)?;
        if let Some(value) = first_not_finite(&tensor)? {
            mismatch.not_finite.push((name.clone(), value));
        }
        values.insert(slot.place.clone(), tensor);
    }
    if mismatch.is_empty() { Ok(values) } else { Err(AdapterError::Tensors(Box::new(mismatch))) }
}

pub(crate) fn first_not_finite(tensor: &Tensor) -> Result<Option<f32>, AdapterError> {
    // A sum is not finite if a value is not; it may also overflow, so only then the values are looked at.
    if tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(None);
    }
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().find(|value| !value.is_finite()))
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
