//! A table of files, and one pass over it that tells good rows from bad ones.

mod block;
mod pictures;
pub(crate) mod presumed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use janus_core::guard;
use janus_core::hub::{HubError, Silent};
use janus_core::processing::Decoding;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::contents::{self, Digest, Digests};
use super::error::{DataError, FIRST_REJECTED};
use super::reader::{Batch, DataFile, Described, ReadOptions};
use super::rejected::{BadRowLimit, MAX_LISTED_ROWS, Reason, Rejected, RejectedRow, RowFault};
use super::row::{Row, RowId};
use super::schema::ColumnRequest;
use super::shuffle::{WINDOW_BYTES, WINDOW_ROWS};
use super::source::FileSource;

use pictures::check_image;

pub use block::Block;
pub use pictures::{ClippedGreys, DimensionsFn, ImageChecks};

/// Tables of at most so many rows have every image decoded by the scan of a run however few of them it will read, so that
/// damaged pixels are known before the first step.
pub const FULL_DECODE_ROWS: u64 = 10_000;

/// What a row takes beside its values: the nodes of its maps and the allocator's own.
const ROW_BYTES: u64 = 1152;

/// Most rows of a [`Block`].
pub const BLOCK_ROWS: usize = 1024;

/// A [`Block`] ends with the row that brings its values to so many bytes.
pub const BLOCK_BYTES: u64 = 32 << 20;

/// The role of masks, whose values are no shades.
const MASK_ROLE: &str = "mask";

/// Rows of so many files on a hub are mixed at a time, so that the rest need not be in the cache meanwhile.
pub const HUB_FILES_TOGETHER: usize = 4;

/// Files of the same columns, in order.
#[derive(Debug)]
pub struct Table {
    files: Vec<DataFile>,
    requests: Vec<ColumnRequest>,
    decoding: Decoding,
    /// Mean bytes of each requested column's values, where rows are not read but made up.
    presumed: Option<Vec<u64>>,
    /// Whether a scan finds out what its row groups are known by.
    is_digested: bool,
}

/// What a scan looks for.
pub struct ScanOptions<'a> {
    /// How images are looked at.
    pub images: ImageChecks,
    /// What else the task asks of a row, with the reason where it refuses.
    pub check: &'a (dyn Fn(&Row) -> Result<(), String> + Sync),
    /// How many rows may be bad, at least one being good; `None` counts and refuses nothing (`janus data check`).
    pub limit: Option<BadRowLimit>,
    /// Tables of at most so many rows have every image decoded; of larger ones only headers are read.
    pub decode_rows: u64,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanProgress {
    /// Rows looked at.
    pub rows: u64,
    /// Rows of the table, as its files claim.
    pub of: u64,
}

/// What one file lacks of columns that the first one has; `None` where the first one does not have them all.
fn differing(files: &[Described], requests: &[ColumnRequest]) -> Option<DataError> {
    let with = files.first().filter(|file| file.has(requests))?;
    let (without, column) = files.iter().find_map(|file| Some((file, file.lacking(requests)?)))?;
    Some(DataError::FilesDiffer { column, with: with.path(), without: without.path() })
}

impl Table {
    /// Opens every file and checks that it has the requested columns, with types that can be read as asked.
    ///
    /// # Errors
    /// A file that cannot be read or is not Parquet; columns that are missing or of another type (all of a file's at
    /// once); an optional column that only some files have.
    pub fn open(files: &[PathBuf], requests: &[ColumnRequest]) -> Result<Self, DataError> {
        Self::open_sources(&files.iter().cloned().map(FileSource::Local).collect::<Vec<_>>(), requests)
    }

    /// As [`Table::open`], of files that may be on a hub; of those, only the descriptions are read.
    ///
    /// # Errors
    /// As [`Table::open`]; a hub that refuses or cannot be reached.
    pub fn open_sources(files: &[FileSource], requests: &[ColumnRequest]) -> Result<Self, DataError> {
        Self::open_with(files, &[requests.to_vec()], ReadOptions::default())
    }

