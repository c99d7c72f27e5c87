//! Adapters for the tests of this room.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use janus_core::noise;
use serde_json::{Map, Value, json};

use super::factors::{Factors, Kind};
use super::folder::{AdapterFolder, NewAdapter};
use crate::adapter::Note;
use crate::svd::Lines;

/// Normal values.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|index| noise::normal(seed, index) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Normal lines.
pub(crate) fn lines(count: usize, length: usize, seed: u64) -> Lines {
    let line = |line: usize| (0..length).map(|place| noise::normal(seed, (line * length + place) as u64)).collect();
    (0..count).map(line).collect()
}

/// Factors of normal values over a weight `[rows, columns]`, or of a convolution `[rows, columns / 9, 3, 3]`.
pub(super) fn factors(kind: Kind, [rows, columns]: [usize; 2], rank: usize, scale: f64, seed: u64) -> Factors {
    let (a, b) = match kind {
        Kind::Convolution => (vec![rank, columns / 9, 3, 3], vec![rows, rank, 1, 1]),
        Kind::Linear | Kind::Embedding => (vec![rank, columns], vec![rows, rank]),
    };
    Factors { kind, a: normal(&a, seed), b: normal(&b, seed + 1), scale }
}

/// `scale · B·A` in f32, value by value.
pub(super) fn shift(factors: &Factors) -> Vec<f32> {
    let (a, b) = (factors.a.flatten_from(1).unwrap(), factors.b.flatten_from(1).unwrap());
    (b.matmul(&a).unwrap() * factors.scale).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference.
pub(super) fn apart(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

/// The least configuration.
pub(super) fn config() -> Map<String, Value> {
    let json = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"] });
    json.as_object().unwrap().clone()
}

/// An adapter with these sites, written to a folder.
pub(super) fn write(folder: &Path, sites: &[(&str, Factors)]) {
    let sites: BTreeMap<String, Factors> = sites.iter().map(|(path, f)| (path.to_string(), f.clone())).collect();
    let adapter = NewAdapter {
        json: config(),
        sites,
        copies: BTreeMap::new(),
        modules_to_save: Vec::new(),
        extras_of: None,
        note: Note::new(),
    };
    let place: janus_core::directory::Place<'_> = folder.into();
    adapter.write(&place.make().unwrap()).unwrap();
}

/// The same, read again.
pub(super) fn read(sites: &[(&str, Factors)]) -> AdapterFolder {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), sites);
    AdapterFolder::read(folder.path()).unwrap()
}
