//! A joint run on a small base, started, stopped and gone on with: what tests of resuming share.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::program::{Done, command};
use crate::rows::{images, picture, texts, write_table};
use crate::tiny::{Workplace, tree};

/// Weights of an adapter: the last file that a run writes.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Optimiser steps of the run.
pub const STEPS: u64 = 14;

/// Rows of each table.
const ROWS: u32 = 9;

/// Everything that has a state: dropout, two tables of unequal weight, accumulation over both, epochs that end within a step,
/// a schedule with warm-up, evaluations and checkpoints at steps of their own.
const RECIPE: &str = r#"# janus train recipe.toml
[base]
path = "base"
dtype = "f32"

[adapter]
rank = 3
dropout = 0.1
targets = ["all"]

[[data]]
name = "questions"
task = "understand"
train = "rows.parquet"
eval = "eval.parquet"
weight = 2.0

[[data]]
name = "pictures"
task = "generate"
train = "rows.parquet"
eval = "eval.parquet"
columns = { prompt = "question" }
prompt_dropout = 0.3

[train]
steps = 14
batch_size = 2
grad_accumulation = 2
learning_rate = 5e-3
weight_decay = 0.01
warmup_steps = 2
checkpoint_every = 3
eval_every = 4

[output]
dir = "run"
"#;

/// A base, rows and the recipe of a joint run of [`STEPS`] steps.
///
/// # Panics
/// They cannot be made.
pub fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    write_rows(&place.path("rows.parquet"), 0, ROWS);
    write_rows(&place.path("eval.parquet"), 50, 3);
    place
}

/// Rows for both tables.
///
/// # Panics
/// They cannot be written.
pub fn write_rows(path: &Path, first: u32, rows: u32) {
    let pictures: Vec<_> = (0..rows).map(|i| Some(picture(40, 32, first + i))).collect();
    let answer = |i: u32| format!("part {}", "abcdefghijkZ".get(..=i as usize % 12).unwrap());
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..rows).map(|i| format!("Part {}?", first + i)))),
        ("answer", texts((0..rows).map(answer))),
    ];
    write_table(path, columns, 4);
}

/// The run into the folder `run` with these arguments.
pub fn start(place: &Workplace, run: &str, more: &[&str]) -> Command {
    let folder = format!("output.dir={run}");
    let arguments: Vec<&str> = ["train", "recipe.toml", &folder].iter().chain(more).copied().collect();
    command(place.folder(), &arguments)
}

/// Runs it to its end.
///
/// # Panics
/// It cannot be started.
pub fn run(place: &Workplace, run: &str, more: &[&str]) -> Done {
    crate::program::run(start(place, run, more))
}

/// Starts it and leaves it running, its words in `<run>.log`.
///
/// # Panics
/// It cannot be started.
pub fn spawn(place: &Workplace, run: &str, more: &[&str]) -> Child {
    spawn_as(place, run, start(place, run, more))
}

/// [`spawn`] of what [`start`] gave and somebody changed.
///
/// # Panics
/// It cannot be started.
pub fn spawn_as(place: &Workplace, run: &str, mut command: Command) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(place.path(&format!("{run}.log"))).unwrap();
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// What a run left in `<run>.log`.
pub fn log(place: &Workplace, run: &str) -> String {
    std::fs::read_to_string(place.path(&format!("{run}.log"))).unwrap_or_default()
}

