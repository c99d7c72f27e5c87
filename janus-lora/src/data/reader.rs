//! One Parquet file: its description, and its row groups read batch by batch into rows.
//!
//! Only requested columns are read. A batch is sized by what its pages unpack to ([`super::checked`]), so that neither a huge
//! row group nor a huge file is ever in memory as a whole.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use janus_core::guard;
use janus_core::hub::{Shard, Silent};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::contents::{Digests, Watch};
use super::description::{hub_description, local_description, open_regular, refused_footer};
use super::error::DataError;
use super::rejected::{RowFault, cut};
use super::roles;
use super::row::{Row, RowId};
use super::schema::{ColumnFault, ColumnRequest, bind, type_name};
use super::source::FileSource;
use super::types::{Place, as_read, is_null, is_number, list_item};
use super::unpack::{self, Unpacking};
use super::values::{ImagePlaces, MAX_BOXES, Values, few};

/// Largest encoded image that is read, from a row or from a file it names; also the most that all images of a list may
/// have together.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Longest text that is read, all messages of a conversation taken together: some 250,000 tokens, which no model here has
/// places for.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Most images of a row: each is hundreds of tokens.
pub(super) const MAX_IMAGES: usize = 256;

/// Bytes that a page may unpack to where a table is opened without saying otherwise: hundreds of pictures of a megabyte.
pub const DEFAULT_PAGE_BYTES: u64 = 512 << 20;

/// What names a table, and so how what is to be set for it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asker {
    /// A recipe, with keys.
    #[default]
    Recipe,
    /// The command line, with options.
    Command,
}

impl Asker {
    /// What names a further folder of pictures.
    pub(super) fn image_root(self) -> &'static str {
        match self {
            Asker::Recipe => "`image_root` in the recipe's `[[data]]`",
            Asker::Command => "`--image-root`",
        }
    }

    /// How the columns of roles are given.
    pub(super) fn columns(self, columns: &[(&str, &str)]) -> String {
        let join = |pairs: Vec<String>, between| pairs.join(between);
        match self {
            Asker::Recipe => {
                let pairs = columns.iter().map(|(role, column)| format!("{role} = {column:?}")).collect();
                format!("`columns = {{ {} }}` in the recipe", join(pairs, ", "))
            }
            Asker::Command => {
                let is_plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
                let pair = |(role, column): &(&str, &str)| match column.chars().all(is_plain) {
                    true => format!("--column {role}={column}"),
                    false => format!("--column {:?}", format!("{role}={column}")),
                };
                format!("`{}`", join(columns.iter().map(pair).collect(), " "))
            }
        }
    }
}

/// How a table is read, whatever its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// What names it.
    pub asker: Asker,
    /// A folder that paths of images may lead into besides the table's own.
    pub image_root: Option<PathBuf>,
    /// Bytes that a page may unpack to (`data_limits.max_page_bytes`).
    pub max_page_bytes: u64,
    /// Whether columns are read that nobody asked for, too ([`WholeBatch`]).
    pub all_columns: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { asker: Asker::default(), image_root: None, max_page_bytes: DEFAULT_PAGE_BYTES, all_columns: false }
    }
}

/// A file that was found to describe itself soundly.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    source: FileSource,
    length: u64,
    metadata: ArrowReaderMetadata,
}

/// A file whose requested columns are known to be there, of the right types.
#[derive(Debug)]
pub(crate) struct DataFile {
    /// How messages name it.
    pub(crate) path: Arc<Path>,
    pub(crate) source: FileSource,
    /// Its size in bytes.
    pub(crate) length: u64,
    /// Columns as the file describes them.
    schema: SchemaRef,
    /// The description as it is in the file.
    pub(super) as_packed: Arc<ParquetMetaData>,
    /// The same with pages as [`Unpacking`] gives them, and requested columns as [`as_read`] asks.
    pub(super) metadata: ArrowReaderMetadata,
    /// Where each request is found; `None` for an optional one that is not there.
    columns: Vec<Option<Place>>,
    pub(super) options: Arc<ReadOptions>,
    /// Of each row group, the most rows that a batch may have, once its pages were looked at.
    pub(super) batch_rows: Vec<OnceLock<usize>>,
}

