//! Page headers looked at before the pages are: a header may claim that a few bytes unpack to two gigabytes, and the
//! `parquet` crate makes room for what it says before it unpacks anything.
//!
//! Only sizes and numbers are judged here; what else is wrong with a page is the crate's to find and report. A header that
//! cannot be followed, or that the crate would follow otherwise, is refused, for what lies behind it could not be judged.
//! Headers are structs of [`super::thrift`], see parquet-format's `parquet.thrift`, struct `PageHeader`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use parquet::basic::Compression;

use super::thrift::{Fields, Kind, Walk, malformed};

/// A column of a row group has at most so many values. Runs of nulls or of equal values take no room in a page, but one
/// row may be a list of all of them, and then they are in memory together.
const MAX_VALUES: u64 = 1 << 26;

/// A column of a row group has at most so many pages; writers aim at pages of a megabyte.
const MAX_PAGES: u64 = 1 << 20;

/// A header with its statistics, the least and the greatest value among them, is at most so long.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Lists are nowhere in a header; what later versions may add is short.
const MAX_LISTED: u64 = 1 << 10;

/// `DELTA_LENGTH_BYTE_ARRAY` and `DELTA_BYTE_ARRAY` of parquet-format's `Encoding`.
const PACKED_LENGTHS: [i64; 2] = [6, 7];

/// parquet-format's `Statistics`.
pub(super) const STATISTICS: Fields = &[
    (1, Kind::Binary),
    (2, Kind::Binary),
    (3, Kind::I64),
    (4, Kind::I64),
    (5, Kind::Binary),
    (6, Kind::Binary),
    (7, Kind::Bool),
    (8, Kind::Bool),
    (9, Kind::I64),
];

/// `DataPageHeader`: values, their encoding, those of levels, statistics.
const DATA: Fields = &[(1, Kind::I32), (2, Kind::I32), (3, Kind::I32), (4, Kind::I32), (5, Kind::Struct(STATISTICS))];

/// `DictionaryPageHeader`: values, their encoding, whether they are in order.
const DICTIONARY: Fields = &[(1, Kind::I32), (2, Kind::I32), (3, Kind::Bool)];

/// `DataPageHeaderV2`: values, nulls, rows, the values' encoding, bytes of levels, whether values are packed, statistics.
const DATA_V2: Fields = &[
    (1, Kind::I32),
    (2, Kind::I32),
    (3, Kind::I32),
    (4, Kind::I32),
    (5, Kind::I32),
    (6, Kind::I32),
    (7, Kind::Bool),
    (8, Kind::Struct(STATISTICS)),
];

/// `PageHeader`: type, size unpacked and packed, checksum, then one header by type.
const HEADER: Fields = &[
    (1, Kind::I32),
    (2, Kind::I32),
    (3, Kind::I32),
    (4, Kind::I32),
    (5, Kind::Struct(DATA)),
    (6, Kind::Struct(&[])),
    (7, Kind::Struct(DICTIONARY)),
    (8, Kind::Struct(DATA_V2)),
];

/// The field of `DataPageHeaderV2` that says how values are written.
const V2_ENCODING: i64 = 4;

/// Most bytes that one byte of an LZ4 frame unpacks to. Pages marked as LZ4 in Hadoop's framing may hold such a frame, and the
/// reader unpacks it to its end, whatever size the header gives.
const LZ4_RATIO: u64 = 255;
const LZ4_FRAME: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];

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
    /// More values or pages than are read of one column of a row group.
    TooMany {
        /// `values` or `pages`.
        what: &'static str,
        /// So many, or more.
        count: u64,
        /// What is allowed.
        limit: u64,
    },
}

