use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};
use ureq::http::header;

use super::cache::{RepositoryCache, sync_folder, write_error};
use super::transport::{Metadata, Transport, cut_off, text_of};
use super::{HubError, Progress};

const BUFFER_BYTES: usize = 256 << 10;

/// A transfer that brought so much since the last failure has all its attempts anew: a base of gigabytes may well be
/// cut more often than a small file should be.
const FRESH_START_BYTES: u64 = 64 << 20;

/// Makes sure that the blob of a file is in the cache and returns its path.
///
/// Bytes go to `blobs/<etag>.incomplete`, which a later call continues, and which gets its final name when it has the
/// announced size and digest and is on the disk.
pub(super) fn download_blob(
    transport: &Transport<'_>,
    cache: &RepositoryCache<'_>,
    commit: &str,
    name: &str,
    metadata: &Metadata,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    let blob = cache.blob(&metadata.etag);
    let is_there = || {
        fs::metadata(&blob)
            .is_ok_and(|found| found.is_file() && metadata.size_bytes.is_none_or(|size| size == found.len()))
    };
    if is_there() {
        return Ok(blob);
    }
    let _lock = cache.lock(&metadata.etag, name, progress)?;
    if is_there() {
        return Ok(blob);
    }
    let mut partial = Partial::open(cache.incomplete(&metadata.etag), metadata.sha256.is_some())?;
    if metadata.size_bytes.is_some_and(|size| partial.length_bytes > size) {
        partial.restart()?;
    }
    progress.file(name, metadata.size_bytes, partial.length_bytes);
    let transfer = Transfer { transport, commit, name, metadata, progress };
    let result = transfer.complete(&mut partial);
    progress.finish();
    result?;
    if let (Some(expected), Some(got)) = (&metadata.sha256, partial.digest())
        && *expected != got
    {
        partial.remove()?;
        return Err(HubError::Digest { file: name.to_string(), expected: expected.clone(), got });
    }
    partial.persist(&blob)?;
    Ok(blob)
}

struct Transfer<'a> {
    transport: &'a Transport<'a>,
    commit: &'a str,
    name: &'a str,
    metadata: &'a Metadata,
    progress: &'a dyn Progress,
}

