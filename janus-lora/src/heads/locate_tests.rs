use candle_core::{DType, Var};
use janus_core::noise;

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
    let kind = HeadKind::Locate { labels: vec!["pit".into(), "scratch".into(), "stain".into()] };
    let head = Head::new(&config(), "defects", kind, 1).unwrap();
    // None of the values at zero.
    head.with_values(|name| (&head.values()[name] + drawn(head.values()[name].dims(), name, 0.05)).unwrap())
}

fn features(images: usize) -> Tensor {
    drawn(&[images, config().vision.num_patches(), config().vision.projection_dim], "features", 0.5)
}

fn marked(corners: [f32; 4], label: u32) -> LabelledBox {
    LabelledBox { corners, label }
}

/// The loss of one picture's places in f64, place by place.
fn slow_loss(places: &Places, image: usize, boxes: &[LabelledBox]) -> f64 {
    let classes = places.classes.to_vec3::<f32>().unwrap().swap_remove(image);
    let sides = places.sides.to_vec3::<f32>().unwrap().swap_remove(image);
    let centres = places.centres.to_vec2::<f32>().unwrap().swap_remove(image);
    let goals = goals(&places.grids, places.image_size, boxes);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
    let mut focal = 0.0;
    for (place, logits) in classes.iter().enumerate() {
        for (label, logit) in logits.iter().enumerate() {
            let p = sigmoid(*logit);
            let is = goals.iter().any(|goal| goal.place == place && goal.label as usize == label);
            focal -= if is { 0.25 * (1.0 - p).powi(2) * p.ln() } else { 0.75 * p.powi(2) * (1.0 - p).ln() };
        }
    }
    let mut sum = focal / goals.len().max(1) as f64;
    let weights: f64 = goals.iter().map(|goal| f64::from(goal.centreness())).sum();
    for goal in &goals {
        let (got, truth) =
            (sides[goal.place].iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), goal.sides.map(f64::from));
        let of = |pick: &dyn Fn(usize) -> f64| (pick(0) + pick(2)) * (pick(1) + pick(3));
        let common = of(&|i| got[i].min(truth[i]));
        let hull = of(&|i| got[i].max(truth[i]));
        let union = of(&|i| got[i]) + of(&|i| truth[i]) - common;
        let centreness = f64::from(goal.centreness());
        sum += centreness / weights * (1.0 - common / union + (hull - union) / hull);
        let p = sigmoid(centres[goal.place]);
        sum -= (centreness * p.ln() + (1.0 - centreness) * (1.0 - p).ln()) / goals.len() as f64;
    }
    sum
}

#[test]
fn the_loss_is_that_of_the_definition() {
    let boxes = vec![
        vec![marked([3.0, 5.0, 17.0, 12.0], 2), marked([20.0, 18.0, 24.0, 25.0], 0)],
        vec![],
        vec![marked([0.0, 0.0, 32.0, 32.0], 1), marked([10.3, 10.4, 11.0, 11.2], 1)],
    ];
    let places = places(&head(), &config(), &features(3)).unwrap();
    let got = f64::from(loss(&places, &boxes).unwrap().to_scalar::<f32>().unwrap());
    let expected: f64 = boxes.iter().enumerate().map(|(image, boxes)| slow_loss(&places, image, boxes)).sum();
    assert!((got - expected).abs() < 1e-3 * expected.abs(), "{got} {expected}");
}

#[test]
fn every_value_has_the_gradient_of_differences() {
    let start = head();
    let vars = variables(&start);
    let features = Var::from_tensor(&features(2)).unwrap();
    let boxes = vec![
        vec![marked([3.0, 5.0, 17.0, 12.0], 2), marked([20.0, 18.0, 24.0, 25.0], 0)],
        vec![marked([1.0, 2.0, 31.0, 30.0], 1)],
    ];
    let value = || {
        let head = start.with_values(|name| vars[name].as_tensor().clone());
        loss(&places(&head, &config(), features.as_tensor()).unwrap(), &boxes).unwrap()
    };
    let named = vars.iter().map(|(name, var)| (name.as_ref(), var)).chain([("features", &features)]);
    check_gradients(named, &Nearness { step: 4e-3, relative: 0.05, absolute: 2e-3, least: 1e-4 }, value);
}

