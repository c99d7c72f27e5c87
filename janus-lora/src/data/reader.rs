//! One Parquet file: its description, and its row groups read batch by batch into rows.
//!
//! Only requested columns are read. A batch is sized by the row group's own account of its bytes, so that neither a huge
//! row group nor a huge file is ever in memory as a whole.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use janus_core::guard;
use janus_core::hub::{Shard, Silent};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaDataReader};

use super::error::DataError;
use super::pages;
use super::rejected::RowFault;
use super::row::{Message, Row, RowId};
use super::schema::{ColumnRequest, bind, type_name};
use super::source::FileSource;
use super::values::{MAX_BOXES, Values, few, text_at};

/// Largest encoded image that is read, from a row or from a file it names; also the most that all images of a list may
/// have together.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Longest text that is read, all messages of a conversation taken together: some 250,000 tokens, which no model here has
/// places for.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Most images of a row: each is hundreds of tokens.
const MAX_IMAGES: usize = 256;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Rows of a batch are as many as fit in this by the row group's account, at least one, at most [`BATCH_ROWS`].
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_ROWS: u64 = 128;

/// The end of a file on a hub that is asked for at first: more than the description of most.
const TAIL_BYTES: u64 = 128 << 10;

/// Largest description of a file on a hub that is read.
const MAX_DESCRIPTION_BYTES: u64 = 256 << 20;

/// Length of a description, and `PAR1`.
const FOOTER_BYTES: usize = 8;

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
    /// The same, with requested texts and bytes as views.
    metadata: ArrowReaderMetadata,
    /// Column of the file per request; `None` for an optional one that is not there.
    columns: Vec<Option<usize>>,
}

impl DataFile {
    /// Reads the file's description and checks it against the requests.
    pub(crate) fn open(source: &FileSource, requests: &[ColumnRequest]) -> Result<Self, DataError> {
        let path = source.shown();
        let path = path.as_path();
        let unreadable = |reason: String| DataError::Unreadable { path: path.to_path_buf(), reason };
        let (metadata, length) = match source {
            FileSource::Local(path) => local_description(path)?,
            FileSource::Hub(shard) => match shard.cached() {
                Some(path) => local_description(&path)?,
                None => match hub_description(shard)? {
                    Some(Ok(described)) => described,
                    Some(Err(reason)) => return Err(unreadable(reason)),
                    None => local_description(&shard.fetch(&Silent)?)?,
                },
            },
        };
        for (number, row_group) in metadata.metadata().row_groups().iter().enumerate() {
            if row_group.num_rows() < 0 {
                return Err(unreadable(format!("row group {number} claims {} rows", row_group.num_rows())));
            }
            for column in row_group.columns() {
                let range = chunk_range(column);
                if range.and_then(|(start, size)| start.checked_add(size)).is_none_or(|end| end > length) {
                    return Err(unreadable(format!(
                        "column `{}` of row group {number} lies outside the file's {length} bytes",
                        column.column_path()
                    )));
                }
            }
        }
        let schema = metadata.schema().clone();
        let columns =
            bind(&schema, requests).map_err(|faults| DataError::Columns { path: path.to_path_buf(), faults })?;
        let metadata = guard::catch(|| with_views(&metadata, &columns))
            .map_err(unreadable)?
            .map_err(|e| unreadable(e.to_string()))?;
        Ok(Self { path: path.into(), source: source.clone(), length, schema, metadata, columns })
    }

