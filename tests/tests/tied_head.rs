//! A base whose text head is its embedding table: trained, merged and told apart again.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::{DType, Tensor};
use janus_core::checkpoint::{Checkpoint, EMBED_TOKENS, LM_HEAD};
use janus_tests::compare::{close, same_bits};
use janus_tests::expected::Expected;
use janus_tests::rows::{texts, write_table};
use janus_tests::tiny::Workplace;

/// A `janus-tiny` without a stored head, in `base`, and rows of text.
fn tied() -> Workplace {
    let place = Workplace::with_base();
    let weights = place.path("base/model.safetensors");
    let tensors = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).unwrap();
    let kept: Vec<(String, Tensor)> = tensors.into_iter().filter(|(name, _)| name != LM_HEAD).collect();
    fs_err::write(&weights, safetensors::serialize(kept, None).unwrap()).unwrap();
    place.edit_json("base/config.json", |config| config["tie_word_embeddings"] = true.into());
    let columns = vec![("prompt", texts(["one", "two", "three"])), ("answer", texts(["uno", "dos", "tres"]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    place.write(
        "recipe.toml",
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 3\ntargets = [\"embed_tokens\"]\n\
         [[data]]\ntask = \"text\"\ntrain = \"rows.parquet\"\n\
         [train]\nsteps = 4\nbatch_size = 2\nlearning_rate = 0.05\n[output]\ndir = \"run\"\n",
    );
    let ids = Tensor::new(&[[256i64, 5, 80, 9, 33]], &candle_core::Device::Cpu).unwrap();
    place.write("in.safetensors", safetensors::serialize([("input_ids", ids)], None).unwrap());
    place
}

fn logits(place: &Workplace, base: &str, more: &[&str]) -> Tensor {
    let mut arguments = vec!["probe", "--base", base, "--input", "in.safetensors", "--output", "out.safetensors"];
    arguments.extend(more);
    place.janus(&arguments).expect_success();
    Expected::load(place.folder(), "out.safetensors").tensor("logits").clone()
}

#[test]
fn merging_into_a_shared_table_stores_the_head_on_its_own() {
    let place = tied();
    assert!(Checkpoint::open(&place.path("base")).unwrap().is_tied());
    place.janus(&["train", "recipe.toml"]).expect_success();
    let attached = logits(&place, "base", &["--adapter", "run"]);
    let moved = (&attached - logits(&place, "base", &[])).unwrap().abs().unwrap().max_all().unwrap();
    assert!(moved.to_scalar::<f32>().unwrap() > 1e-2, "the adapter does nothing");

    for layout in ["native", "deepseek"] {
        place
            .janus(&["merge", "--base", "base", "--adapter", "run", "--out", layout, "--layout", layout])
            .expect_success();
        let merged = Checkpoint::open(Path::new(&place.path(layout))).unwrap();
        assert!(!merged.is_tied(), "{layout}");
        let before = Checkpoint::open(&place.path("base")).unwrap().read(EMBED_TOKENS, DType::F32).unwrap();
        same_bits("the head", &merged.read(LM_HEAD, DType::F32).unwrap(), &before);
        close("logits", &logits(&place, layout, &[]), &attached, 2e-4);
        // Its head is what the base's table was: nothing beside the table has changed.
        let out = format!("{layout}-extracted");
        let extract =
            ["adapter", "extract", "--base", "base", "--tuned", layout, "--rank", "3", "--out", &out, "--json"];
        let told = place.janus(&[&extract[..], &["--targets", "embed_tokens"]].concat()).expect_success().json();
        assert_eq!(told["changed_outside"], serde_json::json!([]), "{layout}");
        let told = place.janus(&["adapter", "diff", "run", &out, "--json"]).expect_success().json();
        assert!(told["total"]["cosine"].as_f64().unwrap() > 1.0 - 1e-5, "{layout}: {told}");
    }
}
