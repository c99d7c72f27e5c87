//! What charts have in common, on the page and in `loss.png`: the scale of an axis, its ticks, and a curve without its noise.

/// Points that are drawn at most; longer curves are drawn by the mean and the extent of each stretch.
pub(crate) const MAX_POINTS: usize = 480;
/// A curve whose values lie this many times apart is drawn on a logarithmic scale: on a linear one its end would be flat.
const LOGARITHMIC_FROM: f64 = 10.0;
/// Decades that a logarithmic scale shows at most of curves, below the largest value, and of marks.
const MAX_DECADES: f64 = 6.0;
const MAX_MARK_DECADES: f64 = 8.0;
/// How far below the least of the curves without their noise it still shows this, in decades.
const NOISE_BELOW: f64 = 0.5;
/// A logarithmic scale of fewer decades has ticks between the powers of ten.
const FEW_DECADES: f64 = 2.5;
/// A curve of so many points has noise that is taken out of it, over so many to both sides at least.
pub(crate) const NOISY_FROM: usize = 24;
const LEAST_REACH: usize = 3;
/// Room above and below the values, as a share of their extent.
const MARGIN: f64 = 0.05;

/// Where values lie between the bottom, 0, and the top, 1.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    /// Whether the edges are decadic logarithms.
    pub(crate) logarithmic: bool,
    /// What of the values lies below a logarithmic scale, in words; `None` where all of them are on it.
    cut: Option<String>,
}

/// The least positive value that a curve comes down to for more than one of its points, or at its end; of a curve of few
/// points, its least one.
fn least_of(curve: &[f64]) -> Option<f64> {
    let positive = |value: &f64| *value > 0.0;
    let least = |values: &mut dyn Iterator<Item = f64>| values.filter(positive).reduce(f64::min);
    if curve.len() < NOISY_FROM {
        return least(&mut curve.iter().copied());
    }
    let middle = |window: &[f64]| {
        let mut window = window.to_vec();
        window.sort_by(f64::total_cmp);
        window.get(window.len() / 2).copied()
    };
    least(&mut curve.windows(3).filter_map(middle).chain(curve.last().copied()))
}

impl Scale {
    /// Of values on a straight scale, from 0 on where that is asked for; `None` of none.
    pub(crate) fn linear(values: impl Iterator<Item = f64> + Clone, from_zero: bool) -> Option<Self> {
        let low = values.clone().reduce(f64::min)?;
        let high = values.reduce(f64::max)?;
        let low = if from_zero { low.min(0.0) } else { low };
        let room = if high > low { (high - low) * MARGIN } else { (high.abs() * 0.1).max(1e-9) };
        let bottom = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        let low = if from_zero && low >= 0.0 { 0.0 } else { bottom };
        Some(Self { low, high: high + room, logarithmic: false, cut: None })
    }

