//! Fused blocks and sites against the same composed of candle's own operations.
//!
//! Sizes differ from each other, no B is zero, and before each fused run the store of buffers is filled with values that
//! are no numbers, so that nothing is read before it is written.

mod agreement;
mod cache;
mod contracts;
mod differences;
mod kept;
mod levels;
mod linear;
mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};

use super::*;
use crate::config::JanusConfig;
use crate::kernel::attention::Heads;
use crate::kernel::{Element, Matrix};
use crate::model::Janus;
use crate::noise;
use crate::ops::rotary::Rotary;
use crate::ops::{AttentionMask, check, with_composed};
use crate::pass::{NoiseKey, Pass};
use crate::site::{Correction, Kronecker, LowRank, Term};
use crate::testing::{low_rank_terms, of_low_rank, shaped};

/// Widths that no two have in common: decoder 24, heads 6 of 10 over 2, MLP 34; vision 20, 2 heads of 10, MLP 28.
fn odd() -> JanusConfig {
    let mut config = JanusConfig::shape("janus-tiny").unwrap();
    let text = &mut config.text;
    (text.hidden_size, text.intermediate_size, text.head_dim) = (24, 34, 10);
    (text.num_attention_heads, text.num_key_value_heads) = (6, 2);
    (config.vision.hidden_size, config.vision.intermediate_size) = (20, 28);
    config.vision.projection_dim = 24;
    (config.vq.projection_dim, config.vq.image_token_embed_dim) = (24, 24);
    config
}

/// [`odd`] with rows of queries, keys and MLP that are whole pages in f32 or in bf16: matrices with gaps.
fn crowded() -> JanusConfig {
    let mut config = odd();
    let text = &mut config.text;
    (text.intermediate_size, text.head_dim) = (1024, 256);
    (text.num_attention_heads, text.num_key_value_heads) = (4, 2);
    config
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decoder,
    Vision,
}

use Kind::{Decoder, Vision};

impl Kind {
    /// Path of a layer, and the names of its linear maps, q, k, v and o first.
    fn names(self, layer: usize) -> (String, &'static [&'static str]) {
        match self {
            Decoder => (
                format!("model.language_model.layers.{layer}"),
                &[
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                    "self_attn.v_proj",
                    "self_attn.o_proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.down_proj",
                ],
            ),
            Vision => (
                format!("model.vision_model.encoder.layers.{layer}"),
                &[
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                    "self_attn.v_proj",
                    "self_attn.projection_layer",
                    "mlp.fc1",
                    "mlp.fc2",
                ],
            ),
        }
    }

    /// Paths of a layer's linear maps.
    fn paths(self, layer: usize) -> Vec<String> {
        let (path, names) = self.names(layer);
        names.iter().map(|name| format!("{path}.{name}")).collect()
    }

    fn width(self, config: &JanusConfig) -> usize {
        match self {
            Decoder => config.text.hidden_size,
            Vision => config.vision.hidden_size,
        }
    }
}

/// Rank, scale and dropout of a term.
#[derive(Debug, Clone, Copy)]
struct Form(usize, f64, f64);

/// Variables by name: the input, and every A and B.
type Vars = BTreeMap<String, Var>;

/// Attaches terms of these forms to a site, their factors as variables.
fn attach(model: &Janus, path: &str, forms: &[Form], vars: &mut Vars) {
    let projection = model.projections().get(path).unwrap();
    let (input, output) = (projection.site().input, projection.site().output);
    let mut terms = Vec::new();
    for (number, Form(rank, scale, dropout)) in forms.iter().enumerate() {
        let mut factor = |name: &str, shape: [usize; 2]| {
            let name = format!("{name}{number} of {path}");
            let values = (check::tensor(&shape, noise::key_of(&name)) * 0.5).unwrap();
            vars.insert(name.clone(), Var::from_tensor(&values).unwrap());
            vars[&name].as_tensor().clone()
        };
        let (a, b) = (factor("A", [*rank, input]), factor("B", [output, *rank]));
        terms.push(LowRank { a, b, scale: *scale, dropout: *dropout });
    }
    projection.attach(of_low_rank(terms)).unwrap();
}

/// Which vectors a correction has besides its terms.
#[derive(Debug, Clone, Copy)]
struct Vectors {
    input: bool,
    output: bool,
    bias: bool,
}

const OUTPUT: Vectors = Vectors { input: false, output: true, bias: false };
const SCALED: Vectors = Vectors { input: false, output: true, bias: true };
const INPUT: Vectors = Vectors { input: true, output: false, bias: false };
const ALL: Vectors = Vectors { input: true, output: true, bias: true };

