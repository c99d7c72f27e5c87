//! `report.html`: one file that needs nothing else, made from a run folder alone.

use std::path::{Path, PathBuf};

use base64::Engine;
use janus_core::output::write_file;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::chart::{Chart, Series, Style, escape, short};
use super::figures::{Pictures, boxes, bytes, confusion, memory};
use super::record::{Record, Step};
use super::samples::Sample;
use crate::error::Result;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Times at which samples are shown: the first, the last, and some between.
const MAX_TIMES: usize = 8;
/// Rows whose samples are shown.
const MAX_SAMPLED_ROWS: usize = 32;
/// Charts of tables.
const MAX_CHARTS: usize = 16;

/// Reads a run folder and writes its `report.html`.
///
/// # Errors
/// No run there, or files that cannot be read or written.
pub fn write_report(folder: &Path) -> Result<PathBuf> {
    let record = Record::read(folder)?;
    let path = folder.join("report.html");
    let page = page(&record);
    write_file(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}

/// The page of a run.
pub fn page(record: &Record) -> String {
    let name = record.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let title = escape(&name);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT));
    let mut pictures = Pictures::default();
    let parts = [
        lead(record, &title),
        curves(record),
        rates(record),
        memory_section(record),
        evaluations(record),
        extras(record, &mut pictures),
        samples(record, &mut pictures),
        rejected(record),
        about(record),
    ];
    let left_out = match pictures.left_out {
        0 => String::new(),
        count => format!(
            "<p>{count} pictures are left out, for the page would be too large; they lie in <code>samples</code>.</p>"
        ),
    };
    // The policy lets this one script run and loads nothing: whatever a row holds stays text.
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
         <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
         script-src 'sha256-{hash}'\">\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n{}<footer>{left_out}<p>Written by janus from the run folder alone; \
         <code>janus report</code> writes it again.</p></footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        parts.concat()
    )
}

fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

fn fact<'a>(record: &'a Record, path: &[&str]) -> Option<&'a Value> {
    at(record.facts.as_ref()?, path)
}

fn fact_text(record: &Record, path: &[&str]) -> Option<String> {
    match fact(record, path)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            (!texts.is_empty()).then(|| texts.join(" "))
        }
        Value::Null | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}

/// Name, state and the figures that matter most.
fn lead(record: &Record, title: &str) -> String {
    let done = record.steps.last().map_or(0, |step| step.step);
    let planned = fact(record, &["plan", "steps"]).and_then(Value::as_u64);
    let finished = fact(record, &["measured_peak_bytes"]).is_some_and(Value::is_u64);
    let state = match planned {
        _ if finished => "<span class=state>finished</span>".to_owned(),
        Some(planned) => format!("<span class=\"state open\">step {done} of {planned}</span>"),
        None => format!("<span class=\"state open\">step {done}</span>"),
    };
    let mut about: Vec<String> = fact_text(record, &["base"]).into_iter().collect();
    if let (Some(trainable), Some(total)) = (
        fact(record, &["plan", "trainable_parameters"]).and_then(Value::as_f64),
        fact(record, &["plan", "total_parameters"]).and_then(Value::as_f64),
    ) {
        about.push(format!("{} of {} parameters trained", count(trainable), count(total)));
    }
    let tables = fact(record, &["plan", "tables"]).and_then(Value::as_array).into_iter().flatten();
    let tables = tables.filter_map(|table| {
        let rows = table.get("rows")?.as_u64()?;
        Some(format!("{} ({}, {rows} rows)", table.get("name")?.as_str()?, table.get("task")?.as_str()?))
    });
    about.extend(tables.take(6));
    let mut cards = Vec::new();
    let after = record.after();
    for (table, figures) in after.into_iter().flatten().take(4) {
        let before = record.before().and_then(|before| before.get(table));
        for metric in ["loss", "exact_match", "accuracy", "dice", "box_iou"] {
            let Some(now) = figures.get(metric).and_then(Value::as_f64) else { continue };
            let was = before.and_then(|before| before.get(metric)).and_then(Value::as_f64);
            let was = was.map(|was| format!("<s>{} → </s>", rounded(was))).unwrap_or_default();
            let name = format!("{} {}", escape(table), metric.replace('_', " "));
            cards.push(format!("<div><dt>{name}, held out</dt><dd>{was}{}</dd></div>", rounded(now)));
        }
    }
    if after.is_none()
        && let (Some(first), Some(last)) = (record.steps.first(), record.steps.last())
    {
        let (first, last) = (rounded(first.loss), rounded(last.loss));
        cards.push(format!("<div><dt>loss in training</dt><dd><s>{first} → </s>{last}</dd></div>"));
    }
    cards.push(format!("<div><dt>steps</dt><dd>{done}</dd></div>"));
    let seconds: f64 =
        record.steps.iter().map(|step| step.tokens / step.tokens_per_second).filter(|s| s.is_finite()).sum();
    if seconds > 0.0 {
        cards.push(format!("<div><dt>time in steps</dt><dd>{}</dd></div>", duration(seconds)));
    }
    if record.measured_peak_bytes() > 0 {
        cards.push(format!("<div><dt>peak memory</dt><dd>{}</dd></div>", bytes(record.measured_peak_bytes())));
    }
    let notice = match record.unreadable_lines {
        0 => String::new(),
        lines => format!("<p class=notice>{lines} lines of metrics.jsonl cannot be read and are missing here.</p>"),
    };
    format!(
        "<header><h1>{title}{state}</h1><p>{}</p></header>\n<main>\n<dl class=lead>{}</dl>{notice}\n",
        escape(&about.join(" · ")),
        cards.concat()
    )
}

