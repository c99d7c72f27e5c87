//! Where this process may write, settled before it reads anything of a stranger's.
//!
//! On Linux a Landlock ruleset lets it make, change and remove files beside its outputs, in the caches and in the temporary
//! folder, and nowhere else, whatever a damaged file talks it into. Reading stays free, since rows name pictures anywhere and a
//! hub's cache is full of links, and so does the network, from which tables come. A kernel without Landlock refuses nothing.

use std::path::{Path, PathBuf};

use janus_core::hub::HubOptions;

use crate::base::cache_folder;

/// What a command means to write, as far as its arguments say.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Files and folders to be made.
    pub(super) outputs: Vec<PathBuf>,
    /// Whether it computes on a device whose driver opens files of its own.
    pub(super) on_device: bool,
}

impl Writes {
    /// Nothing beside the caches.
    pub(super) fn nothing() -> Self {
        Self::default()
    }

    /// This file or folder.
    pub(super) fn output(path: &Path) -> Self {
        Self { outputs: vec![path.to_path_buf()], on_device: false }
    }

    /// The folders below which files may be made: where the outputs lie, or where folders to be made would begin.
    fn folders(&self) -> Vec<PathBuf> {
        let beside = self.outputs.iter().map(|path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        });
        // An output that is there, such as the folder of a run that is gone on with, may be a link to somewhere else.
        let there = self.outputs.iter().filter(|path| path.exists()).cloned();
        let caches = cache_folder().ok().into_iter().chain(HubOptions::from_env().ok().map(|hub| hub.cache_dir));
        let mut folders: Vec<PathBuf> = beside
            .chain(there)
            .chain(caches)
            .chain([std::env::temp_dir()])
            .filter_map(|path| existing(&path))
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

/// The path, or what exists of it.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|path| path.exists()).map(Path::to_path_buf)
}

/// Enters the sandbox, for this thread and all that it will start; tells what came of it.
pub(super) fn enter(writes: &Writes) -> String {
    if writes.on_device {
        return "no sandbox: the driver of a GPU writes files of its own".into();
    }
    let folders = writes.folders();
    match restrict(&folders) {
        Ok(()) => {
            let names: Vec<String> = folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
            format!("sandbox: files are written below {} alone", names.join(", "))
        }
        Err(reason) => format!("no sandbox: {reason}"),
    }
}

#[cfg(target_os = "linux")]
fn restrict(folders: &[PathBuf]) -> Result<(), String> {
    use landlock::{
        ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
        RulesetStatus,
    };

    let failed = |e: landlock::RulesetError| e.to_string();
    let rights = AccessFs::from_write(ABI::V3);
    // The first version refuses to rename a file into another folder, even where both may be written; the third, which
    // knows cutting a file short, may be lacking.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(ABI::V2))
        .map_err(|_| "this kernel has no Landlock, or its first version".to_owned())?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(rights)
        .and_then(Ruleset::create)
        .map_err(failed)?;
    let devices = ["/dev/null", "/dev/tty"].map(PathBuf::from);
    for path in folders.iter().chain(&devices) {
        // What cannot be opened cannot be written either.
        let Ok(opened) = PathFd::new(path) else { continue };
        let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(ABI::V3) };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, rights)).map_err(failed)?;
    }
    match ruleset.restrict_self().map_err(failed)?.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock".into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn restrict(_folders: &[PathBuf]) -> Result<(), String> {
    Err("only Linux has Landlock".into())
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;

    /// On a thread of its own, which ends within what it has entered.
    #[test]
    fn files_are_made_beside_outputs_and_nowhere_else() {
        let (own, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, foreign) = (own.path().to_path_buf(), foreign.path().to_path_buf());
        fs::write(foreign.join("kept"), "theirs").unwrap();
        fs::create_dir(own.join("a")).unwrap();
        std::os::unix::fs::symlink(&foreign, own.join("way out")).unwrap();
        let work = move || {
            if let Err(reason) = restrict(std::slice::from_ref(&own)) {
                assert!(reason.contains("Landlock"), "{reason}");
                return;
            }
            let denied = |done: std::io::Result<()>| assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied);
            fs::write(own.join("a/new"), "ours").unwrap();
            fs::rename(own.join("a/new"), own.join("moved")).unwrap();
            fs::remove_file(own.join("moved")).unwrap();
            for folder in [foreign.clone(), own.join("way out")] {
                assert_eq!(fs::read_to_string(folder.join("kept")).unwrap(), "theirs");
                denied(fs::write(folder.join("new"), "ours"));
                denied(fs::write(folder.join("kept"), "ours"));
                denied(fs::remove_file(folder.join("kept")));
                denied(fs::create_dir(folder.join("folder")));
            }
            let within = std::thread::spawn(move || fs::write(foreign.join("new"), "ours"));
            denied(within.join().unwrap());
        };
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn what_is_not_there_yet_begins_in_what_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("runs")).unwrap();
        let folders = |out: &str| Writes::output(&folder.path().join(out)).folders();
        assert!(folders("runs/new/er").contains(&folder.path().join("runs")));
        assert!(folders("runs").contains(&folder.path().to_path_buf()), "a run folder is replaced from beside it");
        let nothing = Writes::nothing().folders();
        assert!(!nothing.contains(&folder.path().to_path_buf()), "{nothing:?}");
    }
}