    /// As [`Table::open_sources`], with the first of several lists of columns that all the files have.
    ///
    /// # Errors
    /// As [`Table::open_sources`]; an `image_root` that is no folder.
    pub fn open_with(
        files: &[FileSource],
        alternatives: &[Vec<ColumnRequest>],
        options: ReadOptions,
    ) -> Result<Self, DataError> {
        if let Some(root) = options.image_root.as_ref().filter(|root| !root.is_dir()) {
            return Err(DataError::ImageRoot { asker: options.asker, path: root.clone() });
        }
        let files = files.iter().map(Described::new).collect::<Result<Vec<_>, _>>()?;
        let further =
            |requests: &[ColumnRequest]| -> Vec<_> { requests.iter().map(ColumnRequest::of_a_further_file).collect() };
        let fitting = alternatives.iter().find(|requests| {
            let further = further(requests);
            files.iter().any(|file| file.has(requests))
                && files.iter().all(|file| file.has(requests) || file.has(&further))
        });
        let Some(requests) = fitting else {
            let has_none = |file: &&Described| alternatives.iter().all(|requests| !file.has(requests));
            let lacks_first = |file: &&Described| alternatives.first().is_some_and(|requests| !file.has(requests));
            if !files.iter().any(|file| has_none(&file))
                && let Some(fault) = alternatives.iter().find_map(|requests| differing(&files, requests))
            {
                return Err(fault);
            }
            let told = files.iter().find(has_none).or_else(|| files.iter().find(lacks_first));
            return match told {
                Some(file) => {
                    let mut fault = file.refused(alternatives, options.asker);
                    // Columns by other names would be those of this file alone.
                    let whole = files.iter().find(|file| !has_none(file));
                    if let (DataError::Columns { hints, .. }, Some(whole)) = (&mut fault, whole) {
                        let whole = whole.path();
                        *hints =
                            vec![format!("files of one table need the same columns: `{}` has them", whole.display())];
                    }
                    Err(fault)
                }
                None => Err(DataError::Source { spec: String::new(), reason: "no columns are asked for".into() }),
            };
        };
        let options = Arc::new(options);
        let further = further(requests);
        let open = |file: Described| {
            let requests = if file.has(requests) { requests } else { &further };
            DataFile::new(file, requests, options.clone())
        };
        let files = files.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for (number, request) in requests.iter().enumerate() {
            let with = files.iter().find(|file| file.has(number));
            let without = files.iter().find(|file| !file.has(number));
            if let (Some(with), Some(without)) = (with, without) {
                return Err(DataError::FilesDiffer {
                    column: request.column.clone(),
                    with: with.path.to_path_buf(),
                    without: without.path.to_path_buf(),
                });
            }
        }
        for (number, request) in requests.iter().enumerate() {
            let named = files.iter().find(|file| file.names(number) == Some(true));
            let has_rows = |file: &&DataFile| (0..file.row_groups()).any(|group| file.claimed_rows(group) > 0);
            let nameless = files.iter().filter(has_rows).find(|file| file.names(number) == Some(false));
            if let (Some(named), Some(nameless)) = (named, nameless) {
                return Err(DataError::NamesDiffer {
                    column: request.column.clone(),
                    named: named.path.to_path_buf(),
                    nameless: nameless.path.to_path_buf(),
                });
            }
        }
        Ok(Self {
            files,
            requests: requests.clone(),
            decoding: Decoding::default(),
            presumed: None,
            is_digested: false,
        })
    }

    /// With pictures that are read otherwise.
    #[must_use]
    pub fn with_decoding(mut self, decoding: Decoding) -> Self {
        self.decoding = decoding;
        self
    }

    /// With digests of what a scan reads of it ([`Index::contents`]).
    #[must_use]
    pub fn with_digests(mut self, is_digested: bool) -> Self {
        self.is_digested = is_digested;
        self
    }

