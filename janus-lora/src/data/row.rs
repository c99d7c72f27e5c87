//! One row as a task sees it: values by role.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use janus_core::processing::{
    Decoded, Decoding, Orientation, ProcessingError, decode_in_room, image_dimensions, is_turned,
};

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The Parquet file.
    pub file: Arc<Path>,
    /// Row group of the file, from 0.
    pub row_group: usize,
    /// Row of the row group, from 0.
    pub row: usize,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of row group {} in `{}`", self.row, self.row_group, self.file.display())
    }
}

/// An image as it is stored: PNG, JPEG or another format's bytes, with how they are read.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// How its colours are made of them.
    pub decoding: Decoding,
}

impl EncodedImage {
    /// Bytes that are read as where nobody says otherwise.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, decoding: Decoding::default() }
    }

    /// The picture; see [`decode_in_room`].
    ///
    /// # Errors
    /// As [`decode_in_room`].
    pub fn decode(&self) -> Result<Decoded, ProcessingError> {
        decode_in_room(&self.bytes, self.decoding)
    }

    /// Words for messages on where something lies in the picture: that it was turned, if it was.
    pub fn turned_note(&self) -> &'static str {
        if self.decoding.orientation == Orientation::Upright && is_turned(&self.bytes) {
            ", turned upright as its EXIF says (`orientation = \"stored\"` reads it as it is stored)"
        } else {
            ""
        }
    }

    /// Width and height of the picture, from its header alone.
    ///
    /// # Errors
    /// As [`image_dimensions`].
    pub fn dimensions(&self) -> Result<(u32, u32), ProcessingError> {
        image_dimensions(&self.bytes, self.decoding)
    }
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedImage({} bytes)", self.bytes.len())
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks, as the file has it (`user`, `assistant`, ...).
    pub role: String,
    /// What is said.
    pub content: String,
}

/// One row: what was found for each requested role. A role that is not required and has no value is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it comes from.
    pub id: RowId,
    /// Images by role; a role of one image has one.
    pub images: BTreeMap<&'static str, Vec<EncodedImage>>,
    /// Texts by role, as stored, never blank.
    pub texts: BTreeMap<&'static str, String>,
    /// Conversations by role, never empty.
    pub messages: BTreeMap<&'static str, Vec<Message>>,
    /// Lists of boxes by role, each `x1, y1, x2, y2`; they may be empty.
    pub boxes: BTreeMap<&'static str, Vec<[f32; 4]>>,
    /// Lists of texts by role; they may be empty.
    pub lists: BTreeMap<&'static str, Vec<String>>,
}

impl Row {
    /// The first image of a role.
    pub fn image(&self, role: &str) -> Option<&EncodedImage> {
        self.images.get(role)?.first()
    }

    /// The text of a role.
    pub fn text(&self, role: &str) -> Option<&str> {
        self.texts.get(role).map(String::as_str)
    }

    /// Size of the values, in bytes.
    pub fn size_bytes(&self) -> u64 {
        let images = self.images.values().flatten().map(|image| image.bytes.len());
        let texts = self.texts.values().map(String::len);
        let messages = self.messages.values().flatten().map(|m| m.role.len() + m.content.len());
        let boxes = self.boxes.values().map(|boxes| size_of_val(boxes.as_slice()));
        let lists = self.lists.values().flatten().map(String::len);
        images.chain(texts).chain(messages).chain(boxes).chain(lists).map(|len| len as u64).sum()
    }
}
