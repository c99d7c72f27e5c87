//! `janus adapter inspect`.

use std::path::PathBuf;

use clap::Args;
use janus_core::output::{require_file, write_file};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::super::arguments::{open_base, read_adapter_folder};
use super::super::out::{done, result};
use super::super::report;
use super::super::sandbox::Writes;
use super::super::status::Terminal;
use super::locate_whole;
use crate::adapter::{Adapter, Pair};
use crate::algebra::{SiteSpectrum, Spectrum, picture};
use crate::error::{Error, Result};
use crate::report::scale::short;
use crate::visible::one_line;

/// Tell what an adapter folder holds, checked against its base
#[derive(Debug, Args)]
#[command(
    after_help = "The shift of a site is scale · B·A, its norm the root of the sum of its squared singular values.
The effective rank is exp(-sum p ln p) with p the share of each squared singular value: as many
equal ones would be as spread.

Examples:
  janus adapter inspect runs/inspection
  janus adapter inspect runs/inspection --base deepseek-ai/Janus-Pro-1B
  janus adapter inspect runs/inspection --picture spectra.png
  janus adapter inspect runs/inspection --base base --json"
)]
pub(in super::super) struct Inspect {
    /// Adapter folder or hub id
    folder: String,
    /// The base it was made for; may be left out where the adapter names one that is there
    #[arg(long)]
    base: Option<String>,
    /// Draw the singular values of every site into a PNG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is told of a site.
struct Told {
    path: String,
    rank: usize,
    scale: f64,
    norm_a: f32,
    norm_b: f32,
    spectrum: Spectrum,
}

impl Told {
    fn of(path: &str, pair: &Pair) -> Result<Self> {
        let norm = |t: &candle_core::Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.sqrt()?.to_scalar()?) };
        let (norm_a, norm_b) = (norm(&pair.a)?, norm(&pair.b)?);
        let spectrum = Spectrum::of(&pair.a, &pair.b, pair.scale)?;
        Ok(Self { path: path.to_owned(), rank: pair.rank, scale: pair.scale, norm_a, norm_b, spectrum })
    }
}

impl Inspect {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        self.picture.as_deref().map_or_else(Writes::nothing, Writes::output)
    }

    pub(super) fn run(self) -> Result<()> {
        let file = self.picture.as_deref().map(require_file).transpose()?;
        let folder = locate_whole(&self.folder)?;
        let base = open_base(self.base.as_deref(), &[&folder], &Terminal)?;
        let adapter = read_adapter_folder(&folder, 1.0, &base, &Terminal)?;
        let pairs: Vec<(&str, &Pair)> = adapter.pairs.iter().map(|(path, pair)| (&**path, pair)).collect();
        let sites: Vec<Told> = pairs.into_par_iter().map(|(path, pair)| Told::of(path, pair)).collect::<Result<_>>()?;
        if let Some(file) = &file {
            if sites.is_empty() {
                let message = format!("`{}` has no pair to draw", folder.display());
                return Err(Error::Usage { message, hint: "leave `--picture` out".into() });
            }
            let spectra: Vec<SiteSpectrum> = sites
                .iter()
                .map(|site| SiteSpectrum { path: site.path.clone(), spectrum: site.spectrum.clone() })
                .collect();
            let bytes = picture(&spectra)?;
            write_file(file, |out| out.write_all(&bytes))?;
        }
        if self.json {
            report::json(&as_json(&adapter, &sites));
            return Ok(());
        }
        tell(&adapter, &sites);
        if let Some(picture) = &self.picture {
            done!("{}: the spectra", picture.display());
        }
        Ok(())
    }
}

fn fingerprint(adapter: &Adapter) -> Option<&str> {
    adapter.note.as_ref()?.base.as_ref().map(|base| base.fingerprint.as_str())
}

fn as_json(adapter: &Adapter, sites: &[Told]) -> Value {
    let sites: Vec<_> = sites
        .iter()
        .map(|site| {
            json!({
                "path": site.path, "rank": site.rank, "scale": site.scale, "norm_a": site.norm_a, "norm_b": site.norm_b,
                "norm": site.spectrum.norm, "effective_rank": site.spectrum.effective_rank,
                "spectrum": site.spectrum.spectrum,
            })
        })
        .collect();
    let saved: Vec<&str> = adapter.saved.keys().map(AsRef::as_ref).collect();
    let heads: Map<String, Value> =
        adapter.heads.iter().map(|(name, head)| (name.to_string(), json!(head.kind))).collect();
    json!({
        "sites": sites, "modules_to_save": saved, "dynamic": adapter.dynamic.is_some(), "heads": heads,
        "parameters": adapter.parameter_count(), "base_fingerprint": fingerprint(adapter),
    })
}

fn tell(adapter: &Adapter, sites: &[Told]) {
    let row = |site: &Told| {
        let greatest = site.spectrum.spectrum.first().copied().unwrap_or(0.0);
        vec![
            site.path.clone(),
            site.rank.to_string(),
            format!("{}", site.scale),
            format!("{:.4}", site.norm_a),
            format!("{:.4}", site.norm_b),
            short(site.spectrum.norm),
            format!("{:.2}", site.spectrum.effective_rank),
            short(greatest),
        ]
    };
    let rows: Vec<Vec<String>> = sites.iter().map(row).collect();
    let headings = ["site", "rank", "scale", "norm of A", "norm of B", "norm of shift", "eff. rank", "greatest"];
    result!("{}", report::table(&headings, &rows));
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
    result!("{} sites, {} parameters", sites.len(), report::count(adapter.parameter_count() as u64));
    match fingerprint(adapter) {
        Some(fingerprint) => result!("base {}", one_line(fingerprint)),
        None => result!("the folder does not say which base it was trained on"),
    }
}
