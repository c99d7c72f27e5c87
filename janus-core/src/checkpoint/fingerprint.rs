//! The fingerprint of a model: one hash over names, shapes and values, whatever files, layout or precision hold them.
//!
//! It is the SHA-256, in lower-case hexadecimal, of
//!
//! ```text
//! "janus-fingerprint-1\n"
//! for every tensor, by native name in byte order:
//!     length of the name in bytes    u64, little-endian
//!     name                           UTF-8
//!     number of dimensions           u64, little-endian
//!     every dimension                u64, little-endian
//!     digest of the values           32 bytes
//! ```
//!
//! where the digest of the values is the SHA-256 of all values in row-major order, each widened to f32, little-endian.
//! Widening bf16 and f16 is exact, so a copy in another precision has the same fingerprint exactly if it has the same
//! values. A model without `lm_head.weight` has a tied head: the digest of the embedding table counts for it, so that
//! tying or storing the same head makes no difference.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use candle_core::{DType, Tensor};
use rayon::Yield;
use sha2::{Digest, Sha256};

use super::names::{EMBED_TOKENS, LM_HEAD};
use super::values::for_each_encoded;
use super::{Checkpoint, CheckpointError};

/// First bytes of what is hashed: a change of the format changes every fingerprint.
pub(super) const PREFIX: &[u8] = b"janus-fingerprint-1\n";

