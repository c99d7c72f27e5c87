//! The small files beside the weights: copied between equal layouts, rewritten between different ones.
//!
//! Source of the forms: `processing_janus.py` and `image_processing_janus.py` of transformers (release 4 form, which
//! release 5 reads as well), `processing_vlm.py` and `image_processing_vlm.py` of deepseek-ai/Janus.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::write::write_json;
use super::{Checkpoint, CheckpointError};
use crate::config::{JanusConfig, Layout};
use crate::directory::{Directory, Place};
use crate::input::{self, MAX_SIDE_FILE_BYTES};
use crate::output::write_below;

/// Texts of the special tokens, in the order of published vocabularies. Bars are U+FF5C and blocks U+2581 in the first three.
pub(super) mod special {
    pub(in crate::checkpoint) const BOS: &str = "<｜begin▁of▁sentence｜>";
    pub(in crate::checkpoint) const EOS: &str = "<｜end▁of▁sentence｜>";
    pub(in crate::checkpoint) const PAD: &str = "<｜▁pad▁｜>";
    pub(in crate::checkpoint) const BEGIN_OF_IMAGE: &str = "<begin_of_image>";
    pub(in crate::checkpoint) const END_OF_IMAGE: &str = "<end_of_image>";
    pub(in crate::checkpoint) const IMAGE: &str = "<image_placeholder>";
    pub(in crate::checkpoint) const USER: &str = "<|User|>";
    pub(in crate::checkpoint) const ASSISTANT: &str = "<|Assistant|>";
}

const TOKENIZER: &str = "tokenizer.json";

/// Files that go with any layout, by name.
const COPIED: [&str; 9] = [
    TOKENIZER,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
/// Files whose form depends on the layout.
const FORMED: [&str; 3] = ["tokenizer_config.json", "preprocessor_config.json", "processor_config.json"];

/// A template that renders conversations as the processor of the original code does, for transformers' processors.
/// `content` may be a text or a list of parts; only the last assistant message is left without its end token.
pub(super) const CHAT_TEMPLATE: &str = r#"{%- macro body(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}
{%- for item in content -%}
{%- if item.type == 'image' -%}
{{ ('' if loop.first else '\n') ~ '<image_placeholder>' ~ ('' if loop.last else '\n') }}
{%- elif item.type == 'text' -%}
{%- set words = item.text.lstrip() if loop.first else item.text -%}
{{ (' ' if not loop.first and loop.previtem.type == 'text' else '') ~ (words.rstrip() if loop.last else words) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set closed = add_generation_prompt or not loop.last -%}
{%- set text = body(message.content) -%}
{%- set speaker = message.role | lower -%}
{%- set opening = message.content if message.content is string else message.content[0].text -%}
{%- if speaker == 'user' -%}
{{ '<|User|>: ' ~ text ~ ('\n\n' if closed else '') }}
{%- else -%}
{%- set name = '<|Assistant|>' if speaker == 'assistant' else message.role | capitalize -%}
{{ name ~ (':' if speaker == 'assistant' and opening == '' and not closed else ': ') ~ text ~ ('<｜end▁of▁sentence｜>' if closed else '') }}
{%- endif -%}
{%- endfor -%}
{{ '<|Assistant|>:' if add_generation_prompt else '' }}"#;

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}

fn copy_file(from: &Path, into: &Directory, name: &str) -> crate::Result<()> {
    // Through a link, somebody else's file would come into a folder that is meant to be passed on.
    if let Some(bytes) = input::read(from, name, MAX_SIDE_FILE_BYTES).map_err(CheckpointError::from)? {
        write_below(into, name, |writer| writer.write_all(&bytes))?;
    }
    Ok(())
}

/// Copies all known small files, and whatever is called a licence.
pub(super) fn copy(from: &Path, into: &Directory) -> crate::Result<()> {
    for name in COPIED.into_iter().chain(FORMED) {
        copy_file(from, into, name)?;
    }
    copy_licences(from, into)
}

fn copy_licences(from: &Path, into: &Directory) -> crate::Result<()> {
    for entry in fs_err::read_dir(from).map_err(io_error(from))? {
        let entry = entry.map_err(io_error(from))?;
        // Some repositories have a folder of licences.
        if !entry.path().is_file() {
            continue;
        }
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| name.to_ascii_uppercase().starts_with("LICENSE")) {
            copy_file(from, into, name)?;
        }
    }
    Ok(())
}

