//! The frozen model against transformers and DeepSeek's code, by way of the fixtures, in every form of the checkpoint.
//!
//! Bounds are those that the fixtures' README suggests, all absolute.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::{Device, IndexOp, Tensor};
use image::RgbImage;
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::processing::{JanusTokenizer, pixels_to_images};
use janus_core::sample::{CodeOptions, CodePrompts, TextOptions, generate_codes, generate_text};
use janus_tests::base::{Batch, PLACEHOLDER, each_form, each_model, mean_loss};
use janus_tests::compare::{bytes_within, close, close_number, same_bits};
use janus_tests::expected::Expected;
use janus_tests::{fixtures, json};
use serde_json::Value;

const VISION: f32 = 2e-5;
/// Hidden states of the decoder, for which the README has no bound. They have about the size of the logits (up to 13,
/// after the norm up to 4), so half of theirs.
const HIDDEN: f32 = 1e-4;
const LOGITS: f32 = 2e-4;
const LOSS: f64 = 2e-5;
const PIXELS: f32 = 1e-4;
const BYTE_STEPS: u8 = 1;

const PICTURES: [&str; 3] = ["landscape", "portrait", "panorama"];
/// Ids the fixtures' tokenizer knows, of 400 rows of the head.
const VOCABULARY: usize = 390;

fn expected(fixtures: &Path, name: &str) -> Expected {
    Expected::load(fixtures, &format!("expected/{name}.safetensors"))
}

