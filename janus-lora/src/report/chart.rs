//! Curves as inline SVG. The curves are stretched to the width there is, their names and numbers stand beside them as text, so
//! that these are as large on a telephone as on a screen.

use std::fmt::Write;

use super::scale::{NOISY_FROM, Scale, Stretch, label, short, smooth, stretches, ticks};
use crate::visible::is_order;

/// The drawing's own units; the page stretches them.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 400.0;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As it is.
    Exact,
    /// Without its noise, before the values themselves.
    Smooth,
    /// Dots joined by a thin line, for values that are far apart.
    Dots,
}

/// One curve.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// What it shows.
    pub name: String,
    /// Step and value, in order.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub style: Style,
}

/// A chart over the steps.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// What it shows.
    pub title: String,
    /// What its values are.
    pub unit: &'static str,
    /// Its curves, at most four told apart by colour.
    pub series: Vec<Series>,
    /// Whether values far apart make the scale logarithmic.
    pub may_be_logarithmic: bool,
    /// Whether a straight scale starts at 0.
    pub from_zero: bool,
    /// The step whose values are told.
    pub step: f64,
    /// What happened at that step, where that is worth a line.
    pub mark: Option<&'a str>,
}

/// A curve as it is drawn.
struct Drawn<'a> {
    series: &'a Series,
    stretches: Vec<Stretch>,
    shown: Vec<Stretch>,
}

impl Chart<'_> {
    /// As a `<figure>`, absent where no curve has a point.
    pub(super) fn html(&self) -> Option<String> {
        let drawn: Vec<Drawn<'_>> = (self.series.iter())
            .map(|series| {
                let stretches = stretches(&series.points);
                let shown = if series.style == Style::Smooth { smooth(&stretches) } else { stretches.clone() };
                Drawn { series, stretches, shown }
            })
            .collect();
        let all = || drawn.iter().flat_map(|drawn| &drawn.stretches);
        let last = all().map(|s| s.step).reduce(f64::max)?;
        let first = all().map(|s| s.step).fold(last, f64::min).min(1.0);
        let extents = all().flat_map(|s| [s.low, s.high]);
        let scale = match self.may_be_logarithmic {
            true => {
                let of = |dots: bool| drawn.iter().filter(move |d| (d.series.style == Style::Dots) == dots);
                let curves: Vec<Vec<f64>> = of(false).map(|d| d.shown.iter().map(|s| s.mean).collect()).collect();
                let marks = of(true).flat_map(|d| &d.shown).map(|s| s.mean);
                Scale::fitting(&curves, marks, extents, self.from_zero)
            }
            false => Scale::linear(extents, self.from_zero),
        }?;
        let across = |step: f64| ((step - first) / (last - first).max(1.0)).clamp(0.0, 1.0);
        let (x, y) = (|step: f64| across(step) * WIDTH, |value: f64| (1.0 - scale.place(value)) * HEIGHT);

        let (mut svg, mut ys, mut xs) = (String::new(), String::new(), String::new());
        for tick in scale.ticks() {
            let (y, label) = (y(tick), label(tick));
            put(&mut svg, format_args!("<line class=rule x1=0 x2={WIDTH} y1={y:.1} y2={y:.1} />"));
            put(&mut ys, format_args!("<span style=\"top:{:.2}%\">{label}</span>", 100.0 * y / HEIGHT));
        }
        for tick in ticks(first, last, 5).into_iter().filter(|tick| tick.fract() == 0.0) {
            put(&mut xs, format_args!("<span style=\"left:{:.2}%\">{}</span>", 100.0 * across(tick), label(tick)));
        }
        let mut marked = String::new();
        if let Some(mark) = self.mark {
            let (x, mark) = (across(self.step), escape(mark));
            let kind = if x > 0.6 { " before" } else { "" };
            put(&mut svg, format_args!("<line class=mark x1={0:.1} x2={0:.1} y1=0 y2={HEIGHT} />", x * WIDTH));
            put(
                &mut marked,
                format_args!("<span class=\"marked{kind}\" style=\"left:{:.2}%\">{mark}</span>", 100.0 * x),
            );
        }
        for (number, drawn) in drawn.iter().enumerate() {
            draw(&mut svg, number, drawn, &x, &y);
        }
        let keys: String = drawn.iter().enumerate().filter_map(|(number, drawn)| self.key(number, drawn)).collect();
        let (title, unit) = (escape(&self.title), self.unit);
        // Above the curves, where it hides none of them.
        let (plot, top) = match marked.is_empty() {
            true => ("plot", String::new()),
            false => ("plot topped", format!("<div class=top>{marked}</div>")),
        };
        let axis = scale.named(unit);
        Some(format!(
            "<figure class=chart><figcaption><h3>{title}</h3><div class=keys>{keys}</div></figcaption>\
             <div class=axis>{axis}</div><div class=\"{plot}\">{top}<div class=ys aria-hidden=true>{ys}</div>\
             <div class=area><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=none role=img \
             aria-label=\"{title}: {unit} by step\">{svg}<line class=cursor y1=0 y2={HEIGHT} /></svg></div>\
             <div class=xs aria-hidden=true>{xs}</div></div><div class=\"axis step\">step</div>\
             <div class=tip hidden></div></figure>\n"
        ))
    }

    /// A curve's name and its own value at the step that is told, noise and all.
    fn key(&self, number: usize, drawn: &Drawn<'_>) -> Option<String> {
        let near = |point: &&(f64, f64)| (point.0 - self.step).abs();
        let finite = drawn.series.points.iter().filter(|point| point.1.is_finite());
        let told = finite.min_by(|a, b| near(a).total_cmp(&near(b)))?.1;
        let kind = if drawn.series.style == Style::Dots { " dots" } else { "" };
        let name = escape(&drawn.series.name);
        Some(format!("<span class=\"key c{number}{kind}\"><i></i>{name} <b>{}</b></span>", short(told)))
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a text takes whatever is written");
}

