//! What a model, with or without an adapter, makes of a table's evaluation rows.
//!
//! | file | what |
//! | --- | --- |
//! | `answers` | generated answers and their figures |
//! | `drawn` | pictures that a model draws, and their figures |
//! | `given` | networks for such figures whose weights the user gives |
//! | `rebuilt` | pictures that come back from their codes |
//! | `head_metrics` | what heads tell of pictures |
//! | `predictions` | what was answered to each row |
//!
//! Figures are of what a model answers, never of what is given to it, but for loss, perplexity and token accuracy: those are
//! of the given answers, each token seen after the right ones before it.

mod answers;
mod drawn;
mod given;
mod head_metrics;
pub(crate) mod predictions;
mod rebuilt;

use std::cell::RefCell;

use janus_core::Janus;

use crate::base::Base;
use crate::data::Row;
use crate::error::Result;
use crate::heads::Heads;
use crate::infer::{Engine, Limits};
use crate::status::Status;
use crate::tasks::{Batch, Context, Task};
use crate::train::signals;
use crate::train::tables::{RecipeTable, Source};

pub use answers::TableMetrics;
pub use given::{NetworkError, Networks};
pub use predictions::Prediction;

/// Metrics of every table that has evaluation rows, by name.
pub type Metrics = serde_json::Map<String, serde_json::Value>;

/// Figures as one line: those of each table but its counts, and what the most frequent answer would reach, which stays the same.
pub fn in_one_line(metrics: &Metrics) -> String {
    let of_table = |(name, figures): (&String, &serde_json::Value)| {
        let figures = figures
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| !value.is_u64() && !name.starts_with("frequen"));
        let figures = figures.filter_map(|(metric, value)| Some((metric.replace('_', " "), value.as_f64()?)));
        let told: Vec<String> = figures.map(|(metric, value)| format!("{metric} {value:.4}")).collect();
        format!("{name} {}", told.join(", "))
    };
    metrics.iter().map(of_table).collect::<Vec<_>>().join("; ")
}

/// How tables are evaluated.
#[derive(Default)]
pub struct Settings<'a> {
    /// Rows of a pass.
    pub batch_size: usize,
    /// Networks that drawn pictures are measured with beside the base's own tower.
    pub networks: Networks,
    /// Where what is answered to each row goes, if it is wanted.
    pub predictions: Option<&'a RefCell<Vec<Prediction>>>,
}

/// Evaluates every table of a recipe that has evaluation rows; one whose head is not among `heads` has no figures.
///
/// # Errors
/// Rows that cannot be read, or a model that lacks a part.
pub fn evaluate(
    model: &Janus,
    base: &Base,
    heads: &Heads,
    tables: &[RecipeTable],
    settings: &Settings<'_>,
    status: &dyn Status,
) -> Result<Metrics> {
    let mut metrics = Metrics::new();
    let limits = Limits::of(model)?;
    for table in tables {
        let Some(source) = &table.eval else { continue };
        let (task, name) = (table.task.as_ref(), table.section.name.as_str());
        let pictures = table.section.eval_pictures.unwrap_or(0) as usize;
        let evaluation = Evaluation { model, base, heads, task, source, name, pictures, limits, settings, status };
        let value = match task.head() {
            Some(kind) => head_metrics::evaluate(&evaluation, &kind)?,
            None if task.rebuilds() => {
                Some(serde_json::to_value(rebuilt::evaluate(&evaluation)?).expect("plain numbers are JSON"))
            }
            None => Some(serde_json::to_value(answers::evaluate(&evaluation)?).expect("plain numbers are JSON")),
        };
        if let Some(value) = value {
            metrics.insert(name.to_owned(), value);
        }
    }
    Ok(metrics)
}

/// A table under evaluation.
struct Evaluation<'a> {
    model: &'a Janus,
    base: &'a Base,
    heads: &'a Heads,
    task: &'a dyn Task,
    source: &'a Source,
    name: &'a str,
    /// Pictures that are drawn of its first rows.
    pictures: usize,
    limits: Limits,
    settings: &'a Settings<'a>,
    status: &'a dyn Status,
}