/// Writes the small files in the other layout's form.
pub(super) fn convert(source: &Checkpoint, target: Layout, into: &Directory) -> crate::Result<()> {
    let from = source.folder();
    for name in COPIED {
        copy_file(from, into, name)?;
    }
    copy_licences(from, into)?;
    if target == Layout::Native {
        add_placeholder(into)?;
    }
    let processing = ImageProcessing::of_folder(from, source.config())?;
    processing.write(target, into)?;
    let tokenizer_config = read_object(from, "tokenizer_config.json")?.unwrap_or_default();
    write_tokenizer_config(tokenizer_config, target, into)?;
    if target == Layout::Native {
        if !from.join("chat_template.jinja").exists() && !from.join("chat_template.json").exists() {
            write_chat_template(into)?;
        }
        if !from.join("generation_config.json").exists() {
            write_generation_config(&SpecialIds::of_folder(into)?, into)?;
        }
    }
    Ok(())
}

/// The object of a JSON file, `None` where there is no file.
fn read_object<'a>(folder: impl Into<Place<'a>>, name: &str) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let folder = folder.into();
    let Some(bytes) = input::read(folder, name, MAX_SIDE_FILE_BYTES)? else { return Ok(None) };
    let object = serde_json::from_slice(&bytes);
    object.map(Some).map_err(|source| CheckpointError::Json { file: folder.path().join(name), source })
}

/// Adds `<image_placeholder>` to a tokenizer that lacks it, at the next free id. Janus-1.3B's lacks it: the original
/// processor adds it whenever it loads, the native one expects it in the file.
fn add_placeholder(folder: &Directory) -> crate::Result<()> {
    let Some(mut tokenizer) = read_object(folder, TOKENIZER)? else { return Ok(()) };
    let content = |token: &Value| token.get("content").and_then(Value::as_str).map(str::to_owned);
    let Some(added) = tokenizer.get("added_tokens").and_then(Value::as_array).cloned() else { return Ok(()) };
    let contents: Vec<String> = added.iter().filter_map(content).collect();
    let Some(vocabulary) = tokenizer.get_mut("model").and_then(|model| model.get_mut("vocab")?.as_object_mut()) else {
        return Ok(());
    };
    if contents.iter().any(|text| text == special::IMAGE) || vocabulary.contains_key(special::IMAGE) {
        return Ok(());
    }
    let ids = added.iter().filter_map(|token| token.get("id").and_then(Value::as_u64));
    let id = ids.map(|id| id.saturating_add(1)).max().unwrap_or(0).max(vocabulary.len() as u64);
    // The tokenizers library gives an added token the id that the vocabulary has for its text; only those without one are
    // numbered on from the vocabulary's length. So the new one goes where the others are, and none changes its id.
    if contents.iter().all(|text| vocabulary.contains_key(text)) {
        vocabulary.insert(special::IMAGE.into(), json!(id));
    }
    if let Some(Value::Array(added)) = tokenizer.get_mut("added_tokens") {
        added.push(added_token(id, special::IMAGE));
    }
    write_json(folder, TOKENIZER, &Value::Object(tokenizer))
}

/// An entry of `added_tokens`: matched as it stands, never normalised or stripped.
pub(super) fn added_token(id: u64, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// Ids of the special tokens that configurations name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) image: Option<u32>,
    pub(super) begin_of_image: Option<u32>,
}

