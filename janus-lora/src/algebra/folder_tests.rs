#![allow(clippy::unwrap_used)]

use janus_core::{Diagnose, noise};

use super::super::testing::{factors, read, write};
use super::super::{CombineOptions, MajoritySign, Method, Size, combine, diff, resize};
use super::*;
use crate::status::Silent;

fn sites() -> [(&'static str, Factors); 3] {
    [
        ("model.a.q_proj", factors(Kind::Linear, [6, 8], 2, 1.5, 1)),
        ("model.a.conv", factors(Kind::Convolution, [5, 18], 3, 1.5, 2)),
        ("model.embed_tokens", factors(Kind::Embedding, [4, 10], 2, -0.25, 3)),
    ]
}

/// The folder with a change to its configuration.
fn edited(edit: impl FnOnce(&mut Map<String, Value>)) -> (tempfile::TempDir, Result<AdapterFolder>) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &sites());
    let path = folder.path().join(CONFIG_FILE);
    let mut json: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(&path, Value::Object(json).to_string()).unwrap();
    let read = AdapterFolder::read(folder.path());
    (folder, read)
}

#[test]
fn what_is_written_is_read_with_every_rank_and_scale() {
    let read = read(&sites());
    assert_eq!(read.sites.len(), 3);
    for (path, written) in &sites() {
        let site = &read.sites[*path];
        assert_eq!((site.kind, site.rank(), site.shape()), (written.kind, written.rank(), written.shape()), "{path}");
        assert!((site.scale - written.scale).abs() < 1e-12, "{path}: {}", site.scale);
    }
    assert_eq!(read.json["target_modules"], json!(["model.a.conv", "model.a.q_proj", "model.embed_tokens"]));
}

#[test]
fn the_scale_of_rslora_is_over_the_root_of_the_rank() {
    let (_folder, read) = edited(|json| drop(json.insert("use_rslora".into(), json!(true))));
    let read = read.unwrap();
    for (path, written) in &sites() {
        let expected = written.scale * (written.rank() as f64).sqrt();
        assert!((read.sites[*path].scale - expected).abs() < 1e-12, "{path}");
    }
}

/// What is neither true nor false is not taken for one of them.
#[test]
fn an_unclear_rslora_is_refused() {
    for value in [json!("true"), json!(1)] {
        let (_folder, read) = edited(|json| drop(json.insert("use_rslora".into(), value)));
        let error = read.unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains("`use_rslora`"), "{cause}");
    }
}

#[test]
fn what_is_no_plain_lora_is_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("kasa_config", json!({ "alpha": 1 })),
    ] {
        let (_folder, read) = edited(|json| drop(json.insert(key.into(), value)));
        let error = read.unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        assert!(!error.hints().is_empty());
    }
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_refused() {
    let cause = |read: Result<AdapterFolder>| {
        let error = read.unwrap_err();
        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
    };
    let (_folder, read) = edited(|json| drop(json.insert("r".into(), json!(5))));
    assert!(cause(read).contains("of another shape"));
    // What a file of another adapter brings: one half, and a name nobody knows.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &sites());
    let half = |name: &str| (name.to_owned(), super::super::testing::normal(&[2, 8], 1));
    let place: janus_core::directory::Place<'_> = folder.path().into();
    let tensors = [half("base_model.model.x.lora_A.weight"), half("base_model.model.y.gamma")];
    write_weights(&place.make().unwrap(), WEIGHTS_FILE, &tensors, None).unwrap();
    let said = cause(AdapterFolder::read(folder.path()));
    assert!(said.contains("x.lora_B.weight") && said.contains("y.gamma"), "{said}");
}

#[test]
fn the_most_common_rank_is_the_configuration_s() {
    assert_eq!(most_common([(4, 4.0), (2, 2.0), (4, 4.0)].into_iter()), (4, 4.0));
    assert_eq!(most_common([(4, 4.0), (2, 2.0)].into_iter()), (2, 2.0));
    assert_eq!(most_common(std::iter::empty()), (1, 1.0));
    let alpha = |scale, rank| factors(Kind::Linear, [7, 7], rank, scale, 1).alpha();
    assert_eq!([alpha(16.0 / 7.0, 7), alpha(1.1 / 3.0, 3), alpha(1.5, 3)], [16.0, 1.1 / 3.0 * 3.0, 4.5]);
    assert_eq!([number(4.0), number(0.5), number(-3.0)], [json!(4), json!(0.5), json!(-3)]);
}

/// Bytes of either file changed at random: what is read can be computed with, and all else is an error.
#[test]
fn damaged_files_are_refused_or_computed_with() {
    const BYTES: &[u8] = b"0123456789[]{},\"eE-.xn\0\xff";
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &sites());
    let whole = AdapterFolder::read(folder.path()).unwrap();
    let (mut read, mut refused) = (0, 0);
    for round in 0..600u64 {
        let damaged = tempfile::tempdir().unwrap();
        for (number, file) in [CONFIG_FILE, WEIGHTS_FILE].into_iter().enumerate() {
            let mut bytes = std::fs::read(folder.path().join(file)).unwrap();
            let draw = |what: usize| noise::combine(noise::combine(round, number as u64), what as u64) as usize;
            // Mostly in the header, where more depends on a byte.
            let within = if round % 4 == 0 { bytes.len() } else { bytes.len().min(1200) };
            for change in 0..draw(0) % 3 {
                let place = draw(1 + change) % within;
                bytes[place] = BYTES[draw(7 + change) % BYTES.len()];
            }
            std::fs::write(damaged.path().join(file), bytes).unwrap();
        }
        let Ok(adapter) = AdapterFolder::read(damaged.path()) else {
            refused += 1;
            continue;
        };
        read += 1;
        let _ = diff(&adapter, &whole);
        let _ = resize(&adapter, Size::Variance(0.5), &Silent);
        let _ = resize(&adapter, Size::Rank(2), &Silent);
        let (method, density) = (Method::TiesSvd, Some(0.5));
        let options = CombineOptions { method, rank: None, density, majority: MajoritySign::Total, seed: 0 };
        let both = [(adapter, 0.5), (AdapterFolder::read(folder.path()).unwrap(), 0.5)];
        let _ = combine(&both, &options, &Silent);
    }
    assert!(read > 50 && refused > 50, "{read} {refused}");
}
