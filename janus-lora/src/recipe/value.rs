//! From TOML values to fields and back.

use std::path::PathBuf;

use super::adapter::Patterns;
use super::fault::{Faults, Problem, quotable};
use super::schema::{Choices, Field, NumberRange, Rule, Section};
use super::tree::{Entry, Node, Place, Table, Value};
use super::types::{Columns, EarlyStopping, MAX_RANK, Rates};
use crate::data::BadRowLimit;
use crate::nearest::nearest;
use crate::target::TargetPattern;

/// A type that a field of a recipe may have.
pub(crate) trait FieldValue: Sized {
    /// Reads a value; what is wrong with it goes to `faults`. `key` is its full name, for messages.
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self>;

    /// The value as TOML, absent where the key is left out.
    fn write(&self) -> Option<String>;
}

fn wrong_type(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) {
    let taken_as_text = node.typed.is_some() && matches!(node.value, Value::Text(_));
    let problem =
        Problem::WrongType { key: key.into(), expected: rule.to_string(), got: node.value.kind(), taken_as_text };
    faults.push(Some(node.place.clone()), problem);
}

fn out_of_range(node: &Node, key: &str, rule: &Rule, got: String, faults: &mut Faults) {
    let problem = Problem::OutOfRange { key: key.into(), expected: rule.to_string(), got };
    faults.push(Some(node.place.clone()), problem);
}

/// Reads text. A scalar of the command line counts as typed, so that a folder may be called `2024` there.
fn read_text(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<String> {
    let text = match (&node.value, &node.typed) {
        (Value::Text(text), _) | (_, Some(text)) => text,
        _ => {
            wrong_type(node, key, rule, faults);
            return None;
        }
    };
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        let expected = if text.trim().is_empty() { rule.to_string() } else { "text without control characters".into() };
        let problem = Problem::OutOfRange { key: key.into(), expected, got: quotable(text) };
        faults.push(Some(node.place.clone()), problem);
        return None;
    }
    Some(text.clone())
}

/// Reads one of some words.
pub(crate) fn read_choice(
    node: &Node,
    key: &str,
    rule: &Rule,
    choices: &Choices,
    faults: &mut Faults,
) -> Option<String> {
    let word = match (&node.value, &node.typed) {
        (Value::Text(text), _) | (_, Some(text)) => text,
        _ => {
            wrong_type(node, key, rule, faults);
            return None;
        }
    };
    if choices.names.contains(&word.as_str()) {
        return Some(word.clone());
    }
    let problem = if choices.later.contains(&word.as_str()) {
        Problem::NotSupported { what: format!("`{key} = \"{word}\"`") }
    } else {
        Problem::UnknownValue {
            key: key.into(),
            got: quotable(word),
            nearest: nearest(word, choices.names.iter().copied()).map(str::to_owned),
            legal: choices.names.to_vec(),
        }
    };
    faults.push(Some(node.place.clone()), problem);
    None
}

/// Reads a number of a range; integers count as numbers.
fn read_number(node: &Node, key: &str, rule: &Rule, range: NumberRange, faults: &mut Faults) -> Option<f64> {
    let number = match node.value {
        Value::Float(number) => number,
        Value::Integer(integer) => integer as f64,
        _ => {
            wrong_type(node, key, rule, faults);
            return None;
        }
    };
    if range.contains(number) {
        return Some(number);
    }
    out_of_range(node, key, rule, format!("{number:?}"), faults);
    None
}

/// A float as TOML; Rust's shortest form that reads back to the same bits is one.
fn write_number(number: f64) -> String {
    format!("{number:?}")
}

fn write_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl FieldValue for String {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        read_text(node, key, rule, faults)
    }

    fn write(&self) -> Option<String> {
        // No field takes an empty text: it stands for one that is yet to be filled in.
        (!self.is_empty()).then(|| write_text(self))
    }
}

impl FieldValue for PathBuf {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        read_text(node, key, rule, faults).map(PathBuf::from)
    }

    fn write(&self) -> Option<String> {
        Some(write_text(&self.to_string_lossy()))
    }
}