    /// The file's bytes, brought here first if they are on a hub.
    fn file(&self) -> Result<std::fs::File, DataError> {
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
        let Some(root) = self.columns.get(request).copied().flatten() else { return 0 };
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), [root]);
        let groups = self.metadata.metadata().row_groups().iter();
        let columns = groups.flat_map(|group| group.columns().iter().enumerate());
        let own = columns.filter(|(leaf, _)| mask.leaf_included(*leaf));
        own.fold(0, |sum, (_, column)| sum.saturating_add(column.uncompressed_size().unsigned_abs()))
    }

    /// Every column's name and type, in the file's order.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (&str, String)> {
        self.schema.fields().iter().map(|field| (field.name().as_str(), type_name(field.data_type())))
    }

    /// Whether the file has the column of the request at this place in the list of requests.
    pub(crate) fn has(&self, request: usize) -> bool {
        self.columns.get(request).is_some_and(Option::is_some)
    }

    /// Starts to read rows `rows` of a row group.
    pub(crate) fn batches(&self, row_group: usize, rows: Range<usize>) -> Result<Batches<'_>, DataError> {
        let file = self.file()?;
        let (roots, mask) = self.projection();
        let batch_rows = self.batch_rows(row_group, &mask);
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

    /// Checks that the requested columns' pages are of plausible sizes, before anything makes room for them.
    pub(crate) fn check_pages(&self, row_group: usize) -> Result<(), DataError> {
        let file = self.file()?;
        let (_, mask) = self.projection();
        let columns = self.metadata.metadata().row_group(row_group).columns().iter().enumerate();
        for (_, column) in columns.filter(|(leaf, _)| mask.leaf_included(*leaf)) {
            let (start, size) = chunk_range(column).unwrap_or_default();
            pages::check(&file, start, size).map_err(|reason| self.damaged(row_group, reason))?;
        }
        Ok(())
    }

    /// The requested columns' places in the schema, ascending, and the mask that reads only them.
    fn projection(&self) -> (Vec<usize>, ProjectionMask) {
        let mut roots: Vec<usize> = self.columns.iter().copied().flatten().collect();
        roots.sort_unstable();
        roots.dedup();
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots.iter().copied());
        (roots, mask)
    }

    fn batch_rows(&self, row_group: usize, mask: &ProjectionMask) -> usize {
        let description = self.metadata.metadata().row_group(row_group);
        let bytes = description.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
        let bytes =
            bytes.fold(0u64, |sum, (_, c)| sum.saturating_add(u64::try_from(c.uncompressed_size()).unwrap_or(0)));
        let per_row = (bytes / self.claimed_rows(row_group).max(1)).max(1);
        (BATCH_BYTES / per_row).clamp(1, BATCH_ROWS) as usize
    }

    pub(crate) fn damaged(&self, row_group: usize, reason: String) -> DataError {
        DataError::Damaged { path: self.path.to_path_buf(), row_group, reason }
    }
}

/// The description with requested texts and bytes to be read as views into their pages. A dictionary's values would
/// otherwise be copied for every row that names them: a page of a few bytes could unpack to gigabytes.
fn with_views(
    metadata: &ArrowReaderMetadata,
    columns: &[Option<usize>],
) -> parquet::errors::Result<ArrowReaderMetadata> {
    let schema = metadata.schema();
    let fields = schema.fields().iter().enumerate().map(|(number, field)| match columns.contains(&Some(number)) {
        true => viewed(field),
        false => field.clone(),
    });
    let schema = Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone());
    ArrowReaderMetadata::try_new(metadata.metadata().clone(), ArrowReaderOptions::new().with_schema(schema.into()))
}

fn viewed(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Dictionary(_, values) => values,
        other => other,
    };
    let data_type = match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::List(item) => DataType::List(viewed(item)),
        DataType::LargeList(item) => DataType::LargeList(viewed(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(viewed).collect()),
        _ => field.data_type().clone(),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}

/// First byte and length of a column's pages; `None` where the file claims something negative.
fn chunk_range(column: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok())
}

/// A file's account of itself, and the file's length in bytes.
fn local_description(path: &Path) -> Result<(ArrowReaderMetadata, u64), DataError> {
    let unreadable = |reason: String| DataError::Unreadable { path: path.to_path_buf(), reason };
    let file = open_regular(path)?;
    let length = file.metadata().map_err(|source| DataError::Io { path: path.to_path_buf(), source })?.len();
    let metadata = guard::catch(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()))
        .map_err(unreadable)?
        .map_err(|e| unreadable(e.to_string()))?;
    Ok((metadata, length))
}

/// The same from the end of a file on a hub, or why it is none; nothing where the hub sends no parts of files.
#[allow(clippy::type_complexity, reason = "three outcomes beside a failing hub")]
fn hub_description(shard: &Shard) -> Result<Option<Result<(ArrowReaderMetadata, u64), String>>, DataError> {
    let Some((mut tail, length)) = shard.tail(TAIL_BYTES)? else { return Ok(None) };
    let Some(footer) = tail.last_chunk::<FOOTER_BYTES>() else {
        return Ok(Some(Err(format!("it has {length} bytes"))));
    };
    let [a, b, c, d, magic @ ..] = *footer;
    if magic != *b"PAR1" {
        return Ok(Some(Err("it does not end as a Parquet file does".into())));
    }
    let described = u64::from(u32::from_le_bytes([a, b, c, d]));
    let needed = described + FOOTER_BYTES as u64;
    if needed > length || described > MAX_DESCRIPTION_BYTES {
        return Ok(Some(Err(format!("it claims a description of {described} bytes"))));
    }
    if needed > tail.len() as u64 {
        match shard.tail(needed)? {
            Some((longer, same)) if same == length => tail = longer,
            _ => return Ok(None),
        }
    }
    let end = tail.len() - FOOTER_BYTES;
    let Some(bytes) = end.checked_sub(described as usize).and_then(|start| tail.get(start..end)) else {
        return Ok(None);
    };
    let read = guard::catch(|| {
        let metadata = ParquetMetaDataReader::decode_metadata(bytes)?;
        ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())
    });
    Ok(Some(read.and_then(|read| read.map_err(|e| e.to_string())).map(|metadata| (metadata, length))))
}

