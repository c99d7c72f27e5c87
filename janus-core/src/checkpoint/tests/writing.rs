use candle_core::Device;

use super::*;

type Progress = dyn FnMut(u64, u64);

fn quiet() -> Box<Progress> {
    Box::new(|_, _| ())
}

fn convert(source: &tempfile::TempDir, options: &WriteOptions) -> (tempfile::TempDir, WriteReport) {
    let folder = tempfile::tempdir().unwrap();
    let report = convert_checkpoint(&open(source), options, folder.path(), &mut quiet()).unwrap();
    (folder, report)
}

fn names_of(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn json_of(folder: &tempfile::TempDir, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
}

#[test]
fn a_seed_decides_every_value() {
    let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let first = tiny(Layout::Native, DType::BF16);
    assert_eq!(read(&first), read(&tiny(Layout::Native, DType::BF16)));
    let other = tempfile::tempdir().unwrap();
    let config = JanusConfig::shape("janus-tiny").unwrap();
    init_checkpoint(&config, 8, DType::BF16, other.path(), Layout::Native, &mut quiet()).unwrap();
    assert_ne!(read(&first), read(&other));

    let checkpoint = open(&first);
    let codes = checkpoint.read("model.vqmodel.quantize.embedding.weight", DType::F32).unwrap();
    for length in codes.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap() {
        assert!((length - 1.0).abs() < 0.02, "{length}");
    }
    let norm = checkpoint.read("model.language_model.norm.weight", DType::F32).unwrap();
    assert_eq!(norm.to_vec1::<f32>().unwrap(), vec![1.0; 48]);
    // Inputs of a map, and its gain: what ends a branch is a tenth as large, patches are twice as large.
    let maps = [
        ("model.language_model.layers.0.mlp.up_proj.weight", 48_f32, 1.0),
        ("model.language_model.layers.0.mlp.down_proj.weight", 80.0, 0.1),
        ("model.vision_model.encoder.layers.1.self_attn.projection_layer.weight", 32.0, 0.1),
        ("model.vision_model.embeddings.patch_embedding.weight", 192.0, 2.0),
    ];
    for (name, fan_in, gain) in maps {
        let values = checkpoint.read(name, DType::F32).unwrap();
        let size = values.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt() * fan_in.sqrt();
        assert!((size / gain - 1.0).abs() < 0.05, "{name}: {size}");
    }
}

#[test]
fn positions_of_patches_are_waves_and_neighbours_are_alike() {
    let checkpoint = open(&tiny(Layout::Native, DType::F32));
    let name = "model.vision_model.embeddings.position_embedding.weight";
    let table = checkpoint.read(name, DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let side = table.len().isqrt();
    let width = table[0].len();
    assert_eq!((side * side, width % 4), (table.len(), 0));
    for (place, row) in table.iter().enumerate() {
        let (down, across) = ((place / side) as f32, (place % side) as f32);
        // The fastest waves, 1.5 from one patch to the next: sine and cosine of the row, then of the column.
        for (quarter, expected) in [(1.5 * down).sin(), (1.5 * down).cos(), (1.5 * across).sin()].iter().enumerate() {
            assert!((row[quarter * width / 4] - expected).abs() < 1e-5, "{place}");
        }
    }
    let apart = |one: usize, other: usize| -> f32 {
        table[one].iter().zip(&table[other]).map(|(a, b)| (a - b) * (a - b)).sum()
    };
    assert!(apart(0, 1) < apart(0, 2) && apart(0, side) < apart(0, 2 * side));
}

#[test]
fn there_and_back_gives_the_same_bytes() {
    let native = tiny(Layout::Native, DType::F32);
    let options = WriteOptions::new(Layout::DeepSeek).with_max_shard_bytes(200_000);
    let (original, report) = convert(&native, &options);
    assert!(report.files.len() > 3, "{report:?}");
    assert!(names_of(&original).contains(&"model.safetensors.index.json".to_string()));
    assert_eq!(open(&original).layout(), Layout::DeepSeek);
    assert_eq!(fingerprint(&native), fingerprint(&original));
    let (back, report) = convert(&original, &WriteOptions::new(Layout::Native));
    assert_eq!(report.files, ["model.safetensors"]);
    assert_eq!(report.parameters, open(&native).tensors().map(|t| t.bytes / 4).sum::<u64>());
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "processor_config.json"]
    {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(name)).unwrap();
        assert!(read(&native) == read(&back), "{name}");
    }
}

