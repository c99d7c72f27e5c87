//! A prompt to an image: the image's codes are supervised, `<begin_of_image>` predicting the first.

use janus_core::{ModelError, Parts};

use super::{
    Draft, Drawing, Length, Noticed, Question, Task, TaskError, codes_per_image, image_column, placed, unusable, within,
};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::Result;
use crate::recipe::Columns;

/// Native paths the loss depends on. The image tokenizer only makes labels: nothing flows back through it.
pub(super) const REACHED: &[&str] = &[
    "model.language_model.",
    "model.generation_embeddings",
    "model.generation_embeddings.",
    "model.generation_aligner.",
    "model.generation_head.",
];

#[derive(Debug)]
pub(super) struct Generate {
    columns: Columns,
    prompt_dropout: f64,
    length: Length,
    noticed: Noticed,
}

impl Generate {
    pub(super) fn new(columns: &Columns, prompt_dropout: f64, length: Length) -> Self {
        Self { columns: columns.clone(), prompt_dropout, length, noticed: Noticed::default() }
    }

    /// The ids of a row's prompt, and whether its end was cut off.
    fn prompt(&self, base: &Base, row: &Row) -> std::result::Result<(Vec<u32>, bool), String> {
        let text = row.text("prompt").unwrap_or_default();
        placed::refuse_pictures("caption", text)?;
        let ids = |text: &str| base.prompts().generation_prompt(text).map_err(|e| e.to_string());
        let tokens = |text: &str| Ok(ids(text)?.len() + codes_per_image(base).saturating_sub(1));
        let (text, is_cut) = self.length.fit_text(base, text, tokens)?;
        Ok((ids(&text)?, is_cut))
    }
}

impl Task for Generate {
    fn parts(&self) -> Parts {
        // The image tokenizer is opened apart, and only where an image's codes are not known yet.
        Parts { generation: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, REACHED)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        vec![
            ColumnRequest::required("prompt", self.columns.name_of("prompt"), ColumnKind::Text),
            image_column(&self.columns),
        ]
    }

    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String> {
        self.length.check_row(base, row)?;
        let (_, is_cut) = self.prompt(base, row)?;
        self.noticed.add(&[], is_cut);
        Ok(())
    }

    fn conclude(&self, _split: Split) -> std::result::Result<Vec<String>, TaskError> {
        Ok(self.noticed.take())
    }

    fn draft(&self, base: &Base, draw: Option<f64>, row: &Row) -> Result<Draft> {
        let (mut prompt, _) = self.prompt(base, row).map_err(unusable)?;
        if draw.is_some_and(|draw| draw < self.prompt_dropout) {
            prompt = base.prompts().unconditional(&prompt);
        }
        let image = row.image("image").ok_or(ModelError::NotLoaded { part: "row's image" })?;
        Ok(Draft::Codes { prompt, images: Vec::new(), image: base.image(image) })
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn drawing(&self, base: &Base, row: &Row) -> Result<Option<Drawing>> {
        let Some(image) = row.image("image") else { return Ok(None) };
        let (prompt, _) = self.prompt(base, row).map_err(unusable)?;
        Ok(Some(Drawing { prompt, images: Vec::new(), expected: base.image(image) }))
    }
}
