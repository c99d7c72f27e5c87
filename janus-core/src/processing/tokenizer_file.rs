//! What a `tokenizer.json` asks for, looked at before the `tokenizers` crate acts on it.
//!
//! A file can ask for steps that multiply a text (a hundred bytes of JSON turn 32 letters into gigabytes), for a splitter
//! that never gets on, and for tokens drawn at random. None of this can be stopped once the crate is at work.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::chat::IMAGE_PLACEHOLDER;

/// How often longer a text may become on its way through a file's steps. Those of the published Janus tokenizers map each
/// byte to at most two; the steps of Llama's tokenizers make three of a space.
const MAX_GROWTH: f64 = 64.0;

/// Values, tokens and merges among them, of the largest file that is parsed: five times what the largest vocabularies have, and
/// half a gigabyte while it is looked at.
const MAX_VALUES: usize = 8_000_000;

/// Bytes of the longest expression; those of the published tokenizers have 150.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// Bytes of the longest token that is taken; the longest of the published tokenizers has 128 letters.
const MAX_TOKEN_BYTES: usize = 4096;

/// A file that may be handed on.
#[derive(Debug)]
pub(super) struct Examined {
    /// The file; another one than was read where something had to be taken out.
    pub(super) bytes: Vec<u8>,
    /// What was taken out, for people.
    pub(super) notes: Vec<String>,
    /// Bytes of text that the longest token stands for; `None` where a text may lose something before it is cut into tokens.
    pub(super) longest_token: Option<usize>,
    /// How often longer a text may become on its way to ids.
    pub(super) growth: f64,
}

/// Looks at a file.
///
/// # Errors
/// What it asks for and does not get.
pub(super) fn examine(bytes: Vec<u8>) -> Result<Examined, String> {
    // Every value but the first of its list or object has a comma before it.
    if bytes.iter().filter(|byte| **byte == b',').count() > MAX_VALUES {
        return Err(format!("it has more than {MAX_VALUES} values"));
    }
    serde_json::from_slice::<Parts>(&bytes).map_err(|e| e.to_string())?;
    let mut file: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let normalizer = growth(&file["normalizer"], "normalizers")?;
    let pre_tokenizer = growth(&file["pre_tokenizer"], "pretokenizers")?;
    let decoder = growth(&file["decoder"], "decoders")?;
    for (what, growth) in [("text to ids", normalizer * pre_tokenizer), ("ids to text", decoder)] {
        if growth > MAX_GROWTH {
            return Err(format!(
                "its steps from {what} can make a text {growth:.0} times as long, expected at most {MAX_GROWTH}"
            ));
        }
    }
    check_tokens(&file)?;
    check_template(&file["post_processor"])?;
    let longest_token = longest_token(&file);
    let growth = normalizer * pre_tokenizer;
    let drops = file["model"]["dropout"].as_f64().is_some_and(|share| share != 0.0);
    if !drops {
        return Ok(Examined { bytes, notes: Vec::new(), longest_token, growth });
    }
    let share = file["model"]["dropout"].take();
    let note = format!("the tokenizer asks for merges to be left out at random (`dropout` {share}); none are");
    Ok(Examined { bytes: file.to_string().into_bytes(), notes: vec![note], longest_token, growth })
}

/// The file's parts, for which a second one of a name is refused: another reader may take the other.
#[derive(Deserialize)]
#[expect(dead_code, reason = "read for their names alone")]
struct Parts {
    model: Option<Model>,
    added_tokens: Option<IgnoredAny>,
    normalizer: Option<IgnoredAny>,
    pre_tokenizer: Option<IgnoredAny>,
    post_processor: Option<IgnoredAny>,
    decoder: Option<IgnoredAny>,
    truncation: Option<IgnoredAny>,
    padding: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read for their names alone")]
struct Model {
    #[serde(rename = "type")]
    kind: Option<IgnoredAny>,
    vocab: Option<IgnoredAny>,
    merges: Option<IgnoredAny>,
    dropout: Option<IgnoredAny>,
    continuing_subword_prefix: Option<IgnoredAny>,
    end_of_word_suffix: Option<IgnoredAny>,
}

/// Refuses a template with a special token that it does not define.
fn check_template(step: &Value) -> Result<(), String> {
    for step in step["processors"].as_array().into_iter().flatten() {
        check_template(step)?;
    }
    let pieces = ["single", "pair"].into_iter().flat_map(|key| step[key].as_array().into_iter().flatten());
    for name in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if step["special_tokens"].get(name).is_none() {
            return Err(format!("its template has the special token {name:?}, which it does not define"));
        }
    }
    Ok(())
}

