//! Rows that are left out: why, how many may be, and the file that lists them.

use std::collections::HashMap;
use std::fmt;

use janus_core::directory::Directory;
use janus_core::output::{OutputError, write_below};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::reader::{MAX_IMAGE_BYTES, MAX_TEXT_BYTES};
use super::row::RowId;
use crate::visible::one_line;

/// Most characters of a stored text that a message shows.
const MAX_SHOWN_CHARS: usize = 200;

/// The beginning of a text of unknown length, fit for a message on one line.
pub(crate) fn cut(text: &str) -> String {
    let shown = text.chars().take(MAX_SHOWN_CHARS).collect::<String>();
    let shown = one_line(&shown).into_owned();
    match text.chars().nth(MAX_SHOWN_CHARS) {
        Some(_) => format!("{shown}… ({} bytes)", text.len()),
        None => shown,
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFault {
    /// A required value is null, or a list without elements.
    Null {
        /// The column.
        column: String,
    },
    /// A required text holds nothing but white space.
    EmptyText {
        /// The column.
        column: String,
    },
    /// The image is a path, and no file can be read there.
    NoImageFile {
        /// The column.
        column: String,
        /// The path as stored, its beginning where it is long.
        path: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// The image is a text that can be no path: a URL, a data URI, base64.
    NotAPath {
        /// The column.
        column: String,
        /// The beginning of the text.
        value: String,
        /// What it is, and what to do about it.
        what: &'static str,
    },
    /// The encoded image is larger than this program reads.
    ImageBytes {
        /// The column.
        column: String,
        /// Its size.
        bytes: u64,
    },
    /// The images of a list take more together than this program holds of one row.
    ListBytes {
        /// The column.
        column: String,
        /// Their size up to the one that was too much.
        bytes: u64,
    },
    /// More images, messages, boxes or texts than this program takes of one row.
    TooMany {
        /// The column.
        column: String,
        /// `images`, `messages`, `boxes` or `texts`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are read.
        limit: usize,
    },
    /// A text, or the messages of a conversation together, longer than this program reads.
    TextBytes {
        /// The column.
        column: String,
        /// Its size.
        bytes: u64,
    },
    /// The bytes are no image, or a damaged one.
    Undecodable {
        /// The column.
        column: String,
        /// What the decoder said.
        reason: String,
    },
    /// More pixels than this program decodes.
    TooManyPixels {
        /// The column.
        column: String,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// A side more than 100 times the other.
    TooElongated {
        /// The column.
        column: String,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// A turn of a conversation without a role or content.
    IncompleteMessage {
        /// The column.
        column: String,
        /// Which turn, from 0.
        turn: usize,
    },
    /// A text that is to be a conversation and is none, or a message in parts that cannot be read.
    Conversation {
        /// The column.
        column: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number that stands for a label and has no name.
    Unnamed {
        /// The column.
        column: String,
        /// The number.
        value: String,
        /// How many names there are.
        names: usize,
    },
    /// A box of another number of corners' numbers than four, or with a null among them.
    BoxNumbers {
        /// The column.
        column: String,
        /// How many numbers it has.
        numbers: usize,
    },
    /// The task cannot use the row.
    Task {
        /// Why, in the task's words.
        reason: String,
    },
}

impl RowFault {
    /// The fault without the particulars of one row, for counting.
    pub fn group(&self) -> String {
        match self {
            RowFault::Null { column } => format!("`{column}` is null"),
            RowFault::EmptyText { column } => format!("`{column}` is empty"),
            RowFault::NoImageFile { column, reason, .. } => {
                format!("the image file of `{column}` cannot be read: {reason}")
            }
            RowFault::NotAPath { column, what, .. } => format!("the image in `{column}` is {what}"),
            RowFault::ImageBytes { column, .. } => format!("the image in `{column}` is too large a file"),
            RowFault::ListBytes { column, .. } => format!("the images in `{column}` are too large together"),
            RowFault::TooMany { column, what, .. } => format!("there are too many {what} in `{column}`"),
            RowFault::TextBytes { column, .. } => format!("the text in `{column}` is too long"),
            RowFault::Undecodable { column, .. } => format!("the image in `{column}` cannot be decoded"),
            RowFault::TooManyPixels { column, .. } => format!("the image in `{column}` is over 64 megapixels"),
            RowFault::TooElongated { column, .. } => format!("the image in `{column}` is beyond 100:1"),
            RowFault::IncompleteMessage { column, .. } => format!("a message in `{column}` lacks its role or content"),
            RowFault::Conversation { column, .. } => format!("the conversation in `{column}` cannot be read"),
            RowFault::Unnamed { column, .. } => format!("a label in `{column}` has no name"),
            RowFault::BoxNumbers { column, .. } => format!("a box in `{column}` is not four numbers"),
            RowFault::Task { reason } => reason.clone(),
        }
    }
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowFault::Null { .. } | RowFault::EmptyText { .. } | RowFault::Task { .. } => f.write_str(&self.group()),
            RowFault::BoxNumbers { column, numbers } => {
                write!(f, "a box in `{column}` has {numbers} numbers, expected 4, none of them null")
            }
            RowFault::NoImageFile { column, path, reason } => {
                write!(f, "the image file `{path}` of `{column}` cannot be read: {reason}")
            }
            RowFault::NotAPath { column, value, what } => {
                write!(f, "the image in `{column}`, `{value}`, is {what}")
            }
            RowFault::ImageBytes { column, bytes } => write!(f, "the image in `{column}` is a file of {bytes} bytes"),
            RowFault::ListBytes { column, bytes } => {
                write!(f, "the images in `{column}` take {bytes} bytes together, at most {MAX_IMAGE_BYTES} are read")
            }
            RowFault::TooMany { column, what, count, limit } => {
                write!(f, "there are {count} {what} in `{column}`, at most {limit} are read")
            }
            RowFault::TextBytes { column, bytes } => {
                write!(f, "the text in `{column}` has {bytes} bytes, at most {MAX_TEXT_BYTES} are read")
            }
            RowFault::Undecodable { column, reason } => {
                write!(f, "the image in `{column}` cannot be decoded: {reason}")
            }
            RowFault::TooManyPixels { column, width, height } => {
                write!(f, "the image in `{column}` has {width} x {height} pixels, over 64 megapixels")
            }
            RowFault::TooElongated { column, width, height } => {
                write!(f, "the image in `{column}` has {width} x {height} pixels, beyond 100:1")
            }
            RowFault::Conversation { column, reason } => {
                write!(f, "the conversation in `{column}` cannot be read: {reason}")
            }
            RowFault::Unnamed { column, value, names } => {
                write!(f, "the label {value} in `{column}` has no name: the file has {names}, counted from 0")
            }
            RowFault::IncompleteMessage { column, turn } => {
                write!(f, "message {turn} in `{column}` lacks its role or content")
            }
        }
    }
}

/// A row that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedRow {
    /// Which.
    pub id: RowId,
    /// Why.
    pub fault: RowFault,
}

impl fmt::Display for RejectedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.fault)
    }
}

