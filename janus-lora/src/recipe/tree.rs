//! A recipe as keys and values that know where they were written: in the file or on the command line.
//!
//! The `toml` crate parses; what it gives is copied into owned nodes so that overrides can be set into the same tree.

use std::ops::Range;

use toml::de::{DeInteger, DeTable, DeValue};

/// Where something was written: a range of bytes in one of the texts that make up a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// 0 for the file, n for the n-th override.
    pub(crate) source: usize,
    /// Bytes of that text.
    pub(crate) span: Range<usize>,
}

impl Place {
    /// Whether it is on the command line.
    pub(crate) fn is_override(&self) -> bool {
        self.source > 0
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
    /// A scalar of an override as typed, so that `output.dir=2024` is the text `2024`; absent in files.
    pub(crate) typed: Option<String>,
}

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    /// Numbers beyond 128 bits are clamped: no key takes one that large.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
}

impl Value {
    /// What it is, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Datetime => "a date or time",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }
}

/// A key of a table with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// Entries in the order in which they were written, each key once.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

impl Table {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key == key)
    }

    /// Sets a key, in its old place where it exists.
    pub(crate) fn set(&mut self, new: Entry) -> &mut Entry {
        let at = self.entries.iter().position(|entry| entry.key == new.key).unwrap_or(self.entries.len());
        match self.entries.get(at) {
            Some(_) => self.entries[at] = new,
            None => self.entries.push(new),
        }
        &mut self.entries[at]
    }
}

/// Copies a parsed table. `source` and `offset`: which text it stands in, and where in it the parsed part begins.
///
/// The parser has bounded the depth, so recursion is safe.
pub(crate) fn table_from(parsed: &DeTable<'_>, source: usize, offset: usize) -> Table {
    let entries = parsed
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_place: place(key.span(), source, offset),
            node: node_from(value.get_ref(), value.span(), source, offset),
        })
        .collect();
    Table { entries }
}

/// Copies a parsed value, as [`table_from`] does.
pub(crate) fn node_from(parsed: &DeValue<'_>, span: Range<usize>, source: usize, offset: usize) -> Node {
    let value = match parsed {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => Value::Integer(integer_from(integer)),
        // Digits that overflow give infinity, which the checks refuse as they do a written `inf`.
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| node_from(item.get_ref(), item.span(), source, offset)).collect())
        }
        DeValue::Table(table) => Value::Table(table_from(table, source, offset)),
    };
    Node { value, place: place(span, source, offset), typed: None }
}

fn place(span: Range<usize>, source: usize, offset: usize) -> Place {
    Place { source, span: span.start.saturating_add(offset)..span.end.saturating_add(offset) }
}

fn integer_from(integer: &DeInteger<'_>) -> i128 {
    i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(match integer.as_str().starts_with('-') {
        true => i128::MIN,
        false => i128::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_places() {
        let text = "[adapter]\nrank = 0x10\nscale = nan # odd\n";
        let table = table_from(DeTable::parse(text).unwrap().get_ref(), 0, 0);
        let adapter = table.get("adapter").unwrap();
        assert_eq!(&text[adapter.key_place.span.clone()], "adapter");
        let Value::Table(adapter) = &adapter.node.value else { panic!("a table") };
        let rank = adapter.get("rank").unwrap();
        assert_eq!(rank.node.value, Value::Integer(16));
        assert_eq!(&text[rank.node.place.span.clone()], "0x10");
        assert!(matches!(adapter.get("scale").unwrap().node.value, Value::Float(x) if x.is_nan()));
    }

    #[test]
    fn numbers_beyond_every_range_stay_beyond() {
        let text = "a = 999999999999999999999999999999999999999999\nb = -999999999999999999999999999999999999999999\nc = 1e999\n";
        let table = table_from(DeTable::parse(text).unwrap().get_ref(), 0, 0);
        let values: Vec<&Value> = table.entries.iter().map(|entry| &entry.node.value).collect();
        assert_eq!(values, [&Value::Integer(i128::MAX), &Value::Integer(i128::MIN), &Value::Float(f64::INFINITY)]);
    }
}
