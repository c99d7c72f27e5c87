//! Weights that a model computes NaN or infinity with: no answer, and the culprit is named.

use std::path::Path;

use janus_tests::program::refused;

use super::place_with_adapter;

/// Fills all tensors of a safetensors file with a pattern.
fn fill(path: &Path, pattern: &[u8]) {
    let mut bytes = fs_err::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let values = &mut bytes[8 + header..];
    values.iter_mut().zip(pattern.iter().cycle()).for_each(|(byte, value)| *byte = *value);
    fs_err::write(path, bytes).unwrap();
}

#[test]
fn what_is_not_finite_is_blamed_on_base_or_adapter() {
    let place = place_with_adapter();
    let ask = |more: &[&'static str]| [&["understand", "--base", "base", "What?"], more].concat();
    let draw = |more: &[&'static str]| [&["generate", "--base", "base", "A part", "--out", "part.png"], more].concat();
    place.janus(&ask(&[])).expect_success();
    let too_strong = draw(&["--guidance", "1e300"]);
    refused(&place.janus(&too_strong), &["`--guidance 1e300`", "hint: guidance is usually between"]);

    fill(&place.path("run/adapter_model.safetensors"), &3e38f32.to_le_bytes());
    for arguments in [ask(&["--adapter", "run"]), ask(&["--adapter", "run", "--temperature", "1"])] {
        refused(
            &place.janus(&arguments),
            &["the adapter has values", "holds 3e38 at factor 1", "not finite", "hint: "],
        );
    }
    // Two bytes of a bf16, twice two of an f32: NaN in either.
    fill(&place.path("base/model.safetensors"), &[0xC0, 0x7F]);
    for arguments in [ask(&[]), draw(&[]), draw(&["--guidance", "1"])] {
        refused(&place.janus(&arguments), &["base `base` has values", "holds NaN", "not finite", "hint: "]);
    }
    // Finite, with squares that are not: a norm that made zeros of them would let the base answer.
    fill(&place.path("base/model.safetensors"), &3e38f32.to_le_bytes());
    for arguments in [ask(&[]), draw(&[])] {
        refused(&place.janus(&arguments), &["base `base` has values", "holds 3e38", "not finite"]);
    }
    let train = ["train", "recipe.toml", "output.dir=other"];
    refused(&place.janus(&train), &["base` has values", "holds 3e38", "before the first step"]);
    assert!(!place.path("part.png").exists());
}
