//! The loss through a head: without logits where nothing is attached, through them where something is.

use candle_core::Var;

use super::*;

const LABELS: [u32; 8] = [4, 0, 2, 2, 1, 3, 0, 4];

/// Rows `[8, 7]`.
fn rows() -> Var {
    Var::from_tensor(&check::tensor(&[8, 7], 3)).unwrap()
}

/// Fails unless the loss of `projection` and the gradients of `vars` are those of its logits.
fn check_loss(projection: &Projection, x: &Var, vars: &[&Var]) {
    let pass = Pass::inference();
    let got = projection.loss(&pass, x, &LABELS).unwrap();
    let expected = HeadLoss::of_logits(&projection.forward(&pass, x).unwrap(), &LABELS).unwrap();
    check::close(&got.sum, &expected.sum, 1e-5);
    let count = |correct: &Tensor| correct.to_scalar::<u32>().unwrap();
    assert_eq!(count(&got.correct), count(&expected.correct));
    let (got, expected) = (got.sum.backward().unwrap(), expected.sum.backward().unwrap());
    for var in vars {
        check::close(got.get(var).unwrap(), expected.get(var).unwrap(), 1e-5);
    }
}

#[test]
fn a_frozen_head_has_the_loss_of_its_logits() {
    let x = rows();
    check_loss(&projection(&linear()), &x, &[&x]);
}

#[test]
fn a_corrected_head_has_the_loss_of_its_corrected_logits() {
    let (x, projection) = (rows(), projection(&linear()));
    let term = term(&linear(), 2, 0.7, 1);
    let (a, b) = (Var::from_tensor(&term.a).unwrap(), Var::from_tensor(&term.b).unwrap());
    let term = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), ..term };
    let frozen = projection.loss(&Pass::inference(), &x, &LABELS).unwrap().sum;
    projection.attach(of_low_rank(vec![term])).unwrap();
    let corrected = projection.loss(&Pass::inference(), &x, &LABELS).unwrap().sum;
    let difference = (corrected - frozen).unwrap().to_scalar::<f32>().unwrap();
    assert!(difference.abs() > 0.1, "the correction shows nothing");
    check_loss(&projection, &x, &[&x, &a, &b]);
}

#[test]
fn a_trainable_weight_or_bias_of_a_head_gets_its_gradient() {
    let (x, site) = (rows(), linear());
    let (weight, bias) =
        (Var::from_tensor(&weight(&site)).unwrap(), Var::from_tensor(&check::tensor(&[5], 2)).unwrap());
    let head = |weight: Tensor, bias: Tensor| {
        Projection::new(
            site.clone(),
            Arc::new(Parameter::new("weight", weight)),
            Some(Arc::new(Parameter::new("bias", bias))),
        )
    };
    check_loss(&head(weight.as_tensor().clone(), bias.as_detached_tensor()), &x, &[&x, &weight]);
    check_loss(&head(weight.as_detached_tensor(), bias.as_tensor().clone()), &x, &[&x, &bias]);
}