impl SpecialIds {
    /// By text, from the added tokens of `tokenizer.json`; none where there is no such file.
    pub(super) fn of_folder(folder: &Directory) -> Result<Self, CheckpointError> {
        let tokenizer = read_object(folder, TOKENIZER)?.unwrap_or_default();
        let added = tokenizer.get("added_tokens").and_then(Value::as_array);
        let id_of = |text: &str| {
            let token = added?.iter().find(|token| token.get("content").and_then(Value::as_str) == Some(text))?;
            token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
        };
        Ok(Self {
            bos: id_of(special::BOS),
            eos: id_of(special::EOS),
            pad: id_of(special::PAD),
            image: id_of(special::IMAGE),
            begin_of_image: id_of(special::BEGIN_OF_IMAGE),
        })
    }

    /// Fills in what the configuration leaves open; an id beyond the vocabulary is of no use to it.
    pub(super) fn complete(&self, config: &mut JanusConfig) {
        let vocab_size = config.text.vocab_size;
        let fill = |slot: &mut Option<u32>, id: Option<u32>| {
            *slot = slot.or(id.filter(|id| (*id as usize) < vocab_size));
        };
        fill(&mut config.text.bos_token_id, self.bos);
        fill(&mut config.text.eos_token_id, self.eos);
        fill(&mut config.text.pad_token_id, self.pad);
        fill(&mut config.image_token_id, self.image);
    }
}

/// What both forms of the image processor's file say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageProcessing {
    image_size: usize,
    num_image_tokens: usize,
    min_size: Value,
    image_mean: Value,
    image_std: Value,
    rescale_factor: Value,
    background_color: Value,
    do_normalize: Value,
    sft_format: Value,
    use_default_system_prompt: Value,
}

impl ImageProcessing {
    /// What published models have. One of them shipped `do_normalize` false at first, which was a mistake.
    pub(super) fn of_config(config: &JanusConfig) -> Self {
        Self {
            image_size: config.vision.image_size,
            num_image_tokens: config.vision.num_patches(),
            min_size: json!(14),
            image_mean: json!([0.5, 0.5, 0.5]),
            image_std: json!([0.5, 0.5, 0.5]),
            rescale_factor: json!(1.0 / 255.0),
            background_color: json!([127, 127, 127]),
            do_normalize: json!(true),
            sft_format: json!("deepseek"),
            use_default_system_prompt: json!(true),
        }
    }

    /// As the folder's files say, in either form, with what published models have for the rest.
    fn of_folder(folder: &Path, config: &JanusConfig) -> Result<Self, CheckpointError> {
        let processor = read_object(folder, "processor_config.json")?.unwrap_or_default();
        // Release 5 nests the image processor, older ones and the original give it a file of its own.
        let nested = processor.get("image_processor").and_then(Value::as_object).cloned();
        let image = match nested {
            Some(nested) => nested,
            None => read_object(folder, "preprocessor_config.json")?.unwrap_or_default(),
        };
        let default = Self::of_config(config);
        let value = |map: &Map<String, Value>, key: &str, default: Value| match map.get(key) {
            None | Some(Value::Null) => default,
            Some(value) => value.clone(),
        };
        Ok(Self {
            min_size: value(&image, "min_size", default.min_size),
            image_mean: value(&image, "image_mean", default.image_mean),
            image_std: value(&image, "image_std", default.image_std),
            rescale_factor: value(&image, "rescale_factor", default.rescale_factor),
            background_color: value(&image, "background_color", default.background_color),
            do_normalize: value(&image, "do_normalize", default.do_normalize),
            sft_format: value(&processor, "sft_format", default.sft_format),
            use_default_system_prompt: value(
                &processor,
                "use_default_system_prompt",
                default.use_default_system_prompt,
            ),
            ..default
        })
    }

