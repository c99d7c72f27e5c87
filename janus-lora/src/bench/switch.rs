//! From one modality to the other with a dynamic visual encoder: what a switch costs, and what it would cost to rebuild.
//!
//! Both paths hold their factors at the same time, so a switch does nothing. What is measured is whether that is so: a step
//! of each path in turn against two of each in a row, with the encoder and without it. What the caches of the processor
//! lose by turning between two sets of weights is in both, and falls out.

use std::time::Instant;

use candle_core::Tensor;
use janus_core::pass::Pass;
use janus_core::{Janus, Parts};
use serde::Serialize;

use super::{Figures, Model, SEED, median};
use crate::adapter::{self, Adapter, AdapterSpec};
use crate::dynamic::{Dynamic, Paths};
use crate::error::Result;
use crate::status::Status;

/// Both paths.
const PATHS: Paths = Paths { vision: true, generation: true };

/// How often is switched.
#[derive(Debug, Clone)]
pub struct SwitchOptions {
    /// Switches there and back.
    pub rounds: usize,
}

/// What a switch costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwitchReport {
    /// What every measurement tells; a step is one of each path in turn, its tokens are those two.
    #[serde(flatten)]
    pub figures: Figures,
    /// Switches there and back.
    pub rounds: usize,
    /// What a switch costs with the encoder beyond what it costs without: median of the differences. It may come out below
    /// zero where it is less than what measuring scatters by.
    pub switch_seconds: f64,
    /// Half of the distance between the quartiles of those differences.
    pub scatter_seconds: f64,
    /// The time in which the generator makes the factors of both modalities anew from its parameters and everything is put
    /// in its place: what is not done at a switch.
    pub rebuild_seconds: f64,
}

/// Measures switches over one block of the vision tower and the embedding of one image code.
///
/// # Errors
/// The tensor engine's.
pub fn switch(model: &Model, options: &SwitchOptions, status: &dyn Status) -> Result<SwitchReport> {
    let parts = Parts { vision: true, generation: true, ..Parts::default() };
    let (plain, opening_seconds) = model.open(parts, status)?;
    let (with, _) = model.open(parts, status)?;
    let spec = AdapterSpec {
        rank: 1,
        alpha: 1.0,
        dropout: 0.0,
        sites: Vec::new(),
        modules_to_save: Vec::new(),
        dynamic: Some(PATHS),
        heads: Vec::new(),
        aligns: false,
        base_name: None,
        ..AdapterSpec::default()
    };
    let no_copies = |name: &str| Err(janus_core::ModelError::UnknownParameter { name: name.into() }.into());
    let mut adapter = Adapter::new(&model.config, with.is_tied(), &spec, SEED, &no_copies)?;
    // Away from its first values, at which it changes nothing.
    adapter.dynamic = adapter.dynamic.map(|dynamic| moved(&dynamic)).transpose()?;
    adapter::attach(&with, &[(&adapter, 1.0)])?;

    let vision = &model.config.vision;
    let patch = Tensor::ones((1, 1, vision.hidden_size), model.dtype, plain.device())?;
    let bar = status.items("switching", options.rounds as u64);
    let (mut differences, mut steps) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let own = Turn::of(&with, &patch)?;
        let other = Turn::of(&plain, &patch)?;
        bar.advance(1);
        // The first touches memory for the first time.
        if round > 0 {
            steps.push(own.alternating / 2.0);
            differences.push((own.switching() - other.switching()) / SWITCHES);
        }
    }
    bar.finish();
    let figures = Figures::new(model, 2, &steps, opening_seconds);
    let mut rebuilt = Vec::new();
    for _ in 0..options.rounds.min(32) {
        let clock = Instant::now();
        adapter::attach(&with, &[(&adapter, 1.0)])?;
        rebuilt.push(clock.elapsed().as_secs_f64());
    }
    differences.sort_by(f64::total_cmp);
    let quartile = |share: f64| differences.get((differences.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    Ok(SwitchReport {
        figures,
        rounds: options.rounds,
        switch_seconds: median(&differences),
        scatter_seconds: (quartile(0.75) - quartile(0.25)) / 2.0,
        rebuild_seconds: median(&rebuilt),
    })
}

fn moved(dynamic: &Dynamic) -> Result<Dynamic> {
    let values: std::collections::BTreeMap<String, Tensor> = dynamic
        .values()
        .iter()
        .map(|(name, value)| Ok((name.to_string(), (value + 0.01)?)))
        .collect::<candle_core::Result<_>>()?;
    Ok(dynamic.with_values(|name| values.get(name).cloned().expect("an encoder has its own values")))
}

/// Switches that a turn makes more where the paths alternate.
const SWITCHES: f64 = 2.0;

/// Two steps of each path: in turn (three switches), and in a row (one).
struct Turn {
    alternating: f64,
    in_a_row: f64,
}

impl Turn {
    fn of(model: &Janus, patch: &Tensor) -> Result<Self> {
        let pass = Pass::inference();
        let seen = || -> Result<()> {
            if let Some(layer) = model.vision()?.layers().first() {
                layer.forward(&pass, patch)?;
            }
            Ok(())
        };
        let drawn = || -> Result<()> { Ok(model.generation()?.embed(&pass, &[1], 1).map(|_| ())?) };
        let clock = Instant::now();
        for _ in 0..2 {
            seen()?;
            drawn()?;
        }
        let alternating = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        for _ in 0..2 {
            seen()?;
        }
        for _ in 0..2 {
            drawn()?;
        }
        Ok(Self { alternating, in_a_row: clock.elapsed().as_secs_f64() })
    }

    fn switching(&self) -> f64 {
        self.alternating - self.in_a_row
    }
}