/// By how much a step and the steps in it can lengthen a text; `list` is where a sequence keeps its steps.
fn growth(step: &Value, list: &str) -> Result<f64, String> {
    let text_bytes = |key: &str| step[key].as_str().map_or(0, str::len) as f64;
    if let Some(pattern) = step["pattern"]["Regex"].as_str().filter(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
        return Err(format!("an expression of it has {} bytes, expected at most {MAX_PATTERN_BYTES}", pattern.len()));
    }
    Ok(match step["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let steps = step[list].as_array().map_or(&[][..], Vec::as_slice);
            steps.iter().try_fold(1.0, |so_far, step| Ok::<f64, String>(so_far * growth(step, list)?))?
        }
        "Replace" => {
            let content = text_bytes("content");
            match step["pattern"]["String"].as_str().filter(|pattern| !pattern.is_empty()) {
                Some(pattern) => (content / pattern.len() as f64).max(1.0),
                // An expression may match between all letters.
                None => 1.0 + content,
            }
        }
        // Once for each stretch between special tokens, each of at least a letter.
        "Prepend" => 1.0 + text_bytes("prepend"),
        "Metaspace" => 1.0 + text_bytes("replacement"),
        // Each byte of a text becomes a letter of at most two bytes.
        "ByteLevel" => 2.0,
        // Blanks around ideographs.
        "BertNormalizer" => 3.0,
        // The longest of one character: U+1D160 in canonical form, U+FDFA in compatibility form (11 times the bytes).
        "NFC" | "NFD" => 3.0,
        "NFKC" | "NFKD" | "Nmt" => 11.0,
        // U+0130 is two bytes, its small letter three.
        "Lowercase" => 1.5,
        "Precompiled" => return Err("its normalizer is `Precompiled`, which no Janus tokenizer has".into()),
        "FixedLength" if step["length"].as_u64().is_none_or(|length| length == 0) => {
            return Err("its pre-tokenizer splits texts into pieces of length 0".into());
        }
        _ => 1.0,
    })
}

/// Bytes of text that a token stands for at most, in files whose every byte ends in a token: of the kind of the published ones.
fn longest_token(file: &Value) -> Option<usize> {
    let normalizer = &file["normalizer"];
    let normalizes = !(normalizer.is_null() || normalizer["normalizers"].as_array().is_some_and(Vec::is_empty));
    let vocabulary = file["model"]["vocab"].as_object()?;
    let is_whole = ByteLevel::alphabet().iter().all(|letter| vocabulary.contains_key(letter.to_string().as_str()));
    let added = file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    // Such a token takes all blanks beside it, too.
    let strips = added.iter().any(|token| token["lstrip"] == true || token["rstrip"] == true);
    if normalizes || strips || !is_whole || file["model"]["type"] != "BPE" {
        return None;
    }
    let (mut keeps, mut is_of_bytes) = (true, false);
    look_at_steps(&file["pre_tokenizer"], &mut |step| match step["type"].as_str().unwrap_or_default() {
        "ByteLevel" => is_of_bytes = true,
        "Digits" => {}
        "Split" | "Punctuation" => keeps &= step["behavior"] != "Removed",
        _ => keeps = false,
    });
    // A letter of the vocabulary is a byte; added tokens are written as they are.
    let letters = vocabulary.keys().map(|token| token.chars().count());
    let written = added.iter().filter_map(|token| token["content"].as_str()).map(str::len);
    letters.chain(written).chain([IMAGE_PLACEHOLDER.len()]).max().filter(|_| keeps && is_of_bytes)
}

