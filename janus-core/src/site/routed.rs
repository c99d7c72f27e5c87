//! A site in a pass whose rows have routes: each row computes with the slots that its own names, and nothing of another's reaches
//! it, not even what is no number.

use std::sync::{Arc, PoisonError};

use candle_core::{DType, Tensor};

use super::SiteKind;
use super::correction::Correction;
use super::held::{Blend, Held, Pair};
use super::projection::{Projection, times};
use crate::block::routed_linear;
use crate::error::{ModelError, Result};
use crate::ops;
use crate::pass::{Mixture, Pass, Routing, Slot, Span};

/// A site's part in a slot that is about to be held.
pub(crate) struct Ready(Option<Held>);

impl Ready {
    /// Its pair, to be put elsewhere.
    pub(super) fn pair_mut(&mut self) -> Option<&mut Pair> {
        self.0.as_mut().and_then(Held::pair_mut)
    }

    /// Bytes of its tensors.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, Held::bytes)
    }
}

impl Projection {
    /// Makes a correction ready for a slot; nothing is held yet.
    ///
    /// # Errors
    /// A correction that does not fit the site.
    pub(crate) fn ready(&self, correction: Option<&Correction>) -> Result<Ready> {
        let weight = self.weight.frozen();
        let held = |correction| Held::of(&self.site, correction, self.dtype, weight.device());
        Ok(Ready(correction.filter(|correction| !correction.is_empty()).map(held).transpose()?))
    }