/// Loss of each table, in training and held out.
fn curves(record: &Record) -> String {
    let mut charts = Vec::new();
    for (table, points) in record.losses.iter().take(MAX_CHARTS) {
        let points = points.iter().map(|(step, loss)| (*step as f64, *loss)).collect();
        let mut held_out: Vec<(f64, f64)> = Vec::new();
        for evaluation in &record.evaluations {
            let figures = evaluation.after.as_ref().or(evaluation.before.as_ref());
            let loss = figures.and_then(|figures| figures.get(table)?.get("loss")?.as_f64());
            held_out.extend(loss.map(|loss| (evaluation.step as f64, loss)));
        }
        let mut series = vec![Series { name: "training".into(), points, style: Style::Smooth }];
        if !held_out.is_empty() {
            series.push(Series { name: "held out".into(), points: held_out, style: Style::Dots });
        }
        let chart = Chart { title: table.clone(), series, may_be_logarithmic: false, from_zero: false };
        charts.extend(chart.html());
    }
    section("Loss by table", &grid("grid2", &charts))
}

/// Learning rate, gradient norm, throughput.
fn rates(record: &Record) -> String {
    let chart = |title: &str, value: fn(&Step) -> f64, style: Style, may_be_logarithmic: bool| {
        let points = record.steps.iter().map(|step| (step.step as f64, value(step))).collect();
        let series = vec![Series { name: "last".into(), points, style }];
        Chart { title: title.to_owned(), series, may_be_logarithmic, from_zero: true }.html()
    };
    // Heads on a picture's features read no tokens.
    let reads = record.steps.iter().any(|step| step.tokens > 0.0);
    let charts: Vec<String> = [
        chart("Learning rate", |step| step.lr, Style::Exact, false),
        chart("Gradient norm", |step| step.grad_norm, Style::Smooth, true),
        chart("Tokens per second", |step| step.tokens_per_second, Style::Smooth, false).filter(|_| reads),
    ]
    .into_iter()
    .flatten()
    .collect();
    section("Along the way", &grid("grid3", &charts))
}

fn memory_section(record: &Record) -> String {
    let parts: Vec<(String, u64)> = fact(record, &["plan", "predicted_memory"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, bytes)| Some((name.clone(), bytes.as_u64()?)))
        .collect();
    section("Memory", &memory(&parts, record.measured_peak_bytes()).unwrap_or_default())
}

