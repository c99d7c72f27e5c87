//! Adapter folders without their base: what the files themselves say, and new ones.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD};
use janus_core::directory::Directory;
use janus_core::input;
use janus_core::output::write_below;
use serde_json::{Map, Value, json};

use super::error::AlgebraError;
use super::factors::{Factors, Kind};
use crate::adapter::{
    AdapterError, CONFIG_FILE, CONFIG_LIMIT_BYTES, EXTRAS_FILE, KEY_PREFIX, Mismatch, Misshapen, NOTE_FILE, Note,
    PeftConfig, WEIGHTS_FILE, WeightsFile, canonical, endings, first_not_finite, is_original_layout, is_read,
    read_json_text, saves, write_text, write_weights,
};
use crate::dynamic;
use crate::error::Result;

/// A plain LoRA as its folder has it.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Where it lies.
    pub path: PathBuf,
    /// All fields of `adapter_config.json`.
    pub json: Map<String, Value>,
    /// Those that matter.
    pub config: PeftConfig,
    /// Factors by native path of their site.
    pub sites: BTreeMap<String, Factors>,
    /// Copies of parameters (`modules_to_save`), by native name; f32.
    pub copies: BTreeMap<String, Tensor>,
    /// Whether there is a `janus_extras.safetensors`.
    pub has_extras: bool,
    /// What `janus_adapter.json` says.
    pub note: Option<Note>,
}

/// What a tensor in the file is for.
enum Place {
    /// A (0) or B (1) of a site.
    Factor { site: String, is_embedding: bool, half: usize },
    /// A parameter's copy.
    Copy(String),
    /// A copy of the base's own, as PEFT adds it at times.
    Base,
}

impl AdapterFolder {
    /// Reads a folder. Every tensor is accounted for and finite, every site has both factors, of the rank that the configuration
    /// gives it; whether a base has these sites is not known.
    ///
    /// # Errors
    /// What is no LoRA, files that are missing or broken, or tensors that do not match the configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let in_folder = |source| AdapterError::Folder { folder: path.to_path_buf(), source: Box::new(source) };
        let json = read_config(path).map_err(in_folder)?;
        let other = other_methods(&json);
        if !other.is_empty() {
            return Err(AlgebraError::Method { folder: path.to_path_buf(), fields: other }.into());
        }
        Ok(Self::read_as(path, json).map_err(in_folder)?)
    }

    fn read_as(path: &Path, json: Map<String, Value>) -> Result<Self, AdapterError> {
        let config = PeftConfig::from_json(&Value::Object(json.clone()).to_string())?;
        let weights = input::open_in(path, WEIGHTS_FILE)?.ok_or(AdapterError::NoFile { file: WEIGHTS_FILE })?;
        let file = WeightsFile::of(weights)?;
        let has_extras = input::open_in(path, EXTRAS_FILE)?.is_some();
        if let Some(parts) = config.extras.clone().filter(|parts| !parts.is_empty() && !has_extras) {
            return Err(AdapterError::NoExtras { parts, is_absent: true, recorded_in: CONFIG_FILE });
        }
        let note = Note::read(path)?;
        let (sites, copies) = read_tensors(&file, &config)?;
        Ok(Self { path: path.to_path_buf(), json, config, sites, copies, has_extras, note })
    }

    /// The tensors of `janus_extras.safetensors`, by name, and what its header says of heads.
    ///
    /// # Errors
    /// A file that is broken.
    pub fn extras(&self) -> Result<(BTreeMap<String, Tensor>, Option<String>)> {
        let read = || -> Result<_, AdapterError> {
            let Some(opened) = input::open_in(&*self.path, EXTRAS_FILE)? else { return Ok(Default::default()) };
            let file = WeightsFile::of(opened)?;
            let mut tensors = BTreeMap::new();
            for (name, info) in file.tensors() {
                tensors.insert(name.clone(), file.read(info)?);
            }
            Ok((tensors, file.metadata("heads").map(str::to_owned)))
        };
        let in_file = |source| AdapterError::File { file: EXTRAS_FILE, source: Box::new(source) };
        let in_folder = |source| AdapterError::Folder { folder: self.path.clone(), source: Box::new(source) };
        Ok(read().map_err(in_file).map_err(in_folder)?)
    }

    /// Fingerprint of the base it was made for, lower-case, where it says so.
    pub fn base_fingerprint(&self) -> Option<String> {
        self.note.as_ref()?.base.as_ref().map(|base| base.fingerprint.to_lowercase())
    }

    /// The parts beyond PEFT's files, such as `head.defects`: as the configuration records them, or, of before it did, by what is in
    /// the file.
    pub(super) fn parts(&self) -> Result<Vec<String>> {
        if let Some(parts) = self.config.extras.as_ref().filter(|parts| !parts.is_empty()) {
            return Ok(parts.clone());
        }
        if !self.has_extras {
            return Ok(Vec::new());
        }
        let (tensors, heads) = self.extras()?;
        let heads: Map<String, Value> = heads.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut parts: Vec<String> = heads.keys().map(|name| format!("head.{name}")).collect();
        let paths = dynamic::paths_of(tensors.keys().map(String::as_str));
        let places = [("dynamic.vision", paths.vision), ("dynamic.generation", paths.generation)];
        parts.extend(places.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name.to_owned()));
        if parts.is_empty() {
            parts.push(EXTRAS_FILE.to_owned());
        }
        Ok(parts)
    }
}

