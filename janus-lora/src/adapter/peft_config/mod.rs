//! `adapter_config.json`: the fields of PEFT's configurations that matter here. Of the others, what says how an adapter began, is
//! trained or is run changes no number once it is trained, and loads; every other active field is refused by name, those of
//! later versions, too.
//! Source of fields, defaults and rules between them: PEFT 0.21.2, `tuners/*/config.py`, of LoRA also `layer.py` and
//! `tp_layer.py`.

mod new;

use serde_json::{Map, Value, json};

use super::error::AdapterError;
use super::method::Method;
use super::pattern::MOST_IN_A_FIELD;
pub(crate) use new::NewConfig;

/// File name in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// PEFT's word for a `target_modules` that matches nothing, for adapters of `modules_to_save` alone.
const NO_TARGETS: &str = "dummy-target-modules";

/// Fields that say nothing about the numbers, or only together with one that is refused.
const WITHOUT_EFFECT: &[&str] =
    &["auto_mapping", "inference_mode", "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type"];

/// Fields that change no number of a trained adapter over a Janus, and what they ask for that is not done here.
const PASSED_OVER: &[(&str, &str)] = &[
    ("corda_config", "how A and B begin"),
    ("eva_config", "how A and B begin"),
    // PEFT sets it back to false at every linear layer.
    ("fan_in_fan_out", "that weights lie transposed, as in Conv1D layers, which no Janus has"),
    ("loftq_config", "how A and B begin"),
    ("lora_ga_config", "how A and B begin"),
    ("module_dropout", "that training passes over whole modules now and then"),
    ("rank_dropout", "that training passes over outputs now and then"),
    ("rank_dropout_scale", "how outputs that training keeps are scaled"),
    // Read for Megatron's own parallel layers alone, which no Janus has.
    ("megatron_config", "how layers are shared out among machines"),
    ("runtime_config", "where a device keeps weights"),
    // The forward pass is that of a plain linear map.
    ("velora_config", "a backward pass of its own in training"),
];

/// Ways of drawing the first A and B that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
/// subtract what they draw from the base, so that the adapter belongs to a base no checkpoint holds.
const PLAIN_INITIALISATIONS: &[&str] = &["gaussian", "orthogonal", "eva", "mica"];

/// In `auto_mapping`, which PEFT keeps as it is: the parts of the adapter that are in `janus_extras.safetensors`.
const AUTO_MAPPING: &str = "auto_mapping";
const EXTRAS: &str = "janus_extras";

/// Names of modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleNames {
    /// A module is meant if its path is one of these, or ends in `.` and one of these.
    Suffixes(Vec<String>),
    /// A module is meant if the whole path matches this regular expression.
    Expression(String),
    /// All linear layers but the text head.
    AllLinear,
    /// None at all.
    Nothing,
}

