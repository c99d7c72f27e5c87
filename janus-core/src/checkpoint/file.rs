//! A weights file that stays open and is read by position, from several threads at once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::error::{CheckpointError, TorchProblem};
use crate::input::{self, Opened};

/// A run of bytes of which the file tells the CRC-32.
#[derive(Debug)]
pub(crate) struct Sum {
    /// What the file calls it.
    pub(crate) entry: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
    /// Whether the bytes have it, once that was looked at.
    pub(crate) holds: OnceLock<bool>,
}

/// Bytes that are summed up at once.
const SUMMED_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// When it was last written to, as far as the system tells.
    modified: Option<SystemTime>,
    /// Runs with sums, by offset; set once, by the one who reads the file's own list.
    sums: OnceLock<Vec<Sum>>,
    /// Where the system has no read by position, the file's own position must not be shared.
    #[cfg(not(unix))]
    position: std::sync::Mutex<()>,
}

impl WeightsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io_error = |source| CheckpointError::Io { path: path.to_path_buf(), source };
        Self::of(Opened { path: path.to_path_buf(), file: input::open(path).map_err(io_error)? })
    }

    /// The file of a folder.
    pub(crate) fn of(Opened { path, file }: Opened) -> Result<Self, CheckpointError> {
        let metadata = file.metadata().map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
        Ok(Self {
            path,
            file,
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            sums: OnceLock::new(),
            #[cfg(not(unix))]
            position: std::sync::Mutex::new(()),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the open file has been written to since it was opened.
    pub(crate) fn is_rewritten(&self) -> bool {
        self.file.metadata().is_ok_and(|now| now.len() != self.bytes || now.modified().ok() != self.modified)
    }

    /// Hashes what the system says of the file: any writing to it changes some of that. Returns when the last was.
    pub(crate) fn identify(&self, hasher: &mut Sha256) -> io::Result<SystemTime> {
        let path = self.path.canonicalize()?;
        let path = path.as_os_str().as_encoded_bytes();
        hasher.update((path.len() as u64).to_le_bytes());
        hasher.update(path);
        let metadata = self.file.metadata()?;
        let modified = metadata.modified()?;
        let since = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        hasher.update(metadata.len().to_le_bytes());
        hasher.update(since(modified).to_le_bytes());
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            // The time of change as well: nobody can set it back, as one can the time of writing.
            for number in [metadata.dev(), metadata.ino()] {
                hasher.update(number.to_le_bytes());
            }
            for number in [metadata.ctime(), metadata.ctime_nsec()] {
                hasher.update(number.to_le_bytes());
            }
        }
        Ok(modified)
    }

    /// The open file, for readers that keep a position of their own. Not while others read.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// From now on bytes of these runs are read only where the sums hold.
    pub(crate) fn set_sums(&self, mut sums: Vec<Sum>) {
        sums.sort_by_key(|sum| sum.offset);
        let _ = self.sums.set(sums);
    }

    /// Looks, once, whether the run that has the byte at `offset` has its sum; a file without sums, and other bytes, pass.
    ///
    /// # Errors
    /// [`TorchProblem::Sum`], or the system's.
    pub(crate) fn require_sum(&self, offset: u64) -> Result<(), CheckpointError> {
        let sums = self.sums.get().map_or(&[][..], Vec::as_slice);
        let number = sums.partition_point(|sum| sum.offset <= offset);
        let Some(sum) = sums[..number].last().filter(|sum| offset - sum.offset < sum.bytes) else { return Ok(()) };
        let holds = match sum.holds.get() {
            Some(holds) => *holds,
            None => {
                let holds = self.sum_of(sum)? == sum.crc32;
                *sum.holds.get_or_init(|| holds)
            }
        };
        let problem = TorchProblem::Sum { entry: sum.entry.clone() };
        if holds { Ok(()) } else { Err(CheckpointError::Torch { file: self.path.clone(), problem }) }
    }

    fn sum_of(&self, sum: &Sum) -> Result<u32, CheckpointError> {
        let mut buffer = vec![0; SUMMED_BYTES.min(sum.bytes as usize)];
        let (mut hasher, mut done) = (crc32fast::Hasher::new(), 0);
        while done < sum.bytes {
            let length = (sum.bytes - done).min(SUMMED_BYTES as u64) as usize;
            self.read_at(&mut buffer[..length], sum.offset + done)?;
            hasher.update(&buffer[..length]);
            done += length as u64;
        }
        Ok(hasher.finalize())
    }

    /// Fills `buffer` from `offset` on.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        self.fill(buffer, offset).map_err(|source| CheckpointError::Io { path: self.path.clone(), source })
    }

    #[cfg(unix)]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.read_exact_at(buffer, offset)
    }

    #[cfg(not(unix))]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let _alone = self.position.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// A tensor as a file holds it, checked to lie within the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: candle_core::DType,
    pub(crate) shape: Vec<usize>,
    /// Index of the file in the checkpoint's list.
    pub(crate) file: usize,
    /// First byte in that file.
    pub(crate) offset: u64,
    /// Length.
    pub(crate) bytes: u64,
}
