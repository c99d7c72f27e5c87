//! The methods of PEFT, one file each: which tensors a method has at a site, how they begin, and what they make of the site.
//!
//! A method says it in [`Form`]; files, training, merging and loading know no more than that.
//!
//! | file | method | at a site |
//! | --- | --- | --- |
//! | `lora` | LoRA (Hu et al., arXiv:2106.09685), also with a bias | a low-rank pair |
//! | `dora` | DoRA (Liu et al., arXiv:2402.09353) | a low-rank pair and a magnitude of each output |
//! | `loha` | LoHa (Hyeon-Woo et al., arXiv:2108.06098) | the product, cell by cell, of two low-rank products |
//! | `lokr` | LoKr (Yeh et al., arXiv:2309.14859) | a Kronecker product |
//! | `vera` | VeRA (Kopiczko et al., arXiv:2310.11454) | two vectors around random matrices that all sites share |
//! | `residual` | PiSSA and OLoRA under training | a low-rank pair, and what it began with taken away |
//! | `ia3` | (IA)³ (Liu et al., arXiv:2205.05638) | a factor on each output, or on each input |

mod dora;
mod ia3;
mod loha;
mod lokr;
pub(super) mod lora;
pub(super) mod residual;
mod vera;

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use candle_core::{DType, Device, Tensor};
use janus_core::noise;
use janus_core::site::{Base, Correction, Site, SiteKind};

use super::error::AdapterError;
use super::init::{Init, of_weight};
use super::peft_config::ModuleNames;
use super::site::AdaptedSite;
use crate::drawn::drawn;

/// A method with its own settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Low-rank pairs.
    Lora {
        /// Whether each pair has a bias (`lora_bias`).
        bias: bool,
    },
    /// Low-rank pairs under training that began as a part of the weight (`Init::is_of_weight`); LoRA in files.
    Residual,
    /// Low-rank pairs and magnitudes.
    Dora,
    /// Hadamard products of low-rank products.
    Loha {
        /// Whether convolutions have a core tensor (`use_effective_conv2d`).
        effective: bool,
    },
    /// Kronecker products.
    Lokr {
        /// Whether the left factor is a low-rank product, too, where it is large enough.
        decompose_both: bool,
        /// The size that the smaller factor of a dimension is to have at most; -1: about its root.
        decompose_factor: i64,
        /// Whether convolutions have a core tensor (`use_effective_conv2d`).
        effective: bool,
    },
    /// Vectors around shared random matrices.
    Vera {
        /// First value of the inner vectors.
        d_initial: f64,
        /// What the shared matrices are drawn from.
        projection_seed: u64,
    },
    /// Factors on outputs and inputs.
    Ia3 {
        /// The sites that have factors on their input.
        feedforward: ModuleNames,
    },
}