#[test]
fn a_precision_that_holds_every_value_keeps_the_fingerprint() {
    let source = tiny(Layout::Native, DType::BF16);
    let (wide, _) = convert(&source, &WriteOptions::new(Layout::DeepSeek).with_dtype(DType::F32));
    assert_eq!(open(&wide).stored_dtype(), DType::F32);
    assert_eq!(fingerprint(&source), fingerprint(&wide));
    let (narrow, _) = convert(&wide, &WriteOptions::new(Layout::Native).with_dtype(DType::BF16));
    assert_eq!(fingerprint(&source), fingerprint(&narrow));
    assert_eq!(json_of(&narrow, "config.json")["dtype"], "bfloat16");
    let full = tiny(Layout::Native, DType::F32);
    assert_ne!(fingerprint(&source), fingerprint(&full));
}

#[test]
fn a_shard_index_that_lies_is_refused() {
    let native = tiny(Layout::Native, DType::BF16);
    let sharded = || convert(&native, &WriteOptions::new(Layout::Native).with_max_shard_bytes(200_000)).0;
    let index = "model.safetensors.index.json";
    let problem = |folder: &tempfile::TempDir| match refusal(folder) {
        CheckpointError::Index { problem, .. } => problem,
        other => panic!("{other}"),
    };
    let edit = |folder: &tempfile::TempDir, edit: &dyn Fn(&mut Value)| {
        let mut value = json_of(folder, index);
        edit(&mut value);
        std::fs::write(folder.path().join(index), value.to_string()).unwrap();
    };
    let files = open(&sharded()).tensors().map(|t| t.file.clone()).collect::<BTreeSet<_>>().len();
    assert!(files > 1);

    let folder = sharded();
    edit(&folder, &|value| value["weight_map"]["lm_head.weight"] = json!("../model-00001-of-00002.safetensors"));
    assert!(matches!(problem(&folder), IndexProblem::OutsideFolder { tensor, .. } if tensor == LM_HEAD));
    let folder = sharded();
    edit(&folder, &|value| value["weight_map"]["lm_head.weight"] = json!("/etc/passwd"));
    assert!(matches!(problem(&folder), IndexProblem::OutsideFolder { .. }));
    let folder = sharded();
    edit(&folder, &|value| value["weight_map"]["lm_head.weight"] = json!("model-00009-of-00009.safetensors"));
    assert!(
        matches!(problem(&folder), IndexProblem::MissingShard { shard } if shard == "model-00009-of-00009.safetensors")
    );
    let folder = sharded();
    edit(&folder, &|value| value["weight_map"]["more.weight"] = value["weight_map"]["lm_head.weight"].clone());
    assert!(matches!(problem(&folder), IndexProblem::NotInShard { tensor, .. } if tensor == "more.weight"));
    let folder = sharded();
    edit(&folder, &|value| {
        value["weight_map"].as_object_mut().unwrap().shift_remove(LM_HEAD);
    });
    assert!(matches!(problem(&folder), IndexProblem::NotInIndex { tensor, .. } if tensor == LM_HEAD));

    let folder = sharded();
    let shards: Vec<_> = names_of(&folder).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    std::fs::remove_file(folder.path().join(&shards[1])).unwrap();
    assert!(matches!(problem(&folder), IndexProblem::MissingShard { shard } if shard == shards[1]));
    std::fs::copy(folder.path().join(&shards[0]), folder.path().join(&shards[1])).unwrap();
    assert!(matches!(refusal(&folder), CheckpointError::Duplicate { .. }));
}

#[test]
fn a_tied_head_is_untied_on_demand() {
    for layout in [Layout::Native, Layout::DeepSeek] {
        let tied = tiny_with(layout, DType::BF16, |config| config.tie_word_embeddings = true);
        let (still_tied, _) = convert(&tied, &WriteOptions::new(layout));
        assert!(open(&still_tied).is_tied());
        let folder = tempfile::tempdir().unwrap();
        let options = WriteOptions::new(layout).with_untied_head(true);
        let mut double_head = |name: &str, tensor: Tensor| -> crate::Result<Tensor> {
            if name == LM_HEAD { Ok((tensor * 2.0)?) } else { Ok(tensor) }
        };
        write_checkpoint(&open(&tied), &options, &mut double_head, folder.path(), &mut quiet()).unwrap();
        let untied = open(&folder);
        assert!(!untied.is_tied() && !untied.config().tie_word_embeddings);
        let (head, table) = (untied.read(LM_HEAD, DType::F32).unwrap(), untied.read(EMBED_TOKENS, DType::F32).unwrap());
        assert_eq!(bits(&head), bits(&(table * 2.0).unwrap()));
        // Untied without a change, it is the same model.
        let (same, _) = convert(&tied, &options);
        assert!(!open(&same).is_tied());
        assert_eq!(fingerprint(&same), fingerprint(&tied));
        assert_ne!(fingerprint(&folder), fingerprint(&tied));
    }
}

