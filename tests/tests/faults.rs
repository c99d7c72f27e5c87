//! Bad input to every command: exit code 2, one clear error, nothing written.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use janus_tests::program::{command, run};
use janus_tests::rows::{
    conversations, image_lists, images, integers, optional_texts, picture, png_claiming, texts, write_table,
};
use janus_tests::tiny::{Tree, Workplace, plant, tree};
use serde_json::{Value, json};

/// A run of two steps; faults are put into it.
const RECIPE: &str = r#"# janus train recipe.toml
[base]
path = "base"
dtype = "f32"

[adapter]
rank = 2
targets = ["decoder", "vision"]

[[data]]
task = "understand"
train = "rows.parquet"

[train]
steps = 2
batch_size = 2

[output]
dir = "run"
"#;

/// A base, a recipe and six good rows in row groups of two.
fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    let pictures: Vec<_> = (0..6).map(|seed| Some(picture(40, 32, seed))).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..6).map(|i| format!("Which part is number {i}?")))),
        ("answer", texts((0..6).map(|i| format!("part {i}")))),
        ("number", integers(0..6)),
    ];
    write_table(&place.path("rows.parquet"), columns, 2);
    place
}

/// What `janus train` of the recipe with these overrides refuses.
#[track_caller]
fn train_refuses(overrides: &[&str], said: &[&str]) {
    let arguments: Vec<&str> = ["train", "recipe.toml"].iter().chain(overrides).copied().collect();
    place().refuses_with_hint(&arguments, said);
}

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
        place.refuses_with_hint(command, &said);
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
    place.refuses_with_hint(&["train", "recipe.toml"], &said);
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
    place.refuses_with_hint(&["train", "absent.toml"], &["absent.toml"]);
    place.refuses(&["train", "base"], &["base"]);
    place.write("bytes.toml", b"[base]\npath = \"\xff\"\n");
    place.refuses_with_hint(&["train", "bytes.toml"], &["bytes.toml", "line 2", "0xff"]);
    place.write("broken.toml", "[base\npath = 3");
    place.refuses(&["train", "broken.toml"], &["broken.toml:1"]);
    place.write("empty.toml", "");
    place.refuses_with_hint(&["train", "empty.toml"], &["missing key `base.path`", "no [[data]] table"]);
}

#[test]
fn data_that_is_not_there() {
    train_refuses(&["data.0.train=absent.parquet"], &["absent.parquet"]);
    train_refuses(&["data.0.train=none-*.parquet"], &["none-*.parquet"]);
    train_refuses(&["data.0.train=base"], &["no `.parquet` file in folder"]);
    train_refuses(&["data.0.eval=absent.parquet"], &["absent.parquet"]);
    train_refuses(&["data.0.train=ftp://host/rows.parquet"], &["`ftp`"]);
}

