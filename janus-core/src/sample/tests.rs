//! Drawing, against the model's own forward pass on the whole sequence each time.

use candle_core::{D, Device, IndexOp, Tensor};

use super::sampler::{Best, Sampler, draw};
use super::*;
use crate::error::{Error, ModelError, Result};
use crate::model::Janus;
use crate::model::decoder::Placement;
use crate::ops::with_composed;
use crate::pass::Pass;
use crate::testing::tiny;

/// Two prompts of one length, the second padded on the left by 258.
const PROMPTS: [u32; 10] = [256, 5, 80, 80, 7, 258, 258, 256, 9, 33];
const MASK: [bool; 10] = [true, true, true, true, true, false, false, true, true, true];

fn text_options() -> TextOptions {
    TextOptions { max_new_tokens: 6, temperature: 0.0, seed: 0, stop: Vec::new(), pad: 258, vocabulary: 400 }
}

/// Answers, and the ids of each step as they are told.
fn answers(model: &Janus, ids: &[u32], mask: &[bool], options: &TextOptions) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let pass = Pass::inference();
    let embeds = model.decoder().embed(&pass, ids, ids.len() / 5).unwrap();
    let mut steps = Vec::new();
    let answers = generate_text(model, &pass, &embeds, mask, options, &mut |ids| steps.push(ids.to_vec())).unwrap();
    (answers, steps)
}

fn best(logits: &Tensor) -> Vec<u32> {
    logits.argmax(D::Minus1).unwrap().to_vec1().unwrap()
}

#[test]
fn temperature_zero_takes_the_best_token_of_each_step() {
    let model = tiny();
    let (pass, decoder) = (Pass::inference(), model.decoder());
    let (got, steps) = answers(&model, &PROMPTS, &MASK, &text_options());
    assert_eq!(steps.len(), 6);
    for (row, answer) in got.iter().enumerate() {
        let mut ids = PROMPTS[row * 5..][..5].to_vec();
        let mut mask = MASK[row * 5..][..5].to_vec();
        for (step, token) in answer.iter().enumerate() {
            let embeds = decoder.embed(&pass, &ids, 1).unwrap();
            let hidden = decoder.forward(&pass, &embeds, &Placement::masked(&mask, 1), None).unwrap();
            let logits = decoder.text_logits(&pass, &hidden).unwrap().i((.., ids.len() - 1)).unwrap();
            assert_eq!([*token], best(&logits)[..], "row {row}, step {step}");
            assert_eq!(*token, steps[step][row]);
            ids.push(*token);
            mask.push(true);
        }
    }
    assert_ne!(got[0], got[1]);
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let model = tiny();
    let drawn = |seed| {
        let options = TextOptions { max_new_tokens: 12, temperature: 1.0, seed, ..text_options() };
        answers(&model, &PROMPTS, &MASK, &options).0
    };
    assert_eq!(drawn(3), drawn(3));
    assert_ne!(drawn(3), drawn(4));
    assert_ne!(drawn(3)[0], answers(&model, &PROMPTS, &MASK, &text_options()).0[0]);
    // Row 1 of seed 3 draws as row 0 of seed 4 does.
    let options = TextOptions { max_new_tokens: 12, temperature: 1.0, seed: 4, ..text_options() };
    assert_eq!(drawn(3)[1], answers(&model, &PROMPTS[5..], &MASK[5..], &options).0[0]);
}

#[test]
fn a_row_ends_with_its_stop_token_and_goes_on_as_padding() {
    let model = tiny();
    let (free, _) = answers(&model, &PROMPTS, &MASK, &text_options());
    let stop = free[0][2];
    assert!(!free[0][..2].contains(&stop) && !free[1].contains(&stop), "{free:?}");
    let options = TextOptions { stop: vec![399, stop], ..text_options() };
    let (stopped, steps) = answers(&model, &PROMPTS, &MASK, &options);
    assert_eq!(stopped, [free[0][..3].to_vec(), free[1].clone()]);
    let padded: Vec<u32> = steps.iter().map(|step| step[0]).collect();
    assert_eq!(padded, [free[0][0], free[0][1], stop, 258, 258, 258]);

    let both = TextOptions { stop: vec![stop, free[1][1]], ..text_options() };
    let (stopped, steps) = answers(&model, &PROMPTS, &MASK, &both);
    assert_eq!(stopped, [free[0][..3].to_vec(), free[1][..2].to_vec()]);
    assert_eq!(steps.len(), 3, "no step after the last row has ended");
}

#[test]
fn no_more_tokens_are_drawn_than_asked_for() {
    let model = tiny();
    let (free, _) = answers(&model, &PROMPTS, &MASK, &text_options());
    for max_new_tokens in [0, 1, 4] {
        let (got, steps) = answers(&model, &PROMPTS, &MASK, &TextOptions { max_new_tokens, ..text_options() });
        assert_eq!(got, [&free[0][..max_new_tokens], &free[1][..max_new_tokens]]);
        assert_eq!(steps.len(), max_new_tokens);
    }
}

