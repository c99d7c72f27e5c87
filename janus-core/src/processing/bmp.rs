//! The numbers of a BMP's pixels in its palette, which the decoder looks up.
//!
//! Source: Microsoft's description of `BITMAPFILEHEADER` and `BITMAPINFOHEADER`; what is a palette of greys is Pillow's rule.

use image::{GrayImage, ImageFormat};

use super::Result;
use super::decode::broken;
use super::error::ProcessingError;

/// Where the second header begins.
const INFO: usize = 14;
/// Bytes of the oldest second header, whose numbers have half the width.
const CORE_BYTES: usize = 12;

/// The numbers of all pixels and the colours they stand for; `None` where colours tell as much as numbers: without a palette, and
/// where every colour of it is the grey of its number, or black and white in one bit. `width` and `height` are the picture's, checked.
///
/// # Errors
/// A palette in a compressed file; a file that stops too early.
pub(super) fn indices(bytes: &[u8], (width, height): (u32, u32)) -> Result<Option<(GrayImage, Vec<[u8; 3]>)>> {
    let cut = || broken(ImageFormat::Bmp, "the file stops too early");
    let number = |at: usize, width: usize| {
        let field = at.checked_add(width).and_then(|end| bytes.get(at..end)).ok_or_else(cut)?;
        Ok::<_, ProcessingError>(field.iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (data, info) = (number(10, 4)?, number(INFO, 4)?);
    let is_core = info == CORE_BYTES;
    let bits = number(INFO + if is_core { 10 } else { 14 }, 2)?;
    if !matches!(bits, 1 | 4 | 8) {
        return Ok(None);
    }
    let (compression, used) = if is_core { (0, 0) } else { (number(INFO + 16, 4)?, number(INFO + 32, 4)?) };
    let colours = if used == 0 { 1 << bits } else { used.min(1 << bits) };
    let first = INFO.checked_add(info).ok_or_else(cut)?;
    let stored = bytes.get(first..).unwrap_or_default().chunks_exact(if is_core { 3 } else { 4 });
    let palette: Vec<[u8; 3]> = stored.take(colours).map(|colour| [colour[2], colour[1], colour[0]]).collect();
    let is_ramp = palette.iter().enumerate().all(|(index, colour)| colour.iter().all(|c| usize::from(*c) == index));
    if is_ramp || bits == 1 && palette == [[0; 3], [255; 3]] {
        return Ok(None);
    }
    if compression != 0 {
        return Err(ProcessingError::PaletteMask { form: "compressed BMP" });
    }
    let is_upwards = is_core || number(INFO + 8, 4)? < 1 << 31;
    let (per_byte, most) = (8 / bits, u8::MAX >> (8 - bits));
    let line_bytes = (width as usize * bits).div_ceil(32) * 4;
    let lines = data.checked_add(line_bytes * height as usize).and_then(|end| bytes.get(data..end)).ok_or_else(cut)?;
    let mut image = GrayImage::new(width, height);
    for (row, line) in (0..height).zip(lines.chunks_exact(line_bytes)) {
        let y = if is_upwards { height - 1 - row } else { row };
        for x in 0..width {
            let (byte, place) = (x as usize / per_byte, x as usize % per_byte);
            let index = line.get(byte).map_or(0, |byte| byte >> (8 - bits * (place + 1)) & most);
            image.put_pixel(x, y, image::Luma([index]));
        }
    }
    Ok(Some((image, palette)))
}
