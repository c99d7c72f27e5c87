//! What heads are to tell of a picture.

use std::sync::Arc;

use image::RgbImage;
use janus_core::ModelError;
use janus_core::processing::Frame;

use crate::base::Base;
use crate::cache::Image;
use crate::data::{EncodedImage, Row};
use crate::error::Result;
use crate::heads::locate::Marked;

/// A picture and what a head is to tell of it.
#[derive(Debug, Clone)]
pub struct Pictured {
    /// The head's name.
    pub head: Arc<str>,
    /// The picture.
    pub image: Image,
    /// Where it lies in the square that the model sees.
    pub frame: Frame,
    /// What is true of it.
    pub target: Target,
}

/// What is true of a picture.
#[derive(Debug, Clone)]
pub enum Target {
    /// The number of its label.
    Label(u32),
    /// Boxes in the picture's pixels.
    Boxes(Arc<[Marked]>),
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
}

/// A mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Of each place of the square's grid the share that belongs to it, `[side · side]`.
    pub places: Vec<f32>,
    /// The mask at the picture's own size, where it is measured: row by row.
    pub pixels: Option<Vec<bool>>,
}

/// The row's picture for a head.
pub(super) fn pictured(head: &Arc<str>, base: &Base, row: &Row, target: Target) -> Result<Pictured> {
    let image = row.image("image").ok_or(ModelError::NotLoaded { part: "row's image" })?;
    let frame = frame(base, image)?;
    Ok(Pictured { head: head.clone(), image: base.image(image), frame, target })
}

/// Where a picture lies in the square that the model sees of it.
///
/// # Errors
/// Bytes that are no picture.
pub fn frame(base: &Base, image: &EncodedImage) -> Result<Frame> {
    let (width, height) = image.dimensions()?;
    Ok(base.images().frame(width, height))
}

impl Mask {
    /// Of a mask's picture: what is brighter than half of its brightest pixel belongs to it, so that it may be written with
    /// ones or with 255. `side` places a side; `keep`: also at its own size.
    pub(super) fn read(base: &Base, picture: &EncodedImage, side: usize, keep: bool) -> Result<Self> {
        let mask = picture.decode()?;
        let brightness = |pixel: &image::Rgb<u8>| pixel.0.into_iter().max().unwrap_or(0);
        let brightest = mask.pixels().map(brightness).max().unwrap_or(0);
        let belongs: Vec<bool> = mask.pixels().map(|pixel| brightness(pixel) > brightest / 2).collect();
        let mut black_and_white = RgbImage::new(mask.width(), mask.height());
        for (pixel, belongs) in black_and_white.pixels_mut().zip(&belongs) {
            pixel.0 = [if *belongs { u8::MAX } else { 0 }; 3];
        }
        let mut processor = base.images().clone();
        processor.background = [0; 3];
        let square = processor.understanding_u8(&black_and_white);
        let size = square.width() as usize;
        let (mut sums, mut counts) = (vec![0f32; side * side], vec![0f32; side * side]);
        for (number, pixel) in square.pixels().enumerate() {
            let (row, column) = (number / size * side / size, number % size * side / size);
            if let (Some(sum), Some(count)) = (sums.get_mut(row * side + column), counts.get_mut(row * side + column)) {
                *sum += f32::from(pixel.0[0]) / 255.0;
                *count += 1.0;
            }
        }
        let places = sums.iter().zip(counts).map(|(sum, count)| sum / f32::max(count, 1.0)).collect();
        Ok(Self { places, pixels: keep.then_some(belongs) })
    }
}
