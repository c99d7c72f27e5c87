//! The table with its answers, as Parquet or as lines of JSON.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{
    Array, ArrayRef, BinaryArray, Float32Array, Float32Builder, ListArray, ListBuilder, MapArray, RecordBatch,
    StringArray, StringBuilder, StructArray, make_array, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int64Type, Schema, SchemaRef};
use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use janus_core::output::write_file;
use serde_json::{Map, Value, json};

use super::answered::{Cell, ERROR};
use super::journal::{Journal, Line};
use super::{Asked, BatchError};
use crate::data::Table;
use crate::data::table_writer::TableWriter;
use crate::error::Result;

/// A file's format, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A line of JSON a row; bytes are base64.
    JsonLines,
    /// A table.
    Parquet,
}

/// What the output's columns are.
pub(super) struct Output {
    /// The table's own, renamed where an added one has their name, then the added ones.
    schema: SchemaRef,
    added: Vec<(&'static str, Cell)>,
    /// Of each file, where each of the table's own columns is.
    places: Vec<Vec<Option<usize>>>,
}

/// The key under which `datasets` says what columns are.
const FEATURES: &str = "huggingface";

/// Bytes of rows that are made ready at once, where columns are not written as they are read: a text that many rows name lies in memory
/// once as it is read, and once for each row as it is written.
const PIECE_BYTES: usize = 64 << 20;

impl Output {
    /// The columns of all the table's files, as the first one that has them describes them, and those that answers add.
    pub(super) fn new(table: &Table, asked: &Asked) -> Result<Self, BatchError> {
        let schemas = table.schemas();
        let mut fields: Vec<FieldRef> = Vec::new();
        for (path, own, read) in &schemas {
            for (number, (field, read)) in own.fields().iter().zip(read.fields()).enumerate() {
                let column = field.name().clone();
                if own.fields().iter().take(number).any(|other| other.name() == field.name()) {
                    return Err(BatchError::Repeated { path: path.clone(), column });
                }
                match fields.iter_mut().find(|known| known.name() == field.name()) {
                    Some(known) if known.data_type() != field.data_type() => {
                        let (first, other) = (known.data_type().to_string(), field.data_type().to_string());
                        return Err(BatchError::Types { column, first, other });
                    }
                    Some(known) if field.is_nullable() => *known = Arc::new(Field::clone(known).with_nullable(true)),
                    Some(_) => {}
                    None => fields.push(match can_cast_types(read.data_type(), field.data_type()) {
                        true => field.clone(),
                        false => read.clone(),
                    }),
                }
            }
        }
        let place =
            |schema: &SchemaRef, field: &FieldRef| schema.fields().iter().position(|own| own.name() == field.name());
        let places: Vec<Vec<Option<usize>>> =
            schemas.iter().map(|(_, own, _)| fields.iter().map(|field| place(own, field)).collect()).collect();
        let added = asked.added();
        let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
        let is_taken = |name: &str| names.iter().any(|own| own == name) || added.iter().any(|(own, _)| *own == name);
        let renamed = |name: &String| {
            let mut new = name.clone();
            while added.iter().any(|(own, _)| *own == new) || (new != *name && is_taken(&new)) {
                new.insert_str(0, "input_");
            }
            new
        };
        let kept: Vec<String> = names.iter().map(renamed).collect();
        let metadata = metadata(schemas.first().map(|(_, own, _)| own), &names, &kept, &added);
        let input = fields.iter().zip(kept).enumerate().map(|(number, (field, name))| {
            // A column that some files lack has no values there.
            let is_lacking = places.iter().any(|places| places[number].is_none());
            let is_nullable = field.is_nullable() || is_lacking;
            Field::clone(field).with_name(name).with_nullable(is_nullable)
        });
        let output = added.iter().map(|(name, cell)| Field::new(*name, cell.data_type(), true));
        let schema = Schema::new_with_metadata(input.chain(output).collect::<Vec<_>>(), metadata);
        Ok(Self { schema: schema.into(), added, places })
    }

