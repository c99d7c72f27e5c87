//! A small tokenizer for this room's tests: every byte is a token, and nothing merges.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Janus-Pro's special tokens, in the order of their ids from 256 on.
pub(super) const PRO_TOKENS: [&str; 8] = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<begin_of_image>",
    "<end_of_image>",
    "<image_placeholder>",
    "<|User|>",
    "<|Assistant|>",
];

/// Writes a `tokenizer.json` with these special tokens; its post-processor adds BOS.
pub(super) fn write_tokenizer(folder: &Path, special: &[&str]) {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary: serde_json::Map<String, Value> =
        alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let token = |(at, content): (usize, &&str)| {
        json!({"id": alphabet.len() + at, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let first = special.first().copied().unwrap_or_default();
    let bos = json!({"SpecialToken": {"id": first, "type_id": 0}});
    let file = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": special.iter().enumerate().map(token).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {first: {"id": first, "ids": [256], "tokens": [first]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}
