//! `janus bench` on the smallest shape: what it prints, and what it refuses. How fast it is is no test's business.
#![allow(clippy::unwrap_used)]

use janus_tests::tiny::Workplace;
use serde_json::Value;

/// Runs `janus bench`, which has to print one line with one JSON object and to leave nothing behind.
#[track_caller]
fn report(arguments: &[&str]) -> Value {
    let place = Workplace::empty();
    let done = place.janus(&[&["bench"], arguments, &["--shape", "janus-tiny", "--json"]].concat()).expect_success();
    assert_eq!(done.stdout.lines().count(), 1, "{}", done.stdout);
    assert_eq!(fs_err::read_dir(place.folder()).unwrap().count(), 0);
    let report = done.json();
    for key in ["tokens_per_second", "step_seconds", "peak_rss_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert_eq!(report["shape"], "janus-tiny");
    report
}

#[test]
fn a_training_step_is_measured() {
    for dtype in ["f32", "bf16"] {
        let report = report(&["train", "--dtype", dtype, "--steps", "3", "--batch", "2"]);
        assert_eq!(report["dtype"], dtype);
        // 16 image tokens and 64 of text in each of two rows.
        assert_eq!((&report["tokens"], &report["supervised_tokens"]), (&160.into(), &64.into()));
        let rate = report["tokens_per_second"].as_f64().unwrap();
        let step = report["step_seconds"].as_f64().unwrap();
        assert!((rate * step - 160.0).abs() < 1e-6, "{report}");
        // Rank 8 on both layers' q, k, v, o [48, 48], gate, up [80, 48] and down [48, 80].
        assert_eq!(report["trainable_parameters"], 8 * 2 * (4 * (48 + 48) + 3 * (80 + 48)));
        let loss = report["loss"].as_f64().unwrap();
        assert!((loss - 400_f64.ln()).abs() < 1.0, "random weights know nothing of 400 tokens: {report}");
    }
}

/// Every method has the values that it has over the targets in a run.
#[test]
fn a_training_step_of_every_method_is_measured() {
    let values = |method: &str| {
        let report = report(&["train", "--steps", "2", "--method", method]);
        assert_eq!(report["method"], method);
        assert!(report["loss"].as_f64().unwrap().is_finite(), "{report}");
        report["trainable_parameters"].as_u64().unwrap()
    };
    let outputs = 2 * (5 * 48 + 2 * 80);
    let lora = values("lora");
    assert_eq!(values("dora"), lora + outputs);
    assert_eq!(values("loha"), 2 * lora);
    assert_eq!(values("vera"), outputs + 2 * 7 * 8);
    // On the input of `down_proj`, on the output elsewhere.
    assert_eq!(values("ia3"), 2 * (4 * 48 + 3 * 80));
    assert!(values("lokr") < lora);
    Workplace::empty()
        .refuses(&["bench", "train", "--shape", "janus-tiny", "--method", "oft"], &["there is no method `oft`"]);
}

#[test]
fn a_switch_between_modalities_is_measured() {
    let report = report(&["switch", "--dtype", "f32", "--rounds", "9"]);
    for key in ["switch_seconds", "scatter_seconds", "rebuild_seconds"] {
        assert!(report[key].as_f64().unwrap().is_finite(), "{key}: {report}");
    }
    assert!(report["rebuild_seconds"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn rows_of_many_adapters_are_measured() {
    for dtype in ["f32", "bf16"] {
        let report =
            report(&["bank", "--dtype", dtype, "--adapters", "3", "--rank", "2", "--rows", "5", "--rounds", "3"]);
        // Rank 2 on both layers' q, k, v, o [48, 48], gate, up [80, 48] and down [48, 80], in the type that is computed in, on the
        // processor in whole blocks of 64 columns.
        let bytes = if dtype == "f32" { 4 } else { 2 };
        let columns = |count: usize| if report["device"] == "cpu" { count.next_multiple_of(64) } else { count };
        let values = 2 * 2 * (4 * (columns(48) + columns(48)) + 3 * (columns(80) + columns(48)));
        assert_eq!(report["adapter_bytes"], bytes * values);
        for key in ["insert_seconds", "choose_seconds", "base_seconds", "same_seconds", "different_seconds"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
        }
        assert_eq!((&report["adapters"], &report["rows"], &report["rank"]), (&3.into(), &5.into(), &2.into()));
    }
    // Rows of the decoder meet nothing of the tower.
    Workplace::empty().refuses(&["bench", "bank", "--shape", "janus-tiny", "--targets", "vision"], &["vision"]);
}

#[test]
fn training_is_measured_on_other_targets_and_tasks() {
    let decoder = report(&["train", "--steps", "2"]);
    let several = report(&["train", "--steps", "2", "--targets", "decoder,vision,aligner"]);
    let all = report(&["train", "--steps", "2", "--targets", "all"]);
    let count = |report: &Value| report["trainable_parameters"].as_u64().unwrap();
    assert!(count(&decoder) < count(&several));
    // What the task does not use is not created.
    assert_eq!(count(&several), count(&all));

    let codes = report(&["train", "--steps", "2", "--task", "generate", "--dtype", "f32"]);
    assert_eq!((&codes["tokens"], &codes["supervised_tokens"]), (&48.into(), &16.into()));
    let loss = codes["loss"].as_f64().unwrap();
    assert!((loss - 64_f64.ln()).abs() < 1.0, "random weights know nothing of 64 codes: {codes}");
}

#[test]
fn cached_features_give_the_loss_of_the_tower() {
    let loss = |arguments: &[&str]| {
        report(&[&["train", "--steps", "3", "--dtype", "f32"], arguments].concat())["loss"].as_f64().unwrap()
    };
    assert_eq!(loss(&[]), loss(&["--cached-features"]));
    let place = Workplace::empty();
    let bench = ["bench", "train", "--shape", "janus-tiny", "--cached-features"];
    let below = [&bench[..], &["--targets", "decoder,aligner"]].concat();
    place.refuses(&below, &["--cached-features", "model.aligner.fc1"]);
    place.refuses(&[&bench[..], &["--task", "generate"]].concat(), &["--cached-features"]);
}

#[test]
fn an_answer_is_measured() {
    let report = report(&["understand", "--tokens", "4", "--rounds", "2"]);
    assert_eq!((&report["prompt_tokens"], &report["tokens"]), (&80.into(), &4.into()));
    let number = |key: &str| report[key].as_f64().unwrap();
    assert!(number("first_token_seconds") > number("vision_seconds") && number("vision_seconds") > 0.0);
    // bf16: two layers, the last norm and the head of `janus-tiny`.
    let values = 2 * (4 * 48 * 48 + 3 * 48 * 80 + 2 * 48) + 48 + 400 * 48;
    assert_eq!(report["weight_bytes_per_token"], 2 * values);
    // Of the processor's memory alone.
    for name in ["memory_bandwidth_share", "memory_bandwidth_bytes_per_second"] {
        match report["device"] == "cpu" {
            true => assert!(number(name).is_finite() && number(name) > 0.0, "{name} in {report}"),
            false => assert!(report[name].is_null(), "{name} in {report}"),
        }
    }
}

#[test]
fn a_picture_is_measured() {
    let whole = report(&["generate"]);
    assert_eq!((&whole["codes"], &whole["codes_per_image"]), (&16.into(), &16.into()));
    let number = |key: &str| whole[key].as_f64().unwrap();
    assert!(number("vq_decode_seconds") > 0.0);
    let sum = number("codes_seconds") + number("vq_decode_seconds");
    assert!((number("image_seconds") - sum).abs() < 1e-9 * sum, "{whole}");

    let part = report(&["generate", "--tokens", "3", "--dtype", "f32"]);
    assert_eq!(part["codes"], 3);
    assert!(part.get("image_seconds").is_none(), "{part}");
    Workplace::empty().refuses(&["bench", "generate", "--shape", "janus-tiny", "--tokens", "17"], &["17", "16 codes"]);
}

#[test]
fn without_json_a_table_is_printed() {
    let place = Workplace::empty();
    let told = place.janus(&["bench", "train", "--shape", "janus-tiny", "--steps", "2"]).expect_success().stdout;
    assert!(told.contains("tokens per second") && told.contains("peak memory"), "{told}");
}

#[test]
fn unknown_words_are_refused_with_the_nearest() {
    let place = Workplace::empty();
    for kind in ["train", "understand", "generate"] {
        let refused = place.refuses(&["bench", kind, "--shape", "janus-tny"], &["janus-tny"]);
        assert!(refused.stderr.contains("hint: did you mean `janus-tiny`?"), "{}", refused.stderr);
        let refused = place.refuses(&["bench", kind, "--shape", "janus-tiny", "--dtype", "bf61"], &["bf61"]);
        assert!(refused.stderr.contains("hint: did you mean `bf16`?"), "{}", refused.stderr);
    }
    let train = ["bench", "train", "--shape", "janus-tiny"];
    place.refuses(&[&train[..], &["--task", "understnd"]].concat(), &["understnd"]);
    place.refuses(&[&train[..], &["--targets", "decodr"]].concat(), &["decodr"]);
    place.refuses(&[&train[..], &["--targets", "generation"]].concat(), &["generation", "understand"]);
    place.refuses(&[&train[..], &["--steps", "1"]].concat(), &["--steps"]);
}
