use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::BodyReader;

use super::HubError;

/// The body of an answer, given up when it comes so slowly that its server may as well be silent: a byte now and then keeps
/// any timeout of single reads from ending a transfer.
pub(super) struct PacedBody {
    reader: BodyReader<'static>,
    url: String,
    window: Duration,
    least_bytes: u64,
    since: Instant,
    got_bytes: u64,
}

impl PacedBody {
    /// A body of which at least `least_bytes_per_s` come in each `window`.
    pub(super) fn new(reader: BodyReader<'static>, url: String, window: Duration, least_bytes_per_s: u64) -> Self {
        let least_bytes = u128::from(least_bytes_per_s).saturating_mul(window.as_millis()) / 1000;
        let least_bytes = u64::try_from(least_bytes).unwrap_or(u64::MAX);
        Self { reader, url, window, least_bytes, since: Instant::now(), got_bytes: 0 }
    }

    /// Some bytes more; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HubError> {
        let count = loop {
            match self.reader.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(HubError::of_transfer(self.url.clone(), source)),
                Ok(count) => break count,
            }
        };
        self.got_bytes = self.got_bytes.saturating_add(count as u64);
        let elapsed = self.since.elapsed();
        if count > 0 && elapsed >= self.window {
            if self.got_bytes < self.least_bytes {
                let (got_bytes, least_bytes) = (self.got_bytes, self.least_bytes);
                return Err(HubError::TooSlow {
                    url: self.url.clone(),
                    got_bytes,
                    seconds: elapsed.as_secs_f64(),
                    least_bytes,
                });
            }
            (self.since, self.got_bytes) = (Instant::now(), 0);
        }
        Ok(count)
    }

    /// All of it, or nothing where that is more than `limit_bytes`.
    pub(super) fn read_all(mut self, limit_bytes: u64) -> Result<Option<Vec<u8>>, HubError> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(Some(all)),
                count if all.len() as u64 + count as u64 > limit_bytes => return Ok(None),
                count => all.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
    }
}
