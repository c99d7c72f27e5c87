//! A site of a loaded model: its frozen parameters, its correction, and what the two compute.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use candle_core::{DType, Tensor};

use super::correction::squares;
use super::held::Held;
use super::term::{Kronecker, LowRank, Term};
use super::{Base, Correction, Site, SiteKind};
use crate::block::{SiteForm, corrected_linear};
use crate::error::{ModelError, Result};
use crate::noise;
use crate::ops::channels_last;
use crate::ops::conv2d::Around;
use crate::ops::{self, HeadLoss, SumOrder, Weight};
use crate::parameter::Parameter;
use crate::pass::{Pass, Slot};

/// Stands between a site and whoever asks it: sees the input and gives the output. For probes and for faults on purpose;
/// what changes a model is a [`Correction`].
pub trait Intercept: Debug + Send + Sync {
    /// The output for `x`, of the shape and type of [`BaseView::forward`].
    ///
    /// # Errors
    /// Whatever the computation reports.
    fn apply(&self, pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> Result<Tensor>;
}

/// What an [`Intercept`] may see of the site it stands before.
#[derive(Debug)]
pub struct BaseView<'a>(&'a Projection, SumOrder);

impl BaseView<'_> {
    /// Where and what the map is.
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    /// The output without any correction, bias included.
    ///
    /// # Errors
    /// Whatever the computation reports.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.base(x, self.0.bias.as_deref(), self.1)
    }
}

/// A site of a loaded model: its frozen parameters and its correction.
#[derive(Debug)]
pub struct Projection {
    pub(super) site: Site,
    pub(super) weight: Arc<Parameter>,
    pub(super) bias: Option<Arc<Parameter>>,
    /// The type of what comes out, and of the values that the weight meets: it may be held in a narrower one.
    pub(super) dtype: DType,
    correction: RwLock<Option<Arc<Correction>>>,
    /// What each slot of the model has here, if anything.
    pub(super) slots: RwLock<BTreeMap<Slot, Option<Arc<Held>>>>,
    intercept: RwLock<Option<Arc<dyn Intercept>>>,
    /// Squares of the frozen weight, once they were asked for.
    squares: OnceLock<Tensor>,
}

/// The frozen parameters of a site, whatever stands in for them.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Projection);

impl Base for Frozen<'_> {
    fn weight(&self) -> Result<Tensor> {
        Ok(self.0.weight.frozen().to_dtype(DType::F32)?)
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        Ok(self.0.bias.as_ref().map(|bias| bias.frozen().to_dtype(DType::F32)).transpose()?)
    }

    fn squares(&self, site: &Site) -> Result<Tensor> {
        if let Some(known) = self.0.squares.get() {
            return Ok(known.clone());
        }
        let squares = squares(site, &self.0.weight.frozen().to_dtype(DType::F32)?)?;
        Ok(self.0.squares.get_or_init(|| squares).clone())
    }

    fn products(&self, site: &Site, a: &Tensor) -> Result<Tensor> {
        let weight = self.0.weight.frozen().as_matrix()?;
        Ok(match site.kind {
            SiteKind::Embedding => weight.products_of_columns(a, self.0.dtype)?,
            SiteKind::Linear | SiteKind::Conv2d { .. } => weight.products_of_rows(a, self.0.dtype)?,
        })
    }
}

impl Projection {
    pub(crate) fn new(site: Site, weight: Arc<Parameter>, bias: Option<Arc<Parameter>>) -> Self {
        let (correction, slots, intercept) = (RwLock::default(), RwLock::default(), RwLock::default());
        let dtype = weight.frozen().dtype();
        Self { site, weight, bias, dtype, correction, slots, intercept, squares: OnceLock::new() }
    }

    /// The same for values of a type, which may be wider than the weight's.
    pub(crate) fn computing_in(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The frozen parameters, for corrections that depend on them.
    pub fn frozen(&self) -> Frozen<'_> {
        Frozen(self)
    }

    /// Where and what the map is.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Gives the site a correction, or takes it away. Between passes only: half a pass with another correction would mix two
    /// models.
    ///
    /// # Errors
    /// A correction that does not fit the site; the one before stays.
    pub fn attach(&self, correction: Option<Arc<Correction>>) -> Result<()> {
        if let Some(correction) = &correction {
            correction.check(&self.site)?;
        }
        *self.correction.write().unwrap_or_else(PoisonError::into_inner) = correction.filter(|c| !c.is_empty());
        Ok(())
    }

