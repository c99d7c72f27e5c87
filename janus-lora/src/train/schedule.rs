//! Learning rate by step: linear warm-up, then constant, linear or cosine decay.
//! Source: `optimization.py` of transformers 5.23.0 (`get_constant_schedule_with_warmup`, `get_linear_…`, `get_cosine_…`).

use crate::recipe::Schedule;

/// The rate of each step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Form of the decay.
    pub schedule: Schedule,
    /// Steps over which the rate rises from 0; the first of them has rate 0.
    pub warmup_steps: u64,
    /// Steps of the run.
    pub steps: u64,
}

impl LearningRate {
    /// The rate of `step`, from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f64 / rest as f64;
        self.peak
            * match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => (1.0 - progress).max(0.0),
                Schedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_from_zero_and_falls_as_asked() {
        let rate = |schedule| LearningRate { peak: 1e-3, schedule, warmup_steps: 3, steps: 23 };
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            let rate = rate(schedule);
            assert_eq!(rate.at(0), 0.0);
            assert!((rate.at(1) - 1e-3 / 3.0).abs() < 1e-12);
            assert!((rate.at(3) - 1e-3).abs() < 1e-12);
        }
        assert_eq!(rate(Schedule::Constant).at(22), 1e-3);
        assert!((rate(Schedule::Linear).at(13) - 5e-4).abs() < 1e-12);
        assert!((rate(Schedule::Cosine).at(13) - 5e-4).abs() < 1e-12);
        assert!(rate(Schedule::Cosine).at(8) > rate(Schedule::Linear).at(8));
        assert_eq!(rate(Schedule::Cosine).at(23), 0.0);
    }
}