/// Checks every page of the column chunk that lies at `start`, `length` bytes long, and hands it to `look`. None may unpack to
/// more than `limit_bytes`; the column says how they are packed.
pub(crate) fn check(
    file: &File,
    start: u64,
    length: u64,
    limit_bytes: u64,
    compression: Compression,
    look: &mut dyn FnMut(Page),
) -> Result<(), PageFault> {
    let mut walk = Walk::new(BufReader::with_capacity(256, file), MAX_LISTED);
    let end = start.saturating_add(length);
    let (mut at, mut values, mut pages) = (start, 0_u64, 0_u64);
    while at < end {
        let read = read(&mut walk, at).ok().filter(|page| page.end().is_some_and(|page_end| page_end <= end));
        let unreadable = || PageFault::Damaged(format!("the page header at byte {at} cannot be read"));
        let mut page = read.ok_or_else(unreadable)?;
        // The reader tries Hadoop's framing first, whatever is there.
        if compression == Compression::LZ4 && is_frame(&mut walk.input).map_err(|_| unreadable())? {
            page.unpacked = page.unpacked.max(page.packed.saturating_mul(LZ4_RATIO));
        }
        let bytes = page.bytes();
        if bytes > limit_bytes {
            let (packed_bytes, is_dictionary) = (page.packed, page.is_dictionary);
            return Err(PageFault::TooLarge { is_dictionary, packed_bytes, bytes, limit_bytes });
        }
        if let Some(reason) = contradiction(&page, compression) {
            return Err(PageFault::Damaged(format!("the page at byte {at} claims {reason}")));
        }
        if compression == Compression::SNAPPY {
            let (said, unpacked) = (snappy_bytes(&mut walk.input, &page).map_err(|_| unreadable())?, page.unpacked);
            if said.is_some_and(|said| Some(said) != unpacked.checked_sub(page.levels)) {
                let reason = format!("the page at byte {at} claims to unpack to {unpacked} bytes, and holds others");
                return Err(PageFault::Damaged(reason));
            }
        }
        // No value of a dictionary takes less than a byte, and room is made for as many as are claimed.
        if page.is_dictionary && page.values > bytes {
            let reason = format!("the dictionary at byte {at} claims {} values in {bytes} bytes", page.values);
            return Err(PageFault::Damaged(reason));
        }
        if page.is_dictionary && pages > 0 {
            let reason = format!("the dictionary at byte {at} is not the first page of its column");
            return Err(PageFault::Damaged(reason));
        }
        if !page.is_dictionary {
            values = values.saturating_add(page.values);
        }
        pages += 1;
        for (what, count, limit) in [("values", values, MAX_VALUES), ("pages", pages, MAX_PAGES)] {
            if count > limit {
                return Err(PageFault::TooMany { what, count, limit });
            }
        }
        at = page.end().unwrap_or(end);
        look(page);
    }
    Ok(())
}

/// What a page says of itself that cannot be, whatever lies in it.
fn contradiction(page: &Page, compression: Compression) -> Option<String> {
    let Page { unpacked, packed, values, rows, is_data, .. } = *page;
    let is_packed = compression != Compression::UNCOMPRESSED && page.is_packed;
    if !is_packed && unpacked != packed {
        return Some(format!("{unpacked} bytes, and {packed} lie there, which are not packed"));
    }
    if is_data && unpacked == 0 && values > 0 {
        return Some(format!("{values} values in no bytes"));
    }
    rows.filter(|rows| *rows > values).map(|rows| format!("{rows} rows of {values} values"))
}

/// How many bytes Snappy's own head says that the values of a page unpack to; nothing where none are packed.
fn snappy_bytes(reader: &mut BufReader<&File>, page: &Page) -> io::Result<Option<u64>> {
    if !page.is_packed || page.unpacked == page.levels {
        return Ok(None);
    }
    reader.seek_relative(i64::try_from(page.levels).map_err(|_| malformed())?)?;
    let mut bytes = 0;
    for shift in (0..35).step_by(7) {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        bytes |= u64::from(byte[0] & 0x7F) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(bytes));
        }
    }
    Err(malformed())
}

/// Whether a frame of LZ4 begins here.
fn is_frame(reader: &mut BufReader<&File>) -> io::Result<bool> {
    let mut start = Vec::new();
    reader.take(LZ4_FRAME.len() as u64).read_to_end(&mut start)?;
    Ok(start == LZ4_FRAME)
}

/// What a page header says.
#[derive(Debug, Default, Clone)]
pub(crate) struct Page {
    /// Its size once it is unpacked, in bytes, levels included.
    pub(crate) unpacked: u64,
    /// Its size in the file, in bytes.
    pub(crate) packed: u64,
    /// Values, nulls included.
    pub(crate) values: u64,
    /// Whether its values are those that other pages name by number.
    pub(crate) is_dictionary: bool,
    /// Whether it has values or levels; there are pages that hold indices.
    pub(crate) is_data: bool,
    /// Whether lengths of values stand apart from them, packed: [`super::lengths`] looks at those.
    pub(crate) has_packed_lengths: bool,
    /// Bytes of levels before the values, which are never packed, in version 2.
    pub(crate) levels: u64,
    /// Those of them that tell where lists begin.
    pub(crate) repetition_levels: u64,
    /// Rows that begin in it, where it says so, in version 2.
    pub(crate) rows: Option<u64>,
    /// Whether it is packed where its column is.
    pub(crate) is_packed: bool,
    /// Where the header ends.
    pub(crate) data: u64,
}

