//! Weights of a network that cannot be used.

use std::path::PathBuf;

use janus_core::checkpoint::CheckpointError;
use janus_core::{Diagnose, Fault};

/// Weights of a network that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A file that cannot be read.
    #[error("the weights of a network cannot be read")]
    Unreadable {
        /// What its reader says.
        source: CheckpointError,
    },
    /// A tensor that the network needs is not there.
    #[error("`{}` has no tensor `{tensor}`", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape than the network needs.
    #[error("`{tensor}` of `{}` has the shape {got:?}, expected {expected}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What would do.
        expected: String,
        /// Its shape.
        got: Vec<usize>,
    },
    /// Pictures that its poolings leave nothing of.
    #[error("pictures of {side} pixels are too small for LPIPS, which needs {least} with these weights")]
    TooSmall {
        /// The shorter side.
        side: usize,
        /// The least that does.
        least: usize,
    },
}

impl Diagnose for NetworkError {
    fn fault(&self) -> Fault {
        match self {
            NetworkError::Unreadable { source } => source.fault(),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let of_source = match self {
            NetworkError::Unreadable { source } => source.hints(),
            _ => Vec::new(),
        };
        let own = match self {
            NetworkError::TooSmall { .. } => vec!["leave `--lpips` out".into()],
            _ => vec![
                "`--lpips` takes the `state_dict` of LPIPS with VGG-16 or AlexNet, `--inception` that of the Inception-v3 of the \
                 Fréchet distance (`pt_inception-2015-12-05`), both as PyTorch saves them or in safetensors"
                    .into(),
            ],
        };
        of_source.into_iter().chain(own).collect()
    }
}
