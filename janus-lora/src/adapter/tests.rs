use candle_core::{DType, Tensor};
use janus_core::noise;

use super::testing::{SITES, base, bits, pair, parameter, spec, trained};
use super::*;

#[test]
fn a_new_adapter_has_pefts_shapes_and_changes_nothing() {
    let adapter = Adapter::new(&base(), false, &spec(&SITES, &["generation_head"]), 1, &parameter).unwrap();
    let shapes = |path: &str| {
        let [a, b] = pair(&adapter.sites[path]);
        (a.dims().to_vec(), b.dims().to_vec())
    };
    assert_eq!(shapes(SITES[0]), (vec![3, 48], vec![48, 3]));
    assert_eq!(shapes(SITES[1]), (vec![3, 3, 8, 8], vec![32, 3, 1, 1]));
    assert_eq!(shapes(SITES[2]), (vec![3, 64], vec![8, 3]));
    for site in adapter.sites.values() {
        assert_eq!((site.rank, site.alpha, site.scale), (3, 4.5, 1.5));
        let drawn = pair(site).iter().filter(|t| bits(t).iter().any(|b| *b != 0)).count();
        assert_eq!(drawn, 1, "one factor is drawn, the other zero");
    }
    let names: Vec<_> = adapter.saved.keys().map(|name| &**name).collect();
    let head = "model.generation_head";
    let expected = ["proj_out.bias", "proj_out.weight", "vision_head.bias", "vision_head.weight"];
    assert_eq!(names, expected.map(|name| format!("{head}.{name}")));
    for (name, copy) in &adapter.saved {
        assert_eq!(bits(copy), bits(&parameter(name).unwrap()));
    }
    let saved = 48 * 48 + 48 + 64 * 48 + 64;
    assert_eq!(adapter.parameter_count(), 3 * (48 + 48) + 3 * (192 + 32) + 3 * (64 + 8) + saved);
}

#[test]
fn first_values_follow_pefts_distributions() {
    let path = "model.language_model.layers.1.mlp.down_proj";
    let wide = AdapterSpec { rank: 40, ..spec(&[path, "model.vision_model.embeddings.patch_embedding"], &[]) };
    let adapter = Adapter::new(&base(), false, &wide, 3, &parameter).unwrap();
    for (path, fan_in) in [(path, 80.0f32), ("model.vision_model.embeddings.patch_embedding", 192.0)] {
        let a: Vec<f32> = pair(&adapter.sites[path])[0].flatten_all().unwrap().to_vec1().unwrap();
        let bound = 1.0 / fan_in.sqrt();
        assert!(a.iter().all(|v| v.abs() <= bound));
        assert!(a.iter().any(|v| *v > 0.98 * bound) && a.iter().any(|v| *v < -0.98 * bound));
        let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{path}: {variance}");
    }
    let table = "model.language_model.embed_tokens";
    let adapter =
        Adapter::new(&base(), false, &AdapterSpec { rank: 40, ..spec(&[table], &[]) }, 3, &parameter).unwrap();
    let b: Vec<f32> = pair(&adapter.sites[table])[1].flatten_all().unwrap().to_vec1().unwrap();
    let variance = b.iter().map(|v| v * v).sum::<f32>() / b.len() as f32;
    assert!((variance - 1.0).abs() < 0.1 && b.iter().any(|v| v.abs() > 2.0), "{variance}");
}

#[test]
fn first_values_depend_on_seed_and_name_only() {
    let make = |sites: &[&str], seed| Adapter::new(&base(), false, &spec(sites, &[]), seed, &parameter).unwrap();
    let of = |adapter: &Adapter, path: &str| bits(pair(&adapter.sites[path])[0]);
    let (one, all) = (make(&SITES[..1], 1), make(&SITES, 1));
    assert_eq!(of(&one, SITES[0]), of(&all, SITES[0]));
    assert_ne!(of(&one, SITES[0]), of(&make(&SITES, 2), SITES[0]));
    let twin = "model.language_model.layers.1.self_attn.q_proj";
    let both = make(&[SITES[0], twin], 1);
    assert_ne!(of(&both, SITES[0]), of(&both, twin));
    let key = noise::combine(1, noise::key_of(&format!("{KEY_PREFIX}{}.lora_A.weight", SITES[0])));
    let first = (2.0 * noise::uniform(key, 0) - 1.0) / 48f64.sqrt();
    assert_eq!(of(&one, SITES[0])[0], (first as f32).to_bits());
}

