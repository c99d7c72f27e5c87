//! `janus_extras.safetensors`: what PEFT has no place for, the dynamic encoder and task heads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use janus_core::config::JanusConfig;
use janus_core::directory::{Directory, Place as Folder};
use janus_core::input::{self, Opened};

use super::Adapter;
use super::error::AdapterError;
use super::file::{WeightsFile, write_weights};
use super::folder::{Place, Slot, read_tensors};
use super::note::{NOTE_FILE, Note};
use super::peft_config::{CONFIG_FILE, PeftConfig};
use crate::dynamic::{self, Dynamic};
use crate::heads::{self, Head, HeadKind, Heads};
use crate::mifs;
use crate::recipe::{DynamicPlace, Task};

/// Its name.
pub(crate) const EXTRAS_FILE: &str = "janus_extras.safetensors";

/// Key of the metadata that says what heads are for: JSON of kinds by name.
const HEADS_KEY: &str = "heads";

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Extras {
    pub(super) dynamic: Option<Dynamic>,
    pub(super) heads: Heads,
    pub(super) alignment: Option<Tensor>,
}

/// Reads the file of an adapter folder, where there is one; every tensor in it is accounted for.
pub(super) fn read(folder: Folder<'_>, base: &JanusConfig) -> Result<Extras, AdapterError> {
    let Some(opened) = input::open_in(folder, EXTRAS_FILE)? else { return Ok(Extras::default()) };
    read_file(opened, base).map_err(|source| AdapterError::File { file: EXTRAS_FILE, source: Box::new(source) })
}

fn read_file(opened: Opened, base: &JanusConfig) -> Result<Extras, AdapterError> {
    let file = WeightsFile::of(opened)?;
    let kinds: BTreeMap<String, HeadKind> = match file.metadata(HEADS_KEY) {
        Some(text) => serde_json::from_str(text).map_err(|source| AdapterError::Json { file: EXTRAS_FILE, source })?,
        None => BTreeMap::new(),
    };
    for (name, kind) in &kinds {
        kind.check().map_err(|problem| AdapterError::Head { name: name.clone(), problem })?;
    }
    let paths = dynamic::paths_of(file.tensors().iter().map(|(name, _)| name.as_str()));
    let dynamic = dynamic::shapes(base, paths).into_iter().map(|(name, shape)| (name.to_owned(), shape));
    let heads = kinds.iter().flat_map(|(name, kind)| heads::shapes(base, name, kind));
    let is_aligned = file.tensors().iter().any(|(name, _)| name == mifs::TEMPERATURE);
    let alignment = is_aligned.then(|| (mifs::TEMPERATURE.to_owned(), vec![1]));
    let slots = dynamic.chain(heads).chain(alignment).map(|(name, shape)| {
        let slot = Slot { place: Place::Extra(name.as_str().into()), shape, required: true };
        (name, slot)
    });
    let values = read_tensors(&file, &slots.collect())?;
    let mut values: BTreeMap<Arc<str>, Tensor> = values
        .into_iter()
        .filter_map(|(place, value)| match place {
            Place::Extra(name) => Some((name, value)),
            _ => None,
        })
        .collect();
    let alignment = values.remove(mifs::TEMPERATURE);
    let mut take = |names: BTreeSet<String>| -> BTreeMap<Arc<str>, Tensor> {
        names.iter().filter_map(|name| values.remove_entry(name.as_str())).collect()
    };
    let names = dynamic::shapes(base, paths).into_iter().map(|(name, _)| name.to_owned()).collect();
    let dynamic = paths.any().then(|| Dynamic::of(paths, take(names)));
    let heads = kinds.into_iter().map(|(name, kind)| {
        let names = heads::shapes(base, &name, &kind).into_iter().map(|(name, _)| name).collect();
        (name.as_str().into(), Head::of(&name, kind, take(names)))
    });
    Ok(Extras { dynamic, heads: heads.collect(), alignment })
}

