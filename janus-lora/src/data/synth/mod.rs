//! Small data sets drawn on the spot, for a first run without any data: `synth:DOMAIN?key=value&key=value`.
//!
//! | key | default | meaning |
//! | --- | --- | --- |
//! | `rows` | 512 | number of rows |
//! | `seed` | 1 | which data set; the same seed gives the same bytes |
//! | `size` | 64 | width and height of the images in pixels |
//! | `split` | `train` | `train` or `eval`: rows of one never come in the other |
//!
//! | domain | shows | columns |
//! | --- | --- | --- |
//! | `inspection` | metal plates with a part and a defect | `image`, `mask`, `boxes`, `box_labels`, `label`, `severity`, `advice`, `question`, `answer`, `caption` |
//! | `medical` | chests with nodules in the lungs | `image`, `mask`, `boxes`, `box_labels`, `label`, `report`, `question`, `answer`, `caption` |
//! | `creative` | products, and the same in a style | `image`, `source`, `prompt`, `instruction`, `caption`, `copy`, `palette`, `label`, `question`, `answer` |
//! | `world` | parts of many kinds on a ground: what a base learns from | `image`, `caption`, `label`, `about`, `question`, `answer`, `messages`, `text_question`, `text_answer` |
//!
//! Some combinations of what a row shows are held out: they come in `eval` and never in `train`, which has every value
//! for itself. In `inspection` they are triples of the part's colour and shape and the label, in `creative` of product,
//! colour and style, in `world` of kind, colour and material (every seventh one), in `medical` pairs of a nodule's size and place.
//!
//! The file is as the Hugging Face `datasets` library writes one: images as `struct<bytes, path>`, boxes as lists of left,
//! top, right and bottom in pixels, the features in the schema's metadata, snappy, row groups of 100.

mod creative;
mod draw;
mod inspection;
mod medical;
mod products;
#[cfg(test)]
mod tests;
mod world;
mod world_parts;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;

use super::error::DataError;
use super::random::Random;
use crate::cache::seal;
use crate::nearest::nearest;

/// Raised when a drawing changes, so that no older file of the cache passes for a new one.
pub(crate) const VERSION: u32 = 7;

const PREFIX: &str = "synth:";
const KEYS: [&str; 4] = ["rows", "seed", "size", "split"];
const MAX_ROWS: u64 = 1_000_000;
const MIN_SIZE: u64 = 32;
const MAX_SIZE: u64 = 1024;

/// Numbers of streams: rows of the two splits never share one.
const TRAIN_STREAM: u64 = 0x0074_7261_696E;
const EVAL_STREAM: u64 = 0x6576_616C;

/// Whether a source is a `synth:` spec.
pub fn is_spec(source: &str) -> bool {
    source.starts_with(PREFIX)
}

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Metal plates with a part and a defect.
    Inspection,
    /// Chests with nodules in the lungs.
    Medical,
    /// Products, and the same in a style.
    Creative,
    /// Parts of many kinds on a ground.
    World,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ColumnType {
    Image,
    Text,
    Boxes,
    Texts,
    Messages,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    /// A PNG file.
    Image(Vec<u8>),
    /// Never empty.
    Text(String),
    /// Left, top, right, bottom in pixels; the latter two are exclusive.
    Boxes(Vec<[f32; 4]>),
    Texts(Vec<String>),
    /// Questions with their answers.
    Messages(Vec<(String, String)>),
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Cell::Text(text.into())
    }
}

impl Domain {
    const ALL: [Domain; 4] = [Domain::Inspection, Domain::Medical, Domain::Creative, Domain::World];

