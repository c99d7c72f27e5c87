//! How a scan looks at the pictures of rows.

use janus_core::guard;
use janus_core::processing::{MAX_ASPECT_RATIO, MAX_PIXELS};
use serde::Serialize;

use crate::data::rejected::RowFault;
use crate::data::row::EncodedImage;

/// Width and height in pixels, from an encoded image's header alone.
pub type DimensionsFn = fn(&EncodedImage) -> Result<(u32, u32), String>;

/// How images are looked at.
#[derive(Debug, Clone, Copy)]
pub struct ImageChecks {
    /// Width and height in pixels, from the header alone.
    pub dimensions: DimensionsFn,
    /// Decodes everything and throws it away.
    pub decode: fn(&EncodedImage) -> Result<(), String>,
    /// The greatest value of a 16-bit grey picture of which everything above 255 becomes white; `None` of others.
    pub clipped_grey: fn(&EncodedImage) -> Option<u16>,
}

/// 16-bit grey pictures whose values above 255 become white.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ClippedGreys {
    /// Pictures.
    pub pictures: u64,
    /// The greatest value in any of them.
    pub greatest: u16,
}

impl ClippedGreys {
    pub(super) fn add(&mut self, other: Self) {
        self.pictures += other.pictures;
        self.greatest = self.greatest.max(other.greatest);
    }

    /// The bits that the values use.
    pub fn bits(&self) -> u32 {
        u16::BITS - self.greatest.leading_zeros()
    }
}

/// Whether a picture is one that is read.
pub(super) fn check_image(
    image: &EncodedImage,
    column: &str,
    checks: ImageChecks,
    decode: bool,
) -> Result<(), RowFault> {
    let undecodable = |reason| RowFault::Undecodable { column: column.into(), reason };
    let measured = guard::catch(|| (checks.dimensions)(image)).and_then(|found| found);
    let (width, height) = measured.map_err(undecodable)?;
    let (long, short) = (u64::from(width.max(height)), u64::from(width.min(height)));
    if short == 0 {
        return Err(undecodable(format!("it has {width} x {height} pixels")));
    }
    if long > u64::from(MAX_ASPECT_RATIO) * short {
        return Err(RowFault::TooElongated { column: column.into(), width, height });
    }
    if long * short > MAX_PIXELS {
        return Err(RowFault::TooManyPixels { column: column.into(), width, height });
    }
    if decode {
        guard::catch(|| (checks.decode)(image)).and_then(|found| found).map_err(undecodable)?;
    }
    Ok(())
}