/// The parts that an adapter has in the file, as `adapter_config.json` records them. Without the temperature of an alignment,
/// which only training needs.
pub(super) fn parts(dynamic: Option<&Dynamic>, heads: &Heads) -> Vec<String> {
    let paths = dynamic.map(Dynamic::paths);
    let places = [
        (DynamicPlace::Vision, paths.is_some_and(|paths| paths.vision)),
        (DynamicPlace::Generation, paths.is_some_and(|paths| paths.generation)),
    ];
    let dynamic = places.into_iter().filter(|(_, is_there)| *is_there).map(|(place, _)| dynamic_part(place));
    dynamic.chain(heads.keys().map(|name| head_part(name))).collect()
}

fn dynamic_part(place: DynamicPlace) -> String {
    format!("dynamic.{place}")
}

fn head_part(name: &str) -> String {
    format!("head.{name}")
}

/// Refuses an adapter that lacks parts which its files say it has: without them it is another one than was trained.
pub(super) fn check_complete(
    folder: Folder<'_>,
    found: &[String],
    config: &PeftConfig,
    note: Option<&Note>,
) -> Result<(), AdapterError> {
    let recipe = note.and_then(|note| note.recipe.as_deref());
    let (recorded_in, recorded) = match &config.extras {
        Some(parts) => (CONFIG_FILE, parts.clone()),
        None => (NOTE_FILE, recipe.map(parts_of_before).unwrap_or_default()),
    };
    let parts: Vec<String> = recorded.into_iter().filter(|part| !found.contains(part)).collect();
    if parts.is_empty() {
        return Ok(());
    }
    let is_absent = input::open_in(folder, EXTRAS_FILE)?.is_none();
    Err(AdapterError::NoExtras { parts, is_absent, recorded_in })
}

/// The parts that an adapter of before has by its resolved recipe, which is all that such a one says of them. A recipe with
/// stages says nothing: a checkpoint of one of them has its own parts.
fn parts_of_before(recipe: &str) -> Vec<String> {
    let Ok(recipe) = recipe.parse::<toml::Table>() else { return Vec::new() };
    if recipe.contains_key("stage") {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let text = |table: &toml::Value, key| table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let tables = || recipe.get("data").and_then(toml::Value::as_array).into_iter().flatten();
    let tasks: Vec<Task> = tables().filter_map(|table| Task::from_name(&text(table, "task")?)).collect();
    if let Some(dynamic) = recipe.get("dynamic").filter(|dynamic| dynamic.get("enabled") != Some(&false.into())) {
        let places = dynamic.get("where").and_then(toml::Value::as_array);
        let is_chosen = |place: DynamicPlace| {
            places.is_none_or(|places| places.iter().any(|other| other.as_str() == Some(place.name())))
        };
        // A path that no task uses has no factors.
        let is_seen = tasks.iter().any(|task| *task == Task::Understand || task.has_head());
        let is_drawn = tasks.iter().any(|task| task.draws());
        let places = [(DynamicPlace::Vision, is_seen), (DynamicPlace::Generation, is_drawn)];
        parts.extend(
            places.into_iter().filter(|(place, used)| *used && is_chosen(*place)).map(|(p, _)| dynamic_part(p)),
        );
    }
    let with_head =
        |table: &&toml::Value| text(table, "task").and_then(|task| Task::from_name(&task)).is_some_and(Task::has_head);
    parts.extend(tables().filter(with_head).filter_map(|table| Some(head_part(&text(table, "name")?))));
    parts
}

/// Writes the file into an adapter folder, where there is something to write.
pub(super) fn write(folder: &Directory, adapter: &Adapter) -> Result<(), AdapterError> {
    let tensors = adapter.extras();
    if tensors.is_empty() {
        return Ok(());
    }
    let kinds: BTreeMap<&str, &HeadKind> = adapter.heads.iter().map(|(name, head)| (&**name, &head.kind)).collect();
    let told = (!kinds.is_empty()).then(|| {
        let text = serde_json::to_string(&kinds).expect("names and labels are plain data");
        (HEADS_KEY, text)
    });
    write_weights(folder, EXTRAS_FILE, &tensors, told)
}
