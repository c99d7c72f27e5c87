//! `report.html`: one file that needs nothing else, made from a run folder alone.

use std::path::PathBuf;

use base64::Engine;
use janus_core::directory::Place;
use janus_core::output::write_below;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::chart::{Chart, Series, Style, escape};
use super::command;
use super::figures::{Pictures, boxes, bytes, confusion, memory};
use super::held_out;
use super::record::{Record, Step};
use super::shown;
use crate::error::Result;
use crate::status::duration;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Its name in a run folder.
pub const FILE: &str = "report.html";

/// Charts of tables.
const MAX_CHARTS: usize = 16;
/// Tables that are named in the head.
const MAX_TABLES: usize = 6;

/// Reads a run folder and writes its `report.html`.
///
/// # Errors
/// No run there, or files that cannot be read or written.
pub fn write_report<'a>(folder: impl Into<Place<'a>>) -> Result<PathBuf> {
    let (record, folder) = Record::open(folder)?;
    let page = page(&record);
    write_below(&folder, FILE, |file| file.write_all(page.as_bytes()))?;
    Ok(folder.path().join(FILE))
}

/// The page of a run.
pub fn page(record: &Record) -> String {
    let place = fs_err::canonicalize(&record.folder).unwrap_or_else(|_| record.folder.clone());
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let title = escape(&name);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT));
    let mut pictures = Pictures::default();
    let parts = [
        head(record, &title),
        held_out::tiles(record),
        uses(record),
        curves(record),
        held_out::figures(record),
        extras(record, &mut pictures),
        shown::samples(record, &mut pictures),
        rates(record),
        memory_section(record),
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
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
         <meta name=color-scheme content=\"light dark\">\n<title>{title}</title>\n\
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

/// Name, state, what it is, and which adapter was left for which reason.
fn head(record: &Record, title: &str) -> String {
    let done = record.steps.last().map_or(0, |step| step.step);
    let planned = fact(record, &["plan", "steps"]).and_then(Value::as_u64);
    let finished = record.left.is_some() || fact(record, &["measured_peak_bytes"]).is_some_and(Value::is_u64);
    let stopped = record.left.as_ref().is_some_and(|left| left.ending.stopped_early);
    let state = match planned {
        _ if stopped => "<span class=\"state open\">stopped early</span>".to_owned(),
        _ if finished => "<span class=state>finished</span>".to_owned(),
        Some(planned) => format!("<span class=\"state open\">step {done} of {planned}</span>"),
        None => format!("<span class=\"state open\">step {done}</span>"),
    };
    let notice = match record.unreadable_lines {
        0 => String::new(),
        lines => format!("<p class=notice>{lines} lines of metrics.jsonl cannot be read and are missing here.</p>"),
    };
    let moment = fact_text(record, &["ended"]).or_else(|| {
        let starts = fact(record, &["starts"])?.as_array()?;
        Some(starts.last()?.get("at")?.as_str()?.to_owned())
    });
    let (mut about, tables) = (what(record), tables(record));
    about.extend(moment.as_deref().map(readable));
    about.extend(version(record));
    let lines: String = [about, tables]
        .iter()
        .filter(|line| !line.is_empty())
        .map(|line| format!("<p>{}</p>", escape(&line.join(" · "))))
        .collect();
    format!("<header><h1>{title}{state}</h1>{lines}</header>\n<main>\n{}{notice}\n", ending(record, done))
}

/// Base and size.
fn what(record: &Record) -> Vec<String> {
    let mut about: Vec<String> = fact_text(record, &["base"]).into_iter().collect();
    if let (Some(trainable), Some(total)) = (
        fact(record, &["plan", "trainable_parameters"]).and_then(Value::as_f64),
        fact(record, &["plan", "total_parameters"]).and_then(Value::as_f64),
    ) {
        about.push(format!("{} of {} parameters trained", count(trainable), count(total)));
    }
    about
}

/// Tables with their tasks and rows.
fn tables(record: &Record) -> Vec<String> {
    let tables = || fact(record, &["plan", "tables"]).and_then(Value::as_array).into_iter().flatten();
    let told = tables().filter_map(|table| {
        let rows = table.get("rows")?.as_u64()?;
        Some(format!("{} ({}, {rows} rows)", table.get("name")?.as_str()?, table.get("task")?.as_str()?))
    });
    let more = tables().count().saturating_sub(MAX_TABLES);
    told.take(MAX_TABLES).chain((more > 0).then(|| format!("{more} tables more"))).collect()
}

/// The program and the commit that it was built from.
fn version(record: &Record) -> Option<String> {
    let version = fact_text(record, &["janus"])?;
    Some(match fact_text(record, &["commit"]) {
        Some(commit) => format!("janus {version}, commit {commit}"),
        None => format!("janus {version}"),
    })
}

/// Which adapter this is and why, and what the run took.
fn ending(record: &Record, done: u64) -> String {
    let mut html = String::new();
    if let Some(left) = &record.left {
        let ending = &left.ending;
        let kind = if ending.step < ending.steps || ending.stopped_early { "ending aside" } else { "ending" };
        html.push_str(&format!(
            "<p class=\"{kind}\"><b>The adapter is that of step {}.</b> {}.</p>",
            ending.step,
            escape(&sentence(&ending.reason))
        ));
    }
    let mut brief = vec![format!("<b>{done}</b> {}", if done == 1 { "step" } else { "steps" })];
    let seconds: f64 =
        record.steps.iter().map(|step| step.tokens / step.tokens_per_second).filter(|s| s.is_finite()).sum();
    if seconds > 0.0 {
        brief.push(format!("<b>{}</b> in steps", duration(seconds)));
    }
    if record.measured_peak_bytes() > 0 {
        let predicted = fact(record, &["plan", "predicted_peak_bytes"]).and_then(Value::as_u64);
        let predicted = predicted.map(|predicted| format!(" ({} predicted)", bytes(predicted))).unwrap_or_default();
        brief.push(format!("<b>{}</b> peak memory{predicted}", bytes(record.measured_peak_bytes())));
    }
    if record.after().is_none()
        && let (Some(first), Some(last)) = (record.steps.first(), record.steps.last())
    {
        let [first, last] = [first.loss, last.loss].map(super::scale::short);
        brief.push(format!("loss in training <b>{first} → {last}</b>"));
    }
    let items: String = brief.iter().map(|item| format!("<li>{item}</li>")).collect();
    format!("{html}<ul class=brief>{items}</ul>")
}

/// A reason as the beginning of a sentence, names in backquotes without them.
fn sentence(reason: &str) -> String {
    let reason = reason.replace('`', "");
    let mut letters = reason.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Commands that use the adapter.
fn uses(record: &Record) -> String {
    if record.left.is_none() {
        return String::new();
    }
    let commands: String = (command::uses(record).iter())
        .map(|(what, command)| format!("<dt>{what}</dt><dd><code>{}</code></dd>", escape(command)))
        .collect();
    let content = if commands.is_empty() { commands } else { format!("<dl class=commands>{commands}</dl>") };
    section("Use this adapter", &content)
}

/// What is marked in charts: where the adapter is from, unless it is the last step's.
fn mark(record: &Record) -> Option<&'static str> {
    record.left.as_ref().filter(|left| left.ending.step < left.ending.steps).map(|_| "adapter saved")
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
        let chart = Chart {
            title: table.clone(),
            unit: "loss",
            series,
            may_be_logarithmic: true,
            from_zero: false,
            step: record.adapter_step() as f64,
            mark: mark(record),
        };
        charts.extend(chart.html());
    }
    section("Loss by table", &grid("grid2", &charts))
}

