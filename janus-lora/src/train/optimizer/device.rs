//! AdamW where values and gradients lie on a device: tensors of one count and one rate are moved together, so that a step is some
//! twenty launches and two copies a tensor, whatever the adapter, and the processor waits for none of them.

use candle_core::{DType, Device, Result, Tensor};

use super::{AdamW, AdamWConfig, Moments, Slot};
use crate::train::trainable::Trainable;

/// Most values that are moved together: what is formed on the way takes some eight times their room.
const MOST_VALUES: usize = 1 << 26;

/// Values whose squares are summed by one block of threads.
const SUMMED_TOGETHER: usize = 1024;

/// Tensors that are moved together, by their numbers, rising.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    members: Vec<usize>,
    steps: i32,
}

/// Moments of a group, one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Flat {
    group: Group,
    /// Where each member begins, and at last where the last one ends.
    bounds: Vec<usize>,
    first: Tensor,
    second: Tensor,
}

/// Gradients of a step as the optimiser takes them, in f32.
#[derive(Debug)]
pub(in crate::train) struct Gradients {
    groups: Vec<(Group, Tensor)>,
}

impl Gradients {
    /// `Σ g²` of all, a scalar on their device; `None` where there are none.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(in crate::train) fn squares(&self) -> Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for (_, flat) in &self.groups {
            let squares = flat.sqr()?;
            let whole = squares.elem_count() / SUMMED_TOGETHER * SUMMED_TOGETHER;
            let rows = squares.narrow(0, 0, whole)?.reshape((whole / SUMMED_TOGETHER, SUMMED_TOGETHER))?;
            let rest = squares.narrow(0, whole, squares.elem_count() - whole)?;
            for part in [rows.sum(1)?, rest].iter().filter(|part| part.elem_count() > 0) {
                let part = part.sum_all()?;
                sum = Some(match sum {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
        Ok(sum)
    }
}

impl AdamW {
    /// Puts the gradients of a step, one a tensor, into the order in which tensors are moved.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(in crate::train) fn gathered(
        &self,
        trainables: &[&Trainable],
        gradients: &[Option<Tensor>],
    ) -> Result<Gradients> {
        let mut groups: Vec<(Group, u64, usize)> = Vec::new();
        for (number, (trainable, gradient)) in trainables.iter().zip(gradients).enumerate() {
            let Some(gradient) = gradient else { continue };
            let (steps, rate, values) = (self.steps(number), trainable.rate.to_bits(), gradient.elem_count());
            let fits = |(group, group_rate, group_values): &&mut (Group, u64, usize)| {
                group.steps == steps && *group_rate == rate && *group_values + values <= MOST_VALUES
            };
            match groups.iter_mut().rev().find(fits) {
                Some((group, _, group_values)) => {
                    group.members.push(number);
                    *group_values += values;
                }
                None => groups.push((Group { members: vec![number], steps }, rate, values)),
            }
        }
        let flat = |(group, _, _): (Group, u64, usize)| -> Result<(Group, Tensor)> {
            let parts = group.members.iter().filter_map(|number| gradients.get(*number)?.as_ref());
            let flat = flat_of(parts)?;
            Ok((group, flat))
        };
        Ok(Gradients { groups: groups.into_iter().map(flat).collect::<Result<_>>()? })
    }

    /// Moves every tensor that has a gradient, times `factor`, where it lies.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(in crate::train) fn step_on_device(
        &mut self,
        trainables: &[&Trainable],
        gradients: Gradients,
        factor: f64,
        learning_rate: f64,
    ) -> Result<()> {
        for (group, gradient) in gradients.groups {
            let members: Vec<&Trainable> =
                group.members.iter().filter_map(|number| trainables.get(*number).copied()).collect();
            let Some(rate) = members.first().map(|member| member.rate) else { continue };
            let mut flat = self.take_flat(group, &members, gradient.device())?;
            let gradient = if factor == 1.0 { gradient } else { (gradient * factor)? };
            let values = flat_of(members.iter().map(|member| member.var.as_tensor()))?;
            let moved = self.config.moved(&mut flat, &values, &gradient, learning_rate * rate)?;
            for (member, bounds) in members.iter().zip(flat.bounds.windows(2)) {
                let own = moved.narrow(0, bounds[0], bounds[1] - bounds[0])?;
                member.var.set(&own.reshape(member.var.dims())?)?;
            }
            self.flats.push(flat);
        }
        Ok(())
    }

