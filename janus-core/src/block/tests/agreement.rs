//! Output and all gradients of whole blocks, fused against composed.

use super::*;

const F32_BOUND: f32 = 1e-5;

/// One term; two terms of other ranks and signs; dropout on both or on one of two.
const ONE: &[Form] = &[Form(3, 0.7, 0.0)];
const TWO: &[Form] = &[Form(3, 0.7, 0.0), Form(2, -1.3, 0.0)];
const DROPPED: &[Form] = &[Form(3, 0.7, 0.4), Form(2, -1.3, 0.25)];
const HALF_DROPPED: &[Form] = &[Form(2, -1.3, 0.0), Form(3, 0.7, 0.4)];

fn segments(bounds: &[usize]) -> AttentionMask {
    AttentionMask { segments: Some(bounds.into()), ..AttentionMask::causal() }
}

/// Blocks of every kind that a pass can meet, in `dtype`.
fn cases(dtype: DType) -> Vec<(&'static str, Case)> {
    let of = |kind, shape| Case::new(&odd(), kind, dtype, shape);
    let mut cases = Vec::new();
    // A token that sees itself alone does so whatever its query and key are: their factors have no gradient.
    for (kind, some, behind_keys) in [(Decoder, [1, 3, 6], &[2, 3, 4, 5, 6][..]), (Vision, [2, 4, 5], &[2, 3, 4, 5])] {
        cases.push(("no terms", of(kind, [2, 7])));
        cases.push(("terms on some sites", of(kind, [2, 7]).with_terms(&some, ONE)));
        cases.push(("a term on every site", of(kind, [3, 5]).with_terms_everywhere(ONE)));
        cases.push(("two terms on every site", of(kind, [2, 9]).with_terms_everywhere(TWO)));
        cases.push(("one token", of(kind, [1, 1]).with_terms(behind_keys, TWO)));
        cases.push(("more tokens than a block of attention", of(kind, [1, 101]).with_terms_everywhere(ONE)));
        cases.push(("an untracked input", of(kind, [2, 7]).with_terms(&some, TWO).untracked()));
        for forms in [DROPPED, HALF_DROPPED] {
            let case = of(kind, [2, 9]).with_terms_everywhere(forms);
            cases.push(("dropout", Case { pass: training(), ..case }));
        }
        cases.push(("trained norms", of(kind, [3, 101]).with_terms_everywhere(ONE).with_trained_norms()));
        cases.push(("trained norms alone", of(kind, [2, 7]).with_trained_norms()));
        cases.push(("trained norms, an untracked input", of(kind, [2, 7]).with_trained_norms().untracked()));
        for vectors in [OUTPUT, SCALED, INPUT, ALL] {
            cases.push(("vectors alone", of(kind, [2, 7]).with_vectors(behind_keys, vectors)));
            cases.push((
                "vectors and terms",
                of(kind, [3, 41]).with_terms_everywhere(TWO).with_vectors_everywhere(vectors),
            ));
            let case = of(kind, [2, 9]).with_terms(&some, HALF_DROPPED).with_vectors(&some, vectors).untracked();
            cases.push(("vectors and dropout, an untracked input", Case { pass: training(), ..case }));
        }
        cases.push(("Kronecker products", of(kind, [2, 7]).with_products_everywhere()));
        let case = of(kind, [3, 41]).with_terms_everywhere(DROPPED).with_products_everywhere();
        let case = case.with_vectors_everywhere(INPUT);
        cases.push(("Kronecker products beside all else", Case { pass: training(), ..case }));
        cases.push(("Kronecker products, an untracked input", of(kind, [2, 7]).with_products_everywhere().untracked()));
        let last = kind.names(0).1.len() - 1;
        cases.push(("factors on the last input", of(kind, [2, 70]).with_vectors(&[last], INPUT)));
        let case = of(kind, [2, 7]).with_terms(&some, DROPPED).untracked();
        cases.push(("dropout on some sites, an untracked input", Case { pass: training(), ..case }));
    }
    let case = of(Decoder, [2, 7]).with_terms_everywhere(ONE);
    cases.push(("a decoder that sees what follows", Case { mask: AttentionMask::full(), ..case }));
    let case = of(Decoder, [1, 13]).with_terms_everywhere(TWO);
    cases.push(("segments", Case { mask: segments(&[0, 3, 3, 4, 13]), ..case }));
    let case = of(Decoder, [1, 13]).with_terms_everywhere(ONE);
    let mask = AttentionMask { causal: false, ..segments(&[0, 5, 13]) };
    cases.push(("segments that see what follows", Case { mask, ..case }));
    let case = Case::new(&crowded(), Decoder, dtype, [2, 17]).with_terms_everywhere(ONE);
    cases.push(("rows of whole pages", case));
    cases
}

