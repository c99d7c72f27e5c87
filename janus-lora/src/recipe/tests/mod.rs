//! Whole recipes, from the file's bytes to the typed recipe or the message on the terminal.

mod faults;

use std::path::Path;

use janus_core::{Diagnose, Fault};

use super::*;
use crate::data::BadRowLimit;

/// The design's own example with everything that this version reads.
const FULL: &str = r#"# Answers about ball screws.
[base]
path  = "janus-nano"
dtype = "bf16"
[adapter]
method  = "lora"
rank    = 8
scale   = 2.0
dropout = 0.0
targets = ["decoder", "vision"]
modules_to_save = []
[[data]]
name    = "bsdata"
task    = "understand"
train   = "data/bsdata/train-*.parquet"
eval    = "data/bsdata/validation-*.parquet"
weight  = 1.0
loss_weight = 1.0
columns = { image = "image", question = "question", answer = "answer" }
[[data]]
task = "generate"
train = "data/grocery"
columns = { prompt = "caption" }
prompt_dropout = 0.25
[data_limits]
max_bad_rows = 0.01
[train]
epochs = 3
batch_size = 4
grad_accumulation = 1
accumulation = "tokens"
mixture = "sample"
learning_rate = 2e-4
betas = [0.9, 0.999]
eps = 1e-8
weight_decay = 0.0
schedule = "cosine"
warmup_steps = 0
clip_norm = 1.0
seed = 42
shuffle = true
recompute = "auto"
checkpoint_every = 200
[output]
dir = "runs/bsdata"
"#;

const LEAST: &str =
    "[base]\npath = \"tiny\"\n[[data]]\ntask = \"text\"\ntrain = \"t.parquet\"\n[output]\ndir = \"runs\"\n";

struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn load_bytes(&self, bytes: &[u8], overrides: &[&str]) -> Result<Recipe, RecipeError> {
        std::fs::write(self.folder.path().join("x.toml"), bytes).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        load(Path::new("x.toml"), &overrides, self.folder.path())
    }
}

fn load_text(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    Room::new().load_bytes(text.as_bytes(), overrides)
}

