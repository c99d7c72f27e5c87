//! `janus data`.

use std::path::PathBuf;

use clap::Subcommand;

use super::report;
use super::status::Terminal;
use crate::base::Base;
use crate::data::{CheckReport, Split};
use crate::error::{Error, Result};
use crate::tasks;
use crate::train::tables::Source;

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Look at every row of a recipe's tables and tell which ones a run would leave out, and why
    #[command(after_help = "Examples:
  janus data check recipes/quickstart.toml
  janus data check my.toml data.0.train=rows.parquet --json")]
    Check {
        /// Recipe file
        recipe: PathBuf,
        /// Keys of the recipe to set, as `section.key=value`
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl DataCommand {
    pub(super) fn run(self) -> Result<()> {
        let DataCommand::Check { recipe, overrides, json } = self;
        let recipe = super::train::load(&recipe, &overrides)?;
        let base = Base::open(&recipe.base.path, &Terminal)?;
        let mut reports = serde_json::Map::new();
        let mut bad = Vec::new();
        for section in &recipe.data {
            let task = tasks::task(section);
            let splits = [(Some(&section.train), Split::Train, "train"), (section.eval.as_ref(), Split::Eval, "eval")];
            for (spec, split, name) in splits {
                let Some(spec) = spec else { continue };
                let source = Source::open(spec, split, task.as_ref(), &base, None, &Terminal)?;
                let report = CheckReport::new(&source.table, &source.index);
                let title = format!("{} {name}", section.name);
                if let Err(error) = source.index.enforce(recipe.data_limits.max_bad_rows) {
                    bad.push((title.clone(), error));
                }
                if !json {
                    println!("{title}: {} rows, {} good, {} left out", report.rows, report.accepted, report.rejected);
                    for reason in &report.reasons {
                        println!("  {} x {}", reason.rows, reason.reason);
                        for row in &reason.first {
                            println!("    {row}");
                        }
                    }
                }
                reports.insert(title, serde_json::to_value(report).expect("a report is plain data"));
            }
        }
        if json {
            report::json(&reports);
        }
        match bad.into_iter().next() {
            Some((_, error)) => Err(Error::Data(error)),
            None => Ok(()),
        }
    }
}
