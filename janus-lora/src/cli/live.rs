//! The steps of a run on stderr: a few lines that redraw on a terminal, a plain line now and then elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::report::bytes;
use super::status::{LINE_EVERY, QUIET, bar_style, bars, on_terminal, say};
use crate::status::{TrainingView, duration};
use crate::train::metrics::StepLine;
use crate::visible::one_line;

/// Tables that have a line of their own.
const MAX_TABLES: usize = 6;
/// Stretches of a curve at most; beyond, two become one.
const MAX_STRETCHES: usize = 40;

/// The view of one run.
pub(super) struct Live {
    steps: u64,
    done: u64,
    predicted_peak_bytes: u64,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    taken: u64,
    told: Option<Instant>,
    loss: f64,
    tokens_per_second: f64,
    tables: Vec<(String, Curve)>,
    drawn: Option<Drawn>,
}

/// What stands on a terminal.
struct Drawn {
    header: ProgressBar,
    tables: Vec<ProgressBar>,
    rates: ProgressBar,
}

impl Live {
    pub(super) fn new(steps: u64, done: u64, predicted_peak_bytes: u64) -> Self {
        let drawn = on_terminal().then(|| {
            let header = bars().add(ProgressBar::new(steps));
            header.set_style(bar_style("training {bar:32} {pos}/{len}  {time_gone} gone{msg}"));
            header.set_position(done);
            // Steps may take a minute: the clock goes on meanwhile.
            header.enable_steady_tick(Duration::from_secs(1));
            Drawn { header, tables: Vec::new(), rates: bars().add(line()) }
        });
        let (taken, told, loss, tokens_per_second, tables) = (0, None, 0.0, 0.0, Vec::new());
        let state = Mutex::new(State { taken, told, loss, tokens_per_second, tables, drawn });
        Self { steps, done, predicted_peak_bytes, started: Instant::now(), state }
    }

    /// Seconds to the end, at the speed so far.
    fn left(&self, taken: u64) -> f64 {
        let steps = self.steps.saturating_sub(self.done + taken);
        self.started.elapsed().as_secs_f64() * steps as f64 / taken.max(1) as f64
    }
}

impl TrainingView for Live {
    fn stepped(&self, step: &StepLine) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.taken += 1;
        (state.loss, state.tokens_per_second) = (step.loss, step.tokens_per_second);
        for (table, loss) in step.losses.iter().filter_map(|(table, loss)| Some((table, loss.as_f64()?))) {
            let place = state.tables.iter().position(|(known, _)| known == table).unwrap_or_else(|| {
                state.tables.push((table.clone(), Curve::default()));
                state.tables.len() - 1
            });
            state.tables[place].1.push(loss);
        }
        let left = duration(self.left(state.taken));
        match &mut state.drawn {
            Some(drawn) => {
                let widest = state.tables.iter().map(|(name, _)| name.chars().count().min(24)).max().unwrap_or(0);
                for (number, (name, curve)) in state.tables.iter().enumerate().take(MAX_TABLES) {
                    if number == drawn.tables.len() {
                        let below = drawn.tables.last().unwrap_or(&drawn.header);
                        drawn.tables.push(bars().insert_after(below, line()));
                    }
                    let name: String = one_line(name).chars().take(24).collect();
                    let text = format!("  {name:<widest$}  {:>9.4}  {}", curve.last, curve.drawn(has_blocks()));
                    drawn.tables[number].set_message(text);
                }
                // Whole on a terminal of 80 columns.
                drawn.rates.set_message(format!(
                    "  learning rate {:.2e}{}  memory {} ({} predicted)",
                    step.lr,
                    speed(step.tokens_per_second),
                    bytes(step.rss_bytes),
                    bytes(self.predicted_peak_bytes)
                ));
                drawn.header.set_message(format!(", {left} left"));
                drawn.header.set_position(self.done + state.taken);
            }
            None => {
                let quiet =
                    self.started.elapsed() < QUIET || state.told.is_some_and(|told| told.elapsed() < LINE_EVERY);
                if quiet {
                    return;
                }
                state.told = Some(Instant::now());
                let by_table: Vec<String> =
                    state.tables.iter().map(|(name, curve)| format!("{name} {:.4}", curve.last)).collect();
                let by_table = if by_table.len() > 1 { format!(" ({})", by_table.join(", ")) } else { String::new() };
                say(&format!(
                    "training: {} of {}, {left} left  loss {:.4}{by_table}  learning rate {:.2e}{}  memory {}",
                    step.step,
                    self.steps,
                    step.loss,
                    step.lr,
                    speed(step.tokens_per_second),
                    bytes(step.rss_bytes)
                ));
            }
        }
    }

    fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(state.drawn.take());
        let seconds = self.started.elapsed();
        if seconds >= QUIET {
            say(&format!(
                "training: {} in {}  loss {:.4}{}",
                state.taken,
                duration(seconds.as_secs_f64()),
                state.loss,
                speed(state.tokens_per_second)
            ));
        }
    }
}

