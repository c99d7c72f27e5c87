//! What cannot be done with adapters and checkpoints.

use std::path::PathBuf;

use janus_core::{Diagnose, Fault};

/// Adapters or checkpoints that cannot be computed with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlgebraError {
    /// An adapter that is no plain LoRA.
    #[error("`{}` is no plain LoRA: {} in `adapter_config.json`", folder.display(), fields.join(", "))]
    Method {
        /// Its folder.
        folder: PathBuf,
        /// The fields that say so, each as `` `field` = `value` ``.
        fields: Vec<String>,
    },
    /// An adapter without a pair.
    #[error("`{}` has no pair of factors", folder.display())]
    NoPairs {
        /// Its folder.
        folder: PathBuf,
    },
    /// Parts that there is no sum of.
    #[error("`{}` has {}, of which there is no sum", folder.display(), listed(parts))]
    Extras {
        /// The adapter's folder.
        folder: PathBuf,
        /// Such as `head.defects` and `dynamic.vision`.
        parts: Vec<String>,
    },
    /// Several adapters that replace one parameter.
    #[error("`{}` and `{}` both have a copy of `{parameter}` (`modules_to_save`)", first.display(), second.display())]
    SharedCopy {
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// Native name of the parameter.
        parameter: String,
    },
    /// An adapter that shifts what another replaces.
    #[error("`{}` has a pair at `{site}`, of which `{}` has a copy (`modules_to_save`)", pair.display(), copy.display())]
    PairAndCopy {
        /// The one with the pair.
        pair: PathBuf,
        /// The one with the copy.
        copy: PathBuf,
        /// The site.
        site: String,
    },
    /// Adapters of different bases.
    #[error("`{}` was made for the base `{first_base}`, `{}` for `{second_base}`", first.display(), second.display())]
    Bases {
        /// One of them.
        first: PathBuf,
        /// Fingerprint of its base.
        first_base: String,
        /// The other.
        second: PathBuf,
        /// Fingerprint of that one's.
        second_base: String,
    },
    /// Factors of one site that fit different weights.
    #[error("`{site}` has the shape {first_shape:?} in `{}`, {second_shape:?} in `{}`", first.display(), second.display())]
    SiteShape {
        /// The site.
        site: String,
        /// One of them.
        first: PathBuf,
        /// Shape of its shift.
        first_shape: Vec<usize>,
        /// The other.
        second: PathBuf,
        /// Shape of that one's.
        second_shape: Vec<usize>,
    },
    /// Targets of which there is no union.
    #[error("`target_modules` is a list of `{}`, an expression of `{}`", list.display(), expression.display())]
    TargetKinds {
        /// The one with a list.
        list: PathBuf,
        /// The one with an expression.
        expression: PathBuf,
    },
    /// A method that sums factors, of other ranks.
    #[error("`{method}` takes adapters of one rank, `{}` has {first_rank}, `{}` has {second_rank}{}", first.display(), second.display(), at_site(site))]
    Ranks {
        /// The method.
        method: &'static str,
        /// One of them.
        first: PathBuf,
        /// Its rank.
        first_rank: usize,
        /// The other.
        second: PathBuf,
        /// Its rank.
        second_rank: usize,
        /// The site, where the adapters as a whole have one rank.
        site: Option<String>,
    },
    /// An option that the method needs.
    #[error("`--method {method}` needs `{option}`")]
    Needs {
        /// The method.
        method: &'static str,
        /// The option.
        option: &'static str,
    },
    /// An option that would be passed over.
    #[error("`{option}` does nothing with `--method {method}`")]
    Idle {
        /// The method.
        method: &'static str,
        /// The option.
        option: &'static str,
    },
    /// Truncation of a single adapter.
    #[error("one adapter alone keeps its rank, and `--rank {rank}` asks for another")]
    RankOfOne {
        /// What was asked for.
        rank: usize,
    },
    /// A number out of its range.
    #[error("`{option}` is {value}, expected {expected}")]
    Range {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// A rank out of the configurations that the factors have no use for.
    #[error(
        "at rank {rank}, which `r` and `rank_pattern` in `adapter_config.json` name, the result would have {values} values, of {given} in the adapters"
    )]
    ClaimedRank {
        /// The rank of the result.
        rank: usize,
        /// Values it would have.
        values: usize,
        /// Values of all factors that there are.
        given: usize,
    },
    /// A shift that is too large to be formed.
    #[error("`--method {method}` forms the shift of `{site}`, {rows} x {columns}: no weight is as large")]
    WholeShift {
        /// The method.
        method: &'static str,
        /// The site.
        site: String,
        /// Rows of the shift.
        rows: usize,
        /// Columns of the shift.
        columns: usize,
    },
    /// A result that f32 does not hold.
    #[error("`{what}` is not finite: {why}")]
    NotFinite {
        /// The site or tensor.
        what: String,
        /// Where that comes from, in words.
        why: &'static str,
    },
    /// A checkpoint with a value that is no number.
    #[error("`{tensor}` is not finite in one of the checkpoints")]
    NoNumber {
        /// Native name of the tensor.
        tensor: String,
    },
    /// Checkpoints of different models.
    #[error("the checkpoints are of different models: {}", differences.join(", "))]
    Checkpoints {
        /// Some tensors that differ, each with both shapes.
        differences: Vec<String>,
    },
    /// Targets at which both checkpoints are equal.
    #[error("the checkpoints are equal at all {sites} targets{}", if *outside > 0 { format!(", and differ at {outside} other tensors") } else { String::new() })]
    NothingChanged {
        /// Number of sites looked at.
        sites: usize,
        /// Number of other tensors that differ.
        outside: usize,
    },
    /// The drawing library failed.
    #[error("the picture cannot be drawn: {reason}")]
    Picture {
        /// Its message.
        reason: String,
    },
}

