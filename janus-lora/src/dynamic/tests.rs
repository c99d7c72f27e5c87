use janus_core::checkpoint::RandomWeights;
use janus_core::model::decoder::Placement;
use janus_core::pass::Pass;
use janus_core::site::{Correction, LowRank, Term};
use janus_core::{Janus, Parts};

use super::*;

const BOTH: Paths = Paths { vision: true, generation: true };

fn config() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

fn model(dtype: DType) -> Janus {
    Janus::open(&RandomWeights::new(&config(), 3), dtype, &Device::Cpu, Parts::all(), &mut |_| ()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// An encoder none of whose values is zero.
pub(crate) fn trained(config: &JanusConfig, paths: Paths, seed: u64) -> Dynamic {
    let new = Dynamic::new(config, paths, seed).unwrap();
    new.clone().with_values(|name| {
        let (first, key) = (new.value(name), noise::combine(seed, noise::key_of(name)));
        let noise: Vec<f32> = (0..first.elem_count() as u64).map(|i| 0.2 * noise::normal(key, !i) as f32).collect();
        (first + Tensor::from_vec(noise, first.dims(), &Device::Cpu).unwrap()).unwrap()
    })
}

/// What both paths give: features of a picture, and embedded codes.
fn outputs(model: &Janus) -> [Tensor; 2] {
    let (pass, side) = (Pass::inference(), config().vision.image_size);
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
    let features = model.vision().unwrap().forward(&pass, &pixels).unwrap();
    [features, model.generation().unwrap().embed(&pass, &[1, 5, 7], 1).unwrap()]
}

/// Puts factors into a model whose aligner has a term already.
fn place(model: &Janus, factors: &Factors) {
    let projection = model.projections().get(&generation_site(model.config())).unwrap();
    let drawn = |name: &str, shape: &[usize]| {
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>() as u64).map(|i| noise::normal(noise::key_of(name), i) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let (a, b) = (drawn("a", &[2, projection.site().input]), drawn("b", &[projection.site().output, 2]));
    let term = LowRank { a, b, scale: 0.1, dropout: 0.0 };
    let correction = Correction::of_terms([Term::LowRank(term)]);
    let behind = factors.generation.as_ref().unwrap();
    let correction = correction.behind(behind, projection.site(), &projection.frozen()).unwrap();
    projection.attach(Some(Arc::new(correction))).unwrap();
    for (name, row) in factors.norm_parameters(model.config()) {
        let frozen = model.parameters().get(&name).unwrap().frozen().values();
        model.parameters().substitute(&name, factors.of_norm(row, &frozen).unwrap()).unwrap();
    }
}

#[test]
fn first_values_are_those_of_the_definition() {
    let mut config = JanusConfig::shape("janus-pro-1b").unwrap();
    config.vision.num_hidden_layers = 3;
    let dynamic = Dynamic::new(&config, BOTH, 1).unwrap();
    let shape = |name: &str| dynamic.value(name).dims().to_vec();
    assert_eq!(shape(FC1_WEIGHT), [512, 256]);
    assert_eq!(shape(FC2_WEIGHT), [1024, 512]);
    assert_eq!(shape(GATES), [3, 2]);
    assert_eq!(shape(PROJECTION), [2048, 1024]);
    let deviation = |name: &str| {
        let values = values(dynamic.value(name));
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    for (name, expected, slack) in [
        (UNDERSTAND, 0.0625, 0.01),
        (GENERATE, 0.0625, 0.01),
        (FC1_WEIGHT, 0.088_39, 0.001),
        (PROJECTION, 0.01, 1e-4),
        (FC1_BIAS, 0.0, 0.0),
        (FC2_WEIGHT, 0.0, 0.0),
        (FC2_BIAS, 0.0, 0.0),
        (GATES, 1.0, 0.0),
    ] {
        assert!((deviation(name) - expected).abs() <= slack, "{name}: {}", deviation(name));
    }
    assert!(!dynamic.acts().unwrap());
    let again = Dynamic::new(&config, BOTH, 1).unwrap();
    let other = Dynamic::new(&config, BOTH, 2).unwrap();
    assert_eq!(values(again.value(PROJECTION)), values(dynamic.value(PROJECTION)));
    assert_ne!(values(other.value(PROJECTION)), values(dynamic.value(PROJECTION)));
}

#[test]
fn a_path_that_is_not_there_has_no_values() {
    let names = |paths| shapes(&config(), paths).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    for paths in [BOTH, Paths { vision: true, generation: false }, Paths { vision: false, generation: true }] {
        assert_eq!(paths_of(names(paths).into_iter()), paths);
        assert_eq!(names(paths).contains(&GATES), paths.vision);
        assert_eq!(names(paths).contains(&PROJECTION), paths.generation);
    }
    assert!(names(Paths { vision: false, generation: false }).is_empty());
}

#[test]
fn at_first_no_bit_changes() {
    for dtype in [DType::F32, DType::BF16] {
        let model = model(dtype);
        let factors = Factors::of(&Dynamic::new(&config(), BOTH, 1).unwrap()).unwrap();
        let plain = Factors { norms: None, generation: Some(Tensor::ones(48, DType::F32, &Device::Cpu).unwrap()) };
        place(&model, &plain);
        let expected = outputs(&model).map(|y| values(&y));
        place(&model, &factors);
        assert_eq!(outputs(&model).map(|y| values(&y)), expected, "{dtype:?}");
        let moved = Factors::of(&trained(&config(), BOTH, 1)).unwrap();
        place(&model, &moved);
        for (got, plain) in outputs(&model).iter().zip(&expected) {
            assert_ne!(&values(got), plain, "{dtype:?}");
        }
    }
}

/// The formula in f64, value by value.
fn slow_gamma(dynamic: &Dynamic, token: &str) -> Vec<f64> {
    let wide = |name: &str| values(dynamic.value(name)).into_iter().map(f64::from).collect::<Vec<f64>>();
    let map = |weight: &str, bias: &str, x: &[f64]| -> Vec<f64> {
        let (weight, bias) = (wide(weight), wide(bias));
        let rows = weight.chunks(x.len()).zip(bias);
        rows.map(|(row, bias)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias).collect()
    };
    let inner: Vec<f64> = map(FC1_WEIGHT, FC1_BIAS, &wide(token)).into_iter().map(|v| v.max(0.0)).collect();
    map(FC2_WEIGHT, FC2_BIAS, &inner)
}

#[test]
fn factors_are_those_of_the_formula() {
    let config = config();
    let dynamic = trained(&config, BOTH, 1);
    let factors = Factors::of(&dynamic).unwrap();
    let near = |got: f32, expected: f64| assert!((f64::from(got) - expected).abs() < 1e-4, "{got} {expected}");
    let (understand, generate) = (slow_gamma(&dynamic, UNDERSTAND), slow_gamma(&dynamic, GENERATE));
    for (name, row) in norm_parameters(&config) {
        let ones = Tensor::ones(config.vision.hidden_size, DType::F32, &Device::Cpu).unwrap();
        let got = values(&factors.of_norm(row, &ones).unwrap().unwrap());
        let gate = f64::from(values(dynamic.value(GATES))[row]);
        got.iter().zip(&understand).for_each(|(got, gamma)| near(*got, 1.0 + gate * gamma));
        assert!(factors.norm_parameters(&config).any(|(own, at)| own == name && at == row));
    }
    assert_eq!(factors.norm_parameters(&config).count(), 4 * config.vision.num_hidden_layers);
    let projection = values(dynamic.value(PROJECTION));
    let generation = values(factors.generation.as_ref().unwrap());
    assert_eq!(generation.len(), config.text.hidden_size);
    for (row, got) in generation.into_iter().enumerate() {
        let own = projection.chunks(generate.len()).nth(row).unwrap();
        near(got, 1.0 + own.iter().zip(&generate).map(|(p, g)| f64::from(*p) * g).sum::<f64>());
    }
}

#[test]
fn what_is_behind_a_norm_or_the_aligner_is_multiplied() {
    let model = model(DType::F32);
    let plain = Factors { norms: None, generation: Some(Tensor::ones(48, DType::F32, &Device::Cpu).unwrap()) };
    place(&model, &plain);
    let [_, embedded] = outputs(&model);
    let factors = Factors::of(&trained(&config(), BOTH, 1)).unwrap();
    place(&model, &factors);
    let [_, multiplied] = outputs(&model);
    let expected = embedded.broadcast_mul(factors.generation.as_ref().unwrap()).unwrap();
    let largest = values(&expected).iter().fold(0f32, |most, v| most.max(v.abs()));
    for (got, expected) in values(&multiplied).iter().zip(values(&expected)) {
        assert!((got - expected).abs() <= 1e-5 * largest, "{got} {expected}");
    }
    // A token that sees nothing else: the decoder is not touched.
    let hidden = |model: &Janus| {
        let embeds = model.decoder().embed(&Pass::inference(), &[3], 1).unwrap();
        values(&model.decoder().forward(&Pass::inference(), &embeds, &Placement::plain(1, 0, 1), None).unwrap())
    };
    assert_eq!(hidden(&model), hidden(&self::model(DType::F32)));
    let norm = model.parameters().get("model.vision_model.encoder.layers.1.layer_norm2.bias").unwrap();
    let row = factors.norms.as_ref().unwrap().get(3).unwrap();
    assert_eq!(values(&norm.value()), values(&(norm.frozen().values() * row).unwrap()));
}
