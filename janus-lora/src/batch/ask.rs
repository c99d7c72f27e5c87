//! What is read of a row, and the request it becomes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::base::Base;
use crate::cache::Image;
use crate::data::{ColumnKind, ColumnRequest, EncodedImage, Row};
use crate::error::Result;
use crate::heads::HeadKind;
use crate::infer::{HeadRequest, Kind, PictureRequest, Request, TextRequest};
use crate::recipe::{Columns, Task};
use crate::tasks::{DEFAULT_QUESTION, TaskError, caption_ids, check_caption, frame, place};

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Tokens of a text at most.
    pub max_new_tokens: usize,
    /// 0 takes the best each time; of pictures the base says, where nothing is given.
    pub temperature: Option<f64>,
    /// Seed of the first row; each further row has the next one.
    pub seed: u64,
    /// Strength of the prompt of a picture; the base says, where nothing is given.
    pub guidance: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_new_tokens: 512, temperature: None, seed: 0, guidance: None }
    }
}

/// What every row is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The task: not `text`, whose rows are conversations, and not `reconstruct`, which answers nothing.
    pub task: Task,
    /// Names of columns by role.
    pub columns: Columns,
    /// The head that is asked, for tasks that have one, by its name.
    pub head: Option<(String, HeadKind)>,
    /// Asked of every row in the place of a column of questions.
    pub question: Option<String>,
    /// How answers are drawn.
    pub options: Options,
}

impl Asked {
    /// A task as it is asked where nothing else is said.
    pub fn new(task: Task, columns: Columns, head: Option<(String, HeadKind)>) -> Self {
        Self { task, columns, head, question: None, options: Options::default() }
    }