impl Diagnose for AlgebraError {
    fn fault(&self) -> Fault {
        match self {
            AlgebraError::Picture { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            AlgebraError::Method { .. } => {
                "merge it into its base with `janus merge`; `janus adapter extract` makes a LoRA of the two checkpoints"
            }
            AlgebraError::NoPairs { .. } => "give an adapter with `target_modules`",
            AlgebraError::Extras { .. } => {
                "load them together instead, `--adapter A:0.7 --adapter B:0.4`, where dynamic encoders add up and heads stand side by side"
            }
            AlgebraError::SharedCopy { .. } | AlgebraError::PairAndCopy { .. } => {
                "merge one of them into the base first, with `janus merge`"
            }
            AlgebraError::Bases { .. } => "combine and compare adapters of one base",
            AlgebraError::SiteShape { .. } => "the adapters are for different models: give ones of the same base",
            AlgebraError::TargetKinds { .. } => {
                "PEFT refuses this, too: write the targets of both as lists in `adapter_config.json`, which names the same modules"
            }
            AlgebraError::Ranks { .. } => {
                "`--method cat` and `--method svd` take any ranks; `janus adapter resize DIR --rank R` changes one"
            }
            AlgebraError::Needs { option: "--density", .. } => {
                "give the share of values to keep, such as `--density 0.5`"
            }
            AlgebraError::Needs { .. } => "give it",
            AlgebraError::Idle { option: "--rank", .. } => {
                "leave it out, or take a method whose name ends in `svd`; `janus adapter resize` changes a rank"
            }
            AlgebraError::Idle { .. } => {
                "leave it out, or take a method that prunes: `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`, and with `_svd`"
            }
            AlgebraError::RankOfOne { .. } => "`janus adapter resize DIR --rank R` gives it another rank",
            AlgebraError::ClaimedRank { .. } => {
                "no site has such a rank: lower it in `adapter_config.json`, or give `--rank` with a method whose name ends in `svd`"
            }
            AlgebraError::WholeShift { .. } => "`--method svd` and `--method cat` work on the factors alone",
            AlgebraError::Range { .. } => "give a number in that range",
            AlgebraError::NotFinite { .. } => {
                "see `janus adapter inspect` of what goes into it, and give smaller weights"
            }
            AlgebraError::NoNumber { .. } => "training may have gone astray: take an earlier checkpoint",
            AlgebraError::Checkpoints { .. } => "give the base and what was trained from it",
            AlgebraError::NothingChanged { outside: 1.., .. } => {
                "name what changed with `--targets`, such as `--targets all,lm_head,embed_tokens`"
            }
            AlgebraError::NothingChanged { .. } => "give a checkpoint that was trained",
            AlgebraError::Picture { .. } => return Vec::new(),
        };
        vec![hint.into()]
    }
}

fn listed(parts: &[String]) -> String {
    parts.iter().map(|part| format!("`{part}`")).collect::<Vec<_>>().join(", ")
}

fn at_site(site: &Option<String>) -> String {
    site.as_ref().map(|site| format!(" at `{site}`")).unwrap_or_default()
}
