//! How long a row may be: the base's positions, and `data_limits.max_tokens`.

use janus_core::processing::{IMAGE_PLACEHOLDER, Message, Role, Sample};

use super::error::TaskError;
use crate::base::Base;
use crate::data::Row;
use crate::recipe::{DataLimits, DataSection, TooLong};

/// Image codes that a base's image tokenizer makes of a picture.
pub(crate) fn codes_per_image(base: &Base) -> usize {
    let grid = base.config().vision.image_size / base.config().vq.down_factor().max(1);
    grid * grid
}

/// Tokens of an answer for which a prompt leaves room in the base, at most `asked`.
///
/// # Errors
/// [`TaskError::PromptTooLong`] where there is none.
pub fn answer_room(base: &Base, prompt: &[u32], asked: usize) -> Result<usize, TaskError> {
    check_room(base, "prompt", prompt, 1, " for it and at least one token of an answer")?;
    Ok(asked.min(base.config().text.max_position_embeddings.saturating_sub(prompt.len())))
}

/// That a prompt leaves room in the base for the codes of a picture.
///
/// # Errors
/// [`TaskError::PromptTooLong`] where it does not.
pub fn check_drawing_room(base: &Base, prompt: &[u32]) -> Result<(), TaskError> {
    let codes = codes_per_image(base);
    // The last code is not read any more.
    let needed = codes.saturating_sub(1);
    check_room(base, "prompt", prompt, needed, &format!(" for it and the {codes} codes of a picture"))
}

/// That a caption, which nothing comes behind, is no longer than the base has positions.
///
/// # Errors
/// [`TaskError::PromptTooLong`] where it is.
pub fn check_caption(base: &Base, ids: &[u32]) -> Result<(), TaskError> {
    check_room(base, "caption", ids, 0, "")
}

fn check_room(base: &Base, what: &'static str, ids: &[u32], needed: usize, room: &str) -> Result<(), TaskError> {
    let positions = base.config().text.max_position_embeddings;
    if ids.len() + needed <= positions {
        return Ok(());
    }
    let special = base.tokenizer().special();
    // A prompt to draw ends with the mark at which a picture begins.
    let begins = |two: &&[u32]| two[0] == special.begin_of_image && two[1] == special.image_placeholder;
    Err(TaskError::PromptTooLong {
        what,
        tokens: ids.len(),
        pictures: ids.windows(2).filter(begins).count(),
        picture_tokens: ids.iter().filter(|id| **id == special.image_placeholder).count(),
        positions,
        excess: ids.len() + needed - positions,
        room: room.into(),
    })
}

/// What to set where cutting a text would do.
const CUTS: &str = "`too_long = \"truncate\"` in `[[data]]` cuts";

/// Bytes of a text for each token that a row may have, up to which a text is read as a whole: prose has four or five.
const BYTES_PER_TOKEN: usize = 8;
const MIN_PIECE_BYTES: usize = 1024;

/// Bounds on the rows of a table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Length {
    max_tokens: Option<u64>,
    cuts: bool,
}

/// A conversation that is short enough.
#[derive(Debug)]
pub(super) struct Fitted {
    pub(super) turns: Vec<Message>,
    pub(super) sample: Sample,
    /// Whether something of a question was cut off.
    pub(super) is_cut: bool,
}

impl Length {
    pub(super) fn of(section: &DataSection, limits: &DataLimits) -> Self {
        Self { max_tokens: limits.max_tokens, cuts: section.too_long == Some(TooLong::Truncate) }
    }

    /// That a row of so many tokens can be read.
    ///
    /// # Errors
    /// Both numbers.
    pub(super) fn check(&self, base: &Base, tokens: usize) -> Result<(), String> {
        let positions = base.config().text.max_position_embeddings;
        if tokens > positions {
            return Err(format!("it has {tokens} tokens with its pictures, the base has {positions} positions"));
        }
        match self.max_tokens.filter(|most| tokens as u64 > *most) {
            Some(most) => {
                Err(format!("it has {tokens} tokens with its pictures, more than `data_limits.max_tokens` = {most}"))
            }
            None => Ok(()),
        }
    }