/// Learning rate, gradient norm, throughput.
fn rates(record: &Record) -> String {
    let chart = |title: &str, unit, value: fn(&Step) -> f64, style: Style, may_be_logarithmic: bool| {
        let points = record.steps.iter().map(|step| (step.step as f64, value(step))).collect();
        let step = record.adapter_step();
        let series = vec![Series { name: format!("step {step}"), points, style }];
        let (title, step, mark) = (title.to_owned(), step as f64, mark(record));
        Chart { title, unit, series, may_be_logarithmic, from_zero: true, step, mark }.html()
    };
    // Heads on a picture's features read no tokens.
    let reads = record.steps.iter().any(|step| step.tokens > 0.0);
    let charts: Vec<String> = [
        chart("Learning rate", "rate", |step| step.lr, Style::Exact, false),
        chart("Gradient norm", "norm before clipping", |step| step.grad_norm, Style::Smooth, true),
        chart("Throughput", "tokens per second", |step| step.tokens_per_second, Style::Smooth, false).filter(|_| reads),
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

/// Confusion matrices and boxes, where figures have them.
fn extras(record: &Record, pictures: &mut Pictures) -> String {
    let Some(figures) = record.after().or(record.before()) else { return String::new() };
    let tables = || figures.iter().filter_map(|(table, figures)| Some((table, figures.as_object()?)));
    let matrices: Vec<String> = tables().filter_map(|(table, figures)| confusion(table, figures)).collect();
    let boxed: Vec<String> = tables().filter_map(|(table, figures)| boxes(record, pictures, table, figures)).collect();
    section("Confusion", &grid("grid2", &matrices)) + &section("Boxes", &boxed.concat())
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
            "<table class=reasons><thead><tr><th>reason</th><th class=n>rows</th></tr></thead>\
             <tbody>{}</tbody></table><p class=soft>{total} in all, each in <code>rejected.jsonl</code>.</p>",
            rows.concat()
        ),
    )
}

