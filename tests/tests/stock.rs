//! What the program keeps: what a dry run leaves of it, its limit, and `janus cache`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use janus_tests::hub::{Hub, Manners};
use janus_tests::program::{Done, command, janus_with, run};
use janus_tests::rows::{images, picture, texts, write_table};
use janus_tests::tiny::{Workplace, base};
use serde_json::Value;

/// Every file below a folder, with its size.
fn files(folder: &Path) -> BTreeMap<String, u64> {
    let (mut found, mut open) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(next) = open.pop() {
        for entry in fs_err::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, path.metadata().unwrap().len());
            }
        }
    }
    found
}

fn recipe(base: &str, data: &str) -> String {
    format!(
        "[base]\npath = \"{base}\"\ndtype = \"f32\"\n[adapter]\nrank = 2\ntargets = [\"decoder\"]\n{data}\n\
         [train]\nsteps = 2\nbatch_size = 2\n[output]\ndir = \"run\"\n"
    )
}

fn table(task: &str, train: &str, more: &str) -> String {
    format!("[[data]]\nname = \"{task}\"\ntask = \"{task}\"\ntrain = \"{train}\"\n{more}\n")
}

const DRAWN: &str = "synth:inspection?rows=24&seed=4&size=32";

/// What a run will be, without what depends on the moment.
fn plan(done: Done) -> Vec<Value> {
    let plan = done.expect_success().json();
    ["trainable_parameters", "total_parameters", "rows", "steps"].map(|key| plan[key].clone()).to_vec()
}

#[test]
fn a_dry_run_makes_no_base_and_no_table_that_stays() {
    for base in ["init:janus-tiny?seed=8", "init:janus-small?seed=8&vocabulary=inspection", "janus-nano"] {
        let place = Workplace::empty();
        fs_err::create_dir(place.path("tmp")).unwrap();
        let all = [
            table("understand", DRAWN, ""),
            table("generate", DRAWN, "columns = { prompt = \"caption\" }"),
            table("classify", DRAWN, &format!("eval = \"{DRAWN}&split=eval\"")),
        ];
        place.write("recipe.toml", recipe(base, &all.concat()));
        let before = files(place.folder());
        let temporary = place.path("tmp");
        let environment = [("TMPDIR", temporary.to_str().unwrap())];
        let dry = janus_with(place.folder(), &["train", "recipe.toml", "--dry-run", "--json"], &environment);
        let planned = plan(dry);
        assert_eq!(files(place.folder()), before, "{base}");
        assert!(!place.path("cache").exists() && !place.path("run").exists(), "{base}");
        // As it is when everything is there.
        place.janus(&["data", "check", "recipe.toml"]).expect_success();
        let kept = files(&place.path("cache"));
        assert!(kept.keys().any(|name| name.starts_with("data/")), "{kept:?}");
        assert_eq!(plan(place.janus(&["train", "recipe.toml", "--dry-run", "--json"])), planned, "{base}");
        assert_eq!(files(&place.path("cache")), kept);
    }
}

