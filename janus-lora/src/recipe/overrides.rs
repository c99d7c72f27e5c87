//! `key=value` on the command line, set into the tree of the file before anything is checked, so that both are checked alike.

use std::ops::Range;

use toml::de::DeValue;

use super::fault::{Faults, Problem, quotable};
use super::tree::{Entry, Node, Place, Table, Value, node_from};
use super::types::Recipe;

/// Parts of the longest key, `data.0.columns.image`, and one more for arrays' entries.
const MAX_PARTS: usize = 5;

/// Keys of which setting one on the command line removes the other from the file.
const REPLACING: &[(&str, &str, &str)] = &[("train", "steps", "epochs"), ("train", "epochs", "steps")];

/// Sets every override into the tree, later ones over earlier ones.
pub(crate) fn apply(root: &mut Table, overrides: &[String], faults: &mut Faults) {
    for (index, text) in overrides.iter().enumerate() {
        let source = index + 1;
        if let Err((span, problem)) = apply_one(root, text, source) {
            faults.push(Some(Place { source, span }), problem);
        }
    }
}

/// A part of an override's key and where it is in the argument.
struct Part<'a> {
    text: &'a str,
    span: Range<usize>,
}

/// What is wrong with an override, and where in the argument.
type Refusal = (Range<usize>, Problem);

fn apply_one(root: &mut Table, text: &str, source: usize) -> Result<(), Refusal> {
    let Some((key, _)) = text.split_once('=') else {
        return Err((0..text.len(), Problem::NoValue { text: quotable(text) }));
    };
    let key = OverrideKey { parts: key_parts(key)?, source };
    let value = value_node(text, key_length(text) + 1, source);
    if let [first, index, ..] = key.parts.as_slice() {
        let is_list = Recipe::SECTIONS.iter().any(|section| section.repeated && section.name == first.text);
        if is_list && root.get(first.text).is_none() {
            return Err((index.span.clone(), no_entry(first.text, index.text, 0)));
        }
    }
    key.set_in_table(root, 0, value)?;
    for (section, set, removed) in REPLACING {
        if let ([first, last], Some(entry)) = (key.parts.as_slice(), root.get_mut(section))
            && first.text == *section
            && last.text == *set
            && let Value::Table(table) = &mut entry.node.value
        {
            table.entries.retain(|entry| entry.key != *removed || entry.key_place.is_override());
        }
    }
    Ok(())
}

/// Bytes before the first `=`.
fn key_length(text: &str) -> usize {
    text.find('=').unwrap_or(text.len())
}

/// The parts of an override's key.
struct OverrideKey<'a> {
    parts: Vec<Part<'a>>,
    source: usize,
}

impl OverrideKey<'_> {
    fn place(&self, part: &Part<'_>) -> Place {
        Place { source: self.source, span: part.span.clone() }
    }

    /// The first parts, as they are written.
    fn up_to(&self, count: usize) -> String {
        quotable(&self.parts.iter().take(count).map(|part| part.text).collect::<Vec<_>>().join("."))
    }

    /// Sets the value below a table whose own key has `depth` parts; tables that are missing on the way are made.
    fn set_in_table(&self, table: &mut Table, depth: usize, value: Node) -> Result<(), Refusal> {
        let Some(part) = self.parts.get(depth) else { return Ok(()) };
        if depth + 1 == self.parts.len() {
            table.set(Entry { key: part.text.into(), key_place: self.place(part), node: value });
            return Ok(());
        }
        if let Some(entry) = table.get_mut(part.text) {
            return self.set_in_node(&mut entry.node, depth + 1, value);
        }
        let node = Node { value: Value::Table(Table::default()), place: self.place(part), typed: None };
        let entry = table.set(Entry { key: part.text.into(), key_place: self.place(part), node });
        self.set_in_node(&mut entry.node, depth + 1, value)
    }

    /// Sets the value below a node whose key has `depth` parts, of which there are more.
    fn set_in_node(&self, node: &mut Node, depth: usize, value: Node) -> Result<(), Refusal> {
        let Some(part) = self.parts.get(depth) else { return Ok(()) };
        let kind = node.value.kind();
        match &mut node.value {
            Value::Table(table) => self.set_in_table(table, depth, value),
            Value::Array(items) => {
                let length = items.len();
                if part.text.is_empty() || !part.text.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err((part.span.clone(), Problem::NotANumber { key: self.up_to(depth) }));
                }
                match part.text.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                    None => Err((part.span.clone(), no_entry(&self.up_to(depth), part.text, length))),
                    Some(item) if depth + 1 == self.parts.len() => {
                        *item = value;
                        Ok(())
                    }
                    Some(item) => self.set_in_node(item, depth + 1, value),
                }
            }
            _ => Err((part.span.clone(), Problem::NotATable { key: self.up_to(depth), kind })),
        }
    }
}

