//! A block as one node of candle's tape.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::backward::backward;
use super::forward::{Angles, Corrections, Keep, Plan, Saved, forward};
use super::routed::Routed;
use super::sink::{Sink, Sinks};
use super::thin::{SiteForm, ThinPlan};
use super::view::{BlockView, LinearView, NormView};
use crate::kernel::attention::{Heads, Segment};
use crate::kernel::{Rows, SumOrder};
use crate::model::decoder::{Cached, LayerCache};
use crate::ops::rotary::Rotary;
use crate::ops::values::{Stored, with_slices};
use crate::ops::weight::with_weights;
use crate::ops::{AttentionMask, Weight, is_composed};
use crate::parameter::Parameter;
use crate::pass::{Mixture, Pass, Routing};
use crate::site::Projection;

/// A norm of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockNorm<'a> {
    /// `[width]`.
    pub(crate) weight: &'a Parameter,
    /// `[width]`; a layer norm has one, a root-mean-square norm none.
    pub(crate) bias: Option<&'a Parameter>,
    /// Added to the variance.
    pub(crate) eps: f64,
}

/// The maps of a block's MLP.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mlp<'a> {
    /// `down(silu(gate)·up)`.
    Gated([&'a Projection; 3]),
    /// `fc2(gelu(fc1))`.
    Gelu([&'a Projection; 2]),
}

impl<'a> Mlp<'a> {
    fn maps(&self) -> &[&'a Projection] {
        match self {
            Mlp::Gated(maps) => maps,
            Mlp::Gelu(maps) => maps,
        }
    }
}

/// The tokens of one pass: where they stand and whom they see.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    /// Rotary tables of the decoder.
    pub(crate) rotary: Option<Rotary>,
    /// Whom a token sees.
    pub(crate) mask: AttentionMask,
    /// Tokens (rows of `batch · sequence`) that leave the block; all where absent.
    pub(crate) kept: Option<Arc<[u32]>>,
    /// Whether what the backward needs is computed again there instead of kept.
    pub(crate) recompute: bool,
}

impl Extent {
    fn angles(&self) -> Option<Angles<'_>> {
        self.rotary.as_ref().map(|rotary| {
            let (cosines, sines) = rotary.tables();
            Angles { cosines, sines }
        })
    }
}

/// Said of masks that [`Block::of`]'s callers send elsewhere.
const HOLES: &str = "a fused block takes no mask with holes between the keys of a row";

/// A norm as it is computed.
#[derive(Debug)]
struct Norm {
    /// Weight and perhaps bias, f32.
    parameters: Vec<Tensor>,
    eps: f32,
    /// Where the flat gradient has that of each parameter, if it is trained.
    gradients: [Option<usize>; 2],
}

/// A block whose maps stand as loaded and whose corrections are low-rank terms, ready to be computed. Its norms may be trained.
#[derive(Debug)]
pub(crate) struct Block {
    norms: [Norm; 2],
    /// Weight and perhaps bias of q, k, v, o and the MLP's maps.
    linears: Vec<(Weight, Option<Tensor>)>,
    thin: ThinPlan,
    factors: Option<Tensor>,
    /// What a pass with routes computes with instead of the above.
    routed: Option<Routed>,
    heads: Heads,
    dtype: DType,
    order: SumOrder,
}

impl BlockNorm<'_> {
    /// Weight and bias under a mixture, f32; a norm without a bias has its weight twice. `None` where no slot of it changes one.
    ///
    /// # Errors
    /// A slot that the model does not hold.
    pub(crate) fn blended(&self, mixture: &Mixture) -> crate::error::Result<Option<[Tensor; 2]>> {
        let of = |parameter: &Parameter| parameter.blended(mixture);
        let (weight, bias) = (of(self.weight)?, self.bias.map(of).transpose()?.flatten());
        if weight.is_none() && bias.is_none() {
            return Ok(None);
        }
        let value = |own: &Parameter, blended: Option<Tensor>| -> Result<Tensor> {
            blended.unwrap_or_else(|| own.value()).to_dtype(DType::F32)?.detach().contiguous()
        };
        let weight = value(self.weight, weight)?;
        let bias = match self.bias {
            Some(own) => value(own, bias)?,
            None => weight.clone(),
        };
        Ok(Some([weight, bias]))
    }
}

