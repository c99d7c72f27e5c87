//! Progress bars on stderr, with time left; plain lines where stderr is no terminal; neither with `--quiet`.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use janus_core::hub::Progress;

use super::live::Live;
use super::out::{error_line, is_quiet};
use crate::status::{Bar, Status, TrainingView, duration};
use crate::visible::{message, one_line};

/// Work shorter than this shows no plain line.
pub(super) const QUIET: Duration = Duration::from_secs(2);
/// Plain lines come this far apart.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(10);

/// Whether stderr is a terminal whose lines can be drawn again.
pub(super) fn on_terminal() -> bool {
    static ON_TERMINAL: OnceLock<bool> = OnceLock::new();
    *ON_TERMINAL.get_or_init(|| std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb"))
}

/// All bars of the program, drawn together.
pub(super) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| {
        let target = if on_terminal() && !is_quiet() {
            ProgressDrawTarget::stderr_with_hz(8)
        } else {
            ProgressDrawTarget::hidden()
        };
        MultiProgress::with_draw_target(target)
    })
}

/// A remark on stderr, above the bars.
pub(super) fn say(line: &str) {
    if !is_quiet() {
        above_bars(line);
    }
}

fn above_bars(line: &str) {
    let line = &*message(line);
    if bars().is_hidden() {
        error_line(line);
    } else {
        // A terminal that is gone: the work goes on.
        let _ = bars().println(line);
    }
}

/// The style of a bar that tells times as [`duration`] does.
pub(super) fn bar_style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> ");
    let told = |time: Duration| duration(time.as_secs_f64());
    let left = move |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = out.write_str(&told(state.eta()));
    };
    let gone = move |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = out.write_str(&told(state.elapsed()));
    };
    style.with_key("time_left", left).with_key("time_gone", gone)
}

/// Draws on stderr.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terminal;

impl Status for Terminal {
    fn bytes(&self, what: &str, total_bytes: u64) -> Box<dyn Bar> {
        Box::new(TerminalBar::new(what, total_bytes, true))
    }

    fn items(&self, what: &str, total: u64) -> Box<dyn Bar> {
        Box::new(TerminalBar::new(what, total, false))
    }

    fn download(&self) -> Box<dyn Progress> {
        Box::new(Download(Mutex::new(None)))
    }

    fn training(&self, steps: u64, done: u64, predicted_peak_bytes: u64) -> Box<dyn TrainingView> {
        Box::new(Live::new(steps, done, predicted_peak_bytes))
    }

    fn note(&self, text: &str) {
        say(text);
    }

    fn warn(&self, text: &str) {
        above_bars(&format!("warning: {text}"));
    }
}

struct TerminalBar {
    what: String,
    bar: ProgressBar,
    plain: bool,
    bytes: bool,
    message: Mutex<String>,
    last_line: Mutex<Option<Instant>>,
    started: Instant,
}

impl TerminalBar {
    fn new(what: &str, total: u64, bytes: bool) -> Self {
        let template = if bytes {
            "{prefix} {bar:28} {bytes}/{total_bytes}  {bytes_per_sec}  {time_left} left  {msg}"
        } else {
            "{prefix} {bar:28} {pos}/{len}  {time_left} left  {msg}"
        };
        let bar = bars().add(ProgressBar::new(total));
        let plain = !on_terminal();
        bar.set_style(bar_style(template));
        let what = one_line(what).into_owned();
        bar.set_prefix(what.clone());
        let (message, last_line) = (Mutex::default(), Mutex::new(None));
        Self { what, bar, plain, bytes, message, last_line, started: Instant::now() }
    }

    fn amount(&self, value: u64) -> String {
        if self.bytes { super::report::bytes(value) } else { value.to_string() }
    }

    /// A line now and then, for logs.
    fn line(&self) {
        if !self.plain || self.started.elapsed() < QUIET {
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < LINE_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        let message = self.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let left = match done {
            0 => String::new(),
            _ => {
                let seconds = self.started.elapsed().as_secs_f64() * total.saturating_sub(done) as f64 / done as f64;
                format!(", {} left", duration(seconds))
            }
        };
        say(&format!("{}: {} of {}{left}  {message}", self.what, self.amount(done), self.amount(total)));
    }
}

impl Bar for TerminalBar {
    fn advance(&self, amount: u64) {
        self.bar.inc(amount);
        self.line();
    }

    fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.line();
    }

    fn message(&self, text: &str) {
        let text = one_line(text).into_owned();
        self.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone_from(&text);
        self.bar.set_message(text);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
        bars().remove(&self.bar);
        let message = self.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = self.started.elapsed();
        if seconds >= QUIET {
            let amount = self.amount(self.bar.position());
            say(&format!("{}: {amount} in {}  {message}", self.what, duration(seconds.as_secs_f64())));
        }
    }
}

/// One bar per file.
struct Download(Mutex<Option<TerminalBar>>);

impl Progress for Download {
    fn file(&self, name: &str, total_bytes: Option<u64>, already_bytes: u64) {
        let bar = TerminalBar::new(name, total_bytes.unwrap_or(0), true);
        bar.bar.set_position(already_bytes);
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            bar.advance(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            bar.finish();
        }
    }

    fn note(&self, message: &str) {
        say(message);
    }
}
