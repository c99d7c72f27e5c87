//! Where a fault is, in a form that can be shown: line, column, the line itself and what to underline in it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::tree::Place;
use crate::visible::is_order;

/// Longer lines are shown in part, around what is underlined.
const MAX_SHOWN_CHARS: usize = 120;
/// Characters left before the underlined part of a line shown in part.
const CHARS_BEFORE: usize = 40;

/// Which text a location is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The recipe file.
    File(PathBuf),
    /// An override, `key=value`, on the command line.
    CommandLine,
}

/// A place in a recipe file or on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The text it is in.
    pub origin: Origin,
    /// Counted from 1; always 1 on the command line.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The line, without control characters, cut where it is too long for a terminal.
    pub text: String,
    /// Characters of `text` before the underlined part.
    pub caret_start: usize,
    /// Characters underlined, at least one.
    pub caret_length: usize,
}

impl Location {
    /// The location's first line in a report: `file:line:column`.
    pub fn heading(&self) -> String {
        match &self.origin {
            Origin::File(path) => format!("{}:{}:{}", path.display(), self.line, self.column),
            Origin::CommandLine => format!("command line, column {}", self.column),
        }
    }

    /// Writes the heading, the line and the carets, followed by `message`.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>, message: &dyn fmt::Display) -> fmt::Result {
        let number = match self.origin {
            Origin::File(_) => self.line.to_string(),
            Origin::CommandLine => String::new(),
        };
        let gutter = " ".repeat(number.len());
        // A tab before the caret stays a tab, so that both lines indent alike.
        let indent: String =
            self.text.chars().take(self.caret_start).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{}", self.heading())?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {}", self.text)?;
        write!(f, "{gutter} | {indent}{} {message}", "^".repeat(self.caret_length))
    }
}

/// The texts that make up a recipe: the file, then the overrides.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    path: &'a Path,
    texts: Vec<&'a str>,
    /// Byte offsets at which the file's lines begin.
    line_starts: Vec<usize>,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str, overrides: &'a [String]) -> Self {
        let texts = std::iter::once(text).chain(overrides.iter().map(String::as_str)).collect();
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, texts, line_starts }
    }

    /// Where the file's text ends, blank lines aside.
    pub(crate) fn end(&self) -> usize {
        self.texts.first().map_or(0, |text| text.trim_end().len())
    }

    /// The line of the file in which a byte lies, counted from 0.
    pub(crate) fn line_of(&self, byte: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= byte).saturating_sub(1)
    }

    /// The text of a line of the file, counted from 0.
    pub(crate) fn line_text(&self, line: usize) -> &'a str {
        let text = self.texts.first().copied().unwrap_or("");
        let start = self.line_starts.get(line).copied().unwrap_or(text.len());
        let end = self.line_starts.get(line + 1).copied().unwrap_or(text.len());
        text.get(start..end).unwrap_or("").trim_end_matches(['\n', '\r'])
    }

    /// What to show for a place.
    pub(crate) fn locate(&self, place: &Place) -> Location {
        let text = self.texts.get(place.source).copied().unwrap_or("");
        // "The end is missing" is best shown at the last thing written, not on the empty line after it.
        let start = floor_char_boundary(text, place.span.start.min(text.trim_end().len()));
        let (origin, line, line_start, line_text) = if place.is_override() {
            (Origin::CommandLine, 0, 0, text)
        } else {
            let line = self.line_of(start);
            let line_start = self.line_starts.get(line).copied().unwrap_or(0);
            (Origin::File(self.path.to_path_buf()), line, line_start, self.line_text(line))
        };
        // A byte order mark is no character of the line.
        let mark = if line_start == 0 && line_text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let line_start = line_start + mark;
        let line_text = &line_text[mark..];
        let from = floor_char_boundary(line_text, start.saturating_sub(line_start));
        let to = floor_char_boundary(line_text, place.span.end.saturating_sub(line_start)).max(from);
        let before = line_text[..from].chars().count();
        let length = line_text[from..to].chars().count().max(1);
        let (shown, caret_start, caret_length) = clipped(line_text, before, length);
        Location { origin, line: line + 1, column: before + 1, text: shown, caret_start, caret_length }
    }
}

