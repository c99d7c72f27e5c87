//! TIFF files of forms that the decoder does not read, or reads otherwise than Pillow, told by their first directory.
//!
//! Numbers of tags and their values: TIFF 6.0, its technical notes and supplements, and libtiff's `tiff.h`.

use image::{DynamicImage, RgbaImage};

use super::Result;
use super::error::ProcessingError;
use super::exif::tag;
use super::foreign::{PILLOW, RAW};

const BITS_TAG: u16 = 258;
const COMPRESSION_TAG: u16 = 259;
const PHOTOMETRIC_TAG: u16 = 262;
const CHANNELS_TAG: u16 = 277;
const EXTRA_TAG: u16 = 338;
const NUMBERS_TAG: u16 = 339;
const DNG_TAG: u16 = 50706;

const TO_8_BITS: &str = "scale its values to 0 to 255 and write 8-bit PNG, such as with Pillow: `Image.fromarray(a.astype(\"uint8\")).save(\"out.png\")`";
const INVERT: &str = "turn its values round and write PNG, such as with Pillow: `Image.fromarray(65535 - numpy.array(Image.open(f))).save(\"out.png\")`";

/// Refuses a file that would not become the colours that Pillow gives, by what it is.
///
/// # Errors
/// [`ProcessingError::OtherFormat`].
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let number = |name| tag(bytes, name).and_then(|found| found.number());
    let photometric = number(PHOTOMETRIC_TAG);
    let (bits, channels) = (number(BITS_TAG).unwrap_or(1), number(CHANNELS_TAG).unwrap_or(1));
    let is_grey = matches!(photometric, Some(0 | 1));
    let refuse = |found, advice| Err(ProcessingError::OtherFormat { found, advice });
    if bytes.get(8..10) == Some(b"CR") || tag(bytes, DNG_TAG).is_some() {
        return refuse("a camera's raw file", RAW);
    }
    match number(COMPRESSION_TAG) {
        Some(2) => return refuse("a TIFF packed as fax (CCITT RLE)", PILLOW),
        Some(3) => return refuse("a TIFF packed as fax (CCITT group 3)", PILLOW),
        Some(6) => return refuse("a TIFF packed as JPEG of the old kind", PILLOW),
        Some(34_712 | 33_003..=33_005) => return refuse("a TIFF packed as JPEG 2000", PILLOW),
        Some(34_676 | 34_677) => return refuse("a TIFF of light in logarithms (LogLuv)", TO_8_BITS),
        Some(34_925) => return refuse("a TIFF packed with LZMA", PILLOW),
        Some(50_000) => return refuse("a TIFF packed with zstd", PILLOW),
        Some(50_001) => return refuse("a TIFF packed as WebP", PILLOW),
        Some(50_002) => return refuse("a TIFF packed as JPEG XL", PILLOW),
        _ => {}
    }
    match photometric {
        Some(3) => return refuse("a TIFF with a palette", PILLOW),
        Some(6) => return refuse("a TIFF in YCbCr", PILLOW),
        Some(8..=10) => return refuse("a TIFF in CIELab", PILLOW),
        Some(32_803 | 34_892) => return refuse("a camera's raw file", RAW),
        Some(32_844 | 32_845) => return refuse("a TIFF of light in logarithms (LogLuv)", TO_8_BITS),
        _ => {}
    }
    match number(NUMBERS_TAG) {
        None | Some(1 | 4) => {}
        Some(3) => return refuse("a TIFF of floating-point numbers", TO_8_BITS),
        Some(2) => return refuse("a TIFF of numbers with signs", TO_8_BITS),
        Some(_) => return refuse("a TIFF of complex numbers", TO_8_BITS),
    }
    match (bits, photometric) {
        (1, _) if is_grey => {}
        (8 | 16, _) => {}
        (2 | 4, _) => return refuse("a TIFF of 2 or 4 bits a channel", PILLOW),
        _ => return refuse("a TIFF of other than 1, 8 or 16 bits a channel", TO_8_BITS),
    }
    if is_grey && channels > 1 {
        return refuse("a grey TIFF with transparency or further channels", PILLOW);
    }
    if photometric == Some(0) && bits == 16 {
        return refuse("a TIFF of 16-bit grey in which 0 is white", INVERT);
    }
    if bits == 16 && is_multiplied(bytes) {
        return refuse("a TIFF of 16-bit colours that are multiplied by their transparency", PILLOW);
    }
    Ok(())
}

/// Whether colours are stored multiplied by their transparency.
fn is_multiplied(bytes: &[u8]) -> bool {
    tag(bytes, EXTRA_TAG).is_some_and(|found| found.number() == Some(1))
}

/// The colours themselves where they are stored multiplied by their transparency, as Pillow divides them: black where nothing is
/// seen.
pub(super) fn divided(image: DynamicImage, bytes: &[u8]) -> DynamicImage {
    let DynamicImage::ImageRgba8(mut image) = image else { return image };
    if is_multiplied(bytes) {
        divide(&mut image);
    }
    image.into()
}

