//! Small models of seeded weights for this crate's tests, in which no norm is one, no bias zero and no B zero.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{Checkpoint, WeightSource, expected_tensors};
use crate::config::{JanusConfig, Layout};
use crate::model::{Janus, Parts};
use crate::noise;
use crate::site::{Correction, LowRank, Term};

/// Values in (-1, 1) that depend on the name and nothing else.
pub(crate) fn named_tensor(name: &str, shape: &[usize]) -> Tensor {
    let (key, count) = (noise::key_of(name), shape.iter().product::<usize>() as u64);
    let values: Vec<f32> = (0..count).map(|i| (noise::uniform(key, i) * 2.0 - 1.0) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A correction of low-rank terms.
pub(crate) fn of_low_rank(terms: impl IntoIterator<Item = LowRank>) -> Option<Arc<Correction>> {
    Some(Arc::new(Correction::of_terms(terms.into_iter().map(Term::LowRank))))
}

/// The low-rank terms of a correction.
pub(crate) fn low_rank_terms(correction: &Correction) -> Vec<LowRank> {
    let own = |term: &Term| match term {
        Term::LowRank(term) => term.clone(),
        Term::Kronecker(_) => panic!("a Kronecker product"),
    };
    correction.terms.iter().map(own).collect()
}

/// Matrices keep the size of a normed input, norm weights are near 1, biases near 0.
fn weight(name: &str, shape: &[usize]) -> Tensor {
    let values = named_tensor(name, shape);
    let fan_in: usize = shape[1..].iter().product();
    let table = ["embed_tokens", "generation_embeddings", "position_embedding", "quantize.embedding"];
    let (factor, offset) = if name.ends_with(".bias") {
        (0.2, 0.0)
    } else if shape.len() == 1 {
        (0.3, 1.0)
    } else if table.iter().any(|table| name.contains(table)) {
        (1.0, 0.0)
    } else {
        ((3.0 / fan_in as f64).sqrt(), 0.0)
    };
    values.affine(factor, offset).unwrap()
}

/// The shape `janus-tiny`, whole, in f32.
pub(crate) fn tiny() -> Janus {
    tiny_in(DType::F32)
}

/// [`tiny`], computed in `dtype`.
pub(crate) fn tiny_in(dtype: DType) -> Janus {
    open(&JanusConfig::shape("janus-tiny").unwrap(), dtype)
}

/// The shape `janus-tiny` whose head is its embedding table.
pub(crate) fn tied_tiny() -> Janus {
    open(&JanusConfig { tie_word_embeddings: true, ..JanusConfig::shape("janus-tiny").unwrap() }, DType::F32)
}

/// A model of another shape without its image tokenizer, whose weights are the same in f32 and in bf16.
pub(crate) fn shaped(config: &JanusConfig, dtype: DType) -> Janus {
    let parts = Parts { image_tokenizer: false, ..Parts::all() };
    Janus::open(&Rounded(config.clone(), DType::BF16), dtype, &Device::Cpu, parts, &mut |_| {}).unwrap()
}

/// The values of [`weight`], rounded to bf16, as if stored in a type.
pub(crate) struct Rounded(pub(crate) JanusConfig, pub(crate) DType);

impl WeightSource for Rounded {
    fn config(&self) -> &JanusConfig {
        &self.0
    }

    fn is_tied(&self) -> bool {
        self.0.tie_word_embeddings
    }

    fn exact_dtype(&self, _native_name: &str) -> DType {
        self.1
    }

    fn read(&self, native_name: &str, dtype: DType) -> crate::Result<Tensor> {
        let tensor = expected_tensors(&self.0, true).into_iter().find(|tensor| tensor.name == native_name).unwrap();
        Ok(weight(native_name, &tensor.shape).to_dtype(DType::BF16)?.to_dtype(dtype)?)
    }
}

fn open(config: &JanusConfig, dtype: DType) -> Janus {
    let folder = tempfile::tempdir().unwrap();
    let tensors: HashMap<String, Tensor> = expected_tensors(config, !config.tie_word_embeddings)
        .into_iter()
        .map(|tensor| (tensor.name.clone(), weight(&tensor.name, &tensor.shape)))
        .collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let json = config.to_json(Layout::Native, DType::F32).to_string();
    fs_err::write(folder.path().join("config.json"), json).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    Janus::open(&checkpoint, dtype, &Device::Cpu, Parts::all(), &mut |_| {}).unwrap()
}

/// Fails unless shapes and all bits are equal.
#[track_caller]
pub(crate) fn same_bits(got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims());
    let bits = |tensor: &Tensor| -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert!(bits(got) == bits(expected), "bits differ; largest difference {}", largest_difference(got, expected));
}

/// The largest difference of two tensors of one shape.
pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}
