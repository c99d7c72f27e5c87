//! A new adapter that begins with the values of one that is there.

use candle_core::Tensor;

use super::super::method::Method;
use super::super::{Adapter, AdapterError};
use crate::dynamic::Paths;
use crate::heads::HeadKind;

impl Adapter {
    /// This adapter with the values of another one of its form: all that it has at sites and of copies, and what the other has of
    /// a dynamic encoder and of heads.
    ///
    /// # Errors
    /// [`AdapterError::OtherStart`]: another method, sites, ranks, scales, shapes, copies or heads.
    pub fn starting_from(mut self, start: Self) -> Result<Self, AdapterError> {
        let other = |path: &str, expected: String, got: String| {
            let path = path.to_owned();
            Err(AdapterError::OtherStart { path, expected, got })
        };
        if self.config.method.name() != start.config.method.name() {
            let word = |adapter: &Self| format!("`{}`", adapter.config.method.name());
            return other("peft_type", word(&self), word(&start));
        }
        if let (Method::Vera { projection_seed: own, .. }, Method::Vera { projection_seed: theirs, .. }) =
            (&self.config.method, &start.config.method)
            && own != theirs
        {
            return other("projection_prng_key", own.to_string(), theirs.to_string());
        }
        for (path, site) in &start.sites {
            if !self.sites.contains_key(path) {
                return other(path, "nothing".into(), form(site.rank));
            }
        }
        for (path, site) in &mut self.sites {
            let Some(own) = start.sites.get(path) else { return other(path, form(site.rank), "nothing".into()) };
            if site.rank != own.rank {
                return other(path, form(site.rank), form(own.rank));
            }
            if (site.scale - own.scale).abs() > 1e-9 * site.scale.abs() {
                return other(path, format!("scale {}", site.scale), format!("scale {}", own.scale));
            }
            let shapes = |values: &std::collections::BTreeMap<&'static str, Tensor>| {
                let one = |(ending, value): (&&str, &Tensor)| format!("`{ending}` of {:?}", value.dims());
                values.iter().map(one).collect::<Vec<_>>().join(", ")
            };
            let (expected, got) = (shapes(&site.values), shapes(&own.values));
            if expected != got {
                return other(path, expected, got);
            }
            site.values.clone_from(&own.values);
        }
        for (name, value) in &mut self.shared {
            let Some(own) = start.shared.get(name) else { return other(name, "a matrix".into(), "nothing".into()) };
            if value.dims() != own.dims() {
                return other(name, format!("{:?}", value.dims()), format!("{:?}", own.dims()));
            }
            *value = own.clone();
        }
        if let Some(name) = start.saved.keys().find(|name| !self.saved.contains_key(*name)) {
            return other(name, "no copy".into(), "a copy".into());
        }
        for (name, copy) in &mut self.saved {
            let Some(own) = start.saved.get(name) else { return other(name, "a copy".into(), "none".into()) };
            if copy.dims() != own.dims() {
                return other(name, format!("{:?}", copy.dims()), format!("{:?}", own.dims()));
            }
            *copy = own.clone();
        }
        match (&self.dynamic, start.dynamic) {
            (_, None) => {}
            (Some(own), Some(other)) if own.paths() == other.paths() => self.dynamic = Some(other),
            (own, Some(start)) => {
                let expected = own.as_ref().map_or_else(|| "none".into(), |own| places(own.paths()));
                return other("dynamic encoder", expected, places(start.paths()));
            }
        }
        for (name, head) in start.heads {
            match self.heads.get(&name) {
                Some(own) if own.kind == head.kind => drop(self.heads.insert(name, head)),
                Some(own) => return other(&name, kind(&own.kind), kind(&head.kind)),
                None => return other(&name, "no head".into(), "a head".into()),
            }
        }
        Ok(self)
    }
}

fn places(paths: Paths) -> String {
    match (paths.vision, paths.generation) {
        (true, true) => "one of vision and generation",
        (true, false) => "one of vision",
        _ => "one of generation",
    }
    .into()
}

fn kind(kind: &HeadKind) -> String {
    match kind.labels() {
        [] => format!("a head of `{}`", kind.task()),
        labels => format!("a head of `{}` with the labels `{}`", kind.task(), labels.join("`, `")),
    }
}

fn form(rank: usize) -> String {
    if rank == 0 { "factors".into() } else { format!("rank {rank}") }
}