fn good(text: &str, overrides: &[&str]) -> Recipe {
    load_text(text, overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn error(text: &str, overrides: &[&str]) -> RecipeError {
    match load_text(text, overrides) {
        Err(error) => error,
        Ok(recipe) => panic!("no fault in\n{}", to_toml(&recipe)),
    }
}

fn message(text: &str, overrides: &[&str]) -> String {
    error(text, overrides).to_string()
}

/// What is wrong, without places.
fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match error(text, overrides) {
        RecipeError::Faults { faults, .. } => faults.iter().map(|fault| fault.problem.to_string()).collect(),
        other => panic!("{other}"),
    }
}

/// The one fault of [`LEAST`] with more lines put in front of `[output]`.
fn problem_of(lines: &str) -> String {
    let text = LEAST.replace("[output]", &format!("{lines}\n[output]"));
    let problems = problems(&text, &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    let plain = {
        std::fs::write(&path, LEAST).unwrap();
        load(&path, &[], folder.path()).unwrap()
    };
    std::fs::write(&path, format!("\u{feff}{LEAST}")).unwrap();
    assert_eq!(load(&path, &[], folder.path()).unwrap(), plain);
    for wide in [u16::to_le_bytes as fn(u16) -> [u8; 2], u16::to_be_bytes] {
        let bytes: Vec<u8> = format!("\u{feff}{LEAST}").encode_utf16().flat_map(wide).collect();
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path, &[], folder.path()).unwrap_err();
        assert!(matches!(error, RecipeError::Utf16 { .. }) && error.fault() == Fault::Input, "{error}");
        assert!(error.hints()[0].contains("UTF-8"));
    }
}

#[test]
fn the_whole_format_is_read() {
    let room = Room::new();
    let recipe = room.load_bytes(FULL.as_bytes(), &[]).unwrap();
    let folder = room.folder.path();
    assert_eq!(recipe.base, BaseSection { path: "janus-nano".into(), dtype: BaseDtype::Bf16 });
    assert_eq!((recipe.adapter.rank, recipe.adapter.scale, recipe.adapter.alpha), (8, Some(2.0), None));
    assert_eq!(recipe.adapter.targets, ["decoder", "vision"]);
    assert_eq!(recipe.data.len(), 2);
    let first = &recipe.data[0];
    assert_eq!((first.name.as_str(), first.task), ("bsdata", Task::Understand));
    assert_eq!(Path::new(&first.train), folder.join("data/bsdata/train-*.parquet"));
    assert_eq!(first.eval.as_deref().map(Path::new), Some(folder.join("data/bsdata/validation-*.parquet").as_path()));
    assert_eq!(first.prompt_dropout, None);
    let second = &recipe.data[1];
    assert_eq!((second.name.as_str(), second.task, second.prompt_dropout), ("generate", Task::Generate, Some(0.25)));
    assert_eq!((second.columns.name_of("prompt"), second.columns.name_of("image")), ("caption", "image"));
    assert!(second.columns.is_given("prompt") && !second.columns.is_given("image"));
    assert_eq!(recipe.data_limits.max_bad_rows, BadRowLimit::Share(0.01));
    assert_eq!((recipe.train.epochs, recipe.train.steps), (Some(3), None));
    assert_eq!((recipe.train.learning_rate, recipe.train.betas, recipe.train.eps), (2e-4, [0.9, 0.999], 1e-8));
    assert_eq!(recipe.output.dir, folder.join("runs/bsdata"));
}

#[test]
fn defaults_fill_what_is_left_out() {
    let recipe = good(LEAST, &[]);
    assert_eq!(recipe.base.dtype, BaseDtype::Bf16);
    assert_eq!(
        (recipe.adapter.method, recipe.adapter.rank, recipe.adapter.effective_scale()),
        (AdapterMethod::Lora, 8, 2.0)
    );
    assert_eq!((recipe.adapter.targets.len(), recipe.adapter.dropout), (2, 0.0));
    assert_eq!((recipe.data[0].name.as_str(), recipe.data[0].weight, recipe.data[0].loss_weight), ("text", 1.0, 1.0));
    assert_eq!(recipe.data[0].prompt_dropout, None);
    let train = &recipe.train;
    assert_eq!((train.epochs, train.steps, train.batch_size, train.grad_accumulation), (Some(3), None, 4, 1));
    assert_eq!(
        (train.accumulation, train.mixture, train.schedule),
        (Accumulation::Tokens, Mixture::Sample, Schedule::Cosine)
    );
    assert_eq!((train.seed, train.shuffle, train.recompute, train.clipping()), (42, true, Recompute::Auto, Some(1.0)));
    assert_eq!((train.warmup_steps, train.checkpoint_every, train.eval_every), (0, 200, 0));
    assert_eq!(recipe.data_limits.max_bad_rows, BadRowLimit::Share(0.01));
    assert_eq!(good(LEAST, &["train.clip_norm=0"]).train.clipping(), None);
    let generate = LEAST.replace("\"text\"", "\"generate\"");
    assert_eq!(good(&generate, &[]).data[0].prompt_dropout, Some(0.1));
}

#[test]
fn pictures_are_upright_where_nothing_is_said_but_in_a_run_of_before() {
    let room = Room::new();
    let folder = room.folder.path();
    let text = LEAST.replace("\"text\"", "\"generate\"");
    let way = |path: &Path, more: &[String]| {
        load(path, more, folder).unwrap_or_else(|error| panic!("{error}")).data[0].orientation
    };
    let recipe = folder.join("recipe.toml");
    std::fs::write(&recipe, &text).unwrap();
    assert_eq!(way(&recipe, &[]), Some(Orientation::Upright));
    assert_eq!(way(&recipe, &["data.0.orientation=stored".into()]), Some(Orientation::Stored));
    assert_eq!(good(LEAST, &[]).data[0].orientation, None, "text has no pictures");
    for name in RUN_FILES {
        let run = folder.join(format!("run-{name}"));
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join(name), "").unwrap();
        std::fs::write(run.join("recipe.toml"), &text).unwrap();
        std::fs::write(run.join("another.toml"), &text).unwrap();
        assert_eq!(way(&run.join("recipe.toml"), &[]), Some(Orientation::Stored), "{name}");
        assert_eq!(way(&run.join("another.toml"), &[]), Some(Orientation::Upright), "{name}");
        let own = ["data.0.orientation=upright".into()];
        assert_eq!(way(&run.join("recipe.toml"), &own), Some(Orientation::Upright), "{name}");
    }
}

