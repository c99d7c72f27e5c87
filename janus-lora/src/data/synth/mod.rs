//! Small data sets drawn on the spot, for a first run without any data: `synth:DOMAIN?key=value&key=value`.
//!
//! | key | default | meaning |
//! | --- | --- | --- |
//! | `rows` | 512 | number of rows |
//! | `seed` | 1 | which data set; the same seed gives the same bytes |
//! | `size` | 64 | width and height of the images in pixels |
//! | `split` | `train` | `train` or `eval`: rows of one never come in the other |
//!
//! The file is as the Hugging Face `datasets` library writes one: images as `struct<bytes, path>`, the features in the
//! schema's metadata, snappy, row groups of 100.

mod draw;
mod inspection;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::DataError;
use super::schema::nearest;

/// Raised when a drawing changes, so that no older file of the cache passes for a new one.
const VERSION: u32 = 1;

const PREFIX: &str = "synth:";
const DOMAINS: [&str; 1] = ["inspection"];
const KEYS: [&str; 4] = ["rows", "seed", "size", "split"];
const MAX_ROWS: u64 = 1_000_000;
const MIN_SIZE: u64 = 32;
const MAX_SIZE: u64 = 1024;

/// Whether a source is a `synth:` spec.
pub fn is_spec(source: &str) -> bool {
    source.starts_with(PREFIX)
}

/// One drawn row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drawn {
    /// A PNG file.
    pub(crate) image: Vec<u8>,
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) caption: String,
    pub(crate) label: &'static str,
}

/// What to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthSpec {
    rows: u32,
    seed: u64,
    /// Width and height of the images in pixels.
    size: u32,
    eval: bool,
}

impl FromStr for SynthSpec {
    type Err = DataError;

    fn from_str(spec: &str) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Source { spec: spec.into(), reason };
        let body = spec.strip_prefix(PREFIX).ok_or_else(|| refuse(format!("it does not start with `{PREFIX}`")))?;
        let (domain, query) = body.split_once('?').unwrap_or((body, ""));
        if !DOMAINS.contains(&domain) {
            return Err(refuse(format!("unknown domain `{domain}`, {}", legal("the domains are", domain, &DOMAINS))));
        }
        let mut parsed = SynthSpec { rows: 512, seed: 1, size: 64, eval: false };
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| refuse(format!("`{pair}` is not `key=value`")))?;
            if seen.contains(&key) {
                return Err(refuse(format!("`{key}` is given twice")));
            }
            seen.push(key);
            let number = |least: u64, most: u64| match value.parse::<u64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(number),
                _ => Err(refuse(format!("`{key}` is `{value}`, expected a whole number from {least} to {most}"))),
            };
            match key {
                "rows" => parsed.rows = number(1, MAX_ROWS)? as u32,
                "seed" => parsed.seed = number(0, u64::MAX)?,
                "size" => parsed.size = number(MIN_SIZE, MAX_SIZE)? as u32,
                "split" => {
                    parsed.eval = match value {
                        "train" => false,
                        "eval" => true,
                        _ => return Err(refuse(format!("`split` is `{value}`, expected `train` or `eval`"))),
                    }
                }
                _ => return Err(refuse(format!("unknown key `{key}`, {}", legal("the keys are", key, &KEYS)))),
            }
        }
        Ok(parsed)
    }
}

fn legal(opening: &str, got: &str, names: &[&str]) -> String {
    let list = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    match nearest(got, &names) {
        Some(name) => format!("{opening} {list}; did you mean `{name}`?"),
        None => format!("{opening} {list}"),
    }
}

/// The spec in full, every key named.
impl fmt::Display for SynthSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SynthSpec { rows, seed, size, eval } = self;
        let split = if *eval { "eval" } else { "train" };
        write!(f, "{PREFIX}inspection?rows={rows}&seed={seed}&size={size}&split={split}")
    }
}

impl SynthSpec {
    /// Name of the file that holds what the spec draws.
    pub fn file_name(&self) -> String {
        let SynthSpec { rows, seed, size, eval } = self;
        let split = if *eval { "eval" } else { "train" };
        format!("inspection-v{VERSION}-{split}-rows{rows}-seed{seed}-size{size}.parquet")
    }

    fn draw(&self, row: u32) -> Result<Drawn, String> {
        inspection::draw(self.seed, self.eval, row, self.size)
    }
}

