//! What evaluations tell beyond numbers, and memory: confusion matrices, boxes on pictures, bars.

use std::fmt::Write;

use base64::Engine;
use image::RgbImage;
use serde_json::{Map, Value};

use super::chart::escape;
use super::picture::thumbnail;
use super::record::Record;
use super::scale::short;

/// Classes of a confusion matrix that are drawn.
const MAX_CLASSES: usize = 40;
/// Pictures with boxes that are drawn of a table.
const MAX_BOXED: usize = 12;
/// Boxes that are drawn on one picture.
const MAX_BOXES: usize = 50;
/// Longer side of a picture in the page, in pixels.
const SIDE: u32 = 288;
/// Bytes of pictures in one page.
const MAX_PICTURE_BYTES: usize = 24 << 20;

/// Puts pictures into the page as long as there is room.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    bytes: usize,
    /// Pictures that were left out because the page would become too large.
    pub left_out: usize,
}

impl Pictures {
    /// A picture as the value of `src`.
    fn source(&mut self, picture: &RgbImage) -> Option<String> {
        let small = thumbnail(picture, SIDE).ok()?;
        if self.bytes + small.bytes.len() > MAX_PICTURE_BYTES {
            self.left_out += 1;
            return None;
        }
        self.bytes += small.bytes.len();
        let text = base64::engine::general_purpose::STANDARD.encode(&small.bytes);
        Some(format!("data:{};base64,{text}", small.kind))
    }

    /// A picture of the run folder as an `<img>`, or a word for one that cannot be shown.
    pub(super) fn img(&mut self, record: &Record, name: &str, alternative: &str) -> String {
        let source = record.picture(name).and_then(|picture| self.source(&picture));
        match source {
            Some(source) => format!("<img src=\"{source}\" alt=\"{}\">", escape(alternative)),
            None => "<span class=none>no picture</span>".into(),
        }
    }
}

/// The confusion matrix of a table's figures: `confusion`, counts by true class and answered class, and `labels`, the
/// classes' names.
pub(super) fn confusion(table: &str, figures: &Map<String, Value>) -> Option<String> {
    let labels: Vec<&str> =
        figures.get("labels")?.as_array()?.iter().map(|label| label.as_str().unwrap_or("")).collect();
    let rows = figures.get("confusion")?.as_array()?;
    let counts: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| row.as_array().into_iter().flatten().map(|count| count.as_f64().unwrap_or(0.0)).collect())
        .collect();
    let classes = labels.len();
    if classes == 0 || counts.len() != classes || counts.iter().any(|row| row.len() != classes) {
        return None;
    }
    let shown = classes.min(MAX_CLASSES);
    let mut html = format!("<figure class=matrix><figcaption><h3>{}</h3>", escape(table));
    if shown < classes {
        html.push_str(&format!("<small>the first {shown} of {classes} classes</small>"));
    }
    html.push_str("</figcaption><div class=scroll><table><thead><tr><th class=corner>true \\ answered</th>");
    for label in labels.iter().take(shown) {
        html.push_str(&format!("<th scope=col><span>{}</span></th>", escape(label)));
    }
    html.push_str("</tr></thead><tbody>");
    for (truth, (label, row)) in labels.iter().zip(&counts).take(shown).enumerate() {
        let sum: f64 = row.iter().sum();
        html.push_str(&format!("<tr><th scope=row>{}</th>", escape(label)));
        for (answered, count) in row.iter().take(shown).enumerate() {
            let share = if sum > 0.0 { (100.0 * count / sum).clamp(0.0, 100.0) } else { 0.0 };
            let kind = if truth == answered { "right" } else { "wrong" };
            html.push_str(&format!("<td class={kind} style=\"--share:{share:.0}\">{}</td>", short(*count)));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div></figure>\n");
    Some(html)
}

/// Boxes of a table's figures: `boxes`, pictures with `image` (in the run folder's `samples`), `width` and `height` of the
/// picture that the boxes are in, and `expected` and `found`, each a list of `{"box": [x0, y0, x1, y1], "label": ...}`.
pub(super) fn boxes(
    record: &Record,
    pictures: &mut Pictures,
    table: &str,
    figures: &Map<String, Value>,
) -> Option<String> {
    let boxed = figures.get("boxes")?.as_array()?;
    let mut html = String::new();
    for entry in boxed.iter().take(MAX_BOXED) {
        let side = |name: &str| entry.get(name).and_then(Value::as_f64).filter(|side| (1.0..1e6).contains(side));
        let (Some(width), Some(height)) = (side("width"), side("height")) else { continue };
        let picture = entry.get("image").and_then(Value::as_str).and_then(|name| record.picture(name));
        let source = picture.and_then(|picture| pictures.source(&picture));
        html.push_str(&format!("<svg viewBox=\"0 0 {width} {height}\" role=img aria-label=boxes>"));
        if let Some(source) = source {
            html.push_str(&format!(
                "<image href=\"{source}\" width={width} height={height} preserveAspectRatio=none />"
            ));
        }
        for kind in ["expected", "found"] {
            let list = entry.get(kind).and_then(Value::as_array).into_iter().flatten().take(MAX_BOXES);
            for corner in list {
                let numbers: Vec<f64> = corner
                    .get("box")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_f64)
                    .filter(|number| number.abs() < 1e6)
                    .collect();
                let [x0, y0, x1, y1] = numbers[..] else { continue };
                let label = escape(corner.get("label").and_then(Value::as_str).unwrap_or(""));
                write!(
                    html,
                    "<rect class={kind} x={x0} y={y0} width={} height={}><title>{kind} {label}</title></rect>",
                    (x1 - x0).max(0.0),
                    (y1 - y0).max(0.0)
                )
                .expect("a text takes whatever is written");
            }
        }
        html.push_str("</svg>");
    }
    (!html.is_empty()).then(|| {
        let name = escape(table);
        format!("<figure class=boxes><figcaption><h3>{name}</h3><div class=keys><span class=\"key expected\"><i></i>expected</span><span class=\"key found\"><i></i>found</span></div></figcaption><div class=strip>{html}</div></figure>\n")
    })
}

