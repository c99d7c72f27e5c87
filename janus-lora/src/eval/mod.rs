//! What a model, with or without an adapter, makes of a table's evaluation rows.
//!
//! Loss, perplexity and token accuracy are those of the given answers, each token seen after the right ones before it.
//! Exact match is of generated answers, never of given ones; figures of labels (`classes`) are of answered ones.

mod classes;

use std::collections::HashMap;

use candle_core::D;
use janus_core::Janus;
use janus_core::ops::HeadLoss;
use janus_core::pass::Pass;
use janus_core::processing::left_pad;
use janus_core::sample::{TextOptions, generate_text};
use serde::Serialize;

use crate::adapter::AdapterError;
use crate::base::Base;
use crate::cache::{self, Image};
use crate::data::Row;
use crate::error::Result;
use crate::heads::{HeadKind, Heads};
use crate::status::Status;
use crate::tasks::{Batch, Context, Question, Task};
use crate::train::signals;
use crate::train::tables::{RecipeTable, Source};

pub use classes::{ClassMetrics, Confusion};

/// Tokens an answer may have beyond the expected one's.
const SPARE_TOKENS: usize = 8;

/// Figures of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableMetrics {
    /// Rows.
    pub rows: usize,
    /// Tokens in the loss.
    pub tokens: usize,
    /// Mean cross-entropy of the supervised tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Share of supervised tokens that the largest logit names, given the right tokens before.
    pub token_accuracy: f64,
    /// The loss of predicting each supervised token by its frequency among these very tokens: the least that any
    /// prediction without context can have.
    pub frequency_loss: f64,
    /// Share of rows whose generated answer is exactly the expected one; absent for tasks that do not answer in text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<f64>,
}

/// Metrics of every table that has evaluation rows, by name.
pub type Metrics = serde_json::Map<String, serde_json::Value>;

/// Evaluates every table of a recipe that has evaluation rows; one whose head is not among `heads` has no figures but what
/// its rows say.
///
/// # Errors
/// Rows that cannot be read, or a model that lacks a part.
pub fn evaluate(
    model: &Janus,
    base: &Base,
    heads: &Heads,
    tables: &[RecipeTable],
    batch_size: usize,
    status: &dyn Status,
) -> Result<Metrics> {
    let mut metrics = Metrics::new();
    for table in tables {
        let Some(source) = &table.eval else { continue };
        let (task, name) = (table.task.as_ref(), &table.section.name);
        let value = match task.head() {
            Some(HeadKind::Classify { labels }) => {
                let own = evaluate_classes(model, base, heads, task, source, name, &labels, batch_size, status)?;
                own.map(serde_json::to_value)
            }
            None => {
                let own = evaluate_table(model, base, task, source, name, batch_size, status)?;
                Some(serde_json::to_value(own))
            }
        };
        if let Some(value) = value {
            metrics.insert(name.clone(), value.expect("plain numbers are JSON"));
        }
    }
    Ok(metrics)
}

/// Evaluates a table to classify; `None` without its head.
#[allow(clippy::too_many_arguments, reason = "what a table is evaluated with")]
fn evaluate_classes(
    model: &Janus,
    base: &Base,
    heads: &Heads,
    task: &dyn Task,
    source: &Source,
    name: &str,
    labels: &[String],
    batch_size: usize,
    status: &dyn Status,
) -> Result<Option<ClassMetrics>> {
    let Some(head) = heads.get(name) else { return Ok(None) };
    let HeadKind::Classify { labels: own } = &head.kind;
    if own != labels {
        let (name, expected, got) = (name.to_owned(), labels.to_vec(), own.clone());
        return Err(AdapterError::OtherLabels { name, expected, got }.into());
    }
    let bar = status.items(&format!("evaluating {name}"), source.index.accepted_rows() as u64);
    let (pass, context) = (Pass::inference(), Context { base, model, draw: None });
    let mut confusion = Confusion::new(labels.len());
    let (mut sum, mut rows) = (0.0, source.rows()?);
    loop {
        let chunk = rows.by_ref().take(batch_size.max(1)).collect::<Result<Vec<Row>>>()?;
        if chunk.is_empty() {
            break;
        }
        signals::check()?;
        let samples = chunk.iter().map(|row| task.sample(context, row)).collect::<Result<Vec<_>>>()?;
        let Batch::Labels(batch) = Batch::collate(base, &samples)? else { continue };
        let logits = batch.logits(model, &pass, heads)?;
        sum += f64::from(HeadLoss::of_logits(&logits, &batch.labels)?.sum.to_scalar::<f32>()?);
        let answered: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        for (expected, answered) in batch.labels.iter().zip(answered) {
            confusion.add(*expected as usize, answered as usize);
        }
        bar.advance(chunk.len() as u64);
    }
    bar.finish();
    Ok(Some(confusion.metrics(labels, sum)))
}

