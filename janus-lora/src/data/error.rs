//! What can be wrong with a table of rows.

use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

use janus_core::hub::HubError;
use janus_core::input::InputError;
use janus_core::output::OutputError;
use janus_core::{Diagnose, Fault};

use super::reader::Asker;
use super::rejected::{BadRowLimit, RejectedRow, RowFault, cut};
use super::row::RowId;
use super::schema::ColumnFault;

/// Rejected rows that an error carries along, for the user to look at.
pub const FIRST_REJECTED: usize = 8;

/// A table of rows that cannot be found, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Nothing lies where the source points.
    #[error("no file or folder `{}`", path.display())]
    NotFound {
        /// The path, made absolute or relative to the recipe's folder.
        path: PathBuf,
    },
    /// A link that a search for tables found, and that leads nowhere.
    #[error("`{}` is a link to a file that is not there", path.display())]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// A glob that matches no file.
    #[error("no file matches `{pattern}`")]
    NoMatch {
        /// The pattern, with its base folder.
        pattern: String,
    },
    /// A folder without Parquet files.
    #[error("no `.parquet` file in folder `{}`", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with named splits, but not the one asked for.
    #[error("folder `{}` has no {split} split, only {}", path.display(), found.join(", "))]
    NoSplit {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        split: &'static str,
        /// Splits that are there.
        found: Vec<&'static str>,
    },
    /// A source that is not a path and not understood.
    #[error("data source `{spec}` cannot be used: {reason}")]
    Source {
        /// The source as the user wrote it.
        spec: String,
        /// Why not.
        reason: String,
    },
    /// A data set on a hub without Parquet files where they were looked for.
    #[error("no `.parquet` file in `{spec}`")]
    NoHubFiles {
        /// The source as the user wrote it.
        spec: String,
    },
    /// A limit of the cache that is no number.
    #[error("the environment variable `{variable}` is `{value}`, expected a number of bytes", variable = super::hub::LIMIT_VARIABLE)]
    CacheLimit {
        /// What it is.
        value: String,
    },
    /// A hub that refuses or cannot be reached, or its cache.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file that a link leads to out of the folder it was looked for in.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The system refused to read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not Parquet, or cut short, or damaged where it describes itself.
    #[error("`{}` is not a readable Parquet file: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// A file that describes more than is read.
    #[error("`{}` cannot be read: {reason}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is too much.
        reason: String,
    },
    /// A column of a type that is not known, which keeps the whole file from being read.
    #[error("column `{column}` of `{}` is of type `{of}`, which is not known: {reason}", path.display())]
    UnknownType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type as Parquet has it.
        of: String,
        /// What the reader said.
        reason: String,
    },
    /// A table in another format.
    #[error("`{}` is {what}; tables are read from Parquet", path.display())]
    NotParquet {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// Python that converts it.
        convert: Option<String>,
    },
    /// The second folder of pictures does not exist, or is not a folder.
    #[error("{}: no folder `{}`", asker.image_root(), path.display())]
    ImageRoot {
        /// What names it.
        asker: Asker,
        /// What was named.
        path: PathBuf,
    },
    /// A source that cannot be found or read, with the key that names it.
    #[error("`{key}`: {fault}")]
    Named {
        /// Such as `data.0.eval`.
        key: String,
        /// What is wrong with it.
        fault: Box<DataError>,
    },
    /// What is wrong with a table that the command line names: where a recipe has keys, there are options.
    #[error(transparent)]
    OnCommandLine(Box<DataError>),
    /// A page that unpacks to more than the recipe allows.
    #[error(
        "row group {row_group} of `{}`: a {}page of column `{}` claims to unpack from {packed_bytes} bytes to {bytes}, and \
         `data_limits.max_page_bytes` allows {limit_bytes}",
        path.display(), if *is_dictionary { "dictionary " } else { "" }, cut(column)
    )]
    PageLimit {
        /// The file.
        path: PathBuf,
        /// Its row group, from 0.
        row_group: usize,
        /// The column, with the fields on the way to its values.
        column: String,
        /// Whether it holds the column's different values, which its other pages number.
        is_dictionary: bool,
        /// The page's size in the file.
        packed_bytes: u64,
        /// What it would take in memory.
        bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
    /// A row that lies in pages that together take more than the recipe allows.
    #[error(
        "row group {row_group} of `{}`: a single row lies in pages that unpack to some {bytes} bytes together, from {packed_bytes} \
         of the file or less, and `data_limits.max_page_bytes` allows {limit_bytes}",
        path.display()
    )]
    RowLimit {
        /// The file.
        path: PathBuf,
        /// Its row group, from 0.
        row_group: usize,
        /// The size of the requested columns in the file.
        packed_bytes: u64,
        /// What the row would take in memory; what is in the file itself counts as a quarter of it.
        bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
    /// More values or pages in a column of a row group than are read.
    #[error(
        "row group {row_group} of `{}`: column `{}` claims {count} {what} or more, and at most {limit} are read of a row group",
        path.display(), cut(column)
    )]
    ValueLimit {
        /// The file.
        path: PathBuf,
        /// Its row group, from 0.
        row_group: usize,
        /// The column, with the fields on the way to its values.
        column: String,
        /// `values` or `pages`.
        what: &'static str,
        /// How many it claims at least.
        count: u64,
        /// How many are read.
        limit: u64,
    },
    /// A row group that cannot be decoded.
    #[error("row group {row_group} of `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its row group, from 0.
        row_group: usize,
        /// What the reader found.
        reason: String,
    },
    /// Columns that are missing or of another type than asked for.
    #[error("`{}`: {}", path.display(), join_faults(faults))]
    Columns {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<ColumnFault>,
        /// What leads to columns that open.
        hints: Vec<String>,
    },
    /// A column that only some of the files have, or have as it is read.
    #[error("column `{column}` is in `{}` but not in `{}`", with.display(), without.display())]
    FilesDiffer {
        /// The column.
        column: String,
        /// A file that has it.
        with: PathBuf,
        /// A file that has it not.
        without: PathBuf,
    },
    /// Labels that are numbers, with names in only some of the files.
    #[error(
        "the numbers of `{column}` have names (ClassLabel) in `{}`, but none in `{}`: the same label would be two",
        named.display(), nameless.display()
    )]
    NamesDiffer {
        /// The column.
        column: String,
        /// A file that has them.
        named: PathBuf,
        /// A file that has them not.
        nameless: PathBuf,
    },
    /// More rows are bad than the recipe allows.
    #[error("{bad} of {rows} rows cannot be used, more than `max_bad_rows` = {limit} allows{}", join_rows(first))]
    TooManyBadRows {
        /// Rows that cannot be used.
        bad: usize,
        /// Rows read.
        rows: usize,
        /// What is allowed.
        limit: BadRowLimit,
        /// The first of them, at most [`FIRST_REJECTED`].
        first: Vec<RejectedRow>,
    },
    /// Not one row can be used.
    #[error("none of the {rows} rows can be used{}", join_rows(first))]
    NoAcceptedRows {
        /// Rows read.
        rows: usize,
        /// The first of them, at most [`FIRST_REJECTED`].
        first: Vec<RejectedRow>,
    },
    /// A row that was good when the table was scanned and is not any more.
    #[error("{id} cannot be used any more: {reason}")]
    RowChanged {
        /// The row.
        id: RowId,
        /// What is wrong with it now.
        reason: String,
    },
    /// A place to go on from that the table does not have.
    #[error("row {index} of an epoch does not exist, an epoch has {rows} rows")]
    NoPosition {
        /// Index in the epoch, from 0.
        index: usize,
        /// Rows of an epoch.
        rows: usize,
    },
    /// A file or folder that cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

