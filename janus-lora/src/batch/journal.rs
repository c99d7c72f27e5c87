//! The answers so far, beside the output: a line that says what was asked, then a line for each row, in the table's order.
//!
//! Whoever writes it holds a lock on it. A line that was not finished when its writer was killed is cut off.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::BatchError;

/// Longest line that is read: an answer's pictures, encoded, are far shorter.
const MAX_LINE_BYTES: u64 = 1 << 30;

/// What was asked, by the names of its parts.
type Identity = BTreeMap<String, Value>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    janus_batch: Identity,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// Values of the columns that are added; none of a row that was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) values: Option<Map<String, Value>>,
    /// Why it was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// The answers so far.
pub(super) struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    /// Where the first row's line begins.
    first_byte: u64,
    rows: usize,
    failed: usize,
}

/// Where the answers for an output are kept.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".answers");
    out.with_file_name(name)
}

impl Journal {
    /// Whether there are answers for an output.
    pub(super) fn is_there(out: &Path) -> bool {
        beside(out).symlink_metadata().is_ok()
    }

    /// Begins one, or goes on with the one that is there.
    ///
    /// # Errors
    /// One that is there and not to be gone on with, is of another batch, in use, or none at all.
    pub(super) fn open(out: &Path, identity: &BTreeMap<&'static str, Value>, resume: bool) -> Result<Self, BatchError> {
        let path = beside(out);
        let write = |source| BatchError::Write { path: path.clone(), source };
        let is_there = Self::is_there(out);
        if is_there && !resume {
            return Err(BatchError::CutOff { path });
        }
        if is_there {
            // What is no file is refused here.
            janus_core::input::open(&path).map_err(|source| BatchError::Read { path: path.clone(), source })?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(!is_there).create_new(!is_there);
        let mut file = options.open(&path).map_err(write)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BatchError::InUse { path }),
            // A file system without locks.
            Err(TryLockError::Error(_)) => {}
        }
        let identity: Identity = identity.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let found = if is_there { read_whole_lines(&path, &mut file)? } else { Found::default() };
        if let Some(head) = &found.head {
            let different = identity.iter().find(|(name, value)| head.janus_batch.get(*name) != Some(value));
            if let Some((what, _)) = different {
                return Err(BatchError::Another { path, what: what.clone() });
            }
        }
        let mut first_byte = found.first_byte;
        file.set_len(found.bytes).map_err(write)?;
        file.seek(SeekFrom::Start(found.bytes)).map_err(write)?;
        let mut file = BufWriter::new(file);
        if found.head.is_none() {
            let mut text = serde_json::to_vec(&Head { janus_batch: identity }).expect("plain data is JSON");
            text.push(b'\n');
            first_byte = text.len() as u64;
            file.write_all(&text).and_then(|()| file.flush()).map_err(write)?;
        }
        Ok(Self { file, first_byte, rows: found.rows, failed: found.failed, path })
    }

    /// Rows that have a line.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Those of them that were not answered.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Adds the next row's line.
    pub(super) fn push(&mut self, line: &Line) -> Result<(), BatchError> {
        let mut text = serde_json::to_vec(line).expect("plain data is JSON");
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.flush());
        written.map_err(|source| BatchError::Write { path: self.path.clone(), source })?;
        self.rows += 1;
        self.failed += usize::from(line.error.is_some());
        Ok(())
    }

    /// All lines from the first on.
    pub(super) fn lines(&mut self) -> io::Result<impl Iterator<Item = io::Result<Line>> + use<>> {
        self.file.flush()?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.first_byte))?;
        let line = |line: io::Result<String>| Ok(serde_json::from_str(&line?)?);
        Ok(BufReader::new(file).lines().map(line))
    }

    /// Takes it away, once the output is there.
    pub(super) fn remove(self) {
        // What stays is told by the next batch of this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a file of answers holds.
#[derive(Debug, Default)]
struct Found {
    /// `None` where not even the first line was finished.
    head: Option<Head>,
    first_byte: u64,
    /// Of all whole lines.
    bytes: u64,
    rows: usize,
    failed: usize,
}

fn read_whole_lines(path: &Path, file: &mut File) -> Result<Found, BatchError> {
    let read = |source| BatchError::Read { path: path.to_path_buf(), source };
    let mut reader = BufReader::new(&*file);
    let (mut found, mut text) = (Found::default(), Vec::new());
    loop {
        text.clear();
        let length = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(read)?;
        if text.last() != Some(&b'\n') {
            return Ok(found);
        }
        let refused = |e: serde_json::Error| BatchError::NoJournal { path: path.to_path_buf(), reason: e.to_string() };
        if found.head.is_none() {
            found.head = Some(serde_json::from_slice(&text).map_err(refused)?);
            found.first_byte = length as u64;
        } else {
            let line: Line = serde_json::from_slice(&text).map_err(refused)?;
            found.rows += 1;
            found.failed += usize::from(line.error.is_some());
        }
        found.bytes += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(question: &str) -> BTreeMap<&'static str, Value> {
        BTreeMap::from([("question", json!(question))])
    }

    fn line(text: &str) -> Line {
        Line { values: Some([("answer".to_owned(), json!(text))].into_iter().collect()), error: None }
    }

    #[test]
    fn a_batch_goes_on_behind_the_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        {
            let mut journal = Journal::open(&out, &identity("a"), false).unwrap();
            journal.push(&line("one")).unwrap();
            journal.push(&Line { values: None, error: Some("bad".into()) }).unwrap();
        }
        let path = beside(&out);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&out, &identity("a"), true).unwrap();
            for row in journal.rows()..2 {
                let next = [line("one"), Line { values: None, error: Some("bad".into()) }];
                journal.push(&next[row]).unwrap();
            }
            assert_eq!((journal.rows(), journal.failed()), (2, 1), "cut at {cut}");
            let lines: Vec<Line> = journal.lines().unwrap().map(Result::unwrap).collect();
            assert_eq!(lines[0], line("one"));
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn another_batch_and_one_that_runs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        let open = |question: &str, resume| Journal::open(&out, &identity(question), resume);
        let running = open("a", false).unwrap();
        assert!(matches!(open("a", true).err().unwrap(), BatchError::InUse { .. }));
        drop(running);
        assert!(matches!(open("a", false).err().unwrap(), BatchError::CutOff { .. }));
        match open("b", true).err().unwrap() {
            BatchError::Another { what, .. } => assert_eq!(what, "question"),
            other => panic!("{other}"),
        }
        std::fs::write(beside(&out), "{}\n").unwrap();
        assert!(matches!(open("a", true).err().unwrap(), BatchError::NoJournal { .. }));
    }
}