/// Whether more of a figure is better, where that is known.
fn more_is_better(metric: &str) -> Option<bool> {
    let named = |names: &[&str]| names.iter().any(|name| metric.contains(name));
    match metric {
        _ if metric == "frequency_loss" => None,
        _ if named(&["loss", "perplexity", "lpips", "fid", "error"]) => Some(false),
        _ if named(&["accuracy", "match", "dice", "rouge", "bleu", "iou", "map", "recall", "precision", "f1"]) => {
            Some(true)
        }
        _ => None,
    }
}

fn evaluations(record: &Record) -> String {
    let Some(shown) = record.after().or(record.before()) else { return String::new() };
    let (before, after) = (record.before(), record.after());
    let number = |from: Option<&Map<String, Value>>, table: &str, metric: &str| {
        from.and_then(|from| from.get(table)?.get(metric)?.as_f64())
    };
    let mut rows = String::new();
    for (table, figures) in shown {
        rows.push_str(&format!("<tr class=table><th colspan=4>{}</th></tr>", escape(table)));
        for (metric, _) in figures.as_object().into_iter().flatten().filter(|(_, value)| value.is_number()) {
            let (was, now) = (number(before, table, metric), number(after, table, metric));
            let cell = |value: Option<f64>| value.map(short).unwrap_or_default();
            let change = match (was, now) {
                (Some(was), Some(now)) if was != now => {
                    let kind = match more_is_better(metric) {
                        Some(more) if more == (now > was) => "good",
                        Some(_) => "bad",
                        None => "soft",
                    };
                    format!(
                        "<span class={kind}>{}{}</span>",
                        if now > was { "+" } else { "−" },
                        short((now - was).abs())
                    )
                }
                _ => String::new(),
            };
            rows.push_str(&format!(
                "<tr><td>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{change}</td></tr>",
                escape(&metric.replace('_', " ")),
                cell(was),
                cell(now)
            ));
        }
    }
    section(
        "Held-out rows",
        &format!(
            "<div class=scroll><table class=figures><thead><tr><th></th><th class=n>base</th><th class=n>with adapter</th>\
             <th class=n>change</th></tr></thead><tbody>{rows}</tbody></table></div>"
        ),
    )
}

/// Confusion matrices and boxes, where figures have them.
fn extras(record: &Record, pictures: &mut Pictures) -> String {
    let Some(figures) = record.after().or(record.before()) else { return String::new() };
    let tables = || figures.iter().filter_map(|(table, figures)| Some((table, figures.as_object()?)));
    let matrices: Vec<String> = tables().filter_map(|(table, figures)| confusion(table, figures)).collect();
    let boxed: Vec<String> = tables().filter_map(|(table, figures)| boxes(record, pictures, table, figures)).collect();
    section("Confusion", &grid("grid2", &matrices)) + &section("Boxes", &boxed.concat())
}

