//! The tables of a recipe, opened and looked through before the run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use janus_core::noise;
use janus_core::processing::clipped_grey;
use janus_core::{Janus, guard};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::prefetch::{Drafted, Drafts, ReadAhead, draft};
use super::readings::evaluated_otherwise;
use crate::base::{Base, BaseError};
use crate::cache::stock::{hold, make_room};
use crate::cache::{CacheSettings, Place};
use crate::data::index::FULL_DECODE_ROWS;
use crate::data::index::presumed::LABELS;
use crate::data::synth::SynthSpec;
use crate::data::{
    Asker, BadRowLimit, DataError, EncodedImage, FileSource, ImageChecks, Index, Position, ReadOptions, Row, RowId,
    RowStream, ScanOptions, Split, Table, locate,
};
use crate::error::Result;
use crate::recipe::{DataLimits, DataSection, Recipe, Task as TaskName};
use crate::status::Status;
use crate::tasks::{self, Draft, Sample, Task, label_column};

/// Most labels of a table to classify.
const MAX_LABELS: usize = 10_000;

/// How closely rows are looked at beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// How many may be bad; `None` refuses nothing.
    pub limit: Option<BadRowLimit>,
    /// Tables of at most so many rows have every image decoded.
    pub decode_rows: u64,
    /// Bytes that a page of a file may unpack to.
    pub max_page_bytes: u64,
    /// Bytes that a file of a hub may have whose size it does not tell.
    pub max_download_bytes: Option<u64>,
    /// Whether it is found out what the rows are known by, for who goes on with them later.
    pub is_digested: bool,
}

impl Scan {
    /// Every image decoded, no row refused.
    pub fn of_everything(limits: &DataLimits) -> Self {
        let DataLimits { max_page_bytes, max_download_bytes, .. } = *limits;
        Self { limit: None, decode_rows: u64::MAX, max_page_bytes, max_download_bytes, is_digested: false }
    }

    /// Headers of large tables alone, no row refused.
    pub fn of_a_look(limits: &DataLimits) -> Self {
        Self { decode_rows: FULL_DECODE_ROWS, ..Self::of_everything(limits) }
    }

    /// What a run asks: a picture that it will read may not turn out to be damaged on the way. Where it reads fewer rows
    /// than a large table has, looking at all of them would take longer than the run.
    fn before(recipe: &Recipe) -> Self {
        let train = &recipe.train;
        let rows = |steps: u64| steps.saturating_mul(train.batch_size).saturating_mul(train.grad_accumulation);
        let decode_rows = train.steps.map_or(u64::MAX, rows).max(FULL_DECODE_ROWS);
        let limit = Some(recipe.data_limits.max_bad_rows);
        Self { limit, decode_rows, is_digested: true, ..Self::of_everything(&recipe.data_limits) }
    }
}

/// Rows of one split.
#[derive(Debug, Clone)]
pub struct Source {
    /// The files.
    pub table: Arc<Table>,
    /// Which rows are good.
    pub index: Arc<Index>,
    /// What is to be told of its rows as a whole.
    pub notes: Arc<[String]>,
}

/// The rows of a table that a recipe names in one place.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The table.
    pub section: &'a DataSection,
    /// Its number among the recipe's tables; `None` where there is no recipe.
    pub number: Option<usize>,
    /// Which of its rows.
    pub split: Split,
}

impl<'a> Part<'a> {
    /// What the recipe says there.
    fn spec(&self) -> &'a str {
        self.section.spec(self.split)
    }

    /// The files; a drawn one is drawn first, and stays while this process lives.
    pub(crate) fn files(
        &self,
        place: &Place,
        max_download_bytes: Option<u64>,
        status: &dyn Status,
    ) -> Result<Vec<FileSource>> {
        let downloads = status.download();
        let in_folder = |folder: &Path| {
            let found = locate(self.spec(), Path::new("."), folder, self.split, max_download_bytes, downloads.as_ref());
            found.map_err(|fault| BaseError::in_cache(folder.to_path_buf(), self.named(fault).into()))
        };
        let Ok(drawn) = self.spec().parse::<SynthSpec>() else { return in_folder(&place.folder()?.join("data")) };
        let folder = place.data_folder(Path::new(&drawn.file_name()))?;
        let mut files = in_folder(&folder)?;
        if place.is_scratch() {
            return Ok(files);
        }
        let is_held = |file: &FileSource| matches!(file, FileSource::Local(path) if hold(path));
        if !files.iter().all(is_held) {
            // Another process gave it up at this moment.
            files = in_folder(&folder)?;
            files.iter().for_each(|file| {
                is_held(file);
            });
        }
        make_room(&CacheSettings::from_environment()?, 0);
        Ok(files)
    }

    /// A fault with the key of the recipe that names the rows.
    fn named(&self, fault: DataError) -> DataError {
        let key = match self.split {
            Split::Train => "train",
            Split::Eval => "eval",
        };
        match (self.number, fault) {
            // Of the cache, whatever names the rows.
            (_, fault @ DataError::Output(_)) | (None, fault) => fault,
            (Some(number), fault) => DataError::Named { key: format!("data.{number}.{key}"), fault: Box::new(fault) },
        }
    }

    /// How the files are read.
    pub(crate) fn read_options(&self, max_page_bytes: u64) -> ReadOptions {
        let asker = if self.number.is_some() { Asker::Recipe } else { Asker::Command };
        let image_root = self.section.image_root.as_ref().map(PathBuf::from);
        ReadOptions { asker, image_root, max_page_bytes, ..ReadOptions::default() }
    }
}

