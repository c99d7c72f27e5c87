//! Pages in which the lengths of texts or bytes stand apart, packed: `DELTA_LENGTH_BYTE_ARRAY`, and `DELTA_BYTE_ARRAY`, where
//! each value begins as the one before does and says for how many bytes.
//!
//! A few bytes of such lengths can stand for any number of values of any size, and the `parquet` crate makes room for as many as
//! are claimed. So they are added up beforehand; the page itself is known to be small enough to be unpacked ([`super::pages`]).
//! Encodings: parquet-format's `Encodings.md`, `DELTA_BINARY_PACKED`.

use std::sync::Arc;

use janus_core::guard;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::pages::PageFault;
use super::unpack::Unpacking;

/// Adds up the values of each page of a column chunk of so many rows, and gives them to `look` with the page's number: none may
/// hold more than `limit_bytes`, nor more values than its header says.
pub(super) fn check(
    file: &Arc<Unpacking>,
    column: &ColumnChunkMetaData,
    rows: u64,
    limit_bytes: u64,
    look: &mut dyn FnMut(usize, u64),
) -> Result<(), PageFault> {
    data_pages(file, column, rows, &mut |number, page| {
        let is_front_coded = page.encoding() == Encoding::DELTA_BYTE_ARRAY;
        if !is_front_coded && page.encoding() != Encoding::DELTA_LENGTH_BYTE_ARRAY {
            return Ok(true);
        }
        let cannot = || PageFault::Damaged("the lengths of a page's values cannot be read".into());
        let values = u64::from(page.num_values());
        let mut packed = Packed { bytes: values_of(page, column).ok_or_else(cannot)? };
        let mut bytes = packed.sum(values).ok_or_else(cannot)?;
        if is_front_coded {
            bytes = bytes.saturating_add(packed.sum(values).ok_or_else(cannot)?);
        }
        if bytes > limit_bytes {
            let packed_bytes = page.buffer().len() as u64;
            return Err(PageFault::TooLarge { is_dictionary: false, packed_bytes, bytes, limit_bytes });
        }
        look(number, bytes);
        Ok(true)
    })
}

/// Tells of each page of a column chunk with lists, by number, the first and the last row that lie in it, in part; until
/// `look` says that it is enough.
pub(super) fn levels(
    file: &Arc<Unpacking>,
    column: &ColumnChunkMetaData,
    rows: u64,
    look: &mut dyn FnMut(usize, u64, u64) -> bool,
) -> Result<(), PageFault> {
    let highest = column.column_descr().max_rep_level();
    let width = (16 - highest.unsigned_abs().leading_zeros()) as usize;
    let mut begun = 0_u64;
    data_pages(file, column, rows, &mut |number, page| {
        let cannot = || PageFault::Damaged("the levels of a page's values cannot be read".into());
        let (packed, encoding) = match page {
            Page::DataPageV2 { buf, rep_levels_byte_len, .. } => {
                (buf.get(..*rep_levels_byte_len as usize), Encoding::RLE)
            }
            #[allow(deprecated, reason = "old files have it")]
            Page::DataPage { buf, rep_level_encoding: Encoding::BIT_PACKED, .. } => {
                (Some(&buf[..]), Encoding::BIT_PACKED)
            }
            Page::DataPage { buf, .. } => {
                let sized = buf.split_first_chunk::<4>();
                (sized.and_then(|(length, rest)| rest.get(..u32::from_le_bytes(*length) as usize)), Encoding::RLE)
            }
            Page::DictionaryPage { .. } => (None, Encoding::RLE),
        };
        let values = u64::from(page.num_values());
        let (starts_anew, starts) =
            row_starts(packed.ok_or_else(cannot)?, encoding, width, values).ok_or_else(cannot)?;
        let first = if starts_anew { begun } else { begun.saturating_sub(1) };
        begun += starts;
        Ok(look(number, first, begun.saturating_sub(1).max(first)))
    })
}

