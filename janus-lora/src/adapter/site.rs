//! What an adapter has at one site of the model.

use std::collections::BTreeMap;

use candle_core::Tensor;
use janus_core::site::Site;

use super::method::{At, Method, lora, residual};
use super::peft_config::ModuleNames;

/// What PEFT puts before a native name in its files.
pub const KEY_PREFIX: &str = "base_model.model.";

/// What PEFT puts before the names of tensors that all sites share.
pub(super) const SHARED_PREFIX: &str = "base_model.";

/// The tensors of one site.
#[derive(Debug, Clone)]
pub struct AdaptedSite {
    /// Where they belong.
    pub site: Site,
    /// Rank of the factors; 0 where the method has none.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Factor on what the tensors make: `alpha / rank`, with rank-stabilised scales `alpha / √rank`.
    pub scale: f64,
    /// Whether (IA)³ has its factors on the input here.
    pub is_feedforward: bool,
    /// Whether the base has a bias here.
    pub has_bias: bool,
    /// By the ending of their key, such as `lora_A.weight`; f32.
    pub values: BTreeMap<&'static str, Tensor>,
}

impl AdaptedSite {
    /// The key of a tensor in `adapter_model.safetensors`.
    pub fn key(&self, ending: &str) -> String {
        key(&self.site, ending)
    }

    /// Keys of all its tensors, with their values.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.values.iter().map(|(ending, value)| (self.key(ending), value))
    }

    /// Whether training leaves the tensor of an ending alone: what a pair began with, and the bias of a pair where the base has
    /// none, which nothing could take up in a merge. It is zero, and in the file since PEFT has one at every site.
    pub fn is_fixed(&self, ending: &str) -> bool {
        residual::is_start(ending) || (ending == lora::BIAS && !self.has_bias)
    }

    /// A and B of a method with low-rank pairs.
    pub fn pair(&self) -> Option<[&Tensor; 2]> {
        let [a, b] = lora::endings(self.site.kind);
        Some([self.values.get(a)?, self.values.get(b)?])
    }

    /// A and B of a method with low-rank pairs, to be changed.
    pub fn pair_mut(&mut self) -> Option<[&mut Tensor; 2]> {
        let [a, b] = lora::endings(self.site.kind);
        let mut pair = [None, None];
        for (ending, value) in &mut self.values {
            if let Some(place) = [a, b].iter().position(|own| own == ending) {
                pair[place] = Some(value);
            }
        }
        let [a, b] = pair;
        Some([a?, b?])
    }

    pub(super) fn at(&self) -> At<'_> {
        At { site: &self.site, rank: self.rank, is_feedforward: self.is_feedforward }
    }
}

/// The key of a site's tensor in `adapter_model.safetensors`.
pub fn key(site: &Site, ending: &str) -> String {
    format!("{KEY_PREFIX}{}.{ending}", site.path)
}

/// Values that a method trains at a site, where the base has a bias or none.
pub fn trained_values(method: &Method, site: &Site, rank: usize, has_bias: bool) -> usize {
    let is_feedforward = match method {
        Method::Ia3 { feedforward: ModuleNames::Suffixes(names) } => names.iter().any(|name| site.path.ends_with(name)),
        _ => false,
    };
    let tensors = method.form().tensors(At { site, rank, is_feedforward });
    let is_trained = |(ending, _): &&(&str, Vec<usize>)| has_bias || *ending != lora::BIAS;
    tensors.iter().filter(is_trained).map(|(_, shape)| shape.iter().product::<usize>()).sum()
}