#[test]
fn rows_of_the_head_beyond_the_vocabulary_are_never_drawn() {
    let model = tiny();
    let drawn = |vocabulary| {
        let options = TextOptions { max_new_tokens: 40, temperature: 4.0, vocabulary, ..text_options() };
        answers(&model, &PROMPTS, &MASK, &options).0.concat()
    };
    assert!(drawn(400).iter().any(|id| *id >= 20));
    assert!(drawn(20).iter().all(|id| *id < 20));
}

const UNCONDITIONAL: [u32; 10] = [256, 258, 258, 258, 7, 258, 258, 256, 258, 33];

fn prompts(conditional: &[u32], unconditional: &[u32]) -> CodePrompts {
    CodePrompts {
        conditional: conditional.to_vec(),
        unconditional: unconditional.to_vec(),
        mask: MASK.to_vec(),
        rows: 2,
        images: None,
    }
}

fn codes(model: &Janus, unconditional: &[u32], guidance: f64, temperature: f64, seed: u64) -> Vec<Vec<u32>> {
    let options = CodeOptions { guidance, temperature, seed };
    generate_codes(model, &Pass::inference(), &prompts(&PROMPTS, unconditional), &options, &mut |_| {}).unwrap()
}

/// Logits of the next code after `prompt` and `codes`, both seen whole: `[1, codes]`.
fn next_code_logits(model: &Janus, prompt: &[u32], mask: &[bool], codes: &[u32]) -> Tensor {
    let (pass, decoder, generation) = (Pass::inference(), model.decoder(), model.generation().unwrap());
    let mut embeds = decoder.embed(&pass, prompt, 1).unwrap();
    if !codes.is_empty() {
        embeds = Tensor::cat(&[embeds, generation.embed(&pass, codes, 1).unwrap()], 1).unwrap();
    }
    let mask = [mask, &vec![true; codes.len()]].concat();
    let hidden = decoder.forward(&pass, &embeds, &Placement::masked(&mask, 1), None).unwrap();
    generation.logits(&pass, &hidden.i((.., mask.len() - 1)).unwrap()).unwrap()
}

#[test]
fn guided_codes_are_the_best_of_the_mixed_logits() {
    let model = tiny();
    for (guidance, got) in
        [(1.0, codes(&model, &UNCONDITIONAL, 1.0, 0.0, 0)), (3.0, codes(&model, &UNCONDITIONAL, 3.0, 0.0, 0))]
    {
        for (row, got) in got.iter().enumerate() {
            let part = row * 5..row * 5 + 5;
            assert_eq!(got.len(), model.codes_per_image());
            for step in 0..got.len() {
                let logits =
                    |ids: &[u32]| next_code_logits(&model, &ids[part.clone()], &MASK[part.clone()], &got[..step]);
                let (cond, uncond) = (logits(&PROMPTS), logits(&UNCONDITIONAL));
                let mixed = (&uncond + ((&cond - &uncond).unwrap() * guidance).unwrap()).unwrap();
                assert_eq!([got[step]], best(&mixed)[..], "guidance {guidance}, row {row}, step {step}");
            }
        }
    }
}

#[test]
fn guidance_of_one_is_the_conditional_row_alone() {
    let model = tiny();
    let nonsense = [0u32; 10];
    for temperature in [0.0, 1.0] {
        let alone = codes(&model, &UNCONDITIONAL, 1.0, temperature, 5);
        assert_eq!(alone, codes(&model, &nonsense, 1.0, temperature, 5));
        assert_ne!(alone, codes(&model, &UNCONDITIONAL, 3.0, temperature, 5));
    }
    assert_ne!(codes(&model, &UNCONDITIONAL, 3.0, 0.0, 5), codes(&model, &nonsense, 3.0, 0.0, 5));
    let options = CodeOptions { guidance: 1.0, temperature: 0.0, seed: 0 };
    let mut steps = 0;
    let mut observe = |step: CodeStep<'_>| {
        assert_eq!(step.step, steps);
        assert!(step.unconditional.is_none());
        steps += 1;
    };
    generate_codes(&model, &Pass::inference(), &prompts(&PROMPTS, &nonsense), &options, &mut observe).unwrap();
    assert_eq!(steps, model.codes_per_image());
}

#[test]
fn the_first_codes_are_the_beginning_of_all() {
    let model = tiny();
    let all = codes(&model, &UNCONDITIONAL, 3.0, 1.0, 8);
    let options = CodeOptions { guidance: 3.0, temperature: 1.0, seed: 8 };
    let (prompts, mut steps) = (prompts(&PROMPTS, &UNCONDITIONAL), 0);
    let first = generate_first_codes(&model, &Pass::inference(), &prompts, &options, 3, &mut |_| steps += 1).unwrap();
    assert_eq!((first, steps), (all.iter().map(|codes| codes[..3].to_vec()).collect(), 3));
}

