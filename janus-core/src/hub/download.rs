use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};
use ureq::http::header;

use super::cache::{RepositoryCache, sync_folder, write_error};
use super::content::{hex, is_telling, other_digest};
use super::limits::FileKind;
use super::shards::ShardRecord;
use super::transport::{Metadata, Transport, cut_off, text_of};
use super::{HubError, Progress};

const BUFFER_BYTES: usize = 256 << 10;

/// A transfer that brought so much since the last failure has all its attempts anew: a base of gigabytes may well be
/// cut more often than a small file should be.
const FRESH_START_BYTES: u64 = 64 << 20;

/// A file of a repository, and how long it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) commit: &'a str,
    pub(super) name: &'a str,
    pub(super) kind: FileKind,
    /// What is left for it of a limit that it has together with others.
    pub(super) left_bytes: u64,
}

impl Wish<'_> {
    fn limit_bytes(&self, transport: &Transport<'_>, is_told: bool) -> u64 {
        transport.limits().bytes_of(self.kind, is_told).min(self.left_bytes)
    }

    /// Refuses a file that the hub says is too long.
    pub(super) fn check(&self, transport: &Transport<'_>, metadata: &Metadata) -> Result<(), HubError> {
        match metadata.size_bytes {
            Some(size) => self.check_size(size, self.limit_bytes(transport, true), true),
            None => Ok(()),
        }
    }

    fn check_size(&self, got_bytes: u64, limit_bytes: u64, is_told: bool) -> Result<(), HubError> {
        match got_bytes > limit_bytes {
            true => Err(HubError::TooLarge { file: self.name.to_string(), got_bytes, limit_bytes, is_told }),
            false => Ok(()),
        }
    }
}

/// Makes sure that the blob of a file is in the cache and returns its path.
///
/// Bytes go to `blobs/<etag>.incomplete`, which a later call continues, and which gets its final name when it has the
/// announced size and digest and is on the disk. A blob that is there and damaged is fetched again.
pub(super) fn download_blob(
    transport: &Transport<'_>,
    cache: &RepositoryCache<'_>,
    wish: Wish<'_>,
    metadata: &Metadata,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    wish.check(transport, metadata)?;
    let name = wish.name;
    let blob = cache.blob(&metadata.etag);
    let is_there = || {
        let has_size = fs::metadata(&blob)
            .is_ok_and(|found| found.is_file() && metadata.size_bytes.is_none_or(|size| size == found.len()));
        has_size && cache.damage(&metadata.etag, &blob).is_none()
    };
    if is_there() {
        return Ok(blob);
    }
    let _lock = cache.lock(&metadata.etag, name, progress)?;
    if is_there() {
        return Ok(blob);
    }
    let most_bytes = metadata.size_bytes.unwrap_or_else(|| wish.limit_bytes(transport, false));
    let mut partial = Partial::open(cache.incomplete(&metadata.etag), &metadata.etag, most_bytes)?;
    progress.file(name, metadata.size_bytes, partial.length_bytes);
    let transfer = Transfer { transport, wish, metadata, progress };
    let result = transfer.complete(&mut partial);
    progress.finish();
    if let Err(error) = result {
        if matches!(error, HubError::TooLarge { .. }) {
            partial.remove()?;
        }
        return Err(error);
    }
    if let Some(got) = partial.other_digest(&metadata.etag)? {
        partial.remove()?;
        return Err(HubError::Digest { file: name.to_string(), expected: metadata.etag.clone(), got });
    }
    partial.persist(&blob)?;
    Ok(blob)
}

/// Brings a blob, with a record that it is ours.
pub(super) fn download_ours(
    transport: &Transport<'_>,
    cache: &RepositoryCache<'_>,
    wish: Wish<'_>,
    metadata: &Metadata,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    wish.check(transport, metadata)?;
    // What another program downloaded is not ours to give up. Written before the download, so that a file of a run that
    // was killed is known for ours.
    let record = ShardRecord::new(transport.id(), wish.commit, wish.name, &metadata.etag);
    let is_ours = !cache.blob(&metadata.etag).exists();
    if is_ours {
        record.write(cache)?;
    }
    download_blob(transport, cache, wish, metadata, progress).inspect_err(|error| {
        if is_ours && !error.is_transient() {
            record.remove(cache);
        }
    })
}

struct Transfer<'a> {
    transport: &'a Transport<'a>,
    wish: Wish<'a>,
    metadata: &'a Metadata,
    progress: &'a dyn Progress,
}

