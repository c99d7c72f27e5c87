//! Which parameters an adapter sits on: presets by name and patterns over native checkpoint paths.
//!
//! A preset is exact: its patterns are anchored at the start of the path, so it takes the sites of its part of the
//! model and nothing else. A pattern that the user writes matches trailing whole segments of a path; `*` matches
//! within one segment, `**` any number of whole segments. Paths are those of modules (`model.aligner.fc1`), without
//! `.weight`.

use janus_core::Diagnose;

use crate::nearest::nearest;

/// Longest pattern accepted, in bytes; the longest path of a Janus checkpoint is below 100.
const MAX_PATTERN_BYTES: usize = 1024;

/// Targets that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The pattern has no text.
    #[error("a target is empty")]
    Empty,
    /// Two dots in a row, or one at an end.
    #[error("target `{pattern}` has an empty segment")]
    EmptySegment {
        /// The pattern.
        pattern: String,
    },
    /// `**` beside other characters in one segment.
    #[error("target `{pattern}`: `**` must be a whole segment, got `{segment}`")]
    MisplacedDoubleStar {
        /// The pattern.
        pattern: String,
        /// The segment at fault.
        segment: String,
    },
    /// A character that no path has.
    #[error("target `{}` holds {character:?}, which no checkpoint path has", pattern.escape_debug())]
    IllegalCharacter {
        /// The pattern.
        pattern: String,
        /// The character.
        character: char,
    },
    /// The pattern is too long to be one.
    #[error("a target of {got} bytes is too long, at most {limit} are read")]
    TooLong {
        /// Its bytes.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// Targets that match no path.
    #[error("{} no site of the model", unmatched_list(targets))]
    NoMatch {
        /// Each target and what comes nearest to it.
        targets: Vec<UnmatchedTarget>,
    },
}

/// A target that matches no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmatchedTarget {
    /// The target as written.
    pub target: String,
    /// What may have been meant.
    pub nearest: Option<NearTarget>,
}

/// What may have been meant by a target that matches no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NearTarget {
    /// A preset, or the last segment of some path, spelt almost alike.
    Name(String),
    /// A path whose last segment is the target's; the rest of the target is wrong.
    Path(String),
}

fn unmatched_list(targets: &[UnmatchedTarget]) -> String {
    let names: Vec<String> = targets.iter().map(|t| format!("`{}`", t.target)).collect();
    match names.as_slice() {
        [one] => format!("target {one} matches"),
        several => format!("targets {} match", several.join(", ")),
    }
}

impl Diagnose for TargetError {
    fn hints(&self) -> Vec<String> {
        let TargetError::NoMatch { targets } = self else {
            return vec![
                "a target is one of the presets `decoder`, `vision`, `aligner`, `generation`, `all`, or a path pattern such as `layers.*.self_attn.q_proj`"
                    .into(),
            ];
        };
        targets
            .iter()
            .map(|t| match &t.nearest {
                Some(NearTarget::Name(name)) => format!("did you mean `{name}` instead of `{}`?", t.target),
                Some(NearTarget::Path(path)) => {
                    format!("`{}` ends as `{path}` does, but its other segments do not", t.target)
                }
                None if Preset::from_name(&t.target).is_some() => {
                    format!("this model has none of the sites that the preset `{}` stands for", t.target)
                }
                None => format!(
                    "`{}` is like no preset and like no module's name; patterns match trailing whole segments of a path",
                    t.target
                ),
            })
            .collect()
    }
}

/// A named set of sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Attention and feed-forward products of every decoder layer.
    Decoder,
    /// Attention and feed-forward products of every block of the vision tower.
    Vision,
    /// Both products of the understanding aligner.
    Aligner,
    /// The products of the generation aligner and of the generation head.
    Generation,
    /// The four others together.
    All,
}