impl Norm {
    /// The norm; what is trained of it goes `beside` the factors, and its place counts from the first value there.
    fn of(norm: BlockNorm<'_>, beside: &mut Vec<Tensor>) -> Result<Self> {
        let mut parameters = Vec::with_capacity(2);
        let mut gradients = [None; 2];
        for (parameter, gradient) in [Some(norm.weight), norm.bias].into_iter().flatten().zip(&mut gradients) {
            let value = parameter.value().to_dtype(DType::F32)?;
            parameters.push(value.detach().contiguous()?);
            if value.track_op() {
                *gradient = Some(beside.iter().map(Tensor::elem_count).sum());
                beside.push(value);
            }
        }
        Ok(Self { parameters, eps: norm.eps as f32, gradients })
    }

    fn view<'a>(&self, parameters: &[&'a [f32]]) -> NormView<'a> {
        let bias = parameters.get(1).copied();
        NormView { weight: parameters[0], bias, eps: self.eps, gradients: self.gradients }
    }
}

impl Block {
    /// The block, or `None` where only the operation by operation path will do: another device or a composed pass, a
    /// trainable copy of a map's parameter, a Kronecker product beside factors on the output, or routes that a gradient would
    /// have to go through.
    ///
    /// # Errors
    /// Factors that cannot be laid out.
    pub(crate) fn of(
        pass: &Pass,
        x: &Tensor,
        norms: [BlockNorm<'_>; 2],
        attention: [&Projection; 4],
        mlp: Mlp<'_>,
        heads: Heads,
    ) -> crate::error::Result<Option<Self>> {
        let dtype = x.dtype();
        if is_composed(x.device()) || !matches!(dtype, DType::F32 | DType::BF16) {
            return Ok(None);
        }
        let frozen = |weight: &Parameter| weight.as_loaded().filter(|value| value.meets(dtype)).cloned();
        let frozen_bias = |bias: Option<&Parameter>| match bias {
            Some(bias) => bias.as_loaded().filter(|value| value.dtype() == dtype).map(|value| Some(value.values())),
            None => Some(None),
        };
        let maps = || attention.iter().chain(mlp.maps()).copied();
        let mut linears = Vec::with_capacity(7);
        for projection in maps() {
            let Some(weight) = frozen(projection.weight()) else { return Ok(None) };
            let Some(bias) = frozen_bias(projection.bias()) else { return Ok(None) };
            linears.push((weight, bias));
        }
        let routed = match pass.routing(attention[0].site().part) {
            Some(routing) => match routed(routing, x, norms, maps())? {
                Some(routed) => Some(routed),
                None => return Ok(None),
            },
            None => None,
        };
        let form = |projection: &Projection| match routed {
            Some(_) => Some(SiteForm::default()),
            None => projection.fusable(pass),
        };
        let Some(sites) = maps().map(form).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let mut beside = Vec::new();
        let [first, second] = norms.map(|norm| Norm::of(norm, &mut beside));
        let (mut norms, (thin, factors)) = ([first?, second?], ThinPlan::of(&sites, &beside)?);
        for place in norms.iter_mut().flat_map(|norm| norm.gradients.iter_mut().flatten()) {
            *place += thin.beside();
        }
        Ok(Some(Self { norms, linears, thin, factors, routed, heads, dtype, order: pass.order }))
    }

    /// `x: [batch, sequence, hidden]` to `[batch, sequence, hidden]`, or to `[kept, hidden]`.
    ///
    /// # Errors
    /// An input, rotary tables or segments that do not fit.
    pub(crate) fn forward(self, x: &Tensor, extent: Extent) -> Result<Tensor> {
        let (batch, sequence, _) = self.fit(x, extent.rotary.as_ref())?;
        let Some(segments) = extent.mask.spans(batch, sequence, sequence) else { bail!("{HOLES}") };
        if self.routed.is_some() {
            let plan = self.plan(&segments, &extent);
            return match self.dtype {
                DType::F32 => self.at_once::<f32>(x, &plan, &mut ()),
                _ => self.at_once::<bf16>(x, &plan, &mut ()),
            };
        }
        let factors = self.factors.clone();
        let tracked = x.track_op() || factors.as_ref().is_some_and(Tensor::track_op);
        let x = &x.contiguous()?;
        let node = Node { block: self, extent, segments, tracked, saved: Mutex::new(None) };
        match (factors, tracked) {
            (Some(factors), true) => x.apply_op2(&factors, Fused(node)),
            (Some(factors), false) => x.apply_op2_no_bwd(&factors, &Fused(node)),
            (None, true) => x.apply_op1(Fused(node)),
            (None, false) => x.apply_op1_no_bwd(&Fused(node)),
        }
    }

    /// The sizes of an input that the block and the rotary tables take.
    fn fit(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<(usize, usize, usize)> {
        let (batch, sequence, width) = x.dims3()?;
        let expected = self.norms[0].parameters[0].elem_count();
        if width != expected {
            bail!("input of shape {:?} does not fit a block of width {expected}", x.dims());
        }
        if let Some(rotary) = rotary {
            rotary.fit(batch, sequence, self.heads.head_dim)?;
        }
        Ok((batch, sequence, width))
    }

    /// As [`Block::forward`] without history, keys and values going through a cache: `x` continues what it holds.
    /// The extent's mask covers all keys. Returns `[batch, sequence, hidden]`, or `[kept, hidden]`.
    ///
    /// # Errors
    /// An input or rotary tables that do not fit, or a cache of another batch or type.
    pub(crate) fn forward_cached(&self, x: &Tensor, extent: &Extent, cache: &mut LayerCache) -> Result<Tensor> {
        match self.dtype {
            DType::F32 => self.cached_typed::<f32>(x, extent, cache),
            _ => self.cached_typed::<bf16>(x, extent, cache),
        }
    }

    fn cached_typed<E: Cached>(&self, x: &Tensor, extent: &Extent, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, sequence, _) = self.fit(x, extent.rotary.as_ref())?;
        let store = E::store(cache, batch, self.heads.kv_heads, self.heads.head_dim)?;
        let total = store.len() + sequence;
        let Some(spans) = extent.mask.spans(batch, sequence, total) else { bail!("{HOLES}") };
        self.at_once::<E>(x, &self.plan(&[], extent), &mut Sink { store, sequence, spans })
    }

    /// As [`Block::forward_cached`] of one token a row, `x: [rows, 1, hidden]`, each of which continues a cache of its own.
    ///
    /// # Errors
    /// An input or rotary tables that do not fit, or a cache of another batch than one row or of another type.
    pub(crate) fn forward_each(&self, x: &Tensor, rotary: &Rotary, caches: Vec<&mut LayerCache>) -> Result<Tensor> {
        match self.dtype {
            DType::F32 => self.each_typed::<f32>(x, rotary, caches),
            _ => self.each_typed::<bf16>(x, rotary, caches),
        }
    }

    fn each_typed<E: Cached>(&self, x: &Tensor, rotary: &Rotary, caches: Vec<&mut LayerCache>) -> Result<Tensor> {
        let (rows, sequence, _) = self.fit(x, Some(rotary))?;
        if (rows, sequence) != (caches.len(), 1) {
            bail!("{rows} rows of {sequence} tokens do not continue {} caches by one token each", caches.len());
        }
        let stores = caches.into_iter().map(|cache| E::store(cache, 1, self.heads.kv_heads, self.heads.head_dim));
        let mut sinks = Sinks(stores.collect::<Result<_>>()?);
        let (mask, rotary) = (AttentionMask::causal(), Some(rotary.clone()));
        let extent = Extent { rotary, mask, kept: None, recompute: false };
        self.at_once::<E>(x, &self.plan(&[], &extent), &mut sinks)
    }

    fn plan<'a>(&'a self, segments: &'a [Segment], extent: &'a Extent) -> Plan<'a> {
        Plan { heads: &self.heads, segments, angles: extent.angles(), kept: extent.kept.as_deref() }
    }

    /// The output for `x: [batch, sequence, hidden]` without a node on the tape.
    fn at_once<E: Stored>(&self, x: &Tensor, plan: &Plan<'_>, cache: &mut impl Keep<E>) -> Result<Tensor> {
        let (batch, sequence, width) = x.dims3()?;
        let x = x.contiguous()?;
        let y = self.with_view::<E, _>(&x, |view, x, flat| {
            let x = Rows::dense(x, batch * sequence, width);
            let thin;
            let y = match &self.routed {
                None => {
                    thin = self.thin.read(flat);
                    forward(view, Corrections::Thin(&thin), plan, x, cache)?.0
                }
                Some(routed) => {
                    let kept = plan.kept.map(|kept| routed.picked(kept));
                    routed.with_view(kept.as_deref(), view, |routed| {
                        Ok(forward(view, Corrections::Routed(routed), plan, x, cache)?.0)
                    })?
                }
            };
            Ok(y.to_dense())
        })?;
        match plan.kept {
            Some(kept) => Tensor::from_vec(y, (kept.len(), width), x.device()),
            None => Tensor::from_vec(y, (batch, sequence, width), x.device()),
        }
    }

    /// Calls `f` with the block's parameters.
    fn with_parameters<E: Stored, T>(&self, f: impl FnOnce(&BlockView<'_, E>) -> Result<T>) -> Result<T> {
        let weights: Vec<&Weight> = self.linears.iter().map(|(weight, _)| weight).collect();
        let biases: Vec<&Tensor> = self.linears.iter().filter_map(|(_, bias)| bias.as_ref()).collect();
        let norms: Vec<&Tensor> = self.norms.iter().flat_map(|norm| &norm.parameters).collect();
        with_weights::<E, _>(&weights, |weights| {
            with_slices::<E, _>(&biases, |biases| {
                let mut biases = biases.iter().copied();
                let mut of = |bias: &Option<Tensor>| bias.as_ref().and_then(|_| biases.next());
                let linears = self.linears.iter().zip(weights);
                let linears =
                    linears.map(|((_, bias), weight)| LinearView { weight: *weight, bias: of(bias) }).collect();
                with_slices::<f32, _>(&norms, |slices| {
                    let (first, second) = slices.split_at(self.norms[0].parameters.len());
                    let norms = [self.norms[0].view(first), self.norms[1].view(second)];
                    f(&BlockView { norms: Some(norms), linears, order: self.order })
                })
            })
        })
    }

    /// Calls `f` with the block's parameters, the values of `x`, and the flat factors.
    fn with_view<E: Stored, T>(
        &self,
        x: &Tensor,
        f: impl FnOnce(&BlockView<'_, E>, &[E], &[f32]) -> Result<T>,
    ) -> Result<T> {
        let factors: Vec<&Tensor> = self.factors.iter().collect();
        self.with_parameters::<E, _>(|view| {
            with_slices::<E, _>(&[x], |x| {
                with_slices::<f32, _>(&factors, |flat| f(view, x[0], flat.first().copied().unwrap_or(&[])))
            })
        })
    }
}

/// What a pass with routes computes with in a block; `None` where only the operation by operation path will do.
fn routed<'a>(
    routing: &Routing,
    x: &Tensor,
    norms: [BlockNorm<'_>; 2],
    maps: impl Iterator<Item = &'a Projection>,
) -> crate::error::Result<Option<Routed>> {
    let (batch, sequence, _) = x.dims3()?;
    let spans = routing.over(batch * sequence)?;
    let mut sites = Vec::with_capacity(7);
    for projection in maps {
        let blends = projection.blends(routing.mixtures())?;
        if x.track_op() || projection.is_intercepted() {
            return Ok(None);
        }
        sites.push(blends);
    }
    let of_norm = |norm: BlockNorm<'_>| -> crate::error::Result<Vec<Option<[Tensor; 2]>>> {
        routing.mixtures().iter().map(|mixture| norm.blended(mixture)).collect()
    };
    let [first, second] = norms.map(of_norm);
    Ok(Some(Routed::of(spans, sites, [first?, second?])))
}