#[test]
fn a_written_recipe_reads_back_equal_from_anywhere() {
    let room = Room::new();
    std::fs::create_dir(room.folder.path().join("base [1]")).unwrap();
    let odd = LEAST
        .replace("\"tiny\"", "\"base [1]\"")
        .replace("t.parquet", "größe \\\" ' \\\\ *.parquet")
        .replace("[output]", "[adapter]\nalpha = 0.1\nrank = 3\n[data_limits]\nmax_bad_rows = 7\n[train]\nsteps = 5\nlearning_rate = 1.2345678901234567e-5\nbetas = [0, 0.3]\nseed = 9223372036854775807\nweight_decay = 1e30\n[output]");
    for text in [FULL, LEAST, &odd] {
        let recipe = room.load_bytes(text.as_bytes(), &[]).unwrap_or_else(|error| panic!("{error}"));
        let elsewhere = tempfile::tempdir().unwrap();
        let path = elsewhere.path().join("recipe.toml");
        std::fs::write(&path, to_toml(&recipe)).unwrap();
        let again = load(&path, &[], elsewhere.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, recipe);
        assert_eq!(to_toml(&again), to_toml(&recipe));
    }
}

#[test]
fn the_resolved_recipe_is_this_text() {
    let text = to_toml(&good(LEAST, &["data.0.train=/data/t.parquet", "output.dir=/runs/x"]));
    let expected = r#"[base]
path = "tiny"
dtype = "bf16"

[adapter]
method = "lora"
rank = 8
scale = 2.0
rslora = false
init = "kaiming"
bias = false
dropout = 0.0
targets = ["decoder", "vision"]
exclude = []
layers = []
modules_to_save = []

[[data]]
name = "text"
task = "text"
train = "/data/t.parquet"
too_long = "reject"
weight = 1.0
loss_weight = 1.0

[data_limits]
max_bad_rows = 0.01
max_page_bytes = 536870912

[train]
epochs = 3
batch_size = 4
grad_accumulation = 1
accumulation = "tokens"
mixture = "sample"
learning_rate = 0.0002
lora_plus_ratio = 1.0
betas = [0.9, 0.999]
eps = 1e-8
weight_decay = 0.0
schedule = "cosine"
warmup_steps = 0
clip_norm = 1.0
seed = 42
shuffle = true
recompute = "auto"
checkpoint_every = 200
eval_every = 0
keep_checkpoints = 3
max_skipped_steps = 10
sample_every = 0

[output]
dir = "/runs/x"
"#;
    assert_eq!(text, expected);
}

