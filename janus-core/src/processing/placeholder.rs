//! What stands for a picture in texts that were written for other programs.
//!
//! The strings are those of the processors in transformers (LLaVA, Qwen-VL, Gemma 3, Llama 3.2, Phi-3, Pixtral, InternVL,
//! MiniCPM-V, GLM-4V, Kimi-VL) and of data sets that number their pictures (`<image 1>`).

use super::chat::IMAGE_PLACEHOLDER;

/// Longest string that is one placeholder, in bytes.
const MAX_TAG_BYTES: usize = 40;
/// Longest path between `<img>` and `</img>`, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Bytes that are looked through in vain for the ends of pictures, in a text as a whole.
const MAX_VAIN_BYTES: usize = 1 << 20;
/// Spellings that are kept of a text.
const MAX_SPELLINGS: usize = 4;

/// Strings that stand for a picture and for nothing else, without what they stand between.
const PICTURES: [&str; 13] = [
    "image",
    "image_pad",
    "image_soft_token",
    "image_placeholder",
    "image_patch",
    "image_token",
    "imagehere",
    "imgpad",
    "img_context",
    "img_plh",
    "im_patch",
    "media_pad",
    "media_content",
];
/// Strings that begin a picture; without an end behind them they stand for one themselves.
const BEGINNINGS: [&str; 7] =
    ["vision_start", "begin_of_image", "start_of_image", "image_start", "image_begin", "media_begin", "media_start"];
/// Strings that end a picture.
const ENDS: [&str; 6] = ["vision_end", "end_of_image", "image_end", "image_newline", "img_break", "media_end"];

/// Where pictures stand in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholders {
    /// The text with [`IMAGE_PLACEHOLDER`] in the place of each.
    pub text: String,
    /// How many there are.
    pub count: usize,
    /// How many of them are nothing else in a text about web pages, as `<img>` may be.
    pub certain: usize,
    /// The first few spellings that are not [`IMAGE_PLACEHOLDER`], each once.
    pub foreign: Vec<String>,
    /// The numbers of those that have one (`<|image_2|>`), in reading order.
    pub numbers: Vec<u32>,
}