impl FieldValue for bool {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        if let Value::Boolean(boolean) = node.value {
            return Some(boolean);
        }
        wrong_type(node, key, rule, faults);
        None
    }

    fn write(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl FieldValue for u64 {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let (minimum, maximum) = match rule {
            Rule::Integer { minimum, maximum } => (*minimum, *maximum),
            _ => (0, u64::MAX),
        };
        let Value::Integer(integer) = node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let value = u64::try_from(integer).ok().filter(|value| (minimum..=maximum).contains(value));
        if value.is_none() {
            out_of_range(node, key, rule, integer.to_string(), faults);
        }
        value
    }

    fn write(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl FieldValue for Vec<u64> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Array(items) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        // Of layers, which are counted from 0, none means all.
        if items.is_empty() && !matches!(rule, Rule::IntegerList { minimum: 0, .. }) {
            out_of_range(node, key, rule, "an empty array".into(), faults);
            return None;
        }
        let item_rule = match *rule {
            Rule::IntegerList { minimum, maximum } => Rule::Integer { minimum, maximum },
            other => other,
        };
        let numbers = items
            .iter()
            .enumerate()
            .map(|(index, item)| u64::read(item, &format!("{key}.{index}"), &item_rule, faults));
        // All of them are read before the first fault counts.
        numbers.collect::<Vec<_>>().into_iter().collect()
    }

    fn write(&self) -> Option<String> {
        Some(format!("[{}]", self.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")))
    }
}

impl FieldValue for f64 {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let range = match rule {
            Rule::Number(range) => *range,
            _ => NumberRange::NotZero,
        };
        read_number(node, key, rule, range, faults)
    }

    fn write(&self) -> Option<String> {
        Some(write_number(*self))
    }
}

impl FieldValue for [f64; 2] {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let range = match rule {
            Rule::Pair(range) => *range,
            _ => NumberRange::NotZero,
        };
        let Value::Array(items) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let [first, second] = items.as_slice() else {
            out_of_range(node, key, rule, format!("{} entries", items.len()), faults);
            return None;
        };
        let item_rule = Rule::Number(range);
        let first = read_number(first, &format!("{key}.0"), &item_rule, range, faults);
        let second = read_number(second, &format!("{key}.1"), &item_rule, range, faults);
        Some([first?, second?])
    }

    fn write(&self) -> Option<String> {
        Some(format!("[{}, {}]", write_number(self[0]), write_number(self[1])))
    }
}

impl FieldValue for Vec<String> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Array(items) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let texts: Vec<Option<String>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| read_text(item, &format!("{key}.{index}"), &Rule::Text, faults))
            .collect();
        texts.into_iter().collect()
    }

    fn write(&self) -> Option<String> {
        Some(format!("[{}]", self.iter().map(|text| write_text(text)).collect::<Vec<_>>().join(", ")))
    }
}

/// Words of which a field may have several.
pub(crate) trait Word: FieldValue {}

impl<T: Word> FieldValue for Vec<T> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Array(items) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let words =
            items.iter().enumerate().map(|(index, item)| T::read(item, &format!("{key}.{index}"), rule, faults));
        // All of them are read before the first fault counts.
        words.collect::<Vec<_>>().into_iter().collect()
    }

    fn write(&self) -> Option<String> {
        Some(format!("[{}]", self.iter().filter_map(T::write).collect::<Vec<_>>().join(", ")))
    }
}

impl FieldValue for Columns {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let pairs: Vec<Option<(String, String)>> = table
            .entries
            .iter()
            .map(|entry| {
                let key = format!("{key}.{}", quotable(&entry.key));
                let column = read_text(&entry.node, &key, &Rule::Text, faults)?;
                Some((entry.key.clone(), column))
            })
            .collect();
        pairs.into_iter().collect()
    }

    fn write(&self) -> Option<String> {
        let pairs: Vec<String> = self.iter().map(|(role, column)| format!("{role} = {}", write_text(column))).collect();
        (!pairs.is_empty()).then(|| format!("{{ {} }}", pairs.join(", ")))
    }
}

