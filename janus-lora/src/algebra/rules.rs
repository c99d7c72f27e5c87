//! How values of several tensors become one: sums, pruning, and signs that are agreed upon.
//! Source: PEFT 0.21.2, `utils/merge_utils.py`; Yadav et al., "TIES-Merging" (2023); Yu et al., "Language Models are Super Mario"
//! (DARE, 2023). All in f32, as there.

use janus_core::noise;

/// Which sign counts where tensors disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// That of the sum of the values.
    #[default]
    Total,
    /// The one that more of them have.
    Frequency,
}

/// Which values of a tensor are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Prune {
    /// All.
    Nothing,
    /// This share of them, the greatest.
    Magnitude { density: f64 },
    /// Each with this probability, divided by it.
    Random { density: f64 },
}

/// What is done with tensors of one length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    /// Which values are kept.
    pub(super) prune: Prune,
    /// Whether at every place only values of one sign count, and their mean, not their sum.
    pub(super) elect: Option<MajoritySign>,
}

impl Rule {
    /// One tensor out of several, each with a weight. What is drawn is a function of `key`.
    pub(super) fn apply(&self, mut tensors: Vec<Vec<f32>>, weights: &[f32], key: u64) -> Vec<f32> {
        for (number, tensor) in tensors.iter_mut().enumerate() {
            match self.prune {
                Prune::Magnitude { density } if density < 1.0 => keep_greatest(tensor, density),
                Prune::Random { density } if density < 1.0 => {
                    keep_at_random(tensor, density, noise::combine(key, number as u64));
                }
                _ => {}
            }
        }
        let length = tensors.first().map_or(0, Vec::len);
        let at = |place: usize| tensors.iter().map(move |tensor| tensor[place]);
        let weighted = |place: usize| at(place).zip(weights);
        let Some(majority) = self.elect else {
            return (0..length).map(|place| weighted(place).map(|(value, weight)| value * weight).sum()).collect();
        };
        let sign = |value: f32| if value == 0.0 { 0.0 } else { value.signum() };
        let elected = |place: usize| {
            let vote: f32 = match majority {
                MajoritySign::Total => at(place).sum(),
                MajoritySign::Frequency => at(place).map(sign).sum(),
            };
            // The signs of the values alone vote, those of the weights do not.
            let elected = if vote >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut count) = (0.0f32, 0u32);
            for (value, weight) in weighted(place).filter(|(value, _)| sign(*value) == elected) {
                sum += value * weight;
                count += 1;
            }
            sum / count.max(1) as f32
        };
        (0..length).map(elected).collect()
    }
}

/// Zeroes all but this share of the values, rounded down, that are farthest from zero; of equal ones the first are kept.
fn keep_greatest(tensor: &mut [f32], density: f64) {
    let kept = (density * tensor.len() as f64) as usize;
    // Bits of what has no sign are in the order of the values.
    let size = |value: f32| value.abs().to_bits();
    let mut sizes: Vec<u32> = tensor.iter().map(|value| size(*value)).collect();
    let Some(last) = kept.checked_sub(1) else {
        tensor.fill(0.0);
        return;
    };
    let (greater, least, _) = sizes.select_nth_unstable_by(last, |one, other| other.cmp(one));
    let least = *least;
    let mut equal = kept - greater.iter().filter(|size| **size > least).count();
    for value in tensor {
        let is_kept = match size(*value).cmp(&least) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal if equal > 0 => {
                equal -= 1;
                true
            }
            _ => false,
        };
        if !is_kept {
            *value = 0.0;
        }
    }
}

/// Keeps each value with this probability, divided by it, and zeroes the others.
fn keep_at_random(tensor: &mut [f32], density: f64, key: u64) {
    for (index, value) in tensor.iter_mut().enumerate() {
        *value = if noise::uniform(key, index as u64) < density { *value / density as f32 } else { 0.0 };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn apply(prune: Prune, elect: Option<MajoritySign>, tensors: &[&[f32]], weights: &[f32]) -> Vec<f32> {
        Rule { prune, elect }.apply(tensors.iter().map(|tensor| tensor.to_vec()).collect(), weights, 7)
    }

    #[test]
    fn sums_are_weighted() {
        assert_eq!(apply(Prune::Nothing, None, &[&[1.0, -2.0], &[10.0, 20.0]], &[2.0, -0.5]), [-3.0, -14.0]);
    }

    #[test]
    fn as_many_of_the_greatest_are_kept_as_there_is_room_for() {
        let kept = |density: f64, values: &[f32]| apply(Prune::Magnitude { density }, None, &[values], &[1.0]);
        assert_eq!(kept(0.5, &[0.5, -3.0, 1.0, 2.0]), [0.0, -3.0, 0.0, 2.0]);
        // 0.6 · 4 = 2.4.
        assert_eq!(kept(0.6, &[0.5, -3.0, 1.0, 2.0]), [0.0, -3.0, 0.0, 2.0]);
        assert_eq!(kept(0.5, &[1.0, -1.0, 1.0, 1.0]), [1.0, -1.0, 0.0, 0.0]);
        assert_eq!(kept(0.2, &[1.0, 2.0]), [0.0, 0.0]);
        assert_eq!(kept(1.0, &[1.0, 2.0]), [1.0, 2.0]);
        assert_eq!(kept(0.75, &[0.0, 0.0, -0.0, 5.0]), [0.0, 0.0, 0.0, 5.0]);
    }

    #[test]
    fn of_signs_that_disagree_one_is_elected_and_its_values_are_averaged() {
        let tensors: [&[f32]; 3] = [&[3.0, 3.0, 0.0, 1.0], &[-1.0, -1.0, 2.0, -1.0], &[-1.0, 5.0, 0.0, 0.0]];
        let weights = [1.0, 1.0, 0.5];
        let total = apply(Prune::Nothing, Some(MajoritySign::Total), &tensors, &weights);
        assert_eq!(total, [3.0, 2.75, 2.0, 1.0]);
        let frequency = apply(Prune::Nothing, Some(MajoritySign::Frequency), &tensors, &weights);
        assert_eq!(frequency, [-0.75, 2.75, 2.0, 1.0]);
    }

    #[test]
    fn drawn_values_keep_their_expectation_and_are_drawn_again() {
        let ones = vec![1.0f32; 20_000];
        let drawn =
            |key| Rule { prune: Prune::Random { density: 0.25 }, elect: None }.apply(vec![ones.clone()], &[1.0], key);
        let first = drawn(1);
        assert!(first.iter().all(|value| *value == 0.0 || *value == 4.0));
        let mean = first.iter().sum::<f32>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert_eq!(first, drawn(1));
        assert_ne!(first, drawn(2));
        // Of two tensors each has its own.
        let two = Rule { prune: Prune::Random { density: 0.25 }, elect: None };
        let sum = two.apply(vec![ones.clone(), ones.clone()], &[1.0, 1.0], 1);
        assert!(sum.contains(&4.0) && sum.contains(&8.0) && sum.contains(&0.0));
    }
}
