//! From what an argument names to the adapter folder: a folder as it stands, the one adapter in it, or a hub's.

use std::path::{Path, PathBuf};

use fs_err as fs;
use janus_core::hub::{HubError, HubOptions, NamedFiles, Progress, RepoId};
use serde_json::Value;

use super::error::AdapterError;
use super::extras::EXTRAS_FILE;
use super::file::{WEIGHTS_FILE, read_json_text};
use super::folder::CONFIG_LIMIT_BYTES;
use super::note::{NOTE_FILE, Note};
use super::peft_config::CONFIG_FILE;

/// What a hub's repository must have, and what it may.
const FILES: NamedFiles<'_> = NamedFiles { needed: &[WEIGHTS_FILE, CONFIG_FILE], wanted: &[NOTE_FILE, EXTRAS_FILE] };

/// Where a run keeps its checkpoints, each an adapter folder.
const CHECKPOINTS: &str = "checkpoints";

/// The adapter folder that `path` means: itself; the only adapter in it, as PEFT saves one that has a name; or, where no such
/// folder exists and it is a hub id `owner/name` or `owner/name@revision`, that repository's in the Hugging Face cache.
///
/// # Errors
/// A file, several adapters in the folder, a run that is not finished, a repository without an adapter, or what the hub reports.
pub fn locate(path: &Path, progress: &dyn Progress) -> Result<PathBuf, AdapterError> {
    if path.is_dir() {
        return within(path, progress);
    }
    if path.exists() {
        return Err(AdapterError::AFile { path: path.to_path_buf() });
    }
    let Some(id) = hub_id(path) else { return Ok(path.to_path_buf()) };
    let options = HubOptions::from_env().map_err(janus_core::Error::from)?;
    if !options.offline {
        progress.note(&format!("there is no folder `{}`: looking for the adapter `{id}` on the hub", path.display()));
    }
    FILES.fetch(&id, &options, progress).map_err(|error| match error {
        HubError::MissingFile { id, file } => AdapterError::Repository { id: id.to_string(), file },
        error => AdapterError::Core(error.into()),
    })
}

/// Whether a path means a repository of a hub.
pub(crate) fn is_of_hub(path: &Path) -> bool {
    hub_id(path).is_some()
}

/// The hub id that a path is where nothing of that name is there, nor the folder it would lie in.
pub(super) fn hub_id(path: &Path) -> Option<RepoId> {
    let has_parent = path.parent().is_some_and(|parent| parent.is_dir() && !parent.as_os_str().is_empty());
    if path.exists() || has_parent {
        return None;
    }
    path.to_str()?.parse().ok()
}

/// The adapter in a folder that is there.
fn within(folder: &Path, progress: &dyn Progress) -> Result<PathBuf, AdapterError> {
    if folder.join(CONFIG_FILE).exists() {
        // A run that was over and is given more steps takes its weights away first.
        return match folder.join(WEIGHTS_FILE).exists() {
            true => Ok(folder.to_path_buf()),
            false => last_checkpoint(folder),
        };
    }
    let mut names = named(folder)?;
    match names.as_slice() {
        [] => {}
        [name] => {
            let found = folder.join(name);
            progress.note(&format!("the adapter in `{}` is `{}`", folder.display(), found.display()));
            return Ok(found);
        }
        _ => {
            by_number(&mut names);
            return Err(AdapterError::Several { folder: folder.to_path_buf(), names });
        }
    }
    last_checkpoint(folder)
}

/// Of a folder without an adapter that is whole: the run's last checkpoint is named, where it has one.
fn last_checkpoint(folder: &Path) -> Result<PathBuf, AdapterError> {
    let checkpoints = folder.join(CHECKPOINTS);
    let mut steps = if checkpoints.is_dir() { named(&checkpoints)? } else { Vec::new() };
    by_number(&mut steps);
    match steps.pop() {
        Some(last) => {
            Err(AdapterError::Unfinished { folder: folder.to_path_buf(), checkpoint: checkpoints.join(last) })
        }
        // Read as an adapter's, it says what is missing.
        None => Ok(folder.to_path_buf()),
    }
}

