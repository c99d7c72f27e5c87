//! The header of a safetensors file, read with suspicion: every number is checked against the file before it is used.
//! Format: eight bytes of header length (little-endian), a JSON object, then the values without gaps
//! (<https://github.com/huggingface/safetensors>, README, "Format").

use std::collections::HashSet;
use std::fmt;

use candle_core::DType;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::CheckpointError;
use super::error::HeaderProblem;
use super::file::{Stored, WeightsFile};

/// Longest header that is read. The format's own readers stop there, too.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Name of a type in headers, for those that this crate stores or lets lie.
pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F64 => "F64",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => "unknown",
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    use DType::{BF16, F16, F32, F64, I16, I32, I64, U8, U32};
    [F32, BF16, F16, F64, I64, I32, I16, U32, U8].into_iter().find(|dtype| dtype_name(*dtype) == name)
}

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order; repeated names are kept, so that they can be refused.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Refuses the JSON header of a safetensors file in which a name stands twice, of which other readers keep the last and say
/// nothing.
///
/// # Errors
/// [`HeaderProblem::Twice`], or [`HeaderProblem::Json`] for what is no such object.
pub fn require_unique_names(header: &[u8]) -> Result<(), HeaderProblem> {
    struct Names(Option<String>);

    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Self(None))
        }
    }

    impl<'de> Visitor<'de> for Names {
        type Value = Self;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
            let mut seen = HashSet::new();
            while let Some(name) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if seen.contains(&name) {
                    self.0.get_or_insert(name);
                } else {
                    seen.insert(name);
                }
            }
            Ok(self)
        }
    }

    match serde_json::from_slice(header).map_err(HeaderProblem::Json)? {
        Names(None) => Ok(()),
        Names(Some(tensor)) => Err(HeaderProblem::Twice { tensor }),
    }
}

/// The tensors of `file`, which is number `index` of the checkpoint's files.
pub(crate) fn read_header(file: &WeightsFile, index: usize) -> Result<Vec<Stored>, CheckpointError> {
    let refuse = |problem| CheckpointError::Safetensors { file: file.path().to_path_buf(), problem };
    let file_bytes = file.bytes();
    if file_bytes < 8 {
        return Err(refuse(HeaderProblem::TooShort { file_bytes }));
    }
    let mut length = [0; 8];
    file.read_at(&mut length, 0)?;
    let header_bytes = u64::from_le_bytes(length);
    let room_bytes = (file_bytes - 8).min(MAX_HEADER_BYTES);
    if header_bytes > room_bytes {
        return Err(refuse(HeaderProblem::Length { header_bytes, room_bytes }));
    }
    let mut text = vec![0; header_bytes as usize];
    file.read_at(&mut text, 8)?;
    let Header(entries) = serde_json::from_slice(&text).map_err(|source| refuse(HeaderProblem::Json(source)))?;
    let first_byte = 8 + header_bytes;
    check(entries, file_bytes - first_byte, first_byte, index).map_err(refuse)
}