#[test]
fn a_missing_column() {
    train_refuses(
        &[r#"data.0.columns={answer="anwser"}"#],
        &["rows.parquet", "no column `anwser` (for answer)", "`image`, `question`, `answer`", "did you mean `answer`"],
    );
    train_refuses(&["data.0.task=generate"], &["no column `prompt` (for prompt)"]);
    train_refuses(&[r#"data.0.columns={imge="image"}"#], &["task `understand` reads no column `imge`", "`image`"]);
}

#[test]
fn a_column_of_another_type() {
    train_refuses(
        &[r#"data.0.columns={answer="number"}"#],
        &["column `number` (for answer) has type `int64`, expected `string`"],
    );
    train_refuses(&[r#"data.0.columns={image="number"}"#], &["column `number` (for image) has type `int64`"]);
    train_refuses(&[r#"data.0.columns={messages="answer"}"#], &["column `answer` (for messages) has type `string`"]);
    train_refuses(&[r#"data.0.columns={question="image"}"#], &["column `image` (for question) has type `struct<"]);
}

#[test]
fn files_that_are_no_parquet() {
    let place = place();
    let whole = place.read("rows.parquet");
    let (half, quarter) = (whole.len() / 2, whole.len() / 4);
    let mut damaged = whole.clone();
    damaged[quarter..half].fill(0x5a);
    let files: [(&str, &[u8]); 4] =
        [("text", b"no parquet at all"), ("empty", b""), ("cut", &whole[..half]), ("damaged", &damaged)];
    for (name, bytes) in files {
        place.write("rows.parquet", bytes);
        let done = place.refuses_with_hint(&["train", "recipe.toml"], &["rows.parquet"]);
        assert!(done.stderr.contains("Parquet") || done.stderr.contains("damaged"), "{name}: {}", done.stderr);
    }
}

/// A cut picture.
fn truncated() -> Vec<u8> {
    let mut bytes = picture(64, 64, 5);
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// An encoded picture and an answer.
type Cells = (Option<Vec<u8>>, Option<&'static str>);

/// Bad rows, and what is said of each.
fn bad_rows() -> Vec<(Cells, &'static str)> {
    vec![
        ((None, Some("yes")), "`image` is null"),
        ((Some(truncated()), Some("yes")), "the image in `image` cannot be decoded"),
        ((Some(b"no picture".to_vec()), Some("yes")), "the image in `image` cannot be decoded"),
        ((Some(picture(1, 20_000, 1)), Some("yes")), "1x20000"),
        ((Some(png_claiming(30_000, 30_000)), Some("yes")), "30000x30000"),
        ((Some(picture(32, 32, 2)), None), "`answer` is null"),
        ((Some(picture(32, 32, 3)), Some("  ")), "`answer` is empty"),
        ((Some(picture(32, 32, 4)), Some("an <image_placeholder>")), "<image_placeholder>"),
    ]
}

/// Writes `rows.parquet` with a good row before and after these, in row groups of two.
fn write_rows(place: &Workplace, rows: &[Cells]) {
    let good = (Some(picture(48, 40, 9)), Some("fine"));
    let rows: Vec<_> = std::iter::once(&good).chain(rows).chain([&good]).collect();
    let pictures: Vec<_> = rows.iter().map(|(picture, _)| picture.clone()).collect();
    let answers: Vec<_> = rows.iter().map(|(_, answer)| *answer).collect();
    let columns = vec![("image", images(&pictures)), ("answer", optional_texts(&answers))];
    write_table(&place.path("rows.parquet"), columns, 2);
}

#[test]
fn one_bad_row_where_none_is_allowed() {
    let place = place();
    for (row, reason) in bad_rows() {
        write_rows(&place, &[row]);
        let said =
            ["1 of 3 rows cannot be used", "`max_bad_rows` = 0", "row 1 of row group 0 in", "rows.parquet", reason];
        place.refuses_with_hint(&["train", "recipe.toml", "data_limits.max_bad_rows=0"], &said);
        place.refuses_with_hint(&["train", "recipe.toml"], &["1 of 3 rows cannot be used", reason]);
        place.refuses_with_hint(&["train", "recipe.toml", "--dry-run"], &["1 of 3 rows cannot be used", reason]);
    }
}

#[test]
fn rows_left_out_are_counted_and_listed() {
    let place = place();
    let bad = bad_rows();
    let rows: Vec<_> = bad.iter().map(|(row, _)| row.clone()).collect();
    write_rows(&place, &rows);
    let refused = place.refuses_with_hint(
        &["train", "recipe.toml", "data_limits.max_bad_rows=7"],
        &["8 of 10 rows cannot be used", "`max_bad_rows` = 7"],
    );
    for (_, reason) in &bad {
        assert!(refused.stderr.contains(reason), "no `{reason}`: {}", refused.stderr);
    }

    let plan = place.janus(&["train", "recipe.toml", "data_limits.max_bad_rows=8", "--dry-run", "--json"]);
    let plan = plan.expect_success().json();
    assert_eq!((plan["rows"].as_u64(), plan["tables"][0]["rejected"].as_u64()), (Some(2), Some(8)), "{plan}");

    let done = place.janus(&["train", "recipe.toml", "data_limits.max_bad_rows=8"]).expect_success();
    assert!(done.stderr.contains("8 left out"), "{}", done.stderr);
    let listed = String::from_utf8(place.read("run/rejected.jsonl")).unwrap();
    let lines: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), bad.len());
    for (number, (line, (_, reason))) in lines.iter().zip(&bad).enumerate() {
        let row = number + 1;
        assert!(line["file"].as_str().unwrap().ends_with("rows.parquet"), "{line}");
        assert_eq!((line["row_group"].as_u64(), line["row"].as_u64()), (Some(row as u64 / 2), Some(row as u64 % 2)));
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line} has not `{reason}`");
        assert_eq!(line.as_object().unwrap().len(), 4, "{line}");
    }

    let check = place.janus(&["data", "check", "recipe.toml", "data_limits.max_bad_rows=8", "--json"]);
    let check = check.expect_success().json();
    let table = check.as_object().unwrap().values().next().unwrap();
    assert_eq!((table["rows"].as_u64(), table["rejected"].as_u64()), (Some(10), Some(8)), "{check}");
    assert_eq!(table["rejected_rows"].as_array(), Some(&lines), "every row, as in `rejected.jsonl`");
    assert_eq!(table["budget"], serde_json::json!({ "max_bad_rows": 8, "rows": 8, "kept": true }));
    let over = place.janus(&["data", "check", "recipe.toml", "data_limits.max_bad_rows=0.5"]);
    assert_eq!(over.code, Some(2), "{}", over.stderr);
    assert!(over.stderr.contains("8 of 10 rows cannot be used"), "{}", over.stderr);
    assert!(over.stdout.contains("budget: 5 rows (max_bad_rows = 0.5), exceeded"), "{}", over.stdout);
    for (number, (_, reason)) in bad.iter().enumerate() {
        let row = number + 1;
        let place = format!("row {} of row group {} in", row % 2, row / 2);
        let is_told = |line: &str| line.contains(&place) && line.contains(reason);
        assert!(over.stdout.lines().any(is_told), "no `{place}` with `{reason}`: {}", over.stdout);
    }
}

#[test]
fn no_accepted_row() {
    let place = place();
    let columns = vec![("image", images::<Vec<u8>>(&[None, None, None])), ("answer", texts(["a", "b", "c"]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    let arguments = ["train", "recipe.toml", "data_limits.max_bad_rows=1.0"];
    place.refuses_with_hint(&arguments, &["none of the 3 rows can be used", "`image` is null"]);
    let columns = vec![("image", images::<Vec<u8>>(&[])), ("answer", texts::<&str>([]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    place.refuses_with_hint(&arguments, &["none of the 0 rows can be used"]);
}

#[test]
fn bad_conversations_and_lists() {
    let place = place();
    let turns = vec![
        vec![("user", "What?"), ("assistant", "That.")],
        vec![("user", "What?")],
        vec![("assistant", "That.")],
        vec![("user", "What?"), ("robot", "That.")],
        vec![("user", "<image_placeholder> and <image_placeholder>"), ("assistant", "That.")],
        vec![],
    ];
    let pictures: Vec<_> = (0..6).map(|seed| vec![picture(32, 32, seed)]).collect();
    let columns = vec![("pictures", image_lists(&pictures)), ("turns", conversations(&turns))];
    write_table(&place.path("rows.parquet"), columns, 2);
    let columns = r#"data.0.columns={images="pictures", messages="turns"}"#;
    let said = ["5 of 6 rows cannot be used", "row 1 of row group 0", "row 1 of row group 2", "`robot`"];
    place.refuses_with_hint(&["train", "recipe.toml", columns, "data_limits.max_bad_rows=0"], &said);
    let rows = vec![vec![picture(32, 32, 0)], vec![], vec![picture(32, 32, 1), truncated()]];
    let conversation = vec![("user", "What?"), ("assistant", "That.")];
    let turns = vec![conversation.clone(), conversation.clone(), conversation];
    write_table(
        &place.path("rows.parquet"),
        vec![("pictures", image_lists(&rows)), ("turns", conversations(&turns))],
        8,
    );
    let said = ["2 of 3 rows cannot be used", "row 1 of", "row 2 of", "cannot be decoded"];
    place.refuses_with_hint(&["train", "recipe.toml", columns, "data_limits.max_bad_rows=0"], &said);
}

/// The header and the values of a safetensors file.
fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

fn join(header: &Value, values: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), values].concat()
}

const NORM: &str = "model.language_model.norm.weight";

#[test]
fn a_safetensors_header_that_lies() {
    let place = place();
    let whole = place.read("base/model.safetensors");
    let (header, values) = split(&whole);
    let lie = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        join(&header, values)
    };
    let end = header[NORM]["data_offsets"][1].as_u64().unwrap();
    let begin = header[NORM]["data_offsets"][0].as_u64().unwrap();
    let length = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("four bytes", whole[..4].to_vec()),
        ("half a header", whole[..2000].to_vec()),
        ("half the values", whole[..whole.len() / 2].to_vec()),
        ("one byte less", whole[..whole.len() - 1].to_vec()),
        ("one byte more", [&whole[..], &[0]].concat()),
        ("a header of 2^64 bytes", length(u64::MAX)),
        ("a header of 2^40 bytes", length(1 << 40)),
        ("a header as long as the file", length(whole.len() as u64)),
        ("a header of no bytes", length(0)),
        ("no JSON", [&whole[..8], &[b'x'; 4000]].concat()),
        ("values beyond the file", lie(&|h| h[NORM]["data_offsets"] = json!([begin, u64::MAX]))),
        ("values that end before they begin", lie(&|h| h[NORM]["data_offsets"] = json!([end, begin]))),
        ("negative offsets", lie(&|h| h[NORM]["data_offsets"] = json!([-1, 4]))),
        ("values of another tensor", lie(&|h| h[NORM]["data_offsets"] = json!([0, end - begin]))),
        ("an enormous shape", lie(&|h| h[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40]))),
        ("a larger shape", lie(&|h| h[NORM]["shape"] = json!([4800]))),
        ("another type", lie(&|h| h[NORM]["dtype"] = json!("F16"))),
        ("an unknown type", lie(&|h| h[NORM]["dtype"] = json!("F7"))),
        ("a text for a tensor", lie(&|h| h[NORM] = json!("lie"))),
        ("a list", [&2u64.to_le_bytes()[..], b"[]"].concat()),
    ];
    for (what, bytes) in lies {
        place.write("base/model.safetensors", bytes);
        for command in [&["base", "inspect", "base"][..], &["train", "recipe.toml"]] {
            let done = place.refuses_with_hint(command, &["model.safetensors"]);
            assert!(done.stderr.len() < 4000, "{what}: {}", done.stderr);
        }
    }
}

#[test]
fn tensors_of_a_base_that_do_not_fit() {
    let place = place();
    let whole = place.read("base/model.safetensors");
    let (header, values) = split(&whole);
    let mut renamed = header.clone();
    let entry = renamed.as_object_mut().unwrap().shift_remove(NORM).unwrap();
    renamed["model.language_model.morm.weight"] = entry;
    place.write("base/model.safetensors", join(&renamed, values));
    let said = [NORM, "model.language_model.morm.weight"];
    place.refuses(&["base", "inspect", "base"], &said);
    place.refuses(&["train", "recipe.toml"], &said);
    let mut shaped = header.clone();
    shaped[NORM]["shape"] = json!([6, 8]);
    place.write("base/model.safetensors", join(&shaped, values));
    place.refuses(&["base", "inspect", "base"], &[NORM, "[6, 8]", "[48]"]);
}

#[test]
fn a_shard_index_that_points_outside() {
    let place = place();
    let whole = place.read("base/model.safetensors");
    place.write("model.safetensors", &whole);
    fs_err::remove_file(place.path("base/model.safetensors")).unwrap();
    let (header, _) = split(&whole);
    let names: Vec<&String> = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").collect();
    let absolute = place.path("model.safetensors").to_string_lossy().into_owned();
    for shard in ["../model.safetensors", &absolute, "base/../../model.safetensors", ".."] {
        let map: serde_json::Map<_, _> = names.iter().map(|name| ((*name).clone(), json!(shard))).collect();
        place.write("base/model.safetensors.index.json", json!({ "metadata": {}, "weight_map": map }).to_string());
        for command in [&["base", "inspect", "base"][..], &["train", "recipe.toml"]] {
            place.refuses_with_hint(command, &["model.safetensors.index.json", shard]);
        }
    }
    let map: serde_json::Map<_, _> = names.iter().map(|name| ((*name).clone(), json!("a.safetensors"))).collect();
    place.write("base/model.safetensors.index.json", json!({ "metadata": {}, "weight_map": map }).to_string());
    place.refuses_with_hint(&["base", "inspect", "base"], &["a.safetensors"]);
}

/// A file as `torch.save` writes it, of this pickle.
fn torch_file(pickle: &[u8]) -> Vec<u8> {
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/byteorder", b"little"), ("archive/data/0", &[0; 8])] {
        archive.start_file(name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn a_pickle_that_runs_code() {
    let place = place();
    fs_err::remove_file(place.path("base/model.safetensors")).unwrap();
    let pickles: [(&[u8], &str); 6] = [
        // GLOBAL, then a call.
        (b"cos\nsystem\n(X\x0c\x00\x00\x00touch pickledtR.", "os.system"),
        (b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        // STACK_GLOBAL of protocol 4.
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0dtouch pickled\x85R.", "posix.system"),
        // INST: a call in one opcode.
        (b"(S'touch pickled'\nios\nsystem\n.", "opcode"),
        // A name within torch that would load another file.
        (b"ctorch\nload\n(X\x03\x00\x00\x00/a/tR.", "torch.load"),
        // OBJ and EXT1.
        (b"(\x82\x01o.", "opcode"),
    ];
    for (pickle, named) in pickles {
        place.write("base/pytorch_model.bin", torch_file(pickle));
        for command in [&["base", "inspect", "base"][..], &["train", "recipe.toml"]] {
            place.refuses_with_hint(command, &["pytorch_model.bin", named]);
        }
    }
    place.write("base/pytorch_model.bin", b"PK\x03\x04 no archive");
    place.refuses(&["base", "inspect", "base"], &["pytorch_model.bin"]);
}

#[test]
fn a_missing_tokenizer() {
    let place = place();
    fs_err::remove_file(place.path("base/tokenizer.json")).unwrap();
    for command in
        [&["base", "inspect", "base"][..], &["train", "recipe.toml"], &["understand", "--base", "base", "What?"]]
    {
        place.refuses_with_hint(command, &["tokenizer.json"]);
    }
    place.write("base/tokenizer.json", "{\"model\": 3}");
    place.refuses_with_hint(&["base", "inspect", "base"], &["tokenizer.json"]);
}

#[test]
fn models_that_are_no_janus() {
    let place = place();
    for (key, value) in [("model_type", "janusflow"), ("model_type", "llama")] {
        let before = place.read("base/config.json");
        place.edit_json("base/config.json", |config| config[key] = json!(value));
        place.refuses(&["base", "inspect", "base"], &["config.json", value]);
        place.write("base/config.json", before);
    }
    place.edit_json("base/config.json", |config| config["text_config"]["hidden_size"] = json!(1u64 << 60));
    place.refuses(&["base", "inspect", "base"], &["config.json"]);
    place.write("base/config.json", "{");
    place.refuses(&["base", "inspect", "base"], &["config.json"]);
}

#[test]
fn bases_that_are_not_there() {
    let place = place();
    place.refuses_with_hint(&["base", "inspect", "janus-nowhere"], &["janus-nowhere"]);
    place.refuses_with_hint(&["base", "inspect", "nobody/janus-nowhere"], &["nobody/janus-nowhere"]);
    place.refuses_with_hint(&["base", "fetch", "not a name"], &["not a name"]);
    place.refuses_with_hint(&["base", "inspect", "../../x"], &["../../x"]);
    fs_err::create_dir(place.path("void")).unwrap();
    place.refuses_with_hint(&["base", "inspect", "void"], &["void"]);
    train_refuses(&["base.path=absent/folder/of/three"], &["absent/folder/of/three"]);
    place.refuses_with_hint(
        &["base", "init", "--shape", "janus-tinny", "--out", "new"],
        &["there is no shape `janus-tinny`", "did you mean `janus-tiny`?"],
    );
    place.refuses_with_hint(&["base", "inspect", "init:janus-tinny"], &["`janus-tinny` is unknown", "`janus-tiny`"]);
    place.refuses_with_hint(&["base", "inspect", "init:janus-tiny?sed=1"], &["init:janus-tiny?sed=1"]);
}

/// The run folder of a training run over the base, made once.
fn adapter() -> &'static Tree {
    static ADAPTER: OnceLock<Tree> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let place = place();
        let targets = r#"adapter.targets=["decoder", "vision", "aligner"]"#;
        place.janus(&["train", "recipe.toml", targets, "train.steps=1"]).expect_success();
        tree(&place.path("run"))
    })
}

fn place_with_adapter() -> Workplace {
    let place = place();
    plant(adapter(), &place.path("run"));
    place.write("picture.png", picture(40, 40, 1));
    place
}

const WEIGHTS: &str = "run/adapter_model.safetensors";
const A: &str = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight";

/// Commands that read the adapter and must all refuse it alike.
const READERS: [&[&str]; 4] = [
    &["understand", "--base", "base", "--adapter", "run", "--image", "picture.png", "What?"],
    &["generate", "--base", "base", "--adapter", "run", "A part", "--out", "drawn.png"],
    &["merge", "--base", "base", "--adapter", "run", "--out", "deep/merged"],
    &["eval", "recipe.toml", "data.0.eval=rows.parquet", "--adapter", "run"],
];

/// Replaces tensors of the adapter (`None` takes one out) and sees every command refuse it.
#[track_caller]
fn refuses_changed(change: &[(&str, Option<Tensor>)], said: &[&str]) {
    let place = place_with_adapter();
    let mut tensors = candle_core::safetensors::load(place.path(WEIGHTS), &Device::Cpu).unwrap();
    for (name, tensor) in change {
        match tensor {
            Some(tensor) => tensors.insert((*name).to_owned(), tensor.clone()),
            None => tensors.remove(*name),
        };
    }
    place.write(WEIGHTS, safetensors::serialize(tensors, None).unwrap());
    for command in READERS {
        place.refuses_with_hint(command, said);
    }
    place.refuses_with_hint(&["adapter", "inspect", "run", "--base", "base"], said);
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn an_adapter_whose_tensors_do_not_fit() {
    refuses_changed(&[(A, Some(zeros(&[2, 47])))], &["adapter `run`", A, "[2, 47]", "[2, 48]"]);
    refuses_changed(&[(B, Some(zeros(&[48, 3])))], &[B, "[48, 3]", "[48, 2]"]);
    refuses_changed(&[(B, None)], &[B]);
    refuses_changed(&[(A, None), (B, None)], &[A, B]);
    let left = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight";
    refuses_changed(&[(left, Some(zeros(&[2, 48])))], &[left]);
    refuses_changed(&[("extra", Some(zeros(&[1])))], &["`extra`"]);
    for value in [f32::NAN, f32::INFINITY] {
        let tensor = Tensor::full(value, (2, 48), &Device::Cpu).unwrap();
        refuses_changed(&[(A, Some(tensor))], &[A]);
    }
}

#[test]
fn an_adapter_of_another_base() {
    let place = place_with_adapter();
    let arguments = ["base", "init", "--shape", "janus-tiny", "--seed", "4", "--dtype", "f32", "--out", "other"];
    place.janus(&arguments).expect_success();
    fs_err::remove_dir_all(place.path("base")).unwrap();
    fs_err::rename(place.path("other"), place.path("base")).unwrap();
    for command in READERS {
        let done = place.refuses_with_hint(command, &["fingerprint"]);
        let note: Value = serde_json::from_slice(&place.read("run/janus_adapter.json")).unwrap();
        let trained = note.to_string();
        let named = done.stderr.split(['`', ' ', '\n', ',']).filter(|word| word.len() >= 16);
        assert!(named.into_iter().any(|word| trained.contains(word)), "the fingerprint is not told: {}", done.stderr);
    }
    place.refuses_with_hint(&["adapter", "inspect", "run", "--base", "base"], &["fingerprint"]);
}

#[test]
fn an_adapter_without_a_fingerprint_is_a_warning() {
    let place = place_with_adapter();
    fs_err::remove_file(place.path("run/janus_adapter.json")).unwrap();
    let done = place.janus(READERS[0]).expect_success();
    assert!(done.stderr.contains("warning: `run` does not say which base it was trained on"), "{}", done.stderr);
}

#[test]
fn adapter_folders_that_are_none() {
    let place = place_with_adapter();
    for folder in ["absent", "base", "picture.png"] {
        let arguments = ["understand", "--base", "base", "--adapter", folder, "What?"];
        place.refuses_with_hint(&arguments, &[folder]);
    }
    let understand = |adapter: &'static str| ["understand", "--base", "base", "--adapter", adapter, "What?"];
    place.refuses_with_hint(&understand("run:nan"), &["run:nan"]);
    place.refuses_with_hint(&understand("run:inf"), &["run:inf"]);
    let whole = place.read(WEIGHTS);
    let (header, values) = split(&whole);
    let mut lying = header.clone();
    lying[A]["data_offsets"] = json!([0, u64::MAX]);
    for bytes in [&whole[..whole.len() / 2], &whole[..100], b"", &join(&lying, values)] {
        place.write(WEIGHTS, bytes);
        place.refuses(&understand("run"), &["adapter_model.safetensors"]);
    }
    place.write(WEIGHTS, &whole);
    let config = place.read("run/adapter_config.json");
    for (key, value, named) in [
        ("use_dora", json!(true), "use_dora"),
        ("use_rslora", json!(true), "use_rslora"),
        ("peft_type", json!("IA3"), "IA3"),
        ("r", json!(0), "`r`"),
        ("r", json!(3), "[3, 48]"),
        ("lora_alpha", json!("much"), "lora_alpha"),
        ("bias", json!("all"), "bias"),
        ("an_unknown_field", json!({ "x": 1 }), "an_unknown_field"),
    ] {
        place.write("run/adapter_config.json", &config);
        place.edit_json("run/adapter_config.json", |config| config[key] = value);
        for command in READERS {
            place.refuses(command, &[named]);
        }
    }
    place.write("run/adapter_config.json", "[1, 2");
    place.refuses(&understand("run"), &["adapter_config.json"]);
    place.write("run/adapter_config.json", &config);
    place.write("run/janus_adapter.json", "{\"version\": \"x\"}");
    place.refuses(&understand("run"), &["janus_adapter.json"]);
}

fn whole_numbers(rows: usize, values: &[i64]) -> Tensor {
    Tensor::from_vec(values.to_vec(), (rows, values.len() / rows), &Device::Cpu).unwrap()
}

/// Gives these tensors to `janus probe`, which refuses them.
#[track_caller]
fn probe_refuses(place: &Workplace, input: &[(&str, Tensor)], more: &[&str], said: &[&str], hinted: bool) {
    let tensors: Vec<(&str, Tensor)> = input.to_vec();
    place.write("in.safetensors", safetensors::serialize(tensors, None).unwrap());
    let mut arguments =
        vec!["probe", "--base", "base", "--input", "in.safetensors", "--output", "deep/out.safetensors"];
    arguments.extend(more);
    if hinted {
        place.refuses_with_hint(&arguments, said);
    } else {
        place.refuses(&arguments, said);
    }
}

#[test]
fn probe_with_ids_out_of_range() {
    let place = place();
    let ids = whole_numbers(2, &[256, 65, 66, 256, 67, 68]);
    for id in [400, -1, i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 65] {
        let bad = whole_numbers(2, &[256, 65, 66, 256, 67, id]);
        let value = id.to_string();
        let said = [value.as_str(), "row 1, position 2"];
        probe_refuses(&place, &[("input_ids", bad.clone())], &[], &said, true);
        if id != 400 {
            let said = ["`image_tokens`", value.as_str()];
            if u32::try_from(id).is_err() {
                probe_refuses(&place, &[("input_ids", ids.clone()), ("image_tokens", bad.clone())], &[], &said, true);
            }
        }
        let said = ["`labels`", value.as_str(), "row 1, position 2"];
        probe_refuses(&place, &[("input_ids", ids.clone()), ("labels", bad)], &[], &said, true);
    }
    let codes = whole_numbers(2, &[1, 2, 3, 64]);
    probe_refuses(&place, &[("input_ids", ids.clone()), ("image_tokens", codes)], &[], &["64", "row 1"], true);
    let label = whole_numbers(2, &[-100, -99, 1, -100, 1, 1]);
    probe_refuses(
        &place,
        &[("input_ids", ids), ("labels", label)],
        &[],
        &["`labels`", "-99", "row 0, position 1"],
        true,
    );
}

#[test]
fn probe_with_tensors_of_another_form() {
    let place = place();
    let ids = whole_numbers(1, &[256, 65, 66, 67]);
    let with = |name: &'static str, tensor: Tensor| vec![("input_ids", ids.clone()), (name, tensor)];
    probe_refuses(&place, &[], &[], &["has no tensor `input_ids`"], true);
    let narrow = ids.to_dtype(DType::U32).unwrap();
    probe_refuses(&place, &[("input_ids", narrow)], &[], &["`input_ids`", "U32", "I64"], false);
    probe_refuses(&place, &[("input_ids", ids.flatten_all().unwrap())], &[], &["`input_ids`", "[4]"], false);
    let empty = Tensor::zeros((0, 4), DType::I64, &Device::Cpu).unwrap();
    probe_refuses(&place, &[("input_ids", empty)], &[], &["`input_ids`", "[0, 4]"], false);
    let mask = whole_numbers(1, &[1, 1, 1]);
    probe_refuses(&place, &with("attention_mask", mask), &[], &["`attention_mask`", "[1, 3]", "[1, 4]"], false);
    let mask = whole_numbers(1, &[1, 1, 2, 1]);
    probe_refuses(&place, &with("attention_mask", mask), &[], &["`attention_mask`", "2", "position 2"], false);
    probe_refuses(&place, &with("labels", zeros(&[1, 4])), &[], &["`labels`", "F32"], false);
    probe_refuses(&place, &with("pixels", zeros(&[1])), &[], &["`pixels`, which is none of the inputs"], true);
    let pixels = zeros(&[1, 3, 32, 32]);
    let wide = pixels.to_dtype(DType::F64).unwrap();
    probe_refuses(&place, &with("pixel_values", wide), &[], &["`pixel_values`", "F64", "F32"], false);
    probe_refuses(&place, &with("pixel_values", zeros(&[3, 32, 32])), &[], &["`pixel_values`", "[3, 32, 32]"], false);
    probe_refuses(&place, &with("pixel_values", zeros(&[1, 3, 16, 16])), &[], &["[1, 3, 16, 16]"], false);
    probe_refuses(&place, &with("pixel_values", zeros(&[1, 1, 32, 32])), &[], &["[1, 1, 32, 32]"], false);
    probe_refuses(&place, &with("pixel_values", pixels.clone()), &[], &["0 image placeholders", "16"], false);
    let placeholders = whole_numbers(1, &[261; 16]);
    probe_refuses(&place, &[("input_ids", placeholders)], &[], &["16 image placeholders"], false);
    let codes = whole_numbers(2, &[1, 2, 3, 4]);
    probe_refuses(&place, &with("image_tokens", codes), &[], &["`image_tokens`", "[2, 2]"], false);
    let input = [
        ("input_ids", ids.clone()),
        ("image_tokens", whole_numbers(1, &[1, 2])),
        ("attention_mask", whole_numbers(1, &[0, 0, 0, 0])),
    ];
    probe_refuses(&place, &input, &[], &["row 0 of `attention_mask` is all zeros"], false);
}

#[test]
fn probe_files_and_gradients() {
    let place = place_with_adapter();
    let arguments = ["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"];
    place.refuses(&arguments, &["in.safetensors"]);
    for bytes in [&b""[..], b"no tensors", &[0xff; 64], &(1u64 << 40).to_le_bytes()] {
        place.write("in.safetensors", bytes);
        place.refuses(&arguments, &["in.safetensors"]);
    }
    let ids = [("input_ids", whole_numbers(1, &[256, 65, 66]))];
    probe_refuses(&place, &ids, &["--gradients"], &["`--gradients` needs one adapter, 0 are given"], true);
    let two = ["--gradients", "--adapter", "run", "--adapter", "run"];
    probe_refuses(&place, &ids, &two, &["needs one adapter, 2 are given"], true);
    probe_refuses(&place, &ids, &["--gradients", "--adapter", "run"], &["gradients need a loss"], false);
}

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
            place.refuses_with_hint(&arguments, &[said]);
        }
    }
}

#[test]
fn nothing_is_left_of_an_output_that_is_not_made() {
    let place = place_with_adapter();
    let convert = |base: &'static str| ["base", "convert", base, "--layout", "native", "--out", "deep/er/out"];
    place.refuses_with_hint(&convert("absent-base"), &["absent-base"]);
    fs_err::create_dir(place.path("void")).unwrap();
    place.refuses_with_hint(&convert("void"), &["void"]);
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
        place.refuses_with_hint(&["understand", "--base", "base", "--image", picture, "What?"], &[said]);
    }
    place.refuses(&["understand", "--base", "base", ""], &["empty"]);
    place.refuses_with_hint(&["understand", "--base", "base", "<image_placeholder> what?"], &["image_placeholder"]);
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
    place.refuses_with_hint(&["understand", "--base", "base", "What?", "--dtype", "f16"], &["f16"]);
    train_refuses(&["base.dtype=f16"], &["unknown value `f16` for `base.dtype`"]);
    place.refuses(&["train", "recipe.toml", "base.dtype=q8_0"], &["not supported"]);
    place.refuses(&["base", "convert", "base", "--layout", "original", "--out", "x"], &["native, deepseek"]);
    place.refuses_with_hint(&["merge", "--base", "base", "--out", "x"], &["no adapter to merge"]);
    place.refuses_with_hint(&["eval", "recipe.toml"], &["`recipe.toml` names no rows to evaluate"]);
    let generate =
        |more: [&'static str; 4]| ["generate", "--base", "base", "A part", more[0], more[1], more[2], more[3]];
    place.refuses_with_hint(&generate(["--out", "x.jpg", "--seed", "1"]), &["x.jpg"]);
    place.refuses_with_hint(&generate(["--out", "x.png", "--guidance", "nan"]), &["guidance"]);
    place.refuses_with_hint(&generate(["--out", "x.png", "--temperature=-1", "--seed=1"]), &["temperature"]);
    place.refuses(&generate(["--out", "x.png", "--count", "0"]), &["--count"]);
    place.refuses(&generate(["--out", "x.png", "--count", "65"]), &["--count"]);
    place.refuses(&["understand", "--base", "base", "What?", "--max-new-tokens", "0"], &["--max-new-tokens"]);
    for temperature in ["nan", "inf", "-0.5"] {
        let flag = format!("--temperature={temperature}");
        place.refuses_with_hint(&["understand", "--base", "base", "What?", &flag], &["temperature"]);
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
    place.refuses_with_hint(&["recipe", "check", "recipe.toml"], &["recipe.toml"]);
    place.refuses(&["recipe", "list", "absent"], &["absent"]);
    place.refuses(&["train", "recipe.toml", "no-equals-sign"], &["recipe.toml"]);
    train_refuses(&["no-equals-sign"], &["an override is written `key=value`, got `no-equals-sign`"]);
    self::place().refuses(&["train", "recipe.toml", "data.7.train=x"], &["the recipe has no `data.7`"]);
}

#[test]
fn help_of_every_command() {
    let place = Workplace::empty();
    let commands: [&[&str]; 25] = [
        &[],
        &["train"],
        &["eval"],
        &["understand"],
        &["generate"],
        &["merge"],
        &["probe"],
        &["adapter"],
        &["adapter", "inspect"],
        &["base"],
        &["base", "inspect"],
        &["base", "fetch"],
        &["base", "convert"],
        &["base", "init"],
        &["data"],
        &["data", "check"],
        &["data", "stats"],
        &["data", "preview"],
        &["bench"],
        &["bench", "train"],
        &["bench", "understand"],
        &["bench", "generate"],
        &["recipe"],
        &["recipe", "list"],
        &["recipe", "check"],
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
const COMPUTING: [&[&str]; 6] = [
    &["train", "recipe.toml"],
    &["eval", "recipe.toml", "data.0.eval=rows.parquet"],
    &["understand", "--base", "base", "Well?"],
    &["generate", "--base", "base", "a part", "--out", "part.png"],
    &["merge", "--base", "base", "--adapter", "adapter", "--out", "merged"],
    &["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"],
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
            place().refuses_with_hint(&[command, &["--device", device]].concat(), &[told, &hint]);
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
