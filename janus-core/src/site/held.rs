//! A correction that a slot holds: made ready for passes once, when it comes.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::correction::Correction;
use super::term::{Kronecker, LowRank, Term};
use super::{Base, Site, SiteKind};
use crate::error::Result;
use crate::kernel::blocks::{from_blocks, in_blocks};
use crate::parameter::add_shift;

/// A correction made ready: its low-rank terms in one pair of the type that is computed in, B turned and times its scale.
#[derive(Debug)]
pub(crate) struct Held {
    pair: Option<Pair>,
    products: Vec<Kronecker>,
    input: Option<Tensor>,
    output: Option<Tensor>,
    bias: Option<Tensor>,
}

/// All low-rank terms of a correction. Both factors of a linear map on the processor are in blocks of their columns, as
/// [`in_blocks`] lays them out.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// `[rank, input]`, a convolution's `[rank, input, kernel, kernel]`, a table's the other way: `[rows, rank]`.
    pub(crate) a: Tensor,
    /// `[rank, output]`, each term's times its scale.
    pub(crate) b: Tensor,
}

/// Whether the pairs of a site are held in blocks.
fn is_in_blocks(site: &Site, device: &Device) -> bool {
    site.kind == SiteKind::Linear && device.is_cpu()
}

impl Held {
    /// The correction on a device, factors of its pairs rounded to `dtype`, everything else f32.
    ///
    /// # Errors
    /// A correction that does not fit the site.
    pub(super) fn of(site: &Site, correction: &Correction, dtype: DType, device: &Device) -> Result<Self> {
        correction.check(site)?;
        let ready = |tensor: &Tensor, dtype| tensor.detach().to_device(device)?.to_dtype(dtype)?.contiguous();
        let (mut a, mut b, mut products) = (Vec::new(), Vec::new(), Vec::new());
        for term in &correction.terms {
            match term {
                Term::LowRank(LowRank { a: own_a, b: own_b, scale, .. }) => {
                    a.push(own_a.to_dtype(DType::F32)?);
                    b.push((own_b.to_dtype(DType::F32)?.flatten_from(1)?.t()? * *scale)?);
                }
                Term::Kronecker(Kronecker { left, right, scale }) => {
                    let (left, right) = (ready(left, DType::F32)?, ready(right, DType::F32)?);
                    products.push(Kronecker { left, right, scale: *scale });
                }
            }
        }
        let pair = match a.is_empty() {
            true => None,
            false => {
                let a = Tensor::cat(&a, 0)?;
                let a = if site.kind == SiteKind::Embedding { a.t()? } else { a };
                let (a, b) = (ready(&a, dtype)?, ready(&Tensor::cat(&b, 0)?, dtype)?);
                Some(match is_in_blocks(site, device) {
                    true => Pair { a: in_blocks(&a)?, b: in_blocks(&b)? },
                    false => Pair { a, b },
                })
            }
        };
        let vector = |vector: &Option<Tensor>| vector.as_ref().map(|vector| ready(vector, DType::F32)).transpose();
        let (input, output) = (vector(&correction.input)?, vector(&correction.output)?);
        Ok(Self { pair, products, input, output, bias: vector(&correction.bias)? })
    }

    /// The correction again, its factors as they were rounded.
    pub(super) fn correction(&self, site: &Site) -> candle_core::Result<Correction> {
        let mut terms: Vec<Term> = self.products.iter().cloned().map(Term::Kronecker).collect();
        if let Some(Pair { a, b }) = &self.pair {
            let (a, b) = match is_in_blocks(site, a.device()) {
                true => (from_blocks(a, site.input)?, from_blocks(b, site.output)?),
                false => (a.clone(), b.clone()),
            };
            let (rank, output) = b.dims2()?;
            let mut b = b.to_dtype(DType::F32)?.t()?.contiguous()?;
            if matches!(site.kind, SiteKind::Conv2d { .. }) {
                b = b.reshape((output, rank, 1, 1))?;
            }
            let a = a.to_dtype(DType::F32)?;
            let a = if site.kind == SiteKind::Embedding { a.t()?.contiguous()? } else { a };
            terms.push(Term::LowRank(LowRank { a, b, scale: 1.0, dropout: 0.0 }));
        }
        Ok(Correction { input: self.input.clone(), output: self.output.clone(), bias: self.bias.clone(), terms })
    }

