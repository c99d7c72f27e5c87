//! Curves as inline SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;

/// Points that are drawn at most; longer curves are drawn by the mean and the extent of each stretch.
const MAX_POINTS: usize = 480;
/// Values this many times apart are drawn on a logarithmic scale where a chart allows it.
const LOGARITHMIC_FROM: f64 = 100.0;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As it is.
    Exact,
    /// Its mean over the points around each, before the values themselves.
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
pub(super) struct Chart {
    /// What it shows.
    pub title: String,
    /// Its curves, at most four told apart by colour.
    pub series: Vec<Series>,
    /// Whether values far apart make the scale logarithmic.
    pub may_be_logarithmic: bool,
    /// Whether the scale starts at 0.
    pub from_zero: bool,
}

impl Chart {
    /// As a `<figure>`, absent where no curve has a point.
    pub(super) fn html(&self) -> Option<String> {
        let finite = || self.series.iter().flat_map(|s| &s.points).filter(|p| p.0.is_finite() && p.1.is_finite());
        let last = finite().map(|p| p.0).reduce(f64::max)?;
        let first = finite().map(|p| p.0).fold(last, f64::min).min(1.0);
        let scale = Scale::new(finite().map(|p| p.1), self)?;
        let x = |step: f64| LEFT + (step - first) / (last - first).max(1.0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| TOP + (1.0 - scale.place(value)) * (HEIGHT - TOP - BOTTOM);

        let mut svg = String::new();
        let mut draw = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("a text takes whatever is written");
        for tick in scale.ticks() {
            let (y, label) = (y(tick), label(tick));
            draw(format_args!("<line class=grid x1={LEFT} x2={:.0} y1={y:.1} y2={y:.1} />", WIDTH - RIGHT));
            draw(format_args!("<text class=tick x={:.0} y={:.1} text-anchor=end>{label}</text>", LEFT - 8.0, y + 4.0));
        }
        for tick in ticks(first, last, 6).into_iter().filter(|tick| tick.fract() == 0.0) {
            let anchor = if x(tick) > WIDTH - 40.0 { "end" } else { "middle" };
            draw(format_args!(
                "<text class=tick x={:.1} y={:.0} text-anchor={anchor}>{}</text>",
                x(tick),
                HEIGHT - 8.0,
                label(tick)
            ));
        }
        for (number, series) in self.series.iter().enumerate() {
            let stretches = stretches(&series.points);
            if series.style != Style::Dots && stretches.iter().any(|s| s.low < s.high) {
                let upper = stretches.iter().map(|s| (s.step, s.high));
                let lower = stretches.iter().rev().map(|s| (s.step, s.low));
                let band: Vec<String> = upper.chain(lower).map(|(s, v)| format!("{:.1},{:.1}", x(s), y(v))).collect();
                draw(format_args!("<polygon class=\"band c{number}\" points=\"{}\"/>", band.join(" ")));
            }
            if series.style == Style::Smooth && series.points.len() > 60 {
                let raw: Vec<String> = stretches.iter().map(|s| format!("{:.1},{:.1}", x(s.step), y(s.mean))).collect();
                draw(format_args!("<polyline class=\"raw c{number}\" points=\"{}\"/>", raw.join(" ")));
            }
            let shown = if series.style == Style::Smooth { smooth(&stretches) } else { stretches };
            let points: Vec<String> = shown.iter().map(|s| format!("{:.1},{:.1}", x(s.step), y(s.mean))).collect();
            let told: Vec<String> = shown.iter().map(|s| format!("{:.0}:{}", s.step, short(s.mean))).collect();
            let kind = if series.style == Style::Dots { "thin" } else { "line" };
            draw(format_args!(
                "<polyline class=\"{kind} c{number}\" data-name=\"{}\" data-told=\"{}\" points=\"{}\"/>",
                escape(&series.name),
                told.join(" "),
                points.join(" ")
            ));
            if series.style == Style::Dots || shown.len() == 1 {
                for s in &shown {
                    let (x, y) = (x(s.step), y(s.mean));
                    draw(format_args!("<circle class=\"dot c{number}\" cx={x:.1} cy={y:.1} r=4 />"));
                }
            }
        }
        let keys: Vec<String> = (self.series.iter().enumerate())
            .filter_map(|(number, s)| {
                let last = s.points.iter().rev().find(|p| p.1.is_finite())?;
                let kind = if s.style == Style::Dots { "dots" } else { "" };
                let name = escape(&s.name);
                Some(format!("<span class=\"key c{number} {kind}\"><i></i>{name} <b>{}</b></span>", short(last.1)))
            })
            .collect();
        let note = if scale.logarithmic { " <small>logarithmic</small>" } else { "" };
        Some(format!(
            "<figure class=chart><figcaption><h3>{}{note}</h3><div class=keys>{}</div></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{}\">{svg}<line class=cursor y1={TOP} y2={:.0} />\
             </svg><div class=tip hidden></div></figure>\n",
            escape(&self.title),
            keys.join(""),
            escape(&self.title),
            HEIGHT - BOTTOM,
        ))
    }
}

/// Where values lie between the bottom, 0, and the top, 1.
#[derive(Debug)]
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64> + Clone, chart: &Chart) -> Option<Self> {
        let low = values.clone().reduce(f64::min)?;
        let high = values.clone().reduce(f64::max)?;
        let positive = values.filter(|value| *value > 0.0).reduce(f64::min);
        if let Some(least) = positive
            && chart.may_be_logarithmic
            && high / least >= LOGARITHMIC_FROM
        {
            return Some(Self { low: least.log10().floor(), high: high.log10().ceil(), logarithmic: true });
        }
        let low = if chart.from_zero { low.min(0.0) } else { low };
        let room = if high > low { (high - low) * 0.06 } else { (high.abs() * 0.1).max(1e-9) };
        let bottom = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        Some(Self {
            low: if chart.from_zero && low >= 0.0 { 0.0 } else { bottom },
            high: high + room,
            logarithmic: false,
        })
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value };
        // Between the edges also for what a mean makes of values at them.
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.low, self.high, 5);
        }
        let (low, high) = (self.low as i32, self.high as i32);
        let every = ((high - low) / 6 + 1).max(1) as usize;
        (low..=high).step_by(every).map(|power| 10f64.powi(power)).collect()
    }
}

