//! Conversations as writers spell them: `role` and `content` or `from` and `value`, content as text or in parts, all of it
//! perhaps as JSON in a string.

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use janus_core::processing::IMAGE_PLACEHOLDER;
use serde_json::Value;

use super::rejected::RowFault;
use super::row::{EncodedImage, Message};
use super::types::{field, is_image, is_null, is_text, list_item};
use super::values::{ImagePlaces, Images, Lists, few, text_at, unexpected};

/// Longest conversation that is read, in bytes of its texts.
pub(super) const MAX_TEXT_BYTES: u64 = super::reader::MAX_TEXT_BYTES;

/// Most messages of a conversation, and most parts of a message.
const MAX_MESSAGES: usize = 4096;

/// Who speaks, and what is said.
const ROLES: [&str; 2] = ["role", "from"];
const CONTENTS: [&str; 2] = ["content", "value"];

/// Keys under which JSON has its list of messages, where it has one at all.
const LISTS: [&str; 2] = ["messages", "conversations"];

/// Speakers as data sets name them; the template of Janus-Pro has the names between bars.
const SPEAKERS: [(&str, &[&str]); 3] = [
    ("user", &["user", "human", "prompter"]),
    ("assistant", &["assistant", "gpt", "chatgpt", "model", "bot"]),
    ("system", &["system"]),
];

/// Whether a type is a list of messages, or a struct of lists with what each message has, as `datasets` makes it of a
/// `Sequence` of a dict; `pictured`: with pictures in the parts of their contents.
pub(super) fn fits_turns(data_type: &DataType, pictured: bool) -> bool {
    let turn = match (data_type, list_item(data_type)) {
        (DataType::Struct(fields), _) | (_, Some(DataType::Struct(fields))) => fields,
        (_, Some(item)) => return !pictured && is_null(item),
        (_, None) => return false,
    };
    let find = |names: [&str; 2]| names.iter().find_map(|name| field(turn, name));
    let (Some(mut role), Some(mut content)) = (find(ROLES), find(CONTENTS)) else { return false };
    if matches!(data_type, DataType::Struct(_)) {
        let (Some(roles), Some(contents)) = (list_item(role), list_item(content)) else { return false };
        (role, content) = (roles, contents);
    }
    let parts = match list_item(content) {
        Some(DataType::Struct(parts)) if !is_null(content) => {
            let image = field(parts, "image").filter(|image| !is_null(image));
            let texts = ["type", "text"].map(|name| field(parts, name));
            let is_part = texts.iter().flatten().all(|of| is_text(of)) && texts.iter().any(Option::is_some);
            is_part && image.is_none_or(is_image) && (image.is_some() || !pictured)
        }
        Some(item) => !pictured && is_text(item),
        None => false,
    };
    is_text(role) && (parts || (!pictured && is_text(content)))
}

/// A speaker's usual name, where it is known under another one.
fn speaker(role: &str) -> &str {
    let bare = role.trim().trim_start_matches("<|").trim_end_matches("|>");
    let known = SPEAKERS.iter().find(|(_, names)| names.iter().any(|name| name.eq_ignore_ascii_case(bare)));
    known.map_or(role, |(usual, _)| usual)
}

/// A row's conversation, with the pictures that its parts hold.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) turns: Vec<Message>,
    pub(super) images: Vec<EncodedImage>,
}

/// A column of conversations.
pub(super) enum Conversations {
    Json(ArrayRef),
    Turns(Box<Turns>),
}

/// Conversations turn by turn. Roles and contents lie side by side, or in lists of their own.
pub(super) struct Turns {
    /// Rows that are null although their lists may not be.
    rows: Option<NullBuffer>,
    /// Turns that are null although their texts may not be.
    nulls: Option<NullBuffer>,
    roles: Lists,
    role: ArrayRef,
    /// `None`: as the roles lie.
    contents: Option<Lists>,
    content: Content,
}

/// What is said in each turn.
pub(super) enum Content {
    Text(ArrayRef),
    Texts(Lists, ArrayRef),
    Parts { list: Lists, kind: Option<ArrayRef>, text: Option<ArrayRef>, image: Option<Images> },
}

