//! Text to text: every answer and its EOS are supervised.

use janus_core::Parts;

use super::{
    Conversation, Draft, Length, Noticed, Question, Task, TaskError, check_conversation, text_draft, text_question,
    within,
};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::Result;
use crate::recipe::Columns;

/// Native paths the loss depends on.
const REACHED: &[&str] = &["model.language_model.", "lm_head", "lm_head."];

#[derive(Debug)]
pub(super) struct Text {
    columns: Columns,
    length: Length,
    noticed: Noticed,
}

impl Text {
    pub(super) fn new(columns: &Columns, length: Length) -> Self {
        Self { columns: columns.clone(), length, noticed: Noticed::default() }
    }

    fn conversation(&self, row: &Row) -> std::result::Result<Conversation, String> {
        if let Some(messages) = row.messages.get("messages") {
            return Conversation::of_messages(messages, 0);
        }
        let (prompt, answer) = (row.text("prompt").unwrap_or_default(), row.text("answer").unwrap_or_default());
        Conversation::of_question(prompt, 0, answer)
    }
}

impl Task for Text {
    fn parts(&self) -> Parts {
        Parts { text_head: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        self.alternatives().swap_remove(0)
    }

    fn alternatives(&self) -> Vec<Vec<ColumnRequest>> {
        let columns = &self.columns;
        let texts = vec![
            ColumnRequest::required("prompt", columns.name_of("prompt"), ColumnKind::Text),
            ColumnRequest::required("answer", columns.name_of("answer"), ColumnKind::Text),
        ];
        let messages = vec![ColumnRequest::required("messages", columns.name_of("messages"), ColumnKind::Messages)];
        match columns.is_given("messages") {
            true => vec![messages],
            false if columns.is_given("prompt") || columns.is_given("answer") => vec![texts],
            false => vec![texts, messages],
        }
    }

    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String> {
        self.length.check_row(base, row)?;
        check_conversation(base, self.length, &self.noticed, self.conversation(row))
    }

    fn conclude(&self, _split: Split) -> std::result::Result<Vec<String>, TaskError> {
        Ok(self.noticed.take())
    }

    fn read_otherwise_before(&self) -> Option<String> {
        self.noticed.read_otherwise_before()
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        text_draft(base, self.length, self.conversation(row), Vec::new())
    }

    fn question(&self, base: &Base, row: &Row) -> Result<Option<Question>> {
        text_question(base, self.length, self.conversation(row), Vec::new())
    }
}
