//! From what a recipe says (`data.train`, `data.eval`) to an ordered list of files.
//!
//! A source is the path of a file, a glob, a folder, a `synth:` spec, or the same on a hub ([`super::hub`]). A folder stands for every `.parquet` file
//! below it; where its files are named for splits as on the Hugging Face hub (`train-00000-of-00001.parquet`,
//! `validation.parquet`, `data/test/0000.parquet`), only those of the asked split are taken.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use janus_core::hub::{Progress, Shard};
use janus_core::input::{self, InputError};

use super::error::DataError;
use super::rejected::cut;
use super::search::{self, SearchFault};
use super::{foreign, hub, synth};

/// Folders are followed so deep.
const MAX_DEPTH: usize = 16;

/// Longest source: what systems take for a path.
const MAX_SPEC_BYTES: usize = 4096;

/// Which part of a data set is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows to evaluate on: the validation split, or the test split where there is none.
    Eval,
}

/// One file of a table.
#[derive(Debug, Clone)]
pub enum FileSource {
    /// On this machine.
    Local(PathBuf),
    /// On a hub, here when it is needed.
    Hub(Shard),
}

impl FileSource {
    /// How messages name it: its path, or `hf://datasets/owner/name@revision/path`.
    pub fn shown(&self) -> PathBuf {
        match self {
            FileSource::Local(path) => path.clone(),
            FileSource::Hub(shard) => PathBuf::from(format!("hf://{}/{}", shard.repository().id(), shard.name())),
        }
    }
}

/// A split as file names spell it.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev", "eval"]),
    ("test", &["test", "testing"]),
];

/// The files of a source of any kind; `synth:` specs are drawn into `cache_folder` on first use. `max_download_bytes` is of a hub's
/// files, see [`hub::locate`].
///
/// # Errors
/// As [`resolve`] and [`hub::locate`]; a `synth:` spec that is not understood or cannot be written.
pub fn locate(
    spec: &str,
    base_folder: &Path,
    cache_folder: &Path,
    split: Split,
    max_download_bytes: Option<u64>,
    progress: &dyn Progress,
) -> Result<Vec<FileSource>, DataError> {
    check_length(spec)?;
    if hub::is_spec(spec) {
        return hub::locate(spec, split, max_download_bytes, progress);
    }
    let files = if synth::is_spec(spec) {
        vec![synth::synthesize(spec, cache_folder)?]
    } else {
        let Found { files, passed_over } = find(spec, base_folder, Some(split))?;
        if let Some(note) = passed_over_note(spec, &passed_over) {
            progress.note(&note);
        }
        files
    };
    Ok(files.into_iter().map(FileSource::Local).collect())
}

/// The files of a path, glob or folder (every split of it), in order of their names; relative ones start at `base_folder`.
///
/// # Errors
/// Nothing is found, a folder cannot be read, the pattern is malformed, or the source is of a kind not supported.
pub fn resolve(spec: &str, base_folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    resolve_split(spec, base_folder, None)
}

/// As [`resolve`]; of a folder whose files are named for splits, only those of `split`.
///
/// # Errors
/// As [`resolve`]; a folder that has splits, but not this one.
pub fn resolve_split(spec: &str, base_folder: &Path, split: Option<Split>) -> Result<Vec<PathBuf>, DataError> {
    Ok(find(spec, base_folder, split)?.files)
}

/// What a source means on this machine.
struct Found {
    files: Vec<PathBuf>,
    /// Files that a pattern matches beside the tables, and that are none.
    passed_over: Vec<PathBuf>,
}

impl Found {
    fn all(files: Vec<PathBuf>) -> Self {
        Self { files, passed_over: Vec::new() }
    }
}

fn check_length(spec: &str) -> Result<(), DataError> {
    match spec.len() {
        0..=MAX_SPEC_BYTES => Ok(()),
        bytes => {
            let reason = format!("it has {bytes} bytes, and no path has more than {MAX_SPEC_BYTES}");
            Err(DataError::Source { spec: cut(spec), reason })
        }
    }
}

fn find(spec: &str, base_folder: &Path, split: Option<Split>) -> Result<Found, DataError> {
    check_length(spec)?;
    let refuse = |reason: &str| DataError::Source { spec: spec.into(), reason: reason.into() };
    if spec.trim().is_empty() {
        return Err(refuse("it is empty"));
    }
    if let Some((scheme, _)) = spec.split_once("://") {
        return Err(refuse(&format!("`{scheme}://` is not supported, give a file, a glob or a folder")));
    }
    let path = base_folder.join(spec);
    // Of the system itself, which says whether links lead round in a circle.
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => return folder_files(&path, split).map(Found::all),
        Ok(_) => return Ok(Found::all(vec![path])),
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidFilename
            ) =>
        {
            return Err(DataError::Io { path, source: e });
        }
        Err(_) => {}
    }
    if spec.contains(['*', '?', '[']) {
        return glob_files(spec, base_folder);
    }
    Err(DataError::NotFound { path })
}