    /// Rows of all files, as they claim.
    pub fn claimed_rows(&self) -> u64 {
        self.files
            .iter()
            .flat_map(|file| (0..file.row_groups()).map(|g| file.claimed_rows(g)))
            .fold(0, u64::saturating_add)
    }

    /// Each file with its number of row groups and rows, as it claims.
    pub fn files(&self) -> impl Iterator<Item = (&Path, usize, u64)> {
        self.files.iter().map(|file| {
            let rows = (0..file.row_groups()).map(|g| file.claimed_rows(g)).fold(0, u64::saturating_add);
            (file.path.as_ref(), file.row_groups(), rows)
        })
    }

    /// Where each file is, its bytes, and its rows, as it claims.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&FileSource, u64, u64)> {
        self.files.iter().zip(self.files()).map(|(file, (_, _, rows))| (&file.source, file.length, rows))
    }

    /// Every column of the first file: name and type.
    pub fn columns(&self) -> Vec<(String, String)> {
        self.files.first().into_iter().flat_map(|file| file.columns().map(|(name, kind)| (name.into(), kind))).collect()
    }

    /// What was asked for.
    pub fn requests(&self) -> &[ColumnRequest] {
        &self.requests
    }

    /// Whether the files have the column of a role.
    pub fn has(&self, role: &str) -> bool {
        let place = self.requests.iter().position(|request| request.role == role);
        place.is_some_and(|number| self.files.iter().any(|file| file.has(number)))
    }

    /// Looks at every row once, row group by row group, rows of a batch in parallel. Of files on a hub the next one is
    /// downloaded meanwhile.
    ///
    /// # Errors
    /// A damaged row group; too many bad rows, or no good one, where `options.limit` is given.
    pub fn scan(&self, options: &ScanOptions<'_>, progress: &mut dyn FnMut(ScanProgress)) -> Result<Index, DataError> {
        let of = self.claimed_rows();
        let fully_decoded = of <= options.decode_rows;
        let kept = options
            .limit
            .map_or(usize::MAX, |limit| limit.allowed(usize::try_from(of).unwrap_or(usize::MAX)))
            .min(MAX_LISTED_ROWS);
        let files_together = if self.files.iter().any(|file| file.shard().is_some()) { HUB_FILES_TOGETHER } else { 0 };
        let contents = vec![Vec::new(); self.files.len()];
        let mut index = Index { fully_decoded, files_together, contents, ..Index::default() };
        // Grey pictures have to be decoded to be looked at: of a large table only the first ones are.
        let looks = |row: usize| fully_decoded || (row as u64) < FULL_DECODE_ROWS;
        let digests = self.digests()?;
        let mut ahead = None;
        for (file_number, file) in self.files.iter().enumerate() {
            self.fetch(file_number, &mut ahead)?;
            for row_group in 0..file.row_groups() {
                let claimed = usize::try_from(file.claimed_rows(row_group)).unwrap_or(usize::MAX);
                let mut block = Block::new(file_number, row_group, 0);
                let (mut read, mut pictures) = (0, Sha256::new());
                index.unpacking_bytes = index.unpacking_bytes.max(file.check_pages(row_group)?.unpacking_bytes);
                let mut batches = file.watched_batches(row_group, 0..claimed, digests.as_ref())?;
                while let Some(batch) = batches.next(&self.requests)? {
                    if let Some(fault) = batch.fault_of_all() {
                        index.reject(&mut block, fault, batch.rows, |i| batch.id(i), kept);
                        read += batch.rows;
                        progress(ScanProgress { rows: index.rows as u64, of });
                        continue;
                    }
                    let verdicts: Vec<Result<Judged, RowFault>> = (0..batch.rows)
                        .into_par_iter()
                        .map(|i| self.judge(&batch, i, options, fully_decoded, looks(index.rows + i)))
                        .collect();
                    for (i, verdict) in verdicts.into_iter().enumerate() {
                        if let Ok(judged) = &verdict {
                            index.clipped_greys.add(judged.clipped_greys);
                            judged.pictures.iter().for_each(|picture| pictures.update(picture));
                        }
                        let verdict = verdict.map(|judged| judged.bytes);
                        index.record(&mut block, verdict, || batch.id(i), kept);
                    }
                    read += batch.rows;
                    progress(ScanProgress { rows: index.rows as u64, of });
                }
                if read != claimed {
                    return Err(file.damaged(row_group, format!("it claims {claimed} rows and holds {read}")));
                }
                index.close(block);
                index.contents[file_number]
                    .extend(digests.as_ref().map(|digests| digests.end(pictures.finalize().into())));
            }
        }
        if let Some(limit) = options.limit {
            index.enforce(limit)?;
        }
        Ok(index)
    }

    /// What works out digests, where they are asked for.
    fn digests(&self) -> Result<Option<Arc<Digests>>, DataError> {
        let path = || self.files.first().map_or_else(PathBuf::new, |file| file.path.to_path_buf());
        let started = self.is_digested.then(Digests::start).transpose();
        Ok(started.map_err(|source| DataError::Io { path: path(), source })?.map(Arc::new))
    }

    /// Waits until a file is here, and starts to fetch the next one.
    fn fetch(&self, number: usize, ahead: &mut Option<JoinHandle<Result<PathBuf, HubError>>>) -> Result<(), DataError> {
        if let Some(shard) = self.files.get(number).and_then(DataFile::shard) {
            match ahead.take().map(JoinHandle::join) {
                Some(Ok(fetched)) => fetched?,
                // The first file, or a thread that came to nothing.
                None | Some(Err(_)) => shard.fetch(&Silent)?,
            };
        }
        if let Some(next) = self.files.get(number + 1).and_then(DataFile::shard) {
            let next = next.clone();
            *ahead = std::thread::Builder::new().spawn(move || next.fetch(&Silent)).ok();
        }
        Ok(())
    }

    fn judge(
        &self,
        batch: &Batch,
        i: usize,
        options: &ScanOptions<'_>,
        decode: bool,
        look_at_greys: bool,
    ) -> Result<Judged, RowFault> {
        let row = self.row(batch, i)?;
        let mut clipped_greys = ClippedGreys::default();
        for request in &self.requests {
            for image in row.images.get(request.role).into_iter().flatten() {
                check_image(image, &request.column, options.images, decode)?;
                // A panic in there is reported when the picture is decoded.
                let greatest = (look_at_greys && request.role != MASK_ROLE)
                    .then(|| guard::catch(|| (options.images.clipped_grey)(image)).ok().flatten());
                if let Some(greatest) = greatest.flatten() {
                    clipped_greys.add(ClippedGreys { pictures: 1, greatest });
                }
            }
        }
        (options.check)(&row).map_err(|reason| RowFault::Task { reason })?;
        let pictures = (self.is_digested && batch.names_files()).then(|| contents::of_pictures(&row));
        Ok(Judged { bytes: row.size_bytes(), clipped_greys, pictures })
    }

    /// The files.
    pub(super) fn data_files(&self) -> &[DataFile] {
        &self.files
    }

    /// A row of a batch, its pictures with how they are read.
    pub(super) fn row(&self, batch: &Batch, i: usize) -> Result<Row, RowFault> {
        let mut row = batch.row(i)?;
        for (role, images) in &mut row.images {
            // What a mask holds are no shades.
            let grey_bits = self.decoding.grey_bits.filter(|_| *role != MASK_ROLE);
            images.iter_mut().for_each(|image| image.decoding = Decoding { grey_bits, ..self.decoding });
        }
        Ok(row)
    }

    /// The accepted rows of a block, in their order.
    pub(crate) fn read_block(&self, block: &Block) -> Result<Vec<Row>, DataError> {
        if let Some(lengths) = &self.presumed {
            return Ok((0..block.rows).map(|row| self.imagined(self.row_id(block, row), lengths)).collect());
        }
        let file = &self.files[block.file];
        let mut rows = Vec::with_capacity(block.accepted);
        let mut batches = file.batches(block.row_group, block.first_row..block.first_row + block.rows)?;
        let mut read = 0;
        while let Some(batch) = batches.next(&self.requests)? {
            for i in (0..batch.rows).filter(|i| block.accepts(read + i)) {
                rows.push(
                    self.row(&batch, i)
                        .map_err(|fault| DataError::RowChanged { id: batch.id(i), reason: fault.to_string() })?,
                );
            }
            read += batch.rows;
        }
        if read != block.rows {
            let end = block.first_row + block.rows;
            return Err(
                file.damaged(block.row_group, format!("rows {} to {end} are not all there any more", block.first_row))
            );
        }
        Ok(rows)
    }

    /// The name of a row of a block.
    pub(crate) fn row_id(&self, block: &Block, row: usize) -> RowId {
        RowId { file: Arc::clone(&self.files[block.file].path), row_group: block.row_group, row: block.first_row + row }
    }
}