    /// The names that specs give domains.
    pub const NAMES: [&'static str; 4] = ["inspection", "medical", "creative", "world"];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn columns(self) -> &'static [(&'static str, ColumnType)] {
        match self {
            Domain::Inspection => &inspection::COLUMNS,
            Domain::Medical => &medical::COLUMNS,
            Domain::Creative => &creative::COLUMNS,
            Domain::World => &world::COLUMNS,
        }
    }
}

/// Numbers below three bounds, each triple as likely; for train none that is held out.
fn combination(bounds: [usize; 3], eval: bool, random: &mut Random) -> [usize; 3] {
    loop {
        let drawn = bounds.map(|bound| random.below(bound));
        if eval || !is_held_out(drawn) {
            return drawn;
        }
    }
}

/// Every seventh triple, spread over all values.
fn is_held_out([first, second, third]: [usize; 3]) -> bool {
    (first + 2 * second + third).is_multiple_of(7)
}

/// What to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthSpec {
    domain: Domain,
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
        let (name, query) = body.split_once('?').unwrap_or((body, ""));
        let Some(domain) = Domain::ALL.into_iter().find(|domain| domain.name() == name) else {
            return Err(refuse(format!("unknown domain `{name}`, {}", legal("the domains are", name, &Domain::NAMES))));
        };
        let mut parsed = SynthSpec { domain, rows: 512, seed: 1, size: 64, eval: false };
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
    match nearest(got, names.iter().copied()) {
        Some(name) => format!("{opening} {list}; did you mean `{name}`?"),
        None => format!("{opening} {list}"),
    }
}

/// The spec in full, every key named.
impl fmt::Display for SynthSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SynthSpec { domain, rows, seed, size, .. } = self;
        write!(f, "{PREFIX}{}?rows={rows}&seed={seed}&size={size}&split={}", domain.name(), self.split())
    }
}

impl SynthSpec {
    /// Name of the file that holds what the spec draws.
    pub fn file_name(&self) -> String {
        let SynthSpec { domain, rows, seed, size, .. } = self;
        format!("{}-v{VERSION}-{}-rows{rows}-seed{seed}-size{size}.parquet", domain.name(), self.split())
    }

    /// How many rows it draws.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Draws the rows into a Parquet file, which is written whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        write::write(self, path)
    }

    fn split(&self) -> &'static str {
        if self.eval { "eval" } else { "train" }
    }

    /// A row: a cell for each column of the domain.
    fn draw(&self, row: u32) -> Result<Vec<Cell>, String> {
        let stream = if self.eval { EVAL_STREAM } else { TRAIN_STREAM };
        let mut random = Random::new(self.seed, &[stream, u64::from(row)]);
        let draw = match self.domain {
            Domain::Inspection => inspection::draw,
            Domain::Medical => medical::draw,
            Domain::Creative => creative::draw,
            Domain::World => world::draw,
        };
        draw(self.eval, self.size, &mut random)
    }
}

/// All texts of a domain's first rows to train on: what a tokenizer learns its merges from.
///
/// # Errors
/// A domain that is none.
pub fn texts(domain: &str, rows: u32, seed: u64) -> Result<Vec<String>, DataError> {
    let spec: SynthSpec = format!("{PREFIX}{domain}?rows={rows}&seed={seed}&size={MIN_SIZE}").parse()?;
    let drawn = (0..rows).into_par_iter().map(|row| spec.draw(row)).collect::<Result<Vec<_>, _>>();
    let drawn = drawn.map_err(|reason| DataError::Source { spec: spec.to_string(), reason })?;
    let of_cell = |cell: Cell| match cell {
        Cell::Text(text) => vec![text],
        Cell::Texts(texts) => texts,
        Cell::Messages(turns) => turns.into_iter().flat_map(|(question, answer)| [question, answer]).collect(),
        Cell::Image(_) | Cell::Boxes(_) => Vec::new(),
    };
    Ok(drawn.into_iter().flatten().flat_map(of_cell).collect())
}

/// Draws what a spec asks for into a Parquet file in `folder`, unless it is there already as it was drawn; returns its path.
///
/// # Errors
/// The spec is not understood (the legal names are in the message), or the file cannot be written.
pub fn synthesize(spec: &str, folder: &Path) -> Result<PathBuf, DataError> {
    let parsed: SynthSpec = spec.parse()?;
    let path = folder.join(parsed.file_name());
    if !seal::holds(&path) {
        seal::require_own_hand(&path)?;
        parsed.write(&path)?;
        seal::seal(&path, &path)?;
    }
    Ok(path)
}
