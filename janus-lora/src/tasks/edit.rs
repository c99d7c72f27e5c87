//! A picture and a prompt to another picture: the codes of that one are supervised.

use janus_core::{ModelError, Parts};

use super::{Draft, Drawing, PICTURE_PATHS, Question, Task, generate, image_column, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row};
use crate::error::Result;
use crate::recipe::Columns;

#[derive(Debug)]
pub(super) struct Edit {
    columns: Columns,
    prompt_dropout: f64,
}

impl Edit {
    pub(super) fn new(columns: &Columns, prompt_dropout: f64) -> Self {
        Self { columns: columns.clone(), prompt_dropout }
    }

    fn prompt(base: &Base, row: &Row) -> Result<Vec<u32>> {
        Ok(base.prompts().edit_prompt(row.text("prompt").unwrap_or_default(), 1)?)
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
        Self::prompt(base, row).map(|_| ()).map_err(|e| e.to_string())
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
        Ok(Some(Drawing { prompt: Self::prompt(base, row)?, images, expected }))
    }
}
