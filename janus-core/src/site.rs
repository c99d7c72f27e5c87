//! The seam: sites of the model, and corrections to what they compute.
//!
//! Every linear map, convolution and embedding table of the checkpoint is a [`Projection`], born at its checkpoint path
//! with an empty slot. A [`Correction`] in the slot changes the site's output. Most corrections are sums of low-rank
//! [`terms`](Correction::terms), which the core computes itself together with the frozen product; others override
//! [`Correction::apply`] and see the input and a [`BaseView`].

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Tensor};

use crate::block::corrected_linear;
use crate::checkpoint::expected_tensors;
use crate::config::JanusConfig;
use crate::error::{ModelError, Result};
use crate::noise;
use crate::ops::channels_last;
use crate::ops::conv2d::Around;
use crate::ops::{self, HeadLoss};
use crate::parameter::Parameter;
use crate::pass::{Part, Pass};

/// What a site computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// `y = x·Wᵀ + b`, weight `[output, input]`.
    Linear,
    /// A convolution, weight `[output, input, kernel, kernel]`.
    Conv2d {
        /// Side of the kernel.
        kernel: usize,
        /// Step on both axes.
        stride: usize,
        /// Zeroes added on all four sides.
        padding: usize,
    },
    /// Rows of a table, weight `[input, output]`: `input` rows of width `output`.
    Embedding,
}

/// One map of the checkpoint: where it lives and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Native checkpoint path, without `.weight`.
    pub path: Arc<str>,
    /// Whose token rows its input has.
    pub part: Part,
    /// What it computes.
    pub kind: SiteKind,
    /// Input features, channels or table rows.
    pub input: usize,
    /// Output features or channels, or the table's width.
    pub output: usize,
}

/// All sites of a model, in the order of its modules.
pub fn sites(config: &JanusConfig) -> Vec<Site> {
    let tensors = expected_tensors(config, true);
    tensors.iter().filter_map(|tensor| site_of(config, &tensor.name, &tensor.shape)).collect()
}

fn site_of(config: &JanusConfig, name: &str, shape: &[usize]) -> Option<Site> {
    let path = name.strip_suffix(".weight")?;
    // Added to the patches or compared with latents as a whole: never looked up by an input.
    if path.ends_with(".position_embedding") || path.ends_with(".quantize.embedding") {
        return None;
    }
    let part = if path.starts_with("model.language_model.") || path == "lm_head" {
        Part::Decoder
    } else if path.starts_with("model.vision_model.") || path.starts_with("model.aligner.") {
        Part::Vision
    } else {
        Part::Generation
    };
    let (kind, input, output) = match *shape {
        [rows, width] if path.ends_with("embed_tokens") || path.ends_with("generation_embeddings") => {
            (SiteKind::Embedding, rows, width)
        }
        [output, input] => (SiteKind::Linear, input, output),
        [output, input, kernel, _] => {
            let (stride, padding) = if path.ends_with("patch_embedding") {
                (config.vision.patch_size, 0)
            } else if path.ends_with("downsample.conv") {
                (2, 0)
            } else {
                (1, kernel / 2)
            };
            (SiteKind::Conv2d { kernel, stride, padding }, input, output)
        }
        _ => return None,
    };
    Some(Site { path: path.into(), part, kind, input, output })
}

/// Low-rank factors that shift a site's weight by `scale · B·A`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Linear `[rank, input]`, convolution `[rank, input, kernel, kernel]`, embedding `[rank, rows]`; f32.
    pub a: Tensor,
    /// Linear and embedding `[output, rank]`, convolution `[output, rank, 1, 1]`; f32.
    pub b: Tensor,
    /// Factor of the product.
    pub scale: f64,
    /// Share of the input's values that training zeroes before A; embeddings have none.
    pub dropout: f64,
    /// Request whose tokens the term serves; absent: all tokens.
    pub request: Option<u32>,
}

