//! The home folder at the beginning of a path: `~` and `$HOME` mean the same wherever a path comes in, on the command line,
//! in a file or in a variable of the environment. Shells replace them in some of these places only.

use std::path::{Component, Path, PathBuf};

use crate::error::Diagnose;

/// Characters of a path's first part that a message shows.
const SHOWN_CHARS: usize = 80;

/// A path whose beginning stands for a folder that is not known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// The home folder is asked for, and there is none.
    #[error("`{begins}` stands for the home folder, and the environment variable HOME is not set")]
    Unset {
        /// How the path begins.
        begins: String,
    },
    /// `~name`, the home folder of somebody else in a shell.
    #[error("`{begins}` is no path here: only `~` stands for a home folder, the one of who runs the program")]
    OtherUser {
        /// How the path begins.
        begins: String,
    },
    /// A variable that is not expanded.
    #[error("`{begins}` is no path here: of the environment's variables only `$HOME` is put into paths")]
    Variable {
        /// How the path begins.
        begins: String,
    },
}

impl Diagnose for HomeError {
    fn hints(&self) -> Vec<String> {
        let begins = match self {
            HomeError::Unset { .. } => return vec!["set HOME, or write the whole path".into()],
            HomeError::OtherUser { begins } | HomeError::Variable { begins } => begins,
        };
        vec![format!("write the whole path; a file that is really called so is `./{begins}`")]
    }
}

/// The path with its home folder in the place of a leading `~`, `$HOME` or `${HOME}`; any other path as it is.
///
/// # Errors
/// A first part `~name`, `$NAME` or `${NAME}`, or no home folder where one is meant.
pub fn expand(path: &Path) -> Result<PathBuf, HomeError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    expand_with(path, variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from))
}

/// As [`expand`], of a text.
///
/// # Errors
/// As [`expand`], and [`HomeError::Unset`] where the home folder's path is no UTF-8.
pub fn expand_text(text: &str) -> Result<String, HomeError> {
    // What names no path, such as a hub's id, must not be taken apart and put together again.
    match text.starts_with(['~', '$']) {
        false => Ok(text.to_owned()),
        true => {
            expand(Path::new(text))?.into_os_string().into_string().map_err(|_| HomeError::Unset { begins: cut(text) })
        }
    }
}

/// As [`expand`], for a user whose home folder is `home`.
///
/// # Errors
/// As [`expand`].
pub fn expand_with(path: &Path, home: Option<PathBuf>) -> Result<PathBuf, HomeError> {
    let mut parts = path.components();
    let Some(Component::Normal(first)) = parts.next() else { return Ok(path.to_path_buf()) };
    let Some(first) = first.to_str() else { return Ok(path.to_path_buf()) };
    match first {
        "~" | "$HOME" | "${HOME}" => {
            let home = home.ok_or_else(|| HomeError::Unset { begins: first.into() })?;
            let rest = parts.as_path();
            Ok(if rest.as_os_str().is_empty() { home } else { home.join(rest) })
        }
        _ if first.starts_with('~') => Err(HomeError::OtherUser { begins: cut(first) }),
        _ if is_variable(first) => Err(HomeError::Variable { begins: cut(first) }),
        _ => Ok(path.to_path_buf()),
    }
}

/// Whether a shell would take all of this for the value of a variable.
fn is_variable(part: &str) -> bool {
    let Some(name) = part.strip_prefix('$') else { return false };
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    let mut letters = name.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<PathBuf, HomeError> {
        expand_with(Path::new(text), Some("/home/me".into()))
    }

    #[test]
    fn the_home_folder_has_three_names_at_the_beginning() {
        for start in ["~", "$HOME", "${HOME}"] {
            assert_eq!(expanded(start).unwrap(), Path::new("/home/me"));
            assert_eq!(expanded(&format!("{start}/")).unwrap(), Path::new("/home/me"));
            assert_eq!(
                expanded(&format!("{start}//runs/a-*.parquet")).unwrap(),
                Path::new("/home/me/runs/a-*.parquet")
            );
            let unset = expand_with(Path::new(&format!("{start}/x")), None).unwrap_err();
            assert_eq!(unset, HomeError::Unset { begins: start.into() });
        }
    }

    #[test]
    fn anywhere_else_they_are_names() {
        for text in [
            "./~/x",
            "/~/x",
            "a/~",
            "a/$HOME",
            "../$HOME/x",
            "",
            ".",
            "a~",
            "a$HOME",
            "hf://x",
            "$",
            "$5",
            "${}",
            "$a.b",
        ] {
            assert_eq!(expanded(text).unwrap(), Path::new(text));
        }
        assert_eq!(expand_text("owner//name/").unwrap(), "owner//name/");
    }

    #[test]
    fn other_homes_and_variables_are_refused_by_name() {
        for text in ["~bob", "~bob/x", "~+/x", "~~"] {
            let error = expanded(text).unwrap_err();
            let begins = text.split('/').next().unwrap();
            assert_eq!(error, HomeError::OtherUser { begins: begins.into() });
            assert!(error.to_string().contains(begins) && error.hints()[0].contains(&format!("`./{begins}`")));
        }
        for text in ["$WORK/x", "${DATA_2}", "$HOMES/x", "$_"] {
            assert!(matches!(expanded(text), Err(HomeError::Variable { .. })), "{text}");
        }
        let long = expanded(&format!("~{}", "é".repeat(500))).unwrap_err().to_string();
        assert!(long.len() < 400, "{long}");
    }
}