/// Draws what a spec asks for into a Parquet file in `folder`, unless it is there already; returns its path.
///
/// # Errors
/// The spec is not understood (the legal names are in the message), or the file cannot be written.
pub fn synthesize(spec: &str, folder: &Path) -> Result<PathBuf, DataError> {
    let parsed: SynthSpec = spec.parse()?;
    let path = folder.join(parsed.file_name());
    // Files are written whole or not at all, so one that is there is done.
    if !path.is_file() {
        write::write(&parsed, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::testing::{accept_all, requests, scan_all};
    use crate::data::{ColumnKind, RowStream, Table};
    use std::collections::HashSet;
    use std::sync::Arc;

    #[test]
    fn specs_have_defaults_and_legal_names() {
        let parse = |text: &str| text.parse::<SynthSpec>();
        let spec = parse("synth:inspection").unwrap();
        assert_eq!(spec.to_string(), "synth:inspection?rows=512&seed=1&size=64&split=train");
        let other = parse("synth:inspection?seed=9&split=eval&size=96&rows=3").unwrap();
        assert_eq!(other, SynthSpec { rows: 3, seed: 9, size: 96, eval: true });
        assert_eq!(parse(&other.to_string()).unwrap(), other);
        for (wrong, says) in [
            ("synth:medical", "unknown domain `medical`, the domains are `inspection`"),
            ("synth:inspection?row=3", "the keys are `rows`, `seed`, `size`, `split`; did you mean `rows`?"),
            ("synth:inspection?rows=0", "expected a whole number from 1 to"),
            ("synth:inspection?rows=99999999999", "expected a whole number from 1 to"),
            ("synth:inspection?size=8", "expected a whole number from 32 to 1024"),
            ("synth:inspection?seed=-1", "`seed` is `-1`"),
            ("synth:inspection?split=test", "expected `train` or `eval`"),
            ("synth:inspection?rows", "`rows` is not `key=value`"),
            ("synth:inspection?rows=1&rows=2", "given twice"),
        ] {
            let message = parse(wrong).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_splits_share_no_image() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes = |spec: &str, folder: &Path| std::fs::read(synthesize(spec, folder).unwrap()).unwrap();
        let spec = "synth:inspection?rows=130&size=32";
        assert_eq!(bytes(spec, a.path()), bytes(spec, b.path()));
        assert_ne!(bytes(spec, a.path()), bytes(&format!("{spec}&seed=2"), a.path()));

        let images = |spec: &str| {
            let parsed: SynthSpec = spec.parse().unwrap();
            (0..130).map(|row| parsed.draw(row).unwrap().image).collect::<HashSet<_>>()
        };
        let (train, eval) = (images(spec), images(&format!("{spec}&split=eval")));
        assert_eq!((train.len(), eval.len()), (130, 130), "no image twice");
        assert!(train.is_disjoint(&eval));
    }

    #[test]
    fn the_file_reads_back_as_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = synthesize("synth:inspection?rows=230&size=32", folder.path()).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(synthesize("synth:inspection?size=32&rows=230", folder.path()).unwrap(), path);
        assert_eq!(
            std::fs::metadata(&path).unwrap().modified().unwrap(),
            before,
            "a file that is there is not drawn again"
        );

        let mut requests = requests(&["question", "answer", "caption", "label"]);
        requests.insert(0, crate::data::ColumnRequest::required("image", "image", ColumnKind::Image));
        let table = Table::open(&[path], &requests).unwrap();
        assert_eq!(table.files().next().map(|(_, groups, rows)| (groups, rows)), Some((3, 230)));
        assert_eq!(table.columns()[0], ("image".into(), "struct<bytes: binary, path: string>".into()));
        let index = scan_all(&table, &accept_all);
        assert_eq!((index.accepted_rows(), index.rejected_rows()), (230, 0));

        let (table, index) = (Arc::new(table), Arc::new(index));
        let rows: Vec<_> = RowStream::new(table, index, 0, false).unwrap().take(230).map(Result::unwrap).collect();
        let image = image::load_from_memory(&rows[0].image("image").unwrap().bytes).unwrap();
        assert_eq!((image.width(), image.height()), (32, 32));
        let labels: HashSet<_> = rows.iter().map(|row| row.text("label").unwrap()).collect();
        assert_eq!(labels.len(), 4);
        let questions: HashSet<_> = rows.iter().map(|row| row.text("question").unwrap()).collect();
        assert_eq!(questions.len(), 5);
    }
}
