//! The typed recipe.

use crate::data::{BadRowLimit, DEFAULT_PAGE_BYTES, Split};
use janus_core::processing::Decoding;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::adapter::AdapterSection;
use super::schema::{NumberRange, Rule, Section, choice, section};
use super::value::Overrides;

/// Greatest rank: beyond the widest layer of the family (Janus-Pro-7B's feed-forward, 11,008) a pair is no longer low-rank.
pub(super) const MAX_RANK: u64 = 16_384;
/// Greatest batch size, number of accumulated batches and number of epochs: products of them stay far from overflow.
const MAX_COUNT: u64 = 1_000_000;
/// Greatest number of steps.
const MAX_STEPS: u64 = 1_000_000_000;
/// Integers that TOML can hold.
pub(super) const MAX_INTEGER: u64 = i64::MAX as u64;

const COUNT: Rule = Rule::Integer { minimum: 1, maximum: MAX_COUNT };
const STEPS: Rule = Rule::Integer { minimum: 1, maximum: MAX_STEPS };
const STEPS_OR_NONE: Rule = Rule::Integer { minimum: 0, maximum: MAX_STEPS };

/// Epochs where a recipe gives neither `epochs` nor `steps`.
pub(crate) const DEFAULT_EPOCHS: u64 = 3;
/// The least that `data_limits.max_page_bytes` may be: Parquet writers aim at pages of a megabyte.
const MIN_PAGE_BYTES: u64 = 1 << 20;
/// Scale where a recipe gives neither `scale` nor `alpha`.
pub(crate) const DEFAULT_SCALE: f64 = 2.0;
/// Learning rate of the dynamic encoder where a recipe gives none: a tenth of what was best, a thirtieth of where harm began
/// (docs/results.md).
pub(crate) const DEFAULT_DYNAMIC_RATE: f64 = 3e-4;
/// Prompt dropout of `generate` and `edit` where a recipe gives none: the share usual for classifier-free guidance.
pub(crate) const DEFAULT_PROMPT_DROPOUT: f64 = 0.1;

/// What is trained, from what, on what and how: a recipe file with its overrides, checked and resolved.
///
/// Input paths are absolute, so the recipe means the same wherever it is written to.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// `[base]`.
    pub base: BaseSection,
    /// `[adapter]`.
    pub adapter: AdapterSection,
    /// `[dynamic]`, absent where the recipe has none.
    pub dynamic: Option<DynamicSection>,
    /// `[mifs]`, absent where the recipe has none.
    pub mifs: Option<MifsSection>,
    /// `[[data]]`, at least one.
    pub data: Vec<DataSection>,
    /// `[data_limits]`.
    pub data_limits: DataLimits,
    /// `[train]`.
    pub train: TrainSection,
    /// `[output]`.
    pub output: OutputSection,
    /// `[[stage]]`, empty where the run has no stages.
    pub stages: Vec<Stage>,
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What holds in it: the recipe with the stage's own keys set, its own tables alone, its steps in `train.steps`, and no
    /// stages.
    pub recipe: Recipe,
}

impl Recipe {
    /// Every section that this version reads, in the order of a recipe file.
    pub const SECTIONS: &'static [Section] = &[
        BaseSection::SECTION,
        AdapterSection::SECTION,
        DataSection::SECTION,
        DataLimits::SECTION,
        TrainSection::SECTION,
        DynamicSection::SECTION,
        MifsSection::SECTION,
        OutputSection::SECTION,
        StageSection::SECTION,
    ];
}

choice! {
    /// What the frozen weights are computed in.
    pub enum BaseDtype {
        /// 32-bit floats.
        F32 = "f32",
        /// 16-bit floats with the exponent of f32.
        Bf16 = "bf16",
    }
    later ["q8_0", "q4_k"]
}

section! {
    /// The frozen model that the adapter is trained for.
    pub struct BaseSection = "base" once {
        /// A built-in name, a checkpoint folder, or a hub id such as `deepseek-ai/Janus-Pro-1B`.
        /// What exists beside the recipe is that folder.
        pub path: String, Rule::Text, required;
        /// What the frozen weights are computed in.
        pub dtype: BaseDtype, Rule::Choice(&BaseDtype::CHOICES), default(BaseDtype::Bf16);
    }
}

