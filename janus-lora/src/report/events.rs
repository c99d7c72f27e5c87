//! TensorBoard event files: scalars, texts and pictures by step.
//!
//! A file is a row of records (`tensorflow/core/lib/io/record_writer.cc`): length, masked CRC-32C of the length, data,
//! masked CRC-32C of the data. The data is an `Event` message (`tensorflow/core/util/event.proto`) in the wire format of
//! protocol buffers, of which only what is written here is encoded.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use janus_core::directory::Place;

use super::ReportError;

/// One value of an event.
#[derive(Debug, Clone, Copy)]
pub enum Summary<'a> {
    /// A point of a curve.
    Scalar(f64),
    /// A text, shown as Markdown.
    Text(&'a str),
    /// A PNG or JPEG file.
    Picture {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The file's bytes.
        encoded: &'a [u8],
    },
}

/// An event file that grows.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a new file in a run folder. What earlier files of the folder hold from `first_step` on no longer counts: a
    /// resumed run takes its steps again.
    ///
    /// # Errors
    /// The system's.
    pub fn create<'a>(folder: impl Into<Place<'a>>, first_step: u64) -> Result<Self, ReportError> {
        let folder = folder.into();
        let open = folder.open().map_err(|source| ReportError::Write { path: folder.path().to_path_buf(), source })?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = format!("events.out.tfevents.{seconds:010}.{}", host());
        let mut number = 0;
        loop {
            // Two files of one second: a run and one that goes on with it.
            let name = if number == 0 { name.clone() } else { format!("{name}.{number}") };
            let path = folder.path().join(&name);
            match open.create_file(&name) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(source) => return Err(ReportError::Write { path, source }),
                Ok(file) => {
                    let mut events = Self { path, file };
                    events.append(&Message::new().bytes(event::FILE_VERSION, b"brain.Event:2"), 0)?;
                    if first_step > 0 {
                        let start = Message::new().varint(session_log::STATUS, session_log::START);
                        events.append(&Message::new().message(event::SESSION_LOG, &start), first_step)?;
                    }
                    return Ok(events);
                }
            }
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one event with values by tag.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, step: u64, values: &[(String, Summary<'_>)]) -> Result<(), ReportError> {
        let mut summary = Message::new();
        for (tag, value) in values {
            summary = summary.message(summary::VALUE, &value_message(tag, *value));
        }
        self.append(&Message::new().message(event::SUMMARY, &summary), step)
    }

    fn append(&mut self, content: &Message, step: u64) -> Result<(), ReportError> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut data = Message::new().double(event::WALL_TIME, seconds).varint(event::STEP, step).0;
        data.extend_from_slice(&content.0);
        let record = record(&data);
        // One write, so that a reader sees whole records.
        self.file.write_all(&record).map_err(|source| ReportError::Write { path: self.path.clone(), source })
    }
}

/// Field numbers of `Event`.
mod event {
    pub(super) const WALL_TIME: u32 = 1;
    pub(super) const STEP: u32 = 2;
    pub(super) const FILE_VERSION: u32 = 3;
    pub(super) const SUMMARY: u32 = 5;
    pub(super) const SESSION_LOG: u32 = 7;
}

/// Field numbers of `SessionLog`.
mod session_log {
    pub(super) const STATUS: u32 = 1;
    pub(super) const START: u64 = 1;
}

/// Field numbers of `Summary`, `Summary.Value`, `Summary.Image`, `SummaryMetadata` and its `PluginData`.
mod summary {
    pub(super) const VALUE: u32 = 1;
    pub(super) const TAG: u32 = 1;
    pub(super) const SIMPLE_VALUE: u32 = 2;
    pub(super) const IMAGE: u32 = 4;
    pub(super) const TENSOR: u32 = 8;
    pub(super) const METADATA: u32 = 9;
    pub(super) const IMAGE_HEIGHT: u32 = 1;
    pub(super) const IMAGE_WIDTH: u32 = 2;
    pub(super) const IMAGE_COLORSPACE: u32 = 3;
    pub(super) const IMAGE_ENCODED: u32 = 4;
    pub(super) const PLUGIN_DATA: u32 = 1;
    pub(super) const PLUGIN_NAME: u32 = 1;
}

/// Field numbers of `TensorProto` and `TensorShapeProto`.
mod tensor {
    pub(super) const DTYPE: u32 = 1;
    pub(super) const SHAPE: u32 = 2;
    pub(super) const STRING_VALUE: u32 = 8;
    pub(super) const SHAPE_DIMENSION: u32 = 2;
    pub(super) const DIMENSION_SIZE: u32 = 1;
    pub(super) const STRING: u64 = 7;
}