fn draw(svg: &mut String, number: usize, drawn: &Drawn<'_>, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
    let Drawn { series, stretches, shown } = drawn;
    let line = |points: &[Stretch]| -> String {
        let points: Vec<String> = points.iter().map(|s| format!("{:.1},{:.1}", x(s.step), y(s.mean))).collect();
        points.join(" ")
    };
    if series.style != Style::Dots && stretches.iter().any(|s| s.low < s.high) {
        let upper = stretches.iter().map(|s| (s.step, s.high));
        let lower = stretches.iter().rev().map(|s| (s.step, s.low));
        let band: Vec<String> = upper.chain(lower).map(|(s, v)| format!("{:.1},{:.1}", x(s), y(v))).collect();
        put(svg, format_args!("<polygon class=\"band c{number}\" points=\"{}\"/>", band.join(" ")));
    }
    if series.style == Style::Smooth && series.points.len() >= NOISY_FROM {
        put(svg, format_args!("<polyline class=\"raw c{number}\" points=\"{}\"/>", line(stretches)));
    }
    let is_smooth = series.style == Style::Smooth && series.points.len() >= NOISY_FROM;
    let name = if is_smooth { format!("{}, smoothed", series.name) } else { series.name.clone() };
    let told: Vec<String> = shown.iter().map(|s| format!("{:.0}:{}", s.step, short(s.mean))).collect();
    let kind = if series.style == Style::Dots { "thin" } else { "line" };
    put(
        svg,
        format_args!(
            "<polyline class=\"{kind} c{number}\" data-name=\"{}\" data-told=\"{}\" points=\"{}\"/>",
            escape(&name),
            told.join(" "),
            line(shown)
        ),
    );
    if series.style == Style::Dots || shown.len() == 1 {
        // Lines without length: their round ends stay round however the drawing is stretched.
        let dots: Vec<String> = shown.iter().map(|s| format!("M{:.1} {:.1}h.01", x(s.step), y(s.mean))).collect();
        let dots = dots.concat();
        put(svg, format_args!("<path class=halo d=\"{dots}\"/><path class=\"dot c{number}\" d=\"{dots}\"/>"));
    }
}

/// Text that is nothing but text in HTML, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            // Such as an escape that would change the reading direction of what follows.
            c if is_order(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart<'static> {
        let series = Series { name: "a\"><script>".into(), points, style: Style::Smooth };
        let (title, mark) = ("t</h3>".to_owned(), Some("<script>"));
        Chart { title, unit: "loss", series: vec![series], may_be_logarithmic: true, from_zero: false, step: 2.0, mark }
    }

    #[test]
    fn any_numbers_make_a_chart_of_numbers() {
        let inputs = [
            vec![(1.0, 2.0)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(1.0, -1e300), (2.0, 1e300)],
            vec![(1.0, 1e-300), (2.0, 1e300)],
            vec![(1.0, f64::NAN), (2.0, 3.0), (3.0, f64::INFINITY)],
            vec![(1.0, 5e-324), (1e18, 1.0)],
            (0..5000).map(|step| (step as f64, (step as f64).sin())).collect(),
        ];
        for points in inputs {
            let html = chart(points.clone()).html().unwrap();
            for wrong in ["NaN", "inf", "<script", "t</h3>\n"] {
                assert!(!html.contains(wrong), "{wrong} from {:?}: {html}", &points[..points.len().min(3)]);
            }
            assert!(html.len() < 60_000, "{}", html.len());
        }
        assert!(chart(vec![(1.0, f64::NAN)]).html().is_none());
        assert!(chart(Vec::new()).html().is_none());
    }

    #[test]
    fn axes_have_names_and_the_figures_are_those_of_the_step_that_is_told() {
        let html = chart(vec![(1.0, 12.0), (2.0, 0.5), (3.0, 0.1)]).html().unwrap();
        assert!(html.contains("<div class=axis>loss, logarithmic</div>"), "{html}");
        assert!(html.contains("<div class=\"axis step\">step</div>"), "{html}");
        assert!(html.contains("<b>0.500</b>") && html.contains("class=\"marked\" style=\"left:50.00%\""), "{html}");
        // The line is over the curve, its words are above the drawing.
        let (top, area) = (html.find("class=\"marked\"").unwrap(), html.find("<div class=area>").unwrap());
        assert!(top < area && html.contains("<div class=\"plot topped\"><div class=top><span"), "{html}");
        // The figure of a step is that step's, whatever those around it are.
        let zigzag = (1..=60).map(|step| (f64::from(step), f64::from(1 + step % 2))).collect();
        let html = chart(zigzag).html().unwrap();
        assert!(html.contains("<b>1</b>") && html.contains(", smoothed\" data-told="), "{html}");
        let mut unmarked = chart(vec![(1.0, 12.0)]);
        unmarked.mark = None;
        assert!(unmarked.html().unwrap().contains("<div class=\"plot\"><div class=ys"));
        let html = chart(vec![(1.0, 12.0), (2.0, 8.0)]).html().unwrap();
        assert!(html.contains("<div class=axis>loss</div>"), "{html}");
        assert!(!html.contains("<text"), "text within the drawing would be stretched with it");
    }
}
