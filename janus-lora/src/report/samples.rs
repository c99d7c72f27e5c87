//! Answers to and pictures of some rows to evaluate, the same each time: what the figures stand for.

use std::collections::BTreeSet;
use std::sync::Arc;

use image::RgbImage;
use janus_core::Janus;
use janus_core::directory::{About, Directory, Kind};
use janus_core::output::{OutputError, write_below};
use janus_core::processing::{LOSSY_REACH, decode_mask};
use serde::{Deserialize, Serialize};

use super::head_samples;
use super::picture::{png, thumbnail};
use crate::base::Base;
use crate::beginning::beginning;
use crate::data::Row;
use crate::error::Result;
use crate::heads::{HeadSample, Heads};
use crate::infer::{Answer, Engine, Kind as Asked, Limits, PictureAnswer, PictureRequest, Request, TextRequest};
use crate::recipe::{DataSection, Task as TaskName};
use crate::status::Status;
use crate::tasks::{DEFAULT_QUESTION, Drawing, Task};
use crate::train::tables::RecipeTable;

/// Rows that are looked through for some that differ.
const LOOKED_THROUGH: usize = 64;
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
    /// The picture that a drawing is made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The row's picture with the expected boxes or mask over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_picture: Option<String>,
    /// How far the answer overlaps what is expected, from 0 to 1: of boxes IoU, of masks Dice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
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
    /// What is asked of rows that ask nothing themselves.
    question: String,
    /// Rows with their numbers among those to evaluate.
    rows: Vec<(usize, Row)>,
}

impl Sampler {
    /// Reads the first rows to evaluate of every table that has some, passing over those that ask what others ask already.
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
                question: question(&table.section),
                rows: match table.section.task {
                    TaskName::Segment => {
                        by_area(source.rows()?.take(LOOKED_THROUGH), source.rows()?.take(LOOKED_THROUGH), ANSWERS)?
                    }
                    _ => apart(source.rows()?.take(LOOKED_THROUGH), ANSWERS)?,
                },
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
        folder: &Directory,
        is_wanted: &dyn Fn(&str) -> bool,
        status: &dyn Status,
    ) -> Result<Vec<Sample>> {
        let Stand { model, base, heads, step } = *stand;
        let mut samples = Vec::new();
        let bar = status.items("sampling", self.tables.len() as u64);
        for (number, table) in self.tables.iter().enumerate().filter(|(_, table)| is_wanted(&table.name)) {
            samples.extend(table.answers(model, base, heads)?);
            let write = |row: usize, picture: &RgbImage| -> Result<String> {
                let (name, bytes) = (format!("{FOLDER}/step-{step}/{number}-{row}.png"), png(picture)?);
                write_below(folder, &name, |file| file.write_all(&bytes))?;
                Ok(name)
            };
            let keep = |row: usize, picture: &RgbImage| keep_expected(folder, number, row, picture);
            samples.extend(table.of_head(model, base, heads, write, keep)?);
            samples.extend(table.pictures(model, base, heads, self.seed, write)?);
            for sample in samples.iter_mut().filter(|sample| sample.table == table.name) {
                sample.image = table.row_picture(sample.row, folder, number)?;
                sample.source = table.source_picture(sample.row, folder, number)?;
            }
            bar.advance(1);
        }
        bar.finish();
        let list = serde_json::to_vec_pretty(&samples).expect("samples are plain data");
        write_below(folder, format!("{FOLDER}/step-{step}/samples.json"), |file| file.write_all(&list))?;
        Ok(samples)
    }
}

impl TableRows {
    fn sample(&self, number: usize, row: &Row) -> Sample {
        let prompt = Some(asked(row)).filter(|asked| !asked.is_empty()).unwrap_or_else(|| self.question.clone());
        Sample {
            table: self.name.clone(),
            task: self.kind.clone(),
            row: number,
            prompt: beginning(&prompt, MAX_CHARACTERS),
            ..Sample::default()
        }
    }

