//! Single sites outside of blocks with their terms, fused against composed.

use super::*;
use crate::site::{Projection, SiteKind};

/// Linear sites that no block holds.
fn sites(model: &Janus) -> Vec<Arc<Projection>> {
    let outside = |p: &&Arc<Projection>| p.site().kind == SiteKind::Linear && !p.site().path.contains(".layers.");
    let sites: Vec<_> = model.projections().iter().filter(outside).cloned().collect();
    // The text head, and aligners and head of both sides.
    let paths: Vec<&str> = sites.iter().map(|p| &*p.site().path).collect();
    assert!(paths.contains(&"lm_head") && paths.iter().any(|path| path.starts_with("model.aligner.")), "{paths:?}");
    assert!(sites.iter().any(|p| p.bias().is_some()) && sites.iter().any(|p| p.bias().is_none()), "{paths:?}");
    sites
}

/// Output and gradients of a site for a variable input in `[rows.., input]`.
fn run(pass: &Pass, projection: &Projection, vars: &Vars, tracked: bool) -> Run {
    poison();
    let x = vars["x"].as_tensor();
    let x = if tracked { x.clone() } else { x.detach() };
    let y = projection.forward(pass, &x).unwrap();
    poison();
    Run::of(y, vars)
}

/// Every site with these terms in `dtype`, and its variables.
fn each(dtype: DType, leading: &[usize], forms: &[Form], mut f: impl FnMut(&Projection, &Vars)) {
    let model = shaped(&odd(), dtype);
    for projection in sites(&model) {
        let mut vars = Vars::new();
        attach(&model, &projection.site().path, forms, &mut vars);
        let shape: Vec<usize> = leading.iter().copied().chain([projection.site().input]).collect();
        let x = check::tensor(&shape, 17).to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
        vars.insert("x".into(), Var::from_tensor(&x).unwrap());
        f(&projection, &vars);
    }
}

const ONE: &[Form] = &[Form(3, 0.7, 0.0)];
const TWO: &[Form] = &[Form(3, 0.7, 0.0), Form(2, -1.3, 0.0)];
const DROPPED: &[Form] = &[Form(3, 0.7, 0.4), Form(2, -1.3, 0.0), Form(1, 0.5, 0.25)];

#[test]
fn in_f32_a_site_is_that_of_the_operations() {
    for leading in [&[2, 9][..], &[5], &[1, 1], &[37]] {
        for forms in [ONE, TWO, DROPPED] {
            for (pass, tracked) in [(Pass::inference(), true), (training(), true), (training(), false)] {
                each(DType::F32, leading, forms, |projection, vars| {
                    let got = run(&pass, projection, vars, tracked);
                    assert_eq!(got.gradients.len(), 2 * forms.len() + usize::from(tracked));
                    agree(&got, &with_composed(|| run(&pass, projection, vars, tracked)), 1e-5);
                });
            }
        }
    }
}

#[test]
fn in_bf16_a_site_is_no_farther_from_f32_than_the_operations() {
    for (leading, pass) in [([2, 9], Pass::inference()), ([3, 13], training())] {
        let mut truths = Vec::new();
        each(DType::F32, &leading, DROPPED, |projection, vars| {
            truths.push(with_composed(|| run(&pass, projection, vars, true)));
        });
        let mut truths = truths.into_iter();
        each(DType::BF16, &leading, DROPPED, |projection, vars| {
            let (got, truth) = (run(&pass, projection, vars, true), truths.next().unwrap());
            let composed = with_composed(|| run(&pass, projection, vars, true));
            eprintln!("{}", projection.site().path);
            no_farther(&got, &composed, &truth);
        });
    }
}

#[test]
fn a_site_with_vectors_is_that_of_the_operations() {
    for (forms, vectors) in [(&[][..], OUTPUT), (TWO, SCALED), (DROPPED, INPUT), (TWO, ALL), (&[][..], ALL)] {
        for (pass, tracked) in [(Pass::inference(), true), (training(), true), (training(), false)] {
            each(DType::F32, &[2, 9], forms, |projection, vars| {
                let mut vars = vars.clone();
                let model = shaped(&odd(), DType::F32);
                let own = model.projections().get(&projection.site().path).unwrap();
                own.attach(projection.correction()).unwrap();
                attach_vectors(&model, &projection.site().path, vectors, &mut vars);
                let got = run(&pass, own, &vars, tracked);
                assert_eq!(got.gradients.len(), vars.len() - usize::from(!tracked));
                agree(&got, &with_composed(|| run(&pass, own, &vars, tracked)), 2e-5);
            });
        }
    }
}

#[test]
fn frozen_factors_and_no_rows_have_no_gradient() {
    each(DType::F32, &[2, 5], TWO, |projection, vars| {
        let all = run(&training(), projection, vars, true);
        let correction = projection.correction().unwrap();
        let frozen = |term: &LowRank| LowRank { a: term.a.detach(), b: term.b.detach(), ..term.clone() };
        projection.attach(of_low_rank(low_rank_terms(&correction).iter().map(frozen))).unwrap();
        let input = run(&training(), projection, vars, true);
        assert_eq!(input.gradients.keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(wide(&input.gradients["x"]), wide(&all.gradients["x"]));
    });
    each(DType::BF16, &[0], DROPPED, |projection, vars| {
        let run = run(&training(), projection, vars, true);
        assert_eq!(run.y.dims(), [0, projection.site().output]);
        assert!(run.gradients.values().all(|gradient| wide(gradient).iter().all(|v| *v == 0.0)));
    });
}

#[test]
fn a_misfit_is_an_error() {
    each(DType::F32, &[2, 5], ONE, |projection, vars| {
        let input = projection.site().input;
        let with = |x: &Tensor, term: LowRank| {
            projection.attach(of_low_rank([term])).is_ok() && projection.forward(&Pass::inference(), x).is_ok()
        };
        let term = low_rank_terms(&projection.correction().unwrap())[0].clone();
        assert!(with(&vars["x"], term.clone()));
        assert!(!with(&check::tensor(&[5, input + 1], 1), term.clone()));
        assert!(!with(&vars["x"], LowRank { a: check::tensor(&[3, input + 1], 1), ..term.clone() }));
        assert!(!with(&vars["x"], LowRank { b: check::tensor(&[projection.site().output, 2], 1), ..term }));
    });
}