/// About `count` round values between two.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    if !(raw > 0.0 && raw.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(power * 10.0);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).take(4 * count).map(|number| number as f64 * step).collect()
}

/// A stretch of steps with its mean and extent.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

fn stretches(points: &[(f64, f64)]) -> Vec<Stretch> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let length = finite.len().div_ceil(MAX_POINTS).max(1);
    finite
        .chunks(length)
        .map(|chunk| {
            let count = chunk.len() as f64;
            Stretch {
                step: chunk.iter().map(|p| p.0).sum::<f64>() / count,
                mean: chunk.iter().map(|p| p.1).sum::<f64>() / count,
                low: chunk.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
                high: chunk.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
            }
        })
        .collect()
}

/// The mean of what stands around each point, over about a thirtieth of the curve.
fn smooth(points: &[Stretch]) -> Vec<Stretch> {
    let reach = points.len() / 60;
    let around = |place: usize| {
        // As far to both sides: a window cut at one of them alone would lag or lead.
        let reach = reach.min(place).min(points.len() - 1 - place);
        let window = &points[place - reach..=place + reach];
        window.iter().map(|point| point.mean).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(place, point)| Stretch { mean: around(place), ..*point }).collect()
}

/// A number in few characters.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        size if !(1e-3..1e7).contains(&size) => format!("{value:.2e}"),
        size if size >= 1e3 || (value.fract() == 0.0 && size >= 1.0) => format!("{value:.0}"),
        _ => format!("{value:.4}"),
    }
}

/// A round number in as few characters as it needs.
fn label(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e7).contains(&size) => format!("{value:.0e}"),
        size if size >= 1e4 => format!("{}k", (value / 1e3 * 100.0).round() / 100.0),
        _ => format!("{}", (value * 1e6).round() / 1e6),
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
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c) => {
                escaped.push('\u{fffd}');
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = Series { name: "a\"><script>".into(), points, style: Style::Smooth };
        Chart { title: "t</h3>".into(), series: vec![series], may_be_logarithmic: true, from_zero: false }
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
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(1.0, 150.0, 6), [50.0, 100.0, 150.0]);
        assert_eq!(label(0.6000000000000001), "0.6");
        assert_eq!([label(20_000.0), label(0.0), label(2e-4)], ["20k", "0", "2e-4"]);
    }

    #[test]
    fn a_smooth_line_stays_a_line_and_a_smooth_curve_neither_lags_nor_leads() {
        let line: Vec<(f64, f64)> = (0..300).map(|step| (f64::from(step), 7.0 - 0.5 * f64::from(step))).collect();
        let smoothed = smooth(&stretches(&line));
        assert!(smoothed.iter().zip(&line).all(|(s, (_, value))| (s.mean - value).abs() < 1e-9));
        let zigzag: Vec<(f64, f64)> = (0..300).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        assert!(smooth(&stretches(&zigzag))[20..280].iter().all(|s| (s.mean - 0.5).abs() < 0.1));
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn a_mean_lies_within_its_stretch() {
        let points: Vec<(f64, f64)> = (0..4800).map(|step| (step as f64, f64::from(step % 7))).collect();
        let stretches = stretches(&points);
        assert_eq!(stretches.len(), MAX_POINTS);
        assert!(stretches.iter().all(|s| s.low == 0.0 && s.high == 6.0 && (2.0..4.0).contains(&s.mean)));
    }
}
