//! Adapters of every method, attached and in slots: outputs and gradients.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use janus_core::checkpoint::{RandomWeights, WeightSource};
use janus_core::config::JanusConfig;
use janus_core::model::decoder::Placement;
use janus_core::noise;
use janus_core::pass::{Mixture, Part, Pass, Route};
use janus_core::{Janus, Parts};
use janus_lora::adapter::{Adapter, AdapterSpec, Bank, Init, Method, ModuleNames, detach};
use janus_lora::train::trainable::Trainables;
use janus_tests::base::device;

use super::{as_on, drawn};

const PICTURE: u32 = 261;

/// Random weights, stored in some type.
struct Stored(RandomWeights, DType);

impl WeightSource for Stored {
    fn config(&self) -> &JanusConfig {
        self.0.config()
    }

    fn is_tied(&self) -> bool {
        self.0.is_tied()
    }

    fn exact_dtype(&self, _native_name: &str) -> DType {
        self.1
    }

    fn read(&self, native_name: &str, dtype: DType) -> janus_core::Result<Tensor> {
        Ok(self.0.read(native_name, self.1)?.to_dtype(dtype)?)
    }
}

/// A base, what its values are computed in, and how far outputs and gradients may be apart, as a part of their size.
struct Case {
    weights: Stored,
    dtype: DType,
    outputs: f64,
    gradients: f64,
}

/// f32; bf16 under f32, which the processor holds as it is stored; bf16.
fn cases() -> [Case; 3] {
    let config = JanusConfig::shape("janus-tiny").unwrap();
    let case = |stored, dtype, outputs, gradients| {
        let weights = Stored(RandomWeights::new(&config, 3), stored);
        Case { weights, dtype, outputs, gradients }
    };
    [
        case(DType::F32, DType::F32, 2e-5, 2e-4),
        case(DType::BF16, DType::F32, 2e-5, 2e-4),
        case(DType::BF16, DType::BF16, 2e-2, 5e-2),
    ]
}

impl Case {
    fn open(&self, device: &Device) -> Janus {
        Janus::open(&self.weights, self.dtype, device, Parts::all(), &mut |_| ()).unwrap()
    }

    /// An adapter of random values.
    fn adapter(&self, spec: AdapterSpec) -> Adapter {
        let spec = AdapterSpec { dtype: self.dtype, ..spec };
        let read = |name: &str| self.weights.read(name, DType::F32);
        let adapter = Adapter::new(self.weights.config(), false, &spec, 7, &read).unwrap();
        let model = self.open(&Device::Cpu);
        let trainables = Trainables::attach(&model, adapter).unwrap();
        for trainable in trainables.iter() {
            let noise = drawn(trainable.var.dims(), noise::key_of(&trainable.name), &Device::Cpu);
            trainable.var.set(&((noise * 0.1).unwrap() + trainable.var.as_tensor()).unwrap()).unwrap();
        }
        trainables.adapter().unwrap()
    }
}

/// Every method and beginning, at sites of every part and kind that it takes.
fn specs() -> Vec<(&'static str, AdapterSpec)> {
    let linear = [
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.0.self_attn.v_proj",
        "model.language_model.layers.1.mlp.up_proj",
        "model.language_model.layers.1.mlp.down_proj",
        "model.vision_model.encoder.layers.1.mlp.fc1",
        "model.aligner.fc1",
        "lm_head",
        "model.generation_aligner.fc1",
        "model.generation_head.proj_out",
    ];
    let patch = &["model.vision_model.embeddings.patch_embedding"][..];
    let all = &[patch[0], "model.language_model.embed_tokens", "model.generation_embeddings"][..];
    let spec = |method, more: &[&str]| {
        let sites = linear.iter().chain(more).map(|path| Arc::from(*path)).collect();
        AdapterSpec { method, rank: 3, alpha: 4.5, sites, ..AdapterSpec::default() }
    };
    let lora = |init, more| AdapterSpec { init, ..spec(Method::Lora { bias: false }, more) };
    let lokr = |decompose_both, effective| Method::Lokr { decompose_both, decompose_factor: -1, effective };
    let feedforward = ModuleNames::Suffixes(vec!["down_proj".into(), "fc1".into(), "patch_embedding".into()]);
    vec![
        ("lora", lora(Init::default(), all)),
        ("rslora", AdapterSpec { rslora: true, ..lora(Init::Gaussian, all) }),
        ("pissa", lora(Init::Pissa, &[])),
        ("olora", lora(Init::Olora, &[])),
        ("bias", spec(Method::Lora { bias: true }, all)),
        ("dora", spec(Method::Dora, all)),
        ("loha", spec(Method::Loha { effective: false }, patch)),
        ("loha of kernels", spec(Method::Loha { effective: true }, patch)),
        ("lokr", spec(lokr(false, false), patch)),
        ("lokr of both", AdapterSpec { rank: 1, ..spec(lokr(true, true), patch) }),
        ("vera", spec(Method::Vera { d_initial: 0.1, projection_seed: 5 }, &[])),
        ("ia3", spec(Method::Ia3 { feedforward }, patch)),
    ]
}

