//! Which modules of the base a configuration means: PEFT's matching on native module paths.
//! Source of the rules: PEFT 0.21.2, `check_target_module_exists` and `_set_trainable`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use janus_core::checkpoint::{EMBED_TOKENS, ExpectedTensor, LM_HEAD, expected_tensors};
use janus_core::config::JanusConfig;
use janus_core::site::{Site, SiteKind, sites};

use super::error::AdapterError;
use super::method::{At, Method};
use super::pattern::Pattern;
use super::peft_config::{ModuleNames, PeftConfig, cut};

/// Entries of a field that a remark lists; the others are counted.
const LISTED: usize = 8;

/// Path of the text head, which `all-linear` leaves out.
const TEXT_HEAD: &str = "lm_head";

/// A site that the adapter has something at.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedSite {
    /// The site.
    pub site: Site,
    /// Rank of its factors.
    pub rank: usize,
    /// Numerator of its scale.
    pub alpha: f64,
    /// Whether (IA)³ has its factors on the input here.
    pub is_feedforward: bool,
}

impl SelectedSite {
    pub(super) fn at(&self) -> At<'_> {
        At { site: &self.site, rank: self.rank, is_feedforward: self.is_feedforward }
    }
}

/// What a configuration selects of a base.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Sites with tensors of their own, in the order of the model's modules.
    pub sites: Vec<SelectedSite>,
    /// Parameters with a copy, likewise.
    pub saved: Vec<ExpectedTensor>,
    /// What the configuration names and the base does not have, and ties that tie nothing, in words: worth a warning.
    pub remarks: Vec<String>,
}

/// Applies a configuration to a base; `tied` where the base's text head is its embedding table.
///
/// # Errors
/// Expressions that cannot be applied, targets that match nothing or what has no site, a site that is also in
/// `modules_to_save`, a copy of one half of a tied pair, or a pair that is to be tied.
pub fn select(config: &PeftConfig, base: &JanusConfig, tied: bool) -> Result<Selection, AdapterError> {
    let modules = Modules::of(base);
    let rules = Rules::new(config, &modules)?;
    let saved = saved_parameters(&config.modules_to_save, base, tied)?;
    let mut selected = Vec::new();
    for path in &modules.paths {
        if !rules.targets(path) {
            continue;
        }
        let Some(site) = modules.sites.get(path.as_str()) else {
            return Err(AdapterError::NotASite { path: path.clone() });
        };
        // The rule that keeps targets out of `modules_to_save` respects whole segments, the one that saves does not.
        if saved.iter().any(|parameter| owns(path, &parameter.name)) {
            return Err(AdapterError::TargetedAndSaved { path: path.clone() });
        }
        let rank = rules.ranks.iter().find(|(pattern, _)| pattern.is_match(path)).map_or(config.rank, |(_, r)| *r);
        let alpha = rules.alphas.iter().find(|(pattern, _)| pattern.is_match(path)).map_or(config.alpha, |(_, a)| *a);
        if !config.method.takes(site.kind) {
            return Err(AdapterError::NotForSite { path: path.clone(), method: config.method.name() });
        }
        let is_feedforward = rules.feedforward(path);
        selected.push(SelectedSite { site: site.clone(), rank, alpha, is_feedforward });
    }
    if selected.is_empty() && config.targets != ModuleNames::Nothing {
        return Err(nothing_selected(config, &modules, &rules));
    }
    let mut remarks = unmatched(config, &modules, &rules, &selected, &saved);
    if config.ties_weights {
        let tied_sites = [EMBED_TOKENS, LM_HEAD].map(|name| name.trim_end_matches(".weight"));
        if tied && selected.iter().any(|selected| tied_sites.contains(&&*selected.site.path)) {
            return Err(AdapterError::Unsupported { fields: vec!["`ensure_weight_tying` = `true`".into()] });
        }
        remarks
            .push("`ensure_weight_tying` in `adapter_config.json` is passed over: nothing of it is tied here".into());
    }
    Ok(Selection { sites: selected, saved, remarks })
}

