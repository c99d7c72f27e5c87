//! The fault campaign: a joint run is killed, starved and lied to; each time it is gone on with, and each time it ends with
//! the bytes of the run that nothing happened to.
//!
//! The short form runs with the other tests. `JANUS_FAULT_KILLS=100 cargo test --release --test campaign -- --nocapture`
//! is the long one: it kills that often and prints what was done and what became of it. `JANUS_FAULT_SEED` gives other
//! instants.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use janus_tests::failing_device::FailingDevice;
use janus_tests::joint::{
    WEIGHTS, checkpoints, difference, lines, log, place, run, signal, spawn, spawn_as, start, stop_signals, stopped,
    wait_until, write_rows,
};
use janus_tests::program::{self, Done};
use janus_tests::tiny::{Workplace, tree};

/// The run that nothing happens to.
const WHOLE: &str = "whole";

/// Kills of the short form.
const FEW: usize = 20;

/// A folder of somebody else's, to which links lead.
const VICTIM: &str = "victim";

/// Whether the run in a folder has come to the instant of a kill.
type IsSo<'a> = &'a dyn Fn(&Path) -> bool;

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

struct Campaign {
    place: Workplace,
}

impl Campaign {
    fn tell(&self, fault: &str, outcome: String) {
        println!("{fault}: {outcome}");
    }

    /// Goes on with a run, which has to end as the one that nothing happened to.
    #[track_caller]
    fn resumes(&self, folder: &str) -> Done {
        let done = run(&self.place, folder, &["--resume"]);
        assert_eq!(done.code, Some(0), "`{folder}`: {}{}{}", log(&self.place, folder), done.stdout, done.stderr);
        if let Some(difference) = difference(&self.place, WHOLE, folder) {
            panic!("`{folder}`: {difference}\n{}\n{}", log(&self.place, folder), done.stderr);
        }
        done
    }

