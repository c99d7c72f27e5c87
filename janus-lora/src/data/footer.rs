//! A Parquet file's account of itself: walked before it is parsed, and parsed in one place, wherever the file is.
//!
//! The `parquet` crate follows the nesting of columns by recursion, makes room for as many children of a column as it claims,
//! and copies the names on the way to every column below. A stack that overflows cannot be caught, so that what is too deep
//! or too much is refused before. The account is a struct of [`super::thrift`], see parquet-format's `parquet.thrift`, struct
//! `FileMetaData`.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom};

use janus_core::guard;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::pages::STATISTICS;
use super::thrift::{Fields, Kind, Walk, malformed};

/// Length of the account, and `PAR1`.
pub(super) const FOOTER_BYTES: usize = 8;

/// Longest account that is read: of 100,000 row groups of some columns, with least and greatest values.
pub(super) const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;

/// Deepest column that is read. Pictures in the parts of conversations lie ten deep.
const MAX_DEPTH: usize = 64;

/// Most columns, and fields of such on the way.
const MAX_COLUMNS: u64 = 1 << 17;

/// Most columns of all row groups together, and most row groups: each takes up to a kilobyte in memory.
const MAX_CHUNKS: u64 = 1 << 19;
const MAX_ROW_GROUPS: u64 = 1 << 17;

/// Names on the way to all columns are no longer than this together.
const MAX_NAMES_BYTES: u64 = 64 << 20;

/// What a name takes beside its letters.
const NAME_BYTES: u64 = 32;

/// Most notes (`key_value_metadata`).
const MAX_NOTES: u64 = 1 << 14;

/// Elements of all lists together.
const MAX_LISTED: u64 = 1 << 24;

const EMPTY: Kind = Kind::Struct(&[]);
const UNIT: Kind = Kind::Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]);
const TIME: Kind = Kind::Struct(&[(1, Kind::Bool), (2, UNIT)]);