/// The largest character boundary of `text` that is not beyond `byte`.
fn floor_char_boundary(text: &str, byte: usize) -> usize {
    let mut byte = byte.min(text.len());
    while !text.is_char_boundary(byte) {
        byte -= 1;
    }
    byte
}

/// A line fit for a terminal, with where its underlined part begins and how long it is.
fn clipped(line: &str, caret_start: usize, caret_length: usize) -> (String, usize, usize) {
    // One character for one, so that the mark below stands where it should.
    let visible = |c: char| if is_order(c) { '\u{fffd}' } else { c };
    let total = line.chars().count();
    if total <= MAX_SHOWN_CHARS {
        return (line.chars().map(visible).collect(), caret_start, caret_length);
    }
    let skipped = caret_start.saturating_sub(CHARS_BEFORE);
    let front = if skipped > 0 { "…" } else { "" };
    let back = if total - skipped > MAX_SHOWN_CHARS { "…" } else { "" };
    let middle: String = line.chars().skip(skipped).take(MAX_SHOWN_CHARS).map(visible).collect();
    let caret_start = caret_start - skipped + front.chars().count();
    let room = (MAX_SHOWN_CHARS + front.chars().count()).saturating_sub(caret_start).max(1);
    (format!("{front}{middle}{back}"), caret_start, caret_length.min(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(text: &str, span: std::ops::Range<usize>) -> Location {
        let path = Path::new("x.toml");
        Sources::new(path, text, &[]).locate(&Place { source: 0, span })
    }

    struct Shown(Location);

    impl fmt::Display for Shown {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write(f, &"here")
        }
    }

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let text = "# é\r\nrank = 8\r\nname = \"größe\" x\r\n";
        let at = text.find(" x").unwrap() + 1;
        let location = locate(text, at..at + 1);
        assert_eq!((location.line, location.column), (3, 16));
        assert_eq!(location.text, "name = \"größe\" x");
        assert_eq!(Shown(location).to_string(), "x.toml:3:16\n  |\n3 | name = \"größe\" x\n  |                ^ here");
    }

    #[test]
    fn tabs_keep_the_caret_in_line() {
        let location = locate("\trank\t= 0\n", 8..9);
        assert_eq!(Shown(location).to_string(), "x.toml:1:9\n  |\n1 | \trank\t= 0\n  | \t    \t  ^ here");
    }

    #[test]
    fn a_place_beyond_the_text_is_shown_at_its_end() {
        let location = locate("a = [1,\n\n\n", 10..10);
        assert_eq!((location.line, location.column, location.text.as_str()), (1, 8, "a = [1,"));
        let location = locate("", 5..9);
        assert_eq!((location.line, location.column, location.caret_length), (1, 1, 1));
    }

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let text = format!("{} = 1", "k".repeat(5000));
        let location = locate(&text, 0..5000);
        assert_eq!(location.caret_start, 0);
        assert_eq!(location.caret_length, 120);
        assert_eq!(location.text.chars().count(), 121);
        let location = locate(&text, 5003..5004);
        assert_eq!(location.column, 5004);
        assert_eq!(location.text.chars().nth(location.caret_start), Some('1'));
        assert!(location.text.starts_with('…'));
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let location = locate("a = \u{1b}[31m\n", 4..5);
        assert_eq!(location.text, "a = \u{fffd}[31m");
    }

    #[test]
    fn a_byte_order_mark_is_not_counted() {
        let location = locate("\u{feff}a = 1\n", 3..4);
        assert_eq!((location.column, location.text.as_str(), location.caret_start), (1, "a = 1", 0));
    }

    #[test]
    fn a_span_inside_a_character_does_not_panic() {
        let location = locate("é = 1", 1..3);
        assert_eq!((location.column, location.caret_length), (1, 2));
    }
}
