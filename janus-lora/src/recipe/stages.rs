//! Stages: the recipe's sections with a stage's own keys set into them, read as any recipe is.

use super::fault::{Faults, Problem, quotable};
use super::read::{read_adapter, read_train, read_visual, refuse_equal_names};
use super::schema::Rule;
use super::tree::{Entry, Node, Table, Value};
use super::types::{Recipe, Stage, StageSection};
use super::value::SectionReader;

/// Keys of which a stage's own one removes the other where it comes from above.
const REPLACING: [(&str, &str); 2] = [("scale", "alpha"), ("alpha", "scale")];

/// Whether a recipe has stages.
pub(super) fn has_stages(root: &Table) -> bool {
    !items(root).is_empty()
}

/// Refuses keys of `[train]` that say how long a run is, which is for each stage's `steps` to say; `section` is what `train` is
/// called.
pub(super) fn refuse_lengths(section: &str, train: &Table, faults: &mut Faults) {
    for name in ["steps", "epochs", "early_stopping"] {
        if let Some(entry) = train.get(name) {
            let problem = Problem::NotWithStages { key: format!("{section}.{name}"), stops: name == "early_stopping" };
            faults.push(Some(entry.key_place.clone()), problem);
        }
    }
}

fn items(root: &Table) -> &[Node] {
    match root.get(StageSection::SECTION.name).map(|entry| &entry.node.value) {
        Some(Value::Array(items)) => items,
        _ => &[],
    }
}

/// Reads every `[[stage]]`; absent where one is incomplete. `recipe` is what holds where a stage says nothing else.
pub(super) fn read_stages(root: &Table, recipe: &Recipe, faults: &mut Faults) -> Option<Vec<Stage>> {
    let items = items(root);
    let stages: Vec<Option<Stage>> =
        items.iter().enumerate().map(|(index, node)| read_stage(root, recipe, index, node, faults)).collect();
    refuse_equal_names(StageSection::SECTION.name, items, faults);
    let stages: Vec<Stage> = stages.into_iter().collect::<Option<_>>()?;
    if !stages.is_empty() {
        let is_used = |name: &str| stages.iter().any(|stage| stage.recipe.data.iter().any(|table| table.name == name));
        let tables = || recipe.data.iter().map(|table| table.name.clone()).collect::<Vec<_>>();
        for table in recipe.data.iter().filter(|table| !is_used(&table.name)) {
            let what = format!("no stage learns from the table `{}`", table.name);
            faults.push(None, Problem::StageTables { what, tables: tables() });
        }
    }
    refuse_other_pairs(items, &stages, faults);
    Some(stages)
}

