//! Training runs against those of PyTorch and PEFT: losses, gradient norms, clip factors, first gradients, last adapters.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use janus_core::ops::with_composed;
use janus_core::processing::Sample;
use janus_lora::adapter::Adapter;
use janus_lora::cache::Image;
use janus_lora::recipe::{Accumulation, Schedule};
use janus_lora::tasks::{Batch, CodeBatch, TextBatch};
use janus_lora::train::optimizer::AdamWConfig;
use janus_lora::train::schedule::LearningRate;
use janus_lora::train::step::{Stepper, TableBatch, TableLoss};
use janus_lora::train::trainable::Trainables;
use janus_tests::base::{PLACEHOLDER, open};
use janus_tests::compare::{close, close_number};
use janus_tests::expected::Expected;
use janus_tests::{fixtures, json};
use serde_json::Value;

/// Batches of each task's data, used in turn.
const BATCHES: usize = 5;

/// The rows without the padding that transformers was given.
fn understanding(data: &Expected, k: usize) -> Batch {
    let ids = data.ids(&format!("{k}.input_ids"));
    let masks = data.ids(&format!("{k}.attention_mask"));
    let labels = data.integers(&format!("{k}.labels"));
    let samples = ids.iter().zip(&labels).zip(&masks).map(|((ids, labels), mask)| {
        let attended = |place: &usize| mask[*place] == 1;
        let places: Vec<usize> = (0..ids.len()).filter(attended).collect();
        Sample { ids: places.iter().map(|p| ids[*p]).collect(), labels: places.iter().map(|p| labels[*p]).collect() }
    });
    let samples: Vec<Sample> = samples.collect();
    let images = Image::each_of(data.tensor(&format!("{k}.pixel_values"))).unwrap();
    Batch::Text(TextBatch::packed(&samples, images, PLACEHOLDER))
}

/// The prompt ends with `<begin_of_image>`, where the first label's predecessor stands.
fn generation(data: &Expected, k: usize) -> Batch {
    let ids = data.ids(&format!("{k}.input_ids"));
    let labels = data.integers(&format!("{k}.labels"));
    let prompts = ids.iter().zip(&labels).map(|(ids, labels)| {
        let first = labels.iter().position(|label| *label >= 0).unwrap();
        ids[..first].to_vec()
    });
    Batch::Codes(CodeBatch {
        prompts: prompts.collect(),
        codes: data.ids(&format!("{k}.image_tokens")),
        images: Vec::new(),
        placeholder: PLACEHOLDER,
    })
}

struct Run {
    understanding: Expected,
    generation: Expected,
    task: String,
    accumulate: usize,
}