/// What the model gives: features of pictures, logits of prompts with them, logits over codes. A part's rows have the routes
/// that `pass` gives for it and a number of rows in each of `count`.
fn outputs(model: &Janus, count: usize, pass: &dyn Fn(Part, usize) -> Pass) -> Vec<Tensor> {
    let (decoder, generation) = (model.decoder(), model.generation().unwrap());
    let (side, patches) = (model.config().vision.image_size, model.config().vision.num_patches());
    let pixels = drawn(&[count, 3, side, side], 5, model.device());
    let features = model.vision().unwrap().forward(&pass(Part::Vision, patches), &pixels).unwrap();
    let ids: Vec<u32> = [7, 8].into_iter().chain(vec![PICTURE; patches]).chain([9, 10, 7]).collect();
    let routed = pass(Part::Decoder, ids.len());
    let placement = Placement::plain(count, 0, ids.len());
    let embeds = model.embed_with_images(&routed, &ids.repeat(count), count, PICTURE, Some(&features)).unwrap();
    let hidden = decoder.forward(&routed, &embeds, &placement, None).unwrap();
    let logits = decoder.text_logits(&routed, &hidden).unwrap();

    let codes = [3u32, 60, 3, 17];
    let routed = pass(Part::Generation, codes.len());
    let embeds = generation.embed(&routed, &codes.repeat(count), count).unwrap();
    let of_decoder = pass(Part::Decoder, codes.len());
    let hidden = decoder.forward(&of_decoder, &embeds, &Placement::plain(count, 0, codes.len()), None).unwrap();
    vec![features, logits, generation.logits(&routed, &hidden).unwrap()]
}

/// An uneven sum of outputs.
fn loss(outputs: &[Tensor]) -> Tensor {
    let sum = |output: &Tensor| {
        let weights = drawn(output.dims(), 9, output.device());
        (output.to_dtype(DType::F32).unwrap() * weights).unwrap().mean_all().unwrap()
    };
    outputs.iter().map(sum).reduce(|sum, other| (sum + other).unwrap()).unwrap()
}

/// Values by name, in f32 on the processor.
type Named = BTreeMap<String, Tensor>;

fn here(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn named(outputs: &[Tensor]) -> Named {
    let names = ["features", "logits", "logits over codes"].map(String::from);
    names.into_iter().zip(outputs.iter().map(|output| here(&output.detach()))).collect()
}

/// How far apart two tensors are, as a part of the length of the second.
fn apart(got: &Tensor, expected: &Tensor) -> f64 {
    let length = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    length(&(got - expected).unwrap()) / length(expected).max(1e-30)
}

/// Notes all that is further apart than it may be.
fn compare(what: &str, got: &Named, expected: &Named, bound: f64, failed: &mut Vec<String>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, got) in got {
        let apart = apart(got, &expected[name]);
        if apart.is_nan() || apart > bound {
            failed.push(format!("{what}, {name}: {apart:e}, bound {bound:e}"));
        }
    }
}

