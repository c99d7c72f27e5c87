//! Tables on a hub: `hf://datasets/owner/name[@revision]/path`, the path being a file, a glob or a folder, or nothing.
//!
//! What a table's files are is known from the hub's listing and from the last few kilobytes of each file; a file itself is
//! downloaded when its rows are read, and given up again where the cache would grow beyond its limit.

use std::path::Path;

use janus_core::hub::{DatasetRepository, HubOptions, Progress, RepoId};

use super::error::DataError;
use super::search::pattern_options;
use super::source::{FileSource, Split, of_split, split_of, with_literal_brackets};

/// The variable that limits the cache.
pub const LIMIT_VARIABLE: &str = "JANUS_DATA_CACHE_BYTES";

/// Most bytes of the files of data sets that this program keeps in the hub's cache, where [`LIMIT_VARIABLE`] is not set.
pub const DEFAULT_LIMIT_BYTES: u64 = 20 << 30;

const PREFIX: &str = "hf://";

/// Whether a source is on a hub.
pub fn is_spec(spec: &str) -> bool {
    spec.starts_with(PREFIX)
}

/// The files of a source on a hub, in order of their names, with the hub, token and cache folder of the environment. A file whose
/// size the hub does not tell may have `max_download_bytes` where that is given.
///
/// # Errors
/// A spec that is not understood, settings that cannot be used, a hub that refuses or cannot be reached, and no files.
pub fn locate(
    spec: &str,
    split: Split,
    max_download_bytes: Option<u64>,
    progress: &dyn Progress,
) -> Result<Vec<FileSource>, DataError> {
    let (id, path) = parse(spec)?;
    let limit_bytes = limit_bytes(std::env::var_os(LIMIT_VARIABLE).and_then(|value| value.into_string().ok()))?;
    let mut options = HubOptions::from_env()?;
    options.limits.untold_bytes = max_download_bytes;
    let repository = DatasetRepository::open(id, options, limit_bytes, progress)?;
    let names = choose(spec, &path, repository.files().iter().map(String::as_str), split)?;
    Ok(names.iter().filter_map(|name| repository.shard(name)).map(FileSource::Hub).collect())
}

fn limit_bytes(value: Option<String>) -> Result<u64, DataError> {
    match value.filter(|value| !value.is_empty()) {
        None => Ok(DEFAULT_LIMIT_BYTES),
        Some(value) => value.trim().parse().map_err(|_| DataError::CacheLimit { value }),
    }
}

/// Repository and path of a spec.
fn parse(spec: &str) -> Result<(RepoId, String), DataError> {
    let refuse = |reason: &str| DataError::Source { spec: spec.into(), reason: reason.into() };
    let rest = spec.strip_prefix(PREFIX).unwrap_or(spec);
    let rest = rest
        .strip_prefix("datasets/")
        .ok_or_else(|| refuse("only data sets hold rows: `hf://datasets/owner/name/path`"))?;
    let mut parts = rest.split('/');
    let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
        return Err(refuse("expected `hf://datasets/owner/name`, perhaps with `/path`"));
    };
    let mut id = format!("{owner}/{name}").replace("%2F", "/").replace("%2f", "/");
    if id.ends_with("@refs") {
        // The only revisions with slashes that are no branch's: `refs/convert/parquet`, `refs/pr/1`.
        for part in parts.by_ref().take(2) {
            id.push('/');
            id.push_str(part);
        }
    }
    let path: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    Ok((RepoId::dataset(&id)?, path.join("/")))
}

