//! Bytes to RGB, with the values that PIL's `Image.open(...).convert("RGB")` gives, and with limits.

use std::io::Cursor;

use image::metadata::Orientation as Turn;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::Result;
use super::error::ProcessingError;
use super::exif;
use super::foreign::foreign;
use super::gif;
use super::headers::{jpeg_is_complete, webp_lossy_sizes};
use super::room::{Decoded, Room};
use super::{bmp, tiff};
use crate::guard;

/// The most pixels an image may have: 64 megapixels.
pub const MAX_PIXELS: u64 = 64_000_000;

/// The most that the longer side may be of the shorter one.
pub const MAX_ASPECT_RATIO: u32 = 100;

/// What a decoder may allocate: a picture of the most pixels at 16 bits in four channels, and working space.
pub(super) const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8 + (64 << 20);

/// First bytes that are shown of what is no image.
const SHOWN_BYTES: usize = 8;

/// Which way up a picture is read that was stored turned or mirrored, with a note of it in EXIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Orientation {
    /// As it is meant to be seen, as PIL's `ImageOps.exif_transpose` makes it.
    #[default]
    Upright,
    /// As PIL's `Image.open` gives it, as Janus' own loader does: the note counts in TIFF alone.
    Stored,
}

/// How the bytes of a picture become its colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Decoding {
    /// Which way up.
    pub orientation: Orientation,
    /// Bits that 16-bit grey uses: 2^bits - 1 becomes white, what is beyond it too. `None`: 255 becomes white, and what is
    /// beyond it, as in PIL.
    pub grey_bits: Option<u8>,
}

/// Width and height of an image, from its header alone.
///
/// # Errors
/// As [`decode_image`], but for damage behind the header.
pub fn image_dimensions(bytes: &[u8], decoding: Decoding) -> Result<(u32, u32)> {
    let format = format_of(bytes)?;
    guarded(format, || {
        if format == ImageFormat::Gif {
            return gif::dimensions(bytes);
        }
        let (width, height) = open(bytes, format)?.dimensions();
        Ok(match turn(bytes, format, decoding) {
            Turn::Rotate90 | Turn::Rotate270 | Turn::Rotate90FlipH | Turn::Rotate270FlipH => (height, width),
            _ => (width, height),
        })
    })
}

/// Decodes PNG, JPEG, WebP, BMP, GIF (the first frame) or TIFF, told apart by their content.
///
/// The size is read from the header and checked before anything is unpacked. Colours become RGB as in PIL: grey is
/// repeated, palettes are looked up, alpha is dropped without blending, the low byte of 16-bit colours is dropped,
/// and **16-bit grey is clipped at 255**, not scaled, unless [`Decoding::grey_bits`] says what white is.
///
/// # Errors
/// Bytes that are no image, a kind that is not supported, damaged or cut files, images without pixels, of more than
/// [`MAX_PIXELS`], or longer than [`MAX_ASPECT_RATIO`] to 1. A damaged note of the orientation counts as none.
pub fn decode_image(bytes: &[u8], decoding: Decoding) -> Result<RgbImage> {
    decode_in_room(bytes, decoding).map(Decoded::into_image)
}

/// As [`decode_image`], for one of many pictures that are decoded at once: what they take together until they are dropped is
/// bounded, and a thread may wait for room.
///
/// # Errors
/// As [`decode_image`].
pub fn decode_in_room(bytes: &[u8], decoding: Decoding) -> Result<Decoded> {
    let format = format_of(bytes)?;
    guarded(format, || {
        if format == ImageFormat::Gif {
            let (width, height) = gif::dimensions(bytes)?;
            // As colours with alpha, and as colours.
            let image_bytes = 3 * u64::from(width) * u64::from(height);
            let mut room = Room::take(image_bytes / 3 * 4 + image_bytes);
            let image = gif::decode(bytes)?;
            room.shrink(image_bytes);
            return Ok(Decoded { image, _room: room });
        }
        let decoder = open(bytes, format)?;
        let (width, height) = decoder.dimensions();
        let image_bytes = 3 * u64::from(width) * u64::from(height);
        // As the format stores it, and as colours.
        let mut room = Room::take(decoder.total_bytes() + image_bytes);
        let stored = unpacked(decoder, bytes, format)?;
        let mut image = DynamicImage::ImageRgb8(to_rgb(stored, format, decoding.grey_bits)?);
        image.apply_orientation(turn(bytes, format, decoding));
        room.shrink(image_bytes);
        Ok(Decoded { image: image.into_rgb8(), _room: room })
    })
}

