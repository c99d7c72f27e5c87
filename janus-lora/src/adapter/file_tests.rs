use janus_core::input::InputError;

use super::super::testing::{SITES, folder_of, refusal, spec, trained};
use super::*;

/// Puts a weights file of `header` and `values` zero bytes into a folder that is sound otherwise; `length` is claimed in
/// front instead of the true one. Gives back why it is refused.
fn problem(header: &str, values: usize, length: Option<u64>) -> String {
    let folder = folder_of(&trained(&spec(&SITES[..1], &[])));
    let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + values, 0);
    std::fs::write(folder.path().join(WEIGHTS_FILE), bytes).unwrap();
    match refusal(folder.path()) {
        AdapterError::Safetensors { file, problem } if file == WEIGHTS_FILE => problem,
        other => panic!("{other}"),
    }
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn a_lying_length_allocates_nothing() {
    let header = one("F32", "[2]", "[0,8]");
    assert!(problem(&header, 8, Some(u64::MAX)).contains("claims 18446744073709551615 bytes"));
    assert!(problem(&header, 8, Some(header.len() as u64 + 9)).contains("claims"));
    assert!(problem(&header, 8, Some(10)).contains("EOF"));
    assert!(problem(&header, 8, Some(0)).contains("EOF"));
}

#[test]
fn lying_entries_are_refused() {
    for (dtype, shape, offsets, values) in [
        ("F31", "[2]", "[0,8]", 8),
        ("F32", "[3]", "[0,8]", 8),
        ("F32", "[2]", "[8,0]", 8),
        ("F32", "[2]", "[4,12]", 12),
        ("F32", "[-1]", "[0,4]", 4),
        ("F32", "[4294967296,4294967296,4294967296]", "[0,0]", 0),
        ("F32", "[4611686018427387904]", "[0,0]", 0),
        ("U8", "[18446744073709551615]", "[0,18446744073709551615]", 8),
    ] {
        let header = one(dtype, shape, offsets);
        assert!(!problem(&header, values, None).is_empty(), "{header}");
    }
    let sound = one("F32", "[2]", "[0,8]");
    assert!(problem(&sound, 7, None).contains("take 8 bytes, the file has 7"));
    assert!(problem(&sound, 9, None).contains("take 8 bytes, the file has 9"));
    assert!(!problem("[]", 0, None).is_empty());
    assert!(!problem(&"[".repeat(100_000), 0, None).is_empty());
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let entry =
        |name: &str, offsets: &str| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    for header in [
        format!("{{{},{}}}", entry("a", "[0,8]"), entry("a", "[0,8]")),
        format!("{{{},{},{}}}", entry("a", "[8,16]"), entry("b", "[0,8]"), entry("\\u0061", "[8,16]")),
        format!(r#"{{"__metadata__":{{}},{},"__metadata__":{{"format":"pt"}}}}"#, entry("a", "[0,8]")),
    ] {
        let told = problem(&header, 16, None);
        assert!(told.contains("twice"), "{header}: {told}");
    }
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let folder = folder_of(&trained(&spec(&SITES[..1], &[])));
    let path = folder.path().join(WEIGHTS_FILE);
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(17).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(refusal(folder.path()), AdapterError::Safetensors { .. }), "cut at {length}");
    }
}

#[test]
fn the_metadata_is_the_format_and_nothing_else() {
    let folder = folder_of(&trained(&spec(&SITES, &["vision_head"])));
    let bytes = std::fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
    let (length, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(length % 8, 0);
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    assert_eq!(metadata.metadata().as_ref(), Some(&format));
    assert!(metadata.offset_keys().is_sorted());
}

#[test]
fn a_huge_json_text_is_not_read() {
    let folder = folder_of(&trained(&spec(&SITES[..1], &[])));
    let file = std::fs::File::create(folder.path().join("adapter_config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = refusal(folder.path());
    let too_large = |e: &InputError| matches!(e, InputError::TooLarge { bytes: 0x100_0000_0000, .. });
    assert!(matches!(&error, AdapterError::Input(e) if too_large(e)), "{error}");
}
