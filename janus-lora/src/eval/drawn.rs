//! Figures of pictures that are drawn of the first rows to evaluate.
//!
//! Features are those of the base's own vision tower, whatever is attached to the model that draws: another measure for each
//! adapter would be none. They are named after it, for figures with Inception's or VGG's features have other sizes; those come
//! beside them where such weights are given ([`super::given`]).

use candle_core::{DType, Tensor};
use image::RgbImage;
use janus_core::model::Slice;
use janus_core::model::vision::VisionPoint;
use janus_core::pass::Pass;
use janus_core::{Janus, Parts};
use serde::Serialize;

use super::Evaluation;
use super::answers::SPARE_TOKENS;
use super::rebuilt::MOST_DECIBELS;
use crate::cache::Image;
use crate::data::Row;
use crate::error::Result;
use crate::infer::{Answer, Engine, Event, Kind, Limits, PictureRequest, Request, TextRequest};
use crate::metrics::frechet::frechet;
use crate::metrics::image_similarity::{psnr, ssim};
use crate::metrics::rouge::rouge_l;
use crate::tasks::{Drawing, Question};

/// Pictures drawn side by side.
const TOGETHER: usize = 8;
/// Asked of a picture that was drawn for a prompt.
const QUESTION: &str = "Describe this image.";

/// Figures of drawn pictures beside those of their rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DrawnMetrics {
    /// Pictures drawn.
    pub(crate) pictures: usize,
    /// Mean over pictures and patches of the squared distance between the tower's features, brought to length one, of the
    /// drawn and the row's picture: LPIPS (Zhang et al., arXiv:1801.03924) with this tower and without learnt weights.
    pub(crate) tower_distance: f64,
    /// Fréchet distance between the tower's mean features of drawn and of the rows' pictures; absent of fewer than two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tower_frechet: Option<f64>,
    /// Mean LPIPS of the drawn and the row's picture; absent where its weights were not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lpips: Option<f64>,
    /// Fréchet distance between Inception's features of drawn and of the rows' pictures, known as FID; absent where its weights
    /// were not given, and of fewer than two pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frechet_inception_distance: Option<f64>,
    /// Mean peak signal-to-noise ratio in decibels, at most 100, of pictures that are made from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psnr: Option<f64>,
    /// Mean structural similarity, of pictures that are made from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ssim: Option<f64>,
    /// Mean ROUGE-L of the prompt and what the model says of the picture that it drew for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caption_agreement: Option<f64>,
}

/// Draws the first `count` rows' pictures and measures them; `None` where there are none.
pub(super) fn evaluate(evaluation: &Evaluation<'_>, count: usize) -> Result<Option<DrawnMetrics>> {
    let Evaluation { model, base, task, source, status, .. } = evaluation;
    let mut asked: Vec<(Row, Drawing)> = Vec::new();
    for row in source.rows()?.take(count) {
        let row = row?;
        if let Some(drawing) = task.drawing(base, &row)? {
            asked.push((row, drawing));
        }
    }
    if asked.is_empty() {
        return Ok(None);
    }
    let bar = status.items(&format!("drawing {}", evaluation.name), (asked.len() * model.codes_per_image()) as u64);
    let request = |(number, (_, drawing)): (usize, &(Row, Drawing))| {
        Request::plain(Kind::Picture(PictureRequest::of(base, drawing, number as u64)))
    };
    let mut engine = Engine::new(model, base, evaluation.heads, Limits { rows: TOGETHER, ..evaluation.limits });
    let answers = engine.answer_all(asked.iter().enumerate().map(request), &mut |event| {
        bar.advance(u64::from(matches!(event, Event::Drew { .. })));
    })?;
    let drawn: Vec<RgbImage> =
        answers.into_iter().filter_map(Answer::into_picture).map(|answer| answer.picture).collect();
    bar.finish();

    let tower = tower(evaluation)?;
    let measure = |((row, drawing), picture): (&(Row, Drawing), &RgbImage)| {
        Measured::of(evaluation, &tower, row, drawing, picture)
    };
    let measured = asked.iter().zip(&drawn).map(measure).collect::<Result<Vec<_>>>()?;
    let all = |figure: fn(&Measured) -> Option<&Vec<f64>>| -> Vec<Vec<f64>> {
        measured.iter().filter_map(figure).cloned().collect()
    };
    let is_edit = asked.iter().any(|(_, drawing)| !drawing.images.is_empty());
    let mean = |figure: fn(&Measured) -> Option<f64>| average(measured.iter().map(figure));
    Ok(Some(DrawnMetrics {
        pictures: measured.len(),
        tower_distance: mean(|m| Some(m.distance)).unwrap_or_default(),
        tower_frechet: frechet(&all(|m| Some(&m.mean)), &all(|m| Some(&m.expected_mean))),
        lpips: mean(|m| m.lpips),
        frechet_inception_distance: frechet(&all(|m| m.pooled.as_ref()), &all(|m| m.expected_pooled.as_ref())),
        psnr: mean(|m| Some(m.psnr)).filter(|_| is_edit),
        ssim: mean(|m| m.ssim).filter(|_| is_edit),
        caption_agreement: mean(|m| m.agreement),
    }))
}