#[test]
fn early_stopping_is_a_table_with_keys_of_its_own() {
    let text = LEAST.replace("train = \"t.parquet\"", "train = \"t.parquet\"\neval = \"e.parquet\"");
    let with = |value: &str| format!("train.early_stopping={value}");
    let read = |overrides: &[&str]| good(&text, overrides).train.early_stopping;
    assert_eq!(read(&[]), None);
    let metric = "text.loss".to_owned();
    let expected = EarlyStopping { metric: metric.clone(), patience: 3, mode: Goal::Min };
    assert_eq!(read(&["train.eval_every=5", &with(r#"{ metric = "text.loss" }"#)]), Some(expected));
    let given = with(r#"{ metric = "text.loss", patience = 0, mode = "max" }"#);
    let recipe = good(&text, &["train.eval_every=5", &given]);
    assert_eq!(recipe.train.early_stopping, Some(EarlyStopping { metric, patience: 0, mode: Goal::Max }));
    let written = to_toml(&recipe);
    assert!(
        written.contains("early_stopping = { metric = \"text.loss\", patience = 0, mode = \"max\" }\n"),
        "{written}"
    );
    assert_eq!(good(&written, &[]), recipe);
    for (value, every, problem) in [
        ("3", "5", "`train.early_stopping` must be a table such as"),
        ("{ patience = 2 }", "5", "missing key `train.early_stopping.metric`"),
        (
            r#"{ metric = "text.loss", mdoe = "min" }"#,
            "5",
            "unknown key `mdoe` in [train.early_stopping]; did you mean `mode`?",
        ),
        (r#"{ metric = "text.loss", mode = "least" }"#, "5", "unknown value `least` for `train.early_stopping.mode`"),
        (r#"{ metric = "txt.loss" }"#, "5", "`train.early_stopping.metric` is `txt.loss`, but the tables are `text`"),
        (r#"{ metric = "text.loss" }"#, "0", "but `train.eval_every` is 0"),
    ] {
        let told = problems(&text, &[&format!("train.eval_every={every}"), &with(value)]);
        assert!(told.len() == 1 && told[0].contains(problem), "{value}: {told:?}");
    }
    let told = problems(LEAST, &["train.eval_every=5", &with(r#"{ metric = "text.loss" }"#)]);
    assert!(told[0].contains("`text` has no `eval`"), "{told:?}");
}

#[test]
fn early_stopping_goes_by_a_figure_that_the_task_has() {
    let refused = |task: &str, own: &str, more: &str| -> Option<(String, String)> {
        let table = format!("task = \"{task}\"\nname = \"a.b\"\neval = \"e.parquet\"\n{more}");
        let text = LEAST.replace("task = \"text\"", &table);
        let rule = format!("train.early_stopping={{ metric = \"a.b.{own}\" }}");
        match load_text(&text, &["train.eval_every=5", &rule]) {
            Ok(_) => None,
            Err(RecipeError::Faults { faults, .. }) => {
                assert_eq!(faults.len(), 1, "{}", faults[0]);
                Some((faults[0].problem.to_string(), faults[0].problem.hint().unwrap()))
            }
            Err(other) => panic!("{other}"),
        }
    };
    for (task, own, near) in [
        ("understand", "los", "`a.b.loss`"),
        ("understand", "exact-mach", "`a.b.exact_match`"),
        ("text", "accuracy", "`a.b.token_accuracy`, `a.b.rows`"),
        ("text", "losses!", "`a.b.rows`, `a.b.tokens`, `a.b.loss`"),
        ("classify", "acuracy", "`a.b.accuracy`"),
        ("locate", "map50", "`a.b.map_50`"),
        ("segment", "dcie", "`a.b.dice`"),
        ("retrieve", "recal_at_1", "`a.b.recall_at_1`"),
        ("reconstruct", "pnsr", "`a.b.psnr`"),
        ("generate", "lpips", "`a.b.rows`"),
        ("classify", "labels", "`a.b.rows`"),
        ("generate", "", "`a.b.rows`"),
    ] {
        let (problem, hint) = refused(task, own, "").unwrap_or_else(|| panic!("{task} {own}"));
        assert!(problem.contains(&format!("`a.b.{own}`, and task `{task}` has no such figure")), "{problem}");
        assert!(hint.starts_with(&format!("name one of {near}")), "{hint}");
    }
    for (task, own, more) in [
        ("understand", "rouge_l", ""),
        ("classify", "macro_f1", ""),
        ("generate", "tower_distance", "eval_pictures = 2"),
        ("edit", "ssim", "eval_pictures = 2"),
    ] {
        assert_eq!(refused(task, own, more), None, "{task} {own}");
    }
    let (problem, _) = refused("generate", "tower_distance", "").unwrap();
    assert!(problem.contains("`tower_distance` is of drawn pictures, and `a.b` has no `eval_pictures`"), "{problem}");
}

#[test]
fn tables_of_heads_need_no_pairs_and_mifs_has_a_weight() {
    let table = "task = \"segment\"\ncolumns = { mask = \"m\" }";
    let alone = format!("{}[adapter]\ntargets = []\n", LEAST.replace("task = \"text\"", table));
    assert_eq!(good(&alone, &[]).data[0].task, Task::Segment);
    assert!(problems(&format!("{LEAST}[adapter]\ntargets = []\n"), &[])[0].contains("nothing"));
    let edit = good(&LEAST.replace("task = \"text\"", "task = \"edit\""), &[]);
    assert_eq!(edit.data[0].prompt_dropout, Some(types::DEFAULT_PROMPT_DROPOUT));
    assert_eq!(good(LEAST, &[]).mifs, None);
    assert_eq!(good(&format!("{LEAST}[mifs]\n"), &[]).mifs.map(|mifs| mifs.weight), Some(0.05));
    assert!(problems(LEAST, &["mifs.weight=0.0"])[0].contains("`mifs.weight`"));
}

#[test]
fn a_dynamic_encoder_is_there_where_its_section_is() {
    assert_eq!(good(LEAST, &[]).dynamic, None);
    let both = vec![DynamicPlace::Vision, DynamicPlace::Generation];
    let default = DynamicSection { enabled: true, places: both, learning_rate: types::DEFAULT_DYNAMIC_RATE };
    assert_eq!(good(&format!("{LEAST}[dynamic]\n"), &[]).dynamic(), Some(&default));
    let off = good(LEAST, &["dynamic.enabled=false"]);
    assert!(off.dynamic.is_some() && off.dynamic().is_none());
    let own = good(LEAST, &["dynamic.where=[\"generation\"]", "dynamic.learning_rate=0.5"]);
    assert_eq!(own.dynamic().unwrap().places, [DynamicPlace::Generation]);
    assert!(to_toml(&own).contains("[dynamic]\nenabled = true\nwhere = [\"generation\"]\nlearning_rate = 0.5\n"));
    let alone = format!("{LEAST}[adapter]\ntargets = []\n[dynamic]\n");
    assert_eq!(good(&alone, &[]).adapter.targets, [""; 0]);
    assert_eq!(
        problems(LEAST, &["dynamic.where=[\"visoin\"]"]),
        ["unknown value `visoin` for `dynamic.where.0`; did you mean `vision`?"]
    );
}

#[test]
fn overrides_win_over_the_file() {
    let room = Room::new();
    let recipe = room
        .load_bytes(
            FULL.as_bytes(),
            &[
                "train.learning_rate=1e-4",
                "adapter.rank=16",
                "data.0.train=x.parquet",
                "data.0.eval=\"y z.parquet\"",
                "train.steps=7",
                "adapter.targets=[\"all\", \"lm_head\"]",
                "data.1.columns.image=picture",
                "data.1.name=2024",
                "output.dir=runs/other",
                "adapter.rank=4",
            ],
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let folder = room.folder.path();
    assert_eq!((recipe.train.learning_rate, recipe.adapter.rank), (1e-4, 4));
    assert_eq!((recipe.train.steps, recipe.train.epochs), (Some(7), None));
    assert_eq!(Path::new(&recipe.data[0].train), folder.join("x.parquet"));
    assert_eq!(recipe.data[0].eval.as_deref().map(Path::new), Some(folder.join("y z.parquet").as_path()));
    assert_eq!(recipe.adapter.targets, ["all", "lm_head"]);
    assert_eq!(
        (recipe.data[1].columns.name_of("prompt"), recipe.data[1].columns.name_of("image")),
        ("caption", "picture")
    );
    assert_eq!(recipe.data[1].name, "2024");
    assert_eq!(recipe.output.dir, folder.join("runs/other"));
}

#[test]
fn unnamed_tables_are_named_after_their_task() {
    let table = |task: &str, name: &str| format!("[[data]]\ntask = \"{task}\"\ntrain = \"t\"\n{name}\n");
    let names = |tables: &[String]| -> Vec<String> {
        let text = format!("[base]\npath = \"x\"\n{}[output]\ndir = \"r\"\n", tables.concat());
        good(&text, &[]).data.into_iter().map(|data| data.name).collect()
    };
    assert_eq!(names(&[table("text", ""), table("generate", "")]), ["text", "generate"]);
    assert_eq!(names(&[table("text", ""), table("generate", ""), table("text", "")]), ["text-0", "generate", "text-2"]);
    assert_eq!(names(&[table("text", "name = \"generate\""), table("generate", "")]), ["generate", "generate-1"]);
    let twice = format!("{LEAST}{0}{0}", table("text", "name = \"a\""));
    assert_eq!(problems(&twice, &[]), ["the name `a` is taken by `data.1`"]);
}

#[test]
fn scale_and_alpha_are_two_ways_to_say_one_thing() {
    let adapter = |line: &str| good(&format!("{LEAST}[adapter]\nrank = 16\n{line}\n"), &[]).adapter;
    assert_eq!((adapter("alpha = 8").effective_scale(), adapter("alpha = 8").effective_alpha()), (0.5, 8.0));
    assert_eq!((adapter("scale = 0.1").effective_scale(), adapter("scale = 0.1").effective_alpha()), (0.1, 1.6));
    assert_eq!((adapter("").effective_scale(), adapter("").effective_alpha()), (2.0, 32.0));
}

#[test]
fn every_key_is_documented_and_its_default_is_legal() {
    for section in Recipe::SECTIONS {
        assert!(!section.documentation.is_empty() && !section.fields.is_empty());
        for field in section.fields {
            assert!(!field.summary().is_empty(), "{}", field.name);
            let Some(default) = (field.default)() else { continue };
            assert!(!field.required);
            let mut header = if section.repeated { String::new() } else { format!("[{}]\n", section.name) };
            if section.name == "adapter" && !AdapterMethod::Lora.takes(field.name) {
                header.push_str(&format!("method = \"{}\"\n", AdapterMethod::takers(field.name)[0]));
            }
            if field.name == "eva_rho" {
                header.push_str("init = \"eva\"\n");
            }
            let text = LEAST.replace("[output]", &format!("{header}{} = {default}\n[output]", field.name));
            assert!(load_text(&text, &[]).is_ok() || section.name == "base", "{} = {default}", field.name);
        }
    }
    let fields = |name: &str| Recipe::SECTIONS.iter().find(|section| section.name == name).unwrap().fields;
    let default = |name: &str, key: &str| (fields(name).iter().find(|field| field.name == key).unwrap().default)();
    assert_eq!(default("base", "dtype").as_deref(), Some("\"bf16\""));
    assert_eq!(default("train", "learning_rate").as_deref(), Some("0.0002"));
    assert_eq!(default("train", "steps"), None);
}

/// [`LEAST`] with two stages.
const STAGED: &str = r#"[base]
path = "tiny"
[adapter]
scale = 0.5
targets = []
[[data]]
name = "a"
task = "text"
train = "t.parquet"
[[data]]
name = "b"
task = "generate"
train = "t.parquet"
[train]
learning_rate = 1e-3
[[stage]]
name = "first"
steps = 7
data = ["a"]
adapter = { targets = ["decoder"], alpha = 4 }
[[stage]]
name = "second"
steps = 9
dynamic = { learning_rate = 0.25 }
[stage.train]
learning_rate = 0.5
rates = { vision_model = 0.1, lm_head = 2 }
[output]
dir = "runs"
"#;

#[test]
fn a_stage_sets_keys_of_the_sections_above() {
    let recipe = good(STAGED, &[]);
    let [first, second] = recipe.stages.as_slice() else { panic!("two stages") };
    assert_eq!((first.name.as_str(), first.recipe.train.steps, first.recipe.train.epochs), ("first", Some(7), None));
    let names = |stage: &Stage| stage.recipe.data.iter().map(|table| table.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(first), names(second)), (vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]));
    // The stage's alpha stands for the scale from above.
    assert_eq!(first.recipe.adapter.effective_scale(), 0.5);
    assert_eq!((first.recipe.adapter.scale, first.recipe.adapter.alpha), (None, Some(4.0)));
    assert_eq!((first.recipe.train.learning_rate, second.recipe.train.learning_rate), (1e-3, 0.5));
    assert_eq!(second.recipe.train.rates.0, [("vision_model".to_owned(), 0.1), ("lm_head".to_owned(), 2.0)]);
    assert!(first.recipe.dynamic.is_none());
    assert_eq!(second.recipe.dynamic.as_ref().map(|dynamic| dynamic.learning_rate), Some(0.25));
    assert_eq!((recipe.train.steps, recipe.train.epochs), (None, None));
    assert_eq!(good(&to_toml(&recipe), &[]), recipe, "{}", to_toml(&recipe));
    let set = good(STAGED, &["stage.1.steps=3", "stage.0.adapter.rank=2", "train.batch_size=5"]);
    assert_eq!((set.stages[1].recipe.train.steps, set.stages[0].recipe.adapter.rank), (Some(3), 2));
    assert!(set.stages.iter().all(|stage| stage.recipe.train.batch_size == 5));
}

#[test]
fn a_method_has_keys_of_its_own() {
    let adapter = |lines: &str| good(&format!("{LEAST}[adapter]\n{lines}\n"), &[]).adapter;
    let stable = adapter("rank = 16\nrslora = true\nalpha = 8");
    assert_eq!((stable.effective_scale(), stable.effective_alpha()), (2.0, 8.0));
    let stable = adapter("method = \"dora\"\nrank = 16\nrslora = true\nscale = 0.5");
    assert_eq!((stable.effective_scale(), stable.effective_alpha()), (0.5, 2.0));
    let patterns =
        adapter("rank_pattern = { down_proj = 16, \"layers.0.**\" = 2 }\nlayers = [0, 2]\nexclude = [\"k_proj\"]");
    assert_eq!(patterns.rank_pattern.0, [("down_proj".to_owned(), 16), ("layers.0.**".to_owned(), 2)]);
    assert_eq!((patterns.layers, patterns.exclude), (vec![0, 2], vec!["k_proj".to_owned()]));
    assert_eq!(adapter("method = \"lokr\"\ndecompose_factor = 4").decompose_factor, 4);

    for (lines, expected) in [
        ("method = \"ia3\"\nrank = 8", "`adapter.rank` says nothing of the method `ia3`"),
        ("method = \"ia3\"\nscale = 1.0", "`adapter.scale` says nothing of the method `ia3`"),
        ("method = \"vera\"\nalpha = 8", "`adapter.alpha` says nothing of the method `vera`"),
        ("method = \"dora\"\nbias = true", "`adapter.bias` says nothing of the method `dora`"),
        ("method = \"loha\"\ndropout = 0.1", "`adapter.dropout` says nothing of the method `loha`"),
        ("method = \"loha\"\nrslora = true", "`adapter.rslora` says nothing of the method `loha`"),
        ("d_initial = 0.2", "`adapter.d_initial` says nothing of the method `lora`"),
        ("feedforward = [\"fc2\"]", "`adapter.feedforward` says nothing of the method `lora`"),
        ("decompose_both = true", "`adapter.decompose_both` says nothing of the method `lora`"),
        (
            "method = \"lokr\"\ndecompose_factor = 0",
            "`adapter.decompose_factor` must be -1 or an integer, 1 or more, got `0`",
        ),
        ("rank_pattern = { a = 0 }", "`adapter.rank_pattern.a` must be an integer from 1 to 16384, got `0`"),
        (
            "rank_pattern = 3",
            "`adapter.rank_pattern` must be a table of ranks from 1 to 16384, such as { down_proj = 16 }, got an integer",
        ),
        ("alpha_pattern = { a = 0 }", "`adapter.alpha_pattern.a` must be a finite number other than 0, got `0.0`"),
        ("exclude = [\"a..b\"]", "target `a..b` has an empty segment"),
    ] {
        assert_eq!(problems(&format!("{LEAST}[adapter]\n{lines}\n"), &[]), [expected], "{lines}");
    }
    let rate = format!("{LEAST}[adapter]\nmethod = \"ia3\"\n[train]\nlora_plus_ratio = 4.0\n");
    assert_eq!(problems(&rate, &[]), ["`train.lora_plus_ratio` says nothing of the method `ia3`"]);
}

#[test]
fn recipes_of_every_method_are_written_and_read_back() {
    for method in AdapterMethod::CHOICES.names {
        let recipe = good(&format!("{LEAST}[adapter]\nmethod = \"{method}\"\n"), &[]);
        assert_eq!(recipe.adapter.method.name(), *method);
        let text = to_toml(&recipe);
        assert_eq!(good(&text, &[]), recipe, "{text}");
        assert_eq!(text.contains("\nrank = "), *method != "ia3", "{text}");
    }
    for init in AdapterInit::CHOICES.names {
        let recipe = good(&format!("{LEAST}[adapter]\ninit = \"{init}\"\n"), &[]);
        let text = to_toml(&recipe);
        assert_eq!(good(&text, &[]), recipe, "{text}");
        assert_eq!(text.contains("\neva_rho = "), *init == "eva", "{text}");
    }
    let start = good(&format!("{LEAST}[adapter]\nstart_from = \"owner/name\"\n"), &[]);
    assert_eq!(start.adapter.start_from.as_deref(), Some("owner/name"));
    assert_eq!(good(&to_toml(&start), &[]), start);
    // One for all stages.
    let staged = STAGED.replace("scale = 0.5", "scale = 0.5\nstart_from = \"owner/name\"");
    let staged = good(&staged, &[]);
    assert!(staged.stages.iter().all(|stage| stage.recipe.adapter.start_from == start.adapter.start_from));
    assert_eq!(good(&to_toml(&staged), &[]), staged, "{}", to_toml(&staged));
    let own = STAGED.replace("alpha = 4", "alpha = 4, start_from = \"owner/name\"");
    let said = problems(&own, &[]);
    assert!(said.len() == 1 && said[0].contains("adapter.start_from"), "{said:?}");
    for init in ["pissa", "olora", "eva"] {
        let both = format!("{LEAST}[adapter]\nstart_from = \"owner/name\"\ninit = \"{init}\"\n");
        let expected = "`adapter.init` cannot stand beside `adapter.start_from`: give one of them";
        assert_eq!(problems(&both, &[]), [expected]);
    }
}
