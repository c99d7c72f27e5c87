//! What tests of heads share.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::Head;

/// How near a gradient has to come to a difference, which is taken over `step` both ways.
pub(super) struct Nearness {
    pub(super) step: f32,
    /// Share of the difference.
    pub(super) relative: f64,
    pub(super) absolute: f64,
    /// What the largest gradient of a value is above.
    pub(super) least: f32,
}

/// A head's values as variables, by name.
pub(super) fn variables(head: &Head) -> BTreeMap<Arc<str>, Var> {
    head.values().iter().map(|(name, value)| (name.clone(), Var::from_tensor(value).unwrap())).collect()
}

/// The largest gradient of each variable is that of differences of `loss`, a scalar of them all.
pub(super) fn check_gradients<'a>(
    variables: impl IntoIterator<Item = (&'a str, &'a Var)>,
    nearness: &Nearness,
    loss: impl Fn() -> Tensor,
) {
    let gradients = loss().backward().unwrap();
    for (name, var) in variables {
        let gradient: Vec<f32> = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let largest = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
        assert!(gradient[largest].abs() > nearness.least, "{name}");
        let start = var.as_detached_tensor().copy().unwrap();
        let at = |shift: f32| {
            let mut moved: Vec<f32> = start.flatten_all().unwrap().to_vec1().unwrap();
            moved[largest] += shift;
            var.set(&Tensor::from_vec(moved, start.dims(), &Device::Cpu).unwrap()).unwrap();
            f64::from(loss().to_scalar::<f32>().unwrap())
        };
        let difference = (at(nearness.step) - at(-nearness.step)) / (2.0 * f64::from(nearness.step));
        var.set(&start).unwrap();
        let (got, slack) = (f64::from(gradient[largest]), nearness.relative * difference.abs() + nearness.absolute);
        assert!((got - difference).abs() < slack, "{name}: {got}, by differences {difference}");
    }
}