/// Evaluates one table.
///
/// # Errors
/// Rows that cannot be read, or a model that lacks a part.
pub fn evaluate_table(
    model: &Janus,
    base: &Base,
    task: &dyn Task,
    source: &Source,
    name: &str,
    batch_size: usize,
    status: &dyn Status,
) -> Result<TableMetrics> {
    let bar = status.items(&format!("evaluating {name}"), source.index.accepted_rows() as u64);
    let pass = Pass::inference();
    let context = Context { base, model, draw: None };
    let (mut rows, mut tokens, mut correct, mut sum) = (0, 0, 0, 0f64);
    let mut counts: HashMap<u32, usize> = HashMap::new();
    let (mut asked, mut exact) = (0, 0);
    let mut chunk: Vec<Row> = Vec::with_capacity(batch_size);
    let mut stream = source.rows()?;
    loop {
        let next = stream.next().transpose()?;
        let ended = next.is_none();
        chunk.extend(next);
        if chunk.is_empty() {
            break;
        }
        if !ended && chunk.len() < batch_size {
            continue;
        }
        signals::check()?;
        let samples = chunk.iter().map(|row| task.sample(context, row)).collect::<Result<Vec<_>>>()?;
        let batch = Batch::collate(base, &samples)?;
        batch.count_labels(&mut counts);
        let loss = batch.loss(model, &pass, &Heads::new())?;
        sum += f64::from(loss.sum.to_scalar::<f32>()?);
        tokens += loss.tokens;
        correct += loss.correct;
        let questions = chunk.iter().map(|row| task.question(base, row)).collect::<Result<Vec<_>>>()?;
        let questions: Vec<Question> = questions.into_iter().flatten().collect();
        asked += questions.len();
        exact += count_exact(model, base, &questions)?;
        rows += chunk.len();
        bar.advance(chunk.len() as u64);
        chunk.clear();
    }
    bar.finish();
    let loss = sum / tokens.max(1) as f64;
    Ok(TableMetrics {
        rows,
        tokens,
        loss,
        perplexity: loss.exp(),
        token_accuracy: correct as f64 / tokens.max(1) as f64,
        frequency_loss: frequency_loss(&counts),
        exact_match: (asked > 0).then(|| exact as f64 / asked as f64),
    })
}

/// Entropy in nats of the tokens counted.
fn frequency_loss(counts: &HashMap<u32, usize>) -> f64 {
    let total: usize = counts.values().sum();
    let mut counts: Vec<usize> = counts.values().copied().collect();
    // Summed in a fixed order, so that equal counts give equal bits.
    counts.sort_unstable();
    counts.iter().map(|c| *c as f64 / total as f64).map(|p| -p * p.ln()).sum()
}

fn count_exact(model: &Janus, base: &Base, questions: &[Question]) -> Result<usize> {
    if questions.is_empty() {
        return Ok(0);
    }
    let longest = questions
        .iter()
        .map(|q| Ok(base.tokenizer().encode_plain(&q.answer, "answer")?.len()))
        .collect::<Result<Vec<usize>>>()?;
    let max_new_tokens = longest.into_iter().max().unwrap_or(0) + SPARE_TOKENS;
    let answers = answer(model, base, questions, max_new_tokens, 0.0, 0)?;
    Ok(answers.iter().zip(questions).filter(|(got, q)| got.text.trim() == q.answer.trim()).count())
}

/// A generated answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// The ids drawn, up to and with the end of the sentence.
    pub token_ids: Vec<u32>,
}

/// Answers a batch of questions.
///
/// # Errors
/// Prompts or images that do not fit the model.
pub fn answer(
    model: &Janus,
    base: &Base,
    questions: &[Question],
    max_new_tokens: usize,
    temperature: f64,
    seed: u64,
) -> Result<Vec<Answer>> {
    let pass = Pass::inference();
    let special = base.tokenizer().special();
    let prompts: Vec<&[u32]> = questions.iter().map(|q| q.prompt.as_slice()).collect();
    let padded = left_pad(&prompts, special.pad);
    let images: Vec<Image> = questions.iter().flat_map(|q| q.images.iter().cloned()).collect();
    let features = cache::features(model, &pass, &images)?;
    let embeds =
        model.embed_with_images(&pass, &padded.ids, padded.rows, special.image_placeholder, features.as_ref())?;
    let mask: Vec<bool> = padded.mask.iter().map(|m| *m != 0).collect();
    let options = TextOptions {
        max_new_tokens,
        temperature,
        seed,
        stop: vec![special.eos],
        pad: special.eos,
        vocabulary: base.vocabulary(),
    };
    let drawn = generate_text(model, &pass, &embeds, &mask, &options, &mut |_| {})?;
    drawn
        .into_iter()
        .map(|token_ids| {
            let text = base.tokenizer().decode(&token_ids, true)?.trim().to_owned();
            Ok(Answer { text, token_ids })
        })
        .collect()
}