    /// Of the values of curves without their noise and of marks, which decide whether it is logarithmic and how far down it
    /// goes, and of `all` values. Zeros have no place on a logarithmic scale and lie at its floor.
    pub(crate) fn fitting(
        curves: &[Vec<f64>],
        marks: impl Iterator<Item = f64> + Clone,
        all: impl Iterator<Item = f64> + Clone,
        from_zero: bool,
    ) -> Option<Self> {
        let most = curves.iter().flatten().copied().chain(marks.clone()).reduce(f64::max)?;
        let is_negative = all.clone().any(|value| value < 0.0);
        let top = all.clone().fold(most, f64::max).log10();
        let lowest = |values: &mut dyn Iterator<Item = f64>, decades: f64| {
            values.filter(|value| *value > 0.0).map(|value| value.log10().max(top - decades)).reduce(f64::min)
        };
        let of_curves = lowest(&mut curves.iter().filter_map(|curve| least_of(curve)), MAX_DECADES);
        let of_marks = lowest(&mut marks.clone(), MAX_MARK_DECADES);
        let least = of_curves.into_iter().chain(of_marks).reduce(f64::min);
        let Some(least) = least.filter(|least| !is_negative && most.log10() - least >= LOGARITHMIC_FROM.log10()) else {
            return Self::linear(all, from_zero);
        };
        let lowest_of_all = lowest(&mut all.clone(), MAX_MARK_DECADES).unwrap_or(least);
        let bottom = least.min(lowest_of_all.max(least - NOISE_BELOW).max(top - MAX_DECADES));
        let room = (top - bottom) * MARGIN;
        let low = bottom - room;
        let floor = short(10f64.powf(low));
        let has_zeros = all.clone().any(|value| value == 0.0);
        let has_less = all.clone().any(|value| value > 0.0 && value.log10() < low);
        let cut = match (has_zeros, has_less) {
            (true, true) => Some(format!("0 and below {floor} at the floor")),
            (true, false) => Some("0 at the floor".to_owned()),
            (false, true) => Some(format!("below {floor} at the floor")),
            (false, false) => None,
        };
        Some(Self { low, high: top + room, logarithmic: true, cut })
    }

    /// An axis' name: its unit, the kind of scale, and what lies below it.
    pub(crate) fn named(&self, unit: &str) -> String {
        let kind = if self.logarithmic { ", logarithmic" } else { "" };
        let cut = self.cut.as_ref().map(|cut| format!("; {cut}")).unwrap_or_default();
        format!("{unit}{kind}{cut}")
    }

    /// Where a value lies; beyond the edges, at them.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round values on it, rising.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.low, self.high, 5);
        }
        let span = self.high - self.low;
        let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
        let (every, within): (usize, &[f64]) = match span {
            span if span < FEW_DECADES => (1, &[1.0, 2.0, 5.0]),
            span => (((span / 7.0).ceil() as usize).max(1), &[1.0]),
        };
        let powers = (first..=last).step_by(every).map(|power| 10f64.powi(power));
        let all = powers.flat_map(|power| within.iter().map(move |part| part * power));
        all.filter(|tick| (self.low..=self.high).contains(&tick.log10())).collect()
    }
}

