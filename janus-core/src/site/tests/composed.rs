//! Every pass composed of candle's own operations, as on a GPU, against the same pass in the code for the processor:
//! outputs and gradients. That the composed pass gets through also shows that it meets no code for the processor only.

use candle_core::Var;

use super::model::{objective, outputs, term_of};
use super::*;
use crate::ops::with_composed;
use crate::pass::NoiseKey;
use crate::testing::{largest_difference, of_low_rank, tiny, tiny_in};

/// A term whose factors are variables.
fn trained(term: LowRank) -> (LowRank, [Var; 2]) {
    let (a, b) = (Var::from_tensor(&term.a).unwrap(), Var::from_tensor(&term.b).unwrap());
    let term = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), ..term };
    (term, [a, b])
}

#[test]
fn a_site_of_each_kind_with_dropout_is_the_same_both_ways() {
    for site in cases() {
        let projection = projection(&site);
        let x = match site.kind {
            SiteKind::Embedding => None,
            _ => Some(Var::from_tensor(&input(&site)).unwrap()),
        };
        let given = x.as_ref().map_or_else(|| input(&site), |x| x.as_tensor().clone());
        let (every, vars_of_every) = trained(LowRank { dropout: 0.3, ..term(&site, 2, 0.7, 1) });
        let (other, vars) = trained(term(&site, 3, 1.1, 2));
        let terms = [every, other];
        let pass = Pass::training(NoiseKey { seed: 3, step: 5, micro_batch: 0 });
        let run = || {
            let y = with_terms(&projection, &pass, &given, &terms);
            let gradients = (&y * check::tensor(y.dims(), 9)).unwrap().sum_all().unwrap().backward().unwrap();
            (y, gradients)
        };
        let (fast, fast_gradients) = run();
        let (composed, gradients) = with_composed(run);
        check::close(&composed, &fast, 1e-5);
        for var in vars_of_every.iter().chain(&vars).chain(&x) {
            check::close(gradients.get(var).unwrap(), fast_gradients.get(var).unwrap(), 2e-5);
        }
    }
}

#[test]
fn the_whole_model_gives_the_same_both_ways() {
    let model = tiny();
    for projection in model.projections().iter() {
        projection.attach(of_low_rank(vec![term_of(projection.site())])).unwrap();
    }
    let (fast, composed) = (outputs(&model), with_composed(|| outputs(&model)));
    for ((name, fast), (_, composed)) in fast.named().into_iter().zip(composed.named()) {
        let difference = largest_difference(fast, composed);
        assert!(difference < 2e-5, "the {name} differ by {difference:e}");
    }
}

#[test]
fn in_bf16_the_whole_model_gives_the_same_both_ways_up_to_rounding() {
    let model = tiny_in(DType::BF16);
    let wide = outputs(&tiny());
    let (fast, composed) = (outputs(&model), with_composed(|| outputs(&model)));
    let all = fast.named().into_iter().zip(composed.named()).zip(wide.named());
    for (((name, fast), (_, composed)), (_, wide)) in all {
        let narrow = |t: &Tensor| largest_difference(&t.to_dtype(DType::F32).unwrap(), wide);
        let (fast, composed) = (narrow(fast), narrow(composed));
        let size = wide.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        // The same distance from f32 as the fast way within a factor of two, or within three roundings of the largest value.
        let bound = (2.0 * fast).max(3.0 * size / 256.0);
        assert!(composed <= bound, "the {name} are {composed:e} from f32, the fast way {fast:e}, bound {bound:e}");
    }
}

#[test]
fn every_factor_of_the_whole_model_gets_the_same_gradient_both_ways() {
    let model = tiny();
    let mut vars = Vec::new();
    for projection in model.projections().iter() {
        let (term, own) = trained(term_of(projection.site()));
        projection.attach(of_low_rank(vec![term])).unwrap();
        vars.push((projection.site().path.clone(), own));
    }
    let fast = objective(&model).backward().unwrap();
    let composed = with_composed(|| objective(&model).backward().unwrap());
    let mut compared = 0;
    for (path, own) in &vars {
        for (factor, var) in ["A", "B"].into_iter().zip(own) {
            match (fast.get(var), composed.get(var)) {
                (Some(fast), Some(composed)) => {
                    let size = fast.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    let difference = largest_difference(fast, composed);
                    assert!(difference <= 1e-4 * size.max(0.1), "{factor} of `{path}`: {difference:e} of {size}");
                    compared += 1;
                }
                (None, None) => {}
                (fast, _) => panic!("{factor} of `{path}` has a gradient one way only (fast: {})", fast.is_some()),
            }
        }
    }
    // All sites but the image tokenizer's 66, which the objective does not reach.
    assert_eq!(compared, 2 * (vars.len() - 66));
    for projection in model.projections().iter().filter(|p| p.site().kind == SiteKind::Linear) {
        let weight = format!("{}.weight", projection.site().path);
        let frozen = model.parameters().get(&weight).unwrap().frozen().values();
        assert!(composed.get(&frozen).is_none(), "`{weight}` is frozen and has a gradient");
    }
}