/// Adds vectors to the correction of a site, as variables: factors near one, one of them nothing.
fn attach_vectors(model: &Janus, path: &str, vectors: Vectors, vars: &mut Vars) {
    let projection = model.projections().get(path).unwrap();
    let (input, output) = (projection.site().input, projection.site().output);
    let mut vector = |name: &str, length: usize, offset: f64| {
        let name = format!("{name} of {path}");
        let values = check::tensor(&[length], noise::key_of(&name)).affine(0.4, offset).unwrap();
        let mut values: Vec<f32> = values.to_vec1().unwrap();
        if offset != 0.0 {
            values[length / 2] = 0.0;
        }
        let values = Tensor::from_vec(values, length, model.device()).unwrap();
        vars.insert(name.clone(), Var::from_tensor(&values).unwrap());
        Some(vars[&name].as_tensor().clone())
    };
    let before = projection.correction().map(|correction| (*correction).clone()).unwrap_or_default();
    let correction = Correction {
        input: if vectors.input { vector("in", input, 1.0) } else { None },
        output: if vectors.output { vector("out", output, 1.0) } else { None },
        bias: if vectors.bias { vector("bias", output, 0.0) } else { None },
        ..before
    };
    projection.attach(Some(Arc::new(correction))).unwrap();
}

/// Adds a Kronecker product to the correction of a site, its factors as variables.
fn attach_product(model: &Janus, path: &str, vars: &mut Vars) {
    let projection = model.projections().get(path).unwrap();
    let (input, output) = (projection.site().input, projection.site().output);
    let mut factor = |name: &str, shape: [usize; 2]| {
        let name = format!("{name} of {path}");
        let values = (check::tensor(&shape, noise::key_of(&name)) * 0.5).unwrap();
        vars.insert(name.clone(), Var::from_tensor(&values).unwrap());
        vars[&name].as_tensor().clone()
    };
    // Every width here is even.
    let (left, right) = (factor("left", [2, input / 2]), factor("right", [output / 2, 2]));
    let mut correction = projection.correction().map(|correction| (*correction).clone()).unwrap_or_default();
    correction.terms.push(Term::Kronecker(Kronecker { left, right, scale: 0.7 }));
    projection.attach(Some(Arc::new(correction))).unwrap();
}

/// A block of a model and what it is given.
struct Case {
    model: Janus,
    kind: Kind,
    x: Tensor,
    pass: Pass,
    mask: AttentionMask,
    vars: Vars,
}

/// Dropout active.
fn training() -> Pass {
    Pass::training(NoiseKey { seed: 3, step: 5, micro_batch: 2 })
}

/// The same, all of a block computed again for its backward.
fn recomputing() -> Pass {
    let mut pass = training();
    pass.recompute = true;
    pass
}

impl Case {
    /// A block without terms: `batch` rows of `sequence` tokens, the decoder causal, the input a variable.
    fn new(config: &JanusConfig, kind: Kind, dtype: DType, [batch, sequence]: [usize; 2]) -> Self {
        let x = check::tensor(&[batch, sequence, kind.width(config)], 17).to_dtype(DType::BF16).unwrap();
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        Self {
            model: shaped(config, dtype),
            kind,
            x: x.as_tensor().clone(),
            pass: Pass::inference(),
            mask: if kind == Decoder { AttentionMask::causal() } else { AttentionMask::full() },
            vars: Vars::from([("x".into(), x)]),
        }
    }

    /// A whole decoder of two layers with terms of these forms on every site of its layers.
    fn decoder(dtype: DType, shape: [usize; 2], forms: &[Form]) -> Self {
        let mut case = Self::new(&odd(), Decoder, dtype, shape);
        for path in (0..2).flat_map(|layer| Decoder.paths(layer)) {
            attach(&case.model, &path, forms, &mut case.vars);
        }
        case
    }

    /// Terms of these forms on the sites of these numbers.
    fn with_terms(mut self, sites: &[usize], forms: &[Form]) -> Self {
        for site in sites {
            attach(&self.model, &self.kind.paths(0)[*site], forms, &mut self.vars);
        }
        self
    }

    /// Terms of these forms on every site.
    fn with_terms_everywhere(self, forms: &[Form]) -> Self {
        let all: Vec<usize> = (0..self.kind.names(0).1.len()).collect();
        self.with_terms(&all, forms)
    }

    /// A Kronecker product on every site.
    fn with_products_everywhere(mut self) -> Self {
        for path in self.kind.paths(0) {
            attach_product(&self.model, &path, &mut self.vars);
        }
        self
    }

    /// Vectors on the sites of these numbers.
    fn with_vectors(mut self, sites: &[usize], vectors: Vectors) -> Self {
        for site in sites {
            let path = &self.kind.paths(0)[*site];
            // Without rotation a bias of keys moves all scores of a query alike, which attention does not see.
            let is_seen = self.kind == Decoder || !path.ends_with("k_proj");
            let vectors = Vectors { bias: vectors.bias && is_seen, ..vectors };
            attach_vectors(&self.model, path, vectors, &mut self.vars);
        }
        self
    }

