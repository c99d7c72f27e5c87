//! `janus adapter`.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::arguments::{locate, open_base, read_adapter_folder};
use super::out::result;
use super::report;
use super::status::Terminal;
use crate::error::{Error, Result};
use crate::visible::one_line;

#[derive(Debug, Subcommand)]
pub(super) enum AdapterCommand {
    /// Tell what an adapter folder holds, checked against its base
    #[command(after_help = "Examples:
  janus adapter inspect runs/inspection
  janus adapter inspect runs/inspection --base deepseek-ai/Janus-Pro-1B
  janus adapter inspect runs/inspection --base base --json")]
    Inspect {
        /// Adapter folder or hub id
        folder: String,
        /// The base it was made for; may be left out where the adapter names one that is there
        #[arg(long)]
        base: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl AdapterCommand {
    pub(super) fn run(self) -> Result<()> {
        let AdapterCommand::Inspect { folder, base, json } = self;
        let (folder, factor) = locate(&folder, &Terminal)?;
        if factor != 1.0 {
            let message = format!("`{}` is looked into as it is, without a factor", folder.display());
            return Err(Error::Usage { message, hint: "leave the number behind the colon out".into() });
        }
        let base = open_base(base.as_deref(), &[&folder], &Terminal)?;
        let adapter = read_adapter_folder(&folder, factor, &base, &Terminal)?;
        let mut sites = Vec::new();
        for (path, site) in &adapter.sites {
            let norm = |t: &candle_core::Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.sqrt()?.to_scalar()?) };
            let [a, b] = match site.pair() {
                Some([a, b]) => [norm(a)?, norm(b)?],
                None => [0.0; 2],
            };
            sites.push((path.to_string(), site.rank, site.scale, a, b));
        }
        let parameters = adapter.parameter_count();
        let fingerprint =
            adapter.note.as_ref().and_then(|note| note.base.as_ref()).map(|base| base.fingerprint.as_str());
        if json {
            let sites: Vec<_> = sites
                .iter()
                .map(|(path, rank, scale, a, b)| json!({ "path": path, "rank": rank, "scale": scale, "norm_a": a, "norm_b": b }))
                .collect();
            let saved: Vec<&str> = adapter.saved.keys().map(AsRef::as_ref).collect();
            let heads: Map<String, Value> =
                adapter.heads.iter().map(|(name, head)| (name.to_string(), json!(head.kind))).collect();
            report::json(&json!({
                "sites": sites, "modules_to_save": saved, "dynamic": adapter.dynamic.is_some(), "heads": heads,
                "parameters": parameters, "base_fingerprint": fingerprint,
            }));
            return Ok(());
        }
        let rows: Vec<Vec<String>> = sites
            .iter()
            .map(|(path, rank, scale, a, b)| {
                vec![path.clone(), rank.to_string(), format!("{scale}"), format!("{a:.4}"), format!("{b:.4}")]
            })
            .collect();
        result!("{}", report::table(&["site", "rank", "scale", "norm of A", "norm of B"], &rows));
        for name in adapter.saved.keys() {
            result!("copy of {}", one_line(name));
        }
        if let Some(dynamic) = &adapter.dynamic {
            let values: usize = dynamic.values().values().map(candle_core::Tensor::elem_count).sum();
            let places = [("vision", dynamic.paths().vision), ("generation", dynamic.paths().generation)];
            let places: Vec<&str> = places.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
            result!("dynamic encoder of {}, {} values", places.join(" and "), report::count(values as u64));
        }
        for (name, head) in &adapter.heads {
            let labels = head.kind.labels();
            let told = if labels.is_empty() { String::new() } else { format!(": {}", labels.join(", ")) };
            result!("head `{}` to {}{}", one_line(name), head.kind.task(), one_line(&told));
        }
        result!("{} sites, {} parameters", sites.len(), report::count(parameters as u64));
        match fingerprint {
            Some(fingerprint) => result!("base {}", one_line(fingerprint)),
            None => result!("the folder does not say which base it was trained on"),
        }
        Ok(())
    }
}
