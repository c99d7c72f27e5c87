//! The recipe's reference page, written from the same table of keys that reads recipes.

use std::fmt::Write;

use super::json_schema::text;
use super::schema::{Rule, Section};
use super::types::{EarlyStopping, Recipe, Task};

/// `docs/reference/recipe.md`: every section with its keys, what they take, their defaults and what they mean.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Recipe\n\n\
         A recipe is a TOML file. `janus recipe schema --markdown` writes this page from the program's own table of keys;\n\
         `janus recipe schema` gives the same as JSON Schema, which editors complete from:\n\n    \
         janus recipe schema > recipe.schema.json\n\n\
         with `#:schema ./recipe.schema.json` as the first line of a recipe. Any key can be set on the command line, as\n\
         `section.key=value`; the first `[[data]]` table is `data.0`. Paths of inputs start from the recipe's folder, on the\n\
         command line and for outputs from the current one. `janus recipe check FILE` prints a recipe with every default\n\
         filled in.\n",
    );
    for section in Recipe::SECTIONS {
        write_section(&mut page, section).expect("a text takes whatever is written to it");
    }
    page
}

fn write_section(page: &mut String, section: &Section) -> std::fmt::Result {
    let heading = if section.repeated { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) };
    writeln!(page, "\n## `{heading}`\n\n{}\n", text(section.documentation))?;
    writeln!(page, "| key | takes | default | meaning |\n| --- | --- | --- | --- |")?;
    for field in section.fields {
        let default = match (field.required, (field.default)()) {
            (true, _) => "required".to_owned(),
            (false, Some(default)) => format!("`{default}`"),
            (false, None) => String::new(),
        };
        let takes = cell(&field.rule.to_string());
        writeln!(page, "| `{}` | {takes} | {} | {} |", field.name, cell(&default), cell(&text(field.documentation)))?;
        if let Rule::Choice(choices) = &field.rule
            && !choices.later.is_empty()
        {
            let later: Vec<String> = choices.later.iter().map(|name| format!("`\"{name}\"`")).collect();
            writeln!(page, "| | | | Not yet: {}. |", later.join(", "))?;
        }
    }
    if section.fields.iter().any(|field| field.rule == Rule::Columns) {
        writeln!(page, "\nRoles that `columns` may name, by task:\n\n| task | roles |\n| --- | --- |")?;
        for task in Task::CHOICES.names.iter().filter_map(|name| Task::from_name(name)) {
            let roles: Vec<String> = task.roles().iter().map(|role| format!("`{role}`")).collect();
            writeln!(page, "| `{task}` | {} |", roles.join(", "))?;
        }
    }
    if section.fields.iter().any(|field| field.rule == Rule::EarlyStopping) {
        write_section(page, &EarlyStopping::SECTION)?;
    }
    Ok(())
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_one_of_the_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/recipe.md");
        let stored = std::fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n");
        assert!(
            stored == markdown(),
            "docs/reference/recipe.md is stale: cargo run --release -- recipe schema --markdown > docs/reference/recipe.md"
        );
    }

    #[test]
    fn every_key_has_its_row() {
        let page = markdown();
        for section in Recipe::SECTIONS {
            for field in section.fields {
                assert!(page.lines().any(|line| line.starts_with(&format!("| `{}` | ", field.name))), "{}", field.name);
            }
        }
    }
}
