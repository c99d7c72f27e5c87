//! What holds whatever the numbers are: bits that stay, gradients that are not formed, inputs that are refused.

use super::*;
use crate::site::{BaseView, Intercept};

const TWO: &[Form] = &[Form(3, 0.7, 0.4), Form(2, -1.3, 0.0)];

/// Both kinds of blocks in both types, with dropout.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, dtype) in [(Decoder, DType::F32), (Decoder, DType::BF16), (Vision, DType::F32), (Vision, DType::BF16)] {
        let case = Case::new(&odd(), kind, dtype, [2, 9]).with_terms_everywhere(TWO);
        cases.push(Case { pass: training(), ..case });
        let case = Case::new(&odd(), kind, dtype, [2, 9]).with_terms_everywhere(TWO).with_trained_norms();
        cases.push(Case { pass: training(), ..case });
    }
    cases
}

#[test]
fn recomputing_changes_no_bit() {
    for case in cases() {
        let kept = case.run_fused();
        let case = Case { pass: recomputing(), ..case };
        same(&case.run_fused(), &kept);
    }
}

#[test]
fn a_graph_may_be_walked_back_twice() {
    for case in cases() {
        let y = case.fused();
        let first = Run::of(y.clone(), &case.vars);
        poison();
        same(&Run::of(y, &case.vars), &first);
    }
}

/// The terms of every site and the norms of a case without history.
fn freeze(case: &Case) {
    let (path, _) = case.kind.names(0);
    for parameter in case.model.parameters().iter().filter(|parameter| parameter.name().starts_with(&path)) {
        let copy = parameter.copy().map(|copy| copy.detach());
        case.model.parameters().substitute(parameter.name(), copy).unwrap();
    }
    for path in case.kind.paths(0) {
        let projection = case.model.projections().get(&path).unwrap();
        let correction = projection.correction().unwrap();
        let frozen = |term: &LowRank| LowRank { a: term.a.detach(), b: term.b.detach(), ..term.clone() };
        projection.attach(of_low_rank(low_rank_terms(&correction).iter().map(frozen))).unwrap();
    }
}

