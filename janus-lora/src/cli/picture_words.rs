//! Which words behind `janus understand` are pictures and which are questions.
//!
//! A shell makes `--image test/*.jpg "Which one?"` a row of words of which only the first follows `--image`. Files differ from
//! questions by what there is in the file system: [`spread`] puts `--image` before every file of such a row, so that the
//! parser sees an option given several times, and [`check_question`] refuses a question that can only have been meant as a file.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::error::{Error, Result};

const COMMAND: &str = "understand";
const OPTION: &str = "--image";

/// Endings of pictures' names, those of formats that are not read among them.
const ENDINGS: [&str; 18] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "heif", "jxl", "svg",
    "psd", "dcm", "ppm",
];

/// Longest part of a word that a message shows, in characters.
const SHOWN_CHARS: usize = 80;

/// The words of a command line with `--image` before every file that follows a picture of `janus understand`, up to the
/// first word that is no existing file.
pub(super) fn spread(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let words: Vec<OsString> = words.into_iter().collect();
    if command(&words).is_none_or(|command| command != COMMAND) {
        return words;
    }
    let mut spread = Vec::with_capacity(words.len());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let (is_option, holds_value) = (text == OPTION, text.starts_with("--image="));
        if text == "--" {
            spread.push(word);
            spread.extend(words);
            break;
        }
        spread.push(word);
        // The word behind a bare option is its value whatever it is: one that is not a file is reported as that.
        if is_option {
            spread.extend(words.next());
        }
        if is_option || holds_value {
            while let Some(file) = words.next_if(|word| !is_flag(word) && Path::new(word).is_file()) {
                spread.extend([OsString::from(OPTION), file]);
            }
        }
    }
    spread
}

/// The first word that is neither an option nor the value of one that stands before every command.
fn command(words: &[OsString]) -> Option<&OsStr> {
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--threads" {
            words.next();
        } else if !is_flag(word) {
            return Some(word);
        }
    }
    None
}

fn is_flag(word: &OsStr) -> bool {
    word.as_encoded_bytes().starts_with(b"-")
}

/// Refuses a question that is a file, or is written like the path of a picture that does not exist.
pub(super) fn check_question(question: &str) -> Result<()> {
    let path = Path::new(question);
    let usage = |message: String, hint: &str| Err(Error::Usage { message, hint: hint.into() });
    if path.is_file() || (is_path(question) && path.exists()) {
        return usage(
            format!("`{}` is a file or folder, not a question", shown(question)),
            "pictures follow `--image` before any question: `--image a.jpg b.jpg \"Which is broken?\"`",
        );
    }
    if !is_path(question) && !is_picture_name(question) {
        return Ok(());
    }
    if question.contains(['*', '?', '[']) {
        return usage(
            format!("there is no file `{}`", shown(question)),
            "no file matched the pattern: check the folder and the ending, and let the shell fill it in, without quotes",
        );
    }
    usage(
        format!("there is no picture `{}`", shown(question)),
        "correct the path; a question that ends like a picture's name needs a question mark or a full stop",
    )
}

/// One word with separators whose folder is there, or which can begin a path only.
fn is_path(text: &str) -> bool {
    let separators: &[char] = if cfg!(windows) { &['/', '\\'] } else { &['/'] };
    if text.contains(char::is_whitespace) || !text.contains(separators) {
        return false;
    }
    let folder = Path::new(text).parent().is_some_and(|folder| !folder.as_os_str().is_empty() && folder.is_dir());
    folder || ["/", "./", "../", "~/"].iter().any(|start| text.starts_with(start))
}

/// Whether a text ends like the name of a picture: `b.JPG`, `my picture.png`, `shots/*.webp`.
fn is_picture_name(text: &str) -> bool {
    let Some((stem, ending)) = text.trim_end().rsplit_once('.') else { return false };
    !stem.is_empty() && ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// The beginning of a word, for a message.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_of(words: &[&str]) -> Vec<String> {
        let words = words.iter().map(OsString::from);
        spread(words).into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn files_that_follow_a_picture_are_pictures_until_a_word_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "x").unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (a, b, c) = (file("a.jpg"), file("b with space"), file("c"));
        let (a, b, c) = (a.as_str(), b.as_str(), c.as_str());
        let option = format!("--image={a}");
        for (words, expected) in [
            (vec!["janus", "understand", "--image", a, b, "Q?", c], vec!["--image", a, "--image", b, "Q?", c]),
            (
                vec!["janus", "understand", "--image", a, "--image", b, "--json", c],
                vec!["--image", a, "--image", b, "--json", c],
            ),
            (vec!["janus", "understand", &option, b, "--", c], vec![&option, "--image", b, "--", c]),
            (vec!["janus", "understand", "--", "--image", a, b], vec!["--", "--image", a, b]),
            (vec!["janus", "understand", "Q?", "--image", "no.jpg", b], vec!["Q?", "--image", "no.jpg", "--image", b]),
            (vec!["janus", "understand", "--image"], vec!["--image"]),
        ] {
            assert_eq!(spread_of(&words)[2..], expected, "{words:?}");
        }
        let behind_threads = ["janus", "--threads", "2", "understand", "--image", a, b];
        assert_eq!(spread_of(&behind_threads)[4..], ["--image", a, "--image", b]);
        let other = ["janus", "generate", "--image", a, b];
        assert_eq!(spread_of(&other), other);
    }

    #[test]
    fn a_question_may_ask_of_anything_but_be_no_path() {
        for question in
            ["Which is broken?", "What is in photo.png?", "yes/no", "Is 3/4 of it red?", "and/or?", "", "a.b"]
        {
            check_question(question).unwrap();
        }
        for path in ["no.jpg", "my picture.PNG", "nowhere/*.webp", "/x", "~/cup", "src/nothing", "Cargo.toml", "./"] {
            assert!(check_question(path).is_err(), "{path}");
        }
        let long = format!("{}.png", "x".repeat(1 << 20));
        assert!(check_question(&long).unwrap_err().to_string().len() < 500);
    }
}
