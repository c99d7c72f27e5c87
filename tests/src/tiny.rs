//! A folder to run the program in, with a small base of random weights.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::program::{Done, janus, refused};

/// Files by their path below a folder; `None` is a folder.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Everything below `folder`, the program's cache there aside.
///
/// # Panics
/// Something cannot be read.
pub fn tree(folder: &Path) -> Tree {
    let mut found = Tree::new();
    collect(folder, folder, &mut found);
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Tree) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        if name == Path::new("cache") {
            continue;
        }
        if path.is_dir() {
            found.insert(name, None);
            collect(root, &path, found);
        } else if path.is_symlink() && !path.exists() {
            found.insert(name, Some(fs_err::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
        } else {
            found.insert(name, Some(fs_err::read(&path).unwrap()));
        }
    }
}

/// Writes what [`tree`] gave.
///
/// # Panics
/// Something cannot be written.
pub fn plant(tree: &Tree, into: &Path) {
    fs_err::create_dir_all(into).unwrap();
    for (name, bytes) in tree {
        match bytes {
            None => fs_err::create_dir_all(into.join(name)).unwrap(),
            Some(bytes) => fs_err::write(into.join(name), bytes).unwrap(),
        }
    }
}

/// The files of a `janus-tiny` in f32, made once by the program.
///
/// # Panics
/// The program cannot make it.
pub fn base() -> &'static Tree {
    static BASE: OnceLock<Tree> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["base", "init", "--shape", "janus-tiny", "--seed", "3", "--dtype", "f32", "--out", "base"];
        janus(folder.path(), &arguments).expect_success();
        tree(&folder.path().join("base"))
    })
}

/// A folder of its own, gone with this value, in which the program runs.
#[derive(Debug)]
pub struct Workplace(tempfile::TempDir);

impl Workplace {
    /// An empty folder.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with the `janus-tiny` in `base`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn with_base() -> Self {
        let place = Self::empty();
        plant(base(), &place.path("base"));
        place
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs_err::write(self.path(name), bytes).unwrap();
    }

    /// Reads a file.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs_err::read(self.path(name)).unwrap()
    }

    /// The lines of `metrics.jsonl` of a run.
    ///
    /// # Panics
    /// There are none, or they are not JSON.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Changes a JSON file.
    ///
    /// # Panics
    /// It is none.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut serde_json::Value)) {
        let mut value = serde_json::from_slice(&self.read(name)).unwrap();
        edit(&mut value);
        self.write(name, value.to_string());
    }

    /// Runs the program here.
    pub fn janus(&self, arguments: &[&str]) -> Done {
        janus(self.folder(), arguments)
    }

    /// Runs the program, which has to refuse the input: exit code 2, nothing on stdout, one `error:` on stderr with a
    /// `hint:` and all of `said`, no trace of a panic, and no file written, changed or removed.
    ///
    /// # Panics
    /// It does otherwise.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], said: &[&str]) -> Done {
        let before = tree(self.folder());
        let done = self.janus(arguments);
        let told = format!("`janus {}` said: {}{}", arguments.join(" "), done.stdout, done.stderr);
        refused(&done, said);
        assert_eq!(done.stdout, "", "{told}");
        for sign in ["panicked", "internal error", "BACKTRACE", "computation failed"] {
            assert!(!done.stderr.contains(sign), "{told}");
        }
        let after = tree(self.folder());
        let differing = |a: &Tree, b: &Tree| -> Vec<PathBuf> {
            a.iter().filter(|(name, bytes)| b.get(*name) != Some(*bytes)).map(|(name, _)| name.clone()).collect()
        };
        let (new, gone) = (differing(&after, &before), differing(&before, &after));
        assert!(new.is_empty() && gone.is_empty(), "written {new:?}, gone {gone:?}: {told}");
        done
    }
}
