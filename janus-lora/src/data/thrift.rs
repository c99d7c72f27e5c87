//! Structs in Thrift's compact protocol, walked field by field against what the format says of them.
//!
//! The `parquet` crate reads a known field as the type that it expects, whatever type the file gives it, and cuts numbers to
//! size. What is looked at here before would then be something else than what it reads. So a known field of another type, a
//! number that does not fit, a field that comes twice or out of its turn (no writer does that), and what the two would pass
//! over differently are refused.
//! Protocol: Apache Thrift's `thrift-compact-protocol.md`.

use std::fs::File;
use std::io::{self, BufReader, Read};

/// Unknown fields nest so deep at most; the `parquet` crate passes over 64.
const MAX_UNKNOWN_DEPTH: u32 = 8;

/// What a field is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    Struct(Fields),
    List(&'static Kind),
}

/// The fields that a struct may have, by number.
pub(super) type Fields = &'static [(i64, Kind)];

/// What is read.
pub(super) trait Input {
    /// The next byte.
    fn byte(&mut self) -> io::Result<u8>;

    /// Passes over so many bytes. What lies behind the end is found missing when it is read.
    fn pass(&mut self, bytes: u64) -> io::Result<()>;
}

impl Input for &[u8] {
    fn byte(&mut self) -> io::Result<u8> {
        let (byte, rest) = self.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        *self = rest;
        Ok(*byte)
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = usize::try_from(bytes).ok().and_then(|bytes| self.get(bytes..));
        *self = passed.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

impl Input for BufReader<&File> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(bytes).map_err(|_| malformed())?)
    }
}

/// What cannot be followed.
pub(super) fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// A walk over structs.
pub(super) struct Walk<I> {
    pub(super) input: I,
    /// Elements of lists that may still come: a count is no more than a claim.
    pub(super) elements: u64,
    /// The value of the current field where it is a Boolean: the compact protocol encodes it in the field's type.
    pub(super) truth: bool,
}

/// Reads the value of a known field, or leaves it to be walked over: then `false`.
pub(super) type Take<'a, I> = &'a mut dyn FnMut(&mut Walk<I>, i64) -> io::Result<bool>;

impl<I: Input> Walk<I> {
    /// A walk over at most so many elements of lists.
    pub(super) fn new(input: I, elements: u64) -> Self {
        Self { input, elements, truth: false }
    }

    /// Walks over a struct.
    pub(super) fn fields(&mut self, known: Fields, take: Take<'_, I>) -> io::Result<()> {
        let mut last = 0;
        loop {
            let head = self.input.byte()?;
            if head & 0x0F == 0 {
                return Ok(());
            }
            let (kind, field) = (head & 0x0F, head >> 4);
            let field = if field == 0 { self.number(16)? } else { last + i64::from(field) };
            if field <= last || field > i16::MAX.into() {
                return Err(malformed());
            }
            last = field;
            self.truth = kind == 1;
            match known.iter().find(|(number, _)| *number == field) {
                Some((_, expected)) if !expected.is(kind) => return Err(malformed()),
                Some((_, expected)) => {
                    if !take(self, field)? {
                        self.walk(expected)?;
                    }
                }
                None => self.skip(kind, 0)?,
            }
        }
    }

    /// Walks over the value of a field.
    pub(super) fn walk(&mut self, kind: &Kind) -> io::Result<()> {
        match kind {
            // A truth value is its type.
            Kind::Bool => Ok(()),
            Kind::Byte => self.input.pass(1),
            Kind::I16 => self.number(16).map(drop),
            Kind::I32 => self.i32().map(drop),
            Kind::I64 => self.i64().map(drop),
            Kind::Double => self.input.pass(8),
            Kind::Binary => self.binary().map(drop),
            Kind::Struct(fields) => self.fields(fields, &mut |_, _| Ok(false)),
            Kind::List(of) => {
                for _ in 0..self.list(of)? {
                    self.walk(of)?;
                }
                Ok(())
            }
        }
    }

    /// How many elements a list has that are to be of a kind.
    pub(super) fn list(&mut self, of: &Kind) -> io::Result<u64> {
        let (kind, count) = self.list_head()?;
        // Some writers give an empty list no type.
        if !(of.is(kind) || (count == 0 && kind == 0)) {
            return Err(malformed());
        }
        Ok(count)
    }

    fn list_head(&mut self) -> io::Result<(u8, u64)> {
        let head = self.input.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        self.elements = self.elements.checked_sub(count).ok_or_else(malformed)?;
        Ok((head & 0x0F, count))
    }

    pub(super) fn i32(&mut self) -> io::Result<i64> {
        self.number(32)
    }

    pub(super) fn i64(&mut self) -> io::Result<i64> {
        let stored = self.varint()?;
        // Signed integers are stored zig-zag: 0, -1, 1, -2, ...
        Ok((stored >> 1) as i64 ^ -((stored & 1) as i64))
    }