fn glob_files(spec: &str, base_folder: &Path) -> Result<Found, DataError> {
    let refuse = |reason: String| DataError::Source { spec: spec.into(), reason };
    // What stands before the first wildcard is the user's own word, wherever it leads.
    let (folder, rest) = literal_start(spec, base_folder);
    let mut files = search::matching(&folder, &rest).map_err(|e| match e {
        SearchFault::Pattern(e) => refuse(format!("malformed pattern: {e}; `[[]` is the bracket itself")),
        other => search_failed(spec, other),
    });
    // No file is called so: the brackets may be the name's own.
    if rest.contains('[') && !files.as_ref().is_ok_and(|files| !files.is_empty()) {
        match search::matching(&folder, &with_literal_brackets(&rest)) {
            Ok(found) if !found.is_empty() => files = Ok(found),
            _ => {}
        }
    }
    let mut files = files?;
    if files.is_empty() {
        return Err(DataError::NoMatch { pattern: base_folder.join(spec).display().to_string() });
    }
    files.sort();
    // `*` matches what lies beside tables, too: the recipe itself, a README. Where there is no table, the first file says why.
    let (tables, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| is_table(path));
    let chosen = if tables.is_empty() { &others } else { &tables };
    chosen.iter().try_for_each(|path| contained(&folder, path))?;
    Ok(if tables.is_empty() { Found::all(others) } else { Found { files: tables, passed_over: others } })
}

fn search_failed(spec: &str, fault: SearchFault) -> DataError {
    let refuse = |reason| DataError::Source { spec: spec.into(), reason };
    match fault {
        SearchFault::Pattern(e) => refuse(format!("malformed pattern: {e}")),
        SearchFault::Read(path, source) => DataError::Io { path, source },
        SearchFault::TooMany(most) => refuse(format!("there are more than {most} folders to look into")),
    }
}

/// Whether a file is called a Parquet file, or begins as one.
fn is_table(path: &Path) -> bool {
    let begins = || {
        let mut start = [0; 4];
        let read = input::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && &start == b"PAR1"
    };
    is_named_parquet(path) || begins()
}

fn is_named_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

/// What to say of files that a pattern matches and that are no tables.
fn passed_over_note(spec: &str, passed_over: &[PathBuf]) -> Option<String> {
    const LISTED: usize = 4;
    let names = passed_over.iter().take(LISTED).map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let more = match passed_over.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let better = match spec.rsplit_once('/') {
        Some((folders, _)) => format!("{folders}/*.parquet"),
        None => "*.parquet".to_owned(),
    };
    (!names.is_empty()).then(|| {
        format!(
            "`{spec}` also matches {}{more}, no Parquet files, which are passed over: `{better}` means tables alone",
            names.join(", ")
        )
    })
}

/// A pattern in which only `*` and `?` are wildcards.
pub(super) fn with_literal_brackets(pattern: &str) -> String {
    pattern.chars().map(|c| if matches!(c, '[' | ']') { format!("[{c}]") } else { c.into() }).collect()
}

/// The folders before a pattern's first wildcard, brackets in the names of existing ones being none, and the rest.
fn literal_start(spec: &str, base_folder: &Path) -> (PathBuf, String) {
    let mut folder = base_folder.to_path_buf();
    let parts: Vec<_> = Path::new(spec).components().collect();
    let is_wild = |name: &str| name.contains(['*', '?', '[']);
    let folders = parts.len().saturating_sub(1);
    let mut taken = 0;
    for part in &parts[..folders] {
        let name = part.as_os_str().to_string_lossy();
        let literal = unescaped(&name);
        let next = match literal {
            _ if !is_wild(&name) || folder.join(part).is_dir() => folder.join(part),
            Some(literal) => folder.join(literal),
            None => break,
        };
        folder = next;
        taken += 1;
    }
    let rest: PathBuf = parts[taken..].iter().collect();
    (folder, rest.to_string_lossy().into_owned())
}