/// What the model said and drew over time.
fn samples(record: &Record, pictures: &mut Pictures) -> String {
    let times = record.samples.len();
    let chosen: Vec<&(u64, Vec<Sample>)> = if times <= MAX_TIMES {
        record.samples.iter().collect()
    } else {
        (0..MAX_TIMES).filter_map(|i| record.samples.get(i * (times - 1) / (MAX_TIMES - 1))).collect()
    };
    let Some((_, last)) = chosen.last() else { return String::new() };
    let mut html = String::new();
    for shown in last.iter().take(MAX_SAMPLED_ROWS) {
        let of_row = || {
            chosen.iter().filter_map(|(step, samples)| {
                let same = |sample: &&Sample| sample.table == shown.table && sample.row == shown.row;
                Some((*step, samples.iter().find(same)?))
            })
        };
        let own = match &shown.image {
            Some(name) => pictures.img(record, name, "the row's picture"),
            None => "<span class=none>no picture</span>".into(),
        };
        html.push_str(&format!(
            "<div class=sample><div class=own>{own}</div><div><small>{}, row {}</small></div><div class=asked>{}</div>",
            escape(&shown.table),
            shown.row,
            escape(&shown.prompt)
        ));
        let mut said = String::new();
        if let Some(expected) = &shown.expected {
            said.push_str(&format!("<tr><th>expected</th><td>{}</td></tr>", escape(expected)));
        }
        for (step, sample) in of_row() {
            let Some(answer) = &sample.answer else { continue };
            let matches = sample.expected.as_deref().is_some_and(|expected| expected.trim() == answer.trim());
            let kind = if matches { " class=match" } else { "" };
            let answer =
                if answer.trim().is_empty() { "<span class=soft>nothing</span>".into() } else { escape(answer) };
            said.push_str(&format!("<tr><th>step {step}</th><td{kind}>{answer}</td></tr>"));
        }
        let mut drawn = String::new();
        for (step, sample) in of_row() {
            if let Some(name) = &sample.picture {
                let picture = pictures.img(record, name, &format!("drawn after step {step}"));
                drawn.push_str(&format!("<figure>{picture}step {step}</figure>"));
            }
        }
        if !said.is_empty() {
            html.push_str(&format!("<table class=said>{said}</table>"));
        }
        if !drawn.is_empty() {
            html.push_str(&format!("<div class=drawn>{drawn}</div>"));
        }
        html.push_str("</div>\n");
    }
    section("What it says and draws", &html)
}

fn rejected(record: &Record) -> String {
    if record.rejected.is_empty() {
        return String::new();
    }
    let total: usize = record.rejected.iter().map(|(_, rows)| rows).sum();
    let rows: Vec<String> = (record.rejected.iter())
        .map(|(reason, rows)| format!("<tr><td>{}</td><td class=n>{rows}</td></tr>", escape(reason)))
        .collect();
    section(
        "Rows left out",
        &format!(
            "<div class=scroll><table class=figures><thead><tr><th>reason</th><th class=n>rows</th></tr></thead>\
             <tbody>{}</tbody></table></div><p class=soft>{total} in all, each in <code>rejected.jsonl</code>.</p>",
            rows.concat()
        ),
    )
}

/// Recipe and versions.
fn about(record: &Record) -> String {
    let named = [
        ("janus", &["janus"][..]),
        ("candle", &["candle"]),
        ("built for", &["target"]),
        ("with", &["target_features"]),
        ("processor", &["cpu"]),
        ("which has", &["cpu_features"]),
        ("threads", &["threads"]),
        ("device", &["device"]),
        ("recomputed", &["plan", "recompute"]),
    ];
    let facts: Vec<String> = named
        .into_iter()
        .filter_map(|(name, path)| Some(format!("<dt>{name}</dt><dd>{}</dd>", escape(&fact_text(record, path)?))))
        .collect();
    let mut html = String::new();
    if let Some(recipe) = &record.recipe {
        html.push_str(&format!("<details><summary>Recipe</summary><pre>{}</pre></details>", escape(recipe.trim_end())));
    }
    if !facts.is_empty() {
        html.push_str(&format!(
            "<details open><summary>Versions and machine</summary><dl class=facts>{}</dl></details>",
            facts.concat()
        ));
    }
    section("How it was made", &html) + "</main>\n"
}

fn section(heading: &str, content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<section><h2>{heading}</h2>{content}</section>\n") }
}

fn grid(class: &str, figures: &[String]) -> String {
    if figures.is_empty() { String::new() } else { format!("<div class={class}>{}</div>", figures.concat()) }
}

/// Three digits that matter.
fn rounded(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        size if (0.001..100.0).contains(&size) => format!("{value:.3}"),
        _ => short(value),
    }
}

