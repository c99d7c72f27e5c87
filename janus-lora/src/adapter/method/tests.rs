//! Proofs of every method: at the start nothing changes; gradients are those of differences; the code for the processor and
//! candle's operations agree; folders come back to the bit.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use janus_core::checkpoint::RandomWeights;
use janus_core::config::JanusConfig;
use janus_core::model::decoder::Placement;
use janus_core::ops::with_composed;
use janus_core::pass::Pass;
use janus_core::{Janus, Parts};

use super::*;
use crate::adapter::{Adapter, AdapterSpec, attach};
use crate::train::trainable::Trainables;

const QUERY: &str = "model.language_model.layers.0.self_attn.q_proj";
const KEY: &str = "model.language_model.layers.0.self_attn.k_proj";
const OUT: &str = "model.language_model.layers.0.self_attn.o_proj";
const UP: &str = "model.language_model.layers.0.mlp.up_proj";
const DOWN: &str = "model.language_model.layers.0.mlp.down_proj";
const FC1: &str = "model.vision_model.encoder.layers.1.mlp.fc1";
const FC2: &str = "model.vision_model.encoder.layers.1.mlp.fc2";
const ALIGNER: &str = "model.aligner.fc1";
const PATCH: &str = "model.vision_model.embeddings.patch_embedding";
const TOKENS: &str = "model.language_model.embed_tokens";

pub(in crate::adapter) fn config() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

pub(in crate::adapter) fn model(dtype: DType) -> Janus {
    Janus::open(&RandomWeights::new(&config(), 3), dtype, &Device::Cpu, Parts::all(), &mut |_| ()).unwrap()
}

/// Every method and form of one, each at sites of every kind that it takes.
pub(in crate::adapter) fn methods() -> Vec<AdapterSpec> {
    let linear = [QUERY, KEY, OUT, UP, DOWN, FC1, FC2, ALIGNER];
    let with = |more: &[&str]| linear.iter().chain(more).map(|path| Arc::from(*path)).collect::<Vec<Arc<str>>>();
    let spec = |method, more: &[&str]| AdapterSpec {
        method,
        rank: 3,
        alpha: 4.5,
        sites: with(more),
        ..AdapterSpec::default()
    };
    let feedforward = ModuleNames::Suffixes(vec![DOWN.into(), FC2.into(), PATCH.into()]);
    let lokr =
        |decompose_both, decompose_factor, effective| Method::Lokr { decompose_both, decompose_factor, effective };
    vec![
        spec(Method::Lora { bias: false }, &[PATCH, TOKENS]),
        AdapterSpec { init: Init::Pissa, ..spec(Method::Lora { bias: false }, &[]) },
        AdapterSpec { init: Init::Olora, rslora: true, dropout: 0.25, ..spec(Method::Lora { bias: false }, &[]) },
        AdapterSpec { rslora: true, init: Init::Gaussian, ..spec(Method::Lora { bias: false }, &[PATCH, TOKENS]) },
        spec(Method::Lora { bias: true }, &[PATCH, TOKENS]),
        spec(Method::Dora, &[PATCH, TOKENS]),
        AdapterSpec { rslora: true, ..spec(Method::Dora, &[PATCH, TOKENS]) },
        spec(Method::Loha { effective: false }, &[PATCH]),
        spec(Method::Loha { effective: true }, &[PATCH]),
        AdapterSpec { rank: 7, ..spec(Method::Loha { effective: false }, &[PATCH]) },
        spec(lokr(false, -1, false), &[PATCH]),
        spec(lokr(true, 4, false), &[PATCH]),
        AdapterSpec { rank: 1, ..spec(lokr(true, 2, true), &[PATCH]) },
        spec(Method::Vera { d_initial: 0.1, projection_seed: 5 }, &[]),
        spec(Method::Ia3 { feedforward }, &[PATCH]),
    ]
}

fn fresh(spec: &AdapterSpec) -> Adapter {
    let weights = RandomWeights::new(&config(), 3);
    Adapter::new(&config(), false, spec, 7, &|name| weights.read(name, DType::F32)).unwrap()
}

