//! Makes the seeds of the fuzz targets: `cargo run --release --example fuzz_seeds` writes them to `tests/fuzz/seeds`.
//! Those of `image_decode` are the pictures in `tests/golden/images`.
#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::{Checkpoint, WriteOptions, convert_checkpoint, init_checkpoint};
use janus_core::config::{JanusConfig, Layout};
use janus_lora::adapter::{Adapter, AdapterSpec, BaseNote, Note};
use janus_lora::dynamic::Paths;
use janus_lora::heads::HeadKind;
use janus_tests::rows::{conversations, image_lists, images, optional_texts, picture, texts, write_table};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What parts a seed of several files, as the targets' own library has it.
const BETWEEN: &str = "\n%%\n";

fn main() {
    let into = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    recipes(&into.join("recipe"));
    adapters(&into.join("adapter_folder"));
    bases(&into.join("safetensors_header"), &into.join("shard_index"));
    pickles(&into.join("torch_bin"));
    tables(&into.join("parquet_rows"));
    chats(&into.join("chat_template"));
    tokenizers(&into.join("tokenizer"));
    networks(&into.join("network_file"));
    runs(&into.join("run_folder"));
    hubs(&into.join("hub_answers"));
}

/// A base of two files, as a hub answers to each request for it: one in large-file storage, and one in chunks that nobody counts.
fn hubs(into: &Path) {
    const GIT: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
    const SHA256: &str = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let listing = r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]}"#;
    let head = |more: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{more}\r\n");
    let config = head(&format!("ETag: \"{GIT}\"\r\nContent-Length: 2\r\n"));
    let stored = format!(
        "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: http://127.0.0.1:9/x\r\nX-Linked-Etag: \"{SHA256}\"\r\nX-Linked-Size: 1\r\nContent-Length: 0\r\n\r\n"
    );
    write(into, "stored", [listing, &config, "{}", &stored, "x"].join(BETWEEN));
    let chunked = head(&format!("ETag: \"{SHA256}\"\r\nTransfer-Encoding: chunked\r\n"));
    let part = head("Content-Range: bytes 0-0/1\r\nContent-Length: 1\r\n") + "x";
    write(into, "chunked", [listing, &config, "{}", &chunked, &format!("{chunked}1\r\nx\r\n0\r\n\r\n")].join(BETWEEN));
    write(into, "part", [listing, &config, "{}", &chunked, &part].join(BETWEEN));
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs_err::create_dir_all(folder).unwrap();
    fs_err::write(folder.join(name), bytes).unwrap();
}

fn recipes(into: &Path) {
    for entry in fs_err::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs_err::read_to_string(&path).unwrap();
        let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let overrides = [uncommented.join("\n"), "train.learning_rate=1e-4".into(), "data.0.train=x.parquet".into()];
        write(into, path.file_name().unwrap().to_str().unwrap(), overrides.join(BETWEEN));
    }
}

/// Small vocabularies with the special tokens that a Janus needs, one with steps before and behind, and a text for each.
fn tokenizers(into: &Path) {
    let special = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜▁pad▁｜>",
        "<image_placeholder>",
        "<begin_of_image>",
        "<end_of_image>",
    ];
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| serde_json::json!({ "id": id + 8, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false }))
        .collect();
    let mut file = serde_json::json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null, "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": { "type": "BPE", "dropout": null, "unk_token": "?", "byte_fallback": false, "vocab": { "?": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "c": 5 }, "merges": [["a", "b"]] },
    });
    write(into, "bytes", format!("{file}{BETWEEN}ab c <image_placeholder>"));
    file["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [
        { "type": "NFC" }, { "type": "Replace", "pattern": { "Regex": " +" }, "content": "▁" }, { "type": "Prepend", "prepend": "▁" },
    ] });
    file["pre_tokenizer"] = serde_json::json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "\\p{L}+" }, "behavior": "Isolated", "invert": false }, { "type": "Digits", "individual_digits": true },
    ] });
    file["decoder"] = serde_json::json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] });
    write(into, "steps", format!("{file}{BETWEEN}ab 12 cab"));
}