#[test]
fn a_transform_sees_native_names_and_may_not_change_shapes() {
    let source = tiny(Layout::DeepSeek, DType::BF16);
    let checkpoint = open(&source);
    let mut seen = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let third = "model.vision_model.encoder.layers.1.self_attn.v_proj.weight";
    let mut transform = |name: &str, tensor: Tensor| -> crate::Result<Tensor> {
        seen.push(name.to_string());
        assert_eq!(tensor.dtype(), DType::BF16);
        if name == third { Ok(tensor.to_dtype(DType::F32)?.neg()?) } else { Ok(tensor) }
    };
    let options = WriteOptions::new(Layout::DeepSeek);
    write_checkpoint(&checkpoint, &options, &mut transform, folder.path(), &mut quiet()).unwrap();
    assert_eq!(seen.len(), checkpoint.tensors().len());
    let written = open(&folder);
    for info in checkpoint.tensors() {
        let (before, after) =
            (checkpoint.read(&info.name, DType::F32).unwrap(), written.read(&info.name, DType::F32).unwrap());
        let expected = if info.name == third { before.neg().unwrap() } else { before };
        assert_eq!(bits(&expected), bits(&after), "{}", info.name);
    }

    let mut transposing = |_: &str, tensor: Tensor| -> crate::Result<Tensor> {
        if tensor.rank() == 2 { Ok(tensor.t()?) } else { Ok(tensor) }
    };
    let folder = tempfile::tempdir().unwrap();
    let error = write_checkpoint(&checkpoint, &options, &mut transposing, folder.path(), &mut quiet()).unwrap_err();
    assert!(matches!(error, crate::Error::Checkpoint(CheckpointError::WrittenShape { .. })), "{error}");
}

