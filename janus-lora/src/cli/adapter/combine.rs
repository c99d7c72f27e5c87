//! `janus adapter combine`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use janus_core::output::StagedFolder;
use serde_json::json;

use super::super::arguments::locate;
use super::super::out::done;
use super::super::report;
use super::super::status::Terminal;
use super::{read, write};
use crate::algebra::{AdapterFolder, CombineOptions, MajoritySign, Method, combine};
use crate::error::Result;
use crate::status::Status;

/// Make one adapter out of several, as PEFT's `add_weighted_adapter` does
#[derive(Debug, Args)]
#[command(after_help = "The result has the scale 1. Weights may be negative; one that is left out is 1.

  linear           factors are summed, A with A and B with B: adapters of one rank
  cat              factors beside each other: the exact sum of the shifts, at the sum of the ranks
  svd              the sum of the shifts, truncated to --rank
  ties             the greatest values of each factor; where signs differ, those of the majority,
                   averaged
  dare_linear      values drawn at random and scaled, summed
  dare_ties        values drawn at random and scaled, signs as in ties
  magnitude_prune  the greatest values of each factor, summed
  *_svd            the same of the shifts B·A themselves, truncated to --rank

Examples:
  janus adapter combine runs/style:0.7 runs/product:0.4 --method linear --out runs/both
  janus adapter combine runs/a runs/b:-0.5 --method svd --rank 8 --out runs/a-without-b
  janus adapter combine runs/a runs/b runs/c --method ties --density 0.5 --majority-sign frequency --out runs/three
  janus adapter combine runs/a runs/b --method dare_ties_svd --density 0.3 --seed 7 --out runs/both --json")]
pub(in super::super) struct Combine {
    /// Adapter folders or hub ids, each with its weight after a colon
    #[arg(required = true, value_name = "DIR[:WEIGHT]")]
    adapters: Vec<String>,
    /// How they are combined
    #[arg(long, value_parser = method_parser())]
    method: Method,
    /// Rank of the result, for methods that end in `svd` [default: the greatest of the adapters' ranks]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Share of values that is kept, above 0 and at most 1, for methods that prune
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    density: Option<f64>,
    /// Which sign counts where values disagree, for `ties` and `dare_ties`: that of their sum, or the more frequent one
    /// [default: total]
    #[arg(long, value_name = "HOW", value_enum)]
    majority_sign: Option<Majority>,
    /// What the methods that begin with `dare` draw with [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Majority {
    /// The sign of the sum
    Total,
    /// The sign that more values have
    Frequency,
}

fn method_parser() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::ALL.map(|(name, _)| name))
        .map(|name| Method::from_name(&name).expect("only names of methods are taken"))
}

impl Combine {
    pub(super) fn run(self) -> Result<()> {
        let out = StagedFolder::create(&self.out)?;
        for (option, is_idle) in [
            ("--seed", self.seed.is_some() && !self.method.draws()),
            ("--majority-sign", self.majority_sign.is_some() && !self.method.elects()),
        ] {
            if is_idle {
                Terminal.warn(&format!("`{option}` does nothing with `--method {}`", self.method.name()));
            }
        }
        let mut adapters = Vec::with_capacity(self.adapters.len());
        for text in &self.adapters {
            let (folder, weight) = locate(text, &Terminal)?;
            adapters.push((read(&folder)?, weight));
        }
        let options = CombineOptions {
            method: self.method,
            rank: self.rank,
            density: self.density,
            majority: match self.majority_sign {
                Some(Majority::Frequency) => MajoritySign::Frequency,
                Some(Majority::Total) | None => MajoritySign::Total,
            },
            seed: self.seed.unwrap_or(0),
        };
        let sites: BTreeSet<&String> = adapters.iter().flat_map(|(adapter, _)| adapter.sites.keys()).collect();
        let bar = Terminal.items("combining", sites.len() as u64);
        let combined = combine(&adapters, &options, bar.as_ref())?;
        bar.finish();
        tell_copies(&adapters);
        let fingerprint = combined.note.base.as_ref().map(|base| base.fingerprint.as_str());
        if fingerprint.is_none() {
            Terminal.warn("not all of these adapters say which base they were trained on, so the result does not");
        }
        if adapters.len() == 1 && self.method != Method::Linear {
            Terminal.note(&format!("one adapter is only scaled: `{}` has nothing to do", self.method.name()));
        }
        let rank = combined.sites.values().map(|factors| factors.rank()).max().unwrap_or(0);
        let told = json!({
            "out": self.out.display().to_string(), "method": self.method.name(), "sites": combined.sites.len(),
            "rank": rank, "parameters": combined.parameter_count(), "base_fingerprint": fingerprint,
        });
        write(&combined, out)?;
        if self.json {
            report::json(&told);
            return Ok(());
        }
        let parameters = report::count(combined.parameter_count() as u64);
        done!("{}: {} sites of rank {rank}, {parameters} parameters", self.out.display(), combined.sites.len());
        Ok(())
    }
}

/// Says which copies are taken over: no weight acts on them.
fn tell_copies(adapters: &[(AdapterFolder, f64)]) {
    for (adapter, weight) in adapters.iter().filter(|(adapter, _)| !adapter.copies.is_empty()) {
        let (folder, modules) = (adapter.path.display(), adapter.config.modules_to_save.join("`, `"));
        let weight = if *weight == 1.0 { String::new() } else { format!(", without its weight {weight}") };
        Terminal.warn(&format!("copies of `{modules}` are taken over from `{folder}` as they are{weight}"));
    }
}
