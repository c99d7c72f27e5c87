//! What keeps a recipe from being read.

use std::fmt;
use std::io;
use std::path::PathBuf;

use janus_core::input::fault_of_reading;
use janus_core::{Diagnose, Fault};

use super::fault::RecipeFault;
use super::shipped::named_like;

/// Hints shown for one recipe; more would hide the faults.
const MAX_HINTS: usize = 6;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The recipe is wrong, in as many ways as are listed.
    #[error("{}", FaultList { path, faults })]
    Faults {
        /// The file.
        path: PathBuf,
        /// Every fault found, in the order of the text.
        faults: Vec<RecipeFault>,
    },
    /// The file is no text.
    #[error("recipe `{}` is not UTF-8: line {line} has a byte 0x{byte:02x} that cannot stand there", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The first byte that is not UTF-8.
        byte: u8,
    },
    /// The file is text in UTF-16, as some editors and shells of Windows write it.
    #[error("recipe `{}` is UTF-16, expected UTF-8", path.display())]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// The file is too large to be a recipe.
    #[error("recipe `{}` has more than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Diagnose for RecipeError {
    fn fault(&self) -> Fault {
        match self {
            RecipeError::Io { source, .. } => fault_of_reading(source),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            RecipeError::Faults { faults, .. } => {
                let mut hints: Vec<String> = Vec::new();
                for hint in faults.iter().filter_map(|fault| fault.problem.hint()) {
                    if hints.len() < MAX_HINTS && !hints.contains(&hint) {
                        hints.push(hint);
                    }
                }
                hints
            }
            RecipeError::NotUtf8 { .. } | RecipeError::Utf16 { .. } => vec!["save the recipe as UTF-8".into()],
            RecipeError::TooLarge { .. } => vec!["give a recipe file; data goes into the files that it names".into()],
            RecipeError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => match named_like(path) {
                Some(recipe) => {
                    let name = recipe.name;
                    vec![format!("`janus recipe copy {name} {name}.toml` writes the recipe of that name")]
                }
                None => vec!["`janus recipe list` shows the recipes that there are".into()],
            },
            RecipeError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                vec!["save the recipe as a file and give its path".into()]
            }
            RecipeError::Io { source, .. } if source.kind() == io::ErrorKind::IsADirectory => {
                vec!["give a recipe file, or `DIR/recipe.toml` for that of a run's folder".into()]
            }
            RecipeError::Io { .. } if self.fault() == Fault::Input => {
                vec!["see whether it is there and this user may read it, such as with `ls -l`".into()]
            }
            RecipeError::Io { .. } => Vec::new(),
        }
    }
}

struct FaultList<'a> {
    path: &'a PathBuf,
    faults: &'a [RecipeFault],
}

impl fmt::Display for FaultList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.faults.len() == 1 { "fault" } else { "faults" };
        write!(f, "recipe `{}` has {} {noun}:", self.path.display(), self.faults.len())?;
        for fault in self.faults {
            match fault.location {
                Some(_) => write!(f, "\n\n{fault}")?,
                None => write!(f, "\n\n{}\n {fault}", self.path.display())?,
            }
        }
        Ok(())
    }
}
