//! What a model, with or without an adapter, makes of a table's evaluation rows.
//!
//! | file | what |
//! | --- | --- |
//! | `answers` | generated answers and their figures |
//! | `drawings`, `drawn` | pictures that a model draws, and their figures |
//! | `pictures`, `frechet` | figures of two pictures, and of many |
//! | `given` | networks for such figures whose weights the user gives |
//! | `rebuilt` | pictures that come back from their codes |
//! | `told` | what heads tell of pictures |
//! | `classes`, `boxes`, `masks`, `ranks` | figures of labels, boxes, masks and retrieval |
//! | `bleu`, `rouge` | figures of texts |
//!
//! Figures are of what a model answers, never of what is given to it, but for loss, perplexity and token accuracy: those are
//! of the given answers, each token seen after the right ones before it.

mod answers;
mod bleu;
mod boxes;
mod classes;
mod drawings;
mod drawn;
mod frechet;
mod given;
mod masks;
mod pictures;
mod ranks;
mod rebuilt;
mod rouge;
mod told;

use janus_core::Janus;

use crate::base::Base;
use crate::data::Row;
use crate::error::Result;
use crate::heads::Heads;
use crate::heads::locate::{Found, Marked};
use crate::status::Status;
use crate::tasks::{Batch, Context, Mask, Task};
use crate::train::signals;
use crate::train::tables::{RecipeTable, Source};

pub use answers::{Answer, TableMetrics, answer};
pub use drawings::{code_prompts, pictures};
pub use given::{NetworkError, Networks};

/// How far the best of a row's found boxes overlap its true ones as intersection over union, on average; of a row without true
/// ones, whether nothing was found.
pub(crate) fn row_iou(labels: usize, truth: &[Marked], found: &[Found]) -> f64 {
    if truth.is_empty() {
        return if found.is_empty() { 1.0 } else { 0.0 };
    }
    let mut detections = boxes::Detections::new(labels);
    detections.add(truth, found);
    detections.mean_iou()
}

/// How far a mask overlaps the row's, as Dice.
pub(crate) fn row_dice(truth: &Mask, answered: &[bool]) -> Option<f64> {
    let mut figures = masks::MaskFigures::new();
    figures.add(truth.pixels.as_deref()?, answered, &truth.ignored);
    Some(figures.metrics(0.0).dice)
}

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

/// Evaluates every table of a recipe that has evaluation rows; one whose head is not among `heads` has no figures. Drawn pictures
/// are measured with those of the `networks` that were given, too.
///
/// # Errors
/// Rows that cannot be read, or a model that lacks a part.
pub fn evaluate(
    model: &Janus,
    base: &Base,
    heads: &Heads,
    tables: &[RecipeTable],
    networks: &Networks,
    batch_size: usize,
    status: &dyn Status,
) -> Result<Metrics> {
    let mut metrics = Metrics::new();
    for table in tables {
        let Some(source) = &table.eval else { continue };
        let (task, name) = (table.task.as_ref(), table.section.name.as_str());
        let pictures = table.section.eval_pictures.unwrap_or(0) as usize;
        let evaluation = Evaluation { model, base, heads, task, source, name, pictures, networks, batch_size, status };
        let value = match task.head() {
            Some(kind) => told::evaluate(&evaluation, &kind)?,
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
    networks: &'a Networks,
    batch_size: usize,
    status: &'a dyn Status,
}

impl Evaluation<'_> {
    /// Hands out all rows, batch by batch, with the batch that is made of them.
    fn each(&self, mut f: impl FnMut(&[Row], Batch) -> Result<()>) -> Result<()> {
        let bar = self.status.items(&format!("evaluating {}", self.name), self.source.index.accepted_rows() as u64);
        let context = Context { base: self.base, model: self.model, draw: None };
        let mut rows = self.source.rows()?;
        loop {
            let chunk = rows.by_ref().take(self.batch_size.max(1)).collect::<Result<Vec<Row>>>()?;
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