fn join_faults(faults: &[ColumnFault]) -> String {
    faults.iter().map(ColumnFault::to_string).collect::<Vec<_>>().join("; ")
}

fn join_rows(rows: &[RejectedRow]) -> String {
    rows.iter().fold(String::new(), |mut text, row| {
        let _ = write!(text, "\n  {row}");
        text
    })
}

impl Diagnose for DataError {
    fn fault(&self) -> Fault {
        match self {
            DataError::Output(e) => e.fault(),
            DataError::Hub(e) => e.fault(),
            DataError::Input(e) => e.fault(),
            DataError::Named { fault, .. } | DataError::OnCommandLine(fault) => fault.fault(),
            DataError::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidFilename => Fault::Input,
                _ if is_link_loop(source) => Fault::Input,
                _ => Fault::Internal,
            },
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            DataError::NotFound { .. } | DataError::NoMatch { .. } => not_found_hints("data.0.train", self),
            DataError::Named { key, fault } => match **fault {
                DataError::NotFound { .. } | DataError::NoMatch { .. } => not_found_hints(key, fault),
                _ => fault.hints(),
            },
            DataError::NotParquet { convert: None, .. } => {
                vec!["name a Parquet file in its place: pandas and `datasets` write one with `to_parquet`".into()]
            }
            DataError::NotParquet { convert: Some(python), .. } => vec![format!("convert it: python3 -c \"{python}\"")],
            DataError::ImageRoot { asker: Asker::Recipe, .. } => {
                vec!["`image_root` is relative to the recipe's folder".into()]
            }
            DataError::ImageRoot { asker: Asker::Command, .. } => {
                vec!["`--image-root` is relative to the current folder".into()]
            }
            DataError::OnCommandLine(fault) => fault.hints_of_options(),
            DataError::PageLimit { bytes, is_dictionary, .. } => vec![
                format!("if you trust the file and have the memory: `data_limits.max_page_bytes={bytes}`"),
                match is_dictionary {
                    false => "or write it again with smaller pages: `data_page_size=1 << 20` of pyarrow's `write_table`, `row_group_size` of others".into(),
                    true => "or write it again without a dictionary: `use_dictionary=False` of pyarrow's `write_table`; others with smaller row groups".into(),
                },
            ],
            DataError::RowLimit { bytes, .. } => vec![
                format!("if you trust the file and have the memory: `data_limits.max_page_bytes={bytes}`"),
                "or write it again with smaller pages, and without columns that are not needed".into(),
            ],
            DataError::UnknownType { column, .. } => vec![format!(
                "write the file again without `{column}`, or with it as another type, such as a string"
            )],
            DataError::ValueLimit { .. } => {
                vec!["write the file again with smaller row groups: `row_group_size=10000` of pyarrow's `write_table`".into()]
            }
            DataError::EmptyFolder { .. } => {
                vec!["give a `.parquet` file, a glob, or a folder that holds such files".into()]
            }
            DataError::NoSplit { .. } => vec!["name the files with a glob, such as `folder/test-*.parquet`".into()],
            DataError::NoHubFiles { .. } => vec![
                "the hub keeps most other data sets as Parquet, too, under a revision of its own: `hf://datasets/owner/name@refs/convert/parquet`".into(),
            ],
            DataError::CacheLimit { .. } => vec!["for example 20000000000; without the variable it is 20 GiB".into()],
            DataError::Source { .. } => vec![
                "a table is a Parquet file, a glob such as `rows-*.parquet`, a folder, `hf://datasets/owner/name/...` or \
                 `synth:DOMAIN?rows=N`"
                    .into(),
            ],
            DataError::Io { source, .. } => vec![match source.kind() {
                io::ErrorKind::PermissionDenied => "let this user read it, and look into the folders on the way".into(),
                _ if is_link_loop(source) => "links lead from one to the other there: name the file itself".into(),
                _ => "see whether it is there and can be read, such as with `ls -l`".into(),
            }],
            DataError::NoPosition { .. } => {
                vec!["the table has changed since: bring back its files of before, or start a new run".into()]
            }
            DataError::Dangling { .. } => vec![
                "fetch the file that it leads to again, or remove the link if its rows are not wanted".into(),
            ],
            DataError::Unreadable { .. } => {
                vec!["is the file whole? a download that was cut short or a git-lfs pointer looks like this".into()]
            }
            DataError::Description { .. } => vec![
                "write it again with the columns that are needed: `pyarrow.parquet.read_table(file, columns=[...])`, then `write_table`".into(),
            ],
            DataError::Damaged { .. } => vec!["copy or download the file again".into()],
            DataError::Columns { hints, .. } => hints.clone(),
            DataError::FilesDiffer { .. } => vec!["files of one table need the same columns".into()],
            DataError::NamesDiffer { .. } => vec![
                "write all files with the same features, such as with `cast_column` of the `datasets` library, or the labels as texts".into(),
            ],
            DataError::TooManyBadRows { first, .. } => {
                let of_pictures = first.iter().any(has_no_file).then(|| IMAGE_ROOT.to_owned());
                let others = [
                    "`janus data check` lists every row that cannot be used, with its reason",
                    "`data_limits.max_bad_rows` allows more: a share such as 0.05, or a count",
                ];
                of_pictures.into_iter().chain(others.map(str::to_owned)).collect()
            }
            DataError::NoAcceptedRows { rows: 0, .. } => vec!["the files hold no rows at all".into()],
            DataError::NoAcceptedRows { first, .. } if first.iter().any(has_no_file) => vec![IMAGE_ROOT.into()],
            DataError::NoAcceptedRows { .. } => vec!["does `columns` in the recipe name the right columns?".into()],
            DataError::RowChanged { .. } => {
                vec![
                    "was a file changed during the run? tables beyond 10000 rows are not decoded before the first step"
                        .into(),
                ]
            }
            DataError::Output(e) => e.hints(),
            DataError::Hub(HubError::TooLarge { is_told: false, got_bytes, .. }) => vec![format!(
                "if you trust the repository and have the room: `data_limits.max_download_bytes=` more than {got_bytes}"
            )],
            DataError::Hub(e) => e.hints(),
            DataError::Input(e) => e.hints(),
        }
    }
}

