use std::path::Path;

use janus_core::Diagnose;
use janus_core::Fault;
use janus_core::checkpoint::{Checkpoint, init_checkpoint};
use janus_core::config::JanusConfig;
use janus_core::pass::Pass;
use janus_core::processing::Sample;
use janus_core::{Parts, noise};

use std::sync::Arc;

use super::*;
use crate::adapter::{self, AdapterSpec};
use crate::cache::Image;
use crate::dynamic::Paths;
use crate::status::Silent;
use crate::tasks::{CodeBatch, TextBatch};

const SITES: [&str; 3] = [
    "model.generation_embeddings",
    "model.language_model.layers.0.mlp.down_proj",
    "model.vision_model.embeddings.patch_embedding",
];

fn tiny(folder: &Path, stored: DType) -> Base {
    let config = JanusConfig::shape("janus-tiny").unwrap();
    init_checkpoint(&config, 5, stored, folder, Layout::Native, &mut |_, _| ()).unwrap();
    Base::open_folder("tiny", folder).unwrap()
}

/// An adapter as training begins, every B·A zero.
fn fresh(base: &Base, sites: &[&str], modules: &[&str]) -> Adapter {
    let spec = AdapterSpec {
        rank: 3,
        alpha: 4.5,
        dropout: 0.0,
        sites: sites.iter().map(|path| Arc::from(*path)).collect(),
        modules_to_save: modules.iter().map(|module| (*module).to_owned()).collect(),
        dynamic: None,
        heads: Vec::new(),
        aligns: false,
        base_name: None,
        ..AdapterSpec::default()
    };
    Adapter::new(base.config(), false, &spec, 7, &|name| Ok(base.checkpoint().read(name, DType::F32)?)).unwrap()
}

/// The same with factors of this size.
fn trained(base: &Base, size: f64) -> Adapter {
    let mut adapter = fresh(base, &SITES, &[]);
    for (path, site) in &mut adapter.sites {
        for (factor, name) in site.pair_mut().unwrap().into_iter().zip(["a", "b"]) {
            let key = noise::key_of(&format!("{path} {name}"));
            let values: Vec<f32> =
                (0..factor.elem_count()).map(|i| (size * noise::normal(key, i as u64)) as f32).collect();
            *factor = Tensor::from_vec(values, factor.dims(), &Device::Cpu).unwrap();
        }
    }
    adapter
}

fn run(base: &Base, adapters: &[(Adapter, f64)], dtype: Option<DType>, out: &Path) -> Result<MergeReport> {
    merge(base, adapters, MergeOptions { dtype, layout: None }, &Device::Cpu, StagedFolder::create(out)?, &Silent)
}