impl FieldValue for Rates {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let factor = Rule::Number(NumberRange::Positive);
        let pairs = table.entries.iter().map(|entry| {
            let key = format!("{key}.{}", quotable(&entry.key));
            let value = read_number(&entry.node, &key, &factor, NumberRange::Positive, faults)?;
            Some((entry.key.clone(), value))
        });
        // All of them are read before the first fault counts.
        pairs.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Rates)
    }

    fn write(&self) -> Option<String> {
        let pair = |(module, factor): &(String, f64)| format!("{} = {}", write_text(module), write_number(*factor));
        let pairs: Vec<String> = self.0.iter().map(pair).collect();
        (!pairs.is_empty()).then(|| format!("{{ {} }}", pairs.join(", ")))
    }
}

impl FieldValue for i64 {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let Value::Integer(integer) = node.value else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        let value = i64::try_from(integer).ok().filter(|value| *value == -1 || *value > 0);
        if value.is_none() {
            out_of_range(node, key, rule, integer.to_string(), faults);
        }
        value
    }

    fn write(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A table from patterns to values, each read by `value_rule`.
fn read_patterns<T: FieldValue>(
    node: &Node,
    key: &str,
    rule: &Rule,
    value_rule: &Rule,
    faults: &mut Faults,
) -> Option<Patterns<T>> {
    let Value::Table(table) = &node.value else {
        wrong_type(node, key, rule, faults);
        return None;
    };
    let pairs = table.entries.iter().map(|entry| {
        let key = format!("{key}.{}", quotable(&entry.key));
        if let Err(error) = TargetPattern::parse(&entry.key) {
            faults.push(Some(entry.key_place.clone()), Problem::Target(error));
        }
        Some((entry.key.clone(), T::read(&entry.node, &key, value_rule, faults)?))
    });
    // All of them are read before the first fault counts.
    pairs.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Patterns)
}

fn write_patterns<T: FieldValue>(patterns: &Patterns<T>) -> Option<String> {
    let pair = |(pattern, value): &(String, T)| Some(format!("{} = {}", write_text(pattern), value.write()?));
    let pairs: Vec<String> = patterns.0.iter().filter_map(pair).collect();
    (!pairs.is_empty()).then(|| format!("{{ {} }}", pairs.join(", ")))
}

impl FieldValue for Patterns<u64> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        read_patterns(node, key, rule, &Rule::Integer { minimum: 1, maximum: MAX_RANK }, faults)
    }

    fn write(&self) -> Option<String> {
        write_patterns(self)
    }
}

impl FieldValue for Patterns<f64> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        read_patterns(node, key, rule, &Rule::Number(NumberRange::NotZero), faults)
    }

    fn write(&self) -> Option<String> {
        write_patterns(self)
    }
}

impl FieldValue for BadRowLimit {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        match node.value {
            Value::Integer(integer) => {
                let count = usize::try_from(integer).ok();
                if count.is_none() {
                    out_of_range(node, key, rule, integer.to_string(), faults);
                }
                count.map(BadRowLimit::Count)
            }
            Value::Float(share) if NumberRange::Share.contains(share) => Some(BadRowLimit::Share(share)),
            Value::Float(share) => {
                out_of_range(node, key, rule, format!("{share:?}"), faults);
                None
            }
            _ => {
                wrong_type(node, key, rule, faults);
                None
            }
        }
    }

    fn write(&self) -> Option<String> {
        Some(match self {
            BadRowLimit::Share(share) => write_number(*share),
            BadRowLimit::Count(count) => count.to_string(),
        })
    }
}

impl FieldValue for EarlyStopping {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        if !matches!(node.value, Value::Table(_)) {
            wrong_type(node, key, rule, faults);
            return None;
        }
        Self::read(&mut SectionReader::new(key.into(), Self::SECTION, Some(node), faults))
    }

    fn write(&self) -> Option<String> {
        let mut lines = String::new();
        Self::write(self, &mut lines);
        Some(format!("{{ {} }}", lines.trim_end().replace('\n', ", ")))
    }
}

