//! What heads read and what they tell of a picture.

use candle_core::{Result, Tensor};
use image::RgbImage;
use serde_json::Value;

use crate::detection::Detection;

/// What heads read of pictures.
#[derive(Debug, Clone)]
pub struct Features {
    /// After a third of the tower's blocks, `[images, patches, width]`, where a head reads them.
    pub low: Option<Tensor>,
    /// The aligner's, `[images, patches, hidden]`.
    pub mid: Tensor,
}

impl Features {
    /// Those of one picture.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of_picture(&self, place: usize) -> Result<Self> {
        let own = |features: &Tensor| features.narrow(0, place, 1);
        Ok(Self { low: self.low.as_ref().map(own).transpose()?, mid: own(&self.mid)? })
    }
}

/// What a head tells of a picture.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadAnswer {
    /// The probability of each label, in the head's order.
    Label(Vec<f32>),
    /// Boxes in the picture's pixels, the surest first.
    Boxes(Vec<Detection>),
    /// What belongs to the mask, row by row at the picture's own size.
    Mask {
        /// `[height · width]`.
        inside: Vec<bool>,
        /// Width and height.
        size: (u32, u32),
    },
    /// How close the picture is to each caption, in their order.
    Similarities(Vec<f32>),
}

/// An answer in words and as JSON.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    /// One line.
    pub text: String,
    /// Keys and values of an object.
    pub json: Vec<(String, Value)>,
}

/// An answer beside what is true, for people to look at.
#[derive(Debug)]
pub struct HeadSample {
    /// What is true.
    pub expected: String,
    /// What the head tells.
    pub answer: String,
    /// The picture with the answer drawn over it.
    pub overlay: Option<RgbImage>,
    /// The picture with what is true drawn over it.
    pub truth: Option<RgbImage>,
    /// How far the answer overlaps what is true, from 0 to 1: of boxes IoU, of masks Dice.
    pub score: Option<f64>,
}
