use std::path::Path;

use half::{bf16, f16};
use janus_core::directory::Directory;
use safetensors::Dtype;
use serde_json::json;

use super::super::extras::EXTRAS_FILE;
use super::super::testing::{
    SITES, Stored, base, bits, change_config, change_weights, folder_of, pair, pair_keys, parameter, refusal, spec,
    trained,
};
use super::*;
use crate::adapter::{AdapterSpec, BaseNote};
use crate::dynamic::Paths;
use crate::heads::{HeadKind, Heads};

const EMBEDDING: &str = "model.language_model.embed_tokens";

fn key(name: &str) -> String {
    format!("{KEY_PREFIX}{name}")
}

fn mismatch(folder: &Path) -> Mismatch {
    match refusal(folder) {
        AdapterError::Tensors(mismatch) => *mismatch,
        other => panic!("{other}"),
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::fs::DirEntry| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap());
    std::fs::read_dir(folder).unwrap().map(|e| entry(e.unwrap())).collect()
}

#[test]
fn an_adapter_comes_back_bit_by_bit() {
    let mut adapter = trained(&spec(&SITES, &["generation_head", "lm_head"]));
    let mut note = Note::new();
    note.base = Some(BaseNote { name: None, fingerprint: "ab".into() });
    adapter.note = Some(note);
    let folder = folder_of(&adapter);
    let names: Vec<_> = files(folder.path()).into_keys().collect();
    assert_eq!(names, [CONFIG_FILE, WEIGHTS_FILE, NOTE_FILE]);

    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    assert_eq!((&read.config, &read.note), (&adapter.config, &adapter.note));
    assert_eq!((read.sites.len(), read.saved.len(), read.base_copies.len()), (3, 5, 0));
    for (path, site) in &adapter.sites {
        let back = &read.sites[path];
        assert_eq!((back.rank, back.alpha, back.scale, &back.site), (3, 4.5, 1.5, &site.site));
        for (back, own) in pair(back).into_iter().zip(pair(site)) {
            assert_eq!((bits(back), back.dims()), (bits(own), own.dims()));
        }
    }
    for (name, copy) in &adapter.saved {
        assert_eq!(bits(&read.saved[name]), bits(copy));
    }
    assert_eq!(files(folder_of(&read).path()), files(folder.path()), "written again, the bytes are the same");
}

#[test]
fn names_in_the_file_are_pefts() {
    let names: Vec<_> = trained(&spec(&SITES, &["vision_head"])).tensors().into_iter().map(|(name, _)| name).collect();
    let expected = [
        "base_model.model.model.generation_embeddings.lora_embedding_A",
        "base_model.model.model.generation_embeddings.lora_embedding_B",
        "base_model.model.model.generation_head.vision_head.bias",
        "base_model.model.model.generation_head.vision_head.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.vision_model.embeddings.patch_embedding.lora_A.weight",
        "base_model.model.model.vision_model.embeddings.patch_embedding.lora_B.weight",
    ];
    assert_eq!(names, expected);
}

#[test]
fn half_precision_is_widened_exactly() {
    let adapter = trained(&spec(&SITES[..1], &[]));
    let folder = folder_of(&adapter);
    let (a, b) = pair_keys(&adapter.sites[SITES[0]].site);
    let mut expected = Vec::new();
    change_weights(folder.path(), |tensors| {
        for (name, dtype) in [(&a, Dtype::BF16), (&b, Dtype::F16)] {
            let stored = tensors.get_mut(name).unwrap();
            let values = stored.bytes.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap()));
            let halves: Vec<(f32, [u8; 2])> = match dtype {
                Dtype::BF16 => values.map(bf16::from_f32).map(|h| (h.to_f32(), h.to_le_bytes())).collect(),
                _ => values.map(f16::from_f32).map(|h| (h.to_f32(), h.to_le_bytes())).collect(),
            };
            expected.push(halves.iter().map(|(value, _)| value.to_bits()).collect::<Vec<_>>());
            stored.bytes = halves.into_iter().flat_map(|(_, bytes)| bytes).collect();
            stored.dtype = dtype;
        }
    });
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    let [a, b] = pair(&read.sites[SITES[0]]);
    assert_eq!((bits(a), bits(b)), (expected[0].clone(), expected[1].clone()));
}

