//! What is told of a run before its first step, and what is refused then.

use candle_core::Tensor;
use janus_tests::program::janus_with;
use janus_tests::tiny::tree;
use serde_json::Value;

use super::{UNDERSTAND, WEIGHTS, place, tensors};

#[test]
fn a_run_that_cannot_fit_is_refused_before_it_starts() {
    let place = place(&[UNDERSTAND]);
    let before = tree(place.folder());
    let run = |room: &str, more: &[&str]| {
        let arguments = [&["train", "recipe.toml"], more].concat();
        janus_with(place.folder(), &arguments, &[("JANUS_MEMORY_LIMIT_BYTES", room)])
    };
    let plan = |more: &[&str]| run("1000000000000", &[&["--dry-run", "--json"], more].concat()).expect_success().json();
    let wide = "train.batch_size=128";
    let kept = plan(&[wide]);
    assert_eq!(kept["available_bytes"].as_u64(), Some(1_000_000_000_000));
    assert_eq!(kept["recompute"], false);
    for more in [&[][..], &["--json"], &["--dry-run"]] {
        let refused = run("1000000", more);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        let told = &refused.stderr;
        // Where it is tight, blocks are computed again: the figure is of that, and smaller.
        assert!(told.contains("error: the run needs about ") && told.contains(" 1000000 are there"), "{told}");
        assert!(told.contains("train.recompute=on") && told.contains("train.batch_size=1"), "{told}");
        assert!(tree(place.folder()) == before, "a refused run wrote something");
    }
    // Too little for everything that may be kept: it fits as soon as blocks are computed again. The program itself takes a
    // little more or less each time.
    let needed = |plan: &Value| plan["predicted_peak_bytes"].as_u64().unwrap();
    let (kept, computed_again) = (needed(&kept), needed(&plan(&[wide, r#"train.recompute="on""#])));
    assert!(kept > computed_again + 6_000_000, "{kept} {computed_again}");
    let room = u64::midpoint(kept, computed_again).to_string();
    let tight = run(&room, &["--dry-run", "--json", wide]).expect_success().json();
    assert_eq!(tight["recompute"], true, "{tight}");
    let off = run(&room, &[wide, r#"train.recompute="off""#]);
    assert_eq!(off.code, Some(2), "{}", off.stderr);
    assert!(off.stderr.contains("hint: with train.recompute=on it takes "), "{}", off.stderr);
    let wrong = run("much", &[]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("`JANUS_MEMORY_LIMIT_BYTES` is `much`"), "{}", wrong.stderr);
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let place = place(&[UNDERSTAND]);
    let before = tree(place.folder());
    let plan = |more: &[&str]| {
        let plan = place.janus(&[&["train", "recipe.toml", "--dry-run", "--json"], more].concat()).expect_success();
        assert_eq!(plan.stdout.lines().count(), 1, "{}", plan.stdout);
        plan.json()
    };
    // janus-tiny: each of two decoder layers has four maps of 48 to 48, two of 48 to 80 and one of 80 to 48; each of
    // two vision layers four of 32 to 32, one of 32 to 56 and one of 56 to 32. A pair has rank * (input + output).
    let decoder = 2 * (4 * (48 + 48) + 3 * (48 + 80));
    let vision = 2 * (4 * (32 + 32) + 2 * (32 + 56));
    let epochs = ["train.epochs=2", "train.batch_size=4"];
    let told = plan(&[&[r#"adapter.targets=["decoder", "vision"]"#, "adapter.rank=3"], &epochs[..]].concat());
    assert_eq!(told["trainable_parameters"].as_u64(), Some(3 * (decoder + vision)));
    // Two epochs of ten rows, four a step.
    assert_eq!((told["rows"].as_u64(), told["steps"].as_u64()), (Some(10), Some(5)), "{told}");
    let base = place.janus(&["base", "inspect", "base", "--json"]).expect_success().json();
    assert_eq!(told["total_parameters"], base["parameters"]);
    let modules = r#"adapter.modules_to_save=["lm_head"]"#;
    let copied = plan(&[r#"adapter.targets=["vision"]"#, modules, "adapter.rank=1"]);
    assert_eq!(copied["trainable_parameters"].as_u64(), Some(vision + 400 * 48));
    assert_eq!(copied["steps"].as_u64(), Some(3));
    let text = place.janus(&["train", "recipe.toml", "--dry-run"]).expect_success();
    assert!(text.stdout.contains("3 steps"), "{}", text.stdout);
    assert!(tree(place.folder()) == before, "a dry run wrote something");

    let wide = plan(&["train.batch_size=64"]);
    assert!(wide["predicted_peak_bytes"].as_u64() > told["predicted_peak_bytes"].as_u64());
    let run = place.janus(&["train", "recipe.toml", "--json"]).expect_success().json();
    let elements: usize = tensors(&place.read(&format!("run/{WEIGHTS}"))).values().map(Tensor::elem_count).sum();
    let told = plan(&["output.dir=other"]);
    assert_eq!(told["trainable_parameters"].as_u64(), Some(elements as u64));
    let predicted = told["predicted_peak_bytes"].as_f64().unwrap();
    let parts = told["predicted_memory"].as_object().unwrap();
    for part in ["base", "adapters", "moments", "activations", "cache"] {
        assert!(parts[part].is_u64(), "{told}");
    }
    assert_eq!(parts.values().map(|bytes| bytes.as_f64().unwrap()).sum::<f64>(), predicted);
    assert!(text.stdout.contains("activations ") && text.stdout.contains("moments "), "{}", text.stdout);
    // Time is told where the machine's speed was measured: by a dry run.
    assert!(text.stdout.contains(" s per step"), "{}", text.stdout);
    let time = |plan: &Value| (plan["predicted_step_seconds"].as_f64(), plan["predicted_step_operations"].as_f64());
    assert!(time(&told).0 > Some(0.0) && time(&told).1 > Some(0.0), "{told}");
    assert!(time(&wide).1 > time(&told).1, "{wide}");
    let ratio = run["peak_rss_bytes"].as_f64().unwrap() / predicted;
    assert!((0.2..5.0).contains(&ratio), "peak is {ratio} times the predicted {predicted}");
}

/// Epochs count rows, whether a step draws less than all of them or each of them several times.
#[test]
fn epochs_count_rows() {
    let place = place(&[UNDERSTAND]);
    // The table has ten rows.
    for (batch, accumulation, epoch, repeats) in [(2, 1, 0.2, None), (10, 1, 1.0, None), (16, 1, 1.6, Some("1.60"))]
        .into_iter()
        .chain([(9, 3, 2.7, Some("2.70")), (40, 1, 4.0, Some("4.00"))])
    {
        let run = format!("run-{batch}");
        let keys = [
            format!("train.batch_size={batch}"),
            format!("train.grad_accumulation={accumulation}"),
            format!("output.dir={run}"),
            "train.steps=2".to_owned(),
        ];
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let done = place.janus(&[&["train", "recipe.toml"], &keys[..]].concat()).expect_success();
        let epochs: Vec<f64> = place.metrics(&run).iter().filter_map(|line| line["epoch"].as_f64()).collect();
        assert_eq!(epochs.len(), 2);
        for (epochs, steps) in epochs.iter().zip([1.0, 2.0]) {
            assert!((epochs - steps * epoch).abs() < 1e-9, "{batch}: {epochs:?}");
        }
        let line = done.stderr.lines().find(|line| line.contains("a step draws"));
        assert_eq!(line.is_some(), repeats.is_some(), "{}", done.stderr);
        if let (Some(line), Some(repeats)) = (line, repeats) {
            let said = format!(
                "a step draws {} rows of `questions`, which has 10: each about {repeats} times",
                batch * accumulation
            );
            assert!(line.contains(&said), "{line}");
        }
    }
    // Steps by epochs are those of before.
    let steps = |keys: &[&str]| {
        let plan = [&["train", "recipe.toml", "--dry-run", "--json"], keys].concat();
        place.janus(&plan).expect_success().json()["steps"].as_u64()
    };
    let of = |batch: &str, epochs: &str| steps(&[batch, epochs]);
    assert_eq!(of("train.batch_size=3", "train.epochs=2"), Some(7));
    assert_eq!(of("train.batch_size=10", "train.epochs=3"), Some(3));
    assert_eq!(of("train.batch_size=16", "train.epochs=3"), Some(2));
    assert_eq!(of("train.batch_size=64", "train.epochs=1"), Some(1));
}