/// What is measured of one drawn picture. "Expected" is the row's own.
struct Measured {
    distance: f64,
    mean: Vec<f64>,
    expected_mean: Vec<f64>,
    lpips: Option<f64>,
    pooled: Option<Vec<f64>>,
    expected_pooled: Option<Vec<f64>>,
    psnr: f64,
    /// Absent where the pictures are too small for a window.
    ssim: Option<f64>,
    /// Absent of edited pictures, which no prompt describes.
    agreement: Option<f64>,
}

impl Measured {
    fn of(
        evaluation: &Evaluation<'_>,
        tower: &Janus,
        row: &Row,
        drawing: &Drawing,
        picture: &RgbImage,
    ) -> Result<Self> {
        let Evaluation { model, base, settings, .. } = evaluation;
        let expected = square(&drawing.expected)?;
        let own = features(tower, &base.images().understanding(picture)?)?;
        let truth = features(tower, &base.images().understanding(&expected)?)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let is_described = drawing.images.is_empty() && model.vision().is_ok();
        Ok(Measured {
            distance: patch_distance(&own, &truth)?,
            mean: mean(&own)?,
            expected_mean: mean(&truth)?,
            lpips: settings.networks.lpips(picture, &expected)?,
            pooled: settings.networks.inception(picture)?,
            expected_pooled: settings.networks.inception(&expected)?,
            psnr: psnr(picture.as_raw(), expected.as_raw()).min(MOST_DECIBELS),
            ssim: ssim(picture.as_raw(), expected.as_raw(), width, height),
            agreement: if is_described { Some(said(evaluation, row, picture)?) } else { None },
        })
    }
}

/// The mean of those that are there; `None` of none.
fn average(figures: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let there: Vec<f64> = figures.flatten().collect();
    (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
}

/// The picture that is to be drawn, as a square.
fn square(image: &Image) -> Result<RgbImage> {
    let pixels = janus_core::processing::pixels_to_images(&image.target()?.unsqueeze(0)?)?;
    Ok(pixels.into_iter().next().unwrap_or_default())
}

/// The base's own tower, alone.
fn tower(evaluation: &Evaluation<'_>) -> Result<Janus> {
    let (parts, everything) = (Parts { vision: true, ..Parts::default() }, 0..usize::MAX);
    let slice = Slice { vision_ends: true, vision_layers: everything, ..Slice::default() };
    let checkpoint = evaluation.base.checkpoint();
    let device = evaluation.model.device();
    Ok(Janus::open_slice(checkpoint, DType::F32, device, parts, &slice, &mut |_| {})?)
}

/// Of one picture's pixels: `[patches, width]`.
fn features(tower: &Janus, pixels: &Tensor) -> Result<Tensor> {
    let pixels = pixels.unsqueeze(0)?.to_device(tower.device())?;
    Ok(tower.vision()?.forward_to(&Pass::inference(), VisionPoint::Tower, &pixels)?.squeeze(0)?)
}

fn mean(features: &Tensor) -> Result<Vec<f64>> {
    Ok(features.mean(0)?.to_dtype(DType::F64)?.to_vec1()?)
}

fn patch_distance(one: &Tensor, other: &Tensor) -> Result<f64> {
    let unit = crate::heads::contrast::unit;
    let squares = (unit(one)? - unit(other)?)?.sqr()?.sum(1)?;
    Ok(f64::from(squares.mean_all()?.to_scalar::<f32>()?))
}

/// ROUGE-L of a row's prompt and what the model says of the picture.
fn said(evaluation: &Evaluation<'_>, row: &Row, picture: &RgbImage) -> Result<f64> {
    let base = evaluation.base;
    let asked = row.text("prompt").unwrap_or_default();
    let image = Image::from_pixels(base.images().understanding(picture)?);
    let prompt = base.prompts().understanding_prompt(QUESTION, 1, true)?;
    let question = Question { prompt, images: vec![image], answer: String::new() };
    let limit = base.tokenizer().encode_plain(asked, "prompt")?.len() + SPARE_TOKENS;
    let request = Request::plain(Kind::Text(TextRequest::greedy(&question, limit)));
    let answer = evaluation.engine().answer_all([request], &mut |_| {})?.into_iter().find_map(Answer::into_text);
    Ok(answer.map_or(0.0, |answer| rouge_l(asked, &answer.text)))
}