    /// The moments of a group, out of the optimiser.
    fn take_flat(&mut self, group: Group, members: &[&Trainable], device: &Device) -> Result<Flat> {
        if let Some(place) = self.flats.iter().position(|flat| flat.group == group) {
            return Ok(self.flats.swap_remove(place));
        }
        self.dissolve(|number| group.members.contains(&number))?;
        let mut bounds = vec![0];
        for member in members {
            bounds.push(bounds.last().copied().unwrap_or(0) + member.var.elem_count());
        }
        let values = bounds.last().copied().unwrap_or(0);
        let (mut first, mut second) = (Vec::with_capacity(values), Vec::with_capacity(values));
        for (number, bounds) in group.members.iter().zip(bounds.windows(2)) {
            let Slot { first: own_first, second: own_second, .. } = std::mem::take(&mut self.slots[*number]);
            first.extend(own_first);
            second.extend(own_second);
            // Before its first update a tensor has none.
            first.resize(bounds[1], 0.0);
            second.resize(bounds[1], 0.0);
        }
        let (first, second) = (Tensor::from_vec(first, values, device)?, Tensor::from_vec(second, values, device)?);
        Ok(Flat { group, bounds, first, second })
    }

    /// Brings moments back to the processor, of all groups with a member of these numbers.
    pub(super) fn dissolve(&mut self, is_asked: impl Fn(usize) -> bool) -> Result<()> {
        let (asked, others): (Vec<Flat>, Vec<Flat>) = std::mem::take(&mut self.flats)
            .into_iter()
            .partition(|flat| flat.group.members.iter().any(|n| is_asked(*n)));
        self.flats = others;
        for flat in asked {
            let (first, second): (Vec<f32>, Vec<f32>) = (flat.first.to_vec1()?, flat.second.to_vec1()?);
            for (number, bounds) in flat.group.members.iter().zip(flat.bounds.windows(2)) {
                let own = |values: &[f32]| values[bounds[0]..bounds[1]].to_vec();
                self.slots[*number] = Slot { first: own(&first), second: own(&second), steps: flat.group.steps };
            }
        }
        Ok(())
    }

    /// What of [`AdamW::state`] lies on a device.
    pub(super) fn state_on_device(&self, number: usize) -> Result<Option<Moments<'static>>> {
        let place = |flat: &Flat| flat.group.members.iter().position(|member| *member == number);
        let Some((flat, place)) = self.flats.iter().find_map(|flat| Some((flat, place(flat)?))) else {
            return Ok(None);
        };
        let [start, end] = [flat.bounds[place], flat.bounds[place + 1]];
        let own = |values: &Tensor| values.narrow(0, start, end - start)?.to_vec1::<f32>();
        let (first, second) = (own(&flat.first)?.into(), own(&flat.second)?.into());
        Ok(Some(Moments { first, second, steps: flat.group.steps }))
    }

    /// Updates of a tensor so far.
    fn steps(&self, number: usize) -> i32 {
        let flat = self.flats.iter().find(|flat| flat.group.members.contains(&number));
        flat.map_or_else(|| self.slots.get(number).map_or(0, |slot| slot.steps), |flat| flat.group.steps)
    }
}

