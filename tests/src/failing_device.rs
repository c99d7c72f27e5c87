//! Reads and syncs that end with EIO, as those of a device that fails: a small library in C, preloaded into the program.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A device that fails as soon as it is told to.
#[derive(Debug)]
pub struct FailingDevice {
    library: PathBuf,
    switch: PathBuf,
}

impl FailingDevice {
    /// Compiles the library into `folder`; `None` where there is no C compiler or the system is not Linux on 64 bits.
    ///
    /// # Panics
    /// The folder cannot be written to.
    pub fn new(folder: &Path) -> Option<Self> {
        if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
            return None;
        }
        let (source, library) = (folder.join("failing_device.c"), folder.join("failing_device.so"));
        std::fs::write(&source, include_str!("failing_device.c")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let compiled = compiler.stdout(Stdio::null()).stderr(Stdio::null()).status();
        compiled
            .is_ok_and(|status| status.success())
            .then(|| Self { library, switch: folder.join("failing_device.on") })
    }

    /// Lets `call` (`read` or `sync`) of the program fail on files whose path has `file` in it.
    pub fn preload(&self, command: &mut Command, call: &str, file: &str) {
        command.env("LD_PRELOAD", &self.library).env("JANUS_FAILING_SWITCH", &self.switch);
        command.env("JANUS_FAILING_CALL", call).env("JANUS_FAILING_FILE", file);
    }

    /// From now on they fail, or no longer.
    ///
    /// # Panics
    /// The folder cannot be written to.
    pub fn set(&self, fails: bool) {
        match fails {
            true => std::fs::write(&self.switch, "").unwrap(),
            false => std::fs::remove_file(&self.switch).unwrap(),
        }
    }
}
