//! Bad input to every command: exit code 2, one clear error, nothing written.
#![allow(clippy::unwrap_used)]

mod adapters;
mod bases;
mod commands;
#[cfg(unix)]
mod files;
#[cfg(unix)]
mod folders;
mod habits;
#[cfg(unix)]
mod links;
mod merges;
#[cfg(unix)]
mod outputs;
mod probe;
mod recipes;
mod rows;
mod strangers;
mod values;

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use janus_tests::rows::{images, integers, picture, texts, write_table};
use janus_tests::tiny::{Tree, Workplace, plant, tree};
use serde_json::Value;

/// A run of two steps; faults are put into it.
const RECIPE: &str = r#"# janus train recipe.toml
[base]
path = "base"
dtype = "f32"

[adapter]
rank = 2
targets = ["decoder", "vision"]

[[data]]
task = "understand"
train = "rows.parquet"

[train]
steps = 2
batch_size = 2

[output]
dir = "run"
"#;

/// A base, a recipe and six good rows in row groups of two.
fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    let pictures: Vec<_> = (0..6).map(|seed| Some(picture(40, 32, seed))).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..6).map(|i| format!("Which part is number {i}?")))),
        ("answer", texts((0..6).map(|i| format!("part {i}")))),
        ("number", integers(0..6)),
    ];
    write_table(&place.path("rows.parquet"), columns, 2);
    place
}

/// What `janus train` of the recipe with these overrides refuses.
#[track_caller]
fn train_refuses(overrides: &[&str], said: &[&str]) {
    let arguments: Vec<&str> = ["train", "recipe.toml"].iter().chain(overrides).copied().collect();
    place().refuses(&arguments, said);
}

/// The run folder of a training run over the base, made once.
fn adapter() -> &'static Tree {
    static ADAPTER: OnceLock<Tree> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let place = place();
        let targets = r#"adapter.targets=["decoder", "vision", "aligner"]"#;
        place.janus(&["train", "recipe.toml", targets, "train.steps=1"]).expect_success();
        tree(&place.path("run"))
    })
}

fn place_with_adapter() -> Workplace {
    let place = place();
    plant(adapter(), &place.path("run"));
    place.write("picture.png", picture(40, 40, 1));
    place
}

/// A cut picture.
fn truncated() -> Vec<u8> {
    let mut bytes = picture(64, 64, 5);
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// The header and the values of a safetensors file.
fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

fn join(header: &Value, values: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}
