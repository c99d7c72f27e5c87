//! Rows from Parquet.
//!
//! This room knows tables and rows, neither tasks nor models: a task says which columns it wants by role and kind
//! ([`ColumnRequest`]) and what else a row must satisfy; this room finds the files, checks their schemas, reads, sorts
//! good rows from bad ones, and hands them out in an order that depends on the seed and the epoch alone.
//!
//! The way of a row:
//! 1. [`source`] and [`hub`]: a path, glob, folder, `hf://` or `synth:` spec becomes an ordered list of files.
//! 2. [`schema`]: requested columns are found and their types checked in every file (`types`: what means the same; `roles`: what
//!    is meant where one is missing; `foreign`: files that are not Parquet).
//! 3. `reader`: one row group's requested columns, batch by batch, become [`Row`]s (`values`: a column's values); damaged files are errors, never panics.
//! 4. [`index`]: one pass over the table marks the good rows in small [`index::Block`]s and lists the bad ones.
//! 5. [`shuffle`] and [`stream`]: blocks are permuted by seed and epoch, rows shuffled within a bounded window of blocks,
//!    so memory does not grow with the file, and any position can be returned to.
//! 6. `contents`: what the row groups are known by, where a run asks for it.
//! 7. [`rejected`] and [`report`]: what was left out, for `rejected.jsonl` and `janus data check`.
//!
//! [`synth`] draws small data sets on the spot.

mod budget;
mod checked;
mod contents;
#[cfg(test)]
mod contradiction_tests;
#[cfg(test)]
mod conversation_tests;
mod conversations;
mod description;
pub mod error;
mod footer;
mod foreign;
#[cfg(test)]
mod grammar_tests;
pub mod hub;
pub mod index;
mod lengths;
#[cfg(test)]
mod limit_tests;
mod pages;
mod random;
mod reader;
pub mod rejected;
pub mod report;
mod roles;
pub mod row;
pub mod schema;
mod search;
pub mod shuffle;
pub mod source;
#[cfg(test)]
mod spelling_tests;
pub mod stream;
pub mod synth;
#[cfg(test)]
mod table_tests;
pub(crate) mod table_writer;
#[cfg(test)]
pub(crate) mod testing;
mod thrift;
mod types;
mod unpack;
mod values;
mod whole;
mod written;

pub use contents::Digest;
pub(crate) use contents::of_pictures;
pub use error::DataError;
pub use index::{ClippedGreys, ImageChecks, Index, ScanOptions, ScanProgress, Table};
pub use reader::{Asker, DEFAULT_PAGE_BYTES, ReadOptions};
pub use rejected::{BadRowLimit, RejectedRow, RowFault};
pub use report::CheckReport;
pub use row::{EncodedImage, Message, Row, RowId};
pub use schema::{ColumnKind, ColumnRequest};
pub use shuffle::EpochOrder;
pub use source::{FileSource, Split, locate, resolve};
pub use stream::{Position, RowStream};
pub(crate) use whole::WholeBatches;
