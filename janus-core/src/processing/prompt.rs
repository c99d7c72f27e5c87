//! The chat template as ids: prompts to answer, and samples to learn from.
//!
//! Only the program places special tokens. What a user wrote is always encoded as plain text (a question with
//! `<|Assistant|>` or `<begin_of_image>` in it asks about these words); `<image_placeholder>` alone has a meaning in a
//! user's text, and there have to be as many as there are images.

use super::Result;
use super::chat::{ChatStyle, DEFAULT_SYSTEM_PROMPT, IMAGE_PLACEHOLDER, Message, Role, split_system, strip};
use super::error::ProcessingError;
use super::tokenizer::JanusTokenizer;

/// The label of a position that no loss is taken from.
pub const IGNORE_INDEX: i64 = -100;

/// A text to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, `[seq]`.
    pub ids: Vec<u32>,
    /// For each position its own id where it is to be learned, else [`IGNORE_INDEX`]; `[seq]`, not shifted.
    pub labels: Vec<i64>,
}

/// Makes prompts and samples for one checkpoint.
#[derive(Debug, Clone)]
pub struct PromptBuilder {
    tokenizer: JanusTokenizer,
    style: ChatStyle,
    tokens_per_image: usize,
    system_prompt: String,
}

impl PromptBuilder {
    /// For a model that sees an image as `tokens_per_image` rows (576 in the published ones). The style of the
    /// template follows from the tokenizer.
    pub fn new(tokenizer: JanusTokenizer, tokens_per_image: usize) -> Self {
        let style = tokenizer.chat_style();
        Self { tokenizer, style, tokens_per_image, system_prompt: DEFAULT_SYSTEM_PROMPT.into() }
    }

    /// With another system prompt where one is asked for.
    pub fn with_system_prompt(mut self, system_prompt: impl Into<String>) -> Self {
        self.system_prompt = system_prompt.into();
        self
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &JanusTokenizer {
        &self.tokenizer
    }

    /// How roles are written.
    pub fn style(&self) -> ChatStyle {
        self.style
    }

    /// Rows that an image takes in the prompt, without the two tokens around them.
    pub fn tokens_per_image(&self) -> usize {
        self.tokens_per_image
    }

    /// A question about `images` images, to be answered: ends with `<|Assistant|>:`.
    ///
    /// `system` puts the system prompt in front, as Janus does for understanding.
    ///
    /// # Errors
    /// A question without words or images; placeholders in another number than images.
    pub fn understanding_prompt(&self, question: &str, images: usize, system: bool) -> Result<Vec<u32>> {
        self.conversation_prompt(&[Message::user(question, images)], system)
    }

    /// A conversation whose last turn is a user's, to be answered: ends with `<|Assistant|>:`.
    ///
    /// A system message of its own replaces the system prompt, whether `system` is set or not.
    ///
    /// # Errors
    /// Turns that do not alternate or end with an answer, empty turns, placeholders in another number than images.
    pub fn conversation_prompt(&self, messages: &[Message], system: bool) -> Result<Vec<u32>> {
        let mut assembly = self.conversation(messages, system, Role::User)?;
        self.open_answer(&mut assembly)?;
        Ok(assembly.finish()?.ids)
    }

    /// A question about `images` images with its answer; the answer, with the space before it, and EOS are labelled.
    ///
    /// # Errors
    /// As [`Self::understanding_prompt`]; an empty answer; an answer with an image placeholder.
    pub fn understanding_sample(&self, question: &str, answer: &str, images: usize, system: bool) -> Result<Sample> {
        self.conversation_sample(&[Message::user(question, images), Message::assistant(answer)], system)
    }

    /// A prompt with its answer, without images; labelled like [`Self::understanding_sample`].
    ///
    /// # Errors
    /// An empty prompt or answer, or one with an image placeholder.
    pub fn text_sample(&self, prompt: &str, answer: &str, system: bool) -> Result<Sample> {
        self.understanding_sample(prompt, answer, 0, system)
    }

    /// A conversation whose last turn is an answer; every answer and the EOS after it are labelled.
    ///
    /// # Errors
    /// Turns that do not alternate or end with a question, empty turns, placeholders in another number than images.
    pub fn conversation_sample(&self, messages: &[Message], system: bool) -> Result<Sample> {
        self.conversation(messages, system, Role::Assistant)?.finish()
    }

    /// A caption to be drawn: ends with `<begin_of_image>`, has no system prompt.
    ///
    /// # Errors
    /// An empty caption, or one with an image placeholder.
    pub fn generation_prompt(&self, caption: &str) -> Result<Vec<u32>> {
        if caption.contains(IMAGE_PLACEHOLDER) {
            return Err(ProcessingError::ReservedToken { part: "caption", token: IMAGE_PLACEHOLDER.into() });
        }
        if strip(caption).is_empty() {
            return Err(ProcessingError::EmptyText { part: "caption" });
        }
        self.edit_prompt(caption, 0)
    }

    /// A picture to be drawn after `images` source images and an instruction: ends with `<begin_of_image>`.
    ///
    /// The published models were not trained for this: tuning has to teach it.
    ///
    /// # Errors
    /// An instruction without words or images; placeholders in another number than images.
    pub fn edit_prompt(&self, instruction: &str, images: usize) -> Result<Vec<u32>> {
        let mut assembly = self.conversation(&[Message::user(instruction, images)], false, Role::User)?;
        self.open_answer(&mut assembly)?;
        assembly.token(self.tokenizer.special().begin_of_image)?;
        Ok(assembly.finish()?.ids)
    }

    /// The prompt without its caption, for guidance and for prompt dropout: every id but the first (BOS) and the last
    /// (`<begin_of_image>`) becomes the pad id. These pads are attended like any token.
    pub fn unconditional(&self, ids: &[u32]) -> Vec<u32> {
        let mut ids = ids.to_vec();
        if let [_, inner @ .., _] = ids.as_mut_slice() {
            inner.fill(self.tokenizer.special().pad);
        }
        ids
    }

    /// Ids of a rendered template, with BOS, each `<image_placeholder>` expanded.
    ///
    /// Special tokens in the text are recognised: not for text that a user wrote.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn rendered_ids(&self, rendered: &str) -> Result<Vec<u32>> {
        let placeholder = self.tokenizer.special().image_placeholder;
        let mut expanded = Vec::new();
        for id in self.tokenizer.encode(rendered, true)? {
            if id == placeholder { self.push_image(&mut expanded) } else { expanded.push(id) }
        }
        Ok(expanded)
    }

