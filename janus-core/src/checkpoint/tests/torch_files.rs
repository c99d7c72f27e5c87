use zip::write::SimpleFileOptions;

use super::*;
use crate::checkpoint::pickle::tests::{Pickle, Spec};

/// Writes an archive as `torch.save` does; `entries` are the storages by key.
fn archive(path: &Path, pickle: &[u8], byte_order: &str, entries: &[(String, Vec<u8>)]) {
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("data.pkl", pickle);
    add("byteorder", byte_order.as_bytes());
    for (key, bytes) in entries {
        add(&format!("data/{key}"), bytes);
    }
    zip.finish().unwrap();
}

/// Replaces the weights of a folder by torch files with the tensors of `split(name)` in file 0 or 1.
fn into_torch(folder: &tempfile::TempDir, sharded: bool) {
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let values = &bytes[8 + length..];
    let count = if sharded { 2 } else { 1 };
    let mut weight_map = serde_json::Map::new();
    for shard in 0..count {
        let file = match sharded {
            false => "pytorch_model.bin".to_string(),
            true => format!("pytorch_model-{:05}-of-00002.bin", shard + 1),
        };
        let mut pickle = Pickle::new();
        let mut entries = Vec::new();
        for (index, (name, entry)) in header.as_object().unwrap().iter().enumerate() {
            if name == "__metadata__" || index % count != shard {
                continue;
            }
            let shape: Vec<i32> =
                entry["shape"].as_array().unwrap().iter().map(|s| s.as_i64().unwrap() as i32).collect();
            let mut stride = vec![1; shape.len()];
            for side in (1..shape.len()).rev() {
                stride[side - 1] = stride[side] * shape[side];
            }
            let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            // Two elements in front, as in a view of a larger storage.
            let mut storage = vec![0xff; 4];
            storage.extend_from_slice(&values[offset(0)..offset(1)]);
            let key = index.to_string();
            pickle.tensor(&Spec {
                name,
                storage_type: "BFloat16Storage",
                storage: &key,
                storage_elements: (storage.len() / 2) as i32,
                first_element: 2,
                shape: &shape,
                stride: &stride,
            });
            entries.push((key, storage));
            weight_map.insert(name.clone(), json!(file));
        }
        archive(&folder.path().join(&file), &pickle.finish(), "little", &entries);
    }
    if sharded {
        let index = json!({ "metadata": {}, "weight_map": weight_map });
        std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn torch_files_give_the_same_model() {
    for layout in [Layout::Native, Layout::DeepSeek] {
        for sharded in [false, true] {
            let folder = tiny(layout, DType::BF16);
            let expected = fingerprint(&folder);
            into_torch(&folder, sharded);
            assert_eq!(fingerprint(&folder), expected);
        }
    }
}

fn problem(folder: &tempfile::TempDir) -> TorchProblem {
    match refusal(folder) {
        CheckpointError::Torch { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

/// Wherever a bit is flipped among the values, whoever reads them: the archive has a sum of every storage.
#[test]
fn a_flipped_bit_is_found_by_the_archives_own_sum() {
    let folder = tiny(Layout::Native, DType::BF16);
    into_torch(&folder, false);
    let path = folder.path().join("pytorch_model.bin");
    let whole = std::fs::read(&path).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensors: Vec<TensorInfo> = checkpoint.tensors().cloned().collect();
    for info in tensors.iter().step_by(41) {
        let mut damaged = whole.clone();
        damaged[(info.offset + info.bytes / 2) as usize] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let told =
            |error: CheckpointError| matches!(error, CheckpointError::Torch { problem: TorchProblem::Sum { .. }, .. });
        assert!(told(checkpoint.read(&info.name, DType::F32).unwrap_err()), "{}", info.name);
        assert!(told(checkpoint.read(&info.name, DType::BF16).unwrap_err()), "{}", info.name);
        let others = tensors.iter().filter(|other| other.name != info.name);
        assert!(others.step_by(57).all(|other| checkpoint.read(&other.name, DType::F32).is_ok()));
    }
    // What torch writes where it is to work out no sums.
    std::fs::write(&path, without_sums(whole)).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().read(&tensors[0].name, DType::F32).is_ok());
}

/// The archive with zeros for the sums in its directory, whose entries begin with these four bytes.
fn without_sums(mut archive: Vec<u8>) -> Vec<u8> {
    const ENTRY: &[u8] = b"PK\x01\x02";
    let entries: Vec<usize> = (0..archive.len() - 4).filter(|at| archive[*at..].starts_with(ENTRY)).collect();
    for at in entries {
        let name = usize::from(u16::from_le_bytes([archive[at + 28], archive[at + 29]]));
        if archive[at + 46..at + 46 + name].windows(6).any(|part| part == b"/data/") {
            archive[at + 16..at + 20].fill(0);
        }
    }
    archive
}

#[test]
fn a_pickle_of_endless_operations_is_refused() {
    let folder = tiny(Layout::Native, DType::BF16);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let memoize = [&b"\x80\x04}"[..], &vec![0x94; 1_000_001], b"."].concat();
    archive(&folder.path().join("pytorch_model.bin"), &memoize, "little", &[]);
    assert!(matches!(problem(&folder), TorchProblem::TooLong { .. }));
}

#[test]
fn archives_that_lie_are_refused() {
    let folder = tiny(Layout::Native, DType::BF16);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let spec = Spec {
        name: "lm_head.weight",
        storage_type: "BFloat16Storage",
        storage: "0",
        storage_elements: 6,
        first_element: 0,
        shape: &[2, 3],
        stride: &[3, 1],
    };
    let pickle = |spec: &Spec<'_>| {
        let mut pickle = Pickle::new();
        pickle.tensor(spec);
        pickle.finish()
    };
    let storage = |bytes: usize| vec![("0".to_string(), vec![0; bytes])];

    // Sound, but of one tensor: the archive is read, and the rest is missing.
    archive(&path, &pickle(&spec), "little", &storage(12));
    assert!(matches!(refusal(&folder), CheckpointError::Tensors { .. }));

    archive(&path, &pickle(&spec), "little", &storage(11));
    let error = problem(&folder);
    assert!(
        matches!(&error, TorchProblem::OutOfRange { name, elements: 5, .. } if name == "lm_head.weight"),
        "{error}"
    );
    archive(&path, &pickle(&spec), "little", &[]);
    assert!(matches!(problem(&folder), TorchProblem::Entry { entry, .. } if entry == "archive/data/0"));
    let huge = Spec { storage_elements: i32::MAX, shape: &[i32::MAX], stride: &[1], ..spec };
    archive(&path, &pickle(&huge), "little", &storage(12));
    assert!(matches!(problem(&folder), TorchProblem::OutOfRange { .. }));
    archive(&path, &pickle(&spec), "big", &storage(12));
    assert!(matches!(problem(&folder), TorchProblem::Entry { entry, .. } if entry == "archive/byteorder"));

    let mut code = Pickle::new();
    code.text("a");
    code.0.extend_from_slice(b"cposix\nsystem\n");
    code.text("true");
    code.0.extend_from_slice(&[0x85, b'R']);
    archive(&path, &code.finish(), "little", &storage(12));
    let error = refusal(&folder);
    assert!(error.to_string().contains("`posix.system`"), "{error}");
    assert!(error.hints()[0].contains("do not trust"));

    std::fs::write(&path, b"\x80\x02}q\x00.").unwrap();
    assert!(matches!(problem(&folder), TorchProblem::Zip(_)));
}

/// Cut anywhere, an archive is refused.
#[test]
fn a_cut_archive_is_refused() {
    let folder = tiny(Layout::DeepSeek, DType::BF16);
    into_torch(&folder, false);
    let path = folder.path().join("pytorch_model.bin");
    let bytes = std::fs::read(&path).unwrap();
    for tenth in 0..10 {
        std::fs::write(&path, &bytes[..bytes.len() * tenth / 10]).unwrap();
        assert!(matches!(refusal(&folder), CheckpointError::Torch { .. }));
    }
}

#[test]
fn a_damaged_pickle_is_refused() {
    let folder = tiny(Layout::Native, DType::BF16);
    into_torch(&folder, false);
    let path = folder.path().join("pytorch_model.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    // The archive has a checksum of its pickle.
    let position = bytes.windows(15).position(|window| window == b"BFloat16Storage").unwrap();
    bytes[position..position + 15].copy_from_slice(b"XFloat16Storage");
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(problem(&folder), TorchProblem::Entry { problem: "cannot be read", .. }));
}

/// What is no base goes through the same reader.
#[test]
fn a_file_of_tensors_is_told_by_its_content_and_read_with_the_same_care() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let mut pickle = Pickle::new();
    pickle.tensor(&Spec {
        name: "a.weight",
        storage_type: "FloatStorage",
        storage: "0",
        storage_elements: 8,
        first_element: 1,
        shape: &[2, 3],
        stride: &[3, 1],
    });
    let values: Vec<u8> = (0..8).flat_map(|k| (k as f32).to_le_bytes()).collect();
    archive(&path, &pickle.finish(), "little", &[("0".to_string(), values)]);
    let file = TensorFile::open(&path).unwrap();
    assert_eq!((file.shape("a.weight"), file.shape("b.weight")), (Some(&[2, 3][..]), None));
    let tensor = file.read("a.weight").unwrap().unwrap();
    assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    assert!(file.read("b.weight").unwrap().is_none());

    // Values that double with every step, which a reader that builds them would run out of memory over.
    let mut bomb = b"\x80\x02)q\x00".to_vec();
    bomb.extend(b"h\x00h\x00\x86q\x00".repeat(40));
    bomb.push(b'.');
    let deep = [b"\x80\x02".as_slice(), &b"]".repeat(100_000), b"."].concat();
    let code = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec();
    for (pickle, told) in [(bomb, "broken"), (deep, "broken"), (code, "`os.system`")] {
        archive(&path, &pickle, "little", &[]);
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    std::fs::write(&path, b"\x80\x02}q\x00.").unwrap();
    let problem = TensorFile::open(&path).unwrap_err();
    assert!(matches!(problem, CheckpointError::Torch { problem: TorchProblem::Zip(_), .. }), "{problem}");
}
