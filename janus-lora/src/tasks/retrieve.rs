//! Pictures and captions that find each other, by a head on the aligner's output and on the decoder's last hidden state.

use std::sync::Arc;

use janus_core::Parts;

use super::target::pictured;
use super::{Draft, Length, Question, Task, image_column, placed, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::heads::{HeadKind, Target};
use crate::recipe::Columns;

/// Native paths the loss depends on: the decoder up to its final norm, no text head.
const REACHED: &[&str] = &["model.language_model.", "model.vision_model.", "model.aligner."];

#[derive(Debug)]
pub(super) struct Retrieve {
    columns: Columns,
    head: Arc<str>,
    length: Length,
}

impl Retrieve {
    /// For a table of this name.
    pub(super) fn new(columns: &Columns, head: &str, length: Length) -> Self {
        Self { columns: columns.clone(), head: head.into(), length }
    }
}

/// Ids of a caption as the head reads it: its last token, the end of the sentence, has seen all others.
///
/// # Errors
/// Text that the tokenizer cannot read.
pub fn caption_ids(base: &Base, caption: &str) -> Result<Vec<u32>> {
    let special = base.tokenizer().special();
    let mut ids = vec![special.bos];
    ids.extend(base.tokenizer().encode_plain(caption, "caption")?);
    ids.push(special.eos);
    Ok(ids)
}

impl Task for Retrieve {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let caption = ColumnRequest::required("caption", self.columns.name_of("caption"), ColumnKind::Text);
        vec![image_column(&self.columns), caption]
    }

    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String> {
        let caption = row.text("caption").unwrap_or_default();
        self.length.check_texts(base, std::iter::once(caption))?;
        placed::refuse_pictures("caption", caption)?;
        self.length.check(base, caption_ids(base, caption).map_err(|e| e.to_string())?.len())
    }

    fn draft(&self, base: &Base, _draw: Option<f64>, row: &Row) -> Result<Draft> {
        let ids = caption_ids(base, row.text("caption").unwrap_or_default())?;
        Ok(Draft::Picture(pictured(&self.head, base, row, Target::Caption(ids.into()))?))
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Retrieve {})
    }
}
