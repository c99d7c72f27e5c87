//! Recipes, and what they ask for.

use super::*;

#[test]
fn an_unknown_recipe_key() {
    let place = place();
    place.write("recipe.toml", RECIPE.replace("batch_size = 2", "batch_sise = 2"));
    let said = [
        "recipe.toml:16:1",
        "16 | batch_sise = 2",
        "^^^^^^^^^^ unknown key `batch_sise` in [train]; did you mean `batch_size`?",
    ];
    for command in [&["train", "recipe.toml"][..], &["recipe", "check", "recipe.toml"], &["eval", "recipe.toml"]] {
        place.refuses(command, &said);
    }
    train_refuses(&["train.batch_sise=2"], &["command line", "^^^", "did you mean `batch_size`?"]);
    train_refuses(&["trian.steps=2"], &["unknown key `trian`", "did you mean `train`?"]);
}

#[test]
fn every_fault_of_a_recipe_at_once() {
    let place = place();
    let recipe = RECIPE.replace("rank = 2", "rank = 0\nrnk = 1").replace("steps = 2", "steps = \"two\"");
    place.write("recipe.toml", recipe);
    let said = ["has 3 faults", "`adapter.rank` must be", "unknown key `rnk`", "`train.steps` must be"];
    place.refuses(&["train", "recipe.toml"], &said);
}

#[test]
fn rank_and_scale() {
    train_refuses(&["adapter.rank=0"], &["`adapter.rank` must be", "got `0`"]);
    train_refuses(&["adapter.rank=-4"], &["`adapter.rank` must be", "got `-4`"]);
    place().refuses(&["train", "recipe.toml", "adapter.rank=1.5"], &["`adapter.rank` must be an integer"]);
    for scale in ["nan", "inf", "-inf", "0.0"] {
        train_refuses(&[&format!("adapter.scale={scale}")], &["`adapter.scale` must be", "got `"]);
        train_refuses(&[&format!("adapter.alpha={scale}")], &["`adapter.alpha` must be", "got `"]);
    }
    train_refuses(&["adapter.scale=2.0", "adapter.alpha=4"], &["`adapter.alpha` cannot stand beside `adapter.scale`"]);
}

#[test]
fn a_rank_beyond_every_side() {
    place().refuses(&["train", "recipe.toml", "adapter.rank=4000"], &["rank", "4000"]);
}

#[test]
fn targets_that_match_nothing() {
    train_refuses(
        &[r#"adapter.targets=["decoder", "q_porj"]"#],
        &["target `q_porj` matches no site of the model", "did you mean `q_proj`"],
    );
    train_refuses(&[r#"adapter.targets=["layers.7.*.q_proj"]"#], &["target `layers.7.*.q_proj` matches no site"]);
    train_refuses(&[r#"adapter.targets=["a..b"]"#], &["a..b"]);
    train_refuses(&[r#"adapter.modules_to_save=["lm_haed"]"#], &["`lm_haed`"]);
}

#[test]
fn an_explicit_pattern_that_no_task_uses() {
    train_refuses(
        &[r#"adapter.targets=["decoder", "generation_head.vision_head"]"#],
        &["no task of the recipe (understand) uses `model.generation_head.vision_head`"],
    );
    train_refuses(
        &[r#"adapter.modules_to_save=["generation_aligner"]"#],
        &["no task of the recipe (understand) uses", "`model.generation_aligner."],
    );
    train_refuses(
        &["data.0.task=text", r#"data.0.columns={prompt="question"}"#, r#"adapter.targets=["vision"]"#],
        &["nothing to train", "`vision`"],
    );
}

#[test]
fn recipes_that_are_none() {
    let place = place();
    place.refuses(&["train", "absent.toml"], &["absent.toml"]);
    place.refuses(&["train", "base"], &["base"]);
    place.write("bytes.toml", b"[base]\npath = \"\xff\"\n");
    place.refuses(&["train", "bytes.toml"], &["bytes.toml", "line 2", "0xff"]);
    place.write("broken.toml", "[base\npath = 3");
    place.refuses(&["train", "broken.toml"], &["broken.toml:1"]);
    place.write("empty.toml", "");
    place.refuses(&["train", "empty.toml"], &["missing key `base.path`", "no [[data]] table"]);
}
