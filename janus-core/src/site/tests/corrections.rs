//! Corrections of every form against the weight and the bias they stand for, and sums of several.

use super::*;
use crate::error::Error;
use crate::ops::with_composed;
use crate::site::correction::Base;
use crate::testing::{largest_difference, same_bits};

/// Linear 6 to 10 and convolutions 6 to 10: of sizes that have factors.
fn divisible() -> Vec<Site> {
    let conv = |kernel, stride, padding| SiteKind::Conv2d { kernel, stride, padding };
    [SiteKind::Linear, conv(3, 1, 1), conv(2, 2, 0), conv(1, 1, 0)].map(|kind| site("a.site", kind, 6, 10)).to_vec()
}

/// 5 x 2 pieces of 2 x 3.
fn kronecker(site: &Site, scale: f64) -> Term {
    let right: Vec<usize> = [2, 3].into_iter().chain(site.weight_shape().split_off(2)).collect();
    Term::Kronecker(Kronecker { left: check::tensor(&[5, 2], 21), right: check::tensor(&right, 22), scale })
}

fn factors(length: usize, seed: u64) -> Option<Tensor> {
    Some(check::tensor(&[length], seed).affine(0.4, 1.0).unwrap())
}

/// Every form that a site can have, each in another mixture.
fn forms(site: &Site) -> Vec<Correction> {
    let low_rank = |seed| Term::LowRank(term(site, 2, 0.7, seed));
    let output = || factors(site.output, 31);
    let input = || factors(site.input, 32).filter(|_| site.kind != SiteKind::Embedding);
    let bias = || Some(check::tensor(&[site.output], 33));
    let mut forms = vec![
        Correction { output: output(), ..Correction::default() },
        Correction { output: output(), terms: vec![low_rank(1)], ..Correction::default() },
        Correction { bias: bias(), terms: vec![low_rank(1), low_rank(2)], ..Correction::default() },
        Correction { output: output(), bias: bias(), ..Correction::default() },
    ];
    if input().is_some() {
        forms.push(Correction { input: input(), ..Correction::default() });
        forms.push(Correction { input: input(), output: output(), bias: bias(), terms: vec![low_rank(1)] });
    }
    if site.output == 10 {
        forms.push(Correction::of_terms([kronecker(site, 0.6)]));
        forms.push(Correction::of_terms([kronecker(site, 0.6), low_rank(1), kronecker(site, -0.3)]));
        forms.push(Correction { output: output(), terms: vec![kronecker(site, 0.6)], ..Correction::default() });
    }
    forms
}

fn all() -> Vec<Site> {
    cases().into_iter().chain(divisible()).collect()
}

fn with(projection: &Projection, x: &Tensor, correction: &Correction) -> Tensor {
    projection.attach(Some(Arc::new(correction.clone()))).unwrap();
    let y = projection.forward(&Pass::inference(), x).unwrap();
    projection.attach(None).unwrap();
    y
}

/// The projection with the correction in its weight and bias.
fn folded(site: &Site, correction: &Correction) -> Projection {
    let parameter = |name: &str, value| Arc::new(Parameter::new(name, value));
    let weight = correction.fold(site, weight(site)).unwrap();
    let own = projection(site).bias().map(|bias| bias.frozen().values());
    let bias = correction.bias.clone().or(own).map(|bias| parameter("bias", bias));
    Projection::new(site.clone(), parameter("weight", weight), bias)
}

/// A table has no bias of its own: what a correction puts there is added.
fn expected(site: &Site, x: &Tensor, correction: &Correction) -> Tensor {
    let y = folded(site, correction).forward(&Pass::inference(), x).unwrap();
    match (&correction.bias, site.kind) {
        (Some(bias), SiteKind::Embedding) => y.broadcast_add(bias).unwrap(),
        _ => y,
    }
}

#[test]
fn a_correction_computes_what_folded_weights_compute() {
    for site in all() {
        let (x, projection) = (input(&site), projection(&site));
        let base = projection.forward(&Pass::inference(), &x).unwrap();
        for correction in forms(&site) {
            let truth = expected(&site, &x, &correction);
            assert!(largest_difference(&truth, &base) > 0.1, "{correction:?} does next to nothing");
            check::close(&with(&projection, &x, &correction), &truth, 3e-5);
            check::close(&with_composed(|| with(&projection, &x, &correction)), &truth, 3e-5);
        }
    }
}