impl LowRank {
    /// `scale · B·A` in the weight's own shape, in f32.
    ///
    /// # Errors
    /// Factors that do not fit each other.
    pub fn weight_shift(&self, site: &Site) -> Result<Tensor> {
        let (a, b) = (self.a.detach().flatten_from(1)?, self.b.detach().flatten_from(1)?);
        let product = (b.matmul(&a)? * self.scale)?;
        Ok(match site.kind {
            SiteKind::Linear => product,
            SiteKind::Embedding => product.t()?.contiguous()?,
            SiteKind::Conv2d { kernel, .. } => product.reshape((site.output, site.input, kernel, kernel))?,
        })
    }
}

/// A change to what one site computes: low-rank terms and nothing else, or whatever [`Correction::apply`] does.
pub trait Correction: Debug + Send + Sync {
    /// The low-rank terms that are the whole correction. Where there are some, the core computes them together with the
    /// frozen product and never calls [`Correction::apply`].
    fn terms(&self) -> Option<&[LowRank]> {
        None
    }

    /// The corrected output for `x`, of the shape and type of [`BaseView::forward`].
    ///
    /// # Errors
    /// Whatever the computation reports.
    fn apply(&self, pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> Result<Tensor> {
        base.forward_with(pass, x, self.terms().unwrap_or_default())
    }

    /// The weight that computes the same without the correction, summed in f32; `weight` is f32 in its own shape.
    ///
    /// # Errors
    /// Whatever the computation reports.
    fn fold(&self, site: &Site, weight: Tensor) -> Result<Tensor> {
        let mut weight = weight;
        for term in self.terms().unwrap_or_default() {
            weight = (weight + term.weight_shift(site)?)?;
        }
        Ok(weight)
    }
}

/// What a correction may see of the map it corrects.
#[derive(Debug)]
pub struct BaseView<'a>(&'a Projection);

impl BaseView<'_> {
    /// Where and what the map is.
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    /// The weight as it is computed with.
    pub fn weight(&self) -> Tensor {
        self.0.weight.value()
    }

    /// The uncorrected output, bias included.
    ///
    /// # Errors
    /// Whatever the computation reports.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.base(x, self.0.bias.as_deref())
    }

    /// The uncorrected output without the bias.
    ///
    /// # Errors
    /// Whatever the computation reports.
    pub fn forward_without_bias(&self, x: &Tensor) -> Result<Tensor> {
        self.0.base(x, None)
    }

    /// The uncorrected output plus the low-rank terms.
    ///
    /// # Errors
    /// Whatever the computation reports.
    pub fn forward_with(&self, pass: &Pass, x: &Tensor, terms: &[LowRank]) -> Result<Tensor> {
        if let Some(y) = self.0.fused(pass, x, terms)? {
            return Ok(y);
        }
        let y = self.forward(x)?;
        let mut sum: Option<Tensor> = None;
        for (number, term) in terms.iter().enumerate() {
            let Some(delta) = self.0.term(pass, x, number, term)? else { continue };
            sum = Some(match sum {
                Some(sum) => (sum + delta)?,
                None => delta,
            });
        }
        match sum {
            Some(sum) => Ok(channels_last::sum(&y, &sum.to_dtype(y.dtype())?)?),
            None => Ok(y),
        }
    }
}

/// A site of a loaded model: its frozen parameters and its slot.
#[derive(Debug)]
pub struct Projection {
    site: Site,
    weight: Arc<Parameter>,
    bias: Option<Arc<Parameter>>,
    slot: RwLock<Option<Arc<dyn Correction>>>,
}

impl Projection {
    pub(crate) fn new(site: Site, weight: Arc<Parameter>, bias: Option<Arc<Parameter>>) -> Self {
        Self { site, weight, bias, slot: RwLock::new(None) }
    }

