//! Bytes to RGB, with the values that PIL's `Image.open(...).convert("RGB")` gives, and with limits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::Result;
use super::error::ProcessingError;
use super::headers::{jpeg_is_complete, webp_lossy_sizes};
use crate::guard;

/// The most pixels an image may have: 64 megapixels.
pub const MAX_PIXELS: u64 = 64_000_000;

/// The most that the longer side may be of the shorter one.
pub const MAX_ASPECT_RATIO: u32 = 100;

/// What a decoder may allocate: a picture of the most pixels at 16 bits in four channels, and working space.
pub(super) const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8 + (64 << 20);

/// Width and height of an image, from its header alone.
///
/// # Errors
/// As [`decode_image`], but for damage behind the header.
pub fn image_dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let format = format_of(bytes)?;
    guarded(format, || {
        let mut decoder = open(bytes, format)?;
        let (width, height) = decoder.dimensions();
        Ok(match orientation(&mut decoder, format)? {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (height, width),
            _ => (width, height),
        })
    })
}

/// Decodes PNG, JPEG, WebP, BMP, GIF (the first frame) or TIFF, told apart by their content.
///
/// The size is read from the header and checked before anything is unpacked. Colours become RGB as in PIL: grey is
/// repeated, palettes are looked up, alpha is dropped without blending, the low byte of 16-bit colours is dropped,
/// and **16-bit grey is clipped at 255**, not scaled. The orientation that a camera notes in EXIF is not applied, as
/// neither PIL nor Janus' own loader does, except in TIFF, where PIL does.
///
/// # Errors
/// Bytes that are no image, a kind that is not supported, damaged or cut files, images without pixels, of more than
/// [`MAX_PIXELS`], or longer than [`MAX_ASPECT_RATIO`] to 1.
pub fn decode_image(bytes: &[u8]) -> Result<RgbImage> {
    let format = format_of(bytes)?;
    guarded(format, || {
        let mut decoder = open(bytes, format)?;
        check_complete(bytes, format)?;
        let orientation = orientation(&mut decoder, format)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(|e| decoder_error(format, &e))?;
        image.apply_orientation(orientation);
        to_rgb(image, format)
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
    let unknown = || ProcessingError::NotAnImage { length_bytes: bytes.len() };
    let format = image::guess_format(bytes).map_err(|_| unknown())?;
    if format.reading_enabled() { Ok(format) } else { Err(unknown()) }
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
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| decoder_error(format, &e))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    Ok(decoder)
}

fn check_size(width: u32, height: u32) -> Result<()> {
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

/// What PIL applies on opening: the orientation of TIFF files, and of no other format.
pub(super) fn orientation(decoder: &mut impl ImageDecoder, format: ImageFormat) -> Result<Orientation> {
    match format {
        ImageFormat::Tiff => decoder.orientation().map_err(|e| decoder_error(format, &e)),
        _ => Ok(Orientation::NoTransforms),
    }
}

/// PIL's conversion to RGB.
fn to_rgb(image: DynamicImage, format: ImageFormat) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let high = |value: u16| (value >> 8) as u8;
    let bytes: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageLuma8(image) => image.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(image) => image.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|&v| [v.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.as_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect(),
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
            assert_eq!(decode_image(&bytes).unwrap(), image, "{format:?}");
            assert_eq!(image_dimensions(&bytes).unwrap(), (31, 17), "{format:?}");
        }
    }

    #[test]
    fn sixteen_bits_are_cut_in_colour_and_clipped_in_grey() {
        let colour = image::ImageBuffer::from_raw(1, 1, vec![0x12ff_u16, 0x00ff, 0xff00, 0x8000]).unwrap();
        let bytes = encoded(DynamicImage::ImageRgba16(colour), ImageFormat::Png);
        assert_eq!(decode_image(&bytes).unwrap().as_raw(), &[0x12, 0x00, 0xff]);
        let grey = image::ImageBuffer::from_raw(3, 1, vec![7_u16, 255, 256]).unwrap();
        let bytes = encoded(DynamicImage::ImageLuma16(grey), ImageFormat::Png);
        assert_eq!(decode_image(&bytes).unwrap().as_raw(), &[7, 7, 7, 255, 255, 255, 255, 255, 255]);
    }

    #[test]
    fn alpha_is_dropped_not_blended() {
        let image = image::RgbaImage::from_pixel(2, 2, image::Rgba([200, 100, 50, 0]));
        let bytes = encoded(image.into(), ImageFormat::Png);
        assert!(decode_image(&bytes).unwrap().pixels().all(|p| p.0 == [200, 100, 50]));
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
            decode_image(&bytes).unwrap();
            for percent in [0, 1, 5, 20, 40, 60, 80, 95] {
                let cut = &bytes[..bytes.len() * percent / 100];
                assert!(decode_image(cut).is_err(), "{format:?} cut to {percent} %");
            }
        }
        assert!(matches!(decode_image(b"plain text, no image"), Err(ProcessingError::NotAnImage { length_bytes: 20 })));
        assert!(matches!(decode_image(b""), Err(ProcessingError::NotAnImage { length_bytes: 0 })));
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
                    if let Ok(decoded) = decode_image(&bytes) {
                        assert_eq!(decoded.dimensions(), image_dimensions(&bytes).unwrap(), "{format:?} at {at}");
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
            matches!(image_dimensions(&huge), Err(ProcessingError::TooManyPixels { pixels: p, .. }) if p == pixels)
        );
        assert!(matches!(decode_image(&huge), Err(ProcessingError::TooManyPixels { .. })));
        assert!(matches!(decode_image(&lying_png(1, 20_000)), Err(ProcessingError::TooElongated { .. })));
        assert!(matches!(image_dimensions(&lying_png(101, 1)), Err(ProcessingError::TooElongated { .. })));
        assert_eq!(image_dimensions(&lying_png(100, 1)).unwrap(), (100, 1));
        assert_eq!(image_dimensions(&lying_png(8_000, 8_000)).unwrap(), (8_000, 8_000));
        assert!(matches!(decode_image(&lying_png(400, 400)), Err(ProcessingError::BrokenImage { format: "PNG", .. })));
    }
}
