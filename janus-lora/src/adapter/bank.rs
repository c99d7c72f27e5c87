//! Many adapters over one base, each in a slot of the model: any row of a pass may compute with any of them.
//!
//! What an adapter makes of sites and of the vision tower's norms is worked out once, as [`place()`](super::place()) does it, and
//! held ready by the model; a route then only chooses. Copies of whole parameters (`modules_to_save`) are the same for all rows
//! of a pass: requests whose adapters carry some form groups of their own ([`Bank::group`]), and a pass is of one group.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use janus_core::Janus;
use janus_core::model::SlotContents;
use janus_core::pass::{Mixture, Slot};

use super::error::AdapterError;
use super::pieces::scaled_copy;
use super::place::{Placed, Worked};
use super::{Adapter, place::heads_of};
use crate::heads::Heads;

/// Adapters in the slots of a model, of which it has one bank at a time. A bank that is dropped leaves the model as it was.
pub struct Bank<'m> {
    model: &'m Janus,
    held: BTreeMap<Slot, Entry>,
    next: u32,
    /// Parameters that copies of the group that was entered stand in for.
    entered: Vec<String>,
}

/// What is known of an adapter in a slot.
struct Entry {
    bytes: usize,
    heads: Heads,
    /// Copies of parameters, by native name.
    copies: BTreeMap<String, Tensor>,
    /// Parameters whose base value its corrections were worked out against.
    worked_against: BTreeSet<String>,
}

/// Requests of one group may share a pass: the same copies of parameters stand in, each with the same factor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Group(Mixture);

impl<'m> Bank<'m> {
    /// An empty bank over a model that nothing is attached to.
    pub fn new(model: &'m Janus) -> Self {
        Self { model, held: BTreeMap::new(), next: 0, entered: Vec::new() }
    }

    /// Holds an adapter in a slot of its own. On an error nothing has changed.
    ///
    /// # Errors
    /// A site or parameter that the model lacks or has in another shape.
    pub fn insert(&mut self, adapter: &Adapter) -> Result<Slot, AdapterError> {
        let placed = Placed::own(adapter, 1.0, self.model.device())?;
        let Worked { corrections, parameters } = Worked::of(self.model, &[placed])?;
        let (copies, norms): (BTreeMap<_, _>, BTreeMap<_, _>) =
            parameters.into_iter().partition(|(name, _)| adapter.saved.contains_key(name.as_str()));
        let mut contents = SlotContents { norms, ..SlotContents::default() };
        let mut worked_against = BTreeSet::new();
        for (projection, correction) in corrections {
            let path = projection.site().path.to_string();
            if correction.input.is_some() || correction.output.is_some() {
                worked_against.insert(format!("{path}.weight"));
            }
            if correction.bias.is_some() {
                worked_against.insert(format!("{path}.bias"));
            }
            contents.corrections.insert(path, correction);
        }
        let slot = Slot(self.next);
        let heads = heads_of(adapter, self.model.device())?;
        let of_copies: usize = copies.values().map(|copy| copy.elem_count() * copy.dtype().size_in_bytes()).sum();
        let bytes = self.model.hold(slot, &contents)? + of_copies;
        self.next += 1;
        self.held.insert(slot, Entry { bytes, heads, copies, worked_against });
        Ok(slot)
    }

    /// Takes an adapter out; a route to its slot is an error from then on. Returns whether it was there.
    pub fn remove(&mut self, slot: Slot) -> bool {
        self.model.release(slot);
        self.held.remove(&slot).is_some()
    }

    /// Bytes that the adapter of a slot takes.
    pub fn bytes(&self, slot: Slot) -> Option<usize> {
        self.held.get(&slot).map(|entry| entry.bytes)
    }

    /// The task heads of a slot's adapter. They have no factor.
    pub fn heads(&self, slot: Slot) -> Option<&Heads> {
        self.held.get(&slot).map(|entry| &entry.heads)
    }

    /// The group of requests that compute with a mixture.
    ///
    /// # Errors
    /// Copies of several adapters, and factors or a bias of one adapter where another's copy stands in for what they change.
    pub fn group(&self, mixture: &Mixture) -> Result<Group, AdapterError> {
        let entries = || mixture.parts().iter().filter_map(|part| Some((*part, self.held.get(&part.0)?)));
        let place = |slot: Slot| entries().position(|((own, _), _)| own == slot).map_or(1, |place| place + 1);
        let mut with_copies = entries().filter(|(_, entry)| !entry.copies.is_empty());
        let Some(((slot, factor), own)) = with_copies.next() else { return Ok(Group::default()) };
        if let Some(((second, _), _)) = with_copies.next() {
            return Err(AdapterError::SeveralCopies { first: place(slot), second: place(second) });
        }
        for (_, other) in entries().filter(|((other, _), _)| *other != slot) {
            if let Some(name) = own.copies.keys().find(|name| other.worked_against.contains(*name)) {
                return Err(AdapterError::CopyUnderFactors { path: name.clone() });
            }
        }
        Ok(Group(Mixture::new([(slot, factor)])))
    }

    /// Lets the copies of a group stand in for the model's parameters, and no others. Between passes only; nothing is done where
    /// the group has no copies and none stand in.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn enter(&mut self, group: &Group) -> Result<(), AdapterError> {
        self.restore()?;
        let entries = group.0.parts().iter().filter_map(|(slot, factor)| Some((self.held.get(slot)?, *factor)));
        for (name, copy, factor) in entries.flat_map(|(entry, f)| entry.copies.iter().map(move |(n, c)| (n, c, f))) {
            let Some(parameter) = self.model.parameters().get(name) else { continue };
            let copy = match factor {
                1.0 => copy.clone(),
                _ => scaled_copy(&parameter.frozen().to_dtype(DType::F32)?, copy, factor)?,
            };
            self.model.parameters().substitute(name, Some(copy))?;
            self.entered.push(name.clone());
        }
        Ok(())
    }
}

impl Bank<'_> {
    /// Takes the copies out that stand in for the model's parameters.
    fn restore(&mut self) -> Result<(), AdapterError> {
        for name in self.entered.drain(..) {
            self.model.parameters().substitute(&name, None)?;
        }
        Ok(())
    }
}

impl Drop for Bank<'_> {
    /// Leaves the model as it was.
    fn drop(&mut self) {
        // Taking a copy out has nothing that could fail: it is one that was put in.
        let _ = self.restore();
        for slot in self.held.keys() {
            self.model.release(*slot);
        }
    }
}

#[cfg(test)]
#[path = "bank_tests.rs"]
mod tests;
