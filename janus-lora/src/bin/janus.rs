//! The `janus` binary; see `janus_lora::cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: janus_lora::Allocator = janus_lora::Allocator;

fn main() -> ExitCode {
    janus_lora::cli::main()
}
