//! What keys a recipe has: each field of a section is declared once, and from that declaration come the typed struct, its
//! documentation, the reader, the writer and the table of fields below, which checks, help and reference pages share.

use std::fmt;

/// Names of values for one key.
#[derive(Debug, PartialEq)]
pub struct Choices {
    /// Those that this version takes.
    pub names: &'static [&'static str],
    /// Those of the recipe format that this version refuses by name.
    pub later: &'static [&'static str],
}

/// Which numbers a key takes; all are finite and fit an f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberRange {
    /// Any but 0.
    NotZero,
    /// Above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// 1 or more.
    AtLeastOne,
    /// From 0 to 1.
    Share,
    /// From 0 up to, not including, 1.
    BelowOne,
}

impl NumberRange {
    /// Whether a number is in it.
    pub fn contains(self, number: f64) -> bool {
        number.abs() <= f64::from(f32::MAX)
            && match self {
                // In f32, which computes.
                NumberRange::NotZero => number as f32 != 0.0,
                NumberRange::Positive => number > 0.0,
                NumberRange::NotNegative => number >= 0.0,
                NumberRange::AtLeastOne => number >= 1.0,
                NumberRange::Share => (0.0..=1.0).contains(&number),
                NumberRange::BelowOne => (0.0..1.0).contains(&number),
            }
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NumberRange::NotZero => "a finite number other than 0",
            NumberRange::Positive => "a finite number above 0",
            NumberRange::NotNegative => "a finite number, 0 or more",
            NumberRange::AtLeastOne => "a finite number, 1 or more",
            NumberRange::Share => "a number from 0 to 1",
            NumberRange::BelowOne => "a number from 0 up to, not including, 1",
        })
    }
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// Text that is not empty.
    Text,
    /// Whole numbers.
    Integer {
        /// The least.
        minimum: u64,
        /// The greatest.
        maximum: u64,
    },
    /// Arrays of whole numbers.
    IntegerList {
        /// The least.
        minimum: u64,
        /// The greatest.
        maximum: u64,
    },
    /// Numbers.
    Number(NumberRange),
    /// Arrays of two numbers.
    Pair(NumberRange),
    /// `true` or `false`.
    Boolean,
    /// One of some words.
    Choice(&'static Choices),
    /// Arrays of some words.
    ChoiceList(&'static Choices),
    /// Arrays of texts that are not empty.
    TextList,
    /// Tables from a task's roles to column names.
    Columns,
    /// A share as a float from 0 to 1, or a count as an integer.
    BadRows,
    /// A table with the keys of [`EarlyStopping`](super::EarlyStopping).
    EarlyStopping,
    /// A table from modules to factors.
    Rates,
    /// -1, or a whole number of at least 1.
    Factor,
    /// A table from patterns to ranks.
    Ranks,
    /// A table from patterns to numerators of scales.
    Alphas,
    /// A table with keys of another section.
    Keys(&'static Section),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Text => f.write_str("a string that is not empty"),
            Rule::Integer { minimum, maximum } if *maximum == i64::MAX as u64 => {
                write!(f, "an integer, {minimum} or more")
            }
            Rule::Integer { minimum, maximum } => write!(f, "an integer from {minimum} to {maximum}"),
            Rule::IntegerList { minimum, maximum } => write!(f, "an array of integers from {minimum} to {maximum}"),
            Rule::Number(range) => range.fmt(f),
            Rule::Pair(range) => write!(f, "an array of two, each {range}"),
            Rule::Boolean => f.write_str("`true` or `false`"),
            Rule::Choice(choices) => {
                let names: Vec<String> = choices.names.iter().map(|name| format!("\"{name}\"")).collect();
                match names.as_slice() {
                    [one] => f.write_str(one),
                    names => write!(f, "one of {}", names.join(", ")),
                }
            }
            Rule::ChoiceList(choices) => {
                let names: Vec<String> = choices.names.iter().map(|name| format!("\"{name}\"")).collect();
                write!(f, "an array of some of {}", names.join(", "))
            }
            Rule::TextList => f.write_str("an array of strings that are not empty"),
            Rule::Columns => f.write_str("a table of column names, such as { image = \"photo\" }"),
            Rule::EarlyStopping => {
                f.write_str("a table such as { metric = \"table.loss\", patience = 3, mode = \"min\" }")
            }
            Rule::Rates => f.write_str("a table of factors above 0, such as { vision_model = 0.1 }"),
            Rule::Factor => f.write_str("-1 or an integer, 1 or more"),
            Rule::Ranks => f.write_str("a table of ranks from 1 to 16384, such as { down_proj = 16 }"),
            Rule::Alphas => f.write_str("a table of finite numbers other than 0, such as { down_proj = 32 }"),
            Rule::Keys(section) => write!(f, "a table with keys of `[{}]`", section.name),
            Rule::BadRows => f.write_str("a share from 0.0 to 1.0, or a count of rows as an integer"),
        }
    }
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub documentation: &'static [&'static str],
    /// What it takes.
    pub rule: Rule,
    /// Whether a recipe must have it.
    pub required: bool,
    /// The value without it, as TOML; absent where that depends on other keys.
    pub default: fn() -> Option<String>,
}