impl Described {
    /// Reads the file's description.
    pub(crate) fn new(source: &FileSource) -> Result<Self, DataError> {
        let path = source.shown();
        let unreadable = |reason: String| DataError::Unreadable { path: path.clone(), reason: cut(&reason) };
        let (metadata, length) = match source {
            FileSource::Local(path) => local_description(path)?,
            FileSource::Hub(shard) => match shard.cached()? {
                Some(path) => local_description(&path)?,
                None => match hub_description(shard)? {
                    Some(Ok(described)) => described,
                    Some(Err(fault)) => return Err(refused_footer(&path, fault)),
                    None => local_description(&shard.fetch(&Silent)?)?,
                },
            },
        };
        let (mut rows, claimed) = (0_i64, metadata.metadata().file_metadata().num_rows());
        for (number, row_group) in metadata.metadata().row_groups().iter().enumerate() {
            if row_group.num_rows() < 0 {
                return Err(unreadable(format!("row group {number} claims {} rows", row_group.num_rows())));
            }
            rows = rows.saturating_add(row_group.num_rows());
            for column in row_group.columns() {
                let range = chunk_range(column);
                if range.and_then(|(start, size)| start.checked_add(size)).is_none_or(|end| end > length) {
                    return Err(unreadable(format!(
                        "column `{}` of row group {number} lies outside the file's {length} bytes",
                        cut(&column.column_path().string())
                    )));
                }
                // A row has one value, or one at least in a list.
                let (values, rows, is_listed) =
                    (column.num_values(), row_group.num_rows(), column.column_descr().max_rep_level() > 0);
                if values < rows || (values > rows && !is_listed) {
                    return Err(unreadable(format!(
                        "column `{}` of row group {number} claims {values} values in {rows} rows",
                        cut(&column.column_path().string())
                    )));
                }
            }
        }
        if rows != claimed {
            return Err(unreadable(format!("it claims {claimed} rows, and its row groups {rows}")));
        }
        if let Some((row_group, column)) = shared_chunk(metadata.metadata()) {
            return Err(unreadable(format!(
                "column `{}` of row group {row_group} lies where another one does",
                cut(&column.column_path().string())
            )));
        }
        Ok(Self { source: source.clone(), length, metadata })
    }

    /// The error of a table none of whose alternatives has all its columns in this file.
    pub(crate) fn refused(&self, alternatives: &[Vec<ColumnRequest>], asker: Asker) -> DataError {
        let (faults, hints) = roles::refuse(self.metadata.schema(), alternatives, asker);
        DataError::Columns { path: self.source.shown(), faults, hints }
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> PathBuf {
        self.source.shown()
    }

    /// The first column that is not there, or of another type.
    pub(crate) fn lacking(&self, requests: &[ColumnRequest]) -> Option<String> {
        let fault = bind(self.metadata.schema(), requests).err()?.into_iter().next()?;
        Some(match fault {
            ColumnFault::Missing { column, .. }
            | ColumnFault::Repeated { column, .. }
            | ColumnFault::Type { column, .. } => column,
        })
    }

    /// Whether all columns are there.
    pub(crate) fn has(&self, requests: &[ColumnRequest]) -> bool {
        bind(self.metadata.schema(), requests).is_ok()
    }
}

impl DataFile {
    /// The file with these columns.
    pub(crate) fn new(
        file: Described,
        requests: &[ColumnRequest],
        options: Arc<ReadOptions>,
    ) -> Result<Self, DataError> {
        let path = file.source.shown();
        let unreadable = |reason: String| DataError::Unreadable { path: path.clone(), reason: cut(&reason) };
        let Described { source, length, metadata } = file;
        let schema = metadata.schema().clone();
        let columns = bind(&schema, requests).map_err(|faults| DataError::Columns {
            path: path.clone(),
            faults,
            hints: Vec::new(),
        })?;
        let as_packed = metadata.metadata().clone();
        let metadata = guard::catch(|| with_columns_as_read(&metadata, &columns, options.all_columns))
            .map_err(unreadable)?
            .map_err(|e| unreadable(e.to_string()))?;
        let batch_rows = (0..metadata.metadata().num_row_groups()).map(|_| OnceLock::new()).collect();
        Ok(Self { path: path.into(), source, length, schema, as_packed, metadata, columns, options, batch_rows })
    }

    /// The file's bytes, brought here first if they are on a hub.
    pub(super) fn file(&self) -> Result<std::fs::File, DataError> {
        match &self.source {
            FileSource::Local(path) => open_regular(path),
            FileSource::Hub(shard) => {
                // Another run may give the file up before it is open.
                const ATTEMPTS: usize = 3;
                let mut opened = open_regular(&shard.fetch(&Silent)?);
                for _ in 1..ATTEMPTS {
                    match opened {
                        Err(DataError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                            opened = open_regular(&shard.fetch(&Silent)?);
                        }
                        _ => break,
                    }
                }
                opened
            }
        }
    }

