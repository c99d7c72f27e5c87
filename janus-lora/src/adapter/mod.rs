//! The adapter, as PEFT's files know it: the tensors of a method at sites of the model, and copies of whole parameters; beside
//! them, where there are any, the dynamic visual encoder ([`crate::dynamic`]) and task heads ([`crate::heads`]).
//!
//! | file | what |
//! | --- | --- |
//! | `method` | the methods of PEFT, a file each: their tensors, how these begin, what they make of a site |
//! | `init` | how low-rank pairs begin |
//! | `site` | what an adapter has at one site |
//! | `peft_config` | `adapter_config.json`; what it asks for beyond the methods here is refused by name |
//! | `pattern` | Python's regular expressions |
//! | `select` | which modules of a base a configuration means |
//! | `file` | safetensors and JSON, read from files nobody vouches for |
//! | `folder` | the adapter folder: every tensor in it accounted for |
//! | `extras` | `janus_extras.safetensors`: dynamic encoder and heads |
//! | `note` | `janus_adapter.json`: base, recipe, metrics |
//! | `pieces` | what an adapter makes of a site and of whole parameters, from the base's values there |
//! | `place` | adapters in a model: the one way, for training, loading and checks |
//! | `bank` | many adapters in slots of one model, chosen row by row |
//! | `of_base` | an adapter read for a base that it must belong to |
//! | `argument` | `DIR:scale` of the command line |
//! | `locate` | from what an argument names to an adapter folder, of a hub, too |
//!
//! An adapter is read by [`Adapter::read`] or made by [`Adapter::new`], written by [`Adapter::write`] and used through
//! [`place()`]. Paths and parameter names are the native ones, without PEFT's [`KEY_PREFIX`].

mod argument;
mod bank;
mod error;
mod extras;
mod file;
mod folder;
pub(crate) mod init;
mod locate;
pub(crate) mod method;
mod note;
mod of_base;
mod pattern;
mod peft_config;
mod pieces;
mod place;
mod select;
mod site;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::expected_tensors;
use janus_core::config::JanusConfig;
use janus_core::site::{Site, sites};
use sha2::{Digest as _, Sha256};

pub use argument::parse_argument;
pub use bank::{Bank, Group};
pub use error::{AdapterError, Mismatch, Misshapen};
pub(crate) use extras::EXTRAS_FILE;
pub use file::WEIGHTS_FILE;
pub(crate) use file::{WeightsFile, is_read, read_json_text, write_text, write_weights};
pub(crate) use folder::{CONFIG_LIMIT_BYTES, canonical, first_not_finite, is_original_layout};
pub use init::Init;
pub(crate) use locate::is_of_hub;
pub use locate::{as_argument, base_names, locate};
pub use method::{Method, OnBias};
pub use note::{BaseNote, FingerprintVerdict, NOTE_FILE, NOTE_VERSION, Note, check_fingerprint};
pub use peft_config::{CONFIG_FILE, ModuleNames, PeftConfig};
pub use pieces::{Together, scaled_copy};
pub use place::{Placed, attach, detach, heads, place};
pub use select::{SelectedSite, Selection, resolve_modules, select};
pub(crate) use select::{endings, saves};
pub use site::{AdaptedSite, KEY_PREFIX, key, trained_values};

use crate::dynamic::{Dynamic, Paths};
use crate::heads::{Head, HeadKind, Heads};
use crate::mifs;
use method::{At, Read, blank_values, first_values};
pub(crate) use peft_config::{NewConfig, is_inactive};

/// Rows of a copied embedding that are compared at a time.
const COMPARED_ROWS: usize = 4096;

/// An adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its configuration.
    pub config: PeftConfig,
    /// What it has at each site, by the site's native path.
    pub sites: BTreeMap<Arc<str>, AdaptedSite>,
    /// What all sites share and training leaves alone, by name, such as `vera_A`; f32.
    pub shared: BTreeMap<&'static str, Tensor>,
    /// Copies that stand in for parameters (`modules_to_save`), by native name, in the parameter's shape; f32.
    pub saved: BTreeMap<Arc<str>, Tensor>,
    /// The dynamic visual encoder, where there is one.
    pub dynamic: Option<Dynamic>,
    /// Task heads by name.
    pub heads: Heads,
    /// The logarithm of the temperature of the mid features' alignment, while that is under training.
    pub alignment: Option<Tensor>,
    /// Copies of the base's own embedding or head that PEFT puts into its files, by native name; f32. Only good for
    /// [`Adapter::check_base_copies`].
    pub base_copies: BTreeMap<Arc<str>, Tensor>,
    /// What `janus_adapter.json` says.
    pub note: Option<Note>,
    /// What its files ask for in vain, in words: worth a warning.
    pub remarks: Vec<String>,
}