#[test]
fn the_same_seed_draws_the_same_codes() {
    let model = tiny();
    assert_eq!(codes(&model, &UNCONDITIONAL, 3.0, 1.0, 8), codes(&model, &UNCONDITIONAL, 3.0, 1.0, 8));
    assert_ne!(codes(&model, &UNCONDITIONAL, 3.0, 1.0, 8), codes(&model, &UNCONDITIONAL, 3.0, 1.0, 9));
}

#[test]
fn a_composed_pass_draws_the_same_tokens_and_codes() {
    let model = tiny();
    for temperature in [0.0, 1.0] {
        let options = TextOptions { temperature, seed: 2, ..text_options() };
        let text = || answers(&model, &PROMPTS, &MASK, &options).0;
        assert_eq!(with_composed(text), text());
        let image = || codes(&model, &UNCONDITIONAL, 3.0, temperature, 8);
        assert_eq!(with_composed(image), image());
    }
}

#[test]
fn an_id_beyond_the_vocabulary_is_an_error() {
    let model = tiny();
    let mut ids = PROMPTS;
    ids[8] = 400;
    let options = CodeOptions { guidance: 3.0, temperature: 0.0, seed: 0 };
    let pass = Pass::inference();
    let error = generate_codes(&model, &pass, &prompts(&ids, &UNCONDITIONAL), &options, &mut |_| {}).unwrap_err();
    let Error::Model(crate::ModelError::TokenOutOfRange { id: 400, row: 1, position: 3, vocabulary: 400 }) = error
    else {
        panic!("{error}")
    };
}

fn samplers(rows: u64, temperature: f64, seed: u64) -> Vec<Sampler> {
    (0..rows).map(|row| Sampler::new(temperature, seed + row)).collect()
}

fn lent(samplers: &mut [Sampler]) -> Vec<(&mut Sampler, Option<usize>)> {
    samplers.iter_mut().map(|sampler| (sampler, None)).collect()
}

fn all_of(drawn: Vec<Result<u32>>) -> Result<Vec<u32>> {
    drawn.into_iter().collect()
}

fn drawn_of(samplers: &mut [Sampler], logits: &Tensor) -> Result<Vec<u32>> {
    all_of(draw(&mut lent(samplers), logits, &mut Best::default())?)
}

#[test]
fn nothing_is_drawn_from_values_that_are_not_finite() {
    for (values, expected) in [
        ([1.0, f32::NAN, 2.0, 0.5, f32::NEG_INFINITY], "row 1 has NaN"),
        ([1.0, f32::INFINITY, 2.0, 0.5, 3.0], "row 1 has inf"),
        ([1.0, 0.0, f32::NEG_INFINITY, 0.5, 3.0], "row 1 has -inf"),
    ] {
        for temperature in [0.0, 1.0, 1e-300] {
            let rows = [[0.0, 1.0, 2.0, 3.0, 4.0], values].concat();
            let logits = Tensor::from_vec(rows, (2, 5), &Device::Cpu).unwrap();
            let error = drawn_of(&mut samplers(2, temperature, 0), &logits).unwrap_err();
            assert!(matches!(error, Error::Model(ModelError::NotFinite { row: 1, .. })), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

#[test]
fn a_tiny_temperature_takes_the_best_token() {
    for scale in [1.0, 1e9, 1e38] {
        let logits =
            Tensor::new(&[[-2.0f32 * scale, 0.0, 3.0 * scale, 2.0 * scale, -3.0 * scale]], &Device::Cpu).unwrap();
        for temperature in [1e-2, 1e-10, 1e-29, 1e-31, 1e-38, 1e-300, f64::MIN_POSITIVE] {
            assert_eq!(drawn_of(&mut samplers(1, temperature, 7), &logits).unwrap(), [2], "{scale} {temperature}");
        }
    }
}

#[test]
fn the_best_is_found_where_the_logits_lie_as_on_the_processor() {
    let rows = [[0.5f32, 2.0, -1.0, 2.0, 1.0], [-3.0, -2.0, -2.5, -4.0, -2.0], [0.0; 5]];
    let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
    let (mut samplers, mut best) = (samplers(3, 0.0, 1), Best::default());
    let mut drawn = |logits: &Tensor| all_of(draw(&mut lent(&mut samplers), logits, &mut best).unwrap()).unwrap();
    let here = drawn(&logits);
    assert_eq!(here, [1, 1, 0]);
    for _ in 0..2 {
        assert_eq!(with_composed(|| drawn(&logits)), here);
    }
    let fewer = logits.i((.., ..2)).unwrap();
    assert_eq!(with_composed(|| drawn(&fewer)), drawn(&fewer));
    for stray in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let logits = Tensor::new(&[[0.0, 1.0], [stray, 2.0]], &Device::Cpu).unwrap();
        let refused = with_composed(|| drawn_of(&mut self::samplers(2, 0.0, 1), &logits)).unwrap_err();
        assert!(matches!(refused, Error::Model(ModelError::NotFinite { row: 1, .. })), "{refused:?}");
    }
}