fn read_config(path: &Path) -> Result<Map<String, Value>, AdapterError> {
    if !path.is_dir() {
        return Err(AdapterError::NotAFolder { path: path.to_path_buf() });
    }
    let text = read_json_text(path.into(), CONFIG_FILE, CONFIG_LIMIT_BYTES)?;
    let text = text.ok_or(AdapterError::NoFile { file: CONFIG_FILE })?;
    serde_json::from_str(&text).map_err(|source| AdapterError::Json { file: CONFIG_FILE, source })
}

/// Fields that make an adapter something else than plain LoRA.
fn other_methods(json: &Map<String, Value>) -> Vec<String> {
    let is_other = |key: &str, value: &Value| match key {
        "peft_type" => value.as_str().is_some_and(|name| name != "LORA"),
        "use_dora" | "use_qalora" | "use_bdlora" | "lora_bias" => *value == Value::Bool(true),
        "kasa_config" | "alora_invocation_tokens" => !value.is_null(),
        _ => false,
    };
    let other = json.iter().filter(|(key, value)| is_other(key, value));
    other.map(|(key, value)| format!("`{key}` = `{}`", value.to_string().trim_matches('"'))).collect()
}

/// What a tensor of this name is for; `None` of one that nothing is known about.
fn place_of(name: &str, config: &PeftConfig) -> Option<Place> {
    const ENDS: [(&str, bool, usize); 4] = [
        (".lora_A.weight", false, 0),
        (".lora_B.weight", false, 1),
        (".lora_embedding_A", true, 0),
        (".lora_embedding_B", true, 1),
    ];
    let name = canonical(name);
    let native = name.strip_prefix(KEY_PREFIX)?;
    for (end, is_embedding, half) in ENDS {
        if let Some(site) = native.strip_suffix(end) {
            return Some(Place::Factor { site: site.to_owned(), is_embedding, half });
        }
    }
    if config.modules_to_save.iter().any(|entry| saves(entry, native)) {
        return Some(Place::Copy(native.to_owned()));
    }
    let is_base = native.ends_with(".base_layer.weight") || [EMBED_TOKENS, LM_HEAD].contains(&native);
    is_base.then_some(Place::Base)
}

/// A and B of sites, and whether these are embeddings.
type Halves = BTreeMap<(String, bool), [Option<Tensor>; 2]>;
/// Factors by site, and copies by parameter.
type Read = (BTreeMap<String, Factors>, BTreeMap<String, Tensor>);

