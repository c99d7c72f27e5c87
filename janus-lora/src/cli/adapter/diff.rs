//! `janus adapter diff`.

use clap::Args;

use super::super::out::result;
use super::super::report;
use super::{locate_whole, read};
use crate::algebra::{Difference, Norms, TensorDifference, diff};
use crate::error::Result;
use crate::report::scale::short;
use crate::visible::one_line;

/// Characters of a field's value that are shown.
const MAX_VALUE: usize = 60;

/// Tell what two adapters differ by, site by site
#[derive(Debug, Args)]
#[command(after_help = "Norms are Frobenius norms of scale · B·A; the cosine is that of both shifts taken as vectors.
No base is needed.

Examples:
  janus adapter diff runs/a runs/b
  janus adapter diff runs/a runs/a-resized --json")]
pub(in super::super) struct Diff {
    /// Adapter folder or hub id
    a: String,
    /// The other one
    b: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(super) fn run(self) -> Result<()> {
        let (a, b) = (locate_whole(&self.a)?, locate_whole(&self.b)?);
        let difference = diff(&read(&a)?, &read(&b)?)?;
        if self.json {
            report::json(&difference);
            return Ok(());
        }
        tell(&difference);
        Ok(())
    }
}

fn tell(difference: &Difference) {
    let numbers = |norms: &Norms| {
        let cosine = norms.cosine.map_or_else(String::new, |cosine| format!("{cosine:.4}"));
        [short(norms.norm_a), short(norms.norm_b), short(norms.norm_of_difference), cosine]
    };
    let rank = |rank: Option<usize>| rank.map_or_else(String::new, |rank| rank.to_string());
    let mut rows: Vec<Vec<String>> = Vec::new();
    for site in &difference.sites {
        let ranks = site.ranks.map(rank);
        rows.push([vec![site.path.clone()], ranks.to_vec(), numbers(&site.norms).to_vec()].concat());
    }
    let none = [String::new(), String::new()];
    rows.push([vec!["all together".to_owned()], none.to_vec(), numbers(&difference.total).to_vec()].concat());
    result!("{}", report::table(&["site", "rank A", "rank B", "|A|", "|B|", "|A - B|", "cosine"], &rows));
    for (kind, tensors) in [("copy of", &difference.modules_to_save), ("extra", &difference.extras)] {
        for tensor in tensors {
            result!("{kind} {}: {}", one_line(&tensor.name), how(tensor));
        }
    }
    for (field, [one, other]) in &difference.config {
        let shown = |value: &serde_json::Value| {
            let text = value.to_string();
            let cut: String = text.chars().take(MAX_VALUE).collect();
            let more = if text.chars().nth(MAX_VALUE).is_some() { "…" } else { "" };
            format!("{}{more}", one_line(&cut))
        };
        result!("`{}` is {} in A, {} in B", one_line(field), shown(one), shown(other));
    }
    match &difference.base_fingerprints {
        [Some(one), Some(other)] if one != other => {
            result!("they were made for different bases: {} and {}", one_line(one), one_line(other));
        }
        [Some(_), Some(_)] => result!("they were made for the same base"),
        _ => result!("not both say which base they were made for"),
    }
    if difference.same {
        result!("they change the same by the same");
    }
}

fn how(tensor: &TensorDifference) -> String {
    match (tensor.of, tensor.norm_of_difference) {
        ("a", _) => "only in A".into(),
        ("b", _) => "only in B".into(),
        (_, Some(norm)) => format!("differs by {}", short(norm)),
        _ => "differs".into(),
    }
}
