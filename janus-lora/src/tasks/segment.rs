//! A mask of what is looked for in a picture, by a head on the aligner's output and on low features.

use std::sync::Arc;

use janus_core::{ModelError, Parts};

use super::target::pictured;
use super::{Draft, Mask, PICTURE_PATHS, Question, Target, Task, image_column, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::heads::{HeadKind, segment};
use crate::recipe::Columns;

#[derive(Debug)]
pub(super) struct Segment {
    columns: Columns,
    head: Arc<str>,
}

impl Segment {
    /// For a table of this name.
    pub(super) fn new(columns: &Columns, head: &str) -> Self {
        Self { columns: columns.clone(), head: head.into() }
    }
}

impl Task for Segment {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, PICTURE_PATHS)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let mask = ColumnRequest::required("mask", self.columns.name_of("mask"), ColumnKind::Image);
        vec![image_column(&self.columns), mask]
    }

    fn check(&self, _base: &Base, row: &Row) -> std::result::Result<(), String> {
        let size = |role| {
            let image = row.image(role).ok_or_else(|| format!("there is no {role}"))?;
            image.dimensions().map_err(|e| e.to_string())
        };
        let (image, mask) = (size("image")?, size("mask")?);
        if image != mask {
            let ((width, height), (mask_width, mask_height)) = (image, mask);
            let note = row.image("image").map_or("", |image| image.turned_note());
            return Err(format!(
                "the mask has {mask_width} x {mask_height} pixels, its image {width} x {height}{note}"
            ));
        }
        Ok(())
    }

    fn draft(&self, base: &Base, draw: Option<f64>, row: &Row) -> Result<Draft> {
        let mask = row.image("mask").ok_or(ModelError::NotLoaded { part: "row's mask" })?;
        let mask = Mask::read(base, mask, segment::side(base.config()), draw.is_none())?;
        Ok(Draft::Picture(pictured(&self.head, base, row, Target::Mask(mask.into()))?))
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Segment {})
    }
}
