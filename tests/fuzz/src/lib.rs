//! What the fuzz targets share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod parquet;
pub mod thrift;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Once;

use candle_core::DType;
use janus_core::checkpoint::{Checkpoint, init_checkpoint};
use janus_core::config::{JanusConfig, Layout};
use tempfile::TempDir;

/// Longest file that a header is completed to; what lies behind the header is a hole, which takes no room.
const MAX_GROWN_BYTES: u64 = 64 << 20;

/// A folder that goes with the process, in memory where the system has such.
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty folder. The first one also sets how panics end: see [`settle_panics`].
    pub fn new() -> Self {
        settle_panics();
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(made.unwrap())
    }

    /// A folder with a `janus-tiny` of random weights.
    pub fn with_base() -> Self {
        let scratch = Self::new();
        init_checkpoint(&tiny(), 1, DType::BF16, scratch.folder(), Layout::Native, &mut |_, _| {}).unwrap();
        scratch
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The shapes that all targets use.
pub fn tiny() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

/// libFuzzer's Rust binding aborts at every panic, also at those that are caught: the readers catch what other people's
/// decoders throw, and that is no finding. A panic that nobody catches still ends the process, behind the target.
pub fn settle_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(std::panic::take_hook()));
}

/// The input in parts, wherever a line `%%` stands; as many as asked for, empty ones at the end.
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    const BETWEEN: &[u8] = b"\n%%\n";
    let mut rest = data;
    std::array::from_fn(|number| {
        let cut = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        match cut {
            Some(at) if number + 1 < N => {
                let part = &rest[..at];
                rest = &rest[at + BETWEEN.len()..];
                part
            }
            _ => std::mem::take(&mut rest),
        }
    })
}

/// Writes a safetensors file. What begins with `{` is a header: its length is put in front, and a hole as long as the
/// header asks for behind it, so that mutations reach what comes after those checks. Anything else is the file as it is.
pub fn write_safetensors(path: &Path, data: &[u8]) {
    if data.first() != Some(&b'{') {
        fs::write(path, data).unwrap();
        return;
    }
    let bytes = [&(data.len() as u64).to_le_bytes()[..], data].concat();
    fs::write(path, &bytes).unwrap();
    let Ok(serde_json::Value::Object(header)) = serde_json::from_slice(data) else { return };
    let ends = header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    let end = ends.max().unwrap_or(0);
    if end <= MAX_GROWN_BYTES {
        File::options().write(true).open(path).unwrap().set_len(bytes.len() as u64 + end).unwrap();
    }
}

/// What must hold of every checkpoint that opens: its files lie in the folder, and its tensors can be read in their shapes.
pub fn check_checkpoint(checkpoint: &Checkpoint, folder: &Path) {
    let folder = folder.canonicalize().unwrap();
    for tensor in checkpoint.tensors() {
        let file = tensor.file.canonicalize().unwrap();
        assert_eq!(file.parent(), Some(folder.as_path()), "`{}` is read from outside", tensor.name);
        let elements: u64 = tensor.shape.iter().map(|side| *side as u64).product();
        assert_eq!(tensor.bytes, elements * tensor.dtype.size_in_bytes() as u64, "{}", tensor.name);
        if tensor.bytes <= 1 << 12 {
            let values = checkpoint.read(&tensor.name, DType::F32).unwrap();
            assert_eq!(values.dims(), tensor.shape, "{}", tensor.name);
        }
    }
}
