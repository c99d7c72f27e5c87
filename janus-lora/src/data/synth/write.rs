//! Drawn rows as a Parquet file in the Hugging Face image convention.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use janus_core::output::write_file;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use rayon::prelude::*;

use super::{Drawn, SynthSpec};
use crate::data::error::DataError;

/// What `datasets` of the Hugging Face hub uses for tables with images.
const ROW_GROUP_ROWS: u32 = 100;

const TEXT_COLUMNS: [&str; 4] = ["question", "answer", "caption", "label"];

/// Where the encoder puts its bytes until they go to the file: it wants a writer that may change threads.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    fn empty_into(&self, out: &mut dyn Write) -> io::Result<()> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        out.write_all(&bytes)
    }
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn write(spec: &SynthSpec, path: &Path) -> Result<(), DataError> {
    write_file(path, |out| {
        let outbox = Outbox::default();
        let schema = Arc::new(schema());
        let features = schema.metadata().iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // The crate's default names its own version, and equal data should be equal bytes.
            .set_created_by("janus-lora version 1.0.0".into())
            .set_key_value_metadata(Some(features))
            .build();
        let mut writer =
            ArrowWriter::try_new(outbox.clone(), schema.clone(), Some(properties)).map_err(io::Error::other)?;
        for start in (0..spec.rows).step_by(ROW_GROUP_ROWS as usize) {
            let rows = start..spec.rows.min(start.saturating_add(ROW_GROUP_ROWS));
            let drawn: Vec<Drawn> =
                rows.into_par_iter().map(|row| spec.draw(row)).collect::<Result<_, _>>().map_err(io::Error::other)?;
            writer.write(&batch(&schema, start, &drawn)?).map_err(io::Error::other)?;
            writer.flush().map_err(io::Error::other)?;
            outbox.empty_into(out)?;
        }
        writer.close().map_err(io::Error::other)?;
        outbox.empty_into(out)
    })?;
    Ok(())
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn schema() -> Schema {
    let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
    let mut features = serde_json::json!({ "image": { "_type": "Image" } });
    for name in TEXT_COLUMNS {
        fields.push(Field::new(name, DataType::Utf8, true));
        features[name] = serde_json::json!({ "dtype": "string", "_type": "Value" });
    }
    let info = serde_json::json!({ "info": { "features": features } });
    Schema::new_with_metadata(fields, [("huggingface".to_string(), info.to_string())])
}

fn batch(schema: &Arc<Schema>, start: u32, rows: &[Drawn]) -> io::Result<RecordBatch> {
    let bytes: BinaryArray = rows.iter().map(|row| Some(row.image.as_slice())).collect();
    let path: StringArray = (start..).zip(rows).map(|(number, _)| Some(format!("{number:06}.png"))).collect();
    let parts: Vec<ArrayRef> = vec![Arc::new(bytes), Arc::new(path)];
    let image = StructArray::try_new(image_fields(), parts, None).map_err(io::Error::other)?;
    let text = |of: fn(&Drawn) -> &str| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    };
    let columns: Vec<ArrayRef> =
        vec![Arc::new(image), text(|r| &r.question), text(|r| &r.answer), text(|r| &r.caption), text(|r| r.label)];
    RecordBatch::try_new(schema.clone(), columns).map_err(io::Error::other)
}
