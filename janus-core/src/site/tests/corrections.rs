//! Corrections of another form than a sum of terms, which see the base through a view.

use std::sync::Mutex;

use super::*;
use crate::pass::NoiseKey;
use crate::testing::{largest_difference, same_bits};

/// Multiplies the product with the weight, not the bias, by a factor, then adds the terms.
#[derive(Debug)]
struct Stretched {
    factor: f64,
    terms: Vec<LowRank>,
    seen: Mutex<Vec<(Site, Tensor, NoiseKey)>>,
}

impl Correction for Stretched {
    fn apply(&self, pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> Result<Tensor> {
        self.seen.lock().unwrap().push((base.site().clone(), base.weight(), pass.noise));
        let product = base.forward_without_bias(x)?;
        let bias = (base.forward(x)? - &product)?;
        let terms = (base.forward_with(pass, x, &self.terms)? - base.forward(x)?)?;
        Ok((((product * self.factor)? + bias)? + terms)?)
    }
}

fn stretched(terms: Vec<LowRank>) -> Arc<Stretched> {
    Arc::new(Stretched { factor: 3.0, terms, seen: Mutex::default() })
}

#[test]
fn a_correction_may_compute_with_the_parts_of_the_base() {
    for site in cases() {
        let (x, projection) = (input(&site), projection(&site));
        let key = NoiseKey { seed: 1, step: 2, micro_batch: 3 };
        let correction = stretched(vec![term(&site, 2, 0.7, 1)]);
        projection.attach(Some(correction.clone()));
        let y = projection.forward(&Pass::training(key), &x).unwrap();

        let stretched_weight = (weight(&site) * 3.0).unwrap();
        let folded = Terms(correction.terms.clone()).fold(&site, stretched_weight).unwrap();
        check::close(&y, &projection_of(&site, folded).forward(&Pass::inference(), &x).unwrap(), 3e-5);
        let seen = correction.seen.lock().unwrap();
        let [(seen_site, seen_weight, seen_key)] = seen.as_slice() else { panic!("applied {} times", seen.len()) };
        assert_eq!((seen_site, *seen_key), (&site, key));
        same_bits(seen_weight, &weight(&site));
    }
}

#[test]
fn the_view_shows_the_copy_that_stands_in_for_the_weight() {
    for site in cases() {
        let parameter = |name: &str, value| Arc::new(Parameter::new(name, value));
        let (weight_parameter, mut parameters) =
            (parameter("w", weight(&site)), crate::parameter::Parameters::default());
        parameters.insert(weight_parameter.clone());
        let projection = Projection::new(site.clone(), weight_parameter, None);
        let copy = check::tensor(&weight_shape(&site), 77);
        parameters.substitute("w", Some(copy.clone())).unwrap();
        let correction = stretched(Vec::new());
        projection.attach(Some(correction.clone()));
        let y = projection.forward(&Pass::inference(), &input(&site)).unwrap();
        same_bits(&correction.seen.lock().unwrap()[0].1, &copy);
        let expected = Projection::new(site.clone(), parameter("w", (copy * 3.0).unwrap()), None);
        check::close(&y, &expected.forward(&Pass::inference(), &input(&site)).unwrap(), 3e-5);
    }
}

#[test]
fn an_emptied_slot_gives_the_base_again() {
    for site in cases() {
        let (x, pass, projection) = (input(&site), Pass::inference(), projection(&site));
        let base = projection.forward(&pass, &x).unwrap();
        assert!(projection.correction().is_none());
        projection.attach(Some(stretched(Vec::new())));
        assert!(projection.correction().is_some());
        assert!(largest_difference(&projection.forward(&pass, &x).unwrap(), &base) > 0.5);
        projection.attach(None);
        same_bits(&projection.forward(&pass, &x).unwrap(), &base);
    }
}