const DECODER: &[&str] = &[
    "model.language_model.layers.*.self_attn.q_proj",
    "model.language_model.layers.*.self_attn.k_proj",
    "model.language_model.layers.*.self_attn.v_proj",
    "model.language_model.layers.*.self_attn.o_proj",
    "model.language_model.layers.*.mlp.gate_proj",
    "model.language_model.layers.*.mlp.up_proj",
    "model.language_model.layers.*.mlp.down_proj",
];
const VISION: &[&str] = &[
    "model.vision_model.encoder.layers.*.self_attn.q_proj",
    "model.vision_model.encoder.layers.*.self_attn.k_proj",
    "model.vision_model.encoder.layers.*.self_attn.v_proj",
    "model.vision_model.encoder.layers.*.self_attn.projection_layer",
    "model.vision_model.encoder.layers.*.mlp.fc1",
    "model.vision_model.encoder.layers.*.mlp.fc2",
];
const ALIGNER: &[&str] = &["model.aligner.fc1", "model.aligner.hidden_layers.*"];
const GENERATION: &[&str] = &[
    "model.generation_aligner.fc1",
    "model.generation_aligner.hidden_layers.*",
    "model.generation_head.proj_out",
    "model.generation_head.vision_head",
];

impl Preset {
    /// Every preset, in the order of the model's parts.
    pub const ALL: [Preset; 5] = [Preset::Decoder, Preset::Vision, Preset::Aligner, Preset::Generation, Preset::All];

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Decoder => "decoder",
            Preset::Vision => "vision",
            Preset::Aligner => "aligner",
            Preset::Generation => "generation",
            Preset::All => "all",
        }
    }

    /// The preset of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The native paths it stands for, from the first segment to the last, `*` for a layer's number.
    pub fn patterns(self) -> Vec<&'static str> {
        match self {
            Preset::Decoder => DECODER.to_vec(),
            Preset::Vision => VISION.to_vec(),
            Preset::Aligner => ALIGNER.to_vec(),
            Preset::Generation => GENERATION.to_vec(),
            Preset::All => [DECODER, VISION, ALIGNER, GENERATION].concat(),
        }
    }

    /// Whether the site at `path` belongs to it.
    pub fn matches(self, path: &str) -> bool {
        let segments: Vec<&str> = path.split('.').collect();
        self.patterns().iter().any(|pattern| {
            let pattern: Vec<&str> = pattern.split('.').collect();
            pattern.len() == segments.len() && pattern.iter().zip(&segments).all(|(p, s)| segment_matches(p, s))
        })
    }
}

/// A pattern over the trailing segments of checkpoint paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPattern {
    text: String,
}

impl TargetPattern {
    /// Reads a pattern: segments joined by dots, `*` for any characters within one, `**` alone for any number of them.
    ///
    /// # Errors
    /// An empty pattern or segment, `**` beside other characters, white space or control characters, more than 1024 bytes.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text.len() > MAX_PATTERN_BYTES {
            return Err(TargetError::TooLong { got: text.len(), limit: MAX_PATTERN_BYTES });
        }
        if let Some(character) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(TargetError::IllegalCharacter { pattern: text.into(), character });
        }
        for segment in text.split('.') {
            if segment.is_empty() {
                return Err(TargetError::EmptySegment { pattern: text.into() });
            }
            if segment.contains("**") && segment != "**" {
                return Err(TargetError::MisplacedDoubleStar { pattern: text.into(), segment: segment.into() });
            }
        }
        Ok(Self { text: text.into() })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether trailing whole segments of `path` match.
    pub fn matches(&self, path: &str) -> bool {
        let segments: Vec<&str> = path.split('.').collect();
        // `reached[i]`: the pattern so far matches segments that end just before `segments[i]`. It may begin anywhere.
        let mut reached = vec![true; segments.len() + 1];
        for pattern in self.text.split('.') {
            let mut next = vec![false; segments.len() + 1];
            if pattern == "**" {
                let mut any = false;
                for (next, reached) in next.iter_mut().zip(&reached) {
                    any |= reached;
                    *next = any;
                }
            } else {
                for (i, segment) in segments.iter().enumerate() {
                    next[i + 1] = reached[i] && segment_matches(pattern, segment);
                }
            }
            reached = next;
        }
        reached[segments.len()]
    }
}