/// One tensor of each network, in either form of file; the first byte says which.
fn networks(into: &Path) {
    for (name, first, tensor) in [("lpips", 2u8, "net.slice1.0.weight"), ("inception", 3, "Conv2d_1a_3x3.conv.weight")]
    {
        let tensors = [(tensor, Tensor::zeros((4, 3, 3, 3), DType::F32, &Device::Cpu).unwrap())];
        write(into, name, [&[first][..], &safetensors::serialize(tensors, None).unwrap()].concat());
    }
    // Made before.
    let archive = fs_err::read(into.with_file_name("torch_bin").join("archive")).unwrap();
    for (name, first) in [("lpips-torch", 0u8), ("inception-torch", 1)] {
        write(into, name, [&[first][..], &archive].concat());
    }
}

/// Metrics of two steps and an evaluation, with what was run.
fn runs(into: &Path) {
    let metrics = r#"{"step":1,"epoch":0.5,"loss":2.5,"losses":{"parts":2.5},"lr":0.001,"grad_norm":1.0,"tokens":12,"rss_bytes":1000}
{"step":2,"epoch":1.0,"loss":1.5,"losses":{"parts":1.5},"lr":0.001,"grad_norm":0.5,"tokens":12,"rss_bytes":1000}
{"step":2,"eval":{"parts":{"loss":1.25}},"samples":[{"table":"parts","prompt":"What?","expected":"pit","answer":"pit"}]}"#;
    let facts = r#"{"base":"janus-nano","version":"0.1.0","steps":2}"#;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let recipe = fs_err::read_to_string(folder.join("quickstart.toml")).unwrap();
    let curve = r#"{"steps":[1,2],"low":[1.0,1.0],"high":[3.0,3.0]}"#;
    write(into, "two-steps", [metrics, facts, &recipe, curve].join(BETWEEN));
    write(into, "bare", [metrics, "", "", ""].join(BETWEEN));
}

/// The header of a safetensors file, its JSON alone.
fn header(path: &Path) -> String {
    let bytes = fs_err::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    String::from_utf8(bytes[8..8 + length].to_vec()).unwrap().trim_end().to_owned()
}