    /// Fails with one error that says this, and leaves the run's checkpoints as they are.
    #[track_caller]
    fn fails(&self, folder: &str, done: &Done, code: i32, said: &[&str]) {
        assert_eq!(done.code, Some(code), "`{folder}`: {}", done.stderr);
        assert_eq!(done.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{}", done.stderr);
        assert!(!done.stderr.contains("panicked") && !done.stderr.contains("internal error"), "{}", done.stderr);
        for part in said {
            assert!(done.stderr.contains(part), "no `{part}`: {}", done.stderr);
        }
    }

    /// A run stopped by SIGTERM after some steps: one with a checkpoint to go on from.
    #[track_caller]
    fn stopped(&self, folder: &str, after: usize) -> u64 {
        self.left(folder, "TERM", 143, after);
        *checkpoints(&self.place, folder).last().unwrap()
    }

    /// A run that a signal makes leave, after some steps, with this code.
    #[track_caller]
    fn left(&self, folder: &str, name: &str, code: i32, after: usize) {
        let ended = stopped(&self.place, folder, &[], name, &|| lines(&self.place, folder) >= after);
        assert_eq!(ended.code(), Some(code), "{}", log(&self.place, folder));
    }

    fn gone(&self, folder: &str) {
        std::fs::remove_dir_all(self.place.path(folder)).unwrap();
    }

    /// What a kill found.
    fn stage(&self, folder: &str) -> String {
        let path = self.place.path(folder);
        if !path.exists() {
            return "before the run folder".into();
        }
        let steps = lines(&self.place, folder);
        let name = |name: &str| path.join(name).exists();
        if name("adapter_model.safetensors") {
            return "after the end".into();
        }
        let half = tree(&path).keys().any(|name| name.to_string_lossy().contains(".tmp-"));
        match (half, checkpoints(&self.place, folder).last()) {
            (true, _) => "while something was written".into(),
            (false, None) if steps == 0 => "before the first line".into(),
            (false, None) => "before the first checkpoint".into(),
            (false, Some(_)) if name("loss.png") => "while the adapter was written".into(),
            (false, Some(_)) => "after a checkpoint".into(),
        }
    }
}

#[test]
fn every_fault_ends_with_the_same_bytes() {
    let kills = number("JANUS_FAULT_KILLS", FEW as u64) as usize;
    let mut random = Random(number("JANUS_FAULT_SEED", 1));
    let place = place();
    let clock = Instant::now();
    run(&place, WHOLE, &[]).expect_success();
    let whole = clock.elapsed();
    let campaign = Campaign { place };
    random_kills(&campaign, kills, whole, &mut random);
    chosen_kills(&campaign);
    signals(&campaign);
    full_disks(&campaign);
    damaged_checkpoints(&campaign, &mut random);
    data_files(&campaign);
    failing_device(&campaign);
    folders(&campaign);
}

/// Kills at instants spread over the whole run: half of them over its time, half over its steps.
fn random_kills(campaign: &Campaign, kills: usize, whole: Duration, random: &mut Random) {
    let mut stages: BTreeMap<String, usize> = BTreeMap::new();
    std::fs::create_dir(campaign.place.path(VICTIM)).unwrap();
    for name in ["state.json", "report.html"] {
        campaign.place.write(&format!("{VICTIM}/{name}"), "mine");
    }
    let victim = &tree(&campaign.place.path(VICTIM));
    for number in 0..kills {
        let folder = format!("kill-{number}");
        let mut child = spawn(&campaign.place, &folder, &[]);
        if number % 2 == 0 {
            std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
        } else {
            // Fourteen steps and five evaluations have a line each.
            let after = 1 + random.below(19) as usize;
            wait_until(&mut child, || lines(&campaign.place, &folder) >= after);
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        *stages.entry(campaign.stage(&folder)).or_default() += 1;
        plant(campaign, &folder);
        if number % 3 == 2 {
            linked(campaign, &folder);
        }
        if number % 10 == 7 {
            // A disk that is full before the run has done much, or that is just large enough.
            let done = short_of_room(campaign, &folder);
            assert!(matches!(done.code, Some(0 | 1)), "{}", done.stderr);
        }
        if number % 5 == 4 {
            // Once more while it goes on.
            let mut child = spawn(&campaign.place, &folder, &["--resume"]);
            std::thread::sleep(whole.mul_f64(random.below(700) as f64 / 1000.0));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        campaign.resumes(&folder);
        campaign.gone(&folder);
    }
    assert!(tree(&campaign.place.path(VICTIM)) == *victim, "a foreign file was touched");
    let stages: Vec<String> = stages.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
    campaign.tell(
        &format!("SIGKILL at {kills} random instants"),
        format!("{kills} of {kills} the same bytes: {}", stages.join(", ")),
    );
}

/// Files and links under temporary names, in the run folder and beside it.
fn plant(campaign: &Campaign, folder: &str) {
    let (run, victim) = (campaign.place.path(folder), campaign.place.path(VICTIM));
    let _ = symlink(&victim, run.with_file_name(format!(".{folder}.tmp-Ab3dEf")));
    // Resuming a run that is over changes nothing.
    if !run.join("checkpoints").is_dir() || run.join(WEIGHTS).exists() {
        return;
    }
    std::fs::write(run.join(".recipe.toml.tmp-Ab3dEf"), "half").unwrap();
    std::fs::create_dir_all(run.join("checkpoints/.step-5.tmp-Ab3dEf/sub")).unwrap();
    symlink(victim.join("state.json"), run.join("checkpoints/.step-5.tmp-Ab3dEf/sub/state.json")).unwrap();
    symlink(&victim, run.join("checkpoints/.step-6.tmp-janus-folder")).unwrap_or_default();
    symlink(victim.join("report.html"), run.join(".report.html.tmp-janus-0123456789abcdef")).unwrap();
}

/// A link in the place of a file of the run, which is refused for as long as it is there.
fn linked(campaign: &Campaign, folder: &str) {
    let report = campaign.place.path(&format!("{folder}/report.html"));
    if checkpoints(&campaign.place, folder).is_empty() || campaign.place.path(&format!("{folder}/{WEIGHTS}")).exists() {
        return;
    }
    let _ = std::fs::remove_file(&report);
    symlink(campaign.place.path(&format!("{VICTIM}/report.html")), &report).unwrap();
    let done = run(&campaign.place, folder, &["--resume"]);
    campaign.fails(folder, &done, 2, &["report.html", "is a link that leads out of the run folder", "hint: "]);
    std::fs::remove_file(&report).unwrap();
}

/// Kills at instants that chance seldom finds.
fn chosen_kills(campaign: &Campaign) {
    let half_checkpoint = |path: &Path| {
        let names = std::fs::read_dir(path.join("checkpoints")).into_iter().flatten().flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".tmp-"))
    };
    let cases: [(&str, &str, IsSo<'_>); 4] = [
        ("kill-mark", "SIGKILL as the run folder appears", &|path| path.exists()),
        ("kill-checkpoint", "SIGKILL while a checkpoint is written", &half_checkpoint),
        ("kill-last", "SIGKILL after the last step's checkpoint", &|path| path.join("checkpoints/step-14").exists()),
        ("kill-end", "SIGKILL while the adapter is written", &|path| path.join("adapter_config.json").exists()),
    ];
    for (folder, fault, is_so) in cases {
        let path = campaign.place.path(folder);
        let mut child = spawn(&campaign.place, folder, &[]);
        assert!(wait_until(&mut child, || is_so(&path)), "{fault}");
        child.kill().unwrap();
        child.wait().unwrap();
        let stage = campaign.stage(folder);
        campaign.resumes(folder);
        campaign.tell(fault, format!("{stage}; the same bytes"));
    }
}

fn signals(campaign: &Campaign) {
    for (name, code) in stop_signals() {
        let folder = format!("signal-{name}");
        campaign.left(&folder, name, code, 8);
        let saved = *checkpoints(&campaign.place, &folder).last().unwrap();
        campaign.resumes(&folder);
        campaign
            .tell(&format!("SIG{name}"), format!("left with {code} after step {saved}, nothing lost; the same bytes"));
    }
}

/// Goes on with a run that may not write a file of more than 20 kB.
fn short_of_room(campaign: &Campaign, folder: &str) -> Done {
    // The largest file a shell lets a process write, in blocks of 512 bytes; the signal that comes with it is ignored.
    let command = start(&campaign.place, folder, &["--resume"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -f 40; trap "" XFSZ; exec "$@""#, "sh"]).arg(command.get_program());
    limited.args(command.get_args()).current_dir(campaign.place.folder());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    program::run(limited)
}

/// Writes that end short: by a limit on the size of files, and on a disk that is full where one can be made.
fn full_disks(campaign: &Campaign) {
    let saved = campaign.stopped("short", 7);
    let before = tree(&campaign.place.path("short/checkpoints"));
    let done = short_of_room(campaign, "short");
    campaign.fails("short", &done, 1, &["cannot write `", "File too large", "recipe.toml --resume` goes on from step"]);
    assert!(tree(&campaign.place.path("short/checkpoints")) == before, "the last checkpoint is not as it was");
    campaign.resumes("short");
    campaign
        .tell("short write (limit on file size)", format!("exit 1, checkpoint of step {saved} intact; the same bytes"));

    let disk = campaign.place.path("full");
    std::fs::create_dir(&disk).unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    };
    if !mount("size=1m") {
        campaign.tell("full disk", "not tried: this user may not mount one".into());
        campaign.tell("read-only folder", "not tried: this user may not mount one".into());
        return;
    }
    let saved = campaign.stopped("full/run", 7);
    // Whatever room is left, but for a little.
    let ballast = std::fs::File::create(disk.join("ballast")).unwrap();
    let mut filled = 0u64;
    while std::os::unix::fs::FileExt::write_all_at(&ballast, &[0; 4096], filled).is_ok() {
        filled += 4096;
    }
    ballast.set_len(filled.saturating_sub(16 * 4096)).unwrap();
    let before = tree(&disk.join("run/checkpoints"));
    let done = run(&campaign.place, "full/run", &["--resume"]);
    campaign.fails("full/run", &done, 1, &["cannot write `", "No space left on device"]);
    assert!(tree(&disk.join("run/checkpoints")) == before, "the last checkpoint is not as it was");
    // A file that is open for writing keeps its file system from being made read-only.
    drop(ballast);
    std::fs::remove_file(disk.join("ballast")).unwrap();
    assert!(mount("remount,ro"));
    let done = run(&campaign.place, "full/run", &["--resume"]);
    campaign.fails("full/run", &done, 2, &["to the run folder `", "Read-only file system", "hint: make it writable"]);
    assert!(mount("remount,rw,size=8m"));
    campaign.resumes("full/run");
    campaign.tell("full disk", format!("exit 1, checkpoint of step {saved} intact; the same bytes"));
    campaign.tell("read-only folder", format!("exit 2, checkpoint of step {saved} intact; the same bytes"));
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
}

/// A byte changed in each file of the newest checkpoint; files cut and gone.
fn damaged_checkpoints(campaign: &Campaign, random: &mut Random) {
    let files =
        ["adapter_config.json", "adapter_model.safetensors", "checksums.json", "optimizer.safetensors", "state.json"];
    for (number, file) in files.iter().enumerate() {
        let folder = format!("damaged-{number}");
        stopped(&campaign.place, &folder, &[], "KILL", &|| checkpoints(&campaign.place, &folder).len() >= 2);
        let there = checkpoints(&campaign.place, &folder);
        let (newest, before) = (there[there.len() - 1], there[there.len() - 2]);
        let path = campaign.place.path(&format!("{folder}/checkpoints/step-{newest}/{file}"));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = random.below(bytes.len() as u64) as usize;
        let fault = match number % 4 {
            0 | 1 => {
                bytes[at] ^= 1 << random.below(7);
                std::fs::write(&path, bytes).unwrap();
                "a bit changed"
            }
            2 => {
                std::fs::write(&path, &bytes[..at]).unwrap();
                "cut short"
            }
            _ => {
                std::fs::remove_file(&path).unwrap();
                "gone"
            }
        };
        let done = campaign.resumes(&folder);
        assert!(done.stderr.contains(&format!("step-{newest}` cannot be used: ")), "{}", done.stderr);
        assert!(done.stderr.contains(&format!("going on after step {before} of")), "{}", done.stderr);
        campaign.tell(
            &format!("checkpoint's `{file}`: {fault}"),
            format!("told, step {before} instead of {newest}; the same bytes"),
        );
    }
}

/// Data that is gone or cut between two processes, and under one.
fn data_files(campaign: &Campaign) {
    let rows = campaign.place.path("rows.parquet");
    let whole = std::fs::read(&rows).unwrap();
    let saved = campaign.stopped("data", 7);
    let before = tree(&campaign.place.path("data"));
    std::fs::remove_file(&rows).unwrap();
    let done = run(&campaign.place, "data", &["--resume"]);
    campaign.fails("data", &done, 2, &["rows.parquet"]);
    std::fs::write(&rows, &whole[..whole.len() / 2]).unwrap();
    let done = run(&campaign.place, "data", &["--resume"]);
    campaign.fails("data", &done, 2, &["rows.parquet"]);
    write_rows(&rows, 3, 9);
    let done = run(&campaign.place, "data", &["--resume"]);
    campaign.fails("data", &done, 2, &["rows.parquet", "cannot be resumed"]);
    assert!(tree(&campaign.place.path("data")) == before, "the run folder changed");
    std::fs::write(&rows, &whole).unwrap();
    campaign.resumes("data");
    campaign.tell(
        "data file gone, cut or replaced before resuming",
        format!("exit 2, checkpoint of step {saved} intact; the same bytes"),
    );

    // Under a running process: cut in place, so that an open file is cut, too.
    let mut child = spawn(&campaign.place, "cut", &[]);
    assert!(wait_until(&mut child, || lines(&campaign.place, "cut") >= 6));
    std::fs::File::options().write(true).open(&rows).unwrap().set_len(whole.len() as u64 / 3).unwrap();
    let code = child.wait().unwrap().code();
    let said = log(&campaign.place, "cut");
    assert!(code == Some(2) && said.contains("error:") && said.contains("rows.parquet"), "{code:?} {said}");
    let saved = checkpoints(&campaign.place, "cut");
    std::fs::write(&rows, &whole).unwrap();
    campaign.resumes("cut");
    campaign.tell("data file cut under the run", format!("exit 2, checkpoints {saved:?} intact; the same bytes"));
}

/// Reads and syncs that end with EIO, before a run and under it.
fn failing_device(campaign: &Campaign) {
    let Some(device) = FailingDevice::new(campaign.place.folder()) else {
        campaign.tell("EIO on read and on sync", "not tried: no C compiler for Linux on 64 bits".into());
        return;
    };
    let command = |folder: &str, more: &[&str], call: &str, file: &str| {
        let mut command = start(&campaign.place, folder, more);
        device.preload(&mut command, call, file);
        command
    };
    let under_the_run: [(&str, &str, &str, &str, i32); 3] = [
        ("eio-rows", "EIO on reading rows", "read", "/rows.parquet", 2),
        ("eio-base", "EIO on reading the base once more at the end", "read", "/base/model.safetensors", 1),
        ("eio-sync", "EIO on syncing a checkpoint", "sync", "/checkpoints/", 1),
    ];
    for (folder, fault, call, file, code) in under_the_run {
        let attempt = || {
            let mut child = spawn_as(&campaign.place, folder, command(folder, &[], call, file));
            assert!(wait_until(&mut child, || !checkpoints(&campaign.place, folder).is_empty()), "{fault}");
            device.set(true);
            let ended = child.wait().unwrap().code();
            device.set(false);
            ended
        };
        let mut ended = attempt();
        while ended == Some(0) {
            // The run was over before the device failed.
            campaign.gone(folder);
            ended = attempt();
        }
        let said = log(&campaign.place, folder);
        assert!(ended == Some(code) && said.contains("Input/output error"), "{fault}: {ended:?} {said}");
        assert!(
            said.contains("recipe.toml --resume` goes on from step") && !said.contains("panicked"),
            "{fault}: {said}"
        );
        let saved = checkpoints(&campaign.place, folder);
        campaign.resumes(folder);
        campaign.tell(fault, format!("exit {code}, checkpoints {saved:?} intact; the same bytes"));
    }

    let saved = campaign.stopped("eio-before", 7);
    let before = tree(&campaign.place.path("eio-before"));
    device.set(true);
    for file in ["/rows.parquet", "/base/model.safetensors", "/base/config.json", "/recipe.toml"] {
        let done = program::run(command("eio-before", &["--resume"], "read", file));
        campaign.fails("eio-before", &done, 1, &["Input/output error", &file[1..]]);
    }
    assert!(tree(&campaign.place.path("eio-before")) == before, "the run folder changed");
    let newest = format!("/step-{saved}/optimizer.safetensors");
    let done = program::run(command("eio-before", &["--resume"], "read", &newest));
    device.set(false);
    assert!(done.stderr.contains(&format!("step-{saved}` cannot be used: ")), "{}", done.stderr);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(difference(&campaign.place, WHOLE, "eio-before"), None);
    campaign.tell(
        "EIO on reading recipe, base or rows before resuming, then the newest checkpoint",
        format!("exit 1, checkpoint of step {saved} intact; then told, the one before instead; the same bytes"),
    );
}

/// Folders that cannot be written to, or that another process holds.
fn folders(campaign: &Campaign) {
    let saved = campaign.stopped("blocked", 7);
    let target = campaign.place.path("blocked/checkpoints/step-9");
    assert!(!target.exists());
    std::fs::write(&target, "in the way").unwrap();
    let done = campaign.resumes("blocked");
    assert!(done.stderr.contains("step-9` cannot be used"), "{}", done.stderr);
    campaign.tell("a file in a checkpoint's place", format!("told, step {saved} taken; the same bytes"));

    let mut child = spawn(&campaign.place, "held", &[]);
    assert!(wait_until(&mut child, || lines(&campaign.place, "held") >= 1));
    signal(&mut child, "STOP");
    let done = run(&campaign.place, "held", &["--resume"]);
    campaign.fails("held", &done, 2, &["another process is at work in `"]);
    signal(&mut child, "CONT");
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", log(&campaign.place, "held"));
    assert_eq!(difference(&campaign.place, WHOLE, "held"), None);
    campaign.tell("a second process on the run folder", "exit 2, the first goes on; the same bytes".into());
}
