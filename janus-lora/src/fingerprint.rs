//! The fingerprint of a base, which every weight goes into: known from an earlier time, or worked out beside other work.

use std::sync::{Arc, OnceLock};

use janus_core::checkpoint::{Checkpoint, FilesIdentity, KnownFingerprints, TensorDigests};

use crate::base::{BaseError, cache_folder};
use crate::error::Result;
use crate::status::Status;

/// A fingerprint that may not be known yet.
#[derive(Debug)]
pub struct PendingFingerprint {
    checkpoint: Arc<Checkpoint>,
    known: KnownFingerprints,
    identity: Option<FilesIdentity>,
    digests: Arc<TensorDigests>,
    value: OnceLock<String>,
}

impl PendingFingerprint {
    /// The fingerprint of a checkpoint, looked up in the cache folder if `look_up`; nothing is worked out yet.
    pub(crate) fn new(checkpoint: Arc<Checkpoint>, look_up: bool) -> Self {
        let known = KnownFingerprints::new(cache_folder().join("fingerprints"));
        let identity = checkpoint.identity();
        let value = OnceLock::new();
        if let Some(fingerprint) = identity.as_ref().filter(|_| look_up).and_then(|id| known.get(&checkpoint, id)) {
            let _ = value.set(fingerprint);
        }
        let digests = Arc::new(TensorDigests::new(&checkpoint));
        Self { checkpoint, known, identity, digests, value }
    }

    /// Starts a thread that works on it while processors are idle; it ends when this is dropped.
    pub(crate) fn work_beside(self) -> Self {
        if self.value.get().is_none() {
            let (checkpoint, digests) = (self.checkpoint.clone(), Arc::downgrade(&self.digests));
            // Without a thread, and for a tensor that it could not read, `wait` does the work.
            let _ = std::thread::Builder::new().spawn(move || {
                yield_to_others();
                while let Some(digests) = digests.upgrade() {
                    if matches!(digests.advance(&checkpoint), Ok(false)) {
                        break;
                    }
                }
            });
        }
        self
    }

    /// The fingerprint, 64 hexadecimal digits; what is missing of it is worked out with all threads.
    ///
    /// # Errors
    /// A file that cannot be read, or was written to meanwhile.
    pub fn wait(&self, status: &dyn Status) -> Result<&str> {
        if let Some(fingerprint) = self.value.get() {
            return Ok(fingerprint);
        }
        let bar = status.bytes("fingerprint of the base", 0);
        let fingerprint = self.digests.finish(&self.checkpoint, &mut |done, total| bar.set(done, total))?;
        bar.finish();
        if let Some(file) = self.checkpoint.rewritten_file() {
            return Err(BaseError::Rewritten { file: file.to_path_buf() }.into());
        }
        if let Some(identity) = &self.identity {
            // A cache that cannot be written to costs time and nothing else.
            let _ = self.known.put(&self.checkpoint, identity, &fingerprint);
        }
        Ok(self.value.get_or_init(|| fingerprint))
    }
}

/// Leaves the processors to all other threads that want one, where the system can do that.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: all bytes zero are a value of this plain structure of numbers.
        let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: it reads the structure, which outlives the call; number 0 is the calling thread alone.
        let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) };
    }
}