#[test]
fn what_is_not_tracked_gets_no_gradient_and_the_rest_keeps_its_bits() {
    for case in cases() {
        let all = case.run_fused();
        assert_eq!(all.gradients.len(), case.vars.len());

        let x = case.x.clone();
        let case = case.untracked();
        let factors = case.run_fused();
        assert_eq!(factors.gradients.len(), case.vars.len() - 1);
        assert!(!factors.gradients.contains_key("x"));
        factors.gradients.iter().for_each(|(name, own)| assert_eq!(wide(own), wide(&all.gradients[name]), "{name}"));

        freeze(&case);
        let y = case.fused();
        assert!(!y.track_op());
        assert_eq!(wide(&y), wide(&all.y));

        let case = Case { x, ..case };
        let input = case.run_fused();
        assert_eq!(input.gradients.keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(wide(&input.gradients["x"]), wide(&all.gradients["x"]));
    }
}

#[test]
fn inputs_and_factors_may_be_parts_of_something_larger() {
    for kind in [Decoder, Vision] {
        let mut case = Case::new(&odd(), kind, DType::F32, [9, 4]);
        // Rows and tokens change places, then some are left out: gaps, and a start behind the first value.
        case.x = case.x.transpose(0, 1).unwrap().narrow(1, 2, 5).unwrap().narrow(0, 1, 2).unwrap();
        let width = case.x.dim(2).unwrap();
        let mut var = |name: &str, shape: [usize; 2]| {
            let var = Var::from_tensor(&(check::tensor(&shape, noise::key_of(name)) * 0.5).unwrap()).unwrap();
            let tensor = var.as_tensor().clone();
            case.vars.insert(name.into(), var);
            tensor
        };
        // One A for q, k and v, rows of a larger one; of q's and v's B one is the other turned over in part.
        let shared = var("A", [7, width]).narrow(0, 2, 3).unwrap();
        let turned = var("B", [3, 70]).t().unwrap();
        for path in &kind.paths(0)[..3] {
            let projection = case.model.projections().get(path).unwrap();
            let b = turned.narrow(0, 5, projection.site().output).unwrap();
            let term = LowRank { a: shared.clone(), b, scale: 0.7, dropout: 0.0 };
            // Twice the same term.
            projection.attach(of_low_rank(vec![term.clone(), term])).unwrap();
        }
        let run = case.run_fused();
        assert_eq!(run.gradients.len(), 3);
        agree(&run, &case.run_composed(), 1e-5);
    }
}

#[test]
fn no_tokens_have_no_output_and_no_gradients() {
    for dtype in [DType::F32, DType::BF16] {
        for kind in [Decoder, Vision] {
            let case = Case::new(&odd(), kind, dtype, [2, 0]).with_terms_everywhere(TWO);
            let case = Case { pass: training(), ..case };
            let run = case.run_fused();
            assert_eq!(run.y.dims(), case.x.dims());
            assert_eq!(run.gradients.len(), case.vars.len());
            for (name, gradient) in &run.gradients {
                assert!(wide(gradient).iter().all(|v| *v == 0.0), "{name}");
            }
        }
    }
}

#[test]
fn a_term_of_rank_zero_does_nothing() {
    for kind in [Decoder, Vision] {
        let nothing = &[Form(0, 0.7, 0.4)];
        let empty = Case::new(&odd(), kind, DType::F32, [2, 3]).with_terms_everywhere(nothing);
        let empty = Case { pass: training(), ..empty }.run_fused();
        let base = Case::new(&odd(), kind, DType::F32, [2, 3]).run_fused();
        assert_eq!(wide(&empty.y), wide(&base.y));
        assert_eq!(wide(&empty.gradients["x"]), wide(&base.gradients["x"]));
    }
}

/// What is no number comes out as no number, and only where it can reach.
#[test]
fn no_number_is_not_hidden() {
    for dtype in [DType::F32, DType::BF16] {
        for bad in [f32::NAN, f32::INFINITY] {
            let case = Case::new(&odd(), Decoder, dtype, [2, 7]).untracked();
            let mut values: Vec<f32> = wide(&case.x);
            // Some value of the second row's first token.
            values[7 * 24 + 5] = bad;
            let x = Tensor::from_vec(values, (2, 7, 24), case.x.device()).unwrap().to_dtype(dtype).unwrap();
            let y = Case { x, ..case }.fused().to_dtype(DType::F32).unwrap();
            let rows: Vec<Vec<f32>> = y.reshape((14, 24)).unwrap().to_vec2().unwrap();
            for (token, row) in rows.iter().enumerate() {
                let numbers = row.iter().filter(|v| v.is_finite()).count();
                assert_eq!(numbers, if token < 7 { 24 } else { 0 }, "{dtype:?}, {bad}, token {token}");
            }
        }
    }
}

/// Stands before a site and does what the site does.
#[derive(Debug)]
struct Opaque;

impl Intercept for Opaque {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> crate::Result<Tensor> {
        base.forward(x)
    }
}

#[test]
fn what_a_block_cannot_do_goes_through_the_operations() {
    for kind in [Decoder, Vision] {
        let of = || {
            let case = Case::new(&odd(), kind, DType::F32, [2, 7]).with_terms_everywhere(TWO);
            Case { pass: training(), ..case }
        };
        let case = of();
        let expected = case.run_fused();
        assert!(with_composed(|| case.block().is_none()));
        let projection = |case: &Case| case.model.projections().get(&case.kind.paths(0)[4]).unwrap().clone();

        projection(&case).attach(None).unwrap();
        let without = case.run_fused();
        projection(&case).intercept(Some(Arc::new(Opaque)));
        assert!(case.block().is_none());
        agree(&Run::of(case.layer(), &case.vars), &without, 1e-5);

        let name = format!("{}.weight", kind.paths(0)[2]);
        let case = of();
        let parameters = case.model.parameters();
        let copy = parameters.get(&name).unwrap().frozen().values().copy().unwrap();
        parameters.substitute(&name, Some(copy)).unwrap();
        assert!(case.block().is_none(), "{name}");
        agree(&Run::of(case.layer(), &case.vars), &expected, 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_refused_as_the_operations_refuse_it() {
    let case = || Case::new(&odd(), Decoder, DType::F32, [1, 6]).with_terms_everywhere(TWO);
    let layer = |case: &Case, rotary: &Rotary| {
        case.model.decoder().layers()[0].forward(&case.pass, &case.x, rotary, &case.mask, None).is_ok()
    };
    let refused = |case: &Case, rotary: &Rotary, what: &str| {
        assert!(!layer(case, rotary), "{what}");
        assert!(!with_composed(|| layer(case, rotary)), "{what}, composed");
    };
    let (good, tables) = (case(), case().rotary());
    assert!(layer(&good, &tables) && with_composed(|| layer(&good, &tables)));

    for shape in [&[1, 6, 23][..], &[1, 6, 25], &[6, 24], &[1, 1, 6, 24]] {
        refused(&Case { x: check::tensor(shape, 1), ..case() }, &tables, "an input of another shape");
    }
    for positions in [&[0, 1, 2, 3, 4][..], &[0, 1, 2, 3, 4, 5, 6]] {
        refused(&good, &good.model.decoder().rotary(positions, 1), "tables of another length");
    }
    refused(&good, &Rotary::new(&[0, 1, 2, 3, 4, 5], 1, 12, 1e4), "tables of another head");
    for bounds in [&[0, 2][..], &[1, 6], &[0, 4, 2, 6], &[0, 7], &[]] {
        let mask = AttentionMask { segments: Some(bounds.into()), ..AttentionMask::causal() };
        refused(&Case { mask, ..case() }, &tables, "segments that are not the row's");
    }
    let mask = AttentionMask { segments: Some([0, 2, 3].into()), ..AttentionMask::causal() };
    let rows = Case { x: case().x.reshape((2, 3, 24)).unwrap(), mask, ..case() };
    refused(&rows, &rows.model.decoder().rotary(&[0, 1, 0, 0, 1, 0], 2), "segments of two rows");

    for (a, b) in [([3, 23], [60, 3]), ([3, 24], [59, 3]), ([3, 24], [60, 2]), ([2, 24], [60, 3]), ([3, 24], [3, 60])] {
        let (a, b) = (check::tensor(&a, 1), check::tensor(&b, 2));
        let term = LowRank { a, b, scale: 0.7, dropout: 0.0 };
        let case = case();
        let projection = case.model.projections().get(&Decoder.paths(0)[0]).unwrap();
        let before = projection.correction().unwrap();
        assert!(projection.attach(of_low_rank([term])).is_err(), "factors of another shape");
        assert!(Arc::ptr_eq(&projection.correction().unwrap(), &before));
    }
}

/// A graph of fused nodes walked back in a composed pass would be code for the processor in disguise.
#[test]
fn a_fused_graph_is_not_walked_back_in_a_composed_pass() {
    for case in cases() {
        let loss = case.fused().to_dtype(DType::F32).unwrap().sum_all().unwrap();
        assert!(with_composed(|| loss.backward()).is_err());
        assert!(loss.backward().is_ok());
    }
}
