//! Commands as a shell takes them: the one that a run was started with, and those that use what it left.

use std::path::Path;

use serde_json::Value;

use super::record::Record;
use super::samples::Sample;
use crate::adapter::as_argument;
use crate::beginning::beginning;

/// Characters of a command that are kept.
const MAX_CHARACTERS: usize = 4_000;
/// Longest question or prompt that stands in a command.
const MAX_ASKED: usize = 200;
/// The picture of a command whose table has none of its own in the run folder.
const PLACEHOLDER: &str = "picture.png";

/// The command of this process.
pub(super) fn this() -> String {
    let arguments = std::env::args_os().skip(1).map(|argument| word(&argument.to_string_lossy()));
    let words: Vec<String> = std::iter::once("janus".to_owned()).chain(arguments).collect();
    beginning(&words.join(" "), MAX_CHARACTERS)
}

/// A word that a POSIX shell leaves as it is.
pub(super) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Whether a text may stand in a command that somebody pastes: one line, and nothing that a terminal obeys or an option is
/// made of.
fn can_be_pasted(text: &str) -> bool {
    let hidden =
        |c: char| c.is_control() || ('\u{200b}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
    !text.trim().is_empty() && !text.starts_with('-') && text.chars().count() <= MAX_ASKED && !text.chars().any(hidden)
}

/// Commands that use the adapter of a run that is over, each with what it does, one for each task: over the rows' own pictures
/// where the run folder has some, and else with a file's name to put in.
pub(super) fn uses(record: &Record) -> Vec<(String, String)> {
    let recipe = record.recipe.as_ref().and_then(|recipe| recipe.parse::<toml::Table>().ok()).unwrap_or_default();
    let told_base = recipe.get("base").and_then(|base| base.get("path")?.as_str());
    let base = told_base.or_else(|| record.facts.as_ref()?.get("base").and_then(Value::as_str));
    let Some(base) = base.filter(|base| can_be_pasted(base)) else { return Vec::new() };
    let place = fs_err::canonicalize(&record.folder).unwrap_or_else(|_| record.folder.clone());
    let Some(folder) = place.to_str().filter(|folder| can_be_pasted(folder)) else { return Vec::new() };
    let with = format!("--base {} --adapter {}", word(base), word(&as_argument(Path::new(folder)).to_string_lossy()));
    let samples = record.left_samples().map_or(&[][..], |(_, samples)| samples);
    let mut uses: Vec<(String, String)> = Vec::new();
    for table in recipe.get("data").and_then(toml::Value::as_array).into_iter().flatten() {
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str);
        let (Some(name), Some(task)) = (text("name"), text("task")) else { continue };
        let own = || samples.iter().filter(|sample| sample.table == name);
        let asked = own().map(|sample| sample.prompt.as_str()).find(|prompt| can_be_pasted(prompt));
        let picture = own().chain(samples).find_map(|sample| picture_of(record, folder, sample));
        let source = own().find_map(|sample| picture_named(record, folder, sample.source.as_deref()));
        let picture = if task == "edit" { source.or(picture) } else { picture };
        let is_there = picture.is_some();
        let picture = picture.unwrap_or_else(|| PLACEHOLDER.to_owned());
        let head = if can_be_pasted(name) { format!(" --head {}", word(name)) } else { String::new() };
        let (what, command) = match task {
            "understand" => {
                let asked = asked.or(text("question").filter(|question| can_be_pasted(question)));
                (
                    "ask about a picture",
                    format!("understand {with} --image {picture} {}", word(asked.unwrap_or("What is it?"))),
                )
            }
            "text" => ("ask", format!("understand {with} {}", word(asked.unwrap_or("What is it?")))),
            "generate" => {
                ("draw a picture", format!("generate {with} {} --out drawn.png", word(asked.unwrap_or("A picture."))))
            }
            "edit" => (
                "change a picture",
                format!("generate {with} --source {picture} {} --out changed.png", word(asked.unwrap_or("Change it."))),
            ),
            "classify" | "locate" | "segment" => {
                let what = match task {
                    "classify" => "name what a picture shows",
                    "locate" => "box what a picture shows",
                    _ => "outline what a picture shows",
                };
                (what, format!("understand {with} --task {task}{head} --image {picture}"))
            }
            "retrieve" => (
                "hold a picture against captions",
                format!("understand {with} --task retrieve{head} --image {picture} 'one caption' 'another caption'"),
            ),
            "reconstruct" => ("fold it into the base, with its image tokenizer", format!("merge {with} --out merged")),
            _ => continue,
        };
        let what = match is_there || !command.contains(PLACEHOLDER) {
            true => what.to_owned(),
            false => format!("{what} (here {PLACEHOLDER}, in place of a file of yours)"),
        };
        // One of a kind says how.
        let command = format!("janus {command}");
        let kind = |what: &str| what.split(" (").next().unwrap_or_default().to_owned();
        if uses.iter().all(|(told, _)| kind(told) != kind(&what)) {
            uses.push((what, command));
        }
    }
    uses
}

/// The picture of a sample's row as a word, if it is there and no name of another one.
fn picture_of(record: &Record, folder: &str, sample: &Sample) -> Option<String> {
    picture_named(record, folder, sample.image.as_deref())
}