#[test]
fn values_beyond_f16_are_refused_by_name() {
    let source = tiny(Layout::Native, DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let mut huge = |name: &str, tensor: Tensor| -> crate::Result<Tensor> {
        if name == LM_HEAD { Ok(Tensor::full(7e4_f32, tensor.dims(), &Device::Cpu)?) } else { Ok(tensor) }
    };
    let checkpoint = open(&source);
    let options = WriteOptions::new(Layout::Native).with_dtype(DType::F16);
    let error = write_checkpoint(&checkpoint, &options, &mut huge, folder.path(), &mut quiet()).unwrap_err();
    let is_overflow =
        |error: &CheckpointError| matches!(error, CheckpointError::Overflow { tensor, .. } if tensor == LM_HEAD);
    assert!(matches!(&error, crate::Error::Checkpoint(error) if is_overflow(error)), "{error}");

    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(&checkpoint, &WriteOptions::new(Layout::Native), &mut huge, folder.path(), &mut quiet()).unwrap();
    assert!(is_overflow(&open(&folder).read(LM_HEAD, DType::F16).unwrap_err()));
    assert!(open(&folder).read(LM_HEAD, DType::BF16).is_ok());
}

#[test]
fn unused_tensors_lie_still_and_survive_in_the_original_layout() {
    let source = tiny(Layout::DeepSeek, DType::BF16);
    let before = fingerprint(&source);
    let path = source.path().join("model.safetensors");
    append_tensor(&path, "vision_model.vision_tower.attn_pool.latent", "BF16", &[1, 2, 3, 4], 2);
    append_tensor(&path, "gen_vision_model.quantize.codebook_used", "F32", &[9; 8], 2);
    append_tensor(&path, "language_model.model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[7; 4], 1);
    assert_eq!(open(&source).unused().len(), 3);
    assert_eq!(fingerprint(&source), before);

    let (carried, _) = convert(&source, &WriteOptions::new(Layout::DeepSeek).with_dtype(DType::F32));
    let checkpoint = open(&carried);
    assert_eq!(checkpoint.unused().len(), 3);
    let pool = &checkpoint.unused()[2];
    assert_eq!((pool.name.as_str(), pool.dtype), ("vision_model.vision_tower.attn_pool.latent", DType::BF16));
    let mut bytes = Vec::new();
    checkpoint
        .extent(pool)
        .for_each_chunk(|chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })
        .unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    let (dropped, _) = convert(&source, &WriteOptions::new(Layout::Native));
    assert!(open(&dropped).unused().is_empty());
    assert_eq!(fingerprint(&dropped), before);
}

#[test]
fn small_files_follow_the_layout() {
    let native = tiny(Layout::Native, DType::BF16);
    std::fs::write(native.path().join("LICENSE"), "terms").unwrap();
    std::fs::write(native.path().join("notes.txt"), "private").unwrap();
    edit_config(&native, |config| config["unknown_key"] = json!([1]));
    let mut image = json_of(&native, "preprocessor_config.json");
    image["min_size"] = json!(9);
    std::fs::write(native.path().join("preprocessor_config.json"), image.to_string()).unwrap();

    let (copy, _) = convert(&native, &WriteOptions::new(Layout::Native));
    let mut expected = names_of(&native);
    expected.retain(|name| name != "notes.txt");
    assert_eq!(names_of(&copy), expected);
    assert_eq!(json_of(&copy, "config.json"), json_of(&native, "config.json"));
    assert_eq!(json_of(&copy, "preprocessor_config.json"), image);

    let (original, _) = convert(&native, &WriteOptions::new(Layout::DeepSeek));
    assert_eq!(std::fs::read_to_string(original.path().join("LICENSE")).unwrap(), "terms");
    let image = json_of(&original, "preprocessor_config.json");
    assert_eq!((&image["image_processor_type"], &image["min_size"]), (&json!("VLMImageProcessor"), &json!(9)));
    assert_eq!(image["image_size"], 32);
    assert_eq!(json_of(&original, "processor_config.json")["num_image_tokens"], 16);
    assert_eq!(json_of(&original, "tokenizer_config.json")["tokenizer_class"], "LlamaTokenizerFast");

    // The original form names no ids: they come back from the tokenizer by text.
    let (back, _) = convert(&original, &WriteOptions::new(Layout::Native));
    assert_eq!(open(&back).config(), open(&copy).config());
    assert_eq!(json_of(&back, "preprocessor_config.json")["min_size"], 9);
    assert_eq!(json_of(&back, "tokenizer_config.json")["boi_token"], "<begin_of_image>");

    // Release 5 nests the image processor in the processor's file.
    let nested = json!({ "image_processor": { "min_size": 5 }, "num_image_tokens": 16 });
    std::fs::write(native.path().join("processor_config.json"), nested.to_string()).unwrap();
    std::fs::remove_file(native.path().join("preprocessor_config.json")).unwrap();
    let (original, _) = convert(&native, &WriteOptions::new(Layout::DeepSeek));
    assert_eq!(json_of(&original, "preprocessor_config.json")["min_size"], 5);
}

/// The tokenizer of Janus-1.3B has no placeholder; the native processor needs one. Special tokens may stand in the
/// vocabulary, too, or follow it.
#[test]
fn a_missing_placeholder_is_added_to_a_native_tokenizer() {
    for in_vocabulary in [true, false] {
        let original = tiny(Layout::DeepSeek, DType::BF16);
        let mut tokenizer = json_of(&original, "tokenizer.json");
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.retain(|token| token["content"] != "<image_placeholder>");
        if !in_vocabulary {
            added.iter_mut().zip(256..).for_each(|(token, id)| token["id"] = json!(id));
        }
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.retain(|text, id| id.as_u64().unwrap() < 256 || in_vocabulary && text != "<image_placeholder>");
        std::fs::write(original.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let load = |folder: &tempfile::TempDir| {
            tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap()
        };
        let last = load(&original).token_to_id("<|Assistant|>").unwrap();
        assert_eq!(last, if in_vocabulary { 269 } else { 268 });
        let (native, _) = convert(&original, &WriteOptions::new(Layout::Native));
        assert_eq!(load(&native).token_to_id("<|Assistant|>"), Some(last));
        assert_eq!(load(&native).token_to_id("<image_placeholder>"), Some(last + 1));
        assert_eq!(open(&native).config().image_token_id, Some(last + 1));
    }
}
