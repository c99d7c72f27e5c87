//! From a tree of keys and values to a typed recipe, with every fault on the way.

use std::collections::{HashMap, HashSet};

use super::adapter::{AdapterMethod, AdapterSection};
use super::fault::{Faults, Problem, quotable};
use super::resolve::{Folders, KeyedProblem};
use super::schema::{FOREIGN_NAMES, Section};
use super::stages::{has_stages, read_stages, refuse_lengths};
use super::tree::{Entry, Node, Place, Table, Value};
use super::types::{
    BaseSection, BoxFormat, DEFAULT_EPOCHS, DEFAULT_PROMPT_DROPOUT, DEFAULT_SCALE, DataLimits, DataSection,
    DynamicSection, MifsSection, OutputSection, Recipe, Task, TooLong, TrainSection,
};
use super::value::SectionReader;
use crate::nearest::nearest;
use crate::target::{Preset, TargetPattern};

/// Reads a whole recipe; absent where `faults` has gained one that leaves it incomplete.
pub(crate) fn read_recipe(root: &Table, folders: &Folders, faults: &mut Faults) -> Option<Recipe> {
    for entry in &root.entries {
        check_section(entry, faults);
    }
    let base = read_base(root, folders, faults);
    let adapter = read_adapter(root, faults).and_then(|adapter| with_start(adapter, root, folders, faults));
    let (dynamic, mifs) = read_visual(root, faults);
    let data = read_data(root, folders, faults);
    let data_limits = DataLimits::read(&mut reader(root, DataLimits::SECTION, faults));
    let train = read_train(root, faults);
    if let (true, Some(train)) = (has_stages(root), train_entry(root)) {
        refuse_lengths("train", train, faults);
    }
    if let (Some(adapter), Some(train)) = (&adapter, &train)
        && train.lora_plus_ratio != 1.0
        && !adapter.method.takes("rslora")
    {
        let place =
            train_entry(root).and_then(|train| train.get("lora_plus_ratio")).map(|entry| entry.key_place.clone());
        let (key, takers) = ("train.lora_plus_ratio".to_owned(), AdapterMethod::takers("rslora"));
        faults.push(place, Problem::NotForMethod { key, method: adapter.method.name(), takers });
    }
    let output = read_output(root, folders, faults);
    if let (Some(train), Some(data)) = (&train, &data) {
        check_early_stopping(root, train, data, faults);
    }
    let recipe = Recipe {
        base: base?,
        adapter: adapter?,
        dynamic: dynamic?,
        mifs: mifs?,
        data: data?,
        data_limits: data_limits?,
        train: train?,
        output: output?,
        stages: Vec::new(),
    };
    // What is wrong above would be told again in each stage.
    let stages = if faults.is_empty() { read_stages(root, &recipe, faults)? } else { Vec::new() };
    Some(Recipe { stages, ..recipe })
}

fn train_entry(root: &Table) -> Option<&Table> {
    match &root.get("train")?.node.value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}

/// `[dynamic]` and `[mifs]`, each absent where the recipe has none.
pub(super) fn read_visual(
    root: &Table,
    faults: &mut Faults,
) -> (Option<Option<DynamicSection>>, Option<Option<MifsSection>>) {
    let dynamic = match root.get(DynamicSection::SECTION.name) {
        Some(_) => DynamicSection::read(&mut reader(root, DynamicSection::SECTION, faults)).map(Some),
        None => Some(None),
    };
    let mifs = match root.get(MifsSection::SECTION.name) {
        Some(_) => MifsSection::read(&mut reader(root, MifsSection::SECTION, faults)).map(Some),
        None => Some(None),
    };
    (dynamic, mifs)
}

/// Refuses a top-level key that no recipe has, or that is no table.
fn check_section(entry: &Entry, faults: &mut Faults) {
    let key = entry.key.as_str();
    if let Some(section) = Recipe::SECTIONS.iter().find(|section| section.name == key) {
        let expected = match (section.repeated, &entry.node.value) {
            (false, Value::Table(_)) => return,
            (true, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate().filter(|(_, item)| !matches!(item.value, Value::Table(_)))
                {
                    wrong_section(item, format!("{key}.{index}"), "a table".into(), faults);
                }
                return;
            }
            (false, _) => format!("a table, headed [{key}]"),
            (true, _) => format!("a list of tables, each headed [[{key}]]"),
        };
        wrong_section(&entry.node, key.into(), expected, faults);
        return;
    }
    let problem = Problem::UnknownKey {
        key: quotable(key),
        table: "a recipe".into(),
        nearest: nearest_key(key, None),
        legal: Recipe::SECTIONS.iter().map(|section| section.name).collect(),
    };
    faults.push(Some(entry.key_place.clone()), problem);
}

