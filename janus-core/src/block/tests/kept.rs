//! Tokens that leave the decoder, against all tokens of which some are selected.

use super::*;
use crate::model::decoder::Placement;
use crate::ops::select_rows;

const FORMS: &[Form] = &[Form(3, 0.7, 0.0), Form(2, -1.3, 0.0)];

fn some(case: &Case, placement: &Placement, tokens: &[u32]) -> Run {
    poison();
    let y = case.model.decoder().forward_tokens(&case.pass, &case.x, placement, tokens).unwrap();
    poison();
    Run::of(y, &case.vars)
}

fn selected(case: &Case, placement: &Placement, tokens: &[u32]) -> Run {
    let y = case.model.decoder().forward(&case.pass, &case.x, placement, None).unwrap();
    Run::of(select_rows(&y.flatten_to(1).unwrap(), tokens).unwrap(), &case.vars)
}

#[test]
fn some_tokens_are_those_of_all_tokens() {
    // In no order, one of them twice; one alone; all.
    let all: Vec<u32> = (0..14).collect();
    for tokens in [&[11, 0, 6, 11, 3][..], &[13], &all] {
        let case = Case::decoder(DType::F32, [2, 7], FORMS);
        let plain = Placement::plain(2, 0, 7);
        let got = some(&case, &plain, tokens);
        assert_eq!(got.y.dims(), [tokens.len(), 24]);
        agree(&got, &selected(&case, &plain, tokens), 1e-5);
        agree(&got, &with_composed(|| some(&case, &plain, tokens)), 1e-5);
    }
    let case = Case::decoder(DType::F32, [1, 13], FORMS);
    let packed = Placement::packed(&[3, 1, 9]);
    agree(&some(&case, &packed, &[2, 3, 12]), &selected(&case, &packed, &[2, 3, 12]), 1e-5);
}

#[test]
fn in_bf16_some_tokens_are_no_farther_from_f32_than_all() {
    let (narrow, exact) = (Case::decoder(DType::BF16, [2, 7], FORMS), Case::decoder(DType::F32, [2, 7], FORMS));
    let (plain, tokens) = (Placement::plain(2, 0, 7), [11, 0, 6, 3]);
    let (got, all) = (some(&narrow, &plain, &tokens), selected(&narrow, &plain, &tokens));
    let truth = with_composed(|| selected(&exact, &plain, &tokens));
    no_farther(&got, &all, &truth);
}

/// The masks of the sites behind the attention count the rows that are left, both ways.
#[test]
fn dropout_behind_the_attention_sees_the_tokens_that_are_left() {
    let case = Case::decoder(DType::F32, [2, 7], &[Form(3, 0.7, 0.4)]);
    let case = Case { pass: training(), ..case };
    let plain = Placement::plain(2, 0, 7);
    let composed = with_composed(|| some(&case, &plain, &[11, 0, 6]));
    agree(&some(&case, &plain, &[11, 0, 6]), &composed, 1e-5);
    let again = Case { pass: recomputing(), ..case };
    same(&some(&again, &plain, &[11, 0, 6]), &some(&Case { pass: training(), ..again }, &plain, &[11, 0, 6]));
}

#[test]
fn no_token_may_be_asked_for() {
    for dtype in [DType::F32, DType::BF16] {
        let case = Case::decoder(dtype, [2, 7], FORMS);
        let run = some(&case, &Placement::plain(2, 0, 7), &[]);
        assert_eq!(run.y.dims(), [0, 24]);
        assert_eq!(run.gradients.len(), case.vars.len());
        for (name, gradient) in &run.gradients {
            assert!(wide(gradient).iter().all(|v| *v == 0.0), "{name}");
        }
    }
}

#[test]
fn a_token_beyond_the_batch_is_an_error() {
    let case = Case::decoder(DType::F32, [2, 7], FORMS);
    let decoder = case.model.decoder();
    assert!(decoder.forward_tokens(&case.pass, &case.x, &Placement::plain(2, 0, 7), &[14]).is_err());
}

/// Terms on the MLP of the last layer alone: nothing below it is walked back, and nothing else gets a gradient.
#[test]
fn below_the_lowest_terms_there_is_no_gradient() {
    for dtype in [DType::F32, DType::BF16] {
        let mut case = Case::new(&odd(), Decoder, dtype, [2, 7]).untracked();
        for path in &Decoder.paths(1)[4..] {
            attach(&case.model, path, FORMS, &mut case.vars);
        }
        let plain = Placement::plain(2, 0, 7);
        let tokens = [11, 0, 6];
        let y = case.model.decoder().forward_tokens(&case.pass, &case.x, &plain, &tokens).unwrap();
        let run = Run::of(y, &case.vars);
        // Three sites of two terms of two factors.
        assert_eq!(run.gradients.len(), 12);
        assert!(!run.gradients.contains_key("x"));
        let bound = if dtype == DType::F32 { 1e-5 } else { 4e-2 };
        agree(&run, &with_composed(|| selected(&case, &plain, &tokens)), bound);

        let first = case.model.decoder().layers()[0].forward(&case.pass, &case.x, &case.rotary(), &case.mask, None);
        assert!(!first.unwrap().track_op(), "a layer without terms is on the tape");
    }
}