/// The same, every value moved from where it began.
pub(in crate::adapter) fn trained(spec: &AdapterSpec) -> Adapter {
    let mut adapter = fresh(spec);
    for site in adapter.sites.values_mut() {
        let keys: Vec<String> = site.values.keys().map(|ending| site.key(ending)).collect();
        let fixed: Vec<bool> = site.values.keys().map(|ending| site.is_fixed(ending)).collect();
        for ((value, key), fixed) in site.values.values_mut().zip(keys).zip(fixed) {
            if !fixed {
                let noise = |key, index| 0.15 * noise::normal(key, index);
                *value = (&*value + drawn(value.dims(), 1, &key, noise).unwrap()).unwrap();
            }
        }
    }
    adapter
}

/// An uneven sum of what every part of an understanding pass gives.
fn loss(model: &Janus) -> Tensor {
    let (pass, side) = (Pass::inference(), config().vision.image_size);
    let uneven = |x: &Tensor| {
        let weights: Vec<f32> = (0..x.elem_count() as u64).map(|i| noise::normal(3, i) as f32).collect();
        let weights = Tensor::from_vec(weights, x.dims(), &Device::Cpu).unwrap();
        (x.to_dtype(DType::F32).unwrap() * weights).unwrap().mean_all().unwrap()
    };
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
    let features = model.vision().unwrap().forward(&pass, &pixels).unwrap();
    let embeds = model.decoder().embed(&pass, &[256, 7, 9, 300, 7], 1).unwrap();
    let hidden = model.decoder().forward(&pass, &embeds, &Placement::plain(1, 0, 5), None).unwrap();
    (uneven(&features) + uneven(&hidden)).unwrap()
}

fn value(model: &Janus) -> f32 {
    loss(model).to_scalar().unwrap()
}

#[test]
fn at_first_nothing_changes() {
    for dtype in [DType::F32, DType::BF16] {
        let plain = value(&model(dtype));
        for spec in methods() {
            let spec = AdapterSpec { dtype, ..spec };
            let model = model(dtype);
            attach(&model, &[(&fresh(&spec), 1.0)]).unwrap();
            if spec.init.is_of_weight() {
                // What is added is taken away again, in another sum.
                let (moved, bound) = ((value(&model) - plain).abs(), if dtype == DType::F32 { 1e-5 } else { 1e-3 });
                assert!(moved < bound, "{:?} in {dtype:?} moves by {moved:e}", spec.init);
            } else {
                assert_eq!(value(&model).to_bits(), plain.to_bits(), "{:?} in {dtype:?}", spec.method);
            }
            attach(&model, &[(&trained(&spec), 1.0)]).unwrap();
            let moved = (value(&model) - plain).abs();
            assert!(moved > 1e-6, "{:?} moves by {moved:e}", spec.method);
            attach(&model, &[(&trained(&spec), 0.0)]).unwrap();
            assert_eq!(value(&model).to_bits(), plain.to_bits(), "{:?} with a factor of 0", spec.method);
        }
    }
}