/// Predicted memory by part above the measured peak, on one scale.
pub(super) fn memory(parts: &[(String, u64)], measured: u64) -> Option<String> {
    let predicted: u64 = parts.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let most = predicted.max(measured);
    if most == 0 {
        return None;
    }
    let share = |bytes: u64| 100.0 * bytes as f64 / most as f64;
    let shown = || parts.iter().enumerate().filter(|(_, (_, bytes))| *bytes > 0);
    let mut html = String::from("<figure class=memory><div class=bars>");
    if predicted > 0 {
        html.push_str(&format!("<span>predicted</span><b>{}</b><div class=bar>", bytes(predicted)));
        for (number, (name, part)) in shown() {
            let (name, told) = (escape(name), bytes(*part));
            html.push_str(&format!(
                "<i class=p{} style=\"width:{:.2}%\" title=\"{name} {told}\"></i>",
                number % 7,
                share(*part)
            ));
        }
        html.push_str("</div>");
    }
    html.push_str(&format!(
        "<span>measured</span><b>{}</b><div class=bar><i class=m style=\"width:{:.2}%\"></i></div></div><div class=keys>",
        bytes(measured),
        share(measured)
    ));
    for (number, (name, part)) in shown() {
        html.push_str(&format!(
            "<span class=\"key p{}\"><i></i>{} <b>{}</b></span>",
            number % 7,
            escape(name),
            bytes(*part)
        ));
    }
    html.push_str("</div></figure>\n");
    Some(html)
}

/// Bytes in the unit that fits.
pub(super) fn bytes(value: u64) -> String {
    match value {
        0..1_000_000 => format!("{:.1} kB", value as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value as f64 / 1e6),
        _ => format!("{:.2} GB", value as f64 / 1e9),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_confusion_matrix_needs_as_many_rows_and_columns_as_labels() {
        let html = confusion("t", &object(json!({ "labels": ["a", "<b>"], "confusion": [[3, 1], [0, 4]] }))).unwrap();
        assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"), "{html}");
        assert!(html.contains("style=\"--share:75\">3<") && html.contains("style=\"--share:25\">1<"), "{html}");
        for wrong in [json!([[1, 2]]), json!([[1], [2]]), json!("x"), json!([])] {
            assert!(confusion("t", &object(json!({ "labels": ["a", "b"], "confusion": wrong }))).is_none());
        }
        assert!(confusion("t", &object(json!({ "confusion": [[1]] }))).is_none());
    }

    #[test]
    fn boxes_are_drawn_where_they_lie_and_hostile_ones_left_out() {
        let record = Record::default();
        let entry = json!({
            "image": "../../etc/passwd", "width": 100, "height": 50,
            "expected": [{ "box": [10, 5, 30, 45], "label": "\"><script>" }, { "box": [1, 2] }, { "box": "all" }],
            "found": [{ "box": [50, 40, 20, 10], "label": "crack" }, { "box": [1e300, 0, 0, 0] }],
        });
        let figures = object(json!({ "boxes": [entry, { "width": -1, "height": 3 }] }));
        let html = boxes(&record, &mut Pictures::default(), "parts", &figures).unwrap();
        assert_eq!(html.matches("<rect").count(), 2, "{html}");
        assert!(html.contains("<rect class=expected x=10 y=5 width=20 height=40>"), "{html}");
        assert!(html.contains("width=0 height=0><title>found crack"), "{html}");
        assert!(!html.contains("<script") && !html.contains("<image"), "{html}");
    }

    #[test]
    fn memory_is_drawn_on_one_scale() {
        let html =
            memory(&[("base".into(), 600_000_000), ("cache".into(), 0), ("moments".into(), 200_000_000)], 400_000_000);
        let html = html.unwrap();
        assert!(html.contains("predicted</span><b>800.0 MB") && html.contains("measured</span><b>400.0 MB"), "{html}");
        assert!(
            html.contains("class=p0 style=\"width:75.00%\"") && html.contains("class=m style=\"width:50.00%\""),
            "{html}"
        );
        assert!(!html.contains("cache"), "{html}");
        assert!(memory(&[], 0).is_none());
        assert!(memory(&[("a".into(), u64::MAX), ("b".into(), u64::MAX)], 1).is_some());
    }
}
