//! BLEU of many answers together (Papineni et al., ACL 2002).
//!
//! As sacrebleu's `corpus_bleu` has it unless told otherwise (`sacrebleu/metrics/bleu.py`): up to four tokens in a row, case
//! kept, tokens of mteval-v13a (`sacrebleu/tokenizers/tokenizer_13a.py`), and precisions of nothing right smoothed as NIST
//! does (method 3 of Chen and Cherry, ACL W14-3346).

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// Tokens in a row that are compared at most.
const ORDERS: usize = 4;

/// What is counted of answers that are to be the expected ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bleu {
    /// Tokens of the expected answers.
    expected_tokens: usize,
    /// Of one to four tokens in a row: how many were answered.
    answered: [usize; ORDERS],
    /// How many of these the expected answer has, each as often as it stands there at most.
    right: [usize; ORDERS],
}

impl Bleu {
    /// Takes one row's.
    pub(crate) fn add(&mut self, expected: &str, answered: &str) {
        let (expected, answered) = (tokens(expected), tokens(answered));
        self.expected_tokens += expected.len();
        for order in 1..=ORDERS {
            let known = counts(&expected, order);
            let given = counts(&answered, order);
            self.answered[order - 1] += given.values().sum::<usize>();
            let right = given.iter().map(|(gram, count)| (*count).min(known.get(gram).copied().unwrap_or(0)));
            self.right[order - 1] += right.sum::<usize>();
        }
    }

    /// From 0 to 1; 0 where no answer has so many tokens in a row as are compared.
    pub(crate) fn score(&self) -> f64 {
        if self.right.iter().all(|right| *right == 0) {
            return 0.0;
        }
        let (mut smoothed, mut logarithms) = (1.0, 0.0);
        for (right, answered) in self.right.iter().zip(self.answered) {
            if answered == 0 {
                return 0.0;
            }
            let right = if *right > 0 {
                *right as f64
            } else {
                smoothed /= 2.0;
                smoothed
            };
            logarithms += (right / answered as f64).ln();
        }
        let brevity = (1.0 - self.expected_tokens as f64 / self.answered[0] as f64).min(0.0);
        (brevity + logarithms / ORDERS as f64).exp()
    }
}

/// How often so many tokens stand in a row.
fn counts(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    tokens.windows(order).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

/// What is set apart by spaces, in this order: signs; points and commas but after a digit, and but before one; dashes after a
/// digit.
static APART: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    [
        (r"([ [:punct:]&&[^'\-.,]])", " $1 "),
        (r"([^0-9])([.,])", "$1 $2 "),
        (r"([.,])([^0-9])", " $1 $2"),
        (r"([0-9])-", "$1 - "),
    ]
    .map(|(pattern, apart)| (Regex::new(pattern).expect("a fixed pattern"), apart))
});

/// Those of mteval-v13a.
fn tokens(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, sign);
    }
    text = format!(" {text} ");
    for (pattern, apart) in APART.iter() {
        text = pattern.replace_all(&text, *apart).into_owned();
    }
    text.split(is_space).filter(|token| !token.is_empty()).map(str::to_owned).collect()
}

/// Space to Python, which also has the four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../tests/golden/metrics/bleu.json")).unwrap()
    }

    /// Made by `tests/metrics_golden.py` with sacrebleu.
    #[test]
    fn scores_are_those_of_sacrebleu() {
        let golden = golden();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let texts = |name: &str| -> Vec<String> { serde_json::from_value(case[name].clone()).unwrap() };
            let mut bleu = Bleu::default();
            for (expected, answered) in texts("expected").iter().zip(&texts("answered")) {
                bleu.add(expected, answered);
            }
            let truth = case["score"].as_f64().unwrap();
            assert!((bleu.score() - truth).abs() < 1e-12, "{} {truth} {case}", bleu.score());
        }
    }

    #[test]
    fn tokens_are_those_of_sacrebleu() {
        let golden = golden();
        let texts = golden["tokens"].as_array().unwrap();
        assert!(texts.len() >= 100);
        for text in texts {
            let expected: Vec<String> = serde_json::from_value(text["tokens"].clone()).unwrap();
            assert_eq!(tokens(text["text"].as_str().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn no_rows_are_no_division() {
        assert_eq!(Bleu::default().score(), 0.0);
    }
}