/// A folder as `--adapter` takes it: with the factor 1 behind it where its name ends as if in a factor.
pub fn as_argument(folder: &Path) -> PathBuf {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.rsplit_once(':').map(|(_, end)| end.parse::<f64>()) {
        Some(Ok(_)) => folder.with_file_name(format!("{name}:1")),
        _ => folder.to_path_buf(),
    }
}

/// Names of the adapter folders in a folder; none is looked for behind a link.
fn named(folder: &Path) -> Result<Vec<String>, AdapterError> {
    let failed = |source| AdapterError::Io { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder
            && entry.path().join(CONFIG_FILE).is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `step-9` before `step-10`.
fn by_number(names: &mut [String]) {
    let number = |name: &str| name.rsplit_once('-').and_then(|(_, digits)| digits.parse::<u64>().ok());
    names.sort_by(|a, b| number(a).cmp(&number(b)).then_with(|| a.cmp(b)));
}

/// What an adapter folder calls its base: in `janus_adapter.json`, then in `adapter_config.json`.
///
/// # Errors
/// No adapter folder, or files that are broken, too long, or lead elsewhere.
pub fn base_names(folder: &Path) -> Result<Vec<String>, AdapterError> {
    let in_folder = |source| AdapterError::Folder { folder: folder.to_path_buf(), source: Box::new(source) };
    if !folder.is_dir() {
        return Err(in_folder(AdapterError::NotAFolder { path: folder.to_path_buf() }));
    }
    let text = read_json_text(folder.into(), CONFIG_FILE, CONFIG_LIMIT_BYTES).map_err(in_folder)?;
    let text = text.ok_or_else(|| in_folder(AdapterError::NoFile { file: CONFIG_FILE }))?;
    let json: Value =
        serde_json::from_str(&text).map_err(|source| in_folder(AdapterError::Json { file: CONFIG_FILE, source }))?;
    let mut names = Vec::new();
    names.extend(Note::read(folder).map_err(in_folder)?.and_then(|note| note.base?.name));
    names.extend(json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned));
    names.retain(|name| !name.trim().is_empty());
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use janus_core::Diagnose;
    use janus_core::hub::Silent;

    use super::*;

    /// A folder with adapters at these places.
    fn place(adapters: &[&str]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for adapter in adapters {
            let folder = place.path().join(adapter);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(CONFIG_FILE), "{\"base_model_name_or_path\": \"janus-nano\"}").unwrap();
            std::fs::write(folder.join(WEIGHTS_FILE), "").unwrap();
        }
        place
    }

    #[test]
    fn an_adapter_is_found_one_level_too_high() {
        let one = place(&["style"]);
        assert_eq!(locate(one.path(), &Silent).unwrap(), one.path().join("style"));
        // One that lies there itself comes first, whatever else there is.
        let own = place(&["", "style", "checkpoints/step-2"]);
        assert_eq!(locate(own.path(), &Silent).unwrap(), own.path());
        assert_eq!(
            locate(&own.path().join("checkpoints/step-2"), &Silent).unwrap(),
            own.path().join("checkpoints/step-2")
        );
        assert_eq!(locate(&own.path().join("checkpoints"), &Silent).unwrap(), own.path().join("checkpoints/step-2"));
    }

    #[test]
    fn a_file_is_no_adapter_and_leads_to_its_folder_or_to_one() {
        let place = place(&["run"]);
        let of = |name: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, "").unwrap();
            let error = locate(&path, &Silent).unwrap_err();
            assert!(error.to_string().contains(&format!("{name}` is a file")), "{error}");
            error.hints().join(" ")
        };
        let folder = format!("`--adapter {}`", place.path().join("run").display());
        assert!(of("run/adapter_model.safetensors").contains(&folder));
        assert!(of("run/adapter_config.json").contains(&folder));
        assert!(of("lora.safetensors").contains("`adapter_model.safetensors`"));
        for (name, said) in [
            ("lora.zip", "unpack it"),
            ("lora.tar.gz", "unpack it"),
            ("lora.TGZ", "unpack it"),
            ("adapter_model.bin", "safe_serialization"),
            ("lora.pt", "safe_serialization"),
            ("notes.txt", "a folder with `adapter_config.json`"),
        ] {
            assert!(of(name).contains(said), "{name}");
        }
        // A factor behind it hides nothing.
        let file = place.path().join("lora.zip");
        let error = super::super::parse_argument(&format!("{}:0.5", file.display())).unwrap_err();
        assert!(error.to_string().contains("lora.zip` is a file"), "{error}");
    }

    #[test]
    fn of_several_none_is_guessed() {
        let several = place(&["style", "product", "checkpoint-10", "checkpoint-9"]);
        let error = locate(several.path(), &Silent).unwrap_err();
        let (text, hint) = (error.to_string(), error.hints().join(" "));
        assert!(text.contains("`product`, `style`, `checkpoint-9`, `checkpoint-10`"), "{text}");
        assert!(hint.contains(&format!("{}/checkpoint-10", several.path().display())), "{hint}");
        let run = place(&["checkpoints/step-9", "checkpoints/step-10"]);
        let error = locate(run.path(), &Silent).unwrap_err();
        assert!(error.hints()[0].contains("checkpoints/step-10`"), "{:?}", error.hints());
        assert!(matches!(error, AdapterError::Unfinished { .. }), "{error}");
        // A run that was over and goes on: its weights are taken away first.
        let longer = place(&["", "checkpoints/step-3"]);
        std::fs::remove_file(longer.path().join(WEIGHTS_FILE)).unwrap();
        let error = locate(longer.path(), &Silent).unwrap_err();
        assert!(error.hints()[0].contains("checkpoints/step-3`"), "{:?}", error.hints());
        // What is no run lacks a file.
        std::fs::remove_dir_all(longer.path().join("checkpoints")).unwrap();
        assert_eq!(locate(longer.path(), &Silent).unwrap(), longer.path());
    }

    #[test]
    fn a_name_that_ends_as_a_factor_is_followed_by_one() {
        for (folder, argument) in [
            ("runs/b:2", "runs/b:2:1"),
            ("runs/2026-01-05T12:30", "runs/2026-01-05T12:30:1"),
            ("r:0.5", "r:0.5:1"),
            ("runs/b", "runs/b"),
            ("a:2/b", "a:2/b"),
            ("b:two", "b:two"),
        ] {
            assert_eq!(as_argument(Path::new(folder)), Path::new(argument));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_no_adapter_of_the_folder() {
        let (place, elsewhere) = (tempfile::tempdir().unwrap(), place(&["style"]));
        std::os::unix::fs::symlink(elsewhere.path().join("style"), place.path().join("style")).unwrap();
        assert_eq!(locate(place.path(), &Silent).unwrap(), place.path());
    }

    #[test]
    fn what_lies_in_a_folder_that_exists_is_no_hub_id() {
        let place = tempfile::tempdir().unwrap();
        assert!(hub_id(&place.path().join("absent")).is_none());
        assert!(hub_id(Path::new("src/absent")).is_none(), "a misspelt folder of this crate");
        for text in ["absent", "a/b/c", "./a", "/a/b"] {
            assert!(hub_id(Path::new(text)).is_none(), "{text}");
        }
        assert_eq!(hub_id(Path::new("owner/name@v2")).unwrap().revision(), "v2");
    }

    #[test]
    fn both_files_may_name_the_base() {
        let place = place(&[""]);
        assert_eq!(base_names(place.path()).unwrap(), ["janus-nano"]);
        std::fs::write(
            place.path().join(NOTE_FILE),
            "{\"version\": 1, \"base\": {\"name\": \"other\", \"fingerprint\": \"ab\"}}",
        )
        .unwrap();
        assert_eq!(base_names(place.path()).unwrap(), ["other", "janus-nano"]);
        std::fs::write(place.path().join(CONFIG_FILE), "{").unwrap();
        assert!(base_names(place.path()).is_err());
        assert!(base_names(&place.path().join("absent")).is_err());
    }
}
