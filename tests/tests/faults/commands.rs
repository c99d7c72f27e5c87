//! Arguments, options, outputs and pictures.

use janus_tests::program::{command, run};
use janus_tests::rows::png_claiming;

use super::*;

#[test]
fn output_folders_that_are_not_empty() {
    let place = place_with_adapter();
    fs_err::create_dir(place.path("full")).unwrap();
    place.write("full/notes.txt", "mine");
    let commands: [&[&str]; 4] = [
        &["train", "recipe.toml", "output.dir=OUT"],
        &["merge", "--base", "base", "--adapter", "run", "--out", "OUT"],
        &["base", "init", "--shape", "janus-tiny", "--out", "OUT"],
        &["base", "convert", "base", "--layout", "deepseek", "--out", "OUT"],
    ];
    for command in commands {
        for (out, said) in [("full", "full` is not empty"), ("full/notes.txt", "is not a folder")] {
            let arguments: Vec<String> = command.iter().map(|argument| argument.replace("OUT", out)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            place.refuses(&arguments, &[said]);
        }
    }
}

#[test]
fn nothing_is_left_of_an_output_that_is_not_made() {
    let place = place_with_adapter();
    let convert = |base: &'static str| ["base", "convert", base, "--layout", "native", "--out", "deep/er/out"];
    place.refuses(&convert("absent-base"), &["absent-base"]);
    fs_err::create_dir(place.path("void")).unwrap();
    place.refuses(&convert("void"), &["void"]);
    place.refuses(&["train", "recipe.toml", "output.dir=deep/er/run", "adapter.rank=4000"], &["4000"]);
}

#[test]
fn pictures_that_are_none() {
    let place = place();
    place.write("notes.png", "no picture");
    place.write("cut.png", truncated());
    place.write("long.png", picture(1, 20_000, 1));
    place.write("huge.png", png_claiming(30_000, 30_000));
    for (picture, said) in [
        ("absent.png", "absent.png"),
        ("base", "base"),
        ("notes.png", "image"),
        ("cut.png", "image"),
        ("long.png", "1x20000"),
        ("huge.png", "30000x30000"),
    ] {
        place.refuses(&["understand", "--base", "base", "--image", picture, "What?"], &[said]);
    }
    place.refuses(&["understand", "--base", "base", ""], &["empty"]);
    place.refuses(&["understand", "--base", "base", "<image_placeholder> what?"], &["image_placeholder"]);
}

#[test]
fn a_text_without_a_picture_has_no_place_for_one() {
    let place = place_with_adapter();
    for (tag, stands_for) in [
        ("<image>", "a picture"),
        ("<img>", "a picture"),
        ("<|image_pad|>", "a picture"),
        ("<image_placeholder>", "a picture"),
        ("[IMG]", "a picture"),
        ("<|image_1|>", "a picture"),
        ("<video>", "a video"),
    ] {
        let prompt = format!("{tag} cup");
        let generate = ["generate", "--base", "base", &prompt, "--out", "x.png"];
        place.refuses(
            &generate,
            &[&format!("the prompt contains `{tag}`, which stands for {stands_for}"), "`--source`"],
        );
        let features =
            ["base", "features", "--base", "base", "--image", "picture.png", "--level", "high", "--prompt", &prompt];
        place.refuses(&[&features[..], &["--out", "x.safetensors"]].concat(), &[tag, stands_for]);
    }
    // What only looks like one is text; and a picture has its place.
    for prompt in ["a < b and [x]", "an image of a cup"] {
        place.janus(&["generate", "--base", "base", prompt, "--out", "x.png"]).expect_success();
    }
    let source = ["generate", "--base", "base", "<image> at night", "--source", "picture.png", "--out", "y.png"];
    place.janus(&source).expect_success();
}

#[test]
fn what_is_not_understood() {
    let place = place_with_adapter();
    for dtype in ["f64", "q4", ""] {
        let flag = format!("--dtype={dtype}");
        place.refuses(&["base", "init", "--shape", "janus-tiny", "--out", "x", &flag], &["f32, bf16, f16"]);
        place.refuses(&["understand", "--base", "base", "What?", &flag], &["f32, bf16, f16"]);
        place.refuses(&["merge", "--base", "base", "--adapter", "run", "--out", "x", &flag], &["f32, bf16, f16"]);
    }
    place.refuses(&["understand", "--base", "base", "What?", "--dtype", "f16"], &["f16"]);
    train_refuses(&["base.dtype=f16"], &["unknown value `f16` for `base.dtype`"]);
    place.refuses(&["train", "recipe.toml", "base.dtype=q8_0"], &["not supported"]);
    place.refuses(&["base", "convert", "base", "--layout", "original", "--out", "x"], &["native, deepseek"]);
    place.refuses(&["merge", "--base", "base", "--out", "x"], &["no adapter to merge"]);
    place.refuses(&["eval", "recipe.toml"], &["`recipe.toml` names no rows to evaluate"]);
    let generate =
        |more: [&'static str; 4]| ["generate", "--base", "base", "A part", more[0], more[1], more[2], more[3]];
    place.refuses(&generate(["--out", "x.jpg", "--seed", "1"]), &["x.jpg"]);
    place.refuses(&generate(["--out", "x.png", "--guidance", "nan"]), &["guidance"]);
    place.refuses(&generate(["--out", "x.png", "--temperature=-1", "--seed=1"]), &["temperature"]);
    place.refuses(&generate(["--out", "x.png", "--count", "0"]), &["--count"]);
    let own = place.read("base/generation_config.json");
    place.edit_json("base/generation_config.json", |config| config["temperature"] = "hot".into());
    place.refuses(&generate(["--out", "x.png", "--seed", "1"]), &["generation_config.json", "temperature", "hot"]);
    place.write("base/generation_config.json", own);
    place.refuses(&generate(["--out", "x.png", "--count", "65"]), &["--count"]);
    place.refuses(&["understand", "--base", "base", "What?", "--max-new-tokens", "0"], &["--max-new-tokens"]);
    for temperature in ["nan", "inf", "-0.5"] {
        let flag = format!("--temperature={temperature}");
        place.refuses(&["understand", "--base", "base", "What?", &flag], &["temperature"]);
    }
}

#[test]
fn usage() {
    let place = Workplace::empty();
    place.refuses(&["trian", "recipe.toml"], &["trian", "train"]);
    place.refuses(&["train"], &["<RECIPE>"]);
    place.refuses(&["train", "recipe.toml", "--dry"], &["--dry"]);
    place.refuses(&["understand", "What?"], &["--base"]);
    place.refuses(&["merge", "--base", "b"], &["--out"]);
    place.refuses(&["base", "init", "--out", "x"], &["--shape"]);
    place.refuses(&["base", "init", "--shape", "janus-tiny", "--seed", "-1", "--out", "x"], &["-1"]);
    place.refuses(&["recipe", "check", "recipe.toml"], &["recipe.toml"]);
    place.refuses(&["recipe", "list", "absent"], &["absent"]);
    place.refuses(&["train", "recipe.toml", "no-equals-sign"], &["recipe.toml"]);
    train_refuses(&["no-equals-sign"], &["an override is written `key=value`, got `no-equals-sign`"]);
    self::place().refuses(&["train", "recipe.toml", "data.7.train=x"], &["the recipe has no `data.7`"]);
}

#[test]
fn help_of_every_command() {
    let place = Workplace::empty();
    let commands: [&[&str]; 40] = [
        &[],
        &["train"],
        &["eval"],
        &["understand"],
        &["generate"],
        &["batch"],
        &["merge"],
        &["probe"],
        &["adapter"],
        &["adapter", "inspect"],
        &["adapter", "combine"],
        &["adapter", "resize"],
        &["adapter", "extract"],
        &["adapter", "diff"],
        &["base"],
        &["base", "inspect"],
        &["base", "fetch"],
        &["base", "convert"],
        &["base", "init"],
        &["base", "features"],
        &["data"],
        &["data", "check"],
        &["data", "stats"],
        &["data", "preview"],
        &["data", "synth"],
        &["bench"],
        &["bench", "train"],
        &["bench", "bank"],
        &["bench", "understand"],
        &["bench", "generate"],
        &["bench", "switch"],
        &["recipe"],
        &["recipe", "list"],
        &["recipe", "copy"],
        &["recipe", "schema"],
        &["report"],
        &["recipe", "check"],
        &["cache"],
        &["cache", "list"],
        &["cache", "clear"],
    ];
    for command in commands {
        for flag in ["--help", "-h"] {
            let arguments: Vec<&str> = command.iter().copied().chain([flag]).collect();
            let done = place.janus(&arguments).expect_success();
            assert!(done.stdout.contains("Usage: janus"), "{command:?}: {}", done.stdout);
            assert!(done.stderr.is_empty(), "{command:?}: {}", done.stderr);
        }
    }
    // Every command that the help lists is in the list above.
    let mut listed = vec![Vec::new()];
    let mut found = 0;
    while let Some(command) = listed.pop() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = place.janus(&arguments).expect_success().stdout;
        found += 1;
        let section = help.split("Commands:\n").nth(1).unwrap_or_default();
        let names = section.lines().take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  "));
        for name in names.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()) {
            if name != "help" {
                listed.push(command.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
    }
    assert_eq!(found, commands.len());
    place.janus(&["--version"]).expect_success();
}

/// Every command that computes, with arguments that would do.
const COMPUTING: [&[&str]; 7] = [
    &["train", "recipe.toml"],
    &["eval", "recipe.toml", "data.0.eval=rows.parquet"],
    &["understand", "--base", "base", "Well?"],
    &["generate", "--base", "base", "a part", "--out", "part.png"],
    &["merge", "--base", "base", "--adapter", "adapter", "--out", "merged"],
    &["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"],
    &["bench", "train", "--shape", "janus-tiny"],
];

#[test]
fn a_device_that_is_none() {
    for command in COMPUTING {
        for device in ["gpu", "cuda:x", ""] {
            let said = ["--device", "is none of auto, cpu, cuda, cuda:N, metal"];
            place().refuses(&[command, &["--device", device]].concat(), &said);
        }
    }
}

/// The program under test is built for the processor.
#[test]
fn a_device_that_the_program_was_not_built_for() {
    for command in COMPUTING {
        for (device, told, feature) in
            [("cuda", "`cuda:0`", "cuda"), ("cuda:3", "`cuda:3`", "cuda"), ("metal", "`metal`", "metal")]
        {
            let hint = format!("hint: build with `--features {feature}`");
            place().refuses(&[command, &["--device", device]].concat(), &[told, &hint]);
        }
    }
}

#[test]
fn a_number_of_threads_that_is_none() {
    let place = place();
    for threads in ["0", "-1", "two", "1.5", "1025", ""] {
        let option = format!("--threads={threads}");
        place.refuses(&["train", "recipe.toml", &option], &["is no number of threads from 1 to 1024"]);
        place.refuses(&[&option, "recipe", "list"], &["is no number of threads from 1 to 1024"]);
        if !threads.is_empty() {
            let mut command = command(place.folder(), &["train", "recipe.toml"]);
            let done = run({
                command.env("JANUS_THREADS", threads);
                command
            });
            assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{}", done.stderr);
            assert!(done.stderr.contains("error: JANUS_THREADS: "), "{}", done.stderr);
            assert!(done.stderr.contains("hint: "), "{}", done.stderr);
        }
    }
    // The option wins, and an empty variable is none.
    for (threads, option) in [("0", &["--threads", "1"][..]), ("", &[])] {
        let mut command = command(place.folder(), &[&["train", "recipe.toml", "--dry-run"], option].concat());
        command.env("JANUS_THREADS", threads);
        run(command).expect_success();
    }
}

/// A folder with the base, three different pictures in `test`, and what `understand` says there.
fn place_with_pictures() -> Workplace {
    let place = Workplace::with_base();
    fs_err::create_dir(place.path("test")).unwrap();
    for (number, name) in ["a.jpg", "b.jpg", "c d.png"].into_iter().enumerate() {
        place.write(&format!("test/{name}"), picture(16, 16, number as u32 + 1));
    }
    place
}

fn understand<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let start = ["understand", "--base", "base", "--max-new-tokens", "4", "--json"];
    start.into_iter().chain(words.iter().copied()).collect()
}

#[test]
fn pictures_that_follow_a_picture_are_pictures() {
    let place = place_with_pictures();
    let answer = |words: &[&str]| place.janus(&understand(words)).expect_success().json();
    let (a, b, c) = ("test/a.jpg", "test/b.jpg", "test/c d.png");
    let together = answer(&["--image", a, "--image", b, "--image", c, "Which?"]);
    // A picture that follows is read, not asked.
    place.write("test/broken.png", "no picture");
    place.refuses(&understand(&["--image", a, "test/broken.png", "Which?"]), &["image"]);
    for words in [
        &["--image", a, b, c, "Which?"][..],
        &["Which?", "--image", a, b, c],
        &["--image", a, b, "--image", c, "Which?"],
        &["--image=test/a.jpg", b, c, "Which?"],
        &["--image", a, b, c, "--", "Which?"],
    ] {
        assert_eq!(answer(words), together, "{words:?}");
    }
    // A head asks about each picture.
    let refused = place.refuses(&["understand", "--base", "base", "--task", "classify", "--image", a, b, c], &["head"]);
    assert!(!refused.stderr.contains("takes no question"), "{}", refused.stderr);
}

#[test]
fn each_picture_is_asked_by_itself() {
    let place = place_with_pictures();
    let paths = ["test/a.jpg", "test/b.jpg", "test/c d.png"];
    let words = ["--each", "--image", paths[0], paths[1], paths[2], "Which?", "What?"];
    let each = place.janus(&understand(&words)).expect_success().json();
    let answers = each["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 6);
    for (number, answer) in answers.iter().enumerate() {
        let (path, question) = (paths[number / 2], words[5 + number % 2]);
        assert_eq!((&answer["image"], &answer["question"]), (&path.into(), &question.into()));
        let alone = place.janus(&understand(&["--image", path, question])).expect_success().json();
        assert_eq!((&answer["text"], &answer["token_ids"]), (&alone["text"], &alone["token_ids"]), "{path} {question}");
    }
    let words: Vec<&str> = understand(&words[..6]).into_iter().filter(|word| *word != "--json").collect();
    let told = place.janus(&words).expect_success().stdout;
    for path in paths {
        assert!(told.lines().any(|line| line.starts_with(&format!("{path}: "))), "{told}");
    }
    place.refuses(&["understand", "--base", "base", "--each", "Which?"], &["--image"]);
}

#[test]
fn a_file_is_no_question() {
    let place = place_with_pictures();
    let a = "test/a.jpg";
    place.write("notes", "x");
    for (words, said) in [
        (&["--image", a, "Which?", "test/b.jpg"][..], "`test/b.jpg` is a file"),
        (&["test/b.jpg", "Which?"], "`test/b.jpg` is a file"),
        (&["notes"], "`notes` is a file"),
        (&["--image", a, "test/none.jpg", "Which?"], "no picture `test/none.jpg`"),
        (&["--image", a, "my picture.PNG", "Which?"], "no picture `my picture.PNG`"),
        (&["--image", a, "test/*.webp", "Which?"], "no file `test/*.webp`"),
        (&["--image", "test/none.jpg", a, "Which?"], "test/none.jpg"),
    ] {
        place.refuses(&understand(words), &[said]);
    }
    place.refuses(&["understand", "--base", "base", "--image", a, "test/b.jpg"], &["QUESTION"]);
}