impl<'a> Evaluation<'a> {
    /// An engine over the model as it is.
    fn engine(&self) -> Engine<'a> {
        Engine::new(self.model, self.base, self.heads, self.limits)
    }

    /// Notes what was answered to the next good row, where that is wanted.
    fn predicted(&self, expected: impl FnOnce() -> serde_json::Value, answer: impl FnOnce() -> serde_json::Value) {
        let Some(predictions) = self.settings.predictions else { return };
        let mut predictions = predictions.borrow_mut();
        let good = predictions.iter().rev().take_while(|other| other.table == self.name).count();
        let row = self.source.index.number_of(good).unwrap_or(good);
        predictions.push(Prediction { table: self.name.to_owned(), row, expected: expected(), answer: answer() });
    }

    /// Hands out all rows, batch by batch, with the batch that is made of them.
    fn each(&self, mut f: impl FnMut(&[Row], Batch) -> Result<()>) -> Result<()> {
        let bar = self.status.items(&format!("evaluating {}", self.name), self.source.index.accepted_rows() as u64);
        let context = Context { base: self.base, model: self.model, draw: None };
        let mut rows = self.source.rows()?;
        loop {
            let chunk = rows.by_ref().take(self.settings.batch_size.max(1)).collect::<Result<Vec<Row>>>()?;
            if chunk.is_empty() {
                break;
            }
            signals::check()?;
            let samples = chunk.iter().map(|row| self.task.sample(context, row)).collect::<Result<Vec<_>>>()?;
            f(&chunk, Batch::collate(self.base, &samples)?)?;
            bar.advance(chunk.len() as u64);
        }
        bar.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use crate::metrics::{boxes, classes, masks, ranks};

    use super::answers::AnswerMetrics;
    use super::drawn::DrawnMetrics;
    use super::rebuilt::RebuiltMetrics;
    use super::*;
    use crate::recipe::Task;

    /// What a recipe may stop by is what an evaluation gives, in its order.
    #[test]
    fn recipes_know_the_figures_of_every_task() {
        fn names(figures: impl Serialize) -> Vec<String> {
            let value = serde_json::to_value(figures).unwrap();
            let is_figure = |value: &serde_json::Value| value.is_number() || value.is_null();
            value.as_object().unwrap().iter().filter(|(_, v)| is_figure(v)).map(|(name, _)| name.clone()).collect()
        }
        let answers = AnswerMetrics {
            exact_match: 0.0,
            bleu_4: 0.0,
            rouge_l: 0.0,
            frequent_exact_match: 0.0,
            frequent_bleu_4: 0.0,
            frequent_rouge_l: 0.0,
        };
        let drawn = |captions: bool| DrawnMetrics {
            pictures: 0,
            tower_distance: 0.0,
            tower_frechet: Some(0.0),
            lpips: None,
            frechet_inception_distance: None,
            psnr: (!captions).then_some(0.0),
            ssim: (!captions).then_some(0.0),
            caption_agreement: captions.then_some(0.0),
        };
        let table = |answers, drawn| TableMetrics {
            rows: 0,
            tokens: 0,
            loss: 0.0,
            perplexity: 0.0,
            token_accuracy: 0.0,
            frequency_loss: 0.0,
            answers,
            drawn,
        };
        let rebuilt = RebuiltMetrics {
            rows: 0,
            loss: 0.0,
            psnr: 0.0,
            mean_colour_psnr: 0.0,
            ssim: Some(0.0),
            codes_used: 0.0,
            code_perplexity: 0.0,
        };
        for (task, given) in [
            (Task::Understand, names(table(Some(answers.clone()), None))),
            (Task::Text, names(table(Some(answers), None))),
            (Task::Generate, names(table(None, Some(drawn(true))))),
            (Task::Edit, names(table(None, Some(drawn(false))))),
            (Task::Classify, names(classes::Confusion::new(2).metrics(&["a".into(), "b".into()], 0.0))),
            (Task::Locate, names(boxes::Detections::new(1).metrics(&["a".into()], 0.0))),
            (Task::Segment, names(masks::MaskFigures::new().metrics(0.0))),
            (Task::Retrieve, names(ranks::RankMetrics::new(&[], 0, |_, _| true, 0.0))),
            (Task::Reconstruct, names(rebuilt)),
        ] {
            let (of_rows, of_drawn) = task.figures();
            assert_eq!([of_rows, of_drawn].concat(), given, "{task}");
        }
    }
}
