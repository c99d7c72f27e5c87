//! Figures of rows that were held out: tiles of those that say most, all of them in a table, and what they mean.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::chart::escape;
use super::glossary::{self, COUNTS};
use super::page::section;
use super::record::Record;
use super::scale::short;

/// Tables that have a tile.
const MAX_TILES: usize = 12;

/// The figures of one table, without and with the adapter.
struct Figures<'a> {
    before: Option<&'a Map<String, Value>>,
    after: Option<&'a Map<String, Value>>,
}

impl<'a> Figures<'a> {
    fn of(record: &'a Record, table: &str) -> Self {
        let own = |from: Option<&'a Map<String, Value>>| from.and_then(|from| from.get(table)?.as_object());
        Self { before: own(record.before()), after: own(record.after()) }
    }

    fn was(&self, key: &str) -> Option<f64> {
        self.before?.get(key)?.as_f64()
    }

    fn now(&self, key: &str) -> Option<f64> {
        self.after?.get(key)?.as_f64()
    }

    /// What an answer would get that looks at nothing.
    fn blind(&self, key: &str) -> Option<f64> {
        let blind = glossary::lookup(key)?.blind?;
        self.now(blind).or_else(|| self.was(blind))
    }
}

/// A figure with as many digits as its neighbours in a column.
fn figure(value: f64) -> String {
    match value.abs() {
        size if (0.01..10.0).contains(&size) => format!("{value:.3}"),
        size if (10.0..100.0).contains(&size) => format!("{value:.2}"),
        size if (100.0..1000.0).contains(&size) => format!("{value:.1}"),
        _ => short(value),
    }
}

/// From one figure to another, with an arrow up or down, and whether that is good; nothing where there is no other.
fn change(key: &str, was: Option<f64>, now: Option<f64>) -> String {
    let (Some(was), Some(now)) = (was, now) else { return String::new() };
    if !glossary::is_measured(key, was) || !glossary::is_measured(key, now) {
        return "<span class=soft>not measurable</span>".into();
    }
    if was == now {
        return "<span class=soft>the same</span>".into();
    }
    let (arrow, size) = (if now > was { "▲" } else { "▼" }, figure((now - was).abs()));
    match glossary::verdict(key, was, now) {
        Some(true) => format!("<span class=good>{arrow} {size} <i>better</i></span>"),
        Some(false) => format!("<span class=bad>{arrow} {size} <i>worse</i></span>"),
        None => format!("<span class=soft>{arrow} {size}</span>"),
    }
}

/// How many of `count` things stand in a row, all of them up to `most`: 8 as 4 and 4, not as 6 and 2.
pub(super) fn across(count: usize, most: usize) -> usize {
    if count <= most { count } else { count.div_ceil(count.div_ceil(4)) }
}

