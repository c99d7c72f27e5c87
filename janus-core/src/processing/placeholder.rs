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
/// Longest tag with attributes, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 4096;
/// What the names of pictures end with.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif"];
/// What paths begin with, and no question.
const PATH_STARTS: [&str; 6] = ["/", "./", "../", "http://", "https://", "file:"];
/// Spellings that are kept of a text.
const MAX_SPELLINGS: usize = 4;

/// Strings that stand for a picture and for nothing else, without what they stand between.
const PICTURES: [&str; 15] = [
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
    "image_sentinel",
    "imagecontent",
];
/// Strings that begin a picture; without an end behind them they stand for one themselves.
const BEGINNINGS: [&str; 7] =
    ["vision_start", "begin_of_image", "start_of_image", "image_start", "image_begin", "media_begin", "media_start"];
/// Strings that end a picture.
const ENDS: [&str; 6] = ["vision_end", "end_of_image", "image_end", "image_newline", "img_break", "media_end"];
/// Strings that stand for a video and for nothing else.
const VIDEOS: [&str; 8] = [
    "video_pad",
    "video_token",
    "video_placeholder",
    "video_soft_token",
    "video_sentinel",
    "begin_of_video",
    "start_of_video",
    "video_start",
];

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
    /// What stands for a video, and whether it means nothing else.
    pub video: Option<(String, bool)>,
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
    /// Begins one or ends one.
    Frame,
    /// Stands for a video.
    Video,
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
        video: None,
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
        if tag.kind == Kind::Video {
            if !found.video.as_ref().is_some_and(|(_, certain)| *certain || !tag.certain) {
                found.video = Some((spelling.to_owned(), tag.certain));
            }
            found.text.push_str(spelling);
            rest = behind;
            continue;
        }
        let begins = || tag_at(behind).is_some_and(|next| matches!(next.kind, Kind::Picture | Kind::Beginning));
        let ends = tag.kind == Kind::End || tag.kind == Kind::Frame && !begins();
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
        if !ends && vain < MAX_VAIN_BYTES {
            match after_picture(behind, spelling) {
                // MiniCPM's brackets belong to its picture.
                Ok((after, true)) if before.ends_with('(') && after.starts_with(')') => {
                    found.text.truncate(found.text.len() - IMAGE_PLACEHOLDER.len() - 1);
                    found.text.push_str(IMAGE_PLACEHOLDER);
                    rest = &after[1..];
                }
                Ok((after, _)) => rest = after,
                Err(bytes) => vain += bytes,
            }
        }
    }
    found.text.push_str(rest);
    found
}

/// The text behind the end of a picture that has begun with `opening`, and whether MiniCPM's dot stood in it; where it does not end,
/// or where a user's text comes first, the bytes that were looked through.
fn after_picture<'a>(text: &'a str, opening: &str) -> Result<(&'a str, bool), usize> {
    let (mut rest, mut has_dot) = (text, false);
    if opening.eq_ignore_ascii_case("<img>")
        && let Some(end) = path_bytes(text)
    {
        rest = &text[end..];
        let end = tag_at(rest).filter(|tag| tag.kind == Kind::End);
        return end.map_or(Err(text.len() - rest.len()), |tag| Ok((&rest[tag.bytes..], false)));
    }
    for (known, behind, dot) in [("./", "</", true), ("image", "<|media_content|>", false)] {
        if let Some(after) = rest.strip_prefix(known).filter(|after| after.starts_with(behind)) {
            (rest, has_dot) = (after, dot);
        }
    }
    loop {
        rest = rest.trim_start();
        let vain = text.len() - rest.len();
        let tag = tag_at(rest).ok_or(vain)?;
        let (_, behind) = rest.split_at(tag.bytes);
        match tag.kind {
            Kind::End | Kind::Frame => return Ok((behind, has_dot)),
            Kind::Picture => rest = behind,
            Kind::Beginning | Kind::Video => return Err(vain),
        }
    }
}

/// Bytes of the path of a picture that a text begins with, up to the next tag.
fn path_bytes(text: &str) -> Option<usize> {
    let end = text.bytes().take(MAX_PATH_BYTES).position(|byte| byte == b'<')?;
    let path = text.get(..end)?.trim();
    let is_path = !path.contains(char::is_whitespace)
        && (path
            .rsplit_once('.')
            .is_some_and(|(_, last)| EXTENSIONS.iter().any(|known| last.eq_ignore_ascii_case(known)))
            || PATH_STARTS.iter().any(|start| path.starts_with(start)));
    is_path.then_some(end)
}

/// The placeholder that a text begins with.
fn tag_at(text: &str) -> Option<Tag> {
    let spellings = [
        ("[IMG]", Kind::Picture),
        ("[IMG_BREAK]", Kind::Picture),
        ("[IMG_END]", Kind::End),
        ("[IMAGE]", Kind::Picture),
    ];
    for (spelling, kind) in spellings {
        if text.get(..spelling.len()).is_some_and(|start| start.eq_ignore_ascii_case(spelling)) {
            return Some(Tag { kind, bytes: spelling.len(), certain: kind == Kind::End, number: None });
        }
    }
    let inner = text.strip_prefix('<')?;
    if let Some(tag) = with_attributes(inner) {
        return Some(tag);
    }
    let end = inner.bytes().take(MAX_TAG_BYTES).position(|byte| byte == b'>')?;
    let inner = inner.get(..end)?;
    let bytes = end + 2;
    // Nothing is between `<image/>` and its end.
    let inner = inner.strip_suffix('/').map_or(inner, str::trim_end);
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
        "fake_token_around_image" => return tag(Kind::Frame, true, None),
        "video" => return tag(Kind::Video, has_bars, None),
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
    if VIDEOS.contains(&name.as_str()) {
        return tag(Kind::Video, true, None);
    }
    let digits = name.strip_prefix("image").or_else(|| name.strip_prefix("img"))?;
    let number = digits.strip_prefix('_').unwrap_or(digits);
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    tag(Kind::Picture, true, Some(number.parse().ok()?))
}