    /// Its pair, to be put elsewhere.
    pub(super) fn pair_mut(&mut self) -> Option<&mut Pair> {
        self.pair.as_mut()
    }

    /// Bytes of its tensors.
    pub(super) fn bytes(&self) -> usize {
        let pair = self.pair.iter().flat_map(|pair| [&pair.a, &pair.b]);
        let products = self.products.iter().flat_map(|product| [&product.left, &product.right]);
        let vectors = [&self.input, &self.output, &self.bias].into_iter().flatten();
        pair.chain(products).chain(vectors).map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}

/// What a mixture makes of a site: sums of shifts.
#[derive(Debug, Default)]
pub(crate) struct Blend {
    /// Pairs, each with a factor.
    pub(crate) pairs: Vec<(Pair, f32)>,
    /// Kronecker products.
    pub(crate) products: Vec<Kronecker>,
    /// Factors on the input, `[input]`, f32.
    pub(crate) input: Option<Tensor>,
    /// Factors on what the weight gives, `[output]`, f32.
    pub(crate) output: Option<Tensor>,
    /// In the place of the site's own bias, `[output]`, f32.
    pub(crate) bias: Option<Tensor>,
}

impl Blend {
    /// The sum of what slots hold, each times its factor. Where factors on the input and on the output of several meet, their
    /// shift of the base is worked out.
    pub(super) fn of(site: &Site, base: &dyn Base, parts: &[(Arc<Held>, f64)]) -> Result<Self> {
        let with = |vector: fn(&Held) -> &Option<Tensor>| parts.iter().any(|(held, _)| vector(held).is_some());
        let alone = matches!(parts, [(_, 1.0)]);
        let is_mixed = with(|held| &held.input) && with(|held| &held.output) && !alone;
        let mut blend = Self::default();
        if is_mixed {
            let factors = |held: &Held| Correction {
                input: held.input.clone(),
                output: held.output.clone(),
                ..Correction::default()
            };
            let own: Vec<(Correction, f64)> = parts.iter().map(|(held, factor)| (factors(held), *factor)).collect();
            let own: Vec<(&Correction, f64)> = own.iter().map(|(part, factor)| (part, *factor)).collect();
            let Correction { output, terms, .. } = Correction::sum(site, base, &own)?;
            blend.output = output;
            blend.products.extend(terms.into_iter().filter_map(|term| match term {
                Term::Kronecker(dense) => Some(dense),
                Term::LowRank(_) => None,
            }));
        }
        for (held, factor) in parts {
            blend.pairs.extend(held.pair.clone().map(|pair| (pair, *factor as f32)));
            let scaled = |product: &Kronecker| Kronecker { scale: product.scale * factor, ..product.clone() };
            blend.products.extend(held.products.iter().map(scaled));
            for (sum, vector) in [(&mut blend.input, &held.input), (&mut blend.output, &held.output)] {
                if let Some(vector) = vector.as_ref().filter(|_| !is_mixed) {
                    *sum = Some(add_shift(sum.take(), vector, *factor, || Ok(vector.ones_like()?))?);
                }
            }
            if let Some(bias) = &held.bias {
                let own = || Ok(base.bias()?.map_or_else(|| bias.zeros_like(), Ok)?);
                blend.bias = Some(add_shift(blend.bias.take(), bias, *factor, own)?);
            }
        }
        Ok(blend)
    }

    /// Whether it leaves the site as the base has it.
    pub(super) fn is_nothing(&self) -> bool {
        let vectors = [&self.input, &self.output, &self.bias];
        self.pairs.is_empty() && self.products.is_empty() && vectors.into_iter().all(Option::is_none)
    }
}
