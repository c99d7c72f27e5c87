//! The adapter folder: read with every tensor accounted for, written so that equal adapters are equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD};
use janus_core::config::JanusConfig;
use janus_core::directory::Place as Folder;
use janus_core::input;

use super::error::{AdapterError, Mismatch, Misshapen};
use super::extras::{self, Extras};
use super::file::{WEIGHTS_FILE, WeightsFile, is_read, read_json_text, write_text, write_weights};
use super::method::{At, Method, residual};
use super::note::{NOTE_FILE, Note};
use super::peft_config::{CONFIG_FILE, PeftConfig};
use super::select::{SelectedSite, Selection, select};
use super::site::{AdaptedSite, KEY_PREFIX, SHARED_PREFIX, key};
use super::{Adapter, has_bias};
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
    /// A tensor of a site, by path and ending.
    Site(Arc<str>, &'static str),
    /// A tensor that all sites share.
    Shared(&'static str),
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
    /// Pairs that began as a part of the weight are written as plain ones ([`Adapter::plain`]).
    /// Copies of the base's embedding are not written: PEFT loads without.
    /// The weights come last: a folder that has them has everything.
    ///
    /// # Errors
    /// The system's.
    pub fn write<'a>(&self, into: impl Into<Folder<'a>>) -> Result<(), AdapterError> {
        let into = into.into();
        if self.config.method == Method::Residual {
            return self.plain()?.write(into);
        }
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

    /// Whether training leaves a tensor of the weights file alone.
    pub fn is_fixed(&self, name: &str) -> bool {
        let of_site =
            |site: &AdaptedSite| site.values.keys().any(|ending| site.is_fixed(ending) && site.key(ending) == name);
        let is_shared = name.strip_prefix(SHARED_PREFIX).is_some_and(|name| self.shared.contains_key(name));
        is_shared
            || (self.config.method == Method::Residual && residual::is_start(name))
            || (self.config.method == Method::Lora { bias: true } && self.sites.values().any(of_site))
    }

    /// All tensors of the weights file, by their names there, in order.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::with_capacity(2 * self.sites.len() + self.saved.len());
        for site in self.sites.values() {
            tensors.extend(site.tensors().map(|(key, value)| (key, value.clone())));
        }
        for (name, value) in &self.shared {
            tensors.push((format!("{SHARED_PREFIX}{name}"), value.clone()));
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
    let values = read_tensors(&file, &slots(&config, &selection, base))?;

    let remarks = config.passed_over.iter().cloned().chain(selection.remarks.iter().cloned()).collect();
    let mut adapter = Adapter {
        config,
        sites: BTreeMap::new(),
        shared: BTreeMap::new(),
        saved: BTreeMap::new(),
        dynamic,
        heads,
        alignment,
        base_copies: BTreeMap::new(),
        note,
        remarks,
    };
    for SelectedSite { site, rank, alpha, is_feedforward } in selection.sites {
        let scale = adapter.config.scaling(rank, alpha);
        let has_bias = has_bias(base, &site.path);
        let own = AdaptedSite { rank, alpha, scale, is_feedforward, has_bias, values: BTreeMap::new(), site };
        adapter.sites.insert(own.site.path.clone(), own);
    }
    for (place, tensor) in values {
        match place {
            Place::Site(path, ending) => {
                adapter.sites.get_mut(&path).and_then(|site| site.values.insert(ending, tensor))
            }
            Place::Shared(name) => adapter.shared.insert(name, tensor),
            Place::Saved(name) => adapter.saved.insert(name, tensor),
            Place::BaseCopy(name) => adapter.base_copies.insert(name, tensor),
            Place::Extra(_) => None,
        };
    }
    Ok(adapter)
}

pub(crate) fn is_original_layout(name: &str) -> bool {
    let native = name.strip_prefix(KEY_PREFIX).unwrap_or(name);
    ORIGINAL_PREFIXES.iter().any(|prefix| native.starts_with(prefix))
}

/// Every tensor that may be in the file, by the name PEFT gives it.
fn slots(config: &PeftConfig, selection: &Selection, base: &JanusConfig) -> BTreeMap<String, Slot> {
    let mut slots = BTreeMap::new();
    let form = config.method.form();
    for selected in &selection.sites {
        for (ending, shape) in form.tensors(selected.at()) {
            let place = Place::Site(selected.site.path.clone(), ending);
            slots.insert(key(&selected.site, ending), Slot { place, shape, required: true });
        }
    }
    let places: Vec<At<'_>> = selection.sites.iter().map(SelectedSite::at).collect();
    for (name, shape) in config.method.shared(&places) {
        slots.insert(format!("{SHARED_PREFIX}{name}"), Slot { place: Place::Shared(name), shape, required: true });
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
    for part in ["weight", "bias"] {
        if let Some(stem) = canonical.strip_suffix(&format!(".default.{part}")) {
            // In a state dict the magnitude is a module; the file has its weight under the module's name.
            return if stem.ends_with("lora_magnitude_vector") { stem.to_owned() } else { format!("{stem}.{part}") };
        }
    }
    match canonical.strip_suffix(".default") {
        Some(stem) => stem.to_owned(),
        None => canonical,
    }
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