fn check(
    entries: Vec<(String, Entry)>,
    value_bytes: u64,
    first_byte: u64,
    file: usize,
) -> Result<Vec<Stored>, HeaderProblem> {
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, Entry { dtype, shape, data_offsets: (begin, end) }) in entries {
        if !names.insert(name.clone()) {
            return Err(HeaderProblem::Twice { tensor: name });
        }
        let Some(known) = dtype_of(&dtype) else {
            return Err(HeaderProblem::Dtype { tensor: name, dtype });
        };
        let sides: Option<Vec<usize>> = shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let needed = shape.iter().try_fold(known.size_in_bytes() as u64, |bytes, side| bytes.checked_mul(*side));
        let (Some(sides), Some(expected_bytes)) = (sides, needed) else {
            return Err(HeaderProblem::Overflow { tensor: name, shape });
        };
        if end.checked_sub(begin) != Some(expected_bytes) {
            return Err(HeaderProblem::Size { tensor: name, expected_bytes, begin, end });
        }
        tensors.push(Stored { name, dtype: known, shape: sides, file, offset: begin, bytes: expected_bytes });
    }
    // An empty tensor shares its offset with the one that follows, so the length decides between equals.
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut expected = 0_u64;
    for tensor in &mut tensors {
        if tensor.offset != expected {
            return Err(HeaderProblem::Gap { tensor: tensor.name.clone(), begin: tensor.offset, expected });
        }
        // `offset + bytes` is an end offset the header gave, so neither sum can overflow before the file's end is passed.
        expected += tensor.bytes;
        if expected > value_bytes {
            return Err(HeaderProblem::FileSize { expected_bytes: expected, got_bytes: value_bytes });
        }
        tensor.offset += first_byte;
    }
    if expected != value_bytes {
        return Err(HeaderProblem::FileSize { expected_bytes: expected, got_bytes: value_bytes });
    }
    Ok(tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file of `header` and `values` zero bytes, with the true length in front unless another one is given.
    fn read(header: &str, values: usize, length: Option<u64>) -> Result<Vec<Stored>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + values, 0);
        std::fs::write(&path, bytes).unwrap();
        read_header(&WeightsFile::open(&path).unwrap(), 3).map_err(|e| e.to_string())
    }

    fn refusal(header: &str, values: usize) -> String {
        read(header, values, None).unwrap_err()
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},
        "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"e":{"dtype":"F16","shape":[0],"data_offsets":[16,16]}}  "#;

    #[test]
    fn a_sound_header_gives_its_tensors_in_file_order() {
        let tensors = read(GOOD, 22, None).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "e", "b"]);
        let b = &tensors[2];
        let expected = 8 + GOOD.len() as u64 + 16;
        assert_eq!((b.dtype, b.shape.as_slice(), b.offset, b.bytes, b.file), (DType::BF16, &[3][..], expected, 6, 3));
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        assert!(read(GOOD, 22, Some(u64::MAX)).unwrap_err().contains("claims 18446744073709551615 bytes"));
        assert!(read(GOOD, 22, Some(GOOD.len() as u64 + 23)).unwrap_err().contains("claims"));
        assert!(read(GOOD, 22, Some(20)).unwrap_err().contains("not the expected JSON"));
        assert!(read(GOOD, 22, Some(0)).unwrap_err().contains("not the expected JSON"));
    }

    #[test]
    fn a_cut_file_is_refused_wherever_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut bytes = (GOOD.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(GOOD.as_bytes());
        bytes.resize(bytes.len() + 22, 0);
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = read_header(&WeightsFile::open(&path).unwrap(), 0).unwrap_err();
            assert!(matches!(error, CheckpointError::Safetensors { .. }), "{error}");
        }
    }

    #[test]
    fn lying_entries_are_refused_by_name() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(refusal(&one("F31", "[2]", "[0,8]"), 8).contains("unknown type `F31`"));
        assert!(refusal(&one("F32", "[3]", "[0,8]"), 8).contains("needs 12 bytes"));
        assert!(refusal(&one("F32", "[2]", "[8,0]"), 8).contains("offsets 8 to 0"));
        assert!(refusal(&one("F32", "[4294967296,4294967296]", "[0,0]"), 8).contains("overflows"));
        assert!(refusal(&one("F32", "[4611686018427387904]", "[0,0]"), 8).contains("overflows"));
        assert!(refusal(&one("F32", "[-1]", "[0,4]"), 8).contains("not the expected JSON"));
        assert!(refusal(&one("F32", "[2]", "[4,12]"), 12).contains("begins at 4, expected 0"));
        assert!(refusal(&one("F32", "[2]", "[0,8]"), 7).contains("take 8 bytes, the file has 7"));
        assert!(refusal(&one("F32", "[2]", "[0,8]"), 9).contains("take 8 bytes, the file has 9"));
        let max = u64::MAX;
        assert!(refusal(&one("U8", "[1]", &format!("[{},{max}]", max - 1)), 8).contains("expected 0"));
        assert!(refusal(&one("U8", &format!("[{max}]"), &format!("[0,{max}]")), 8).contains("the file has 8"));
    }

    #[test]
    fn overlaps_gaps_and_repeated_names_are_refused() {
        let two = |second: &str, begin: u64| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},
                    "{second}":{{"dtype":"F32","shape":[2],"data_offsets":[{begin},{}]}}}}"#,
                begin + 8
            )
        };
        assert_eq!(read(&two("b", 8), 16, None).unwrap().len(), 2);
        assert!(refusal(&two("b", 4), 12).contains("overlap or leave a gap"));
        assert!(refusal(&two("b", 0), 8).contains("overlap or leave a gap"));
        assert!(refusal(&two("b", 12), 20).contains("overlap or leave a gap"));
        assert!(refusal(&two("a", 8), 16).contains("names `a` twice"));
    }
}
