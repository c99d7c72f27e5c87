//! How the pictures of a run's tables are read, as its resolved recipe records it.

use std::collections::BTreeSet;

use crate::recipe::{DataSection, Orientation, Task};

/// How the pictures of one table are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The table's name.
    pub table: String,
    /// Its task, as a recipe writes it.
    pub task: String,
    /// Whether they are left as they are stored, whatever their EXIF says.
    pub is_stored: bool,
    /// `grey_bits`, from 8 to 16.
    pub grey_bits: Option<u8>,
}

impl Reading {
    /// Of a table of a recipe; `None` where it has no pictures.
    pub fn of(section: &DataSection) -> Option<Self> {
        let bits = section.grey_bits.and_then(|bits| u8::try_from(bits).ok());
        (section.task != Task::Text).then(|| Self {
            table: section.name.clone(),
            task: section.task.name().to_owned(),
            is_stored: section.orientation == Some(Orientation::Stored),
            grey_bits: bits,
        })
    }

    /// Of the tables of a resolved recipe that have pictures; none where it cannot be read. A table that does not say which way
    /// up is from before there was a choice, when pictures were read as they are stored.
    pub fn all(recipe: &str) -> Vec<Self> {
        let Ok(recipe) = recipe.parse::<toml::Table>() else { return Vec::new() };
        let reading = |table: &toml::Value| {
            let text = |key| table.get(key).and_then(toml::Value::as_str);
            let bits = table.get("grey_bits").and_then(toml::Value::as_integer);
            let task = text("task").filter(|task| *task != Task::Text.name())?;
            Some(Self {
                table: text("name").unwrap_or_default().to_owned(),
                task: task.to_owned(),
                is_stored: text("orientation").is_none_or(|way| way == Orientation::Stored.name()),
                grey_bits: bits.and_then(|bits| u8::try_from(bits).ok()).filter(|bits| (8..=16).contains(bits)),
            })
        };
        recipe.get("data").and_then(toml::Value::as_array).into_iter().flatten().filter_map(reading).collect()
    }

    fn way(&self) -> &'static str {
        if self.is_stored { Orientation::Stored.name() } else { Orientation::Upright.name() }
    }

    /// What no table in `trained` that it can be held against has as this one: those of its name, else those of its task. Each
    /// key with both values, as `had` and `has` say whose they are.
    pub fn differences(&self, trained: &[Self], had: &str, has: &str) -> Vec<String> {
        let mut others: Vec<&Self> = trained.iter().filter(|other| other.table == self.table).collect();
        if others.is_empty() {
            others = trained.iter().filter(|other| other.task == self.task).collect();
        }
        let mut differences = Vec::new();
        if !others.is_empty() && others.iter().all(|other| other.is_stored != self.is_stored) {
            let then = others.first().map_or("", |other| other.way());
            differences.push(format!("{had} `orientation = \"{then}\"`, and {has} \"{}\"", self.way()));
        }
        if !others.is_empty() && others.iter().all(|other| other.grey_bits != self.grey_bits) {
            let bits = |bits: Option<u8>| bits.map_or_else(|| "none".to_owned(), |bits| bits.to_string());
            let then: BTreeSet<Option<u8>> = others.iter().map(|other| other.grey_bits).collect();
            let then: Vec<String> = then.into_iter().map(bits).collect();
            differences.push(format!("{had} `grey_bits` {}, and {has} {}", then.join(" or "), bits(self.grey_bits)));
        }
        differences
    }
}

/// Whether a resolved recipe reads the pictures of all its tables as they are stored, as every one did that does not say it.
pub fn is_of_stored_pictures(recipe: &str) -> bool {
    let readings = Reading::all(recipe);
    !readings.is_empty() && readings.iter().all(|reading| reading.is_stored)
}

