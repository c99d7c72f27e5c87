//! Text to ids and back, and the ids of the special tokens.
//!
//! Ids are looked up by their strings: they differ between the checkpoints (the pad token's is 100002 in Janus-Pro-1B
//! and 100015 in the others), and a wrong pad id spoils guidance without an error.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::Result;
use super::chat::{ChatStyle, IMAGE_PLACEHOLDER};
use super::error::ProcessingError;
use super::tokenizer_file::{Examined, examine};
use crate::guard;
use crate::input::{self, MAX_JSON_BYTES};

/// The file that is read.
const TOKENIZER_FILE: &str = "tokenizer.json";
/// What the steps of a file may make of one text: a megabyte of any text with those of Janus, which double it at most. The crate
/// takes a hundred times as much at work.
const MAX_GROWN_BYTES: f64 = (2 << 20) as f64;
/// Ten times what the published Janus tokenizers have; building one of more takes seconds.
const MAX_TOKENIZER_BYTES: u64 = 48 << 20;

const DEFAULT_BOS_TOKEN: &str = "<｜begin▁of▁sentence｜>";
pub(super) const DEFAULT_EOS_TOKEN: &str = "<｜end▁of▁sentence｜>";
const DEFAULT_PAD_TOKEN: &str = "<｜▁pad▁｜>";
const BEGIN_OF_IMAGE_TOKEN: &str = "<begin_of_image>";
const END_OF_IMAGE_TOKEN: &str = "<end_of_image>";
pub(super) const USER_TOKEN: &str = "<|User|>";
pub(super) const ASSISTANT_TOKEN: &str = "<|Assistant|>";

/// Ids of the tokens that have a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begin of sentence; every prompt starts with it.
    pub bos: u32,
    /// End of sentence; every answer ends with it.
    pub eos: u32,
    /// Padding, and what stands for "no caption" in guidance.
    pub pad: u32,
    /// `<begin_of_image>`.
    pub begin_of_image: u32,
    /// `<end_of_image>`.
    pub end_of_image: u32,
    /// `<image_placeholder>`, whose embeddings the image features replace.
    pub image_placeholder: u32,
    /// `<|User|>` and `<|Assistant|>`, where the tokenizer has them.
    pub roles: Option<(u32, u32)>,
}

/// A checkpoint's tokenizer. Copies share one vocabulary.
#[derive(Clone)]
pub struct JanusTokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: Tokenizer,
    /// The same one, but for it strings of special tokens are text. Made when first needed.
    plain: OnceLock<Tokenizer>,
    special: SpecialTokens,
    /// Strings and ids of all special tokens.
    reserved: Vec<(String, u32)>,
    /// The token with the largest id.
    largest: (String, u32),
    longest_token: Option<usize>,
    /// How often longer a text may become on its way to ids.
    growth: f64,
    notes: Vec<String>,
}

impl std::fmt::Debug for JanusTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JanusTokenizer").field("special", &self.inner.special).finish_non_exhaustive()
    }
}

impl JanusTokenizer {
    /// Reads `tokenizer.json` of a checkpoint folder. `tokenizer_config.json` or else `special_tokens_map.json` may
    /// name other strings for BOS, EOS and pad than Janus' own.
    ///
    /// Janus-1.3B's file has no `<image_placeholder>`: it is added with the next free id, as DeepSeek's processor does.
    ///
    /// # Errors
    /// The file is missing or cannot be used, or a special token is not in it.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(TOKENIZER_FILE);
        let bytes = input::read(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)?
            .ok_or_else(|| ProcessingError::MissingTokenizer { folder: folder.to_path_buf() })?;
        let bad = |problem: String| ProcessingError::BadTokenizer { path: path.clone(), problem };
        let Examined { bytes, notes, longest_token, growth } = examine(bytes).map_err(bad)?;
        let mut tokenizer = parse(&bytes).map_err(bad)?;
        // A file may ask for its texts to be cut or filled; lengths are the batch's affair here.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| bad(e.to_string()))?;
        if tokenizer.token_to_id(IMAGE_PLACEHOLDER).is_none() {
            tokenizer
                .add_special_tokens([AddedToken::from(IMAGE_PLACEHOLDER, true)])
                .map_err(|e| bad(e.to_string()))?;
        }