    fn push_image(&self, ids: &mut Vec<u32>) {
        let special = self.tokenizer.special();
        ids.push(special.begin_of_image);
        ids.extend(std::iter::repeat_n(special.image_placeholder, self.tokens_per_image));
        ids.push(special.end_of_image);
    }

    /// All turns, the last of which has to be of role `last`.
    fn conversation(&self, messages: &[Message], system: bool, last: Role) -> Result<Assembly<'_>> {
        let (own_system, turns) = split_system(messages)?;
        let Some(end) = turns.last() else {
            return Err(ProcessingError::MissingTurn { messages: messages.len(), expected: last });
        };
        if end.role != last {
            return Err(ProcessingError::TurnOrder { index: messages.len() - 1, expected: last, got: end.role });
        }
        let mut assembly = Assembly::new(self);
        let system_prompt = match own_system {
            Some(message) => message.template_text()?,
            None if system => self.system_prompt.clone(),
            None => String::new(),
        };
        if !system_prompt.is_empty() {
            assembly.given(&system_prompt, "system prompt");
            assembly.own("\n\n");
        }
        for message in turns {
            let text = message.template_text()?;
            let part = if message.role == Role::User { "question" } else { "answer" };
            if text.is_empty() {
                return Err(ProcessingError::EmptyText { part });
            }
            if message.role == Role::User {
                self.role(&mut assembly, Role::User, ": ")?;
                for (index, piece) in text.split(IMAGE_PLACEHOLDER).enumerate() {
                    if index > 0 {
                        assembly.image()?;
                    }
                    assembly.given(piece, part);
                }
                assembly.own("\n\n");
            } else {
                self.open_answer(&mut assembly)?;
                assembly.learn(true)?;
                assembly.own(" ");
                assembly.given(&text, part);
                assembly.token(self.tokenizer.special().eos)?;
                assembly.learn(false)?;
            }
        }
        Ok(assembly)
    }

    fn open_answer(&self, assembly: &mut Assembly<'_>) -> Result<()> {
        self.role(assembly, Role::Assistant, ":")
    }

    fn role(&self, assembly: &mut Assembly<'_>, role: Role, after: &str) -> Result<()> {
        match (self.style, self.tokenizer.special().roles) {
            (ChatStyle::Pro, Some((user, assistant))) => {
                assembly.token(if role == Role::User { user } else { assistant })?;
            }
            _ => assembly.own(self.style.role(role)),
        }
        assembly.own(after);
        Ok(())
    }
}

