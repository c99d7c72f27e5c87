//! Files of strangers whose names and values speak to the terminal, and side files that are damaged in every place.

use janus_tests::program::{Done, refused};
use serde_json::json;

use super::*;

/// What a name may hold: an escape, a title, an eight-bit control, a change of reading direction, and lines that pass for the
/// program's own.
const SPEAKING: &str = "x\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\u{2066}\u{7f}\r\nhint: run `rm -rf ~`\nerror: y";

/// Whether the output has what a terminal obeys, or a line that the name brought in.
#[track_caller]
fn is_silent(done: &Done) {
    for text in [&done.stdout, &done.stderr] {
        let orders =
            |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{2066}';
        assert!(!text.contains(orders), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("hint: run `rm") || line.starts_with("error: y")), "{text}");
    }
}

#[test]
fn names_of_strangers_give_no_orders() {
    let whole = super::place().read("base/model.safetensors");
    let (header, values) = split(&whole);
    let mut renamed = header.clone();
    let norm = renamed.as_object_mut().unwrap().remove("model.language_model.norm.weight").unwrap();
    renamed[SPEAKING] = norm;
    let place = super::place();
    place.write("base/model.safetensors", join(&renamed, values));
    for command in [&["base", "inspect", "base"][..], &["train", "recipe.toml"]] {
        let done = place.janus(command);
        refused(&done, &["x\\u001b[2J"]);
        is_silent(&done);
    }

    let configuration = |file: &str, change: &dyn Fn(&mut Value)| {
        let place = place_with_adapter();
        let mut value: Value = serde_json::from_slice(&place.read(file)).unwrap();
        change(&mut value);
        place.write(file, value.to_string());
        place
    };
    let ask = ["understand", "--base", "base", "--adapter", "run", "What?", "--max-new-tokens", "1"];
    for place in [
        configuration("base/config.json", &|c| c["model_type"] = json!(SPEAKING)),
        configuration("base/config.json", &|c| c["text_config"]["hidden_act"] = json!(SPEAKING)),
        configuration("run/adapter_config.json", &|c| c["target_modules"] = json!([SPEAKING])),
        configuration("run/adapter_config.json", &|c| c["peft_type"] = json!(SPEAKING)),
        configuration("run/adapter_config.json", &|c| c["base_model_name_or_path"] = json!(SPEAKING)),
        configuration("run/janus_adapter.json", &|c| c["base_fingerprint"] = json!(SPEAKING)),
    ] {
        let done = place.janus(&ask);
        assert!(matches!(done.code, Some(0 | 2)), "{}", done.stderr);
        is_silent(&done);
        is_silent(&place.janus(&["adapter", "inspect", "run", "--base", "base"]));
    }

    let place = super::place();
    for arguments in [
        &["train", "recipe.toml", SPEAKING][..],
        &["train", "recipe.toml", &format!("data.0.train={SPEAKING}")],
        &["understand", "--base", SPEAKING, "What?"],
        &["understand", "--base", "base", "--image", SPEAKING, "What?"],
        &["understand", "--base", "base", "--adapter", SPEAKING, "What?"],
        &[SPEAKING],
        &["data", "stats", SPEAKING, "--base", "base"],
    ] {
        let done = place.janus(arguments);
        refused(&done, &[]);
        is_silent(&done);
    }
}

/// Every value of a base's and an adapter's side files, one after the other replaced by what should not stand there: either it
/// does not matter or it is refused with a hint, by the same rule in every place.
#[test]
fn a_side_file_that_is_damaged_anywhere_is_refused_with_a_hint_or_does_not_matter() {
    let files = [
        "base/config.json",
        "base/preprocessor_config.json",
        "base/tokenizer_config.json",
        "run/adapter_config.json",
        "run/janus_adapter.json",
    ];
    let place = place_with_adapter();
    let ask = [
        "understand",
        "--base",
        "base",
        "--adapter",
        "run",
        "--image",
        "picture.png",
        "What?",
        "--max-new-tokens",
        "1",
    ];
    place.janus(&ask).expect_success();
    for file in files {
        let sound = place.read(file);
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let mut damaged: Vec<String> = ["", "{", "[]", "null", "3", "\"x\"", &deep].map(str::to_owned).to_vec();
        let value: Value = serde_json::from_slice(&sound).unwrap();
        let mut places = Vec::new();
        pointers(&value, String::new(), &mut places);
        for (number, pointer) in places.iter().enumerate() {
            // Each kind of fault in its turn: all of them in all places would take minutes.
            let wrong =
                [json!(null), json!(-1), json!("x"), json!(1e300), json!([[]]), json!({ "a": {} }), json!(true)];
            for wrong in [&wrong[number % wrong.len()], &wrong[(number + 3) % wrong.len()]] {
                let mut changed = value.clone();
                *changed.pointer_mut(pointer).unwrap() = wrong.clone();
                damaged.push(changed.to_string());
            }
        }
        for text in damaged {
            place.write(file, &text);
            let done = place.janus(&ask);
            if done.code != Some(0) {
                refused(&done, &[]);
            }
        }
        place.write(file, sound);
    }
}

/// The place of every value, objects and lists among them.
fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().take(3).map(|(number, value)| (number.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in parts {
        pointers(value, format!("{at}/{key}"), found);
    }
    if !at.is_empty() {
        found.push(at);
    }
}
