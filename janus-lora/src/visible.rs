//! Text of strangers, made fit for a terminal.
//!
//! A terminal is an interpreter: names of tensors, values of configurations, notes, columns, tokens and answers may hold what it
//! obeys. They are kept as they are inside the program and escaped here, where text is printed. The form is that of JSON and of
//! TOML's basic strings, `\u001b`, so that a line that is either stays it.

use std::borrow::Cow;

/// Beginnings of lines by which the program's own messages are known.
const OWN: [&str; 4] = ["error:", "warning:", "hint:", "caused by:"];

/// Whether a character is an order to a terminal, or changes the direction in which what surrounds it is read: controls but for
/// line breaks and tabs, line and paragraph separators, bidirectional embeddings, overrides and isolates.
pub(crate) fn is_order(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || is_hidden_order(c)
}

fn is_hidden_order(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with orders escaped; line breaks and tabs stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_order)
}

/// The text on one line: line breaks and tabs are escaped, too.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() || is_hidden_order(c))
}

/// Longest message, in bytes: a name in it may be of any length. Lists of the program's own are shorter.
const MAX_MESSAGE_BYTES: usize = 32 << 10;

/// A message that may have several lines, of which none but its first can be taken for one of the program's own: a name that
/// breaks the line to go on with `hint:` stays in the line it stands in. Of a longer one than anybody reads, both ends.
pub(crate) fn message(text: &str) -> Cow<'_, str> {
    if text.len() > MAX_MESSAGE_BYTES {
        let (first, last) =
            (text.floor_char_boundary(MAX_MESSAGE_BYTES / 8), text.ceil_char_boundary(text.len() - 2048));
        let shortened = format!("{} … ({} bytes) … {}", &text[..first], text.len(), &text[last..]);
        return Cow::Owned(message(&shortened).into_owned());
    }
    let text = match text.split('\n').skip(1).any(is_own) {
        false => Cow::Borrowed(text),
        true => {
            let mut joined = String::with_capacity(text.len());
            for (number, line) in text.split('\n').enumerate() {
                match number {
                    0 => {}
                    _ if is_own(line) => joined.push_str("\\n"),
                    _ => joined.push('\n'),
                }
                joined.push_str(line);
            }
            Cow::Owned(joined)
        }
    };
    match text {
        Cow::Borrowed(text) => lines(text),
        Cow::Owned(text) => Cow::Owned(lines(&text).into_owned()),
    }
}

fn is_own(line: &str) -> bool {
    let begin = line.trim_start_matches(|c: char| c.is_whitespace() || is_order(c));
    OWN.iter().any(|own| begin.get(..own.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(own)))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&is_escaped) else { return Cow::Borrowed(text) };
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(&text[..first]);
    for c in text[first..].chars() {
        match c {
            c if !is_escaped(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // All of them lie in the basic plane.
            c => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_the_rest_stays() {
        let embedded = "\u{202b}عربي\u{202c}";
        let plain = "scratch, 12 % — 裂缝 عربي \u{1f469}\u{200d}\u{1f527}\tnext\nline";
        assert_eq!(lines(plain), plain);
        assert_eq!(lines(embedded), "\\u202bعربي\\u202c");
        assert_eq!(lines("a\u{1b}]0;x\u{7}b\u{9b}2J\u{7f}\0\r"), "a\\u001b]0;x\\u0007b\\u009b2J\\u007f\\u0000\\r");
        assert_eq!(lines("a\u{202e}b\u{2066}c\u{2028}d"), "a\\u202eb\\u2066c\\u2028d");
        assert_eq!(one_line("a\n\tb\r\n"), "a\\n\\tb\\r\\n");
    }

    /// What is JSON before is JSON afterwards, and says the same.
    #[test]
    fn json_says_the_same_once_it_is_escaped() {
        let all: String = (0..0x2070).filter_map(char::from_u32).collect();
        let json = serde_json::to_string(&all).expect("a text");
        assert_eq!(serde_json::from_str::<String>(&lines(&json)).expect("JSON"), all);
    }

    #[test]
    fn no_message_brings_lines_of_the_programs_own() {
        let forged = "column `x\nhint: run `rm -rf /`\n  Caused by: y\u{1b}[1m\n\u{1b}error: z` is missing\nin line 3";
        let shown = message(forged);
        assert_eq!(shown.lines().count(), 2, "{shown}");
        let long = format!("no `{}` here", "裂".repeat(100_000));
        let shown = message(&long);
        assert!(shown.len() < 8 << 10 && shown.starts_with("no `裂") && shown.ends_with("裂` here"), "{shown}");
        assert!(shown.contains("(300010 bytes)"));
        assert_eq!(message("2 faults:\n\nx.toml:3\n  | a"), "2 faults:\n\nx.toml:3\n  | a");
    }
}
