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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// The row's number in its table.
    pub(super) row: usize,
    /// What its pictures are known by, where they may lie in files of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pictures: Option<String>,
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
    /// Begins one, or goes on with the one that is there.
    ///
    /// # Errors
    /// One that is there and not to be gone on with, is of another batch, in use, or none at all.
    pub(super) fn open(out: &Path, identity: &BTreeMap<&'static str, Value>, resume: bool) -> Result<Self, BatchError> {
        let path = beside(out);
        let write = |source| BatchError::Write { path: path.clone(), source };
        let found = path.symlink_metadata().ok();
        if found.as_ref().is_some_and(|found| !found.is_file()) {
            let reason = "it is no file of its own".to_owned();
            return Err(BatchError::NoJournal { path, reason });
        }
        let is_there = found.is_some();
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(write)?;
        }
        let mut file = File::options().read(true).write(true).create_new(!is_there).open(&path).map_err(write)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BatchError::InUse { path }),
            // A file system without locks.
            Err(TryLockError::Error(_)) => {}
        }
        if is_there && !resume {
            return Err(BatchError::CutOff { path });
        }
        let identity: Identity = identity.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut head = serde_json::to_vec(&Head { janus_batch: identity.clone() }).expect("plain data is JSON");
        head.push(b'\n');
        let found = if is_there { read_whole_lines(&path, &mut file, &head)? } else { Found::default() };
        if let Some(own) = &found.head {
            let different = identity.iter().find(|(name, value)| own.janus_batch.get(*name) != Some(value));
            if let Some((what, _)) = different {
                return Err(BatchError::Another { path, what: what.clone() });
            }
        }
        file.set_len(found.bytes).map_err(write)?;
        file.seek(SeekFrom::Start(found.bytes)).map_err(write)?;
        let mut file = BufWriter::new(file);
        if found.head.is_none() {
            file.write_all(&head).and_then(|()| file.flush()).map_err(write)?;
        }
        Ok(Self { file, first_byte: head.len() as u64, rows: found.rows, failed: found.failed, path })
    }

    /// Rows that have a line.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Those of them that were not answered.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// That these answers have more rows than the table, or other ones.
    pub(super) fn refused(&self, reason: String) -> BatchError {
        BatchError::NoJournal { path: self.path.clone(), reason }
    }

    /// That a row's pictures were others when it was answered.
    pub(super) fn of_other_pictures(&self) -> BatchError {
        BatchError::Another { path: self.path.clone(), what: "pictures".into() }
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
    /// Of all whole lines.
    bytes: u64,
    rows: usize,
    failed: usize,
}

/// The lines up to the last whole one. `head` is the line that this batch begins with: where not even it is whole, what is there
/// has to be its beginning.
fn read_whole_lines(path: &Path, file: &mut File, head: &[u8]) -> Result<Found, BatchError> {
    let read = |source| BatchError::Read { path: path.to_path_buf(), source };
    let refused = |reason: String| BatchError::NoJournal { path: path.to_path_buf(), reason };
    let mut reader = BufReader::new(&*file);
    let (mut found, mut text) = (Found::default(), Vec::new());
    loop {
        text.clear();
        let length = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(read)?;
        if text.last() != Some(&b'\n') {
            return match &found.head {
                None if !head.starts_with(&text) => Err(refused("its first line is no batch's".into())),
                _ => Ok(found),
            };
        }
        if found.head.is_none() {
            found.head = Some(serde_json::from_slice(&text).map_err(|e| refused(e.to_string()))?);
        } else {
            let line: Line = serde_json::from_slice(&text).map_err(|e| refused(e.to_string()))?;
            if line.row != found.rows {
                return Err(refused(format!("row {} stands where row {} should", line.row, found.rows)));
            }
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

    fn line(row: usize) -> Line {
        match row {
            0 => Line { values: Some([("answer".to_owned(), json!("one"))].into_iter().collect()), ..Line::default() },
            _ => Line { row, error: Some("bad".into()), ..Line::default() },
        }
    }

    #[test]
    fn a_batch_goes_on_behind_the_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        {
            let mut journal = Journal::open(&out, &identity("a"), false).unwrap();
            (0..2).for_each(|row| journal.push(&line(row)).unwrap());
        }
        let path = beside(&out);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&out, &identity("a"), true).unwrap();
            for row in journal.rows()..2 {
                journal.push(&line(row)).unwrap();
            }
            assert_eq!((journal.rows(), journal.failed()), (2, 1), "cut at {cut}");
            let lines: Vec<Line> = journal.lines().unwrap().map(Result::unwrap).collect();
            assert_eq!(lines, [line(0), line(1)]);
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        // A line that is gone or there twice.
        let text = String::from_utf8(whole).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for changed in [vec![lines[0], lines[2]], vec![lines[0], lines[1], lines[1], lines[2]]] {
            std::fs::write(&path, changed.join("\n") + "\n").unwrap();
            let refused = Journal::open(&out, &identity("a"), true).err().unwrap();
            assert!(matches!(refused, BatchError::NoJournal { .. }), "{refused}");
        }
    }

    #[test]
    fn another_batch_and_one_that_runs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        let open = |question: &str, resume| Journal::open(&out, &identity(question), resume);
        let running = open("a", false).unwrap();
        for resume in [false, true] {
            assert!(matches!(open("a", resume).err().unwrap(), BatchError::InUse { .. }));
        }
        drop(running);
        assert!(matches!(open("a", false).err().unwrap(), BatchError::CutOff { .. }));
        match open("b", true).err().unwrap() {
            BatchError::Another { what, .. } => assert_eq!(what, "question"),
            other => panic!("{other}"),
        }
        for text in ["{}\n", "my own notes", "my own notes\n"] {
            std::fs::write(beside(&out), text).unwrap();
            assert!(matches!(open("a", true).err().unwrap(), BatchError::NoJournal { .. }), "{text}");
            assert_eq!(std::fs::read_to_string(beside(&out)).unwrap(), text);
        }
        #[cfg(unix)]
        {
            let notes = folder.path().join("notes");
            std::fs::write(&notes, "").unwrap();
            std::fs::remove_file(beside(&out)).unwrap();
            std::os::unix::fs::symlink(&notes, beside(&out)).unwrap();
            assert!(matches!(open("a", true).err().unwrap(), BatchError::NoJournal { .. }));
        }
    }
}