fn value_message(tag: &str, value: Summary<'_>) -> Message {
    let message = Message::new().bytes(summary::TAG, tag.as_bytes());
    match value {
        Summary::Scalar(value) => message.float(summary::SIMPLE_VALUE, value as f32),
        Summary::Picture { width, height, encoded } => {
            const RGB: u64 = 3;
            let image = Message::new()
                .varint(summary::IMAGE_HEIGHT, height.into())
                .varint(summary::IMAGE_WIDTH, width.into())
                .varint(summary::IMAGE_COLORSPACE, RGB)
                .bytes(summary::IMAGE_ENCODED, encoded);
            message.message(summary::IMAGE, &image)
        }
        Summary::Text(text) => {
            let one =
                Message::new().message(tensor::SHAPE_DIMENSION, &Message::new().varint(tensor::DIMENSION_SIZE, 1));
            let tensor = Message::new()
                .varint(tensor::DTYPE, tensor::STRING)
                .message(tensor::SHAPE, &one)
                .bytes(tensor::STRING_VALUE, text.as_bytes());
            let plugin = Message::new().bytes(summary::PLUGIN_NAME, b"text");
            let metadata = Message::new().message(summary::PLUGIN_DATA, &plugin);
            message.message(summary::TENSOR, &tensor).message(summary::METADATA, &metadata)
        }
    }
}

/// A protocol buffers message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self::default()
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        self.raw_varint(u64::from(field) << 3 | wire_type);
    }

    fn varint(mut self, field: u32, value: u64) -> Self {
        self.key(field, 0);
        self.raw_varint(value);
        self
    }

    fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u32, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc32c(data).to_le_bytes());
    record
}

/// `tensorflow/core/lib/hash/crc32c.h`: a checksum of data that itself holds checksums is masked.
fn masked_crc32c(data: &[u8]) -> u32 {
    const MASK_DELTA: u32 = 0xa282_ead8;
    crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), a table row a byte.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { REVERSED_POLYNOMIAL ^ (crc >> 1) } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc: u32, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// The machine's name as a part of a file name.
fn host() -> String {
    let told = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = |name: &str| std::env::var(name).ok();
    let name = told.or_else(|| variable("HOSTNAME")).or_else(|| variable("COMPUTERNAME")).unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    if name.trim_matches('.').is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The records of a file, checksums compared bit by bit.
    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        let slow = |data: &[u8]| {
            let crc = !data.iter().fold(!0u32, |crc, byte| {
                (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
            });
            (crc / (1 << 15) + (crc % (1 << 15)) * (1 << 17)).wrapping_add(0xa282_ead8)
        };
        let (mut rest, mut found) = (bytes, Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(slow(&rest[..8]).to_le_bytes(), rest[8..12], "length");
            let data = &rest[12..12 + length];
            assert_eq!(slow(data).to_le_bytes(), rest[12 + length..16 + length], "data");
            found.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        found
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, B.4");
    }

    #[test]
    fn an_event_is_encoded_as_the_format_says() {
        let message = Message::new().varint(event::STEP, 300).message(
            event::SUMMARY,
            &Message::new().message(summary::VALUE, &value_message("a", Summary::Scalar(1.5))),
        );
        // By hand: step 300 = ac 02; value { tag "a", simple_value 1.5 = 00 00 c0 3f }.
        assert_eq!(message.0, [0x10, 0xac, 0x02, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f]);
        let picture = value_message("p", Summary::Picture { width: 5, height: 3, encoded: &[9, 8] });
        assert_eq!(picture.0, [0x0a, 1, b'p', 0x22, 10, 8, 3, 16, 5, 24, 3, 0x22, 2, 9, 8]);
    }

    #[test]
    fn a_file_starts_with_its_version_and_a_resumed_one_with_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = EventFile::create(folder.path(), 0).unwrap();
        first.write(1, &[("loss".into(), Summary::Scalar(2.0)), ("t".into(), Summary::Text("hi"))]).unwrap();
        let second = EventFile::create(folder.path(), 7).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(first.path().file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."));
        let records_of = |file: &EventFile| records(&std::fs::read(file.path()).unwrap());
        let (first, second) = (records_of(&first), records_of(&second));
        assert_eq!((first.len(), second.len()), (2, 2));
        assert!(first[0].ends_with(b"brain.Event:2"));
        // Wall time in nine bytes, then step 7 and a session log with status START.
        assert_eq!(second[1][9..], [0x10, 7, 0x3a, 2, 8, 1]);
    }
}