impl std::fmt::Display for TargetPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether one segment matches a pattern in which `*` stands for any characters, none included.
fn segment_matches(pattern: &str, segment: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == segment;
    };
    let Some(mut left) = segment.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or("");
    for piece in pieces {
        // The earliest place leaves the most room for the pieces that follow.
        match left.find(piece) {
            Some(at) => left = &left[at + piece.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// Why a site was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// By a preset only: it is left out where no task of the run reaches it.
    Preset(Preset),
    /// By a pattern of the user: it must be reached.
    Pattern(TargetPattern),
}

/// A chosen site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedSite {
    /// Its native path.
    pub path: String,
    /// The first explicit pattern that matches it, otherwise the first preset.
    pub origin: Origin,
}

/// The chosen sites, in the order in which the paths came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// One entry for each path that some target matches.
    pub sites: Vec<SelectedSite>,
}

/// Chooses from `paths` what the targets name, each a preset's name or a pattern.
///
/// # Errors
/// A target that is no pattern, or [`TargetError::NoMatch`] with all targets that match no path.
pub fn select<'a>(targets: &[String], paths: impl Iterator<Item = &'a str>) -> Result<Selection, TargetError> {
    let targets: Vec<Origin> = targets
        .iter()
        .map(|target| match Preset::from_name(target) {
            Some(preset) => Ok(Origin::Preset(preset)),
            None => TargetPattern::parse(target).map(Origin::Pattern),
        })
        .collect::<Result<_, _>>()?;
    let mut matched = vec![false; targets.len()];
    let mut sites = Vec::new();
    let mut all_paths = Vec::new();
    for path in paths {
        all_paths.push(path);
        let mut chosen: Option<&Origin> = None;
        for (target, matched) in targets.iter().zip(&mut matched) {
            let hit = match target {
                Origin::Preset(preset) => preset.matches(path),
                Origin::Pattern(pattern) => pattern.matches(path),
            };
            *matched |= hit;
            if hit && (chosen.is_none() || (is_preset(chosen) && matches!(target, Origin::Pattern(_)))) {
                chosen = Some(target);
            }
        }
        if let Some(origin) = chosen {
            sites.push(SelectedSite { path: path.into(), origin: origin.clone() });
        }
    }
    let unmatched: Vec<UnmatchedTarget> = targets
        .iter()
        .zip(matched)
        .filter(|(_, matched)| !matched)
        .map(|(target, _)| unmatched_target(target, &all_paths))
        .collect();
    match unmatched.is_empty() {
        true => Ok(Selection { sites }),
        false => Err(TargetError::NoMatch { targets: unmatched }),
    }
}

fn is_preset(origin: Option<&Origin>) -> bool {
    matches!(origin, Some(Origin::Preset(_)))
}

fn unmatched_target(target: &Origin, paths: &[&str]) -> UnmatchedTarget {
    let pattern = match target {
        Origin::Preset(preset) => return UnmatchedTarget { target: preset.name().into(), nearest: None },
        Origin::Pattern(pattern) => pattern.as_str(),
    };
    let last = last_segment(pattern);
    let same_end = paths.iter().find(|path| segment_matches(last, last_segment(path)));
    let nearest = if let (Some(path), false) = (same_end, last == "**") {
        Some(NearTarget::Path((*path).into()))
    } else {
        let presets = Preset::ALL.iter().map(|preset| preset.name()).filter(|_| !pattern.contains('.'));
        let ends = paths.iter().map(|path| last_segment(path));
        nearest(last, presets.chain(ends)).map(|name| {
            let front = pattern.strip_suffix(last).unwrap_or("");
            NearTarget::Name(format!("{front}{name}"))
        })
    };
    UnmatchedTarget { target: pattern.into(), nearest }
}

