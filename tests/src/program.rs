//! The `janus` program as its users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The program: the one that the environment variable `JANUS_TEST_PROGRAM` names, where there is no cargo, or built once from the
/// present sources in the profile of these tests.
///
/// # Panics
/// It cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("JANUS_TEST_PROGRAM") {
            return program.into();
        }
        // Test programs lie in `<target>/<profile>/deps`.
        let test = std::env::current_exe().unwrap_or_else(|e| panic!("{e}"));
        let profile_folder = test.ancestors().nth(2).unwrap_or_else(|| panic!("`{}` has no profile", test.display()));
        let mut build = Command::new(env!("CARGO"));
        // All packages, so that features are unified as in a build of the workspace and nothing is built twice.
        build.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells this test of its package would reach build scripts that watch it, and rebuild what they build.
        let of_this_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_PACKAGE"];
        for (name, _) in std::env::vars_os() {
            if of_this_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                build.env_remove(name);
            }
        }
        if profile_folder.ends_with("release") {
            build.arg("--release");
        }
        if let Some(target) = profile_folder.parent() {
            build.arg("--target-dir").arg(target);
        }
        let status = build.status().unwrap_or_else(|e| panic!("{e}"));
        assert!(status.success(), "the program cannot be built");
        profile_folder.join(format!("janus{}", std::env::consts::EXE_SUFFIX))
    })
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Done {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr))
    }

    /// Fails unless the program ended well.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }
}

/// The program with `arguments` in `folder`, with a cache of its own there and no hub.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(folder);
    command.env("JANUS_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs [`command`].
///
/// # Panics
/// It cannot be started.
pub fn janus(folder: &Path, arguments: &[&str]) -> Done {
    run(command(folder, arguments))
}

/// [`janus`] with more variables in its environment.
///
/// # Panics
/// It cannot be started.
pub fn janus_with(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    let mut command = command(folder, arguments);
    command.envs(environment.iter().copied());
    run(command)
}

/// Runs the program and waits for its end.
///
/// # Panics
/// It cannot be started.
pub fn run(mut command: Command) -> Done {
    let output: Output = command.output().unwrap_or_else(|e| panic!("{e}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The program ended with exit code 2, one error and a hint at least, and said all of this, with nothing in it that a terminal
/// obeys.
///
/// # Panics
/// It did not.
#[track_caller]
pub fn refused(done: &Done, said: &[&str]) {
    assert_eq!(done.code, Some(2), "{}{}", done.stdout, done.stderr);
    let lines = |own: &str| done.stderr.lines().filter(|line| line.starts_with(own)).count();
    assert_eq!(lines("error: "), 1, "not one error: {}", done.stderr);
    assert!(lines("hint: ") > 0, "no hint: {}", done.stderr);
    let order = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!done.stderr.contains(order) && !done.stdout.contains(order), "{:?}{:?}", done.stdout, done.stderr);
    for part in said {
        assert!(done.stderr.contains(part), "no `{part}`: {}", done.stderr);
    }
}
