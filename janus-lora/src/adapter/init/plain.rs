//! Pairs that began as a part of the weight, in the form that files have, and back.
//!
//! W + s·(B·A − B₀·A₀) is W + s·B′·A′ with B′ = [B, −B₀] and A′ = [A; A₀]: plain LoRA of twice the rank over the plain base, which
//! any loader computes. PEFT's conversion (`subtract_mutated_init`) makes the same. No value is rounded on the way, so what
//! a run saved it takes up again to the bit.

use candle_core::Tensor;

use super::super::method::{Method, lora, residual};
use super::super::peft_config::{ModuleNames, NewConfig, PeftConfig};
use super::super::{Adapter, AdapterError};
use super::Init;

/// What is multiplied with a scale's numerator where the rank doubles, so that the scale stays.
fn growth(rslora: bool) -> f64 {
    if rslora { std::f64::consts::SQRT_2 } else { 2.0 }
}

impl Adapter {
    /// The same shifts in the form that files have: plain LoRA, where pairs stand beside what they began with.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn plain(&self) -> Result<Self, AdapterError> {
        if self.config.method != Method::Residual {
            return Ok(self.clone());
        }
        let config = &self.config;
        let growth = growth(config.rslora);
        let targets = match &config.targets {
            ModuleNames::Suffixes(paths) => paths.as_slice(),
            _ => &[],
        };
        let ranks: Vec<_> = config.rank_patterns.iter().map(|(path, rank)| (path.clone(), 2 * rank)).collect();
        let alphas: Vec<_> = config.alpha_patterns.iter().map(|(path, alpha)| (path.clone(), growth * alpha)).collect();
        let mut plain = self.clone();
        plain.config = PeftConfig::new(&NewConfig {
            method: &Method::Lora { bias: false },
            rank: 2 * config.rank,
            alpha: growth * config.alpha,
            rslora: config.rslora,
            dropout: config.dropout,
            init: Init::Kaiming,
            targets,
            ranks: &ranks,
            alphas: &alphas,
            modules_to_save: &config.modules_to_save,
            base_name: config.base_name.as_deref(),
        })?;
        for site in plain.sites.values_mut() {
            let value = |ending| site.values.get(ending).ok_or_else(|| unknown(site.key(ending)));
            let a = Tensor::cat(&[value(lora::A)?, value(residual::START_A)?], 0)?;
            let b = Tensor::cat(&[value(lora::B)?, &value(residual::START_B)?.neg()?], 1)?;
            site.values = [(lora::A, a), (lora::B, b)].into();
            site.rank *= 2;
            site.alpha *= growth;
        }
        Ok(plain)
    }

    /// An adapter that a run saved, in the form that it is trained in, which `form` has.
    ///
    /// # Errors
    /// Sites and shapes that are not those of the run.
    pub fn in_form_of(mut self, form: &Self) -> Result<Self, AdapterError> {
        if form.config.method != Method::Residual || self.config.method == Method::Residual {
            return Ok(self);
        }
        for (path, own) in &mut self.sites {
            let site = form.sites.get(path).ok_or_else(|| unknown(path.to_string()))?;
            let mut halves = [(lora::A, residual::START_A, 0), (lora::B, residual::START_B, 1)]
                .into_iter()
                .map(|(trained, start, side)| {
                    let whole = own.values.get(trained).ok_or_else(|| unknown(own.key(trained)))?;
                    let half = site.rank;
                    if whole.dims().get(side) != Some(&(2 * half)) {
                        let (tensor, got) = (trained, whole.dims().to_vec());
                        let mut expected = got.clone();
                        expected.get_mut(side).into_iter().for_each(|side| *side = 2 * half);
                        return Err(AdapterError::Shape { path: path.to_string(), tensor, expected, got });
                    }
                    let first = whole.narrow(side, 0, half)?.contiguous()?;
                    let rest = whole.narrow(side, half, half)?.contiguous()?;
                    let rest = if side == 1 { rest.neg()? } else { rest };
                    Ok([(trained, first), (start, rest)])
                })
                .collect::<Result<Vec<_>, AdapterError>>()?;
            own.values = halves.drain(..).flatten().collect();
            (own.rank, own.alpha, own.scale) = (site.rank, site.alpha, site.scale);
        }
        self.config = form.config.clone();
        Ok(self)
    }
}

fn unknown(path: String) -> AdapterError {
    AdapterError::UnknownModule { path }
}
