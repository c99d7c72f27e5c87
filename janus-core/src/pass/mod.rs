//! What one forward pass is told: training or not, which noise, and what each token row computes with.

mod route;

use std::sync::Arc;

use crate::error::Result;
use crate::noise;
use crate::ops::SumOrder;

pub use route::{Mixture, Route, Slot};
pub(crate) use route::{Routing, Span};

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

/// What one forward pass is told.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    /// Whether dropout is active.
    pub train: bool,
    /// Which noise dropout draws.
    pub noise: NoiseKey,
    /// Whether blocks keep their input alone and compute the rest again in the backward.
    pub recompute: bool,
    /// In which order products make their sums.
    pub order: SumOrder,
    decoder: Option<Arc<Routing>>,
    vision: Option<Arc<Routing>>,
    generation: Option<Arc<Routing>>,
}

impl Pass {
    /// A pass without dropout, all tokens with what is attached to the model.
    pub fn inference() -> Self {
        Self::default()
    }

    /// A pass of prompts and pictures that are answered: as [`Pass::inference`], but no row's bits depend on how many others there
    /// are.
    pub fn answering() -> Self {
        Self { order: SumOrder::Many, ..Self::default() }
    }

    /// The same pass with sums made in an order.
    pub(crate) fn in_order(self, order: SumOrder) -> Self {
        Self { order, ..self }
    }

    /// A pass with dropout.
    pub fn training(noise: NoiseKey) -> Self {
        Self { train: true, noise, ..Self::default() }
    }

    /// The same pass, each token row of a part with the slots that its route names, whatever order the routes come in. What is
    /// attached to the model must be nothing then: it is no slot.
    ///
    /// # Errors
    /// A row without a route, or with two. The base alone has to be said: [`Mixture::base`].
    pub fn with_routes(mut self, part: Part, routes: Vec<Route>) -> Result<Self> {
        *self.place(part) = Some(Arc::new(Routing::of(routes)?));
        Ok(self)
    }

    fn place(&mut self, part: Part) -> &mut Option<Arc<Routing>> {
        match part {
            Part::Decoder => &mut self.decoder,
            Part::Vision => &mut self.vision,
            Part::Generation => &mut self.generation,
        }
    }

    /// The pass over some of a part's rows, in this order: each is routed as it was.
    ///
    /// # Errors
    /// A row beyond the routes.
    pub(crate) fn picked(&self, part: Part, rows: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut picked = self.clone();
        if let Some(routing) = self.routing(part) {
            *picked.place(part) = Some(Arc::new(routing.picked(rows)?));
        }
        Ok(picked)
    }

    /// The routes of a part; `None` where its rows compute with what is attached.
    pub(crate) fn routing(&self, part: Part) -> Option<&Arc<Routing>> {
        match part {
            Part::Decoder => self.decoder.as_ref(),
            Part::Vision => self.vision.as_ref(),
            Part::Generation => self.generation.as_ref(),
        }
    }

    /// Whether the rows of a part have routes.
    pub fn is_routed(&self, part: Part) -> bool {
        self.routing(part).is_some()
    }
}