#[test]
fn in_f32_output_and_gradients_are_those_of_the_operations() {
    for (name, case) in cases(DType::F32) {
        eprintln!("{:?}: {name}", case.kind);
        agree(&case.run_fused(), &case.run_composed(), F32_BOUND);
    }
}

#[test]
fn in_bf16_they_are_no_farther_from_f32_than_those_of_the_operations() {
    for ((name, narrow), (_, exact)) in cases(DType::BF16).into_iter().zip(cases(DType::F32)) {
        eprintln!("{:?}: {name}", narrow.kind);
        let fused = narrow.run_fused();
        assert_eq!(fused.y.dtype(), DType::BF16);
        no_farther(&fused, &narrow.run_composed(), &exact.run_composed());
    }
}

#[test]
fn the_layers_take_the_fused_way() {
    for dtype in [DType::F32, DType::BF16] {
        for kind in [Decoder, Vision] {
            let case = Case::new(&odd(), kind, dtype, [2, 7]).with_terms_everywhere(TWO);
            same(&Run::of(case.layer(), &case.vars), &case.run_fused());
        }
    }
}

#[test]
fn dropout_drops_something_and_follows_its_key() {
    for kind in [Decoder, Vision] {
        let case = Case::new(&odd(), kind, DType::F32, [2, 9]).with_terms_everywhere(DROPPED);
        let kept = case.run_fused();
        let dropped = Case { pass: training(), ..case };
        let (once, again) = (dropped.run_fused(), dropped.run_fused());
        same(&once, &again);
        let other = Case { pass: Pass::training(NoiseKey::default()), ..dropped };
        for (run, name) in [(&kept, "none"), (&other.run_fused(), "another key's")] {
            let difference = distance(&once.y, &run.y);
            assert!(difference > 0.05, "{kind:?}: {difference:e} from {name}");
        }
    }
}

/// All of an input dropped: what is left is the base, and no infinity times zero.
#[test]
fn everything_may_be_dropped() {
    for kind in [Decoder, Vision] {
        let case = Case::new(&odd(), kind, DType::F32, [2, 7]).with_terms_everywhere(&[Form(3, 0.7, 1.0)]);
        let case = Case { pass: training(), ..case };
        let run = case.run_fused();
        let base = Case::new(&odd(), kind, DType::F32, [2, 7]).run_fused();
        agree_in("the output", &run.y, &base.y, 1e-6);
        agree_in("x", &run.gradients["x"], &base.gradients["x"], F32_BOUND);
        assert_eq!(run.gradients.len(), case.vars.len());
        for (name, gradient) in run.gradients.iter().filter(|(name, _)| *name != "x") {
            assert!(wide(gradient).iter().all(|v| *v == 0.0), "{name}");
        }
    }
}

#[test]
fn a_packed_row_is_its_rows() {
    for dtype in [DType::F32, DType::BF16] {
        let packed = Case::new(&odd(), Decoder, dtype, [1, 13]).with_terms_everywhere(TWO);
        let packed = Case { mask: segments(&[0, 3, 4, 13]), ..packed };
        let y = packed.fused();
        for (start, length) in [(0, 3), (3, 1), (4, 9)] {
            let x = packed.x.narrow(1, start, length).unwrap();
            let alone = Case::new(&odd(), Decoder, dtype, [1, length]).with_terms_everywhere(TWO);
            let alone = Case { x, ..alone }.fused();
            // Few rows are summed in another order than many.
            let bound = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
            agree_in("a segment", &y.narrow(1, start, length).unwrap(), &alone, bound);
        }
    }
}
