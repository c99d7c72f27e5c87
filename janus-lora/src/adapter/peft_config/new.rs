//! The configuration of a new adapter, with every field that PEFT 0.21.2 writes for its method.

use serde_json::{Map, Value, json};

use super::{Fields, ModuleNames, NO_TARGETS, PeftConfig};
use crate::adapter::error::AdapterError;
use crate::adapter::init::Init;
use crate::adapter::init::eva::FOUND;
use crate::adapter::method::Method;

/// What a new configuration is made from.
pub(crate) struct NewConfig<'a> {
    pub(crate) method: &'a Method,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) rslora: bool,
    pub(crate) dropout: f64,
    pub(crate) init: Init,
    /// Whole paths.
    pub(crate) targets: &'a [String],
    /// Whole paths whose rank is another one.
    pub(crate) ranks: &'a [(String, usize)],
    /// Whole paths whose alpha is another one.
    pub(crate) alphas: &'a [(String, f64)],
    /// Whole paths.
    pub(crate) modules_to_save: &'a [String],
    pub(crate) base_name: Option<&'a str>,
}

impl PeftConfig {
    /// The configuration of a new adapter.
    ///
    /// # Errors
    /// Numbers that PEFT does not take.
    pub(crate) fn new(new: &NewConfig<'_>) -> Result<Self, AdapterError> {
        let mut json = common(new);
        let own = match new.method {
            Method::Lora { .. } | Method::Residual | Method::Dora => lora(new),
            Method::Loha { effective } => lycoris(new, "LOHA", *effective),
            Method::Lokr { decompose_both, decompose_factor, effective } => {
                let mut own = lycoris(new, "LOKR", *effective);
                own["decompose_both"] = json!(decompose_both);
                own["decompose_factor"] = json!(decompose_factor);
                own["rank_dropout_scale"] = json!(false);
                own
            }
            Method::Vera { d_initial, projection_seed } => vera(new, *d_initial, *projection_seed),
            Method::Ia3 { feedforward } => ia3(feedforward),
        };
        if let Value::Object(own) = own {
            json.extend(own);
        }
        Fields { json: &json }.read(&json)
    }
}

/// What the configurations of all methods have.
fn common(new: &NewConfig<'_>) -> Map<String, Value> {
    let targets = if new.targets.is_empty() { json!(NO_TARGETS) } else { sorted(new.targets) };
    let saved = if new.modules_to_save.is_empty() { Value::Null } else { sorted(new.modules_to_save) };
    let json = json!({
        "auto_mapping": {
            "base_model_class": "JanusForConditionalGeneration",
            "parent_library": "transformers.models.janus.modeling_janus",
        },
        "base_model_name_or_path": new.base_name,
        "exclude_modules": null,
        "inference_mode": true,
        "modules_to_save": saved,
        "peft_version": "0.21.2",
        "revision": null,
        "target_modules": targets,
        "task_type": null,
    });
    match json {
        Value::Object(json) => json,
        _ => unreachable!("a literal object"),
    }
}

fn sorted(names: &[String]) -> Value {
    let mut names = names.to_vec();
    names.sort();
    json!(names)
}

fn lora(new: &NewConfig<'_>) -> Value {
    let init = match new.init {
        // PEFT takes no other word beside a bias.
        Init::Gaussian if *new.method != (Method::Lora { bias: true }) => json!("gaussian"),
        // In files a pair is a plain one, however it began.
        Init::Kaiming | Init::Gaussian | Init::Pissa | Init::Olora => json!(true),
        Init::Eva { .. } => json!("eva"),
    };
    let eva = match new.init {
        Init::Eva { rho } => json!({
            "adjust_scaling_factors": true,
            "label_mask_value": -100,
            "rho": rho,
            "tau": FOUND,
            "use_label_mask": false,
            "whiten": false,
        }),
        _ => Value::Null,
    };
    json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": alphas(new),
        "arrow_config": null,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": eva,
        "fan_in_fan_out": false,
        "init_lora_weights": init,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": number(new.alpha),
        "lora_bias": *new.method == Method::Lora { bias: true },
        "lora_dropout": new.dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "monteclora_config": null,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": new.rank,
        "rank_pattern": ranks(new),
        "target_parameters": null,
        "trainable_token_indices": null,
        "use_bdlora": null,
        "use_dora": *new.method == Method::Dora,
        "use_qalora": false,
        "use_rslora": new.rslora,
        "velora_config": null,
    })
}

/// LoHa and LoKr.
fn lycoris(new: &NewConfig<'_>, peft_type: &str, effective: bool) -> Value {
    json!({
        "alpha": number(new.alpha),
        "alpha_pattern": alphas(new),
        "init_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "module_dropout": 0.0,
        "peft_type": peft_type,
        "r": new.rank,
        "rank_dropout": 0.0,
        "rank_pattern": ranks(new),
        "use_effective_conv2d": effective,
    })
}

fn vera(new: &NewConfig<'_>, d_initial: f64, projection_seed: u64) -> Value {
    json!({
        "bias": "none",
        "d_initial": d_initial,
        "fan_in_fan_out": false,
        "init_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "peft_type": "VERA",
        "projection_prng_key": projection_seed,
        "r": new.rank,
        "save_projection": true,
        "vera_dropout": new.dropout,
    })
}

fn ia3(feedforward: &ModuleNames) -> Value {
    let feedforward = match feedforward {
        ModuleNames::Suffixes(names) => sorted(names),
        ModuleNames::Expression(text) => json!(text),
        ModuleNames::AllLinear | ModuleNames::Nothing => json!([]),
    };
    json!({
        "fan_in_fan_out": false,
        "feedforward_modules": feedforward,
        "init_ia3_weights": true,
        "peft_type": "IA3",
    })
}

fn ranks(new: &NewConfig<'_>) -> Value {
    Value::Object(new.ranks.iter().map(|(path, rank)| (path.clone(), json!(rank))).collect())
}

fn alphas(new: &NewConfig<'_>) -> Value {
    Value::Object(new.alphas.iter().map(|(path, alpha)| (path.clone(), number(*alpha))).collect())
}

/// Whole numbers without a point, as PEFT writes them.
fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        true => json!(value as i64),
        false => json!(value),
    }
}