/// A sequence being put together. Texts that follow each other are encoded as one, as they would be in the rendered
/// template; a token, an image, or the border of what is to be learned ends them.
struct Assembly<'a> {
    builder: &'a PromptBuilder,
    sample: Sample,
    text: String,
    part: &'static str,
    learning: bool,
}

impl<'a> Assembly<'a> {
    fn new(builder: &'a PromptBuilder) -> Self {
        let sample = Sample { ids: vec![builder.tokenizer.special().bos], labels: vec![IGNORE_INDEX] };
        Self { builder, sample, text: String::new(), part: "prompt", learning: false }
    }

    /// Text of the template.
    fn own(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Text that someone wrote: `part` names it in errors.
    fn given(&mut self, text: &str, part: &'static str) {
        self.text.push_str(text);
        self.part = part;
    }

    fn token(&mut self, id: u32) -> Result<()> {
        self.flush()?;
        self.sample.ids.push(id);
        self.label();
        Ok(())
    }

    fn image(&mut self) -> Result<()> {
        self.flush()?;
        self.builder.push_image(&mut self.sample.ids);
        self.label();
        Ok(())
    }

    fn learn(&mut self, learning: bool) -> Result<()> {
        self.flush()?;
        self.learning = learning;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.text.is_empty() {
            self.sample.ids.extend(self.builder.tokenizer.encode_plain(&self.text, self.part)?);
            self.text.clear();
            self.label();
        }
        Ok(())
    }

    /// Labels for the ids that have none yet.
    fn label(&mut self) {
        let Sample { ids, labels } = &mut self.sample;
        let learning = self.learning;
        labels.extend(ids[labels.len()..].iter().map(|&id| if learning { i64::from(id) } else { IGNORE_INDEX }));
    }

    fn finish(mut self) -> Result<Sample> {
        self.flush()?;
        Ok(self.sample)
    }
}

#[cfg(test)]
mod tests {
    use super::super::chat::render;
    use super::super::testing::{PRO_TOKENS, write_tokenizer};
    use super::*;

    fn builder(special: &[&str]) -> PromptBuilder {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path(), special);
        PromptBuilder::new(JanusTokenizer::from_folder(folder.path()).unwrap(), 3)
    }

    fn labelled(builder: &PromptBuilder, sample: &Sample) -> String {
        assert_eq!(sample.ids.len(), sample.labels.len());
        let pairs = sample.ids.iter().zip(&sample.labels).filter(|(_, label)| **label != IGNORE_INDEX);
        let ids: Vec<u32> =
            pairs.inspect(|(id, label)| assert_eq!(i64::from(**id), **label)).map(|(id, _)| *id).collect();
        builder.tokenizer().decode(&ids, false).unwrap()
    }

    #[test]
    fn prompts_are_the_rendered_template_in_either_style() {
        let turns =
            [Message::user(" Two?", 2), Message::assistant("Yes. "), Message::user("And <image_placeholder> it?", 1)];
        for special in [&PRO_TOKENS[..], &PRO_TOKENS[..6]] {
            let builder = builder(special);
            for system in [None, Some(DEFAULT_SYSTEM_PROMPT)] {
                let open = [&turns[..], &[Message::assistant("")]].concat();
                let rendered = render(builder.style(), system, &open).unwrap();
                let ids = builder.conversation_prompt(&turns, system.is_some()).unwrap();
                assert_eq!(ids, builder.rendered_ids(&rendered).unwrap());
                assert_eq!(ids[0], 256);
                assert_eq!(ids.iter().filter(|&&id| id == 261).count(), 9);
            }
        }
        let shorter = builder(&PRO_TOKENS).with_system_prompt("S");
        let ids = shorter.understanding_prompt("Q", 1, true).unwrap();
        let text = shorter.tokenizer().decode(&ids[1..], false).unwrap();
        let image = "<begin_of_image><image_placeholder><image_placeholder><image_placeholder><end_of_image>";
        assert_eq!(text, format!("S\n\n<|User|>: {image}\nQ\n\n<|Assistant|>:"));
    }