/// Commands and times, versions and machine, and the recipe.
fn about(record: &Record) -> String {
    let mut facts: Vec<(String, String)> = Vec::new();
    let starts: Vec<&Map<String, Value>> = fact(record, &["starts"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .collect();
    for start in starts {
        let text = |key: &str| start.get(key).and_then(Value::as_str);
        let name = match start.get("after_step").and_then(Value::as_u64) {
            None | Some(0) => "started".to_owned(),
            Some(step) => format!("resumed after step {step}"),
        };
        facts.extend(text("at").map(|at| (name, escape(&readable(at)))));
        facts.extend(text("command").map(|command| ("by".into(), format!("<code>{}</code>", escape(command)))));
    }
    facts.extend(fact_text(record, &["ended"]).map(|at| ("ended".into(), escape(&readable(&at)))));
    facts.extend(version(record).map(|version| ("version".into(), escape(&version))));
    let named = [
        ("candle", &["candle"][..]),
        ("built for", &["target"]),
        ("compiled with", &["target_features"]),
        ("processor", &["cpu"]),
        ("its instructions", &["cpu_features"]),
        ("threads", &["threads"]),
        ("device", &["device"]),
    ];
    let told = named.into_iter().filter_map(|(name, path)| Some((name.into(), escape(&fact_text(record, path)?))));
    facts.extend(told);
    let mut html = String::new();
    if !facts.is_empty() {
        let facts: String = facts.iter().map(|(name, fact)| format!("<dt>{name}</dt><dd>{fact}</dd>")).collect();
        html.push_str(&format!("<dl class=facts>{facts}</dl>"));
    }
    if let Some(recipe) = &record.recipe {
        html.push_str(&format!("<details><summary>Recipe</summary><pre>{}</pre></details>", escape(recipe.trim_end())));
    }
    section("How it was made", &html) + "</main>\n"
}

/// A moment as `run.json` has it, without the seconds.
fn readable(moment: &str) -> String {
    match moment.strip_suffix('Z').and_then(|moment| moment.split_once('T')) {
        Some((day, time)) if time.is_ascii() && time.len() >= 5 => format!("{day} {} UTC", &time[..5]),
        _ => moment.to_owned(),
    }
}

pub(super) fn section(heading: &str, content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<section><h2>{heading}</h2>{content}</section>\n") }
}

fn grid(class: &str, figures: &[String]) -> String {
    if figures.is_empty() { String::new() } else { format!("<div class={class}>{}</div>", figures.concat()) }
}

fn count(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value => format!("{value}"),
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
}