/// A line of `rejected.jsonl`.
impl Serialize for RejectedRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            file: &'a str,
            row_group: usize,
            row: usize,
            reason: &'a str,
        }
        let RowId { file, row_group, row } = &self.id;
        let (file, reason) = (file.to_string_lossy(), self.fault.to_string());
        Line { file: &file, row_group: *row_group, row: *row, reason: &reason }.serialize(serializer)
    }
}

/// Rows that are listed one by one; of more, only the number is kept, and their reasons.
pub const MAX_LISTED_ROWS: usize = 100_000;

/// Most reasons that are counted each by itself; the rows of all further ones are counted together.
const MAX_REASONS: usize = 1000;

/// Rows shown for each reason.
const ROWS_SHOWN: usize = 5;

/// Rows are listed until they come to so many bytes of text, names of files among them; the rows shown for reasons likewise.
pub const MAX_LISTED_BYTES: usize = 8 << 20;
const MAX_SHOWN_BYTES: usize = 1 << 20;

/// Most bytes of a reason.
const MAX_REASON_BYTES: usize = 1000;

/// One reason for rows to be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The reason, without the particulars of single rows.
    pub reason: String,
    /// Rows it applies to.
    pub rows: usize,
    /// The first of them.
    pub first: Vec<RejectedRow>,
}

/// The rows that a scan leaves out: all of them counted, by reason, and the first of them listed.
#[derive(Debug, Clone, Default)]
pub(super) struct Rejected {
    rows: usize,
    listed: Vec<RejectedRow>,
    /// What may still be listed, in bytes, and shown for reasons.
    bytes_left: Room,
    reasons: Vec<Reason>,
    places: HashMap<String, usize>,
    /// The fault before this one, and its reason: the same comes again and again.
    last: Option<(RowFault, usize)>,
}

/// Bytes of text that there is room for.
#[derive(Debug, Clone)]
struct Room {
    listed: usize,
    shown: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { listed: MAX_LISTED_BYTES, shown: MAX_SHOWN_BYTES }
    }
}

