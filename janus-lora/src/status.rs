//! How long work reports its progress; the library only knows this trait, the program draws bars.

use janus_core::hub::Progress;

use crate::train::metrics::StepLine;

/// One piece of work with a known or growing extent.
pub trait Bar: Send + Sync {
    /// So much more is done.
    fn advance(&self, amount: u64);
    /// So much is done of so much.
    fn set(&self, done: u64, total: u64);
    /// A word beside the bar.
    fn message(&self, text: &str);
    /// The work is over.
    fn finish(&self);
}

/// The steps of a run as they go by.
pub trait TrainingView: Send + Sync {
    /// A step is done.
    fn stepped(&self, line: &StepLine);
    /// The steps are over.
    fn finish(&self);
}

/// Where progress and remarks go.
pub trait Status: Send + Sync {
    /// Work counted in bytes.
    fn bytes(&self, what: &str, total_bytes: u64) -> Box<dyn Bar>;
    /// Work counted in items.
    fn items(&self, what: &str, total: u64) -> Box<dyn Bar>;
    /// The steps of a run, of which `done` were taken at an earlier start, with the memory that is expected.
    fn training(&self, steps: u64, done: u64, predicted_peak_bytes: u64) -> Box<dyn TrainingView>;
    /// A download.
    fn download(&self) -> Box<dyn Progress>;
    /// A remark for the user.
    fn note(&self, text: &str);
    /// Something the user should look at.
    fn warn(&self, text: &str);
}

/// A time in seconds as people tell it, in the two units that matter: `6 h 21 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        86400..8_640_000 => format!("{days} {} {} h", if days == 1 { "day" } else { "days" }, hours % 24),
        _ => format!("{days} days"),
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Bar for Silent {
    fn advance(&self, _amount: u64) {}
    fn set(&self, _done: u64, _total: u64) {}
    fn message(&self, _text: &str) {}
    fn finish(&self) {}
}

impl TrainingView for Silent {
    fn stepped(&self, _line: &StepLine) {}
    fn finish(&self) {}
}

impl Status for Silent {
    fn bytes(&self, _what: &str, _total_bytes: u64) -> Box<dyn Bar> {
        Box::new(Silent)
    }

    fn items(&self, _what: &str, _total: u64) -> Box<dyn Bar> {
        Box::new(Silent)
    }

    fn training(&self, _steps: u64, _done: u64, _predicted_peak_bytes: u64) -> Box<dyn TrainingView> {
        Box::new(Silent)
    }

    fn download(&self) -> Box<dyn Progress> {
        Box::new(janus_core::hub::Silent)
    }

    fn note(&self, _text: &str) {}

    fn warn(&self, _text: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        for (seconds, told) in [
            (0.0, "0.0 s"),
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (200.0, "3 min 20 s"),
            (3599.7, "1 h 0 min"),
            (22_862.0, "6 h 21 min"),
            (100_000.0, "1 day 3 h"),
            (200_000.0, "2 days 7 h"),
            (-1.0, "0.0 s"),
        ] {
            assert_eq!(duration(seconds), told, "{seconds}");
        }
        assert!(duration(f64::INFINITY).ends_with("days"));
    }
}
