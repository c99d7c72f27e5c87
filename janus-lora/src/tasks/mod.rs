//! What a table of rows teaches: one file per task.
//!
//! A task says which columns it reads, how a row becomes a sample, how samples become a batch, and which parameters its
//! loss reaches. [`forward`] computes the losses that tasks share.

pub mod classify;
pub mod forward;
mod generate;
mod text;
mod understand;

use std::sync::Arc;

use janus_core::processing::{Message, Role, Sample as TextSample};
use janus_core::{Janus, Parts};

use crate::base::Base;
use crate::cache::{Image, codes};
use crate::data::{ColumnRequest, Row};
use crate::error::{Error, Result};
use crate::heads::HeadKind;
use crate::recipe::{DataSection, Task as TaskName};

pub use forward::{Batch, CodeBatch, LabelBatch, TextBatch};

/// A row made ready for a batch.
#[derive(Debug, Clone)]
pub enum Sample {
    /// Labelled text around images.
    Text {
        /// Ids and labels.
        tokens: TextSample,
        /// The images, in reading order.
        images: Vec<Image>,
    },
    /// A prompt and the codes of its image.
    Codes {
        /// Ids up to and with `<begin_of_image>`.
        prompt: Vec<u32>,
        /// Codes in raster order.
        codes: Arc<[u32]>,
    },
    /// A picture and its label.
    Label {
        /// The head that tells labels.
        head: Arc<str>,
        /// The picture.
        image: Image,
        /// The label's number.
        label: u32,
    },
}

impl Sample {
    /// Tokens that count in the loss.
    pub fn supervised(&self) -> usize {
        match self {
            Sample::Text { tokens, .. } => tokens.labels.iter().filter(|label| **label >= 0).count(),
            Sample::Codes { codes, .. } => codes.len(),
            Sample::Label { .. } => 1,
        }
    }

    /// Tokens that the decoder reads.
    pub fn len(&self) -> usize {
        match self {
            Sample::Text { tokens, .. } => tokens.ids.len(),
            Sample::Codes { prompt, codes } => prompt.len() + codes.len().saturating_sub(1),
            Sample::Label { .. } => 0,
        }
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row made ready as far as that needs no model.
#[derive(Debug, Clone)]
pub enum Draft {
    /// Labelled text around images.
    Text {
        /// Ids and labels.
        tokens: TextSample,
        /// The images, in reading order.
        images: Vec<Image>,
    },
    /// A prompt and the image that is drawn for it.
    Codes {
        /// Ids up to and with `<begin_of_image>`.
        prompt: Vec<u32>,
        /// The image.
        image: Image,
    },
    /// A picture and its label.
    Label {
        /// The head that tells labels.
        head: Arc<str>,
        /// The picture.
        image: Image,
        /// The label's number.
        label: u32,
    },
}

impl Draft {
    /// Decodes and resizes its pictures before a model asks for them. What is wrong with one comes out then.
    pub fn decode_ahead(&self) {
        match self {
            Draft::Text { images, .. } => images.iter().for_each(Image::pixels_ahead),
            Draft::Codes { image, .. } => image.target_ahead(),
            Draft::Label { image, .. } => image.pixels_ahead(),
        }
    }

    /// The sample for a model: what is kept of its images is read, codes are computed where none are kept.
    ///
    /// # Errors
    /// An image that cannot be decoded.
    pub fn finish(&self, base: &Base, model: &Janus) -> Result<Sample> {
        match self {
            Draft::Text { tokens, images } => {
                for image in images {
                    image.prepare(model)?;
                }
                Ok(Sample::Text { tokens: tokens.clone(), images: images.clone() })
            }
            Draft::Codes { prompt, image } => {
                Ok(Sample::Codes { prompt: prompt.clone(), codes: codes(base, model.device(), image)? })
            }
            Draft::Label { head, image, label } => {
                image.prepare(model)?;
                Ok(Sample::Label { head: head.clone(), image: image.clone(), label: *label })
            }
        }
    }

    /// Tokens that the decoder reads, and those that count in the loss, where an image has `codes_per_image` codes.
    pub fn lengths(&self, codes_per_image: usize) -> (usize, usize) {
        match self {
            Draft::Text { tokens, .. } => (tokens.ids.len(), tokens.labels.iter().filter(|label| **label >= 0).count()),
            Draft::Codes { prompt, .. } => (prompt.len() + codes_per_image.saturating_sub(1), codes_per_image),
            Draft::Label { .. } => (0, 1),
        }
    }

    /// Whether a finished one took pixels; `None` without images.
    pub fn took_pixels(&self) -> Option<bool> {
        match self {
            Draft::Text { images, .. } if images.is_empty() => None,
            Draft::Text { images, .. } => Some(images.iter().any(Image::was_needed)),
            Draft::Codes { image, .. } | Draft::Label { image, .. } => Some(image.was_needed()),
        }
    }
}

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

    /// What is wrong with a row beyond what its columns show, without decoding images.
    ///
    /// # Errors
    /// The reason.
    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String>;

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

    /// The ids of a row's prompt up to and with `<begin_of_image>`, for tasks that answer with a picture.
    ///
    /// # Errors
    /// Text that makes no prompt.
    fn drawing(&self, _base: &Base, _row: &Row) -> Result<Option<Vec<u32>>> {
        Ok(None)
    }
}

/// The task of a table; `labels`, in their order, are those of a table to classify.
pub fn task(section: &DataSection, labels: &[String]) -> Arc<dyn Task> {
    match section.task {
        TaskName::Understand => Arc::new(understand::Understand::new(&section.columns)),
        TaskName::Generate => {
            Arc::new(generate::Generate::new(&section.columns, section.prompt_dropout.unwrap_or(0.0)))
        }
        TaskName::Text => Arc::new(text::Text::new(&section.columns)),
        TaskName::Classify => Arc::new(classify::Classify::new(&section.columns, &section.name, labels)),
    }
}

/// Whether `path` lies in one of the modules, `prefixes` ending in `.` or being whole paths.
fn within(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path == *prefix || (prefix.ends_with('.') && path.starts_with(prefix)))
}