fn divide(image: &mut RgbaImage) {
    for pixel in image.pixels_mut() {
        let alpha = u16::from(pixel.0[3]);
        for colour in &mut pixel.0[..3] {
            *colour = (u16::from(*colour) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoding, decode_image, image_dimensions};

    const WIDTH: u16 = 3;

    /// A little-endian TIFF of one row with these tags of 16-bit numbers.
    fn file(tags: &[(u16, &[u16])], data: &[u8]) -> Vec<u8> {
        let one = [1];
        let place = [0, 0];
        let mut all: Vec<(u16, &[u16])> = vec![(256, &[WIDTH]), (257, &one), (273, &place), (278, &one)];
        let length = [data.len() as u16];
        all.push((279, &length));
        let defaults: [(u16, &[u16]); 3] = [(259, &one), (262, &one), (277, &one)];
        all.extend(defaults.iter().filter(|(name, _)| tags.iter().all(|(given, _)| given != name)));
        all.extend(tags);
        all.sort_by_key(|(name, _)| *name);
        let front = 8 + 2 + 12 * all.len() + 4;
        let far: usize = all.iter().map(|(_, values)| values.len() * 2).filter(|bytes| *bytes > 4).sum();
        let (mut entries, mut behind) = (Vec::new(), Vec::new());
        for (name, values) in all {
            let mut stored: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            if name == 273 {
                stored = ((front + far) as u32).to_le_bytes().to_vec();
            }
            let (kind, count) = if name == 273 { (4u16, 1) } else { (3, values.len() as u32) };
            entries.extend([&name.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes()].concat());
            if stored.len() > 4 {
                entries.extend(((front + behind.len()) as u32).to_le_bytes());
                behind.extend(stored);
            } else {
                stored.resize(4, 0);
                entries.extend(stored);
            }
        }
        let count = (entries.len() / 12) as u16;
        [b"II*\0\x08\0\0\0", &count.to_le_bytes()[..], &entries, &[0; 4], &behind, data].concat()
    }

    /// Entries of a directory, each with its values.
    type Tags<'a> = &'a [(u16, &'a [u16])];

    #[test]
    fn forms_that_are_not_read_are_named_with_what_to_do() {
        let grey = [8];
        let rgb = [8; 3];
        let cases: [(Tags<'_>, &str); 17] = [
            (&[(258, &grey), (262, &[3]), (320, &[0; 768])], "with a palette"),
            (&[(258, &[8, 8]), (277, &[2]), (338, &[2])], "grey TIFF with transparency"),
            (&[(258, &[8; 4]), (277, &[4])], "further channels"),
            (&[(258, &[32]), (339, &[3])], "floating-point"),
            (&[(258, &[32; 3]), (262, &[2]), (277, &[3]), (339, &[3; 3])], "floating-point"),
            (&[(258, &[16]), (339, &[2])], "numbers with signs"),
            (&[(258, &[16]), (262, &[0])], "in which 0 is white"),
            (&[(258, &rgb), (262, &[6]), (277, &[3])], "in YCbCr"),
            (&[(258, &rgb), (262, &[8]), (277, &[3])], "in CIELab"),
            (&[(258, &[1]), (259, &[2])], "fax (CCITT RLE)"),
            (&[(258, &[1]), (259, &[3])], "fax (CCITT group 3)"),
            (&[(258, &rgb), (259, &[50_000]), (262, &[2]), (277, &[3])], "packed with zstd"),
            (&[(258, &grey), (259, &[34_925])], "packed with LZMA"),
            (&[(258, &[4])], "2 or 4 bits"),
            (&[(258, &[12])], "other than 1, 8 or 16 bits"),
            (&[(258, &grey), (262, &[32_803])], "camera's raw file"),
            (&[(258, &[16; 4]), (262, &[2]), (277, &[4]), (338, &[1])], "multiplied by their transparency"),
        ];
        for (tags, name) in cases {
            let bytes = file(tags, &[0; 64]);
            for refused in [
                decode_image(&bytes, Decoding::default()).map(drop),
                image_dimensions(&bytes, Decoding::default()).map(drop),
            ] {
                let told = refused.unwrap_err().to_string();
                assert!(told.contains(name), "{name}: {told}");
                assert!(told.contains("PNG") || told.contains(".png"), "{told}");
            }
        }
    }

    /// Values of Pillow 13: `Image.open(f).convert("RGB")`.
    #[test]
    fn forms_that_are_read_have_the_colours_that_pillow_gives() {
        let cases: [(Tags<'_>, &[u8], [u8; 9]); 5] = [
            (&[(258, &[8])], &[7, 8, 9], [7, 7, 7, 8, 8, 8, 9, 9, 9]),
            (&[(258, &[8]), (262, &[0])], &[7, 8, 255], [248, 248, 248, 247, 247, 247, 0, 0, 0]),
            (&[(258, &[16])], &[7, 0, 0, 1, 255, 0], [7, 7, 7, 255, 255, 255, 255, 255, 255]),
            // Divided by 0, by 6, and by 255.
            (
                &[(258, &[8; 4]), (262, &[2]), (277, &[4]), (338, &[1])],
                &[15, 50, 22, 0, 3, 5, 9, 6, 10, 20, 30, 255],
                [0, 0, 0, 127, 212, 255, 10, 20, 30],
            ),
            (
                &[(258, &[8; 4]), (262, &[2]), (277, &[4]), (338, &[2])],
                &[15, 50, 22, 0, 3, 5, 9, 6, 10, 20, 30, 255],
                [15, 50, 22, 3, 5, 9, 10, 20, 30],
            ),
        ];
        for (tags, data, expected) in cases {
            let bytes = file(tags, data);
            assert_eq!(decode_image(&bytes, Decoding::default()).unwrap().as_raw(), &expected, "{tags:?}");
        }
    }
}