impl Field {
    /// The first sentence of its documentation.
    pub fn summary(&self) -> String {
        let text = self.documentation.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        match text.split_once(". ") {
            Some((first, _)) => first.to_owned(),
            None => text.trim_end_matches('.').to_owned(),
        }
    }
}

/// A table of the recipe.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub documentation: &'static [&'static str],
    /// Whether there may be several, `[[name]]`.
    pub repeated: bool,
    /// Its keys.
    pub fields: &'static [Field],
}

/// What other tools call some keys; a user who writes these is told ours.
pub(crate) const FOREIGN_NAMES: &[(&str, &str)] = &[
    ("r", "adapter.rank"),
    ("lora_rank", "adapter.rank"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("target_modules", "adapter.targets"),
    ("model", "base.path"),
    ("model_name_or_path", "base.path"),
    ("torch_dtype", "base.dtype"),
    ("lr", "train.learning_rate"),
    ("lr_scheduler_type", "train.schedule"),
    ("scheduler", "train.schedule"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("max_steps", "train.steps"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("gradient_accumulation_steps", "train.grad_accumulation"),
    ("max_grad_norm", "train.clip_norm"),
    ("grad_clip", "train.clip_norm"),
    ("warmup", "train.warmup_steps"),
    ("gradient_checkpointing", "train.recompute"),
    ("save_steps", "train.checkpoint_every"),
    ("eval_steps", "train.eval_every"),
    ("save_total_limit", "train.keep_checkpoints"),
    ("metric_for_best_model", "train.early_stopping"),
    ("early_stopping_patience", "train.early_stopping"),
    ("output_dir", "output.dir"),
    ("directory", "output.dir"),
    ("validation", "data.0.eval"),
];

/// The default's text, absent where an empty one stands for "depends".
pub(crate) fn default_text<T: super::value::FieldValue>(value: T) -> Option<String> {
    value.write()
}

/// Declares a section: the struct, its table of fields, its reader and its writer. A field whose key is a word of Rust says its
/// key: `pub places = "where": ..`.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        pub struct $name:ident = $section:literal $repeated:ident {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident $(= $key:literal)?: $type:ty, $rule:expr, $presence:ident $(($default:expr))?;
            )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                pub $field: $type,
            )+
        }

        impl $name {
            /// The section's keys.
            pub const SECTION: $crate::recipe::schema::Section = $crate::recipe::schema::Section {
                name: $section,
                documentation: &[$($section_doc),+],
                repeated: $crate::recipe::schema::section!(@is_repeated $repeated),
                fields: &[$(
                    $crate::recipe::schema::Field {
                        name: $crate::recipe::schema::section!(@key $field $($key)?),
                        documentation: &[$($doc),+],
                        rule: $rule,
                        required: $crate::recipe::schema::section!(@is_required $presence),
                        default: || {
                            let default: Option<String> = None;
                            $(let default = default.or($crate::recipe::schema::default_text::<$type>($default));)?
                            default
                        },
                    },
                )+],
            };

            /// Reads every key, so that all faults are found; absent where a required key is missing or wrong.
            pub(crate) fn read(reader: &mut $crate::recipe::value::SectionReader<'_>) -> Option<Self> {
                $(
                    let key = $crate::recipe::schema::section!(@key $field $($key)?);
                    let $field = reader.$presence::<$type>(key, &$rule $(, $default)?);
                )+
                Some(Self { $($field: $field?),+ })
            }

            /// Appends `key = value` lines.
            pub(crate) fn write(&self, out: &mut String) {
                $(
                    if let Some(value) = $crate::recipe::value::FieldValue::write(&self.$field) {
                        out.push_str($crate::recipe::schema::section!(@key $field $($key)?));
                        out.push_str(" = ");
                        out.push_str(&value);
                        out.push('\n');
                    }
                )+
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@is_repeated once) => { false };
    (@is_repeated repeated) => { true };
    (@is_required required) => { true };
    (@is_required default) => { false };
}

/// Declares a key's words as an enum.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])+
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+
        }
        later [$($later:literal),*]
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// The words.
            pub const CHOICES: $crate::recipe::schema::Choices =
                $crate::recipe::schema::Choices { names: &[$($text),+], later: &[$($later),*] };

            /// The word.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// What the word stands for.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::recipe::value::Word for $name {}

        impl $crate::recipe::value::FieldValue for $name {
            fn read(
                node: &$crate::recipe::tree::Node,
                key: &str,
                rule: &$crate::recipe::schema::Rule,
                faults: &mut $crate::recipe::fault::Faults,
            ) -> Option<Self> {
                let word = $crate::recipe::value::read_choice(node, key, rule, &Self::CHOICES, faults)?;
                Self::from_name(&word)
            }

            fn write(&self) -> Option<String> {
                Some(format!("\"{}\"", self.name()))
            }
        }
    };
}

pub(crate) use {choice, section};

/// A section is known by its name.
impl PartialEq for Section {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
