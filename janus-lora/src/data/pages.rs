//! Page headers looked at before the pages are: a header may claim that a few bytes unpack to two gigabytes, and the
//! `parquet` crate makes room for what it says before it unpacks anything.
//!
//! Only sizes and numbers are judged here; what else is wrong with a page is the crate's to find and report. A header that
//! cannot be followed is refused, for what lies behind it could not be judged.
//! Headers are Thrift structs in the compact protocol, see parquet-format's `parquet.thrift`, struct `PageHeader`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// A column of a row group has at most so many values. Runs of nulls or of equal values take no room in a page, but one
/// row may be a list of all of them, and then they are in memory together.
const MAX_VALUES: u64 = 1 << 26;

/// `DELTA_LENGTH_BYTE_ARRAY` and `DELTA_BYTE_ARRAY` of parquet-format's `Encoding`.
const PACKED_LENGTHS: [i64; 2] = [6, 7];

/// Structs nest three deep in a page header.
const MAX_DEPTH: usize = 8;

/// Why a column's pages are not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PageFault {
    /// What is there cannot be pages.
    Damaged(String),
    /// A page, or what its values come to, is larger than allowed.
    TooLarge {
        /// Whether it holds the different values of a column, which its other pages number.
        is_dictionary: bool,
        /// Its size in the file.
        packed_bytes: u64,
        /// What it says that it unpacks to.
        bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
    /// More values than are read of one column of a row group.
    TooMany {
        /// So many, or more.
        values: u64,
        /// What is allowed.
        limit: u64,
    },
}

/// Checks every page of the column chunk that lies at `start`, `length` bytes long, and hands it to `look`. None may unpack to
/// more than `limit_bytes`.
pub(crate) fn check(
    file: &File,
    start: u64,
    length: u64,
    limit_bytes: u64,
    look: &mut dyn FnMut(&Page),
) -> Result<(), PageFault> {
    let mut headers = Headers { reader: BufReader::with_capacity(256, file) };
    let end = start.saturating_add(length);
    let (mut at, mut values) = (start, 0_u64);
    while at < end {
        let read = headers.read(at).ok().filter(|page| page.end <= end);
        let page = read.ok_or_else(|| PageFault::Damaged(format!("the page header at byte {at} cannot be read")))?;
        if page.unpacked > limit_bytes {
            let Page { packed: packed_bytes, unpacked: bytes, is_dictionary, .. } = page;
            return Err(PageFault::TooLarge { is_dictionary, packed_bytes, bytes, limit_bytes });
        }
        values = values.saturating_add(page.values);
        if values > MAX_VALUES {
            return Err(PageFault::TooMany { values, limit: MAX_VALUES });
        }
        look(&page);
        at = page.end.saturating_add(page.packed);
    }
    Ok(())
}

/// What a page header says.
#[derive(Default)]
pub(crate) struct Page {
    /// Its size once it is unpacked, in bytes.
    pub(crate) unpacked: u64,
    packed: u64,
    /// Values, nulls included; none of a dictionary.
    values: u64,
    /// Whether lengths of values stand apart from them, packed: [`super::lengths`] looks at those.
    pub(crate) has_packed_lengths: bool,
    is_dictionary: bool,
    /// Where the header ends.
    end: u64,
}