    /// That texts are not far longer than a row may be. They are looked at piece by piece and no further than until that is known.
    ///
    /// # Errors
    /// As [`Length::check`], with how many tokens were found.
    pub(super) fn check_texts<'a>(
        &self,
        base: &Base,
        texts: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), String> {
        // Blanks around a text are no part of a prompt.
        let texts = texts.map(str::trim);
        let positions = base.config().text.max_position_embeddings;
        let most = self.max_tokens.and_then(|most| usize::try_from(most).ok());
        let most = most.map_or(positions, |most| most.min(positions));
        let more =
            |tokens| self.check(base, tokens).map_err(|reason| reason.replacen("it has ", "it has more than ", 1));
        let bytes = texts.clone().map(str::len).fold(0, usize::saturating_add);
        if let Some(longest) = base.tokenizer().longest_token_bytes() {
            more(bytes / longest.max(1))?;
        }
        let piece_bytes = most.saturating_mul(BYTES_PER_TOKEN).max(MIN_PIECE_BYTES);
        if bytes <= piece_bytes {
            return Ok(());
        }
        // A token on either side of a cut may be one in the whole text: twice as many are too many in any case.
        let (mut found, enough) = (0, most.saturating_mul(2).saturating_add(piece_bytes / MIN_PIECE_BYTES));
        for mut rest in texts {
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rest.floor_char_boundary(piece_bytes.min(rest.len())));
                // What is wrong with it is told where all of it is read.
                found += base.tokenizer().encode_plain(piece, "text").map_or(0, |ids| ids.len());
                if found > enough {
                    return more(found);
                }
                rest = behind;
            }
        }
        Ok(())
    }

    /// The same of all texts of a row, before anything is made of them; where questions are cut, nothing is said of it yet.
    ///
    /// # Errors
    /// As [`Length::check_texts`].
    pub(super) fn check_row(&self, base: &Base, row: &Row) -> Result<(), String> {
        if self.cuts {
            return Ok(());
        }
        let texts = |of_answers: bool| {
            let is_wanted = move |is_question: bool| !(of_answers && is_question);
            let texts = row.texts.iter().filter(move |(role, _)| is_wanted(matches!(**role, "question" | "prompt")));
            let messages = row.messages.values().flatten().filter(move |message| is_wanted(message.role == "user"));
            texts.map(|(_, text)| text.as_str()).chain(messages.map(|message| message.content.as_str()))
        };
        let Err(reason) = self.check_texts(base, texts(false)) else { return Ok(()) };
        Err(match self.check_texts(base, texts(true)) {
            Ok(()) => format!("{reason}; {CUTS} questions and prompts"),
            Err(_) => format!("{reason}; what is no question of it is too long alone"),
        })
    }

    /// A conversation with its ids, the longest question cut from its end where the recipe says so.
    ///
    /// # Errors
    /// Turns that make no sample; more tokens than are allowed, of which cutting does not free enough.
    pub(super) fn fit(&self, base: &Base, mut turns: Vec<Message>) -> Result<Fitted, String> {
        let judged = |turns: &[Message]| -> Result<Result<Sample, String>, String> {
            if let Err(reason) = self.check_texts(base, turns.iter().map(|turn| turn.text.as_str())) {
                return Ok(Err(reason));
            }
            let sample = base.prompts().conversation_sample(turns, true).map_err(|e| e.to_string())?;
            Ok(self.check(base, sample.ids.len()).map(|()| sample))
        };
        let reason = match judged(&turns)? {
            Ok(sample) => return Ok(Fitted { turns, sample, is_cut: false }),
            Err(reason) => reason,
        };
        let asked = |(place, turn): (usize, &Message)| (turn.role == Role::User).then(|| (letters(&turn.text), place));
        let mut questions: Vec<(usize, usize)> = turns.iter().enumerate().filter_map(asked).collect();
        questions.sort_by(|one, other| other.cmp(one));
        let others = turns.iter().filter(|turn| turn.role != Role::User).map(|turn| turn.text.as_str());
        if self.check_texts(base, others).is_err() {
            questions.clear();
        }
        for (_, place) in questions {
            let Some(whole) = turns.get(place).map(|turn| turn.text.clone()) else { continue };
            let mut with = |text: String| {
                if let Some(turn) = turns.get_mut(place) {
                    turn.text = text;
                }
                judged(&turns).is_ok_and(|fits| fits.is_ok())
            };
            if !self.cuts {
                if with(first_word(&whole)) {
                    return Err(format!("{reason}; {CUTS} questions"));
                }
            } else if let Some(text) = longest_beginning(&whole, &mut with) {
                with(text);
                let sample = judged(&turns)??;
                return Ok(Fitted { turns, sample, is_cut: true });
            }
            // Not enough by itself: its least stays, and the next longest is cut.
            with(beginning(&whole, 1));
        }
        let pictures = if turns.iter().any(|turn| turn.images > 0) { "pictures and " } else { "" };
        let Some(system) = turns.iter_mut().find(|turn| turn.role == Role::System) else {
            return Err(format!("{reason}; its {pictures}answers alone are too long"));
        };
        system.text = beginning(&system.text, 1);
        Err(match judged(&turns).is_ok_and(|fits| fits.is_ok()) {
            true => format!("{reason}; its system message is too long, which is never cut"),
            false => format!("{reason}; its {pictures}answers alone are too long, without its system message"),
        })
    }

    /// A text of one turn, cut from its end where the recipe says so, and whether it was; `tokens` are those of the row with it.
    ///
    /// # Errors
    /// Text that makes no prompt; more tokens than are allowed, of which cutting does not free enough.
    pub(super) fn fit_text(
        &self,
        base: &Base,
        text: &str,
        tokens: impl Fn(&str) -> Result<usize, String>,
    ) -> Result<(String, bool), String> {
        let judged = |text: &str| -> Result<Result<(), String>, String> {
            if let Err(reason) = self.check_texts(base, std::iter::once(text)) {
                return Ok(Err(reason));
            }
            Ok(self.check(base, tokens(text)?))
        };
        let Err(reason) = judged(text)? else { return Ok((text.to_owned(), false)) };
        let mut fits = |text: String| judged(&text).is_ok_and(|fits| fits.is_ok());
        let found = if self.cuts { longest_beginning(text, &mut fits) } else { None };
        match found {
            Some(text) => Ok((text, true)),
            None if !self.cuts && fits(first_word(text)) => Err(format!("{reason}; {CUTS} prompts")),
            None => Err(format!("{reason}; its pictures alone are too long")),
        }
    }
}

