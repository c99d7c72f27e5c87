//! Pictures and chat text against transformers, DeepSeek's code (both by way of the fixtures) and PIL.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use janus_core::processing::{
    ChatPart, ChatStyle, DEFAULT_SYSTEM_PROMPT, Decoding, ImageProcessor, JanusTokenizer, Message, Orientation,
    PromptBuilder, Role, Sample, ShortEdge, clipped_grey, decode_image, image_dimensions, is_turned, left_pad,
    left_pad_samples, pixels_to_images, render, render_transformers,
};
use janus_tests::{fixtures, json};
use serde_json::Value;

const PICTURES: [&str; 3] = ["landscape", "portrait", "panorama"];
const LAYOUTS: [&str; 3] = ["hf", "hf-sharded", "deepseek"];
const IMAGE_SIZE: usize = 32;
const TOKENS_PER_IMAGE: usize = 16;

fn tensors(folder: &Path, name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("expected").join(name), &Device::Cpu).unwrap()
}

fn picture(folder: &Path, name: &str) -> RgbImage {
    decode_image(&fs_err::read(folder.join(format!("inputs/{name}.png"))).unwrap(), Decoding::default()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn builder(folder: &Path, layout: &str) -> PromptBuilder {
    PromptBuilder::new(JanusTokenizer::from_folder(&folder.join(layout)).unwrap(), TOKENS_PER_IMAGE)
}

/// U8 `[3, height, width]` of a picture.
fn planes(image: &RgbImage) -> Tensor {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = Tensor::from_slice(image.as_raw(), (height, width, 3), &Device::Cpu).unwrap();
    pixels.permute((2, 0, 1)).unwrap().contiguous().unwrap()
}

fn assert_same_bytes(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (got.flatten_all().unwrap(), expected.flatten_all().unwrap());
    assert_eq!(got.to_vec1::<u8>().unwrap(), expected.to_vec1::<u8>().unwrap(), "{what}");
}

fn largest_difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    (got - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<Vec<i64>> {
    tensor.to_dtype(DType::I64).unwrap().to_vec2().unwrap()
}

#[test]
fn preprocessing_is_that_of_both_implementations() {
    let Some(folder) = fixtures() else { return };
    let expected = tensors(&folder, "preprocess.safetensors");
    let sizes = json(&folder, "expected/preprocess.json");
    for layout in LAYOUTS {
        let deepseek = ImageProcessor::from_folder(&folder.join(layout), IMAGE_SIZE).unwrap();
        let transformers = deepseek.clone().with_short_edge(ShortEdge::RoundHalfEven);
        for name in PICTURES {
            let image = picture(&folder, name);
            for (processor, key, size_key) in [
                (&deepseek, "deepseek", "deepseek_resized_height_width"),
                (&transformers, "hf_pil", "hf_resized_height_width"),
            ] {
                let what = format!("{layout} {name}.{key}");
                let (width, height) = processor.resized_dimensions(image.width(), image.height());
                assert_eq!(ids(&sizes["images"][name][size_key]), [height, width], "{what}");
                let square = planes(&processor.understanding_u8(&image));
                assert_same_bytes(&square, &expected[&format!("{name}.{key}.padded_u8")], &what);
                let values = processor.understanding(&image).unwrap();
                let difference = largest_difference(&values, &expected[&format!("{name}.{key}.pixel_values")]);
                assert!(difference <= 1e-6, "{what}: {difference}");
            }
        }
    }
}

#[test]
fn decoded_pixels_become_the_same_bytes() {
    let Some(folder) = fixtures() else { return };
    let expected = tensors(&folder, "vq.safetensors");
    let images = pixels_to_images(&expected["decode.pixels"]).unwrap();
    assert_eq!(images.len(), expected["decode.uint8"].dims()[0]);
    for (index, image) in images.iter().enumerate() {
        assert_same_bytes(&planes(image), &expected["decode.uint8"].get(index).unwrap(), "decode.uint8");
    }
    for set in ["generation_guided.safetensors", "generation_guided_batch.safetensors"] {
        let expected = tensors(&folder, set);
        let pixels = expected["pixels"].permute((0, 3, 1, 2)).unwrap();
        let images = pixels_to_images(&pixels).unwrap();
        assert_eq!(images.len(), expected["uint8_deepseek"].dims()[0]);
        for (index, image) in images.iter().enumerate() {
            let bytes = expected["uint8_deepseek"].get(index).unwrap().permute((2, 0, 1)).unwrap();
            assert_same_bytes(&planes(image), &bytes.contiguous().unwrap(), set);
        }
    }
}

#[test]
fn targets_are_scaled_as_the_image_tokenizer_expects() {
    let Some(folder) = fixtures() else { return };
    let (squares, expected) = (tensors(&folder, "preprocess.safetensors"), tensors(&folder, "vq.safetensors"));
    for name in PICTURES {
        // The fixtures' inputs are the padded squares; a square of the right size is its own target.
        let square = squares[&format!("{name}.hf_pil.padded_u8")].permute((1, 2, 0)).unwrap();
        let bytes = square.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let image = RgbImage::from_raw(IMAGE_SIZE as u32, IMAGE_SIZE as u32, bytes).unwrap();
        let target = ImageProcessor::new(IMAGE_SIZE).unwrap().generation_target(&image).unwrap();
        let pixels = expected[&format!("{name}.pixel_values")].squeeze(0).unwrap();
        let difference = largest_difference(&target, &pixels);
        assert!(difference <= 1e-6, "{name}: {difference}");
    }
}

#[test]
fn tokenisation_is_that_of_transformers() {
    let Some(folder) = fixtures() else { return };
    let expected = json(&folder, "expected/tokenization.json");
    for layout in LAYOUTS {
        let tokenizer = JanusTokenizer::from_folder(&folder.join(layout)).unwrap();
        let special = tokenizer.special();
        let (user, assistant) = special.roles.unwrap();
        for (name, id) in [
            ("bos", special.bos),
            ("eos", special.eos),
            ("pad", special.pad),
            ("image", special.image_placeholder),
            ("boi", special.begin_of_image),
            ("eoi", special.end_of_image),
            ("user", user),
            ("assistant", assistant),
        ] {
            assert_eq!(expected["special_ids"][name], id, "{layout} {name}");
        }
        let size = expected["vocab_size"].as_u64().unwrap() as usize;
        tokenizer.check_vocabulary(size).unwrap();
        assert!(tokenizer.check_vocabulary(size - 1).is_err());
        let cases = expected["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let with_bos = tokenizer.encode(text, true).unwrap();
            assert_eq!(with_bos, ids(&case["ids"]), "{layout} {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids_without_special_tokens"]), "{text:?}");
            assert_eq!(tokenizer.decode(&with_bos, false).unwrap(), case["decoded"], "{text:?}");
            assert_eq!(tokenizer.decode(&with_bos, true).unwrap(), case["decoded_skip_special"], "{text:?}");
        }
    }
}

/// A conversation of `prompts.json` in transformers' form.
fn parts(conversation: &Value) -> Vec<(Role, Vec<ChatPart>)> {
    let part = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => ChatPart::Image,
        _ => ChatPart::Text(part["text"].as_str().unwrap().into()),
    };
    let turns = conversation.as_array().unwrap().iter();
    turns
        .map(|turn| {
            let role = turn["role"].as_str().unwrap().parse().unwrap();
            (role, turn["content"].as_array().unwrap().iter().map(part).collect())
        })
        .collect()
}