/// Looks at each step of a pre-tokenizer, in sequences, too.
fn look_at_steps(step: &Value, look: &mut dyn FnMut(&Value)) {
    match step["pretokenizers"].as_array() {
        Some(steps) => steps.iter().for_each(|step| look_at_steps(step, look)),
        None => look(step),
    }
}

/// Refuses tokens that are texts of their own, and a vocabulary without any.
fn check_tokens(file: &Value) -> Result<(), String> {
    let model = &file["model"];
    let is_empty =
        |vocab: &Value| vocab.as_object().is_some_and(serde_json::Map::is_empty) || vocab == &Value::Array(Vec::new());
    if is_empty(&model["vocab"]) {
        return Err("its vocabulary is empty".into());
    }
    let of_object = model["vocab"].as_object().into_iter().flatten().map(|(token, _)| token.as_str());
    let of_list = model["vocab"].as_array().into_iter().flatten().filter_map(|entry| entry[0].as_str());
    let added = file["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["content"].as_str());
    let affixes = ["continuing_subword_prefix", "end_of_word_suffix"].into_iter().filter_map(|key| model[key].as_str());
    match of_object.chain(of_list).chain(added).chain(affixes).find(|token| token.len() > MAX_TOKEN_BYTES) {
        None => Ok(()),
        Some(token) => {
            let start: String = token.chars().take(20).collect();
            Err(format!("its token `{start}…` has {} bytes, expected at most {MAX_TOKEN_BYTES}", token.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(file: Value) -> String {
        examine(file.to_string().into_bytes()).unwrap_err()
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
    }

    #[test]
    fn the_longest_token_is_known_where_no_byte_is_lost() {
        let letters = || ByteLevel::alphabet().into_iter().map(|letter| (letter.to_string(), json!(0)));
        let file = |token: &str, splitter: Value| {
            let vocabulary: serde_json::Map<String, Value> = letters().chain([(token.into(), json!(1))]).collect();
            json!({
                "normalizer": { "type": "Sequence", "normalizers": [] },
                "pre_tokenizer": { "type": "Sequence", "pretokenizers": [splitter, { "type": "ByteLevel" }] },
                "added_tokens": [{ "content": "<a>", "lstrip": false }],
                "model": { "type": "BPE", "vocab": vocabulary },
            })
        };
        let digits = || json!({ "type": "Digits", "individual_digits": true });
        let long = "Ġ".repeat(60);
        assert_eq!(longest_token(&file(&long, digits())), Some(60));
        assert_eq!(longest_token(&file("ab", digits())), Some(IMAGE_PLACEHOLDER.len()));
        assert_eq!(longest_token(&file("ab", json!({ "type": "Split", "behavior": "Isolated" }))), Some(19));
        for splitter in [json!({ "type": "Split", "behavior": "Removed" }), json!({ "type": "WhitespaceSplit" })] {
            assert_eq!(longest_token(&file("ab", splitter)), None);
        }
        let changed = |path: &str, value: Value| {
            let mut file = file("ab", digits());
            *file.pointer_mut(path).unwrap() = value;
            longest_token(&file)
        };
        assert_eq!(changed("/normalizer", json!({ "type": "Strip" })), None);
        assert_eq!(changed("/added_tokens/0/lstrip", json!(true)), None);
        assert_eq!(changed("/model/vocab", json!({ "a": 1 })), None, "other letters are lost");
        assert_eq!(changed("/model/type", json!("Unigram")), None);
        assert_eq!(changed("/pre_tokenizer", json!({ "type": "Digits" })), None);
    }

    #[test]
    fn steps_that_multiply_a_text_are_refused() {
        let twice = replace("a", "aa");
        let many = json!({ "type": "Sequence", "normalizers": vec![twice.clone(); 30] });
        assert!(refusal(json!({ "normalizer": many.clone() })).contains("1073741824 times"));
        let nested = json!({ "type": "Sequence", "normalizers": [many.clone(), many] });
        assert!(refusal(json!({ "normalizer": nested })).contains("times as long"));
        let between = json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "x".repeat(80) });
        assert!(refusal(json!({ "normalizer": between })).contains("81 times"));
        let decoders =
            json!({ "type": "Sequence", "decoders": [replace("a", &"a".repeat(9)), replace("a", &"a".repeat(9))] });
        assert!(refusal(json!({ "decoder": decoders })).contains("from ids to text"));
        let bytes = json!({ "type": "Sequence", "pretokenizers": vec![json!({ "type": "ByteLevel" }); 8] });
        assert!(refusal(json!({ "pre_tokenizer": bytes })).contains("256 times"));
        let apart = json!({ "type": "Sequence", "normalizers": [{ "type": "NFKD" }, replace("ل", &"b".repeat(32))] });
        assert!(refusal(json!({ "normalizer": apart })).contains("176 times"));
        let books = json!({ "type": "Split", "pattern": { "Regex": "a?".repeat(9000) } });
        assert!(refusal(json!({ "pre_tokenizer": books })).contains("expression"));
        let many = format!(r#"{{"model":{{}},"x":[1{}]}}"#, ",1".repeat(MAX_VALUES + 1));
        assert!(examine(many.into_bytes()).unwrap_err().contains("more than 8000000 values"));
        // Llama's.
        let ordinary =
            json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace(" ", "▁")] });
        assert!(examine(json!({ "normalizer": ordinary, "model": {} }).to_string().into_bytes()).is_ok());
    }

    #[test]
    fn a_splitter_that_never_gets_on_and_tokens_that_are_books_are_refused() {
        for length in [json!(0), json!(null), json!(-1)] {
            let splitter = json!({ "type": "FixedLength", "length": length });
            assert!(refusal(json!({ "pre_tokenizer": splitter.clone() })).contains("length 0"));
            let within = json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits" }, splitter] });
            assert!(refusal(json!({ "pre_tokenizer": within })).contains("length 0"));
        }
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for file in [
            json!({ "model": { "vocab": { long.clone(): 0 } } }),
            json!({ "model": { "vocab": [[long.clone(), -1.0]] } }),
            json!({ "model": { "end_of_word_suffix": long } }),
            json!({ "added_tokens": [{ "content": long }] }),
        ] {
            assert!(refusal(file).contains("4097 bytes"));
        }
        assert!(refusal(json!({ "normalizer": { "type": "Precompiled" } })).contains("Precompiled"));
    }

    #[test]
    fn parts_that_stand_twice_are_refused() {
        for file in [
            r#"{"model":{},"model":{}}"#,
            r#"{"decoder":null,"decoder":1}"#,
            r#"{"model":{"vocab":{"a":0},"vocab":{"b":0}}}"#,
        ] {
            assert!(examine(file.as_bytes().to_vec()).unwrap_err().contains("duplicate field"), "{file}");
        }
    }

    #[test]
    fn an_empty_vocabulary_and_a_template_of_undefined_tokens_are_refused() {
        for vocab in [json!({}), json!([])] {
            assert!(refusal(json!({ "model": { "vocab": vocab } })).contains("is empty"));
        }
        let template = |defined: Value| json!({ "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>" } }], "special_tokens": defined });
        let bare = template(json!({}));
        assert!(refusal(json!({ "post_processor": bare.clone() })).contains("\"<s>\""));
        let within = json!({ "type": "Sequence", "processors": [bare] });
        assert!(refusal(json!({ "post_processor": within })).contains("does not define"));
        let sound = template(json!({ "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } }));
        assert!(examine(json!({ "post_processor": sound }).to_string().into_bytes()).is_ok());
    }

    #[test]
    fn merges_are_never_left_out_at_random() {
        let file = |dropout: Value| json!({ "model": { "type": "BPE", "dropout": dropout } }).to_string().into_bytes();
        for dropout in [json!(null), json!(0.0), json!(0)] {
            let examined = examine(file(dropout.clone())).unwrap();
            assert_eq!((examined.bytes, examined.notes.len()), (file(dropout), 0));
        }
        for dropout in [json!(0.1), json!(1), json!(1e-3)] {
            let examined = examine(file(dropout)).unwrap();
            assert_eq!((examined.bytes, examined.notes.len()), (file(json!(null)), 1));
        }
    }
}
