//! The tables of a recipe, opened and looked through before the run.

use std::path::Path;
use std::sync::Arc;

use janus_core::Janus;
use janus_core::noise;
use janus_core::processing::{decode_image, image_dimensions};
use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::base::{Base, cache_folder};
use crate::data::{
    BadRowLimit, DataError, ImageChecks, Index, Position, Row, RowId, RowStream, ScanOptions, Split, Table, locate,
};
use crate::error::Result;
use crate::recipe::{DataSection, Recipe};
use crate::status::Status;
use crate::tasks::{self, Context, Sample, Task};

/// Rows of one split.
#[derive(Debug, Clone)]
pub struct Source {
    /// The files.
    pub table: Arc<Table>,
    /// Which rows are good.
    pub index: Arc<Index>,
}

impl Source {
    /// Finds, opens and looks through the rows of `spec`. `limit` says how many may be bad, `None` refuses nothing.
    ///
    /// # Errors
    /// No files, columns that are missing or of another type, too many bad rows, or no good one.
    pub fn open(
        spec: &str,
        split: Split,
        task: &dyn Task,
        base: &Base,
        limit: Option<BadRowLimit>,
        status: &dyn Status,
    ) -> Result<Self> {
        let files = locate(spec, Path::new("."), &cache_folder().join("data"), split)?;
        let table = Table::open(&files, &task.columns())?;
        let images = ImageChecks {
            dimensions: |bytes| image_dimensions(bytes).map_err(|e| e.to_string()),
            decode: |bytes| decode_image(bytes).map(|_| ()).map_err(|e| e.to_string()),
        };
        let check = |row: &Row| task.check(base, row);
        let bar = status.items(&format!("checking {spec}"), table.claimed_rows());
        let options = ScanOptions { images, check: &check, limit };
        let index = table.scan(&options, &mut |progress| bar.set(progress.rows, progress.of))?;
        bar.finish();
        Ok(Self { table: Arc::new(table), index: Arc::new(index) })
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

/// One `[[data]]` table of a recipe.
#[derive(Debug)]
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

/// Opens every table of a recipe.
///
/// # Errors
/// As [`Source::open`].
pub fn open_tables(recipe: &Recipe, base: &Base, status: &dyn Status) -> Result<Vec<RecipeTable>> {
    let limit = Some(recipe.data_limits.max_bad_rows);
    let mut tables = Vec::with_capacity(recipe.data.len());
    for section in &recipe.data {
        let task = tasks::task(section);
        let train = Source::open(&section.train, Split::Train, task.as_ref(), base, limit, status)?;
        let eval = match &section.eval {
            Some(spec) => Some(Source::open(spec, Split::Eval, task.as_ref(), base, limit, status)?),
            None => None,
        };
        tables.push(RecipeTable { section: section.clone(), task, train, eval });
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
#[derive(Debug)]
pub struct SampleStream {
    rows: RowStream,
    task: Arc<dyn Task>,
    key: u64,
    count: u64,
}

impl SampleStream {
    /// From the first row of epoch 0.
    ///
    /// # Errors
    /// The table has no good row.
    pub fn new(table: &RecipeTable, seed: u64, shuffle: bool) -> Result<Self> {
        let key = noise::combine(seed, noise::key_of(&table.section.name));
        let rows = RowStream::new(table.train.table.clone(), table.train.index.clone(), key, shuffle)?;
        Ok(Self { rows, task: table.task.clone(), key: noise::combine(key, 1), count: 0 })
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
        let draw = Some(noise::uniform(self.key, self.count));
        self.count += 1;
        let row = self.rows.next_row()?;
        let sample = self.task.sample(Context { base, model, draw }, &row);
        sample.map_err(|source| TrainError::Row { row: row.id, source: Box::new(source) }.into())
    }
}