impl Source {
    /// Finds, opens and looks through the rows of a part.
    ///
    /// # Errors
    /// No files, columns that are missing or of another type, too many bad rows, or no good one; rows that as a whole are not
    /// what the recipe says.
    pub fn open(part: Part<'_>, task: &dyn Task, base: &Base, scan: Scan, status: &dyn Status) -> Result<Self> {
        let spec = part.spec();
        let files = part.files(base.place(), scan.max_download_bytes, status)?;
        let table = Table::open_with(&files, &task.alternatives(), part.read_options(scan.max_page_bytes))?;
        let mut table = table.with_decoding(part.section.decoding()).with_digests(scan.is_digested);
        if base.place().is_scratch() && table.is_elsewhere() {
            status.note(&format!(
                "the rows of `{spec}` are not here and not looked at: there are as many as its files claim, as long as they are on average"
            ));
            let index = table.presume()?;
            return Ok(Self { table: Arc::new(table), index: Arc::new(index), notes: Vec::new().into() });
        }
        let images = ImageChecks {
            dimensions: |image| image.dimensions().map_err(|e| e.to_string()),
            decode: |image| image.decode().map(|_| ()).map_err(|e| e.to_string()),
            clipped_grey: |image| clipped_grey(&image.bytes, image.decoding).ok().flatten(),
        };
        let Scan { limit, decode_rows, .. } = scan;
        // Rows of the batches before: which ones are looked at closely depends on nothing else.
        let done = AtomicU64::new(0);
        let check = |row: &Row| {
            task.check(base, row)?;
            if done.load(Ordering::Relaxed) < decode_rows {
                guard::catch(|| task.look(row)).and_then(|seen| seen)
            } else {
                Ok(())
            }
        };
        let bar = status.items(&format!("checking {spec}"), table.claimed_rows());
        let options = ScanOptions { images, check: &check, limit, decode_rows };
        let scanned = table.scan(&options, &mut |progress| {
            done.store(progress.rows, Ordering::Relaxed);
            bar.set(progress.rows, progress.of);
        });
        bar.finish();
        // What is wrong with all rows says more than what is wrong with each.
        let is_of_rows =
            |error: &DataError| matches!(error, DataError::TooManyBadRows { .. } | DataError::NoAcceptedRows { .. });
        let notes = if scanned.as_ref().err().is_none_or(is_of_rows) { task.conclude(part.split)? } else { Vec::new() };
        Ok(Self { table: Arc::new(table), index: Arc::new(scanned?), notes: notes.into() })
    }

    /// What is lost in white of its pictures, in words; `None` where nothing is.
    pub fn clipped_greys(&self) -> Option<String> {
        let greys = self.index.clipped_greys();
        let of =
            if self.index.fully_decoded() { String::new() } else { format!(" of the first {FULL_DECODE_ROWS} rows") };
        (greys.pictures > 0).then(|| {
            format!(
                "{} pictures{of} are 16-bit grey with values up to {}, and everything above 255 becomes white: \
                 `grey_bits = {}` in their `[[data]]` scales them",
                greys.pictures,
                greys.greatest,
                greys.bits()
            )
        })
    }

    /// All good rows once, in the order of the files.
    ///
    /// # Errors
    /// None of them can be streamed.
    pub fn rows(&self) -> Result<impl Iterator<Item = Result<Row>>> {
        let stream = RowStream::new(self.table.clone(), self.index.clone(), 0, false)?;
        let count = stream.rows_per_epoch();
        Ok(stream.take(count).map(|row| Ok(row?)))
    }
}

/// One `[[data]]` table of a recipe. Copies share everything.
#[derive(Debug, Clone)]
pub struct RecipeTable {
    /// What the recipe says.
    pub section: DataSection,
    /// Its task.
    pub task: Arc<dyn Task>,
    /// Rows to train on.
    pub train: Source,
    /// Rows to evaluate on.
    pub eval: Option<Source>,
}