/// The gradient of every variable by its key.
fn gradients(model: &Janus, trainables: &Trainables) -> BTreeMap<String, Tensor> {
    let gradients = loss(model).backward().unwrap();
    let own = trainables.iter().filter_map(|t| Some((t.name.clone(), gradients.get(&t.var)?.clone())));
    own.collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn both_ways_to_compute_agree() {
    for spec in methods() {
        let model = model(DType::F32);
        let trainables = Trainables::attach(&model, trained(&spec)).unwrap();
        let (fast, fast_gradients) = (value(&model), gradients(&model, &trainables));
        let (slow, slow_gradients) = with_composed(|| (value(&model), gradients(&model, &trainables)));
        assert!((fast - slow).abs() < 1e-5, "{:?}: {fast} and {slow}", spec.method);
        assert_eq!(fast_gradients.len(), trainables.len(), "{:?}: all have one", spec.method);
        for (name, slow) in &slow_gradients {
            let (fast, slow) = (values(&fast_gradients[name]), values(slow));
            let largest = slow.iter().fold(0f32, |most, v| most.max(v.abs()));
            assert!(largest > 1e-7, "{:?}: `{name}` is out of reach", spec.method);
            for (fast, slow) in fast.iter().zip(&slow) {
                let bound = 2e-4 * largest + 1e-7;
                assert!((fast - slow).abs() <= bound, "{:?}, `{name}`: {fast:e} and {slow:e}", spec.method);
            }
        }
    }
}

fn moved(var: &Var, start: &[f32], place: usize, shift: f32) {
    let mut values = start.to_vec();
    values[place] += shift;
    var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
}

#[test]
fn gradients_are_those_of_differences() {
    // DoRA's length takes part in no gradient: its own test holds it.
    for spec in methods().into_iter().filter(|spec| spec.method != Method::Dora) {
        let model = model(DType::F32);
        let trainables = Trainables::attach(&model, trained(&spec)).unwrap();
        let gradients = gradients(&model, &trainables);
        for trainable in trainables.iter() {
            let gradient = values(&gradients[&trainable.name]);
            let place = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let start = values(trainable.var.as_tensor());
            let at = |shift: f32| {
                moved(&trainable.var, &start, place, shift);
                trainables.renew(&model).unwrap();
                f64::from(value(&model))
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            at(0.0);
            let got = f64::from(gradient[place]);
            let slack = 0.03 * got.abs() + 3e-5;
            assert!((got - difference).abs() < slack, "{:?}, {}: {got:e} {difference:e}", spec.method, trainable.name);
        }
    }
}

#[test]
fn a_folder_comes_back_to_the_bit() {
    for spec in methods() {
        let (adapter, folder) = (trained(&spec), tempfile::tempdir().unwrap());
        adapter.write(folder.path()).unwrap();
        let back = Adapter::read(folder.path(), &config(), false).unwrap();
        if spec.init.is_of_weight() {
            assert_eq!(back.config.method, Method::Lora { bias: false });
            // A run takes up its own form again.
            let form = Adapter::blank(&config(), false, &spec).unwrap();
            let again = back.clone().in_form_of(&form).unwrap();
            assert_eq!(again.config, adapter.config);
            for (path, site) in &again.sites {
                let own = &adapter.sites[path];
                assert_eq!((site.rank, site.alpha, site.scale), (own.rank, own.alpha, own.scale));
                assert_eq!(site.values.keys().collect::<Vec<_>>(), own.values.keys().collect::<Vec<_>>());
                for (ending, value) in &site.values {
                    let bits = |of: &Tensor| values(of).into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(bits(value), bits(&own.values[ending]), "{path}.{ending}");
                }
            }
        }
        let adapter = adapter.plain().unwrap();
        assert_eq!(back.config, adapter.config, "{:?}", spec.method);
        let bits = |adapter: &Adapter| -> Vec<(String, Vec<usize>, Vec<u32>)> {
            let own = |(name, value): (String, Tensor)| {
                (name, value.dims().to_vec(), values(&value).into_iter().map(f32::to_bits).collect())
            };
            adapter.tensors().into_iter().map(own).collect()
        };
        assert_eq!(bits(&back), bits(&adapter), "{:?}", spec.method);
        let scales = |adapter: &Adapter| adapter.sites.values().map(|site| site.scale).collect::<Vec<_>>();
        for (back, own) in scales(&back).iter().zip(scales(&adapter)) {
            assert!((back - own).abs() <= f64::EPSILON * own.abs(), "{:?}: {back} {own}", spec.method);
        }
        let again = tempfile::tempdir().unwrap();
        back.write(again.path()).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
            assert_eq!(read(&again), read(&folder), "{:?}: {file}", spec.method);
        }
    }
}

/// `m / ‖W + s·B·A‖ ⊙ (W + s·B·A)` of each site by its definition: its rows have the magnitudes as lengths.
#[test]
fn rows_under_dora_have_the_magnitudes_as_lengths() {
    for spec in methods().into_iter().filter(|spec| spec.method == Method::Dora) {
        let (model, adapter) = (model(DType::F32), trained(&spec));
        attach(&model, &[(&adapter, 1.0)]).unwrap();
        for site in adapter.sites.values() {
            let projection = model.projections().get(&site.site.path).unwrap();
            let weight = projection.weight().frozen().values();
            let folded = projection.correction().unwrap().fold(&site.site, weight).unwrap().flatten_from(1).unwrap();
            let folded = if site.site.kind == SiteKind::Embedding { folded.t().unwrap() } else { folded };
            let lengths = values(&folded.sqr().unwrap().sum(1).unwrap().sqrt().unwrap());
            let magnitudes = values(&site.values["lora_magnitude_vector"]);
            for (length, magnitude) in lengths.iter().zip(&magnitudes) {
                assert!(
                    (length - magnitude.abs()).abs() < 1e-4 * length.max(1.0),
                    "{}: {length} {magnitude}",
                    site.site.path
                );
            }
        }
    }
}

#[test]
fn a_method_stands_where_it_can_only() {
    let at = |method: Method, path: &str| {
        let sites = vec![Arc::from(path)];
        let spec = AdapterSpec { method, sites, ..AdapterSpec::default() };
        let weights = RandomWeights::new(&config(), 3);
        Adapter::new(&config(), false, &spec, 7, &|name| weights.read(name, DType::F32)).map(|_| ())
    };
    let vera = || Method::Vera { d_initial: 0.1, projection_seed: 0 };
    for (method, path) in [
        (vera(), PATCH),
        (vera(), TOKENS),
        (Method::Loha { effective: false }, TOKENS),
        (Method::Ia3 { feedforward: ModuleNames::Nothing }, TOKENS),
    ] {
        let error = at(method, path).unwrap_err();
        assert!(matches!(error, AdapterError::NotForSite { .. }), "{error}");
    }
    at(Method::Dora, TOKENS).unwrap();
}

#[test]
fn a_pair_begins_as_a_part_of_the_weight_where_it_can_only() {
    let begin = |method: Method, init: Init, rank: usize, path: &str| {
        let spec = AdapterSpec { method, init, rank, sites: vec![Arc::from(path)], ..AdapterSpec::default() };
        let weights = RandomWeights::new(&config(), 3);
        Adapter::new(&config(), false, &spec, 7, &|name| weights.read(name, DType::F32)).map(|_| ())
    };
    let plain = || Method::Lora { bias: false };
    for init in [Init::Pissa, Init::Olora] {
        for path in [PATCH, TOKENS] {
            let error = begin(plain(), init, 3, path).unwrap_err();
            assert!(matches!(error, AdapterError::NotForBeginning { .. }), "{error}");
        }
        for method in [Method::Dora, Method::Lora { bias: true }, Method::Loha { effective: false }] {
            let error = begin(method, init, 3, QUERY).unwrap_err();
            assert!(matches!(error, AdapterError::Setting { what: "init", .. }), "{error}");
        }
        let site = janus_core::site::sites(&config()).into_iter().find(|site| &*site.path == UP).unwrap();
        let most = site.input.min(site.output);
        let error = begin(plain(), init, most + 1, UP).unwrap_err();
        assert!(matches!(error, AdapterError::TooFewDirections { most: told, .. } if told == most), "{error}");
        begin(plain(), init, most, UP).unwrap();
    }
    for (init, scale, holds) in [(Init::Olora, 100.0, true), (Init::Olora, -101.0, false), (Init::Pissa, 1e6, true)] {
        let spec =
            AdapterSpec { init, rank: 3, alpha: 3.0 * scale, sites: vec![Arc::from(UP)], ..AdapterSpec::default() };
        let weights = RandomWeights::new(&config(), 3);
        let begun = Adapter::new(&config(), false, &spec, 7, &|name| weights.read(name, DType::F32));
        match begun {
            Err(AdapterError::ScaleOfBeginning { scale: told, .. }) => assert!(!holds && told == scale),
            begun => assert!(begun.is_ok() && holds, "{init:?} {scale}"),
        }
    }
}

/// What a merge folds and what any loader of the saved pair computes is what was trained.
#[test]
fn a_pair_of_twice_the_rank_computes_what_was_trained() {
    for spec in methods().into_iter().filter(|spec| spec.init.is_of_weight()) {
        let (adapter, folder) = (trained(&spec), tempfile::tempdir().unwrap());
        adapter.write(folder.path()).unwrap();
        let plain = Adapter::read(folder.path(), &config(), false).unwrap();
        let of = |adapter: &Adapter| {
            let model = model(DType::F32);
            attach(&model, &[(adapter, 1.0)]).unwrap();
            value(&model)
        };
        assert!((of(&adapter) - of(&plain)).abs() < 1e-5, "{:?}: {} {}", spec.init, of(&adapter), of(&plain));
        let site = &plain.sites[QUERY];
        assert_eq!(site.rank, 2 * spec.rank);
        let growth = if spec.rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        assert_eq!(site.alpha, growth * spec.alpha);
    }
}