/// A hub with a base and a table, and the environment that leads to it.
fn hub(place: &Workplace) -> (Hub, Vec<(String, String)>) {
    let pictures: Vec<_> = (0..6).map(|i| Some(picture(40, 28, i))).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..6).map(|i| format!("Which part is number {i}?")))),
        ("answer", texts((0..6).map(|i| format!("part {i}")))),
        ("label", texts((0..6).map(|i| format!("kind {}", i % 3)))),
    ];
    write_table(&place.path("rows.parquet"), columns, 3);
    let mut all: BTreeMap<String, Vec<u8>> =
        base().iter().map(|(name, bytes)| (name.to_str().unwrap().to_owned(), bytes.clone().unwrap())).collect();
    all.insert("rows.parquet".into(), place.read("rows.parquet"));
    let hub = Hub::start(all, Manners { knows_ranges: true, ..Manners::default() });
    let home = place.path("hf").to_str().unwrap().to_owned();
    let environment = [("HF_ENDPOINT", hub.endpoint()), ("HF_HOME", home), ("HF_HUB_OFFLINE", "0".to_owned())];
    (hub, environment.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

fn with(place: &Workplace, environment: &[(String, String)], arguments: &[&str]) -> Done {
    let mut command = command(place.folder(), arguments);
    command.envs(environment.iter().cloned());
    run(command)
}

#[test]
fn a_dry_run_fetches_configurations_and_the_ends_of_tables() {
    let place = Workplace::empty();
    let (hub, environment) = hub(&place);
    let remote = "hf://datasets/owner/name/rows.parquet";
    for (task, more) in [("understand", ""), ("classify", ""), ("retrieve", "columns = { caption = \"answer\" }")] {
        place.write("far.toml", recipe("owner/name", &table(task, remote, more)));
        place.write("near.toml", recipe("owner/name", &table(task, "rows.parquet", more)));
        for dry in ["far.toml", "near.toml"] {
            let done = with(&place, &environment, &["train", dry, "--dry-run", "--json"]);
            let told = done.stderr.contains("not looked at");
            assert_eq!(told, dry == "far.toml", "{}", done.stderr);
            assert_eq!(plan(done)[2..], [Value::from(6), Value::from(2)], "{task} {dry}");
        }
    }
    let transfers = hub.record().transfers;
    assert!(transfers.contains_key("config.json") && transfers.contains_key("tokenizer.json"), "{transfers:?}");
    assert!(!transfers.contains_key("model.safetensors") && !transfers.contains_key("rows.parquet"), "{transfers:?}");
    let there = files(&place.path("hf"));
    let weights = base()[Path::new("model.safetensors")].as_ref().unwrap().len() as u64;
    assert!(there.values().all(|bytes| *bytes < weights), "{there:?}");
    assert!(!place.path("cache").exists());

    // With the weights and the rows here the plan is the same, and they are what is looked at.
    place.write("far.toml", recipe("owner/name", &table("understand", remote, "")));
    let planned = plan(with(&place, &environment, &["train", "far.toml", "--dry-run", "--json"]));
    with(&place, &environment, &["train", "far.toml"]).expect_success();
    let again = with(&place, &environment, &["train", "far.toml", "--dry-run", "--json"]);
    assert!(!again.stderr.contains("not looked at"), "{}", again.stderr);
    assert_eq!(plan(again), planned);
}

fn listed(place: &Workplace, environment: &[(String, String)]) -> Value {
    with(place, environment, &["cache", "list", "--json"]).expect_success().json()
}

/// Bytes of a kind, 0 where there are none.
fn bytes_of(list: &Value, kind: &str) -> u64 {
    let kinds = list["kinds"].as_array().unwrap();
    kinds.iter().find(|found| found["kind"] == kind).map_or(0, |found| found["bytes"].as_u64().unwrap())
}

#[test]
fn the_limit_covers_bases_and_drawn_tables() {
    let place = Workplace::with_base();
    let ask = |seed: u32, limit: u64| {
        let name = format!("init:janus-tiny?seed={seed}");
        let environment = [("JANUS_CACHE_LIMIT_BYTES".to_owned(), limit.to_string())];
        with(&place, &environment, &["base", "inspect", &name]).expect_success();
    };
    let seeds = || -> Vec<String> {
        let list = listed(&place, &[]);
        let items = list["items"].as_array().unwrap();
        items.iter().filter(|i| i["kind"] == "bases").map(|i| i["name"].as_str().unwrap().to_owned()).collect()
    };
    ask(1, u64::MAX);
    let one = bytes_of(&listed(&place, &[]), "bases");
    assert!(one > 100_000, "{one}");
    // Two fit. What was used longest ago goes first.
    let limit = one * 5 / 2;
    for seed in [2, 1, 3] {
        std::thread::sleep(Duration::from_millis(20));
        ask(seed, limit);
    }
    let kept = seeds();
    assert!(kept.len() == 2 && kept.iter().all(|name| name.ends_with("seed1") || name.ends_with("seed3")), "{kept:?}");

    let draw = |seed: u32, limit: u64| {
        let spec = format!("synth:inspection?rows=30&seed={seed}&size=64");
        let environment = [("JANUS_CACHE_LIMIT_BYTES".to_owned(), limit.to_string())];
        with(&place, &environment, &["data", "stats", &spec, "--base", "base"]).expect_success();
    };
    draw(1, u64::MAX);
    let table = bytes_of(&listed(&place, &[]), "data");
    // The bases were used before the tables: they go first, and one table is more than is left for it.
    for seed in [2, 3] {
        std::thread::sleep(Duration::from_millis(20));
        draw(seed, table * 3 / 2);
    }
    let list = listed(&place, &[]);
    assert_eq!(bytes_of(&list, "bases"), 0, "{list}");
    assert!(bytes_of(&list, "data") <= table * 3 / 2, "{list}");
    let name = list["items"][0]["name"].as_str().unwrap().to_owned();
    assert!(name.contains("seed3"), "the one that was in use stays: {list}");
}

#[test]
fn a_limit_of_nothing_keeps_nothing_beyond_a_command() {
    let place = Workplace::with_base();
    let nothing = [("JANUS_CACHE_LIMIT_BYTES".to_owned(), "0".to_owned())];
    let ask = |environment: &[(String, String)], arguments: &[&str]| with(&place, environment, arguments);
    let spec = "synth:inspection?rows=8&seed=1&size=64";
    for arguments in [
        &["base", "inspect", "init:janus-tiny?seed=1"][..],
        &["understand", "--base", "janus-nano", "What?", "--max-new-tokens", "2"],
        &["data", "stats", spec, "--base", "base"],
        &["data", "stats", "absent.parquet", "--base", "janus-nano"],
    ] {
        let kept = ask(&[], arguments);
        let before = listed(&place, &[]);
        assert!(before["total_bytes"].as_u64().unwrap() > 0, "{arguments:?}: {before}");
        let again = ask(&nothing, arguments);
        assert_eq!((again.code, &again.stdout), (kept.code, &kept.stdout), "{arguments:?}");
        assert_eq!(listed(&place, &[])["total_bytes"].as_u64(), Some(0), "{arguments:?}");
        // Made and given up by one command.
        assert_eq!(ask(&nothing, arguments).stdout, kept.stdout);
        assert_eq!(listed(&place, &[])["total_bytes"].as_u64(), Some(0), "{arguments:?}");
    }
    // A folder's base leaves its fingerprint; and who only looks takes nothing away.
    let probe = ["understand", "--base", "base", "What?", "--max-new-tokens", "2"];
    ask(&nothing, &probe).expect_success();
    assert_eq!(listed(&place, &[])["total_bytes"].as_u64(), Some(0));
    ask(&[], &["base", "inspect", "init:janus-tiny?seed=1"]).expect_success();
    assert!(listed(&place, &nothing)["total_bytes"].as_u64() > Some(0));
    assert!(listed(&place, &nothing)["total_bytes"].as_u64() > Some(0));
    let told = ask(&nothing, &["cache", "list"]).expect_success().stdout;
    assert!(told.contains("limit  0 B (JANUS_CACHE_LIMIT_BYTES): nothing is kept"), "{told}");
    let told = ask(&[], &["cache", "list"]).expect_success().stdout;
    assert!(told.contains("(by default, without downloads): what was used longest ago goes first"), "{told}");
}

#[test]
fn what_a_run_uses_stays_and_nothing_else_is_touched() {
    let place = Workplace::empty();
    let data = table("understand", DRAWN, "");
    place.write("recipe.toml", recipe("init:janus-tiny?seed=2", &data).replace("steps = 2", "steps = 1000000"));
    let mut training = command(place.folder(), &["train", "recipe.toml"]);
    let mut training =
        training.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !place.path("run/metrics.jsonl").exists() {
        assert!(started.elapsed() < Duration::from_secs(300) && training.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    // Beside it what nobody uses, and what is not the program's.
    place.janus(&["base", "inspect", "init:janus-tiny?seed=3"]).expect_success();
    place.write("cache/bases/notes.txt", "mine");
    place.write("cache/data/mine.parquet", "mine");
    let cleared = place.janus(&["cache", "clear", "--all", "--json"]).expect_success().json();
    let in_use: Vec<&str> = cleared["in_use"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    training.kill().unwrap();
    training.wait().unwrap();
    assert!(in_use.len() == 2 && in_use[0].ends_with("seed2") && in_use[1].starts_with("inspection-"), "{cleared}");
    assert!(cleared["freed_bytes"].as_u64().unwrap() > 100_000, "{cleared}");
    let left = files(&place.path("cache"));
    assert!(left.contains_key("bases/notes.txt") && left.contains_key("data/mine.parquet"), "{left:?}");
    assert!(!left.keys().any(|name| name.contains("seed3")), "{left:?}");

    // The lock died with the run.
    place.janus(&["cache", "clear", "bases", "--older-than", "1"]).expect_success();
    assert!(bytes_of(&listed(&place, &[]), "bases") > 0, "used today");
    let told = place.janus(&["cache", "clear", "bases", "data"]).expect_success().stdout;
    assert!(told.contains("bases: 1 removed"), "{told}");
    assert!(listed(&place, &[])["items"].as_array().unwrap().iter().all(|item| item["kind"] == "hub-bases"));
    assert_eq!(place.read("cache/bases/notes.txt"), b"mine");
    place.refuses(&["cache", "clear"], &["nothing says what to remove"]);
    place.refuses(&["cache", "clear", "--older-than=-1"], &["not a number of days"]);
    place.refuses(&["cache", "clear", "base"], &["base"]);
}

#[test]
fn downloads_are_listed_and_cleared_where_they_are_ours() {
    let place = Workplace::empty();
    let (_hub, environment) = hub(&place);
    with(&place, &environment, &["base", "fetch", "owner/name"]).expect_success();
    // As another program leaves it, without a record.
    fs_err::create_dir_all(place.path("hf/hub/models--other--base/blobs")).unwrap();
    place.write("hf/hub/models--other--base/blobs/0123", "theirs");
    let remote = table("understand", "hf://datasets/owner/name/rows.parquet", "");
    place.write("recipe.toml", recipe("owner/name", &remote));
    with(&place, &environment, &["data", "check", "recipe.toml"]).expect_success();
    let list = listed(&place, &environment);
    let weights: u64 = base().values().flatten().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(bytes_of(&list, "hub-bases"), weights, "{list}");
    assert_eq!(bytes_of(&list, "hub-data"), place.read("rows.parquet").len() as u64, "{list}");
    let cleared = with(&place, &environment, &["cache", "clear", "hub-bases", "--json"]).expect_success().json();
    assert_eq!(cleared["freed_bytes"].as_u64(), Some(weights), "{cleared}");
    assert_eq!(bytes_of(&listed(&place, &environment), "hub-bases"), 0);
    assert_eq!(place.read("hf/hub/models--other--base/blobs/0123"), b"theirs");
    // It comes again.
    with(&place, &environment, &["base", "inspect", "owner/name"]).expect_success();
}

/// Makes every file and folder below read-only and, where these tests run as root, another user's.
#[cfg(unix)]
fn give_away(folder: &Path) {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_symlink() {
            continue;
        }
        let mode = if path.is_dir() { 0o555 } else { 0o444 };
        if path.is_dir() {
            open.extend(fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        if is_root() {
            chown(&path, Some(12_345), Some(12_345)).unwrap();
        }
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // Whose a file is that was made just now.
    tempfile::tempdir().unwrap().path().metadata().unwrap().uid() == 0
}

/// The program as somebody who is neither root nor the owner of what was given away.
#[cfg(unix)]
fn as_stranger(place: &Workplace, environment: &[(String, String)], arguments: &[&str]) -> Done {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let mut plain = command(place.folder(), arguments);
    if is_root() {
        // Where anyone may start it, whatever folder it was built in.
        let program = place.path("janus-copy");
        if !program.exists() {
            fs_err::copy(plain.get_program(), &program).unwrap();
        }
        for path in [place.folder(), &program] {
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut other = std::process::Command::new(&program);
        other.args(arguments).current_dir(place.folder()).uid(65_534).gid(65_534);
        other.envs(plain.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))));
        plain = other;
    }
    plain.envs(environment.iter().cloned());
    run(plain)
}

#[cfg(unix)]
#[test]
fn a_read_only_cache_of_another_owner_serves_and_is_checked() {
    let place = Workplace::empty();
    let (hub, environment) = hub(&place);
    let remote = table("understand", "hf://datasets/owner/name/rows.parquet", "");
    place.write("recipe.toml", recipe("owner/name", &remote));
    let spec = "synth:inspection?rows=8&seed=1&size=64";
    let commands: [&[&str]; 5] = [
        &["base", "inspect", "janus-nano", "--json"],
        &["base", "inspect", "init:janus-tiny?seed=1", "--json"],
        &["base", "inspect", "owner/name", "--json"],
        &["data", "stats", spec, "--base", "janus-nano", "--json"],
        &["data", "check", "recipe.toml", "--json"],
    ];
    let expected = commands.map(|arguments| with(&place, &environment, arguments).expect_success().stdout);
    give_away(&place.path("cache"));
    give_away(&place.path("hf"));
    let before = (files(&place.path("cache")), files(&place.path("hf")));
    let offline: Vec<_> = environment.iter().cloned().chain([("HF_HUB_OFFLINE".to_owned(), "1".to_owned())]).collect();
    for environment in [&environment, &offline] {
        for (arguments, expected) in commands.iter().zip(&expected) {
            assert_eq!(as_stranger(&place, environment, arguments).expect_success().stdout, *expected, "{arguments:?}");
        }
    }
    assert_eq!((files(&place.path("cache")), files(&place.path("hf"))), before);
    // What it has not cannot be put there.
    let absent = as_stranger(&place, &offline, &["base", "inspect", "init:janus-tiny?seed=2"]);
    janus_tests::program::refused(&absent, &["the cache folder `", "hint: set `JANUS_CACHE`"]);
    let of_hub = as_stranger(&place, &environment, &["base", "fetch", "owner/name@main"]);
    of_hub.expect_success();
    drop(hub);
}

#[test]
fn what_was_planted_in_the_cache_is_made_anew() {
    let place = Workplace::empty();
    let spec = "synth:inspection?rows=8&seed=1&size=64";
    let commands: [&[&str]; 3] = [
        &["base", "inspect", "init:janus-tiny?seed=1", "--fingerprint", "--json"],
        &["base", "inspect", "janus-nano", "--json"],
        &["data", "stats", spec, "--base", "janus-nano", "--json"],
    ];
    let ask = || commands.map(|arguments| place.janus(arguments).expect_success().stdout);
    let expected = ask();
    place.janus(&["base", "inspect", "init:janus-tiny?seed=2"]).expect_success();
    place.janus(&["data", "stats", "synth:inspection?rows=8&seed=2&size=64", "--base", "janus-nano"]).expect_success();
    let find = |folder: &str, part: &str, end: &str| {
        let all = files(&place.path("cache")).into_keys();
        let mut found = all.filter(|name| name.starts_with(folder) && name.contains(part) && name.ends_with(end));
        place.path(&format!("cache/{}", found.next().unwrap()))
    };
    let whole: Vec<_> = [("bases", "tiny", "seed1/model.safetensors"), ("data", "seed1", ".parquet")]
        .map(|(folder, part, end)| find(folder, part, end))
        .into_iter()
        .map(|path| (fs_err::read(&path).unwrap(), path))
        .collect();
    let others = [find("bases", "tiny", "seed2/model.safetensors"), find("data", "seed2", ".parquet")];
    for ((_, path), other) in whole.iter().zip(&others) {
        fs_err::copy(other, path).unwrap();
    }
    let tokenizer = find("bases", "nano", "tokenizer.json");
    let length = fs_err::metadata(&tokenizer).unwrap().len() as usize;
    fs_err::write(&tokenizer, vec![b' '; length]).unwrap();
    assert_eq!(ask(), expected);
    for (bytes, path) in &whole {
        assert!(fs_err::read(path).unwrap() == *bytes, "{}", path.display());
    }
    // As a version left them that noted no digests.
    for (folder, part) in [("bases", "tiny"), ("data", "seed1")] {
        fs_err::remove_file(find(folder, part, ".sha256")).unwrap();
    }
    assert_eq!(ask(), expected);
}

#[cfg(unix)]
#[test]
fn whose_a_cache_is_and_who_may_write_to_it_counts() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::empty();
    let foreign = place.path("xdg/janus");
    fs_err::create_dir_all(place.path("xdg")).unwrap();
    if is_root() {
        fs_err::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
    } else {
        std::os::unix::fs::symlink("/", &foreign).unwrap();
    }
    let xdg = place.path("xdg").to_str().unwrap().to_owned();
    let named =
        |cache: &str| [("JANUS_CACHE".to_owned(), cache.to_owned()), ("XDG_CACHE_HOME".to_owned(), xdg.clone())];
    let inspect = ["base", "inspect", "janus-nano"];
    let done = with(&place, &named(""), &inspect);
    janus_tests::program::refused(&done, &["belongs to another user", "hint: set JANUS_CACHE"]);

    let open = place.path("open");
    fs_err::create_dir(&open).unwrap();
    fs_err::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let open_to_all = named(open.to_str().unwrap());
    for arguments in [
        &inspect[..],
        &["base", "inspect", "init:janus-tiny?seed=1"],
        &["data", "stats", "synth:inspection?rows=8", "--base", "init:janus-tiny?seed=1"],
    ] {
        let done = with(&place, &open_to_all, arguments);
        let said = ["the cache folder `", "every user may put something else there", "hint: set `JANUS_CACHE`"];
        janus_tests::program::refused(&done, &said);
        assert_eq!(files(&open), BTreeMap::new(), "{arguments:?}");
    }
    fs_err::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
    with(&place, &open_to_all, &inspect).expect_success();
    // What is the program's own, to the byte, may be read there.
    fs_err::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    with(&place, &open_to_all, &inspect).expect_success();
}