fn last_segment(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Site paths of a small native Janus, with parts that no preset may touch.
    fn paths() -> Vec<String> {
        let mut paths = vec!["model.language_model.embed_tokens".to_owned()];
        for layer in 0..12 {
            for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
                paths.push(format!("model.language_model.layers.{layer}.{name}"));
            }
            for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
                paths.push(format!("model.language_model.layers.{layer}.{name}"));
            }
        }
        paths.push("model.vision_model.embeddings.patch_embedding".into());
        paths.push("model.vision_model.embeddings.position_embedding".into());
        for block in 0..3 {
            for name in ["q_proj", "k_proj", "v_proj", "projection_layer"] {
                paths.push(format!("model.vision_model.encoder.layers.{block}.self_attn.{name}"));
            }
            for name in ["fc1", "fc2"] {
                paths.push(format!("model.vision_model.encoder.layers.{block}.mlp.{name}"));
            }
        }
        for path in [
            "model.aligner.fc1",
            "model.aligner.hidden_layers.0",
            "model.generation_embeddings",
            "model.generation_aligner.fc1",
            "model.generation_aligner.hidden_layers.0",
            "model.generation_head.proj_out",
            "model.generation_head.vision_head",
            "model.vqmodel.encoder.mid.attn_1.q",
            "model.vqmodel.decoder.up.0.block.1.conv1",
            "model.vqmodel.quantize.embedding",
            "lm_head",
        ] {
            paths.push(path.into());
        }
        paths
    }

    fn selected(targets: &[&str]) -> Result<Vec<String>, TargetError> {
        let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
        let paths = paths();
        Ok(select(&targets, paths.iter().map(String::as_str))?.sites.into_iter().map(|site| site.path).collect())
    }

    fn matches(pattern: &str, path: &str) -> bool {
        TargetPattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn a_pattern_matches_trailing_whole_segments() {
        let path = "model.language_model.layers.3.self_attn.q_proj";
        assert!(matches("q_proj", path));
        assert!(matches("self_attn.q_proj", path));
        assert!(matches(path, path));
        assert!(!matches("proj", path), "not a whole segment");
        assert!(!matches("self_attn", path), "not trailing");
        assert!(!matches(&format!("more.{path}"), path));
        assert!(!matches("layers.3.q_proj", path), "no segment may be skipped");
    }

    #[test]
    fn a_star_stays_within_one_segment() {
        let path = "model.language_model.layers.13.self_attn.q_proj";
        for pattern in ["*_proj", "q_*", "*", "layers.*.self_attn.*", "layers.1*.*.q*j", "*q_proj*", "l*y*s.*3.*.*"] {
            assert!(matches(pattern, path), "{pattern}");
        }
        for pattern in ["layers.*.q_proj", "*v*", "layers.1.*.*", "*proj_", "q_proj*x", "layers.2*.*.*"] {
            assert!(!matches(pattern, path), "{pattern}");
        }
        assert!(!matches("a*a", "a"), "the ends may not share a character");
        assert!(matches("a*a", "aa"));
        assert!(matches("*ab*ab", "xabyabab"));
        assert!(matches("é*ö", "éxö"));
    }

    #[test]
    fn a_double_star_spans_segments() {
        let path = "model.vision_model.encoder.layers.0.mlp.fc1";
        for pattern in [
            "vision_model.**.fc1",
            "model.**",
            "**",
            "**.fc1",
            "**.mlp.**.fc1",
            "encoder.**.layers.**.mlp.fc1",
            "model.**.mlp.*",
        ] {
            assert!(matches(pattern, path), "{pattern}");
        }
        for pattern in
            ["language_model.**.fc1", "vision_model.**.fc2", "encoder.**.encoder.**.fc1", "layers.**.**.layers"]
        {
            assert!(!matches(pattern, path), "{pattern}");
        }
    }

    #[test]
    fn matching_many_double_stars_takes_no_time() {
        let pattern = format!("{}x", "**.a*a*a*.".repeat(90));
        let path = vec!["aaaaaaaaaaaaaaaa"; 2000].join(".");
        assert!(!matches(&pattern, &path));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        assert_eq!(TargetPattern::parse(""), Err(TargetError::Empty));
        for text in [".", "a.", ".a", "a..b"] {
            assert_eq!(TargetPattern::parse(text), Err(TargetError::EmptySegment { pattern: text.into() }), "{text}");
        }
        for text in ["***", "a**", "**a.b", "x.a**b"] {
            assert!(matches!(TargetPattern::parse(text), Err(TargetError::MisplacedDoubleStar { .. })), "{text}");
        }
        for text in ["q proj", "q_proj\n", "a\u{7}"] {
            assert!(matches!(TargetPattern::parse(text), Err(TargetError::IllegalCharacter { .. })), "{text:?}");
        }
        assert!(matches!(TargetPattern::parse(&"a".repeat(1025)), Err(TargetError::TooLong { got: 1025, .. })));
    }

    #[test]
    fn presets_take_their_part_and_nothing_else() {
        assert_eq!(selected(&["decoder"]).unwrap().len(), 12 * 7);
        assert_eq!(selected(&["vision"]).unwrap().len(), 3 * 6);
        assert_eq!(selected(&["aligner"]).unwrap(), ["model.aligner.fc1", "model.aligner.hidden_layers.0"]);
        assert_eq!(
            selected(&["generation"]).unwrap(),
            [
                "model.generation_aligner.fc1",
                "model.generation_aligner.hidden_layers.0",
                "model.generation_head.proj_out",
                "model.generation_head.vision_head"
            ]
        );
        let all = selected(&["all"]).unwrap();
        assert_eq!(all.len(), 12 * 7 + 3 * 6 + 2 + 4);
        assert_eq!(
            all,
            selected(&["generation", "aligner", "vision", "decoder"]).unwrap(),
            "in the order of the paths"
        );
        for left in ["embed", "vqmodel", "lm_head"] {
            assert!(all.iter().all(|path| !path.contains(left)), "{left}");
        }
        assert!(
            !Preset::Decoder.matches("base.model.language_model.layers.0.self_attn.q_proj"),
            "anchored at the start"
        );
        assert!(!Preset::Decoder.matches("model.language_model.layers.0.self_attn.q_proj.weight"));
    }

    #[test]
    fn an_explicit_pattern_wins_over_a_preset() {
        let targets = ["decoder".to_owned(), "language_model.layers.1.*.q_proj".to_owned(), "lm_head".to_owned()];
        let paths = paths();
        let selection = select(&targets, paths.iter().map(String::as_str)).unwrap();
        assert_eq!(selection.sites.len(), 12 * 7 + 1);
        let explicit: Vec<&str> = selection
            .sites
            .iter()
            .filter(|site| matches!(site.origin, Origin::Pattern(_)))
            .map(|site| site.path.as_str())
            .collect();
        assert_eq!(explicit, ["model.language_model.layers.1.self_attn.q_proj", "lm_head"]);
        assert_eq!(selection.sites[0].origin, Origin::Preset(Preset::Decoder));
    }

    #[test]
    fn every_target_must_match() {
        let error = selected(&["decoder", "q_prj", "decodr", "layers.99.self_attn.q_proj", "nonsense"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "targets `q_prj`, `decodr`, `layers.99.self_attn.q_proj`, `nonsense` match no site of the model"
        );
        assert_eq!(
            error.hints(),
            [
                "did you mean `q_proj` instead of `q_prj`?",
                "did you mean `decoder` instead of `decodr`?",
                "`layers.99.self_attn.q_proj` ends as `model.language_model.layers.0.self_attn.q_proj` does, but its other segments do not",
                "`nonsense` is like no preset and like no module's name; patterns match trailing whole segments of a path",
            ]
        );
        let error = selected(&["self_attn.q_porj"]).unwrap_err();
        assert_eq!(error.to_string(), "target `self_attn.q_porj` matches no site of the model");
        assert_eq!(error.hints(), ["did you mean `self_attn.q_proj` instead of `self_attn.q_porj`?"]);
    }

    #[test]
    fn a_preset_without_sites_is_an_error_too() {
        let error = select(&["vision".to_owned()], ["lm_head"].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "target `vision` matches no site of the model");
        assert_eq!(error.hints(), ["this model has none of the sites that the preset `vision` stands for"]);
        assert_eq!(select(&[], ["lm_head"].into_iter()), Ok(Selection::default()));
    }
}
