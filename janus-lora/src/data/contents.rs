//! What the rows of a row group are known by: SHA-256 of the bytes that were read of it, worked out beside the reading.
//!
//! Nothing is read for it that is not read anyway: a page goes to a thread of its own as it comes out of the file, still packed,
//! with the header before it. Files of pictures that rows name are part of it, each by the SHA-256 of its own bytes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::Result;
use sha2::{Digest as _, Sha256};

use super::row::Row;

/// SHA-256.
pub type Digest = [u8; 32];

enum Piece {
    /// The next bytes of the column of this number.
    Bytes(usize, Bytes),
    /// The row group is read: the digest of its rows' own files, and who waits for the whole.
    End(Digest, SyncSender<Digest>),
}

/// A thread that works out digests. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Digests {
    pieces: SyncSender<Piece>,
}

impl Digests {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives none.
    pub(super) fn start() -> io::Result<Self> {
        // Nothing waits in the channel, so that no page but the one that is hashed is held longer than without.
        let (pieces, taken) = sync_channel(0);
        std::thread::Builder::new().name("digests".to_owned()).spawn(move || work(&taken))?;
        Ok(Self { pieces })
    }

    fn take(&self, column: usize, bytes: Bytes) {
        self.pieces.send(Piece::Bytes(column, bytes)).expect("the thread ends with its channel alone");
    }

    /// The digest of what was read since the last one, and of its rows' own files, of which `files` is the digest.
    pub(super) fn end(&self, files: Digest) -> Digest {
        let (to, whole) = sync_channel(1);
        self.pieces.send(Piece::End(files, to)).expect("the thread ends with its channel alone");
        whole.recv().expect("the thread answers before it ends")
    }
}

fn work(pieces: &Receiver<Piece>) {
    let mut columns: BTreeMap<usize, Sha256> = BTreeMap::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(column, bytes) => columns.entry(column).or_default().update(&bytes),
            Piece::End(files, to) => {
                let mut whole = Sha256::new();
                for (column, digest) in std::mem::take(&mut columns) {
                    whole.update((column as u64).to_le_bytes());
                    whole.update(digest.finalize());
                }
                whole.update(files);
                // Nobody waits any more where the scan has failed.
                let _ = to.send(whole.finalize().into());
            }
        }
    }
}

/// The columns of a row group as they are read.
pub(super) struct Watch {
    digests: Arc<Digests>,
    /// Number of each column, and which of its bytes are still to come.
    columns: Mutex<Vec<(usize, Range<u64>)>>,
}

impl Watch {
    pub(super) fn new(digests: &Arc<Digests>, columns: Vec<(usize, Range<u64>)>) -> Self {
        Self { digests: Arc::clone(digests), columns: Mutex::new(columns) }
    }

