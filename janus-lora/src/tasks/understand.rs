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
        let roles = ["image", "images", "messages"];
        roles.iter().find_map(|role| row.images.get(role)).map_or(&[], Vec::as_slice)
    }

    fn conversation(&self, row: &Row) -> std::result::Result<Conversation, String> {
        let images = self.images(row).len();
        if row.images.len() > 1 {
            return Err("there are pictures both in a column of their own and in the conversation".into());
        }
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
        self.alternatives().swap_remove(0)
    }

    fn alternatives(&self) -> Vec<Vec<ColumnRequest>> {
        let columns = &self.columns;
        let image = ColumnRequest::required("image", columns.name_of("image"), ColumnKind::Image);
        let images = ColumnRequest::required("images", columns.name_of("images"), ColumnKind::ImageList);
        let pictures = match (columns.is_given("image"), columns.is_given("images")) {
            (_, true) => vec![images],
            (true, false) => vec![image],
            (false, false) => vec![image, images],
        };
        let messages = |kind| ColumnRequest::required("messages", columns.name_of("messages"), kind);
        let conversation = vec![messages(ColumnKind::Messages)];
        let column = columns.name_of("question");
        let question = match (&self.question, columns.is_given("question")) {
            (Some(_), _) => None,
            (None, true) => Some(ColumnRequest::required("question", column, ColumnKind::Text)),
            (None, false) => Some(ColumnRequest::optional("question", column, ColumnKind::Text)),
        };
        let answer = ColumnRequest::required("answer", columns.name_of("answer"), ColumnKind::Text);
        let answered: Vec<ColumnRequest> = question.into_iter().chain([answer]).collect();
        let texts = if columns.is_given("messages") {
            vec![conversation]
        } else if self.question.is_some() || columns.is_given("question") || columns.is_given("answer") {
            vec![answered]
        } else {
            vec![answered, conversation]
        };
        let mut all: Vec<Vec<ColumnRequest>> = Vec::new();
        for text in &texts {
            all.extend(pictures.iter().map(|picture| [&[picture.clone()][..], text].concat()));
        }
        // Pictures may stand in the conversation itself, where no column of them is named.
        if pictures.len() > 1 && texts.iter().any(|text| text[0].role == "messages") {
            all.push(vec![messages(ColumnKind::PicturedMessages)]);
        }
        all
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
        let images: Vec<Image> = self.images(row).iter().map(|image| base.image(image)).collect();
        text_draft(base, self.length, self.conversation(row), images)
    }

    fn question(&self, base: &Base, row: &Row) -> Result<Option<Question>> {
        let images = self.images(row).iter().map(|image| base.image(image)).collect();
        text_question(base, self.length, self.conversation(row), images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The roles of each alternative.
    fn roles(given: &[(&str, &str)], question: Option<&str>) -> Vec<String> {
        let columns = given.iter().map(|(role, column)| (role.to_string(), column.to_string())).collect();
        let task = Understand::new(&columns, question, Length::default());
        let all = task.alternatives();
        assert_eq!(all.first(), Some(&task.columns()));
        let names =
            |requests: &Vec<ColumnRequest>| requests.iter().map(|r| r.column.as_str()).collect::<Vec<_>>().join(" ");
        all.iter().map(names).collect()
    }

    #[test]
    fn columns_are_taken_by_their_own_names_unless_the_recipe_names_others() {
        assert_eq!(
            roles(&[], None),
            ["image question answer", "images question answer", "image messages", "images messages", "messages",]
        );
        assert_eq!(roles(&[], Some("Why?")), ["image answer", "images answer"]);
        assert_eq!(roles(&[("images", "photos")], None), ["photos question answer", "photos messages"]);
        assert_eq!(roles(&[("messages", "chat")], None), ["image chat", "images chat", "chat"]);
        assert_eq!(roles(&[("image", "photo"), ("messages", "chat")], None), ["photo chat"]);
        assert_eq!(roles(&[("answer", "reply")], None), ["image question reply", "images question reply"]);
    }
}