#[test]
fn every_method_on_a_device_agrees_with_the_processor_s() {
    let (device, mut failed) = (device(), Vec::new());
    for case in cases() {
        let (own, other) = (case.open(&Device::Cpu), case.open(&device));
        for (name, spec) in specs() {
            let adapter = case.adapter(spec);
            let run = |model: &Janus| {
                let trainables = Trainables::attach(model, adapter.clone()).unwrap();
                let outputs = outputs(model, 2, &|_, _| Pass::inference());
                let gradients = loss(&outputs).backward().unwrap();
                let gradient = |t: &janus_lora::train::trainable::Trainable| {
                    let gradient = gradients.get(&t.var).unwrap_or_else(|| panic!("{name}: none of `{}`", t.name));
                    (t.name.clone(), here(gradient))
                };
                (named(&outputs), trainables.iter().map(gradient).collect::<Named>())
            };
            let (expected, got) = (run(&own), as_on(&device, || run(&other)));
            let what = format!("{name} over {:?} in {:?}", case.weights.1, case.dtype);
            compare(&what, &got.0, &expected.0, case.outputs, &mut failed);
            compare(&format!("{what}, gradients"), &got.1, &expected.1, case.gradients, &mut failed);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Rows of one pass under different adapters, mixtures of two and the base.
#[test]
fn routes_on_a_device_agree_with_the_processor_s() {
    let (device, mut failed) = (device(), Vec::new());
    for case in cases() {
        let adapters: Vec<Adapter> = specs().into_iter().map(|(_, spec)| case.adapter(spec)).collect();
        let run = |model: &Janus| {
            detach(model);
            let mut bank = Bank::new(model);
            let slots: Vec<_> = adapters.iter().map(|adapter| bank.insert(adapter).unwrap()).collect();
            let mixed = |one: usize, other: usize| Mixture::new([(slots[one], 0.5), (slots[other], -1.5)]);
            let mixtures: Vec<Mixture> = slots.iter().map(|slot| Mixture::of(*slot)).collect();
            // Pairs, products and factors on outputs; factors on outputs and inputs, which are summed against the base.
            let rest = [Mixture::base(), mixed(0, 8), mixed(5, 4), mixed(5, 11)];
            let mixtures: Vec<Mixture> = mixtures.into_iter().chain(rest).collect();
            let pass = |part: Part, length: usize| {
                let route = |(row, mixture): (usize, &Mixture)| Route {
                    tokens: row * length..(row + 1) * length,
                    mixture: mixture.clone(),
                };
                Pass::inference().with_routes(part, mixtures.iter().enumerate().map(route).collect()).unwrap()
            };
            let outputs = outputs(model, mixtures.len(), &pass);

            // Two slots in one pass, and the gradient of what goes in.
            let input = Var::from_tensor(&drawn(&[2, 5, model.config().text.hidden_size], 4, model.device())).unwrap();
            let routes = [(0..5, slots[0]), (5..10, slots[5])];
            let route = |(tokens, slot)| Route { tokens, mixture: Mixture::of(slot) };
            let pass = Pass::inference().with_routes(Part::Decoder, routes.map(route).to_vec()).unwrap();
            let embeds = input.to_dtype(case.dtype).unwrap();
            let hidden = model.decoder().forward(&pass, &embeds, &Placement::plain(2, 0, 5), None).unwrap();
            let logits = model.decoder().text_logits(&pass, &hidden).unwrap();
            let gradients = loss(&[logits]).backward().unwrap();
            let moved = BTreeMap::from([("embeddings".to_owned(), here(gradients.get(&input).unwrap()))]);
            (named(&outputs), moved)
        };
        let expected = run(&case.open(&Device::Cpu));
        let got = as_on(&device, || run(&case.open(&device)));
        let what = format!("routes over {:?} in {:?}", case.weights.1, case.dtype);
        compare(&what, &got.0, &expected.0, case.outputs, &mut failed);
        compare(&format!("{what}, gradients"), &got.1, &expected.1, case.gradients, &mut failed);
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