choice! {
    /// A path with factors of the dynamic visual encoder.
    pub enum DynamicPlace {
        /// The layer norms of the vision tower's blocks.
        Vision = "vision",
        /// What `generation_aligner` gives.
        Generation = "generation",
    }
    later []
}

section! {
    /// The dynamic visual encoder: factors on the visual paths that a small network makes from a token for each modality.
    /// Without this section there is none.
    pub struct DynamicSection = "dynamic" once {
        /// Whether there is one.
        pub enabled: bool, Rule::Boolean, default(true);
        /// The paths that have factors; one that no task of the recipe uses has none.
        pub places = "where": Vec<DynamicPlace>, Rule::ChoiceList(&DynamicPlace::CHOICES),
            default(vec![DynamicPlace::Vision, DynamicPlace::Generation]);
        /// Learning rate of its values, in the place of `train.learning_rate`: each step moves all factors at once.
        pub learning_rate: f64, Rule::Number(NumberRange::Positive), default(DEFAULT_DYNAMIC_RATE);
    }
}

section! {
    /// The alignment of the features that both visual paths share: those of a picture and those of its image codes are drawn
    /// together, those of different pictures apart. Without this section there is none.
    pub struct MifsSection = "mifs" once {
        /// Factor on the alignment's loss.
        pub weight: f64, Rule::Number(NumberRange::Positive), default(0.05);
    }
}

impl Recipe {
    /// `[dynamic]`, where it is there and enabled.
    pub fn dynamic(&self) -> Option<&DynamicSection> {
        self.dynamic.as_ref().filter(|dynamic| dynamic.enabled)
    }
}

choice! {
    /// What a table of rows teaches.
    pub enum Task {
        /// Images and a question to an answer.
        Understand = "understand",
        /// A prompt to an image.
        Generate = "generate",
        /// Text to text.
        Text = "text",
        /// An image to one of some labels, by a head of its own.
        Classify = "classify",
        /// An image to boxes around things, by a head of its own.
        Locate = "locate",
        /// An image to a mask of what is looked for, by a head of its own.
        Segment = "segment",
        /// Images and captions that find each other, by a head of its own.
        Retrieve = "retrieve",
        /// An image and a prompt to another image.
        Edit = "edit",
        /// An image to itself through the codes of the image tokenizer, which is what is trained.
        Reconstruct = "reconstruct",
    }
    later []
}

impl Task {
    /// The roles of the columns that the task reads, under which `columns` names them.
    pub fn roles(self) -> &'static [&'static str] {
        match self {
            Task::Understand => &["image", "images", "question", "answer", "messages"],
            Task::Generate => &["prompt", "image"],
            Task::Text => &["messages", "prompt", "answer"],
            Task::Classify => &["image", "label"],
            Task::Locate => &["image", "boxes", "labels"],
            Task::Segment => &["image", "mask"],
            Task::Retrieve => &["image", "caption"],
            Task::Edit => &["source", "prompt", "image"],
            Task::Reconstruct => &["image"],
        }
    }

    /// Whether its answers are pictures.
    pub fn draws(self) -> bool {
        matches!(self, Task::Generate | Task::Edit)
    }

    /// The figures that an evaluation of its rows has: those of all rows, and those of drawn pictures, which there are where
    /// `eval_pictures` is set. What networks measure that are given to `janus eval` is not among them.
    pub fn figures(self) -> (&'static [&'static str], &'static [&'static str]) {
        let of_drawn: &[&str] = match self {
            Task::Generate => &["pictures", "tower_distance", "tower_frechet", "caption_agreement"],
            Task::Edit => &["pictures", "tower_distance", "tower_frechet", "psnr", "ssim"],
            _ => &[],
        };
        let of_rows: &[&str] = match self {
            Task::Understand | Task::Text => &[
                "rows",
                "tokens",
                "loss",
                "perplexity",
                "token_accuracy",
                "frequency_loss",
                "exact_match",
                "bleu_4",
                "rouge_l",
                "frequent_exact_match",
                "frequent_bleu_4",
                "frequent_rouge_l",
            ],
            Task::Generate | Task::Edit => {
                &["rows", "tokens", "loss", "perplexity", "token_accuracy", "frequency_loss"]
            }
            Task::Classify => &["rows", "loss", "accuracy", "macro_f1", "majority_accuracy"],
            Task::Locate => &["rows", "loss", "map_50", "map_50_95", "mean_iou", "mean_box_map_50", "mean_box_iou"],
            Task::Segment => &["rows", "loss", "dice", "iou", "pooled_dice", "empty_mask_dice"],
            Task::Retrieve => &[
                "rows",
                "loss",
                "recall_at_1",
                "recall_at_5",
                "recall_at_10",
                "caption_recall_at_1",
                "caption_recall_at_5",
                "caption_recall_at_10",
                "chance_recall_at_1",
            ],
            Task::Reconstruct => &["rows", "loss", "psnr", "mean_colour_psnr", "ssim", "codes_used", "code_perplexity"],
        };
        (of_rows, of_drawn)
    }

    /// Whether it trains a head of its own.
    pub fn has_head(self) -> bool {
        matches!(self, Task::Classify | Task::Locate | Task::Segment | Task::Retrieve)
    }

    /// Roles that exclude each other.
    pub fn excluding_roles(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Task::Understand => &[("image", "images"), ("messages", "question"), ("messages", "answer")],
            Task::Text => &[("messages", "prompt"), ("messages", "answer")],
            _ => &[],
        }
    }
}