/// What a pattern of escaped wildcards alone means; `None` where it has others.
fn unescaped(pattern: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        let escaped = ["[[]", "[]]", "[*]", "[?]"].iter().find(|escaped| rest.starts_with(**escaped));
        match escaped {
            Some(escaped) => {
                text.push_str(&escaped[1..2]);
                rest = &rest[3..];
            }
            None if matches!(first, '*' | '?' | '[') => return None,
            None => {
                text.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    Some(text)
}

/// Refuses a file that was found, not named, where a link took the search out of its folder.
fn contained(folder: &Path, path: &Path) -> Result<(), DataError> {
    match input::contains(folder, path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(InputError::Outside { folder: folder.to_path_buf(), path: path.to_path_buf() }.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(DataError::Dangling { path: path.to_path_buf() }),
        Err(source) => Err(DataError::Io { path: path.to_path_buf(), source }),
    }
}

fn folder_files(folder: &Path, split: Option<Split>) -> Result<Vec<PathBuf>, DataError> {
    let found = search::below(folder, MAX_DEPTH, &is_named_parquet);
    let mut files = found.map_err(|e| search_failed(&folder.display().to_string(), e))?;
    if files.is_empty() {
        let empty = || DataError::EmptyFolder { path: folder.to_path_buf() };
        return Err(foreign::folder(folder).unwrap_or_else(empty));
    }
    files.iter().try_for_each(|file| contained(folder, file))?;
    files.sort();
    let Some(split) = split else { return Ok(files) };
    let named = files.into_iter().map(|file| (split_of(file.strip_prefix(folder).unwrap_or(&file)), file)).collect();
    of_split(folder, named, split)
}

/// Of a folder's files, those of a split; all where none is named for a split.
pub(super) fn of_split<T>(
    folder: &Path,
    named: Vec<(Option<&'static str>, T)>,
    split: Split,
) -> Result<Vec<T>, DataError> {
    let found: Vec<&'static str> =
        SPLITS.iter().map(|(name, _)| *name).filter(|name| named.iter().any(|(of, _)| of == &Some(*name))).collect();
    if found.is_empty() {
        return Ok(named.into_iter().map(|(_, file)| file).collect());
    }
    let (wanted, label): (&[&str], _) = match split {
        Split::Train => (&["train"], "train"),
        Split::Eval => (&["validation", "test"], "validation"),
    };
    let Some(chosen) = wanted.iter().find(|name| found.contains(name)) else {
        return Err(DataError::NoSplit { path: folder.to_path_buf(), split: label, found });
    };
    Ok(named.into_iter().filter(|(of, _)| of.as_ref() == Some(chosen)).map(|(_, file)| file).collect())
}

/// The split a file below a folder is named for: by a folder on its way, else by the start of its own name.
pub(super) fn split_of(file: &Path) -> Option<&'static str> {
    let by_name = |name: &str| SPLITS.iter().find(|(_, spellings)| spellings.contains(&name)).map(|(split, _)| *split);
    let folders = file.parent().into_iter().flat_map(Path::components);
    for folder in folders {
        if let Some(split) = folder.as_os_str().to_str().and_then(by_name) {
            return Some(split);
        }
    }
    let stem = file.file_stem()?.to_str()?;
    let first = stem.split(['-', '_', '.']).next().unwrap_or(stem);
    by_name(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use janus_core::{Diagnose, Fault};

    use super::*;

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        folder
    }

    fn names(folder: &Path, files: &[PathBuf]) -> Vec<String> {
        files.iter().map(|f| f.strip_prefix(folder).unwrap().to_str().unwrap().to_string()).collect()
    }

    #[test]
    fn a_path_a_glob_and_a_folder_give_files_in_order() {
        let folder =
            folder_of(&["b.parquet", "a.parquet", "sub/c.parquet", "notes.txt", ".cache/d.parquet", ".x.parquet"]);
        let base = folder.path();
        assert_eq!(names(base, &resolve("b.parquet", base).unwrap()), ["b.parquet"]);
        assert_eq!(names(base, &resolve("*.parquet", base).unwrap()), ["a.parquet", "b.parquet"]);
        assert_eq!(names(base, &resolve("**/*.parquet", base).unwrap()), ["a.parquet", "b.parquet", "sub/c.parquet"]);
        assert_eq!(names(base, &resolve(".", base).unwrap_or_default()).len(), 3);
        let absolute = base.join("sub").to_str().unwrap().to_string();
        assert_eq!(names(base, &resolve(&absolute, Path::new("/elsewhere")).unwrap()), ["sub/c.parquet"]);
    }

    #[test]
    fn a_pattern_takes_tables_alone_and_says_what_it_passes_over() {
        let folder = folder_of(&["b.PARQUET", "recipe.toml", "README.md", "sub/a.parquet", "sub/info.json"]);
        let base = folder.path();
        // A table by its content alone, as some writers leave it.
        std::fs::write(base.join("part-00000"), b"PAR1 and more").unwrap();
        for (spec, tables, passed_over, better) in [
            ("*", vec!["b.PARQUET", "part-00000"], "`README.md`, `recipe.toml`", "`*.parquet`"),
            ("sub/*", vec!["sub/a.parquet"], "`info.json`", "`sub/*.parquet`"),
            (
                "**/*",
                vec!["b.PARQUET", "part-00000", "sub/a.parquet"],
                "`README.md`, `recipe.toml`, `info.json`",
                "`**/*.parquet`",
            ),
            ("[a-z]*", vec!["b.PARQUET", "part-00000"], "`recipe.toml`", "`*.parquet`"),
        ] {
            let found = find(spec, base, Some(Split::Train)).unwrap();
            assert_eq!(names(base, &found.files), tables, "{spec}");
            let note = passed_over_note(spec, &found.passed_over).unwrap();
            assert!(note.contains(&format!("matches {passed_over}, no")) && note.contains(better), "{note}");
        }
        assert!(find("*.PARQUET", base, None).unwrap().passed_over.is_empty());
        // Where there is no table at all, nothing is passed over: what is there is said to be none.
        assert_eq!(names(base, &resolve("*.md", base).unwrap()), ["README.md"]);
    }

    #[test]
    fn a_name_with_brackets_is_a_name_first() {
        let folder = folder_of(&["in [1]/a[1].parquet", "in [1]/a1.parquet"]);
        let base = folder.path().join("in [1]");
        assert_eq!(names(&base, &resolve("a[1].parquet", &base).unwrap()), ["a[1].parquet"]);
        assert_eq!(names(&base, &resolve("a?.parquet", &base).unwrap()), ["a1.parquet"]);
        assert_eq!(
            names(&base, &resolve("a[1]*.parquet", &base).unwrap()),
            ["a1.parquet"],
            "a class, where one matches"
        );
    }

    #[test]
    fn brackets_in_real_names_hinder_no_pattern() {
        let folder = folder_of(&[
            "run [1]/t-0.parquet",
            "run [1]/t-1.parquet",
            "run [1]/x [a]/[v2] t-0.parquet",
            "open[/t.parquet",
        ]);
        let base = folder.path();
        let found = |spec: &str| resolve(spec, base).map(|files| names(base, &files));
        assert_eq!(found("run [1]/t-*.parquet").unwrap(), ["run [1]/t-0.parquet", "run [1]/t-1.parquet"]);
        assert_eq!(found("run [1]/t-[1-9].parquet").unwrap(), ["run [1]/t-1.parquet"]);
        let absolute = base.join("run [1]/t-*.parquet");
        assert_eq!(resolve(absolute.to_str().unwrap(), Path::new("/elsewhere")).unwrap().len(), 2);
        assert_eq!(found("run [[]1]/t-*.parquet").unwrap().len(), 2, "the recipe's folder comes escaped");
        assert_eq!(found("run [1]/x [a]/[v2] t-*.parquet").unwrap(), ["run [1]/x [a]/[v2] t-0.parquet"]);
        assert_eq!(found("run*/x [a]/[v2] t-?.parquet").unwrap(), ["run [1]/x [a]/[v2] t-0.parquet"]);
        assert_eq!(found("open[/*.parquet").unwrap(), ["open[/t.parquet"]);
        assert_eq!(found("op*[/t.parquet").unwrap(), ["open[/t.parquet"]);
        assert!(matches!(found("run [1]/u-[0-9].parquet"), Err(DataError::NoMatch { .. })));
    }

    #[test]
    fn a_folder_of_splits_gives_the_one_asked_for() {
        let files =
            ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-0.parquet", "bad-rows.parquet"];
        let folder = folder_of(&files);
        let base = folder.path();
        let split = |split| resolve_split("", &base.join("."), split).map(|f| names(base, &f));
        assert!(split(None).is_err(), "an empty source is not the current folder");
        let split = |split| resolve_split(base.to_str().unwrap(), base, split).map(|f| names(base, &f)).unwrap();
        assert_eq!(split(Some(Split::Train)), [files[0]]);
        assert_eq!(split(Some(Split::Eval)), [files[1]]);
        assert_eq!(split(None).len(), 4);

        let folder = folder_of(&["default/train/0000.parquet", "default/test/0000.parquet"]);
        let of = |split| resolve_split(folder.path().to_str().unwrap(), Path::new(""), Some(split)).unwrap();
        assert_eq!(names(folder.path(), &of(Split::Train)), ["default/train/0000.parquet"]);
        assert_eq!(
            names(folder.path(), &of(Split::Eval)),
            ["default/test/0000.parquet"],
            "test stands in for validation"
        );

        let folder = folder_of(&["test-0.parquet"]);
        let failed = resolve_split(folder.path().to_str().unwrap(), Path::new(""), Some(Split::Train));
        assert!(
            matches!(failed, Err(DataError::NoSplit { split: "train", ref found, .. }) if found == &["test"]),
            "{failed:?}"
        );

        let folder = folder_of(&["part-0.parquet", "part-1.parquet"]);
        let all = resolve_split(folder.path().to_str().unwrap(), Path::new(""), Some(Split::Eval)).unwrap();
        assert_eq!(all.len(), 2, "files without split names are the table");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_to_each_other_are_the_users_own() {
        let folder = folder_of(&["a.parquet"]);
        std::os::unix::fs::symlink("y.parquet", folder.path().join("x.parquet")).unwrap();
        std::os::unix::fs::symlink("x.parquet", folder.path().join("y.parquet")).unwrap();
        for source in ["x.parquet", "*.parquet", "."] {
            let refused = resolve(source, folder.path()).unwrap_err();
            assert_eq!(refused.fault(), Fault::Input, "{refused}");
            assert!(refused.hints()[0].contains("links lead from one to the other"), "{refused}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_no_search_out_of_its_folder() {
        use std::os::unix::fs::symlink;
        let folder = folder_of(&["secret/x.parquet", "data/sub/a.parquet", "real/b.parquet"]);
        let (base, data) = (folder.path(), folder.path().join("data"));
        symlink("../secret", data.join("out")).unwrap();
        symlink("sub/a.parquet", data.join("within.parquet")).unwrap();
        for spec in ["data", "data/*/*.parquet", "data/**/*.parquet", "data/*/../../secret/x.parquet"] {
            let error = resolve(spec, base).unwrap_err();
            assert!(matches!(error, DataError::Input(InputError::Outside { .. })), "{spec}: {error}");
        }
        // Named is named; and what stands before the wildcard may be a link.
        assert_eq!(resolve("data/out/x.parquet", base).unwrap().len(), 1);
        assert_eq!(resolve("data/out/*.parquet", base).unwrap().len(), 1);
        assert_eq!(names(&data, &resolve("data/*.parquet", base).unwrap()), ["within.parquet"]);
        // The snapshot of a data set in a Hugging Face cache.
        let snapshot = base.join("datasets--o--n/snapshots/abc");
        std::fs::create_dir_all(base.join("datasets--o--n/blobs")).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(base.join("datasets--o--n/blobs/1"), "").unwrap();
        symlink("../../blobs/1", snapshot.join("train.parquet")).unwrap();
        assert_eq!(resolve("*.parquet", &snapshot).unwrap().len(), 1);
        assert_eq!(resolve(".", &snapshot).unwrap().len(), 1);
    }

    #[test]
    fn what_is_not_there_or_not_supported_is_said() {
        let folder = folder_of(&["empty/notes.txt"]);
        let base = folder.path();
        assert!(matches!(resolve("none.parquet", base), Err(DataError::NotFound { .. })));
        assert!(matches!(resolve("none-*.parquet", base), Err(DataError::NoMatch { .. })));
        assert!(matches!(resolve("empty", base), Err(DataError::EmptyFolder { .. })));
        assert!(matches!(resolve("empty/notes.txt/x.parquet", base), Err(DataError::NotFound { .. })));
        assert!(matches!(resolve("a[", base), Err(DataError::Source { .. })));
        assert!(matches!(resolve("s3://bucket/x.parquet", base), Err(DataError::Source { .. })));
        let long = resolve(&"x".repeat(100_000), base).unwrap_err();
        assert!(long.to_string().len() < 400 && !long.hints().is_empty(), "{long}");
        for wrong in ["*".repeat(300), "*/".repeat(2000), "*a".repeat(2000), "x".repeat(4000), "*".repeat(5000)] {
            let refused = resolve(&wrong, base).unwrap_err();
            assert!(refused.fault() == Fault::Input && !refused.hints().is_empty(), "{refused}");
        }
        assert!(matches!(
            locate("synth:nothing", base, base, Split::Train, None, &janus_core::hub::Silent),
            Err(DataError::Source { .. })
        ));
    }
}