    /// Vectors on every site.
    fn with_vectors_everywhere(self, vectors: Vectors) -> Self {
        let all: Vec<usize> = (0..self.kind.names(0).1.len()).collect();
        self.with_vectors(&all, vectors)
    }

    /// Copies of its norms' parameters as variables: of the first norm all, of the second one of them.
    fn with_trained_norms(mut self) -> Self {
        let (path, _) = self.kind.names(0);
        let names: &[&str] = match self.kind {
            Decoder => &["input_layernorm.weight", "post_attention_layernorm.weight"],
            Vision => &["layer_norm1.weight", "layer_norm1.bias", "layer_norm2.bias"],
        };
        for name in names.iter().map(|name| format!("{path}.{name}")) {
            let width = [self.kind.width(self.model.config())];
            let values = (check::tensor(&width, noise::key_of(&name)) * 0.5).unwrap().affine(1.0, 0.7).unwrap();
            let var = Var::from_tensor(&values).unwrap();
            self.model.parameters().substitute(&name, Some(var.as_tensor().clone())).unwrap();
            self.vars.insert(name, var);
        }
        self
    }

    /// An input without history.
    fn untracked(mut self) -> Self {
        self.x = self.x.detach();
        self
    }

    /// Tables for positions that begin anew in each row and each segment.
    fn rotary(&self) -> Rotary {
        let (batch, sequence, _) = self.x.dims3().unwrap();
        let starts = self.mask.segments.as_deref().unwrap_or(&[0]);
        let position = |token: usize| token - starts.iter().rfind(|start| **start <= token).unwrap();
        let positions: Vec<u32> = (0..batch).flat_map(|_| (0..sequence).map(|t| position(t) as u32)).collect();
        self.model.decoder().rotary(&positions, batch)
    }

    fn heads(&self) -> Heads {
        let config = self.model.config();
        let (heads, kv_heads, head_dim) = match self.kind {
            Decoder => (config.text.num_attention_heads, config.text.num_key_value_heads, config.text.head_dim),
            Vision => {
                let heads = config.vision.num_attention_heads;
                (heads, heads, config.vision.hidden_size / heads)
            }
        };
        Heads { heads, kv_heads, head_dim, causal: self.mask.causal }
    }

    /// The fused block, unless something in it asks for the operations.
    fn block(&self) -> Option<Block> {
        let (path, _) = self.kind.names(0);
        let sites: Vec<_> = self.kind.paths(0).iter().map(|p| &**self.model.projections().get(p).unwrap()).collect();
        let parameter = |name: &str| &**self.model.parameters().get(&format!("{path}.{name}")).unwrap();
        let config = self.model.config();
        let (norms, mlp) = match (self.kind, sites.as_slice()) {
            (Decoder, [.., gate, up, down]) => {
                let norm = |name: &str| BlockNorm {
                    weight: parameter(&format!("{name}.weight")),
                    bias: None,
                    eps: config.text.rms_norm_eps,
                };
                (["input_layernorm", "post_attention_layernorm"].map(norm), Mlp::Gated([gate, up, down]))
            }
            (Vision, [.., fc1, fc2]) => {
                let norm = |name: &str| BlockNorm {
                    weight: parameter(&format!("{name}.weight")),
                    bias: Some(parameter(&format!("{name}.bias"))),
                    eps: config.vision.layer_norm_eps,
                };
                (["layer_norm1", "layer_norm2"].map(norm), Mlp::Gelu([fc1, fc2]))
            }
            _ => unreachable!(),
        };
        Block::of(&self.pass, &self.x, norms, [sites[0], sites[1], sites[2], sites[3]], mlp, self.heads()).unwrap()
    }

    fn extent(&self) -> Extent {
        Extent {
            rotary: (self.kind == Decoder).then(|| self.rotary()),
            mask: self.mask.clone(),
            kept: None,
            recompute: self.pass.recompute,
        }
    }

    /// The output of the fused block.
    fn fused(&self) -> Tensor {
        poison();
        self.block().expect("nothing asks for the operations").forward(&self.x, self.extent()).unwrap()
    }

    /// The output of the layer, by whatever way it takes.
    fn layer(&self) -> Tensor {
        match self.kind {
            Decoder => {
                let layer = &self.model.decoder().layers()[0];
                layer.forward(&self.pass, &self.x, &self.rotary(), &self.mask, None).unwrap()
            }
            Vision => self.model.vision().unwrap().layers()[0].forward(&self.pass, &self.x).unwrap(),
        }
    }

    /// The fused block's output and gradients.
    fn run_fused(&self) -> Run {
        let y = self.fused();
        poison();
        Run::of(y, &self.vars)
    }

