//! Pictures small enough to stand in a page or a file of samples.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};

use super::ReportError;

/// Pictures up to this side stay as they are.
const SMALL_SIDE: u32 = 160;
const JPEG_QUALITY: u8 = 88;

/// An encoded picture.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    /// `image/png` or `image/jpeg`.
    pub kind: &'static str,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

fn failed(error: image::ImageError) -> ReportError {
    ReportError::Picture { reason: error.to_string() }
}

/// A picture as PNG, every pixel as it is.
pub(crate) fn png(picture: &RgbImage) -> Result<Vec<u8>, ReportError> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(failed)?;
    Ok(bytes.into_inner())
}

/// A picture scaled down so that its longer side has at most `side` pixels.
pub(super) fn thumbnail(picture: &RgbImage, side: u32) -> Result<Encoded, ReportError> {
    let (width, height) = picture.dimensions();
    let longer = width.max(height).max(1);
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longer)).max(1) as u32;
    let small = if longer > side {
        image::imageops::thumbnail(picture, scaled(width), scaled(height))
    } else {
        picture.clone()
    };
    let (width, height) = small.dimensions();
    if width.max(height) <= SMALL_SIDE {
        return Ok(Encoded { kind: "image/png", width, height, bytes: png(&small)? });
    }
    let mut bytes = Vec::new();
    small.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)).map_err(failed)?;
    Ok(Encoded { kind: "image/jpeg", width, height, bytes })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbnail_keeps_the_proportions() {
        let large = thumbnail(&RgbImage::new(900, 300), 240).unwrap();
        assert_eq!((large.width, large.height, large.kind), (240, 80, "image/jpeg"));
        let thin = thumbnail(&RgbImage::new(3, 1200), 240).unwrap();
        assert_eq!((thin.width, thin.height), (1, 240));
        let small = thumbnail(&RgbImage::new(30, 20), 240).unwrap();
        assert_eq!((small.width, small.height, small.kind), (30, 20, "image/png"));
        assert_eq!(image::load_from_memory(&small.bytes).unwrap().to_rgb8().dimensions(), (30, 20));
    }
}
