//! What can be wrong with a picture, a text, a tokenizer or the settings of either.

use std::path::PathBuf;

use crate::error::{Diagnose, Fault};
use crate::input::InputError;

use super::chat::Role;

/// An image, a text or a tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessingError {
    /// The bytes begin as none of the formats that are read.
    #[error("the {length_bytes} bytes are not an image: no known format begins with {begins}")]
    NotAnImage {
        /// How many bytes there are.
        length_bytes: usize,
        /// The first of them, in hexadecimal.
        begins: String,
    },
    /// The bytes are of a kind that is known by its beginning and not read.
    #[error("this is {found}, not an image that can be read: {advice}")]
    OtherFormat {
        /// What it is, with its article.
        found: &'static str,
        /// How to come to a picture.
        advice: &'static str,
    },
    /// The format is known, this form of it is not read.
    #[error("{format} images of this kind are not supported: {kind}; save it as RGB or 8-bit grey PNG")]
    UnsupportedImage {
        /// The format's name.
        format: &'static str,
        /// What is not supported.
        kind: String,
    },
    /// The bytes are damaged or stop too early.
    #[error("broken {format} image: {problem}")]
    BrokenImage {
        /// The format's name.
        format: &'static str,
        /// What the decoder found.
        problem: String,
    },
    /// A picture without a pixel.
    #[error("the image has no pixels: {width}x{height}")]
    EmptyImage {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// A picture that would take too much memory.
    #[error("the image is {width}x{height}, {pixels} pixels, at most {limit} are read")]
    TooManyPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Their product.
        pixels: u64,
        /// The limit.
        limit: u64,
    },
    /// A picture that is nothing but a line.
    #[error("the image is {width}x{height}, its sides may differ by a factor of {limit} at most")]
    TooElongated {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The largest ratio of the sides.
        limit: u32,
    },
    /// A mask with colours, which say nothing of what a pixel belongs to.
    #[error("the mask is a colour picture: pixel {x}, {y} is {colour:?}, expected a grey one, or numbers in a palette")]
    ColouredMask {
        /// Column.
        x: usize,
        /// Row.
        y: usize,
        /// Red, green and blue.
        colour: Vec<u16>,
    },
    /// A mask with a palette whose numbers are not read.
    #[error(
        "the mask is a {form} with a palette, of which the numbers are not read: save it as PNG, which keeps them, such as with Pillow: `Image.open(f).save(\"mask.png\")`"
    )]
    PaletteMask {
        /// The kind of file.
        form: &'static str,
    },
    /// A mask whose pixels differ in transparency only.
    #[error("the mask lies in its picture's transparency: all colours are {value}, expected a grey picture")]
    TransparentMask {
        /// What all pixels are.
        value: u16,
    },
    /// A file of the checkpoint's folder that is not read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A settings file that is not JSON.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A setting that is wrong, or that would ask for something else than what Janus does.
    #[error("`{}`: `{key}` is {got}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is supported there.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// Settings for another image size than the model's.
    #[error("`{}` is for images of {got} pixels a side, the model's are {expected}", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// The model's size.
        expected: usize,
        /// The file's.
        got: u64,
    },
    /// An image size that no processor can have.
    #[error("image size {size} is not possible: from 1 to {limit}")]
    ImpossibleImageSize {
        /// The size asked for.
        size: usize,
        /// The largest one.
        limit: usize,
    },
    /// A folder without a tokenizer.
    #[error("no `tokenizer.json` in `{}`", folder.display())]
    MissingTokenizer {
        /// The folder.
        folder: PathBuf,
    },
    /// A tokenizer file that cannot be used.
    #[error("`{}` is not a usable tokenizer: {problem}", path.display())]
    BadTokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A special token that the vocabulary does not hold.
    #[error("`{}` has no {name} token `{token}`", path.display())]
    MissingToken {
        /// The tokenizer file.
        path: PathBuf,
        /// Its part, such as `pad`.
        name: &'static str,
        /// The string looked for.
        token: String,
    },
    /// The tokenizer knows ids that the model's embedding table does not have.
    #[error("token `{token}` has id {id}, but the model's vocabulary has {vocabulary} rows")]
    VocabularyTooSmall {
        /// The token of the largest id.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// The tokenizer refused a text or a list of ids.
    #[error("the tokenizer failed: {problem}")]
    Tokenize {
        /// What it said.
        problem: String,
    },
    /// A text says where images go, but for another number of them.
    #[error("the text has {placeholders} `<image_placeholder>`, but there are {images} images")]
    PlaceholderCount {
        /// Placeholders in the text.
        placeholders: usize,
        /// Images that belong to it.
        images: usize,
    },
    /// A reserved token where only plain text can stand.
    #[error("the {part} contains the reserved token `{token}`")]
    ReservedToken {
        /// Which text, such as `answer`.
        part: &'static str,
        /// The token.
        token: String,
    },
    /// A text that is needed and empty.
    #[error("the {part} is empty")]
    EmptyText {
        /// Which text, such as `answer`.
        part: &'static str,
    },
    /// Turns that do not alternate, or that end with the wrong one.
    #[error("message {index} of the conversation is of role `{got}`, expected `{expected}`")]
    TurnOrder {
        /// Position in the conversation, from 0.
        index: usize,
        /// The role that has to stand there.
        expected: Role,
        /// The role that does.
        got: Role,
    },
    /// A conversation without a message, or that stops before the one that is needed.
    #[error("the conversation has {messages} messages and no `{expected}` message where one is needed")]
    MissingTurn {
        /// How many messages there are.
        messages: usize,
        /// The role that is missing at its end.
        expected: Role,
    },
    /// A role that the chat template does not know.
    #[error("unknown role `{role}` in a conversation")]
    UnknownRole {
        /// The role's name.
        role: String,
    },
    /// Pixels that are not `[batch, 3, height, width]`.
    #[error("pixels have shape {got:?}, expected [batch, 3, height, width]")]
    PixelShape {
        /// What came.
        got: Vec<usize>,
    },
    /// Pixels that are not numbers.
    #[error("image {index} of the batch has pixels that are not finite")]
    NotFinite {
        /// Position in the batch.
        index: usize,
    },
    /// The tensor engine failed.
    #[error("computation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Diagnose for ProcessingError {
    fn fault(&self) -> Fault {
        match self {
            ProcessingError::Tensor(_) | ProcessingError::NotFinite { .. } => Fault::Internal,
            ProcessingError::Input(e) => e.fault(),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            ProcessingError::Input(e) => return e.hints(),
            ProcessingError::NotAnImage { .. }
            | ProcessingError::OtherFormat { .. }
            | ProcessingError::UnsupportedImage { .. } => {
                "PNG, JPEG, WebP, BMP, GIF and TIFF are read, at 8 or 16 bits a channel"
            }
            ProcessingError::BrokenImage { .. } => "the file may have been cut short: fetch or export it again",
            ProcessingError::TooManyPixels { .. } => {
                "scale the image down first; the model sees a few hundred pixels a side"
            }
            ProcessingError::TooElongated { .. } => "cut the image into pieces that are nearer to a square",
            ProcessingError::Setting { .. } => "correct the file, or remove it to use the settings of Janus",
            ProcessingError::ImageSize { .. } => "the file belongs to another model: take both from one checkpoint",
            ProcessingError::MissingTokenizer { .. } => {
                "copy `tokenizer.json` from the checkpoint's repository into the folder"
            }
            ProcessingError::BadTokenizer { .. } => {
                "fetch the file again; it is the one that Hugging Face tokenizers write"
            }
            ProcessingError::MissingToken { .. } => {
                "the tokenizer is not one of Janus, or `tokenizer_config.json` names a token that it lacks"
            }
            ProcessingError::VocabularyTooSmall { .. } => "tokenizer and weights have to come from one checkpoint",
            ProcessingError::PlaceholderCount { .. } => {
                "write `<image_placeholder>` once for each image, or not at all: then the images come first"
            }
            ProcessingError::ReservedToken { .. } => "remove the token from the text: images are placed by the program",
            ProcessingError::TurnOrder { .. } | ProcessingError::MissingTurn { .. } => {
                "a conversation is `user`, `assistant`, `user`, ... with at most one `system` message before"
            }
            ProcessingError::UnknownRole { .. } => "roles are `system`, `user` and `assistant`",
            ProcessingError::ColouredMask { .. }
            | ProcessingError::PaletteMask { .. }
            | ProcessingError::TransparentMask { .. } => {
                "write masks as pictures of one channel: 0 is ground, one other value the object"
            }
            ProcessingError::Tokenize { .. } => {
                "take `tokenizer.json` from where the base was published: the text may be sound and the file not"
            }
            ProcessingError::EmptyImage { .. } => "export the image again: it needs a pixel a side at least",
            ProcessingError::Json { .. } => "take the file anew from where the base was published",
            ProcessingError::ImpossibleImageSize { .. } => {
                "the size comes from the base's `config.json`: take it from where the base was published"
            }
            ProcessingError::EmptyText { .. } => "write something there",
            ProcessingError::PixelShape { .. } => "three channels, red, green and blue, come before rows and columns",
            ProcessingError::NotFinite { .. } | ProcessingError::Tensor(_) => return Vec::new(),
        };
        vec![hint.into()]
    }
}
