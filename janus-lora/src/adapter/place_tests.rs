use std::path::Path;

use candle_core::DType;
use janus_core::checkpoint::{Checkpoint, init_checkpoint};
use janus_core::config::Layout;
use janus_core::model::decoder::Placement;
use janus_core::pass::Pass;
use janus_core::site::{Correction, Term, sites};
use janus_core::{Janus, Parts};

use super::super::testing::{base, bits, spec, trained};
use super::*;

const QUERY: &str = "model.language_model.layers.0.self_attn.q_proj";
const PATCH: &str = "model.vision_model.embeddings.patch_embedding";
const TOKENS: &str = "model.language_model.embed_tokens";

fn checkpoint(folder: &Path) -> Checkpoint {
    init_checkpoint(&base(), 5, DType::F32, folder, Layout::Native, &mut |_, _| {}).unwrap();
    Checkpoint::open(folder).unwrap()
}

fn open(parts: Parts) -> Janus {
    let folder = tempfile::tempdir().unwrap();
    Janus::open(&checkpoint(folder.path()), DType::F32, &Device::Cpu, parts, &mut |_| {}).unwrap()
}

/// Image features and text logits of a prompt: every part of an understanding pass.
fn outputs(model: &Janus) -> Vec<f32> {
    let pass = Pass::inference();
    let mut values = Vec::new();
    let mut add = |tensor: Tensor| values.extend(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    if let Ok(vision) = model.vision() {
        let side = base().vision.image_size;
        let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        add(vision.forward(&pass, &Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap()).unwrap());
    }
    let embeds = model.decoder().embed(&pass, &[256, 7, 9, 300], 1).unwrap();
    let hidden = model.decoder().forward(&pass, &embeds, &Placement::plain(1, 0, 4), None).unwrap();
    add(model.decoder().text_logits(&pass, &hidden).unwrap());
    values
}

/// Scales of a correction's low-rank terms.
fn scales(correction: &Correction) -> Vec<f64> {
    let scale = |term: &Term| match term {
        Term::LowRank(term) => term.scale,
        Term::Kronecker(_) => panic!("a Kronecker product"),
    };
    correction.terms.iter().map(scale).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_new_adapter_is_the_identity_and_detaching_gives_the_base_back() {
    let model = open(Parts::all());
    let plain = outputs(&model);
    let new = Adapter::new(&base(), false, &spec(&[QUERY, PATCH, TOKENS], &[]), 1, &super::super::testing::parameter);
    attach(&model, &[(&new.unwrap(), 1.0)]).unwrap();
    assert_eq!(outputs(&model), plain);
    let trained = trained(&spec(&[QUERY, PATCH, TOKENS], &["language_model.norm"]));
    attach(&model, &[(&trained, 1.0)]).unwrap();
    assert!(distance(&outputs(&model), &plain) > 0.1);
    detach(&model);
    assert_eq!(outputs(&model), plain);
}

#[test]
fn an_attached_adapter_computes_with_the_shifted_weight() {
    let model = open(Parts::all());
    let adapter = trained(&spec(&[QUERY, PATCH, TOKENS, "lm_head"], &["post_layernorm"]));
    attach(&model, &[(&adapter, 0.5)]).unwrap();
    let attached = outputs(&model);
    let mut shifted = Vec::new();
    for (path, site) in &adapter.sites {
        let projection = model.projections().get(path).unwrap();
        let weight = model.parameters().get(&format!("{path}.weight")).unwrap().frozen().values();
        let correction = projection.correction().unwrap();
        assert_eq!(scales(&correction), [0.75], "1.5 of the adapter, halved");
        assert_eq!(site.scale, 1.5);
        shifted.push((path, correction.fold(projection.site(), weight).unwrap()));
    }
    detach(&model);
    for (path, weight) in shifted {
        model.parameters().substitute(&format!("{path}.weight"), Some(weight)).unwrap();
    }
    for (name, copy) in &adapter.saved {
        let base = model.parameters().get(name).unwrap().frozen().values();
        model.parameters().substitute(name, Some(((base + copy).unwrap() / 2.0).unwrap())).unwrap();
    }
    let folded = outputs(&model);
    let largest = folded.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(distance(&attached, &folded) < 1e-4 * largest, "{}", distance(&attached, &folded));
}

#[test]
fn a_factor_is_for_the_whole_adapter() {
    let norm = "model.language_model.norm.weight";
    for dtype in [DType::F32, DType::BF16] {
        let folder = tempfile::tempdir().unwrap();
        let model = Janus::open(&checkpoint(folder.path()), dtype, &Device::Cpu, Parts::all(), &mut |_| {}).unwrap();
        let plain = (dtype == DType::F32).then(|| outputs(&model));
        let adapter = trained(&spec(&[QUERY], &["language_model.norm", "post_layernorm", "lm_head"]));
        attach(&model, &[(&adapter, 0.0)]).unwrap();
        assert_eq!(plain.as_ref().map(|_| outputs(&model)), plain, "the base to the bit");
        assert!(model.parameters().get(norm).unwrap().copy().is_none());
        attach(&model, &[(&adapter, 1.0)]).unwrap();
        for (name, copy) in &adapter.saved {
            assert_eq!(bits(&model.parameters().get(name).unwrap().copy().unwrap()), bits(copy), "{name}");
        }
        for factor in [0.25, -1.5] {
            attach(&model, &[(&adapter, factor)]).unwrap();
            for (name, copy) in &adapter.saved {
                let parameter = model.parameters().get(name).unwrap();
                let values = |tensor: &Tensor| -> Vec<f32> {
                    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                };
                let (base, copy, got) =
                    (values(&parameter.frozen().values()), values(copy), values(&parameter.copy().unwrap()));
                for ((base, copy), got) in base.iter().zip(&copy).zip(&got) {
                    let expected = f64::from(*base) + factor * (f64::from(*copy) - f64::from(*base));
                    assert!((f64::from(*got) - expected).abs() < 1e-5, "{name}: {got}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn several_adapters_add_up() {
    let model = open(Parts::all());
    let one = trained(&spec(&[QUERY, PATCH], &[]));
    let other = trained(&spec(&[QUERY], &["language_model.norm"]));
    attach(&model, &[(&one, 2.0), (&other, -1.0)]).unwrap();
    let correction = model.projections().get(QUERY).unwrap().correction().unwrap();
    assert_eq!(scales(&correction), [3.0, -1.5]);
    // The two have the same factors at that site: twice the one less once the other is the one.
    let sum = outputs(&model);
    attach(&model, &[(&one, 1.0)]).unwrap();
    for name in other.saved.keys() {
        let base = model.parameters().get(name).unwrap().frozen().values();
        let mirrored = ((base * 2.0).unwrap() - &other.saved[name]).unwrap();
        model.parameters().substitute(name, Some(mirrored)).unwrap();
    }
    let projection = model.projections().get(PATCH).unwrap();
    let twice = Correction::sum(projection.site(), &projection.frozen(), &[(&projection.correction().unwrap(), 2.0)]);
    projection.attach(Some(Arc::new(twice.unwrap()))).unwrap();
    assert!(distance(&sum, &outputs(&model)) < 1e-2, "{}", distance(&sum, &outputs(&model)));
}

#[test]
fn only_one_may_replace_parameters() {
    let model = open(Parts::all());
    let plain = outputs(&model);
    let with = trained(&spec(&[QUERY], &["language_model.norm"]));
    let without = trained(&spec(&[QUERY], &[]));
    let error = attach(&model, &[(&with, 1.0), (&without, 1.0), (&with, 1.0)]).unwrap_err();
    assert!(matches!(error, AdapterError::SeveralCopies { first: 1, second: 3 }), "{error}");
    assert_eq!(outputs(&model), plain, "nothing was attached");
}

#[test]
fn parts_that_were_not_loaded_are_left_out_and_nothing_else() {
    let everything: Vec<String> = sites(&base()).into_iter().map(|site| site.path.to_string()).collect();
    let paths: Vec<&str> = everything.iter().map(String::as_str).collect();
    let adapter = trained(&spec(&paths, &[]));
    let of = |parts| {
        let model = open(parts);
        attach(&model, &[(&adapter, 1.0)]).unwrap();
        let count = model.projections().iter().filter(|p| p.correction().is_some()).count();
        assert_eq!(count, model.projections().iter().count(), "every loaded site has its pair");
        count
    };
    assert_eq!(of(Parts::all()), everything.len());
    assert_eq!(of(Parts { text_head: true, ..Parts::default() }), 2 * 7 + 2);
    assert_eq!(of(Parts { generation: true, ..Parts::default() }), 2 * 7 + 1 + 1 + 2 + 2);

    let copies = trained(&spec(&[QUERY], &["model.vision_model", "lm_head", "vqmodel"]));
    let model = open(Parts::default());
    attach(&model, &[(&copies, 1.0)]).unwrap();
    assert!(model.parameters().iter().all(|parameter| parameter.copy().is_none()));
}

#[test]
fn an_adapter_for_another_model_is_refused_and_changes_nothing() {
    let model = open(Parts::all());
    let mut beyond = trained(&spec(&[QUERY, PATCH], &[]));
    let site = beyond.sites.remove(QUERY).unwrap();
    beyond.sites.insert("model.language_model.layers.9.self_attn.q_proj".into(), site.clone());
    let error = attach(&model, &[(&beyond, 1.0)]).unwrap_err().to_string();
    assert!(error.contains("no module `model.language_model.layers.9.self_attn.q_proj`"), "{error}");

    let mut wide = trained(&spec(&[QUERY, PATCH], &["language_model.norm"]));
    *wide.sites.get_mut(QUERY).unwrap().pair_mut().unwrap()[0] =
        Tensor::zeros((3, 49), DType::F32, &Device::Cpu).unwrap();
    let error = attach(&model, &[(&wide, 1.0)]).unwrap_err().to_string();
    assert!(error.contains("[3, 49], expected [3, 48]"), "{error}");
    wide.sites.insert(QUERY.into(), site);
    wide.saved.insert("model.language_model.norm.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let error = attach(&model, &[(&wide, 1.0)]).unwrap_err().to_string();
    assert!(error.contains("[3], expected [48]"), "{error}");
    assert!(model.projections().iter().all(|projection| projection.correction().is_none()));
    assert!(bits(&model.parameters().get("lm_head.weight").unwrap().frozen().values()).iter().any(|b| *b != 0));
}

#[test]
fn half_of_a_tied_pair_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut tied = base();
    tied.tie_word_embeddings = true;
    init_checkpoint(&tied, 5, DType::F32, folder.path(), Layout::Native, &mut |_, _| {}).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.is_tied());
    let model = Janus::open(&checkpoint, DType::F32, &Device::Cpu, Parts::all(), &mut |_| {}).unwrap();
    for module in ["lm_head", "embed_tokens"] {
        let error = attach(&model, &[(&trained(&spec(&[QUERY], &[module])), 1.0)]).unwrap_err();
        assert!(matches!(error, AdapterError::TiedCopy { .. }), "{error}");
    }
    // Pairs are another matter: one on the embedding leaves the head as it is.
    let plain = outputs(&model);
    attach(&model, &[(&trained(&spec(&[TOKENS], &[])), 1.0)]).unwrap();
    let hidden = Tensor::ones((1, 48), DType::F32, &Device::Cpu).unwrap();
    let logits = |model: &Janus| bits(&model.decoder().text_logits(&Pass::inference(), &hidden).unwrap());
    let with = logits(&model);
    assert!(distance(&outputs(&model), &plain) > 0.1);
    detach(&model);
    assert_eq!(with, logits(&model));
}