/// What is known of a good row.
struct Judged {
    /// Size of its values.
    bytes: u64,
    clipped_greys: ClippedGreys,
    /// The digest of its pictures, where they may lie in files of their own.
    pictures: Option<Digest>,
}

/// What a scan found: good rows by block, and the bad ones.
#[derive(Debug, Clone, Default)]
pub struct Index {
    blocks: Vec<Block>,
    rows: usize,
    accepted: usize,
    bytes: u64,
    rejected: Rejected,
    fully_decoded: bool,
    clipped_greys: ClippedGreys,
    /// Blocks are shuffled within so many files at a time, 0 over all.
    files_together: usize,
    /// What the pages of the row group that takes most take while they are unpacked.
    unpacking_bytes: u64,
    /// Of each file, the digests of its row groups.
    contents: Vec<Vec<Digest>>,
}

impl Index {
    /// How many files an epoch's order mixes at a time; 0 for all of them.
    pub(crate) fn files_together(&self) -> usize {
        self.files_together
    }

    /// Rows looked at.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Good rows: those of an epoch.
    pub fn accepted_rows(&self) -> usize {
        self.accepted
    }

    /// Bad rows.
    pub fn rejected_rows(&self) -> usize {
        self.rejected.rows()
    }

    /// The bad rows, in the table's order. Where the scan's limit was passed, or [`MAX_LISTED_ROWS`], only the first of them.
    pub fn rejected(&self) -> &[RejectedRow] {
        self.rejected.listed()
    }

