//! What watches over a run: shares of a mixture, losses that jump, gradients that are no numbers, a base that changes; and
//! what it says to a log and to a terminal.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::pass::Pass;
use janus_core::site::{BaseView, Intercept};
use janus_lora::adapter::Adapter;
use janus_lora::status::Silent;
use janus_lora::tasks::Batch;
use janus_lora::train::TrainError;
use janus_lora::train::optimizer::AdamWConfig;
use janus_lora::train::plan::parts;
use janus_lora::train::run::prepare;
use janus_lora::train::step::{Stepper, TableBatch, TableLoss};
use janus_lora::train::tables::SampleStream;
use janus_lora::train::trainable::Trainables;
use janus_lora::{Error, recipe};
use janus_tests::joint::{STEPS, checkpoints, lines, log, metrics, place, run, spawn, start, wait_until};
use janus_tests::rows::{texts, write_table};
use janus_tests::tiny::Workplace;
use serde_json::Value;

#[test]
fn rows_come_in_the_shares_of_their_weights() {
    let place = place();
    run(&place, "run", &[]).expect_success();
    let state: Value =
        serde_json::from_slice(&place.read(&format!("run/checkpoints/step-{STEPS}/state.json"))).unwrap();
    // Two batches of two rows a step, weights 2 and 1.
    let rows = STEPS as f64 * 4.0;
    let given: Vec<f64> = serde_json::from_value(state["feeder"]["given"].clone()).unwrap();
    let streams = state["feeder"]["streams"].as_array().unwrap();
    let counts: Vec<f64> = streams.iter().map(|stream| stream["count"].as_f64().unwrap()).collect();
    assert_eq!((given.iter().sum::<f64>(), &counts), (rows, &given));
    for (given, share) in given.iter().zip([2.0 / 3.0, 1.0 / 3.0]) {
        assert!((given - share * rows).abs() <= 1.0, "{given} rows of {rows} for a share of {share}");
    }
}

#[test]
fn a_loss_that_jumps_is_told_with_its_rows() {
    const ALIKE: usize = 150;
    let place = Workplace::with_base();
    let answers = (0..=ALIKE).map(|row| if row < ALIKE { "aaaa" } else { "Z?9#" });
    let columns = vec![("prompt", texts((0..=ALIKE).map(|_| "Say"))), ("answer", texts(answers))];
    write_table(&place.path("rows.parquet"), columns, 64);
    place.write(
        "recipe.toml",
        "# janus train recipe.toml\n[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\ntargets = [\"decoder\", \"lm_head\"]\n\
         [[data]]\nname = \"words\"\ntask = \"text\"\ntrain = \"rows.parquet\"\n[train]\nepochs = 1\nbatch_size = 1\n\
         shuffle = false\nschedule = \"constant\"\nlearning_rate = 1e-2\n[output]\ndir = \"run\"\n",
    );
    let done = place.janus(&["train", "recipe.toml"]).expect_success();
    let row = format!("row {} of row group {}", ALIKE % 64, ALIKE / 64);
    let told: Vec<&str> = done.stderr.lines().filter(|line| line.contains("was usual")).collect();
    let [told] = told[..] else { panic!("{told:?} in {}", done.stderr) };
    assert!(told.starts_with(&format!("warning: step {}: the loss of `words` is ", ALIKE + 1)), "{told}");
    assert!(told.contains(&row), "no `{row}` in {told}");
    let spiked: Vec<Value> = metrics(&place, "run").into_iter().filter(|line| line.get("spikes").is_some()).collect();
    let [line] = &spiked[..] else { panic!("{spiked:?}") };
    assert_eq!(line["step"].as_u64(), Some(ALIKE as u64 + 1));
    let spike = &line["spikes"][0];
    assert_eq!((spike["table"].as_str(), &spike["loss"]), (Some("words"), &line["loss"]));
    assert!(spike["mean"].as_f64() < spike["loss"].as_f64(), "{line}");
    assert!(spike["rows"][0].as_str().unwrap().contains(&row), "{line}");
}

/// Adds zero, whose gradient is no number.
#[derive(Debug)]
struct RootOfZero;

impl Intercept for RootOfZero {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> janus_core::Result<Tensor> {
        let zero = x.sub(x)?.sqr()?.sum_all()?.sqrt()?;
        Ok(base.forward(x)?.broadcast_add(&zero)?)
    }
}