/// The same in our own form: what transformers renders of each message alone is the text.
fn messages(conversation: &Value) -> Vec<Message> {
    let message = |(role, parts): &(Role, Vec<ChatPart>)| {
        let rendered = render_transformers(&[(*role, parts.clone())], false);
        let text = rendered.split_once(':').unwrap().1.to_string();
        Message { role: *role, images: text.matches("<image_placeholder>").count(), text }
    };
    parts(conversation).iter().map(message).collect()
}

#[test]
fn chat_text_and_ids_are_those_of_transformers() {
    let Some(folder) = fixtures() else { return };
    let (prompts, expected) = (json(&folder, "inputs/prompts.json"), json(&folder, "expected/chat.json"));
    let builder = builder(&folder, "hf");
    assert_eq!(builder.style(), ChatStyle::Pro);
    for case in expected["text_mode"].as_array().unwrap() {
        let conversation = &prompts["conversations"][case["conversation"].as_str().unwrap()];
        let answer_follows = case["add_generation_prompt"].as_bool().unwrap();
        let system = case["use_default_system_prompt"].as_bool().unwrap();
        let rendered = render_transformers(&parts(conversation), answer_follows);
        assert_eq!(rendered, case["rendered"]);
        let before = if system { format!("{DEFAULT_SYSTEM_PROMPT}\n\n") } else { String::new() };
        assert_eq!(builder.rendered_ids(&format!("{before}{rendered}")).unwrap(), ids(&case["input_ids"]), "{case}");
        if answer_follows {
            let prompt = builder.conversation_prompt(&messages(conversation), system).unwrap();
            assert_eq!(prompt, ids(&case["input_ids"]), "{case}");
        }
    }
    for case in expected["image_mode"].as_array().unwrap() {
        assert_eq!(render_transformers(&parts(&case["conversation"]), true), case["rendered"]);
        let caption = case["conversation"][0]["content"][0]["text"].as_str().unwrap();
        assert_eq!(builder.generation_prompt(caption).unwrap(), ids(&case["input_ids"]), "{caption}");
    }
}