impl Conversations {
    pub(super) fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        if array.as_string_view_opt().is_some() {
            return Ok(Conversations::Json(array.clone()));
        }
        if let Some(lists) = array.as_struct_opt().filter(|_| !is_null(array.data_type())) {
            let (roles, role) = Lists::new(role_of(lists)?).ok_or_else(|| unexpected(array))?;
            let (contents, content) = Lists::new(content_of(lists)?).ok_or_else(|| unexpected(array))?;
            let (rows, contents, content) = (lists.nulls().cloned(), Some(contents), Content::new(&content));
            return Ok(Conversations::Turns(Turns { rows, nulls: None, roles, role, contents, content }.into()));
        }
        let (roles, items) = Lists::new(array).ok_or_else(|| unexpected(array))?;
        let (rows, contents) = (None, None);
        if is_null(items.data_type()) {
            let content = Content::Text(items.clone());
            return Ok(Conversations::Turns(Turns { rows, nulls: None, roles, role: items, contents, content }.into()));
        }
        let turns = items.as_struct_opt().ok_or_else(|| unexpected(&items))?;
        let (nulls, role, content) =
            (turns.nulls().cloned(), role_of(turns)?.clone(), Content::new(content_of(turns)?));
        Ok(Conversations::Turns(Turns { rows, nulls, roles, role, contents, content }.into()))
    }

    /// Whether there may be pictures in files that it names.
    pub(super) fn names_files(&self) -> bool {
        match self {
            Conversations::Turns(turns) => match &turns.content {
                Content::Parts { image, .. } => image.as_ref().is_some_and(Images::names_files),
                Content::Text(_) | Content::Texts(..) => false,
            },
            Conversations::Json(_) => false,
        }
    }

    /// `None` for a null or an empty list.
    pub(super) fn read(
        &self,
        index: usize,
        column: &str,
        places: ImagePlaces<'_>,
    ) -> Result<Option<Conversation>, RowFault> {
        let mut read = Conversation::default();
        match self {
            Conversations::Json(texts) => match text_at(texts, index) {
                Some(text) if text.len() as u64 > MAX_TEXT_BYTES => {
                    return Err(RowFault::TextBytes { column: column.into(), bytes: text.len() as u64 });
                }
                Some(text) if !text.trim().is_empty() => read.turns = from_json(text, column)?,
                _ => {}
            },
            Conversations::Turns(turns) => turns.read(index, column, places, &mut read)?,
        }
        Ok((!read.turns.is_empty()).then_some(read))
    }
}

fn role_of(turn: &StructArray) -> Result<&ArrayRef, ArrowError> {
    ROLES.iter().find_map(|name| turn.column_by_name(name)).ok_or_else(|| unexpected(turn))
}

fn content_of(turn: &StructArray) -> Result<&ArrayRef, ArrowError> {
    CONTENTS.iter().find_map(|name| turn.column_by_name(name)).ok_or_else(|| unexpected(turn))
}

impl Turns {
    fn read(
        &self,
        index: usize,
        column: &str,
        places: ImagePlaces<'_>,
        read: &mut Conversation,
    ) -> Result<(), RowFault> {
        if self.rows.as_ref().is_some_and(|rows| rows.is_null(index)) {
            return Ok(());
        }
        let roles = few(self.roles.range(index), column, "messages", MAX_MESSAGES)?;
        let contents = self.contents.as_ref().map_or(roles.clone(), |contents| contents.range(index));
        if roles.len() != contents.len() {
            let reason = format!("it has {} roles and {} contents", roles.len(), contents.len());
            return Err(unreadable(column, reason));
        }
        let mut bytes = 0;
        for (turn, (role, content)) in roles.zip(contents).enumerate() {
            let whole = self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(role));
            let said = if whole { self.content.read(content, column, places, &mut read.images)? } else { None };
            let (Some(role), Some(said)) = (text_at(&self.role, role).filter(|_| whole), said) else {
                return Err(RowFault::IncompleteMessage { column: column.into(), turn });
            };
            bytes += (role.len() + said.len()) as u64;
            if bytes > MAX_TEXT_BYTES {
                return Err(RowFault::TextBytes { column: column.into(), bytes });
            }
            read.turns.push(Message { role: speaker(role).into(), content: said });
        }
        Ok(())
    }
}

impl Content {
    fn new(array: &ArrayRef) -> Self {
        let Some((list, items)) = Lists::new(array).filter(|_| !is_null(array.data_type())) else {
            return Content::Text(array.clone());
        };
        let Some(parts) = items.as_struct_opt() else { return Content::Texts(list, items) };
        let find = |name| parts.column_by_name(name).cloned();
        let image = find("image").filter(|image| is_image(image.data_type())).map(|image| Images::new(&image));
        Content::Parts { list, kind: find("type"), text: find("text"), image }
    }

    fn read(
        &self,
        item: usize,
        column: &str,
        places: ImagePlaces<'_>,
        images: &mut Vec<EncodedImage>,
    ) -> Result<Option<String>, RowFault> {
        let (list, said) = match self {
            Content::Text(texts) => return Ok(text_at(texts, item).map(str::to_owned)),
            Content::Texts(list, _) | Content::Parts { list, .. } => (list, String::new()),
        };
        if list.is_null(item) {
            return Ok(None);
        }
        let mut said = Parts { said, column };
        for part in few(list.range(item), column, "parts of a message", MAX_MESSAGES)? {
            match self {
                Content::Text(_) => {}
                Content::Texts(_, texts) => said.text(text_at(texts, part).unwrap_or_default())?,
                Content::Parts { kind, text, image, .. } => {
                    let at = |values: &Option<ArrayRef>| {
                        values.clone().and_then(|values| text_at(&values, part).map(str::to_owned))
                    };
                    let picture = match image {
                        Some(image) => image.read(part, column, places)?,
                        None => None,
                    };
                    said.part(at(kind).as_deref(), at(text).as_deref(), picture.is_some())?;
                    if let Some(picture) = picture {
                        few(0..images.len() + 1, column, "images", super::reader::MAX_IMAGES)?;
                        let bytes = images.iter().map(|image| image.bytes.len() as u64).sum::<u64>();
                        if bytes + picture.bytes.len() as u64 > super::reader::MAX_IMAGE_BYTES {
                            return Err(RowFault::ListBytes { column: column.into(), bytes });
                        }
                        images.push(picture);
                    }
                }
            }
        }
        Ok(Some(said.said))
    }
}

