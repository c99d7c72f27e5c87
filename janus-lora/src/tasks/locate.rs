//! Boxes around the things in a picture, by a head on the aligner's output.

use std::sync::Arc;

use janus_core::Parts;

use super::target::pictured;
use super::{Draft, PICTURE_PATHS, Question, Target, Task, image_column, label_number, unknown_label, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::heads::HeadKind;
use crate::heads::locate::Marked;
use crate::recipe::Columns;

#[derive(Debug)]
pub(super) struct Locate {
    columns: Columns,
    head: Arc<str>,
    labels: Vec<String>,
}

impl Locate {
    /// For a table of this name, whose boxes have these labels, in their order.
    pub(super) fn new(columns: &Columns, head: &str, labels: &[String]) -> Self {
        Self { columns: columns.clone(), head: head.into(), labels: labels.to_vec() }
    }

    /// The row's boxes, or what is wrong with them.
    fn marked(&self, row: &Row) -> std::result::Result<Vec<Marked>, String> {
        let boxes = row.boxes.get("boxes").map_or(&[][..], Vec::as_slice);
        let labels = row.lists.get("labels").map_or(&[][..], Vec::as_slice);
        if boxes.len() != labels.len() {
            return Err(format!("it has {} boxes and {} labels of boxes", boxes.len(), labels.len()));
        }
        let image = row.image("image").ok_or("there is no image")?;
        let (width, height) = image.dimensions().map_err(|e| e.to_string())?;
        let marked = |(corners, label): (&[f32; 4], &String)| {
            check_box(*corners, width, height).map_err(|reason| reason + image.turned_note())?;
            let label = label_number(&self.labels, label).ok_or_else(|| unknown_label(&self.labels, label))?;
            Ok(Marked { corners: *corners, label })
        };
        boxes.iter().zip(labels).map(marked).collect()
    }
}

/// Whether a box has an area and lies in its picture.
fn check_box([left, top, right, bottom]: [f32; 4], width: u32, height: u32) -> std::result::Result<(), String> {
    let shown = format!("the box {left}, {top}, {right}, {bottom}");
    // Numbers that are none compare as false.
    if !(left < right && top < bottom) {
        return Err(format!("{shown} has no area: expected x1 < x2 and y1 < y2"));
    }
    if !(left >= 0.0 && top >= 0.0 && right <= width as f32 && bottom <= height as f32) {
        return Err(format!("{shown} reaches beyond its image of {width} x {height} pixels"));
    }
    Ok(())
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
        self.marked(row).map(|_| ())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_have_an_area_inside_their_picture() {
        assert_eq!(check_box([0.0, 1.5, 10.0, 8.0], 10, 8), Ok(()));
        for (corners, reason) in [
            ([3.0, 3.0, 3.0, 5.0], "has no area"),
            ([5.0, 3.0, 2.0, 1.0], "has no area"),
            ([f32::NAN, 0.0, 1.0, 1.0], "has no area"),
            ([0.0, 0.0, 10.5, 2.0], "beyond its image of 10 x 8"),
            ([-1.0, 0.0, 1.0, 2.0], "beyond its image"),
            ([0.0, 0.0, f32::INFINITY, 2.0], "beyond its image"),
        ] {
            let message = check_box(corners, 10, 8).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
    }
}