    /// Takes a page that was read at `at`, and from `read` what lies between it and the one before: its header. What comes a
    /// second time counts once.
    pub(super) fn page(&self, at: u64, bytes: &Bytes, read: impl Fn(Range<u64>) -> Result<Bytes>) -> Result<()> {
        let mut columns = self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((column, rest)) = columns.iter_mut().find(|(_, rest)| rest.contains(&at)) else { return Ok(()) };
        if rest.start < at {
            self.digests.take(*column, read(rest.start..at)?);
        }
        self.digests.take(*column, bytes.clone());
        rest.start = at.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// The digest of a row's pictures.
pub(crate) fn of_pictures(row: &Row) -> Digest {
    let mut digest = Sha256::new();
    for image in row.images.values().flatten() {
        digest.update((image.bytes.len() as u64).to_le_bytes());
        digest.update(&image.bytes);
    }
    digest.finalize().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use parquet::arrow::ArrowWriter;
    use parquet::basic::{BrotliLevel, Compression, GzipLevel};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;
    use crate::data::index::Table;
    use crate::data::testing::*;

    fn digests(path: &Path, columns: &[&'static str]) -> Vec<Digest> {
        let table = Table::open(&[path.to_path_buf()], &requests(columns)).unwrap().with_digests(true);
        scan_all(&table, &accept_all).contents(0).to_vec()
    }

    /// The same from the file alone, once more and in one piece.
    fn expected(path: &Path, columns: &[&str]) -> Vec<Digest> {
        let bytes = std::fs::read(path).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let group = |group: &parquet::file::metadata::RowGroupMetaData| {
            let mut whole = Sha256::new();
            for (number, column) in group.columns().iter().enumerate() {
                if columns.contains(&column.column_path().string().as_str()) {
                    let (start, length) = column.byte_range();
                    whole.update((number as u64).to_le_bytes());
                    whole.update(Sha256::digest(&bytes[start as usize..(start + length) as usize]));
                }
            }
            whole.update(Sha256::digest(b""));
            whole.finalize().into()
        };
        reader.metadata().row_groups().iter().map(group).collect()
    }

    #[test]
    fn a_digest_is_that_of_the_bytes_of_the_columns_that_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(Default::default()),
            Compression::LZ4_RAW,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
        ] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let columns = vec![("a", numbered("a", 3000)), ("b", numbered("b", 3000)), ("c", numbered("c", 3000))];
                let batch = arrow::array::RecordBatch::try_from_iter(columns).unwrap();
                let properties = WriterProperties::builder()
                    .set_compression(compression)
                    .set_writer_version(version)
                    .set_data_page_row_count_limit(100)
                    .set_write_batch_size(50)
                    .set_max_row_group_row_count(Some(1100))
                    .build();
                let file = std::fs::File::create(&path).unwrap();
                let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
                writer.write(&batch).unwrap();
                writer.close().unwrap();
                for columns in [&["a", "c"][..], &["b"]] {
                    let found = digests(&path, columns);
                    assert_eq!(found.len(), 3);
                    assert_eq!(found, expected(&path, columns), "{compression} {version:?} {columns:?}");
                }
            }
        }
    }

    #[test]
    fn a_byte_in_a_page_makes_another_row_group_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let columns = vec![("answer", numbered("word", 100)), ("other", numbered("more", 100))];
        let path = write_table(&folder.path().join("t.parquet"), columns, 50);
        let before = digests(&path, &["answer"]);
        let mut bytes = std::fs::read(&path).unwrap();
        let mut change = |text: &[u8]| {
            let place = bytes.windows(text.len()).position(|window| window == text).unwrap();
            bytes[place] ^= 0x20;
            std::fs::write(&path, &bytes).unwrap();
        };
        change(b"more-70");
        assert_eq!(digests(&path, &["answer"]), before, "of a column that is not read");
        change(b"word-70");
        let after = digests(&path, &["answer"]);
        assert_eq!((after[0] == before[0], after[1] == before[1]), (true, false));
        let table = Table::open(&[path], &requests(&["answer"])).unwrap();
        assert!(scan_all(&table, &accept_all).contents(0).is_empty(), "nobody asked for them");
    }

    #[test]
    fn pictures_that_rows_name_belong_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a.png"), folder.path().join("b.png"));
        std::fs::write(&first, png(8, 9)).unwrap();
        std::fs::write(&second, png(9, 8)).unwrap();
        let column = image_structs(&[Some((None, Some("a.png"))), Some((None, Some("b.png")))]);
        let path = write_table(&folder.path().join("t.parquet"), vec![("image", column)], 1);
        let digests = || {
            let table = Table::open(std::slice::from_ref(&path), &[image_request()]).unwrap().with_digests(true);
            scan_all(&table, &accept_all).contents(0).to_vec()
        };
        let before = digests();
        assert_eq!(digests(), before);
        std::fs::write(&second, png(9, 9)).unwrap();
        let after = digests();
        assert_eq!((after[0] == before[0], after[1] == before[1]), (true, false));
    }
}