        let names = [read_json(folder, "tokenizer_config.json")?, read_json(folder, "special_tokens_map.json")?];
        let named = |key: &str, default: &str| {
            names.iter().flatten().find_map(|file| token_string(file.get(key)?)).unwrap_or(default).to_string()
        };
        let find = |name: &'static str, token: String| {
            let id = tokenizer.token_to_id(&token);
            id.ok_or_else(|| ProcessingError::MissingToken { path: path.clone(), name, token })
        };
        let special = SpecialTokens {
            bos: find("begin-of-sentence", named("bos_token", DEFAULT_BOS_TOKEN))?,
            eos: find("end-of-sentence", named("eos_token", DEFAULT_EOS_TOKEN))?,
            pad: find("pad", named("pad_token", DEFAULT_PAD_TOKEN))?,
            begin_of_image: find("begin-of-image", BEGIN_OF_IMAGE_TOKEN.into())?,
            end_of_image: find("end-of-image", END_OF_IMAGE_TOKEN.into())?,
            image_placeholder: find("image", IMAGE_PLACEHOLDER.into())?,
            roles: match tokenizer.token_to_id(USER_TOKEN) {
                Some(user) => Some((user, find("assistant", ASSISTANT_TOKEN.into())?)),
                None => None,
            },
        };
        let largest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        let largest = largest.ok_or_else(|| bad("its vocabulary is empty".into()))?;
        let mut reserved: Vec<(String, u32)> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(id, token)| token.special || special.contains(*id))
            .map(|(id, token)| (token.content, id))
            .collect();
        reserved.sort_by_key(|(_, id)| *id);
        let plain = OnceLock::new();
        let inner = Inner { tokenizer, plain, special, reserved, largest, longest_token, growth, notes };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the file asks for and does not get, for people.
    pub fn notes(&self) -> &[String] {
        &self.inner.notes
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.inner.special
    }

    /// The chat template that the tokenizer was made for: with role tokens Janus-Pro's, else Janus-1.3B's.
    pub fn chat_style(&self) -> ChatStyle {
        if self.inner.special.roles.is_some() { ChatStyle::Pro } else { ChatStyle::Plain }
    }

    /// Checks that every id has a row in the embedding table.
    ///
    /// # Errors
    /// Names the token of the largest id if it has none.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<()> {
        let (token, id) = &self.inner.largest;
        if (*id as usize) < vocabulary {
            return Ok(());
        }
        Err(ProcessingError::VocabularyTooSmall { token: token.clone(), id: *id, vocabulary })
    }

    /// Bytes of text that no token stands for more of; `None` where a text may lose something before it is cut into tokens.
    pub fn longest_token_bytes(&self) -> Option<usize> {
        self.inner.longest_token
    }

    /// Ids that mean something: one more than the largest; rows of the head beyond are padding.
    pub fn vocabulary(&self) -> usize {
        self.inner.largest.1 as usize + 1
    }

    /// Ids of a text in which the strings of special tokens stand for these tokens.
    ///
    /// For text that the program makes itself. With `add_bos`, BOS comes first, once, whatever the tokenizer file says
    /// of adding it.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let ids = self.ids_of(&self.inner.tokenizer, text)?;
        if add_bos && ids.first() != Some(&self.inner.special.bos) {
            return Ok([&[self.inner.special.bos], ids.as_slice()].concat());
        }
        Ok(ids)
    }

    /// Ids of a text in which the strings of special tokens are just text, for what a user wrote.
    ///
    /// `part` says in errors which text it is. No BOS is added.
    ///
    /// # Errors
    /// A reserved token that the tokenizer cannot but recognise (its file does not mark it as special).
    pub fn encode_plain(&self, text: &str, part: &'static str) -> Result<Vec<u32>> {
        let inner = &*self.inner;
        if !inner.reserved.iter().any(|(token, _)| text.contains(token.as_str())) {
            return self.ids_of(&inner.tokenizer, text);
        }
        let plain = inner.plain.get_or_init(|| {
            let mut tokenizer = inner.tokenizer.clone();
            tokenizer.set_encode_special_tokens(true);
            tokenizer
        });
        let ids = self.ids_of(plain, text)?;
        match inner.reserved.iter().find(|(_, id)| ids.contains(id)) {
            Some((token, _)) => Err(ProcessingError::ReservedToken { part, token: token.clone() }),
            None => Ok(ids),
        }
    }

    fn ids_of(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let grown = text.len() as f64 * self.inner.growth;
        if grown > MAX_GROWN_BYTES {
            let problem = format!(
                "a text of {} bytes may take {grown:.0} on its way to ids, expected at most {MAX_GROWN_BYTES}",
                text.len()
            );
            return Err(ProcessingError::Tokenize { problem });
        }
        // Without the post-processor: files differ in whether theirs adds BOS.
        guarded(|| tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()))
    }

    /// Text of ids. Ids without a token (rows that only fill up the embedding table) give nothing.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.tokenizer.decode(ids, skip_special))
    }
}