impl Transfer<'_> {
    /// Repeats requests until the file has all its bytes.
    fn complete(&self, partial: &mut Partial) -> Result<(), HubError> {
        let mut failures = Failures { in_a_row: 0, without_progress: 0, furthest_bytes: partial.length_bytes };
        while self.metadata.size_bytes != Some(partial.length_bytes) {
            let error = match self.attempt(partial) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            let attempts = failures.one_more(partial.length_bytes);
            let is_hopeless = failures.without_progress >= self.transport.attempts_of(&error);
            if attempts >= self.transport.attempts() || is_hopeless {
                return Err(HubError::Interrupted {
                    file: self.wish.name.to_string(),
                    attempts,
                    have_bytes: partial.length_bytes,
                    total_bytes: self.metadata.size_bytes,
                    source: Box::new(error),
                });
            }
            self.transport.pause(attempts, &error);
        }
        Ok(())
    }

    /// Makes one request for what is missing and writes what comes. `Ok` means that the file is whole.
    fn attempt(&self, partial: &mut Partial) -> Result<(), HubError> {
        let offset = partial.length_bytes;
        let answer = self.transport.bytes_of(self.wish.commit, self.wish.name, offset)?;
        let url = answer.url.clone();
        let headers = answer.response.headers();
        let range = text_of(headers, header::CONTENT_RANGE.as_str()).unwrap_or_default();
        let is_chunked = text_of(headers, header::TRANSFER_ENCODING.as_str())
            .is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"));
        let wrong_range = |url: &str| HubError::Range { url: url.to_string(), asked_bytes: offset, got: range.clone() };
        let status = answer.response.status().as_u16();
        let content_bytes = answer.response.body().content_length();
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
                content_bytes
            }
        };
        if let Some(total) = total_bytes {
            self.check_size(total)?;
        }
        let total_bytes = self.metadata.size_bytes.or(total_bytes);
        if total_bytes.is_none() && !is_chunked {
            return Err(HubError::UnknownSize { file: self.wish.name.to_string() });
        }
        let is_told = total_bytes.is_some();
        let limit_bytes = self.wish.limit_bytes(self.transport, is_told);
        self.wish.check_size(total_bytes.unwrap_or(0), limit_bytes, is_told)?;
        let mut body = self.transport.body_of(answer);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match body.read(&mut buffer)? {
                0 => break,
                count => count,
            };
            let length_bytes = partial.length_bytes.saturating_add(count as u64);
            if let Some(expected_bytes) = total_bytes.filter(|&total| length_bytes > total) {
                partial.restart()?;
                return Err(HubError::Size {
                    file: self.wish.name.to_string(),
                    expected_bytes,
                    got_bytes: length_bytes,
                });
            }
            self.wish.check_size(length_bytes, limit_bytes, is_told)?;
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
        self.progress.file(self.wish.name, self.metadata.size_bytes, 0);
        Ok(())
    }

    fn check_size(&self, got_bytes: u64) -> Result<(), HubError> {
        match self.metadata.size_bytes {
            Some(expected_bytes) if expected_bytes != got_bytes => {
                Err(HubError::Size { file: self.wish.name.to_string(), expected_bytes, got_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// Failures of a transfer since it last got on.
struct Failures {
    in_a_row: u32,
    /// Those of them since it last had more bytes than ever before.
    without_progress: u32,
    /// Not the length at the last failure: a server that begins anew each time could send the same bytes for ever.
    furthest_bytes: u64,
}

impl Failures {
    /// How many there are with one that left so many bytes.
    fn one_more(&mut self, have_bytes: u64) -> u32 {
        if have_bytes.saturating_sub(self.furthest_bytes) >= FRESH_START_BYTES {
            self.in_a_row = 0;
        }
        self.without_progress =
            if have_bytes > self.furthest_bytes { 0 } else { self.without_progress.saturating_add(1) };
        self.furthest_bytes = self.furthest_bytes.max(have_bytes);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.in_a_row
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

/// `blobs/<etag>.incomplete`: the first bytes of a blob, digested as they come if it is named by their SHA-256.
struct Partial {
    path: PathBuf,
    file: File,
    length_bytes: u64,
    hasher: Option<Sha256>,
}

impl Partial {
    /// Opens what an earlier transfer left, or begins; more than `most_bytes` is dropped.
    fn open(path: PathBuf, etag: &str, most_bytes: u64) -> Result<Self, HubError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(write_error(folder))?;
        // A symbolic link here would take what is written out of the cache.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(HubError::Occupied { path, expected: "file" });
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut file = options.open(&path).map_err(write_error(&path))?;
        if file.metadata().map_err(write_error(&path))?.len() > most_bytes {
            file.set_len(0).map_err(write_error(&path))?;
        }
        let mut hasher = (is_telling(etag) && etag.len() == 64).then(Sha256::new);
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

    /// The digest if it is another one than the tag says. Git's begins with the length, so it can only be worked out at the end.
    fn other_digest(&self, etag: &str) -> Result<Option<String>, HubError> {
        match &self.hasher {
            Some(hasher) => Ok(Some(hex(&hasher.clone().finalize())).filter(|got| got != etag)),
            None => other_digest(etag, &self.path, u64::MAX)
                .map_err(|source| HubError::Read { path: self.path.clone(), source }),
        }
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
    fn attempts_are_had_anew_only_for_bytes_that_were_never_there() {
        let mut failures = Failures { in_a_row: 0, without_progress: 0, furthest_bytes: 0 };
        let mut after = |bytes: u64| failures.one_more(bytes);
        assert_eq!([after(10), after(FRESH_START_BYTES), after(2 * FRESH_START_BYTES)], [1, 2, 1]);
        // Begun anew again and again.
        assert_eq!([after(10), after(2 * FRESH_START_BYTES), after(5), after(2 * FRESH_START_BYTES)], [2, 3, 4, 5]);
        assert_eq!(failures.without_progress, 4);
    }

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