/// SHA-256 of the values of `tensor` (any shape, `f32`, `bf16` or `f16`, any device), widened to f32, little-endian.
///
/// # Errors
/// Another type, or a failure of the engine.
pub fn tensor_digest(tensor: &Tensor) -> Result<[u8; 32], CheckpointError> {
    let mut hasher = Sha256::new();
    for_each_encoded("(in memory)", tensor, DType::F32, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}

/// Gathers tensors, in any order, into a fingerprint.
#[derive(Debug, Clone, Default)]
pub struct Fingerprint {
    tensors: BTreeMap<String, (Vec<usize>, [u8; 32])>,
}

impl Fingerprint {
    /// Of no tensor yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the tensor of a native name.
    ///
    /// # Errors
    /// As [`tensor_digest`].
    pub fn add(&mut self, name: &str, tensor: &Tensor) -> Result<(), CheckpointError> {
        self.add_digest(name, tensor.dims(), tensor_digest(tensor)?);
        Ok(())
    }

    /// Adds a tensor by the digest of its values, see [`tensor_digest`].
    pub fn add_digest(&mut self, name: &str, shape: &[usize], digest: [u8; 32]) {
        self.tensors.insert(name.to_string(), (shape.to_vec(), digest));
    }

    /// The fingerprint: 64 hexadecimal digits.
    pub fn finish(&self) -> String {
        let mut tensors: BTreeMap<&str, &(Vec<usize>, [u8; 32])> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        if let (false, Some(table)) = (tensors.contains_key(LM_HEAD), self.tensors.get(EMBED_TOKENS)) {
            tensors.insert(LM_HEAD, table);
        }
        let mut hasher = Sha256::new();
        hasher.update(PREFIX);
        for (name, (shape, digest)) in tensors {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update((shape.len() as u64).to_le_bytes());
            for side in shape {
                hasher.update((*side as u64).to_le_bytes());
            }
            hasher.update(digest);
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The digests of a checkpoint's tensors while they are worked out, each by the thread that takes it first.
#[derive(Debug)]
pub struct TensorDigests {
    /// The largest first, so that no thread is left alone with one at the end.
    tensors: Vec<PendingDigest>,
}

#[derive(Debug)]
struct PendingDigest {
    /// Its place among the checkpoint's tensors.
    index: usize,
    taken: AtomicBool,
    digest: OnceLock<[u8; 32]>,
}

impl PendingDigest {
    fn work_out(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let mut hasher = Sha256::new();
        checkpoint.extent(&checkpoint.tensors[self.index]).for_each_widened(|bytes| hasher.update(bytes))?;
        // Where two threads worked it out, both came to the same.
        let _ = self.digest.set(hasher.finalize().into());
        Ok(())
    }

    fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Relaxed)
    }
}

impl TensorDigests {
    /// Of a checkpoint, none worked out yet.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let mut order: Vec<usize> = (0..checkpoint.tensors.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(checkpoint.tensors[*index].bytes));
        let pending = |index| PendingDigest { index, taken: AtomicBool::new(false), digest: OnceLock::new() };
        Self { tensors: order.into_iter().map(pending).collect() }
    }

    /// Takes one tensor that nobody has taken and works out its digest in this thread, in small pieces. Says whether there
    /// was one; `checkpoint` is that of [`TensorDigests::new`].
    ///
    /// # Errors
    /// What reading reports; [`TensorDigests::finish`] will try that tensor again.
    pub fn advance(&self, checkpoint: &Checkpoint) -> Result<bool, CheckpointError> {
        match self.tensors.iter().find(|tensor| tensor.take()) {
            None => Ok(false),
            Some(tensor) => tensor.work_out(checkpoint).map(|()| true),
        }
    }

    /// Works out what is missing, several tensors at a time, and returns the fingerprint. `progress` hears of bytes done and
    /// in total; `checkpoint` is that of [`TensorDigests::new`].
    ///
    /// It may be called on any thread, the only one of a pool too. A tensor that another thread has taken comes last, and is worked out here as well if that thread is still not
    /// done with it: it may have been given little time.
    ///
    /// # Errors
    /// What reading reports.
    pub fn finish(
        &self,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<String, CheckpointError> {
        let total = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
        let (sender, receiver) = mpsc::channel::<Result<u64, CheckpointError>>();
        let failed = AtomicBool::new(false);
        let work = |tensor: &PendingDigest, sender: mpsc::Sender<_>| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let bytes = checkpoint.tensors[tensor.index].bytes;
            let done = if tensor.digest.get().is_some() { Ok(()) } else { tensor.work_out(checkpoint) };
            failed.fetch_or(done.is_err(), Ordering::Relaxed);
            // Somebody listens until all are done or one has failed.
            let _ = sender.send(done.map(|()| bytes));
        };
        let (mine, others): (Vec<_>, Vec<_>) = self.tensors.iter().partition(|tensor| tensor.take());
        rayon::in_place_scope_fifo(|scope| {
            for tensor in mine.into_iter().chain(others) {
                let sender = sender.clone();
                scope.spawn_fifo(move |_| work(tensor, sender));
            }
            drop(sender);
            let mut done = 0;
            while let Some(bytes) = next(&receiver) {
                done += bytes?;
                progress(done, total);
            }
            Ok::<_, CheckpointError>(())
        })?;
        progress(total, total);
        let mut fingerprint = Fingerprint::new();
        for tensor in &self.tensors {
            let info = &checkpoint.tensors[tensor.index];
            let digest = tensor.digest.get().expect("every digest was there or was worked out above");
            fingerprint.add_digest(&info.name, &info.shape, *digest);
        }
        Ok(fingerprint.finish())
    }
}

/// What comes next, `None` after the last. A thread of the pool works meanwhile: it may be the only one.
fn next<T>(receiver: &mpsc::Receiver<T>) -> Option<T> {
    const PATIENCE: Duration = Duration::from_millis(1);
    loop {
        match receiver.try_recv() {
            Ok(next) => return Some(next),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        match rayon::yield_now() {
            Some(Yield::Executed) => {}
            // The others have taken what there was, and may yet leave some of it.
            Some(Yield::Idle) => match receiver.recv_timeout(PATIENCE) {
                Ok(next) => return Some(next),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            },
            None => return receiver.recv().ok(),
        }
    }
}

impl Checkpoint {
    /// The fingerprint of the stored model. Every value is read once, several tensors at a time, in small pieces;
    /// `progress` hears of bytes done and in total.
    ///
    /// # Errors
    /// What reading reports.
    pub fn fingerprint(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<String, CheckpointError> {
        TensorDigests::new(self).finish(self, progress)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::init_checkpoint;
    use crate::config::{JanusConfig, Layout};

    #[test]
    fn digests_worked_out_here_and_there_give_one_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 7, DType::BF16, folder.path(), Layout::DeepSeek, &mut |_, _| ()).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
        // In order and one after the other: nothing of the parallel way.
        let mut truth = Fingerprint::new();
        for info in checkpoint.tensors() {
            truth.add(&info.name, &checkpoint.read(&info.name, DType::F32).unwrap()).unwrap();
        }
        let truth = truth.finish();
        let total = checkpoint.tensors().map(|info| info.bytes).sum::<u64>();
        let finish = |digests: &TensorDigests| {
            let mut heard = Vec::new();
            let fingerprint = digests.finish(&checkpoint, &mut |done, of| heard.push((done, of))).unwrap();
            assert!(heard.is_sorted() && heard.last() == Some(&(total, total)), "{heard:?}");
            fingerprint
        };
        assert_eq!(finish(&TensorDigests::new(&checkpoint)), truth);

        let digests = TensorDigests::new(&checkpoint);
        for _ in 0..5 {
            assert!(digests.advance(&checkpoint).unwrap());
        }
        // A thread that took one and never came back.
        assert!(digests.tensors[5].take());
        assert!(digests.advance(&checkpoint).unwrap());
        let done = digests.tensors.iter().filter(|tensor| tensor.digest.get().is_some()).count();
        assert_eq!(done, 6);
        assert_eq!(finish(&digests), truth);
        assert!(!digests.advance(&checkpoint).unwrap(), "nothing is left");
        assert_eq!(finish(&digests), truth, "asked again");

        // On a thread of a pool, which may be its only one.
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (sender, receiver) = mpsc::channel();
            let checkpoint = checkpoint.clone();
            // Not waited for: it would never end.
            std::thread::spawn(move || sender.send(pool.install(|| checkpoint.fingerprint(&mut |_, _| ()).unwrap())));
            assert_eq!(receiver.recv_timeout(Duration::from_secs(60)).as_deref(), Ok(&*truth), "{threads} threads");
        }

        // Beside another thread.
        let digests = TensorDigests::new(&checkpoint);
        std::thread::scope(|scope| {
            scope.spawn(|| while digests.advance(&checkpoint).unwrap() {});
            assert_eq!(finish(&digests), truth);
        });
    }
}