    /// The file with pages of a row group as the description has them.
    pub(super) fn unpacking(&self, row_group: usize) -> Result<Unpacking, DataError> {
        Ok(Unpacking::new(self.file()?, self.as_packed.row_group(row_group)))
    }

    /// The file, if it is on a hub.
    pub(crate) fn shard(&self) -> Option<&Shard> {
        match &self.source {
            FileSource::Local(_) => None,
            FileSource::Hub(shard) => Some(shard),
        }
    }

    /// Number of row groups.
    pub(crate) fn row_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// Rows of a row group, as the file claims.
    pub(crate) fn claimed_rows(&self, row_group: usize) -> u64 {
        self.metadata.metadata().row_group(row_group).num_rows().unsigned_abs()
    }

    /// Bytes of the values of the column of a request, as the file claims.
    pub(crate) fn claimed_bytes(&self, request: usize) -> u64 {
        let Some(place) = self.columns.get(request).and_then(Option::as_ref) else { return 0 };
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), [place.root]);
        let groups = self.metadata.metadata().row_groups().iter();
        let columns = groups.flat_map(|group| group.columns().iter().enumerate());
        let own = columns.filter(|(leaf, _)| mask.leaf_included(*leaf));
        own.fold(0, |sum, (_, column)| sum.saturating_add(column.uncompressed_size().unsigned_abs()))
    }

    /// Every column's name and type, in the file's order.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (&str, String)> {
        self.schema.fields().iter().map(|field| (field.name().as_str(), type_name(field.data_type())))
    }

    /// The columns as the file describes them.
    pub(super) fn own_schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The columns as they are read.
    pub(super) fn read_schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Whether the file has the column of the request at this place in the list of requests.
    pub(crate) fn has(&self, request: usize) -> bool {
        self.columns.get(request).is_some_and(Option::is_some)
    }

    /// Whether the numbers of a requested column have names; `None` where it holds no numbers.
    pub(crate) fn names(&self, request: usize) -> Option<bool> {
        let place = self.columns.get(request)?.as_ref()?;
        let mut item = &place.data_type;
        while let Some(inner) = list_item(item).filter(|_| !is_null(item)) {
            item = inner;
        }
        (is_number(item) && !is_null(item)).then_some(place.names.is_some())
    }

    /// Starts to read rows `rows` of a row group.
    pub(crate) fn batches(&self, row_group: usize, rows: Range<usize>) -> Result<Batches<'_>, DataError> {
        self.watched_batches(row_group, rows, None)
    }

    /// The same; `digests` gets the pages that are read.
    pub(super) fn watched_batches(
        &self,
        row_group: usize,
        rows: Range<usize>,
        digests: Option<&Arc<Digests>>,
    ) -> Result<Batches<'_>, DataError> {
        let (roots, mask) = self.projection();
        let columns = || {
            let columns = self.as_packed.row_group(row_group).columns().iter().enumerate();
            let read = columns.filter(|(leaf, _)| mask.leaf_included(*leaf));
            let ranges = read.filter_map(|(leaf, column)| Some((leaf, chunk_range(column)?)));
            ranges.map(|(leaf, (start, length))| (leaf, start..start.saturating_add(length))).collect()
        };
        let file = self.unpacking(row_group)?.watched(digests.map(|digests| Watch::new(digests, columns())));
        let batch_rows = self.batch_rows(row_group)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![row_group])
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .with_offset(rows.start)
            .with_limit(rows.len());
        let reader = guard::catch(|| builder.build())
            .and_then(|built| built.map_err(|e| e.to_string()))
            .map_err(|reason| self.damaged(row_group, reason))?;
        Ok(Batches { file: self, row_group, roots, next_row: rows.start, reader: Some(reader) })
    }

    /// The places of the columns that are read in the schema, ascending, and the mask that reads only them.
    pub(super) fn projection(&self) -> (Vec<usize>, ProjectionMask) {
        let mut roots: Vec<usize> = match self.options.all_columns {
            true => (0..self.schema.fields().len()).collect(),
            false => self.columns.iter().flatten().map(|place| place.root).collect(),
        };
        roots.sort_unstable();
        roots.dedup();
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots.iter().copied());
        (roots, mask)
    }

    pub(crate) fn damaged(&self, row_group: usize, reason: String) -> DataError {
        DataError::Damaged { path: self.path.to_path_buf(), row_group, reason: cut(&reason) }
    }
}