fn count(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value => format!("{value}"),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOSTILE: &str = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{202e}";

    /// A run folder in which everything that can be hostile is.
    fn hostile() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let figures = json!({ HOSTILE: {
            "loss": 1.0, HOSTILE: 2.0, "labels": [HOSTILE], "confusion": [[1]],
            "boxes": [{ "image": HOSTILE, "width": 9, "height": 9, "found": [{ "box": [1, 2, 3, 4], "label": HOSTILE }] }],
        }});
        let sample = json!({ "table": HOSTILE, "task": HOSTILE, "row": 0, "prompt": HOSTILE, "image": HOSTILE,
            "expected": HOSTILE, "answer": HOSTILE, "picture": HOSTILE });
        let lines = [
            json!({ "step": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "tokens_per_second": 5.0,
                "peak_rss_bytes": 1000, "losses": { HOSTILE: 2.0 } }),
            json!({ "step": 2, "loss": null, "losses": { HOSTILE: "text" } }),
            json!({ "step": 2, "eval": { "before": figures, "after": figures } }),
            json!({ "step": 2, "samples": [sample, 7, { "row": -1 }] }),
        ];
        write("metrics.jsonl", lines.iter().map(|line| format!("{line}\n")).collect());
        write("rejected.jsonl", json!({ "file": HOSTILE, "reason": HOSTILE }).to_string() + "\n");
        write("recipe.toml", HOSTILE.to_owned());
        let facts = json!({ "janus": HOSTILE, "cpu": HOSTILE, "base": HOSTILE, "target_features": [HOSTILE],
            "plan": { "steps": 2, "tables": [{ "name": HOSTILE, "task": HOSTILE, "rows": 3 }],
                "predicted_memory": { HOSTILE: 3, "base": u64::MAX } } });
        write("run.json", facts.to_string());
        folder
    }

    #[test]
    fn whatever_a_row_holds_stays_text() {
        let folder = hostile();
        let path = write_report(folder.path()).unwrap();
        let page = std::fs::read_to_string(path).unwrap();
        assert_eq!(page.matches("<script").count(), 1, "only the page's own");
        assert_eq!(page.matches("</script").count(), 1);
        assert_eq!(page.matches("<img").count(), 0, "no picture is there");
        assert!(!page.contains('\u{202e}') && !page.contains("'><"));
        assert!(page.matches("&lt;/script&gt;").count() >= 12, "the texts are shown");
        for section in ["Loss by table", "Along", "Memory", "Held-out", "Confusion", "Boxes", "says", "left out", "How"]
        {
            assert!(page.contains(section), "no section {section}");
        }
        for outside in ["http:", "https:", "//cdn", "@import", "url("] {
            assert!(!page.contains(outside), "the page loads {outside}");
        }
    }

    #[test]
    fn a_run_that_has_just_begun_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
        let page = page(&Record::read(folder.path()).unwrap());
        assert!(page.contains("step 0") && !page.contains("NaN"));
        let none = tempfile::tempdir().unwrap();
        assert!(write_report(none.path()).is_err());
        assert_eq!(std::fs::read_dir(none.path()).unwrap().count(), 0);
    }

    #[test]
    fn better_is_known_by_name() {
        assert_eq!(more_is_better("loss"), Some(false));
        assert_eq!(more_is_better("exact_match"), Some(true));
        assert_eq!((more_is_better("rows"), more_is_better("frequency_loss")), (None, None));
    }

    #[test]
    fn samples_over_time_are_shown_by_row_and_step() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("samples/step-9")).unwrap();
        image::RgbImage::new(7, 5).save(folder.path().join("samples/step-9/0-0.png")).unwrap();
        let line = |step: u64| {
            json!({ "step": step, "samples": [
                { "table": "q", "row": 0, "prompt": "what?", "expected": "a part", "answer": format!("answer {step}") },
                { "table": "p", "row": 0, "prompt": "draw", "picture": "samples/step-9/0-0.png" },
            ]})
        };
        let lines: String = (0..20).map(|number| format!("{}\n", line(number * 9))).collect();
        std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let page = page(&Record::read(folder.path()).unwrap());
        assert_eq!(page.matches("<tr><th>step").count(), MAX_TIMES);
        assert!(page.contains("<td>answer 0</td>") && page.contains("<td>answer 171</td>"));
        assert_eq!(page.matches("<img src=\"data:image/png;base64,").count(), MAX_TIMES);
    }
}
