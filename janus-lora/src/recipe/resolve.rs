//! From what a recipe calls its inputs and outputs to what they are, wherever the program is started from.

use std::io;
use std::path::{Path, PathBuf};

use janus_core::home::{self, HomeError};

use super::fault::Problem;

/// Kinds of data source that are no paths.
const SOURCE_SCHEMES: &[&str] = &["hf://", "synth:"];

/// A fault that still needs the name of its key.
pub(super) type KeyedProblem = Box<dyn FnOnce(&str) -> Problem>;

/// The folders that relative paths start from, both absolute.
#[derive(Debug)]
pub(crate) struct Folders {
    recipe: PathBuf,
    current: PathBuf,
}

impl Folders {
    /// The folders of a recipe file and of the person who uses it.
    pub(crate) fn new(recipe: &Path, current: &Path) -> io::Result<Self> {
        let current = absolute(current)?;
        let recipe = current.join(recipe);
        let folder = recipe.parent().unwrap_or(&current).to_path_buf();
        Ok(Self { recipe: folder, current })
    }

    fn of(&self, is_override: bool) -> &Path {
        if is_override { &self.current } else { &self.recipe }
    }

    /// `base.path`: the folder where one exists or where the text can be nothing else, otherwise the text as given, a
    /// built-in name or a hub id.
    pub(crate) fn base(&self, text: &str, is_override: bool) -> Result<String, KeyedProblem> {
        let text = &at_home(text)?;
        let path = joined(self.of(is_override), text);
        let explicit =
            ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || [".", ".."].contains(&text.as_str());
        match explicit || path.exists() {
            true => utf8(path),
            false => Ok(text.clone()),
        }
    }

    /// A data source: a path, a glob or a folder becomes absolute, any other source stays.
    pub(crate) fn source(&self, text: &str, is_override: bool) -> Result<String, KeyedProblem> {
        if SOURCE_SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
            return Ok(text.to_owned());
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let scheme = super::fault::quotable(scheme);
            return Err(Box::new(move |key| Problem::UnknownScheme { key: key.into(), scheme }));
        }
        let folder = self.of(is_override);
        let text = &at_home(text)?;
        let path = joined(folder, text);
        if !text.contains(['*', '?', '[']) || Path::new(text).is_absolute() || path.exists() {
            return utf8(path);
        }
        // A glob: what looks like one in the folder's own name is none.
        let folder = glob::Pattern::escape(&utf8(folder.to_path_buf())?);
        utf8(joined(Path::new(&folder), text))
    }

    /// A folder of inputs, made absolute.
    pub(crate) fn folder(&self, text: &str, is_override: bool) -> Result<String, KeyedProblem> {
        utf8(joined(self.of(is_override), &at_home(text)?))
    }

    /// `output.dir`, always from the current folder.
    pub(crate) fn output(&self, dir: &Path) -> Result<PathBuf, KeyedProblem> {
        let dir = home::expand(dir).map_err(unknown_home)?;
        let path: PathBuf = self.current.join(dir).components().collect();
        utf8(path).map(PathBuf::from)
    }
}

/// A text with the home folder in the place of a leading `~` or `$HOME`.
fn at_home(text: &str) -> Result<String, KeyedProblem> {
    home::expand_text(text).map_err(unknown_home)
}

fn unknown_home(error: HomeError) -> KeyedProblem {
    Box::new(move |key| Problem::Home { key: key.into(), error })
}

/// `path` from the process's own current folder.
pub(crate) fn absolute(path: &Path) -> io::Result<PathBuf> {
    match path.as_os_str().is_empty() {
        true => std::env::current_dir(),
        false => std::path::absolute(path),
    }
}

/// `folder/text` without `.` parts; `..` stays, for links may lead anywhere.
fn joined(folder: &Path, text: &str) -> PathBuf {
    folder.join(text).components().collect()
}

