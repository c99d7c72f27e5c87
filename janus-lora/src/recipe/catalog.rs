//! The recipes of a folder.

use std::path::{Path, PathBuf};

use fs_err as fs;
use toml::de::{DeTable, DeValue};

use super::error::RecipeError;
use super::{Orientation, load_text, read_text};
use crate::visible::one_line;

/// Folders below the given one that are looked into.
const MAX_DEPTH: usize = 8;

/// One recipe of a folder.
#[derive(Debug)]
pub struct CatalogEntry {
    /// Its path below the folder, without `.toml`, parts joined by `/`.
    pub name: String,
    /// The file; `None` of a recipe that the program carries.
    pub path: Option<PathBuf>,
    /// The first line of its opening comment that says something.
    pub summary: Option<String>,
    /// The tasks of its tables, each once.
    pub tasks: Vec<String>,
    /// Its base as written.
    pub base: Option<String>,
    /// Why it cannot be used, where that is so; the other fields then hold what could be read.
    pub error: Option<RecipeError>,
}

/// Lists every `*.toml` in a folder and the folders below it, hidden ones and links to folders aside, by name.
///
/// # Errors
/// The folder cannot be read. A recipe that cannot be used is listed with its error.
pub fn catalog(folder: &Path, current_folder: &Path) -> Result<Vec<CatalogEntry>, RecipeError> {
    let folder = &current_folder.join(folder);
    let mut paths = Vec::new();
    collect(folder, MAX_DEPTH, &mut paths)?;
    let mut entries: Vec<CatalogEntry> = paths.iter().map(|path| entry(folder, path, current_folder)).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), RecipeError> {
    let io_error = |source| RecipeError::Io { path: folder.to_path_buf(), source };
    for item in fs::read_dir(folder).map_err(io_error)? {
        let item = item.map_err(io_error)?;
        let path = item.path();
        if item.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Of the entry itself: a link to a folder is none, so that no loop is followed.
        let is_folder = item.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 0 {
            collect(&path, depth - 1, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

fn entry(folder: &Path, path: &Path, current_folder: &Path) -> CatalogEntry {
    let below = path.strip_prefix(folder).unwrap_or(path).with_extension("");
    let name = below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
    match read_text(path, current_folder) {
        Ok(text) => entry_of(name, Some(path.to_path_buf()), path, &text, current_folder),
        Err(error) => {
            let path = Some(path.to_path_buf());
            CatalogEntry { name, path, summary: None, tasks: Vec::new(), base: None, error: Some(error) }
        }
    }
}

/// What there is to say of a recipe's text, which messages call the file `shown`.
pub(super) fn entry_of(
    name: String,
    path: Option<PathBuf>,
    shown: &Path,
    text: &str,
    current_folder: &Path,
) -> CatalogEntry {
    let (parsed, _) = DeTable::parse_recoverable(text);
    let table = parsed.get_ref();
    let base = table
        .get("base")
        .and_then(|base| base.get_ref().get("path"))
        .and_then(|path| path.get_ref().as_str())
        .map(str::to_owned);
    let mut tasks: Vec<String> = Vec::new();
    let data = table.get("data").and_then(|data| data.get_ref().as_array());
    for task in data.into_iter().flatten().filter_map(|data| data.get_ref().get("task").map(|task| task.get_ref())) {
        if let Some(task) = DeValue::as_str(task).filter(|task| !tasks.iter().any(|other| other == task)) {
            tasks.push(task.to_owned());
        }
    }
    let error = load_text(shown, text, &[], current_folder, Orientation::Upright).err();
    CatalogEntry { name, path, summary: summary(text), tasks, base, error }
}

/// The first line of the comment that the file opens with, without `#`.
fn summary(text: &str) -> Option<String> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .find(|line| !line.is_empty())
        .map(|line| one_line(line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\n#\n# Answers about parts.\n# More.\n[base]\npath = \"tiny\"\n[[data]]\ntask = \"understand\"\ntrain = \"t\"\n\
        [[data]]\ntask = \"generate\"\ntrain = \"t\"\n[[data]]\ntask = \"generate\"\ntrain = \"u\"\n[output]\ndir = \"runs\"\n";

    #[test]
    fn every_recipe_below_a_folder_is_listed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path();
        std::fs::create_dir_all(folder.join("deep/er")).unwrap();
        std::fs::create_dir_all(folder.join(".hidden")).unwrap();
        std::fs::write(folder.join("deep/er/good.toml"), GOOD).unwrap();
        std::fs::write(folder.join("bad.toml"), "[base]\npath = \"tiny\"\nrnk = 1\n").unwrap();
        std::fs::write(folder.join("binary.toml"), b"\xff\x00").unwrap();
        std::fs::write(folder.join("notes.md"), "no recipe").unwrap();
        std::fs::write(folder.join(".hidden/x.toml"), GOOD).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder, folder.join("deep/loop")).unwrap();
        let entries = catalog(folder, folder).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["bad", "binary", "deep/er/good"]);
        assert!(matches!(&entries[0].error, Some(RecipeError::Faults { .. })));
        assert_eq!((entries[0].summary.as_deref(), entries[0].base.as_deref()), (None, Some("tiny")));
        assert!(matches!(&entries[1].error, Some(RecipeError::NotUtf8 { .. })));
        let good = &entries[2];
        assert!(good.error.is_none(), "{:?}", good.error);
        assert_eq!(good.summary.as_deref(), Some("Answers about parts."));
        assert_eq!(good.tasks, ["understand", "generate"]);
        assert_eq!(good.base.as_deref(), Some("tiny"));
        let below: Vec<String> =
            catalog(Path::new("deep"), folder).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(below, ["er/good"], "a relative folder starts from the current one");
    }

    #[test]
    fn a_folder_that_is_none_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        let absent = parent.path().join("absent");
        assert!(matches!(catalog(&absent, parent.path()), Err(RecipeError::Io { .. })));
    }
}
