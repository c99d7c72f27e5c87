//! A correction: data from which a site computes, weights are folded and sums of several are made.

use candle_core::{DType, Tensor};

use super::term::{Kronecker, Term};
use super::{Site, SiteKind};
use crate::error::{ModelError, Result};

/// The change of a site to `y = output ⊙ W·(input ⊙ x) + Σ terms(x) + bias`; what is absent is as in the base.
///
/// A correction stands for its shift: that of the weight, `W′ − W`, and that of the bias, `b′ − b`. A factor multiplies
/// shifts, and shifts of several corrections add up ([`Correction::sum`]).
#[derive(Debug, Clone, Default)]
pub struct Correction {
    /// Factors on the input's features or channels, `[input]`, f32. A table has none: its input are ids.
    pub input: Option<Tensor>,
    /// Factors on what the weight gives, before terms and bias, `[output]`, f32.
    pub output: Option<Tensor>,
    /// Stands in the place of the base's bias, `[output]`, f32. It may be there where the base has none.
    pub bias: Option<Tensor>,
    /// What is added.
    pub terms: Vec<Term>,
}

/// What the base has at a site, for corrections that depend on it.
pub trait Base {
    /// The weight in its own shape, f32.
    ///
    /// # Errors
    /// Whatever reading reports.
    fn weight(&self) -> Result<Tensor>;

    /// The bias, f32, where there is one.
    ///
    /// # Errors
    /// Whatever reading reports.
    fn bias(&self) -> Result<Option<Tensor>>;

    /// The sum of squares of each output's weights, `[output]`, f32.
    ///
    /// # Errors
    /// Whatever reading reports.
    fn squares(&self, site: &Site) -> Result<Tensor> {
        Ok(squares(site, &self.weight()?)?)
    }

    /// The weights of each output times the rows of `a`, `[output, rank]`, f32: `a: [rank, values of an output]`.
    ///
    /// # Errors
    /// Whatever reading reports, and shapes that do not fit.
    fn products(&self, site: &Site, a: &Tensor) -> Result<Tensor> {
        let weight = self.weight()?.flatten_from(1)?;
        Ok(match site.kind {
            SiteKind::Embedding => a.matmul(&weight)?.t()?.contiguous()?,
            SiteKind::Linear | SiteKind::Conv2d { .. } => weight.matmul(&a.t()?)?,
        })
    }
}

/// The sum of squares of each output's weights, of a weight in its own shape; f32 both.
pub(super) fn squares(site: &Site, weight: &Tensor) -> candle_core::Result<Tensor> {
    let squares = weight.flatten_from(1)?.sqr()?;
    squares.sum(if site.kind == SiteKind::Embedding { 0 } else { 1 })
}

impl Correction {
    /// A correction of terms alone.
    pub fn of_terms(terms: impl IntoIterator<Item = Term>) -> Self {
        Self { terms: terms.into_iter().collect(), ..Self::default() }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.input.is_none() && self.output.is_none() && self.bias.is_none() && self.terms.is_empty()
    }

