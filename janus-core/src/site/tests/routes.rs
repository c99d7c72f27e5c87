//! Slots and routes: each row as it is alone under its own correction.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::error::Error;
use crate::ops::with_composed;
use crate::pass::{Mixture, Route, Slot};
use crate::testing::{largest_difference, same_bits};

/// Corrections of every form that a site takes.
fn forms(site: &Site) -> Vec<Correction> {
    let vector =
        |length: usize, seed: u64, offset: f64| Some(check::tensor(&[length], seed).affine(0.4, offset).unwrap());
    let pair = |rank, seed| Term::LowRank(term(site, rank, 0.7, seed));
    let output = vector(site.output, 21, 1.0);
    let mut forms = vec![Correction::of_terms([pair(2, 1)]), Correction::of_terms([pair(3, 2), pair(1, 3)])];
    forms.push(Correction { output: output.clone(), ..Correction::of_terms([pair(2, 4)]) });
    if site.kind == SiteKind::Embedding {
        return forms;
    }
    let input = vector(site.input, 22, 1.0);
    forms.push(Correction { input: input.clone(), ..Correction::default() });
    forms.push(Correction { bias: vector(site.output, 23, 0.0), ..Correction::of_terms([pair(1, 5)]) });
    // Every size here is odd: one factor is a single value.
    let mut right = site.weight_shape();
    let product = |left: [usize; 2], right: &[usize]| {
        let (left, right) = (check::tensor(&left, 24), check::tensor(right, 25));
        Term::Kronecker(Kronecker { left, right, scale: 0.6 })
    };
    let mut whole = vec![product([1, 1], &right)];
    right[0] = 1;
    whole.push(product([site.output, 1], &right));
    forms.push(Correction::of_terms(whole));
    let bias = vector(site.output, 26, 0.0);
    forms.push(Correction { input, output, bias, ..Correction::of_terms([pair(2, 6)]) });
    forms
}

/// The projection of a site that holds a correction in each slot, counted from 1.
fn holding(site: &Site, forms: &[Correction]) -> Projection {
    let projection = projection(site);
    for (slot, form) in (1..).zip(forms) {
        let ready = projection.ready(Some(form)).unwrap();
        projection.hold(Slot(slot), ready);
    }
    projection
}

fn pass(part: Part, routes: impl IntoIterator<Item = (Range<usize>, Mixture)>) -> Pass {
    let routes = routes.into_iter().map(|(tokens, mixture)| Route { tokens, mixture });
    Pass::inference().with_routes(part, routes.collect()).unwrap()
}

/// Values `[9, input]`, pictures `[9, input, 9, 11]` or nine ids.
fn nine(site: &Site) -> Tensor {
    match site.kind {
        SiteKind::Linear => check::tensor(&[9, site.input], 3),
        SiteKind::Conv2d { .. } => check::tensor(&[9, site.input, 9, 11], 3),
        SiteKind::Embedding => Tensor::from_slice(&[10u32, 0, 3, 3, 7, 1, 0, 9, 3], 9, &Device::Cpu).unwrap(),
    }
}

/// What a projection that holds nothing gives for `x` under an attached correction.
fn alone(site: &Site, x: &Tensor, correction: Option<Correction>) -> Tensor {
    let projection = projection(site);
    projection.attach(correction.map(Arc::new)).unwrap();
    projection.forward(&Pass::inference(), x).unwrap()
}

#[test]
fn each_row_is_what_it_is_alone_under_its_own_correction() {
    for site in cases() {
        let (forms, x) = (forms(&site), nine(&site));
        let projection = holding(&site, &forms);
        // Rows 0 and 8 of the base, each form once at least, one of them twice and apart.
        let slot_of = |row: usize| if row.is_multiple_of(8) { None } else { Some((row - 1) % forms.len()) };
        let routes = (0..9).map(|row| {
            let mixture = slot_of(row).map_or_else(Mixture::base, |form| Mixture::of(Slot(form as u32 + 1)));
            (row..row + 1, mixture)
        });
        let pass = pass(site.part, routes);
        let y = projection.forward(&pass, &x).unwrap();
        let composed = with_composed(|| projection.forward(&pass, &x).unwrap());
        check::close(&composed, &y, 1e-5);
        let base = alone(&site, &x, None);
        for row in 0..9 {
            let own = x.narrow(0, row, 1).unwrap();
            let expected = alone(&site, &own, slot_of(row).map(|form| forms[form].clone()));
            let got = y.narrow(0, row, 1).unwrap();
            check::close(&got, &expected, 2e-5);
            let moved = largest_difference(&got, &base.narrow(0, row, 1).unwrap());
            assert_eq!(moved > 0.01, slot_of(row).is_some(), "{site:?}, row {row}: {moved}");
        }
    }
}

