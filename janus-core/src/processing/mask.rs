//! Masks: what is stored of a picture's pixels, where [`decode_image`](super::decode_image) tells how they look.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat};

use super::Result;
use super::bmp;
use super::decode::{
    Decoding, MAX_DECODER_BYTES, broken, check_complete, decoder_error, format_of, guarded, open, turn,
};
use super::error::ProcessingError;
use super::exif;
use super::headers::webp_lossy_sizes;
use super::room::Room;

/// How far lossy compression may move a value of a mask.
pub const LOSSY_REACH: u16 = 16;

/// Where a PNG file's colour type stands: behind the signature, the length and name of the first chunk, two sides and the depth.
const PNG_COLOUR_TYPE: usize = 25;
/// The colour type of pictures with a palette.
const PNG_INDEXED: u8 = 3;

/// A mask as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMask {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The value of each pixel, row by row, `[height · width]`: its number in the palette where there is one, else its grey,
    /// at the file's own 8 or 16 bits.
    pub values: Vec<u16>,
    /// The colours that the values stand for, where they are numbers in a palette.
    pub palette: Option<Vec<[u8; 3]>>,
    /// Whether the file's compression moves values, by about [`LOSSY_REACH`] at most.
    pub is_lossy: bool,
}

/// Decodes a mask: palettes of PNG, GIF and BMP are not looked up, 16 bits are not cut, colours have to be grey.
///
/// Transparency is left out, unless nothing else tells pixels apart: then the file is refused. Sizes and EXIF are treated as in
/// [`decode_image`](super::decode_image). Grey of one bit is 0 and 255, that of two and four bits is scaled to 255, as in PIL.
///
/// # Errors
/// As [`decode_image`](super::decode_image); colours that are not grey; palettes of TIFF and of compressed BMP; a mask in the transparency.
pub fn decode_mask(bytes: &[u8], decoding: Decoding) -> Result<StoredMask> {
    let format = format_of(bytes)?;
    guarded(format, || {
        if format == ImageFormat::Tiff && exif::has_palette(bytes) {
            return Err(ProcessingError::PaletteMask { form: "TIFF" });
        }
        let decoder = open(bytes, format)?;
        check_complete(bytes, format)?;
        // As it is stored, and as values.
        let _room = Room::take(2 * decoder.total_bytes());
        let indexed = match format {
            ImageFormat::Png if bytes.get(PNG_COLOUR_TYPE) == Some(&PNG_INDEXED) => Some(png_indices(bytes)?),
            ImageFormat::Gif => Some(gif_indices(bytes, decoder.dimensions())?),
            ImageFormat::Bmp => bmp::indices(bytes, decoder.dimensions())?,
            _ => None,
        };
        let (mut image, palette) = match indexed {
            Some((indices, palette)) => (DynamicImage::from(indices), Some(palette)),
            None => (DynamicImage::from_decoder(decoder).map_err(|e| decoder_error(format, &e))?, None),
        };
        image.apply_orientation(turn(bytes, format, decoding));
        let is_lossy =
            format == ImageFormat::Jpeg || format == ImageFormat::WebP && !webp_lossy_sizes(bytes).is_empty();
        let (width, height) = (image.width(), image.height());
        let reach = if is_lossy { LOSSY_REACH } else { 0 };
        let values = match &image {
            DynamicImage::ImageLuma8(image) => grey::<1, u8>(image.as_raw(), width, reach),
            DynamicImage::ImageLumaA8(image) => grey::<2, u8>(image.as_raw(), width, reach),
            DynamicImage::ImageRgb8(image) => grey::<3, u8>(image.as_raw(), width, reach),
            DynamicImage::ImageRgba8(image) => grey::<4, u8>(image.as_raw(), width, reach),
            DynamicImage::ImageLuma16(image) => grey::<1, u16>(image.as_raw(), width, reach),
            DynamicImage::ImageLumaA16(image) => grey::<2, u16>(image.as_raw(), width, reach),
            DynamicImage::ImageRgb16(image) => grey::<3, u16>(image.as_raw(), width, reach),
            DynamicImage::ImageRgba16(image) => grey::<4, u16>(image.as_raw(), width, reach),
            other => {
                let kind = format!("a mask of {:?}", other.color());
                Err(ProcessingError::UnsupportedImage { format: super::decode::name(format), kind })
            }
        }?;
        Ok(StoredMask { width, height, values, palette, is_lossy })
    })
}

