//! Whole recipes, from the file's bytes to the typed recipe or the message on the terminal.

use crate::data::BadRowLimit;
use std::path::Path;

use janus_core::{Diagnose, Fault};

use super::*;

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
dropout = 0.0
targets = ["decoder", "vision"]
modules_to_save = []

[[data]]
name = "text"
task = "text"
train = "/data/t.parquet"
weight = 1.0
loss_weight = 1.0

[data_limits]
max_bad_rows = 0.01

[train]
epochs = 3
batch_size = 4
grad_accumulation = 1
accumulation = "tokens"
mixture = "sample"
learning_rate = 0.0002
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
fn all_faults_are_told_at_once_with_line_and_caret() {
    let text = "[base]\npath = \"tiny\"\ndtype = \"f23\"\n[adapter]\nrnk = 8\nscale = nan\n[[data]]\ntask = \"understand\"\ntrain = \"t.parquet\"\ncolumns = { anwser = \"a\" }\n[output]\ndir = \"runs\"\n";
    let error = error(text, &["train.batch_size=0", "adaptor.rank=4"]);
    assert_eq!(
        error.to_string(),
        r#"recipe `x.toml` has 6 faults:

x.toml:3:9
  |
3 | dtype = "f23"
  |         ^^^^^ unknown value `f23` for `base.dtype`; did you mean `f32`?

x.toml:5:1
  |
5 | rnk = 8
  | ^^^ unknown key `rnk` in [adapter]; did you mean `rank`?

x.toml:6:9
  |
6 | scale = nan
  |         ^^^ `adapter.scale` must be a finite number other than 0, got `NaN`

x.toml:10:13
   |
10 | columns = { anwser = "a" }
   |             ^^^^^^ task `understand` reads no column `anwser`; did you mean `answer`?

command line, column 18
 |
 | train.batch_size=0
 |                  ^ `train.batch_size` must be an integer from 1 to 1000000, got `0`

command line, column 1
 |
 | adaptor.rank=4
 | ^^^^^^^ unknown key `adaptor` in a recipe; did you mean `adapter`?"#
    );
    assert_eq!(
        error.hints(),
        [
            "`base.dtype` is one of `f32`, `bf16`",
            "[adapter] takes `method`, `rank`, `scale`, `alpha`, `dropout`, `targets`, `modules_to_save`",
            "set `adapter.scale` to a finite number other than 0, or leave it out for its default",
            "task `understand` reads `image`, `images`, `question`, `answer`, `messages`",
            "set `train.batch_size` to an integer from 1 to 1000000, or leave it out for its default",
            "a recipe takes `base`, `adapter`, `data`, `data_limits`, `train`, `dynamic`, `mifs`, `output`, `stage`",
        ]
    );
    assert_eq!(error.fault(), Fault::Input);
}

#[test]
fn what_is_missing_is_told_by_name() {
    assert_eq!(
        message("", &[]),
        "recipe `x.toml` has 3 faults:\n\nx.toml\n missing key `base.path`\n\nx.toml\n no [[data]] table: a recipe needs at least one\n\nx.toml\n missing key `output.dir`"
    );
    assert_eq!(
        message(&LEAST.replace("train = \"t.parquet\"\n", ""), &[]),
        "recipe `x.toml` has 1 fault:\n\nx.toml:3:1\n  |\n3 | [[data]]\n  | ^^^^^^^^ missing key `data.0.train`"
    );
    let hints = error("", &[]).hints();
    assert!(hints[0].starts_with("`base.path`: A built-in name, a checkpoint folder, or a hub id"), "{hints:?}");
}

