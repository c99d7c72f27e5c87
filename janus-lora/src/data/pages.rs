//! Page headers looked at before the pages are: a header may claim that a few bytes unpack to two gigabytes, and the
//! `parquet` crate makes room for what it says before it unpacks anything.
//!
//! Only sizes are judged here. Whatever else is wrong with a header is the crate's to find and report.
//! Headers are Thrift structs in the compact protocol, see parquet-format's `parquet.thrift`, struct `PageHeader`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// A page may unpack to so many bytes whatever its size: writers aim at 1 MiB.
const PLAUSIBLE_BYTES: u64 = 64 << 20;

/// Larger ones must unpack to at most so many times their size. Encoded images hardly pack at all, and Snappy cannot
/// pack anything tighter than one to 22.
const PLAUSIBLE_RATIO: u64 = 64;

/// Structs nest three deep in a page header.
const MAX_DEPTH: usize = 8;

/// Checks every page of the column chunk that lies at `start`, `length` bytes long.
pub(crate) fn check(file: &File, start: u64, length: u64) -> Result<(), String> {
    let mut headers = Headers { reader: BufReader::with_capacity(256, file) };
    let end = start.saturating_add(length);
    let mut at = start;
    while at < end {
        let Ok((unpacked, packed, next)) = headers.read(at) else { return Ok(()) };
        if unpacked > PLAUSIBLE_BYTES.max(packed.saturating_mul(PLAUSIBLE_RATIO)) {
            return Err(format!("the page at byte {at} claims to unpack from {packed} bytes to {unpacked}"));
        }
        at = next.saturating_add(packed);
    }
    Ok(())
}

struct Headers<'a> {
    reader: BufReader<&'a File>,
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Headers<'_> {
    /// Unpacked and packed size of the page whose header lies at `at`, and where the header ends.
    fn read(&mut self, at: u64) -> io::Result<(u64, u64, u64)> {
        self.reader.seek(SeekFrom::Start(at))?;
        let (mut unpacked, mut packed) = (None, None);
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            let kind = head & 0x0F;
            if kind == 0 {
                break;
            }
            field = match head >> 4 {
                0 => self.integer()?,
                delta => field.wrapping_add(i64::from(delta)),
            };
            match (field, kind) {
                (2, 5) => unpacked = Some(self.integer()?),
                (3, 5) => packed = Some(self.integer()?),
                _ => self.skip(kind, 0)?,
            }
        }
        let size = |claim: Option<i64>| claim.and_then(|size| u64::try_from(size).ok()).ok_or_else(malformed);
        Ok((size(unpacked)?, size(packed)?, self.reader.stream_position()?))
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
            12 => loop {
                let head = self.byte()?;
                if head & 0x0F == 0 {
                    return Ok(());
                }
                if head >> 4 == 0 {
                    self.integer()?;
                }
                self.skip(head & 0x0F, depth + 1)?;
            },
            // Lists, sets and maps: a page header has none.
            _ => Err(malformed()),
        }
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
        let mut bytes = vec![0x15, 0x00, 0x15];
        bytes.extend(zigzag_varint(unpacked));
        bytes.push(0x15);
        bytes.extend(zigzag_varint(packed));
        bytes.push(0x2C);
        bytes.extend([0x15, 0x0A, 0x15, 0x00, 0x15, 0x06, 0x15, 0x06, 0x1C, 0x18, 0x03, b'a', b'b', b'c', 0x00, 0x00]);
        bytes.push(0x00);
        bytes.extend(vec![0xEE; packed as usize]);
        bytes
    }

    fn check_bytes(bytes: &[u8]) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        check(&file, 6, bytes.len() as u64)
    }

    #[test]
    fn a_page_that_claims_gigabytes_is_found_wherever_it_lies() {
        let honest = [page(1000, 700), page(60 << 20, 20), page(100, 100)].concat();
        assert_eq!(check_bytes(&honest), Ok(()));
        let lying = [honest.clone(), page(i32::MAX.into(), 900), page(5, 5)].concat();
        let at = 6 + honest.len();
        assert_eq!(
            check_bytes(&lying),
            Err(format!("the page at byte {at} claims to unpack from 900 bytes to 2147483647"))
        );
        let large = page(100 << 20, 2 << 20);
        assert_eq!(check_bytes(&large), Ok(()), "a large page that packs well enough");
    }

    #[test]
    fn other_damage_is_left_to_the_reader() {
        for bytes in [&[][..], &[0xFF; 40], &[0x15], &page(-4, 3), &[0x1C; 100], &[0x19, 0x00]] {
            assert_eq!(check_bytes(bytes), Ok(()));
        }
    }
}
