//! The recipe's keys as JSON Schema, so that editors complete and check recipe files.

use serde_json::{Map, Value, json};

use super::schema::{Field, NumberRange, Rule, Section};
use super::types::{EarlyStopping, MAX_RANK, Recipe, StageSection, Task};

/// JSON Schema (draft 7, which TOML editors read) of a recipe file.
///
/// What two keys say together, such as `steps` beside `epochs`, is for `janus recipe check`.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for section in Recipe::SECTIONS {
        let mut schema = section_schema(section);
        if section.repeated {
            schema = json!({ "type": "array", "minItems": 1, "items": schema });
        }
        properties.insert(section.name.to_owned(), schema);
        if section.name != StageSection::SECTION.name && section.fields.iter().any(|field| field.required) {
            required.push(section.name);
        }
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "janus recipe",
        "description": "What `janus train` trains, from what, on what and how.",
        "type": "object",
        "additionalProperties": false,
        "required": required,
        "properties": properties,
    })
}

fn section_schema(section: &Section) -> Value {
    let mut properties = Map::new();
    for field in section.fields {
        properties.insert(field.name.to_owned(), field_schema(field));
    }
    let required: Vec<&str> = section.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut schema = json!({
        "type": "object",
        "description": text(section.documentation),
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if section.fields.iter().any(|field| field.rule == Rule::Columns) {
        schema["allOf"] = column_rules();
    }
    schema
}

fn field_schema(field: &Field) -> Value {
    let mut schema = rule_schema(&field.rule);
    schema["description"] = json!(text(field.documentation));
    if let Some(default) = (field.default)().and_then(|default| from_toml(&default)) {
        schema["default"] = default;
    }
    schema
}

fn rule_schema(rule: &Rule) -> Value {
    match rule {
        Rule::Text => json!({ "type": "string", "minLength": 1 }),
        Rule::Integer { minimum, maximum } => json!({ "type": "integer", "minimum": minimum, "maximum": maximum }),
        Rule::IntegerList { minimum, maximum } => {
            json!({ "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": minimum, "maximum": maximum } })
        }
        Rule::Number(range) => number_schema(*range),
        Rule::Pair(range) => {
            json!({ "type": "array", "minItems": 2, "maxItems": 2, "items": number_schema(*range) })
        }
        Rule::Boolean => json!({ "type": "boolean" }),
        Rule::Choice(choices) => json!({ "type": "string", "enum": choices.names }),
        Rule::ChoiceList(choices) => json!({ "type": "array", "items": { "type": "string", "enum": choices.names } }),
        Rule::TextList => json!({ "type": "array", "items": { "type": "string", "minLength": 1 } }),
        Rule::Columns => json!({ "type": "object", "additionalProperties": { "type": "string", "minLength": 1 } }),
        Rule::BadRows => json!({ "type": "number", "minimum": 0 }),
        Rule::EarlyStopping => section_schema(&EarlyStopping::SECTION),
        Rule::Rates => json!({ "type": "object", "additionalProperties": number_schema(NumberRange::Positive) }),
        Rule::Factor => json!({ "type": "integer", "minimum": -1, "not": { "const": 0 } }),
        Rule::Ranks => {
            json!({ "type": "object", "additionalProperties": { "type": "integer", "minimum": 1, "maximum": MAX_RANK } })
        }
        Rule::Alphas => json!({ "type": "object", "additionalProperties": number_schema(NumberRange::NotZero) }),
        Rule::Keys(section) => {
            let mut schema = section_schema(section);
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("required");
            }
            schema
        }
    }
}

fn number_schema(range: NumberRange) -> Value {
    match range {
        NumberRange::NotZero => json!({ "type": "number", "not": { "const": 0 } }),
        NumberRange::Positive => json!({ "type": "number", "exclusiveMinimum": 0 }),
        NumberRange::NotNegative => json!({ "type": "number", "minimum": 0 }),
        NumberRange::AtLeastOne => json!({ "type": "number", "minimum": 1 }),
        NumberRange::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        NumberRange::BelowOne => json!({ "type": "number", "minimum": 0, "exclusiveMaximum": 1 }),
    }
}

/// For each task, the roles that its `columns` may name.
fn column_rules() -> Value {
    let rule = |task: &&str| {
        let roles = Task::from_name(task).map_or(&[][..], Task::roles);
        json!({
            "if": { "properties": { "task": { "const": task } }, "required": ["task"] },
            "then": { "properties": { "columns": { "propertyNames": { "enum": roles } } } },
        })
    };
    Task::CHOICES.names.iter().map(rule).collect()
}

/// Lines of documentation as one text.
pub(super) fn text(documentation: &[&str]) -> String {
    documentation.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// A TOML value as JSON.
fn from_toml(value: &str) -> Option<Value> {
    let table: toml::Table = format!("value = {value}").parse().ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_and_bounded() {
        let schema = json_schema();
        for section in Recipe::SECTIONS {
            let of_section = &schema["properties"][section.name];
            let of_section = if section.repeated { &of_section["items"] } else { of_section };
            assert_eq!(of_section["additionalProperties"], json!(false), "{}", section.name);
            for field in section.fields {
                let of_field = &of_section["properties"][field.name];
                assert!(of_field["description"].as_str().is_some_and(|text| text.len() > 4), "{}", field.name);
                assert!(of_field["type"].is_string(), "{}", field.name);
            }
        }
        let train = &schema["properties"]["train"]["properties"];
        assert_eq!(train["betas"]["default"], json!([0.9, 0.999]));
        assert_eq!(train["learning_rate"]["exclusiveMinimum"], json!(0));
        assert_eq!(schema["properties"]["base"]["properties"]["dtype"]["enum"], json!(["f32", "bf16"]));
        assert_eq!(schema["properties"]["data"]["items"]["required"], json!(["task", "train"]));
        assert_eq!(schema["required"], json!(["base", "data", "output"]));
    }
}
