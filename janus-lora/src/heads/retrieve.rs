//! Pictures and captions as vectors that lie close where they belong together.

use candle_core::{DType, Result, Tensor};
use image::RgbImage;
use janus_core::config::JanusConfig;
use janus_core::processing::Frame;
use serde_json::json;

use super::contrast::{FIRST_TEMPERATURE, info_nce, unit};
use super::layers::normalised;
use super::{Description, Features, Figures, First, Head, HeadAnswer, HeadSample, Target, TaskHead, Value};
use crate::metrics::ranks::RankMetrics;

/// Width of the vectors.
const WIDTH: usize = 128;

const IMAGE: &str = "image.weight";
const TEXT: &str = "text.weight";
const TEMPERATURE: &str = "log_temperature";

/// Vectors of pictures and captions.
pub(super) struct Retrieve;

impl TaskHead for Retrieve {
    fn task(&self) -> &'static str {
        "retrieve"
    }

    /// `image.weight [128, hidden]`, `text.weight [128, hidden]`, `log_temperature [1]`.
    fn values(&self, config: &JanusConfig) -> Vec<Value> {
        let project =
            |name: &str, input: usize| Value::new(name, &[WIDTH, input], First::Normal((1.0 / input as f64).sqrt()));
        vec![
            project(IMAGE, config.vision.projection_dim),
            project(TEXT, config.text.hidden_size),
            Value::new(TEMPERATURE, &[1], First::Constant(FIRST_TEMPERATURE.ln())),
        ]
    }

    fn is_contrastive(&self) -> bool {
        true
    }

    /// Vectors of the pictures and of the captions, `[.., 128]` each.
    fn output(
        &self,
        head: &Head,
        _: &JanusConfig,
        features: &Features,
        captions: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let images = image_vectors(head, &features.mid)?;
        let captions = match captions {
            Some(hidden) => text_vectors(head, hidden)?,
            None => Tensor::zeros((0, WIDTH), DType::F32, images.device())?,
        };
        Ok(vec![images, captions])
    }

    fn loss(
        &self,
        head: &Head,
        _: &JanusConfig,
        output: &[Tensor],
        targets: &[Target],
        _: &[Frame],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let is_same = |one: usize, other: usize| targets[one].caption() == targets[other].caption();
        let contrast = info_nce(&output[0], &output[1], log_temperature(head), is_same)?;
        Ok((contrast.sum, Some(contrast.correct)))
    }

    fn answer(&self, _: &JanusConfig, output: &[Tensor], _: &Frame) -> Result<HeadAnswer> {
        let image: Vec<f32> = output[0].flatten_all()?.to_vec1()?;
        let captions: Vec<Vec<f32>> = output[1].to_vec2()?;
        // One by one, so that none depends on how many there are.
        let similarity = |caption: &Vec<f32>| image.iter().zip(caption).map(|(a, b)| a * b).sum();
        Ok(HeadAnswer::Similarities(captions.iter().map(similarity).collect()))
    }

    /// Its caption's ids: nothing that is looked for has a name.
    fn truth(&self, target: &Target) -> serde_json::Value {
        json!(target.caption())
    }

    fn description(&self, answer: &HeadAnswer, captions: &[String]) -> Description {
        let HeadAnswer::Similarities(similarities) = answer else { return Description::default() };
        let mut sorted: Vec<(&String, &f32)> = captions.iter().zip(similarities).collect();
        sorted.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let all: Vec<serde_json::Value> =
            sorted.iter().map(|(caption, s)| json!({ "caption": caption, "similarity": s })).collect();
        let lines: Vec<String> = sorted.iter().map(|(caption, s)| format!("{s:.3} {caption}")).collect();
        Description { text: lines.join("; "), json: vec![("captions".to_owned(), json!(all))] }
    }

    fn sample(&self, _: HeadAnswer, _: &Target, _: &RgbImage) -> std::result::Result<Option<HeadSample>, String> {
        Ok(None)
    }

    fn figures(&self) -> Box<dyn Figures + '_> {
        Box::new(Vectors::default())
    }
}

/// Vectors of a whole table: a caption is looked for among those of all rows.
#[derive(Default)]
struct Vectors {
    images: Vec<Tensor>,
    captions: Vec<Tensor>,
    ids: Vec<Vec<u32>>,
}

impl Figures for Vectors {
    fn add(&mut self, target: &Target, output: &[Tensor], _: &HeadAnswer) -> Result<()> {
        self.images.push(output[0].clone());
        self.captions.push(output[1].clone());
        self.ids.push(target.caption().to_vec());
        Ok(())
    }

    fn metrics(self: Box<Self>, loss_sum: f64) -> Result<serde_json::Value> {
        let Self { images, captions, ids } = *self;
        let similarities = if images.is_empty() {
            Vec::new()
        } else {
            Tensor::cat(&images, 0)?.matmul(&Tensor::cat(&captions, 0)?.t()?)?.flatten_all()?.to_vec1::<f32>()?
        };
        Ok(json!(RankMetrics::new(&similarities, ids.len(), |one, other| ids[one] == ids[other], loss_sum)))
    }
}

/// Features of some pictures, `[images, patches, hidden]`, to vectors of length one, `[images, 128]`: each patch's features
/// brought to mean zero and variance one, their mean over the patches, projected.
///
/// # Errors
/// Shapes that do not fit.
pub(super) fn image_vectors(head: &Head, features: &Tensor) -> Result<Tensor> {
    unit(&normalised(features)?.mean(1)?.matmul(&head.value(IMAGE).t()?)?)
}

/// The final hidden states of some captions' last tokens, `[captions, hidden]`, to vectors of length one, `[captions, 128]`.
///
/// # Errors
/// Shapes that do not fit.
pub(super) fn text_vectors(head: &Head, hidden: &Tensor) -> Result<Tensor> {
    unit(&hidden.to_dtype(DType::F32)?.matmul(&head.value(TEXT).t()?)?)
}

/// The logarithm of the learnt temperature, `[1]`.
pub(super) fn log_temperature(head: &Head) -> &Tensor {
    head.value(TEMPERATURE)
}
