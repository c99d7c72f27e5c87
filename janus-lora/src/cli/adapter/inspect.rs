//! `janus adapter inspect`.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use clap::Args;
use janus_core::output::{require_file, write_file};
use janus_core::site::{Base as _, Correction, Kronecker, LowRank, Term};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::super::arguments::{open_base, read_adapter_folder};
use super::super::out::{done, result};
use super::super::report;
use super::super::sandbox::Writes;
use super::super::status::Terminal;
use super::locate_whole;
use crate::adapter::{AdaptedSite, Adapter, Placed, Together};
use crate::algebra::{SiteSpectrum, Spectrum, picture};
use crate::base::{Base, StoredSite};
use crate::error::{Error, Result};
use crate::report::scale::short;
use crate::visible::one_line;

/// Tell what an adapter folder holds, checked against its base
#[derive(Debug, Args)]
#[command(
    after_help = "The shift of a site is what it adds to the weight, scale · B·A of a low-rank pair; its norm is the root of the
sum of its squared values. Singular values are shown for low-rank pairs and Kronecker products, and for
other shifts with at most 256 outputs or inputs; the effective rank is exp(-sum p ln p) with p the
share of each squared singular value: as many equal ones would be as spread.

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
    /// Of A and B, where the method has them.
    norms: Option<[f32; 2]>,
    /// Of the weight's shift.
    norm: f64,
    /// Of the shift, where it is not too large to be decomposed.
    spectrum: Option<Spectrum>,
}

impl Told {
    fn of(own: &AdaptedSite, correction: &Correction, base: &StoredSite<'_>) -> Result<Self> {
        let norm = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.sqrt()?.to_scalar()?) };
        let norms = own.pair().map(|[a, b]| Ok::<_, Error>([norm(a)?, norm(b)?])).transpose()?;
        let is_plain = correction.input.is_none() && correction.output.is_none();
        let spectrum = match correction.terms.as_slice() {
            [Term::LowRank(LowRank { a, b, scale, .. })] if is_plain => Some(Spectrum::of(a, b, *scale)?),
            [Term::Kronecker(Kronecker { left, right, scale })] if is_plain => {
                Spectrum::of_kronecker(left, right, *scale)?
            }
            _ => None,
        };
        let (norm, spectrum) = match spectrum {
            Some(spectrum) => (spectrum.norm, Some(spectrum)),
            None => {
                let weight = base.weight()?;
                let shift = (correction.fold(base.site, weight.clone())? - weight)?;
                (f64::from(norm(&shift)?), Spectrum::of_shift(&shift)?)
            }
        };
        let (path, rank, scale) = (own.site.path.to_string(), own.rank, own.scale);
        Ok(Self { path, rank, scale, norms, norm, spectrum })
    }

    /// Of every site of an adapter.
    fn all(adapter: &Adapter, base: &Base) -> Result<Vec<Self>> {
        let together = Together::of(&[Placed::own(adapter, 1.0, &Device::Cpu)?], base.config())?;
        let corrections = adapter.sites.values().map(|own| {
            let stored = StoredSite { base, site: &own.site };
            Ok((own, together.correction(&own.site, &stored)?))
        });
        let corrections = corrections.collect::<Result<Vec<_>>>()?;
        let told = corrections
            .par_iter()
            .map(|(own, correction)| Self::of(own, correction, &StoredSite { base, site: &own.site }));
        told.collect()
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
        let sites = Told::all(&adapter, &base)?;
        if let Some(file) = &file {
            let spectra: Vec<SiteSpectrum> = sites
                .iter()
                .filter_map(|site| Some(SiteSpectrum { path: site.path.clone(), spectrum: site.spectrum.clone()? }))
                .collect();
            if spectra.is_empty() {
                let message = format!("`{}` has no shift that is drawn", folder.display());
                return Err(Error::Usage { message, hint: "leave `--picture` out".into() });
            }
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
            let [norm_a, norm_b] = site.norms.map_or([None; 2], |norms| norms.map(Some));
            let spectrum = site.spectrum.as_ref();
            json!({
                "path": site.path, "rank": site.rank, "scale": site.scale, "norm_a": norm_a, "norm_b": norm_b,
                "norm": site.norm, "effective_rank": spectrum.map(|spectrum| spectrum.effective_rank),
                "spectrum": spectrum.map(|spectrum| &spectrum.spectrum),
            })
        })
        .collect();
    let saved: Vec<&str> = adapter.saved.keys().map(AsRef::as_ref).collect();
    let heads: Map<String, Value> =
        adapter.heads.iter().map(|(name, head)| (name.to_string(), json!(head.kind))).collect();
    json!({
        "method": adapter.config.method.name(), "sites": sites, "modules_to_save": saved, "dynamic": adapter.dynamic.is_some(), "heads": heads,
        "parameters": adapter.parameter_count(), "base_fingerprint": fingerprint(adapter),
    })
}

fn tell(adapter: &Adapter, sites: &[Told]) {
    let row = |site: &Told| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let of_pair = |half: usize| or_none(site.norms.map(|norms| format!("{:.4}", norms[half])));
        let spectrum = site.spectrum.as_ref();
        vec![
            site.path.clone(),
            site.rank.to_string(),
            format!("{}", site.scale),
            of_pair(0),
            of_pair(1),
            short(site.norm),
            or_none(spectrum.map(|spectrum| format!("{:.2}", spectrum.effective_rank))),
            or_none(spectrum.map(|spectrum| short(spectrum.spectrum.first().copied().unwrap_or(0.0)))),
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
    result!(
        "{}, {} sites, {} parameters",
        adapter.config.method,
        sites.len(),
        report::count(adapter.parameter_count() as u64)
    );
    match fingerprint(adapter) {
        Some(fingerprint) => result!("base {}", one_line(fingerprint)),
        None => result!("the folder does not say which base it was trained on"),
    }
}
