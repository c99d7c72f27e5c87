//! Answers to and pictures of the first rows to evaluate, drawn alike each time: what the figures stand for.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use janus_core::Janus;
use janus_core::output::write_file;
use janus_core::pass::Pass;
use janus_core::sample::generate_codes;
use serde::{Deserialize, Serialize};

use super::picture::{png, thumbnail};
use super::told::told;
use crate::base::Base;
use crate::beginning::beginning;
use crate::data::Row;
use crate::error::Result;
use crate::eval::{answer, code_prompts, pictures};
use crate::heads::Heads;
use crate::status::Status;
use crate::tasks::Task;
use crate::train::tables::RecipeTable;

/// Where samples lie in a run folder.
pub(crate) const FOLDER: &str = "samples";
/// Rows of a table that are answered.
const ANSWERS: usize = 4;
/// Rows of a table that are drawn: a picture takes hundreds of passes.
const PICTURES: usize = 2;
/// Tokens of an answer at most.
const MAX_ANSWER_TOKENS: usize = 256;
/// Tokens an answer may have beyond the expected one's.
const SPARE_TOKENS: usize = 8;
/// Characters of a text that are kept.
const MAX_CHARACTERS: usize = 2_000;
/// Longer side of what is kept of a row's own picture, in pixels.
const ROW_SIDE: u32 = 256;

/// What a model made of one row. Files are named by their path in the run folder, parts joined by `/`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The table's name.
    pub table: String,
    /// Its task.
    pub task: String,
    /// Which row to evaluate, from 0.
    pub row: usize,
    /// What was asked.
    pub prompt: String,
    /// The row's picture: what was asked about, or what a drawing should show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The answer that the row holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The model's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The model's picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
}

/// A model as it stands.
#[derive(Debug, Clone, Copy)]
pub struct Stand<'a> {
    /// The model.
    pub model: &'a Janus,
    /// Its base.
    pub base: &'a Base,
    /// The heads beside it.
    pub heads: &'a Heads,
    /// Steps done.
    pub step: u64,
}

/// The rows that are sampled.
#[derive(Debug)]
pub struct Sampler {
    seed: u64,
    tables: Vec<TableRows>,
}

#[derive(Debug)]
struct TableRows {
    name: String,
    kind: String,
    task: Arc<dyn Task>,
    rows: Vec<Row>,
}

impl Sampler {
    /// Reads the first rows to evaluate of every table that has some.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn new(tables: &[RecipeTable], seed: u64) -> Result<Self> {
        let mut sampled = Vec::new();
        for table in tables {
            let Some(source) = &table.eval else { continue };
            sampled.push(TableRows {
                name: table.section.name.clone(),
                kind: table.section.task.to_string(),
                task: table.task.clone(),
                rows: source.rows()?.take(ANSWERS).collect::<Result<_>>()?,
            });
        }
        Ok(Self { seed, tables: sampled })
    }

    /// Whether there is nothing to sample.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Samples every row of the tables that are wanted, by name; pictures and a list go to `samples/step-N/` of the run folder,
    /// the rows' own pictures to `samples/rows/`.
    ///
    /// # Errors
    /// Rows that make no prompt, or files that cannot be written.
    pub fn sample(
        &self,
        stand: &Stand<'_>,
        folder: &Path,
        is_wanted: &dyn Fn(&str) -> bool,
        status: &dyn Status,
    ) -> Result<Vec<Sample>> {
        let Stand { model, base, heads, step } = *stand;
        let mut samples = Vec::new();
        let bar = status.items("sampling", self.tables.len() as u64);
        for (number, table) in self.tables.iter().enumerate().filter(|(_, table)| is_wanted(&table.name)) {
            samples.extend(table.answers(model, base)?);
            let write = |row: usize, picture: &RgbImage| -> Result<String> {
                let (name, bytes) = (format!("{FOLDER}/step-{step}/{number}-{row}.png"), png(picture)?);
                write_file(&folder.join(&name), |file| file.write_all(&bytes))?;
                Ok(name)
            };
            samples.extend(table.told(model, base, heads, write)?);
            samples.extend(table.pictures(model, base, self.seed, write)?);
            for sample in samples.iter_mut().filter(|sample| sample.table == table.name) {
                sample.image = table.row_picture(sample.row, folder, number)?;
            }
            bar.advance(1);
        }
        bar.finish();
        let list = serde_json::to_vec_pretty(&samples).expect("samples are plain data");
        write_file(&folder.join(format!("{FOLDER}/step-{step}/samples.json")), |file| file.write_all(&list))?;
        Ok(samples)
    }
}

