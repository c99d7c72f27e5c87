//! `[adapter]`: what is trained, by which method, where.

use super::schema::{NumberRange, Rule, choice, section};
use super::types::{DEFAULT_SCALE, MAX_INTEGER, MAX_RANK};

choice! {
    /// How an adapter corrects a product.
    pub enum AdapterMethod {
        /// LoRA: a pair of matrices of rank r whose product, times the scale, is added to the frozen one.
        Lora = "lora",
        /// DoRA: a pair as with `lora`, and a trained length for each output's weights.
        Dora = "dora",
        /// LoHa: the product, value by value, of two products of rank r is added.
        Loha = "loha",
        /// LoKr: a Kronecker product is added.
        Lokr = "lokr",
        /// VeRA: two trained vectors around random matrices that all sites share.
        Vera = "vera",
        /// (IA)³: a trained factor on each output, or on each input.
        Ia3 = "ia3",
    }
    later ["oft", "boft"]
}

choice! {
    /// How low-rank pairs begin.
    pub enum AdapterInit {
        /// A drawn evenly within ±1/√inputs, B zero.
        Kaiming = "kaiming",
        /// A drawn from a normal distribution with deviation 1/rank, B zero.
        Gaussian = "gaussian",
        /// A and B from the greatest singular values of the weight, which are taken away from it; with `lora` at linear maps.
        Pissa = "pissa",
        /// A and B from the QR decomposition of the weight, taken away from it likewise.
        Olora = "olora",
        /// A from what the site sees over the run's own rows, B zero; with `lora` at linear maps.
        Eva = "eva",
    }
    later []
}

/// A table from patterns over checkpoint paths to numbers, in the recipe's order: the first that matches counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

section! {
    /// What is trained.
    pub struct AdapterSection = "adapter" once {
        /// How the adapter corrects a product.
        pub method: AdapterMethod, Rule::Choice(&AdapterMethod::CHOICES), default(AdapterMethod::Lora);
        /// Rank of each site's factors; not with `ia3`.
        pub rank: u64, Rule::Integer { minimum: 1, maximum: MAX_RANK }, default(8);
        /// Factor on what each site's factors make; 2.0 where `alpha` is absent too. Not with `vera` and `ia3`.
        pub scale: Option<f64>, Rule::Number(NumberRange::NotZero), default(None);
        /// Another way to give the scale: scale = alpha / rank, with `rslora` alpha / √rank.
        pub alpha: Option<f64>, Rule::Number(NumberRange::NotZero), default(None);
        /// Whether scales are stabilised over ranks: alpha / √rank. With `lora` and `dora`.
        pub rslora: bool, Rule::Boolean, default(false);
        /// How pairs begin. With `lora` and `dora`.
        pub init: AdapterInit, Rule::Choice(&AdapterInit::CHOICES), default(AdapterInit::Kaiming);
        /// A site may get so many times its rank where its inputs take more directions than others'. With `init = "eva"`.
        pub eva_rho: f64, Rule::Number(NumberRange::AtLeastOne), default(1.0);
        /// Whether each pair has a bias that is trained, where the base has one. With `lora`.
        pub bias: bool, Rule::Boolean, default(false);
        /// Sites that are scaled on their input instead of their output: patterns. With `ia3`.
        pub feedforward: Vec<String>, Rule::TextList, default(vec!["down_proj".to_owned(), "fc2".to_owned()]);
        /// First value of the vectors between the random matrices. With `vera`.
        pub d_initial: f64, Rule::Number(NumberRange::NotZero), default(0.1);
        /// Seed of the random matrices. With `vera`.
        pub projection_seed: u64, Rule::Integer { minimum: 0, maximum: MAX_INTEGER }, default(0);
        /// Size of the smaller part that a dimension is taken apart into, at most; -1: near its root. With `lokr`.
        pub decompose_factor: i64, Rule::Factor, default(-1);
        /// Whether the left factor is a product of rank r, too, where it is large. With `lokr`.
        pub decompose_both: bool, Rule::Boolean, default(false);
        /// Share of the inputs that is dropped before A in training. With `lora`, `dora` and `vera`.
        pub dropout: f64, Rule::Number(NumberRange::BelowOne), default(0.0);
        /// Where the adapter sits: presets (`decoder`, `vision`, `aligner`, `generation`, `all`) or patterns over checkpoint paths.
        pub targets: Vec<String>, Rule::TextList, default(vec!["decoder".to_owned(), "vision".to_owned()]);
        /// Patterns over paths that are taken away from the targets again.
        pub exclude: Vec<String>, Rule::TextList, default(Vec::new());
        /// Numbers of the decoder's and the tower's layers that targets are taken from, from 0; empty: all. What is in no layer stays.
        pub layers: Vec<u64>, Rule::IntegerList { minimum: 0, maximum: MAX_INTEGER }, default(Vec::new());
        /// Other ranks by pattern, the first that matches: `{ down_proj = 16 }`.
        pub rank_pattern: Patterns<u64>, Rule::Ranks, default(Patterns::default());
        /// Other alphas by pattern, the first that matches.
        pub alpha_pattern: Patterns<f64>, Rule::Alphas, default(Patterns::default());
        /// Modules of which a full copy is trained and saved beside the adapter's own tensors.
        pub modules_to_save: Vec<String>, Rule::TextList, default(Vec::new());
        /// An adapter folder or hub id to begin from, of the same form; without it, from nothing.
        pub start_from: Option<String>, Rule::Text, default(None);
    }
}