/// Tables that teach nothing (`loss_weight = 0`) and are evaluated all the same, of pictures that are read otherwise than those
/// of all tables of their task that teach: name and difference.
pub fn evaluated_otherwise(data: &[DataSection]) -> Vec<(String, String)> {
    let (silent, teaching): (Vec<_>, Vec<_>) = data.iter().partition(|section| section.loss_weight == 0.0);
    let teaching: Vec<Reading> = teaching.into_iter().filter_map(Reading::of).collect();
    let evaluated = silent.into_iter().filter(|section| section.eval.is_some()).filter_map(Reading::of);
    evaluated
        .flat_map(|reading| {
            let differences = reading.differences(&teaching, "what teaches has", "it has");
            differences.into_iter().map(move |difference| (reading.table.clone(), difference))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, task: &str, more: &str) -> String {
        format!("[[data]]\nname = \"{name}\"\ntask = \"{task}\"\n{more}\n")
    }

    #[test]
    fn what_recipes_record_is_read() {
        let recipe = [
            table("a", "understand", "orientation = \"upright\"\ngrey_bits = 12"),
            table("b", "text", ""),
            table("c", "classify", ""),
            table("d", "edit", "grey_bits = 99"),
        ];
        let found: Vec<_> =
            Reading::all(&recipe.concat()).into_iter().map(|r| (r.table, r.is_stored, r.grey_bits)).collect();
        let expected = [("a".to_owned(), false, Some(12)), ("c".into(), true, None), ("d".into(), true, None)];
        assert_eq!(found, expected);
        assert!(Reading::all("no recipe").is_empty() && Reading::all("data = 3").is_empty());
    }

    #[test]
    fn a_table_is_held_against_its_own_else_against_those_of_its_task() {
        let trained = [
            table("a", "understand", "orientation = \"upright\"\ngrey_bits = 12"),
            table("b", "classify", "orientation = \"stored\""),
            table("c", "classify", "orientation = \"stored\"\ngrey_bits = 10"),
        ];
        let trained = Reading::all(&trained.concat());
        let differences = |name: &str, task: &str, more: &str| {
            let now = Reading::all(&table(name, task, &format!("orientation = \"upright\"\n{more}")));
            now[0].differences(&trained, "it had", "it has").join("; ")
        };
        assert_eq!(differences("a", "understand", "grey_bits = 12"), "");
        assert_eq!(differences("a", "understand", ""), "it had `grey_bits` 12, and it has none");
        assert_eq!(differences("new", "understand", "grey_bits = 16"), "it had `grey_bits` 12, and it has 16");
        let turned = "it had `orientation = \"stored\"`, and it has \"upright\"";
        assert_eq!(differences("new", "classify", ""), turned, "one of them has no `grey_bits` either");
        let both = format!("{turned}; it had `grey_bits` none or 10, and it has 9");
        assert_eq!(differences("new", "classify", "grey_bits = 9"), both);
        assert_eq!(differences("new", "edit", "grey_bits = 9"), "", "nothing to hold it against");
    }

    #[test]
    fn a_table_that_is_only_evaluated_is_held_against_those_that_teach() {
        let section = |name: &str, task, bits, loss_weight| DataSection {
            grey_bits: bits,
            loss_weight,
            eval: Some("rows".into()),
            ..DataSection::new(name, task, "rows")
        };
        let teaching = section("a", Task::Understand, Some(12), 1.0);
        let found = |silent: DataSection| evaluated_otherwise(&[teaching.clone(), silent]);
        let told = "what teaches has `grey_bits` 12, and it has none".to_owned();
        assert_eq!(found(section("b", Task::Understand, None, 0.0)), [("b".to_owned(), told)]);
        assert!(found(section("b", Task::Understand, Some(12), 0.0)).is_empty());
        assert!(found(section("b", Task::Understand, None, 0.5)).is_empty(), "it teaches itself");
        assert!(found(section("b", Task::Classify, None, 0.0)).is_empty(), "another task");
        assert!(found(DataSection { eval: None, ..section("b", Task::Understand, None, 0.0) }).is_empty());
    }
}