fn wrong_section(node: &Node, key: String, expected: String, faults: &mut Faults) {
    let problem = Problem::WrongType { key, expected, got: node.value.kind(), taken_as_text: false };
    faults.push(Some(node.place.clone()), problem);
}

/// What may have been meant by an unknown key of a section, or of the root: a key there, a key of that name elsewhere,
/// or what other tools call one of ours.
pub(crate) fn nearest_key(key: &str, section: Option<&Section>) -> Option<String> {
    let here: Vec<&str> = match section {
        Some(section) => section.fields.iter().map(|field| field.name).collect(),
        None => Recipe::SECTIONS.iter().map(|section| section.name).collect(),
    };
    if let Some(name) = nearest(key, here.iter().copied()) {
        return Some(name.to_owned());
    }
    let everywhere = || {
        Recipe::SECTIONS.iter().flat_map(|section| {
            section.fields.iter().map(|field| match section.repeated {
                true => (field.name, format!("{}.0.{}", section.name, field.name)),
                false => (field.name, format!("{}.{}", section.name, field.name)),
            })
        })
    };
    let elsewhere = everywhere().find(|(name, _)| *name == key).map(|(_, full)| full).or_else(|| {
        let known = FOREIGN_NAMES.iter().find(|(foreign, _)| foreign.eq_ignore_ascii_case(key))?;
        Some(known.1.to_owned())
    });
    let full = elsewhere.or_else(|| {
        if section.is_some() {
            return None;
        }
        let name = nearest(key, everywhere().map(|(name, _)| name))?;
        everywhere().find(|(other, _)| *other == name).map(|(_, full)| full)
    })?;
    // A key of the same section needs no prefix.
    let prefix = section.map(|section| match section.repeated {
        true => format!("{}.0.", section.name),
        false => format!("{}.", section.name),
    });
    Some(match prefix.and_then(|prefix| full.strip_prefix(&prefix).map(str::to_owned)) {
        Some(name) => name,
        None => full,
    })
}

/// A reader of a section that stands at most once.
fn reader<'a>(root: &'a Table, section: Section, faults: &'a mut Faults) -> SectionReader<'a> {
    SectionReader::new(section.name.into(), section, root.get(section.name).map(|entry| &entry.node), faults)
}

fn read_base(root: &Table, folders: &Folders, faults: &mut Faults) -> Option<BaseSection> {
    let mut reader = reader(root, BaseSection::SECTION, faults);
    let mut base = BaseSection::read(&mut reader)?;
    if let Some(entry) = reader.entry("path") {
        base.path = match folders.base(&base.path, entry.node.place.is_override()) {
            Ok(path) => path,
            Err(problem) => {
                reader.faults.push(Some(entry.node.place.clone()), problem("base.path"));
                return None;
            }
        };
    }
    Some(base)
}

