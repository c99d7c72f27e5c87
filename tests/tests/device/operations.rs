//! Every operation, values and gradients, on odd shapes in f32 and bf16.

use candle_core::{DType, Device, Result, Tensor, Var};
use janus_core::ops::rotary::Rotary;
use janus_core::ops::{self, AttentionMask, GroupNorm, Weight, activation, conv2d, linear};
use janus_tests::base::device;

use super::{as_on, drawn};

/// An operation of some inputs.
type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

struct Case {
    name: &'static str,
    /// Shapes of its inputs.
    shapes: Vec<Vec<usize>>,
    /// Inputs that have a gradient.
    moving: usize,
    operation: Operation,
}

fn case(
    name: &'static str,
    shapes: &[&[usize]],
    moving: usize,
    operation: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
    Case { name, shapes, moving, operation: Box::new(operation) }
}

fn masks() -> Vec<(&'static str, AttentionMask)> {
    let padded = AttentionMask { keys: Some((0..26).map(|key| key % 13 > 2).collect()), ..AttentionMask::causal() };
    let hollow =
        AttentionMask { keys: Some((0..26).map(|key| key != 4 && key != 17).collect()), ..AttentionMask::full() };
    vec![
        ("attention, all", AttentionMask::full()),
        ("attention, causal", AttentionMask::causal()),
        ("attention, padded", padded),
        ("attention, hollow", hollow),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("linear", &[&[3, 5, 7], &[11, 7], &[11]], 3, |t| linear::linear(&t[0], &t[1], Some(&t[2]))),
        case("frozen linear", &[&[3, 5, 7], &[11, 7], &[11]], 1, |t| {
            Weight::from(t[1].clone()).product(&t[0], Some(&t[2]))
        }),
        case("rms norm", &[&[3, 5, 37], &[37]], 2, |t| ops::rms_norm(&t[0], &t[1], 1e-5)),
        case("layer norm", &[&[3, 5, 37], &[37], &[37]], 3, |t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-5)),
        case("gelu", &[&[3, 5, 37]], 1, |t| activation::gelu(&t[0])),
        case("silu gate", &[&[3, 37], &[3, 37]], 2, |t| activation::silu_gate(&t[0], &t[1])),
        case("rows", &[&[9, 5]], 1, |t| ops::select_rows(&t[0], &[8, 0, 3, 3, 7])),
        case("cross-entropy", &[&[5, 77]], 1, |t| ops::cross_entropy(&t[0], &[76, 0, 5, 5, 33])),
        case("loss of a head", &[&[5, 9], &[77, 9], &[77]], 1, |t| {
            Ok(ops::head_loss(&t[0], &t[1].clone().into(), Some(&t[2]), &[76, 0, 5, 5, 33])?.sum)
        }),
        case("products of rows", &[&[9, 37], &[3, 37]], 0, |t| {
            Weight::from(t[0].clone()).products_of_rows(&t[1].to_dtype(DType::F32)?, t[0].dtype())
        }),
        case("products of columns", &[&[37, 9], &[3, 37]], 0, |t| {
            Weight::from(t[0].clone()).products_of_columns(&t[1].to_dtype(DType::F32)?, t[0].dtype())
        }),
        case("rotary", &[&[2, 5, 3, 8]], 1, |t| {
            Rotary::new(&[0, 1, 2, 3, 4, 7, 8, 9, 2, 1], 2, 8, 10_000.0).apply(&t[0])
        }),
        case("attention, packed", &[&[1, 13, 6, 8], &[1, 13, 3, 8], &[1, 13, 3, 8]], 3, |t| {
            let mask = AttentionMask { segments: Some([0, 4, 4, 13].into()), ..AttentionMask::causal() };
            ops::attention(&t[0], &t[1], &t[2], &mask)
        }),
        case("attention, continued", &[&[2, 3, 6, 8], &[2, 13, 3, 8], &[2, 13, 3, 8]], 3, |t| {
            ops::attention(&t[0], &t[1], &t[2], &AttentionMask::causal())
        }),
    ];
    for (name, mask) in masks() {
        cases.push(case(name, &[&[2, 13, 6, 8], &[2, 13, 3, 8], &[2, 13, 3, 8]], 3, move |t| {
            ops::attention(&t[0], &t[1], &t[2], &mask)
        }));
    }
    for (name, stride, padding) in [("convolution", 1, 1), ("convolution, strided", 2, 0)] {
        cases.push(case(name, &[&[2, 3, 9, 7], &[5, 3, 3, 3], &[5]], 1, move |t| {
            conv2d::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding)
        }));
    }
    for (name, activated) in [("group norm", false), ("group norm and silu", true)] {
        cases.push(case(name, &[&[2, 6, 5, 7], &[6], &[6]], 1, move |t| {
            let norm = GroupNorm { groups: 3, weight: &t[1], bias: &t[2], eps: 1e-5 };
            if activated { ops::group_norm_silu(&t[0], norm) } else { ops::group_norm(&t[0], norm) }
        }));
    }
    cases
}

/// The result, and the gradients of its sum with uneven weights, in f32 on the processor.
fn outcome(case: &Case, dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
    let mut inputs = Vec::new();
    let mut vars = Vec::new();
    for (number, shape) in case.shapes.iter().enumerate() {
        let input = drawn(shape, 1 + number as u64, device).to_dtype(dtype)?;
        if number < case.moving {
            let var = Var::from_tensor(&input)?;
            inputs.push(var.as_tensor().clone());
            vars.push(var);
        } else {
            inputs.push(input);
        }
    }
    let result = (case.operation)(&inputs)?;
    let weights = drawn(result.dims(), 99, device);
    let gradients = (result.to_dtype(DType::F32)? * weights)?.sum_all()?.backward()?;
    let mut all = vec![result.detach()];
    for var in &vars {
        all.push(gradients.get(var).unwrap_or_else(|| panic!("{}: a gradient is missing", case.name)).clone());
    }
    all.iter().map(|t| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)).collect()
}

#[test]
fn operations_on_a_device_agree_with_the_processor_s() {
    let device = device();
    let mut worst = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        for case in cases() {
            let expected =
                outcome(&case, dtype, &Device::Cpu).unwrap_or_else(|e| panic!("{} on the processor: {e}", case.name));
            let got = as_on(&device, || outcome(&case, dtype, &device));
            let got = got.unwrap_or_else(|e| panic!("{} in {dtype:?}: {e}", case.name));
            for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let difference = largest(&(got - expected).unwrap()) / largest(expected).max(1.0);
                // A rounding to bf16 is 2^-9 of the value, and there are some of them one after the other.
                let bound = if dtype == DType::F32 { 2e-5 } else { 2e-2 };
                let what = if number == 0 { "result".to_owned() } else { format!("gradient of input {number}") };
                worst.push((difference, bound, format!("{} in {dtype:?}, {what}", case.name)));
            }
        }
    }
    worst.sort_by(|one, other| (other.0 / other.1).total_cmp(&(one.0 / one.1)));
    let failed: Vec<_> =
        worst.iter().filter(|(difference, bound, _)| difference.is_nan() || difference > bound).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