    /// Passes over bytes or a text; gives their number.
    pub(super) fn binary(&mut self) -> io::Result<u64> {
        let bytes = self.varint()?;
        self.input.pass(bytes)?;
        Ok(bytes)
    }

    fn number(&mut self, bits: u32) -> io::Result<i64> {
        let value = self.i64()?;
        let (least, most) = (-1 << (bits - 1), (1 << (bits - 1)) - 1);
        if (least..=most).contains(&value) { Ok(value) } else { Err(malformed()) }
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.input.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }

    /// Passes over the value of a field that the format does not have; numbers are the protocol's types 1 to 12.
    fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if depth > MAX_UNKNOWN_DEPTH {
            return Err(malformed());
        }
        match kind {
            1 | 2 => Ok(()),
            3 => self.input.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.input.pass(8),
            8 => self.binary().map(drop),
            9 => {
                let (kind, count) = self.list_head()?;
                // The `parquet` crate takes truth values in a list for nothing, where they take a byte each.
                if count > 0 && matches!(kind, 0..=2) {
                    return Err(malformed());
                }
                (0..count).try_for_each(|_| self.skip(kind, depth + 1))
            }
            12 => loop {
                let head = self.input.byte()?;
                if head & 0x0F == 0 {
                    return Ok(());
                }
                if head >> 4 == 0 {
                    self.number(16)?;
                }
                self.skip(head & 0x0F, depth + 1)?;
            },
            // Sets, maps and identifiers are nowhere in the format.
            _ => Err(malformed()),
        }
    }
}

impl Kind {
    /// Whether it is the protocol's type of this number.
    fn is(&self, number: u8) -> bool {
        match self {
            Kind::Bool => matches!(number, 1 | 2),
            Kind::Byte => number == 3,
            Kind::I16 => number == 4,
            Kind::I32 => number == 5,
            Kind::I64 => number == 6,
            Kind::Double => number == 7,
            Kind::Binary => number == 8,
            Kind::List(_) => number == 9,
            Kind::Struct(_) => number == 12,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INNER: Fields = &[(1, Kind::I32), (2, Kind::Binary)];
    const OUTER: Fields =
        &[(1, Kind::I32), (2, Kind::List(&Kind::Struct(INNER))), (3, Kind::Bool), (4, Kind::I16), (5, Kind::I64)];

    fn walk(bytes: &[u8]) -> io::Result<usize> {
        let mut walk = Walk::new(bytes, 100);
        walk.fields(OUTER, &mut |_, _| Ok(false))?;
        Ok(walk.input.len())
    }

    #[test]
    fn a_struct_is_walked_to_its_end() {
        // 1: 3; 2: two structs (a number; a text); 3: true; 5: 2^40, its number told in full; unknown 9 a struct with a
        // list of numbers.
        let mut bytes = vec![0x15, 0x06, 0x19, 0x2C, 0x15, 0x02, 0x00, 0x28, 0x02, b'a', b'b', 0x00, 0x11];
        bytes.extend([0x06, 0x0A, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
        bytes.extend([0x4C, 0x19, 0x25, 0x02, 0x04, 0x00, 0x00]);
        assert_eq!(walk(&[&bytes[..], b"rest"].concat()).unwrap(), 4);
    }

    #[test]
    fn what_the_reader_would_take_for_something_else_is_refused() {
        for (bytes, why) in [
            (&[0x16, 0x06, 0x00][..], "a wider number"),
            (&[0x15, 0x80, 0x80, 0x80, 0x80, 0x20, 0x00], "a number that is cut to 0"),
            (&[0x15, 0x06, 0x05, 0x02, 0x06, 0x00], "a field twice"),
            (&[0x25, 0x06, 0x00], "a number where a list is"),
            (&[0x29, 0x15, 0x02, 0x00], "a list of numbers where one of structs is"),
            (&[0x15, 0x06, 0x05, 0x80, 0x80, 0x08, 0x02, 0x00], "the field 65536"),
            (&[0x05, 0x01, 0x02, 0x00], "the field -1"),
            (&[0x99, 0x22, 0x01, 0x01, 0x00], "unknown truth values in a list"),
            (&[0x9B, 0x01, 0x51, 0x08, 0x01, 0x00], "an unknown map"),
            (&[0x9C; 40], "unknown structs without end"),
            (&[0x29, 0xFC, 0xFF, 0xFF, 0xFF, 0x7F, 0x00], "more elements than may be"),
            (&[0x98, 0x7F, 0x00], "bytes that are not there"),
            (&[0x15], "an end in the middle"),
            (&[0x56, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0x00], "a number without end"),
        ] {
            assert!(walk(bytes).is_err(), "{why}");
        }
    }
}