/// About `count` round values between two.
pub(crate) fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
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
pub(crate) struct Stretch {
    pub(crate) step: f64,
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// A curve in at most [`MAX_POINTS`] stretches; points that are no numbers are left out.
pub(crate) fn stretches(points: &[(f64, f64)]) -> Vec<Stretch> {
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

/// The curve without its noise: at each point the value of the straight line that fits those around it best, over about a
/// thirtieth of the curve, or seven points. It neither lags nor leads, for it looks as far ahead as back, and a line stays a line to its ends.
pub(crate) fn smooth(points: &[Stretch]) -> Vec<Stretch> {
    let least = if points.len() >= NOISY_FROM { LEAST_REACH } else { 0 };
    let reach = (points.len() / 60).max(least);
    let around = |place: usize| {
        let window = &points[place.saturating_sub(reach)..(place + reach + 1).min(points.len())];
        let count = window.len() as f64;
        let step = window.iter().map(|point| point.step).sum::<f64>() / count;
        let mean = window.iter().map(|point| point.mean).sum::<f64>() / count;
        let spread: f64 = window.iter().map(|point| (point.step - step).powi(2)).sum();
        let rise: f64 = window.iter().map(|point| (point.step - step) * (point.mean - mean)).sum();
        let slope = if spread > 0.0 { rise / spread } else { 0.0 };
        // Where a curve bends at its end, the line would lead out of what was there.
        let least = window.iter().map(|point| point.mean).fold(f64::INFINITY, f64::min);
        let most = window.iter().map(|point| point.mean).fold(f64::NEG_INFINITY, f64::max);
        (mean + slope * (points[place].step - step)).clamp(least, most)
    };
    points.iter().enumerate().map(|(place, point)| Stretch { mean: around(place), ..*point }).collect()
}

/// A number in few characters.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        size if !(1e-3..1e7).contains(&size) => format!("{value:.2e}"),
        size if size >= 1e3 || (value.fract() == 0.0 && size >= 1.0) => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A round number in as few characters as it needs.
pub(crate) fn label(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e7).contains(&size) => format!("{value:.0e}"),
        size if size >= 1e4 => format!("{}k", (value / 1e3 * 100.0).round() / 100.0),
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(1.0, 150.0, 6), [50.0, 100.0, 150.0]);
        assert_eq!(label(0.6000000000000001), "0.6");
        assert_eq!([label(20_000.0), label(0.0), label(2e-4)], ["20k", "0", "2e-4"]);
        assert_eq!([short(0.05431), short(0.93751), short(23.4567), short(192.0)], ["0.0543", "0.938", "23.46", "192"]);
    }

    /// The scale of a curve whose every point is drawn.
    fn fitting(values: &[f64]) -> Scale {
        Scale::fitting(&[values.to_vec()], [].into_iter(), values.iter().copied(), false).unwrap()
    }

    #[test]
    fn a_logarithmic_scale_shows_all_of_a_curve_and_says_what_is_below_it() {
        // The end of a curve is on it, however few of its points are there.
        let ends = |end: f64| -> Vec<f64> { (0..200).map(|step| if step < 190 { 8.0 } else { end }).collect() };
        for end in [0.5, 0.006, 0.0025, 2e-5] {
            let scale = fitting(&ends(end));
            assert!(scale.logarithmic && scale.place(end) > 0.0, "{end}: {scale:?}");
            assert!(scale.place(end * 1.2) > scale.place(end), "no flat line at {end}: {scale:?}");
            assert_eq!(scale.named("loss"), "loss, logarithmic");
        }
        // At most six decades, and then it is said.
        assert_eq!(fitting(&ends(1e-9)).named("loss"), "loss, logarithmic; below 4.01e-6 at the floor");
        // Zeros are at the floor and do not make the scale a straight one.
        for (values, named) in [
            (vec![12.0, 3.0, 0.1, 0.0], "loss, logarithmic; 0 at the floor"),
            (vec![12.0, 3.0, 1e-9, 0.0], "loss, logarithmic; 0 and below 6.01e-6 at the floor"),
            (vec![3.0, 0.0], "loss"),
            (vec![12.0, 0.1, -1.0], "loss"),
        ] {
            let scale = fitting(&values);
            assert_eq!(scale.named("loss"), named);
            assert_eq!(scale.place(0.0) == 0.0, scale.cut.is_some() || values == [3.0, 0.0], "{scale:?}");
        }
        // Single steps may be below, marks may not.
        let all: Vec<f64> = ends(0.01).into_iter().chain([1e-4]).collect();
        let scale = Scale::fitting(&[ends(0.01)], [].into_iter(), all.iter().copied(), false).unwrap();
        assert!(scale.named("loss").starts_with("loss, logarithmic; below 0.00"), "{}", scale.named("loss"));
        let scale = Scale::fitting(&[ends(0.01)], [1e-4].into_iter(), all.iter().copied(), false).unwrap();
        assert!(scale.place(1e-4) > 0.0 && scale.cut.is_none(), "{scale:?}");
    }

    #[test]
    fn a_curve_that_falls_by_more_than_a_decade_is_not_flat_at_its_end() {
        for (values, logarithmic) in [
            (&[12.0, 3.0, 0.4, 0.1][..], true),
            (&[5.0, 0.5], true),
            (&[4.0, 3.0, 0.9], false),
            (&[0.4, 0.39], false),
            (&[3.0, 0.0], false),
            (&[3.0, -40.0], false),
        ] {
            assert_eq!(fitting(values).logarithmic, logarithmic, "{values:?}");
        }
        let scale = fitting(&[12.0, 3.0, 0.4, 0.1]);
        assert_eq!(scale.ticks(), [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        // From 0.4 to 0.1 takes as much room as from 12 to 3.
        assert!((scale.place(0.4) - scale.place(0.1) - scale.place(12.0) + scale.place(3.0)).abs() < 1e-9);
        assert!(scale.place(0.1) > 0.0 && scale.place(12.0) < 1.0);
        assert_eq!(
            fitting(&[1e-3, 1e3]).ticks(),
            [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3].map(|tick: f64| 10f64.powi(tick.log10().round() as i32))
        );
        // One value that is nearly nothing does not push the others together.
        let values = [12.0, 3.0, 0.4, 0.1, 1e-300];
        let scale = Scale::fitting(&[values[..4].to_vec()], [].into_iter(), values.iter().copied(), false).unwrap();
        assert!(scale.place(12.0) - scale.place(0.1) > 0.3, "{scale:?}");
        assert_eq!(scale.place(1e-300), 0.0);
        // Nor do some of many, but a mark does: it has to be seen.
        let noisy: Vec<f64> = (0..100).map(|step| if step % 20 == 0 { 1e-6 } else { 0.1 + f64::from(step) }).collect();
        let with = |marks: &[f64]| {
            let marks = marks.iter().copied();
            Scale::fitting(std::slice::from_ref(&noisy), marks, noisy.iter().copied(), false).unwrap()
        };
        assert!(with(&[]).place(1.0) < 0.3, "{:?}", with(&[]));
        assert!(with(&[1e-6]).place(1.0) > 0.6 && with(&[1e-6]).place(1e-6) > 0.0, "{:?}", with(&[1e-6]));
    }

    #[test]
    fn a_smooth_line_stays_a_line_and_a_smooth_curve_neither_lags_nor_leads() {
        let line: Vec<(f64, f64)> = (0..300).map(|step| (f64::from(step), 7.0 - 0.5 * f64::from(step))).collect();
        let smoothed = smooth(&stretches(&line));
        assert!(smoothed.iter().zip(&line).all(|(s, (_, value))| (s.mean - value).abs() < 1e-9));
        let zigzag: Vec<(f64, f64)> = (0..300).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        assert!(smooth(&stretches(&zigzag))[20..280].iter().all(|s| (s.mean - 0.5).abs() < 0.1));
        assert!(smooth(&[]).is_empty());
        // Halfway down where the curve is: after 100, 250, 350 and 1500 steps.
        for (steps, half) in [(300, 100.0), (700, 250.0), (700, 350.0), (3000, 1500.0)] {
            let fall = |step: f64| 1.0 / (1.0 + ((step - half) / 5.0).exp());
            let points: Vec<(f64, f64)> = (0..steps).map(|step| (f64::from(step), fall(f64::from(step)))).collect();
            let smoothed = smooth(&stretches(&points));
            let crossed = smoothed.iter().find(|s| s.mean <= 0.5).unwrap().step;
            assert!(
                (crossed - half).abs() <= f64::from(steps).max(MAX_POINTS as f64) / MAX_POINTS as f64,
                "{steps}: {crossed}"
            );
        }
        // The end of a steep curve does not fall below what was there.
        let bend: Vec<(f64, f64)> =
            (0..300).map(|step| (f64::from(step), if step < 297 { 12.0 } else { 0.1 })).collect();
        assert!(smooth(&stretches(&bend)).iter().all(|s| (0.1..=12.0).contains(&s.mean)));
    }

    #[test]
    fn a_mean_lies_within_its_stretch() {
        let points: Vec<(f64, f64)> = (0..4800).map(|step| (step as f64, f64::from(step % 7))).collect();
        let stretches = stretches(&points);
        assert_eq!(stretches.len(), MAX_POINTS);
        assert!(stretches.iter().all(|s| s.low == 0.0 && s.high == 6.0 && (2.0..4.0).contains(&s.mean)));
    }
}
