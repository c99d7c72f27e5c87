//! What can be wrong with an adapter.

use std::io;
use std::path::{Path, PathBuf};

use janus_core::home::HomeError;
use janus_core::input::{InputError, fault_of_reading};
use janus_core::output::OutputError;
use janus_core::{Diagnose, Fault};

use super::file::WEIGHTS_FILE;
use super::peft_config::CONFIG_FILE;

/// An adapter that cannot be read, made, written or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Which adapter folder the cause is about.
    #[error("adapter `{}` cannot be used", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: Box<AdapterError>,
    },
    /// The system refused to read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that is no folder.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file where a folder or a hub id is expected.
    #[error("`{}` is a file, and an adapter is a folder or a hub id", path.display())]
    AFile {
        /// The file.
        path: PathBuf,
    },
    /// An address where a folder or a hub id is expected.
    #[error("`{argument}` is an address, and an adapter is a folder or a hub id")]
    Address {
        /// What was given, cut.
        argument: String,
        /// The hub id that it stands for.
        on_hub: Option<String>,
    },
    /// A site that a method has no form for.
    #[error("`{path}` is no place for `{method}`")]
    NotForSite {
        /// The site.
        path: String,
        /// The method.
        method: &'static str,
    },
    /// A site at which a pair has no such beginning.
    #[error("`{path}` is no place for pairs that begin with `{init}`")]
    NotForBeginning {
        /// The site.
        path: String,
        /// How they were to begin.
        init: &'static str,
    },
    /// A pair of a greater rank than there are directions to begin with.
    #[error("a pair of rank {rank} at `{path}` was to begin with `{init}`, and there are {most} directions")]
    TooFewDirections {
        /// The site.
        path: String,
        /// How it was to begin.
        init: &'static str,
        /// The pair's rank.
        rank: usize,
        /// Of the weight, or of the site's input.
        most: usize,
    },
    /// A pair as large as the weight, times a scale under which the rounding of what is taken away again outgrows the base's digits.
    #[error(
        "the pair at `{path}` was to begin with `{init}` under a scale of {scale}, expected at most {most}: rounding would take the base's digits"
    )]
    ScaleOfBeginning {
        /// The site.
        path: String,
        /// How it was to begin.
        init: &'static str,
        /// The pair's scale.
        scale: f64,
        /// The greatest.
        most: f64,
    },
    /// An adapter to begin from that has another form than the new one.
    #[error("the adapter to begin from does not fit: `{path}`: expected {expected}, got {got}")]
    OtherStart {
        /// The site, parameter, head or field.
        path: String,
        /// What the new adapter has there.
        expected: String,
        /// What the other one has.
        got: String,
    },
    /// A bias for a pair where the base has none.
    #[error("`{path}` has no bias in the base, and its pair was to have one")]
    NoBias {
        /// The site.
        path: String,
    },
    /// An output whose weights are all zero, which no factor turns to unit length.
    #[error("an output of `{path}` has no weight other than 0, and DoRA divides by the length of its weights")]
    ZeroLength {
        /// The site.
        path: String,
    },
    /// A copy of a parameter from one adapter, and what another makes of the base's value.
    #[error("one adapter has a copy of `{path}`, another one factors or a bias of its own there")]
    CopyUnderFactors {
        /// The parameter or the table.
        path: String,
    },
    /// A file that every adapter folder holds is not there.
    #[error("there is no `{file}`")]
    NoFile {
        /// Its name.
        file: &'static str,
    },
    /// Weights in a file that could run code when read.
    #[error("`{file}` is a pickle file, adapters are read from `adapter_model.safetensors` only")]
    Pickle {
        /// Its name.
        file: &'static str,
    },
    /// Which file of the folder the cause is about.
    #[error("`{file}` cannot be used")]
    File {
        /// Its name.
        file: &'static str,
        /// Why.
        source: Box<AdapterError>,
    },
    /// A file of the folder that is not read: it leads out of it, is too long or no regular file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A JSON file that is broken.
    #[error("`{file}` is not valid")]
    Json {
        /// Its name.
        file: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field of the configuration with an impossible value.
    #[error("`{key}` = `{value}` in `adapter_config.json`, expected {expected}")]
    Value {
        /// The field, with the entry in it where it is a table.
        key: String,
        /// Its value.
        value: String,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// Fields of the configuration that ask for what is not computed here.
    #[error("{} in `adapter_config.json` {} not supported", fields.join(", "), is_or_are(fields.len()))]
    Unsupported {
        /// Each as `` `field` = `value` ``.
        fields: Vec<String>,
    },
    /// A regular expression that cannot be applied.
    #[error("`{key}` = `{pattern}` in `adapter_config.json` cannot be applied as a regular expression: {problem}")]
    Pattern {
        /// The field.
        key: String,
        /// The expression.
        pattern: String,
        /// Why.
        problem: String,
    },
    /// A configuration that selects no part of the model.
    #[error("`target_modules` = `{targets}` matches no module of the base")]
    NothingTargeted {
        /// What was asked for.
        targets: String,
    },
    /// Targets that are modules of the base, of which other fields leave nothing.
    #[error("nothing of `target_modules` = `{targets}` is left by {} in `adapter_config.json`", fields.join(" and "))]
    NothingLeft {
        /// What was asked for.
        targets: String,
        /// The fields that take away, each in backquotes with its value.
        fields: Vec<String>,
    },
    /// Parts of an adapter beyond PEFT's files that are not there.
    #[error(
        "`janus_extras.safetensors` {}: `{recorded_in}` says that it holds {}",
        if *is_absent { "is missing" } else { "is another adapter's" },
        list(parts, |part| format!("`{part}`"))
    )]
    NoExtras {
        /// What is not there, such as `head.defects`.
        parts: Vec<String>,
        /// Whether the whole file is missing.
        is_absent: bool,
        /// The file that says so.
        recorded_in: &'static str,
    },
    /// A target that is a module, but none that low-rank factors can be added to.
    #[error("`target_modules` hits `{path}`, which is no linear layer, convolution or looked-up embedding")]
    NotASite {
        /// The module.
        path: String,
    },
    /// A name of a site or module that the base does not have.
    #[error("the base has no module `{path}`")]
    UnknownModule {
        /// The name.
        path: String,
    },
    /// A site that would be corrected and replaced at once.
    #[error("`{path}` is both a target and part of `modules_to_save`")]
    TargetedAndSaved {
        /// The site.
        path: String,
    },
    /// A copy of one half of what the base holds once.
    #[error("`{name}` is in `modules_to_save`, but the base's text head is its embedding table")]
    TiedCopy {
        /// The parameter.
        name: String,
    },
    /// A number a new adapter cannot have.
    #[error("`{what}` = `{value}`, expected {expected}")]
    Setting {
        /// Its name.
        what: &'static str,
        /// Its value.
        value: String,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// A weights file whose header is broken or lies.
    #[error("`{file}` is not a sound safetensors file: {problem}")]
    Safetensors {
        /// Its name.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Tensor names of the original layout.
    #[error("tensor `{tensor}` is named as in the original DeepSeek layout, expected the native (transformers) layout")]
    OriginalLayout {
        /// The first such tensor.
        tensor: String,
    },
    /// Tensors that do not match the configuration one to one.
    #[error("the tensors do not match `adapter_config.json` and the base: {0}")]
    Tensors(Box<Mismatch>),
    /// The file's copy of an embedding is not the base's.
    #[error("tensor `{tensor}` differs from the base's `{parameter}`, expected an equal copy")]
    BaseCopy {
        /// The tensor in the file.
        tensor: String,
        /// The base's parameter.
        parameter: String,
    },
    /// A note written by a later version.
    #[error("`janus_adapter.json` has version {version}, expected at most {supported}")]
    NoteVersion {
        /// Its version.
        version: u32,
        /// The latest version that is known.
        supported: u32,
    },
    /// An adapter made for another base.
    #[error("the adapter was made for {}, the base given has fingerprint `{got}`", made_for(name, expected))]
    OtherBase {
        /// What the adapter calls its base, if anything.
        name: Option<String>,
        /// The fingerprint it was made for.
        expected: String,
        /// That of the base given.
        got: String,
    },
    /// An adapter whose factors do not fit the model it is attached to.
    #[error("`{tensor}` of `{path}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The site or parameter.
        path: String,
        /// Which tensor of it.
        tensor: &'static str,
        /// The shape the model asks for.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// Several adapters that replace parameters.
    #[error("adapters {first} and {second} of those given both have `modules_to_save`, at most one may")]
    SeveralCopies {
        /// Place of one, from 1.
        first: usize,
        /// Place of the other.
        second: usize,
    },
    /// A path that begins with a home folder that is not known here.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// An argument that is a folder with and without the number behind its colon.
    #[error("`{folder}:{factor}` is a folder, and `{folder}` is one, too: which of them is meant cannot be told")]
    Ambiguous {
        /// What stands before the colon.
        folder: String,
        /// What stands behind it.
        factor: String,
    },
    /// An argument that is no folder with and none without the number behind its colon.
    #[error("neither `{}` nor `{}` is a folder", whole.display(), cut.display())]
    NeitherFolder {
        /// With the number.
        whole: PathBuf,
        /// Without it.
        cut: PathBuf,
    },
    /// A folder that holds more than one adapter.
    #[error("`{}` is no adapter, but holds {}: {}", folder.display(), names.len(), list(names, |name| format!("`{name}`")))]
    Several {
        /// The folder.
        folder: PathBuf,
        /// The names of those in it.
        names: Vec<String>,
    },
    /// A run folder without an adapter of its own yet.
    #[error("the run in `{}` has no adapter yet, only checkpoints", folder.display())]
    Unfinished {
        /// The folder.
        folder: PathBuf,
        /// The folder of the last checkpoint.
        checkpoint: PathBuf,
    },
    /// A repository on a hub that holds something else.
    #[error("repository `{id}` holds no adapter: it has no file `{file}`")]
    Repository {
        /// Its id.
        id: String,
        /// What it lacks.
        file: String,
    },
    /// A scale behind an adapter's path that is no finite number.
    #[error("scale `{scale}` in `{argument}` is not finite")]
    Scale {
        /// The whole argument.
        argument: String,
        /// The scale in it.
        scale: String,
    },
    /// The frozen model refused.
    #[error(transparent)]
    Core(#[from] janus_core::Error),
    /// A head that cannot be one.
    #[error("the head `{name}` cannot be used: {problem}")]
    Head {
        /// Its name.
        name: String,
        /// Why.
        problem: String,
    },
    /// A task without its head.
    #[error("there is no head `{name}`{}", heads_listed(found))]
    NoHead {
        /// Its name.
        name: String,
        /// Those that there are.
        found: Vec<String>,
    },
    /// A request that names adapters of an engine that answers with what is attached to its model.
    #[error("requests cannot name adapters of their own here")]
    NoBank,
    /// A head for another task than the table's.
    #[error("the head `{name}` is to {got}, the table's rows are to {expected}")]
    OtherTask {
        /// Its name.
        name: String,
        /// The table's task.
        expected: &'static str,
        /// The head's.
        got: &'static str,
    },
    /// A head for other labels than the table's.
    #[error("the head `{name}` is for the labels {}, the table has {}", got.join(", "), expected.join(", "))]
    OtherLabels {
        /// Its name.
        name: String,
        /// The table's.
        expected: Vec<String>,
        /// The head's.
        got: Vec<String>,
    },
    /// Two adapters with a head of one name.
    #[error("adapters {first} and {second} both have a head `{name}`")]
    HeadsClash {
        /// Its name.
        name: String,
        /// Number of the first.
        first: usize,
        /// Number of the second.
        second: usize,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The tensor engine failed.
    #[error("computation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

fn heads_listed(found: &[String]) -> String {
    match found {
        [] => ", nor any other".into(),
        found => format!(" among {}", found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

impl Diagnose for AdapterError {
    fn fault(&self) -> Fault {
        match self {
            AdapterError::Folder { source, .. } | AdapterError::File { source, .. } => source.fault(),
            AdapterError::Input(e) => e.fault(),
            AdapterError::Io { source, .. } => fault_of_reading(source),
            AdapterError::Tensor(_) => Fault::Internal,
            AdapterError::Core(e) => e.fault(),
            AdapterError::Output(e) => e.fault(),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            AdapterError::Folder { source, .. } | AdapterError::File { source, .. } => return source.hints(),
            AdapterError::Input(e) => return e.hints(),
            AdapterError::Core(e) => return e.hints(),
            AdapterError::Output(e) => return e.hints(),
            AdapterError::Home(e) => return e.hints(),
            AdapterError::AFile { path } => return vec![instead_of_file(path)],
            AdapterError::Address { on_hub: Some(id), .. } => {
                return vec![format!("`--adapter {id}` is that repository, in the Hugging Face cache from then on")];
            }
            AdapterError::Ambiguous { folder, factor } => {
                return vec![format!(
                    "`{folder}/:{factor}` is the adapter `{folder}` with the factor {factor}, `{folder}:{factor}:1` the adapter `{folder}:{factor}`"
                )];
            }
            AdapterError::Several { folder, names } => {
                let one = names.last().map(|name| folder.join(name)).unwrap_or_default();
                return vec![format!("name one of them, such as `{}`", one.display())];
            }
            AdapterError::Unfinished { checkpoint, .. } => {
                return vec![format!("its last checkpoint can be loaded: `{}`", checkpoint.display())];
            }
            AdapterError::Repository { file, .. } if file == WEIGHTS_FILE => {
                "an adapter whose weights are a `.bin` file: load it with PEFT and save it again as safetensors"
            }
            AdapterError::Repository { .. } => "a base is given with `--base`",
            AdapterError::Address { on_hub: None, .. } => {
                "download the folder and give its path, or give the id of a hub's repository, `owner/name` or `owner/name@revision`"
            }
            AdapterError::NeitherFolder { .. } => {
                "an adapter is a folder or a hub id `owner/name`, with a factor behind a colon: `runs/mine:0.5`"
            }
            AdapterError::NotAFolder { .. } | AdapterError::NoFile { .. } => {
                "an adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`"
            }
            AdapterError::Pickle { .. } => "load it with PEFT and save it again with `safe_serialization=True`",
            AdapterError::Unsupported { fields } if fields.iter().any(|f| f.starts_with("`init_lora_weights`")) => {
                "such an adapter belongs to a changed base: save it with `path_initial_model_for_weight_conversion` in PEFT, which makes it a plain one"
            }
            AdapterError::Unsupported { fields } if fields.iter().any(|f| f.starts_with("`save_projection`")) => {
                "load it with PEFT and save it again with `save_projection=True` in its configuration"
            }
            AdapterError::Unsupported { .. } => {
                "adapters of LoRA, DoRA, LoHa, LoKr, VeRA and (IA)³ are supported; merge this one with the tool that made it"
            }
            AdapterError::NotForSite { .. } => {
                "embeddings take `lora` and `dora`, convolutions all methods but `vera`, linear maps all"
            }
            AdapterError::NotForBeginning { .. } => {
                "a linear map's weight has such a beginning: leave the site out with `exclude`, or take `init = \"kaiming\"`"
            }
            AdapterError::TooFewDirections { path, most, .. } => {
                return vec![format!(
                    "give it a smaller rank, `rank_pattern = {{ \"{path}\" = {most} }}`, leave it out with `exclude`, or take `init = \"kaiming\"`"
                )];
            }
            AdapterError::ScaleOfBeginning { .. } => {
                "lower `adapter.scale`, or take `init = \"pissa\"`, which divides its pairs by the scale"
            }
            AdapterError::OtherStart { .. } => {
                "give the recipe what that adapter has: `janus adapter inspect` tells its method, targets, ranks and scale, what it has copies of, and its heads"
            }
            AdapterError::NoBias { .. } => {
                "leave `bias` out, or target sites that have one: those of the vision tower do"
            }
            AdapterError::ZeroLength { .. } => "leave the site out with `exclude`, or take `method = \"lora\"`",
            AdapterError::CopyUnderFactors { .. } => "merge one of the two into the base first",
            AdapterError::Pattern { .. } => {
                "write it without look-around, back-references and possessive repetition, or list the modules"
            }
            AdapterError::NothingTargeted { .. } => {
                "modules have native (transformers) names such as `model.language_model.layers.0.self_attn.q_proj`"
            }
            AdapterError::NothingLeft { .. } => {
                "a module of another layer, or none that is excluded, may have been meant"
            }
            AdapterError::NoExtras { is_absent: true, .. } => {
                "copy it from where the adapter comes from, beside its other files; into a hub's cache it comes with this command where the network may be used (without `HF_HUB_OFFLINE`)"
            }
            AdapterError::NoExtras { .. } => "copy all files of the adapter from where it comes from",
            AdapterError::NotASite { .. } => "narrow `target_modules` or add the module to `exclude_modules`",
            AdapterError::TargetedAndSaved { .. } => "leave the module out of one of the two",
            AdapterError::TiedCopy { .. } => "use a base that stores `lm_head.weight` of its own",
            AdapterError::OriginalLayout { .. } => "adapters for the original layout cannot be used yet",
            AdapterError::Tensors(_) => "the adapter may be for another base, or the file may be damaged",
            AdapterError::BaseCopy { .. } | AdapterError::OtherBase { .. } | AdapterError::Shape { .. } => {
                "give the base that the adapter was trained on"
            }
            AdapterError::NoteVersion { .. } => "use a newer version of this program",
            AdapterError::OtherLabels { .. } | AdapterError::OtherTask { .. } => {
                "evaluate with the recipe that trained the head"
            }
            AdapterError::NoBank => "give the adapters with `--adapter`",
            AdapterError::NoHead { .. } => {
                "heads come with the adapter of a recipe that trained them: give it with `--adapter`"
            }
            AdapterError::HeadsClash { .. } => {
                "heads have the names of the tables they were trained on: rename one of these"
            }
            AdapterError::SeveralCopies { .. } => "merge one of them into the base first",
            AdapterError::Scale { .. } => "write `DIR` or `DIR:scale` with a number such as `0.5`",
            AdapterError::Json { .. } | AdapterError::Value { .. } => {
                "take the file anew from where the adapter comes from, as PEFT or a run of `janus train` wrote it"
            }
            AdapterError::Safetensors { .. } => {
                "the file may be cut off: compare its size with the source and copy it again"
            }
            AdapterError::UnknownModule { .. } => {
                "give the base that the adapter was made for; `janus base inspect` lists the names"
            }
            AdapterError::Setting { .. } => "correct it in the recipe's `[adapter]` section",
            AdapterError::Head { .. } => "copy all files of the adapter anew from where it comes from",
            AdapterError::Io { .. } if self.fault() == Fault::Input => {
                "see whether it is there and this user may read it, such as with `ls -l`"
            }
            AdapterError::Io { .. } | AdapterError::Tensor(_) => return Vec::new(),
        };
        vec![hint.into()]
    }
}

/// What to give in the place of a file.
fn instead_of_file(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.join(CONFIG_FILE).is_file() {
        return format!("give the folder it lies in: `--adapter {}`", folder.display());
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let is_one_of = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if is_one_of(&[".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".7z", ".rar"]) {
        return "unpack it and give the folder in which `adapter_config.json` and `adapter_model.safetensors` lie then"
            .into();
    }
    if is_one_of(&[".safetensors"]) {
        return "give a folder in which it is called `adapter_model.safetensors`, with its `adapter_config.json` beside it".into();
    }
    if is_one_of(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return "load it with PEFT, save it again with `safe_serialization=True`, and give the folder".into();
    }
    "give a folder with `adapter_config.json` and `adapter_model.safetensors`, or a hub id `owner/name`".into()
}

/// How the tensors of a file differ from what they should be. Names are those in the file.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Mismatch {
    /// Expected, not in the file.
    pub missing: Vec<String>,
    /// In the file, expected by nothing.
    pub leftover: Vec<String>,
    /// Of another shape.
    pub misshapen: Vec<Misshapen>,
    /// Of a type that is not read: name and type.
    pub mistyped: Vec<(String, String)>,
    /// Holding a value that is not finite: name and value.
    pub not_finite: Vec<(String, f32)>,
}

impl Mismatch {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.leftover.is_empty()
            && self.misshapen.is_empty()
            && self.mistyped.is_empty()
            && self.not_finite.is_empty()
    }
}

/// A tensor of another shape than the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name.
    pub name: String,
    /// The shape it should have.
    pub expected: Vec<usize>,
    /// The shape it has.
    pub got: Vec<usize>,
}

/// Names listed per kind of fault; the others are counted.
const LISTED: usize = 32;

fn list<T>(items: &[T], one: impl Fn(&T) -> String) -> String {
    let mut text = items.iter().take(LISTED).map(one).collect::<Vec<_>>().join(", ");
    if items.len() > LISTED {
        text.push_str(&format!(" and {} more", items.len() - LISTED));
    }
    text
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("{} missing: {}", self.missing.len(), list(&self.missing, |n| format!("`{n}`"))));
        }
        if !self.leftover.is_empty() {
            parts.push(format!("{} left over: {}", self.leftover.len(), list(&self.leftover, |n| format!("`{n}`"))));
        }
        if !self.misshapen.is_empty() {
            let one = |m: &Misshapen| format!("`{}` has shape {:?}, expected {:?}", m.name, m.got, m.expected);
            parts.push(format!("{} of another shape: {}", self.misshapen.len(), list(&self.misshapen, one)));
        }
        if !self.mistyped.is_empty() {
            let one = |(name, dtype): &(String, String)| format!("`{name}` is `{dtype}`");
            let all = list(&self.mistyped, one);
            parts.push(format!("{} not `F32`, `BF16` or `F16`: {all}", self.mistyped.len()));
        }
        if !self.not_finite.is_empty() {
            let one = |(name, value): &(String, f32)| format!("`{name}` holds `{value}`");
            parts.push(format!("{} not finite: {}", self.not_finite.len(), list(&self.not_finite, one)));
        }
        f.write_str(&parts.join("; "))
    }
}

fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn made_for(name: &Option<String>, fingerprint: &str) -> String {
    match name {
        Some(name) => format!("base `{name}` with fingerprint `{fingerprint}`"),
        None => format!("a base with fingerprint `{fingerprint}`"),
    }
}