    /// The same composed of candle's own operations.
    fn run_composed(&self) -> Run {
        with_composed(|| Run::of(self.layer(), &self.vars))
    }
}

/// An output, and the gradients of `Σ output·g` (g fixed and uneven) by name, of those variables that have one.
struct Run {
    y: Tensor,
    gradients: BTreeMap<String, Tensor>,
}

impl Run {
    fn of(y: Tensor, vars: &Vars) -> Self {
        let g = check::tensor(y.dims(), 9);
        let loss = (y.to_dtype(DType::F32).unwrap() * g).unwrap().sum_all().unwrap();
        let all = loss.backward().unwrap();
        let gradients = vars.iter().filter_map(|(name, var)| Some((name.clone(), all.get(var)?.clone()))).collect();
        Self { y: y.detach(), gradients }
    }

    /// The output and all gradients by name.
    fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        [("the output", &self.y)].into_iter().chain(self.gradients.iter().map(|(name, t)| (name.as_str(), t)))
    }
}

fn wide(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails unless both have the same values up to `bound` times the largest of each, and the same gradients at all.
#[track_caller]
fn agree(got: &Run, expected: &Run, bound: f32) {
    let names = |run: &Run| run.gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "others have a gradient");
    for ((name, got), (_, expected)) in got.tensors().zip(expected.tensors()) {
        agree_in(name, got, expected, bound);
    }
}

/// Fails unless two tensors have the same values up to `bound` times the largest.
#[track_caller]
fn agree_in(name: &str, got: &Tensor, expected: &Tensor, bound: f32) {
    assert_eq!(got.dims(), expected.dims(), "{name}");
    let (got, expected) = (wide(got), wide(expected));
    let size = expected.iter().fold(0f32, |size, v| size.max(v.abs()));
    assert!(size > 1e-3 || expected.is_empty(), "{name} is next to nothing");
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= bound * size, "{name}, value {i}: got {a}, expected {b}, largest {size}");
    }
}

/// Fails unless all bits are equal.
#[track_caller]
fn same(got: &Run, expected: &Run) {
    assert_eq!(got.gradients.len(), expected.gradients.len());
    for ((name, got), (_, expected)) in got.tensors().zip(expected.tensors()) {
        assert_eq!(got.dims(), expected.dims(), "{name}");
        let bits = |t: &Tensor| wide(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert!(bits(got) == bits(expected), "bits of {name} differ");
    }
}

/// Root-mean-square distance from the truth, relative to the truth's size.
fn distance(got: &Tensor, truth: &Tensor) -> f64 {
    assert_eq!(got.dims(), truth.dims());
    let (got, truth) = (wide(got), wide(truth));
    let squares = |f: &dyn Fn(usize) -> f32| (0..truth.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    (squares(&|i| got[i] - truth[i]) / squares(&|i| truth[i])).sqrt()
}

/// Fails unless, in bf16, output and gradients are on the whole no farther from the f32 truth than twice what they are
/// composed, and each is near it.
///
/// A single factor's gradient of a few tokens has too few roundings for a fair comparison: of all in a run, the mean square
/// is taken. A scale left out or a value dropped otherwise is tens of percent.
#[track_caller]
fn no_farther(got: &Run, composed: &Run, truth: &Run) {
    let names = |run: &Run| run.gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(truth), "others have a gradient");
    let distances = |run: &Run| -> (f64, Vec<f64>) {
        let each = run.gradients.iter().map(|(name, gradient)| distance(gradient, &truth.gradients[name])).collect();
        (distance(&run.y, &truth.y), each)
    };
    let ((output, each), (composed_output, composed_each)) = (distances(got), distances(composed));
    for (name, distance) in names(got).iter().zip(&each) {
        assert!(*distance < 0.1, "{name}: {distance:e} from f32");
    }
    let mean = |each: &[f64]| (each.iter().map(|d| d * d).sum::<f64>() / each.len().max(1) as f64).sqrt();
    let (gradients, composed_gradients) = (mean(&each), mean(&composed_each));
    assert!(output <= 2.0 * composed_output && output < 2e-2, "output: {output:e}, composed {composed_output:e}");
    assert!(gradients <= 2.0 * composed_gradients, "gradients: {gradients:e}, composed {composed_gradients:e}");
}

/// Fills the stores of buffers with values that are no numbers, several buffers of every size that the tests ask for.
fn poison() {
    fn fill<E: Element>() {
        for power in 0..=16 {
            let filled = |_| {
                let mut matrix = Matrix::<E>::new(1, 1 << power);
                matrix.values_mut().fill(E::narrow(f32::NAN));
                matrix
            };
            drop((0..8).map(filled).collect::<Vec<_>>());
        }
    }
    fill::<f32>();
    fill::<half::bf16>();
}
