//! How low-rank pairs begin.
//!
//! | file | what |
//! | --- | --- |
//! | `weight` | pairs that begin as a part of the weight they stand at |
//! | `eva` | pairs that begin with what their sites see |
//! | `plain` | what such a pair was trained to, as the plain pair of files, and back |
//! | `start` | all that an adapter has, from another one |
//!
//! Pairs that are drawn ([`Init::Kaiming`], [`Init::Gaussian`]) are methods' own.

pub(crate) mod eva;
mod plain;
mod start;
mod weight;

use janus_core::site::{Site, SiteKind};

use super::error::AdapterError;
pub(super) use weight::of_weight;

/// How the first values of low-rank pairs come about.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Init {
    /// A from U(±1/√fan_in), B = 0; embeddings: A = 0, B from N(0, 1).
    #[default]
    Kaiming,
    /// A from N(0, 1/rank²), B = 0; embeddings as with `kaiming`.
    Gaussian,
    /// The greatest singular values and vectors of the weight (PiSSA; Meng et al., arXiv:2404.02948), half of each value on
    /// either side.
    Pissa,
    /// The first columns of Q and rows of R of the weight (OLoRA; Büyükakyüz, arXiv:2406.01775).
    Olora,
    /// A from the inputs of the site over rows of the run (EVA), B = 0. Whoever has no such rows draws it as with `kaiming`.
    Eva {
        /// A site may get so many times its rank, where its inputs take more directions than others'.
        rho: f64,
    },
}

/// Greatest scale of a pair that begins as part of the weight undivided: what is added is taken away again, each rounded to a
/// share of 2⁻²⁴, and beyond it the base would be off by more than 1e-5 of itself.
const OLORA_SCALE: f64 = 100.0;

impl Init {
    /// As recipes call it.
    pub fn name(self) -> &'static str {
        match self {
            Init::Kaiming => "kaiming",
            Init::Gaussian => "gaussian",
            Init::Pissa => "pissa",
            Init::Olora => "olora",
            Init::Eva { .. } => "eva",
        }
    }

    /// Whether a pair begins as a part of the weight, which then is taken away from it: what is trained is W + s·(B·A − B₀·A₀).
    pub fn is_of_weight(self) -> bool {
        matches!(self, Init::Pissa | Init::Olora)
    }

    /// Whether it is for plain pairs alone, without magnitudes and biases.
    pub fn is_of_plain_pairs(self) -> bool {
        !matches!(self, Init::Kaiming | Init::Gaussian)
    }

    /// The most that a site may get instead of a rank.
    pub fn most_of(self, rank: usize) -> usize {
        match self {
            Init::Eva { rho } => (rank as f64 * rho).round() as usize,
            _ => rank,
        }
    }

    /// Refuses a site, a rank or a scale for which there is no such beginning.
    ///
    /// # Errors
    /// [`AdapterError::NotForBeginning`], [`AdapterError::TooFewDirections`] and [`AdapterError::ScaleOfBeginning`].
    pub fn require(self, site: &Site, rank: usize, scale: f64) -> Result<(), AdapterError> {
        if !self.is_of_plain_pairs() {
            return Ok(());
        }
        let path = site.path.to_string();
        if site.kind != SiteKind::Linear {
            return Err(AdapterError::NotForBeginning { path, init: self.name() });
        }
        let most = if self.is_of_weight() { site.input.min(site.output) } else { site.input };
        if rank > most {
            return Err(AdapterError::TooFewDirections { path, init: self.name(), rank, most });
        }
        if self == Init::Olora && scale.abs() > OLORA_SCALE {
            return Err(AdapterError::ScaleOfBeginning { path, init: self.name(), scale, most: OLORA_SCALE });
        }
        Ok(())
    }
}
