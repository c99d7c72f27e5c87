//! Against the packages whose figures these networks make (`tests/network_golden.py`).

use candle_core::{DType, Device};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::error::Error;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/metrics")
}

fn golden() -> Value {
    serde_json::from_str(&fs_err::read_to_string(golden_folder().join("networks.json")).unwrap()).unwrap()
}

/// The tensors of a network by the formula of the script.
fn tensors(golden: &Value) -> HashMap<String, Tensor> {
    let entries = golden["tensors"].as_array().unwrap().iter().enumerate();
    let tensor = |(number, entry): (usize, &Value)| {
        let name = entry[0].as_str().unwrap().to_owned();
        let shape: Vec<usize> =
            entry[1].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
        let fan_in: usize = shape.iter().skip(1).product();
        let value = |k: usize| {
            let wave = (1.3 * k as f64 + 0.7 * number as f64).sin();
            let value = if name.ends_with("running_var") {
                0.5 + 0.4 * wave.abs()
            } else if name.ends_with("bn.weight") || name.starts_with("lin") {
                1.0 + 0.2 * wave
            } else if shape.len() == 1 {
                0.1 * wave
            } else {
                1.5 * wave / (fan_in as f64).sqrt()
            };
            value as f32
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    entries.map(tensor).collect()
}

fn file(folder: &Path, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let path = folder.join("weights.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

fn picture(phase: f64, height: u32, width: u32) -> RgbImage {
    let value = |k: u32| (127.5 + 127.4 * (0.05 * phase * f64::from(k) + phase).sin()).floor() as u8;
    RgbImage::from_raw(width, height, (0..height * width * 3).map(value).collect()).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> NetworkError {
    match result.unwrap_err() {
        Error::Network(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn distances_are_those_of_the_lpips_package() {
    let (one, other) = (picture(1.0, 48, 57), picture(2.0, 48, 57));
    for kind in ["vgg", "alex"] {
        let golden = &golden()[kind];
        let expected = golden["distance"].as_f64().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let networks = Networks::open(Some(&file(folder.path(), &tensors(golden))), None).unwrap();
        let distance = networks.lpips(&one, &other).unwrap().unwrap();
        assert!((distance - expected).abs() < 1e-4 * expected, "{kind}: {distance}, expected {expected}");
        assert_eq!(networks.lpips(&one, &one).unwrap(), Some(0.0));
        assert_eq!(networks.inception(&one).unwrap(), None);
    }
    // As PyTorch saves it.
    let saved = Networks::open(Some(&golden_folder().join("lpips-alex.pth")), None).unwrap();
    let expected = golden()["alex"]["distance"].as_f64().unwrap();
    assert!((saved.lpips(&one, &other).unwrap().unwrap() - expected).abs() < 1e-4 * expected);
    assert!(matches!(
        refusal(saved.lpips(&picture(1.0, 34, 40), &picture(2.0, 34, 40))),
        NetworkError::TooSmall { side: 34, least: 35 }
    ));
    assert!(saved.lpips(&picture(1.0, 35, 40), &picture(2.0, 35, 40)).unwrap().unwrap() > 0.0);
}

#[test]
fn features_are_those_of_pytorch_fid() {
    let golden = &golden()["inception"];
    let folder = tempfile::tempdir().unwrap();
    let networks = Networks::open(None, Some(&file(folder.path(), &tensors(golden)))).unwrap();
    let features = networks.inception(&picture(3.0, 20, 26)).unwrap().unwrap();
    let expected: Vec<f64> = golden["features"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(features.len(), expected.len());
    let largest = expected.iter().copied().fold(0.0, f64::max);
    for (k, (got, expected)) in features.iter().zip(&expected).enumerate() {
        assert!((got - expected).abs() < 1e-4 * largest, "{k}: {got}, expected {expected}");
    }
}

#[test]
fn files_of_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| refusal(Networks::open(Some(path), None));
    assert!(matches!(open(Path::new("nowhere.safetensors")), NetworkError::Unreadable { .. }));
    let text = folder.path().join("weights.pth");
    fs_err::write(&text, "no weights").unwrap();
    assert!(matches!(open(&text), NetworkError::Unreadable { .. }));

    let whole = tensors(&golden()["alex"]);
    let mut lacking = whole.clone();
    lacking.remove("lin3.model.1.weight");
    let error = open(&file(folder.path(), &lacking));
    assert!(matches!(&error, NetworkError::Missing { tensor, .. } if tensor == "lin3.model.1.weight"), "{error}");
    let mut misshapen = whole.clone();
    misshapen.insert("net.slice2.3.weight".into(), Tensor::zeros((12, 5, 5, 5), DType::F32, &Device::Cpu).unwrap());
    let error = open(&file(folder.path(), &misshapen));
    assert!(error.to_string().contains("expected [any, 4, 5, 5]"), "{error}");
    // LPIPS is no Inception.
    let error = refusal(Networks::open(None, Some(&file(folder.path(), &whole))));
    assert!(matches!(&error, NetworkError::Missing { tensor, .. } if tensor.starts_with("Conv2d_1a_3x3")), "{error}");
}