#[test]
fn chat_text_is_that_of_the_original() {
    let Some(folder) = fixtures() else { return };
    let (prompts, expected) = (json(&folder, "inputs/prompts.json"), json(&folder, "expected/chat_deepseek.json"));
    let builder = builder(&folder, "deepseek");
    for (name, turns) in prompts["deepseek_conversations"].as_object().unwrap() {
        let message = |turn: &Value| {
            let text = turn["content"].as_str().unwrap();
            let images = text.matches("<image_placeholder>").count();
            Message { role: turn["role"].as_str().unwrap().parse().unwrap(), text: text.into(), images }
        };
        let turns: Vec<Message> = turns.as_array().unwrap().iter().map(message).collect();
        let rendered = render(ChatStyle::Pro, None, &turns).unwrap();
        assert_eq!(rendered, expected[name]);
        let prompt = builder.conversation_prompt(&turns[..turns.len() - 1], false).unwrap();
        assert_eq!(prompt, builder.rendered_ids(&rendered).unwrap(), "{name}");
    }
}

/// A sample of the understanding fixtures.
fn sample(builder: &PromptBuilder, prompts: &Value, case: &Value) -> Sample {
    let conversation = &prompts["conversations"][case["conversation"].as_str().unwrap()];
    let mut turns = messages(conversation);
    turns.push(Message::assistant(case["answer"].as_str().unwrap()));
    builder.conversation_sample(&turns, false).unwrap()
}

#[test]
fn samples_and_labels_are_those_of_the_understanding_fixtures() {
    let Some(folder) = fixtures() else { return };
    let prompts = json(&folder, "inputs/prompts.json");
    let builder = builder(&folder, "hf");
    let single = std::slice::from_ref(&prompts["understanding"]["single"]);
    let batch = prompts["understanding"]["batch"].as_array().unwrap();
    for (set, cases) in [("single", single), ("batch", batch)] {
        let samples: Vec<Sample> = cases.iter().map(|case| sample(&builder, &prompts, case)).collect();
        let batch = left_pad_samples(&samples, builder.tokenizer().special().pad);
        let expected = tensors(&folder, &format!("understanding_{set}.safetensors"));
        let device = Device::Cpu;
        for (name, got) in [
            ("input_ids", batch.ids_tensor(&device).unwrap()),
            ("attention_mask", batch.mask_tensor(&device).unwrap()),
            ("position_ids", batch.positions_tensor(&device).unwrap()),
            ("labels", batch.labels_tensor(&device).unwrap().unwrap()),
        ] {
            assert_eq!(integers(&got), integers(&expected[name]), "{set} {name}");
        }
    }
}

#[test]
fn guided_rows_are_those_of_the_generation_fixtures() {
    let Some(folder) = fixtures() else { return };
    let prompts = json(&folder, "inputs/prompts.json");
    let builder = builder(&folder, "hf");
    let pad = builder.tokenizer().special().pad;
    let single = std::slice::from_ref(&prompts["generation"]["single"]);
    let batch = prompts["generation"]["batch"].as_array().unwrap();
    for (set, cases) in [("generation_guided", single), ("generation_guided_batch", batch)] {
        let prompt = |case: &Value| builder.generation_prompt(case[0]["content"][0]["text"].as_str().unwrap()).unwrap();
        let rows: Vec<Vec<u32>> = cases.iter().map(prompt).collect();
        let unconditional: Vec<Vec<u32>> = rows.iter().map(|row| builder.unconditional(row)).collect();
        let expected = tensors(&folder, &format!("{set}.safetensors"));
        for (name, rows) in [("input_ids", rows), ("uncond_input_ids", unconditional)] {
            let got = left_pad(&rows, pad).ids_tensor(&Device::Cpu).unwrap();
            assert_eq!(integers(&got), integers(&expected[name]), "{set} {name}");
        }
    }
}

/// As `Image.open` and no more.
const AS_PIL: Decoding = Decoding { orientation: Orientation::Stored, grey_bits: None };

