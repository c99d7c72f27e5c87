//! What a table as a whole, or a prompt, can be refused for.

use janus_core::Diagnose;

use crate::data::Split;

/// Rows or prompts that do not mean what the recipe says, or that the base has no room for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Boxes whose numbers are something else than the recipe says.
    #[error(
        "the boxes of `{table}` ({split}) are no {given}: {fitting} of {boxes} lie in their pictures so, {better} of {boxes} do as {keys}{seen}"
    )]
    Boxes {
        /// The table.
        table: Box<str>,
        /// `train` or `eval`.
        split: &'static str,
        /// How they were read.
        given: Box<str>,
        /// Boxes of the table.
        boxes: u64,
        /// Those that lie in their pictures when read so.
        fitting: u64,
        /// Those that do when read as `keys` say.
        better: u64,
        /// The keys of the recipe.
        keys: Box<str>,
        /// What else is seen of the numbers.
        seen: &'static str,
    },
    /// Masks whose values do not say what the object is.
    #[error("the masks of `{table}` ({split}) have the values {values}: {problem}")]
    Masks {
        /// The table.
        table: String,
        /// `train` or `eval`.
        split: &'static str,
        /// The values found.
        values: String,
        /// What is wrong with them.
        problem: String,
        /// What to set.
        hints: Vec<String>,
    },
    /// Keys of a table that contradict each other.
    #[error("`{table}`: `ignore_value` = {value} is one of its `mask_values`, too")]
    IgnoredObject {
        /// The table.
        table: String,
        /// The value.
        value: u16,
    },
    /// A prompt that leaves no room in the base for an answer.
    #[error(
        "the {what} has {tokens} tokens{}, the base has {positions} positions{room}",
        if *pictures > 0 { format!(", {picture_tokens} of them of pictures") } else { String::new() }
    )]
    PromptTooLong {
        /// `prompt` or `caption`.
        what: &'static str,
        /// All of its tokens.
        tokens: usize,
        /// Its pictures.
        pictures: usize,
        /// Tokens of those.
        picture_tokens: usize,
        /// Positions of the base.
        positions: usize,
        /// Tokens that are too many.
        excess: usize,
        /// What else the positions are for, in words.
        room: Box<str>,
    },
    /// A text that names another number of pictures than there are.
    #[error("{reason}")]
    Placeholders {
        /// Both numbers.
        reason: String,
    },
}

impl Diagnose for TaskError {
    fn hints(&self) -> Vec<String> {
        match self {
            TaskError::Boxes { keys, .. } => match keys.split_once(", or as ") {
                None => vec![format!("set {keys} in the table's `[[data]]`")],
                Some(_) => vec![format!(
                    "set the one that is right in the table's `[[data]]`: {}",
                    keys.replace(", or as ", ", or ")
                )],
            },
            TaskError::Masks { hints, .. } => hints.clone(),
            TaskError::IgnoredObject { .. } => {
                vec!["a value is the object or not counted: leave one of them out".into()]
            }
            TaskError::PromptTooLong { tokens, pictures, picture_tokens, excess, .. } => {
                let mut hints = Vec::new();
                if tokens.saturating_sub(*picture_tokens) > *excess {
                    hints.push(format!("shorten the text by {excess} tokens or more"));
                }
                if *pictures > 1 {
                    hints.push("give fewer pictures".into());
                }
                if hints.is_empty() {
                    hints.push("it takes a base with more positions".into());
                }
                hints
            }
            TaskError::Placeholders { .. } => vec![
                "write `<image_placeholder>` once for each picture, or not at all: then the pictures come first".into(),
            ],
        }
    }
}

/// What the rows of a split are called.
pub(super) fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Eval => "eval",
    }
}
