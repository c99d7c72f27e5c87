//! The dynamic visual encoder (DVE): factors on the model's visual paths, made by a small network, the parameter generator
//! (PGN), from one learnt token for each modality.
//!
//! γ_m = W2·relu(W1·z_m + b1) + b2 with a token z_m for `understand` and one for `generate`. On the way of a picture to be
//! understood, what each layer norm of the tower's blocks gives is multiplied by 1 + a·γ_understand, with a learnt gate a for
//! each norm. On the way of a picture that is drawn, what `generation_aligner` gives, low-rank terms included, is
//! multiplied by 1 + P·γ_generate. W2 and b2 start at zero: at first every factor is one and no bit changes.
//!
//! | file | what |
//! | --- | --- |
//! | `factors` | from the values to the factors, with their graph |
//! | `places` | where a model has factors |
//!
//! Both paths have their factors at the same time, each at its own place: to go from one modality to the other, nothing is
//! made anew.

mod factors;
mod places;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use janus_core::config::JanusConfig;
use janus_core::noise;

use crate::drawn::drawn;

pub use factors::Factors;
pub use places::generation_site;
use places::norm_parameters;

/// Length of a modality's token.
const TOKEN: usize = 256;
/// Width between the generator's two maps.
const INNER: usize = 512;
/// Deviation of P's first values.
const PROJECTION_DEVIATION: f64 = 0.01;

/// How every name in a file begins.
pub const PREFIX: &str = "dynamic.";

const UNDERSTAND: &str = "dynamic.tokens.understand";
const GENERATE: &str = "dynamic.tokens.generate";
const FC1_WEIGHT: &str = "dynamic.generator.fc1.weight";
const FC1_BIAS: &str = "dynamic.generator.fc1.bias";
const FC2_WEIGHT: &str = "dynamic.generator.fc2.weight";
const FC2_BIAS: &str = "dynamic.generator.fc2.bias";
const GATES: &str = "dynamic.vision.gates";
const PROJECTION: &str = "dynamic.generation.projection";

/// Which paths have factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paths {
    /// The tower's layer norms.
    pub vision: bool,
    /// The output of `generation_aligner`.
    pub generation: bool,
}

impl Paths {
    /// Whether there is one.
    pub fn any(self) -> bool {
        self.vision || self.generation
    }
}

/// The values of a dynamic encoder, by the names they have in `janus_extras.safetensors`; f32.
///
/// | name | shape |
/// | --- | --- |
/// | `dynamic.tokens.understand`, `dynamic.tokens.generate` | `[256]`, of each path that there is |
/// | `dynamic.generator.fc1.weight`, `.bias` | `[512, 256]`, `[512]` |
/// | `dynamic.generator.fc2.weight`, `.bias` | `[width, 512]`, `[width]` |
/// | `dynamic.vision.gates` | `[blocks, 2]`, of the first and the second norm |
/// | `dynamic.generation.projection` | `[hidden, width]` |
///
/// `width` is the vision tower's.
#[derive(Debug, Clone)]
pub struct Dynamic {
    paths: Paths,
    values: BTreeMap<Arc<str>, Tensor>,
}

impl Dynamic {
    /// First values, a function of `seed` and the values' names: tokens from N(0, 1/256), the first map from N(0, 2/256)
    /// (He et al., arXiv:1502.01852, eq. 10), P from N(0, 0.01²), gates one, and zeros.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn new(config: &JanusConfig, paths: Paths, seed: u64) -> Result<Self> {
        let first = |name: &str, shape: &[usize]| -> Result<Tensor> {
            let drawn = |deviation: f64| drawn(shape, seed, name, |key, index| deviation * noise::normal(key, index));
            match name {
                UNDERSTAND | GENERATE => drawn(1.0 / (TOKEN as f64).sqrt()),
                FC1_WEIGHT => drawn((2.0 / TOKEN as f64).sqrt()),
                PROJECTION => drawn(PROJECTION_DEVIATION),
                GATES => Tensor::ones(shape, DType::F32, &Device::Cpu),
                _ => Tensor::zeros(shape, DType::F32, &Device::Cpu),
            }
        };
        let values = shapes(config, paths).into_iter().map(|(name, shape)| Ok((name.into(), first(name, &shape)?)));
        Ok(Self { paths, values: values.collect::<Result<_>>()? })
    }

    /// From values by name, which are those of [`shapes`] in these shapes.
    pub fn of(paths: Paths, values: BTreeMap<Arc<str>, Tensor>) -> Self {
        Self { paths, values }
    }

    /// Which paths have factors.
    pub fn paths(&self) -> Paths {
        self.paths
    }

    /// All values by name.
    pub fn values(&self) -> &BTreeMap<Arc<str>, Tensor> {
        &self.values
    }

    /// The same with other values, by name.
    pub fn with_values(&self, value: impl Fn(&str) -> Tensor) -> Self {
        let values = self.values.keys().map(|name| (name.clone(), value(name))).collect();
        Self { paths: self.paths, values }
    }

    /// Whether a factor is other than one.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn acts(&self) -> Result<bool> {
        let Factors { norms, generation } = Factors::of(self)?;
        for factors in norms.iter().chain(&generation) {
            if factors.flatten_all()?.to_vec1::<f32>()?.iter().any(|factor| *factor != 1.0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn value(&self, name: &str) -> &Tensor {
        self.values.get(name).expect("every value of a path is there")
    }
}

/// Which paths the values of these names are for.
pub fn paths_of<'a>(names: impl Iterator<Item = &'a str>) -> Paths {
    names.fold(Paths { vision: false, generation: false }, |paths, name| Paths {
        vision: paths.vision || [GATES, UNDERSTAND].contains(&name),
        generation: paths.generation || [PROJECTION, GENERATE].contains(&name),
    })
}

/// Native names of everything that has a factor.
pub fn places(config: &JanusConfig, paths: Paths) -> Vec<String> {
    let mut places = Vec::new();
    if paths.vision {
        places.extend(norm_parameters(config).map(|(name, _)| name));
    }
    if paths.generation {
        places.push(generation_site(config));
    }
    places
}

/// Names and shapes of all values.
pub fn shapes(config: &JanusConfig, paths: Paths) -> Vec<(&'static str, Vec<usize>)> {
    if !paths.any() {
        return Vec::new();
    }
    let width = config.vision.hidden_size;
    let mut shapes = vec![
        (FC1_WEIGHT, vec![INNER, TOKEN]),
        (FC1_BIAS, vec![INNER]),
        (FC2_WEIGHT, vec![width, INNER]),
        (FC2_BIAS, vec![width]),
    ];
    if paths.vision {
        shapes.push((UNDERSTAND, vec![TOKEN]));
        shapes.push((GATES, vec![config.vision.num_hidden_layers, 2]));
    }
    if paths.generation {
        shapes.push((GENERATE, vec![TOKEN]));
        shapes.push((PROJECTION, vec![config.text.hidden_size, width]));
    }
    shapes
}

#[cfg(test)]
pub(crate) mod tests;
