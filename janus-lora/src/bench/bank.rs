//! Many adapters over one base: what it costs to hold them, to choose one, and to compute rows of different ones in one pass.
//!
//! Sessions whose rows have the same adapter, a different one each, and none take their steps in turn in one run, behind the same prompts.

use std::time::Instant;

use janus_core::pass::{Mixture, Part, Pass, Route};
use janus_core::sample::{Kind, RowOptions, Session};
use janus_core::site::sites;
use janus_core::{Janus, Parts};
use serde::Serialize;

use super::{Figures, Model, SEED, inputs, median};
use crate::adapter::{Adapter, AdapterSpec, Bank};
use crate::error::Result;
use crate::status::Status;
use crate::target;

/// What is held, and how many rows meet it.
#[derive(Debug, Clone)]
pub struct BankOptions {
    /// Adapters in slots.
    pub adapters: usize,
    /// Rank of each.
    pub rank: usize,
    /// Presets or patterns.
    pub targets: Vec<String>,
    /// Rows that decode side by side.
    pub rows: usize,
    /// Tokens of each row before the first measured one.
    pub prompt_tokens: usize,
    /// Steps of each kind; the first is left out.
    pub rounds: usize,
}

/// What a bank costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BankReport {
    /// What every measurement tells; a step is one in which every row has another adapter.
    #[serde(flatten)]
    pub figures: Figures,
    /// Adapters in slots.
    pub adapters: usize,
    /// Rank of each.
    pub rank: usize,
    /// Presets or patterns.
    pub targets: Vec<String>,
    /// Rows that decode side by side.
    pub rows: usize,
    /// Tokens of each row before the first measured one.
    pub prompt_tokens: usize,
    /// Steps of each kind, the first included.
    pub rounds: usize,
    /// Bytes that one adapter takes in its slot.
    pub adapter_bytes: usize,
    /// Time in which an adapter is worked out and made ready, median.
    pub insert_seconds: f64,
    /// Time in which every row of a step is told its adapter, median.
    pub choose_seconds: f64,
    /// A step of the base alone, median.
    pub base_seconds: f64,
    /// A step with the same adapter for all rows, median.
    pub same_seconds: f64,
    /// A step with another adapter for each row, as far as there are so many, median.
    pub different_seconds: f64,
    /// Median over the rounds of the ratio of the two.
    pub different_to_same: f64,
}

/// Measures a bank over the decoder and the text head.
///
/// # Errors
/// Targets that match nothing.
pub fn bank(model: &Model, options: &BankOptions, status: &dyn Status) -> Result<BankReport> {
    let parts = Parts { text_head: true, ..Parts::default() };
    let mut all = sites(&model.config);
    all.retain(|site| site.part == Part::Decoder);
    let chosen = target::select(&options.targets, all.iter().map(|site| site.path.as_ref()))?.sites;
    let chosen = chosen.iter().map(|site| site.path.as_str().into()).collect();
    let (janus, opening_seconds) = model.open(parts, status)?;
    let spec = AdapterSpec { rank: options.rank, alpha: options.rank as f64, sites: chosen, ..AdapterSpec::default() };

    let mut bank = Bank::new(&janus);
    let bar = status.items("holding adapters", options.adapters as u64);
    let (mut slots, mut inserts) = (Vec::with_capacity(options.adapters), Vec::with_capacity(options.adapters));
    for number in 0..options.adapters {
        let adapter = made_up(model, &janus, &spec, number as u64)?;
        let clock = Instant::now();
        slots.push(bank.insert(&adapter)?);
        inserts.push(clock.elapsed().as_secs_f64());
        bar.advance(1);
    }
    bar.finish();
    let adapter_bytes = slots.first().and_then(|slot| bank.bytes(*slot)).unwrap_or(0);

    let of = |mixture: &dyn Fn(usize) -> Mixture| -> Result<Session<'_>> {
        decoding(model, &janus, options, &(0..options.rows).map(mixture).collect::<Vec<_>>())
    };
    let mut sessions =
        [of(&|row| Mixture::of(slots[row % slots.len()]))?, of(&|_| Mixture::of(slots[0]))?, of(&|_| Mixture::base())?];
    let (mut base, mut same, mut different, mut choices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let bar = status.items("steps", options.rounds as u64);
    for round in 0..options.rounds {
        let clock = Instant::now();
        routed(options.rows, 1, |row| Mixture::of(slots[row % slots.len()]))?;
        let chosen = clock.elapsed().as_secs_f64();
        // Each is the first of a round in turn.
        let mut seconds = [0.0; 3];
        for place in 0..3 {
            let which = (round + place) % 3;
            let clock = Instant::now();
            sessions[which].step(&mut |_| {})?;
            seconds[which] = clock.elapsed().as_secs_f64();
        }
        if round > 0 {
            let [of_all, of_one, of_none] = seconds;
            different.push(of_all);
            same.push(of_one);
            base.push(of_none);
            choices.push(chosen);
        }
        bar.advance(1);
    }
    bar.finish();
    let ratios: Vec<f64> = different.iter().zip(&same).map(|(different, same)| different / same).collect();
    Ok(BankReport {
        figures: Figures::new(model, options.rows, &different, opening_seconds),
        adapters: options.adapters,
        rank: options.rank,
        targets: options.targets.clone(),
        rows: options.rows,
        prompt_tokens: options.prompt_tokens,
        rounds: options.rounds,
        adapter_bytes,
        insert_seconds: median(&inserts),
        choose_seconds: median(&choices),
        base_seconds: median(&base),
        same_seconds: median(&same),
        different_seconds: median(&different),
        different_to_same: median(&ratios),
    })
}

/// An adapter whose B is not zero.
fn made_up(model: &Model, janus: &Janus, spec: &AdapterSpec, seed: u64) -> Result<Adapter> {
    let no_copies = |name: &str| Err(janus_core::ModelError::UnknownParameter { name: name.into() }.into());
    let mut adapter = Adapter::new(&model.config, janus.is_tied(), spec, SEED + seed, &no_copies)?;
    for site in adapter.sites.values_mut() {
        if let Some([_, b]) = site.pair_mut() {
            *b = b.affine(1.0, 1e-3)?;
        }
    }
    Ok(adapter)
}

/// A pass of so many tokens a row.
fn routed(rows: usize, tokens: usize, mixture: impl Fn(usize) -> Mixture) -> Result<Pass> {
    let routes = (0..rows).map(|row| Route { tokens: row * tokens..(row + 1) * tokens, mixture: mixture(row) });
    Ok(Pass::answering().with_routes(Part::Decoder, routes.collect())?)
}

/// Rows behind their prompts, which are all the same.
fn decoding<'m>(model: &Model, janus: &'m Janus, options: &BankOptions, mixtures: &[Mixture]) -> Result<Session<'m>> {
    let (rows, tokens) = (options.rows, options.prompt_tokens);
    let mut session = Session::new(janus, usize::MAX);
    let pass = routed(rows, tokens, |row| mixtures[row].clone())?;
    let ids = inputs::text_ids(&model.config, "prompts", tokens).repeat(rows);
    let embeds = janus.decoder().embed(&pass, &ids, rows)?;
    let kind = Kind::Text { stop: Vec::new(), vocabulary: model.config.text.vocab_size };
    let row = RowOptions { kind, most: options.rounds + 1, temperature: 0.0, seed: 0 };
    session.join(&pass, &embeds, &vec![vec![true; tokens]; rows], vec![row; rows])?;
    Ok(session)
}
