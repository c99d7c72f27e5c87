//! How a picture was held when it was taken, as its file notes it: read as Pillow's `Image.getexif` does.
//!
//! The tag stands in a TIFF directory (CIPA DC-008, Exif 2.32, section 4.6.4): JPEG has it in APP1 segments, PNG in `eXIf` or, as
//! ImageMagick wrote it, in hexadecimal text, WebP in a chunk, TIFF in the file itself. Where there is none, XMP is asked.
//! What is damaged counts as absent: no picture is refused for its notes.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;
use image::ImageFormat;
use image::metadata::Orientation;

/// The tag of the orientation, and that of XMP, which only TIFF files have beside it.
const ORIENTATION_TAG: u16 = 0x0112;
const XMP_TAG: u16 = 700;
/// What the pixels of a TIFF are.
const PHOTOMETRIC_TAG: u16 = 0x0106;

/// Text of PNG files is unpacked up to so many bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Directory entries that are looked at: real ones have some dozens.
const MAX_ENTRIES: u64 = 4096;

/// What has to be done to a stored picture so that it is upright.
pub(super) fn orientation(bytes: &[u8], format: ImageFormat) -> Orientation {
    let notes = match format {
        ImageFormat::Jpeg => of_jpeg(bytes),
        ImageFormat::Png => of_png(bytes),
        ImageFormat::WebP => of_webp(bytes),
        ImageFormat::Tiff => {
            Notes { exif: Some(bytes.into()), xmp: tag(bytes, XMP_TAG).map(|found| found.bytes.into()) }
        }
        _ => Notes::default(),
    };
    let number = notes.exif.as_deref().and_then(exif_number);
    let number = number.or_else(|| notes.xmp.as_deref().and_then(xmp_number));
    number.and_then(|number| Orientation::from_exif(number.try_into().ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// Whether a TIFF's pixels are numbers in a palette.
pub(super) fn has_palette(tiff: &[u8]) -> bool {
    // Section 3 of TIFF 6.0: 3 is a palette.
    tag(tiff, PHOTOMETRIC_TAG).is_some_and(|found| found.number() == Some(3))
}

/// What a file tells of itself.
#[derive(Default)]
struct Notes<'a> {
    exif: Option<Cow<'a, [u8]>>,
    xmp: Option<Cow<'a, [u8]>>,
}

fn of_jpeg(bytes: &[u8]) -> Notes<'_> {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut notes = Notes::default();
    let mut at = 2;
    // Segments up to the first scan.
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            // Fill bytes may stand before a marker.
            0xff => at += 1,
            0xda | 0xd9 => break,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { break };
                let length = usize::from(u16::from_be_bytes([high, low])).max(2);
                let body = bytes.get(at + 4..at + 2 + length).unwrap_or_default();
                if marker == 0xe1 && body.starts_with(EXIF) {
                    // Long notes go on in further segments.
                    match &mut notes.exif {
                        Some(exif) => exif.to_mut().extend_from_slice(&body[EXIF.len()..]),
                        None => notes.exif = Some(body.into()),
                    }
                } else if let (0xe1, Some(xmp)) = (marker, body.strip_prefix(XMP)) {
                    notes.xmp = Some(xmp.into());
                }
                at += 2 + length;
            }
        }
    }
    notes
}

fn of_png(bytes: &[u8]) -> Notes<'_> {
    let mut notes = Notes::default();
    let mut profile = None;
    let mut chunks = bytes.get(8..).unwrap_or_default();
    while let Some((header, rest)) = chunks.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = rest.get(..length) else { break };
        match &header[4..] {
            b"eXIf" => notes.exif = Some(body.into()),
            kind @ (b"tEXt" | b"zTXt" | b"iTXt") => match png_text(kind, body) {
                Some((b"Raw profile type exif", text)) => profile = from_hex(&text),
                Some((b"XML:com.adobe.xmp", text)) => notes.xmp = Some(text),
                _ => {}
            },
            _ => {}
        }
        // A checksum follows.
        chunks = rest.get(length.saturating_add(4)..).unwrap_or_default();
    }
    notes.exif = notes.exif.or(profile.map(Cow::Owned));
    notes
}

/// Keyword and text of a chunk.
fn png_text<'a>(kind: &[u8], body: &'a [u8]) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let (keyword, rest) = split_at_zero(body)?;
    let (text, packed) = match kind {
        b"tEXt" => (rest, false),
        // A byte names the packing, of which there is one kind.
        b"zTXt" => (rest.get(1..)?, true),
        _ => {
            let (flags, rest) = rest.split_at_checked(2)?;
            let (_language, rest) = split_at_zero(rest)?;
            let (_translated, text) = split_at_zero(rest)?;
            (text, flags.first() != Some(&0))
        }
    };
    if !packed {
        return Some((keyword, text.into()));
    }
    let mut unpacked = Vec::new();
    ZlibDecoder::new(text).take(MAX_TEXT_BYTES).read_to_end(&mut unpacked).ok()?;
    Some((keyword, unpacked.into()))
}