/// The turns of a row's `messages` column, images counted by their placeholders or all in the first user turn.
fn turns(messages: &[crate::data::Message], images: usize) -> std::result::Result<Vec<Message>, String> {
    let placeholders = |message: &crate::data::Message| match message.role.as_str() {
        "user" => message.content.matches(janus_core::processing::IMAGE_PLACEHOLDER).count(),
        _ => 0,
    };
    let marked: usize = messages.iter().map(placeholders).sum();
    if marked > 0 && marked != images {
        return Err(format!("the conversation has {marked} image placeholders, but the row has {images} images"));
    }
    let mut turns = Vec::with_capacity(messages.len());
    let mut unmarked = images - marked;
    for message in messages {
        match message.role.as_str() {
            "user" => {
                let own = placeholders(message) + std::mem::take(&mut unmarked);
                turns.push(Message::user(message.content.clone(), own));
            }
            "assistant" => turns.push(Message::assistant(message.content.clone())),
            "system" => turns.push(Message { role: Role::System, text: message.content.clone(), images: 0 }),
            other => return Err(format!("message role `{other}` is none of user, assistant, system")),
        }
    }
    Ok(turns)
}

/// Whether turns make a sample.
fn check_turns(base: &Base, turns: std::result::Result<Vec<Message>, String>) -> std::result::Result<(), String> {
    base.prompts().conversation_sample(&turns?, true).map(|_| ()).map_err(|e| e.to_string())
}

/// Turns as labelled text around images.
fn text_draft(base: &Base, turns: std::result::Result<Vec<Message>, String>, images: Vec<Image>) -> Result<Draft> {
    let tokens = base.prompts().conversation_sample(&turns.map_err(unusable)?, true)?;
    Ok(Draft::Text { tokens, images })
}

/// Turns but the last as a question, the last as its answer.
fn text_question(
    base: &Base,
    turns: std::result::Result<Vec<Message>, String>,
    images: Vec<Image>,
) -> Result<Option<Question>> {
    let mut turns = turns.map_err(unusable)?;
    let Some(answer) = turns.pop() else { return Ok(None) };
    let prompt = base.prompts().conversation_prompt(&turns, true)?;
    Ok(Some(Question { prompt, images, answer: answer.text }))
}

/// A row that was good when it was scanned and is not any more.
fn unusable(reason: String) -> Error {
    Error::Usage { message: reason, hint: "the data changed while it was read".into() }
}