/// The Parquet files that a path means, in order.
fn choose<'a>(
    spec: &str,
    path: &str,
    names: impl Iterator<Item = &'a str>,
    split: Split,
) -> Result<Vec<&'a str>, DataError> {
    let is_parquet = |name: &str| {
        Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
            && !name.split('/').any(|part| part.starts_with('.'))
    };
    let mut names: Vec<&str> = names.filter(|name| *name == path || is_parquet(name)).collect();
    names.sort_unstable();
    if names.contains(&path) {
        return Ok(vec![names[names.partition_point(|name| *name < path)]]);
    }
    if path.contains(['*', '?', '[']) {
        let malformed =
            |e: glob::PatternError| DataError::Source { spec: spec.into(), reason: format!("malformed pattern: {e}") };
        let matching = |pattern: &str| {
            let pattern = glob::Pattern::new(pattern)?;
            Ok(names.iter().copied().filter(|name| pattern.matches_with(name, pattern_options())).collect::<Vec<_>>())
        };
        let found = matching(path);
        let literal = || matching(&with_literal_brackets(path)).unwrap_or_default();
        names = match found {
            Ok(found) if !found.is_empty() => found,
            found => match literal() {
                literal if !literal.is_empty() => literal,
                _ => found.map_err(malformed)?,
            },
        };
        return if names.is_empty() { Err(DataError::NoMatch { pattern: spec.into() }) } else { Ok(names) };
    }
    let folder = if path.is_empty() { String::new() } else { format!("{path}/") };
    names.retain(|name| name.starts_with(&folder));
    if names.is_empty() {
        return Err(DataError::NoHubFiles { spec: spec.into() });
    }
    let named = names.into_iter().map(|name| (split_of(Path::new(name.get(folder.len()..).unwrap_or(name))), name));
    of_split(Path::new(spec), named.collect(), split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_repository_revision_and_path() {
        for (spec, id, path) in [
            ("hf://datasets/owner/name", "datasets/owner/name", ""),
            ("hf://datasets/owner/name/data/train-*.parquet", "datasets/owner/name", "data/train-*.parquet"),
            ("hf://datasets/o/n@v1.0/a//b.parquet", "datasets/o/n@v1.0", "a/b.parquet"),
            (
                "hf://datasets/o/n@refs/convert/parquet/default/train",
                "datasets/o/n@refs/convert/parquet",
                "default/train",
            ),
            ("hf://datasets/o/n@refs%2Fpr%2F3/x", "datasets/o/n@refs/pr/3", "x"),
        ] {
            let (parsed, rest) = parse(spec).unwrap();
            assert_eq!((parsed.to_string().as_str(), rest.as_str()), (id, path), "{spec}");
        }
        for wrong in [
            "hf://owner/name",
            "hf://datasets/owner",
            "hf://datasets/",
            "hf://datasets/../name/x",
            "hf://datasets/o/n@../x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_choose_among_parquet_files() {
        let names = [
            "README.md",
            "data/train-1.parquet",
            "data/train-0.parquet",
            "data/test-0.parquet",
            "other/x.parquet",
            ".cache/train.parquet",
            "data/deep/train-9.parquet",
        ];
        let choose = |path: &str, split| choose("hf://x", path, names.into_iter(), split);
        let train = ["data/deep/train-9.parquet", "data/train-0.parquet", "data/train-1.parquet"];
        assert_eq!(choose("", Split::Train).unwrap(), train);
        assert_eq!(choose("data", Split::Train).unwrap(), train);
        assert_eq!(choose("data", Split::Eval).unwrap(), ["data/test-0.parquet"]);
        assert_eq!(choose("other", Split::Eval).unwrap(), ["other/x.parquet"]);
        assert_eq!(
            choose("data/train-*.parquet", Split::Eval).unwrap(),
            ["data/train-0.parquet", "data/train-1.parquet"]
        );
        assert_eq!(choose("**/train-?.parquet", Split::Train).unwrap(), train);
        assert_eq!(choose("README.md", Split::Train).unwrap(), ["README.md"]);
        let bracketed = ["v[1]/t-0.parquet"];
        assert_eq!(
            super::choose("hf://x", "v[1]/t-*.parquet", bracketed.into_iter(), Split::Train).unwrap(),
            bracketed
        );
        assert!(matches!(choose("dat", Split::Train), Err(DataError::NoHubFiles { .. })));
        assert!(matches!(choose("none-*", Split::Train), Err(DataError::NoMatch { .. })));
        assert!(matches!(choose("a[", Split::Train), Err(DataError::Source { .. })));
    }

    #[test]
    fn the_limit_is_a_number_of_bytes() {
        assert_eq!(limit_bytes(None).unwrap(), 20 << 30);
        assert_eq!(limit_bytes(Some(" 5000 ".into())).unwrap(), 5000);
        for wrong in ["5GB", "-1", "1e9"] {
            assert!(matches!(limit_bytes(Some(wrong.into())), Err(DataError::CacheLimit { .. })), "{wrong}");
        }
    }
}