struct Headers<'a> {
    reader: BufReader<&'a File>,
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Headers<'_> {
    /// The page header that lies at `at`.
    fn read(&mut self, at: u64) -> io::Result<Page> {
        self.reader.seek(SeekFrom::Start(at))?;
        let (mut unpacked, mut packed, mut page) = (None, None, Page::default());
        self.fields(&mut |headers, field, kind| {
            const DICTIONARY: i64 = 2;
            match (field, kind) {
                (1, 5) => page.is_dictionary = headers.integer()? == DICTIONARY,
                (2, 5) => unpacked = Some(headers.integer()?),
                (3, 5) => packed = Some(headers.integer()?),
                // Data pages of either version: field 1 counts values, field 2 or 4 names their encoding.
                (5, 12) => headers.data_page(2, &mut page)?,
                (8, 12) => headers.data_page(4, &mut page)?,
                _ => headers.skip(kind, 0)?,
            }
            Ok(())
        })?;
        let size = |claim: Option<i64>| claim.and_then(|size| u64::try_from(size).ok()).ok_or_else(malformed);
        Ok(Page { unpacked: size(unpacked)?, packed: size(packed)?, end: self.reader.stream_position()?, ..page })
    }

    fn data_page(&mut self, encoding: i64, page: &mut Page) -> io::Result<()> {
        self.fields(&mut |headers, field, kind| {
            match (field, kind) {
                (1, 5) => page.values = u64::try_from(headers.integer()?).map_err(|_| malformed())?,
                (field, 5) if field == encoding => {
                    page.has_packed_lengths = PACKED_LENGTHS.contains(&headers.integer()?)
                }
                _ => headers.skip(kind, 1)?,
            }
            Ok(())
        })
    }

    /// Hands every field of a struct to `take`, by number and type; it must read or pass over the value.
    fn fields(&mut self, take: &mut dyn FnMut(&mut Self, i64, u8) -> io::Result<()>) -> io::Result<()> {
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            if head & 0x0F == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.integer()?,
                delta => field.wrapping_add(i64::from(delta)),
            };
            take(self, field, head & 0x0F)?;
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }

    /// Signed integers are stored zig-zag: 0, -1, 1, -2, ...
    fn integer(&mut self) -> io::Result<i64> {
        let stored = self.varint()?;
        Ok((stored >> 1) as i64 ^ -((stored & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        self.reader.seek_relative(i64::try_from(bytes).map_err(|_| malformed())?)
    }

    /// Passes over a value: numbers are the compact protocol's types 1 to 12.
    fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(malformed());
        }
        match kind {
            // A truth value is its type.
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.varint()?;
                self.pass(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.skip_elements(count, &[head & 0x0F], depth + 1)
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                self.skip_elements(count, &[kinds >> 4, kinds & 0x0F], depth + 1)
            }
            12 => self.fields(&mut |headers, _, kind| headers.skip(kind, depth + 1)),
            _ => Err(malformed()),
        }
    }

    /// Passes over the elements of a list, set or map, `count` times one of each kind.
    ///
    /// Elements of a fixed size are passed over at once: a count is no more than a claim. Each other one has bytes to read.
    fn skip_elements(&mut self, count: u64, kinds: &[u8], depth: usize) -> io::Result<()> {
        let size = kinds.iter().map(|kind| fixed_bytes(*kind)).sum::<Option<u64>>();
        if let Some(size) = size {
            return self.pass(count.checked_mul(size).ok_or_else(malformed)?);
        }
        (0..count).try_for_each(|_| {
            kinds.iter().try_for_each(|kind| match fixed_bytes(*kind) {
                Some(size) => self.pass(size),
                None => self.skip(*kind, depth),
            })
        })
    }
}

