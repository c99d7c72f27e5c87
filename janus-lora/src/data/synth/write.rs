//! Drawn rows as a Parquet file in the Hugging Face image convention.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float32Builder, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
    StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use janus_core::output::write_file;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Cell, ColumnType, SynthSpec};
use crate::data::error::DataError;
use crate::data::table_writer::TableWriter;

/// What `datasets` of the Hugging Face hub uses for tables with images.
const ROW_GROUP_ROWS: u32 = 100;

pub(super) fn write(spec: &SynthSpec, path: &Path) -> Result<(), DataError> {
    write_file(path, |out| {
        let columns = spec.domain.columns();
        let schema = Arc::new(schema(columns));
        let mut writer = TableWriter::new(&schema, out)?;
        for start in (0..spec.rows).step_by(ROW_GROUP_ROWS as usize) {
            let rows = start..spec.rows.min(start.saturating_add(ROW_GROUP_ROWS));
            let drawn: Vec<Vec<Cell>> =
                rows.into_par_iter().map(|row| spec.draw(row)).collect::<Result<_, _>>().map_err(io::Error::other)?;
            writer.write(&batch(&schema, columns, start, &drawn)?)?;
        }
        writer.close()
    })?;
    Ok(())
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn message_fields() -> Fields {
    Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)])
}

/// What a column of the type is in the file, and in the features of `datasets`.
fn types(kind: ColumnType) -> (DataType, Value) {
    let list = |item: DataType| DataType::List(Arc::new(Field::new_list_field(item, true)));
    let value = |dtype: &str| json!({ "dtype": dtype, "_type": "Value" });
    let sequence = |feature: Value| json!({ "feature": feature, "_type": "Sequence" });
    match kind {
        ColumnType::Image => (DataType::Struct(image_fields()), json!({ "_type": "Image" })),
        ColumnType::Text => (DataType::Utf8, value("string")),
        ColumnType::Boxes => (list(list(DataType::Float32)), sequence(sequence(value("float32")))),
        ColumnType::Texts => (list(DataType::Utf8), sequence(value("string"))),
        ColumnType::Messages => {
            (list(DataType::Struct(message_fields())), json!([{ "role": value("string"), "content": value("string") }]))
        }
    }
}

fn schema(columns: &[(&str, ColumnType)]) -> Schema {
    let (mut fields, mut features) = (Vec::new(), serde_json::Map::new());
    for &(name, kind) in columns {
        let (data_type, feature) = types(kind);
        fields.push(Field::new(name, data_type, true));
        features.insert(name.into(), feature);
    }
    let info = json!({ "info": { "features": features } });
    Schema::new_with_metadata(fields, [("huggingface".to_string(), info.to_string())])
}

fn batch(
    schema: &Arc<Schema>,
    columns: &[(&str, ColumnType)],
    start: u32,
    rows: &[Vec<Cell>],
) -> io::Result<RecordBatch> {
    let column = |(at, &(name, kind)): (usize, &(&str, ColumnType))| -> io::Result<ArrayRef> {
        let cells = rows.iter().map(|row| row.get(at));
        let other = || io::Error::other(format!("what is drawn for `{name}` is not of its type"));
        Ok(match kind {
            ColumnType::Image => {
                let bytes = cells.map(|cell| match cell {
                    Some(Cell::Image(png)) => Ok(Some(png)),
                    _ => Err(other()),
                });
                let bytes = bytes.collect::<io::Result<BinaryArray>>()?;
                let suffix = if name == "image" { String::new() } else { format!("-{name}") };
                let path: StringArray =
                    (start..).zip(rows).map(|(number, _)| Some(format!("{number:06}{suffix}.png"))).collect();
                let parts: Vec<ArrayRef> = vec![Arc::new(bytes), Arc::new(path)];
                Arc::new(StructArray::try_new(image_fields(), parts, None).map_err(io::Error::other)?)
            }
            ColumnType::Text => {
                let texts = cells.map(|cell| match cell {
                    Some(Cell::Text(text)) => Ok(Some(text)),
                    _ => Err(other()),
                });
                Arc::new(texts.collect::<io::Result<StringArray>>()?)
            }
            ColumnType::Boxes => {
                let mut all = ListBuilder::new(ListBuilder::new(Float32Builder::new()));
                for cell in cells {
                    let Some(Cell::Boxes(boxes)) = cell else { return Err(other()) };
                    all.append_value(boxes.iter().map(|edges| Some(edges.map(Some))));
                }
                Arc::new(all.finish())
            }
            ColumnType::Messages => {
                let fields = StructBuilder::from_fields(message_fields(), 0);
                let mut all = ListBuilder::new(fields);
                for cell in cells {
                    let Some(Cell::Messages(turns)) = cell else { return Err(other()) };
                    for (question, answer) in turns {
                        for (role, content) in [("user", question), ("assistant", answer)] {
                            for (number, text) in [role, content.as_str()].into_iter().enumerate() {
                                let column = all.values().field_builder::<StringBuilder>(number).ok_or_else(other)?;
                                column.append_value(text);
                            }
                            all.values().append(true);
                        }
                    }
                    all.append(true);
                }
                Arc::new(all.finish())
            }
            ColumnType::Texts => {
                let mut all = ListBuilder::new(StringBuilder::new());
                for cell in cells {
                    let Some(Cell::Texts(texts)) = cell else { return Err(other()) };
                    all.append_value(texts.iter().map(Some));
                }
                Arc::new(all.finish())
            }
        })
    };
    let columns = columns.iter().enumerate().map(column).collect::<io::Result<Vec<ArrayRef>>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(io::Error::other)
}