/// The least beginning of a text that is something of it, with all of its placeholders.
fn first_word(text: &str) -> String {
    let blank: usize =
        text.split(IMAGE_PLACEHOLDER).flat_map(str::chars).take_while(|letter| letter.is_whitespace()).count();
    beginning(text, blank + 1)
}

/// Characters of a text beside its placeholders.
fn letters(text: &str) -> usize {
    text.split(IMAGE_PLACEHOLDER).map(|piece| piece.chars().count()).sum()
}

/// The first `count` characters of a text, with all of its placeholders.
fn beginning(text: &str, mut count: usize) -> String {
    let mut kept = String::new();
    for (number, piece) in text.split(IMAGE_PLACEHOLDER).enumerate() {
        if number > 0 {
            kept.push_str(IMAGE_PLACEHOLDER);
        }
        let before = kept.len();
        kept.extend(piece.chars().take(count));
        count -= kept[before..].chars().count();
    }
    kept
}

/// The longest beginning of a text that fits, with all of its placeholders and at least one word of it; `None` where none does.
fn longest_beginning(text: &str, fits: &mut dyn FnMut(String) -> bool) -> Option<String> {
    let (mut fitting, mut too_long) = (0, letters(text));
    // Longer texts have more tokens, but for single letters: what is found fits in any case.
    while fitting + 1 < too_long {
        let middle = fitting.midpoint(too_long);
        if fits(beginning(text, middle)) { fitting = middle } else { too_long = middle }
    }
    let kept = beginning(text, fitting);
    (fitting > 0 && kept.replace(IMAGE_PLACEHOLDER, "").chars().any(|letter| !letter.is_whitespace())).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_keep_all_placeholders() {
        let text = format!("ab {IMAGE_PLACEHOLDER}cdé{IMAGE_PLACEHOLDER}fg");
        assert_eq!(letters(&text), 8);
        for (count, expected) in [(0, "@@"), (2, "ab@@"), (6, "ab @cdé@"), (7, "ab @cdé@f"), (99, "ab @cdé@fg")] {
            assert_eq!(beginning(&text, count).replace(IMAGE_PLACEHOLDER, "@"), expected);
        }
    }

    #[test]
    fn the_first_word_is_more_than_blanks() {
        let text = format!("  {IMAGE_PLACEHOLDER} cde{IMAGE_PLACEHOLDER}f");
        assert_eq!(first_word(&text).replace(IMAGE_PLACEHOLDER, "@"), "  @ c@");
    }

    #[test]
    fn the_longest_beginning_is_found() {
        for most in [1, 5, 17, 29] {
            let text = "é".repeat(30);
            let cut = longest_beginning(&text, &mut |text| text.chars().count() <= most).unwrap();
            assert_eq!(cut.chars().count(), most);
        }
        assert_eq!(longest_beginning("text", &mut |_| false), None);
        assert_eq!(longest_beginning("  text", &mut |text| text.len() <= 2), None, "nothing is left of the question");
    }
}