choice! {
    /// How a picture lies that was stored turned or mirrored, with a note of it in EXIF.
    pub enum Orientation {
        /// As it is meant to be seen: what EXIF says is applied first.
        Upright = "upright",
        /// As it is stored.
        Stored = "stored",
    }
    later []
}

choice! {
    /// What the four numbers of a box are.
    pub enum BoxFormat {
        /// Left, top, right and bottom edge.
        Xyxy = "xyxy",
        /// Left and top edge, width, height.
        Xywh = "xywh",
        /// Centre, width, height.
        Cxcywh = "cxcywh",
    }
    later []
}

choice! {
    /// What becomes of a row that is longer than the base's positions or `data_limits.max_tokens`.
    pub enum TooLong {
        /// It is a bad row.
        Reject = "reject",
        /// The end of its question is cut off; pictures and the answer stay whole.
        Truncate = "truncate",
    }
    later []
}

section! {
    /// A table of rows for one task. The first is `data.0` on the command line.
    pub struct DataSection = "data" repeated {
        /// What the table is called in metrics; the task's name by default, with the table's number where several are unnamed.
        pub name: String, Rule::Text, default(String::new());
        /// What its rows teach.
        pub task: Task, Rule::Choice(&Task::CHOICES), required;
        /// Rows to train on: a Parquet file, a glob, a folder, `hf://datasets/owner/name/...` or `synth:name?rows=512&seed=1`.
        pub train: String, Rule::Text, required;
        /// Rows to evaluate on, named in the same ways.
        pub eval: Option<String>, Rule::Text, default(None);
        /// A folder that paths of pictures may lead into besides the table's own; relative paths start there if they do not
        /// exist beside the table. Relative to the recipe.
        pub image_root: Option<String>, Rule::Text, default(None);
        /// Whether pictures are turned as their EXIF orientation says (`"upright"`, the default), before boxes and masks are
        /// compared with them.
        pub orientation: Option<Orientation>, Rule::Choice(&Orientation::CHOICES), default(None);
        /// Bits that 16-bit grey pictures use: their values are scaled so that 2^bits - 1 is white. Without it values above
        /// 255 are white, as Pillow has it.
        pub grey_bits: Option<u64>, Rule::Integer { minimum: 8, maximum: 16 }, default(None);
        /// What the numbers of a box are, `"xyxy"` by default; for `locate` only.
        pub box_format: Option<BoxFormat>, Rule::Choice(&BoxFormat::CHOICES), default(None);
        /// Whether boxes are shares of the picture's width and height instead of pixels; for `locate` only.
        pub normalised: Option<bool>, Rule::Boolean, default(None);
        /// Values of a mask that are the object, where masks have more than two; for `segment` only.
        pub mask_values: Option<Vec<u64>>, Rule::IntegerList { minimum: 0, maximum: 65_535 }, default(None);
        /// Value of a mask whose pixels are not counted; for `segment` only.
        pub ignore_value: Option<u64>, Rule::Integer { minimum: 0, maximum: 65_535 }, default(None);
        /// What becomes of rows that are longer than the base's positions or `data_limits.max_tokens`: they are left out
        /// (`"reject"`, the default), or their question is cut. For tasks with text.
        pub too_long: Option<TooLong>, Rule::Choice(&TooLong::CHOICES), default(None);
        /// Share of the sampled rows, relative to the other tables' weights.
        pub weight: f64, Rule::Number(NumberRange::Positive), default(1.0);
        /// Factor on this table's loss.
        pub loss_weight: f64, Rule::Number(NumberRange::NotNegative), default(1.0);
        /// Names of the columns by role; a role that is not named is read from the column of its own name.
        pub columns: Columns, Rule::Columns, default(Columns::default());
        /// Asked of every row in the place of a column of questions; for `understand` only.
        pub question: Option<String>, Rule::Text, default(None);
        /// Pictures that each evaluation draws of the first rows to evaluate, to be measured: hundreds of passes each. For
        /// `generate` and `edit` only.
        pub eval_pictures: Option<u64>, Rule::Integer { minimum: 0, maximum: MAX_COUNT }, default(None);
        /// Steps of its stage, or of a run without stages, in which pictures come back from latents that are not quantised yet; the
        /// codebook is laid over the latents then. For a tokenizer with random weights, of which no code would be learnt
        /// otherwise; 0 for one that is trained. For `reconstruct` only.
        pub quantize_from: Option<u64>, STEPS_OR_NONE, default(None);
        /// Share of prompts that are emptied in training, so that guidance works; for `generate` and `edit` only, where it is 0.1 by default.
        pub prompt_dropout: Option<f64>, Rule::Number(NumberRange::Share), default(None);
    }
}