/// The task of a table: where its head tells labels, they are read first from its rows to train on. `number` is its number among
/// the recipe's tables, `None` where there is no recipe.
///
/// # Errors
/// No files, columns that are missing or of another type, or labels that are too few or too many.
pub fn open_task(
    section: &DataSection,
    number: Option<usize>,
    limits: &DataLimits,
    place: &Place,
    status: &dyn Status,
) -> Result<Arc<dyn Task>> {
    let unlabelled = tasks::task(section, &[], limits);
    let Some(request) = label_column(section) else { return Ok(unlabelled) };
    let spec = &section.train;
    let part = Part { section, number, split: Split::Train };
    let files = part.files(place, limits.max_download_bytes, status)?;
    let options = || part.read_options(limits.max_page_bytes);
    // All columns, so that all that is wrong with them is reported at once.
    let all = Table::open_with(&files, &unlabelled.alternatives(), options())?;
    if place.is_scratch() && all.is_elsewhere() {
        return Ok(tasks::task(section, &LABELS.map(str::to_owned), limits));
    }
    let table = Arc::new(Table::open_with(&files, &[vec![request.clone()]], options())?);
    // A column without pictures: nothing is decoded.
    let no_image = |_: &EncodedImage| Err(String::new());
    let images = ImageChecks { dimensions: no_image, decode: |_| Err(String::new()), clipped_grey: |_| None };
    let bar = status.items(&format!("labels of {spec}"), table.claimed_rows());
    let options = ScanOptions { images, check: &|_| Ok(()), limit: None, decode_rows: 0 };
    let index = table.scan(&options, &mut |progress| bar.set(progress.rows, progress.of))?;
    bar.finish();
    let mut labels = BTreeSet::new();
    let source = Source { table, index: Arc::new(index), notes: Arc::default() };
    if source.index.accepted_rows() > 0 {
        for row in source.rows()? {
            let row = row?;
            let all = row.texts.values().chain(row.lists.values().flatten());
            labels.extend(all.map(|label| label.trim().to_owned()));
            if labels.len() > MAX_LABELS {
                break;
            }
        }
    }
    // One label for all pictures tells nothing; all boxes may well be of one.
    let least = if section.task == TaskName::Classify { 2 } else { 1 };
    if !(least..=MAX_LABELS).contains(&labels.len()) {
        let (table, column, count) = (section.name.clone(), request.column, labels.len());
        return Err(TrainError::Labels { table, column, count, least, most: MAX_LABELS }.into());
    }
    Ok(tasks::task(section, &labels.into_iter().collect::<Vec<_>>(), limits))
}

/// Opens every table of a recipe.
///
/// # Errors
/// As [`Source::open`].
pub fn open_tables(recipe: &Recipe, base: &Base, status: &dyn Status) -> Result<Vec<RecipeTable>> {
    let scan = Scan::before(recipe);
    let all = Scan { decode_rows: u64::MAX, ..scan };
    let mut tables = Vec::with_capacity(recipe.data.len());
    for (number, section) in recipe.data.iter().enumerate() {
        let part = |split| Part { section, number: Some(number), split };
        let task = open_task(section, Some(number), &recipe.data_limits, base.place(), status)?;
        let train = Source::open(part(Split::Train), task.as_ref(), base, scan, status)?;
        train.notes.iter().for_each(|note| status.note(&format!("{}: {note}", section.name)));
        let eval = match &section.eval {
            Some(_) => Some(Source::open(part(Split::Eval), task.as_ref(), base, all, status)?),
            None => None,
        };
        let clipped = [Some(&train), eval.as_ref()].into_iter().flatten().filter_map(Source::clipped_greys);
        if let Some(clipped) = clipped.reduce(|train, eval| format!("{train}; to evaluate, {eval}")) {
            status.warn(&format!("`{}`: {clipped}", section.name));
        }
        tables.push(RecipeTable { section: section.clone(), task, train, eval });
    }
    for (name, difference) in evaluated_otherwise(&recipe.data) {
        status.warn(&format!("`{name}` is only evaluated, and its pictures are read otherwise: {difference}"));
    }
    Ok(tables)
}

/// A place in a stream of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleState {
    /// Where the next row stands.
    pub position: Position,
    /// Samples given so far.
    pub count: u64,
}

/// Endless samples of one table, in the order that the seed gives.
///
/// Its place is that of the next row it gives out, whatever was read ahead of it.
#[derive(Debug)]
pub struct SampleStream {
    rows: RowStream,
    task: Arc<dyn Task>,
    key: u64,
    count: u64,
    /// Rows that are read ahead on threads of their own.
    rows_ahead: usize,
    /// So many threads.
    row_threads: usize,
    ahead: Option<ReadAhead>,
    waited: Duration,
}