/// Keys of another section that a stage sets for itself. They are read in that section's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides;

impl FieldValue for Overrides {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        let (Value::Table(_), Rule::Keys(section)) = (&node.value, rule) else {
            wrong_type(node, key, rule, faults);
            return None;
        };
        // Tells of unknown keys.
        SectionReader::new(key.into(), **section, Some(node), faults);
        Some(Self)
    }

    fn write(&self) -> Option<String> {
        None
    }
}

impl<T: FieldValue> FieldValue for Option<T> {
    fn read(node: &Node, key: &str, rule: &Rule, faults: &mut Faults) -> Option<Self> {
        T::read(node, key, rule, faults).map(Some)
    }

    fn write(&self) -> Option<String> {
        self.as_ref().and_then(T::write)
    }
}

/// Reads the keys of one table.
pub(crate) struct SectionReader<'a> {
    /// Name of the table in keys: `adapter`, `data.0`.
    label: String,
    section: Section,
    table: Option<&'a Table>,
    place: Option<Place>,
    pub(crate) faults: &'a mut Faults,
}

impl<'a> SectionReader<'a> {
    /// A reader of a table, which may be absent. Unknown keys are told at once.
    pub(crate) fn new(label: String, section: Section, node: Option<&'a Node>, faults: &'a mut Faults) -> Self {
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            _ => None,
        };
        let reader = Self { label, section, table, place: node.map(|node| node.place.clone()), faults };
        let known = |entry: &&Entry| !section.fields.iter().any(|field| field.name == entry.key);
        for entry in table.into_iter().flat_map(|table| &table.entries).filter(known) {
            let problem = Problem::UnknownKey {
                key: quotable(&entry.key),
                table: heading(&section),
                nearest: super::read::nearest_key(&entry.key, Some(&section)),
                legal: section.fields.iter().map(|field| field.name).collect(),
            };
            reader.faults.push(Some(entry.key_place.clone()), problem);
        }
        reader
    }

    /// A key's full name.
    pub(crate) fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.label)
    }

    /// A key's entry, where it is given.
    pub(crate) fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.table.and_then(|table| table.get(name))
    }

    /// Reads a key that must be there.
    pub(crate) fn required<T: FieldValue>(&mut self, name: &'static str, rule: &Rule) -> Option<T> {
        let key = self.full(name);
        match self.entry(name) {
            Some(entry) => T::read(&entry.node, &key, rule, self.faults),
            // What stands in the table's place is no table: that is told elsewhere.
            None if self.place.is_some() && self.table.is_none() => None,
            None => {
                let meaning = self.section.fields.iter().find(|field| field.name == name).map(Field::summary);
                let problem = Problem::Missing { key, meaning: meaning.unwrap_or_default() };
                self.faults.push(self.place.clone(), problem);
                None
            }
        }
    }

    /// Reads a key that has a default.
    pub(crate) fn default<T: FieldValue>(&mut self, name: &'static str, rule: &Rule, default: T) -> Option<T> {
        let key = self.full(name);
        match self.entry(name) {
            // The fault is told; the default lets the other keys be checked.
            Some(entry) => Some(T::read(&entry.node, &key, rule, self.faults).unwrap_or(default)),
            None => Some(default),
        }
    }

    /// Tells that two keys exclude each other, at the one written last.
    pub(crate) fn refuse_both(&mut self, one: &'static str, other: &'static str) {
        if let (Some(first), Some(second)) = (self.entry(one), self.entry(other)) {
            let position = |entry: &Entry| (entry.key_place.source, entry.key_place.span.start);
            let (first, second) = if position(first) <= position(second) { (first, second) } else { (second, first) };
            let problem = Problem::Conflict { first: self.full(&first.key), second: self.full(&second.key) };
            self.faults.push(Some(second.key_place.clone()), problem);
        }
    }
}

/// A section as it is headed in a file.
pub(crate) fn heading(section: &Section) -> String {
    match section.repeated {
        true => format!("[[{}]]", section.name),
        false => format!("[{}]", section.name),
    }
}
