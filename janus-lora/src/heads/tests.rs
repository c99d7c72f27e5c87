use candle_core::{D, DType, Var};

use super::testing::{Nearness, check_gradients, variables};
use super::*;

fn config() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

fn drawn(shape: &[usize], name: &str) -> Tensor {
    let key = noise::key_of(name);
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(|i| noise::normal(key, i) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn every_kind() -> [HeadKind; 4] {
    let labels = || vec!["a".to_owned(), "b".to_owned()];
    let (classify, locate) = (HeadKind::Classify { labels: labels() }, HeadKind::Locate { labels: labels() });
    [classify, locate, HeadKind::Segment {}, HeadKind::Retrieve {}]
}

fn kind(labels: &[&str]) -> HeadKind {
    HeadKind::Classify { labels: labels.iter().map(ToString::to_string).collect() }
}

/// A head none of whose values is zero.
fn trained() -> Head {
    let head = Head::new(&config(), "defects", kind(&["a", "b", "c"]), 1).unwrap();
    head.clone().with_values(|name| drawn(head.values()[name].dims(), name))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The definition in f64, value by value.
fn slow_logits(head: &Head, features: &Tensor) -> Vec<f64> {
    let wide = |tensor: &Tensor| values(tensor).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (images, patches, hidden) = features.dims3().unwrap();
    let (query, weight, bias) = (wide(head.value("query")), wide(head.value("weight")), wide(head.value("bias")));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut logits = Vec::new();
    for image in wide(features).chunks(patches * hidden).take(images) {
        let normed: Vec<Vec<f64>> = image
            .chunks(hidden)
            .map(|patch| {
                let mean = patch.iter().sum::<f64>() / hidden as f64;
                let variance = patch.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / hidden as f64;
                patch.iter().map(|v| (v - mean) / (variance + 1e-6).sqrt()).collect()
            })
            .collect();
        let exponents: Vec<f64> = normed.iter().map(|patch| dot(patch, &query).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        let pooled: Vec<f64> =
            (0..hidden).map(|j| normed.iter().zip(&exponents).map(|(patch, e)| patch[j] * e / sum).sum()).collect();
        logits.extend(weight.chunks(hidden).zip(&bias).map(|(row, bias)| dot(row, &pooled) + bias));
    }
    logits
}

#[test]
fn logits_are_those_of_the_definition() {
    let head = trained();
    let features = (drawn(&[2, 5, config().vision.projection_dim], "features") * 0.3).unwrap();
    let logits = classify::logits(&head, &features).unwrap();
    assert_eq!(logits.dims(), [2, 3]);
    for (got, expected) in values(&logits).into_iter().zip(slow_logits(&head, &features)) {
        assert!((f64::from(got) - expected).abs() < 1e-4, "{got} {expected}");
    }
    let narrow = classify::logits(&head, &features.to_dtype(DType::BF16).unwrap()).unwrap();
    assert_eq!(narrow.dtype(), DType::F32);
}

#[test]
fn a_new_head_tells_labels_apart_and_is_drawn_by_its_name() {
    let head = Head::new(&config(), "defects", kind(&["a", "b"]), 3).unwrap();
    let logits = classify::logits(&head, &drawn(&[1, 4, config().vision.projection_dim], "f")).unwrap();
    // A map of zeros would send nothing back to the features that it reads.
    let logits = values(&logits);
    assert!(logits[0] != logits[1], "{logits:?}");
    assert_eq!(parameter_count(&config(), &head.kind), (3 * config().vision.projection_dim + 2) as u64);
    let other = Head::new(&config(), "others", kind(&["a", "b"]), 3).unwrap();
    assert_ne!(values(head.value("query")), values(other.value("query")));
}

#[test]
fn every_value_has_the_gradient_of_differences() {
    let head = trained();
    let vars = variables(&head);
    let features = Var::from_tensor(&drawn(&[2, 5, config().vision.projection_dim], "features")).unwrap();
    let loss = || {
        let head = head.with_values(|name| vars[name].as_tensor().clone());
        let logits = classify::logits(&head, features.as_tensor()).unwrap();
        let weights = drawn(logits.dims(), "weights");
        (candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap() * weights).unwrap().sum_all().unwrap()
    };
    let named = vars.iter().map(|(name, var)| (name.as_ref(), var)).chain([("features", &features)]);
    check_gradients(named, &Nearness { step: 1e-2, relative: 0.02, absolute: 1e-3, least: 1e-4 }, loss);
}

#[test]
fn kinds_are_told_in_json_and_checked() {
    for kind in every_kind() {
        let text = serde_json::to_string(&kind).unwrap();
        assert!(text.contains(&format!("\"task\":\"{}\"", kind.task())), "{text}");
        assert_eq!(serde_json::from_str::<HeadKind>(&text).unwrap(), kind);
        assert_eq!(kind.check(), Ok(()));
        let head = Head::new(&config(), "one", kind.clone(), 1).unwrap();
        assert_eq!(head.values().len(), shapes(&config(), "one", &kind).len());
        assert!(activation_values(&config(), &kind) > 0);
    }
    let none = HeadKind::Locate { labels: Vec::new() };
    assert!(none.check().unwrap_err().contains("expected at least 1"));
    let twice = HeadKind::Locate { labels: vec!["b".into(), "b".into()] };
    assert!(twice.check().unwrap_err().contains("do not rise"));
}

#[test]
fn vectors_are_of_length_one_and_have_gradients() {
    let head = Head::new(&config(), "shop", HeadKind::Retrieve {}, 1).unwrap();
    let features = drawn(&[3, 5, config().vision.projection_dim], "features");
    let hidden = drawn(&[2, config().text.hidden_size], "hidden");
    let (images, captions) =
        (retrieve::image_vectors(&head, &features).unwrap(), retrieve::text_vectors(&head, &hidden).unwrap());
    assert_eq!((images.dims(), captions.dims()), (&[3usize, 128][..], &[2usize, 128][..]));
    for length in values(&images.sqr().unwrap().sum(1).unwrap()) {
        assert!((length - 1.0).abs() < 1e-5);
    }
    let vars = variables(&head);
    let loss = || {
        let head = head.with_values(|name| vars[name].as_tensor().clone());
        let images = retrieve::image_vectors(&head, &features.narrow(0, 0, 2).unwrap()).unwrap();
        let captions = retrieve::text_vectors(&head, &hidden).unwrap();
        contrast::info_nce(&images, &captions, retrieve::log_temperature(&head), |_, _| false).unwrap().sum
    };
    let named = vars.iter().map(|(name, var)| (name.as_ref(), var));
    check_gradients(named, &Nearness { step: 1e-2, relative: 0.03, absolute: 1e-3, least: 1e-4 }, loss);
}