/// Adds rows to a list, at most `most` and as many as there is room for; after the first that finds none there is no more.
fn add_while(list: &mut Vec<RejectedRow>, rows: impl Iterator<Item = RejectedRow>, most: usize, room: &mut usize) {
    for row in rows.take(most) {
        *room = room.saturating_sub(row.to_string().len());
        if *room == 0 {
            break;
        }
        list.push(row);
    }
}

impl Rejected {
    /// Counts `rows` rows from `id` on; at most `kept` are listed in all.
    pub(super) fn add(&mut self, fault: RowFault, rows: usize, id: impl Fn(usize) -> RowId, kept: usize) {
        let place = match &self.last {
            Some((last, place)) if *last == fault => *place,
            _ => self.place(&fault),
        };
        self.rows += rows;
        let row = |number| RejectedRow { id: id(number), fault: fault.clone() };
        let reason = &mut self.reasons[place];
        let (shown, listed) = (reason.first.len(), self.listed.len());
        add_while(&mut reason.first, (0..rows).map(row), ROWS_SHOWN.saturating_sub(shown), &mut self.bytes_left.shown);
        reason.rows += rows;
        add_while(&mut self.listed, (0..rows).map(row), kept.saturating_sub(listed), &mut self.bytes_left.listed);
        self.last = Some((fault, place));
    }

    fn place(&mut self, fault: &RowFault) -> usize {
        let mut reason = fault.group();
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        if self.places.len() >= MAX_REASONS && !self.places.contains_key(&reason) {
            reason = "other reasons".into();
        }
        if let Some(place) = self.places.get(&reason) {
            return *place;
        }
        self.reasons.push(Reason { reason: reason.clone(), rows: 0, first: Vec::new() });
        self.places.insert(reason, self.reasons.len() - 1);
        self.reasons.len() - 1
    }

    /// How many there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The first of them.
    pub(super) fn listed(&self) -> &[RejectedRow] {
        &self.listed
    }

    /// Why, in the order in which the reasons were met.
    pub(super) fn reasons(&self) -> &[Reason] {
        &self.reasons
    }
}

