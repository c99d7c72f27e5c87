//! Where a row's pictures stand in its texts, whatever toolkit they were written for, and what is noticed of a table's rows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use janus_core::processing::find_placeholders;

/// Spellings that are counted of a table.
const MAX_SPELLINGS: usize = 8;

/// A user's texts with their pictures.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Each text with `<image_placeholder>` where a picture stands, and how many that are.
    pub(crate) texts: Vec<(String, usize)>,
    /// Spellings of other toolkits that were taken for placeholders.
    pub(crate) foreign: Vec<String>,
}

/// Places pictures where the texts of a user say. Where none says anything, none has any.
///
/// # Errors
/// Both numbers, where they do not fit.
pub(crate) fn place(texts: &[&str], pictures: usize) -> Result<Placed, String> {
    let all: Vec<_> = texts.iter().map(|text| find_placeholders(text)).collect();
    // Without pictures, what may mean something else does.
    let count = |found: &janus_core::processing::Placeholders| if pictures == 0 { found.certain } else { found.count };
    let total: usize = all.iter().map(count).sum();
    if let Some((spelling, _)) = all.iter().filter_map(|found| found.video.as_ref()).find(|of| pictures > 0 || of.1) {
        return Err(format!("its text has `{spelling}`, which stands for a video: only pictures are read"));
    }
    let mut foreign: Vec<String> = Vec::new();
    for spelling in all.iter().flat_map(|found| &found.foreign) {
        if !foreign.contains(spelling) {
            foreign.push(spelling.clone());
        }
    }
    if total == 0 {
        return Ok(Placed { texts: texts.iter().map(|text| ((*text).to_owned(), 0)).collect(), foreign: Vec::new() });
    }
    let spelt = if foreign.is_empty() { String::new() } else { format!(" (`{}`)", foreign.join("`, `")) };
    if total != pictures {
        let (s, have) = (if total == 1 { "" } else { "s" }, if pictures == 1 { "picture" } else { "pictures" });
        return Err(format!("its text has {total} image placeholder{s}{spelt}, but there are {pictures} {have}"));
    }
    let mut numbers = all.iter().flat_map(|found| found.numbers.iter().copied()).peekable();
    let first = numbers.peek().copied().unwrap_or(0);
    if first > 1 || !numbers.zip(first..).all(|(number, expected)| number == expected) {
        return Err(format!("its text names pictures by number{spelt}, but not each once and in their order"));
    }
    Ok(Placed { texts: all.into_iter().map(|found| (found.text, found.count)).collect(), foreign })
}

/// That a text which places no pictures names none.
///
/// # Errors
/// What it contains.
pub(super) fn refuse_pictures(part: &str, text: &str) -> Result<(), String> {
    let found = find_placeholders(text);
    if let Some((spelling, true)) = &found.video {
        return Err(format!("the {part} contains `{spelling}`, which stands for a video"));
    }
    if found.certain == 0 {
        return Ok(());
    }
    let spelling = found.foreign.first().map_or(janus_core::processing::IMAGE_PLACEHOLDER, String::as_str);
    Err(format!("the {part} contains `{spelling}`, which stands for a picture"))
}

/// What is noticed of a table's rows while they are checked.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// Rows by spelling.
    foreign: Mutex<BTreeMap<String, u64>>,
    /// One of the spellings that were told.
    told: OnceLock<String>,
    cut: AtomicU64,
}

impl Noticed {
    /// Of one good row.
    pub(super) fn add(&self, foreign: &[String], is_cut: bool) {
        self.cut.fetch_add(u64::from(is_cut), Ordering::Relaxed);
        if foreign.is_empty() {
            return;
        }
        let mut counts = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        for spelling in foreign {
            if counts.len() < MAX_SPELLINGS || counts.contains_key(spelling) {
                *counts.entry(spelling.clone()).or_default() += 1;
            }
        }
    }