impl SpecialTokens {
    fn contains(&self, id: u32) -> bool {
        let Self { bos, eos, pad, begin_of_image, end_of_image, image_placeholder, roles } = *self;
        [bos, eos, pad, begin_of_image, end_of_image, image_placeholder].contains(&id)
            || roles.is_some_and(|(user, assistant)| id == user || id == assistant)
    }
}

/// The `tokenizers` crate panics on some files; such a file is refused like one that it cannot read.
fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    match guard::catch(|| Tokenizer::from_bytes(bytes)) {
        Ok(tokenizer) => tokenizer.map_err(|e| e.to_string()),
        Err(reason) => Err(format!("its parts do not fit together: {reason}")),
    }
}

/// Some files are read without complaint and panic over a text.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match guard::catch(work) {
        Ok(result) => result.map_err(|e| ProcessingError::Tokenize { problem: e.to_string() }),
        Err(problem) => Err(ProcessingError::Tokenize { problem }),
    }
}

/// A token's string, written plainly or as an object with its `content`.
fn token_string(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A JSON file of a checkpoint folder, `None` where there is none.
pub(super) fn read_json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = input::read(folder, name, MAX_JSON_BYTES)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| ProcessingError::Json { path: folder.join(name), source })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{PRO_TOKENS, write_tokenizer};
    use super::*;

    fn tokenizer(special: &[&str], files: &[(&str, &str)]) -> Result<JanusTokenizer> {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path(), special);
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        JanusTokenizer::from_folder(folder.path())
    }

    #[test]
    fn bos_comes_once_and_nothing_is_cut() {
        let tokenizer = tokenizer(&PRO_TOKENS, &[]).unwrap();
        let bos = tokenizer.special().bos;
        assert_eq!(bos, 256);
        assert_eq!(tokenizer.encode("", true).unwrap(), [bos]);
        let book = tokenizer.encode(&"a ".repeat(1 << 20), false).unwrap_err().to_string();
        assert!(book.contains("2097152 bytes may take 4194304 on its way to ids"), "{book}");
        let long = tokenizer.encode("longer than the file's limit of four", true).unwrap();
        assert_eq!((long.len(), long[0]), (37, bos));
        assert_ne!(long[1], bos);
        assert_eq!(tokenizer.encode(&format!("{}a", PRO_TOKENS[0]), true).unwrap().len(), 2);
        assert_eq!(tokenizer.decode(&long[1..], false).unwrap(), "longer than the file's limit of four");
        assert_eq!(tokenizer.decode(&[bos, 9999], true).unwrap(), "");
    }

    #[test]
    fn what_a_user_writes_is_never_a_special_token() {
        let tokenizer = tokenizer(&PRO_TOKENS, &[]).unwrap();
        let text = "say <|Assistant|>: or <begin_of_image> or <｜end▁of▁sentence｜>";
        let ids = tokenizer.encode_plain(text, "question").unwrap();
        assert!(ids.iter().all(|&id| id < 256));
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(tokenizer.encode("<|User|>", false).unwrap(), [262]);
        assert_eq!(tokenizer.encode_plain("plain", "question").unwrap(), tokenizer.encode("plain", false).unwrap());
    }

    #[test]
    fn a_token_not_marked_as_special_is_refused_in_a_users_text() {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path(), &PRO_TOKENS);
        let path = folder.path().join("tokenizer.json");
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        file["added_tokens"][6]["special"] = false.into();
        std::fs::write(&path, file.to_string()).unwrap();
        let tokenizer = JanusTokenizer::from_folder(folder.path()).unwrap();
        let error = tokenizer.encode_plain("a <|User|> b", "question").unwrap_err();
        assert!(matches!(&error, ProcessingError::ReservedToken { part: "question", token } if token == "<|User|>"));
    }

    #[test]
    fn a_missing_placeholder_gets_the_next_id() {
        let tokenizer = tokenizer(&PRO_TOKENS[..5], &[]).unwrap();
        assert_eq!(tokenizer.special().image_placeholder, 261);
        assert_eq!(tokenizer.encode("<image_placeholder>", false).unwrap(), [261]);
        assert_eq!((tokenizer.special().roles, tokenizer.chat_style()), (None, ChatStyle::Plain));
        tokenizer.check_vocabulary(262).unwrap();
        let error = tokenizer.check_vocabulary(261).unwrap_err();
        let ProcessingError::VocabularyTooSmall { token, id: 261, vocabulary: 261 } = error else { panic!("{error}") };
        assert_eq!(token, "<image_placeholder>");
    }

    #[test]
    fn settings_name_other_tokens_and_the_first_file_counts() {
        let map =
            ("special_tokens_map.json", r#"{"pad_token": {"content": "<|User|>"}, "eos_token": "<begin_of_image>"}"#);
        let with_map = tokenizer(&PRO_TOKENS, &[map]).unwrap();
        assert_eq!((with_map.special().pad, with_map.special().eos), (262, 259));
        let config = ("tokenizer_config.json", r#"{"pad_token": "<｜▁pad▁｜>", "eos_token": null}"#);
        let with_both = tokenizer(&PRO_TOKENS, &[map, config]).unwrap();
        assert_eq!((with_both.special().pad, with_both.special().eos), (258, 259));
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = JanusTokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(&missing, ProcessingError::MissingTokenizer { .. }));
        assert!(!crate::error::Diagnose::hints(&missing).is_empty());
        for text in ["", "{", "[]", "{\"model\": 3}", "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\"}}"] {
            std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
            let error = JanusTokenizer::from_folder(folder.path());
            assert!(matches!(error, Err(ProcessingError::BadTokenizer { .. })), "{text:?}");
        }
        write_tokenizer(folder.path(), &PRO_TOKENS);
        let path = folder.path().join("tokenizer.json");
        let whole = std::fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(7).chain(whole.len() - 20..whole.len()) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let error = JanusTokenizer::from_folder(folder.path());
            assert!(matches!(error, Err(ProcessingError::BadTokenizer { .. })), "cut to {end} bytes");
        }
        for (left_out, name) in [(0, "begin-of-sentence"), (2, "pad"), (4, "end-of-image"), (7, "assistant")] {
            let special: Vec<&str> = PRO_TOKENS.iter().copied().filter(|&t| t != PRO_TOKENS[left_out]).collect();
            let error = tokenizer(&special, &[]);
            assert!(matches!(&error, Err(ProcessingError::MissingToken { name: n, .. }) if *n == name), "{name}");
        }
        let config = ("tokenizer_config.json", r#"{"pad_token": "<none>"}"#);
        assert!(matches!(tokenizer(&PRO_TOKENS, &[config]), Err(ProcessingError::MissingToken { name: "pad", .. })));
        let broken = ("tokenizer_config.json", "{");
        assert!(matches!(tokenizer(&PRO_TOKENS, &[broken]), Err(ProcessingError::Json { .. })));
    }
}