/// Opens a regular file; a device or pipe under a data file's name would hang the reader.
fn open_regular(path: &Path) -> Result<std::fs::File, DataError> {
    let failed = |source| DataError::Io { path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(DataError::Unreadable { path: path.to_path_buf(), reason: "it is not a regular file".into() });
    }
    std::fs::File::open(path).map_err(failed)
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
        let Some(mut reader) = self.reader.take() else { return Ok(None) };
        let read = guard::catch(|| reader.next().map(|batch| batch.and_then(|batch| self.unpack(&batch, requests))));
        match read {
            Ok(None) => Ok(None),
            Ok(Some(Ok(batch))) => {
                self.reader = Some(reader);
                self.next_row += batch.rows;
                Ok(Some(batch))
            }
            Ok(Some(Err(e))) => Err(self.file.damaged(self.row_group, e.to_string())),
            Err(reason) => Err(self.file.damaged(self.row_group, reason)),
        }
    }

    fn unpack(&self, batch: &RecordBatch, requests: &[ColumnRequest]) -> Result<Batch, ArrowError> {
        let columns = requests.iter().zip(&self.file.columns).map(|(request, root)| {
            let place = root.and_then(|root| self.roots.binary_search(&root).ok());
            let values = match place {
                Some(place) => Some(Values::new(batch.column(place), request.kind)?),
                None => None,
            };
            Ok(BatchColumn { request: request.clone(), values })
        });
        Ok(Batch {
            file: self.file.path.clone(),
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
        for BatchColumn { request: ColumnRequest { role, column, required, .. }, values } in &self.columns {
            let Some(values) = values else { continue };
            let null = || RowFault::Null { column: column.clone() };
            let present = match values {
                Values::Text(array) => match text_at(array, index) {
                    None => Err(null()),
                    Some(text) if text.len() as u64 > MAX_TEXT_BYTES => {
                        return Err(RowFault::TextBytes { column: column.clone(), bytes: text.len() as u64 });
                    }
                    Some(text) if text.trim().is_empty() => Err(RowFault::EmptyText { column: column.clone() }),
                    Some(text) => {
                        row.texts.insert(*role, text.to_string());
                        Ok(())
                    }
                },
                Values::Image(images) => match images.read(index, column, self.folder.as_deref())? {
                    None => Err(null()),
                    Some(image) => {
                        row.images.insert(*role, vec![image]);
                        Ok(())
                    }
                },
                Values::ImageList(list, images) => {
                    let items = few(list.range(index), column, "images", MAX_IMAGES)?;
                    let (mut found, mut bytes) = (Vec::new(), 0);
                    for item in items {
                        let image = images.read(item, column, self.folder.as_deref())?.ok_or_else(null)?;
                        bytes += image.bytes.len() as u64;
                        if bytes > MAX_IMAGE_BYTES {
                            return Err(RowFault::ListBytes { column: column.clone(), bytes });
                        }
                        found.push(image);
                    }
                    if found.is_empty() {
                        Err(null())
                    } else {
                        row.images.insert(*role, found);
                        Ok(())
                    }
                }
                Values::Messages { list, nulls, role: roles, content } => {
                    let range = few(list.range(index), column, "messages", MAX_MESSAGES)?;
                    let first = range.start;
                    let (mut turns, mut bytes) = (Vec::new(), 0);
                    for item in range {
                        let whole = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(item));
                        match (whole, text_at(roles, item), text_at(content, item)) {
                            (true, Some(role), Some(content)) => {
                                bytes += (role.len() + content.len()) as u64;
                                if bytes > MAX_TEXT_BYTES {
                                    return Err(RowFault::TextBytes { column: column.clone(), bytes });
                                }
                                turns.push(Message { role: role.into(), content: content.into() });
                            }
                            _ => {
                                return Err(RowFault::IncompleteMessage { column: column.clone(), turn: item - first });
                            }
                        }
                    }
                    if turns.is_empty() {
                        Err(null())
                    } else {
                        row.messages.insert(*role, turns);
                        Ok(())
                    }
                }
                Values::Boxes(boxes) => match boxes.read(index, column)? {
                    None => Err(null()),
                    Some(boxes) => {
                        row.boxes.insert(*role, boxes);
                        Ok(())
                    }
                },
                Values::TextList(list, texts) => {
                    let range = few(list.range(index), column, "texts", MAX_BOXES)?;
                    if list.is_null(index) {
                        Err(null())
                    } else {
                        let text = |item| text_at(texts, item).map(str::to_owned).ok_or_else(null);
                        row.lists.insert(*role, range.map(text).collect::<Result<_, _>>()?);
                        Ok(())
                    }
                }
            };
            match present {
                Err(fault) if *required => return Err(fault),
                _ => {}
            }
        }
        Ok(row)
    }
}