/// What a new adapter is made from.
#[derive(Debug, Clone)]
pub struct AdapterSpec {
    /// Its method.
    pub method: Method,
    /// Rank at every site that `ranks` does not name; without meaning where the method has none.
    pub rank: usize,
    /// Numerator of the scale at every site that `alphas` does not name.
    pub alpha: f64,
    /// Whether the scale is `alpha / √rank` instead of `alpha / rank`.
    pub rslora: bool,
    /// How low-rank pairs begin.
    pub init: Init,
    /// Other ranks, by native path.
    pub ranks: BTreeMap<Arc<str>, usize>,
    /// Other alphas, by native path.
    pub alphas: BTreeMap<Arc<str>, f64>,
    /// Type that the base's weights are computed in.
    pub dtype: DType,
    /// Share of the inputs' values that training zeroes before A.
    pub dropout: f64,
    /// Native paths of the sites.
    pub sites: Vec<Arc<str>>,
    /// Trailing whole segments of the paths of modules to copy.
    pub modules_to_save: Vec<String>,
    /// The paths of a dynamic visual encoder, absent without one.
    pub dynamic: Option<Paths>,
    /// Task heads by name.
    pub heads: Vec<(String, HeadKind)>,
    /// Whether mid features are aligned.
    pub aligns: bool,
    /// What the base is called, for `base_model_name_or_path`.
    pub base_name: Option<String>,
}

impl Default for AdapterSpec {
    /// LoRA of rank 8 and scale 1 at no site.
    fn default() -> Self {
        Self {
            method: Method::Lora { bias: false },
            rank: 8,
            alpha: 8.0,
            rslora: false,
            init: Init::default(),
            ranks: BTreeMap::new(),
            alphas: BTreeMap::new(),
            dtype: DType::F32,
            dropout: 0.0,
            sites: Vec::new(),
            modules_to_save: Vec::new(),
            dynamic: None,
            heads: Vec::new(),
            aligns: false,
            base_name: None,
        }
    }
}

/// Reads a weight of the base by its native name.
type ReadWeight<'a> = &'a dyn Fn(&str) -> janus_core::Result<Tensor>;

impl Adapter {
    /// A new adapter that changes nothing yet: no site shifts its weight and every copy equals the base's parameter.
    ///
    /// The first values are a function of `seed` and the tensor's name, with some methods also of the base's weights. `read`
    /// gives the base's parameter of a native name in any type; it is called for the parameters of `modules_to_save`, too.
    /// `tied` where the base's text head is its embedding table.
    ///
    /// # Errors
    /// Numbers out of range, unknown sites or modules, a site inside a copied module, or what `read` reports.
    pub fn new(
        base: &JanusConfig,
        tied: bool,
        spec: &AdapterSpec,
        seed: u64,
        read: &dyn Fn(&str) -> janus_core::Result<Tensor>,
    ) -> Result<Self, AdapterError> {
        Self::made(base, tied, spec, seed, Some(read))
    }