/// A tile for each table: its figure that says most, beside what it was.
pub(super) fn tiles(record: &Record) -> String {
    let of_step = of_step(record);
    let mut tiles = Vec::new();
    for table in record.after().into_iter().flat_map(Map::keys).take(MAX_TILES) {
        let figures = Figures::of(record, table);
        let Some(key) = glossary::headline(|key| figures.now(key)) else { continue };
        let Some(now) = figures.now(key) else { continue };
        // What counts is the base; an answer that never looks has to be beaten, too.
        let of_head = glossary::is_of_head(key);
        let was = figures.was(key).map(|was| match of_head {
            true => (was, format!("{} at the start", figure(was))),
            false => (was, format!("the base’s {}", figure(was))),
        });
        let blind = figures.blind(key).map(|blind| (blind, format!("{} without looking", figure(blind))));
        // The base may know more than one answer to everything; who is worse than that has learnt nothing.
        let blind = blind.filter(|(blind, _)| was.is_none() || glossary::verdict(key, *blind, now) != Some(true));
        let mut kind = "";
        let mut told = Vec::new();
        // As good as the base is neither good nor bad; as good as not looking is bad.
        if let Some((_, whose)) = was.as_ref().filter(|(was, _)| *was == now) {
            told.push(format!("the same as {}", whose.replace(" at the start", ", the start’s")));
        }
        for (other, whose) in was.filter(|(was, _)| *was != now).into_iter().chain(blind) {
            let (own, word) = match glossary::verdict(key, other, now) {
                Some(true) => (" well", "<span class=good>better</span> than"),
                Some(false) => (" ill", "<span class=bad>worse</span> than"),
                None if other == now => (" ill", "<span class=bad>no better</span> than"),
                None => ("", "from"),
            };
            // One that is not good outweighs one that is.
            kind = if kind == " ill" { kind } else { own };
            told.push(format!("{word} {whose}"));
        }
        let then = if told.is_empty() { String::new() } else { format!("<div class=then>{}</div>", told.join("<br>")) };
        let mut also = String::new();
        if key != "loss"
            && let Some(loss) = figures.now("loss")
        {
            let was = figures.was("loss");
            let then = was.map(|was| format!("{} → ", figure(was))).unwrap_or_default();
            let kind = match was.and_then(|was| glossary::verdict("loss", was, loss)) {
                Some(true) => " class=good",
                Some(false) => " class=bad",
                None => "",
            };
            also = format!("<div class=also>loss {then}<b{kind}>{}</b></div>", figure(loss));
        }
        tiles.push(format!(
            "<div class=\"tile{kind}\"><h3>{}</h3><div class=now><b>{}</b> {}</div>{then}{also}</div>",
            escape(table),
            figure(now),
            glossary::name(key)
        ));
    }
    match tiles.len() {
        0 => String::new(),
        count => format!("{of_step}<div class=\"tiles across{}\">{}</div>\n", across(count, 5), tiles.concat()),
    }
}

/// Of a run that is not over, the step that the figures with the adapter are of; the head tells that of one which is.
fn of_step(record: &Record) -> String {
    match record.after_step().filter(|_| record.left.is_none()) {
        Some(step) => format!("<p class=\"soft figures-of\">Held-out figures with the adapter of step {step}.</p>"),
        None => String::new(),
    }
}

/// All figures by table, with what they mean.
pub(super) fn figures(record: &Record) -> String {
    let Some(shown) = record.after().or(record.before()) else { return String::new() };
    let mut rows = String::new();
    let mut known: BTreeSet<&'static str> = BTreeSet::new();
    let is_blind_known = shown.keys().any(|table| {
        let figures = Figures::of(record, table);
        figures.after.or(figures.before).into_iter().flat_map(Map::keys).any(|key| figures.blind(key).is_some())
    });
    for (table, own) in shown {
        let figures = Figures::of(record, table);
        let own = || own.as_object().into_iter().flatten().filter(|(_, value)| value.is_number());
        let counts = COUNTS.iter().filter_map(|count| {
            let value = figures.now(count).or_else(|| figures.was(count))?;
            Some(format!("{} {}", short(value), if value == 1.0 { count.trim_end_matches('s') } else { count }))
        });
        let counts: Vec<String> = counts.collect();
        rows.push_str(&format!(
            "<tr class=table><th colspan=5>{} <small>{}</small></th></tr>",
            escape(table),
            counts.join(", ")
        ));
        for (key, _) in own().filter(|(key, _)| !glossary::is_constant(key)) {
            known.extend(glossary::lookup(key).map(|entry| entry.key));
            let (was, now) = (figures.was(key), figures.now(key));
            let cell = |value: Option<f64>| value.map(figure).unwrap_or_default();
            rows.push_str(&format!(
                "<tr><th scope=row>{}</th><td class=n data-of=base>{}</td><td class=n data-of=adapter><b>{}</b></td>\
                 <td class=\"n change\" data-of=change>{}</td>",
                escape(&glossary::name(key)),
                cell(was),
                cell(now),
                change(key, was, now)
            ));
            if is_blind_known {
                rows.push_str(&format!("<td class=n data-of=blind>{}</td>", cell(figures.blind(key))));
            }
            rows.push_str("</tr>");
        }
    }
    let with = match record.after_step() {
        Some(step) => format!("with adapter, step {step}"),
        None => "with adapter".to_owned(),
    };
    let blind = if is_blind_known { "<th class=n>without looking</th>" } else { "" };
    section(
        "Held-out rows",
        &format!(
            "<table class=figures><thead><tr><th></th><th class=n>base</th><th class=n>{with}</th>\
             <th class=n>change</th>{blind}</tr></thead><tbody>{rows}</tbody></table>{}",
            meanings(&known, is_blind_known)
        ),
    )
}

