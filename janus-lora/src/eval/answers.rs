//! Generated answers and their figures.

use std::collections::{BTreeMap, HashMap};

use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::processing::left_pad;
use janus_core::sample::{TextOptions, generate_text};
use serde::Serialize;

use super::Evaluation;
use super::bleu::Bleu;
use super::drawn::{self, DrawnMetrics};
use super::rouge::rouge_l;
use crate::base::Base;
use crate::cache::{self, Image};
use crate::error::Result;
use crate::heads::Heads;
use crate::tasks::{Question, answer_room};

/// Tokens an answer may have beyond the expected one's.
pub(super) const SPARE_TOKENS: usize = 8;

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
    /// Figures of generated answers; absent for tasks that do not answer in text.
    #[serde(flatten)]
    pub answers: Option<AnswerMetrics>,
    /// Figures of drawn pictures; absent where none are to be drawn.
    #[serde(flatten)]
    pub(super) drawn: Option<DrawnMetrics>,
}

/// Figures of generated answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnswerMetrics {
    /// Share of rows whose answer is exactly the expected one.
    pub exact_match: f64,
    /// BLEU-4 of all answers together, from 0 to 1.
    pub bleu_4: f64,
    /// Mean ROUGE-L of the answers, from 0 to 1.
    pub rouge_l: f64,
    /// `exact_match` of the most frequent of the expected answers in every row: an answer without looking.
    pub frequent_exact_match: f64,
    /// `bleu_4` of the same.
    pub frequent_bleu_4: f64,
    /// `rouge_l` of the same.
    pub frequent_rouge_l: f64,
}

/// What is counted of answers.
#[derive(Default)]
struct Answered {
    rows: usize,
    exact: usize,
    bleu: Bleu,
    rouge_sum: f64,
}

impl Answered {
    fn add(&mut self, expected: &str, answered: &str) {
        self.rows += 1;
        self.exact += usize::from(expected == answered);
        self.bleu.add(expected, answered);
        self.rouge_sum += rouge_l(expected, answered);
    }

    /// Exact match, BLEU-4, ROUGE-L.
    fn figures(&self) -> [f64; 3] {
        let rows = self.rows.max(1) as f64;
        [self.exact as f64 / rows, self.bleu.score(), self.rouge_sum / rows]
    }
}

/// Figures of pairs of an expected and a generated answer; `None` of none.
fn answer_metrics(pairs: &[(String, String)]) -> Option<AnswerMetrics> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    pairs.iter().for_each(|(expected, _)| *counts.entry(expected).or_default() += 1);
    // Of equally frequent ones the first in order.
    let (frequent, _) = counts.iter().max_by_key(|(text, count)| (**count, std::cmp::Reverse(**text)))?;
    let (mut own, mut without_looking) = (Answered::default(), Answered::default());
    for (expected, answered) in pairs {
        own.add(expected, answered);
        without_looking.add(expected, frequent);
    }
    let [exact_match, bleu_4, rouge_l] = own.figures();
    let [frequent_exact_match, frequent_bleu_4, frequent_rouge_l] = without_looking.figures();
    Some(AnswerMetrics { exact_match, bleu_4, rouge_l, frequent_exact_match, frequent_bleu_4, frequent_rouge_l })
}

/// Evaluates a table whose answers are texts or pictures.
pub(super) fn evaluate(evaluation: &Evaluation<'_>) -> Result<TableMetrics> {
    let Evaluation { model, base, task, .. } = evaluation;
    let pass = Pass::inference();
    let (mut rows, mut tokens, mut correct, mut sum) = (0, 0, 0, 0f64);
    let mut counts: HashMap<u32, usize> = HashMap::new();
    let mut pairs = Vec::new();
    evaluation.each(|chunk, batch| {
        batch.count_labels(&mut counts);
        let loss = batch.loss(model, &pass, &Heads::new())?;
        sum += f64::from(loss.sum.to_scalar::<f32>()?);
        tokens += loss.tokens;
        correct += loss.correct.to_scalar::<u32>()? as usize;
        let questions = chunk.iter().map(|row| task.question(base, row)).collect::<Result<Vec<_>>>()?;
        let questions: Vec<Question> = questions.into_iter().flatten().collect();
        for (question, answer) in questions.iter().zip(answers(model, base, &questions)?) {
            pairs.push((question.answer.trim().to_owned(), answer.text.trim().to_owned()));
        }
        rows += chunk.len();
        Ok(())
    })?;
    let loss = sum / tokens.max(1) as f64;
    Ok(TableMetrics {
        rows,
        tokens,
        loss,
        perplexity: loss.exp(),
        token_accuracy: correct as f64 / tokens.max(1) as f64,
        frequency_loss: frequency_loss(&counts),
        answers: answer_metrics(&pairs),
        drawn: if evaluation.pictures > 0 { drawn::evaluate(evaluation, evaluation.pictures)? } else { None },
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

/// The best answers to questions whose answers are known, little longer than these.
fn answers(model: &Janus, base: &Base, questions: &[Question]) -> Result<Vec<Answer>> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let longest = questions
        .iter()
        .map(|q| Ok(base.tokenizer().encode_plain(&q.answer, "answer")?.len()))
        .collect::<Result<Vec<usize>>>()?;
    let max_new_tokens = longest.into_iter().max().unwrap_or(0) + SPARE_TOKENS;
    answer(model, base, questions, max_new_tokens, 0.0, 0)
}

/// A generated answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// The ids drawn, up to and with the end of the sentence.
    pub token_ids: Vec<u32>,
}

/// Answers a batch of questions, each with `max_new_tokens` at most and as far as the base has positions behind its prompt.
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
    let pass = Pass::answering();
    let special = base.tokenizer().special();
    let prompts: Vec<&[u32]> = questions.iter().map(|q| q.prompt.as_slice()).collect();
    // A longer prompt beside it leaves an answer as it is.
    let room = |prompt: &&[u32]| answer_room(base, prompt, max_new_tokens);
    let rooms = prompts.iter().map(room).collect::<std::result::Result<Vec<usize>, _>>()?;
    let max_new_tokens = rooms.iter().copied().max().unwrap_or(0);
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
        .zip(rooms)
        .map(|(mut token_ids, room)| {
            token_ids.truncate(room);
            let text = base.tokenizer().decode(&token_ids, true)?.trim().to_owned();
            Ok(Answer { text, token_ids })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_stand_beside_the_most_frequent_one() {
        let pair = |expected: &str, answered: &str| (expected.to_owned(), answered.to_owned());
        let pairs = [
            pair("replace the part", "replace the part"),
            pair("no repair needed", "polish it"),
            pair("no repair needed", "no repair needed"),
            pair("polish it out", "polish it"),
        ];
        let metrics = answer_metrics(&pairs).unwrap();
        assert_eq!((metrics.exact_match, metrics.frequent_exact_match), (0.5, 0.5));
        assert!((metrics.rouge_l - (1.0 + 0.0 + 1.0 + 0.8) / 4.0).abs() < 1e-12, "{metrics:?}");
        assert_eq!(metrics.frequent_rouge_l, 0.5);
        assert!(answer_metrics(&[]).is_none());
    }
}