    /// All of it in words, once.
    pub(super) fn take(&self) -> Vec<String> {
        let counts = std::mem::take(&mut *self.foreign.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(spelling) = counts.keys().next() {
            self.told.get_or_init(|| spelling.clone());
        }
        let rows = |rows: u64| if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
        let mut notes: Vec<String> = counts
            .into_iter()
            .map(|(spelling, count)| {
                format!(
                    "`{spelling}` in {} was taken for the place of a picture, as `<image_placeholder>`",
                    rows(count)
                )
            })
            .collect();
        let cut = self.cut.swap(0, Ordering::Relaxed);
        if cut > 0 {
            notes.push(format!("the question of {} was too long: its end is cut off", rows(cut)));
        }
        notes
    }

    /// What was text before other toolkits' placeholders were known.
    pub(super) fn read_otherwise_before(&self) -> Option<String> {
        self.told.get().map(|spelling| format!("`{spelling}` was text and is the place of a picture"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(texts: &[&str], pictures: usize) -> Result<Vec<(String, usize)>, String> {
        let texts = place(texts, pictures)?.texts;
        Ok(texts.into_iter().map(|(text, count)| (text.replace("<image_placeholder>", "@"), count)).collect())
    }

    #[test]
    fn pictures_stand_where_texts_say_if_their_numbers_fit() {
        assert_eq!(placed(&["Compare <image> with <image>"], 2), Ok(vec![("Compare @ with @".into(), 2)]));
        let turns = ["<|image_1|> a", "b <|image_2|>"];
        assert_eq!(placed(&turns, 2), Ok(vec![("@ a".into(), 1), ("b @".into(), 1)]));
        assert_eq!(placed(&["What?"], 3), Ok(vec![("What?".into(), 0)]));
        assert_eq!(placed(&["the <video> tag, [Image]"], 0), Ok(vec![("the <video> tag, [Image]".into(), 0)]));
        assert_eq!(placed(&["the <img> tag"], 0), Ok(vec![("the <img> tag".into(), 0)]));
        for (texts, pictures, said) in [
            (&["<image> and <image>"][..], 1, "2 image placeholders (`<image>`), but there are 1 picture"),
            (&["<image>", "[IMG]"], 3, "2 image placeholders (`<image>`, `[IMG]`), but there are 3 pictures"),
            (&["<|vision_start|><|image_pad|><|vision_end|>"], 0, "1 image placeholder (`<|vision_start|>`)"),
            (&["<image_placeholder>"], 0, "1 image placeholder, but there are 0 pictures"),
            (&["<video>What?"], 1, "has `<video>`, which stands for a video"),
            (&["<|vision_start|><|video_pad|><|vision_end|>What?"], 1, "has `<|video_pad|>`, which"),
            (&["<|video_pad|>What?"], 0, "stands for a video"),
            (&["<image>a?<image_end>"], 1, "2 image placeholders (`<image>`, `<image_end>`)"),
            (&["<image 2> <image 1>"], 2, "not each once and in their order"),
        ] {
            let message = placed(texts, pictures).unwrap_err();
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn answers_name_no_pictures() {
        assert_eq!(refuse_pictures("answer", "use the <img> tag"), Ok(()));
        for text in ["<image>", "a <|image_pad|>", "<image_placeholder>", "see <image 2>"] {
            assert!(refuse_pictures("answer", text).unwrap_err().contains("the answer contains `<"));
        }
    }

    #[test]
    fn what_is_noticed_is_told_once() {
        let noticed = Noticed::default();
        noticed.add(&["<image>".into()], false);
        noticed.add(&["<image>".into(), "[IMG]".into()], true);
        let notes = noticed.take();
        assert!(notes[0].contains("`<image>` in 2 rows") && notes[1].contains("`[IMG]` in 1 row "), "{notes:?}");
        assert!(notes[2].contains("1 row was too long"), "{notes:?}");
        assert_eq!(noticed.take(), [""; 0]);
        assert_eq!(noticed.read_otherwise_before().unwrap(), "`<image>` was text and is the place of a picture");
        assert_eq!(Noticed::default().read_otherwise_before(), None);
    }
}
