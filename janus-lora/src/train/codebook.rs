//! The codebook of the image tokenizer under training: how its codes are used, and what becomes of those that are not.
//!
//! A code that no place comes near has no gradient and stays where it is for good. One whose share of the places has fallen
//! far below an equal share is laid onto a latent of the step instead, as Jukebox does (Dhariwal and others,
//! arXiv:2005.00341, section 3.2, "random restarts"). Code vectors are brought back to unit length after each step: the
//! tokenizer compares directions alone, and transformers compares the vectors as they are.

use candle_core::{Tensor, Var};
use janus_core::noise;

use super::trainable::Trainables;
use crate::adapter::KEY_PREFIX;
use crate::error::Result;
use crate::tasks::Coded;

/// Native name of the code vectors.
const CODEBOOK: &str = "model.vqmodel.quantize.embedding.weight";
/// What of a code's share remains after a step without a place.
const KEPT: f32 = 0.97;
/// Shares are as parts of an equal share. Below this a code counts as dead: some hundred steps without a place.
const DEAD: f32 = 0.05;

/// How the codes of the codebook are used.
#[derive(Debug, Clone)]
pub(super) struct Codebook {
    /// Its place among the tensors under training.
    number: usize,
    /// Running share of the places of each code, as a part of an equal share.
    shares: Vec<f32>,
    /// Steps in which latents are not quantised yet.
    quantize_from: u64,
    key: u64,
}

/// What is told of the codebook after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodebookUse {
    /// Share of the codes that are no longer dead.
    pub alive: f64,
    /// Codes that were laid onto latents of the step.
    pub revived: usize,
}

impl Codebook {
    /// Of the tensors under training; `None` where the codebook is none of them.
    pub(super) fn of(trainables: &Trainables, quantize_from: u64, seed: u64) -> Option<Self> {
        let name = format!("{KEY_PREFIX}{CODEBOOK}");
        let (number, trainable) = trainables.iter().enumerate().find(|(_, trainable)| trainable.name == name)?;
        let codes = trainable.var.dims().first().copied().unwrap_or(0);
        let shares = vec![1.0; codes];
        Some(Self { number, shares, quantize_from, key: noise::combine(seed, noise::key_of(CODEBOOK)) })
    }

    /// The running shares.
    pub(super) fn shares(&self) -> &[f32] {
        &self.shares
    }

    /// Puts back what [`Codebook::shares`] gave.
    pub(super) fn restore(&mut self, shares: Vec<f32>) {
        self.shares = shares;
    }

    /// Counts the codes of a step and moves those that are dead.
    pub(super) fn stepped(&mut self, step: u64, coded: &[Coded], trainables: &Trainables) -> Result<CodebookUse> {
        let places: usize = coded.iter().map(|coded| coded.codes.len()).sum();
        let var = &trainables.iter().nth(self.number).expect("found among them").var;
        let mut rows: Vec<Vec<f32>> = var.as_detached_tensor().to_vec2()?;
        let mut dead = Vec::new();
        if step + 1 == self.quantize_from {
            // From the next step on there are codes: all of them lie among the latents then.
            dead = (0..self.shares.len()).collect();
        } else if places > 0 && step >= self.quantize_from {
            let mut counts = vec![0f32; self.shares.len()];
            let codes = coded.iter().flat_map(|coded| &coded.codes);
            codes.for_each(|code| counts[*code as usize] += 1.0);
            let factor = (1.0 - KEPT) * self.shares.len() as f32 / places as f32;
            self.shares.iter_mut().zip(counts).for_each(|(share, count)| *share = KEPT * *share + factor * count);
            dead = (0..self.shares.len()).filter(|code| self.shares[*code] < DEAD).collect();
        }
        let alive = match step + 1 == self.quantize_from {
            true => 1.0,
            false => 1.0 - dead.len() as f64 / self.shares.len().max(1) as f64,
        };
        if !dead.is_empty() {
            let latents = coded.iter().map(|coded| Ok(coded.latents.to_vec2::<f32>()?)).collect::<Result<Vec<_>>>()?;
            let latents: Vec<&Vec<f32>> = latents.iter().flatten().collect();
            let key = noise::combine(self.key, step);
            for (number, code) in dead.iter().enumerate() {
                let drawn = (noise::uniform(key, number as u64) * latents.len() as f64) as usize;
                if let Some(latent) = latents.get(drawn.min(latents.len().saturating_sub(1))) {
                    rows[*code].clone_from(latent);
                    self.shares[*code] = 1.0;
                }
            }
        }
        set_unit_rows(var, rows)?;
        Ok(CodebookUse { alive, revived: dead.len() })
    }
}

