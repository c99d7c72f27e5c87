//! The first frame of a GIF on its screen, with the colours that Pillow gives it: what the frame does not cover has the
//! transparent colour, else the first one of the palette. Nothing is blended; a palette in which every colour is its own
//! number, and no palette at all, are grey.
//!
//! Source: the GIF89a specification (CompuServe, 1990), and of the screen Pillow 13's behaviour.

use image::{ImageFormat, RgbImage};
use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use super::Result;
use super::decode::{broken, check_size};
use super::error::ProcessingError;

/// The longest code of GIF's compression, in bits.
const MAX_CODE_BITS: u8 = 12;

/// A file up to the data of its first frame.
struct FirstFrame<'a> {
    /// The screen, grown where the frame reaches beyond it.
    size: (u32, u32),
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// RGB of each index; `None` where the indices are grey levels.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    interlaced: bool,
    code_bits: u8,
    /// Blocks of compressed indices.
    data: Reader<'a>,
}

/// Width and height of the picture, checked.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    first_frame(bytes).map(|frame| frame.size)
}

/// The picture.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let mut frame = first_frame(bytes)?;
    let indices = frame.indices()?;
    let mut image = RgbImage::from_pixel(frame.size.0, frame.size.1, frame.colour(frame.transparent.unwrap_or(0)));
    for (row, indices) in frame.rows().into_iter().zip(indices.chunks_exact(frame.width as usize)) {
        for (column, index) in (frame.left..).zip(indices) {
            image.put_pixel(column, frame.top + row, frame.colour(*index));
        }
    }
    Ok(image)
}

impl FirstFrame<'_> {
    fn colour(&self, index: u8) -> image::Rgb<u8> {
        let Some(palette) = self.palette else { return image::Rgb([index; 3]) };
        let at = 3 * usize::from(index);
        // Indices beyond the palette are black.
        image::Rgb(palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]]))
    }

    /// The frame's rows in the order in which they are stored.
    fn rows(&self) -> Vec<u32> {
        if !self.interlaced {
            return (0..self.height).collect();
        }
        let passes: [(u32, usize); 4] = [(0, 8), (4, 8), (2, 4), (1, 2)];
        passes.into_iter().flat_map(|(first, step)| (first..self.height).step_by(step)).collect()
    }

    /// Unpacks the frame's indices, row by row as stored.
    fn indices(&mut self) -> Result<Vec<u8>> {
        if self.code_bits > MAX_CODE_BITS {
            return Err(broken(ImageFormat::Gif, format!("codes of {} bits", self.code_bits)));
        }
        let mut packed = Vec::new();
        while let Some(block) = self.data.block().filter(|block| !block.is_empty()) {
            packed.extend_from_slice(block);
        }
        let mut decoder = Decoder::new(BitOrder::Lsb, self.code_bits);
        let mut indices = vec![0; self.width as usize * self.height as usize];
        let (mut read, mut done) = (0, 0);
        while done < indices.len() {
            let step = decoder.decode_bytes(&packed[read..], &mut indices[done..]);
            read += step.consumed_in;
            done += step.consumed_out;
            match step.status {
                Err(error) => return Err(broken(ImageFormat::Gif, error.to_string())),
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::Done | LzwStatus::NoProgress) if done < indices.len() => {
                    return Err(broken(ImageFormat::Gif, "its data stop before the last pixel"));
                }
                Ok(_) => break,
            }
        }
        Ok(indices)
    }
}

/// Bytes from the front on.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A block with its length before it; an empty one ends a series.
    fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    /// A table of colours whose size stands in the low bits of `flags`; `None` in place of one that says nothing.
    fn palette(&mut self, flags: u8) -> Option<Option<&'a [u8]>> {
        let palette = self.take(3 << ((flags & 7) + 1))?;
        let is_own_number = |(number, colour): (usize, &[u8])| colour.iter().all(|&part| usize::from(part) == number);
        Some(Some(palette).filter(|palette| !palette.chunks_exact(3).enumerate().all(is_own_number)))
    }
}

fn first_frame(bytes: &[u8]) -> Result<FirstFrame<'_>> {
    let frame = read(bytes).ok_or_else(|| broken(ImageFormat::Gif, "the file stops before its first picture"))?;
    check_size(frame.size.0, frame.size.1)?;
    if frame.width == 0 || frame.height == 0 {
        return Err(ProcessingError::EmptyImage { width: frame.width, height: frame.height });
    }
    Ok(frame)
}

/// Reads up to the first frame's data; `None` where there is no frame.
fn read(bytes: &[u8]) -> Option<FirstFrame<'_>> {
    const HAS_PALETTE: u8 = 0x80;
    let number = |bytes: &[u8], at: usize| Some(u32::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let mut file = Reader(bytes);
    let screen = file.take(13)?;
    let flags = screen[10];
    let global = if flags & HAS_PALETTE != 0 { file.palette(flags)? } else { None };
    let mut transparent = None;
    loop {
        match file.byte()? {
            b';' => return None,
            b'!' => {
                let is_control = file.byte()? == 0xf9;
                let mut block = file.block()?;
                if let (true, &[flags, _, _, index, ..]) = (is_control, block)
                    && flags & 1 != 0
                {
                    transparent = Some(index);
                }
                while !block.is_empty() {
                    block = file.block()?;
                }
            }
            b',' => {
                let place = file.take(9)?;
                let (left, top) = (number(place, 0)?, number(place, 2)?);
                let (width, height) = (number(place, 4)?, number(place, 6)?);
                let flags = place[8];
                // As in Pillow, one that says nothing does not hide the screen's.
                let own = if flags & HAS_PALETTE != 0 { file.palette(flags)? } else { None };
                let palette = own.or(global);
                let size = (number(screen, 6)?.max(left + width), number(screen, 8)?.max(top + height));
                let (interlaced, code_bits) = (flags & 0x40 != 0, file.byte()?);
                return Some(FirstFrame {
                    size,
                    left,
                    top,
                    width,
                    height,
                    palette,
                    transparent,
                    interlaced,
                    code_bits,
                    data: file,
                });
            }
            _ => {}
        }
    }
}