/// The glossary of the figures that are shown.
fn meanings(known: &BTreeSet<&'static str>, is_blind_known: bool) -> String {
    if known.is_empty() {
        return String::new();
    }
    let mut html = String::new();
    for entry in known.iter().filter_map(|key| glossary::lookup(key)) {
        let good = match entry.better {
            Some(glossary::Better::More) => " More is better.",
            Some(glossary::Better::Less) => " Less is better.",
            None => "",
        };
        html.push_str(&format!("<div><dt>{}</dt><dd>{}{good}</dd></div>", glossary::name(entry.key), entry.meaning));
    }
    html.push_str(
        "<div><dt>base</dt><dd>The figures without the adapter; of a task with a head, which the base does not have, those of its \
         random start.</dd></div>",
    );
    if is_blind_known {
        html.push_str(
            "<div><dt>without looking</dt><dd>What the same answer to every row would get: the most frequent one, the mean box, \
             an empty mask, chance. Of a loss, that of tokens by their frequency. A useful adapter is better.</dd></div>",
        );
    }
    format!("<details class=glossary><summary>What these figures mean</summary><dl>{html}</dl></details>")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(before: Value, after: Value) -> Record {
        let folder = tempfile::tempdir().unwrap();
        let line = json!({ "step": 3, "eval": { "before": before, "after": after } });
        std::fs::write(folder.path().join("metrics.jsonl"), format!("{line}\n")).unwrap();
        Record::read(folder.path()).unwrap()
    }

    #[test]
    fn a_worse_figure_is_told_as_worse() {
        for (key, was, now, kind, word) in [
            ("exact_match", 0.5, 0.25, "tile ill", "worse"),
            ("exact_match", 0.25, 0.5, "tile well", "better"),
            ("loss", 1.0, 2.0, "tile ill", "worse"),
            ("loss", 2.0, 1.0, "tile well", "better"),
        ] {
            let record = record(json!({ "q": { key: was } }), json!({ "q": { key: now } }));
            let html = tiles(&record);
            let told = format!(">{word}</span> than the base’s {}", figure(was));
            assert!(html.contains(kind) && html.contains(&told), "{key} {was} {now}: {html}");
        }
        for (key, told) in [
            ("exact_match", "the same as the base’s 0.500"),
            ("loss", "the same as the base’s 0.500"),
            ("dice", "the same as 0.500, the start’s"),
        ] {
            let of = json!({ "q": { key: 0.5 } });
            let record = record(of.clone(), of);
            let html = tiles(&record);
            assert!(html.contains("<div class=\"tile\">") && html.contains(told), "{key}: {html}");
            assert!(!html.contains("better") && !html.contains("class=bad") && !html.contains("class=good"), "{html}");
            assert!(figures(&record).contains("<span class=soft>the same</span>"));
        }
        // As good as an answer to everything is not good, whatever the base is.
        let blind = json!({ "q": { "accuracy": 0.5, "majority_accuracy": 0.5 } });
        let html = tiles(&record(blind.clone(), blind));
        assert!(html.contains("tile ill") && html.contains(">no better</span> than 0.500 without looking"), "{html}");
        for (was, now) in [(0.2, 0.0), (0.0, 0.2), (0.0, 0.0)] {
            let html = figures(&record(json!({ "q": { "bleu_4": was } }), json!({ "q": { "bleu_4": now } })));
            assert!(html.contains("<span class=soft>not measurable</span>") && !html.contains("worse"), "{html}");
        }
        let html = figures(&record(
            json!({ "q": { "loss": 1.0, "dice": 0.5 } }),
            json!({ "q": { "loss": 2.0, "dice": 0.75 } }),
        ));
        assert!(
            html.contains("<span class=bad>▲ 1.000 <i>worse</i>")
                && html.contains("<span class=good>▲ 0.250 <i>better</i>"),
            "{html}"
        );
    }

    #[test]
    fn constants_stand_apart_and_a_head_is_held_against_not_looking() {
        let own = json!({ "rows": 192, "tokens": 1, "loss": 0.5, "frequency_loss": 2.5, "exact_match": 0.9,
            "frequent_exact_match": 0.1 });
        let html = figures(&record(json!({ "q": own }), json!({ "q": own })));
        assert!(html.contains("<small>192 rows, 1 token</small>"), "{html}");
        assert!(!html.contains("frequen") || !html.contains("scope=row>frequen"), "{html}");
        assert!(html.contains("data-of=blind>2.500<") && html.contains("data-of=blind>0.100<"), "{html}");
        assert_eq!(html.matches("<tr><th scope=row>").count(), 2, "{html}");
        for meaning in ["<dt>loss</dt>", "<dt>exact match</dt>", "<dt>without looking</dt>"] {
            assert!(html.contains(meaning), "{meaning}: {html}");
        }
        let head = json!({ "d": { "accuracy": 0.3, "majority_accuracy": 0.4 } });
        let html = tiles(&record(json!({}), head));
        assert!(html.contains("tile ill") && html.contains(">worse</span> than 0.400 without looking"), "{html}");
        // Better than the base, and still not worth its name.
        let advice = |rouge: f64| json!({ "a": { "rouge_l": rouge, "frequent_rouge_l": 0.4 } });
        let html = tiles(&record(advice(0.1), advice(0.2)));
        assert!(html.contains("tile ill") && html.contains(">better</span> than the base’s 0.100<br>"), "{html}");
        let html = tiles(&record(advice(0.1), advice(0.5)));
        assert!(html.contains("tile well") && !html.contains("without looking"), "{html}");
    }

    #[test]
    fn figures_of_a_run_that_was_stopped_name_their_step() {
        for (evaluated, done) in [(12, 14), (4, 5), (7, 7)] {
            let folder = tempfile::tempdir().unwrap();
            let lines = [
                json!({ "step": evaluated, "eval": { "before": { "q": { "loss": 2.0 } }, "after": { "q": { "loss": 1.0 } } } }),
                json!({ "step": done, "loss": 1.0 }),
                json!({ "step": done, "eval": { "before": { "q": { "loss": 2.0 } } } }),
            ];
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
            let record = Record::read(folder.path()).unwrap();
            assert_eq!(record.after_step(), Some(evaluated));
            assert!(figures(&record).contains(&format!("<th class=n>with adapter, step {evaluated}</th>")));
            assert!(tiles(&record).contains(&format!("with the adapter of step {evaluated}.")));
        }
    }

    #[test]
    fn tiles_fill_their_rows() {
        for (count, across) in [(1, 1), (3, 3), (4, 4), (5, 5), (6, 3), (7, 4), (8, 4), (9, 3), (12, 4)] {
            let tables: Map<String, Value> =
                (0..count).map(|number| (format!("t{number}"), json!({ "loss": 1.0 }))).collect();
            let html = tiles(&record(json!(tables), json!(tables)));
            assert!(html.contains(&format!("across{across}\"")), "{count}: {html}");
        }
    }
}
