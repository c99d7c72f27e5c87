//! What the decoder leaves of BMP: the numbers of pixels in a palette, which it looks up, and colours of 16 bits.
//!
//! Source: Microsoft's description of `BITMAPFILEHEADER` and `BITMAPINFOHEADER`; what is a palette of greys is Pillow's rule.

use image::{GrayImage, ImageFormat, RgbImage};

use super::Result;
use super::decode::broken;
use super::error::ProcessingError;

/// Where the second header begins.
const INFO: usize = 14;
/// Bytes of the oldest second header, whose numbers have half the width.
const CORE_BYTES: usize = 12;

/// Colours of 5 and 6 bits as Pillow widens them, by cutting: the decoder rounds.
pub(super) fn cut_as_pillow(image: &mut RgbImage, bytes: &[u8]) {
    let number = |at: usize| bytes.get(at..at + 2).map(|field| u16::from_le_bytes([field[0], field[1]]));
    // As in all headers but the oldest, which has no such pixels.
    if number(INFO) == Some(CORE_BYTES as u16) || number(INFO + 14) != Some(16) {
        return;
    }
    const MASKED: Option<u16> = Some(3);
    let widths = match (number(INFO + 16), number(INFO + 40), number(INFO + 44)) {
        (Some(0), ..) | (MASKED, Some(0x7C00), Some(0x03E0)) => [5, 5, 5],
        (MASKED, Some(0xF800), Some(0x07E0)) => [5, 6, 5],
        _ => return,
    };
    for pixel in image.pixels_mut() {
        for (colour, width) in pixel.0.iter_mut().zip(widths) {
            let most = (1u32 << width) - 1;
            let stored = (u32::from(*colour) * most + 127) / 255;
            *colour = (stored * 255 / most) as u8;
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::super::{Decoding, decode_image};

    /// Values of Pillow 13.
    #[test]
    fn colours_of_16_bits_are_those_of_pillow() {
        const PIXELS: [u16; 4] = [0x1234, 0xFFFF, 0x8410, 0x07E3];
        for (masks, expected) in [
            ([0xF800_u32, 0x07E0, 0x001F], [16, 68, 164, 255, 255, 255, 131, 129, 131, 0, 255, 24]),
            ([0x7C00, 0x03E0, 0x001F], [32, 139, 164, 255, 255, 255, 8, 0, 131, 8, 255, 24]),
        ] {
            let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
            let header = [&numbers(&[40, 4, 1])[..], &[1, 0, 16, 0], &numbers(&[3, 0, 0, 0, 0, 0])].concat();
            let pixels: Vec<u8> = PIXELS.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
            let bytes = [b"BM", &numbers(&[74, 0, 66])[..], &header, &numbers(&masks), &pixels].concat();
            assert_eq!(decode_image(&bytes, Decoding::default()).unwrap().as_raw(), &expected, "{masks:?}");
        }
    }
}