pub(super) fn read_adapter(root: &Table, faults: &mut Faults) -> Option<AdapterSection> {
    let mut reader = reader(root, AdapterSection::SECTION, faults);
    let mut adapter = AdapterSection::read(&mut reader)?;
    reader.refuse_both("scale", "alpha");
    for field in AdapterSection::SECTION.fields {
        let Some(entry) = reader.entry(field.name) else { continue };
        if !adapter.method.takes(field.name) {
            let (key, takers) = (format!("adapter.{}", field.name), AdapterMethod::takers(field.name));
            let problem = Problem::NotForMethod { key, method: adapter.method.name(), takers };
            reader.faults.push(Some(entry.key_place.clone()), problem);
        } else if !adapter.takes(field.name) {
            let problem = Problem::OnlyWithEva { key: format!("adapter.{}", field.name), init: adapter.init.name() };
            reader.faults.push(Some(entry.key_place.clone()), problem);
        }
    }
    if adapter.refused_start()
        && let Some(entry) = reader.entry("init")
    {
        let (first, second) = ("adapter.start_from".to_owned(), "adapter.init".to_owned());
        reader.faults.push(Some(entry.key_place.clone()), Problem::Conflict { first, second });
    }
    if let (Some(why), Some(entry)) = (adapter.refused_init(), reader.entry("init"))
        && adapter.method.takes("init")
    {
        let problem = Problem::NotWithInit { init: adapter.init.name(), why };
        reader.faults.push(Some(entry.node.place.clone()), problem);
    }
    if adapter.scale.is_none() && adapter.alpha.is_none() {
        adapter.scale = Some(DEFAULT_SCALE);
    }
    for (name, presets) in [("targets", true), ("exclude", false), ("feedforward", false), ("modules_to_save", false)] {
        let Some(Value::Array(items)) = reader.entry(name).map(|entry| &entry.node.value) else { continue };
        for item in items {
            let Value::Text(text) = &item.value else { continue };
            if (presets && Preset::from_name(text).is_some()) || text.trim().is_empty() {
                continue;
            }
            if let Err(error) = TargetPattern::parse(text) {
                reader.faults.push(Some(item.place.clone()), Problem::Target(error));
            }
        }
    }
    let is_alone = root.get(DynamicSection::SECTION.name).is_none() && !tasks(root).any(Task::has_head);
    if adapter.targets.is_empty() && adapter.modules_to_save.is_empty() && is_alone && !has_stages(root) {
        let place = reader.entry("targets").map(|entry| entry.node.place.clone());
        reader.faults.push(place, Problem::NothingToTrain);
    }
    Some(adapter)
}

/// The same with the place of the adapter that it begins from, as a base's is found.
fn with_start(
    mut adapter: AdapterSection,
    root: &Table,
    folders: &Folders,
    faults: &mut Faults,
) -> Option<AdapterSection> {
    let Some(text) = &adapter.start_from else { return Some(adapter) };
    let reader = reader(root, AdapterSection::SECTION, faults);
    let place = reader.entry("start_from").map(|entry| entry.node.place.clone());
    match folders.base(text, place.as_ref().is_some_and(Place::is_override)) {
        Ok(path) => {
            adapter.start_from = Some(path);
            Some(adapter)
        }
        Err(problem) => {
            faults.push(place, problem("adapter.start_from"));
            None
        }
    }
}

/// The tasks of all tables, as far as they can be read.
fn tasks(root: &Table) -> impl Iterator<Item = Task> {
    let items = match root.get("data").map(|entry| &entry.node.value) {
        Some(Value::Array(items)) => items.as_slice(),
        _ => &[],
    };
    let task = |item: &Node| match &item.value {
        Value::Table(table) => match table.get("task").map(|entry| &entry.node.value) {
            Some(Value::Text(word)) => Task::from_name(word),
            _ => None,
        },
        _ => None,
    };
    items.iter().filter_map(task)
}

pub(super) fn read_train(root: &Table, faults: &mut Faults) -> Option<TrainSection> {
    let mut reader = reader(root, TrainSection::SECTION, faults);
    let mut train = TrainSection::read(&mut reader)?;
    reader.refuse_both("epochs", "steps");
    if train.epochs.is_none() && train.steps.is_none() && !has_stages(root) {
        train.epochs = Some(DEFAULT_EPOCHS);
    }
    Some(train)
}

/// Refuses to stop by an evaluation that is never made, or by a figure that it does not have.
fn check_early_stopping(root: &Table, train: &TrainSection, data: &[DataSection], faults: &mut Faults) {
    let Some(rule) = &train.early_stopping else { return };
    let table = rule.metric.rsplit_once('.').map(|(table, _)| table);
    let problem = match table.and_then(|name| data.iter().find(|table| table.name == name)) {
        None => {
            let names: Vec<String> = data.iter().map(|table| format!("`{}`", table.name)).collect();
            format!("the tables are {}", names.join(", "))
        }
        Some(table) if table.eval.is_none() => format!("`{}` has no `eval`", table.name),
        Some(_) if train.eval_every == 0 => "`train.eval_every` is 0".into(),
        Some(table) => {
            let own = rule.metric.rsplit_once('.').map_or("", |(_, own)| own);
            let (of_rows, of_drawn) = table.task.figures();
            let draws = table.eval_pictures.is_some_and(|pictures| pictures > 0);
            if of_rows.contains(&own) || (draws && of_drawn.contains(&own)) {
                return;
            }
            if of_drawn.contains(&own) {
                format!("`{own}` is of drawn pictures, and `{}` has no `eval_pictures`", table.name)
            } else {
                let mut names: Vec<&str> = of_rows.iter().chain(of_drawn.iter().filter(|_| draws)).copied().collect();
                // The one that was meant comes first.
                let contains = || names.iter().copied().find(|name| !own.is_empty() && name.contains(own));
                if let Some(near) = nearest(own, names.iter().copied()).or_else(contains) {
                    names.sort_by_key(|name| *name != near);
                }
                let names = names.into_iter().map(|name| quotable(&format!("{}.{name}", table.name))).collect();
                let problem = Problem::NoFigure { metric: quotable(&rule.metric), task: table.task.name(), names };
                faults.push(early_stopping_place(root), problem);
                return;
            }
        }
    };
    faults.push(early_stopping_place(root), Problem::NoEvaluation { metric: quotable(&rule.metric), problem });
}