#[test]
fn a_new_configuration_selects_just_what_was_asked_for_in_every_shape() {
    for shape in JanusConfig::shape_names() {
        let base = JanusConfig::shape(shape).unwrap();
        for site in sites(&base) {
            let config = new_config(&base, &spec(&[&site.path], &[])).unwrap();
            let selection = select(&config, &base, false).unwrap();
            let selected: Vec<_> = selection.sites.iter().map(|s| (s.site.clone(), s.rank, s.alpha)).collect();
            assert_eq!(selected, [(site, 3, 4.5)]);
            assert!(selection.saved.is_empty());
        }
        for entry in ["generation_head", "aligner", "vision_model", "norm", "language_model.layers.1.mlp.up_proj"] {
            let config = new_config(&base, &spec(&[], &[entry])).unwrap();
            let saved: Vec<_> = select(&config, &base, false).unwrap().saved.into_iter().map(|t| t.name).collect();
            let modules = resolve_modules(&[entry.into()], &base).unwrap();
            let all = janus_core::checkpoint::expected_tensors(&base, true);
            let inside = |name: &str| modules.iter().any(|m| name.starts_with(&format!("{m}.")));
            let expected: Vec<_> = all.into_iter().map(|t| t.name).filter(|name| inside(name)).collect();
            assert!(!saved.is_empty());
            assert_eq!(saved, expected, "{shape} {entry}");
        }
    }
}

#[test]
fn trailing_segments_name_modules_and_inner_ones_go_with_the_outer() {
    let resolve = |entries: &[&str]| {
        resolve_modules(&entries.iter().map(|e| e.to_string()).collect::<Vec<_>>(), &base()).map_err(|e| e.to_string())
    };
    assert_eq!(resolve(&["aligner"]).unwrap(), ["model.aligner"], "not generation_aligner");
    assert_eq!(resolve(&["generation_head", "vision_head"]).unwrap(), ["model.generation_head"]);
    assert_eq!(resolve(&["model"]).unwrap(), ["model"]);
    assert_eq!(resolve(&["lm_head"]).unwrap(), ["lm_head"]);
    assert_eq!(resolve(&["head"]).unwrap_err(), "the base has no module `head`");
    assert!(resolve(&[""]).is_err());
}

#[test]
fn impossible_specifications_are_refused() {
    let refusal = |change: &dyn Fn(&mut AdapterSpec)| {
        let mut spec = spec(&SITES, &[]);
        change(&mut spec);
        Adapter::new(&base(), false, &spec, 1, &parameter).unwrap_err().to_string()
    };
    assert!(refusal(&|s| s.rank = 0).contains("`rank` = `0`"));
    assert!(refusal(&|s| s.rank = 65).contains("`rank` = `65`"));
    assert!(refusal(&|s| s.alpha = f64::NAN).contains("`alpha` = `NaN`"));
    assert!(refusal(&|s| s.alpha = f64::INFINITY).contains("`alpha` = `inf`"));
    assert!(refusal(&|s| s.alpha = 0.0).contains("`alpha` = `0`"));
    assert!(refusal(&|s| s.dropout = 1.0).contains("`dropout` = `1`"));
    assert!(refusal(&|s| s.dropout = f64::NAN).contains("`dropout` = `NaN`"));
    assert!(refusal(&|s| s.sites.push("model.q_proj".into())).contains("no module `model.q_proj`"));
    assert!(refusal(&|s| s.modules_to_save.push("classifier".into())).contains("no module `classifier`"));
    let both = refusal(&|s| s.modules_to_save.push("layers.0.self_attn".into()));
    assert!(both.contains(SITES[0]) && both.contains("both a target and part of `modules_to_save`"), "{both}");
    let whole = refusal(&|s| s.modules_to_save.push("language_model".into()));
    assert!(whole.contains(SITES[0]) && whole.contains("both a target"), "{whole}");
    assert!(refusal(&|s| s.sites.clear()).contains("matches no module"));
}

#[test]
fn half_of_a_tied_pair_is_not_copied() {
    for module in ["embed_tokens", "lm_head"] {
        let error = Adapter::new(&base(), true, &spec(&[], &[module]), 1, &parameter).unwrap_err().to_string();
        assert!(error.contains(module) && error.contains("embedding table"), "{error}");
        Adapter::new(&base(), false, &spec(&[], &[module]), 1, &parameter).unwrap();
        // A pair on one of the two unties nothing it should not.
        let path = if module == "lm_head" { "lm_head" } else { "model.language_model.embed_tokens" };
        Adapter::new(&base(), true, &spec(&[path], &[]), 1, &parameter).unwrap();
    }
}

#[test]
fn copies_of_the_base_must_equal_it() {
    let mut adapter = trained(&spec(&["model.language_model.embed_tokens"], &[]));
    let name = "model.language_model.embed_tokens.weight";
    let table = parameter(name).unwrap();
    adapter.base_copies.insert(name.into(), table.clone());
    adapter.check_base_copies(&parameter).unwrap();
    let half = |name: &str| Ok(parameter(name)?.to_dtype(DType::BF16)?);
    let error = adapter.check_base_copies(&half).unwrap_err().to_string();
    assert!(error.contains("embed_tokens.base_layer.weight"), "{error}");

    let mut values: Vec<f32> = table.flatten_all().unwrap().to_vec1().unwrap();
    *values.last_mut().unwrap() += 1.0;
    let changed = Tensor::from_vec(values, table.dims(), table.device()).unwrap();
    adapter.base_copies.insert(name.into(), changed);
    assert!(matches!(adapter.check_base_copies(&parameter), Err(AdapterError::BaseCopy { .. })));
}
