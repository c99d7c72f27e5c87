//! What the model said and drew of some rows over time.

use super::chart::escape;
use super::figures::Pictures;
use super::held_out::across;
use super::page::section;
use super::record::Record;
use super::samples::Sample;

/// Times at which samples are shown: the first, the last, and some between.
pub(super) const MAX_TIMES: usize = 8;
/// Rows whose samples are shown.
const MAX_SAMPLED_ROWS: usize = 32;

/// From which overlap on a box or a mask counts as right, as it does in mAP at 0.5.
const ENOUGH: f64 = 0.5;

/// One row's samples by step.
type OfRow<'a> = Vec<(u64, &'a Sample)>;

/// Whether an answer is the expected one; `None` where it is no text to compare.
fn is_right(sample: &Sample) -> Option<bool> {
    let expected = sample.expected.as_deref().filter(|expected| !expected.trim().is_empty())?;
    if let Some(score) = sample.score {
        return Some(score >= ENOUGH);
    }
    let answer = sample.answer.as_deref().filter(|_| sample.picture.is_none())?;
    Some(expected.trim() == answer.trim())
}

/// Whether a task has a head, of which the base has none: at the start it is random.
fn has_head(sample: &Sample) -> bool {
    ["classify", "locate", "segment"].contains(&sample.task.as_str())
}

/// The step of a sample in words.
fn when(record: &Record, step: u64, sample: &Sample) -> String {
    match step {
        0 if has_head(sample) => "start".into(),
        0 => "base".into(),
        step if record.left.as_ref().is_some_and(|left| left.ending.step == step) => format!("step {step}, saved"),
        step => format!("step {step}"),
    }
}

/// The samples, up to those of the adapter that the run left.
pub(super) fn samples(record: &Record, pictures: &mut Pictures) -> String {
    let Some((end, last)) = record.left_samples() else { return String::new() };
    let all: Vec<&(u64, Vec<Sample>)> = record.samples.iter().filter(|(step, _)| step <= end).collect();
    let chosen: Vec<&(u64, Vec<Sample>)> = match all.len() {
        times if times <= MAX_TIMES => all,
        times => (0..MAX_TIMES).filter_map(|i| all.get(i * (times - 1) / (MAX_TIMES - 1)).copied()).collect(),
    };
    let mut html = String::new();
    let mut rest = &last[..last.len().min(MAX_SAMPLED_ROWS)];
    while let Some(first) = rest.first() {
        let own = rest.iter().take_while(|sample| sample.table == first.table).count();
        let (table, others) = rest.split_at(own);
        rest = others;
        let rows: Vec<OfRow<'_>> = table.iter().map(|shown| of_row(&chosen, shown)).collect();
        let kind = if table.iter().any(|sample| sample.picture.is_some()) { " wide" } else { "" };
        let cards: String = table.iter().zip(&rows).map(|(shown, row)| card(record, pictures, shown, row)).collect();
        html.push_str(&format!(
            "<h3 class=group>{} <small>{}</small></h3><div class=\"cards{kind}\">{cards}</div>\n",
            escape(&first.table),
            score(&rows)
        ));
    }
    section("What it says and draws", &html)
}

fn of_row<'a>(chosen: &[&'a (u64, Vec<Sample>)], shown: &Sample) -> OfRow<'a> {
    let same = |sample: &&Sample| sample.table == shown.table && sample.row == shown.row;
    chosen.iter().filter_map(|(step, samples)| Some((*step, samples.iter().find(same)?))).collect()
}