    /// Why rows are bad, all of them counted.
    pub fn reasons(&self) -> &[Reason] {
        self.rejected.reasons()
    }

    /// Memory that a stream's rows take at most, about: those of one window, each with what holds its values.
    pub fn window_bytes(&self) -> u64 {
        let (rows, accepted) = (self.accepted.min(WINDOW_ROWS) as u64, self.accepted.max(1) as u64);
        let values = u128::from(self.bytes) * u128::from(rows) / u128::from(accepted);
        let values = u64::try_from(values).unwrap_or(u64::MAX).min(WINDOW_BYTES);
        values + rows * ROW_BYTES
    }

    /// Memory that reading a window takes at most beside its rows: pages as they are packed and unpacked.
    pub fn unpacking_bytes(&self) -> u64 {
        self.unpacking_bytes
    }

    /// What each row group of a file is known by, where the table is one [`Table::with_digests`].
    pub fn contents(&self, file: usize) -> &[Digest] {
        self.contents.get(file).map_or(&[], Vec::as_slice)
    }

    /// Size of the good rows' values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every image was decoded, so that no good row can turn out damaged later.
    pub fn fully_decoded(&self) -> bool {
        self.fully_decoded
    }

    /// Pictures of good rows whose shades are lost in white; of a table that is not fully decoded, among the first
    /// [`FULL_DECODE_ROWS`].
    pub fn clipped_greys(&self) -> ClippedGreys {
        self.clipped_greys
    }