impl DataSection {
    /// How its pictures are read.
    pub fn decoding(&self) -> Decoding {
        let orientation = match self.orientation {
            None | Some(Orientation::Upright) => janus_core::processing::Orientation::Upright,
            Some(Orientation::Stored) => janus_core::processing::Orientation::Stored,
        };
        Decoding { orientation, grey_bits: self.grey_bits.and_then(|bits| u8::try_from(bits).ok()) }
    }

    /// What it calls the rows of a split; nothing where it has none to evaluate.
    pub fn spec(&self, split: Split) -> &str {
        match split {
            Split::Train => &self.train,
            Split::Eval => self.eval.as_deref().unwrap_or_default(),
        }
    }

    /// A table with every other key left out.
    pub fn new(name: &str, task: Task, train: &str) -> Self {
        Self {
            name: name.into(),
            task,
            train: train.into(),
            eval: None,
            image_root: None,
            orientation: None,
            grey_bits: None,
            box_format: None,
            normalised: None,
            mask_values: None,
            ignore_value: None,
            too_long: None,
            weight: 1.0,
            loss_weight: 1.0,
            columns: Columns::default(),
            question: None,
            eval_pictures: None,
            quantize_from: None,
            prompt_dropout: None,
        }
    }
}

/// Names of columns by role, as far as the recipe gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Columns {
    given: BTreeMap<String, String>,
}

impl Columns {
    /// The column that holds a role.
    pub fn name_of<'a>(&'a self, role: &'a str) -> &'a str {
        self.given.get(role).map_or(role, String::as_str)
    }

    /// Whether the recipe names that role's column; a column that it names must exist.
    pub fn is_given(&self, role: &str) -> bool {
        self.given.contains_key(role)
    }

    /// Columns by role.
    pub fn new(given: BTreeMap<String, String>) -> Self {
        Self { given }
    }

    /// Roles and columns as given, by role.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.given.iter().map(|(role, column)| (role.as_str(), column.as_str()))
    }
}

/// Factors on the learning rate by module, in the recipe's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rates(pub Vec<(String, f64)>);

impl FromIterator<(String, String)> for Columns {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self { given: pairs.into_iter().collect() }
    }
}