/// A line of text.
fn line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    line.set_style(ProgressStyle::with_template("{wide_msg}").expect("a fixed template"));
    line
}

impl Drop for Drawn {
    fn drop(&mut self) {
        for line in [&self.header, &self.rates].into_iter().chain(&self.tables) {
            line.disable_steady_tick();
            line.finish_and_clear();
            bars().remove(line);
        }
    }
}

/// A curve in few stretches, each the mean of as many values.
#[derive(Debug, Default)]
struct Curve {
    last: f64,
    means: Vec<f64>,
    stretch: usize,
    sum: f64,
    count: usize,
}

impl Curve {
    fn push(&mut self, value: f64) {
        self.last = value;
        self.stretch = self.stretch.max(1);
        self.sum += value;
        self.count += 1;
        if self.count == self.stretch {
            self.means.push(self.sum / self.count as f64);
            (self.sum, self.count) = (0.0, 0);
        }
        if self.means.len() == MAX_STRETCHES {
            self.means = self.means.chunks(2).map(|pair| pair.iter().sum::<f64>() / pair.len() as f64).collect();
            self.stretch *= 2;
        }
    }

    /// The stretches as a row of heights.
    fn drawn(&self, blocks: bool) -> String {
        let heights: &[char] = if blocks {
            &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            &['_', '.', '-', '=', '+', '*', '#']
        };
        let finite = || self.means.iter().copied().filter(|mean| mean.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        let height = |mean: &f64| {
            let share = if high > low { (mean - low) / (high - low) } else { 0.0 };
            heights.get((share * (heights.len() - 1) as f64).round() as usize).copied().unwrap_or('?')
        };
        self.means.iter().map(height).collect()
    }
}

/// Whether the terminal's character set has blocks.
fn has_blocks() -> bool {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = variable("LC_ALL").or_else(|| variable("LC_CTYPE")).or_else(|| variable("LANG"));
    match named {
        Some(locale) => locale.to_lowercase().replace('-', "").contains("utf8"),
        None => cfg!(any(windows, target_os = "macos")),
    }
}

/// Tokens a second; nothing of steps that read pictures alone.
fn speed(tokens_per_second: f64) -> String {
    if tokens_per_second > 0.0 { format!("  {tokens_per_second:.0} tokens/s") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_short_and_keeps_its_shape() {
        let mut curve = Curve::default();
        for step in 0..10_000 {
            curve.push(f64::from(10_000 - step));
            assert!(curve.means.len() < MAX_STRETCHES);
        }
        assert!(curve.means.len() >= MAX_STRETCHES / 2 - 1);
        assert!(curve.means.is_sorted_by(|a, b| a > b));
        let drawn = curve.drawn(true);
        assert!(drawn.starts_with('█') && drawn.ends_with('▁'), "{drawn}");
        assert!(curve.drawn(false).is_ascii());
        let mut flat = Curve::default();
        flat.push(f64::NAN);
        flat.push(2.0);
        assert_eq!(flat.drawn(true).chars().count(), 2);
    }
}