fn early_stopping_place(root: &Table) -> Option<Place> {
    let train = train_entry(root)?;
    train.get("early_stopping").map(|entry| entry.node.place.clone())
}

fn read_output(root: &Table, folders: &Folders, faults: &mut Faults) -> Option<OutputSection> {
    let mut reader = reader(root, OutputSection::SECTION, faults);
    let mut output = OutputSection::read(&mut reader)?;
    match folders.output(&output.dir) {
        Ok(dir) => output.dir = dir,
        Err(problem) => {
            let place = reader.entry("dir").map(|entry| entry.node.place.clone());
            reader.faults.push(place, problem("output.dir"));
        }
    }
    Some(output)
}

/// Reads every `[[data]]`; absent where one is incomplete or there is none.
fn read_data(root: &Table, folders: &Folders, faults: &mut Faults) -> Option<Vec<DataSection>> {
    let items = match root.get("data").map(|entry| &entry.node.value) {
        Some(Value::Array(items)) if !items.is_empty() => items.as_slice(),
        None | Some(Value::Array(_)) => {
            faults.push(None, Problem::NoData);
            return None;
        }
        // Told before: it is no list.
        Some(_) => return None,
    };
    let tables: Vec<Option<DataSection>> =
        items.iter().enumerate().map(|(index, node)| read_data_table(index, node, folders, faults)).collect();
    refuse_equal_names("data", items, faults);
    let mut tables: Vec<DataSection> = tables.into_iter().collect::<Option<_>>()?;
    name_unnamed(&mut tables);
    Some(tables)
}

fn read_data_table(index: usize, node: &Node, folders: &Folders, faults: &mut Faults) -> Option<DataSection> {
    if !matches!(node.value, Value::Table(_)) {
        // Told before.
        return None;
    }
    let mut reader = SectionReader::new(format!("data.{index}"), DataSection::SECTION, Some(node), faults);
    let table = DataSection::read(&mut reader);
    // The task decides on other keys, which are checked even where the table as a whole is not complete.
    let task = match reader.entry("task").map(|entry| &entry.node.value) {
        Some(Value::Text(word)) => Task::from_name(word),
        _ => None,
    };
    if let Some(task) = task {
        check_columns(task, &mut reader);
        let belongings = [
            ("prompt_dropout", task.draws(), Task::Generate),
            ("eval_pictures", task.draws(), Task::Generate),
            ("question", task == Task::Understand, Task::Understand),
            ("quantize_from", task == Task::Reconstruct, Task::Reconstruct),
            ("image_root", task != Task::Text, Task::Understand),
            ("orientation", task != Task::Text, Task::Understand),
            ("grey_bits", task != Task::Text, Task::Understand),
            ("box_format", task == Task::Locate, Task::Locate),
            ("normalised", task == Task::Locate, Task::Locate),
            ("too_long", has_text(task), Task::Understand),
            ("mask_values", task == Task::Segment, Task::Segment),
            ("ignore_value", task == Task::Segment, Task::Segment),
        ];
        for (name, belongs, owner) in belongings {
            if let (Some(entry), false) = (reader.entry(name), belongs) {
                let (key, belongs_to) = (reader.full(name), owner.name());
                let problem = Problem::NotForTask { key, task: task.name(), belongs_to };
                reader.faults.push(Some(entry.key_place.clone()), problem);
            }
        }
    }
    let train = resolve_text("train", |text, is_override| folders.source(text, is_override), &mut reader);
    let eval = resolve_text("eval", |text, is_override| folders.source(text, is_override), &mut reader);
    let image_root = match reader.entry("image_root") {
        Some(_) => {
            Some(resolve_text("image_root", |text, is_override| folders.folder(text, is_override), &mut reader)?)
        }
        None => None,
    };
    let mut table = table?;
    table.image_root = image_root;
    table.train = train?;
    if table.eval.is_some() {
        table.eval = Some(eval?);
    }
    if table.task.draws() && table.prompt_dropout.is_none() {
        table.prompt_dropout = Some(DEFAULT_PROMPT_DROPOUT);
    }
    if has_text(table.task) {
        table.too_long.get_or_insert(TooLong::Reject);
    }
    if table.task == Task::Locate {
        table.box_format.get_or_insert(BoxFormat::Xyxy);
        table.normalised.get_or_insert(false);
    }
    Some(table)
}