section! {
    /// What a run puts up with in its data.
    pub struct DataLimits = "data_limits" once {
        /// Rows that may be left out: a share (a float from 0.0 to 1.0) or a count (an integer). Beyond it the run stops.
        pub max_bad_rows: BadRowLimit, Rule::BadRows, default(BadRowLimit::Share(0.01));
        /// Bytes that a page of a Parquet file may unpack to. Pages are read whole, so this bounds memory.
        pub max_page_bytes: u64, Rule::Integer { minimum: MIN_PAGE_BYTES, maximum: MAX_INTEGER }, default(DEFAULT_PAGE_BYTES);
        /// Bytes that a file of a hub may have whose size the hub does not tell; 17179869184 (16 GiB) where it is not given.
        pub max_download_bytes: Option<u64>, Rule::Integer { minimum: 1, maximum: MAX_INTEGER }, default(None);
        /// Tokens that a row may have, its pictures included; the base's own positions bound it, too.
        pub max_tokens: Option<u64>, COUNT, default(None);
    }
}

impl Default for DataLimits {
    fn default() -> Self {
        Self {
            max_bad_rows: BadRowLimit::default(),
            max_page_bytes: DEFAULT_PAGE_BYTES,
            max_download_bytes: None,
            max_tokens: None,
        }
    }
}

choice! {
    /// How the losses of accumulated batches are averaged.
    pub enum Accumulation {
        /// Over all supervised tokens of the step, per task.
        Tokens = "tokens",
        /// Over each batch's tokens, then over the batches, per task.
        Mean = "mean",
    }
    later []
}

choice! {
    /// How tables are mixed.
    pub enum Mixture {
        /// Rows are sampled from the tables by weight.
        Sample = "sample",
        /// Each step takes one batch of every table.
        Each = "each",
    }
    later []
}

choice! {
    /// How the learning rate goes on after the warm-up.
    pub enum Schedule {
        /// It stays.
        Constant = "constant",
        /// It falls to 0 in a straight line.
        Linear = "linear",
        /// It falls to 0 as half a cosine.
        Cosine = "cosine",
    }
    later []
}

