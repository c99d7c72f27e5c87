//! What an answer adds to its row.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{GrayImage, ImageFormat, Luma, RgbImage};
use serde_json::{Map, Value, json};

use super::Asked;
use crate::error::{Error, Result};
use crate::heads::HeadAnswer;
use crate::infer::Answer;
use crate::recipe::Task;

/// The column of reasons.
pub(super) const ERROR: &str = "error";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    /// A text.
    Text,
    /// A number.
    Number,
    /// A list of numbers.
    Numbers,
    /// A list of texts.
    Texts,
    /// Boxes: lists of four numbers.
    Boxes,
    /// A picture, as PNG; base64 in JSON.
    Picture,
}

impl Asked {
    /// Columns that answers add, [`ERROR`] last.
    pub(super) fn added(&self) -> Vec<(&'static str, Cell)> {
        let mut columns = match self.task {
            Task::Understand | Task::Text => vec![("answer", Cell::Text)],
            Task::Generate | Task::Edit | Task::Reconstruct => vec![("image", Cell::Picture)],
            Task::Classify => vec![("label", Cell::Text), ("probability", Cell::Number)],
            Task::Locate => vec![("boxes", Cell::Boxes), ("box_labels", Cell::Texts), ("scores", Cell::Numbers)],
            Task::Segment => vec![("mask", Cell::Picture), ("share", Cell::Number)],
            Task::Retrieve => vec![("similarity", Cell::Number)],
        };
        columns.push((ERROR, Cell::Text));
        columns
    }

    /// What an answer puts into them.
    pub(super) fn values(&self, answer: Answer) -> Result<Map<String, Value>> {
        let pairs = match answer {
            Answer::Text(text) => vec![("answer", json!(text.text))],
            Answer::Picture(picture) => vec![("image", json!(png(&picture.picture)?))],
            Answer::Head(head) => self.of_head(head)?,
        };
        Ok(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn of_head(&self, answer: HeadAnswer) -> Result<Vec<(&'static str, Value)>> {
        let labels = self.head.as_ref().map_or(&[][..], |(_, kind)| kind.labels());
        let label = |number: usize| labels.get(number).map_or("", String::as_str);
        Ok(match answer {
            HeadAnswer::Label(probabilities) => {
                // Of equal ones the first.
                let best =
                    (0..probabilities.len()).rev().max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
                let best = best.unwrap_or_default();
                vec![("label", json!(label(best))), ("probability", json!(probabilities.get(best)))]
            }
            HeadAnswer::Boxes(boxes) => vec![
                ("boxes", boxes.iter().map(|own| json!(own.corners)).collect()),
                ("box_labels", boxes.iter().map(|own| json!(label(own.label as usize))).collect()),
                ("scores", boxes.iter().map(|own| json!(own.score)).collect()),
            ],
            HeadAnswer::Mask { inside, size: (width, height) } => {
                let pixel = |x: u32, y: u32| inside.get((y * width + x) as usize).copied().unwrap_or(false);
                let mask = GrayImage::from_fn(width, height, |x, y| Luma([if pixel(x, y) { u8::MAX } else { 0 }]));
                let pixels = inside.iter().filter(|inside| **inside).count();
                vec![("mask", json!(png(&mask)?)), ("share", json!(pixels as f64 / inside.len().max(1) as f64))]
            }
            HeadAnswer::Similarities(similarities) => vec![("similarity", json!(similarities.first()))],
        })
    }
}

/// A picture that can be written as PNG.
trait Png {
    fn write(&self, to: &mut Cursor<Vec<u8>>) -> image::ImageResult<()>;
}

impl Png for RgbImage {
    fn write(&self, to: &mut Cursor<Vec<u8>>) -> image::ImageResult<()> {
        self.write_to(to, ImageFormat::Png)
    }
}

impl Png for GrayImage {
    fn write(&self, to: &mut Cursor<Vec<u8>>) -> image::ImageResult<()> {
        self.write_to(to, ImageFormat::Png)
    }
}

fn png(picture: &impl Png) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write(&mut bytes).map_err(|e| Error::Usage {
        message: format!("cannot encode a picture: {e}"),
        hint: "this is a defect of janus".into(),
    })?;
    Ok(STANDARD.encode(bytes.into_inner()))
}
