//! What one forward pass is told: training or not, which noise, and which tokens belong to which request.

use std::ops::Range;
use std::sync::Arc;

use crate::noise;

/// The parts of the model whose inputs are token rows of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The decoder and its text head: rows are `batch · sequence` tokens.
    Decoder,
    /// Vision tower and aligner: rows are `images · patches`.
    Vision,
    /// Generation embeddings, aligner and head, and the image tokenizer: rows are image tokens.
    Generation,
}

/// Names the noise of one micro-batch, so that recomputing a part of it draws the same numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoiseKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step.
    pub step: u64,
    /// The forward pass within the step.
    pub micro_batch: u64,
}

impl NoiseKey {
    /// The key of one site's noise in this pass.
    pub fn at(&self, path: &str) -> u64 {
        let pass = noise::combine(noise::combine(self.seed, self.step), self.micro_batch);
        noise::combine(pass, noise::key_of(path))
    }
}

/// A range of token rows that belongs to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Rows of the part's flattened input.
    pub tokens: Range<usize>,
    /// The request's number, as corrections name it.
    pub request: u32,
}

/// What one forward pass is told.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    /// Whether dropout is active.
    pub train: bool,
    /// Which noise dropout draws.
    pub noise: NoiseKey,
    /// Whether blocks keep their input alone and compute the rest again in the backward.
    pub recompute: bool,
    decoder: Arc<[Route]>,
    vision: Arc<[Route]>,
    generation: Arc<[Route]>,
}

impl Pass {
    /// A pass without dropout, all tokens of one request.
    pub fn inference() -> Self {
        Self::default()
    }

    /// A pass with dropout.
    pub fn training(noise: NoiseKey) -> Self {
        Self { train: true, noise, ..Self::default() }
    }

    /// The same pass with a table from token range to request for `part`.
    pub fn with_routes(mut self, part: Part, routes: Vec<Route>) -> Self {
        let routes = routes.into();
        match part {
            Part::Decoder => self.decoder = routes,
            Part::Vision => self.vision = routes,
            Part::Generation => self.generation = routes,
        }
        self
    }

    /// The pass over some of a part's rows, in this order: each is routed as it was.
    pub(crate) fn picked(&self, part: Part, rows: impl Iterator<Item = usize> + Clone) -> Self {
        if self.routes(part).is_empty() {
            return self.clone();
        }
        let mut routes: Vec<Route> = Vec::new();
        for Route { tokens, request } in self.routes(part) {
            let own = rows.clone().enumerate().filter(|(_, row)| tokens.contains(row)).map(|(place, _)| place);
            let first = routes.len();
            for place in own {
                match routes[first..].last_mut() {
                    Some(last) if last.tokens.end == place => last.tokens.end += 1,
                    _ => routes.push(Route { tokens: place..place + 1, request: *request }),
                }
            }
        }
        self.clone().with_routes(part, routes)
    }

    /// The table of a part; empty where all tokens are of one request.
    pub fn routes(&self, part: Part) -> &[Route] {
        match part {
            Part::Decoder => &self.decoder,
            Part::Vision => &self.vision,
            Part::Generation => &self.generation,
        }
    }
}
