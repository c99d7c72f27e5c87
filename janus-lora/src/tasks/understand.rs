//! Images and a question to an answer: the answer's tokens and its EOS are supervised.

use janus_core::Parts;

use super::{
    Conversation, Draft, Length, Noticed, Question, Task, TaskError, check_conversation, text_draft, text_question,
    within,
};
use crate::base::Base;
use crate::cache::Image;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::Result;
use crate::recipe::Columns;

/// Asked where a table has no question column.
pub(crate) const DEFAULT_QUESTION: &str = "Describe this image.";

/// Native paths the loss depends on.
const REACHED: &[&str] = &["model.language_model.", "lm_head", "lm_head.", "model.vision_model.", "model.aligner."];

#[derive(Debug)]
pub(super) struct Understand {
    columns: Columns,
    /// Asked of every row.
    question: Option<String>,
    length: Length,
    noticed: Noticed,
}

impl Understand {
    pub(super) fn new(columns: &Columns, question: Option<&str>, length: Length) -> Self {
        let question = question.map(str::to_owned);
        Self { columns: columns.clone(), question, length, noticed: Noticed::default() }
    }

    fn images<'a>(&self, row: &'a Row) -> &'a [crate::data::EncodedImage] {
        row.images.get("image").or_else(|| row.images.get("images")).map_or(&[], Vec::as_slice)
    }

    fn conversation(&self, row: &Row) -> std::result::Result<Conversation, String> {
        let images = self.images(row).len();
        if let Some(messages) = row.messages.get("messages") {
            return Conversation::of_messages(messages, images);
        }
        let question = self.question.as_deref().or_else(|| row.text("question")).unwrap_or(DEFAULT_QUESTION);
        let answer = row.text("answer").unwrap_or_default();
        Conversation::of_question(question, images, answer)
    }
}

impl Task for Understand {
    fn parts(&self) -> Parts {
        Parts { text_head: true, vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let columns = &self.columns;
        let image = if columns.is_given("images") {
            ColumnRequest::required("images", columns.name_of("images"), ColumnKind::ImageList)
        } else {
            ColumnRequest::required("image", columns.name_of("image"), ColumnKind::Image)
        };
        if columns.is_given("messages") {
            return vec![image, ColumnRequest::required("messages", columns.name_of("messages"), ColumnKind::Messages)];
        }
        let column = columns.name_of("question");
        let question = match (&self.question, columns.is_given("question")) {
            (Some(_), _) => None,
            (None, true) => Some(ColumnRequest::required("question", column, ColumnKind::Text)),
            (None, false) => Some(ColumnRequest::optional("question", column, ColumnKind::Text)),
        };
        let answer = ColumnRequest::required("answer", columns.name_of("answer"), ColumnKind::Text);
        [image].into_iter().chain(question).chain([answer]).collect()
    }

    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String> {
        check_conversation(base, self.length, &self.noticed, self.conversation(row))
    }

    fn conclude(&self, _split: Split) -> std::result::Result<Vec<String>, TaskError> {
        Ok(self.noticed.take())
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let images: Vec<Image> = self.images(row).iter().map(|image| base.image(image)).collect();
        text_draft(base, self.length, self.conversation(row), images)
    }

    fn question(&self, base: &Base, row: &Row) -> Result<Option<Question>> {
        let images = self.images(row).iter().map(|image| base.image(image)).collect();
        text_question(base, self.length, self.conversation(row), images)
    }
}
