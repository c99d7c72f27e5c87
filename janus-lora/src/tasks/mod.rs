//! What a table of rows teaches: one file per task.
//!
//! A task says which columns it reads, how a row becomes a sample, how samples become a batch, and which parameters its
//! loss reaches. `sample` and `target` hold rows made ready, [`forward`] and `pictures` compute the losses that tasks share; `shortened`
//! leaves out most of a batch where it is enough that something passes. `placed` says where pictures stand in texts, `length` how
//! long a row may be, `box_values` and `mask_values` what a table's boxes and masks are, judged over all of its rows.

mod box_values;
mod classify;
mod edit;
pub mod error;
pub mod forward;
mod generate;
mod length;
mod locate;
mod mask_values;
mod pictures;
mod placed;
mod reconstruct;
mod retrieve;
mod sample;
mod segment;
mod shortened;
mod target;
mod text;
mod understand;

use std::sync::Arc;

use janus_core::processing::{Message, Role};
use janus_core::{Janus, Parts};

use crate::base::Base;
use crate::cache::Image;
use crate::data::rejected::cut;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::{Error, Result};
use crate::heads::HeadKind;
use crate::recipe::{Columns, DataLimits, DataSection, Task as TaskName};

pub use error::TaskError;
pub use forward::{Batch, CodeBatch, Coded, TextBatch};
pub(crate) use length::codes_per_image;
use length::{Fitted, Length};
pub use length::{answer_room, check_caption, check_drawing_room};
pub use pictures::PictureBatch;
pub(crate) use pictures::{features, last_hidden};
use placed::Noticed;
pub(crate) use placed::place;
pub(crate) use reconstruct::CODE_PATHS;
pub use reconstruct::PixelBatch;
pub use retrieve::caption_ids;
pub use sample::{Draft, Sample};
pub use target::{Pictured, frame};
pub(crate) use understand::DEFAULT_QUESTION;

/// What making a sample needs besides the row.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Tokenizer, image processor and image tokenizer.
    pub base: &'a Base,
    /// The model that the sample is for: images are made ready as far as it needs them.
    pub model: &'a Janus,
    /// A number in [0, 1) for this row at this place in the run, `None` outside training.
    pub draw: Option<f64>,
}

/// A question to be answered or a prompt to be drawn, as evaluation asks them.
#[derive(Debug, Clone)]
pub struct Question {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// The images, in reading order.
    pub images: Vec<Image>,
    /// The expected answer.
    pub answer: String,
}

/// One kind of supervision.
pub trait Task: std::fmt::Debug + Send + Sync {
    /// Parts of the model that the loss and the samples need.
    fn parts(&self) -> Parts;

    /// Whether the loss depends on a parameter or site of this native path.
    fn reaches(&self, path: &str) -> bool;

    /// Columns to be read.
    fn columns(&self) -> Vec<ColumnRequest>;

    /// Lists of columns, of which the first that a table has is read. The first is that of [`Task::columns`].
    fn alternatives(&self) -> Vec<Vec<ColumnRequest>> {
        vec![self.columns()]
    }

    /// What is wrong with a row beyond what its columns show, without decoding images.
    ///
    /// # Errors
    /// The reason.
    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String>;

    /// What is wrong with a row that `check` found good, its pictures decoded.
    ///
    /// # Errors
    /// The reason.
    fn look(&self, _row: &Row) -> std::result::Result<(), String> {
        Ok(())
    }

    /// What the rows of a split show as a whole, of those seen by `check` and `look` since the last call: what is to be told of
    /// them. The rows to train on come first and decide for the others.
    ///
    /// # Errors
    /// Rows that as a whole are not what the recipe says.
    fn conclude(&self, _split: Split) -> std::result::Result<Vec<String>, TaskError> {
        Ok(Vec::new())
    }

    /// What of the rows concluded so far was read otherwise before recipes of runs had `data_limits.max_page_bytes`, in words.
    fn read_otherwise_before(&self) -> Option<String> {
        None
    }