fn no_entry(key: &str, index: &str, length: usize) -> Problem {
    Problem::NoSuchEntry { key: key.into(), index: quotable(index), length }
}

/// The parts of a key between dots, without the spaces around them.
fn key_parts(key: &str) -> Result<Vec<Part<'_>>, Refusal> {
    let count = key.split('.').count();
    if count > MAX_PARTS {
        return Err((0..key.len(), Problem::KeyTooDeep { parts: count, limit: MAX_PARTS }));
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(count);
    for piece in key.split('.') {
        let text = piece.trim();
        let at = start + (piece.len() - piece.trim_start().len());
        if text.is_empty() {
            return Err((start..start + piece.len(), Problem::EmptyKey));
        }
        parts.push(Part { text, span: at..at + text.len() });
        start += piece.len() + 1;
    }
    Ok(parts)
}

/// The value of an override, which begins at `start`: TOML, or where it is none, text.
fn value_node(text: &str, start: usize, source: usize) -> Node {
    let whole = text.get(start..).unwrap_or("");
    let value = whole.trim();
    let offset = start + (whole.len() - whole.trim_start().len());
    let mut node = match DeValue::parse(value) {
        Ok(parsed) => node_from(parsed.get_ref(), parsed.span(), source, offset),
        Err(_) => Node {
            value: Value::Text(value.to_owned()),
            place: Place { source, span: offset..offset + value.len() },
            typed: Some(value.to_owned()),
        },
    };
    if !matches!(node.value, Value::Text(_) | Value::Array(_) | Value::Table(_)) {
        node.typed = Some(value.to_owned());
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::fault::parse_file;

    fn value(text: &str) -> Value {
        value_node(&format!("k={text}"), 2, 1).value
    }

    #[test]
    fn a_value_that_is_not_toml_is_a_string() {
        assert_eq!(value("1e-4"), Value::Float(1e-4));
        assert_eq!(value(" 16 "), Value::Integer(16));
        assert_eq!(value("true"), Value::Boolean(true));
        assert_eq!(value("\"a b\""), Value::Text("a b".into()));
        assert_eq!(value("x.parquet"), Value::Text("x.parquet".into()));
        assert_eq!(value("data/t-*.parquet"), Value::Text("data/t-*.parquet".into()));
        assert_eq!(value("synth:inspection?rows=5&seed=1"), Value::Text("synth:inspection?rows=5&seed=1".into()));
        assert_eq!(value("[1,2"), Value::Text("[1,2".into()));
        assert_eq!(value(""), Value::Text(String::new()));
        assert!(matches!(value("[\"a\", \"b\"]"), Value::Array(items) if items.len() == 2));
        assert!(matches!(value("{ image = \"i\" }"), Value::Table(_)));
        let deep = "[".repeat(100_000);
        assert_eq!(value(&deep), Value::Text(deep));
    }

    #[test]
    fn places_are_those_of_the_argument() {
        let argument = " train . betas = [0.9, 0.95]";
        let mut root = Table::default();
        apply_one(&mut root, argument, 3).unwrap();
        let train = root.get("train").unwrap();
        let Value::Table(table) = &train.node.value else { panic!("a table") };
        let betas = table.get("betas").unwrap();
        assert_eq!(&argument[betas.key_place.span.clone()], "betas");
        assert_eq!(betas.key_place.source, 3);
        let Value::Array(items) = &betas.node.value else { panic!("an array") };
        assert_eq!(&argument[items[1].place.span.clone()], "0.95");
    }

    fn problems(file: &str, overrides: &[&str]) -> (Table, Vec<String>) {
        let mut faults = Faults::default();
        let mut root = parse_file(file, &mut faults);
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        apply(&mut root, &overrides, &mut faults);
        let sources = crate::recipe::location::Sources::new(std::path::Path::new("x.toml"), file, &overrides);
        let problems = faults
            .located(&sources)
            .into_iter()
            .map(|fault| format!("{}: {}", fault.location.unwrap().column, fault.problem))
            .collect();
        (root, problems)
    }

    fn keys(root: &Table, section: &str) -> Vec<String> {
        match &root.get(section).unwrap().node.value {
            Value::Table(table) => table.entries.iter().map(|entry| entry.key.clone()).collect(),
            _ => panic!("`{section}` is no table"),
        }
    }

    #[test]
    fn steps_and_epochs_replace_each_other() {
        let (root, problems_found) = problems("[train]\nepochs = 3\nseed = 1\n", &["train.steps=10"]);
        assert!(problems_found.is_empty());
        assert_eq!(keys(&root, "train"), ["seed", "steps"]);
        let (root, _) = problems("[train]\nsteps = 3\n", &["train.epochs=10"]);
        assert_eq!(keys(&root, "train"), ["epochs"]);
        let (root, _) = problems("[train]\nsteps = 3\n", &["train.epochs=10", "train.steps=1"]);
        assert_eq!(
            keys(&root, "train"),
            ["epochs", "steps"],
            "both on the command line are left for the check to refuse"
        );
    }

    #[test]
    fn keys_that_lead_nowhere_are_told() {
        let file = "[base]\npath = \"x\"\n[[data]]\ntask = \"text\"\n[[data]]\ntask = \"text\"\n";
        let (_, found) = problems(
            file,
            &[
                "train",
                "=1",
                "train..steps=1",
                "base.path.deep=1",
                "data.train=x",
                "data.2.train=x",
                "a.b.c.d.e.f=1",
                "data.x=1",
                "data.-1.train=x",
            ],
        );
        assert_eq!(
            found,
            [
                "1: an override is written `key=value`, got `train`",
                "1: a part of the key is empty",
                "7: a part of the key is empty",
                "11: `base.path` is a string, it has no keys",
                "6: `data` is a list: write `data.0` for its first entry",
                "6: the recipe has no `data.2`: `data` has 2 entries, `data.0` to `data.1`",
                "1: the key has 6 parts, no recipe key has more than 5",
                "6: `data` is a list: write `data.0` for its first entry",
                "6: `data` is a list: write `data.0` for its first entry",
            ]
        );
        let (root, found) = problems("", &["data.0.train=x"]);
        assert_eq!(found, ["6: the recipe has no `data.0`: `data` has no entries"]);
        assert!(root.get("data").is_none());
    }

    #[test]
    fn entries_of_lists_are_reached_by_number() {
        let file = "[adapter]\ntargets = [\"decoder\", \"vision\"]\n[[data]]\ntask = \"text\"\n";
        let (root, found) = problems(file, &["adapter.targets.1=aligner", "data.0.columns.answer=a"]);
        assert!(found.is_empty(), "{found:?}");
        let Value::Table(adapter) = &root.get("adapter").unwrap().node.value else { panic!("a table") };
        let Value::Array(targets) = &adapter.get("targets").unwrap().node.value else { panic!("an array") };
        assert_eq!(targets[1].value, Value::Text("aligner".into()));
        let Value::Array(data) = &root.get("data").unwrap().node.value else { panic!("an array") };
        let Value::Table(data) = &data[0].value else { panic!("a table") };
        assert!(
            matches!(&data.get("columns").unwrap().node.value, Value::Table(columns) if columns.get("answer").is_some())
        );
    }
}
