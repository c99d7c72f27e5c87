//! What is asked, and what comes of it.

use std::sync::Arc;

use image::RgbImage;
use janus_core::pass::Mixture;
use janus_core::processing::Frame;
use janus_core::sample::{CodeOptions, Kind as RowKind, RowOptions};

use crate::base::Base;
use crate::cache::Image;
use crate::heads::HeadAnswer;
use crate::tasks::{Drawing, Pictured, Question, TaskError, answer_room, check_drawing_room, codes_per_image};

/// A request of any kind.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// The adapters of the engine's bank that answer, each with its factor; none: the model as it is.
    pub adapters: Mixture,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A text.
    Text(TextRequest),
    /// A picture, of a prompt or of other pictures.
    Picture(PictureRequest),
    /// What a head tells of a picture.
    Head(HeadRequest),
}

/// A question that is answered in text.
#[derive(Debug, Clone)]
pub struct TextRequest {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Its pictures, in reading order.
    pub images: Vec<Image>,
    /// Tokens of the answer at most; it ends with the base's positions, too.
    pub max_new_tokens: usize,
    /// 0 takes the best token each time.
    pub temperature: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// A picture that is asked for.
#[derive(Debug, Clone)]
pub struct PictureRequest {
    /// Ids of the prompt up to and with `<begin_of_image>`.
    pub prompt: Vec<u32>,
    /// The pictures it is made from, in reading order.
    pub images: Vec<Image>,
    /// How its codes are drawn.
    pub options: CodeOptions,
}

/// A head that is asked about a picture.
#[derive(Debug, Clone)]
pub struct HeadRequest {
    /// The head's name.
    pub head: Arc<str>,
    /// The picture.
    pub image: Image,
    /// Where it lies in the square that the model sees.
    pub frame: Frame,
    /// Ids of the captions that it is held against, for heads that take some.
    pub captions: Vec<Vec<u32>>,
}

impl HeadRequest {
    /// What the head of a row is asked: of its picture, and of its caption where it has one.
    pub fn of(pictured: &Pictured) -> Self {
        let Pictured { head, image, frame, target } = pictured;
        let captions = Some(target.caption().to_vec()).filter(|ids| !ids.is_empty()).into_iter().collect();
        Self { head: head.clone(), image: image.clone(), frame: *frame, captions }
    }
}

impl Request {
    /// A request that the model answers as it is.
    pub fn plain(kind: Kind) -> Self {
        Self { kind, adapters: Mixture::base() }
    }

    pub(super) fn draws_picture(&self) -> bool {
        matches!(self.kind, Kind::Picture(_))
    }
}

impl TextRequest {
    /// The best answer to a question, of so many tokens at most.
    pub fn greedy(question: &Question, max_new_tokens: usize) -> Self {
        let (prompt, images) = (question.prompt.clone(), question.images.clone());
        Self { prompt, images, max_new_tokens, temperature: 0.0, seed: 0 }
    }
}

impl PictureRequest {
    /// What a row asks to be drawn, with this seed and what the base says of guidance and temperature.
    pub fn of(base: &Base, drawing: &Drawing, seed: u64) -> Self {
        Self { prompt: drawing.prompt.clone(), images: drawing.images.clone(), options: base.drawing(seed) }
    }
}

impl Kind {
    /// How the request's row of a session draws; `None` of heads, which draw nothing.
    ///
    /// # Errors
    /// A prompt that leaves no room for an answer.
    pub(super) fn row(&self, base: &Base) -> Result<Option<RowOptions>, TaskError> {
        Ok(match self {
            Kind::Text(text) => {
                let stop = vec![base.tokenizer().special().eos];
                Some(RowOptions {
                    kind: RowKind::Text { stop, vocabulary: base.vocabulary() },
                    most: answer_room(base, &text.prompt, text.max_new_tokens)?,
                    temperature: text.temperature,
                    seed: text.seed,
                })
            }
            Kind::Picture(picture) => {
                check_drawing_room(base, &picture.prompt)?;
                let CodeOptions { guidance, temperature, seed } = picture.options;
                let most = codes_per_image(base);
                Some(RowOptions { kind: RowKind::Codes { guidance }, most, temperature, seed })
            }
            Kind::Head(_) => None,
        })
    }

    /// Ids of its prompt; none of heads.
    pub(super) fn prompt(&self) -> &[u32] {
        match self {
            Kind::Text(text) => &text.prompt,
            Kind::Picture(picture) => &picture.prompt,
            Kind::Head(_) => &[],
        }
    }

    /// Its pictures, in reading order.
    pub(super) fn images(&self) -> &[Image] {
        match self {
            Kind::Text(text) => &text.images,
            Kind::Picture(picture) => &picture.images,
            Kind::Head(head) => std::slice::from_ref(&head.image),
        }
    }
}

/// What comes of a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Of a question.
    Text(TextAnswer),
    /// Of a picture that was asked for.
    Picture(PictureAnswer),
    /// Of a head.
    Head(HeadAnswer),
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextAnswer {
    /// The text, without special tokens.
    pub text: String,
    /// The ids drawn, up to and with the end of the sentence.
    pub token_ids: Vec<u32>,
    /// Whether the answer came to its own end, not to that of its room.
    pub is_whole: bool,
}

/// A generated picture.
#[derive(Debug, Clone)]
pub struct PictureAnswer {
    /// The codes in raster order.
    pub codes: Vec<u32>,
    /// The picture that they stand for.
    pub picture: RgbImage,
}

impl Answer {
    /// The text of a question's answer.
    pub fn into_text(self) -> Option<TextAnswer> {
        match self {
            Answer::Text(text) => Some(text),
            Answer::Picture(_) | Answer::Head(_) => None,
        }
    }

    /// The picture that was asked for.
    pub fn into_picture(self) -> Option<PictureAnswer> {
        match self {
            Answer::Picture(picture) => Some(picture),
            Answer::Text(_) | Answer::Head(_) => None,
        }
    }

    /// What a head tells.
    pub fn into_head(self) -> Option<HeadAnswer> {
        match self {
            Answer::Head(head) => Some(head),
            Answer::Text(_) | Answer::Picture(_) => None,
        }
    }
}