#[test]
fn every_tensor_is_accounted_for_and_all_faults_come_at_once() {
    let adapter = trained(&spec(&SITES, &["vision_head"]));
    let folder = folder_of(&adapter);
    let [linear, conv, table] = SITES.map(|path| pair_keys(&adapter.sites[path].site));
    let extra = key("model.language_model.layers.9.self_attn.q_proj.lora_A.weight");
    let head = key("model.generation_head.vision_head.bias");
    change_weights(folder.path(), |tensors| {
        tensors.remove(&linear.1).unwrap();
        tensors.remove(&head).unwrap();
        tensors.insert(extra.clone(), Stored::f32(&[3, 48], &[0.5; 144]));
        tensors.insert(conv.0.clone(), Stored::f32(&[3, 192], &[0.5; 576]));
        let mut values = [0.5; 192];
        values[7] = f32::NEG_INFINITY;
        tensors.insert(table.0.clone(), Stored::f32(&[3, 64], &values));
        tensors.insert(table.1.clone(), Stored { dtype: Dtype::F64, shape: vec![8, 3], bytes: vec![0; 192] });
    });
    let found = mismatch(folder.path());
    assert_eq!(found.missing, [head.clone(), linear.1.clone()]);
    assert_eq!(found.leftover, std::slice::from_ref(&extra));
    let misshapen = Misshapen { name: conv.0.clone(), expected: vec![3, 3, 8, 8], got: vec![3, 192] };
    assert_eq!(found.misshapen, [misshapen]);
    assert_eq!(found.mistyped, [(table.1.clone(), "F64".to_string())]);
    assert_eq!(found.not_finite, [(table.0.clone(), f32::NEG_INFINITY)]);
    let message = refusal(folder.path()).to_string();
    for name in [&head, &linear.1, &extra, &conv.0, &table.0, &table.1] {
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    assert!(message.contains("[3, 192], expected [3, 3, 8, 8]") && message.contains("`-inf`"), "{message}");
}

#[test]
fn another_rank_in_the_configuration_is_a_mismatch() {
    let folder = folder_of(&trained(&spec(&SITES, &[])));
    change_config(folder.path(), "r", json!(4));
    assert_eq!(mismatch(folder.path()).misshapen.len(), 6);
    change_config(folder.path(), "r", json!(0));
    assert!(refusal(folder.path()).to_string().contains("`r` = `0`"));
    change_config(folder.path(), "r", json!(1_048_576));
    assert_eq!(mismatch(folder.path()).misshapen.len(), 6, "nothing of that size is allocated");
}

#[test]
fn a_nan_is_named() {
    let folder = folder_of(&trained(&spec(&SITES, &["vision_head"])));
    let head = key("model.generation_head.vision_head.bias");
    change_weights(folder.path(), |tensors| {
        tensors.get_mut(&head).unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(refusal(folder.path()).to_string().contains(&format!("`{head}` holds `NaN`")));
}

#[test]
fn large_finite_values_are_finite() {
    let mut adapter = trained(&spec(&SITES[..1], &[]));
    *adapter.sites.get_mut(SITES[0]).unwrap().pair_mut().unwrap()[0] =
        Tensor::full(f32::MAX, (3, 48), &candle_core::Device::Cpu).unwrap();
    Adapter::read(folder_of(&adapter).path(), &base(), false).unwrap();
}

#[test]
fn names_of_raw_state_dicts_are_read_once_each() {
    let adapter = trained(&spec(&SITES, &["vision_head"]));
    let folder = folder_of(&adapter);
    let [linear, _, table] = SITES.map(|path| pair_keys(&adapter.sites[path].site));
    let rename = |name: &str| -> String {
        let head = key("model.generation_head.vision_head.");
        match name.strip_prefix(&head) {
            Some(rest) => format!("{head}modules_to_save.default.{rest}"),
            None if name == linear.0 => name.replace(".lora_A.weight", ".lora_A.default.weight"),
            None if name == table.1 => format!("{name}.default"),
            None => name.to_string(),
        }
    };
    change_weights(folder.path(), |tensors| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    });
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    for ((name, value), (_, expected)) in read.tensors().iter().zip(adapter.tensors()) {
        assert_eq!(bits(value), bits(&expected), "{name}");
    }
    change_weights(folder.path(), |tensors| {
        let twice = tensors[&rename(&linear.0)].clone();
        tensors.insert(linear.0.clone(), twice);
    });
    assert_eq!(mismatch(folder.path()).leftover.len(), 1, "the same factor under two names");
}

#[test]
fn a_copy_of_the_base_is_kept_for_comparison_only() {
    let adapter = trained(&spec(&[EMBEDDING], &[]));
    let folder = folder_of(&adapter);
    let table = parameter("model.language_model.embed_tokens.weight").unwrap();
    let values: Vec<f32> = table.flatten_all().unwrap().to_vec1().unwrap();
    let stored = Stored::f32(table.dims(), &values);
    change_weights(folder.path(), |tensors| {
        tensors.insert(key("model.language_model.embed_tokens.base_layer.weight"), stored.clone());
        tensors.insert(key("lm_head.weight"), stored.clone());
    });
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    assert_eq!((read.sites.len(), read.saved.len(), read.base_copies.len()), (1, 0, 2));
    assert_eq!(read.tensors().len(), 2, "copies are not written again");
    let error = read.check_base_copies(&parameter).unwrap_err().to_string();
    assert!(error.contains("`base_model.model.lm_head.weight`"), "the head is another table here: {error}");
    let tied = |_: &str| Ok(table.clone());
    read.check_base_copies(&tied).unwrap();

    change_weights(folder.path(), |tensors| {
        tensors.insert(key("lm_head.weight"), Stored::f32(&[2, 2], &[0.0; 4]));
        tensors.insert(key("model.generation_embeddings.base_layer.weight"), Stored::f32(&[1], &[0.0]));
    });
    let found = mismatch(folder.path());
    assert_eq!((found.misshapen.len(), found.leftover.len()), (1, 1));
}

#[test]
fn names_of_the_original_layout_are_told_apart() {
    let folder = folder_of(&trained(&spec(&SITES, &[])));
    change_config(folder.path(), "target_modules", json!(["attn.qkv"]));
    let name = key("vision_model.vision_tower.blocks.0.attn.qkv.lora_A.weight");
    change_weights(folder.path(), |tensors| {
        tensors.insert(name.clone(), Stored::f32(&[1], &[0.0]));
    });
    let message = refusal(folder.path()).to_string();
    assert!(message.contains(&name) && message.contains("original DeepSeek layout"), "{message}");
    for native in trained(&spec(&[], &["model", "lm_head"])).tensors() {
        assert!(!is_original_layout(&native.0), "{}", native.0);
    }
}

#[test]
fn a_folder_must_hold_what_an_adapter_is_made_of() {
    let adapter = trained(&spec(&SITES, &[]));
    let folder = folder_of(&adapter);
    std::fs::write(folder.path().join(EXTRAS_FILE), b"").unwrap();
    assert!(matches!(refusal(folder.path()), AdapterError::File { file: EXTRAS_FILE, .. }));

    let folder = folder_of(&adapter);
    std::fs::remove_file(folder.path().join(WEIGHTS_FILE)).unwrap();
    assert!(matches!(refusal(folder.path()), AdapterError::NoFile { file: WEIGHTS_FILE }));
    std::fs::write(folder.path().join(PICKLE_FILE), b"").unwrap();
    assert!(matches!(refusal(folder.path()), AdapterError::Pickle { file: PICKLE_FILE }));
    std::fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
    assert!(matches!(refusal(folder.path()), AdapterError::NoFile { file: CONFIG_FILE }));
    let nowhere = folder.path().join("nowhere");
    assert!(matches!(refusal(&nowhere), AdapterError::NotAFolder { .. }));
    let error = Adapter::read(&nowhere, &base(), false).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn a_dynamic_encoder_comes_back_to_the_bit() {
    let paths = Paths { vision: true, generation: true };
    let mut adapter = trained(&spec(&SITES, &[]));
    adapter.dynamic = Some(crate::dynamic::tests::trained(&base(), paths, 5));
    let folder = folder_of(&adapter);
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    assert_eq!(read.dynamic.as_ref().unwrap().paths(), paths);
    assert_eq!(read.parameter_count(), adapter.parameter_count());
    for ((name, written), (read_name, value)) in adapter.extras().iter().zip(read.extras()) {
        assert_eq!(*name, read_name);
        assert_eq!(bits(written), bits(&value), "{name}");
    }
    // PEFT's own file is what it is without the encoder.
    adapter.dynamic = None;
    let plain = folder_of(&adapter);
    let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
    assert_eq!(bytes(&folder), bytes(&plain));
    assert!(!plain.path().join(EXTRAS_FILE).exists());
}

#[test]
fn every_value_of_a_dynamic_encoder_is_accounted_for() {
    let mut adapter = trained(&spec(&SITES, &[]));
    adapter.dynamic = Some(crate::dynamic::tests::trained(&base(), Paths { vision: true, generation: false }, 5));
    type Named = Vec<(String, Tensor)>;
    let told = |change: fn(Named) -> Named| {
        let folder = folder_of(&adapter);
        let tensors = change(adapter.extras());
        write_weights(&Directory::open(folder.path()).unwrap(), EXTRAS_FILE, &tensors, None).unwrap();
        match refusal(folder.path()) {
            AdapterError::File { file: EXTRAS_FILE, source } => source.to_string(),
            other => panic!("{other}"),
        }
    };
    const GATES: &str = "dynamic.vision.gates";
    let missing = told(|tensors| tensors.into_iter().filter(|(name, _)| name != GATES).collect());
    assert!(missing.contains(GATES), "{missing}");
    let leftover = told(|mut tensors| {
        tensors.push(("head.unknown".into(), tensors[0].1.clone()));
        tensors
    });
    assert!(leftover.contains("head.unknown"), "{leftover}");
    let misshapen = told(|mut tensors| {
        let own = tensors.iter_mut().find(|(name, _)| name == GATES).unwrap();
        own.1 = own.1.narrow(0, 0, 1).unwrap();
        tensors
    });
    assert!(misshapen.contains(GATES) && misshapen.contains("[1, 2]"), "{misshapen}");
}

#[test]
fn an_adapter_of_nothing_is_refused_and_one_of_an_encoder_alone_is_not() {
    let paths = Paths { vision: true, generation: true };
    let alone = AdapterSpec { dynamic: Some(paths), ..spec(&[], &[]) };
    let adapter = Adapter::new(&base(), false, &alone, 7, &parameter).unwrap();
    let folder = folder_of(&adapter);
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    assert!(read.sites.is_empty() && read.dynamic.is_some());
    std::fs::remove_file(folder.path().join(EXTRAS_FILE)).unwrap();
    assert!(matches!(refusal(folder.path()), AdapterError::NoExtras { is_absent: true, .. }));
    change_config(folder.path(), "auto_mapping", json!(null));
    assert!(matches!(refusal(folder.path()), AdapterError::NothingTargeted { .. }));
    assert!(Adapter::new(&base(), false, &spec(&[], &[]), 7, &parameter).is_err());
}

#[test]
fn heads_come_back_with_their_labels() {
    let kind = |labels: &[&str]| HeadKind::Classify { labels: labels.iter().map(ToString::to_string).collect() };
    let heads =
        vec![("defects".to_owned(), kind(&["pit", "scratch"])), ("Ümläut \"x\"".to_owned(), kind(&["a", "b", "c"]))];
    let of = AdapterSpec { heads, dynamic: Some(Paths { vision: true, generation: false }), ..spec(&SITES, &[]) };
    let adapter = Adapter::new(&base(), false, &of, 7, &parameter).unwrap();
    let folder = folder_of(&adapter);
    let read = Adapter::read(folder.path(), &base(), false).unwrap();
    assert!(read.dynamic.is_some());
    assert_eq!(read.heads.len(), 2);
    for (name, head) in &adapter.heads {
        assert_eq!(read.heads[name].kind, head.kind);
        for (value, written) in head.values() {
            assert_eq!(bits(&read.heads[name].values()[value]), bits(written), "{value}");
        }
    }
    // Equal adapters are equal bytes.
    let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(EXTRAS_FILE)).unwrap();
    assert_eq!(bytes(&folder), bytes(&folder_of(&read)));

    let mut broken = adapter.clone();
    broken.heads.get_mut("defects").unwrap().kind = kind(&["pit", "scratch", "stain"]);
    match refusal(folder_of(&broken).path()) {
        AdapterError::File { source, .. } => assert!(source.to_string().contains("head.defects.weight"), "{source}"),
        other => panic!("{other}"),
    }
    for (labels, said) in [(&["one"][..], "1 labels"), (&["b", "a"], "do not rise"), (&["a", "a"], "do not rise")] {
        let of = AdapterSpec { heads: vec![("defects".to_owned(), kind(labels))], ..spec(&SITES, &[]) };
        let wrong = Adapter::new(&base(), false, &of, 7, &parameter).unwrap();
        match refusal(folder_of(&wrong).path()) {
            AdapterError::File { source, .. } => assert!(source.to_string().contains(said), "{source}"),
            other => panic!("{other}"),
        }
    }
    let clash = super::super::heads(&[(&adapter, 1.0), (&read, 1.0)], &candle_core::Device::Cpu);
    assert!(matches!(clash, Err(AdapterError::HeadsClash { first: 1, second: 2, .. })));
}

#[test]
fn what_an_adapter_says_it_has_beyond_pefts_files_must_be_there() {
    let labels = || HeadKind::Classify { labels: vec!["pit".into(), "scratch".into()] };
    let dynamic = Some(Paths { vision: true, generation: false });
    let of = |heads: &[&str], dynamic| {
        let heads = heads.iter().map(|name| ((*name).to_owned(), labels())).collect();
        let spec = AdapterSpec { heads, dynamic, ..spec(&SITES, &[]) };
        Adapter::new(&base(), false, &spec, 7, &parameter).unwrap()
    };
    let adapter = of(&["defects"], dynamic);
    let without = |change: &dyn Fn(&Path)| {
        let folder = folder_of(&adapter);
        change(folder.path());
        refusal(folder.path()).to_string()
    };
    let remove = |folder: &Path| std::fs::remove_file(folder.join(EXTRAS_FILE)).unwrap();
    let missing = "`janus_extras.safetensors` is missing: `adapter_config.json` says that it holds `dynamic.vision`, `head.defects`";
    assert_eq!(without(&remove), missing);
    // What PEFT keeps of the configuration says it, too.
    let told = without(&|folder| {
        remove(folder);
        std::fs::remove_file(folder.join(NOTE_FILE)).ok();
        change_config(folder, "task_type", json!("CAUSAL_LM"));
    });
    assert_eq!(told, missing);
    // Another adapter's file, with less in it or of other names.
    for other in [of(&["defects"], None), of(&["others"], dynamic), of(&[], dynamic)] {
        let other = folder_of(&other);
        let told = without(&|folder| {
            std::fs::copy(other.path().join(EXTRAS_FILE), folder.join(EXTRAS_FILE)).unwrap();
        });
        assert!(told.starts_with("`janus_extras.safetensors` is another adapter's: "), "{told}");
    }
    // The error of a broken file names that file.
    let broken = folder_of(&adapter);
    std::fs::write(broken.path().join(EXTRAS_FILE), b"nothing").unwrap();
    let AdapterError::File { source, .. } = refusal(broken.path()) else { panic!("the error names no file") };
    assert!(source.to_string().starts_with("`janus_extras.safetensors` is not a sound"), "{source}");
    // Nothing is asked of an adapter that has nothing, nor of one that has lost it by being written again.
    let mut plain = Adapter::read(folder_of(&adapter).path(), &base(), false).unwrap();
    (plain.dynamic, plain.heads) = (None, Heads::new());
    let folder = folder_of(&plain);
    assert!(!std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap().contains("janus_extras"));
    assert_eq!(Adapter::read(folder.path(), &base(), false).unwrap().heads.len(), 0);
    for wrong in [json!("head.defects"), json!([3]), json!({})] {
        let told = without(&|folder| change_config(folder, "auto_mapping", json!({ "janus_extras": wrong })));
        assert!(told.contains("`auto_mapping.janus_extras`") && told.contains("expected a list of names"), "{told}");
    }
}

#[test]
fn of_an_adapter_of_before_its_recipe_says_what_it_has() {
    let table = |name: &str, task: &str| format!("[[data]]\nname = \"{name}\"\ntask = \"{task}\"\n");
    let told = |recipe: &str| {
        let mut adapter = trained(&spec(&SITES, &[]));
        let mut note = Note::new();
        note.recipe = Some(recipe.to_owned());
        adapter.note = Some(note);
        match Adapter::read(folder_of(&adapter).path(), &base(), false) {
            Ok(_) => String::new(),
            Err(AdapterError::Folder { source, .. }) => source.to_string(),
            Err(other) => panic!("{other}"),
        }
    };
    let both =
        told(&(table("a", "classify") + &table("b", "text") + &table("c", "locate") + "[dynamic]\nenabled = true\n"));
    let expected = "`janus_extras.safetensors` is missing: `janus_adapter.json` says that it holds `dynamic.vision`, `head.a`, `head.c`";
    assert_eq!(both, expected);
    let drawn = told(&(table("a", "generate") + "[dynamic]\nwhere = [\"vision\", \"generation\"]\n"));
    assert!(drawn.ends_with("`dynamic.generation`"), "{drawn}");
    for plain in [
        table("a", "understand"),
        table("a", "text") + "[dynamic]\nenabled = true\n",
        table("a", "understand") + "[dynamic]\nenabled = false\n",
        table("a", "understand") + "[dynamic]\nwhere = [\"generation\"]\n",
        table("a", "classify") + "[[stage]]\nname = \"first\"\n",
        "no recipe".to_owned(),
    ] {
        assert_eq!(told(&plain), "", "{plain}");
    }
}
