//! Parquet files in the convention of Hugging Face data sets, one row group after the other.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

/// Where the encoder puts its bytes until they go to the file: it wants a writer that may change threads.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a table, each batch as a row group of its own.
pub(crate) struct TableWriter<'a> {
    writer: ArrowWriter<Outbox>,
    outbox: Outbox,
    out: &'a mut dyn Write,
}

impl<'a> TableWriter<'a> {
    /// A table of this schema, whose metadata goes into the file's footer.
    ///
    /// # Errors
    /// A type that Parquet does not have.
    pub(crate) fn new(schema: &SchemaRef, out: &'a mut dyn Write) -> io::Result<Self> {
        let mut metadata: Vec<KeyValue> =
            schema.metadata().iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        metadata.sort_by(|one, other| one.key.cmp(&other.key));
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // The crate's default names its own version, and equal data should be equal bytes.
            .set_created_by("janus-lora version 1.0.0".into())
            .set_key_value_metadata(Some(metadata))
            .build();
        let outbox = Outbox::default();
        let writer =
            ArrowWriter::try_new(outbox.clone(), schema.clone(), Some(properties)).map_err(io::Error::other)?;
        Ok(Self { writer, outbox, out })
    }

    /// Writes rows as a row group.
    ///
    /// # Errors
    /// Another schema, or what the system reports.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        self.writer.write(rows).map_err(io::Error::other)?;
        self.writer.flush().map_err(io::Error::other)?;
        self.pass_on()
    }

    /// Writes the footer.
    ///
    /// # Errors
    /// What the system reports.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.writer.finish().map_err(io::Error::other)?;
        self.pass_on()
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut *self.outbox.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.out.write_all(&bytes)
    }
}
