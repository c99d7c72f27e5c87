//! The chat template as strings.
//!
//! Source: deepseek-ai/Janus `janus/utils/conversation.py` (templates `deepseek` and `deepseek_old`), and for
//! [`render_transformers`] the chat template that Hugging Face transformers ships for Janus.

use std::fmt;
use std::str::FromStr;

use super::Result;
use super::error::ProcessingError;
use super::tokenizer::{ASSISTANT_TOKEN, DEFAULT_EOS_TOKEN, USER_TOKEN};

/// The system prompt that Janus was trained with for image understanding; text to image has none.
pub const DEFAULT_SYSTEM_PROMPT: &str = "You are a helpful language and vision assistant. You are able to understand the \
     visual content that the user provides, and assist the user with a variety of tasks using natural language.";

/// What stands for one image in a text.
pub const IMAGE_PLACEHOLDER: &str = "<image_placeholder>";

/// How the roles are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatStyle {
    /// `<|User|>` and `<|Assistant|>`, special tokens of Janus-Pro.
    Pro,
    /// `User` and `Assistant`, plain text, as in Janus-1.3B.
    Plain,
}

impl ChatStyle {
    /// How `role` is written; a system message has no role string.
    pub fn role(self, role: Role) -> &'static str {
        match (self, role) {
            (_, Role::System) => "",
            (ChatStyle::Pro, Role::User) => USER_TOKEN,
            (ChatStyle::Pro, Role::Assistant) => ASSISTANT_TOKEN,
            (ChatStyle::Plain, Role::User) => "User",
            (ChatStyle::Plain, Role::Assistant) => "Assistant",
        }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Replaces the default system prompt; at most once, in front.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        })
    }
}

impl FromStr for Role {
    type Err = ProcessingError;

    /// The role's name in either case, or its string in the template of Janus-Pro.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "system" => Ok(Role::System),
            "user" | "<|user|>" => Ok(Role::User),
            "assistant" | "<|assistant|>" => Ok(Role::Assistant),
            _ => Err(ProcessingError::UnknownRole { role: name.into() }),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text. That of a user may say where images go, by [`IMAGE_PLACEHOLDER`] once for each.
    pub text: String,
    /// How many images belong to the turn.
    pub images: usize,
}

impl Message {
    /// A user's turn.
    pub fn user(text: impl Into<String>, images: usize) -> Self {
        Self { role: Role::User, text: text.into(), images }
    }

    /// An assistant's turn.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, text: text.into(), images: 0 }
    }

    /// The text as it goes into the template: a placeholder for each image, stripped of white space at both ends.
    ///
    /// Without placeholders in the text the images come first, each on a line of its own.
    ///
    /// # Errors
    /// Placeholders in another number than images; in a text that is not a user's, any at all.
    pub fn template_text(&self) -> Result<String> {
        let placeholders = self.text.matches(IMAGE_PLACEHOLDER).count();
        if self.role != Role::User && placeholders > 0 {
            let part = if self.role == Role::System { "system prompt" } else { "answer" };
            return Err(ProcessingError::ReservedToken { part, token: IMAGE_PLACEHOLDER.into() });
        }
        if placeholders == 0 && self.role == Role::User && self.images > 0 {
            let images = format!("{IMAGE_PLACEHOLDER}\n").repeat(self.images);
            return Ok(strip(&format!("{images}{}", self.text)).into());
        }
        if placeholders != self.images {
            return Err(ProcessingError::PlaceholderCount { placeholders, images: self.images });
        }
        Ok(strip(&self.text).into())
    }
}

/// Refuses conversations that the template has no form for: turns have to alternate, a user's first, with at most one
/// system message in front. Returns the system message and the turns.
pub(super) fn split_system(messages: &[Message]) -> Result<(Option<&Message>, &[Message])> {
    let (system, turns) = match messages.split_first() {
        Some((first, turns)) if first.role == Role::System => (Some(first), turns),
        _ => (None, messages),
    };
    for (index, message) in turns.iter().enumerate() {
        let expected = if index % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != expected {
            let index = index + usize::from(system.is_some());
            return Err(ProcessingError::TurnOrder { index, expected, got: message.role });
        }
    }
    Ok((system, turns))
}

/// DeepSeek's rendering: `<|User|>: text\n\n<|Assistant|>: text<｜end▁of▁sentence｜>` and so on.
///
/// A turn with an empty text is the role and a colon, which is how a prompt for an answer ends. `system` is the system
/// prompt where the messages bring none of their own; an empty one is left out.
///
/// # Errors
/// Turns that do not alternate, placeholders that do not fit the images.
pub fn render(style: ChatStyle, system: Option<&str>, messages: &[Message]) -> Result<String> {
    let (own_system, turns) = split_system(messages)?;
    let system = match own_system {
        Some(message) => message.template_text()?,
        None => system.unwrap_or_default().to_string(),
    };
    let mut rendered = if system.is_empty() { String::new() } else { format!("{system}\n\n") };
    for message in turns {
        let text = message.template_text()?;
        rendered.push_str(style.role(message.role));
        rendered.push(':');
        if !text.is_empty() {
            rendered.push(' ');
            rendered.push_str(&text);
            rendered.push_str(if message.role == Role::User { "\n\n" } else { DEFAULT_EOS_TOKEN });
        }
    }
    Ok(strip(&rendered).into())
}