impl AdapterMethod {
    /// Whether a key of `[adapter]` says something of it.
    pub fn takes(self, key: &str) -> bool {
        use AdapterMethod::{Dora, Ia3, Loha, Lokr, Lora, Vera};
        let takers: &[Self] = match key {
            "rank" => &[Lora, Dora, Loha, Lokr, Vera],
            "scale" | "alpha" | "rank_pattern" | "alpha_pattern" => &[Lora, Dora, Loha, Lokr],
            "rslora" | "init" => &[Lora, Dora],
            "bias" | "eva_rho" => &[Lora],
            "feedforward" => &[Ia3],
            "d_initial" | "projection_seed" => &[Vera],
            "decompose_factor" | "decompose_both" => &[Lokr],
            "dropout" => &[Lora, Dora, Vera],
            _ => return true,
        };
        takers.contains(&self)
    }

    /// Methods that a key says something of.
    pub fn takers(key: &str) -> Vec<&'static str> {
        let all = Self::CHOICES.names.iter().filter_map(|name| Self::from_name(name));
        all.filter(|method| method.takes(key)).map(Self::name).collect()
    }
}

impl AdapterSection {
    /// Whether a key says something of it.
    pub(super) fn takes(&self, key: &str) -> bool {
        self.method.takes(key) && (key != "eva_rho" || self.init == AdapterInit::Eva)
    }

    /// Whether it is to begin in two ways at once.
    pub(super) fn refused_start(&self) -> bool {
        self.start_from.is_some() && !matches!(self.init, AdapterInit::Kaiming | AdapterInit::Gaussian)
    }

    /// What keeps pairs from beginning as `init` says, in words.
    pub(super) fn refused_init(&self) -> Option<&'static str> {
        match (self.init, self.method, self.bias) {
            (AdapterInit::Kaiming | AdapterInit::Gaussian, ..) => None,
            (_, AdapterMethod::Lora, false) => None,
            (_, AdapterMethod::Lora, true) => Some("its pairs have a bias"),
            _ => Some("the method is another one"),
        }
    }

    /// What alpha is divided by.
    fn divisor(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rslora { rank.sqrt() } else { rank }
    }

    /// The factor on what a site's factors make.
    pub fn effective_scale(&self) -> f64 {
        match (self.scale, self.alpha) {
            (Some(scale), _) => scale,
            (None, Some(alpha)) => alpha / self.divisor(),
            (None, None) => DEFAULT_SCALE,
        }
    }

    /// The scale as PEFT writes it: alpha = scale * rank, with `rslora` scale * √rank.
    pub fn effective_alpha(&self) -> f64 {
        self.alpha.unwrap_or_else(|| self.effective_scale() * self.divisor())
    }

    /// The section's lines that say something of its method.
    pub(super) fn write_own(&self, out: &mut String) {
        let mut all = String::new();
        self.write(&mut all);
        let is_own = |line: &&str| line.split_once(" = ").is_none_or(|(key, _)| self.takes(key));
        all.lines().filter(is_own).for_each(|line| {
            out.push_str(line);
            out.push('\n');
        });
    }
}