/// Why these adapters are not merged; nothing is left of the output.
fn refusal(base: &Base, adapters: &[(Adapter, f64)]) -> MergeError {
    let place = tempfile::tempdir().unwrap();
    let error = run(base, adapters, None, &place.path().join("deep/merged")).unwrap_err();
    assert_eq!((error.fault(), error.hints().len()), (Fault::Input, 1), "{error}");
    assert_eq!(fs_err::read_dir(place.path()).unwrap().count(), 0, "{error}");
    match error {
        Error::Merge(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn the_receipt_is_what_the_files_say() {
    let (folder, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = tiny(folder.path(), DType::BF16);
    let adapters = [(trained(&base, 0.15), 0.5), (trained(&base, 0.1), 1.0)];
    let mut compared = Vec::new();
    for (dtype, largest_loss) in [(None, 0.1), (Some(DType::F32), 1e-6)] {
        let out = place.path().join(format!("{dtype:?}"));
        let report = run(&base, &adapters, dtype, &out).unwrap();
        let mut names: Vec<&str> = report.tensors.iter().map(|tensor| tensor.tensor.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, SITES.map(|site| format!("{site}.weight")));
        assert_eq!(report.changed_tensors, 3);
        let merged = Checkpoint::open(&out).unwrap();
        let mut squares = 0.0;
        for tensor in &report.tensors {
            let read = |checkpoint: &Checkpoint| checkpoint.read(&tensor.tensor, DType::F32).unwrap();
            let moved = (read(&merged) - read(base.checkpoint())).unwrap().sqr().unwrap().sum_all().unwrap();
            let moved = f64::from(moved.to_scalar::<f32>().unwrap()).sqrt();
            // The files hold D and its rounding.
            let change = &tensor.change;
            let slack = change.delta_norm * (change.rounding_loss.unwrap() + 1e-4);
            assert!((moved - change.delta_norm).abs() <= slack, "{tensor:?}: the files differ by {moved}");
            assert!(change.rounding_loss.unwrap() < largest_loss, "{tensor:?}");
            assert!(change.delta_norm > 0.1, "{tensor:?}");
            squares += change.delta_norm.powi(2);
        }
        assert!((report.total.delta_norm - squares.sqrt()).abs() < 1e-9);
        let heads: Vec<&str> = report.heads.iter().map(|head| head.head).collect();
        assert_eq!(heads, ["text", "image"]);
        for head in &report.heads {
            assert!(head.positions > 1 && head.mean_kl_nats <= head.max_kl_nats, "{head:?}");
        }
        assert!(!report.total.is_swallowed());
        compared.push(report.heads);
    }
    // A rounded weight shows in the predictions, a kept sum hardly.
    for (rounded, kept) in compared[0].iter().zip(&compared[1]) {
        assert!(rounded.largest_logit_difference > 10.0 * kept.largest_logit_difference, "{rounded:?} {kept:?}");
        assert!(rounded.max_kl_nats > 10.0 * kept.max_kl_nats, "{rounded:?} {kept:?}");
    }
}

#[test]
fn one_part_after_another_gives_what_the_whole_model_gives() {
    let folder = tempfile::tempdir().unwrap();
    let base = tiny(folder.path(), DType::BF16);
    let adapters = [(trained(&base, 0.15), 0.5), (trained(&base, 0.1), 1.0)];
    let bar = Silent.bytes("", 0);
    let logits = |adapters| {
        let subject = Subject { name: "s", base: &base, adapters, device: &Device::Cpu, bar: bar.as_ref() };
        subject.logits().unwrap().map(|logits| (logits.head, logits.rows))
    };
    let [(text_head, text), (image_head, image)] = logits(&adapters);
    assert_eq!((text_head, image_head), ("text", "image"));
    assert_ne!(logits(&[]).map(|(_, rows)| rows), [text.clone(), image.clone()]);

    let pass = Pass::inference();
    let model = base.model(DType::F32, &Device::Cpu, Parts::all(), &Silent).unwrap();
    adapter::attach(&model, &adapters.each_ref().map(|(adapter, scale)| (adapter, *scale))).unwrap();
    let side = base.config().vision.image_size;
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (noise::uniform(1, i as u64) * 2.0 - 1.0) as f32).collect();
    let pixels = Tensor::from_vec(pixels, (3, side, side), &Device::Cpu).unwrap();
    let ids = base.prompts().understanding_prompt("What does the image show?", 1, true).unwrap();
    let (count, placeholder) = (ids.len().min(64), base.tokenizer().special().image_placeholder);
    let question = Sample { ids, labels: Vec::new() };
    let batch = TextBatch::packed(&[question], vec![Image::from_pixels(pixels)], placeholder);
    let hidden = batch.hidden(&model, &pass, batch.features(&model, &pass).unwrap().as_ref()).unwrap();
    let last = hidden.narrow(1, batch.len() - count, count).unwrap();
    let codes = base.config().vq.num_embeddings as u64;
    let drawn = CodeBatch {
        prompts: vec![base.prompts().generation_prompt("a picture").unwrap()],
        codes: vec![(0..model.codes_per_image().min(64) as u64).map(|i| (noise::mix(i) % codes) as u32).collect()],
        images: Vec::new(),
        placeholder,
    };
    let whole = [model.decoder().text_logits(&pass, &last).unwrap(), drawn.logits(&model, &pass).unwrap()];
    for (rows, whole) in [text, image].iter().zip(whole) {
        let whole = whole.reshape(((), rows[0].len())).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows.len(), whole.len());
        for (one, other) in rows.iter().flatten().zip(whole.iter().flatten()) {
            assert!((one - other).abs() < 1e-5, "{one} and {other}");
        }
    }
}

#[test]
fn an_adapter_below_the_steps_of_the_type_is_swallowed() {
    let (folder, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = tiny(folder.path(), DType::BF16);
    let adapters = [(trained(&base, 1e-3), 1.0)];
    let total = run(&base, &adapters, None, &place.path().join("own")).unwrap().total;
    assert!(total.is_swallowed() && total.unmoved_share() > 0.8, "{total:?}");
    let total = run(&base, &adapters, Some(DType::F32), &place.path().join("wide")).unwrap().total;
    assert!(!total.is_swallowed() && total.unmoved_share() < 0.1, "{total:?}");
}

#[test]
fn adapters_that_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = tiny(folder.path(), DType::F32);
    let acting = || (trained(&base, 0.1), 1.0);
    let untrained = (fresh(&base, &SITES, &[]), 1.0);
    assert_eq!(refusal(&base, std::slice::from_ref(&untrained)), MergeError::NoOp { number: 1, count: 1 });
    assert_eq!(refusal(&base, &[acting(), untrained]), MergeError::NoOp { number: 2, count: 2 });
    assert_eq!(refusal(&base, &[(trained(&base, 0.1), 0.0)]), MergeError::NoOp { number: 1, count: 1 });
    let mut copied = fresh(&base, &SITES[..1], &["generation_head.vision_head"]);
    for copy in copied.saved.values_mut() {
        *copy = (&*copy + 0.3).unwrap();
    }
    assert_eq!(refusal(&base, &[(copied, 0.0)]), MergeError::NoOp { number: 1, count: 1 });
    // Copies equal to the base, and adapters that take each other back, show only in the sums.
    let copies = (fresh(&base, &SITES[..1], &["generation_head.vision_head"]), 1.0);
    assert_eq!(refusal(&base, &[copies]), MergeError::NothingChanged { tensors: 3 });
    let back = (trained(&base, 0.1), -1.0);
    assert_eq!(refusal(&base, &[acting(), back]), MergeError::NothingChanged { tensors: 3 });
}

#[test]
fn a_factor_is_for_copies_too() {
    let (folder, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = tiny(folder.path(), DType::F32);
    let name = "model.generation_head.vision_head.weight";
    let with_copies = || {
        let mut adapter = fresh(&base, &SITES[..1], &["generation_head.vision_head"]);
        for (name, copy) in &mut adapter.saved {
            let noise: Vec<f32> =
                (0..copy.elem_count()).map(|i| noise::normal(noise::key_of(name), i as u64) as f32).collect();
            *copy = (&*copy + Tensor::from_vec(noise, copy.dims(), &Device::Cpu).unwrap()).unwrap();
        }
        adapter
    };
    let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let own = values(base.checkpoint().read(name, DType::F32).unwrap());
    let copy = values(with_copies().saved[name].clone());
    for factor in [1.0, 0.25, -2.0] {
        let out = place.path().join(format!("{factor}"));
        let report = run(&base, &[(with_copies(), factor)], None, &out).unwrap();
        for head in &report.heads {
            assert!(head.largest_logit_difference < 2e-5, "{factor}: {head:?}");
        }
        let merged = values(Checkpoint::open(&out).unwrap().read(name, DType::F32).unwrap());
        for ((merged, own), copy) in merged.iter().zip(&own).zip(&copy) {
            if factor == 1.0 {
                assert_eq!(merged.to_bits(), copy.to_bits());
            }
            let expected = f64::from(*own) + factor * (f64::from(*copy) - f64::from(*own));
            assert!((f64::from(*merged) - expected).abs() < 1e-5, "{factor}: {merged}, expected {expected}");
        }
    }
}

#[test]
fn sums_that_are_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let base = tiny(folder.path(), DType::F32);
    // Each factor is finite, their product is not.
    let error = refusal(&base, &[(trained(&base, 1e25), 1.0)]);
    assert!(matches!(&error, MergeError::NotFinite { dtype: DType::F32, .. }), "{error}");
}

#[test]
fn a_dynamic_encoder_is_folded_behind_the_pairs() {
    let (folder, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = tiny(folder.path(), DType::F32);
    let aligner = "model.generation_aligner.hidden_layers.0";
    let with = |seed: u64, paths: Paths, modules: &[&str]| {
        let mut adapter = fresh(&base, &[aligner, SITES[1]], modules);
        for site in adapter.sites.values_mut() {
            let [_, b] = site.pair_mut().unwrap();
            *b = (b.ones_like().unwrap() * 0.03).unwrap();
        }
        for copy in adapter.saved.values_mut() {
            *copy = (&*copy + 0.3).unwrap();
        }
        adapter.dynamic = Some(crate::dynamic::tests::trained(base.config(), paths, seed));
        adapter
    };
    let both = Paths { vision: true, generation: true };
    let vision = Paths { vision: true, generation: false };
    let adapters = [(with(1, both, &["layers.1.layer_norm1"]), 0.5), (with(2, vision, &[]), 0.8)];
    let report = run(&base, &adapters, None, &place.path().join("merged")).unwrap();
    // Every norm of the tower, the aligner's weight and bias, and the other pair.
    assert_eq!(report.changed_tensors, 4 * base.config().vision.num_hidden_layers + 2 + 1);
    for head in &report.heads {
        assert!(head.largest_logit_difference < 2e-5, "{head:?}");
    }
    // Most biases of a new base are zero, and stay so.
    for tensor in report.tensors.iter().filter(|tensor| tensor.change.weight_norm > 0.0) {
        assert!(tensor.change.delta_norm > 0.0, "{tensor:?}");
    }

    let mut idle = fresh(&base, &[SITES[1]], &[]);
    idle.dynamic = Some(crate::dynamic::Dynamic::new(base.config(), both, 1).unwrap());
    assert!(matches!(refusal(&base, &[(idle, 1.0)]), MergeError::NoOp { .. }));
}
