//! A stranger's `tokenizer.json`, opened, and a text and ids through it and back. What is opened may refuse a text; it never
//! takes room that the text does not account for.
#![no_main]

use std::sync::LazyLock;

use janus_core::processing::JanusTokenizer;
use janus_fuzz::{Scratch, parts};
use libfuzzer_sys::fuzz_target;

/// Ids of a text of that many bytes at most: what a file's steps may make of it, a token a byte.
const MOST_IDS_PER_BYTE: usize = 64;

static BASE: LazyLock<Scratch> = LazyLock::new(Scratch::with_base);

fuzz_target!(|data: &[u8]| {
    let [file, text] = parts::<2>(data);
    BASE.write("tokenizer.json", file);
    let Ok(tokenizer) = JanusTokenizer::from_folder(BASE.folder()) else { return };
    let text = String::from_utf8_lossy(text);
    if let Ok(ids) = tokenizer.encode(&text, false) {
        assert!(ids.len() <= (text.len() + 1) * MOST_IDS_PER_BYTE, "{} ids of {} bytes", ids.len(), text.len());
        let again = tokenizer.encode(&text, false).expect("what was taken once");
        assert_eq!(ids, again, "drawn at random");
        let _ = tokenizer.decode(&ids, true);
    }
    let _ = tokenizer.decode(&[0, 1, 2, 299, u32::MAX], false);
});