impl SampleStream {
    /// From the first row of epoch 0.
    ///
    /// # Errors
    /// The table has no good row.
    pub fn new(table: &RecipeTable, seed: u64, shuffle: bool) -> Result<Self> {
        let key = noise::combine(seed, noise::key_of(&table.section.name));
        let rows = RowStream::new(table.train.table.clone(), table.train.index.clone(), key, shuffle)?;
        Ok(Self {
            rows,
            task: table.task.clone(),
            key: noise::combine(key, 1),
            count: 0,
            rows_ahead: 0,
            row_threads: 1,
            ahead: None,
            waited: Duration::ZERO,
        })
    }

    /// Reads, decodes and resizes so many rows ahead on `threads` threads, from the first [`SampleStream::next`] on; 0 rows
    /// reads each when it is asked for. The samples are the same.
    #[must_use]
    pub fn with_rows_ahead(mut self, rows: usize, threads: usize) -> Self {
        (self.rows_ahead, self.row_threads, self.ahead) = (rows, threads, None);
        self
    }

    /// Time that was spent waiting for rows to be read and decoded since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Where the next sample stands.
    pub fn state(&self) -> SampleState {
        SampleState { position: self.rows.position(), count: self.count }
    }

    /// Goes on from a place that [`SampleStream::state`] gave, here or in another process.
    ///
    /// # Errors
    /// [`DataError::NoPosition`]: the table has no such place, or not after so many samples.
    pub fn restore(&mut self, state: SampleState) -> Result<()> {
        let rows = self.rows.rows_per_epoch();
        let Position { epoch, index } = state.position;
        if u128::from(epoch) * rows as u128 + index as u128 != u128::from(state.count) {
            return Err(DataError::NoPosition { index, rows }.into());
        }
        self.rows.seek(state.position)?;
        self.count = state.count;
        Ok(())
    }

    /// The rows of the `count` samples from a place on.
    pub fn row_ids(&self, from: SampleState, count: usize) -> Vec<RowId> {
        self.rows.row_ids(from.position, count)
    }

    /// The next sample.
    ///
    /// # Errors
    /// A row that was good when it was looked through and is not any more.
    pub fn next(&mut self, base: &Base, model: &Janus) -> Result<Sample> {
        let started = Instant::now();
        let drafted = self.next_draft(base);
        self.waited += started.elapsed();
        let Drafted { row, draft } = drafted?;
        let sample = draft.finish(base, model);
        if let (Some(ahead), Some(took_pixels)) = (&self.ahead, draft.took_pixels()) {
            ahead.tell(took_pixels);
        }
        sample.map_err(|source| TrainError::Row { row, source: Box::new(source) }.into())
    }

    /// Lets the threads that read ahead rest while the guard lives.
    pub(super) fn pause(&self) -> Option<MutexGuard<'_, bool>> {
        self.ahead.as_ref().map(ReadAhead::pause)
    }

    /// Ends the threads that read ahead, with what they have read. Its place stays.
    pub(super) fn stop_reading_ahead(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.end();
        }
    }

    /// The next sample as far as it needs no model, and its row; without reading ahead.
    ///
    /// # Errors
    /// As [`SampleStream::next`], where nothing needs decoding.
    pub fn draft(&mut self, base: &Base) -> Result<(RowId, Draft)> {
        let Drafted { row, draft } = self.next_draft(base)?;
        Ok((row, draft))
    }

    fn next_draft(&mut self, base: &Base) -> Result<Drafted> {
        let place = self.state();
        if self.rows_ahead == 0 {
            let row = self.rows.next_row()?;
            self.count += 1;
            return draft(self.task.as_ref(), base, self.key, place.count, row);
        }
        // Also where the stream was moved since the last row.
        if self.ahead.as_ref().is_none_or(|ahead| ahead.place() != place) {
            // The old threads' rows go before new ones come.
            self.ahead = None;
            let source = Drafts { rows: self.rows.fork(), task: self.task.clone(), key: self.key, count: self.count };
            self.ahead = Some(ReadAhead::start(source, base.clone(), self.rows_ahead, self.row_threads)?);
        }
        let Some(ahead) = &mut self.ahead else { unreachable!("started above") };
        let drafted = ahead.next();
        match drafted {
            Ok(drafted) => {
                self.rows.skip_row();
                self.count += 1;
                ahead.moved_to(SampleState { position: self.rows.position(), count: self.count });
                Ok(drafted)
            }
            Err(error) => {
                self.ahead = None;
                Err(error)
            }
        }
    }
}