/// The configuration of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// `peft_type`, and the settings of the method.
    pub method: Method,
    /// `r`, at least 1; 0 where the method has no ranks.
    pub rank: usize,
    /// `lora_alpha` or `alpha`, finite and not 0; 1 where the method has no scale.
    pub alpha: f64,
    /// `use_rslora`: the scale is `alpha / √rank`.
    pub rslora: bool,
    /// `lora_dropout` or `vera_dropout`, in [0, 1).
    pub dropout: f64,
    /// `target_modules`.
    pub targets: ModuleNames,
    /// `exclude_modules`.
    pub excluded: ModuleNames,
    /// `layers_to_transform`; `None` where it is absent or empty: all layers.
    pub layers: Option<Vec<u64>>,
    /// `layers_pattern`, regular expressions.
    pub layers_patterns: Vec<String>,
    /// `rank_pattern` in the file's order: the first that matches counts.
    pub rank_patterns: Vec<(String, usize)>,
    /// `alpha_pattern` in the file's order.
    pub alpha_patterns: Vec<(String, f64)>,
    /// `modules_to_save`: ends of module paths.
    pub modules_to_save: Vec<String>,
    /// `base_model_name_or_path`.
    pub base_name: Option<String>,
    /// `ensure_weight_tying`: a pair at one of two tied modules is to act at the other, too.
    pub ties_weights: bool,
    /// Active fields that ask for something that is not done here and changes no number, each in words: worth a warning.
    pub passed_over: Vec<String>,
    /// Parts of the adapter that are in `janus_extras.safetensors`, such as `head.defects`; `None` where it does not say.
    pub extras: Option<Vec<String>>,
    /// The whole file, so that writing it again keeps what it had.
    json: Map<String, Value>,
}

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// Broken JSON, values of another type or out of range, or active fields that are not supported (all of them at once).
    pub fn from_json(text: &str) -> Result<Self, AdapterError> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|source| AdapterError::Json { file: CONFIG_FILE, source })?;
        Fields { json: &json }.read(&json)
    }

    /// Records which parts of the adapter are in `janus_extras.safetensors`, in whatever PEFT saves again, too.
    pub(super) fn record_extras(&mut self, parts: Vec<String>) {
        let mapping = self.json.get_mut(AUTO_MAPPING).and_then(Value::as_object_mut);
        match (mapping, parts.is_empty()) {
            (Some(mapping), false) => drop(mapping.insert(EXTRAS.into(), json!(parts))),
            (Some(mapping), true) => drop(mapping.shift_remove(EXTRAS)),
            (None, false) => drop(self.json.insert(AUTO_MAPPING.into(), json!({ EXTRAS: parts }))),
            (None, true) => {}
        }
        self.extras = (!parts.is_empty()).then_some(parts);
    }

    /// The text of the file: keys in order, as PEFT writes them.
    pub fn to_json(&self) -> String {
        let sorted: std::collections::BTreeMap<&String, &Value> = self.json.iter().collect();
        let mut text = serde_json::to_string_pretty(&sorted).expect("JSON values with string keys");
        text.push('\n');
        text
    }

    /// Factor on what a site's tensors make, for a rank and an alpha: the one place where methods of scaling differ.
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        match self.method {
            Method::Vera { .. } | Method::Ia3 { .. } => 1.0,
            _ if self.rslora => alpha / (rank as f64).sqrt(),
            _ => alpha / rank as f64,
        }
    }
}

/// What `peft_type` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lora,
    Loha,
    Lokr,
    Vera,
    Ia3,
}

/// Fields that every method has and that are judged where they are read.
const EVERY_METHOD: &[&str] = &[
    "peft_type",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "base_model_name_or_path",
    // Judged once targets and base are known.
    "ensure_weight_tying",
];

impl Kind {
    /// Fields of its own that are read.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Kind::Lora => &[
                "r",
                "lora_alpha",
                "lora_dropout",
                "layers_to_transform",
                "layers_pattern",
                "rank_pattern",
                "alpha_pattern",
                "use_rslora",
                "use_dora",
                "lora_bias",
            ],
            Kind::Loha | Kind::Lokr => &[
                "r",
                "alpha",
                "layers_to_transform",
                "layers_pattern",
                "rank_pattern",
                "alpha_pattern",
                "use_effective_conv2d",
                "decompose_both",
                "decompose_factor",
                "init_weights",
            ],
            Kind::Vera => &[
                "r",
                "vera_dropout",
                "d_initial",
                "projection_prng_key",
                "save_projection",
                "layers_to_transform",
                "layers_pattern",
                "init_weights",
            ],
            Kind::Ia3 => &["feedforward_modules", "init_ia3_weights"],
        }
    }

    /// The field of the scale's numerator.
    fn alpha(self) -> Option<&'static str> {
        match self {
            Kind::Lora => Some("lora_alpha"),
            Kind::Loha | Kind::Lokr => Some("alpha"),
            Kind::Vera | Kind::Ia3 => None,
        }
    }
}

