//! A picture and a prompt to another picture: the codes of that one are supervised.

use janus_core::{ModelError, Parts};

use super::{
    Draft, Drawing, Length, Noticed, PICTURE_PATHS, Question, Task, TaskError, codes_per_image, generate, image_column,
    place, unusable, within,
};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::Result;
use crate::recipe::Columns;

#[derive(Debug)]
pub(super) struct Edit {
    columns: Columns,
    prompt_dropout: f64,
    length: Length,
    noticed: Noticed,
}

/// The prompt of a row.
struct Prompt {
    ids: Vec<u32>,
    foreign: Vec<String>,
    is_cut: bool,
}

impl Edit {
    pub(super) fn new(columns: &Columns, prompt_dropout: f64, length: Length) -> Self {
        Self { columns: columns.clone(), prompt_dropout, length, noticed: Noticed::default() }
    }

    fn prompt(&self, base: &Base, row: &Row) -> std::result::Result<Prompt, String> {
        let placed = place(&[row.text("prompt").unwrap_or_default()], 1)?;
        let text = placed.texts.first().map_or("", |(text, _)| text.as_str());
        let ids = |text: &str| base.prompts().edit_prompt(text, 1).map_err(|e| e.to_string());
        let tokens = |text: &str| Ok(ids(text)?.len() + codes_per_image(base).saturating_sub(1));
        let (text, is_cut) = self.length.fit_text(base, text, tokens)?;
        Ok(Prompt { ids: ids(&text)?, foreign: placed.foreign, is_cut })
    }
}

impl Task for Edit {
    fn parts(&self) -> Parts {
        Parts { vision: true, generation: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        // Those of a drawing, and the way of the source picture.
        within(path, generate::REACHED) || within(path, PICTURE_PATHS)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        vec![
            ColumnRequest::required("source", self.columns.name_of("source"), ColumnKind::Image),
            ColumnRequest::required("prompt", self.columns.name_of("prompt"), ColumnKind::Text),
            image_column(&self.columns),
        ]
    }

    fn check(&self, base: &Base, row: &Row) -> std::result::Result<(), String> {
        self.length.check_row(base, row)?;
        let prompt = self.prompt(base, row)?;
        self.noticed.add(&prompt.foreign, prompt.is_cut);
        Ok(())
    }

    fn conclude(&self, _split: Split) -> std::result::Result<Vec<String>, TaskError> {
        Ok(self.noticed.take())
    }

    fn read_otherwise_before(&self) -> Option<String> {
        self.noticed.read_otherwise_before()
    }

    fn draft(&self, base: &Base, draw: Option<f64>, row: &Row) -> Result<Draft> {
        let mut drawing = self.drawing(base, row)?.ok_or(ModelError::NotLoaded { part: "row's images" })?;
        if draw.is_some_and(|draw| draw < self.prompt_dropout) {
            // The source goes with the words: guidance is away from pictures of nothing in particular.
            drawing.prompt = base.prompts().unconditional(&drawing.prompt);
            drawing.images.clear();
        }
        Ok(Draft::Codes { prompt: drawing.prompt, images: drawing.images, image: drawing.expected })
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn drawing(&self, base: &Base, row: &Row) -> Result<Option<Drawing>> {
        let (Some(source), Some(image)) = (row.image("source"), row.image("image")) else { return Ok(None) };
        let (images, expected) = (vec![base.image(source)], base.image(image));
        let prompt = self.prompt(base, row).map_err(unusable)?.ids;
        Ok(Some(Drawing { prompt, images, expected }))
    }
}
