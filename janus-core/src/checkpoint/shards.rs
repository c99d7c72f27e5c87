//! Which files of a folder hold the weights.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::CheckpointError;
use super::error::IndexProblem;
use super::file::{Stored, WeightsFile};
use crate::input;

/// The kind of the weights files of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    Torch,
}

/// Names looked for, in this order.
const CANDIDATES: [(&str, Format, bool); 4] = [
    ("model.safetensors", Format::Safetensors, false),
    ("model.safetensors.index.json", Format::Safetensors, true),
    ("pytorch_model.bin", Format::Torch, false),
    ("pytorch_model.bin.index.json", Format::Torch, true),
];

/// Longest index that is read; that of the largest models has less than 1 MB.
pub(crate) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Most shards of a base. All are held open, and systems allow a process 1,024 open files or fewer.
pub(crate) const MAX_SHARDS: usize = 512;

/// A tensor's shard by name, as an index gives it.
type WeightMap = BTreeMap<String, String>;

/// The weights of `folder`: open files and what each of them holds.
pub(crate) fn open_weights(folder: &Path) -> Result<(Vec<WeightsFile>, Vec<Stored>), CheckpointError> {
    let mut found = None;
    for (name, format, is_index) in CANDIDATES {
        if let Some(opened) = input::open_in(folder, name)? {
            found = Some((name, opened, format, is_index));
            break;
        }
    }
    let Some((name, opened, format, is_index)) = found else {
        return Err(CheckpointError::NoWeights { folder: folder.to_path_buf() });
    };
    let weight_map = if is_index { Some(read_index(folder, name)?) } else { None };
    let path = opened.path.clone();
    let mut shards = Vec::new();
    match &weight_map {
        None => shards.push(opened),
        Some(map) => {
            for shard in map.values().collect::<BTreeSet<_>>() {
                shards.push(input::open_in(folder, shard)?.ok_or_else(|| {
                    let problem = IndexProblem::MissingShard { shard: shard.clone() };
                    CheckpointError::Index { file: path.clone(), problem }
                })?);
            }
        }
    }

    let paths: Vec<PathBuf> = shards.iter().map(|shard| shard.path.clone()).collect();
    let mut files = Vec::with_capacity(shards.len());
    let mut tensors: Vec<Stored> = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = WeightsFile::of(shard)?;
        let held = match format {
            Format::Safetensors => super::safetensors::read_header(&file, index)?,
            Format::Torch => super::torch::read_header(&file, index)?,
        };
        for tensor in &held {
            if let Some(first) = seen.insert(tensor.name.clone(), index) {
                return Err(CheckpointError::Duplicate {
                    tensor: tensor.name.clone(),
                    first: paths[first].clone(),
                    second: paths[index].clone(),
                });
            }
        }
        tensors.extend(held);
        files.push(file);
    }
    if let Some(map) = weight_map {
        compare_with_index(&map, &seen, &paths).map_err(|problem| CheckpointError::Index { file: path, problem })?;
    }
    Ok((files, tensors))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn compare_with_index(map: &WeightMap, seen: &BTreeMap<String, usize>, paths: &[PathBuf]) -> Result<(), IndexProblem> {
    for (tensor, shard) in map {
        if seen.get(tensor).is_none_or(|index| file_name(&paths[*index]) != *shard) {
            return Err(IndexProblem::NotInShard { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    match seen.iter().find(|(tensor, _)| !map.contains_key(*tensor)) {
        None => Ok(()),
        Some((tensor, index)) => {
            Err(IndexProblem::NotInIndex { tensor: tensor.clone(), shard: file_name(&paths[*index]) })
        }
    }
}

fn read_index(folder: &Path, name: &str) -> Result<WeightMap, CheckpointError> {
    let text = input::read(folder, name, MAX_INDEX_BYTES)?.unwrap_or_default();
    parse_index(&text).map_err(|problem| CheckpointError::Index { file: folder.join(name), problem })
}

#[derive(Deserialize)]
struct Index {
    weight_map: DistinctMap,
}

/// A map of strings in which no key may come twice.
struct DistinctMap(WeightMap);

impl<'de> Deserialize<'de> for DistinctMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = DistinctMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<DistinctMap, A::Error> {
                let mut map = WeightMap::new();
                while let Some((tensor, shard)) = access.next_entry::<String, String>()? {
                    if map.contains_key(&tensor) {
                        return Err(serde::de::Error::custom(format_args!("tensor `{tensor}` is named twice")));
                    }
                    map.insert(tensor, shard);
                }
                Ok(DistinctMap(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn parse_index(text: &[u8]) -> Result<WeightMap, IndexProblem> {
    let index: Index = serde_json::from_slice(text).map_err(IndexProblem::Json)?;
    let DistinctMap(map) = index.weight_map;
    for (tensor, shard) in &map {
        // A backslash separates on some systems only, so it is refused on all.
        let mut components = Path::new(shard).components();
        let plain = matches!(components.next(), Some(Component::Normal(name)) if name == shard.as_str())
            && components.next().is_none()
            && !shard.contains(['\\', ':', '\0']);
        if !plain {
            return Err(IndexProblem::OutsideFolder { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    let shards = map.values().collect::<BTreeSet<_>>().len();
    if shards > MAX_SHARDS {
        return Err(IndexProblem::TooManyShards { shards, limit: MAX_SHARDS });
    }
    Ok(map)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_outside_the_folder_are_refused_by_name() {
        for shard in ["../a.safetensors", "/etc/passwd", "b/../c", "b/c", ".", "..", "", "a\\\\b", "C:a", "./a"] {
            let text = format!(r#"{{"metadata":{{}},"weight_map":{{"x":"{shard}"}}}}"#);
            let error = parse_index(text.as_bytes()).unwrap_err();
            assert!(matches!(&error, IndexProblem::OutsideFolder { tensor, .. } if tensor == "x"), "{shard}: {error}");
        }
        assert_eq!(parse_index(br#"{"weight_map":{"x":"a.safetensors"}}"#).unwrap()["x"], "a.safetensors");
    }

    #[test]
    fn more_shards_than_can_be_open_are_refused() {
        let index = |shards: usize| {
            let entries: Vec<String> = (0..shards).map(|n| format!("\"t{n}\":\"s{n}\",\"u{n}\":\"s{n}\"")).collect();
            parse_index(format!("{{\"weight_map\":{{{}}}}}", entries.join(",")).as_bytes())
        };
        assert_eq!(index(MAX_SHARDS).unwrap().len(), 2 * MAX_SHARDS);
        let error = index(MAX_SHARDS + 1).unwrap_err().to_string();
        assert_eq!(error, "it names 513 shards, expected at most 512");
    }

    #[test]
    fn an_index_of_another_form_is_refused() {
        for text in ["", "{}", "[]", r#"{"weight_map":["a"]}"#, r#"{"weight_map":{"x":1}}"#] {
            assert!(matches!(parse_index(text.as_bytes()), Err(IndexProblem::Json(_))), "{text}");
        }
        let error = parse_index(br#"{"weight_map":{"x":"a","x":"b"}}"#).unwrap_err();
        assert!(error.to_string().contains("`x` is named twice"), "{error}");
    }
}