/// Size of an element of this kind where all have the same; a truth value takes a byte in a list.
fn fixed_bytes(kind: u8) -> Option<u64> {
    match kind {
        1..=3 => Some(1),
        7 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn zigzag_varint(value: i64) -> Vec<u8> {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    /// A data page header (type, sizes, a nested struct with statistics as the format has it), then `packed` bytes.
    fn page(unpacked: i64, packed: i64) -> Vec<u8> {
        page_of(unpacked, packed, 5, 0, &[])
    }

    /// The same with so many values in this encoding, and `more` fields behind field 5.
    fn page_of(unpacked: i64, packed: i64, values: i64, encoding: i64, more: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, 0x00, 0x15];
        bytes.extend(zigzag_varint(unpacked));
        bytes.push(0x15);
        bytes.extend(zigzag_varint(packed));
        bytes.extend([0x2C, 0x15]);
        bytes.extend(zigzag_varint(values));
        bytes.push(0x15);
        bytes.extend(zigzag_varint(encoding));
        bytes.extend([0x15, 0x06, 0x15, 0x06, 0x1C, 0x18, 0x03, b'a', b'b', b'c', 0x00, 0x00]);
        bytes.extend(more);
        bytes.push(0x00);
        bytes.extend(vec![0xEE; packed as usize]);
        bytes
    }

    const LIMIT: u64 = 64 << 20;

    fn look_at(bytes: &[u8]) -> Result<Vec<(u64, bool)>, PageFault> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        let mut seen = Vec::new();
        check(&file, 6, bytes.len() as u64, LIMIT, &mut |page| seen.push((page.unpacked, page.has_packed_lengths)))?;
        Ok(seen)
    }

    fn check_bytes(bytes: &[u8]) -> Result<(), PageFault> {
        look_at(bytes).map(drop)
    }

    fn damage(bytes: &[u8]) -> String {
        match check_bytes(bytes) {
            Err(PageFault::Damaged(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_that_claims_gigabytes_is_found_wherever_it_lies() {
        let honest = [page(1000, 700), page(64 << 20, 20), page(100, 100)].concat();
        assert_eq!(check_bytes(&honest), Ok(()));
        let lying = [honest, page(i32::MAX.into(), 900), page(5, 5)].concat();
        let expected = |is_dictionary| PageFault::TooLarge {
            is_dictionary,
            packed_bytes: 900,
            bytes: 2_147_483_647,
            limit_bytes: LIMIT,
        };
        assert_eq!(check_bytes(&lying), Err(expected(false)));
        let mut dictionary = page(i32::MAX.into(), 900);
        dictionary[1] = 4;
        assert_eq!(check_bytes(&dictionary), Err(expected(true)));
        assert!(check_bytes(&page((64 << 20) + 1, 2 << 20)).is_err());
    }

    #[test]
    fn values_without_end_are_refused() {
        let runs = |values| page_of(100, 40, values, 8, &[]);
        let most = [runs(1 << 25), runs((1 << 25) - 5), page(10, 10)].concat();
        assert_eq!(check_bytes(&most), Ok(()));
        let expected = PageFault::TooMany { values: 67_108_869, limit: 67_108_864 };
        assert_eq!(check_bytes(&[most, page(10, 10)].concat()), Err(expected));
    }

    #[test]
    fn pages_with_packed_lengths_are_pointed_out() {
        for (encoding, expected) in [(0, false), (5, false), (6, true), (7, true), (8, false), (9, false)] {
            assert_eq!(look_at(&page_of(77, 5, 5, encoding, &[])), Ok(vec![(77, expected)]), "{encoding}");
        }
    }

    #[test]
    fn fields_of_any_type_are_passed_over_and_hide_nothing() {
        // A list of two numbers, a map from one number to a truth value, a set of fifteen bytes with its length behind.
        let list = [0x49, 0x25, 0x02, 0x04];
        let map = [0x1B, 0x01, 0x51, 0x08, 0x01];
        let set = [&[0x1A, 0xF3, 0x0F][..], &[7; 15]].concat();
        let odd = page_of(100, 40, 5, 0, &[&list[..], &map, &set].concat());
        assert_eq!(check_bytes(&[odd.clone(), page(10, 10)].concat()), Ok(()));
        let lying = [odd, page(i32::MAX.into(), 900)].concat();
        assert!(matches!(check_bytes(&lying), Err(PageFault::TooLarge { .. })));
    }

    /// Found by fuzzing: passing over what is not there never ends by itself.
    #[test]
    fn a_list_that_claims_more_elements_than_there_are_bytes_is_refused_at_once() {
        let claim = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F];
        for head in [&[0x19, 0xF1][..], &[0x19, 0xF3], &[0x1A, 0xF7]] {
            let list = [head, &claim].concat();
            let error = damage(&page_of(100, 40, 5, 0, &list));
            assert!(error.ends_with("cannot be read"), "{head:?}: {error}");
        }
        for kinds in [0x11, 0x37, 0x73] {
            let map = [&[0x1B][..], &claim, &[kinds]].concat();
            assert!(damage(&page_of(100, 40, 5, 0, &map)).ends_with("cannot be read"), "{kinds:x}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_followed_is_refused() {
        for bytes in [&[0xFF; 40][..], &[0x15], &page(-4, 3), &[0x1C; 100]] {
            assert!(damage(bytes).ends_with("cannot be read"), "{bytes:?}");
        }
        assert_eq!(check_bytes(&[]), Ok(()));
    }
}