fn read_stage(root: &Table, recipe: &Recipe, index: usize, node: &Node, faults: &mut Faults) -> Option<Stage> {
    let Value::Table(own) = &node.value else { return None };
    let mut reader = SectionReader::new(format!("stage.{index}"), StageSection::SECTION, Some(node), faults);
    let section = StageSection::read(&mut reader);
    let mut merged = root.clone();
    merged.entries.retain(|entry| entry.key != StageSection::SECTION.name);
    for field in StageSection::SECTION.fields.iter().filter(|field| matches!(field.rule, Rule::Keys(_))) {
        let Some(entry) = own.get(field.name) else { continue };
        let Value::Table(keys) = &entry.node.value else { continue };
        if field.name == "train" {
            refuse_lengths(&format!("stage.{index}.train"), keys, faults);
        }
        if let Some(own) = keys.get("start_from") {
            let (stage, got) = (format!("stage.{index}"), "given".to_owned());
            let problem = Problem::OtherPairs { key: "adapter.start_from", stage, got, expected: "not".to_owned() };
            faults.push(Some(own.key_place.clone()), problem);
        }
        set_keys(&mut merged, entry, keys);
    }
    let adapter = read_adapter(&merged, faults).map(|mut adapter| {
        adapter.start_from.clone_from(&recipe.adapter.start_from);
        adapter
    });
    let train = read_train(&merged, faults);
    let (dynamic, mifs) = read_visual(&merged, faults);
    let section = section?;
    let own_tables = section.data.as_deref();
    for name in
        own_tables.unwrap_or_default().iter().filter(|name| !recipe.data.iter().any(|table| table.name == **name))
    {
        let what = format!("the stage `{}` learns from `{}`, which is no table", section.name, quotable(name));
        let tables = recipe.data.iter().map(|table| table.name.clone()).collect();
        let place = own.get("data").map(|entry| entry.node.place.clone());
        faults.push(place, Problem::StageTables { what, tables });
    }
    let is_own = |name: &String| own_tables.is_none_or(|own| own.contains(name));
    if recipe.data.iter().all(|table| !is_own(&table.name)) {
        let what = format!("the stage `{}` learns from no table", section.name);
        let tables = recipe.data.iter().map(|table| table.name.clone()).collect();
        faults.push(Some(node.place.clone()), Problem::StageTables { what, tables });
    }
    let mut train = train?;
    (train.steps, train.epochs) = (Some(section.steps), None);
    let recipe = Recipe {
        adapter: adapter?,
        dynamic: dynamic?,
        mifs: mifs?,
        data: recipe.data.iter().filter(|table| is_own(&table.name)).cloned().collect(),
        train,
        stages: Vec::new(),
        ..recipe.clone()
    };
    Some(Stage { name: section.name, recipe })
}

/// Sets a stage's keys of a section into the section itself.
fn set_keys(root: &mut Table, given: &Entry, keys: &Table) {
    let Some(section) = root.get_mut(&given.key) else {
        root.set(given.clone());
        return;
    };
    let Value::Table(table) = &mut section.node.value else { return };
    for entry in &keys.entries {
        let replaced = REPLACING.iter().filter(|(own, _)| *own == entry.key).map(|(_, other)| *other);
        for other in replaced.filter(|other| keys.get(other).is_none()) {
            table.entries.retain(|entry| entry.key != other);
        }
        table.set(entry.clone());
    }
}

/// All pairs go into one adapter, which has one rank and one scale.
fn refuse_other_pairs(items: &[Node], stages: &[Stage], faults: &mut Faults) {
    let mut first: Option<&Stage> = None;
    for (stage, node) in stages.iter().zip(items).filter(|(stage, _)| !stage.recipe.adapter.targets.is_empty()) {
        let Some(first) = first else {
            first = Some(stage);
            continue;
        };
        let (was, is) = (&first.recipe.adapter, &stage.recipe.adapter);
        let settings = [
            ("adapter.method", was.method.to_string(), is.method.to_string()),
            ("adapter.rank", was.rank.to_string(), is.rank.to_string()),
            ("adapter.rslora", was.rslora.to_string(), is.rslora.to_string()),
            ("adapter.init", was.init.to_string(), is.init.to_string()),
            ("adapter.eva_rho", was.eva_rho.to_string(), is.eva_rho.to_string()),
            ("adapter.bias", was.bias.to_string(), is.bias.to_string()),
            ("adapter.feedforward", was.feedforward.join(", "), is.feedforward.join(", ")),
            ("adapter.d_initial", was.d_initial.to_string(), is.d_initial.to_string()),
            ("adapter.projection_seed", was.projection_seed.to_string(), is.projection_seed.to_string()),
            ("adapter.decompose_factor", was.decompose_factor.to_string(), is.decompose_factor.to_string()),
            ("adapter.decompose_both", was.decompose_both.to_string(), is.decompose_both.to_string()),
            ("adapter.scale", was.effective_scale().to_string(), is.effective_scale().to_string()),
            ("adapter.dropout", was.dropout.to_string(), is.dropout.to_string()),
        ];
        for (key, expected, got) in settings.into_iter().filter(|(_, was, is)| was != is) {
            let problem = Problem::OtherPairs { key, stage: stage.name.clone(), got, expected };
            faults.push(Some(node.place.clone()), problem);
        }
    }
}