/// How many of these rows are answered as expected, at the end and at the start.
fn score(rows: &[OfRow<'_>]) -> String {
    let judged = |at: fn(&OfRow<'_>) -> Option<bool>| {
        let judged: Vec<bool> = rows.iter().filter_map(at).collect();
        (judged.iter().filter(|right| **right).count(), judged.len())
    };
    let (right, count) = judged(|row| is_right(row.last()?.1));
    if count == 0 {
        return String::new();
    }
    let (before, counted) = judged(|row| is_right(row.first().filter(|(step, _)| *step == 0)?.1));
    let whose = if rows.iter().flatten().any(|(_, sample)| has_head(sample)) { "at the start" } else { "by the base" };
    let base = if counted == count { format!(", {before} {whose}") } else { String::new() };
    let is_scored = rows.iter().flatten().any(|(_, sample)| sample.score.is_some());
    let rightly = if is_scored { "overlap what is expected by half or more" } else { "as expected" };
    format!("{right} of these {count} {rightly}{base}")
}

/// One row: what was asked, what is expected, what was answered and drawn.
fn card(record: &Record, pictures: &mut Pictures, shown: &Sample, row: &OfRow<'_>) -> String {
    let is_drawn = row.iter().any(|(_, sample)| sample.picture.is_some());
    let own = match &shown.image {
        Some(name) => pictures.img(record, name, "the row's picture"),
        None if is_drawn => String::new(),
        None => "<span class=none>no picture</span>".into(),
    };
    let asked = if shown.prompt.is_empty() {
        String::new()
    } else {
        format!("<div class=asked>{}</div>", escape(&shown.prompt))
    };
    let said = said(record, shown, row);
    let number = format!("<small class=row>row {}</small>", shown.row);
    if !is_drawn {
        return format!("<div class=card><div class=own>{own}</div><div class=text>{asked}{said}{number}</div></div>");
    }
    let mut drawn = Vec::new();
    if let Some(source) = &shown.source {
        let picture = pictures.img(record, source, "the source");
        drawn.push(format!("<figure>{picture}<figcaption>source</figcaption></figure>"));
    }
    if !own.is_empty() {
        let whose = if shown.source.is_some() { "expected" } else { "the row’s" };
        drawn.push(format!("<figure>{own}<figcaption>{whose}</figcaption></figure>"));
    }
    if let Some(expected) = &shown.expected_picture {
        let picture = pictures.img(record, expected, "what is expected");
        drawn.push(format!("<figure>{picture}<figcaption>expected</figcaption></figure>"));
    }
    for (step, sample) in row {
        if let Some(name) = &sample.picture {
            let when = when(record, *step, sample);
            let picture = pictures.img(record, name, &when);
            drawn.push(format!("<figure>{picture}<figcaption>{when}</figcaption></figure>"));
        }
    }
    let (across, drawn) = (across(drawn.len(), 4), drawn.concat());
    format!("<div class=\"card drawn\">{asked}<div class=\"strip across{across}\">{drawn}</div>{said}{number}</div>")
}

/// The expected answer, and those that were given, each with the steps at which it was.
fn said(record: &Record, shown: &Sample, row: &OfRow<'_>) -> String {
    // First and last step of each answer that was given several times in turn.
    let mut answers: Vec<(u64, u64, &Sample)> = Vec::new();
    for (step, sample) in row.iter().filter(|(_, sample)| sample.answer.is_some()) {
        match answers.last_mut() {
            // The base's own stands by itself.
            Some((first, last, before)) if before.answer == sample.answer && *first > 0 => *last = *step,
            _ => answers.push((*step, *step, sample)),
        }
    }
    let mut html = String::new();
    if let Some(expected) = shown.expected.as_deref().filter(|expected| !expected.trim().is_empty()) {
        html.push_str(&format!("<tr><th>expected</th><td>{}</td></tr>", escape(expected)));
    }
    for (first, last, sample) in answers {
        let when = match first == last {
            true => when(record, first, sample),
            false => format!("step {first}–{}", when(record, last, sample).trim_start_matches("step ")),
        };
        let (kind, mark) = match is_right(sample) {
            Some(true) => (" class=good", "<span title=\"as expected\">✓</span>\u{a0}"),
            Some(false) => (" class=bad", "<span title=\"not as expected\">✗</span>\u{a0}"),
            None => ("", ""),
        };
        let answer = match sample.answer.as_deref().unwrap_or_default() {
            answer if answer.trim().is_empty() => "<span class=soft>nothing</span>".into(),
            answer => escape(answer),
        };
        let score = match (sample.score, sample.task.as_str()) {
            (None, _) => String::new(),
            (Some(score), "segment") => format!("Dice {score:.2} · "),
            (Some(score), _) => format!("IoU {score:.2} · "),
        };
        html.push_str(&format!("<tr><th>{when}</th><td{kind}>{mark}{score}{answer}</td></tr>"));
    }
    if html.is_empty() { html } else { format!("<table class=said>{html}</table>") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record(lines: &[Value]) -> (tempfile::TempDir, Record) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("samples/step-9")).unwrap();
        image::RgbImage::new(7, 5).save(folder.path().join("samples/step-9/0-0.png")).unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let record = Record::read(folder.path()).unwrap();
        (folder, record)
    }

    #[test]
    fn samples_over_time_are_shown_by_row_and_step() {
        let line = |step: u64| {
            json!({ "step": step, "samples": [
                { "table": "q", "row": 0, "prompt": "what?", "expected": "a part", "answer": format!("answer {step}") },
                { "table": "p", "row": 0, "prompt": "draw", "picture": "samples/step-9/0-0.png" },
            ]})
        };
        let (_folder, record) = record(&(0..20).map(|number| line(number * 9)).collect::<Vec<_>>());
        let html = samples(&record, &mut Pictures::default());
        assert_eq!(html.matches("<tr><th>step").count(), MAX_TIMES - 1, "and the base's");
        assert!(html.contains("answer 0</td>") && html.contains("answer 171</td>"));
        assert_eq!(html.matches("<img src=\"data:image/png;base64,").count(), MAX_TIMES);
    }

    #[test]
    fn boxes_and_masks_have_scores_and_what_is_expected_stands_beside() {
        for (task, name) in [("locate", "IoU"), ("segment", "Dice")] {
            let sample = |row: u64, score: f64| {
                json!({ "table": "t", "task": task, "row": row, "expected": "x", "answer": "y", "score": score,
                    "picture": "samples/step-9/0-0.png", "expected_picture": "samples/step-9/0-0.png" })
            };
            let lines = [
                json!({ "step": 0, "samples": [sample(0, 0.1), sample(1, 0.0)] }),
                json!({ "step": 9, "samples": [sample(0, 0.5), sample(1, 0.49)] }),
            ];
            let (_folder, record) = record(&lines);
            let html = samples(&record, &mut Pictures::default());
            assert!(html.contains("1 of these 2 overlap what is expected by half or more, 0 at the start"), "{html}");
            assert!(html.contains(&format!("{name} 0.50 · y")) && html.contains(&format!("{name} 0.49 · y")), "{html}");
            assert_eq!((html.matches('✓').count(), html.matches('✗').count()), (1, 3), "{html}");
            assert_eq!(html.matches("<figcaption>expected<").count(), 2, "{html}");
        }
        let edit = json!({ "table": "e", "task": "edit", "row": 0, "prompt": "Polish it.", "source": "samples/step-9/0-0.png",
            "image": "samples/step-9/0-0.png", "picture": "samples/step-9/0-0.png" });
        let (_folder, record) = record(&[json!({ "step": 9, "samples": [edit] })]);
        let html = samples(&record, &mut Pictures::default());
        let (source, expected) = (html.find(">source<").unwrap(), html.find(">expected<").unwrap());
        assert!(source < expected && html.matches("<img").count() == 3, "{html}");
    }

    #[test]
    fn right_and_wrong_are_marked() {
        let sample = |row: u64, answer: &str| json!({ "table": "q", "row": row, "expected": "red", "answer": answer });
        let lines = [
            json!({ "step": 0, "samples": [sample(0, "green"), sample(1, "red")] }),
            json!({ "step": 5, "samples": [sample(0, "red "), sample(1, "blue")] }),
            json!({ "step": 9, "samples": [sample(0, "red "), sample(1, "red")] }),
        ];
        let (_folder, record) = record(&lines);
        let html = samples(&record, &mut Pictures::default());
        assert!(html.contains("2 of these 2 as expected, 1 by the base"), "{html}");
        let cell = |when: &str, kind: &str| html.contains(&format!("<tr><th>{when}</th><td class={kind}>"));
        assert!(
            cell("base", "bad") && cell("base", "good") && cell("step 5–9", "good") && cell("step 5", "bad"),
            "{html}"
        );
        assert_eq!((html.matches('✓').count(), html.matches('✗').count()), (3, 2), "{html}");
    }
}