fn picture_named(record: &Record, folder: &str, name: Option<&str>) -> Option<String> {
    let name = name.filter(|name| can_be_pasted(name))?;
    record.picture(name)?;
    Some(word(&format!("{folder}/{name}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        for text in ["plain", "a b", "it's", "", "$(reboot)", "a\"b", "`x`", "~", "*", "ä", "a=b"] {
            let told =
                std::process::Command::new("sh").args(["-c", &format!("printf %s {}", word(text))]).output().unwrap();
            assert_eq!(String::from_utf8(told.stdout).unwrap(), text);
        }
        assert_eq!(word("runs/a-1.png"), "runs/a-1.png");
    }

    /// A run folder with a row's picture, of these tables and samples.
    fn folder(recipe: &str, samples: serde_json::Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("samples/rows")).unwrap();
        image::RgbImage::new(4, 4).save(folder.path().join("samples/rows/0-0.png")).unwrap();
        std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        let line = json!({ "step": 1, "samples": samples }).to_string() + "\n";
        std::fs::write(folder.path().join("metrics.jsonl"), line).unwrap();
        folder
    }

    fn table(name: &str, task: &str) -> String {
        format!("[[data]]\nname = {name:?}\ntask = {task:?}\n")
    }

    #[test]
    fn every_task_has_its_command() {
        let recipe = "[base]\npath = \"janus-nano\"\n".to_owned()
            + &table("q", "understand")
            + &table("q2", "understand")
            + &table("p", "generate")
            + &table("e", "edit")
            + &table("c", "classify")
            + &table("r", "reconstruct");
        let sample =
            |table: &str, prompt: &str| json!({ "table": table, "prompt": prompt, "image": "samples/rows/0-0.png" });
        let folder =
            folder(&recipe, json!([sample("q", "What's it?"), sample("p", "a pit"), sample("e", "Polish it.")]));
        let place = folder.path().canonicalize().unwrap();
        let place = place.to_str().unwrap();
        let uses = uses(&Record::read(folder.path()).unwrap());
        let (with, picture) = (format!("--base janus-nano --adapter {place}"), format!("{place}/samples/rows/0-0.png"));
        assert_eq!(
            uses.into_iter().map(|(_, command)| command).collect::<Vec<_>>(),
            [
                format!(r"janus understand {with} --image {picture} 'What'\''s it?'"),
                format!("janus generate {with} 'a pit' --out drawn.png"),
                format!("janus generate {with} --source {picture} 'Polish it.' --out changed.png"),
                format!("janus understand {with} --task classify --head c --image {picture}"),
                format!("janus merge {with} --out merged"),
            ]
        );
    }

    #[test]
    fn every_task_has_its_command_where_no_row_was_sampled() {
        for (task, command) in [
            ("understand", "understand {with} --image picture.png 'What is it?'"),
            ("text", "understand {with} 'What is it?'"),
            ("generate", "generate {with} 'A picture.' --out drawn.png"),
            ("edit", "generate {with} --source picture.png 'Change it.' --out changed.png"),
            ("classify", "understand {with} --task classify --head t --image picture.png"),
            ("locate", "understand {with} --task locate --head t --image picture.png"),
            ("segment", "understand {with} --task segment --head t --image picture.png"),
            (
                "retrieve",
                "understand {with} --task retrieve --head t --image picture.png 'one caption' 'another caption'",
            ),
            ("reconstruct", "merge {with} --out merged"),
        ] {
            let recipe = "[base]\npath = \"janus-nano\"\n".to_owned() + &table("t", task) + &table("u", task);
            let folder = folder(&recipe, json!([]));
            let place = folder.path().canonicalize().unwrap();
            let with = format!("--base janus-nano --adapter {}", place.display());
            let uses = uses(&Record::read(folder.path()).unwrap());
            assert_eq!(uses.len(), 1, "{uses:?}");
            assert_eq!(uses[0].1, format!("janus {}", command.replace("{with}", &with)));
            assert_eq!(uses[0].0.contains("a file of yours"), command.contains("picture.png"), "{uses:?}");
        }
    }

    #[test]
    fn what_a_row_holds_runs_no_command_of_its_own() {
        let recipe = "[base]\npath = \"janus-nano\"\n".to_owned() + &table("q", "understand");
        for prompt in ["a\nreboot", "--out=/etc/passwd", "\u{1b}[2J", "\u{202e}x", " "] {
            let sample = json!({ "table": "q", "prompt": prompt, "image": "samples/rows/0-0.png" });
            let uses = uses(&Record::read(folder(&recipe, json!([sample])).path()).unwrap());
            assert!(uses[0].1.ends_with(" 'What is it?'"), "{uses:?}");
        }
        let outside = json!({ "table": "q", "prompt": "x", "image": "../../etc/passwd" });
        let uses_of_outside = uses(&Record::read(folder(&recipe, json!([outside])).path()).unwrap());
        assert!(uses_of_outside[0].1.ends_with(" --image picture.png x"), "{uses_of_outside:?}");
        assert!(uses(&Record::default()).is_empty());
    }
}