    pub(super) fn write(&self, layout: Layout, into: &Directory) -> crate::Result<()> {
        let (image, processor) = match layout {
            Layout::Native => self.native(),
            Layout::DeepSeek => self.original(),
        };
        write_json(into, "preprocessor_config.json", &image)?;
        write_json(into, "processor_config.json", &processor)
    }

    fn native(&self) -> (Value, Value) {
        let image = json!({
            "background_color": self.background_color,
            "do_normalize": self.do_normalize,
            "do_pad": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": self.image_mean,
            "image_processor_type": "JanusImageProcessor",
            "image_std": self.image_std,
            "min_size": self.min_size,
            "processor_class": "JanusProcessor",
            "resample": 3,
            "rescale_factor": self.rescale_factor,
            "size": { "height": self.image_size, "width": self.image_size },
        });
        let processor = json!({
            "num_image_tokens": self.num_image_tokens,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": self.use_default_system_prompt,
        });
        (image, processor)
    }

    fn original(&self) -> (Value, Value) {
        let image = json!({
            "background_color": self.background_color,
            "do_normalize": self.do_normalize,
            "image_mean": self.image_mean,
            "image_processor_type": "VLMImageProcessor",
            "image_size": self.image_size,
            "image_std": self.image_std,
            "min_size": self.min_size,
            "processor_class": "VLChatProcessor",
            "rescale_factor": self.rescale_factor,
        });
        let processor = json!({
            "add_special_token": false,
            "ignore_id": -100,
            "image_tag": special::IMAGE,
            "mask_prompt": true,
            "num_image_tokens": self.num_image_tokens,
            "processor_class": "VLChatProcessor",
            "sft_format": self.sft_format,
        });
        (image, processor)
    }
}

/// Writes `tokenizer_config.json` with the class and the names that the layout's processor asks for; other keys stay.
pub(super) fn write_tokenizer_config(
    mut config: Map<String, Value>,
    layout: Layout,
    into: &Directory,
) -> crate::Result<()> {
    for (key, text) in [("bos_token", special::BOS), ("eos_token", special::EOS), ("pad_token", special::PAD)] {
        if config.get(key).is_none_or(Value::is_null) {
            config.insert(key.into(), json!(text));
        }
    }
    config.shift_remove("backend");
    match layout {
        Layout::Native => {
            let named = json!({
                "image_token": special::IMAGE,
                "boi_token": special::BEGIN_OF_IMAGE,
                "eoi_token": special::END_OF_IMAGE,
            });
            if let Some(named) = named.as_object() {
                config.extend(named.clone());
            }
            config.insert("extra_special_tokens".into(), named);
            config.insert("processor_class".into(), json!("JanusProcessor"));
            config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        }
        Layout::DeepSeek => {
            for key in ["image_token", "boi_token", "eoi_token", "extra_special_tokens", "processor_class"] {
                config.shift_remove(key);
            }
            config.insert("add_bos_token".into(), json!(true));
            config.insert("add_eos_token".into(), json!(false));
            config.insert("tokenizer_class".into(), json!("LlamaTokenizerFast"));
        }
    }
    write_json(into, "tokenizer_config.json", &Value::Object(config))
}

pub(super) fn write_chat_template(into: &Directory) -> crate::Result<()> {
    write_below(into, "chat_template.jinja", |writer| writer.write_all(CHAT_TEMPLATE.as_bytes()))?;
    Ok(())
}

pub(super) fn write_generation_config(ids: &SpecialIds, into: &Directory) -> crate::Result<()> {
    let mut config = Map::new();
    for (key, id) in [("bos_token_id", ids.bos), ("eos_token_id", ids.eos), ("pad_token_id", ids.pad)] {
        if let Some(id) = id {
            config.insert(key.into(), json!(id));
        }
    }
    if let Some(id) = ids.begin_of_image {
        config.insert("generation_kwargs".into(), json!({ "boi_token_id": id }));
    }
    config.insert("guidance_scale".into(), json!(5.0));
    write_json(into, "generation_config.json", &Value::Object(config))
}