impl Placeholders {
    /// Whether numbered ones come in the order of their numbers, each once, from 0 or 1 on.
    pub fn is_in_order(&self) -> bool {
        let first = self.numbers.first().copied().unwrap_or(0);
        first <= 1 && self.numbers.iter().zip(first..).all(|(number, expected)| *number == expected)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Stands for a picture.
    Picture,
    /// Begins one.
    Beginning,
    /// Ends one.
    End,
}

#[derive(Debug, Clone, Copy)]
struct Tag {
    kind: Kind,
    bytes: usize,
    /// It means nothing else.
    certain: bool,
    number: Option<u32>,
}

/// Finds what stands for pictures in a text that a user wrote.
pub fn find_placeholders(text: &str) -> Placeholders {
    let mut found = Placeholders {
        text: String::with_capacity(text.len()),
        count: 0,
        certain: 0,
        foreign: vec![],
        numbers: vec![],
    };
    let (mut rest, mut vain) = (text, 0);
    while let Some(start) = rest.find(['<', '[']) {
        let (before, from) = rest.split_at(start);
        found.text.push_str(before);
        let Some(tag) = tag_at(from) else {
            // Both are one byte.
            let (bracket, behind) = from.split_at(1);
            found.text.push_str(bracket);
            rest = behind;
            continue;
        };
        let (spelling, behind) = from.split_at(tag.bytes);
        found.count += 1;
        found.certain += usize::from(tag.certain);
        found.numbers.extend(tag.number);
        if spelling != IMAGE_PLACEHOLDER
            && found.foreign.len() < MAX_SPELLINGS
            && !found.foreign.iter().any(|known| known == spelling)
        {
            found.foreign.push(spelling.to_owned());
        }
        found.text.push_str(IMAGE_PLACEHOLDER);
        rest = behind;
        if tag.kind != Kind::End && vain < MAX_VAIN_BYTES {
            match after_picture(behind) {
                Ok(after) => rest = after,
                Err(bytes) => vain += bytes,
            }
        }
    }
    found.text.push_str(rest);
    found
}

/// The text behind the end of a picture that has begun; where it does not end, or where a user's text comes first, the bytes
/// that were looked through.
fn after_picture(text: &str) -> Result<&str, usize> {
    let (mut rest, mut path, mut spaces) = (text, 0, 0);
    loop {
        let vain = text.len() - rest.len();
        if let Some(tag) = tag_at(rest) {
            let (_, behind) = rest.split_at(tag.bytes);
            match tag.kind {
                Kind::End => return Ok(behind),
                Kind::Picture => rest = behind,
                Kind::Beginning => return Err(vain),
            }
            continue;
        }
        let letter = rest.chars().next().ok_or(vain)?;
        *if letter.is_whitespace() { &mut spaces } else { &mut path } += letter.len_utf8();
        if path > MAX_PATH_BYTES || spaces > MAX_PATH_BYTES || path > 0 && spaces > 0 {
            return Err(vain);
        }
        rest = &rest[letter.len_utf8()..];
    }
}

/// The placeholder that a text begins with.
fn tag_at(text: &str) -> Option<Tag> {
    for (spelling, kind) in [("[IMG]", Kind::Picture), ("[IMG_BREAK]", Kind::Picture), ("[IMG_END]", Kind::End)] {
        if text.starts_with(spelling) {
            return Some(Tag { kind, bytes: spelling.len(), certain: kind == Kind::End, number: None });
        }
    }
    let inner = text.strip_prefix('<')?;
    let end = inner.bytes().take(MAX_TAG_BYTES).position(|byte| byte == b'>')?;
    let inner = inner.get(..end)?;
    let bytes = end + 2;
    let (name, has_bars) = match inner.strip_prefix('|').and_then(|inner| inner.strip_suffix('|')) {
        Some(name) => (name, true),
        None => (inner, false),
    };
    let name = name.to_ascii_lowercase().replace([' ', '-'], "_");
    let tag = |kind, certain, number| Some(Tag { kind, bytes, certain, number });
    // `<|im_start|>` begins a turn, `<im_start>` a picture.
    match name.as_str() {
        "im_start" if !has_bars => return tag(Kind::Beginning, true, None),
        "im_end" if !has_bars => return tag(Kind::End, true, None),
        "/image" | "/img" => return tag(Kind::End, false, None),
        "img" => return tag(Kind::Picture, has_bars, None),
        _ => {}
    }
    if PICTURES.contains(&name.as_str()) {
        return tag(Kind::Picture, true, None);
    }
    if BEGINNINGS.contains(&name.as_str()) {
        return tag(Kind::Beginning, true, None);
    }
    if ENDS.contains(&name.as_str()) {
        return tag(Kind::End, true, None);
    }
    let digits = name.strip_prefix("image").or_else(|| name.strip_prefix("img"))?;
    let number = digits.strip_prefix('_').unwrap_or(digits);
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    tag(Kind::Picture, true, Some(number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> (usize, String) {
        let found = find_placeholders(text);
        (found.count, found.text.replace(IMAGE_PLACEHOLDER, "@"))
    }

    #[test]
    fn what_other_programs_write_is_a_placeholder() {
        for (text, expected) in [
            ("Compare <image> with <image>", "Compare @ with @"),
            ("<image>\nWhat is it?", "@\nWhat is it?"),
            ("<|image|><|image|>Why?", "@@Why?"),
            ("<|image_1|>\n<|image_2|>\nWhich?", "@\n@\nWhich?"),
            ("Look at <image 1>, then <image 2>.", "Look at @, then @."),
            ("<image_soft_token> and <start_of_image>", "@ and @"),
            ("<ImageHere>Tell.", "@Tell."),
            ("[IMG]What?[IMG]", "@What?@"),
            ("<img>what</img> is it", "@ is it"),
            ("Picture 1: <img>photos/a.jpg</img>\nWho?", "Picture 1: @\nWho?"),
            ("(<image>./</image>)\nWho?", "(@)\nWho?"),
            ("<|image_pad|> here", "@ here"),
            ("<|vision_start|> here", "@ here"),
            ("<|begin_of_image|><|image|><|end_of_image|>What?", "@What?"),
            ("<im_start><image><im_end>What?", "@What?"),
            ("<IMG_CONTEXT> <image_placeholder>", "@ @"),
            ("<begin_of_image><image_placeholder><image_placeholder><end_of_image>x", "@x"),
            ("<begin_of_image>", "@"),
            ("<image></image><image></image>", "@@"),
        ] {
            assert_eq!(counted(text), (expected.matches('@').count(), expected.to_owned()), "{text}");
        }
        let pads = format!("<|vision_start|>{}<|vision_end|>", "<|image_pad|>".repeat(600));
        assert_eq!(counted(&format!("{pads}a{pads}b")), (2, "@a@b".into()));
        let rows = format!("{}[IMG_END]", "[IMG][IMG][IMG_BREAK]".repeat(30));
        assert_eq!(counted(&format!("{rows}a[IMG]")), (2, "@a@".into()));
    }

    #[test]
    fn other_texts_are_left_alone() {
        for text in [
            "a < b and c > d",
            "<|im_start|>user",
            "<imagery> <img src=\"a.png\"> <image href='x'/>",
            "array[1] [img] [IMAGE] <1> < image >",
            "<",
            "<äöü>",
            "",
            "<image",
        ] {
            assert_eq!(counted(text), (0, text.to_owned()));
        }
    }

    #[test]
    fn numbers_ends_and_doubtful_ones_are_told() {
        let found = |text: &str| find_placeholders(text);
        assert!(found("<|image_1|><|image_2|>").is_in_order() && found("<image_0> <image_1>").is_in_order());
        assert!(found("<image>").is_in_order());
        for text in ["<|image_2|><|image_1|>", "<image 1> <image 1>", "<image 2>", "<image1><image3>"] {
            assert!(!found(text).is_in_order(), "{text}");
        }
        // An end without its beginning fits no picture, so that it is not passed over.
        assert_eq!(found("what<|vision_end|>").count, 1);
        assert_eq!((found("<img> and [IMG]").count, found("<img> and [IMG]").certain), (2, 0));
        assert_eq!(found("<image> <|img|>").certain, 2);
        assert_eq!(found("<image><image><Image>").foreign, ["<image>", "<Image>"]);
        // However many there are, they are found in one go.
        assert_eq!(found(&"<image>".repeat(200_000)).count, 200_000);
        // A user's text between two of them is none of them.
        assert_eq!(counted("<img> a long text </img>").1, "@ a long text @");
    }
}