#[test]
fn what_is_no_toml_is_told_with_what_was_understood() {
    let text = "[base]\npath = \ndtype = \"f23\"\n[adapter]\nrank = eight\nrnk = 8\n";
    assert_eq!(
        message(text, &[]),
        r#"recipe `x.toml` has 4 faults:

x.toml:2:8
  |
2 | path = 
  |        ^ string values must be quoted, expected literal string

x.toml:3:9
  |
3 | dtype = "f23"
  |         ^^^^^ unknown value `f23` for `base.dtype`; did you mean `f32`?

x.toml:5:8
  |
5 | rank = eight
  |        ^^^^^ string values must be quoted, expected literal string

x.toml:6:1
  |
6 | rnk = 8
  | ^^^ unknown key `rnk` in [adapter]; did you mean `rank`?"#
    );
    let broken_header = "[base]\npath = \"x\"\n[adapter\nrank = 8\nnonsense = 1\n";
    assert_eq!(problems(broken_header, &[]).len(), 1, "keys below a broken header may belong anywhere");
    assert_eq!(problems("a = 1\na = 2\n[base]\n[base]\n", &[])[1], "duplicate key");
}

#[test]
fn numbers_are_held_to_their_ranges() {
    for (line, expected) in [
        ("[adapter]\nrank = 0", "`adapter.rank` must be an integer from 1 to 16384, got `0`"),
        ("[adapter]\nrank = -1", "`adapter.rank` must be an integer from 1 to 16384, got `-1`"),
        ("[adapter]\nrank = 8.0", "`adapter.rank` must be an integer from 1 to 16384, got a float"),
        ("[adapter]\nscale = 0", "`adapter.scale` must be a finite number other than 0, got `0.0`"),
        ("[adapter]\nscale = -inf", "`adapter.scale` must be a finite number other than 0, got `-inf`"),
        ("[adapter]\nscale = 1e39", "`adapter.scale` must be a finite number other than 0, got `1e39`"),
        ("[adapter]\nalpha = nan", "`adapter.alpha` must be a finite number other than 0, got `NaN`"),
        ("[adapter]\ndropout = 1.0", "`adapter.dropout` must be a number from 0 up to, not including, 1, got `1.0`"),
        (
            "[adapter]\ntargets = \"decoder\"",
            "`adapter.targets` must be an array of strings that are not empty, got a string",
        ),
        ("[adapter]\ntargets = [\"\"]", "`adapter.targets.0` must be a string that is not empty, got ``"),
        ("[adapter]\ntargets = [\"a..b\"]", "target `a..b` has an empty segment"),
        ("[adapter]\nmodules_to_save = [\"***\"]", "target `***`: `**` must be a whole segment, got `***`"),
        (
            "[adapter]\ntargets = []",
            "`adapter.targets` and `adapter.modules_to_save` are both empty: nothing would be trained",
        ),
        ("[adapter]\nscale = 1\nalpha = 8", "`adapter.alpha` cannot stand beside `adapter.scale`: give one of them"),
        ("[train]\nepochs = 1\nsteps = 1", "`train.steps` cannot stand beside `train.epochs`: give one of them"),
        ("[train]\nsteps = 0", "`train.steps` must be an integer from 1 to 1000000000, got `0`"),
        ("[train]\nlearning_rate = 0.0", "`train.learning_rate` must be a finite number above 0, got `0.0`"),
        ("[train]\nlearning_rate = \"fast\"", "`train.learning_rate` must be a finite number above 0, got a string"),
        (
            "[train]\nbetas = [0.9]",
            "`train.betas` must be an array of two, each a number from 0 up to, not including, 1, got `1 entries`",
        ),
        ("[train]\nbetas = [0.9, 1.0]", "`train.betas.1` must be a number from 0 up to, not including, 1, got `1.0`"),
        ("[train]\neps = 0", "`train.eps` must be a finite number above 0, got `0.0`"),
        ("[train]\nweight_decay = -0.1", "`train.weight_decay` must be a finite number, 0 or more, got `-0.1`"),
        ("[train]\nclip_norm = -1", "`train.clip_norm` must be a finite number, 0 or more, got `-1.0`"),
        ("[train]\nseed = -1", "`train.seed` must be an integer, 0 or more, got `-1`"),
        (
            "[train]\nseed = 9223372036854775808",
            "`train.seed` must be an integer, 0 or more, got `9223372036854775808`",
        ),
        ("[train]\nshuffle = 1", "`train.shuffle` must be `true` or `false`, got an integer"),
        ("[train]\nrecompute = true", "`train.recompute` must be one of \"auto\", \"on\", \"off\", got a boolean"),
        ("[train]\nschedule = \"cosin\"", "unknown value `cosin` for `train.schedule`; did you mean `cosine`?"),
        (
            "[train]\nschedule = 1979-05-27",
            "`train.schedule` must be one of \"constant\", \"linear\", \"cosine\", got a date or time",
        ),
        (
            "[data_limits]\nmax_bad_rows = 1.5",
            "`data_limits.max_bad_rows` must be a share from 0.0 to 1.0, or a count of rows as an integer, got `1.5`",
        ),
        (
            "[data_limits]\nmax_bad_rows = -1",
            "`data_limits.max_bad_rows` must be a share from 0.0 to 1.0, or a count of rows as an integer, got `-1`",
        ),
        ("weight = 0", "`data.0.weight` must be a finite number above 0, got `0.0`"),
        ("loss_weight = -1", "`data.0.loss_weight` must be a finite number, 0 or more, got `-1.0`"),
        ("prompt_dropout = 0.1", "`data.0.prompt_dropout` has no meaning for task `text`"),
        (
            "columns = \"a\"",
            "`data.0.columns` must be a table of column names, such as { image = \"photo\" }, got a string",
        ),
        ("columns = { answer = 1 }", "`data.0.columns.answer` must be a string that is not empty, got an integer"),
        ("columns = { image = \"a\" }", "task `text` reads no column `image`"),
        (
            "columns = { messages = \"a\", answer = \"b\" }",
            "`data.0.columns.answer` cannot stand beside `data.0.columns.messages`: give one of them",
        ),
        ("eval = \"\"", "`data.0.eval` must be a string that is not empty, got ``"),
        ("eval = \"s3://bucket/x\"", "`data.0.eval` names a source of kind `s3`, which is not known"),
        ("name = \"a\\u001bb\"", "`data.0.name` must be text without control characters, got `a\u{fffd}b`"),
    ] {
        assert_eq!(problem_of(line), expected, "{line}");
    }
    assert_eq!(good(LEAST, &["data_limits.max_bad_rows=1"]).data_limits.max_bad_rows, BadRowLimit::Count(1));
    assert_eq!(good(LEAST, &["data_limits.max_bad_rows=1.0"]).data_limits.max_bad_rows, BadRowLimit::Share(1.0));
}