/// A part of a message of transformers' chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatPart {
    /// An image.
    Image,
    /// A text.
    Text(String),
}

/// Rendering as the chat template does that transformers ships for Janus, for comparing with it.
///
/// It differs from [`render`]: lines around images are its own affair, the last answer gets no
/// `<｜end▁of▁sentence｜>` unless an answer is to follow, and the system prompt is not in it (the processor puts
/// [`DEFAULT_SYSTEM_PROMPT`] and two newlines before the whole, in text mode and where it is told to).
pub fn render_transformers(messages: &[(Role, Vec<ChatPart>)], add_generation_prompt: bool) -> String {
    let mut rendered = String::new();
    for (index, (role, parts)) in messages.iter().enumerate() {
        let last_message = index + 1 == messages.len();
        match role {
            Role::User => rendered.push_str("<|User|>: "),
            Role::System => rendered.push_str("System: "),
            Role::Assistant => {
                rendered.push_str("<|Assistant|>:");
                let empty = parts.first() == Some(&ChatPart::Text(String::new()));
                if !(last_message && empty && !add_generation_prompt) {
                    rendered.push(' ');
                }
            }
        }
        for (at, part) in parts.iter().enumerate() {
            let (first, last) = (at == 0, at + 1 == parts.len());
            match part {
                ChatPart::Image => {
                    rendered.push_str(if first { "" } else { "\n" });
                    rendered.push_str(IMAGE_PLACEHOLDER);
                    rendered.push_str(if last { "" } else { "\n" });
                }
                ChatPart::Text(text) => {
                    let text = if first { text.trim_start_matches(is_space) } else { text };
                    let text = if last { text.trim_end_matches(is_space) } else { text };
                    if !first && matches!(parts[at - 1], ChatPart::Text(_)) {
                        rendered.push(' ');
                    }
                    rendered.push_str(text);
                }
            }
        }
        if !last_message || add_generation_prompt {
            rendered.push_str(if *role == Role::User { "\n\n" } else { DEFAULT_EOS_TOKEN });
        }
    }
    if add_generation_prompt {
        rendered.push_str("<|Assistant|>:");
    }
    rendered
}

/// White space as Python's `str.strip` understands it: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.strip`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_rendered_as_in_the_original() {
        let turns = [Message::user("  How many? \n", 0), Message::assistant(" Three.\t"), Message::user("Sure?", 0)];
        let open = [&turns[..], &[Message::assistant("")]].concat();
        assert_eq!(
            render(ChatStyle::Pro, None, &open).unwrap(),
            "<|User|>: How many?\n\n<|Assistant|>: Three.<｜end▁of▁sentence｜><|User|>: Sure?\n\n<|Assistant|>:"
        );
        assert_eq!(
            render(ChatStyle::Plain, Some("Be brief."), &open[..2]).unwrap(),
            "Be brief.\n\nUser: How many?\n\nAssistant: Three.<｜end▁of▁sentence｜>"
        );
        let own = [Message { role: Role::System, text: "Own.".into(), images: 0 }, Message::user("Hi", 0)];
        assert_eq!(render(ChatStyle::Pro, Some("Default."), &own).unwrap(), "Own.\n\n<|User|>: Hi");
    }

    #[test]
    fn images_come_first_or_where_the_text_says() {
        let text = |text: &str, images| Message::user(text, images).template_text();
        assert_eq!(text("Why?", 2).unwrap(), "<image_placeholder>\n<image_placeholder>\nWhy?");
        assert_eq!(text("", 1).unwrap(), "<image_placeholder>");
        assert_eq!(text("See <image_placeholder> here", 1).unwrap(), "See <image_placeholder> here");
        for (given, images) in [("<image_placeholder>", 0), ("<image_placeholder>", 2)] {
            assert!(matches!(
                text(given, images),
                Err(ProcessingError::PlaceholderCount { placeholders: 1, images: i }) if i == images
            ));
        }
        let answer = Message::assistant("a <image_placeholder>").template_text();
        assert!(matches!(answer, Err(ProcessingError::ReservedToken { part: "answer", .. })));
    }

    #[test]
    fn turns_have_to_alternate() {
        let user = Message::user("a", 0);
        let twice = render(ChatStyle::Pro, None, &[user.clone(), user.clone()]);
        assert!(matches!(
            twice,
            Err(ProcessingError::TurnOrder { index: 1, expected: Role::Assistant, got: Role::User })
        ));
        let late = [user, Message { role: Role::System, text: "s".into(), images: 0 }];
        assert!(render(ChatStyle::Pro, None, &late).is_err());
        assert!(matches!("tool".parse::<Role>(), Err(ProcessingError::UnknownRole { .. })));
        assert_eq!("Assistant".parse::<Role>().unwrap(), Role::Assistant);
    }
}