    /// The site's correction.
    pub fn correction(&self) -> Option<Arc<Correction>> {
        self.correction.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts something before the site, or takes it away. Between passes only.
    pub fn intercept(&self, intercept: Option<Arc<dyn Intercept>>) {
        *self.intercept.write().unwrap_or_else(PoisonError::into_inner) = intercept;
    }

    /// Whether something stands before the site.
    pub(crate) fn is_intercepted(&self) -> bool {
        self.interceptor().is_some()
    }

    fn interceptor(&self) -> Option<Arc<dyn Intercept>> {
        self.intercept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The weight.
    pub fn weight(&self) -> &Parameter {
        &self.weight
    }

    /// The bias, if the map has one.
    pub fn bias(&self) -> Option<&Parameter> {
        self.bias.as_deref()
    }

    /// Whether the site computes what the base does.
    pub(crate) fn is_plain(&self, pass: &Pass) -> bool {
        !self.is_intercepted() && self.correction().is_none() && self.is_base_alone(pass)
    }

    /// The site's correction as a block takes it; `None` where only the operation by operation path will do.
    pub(crate) fn fusable(&self, pass: &Pass) -> Option<SiteForm> {
        if self.is_intercepted() {
            return None;
        }
        match self.correction() {
            Some(correction) => self.form(pass, &correction),
            None => Some(self.form_of_nothing()),
        }
    }

    fn form_of_nothing(&self) -> SiteForm {
        SiteForm { input_width: self.site.input, output_width: self.site.output, ..SiteForm::default() }
    }

    /// `None` where a Kronecker product stands beside factors on the output.
    fn form(&self, pass: &Pass, correction: &Correction) -> Option<SiteForm> {
        let mut form = SiteForm {
            input: correction.input.clone(),
            output: correction.output.clone(),
            bias: correction.bias.clone(),
            ..self.form_of_nothing()
        };
        for (number, term) in correction.terms.iter().enumerate() {
            match term {
                Term::LowRank(term) => form.terms.push((term.clone(), self.dropout_key(pass, number))),
                Term::Kronecker(product) if correction.output.is_none() && product.right.rank() == 2 => {
                    form.products.push(product.clone());
                }
                Term::Kronecker(_) => return None,
            }
        }
        Some(form)
    }

    /// A linear map and its correction in one piece, where the parameters stand as loaded and a block would take it.
    fn fused(&self, pass: &Pass, x: &Tensor, correction: &Correction) -> Result<Option<Tensor>> {
        let linear = self.site.kind == SiteKind::Linear;
        let bias = self.bias.as_ref().map(|bias| bias.as_loaded().map(Weight::values));
        let (true, Some(weight), Some(form)) = (linear, self.weight.as_loaded(), self.form(pass, correction)) else {
            return Ok(None);
        };
        match bias {
            Some(None) => Ok(None),
            Some(Some(bias)) => Ok(corrected_linear(x, weight, Some(&bias), form, pass.order)?),
            None => Ok(corrected_linear(x, weight, None, form, pass.order)?),
        }
    }

    /// What names the noise of one term's dropout; absent outside training.
    fn dropout_key(&self, pass: &Pass, number: usize) -> Option<u64> {
        pass.train.then(|| noise::combine(pass.noise.at(&self.site.path), number as u64))
    }

    /// Linear: `x: [.., input]` to `[.., output]`. Convolution: `[batch, input, h, w]` to `[batch, output, h', w']`.
    /// Embedding: ids (u32, any shape) to their rows, `[.., output]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if let Some(intercept) = self.interceptor() {
            return intercept.apply(pass, x, &BaseView(self, pass.order));
        }
        if let Some(routing) = pass.routing(self.site.part) {
            return self.routed(pass, x, routing);
        }
        match self.correction() {
            Some(correction) => self.corrected(pass, x, &correction),
            None => self.base(x, self.bias.as_deref(), pass.order),
        }
    }

