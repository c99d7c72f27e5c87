//! A picture to one of some labels, by a head on the aligner's output.

use std::sync::Arc;

use janus_core::Parts;

use super::target::pictured;
use super::{Draft, PICTURE_PATHS, Question, Task, image_column, label_number, unknown_label, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::heads::{HeadKind, Target};
use crate::recipe::Columns;

#[derive(Debug)]
pub(super) struct Classify {
    columns: Columns,
    head: Arc<str>,
    labels: Vec<String>,
}

impl Classify {
    /// For a table of this name, whose rows have these labels, in their order.
    pub(super) fn new(columns: &Columns, head: &str, labels: &[String]) -> Self {
        Self { columns: columns.clone(), head: head.into(), labels: labels.to_vec() }
    }
}

/// The column that holds the labels.
pub(super) fn label_column(columns: &Columns) -> ColumnRequest {
    ColumnRequest::required("label", columns.name_of("label"), ColumnKind::Label)
}

impl Task for Classify {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, PICTURE_PATHS)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        vec![image_column(&self.columns), label_column(&self.columns)]
    }

    fn check(&self, _base: &Base, row: &Row) -> std::result::Result<(), String> {
        let label = row.text("label").unwrap_or_default();
        label_number(&self.labels, label).map(|_| ()).ok_or_else(|| unknown_label(&self.labels, label))
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let label = row.text("label").unwrap_or_default();
        let number = label_number(&self.labels, label);
        let number = number.ok_or_else(|| super::unusable(unknown_label(&self.labels, label)))?;
        Ok(Draft::Picture(pictured(&self.head, base, row, Target::Label(number))?))
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Classify { labels: self.labels.clone() })
    }
}
