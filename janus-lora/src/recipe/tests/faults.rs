//! What is refused, and how it is told.

use super::*;

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
            "[adapter] takes `method`, `rank`, `scale`, `alpha`, `rslora`, `init`, `eva_rho`, `bias`, `feedforward`, `d_initial`, `projection_seed`, `decompose_factor`, `decompose_both`, `dropout`, `targets`, `exclude`, `layers`, `rank_pattern`, `alpha_pattern`, `modules_to_save`, `start_from`",
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
        ("name = \"a\\u001bb\"", "`data.0.name` must be text without control characters, got `a\\u001bb`"),
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
            format!("{LEAST}[adapter]\nmethod = \"oft\"\n"),
            "`adapter.method = \"oft\"` is not supported by this version yet",
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
fn a_scale_that_is_nothing_in_f32_is_none() {
    let expected = "`adapter.scale` must be a finite number other than 0, got `1e-300`";
    assert_eq!(problems(LEAST, &["adapter.scale=1e-300"]), [expected]);
}

#[test]
fn methods_that_are_keys_of_lora_lead_there() {
    for (word, expected) in [
        ("rslora", "set `adapter.rslora = true` with `adapter.method = \"lora\"`"),
        ("PiSSA", "set `adapter.init = \"pissa\"` with `adapter.method = \"lora\"`"),
        ("lora+", "set `train.lora_plus_ratio` with `adapter.method = \"lora\"`"),
        ("lor", "`adapter.method` is one of `lora`, `dora`, `loha`, `lokr`, `vera`, `ia3`"),
    ] {
        let error = error(&format!("{LEAST}[adapter]\nmethod = \"{word}\"\n"), &[]);
        assert_eq!(error.hints(), [expected], "{error}");
    }
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
            "`stage.1.train.steps` does not go together with stages, each of which takes the steps that it says",
        ),
        (
            "learning_rate = 1e-3",
            "epochs = 5",
            "`train.epochs` does not go together with stages, each of which takes the steps that it says",
        ),
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
    // What the hint says works, wherever the rule stands.
    let rule = "early_stopping = { metric = \"a.loss\" }";
    for (was, key) in [("learning_rate = 1e-3", "train"), ("learning_rate = 0.5", "stage.1.train")] {
        let text = STAGED.replace(was, &format!("{was}\n{rule}"));
        let RecipeError::Faults { faults, .. } = error(&text, &[]) else { panic!("{was}") };
        let fault = faults.iter().find(|fault| matches!(fault.problem, Problem::NotWithStages { .. })).unwrap();
        let hint = fault.problem.hint().unwrap();
        assert!(hint.starts_with(&format!("leave `{key}.early_stopping` out")), "{hint}");
        assert!(hint.contains("`train.eval_every`") && hint.contains("`janus merge`"), "{hint}");
    }
    good(STAGED, &[]);
    let unread = STAGED.replace("task = \"generate\"", "task = \"generate\"\nquantize_from = 3");
    assert_eq!(problems(&unread, &[]), ["`data.1.quantize_from` has no meaning for task `generate`"]);
}