/// `LogicalType`, one of these.
const LOGICAL_TYPE: Fields = &[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Kind::Struct(&[(1, Kind::I32), (2, Kind::I32)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Kind::Struct(&[(1, Kind::Byte), (2, Kind::Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Kind::Struct(&[(1, Kind::Byte)])),
    (17, Kind::Struct(&[(1, Kind::Binary)])),
    (18, Kind::Struct(&[(1, Kind::Binary), (2, Kind::I32)])),
    (19, EMPTY),
];

/// `SchemaElement`: type, length, repetition, name, children, converted type, scale, precision, number, logical type.
const SCHEMA_ELEMENT: Fields = &[
    (1, Kind::I32),
    (2, Kind::I32),
    (3, Kind::I32),
    (4, Kind::Binary),
    (5, Kind::I32),
    (6, Kind::I32),
    (7, Kind::I32),
    (8, Kind::I32),
    (9, Kind::I32),
    (10, Kind::Struct(LOGICAL_TYPE)),
];

const KEY_VALUE: Kind = Kind::Struct(&[(1, Kind::Binary), (2, Kind::Binary)]);

const DOUBLES: Fields = &[
    (1, Kind::Double),
    (2, Kind::Double),
    (3, Kind::Double),
    (4, Kind::Double),
    (5, Kind::Double),
    (6, Kind::Double),
    (7, Kind::Double),
    (8, Kind::Double),
];

/// `ColumnMetaData`.
const COLUMN: Fields = &[
    (1, Kind::I32),
    (2, Kind::List(&Kind::I32)),
    (3, Kind::List(&Kind::Binary)),
    (4, Kind::I32),
    (5, Kind::I64),
    (6, Kind::I64),
    (7, Kind::I64),
    (8, Kind::List(&KEY_VALUE)),
    (9, Kind::I64),
    (10, Kind::I64),
    (11, Kind::I64),
    (12, Kind::Struct(STATISTICS)),
    (13, Kind::List(&Kind::Struct(&[(1, Kind::I32), (2, Kind::I32), (3, Kind::I32)]))),
    (14, Kind::I64),
    (15, Kind::I32),
    (16, Kind::Struct(&[(1, Kind::I64), (2, Kind::List(&Kind::I64)), (3, Kind::List(&Kind::I64))])),
    (17, Kind::Struct(&[(1, Kind::Struct(DOUBLES)), (2, Kind::List(&Kind::I32))])),
];

/// `ColumnChunk`.
const CHUNK: Fields = &[
    (1, Kind::Binary),
    (2, Kind::I64),
    (3, Kind::Struct(COLUMN)),
    (4, Kind::I64),
    (5, Kind::I32),
    (6, Kind::I64),
    (7, Kind::I32),
    (8, EMPTY),
    (9, Kind::Binary),
];

/// `RowGroup`: columns, bytes, rows, order, place, packed bytes, number.
const ROW_GROUP: Fields = &[
    (1, Kind::List(&Kind::Struct(CHUNK))),
    (2, Kind::I64),
    (3, Kind::I64),
    (4, Kind::List(&Kind::Struct(&[(1, Kind::I32), (2, Kind::Bool), (3, Kind::Bool)]))),
    (5, Kind::I64),
    (6, Kind::I64),
    (7, Kind::I16),
];

/// `FileMetaData`: version, schema, rows, row groups, notes, writer, orders of columns, encryption and its key.
const FILE: Fields = &[
    (1, Kind::I32),
    (2, Kind::List(&Kind::Struct(SCHEMA_ELEMENT))),
    (3, Kind::I64),
    (4, Kind::List(&Kind::Struct(ROW_GROUP))),
    (5, Kind::List(&KEY_VALUE)),
    (6, Kind::Binary),
    (7, Kind::List(&Kind::Struct(&[(1, EMPTY), (2, EMPTY)]))),
    (8, EMPTY),
    (9, Kind::Binary),
];

/// Why a description is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FooterFault {
    /// What is there describes no Parquet file.
    Damaged(String),
    /// It describes more than is read.
    TooMuch(String),
}

/// How long the account is that these last bytes of a file of `length` bytes tell of.
pub(super) fn described_bytes(end: [u8; FOOTER_BYTES], length: u64) -> Result<u64, FooterFault> {
    let damaged = |reason: &str| Err(FooterFault::Damaged(reason.into()));
    let [a, b, c, d, magic @ ..] = end;
    match &magic {
        b"PAR1" => {}
        b"PARE" => return damaged("what it says of itself is encrypted"),
        _ => return damaged("it does not end as a Parquet file does"),
    }
    let bytes = u32::from_le_bytes([a, b, c, d]).into();
    if bytes + FOOTER_BYTES as u64 > length {
        return damaged(&format!("it claims a description of {bytes} bytes and has {length}"));
    }
    if bytes > MAX_DESCRIPTION_BYTES {
        let most = MAX_DESCRIPTION_BYTES;
        return Err(FooterFault::TooMuch(format!("its description takes {bytes} bytes, at most {most} are read")));
    }
    Ok(bytes)
}

/// The account of a file on this machine.
pub(super) fn read(mut file: &File, length: u64) -> io::Result<Result<ParquetMetaData, FooterFault>> {
    let Some(end) = length.checked_sub(FOOTER_BYTES as u64) else {
        return Ok(Err(FooterFault::Damaged(format!("it has {length} bytes"))));
    };
    let mut last = [0; FOOTER_BYTES];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut last)?;
    let described = match described_bytes(last, length) {
        Ok(described) => described,
        Err(fault) => return Ok(Err(fault)),
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(end - described))?;
    file.take(described).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

/// The account that these bytes are.
pub(super) fn parse(bytes: &[u8]) -> Result<ParquetMetaData, FooterFault> {
    check(bytes)?;
    let read = guard::catch(|| ParquetMetaDataReader::decode_metadata(bytes));
    read.and_then(|read| read.map_err(|e| e.to_string())).map_err(FooterFault::Damaged)
}

fn check(bytes: &[u8]) -> Result<(), FooterFault> {
    let (mut too_much, mut is_named_otherwise) = (None, false);
    let mut columns = Columns::default();
    let mut walk = Walk::new(bytes, MAX_LISTED);
    let walked = walk.fields(FILE, &mut |walk, field| {
        let (kind, most, what) = match field {
            2 => (Kind::Struct(SCHEMA_ELEMENT), MAX_COLUMNS, "columns"),
            4 => (Kind::Struct(ROW_GROUP), MAX_ROW_GROUPS, "row groups"),
            5 => (KEY_VALUE, MAX_NOTES, "notes"),
            _ => return Ok(false),
        };
        let mut stop = |reason: String| {
            too_much = Some(reason);
            Err(io::ErrorKind::Other.into())
        };
        let count = walk.list(&kind)?;
        if count > most {
            return stop(format!("it describes {count} {what}, at most {most} are read"));
        }
        let leaves = columns.leaves.len() as u64;
        if field == 4 && count * leaves > MAX_CHUNKS {
            let chunks = count * leaves;
            return stop(format!("its row groups have {chunks} columns together, at most {MAX_CHUNKS} are read"));
        }
        for number in 0..count {
            match field {
                2 => {}
                4 => {
                    is_named_otherwise |= !row_group(walk, &columns.leaves)?;
                    continue;
                }
                _ => {
                    walk.walk(&kind)?;
                    continue;
                }
            }
            let (name, children) = schema_element(walk)?;
            if let Err(reason) = columns.add(name, children, count - number - 1) {
                return stop(reason);
            }
        }
        Ok(true)
    });
    match (walked, too_much) {
        (_, Some(reason)) => Err(FooterFault::TooMuch(reason)),
        (Err(_), None) => Err(FooterFault::Damaged("what it says of itself cannot be followed".into())),
        (Ok(()), None) if is_named_otherwise => {
            Err(FooterFault::Damaged("the columns of a row group have other names than those of the file".into()))
        }
        (Ok(()), None) => Ok(()),
    }
}

/// Walks over a row group; whether its columns bear the names on the way to them that the file gives them.
fn row_group(walk: &mut Walk<&[u8]>, leaves: &[u64]) -> io::Result<bool> {
    let mut are_same = true;
    walk.fields(ROW_GROUP, &mut |walk, field| {
        if field != 1 {
            return Ok(false);
        }
        for number in 0..walk.list(&Kind::Struct(CHUNK))? {
            let expected = usize::try_from(number).ok().and_then(|number| leaves.get(number));
            walk.fields(CHUNK, &mut |walk, field| {
                if field != 3 {
                    return Ok(false);
                }
                walk.fields(COLUMN, &mut |walk, field| {
                    if field != 3 {
                        return Ok(false);
                    }
                    let mut found = 0;
                    for _ in 0..walk.list(&Kind::Binary)? {
                        found = path(found, name(walk)?);
                    }
                    are_same &= expected == Some(&found);
                    Ok(true)
                })?;
                Ok(true)
            })?;
        }
        Ok(true)
    })?;
    Ok(are_same)
}

/// A name.
fn name<'a>(walk: &mut Walk<&'a [u8]>) -> io::Result<&'a [u8]> {
    let all = walk.input;
    let bytes = walk.binary()?;
    let end = all.len() - walk.input.len();
    let start = usize::try_from(bytes).ok().and_then(|bytes| end.checked_sub(bytes));
    start.and_then(|start| all.get(start..end)).ok_or_else(malformed)
}

/// What stands for the names on the way to a column: those above, and its own.
fn path(above: u64, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (above, name).hash(&mut hasher);
    hasher.finish()
}

/// A column's name, and how many fields it claims to have.
fn schema_element<'a>(walk: &mut Walk<&'a [u8]>) -> io::Result<(&'a [u8], u64)> {
    let (mut own, mut children): (&[u8], _) = (&[], 0);
    walk.fields(SCHEMA_ELEMENT, &mut |walk, field| {
        match field {
            4 => own = name(walk)?,
            5 => children = walk.i32()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((own, u64::try_from(children).unwrap_or(0)))
}

/// The tree of columns, which is stored depth first.
#[derive(Default)]
struct Columns {
    /// Of each column on the way, how many fields are still to come, the bytes of the names so far, and what stands for them.
    open: Vec<(u64, u64, u64)>,
    /// Of each column with values, what stands for the names on the way to it.
    leaves: Vec<u64>,
    names_bytes: u64,
}

impl Columns {
    /// Adds the next column where so many come behind it.
    fn add(&mut self, name: &[u8], children: u64, behind: u64) -> Result<(), String> {
        while self.open.last().is_some_and(|(left, ..)| *left == 0) {
            self.open.pop();
        }
        let is_root = self.open.is_empty();
        let (above, path_above) = self.open.last_mut().map_or((0, 0), |(left, above, path)| {
            *left -= 1;
            (*above, *path)
        });
        let names = above + name.len() as u64 + NAME_BYTES;
        // The root's name is on no way.
        let path = if is_root { 0 } else { path(path_above, name) };
        if children == 0 {
            self.leaves.push(path);
            self.names_bytes += names;
            if self.names_bytes > MAX_NAMES_BYTES {
                return Err(format!("the names of its columns take more than {MAX_NAMES_BYTES} bytes"));
            }
            return Ok(());
        }
        if children > behind {
            return Err(format!("a column claims {children} fields, and {behind} are described"));
        }
        self.open.push((children, names, path));
        match self.open.len() {
            depth if depth > MAX_DEPTH => Err(format!("its columns nest more than {MAX_DEPTH} deep")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::testing::{numbered, write_table};

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// A column of so many fields; without any a number.
    fn column(name: &[u8], children: u64) -> Vec<u8> {
        let mut bytes = if children == 0 { vec![0x15, 2, 0x25, 0] } else { vec![0x35, 2] };
        bytes.extend([&[0x18][..], &varint(name.len() as u64), name].concat());
        if children > 0 {
            bytes.extend([&[0x15][..], &varint(children << 1)].concat());
        }
        bytes.push(0);
        bytes
    }

    /// An account of these columns, `claimed` of them, and no row.
    fn account(claimed: u64, columns: &[Vec<u8>]) -> Vec<u8> {
        let list = [&[0xFC][..], &varint(claimed)].concat();
        [&[0x15, 2, 0x19][..], &list, &columns.concat(), &[0x16, 0, 0x19, 0x0C, 0]].concat()
    }

    fn too_much(bytes: &[u8]) -> String {
        match parse(bytes) {
            Err(FooterFault::TooMuch(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn nested(depth: usize) -> Vec<u8> {
        let groups = vec![column(b"a", 1); depth];
        account(depth as u64 + 1, &[groups, vec![column(b"b", 0)]].concat())
    }

    #[test]
    fn columns_are_read_to_a_depth_that_the_reader_survives() {
        let read = parse(&nested(MAX_DEPTH)).unwrap();
        assert_eq!(read.file_metadata().schema_descr().num_columns(), 1);
        for depth in [MAX_DEPTH + 1, 8000, 100_000] {
            assert_eq!(too_much(&nested(depth)), "its columns nest more than 64 deep");
        }
    }

    #[test]
    fn what_is_claimed_is_there() {
        let claim = account(3, &[column(b"root", 2), column(b"a", 0x7FFF_FFFF), column(b"b", 0)]);
        assert_eq!(too_much(&claim), "a column claims 2147483647 fields, and 1 are described");
        let missing = account(1 << 16, &[column(b"root", 2), column(b"a", 0)]);
        assert!(matches!(parse(&missing), Err(FooterFault::Damaged(_))));
        let wide = account(1_000_001, &[column(b"root", 1_000_000)]);
        assert_eq!(too_much(&wide), "it describes 1000001 columns, at most 131072 are read");
    }

    #[test]
    fn names_are_not_copied_to_gigabytes() {
        let root = column(&vec![b'r'; 100_000], 1000);
        let columns = [vec![root], vec![column(b"a", 0); 1000]].concat();
        assert_eq!(too_much(&account(1001, &columns)), "the names of its columns take more than 67108864 bytes");
    }

    #[test]
    fn a_description_that_can_be_read_in_two_ways_is_refused() {
        let columns = [column(b"root", 1), column(b"a", 0)];
        let sound = account(2, &columns);
        assert!(parse(&sound).is_ok());
        // The schema as a text of as many bytes: the reader would look for columns in it.
        let hidden = [&[0x15, 2, 0x18][..], &varint(sound.len() as u64), &sound, &[0x16, 0, 0x19, 0x0C, 0]].concat();
        let rows_as_number = [&[0x15, 2, 0x19, 0xFC, 2][..], &columns.concat(), &[0x15, 0, 0x19, 0x0C, 0]].concat();
        let twice = [&[0x15, 2, 0x05, 2, 2][..], &sound[2..]].concat();
        for bytes in [hidden, rows_as_number, twice] {
            assert!(matches!(parse(&bytes), Err(FooterFault::Damaged(_))), "{bytes:?}");
        }
    }

    /// One row group of one column, on the way to which are these names.
    fn row_group(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> =
            names.iter().flat_map(|name| [&varint(name.len() as u64)[..], name.as_bytes()].concat()).collect();
        let column = [&[0x15, 2, 0x19, 0x15, 0, 0x19, (names.len() as u8) << 4 | 8][..], &list].concat();
        let column = [&column[..], &[0x15, 0, 0x16, 0, 0x16, 0, 0x16, 0, 0x26, 8, 0]].concat();
        [&[0x19, 0x1C, 0x26, 0, 0x1C][..], &column, &[0, 0x16, 0, 0x16, 0, 0]].concat()
    }

    #[test]
    fn a_column_goes_by_one_name_in_a_file() {
        let columns = [column(b"root", 1), column(b"group", 1), column(b"a", 0)];
        let with = |names: &[&str]| {
            [&[0x15, 2, 0x19, 0x3C][..], &columns.concat(), &[0x16, 0, 0x19, 0x1C], &row_group(names), &[0]].concat()
        };
        let sound = parse(&with(&["group", "a"])).unwrap();
        assert_eq!(sound.row_group(0).column(0).column_path().string(), "group.a");
        for names in [&[][..], &["a"], &["group"], &["group", "b"], &["groupa"], &["group", "a", ""]] {
            let refused = parse(&with(names)).unwrap_err();
            assert!(matches!(&refused, FooterFault::Damaged(reason) if reason.contains("other names")), "{refused:?}");
        }
    }

    #[test]
    fn the_end_of_a_file_tells_how_much_to_read() {
        let end = |bytes: u32, magic: &[u8; 4]| [bytes.to_le_bytes(), *magic].concat().try_into().unwrap();
        assert_eq!(described_bytes(end(100, b"PAR1"), 108), Ok(100));
        assert!(matches!(described_bytes(end(101, b"PAR1"), 108), Err(FooterFault::Damaged(_))));
        assert!(matches!(described_bytes(end(100, b"PARE"), 108), Err(FooterFault::Damaged(_))));
        // In a sparse file there may be as much.
        assert!(matches!(described_bytes(end(1 << 31, b"PAR1"), 1 << 32), Err(FooterFault::TooMuch(_))));
        let folder = tempfile::tempdir().unwrap();
        let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 3))], 3);
        let file = File::open(&path).unwrap();
        assert!(read(&file, file.metadata().unwrap().len()).unwrap().is_ok());
        assert!(read(&file, 7).unwrap().is_err());
    }
}