/// Unpacks a column chunk's pages one after the other and gives those with values to `look`, until that says that it is enough.
fn data_pages(
    file: &Arc<Unpacking>,
    column: &ColumnChunkMetaData,
    rows: u64,
    look: &mut dyn FnMut(usize, &Page) -> Result<bool, PageFault>,
) -> Result<(), PageFault> {
    let damaged = PageFault::Damaged;
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let opened = guard::catch(|| SerializedPageReader::new(file.clone(), column, rows, None)).map_err(damaged)?;
    let mut pages = opened.map_err(|e| damaged(e.to_string()))?;
    let mut number = 0;
    loop {
        let page = guard::catch(|| pages.get_next_page()).map_err(damaged)?.map_err(|e| damaged(e.to_string()))?;
        match page {
            None => return Ok(()),
            Some(Page::DictionaryPage { .. }) => {}
            Some(page) => {
                if !look(number, &page)? {
                    return Ok(());
                }
                number += 1;
            }
        }
    }
}

/// Of so many repetition levels, whether the first is 0, and how many are: where rows begin. parquet-format's `Encodings.md`,
/// runs and packed groups of eight.
fn row_starts(bytes: &[u8], encoding: Encoding, width: usize, count: u64) -> Option<(bool, u64)> {
    let (mut starts, mut starts_anew, mut seen) = (0, None, 0);
    let mut run = |level: u32, times: u64| {
        starts_anew.get_or_insert(level == 0);
        starts += if level == 0 { times } else { 0 };
    };
    #[allow(deprecated, reason = "old files have it")]
    if encoding == Encoding::BIT_PACKED {
        let needed = usize::try_from(count).ok()?.checked_mul(width)?.div_ceil(8);
        let packed = bytes.get(..needed)?;
        (0..count as usize).for_each(|number| run(bits(packed, number * width, width), 1));
        return Some((starts_anew.unwrap_or(true), starts));
    }
    let mut packed = Packed { bytes };
    while seen < count {
        let head = packed.varint()?;
        let left = count - seen;
        if head & 1 == 0 {
            let level = packed.take(width.div_ceil(8) as u64)?;
            let times = (head >> 1).min(left);
            if times > 0 {
                run(bits(level, 0, width), times);
            }
            seen += times;
        } else {
            let groups = packed.take((head >> 1).checked_mul(width as u64)?)?;
            let times = (head >> 1).saturating_mul(8).min(left);
            (0..times as usize).for_each(|number| run(bits(groups, number * width, width), 1));
            seen += times;
        }
    }
    Some((starts_anew.unwrap_or(true), starts))
}

/// A data page behind its levels.
fn values_of<'a>(page: &'a Page, column: &ColumnChunkMetaData) -> Option<&'a [u8]> {
    match page {
        Page::DataPage { buf, num_values, def_level_encoding, rep_level_encoding, .. } => {
            let levels = [
                (column.column_descr().max_rep_level(), rep_level_encoding),
                (column.column_descr().max_def_level(), def_level_encoding),
            ];
            let mut rest: &[u8] = buf;
            for (highest, encoding) in levels.into_iter().filter(|(highest, _)| *highest > 0) {
                #[allow(deprecated, reason = "old files have it")]
                let length = if *encoding == Encoding::BIT_PACKED {
                    let bits = u64::from(16 - highest.unsigned_abs().leading_zeros());
                    usize::try_from((u64::from(*num_values) * bits).div_ceil(8)).ok()?
                } else {
                    let (length, behind) = rest.split_first_chunk::<4>()?;
                    rest = behind;
                    usize::try_from(u32::from_le_bytes(*length)).ok()?
                };
                rest = rest.get(length..)?;
            }
            Some(rest)
        }
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            let levels = def_levels_byte_len.checked_add(*rep_levels_byte_len)?;
            buf.get(usize::try_from(levels).ok()?..)
        }
        Page::DictionaryPage { .. } => None,
    }
}