#[test]
fn what_later_versions_read_is_refused_by_name() {
    for (text, expected) in [
        (
            format!("{LEAST}[adapter]\nmethod = \"dora\"\n"),
            "`adapter.method = \"dora\"` is not supported by this version yet",
        ),
        (
            format!("{LEAST}[adapter]\nmethod = \"rslora\"\n"),
            "`adapter.method = \"rslora\"` is not supported by this version yet",
        ),
        (
            LEAST.replace("\"tiny\"", "\"tiny\"\ndtype = \"q4_k\""),
            "`base.dtype = \"q4_k\"` is not supported by this version yet",
        ),
        (
            LEAST.replace("\"tiny\"", "\"tiny\"\ndtype = \"q8_0\""),
            "`base.dtype = \"q8_0\"` is not supported by this version yet",
        ),
    ] {
        assert_eq!(problems(&text, &[]), [expected], "{text}");
    }
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
fn a_misplaced_or_foreign_key_leads_to_ours() {
    for (argument, expected) in [
        ("rank=4", "adapter.rank"),
        ("learning_rte=1", "train.learning_rate"),
        ("train.lr=1e-4", "learning_rate"),
        ("train.rank=4", "adapter.rank"),
        ("adapter.lora_alpha=16", "alpha"),
        ("adapter.r=16", "rank"),
        ("train.max_steps=10", "steps"),
        ("train.Batch-Size=1", "batch_size"),
        ("data.0.taks=x", "task"),
        ("data.0.validation=x", "eval"),
        ("output.directory=x", "dir"),
        ("outptu.dir=x", "output"),
        ("train.optimizer=x", ""),
    ] {
        let got = problems(LEAST, &[argument]);
        let key = argument.split('=').next().unwrap();
        let suffix = if expected.is_empty() { String::new() } else { format!("; did you mean `{expected}`?") };
        assert_eq!(got.len(), 1, "{argument}: {got:?}");
        assert!(got[0].starts_with("unknown key `") && got[0].ends_with(&suffix), "{key}: {}", got[0]);
        assert!(!expected.is_empty() || !got[0].contains("did you mean"), "{}", got[0]);
    }
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
fn both_of_two_that_exclude_each_other_are_refused_on_the_command_line_too() {
    assert_eq!(
        message(LEAST, &["train.epochs=1", "train.steps=1"]),
        "recipe `x.toml` has 1 fault:\n\ncommand line, column 7\n |\n | train.steps=1\n |       ^^^^^ `train.steps` cannot stand beside `train.epochs`: give one of them"
    );
    assert_eq!(
        problems(FULL, &["adapter.alpha=16"]),
        ["`adapter.alpha` cannot stand beside `adapter.scale`: give one of them"]
    );
    let error = error(LEAST, &["adapter.targets=[decoder]"]);
    assert!(error.to_string().contains("must be an array of strings that are not empty, got a string"), "{error}");
    assert!(error.hints()[0].contains("is not TOML"), "{:?}", error.hints());
}

#[test]
fn tables_and_lists_are_not_mixed_up() {
    assert_eq!(
        problems("base = 1\ndata = { task = \"text\" }\noutput = []\n", &[])[..3],
        [
            "`base` must be a table, headed [base], got an integer",
            "`data` must be a list of tables, each headed [[data]], got a table",
            "`output` must be a table, headed [output], got an array",
        ]
    );
    assert!(problems("data = [1]\n", &[]).contains(&"`data.0` must be a table, got an integer".to_owned()));
    assert!(problems("data = []\n", &[]).contains(&"no [[data]] table: a recipe needs at least one".to_owned()));
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
fn files_that_are_no_recipes_are_refused() {
    let room = Room::new();
    let absent = load(Path::new("absent.toml"), &[], room.folder.path()).unwrap_err();
    assert_eq!((absent.to_string().as_str(), absent.fault()), ("cannot read `absent.toml`", Fault::Input));
    assert!(!absent.hints().is_empty());
    let folder = load(room.folder.path(), &[], room.folder.path()).unwrap_err();
    assert!(matches!(folder, RecipeError::Io { .. }) && folder.fault() == Fault::Input, "{folder:?}");
    let not_text = room.load_bytes(b"# a\n\xff\xfe", &[]).unwrap_err();
    assert_eq!(not_text.to_string(), "recipe `x.toml` is not UTF-8: line 2 has a byte 0xff that cannot stand there");
    let large = room.load_bytes(&vec![b'#'; (1 << 20) + 1], &[]).unwrap_err();
    assert_eq!(large.to_string(), "recipe `x.toml` has more than 1048576 bytes");
}

#[test]
fn hostile_files_neither_panic_nor_take_long() {
    let room = Room::new();
    let many_keys: String = (0..100_000).map(|i| format!("k{i}=1\n")).collect();
    let many_tables = "[[data]]\n".repeat(110_000);
    let started = std::time::Instant::now();
    for text in [
        "]=[\"'.\n".repeat(120_000),
        "a=1\n".repeat(250_000),
        many_keys,
        many_tables,
        format!("a={}", "[".repeat(400_000)),
        format!("a={}", "{a=".repeat(200_000)),
        format!("{}=1", vec!["a"; 400_000].join(".")),
        format!("[[{}]]\n", vec!["a"; 2000].join(".")).repeat(200),
        format!("[base]\n{}=1", "é".repeat(400_000)),
        "\u{feff}[base]\r\npath=\"\\u0000\"\r\n".into(),
        "\0".into(),
        "\r".into(),
        "=".into(),
        "\u{1b}[2J".into(),
    ] {
        match room.load_bytes(text.as_bytes(), &["data.99999999999999999999.train=1", "..=", "=", "é.ü=\"", "\u{1b}=1"])
        {
            Err(error @ RecipeError::Faults { .. }) => {
                let message = error.to_string();
                assert!(message.len() < 200_000, "{} bytes", message.len());
                assert!(!message.contains('\u{1b}') && !error.hints().concat().contains('\u{1b}'));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn mangled_recipes_never_panic() {
    let room = Room::new();
    let bytes = FULL.as_bytes();
    // Every prefix, and the file with each byte in turn replaced by one that means something to TOML.
    for end in 0..bytes.len() {
        let _ = room.load_bytes(&bytes[..end], &[]);
    }
    for (index, replacement) in (0..bytes.len()).zip([b'"', b'[', b'\n', b'=', b'.', 0xc3, b'{', b'#'].iter().cycle()) {
        let mut mangled = bytes.to_vec();
        mangled[index] = *replacement;
        if let Err(error) = room.load_bytes(&mangled, &["adapter.rank=4"]) {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn every_key_is_documented_and_its_default_is_legal() {
    for section in Recipe::SECTIONS {
        assert!(!section.documentation.is_empty() && !section.fields.is_empty());
        for field in section.fields {
            assert!(!field.summary().is_empty(), "{}", field.name);
            let Some(default) = (field.default)() else { continue };
            assert!(!field.required);
            let header = if section.repeated { String::new() } else { format!("[{}]\n", section.name) };
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
fn faults_of_stages_are_told_where_they_are() {
    for (was, is, expected) in [
        ("steps = 7\n", "", "missing key `stage.0.steps`"),
        ("name = \"second\"", "name = \"first\"", "the name `first` is taken by `stage.0`"),
        (
            "data = [\"a\"]",
            "data = [\"c\"]",
            "the stage `first` learns from `c`, which is no table; the tables are `a`, `b`",
        ),
        ("steps = 9\n", "steps = 9\ndata = [\"a\"]\n", "no stage learns from the table `b`; the tables are `a`, `b`"),
        ("alpha = 4", "rnak = 4", "unknown key `rnak` in [adapter]; did you mean `rank`?"),
        (
            "learning_rate = 0.5",
            "learning_rate = -1",
            "`train.learning_rate` must be a finite number above 0, got `-1.0`",
        ),
        (
            "rates = { vision_model = 0.1",
            "rates = { vision_model = 0",
            "`train.rates.vision_model` must be a finite number above 0, got `0.0`",
        ),
        (
            "learning_rate = 0.5",
            "steps = 5",
            "`stage.1.train.steps` cannot stand beside `stage.1.steps`: give one of them",
        ),
        ("learning_rate = 1e-3", "steps = 5", "`train.steps` cannot stand beside `stage`: give one of them"),
        (
            "dynamic = {",
            "adapter = { targets = [\"vision\"], rank = 4 }\ndynamic = {",
            "`adapter.rank` is 4 in the stage `second`, but 8 in one before it: the pairs of all stages are of one form",
        ),
    ] {
        let text = STAGED.replace(was, is);
        assert_ne!(text, STAGED, "{was}");
        let found = problems(&text, &[]);
        assert!(found.contains(&expected.to_owned()), "{was}: {found:?}");
    }
    let unread = STAGED.replace("task = \"generate\"", "task = \"generate\"\nquantize_from = 3");
    assert_eq!(problems(&unread, &[]), ["`data.1.quantize_from` has no meaning for task `generate`"]);
}