/// The description with requested columns as [`as_read`] asks, and pages as [`Unpacking`] gives them.
fn with_columns_as_read(
    metadata: &ArrowReaderMetadata,
    columns: &[Option<Place>],
    all: bool,
) -> parquet::errors::Result<ArrowReaderMetadata> {
    let schema = metadata.schema();
    let is_read = |number| all || columns.iter().flatten().any(|place| place.root == number);
    let fields = schema.fields().iter().enumerate().map(|(number, field)| match is_read(number) {
        true => as_read(field),
        false => field.clone(),
    });
    let schema = Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone());
    let unpacked = unpack::described(metadata.metadata())?.map_or_else(|| metadata.metadata().clone(), Arc::new);
    ArrowReaderMetadata::try_new(unpacked, ArrowReaderOptions::new().with_schema(schema.into()))
}

/// A column of a row group whose pages overlap those of another one: a file of some megabytes would have millions of rows.
fn shared_chunk(metadata: &ParquetMetaData) -> Option<(usize, &ColumnChunkMetaData)> {
    let row_groups = metadata.row_groups().iter().enumerate();
    let all = row_groups.flat_map(|(number, group)| group.columns().iter().map(move |column| (number, column)));
    let mut ranges: Vec<_> = all.filter_map(|(number, column)| Some((chunk_range(column)?, number, column))).collect();
    ranges.retain(|((_, bytes), ..)| *bytes > 0);
    ranges.sort_by_key(|(range, ..)| *range);
    ranges.windows(2).find_map(|pair| match pair {
        [((start, bytes), ..), ((next, _), number, column)] if start + bytes > *next => Some((*number, *column)),
        _ => None,
    })
}

/// First byte and length of a column's pages; `None` where the file claims something negative.
pub(super) fn chunk_range(column: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok())
}

/// Batches of one row group in turn.
pub(crate) struct Batches<'a> {
    file: &'a DataFile,
    row_group: usize,
    roots: Vec<usize>,
    next_row: usize,
    /// `None` once it ended or failed.
    reader: Option<ParquetRecordBatchReader>,
}

impl Batches<'_> {
    /// The next batch; `None` at the end.
    pub(crate) fn next(&mut self, requests: &[ColumnRequest]) -> Result<Option<Batch>, DataError> {
        Ok(self.next_whole(requests)?.map(|(batch, _)| batch))
    }

    /// The next batch with the columns that it is made of; `None` at the end.
    pub(crate) fn next_whole(&mut self, requests: &[ColumnRequest]) -> Result<Option<(Batch, RecordBatch)>, DataError> {
        let Some(mut reader) = self.reader.take() else { return Ok(None) };
        let read = guard::catch(|| {
            let batch = reader.next()?;
            Some(batch.and_then(|batch| Ok((self.unpack(&batch, requests)?, batch))))
        });
        match read {
            Ok(None) => Ok(None),
            Ok(Some(Ok(whole))) => {
                self.reader = Some(reader);
                self.next_row += whole.0.rows;
                Ok(Some(whole))
            }
            Ok(Some(Err(e))) => Err(self.file.damaged(self.row_group, e.to_string())),
            Err(reason) => Err(self.file.damaged(self.row_group, reason)),
        }
    }

    fn unpack(&self, batch: &RecordBatch, requests: &[ColumnRequest]) -> Result<Batch, ArrowError> {
        let columns = requests.iter().zip(&self.file.columns).map(|(request, root)| {
            let values = match root {
                Some(place) => {
                    let column = self.roots.binary_search(&place.root).ok().and_then(|n| batch.columns().get(n));
                    let gone = || ArrowError::SchemaError(format!("column `{}` is not in a batch", request.column));
                    Some(Values::new(column.ok_or_else(gone)?, place, request.kind)?)
                }
                None => None,
            };
            Ok(BatchColumn { request: request.clone(), values })
        });
        Ok(Batch {
            file: self.file.path.clone(),
            options: self.file.options.clone(),
            folder: match &self.file.source {
                FileSource::Local(path) => Some(path.parent().map(Path::to_path_buf).unwrap_or_default()),
                FileSource::Hub(_) => None,
            },
            row_group: self.row_group,
            first_row: self.next_row,
            rows: batch.num_rows(),
            columns: columns.collect::<Result<_, ArrowError>>()?,
        })
    }
}