/// Numbers in `DELTA_BINARY_PACKED`, and whatever follows them.
struct Packed<'a> {
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Passes over one run of lengths, at most `most` of them, and gives their sum; `None` for what cannot be lengths.
    fn sum(&mut self, most: u64) -> Option<u64> {
        let (block, parts, mut left) = (self.varint()?, self.varint()?, self.varint()?);
        let mut value = self.zigzag()? as i32;
        // As the format has it: parts of a multiple of 32 values.
        let part = block.checked_div(parts).filter(|part| part.is_multiple_of(32) && *part * parts == block)?;
        if left > most {
            return None;
        }
        if left == 0 {
            return Some(0);
        }
        let mut sum = u64::try_from(value).ok()?;
        left -= 1;
        while left > 0 {
            let least = self.zigzag()? as i32;
            for width in self.take(parts)? {
                if left == 0 {
                    break;
                }
                let packed = self.take(u64::from(*width).checked_mul(part / 8).filter(|_| *width <= 32)?)?;
                for number in 0..part.min(left) {
                    let delta = bits(packed, number as usize * usize::from(*width), (*width).into());
                    // Differences of 32-bit numbers wrap.
                    value = value.wrapping_add(least).wrapping_add(delta as i32);
                    sum = sum.saturating_add(u64::try_from(value).ok()?);
                }
                left -= part.min(left);
            }
        }
        Some(sum)
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(usize::try_from(count).ok()?)?;
        self.bytes = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let stored = self.varint()?;
        Some((stored >> 1) as i64 ^ -((stored & 1) as i64))
    }
}

/// `width` bits, at most 32, from bit `at` on; lower bits come first.
fn bits(bytes: &[u8], at: usize, width: usize) -> u32 {
    let mut value = 0_u64;
    for (number, byte) in bytes.iter().skip(at / 8).take(5).enumerate() {
        value |= u64::from(*byte) << (8 * number);
    }
    (value >> (at % 8)) as u32 & (u32::MAX.checked_shr(32 - width as u32).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of parquet-format's `Encodings.md`: 7, 5, 3, 1, 2, 3, 4, 5 in blocks of 128 with 4 parts.
    fn example() -> Vec<u8> {
        let mut bytes = vec![0x80, 0x01, 4, 8, 14];
        // Least difference -2; 7 differences of 2 bits: 0, 0, 0, 3, 3, 3, 3, padded to 32; the other widths are 0.
        bytes.extend([3, 2, 0, 0, 0]);
        bytes.extend([0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn packed_numbers_are_added_up_and_passed_over() {
        let bytes = [example(), b"rest".to_vec()].concat();
        let mut packed = Packed { bytes: &bytes };
        assert_eq!((packed.sum(8), packed.bytes), (Some(30), &b"rest"[..]));
        assert_eq!(Packed { bytes: &bytes }.sum(7), None, "more than the page has");
        assert_eq!(Packed { bytes: &[0x80, 0x01, 4, 0, 0] }.sum(9), Some(0));
        assert_eq!(Packed { bytes: &[0x80, 0x01, 4, 1, 10] }.sum(1), Some(5));
        for (wrong, why) in [
            (&[0x80, 0x01, 0, 1, 10][..], "no parts"),
            (&[0x80, 0x01, 5, 1, 10], "parts that do not divide a block"),
            (&[0x80, 0x01, 4, 1, 9], "a negative length"),
            (&[0x80, 0x01, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 10], "numbers without end"),
            (&[0x80, 0x01, 4, 2, 10, 0], "widths that are not there"),
            (&[0x80, 0x01, 4, 2, 10, 0, 33, 0, 0, 0], "33 bits"),
            (&[0x80, 0x01, 4, 2, 10, 0, 8, 0, 0, 0, 1], "a part that is cut off"),
        ] {
            assert_eq!(Packed { bytes: wrong }.sum(1 << 20), None, "{why}");
        }
    }

    #[test]
    fn rows_begin_where_a_level_is_0() {
        // Five times 0, then eight levels packed: 1 1 0 1 0 0 0 1.
        let bytes = [10, 0, 3, 0b1000_1011];
        let starts = |count| row_starts(&bytes, Encoding::RLE, 1, count);
        assert_eq!((starts(3), starts(8), starts(13)), (Some((true, 3)), Some((true, 6)), Some((true, 9))));
        assert_eq!(starts(14), None, "a level that is not there");
        assert_eq!(row_starts(&[4, 2], Encoding::RLE, 2, 2), Some((false, 0)));
        assert_eq!(row_starts(&[], Encoding::RLE, 1, 0), Some((true, 0)));
        #[allow(deprecated)]
        let packed = row_starts(&[0b1000_1011], Encoding::BIT_PACKED, 1, 8);
        assert_eq!(packed, Some((false, 4)));
    }
}