#[test]
fn a_mixture_is_the_sum_of_the_shifts_times_their_factors() {
    for site in cases() {
        let (forms, x) = (forms(&site), nine(&site));
        let projection = holding(&site, &forms);
        let all: Vec<usize> = (0..forms.len()).collect();
        // One with another factor, two with factors on one side only, and all of them: in and out meet there.
        for chosen in [&all[..1], &all[1..3], &all[..]] {
            let factor = |form: usize| [0.5, -1.5, 2.0, 1.0][form % 4];
            let parts = chosen.iter().map(|form| (Slot(*form as u32 + 1), factor(*form)));
            let routes = [(0..3, Mixture::base()), (3..9, Mixture::new(parts))];
            let y = projection.forward(&pass(site.part, routes), &x).unwrap();
            let parts: Vec<(&Correction, f64)> = chosen.iter().map(|form| (&forms[*form], factor(*form))).collect();
            let sum = Correction::sum(&site, &projection.frozen(), &parts).unwrap();
            check::close(&y.narrow(0, 3, 6).unwrap(), &alone(&site, &x.narrow(0, 3, 6).unwrap(), Some(sum)), 5e-5);
        }
    }
}

#[test]
fn what_is_no_number_reaches_its_own_rows_only() {
    for site in cases() {
        let x = nine(&site);
        let whole = term(&site, 2, 0.7, 1);
        let nan = |t: &Tensor| Tensor::full(f32::NAN, t.dims(), &Device::Cpu).unwrap();
        let sound = Correction::of_terms([Term::LowRank(whole.clone())]);
        for broken in [LowRank { a: nan(&whole.a), ..whole.clone() }, LowRank { b: nan(&whole.b), ..whole.clone() }] {
            let routes = || [(0..2, Mixture::of(Slot(1))), (2..5, Mixture::of(Slot(2))), (5..9, Mixture::base())];
            let run = |second: Correction| {
                let projection = holding(&site, &[sound.clone(), second]);
                projection.forward(&pass(site.part, routes()), &x).unwrap()
            };
            let (y, without) = (run(Correction::of_terms([Term::LowRank(broken)])), run(sound.clone()));
            for row in [0, 1, 5, 6, 7, 8] {
                same_bits(&y.get(row).unwrap(), &without.get(row).unwrap());
            }
            let own: Vec<f32> = y.narrow(0, 2, 3).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(own.iter().all(|v| v.is_nan()), "{site:?}");
        }
    }
}

#[test]
fn rows_of_the_base_keep_every_bit() {
    for site in cases() {
        let (forms, x) = (forms(&site), nine(&site));
        let base = projection(&site).forward(&Pass::inference(), &x).unwrap();
        let projection = holding(&site, &forms);
        let all = pass(site.part, [(0..9, Mixture::base())]);
        same_bits(&projection.forward(&all, &x).unwrap(), &base);
        // What a slot holds elsewhere only, or routes of another part.
        let ready = projection.ready(None).unwrap();
        projection.hold(Slot(1), ready);
        let empty = pass(site.part, [(0..9, Mixture::of(Slot(1)))]);
        same_bits(&projection.forward(&empty, &x).unwrap(), &base);
        let other = pass(Part::Vision, [(0..9, Mixture::of(Slot(2)))]);
        same_bits(&projection.forward(&other, &x).unwrap(), &base);
    }
}

#[test]
fn the_gradient_of_the_input_goes_through_routes() {
    for site in cases().into_iter().filter(|site| site.kind != SiteKind::Embedding) {
        let (forms, x) = (forms(&site), nine(&site));
        let projection = holding(&site, &forms);
        let routes = [(0..4, Mixture::of(Slot(1))), (4..5, Mixture::base()), (5..9, Mixture::of(Slot(3)))];
        let pass = pass(site.part, routes);
        check::gradients(&[x.dims()], |t| Ok(projection.forward(&pass, &t[0]).unwrap()));
    }
}

#[test]
fn what_routes_and_slots_do_not_say_is_an_error() {
    for site in cases() {
        let (forms, x) = (forms(&site), nine(&site));
        let projection = holding(&site, &forms);
        let refused = |pass: Pass, fits: fn(&ModelError) -> bool| {
            let error = projection.forward(&pass, &x).unwrap_err();
            assert!(matches!(&error, Error::Model(error) if fits(error)), "{site:?}: {error}");
        };
        let unknown = pass(site.part, [(0..8, Mixture::base()), (8..9, Mixture::of(Slot(99)))]);
        refused(unknown, |error| matches!(error, ModelError::UnknownSlot { slot: 99 }));
        for rows in [8, 10] {
            let pass = pass(site.part, [(0..rows, Mixture::of(Slot(1)))]);
            refused(pass, |error| matches!(error, ModelError::Unrouted { rows: 9, .. }));
        }
        let known = || pass(site.part, [(0..9, Mixture::of(Slot(1)))]);
        projection.attach(Some(Arc::new(forms[0].clone()))).unwrap();
        refused(known(), |error| matches!(error, ModelError::AttachedBesideRoutes { .. }));
        projection.attach(None).unwrap();
        projection.release(Slot(1));
        refused(known(), |error| matches!(error, ModelError::UnknownSlot { slot: 1 }));
        let other = linear();
        let foreign = Correction::of_terms([Term::LowRank(term(&Site { input: 6, ..other }, 2, 1.0, 1))]);
        assert!(projection.ready(Some(&foreign)).is_err(), "{site:?}");
    }
}
