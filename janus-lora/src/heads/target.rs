//! What is true of a picture, as its head is to find it.

use std::sync::Arc;

use crate::detection::LabelledBox;

/// What is true of a picture.
#[derive(Debug, Clone)]
pub enum Target {
    /// The number of its label.
    Label(u32),
    /// Boxes in the picture's pixels.
    Boxes(Arc<[LabelledBox]>),
    /// What is looked for.
    Mask(Arc<Mask>),
    /// Ids of its caption.
    Caption(Arc<[u32]>),
}

impl Target {
    /// Ids of a caption, of anything else none.
    pub fn caption(&self) -> &[u32] {
        match self {
            Target::Caption(ids) => ids,
            Target::Label(_) | Target::Boxes(_) | Target::Mask(_) => &[],
        }
    }

    /// Its boxes, of anything else none.
    pub fn boxes(&self) -> &[LabelledBox] {
        match self {
            Target::Boxes(boxes) => boxes,
            Target::Label(_) | Target::Mask(_) | Target::Caption(_) => &[],
        }
    }

    /// The number of its label, of anything else `None`.
    pub fn label(&self) -> Option<u32> {
        match self {
            Target::Label(label) => Some(*label),
            Target::Boxes(_) | Target::Mask(_) | Target::Caption(_) => None,
        }
    }

    /// Its mask, of anything else `None`.
    pub fn mask(&self) -> Option<&Mask> {
        match self {
            Target::Mask(mask) => Some(mask),
            Target::Label(_) | Target::Boxes(_) | Target::Caption(_) => None,
        }
    }
}

/// A mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Of each place of the square's grid the share that belongs to it, of what is counted of the place, `[side · side]`.
    pub places: Vec<f32>,
    /// The share of each place that is counted, `[side · side]`; `None` where all is.
    pub counted: Option<Vec<f32>>,
    /// The mask at the picture's own size, where it is measured: row by row.
    pub pixels: Option<Vec<bool>>,
    /// Pixels that are not counted in figures, at the picture's own size where it is measured; empty where all are.
    pub ignored: Vec<bool>,
}
