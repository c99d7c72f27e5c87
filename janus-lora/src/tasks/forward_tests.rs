//! Packed batches against their rows alone and against the padded rectangle.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use janus_core::checkpoint::{Checkpoint, init_checkpoint};
use janus_core::config::{JanusConfig, Layout};
use janus_core::noise;
use janus_core::{Parts, site::sites};

use super::*;
use crate::adapter::{Adapter, AdapterSpec};
use crate::heads::Heads;
use crate::train::trainable::Trainables;

const PLACEHOLDER: u32 = 261;
const PAD: u32 = 0;

fn drawn(name: &str, shape: &[usize], factor: f64) -> Tensor {
    let (key, count) = (noise::key_of(name), shape.iter().product::<usize>() as u64);
    let values: Vec<f32> = (0..count).map(|i| (factor * noise::normal(key, i)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A tiny model with a pair of nonzero factors at every site between the token embeddings and the frozen heads.
fn model() -> (Janus, Trainables) {
    let config = JanusConfig::shape("janus-tiny").unwrap();
    let folder = tempfile::tempdir().unwrap();
    init_checkpoint(&config, 5, DType::F32, folder.path(), Layout::Native, &mut |_, _| {}).unwrap();
    let parts = Parts { image_tokenizer: false, ..Parts::all() };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let model = Janus::open(&checkpoint, DType::F32, &Device::Cpu, parts, &mut |_| {}).unwrap();
    let without = ["lm_head", "model.generation_head.vision_head", "model.language_model.embed_tokens"];
    let adapted = |path: &str| !path.contains("vqmodel") && !without.contains(&path);
    let spec = AdapterSpec {
        rank: 3,
        alpha: 4.5,
        dropout: 0.0,
        sites: sites(&config).into_iter().map(|site| site.path).filter(|path| adapted(path)).collect(),
        modules_to_save: Vec::new(),
        dynamic: None,
        heads: Vec::new(),
        aligns: false,
        base_name: None,
        ..AdapterSpec::default()
    };
    let read = |name: &str| Ok(checkpoint.read(name, DType::F32)?);
    let mut adapter = Adapter::new(&config, false, &spec, 7, &read).unwrap();
    for (path, site) in &mut adapter.sites {
        let [a, b] = site.pair_mut().unwrap();
        *a = drawn(&format!("{path} a"), a.dims(), 0.05);
        *b = drawn(&format!("{path} b"), b.dims(), 0.05);
    }
    let trainables = Trainables::attach(&model, adapter).unwrap();
    (model, trainables)
}

/// A batch's summed loss, its count of labels and of right ones, and the gradient of each variable it reaches.
struct Outcome {
    sum: f64,
    tokens: usize,
    correct: usize,
    gradients: BTreeMap<String, Vec<f32>>,
}

impl Outcome {
    fn of(model: &Janus, trainables: &Trainables, batch: &Batch) -> Self {
        let loss = batch.loss(model, &Pass::inference(), &Heads::new()).unwrap();
        assert_eq!(loss.tokens, batch.supervised());
        let gradients = loss.sum.backward().unwrap();
        let gradient = |var| gradients.get(var).map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let gradients = trainables.iter().filter_map(|t| Some((t.name.clone(), gradient(t.var.as_tensor())?)));
        let sum = f64::from(loss.sum.to_scalar::<f32>().unwrap());
        let correct = loss.correct.to_scalar::<u32>().unwrap() as usize;
        Self { sum, tokens: loss.tokens, correct, gradients: gradients.collect() }
    }

    /// What several batches come to.
    fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self { sum: 0.0, tokens: 0, correct: 0, gradients: BTreeMap::new() };
        for part in parts {
            whole.sum += part.sum;
            whole.tokens += part.tokens;
            whole.correct += part.correct;
            for (name, gradient) in part.gradients {
                let sum = whole.gradients.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
            }
        }
        whole
    }

    /// Fails unless the means over the labels agree to 1e-5, and the variables with a gradient are the same.
    #[track_caller]
    fn close(&self, expected: &Self) {
        assert_eq!((self.tokens, self.correct), (expected.tokens, expected.correct));
        let labels = expected.tokens as f64;
        assert!((self.sum - expected.sum).abs() / labels < 1e-5, "loss {} {}", self.sum, expected.sum);
        assert!(self.gradients.keys().eq(expected.gradients.keys()));
        for (name, gradient) in &self.gradients {
            let expected = &expected.gradients[name];
            assert!(expected.iter().any(|g| *g != 0.0), "`{name}` has no gradient to compare");
            for (got, expected) in gradient.iter().zip(expected) {
                let difference = f64::from((got - expected).abs()) / labels;
                assert!(difference < 1e-5, "`{name}`: {got} {expected}");
            }
        }
    }

    fn reaches(&self, part: &str) -> bool {
        self.gradients.keys().any(|name| name.contains(part))
    }
}

/// A row of `length` text tokens after `images` pictures, every third token labelled and the first one too.
fn row(seed: u64, length: usize, images: usize, patches: usize) -> TextSample {
    let mut ids = vec![PLACEHOLDER; images * patches];
    ids.extend((0..length as u64).map(|i| (noise::mix(seed * 1000 + i) % 256) as u32));
    let labels = ids.iter().enumerate().map(|(place, id)| if place % 3 == 0 { i64::from(*id) } else { -100 });
    TextSample { labels: labels.collect(), ids }
}

/// The samples as a rectangle, filled up on the left or on the right.
fn rectangle(samples: &[TextSample], images: Vec<Image>, left: bool) -> TextBatch {
    let length = samples.iter().map(|sample| sample.ids.len()).max().unwrap();
    let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for sample in samples {
        let (own, filled) = (sample.ids.len(), length - sample.ids.len());
        let (before, after) = if left { (filled, 0) } else { (0, filled) };
        ids.extend([vec![PAD; before], sample.ids.clone(), vec![PAD; after]].concat());
        mask.extend([vec![false; before], vec![true; own], vec![false; after]].concat());
        // A first token behind padding would have a place before it.
        let labelled = [vec![-100], sample.labels[1..].to_vec()].concat();
        labels.extend([vec![-100; before], labelled, vec![-100; after]].concat());
    }
    TextBatch::padded(ids, &mask, &labels, samples.len(), images, PLACEHOLDER)
}

/// Compares rows of these lengths and numbers of images, packed, with each alone and with rectangles.
fn check_text(rows: &[(usize, usize)]) -> Outcome {
    let (model, trainables) = model();
    let vision = &model.config().vision;
    let (patches, side) = (vision.num_patches(), vision.image_size);
    let samples: Vec<TextSample> =
        rows.iter().enumerate().map(|(i, (length, images))| row(i as u64, *length, *images, patches)).collect();
    let all: usize = rows.iter().map(|(_, images)| images).sum();
    let pixels = drawn("pixels", &[all.max(1), 3, side, side], 0.5);
    let pictures = Image::each_of(&pixels).unwrap();
    let of = |from: usize, count: usize| pictures[from..from + count].to_vec();
    let outcome = |batch: TextBatch| Outcome::of(&model, &trainables, &Batch::Text(batch));

    let packed = outcome(TextBatch::packed(&samples, of(0, all), PLACEHOLDER));
    let mut first = 0;
    let alone = samples.iter().zip(rows).map(|(sample, (_, images))| {
        first += images;
        outcome(TextBatch::packed(std::slice::from_ref(sample), of(first - images, *images), PLACEHOLDER))
    });
    packed.close(&Outcome::sum(alone));
    packed.close(&outcome(rectangle(&samples, of(0, all), true)));
    packed.close(&outcome(rectangle(&samples, of(0, all), false)));
    packed
}

#[test]
fn packed_text_is_its_rows_alone() {
    let outcome = check_text(&[(7, 0), (1, 0), (19, 0), (4, 0)]);
    assert!(outcome.reaches(".language_model.") && !outcome.reaches(".vision_model."));
}

#[test]
fn packed_text_with_images_is_its_rows_alone() {
    let outcome = check_text(&[(5, 1), (11, 0), (9, 2)]);
    assert!(outcome.reaches(".language_model.") && outcome.reaches(".vision_model.") && outcome.reaches(".aligner."));
}

#[test]
fn packed_codes_are_their_rows_alone() {
    let (model, trainables) = model();
    let prompts: Vec<Vec<u32>> = [5, 1, 9, 2].iter().map(|n| (0..*n).map(|i| 7 * i + n).collect()).collect();
    let codes: Vec<Vec<u32>> = [6, 3, 1, 11].iter().map(|n| (0..*n).map(|i| (5 * i + n) % 60).collect()).collect();
    let batch = |prompts: &[Vec<u32>], codes: &[Vec<u32>]| {
        let (prompts, codes) = (prompts.to_vec(), codes.to_vec());
        Batch::Codes(CodeBatch { prompts, codes, images: Vec::new(), placeholder: PLACEHOLDER })
    };
    let packed = Outcome::of(&model, &trainables, &batch(&prompts, &codes));
    let alone = prompts.chunks(1).zip(codes.chunks(1));
    packed.close(&Outcome::sum(alone.map(|(prompt, codes)| Outcome::of(&model, &trainables, &batch(prompt, codes)))));
    assert!(packed.reaches(".language_model.") && packed.reaches(".generation_aligner."));

    let Batch::Codes(whole) = batch(&prompts, &codes) else { unreachable!("made of codes") };
    let logits = whole.logits(&model, &Pass::inference()).unwrap();
    assert_eq!(logits.dims(), [21, model.config().vq.num_embeddings]);
    let loss = ops::cross_entropy(&logits, &codes.concat()).unwrap().to_scalar::<f32>().unwrap();
    assert!((f64::from(loss) - packed.sum).abs() < 1e-4, "{loss} {}", packed.sum);
}

#[test]
fn a_row_without_prompt_or_codes_is_an_error() {
    let (model, _) = model();
    for (prompts, codes) in [
        (vec![vec![], vec![1]], vec![vec![1], vec![2]]),
        (vec![vec![3], vec![1]], vec![vec![1], vec![]]),
        (vec![vec![3]], vec![]),
    ] {
        let batch = Batch::Codes(CodeBatch { prompts, codes, images: Vec::new(), placeholder: PLACEHOLDER });
        let error = batch.loss(&model, &Pass::inference(), &Heads::new()).unwrap_err();
        assert!(error.to_string().contains("prompts and image codes"), "{error}");
    }
}