fn read_tensors(file: &WeightsFile, config: &PeftConfig) -> Result<Read, AdapterError> {
    let mut mismatch = Mismatch::default();
    let (mut halves, mut copies) = (Halves::new(), BTreeMap::new());
    for (name, info) in file.tensors() {
        if is_original_layout(name) {
            return Err(AdapterError::OriginalLayout { tensor: name.clone() });
        }
        let place = match place_of(name, config) {
            None => {
                mismatch.leftover.push(name.clone());
                continue;
            }
            Some(Place::Base) => continue,
            Some(place) if is_read(info.dtype) => place,
            Some(_) => {
                mismatch.mistyped.push((name.clone(), format!("{:?}", info.dtype)));
                continue;
            }
        };
        let tensor = file.read(info)?;
        if let Some(value) = first_not_finite(&tensor)? {
            mismatch.not_finite.push((name.clone(), value));
        }
        let before = match place {
            Place::Copy(parameter) => copies.insert(parameter, tensor),
            Place::Factor { site, is_embedding, half } => {
                halves.entry((site, is_embedding)).or_default()[half].replace(tensor)
            }
            Place::Base => None,
        };
        if before.is_some() {
            mismatch.leftover.push(name.clone());
        }
    }
    let sites = pair_up(halves, config, &mut mismatch)?;
    if mismatch.is_empty() { Ok((sites, copies)) } else { Err(AdapterError::Tensors(Box::new(mismatch))) }
}

/// Factors of the ranks and scales that the configuration gives them.
fn pair_up(
    halves: Halves,
    config: &PeftConfig,
    mismatch: &mut Mismatch,
) -> Result<BTreeMap<String, Factors>, AdapterError> {
    let ranks = endings("rank_pattern", &config.rank_patterns)?;
    let alphas = endings("alpha_pattern", &config.alpha_patterns)?;
    let mut sites = BTreeMap::new();
    for ((site, is_embedding), halves) in halves {
        let rank = ranks.iter().find(|(pattern, _)| pattern.is_match(&site)).map_or(config.rank, |(_, rank)| *rank);
        let alpha =
            alphas.iter().find(|(pattern, _)| pattern.is_match(&site)).map_or(config.alpha, |(_, alpha)| *alpha);
        let is_convolution = halves.iter().flatten().any(|half| half.rank() == 4);
        let kind = match is_embedding {
            true => Kind::Embedding,
            false if is_convolution => Kind::Convolution,
            false => Kind::Linear,
        };
        let keys = kind.keys(&site);
        let (a, b) = match halves {
            [Some(a), Some(b)] => (a, b),
            [a, _] => {
                mismatch.missing.push(if a.is_none() { keys[0].clone() } else { keys[1].clone() });
                continue;
            }
        };
        let expected = expected_shapes(kind, rank, a.dims(), b.dims());
        let got = [a.dims().to_vec(), b.dims().to_vec()];
        let misshapen =
            keys.into_iter().zip(expected.into_iter().zip(got)).filter(|(_, (expected, got))| expected != got);
        let misshapen: Vec<_> = misshapen.map(|(name, (expected, got))| Misshapen { name, expected, got }).collect();
        let scale = config.scaling(rank, alpha);
        mismatch.misshapen.extend(misshapen);
        // A site is a table or it is none.
        match sites.entry(site) {
            Entry::Vacant(entry) => drop(entry.insert(Factors { kind, a, b, scale })),
            Entry::Occupied(entry) => mismatch.leftover.extend(kind.keys(entry.key())),
        }
    }
    Ok(sites)
}

/// Shapes that A and B have at this rank, as far as they do not say themselves.
fn expected_shapes(kind: Kind, rank: usize, a: &[usize], b: &[usize]) -> [Vec<usize>; 2] {
    let side = |dims: &[usize], place: usize| dims.get(place).copied().unwrap_or(1).max(1);
    match kind {
        Kind::Convolution => [vec![rank, side(a, 1), side(a, 2), side(a, 3)], vec![side(b, 0), rank, 1, 1]],
        Kind::Linear | Kind::Embedding => [vec![rank, side(a, 1)], vec![side(b, 0), rank]],
    }
}

/// An adapter to be written.
#[derive(Debug)]
pub struct NewAdapter {
    /// Fields of `adapter_config.json` that it takes over; those that say its sites, ranks and scales are made anew.
    pub(super) json: Map<String, Value>,
    /// Factors by site.
    pub sites: BTreeMap<String, Factors>,
    /// Copies by native name of the parameter.
    pub(super) copies: BTreeMap<String, Tensor>,
    /// Ends of the paths of modules that have one.
    pub(super) modules_to_save: Vec<String>,
    /// The folder whose `janus_extras.safetensors` it takes over.
    pub(super) extras_of: Option<PathBuf>,
    /// Where it comes from.
    pub note: Note,
}

