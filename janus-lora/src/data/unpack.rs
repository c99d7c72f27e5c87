//! Pages packed with gzip or brotli, unpacked to the size that their headers say and no further.
//!
//! The `parquet` crate unpacks these two to their end, whatever their header says, and compares afterwards: a page of some
//! kilobytes may come to gigabytes. So it is given them unpacked, and told that nothing is packed.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};

use super::contents::Watch;
use super::pages::{self, Page};
use super::reader::chunk_range;

/// Brotli reads so much at a time.
const BUFFER_BYTES: usize = 4096;

/// A row group's file, whose pages come unpacked where the crate would unpack them without end.
pub(super) struct Unpacking {
    file: File,
    /// Where such pages lie.
    packed: Vec<(Range<u64>, Compression)>,
    /// Headers that were read, by where their pages begin.
    headers: Mutex<HashMap<u64, Page>>,
    /// Takes note of what is read.
    watch: Option<Watch>,
}

fn is_endless(compression: Compression) -> bool {
    matches!(compression, Compression::GZIP(_) | Compression::BROTLI(_))
}

impl Unpacking {
    /// A file with a row group that it describes.
    pub(super) fn new(file: File, row_group: &RowGroupMetaData) -> Self {
        let columns = row_group.columns().iter().filter(|column| is_endless(column.compression()));
        let range = |(start, length): (u64, u64)| start..start.saturating_add(length);
        let packed = columns.filter_map(|column| Some((range(chunk_range(column)?), column.compression())));
        Self { file, packed: packed.collect(), headers: Mutex::default(), watch: None }
    }

    /// The same, with what takes note of the pages read.
    pub(super) fn watched(self, watch: Option<Watch>) -> Self {
        Self { watch, ..self }
    }

    /// The file as it is.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn compression(&self, at: u64) -> Option<Compression> {
        self.packed.iter().find(|(range, _)| range.contains(&at)).map(|(_, compression)| *compression)
    }
}

/// The description with pages as [`Unpacking`] gives them.
pub(super) fn described(metadata: &ParquetMetaData) -> Result<Option<ParquetMetaData>> {
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    if !columns.into_iter().any(|column| is_endless(column.compression())) {
        return Ok(None);
    }
    let group = |group: RowGroupMetaData| {
        let columns = group.columns().iter().map(|column| match is_endless(column.compression()) {
            true => column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build(),
            false => Ok(column.clone()),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        group.into_builder().set_column_metadata(columns).build()
    };
    let mut builder = metadata.clone().into_builder();
    let groups = builder.take_row_groups().into_iter().map(group).collect::<Result<Vec<_>>>()?;
    Ok(Some(builder.set_row_groups(groups).build()))
}

impl Length for Unpacking {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for Unpacking {
    type T = <File as ChunkReader>::T;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        if self.compression(start).is_some() {
            // Where a header was read before, the crate asks again for what lies behind it.
            if let Ok(page) = pages::header(&self.file, start) {
                self.headers.lock().unwrap_or_else(PoisonError::into_inner).insert(page.data, page);
            }
        }
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.file.get_bytes(start, length)?;
        if let Some(watch) = &self.watch {
            let between = |range: Range<u64>| self.file.get_bytes(range.start, (range.end - range.start) as usize);
            watch.page(start, &bytes, between)?;
        }
        let Some(compression) = self.compression(start) else { return Ok(bytes) };
        let page = self.headers.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
        let unread = || ParquetError::General("a page whose header was not read".into());
        Ok(unpack(&bytes, &page.ok_or_else(unread)?, compression)?.map_or(bytes, Bytes::from))
    }
}

/// A page unpacked, its levels being so already in version 2; nothing where it is not packed.
fn unpack(bytes: &[u8], page: &Page, compression: Compression) -> Result<Option<Vec<u8>>> {
    if !page.is_packed {
        return Ok(None);
    }
    let wrong = |reason: &str| ParquetError::General(reason.into());
    let size = |bytes: u64| usize::try_from(bytes).map_err(|_| wrong("a page that no memory holds"));
    let (levels, packed) =
        bytes.split_at_checked(size(page.levels)?).ok_or_else(|| wrong("levels beyond their page"))?;
    let expected = page.unpacked.checked_sub(page.levels).ok_or_else(|| wrong("levels beyond their page"))?;
    let mut unpacked = Vec::with_capacity(size(page.unpacked)?);
    unpacked.extend_from_slice(levels);
    // Values that are all null are nothing at all.
    if expected > 0 {
        let most = expected + 1;
        match compression {
            Compression::GZIP(_) => MultiGzDecoder::new(packed).take(most).read_to_end(&mut unpacked)?,
            _ => brotli::Decompressor::new(packed, BUFFER_BYTES).take(most).read_to_end(&mut unpacked)?,
        };
    }
    match unpacked.len() as u64 {
        got if got == page.unpacked => Ok(Some(unpacked)),
        _ => Err(wrong(&format!("a page does not unpack to the {} bytes that its header says", page.unpacked))),
    }
}