impl Run {
    /// The batches of one step: `joint` takes one of each task, accumulation four of understanding.
    fn batches(&self, step: usize) -> Vec<TableBatch> {
        let text =
            |k: usize| TableBatch { table: 0, batch: understanding(&self.understanding, k % BATCHES), aligned: None };
        let image = |k: usize| TableBatch { table: 1, batch: generation(&self.generation, k % BATCHES), aligned: None };
        match self.task.as_str() {
            "generation" => vec![image(step)],
            "joint" => vec![text(step), image(step)],
            _ => (0..self.accumulate).map(|i| text(step * self.accumulate + i)).collect(),
        }
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number `{key}`"))
}

fn replay(folder: &Path, name: &str) {
    let train = folder.join("train");
    let trajectory = json(&train.join(name), "trajectory.json");
    let settings = &trajectory["settings"];
    let text = |key: &str| settings[key].as_str().unwrap_or_default().to_owned();
    let run = Run {
        understanding: Expected::load(&train, "data_understanding.safetensors"),
        generation: Expected::load(&train, "data_generation.safetensors"),
        task: text("task"),
        accumulate: settings["accumulate"].as_u64().unwrap() as usize,
    };
    let model = open(&folder.join("hf"));
    let adapter = Adapter::read(&train.join("init"), model.config(), model.is_tied()).unwrap();
    let betas = [settings["betas"][0].as_f64().unwrap(), settings["betas"][1].as_f64().unwrap()];
    let config = AdamWConfig { betas, eps: number(settings, "eps"), weight_decay: number(settings, "weight_decay") };
    let rate = LearningRate {
        peak: number(settings, "lr"),
        schedule: if text("schedule") == "cosine" { Schedule::Cosine } else { Schedule::Constant },
        warmup_steps: settings["warmup_steps"].as_u64().unwrap(),
        steps: settings["steps"].as_u64().unwrap(),
    };
    let accumulation = if text("normalise") == "mean" { Accumulation::Mean } else { Accumulation::Tokens };
    let tables = ["understanding", "generation"].map(|name| TableLoss { name: name.into(), loss_weight: 1.0 });
    let clip = number(settings, "max_grad_norm");
    let trainables = Trainables::attach(&model, adapter).unwrap();
    let mut stepper = Stepper::new(trainables, config, tables.into(), accumulation, clip, 0);

    if train.join(name).join("step0_gradients.safetensors").exists() {
        let expected = Expected::load(&train.join(name), "step0_gradients.safetensors");
        let (gradients, _) = stepper.gradients(&model, 0, &run.batches(0)).unwrap();
        let mut compared = 0;
        for (trainable, gradient) in stepper.trainables.iter().zip(gradients) {
            match gradient {
                Some(gradient) => {
                    let gradient =
                        candle_core::Tensor::from_vec(gradient, trainable.var.dims(), trainable.var.device());
                    let name = format!("{name}: gradient of {}", trainable.name);
                    close(&name, &gradient.unwrap(), expected.tensor(&trainable.name), 5e-6);
                    compared += 1;
                }
                None => assert!(!expected.has(&trainable.name), "{name}: `{}` has no gradient", trainable.name),
            }
        }
        assert_eq!(compared, expected.len(), "{name}: tensors with a gradient");
    }

    for (k, expected) in trajectory["steps"].as_array().unwrap().iter().enumerate() {
        let learning_rate = rate.at(k as u64);
        close_number(&format!("{name}: rate of step {k}"), learning_rate, number(expected, "lr"), 1e-12);
        let report = stepper.step(&model, k as u64, learning_rate, &run.batches(k)).unwrap();
        close_number(&format!("{name}: loss of step {k}"), report.loss, number(expected, "loss"), 2e-5);
        let norm = number(expected, "grad_norm");
        close_number(&format!("{name}: gradient norm of step {k}"), report.grad_norm, norm, 1e-5 * norm);
        let factor = number(expected, "clip_coefficient");
        close_number(&format!("{name}: clip factor of step {k}"), report.clip_factor, factor, 1e-5);
        if let Some(tokens) = expected["tokens"].as_array() {
            let tokens: u64 = tokens.iter().map(|t| t.as_u64().unwrap()).sum();
            assert_eq!(report.supervised[0] as u64, tokens, "{name}: supervised tokens of step {k}");
        }
    }
    let expected = Expected::load(&train.join(name), "final_adapter.safetensors");
    let tensors = stepper.trainables.adapter().unwrap().tensors();
    assert_eq!(tensors.len(), expected.len());
    for (key, tensor) in tensors {
        close(&format!("{name}: last {key}"), &tensor, expected.tensor(&key), 1e-5);
    }
}

macro_rules! runs {
    ($($test:ident = $name:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            let Some(folder) = fixtures() else { return };
            replay(&folder, $name);
        }
    )*};
}

runs! {
    understanding_constant = "understanding-constant",
    understanding_cosine = "understanding-cosine",
    generation_constant = "generation-constant",
    generation_cosine = "generation-cosine",
    joint_constant = "joint-constant",
    joint_cosine = "joint-cosine",
    accumulate_tokens = "accumulate-tokens",
    accumulate_mean = "accumulate-mean",
    other_settings = "other-settings",
}

/// One run of each task with every operation composed as on a GPU.
#[test]
fn composed_operations_train_the_same() {
    let Some(folder) = fixtures() else { return };
    for name in ["understanding-cosine", "generation-cosine"] {
        with_composed(|| replay(&folder, name));
    }
}