/// Typed reading of the fields.
struct Fields<'a> {
    json: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn read(&self, json: &Map<String, Value>) -> Result<PeftConfig, AdapterError> {
        let kind = self.kind()?;
        let passed_over = self.sort_out(kind)?;
        let method = self.method(kind)?;
        let rank = |default| self.rank("r", self.json.get("r")).map(|rank| rank.unwrap_or(default));
        let config = PeftConfig {
            rank: match kind {
                Kind::Ia3 => 0,
                Kind::Vera => rank(256)?,
                Kind::Lora | Kind::Loha | Kind::Lokr => rank(8)?,
            },
            alpha: match kind.alpha() {
                Some(key) => self.alpha(key, self.json.get(key))?.unwrap_or(8.0),
                None => 1.0,
            },
            rslora: kind == Kind::Lora && self.flag("use_rslora")?,
            method,
            dropout: match kind {
                Kind::Lora => self.dropout("lora_dropout")?,
                Kind::Vera => self.dropout("vera_dropout")?,
                Kind::Loha | Kind::Lokr | Kind::Ia3 => 0.0,
            },
            targets: self.targets()?,
            excluded: self.names("exclude_modules")?.unwrap_or(ModuleNames::Nothing),
            layers: self.layers()?,
            layers_patterns: self.few_strings("layers_pattern", true)?,
            rank_patterns: self.table("rank_pattern", |key, value| self.rank(key, Some(value)))?,
            alpha_patterns: self.table("alpha_pattern", |key, value| self.alpha(key, Some(value)))?,
            modules_to_save: self.few_strings("modules_to_save", false)?,
            base_name: self.json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
            ties_weights: self.json.get("ensure_weight_tying").is_some_and(|value| !is_inactive(value)),
            passed_over,
            extras: self.extras()?,
            json: json.clone(),
        };
        // PEFT refuses these combinations, too.
        if !matches!(config.targets, ModuleNames::Suffixes(_)) {
            for key in ["layers_to_transform", "layers_pattern"] {
                if let Some(value) = self.json.get(key).filter(|value| !value.is_null()) {
                    return Err(bad(key, value, "nothing where `target_modules` is not a list"));
                }
            }
        }
        if !config.layers_patterns.is_empty() && self.json.get("layers_to_transform").is_none_or(Value::is_null) {
            let value = self.json.get("layers_pattern").unwrap_or(&Value::Null);
            return Err(bad("layers_pattern", value, "nothing where `layers_to_transform` is absent"));
        }
        Ok(config)
    }

    /// What `peft_type` names.
    fn kind(&self) -> Result<Kind, AdapterError> {
        let peft_type = self.json.get("peft_type").unwrap_or(&Value::Null);
        match peft_type.as_str() {
            Some("LORA") => Ok(Kind::Lora),
            Some("LOHA") => Ok(Kind::Loha),
            Some("LOKR") => Ok(Kind::Lokr),
            Some("VERA") => Ok(Kind::Vera),
            Some("IA3") => Ok(Kind::Ia3),
            Some(_) => Err(AdapterError::Unsupported { fields: vec![format!("`peft_type` = `{}`", brief(peft_type))] }),
            None => Err(bad("peft_type", peft_type, "`LORA`, `LOHA`, `LOKR`, `VERA` or `IA3`")),
        }
    }

    /// The method with its own settings.
    fn method(&self, kind: Kind) -> Result<Method, AdapterError> {
        Ok(match kind {
            Kind::Lora => match (self.flag("use_dora")?, self.flag("lora_bias")?) {
                (true, true) => return Err(bad("lora_bias", &true.into(), "`false` where `use_dora` is `true`")),
                (true, false) => Method::Dora,
                (false, bias) => Method::Lora { bias },
            },
            Kind::Loha => Method::Loha { effective: self.flag("use_effective_conv2d")? },
            Kind::Lokr => Method::Lokr {
                decompose_both: self.flag("decompose_both")?,
                decompose_factor: match self.json.get("decompose_factor") {
                    None | Some(Value::Null) => -1,
                    Some(value) => match value.as_i64() {
                        Some(factor) if factor == -1 || factor > 0 => factor,
                        _ => return Err(bad("decompose_factor", value, "-1 or a whole number of at least 1")),
                    },
                },
                effective: self.flag("use_effective_conv2d")?,
            },
            Kind::Vera => Method::Vera {
                d_initial: self.json.get("d_initial").and_then(Value::as_f64).unwrap_or(0.1),
                projection_seed: self.json.get("projection_prng_key").and_then(Value::as_u64).unwrap_or(0),
            },
            Kind::Ia3 => {
                Method::Ia3 { feedforward: self.names("feedforward_modules")?.unwrap_or(ModuleNames::Nothing) }
            }
        })
    }

    /// Refuses by name every active field that changes numbers, or may, in a way that is not computed here; those that are
    /// passed over.
    fn sort_out(&self, kind: Kind) -> Result<Vec<String>, AdapterError> {
        let (mut fields, mut passed_over) = (Vec::new(), Vec::new());
        for (key, value) in self.json {
            if let Some((_, meaning)) = PASSED_OVER.iter().find(|(name, _)| name == key) {
                if self.is_unmet(key, value) {
                    passed_over.push(format!("`{key}` in `{CONFIG_FILE}` is passed over: it says {meaning}"));
                }
                continue;
            }
            let supported = match key.as_str() {
                "bias" => is_inactive(value) || value == "none",
                "init_lora_weights" => {
                    value.is_null()
                        || value.is_boolean()
                        || value.as_str().is_some_and(|v| PLAIN_INITIALISATIONS.contains(&v))
                }
                // Without the shared matrices nothing is known: PEFT draws them with torch's generator.
                "save_projection" => kind != Kind::Vera || *value == true,
                key if WITHOUT_EFFECT.contains(&key) || EVERY_METHOD.contains(&key) => true,
                key if kind.fields().contains(&key) => true,
                _ => is_inactive(value),
            };
            if !supported {
                fields.push(format!("`{key}` = `{}`", brief(value)));
            }
        }
        if fields.is_empty() { Ok(passed_over) } else { Err(AdapterError::Unsupported { fields }) }
    }

    fn flag(&self, key: &str) -> Result<bool, AdapterError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(bad(key, value, "`true` or `false`")),
        }
    }

    /// Whether a field that is passed over asks for anything. An EVA adapter had its beginning; it is a plain one since.
    fn is_unmet(&self, key: &str, value: &Value) -> bool {
        let is_eva = || self.json.get("init_lora_weights").is_some_and(|init| init == "eva");
        let is_at_rest = |value: &Value| value.as_object().is_some_and(|entries| entries.values().all(is_inactive));
        match key {
            "eva_config" if is_eva() => false,
            "runtime_config" if is_at_rest(value) => false,
            "module_dropout" | "rank_dropout" if value.as_f64() == Some(0.0) => false,
            _ => !is_inactive(value),
        }
    }

    fn rank(&self, key: &str, value: Option<&Value>) -> Result<Option<usize>, AdapterError> {
        let Some(value) = value else { return Ok(None) };
        match value.as_u64().and_then(|rank| usize::try_from(rank).ok()) {
            // No matrix of these models has a side that long; beyond it the shapes could overflow.
            Some(rank @ 1..=1_048_576) => Ok(Some(rank)),
            _ => Err(bad(key, value, "a whole number from 1 to 1048576")),
        }
    }

    fn alpha(&self, key: &str, value: Option<&Value>) -> Result<Option<f64>, AdapterError> {
        let Some(value) = value else { return Ok(None) };
        match value.as_f64() {
            Some(alpha) if alpha.is_finite() && alpha != 0.0 => Ok(Some(alpha)),
            _ => Err(bad(key, value, "a finite number other than 0")),
        }
    }

    fn dropout(&self, key: &str) -> Result<f64, AdapterError> {
        let Some(value) = self.json.get(key).filter(|value| !value.is_null()) else { return Ok(0.0) };
        match value.as_f64() {
            Some(dropout) if (0.0..1.0).contains(&dropout) => Ok(dropout),
            _ => Err(bad(key, value, "a number of at least 0 and below 1")),
        }
    }

    fn targets(&self) -> Result<ModuleNames, AdapterError> {
        Ok(match self.names("target_modules")? {
            Some(ModuleNames::Expression(text)) if text.eq_ignore_ascii_case("all-linear") => ModuleNames::AllLinear,
            Some(ModuleNames::Expression(text)) if text == NO_TARGETS => ModuleNames::Nothing,
            Some(names) => names,
            None => {
                let value = self.json.get("target_modules").unwrap_or(&Value::Null);
                return Err(bad("target_modules", value, "module names or a regular expression"));
            }
        })
    }

    /// Names or an expression; `None` where they are absent or empty.
    fn names(&self, key: &str) -> Result<Option<ModuleNames>, AdapterError> {
        if let Some(Value::String(text)) = self.json.get(key) {
            return Ok((!text.is_empty()).then(|| ModuleNames::Expression(text.clone())));
        }
        let names = self.strings(key, false)?;
        Ok((!names.is_empty()).then_some(ModuleNames::Suffixes(names)))
    }

    /// A list of strings, perhaps written as `single` string; empty where it is absent.
    fn strings(&self, key: &str, single: bool) -> Result<Vec<String>, AdapterError> {
        const EXPECTED: &str = "a list of names";
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) if single => Ok(if text.is_empty() { Vec::new() } else { vec![text.clone()] }),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| match item.as_str() {
                    Some(name) if !name.is_empty() => Ok(name.to_string()),
                    _ => Err(bad(key, item, EXPECTED)),
                })
                .collect(),
            Some(value) => Err(bad(key, value, EXPECTED)),
        }
    }

    fn extras(&self) -> Result<Option<Vec<String>>, AdapterError> {
        match self.json.get(AUTO_MAPPING).and_then(|mapping| mapping.get(EXTRAS)) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(parts) => Ok(Some(parts)),
                Err(_) => Err(bad("auto_mapping.janus_extras", value, "a list of names")),
            },
        }
    }

    /// A list of names that are applied as expressions.
    fn few_strings(&self, key: &str, single: bool) -> Result<Vec<String>, AdapterError> {
        let strings = self.strings(key, single)?;
        if strings.len() > MOST_IN_A_FIELD {
            let value = self.json.get(key).unwrap_or(&Value::Null);
            return Err(bad(key, value, "a list of at most 1024 names"));
        }
        Ok(strings)
    }

    fn layers(&self) -> Result<Option<Vec<u64>>, AdapterError> {
        let number =
            |value: &Value| value.as_u64().ok_or_else(|| bad("layers_to_transform", value, "layer numbers from 0"));
        match self.json.get("layers_to_transform") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) if items.is_empty() => Ok(None),
            Some(Value::Array(items)) => items.iter().map(number).collect::<Result<_, _>>().map(Some),
            Some(value) => Ok(Some(vec![number(value)?])),
        }
    }

    fn table<T>(
        &self,
        key: &str,
        read: impl Fn(&str, &Value) -> Result<Option<T>, AdapterError>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let entries = match self.json.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(entries)) if entries.len() <= MOST_IN_A_FIELD => entries,
            Some(value) => return Err(bad(key, value, "a table of at most 1024 patterns with a number each")),
        };
        let mut table = Vec::with_capacity(entries.len());
        for (pattern, value) in entries {
            if let Some(number) = read(&format!("{key}.{pattern}"), value)? {
                table.push((pattern.clone(), number));
            }
        }
        Ok(table)
    }
}

fn bad(key: &str, value: &Value, expected: &'static str) -> AdapterError {
    AdapterError::Value { key: key.into(), value: brief(value), expected }
}

/// Whether a field nobody knows asks for nothing.
pub(crate) fn is_inactive(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value as it stands in a message: strings bare, long ones cut.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => cut(text),
        value => cut(&value.to_string()),
    }
}

/// The beginning of a text that a message shows.
pub(super) fn cut(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