/// Waits until `is_so` or the process has ended; whether it is so.
///
/// # Panics
/// The process cannot be asked.
pub fn wait_until(child: &mut Child, is_so: impl Fn() -> bool) -> bool {
    loop {
        if is_so() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return is_so();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lines in the metrics of a run.
pub fn lines(place: &Workplace, run: &str) -> usize {
    let bytes = std::fs::read(place.path(&format!("{run}/metrics.jsonl"))).unwrap_or_default();
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Sends a signal by its name.
///
/// # Panics
/// There is no `kill`.
pub fn signal(child: &mut Child, name: &str) {
    if name == "KILL" {
        return child.kill().unwrap();
    }
    Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
}

/// Starts a run and sends it a signal as soon as `is_so`; gives how it ended. Where the run was over before the signal came,
/// it is begun anew.
///
/// # Panics
/// It ends before it `is_so`.
#[track_caller]
pub fn stopped(place: &Workplace, run: &str, more: &[&str], name: &str, is_so: &dyn Fn() -> bool) -> ExitStatus {
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        let mut child = spawn(place, run, more);
        assert!(wait_until(&mut child, is_so), "{}", log(place, run));
        signal(&mut child, name);
        let ended = child.wait().unwrap();
        if !place.path(&format!("{run}/{WEIGHTS}")).exists() {
            return ended;
        }
        std::fs::remove_dir_all(place.path(run)).unwrap();
        std::fs::remove_file(place.path(&format!("{run}.log"))).unwrap();
    }
    panic!("SIG{name} came too late {ATTEMPTS} times");
}

/// Names of the signals that make a run save and leave, with their exit codes. Without SIGINT where these tests were started
/// to ignore it, as in the background of a shell: what they start ignores it, too.
pub fn stop_signals() -> Vec<(&'static str, i32)> {
    const SIGINT_BIT: u64 = 1 << 1;
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = told.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let both = [("TERM", 143), ("INT", 130)];
    let left = if ignored.is_some_and(|ignored| ignored & SIGINT_BIT != 0) { 1 } else { 2 };
    both[..left].to_vec()
}

/// Steps of the checkpoints of a run, rising.
pub fn checkpoints(place: &Workplace, run: &str) -> Vec<u64> {
    let entries = std::fs::read_dir(place.path(&format!("{run}/checkpoints"))).into_iter().flatten().flatten();
    let step = |name: String| name.strip_prefix("step-").and_then(|step| step.parse().ok());
    let mut steps: Vec<u64> =
        entries.filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned())).collect();
    steps.sort_unstable();
    steps
}

/// The metrics of a run without times and memory.
///
/// # Panics
/// They are not JSON.
pub fn metrics(place: &Workplace, run: &str) -> Vec<Value> {
    let without_times = |mut value: Value| {
        for key in ["tokens_per_second", "wait_seconds", "rss_bytes", "peak_rss_bytes"] {
            value.as_object_mut().unwrap().remove(key);
        }
        value
    };
    place.metrics(run).into_iter().map(without_times).collect()
}

/// What differs between two runs that have ended; nothing where they are the same to the last bit, but for times and memory.
pub fn difference(place: &Workplace, one: &str, two: &str) -> Option<String> {
    if let Some(half) = tree(&place.path(two)).keys().find(|name| name.to_string_lossy().contains(".tmp-")) {
        return Some(format!("`{}` was left behind", half.display()));
    }
    for name in [WEIGHTS, "adapter_config.json", "rejected.jsonl"] {
        if place.read(&format!("{one}/{name}")) != place.read(&format!("{two}/{name}")) {
            return Some(format!("`{name}` differs"));
        }
    }
    for name in ["janus_adapter.json", "recipe.toml"] {
        // Both hold the recipe, which names its folder.
        let text = |run: &str| {
            let text = String::from_utf8(place.read(&format!("{run}/{name}"))).unwrap();
            text.replace(&*place.path(run).to_string_lossy(), "RUN")
        };
        if text(one) != text(two) {
            return Some(format!("`{name}` differs: {}\n{}", text(one), text(two)));
        }
    }
    let (one, two) = (metrics(place, one), metrics(place, two));
    if one.len() != two.len() {
        return Some(format!("{} lines of metrics and {}", one.len(), two.len()));
    }
    one.iter().zip(&two).find(|(a, b)| a != b).map(|(a, b)| format!("metrics: {a} and {b}"))
}