fn adapters(into: &Path) {
    let base = JanusConfig::shape("janus-tiny").unwrap();
    let read = |_: &str| Ok(Tensor::zeros(base.text.hidden_size, DType::F32, &Device::Cpu)?);
    let saved = ["language_model.norm".to_owned()];
    for (name, saved, has_extras) in [("pairs", &[][..], true), ("saved", &saved[..], true), ("plain", &[][..], false)]
    {
        let sites = ["model.language_model.layers.0.self_attn.q_proj", "model.vision_model.embeddings.patch_embedding"];
        let labels = vec!["pit".into(), "scratch".into()];
        let heads = [("defects".to_owned(), HeadKind::Classify { labels })];
        let spec = AdapterSpec {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            sites: sites.map(Arc::from).to_vec(),
            modules_to_save: saved.to_vec(),
            dynamic: has_extras.then_some(Paths { vision: true, generation: true }),
            heads: heads.into_iter().filter(|_| has_extras).collect(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
        };
        let mut adapter = Adapter::new(&base, false, &spec, 1, &read).unwrap();
        let mut note = Note::new();
        note.base = Some(BaseNote { name: Some("janus-tiny".into()), fingerprint: "ab12".into() });
        adapter.note = Some(note);
        let folder = tempfile::tempdir().unwrap();
        adapter.write(folder.path()).unwrap();
        let text = |name: &str| fs_err::read_to_string(folder.path().join(name)).unwrap();
        let weights = folder.path().join("adapter_model.safetensors");
        let before = [text("adapter_config.json"), text("janus_adapter.json"), String::new()].join(BETWEEN);
        write(into, name, format!("{before}{}", header(&weights)));
        if !has_extras {
            // A rank that no site has.
            let claimed = before.replacen(r#""rank_pattern": {}"#, r#""rank_pattern": {"nowhere": 1048576}"#, 1);
            write(into, "plain-claimed", format!("{claimed}{}", header(&weights)));
            continue;
        }
        let extras = header(&folder.path().join("janus_extras.safetensors"));
        write(into, &format!("{name}-extras"), format!("{before}{}{BETWEEN}{extras}", header(&weights)));
        let cut = &fs_err::read(&weights).unwrap()[..2048];
        write(into, &format!("{name}-cut"), [before.as_bytes(), cut].concat());
    }
}

fn bases(one_file: &Path, shards: &Path) {
    let (whole, sharded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = JanusConfig::shape("janus-tiny").unwrap();
    init_checkpoint(&base, 1, DType::BF16, whole.path(), Layout::Native, &mut |_, _| {}).unwrap();
    write(one_file, "whole", header(&whole.path().join("model.safetensors")));
    let head = r#"{"dtype":"BF16","shape":[400,48],"data_offsets":[0,38400]}"#;
    let empty = r#"{"dtype":"F16","shape":[0],"data_offsets":[38400,38400]}"#;
    let few = format!(r#"{{"__metadata__":{{"format":"pt"}},"lm_head.weight":{head},"empty":{empty}}}"#);
    write(one_file, "few", &few);
    write(one_file, "raw", [&(few.len() as u64).to_le_bytes()[..], few.as_bytes(), &[0; 64]].concat());

    let checkpoint = Checkpoint::open(whole.path()).unwrap();
    let mut options = WriteOptions::new(Layout::Native);
    options.max_shard_bytes = 400_000;
    convert_checkpoint(&checkpoint, &options, sharded.path(), &mut |_, _| {}).unwrap();
    let index = fs_err::read(sharded.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    write(shards, "whole", index.to_string());
    for shard in ["link.safetensors", "sub/inside.safetensors", "../outside.safetensors", "config.json"] {
        let one = serde_json::json!({ "weight_map": { "lm_head.weight": shard } });
        write(shards, &shard.replace(['/', '.'], "_"), one.to_string());
    }
}

/// A state dict of two tensors in the opcodes that torch writes (protocol 2), for the target's own archive, a call, and an
/// archive of an empty dict.
fn pickles(into: &Path) {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |name: &str, kind: &str, key: &str, elements: u8, sides: &[u8]| {
        let class = format!("ctorch\n{kind}\n").into_bytes();
        let storage = [text("storage"), class, text(key), text("cpu"), vec![b'K', elements]].concat();
        let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        let rest = b"\x89ccollections\nOrderedDict\n)RtR".to_vec();
        [text(name), rebuild, storage, b"tQK\x00".to_vec(), sides.to_vec(), rest].concat()
    };
    let matrix = tensor("a.weight", "FloatStorage", "1", 16, b"(K\x04K\x02t(K\x02K\x01t");
    let vector = tensor("b.bias", "BFloat16Storage", "2", 8, b"K\x08\x85K\x01\x85");
    write(into, "two", [&b"P\x80\x02}q\x00("[..], &matrix, &vector, b"u."].concat());
    write(into, "call", b"Pcos\nsystem\n(X\x02\x00\x00\x00lstR.");
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", &b"\x80\x02}."[..]), ("a/byteorder", b"little"), ("a/data/0", &[0; 8])] {
        archive.start_file(name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    write(into, "archive", archive.finish().unwrap().into_inner());
}

fn tables(into: &Path) {
    fs_err::create_dir_all(into).unwrap();
    let pictures: Vec<Vec<u8>> = (0..3).map(|seed| picture(8, 6, seed)).collect();
    let some: Vec<Option<&Vec<u8>>> = pictures.iter().map(Some).collect();
    let turns = [vec![("user", "What?"), ("assistant", "A part")], vec![("user", "And?")], vec![]];
    let columns = vec![
        ("image", images(&some)),
        ("images", image_lists(&[pictures.clone(), vec![pictures[0].clone()], vec![]])),
        ("question", optional_texts(&[Some("What is it?"), None, Some(" ")])),
        ("messages", conversations(&turns)),
    ];
    write_table(&into.join("all"), columns, 2);
    write_table(&into.join("texts"), vec![("question", texts(["one", "two", "two", "three"]))], 4);
    let paths = ["link.png", "../outside.png", "none.png", "/etc/hostname"];
    write_table(&into.join("paths"), vec![("image", texts(paths))], 4);
}

fn chats(into: &Path) {
    write(into, "plain", "user 1 What is it?\nassistant 0 A part.\nuser 0 Sure?\nassistant 0 Yes.");
    let placed = "<image_placeholder> and\\n<image_placeholder>";
    write(into, "system", format!("system 0 Be brief.\nuser 2 {placed}\nassistant 0 Two."));
    write(into, "tokens", "user 0 <|Assistant|>: <begin_of_image><｜end▁of▁sentence｜>\nassistant 0 <|User|>");
}
