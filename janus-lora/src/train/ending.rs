//! How a run ended, and of which step the adapter is that it left.

use serde::{Deserialize, Serialize};

use super::guard::Best;
use crate::recipe::EarlyStopping;

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// Steps after which the adapter was as it was saved.
    pub step: u64,
    /// Steps that were taken.
    pub steps: u64,
    /// Steps that were planned.
    pub planned_steps: u64,
    /// Whether fewer were taken than planned.
    pub stopped_early: bool,
    /// Why the run ended there and the adapter is that of its step, in words.
    pub reason: String,
}

impl Ending {
    /// The end after `steps` of `planned_steps`, with the rule that stops the run and the best evaluation by it.
    pub fn new(steps: u64, planned_steps: u64, rule: Option<&EarlyStopping>, best: Option<&Best>) -> Self {
        let stopped_early = steps < planned_steps;
        let step = best.map_or(steps, |best| best.step);
        let metric = rule.map(|rule| rule.metric.as_str()).unwrap_or_default();
        let taken = match planned_steps {
            1 => "the one step that was planned is done".to_owned(),
            _ => format!("all {planned_steps} steps are done"),
        };
        let reason = match (rule, best) {
            (Some(rule), Some(best)) if stopped_early => {
                let (value, times) = (number(best.value), evaluations(rule.patience));
                format!(
                    "stopped early after step {steps} of {planned_steps}: `{metric}` has not got better in {times} since \
                     step {step}, where it was {value}"
                )
            }
            (Some(rule), None) if stopped_early => format!(
                "stopped early after step {steps} of {planned_steps}: `{metric}` gave no number in {}",
                evaluations(rule.patience)
            ),
            _ if stopped_early => format!("ended after step {steps} of {planned_steps}"),
            (Some(_), Some(best)) if step < steps => {
                format!("{taken}; `{metric}` was best after step {step}, where it was {}", number(best.value))
            }
            (Some(_), Some(best)) => format!("{taken}; `{metric}` is best after the last, {}", number(best.value)),
            (Some(_), None) => format!("{taken}; `{metric}` never was a number"),
            (None, _) => taken,
        };
        Self { step, steps, planned_steps, stopped_early, reason }
    }

    /// The adapter is that of the last step after all: the best one's checkpoint cannot be read.
    pub fn without_best(self) -> Self {
        let reason = format!("{}; the checkpoint of step {} cannot be read", self.reason, self.step);
        Self { step: self.steps, reason, ..self }
    }

    /// What has to be told of an end that is not the usual one: the last planned step, and its adapter.
    pub fn remark(&self) -> Option<String> {
        let is_usual = !self.stopped_early && self.step == self.steps;
        (!is_usual).then(|| format!("{}; the adapter is that of step {}", self.reason, self.step))
    }
}

fn evaluations(count: u64) -> String {
    match count {
        1 => "the one evaluation".to_owned(),
        count => format!("{count} evaluations"),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (1e-3..1e6).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::eval::Metrics;
    use crate::recipe::Goal;

    fn rule(patience: u64) -> EarlyStopping {
        EarlyStopping { metric: "q.loss".into(), patience, mode: Goal::Min }
    }

    fn best(step: u64) -> Best {
        Best { step, value: 0.25, metrics: Metrics::new() }
    }

    #[test]
    fn an_end_says_whose_adapter_it_is_and_why() {
        let usual = Ending::new(9, 9, None, None);
        assert_eq!((usual.step, usual.stopped_early, usual.reason.as_str()), (9, false, "all 9 steps are done"));
        assert_eq!(usual.remark(), None);

        let stopped = Ending::new(6, 9, Some(&rule(2)), Some(&best(4)));
        assert_eq!((stopped.step, stopped.steps, stopped.planned_steps, stopped.stopped_early), (4, 6, 9, true));
        let told = stopped.remark().unwrap();
        assert!(
            told.starts_with("stopped early after step 6 of 9: `q.loss` has not got better in 2 evaluations"),
            "{told}"
        );
        assert!(told.ends_with("since step 4, where it was 0.2500; the adapter is that of step 4"), "{told}");

        let never_stopped = Ending::new(9, 9, Some(&rule(0)), Some(&best(4)));
        assert!(!never_stopped.stopped_early);
        assert!(never_stopped.remark().unwrap().contains("`q.loss` was best after step 4"), "{never_stopped:?}");

        let last = Ending::new(9, 9, Some(&rule(3)), Some(&best(9)));
        assert_eq!((last.step, last.remark()), (9, None));

        let lost = Ending::new(6, 9, Some(&rule(1)), Some(&best(5))).without_best();
        assert_eq!(lost.step, 6);
        assert!(lost.remark().unwrap().ends_with("step 5 cannot be read; the adapter is that of step 6"), "{lost:?}");

        let no_number = Ending::new(6, 9, Some(&rule(3)), None);
        assert!(no_number.reason.ends_with("`q.loss` gave no number in 3 evaluations"), "{no_number:?}");
    }
}
