//! What was answered to each row, as a file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use janus_core::output::{OutputError, write_file};
use serde::Serialize;
use serde_json::Value;

use crate::data::table_writer::TableWriter;

/// What was answered to one row to evaluate.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The table's name.
    pub table: String,
    /// Its number among the rows to evaluate, bad ones counted, from 0.
    pub row: usize,
    /// What the row says: a text, a label, boxes, the runs of a mask, or the ids of a caption.
    pub expected: Value,
    /// What was answered: a text, or what a head tells.
    pub answer: Value,
}

/// A row as it is written: `base` is answered without an adapter, `adapter` with it; `null` where a head is not there.
#[derive(Debug, Serialize)]
struct Line<'a> {
    table: &'a str,
    row: usize,
    expected: &'a Value,
    base: &'a Value,
    adapter: &'a Value,
}

/// A file's format, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A line of JSON a row.
    JsonLines,
    /// A table.
    Parquet,
}

impl Format {
    /// `.jsonl` and `.parquet`, in any case.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "jsonl" => Some(Format::JsonLines),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

/// Writes what was answered without and with an adapter, a line a row; the latter may be empty. In a table what is no text is JSON.
pub(crate) fn write(
    path: &Path,
    format: Format,
    base: &[Prediction],
    adapter: &[Prediction],
) -> Result<(), OutputError> {
    let lines = lines(base, adapter);
    write_file(path, |out| match format {
        Format::JsonLines => lines.iter().try_for_each(|line| {
            let mut text = serde_json::to_vec(line)?;
            text.push(b'\n');
            out.write_all(&text)
        }),
        Format::Parquet => table(&lines, out),
    })
}

/// Rows of both lists, in their order; each has the rows that it could answer.
fn lines<'a>(base: &'a [Prediction], adapter: &'a [Prediction]) -> Vec<Line<'a>> {
    let mut tables: Vec<&str> = Vec::new();
    for own in base.iter().chain(adapter) {
        if !tables.contains(&own.table.as_str()) {
            tables.push(&own.table);
        }
    }
    let mut lines = Vec::with_capacity(base.len().max(adapter.len()));
    for table in tables {
        let of = |all: &'a [Prediction]| all.iter().filter(|own| own.table == table).collect::<Vec<_>>();
        let (base, adapter) = (of(base), of(adapter));
        // One that lacks the table's head has no answers at all.
        for place in 0..base.len().max(adapter.len()) {
            let (own, with) = (base.get(place), adapter.get(place));
            let Some(known) = own.or(with) else { continue };
            let answer = |own: Option<&&'a Prediction>| own.map_or(&Value::Null, |own| &own.answer);
            let (row, expected) = (known.row, &known.expected);
            lines.push(Line { table, row, expected, base: answer(own), adapter: answer(with) });
        }
    }
    lines
}

fn table(lines: &[Line<'_>], out: &mut dyn Write) -> io::Result<()> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let row = Field::new("row", DataType::UInt64, true);
    let fields = vec![text("table"), row, text("expected"), text("base"), text("adapter")];
    let schema = Arc::new(Schema::new(fields));
    let written = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let column = |of: &dyn Fn(&Line<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(lines.iter().map(of).collect::<StringArray>())
    };
    let columns = vec![
        column(&|line| Some(line.table.to_owned())),
        Arc::new(lines.iter().map(|line| line.row as u64).collect::<UInt64Array>()),
        column(&|line| written(line.expected)),
        column(&|line| written(line.base)),
        column(&|line| written(line.adapter)),
    ];
    let mut writer = TableWriter::new(&schema, out)?;
    writer.write(&RecordBatch::try_new(schema.clone(), columns).map_err(io::Error::other)?)?;
    writer.close()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_without_and_with_an_adapter_stand_side_by_side() {
        let own = |table: &str, row: usize, answer: Value| Prediction {
            table: table.into(),
            row,
            expected: json!("pit"),
            answer,
        };
        let base = [own("questions", 0, json!("a")), own("questions", 1, json!("b"))];
        let adapter =
            [own("questions", 0, json!("c")), own("questions", 1, json!("d")), own("defects", 0, json!({"x": 1}))];
        let lines = lines(&base, &adapter);
        let told: Vec<_> =
            lines.iter().map(|line| (line.table, line.row, line.base.clone(), line.adapter.clone())).collect();
        assert_eq!(
            told,
            [
                ("questions", 0, json!("a"), json!("c")),
                ("questions", 1, json!("b"), json!("d")),
                ("defects", 0, Value::Null, json!({"x": 1})),
            ]
        );
    }
}