    /// An adapter with the tensors of a new one, all zero where a new one's values are its own: for their names, shapes and number.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn blank(base: &JanusConfig, tied: bool, spec: &AdapterSpec) -> Result<Self, AdapterError> {
        Self::made(base, tied, spec, 0, None)
    }

    fn made(
        base: &JanusConfig,
        tied: bool,
        spec: &AdapterSpec,
        seed: u64,
        read: Option<ReadWeight<'_>>,
    ) -> Result<Self, AdapterError> {
        let config = new_config(base, spec)?;
        let selection = select(&config, base, tied)?;
        selection.require_some(&config, spec.dynamic.is_some() || !spec.heads.is_empty())?;
        let mut sites = BTreeMap::new();
        for SelectedSite { site, rank, alpha, is_feedforward } in selection.sites {
            let at = At { site: &site, rank, is_feedforward };
            let (scale, has_bias) = (config.scaling(rank, alpha), has_bias(base, &site.path));
            spec.init.require(&site, rank, scale)?;
            let values = match read {
                Some(read) => {
                    let own = Read { site: &site, read, dtype: spec.dtype, has_bias };
                    first_values(&config.method, at, scale, spec.init, seed, &own)?
                }
                None => blank_values(&config.method, at)?,
            };
            sites.insert(site.path.clone(), AdaptedSite { site, rank, alpha, scale, is_feedforward, has_bias, values });
        }
        let places: Vec<At<'_>> = sites.values().map(AdaptedSite::at).collect();
        let shared = config.method.shared(&places).into_iter();
        let shared = shared.map(|(name, shape)| match read {
            Some(_) => Ok((name, config.method.first_shared(name, &shape)?)),
            None => Ok((name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?)),
        });
        let shared = shared.collect::<Result<_, AdapterError>>()?;
        let mut saved = BTreeMap::new();
        for parameter in selection.saved {
            let value = match read {
                Some(read) => read(&parameter.name)?.to_dtype(DType::F32)?,
                None => Tensor::zeros(parameter.shape.as_slice(), DType::F32, &Device::Cpu)?,
            };
            if value.dims() != parameter.shape {
                let (expected, got) = (parameter.shape, value.dims().to_vec());
                return Err(AdapterError::Shape { path: parameter.name, tensor: "copy", expected, got });
            }
            saved.insert(parameter.name.into(), value);
        }
        let dynamic = spec.dynamic.map(|paths| Dynamic::new(base, paths, seed)).transpose()?;
        let head = |(name, kind): &(String, HeadKind)| -> Result<(Arc<str>, Head), AdapterError> {
            Ok((name.as_str().into(), Head::new(base, name, kind.clone(), seed)?))
        };
        let heads = spec.heads.iter().map(head).collect::<Result<_, _>>()?;
        let alignment = spec.aligns.then(mifs::first_temperature).transpose()?;
        Ok(Self {
            config,
            sites,
            shared,
            saved,
            dynamic,
            heads,
            alignment,
            base_copies: BTreeMap::new(),
            note: None,
            remarks: Vec::new(),
        })
    }

    /// Whether anything that it adds to a base with a factor on it is other than zero; copies count without a look at what
    /// they replace, and so do magnitudes. Heads add nothing to a base.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn acts(&self, factor: f64) -> Result<bool, AdapterError> {
        if factor == 0.0 {
            return Ok(false);
        }
        if !self.saved.is_empty() {
            return Ok(true);
        }
        for site in self.sites.values() {
            if self.config.method.form().acts(&site.values)? {
                return Ok(true);
            }
        }
        Ok(self.dynamic.as_ref().map(Dynamic::acts).transpose()?.unwrap_or(false))
    }

    /// Whether what it adds to a base changes it: [`Adapter::acts`], copies held against what they replace. `read` gives the
    /// base's parameter of a native name.
    ///
    /// # Errors
    /// What `read` and the tensor engine report.
    pub fn changes(
        &self,
        factor: f64,
        read: &dyn Fn(&str) -> janus_core::Result<Tensor>,
    ) -> Result<bool, AdapterError> {
        if self.saved.is_empty() || factor == 0.0 {
            return self.acts(factor);
        }
        // Reading copies is quick beside reading what they replace.
        let without = Self { saved: BTreeMap::new(), ..self.clone() };
        if without.acts(factor)? {
            return Ok(true);
        }
        for (name, copy) in &self.saved {
            if !same_values(copy, &read(name)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// SHA-256 of its configuration and all its values, hexadecimal: adapters that answer differently have different ones.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn digest(&self) -> Result<String, AdapterError> {
        let mut hasher = Sha256::new();
        let mut add = |name: &str, value: &Tensor| -> Result<(), AdapterError> {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            let value = value.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            value.dims().iter().for_each(|side| hasher.update((*side as u64).to_le_bytes()));
            value.flatten_all()?.to_vec1::<f32>()?.iter().for_each(|value| hasher.update(value.to_le_bytes()));
            Ok(())
        };
        for (path, site) in &self.sites {
            for (ending, value) in &site.values {
                add(&format!("{path}.{ending}"), value)?;
            }
        }
        let shared = self.shared.iter().map(|(name, value)| (*name, value));
        let saved = self.saved.iter().map(|(name, value)| (&**name, value));
        let dynamic = self.dynamic.iter().flat_map(|dynamic| dynamic.values()).map(|(name, value)| (&**name, value));
        let heads = self.heads.values().flat_map(|head| head.values()).map(|(name, value)| (&**name, value));
        for (name, value) in shared.chain(saved).chain(dynamic).chain(heads) {
            add(name, value)?;
        }
        hasher.update(format!("{:?}", self.config));
        self.heads.values().for_each(|head| hasher.update(format!("{:?}", head.kind)));
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Values that are trained: of all sites and copies, of the dynamic encoder and of heads.
    pub fn parameter_count(&self) -> usize {
        let factors = self.sites.values().flat_map(|site| {
            let trained = site.values.iter().filter(|(ending, _)| !site.is_fixed(ending));
            trained.map(|(_, value)| value)
        });
        let dynamic = self.dynamic.iter().flat_map(|dynamic| dynamic.values().values());
        let heads = self.heads.values().flat_map(|head| head.values().values());
        factors.chain(self.saved.values()).chain(dynamic).chain(heads).map(Tensor::elem_count).sum()
    }

    /// Compares the copies of the base's embedding that came with the adapter with the base itself. `read` gives the
    /// base's parameter of a native name, of a tied head the embedding table.
    ///
    /// # Errors
    /// A copy that differs, or what `read` reports.
    pub fn check_base_copies(&self, read: &dyn Fn(&str) -> janus_core::Result<Tensor>) -> Result<(), AdapterError> {
        for (name, copy) in &self.base_copies {
            if !same_values(copy, &read(name)?)? {
                let tensor = match name.strip_suffix(".weight") {
                    Some(path) if self.sites.contains_key(path) => format!("{KEY_PREFIX}{path}.base_layer.weight"),
                    _ => format!("{KEY_PREFIX}{name}"),
                };
                return Err(AdapterError::BaseCopy { tensor, parameter: name.to_string() });
            }
        }
        Ok(())
    }
}

/// Whether a base has a bias at a site.
pub fn has_bias(base: &JanusConfig, path: &str) -> bool {
    let name = format!("{path}.bias");
    expected_tensors(base, true).iter().any(|tensor| tensor.name == name)
}

/// Checks a specification and writes it as the configuration that selects just that.
fn new_config(base: &JanusConfig, spec: &AdapterSpec) -> Result<PeftConfig, AdapterError> {
    let known: BTreeMap<Arc<str>, Site> = sites(base).into_iter().map(|site| (site.path.clone(), site)).collect();
    let mut targets = BTreeSet::new();
    let mut largest_side = 0;
    for path in &spec.sites {
        let site = known.get(path).ok_or_else(|| AdapterError::UnknownModule { path: path.to_string() })?;
        if !spec.method.takes(site.kind) {
            return Err(AdapterError::NotForSite { path: path.to_string(), method: spec.method.name() });
        }
        largest_side = largest_side.max(site.input.max(site.output));
        targets.insert(path.to_string());
    }
    let setting = |what, value: String, expected| Err(AdapterError::Setting { what, value, expected });
    let ranks = spec.ranks.values().chain([&spec.rank]);
    for rank in ranks.filter(|_| spec.method.has_rank()) {
        let limit = if spec.method.is_limited_by_sides() { largest_side } else { MOST_RANK };
        if *rank == 0 || (!targets.is_empty() && *rank > limit) {
            let expected = "at least 1 and at most the longest side of a targeted matrix";
            return setting("rank", rank.to_string(), expected);
        }
    }
    for alpha in spec.alphas.values().chain([&spec.alpha]) {
        if !alpha.is_finite() || *alpha == 0.0 {
            return setting("alpha", alpha.to_string(), "a finite number other than 0");
        }
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        return setting("dropout", spec.dropout.to_string(), "a number of at least 0 and below 1");
    }
    let modules_to_save = resolve_modules(&spec.modules_to_save, base)?;
    for module in &modules_to_save {
        let inside = format!("{module}.");
        if let Some(path) = targets.iter().find(|path| *path == module || path.starts_with(&inside)) {
            return Err(AdapterError::TargetedAndSaved { path: path.clone() });
        }
    }
    let ranks: Vec<(String, usize)> = spec.ranks.iter().map(|(path, rank)| (path.to_string(), *rank)).collect();
    let alphas: Vec<(String, f64)> = spec.alphas.iter().map(|(path, alpha)| (path.to_string(), *alpha)).collect();
    let is_plain = spec.method == Method::Lora { bias: false };
    if spec.init.is_of_plain_pairs() && !is_plain {
        return setting("init", spec.init.name().to_owned(), "`kaiming` or `gaussian` with this method");
    }
    let mut config = PeftConfig::new(&NewConfig {
        method: &spec.method,
        rank: spec.rank,
        alpha: spec.alpha,
        rslora: spec.rslora,
        dropout: spec.dropout,
        init: spec.init,
        targets: &targets.into_iter().collect::<Vec<_>>(),
        ranks: &ranks,
        alphas: &alphas,
        modules_to_save: &modules_to_save,
        base_name: spec.base_name.as_deref(),
    })?;
    if spec.init.is_of_weight() {
        config.method = Method::Residual;
    }
    Ok(config)
}

/// Beyond it the sizes of tensors could overflow.
const MOST_RANK: usize = 1 << 20;

/// Whether two tensors, of rows, of any type hold the same numbers.
fn same_values(a: &Tensor, b: &Tensor) -> Result<bool, AdapterError> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let rows = a.dim(0)?;
    let values = |tensor: &Tensor, from: usize| -> Result<Vec<f32>, AdapterError> {
        let piece = tensor.narrow(0, from, COMPARED_ROWS.min(rows - from))?;
        Ok(piece.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    for from in (0..rows).step_by(COMPARED_ROWS) {
        if values(a, from)? != values(b, from)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