#[test]
fn a_kronecker_product_is_that_of_its_definition() {
    for site in divisible() {
        let term = kronecker(&site, 0.6);
        let [left, right] = term.tensors().map(|t| -> Vec<f32> { t.flatten_all().unwrap().to_vec1().unwrap() });
        let area: usize = site.weight_shape()[2..].iter().product();
        let cell =
            |o: usize, i: usize, at: usize| 0.6 * left[(o / 2) * 2 + i / 3] * right[((o % 2) * 3 + i % 3) * area + at];
        let values: Vec<f32> = (0..10 * 6 * area).map(|n| cell(n / (6 * area), n / area % 6, n % area)).collect();
        let truth = Tensor::from_vec(values, site.weight_shape(), &Device::Cpu).unwrap();
        check::close(&term.shift_of_rows(&site, 0, 10).unwrap(), &truth, 1e-6);
        let some = term.shift_of_rows(&site, 3, 4).unwrap();
        check::close(&some, &truth.narrow(0, 3, 4).unwrap(), 1e-6);
    }
}

#[test]
fn rows_are_folded_one_by_one_as_together() {
    for site in all() {
        for correction in forms(&site) {
            let whole = correction.fold(&site, weight(&site)).unwrap();
            for from in 0..site.weight_rows() {
                let row = weight(&site).narrow(0, from, 1).unwrap();
                let scaled = correction.scaled_rows(&site, row, from).unwrap();
                let row = match correction.shift_of_rows(&site, from, 1).unwrap() {
                    Some(shift) => (scaled + shift).unwrap(),
                    None => scaled,
                };
                check::close(&row, &whole.narrow(0, from, 1).unwrap(), 1e-6);
            }
        }
    }
}

#[test]
fn the_gradients_of_every_piece_agree_with_finite_differences() {
    for site in all() {
        let x = input(&site);
        for correction in forms(&site) {
            let shapes: Vec<Vec<usize>> = correction.tensors().map(|t| t.dims().to_vec()).collect();
            let mut shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            if site.kind != SiteKind::Embedding {
                shapes.push(x.dims());
            }
            let projection = projection(&site);
            check::gradients(&shapes, |tensors| {
                let next = std::cell::Cell::new(0);
                let varied = correction.map(&|_| {
                    next.set(next.get() + 1);
                    Ok(tensors[next.get() - 1].clone())
                })?;
                Ok(with(&projection, tensors.get(next.get()).unwrap_or(&x), &varied))
            });
        }
    }
}

/// The weight and the bias of a test's projection.
struct Own(Site);

impl Base for Own {
    fn weight(&self) -> Result<Tensor> {
        Ok(weight(&self.0))
    }

    fn bias(&self) -> Result<Option<Tensor>> {
        Ok(projection(&self.0).bias().map(|bias| bias.frozen().values()))
    }
}

#[test]
fn a_sum_has_the_sum_of_the_shifts() {
    for site in all() {
        let (x, projection) = (input(&site), projection(&site));
        let base = projection.forward(&Pass::inference(), &x).unwrap();
        let shift = |correction: &Correction| (expected(&site, &x, correction) - &base).unwrap();
        let forms = forms(&site);
        for (first, second) in forms.iter().flat_map(|first| forms.iter().map(move |second| (first, second))) {
            let sum = Correction::sum(&site, &Own(site.clone()), &[(first, 0.6), (second, -1.4)]).unwrap();
            let truth = ((shift(first) * 0.6).unwrap() + (shift(second) * -1.4).unwrap()).unwrap();
            let got = (with(&projection, &x, &sum) - &base).unwrap();
            check::close(&got, &truth, 1e-4);
            let turned = Correction::sum(&site, &Own(site.clone()), &[(second, -1.4), (first, 0.6)]).unwrap();
            check::close(&(with(&projection, &x, &turned) - &base).unwrap(), &truth, 1e-4);
        }
    }
}

#[test]
fn a_factor_of_one_is_the_correction_and_of_nothing_the_base_to_the_bit() {
    for site in all() {
        for correction in forms(&site) {
            let none = forms(&site).remove(0);
            let sum = Correction::sum(&site, &Own(site.clone()), &[(&none, 0.0), (&correction, 1.0)]).unwrap();
            let (x, projection) = (input(&site), projection(&site));
            same_bits(&with(&projection, &x, &sum), &with(&projection, &x, &correction));
            assert!(Correction::sum(&site, &Own(site.clone()), &[(&correction, 0.0)]).unwrap().is_empty());
        }
    }
}

