//! A tokenizer made on the spot for random models: byte-level, with the special tokens of Janus, and with merges where they
//! are learnt from a text.

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer};

use super::CheckpointError;
use super::side_files::{SpecialIds, added_token, special};
use super::write::{make, write_json};
use crate::config::JanusConfig;
use crate::directory::{Directory, Place};

/// Special tokens in the order of the published vocabularies from the placeholder on, after BOS, EOS and pad.
const AFTER_IMAGE: [&str; 8] = [
    "<patch_placeholder>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    special::USER,
    special::ASSISTANT,
];

/// Texts and ids of all special tokens.
///
/// The configuration gives the ids of BOS, EOS, pad and the placeholder. `<begin_of_image>` follows pad,
/// `<end_of_image>` precedes the placeholder, the rest follows it, as in the published vocabularies.
fn special_tokens(config: &JanusConfig) -> Result<Vec<(&'static str, u32)>, CheckpointError> {
    let text = &config.text;
    let count = AFTER_IMAGE.len() + 6;
    let bos = text.bos_token_id.unwrap_or(256);
    let too_small =
        || CheckpointError::VocabularyTooSmall { vocab_size: text.vocab_size, special: count, first_id: bos };
    let next = |id: u32, by: u32| id.checked_add(by).ok_or_else(too_small);
    let eos = text.eos_token_id.map_or_else(|| next(bos, 1), Ok)?;
    let pad = text.pad_token_id.map_or_else(|| next(bos, 2), Ok)?;
    let image = config.image_token_id.map_or_else(|| next(pad, 3), Ok)?;
    let mut tokens = vec![
        (special::BOS, bos),
        (special::EOS, eos),
        (special::PAD, pad),
        (special::BEGIN_OF_IMAGE, next(pad, 1)?),
        (special::END_OF_IMAGE, image.saturating_sub(1)),
        (special::IMAGE, image),
    ];
    for (by, content) in (1..).zip(AFTER_IMAGE) {
        tokens.push((content, next(image, by)?));
    }
    let distinct: std::collections::BTreeSet<u32> = tokens.iter().map(|(_, id)| *id).collect();
    let fits = tokens.iter().all(|(_, id)| *id >= 256 && (*id as usize) < text.vocab_size);
    if fits && distinct.len() == tokens.len() { Ok(tokens) } else { Err(too_small()) }
}

/// The character that stands for a byte in byte-level vocabularies: itself where it is printable Latin-1, else the next
/// of the characters from U+0100 on (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> Vec<char> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut substitutes = '\u{100}'..;
    (0..=255_u8)
        .map(|byte| if printable(byte) { char::from(byte) } else { substitutes.next().unwrap_or('\u{fffd}') })
        .collect()
}

/// Pairs of neighbouring tokens that become one, in the order in which they do, in the alphabet of byte-level vocabularies.
pub type Merges = Vec<(String, String)>;

/// The ids that `config` leaves for tokens that are merged: those behind the special ones.
///
/// # Errors
/// A vocabulary too small for the special tokens.
pub fn merged_ids(config: &JanusConfig) -> Result<std::ops::Range<u32>, CheckpointError> {
    let last = special_tokens(config)?.into_iter().map(|(_, id)| id).max().unwrap_or(255);
    Ok(last + 1..config.text.vocab_size as u32)
}

/// Learns merges for [`write_tokenizer`] by byte-pair encoding (Sennrich, Haddow and Birch, arXiv:1508.07909), as many as
/// `config` has ids for and the texts give.
///
/// # Errors
/// A vocabulary too small for the special tokens.
pub fn learn_merges(config: &JanusConfig, texts: &[String]) -> Result<Merges, CheckpointError> {
    let count = merged_ids(config)?.len();
    let alphabet: std::collections::HashSet<char> = byte_alphabet().into_iter().collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(256 + count)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet)
        .build();
    let unusable = |reason: String| CheckpointError::Merges { reason };
    let words = |text: &str| -> tokenizers::Result<Vec<String>> {
        let mut split = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut split)?;
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(pieces.into_iter().map(|(piece, ..)| piece.to_owned()).collect())
    };
    trainer.feed(texts.iter(), words).map_err(|e| unusable(e.to_string()))?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(|e| unusable(e.to_string()))?;
    let model = serde_json::to_value(&model).map_err(|e| unusable(e.to_string()))?;
    let merges = model.get("merges").cloned().unwrap_or_default();
    let mut merges: Merges = serde_json::from_value(merges).map_err(|e| unusable(e.to_string()))?;
    merges.truncate(count);
    Ok(merges)
}

/// Writes `tokenizer.json` and `special_tokens_map.json`; byte b has id b, what merges make follows the special tokens.
///
/// # Errors
/// A vocabulary too small for the special tokens, or the system's.
pub fn write_tokenizer<'a>(config: &JanusConfig, merges: &Merges, into: impl Into<Place<'a>>) -> crate::Result<()> {
    write(config, merges, &make(into.into())?).map(|_| ())
}

