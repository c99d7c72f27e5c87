//! What heads are to tell of a picture.

use std::sync::Arc;

use image::RgbImage;
use janus_core::ModelError;
use janus_core::processing::Frame;

use super::mask_values::Class;
use crate::base::Base;
use crate::cache::Image;
use crate::data::{EncodedImage, Row};
use crate::error::Result;
use crate::heads::{Mask, Target};

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

/// Of a mask's pixels, row by row; `side` places a side; `keep`: also at its own size.
pub(super) fn mask_target(base: &Base, sides: (u32, u32), classes: &[Class], side: usize, keep: bool) -> Mask {
    let shares = |background: u8, holds: &dyn Fn(Class) -> bool| {
        let mut black_and_white = RgbImage::new(sides.0, sides.1);
        for (pixel, class) in black_and_white.pixels_mut().zip(classes) {
            pixel.0 = [if holds(*class) { u8::MAX } else { 0 }; 3];
        }
        place_means(base, &black_and_white, background, side)
    };
    let mut places = shares(0, &|class| class == Class::Object);
    let is_ignored = |class: &Class| *class == Class::Ignored;
    let has_ignored = classes.iter().any(is_ignored);
    // What lies beside the picture is ground, as far as it is counted.
    let counted = has_ignored.then(|| shares(u8::MAX, &|class| class != Class::Ignored));
    if let Some(counted) = &counted {
        // Of what is counted of a place.
        places.iter_mut().zip(counted).for_each(|(place, counted)| {
            *place = if *counted > 0.0 { (*place / counted).min(1.0) } else { 0.0 };
        });
    }
    Mask {
        places,
        counted,
        pixels: keep.then(|| classes.iter().map(|class| *class == Class::Object).collect()),
        ignored: if keep && has_ignored { classes.iter().map(is_ignored).collect() } else { Vec::new() },
    }
}

/// Means of a grey picture over each of `side · side` places of the square that the model sees of it.
fn place_means(base: &Base, picture: &RgbImage, background: u8, side: usize) -> Vec<f32> {
    let mut processor = base.images().clone();
    processor.background = [background; 3];
    let square = processor.understanding_u8(picture);
    let size = square.width() as usize;
    let (mut sums, mut counts) = (vec![0f32; side * side], vec![0f32; side * side]);
    for (number, pixel) in square.pixels().enumerate() {
        let (row, column) = (number / size * side / size, number % size * side / size);
        if let (Some(sum), Some(count)) = (sums.get_mut(row * side + column), counts.get_mut(row * side + column)) {
            *sum += f32::from(pixel.0[0]) / 255.0;
            *count += 1.0;
        }
    }
    sums.iter().zip(counts).map(|(sum, count)| sum / f32::max(count, 1.0)).collect()
}