#[test]
fn factors_of_one_and_the_base_s_bias_change_no_bit() {
    for dtype in [DType::F32, DType::BF16] {
        for site in cases() {
            let stored = |name: &str, value: &Tensor| Arc::new(Parameter::new(name, value.to_dtype(dtype).unwrap()));
            let bias = projection(&site).bias().map(|bias| stored("bias", &bias.frozen().values()));
            let projection = Projection::new(site.clone(), stored("weight", &weight(&site)), bias);
            let x = match site.kind {
                SiteKind::Embedding => input(&site),
                _ => input(&site).to_dtype(dtype).unwrap(),
            };
            let ones = Tensor::ones(site.output, DType::F32, &Device::Cpu).unwrap();
            let correction = Correction { output: Some(ones), ..Correction::default() };
            let base = projection.forward(&Pass::inference(), &x).unwrap();
            let y = with(&projection, &x, &correction);
            assert_eq!(y.dtype(), dtype);
            let wide = |y: &Tensor| y.to_dtype(DType::F32).unwrap();
            same_bits(&wide(&y), &wide(&base));
        }
    }
}

#[test]
fn a_correction_that_does_not_fit_is_refused() {
    for site in all() {
        let projection = projection(&site);
        let wrong = Some(check::tensor(&[site.output + 1], 1));
        let mut misfits = vec![
            Correction { output: wrong.clone(), ..Correction::default() },
            Correction { bias: wrong.clone(), ..Correction::default() },
            Correction { input: Some(check::tensor(&[site.input + 1], 1)), ..Correction::default() },
            Correction::of_terms([Term::LowRank(LowRank {
                b: check::tensor(&[site.output, 3], 1),
                ..term(&site, 2, 1.0, 1)
            })]),
        ];
        let (left, right) = (check::tensor(&[3, 1], 1), check::tensor(&[2, 2], 1));
        misfits.push(Correction::of_terms([Term::Kronecker(Kronecker { left, right, scale: 1.0 })]));
        if site.kind == SiteKind::Embedding {
            misfits.push(Correction { input: factors(site.input, 1), ..Correction::default() });
        }
        for misfit in misfits {
            let error = projection.attach(Some(Arc::new(misfit))).unwrap_err();
            assert!(matches!(&error, Error::Model(ModelError::Shape { .. })), "{error}");
            assert!(error.to_string().contains(&*site.path), "{error}");
            assert!(projection.correction().is_none());
        }
    }
}

#[test]
fn a_site_without_its_correction_is_the_base_again() {
    for site in cases() {
        let (x, pass, projection) = (input(&site), Pass::inference(), projection(&site));
        let base = projection.forward(&pass, &x).unwrap();
        assert!(projection.correction().is_none());
        let correction = forms(&site).remove(0);
        projection.attach(Some(Arc::new(correction))).unwrap();
        assert!(projection.correction().is_some());
        assert!(largest_difference(&projection.forward(&pass, &x).unwrap(), &base) > 0.1);
        projection.attach(Some(Arc::new(Correction::default()))).unwrap();
        assert!(projection.correction().is_none(), "an empty one is none");
        same_bits(&projection.forward(&pass, &x).unwrap(), &base);
    }
}

/// Tells what stood before a site and what it saw.
#[derive(Debug)]
struct Witness(std::sync::Mutex<Vec<Site>>);

impl Intercept for Witness {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> Result<Tensor> {
        self.0.lock().unwrap().push(base.site().clone());
        base.forward(x)
    }
}

#[test]
fn what_stands_before_a_site_sees_its_input_and_gives_its_output() {
    for site in cases() {
        let (x, pass, projection) = (input(&site), Pass::inference(), projection(&site));
        let base = projection.forward(&pass, &x).unwrap();
        projection.attach(Some(Arc::new(forms(&site).remove(0)))).unwrap();
        let witness = Arc::new(Witness(std::sync::Mutex::default()));
        projection.intercept(Some(witness.clone()));
        same_bits(&projection.forward(&pass, &x).unwrap(), &base);
        assert_eq!(*witness.0.lock().unwrap(), [site]);
        projection.intercept(None);
        assert!(largest_difference(&projection.forward(&pass, &x).unwrap(), &base) > 0.1);
    }
}
