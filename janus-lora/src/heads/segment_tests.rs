use candle_core::{Device, Var};
use janus_core::noise;
use janus_core::processing::ImageProcessor;

use super::*;
use crate::heads::HeadKind;
use crate::heads::testing::{Nearness, check_gradients, variables};

fn config() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

fn drawn(shape: &[usize], name: &str, deviation: f64) -> Tensor {
    let key = noise::key_of(name);
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|i| (deviation * noise::normal(key, i)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn head() -> Head {
    let head = Head::new(&config(), "defects", HeadKind::Segment {}, 1).unwrap();
    head.with_values(|name| (&head.values()[name] + drawn(head.values()[name].dims(), name, 0.05)).unwrap())
}

fn truth(images: usize) -> Tensor {
    let side = side(&config());
    let values: Vec<f32> =
        (0..images * side * side).map(|place| ((place % 5) as f32 / 4.0 - 0.3).clamp(0.0, 1.0)).collect();
    Tensor::from_vec(values, (images, side, side), &Device::Cpu).unwrap()
}

#[test]
fn masks_are_a_quarter_of_the_square_or_finer() {
    for shape in ["janus-tiny", "janus-small", "janus-pro-1b", "janus-pro-7b"] {
        let config = JanusConfig::shape(shape).unwrap();
        let size = config.vision.image_size;
        assert!(side(&config) * PLACE_PIXELS >= size && side(&config) <= size, "{shape}");
        let values: usize = Segment.values(&config).iter().map(|value| value.shape.iter().product::<usize>()).sum();
        assert_eq!(crate::heads::parameter_count(&config, &HeadKind::Segment {}), values as u64);
    }
}

#[test]
fn the_loss_is_that_of_the_definition() {
    let logits = drawn(&[2, side(&config()), side(&config())], "logits", 1.5);
    let got = f64::from(loss(&logits, &truth(2), None).unwrap().to_scalar::<f32>().unwrap());
    let (logits, truth) = (logits.flatten_from(1).unwrap(), truth(2).flatten_from(1).unwrap());
    let expected: f64 = logits
        .to_vec2::<f32>()
        .unwrap()
        .iter()
        .zip(truth.to_vec2::<f32>().unwrap())
        .map(|(logits, truth)| {
            let p: Vec<f64> = logits.iter().map(|x| 1.0 / (1.0 + (-f64::from(*x)).exp())).collect();
            let t: Vec<f64> = truth.iter().map(|t| f64::from(*t)).collect();
            let entropy: f64 = p.iter().zip(&t).map(|(p, t)| -t * p.ln() - (1.0 - t) * (1.0 - p).ln()).sum();
            let common: f64 = p.iter().zip(&t).map(|(p, t)| p * t).sum();
            let both = p.iter().sum::<f64>() + t.iter().sum::<f64>();
            entropy / p.len() as f64 + 1.0 - (2.0 * common + 1.0) / (both + 1.0)
        })
        .sum();
    assert!((got - expected).abs() < 1e-4, "{got} {expected}");
}

#[test]
fn every_value_has_the_gradient_of_differences() {
    let start = head();
    let vars = variables(&start);
    let (config, patches) = (config(), config().vision.num_patches());
    let low = Var::from_tensor(&drawn(&[2, patches, config.vision.hidden_size], "low", 0.5)).unwrap();
    let mid = Var::from_tensor(&drawn(&[2, patches, config.vision.projection_dim], "mid", 0.5)).unwrap();
    let value = || {
        let head = start.with_values(|name| vars[name].as_tensor().clone());
        loss(&logits(&head, &config, low.as_tensor(), mid.as_tensor()).unwrap(), &truth(2), None).unwrap()
    };
    let named = vars.iter().map(|(name, var)| (name.as_ref(), var)).chain([("low", &low), ("mid", &mid)]);
    check_gradients(named, &Nearness { step: 2e-3, relative: 0.05, absolute: 1.5e-4, least: 1e-5 }, value);
}

#[test]
fn masks_lie_where_their_places_do() {
    // A picture of 64 x 32 in a square of 32: rows 8 to 24. Of 8 x 8 places the fourth row's first half.
    let frame = ImageProcessor::new(32).unwrap().frame(64, 32);
    let mut logits = vec![-4f32; 64];
    logits[3 * 8..3 * 8 + 4].fill(4.0);
    let mask = mask(&logits, 8, 32, &frame);
    assert_eq!(mask.len(), 64 * 32);
    let at = |x: usize, y: usize| mask[y * 64 + x];
    // The row stands for the square's rows 12 to 16, which are the picture's 8 to 16.
    assert!(at(5, 12) && at(30, 12) && !at(34, 12) && !at(5, 3) && !at(5, 22));
    assert!(at(20, 9) && !at(20, 5) && at(20, 14) && !at(20, 18));
}

#[test]
fn places_that_are_not_counted_have_no_say() {
    let shape = [2, side(&config()), side(&config())];
    let places = shape.iter().product::<usize>();
    let logits = Var::from_tensor(&drawn(&shape, "logits", 1.5)).unwrap();
    let shares: Vec<f32> = (0..places).map(|place| [1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0][place % 7]).collect();
    let counted = Tensor::from_vec(shares.clone(), &shape, &Device::Cpu).unwrap();
    let sum = loss(logits.as_tensor(), &truth(2), Some(&counted)).unwrap();

    // Of the definition, over what is counted.
    let (mut expected, half) = (0.0, places / 2);
    let values: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
    let truths: Vec<f32> = truth(2).flatten_all().unwrap().to_vec1().unwrap();
    for image in 0..2 {
        let (mut entropy, mut all, mut common, mut both) = (0.0, 0.0, 0.0, 0.0);
        for place in image * half..(image + 1) * half {
            let (p, t) = (1.0 / (1.0 + (-f64::from(values[place])).exp()), f64::from(truths[place]));
            let share = f64::from(shares[place]);
            entropy += share * (-t * p.ln() - (1.0 - t) * (1.0 - p).ln());
            (all, common, both) = (all + share, common + share * p * t, both + share * (p + t));
        }
        expected += entropy / all + 1.0 - (2.0 * common + 1.0) / (both + 1.0);
    }
    assert!((f64::from(sum.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-4);

    // Whatever stands there changes nothing, and nothing moves it.
    let other: Vec<f32> =
        truths.iter().zip(&shares).map(|(t, share)| if *share == 0.0 { 1.0 - t } else { *t }).collect();
    let other = Tensor::from_vec(other, &shape, &Device::Cpu).unwrap();
    let same = loss(logits.as_tensor(), &other, Some(&counted)).unwrap();
    assert_eq!(sum.to_scalar::<f32>().unwrap(), same.to_scalar::<f32>().unwrap());
    let gradients = sum.backward().unwrap();
    let gradient: Vec<f32> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(gradient.iter().zip(&shares).all(|(moved, share)| (*moved == 0.0) == (*share == 0.0)));

    let nothing = counted.zeros_like().unwrap();
    assert_eq!(loss(logits.as_tensor(), &truth(2), Some(&nothing)).unwrap().to_scalar::<f32>().unwrap(), 0.0);
    let ones = counted.ones_like().unwrap();
    let all = loss(logits.as_tensor(), &truth(2), Some(&ones)).unwrap().to_scalar::<f32>().unwrap();
    assert!((all - loss(logits.as_tensor(), &truth(2), None).unwrap().to_scalar::<f32>().unwrap()).abs() < 1e-5);
}

#[test]
fn runs_begin_outside() {
    assert_eq!(runs(&[false, false, true, false]), [2, 1, 1]);
    assert_eq!(runs(&[true, true, false]), [0, 2, 1]);
    assert_eq!(runs(&[]), [0usize; 0]);
}