impl Method {
    /// As recipes call it.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Lora { .. } | Method::Residual => "lora",
            Method::Dora => "dora",
            Method::Loha { .. } => "loha",
            Method::Lokr { .. } => "lokr",
            Method::Vera { .. } => "vera",
            Method::Ia3 { .. } => "ia3",
        }
    }

    /// Whether it has ranks and scales.
    pub fn has_rank(&self) -> bool {
        !matches!(self, Method::Ia3 { .. })
    }

    /// Whether a rank beyond the longest side of a matrix is of no use.
    pub(super) fn is_limited_by_sides(&self) -> bool {
        matches!(self, Method::Lora { .. } | Method::Residual | Method::Dora)
    }

    /// The same method at the sites of both, which are of one recipe.
    pub(crate) fn with_sites_of(&self, other: &Self) -> Self {
        match (self, other) {
            (
                Method::Ia3 { feedforward: ModuleNames::Suffixes(own) },
                Method::Ia3 { feedforward: ModuleNames::Suffixes(others) },
            ) => {
                let added = others.iter().filter(|name| !own.contains(name));
                Method::Ia3 { feedforward: ModuleNames::Suffixes(own.iter().chain(added).cloned().collect()) }
            }
            (Method::Ia3 { feedforward: ModuleNames::Nothing }, other) => other.clone(),
            _ => self.clone(),
        }
    }

    /// Whether a site computes with the tensors themselves, so that a step that moves them is seen at once.
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self, Method::Lora { bias: false } | Method::Residual)
    }

    /// Values that are held of each token at a site, for factors of a rank: of LoHa's, whose pair has the squared rank, more.
    pub(crate) fn held_rank(&self, rank: usize) -> usize {
        match self {
            Method::Loha { .. } => rank * rank,
            _ => rank,
        }
    }

    /// What it does with the base's bias at a site.
    pub(super) fn bias(&self, own: &AdaptedSite) -> OnBias {
        let adds = |bias: &Tensor| !is_all(bias, 0.0).unwrap_or(false);
        match self {
            Method::Lora { bias: true } if own.values.get(lora::BIAS).is_some_and(adds) => OnBias::Shifted,
            Method::Ia3 { .. } if !own.is_feedforward => OnBias::Scaled,
            _ => OnBias::Kept,
        }
    }

    /// Whether it can stand at sites of a kind.
    pub fn takes(&self, kind: SiteKind) -> bool {
        match kind {
            SiteKind::Linear => true,
            SiteKind::Conv2d { .. } => !matches!(self, Method::Vera { .. }),
            SiteKind::Embedding => matches!(self, Method::Lora { .. } | Method::Residual | Method::Dora),
        }
    }

    pub(super) fn form(&self) -> Box<dyn Form> {
        match self {
            Method::Lora { bias } => Box::new(lora::Lora { bias: *bias }),
            Method::Residual => Box::new(residual::Residual),
            Method::Dora => Box::new(dora::Dora),
            Method::Loha { effective } => Box::new(loha::Loha { effective: *effective }),
            Method::Lokr { decompose_both, decompose_factor, effective } => Box::new(lokr::Lokr {
                decompose_both: *decompose_both,
                decompose_factor: *decompose_factor,
                effective: *effective,
            }),
            Method::Vera { d_initial, .. } => Box::new(vera::Vera { d_initial: *d_initial }),
            Method::Ia3 { .. } => Box::new(ia3::Ia3),
        }
    }
}

impl Method {
    /// Names and shapes of the tensors that these sites share and that are not trained.
    pub(super) fn shared(&self, sites: &[At<'_>]) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Method::Vera { .. } => vera::shared(sites),
            _ => Vec::new(),
        }
    }

    /// Values of a shared tensor.
    pub(super) fn first_shared(&self, name: &str, shape: &[usize]) -> Result<Tensor, AdapterError> {
        match self {
            Method::Vera { projection_seed, .. } => vera::first_shared(name, shape, *projection_seed),
            _ => Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?),
        }
    }
}

impl Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What becomes of a base's bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnBias {
    /// It stays as it is.
    Kept,
    /// It is multiplied, where there is one.
    Scaled,
    /// Something is added to it, which nothing takes up where there is none.
    Shifted,
}

/// A site as a method meets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) site: &'a Site,
    /// Rank of its factors.
    pub(super) rank: usize,
    /// Whether (IA)³ has its factors on the input here.
    pub(super) is_feedforward: bool,
}

/// What first values are made from.
pub(super) struct Beginning<'a> {
    pub(super) init: Init,
    pub(super) seed: u64,
    /// Key of the tensor in the adapter's file.
    pub(super) key: &'a str,
    pub(super) shape: &'a [usize],
    /// The base at the site, as it is computed with.
    pub(super) base: &'a dyn Base,
}

impl Beginning<'_> {
    fn full(&self, value: f64) -> Result<Tensor, AdapterError> {
        Ok(Tensor::full(value as f32, self.shape, &Device::Cpu)?)
    }

    fn normal(&self, deviation: f64) -> Result<Tensor, AdapterError> {
        Ok(drawn(self.shape, self.seed, self.key, |key, index| deviation * noise::normal(key, index))?)
    }

    fn uniform(&self, bound: f64) -> Result<Tensor, AdapterError> {
        Ok(drawn(self.shape, self.seed, self.key, |key, index| bound * (2.0 * noise::uniform(key, index) - 1.0))?)
    }

    /// torch's `kaiming_uniform_(a = √5)`: U(±1/√fan_in), where fan_in is what one row of the tensor holds.
    fn kaiming(&self) -> Result<Tensor, AdapterError> {
        let fan_in: usize = self.shape[1..].iter().product();
        self.uniform(1.0 / (fan_in as f64).sqrt())
    }
}

