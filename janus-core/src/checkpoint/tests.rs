#![allow(clippy::unwrap_used)]

use std::io::Write;

use serde_json::{Value, json};

use super::*;
use crate::error::{Diagnose, Fault};

mod torch_files;
mod writing;

/// A fresh checkpoint of `janus-tiny` in a folder of its own.
fn tiny(layout: Layout, dtype: DType) -> tempfile::TempDir {
    tiny_with(layout, dtype, |_| ())
}

fn tiny_with(layout: Layout, dtype: DType, change: impl FnOnce(&mut JanusConfig)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = JanusConfig::shape("janus-tiny").unwrap();
    change(&mut config);
    init_checkpoint(&config, 7, dtype, folder.path(), layout, &mut |_, _| ()).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir) -> Checkpoint {
    Checkpoint::open(folder.path()).unwrap()
}

fn fingerprint(folder: &tempfile::TempDir) -> String {
    open(folder).fingerprint(&mut |_, _| ()).unwrap()
}

fn refusal(folder: &tempfile::TempDir) -> CheckpointError {
    match Checkpoint::open(folder.path()) {
        Err(crate::Error::Checkpoint(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Rewrites the header of a safetensors file, and appends `extra` to its values.
fn edit_header(path: &Path, extra: &[u8], edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(header.as_object_mut().unwrap());
    let header = header.to_string();
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&bytes[8 + length..]).unwrap();
    file.write_all(extra).unwrap();
}

/// Adds a tensor of one side at the end of a safetensors file.
fn append_tensor(path: &Path, name: &str, dtype: &str, values: &[u8], elements: usize) {
    edit_header(path, values, |header| {
        let end = header.values().filter_map(|t| t["data_offsets"][1].as_u64()).max().unwrap();
        let offsets = json!([end, end + values.len() as u64]);
        header.insert(name.into(), json!({"dtype": dtype, "shape": [elements], "data_offsets": offsets}));
    });
}

fn edit_config(folder: &tempfile::TempDir, edit: impl FnOnce(&mut Value)) {
    let path = folder.path().join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn both_layouts_give_the_same_tensors_and_fingerprint() {
    let (native, original) = (tiny(Layout::Native, DType::BF16), tiny(Layout::DeepSeek, DType::BF16));
    assert_eq!(fingerprint(&native), fingerprint(&original));
    let (native, original) = (open(&native), open(&original));
    assert_eq!((native.layout(), original.layout()), (Layout::Native, Layout::DeepSeek));
    assert_eq!(native.stored_dtype(), DType::BF16);
    let names = |checkpoint: &Checkpoint| checkpoint.tensors().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&native), names(&original));
    let mut in_memory = Fingerprint::new();
    for info in native.tensors() {
        let (a, b) = (native.read(&info.name, DType::F32).unwrap(), original.read(&info.name, DType::BF16).unwrap());
        assert_eq!((a.dims(), b.dtype()), (info.shape.as_slice(), DType::BF16));
        assert_eq!(bits(&a), bits(&b), "{}", info.name);
        in_memory.add(&info.name, &b).unwrap();
    }
    assert_eq!(in_memory.finish(), native.fingerprint(&mut |_, _| ()).unwrap());
}

#[test]
fn the_fingerprint_is_the_documented_hash() {
    use sha2::{Digest, Sha256};
    let tensor = Tensor::new(&[[1.5_f32, -2.0]], &candle_core::Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    let mut fingerprint = Fingerprint::new();
    fingerprint.add("w", &tensor).unwrap();
    let mut expected = b"janus-fingerprint-1\n".to_vec();
    for part in [1_u64.to_le_bytes().as_slice(), b"w", &2_u64.to_le_bytes(), &1_u64.to_le_bytes(), &2_u64.to_le_bytes()]
    {
        expected.extend_from_slice(part);
    }
    expected.extend_from_slice(&Sha256::digest([1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat()));
    let expected: String = Sha256::digest(expected).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(fingerprint.finish(), expected);

    // Another value, name or shape is another model.
    let mut other = Fingerprint::new();
    other.add("w", &tensor.reshape((2, 1)).unwrap()).unwrap();
    assert_ne!(other.finish(), expected);
    let mut other = Fingerprint::new();
    other.add("v", &tensor).unwrap();
    assert_ne!(other.finish(), expected);
}

#[test]
fn the_fingerprint_covers_every_tensor_and_its_progress_ends_at_the_total() {
    let folder = tiny(Layout::Native, DType::F32);
    let before = fingerprint(&folder);
    let mut last = (0, 0);
    open(&folder).fingerprint(&mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last.0, last.1);
    assert_eq!(last.1, open(&folder).tensors().map(|t| t.bytes).sum::<u64>());
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let first_value = bytes.len() - last.1 as usize;
    for position in [first_value, first_value + last.1 as usize / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[position] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert_ne!(fingerprint(&folder), before);
    }
}

#[test]
fn missing_leftover_and_misshapen_tensors_are_listed_together() {
    let folder = tiny(Layout::DeepSeek, DType::BF16);
    edit_header(&folder.path().join("model.safetensors"), &[], |header| {
        let stray = header.shift_remove("gen_embed.weight").unwrap();
        header.insert("gen_embedding.weight".into(), stray);
        let qkv = header.shift_remove("vision_model.vision_tower.blocks.1.attn.qkv.bias").unwrap();
        header.insert("attn_pool.bias".into(), qkv);
        header["aligner.layers.0.weight"]["shape"] = json!([32, 48]);
    });
    let error = refusal(&folder);
    let CheckpointError::Tensors { missing, leftover, misshapen, .. } = &error else { panic!("{error}") };
    assert_eq!(missing, &["gen_embed.weight", "vision_model.vision_tower.blocks.1.attn.qkv.bias"]);
    assert_eq!(leftover, &["attn_pool.bias", "gen_embedding.weight"]);
    let expected = Misshapen { name: "aligner.layers.0.weight".into(), expected: vec![48, 32], got: vec![32, 48] };
    assert_eq!(misshapen, &[expected]);
    assert_eq!(error.fault(), Fault::Input);
    let text = error.to_string();
    for words in
        ["2 missing: `gen_embed.weight`", "2 left over", "`aligner.layers.0.weight` has [32, 48], expected [48, 32]"]
    {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_config_that_promises_more_than_the_file_holds_is_refused() {
    let folder = tiny(Layout::Native, DType::BF16);
    edit_config(&folder, |config| config["text_config"]["num_hidden_layers"] = json!(1024));
    let error = refusal(&folder);
    assert!(matches!(&error, CheckpointError::Tensors { missing, .. } if missing.len() == 1022 * 9), "{error}");
    assert!(error.to_string().contains("and 9178 more"), "{error}");
}

#[test]
fn weights_of_another_type_are_refused_by_name() {
    let folder = tiny(Layout::Native, DType::BF16);
    edit_header(&folder.path().join("model.safetensors"), &[], |header| {
        header["model.aligner.fc1.bias"]["dtype"] = json!("I16");
    });
    let error = refusal(&folder);
    assert!(
        matches!(&error, CheckpointError::Dtype { tensor, dtype, .. } if tensor == "model.aligner.fc1.bias" && dtype == "I16"),
        "{error}"
    );
}

#[test]
fn a_config_of_the_other_layout_is_refused() {
    let (native, original) = (tiny(Layout::Native, DType::BF16), tiny(Layout::DeepSeek, DType::BF16));
    std::fs::copy(native.path().join("config.json"), original.path().join("config.json")).unwrap();
    let error = refusal(&original);
    let (config, tensors) = (Layout::Native, Layout::DeepSeek);
    assert!(
        matches!(error, CheckpointError::Layout { config: c, tensors: t, .. } if (c, t) == (config, tensors)),
        "{error}"
    );
}

#[test]
fn folders_without_the_needed_files_are_refused() {
    let folder = tiny(Layout::Native, DType::BF16);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(refusal(&folder), CheckpointError::NoWeights { .. }));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(refusal(&folder), CheckpointError::NoConfig { .. }));
    let error = Checkpoint::open(&folder.path().join("tokenizer.json")).unwrap_err();
    assert!(matches!(error, crate::Error::Checkpoint(CheckpointError::NotAFolder { .. })), "{error}");
}

#[test]
fn a_tied_head_reads_the_table() {
    let folder = tiny_with(Layout::Native, DType::BF16, |config| config.tie_word_embeddings = true);
    let checkpoint = open(&folder);
    assert!(checkpoint.is_tied());
    assert!(checkpoint.tensors().all(|t| t.name != LM_HEAD));
    let head = checkpoint.read(LM_HEAD, DType::F32).unwrap();
    assert_eq!(bits(&head), bits(&checkpoint.read(EMBED_TOKENS, DType::F32).unwrap()));
    // Without a flag the class default ties; with one that does not, the head is missing.
    edit_config(&folder, |config| {
        config.as_object_mut().unwrap().shift_remove("tie_word_embeddings");
    });
    assert!(open(&folder).is_tied());
    edit_config(&folder, |config| config["tie_word_embeddings"] = json!(false));
    let error = refusal(&folder);
    assert!(matches!(&error, CheckpointError::Tensors { missing, .. } if missing == &[LM_HEAD]), "{error}");
}

#[test]
fn a_stored_head_is_used_beside_a_flag_that_ties() {
    let folder = tiny(Layout::Native, DType::BF16);
    let before = open(&folder).read(LM_HEAD, DType::F32).unwrap();
    edit_config(&folder, |config| config["tie_word_embeddings"] = json!(true));
    let checkpoint = open(&folder);
    assert!(!checkpoint.is_tied() && checkpoint.config().tie_word_embeddings);
    assert_eq!(bits(&before), bits(&checkpoint.read(LM_HEAD, DType::F32).unwrap()));
    assert_ne!(bits(&before), bits(&checkpoint.read(EMBED_TOKENS, DType::F32).unwrap()));
}

#[test]
fn a_file_cut_while_it_is_open_gives_an_error() {
    let folder = tiny(Layout::Native, DType::BF16);
    let checkpoint = open(&folder);
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(100).unwrap();
    assert!(matches!(checkpoint.read(LM_HEAD, DType::F32), Err(CheckpointError::Io { .. })));
    assert!(checkpoint.fingerprint(&mut |_, _| ()).is_err());
    assert!(matches!(checkpoint.read("lm_head.bias", DType::F32), Err(CheckpointError::UnknownTensor { .. })));
    assert!(matches!(checkpoint.read(LM_HEAD, DType::I64), Err(CheckpointError::WeightDtype { .. })));
}

#[test]
fn tensors_are_converted_while_they_are_read() {
    let folder = tiny(Layout::Native, DType::F32);
    let checkpoint = open(&folder);
    let full = checkpoint.read(EMBED_TOKENS, DType::F32).unwrap();
    for dtype in [DType::BF16, DType::F16] {
        let read = checkpoint.read(EMBED_TOKENS, dtype).unwrap();
        assert_eq!(read.dtype(), dtype);
        assert_eq!(bits(&read), bits(&full.to_dtype(dtype).unwrap()));
    }
}

#[test]
fn a_replaced_value_stands_for_the_stored_one_and_leaves_the_files_as_they_are() {
    let folder = tiny(Layout::Native, DType::BF16);
    let mut checkpoint = open(&folder);
    let name = "model.vqmodel.quantize.embedding.weight";
    let (stored, other) = (checkpoint.read(name, DType::F32).unwrap(), "model.aligner.fc1.weight");
    let value = (&stored + 0.300_000_01).unwrap();
    checkpoint.replace(name, &value).unwrap();
    // In f32 to the last bit, as another type rounded.
    assert_eq!(bits(&checkpoint.read(name, DType::F32).unwrap()), bits(&value));
    let narrow = checkpoint.read(name, DType::BF16).unwrap();
    assert_eq!(bits(&narrow), bits(&value.to_dtype(DType::BF16).unwrap()));
    assert!(checkpoint.matches(name, &value).unwrap() && checkpoint.matches(name, &narrow).unwrap());
    assert!(!checkpoint.matches(name, &stored).unwrap() && !checkpoint.matches(name, &value.t().unwrap()).unwrap());
    assert!(checkpoint.matches(other, &open(&folder).read(other, DType::BF16).unwrap()).unwrap());
    assert_eq!(bits(&open(&folder).read(name, DType::F32).unwrap()), bits(&stored));
    let refused = checkpoint.replace(name, &value.t().unwrap());
    assert!(matches!(refused, Err(CheckpointError::Tensors { .. })), "{refused:?}");
    assert!(checkpoint.replace("model.nothing", &value).is_err());
}
