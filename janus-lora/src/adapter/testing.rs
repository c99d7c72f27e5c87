//! What the tests of this room share: a tiny base, small adapters of it, and weights files of any content.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::config::JanusConfig;
use janus_core::noise;
use janus_core::site::Site;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::{AdaptedSite, Adapter, AdapterError, AdapterSpec, CONFIG_FILE, WEIGHTS_FILE};

/// The base of all tests.
pub(super) fn base() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

/// A linear layer, the patch convolution and an embedding.
pub(super) const SITES: [&str; 3] = [
    "model.language_model.layers.0.self_attn.q_proj",
    "model.vision_model.embeddings.patch_embedding",
    "model.generation_embeddings",
];

pub(super) fn spec(sites: &[&str], modules_to_save: &[&str]) -> AdapterSpec {
    AdapterSpec {
        rank: 3,
        alpha: 4.5,
        dropout: 0.0,
        sites: sites.iter().map(|path| Arc::from(*path)).collect(),
        modules_to_save: modules_to_save.iter().map(|m| m.to_string()).collect(),
        dynamic: None,
        heads: Vec::new(),
        aligns: false,
        base_name: Some("janus-tiny".into()),
        ..AdapterSpec::default()
    }
}

/// A base parameter drawn from its name.
pub(super) fn parameter(name: &str) -> janus_core::Result<Tensor> {
    let tensors = janus_core::checkpoint::expected_tensors(&base(), true);
    let shape = tensors.into_iter().find(|tensor| tensor.name == name).unwrap().shape;
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| noise::normal(noise::key_of(name), i as u64) as f32).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Values of a tensor's shape, drawn from a name.
pub(super) fn drawn(tensor: &Tensor, name: &str) -> Tensor {
    let key = noise::key_of(name);
    let values: Vec<f32> = (0..tensor.elem_count()).map(|i| noise::normal(key, i as u64) as f32).collect();
    Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap()
}

/// An adapter all of whose values differ from zero and from one another.
pub(super) fn trained(spec: &AdapterSpec) -> Adapter {
    let mut adapter = Adapter::new(&base(), false, spec, 7, &parameter).unwrap();
    for (path, site) in &mut adapter.sites {
        let [a, b] = site.pair_mut().unwrap();
        *a = drawn(a, &format!("{path} a"));
        *b = drawn(b, &format!("{path} b"));
    }
    for (name, copy) in &mut adapter.saved {
        *copy = drawn(copy, &format!("{name} copy"));
    }
    adapter
}

/// A and B of a site.
pub(super) fn pair(site: &AdaptedSite) -> [&Tensor; 2] {
    site.pair().unwrap()
}

/// Keys of A and B of a site.
pub(super) fn pair_keys(site: &Site) -> (String, String) {
    let [a, b] = super::method::lora::endings(site.kind);
    (super::key(site, a), super::key(site, b))
}

/// One stored tensor.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

/// A folder with the files of `adapter`, for a test to change.
pub(super) fn folder_of(adapter: &Adapter) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    adapter.write(folder.path()).unwrap();
    folder
}

/// Reads the weights of a folder, lets `change` change them and writes them back.
pub(super) fn change_weights(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
    let path = folder.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: TensorView<'_>| Stored {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    let mut tensors = file.tensors().into_iter().map(|(name, view)| (name, stored(view))).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Reads the configuration of a folder, sets `key` in it and writes it back.
pub(super) fn change_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join(CONFIG_FILE);
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// Why a folder is refused, without the folder's name.
pub(super) fn refusal(folder: &Path) -> AdapterError {
    match Adapter::read(folder, &base(), false) {
        Err(AdapterError::Folder { source, .. }) => *source,
        Err(other) => panic!("{other} has no folder"),
        Ok(_) => panic!("the folder was accepted"),
    }
}

/// All bits of a tensor.
pub(super) fn bits(tensor: &Tensor) -> Vec<u32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}