    /// Writes the table with the journal's answers.
    pub(super) fn write(&self, table: &Table, journal: &mut Journal, out: &Path, format: Format) -> Result<()> {
        let mut lines = journal.lines().map_err(|source| BatchError::Read { path: out.to_path_buf(), source })?;
        let mut failed = None;
        let written = write_file(out, |file| {
            let mut writer = Writer::new(format, &self.schema, file)?;
            let mut batches = table.whole_batches();
            loop {
                let batch = match batches.next() {
                    Ok(Some(batch)) => batch,
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error);
                        return Err(io::Error::other("the table cannot be read"));
                    }
                };
                let answered = lines.by_ref().take(batch.rows.len()).collect::<io::Result<Vec<Line>>>()?;
                let (columns, places) = (&batch.columns, &self.places[batch.file]);
                let mut start = 0;
                for rows in pieces(columns, PIECE_BYTES) {
                    let lines = answered.get(start..start + rows).unwrap_or_default();
                    writer.write(&self.batch(&columns.slice(start, rows), places, lines, format)?)?;
                    start += rows;
                }
            }
            writer.close()
        });
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(written?),
        }
    }

    /// Some rows with their answers; a table has its columns in the types that its files have, JSON as they are read.
    fn batch(
        &self,
        columns: &RecordBatch,
        places: &[Option<usize>],
        lines: &[Line],
        format: Format,
    ) -> io::Result<RecordBatch> {
        let rows = columns.num_rows();
        if lines.len() != rows {
            return Err(io::Error::other(format!("{rows} rows have {} answers", lines.len())));
        }
        let own = places.iter().zip(self.schema.fields()).map(|(place, field)| match place {
            Some(place) if format == Format::JsonLines => Ok(columns.column(*place).clone()),
            Some(place) => cast(columns.column(*place), field.data_type()).map_err(io::Error::other),
            None => Ok(new_null_array(field.data_type(), rows)),
        });
        let added = self.added.iter().map(|(name, cell)| {
            let value = |line: &Line| match (*name, &line.values) {
                (ERROR, _) => line.error.as_ref().map_or(Value::Null, |error| json!(error)),
                (_, Some(values)) => values.get(*name).cloned().unwrap_or_default(),
                (_, None) => Value::Null,
            };
            cell.array(&lines.iter().map(value).collect::<Vec<_>>())
        });
        let arrays = own.chain(added).collect::<io::Result<Vec<ArrayRef>>>()?;
        let schema = match format {
            Format::Parquet => self.schema.clone(),
            Format::JsonLines => {
                let field =
                    |(field, array): (&FieldRef, &ArrayRef)| Field::new(field.name(), array.data_type().clone(), true);
                Arc::new(Schema::new(self.schema.fields().iter().zip(&arrays).map(field).collect::<Vec<_>>()))
            }
        };
        RecordBatch::try_new(schema, arrays).map_err(io::Error::other)
    }
}

/// Numbers of rows that take about so many bytes together, at least one each, in their order.
fn pieces(columns: &RecordBatch, most_bytes: usize) -> Vec<usize> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    for row in 0..columns.num_rows() {
        let own: usize = columns.columns().iter().map(|column| value_bytes(column, row)).sum();
        match pieces.last_mut() {
            Some(rows) if bytes + own <= most_bytes => (*rows, bytes) = (*rows + 1, bytes + own),
            _ => (pieces, bytes) = ([pieces, vec![1]].concat(), own),
        }
    }
    pieces
}

/// Bytes of a row's texts and bytes, which may be views of what other rows have, too.
fn value_bytes(array: &ArrayRef, row: usize) -> usize {
    match array.data_type() {
        _ if array.is_null(row) => 0,
        DataType::Utf8View => array.as_string_view().value(row).len(),
        DataType::BinaryView => array.as_binary_view().value(row).len(),
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| value_bytes(column, row)).sum(),
        DataType::List(_) => {
            let values = array.as_list::<i32>().value(row);
            (0..values.len()).map(|item| value_bytes(&values, item)).sum()
        }
        _ => 0,
    }
}