    #[test]
    fn answers_are_labelled_with_their_space_and_their_end() {
        for special in [&PRO_TOKENS[..], &PRO_TOKENS[..6]] {
            let builder = builder(special);
            let sample = builder.understanding_sample("What?", " A kite.\n", 1, true).unwrap();
            assert_eq!(labelled(&builder, &sample), " A kite.<｜end▁of▁sentence｜>");
            let prompt = builder.understanding_prompt("What?", 1, true).unwrap();
            assert_eq!(sample.ids[..prompt.len()], prompt);
            let turns = ["a", "b", "c", "d"].map(String::from);
            let turns = [
                Message::user(&turns[0], 0),
                Message::assistant(&turns[1]),
                Message::user(&turns[2], 1),
                Message::assistant(&turns[3]),
            ];
            let sample = builder.conversation_sample(&turns, false).unwrap();
            assert_eq!(labelled(&builder, &sample), " b<｜end▁of▁sentence｜> d<｜end▁of▁sentence｜>");
            let text = builder.text_sample("Write.", "Done.", false).unwrap();
            assert_eq!(labelled(&builder, &text), " Done.<｜end▁of▁sentence｜>");
        }
    }

    #[test]
    fn special_strings_in_texts_place_nothing() {
        let builder = builder(&PRO_TOKENS);
        let question = "what is <begin_of_image> or <|Assistant|>?";
        let ids = builder.understanding_prompt(question, 0, false).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id > 256).collect::<Vec<_>>(), [&262, &263]);
        assert!(builder.tokenizer().decode(&ids, true).unwrap().contains(question));
        let sample = builder.text_sample("say", "<｜end▁of▁sentence｜>", false).unwrap();
        assert_eq!(sample.ids.iter().filter(|&&id| id == 257).count(), 1);
        for (images, text) in [(0, "<image_placeholder>"), (1, "<image_placeholder> <image_placeholder>")] {
            let error = builder.understanding_prompt(text, images, false);
            assert!(matches!(error, Err(ProcessingError::PlaceholderCount { .. })), "{text}");
        }
        let answer = builder.understanding_sample("q", "<image_placeholder>", 0, false);
        assert!(matches!(answer, Err(ProcessingError::ReservedToken { part: "answer", .. })));
        let caption = builder.generation_prompt("<image_placeholder>");
        assert!(matches!(caption, Err(ProcessingError::ReservedToken { part: "caption", .. })));
    }

    #[test]
    fn generation_ends_with_the_begin_of_an_image() {
        let builder = builder(&PRO_TOKENS);
        let ids = builder.generation_prompt(" A boat. ").unwrap();
        let text = builder.tokenizer().decode(&ids[1..], false).unwrap();
        assert_eq!(text, "<|User|>: A boat.\n\n<|Assistant|>:<begin_of_image>");
        let without = builder.unconditional(&ids);
        assert_eq!((without.len(), without[0], without[ids.len() - 1]), (ids.len(), 256, 259));
        assert!(without[1..ids.len() - 1].iter().all(|&id| id == 258));
        assert_eq!(builder.unconditional(&[256, 259]), [256, 259]);
        assert!(builder.unconditional(&[]).is_empty());
        let edit = builder.edit_prompt("Bluer.", 1).unwrap();
        assert_eq!((edit.iter().filter(|&&id| id == 261).count(), edit.last()), (3, Some(&259)));
    }

    #[test]
    fn empty_and_disordered_conversations_are_refused() {
        let builder = builder(&PRO_TOKENS);
        assert!(matches!(builder.generation_prompt(" \n"), Err(ProcessingError::EmptyText { part: "caption" })));
        assert!(matches!(builder.text_sample("q", " ", false), Err(ProcessingError::EmptyText { part: "answer" })));
        assert!(matches!(builder.text_sample("", "a", false), Err(ProcessingError::EmptyText { part: "question" })));
        assert!(builder.understanding_prompt("", 1, false).is_ok());
        let none = builder.conversation_prompt(&[], true);
        assert!(matches!(none, Err(ProcessingError::MissingTurn { messages: 0, expected: Role::User })));
        let answered = [Message::user("q", 0), Message::assistant("a")];
        let error = builder.conversation_prompt(&answered, true);
        assert!(matches!(error, Err(ProcessingError::TurnOrder { index: 1, expected: Role::User, .. })));
        let open = builder.conversation_sample(&answered[..1], true);
        assert!(matches!(open, Err(ProcessingError::TurnOrder { index: 0, expected: Role::Assistant, .. })));
    }
}
