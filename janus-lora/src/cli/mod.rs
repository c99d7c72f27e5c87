//! The `janus` program: one file per command. It parses, calls the library, and prints; errors become one chain with
//! `hint:` lines and an exit code.
#![warn(clippy::print_stderr, reason = "what is printed goes through `out`")]

mod adapter;
mod arguments;
mod ask;
mod base;
mod batch;
mod bench;
mod cache;
mod closed;
mod data;
mod eval;
mod features;
mod generate;
mod live;
mod merge;
mod out;
mod picture_words;
mod probe;
mod recipe;
mod report;
mod run_report;
mod samples;
mod sandbox;
mod status;
mod threads;
mod train;
mod understand;

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use janus_core::{Diagnose, home};

use sandbox::Writes;

use crate::cache::stock;
use crate::error::Result;
use crate::train::signals::survive_file_limit;

/// Fine-tune DeepSeek Janus models with LoRA, for image understanding and image generation.
#[derive(Debug, Parser)]
#[command(name = "janus", version, about, max_term_width = 110, propagate_version = true)]
struct Arguments {
    /// Threads to compute with [default: `JANUS_THREADS`, else one per physical core]
    #[arg(long, global = true, value_name = "N", value_parser = threads::parse)]
    threads: Option<usize>,
    /// Tell only results, warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Tell also what surrounds the work, such as the folders it may write to
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Let the program write wherever its user may (on Linux it keeps itself to its outputs, caches and temporary files)
    #[arg(long, global = true)]
    no_sandbox: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Train),
    Eval(eval::Eval),
    Report(run_report::RunReport),
    Understand(understand::Understand),
    Generate(generate::Generate),
    Batch(batch::Batch),
    Merge(merge::Merge),
    Probe(probe::Probe),
    /// Look into adapters, and make ones out of others and out of checkpoints.
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Look into, fetch, convert and make base checkpoints.
    #[command(subcommand)]
    Base(base::BaseCommand),
    /// Look through Parquet data.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Measure speed and memory on random weights of a known shape, without a download.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// List, copy, check and describe recipes.
    #[command(subcommand)]
    Recipe(recipe::RecipeCommand),
    /// Show and clear what is kept to be made or fetched only once: bases, drawn tables, image features and codes, downloads.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Command::Train(command) => command.run(),
            Command::Eval(command) => command.run(),
            Command::Understand(command) => command.run(),
            Command::Generate(command) => command.run(),
            Command::Batch(command) => command.run(),
            Command::Merge(command) => command.run(),
            Command::Probe(command) => command.run(),
            Command::Report(command) => command.run(),
            Command::Adapter(command) => command.run(),
            Command::Base(command) => command.run(),
            Command::Data(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Recipe(command) => command.run(),
            Command::Cache(command) => command.run(),
        }
    }

    /// What it means to write.
    fn writes(&self) -> Writes {
        match self {
            Command::Train(command) => command.writes(),
            Command::Eval(command) => command.writes(),
            Command::Understand(command) => command.writes(),
            Command::Generate(command) => command.writes(),
            Command::Batch(command) => command.writes(),
            Command::Merge(command) => command.writes(),
            Command::Probe(command) => command.writes(),
            Command::Report(command) => command.writes(),
            Command::Base(command) => command.writes(),
            Command::Data(command) => command.writes(),
            Command::Recipe(command) => command.writes(),
            Command::Bench(command) => command.writes(),
            Command::Adapter(command) => command.writes(),
            Command::Cache(_) => Writes::nothing(),
        }
    }
}

/// Runs the program on the process's arguments.
///
/// It makes the process's pool of threads and changes its environment: call it first of all in `main`, while the process
/// has one thread.
pub fn main() -> ExitCode {
    report::tell_panics_as_errors();
    crate::allocator::set_up();
    survive_file_limit();
    let words = picture_words::spread(std::env::args_os());
    let Arguments { threads, quiet, verbose, no_sandbox, command } = match parse(words) {
        Ok(arguments) => arguments,
        Err(message) => return out::usage(&message),
    };
    if quiet {
        out::be_quiet();
    }
    let surroundings = match no_sandbox {
        true => "no sandbox: `--no-sandbox` is given".to_owned(),
        // Threads are born into what the one that starts them may do.
        false => sandbox::enter(&command.writes()),
    };
    if verbose {
        status::say(&surroundings);
    }
    if let Err(error) = threads::set_up(threads) {
        return report::failure(&error);
    }
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| command.run()));
    stock::leave();
    match done {
        Ok(Ok(())) => out::outcome(),
        Ok(Err(error)) => report::failure(&error),
        Err(_) => ExitCode::from(report::INTERNAL),
    }
}

/// Reads the words of a command line.
fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let mut command = with_home(Arguments::command());
    let matches = command.try_get_matches_from_mut(words)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The command with a leading `~` or `$HOME` put into every argument that is a path, here for all commands at once: shells do
/// so in `--out ~/x`, but not in `--out=~/x`.
fn with_home(command: clap::Command) -> clap::Command {
    let expand =
        |path: PathBuf| home::expand(&path).map_err(|error| [error.to_string(), error.hints().join("; ")].join("; "));
    let is_path = |argument: &clap::Arg| argument.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    command
        .mut_args(|argument| match is_path(&argument) {
            true => argument.value_parser(PathBufValueParser::new().try_map(expand)),
            false => argument,
        })
        .mut_subcommands(with_home)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that does something has help with at least one example line.
    #[test]
    fn every_command_has_examples() {
        fn visit(command: &clap::Command) {
            let subcommands: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            if subcommands.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("janus "), "`{}` has no example in its help", command.get_name());
            }
            subcommands.into_iter().for_each(visit);
        }
        let command = Arguments::command();
        command.clone().debug_assert();
        visit(&command);
    }
}
