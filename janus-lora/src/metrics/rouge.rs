//! ROUGE-L of an answer (Lin, ACL W04-1013).
//!
//! F1 of one expected answer as google-research's `rouge_score` has `rougeL` without a stemmer (`rouge/rouge_scorer.py`,
//! `rouge/tokenize.py`).

/// F1 of the longest common subsequence of tokens, from 0 to 1; 0 where either has none.
pub(crate) fn rouge_l(expected: &str, answered: &str) -> f64 {
    let (expected, answered) = (expected.to_lowercase(), answered.to_lowercase());
    let (expected, answered) = (tokens(&expected), tokens(&answered));
    let common = longest_common_subsequence(&expected, &answered);
    2.0 * common as f64 / (expected.len() + answered.len()).max(1) as f64
}

/// Letters and digits of ASCII that stand together.
fn tokens(lowercase: &str) -> Vec<&str> {
    let ends = |character: char| !character.is_ascii_alphanumeric();
    lowercase.split(ends).filter(|token| !token.is_empty()).collect()
}

/// Its length. Only two lines of the table are kept: an answer may be long.
fn longest_common_subsequence(one: &[&str], other: &[&str]) -> usize {
    let mut before = vec![0; other.len() + 1];
    for left in one {
        let mut line = vec![0; other.len() + 1];
        for (column, right) in other.iter().enumerate() {
            line[column + 1] = if left == right { before[column] + 1 } else { before[column + 1].max(line[column]) };
        }
        before = line;
    }
    before[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with rouge-score.
    #[test]
    fn scores_are_those_of_rouge_score() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/rouge.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let score = rouge_l(case["expected"].as_str().unwrap(), case["answered"].as_str().unwrap());
            let truth = case["score"].as_f64().unwrap();
            assert!((score - truth).abs() < 1e-12, "{score} {case}");
        }
    }
}
