//! A picture to one of some labels, by a head on the aligner's output.

use janus_core::{ModelError, Parts};

use super::{Draft, Question, Task, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::heads::HeadKind;
use crate::recipe::Columns;

/// Native paths the loss depends on.
const REACHED: &[&str] = &["model.vision_model.", "model.aligner."];

#[derive(Debug)]
pub(super) struct Classify {
    columns: Columns,
    head: std::sync::Arc<str>,
    labels: Vec<String>,
}

impl Classify {
    /// For a table of this name, whose rows have these labels, in their order.
    pub(super) fn new(columns: &Columns, head: &str, labels: &[String]) -> Self {
        Self { columns: columns.clone(), head: head.into(), labels: labels.to_vec() }
    }

    fn label(&self, row: &Row) -> Option<u32> {
        let label = row.text("label")?.trim();
        self.labels.binary_search_by(|known| known.as_str().cmp(label)).ok().map(|place| place as u32)
    }
}

/// The column that holds the labels.
pub fn label_column(columns: &Columns) -> ColumnRequest {
    ColumnRequest::required("label", columns.name_of("label"), ColumnKind::Text)
}

impl Task for Classify {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let image = ColumnRequest::required("image", self.columns.name_of("image"), ColumnKind::Image);
        vec![image, label_column(&self.columns)]
    }

    fn check(&self, _base: &Base, row: &Row) -> std::result::Result<(), String> {
        match self.label(row) {
            Some(_) => Ok(()),
            None => Err(format!(
                "the label `{}` is none of the {} labels to train on",
                row.text("label").unwrap_or_default().trim().escape_debug(),
                self.labels.len()
            )),
        }
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let image = row.image("image").ok_or(ModelError::NotLoaded { part: "row's image" })?;
        let label = self.label(row).ok_or_else(|| super::unusable("its label is none of the table's".into()))?;
        Ok(Draft::Label { head: self.head.clone(), image: base.image(image), label })
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Classify { labels: self.labels.clone() })
    }
}
