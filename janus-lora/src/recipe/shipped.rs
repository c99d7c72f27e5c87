//! The recipes of the repository, compiled into the program: they can be listed and copied wherever it is installed.

use std::path::{Path, PathBuf};

use super::catalog::{CatalogEntry, entry_of};

/// A recipe that the program carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShippedRecipe {
    /// Its name.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
    /// The losses that its runs are expected to have, as they stand in `NAME.curve.json`.
    pub curve: Option<&'static str>,
}

macro_rules! recipe {
    ($name:literal) => {
        ShippedRecipe { curve: None, ..recipe!($name, text) }
    };
    ($name:literal with curve) => {
        ShippedRecipe {
            curve: Some(include_str!(concat!("../../../recipes/", $name, ".curve.json"))),
            ..recipe!($name, text)
        }
    };
    ($name:literal, text) => {
        ShippedRecipe { name: $name, text: include_str!(concat!("../../../recipes/", $name, ".toml")), curve: None }
    };
}

/// All of them, by name.
pub const SHIPPED: &[ShippedRecipe] = &[
    recipe!("bsdata-inspection"),
    recipe!("bsdata-understand"),
    recipe!("creative"),
    recipe!("generate"),
    recipe!("grocery-creative"),
    recipe!("grocery-joint"),
    recipe!("inspection"),
    recipe!("janus-nano"),
    recipe!("medical"),
    recipe!("quickstart" with curve),
    recipe!("understand"),
];

/// The recipe of a name.
pub fn shipped(name: &str) -> Option<&'static ShippedRecipe> {
    SHIPPED.iter().find(|recipe| recipe.name == name)
}

/// The shipped recipe that a path which does not exist is named after, as in `recipes/quickstart.toml`.
pub(super) fn named_like(path: &Path) -> Option<&'static ShippedRecipe> {
    shipped(path.file_stem()?.to_str()?)
}

/// Lists them as [`super::catalog()`] lists a folder's.
pub fn shipped_catalog(current_folder: &Path) -> Vec<CatalogEntry> {
    let entry = |recipe: &ShippedRecipe| {
        // Nothing is read from there: faults are told of a file, and inputs beside it are no concern of a list.
        let path = PathBuf::from(format!("{}.toml", recipe.name));
        entry_of(recipe.name.to_owned(), None, &path, recipe.text, current_folder)
    };
    SHIPPED.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_repository_is_carried_along_with_its_curve() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml") || name.ends_with(".curve.json"))
            .collect();
        names.sort();
        let carried = |recipe: &ShippedRecipe| {
            let curve = recipe.curve.map(|_| format!("{}.curve.json", recipe.name));
            curve.into_iter().chain([format!("{}.toml", recipe.name)])
        };
        let mut expected: Vec<String> = SHIPPED.iter().flat_map(carried).collect();
        expected.sort();
        assert_eq!(names, expected);
        for recipe in SHIPPED {
            assert_eq!(recipe.text, std::fs::read_to_string(folder.join(format!("{}.toml", recipe.name))).unwrap());
        }
        assert!(shipped_catalog(Path::new(".")).iter().all(|entry| entry.error.is_none() && entry.path.is_none()));
    }

    #[test]
    fn a_missing_file_is_known_by_its_name() {
        let name = |path: &str| named_like(Path::new(path)).map(|recipe| recipe.name);
        assert_eq!(name("recipes/quickstart.toml"), Some("quickstart"));
        assert_eq!(name("/x/understand"), Some("understand"));
        assert_eq!(name("mine.toml"), None);
    }
}