impl Transfer<'_> {
    /// Repeats requests until the file has all its bytes.
    fn complete(&self, partial: &mut Partial) -> Result<(), HubError> {
        let mut failures = 0;
        let mut counted_from_bytes = partial.length_bytes;
        while self.metadata.size_bytes != Some(partial.length_bytes) {
            let error = match self.attempt(partial) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if partial.length_bytes.saturating_sub(counted_from_bytes) >= FRESH_START_BYTES {
                failures = 0;
            }
            counted_from_bytes = partial.length_bytes;
            failures += 1;
            if failures >= self.transport.attempts() {
                return Err(HubError::Interrupted {
                    file: self.name.to_string(),
                    attempts: failures,
                    have_bytes: partial.length_bytes,
                    total_bytes: self.metadata.size_bytes,
                    source: Box::new(error),
                });
            }
            self.transport.pause(failures, &error);
        }
        Ok(())
    }

    /// Makes one request for what is missing and writes what comes. `Ok` means that the file is whole.
    fn attempt(&self, partial: &mut Partial) -> Result<(), HubError> {
        let offset = partial.length_bytes;
        let answer = self.transport.bytes_of(self.commit, self.name, offset)?;
        let url = answer.url;
        let headers = answer.response.headers();
        let range = text_of(headers, header::CONTENT_RANGE.as_str()).unwrap_or_default();
        let is_chunked = text_of(headers, header::TRANSFER_ENCODING.as_str())
            .is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"));
        let wrong_range = |url: &str| HubError::Range { url: url.to_string(), asked_bytes: offset, got: range.clone() };
        let status = answer.response.status().as_u16();
        let mut body = answer.response.into_body();
        let total_bytes = match (status, parse_content_range(&range)) {
            (206, Some(ContentRange { start_bytes: Some(start), total_bytes })) if start == offset => total_bytes,
            (416, Some(ContentRange { start_bytes: None, total_bytes: Some(total) })) if total == offset => {
                return self.check_size(total);
            }
            (206 | 416, _) => {
                // The next request, for the whole file, leaves no room for misunderstanding.
                self.restart(partial)?;
                return Err(wrong_range(&url));
            }
            _ => {
                if offset > 0 {
                    self.restart(partial)?;
                }
                body.content_length()
            }
        };
        if let Some(total) = total_bytes {
            self.check_size(total)?;
        }
        let total_bytes = self.metadata.size_bytes.or(total_bytes);
        if total_bytes.is_none() && !is_chunked {
            return Err(HubError::UnknownSize { file: self.name.to_string() });
        }
        let mut reader = body.as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cut_off(&url, error)),
            };
            let length_bytes = partial.length_bytes.saturating_add(count as u64);
            if let Some(expected_bytes) = total_bytes.filter(|&total| length_bytes > total) {
                partial.restart()?;
                return Err(HubError::Size { file: self.name.to_string(), expected_bytes, got_bytes: length_bytes });
            }
            partial.append(buffer.get(..count).unwrap_or(&buffer))?;
            self.progress.advance(count as u64);
        }
        if total_bytes.is_some_and(|total| partial.length_bytes < total) {
            return Err(cut_off(&url, io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Drops what is there, because the server cannot continue it.
    fn restart(&self, partial: &mut Partial) -> Result<(), HubError> {
        partial.restart()?;
        self.progress.file(self.name, self.metadata.size_bytes, 0);
        Ok(())
    }

    fn check_size(&self, got_bytes: u64) -> Result<(), HubError> {
        match self.metadata.size_bytes {
            Some(expected_bytes) if expected_bytes != got_bytes => {
                Err(HubError::Size { file: self.name.to_string(), expected_bytes, got_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// A `Content-Range` header: `bytes 5-9/10`, `bytes 5-9/*`, or, of a refused range, `bytes */10`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) start_bytes: Option<u64>,
    pub(super) total_bytes: Option<u64>,
}

pub(super) fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.strip_prefix("bytes")?.trim().split_once('/')?;
    let start_bytes = match range.trim() {
        "*" => None,
        range => {
            let (start, last) = range.split_once('-')?;
            let (start, last) = (start.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
            Some(start).filter(|&start| start <= last)
        }
    };
    let total_bytes = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some(ContentRange { start_bytes, total_bytes })
}

/// `blobs/<etag>.incomplete`: the first bytes of a blob, digested as they come.
struct Partial {
    path: PathBuf,
    file: File,
    length_bytes: u64,
    hasher: Option<Sha256>,
}

impl Partial {
    /// Opens what an earlier transfer left, or begins.
    fn open(path: PathBuf, with_digest: bool) -> Result<Self, HubError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(write_error(folder))?;
        // A symbolic link here would take what is written out of the cache.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(HubError::Occupied { path, expected: "file" });
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(write_error(&path))?;
        let mut hasher = with_digest.then(Sha256::new);
        let mut length_bytes = 0u64;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(HubError::Read { path, source }),
            };
            if let Some(hasher) = &mut hasher {
                hasher.update(buffer.get(..count).unwrap_or(&buffer));
            }
            length_bytes = length_bytes.saturating_add(count as u64);
        }
        Ok(Self { path, file, length_bytes, hasher })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(write_error(&self.path))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.length_bytes = self.length_bytes.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(write_error(&self.path))?;
        self.hasher = self.hasher.as_ref().map(|_| Sha256::new());
        self.length_bytes = 0;
        Ok(())
    }

    /// SHA-256 in lower-case hexadecimal digits, `None` if it was not asked for.
    fn digest(&self) -> Option<String> {
        let digest = self.hasher.clone()?.finalize();
        Some(digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    fn remove(self) -> Result<(), HubError> {
        drop(self.file);
        fs::remove_file(&self.path).map_err(write_error(&self.path))
    }

    /// Gives the file its final name once it is on the disk.
    fn persist(self, blob: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(write_error(&self.path))?;
        drop(self.file);
        fs::rename(&self.path, blob).map_err(write_error(blob))?;
        sync_folder(blob.parent().unwrap_or(Path::new(".")));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_parse_or_are_refused() {
        let range = |start_bytes, total_bytes| Some(ContentRange { start_bytes, total_bytes });
        assert_eq!(parse_content_range("bytes 5-9/10"), range(Some(5), Some(10)));
        assert_eq!(parse_content_range("bytes 5-9/*"), range(Some(5), None));
        assert_eq!(parse_content_range("bytes */10"), range(None, Some(10)));
        assert_eq!(parse_content_range("bytes 9-5/10"), range(None, Some(10)));
        for wrong in ["", "bytes", "bytes 5/10", "bytes a-b/10", "items 0-1/2", "bytes 0-99999999999999999999/1"] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }
}