/// The greatest value of a 16-bit grey picture of which [`decode_image`] makes white everything above 255; `None` of other
/// pictures, and of those whose values are within 255. Only pictures of that kind are decoded.
///
/// # Errors
/// As [`decode_image`].
pub fn clipped_grey(bytes: &[u8], decoding: Decoding) -> Result<Option<u16>> {
    let format = format_of(bytes)?;
    if decoding.grey_bits.is_some() || format == ImageFormat::Gif {
        return Ok(None);
    }
    guarded(format, || {
        if !matches!(open(bytes, format)?.color_type(), ColorType::L16 | ColorType::La16) {
            return Ok(None);
        }
        let greatest = match decode(bytes, format)? {
            DynamicImage::ImageLuma16(image) => image.into_raw().into_iter().max(),
            _ => None,
        };
        Ok(greatest.filter(|greatest| *greatest > u16::from(u8::MAX)))
    })
}

/// Whether these bytes are a picture of 16-bit grey, which [`Decoding::grey_bits`] is about, as far as its header says.
pub fn is_grey_16(bytes: &[u8]) -> bool {
    let is_one = |format| Ok(matches!(open(bytes, format)?.color_type(), ColorType::L16 | ColorType::La16));
    format_of(bytes)
        .is_ok_and(|format| format != ImageFormat::Gif && guarded(format, || is_one(format)).unwrap_or(false))
}

/// Whether [`Orientation::Upright`] makes another picture of these bytes than [`Orientation::Stored`].
pub fn is_turned(bytes: &[u8]) -> bool {
    let stored = |format| turn(bytes, format, Decoding { orientation: Orientation::Stored, grey_bits: None });
    format_of(bytes).is_ok_and(|format| turn(bytes, format, Decoding::default()) != stored(format))
}

/// What has to be done to a stored picture.
pub(super) fn turn(bytes: &[u8], format: ImageFormat, decoding: Decoding) -> Turn {
    // PIL turns TIFF on opening.
    match (decoding.orientation, format) {
        (Orientation::Upright, _) | (_, ImageFormat::Tiff) => exif::orientation(bytes, format),
        (Orientation::Stored, _) => Turn::NoTransforms,
    }
}

/// Decodes a picture that is no GIF, in its own colours.
fn decode(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage> {
    unpacked(open(bytes, format)?, bytes, format)
}

/// The picture of an open decoder.
fn unpacked(decoder: impl ImageDecoder, bytes: &[u8], format: ImageFormat) -> Result<DynamicImage> {
    check_complete(bytes, format)?;
    let image = DynamicImage::from_decoder(decoder).map_err(|e| decoder_error(format, &e))?;
    // Grey with one transparent value has no alpha of its own, and PIL does not make one of it.
    const COLOUR_TYPE: usize = 25;
    Ok(match (image, format, bytes.get(COLOUR_TYPE)) {
        (image @ DynamicImage::ImageLumaA16(_), ImageFormat::Png, Some(0)) => image.into_luma16().into(),
        (image, ImageFormat::Tiff, _) => tiff::divided(image, bytes),
        (DynamicImage::ImageRgb8(mut image), ImageFormat::Bmp, _) => {
            bmp::cut_as_pillow(&mut image, bytes);
            image.into()
        }
        (image, ..) => image,
    })
}

/// What the decoders do not look at themselves.
pub(super) fn check_complete(bytes: &[u8], format: ImageFormat) -> Result<()> {
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(broken(format, "the file stops before its end marker"));
    }
    if format == ImageFormat::WebP {
        for (width, height) in webp_lossy_sizes(bytes) {
            check_size(width, height)?;
        }
    }
    Ok(())
}