/// Gives a table these rows at unit length.
fn set_unit_rows(var: &Var, mut rows: Vec<Vec<f32>>) -> Result<()> {
    for row in &mut rows {
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter_mut().for_each(|value| *value /= length);
    }
    Ok(var.set(&Tensor::from_vec(rows.concat(), var.dims(), var.device())?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use janus_core::checkpoint::RandomWeights;
    use janus_core::config::JanusConfig;
    use janus_core::{Janus, Parts};

    use super::*;
    use crate::adapter::{Adapter, AdapterSpec};

    /// The tiny tokenizer's codebook of 64 codes of 8 values under training.
    fn codebook(quantize_from: u64) -> (Trainables, Codebook) {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let weights = RandomWeights::new(&config, 3);
        let parts = Parts { image_tokenizer: true, ..Parts::default() };
        let model = Janus::open(&weights, DType::F32, &Device::Cpu, parts, &mut |_| ()).unwrap();
        let spec = AdapterSpec {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            sites: Vec::new(),
            modules_to_save: vec!["vqmodel.quantize".into()],
            dynamic: None,
            heads: Vec::new(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
        };
        let adapter = Adapter::new(&config, false, &spec, 1, &|name| weights.read(name, DType::F32)).unwrap();
        let trainables = Trainables::attach(&model, adapter).unwrap();
        let codebook = Codebook::of(&trainables, quantize_from, 7).unwrap();
        (trainables, codebook)
    }

    /// Places of the first so many codes, each latent with its own direction.
    fn coded(codes: u32) -> Coded {
        let row = |code: u32| (0..8).map(move |i| if i == code % 8 { 1.0 } else { 0.01 * f32::from(i as u8) });
        let codes: Vec<u32> = (0..128).map(|place| place % codes).collect();
        let latents: Vec<f32> = codes.iter().flat_map(|code| row(*code)).collect();
        Coded { latents: Tensor::from_vec(latents, (codes.len(), 8), &Device::Cpu).unwrap(), codes }
    }

    fn rows(trainables: &Trainables) -> Vec<Vec<f32>> {
        trainables.iter().next().unwrap().var.as_detached_tensor().to_vec2().unwrap()
    }

    #[test]
    fn codes_that_nothing_comes_near_are_laid_onto_latents() {
        let (trainables, mut codebook) = codebook(0);
        let before = rows(&trainables);
        let mut revived = 0;
        for step in 0..200 {
            let told = codebook.stepped(step, &[coded(16)], &trainables).unwrap();
            revived += told.revived;
            assert!(told.alive == 1.0 - told.revived as f64 / 64.0);
            // A share of 1 falls below a twentieth after 99 steps.
            assert_eq!(
                revived,
                if step < 98 {
                    0
                } else if step < 197 {
                    48
                } else {
                    96
                },
                "step {step}"
            );
        }
        let after = rows(&trainables);
        assert!((0..16).all(|code| before[code].iter().zip(&after[code]).all(|(a, b)| (a - b).abs() < 1e-6)));
        let nearest = |row: &Vec<f32>| row.iter().filter(|value| **value > 0.9).count() == 1;
        assert!(after[16..].iter().all(nearest), "every other lies where a latent was");
        assert!(after.iter().all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
        // The same again from what is kept.
        let (again, mut other) = self::codebook(0);
        other.restore(codebook.shares().to_vec());
        again.iter().next().unwrap().var.set(&trainables.iter().next().unwrap().var.as_detached_tensor()).unwrap();
        for step in 200..300 {
            let told = codebook.stepped(step, &[coded(16)], &trainables).unwrap();
            assert_eq!(other.stepped(step, &[coded(16)], &again).unwrap(), told);
        }
        assert_eq!(rows(&again), rows(&trainables));
    }

    #[test]
    fn before_there_are_codes_nothing_is_counted() {
        let (trainables, mut codebook) = codebook(3);
        let before = rows(&trainables);
        for step in 0..2 {
            assert_eq!(codebook.stepped(step, &[coded(4)], &trainables).unwrap().revived, 0);
        }
        let near =
            |a: &[Vec<f32>], b: &[Vec<f32>]| a.concat().iter().zip(b.concat()).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(&rows(&trainables), &before));
        let told = codebook.stepped(2, &[coded(4)], &trainables).unwrap();
        assert_eq!((told.alive, told.revived), (1.0, 64));
        assert!(!near(&rows(&trainables), &before) && codebook.shares().iter().all(|share| *share == 1.0));
    }
}
