//! Boxes around the things in a picture, by a head on the aligner's output.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janus_core::Parts;

use super::box_values::{BoxFacts, BoxReading};
use super::error::TaskError;
use super::target::pictured;
use super::{Draft, PICTURE_PATHS, Question, Task, image_column, label_number, unknown_label, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::detection::LabelledBox;
use crate::error::Result;
use crate::heads::{HeadKind, Target};
use crate::recipe::{Columns, DataSection};

#[derive(Debug)]
pub(super) struct Locate {
    columns: Columns,
    head: Arc<str>,
    labels: Vec<String>,
    reading: BoxReading,
    /// Of the rows that were checked since they were last judged.
    facts: Mutex<BoxFacts>,
}

impl Locate {
    /// For a table whose boxes have these labels, in their order.
    pub(super) fn new(section: &DataSection, labels: &[String]) -> Self {
        Self {
            columns: section.columns.clone(),
            head: section.name.as_str().into(),
            labels: labels.to_vec(),
            reading: BoxReading::of(section),
            facts: Mutex::default(),
        }
    }

    fn facts(&self) -> MutexGuard<'_, BoxFacts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row's boxes, or what is wrong with them.
    fn marked(&self, row: &Row) -> std::result::Result<Vec<LabelledBox>, String> {
        let boxes = row.boxes.get("boxes").map_or(&[][..], Vec::as_slice);
        let labels = row.lists.get("labels").map_or(&[][..], Vec::as_slice);
        if boxes.len() != labels.len() {
            return Err(format!("it has {} boxes and {} labels of boxes", boxes.len(), labels.len()));
        }
        let image = row.image("image").ok_or("there is no image")?;
        let (width, height) = image.dimensions().map_err(|e| e.to_string())?;
        let marked = |(numbers, label): (&[f32; 4], &String)| {
            let read = self.reading.read(*numbers, width, height);
            let corners = read.map_err(|reason| reason + image.turned_note())?;
            let label = label_number(&self.labels, label).ok_or_else(|| unknown_label(&self.labels, label))?;
            Ok(LabelledBox { corners, label })
        };
        boxes.iter().zip(labels).map(marked).collect()
    }
}

/// The column that holds the labels of boxes.
pub(super) fn label_column(columns: &Columns) -> ColumnRequest {
    ColumnRequest::required("labels", columns.name_of("labels"), ColumnKind::TextList)
}

impl Task for Locate {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, PICTURE_PATHS)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let boxes = ColumnRequest::required("boxes", self.columns.name_of("boxes"), ColumnKind::Boxes);
        vec![image_column(&self.columns), boxes, label_column(&self.columns)]
    }

    fn check(&self, _base: &Base, row: &Row) -> std::result::Result<(), String> {
        let image = row.image("image").ok_or("there is no image")?;
        let (width, height) = image.dimensions().map_err(|e| e.to_string())?;
        let mut facts = BoxFacts::default();
        row.boxes.get("boxes").into_iter().flatten().for_each(|numbers| facts.add(*numbers, width, height));
        self.facts().extend(&facts);
        self.marked(row).map(|_| ())
    }

    fn conclude(&self, split: Split) -> std::result::Result<Vec<String>, TaskError> {
        let facts = std::mem::take(&mut *self.facts());
        facts.judge(self.reading, &self.head, split)?;
        Ok(self.reading.note().into_iter().collect())
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let marked = self.marked(row).map_err(super::unusable)?;
        Ok(Draft::Picture(pictured(&self.head, base, row, Target::Boxes(marked.into()))?))
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Locate { labels: self.labels.clone() })
    }
}
