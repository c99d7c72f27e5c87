//! The fingerprint of a base, which every weight goes into: known from an earlier time, or worked out beside other work.

use std::sync::{Arc, OnceLock};

use janus_core::checkpoint::{Checkpoint, FilesIdentity, KnownFingerprints, TensorDigests};

use crate::base::BaseError;
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
    /// The fingerprint of a checkpoint, looked up among the known ones if `look_up`; nothing is worked out yet.
    pub(crate) fn new(checkpoint: Arc<Checkpoint>, known: KnownFingerprints, look_up: bool) -> Self {
        let identity = checkpoint.identity();
        let value = OnceLock::new();
        if let Some(fingerprint) = identity.as_ref().filter(|_| look_up).and_then(|id| known.get(&checkpoint, id)) {
            let _ = value.set(fingerprint);
        }
        let digests = Arc::new(TensorDigests::new(&checkpoint));
        Self { checkpoint, known, identity, digests, value }
    }

    /// Starts a thread of the lowest priority that works on it; it ends when this is dropped.
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

/// Gives this thread the least share of the processors, where the system can do that. Not the idle class: on a busy machine a
/// thread of that class might not even get the time to end, and the program would wait for it.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        const LEAST: libc::c_int = 19;
        // SAFETY: no memory is passed; number 0 is, on Linux, the calling thread alone.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST) };
    }
}

#[cfg(test)]
mod tests {
    use janus_core::checkpoint::init_checkpoint;
    use janus_core::config::{JanusConfig, Layout};

    use super::*;
    use crate::status::Silent;

    /// A fingerprint that no checkpoint has.
    const FALSE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_known_fingerprint_is_looked_up_and_any_other_worked_out() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 3, candle_core::DType::BF16, folder.path(), Layout::Native, &mut |_, _| ()).unwrap();
        let weights = folder.path().join("model.safetensors");
        let file = std::fs::File::options().write(true).open(&weights).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
        let truth = checkpoint.fingerprint(&mut |_, _| ()).unwrap();
        let known = KnownFingerprints::new(cache.path().join("deep"));
        let pending = |look_up| PendingFingerprint::new(checkpoint.clone(), known.clone(), look_up);
        let wait = |pending: PendingFingerprint| pending.wait(&Silent).unwrap().to_owned();

        assert_eq!(wait(pending(true).work_beside()), truth);
        let identity = checkpoint.identity().unwrap();
        assert_eq!(known.get(&checkpoint, &identity).as_deref(), Some(&*truth), "kept");

        // Only a false one tells a look-up from the work.
        known.put(&checkpoint, &identity, FALSE).unwrap();
        assert_eq!(wait(pending(true).work_beside()), FALSE);
        assert_eq!(wait(pending(false)), truth);
        assert_eq!(wait(pending(true)), truth, "what was worked out replaced what was known");

        known.put(&checkpoint, &identity, FALSE).unwrap();
        for entry in std::fs::read_dir(cache.path().join("deep")).unwrap() {
            std::fs::write(entry.unwrap().path(), FALSE).unwrap();
        }
        assert_eq!(wait(pending(true)), truth, "a damaged entry");
    }

    #[test]
    fn files_written_to_meanwhile_give_no_fingerprint() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 3, candle_core::DType::BF16, folder.path(), Layout::Native, &mut |_, _| ()).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
        let pending = PendingFingerprint::new(checkpoint, KnownFingerprints::new(cache.path().into()), true);
        let weights = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        // Longer by one byte, so that the test does not rest on the system's clock.
        bytes.push(0);
        std::fs::write(&weights, bytes).unwrap();
        let error = pending.wait(&Silent).unwrap_err().to_string();
        assert!(error.contains("model.safetensors` was written to while it was in use"), "{error}");
    }
}