    /// The same with each of its tensors through `f`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map(&self, f: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>) -> candle_core::Result<Self> {
        let vector = |vector: &Option<Tensor>| vector.as_ref().map(f).transpose();
        Ok(Self {
            input: vector(&self.input)?,
            output: vector(&self.output)?,
            bias: vector(&self.bias)?,
            terms: self.terms.iter().map(|term| term.map(f)).collect::<candle_core::Result<_>>()?,
        })
    }

    /// All its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let vectors = [&self.input, &self.output, &self.bias].into_iter().flatten();
        vectors.chain(self.terms.iter().flat_map(Term::tensors))
    }

    /// The same with factors, `[output]`, on all that it gives, the bias included.
    ///
    /// # Errors
    /// What `base` reports, and shapes that do not fit.
    pub fn behind(self, factors: &Tensor, site: &Site, base: &dyn Base) -> Result<Self> {
        let output = match &self.output {
            Some(output) => (output * factors)?,
            None => factors.clone(),
        };
        let bias = match self.bias {
            Some(bias) => Some(bias),
            None => base.bias()?,
        };
        let bias = bias.map(|bias| &bias * factors).transpose()?;
        let terms = self.terms.iter().map(|term| term.behind(factors, site));
        Ok(Self { input: self.input, output: Some(output), bias, terms: terms.collect::<candle_core::Result<_>>()? })
    }

    /// The same shift without factors on input and output, which then become a dense term.
    ///
    /// # Errors
    /// What `base` reports, and shapes that do not fit.
    pub fn dense(&self, site: &Site, base: &dyn Base) -> Result<Self> {
        let mut terms = self.terms.clone();
        if self.input.is_some() || self.output.is_some() {
            let weight = base.weight()?;
            let right = (self.scaled_rows(site, weight.clone(), 0)? - weight)?;
            let left = Tensor::ones((1, 1), DType::F32, right.device())?;
            terms.push(Term::Kronecker(Kronecker { left, right, scale: 1.0 }));
        }
        Ok(Self { bias: self.bias.clone(), terms, ..Self::default() })
    }

    /// Refuses what does not fit a site.
    ///
    /// # Errors
    /// [`ModelError::Shape`].
    pub fn check(&self, site: &Site) -> Result<()> {
        let has_input = site.kind != SiteKind::Embedding;
        let vectors = [
            ("input", &self.input, has_input.then_some(site.input)),
            ("output", &self.output, Some(site.output)),
            ("bias", &self.bias, Some(site.output)),
        ];
        for (what, vector, length) in vectors {
            let Some(vector) = vector else { continue };
            if length.is_none_or(|length| vector.dims() != [length]) {
                let expected = match length {
                    Some(length) => format!("[{length}] at `{}`", site.path),
                    None => format!("none at the table `{}`", site.path),
                };
                return Err(ModelError::Shape { what, expected, got: vector.dims().to_vec() }.into());
            }
        }
        match self.terms.iter().find(|term| !term.fits(site)) {
            Some(term) => {
                let [first, second] = term.tensors();
                let expected =
                    format!("factors of {} inputs and {} outputs at `{}`", site.input, site.output, site.path);
                let got = [first.dims(), second.dims()].concat();
                Err(ModelError::Shape { what: "term", expected, got }.into())
            }
            None => Ok(()),
        }
    }

    /// Some rows of the site's weight, f32, under the factors on input and output: without the terms.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn scaled_rows(&self, site: &Site, rows: Tensor, from: usize) -> candle_core::Result<Tensor> {
        let count = rows.dim(0)?;
        let mut rows = rows;
        let along = |vector: &Tensor, axis: usize, rank: usize| {
            let shape: Vec<usize> = (0..rank).map(|at| if at == axis { vector.elem_count() } else { 1 }).collect();
            vector.detach().reshape(shape)
        };
        if let Some(input) = &self.input {
            rows = rows.broadcast_mul(&along(input, 1, rows.rank())?)?;
        }
        if let Some(output) = &self.output {
            let factors = match site.kind {
                SiteKind::Embedding => along(output, 1, rows.rank())?,
                _ => along(&output.narrow(0, from, count)?, 0, rows.rank())?,
            };
            rows = rows.broadcast_mul(&factors)?;
        }
        Ok(rows)
    }

    /// Some rows of what the terms add to the site's weight, f32; `None` without terms.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn shift_of_rows(&self, site: &Site, from: usize, count: usize) -> candle_core::Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for term in &self.terms {
            let shift = term.shift_of_rows(site, from, count)?;
            sum = Some(match sum {
                Some(sum) => (sum + shift)?,
                None => shift,
            });
        }
        Ok(sum)
    }

    /// The weight that computes the same without the correction, but for the bias, summed in f32; `weight` is f32 in its own
    /// shape.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn fold(&self, site: &Site, weight: Tensor) -> candle_core::Result<Tensor> {
        let rows = weight.dim(0)?;
        let weight = self.scaled_rows(site, weight, 0)?;
        match self.shift_of_rows(site, 0, rows)? {
            Some(shift) => weight + shift,
            None => Ok(weight),
        }
    }

    /// The correction whose shift is the sum of the shifts of `parts`, each times its factor. One part of factor 1 is what it
    /// was, to the bit; parts of factor 0 are left out.
    ///
    /// Factors on the input of one part and on the output of another are no longer of the form of a correction: the shift
    /// of those on the input is then made dense.
    ///
    /// # Errors
    /// What `base` reports, and shapes that do not fit.
    pub fn sum(site: &Site, base: &dyn Base, parts: &[(&Self, f64)]) -> Result<Self> {
        let parts: Vec<(&Self, f64)> =
            parts.iter().copied().filter(|(part, f)| *f != 0.0 && !part.is_empty()).collect();
        match parts.as_slice() {
            [] => return Ok(Self::default()),
            [(only, 1.0)] => return Ok((*only).clone()),
            _ => {}
        }
        let mut sum = Self { bias: sum_of_biases(base, &parts)?, ..Self::default() };
        let scales_both =
            parts.iter().any(|(part, _)| part.input.is_some()) && parts.iter().any(|(part, _)| part.output.is_some());
        for (part, factor) in &parts {
            let dense = if scales_both && part.input.is_some() { Some(part.dense(site, base)?) } else { None };
            let part = dense.as_ref().unwrap_or(part);
            add_factors(&mut sum.input, &part.input, *factor)?;
            add_factors(&mut sum.output, &part.output, *factor)?;
            sum.terms.extend(part.terms.iter().map(|term| term.scaled(*factor)));
        }
        Ok(sum)
    }
}

/// Adds the shift of factors, which are one where nothing is shifted, times `factor`.
fn add_factors(sum: &mut Option<Tensor>, part: &Option<Tensor>, factor: f64) -> candle_core::Result<()> {
    if let Some(part) = part {
        let shift = ((part - 1.0)? * factor)?;
        *sum = Some(match sum.take() {
            Some(sum) => (sum + shift)?,
            None => (shift + 1.0)?,
        });
    }
    Ok(())
}

/// The base's bias and the shifts of all parts' biases; `None` where no part has one.
fn sum_of_biases(base: &dyn Base, parts: &[(&Correction, f64)]) -> Result<Option<Tensor>> {
    let with_bias: Vec<_> = parts.iter().filter_map(|(part, f)| Some((part.bias.as_ref()?, *f))).collect();
    let Some((first, _)) = with_bias.first() else { return Ok(None) };
    let own = match base.bias()? {
        Some(bias) => bias,
        None => first.zeros_like()?,
    };
    let mut sum = own.clone();
    for (bias, factor) in with_bias {
        sum = (sum + ((bias - &own)? * factor)?)?;
    }
    Ok(Some(sum))
}