/// The largest step by which a value may differ from PIL's, for formats that do not define every bit.
fn tolerance(name: &str) -> u8 {
    match name {
        // The inverse cosine transform is each decoder's own, and so is the interpolation of colours at half size.
        "rgb.jpg" | "subsampled.jpg" | "progressive.jpg" | "orientation.jpg" => 2,
        "grey.jpg" | "cmyk.jpg" | "cmyk.tiff" => 1,
        _ => 0,
    }
}

/// The largest step between a picture and one that is written as width, height and hexadecimal bytes; `None` between
/// pictures of two sizes.
fn distance(image: &image::RgbImage, told: &Value) -> Option<u8> {
    let hex = told["rgb"].as_str().unwrap().as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    let rgb: Vec<u8> = hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    let same = told["width"] == image.width() && told["height"] == image.height() && rgb.len() == image.as_raw().len();
    same.then(|| rgb.iter().zip(image.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0))
}

#[test]
fn every_encoding_has_the_colours_that_pil_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/images");
    let expected = json(&folder, "expected.json");
    let cases = expected.as_object().unwrap();
    assert!(cases.len() > 30);
    let mut wrong = Vec::new();
    for (name, case) in cases {
        let bytes = fs_err::read(folder.join(name)).unwrap();
        let image = decode_image(&bytes, AS_PIL).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(case["width"], image.width(), "{name}");
        assert_eq!(case["height"], image.height(), "{name}");
        assert_eq!(image_dimensions(&bytes, AS_PIL).unwrap(), image.dimensions(), "{name}");
        let largest = distance(&image, case).unwrap();
        if largest > tolerance(name) {
            wrong.push(format!("{name}: differs by up to {largest}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How a picture of `golden/odd` differs from PIL's, stored and upright.
#[test]
fn odd_pictures_are_those_that_pil_gives_stored_and_upright() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/odd");
    let expected = json(&folder, "expected.json");
    let cases = expected.as_object().unwrap();
    assert!(cases.len() > 100);
    let mut wrong = Vec::new();
    for (name, case) in cases {
        let bytes = fs_err::read(folder.join(name)).unwrap();
        let upright = case.get("upright").unwrap_or(&case["stored"]);
        let tolerance = if name.ends_with(".jpg") { 2 } else { 0 };
        for (way, told) in [(Orientation::Stored, &case["stored"]), (Orientation::Upright, upright)] {
            let decoding = Decoding { orientation: way, grey_bits: None };
            match decode_image(&bytes, decoding) {
                Err(error) => wrong.push(format!("{name}, {way:?}: {error}")),
                Ok(image) => {
                    if image_dimensions(&bytes, decoding).unwrap() != image.dimensions() {
                        wrong.push(format!("{name}, {way:?}: the header tells another size"));
                    }
                    match distance(&image, told) {
                        Some(step) if step <= tolerance => {}
                        step => wrong.push(format!("{name}, {way:?}: differs by {step:?}")),
                    }
                }
            }
        }
        let is_told = case.get("upright").is_some();
        if is_turned(&bytes) != is_told {
            wrong.push(format!("{name}: it is told to be turned: {}", !is_told));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A PNG of 16-bit grey.
fn grey_16(values: &[u16]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let grey = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(values.len() as u32, 1, values.to_vec()).unwrap();
    image::DynamicImage::from(grey).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn grey_of_more_bits_is_scaled_by_what_its_white_is() {
    let bytes = grey_16(&[0, 1, 16, 255, 256, 2048, 4095, 4096, 65_535]);
    let decoded = |grey_bits| {
        let image = decode_image(&bytes, Decoding { grey_bits, ..Decoding::default() }).unwrap();
        image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<u8>>()
    };
    assert_eq!(decoded(None), [0, 1, 16, 255, 255, 255, 255, 255, 255]);
    // value * 255 / 4095, to the nearest.
    assert_eq!(decoded(Some(12)), [0, 0, 1, 16, 16, 128, 255, 255, 255]);
    assert_eq!(decoded(Some(8)), decoded(None));
    assert_eq!(decoded(Some(16)), [0, 0, 0, 1, 1, 8, 16, 16, 255]);
    let clipped = |values: &[u16], grey_bits| {
        clipped_grey(&grey_16(values), Decoding { grey_bits, ..Decoding::default() }).unwrap()
    };
    assert_eq!(clipped(&[3, 4095, 7], None), Some(4095));
    assert_eq!(clipped(&[3, 4095, 7], Some(12)), None);
    assert_eq!(clipped(&[3, 255], None), None);
    let rgb = fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/odd/rgb-16.png")).unwrap();
    assert_eq!(clipped_grey(&rgb, Decoding::default()).unwrap(), None, "colours lose their low byte alone");
}