fn split_at_zero(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The bytes of a profile written as text: a blank line, its name, its length, then hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Option<Vec<u8>> = lines
        .flatten()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|&byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits?;
    digits.len().is_multiple_of(2).then(|| digits.as_chunks::<2>().0.iter().map(|[a, b]| a << 4 | b).collect())
}

fn of_webp(bytes: &[u8]) -> Notes<'_> {
    const XMP_FLAG: u8 = 0x04;
    const EXIF_FLAG: u8 = 0x08;
    let mut notes = Notes::default();
    let mut flags = 0;
    // After `RIFF`, its length, and `WEBP`.
    let mut chunks = bytes.get(12..).unwrap_or_default();
    while let Some((header, rest)) = chunks.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some(body) = rest.get(..length) else { break };
        match &header[..4] {
            b"VP8X" => flags = body.first().copied().unwrap_or(0),
            b"EXIF" if flags & EXIF_FLAG != 0 && notes.exif.is_none() => notes.exif = Some(body.into()),
            b"XMP " if flags & XMP_FLAG != 0 && notes.xmp.is_none() => notes.xmp = Some(body.into()),
            _ => {}
        }
        chunks = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
    }
    notes
}

/// The orientation's number in EXIF.
fn exif_number(exif: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"Exif\0\0";
    let once = exif.strip_prefix(MARK).unwrap_or(exif);
    tag(once.strip_prefix(MARK).unwrap_or(once), ORIENTATION_TAG)?.number()
}

/// The orientation's number in XMP: `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn xmp_number(xmp: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).find_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|byte| byte.is_ascii_digit()).map(|byte| u64::from(byte - b'0'))
    })
}

/// A value of a TIFF directory.
pub(super) struct Tag<'a> {
    kind: u16,
    bytes: &'a [u8],
    little: bool,
}

impl Tag<'_> {
    /// Its first number, where it is of a kind of integers that are not bare bytes.
    pub(super) fn number(&self) -> Option<u64> {
        // SBYTE, SHORT, SSHORT, LONG, SLONG, LONG8, SLONG8.
        let width = match self.kind {
            6 => 1,
            3 | 8 => 2,
            4 | 9 => 4,
            16 | 17 => 8,
            _ => return None,
        };
        integer(self.bytes, 0, width, self.little)
    }
}

/// An unsigned integer of `width` bytes at a place.
fn integer(bytes: &[u8], at: usize, width: usize, little: bool) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    Some(if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) })
}

/// A value of the first directory of a TIFF file, of either size of offsets.
pub(super) fn tag(file: &[u8], wanted: u16) -> Option<Tag<'_>> {
    let little = match file.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    // 43 is the mark of files with offsets of 8 bytes; some writers have the bytes of 42 in the wrong order.
    let large = match file.get(2..4)? {
        [42, 0] | [0, 42] => false,
        [43, 0] | [0, 43] => true,
        _ => return None,
    };
    let place = |at: usize, width: usize| integer(file, at, width, little);
    let (directory, count_width, offset_width) = if large { (place(8, 8)?, 8, 8) } else { (place(4, 4)?, 2, 4) };
    let directory = usize::try_from(directory).ok()?;
    let entries = place(directory, count_width)?.min(MAX_ENTRIES) as usize;
    let entry_bytes = 4 + 2 * offset_width;
    let first = directory.checked_add(count_width)?;
    let mut found = None;
    for entry in (0..entries).map(|number| first.saturating_add(number * entry_bytes)) {
        // The directory may be cut: what is before holds.
        let Some(name) = place(entry, 2) else { break };
        if name != u64::from(wanted) {
            continue;
        }
        let (Some(kind), Some(count)) = (place(entry + 2, 2), place(entry + 4, offset_width)) else { break };
        let width: u64 = match kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 | 17 | 18 => 8,
            _ => continue,
        };
        let Some(length) = count.checked_mul(width).and_then(|length| usize::try_from(length).ok()) else { continue };
        let own = entry + 4 + offset_width;
        let at = if length > offset_width {
            place(own, offset_width).and_then(|at| usize::try_from(at).ok())
        } else {
            Some(own)
        };
        let value = at.and_then(|at| file.get(at..at.checked_add(length)?)).filter(|value| !value.is_empty());
        if let Some(bytes) = value {
            found = Some(Tag { kind: kind as u16, bytes, little });
        }
    }
    found
}