/// Why a configuration selects nothing: its targets are no modules, or others of its fields leave none of them.
fn nothing_selected(config: &PeftConfig, modules: &Modules, rules: &Rules) -> AdapterError {
    let targets = cut(&describe(&config.targets));
    let meant: Vec<&String> = modules.paths.iter().filter(|path| rules.targets.is_match(path)).collect();
    let mut fields = Vec::new();
    if meant.iter().any(|path| rules.excluded.is_match(path)) {
        fields.push(format!("`exclude_modules` = `{}`", cut(&describe(&config.excluded))));
    }
    if let Some(layers) = config.layers.as_ref().filter(|_| meant.iter().any(|path| !rules.is_of_layer(path))) {
        let layers: Vec<String> = layers.iter().map(u64::to_string).collect();
        fields.push(format!("`layers_to_transform` = `{}`", cut(&layers.join(", "))));
        if !config.layers_patterns.is_empty() {
            fields.push(format!("`layers_pattern` = `{}`", cut(&config.layers_patterns.join(", "))));
        }
    }
    if fields.is_empty() {
        return AdapterError::NothingTargeted { targets };
    }
    AdapterError::NothingLeft { targets, fields }
}

/// Entries of the configuration that nothing of the base matches, a sentence a field.
fn unmatched(
    config: &PeftConfig,
    modules: &Modules,
    rules: &Rules,
    selected: &[SelectedSite],
    saved: &[ExpectedTensor],
) -> Vec<String> {
    let no_target = |pattern: &Pattern| !selected.iter().any(|selected| pattern.is_match(&selected.site.path));
    let ranks = config.rank_patterns.iter().zip(&rules.ranks).filter(|(_, (pattern, _))| no_target(pattern));
    let alphas = config.alpha_patterns.iter().zip(&rules.alphas).filter(|(_, (pattern, _))| no_target(pattern));
    let is_module = |name: &str| {
        let suffix = format!(".{name}");
        modules.paths.iter().any(|path| path == name || path.ends_with(&suffix))
    };
    // Before anything is taken away from it.
    let meant: Vec<&String> = modules.paths.iter().filter(|path| rules.targets.is_match(path)).collect();
    let takes_nothing = |ending: &&String| {
        let suffix = format!(".{ending}");
        !meant.iter().any(|path| path == ending || path.ends_with(&suffix))
    };
    let excluded = match &config.excluded {
        ModuleNames::Suffixes(names) => names.iter().filter(takes_nothing).cloned().collect(),
        ModuleNames::Expression(text) if !meant.iter().any(|path| rules.excluded.is_match(path)) => vec![text.clone()],
        _ => Vec::new(),
    };
    let no_layer = |pattern: &Pattern| !meant.iter().any(|path| pattern.is_match(path));
    // Without an entry the one of the rules is no entry of the file's.
    let layers_patterns = config.layers_patterns.iter().zip(&rules.layers_patterns).filter(|(_, p)| no_layer(p));
    let targets = match &config.targets {
        ModuleNames::Suffixes(names) => names.iter().filter(|name| !is_module(name)).cloned().collect(),
        _ => Vec::new(),
    };
    let copies = |entry: &&String| !saved.iter().any(|parameter| saves(entry, &parameter.name));
    let present: HashSet<u64> = selected.iter().filter_map(|selected| rules.layer_of(&selected.site.path)).collect();
    let layers = config.layers.iter().flatten().filter(|layer| !present.contains(layer));
    let fields = [
        ("target_modules", "module of the base", targets),
        ("exclude_modules", "target", excluded),
        ("layers_pattern", "target", layers_patterns.map(|(text, _)| text.clone()).collect()),
        ("layers_to_transform", "target", layers.map(u64::to_string).collect()),
        ("rank_pattern", "target", ranks.map(|((text, _), _)| text.clone()).collect()),
        ("alpha_pattern", "target", alphas.map(|((text, _), _)| text.clone()).collect()),
        ("modules_to_save", "module of the base", config.modules_to_save.iter().filter(copies).cloned().collect()),
    ];
    let remark = |(field, what, entries): (&str, &str, Vec<String>)| {
        let shown: Vec<String> = entries.iter().take(LISTED).map(|entry| format!("`{}`", cut(entry))).collect();
        let more = entries.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let listed = shown.join(", ");
        (!entries.is_empty()).then(|| format!("{listed}{more} in `{field}` of `adapter_config.json` matches no {what}"))
    };
    fields.into_iter().filter_map(remark).collect()
}