impl Page {
    /// Bytes that it takes once it is read. Where nothing is packed, the size in the file is what counts.
    pub(crate) fn bytes(&self) -> u64 {
        self.unpacked.max(self.packed)
    }

    fn end(&self) -> Option<u64> {
        self.data.checked_add(self.packed)
    }
}

/// The page header that lies at `at` in a file.
pub(crate) fn header(file: &File, at: u64) -> io::Result<Page> {
    read(&mut Walk::new(BufReader::with_capacity(256, file), MAX_LISTED), at)
}

/// The page header that lies at `at`.
fn read(walk: &mut Walk<BufReader<&File>>, at: u64) -> io::Result<Page> {
    walk.input.seek(SeekFrom::Start(at))?;
    walk.elements = MAX_LISTED;
    let (mut of, mut unpacked, mut packed, mut page) = (None, None, None, Page { is_packed: true, ..Page::default() });
    let mut header = None;
    walk.fields(HEADER, &mut |walk, field| {
        match field {
            1 => of = Some(walk.i32()?),
            2 => unpacked = Some(walk.i32()?),
            3 => packed = Some(walk.i32()?),
            // One header, of the page's own type.
            5..=8 if header.replace(field).is_some() => return Err(malformed()),
            5 => values(walk, DATA, 2, &mut page)?,
            7 => values(walk, DICTIONARY, 2, &mut page)?,
            8 => values(walk, DATA_V2, V2_ENCODING, &mut page)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    page.is_dictionary = header == Some(7);
    page.is_data = matches!(header, Some(5 | 8));
    let fits = match of {
        Some(0) => header == Some(5),
        Some(1) => matches!(header, None | Some(6)),
        Some(2) => header == Some(7),
        Some(3) => header == Some(8),
        _ => false,
    };
    let size = |claim: Option<i64>| claim.and_then(|size| u64::try_from(size).ok()).ok_or_else(malformed);
    (page.unpacked, page.packed, page.data) = (size(unpacked)?, size(packed)?, walk.input.stream_position()?);
    if !fits || page.data - at > MAX_HEADER_BYTES {
        return Err(malformed());
    }
    Ok(page)
}

/// A number that is not negative.
fn count(walk: &mut Walk<BufReader<&File>>) -> io::Result<u64> {
    u64::try_from(walk.i32()?).map_err(|_| malformed())
}

/// The header of a page with values: field 1 is their number, `encoding` the field that says how they are written.
fn values(walk: &mut Walk<BufReader<&File>>, known: Fields, encoding: i64, page: &mut Page) -> io::Result<()> {
    walk.fields(known, &mut |walk, field| {
        match field {
            1 => page.values = count(walk)?,
            // The second version alone has these.
            3 if encoding == V2_ENCODING => page.rows = Some(count(walk)?),
            5 if encoding == V2_ENCODING => page.levels += count(walk)?,
            6 if encoding == V2_ENCODING => {
                page.repetition_levels = count(walk)?;
                page.levels += page.repetition_levels;
            }
            7 if encoding == V2_ENCODING => page.is_packed = walk.truth,
            _ if field == encoding => page.has_packed_lengths = PACKED_LENGTHS.contains(&walk.i32()?),
            _ => return Ok(false),
        }
        Ok(true)
    })
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
    /// Packed in a way that says nothing of itself.
    const PACKED: Compression = Compression::LZ4_RAW;

    fn look_at(bytes: &[u8]) -> Result<Vec<(u64, bool)>, PageFault> {
        look_at_packed(bytes, PACKED)
    }

    fn look_at_packed(bytes: &[u8], compression: Compression) -> Result<Vec<(u64, bool)>, PageFault> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        let mut seen = Vec::new();
        check(&file, 6, bytes.len() as u64, LIMIT, compression, &mut |page| {
            seen.push((page.bytes(), page.has_packed_lengths))
        })?;
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
        let claimed = zigzag_varint(i32::MAX.into());
        let packed = zigzag_varint(900);
        let head = [&[0x15, 4, 0x15][..], &claimed, &[0x15], &packed, &[0x4C, 0x15, 10, 0x15, 0, 0, 0]].concat();
        assert_eq!(check_bytes(&[&head[..], &[0; 900]].concat()), Err(expected(true)));
        assert!(check_bytes(&page((64 << 20) + 1, 2 << 20)).is_err());
    }

    #[test]
    fn values_without_end_are_refused() {
        let runs = |values| page_of(100, 40, values, 8, &[]);
        let most = [runs(1 << 25), runs((1 << 25) - 5), page(10, 10)].concat();
        assert_eq!(check_bytes(&most), Ok(()));
        let expected = PageFault::TooMany { what: "values", count: 67_108_869, limit: 67_108_864 };
        assert_eq!(check_bytes(&[most, page(10, 10)].concat()), Err(expected));
    }

    #[test]
    fn pages_with_packed_lengths_are_pointed_out() {
        for (encoding, expected) in [(0, false), (5, false), (6, true), (7, true), (8, false), (9, false)] {
            assert_eq!(look_at(&page_of(77, 5, 5, encoding, &[])), Ok(vec![(77, expected)]), "{encoding}");
        }
    }

    #[test]
    fn fields_that_later_versions_may_add_are_passed_over_and_hide_nothing() {
        // A list of two numbers, and a struct with a text.
        let list = [0x49, 0x25, 0x02, 0x04];
        let text = [0x1C, 0x18, 0x01, b'a', 0x00];
        let odd = page_of(100, 40, 5, 0, &[&list[..], &text].concat());
        assert_eq!(check_bytes(&[odd.clone(), page(10, 10)].concat()), Ok(()));
        let lying = [odd, page(i32::MAX.into(), 900)].concat();
        assert!(matches!(check_bytes(&lying), Err(PageFault::TooLarge { .. })));
    }

    /// What the reader would read otherwise than it is checked.
    #[test]
    fn a_header_that_can_be_read_in_two_ways_is_refused() {
        // Of the type given, sizes 10 and 10, then what follows, and ten bytes.
        let header = |of: u8, more: &[u8]| [&[0x15, of * 2, 0x15, 20, 0x15, 20][..], more, &[0; 11]].concat();
        let (v1, dictionary, v2) = (
            [0x2C, 0x15, 10, 0x15, 0, 0x15, 6, 0x15, 6, 0],
            [0x4C, 0x15, 10, 0x15, 0, 0x11, 0],
            [0x5C, 0x15, 10, 0x15, 0, 0x15, 10, 0x15, 0, 0x15, 0, 0x15, 0, 0x11, 0],
        );
        for (of, own) in [(0, &v1[..]), (1, &[0x3C, 0]), (2, &dictionary), (3, &v2)] {
            assert_eq!(check_bytes(&header(of, own)), Ok(()), "{of}");
            let other = header((of + 1) % 4, own);
            assert!(damage(&other).ends_with("cannot be read"), "{of} against its own type");
        }
        let wide = [0x2C, 0x16, 10, 0x15, 0, 0x15, 6, 0x15, 6, 0];
        let cut = [0x2C, 0x15, 0x80, 0x80, 0x80, 0x80, 0x20, 0x15, 0, 0x15, 6, 0x15, 6, 0];
        let twice = [0x2C, 0x15, 10, 0x15, 0, 0x15, 6, 0x15, 6, 0x05, 2, 20, 0];
        let second = [&v1[..], &[0x0C, 10], &v1[1..]].concat();
        let both = [&v1[..], &[0x3C], &v2[1..]].concat();
        let truths = [0x2C, 0x15, 10, 0x15, 0, 0x15, 6, 0x15, 6, 0x59, 0x22, 1, 1, 0];
        for (more, why) in [
            (&wide[..], "values as a wider number"),
            (&cut, "values that do not fit"),
            (&twice, "values twice"),
            (&second, "two headers"),
            (&both, "headers of both versions"),
            (&truths, "a list of truth values"),
            (&[], "no header"),
        ] {
            assert!(damage(&header(0, more)).ends_with("cannot be read"), "{why}");
        }
        // 2^32 + 10 bytes are 10 for the reader, and lie beyond the file here.
        let beyond = [&[0x15, 0, 0x15, 20, 0x15, 0x94, 0x80, 0x80, 0x80, 0x20][..], &v1, &[0; 11]].concat();
        assert!(damage(&beyond).ends_with("cannot be read"));
        assert!(damage(&page(10, 10)[..20]).ends_with("cannot be read"), "a page beyond its column");
    }

    #[test]
    fn room_is_made_for_no_more_values_of_a_dictionary_than_it_can_hold() {
        let dictionary = |values: i64| {
            let values = zigzag_varint(values);
            [&[0x15, 4, 0x15, 20, 0x15, 20, 0x4C, 0x15][..], &values, &[0x15, 0, 0, 0], &[0; 10]].concat()
        };
        assert_eq!(check_bytes(&dictionary(10)), Ok(()));
        assert!(damage(&dictionary(i32::MAX.into())).contains("claims 2147483647 values in 10 bytes"));
    }

    /// A page of this type and size, with a header of its own for its type, and these bytes.
    fn page_with(of: u8, unpacked: i64, own: &[u8], bytes: &[u8]) -> Vec<u8> {
        let (unpacked, packed) = (zigzag_varint(unpacked), zigzag_varint(bytes.len() as i64));
        [&[0x15, of * 2, 0x15][..], &unpacked, &[0x15], &packed, own, &[0], bytes].concat()
    }

    const V1: &[u8] = &[0x2C, 0x15, 10, 0x15, 0, 0x15, 6, 0x15, 6, 0];
    const DICTIONARY_PAGE: &[u8] = &[0x4C, 0x15, 10, 0x15, 0, 0];

    /// Five values in so many rows, levels of three bytes, packed or not.
    fn v2(rows: i64, is_packed: bool) -> Vec<u8> {
        let rows = zigzag_varint(rows);
        let rest = [0x15, 0, 0x15, 6, 0x15, 0, if is_packed { 0x11 } else { 0x12 }, 0];
        [&[0x5C, 0x15, 10, 0x15, 0, 0x15][..], &rows, &rest].concat()
    }

    #[test]
    fn what_a_page_says_of_itself_fits_together() {
        let refused = |bytes: &[u8], compression| match look_at_packed(bytes, compression) {
            Err(PageFault::Damaged(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let plain = Compression::UNCOMPRESSED;
        assert!(look_at_packed(&page_with(0, 10, V1, &[7; 10]), plain).is_ok());
        for unpacked in [0, 9, 11] {
            let said = format!("claims {unpacked} bytes, and 10 lie there");
            assert!(refused(&page_with(0, unpacked, V1, &[7; 10]), plain).contains(&said));
            assert!(refused(&page_with(3, unpacked, &v2(5, false), &[7; 10]), PACKED).contains(&said));
        }
        assert!(refused(&page_with(0, 0, V1, &[7; 10]), PACKED).contains("claims 5 values in no bytes"));
        assert!(refused(&page_with(0, 0, V1, &[]), plain).contains("claims 5 values in no bytes"));
        assert!(look_at_packed(&page_with(3, 10, &v2(5, true), &[7; 10]), PACKED).is_ok());
        for rows in [6, i32::MAX.into()] {
            let said = format!("claims {rows} rows of 5 values");
            assert!(refused(&page_with(3, 10, &v2(rows, true), &[7; 10]), PACKED).contains(&said));
        }
        let dictionary = page_with(2, 10, DICTIONARY_PAGE, &[7; 10]);
        assert!(look_at_packed(&dictionary, plain).is_ok());
        for before in [&dictionary, &page_with(0, 10, V1, &[7; 10])] {
            assert!(refused(&[&before[..], &dictionary].concat(), plain).contains("is not the first page"));
        }
    }

    #[test]
    fn snappy_says_itself_how_much_it_unpacks_to() {
        let sizes = |own: &[u8], of, unpacked, bytes: &[u8]| {
            look_at_packed(&page_with(of, unpacked, own, bytes), Compression::SNAPPY)
        };
        let long = [0xC8, 0x01, 9, 9, 9, 9];
        assert!(sizes(V1, 0, 200, &long).is_ok());
        for unpacked in [199, 201, 400] {
            assert!(
                matches!(sizes(V1, 0, unpacked, &long), Err(PageFault::Damaged(reason)) if reason.contains("holds others"))
            );
        }
        // Behind the levels.
        let levels = [&[1, 1, 1][..], &long].concat();
        assert!(sizes(&v2(5, true), 3, 203, &levels).is_ok());
        assert!(sizes(&v2(5, true), 3, 200, &levels).is_err());
        assert!(sizes(&v2(5, true), 3, 3, &[1, 1, 1]).is_ok(), "all of them null");
        assert!(sizes(&v2(5, false), 3, 9, &levels).is_ok(), "not packed");
        assert!(sizes(V1, 0, 200, &[0xFF; 6]).is_err(), "a number without end");
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