    /// Holds what was made ready in a slot, in the place of what was there.
    pub(crate) fn hold(&self, slot: Slot, ready: Ready) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.insert(slot, ready.0.map(Arc::new));
    }

    /// Empties a slot.
    pub(crate) fn release(&self, slot: Slot) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(&slot);
    }

    /// What the slots of a mixture have here, with their factors.
    fn held(&self, mixture: &Mixture) -> Result<Vec<(Arc<Held>, f64)>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let mut held = Vec::with_capacity(mixture.parts().len());
        for (slot, factor) in mixture.parts() {
            let own = slots.get(slot).ok_or(ModelError::UnknownSlot { slot: slot.0 })?;
            held.extend(own.clone().map(|own| (own, *factor)));
        }
        Ok(held)
    }

    /// Whether no row of a pass computes anything but the base here; not where a slot is unknown, which is then an error.
    pub(super) fn is_base_alone(&self, pass: &Pass) -> bool {
        let Some(routing) = pass.routing(self.site.part) else { return true };
        routing.mixtures().iter().all(|mixture| self.held(mixture).is_ok_and(|held| held.is_empty()))
    }

    /// What each mixture makes of the site.
    ///
    /// # Errors
    /// A slot that the model does not hold, or a correction that is attached.
    pub(crate) fn blends(&self, mixtures: &[Mixture]) -> Result<Vec<Blend>> {
        if self.correction().is_some() {
            return Err(ModelError::AttachedBesideRoutes { path: self.site.path.to_string() }.into());
        }
        mixtures.iter().map(|mixture| Blend::of(&self.site, &self.frozen(), &self.held(mixture)?)).collect()
    }

    /// The output of `x`, its rows routed; shapes as of [`Projection::forward`].
    pub(super) fn routed(&self, pass: &Pass, x: &Tensor, routing: &Routing) -> Result<Tensor> {
        let blends = self.blends(routing.mixtures())?;
        let rows = match self.site.kind {
            SiteKind::Linear => x.elem_count() / self.site.input.max(1),
            SiteKind::Embedding => x.elem_count(),
            SiteKind::Conv2d { .. } => x.dim(0)?,
        };
        let spans = routing.over(rows)?;
        if blends.iter().all(Blend::is_nothing) {
            return self.base(x, self.bias.as_deref(), pass.order);
        }
        match self.site.kind {
            SiteKind::Embedding => self.routed_table(pass, x, &spans, &blends),
            SiteKind::Linear => match self.routed_in_one(pass, x, &spans, blends)? {
                Some(y) => Ok(y),
                None => self.span_by_span(pass, x, &spans, routing.mixtures()),
            },
            SiteKind::Conv2d { .. } => self.span_by_span(pass, x, &spans, routing.mixtures()),
        }
    }

    /// A linear map of all rows in one piece, its weight read once, where the parameters stand as loaded.
    fn routed_in_one(&self, pass: &Pass, x: &Tensor, spans: &[Span], blends: Vec<Blend>) -> Result<Option<Tensor>> {
        let Some(weight) = self.weight.as_loaded() else { return Ok(None) };
        let bias = match &self.bias {
            Some(bias) => match bias.as_loaded() {
                Some(bias) => Some(bias.values()),
                None => return Ok(None),
            },
            None => None,
        };
        Ok(routed_linear(x, weight, bias.as_ref(), spans, blends, pass.order)?)
    }

    /// Rows of a table: all of the base at once, and what the slots add to them.
    fn routed_table(&self, pass: &Pass, ids: &Tensor, spans: &[Span], blends: &[Blend]) -> Result<Tensor> {
        let all = ids.flatten_all()?.to_vec1::<u32>()?;
        let rows = self.base(&ids.flatten_all()?, None, pass.order)?;
        let mut parts = Vec::with_capacity(spans.len());
        for Span { rows: own, mixture } in spans {
            let (y, blend) = (rows.narrow(0, own.start, own.len())?, &blends[*mixture]);
            let mut wide = y.to_dtype(DType::F32)?;
            if let Some(factors) = &blend.output {
                wide = wide.broadcast_mul(factors)?;
            }
            for (pair, factor) in &blend.pairs {
                let hidden = ops::select_rows(&pair.a, &all[own.clone()])?.to_dtype(DType::F32)?;
                let shift = times(&hidden, &pair.b.to_dtype(DType::F32)?.t()?, pass.order)?;
                wide = (wide + (shift * f64::from(*factor))?)?;
            }
            if let Some(bias) = &blend.bias {
                wide = wide.broadcast_add(bias)?;
            }
            parts.push(wide.to_dtype(y.dtype())?);
        }
        let mut dims = ids.dims().to_vec();
        dims.push(self.site.output);
        Ok(Tensor::cat(&parts, 0)?.reshape(dims)?)
    }

    /// Each span by itself, under the sum of what its slots hold: the slow truth, and the way of convolutions.
    fn span_by_span(&self, pass: &Pass, x: &Tensor, spans: &[Span], mixtures: &[Mixture]) -> Result<Tensor> {
        let rows = match self.site.kind {
            SiteKind::Linear => x.reshape(((), self.site.input))?,
            SiteKind::Embedding => x.flatten_all()?,
            SiteKind::Conv2d { .. } => x.clone(),
        };
        let mut parts = Vec::with_capacity(spans.len());
        for Span { rows: own, mixture } in spans {
            let own = rows.narrow(0, own.start, own.len())?;
            let correction = self.sum_of(&mixtures[*mixture])?;
            parts.push(match correction.is_empty() {
                true => self.base(&own, self.bias.as_deref(), pass.order)?,
                false => self.corrected(pass, &own, &correction)?,
            });
        }
        let y = Tensor::cat(&parts, 0)?;
        let mut dims = x.dims().to_vec();
        match self.site.kind {
            SiteKind::Conv2d { .. } => return Ok(y),
            SiteKind::Embedding => dims.push(self.site.output),
            SiteKind::Linear => dims.iter_mut().last().into_iter().for_each(|last| *last = self.site.output),
        }
        Ok(y.reshape(dims)?)
    }

    /// The sum of what the slots of a mixture hold, worked out against the base.
    fn sum_of(&self, mixture: &Mixture) -> Result<Correction> {
        let held = self.held(mixture)?;
        let corrections = held.iter().map(|(held, factor)| Ok((held.correction(&self.site)?, *factor)));
        let corrections = corrections.collect::<Result<Vec<_>>>()?;
        let parts: Vec<(&Correction, f64)> = corrections.iter().map(|(own, factor)| (own, *factor)).collect();
        Correction::sum(&self.site, &self.frozen(), &parts)
    }
}