pub(super) fn format_of(bytes: &[u8]) -> Result<ImageFormat> {
    if let Some(format) = image::guess_format(bytes).ok().filter(ImageFormat::reading_enabled) {
        return Ok(format);
    }
    Err(match foreign(bytes) {
        Some(known) => ProcessingError::OtherFormat { found: known.found, advice: known.advice },
        None => {
            let shown: Vec<String> = bytes.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect();
            let begins = if shown.is_empty() { "nothing".to_owned() } else { shown.join(" ") };
            ProcessingError::NotAnImage { length_bytes: bytes.len(), begins }
        }
    })
}

pub(super) fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Tiff => "TIFF",
        _ => "other",
    }
}

pub(super) fn broken(format: ImageFormat, problem: impl Into<String>) -> ProcessingError {
    ProcessingError::BrokenImage { format: name(format), problem: problem.into() }
}

/// Reads the header and checks the size.
pub(super) fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder + '_> {
    if format == ImageFormat::Tiff {
        tiff::check(bytes)?;
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| decoder_error(format, &e))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    Ok(decoder)
}

pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    let (short, long) = (width.min(height), width.max(height));
    if short == 0 {
        Err(ProcessingError::EmptyImage { width, height })
    } else if pixels > MAX_PIXELS {
        Err(ProcessingError::TooManyPixels { width, height, pixels, limit: MAX_PIXELS })
    } else if u64::from(long) > u64::from(short) * u64::from(MAX_ASPECT_RATIO) {
        Err(ProcessingError::TooElongated { width, height, limit: MAX_ASPECT_RATIO })
    } else {
        Ok(())
    }
}