fn features(model: &Janus, expected: &Expected) -> Tensor {
    model.vision().unwrap().forward(&Pass::inference(), expected.tensor("pixel_values")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// U8 `[images, height, width, 3]` as pictures have it.
fn interleaved(images: &[RgbImage]) -> Vec<u8> {
    images.iter().flat_map(|image| image.as_raw().iter().copied()).collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_vision_tower_agrees_layer_by_layer() {
    let Some(folder) = fixtures() else { return };
    let expected = expected(&folder, "vision");
    let pass = Pass::inference();
    each_model(&folder, |form, model| {
        let close = |name: &str, got: &Tensor| close(&format!("{form}: {name}"), got, expected.tensor(name), VISION);
        let vision = model.vision().unwrap();
        let pixels = expected.tensor("pixel_values");
        let mut x = vision.embed(&pass, pixels).unwrap();
        close("embeddings", &x);
        assert_eq!(vision.layers().len(), 3);
        for (number, layer) in vision.layers().iter().enumerate() {
            x = layer.forward(&pass, &x).unwrap();
            close(&format!("layer_{number}"), &x);
        }
        close("last_hidden_state", &vision.encode(&pass, pixels).unwrap());
        close("aligner_output", &vision.forward(&pass, pixels).unwrap());
    });
}

#[test]
fn the_decoder_agrees_layer_by_layer() {
    let Some(folder) = fixtures() else { return };
    let expected = expected(&folder, "understanding_single");
    let pass = Pass::inference();
    each_model(&folder, |form, model| {
        let close =
            |name: &str, got: &Tensor, bound| close(&format!("{form}: {name}"), got, expected.tensor(name), bound);
        let batch = Batch::of(&expected);
        assert_eq!(batch.placement.positions, expected.ids("position_ids").concat());
        let mut x = batch.embed(model, Some(&features(model, &expected))).unwrap();
        close("inputs_embeds", &x, VISION);
        let decoder = model.decoder();
        let rotary = decoder.rotary(&batch.placement.positions, batch.rows);
        assert_eq!(decoder.layers().len(), 3);
        for (number, layer) in decoder.layers().iter().enumerate() {
            x = layer.forward(&pass, &x, &rotary, &batch.placement.mask, None).unwrap();
            close(&format!("llm_layer_{number}"), &x, HIDDEN);
        }
        close("llm_final_norm", &decoder.final_norm(&x).unwrap(), HIDDEN);
    });
}

/// Embeddings, positions and, as far as the file has them, logits and loss of a batch of prompts.
fn check_understanding(fixtures: &Path, set: &str, with_images: bool) {
    let expected = expected(fixtures, set);
    let pass = Pass::inference();
    each_model(fixtures, |form, model| {
        let what = |name: &str| format!("{form}, {set}: {name}");
        let batch = Batch::of(&expected);
        assert_eq!(batch.placement.positions, expected.ids("position_ids").concat(), "{}", what("position_ids"));
        let features = with_images.then(|| features(model, &expected));
        let embeds = batch.embed(model, features.as_ref()).unwrap();
        close(&what("inputs_embeds"), &embeds, expected.tensor("inputs_embeds"), VISION);
        let hidden = model.decoder().forward(&pass, &embeds, &batch.placement, None).unwrap();
        let logits = model.decoder().text_logits(&pass, &hidden).unwrap();
        if set == "understanding_single" {
            close(&what("logits"), &logits, expected.tensor("logits"), LOGITS);
        } else {
            let tail = expected.tensor("logits_tail");
            let count = tail.dim(1).unwrap();
            let got = logits.narrow(1, batch.length - count, count).unwrap();
            let (got, tail) = (batch.attended(&got).unwrap(), batch.attended(tail).unwrap());
            close(&what("logits_tail"), &got, &tail, LOGITS);
        }
        if matches!(set, "understanding_single" | "understanding_batch") {
            let (rows, labels) = batch.predicting(&logits, &expected.integers("labels")).unwrap();
            assert_eq!(labels.len() as f64, expected.number("loss_tokens"), "{}", what("loss_tokens"));
            let loss = mean_loss(&rows, &labels).unwrap();
            close_number(&what("loss"), loss, expected.number("loss"), LOSS);
        }
    });
}

#[test]
fn a_question_about_a_picture_has_the_same_logits_and_loss() {
    let Some(folder) = fixtures() else { return };
    check_understanding(&folder, "understanding_single", true);
}

#[test]
fn a_padded_batch_has_the_same_logits_and_loss() {
    let Some(folder) = fixtures() else { return };
    check_understanding(&folder, "understanding_batch", true);
}

#[test]
fn two_pictures_in_one_prompt_have_the_same_logits() {
    let Some(folder) = fixtures() else { return };
    check_understanding(&folder, "understanding_two_images", true);
}

#[test]
fn a_prompt_of_text_alone_has_the_same_logits() {
    let Some(folder) = fixtures() else { return };
    check_understanding(&folder, "text_only", false);
}

#[test]
fn greedy_answers_are_the_same_ids() {
    let Some(folder) = fixtures() else { return };
    let cases = json(&folder, "expected/generate_text.json");
    let pictures = expected(&folder, "preprocess");
    let tokenizer = JanusTokenizer::from_folder(&folder.join("hf")).unwrap();
    let pass = Pass::inference();
    each_model(&folder, |form, model| {
        for case in cases.as_array().unwrap() {
            let what = format!("{form}, {}", case["name"]);
            let rows = |key: &str| -> Vec<Vec<u32>> { case[key].as_array().unwrap().iter().map(ids).collect() };
            let prompts = rows("input_ids");
            let mask: Vec<bool> = rows("attention_mask").concat().into_iter().map(|m| m == 1).collect();
            let names = case["images"].as_array().unwrap();
            let picture =
                |name: &Value| pictures.tensor(&format!("{}.hf_pil.pixel_values", name.as_str().unwrap())).clone();
            let pixels: Vec<Tensor> = names.iter().map(picture).collect();
            let features = (!pixels.is_empty()).then(|| {
                let pixels = Tensor::stack(&pixels, 0).unwrap();
                model.vision().unwrap().forward(&pass, &pixels).unwrap()
            });
            let embeds = model
                .embed_with_images(&pass, &prompts.concat(), prompts.len(), PLACEHOLDER, features.as_ref())
                .unwrap();
            let stop: Option<u32> = case["eos_token_id"].as_u64().map(|id| id as u32);
            let options = TextOptions {
                max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
                temperature: 0.0,
                seed: 0,
                stop: stop.into_iter().collect(),
                pad: case["pad_token_id"].as_u64().unwrap() as u32,
                vocabulary: VOCABULARY,
            };
            let mut padded = vec![Vec::new(); prompts.len()];
            let mut on_token =
                |step: &[u32]| padded.iter_mut().zip(step).for_each(|(row, id): (&mut Vec<u32>, _)| row.push(*id));
            let answers = generate_text(model, &pass, &embeds, &mask, &options, &mut on_token).unwrap();
            let expected = rows("new_token_ids");
            assert_eq!(padded, expected, "{what}: ids of every step, padding included");
            for (row, answer) in answers.iter().enumerate() {
                let end =
                    expected[row].iter().position(|id| Some(*id) == stop).map_or(expected[row].len(), |at| at + 1);
                assert_eq!(answer, &expected[row][..end], "{what}: answer of row {row}");
                assert_eq!(tokenizer.decode(answer, true).unwrap(), case["text"][row], "{what}: text of row {row}");
            }
        }
    });
}

#[test]
fn the_image_tokenizer_encodes_to_the_same_codes() {
    let Some(folder) = fixtures() else { return };
    let expected = expected(&folder, "vq");
    let pass = Pass::inference();
    each_model(&folder, |form, model| {
        let tokenizer = model.image_tokenizer().unwrap();
        for picture in PICTURES {
            let close = |name: &str, got: &Tensor| {
                let key = format!("{picture}.{name}");
                close(&format!("{form}: {key}"), got, expected.tensor(&key), PIXELS);
            };
            let pixels = expected.tensor(&format!("{picture}.pixel_values"));
            close("encoder_output", &tokenizer.encoder_output(&pass, pixels).unwrap());
            close("latents", &tokenizer.latents(&pass, pixels).unwrap());
            let codes = tokenizer.encode(&pass, pixels).unwrap();
            assert_eq!(codes, expected.ids(&format!("{picture}.indices_deepseek")), "{form}: codes of {picture}");
            assert_ne!(codes, expected.ids(&format!("{picture}.indices_hf")), "the two rules give other codes here");
        }
    });
}

#[test]
fn the_image_tokenizer_decodes_to_the_same_pixels() {
    let Some(folder) = fixtures() else { return };
    let expected = expected(&folder, "vq");
    let pass = Pass::inference();
    each_model(&folder, |form, model| {
        let close = |name: &str, got: &Tensor| close(&format!("{form}: {name}"), got, expected.tensor(name), PIXELS);
        let tokenizer = model.image_tokenizer().unwrap();
        let codes = expected.ids("decode.tokens");
        close("decode.codebook_entry", &tokenizer.codebook_entries(&codes).unwrap());
        close("decode.post_quant", &tokenizer.post_quant(&pass, &codes).unwrap());
        let pixels = tokenizer.decode(&pass, &codes).unwrap();
        close("decode.pixels", &pixels);
        let images = interleaved(&pixels_to_images(&pixels).unwrap());
        let planes = expected.tensor("decode.uint8").permute((0, 2, 3, 1)).unwrap();
        bytes_within(&format!("{form}: decode.uint8"), &images, &bytes(&planes), BYTE_STEPS);
    });
}

/// Teacher forcing of image codes: the loss of image generation as the fixtures define it.
fn check_forced(fixtures: &Path, set: &str) {
    let expected = expected(fixtures, set);
    let pass = Pass::inference();
    each_model(fixtures, |form, model| {
        let what = |name: &str| format!("{form}, {set}: {name}");
        let batch = Batch::of(&expected);
        assert_eq!(batch.placement.positions, expected.ids("position_ids").concat(), "{}", what("position_ids"));
        let generation = model.generation().unwrap();
        let codes = expected.ids("image_tokens");
        let features = generation.embed(&pass, &codes.concat(), batch.rows).unwrap();
        let embeds = batch.embed(model, Some(&features)).unwrap();
        close(&what("inputs_embeds"), &embeds, expected.tensor("inputs_embeds"), VISION);
        let hidden = model.decoder().forward(&pass, &embeds, &batch.placement, None).unwrap();
        let attended = |x: &Tensor| batch.attended(x).unwrap();
        close(&what("hidden"), &attended(&hidden), &attended(expected.tensor("hidden")), HIDDEN);
        let (rows, labels) = batch.predicting(&hidden, &expected.integers("labels")).unwrap();
        assert_eq!(labels, codes.concat(), "{}", what("labels"));
        let logits = generation.logits(&pass, &rows).unwrap();
        close(&what("image_logits"), &logits, &expected.tensor("image_logits").flatten_to(1).unwrap(), LOGITS);
        close_number(&what("loss"), mean_loss(&logits, &labels).unwrap(), expected.number("loss"), LOSS);
    });
}

#[test]
fn a_forced_image_has_the_same_hidden_states_logits_and_loss() {
    let Some(folder) = fixtures() else { return };
    check_forced(&folder, "generation_forced");
}

#[test]
fn a_padded_batch_of_forced_images_has_the_same_hidden_states_logits_and_loss() {
    let Some(folder) = fixtures() else { return };
    check_forced(&folder, "generation_forced_batch");
}

/// The gap between the best and the second best of each row, `[.., classes]` to `[..]`.
fn margins(logits: &Tensor) -> Tensor {
    let (sorted, _) = logits.to_device(&Device::Cpu).unwrap().contiguous().unwrap().sort_last_dim(false).unwrap();
    (sorted.i((.., .., 0)).unwrap() - sorted.i((.., .., 1)).unwrap()).unwrap()
}

/// Greedy image codes with guidance 5: logits of every step, codes, pixels, bytes.
fn check_guided(fixtures: &Path, set: &str) {
    let expected = expected(fixtures, set);
    let pass = Pass::inference();
    each_model(fixtures, |form, model| {
        let what = |name: &str| format!("{form}, {set}: {name}");
        let batch = Batch::of(&expected);
        let options = CodeOptions { guidance: 5.0, temperature: 0.0, seed: 0 };
        let (mut conditional, mut unconditional, mut guided) = (Vec::new(), Vec::new(), Vec::new());
        let prompts = CodePrompts {
            conditional: batch.ids.clone(),
            unconditional: expected.ids("uncond_input_ids").concat(),
            mask: batch.mask.clone(),
            rows: batch.rows,
            images: None,
        };
        let codes = generate_codes(model, &pass, &prompts, &options, &mut |step| {
            assert_eq!(step.step, conditional.len());
            conditional.push(step.conditional.clone());
            unconditional.push(step.unconditional.unwrap().clone());
            guided.push(step.guided.clone());
        })
        .unwrap();
        let of_steps = |steps: &[Tensor]| Tensor::stack(steps, 1).unwrap();
        close(&what("cond"), &of_steps(&conditional), expected.tensor("cond"), LOGITS);
        close(&what("uncond"), &of_steps(&unconditional), expected.tensor("uncond"), LOGITS);
        close(&what("guided"), &of_steps(&guided), expected.tensor("guided"), LOGITS);
        // A difference of two logits.
        close(&what("guided_margin"), &margins(&of_steps(&guided)), expected.tensor("guided_margin"), 2.0 * LOGITS);
        assert_eq!(codes, expected.ids("tokens"), "{}", what("tokens"));

        let pixels = model.image_tokenizer().unwrap().decode(&pass, &codes).unwrap();
        let channels_last = pixels.permute((0, 2, 3, 1)).unwrap();
        close(&what("pixels"), &channels_last, expected.tensor("pixels"), PIXELS);
        let images = interleaved(&pixels_to_images(&pixels).unwrap());
        for name in ["uint8_deepseek", "uint8_hf_pil", "uint8_hf_torchvision"] {
            bytes_within(&what(name), &images, &bytes(expected.tensor(name)), BYTE_STEPS);
        }
    });
}

#[test]
fn guided_images_have_the_same_logits_codes_and_pixels() {
    let Some(folder) = fixtures() else { return };
    check_guided(&folder, "generation_guided");
}

#[test]
fn a_padded_batch_of_guided_images_has_the_same_logits_codes_and_pixels() {
    let Some(folder) = fixtures() else { return };
    check_guided(&folder, "generation_guided_batch");
}

/// What each part of the model gives: text logits, image logits, latents, pixels.
fn outputs(model: &Janus, fixtures: &Path) -> Vec<(&'static str, Tensor)> {
    let pass = Pass::inference();
    let (decoder, generation) = (model.decoder(), model.generation().unwrap());
    let understanding = expected(fixtures, "understanding_batch");
    let batch = Batch::of(&understanding);
    let embeds = batch.embed(model, Some(&features(model, &understanding))).unwrap();
    let hidden = decoder.forward(&pass, &embeds, &batch.placement, None).unwrap();
    let logits = decoder.text_logits(&pass, &hidden).unwrap();

    let forced = expected(fixtures, "generation_forced_batch");
    let batch = Batch::of(&forced);
    let codes = generation.embed(&pass, &forced.ids("image_tokens").concat(), batch.rows).unwrap();
    let embeds = batch.embed(model, Some(&codes)).unwrap();
    let hidden = decoder.forward(&pass, &embeds, &batch.placement, None).unwrap();
    let image_logits = generation.logits(&pass, &hidden).unwrap();

    let vq = expected(fixtures, "vq");
    let tokenizer = model.image_tokenizer().unwrap();
    let latents = tokenizer.latents(&pass, vq.tensor("portrait.pixel_values")).unwrap();
    let pixels = tokenizer.decode(&pass, &vq.ids("decode.tokens")).unwrap();
    vec![("logits", logits), ("image logits", image_logits), ("latents", latents), ("pixels", pixels)]
}

#[test]
fn every_form_of_the_checkpoint_gives_the_same_bits() {
    let Some(folder) = fixtures() else { return };
    let mut native: Option<Vec<(&str, Tensor)>> = None;
    let mut forms = 0;
    each_form(&folder, |form, model| {
        forms += 1;
        let got = outputs(model, &folder);
        match &native {
            None => native = Some(got),
            Some(native) => {
                for ((name, got), (_, expected)) in got.iter().zip(native) {
                    same_bits(&format!("{form}: {name}"), got, expected);
                }
            }
        }
    });
    assert_eq!(forms, 4);
}