    fn answers(&self, model: &Janus, base: &Base, heads: &Heads) -> Result<Vec<Sample>> {
        let (mut asked, mut questions) = (Vec::new(), Vec::new());
        for (number, row) in &self.rows {
            if let Some(question) = self.task.question(base, row)? {
                asked.push(self.sample(*number, row));
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
        let request = |question| Request::plain(Asked::Text(TextRequest::greedy(question, limit)));
        let mut engine = Engine::new(model, base, heads, Limits::of(model)?);
        let answers = engine.answer_all(questions.iter().map(request), &mut |_| {})?;
        let made = asked.into_iter().zip(&questions).zip(answers.into_iter().filter_map(Answer::into_text));
        Ok(made
            .map(|((sample, question), answer)| Sample {
                expected: Some(beginning(&question.answer, MAX_CHARACTERS)),
                answer: Some(beginning(&answer.text, MAX_CHARACTERS)),
                ..sample
            })
            .collect())
    }

    /// What the table's head tells of each row.
    fn of_head(
        &self,
        model: &Janus,
        base: &Base,
        heads: &Heads,
        write: impl Fn(usize, &RgbImage) -> Result<String>,
        keep: impl Fn(usize, &RgbImage) -> Result<String>,
    ) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for (number, row) in &self.rows {
            let made = head_samples::sample(self.task.as_ref(), &self.name, row, model, base, heads)?;
            let Some(HeadSample { expected, answer, overlay, truth, score }) = made else { continue };
            let picture = overlay.map(|overlay| write(*number, &overlay)).transpose()?;
            let (expected, answer) =
                (Some(beginning(&expected, MAX_CHARACTERS)), Some(beginning(&answer, MAX_CHARACTERS)));
            let expected_picture = truth.map(|truth| keep(*number, &truth)).transpose()?;
            samples.push(Sample { expected, answer, picture, expected_picture, score, ..self.sample(*number, row) });
        }
        Ok(samples)
    }

    fn pictures(
        &self,
        model: &Janus,
        base: &Base,
        heads: &Heads,
        seed: u64,
        write: impl Fn(usize, &RgbImage) -> Result<String>,
    ) -> Result<Vec<Sample>> {
        let (mut asked, mut drawings) = (Vec::new(), Vec::new());
        for (number, row) in self.rows.iter().take(PICTURES) {
            if let Some(drawing) = self.task.drawing(base, row)? {
                asked.push(self.sample(*number, row));
                drawings.push(drawing);
            }
        }
        if drawings.is_empty() {
            return Ok(Vec::new());
        }
        let request = |(place, drawing): (usize, &Drawing)| {
            Request::plain(Asked::Picture(PictureRequest::of(base, drawing, seed.wrapping_add(place as u64))))
        };
        let mut engine = Engine::new(model, base, heads, Limits::of(model)?);
        let answers = engine.answer_all(drawings.iter().enumerate().map(request), &mut |_| {})?;
        let drawn = answers.into_iter().filter_map(Answer::into_picture);
        let mut samples = Vec::with_capacity(drawings.len());
        for (sample, PictureAnswer { picture, .. }) in asked.into_iter().zip(drawn) {
            let name = write(sample.row, &picture)?;
            samples.push(Sample { picture: Some(name), ..sample });
        }
        Ok(samples)
    }

    /// The row's own picture, kept once.
    fn row_picture(&self, row: usize, folder: &Directory, table: usize) -> Result<Option<String>> {
        let own = self.rows.iter().find(|(number, _)| *number == row);
        let first = own.and_then(|(_, row)| row.images.values().flatten().next());
        first.map(|image| keep_picture(folder, &format!("{table}-{row}"), &*image.decode()?)).transpose()
    }

    /// The picture that a row's drawing is made from, kept once.
    fn source_picture(&self, row: usize, folder: &Directory, table: usize) -> Result<Option<String>> {
        let own = self.rows.iter().find(|(number, _)| *number == row);
        let source = own.and_then(|(_, row)| row.image("source"));
        source.map(|image| keep_picture(folder, &format!("{table}-{row}-source"), &*image.decode()?)).transpose()
    }
}

/// Writes a picture of a row, once, and small; its name in the run folder.
fn keep_picture(folder: &Directory, name: &str, picture: &RgbImage) -> Result<String> {
    let small = thumbnail(picture, ROW_SIDE)?;
    let name = format!("{FOLDER}/rows/{name}.{}", if small.kind == "image/png" { "png" } else { "jpg" });
    keep(folder, &name, &small.bytes)?;
    Ok(name)
}

/// Writes what is expected of a row, once, as large as what was found is drawn; its name in the run folder.
fn keep_expected(folder: &Directory, table: usize, row: usize, picture: &RgbImage) -> Result<String> {
    let name = format!("{FOLDER}/rows/{table}-{row}-expected.png");
    keep(folder, &name, &png(picture)?)?;
    Ok(name)
}

/// Writes a file that is not there yet.
fn keep(folder: &Directory, name: &str, bytes: &[u8]) -> Result<(), OutputError> {
    match folder.about(name) {
        Ok(Some(About { kind: Kind::File, .. })) => Ok(()),
        _ => write_below(folder, name, |file| file.write_all(bytes)),
    }
}

/// The share of a row's mask that is not ground.
fn area(row: &Row) -> f64 {
    let Some(mask) = row.image("mask").and_then(|mask| decode_mask(&mask.bytes, mask.decoding).ok()) else {
        return 0.0;
    };
    let ground = if mask.is_lossy { LOSSY_REACH } else { 0 };
    let inside = mask.values.iter().filter(|value| **value > ground).count();
    inside as f64 / mask.values.len().max(1) as f64
}

/// `count` of the rows with their numbers, in order, whose masks differ most in size, from the smallest to the
/// largest. The rows are read twice, so that not all of them are held at once.
fn by_area(
    rows: impl Iterator<Item = Result<Row>>,
    again: impl Iterator<Item = Result<Row>>,
    count: usize,
) -> Result<Vec<(usize, Row)>> {
    let mut areas = rows.enumerate().map(|(number, row)| Ok((area(&row?), number))).collect::<Result<Vec<_>>>()?;
    areas.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (least, most) = (areas.first().map_or(0.0, |first| first.0), areas.last().map_or(0.0, |last| last.0));
    let mut chosen = BTreeSet::new();
    for place in 0..count {
        let wanted = least + (most - least) * place as f64 / count.saturating_sub(1).max(1) as f64;
        let free = areas.iter().filter(|(_, number)| !chosen.contains(number));
        let nearest = free.min_by(|one, other| (one.0 - wanted).abs().total_cmp(&(other.0 - wanted).abs()));
        let nearest = nearest.map(|(_, number)| *number);
        chosen.extend(nearest);
    }
    let end = chosen.last().map_or(0, |last| last + 1);
    let kept = again.take(end).enumerate().filter(|(number, _)| chosen.contains(number));
    kept.map(|(number, row)| Ok((number, row?))).collect()
}

/// What a row asks, in its own words.
fn asked(row: &Row) -> String {
    let last_turn = || {
        let turns = row.messages.values().flatten();
        turns.filter(|turn| turn.role == "user").map(|turn| turn.content.as_str()).next_back()
    };
    row.text("question").or_else(|| row.text("prompt")).or_else(last_turn).unwrap_or_default().to_owned()
}

/// What is asked of rows without a question of their own; nothing of tasks that ask nothing.
fn question(section: &DataSection) -> String {
    match section.task {
        TaskName::Understand => section.question.clone().unwrap_or_else(|| DEFAULT_QUESTION.to_owned()),
        _ => String::new(),
    }
}

/// `count` of the rows with their numbers, as far apart as they are: first one of each question, then those with another answer
/// to it, then the rest, each in order.
fn apart(rows: impl Iterator<Item = Result<Row>>, count: usize) -> Result<Vec<(usize, Row)>> {
    let mut kept: [Vec<(usize, Row)>; 3] = Default::default();
    let (mut questions, mut answers) = (BTreeSet::new(), BTreeSet::new());
    for (number, row) in rows.enumerate() {
        let row = row?;
        let is_new = questions.insert(asked(&row));
        let answer = (
            row.texts.clone(),
            row.lists.clone(),
            row.messages.values().flatten().map(|m| m.content.clone()).collect::<Vec<_>>(),
        );
        let is_other = answers.insert(answer);
        let place = if is_new {
            0
        } else if is_other {
            1
        } else {
            2
        };
        if kept[place].len() < count {
            kept[place].push((number, row));
        }
        if kept[0].len() == count {
            break;
        }
    }
    Ok(kept.into_iter().flatten().take(count).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{EncodedImage, RowId};

    fn row(texts: &[(&'static str, &str)]) -> Result<Row> {
        Ok(Row {
            id: RowId { file: Path::new("t").into(), row_group: 0, row: 0 },
            images: Default::default(),
            texts: texts.iter().map(|(role, text)| (*role, (*text).to_owned())).collect(),
            messages: Default::default(),
            boxes: Default::default(),
            lists: Default::default(),
        })
    }

    fn chosen(rows: Vec<Result<Row>>) -> Vec<usize> {
        apart(rows.into_iter(), 4).unwrap().into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn masks_are_chosen_from_small_to_large() {
        let masked = |share: u8| {
            let mask =
                image::GrayImage::from_fn(10, 10, |x, y| image::Luma([u8::from(y * 10 + x < share.into()) * 255]));
            let mut bytes = std::io::Cursor::new(Vec::new());
            mask.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            let mut row = row(&[]).unwrap();
            row.images.insert("mask", vec![EncodedImage::new(bytes.into_inner())]);
            row
        };
        for (shares, chosen) in [
            (&[5, 5, 5, 5, 90, 40, 60, 5, 5, 5][..], &[0, 4, 5, 6][..]),
            (&[1, 2, 3, 4, 5, 6, 7], &[0, 2, 4, 6]),
            (&[50, 0, 99, 10, 20, 80, 30], &[1, 2, 5, 6]),
            (&[3, 1], &[0, 1]),
            (&[8; 9], &[0, 1, 2, 3]),
            (&[7], &[0]),
            (&[], &[]),
        ] {
            let rows = || shares.iter().map(|share| Ok(masked(*share)));
            let kept = by_area(rows(), rows(), 4).unwrap();
            let (mut right, numbers) =
                (chosen.to_vec(), kept.iter().map(|(number, _)| *number).collect::<Vec<usize>>());
            right.sort_unstable();
            assert_eq!(numbers, right, "{shares:?}");
            assert!(kept.iter().all(|(number, row)| (area(row) * 100.0 - f64::from(shares[*number])).abs() < 1e-9));
        }
    }

    #[test]
    fn rows_are_chosen_apart() {
        let asks = |question: &str, answer: &str| row(&[("question", question), ("answer", answer)]);
        // Of different questions, one each, in order.
        let rows = vec![asks("a", "1"), asks("a", "2"), asks("b", "1"), asks("a", "1"), asks("c", "1"), asks("d", "1")];
        assert_eq!(chosen(rows), [0, 2, 4, 5]);
        // Of fewer questions than rows are wanted, other answers to them, then whatever is there.
        let rows = vec![asks("a", "1"), asks("a", "1"), asks("a", "2"), asks("b", "1"), asks("a", "2")];
        assert_eq!(chosen(rows), [0, 3, 2, 1]);
        // Of no question at all, such as labels.
        let rows = ["pit", "pit", "pit", "scratch", "stain"].map(|label| row(&[("label", label)]));
        assert_eq!(chosen(rows.into()), [0, 3, 4, 1]);
        // The same everywhere: the first ones. As before where all differ.
        assert_eq!(chosen((0..9).map(|_| asks("a", "1")).collect()), [0, 1, 2, 3]);
        assert_eq!(chosen((0..9).map(|n| asks(&n.to_string(), "1")).collect()), [0, 1, 2, 3]);
        assert!(chosen(Vec::new()).is_empty());
    }
}