    /// A row as far as it needs no model; `draw` is a number in [0, 1) for it at this place in the run, `None` outside
    /// training.
    ///
    /// # Errors
    /// Text that makes no prompt.
    fn draft(&self, base: &Base, draw: Option<f64>, row: &Row) -> Result<Draft>;

    /// A row as a sample.
    ///
    /// # Errors
    /// An image that cannot be decoded, or text that makes no prompt.
    fn sample(&self, context: Context<'_>, row: &Row) -> Result<Sample> {
        self.draft(context.base, context.draw, row)?.finish(context.base, context.model)
    }

    /// A row as a question, for tasks that answer in text.
    ///
    /// # Errors
    /// As [`Task::sample`].
    fn question(&self, base: &Base, row: &Row) -> Result<Option<Question>>;

    /// The head that the task trains, for tasks that have one.
    fn head(&self) -> Option<HeadKind> {
        None
    }

    /// Whether its pictures are to come back from their codes.
    fn rebuilds(&self) -> bool {
        false
    }

    /// What a row asks to be drawn, for tasks that answer with a picture.
    ///
    /// # Errors
    /// Text that makes no prompt.
    fn drawing(&self, _base: &Base, _row: &Row) -> Result<Option<Drawing>> {
        Ok(None)
    }
}

/// A picture that is asked for.
#[derive(Debug, Clone)]
pub struct Drawing {
    /// Ids of the prompt up to and with `<begin_of_image>`.
    pub prompt: Vec<u32>,
    /// The pictures it is made from, in reading order.
    pub images: Vec<Image>,
    /// The picture that the row holds.
    pub expected: Image,
}

/// The column that holds the labels of a table's rows, for tasks whose head tells labels.
pub fn label_column(section: &DataSection) -> Option<ColumnRequest> {
    match section.task {
        TaskName::Classify => Some(classify::label_column(&section.columns)),
        TaskName::Locate => Some(locate::label_column(&section.columns)),
        _ => None,
    }
}

/// The task of a table, whose rows are as long as `limits` and the base allow; `labels`, in their order, are those of its rows, where its head tells some.
pub fn task(section: &DataSection, labels: &[String], limits: &DataLimits) -> Arc<dyn Task> {
    let length = Length::of(section, limits);
    let prompt_dropout = section.prompt_dropout.unwrap_or(0.0);
    match section.task {
        TaskName::Understand => {
            Arc::new(understand::Understand::new(&section.columns, section.question.as_deref(), length))
        }
        TaskName::Generate => Arc::new(generate::Generate::new(&section.columns, prompt_dropout, length)),
        TaskName::Text => Arc::new(text::Text::new(&section.columns, length)),
        TaskName::Edit => Arc::new(edit::Edit::new(&section.columns, prompt_dropout, length)),
        TaskName::Classify => Arc::new(classify::Classify::new(&section.columns, &section.name, labels)),
        TaskName::Locate => Arc::new(locate::Locate::new(section, labels)),
        TaskName::Segment => Arc::new(segment::Segment::new(section)),
        TaskName::Retrieve => Arc::new(retrieve::Retrieve::new(&section.columns, &section.name, length)),
        TaskName::Reconstruct => {
            Arc::new(reconstruct::Reconstruct::new(&section.columns, section.quantize_from.unwrap_or(0)))
        }
    }
}

/// Native paths on which features of a picture depend.
const PICTURE_PATHS: &[&str] = &["model.vision_model.", "model.aligner."];

/// The column of a row's picture.
fn image_column(columns: &Columns) -> ColumnRequest {
    ColumnRequest::required("image", columns.name_of("image"), ColumnKind::Image)
}

/// The number of a label among `labels`, which rise.
fn label_number(labels: &[String], label: &str) -> Option<u32> {
    labels.binary_search_by(|known| known.as_str().cmp(label.trim())).ok().map(|place| place as u32)
}