choice! {
    /// Whether activations are computed again in the backward pass instead of kept.
    pub enum Recompute {
        /// As memory asks for it.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
    later []
}

choice! {
    /// Which way a metric gets better.
    pub enum Goal {
        /// The less, the better.
        Min = "min",
        /// The more, the better.
        Max = "max",
    }
    later []
}

section! {
    /// By which evaluation a run keeps its best checkpoint, takes its adapter, and stops.
    pub struct EarlyStopping = "train.early_stopping" once {
        /// The metric, as `table.metric`: `bsdata.loss`.
        pub metric: String, Rule::Text, required;
        /// Evaluations without a better one after which the run stops. 0 never stops it.
        pub patience: u64, STEPS_OR_NONE, default(3);
        /// Which way the metric gets better.
        pub mode: Goal, Rule::Choice(&Goal::CHOICES), default(Goal::Min);
    }
}

section! {
    /// How it is trained.
    pub struct TrainSection = "train" once {
        /// Passes over the largest table; 3 where `steps` is absent too.
        pub epochs: Option<u64>, COUNT, default(None);
        /// Optimiser steps, instead of `epochs`.
        pub steps: Option<u64>, STEPS, default(None);
        /// Rows in a batch.
        pub batch_size: u64, COUNT, default(4);
        /// Batches in an optimiser step.
        pub grad_accumulation: u64, COUNT, default(1);
        /// How the losses of a step's batches are averaged.
        pub accumulation: Accumulation, Rule::Choice(&Accumulation::CHOICES), default(Accumulation::Tokens);
        /// How several tables are mixed.
        pub mixture: Mixture, Rule::Choice(&Mixture::CHOICES), default(Mixture::Sample);
        /// Learning rate after the warm-up.
        pub learning_rate: f64, Rule::Number(NumberRange::Positive), default(2e-4);
        /// Factors on the learning rate of parts of the model, by module: `{ vision_model = 0.1 }`. The first that holds a tensor
        /// counts.
        pub rates: Rates, Rule::Rates, default(Rates::default());
        /// The rate of each B over that of its A (LoRA+, arXiv:2402.12354). With `lora` and `dora`.
        pub lora_plus_ratio: f64, Rule::Number(NumberRange::Positive), default(1.0);
        /// AdamW's decay rates of the first and the second moment.
        pub betas: [f64; 2], Rule::Pair(NumberRange::BelowOne), default([0.9, 0.999]);
        /// AdamW's epsilon.
        pub eps: f64, Rule::Number(NumberRange::Positive), default(1e-8);
        /// AdamW's decoupled weight decay.
        pub weight_decay: f64, Rule::Number(NumberRange::NotNegative), default(0.0);
        /// How the learning rate goes on after the warm-up.
        pub schedule: Schedule, Rule::Choice(&Schedule::CHOICES), default(Schedule::Cosine);
        /// Optimiser steps in which the learning rate rises from 0.
        pub warmup_steps: u64, STEPS_OR_NONE, default(0);
        /// Greatest norm of all gradients together; larger ones are scaled down to it. 0 turns clipping off.
        pub clip_norm: f64, Rule::Number(NumberRange::NotNegative), default(1.0);
        /// Seed of everything random: initial pairs, order of rows, dropout.
        pub seed: u64, Rule::Integer { minimum: 0, maximum: MAX_INTEGER }, default(42);
        /// Whether rows are shuffled, anew each epoch.
        pub shuffle: bool, Rule::Boolean, default(true);
        /// Whether activations are computed again in the backward pass instead of kept.
        pub recompute: Recompute, Rule::Choice(&Recompute::CHOICES), default(Recompute::Auto);
        /// Optimiser steps between checkpoints. 0 keeps none but the last.
        pub checkpoint_every: u64, STEPS_OR_NONE, default(200);
        /// Optimiser steps between evaluations. 0 evaluates at the start and at the end only.
        pub eval_every: u64, STEPS_OR_NONE, default(0);
        /// Checkpoints that are kept: the last so many, and the best by `early_stopping`.
        pub keep_checkpoints: u64, COUNT, default(3);
        /// By which evaluation the run keeps its best checkpoint, takes its adapter, and stops. Absent: the last step counts.
        pub early_stopping: Option<EarlyStopping>, Rule::EarlyStopping, default(None);
        /// Steps that may give no finite loss and gradient; they move nothing. One more stops the run.
        pub max_skipped_steps: u64, STEPS_OR_NONE, default(10);
        /// Optimiser steps between sample answers and pictures of the first rows to evaluate, at the start too. 0 makes them
        /// at the end only, which takes about as long as two or three steps.
        pub sample_every: u64, STEPS_OR_NONE, default(0);
    }
}

impl TrainSection {
    /// The bound on the norm of the gradients, absent where clipping is off.
    pub fn clipping(&self) -> Option<f64> {
        (self.clip_norm > 0.0).then_some(self.clip_norm)
    }
}

section! {
    /// Where the run's files go.
    pub struct OutputSection = "output" once {
        /// The run folder, which must be new or empty. Relative to the current folder.
        pub dir: PathBuf, Rule::Text, required;
    }
}

section! {
    /// A stage of a run. Stages follow one another in the order of the file: what one has trained, the next begins with. Each
    /// starts from the sections above and sets some of their keys for itself; its optimiser, its schedule and the order of its
    /// rows begin anew. Without any, the run is one piece.
    pub struct StageSection = "stage" repeated {
        /// What the stage is called in metrics.
        pub name: String, Rule::Text, required;
        /// Its optimiser steps; `train.steps` and `train.epochs` have no meaning beside stages.
        pub steps: u64, STEPS, required;
        /// Names of the tables that it learns from; all of them by default.
        pub data: Option<Vec<String>>, Rule::TextList, default(None);
        /// Keys of `[adapter]` in this stage.
        pub adapter: Overrides, Rule::Keys(&AdapterSection::SECTION), default(Overrides);
        /// Keys of `[train]` in this stage.
        pub train: Overrides, Rule::Keys(&TrainSection::SECTION), default(Overrides);
        /// Keys of `[dynamic]` in this stage.
        pub dynamic: Overrides, Rule::Keys(&DynamicSection::SECTION), default(Overrides);
        /// Keys of `[mifs]` in this stage.
        pub mifs: Overrides, Rule::Keys(&MifsSection::SECTION), default(Overrides);
    }
}