#[test]
fn places_belong_to_the_smallest_box_of_their_size() {
    // Grids of 4, 8, 16 and 32 places over 32 pixels: strides of 8, 4, 2 and 1.
    let grids = [4, 8, 16, 32];
    let (large, small) = (marked([0.0, 0.0, 32.0, 32.0], 0), marked([13.0, 13.0, 19.0, 19.0], 1));
    let found = goals(&grids, 32, &[large, small]);
    let of = |label: u32| found.iter().filter(|goal| goal.label == label).collect::<Vec<_>>();
    assert!(!of(0).is_empty() && of(0).iter().all(|goal| goal.place < 16), "only the coarsest reaches so far");
    assert!(!of(1).is_empty() && of(1).iter().all(|goal| goal.place >= 16));
    for goal in &found {
        assert!(goal.sides.iter().all(|side| *side > 0.0) && (0.0..=1.0).contains(&goal.centreness()));
    }
    // Between the places of the finest grid.
    let tiny = goals(&grids, 32, &[marked([10.6, 10.6, 10.9, 10.9], 2)]);
    assert_eq!(tiny.len(), 1);
    assert_eq!(tiny[0].place, 16 + 64 + 256 + 32 * 10 + 10);
    assert!(goals(&grids, 32, &[]).is_empty());
}

#[test]
fn the_surest_of_boxes_that_are_one_is_kept() {
    let found = |corners, label, score| Detection { corners, label, score };
    let kept = suppressed(vec![
        found([0.0, 0.0, 10.0, 10.0], 0, 0.5),
        found([0.0, 0.0, 10.0, 9.0], 0, 0.9),
        found([0.0, 0.0, 10.0, 9.0], 1, 0.4),
        found([5.0, 0.0, 15.0, 10.0], 0, 0.3),
    ]);
    assert_eq!(kept.iter().map(|found| found.score).collect::<Vec<_>>(), [0.9, 0.4, 0.3]);
    let many = (0..300).map(|n| found([n as f32, 0.0, n as f32 + 0.5, 1.0], 0, 0.5)).collect();
    assert_eq!(suppressed(many).len(), MOST_BOXES);
}

/// What the loss asks for is what is found.
#[test]
fn perfect_places_find_their_boxes() {
    let boxes = [marked([3.0, 5.0, 17.0, 12.0], 2), marked([20.0, 18.0, 24.0, 25.0], 0)];
    let grids = sides(&config());
    let count: usize = grids.iter().map(|side| side * side).sum();
    let (mut classes, mut all_sides, mut centres) = (vec![-9f32; count * 3], vec![1f32; count * 4], vec![-9f32; count]);
    for goal in goals(&grids, 32, &boxes) {
        classes[goal.place * 3 + goal.label as usize] = 9.0;
        all_sides[4 * goal.place..4 * goal.place + 4].copy_from_slice(&goal.sides);
        let centreness = goal.centreness().clamp(0.01, 0.99);
        centres[goal.place] = (centreness / (1.0 - centreness)).ln();
    }
    let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let places = Places {
        classes: tensor(classes, &[1, count, 3]),
        sides: tensor(all_sides, &[1, count, 4]),
        centres: tensor(centres, &[1, count]),
        grids,
        image_size: 32,
    };
    let found = found(&places).unwrap().remove(0);
    assert_eq!(found.len(), 2, "{found:?}");
    for marked in boxes {
        let found = found.iter().find(|found| found.label == marked.label).unwrap();
        assert!(overlap(found.corners, marked.corners) > 0.98, "{found:?}");
    }
    let narrow = features(1).to_dtype(DType::BF16).unwrap();
    assert_eq!(super::places(&head(), &config(), &narrow).unwrap().classes.dtype(), DType::F32);
}