/// Some rows of a row group, decoded as columns.
pub(crate) struct Batch {
    file: Arc<Path>,
    /// Where paths of images start; `None` where there are no files beside the table's own.
    folder: Option<PathBuf>,
    options: Arc<ReadOptions>,
    row_group: usize,
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    columns: Vec<BatchColumn>,
}

struct BatchColumn {
    request: ColumnRequest,
    values: Option<Values>,
}

impl Batch {
    /// The name of a row; `index` counts in the batch.
    pub(crate) fn id(&self, index: usize) -> RowId {
        RowId { file: self.file.clone(), row_group: self.row_group, row: self.first_row + index }
    }

    /// Whether pictures of its rows may lie in files of their own.
    pub(crate) fn names_files(&self) -> bool {
        self.columns.iter().filter_map(|column| column.values.as_ref()).any(Values::names_files)
    }

    /// What is wrong with every row, where the column that is looked at first holds nothing but nulls: a table may have
    /// millions of them in a few bytes.
    pub(crate) fn fault_of_all(&self) -> Option<RowFault> {
        let BatchColumn { request, values } = self.columns.first()?;
        let is_null = request.required && values.as_ref()?.is_null_throughout();
        is_null.then(|| RowFault::Null { column: request.column.clone() })
    }

    /// A row's values, image files read; `index` counts in the batch.
    pub(crate) fn row(&self, index: usize) -> Result<Row, RowFault> {
        let mut row = Row {
            id: self.id(index),
            images: Default::default(),
            texts: Default::default(),
            messages: Default::default(),
            boxes: Default::default(),
            lists: Default::default(),
        };
        let ReadOptions { asker, image_root, .. } = &*self.options;
        let places = ImagePlaces { folder: self.folder.as_deref(), root: image_root.as_deref(), asker: *asker };
        for BatchColumn { request, values } in &self.columns {
            let Some(values) = values else { continue };
            match read_value(values, index, request, places, &mut row)? {
                Some(missing) if request.required => return Err(missing),
                _ => {}
            }
        }
        Ok(row)
    }
}

/// Puts a row's value of a column into the row, or says what it lacks.
fn read_value(
    values: &Values,
    index: usize,
    request: &ColumnRequest,
    places: ImagePlaces<'_>,
    row: &mut Row,
) -> Result<Option<RowFault>, RowFault> {
    let ColumnRequest { role, column, .. } = request;
    let null = || RowFault::Null { column: column.clone() };
    let too_long = |bytes: usize| RowFault::TextBytes { column: column.clone(), bytes: bytes as u64 };
    match values {
        Values::Null => return Ok(Some(null())),
        Values::Text(texts) => match texts.read(index, column)? {
            None => return Ok(Some(null())),
            Some(text) if text.len() as u64 > MAX_TEXT_BYTES => return Err(too_long(text.len())),
            Some(text) if text.trim().is_empty() => return Ok(Some(RowFault::EmptyText { column: column.clone() })),
            Some(text) => drop(row.texts.insert(role, text.into_owned())),
        },
        Values::Image(images) => match images.read(index, column, places)? {
            None => return Ok(Some(null())),
            Some(image) => drop(row.images.insert(role, vec![image])),
        },
        Values::ImageList(list, images) => {
            let items = few(list.range(index), column, "images", MAX_IMAGES)?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            for item in items {
                let image = images.read(item, column, places)?.ok_or_else(null)?;
                bytes += image.bytes.len() as u64;
                if bytes > MAX_IMAGE_BYTES {
                    return Err(RowFault::ListBytes { column: column.clone(), bytes });
                }
                found.push(image);
            }
            if found.is_empty() {
                return Ok(Some(null()));
            }
            row.images.insert(role, found);
        }
        Values::Messages(conversations) => match conversations.read(index, column, places)? {
            None => return Ok(Some(null())),
            Some(conversation) => {
                row.messages.insert(role, conversation.turns);
                if !conversation.images.is_empty() {
                    row.images.insert(role, conversation.images);
                }
            }
        },
        Values::Boxes(boxes) => match boxes.read(index, column)? {
            None => return Ok(Some(null())),
            Some(boxes) => drop(row.boxes.insert(role, boxes)),
        },
        Values::TextList(list, texts) => {
            let range = few(list.range(index), column, "texts", MAX_BOXES)?;
            if list.is_null(index) {
                return Ok(Some(null()));
            }
            let text = |item| Ok(texts.read(item, column)?.ok_or_else(null)?.into_owned());
            row.lists.insert(role, range.map(text).collect::<Result<_, RowFault>>()?);
        }
    }
    Ok(None)
}