/// What the file says of itself: that of the first file, and what `datasets` is told of the added columns.
fn metadata(
    schema: Option<&SchemaRef>,
    names: &[String],
    kept: &[String],
    added: &[(&'static str, Cell)],
) -> HashMap<String, String> {
    let Some(schema) = schema else { return HashMap::new() };
    let mut metadata: HashMap<String, String> = schema.metadata().clone().into();
    let Some(text) = metadata.remove(FEATURES) else { return metadata };
    let Ok(Value::Object(mut all)) = serde_json::from_str(&text) else { return metadata };
    let features = all.get_mut("info").and_then(|info| info.get_mut("features")).and_then(Value::as_object_mut);
    let Some(features) = features else { return metadata };
    let mut new: Map<String, Value> =
        names.iter().zip(kept).filter_map(|(name, kept)| Some((kept.clone(), features.remove(name)?))).collect();
    new.extend(added.iter().map(|(name, cell)| ((*name).to_owned(), cell.feature())));
    *features = new;
    metadata.insert(FEATURES.to_owned(), Value::Object(all).to_string());
    metadata
}

fn picture_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

impl Cell {
    fn data_type(self) -> DataType {
        let list = |item: DataType| DataType::List(Arc::new(Field::new_list_field(item, true)));
        match self {
            Cell::Text => DataType::Utf8,
            Cell::Number => DataType::Float32,
            Cell::Numbers => list(DataType::Float32),
            Cell::Texts => list(DataType::Utf8),
            Cell::Boxes => list(list(DataType::Float32)),
            Cell::Picture => DataType::Struct(picture_fields()),
        }
    }

    /// What `datasets` calls it.
    fn feature(self) -> Value {
        let value = |dtype: &str| json!({ "dtype": dtype, "_type": "Value" });
        let sequence = |feature: Value| json!({ "feature": feature, "_type": "Sequence" });
        match self {
            Cell::Text => value("string"),
            Cell::Number => value("float32"),
            Cell::Numbers => sequence(value("float32")),
            Cell::Texts => sequence(value("string")),
            Cell::Boxes => sequence(sequence(value("float32"))),
            Cell::Picture => json!({ "_type": "Image" }),
        }
    }

    /// Values of rows as a column; what is of another type than it says has no value.
    fn array(self, values: &[Value]) -> io::Result<ArrayRef> {
        let number = |value: &Value| value.as_f64().map(|number| number as f32);
        Ok(match self {
            Cell::Text => Arc::new(values.iter().map(Value::as_str).collect::<StringArray>()),
            Cell::Number => Arc::new(values.iter().map(number).collect::<Float32Array>()),
            Cell::Numbers => {
                let mut all = ListBuilder::new(Float32Builder::new());
                for value in values {
                    all.append_option(value.as_array().map(|list| list.iter().map(number).collect::<Vec<_>>()));
                }
                Arc::new(all.finish())
            }
            Cell::Texts => {
                let mut all = ListBuilder::new(StringBuilder::new());
                for value in values {
                    all.append_option(value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Vec<_>>()));
                }
                Arc::new(all.finish())
            }
            Cell::Boxes => {
                let mut all = ListBuilder::new(ListBuilder::new(Float32Builder::new()));
                let corners = |value: &Value| value.as_array().map(|list| list.iter().map(number).collect::<Vec<_>>());
                for value in values {
                    all.append_option(value.as_array().map(|list| list.iter().map(corners).collect::<Vec<_>>()));
                }
                Arc::new(all.finish())
            }
            Cell::Picture => {
                let decoded = |value: &Value| value.as_str().map(|text| STANDARD.decode(text)).transpose();
                let bytes = values.iter().map(decoded).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
                let valid: Vec<bool> = bytes.iter().map(Option::is_some).collect();
                let bytes: ArrayRef = Arc::new(bytes.iter().map(Option::as_deref).collect::<BinaryArray>());
                let path = new_null_array(&DataType::Utf8, values.len());
                let nulls = Some(valid.into());
                Arc::new(StructArray::try_new(picture_fields(), vec![bytes, path], nulls).map_err(io::Error::other)?)
            }
        })
    }
}

/// Writes batches in a format.
enum Writer<'a> {
    Parquet(Box<TableWriter<'a>>),
    JsonLines(Box<arrow::json::Writer<&'a mut dyn Write, LineDelimited>>),
}

impl<'a> Writer<'a> {
    fn new(format: Format, schema: &SchemaRef, out: &'a mut dyn Write) -> io::Result<Self> {
        Ok(match format {
            Format::Parquet => Writer::Parquet(Box::new(TableWriter::new(schema, out)?)),
            Format::JsonLines => Writer::JsonLines(Box::new(WriterBuilder::new().with_explicit_nulls(true).build(out))),
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match self {
            Writer::Parquet(writer) => writer.write(batch),
            Writer::JsonLines(writer) => {
                let fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
                let columns: Vec<(FieldRef, ArrayRef)> =
                    fields.iter().zip(batch.columns()).map(|(field, column)| in_text(field, column)).collect();
                let (fields, columns): (Vec<FieldRef>, Vec<ArrayRef>) = columns.into_iter().unzip();
                let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(io::Error::other)?;
                writer.write(&batch).map_err(io::Error::other)
            }
        }
    }

    fn close(self) -> io::Result<()> {
        match self {
            Writer::Parquet(writer) => writer.close(),
            Writer::JsonLines(mut writer) => writer.finish().map_err(io::Error::other),
        }
    }
}

/// A column as JSON can tell it: bytes as base64, times as texts, maps whose keys are no texts as lists of pairs.
fn in_text(field: &FieldRef, array: &ArrayRef) -> (FieldRef, ArrayRef) {
    let own: ArrayRef = match array.data_type() {
        DataType::Binary => encoded(array.as_binary::<i32>().iter()),
        DataType::LargeBinary => encoded(array.as_binary::<i64>().iter()),
        DataType::BinaryView => encoded(array.as_binary_view().iter()),
        DataType::FixedSizeBinary(_) => encoded(array.as_fixed_size_binary().iter()),
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => {
            times(array)
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let (fields, columns): (Vec<FieldRef>, Vec<ArrayRef>) =
                fields.iter().zip(parts.columns()).map(|(field, column)| in_text(field, column)).unzip();
            match StructArray::try_new(fields.into(), columns, parts.nulls().cloned()) {
                Ok(parts) => Arc::new(parts),
                Err(_) => array.clone(),
            }
        }
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            listed(item, list.offsets(), list.values(), list.nulls()).unwrap_or_else(|| array.clone())
        }
        DataType::Map(entries, ordered) => {
            let map = array.as_map();
            let pairs: ArrayRef = Arc::new(map.entries().clone());
            if *map.key_type() == DataType::Utf8 {
                let (entries, pairs) = in_text(entries, &pairs);
                let (offsets, nulls) = (map.offsets().clone(), map.nulls().cloned());
                match MapArray::try_new(entries, offsets, pairs.as_struct().clone(), nulls, *ordered) {
                    Ok(map) => Arc::new(map),
                    Err(_) => array.clone(),
                }
            } else {
                listed(entries, map.offsets(), &pairs, map.nulls()).unwrap_or_else(|| array.clone())
            }
        }
        _ => array.clone(),
    };
    (Arc::new(Field::clone(field).with_data_type(own.data_type().clone())), own)
}

/// A list whose items are as JSON can tell them.
fn listed(
    item: &FieldRef,
    offsets: &OffsetBuffer<i32>,
    values: &ArrayRef,
    nulls: Option<&NullBuffer>,
) -> Option<ArrayRef> {
    let (item, values) = in_text(item, values);
    let list = ListArray::try_new(item, offsets.clone(), values, nulls.cloned()).ok()?;
    Some(Arc::new(list))
}

/// Times as texts, those with a zone in UTC; one beyond the calendar as its number.
fn times(array: &ArrayRef) -> ArrayRef {
    let array: ArrayRef = match array.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            let utc = DataType::Timestamp(*unit, Some("+00:00".into()));
            array.to_data().into_builder().data_type(utc).build().map_or_else(|_| array.clone(), make_array)
        }
        _ => array.clone(),
    };
    let numbers = cast(&array, &DataType::Int64).or_else(|_| cast(&cast(&array, &DataType::Int32)?, &DataType::Int64));
    let options = FormatOptions::new();
    let formatter = ArrayFormatter::try_new(&array, &options);
    let text = |row: usize| -> Option<String> {
        if array.is_null(row) {
            return None;
        }
        let told = formatter.as_ref().ok().and_then(|formatter| formatter.value(row).try_to_string().ok());
        told.or_else(|| Some(numbers.as_ref().ok()?.as_primitive::<Int64Type>().value(row).to_string()))
    };
    Arc::new((0..array.len()).map(text).collect::<StringArray>())
}

fn encoded<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
    Arc::new(values.map(|value| value.map(|bytes| STANDARD.encode(bytes))).collect::<StringArray>())
}
