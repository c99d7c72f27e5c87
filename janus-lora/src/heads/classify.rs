//! One of some labels for a picture: features pooled by an attention with one learnt query, then one linear map.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax;
use image::RgbImage;
use janus_core::config::JanusConfig;
use janus_core::ops::HeadLoss;
use janus_core::processing::Frame;
use serde_json::{Map, json};

use super::layers::normalised;
use super::{Description, Features, Figures, First, Head, HeadAnswer, HeadSample, Target, TaskHead, Value};
use crate::metrics::classes::Confusion;

const QUERY: &str = "query";
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

/// One of these labels.
pub(super) struct Classify<'a> {
    pub(super) labels: &'a [String],
}

impl TaskHead for Classify<'_> {
    fn task(&self) -> &'static str {
        "classify"
    }

    fn least_labels(&self) -> usize {
        2
    }

    /// `query [hidden]`, `weight [labels, hidden]`, `bias [labels]`.
    fn values(&self, config: &JanusConfig) -> Vec<Value> {
        let (hidden, labels) = (config.vision.projection_dim, self.labels.len());
        vec![
            Value::new(QUERY, &[hidden], First::Normal(0.02)),
            Value::new(WEIGHT, &[labels, hidden], First::Normal(1.0 / (hidden as f64).sqrt())),
            Value::new(BIAS, &[labels], First::Constant(0.0)),
        ]
    }

    /// Logits of the labels.
    fn output(&self, head: &Head, _: &JanusConfig, features: &Features, _: Option<&Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![logits(head, &features.mid)?])
    }

    fn loss(
        &self,
        _: &Head,
        _: &JanusConfig,
        output: &[Tensor],
        targets: &[Target],
        _: &[Frame],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let labels: Vec<u32> = targets.iter().filter_map(Target::label).collect();
        let loss = HeadLoss::of_logits(&output[0], &labels)?;
        Ok((loss.sum, Some(loss.correct)))
    }

    fn answer(&self, _: &JanusConfig, output: &[Tensor], _: &Frame) -> Result<HeadAnswer> {
        Ok(HeadAnswer::Label(softmax(&output[0], D::Minus1)?.flatten_all()?.to_vec1()?))
    }

    fn truth(&self, target: &Target) -> serde_json::Value {
        json!(target.label().and_then(|label| self.labels.get(label as usize)))
    }

    fn description(&self, answer: &HeadAnswer, _: &[String]) -> Description {
        let HeadAnswer::Label(probabilities) = answer else { return Description::default() };
        let mut sorted: Vec<(&String, &f32)> = self.labels.iter().zip(probabilities).collect();
        sorted.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let Some((label, probability)) = sorted.first() else { return Description::default() };
        let all: Map<String, serde_json::Value> =
            sorted.iter().map(|(label, p)| ((*label).clone(), json!(p))).collect();
        Description {
            text: format!("{label} ({:.1} %)", 100.0 * **probability),
            json: vec![("label".to_owned(), json!(label)), ("probabilities".to_owned(), json!(all))],
        }
    }

    fn sample(
        &self,
        answer: HeadAnswer,
        target: &Target,
        _: &RgbImage,
    ) -> std::result::Result<Option<HeadSample>, String> {
        let label = |number: Option<usize>| number.and_then(|number| self.labels.get(number)).cloned();
        let HeadAnswer::Label(probabilities) = answer else { return Ok(None) };
        Ok(Some(HeadSample {
            expected: label(target.label().map(|label| label as usize)).unwrap_or_default(),
            answer: label(likeliest(&probabilities)).unwrap_or_default(),
            overlay: None,
            truth: None,
            score: None,
        }))
    }

    fn figures(&self) -> Box<dyn Figures + '_> {
        Box::new(Labels { labels: self.labels, confusion: Confusion::new(self.labels.len()) })
    }
}

/// The number of the largest, of equal ones the first.
fn likeliest(probabilities: &[f32]) -> Option<usize> {
    (0..probabilities.len()).rev().max_by(|one, other| probabilities[*one].total_cmp(&probabilities[*other]))
}

/// Expected and answered labels of a table.
struct Labels<'a> {
    labels: &'a [String],
    confusion: Confusion,
}

impl Figures for Labels<'_> {
    fn add(&mut self, target: &Target, _: &[Tensor], answer: &HeadAnswer) -> Result<()> {
        if let (Some(expected), HeadAnswer::Label(probabilities)) = (target.label(), answer)
            && let Some(answered) = likeliest(probabilities)
        {
            self.confusion.add(expected as usize, answered);
        }
        Ok(())
    }

    fn metrics(self: Box<Self>, loss_sum: f64) -> Result<serde_json::Value> {
        Ok(json!(self.confusion.metrics(self.labels, loss_sum)))
    }
}

/// Features of some pictures, `[images, patches, hidden]`, to their logits, `[images, labels]` in f32.
///
/// With f the features of a patch, brought to mean zero and variance one: `p = Σ softmax(q·f)·f`, then `W·p + b`.
///
/// # Errors
/// Shapes that do not fit.
pub(super) fn logits(head: &Head, features: &Tensor) -> Result<Tensor> {
    let features = normalised(features)?;
    let (images, patches, hidden) = features.dims3()?;
    let query = head.value(QUERY).reshape((hidden, 1))?;
    let scores = features.reshape((images * patches, hidden))?.matmul(&query)?.reshape((images, patches))?;
    let weights = softmax(&scores, D::Minus1)?.unsqueeze(1)?;
    let pooled = weights.matmul(&features)?.squeeze(1)?;
    pooled.matmul(&head.value(WEIGHT).t()?)?.broadcast_add(head.value(BIAS))
}
