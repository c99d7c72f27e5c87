//! The `janus` binary; see `janus_lora::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    janus_lora::cli::main()
}
