//! What a Parquet file says of itself: read from a file here, or from the end of one on a hub, with Arrow's types.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Schema;
use janus_core::guard;
use janus_core::hub::Shard;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::file::metadata::ParquetMetaData;

use super::error::DataError;
use super::footer::{self, FOOTER_BYTES, FooterFault};
use super::foreign;
use super::rejected::cut;
use super::source::FileSource;

/// The end of a file on a hub that is asked for at first: more than the description of most.
const TAIL_BYTES: u64 = 128 << 10;

/// A file's account of itself, and the file's length in bytes.
pub(super) fn local_description(path: &Path) -> Result<(ArrowReaderMetadata, u64), DataError> {
    let failed = |source| DataError::Io { path: path.to_path_buf(), source };
    let file = open_regular(path)?;
    let length = file.metadata().map_err(failed)?.len();
    match footer::read(&file, length).map_err(failed)? {
        Ok(description) => Ok((with_types(path, description.into())?, length)),
        Err(fault) => Err(foreign::named(path).unwrap_or_else(|| refused_footer(path, fault))),
    }
}

pub(super) fn refused_footer(path: &Path, fault: FooterFault) -> DataError {
    let path = path.to_path_buf();
    match fault {
        FooterFault::Damaged(reason) => DataError::Unreadable { path, reason: cut(&reason) },
        FooterFault::TooMuch(reason) => DataError::Description { path, reason },
    }
}

/// The same from the end of a file on a hub, or why it is none; nothing where the hub sends no parts of files.
#[allow(clippy::type_complexity, reason = "three outcomes beside a failing hub")]
pub(super) fn hub_description(
    shard: &Shard,
) -> Result<Option<Result<(ArrowReaderMetadata, u64), FooterFault>>, DataError> {
    let Some((mut tail, length)) = shard.tail(TAIL_BYTES)? else { return Ok(None) };
    let Some(last) = tail.last_chunk() else {
        return Ok(Some(Err(FooterFault::Damaged(format!("it has {length} bytes")))));
    };
    let described = match footer::described_bytes(*last, length) {
        Ok(described) => described,
        Err(fault) => return Ok(Some(Err(fault))),
    };
    let needed = described + FOOTER_BYTES as u64;
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
    Ok(Some(match footer::parse(bytes) {
        Ok(description) => Ok((with_types(&FileSource::Hub(shard.clone()).shown(), description.into())?, length)),
        Err(fault) => Err(fault),
    }))
}

/// Opens a regular file; a device or pipe under a data file's name would hang the reader.
pub(super) fn open_regular(path: &Path) -> Result<std::fs::File, DataError> {
    let failed = |source| DataError::Io { path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(DataError::Unreadable { path: path.to_path_buf(), reason: "it is not a regular file".into() });
    }
    std::fs::File::open(path).map_err(failed)
}

/// The key of a file's metadata under which writers of Arrow keep their own types.
const ARROW_KEY: &str = "ARROW:schema";

/// A file's description with the types of its columns as Arrow has them: those that it notes itself, or where a note among them
/// cannot be read (of a type that is not known here), those of Parquet.
fn with_types(path: &Path, description: Arc<ParquetMetaData>) -> Result<ArrowReaderMetadata, DataError> {
    let opened = |options| -> Result<ArrowReaderMetadata, String> {
        let opened = guard::catch(|| ArrowReaderMetadata::try_new(description.clone(), options))?;
        opened.map_err(|e| e.to_string())
    };
    let reason = match opened(ArrowReaderOptions::new()) {
        Ok(metadata) => return Ok(metadata),
        Err(reason) => reason,
    };
    let bare = opened(ArrowReaderOptions::new().with_skip_arrow_metadata(true));
    let bare = bare.map_err(|_| unknown_type(path, &description, reason))?;
    let notes = description.file_metadata().key_value_metadata().into_iter().flatten();
    let notes = notes.filter(|note| note.key != ARROW_KEY);
    let notes: HashMap<_, _> = notes.filter_map(|note| Some((note.key.clone(), note.value.clone()?))).collect();
    let schema = Schema::new_with_metadata(bare.schema().fields().clone(), notes);
    opened(ArrowReaderOptions::new().with_schema(schema.into()))
        .map_err(|reason| unknown_type(path, &description, reason))
}

/// The first column of a type that is not known here.
fn unknown_type(path: &Path, description: &ParquetMetaData, reason: String) -> DataError {
    let schema = description.file_metadata().schema_descr();
    let is_unknown = |root: &usize| {
        let mask = ProjectionMask::roots(schema, [*root]);
        let types = guard::catch(|| parquet_to_arrow_field_levels(schema, mask, None));
        types.is_ok_and(|types| types.is_err())
    };
    let path = path.to_path_buf();
    match (0..schema.root_schema().get_fields().len()).find(is_unknown) {
        Some(root) => {
            let field = &schema.root_schema().get_fields()[root];
            let of = match (field.is_primitive(), field.get_basic_info().logical_type_ref()) {
                (true, Some(logical)) => format!("{} {logical:?}", field.get_physical_type()),
                (true, None) => field.get_physical_type().to_string(),
                (false, Some(logical)) => format!("group {logical:?}"),
                (false, None) => "group".to_owned(),
            };
            DataError::UnknownType { path, column: cut(field.name()), of, reason: cut(&reason) }
        }
        None => DataError::Unreadable { path, reason },
    }
}
