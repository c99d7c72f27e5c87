//! Helpers of the operations' tests: seeded tensors, comparison, and gradients by finite differences.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor, Var};

/// Values in (-1, 1) that depend on `seed` and nothing else.
pub(crate) fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| (crate::noise::uniform(seed, i) * 2.0 - 1.0) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Fails unless all values agree to `bound`, absolute.
pub(crate) fn close(got: &Tensor, expected: &Tensor, bound: f32) {
    assert_eq!(got.dims(), expected.dims());
    let got: Vec<f32> = got.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<f32> = expected.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= bound, "value {i}: got {a}, expected {b}, bound {bound}");
    }
}

/// Fails unless the gradients of `Σ f(inputs)·g` (g fixed and uneven) agree with central differences.
pub(crate) fn gradients(shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> =
        shapes.iter().enumerate().map(|(i, s)| Var::from_tensor(&tensor(s, 100 + i as u64)).unwrap()).collect();
    let value = |tensors: &[Tensor]| -> Tensor {
        let y = f(tensors).unwrap();
        let g = tensor(y.dims(), 7);
        (y * g).unwrap().sum_all().unwrap()
    };
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = value(&tensors).backward().unwrap();
    let step = 1e-2f32;
    for (which, var) in vars.iter().enumerate() {
        let gradient: Vec<f32> = grads.get(var).expect("a gradient").flatten_all().unwrap().to_vec1().unwrap();
        let base: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        for i in 0..base.len() {
            let shifted = |d: f32| -> f64 {
                let mut values = base.clone();
                values[i] += d;
                let mut inputs: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor()).collect();
                inputs[which] = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
                f64::from(value(&inputs).to_scalar::<f32>().unwrap())
            };
            let slope = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            let got = f64::from(gradient[i]);
            assert!(
                (got - slope).abs() < 2e-3 + 2e-2 * slope.abs(),
                "input {which}, value {i}: got {got}, slope {slope}"
            );
        }
    }
}
