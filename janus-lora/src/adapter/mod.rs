//! The adapter, as PEFT's files know it: low-rank pairs at sites of the model, and copies of whole parameters; beside them,
//! where there are any, the dynamic visual encoder ([`crate::dynamic`]) and task heads ([`crate::heads`]).
//!
//! | file | what |
//! | --- | --- |
//! | `pair` | one site's A and B: shapes, tensor names, first values |
//! | `peft_config` | `adapter_config.json`; what it asks for beyond plain LoRA is refused by name |
//! | `pattern` | Python's regular expressions |
//! | `select` | which modules of a base a configuration means |
//! | `file` | safetensors and JSON, read from files nobody vouches for |
//! | `folder` | the adapter folder: every tensor in it accounted for |
//! | `extras` | `janus_extras.safetensors`: dynamic encoder and heads |
//! | `note` | `janus_adapter.json`: base, recipe, metrics |
//! | `attach` | adapters in the slots of a model |
//! | `argument` | `DIR:scale` of the command line |
//! | `locate` | from what an argument names to an adapter folder, of a hub, too |
//!
//! An adapter is read by [`Adapter::read`] or made by [`Adapter::new`], written by [`Adapter::write`] and used through
//! [`attach()`]. Paths and parameter names are the native ones, without PEFT's [`KEY_PREFIX`].

mod argument;
mod attach;
mod error;
mod extras;
mod file;
mod folder;
mod locate;
mod note;
mod pair;
mod pattern;
mod peft_config;
mod select;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use janus_core::config::JanusConfig;
use janus_core::site::sites;

pub use argument::parse_argument;
pub use attach::{LoraCorrection, attach, detach, heads, scaled_copy};
pub use error::{AdapterError, Mismatch, Misshapen};
pub(crate) use extras::EXTRAS_FILE;
pub use file::WEIGHTS_FILE;
pub(crate) use file::{WeightsFile, is_read, read_json_text, write_text, write_weights};
pub(crate) use folder::{CONFIG_LIMIT_BYTES, canonical, first_not_finite, is_original_layout};
pub use locate::{as_argument, base_names, locate};
pub use note::{BaseNote, FingerprintVerdict, NOTE_FILE, NOTE_VERSION, Note, check_fingerprint};
pub use pair::{KEY_PREFIX, Pair, pair_keys, pair_shapes};
pub use peft_config::{CONFIG_FILE, ModuleNames, PeftConfig};
pub use select::{SelectedSite, Selection, resolve_modules, select};
pub(crate) use select::{endings, saves};

use crate::dynamic::{Dynamic, Paths};
use crate::heads::{Head, HeadKind, Heads};
use crate::mifs;
pub(crate) use peft_config::{NewConfig, is_inactive};

/// Rows of a copied embedding that are compared at a time.
const COMPARED_ROWS: usize = 4096;

/// A LoRA adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its configuration.
    pub config: PeftConfig,
    /// Pairs by the native path of their site.
    pub pairs: BTreeMap<Arc<str>, Pair>,
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
    /// Rank of every pair.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
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

impl Adapter {
    /// A new adapter that changes nothing yet: every product B·A is 0 and every copy equals the base's parameter.
    ///
    /// The first values are a function of `seed` and the tensor's name. `read` gives the base's parameter of a native
    /// name in any type; it is called for the parameters of `modules_to_save`. `tied` where the base's text head is its
    /// embedding table.
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
        let config = new_config(base, spec)?;
        let selection = select(&config, base, tied)?;
        selection.require_some(&config, spec.dynamic.is_some() || !spec.heads.is_empty())?;
        let mut pairs = BTreeMap::new();
        for SelectedSite { site, rank, alpha } in selection.sites {
            let (a, b) = pair::first_values(&site, rank, seed)?;
            let scale = config.scaling(rank, alpha);
            pairs.insert(site.path.clone(), Pair { site, a, b, rank, scale, alpha });
        }
        let mut saved = BTreeMap::new();
        for parameter in selection.saved {
            let value = read(&parameter.name)?.to_dtype(DType::F32)?;
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
            pairs,
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
    /// they replace. Heads add nothing to a base.
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
        for pair in self.pairs.values() {
            if pair.scale * factor != 0.0 && !is_zero(&pair.a)? && !is_zero(&pair.b)? {
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

    /// Values in all factors and copies, of the dynamic encoder and of heads.
    pub fn parameter_count(&self) -> usize {
        let factors = self.pairs.values().flat_map(|pair| [&pair.a, &pair.b]);
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
                    Some(path) if self.pairs.contains_key(path) => format!("{KEY_PREFIX}{path}.base_layer.weight"),
                    _ => format!("{KEY_PREFIX}{name}"),
                };
                return Err(AdapterError::BaseCopy { tensor, parameter: name.to_string() });
            }
        }
        Ok(())
    }
}

/// Checks a specification and writes it as the configuration that selects just that.
fn new_config(base: &JanusConfig, spec: &AdapterSpec) -> Result<PeftConfig, AdapterError> {
    let known: BTreeMap<Arc<str>, usize> =
        sites(base).into_iter().map(|site| (site.path.clone(), site.input.max(site.output))).collect();
    let mut targets = BTreeSet::new();
    let mut largest_side = 0;
    for path in &spec.sites {
        let side = known.get(path).ok_or_else(|| AdapterError::UnknownModule { path: path.to_string() })?;
        largest_side = largest_side.max(*side);
        targets.insert(path.to_string());
    }
    let setting = |what, value: String, expected| Err(AdapterError::Setting { what, value, expected });
    if spec.rank == 0 || (!targets.is_empty() && spec.rank > largest_side) {
        return setting("rank", spec.rank.to_string(), "at least 1 and at most the longest side of a targeted matrix");
    }
    if !spec.alpha.is_finite() || spec.alpha == 0.0 {
        return setting("alpha", spec.alpha.to_string(), "a finite number other than 0");
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
    PeftConfig::new(&NewConfig {
        rank: spec.rank,
        alpha: spec.alpha,
        dropout: spec.dropout,
        targets: &targets.into_iter().collect::<Vec<_>>(),
        modules_to_save: &modules_to_save,
        base_name: spec.base_name.as_deref(),
    })
}

fn is_zero(tensor: &Tensor) -> Result<bool, AdapterError> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| *value == 0.0))
}

/// Whether two tensors, of rows, of any type hold the same numbers.
fn same_values(a: &Tensor, b: &Tensor) -> Result<bool, AdapterError> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let rows = a.dim(0)?;
    let values = |tensor: &Tensor, from: usize| -> Result<Vec<f32>, AdapterError> {
        let piece = tensor.narrow(0, from, COMPARED_ROWS.min(rows - from))?;
        Ok(piece.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
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