    /// Where and what the map is.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Puts a correction into the slot, or empties it. Between passes only: half a pass with another correction would
    /// mix two models.
    pub fn attach(&self, correction: Option<Arc<dyn Correction>>) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = correction;
    }

    /// The correction in the slot.
    pub fn correction(&self) -> Option<Arc<dyn Correction>> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The weight.
    pub(crate) fn weight(&self) -> &Parameter {
        &self.weight
    }

    /// The bias, if the map has one.
    pub(crate) fn bias(&self) -> Option<&Parameter> {
        self.bias.as_deref()
    }

    /// The site's low-rank terms for all tokens, each with the key of its dropout in training; `None` where the site's
    /// correction is more than that.
    pub(crate) fn fusable_terms(&self, pass: &Pass) -> Option<Vec<(LowRank, Option<u64>)>> {
        match self.correction() {
            Some(correction) => self.keyed(pass, correction.terms()?),
            None => Some(Vec::new()),
        }
    }

    /// Terms for all tokens with the keys of their dropout; `None` where one is for some tokens only.
    fn keyed(&self, pass: &Pass, terms: &[LowRank]) -> Option<Vec<(LowRank, Option<u64>)>> {
        if terms.iter().any(|term| term.request.is_some()) {
            return None;
        }
        Some(terms.iter().enumerate().map(|(number, term)| (term.clone(), self.dropout_key(pass, number))).collect())
    }

    /// A linear map and its terms in one piece, where the parameters stand as loaded and all terms are for all tokens.
    fn fused(&self, pass: &Pass, x: &Tensor, terms: &[LowRank]) -> Result<Option<Tensor>> {
        let linear = self.site.kind == SiteKind::Linear && !terms.is_empty();
        let bias = self.bias.as_ref().map(|bias| bias.as_loaded());
        let (true, Some(weight), Some(terms)) = (linear, self.weight.as_loaded(), self.keyed(pass, terms)) else {
            return Ok(None);
        };
        match bias {
            Some(None) => Ok(None),
            Some(Some(bias)) => Ok(corrected_linear(x, &weight, Some(&bias), terms)?),
            None => Ok(corrected_linear(x, &weight, None, terms)?),
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
        match self.correction() {
            Some(correction) => match correction.terms() {
                Some(terms) => BaseView(self).forward_with(pass, x, terms),
                None => correction.apply(pass, x, &BaseView(self)),
            },
            None => self.base(x, self.bias.as_deref()),
        }
    }

    /// A convolution with what stands around it, in one piece where nothing corrects it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn forward_within(&self, pass: &Pass, x: &Tensor, around: &Around<'_>) -> Result<Tensor> {
        match (self.correction(), self.site.kind) {
            (None, SiteKind::Conv2d { stride, padding, .. }) => {
                let bias = self.bias.as_ref().map(|bias| bias.value());
                Ok(ops::conv2d::conv2d_within(x, &self.weight.value(), bias.as_ref(), stride, padding, around)?)
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
        let (weight, bias) = (self.weight.value(), self.bias.as_ref().map(|bias| bias.value()));
        let trainable = weight.track_op() || bias.as_ref().is_some_and(Tensor::track_op);
        if trainable || self.correction().is_some() {
            return Ok(HeadLoss::of_logits(&self.forward(pass, x)?, labels)?);
        }
        Ok(ops::head_loss(x, &weight, bias.as_ref(), labels)?)
    }

    fn base(&self, x: &Tensor, bias: Option<&Parameter>) -> Result<Tensor> {
        let bias_value = bias.map(Parameter::value);
        let weight = self.weight.value();
        Ok(match self.site.kind {
            SiteKind::Linear => {
                let trainable = weight.track_op() || bias_value.as_ref().is_some_and(Tensor::track_op);
                if trainable {
                    ops::linear::linear(x, &weight, bias_value.as_ref())?
                } else {
                    ops::linear::frozen_linear(x, &weight, bias_value.as_ref())?
                }
            }
            SiteKind::Conv2d { stride, padding, .. } => {
                ops::conv2d::conv2d(x, &weight, bias_value.as_ref(), stride, padding)?
            }
            SiteKind::Embedding => {
                let rows = ops::select_rows(&weight, &x.flatten_all()?.to_vec1::<u32>()?)?;
                let mut dims = x.dims().to_vec();
                dims.push(self.site.output);
                rows.to_dtype(self.weight.frozen().dtype())?.reshape(dims)?
            }
        })
    }

    /// One term's share of the output in f32; `None` where no token of this pass is its own.
    ///
    /// A term for one request computes with that request's rows alone, so that nothing in its factors, not even what is
    /// no number, can reach the rows of others.
    fn term(&self, pass: &Pass, x: &Tensor, number: usize, term: &LowRank) -> Result<Option<Tensor>> {
        let dropped = |x: Tensor| -> Result<Tensor> {
            match self.dropout_key(pass, number) {
                Some(key) => Ok(ops::dropout(&x, term.dropout, key)?),
                None => Ok(x),
            }
        };
        let (hidden, own, mut dims) = match self.site.kind {
            SiteKind::Linear => {
                let rows = dropped(x.to_dtype(DType::F32)?)?.reshape(((), self.site.input))?;
                let own = self.own_rows(pass, term, rows.dim(0)?)?;
                let rows = match &own {
                    Some(own) if own.is_empty() => return Ok(None),
                    Some(own) => ops::select_rows(&rows, own)?,
                    None => rows,
                };
                (rows.matmul(&term.a.t()?)?, own, x.dims()[..x.rank() - 1].to_vec())
            }
            SiteKind::Embedding => {
                let mut ids = x.flatten_all()?.to_vec1::<u32>()?;
                let own = self.own_rows(pass, term, ids.len())?;
                match &own {
                    Some(own) if own.is_empty() => return Ok(None),
                    Some(own) => ids = own.iter().map(|row| ids[*row as usize]).collect(),
                    None => {}
                }
                (ops::select_rows(&term.a.t()?.contiguous()?, &ids)?, own, x.dims().to_vec())
            }
            SiteKind::Conv2d { stride, padding, .. } => {
                if term.request.is_some() {
                    let path = self.site.path.to_string();
                    return Err(ModelError::RoutedConvolution { path }.into());
                }
                let x = dropped(x.to_dtype(DType::F32)?)?;
                let hidden = ops::conv2d::conv2d(&x, &term.a, None, stride, padding)?;
                return Ok(Some(ops::conv2d::conv2d(&hidden, &(&term.b * term.scale)?, None, 1, 0)?));
            }
        };
        let mut delta = (hidden.matmul(&term.b.t()?)? * term.scale)?;
        let rows: usize = dims.iter().product();
        dims.push(self.site.output);
        if let Some(own) = own {
            // Adding minus zero leaves every bit of the other rows as it is; zero would turn minus zero over.
            let elsewhere = Tensor::full(-0f32, (rows, self.site.output), delta.device())?;
            let own = Tensor::from_vec(own, delta.dim(0)?, delta.device())?;
            delta = elsewhere.index_add(&own, &delta, 0)?;
        }
        Ok(Some(delta.reshape(dims)?))
    }

    /// The rows of this pass that a term serves, in order; `None`: all of `rows`.
    fn own_rows(&self, pass: &Pass, term: &LowRank, rows: usize) -> Result<Option<Vec<u32>>> {
        let Some(request) = term.request else { return Ok(None) };
        let mut own = vec![false; rows];
        for route in pass.routes(self.site.part).iter().filter(|route| route.request == request) {
            let Some(tokens) = own.get_mut(route.tokens.clone()) else {
                let expected = format!("token ranges within the {rows} rows of `{}`", self.site.path);
                let got = vec![route.tokens.start, route.tokens.end];
                return Err(ModelError::Shape { what: "routes", expected, got }.into());
            };
            tokens.fill(true);
        }
        Ok(Some((0u32..).zip(own).filter_map(|(row, own)| own.then_some(row)).collect()))
    }
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

#[cfg(test)]
mod tests;
