//! Bases.

use std::io::Write;

use serde_json::json;

use super::*;

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
            let done = place.refuses(command, &["model.safetensors"]);
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
            place.refuses(command, &["model.safetensors.index.json", shard]);
        }
    }
    let map: serde_json::Map<_, _> = names.iter().map(|name| ((*name).clone(), json!("a.safetensors"))).collect();
    place.write("base/model.safetensors.index.json", json!({ "metadata": {}, "weight_map": map }).to_string());
    place.refuses(&["base", "inspect", "base"], &["a.safetensors"]);
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
            place.refuses(command, &["pytorch_model.bin", named]);
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
        place.refuses(command, &["tokenizer.json"]);
    }
    place.write("base/tokenizer.json", "{\"model\": 3}");
    place.refuses(&["base", "inspect", "base"], &["tokenizer.json"]);
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
    place.refuses(&["base", "inspect", "janus-nowhere"], &["janus-nowhere"]);
    place.refuses(&["base", "inspect", "nobody/janus-nowhere"], &["nobody/janus-nowhere"]);
    place.refuses(&["base", "fetch", "not a name"], &["not a name"]);
    place.refuses(&["base", "inspect", "../../x"], &["../../x"]);
    fs_err::create_dir(place.path("void")).unwrap();
    place.refuses(&["base", "inspect", "void"], &["void"]);
    train_refuses(&["base.path=absent/folder/of/three"], &["absent/folder/of/three"]);
    place.refuses(
        &["base", "init", "--shape", "janus-tinny", "--out", "new"],
        &["there is no shape `janus-tinny`", "did you mean `janus-tiny`?"],
    );
    place.refuses(&["base", "inspect", "init:janus-tinny"], &["`janus-tinny` is unknown", "`init:janus-tiny`"]);
    place.refuses(&["base", "inspect", "init:janus-tiny?sed=1"], &["init:janus-tiny?sed=1"]);
}

#[test]
fn a_name_that_is_nearly_a_base_leads_to_one_with_trained_weights() {
    let place = Workplace::empty();
    for (name, meant) in [
        ("janus_nanno", "`janus-nano`"),
        ("janus-tiny", "`janus-nano`"),
        ("Janus-Pro-1B", "`deepseek-ai/Janus-Pro-1B`"),
        ("janus-pro-7b", "`deepseek-ai/Janus-Pro-7B`"),
        ("Janus-1.3B", "`deepseek-ai/Janus-1.3B`"),
        ("deepseek-ai/janus-pro-1b", "`deepseek-ai/Janus-Pro-1B`"),
    ] {
        let done = place.refuses(&["base", "inspect", name], &[&format!("no base `{name}`"), meant]);
        assert!(!done.stderr.contains("init:"), "{}", done.stderr);
    }
    for name in ["nobody/Janus-Pro-1B", "deepseek/janus-pro-1b", "models/Janus-Pro-1B/"] {
        place.refuses(&["base", "inspect", name], &[name, "did you mean `deepseek-ai/Janus-Pro-1B`?"]);
    }
}

#[test]
fn random_weights_are_said_to_be_random() {
    let place = Workplace::with_base();
    let said = "has random weights";
    for arguments in [
        &["understand", "--base", "init:janus-tiny", "What?", "--max-new-tokens", "1"][..],
        &["generate", "--base", "init:janus-tiny", "a", "--out", "a.png"],
        &["base", "inspect", "init:janus-tiny"],
    ] {
        let done = place.janus(arguments).expect_success();
        assert!(done.stderr.lines().next().unwrap_or_default().contains(said), "{arguments:?}: {}", done.stderr);
    }
    let known = place.janus(&["understand", "--base", "base", "What?", "--max-new-tokens", "1"]).expect_success();
    assert!(!known.stderr.contains(said), "{}", known.stderr);
}