/// Writes `rejected.jsonl` into a run folder: one object `{"file", "row_group", "row", "reason"}` a line, in the order given.
///
/// # Errors
/// The file cannot be written; it is then as it was.
pub fn write_rejected<'a>(
    folder: &Directory,
    name: &str,
    rows: impl IntoIterator<Item = &'a RejectedRow>,
) -> Result<(), OutputError> {
    write_below(folder, name, |out| {
        for row in rows {
            serde_json::to_writer(&mut *out, row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// How many rows of a table may be bad (`data_limits.max_bad_rows`): in TOML a float from 0 to 1 is a share, an integer a count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BadRowLimit {
    /// At most this share of the rows, from 0 to 1.
    Share(f64),
    /// At most so many rows.
    Count(usize),
}

impl Default for BadRowLimit {
    /// One in a hundred.
    fn default() -> Self {
        BadRowLimit::Share(0.01)
    }
}

impl BadRowLimit {
    /// The most bad rows that a table of `rows` may have.
    pub fn allowed(self, rows: usize) -> usize {
        match self {
            BadRowLimit::Count(count) => count,
            // The nudge undoes the rounding of decimal shares: 0.29 * 100 is 28.999999999999996.
            BadRowLimit::Share(share) => (share * rows as f64 + 1e-9).floor() as usize,
        }
    }
}

impl fmt::Display for BadRowLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadRowLimit::Share(share) => write!(f, "{share:?}"),
            BadRowLimit::Count(count) => write!(f, "{count}"),
        }
    }
}

impl Serialize for BadRowLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BadRowLimit::Share(share) => serializer.serialize_f64(*share),
            BadRowLimit::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl<'de> Deserialize<'de> for BadRowLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = BadRowLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share of the rows from 0.0 to 1.0, or a count of rows")
            }

            fn visit_f64<E: serde::de::Error>(self, share: f64) -> Result<BadRowLimit, E> {
                if (0.0..=1.0).contains(&share) {
                    Ok(BadRowLimit::Share(share))
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Float(share), &self))
                }
            }

            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<BadRowLimit, E> {
                usize::try_from(count)
                    .map(BadRowLimit::Count)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(count), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<BadRowLimit, E> {
                usize::try_from(count)
                    .map(BadRowLimit::Count)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(count), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    #[derive(Deserialize, Serialize)]
    struct Limits {
        max_bad_rows: BadRowLimit,
    }

    #[test]
    fn a_float_is_a_share_and_an_integer_a_count() {
        let parse = |text: &str| toml::from_str::<Limits>(&format!("max_bad_rows = {text}")).map(|l| l.max_bad_rows);
        assert_eq!(parse("0.05").unwrap(), BadRowLimit::Share(0.05));
        assert_eq!(parse("1.0").unwrap(), BadRowLimit::Share(1.0));
        assert_eq!(parse("1").unwrap(), BadRowLimit::Count(1));
        for wrong in ["-1", "1.5", "nan", "-0.1", "\"all\""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for limit in [BadRowLimit::Share(1.0), BadRowLimit::Count(1)] {
            let text = toml::to_string(&Limits { max_bad_rows: limit }).unwrap();
            assert_eq!(toml::from_str::<Limits>(&text).unwrap().max_bad_rows, limit);
        }
    }

    #[test]
    fn a_share_allows_whole_rows_up_to_and_with_it() {
        assert_eq!(BadRowLimit::Share(0.01).allowed(99), 0);
        assert_eq!(BadRowLimit::Share(0.01).allowed(100), 1);
        assert_eq!(BadRowLimit::Share(0.29).allowed(100), 29, "0.29 * 100 is 28.999999999999996");
        assert_eq!(BadRowLimit::Share(1.0).allowed(12), 12);
        assert_eq!(BadRowLimit::Count(3).allowed(1), 3);
    }

    #[test]
    fn all_rows_are_counted_and_the_first_listed() {
        let id = |row| RowId { file: Path::new("a").into(), row_group: 0, row };
        let null = |column: &str| RowFault::Null { column: column.into() };
        let mut rejected = Rejected::default();
        rejected.add(null("a"), 3, id, 5);
        rejected.add(null("b"), 1, |n| id(3 + n), 5);
        rejected.add(null("a"), 1_000_000, |n| id(4 + n), 5);
        let counts: Vec<_> = rejected.reasons().iter().map(|r| (r.reason.as_str(), r.rows, r.first.len())).collect();
        assert_eq!(counts, [("`a` is null", 1_000_003, 5), ("`b` is null", 1, 1)]);
        let listed: Vec<_> = rejected.listed().iter().map(|row| row.id.row).collect();
        assert_eq!((rejected.rows(), listed), (1_000_004, vec![0, 1, 2, 3, 4]));
        for n in 0..2 * MAX_REASONS {
            rejected.add(RowFault::Task { reason: n.to_string() }, 1, id, 5);
        }
        assert_eq!((rejected.reasons().len(), rejected.rows()), (MAX_REASONS + 1, 1_000_004 + 2 * MAX_REASONS));
        assert_eq!(rejected.reasons().iter().map(|reason| reason.rows).sum::<usize>(), rejected.rows());
    }

    #[test]
    fn a_list_is_bounded_by_its_bytes_too() {
        let path: Arc<Path> = Path::new(&"long/".repeat(800)).into();
        let id = |row| RowId { file: Arc::clone(&path), row_group: 0, row };
        let mut rejected = Rejected::default();
        for n in 0..20_000 {
            let reason = format!("{}{}", n / 10, "x".repeat(5000));
            rejected.add(RowFault::Task { reason }, 1, |_| id(n), MAX_LISTED_ROWS);
        }
        let bytes = |rows: &[RejectedRow]| rows.iter().map(|row| row.to_string().len()).sum::<usize>();
        let listed = bytes(rejected.listed());
        assert!(listed <= MAX_LISTED_BYTES && listed > MAX_LISTED_BYTES - 20_000, "{listed}");
        let shown: usize = rejected.reasons().iter().map(|reason| bytes(&reason.first) + reason.reason.len()).sum();
        assert!(shown < 3 << 20, "{shown}");
        assert_eq!(rejected.rows(), 20_000);
        assert_eq!(rejected.reasons().iter().map(|reason| reason.rows).sum::<usize>(), 20_000);
        // What finds no room is no reason to list a shorter one behind it.
        let last = rejected.listed().last().unwrap().id.row;
        assert_eq!(rejected.listed().len(), last + 1);
    }

    #[test]
    fn rejected_rows_are_one_object_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejected.jsonl");
        let row =
            |row, fault| RejectedRow { id: RowId { file: Path::new("a.parquet").into(), row_group: 2, row }, fault };
        let rows = [
            row(5, RowFault::Null { column: "image".into() }),
            row(6, RowFault::TooElongated { column: "image".into(), width: 1, height: 20000 }),
        ];
        write_rejected(&Directory::open(folder.path()).unwrap(), "rejected.jsonl", &rows).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"file\":\"a.parquet\",\"row_group\":2,\"row\":5,\"reason\":\"`image` is null\"}\n\
             {\"file\":\"a.parquet\",\"row_group\":2,\"row\":6,\"reason\":\"the image in `image` has 1 x 20000 pixels, beyond 100:1\"}\n"
        );
    }
}