/// `<img src="a.png">` or `<image id="1">`, without its first bracket: web pages have them, too.
fn with_attributes(inner: &str) -> Option<Tag> {
    let name = ["image", "img"]
        .into_iter()
        .find(|name| inner.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))?;
    let rest = inner.get(name.len()..).filter(|rest| rest.starts_with(char::is_whitespace))?;
    let end = rest.bytes().take(MAX_ATTRIBUTE_BYTES).position(|byte| matches!(byte, b'>' | b'<'))?;
    let attributes = rest.get(..end).filter(|_| rest.as_bytes().get(end) == Some(&b'>'))?;
    let (first, value) = attributes.split_once('=')?;
    let first = first.trim();
    if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_' | b':')) {
        return None;
    }
    let value = value.trim_start().trim_start_matches(['"', '\'']);
    let digits = value.find(|letter: char| !letter.is_ascii_digit()).map_or(value, |end| &value[..end]);
    let number = digits.parse().ok().filter(|_| first.eq_ignore_ascii_case("id"));
    Some(Tag { kind: Kind::Picture, bytes: 1 + name.len() + end + 1, certain: false, number })
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
            ("<img>what.png</img> is it", "@ is it"),
            ("Picture 1: <img>photos/a.jpg</img>\nWho?", "Picture 1: @\nWho?"),
            ("(<image>./</image>)\nWho?", "@\nWho?"),
            ("<|image_pad|> here", "@ here"),
            ("<|vision_start|> here", "@ here"),
            ("<|begin_of_image|><|image|><|end_of_image|>What?", "@What?"),
            ("<im_start><image><im_end>What?", "@What?"),
            ("<IMG_CONTEXT> <image_placeholder>", "@ @"),
            ("<begin_of_image><image_placeholder><image_placeholder><end_of_image>x", "@x"),
            ("<begin_of_image>", "@"),
            ("<image></image><image></image>", "@@"),
            ("<image/>What?", "@What?"),
            ("<image />What?", "@What?"),
            ("<image 1/> and <image 2/>", "@ and @"),
            ("<img src=\"a.png\">What?", "@What?"),
            ("<img src='x/é.png'/>What?", "@What?"),
            ("<image id=\"1\">What?", "@What?"),
            ("<|image_sentinel|>What?", "@What?"),
            ("[Image]What? [image] [img]", "@What? @ @"),
            ("<fake_token_around_image><image><fake_token_around_image>What?", "@What?"),
            (
                "<fake_token_around_image><image><image><fake_token_around_image><image><fake_token_around_image>x",
                "@@x",
            ),
            ("Compare (<image>./</image>)\n(<image>./</image>) (now)", "Compare @\n@ (now)"),
            ("<|media_start|>image<|media_content|><|media_pad|><|media_end|>a?", "@a?"),
            ("<img>https://a.b/1</img> is it", "@ is it"),
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
            "<imagery src='x'> <img but a = b < c> <image of: x = 3>",
            "array[1] [images] <1> < image >",
            "<video> <|video_pad|>",
            "<",
            "<äöü>",
            "",
            "<image",
        ] {
            assert_eq!(counted(text), (0, text.to_owned()));
        }
    }

    #[test]
    fn what_a_user_wrote_is_never_dropped() {
        for text in [
            "<image>a?<image_end>",
            "<image>这是什么<image_end>",
            "<img>what</img>",
            "<img>红/蓝？</img>",
            "<|vision_start|>which?<|vision_end|>",
            "[IMG]why?[IMG_END]",
            "<image>./what</image>",
            "<fake_token_around_image>what?<fake_token_around_image>",
            "<image>a.png</image>",
        ] {
            let letters = |text: &str| text.chars().filter(|letter| !letter.is_ascii()).collect::<String>();
            let found = find_placeholders(text);
            // Both ends count, so that the row fits no picture.
            assert_eq!(found.count, 2, "{text}");
            assert_eq!(letters(&found.text), letters(text));
            for word in ["a?", "what", "which?", "why?", "./what", "a.png"] {
                assert_eq!(found.text.contains(word), text.contains(word), "{text}");
            }
        }
    }

    #[test]
    fn videos_are_no_pictures() {
        let video = |text: &str| find_placeholders(text).video;
        assert_eq!(video("<|vision_start|><|video_pad|><|vision_end|>What?"), Some(("<|video_pad|>".into(), true)));
        assert_eq!(video("<video> and <|video|>"), Some(("<|video|>".into(), true)));
        assert_eq!(video("the <video> tag"), Some(("<video>".into(), false)));
        assert_eq!(video("<image>"), None);
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