/// That a label is none of those that are trained on.
fn unknown_label(labels: &[String], label: &str) -> String {
    format!("the label `{}` is none of the {} labels to train on", cut(label.trim()), labels.len())
}

/// Whether `path` lies in one of the modules, `prefixes` ending in `.` or being whole paths.
pub(crate) fn within(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path == *prefix || (prefix.ends_with('.') && path.starts_with(prefix)))
}

/// The turns of a row, and what it wrote for pictures in another toolkit's way.
#[derive(Debug)]
struct Conversation {
    turns: Vec<Message>,
    foreign: Vec<String>,
}

impl Conversation {
    /// A question about a row's pictures and its answer.
    fn of_question(question: &str, images: usize, answer: &str) -> std::result::Result<Self, String> {
        placed::refuse_pictures("answer", answer)?;
        let placed = place(&[question], images)?;
        let question = placed.texts.into_iter().next().map_or_else(String::new, |(text, _)| text);
        Ok(Self { turns: vec![Message::user(question, images), Message::assistant(answer)], foreign: placed.foreign })
    }

    /// Of a `messages` column: images stand where the user's turns say, or all in the first of them.
    fn of_messages(messages: &[crate::data::Message], images: usize) -> std::result::Result<Self, String> {
        let users: Vec<&str> =
            messages.iter().filter(|message| message.role == "user").map(|message| message.content.as_str()).collect();
        let placed = place(&users, images)?;
        let marked: usize = placed.texts.iter().map(|(_, count)| count).sum();
        let mut texts = placed.texts.into_iter();
        let mut unmarked = if marked == 0 { images } else { 0 };
        let mut turns = Vec::with_capacity(messages.len());
        for message in messages {
            let content = message.content.as_str();
            match message.role.as_str() {
                "user" => {
                    let (text, own) = texts.next().unwrap_or_default();
                    turns.push(Message::user(text, own + std::mem::take(&mut unmarked)));
                }
                "assistant" => {
                    placed::refuse_pictures("answer", content)?;
                    turns.push(Message::assistant(content));
                }
                "system" => {
                    placed::refuse_pictures("system message", content)?;
                    turns.push(Message { role: Role::System, text: content.into(), images: 0 });
                }
                other => return Err(format!("message role `{}` is none of user, assistant, system", cut(other))),
            }
        }
        Ok(Self { turns, foreign: placed.foreign })
    }
}

/// A row's conversation, as long as it may be.
fn fitted(
    base: &Base,
    length: Length,
    conversation: std::result::Result<Conversation, String>,
) -> std::result::Result<Fitted, String> {
    length.fit(base, conversation?.turns)
}

/// Whether a conversation makes a sample.
fn check_conversation(
    base: &Base,
    length: Length,
    noticed: &Noticed,
    conversation: std::result::Result<Conversation, String>,
) -> std::result::Result<(), String> {
    let conversation = conversation?;
    let fitted = length.fit(base, conversation.turns)?;
    noticed.add(&conversation.foreign, fitted.is_cut);
    Ok(())
}

/// A conversation as labelled text around images.
fn text_draft(
    base: &Base,
    length: Length,
    conversation: std::result::Result<Conversation, String>,
    images: Vec<Image>,
) -> Result<Draft> {
    let tokens = fitted(base, length, conversation).map_err(unusable)?.sample;
    Ok(Draft::Text { tokens, images })
}

/// Turns but the last as a question, the last as its answer.
fn text_question(
    base: &Base,
    length: Length,
    conversation: std::result::Result<Conversation, String>,
    images: Vec<Image>,
) -> Result<Option<Question>> {
    let mut turns = fitted(base, length, conversation).map_err(unusable)?.turns;
    let Some(answer) = turns.pop() else { return Ok(None) };
    let prompt = base.prompts().conversation_prompt(&turns, true)?;
    Ok(Some(Question { prompt, images, answer: answer.text }))
}

/// A row that was good when it was scanned and is not any more.
fn unusable(reason: String) -> Error {
    Error::Usage { message: reason, hint: "the data changed while it was read".into() }
}
