//! What a run's model answered and drew, without and with its adapter, in lines.

use super::report;
use crate::beginning::beginning;
use crate::report::record::Record;
use crate::report::samples::Sample;
use crate::visible;

/// Characters of a text that are printed.
const MAX_CHARACTERS: usize = 44;

/// Answers in a table and pictures by their paths; `None` where a run sampled nothing.
pub(super) fn text(record: &Record) -> Option<String> {
    let (last_step, last) = record.left_samples()?;
    let first = record.samples.first().filter(|(step, _)| step < last_step);
    let before = |sample: &Sample| {
        let same = |other: &&Sample| other.table == sample.table && other.row == sample.row;
        first.and_then(|(_, samples)| samples.iter().find(same))
    };
    let mut answers = Vec::new();
    let mut pictures = Vec::new();
    for sample in last {
        let earlier = before(sample);
        if let Some(answer) = &sample.answer {
            let mut row = vec![asked(sample), short(sample.expected.as_deref().unwrap_or_default())];
            row.extend(first.map(|_| short(earlier.and_then(|earlier| earlier.answer.as_deref()).unwrap_or_default())));
            row.push(short(answer));
            answers.push(row);
        }
        let drawn = [earlier.and_then(|earlier| earlier.picture.as_ref()), sample.picture.as_ref()];
        let drawn: Vec<String> =
            drawn.into_iter().flatten().map(|name| record.folder.join(name).display().to_string()).collect();
        if !drawn.is_empty() {
            // A head marks what its answer tells of.
            let made = if sample.answer.is_some() { "marked by" } else { "drawn of" };
            pictures.push(format!("{made} `{}`: {}", asked(sample), drawn.join(" -> ")));
        }
    }
    let mut parts = Vec::new();
    if !answers.is_empty() {
        let headings: &[&str] = match first {
            Some(_) => &["asked", "expected", "base", "with adapter"],
            None => &["asked", "expected", "with adapter"],
        };
        parts.push(report::table(headings, &answers));
    }
    parts.extend(pictures);
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// The question or prompt; of a head, which is asked nothing, its table's name.
fn asked(sample: &Sample) -> String {
    short(if sample.prompt.is_empty() { &sample.table } else { &sample.prompt })
}

/// A text's beginning, on one line, with nothing in it that a terminal would obey.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    beginning(&visible::one_line(&line), MAX_CHARACTERS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(samples: &str) -> Record {
        let folder = tempfile::tempdir().unwrap();
        let step = r#"{"step":1,"epoch":1.0,"loss":1.0,"lr":0.1,"grad_norm":1.0,"tokens":1}"#;
        fs_err::write(folder.path().join("metrics.jsonl"), format!("{step}\n{samples}")).unwrap();
        Record::read(folder.path()).unwrap()
    }

    #[test]
    fn answers_stand_beside_the_base_s_and_pictures_are_named() {
        let sample = |answer: &str, picture: &str| {
            format!(
                r#"[{{"table":"q","task":"understand","row":0,"prompt":"What\nis it?","expected":"pit","answer":"{answer}"}},
                {{"table":"p","task":"generate","row":0,"prompt":"a pit","picture":"samples/{picture}.png"}}]"#
            )
            .replace("\n", "")
        };
        let both = format!(
            "{{\"step\":0,\"samples\":{}}}\n{{\"step\":1,\"samples\":{}}}\n",
            sample("ring", "step-0"),
            sample("pit", "step-1")
        );
        let text = text(&record(&both)).unwrap();
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["asked", "expected", "base", "with", "adapter"]);
        assert_eq!(words[1], ["What", "is", "it?", "pit", "ring", "pit"]);
        assert!(text.contains("drawn of `a pit`: ") && text.contains("step-0.png -> "), "{text}");

        let once = format!("{{\"step\":1,\"samples\":{}}}\n", sample("pit", "step-1"));
        let text = super::text(&record(&once)).unwrap();
        assert!(!text.contains("base") && !text.contains("->"), "{text}");
        assert_eq!(super::text(&record("")), None);
    }

    #[test]
    fn what_a_head_found_stands_under_its_table_s_name() {
        let sample =
            r#"{"table":"places","task":"locate","row":0,"answer":"pit at 1, 2, 3, 4","picture":"samples/0.png"}"#;
        let text = text(&record(&format!("{{\"step\":1,\"samples\":[{sample}]}}\n"))).unwrap();
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..3], ["places", "pit", "at"], "{text}");
        assert!(text.contains("marked by `places`: "), "{text}");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(short("kurz und gut"), "kurz und gut");
        assert_eq!(short("\u{1b}[2J\u{202e} pit"), "\\u001b[2J\\u202e pit");
        let long = "ä".repeat(50);
        assert_eq!(short(&long), format!("{}…", "ä".repeat(MAX_CHARACTERS)));
    }
}