    /// Blocks with good rows, in the table's order.
    /// The number among all rows, from 0, of a good one by its number among the good ones.
    pub(crate) fn number_of(&self, good: usize) -> Option<usize> {
        let (mut rows, mut left) = (0, good);
        for block in &self.blocks {
            if left < block.accepted {
                let within = (0..block.rows).filter(|row| block.accepts(*row)).nth(left)?;
                return Some(rows + within);
            }
            (rows, left) = (rows + block.rows, left - block.accepted);
        }
        None
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Refuses a table with more bad rows than allowed, or without good ones.
    ///
    /// # Errors
    /// [`DataError::NoAcceptedRows`], [`DataError::TooManyBadRows`].
    pub fn enforce(&self, limit: BadRowLimit) -> Result<(), DataError> {
        let first = || self.rejected.listed().iter().take(FIRST_REJECTED).cloned().collect();
        if self.accepted == 0 {
            return Err(DataError::NoAcceptedRows { rows: self.rows, first: first() });
        }
        if self.rejected_rows() > limit.allowed(self.rows) {
            return Err(DataError::TooManyBadRows {
                bad: self.rejected_rows(),
                rows: self.rows,
                limit,
                first: first(),
            });
        }
        Ok(())
    }

    /// `kept`: bad rows whose particulars are kept, beyond the first few that any message shows.
    fn record(&mut self, block: &mut Block, verdict: Result<u64, RowFault>, id: impl Fn() -> RowId, kept: usize) {
        let bytes = match verdict {
            Ok(bytes) => Some(bytes),
            Err(fault) => return self.reject(block, fault, 1, |_| id(), kept),
        };
        self.push(block, bytes);
    }

    /// So many bad rows in turn, for one reason.
    fn reject(&mut self, block: &mut Block, fault: RowFault, rows: usize, id: impl Fn(usize) -> RowId, kept: usize) {
        (0..rows).for_each(|_| self.push(block, None));
        self.rejected.add(fault, rows, id, kept.max(FIRST_REJECTED));
    }

    fn push(&mut self, block: &mut Block, bytes: Option<u64>) {
        self.rows += 1;
        block.push(bytes);
        if block.rows == BLOCK_ROWS || block.bytes >= BLOCK_BYTES {
            let next = Block::new(block.file, block.row_group, block.first_row + block.rows);
            self.close(std::mem::replace(block, next));
        }
    }

    fn close(&mut self, block: Block) {
        if block.accepted > 0 {
            self.accepted += block.accepted;
            self.bytes += block.bytes;
            self.blocks.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shuffle::{EpochOrder, WINDOW_BYTES};

    #[test]
    fn blocks_and_windows_are_bounded_by_bytes() {
        let id = |row| RowId { file: Path::new("a").into(), row_group: 0, row };
        let mut index = Index::default();
        let mut block = Block::new(0, 0, 0);
        // Each row a quarter of a block, every fifth one bad.
        for row in 0..100 {
            let fault = RowFault::Null { column: "image".into() };
            let verdict = if row % 5 == 4 { Err(fault) } else { Ok(BLOCK_BYTES / 4) };
            index.record(&mut block, verdict, || id(row), 10);
        }
        index.close(block);
        assert_eq!((index.rows(), index.accepted_rows(), index.rejected_rows()), (100, 80, 20));
        assert_eq!(index.rejected().len(), 10, "the others are only counted");
        assert!(index.blocks().iter().all(|block| block.bytes <= BLOCK_BYTES && block.accepted <= 4));
        assert_eq!(index.blocks().iter().map(|block| block.accepted).sum::<usize>(), 80);
        assert!(index.blocks().windows(2).all(|two| two[0].first_row + two[0].rows <= two[1].first_row));
        for epoch in 0..3 {
            let order = EpochOrder::new(&index, epoch, 1, true);
            for window in order.windows() {
                let bytes: u64 = order.blocks(window).iter().map(|&block| index.blocks()[block].bytes).sum();
                assert!(bytes <= WINDOW_BYTES);
            }
            assert!(order.windows().len() >= 5);
            assert_eq!(order.rows(), 80);
        }
    }
}