    /// Roles that columns may be named for.
    pub fn roles(task: Task) -> &'static [&'static str] {
        match task {
            Task::Understand => &["image", "images", "question"],
            Task::Generate => &["prompt"],
            Task::Edit => &["source", "prompt"],
            Task::Retrieve => &["image", "caption"],
            Task::Classify | Task::Locate | Task::Segment => &["image"],
            Task::Text | Task::Reconstruct => &[],
        }
    }

    /// Lists of columns, of which the first that the table has is read.
    pub(super) fn alternatives(&self) -> Vec<Vec<ColumnRequest>> {
        let columns = &self.columns;
        let required = |role: &'static str, kind| ColumnRequest::required(role, columns.name_of(role), kind);
        let text = |role| required(role, ColumnKind::Text);
        match self.task {
            Task::Understand => self.understanding(&required),
            Task::Generate => vec![vec![text("prompt")]],
            Task::Edit => vec![vec![required("source", ColumnKind::Image), text("prompt")]],
            Task::Retrieve => vec![vec![required("image", ColumnKind::Image), text("caption")]],
            Task::Classify | Task::Locate | Task::Segment | Task::Text | Task::Reconstruct => {
                vec![vec![required("image", ColumnKind::Image)]]
            }
        }
    }

    fn understanding(&self, required: &dyn Fn(&'static str, ColumnKind) -> ColumnRequest) -> Vec<Vec<ColumnRequest>> {
        let columns = &self.columns;
        let image = required("image", ColumnKind::Image);
        let images = required("images", ColumnKind::ImageList);
        let pictures = match (columns.is_given("image"), columns.is_given("images")) {
            (_, true) => vec![images],
            (true, false) => vec![image],
            (false, false) => vec![image, images],
        };
        let question = match (&self.question, columns.is_given("question")) {
            (Some(_), _) => None,
            (None, true) => Some(required("question", ColumnKind::Text)),
            (None, false) => Some(ColumnRequest::optional("question", columns.name_of("question"), ColumnKind::Text)),
        };
        let named = pictures.len() == 1;
        let mut all: Vec<Vec<ColumnRequest>> =
            pictures.into_iter().map(|picture| std::iter::once(picture).chain(question.clone()).collect()).collect();
        if !named && self.question.is_none() {
            all.push(vec![required("question", ColumnKind::Text)]);
        }
        all
    }

    /// What answers depend on, by its name.
    pub(super) fn identity(&self) -> BTreeMap<&'static str, Value> {
        let Options { max_new_tokens, temperature, seed, guidance } = self.options;
        // A role whose column has its name is as if it were not named.
        let columns: Vec<(&str, &str)> = self.columns.iter().filter(|(role, column)| role != column).collect();
        BTreeMap::from([
            ("task", json!(self.task.name())),
            ("columns", json!(columns)),
            ("head", json!(self.head.as_ref().map(|(name, _)| name))),
            ("question", json!(self.question)),
            ("length of answers", json!(max_new_tokens)),
            ("temperature", json!(temperature)),
            ("seed", json!(seed)),
            ("guidance", json!(guidance)),
        ])
    }

    /// The request of a row, which is the `number`th of its table.
    ///
    /// # Errors
    /// A row of which none can be made.
    pub(super) fn request(&self, base: &Base, row: &Row, number: usize) -> Result<Request> {
        let Options { max_new_tokens, temperature, seed, guidance } = self.options;
        let seed = seed.wrapping_add(number as u64);
        let images = |own: &[EncodedImage]| -> Vec<Image> { own.iter().map(|image| base.image(image)).collect() };
        let picture = |prompt: Vec<u32>, images: Vec<Image>| {
            let mut options = base.drawing(seed);
            options.guidance = guidance.unwrap_or(options.guidance);
            options.temperature = temperature.unwrap_or(options.temperature);
            Kind::Picture(PictureRequest { prompt, images, options })
        };
        Ok(Request::plain(match self.task {
            Task::Understand => {
                let own = pictures(row, &["image", "images"]);
                let question = self.question.as_deref().or_else(|| row.text("question")).unwrap_or(DEFAULT_QUESTION);
                let prompt = base.prompts().understanding_prompt(&placed(question, own.len())?, own.len(), true)?;
                let temperature = temperature.unwrap_or(0.0);
                Kind::Text(TextRequest { prompt, images: images(own), max_new_tokens, temperature, seed })
            }
            Task::Generate => {
                let prompt = placed(row.text("prompt").unwrap_or_default(), 0)?;
                picture(base.prompts().generation_prompt(&prompt)?, Vec::new())
            }
            Task::Edit => {
                let own = pictures(row, &["source"]);
                let prompt = placed(row.text("prompt").unwrap_or_default(), own.len())?;
                picture(base.prompts().edit_prompt(&prompt, own.len())?, images(own))
            }
            Task::Classify | Task::Locate | Task::Segment | Task::Retrieve | Task::Text | Task::Reconstruct => {
                let missing = janus_core::ModelError::NotLoaded { part: "row's image" };
                let image = row.image("image").ok_or(missing)?;
                let mut captions = Vec::new();
                if let Some(caption) = row.text("caption") {
                    let ids = caption_ids(base, &placed(caption, 0)?)?;
                    check_caption(base, &ids)?;
                    captions.push(ids);
                }
                let head = self.head.as_ref().map_or("", |(name, _)| name.as_str());
                Kind::Head(HeadRequest {
                    head: head.into(),
                    image: base.image(image),
                    frame: frame(base, image)?,
                    captions,
                })
            }
        }))
    }
}

/// The pictures of the first of some roles that a row has.
fn pictures<'r>(row: &'r Row, roles: &[&'static str]) -> &'r [EncodedImage] {
    roles.iter().find_map(|role| row.images.get(role)).map_or(&[], Vec::as_slice)
}

/// A text with its pictures' places.
fn placed(text: &str, pictures: usize) -> Result<String> {
    let placed = place(&[text], pictures).map_err(|reason| TaskError::Placeholders { reason })?;
    Ok(placed.texts.into_iter().next().map_or_else(String::new, |(text, _)| text))
}