    /// A convolution with what stands around it, in one piece where nothing corrects it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn forward_within(&self, pass: &Pass, x: &Tensor, around: &Around<'_>) -> Result<Tensor> {
        match self.site.kind {
            SiteKind::Conv2d { stride, padding, .. } if self.is_plain(pass) => {
                let bias = self.bias.as_ref().map(|bias| bias.value());
                Ok(ops::conv2d::conv2d_within(
                    x,
                    &self.weight.value(),
                    bias.as_ref(),
                    stride,
                    padding,
                    around,
                    pass.order,
                )?)
            }
            _ => Ok(around.behind(self.forward(pass, &around.before(x)?)?)?),
        }
    }

    /// Cross-entropy of a head's logits against labels, summed: `x: [rows, input]`, one label a row.
    ///
    /// Where the head is frozen and nothing corrects it, its logits are never held whole.
    ///
    /// # Errors
    /// Shapes that do not fit, or a label beyond the outputs.
    pub(crate) fn loss(&self, pass: &Pass, x: &Tensor, labels: &[u32]) -> Result<HeadLoss> {
        let (weight, bias) = (self.weight.current(), self.bias.as_ref().map(|bias| bias.value()));
        let trainable = weight.is_tracked() || bias.as_ref().is_some_and(Tensor::track_op);
        if trainable || !self.is_plain(pass) {
            return Ok(HeadLoss::of_logits(&self.forward(pass, x)?, labels)?);
        }
        Ok(ops::head_loss(x, &weight, bias.as_ref(), labels)?)
    }

    pub(super) fn base(&self, x: &Tensor, bias: Option<&Parameter>, order: SumOrder) -> Result<Tensor> {
        self.with_weight(x, &self.weight.current(), bias.map(Parameter::value).as_ref(), order)
    }

    fn with_weight(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, order: SumOrder) -> Result<Tensor> {
        Ok(match self.site.kind {
            SiteKind::Linear => {
                let trainable = weight.is_tracked() || bias.is_some_and(Tensor::track_op);
                if trainable {
                    ops::linear::linear(x, &weight.values(), bias)?
                } else {
                    weight.product_in(x, bias, order)?
                }
            }
            SiteKind::Conv2d { stride, padding, .. } => {
                convolved(x, &weight.to_dtype(x.dtype())?, bias, [stride, padding], order)?
            }
            SiteKind::Embedding => {
                let rows = weight.rows(&x.flatten_all()?.to_vec1::<u32>()?)?;
                let mut dims = x.dims().to_vec();
                dims.push(self.site.output);
                rows.to_dtype(self.dtype)?.reshape(dims)?
            }
        })
    }

    /// The output under a correction.
    pub(super) fn corrected(&self, pass: &Pass, x: &Tensor, correction: &Correction) -> Result<Tensor> {
        if let Some(y) = self.fused(pass, x, correction)? {
            return Ok(y);
        }
        let scaled = match &correction.input {
            Some(factors) => {
                let wide = x.to_dtype(DType::F32)?.broadcast_mul(&self.along_features(factors)?)?;
                Some(wide.to_dtype(x.dtype())?)
            }
            None => None,
        };
        let given = scaled.as_ref().unwrap_or(x);
        let shift = self.terms(pass, x, &correction.terms)?;
        if correction.output.is_none() && correction.bias.is_none() {
            let y = self.base(given, self.bias.as_deref(), pass.order)?;
            return match shift {
                Some(shift) => Ok(channels_last::sum(&y, &shift.to_dtype(y.dtype())?)?),
                None => Ok(y),
            };
        }
        // Rounded once and behind the bias, as where nothing corrects the site; on other devices before it, too.
        let mut y = if self.site.kind == SiteKind::Embedding || ops::is_composed(x.device()) {
            self.base(given, None, pass.order)?.to_dtype(DType::F32)?
        } else {
            self.with_weight(&given.to_dtype(DType::F32)?, &self.weight.current(), None, pass.order)?
        };
        if let Some(factors) = &correction.output {
            y = y.broadcast_mul(&self.along_features(factors)?)?;
        }
        if let Some(shift) = shift {
            y = channels_last::sum(&y, &shift)?;
        }
        let own = self.bias.as_ref().map(|bias| bias.value().to_dtype(DType::F32)).transpose()?;
        if let Some(bias) = correction.bias.as_ref().or(own.as_ref()) {
            y = y.broadcast_add(&self.along_features(bias)?)?;
        }
        Ok(y.to_dtype(self.dtype)?)
    }

    /// A vector that goes along the features of rows or the channels of pictures.
    fn along_features(&self, vector: &Tensor) -> Result<Tensor> {
        Ok(match self.site.kind {
            SiteKind::Conv2d { .. } => vector.reshape((1, vector.elem_count(), 1, 1))?,
            SiteKind::Linear | SiteKind::Embedding => vector.clone(),
        })
    }

    /// What the terms add to the output, f32; `None` without any.
    fn terms(&self, pass: &Pass, x: &Tensor, terms: &[Term]) -> Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for (number, term) in terms.iter().enumerate() {
            let shift = match term {
                Term::LowRank(term) => self.low_rank(pass, x, number, term)?,
                Term::Kronecker(term) => self.kronecker(x, term, pass.order)?,
            };
            sum = Some(match sum {
                Some(sum) => (sum + shift)?,
                None => shift,
            });
        }
        Ok(sum)
    }

    /// A Kronecker product's share of the output in f32: the right factor on pieces of the input, the left one across them.
    fn kronecker(&self, x: &Tensor, Kronecker { left, right, scale }: &Kronecker, order: SumOrder) -> Result<Tensor> {
        let (o1, i1) = left.dims2()?;
        let (o2, i2) = (right.dim(0)?, right.dim(1)?);
        let x = x.to_dtype(DType::F32)?;
        let left = (left * *scale)?;
        Ok(match self.site.kind {
            SiteKind::Linear => {
                let mut dims = x.dims().to_vec();
                let rows = x.elem_count() / self.site.input.max(1);
                let pieces = times(&x.reshape((rows * i1, i2))?, right, order)?;
                let pieces = pieces.reshape((rows, i1, o2))?.transpose(1, 2)?.contiguous()?;
                let y = times(&pieces.reshape((rows * o2, i1))?, &left, order)?.reshape((rows, o2, o1))?;
                if let Some(last) = dims.last_mut() {
                    *last = o1 * o2;
                }
                y.transpose(1, 2)?.contiguous()?.reshape(dims)?
            }
            SiteKind::Conv2d { stride, padding, .. } => {
                let (batch, _, height, width) = x.dims4()?;
                let pieces = x.contiguous()?.reshape((batch * i1, i2, height, width))?;
                let pieces = convolved(&pieces, right, None, [stride, padding], order)?;
                let (_, _, height, width) = pieces.dims4()?;
                let area = o2 * height * width;
                let pieces = pieces.contiguous()?.reshape((batch, i1, area))?.transpose(1, 2)?.contiguous()?;
                let y = times(&pieces.reshape((batch * area, i1))?, &left, order)?.reshape((batch, area, o1))?;
                y.transpose(1, 2)?.contiguous()?.reshape((batch, o1 * o2, height, width))?
            }
            SiteKind::Embedding => {
                let expected = format!("low-rank terms at the table `{}`", self.site.path);
                return Err(ModelError::Shape { what: "term", expected, got: vec![o1, i1, o2, i2] }.into());
            }
        })
    }

    /// A low-rank term's share of the output in f32.
    fn low_rank(&self, pass: &Pass, x: &Tensor, number: usize, term: &LowRank) -> Result<Tensor> {
        let dropped = |x: &Tensor| -> Result<Tensor> {
            let x = x.to_dtype(DType::F32)?;
            match self.dropout_key(pass, number) {
                Some(key) => Ok(ops::dropout(&x, term.dropout, key)?),
                None => Ok(x),
            }
        };
        let (hidden, mut dims) = match self.site.kind {
            SiteKind::Linear => {
                let rows = dropped(x)?.reshape(((), self.site.input))?;
                (times(&rows, &term.a, pass.order)?, x.dims()[..x.rank() - 1].to_vec())
            }
            SiteKind::Embedding => {
                let ids = x.flatten_all()?.to_vec1::<u32>()?;
                (ops::select_rows(&term.a.t()?.contiguous()?, &ids)?, x.dims().to_vec())
            }
            SiteKind::Conv2d { stride, padding, .. } => {
                let hidden = convolved(&dropped(x)?, &term.a, None, [stride, padding], pass.order)?;
                return convolved(&hidden, &(&term.b * term.scale)?, None, [1, 0], pass.order);
            }
        };
        dims.push(self.site.output);
        Ok((times(&hidden, &term.b, pass.order)? * term.scale)?.reshape(dims)?)
    }
}

/// `x·Wᵀ` in f32 of a term's factor, by candle where a gradient has to go through it.
pub(super) fn times(x: &Tensor, factor: &Tensor, order: SumOrder) -> Result<Tensor> {
    if x.track_op() || factor.track_op() {
        return Ok(x.matmul(&factor.t()?)?);
    }
    Ok(Weight::from(factor.clone()).product_in(x, None, order)?)
}

fn convolved(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    [stride, padding]: [usize; 2],
    order: SumOrder,
) -> Result<Tensor> {
    Ok(ops::conv2d::conv2d_within(x, kernel, bias, stride, padding, &Around::default(), order)?)
}

/// All projections of a loaded model by path.
#[derive(Debug, Default)]
pub struct Projections(BTreeMap<Arc<str>, Arc<Projection>>);

impl Projections {
    pub(crate) fn insert(&mut self, projection: Arc<Projection>) {
        self.0.insert(projection.site.path.clone(), projection);
    }

    /// The projection at a native path.
    pub fn get(&self, path: &str) -> Option<&Arc<Projection>> {
        self.0.get(path)
    }

    /// All of them, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Projection>> {
        self.0.values()
    }
}