impl AdamWConfig {
    /// The values after an update, as [`super::Mover::update`] has them; the moments are moved in place.
    fn moved(&self, flat: &mut Flat, values: &Tensor, gradient: &Tensor, learning_rate: f64) -> Result<Tensor> {
        let [beta1, beta2] = self.betas;
        flat.group.steps += 1;
        let step_size = learning_rate / (1.0 - beta1.powi(flat.group.steps));
        let root_correction = (1.0 - beta2.powi(flat.group.steps)).sqrt();
        flat.first = ((&flat.first * beta1)? + (gradient * (1.0 - beta1))?)?;
        flat.second = ((&flat.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = flat.second.sqrt()?.affine(1.0 / root_correction, self.eps)?;
        let step = (&flat.first / denominator)?.affine(step_size, 0.0)?;
        match learning_rate * self.weight_decay {
            0.0 => values - step,
            decay => (values * (1.0 - decay))? - step,
        }
    }
}

/// Tensors one behind the other, in f32 and without their graphs.
fn flat_of<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    let parts = tensors.map(|tensor| tensor.detach().to_dtype(DType::F32)?.flatten_all());
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::train::optimizer::clip;

    const CONFIG: AdamWConfig = AdamWConfig { betas: [0.8, 0.95], eps: 1e-3, weight_decay: 0.3 };

    fn trainable(name: &str, dims: &[usize], rate: f64) -> Trainable {
        let count: usize = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        let var = Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap();
        Trainable { name: name.into(), var, rate }
    }

    /// Steps in which other tensors lack a gradient each time, by both ways, with moments saved and put back on the way.
    #[test]
    fn moving_together_is_moving_one_by_one() {
        let make = || {
            [
                trainable("a", &[7, 300], 1.0),
                trainable("b", &[5], 3.0),
                trainable("c", &[3, 2, 2], 1.0),
                trainable("d", &[1], 1.0),
            ]
        };
        let (alone, together) = (make(), make());
        let (mut slow, mut fast) = (AdamW::new(CONFIG, 4), AdamW::new(CONFIG, 4));
        let lacking: [&[usize]; 6] = [&[], &[1], &[], &[0, 3], &[0, 1, 2, 3], &[]];
        for (step, lacking) in lacking.into_iter().enumerate() {
            let gradients: Vec<Option<Vec<f32>>> = alone
                .iter()
                .enumerate()
                .map(|(number, trainable)| {
                    let value = |i: usize| ((i * 31 + number * 7 + step * 13) as f32 * 0.37).cos();
                    (!lacking.contains(&number)).then(|| (0..trainable.var.elem_count()).map(value).collect())
                })
                .collect();
            let (norm, factor) = clip(&gradients, 2.0);
            let tensors: Vec<Option<Tensor>> = gradients
                .iter()
                .zip(&together)
                .map(|(gradient, own)| {
                    gradient.clone().map(|g| Tensor::from_vec(g, own.var.dims(), &Device::Cpu).unwrap())
                })
                .collect();
            for ((mover, trainable), gradient) in slow.movers_in_order().zip(&alone).zip(&gradients) {
                let Some(gradient) = gradient else { continue };
                let gradient: Vec<f32> = gradient.iter().map(|g| g * factor as f32).collect();
                let mut values: Vec<f32> = trainable.var.flatten_all().unwrap().to_vec1().unwrap();
                mover.update(&mut values, &gradient, 0.01 * trainable.rate);
                trainable.var.set(&Tensor::from_vec(values, trainable.var.dims(), &Device::Cpu).unwrap()).unwrap();
            }
            let list: Vec<&Trainable> = together.iter().collect();
            let gathered = fast.gathered(&list, &tensors).unwrap();
            match gathered.squares().unwrap() {
                Some(squares) => {
                    let together = f64::from(squares.to_scalar::<f32>().unwrap()).sqrt();
                    assert!((together / norm - 1.0).abs() < 1e-5, "{together} {norm}");
                }
                None => assert_eq!(lacking.len(), 4),
            }
            fast.step_on_device(&list, gathered, factor, 0.01).unwrap();
            if step == 2 {
                let mut again = AdamW::new(CONFIG, 4);
                for number in 0..4 {
                    let state = fast.state(number).unwrap().unwrap();
                    again.restore(number, state.first.into_owned(), state.second.into_owned(), state.steps).unwrap();
                }
                fast = again;
            }
            for (number, (one, other)) in alone.iter().zip(&together).enumerate() {
                let values = |t: &Trainable| -> Vec<f32> { t.var.flatten_all().unwrap().to_vec1().unwrap() };
                let close = |one: &[f32], other: &[f32]| one.iter().zip(other).all(|(a, b)| (a - b).abs() < 2e-6);
                assert!(close(&values(one), &values(other)), "step {step}, `{}`", one.name);
                let (slow, fast) = (slow.state(number).unwrap(), fast.state(number).unwrap());
                let (Some(slow), Some(fast)) = (slow, fast) else { panic!("{number} has no state") };
                assert_eq!(slow.steps, fast.steps, "step {step}, `{}`", one.name);
                assert!(close(&slow.first, &fast.first) && close(&slow.second, &fast.second), "step {step}, {number}");
            }
        }
    }
}
