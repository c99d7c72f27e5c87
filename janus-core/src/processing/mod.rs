//! Pictures and chat text, to tensors and back.
//!
//! The way of a picture: [`decode_in_room`] (bytes to RGB, with limits, also on what all threads decode together), [`ImageProcessor`] (square pictures of the model's
//! size through [`resize_bicubic`], then numbers), and back with [`pixels_to_images`]. The way of a text:
//! [`JanusTokenizer`] (ids of the special tokens by their strings), [`ChatStyle`] and [`Message`] (the template as
//! strings), [`PromptBuilder`] (the template as ids, with labels where something is to be learned), [`PaddedBatch`].
//! [`GenerationConfig`] is how pictures are drawn of such a text.
//!
//! Two implementations of Janus differ in details that matter to the last bit: DeepSeek's own code and Hugging Face
//! transformers. DeepSeek's rules are the default; those of transformers are offered beside them
//! ([`ShortEdge::RoundHalfEven`], [`render_transformers`]), so that either can be reproduced.

mod batch;
mod bmp;
mod chat;
mod config;
mod decode;
mod error;
mod exif;
mod foreign;
mod generation;
mod gif;
mod headers;
mod image;
mod mask;
mod placeholder;
mod prompt;
mod resize;
mod room;
mod settings;
#[cfg(test)]
mod testing;
mod tiff;
mod tokenizer;
mod tokenizer_file;

pub use batch::{PaddedBatch, left_pad, left_pad_samples};
pub use chat::{
    ChatPart, ChatStyle, DEFAULT_SYSTEM_PROMPT, IMAGE_PLACEHOLDER, Message, Role, render, render_transformers,
};
pub use config::ShortEdge;
pub use decode::{
    Decoding, MAX_ASPECT_RATIO, MAX_PIXELS, Orientation, clipped_grey, decode_image, decode_in_room, image_dimensions,
    is_grey_16, is_turned,
};
pub use error::ProcessingError;
pub use generation::GenerationConfig;
pub use image::{Frame, ImageProcessor, normalised, pixels_to_images};
pub use mask::{LOSSY_REACH, StoredMask, decode_mask};
pub use placeholder::{Placeholders, find_placeholders};
pub use prompt::{IGNORE_INDEX, PromptBuilder, Sample};
pub use resize::{Window, resize_bicubic, resize_bicubic_window};
pub use room::Decoded;
pub use tokenizer::{JanusTokenizer, SpecialTokens};

/// Shorthand of this room.
pub(crate) type Result<T, E = ProcessingError> = std::result::Result<T, E>;