/// Whether rows of a task have text that may be too long.
fn has_text(task: Task) -> bool {
    task.draws() || matches!(task, Task::Understand | Task::Text)
}

/// A key's text as what `resolve` makes of it; the flag is whether it stands on the command line.
fn resolve_text(
    name: &'static str,
    resolve: impl FnOnce(&str, bool) -> Result<String, KeyedProblem>,
    reader: &mut SectionReader<'_>,
) -> Option<String> {
    let entry = reader.entry(name)?;
    let text = match (&entry.node.value, &entry.node.typed) {
        (Value::Text(text), _) | (_, Some(text)) if !text.trim().is_empty() => text,
        _ => return None,
    };
    match resolve(text, entry.node.place.is_override()) {
        Ok(resolved) => Some(resolved),
        Err(problem) => {
            let problem = problem(&reader.full(name));
            reader.faults.push(Some(entry.node.place.clone()), problem);
            None
        }
    }
}

/// Refuses roles that the task does not have, and those that exclude each other.
fn check_columns(task: Task, reader: &mut SectionReader<'_>) {
    let Some(Value::Table(columns)) = reader.entry("columns").map(|entry| &entry.node.value) else { return };
    for entry in columns.entries.iter().filter(|entry| !task.roles().contains(&entry.key.as_str())) {
        let problem = Problem::UnknownRole {
            role: quotable(&entry.key),
            task: task.name(),
            nearest: nearest(&entry.key, task.roles().iter().copied()).map(str::to_owned),
            legal: task.roles().to_vec(),
        };
        reader.faults.push(Some(entry.key_place.clone()), problem);
    }
    for (one, other) in task.excluding_roles() {
        if let (Some(_), Some(second)) = (columns.get(one), columns.get(other)) {
            let problem = Problem::Conflict {
                first: format!("{}.{one}", reader.full("columns")),
                second: format!("{}.{other}", reader.full("columns")),
            };
            reader.faults.push(Some(second.key_place.clone()), problem);
        }
    }
}

fn given_name(node: &Node) -> Option<(&str, &Node)> {
    let Value::Table(table) = &node.value else { return None };
    let node = &table.get("name")?.node;
    match (&node.value, &node.typed) {
        (Value::Text(name), _) | (_, Some(name)) => Some((name, node)),
        _ => None,
    }
}

/// Refuses tables of one name; `list` is what their list is called.
pub(super) fn refuse_equal_names(list: &str, items: &[Node], faults: &mut Faults) {
    let mut first_of: HashMap<&str, usize> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some((name, node)) = given_name(item) else { continue };
        match first_of.get(name) {
            Some(&first) => {
                let problem = Problem::DuplicateName { name: quotable(name), first: format!("{list}.{first}") };
                faults.push(Some(node.place.clone()), problem);
            }
            None => {
                first_of.insert(name, index);
            }
        }
    }
}

/// Names tables after their task, with the table's number where several of that task are unnamed or the name is taken.
fn name_unnamed(tables: &mut [DataSection]) {
    let mut taken: HashSet<String> = tables.iter().map(|table| table.name.clone()).filter(|n| !n.is_empty()).collect();
    let mut unnamed_of: HashMap<Task, usize> = HashMap::new();
    for table in tables.iter().filter(|table| table.name.is_empty()) {
        *unnamed_of.entry(table.task).or_default() += 1;
    }
    for (index, table) in tables.iter_mut().enumerate().filter(|(_, table)| table.name.is_empty()) {
        let mut name = match unnamed_of.get(&table.task) {
            Some(1) => table.task.name().to_owned(),
            _ => format!("{}-{index}", table.task),
        };
        while taken.contains(&name) {
            name = format!("{name}-{index}");
        }
        taken.insert(name.clone());
        table.name = name;
    }
}