/// PIL's conversion to RGB.
fn to_rgb(image: DynamicImage, format: ImageFormat, grey_bits: Option<u8>) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let high = |value: u16| (value >> 8) as u8;
    let scaled = |value: u16, bits: u8| {
        let white = (1u32 << bits.clamp(1, 16)) - 1;
        ((u32::from(value).min(white) * 255 + white / 2) / white) as u8
    };
    let grey = |value: u16| grey_bits.map_or(value.min(255) as u8, |bits| scaled(value, bits));
    let grey_beside_alpha = |value: u16| grey_bits.map_or(high(value), |bits| scaled(value, bits));
    let bytes: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageLuma8(image) => image.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(image) => image.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|&v| [grey(v); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            image.as_raw().chunks_exact(2).flat_map(|p| [grey_beside_alpha(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.as_raw().chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        other => return Err(unsupported_color(format, other.color())),
    };
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| broken(format, "its rows do not have the size it states"))
}

fn unsupported_color(format: ImageFormat, color: ColorType) -> ProcessingError {
    ProcessingError::UnsupportedImage { format: name(format), kind: format!("{color:?}") }
}

pub(super) fn decoder_error(format: ImageFormat, error: &ImageError) -> ProcessingError {
    match error {
        ImageError::Unsupported(e) => ProcessingError::UnsupportedImage { format: name(format), kind: e.to_string() },
        _ => broken(format, error.to_string()),
    }
}

/// The decoders are other people's code: should one of them panic, its file is refused like any broken one.
pub(super) fn guarded<T>(format: ImageFormat, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    guard::catch(decode).unwrap_or_else(|reason| Err(broken(format, reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_PIL: Decoding = Decoding { orientation: Orientation::Stored, grey_bits: None };

    fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8]))
    }

    #[test]
    fn lossless_formats_give_back_the_same_bytes() {
        let image = picture(31, 17);
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
            let bytes = encoded(image.clone().into(), format);
            assert_eq!(decode_image(&bytes, AS_PIL).unwrap(), image, "{format:?}");
            assert_eq!(image_dimensions(&bytes, AS_PIL).unwrap(), (31, 17), "{format:?}");
        }
    }

    #[test]
    fn sixteen_bits_are_cut_in_colour_and_clipped_in_grey() {
        let colour = image::ImageBuffer::from_raw(1, 1, vec![0x12ff_u16, 0x00ff, 0xff00, 0x8000]).unwrap();
        let bytes = encoded(DynamicImage::ImageRgba16(colour), ImageFormat::Png);
        assert_eq!(decode_image(&bytes, AS_PIL).unwrap().as_raw(), &[0x12, 0x00, 0xff]);
        let grey = image::ImageBuffer::from_raw(3, 1, vec![7_u16, 255, 256]).unwrap();
        let bytes = encoded(DynamicImage::ImageLuma16(grey), ImageFormat::Png);
        assert_eq!(decode_image(&bytes, AS_PIL).unwrap().as_raw(), &[7, 7, 7, 255, 255, 255, 255, 255, 255]);
    }

    #[test]
    fn alpha_is_dropped_not_blended() {
        let image = image::RgbaImage::from_pixel(2, 2, image::Rgba([200, 100, 50, 0]));
        let bytes = encoded(image.into(), ImageFormat::Png);
        assert!(decode_image(&bytes, AS_PIL).unwrap().pixels().all(|p| p.0 == [200, 100, 50]));
    }

    #[test]
    fn files_cut_anywhere_are_refused() {
        let image = picture(40, 30);
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::WebP,
            ImageFormat::Gif,
        ] {
            let bytes = encoded(image.clone().into(), format);
            decode_image(&bytes, AS_PIL).unwrap();
            for percent in [0, 1, 5, 20, 40, 60, 80, 95] {
                let cut = &bytes[..bytes.len() * percent / 100];
                assert!(decode_image(cut, AS_PIL).is_err(), "{format:?} cut to {percent} %");
            }
        }
        assert!(matches!(
            decode_image(b"plain text, no image", AS_PIL),
            Err(ProcessingError::OtherFormat { found: "text", .. })
        ));
        let unknown = decode_image(b"\x07\x00\x01", AS_PIL).unwrap_err().to_string();
        assert_eq!(unknown, "the 3 bytes are not an image: no known format begins with 07 00 01");
        assert!(matches!(decode_image(b"", AS_PIL), Err(ProcessingError::NotAnImage { length_bytes: 0, .. })));
    }

    #[test]
    fn damage_anywhere_is_an_error_or_a_picture_of_the_same_size() {
        let image = picture(24, 18);
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::WebP,
            ImageFormat::Gif,
        ] {
            let whole = encoded(image.clone().into(), format);
            for at in 0..whole.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    if let Ok(decoded) = decode_image(&bytes, AS_PIL) {
                        assert_eq!(
                            decoded.dimensions(),
                            image_dimensions(&bytes, AS_PIL).unwrap(),
                            "{format:?} at {at}"
                        );
                    }
                }
            }
        }
    }

    /// A PNG of one row of data whose header claims another size.
    fn lying_png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encoded(picture(4, 1).into(), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = bytes[12..29].iter().fold(!0_u32, |mut crc, &byte| {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
            crc
        });
        bytes[29..33].copy_from_slice(&(!checksum).to_be_bytes());
        bytes
    }

    #[test]
    fn sizes_are_refused_from_the_header() {
        let huge = lying_png(30_000, 30_000);
        let pixels = 900_000_000;
        assert!(
            matches!(image_dimensions(&huge, AS_PIL), Err(ProcessingError::TooManyPixels { pixels: p, .. }) if p == pixels)
        );
        assert!(matches!(decode_image(&huge, AS_PIL), Err(ProcessingError::TooManyPixels { .. })));
        assert!(matches!(decode_image(&lying_png(1, 20_000), AS_PIL), Err(ProcessingError::TooElongated { .. })));
        assert!(matches!(image_dimensions(&lying_png(101, 1), AS_PIL), Err(ProcessingError::TooElongated { .. })));
        assert_eq!(image_dimensions(&lying_png(100, 1), AS_PIL).unwrap(), (100, 1));
        assert_eq!(image_dimensions(&lying_png(8_000, 8_000), AS_PIL).unwrap(), (8_000, 8_000));
        assert!(matches!(
            decode_image(&lying_png(400, 400), AS_PIL),
            Err(ProcessingError::BrokenImage { format: "PNG", .. })
        ));
    }
}