impl Selection {
    /// Refuses an adapter without pairs and copies that has nothing else either.
    ///
    /// # Errors
    /// [`AdapterError::NothingTargeted`].
    pub fn require_some(&self, config: &PeftConfig, has_more: bool) -> Result<(), AdapterError> {
        if self.sites.is_empty() && self.saved.is_empty() && !has_more {
            return Err(AdapterError::NothingTargeted { targets: describe(&config.targets) });
        }
        Ok(())
    }
}

/// Whole paths of the modules that trailing segments such as `generation_head` or `aligner.fc1` mean, without those that
/// lie inside another one.
///
/// # Errors
/// An entry that no module ends in.
pub fn resolve_modules(entries: &[String], base: &JanusConfig) -> Result<Vec<String>, AdapterError> {
    let modules = Modules::of(base);
    let mut found: Vec<String> = Vec::new();
    for entry in entries {
        let before = found.len();
        let suffix = format!(".{entry}");
        found.extend(modules.paths.iter().filter(|path| *path == entry || path.ends_with(&suffix)).cloned());
        if found.len() == before || entry.is_empty() {
            return Err(AdapterError::UnknownModule { path: entry.clone() });
        }
    }
    found.sort();
    found.dedup();
    let outer: HashSet<String> = found.iter().cloned().collect();
    found.retain(|path| !path.match_indices('.').any(|(end, _)| outer.contains(&path[..end])));
    Ok(found)
}

/// Parameters of the modules whose path ends in one of `entries`, be it within a segment.
fn saved_parameters(entries: &[String], base: &JanusConfig, tied: bool) -> Result<Vec<ExpectedTensor>, AdapterError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let is_saved = |name: &str| entries.iter().any(|entry| saves(entry, name));
    let saved: Vec<_> = expected_tensors(base, true).into_iter().filter(|t| is_saved(&t.name)).collect();
    if let Some(half) = saved.iter().find(|t| tied && (t.name == EMBED_TOKENS || t.name == LM_HEAD)) {
        return Err(AdapterError::TiedCopy { name: half.name.clone() });
    }
    Ok(saved)
}

/// Whether an entry of `modules_to_save` means a module that a parameter is in.
pub(crate) fn saves(entry: &str, parameter: &str) -> bool {
    parameter.match_indices('.').any(|(end, _)| parameter[..end].ends_with(entry))
}

/// Whether a parameter is a module's own or of a module inside it.
fn owns(path: &str, parameter: &str) -> bool {
    parameter.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
}

fn describe(names: &ModuleNames) -> String {
    match names {
        ModuleNames::Suffixes(names) => names.join(", "),
        ModuleNames::Expression(text) => text.clone(),
        ModuleNames::AllLinear => "all-linear".into(),
        ModuleNames::Nothing => String::new(),
    }
}

/// The module tree of a base, as far as parameters make it known.
struct Modules {
    /// Every module that holds a parameter or a module that does, each once, parents first.
    paths: Vec<String>,
    sites: BTreeMap<Arc<str>, Site>,
}

impl Modules {
    fn of(base: &JanusConfig) -> Self {
        let mut seen = HashSet::new();
        let mut paths = Vec::new();
        for tensor in expected_tensors(base, true) {
            for (end, _) in tensor.name.match_indices('.') {
                if seen.insert(tensor.name[..end].to_string()) {
                    paths.push(tensor.name[..end].to_string());
                }
            }
        }
        Self { paths, sites: sites(base).into_iter().map(|site| (site.path.clone(), site)).collect() }
    }
}

/// Names, compiled.
enum Names {
    Suffixes { exact: HashSet<String>, endings: Vec<String> },
    Expression(Pattern),
    Nothing,
}

impl Names {
    fn new(key: &str, names: &ModuleNames, modules: &Modules) -> Result<Self, AdapterError> {
        let suffixes = |names: Vec<String>| Names::Suffixes {
            endings: names.iter().map(|name| format!(".{name}")).collect(),
            exact: names.into_iter().collect(),
        };
        Ok(match names {
            ModuleNames::Suffixes(names) => suffixes(names.clone()),
            ModuleNames::Expression(text) => Names::Expression(Pattern::whole(key, text)?),
            ModuleNames::AllLinear => {
                let linear = modules.sites.values().filter(|s| s.kind == SiteKind::Linear && &*s.path != TEXT_HEAD);
                suffixes(linear.map(|site| site.path.to_string()).collect())
            }
            ModuleNames::Nothing => Names::Nothing,
        })
    }