/// A site's values by ending.
pub(super) type Values<'a> = BTreeMap<&'a str, Tensor>;

/// Whether all values of a tensor are one number.
fn is_all(tensor: &Tensor, number: f32) -> Result<bool, AdapterError> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| *value == number))
}

/// The values of one site.
pub(super) struct Own<'a> {
    pub(super) at: At<'a>,
    pub(super) scale: f64,
    pub(super) dropout: f64,
    /// The value of an ending.
    pub(super) value: &'a dyn Fn(&str) -> Tensor,
    /// The value of a tensor that all sites share, by name.
    pub(super) shared: &'a dyn Fn(&str) -> Tensor,
}

/// What a method is.
pub(super) trait Form {
    /// Endings of a site's tensors in the file, behind the site's path and a point, with their shapes.
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)>;

    /// First values of the tensor of an ending. Together the first values change nothing.
    fn first(&self, at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError>;

    /// Whether the values may change anything, as far as can be told without the base.
    fn acts(&self, values: &Values<'_>) -> Result<bool, AdapterError>;

    /// What the values make of the site, with their graph.
    fn correction(&self, own: &Own<'_>, base: &dyn Base) -> Result<Correction, AdapterError>;
}

/// The first values of everything that a method has at a site, by ending.
pub(super) fn first_values(
    method: &Method,
    at: At<'_>,
    scale: f64,
    init: Init,
    seed: u64,
    base: &dyn Base,
) -> Result<BTreeMap<&'static str, Tensor>, AdapterError> {
    if *method == Method::Residual {
        let [a, b] = of_weight(init, &base.weight()?, at.rank, scale, &super::site::key(at.site, lora::A))?;
        let starts = [(residual::START_A, a.clone()), (residual::START_B, b.clone())];
        return Ok([(lora::A, a), (lora::B, b)].into_iter().chain(starts).collect());
    }
    let form = method.form();
    let first = |(ending, shape): (&'static str, Vec<usize>)| {
        let key = super::site::key(at.site, ending);
        let beginning = Beginning { init, seed, key: &key, shape: &shape, base };
        Ok((ending, form.first(at, ending, &beginning)?))
    };
    form.tensors(at).into_iter().map(first).collect()
}

/// Zeros in the shapes of everything that a method has at a site, by ending.
pub(super) fn blank_values(method: &Method, at: At<'_>) -> Result<BTreeMap<&'static str, Tensor>, AdapterError> {
    let zeros =
        |(ending, shape): (&'static str, Vec<usize>)| Ok((ending, Tensor::zeros(shape, DType::F32, &Device::Cpu)?));
    method.form().tensors(at).into_iter().map(zeros).collect()
}

/// The base's weight of one in `read`, rounded to `dtype`, which it is computed in.
pub(super) struct Read<'a> {
    pub(super) site: &'a Site,
    pub(super) read: &'a dyn Fn(&str) -> janus_core::Result<Tensor>,
    pub(super) dtype: DType,
    /// Whether the base has a bias there.
    pub(super) has_bias: bool,
}

impl Base for Read<'_> {
    fn weight(&self) -> janus_core::Result<Tensor> {
        let weight = (self.read)(&format!("{}.weight", self.site.path))?;
        Ok(weight.to_dtype(self.dtype)?.to_dtype(DType::F32)?)
    }

    fn bias(&self) -> janus_core::Result<Option<Tensor>> {
        if !self.has_bias {
            return Ok(None);
        }
        Ok(Some((self.read)(&format!("{}.bias", self.site.path))?.to_dtype(DType::F32)?))
    }
}

#[cfg(test)]
pub(super) mod tests;
