//! Adapters that fit and must not be merged, or not without a word.

use super::*;

const WEIGHTS: &str = "run/adapter_model.safetensors";
const MERGE: [&str; 7] = ["merge", "--base", "base", "--adapter", "run", "--out", "deep/merged"];

/// The adapter with every B multiplied.
fn place_with_b_times(factor: f64) -> Workplace {
    let place = place_with_adapter();
    let mut tensors = candle_core::safetensors::load(place.path(WEIGHTS), &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        if name.contains("lora_B") {
            *tensor = (&*tensor * factor).unwrap();
        }
    }
    place.write(WEIGHTS, safetensors::serialize(tensors, None).unwrap());
    place
}

#[test]
fn an_adapter_that_changes_nothing() {
    place_with_b_times(0.0).refuses(&MERGE, &["adapter 1 of 1 changes nothing", "scale of 0"]);
    let scaled = ["merge", "--base", "base", "--adapter", "run:0", "--out", "deep/merged"];
    place_with_adapter().refuses(&scaled, &["adapter 1 of 1 changes nothing"]);
}

#[test]
fn a_merge_that_is_not_finite() {
    place_with_b_times(1e30).refuses(&[&MERGE[..], &["--dtype", "f16"]].concat(), &["once merged", "F16"]);
    let scaled = ["merge", "--base", "base", "--adapter", "run:1e60", "--out", "deep/merged"];
    place_with_adapter().refuses(&scaled, &["is not finite once merged", "smaller scale"]);
}

#[test]
fn a_merge_that_rounding_swallows() {
    let place = place_with_b_times(0.1);
    let done = place.janus(&[&MERGE[..], &["--dtype", "bf16"]].concat()).expect_success();
    assert!(done.stderr.contains("warning: rounding loses"), "{}", done.stderr);
    // No advice in a line of its own: line breaks that could bring a stranger's are escaped in what is printed.
    assert!(done.stderr.contains("`--dtype f32`") && !done.stderr.contains("\\n"), "{}", done.stderr);
    assert!(done.stdout.contains("KL(attached || merged)"), "{}", done.stdout);
    assert!(done.stdout.contains("all together: change"), "{}", done.stdout);

    let kept =
        place.janus(&["merge", "--base", "base", "--adapter", "run", "--out", "kept", "--json"]).expect_success();
    assert!(!kept.stderr.contains("rounding"), "{}", kept.stderr);
    let report = kept.json();
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(report["changed_tensors"].as_u64(), Some(tensors.len() as u64));
    for figures in tensors.iter().chain([&report["total"]]) {
        assert!(figures["delta_norm"].as_f64().unwrap() > 0.0, "{figures}");
        assert!(figures["rounding_loss"].as_f64().unwrap() < 0.2, "{figures}");
    }
}