    fn is_match(&self, path: &str) -> bool {
        match self {
            Names::Suffixes { exact, endings } => exact.contains(path) || endings.iter().any(|e| path.ends_with(e)),
            Names::Expression(pattern) => pattern.is_match(path),
            Names::Nothing => false,
        }
    }

    /// Whether a list names the whole path: `layers_to_transform` has no say then.
    fn is_exact(&self, path: &str) -> bool {
        matches!(self, Names::Suffixes { exact, .. } if exact.contains(path))
    }
}

/// A configuration's expressions, compiled once.
struct Rules {
    targets: Names,
    excluded: Names,
    saved: Vec<Pattern>,
    layers: Option<Vec<u64>>,
    layers_patterns: Vec<Pattern>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    feedforward: Feedforward,
}

/// Which targets are feed-forward, by PEFT's own rule: a list names ends of paths, be it within a segment.
enum Feedforward {
    Endings(Vec<String>),
    Expression(Pattern),
}

impl Rules {
    fn new(config: &PeftConfig, modules: &Modules) -> Result<Self, AdapterError> {
        let saved = &config.modules_to_save;
        let saved =
            saved.iter().map(|m| Pattern::from_start("modules_to_save", &format!(r"(^|.*\.){m}($|\..*)"), saved.len()));
        // Without a pattern, the first numbered segment is the layer's.
        let layers_patterns = if config.layers_patterns.is_empty() {
            vec![Pattern::from_start("layers_pattern", r".*?\.[^.]*\.(?P<idx>\d+)\.", 1)?]
        } else {
            let among = config.layers_patterns.len();
            let numbered = |p: &String| format!(r"(?:^|.*?\.){p}\.(?P<idx>\d+)\.");
            let patterns = config.layers_patterns.iter();
            let patterns = patterns.map(|p| Pattern::from_start("layers_pattern", &numbered(p), among));
            patterns.collect::<Result<_, _>>()?
        };
        Ok(Self {
            targets: Names::new("target_modules", &config.targets, modules)?,
            excluded: Names::new("exclude_modules", &config.excluded, modules)?,
            saved: saved.collect::<Result<_, _>>()?,
            layers: config.layers.clone(),
            layers_patterns,
            ranks: endings("rank_pattern", &config.rank_patterns)?,
            alphas: endings("alpha_pattern", &config.alpha_patterns)?,
            feedforward: match &config.method {
                Method::Ia3 { feedforward: ModuleNames::Expression(text) } => {
                    Feedforward::Expression(Pattern::whole("feedforward_modules", text)?)
                }
                Method::Ia3 { feedforward: ModuleNames::Suffixes(names) } => Feedforward::Endings(names.clone()),
                _ => Feedforward::Endings(Vec::new()),
            },
        })
    }

    fn feedforward(&self, path: &str) -> bool {
        match &self.feedforward {
            Feedforward::Endings(endings) => endings.iter().any(|ending| path.ends_with(ending)),
            Feedforward::Expression(pattern) => pattern.is_match(path),
        }
    }

    fn targets(&self, path: &str) -> bool {
        if self.excluded.is_match(path) || self.saved.iter().any(|pattern| pattern.is_match(path)) {
            return false;
        }
        if !self.targets.is_match(path) {
            return false;
        }
        self.is_of_layer(path)
    }

    /// Whether the numbers of layers let a module be a target.
    fn is_of_layer(&self, path: &str) -> bool {
        match &self.layers {
            Some(layers) if !self.targets.is_exact(path) => {
                self.layer_of(path).is_some_and(|layer| layers.contains(&layer))
            }
            _ => true,
        }
    }

    /// The number of the layer that a module is in.
    fn layer_of(&self, path: &str) -> Option<u64> {
        let pattern = self.layers_patterns.iter().find(|pattern| pattern.is_match(path))?;
        pattern.group(path, "idx")?.parse().ok()
    }
}

/// `rank_pattern` and `alpha_pattern`: the end of a path, from the start of a segment.
pub(crate) fn endings<T: Copy>(key: &str, patterns: &[(String, T)]) -> Result<Vec<(Pattern, T)>, AdapterError> {
    let compile = |(pattern, value): &(String, T)| {
        Pattern::from_start(key, &format!(r"(.*\.)?({pattern})$"), patterns.len()).map(|compiled| (compiled, *value))
    };
    patterns.iter().map(compile).collect()
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