impl DataError {
    /// Hints where no recipe names the table.
    fn hints_of_options(&self) -> Vec<String> {
        match self {
            DataError::NotFound { .. } | DataError::NoMatch { .. } => {
                let mut hints = not_found_hints("", self);
                hints.splice(..2, ["paths on the command line are relative to the current folder".to_owned()]);
                hints
            }
            // There is a variable, too.
            DataError::Hub(e) => e.hints(),
            DataError::PageLimit { .. } => {
                let mut hints = self.hints();
                if let Some(first) = hints.first_mut() {
                    *first = format!("name the table in a recipe, where {first}");
                }
                hints
            }
            DataError::NoAcceptedRows { rows: 0, .. } => self.hints(),
            DataError::NoAcceptedRows { first, .. } if first.iter().any(has_no_file) => vec![
                "paths of pictures start at the table's folder; `--image-root FOLDER` names another one, relative to the current folder"
                    .into(),
            ],
            DataError::NoAcceptedRows { .. } => vec!["do `--column ROLE=COLUMN` name the right columns?".into()],
            _ => self.hints(),
        }
    }
}

/// Whether links lead to each other, and to no file.
fn is_link_loop(error: &io::Error) -> bool {
    #[cfg(unix)]
    let code = Some(libc::ELOOP);
    #[cfg(not(unix))]
    let code = None;
    error.raw_os_error().is_some_and(|found| Some(found) == code)
}