/// [`write_tokenizer`]; gives the ids of special tokens.
pub(super) fn write(config: &JanusConfig, merges: &Merges, into: &Directory) -> crate::Result<SpecialIds> {
    let tokens = special_tokens(config)?;
    let mut vocabulary = Map::new();
    for (id, character) in byte_alphabet().into_iter().enumerate() {
        vocabulary.insert(character.to_string(), json!(id));
    }
    for (id, (left, right)) in merged_ids(config)?.zip(merges) {
        vocabulary.entry(format!("{left}{right}")).or_insert(json!(id));
    }
    let mut added = Vec::new();
    let mut by_id = tokens.clone();
    by_id.sort_by_key(|(_, id)| *id);
    for (content, id) in &by_id {
        // Only a text that the vocabulary knows keeps an id of its own choice; any other is numbered on.
        vocabulary.insert((*content).to_string(), json!(id));
        added.push(added_token(u64::from(*id), content));
    }
    let id_of = |text: &str| tokens.iter().find(|(content, _)| *content == text).map(|(_, id)| *id);
    let bos = json!({ "SpecialToken": { "id": special::BOS, "type_id": 0 } });
    let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": !merges.is_empty() });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence("A")],
            "pair": [bos, sequence("A"), bos, sequence("B")],
            "special_tokens": {
                special::BOS: { "id": special::BOS, "ids": [id_of(special::BOS)], "tokens": [special::BOS] },
            },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    write_json(into, "tokenizer.json", &tokenizer)?;

    let entry = |content: &str| json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false });
    let additional: Vec<Value> = std::iter::once(special::IMAGE).chain(AFTER_IMAGE).map(Value::from).collect();
    let map = json!({
        "additional_special_tokens": additional,
        "bos_token": entry(special::BOS),
        "eos_token": entry(special::EOS),
        "pad_token": entry(special::PAD),
    });
    write_json(into, "special_tokens_map.json", &map)?;
    Ok(SpecialIds {
        bos: id_of(special::BOS),
        eos: id_of(special::EOS),
        pad: id_of(special::PAD),
        image: id_of(special::IMAGE),
        begin_of_image: id_of(special::BEGIN_OF_IMAGE),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_a_tokenizer_with_its_ids() {
        for shape in JanusConfig::shape_names() {
            let folder = tempfile::tempdir().unwrap();
            let config = JanusConfig::shape(shape).unwrap();
            write(&config, &Merges::new(), &Directory::open(folder.path()).unwrap()).unwrap();
            let tokenizer = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
            let id = |text: &str| tokenizer.token_to_id(text);
            assert_eq!(id(special::BOS), config.text.bos_token_id, "{shape}");
            assert_eq!(id(special::EOS), config.text.eos_token_id);
            assert_eq!(id(special::PAD), config.text.pad_token_id);
            assert_eq!(id(special::IMAGE), config.image_token_id);
            let text = "Grüße,\n\0 wörld <|User|>: <begin_of_image>x";
            let encoding = tokenizer.encode(text, true).unwrap();
            let ids = encoding.get_ids();
            assert_eq!(ids[0], config.text.bos_token_id.unwrap());
            assert_eq!(ids[1..4], [u32::from(b'G'), u32::from(b'r'), 0xc3]);
            assert!(ids.contains(&id(special::USER).unwrap()) && ids.contains(&id(special::BEGIN_OF_IMAGE).unwrap()));
            assert_eq!(tokenizer.decode(&ids[1..], false).unwrap(), text);
        }
    }

    /// The ids published for Janus-Pro-1B and Janus-Pro-7B.
    #[test]
    fn published_shapes_have_the_published_ids() {
        for (shape, begin_of_image, end_of_image, user) in
            [("janus-pro-1b", 100_003, 100_580, 100_588), ("janus-pro-7b", 100_016, 100_593, 100_601)]
        {
            let tokens = special_tokens(&JanusConfig::shape(shape).unwrap()).unwrap();
            for (text, id) in [
                (special::BEGIN_OF_IMAGE, begin_of_image),
                (special::END_OF_IMAGE, end_of_image),
                (special::USER, user),
            ] {
                assert!(tokens.contains(&(text, id)), "{shape} {text}");
            }
        }
    }

    #[test]
    fn merges_are_learnt_from_a_text_and_leave_every_other_text_whole() {
        let config = JanusConfig::shape("janus-nano").unwrap();
        let texts: Vec<String> =
            (0..40).map(|n| format!("A small gear and {n} large gears, on a plain ground.")).collect();
        let merges = learn_merges(&config, &texts).unwrap();
        assert_eq!(merges, learn_merges(&config, &texts).unwrap());
        assert!((20..merged_ids(&config).unwrap().len()).contains(&merges.len()), "{}", merges.len());
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(&config, &merges, folder.path()).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids(" gears").len(), 1);
        assert!(ids(" gears")[0] >= merged_ids(&config).unwrap().start);
        for text in ["A small gear", "Grüße,\n\0 wörld <|User|>: <begin_of_image>x", "gears gear  ge ars"] {
            assert_eq!(tokenizer.decode(&ids(text), false).unwrap(), text);
        }
        assert_eq!(tokenizer.token_to_id(special::USER), Some(268));
    }

    #[test]
    fn a_vocabulary_without_room_is_refused() {
        let mut config = JanusConfig::shape("janus-tiny").unwrap();
        config.text.vocab_size = 265;
        assert!(matches!(special_tokens(&config), Err(CheckpointError::VocabularyTooSmall { .. })));
        config.text.vocab_size = 400;
        config.text.pad_token_id = config.text.eos_token_id;
        assert!(matches!(special_tokens(&config), Err(CheckpointError::VocabularyTooSmall { .. })));
    }
}