fn utf8(path: PathBuf) -> Result<String, KeyedProblem> {
    path.into_os_string()
        .into_string()
        .map_err(|_| Box::new(|key: &str| Problem::FolderNotUtf8 { key: key.into() }) as KeyedProblem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(recipe: &Path, current: &Path) -> Folders {
        Folders::new(recipe, current).unwrap()
    }

    fn source(folders: &Folders, text: &str, is_override: bool) -> String {
        folders.source(text, is_override).unwrap_or_else(|problem| panic!("{}", problem("train")))
    }

    #[test]
    fn inputs_start_from_the_recipe_or_the_current_folder() {
        let folders = folders(Path::new("recipes/x.toml"), Path::new("/here"));
        assert_eq!(source(&folders, "data/t-*.parquet", false), "/here/recipes/data/t-*.parquet");
        assert_eq!(source(&folders, "./t.parquet", true), "/here/t.parquet");
        assert_eq!(source(&folders, "../t.parquet", false), "/here/recipes/../t.parquet");
        assert_eq!(source(&folders, "/abs/t.parquet", false), "/abs/t.parquet");
        assert_eq!(folders.output(Path::new("runs/./x")).ok(), Some(PathBuf::from("/here/runs/x")));
    }

    #[test]
    fn sources_that_are_no_paths_stay() {
        let folders = folders(Path::new("/recipes/x.toml"), Path::new("/here"));
        for text in ["hf://datasets/owner/name/train.parquet", "synth:inspection?rows=512&seed=1"] {
            assert_eq!(source(&folders, text, false), text);
            assert_eq!(source(&folders, text, true), text);
        }
        let Err(problem) = folders.source("s3://bucket/x.parquet", false) else { panic!("an unknown kind") };
        assert_eq!(problem("data.0.train"), Problem::UnknownScheme { key: "data.0.train".into(), scheme: "s3".into() });
    }

    #[test]
    fn a_folder_that_looks_like_a_glob_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("[a]");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("t-1.parquet"), b"x").unwrap();
        std::fs::write(folder.join("t-[2].parquet"), b"x").unwrap();
        let folders = folders(&folder.join("x.toml"), parent.path());
        let found: Vec<PathBuf> =
            glob::glob(&source(&folders, "t-*.parquet", false)).unwrap().map(Result::unwrap).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(Path::new(&source(&folders, "t-[2].parquet", false)), folder.join("t-[2].parquet"));
    }

    #[test]
    fn a_base_is_a_folder_where_one_exists() {
        let parent = tempfile::tempdir().unwrap();
        let recipes = parent.path().join("recipes");
        std::fs::create_dir_all(recipes.join("base")).unwrap();
        std::fs::create_dir_all(parent.path().join("mine")).unwrap();
        let folders = folders(Path::new("recipes/x.toml"), parent.path());
        let base = |text, is_override| folders.base(text, is_override).unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(Path::new(&base("base", false)), recipes.join("base"));
        assert_eq!(base("base", true), "base");
        assert_eq!(Path::new(&base("mine", true)), parent.path().join("mine"));
        assert_eq!(base("deepseek-ai/Janus-Pro-1B", false), "deepseek-ai/Janus-Pro-1B");
        assert_eq!(Path::new(&base("../absent", false)), recipes.join("../absent"), "it can be nothing but a folder");
    }

    #[test]
    fn the_home_folder_means_the_same_under_every_key() {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap());
        let text = |path: &str| home.join(path).to_str().unwrap().to_owned();
        let folders = folders(Path::new("recipes/x.toml"), Path::new("/here"));
        for start in ["~", "$HOME", "${HOME}"] {
            for is_override in [false, true] {
                let of = |rest: &str| format!("{start}/{rest}");
                assert_eq!(folders.base(&of("no-base"), is_override).ok(), Some(text("no-base")));
                assert_eq!(source(&folders, &of("d/t-*.parquet"), is_override), text("d/t-*.parquet"));
                assert_eq!(folders.folder(&of("pictures"), is_override).ok(), Some(text("pictures")));
                assert_eq!(folders.output(Path::new(&of("runs/x"))).ok(), Some(home.join("runs/x")));
                assert_eq!(source(&folders, start, is_override), home.to_str().unwrap());
            }
        }
        assert_eq!(folders.output(Path::new("./~/x")).ok(), Some(PathBuf::from("/here/~/x")), "said on purpose");
        for named in ["~bob/x", "$WORK/x", "${WORK}"] {
            let problems = [
                folders.base(named, false).map(|_| ()),
                folders.source(named, true).map(|_| ()),
                folders.folder(named, false).map(|_| ()),
                folders.output(Path::new(named)).map(|_| ()),
            ];
            for problem in problems {
                let Err(problem) = problem else { panic!("{named}") };
                let problem = problem("output.dir");
                let begins = named.split('/').next().unwrap();
                assert!(problem.to_string().contains(&format!("`output.dir`: `{begins}`")), "{problem}");
                assert!(problem.hint().unwrap().contains(&format!("`./{begins}`")), "{:?}", problem.hint());
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let current = Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
        let folders = folders(Path::new("x.toml"), current);
        assert!(folders.source("t.parquet", false).is_err());
        assert!(folders.output(Path::new("runs")).is_err());
        assert!(folders.source("/abs/t.parquet", false).is_ok());
    }
}