/// What to set where paths of pictures lead nowhere.
const IMAGE_ROOT: &str = "paths of pictures start at the table's folder; `image_root` in `[[data]]` names another folder, such as \
                          `image_root = \".\"` for the recipe's";

fn has_no_file(row: &RejectedRow) -> bool {
    matches!(row.fault, RowFault::NoImageFile { .. })
}

/// Columns that a message names.
const NAMED_COLUMNS: usize = 30;

fn not_found_hints(key: &str, fault: &DataError) -> Vec<String> {
    let mut hints = vec![
        format!("a recipe's opening comment says where its data is to be had; `{key}=...` names another place"),
        "paths in a recipe are relative to the recipe's folder, on the command line to the current folder".into(),
    ];
    if matches!(fault, DataError::NoMatch { pattern } if pattern.contains('[')) {
        hints.push("`[ab]` in a pattern stands for one of the letters; `[[]` is the bracket itself".into());
    }
    hints
}

impl fmt::Display for ColumnFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnFault::Missing { role, column, columns } => {
                write!(f, "no column `{column}` (for {role}), there are ")?;
                if columns.is_empty() {
                    return f.write_str("none");
                }
                for (i, name) in columns.iter().take(NAMED_COLUMNS).enumerate() {
                    write!(f, "{}`{}`", if i == 0 { "" } else { ", " }, cut(name))?;
                }
                match columns.len().saturating_sub(NAMED_COLUMNS) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            ColumnFault::Repeated { role, column, count } => {
                write!(f, "there are {count} columns `{column}` (for {role}), expected one")
            }
            ColumnFault::Type { role, column, expected, got } => {
                write!(f, "column `{column}` (for {role}) has type `{got}`, expected {expected}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_table_has_a_hint() {
        let path = || PathBuf::from("rows.parquet");
        let io = |kind: io::ErrorKind| DataError::Io { path: path(), source: kind.into() };
        let named = |fault| DataError::Named { key: "data.0.eval".into(), fault: Box::new(fault) };
        let bad = || RejectedRow {
            id: RowId { file: path().into(), row_group: 0, row: 0 },
            fault: RowFault::NoImageFile { column: "image".into(), path: "a.png".into(), reason: "gone".into() },
        };
        let faults = [
            DataError::NotFound { path: path() },
            DataError::Dangling { path: path() },
            DataError::NoMatch { pattern: "[ab].parquet".into() },
            DataError::Source { spec: "s3://bucket".into(), reason: "no".into() },
            DataError::NotParquet { path: path(), what: "an SQLite database", convert: None },
            DataError::Unreadable { path: path(), reason: "no".into() },
            DataError::UnknownType { path: path(), column: "a".into(), of: "INT32".into(), reason: "no".into() },
            DataError::NoPosition { index: 3, rows: 2 },
            DataError::TooManyBadRows { bad: 1, rows: 2, limit: BadRowLimit::Count(0), first: vec![bad()] },
            DataError::NoAcceptedRows { rows: 2, first: Vec::new() },
            DataError::NoAcceptedRows { rows: 2, first: vec![bad()] },
            io(io::ErrorKind::PermissionDenied),
            io(io::ErrorKind::IsADirectory),
        ];
        for fault in faults {
            assert!(!fault.hints().is_empty(), "{fault}");
            let named = named(fault);
            assert!(!named.hints().is_empty(), "{named}");
            let DataError::Named { fault, .. } = named else { unreachable!("just made") };
            let given = DataError::OnCommandLine(fault);
            let hints = given.hints();
            assert!(!hints.is_empty(), "{given}");
        }
        for (fault, expected) in [
            (DataError::NotFound { path: path() }, "relative to the current folder"),
            (DataError::NoAcceptedRows { rows: 2, first: vec![bad()] }, "`--image-root FOLDER`"),
        ] {
            let hints = DataError::OnCommandLine(fault.into()).hints();
            assert!(hints.len() == 1 && hints[0].contains(expected), "{hints:?}");
        }
    }
}
