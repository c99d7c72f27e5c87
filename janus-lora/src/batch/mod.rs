//! Answers for a whole table: every row is asked, and the table comes out with what was answered beside its own columns.
//!
//! | file | what |
//! | --- | --- |
//! | `ask` | what is read of a row, and the request it becomes |
//! | `answered` | what an answer adds to its row |
//! | `journal` | the answers so far, beside the output, from which a batch that was cut off goes on |
//! | `work` | rows go through the engine in their order |
//! | `output` | the table with its answers, as Parquet or as lines of JSON |
//!
//! Rows of which no request can be made, and those that cannot be answered, have the reason in the column `error`.

mod answered;
mod ask;
pub mod error;
mod journal;
mod output;
mod work;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use janus_core::Janus;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::data::{FileSource, ReadOptions, Table};
use crate::error::Result;
use crate::heads::Heads;
use crate::status::Status;

pub use ask::Asked;
pub use error::BatchError;
use journal::Journal;
pub use output::Format;

/// A table to be answered.
pub struct Job<'a> {
    /// What answers.
    pub model: &'a Janus,
    /// Its base.
    pub base: &'a Base,
    /// What is attached to it, with factors.
    pub adapters: &'a [(Adapter, f64)],
    /// The heads of that.
    pub heads: &'a Heads,
    /// What each row is asked.
    pub asked: &'a Asked,
    /// The table's files.
    pub files: &'a [FileSource],
    /// How they are read.
    pub options: ReadOptions,
    /// How pictures are read.
    pub decoding: janus_core::processing::Decoding,
}

/// What became of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Its rows.
    pub rows: usize,
    /// Those that were not answered.
    pub failed: usize,
    /// Those that were answered before.
    pub resumed: usize,
}

impl Job<'_> {
    /// Answers every row and writes the table to `out`, which is not there yet. Answers are kept beside it until then; with
    /// `resume` those of a batch that was cut off are taken from there.
    ///
    /// # Errors
    /// Files without the task's columns or that are damaged; answers there of another batch; an output that is there; a model
    /// whose values are not finite; a signal.
    pub fn run(&self, out: &Path, format: Format, resume: bool, status: &dyn Status) -> Result<Done> {
        if out.symlink_metadata().is_ok() {
            return Err(BatchError::OutputExists { path: out.to_path_buf(), resume }.into());
        }
        let open = |all_columns: bool| -> Result<Table> {
            let options = ReadOptions { all_columns, ..self.options.clone() };
            Ok(Table::open_with(self.files, &self.asked.alternatives(), options)?.with_decoding(self.decoding))
        };
        let table = open(false)?;
        let output = output::Output::new(&open(true)?, self.asked)?;
        let mut journal = Journal::open(out, &self.identity(status)?, resume)?;
        let resumed = journal.rows();
        if let Err(error) = work::answer(self, &table, &mut journal, status) {
            if journal.rows() == 0 {
                // There is nothing to go on with.
                journal.remove();
            }
            return Err(error);
        }
        let (rows, failed) = (journal.rows(), journal.failed());
        output.write(&open(true)?, &mut journal, out, format)?;
        journal.remove();
        Ok(Done { rows, failed, resumed })
    }

    /// What answers depend on, by its name.
    fn identity(&self, status: &dyn Status) -> Result<BTreeMap<&'static str, Value>> {
        let adapters = self.adapters.iter().map(|(adapter, factor)| Ok(json!([adapter.digest()?, factor])));
        let file = |source: &FileSource| -> Result<Value> {
            let path = match source {
                FileSource::Local(path) => path.clone(),
                FileSource::Hub(shard) => shard.fetch(&janus_core::hub::Silent)?,
            };
            Ok(json!(digest_of(&path)?))
        };
        let mut identity = self.asked.identity();
        identity.extend([
            ("base", json!(self.base.fingerprint(status)?)),
            ("type of its values", json!(self.model.dtype().as_str())),
            ("adapters", Value::Array(adapters.collect::<Result<_>>()?)),
            ("input", Value::Array(self.files.iter().map(file).collect::<Result<_>>()?)),
            ("way to read pictures", json!(format!("{:?}", self.decoding))),
        ]);
        Ok(identity)
    }
}

/// SHA-256 of a file, hexadecimal.
fn digest_of(path: &Path) -> Result<String> {
    let unreadable = |source| BatchError::Read { path: path.to_path_buf(), source };
    let mut file = janus_core::input::open(path).map_err(unreadable)?;
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => break,
            count => hasher.update(&piece[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