/// A message that is put together of parts.
struct Parts<'a> {
    said: String,
    column: &'a str,
}

impl Parts<'_> {
    fn text(&mut self, text: &str) -> Result<(), RowFault> {
        let bytes = (self.said.len() + text.len()) as u64;
        if bytes > MAX_TEXT_BYTES {
            return Err(RowFault::TextBytes { column: self.column.into(), bytes });
        }
        self.said.push_str(text);
        Ok(())
    }

    /// A part of this type; without one it is what it holds.
    fn part(&mut self, kind: Option<&str>, text: Option<&str>, pictured: bool) -> Result<(), RowFault> {
        match kind {
            Some("text" | "input_text" | "output_text") => self.text(text.unwrap_or_default()),
            // A picture stands on a line of its own, as it does without placeholders.
            Some("image" | "image_url" | "input_image") => self.text(&format!("{IMAGE_PLACEHOLDER}\n")),
            None if pictured => self.text(&format!("{IMAGE_PLACEHOLDER}\n")),
            None => self.text(text.unwrap_or_default()),
            Some(other) => Err(unreadable(
                self.column,
                format!("a part is of type `{}`, expected text or image", super::rejected::cut(other)),
            )),
        }
    }
}

fn unreadable(column: &str, reason: String) -> RowFault {
    RowFault::Conversation { column: column.into(), reason }
}

fn from_json(text: &str, column: &str) -> Result<Vec<Message>, RowFault> {
    let json: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|e| unreadable(column, format!("it is a text, and no JSON: {e}")))?;
    let list = LISTS.iter().find_map(|key| json.get(key)).unwrap_or(&json);
    let Value::Array(turns) = list else {
        return Err(unreadable(column, "its JSON is no list of messages".into()));
    };
    few(0..turns.len(), column, "messages", MAX_MESSAGES)?;
    let message = |(turn, json): (usize, &Value)| {
        let find = |names: [&str; 2]| names.iter().find_map(|name| json.get(name));
        let role = find(ROLES).and_then(Value::as_str);
        let content = match find(CONTENTS) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(parts)) => {
                let mut said = Parts { said: String::new(), column };
                for part in parts {
                    let text = |key: &str| part.get(key).and_then(Value::as_str);
                    match part {
                        Value::String(text) => said.text(text)?,
                        part => {
                            let pictured =
                                ["image", "image_url"].iter().any(|key| part.get(key).is_some_and(|of| !of.is_null()));
                            said.part(text("type"), text("text"), pictured)?;
                        }
                    }
                }
                Some(said.said)
            }
            _ => None,
        };
        match (role, content) {
            (Some(role), Some(content)) => Ok(Message { role: speaker(role).into(), content }),
            _ => Err(RowFault::IncompleteMessage { column: column.into(), turn }),
        }
    };
    turns.iter().enumerate().map(message).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn speakers_have_one_name_each() {
        for (usual, spellings) in [
            ("user", &["user", "human", "Human", "<|User|>", "USER"][..]),
            ("assistant", &["assistant", "gpt", "GPT", "<|Assistant|>", "model"]),
            ("system", &["system", "System"]),
            ("tool", &["tool"]),
        ] {
            for spelling in spellings {
                assert_eq!(speaker(spelling), usual, "{spelling}");
            }
        }
    }

    #[test]
    fn json_is_read_as_the_lists_it_spells() {
        let read = |text| {
            from_json(text, "c").map(|turns| {
                turns.into_iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect::<Vec<_>>()
            })
        };
        let expected = ["user: Hi", "assistant: Ho"];
        for text in [
            r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]"#,
            r#"[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]"#,
            r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}"#,
            r#"[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": ["Ho"]}]"#,
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        let pictured = r#"[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]"#;
        assert_eq!(read(pictured).unwrap(), ["user: <image_placeholder>\nHi"]);
        for (text, part) in [
            ("[{'role': 'user'}]", "no JSON"),
            ("3", "no list of messages"),
            (r#"[{"role": "user"}]"#, "lacks its role or content"),
            (r#"[{"role": "user", "content": [{"type": "video"}]}]"#, "a part is of type `video`"),
        ] {
            let fault = read(text).unwrap_err().to_string();
            assert!(fault.contains(part), "{fault}");
        }
        assert!(matches!(read(&format!("{}1", "[".repeat(5000))), Err(RowFault::Conversation { .. })));
    }
}