/// The grey of pixels of `N` numbers: with 2 and 4 the last one is the transparency.
fn grey<const N: usize, T: Copy + Into<u16>>(raw: &[T], width: u32, reach: u16) -> Result<Vec<u16>> {
    let (pixels, _) = raw.as_chunks::<N>();
    let colours = if N < 3 { 1 } else { 3 };
    let mut values = Vec::with_capacity(pixels.len());
    for (place, pixel) in pixels.iter().enumerate() {
        let numbers = pixel.map(Into::into);
        let colour: &[u16] = numbers.get(..colours).unwrap_or_default();
        let (least, most) = (colour.iter().min().copied(), colour.iter().max().copied());
        let (Some(least), Some(most)) = (least, most) else { continue };
        if most - least > reach {
            let (x, y) = (place % width.max(1) as usize, place / width.max(1) as usize);
            return Err(ProcessingError::ColouredMask { x, y, colour: colour.to_vec() });
        }
        values.push(most);
    }
    let differ = |mut numbers: Box<dyn Iterator<Item = u16> + '_>| {
        let first = numbers.next();
        numbers.any(|other| Some(other) != first)
    };
    if N.is_multiple_of(2) && !differ(Box::new(values.iter().copied())) {
        let last = |pixel: &[T; N]| pixel.last().copied().map_or(0, Into::into);
        if differ(Box::new(pixels.iter().map(last))) {
            return Err(ProcessingError::TransparentMask { value: values.first().copied().unwrap_or(0) });
        }
    }
    Ok(values)
}

/// Red, green and blue of each number.
fn colours(palette: &[u8]) -> Vec<[u8; 3]> {
    palette.as_chunks::<3>().0.to_vec()
}

/// The numbers of a PNG's pixels in its palette, and their colours.
fn png_indices(bytes: &[u8]) -> Result<(GrayImage, Vec<[u8; 3]>)> {
    let failed = |error: png::DecodingError| broken(ImageFormat::Png, error.to_string());
    let wrong = || broken(ImageFormat::Png, "its rows do not have the size it states");
    let limits = png::Limits { bytes: usize::try_from(MAX_DECODER_BYTES).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(failed)?;
    let mut packed = vec![0; reader.output_buffer_size().ok_or_else(wrong)?];
    let found = reader.next_frame(&mut packed).map_err(failed)?;
    let bits = found.bit_depth as usize;
    let per_byte = (8 / bits.max(1)).max(1);
    let mask = u8::MAX >> (8 - bits.min(8));
    let width = found.width as usize;
    let mut indices = Vec::with_capacity(width * found.height as usize);
    for line in packed.chunks_exact(found.line_size.max(1)).take(found.height as usize) {
        let index = |x: usize| {
            let shift = 8 - bits.min(8) * (x % per_byte + 1);
            line.get(x / per_byte).map_or(0, |byte| byte >> shift & mask)
        };
        indices.extend((0..width).map(index));
    }
    let palette = reader.info().palette.as_deref().map(colours).unwrap_or_default();
    let image = GrayImage::from_raw(found.width, found.height, indices).ok_or_else(wrong)?;
    Ok((image, palette))
}

/// The numbers of a GIF's first picture in its palette, and their colours. Beside a picture that is smaller than the screen stands the transparent
/// number, or 0, as in PIL.
fn gif_indices(bytes: &[u8], (width, height): (u32, u32)) -> Result<(GrayImage, Vec<[u8; 3]>)> {
    let failed = |error: gif::DecodingError| broken(ImageFormat::Gif, error.to_string());
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    if let Some(limit) = std::num::NonZeroU64::new(MAX_DECODER_BYTES) {
        options.set_memory_limit(gif::MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(failed)?;
    let shared = decoder.global_palette().map(colours).unwrap_or_default();
    let frame = decoder.read_next_frame().map_err(failed)?;
    let frame = frame.ok_or_else(|| broken(ImageFormat::Gif, "it holds no picture"))?;
    let mut screen = GrayImage::from_pixel(width, height, image::Luma([frame.transparent.unwrap_or(0)]));
    let lines = frame.buffer.chunks_exact(usize::from(frame.width).max(1));
    for (line, y) in lines.zip(u32::from(frame.top)..) {
        for (index, x) in line.iter().zip(u32::from(frame.left)..) {
            if let Some(pixel) = screen.get_pixel_mut_checked(x, y) {
                pixel.0 = [*index];
            }
        }
    }
    let palette = frame.palette.as_deref().map_or(shared, colours);
    Ok((screen, palette))
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;