impl NewAdapter {
    /// Values in all factors and copies.
    pub fn parameter_count(&self) -> usize {
        let factors = self.sites.values().flat_map(|factors| [&factors.a, &factors.b]);
        factors.chain(self.copies.values()).map(Tensor::elem_count).sum()
    }

    /// Refuses values that f32 does not hold.
    ///
    /// # Errors
    /// [`AlgebraError::NotFinite`].
    pub(super) fn require_finite(&self, why: &'static str) -> Result<()> {
        for (site, factors) in &self.sites {
            for half in [&factors.a, &factors.b] {
                if first_not_finite(half)?.is_some() {
                    return Err(AlgebraError::NotFinite { what: site.clone(), why }.into());
                }
            }
        }
        Ok(())
    }

    /// The text of `adapter_config.json`. The sites are its targets, by their whole paths; rank and alpha that most of them have are
    /// the configuration's, the others stand in its patterns.
    fn config(&self) -> Result<String, AdapterError> {
        let mut json = self.json.clone();
        let (rank, alpha) = most_common(self.sites.values().map(|factors| (factors.rank(), factors.alpha())));
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for (site, factors) in &self.sites {
            let key = || regex::escape(site);
            if factors.rank() != rank {
                ranks.insert(key(), json!(factors.rank()));
            }
            if factors.alpha() != alpha {
                alphas.insert(key(), number(factors.alpha()));
            }
        }
        let saved = &self.modules_to_save;
        let fields = [
            ("r", json!(rank)),
            ("lora_alpha", number(alpha)),
            ("rank_pattern", Value::Object(ranks)),
            ("alpha_pattern", Value::Object(alphas)),
            ("target_modules", json!(self.sites.keys().collect::<Vec<_>>())),
            ("exclude_modules", Value::Null),
            ("layers_to_transform", Value::Null),
            ("layers_pattern", Value::Null),
            ("modules_to_save", if saved.is_empty() { Value::Null } else { json!(saved) }),
            ("use_rslora", Value::Bool(false)),
        ];
        json.extend(fields.map(|(key, value)| (key.to_owned(), value)));
        // What is written has to be what is read.
        Ok(PeftConfig::from_json(&Value::Object(json).to_string())?.to_json())
    }

    /// Writes its files into a folder, the weights last: a folder that has them has everything.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, into: &Directory) -> Result<(), AdapterError> {
        write_text(into, CONFIG_FILE, &self.config()?)?;
        write_text(into, NOTE_FILE, &self.note.to_json())?;
        if let Some(folder) = &self.extras_of
            && let Some(mut opened) = input::open_in(&**folder, EXTRAS_FILE)?
        {
            write_below(into, EXTRAS_FILE, |out| io::copy(&mut opened.file, out).map(drop))?;
        }
        let mut tensors = Vec::with_capacity(2 * self.sites.len() + self.copies.len());
        for (site, factors) in &self.sites {
            let [a, b] = factors.kind.keys(site);
            tensors.extend([(a, factors.a.clone()), (b, factors.b.clone())]);
        }
        tensors.extend(self.copies.iter().map(|(name, copy)| (format!("{KEY_PREFIX}{name}"), copy.clone())));
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        write_weights(into, WEIGHTS_FILE, &tensors, None)
    }
}

/// The pair that comes most often, the smallest of several.
fn most_common(pairs: impl Iterator<Item = (usize, f64)>) -> (usize, f64) {
    let mut counts: Vec<((usize, f64), usize)> = Vec::new();
    for pair in pairs {
        match counts.iter_mut().find(|(known, _)| *known == pair) {
            Some((_, count)) => *count += 1,
            None => counts.push((pair, 1)),
        }
    }
    let best = counts.into_iter().min_by(|(one, often), (other, as_often)| {
        as_often.cmp(often).then(one.0.cmp(&other.0)).then(one.1.total_cmp(&other.1))
    });
    best.map_or((1, 1.0), |(pair, _)| pair)
}

/// A number as PEFT writes it, whole where it is.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
