//! Generated answers and their figures.

use std::collections::{BTreeMap, HashMap};

use janus_core::pass::Pass;
use serde::Serialize;
use serde_json::json;

use super::Evaluation;
use super::drawn::{self, DrawnMetrics};
use crate::base::Base;
use crate::error::Result;
use crate::heads::Heads;
use crate::infer::{Answer, Kind, Request, TextRequest};
use crate::metrics::bleu::Bleu;
use crate::metrics::rouge::rouge_l;
use crate::tasks::Question;

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
    let (pass, mut engine) = (Pass::inference(), evaluation.engine());
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
        let answers = engine.answer_all(requests(base, &questions)?, &mut |_| {})?;
        for (question, answer) in questions.iter().zip(answers.into_iter().filter_map(Answer::into_text)) {
            evaluation.predicted(|| json!(question.answer), || json!(answer.text));
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

/// Requests for the best answers to questions whose answers are known, little longer than the longest of these.
pub(super) fn requests(base: &Base, questions: &[Question]) -> Result<Vec<Request>> {
    let mut longest = 0;
    for question in questions {
        longest = longest.max(base.tokenizer().encode_plain(&question.answer, "answer")?.len());
    }
    let request = |question| Request::plain(Kind::Text(TextRequest::greedy(question, longest + SPARE_TOKENS)));
    Ok(questions.iter().map(request).collect())
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
