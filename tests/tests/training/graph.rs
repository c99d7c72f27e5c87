//! What reaches what: every trainable tensor gets a gradient or is refused by name, and what no task reaches is not created.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::site::{BaseView, Intercept};
use janus_lora::adapter::Adapter;
use janus_lora::status::Silent;
use janus_lora::tasks::Batch;
use janus_lora::train::coverage::require_gradients;
use janus_lora::train::optimizer::AdamWConfig;
use janus_lora::train::plan::parts;
use janus_lora::train::run::prepare;
use janus_lora::train::step::{Stepper, TableBatch, TableLoss};
use janus_lora::train::tables::SampleStream;
use janus_lora::train::trainable::Trainables;
use janus_tests::tiny::Workplace;
use serde_json::Value;

use super::{GENERATE, TEXT, UNDERSTAND, load, place, tensors, train};

/// Hides from the backward pass everything before it.
#[derive(Debug)]
struct Cut;

impl Intercept for Cut {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> janus_core::Result<Tensor> {
        Ok(base.forward(x)?.detach())
    }
}

/// Checks a recipe's coverage with the graph cut at `cut`: the names of all trainable tensors, and the refusal.
fn coverage(place: &Workplace, overrides: &[&str], cut: Option<&str>) -> (BTreeSet<String>, Option<String>) {
    let prepared = prepare(load(place, overrides), &Device::Cpu, &Silent).unwrap();
    let (recipe, base) = (&prepared.recipe, &prepared.base);
    let model: Janus =
        base.model(DType::F32, &Device::Cpu, parts(&prepared.recipe, &prepared.tables), &Silent).unwrap();
    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    let spec = prepared.plan.adapter_spec(recipe, base);
    let adapter = Adapter::new(base.config(), base.checkpoint().is_tied(), &spec, 1, &read).unwrap();
    let config = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let tables = prepared.tables.iter().map(|t| TableLoss { name: t.section.name.clone(), loss_weight: 1.0 }).collect();
    let trainables = Trainables::attach(&model, adapter).unwrap();
    if let Some(path) = cut {
        let site = model.projections().get(path).unwrap();
        assert!(site.correction().is_none(), "`{path}` is adapted");
        site.intercept(Some(Arc::new(Cut)));
    }
    let stepper = Stepper::new(trainables, config, tables, recipe.train.accumulation, 1.0, 0);
    let batch = |(table, source)| {
        let sample = SampleStream::new(source, 1, false).unwrap().next(base, &model).unwrap();
        TableBatch { table, batch: Batch::collate(base, &[sample]).unwrap(), aligned: None }
    };
    let batches: Vec<TableBatch> = prepared.tables.iter().enumerate().map(batch).collect();
    let values = || -> Vec<Vec<f32>> {
        stepper.trainables.iter().map(|t| t.var.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    let before = values();
    let refusal = require_gradients(&stepper, &model, &batches).err().map(|error| match error {
        janus_lora::Error::Train(janus_lora::train::TrainError::NoGradient { tensors }) => tensors.join("\n"),
        other => panic!("{other}"),
    });
    assert_eq!(values(), before, "the check leaves every tensor as it was");
    (stepper.trainables.iter().map(|t| t.name.clone()).collect(), refusal)
}

#[test]
fn a_cut_graph_is_refused_by_the_names_behind_it() {
    let cases = [
        (UNDERSTAND, r#"["decoder", "vision", "aligner.fc1"]"#, "model.aligner.hidden_layers.0"),
        (GENERATE, r#"["decoder", "generation_aligner.fc1"]"#, "model.generation_aligner.hidden_layers.0"),
        (TEXT, r#"["decoder", "embed_tokens"]"#, "lm_head"),
    ];
    for (table, targets, cut) in cases {
        let place = place(&[table]);
        let targets = format!("adapter.targets={targets}");
        let (all, refusal) = coverage(&place, &[&targets], None);
        assert_eq!(refusal, None, "the graph is whole");
        let behind = |name: &&String| match cut {
            "lm_head" => true,
            "model.aligner.hidden_layers.0" => name.contains(".vision_model.") || name.contains(".model.aligner.fc1."),
            _ => name.contains(".model.generation_aligner.fc1."),
        };
        let expected: BTreeSet<String> = all.iter().filter(behind).cloned().collect();
        assert!(!expected.is_empty());
        let (_, refusal) = coverage(&place, &[&targets], Some(cut));
        let refused: BTreeSet<String> = refusal.unwrap().lines().map(str::to_owned).collect();
        assert_eq!(refused, expected, "cut at {cut}");
    }
}

#[test]
fn a_cut_in_one_of_two_tasks_is_no_cut_where_the_other_reaches() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let targets = r#"adapter.targets=["decoder", "vision", "generation_head"]"#;
    let targets = targets.replace("generation_head", "generation_head.vision_head");
    let (all, refusal) = coverage(&place, &[&targets], Some("model.aligner.hidden_layers.0"));
    let refused: BTreeSet<String> = refusal.unwrap().lines().map(str::to_owned).collect();
    let vision: BTreeSet<String> = all.iter().filter(|name| name.contains(".vision_model.")).cloned().collect();
    assert_eq!(refused, vision, "the decoder learns from both");
}

#[test]
fn what_no_task_reaches_is_not_created() {
    let reached: [(&[&str], &[&str], &[&str]); 4] = [
        (&[UNDERSTAND], &[".language_model.", ".vision_model.", ".model.aligner."], &[".generation_"]),
        (
            &[GENERATE],
            &[".language_model.", ".generation_aligner.", ".generation_head."],
            &[".vision_model.", ".model.aligner."],
        ),
        (&[TEXT], &[".language_model."], &[".vision_model.", ".model.aligner.", ".generation_"]),
        (
            &[UNDERSTAND, GENERATE],
            &[".language_model.", ".vision_model.", ".model.aligner.", ".generation_aligner.", ".generation_head."],
            &[],
        ),
    ];
    for (tables, there, absent) in reached {
        let place = place(tables);
        let names: Vec<String> = tensors(&train(&place, "run", &["train.steps=1"])).into_keys().collect();
        for part in there {
            assert!(names.iter().any(|name| name.contains(part)), "{tables:?} trains nothing in {part}");
        }
        for part in absent {
            assert!(!names.iter().any(|name| name.contains(part)), "{tables:?} trains something in {part}");
        }
        for never in ["embed", "lm_head", "vqmodel"] {
            assert!(!names.iter().any(|name| name.contains(never)), "a preset names {never}");
        }
        let plan = place.janus(&["train", "recipe.toml", "--dry-run"]).expect_success().stdout;
        assert_eq!(plan.contains("left out"), !absent.is_empty(), "{plan}");
        let config: Value = serde_json::from_slice(&place.read("run/adapter_config.json")).unwrap();
        for part in absent {
            assert!(!config.to_string().contains(part.trim_matches('.')), "{config} names {part}");
        }
    }
}