#[test]
fn a_gradient_that_is_no_number_moves_nothing() {
    let place = place();
    let targets = r#"adapter.targets=["decoder", "vision"]"#.to_owned();
    let prepared =
        prepare(recipe::load(&place.path("recipe.toml"), &[targets], place.folder()).unwrap(), &Device::Cpu, &Silent);
    let prepared = prepared.unwrap();
    let (recipe, base) = (&prepared.recipe, &prepared.base);
    let model = base.model(DType::F32, &Device::Cpu, parts(&prepared.recipe, &prepared.tables), &Silent).unwrap();
    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    let spec = prepared.plan.adapter_spec(recipe, base);
    let adapter = Adapter::new(base.config(), base.checkpoint().is_tied(), &spec, 1, &read).unwrap();
    let config = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let tables = vec![TableLoss { name: "questions".into(), loss_weight: 1.0 }];
    let trainables = Trainables::attach(&model, adapter).unwrap();
    let mut stepper = Stepper::new(trainables, config, tables, recipe.train.accumulation, 1.0, 0);
    let sample = SampleStream::new(&prepared.tables[0], 1, false).unwrap().next(base, &model).unwrap();
    let batches = [TableBatch { table: 0, batch: Batch::collate(base, &[sample]).unwrap(), aligned: None }];
    let values = |stepper: &Stepper| -> Vec<Vec<f32>> {
        stepper.trainables.iter().map(|t| t.var.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    let before = values(&stepper);

    let site = model.projections().get("model.aligner.hidden_layers.0").unwrap();
    site.intercept(Some(Arc::new(RootOfZero)));
    let error = stepper.step(&model, 6, 0.1, &batches).unwrap_err();
    let Error::Train(TrainError::NotFinite { table, what, step, batch }) = &error else { panic!("{error}") };
    assert_eq!((table.as_str(), *step, *batch), ("questions", 6, Some(0)));
    assert!(what.starts_with("the gradient of `") && what.contains("vision_model"), "{what}");
    assert_eq!(values(&stepper), before);
    assert!((0..stepper.trainables.len()).all(|number| stepper.optimizer.state(number).unwrap().is_none()));

    site.intercept(None);
    stepper.step(&model, 6, 0.1, &batches).unwrap();
    assert_ne!(values(&stepper), before);
}

#[test]
fn a_base_that_is_overwritten_under_the_run_gives_no_adapter() {
    let place = place();
    let mut child = spawn(&place, "run", &["train.steps=40"]);
    assert!(wait_until(&mut child, || !checkpoints(&place, "run").is_empty()), "{}", log(&place, "run"));
    // One bit of the last weight, in place; the fingerprint was known when the first checkpoint was written.
    let weights = place.path("base/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let file = std::fs::File::options().write(true).open(&weights).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[bytes.len() - 1..], bytes.len() as u64 - 1).unwrap();
    let code = child.wait().unwrap().code();
    let said = log(&place, "run");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("model.safetensors` was written to while it was in use"), "{said}");
    assert!(!place.path("run/adapter_model.safetensors").exists() && checkpoints(&place, "run").len() == 3, "{said}");
}

#[test]
fn without_a_terminal_a_plain_line_comes_now_and_then() {
    let place = place();
    let mut child = spawn(&place, "run", &["train.steps=100000", "train.eval_every=0", "train.checkpoint_every=0"]);
    let line = || log(&place, "run").lines().find(|line| line.starts_with("training: ")).map(str::to_owned);
    assert!(wait_until(&mut child, || line().is_some()), "{}", log(&place, "run"));
    child.kill().unwrap();
    child.wait().unwrap();
    let line = line().unwrap();
    for part in [" of 100000, ", " left  loss ", "(questions ", ", pictures ", "learning rate ", " tokens/s  memory "] {
        assert!(line.contains(part), "no `{part}` in `{line}`");
    }
    let said = log(&place, "run");
    assert!(!said.contains(['\u{1b}', '\r']), "{said:?}");
    // The first comes after two seconds, each other one ten later.
    assert!(lines(&place, "run") > said.matches("training: ").count(), "{said}");
}

/// What the program says on a terminal of this kind; `None` where no `script` gives one.
fn on_terminal(place: &Workplace, run: &str, kind: &str) -> Option<String> {
    let command = start(place, run, &["train.steps=60", "train.eval_every=0"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]).current_dir(place.folder()).stdin(Stdio::null());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", kind);
    let output = script.output().ok()?;
    assert!(place.path(&format!("{run}/adapter_model.safetensors")).exists(), "{output:?}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
#[allow(clippy::print_stdout)]
fn on_a_terminal_lines_redraw_unless_it_cannot() {
    let place = place();
    let Some(said) = on_terminal(&place, "drawn", "xterm") else {
        println!("note: no `script` to give the program a terminal: nothing is checked");
        return;
    };
    for part in ["training ", "/60  ", "questions ", "pictures ", "learning rate ", " tokens/s  memory ", " predicted)"]
    {
        assert!(said.contains(part), "no `{part}` in {said:?}");
    }
    assert!(said.contains("\u{1b}["), "nothing is drawn again: {said:?}");
    let coloured = said
        .split("\u{1b}[")
        .skip(1)
        .find(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'));
    assert_eq!(coloured, None, "colours");
    let dumb = on_terminal(&place, "dumb", "dumb").unwrap();
    assert!(!dumb.contains('\u{1b}') && dumb.contains("adapter in "), "{dumb:?}");
}