/// A block met by a batch.
struct Node {
    block: Block,
    extent: Extent,
    segments: Vec<Segment>,
    /// Whether a backward may follow.
    tracked: bool,
    /// What the forward left, a [`Saved`] of the block's type; taken by the backward, absent when it is to recompute.
    saved: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Node {
    fn plan(&self) -> Plan<'_> {
        self.block.plan(&self.segments, &self.extent)
    }

    fn forward<E: Stored>(&self, x: &[E], flat: &[f32], layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let width = dims.last().copied().unwrap_or(0);
        // Parameters are read again here: the tape hands storages, not tensors, to a forward.
        let y = self.block.with_parameters::<E, _>(|view| {
            let x = Rows::dense(x, x.len() / width.max(1), width);
            let thin = self.block.thin.read(flat);
            let (y, saved) = forward(view, Corrections::Thin(&thin), &self.plan(), x, &mut ())?;
            if self.tracked && !self.extent.recompute {
                *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(saved));
            }
            Ok(y)
        })?;
        let shape = match &self.extent.kept {
            Some(kept) => Shape::from((kept.len(), width)),
            None => Shape::from(dims),
        };
        Ok((E::storage(y.to_dense()), shape))
    }

    fn forward_any(&self, x: &CpuStorage, layout: &Layout, flat: &[f32]) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a block's input has gaps") };
        match x {
            CpuStorage::F32(x) => self.forward(&x[start..end], flat, layout),
            CpuStorage::BF16(x) => self.forward(&x[start..end], flat, layout),
            _ => bail!("a block computes in f32 or bf16"),
        }
    }

    /// Gradients of the input, where it wants one, and of the factors.
    fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Vec<f32>)> {
        match self.block.dtype {
            DType::F32 => self.backward_typed::<f32>(x, dy),
            _ => self.backward_typed::<bf16>(x, dy),
        }
    }

    fn backward_typed<E: Stored>(&self, x: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Vec<f32>)> {
        let dy = dy.contiguous()?;
        let width = x.dim(candle_core::D::Minus1)?;
        let plan = self.plan();
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut gradients = vec![0f32; self.block.thin.len()];
        let dx = self.block.with_view::<E, _>(x, |view, x_values, flat| {
            with_slices::<E, _>(&[&dy], |dy| {
                let thin = self.block.thin.read(flat);
                let x_rows = Rows::dense(x_values, x_values.len() / width.max(1), width);
                let saved: Box<Saved<E>> = match saved.and_then(|saved| saved.downcast().ok()) {
                    Some(saved) => saved,
                    None => Box::new(forward(view, Corrections::Thin(&thin), &plan, x_rows, &mut ())?.1),
                };
                let dy = Rows::dense(dy[0], dy[0].len() / width.max(1), width);
                Ok(backward(view, &thin, &plan, x_rows, &saved, dy, &mut gradients, x.track_op()))
            })
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx.to_dense(), x.shape(), x.device())).transpose()?;
        Ok((dx, gradients))
    }
}

/// The node as candle sees it.
struct Fused(Node);

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward_any(x, layout, &[])
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward(x, dy)?.0)
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, flat: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(flat), Some((start, end))) = (flat, lf.contiguous_offsets()) else {
            bail!("a block's factors are f32 without gaps");
        };
        self.0.forward_any(x, lx, &flat[start..end])
    }

    fn bwd(&self, x: &Tensor, flat: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, gradients) = self.0.backward(x, dy)?;
        let gradients =
            if flat.track_op() { Some(Tensor::from_vec(gradients, flat.shape(), flat.device())?) } else { None };
        Ok((dx, gradients))
    }
}