impl TableRows {
    fn sample(&self, row: usize) -> Sample {
        let prompt = self.rows.get(row).map(asked).unwrap_or_default();
        Sample {
            table: self.name.clone(),
            task: self.kind.clone(),
            row,
            prompt: beginning(&prompt, MAX_CHARACTERS),
            ..Sample::default()
        }
    }

    fn answers(&self, model: &Janus, base: &Base) -> Result<Vec<Sample>> {
        let (mut numbers, mut questions) = (Vec::new(), Vec::new());
        for (number, row) in self.rows.iter().enumerate() {
            if let Some(question) = self.task.question(base, row)? {
                numbers.push(number);
                questions.push(question);
            }
        }
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let mut longest = 0;
        for question in &questions {
            longest = longest.max(base.tokenizer().encode_plain(&question.answer, "answer")?.len());
        }
        let limit = (longest + SPARE_TOKENS).min(MAX_ANSWER_TOKENS);
        let answers = answer(model, base, &questions, limit, 0.0, 0)?;
        let made = numbers.into_iter().zip(&questions).zip(answers);
        Ok(made
            .map(|((number, question), answer)| Sample {
                expected: Some(beginning(&question.answer, MAX_CHARACTERS)),
                answer: Some(beginning(&answer.text, MAX_CHARACTERS)),
                ..self.sample(number)
            })
            .collect())
    }

    /// What the table's head tells of each row.
    fn told(
        &self,
        model: &Janus,
        base: &Base,
        heads: &Heads,
        write: impl Fn(usize, &RgbImage) -> Result<String>,
    ) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for (number, row) in self.rows.iter().enumerate() {
            let Some(told) = told(self.task.as_ref(), &self.name, row, model, base, heads)? else { continue };
            let picture = told.overlay.map(|overlay| write(number, &overlay)).transpose()?;
            let (expected, answer) =
                (Some(beginning(&told.expected, MAX_CHARACTERS)), Some(beginning(&told.answer, MAX_CHARACTERS)));
            samples.push(Sample { expected, answer, picture, ..self.sample(number) });
        }
        Ok(samples)
    }

    fn pictures(
        &self,
        model: &Janus,
        base: &Base,
        seed: u64,
        write: impl Fn(usize, &RgbImage) -> Result<String>,
    ) -> Result<Vec<Sample>> {
        let (mut numbers, mut drawings) = (Vec::new(), Vec::new());
        for (number, row) in self.rows.iter().enumerate().take(PICTURES) {
            if let Some(drawing) = self.task.drawing(base, row)? {
                numbers.push(number);
                drawings.push(drawing);
            }
        }
        if drawings.is_empty() {
            return Ok(Vec::new());
        }
        let prompts: Vec<_> = drawings.iter().map(|d| (d.prompt.as_slice(), d.images.as_slice())).collect();
        let prompts = code_prompts(model, base, &prompts)?;
        let options = base.drawing(seed);
        let drawn = generate_codes(model, &Pass::inference(), &prompts, &options, &mut |_| {})?;
        let mut samples = Vec::with_capacity(drawn.len());
        for (number, picture) in numbers.into_iter().zip(pictures(model, base, &drawn)?) {
            let name = write(number, &picture)?;
            samples.push(Sample { picture: Some(name), ..self.sample(number) });
        }
        Ok(samples)
    }

    /// The row's own picture, kept once.
    fn row_picture(&self, row: usize, folder: &Path, table: usize) -> Result<Option<String>> {
        let first = self.rows.get(row).and_then(|row| row.images.values().flatten().next());
        let Some(image) = first else { return Ok(None) };
        let small = thumbnail(&image.decode()?, ROW_SIDE)?;
        let name = format!("{FOLDER}/rows/{table}-{row}.{}", if small.kind == "image/png" { "png" } else { "jpg" });
        let path = folder.join(&name);
        if !path.exists() {
            write_file(&path, |file| file.write_all(&small.bytes))?;
        }
        Ok(Some(name))
    }
}

/// What a row asks, in its own words.
fn asked(row: &Row) -> String {
    let last_turn = || {
        let turns = row.messages.values().flatten();
        turns.filter(|turn| turn.role == "user").map(|turn| turn.content.as_str()).next_back()
    };
    row.text("question").or_else(|| row.text("prompt")).or_else(last_turn).unwrap_or_default().to_owned()
}
