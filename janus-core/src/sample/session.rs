//! Rows that answer side by side: each joins when there is room for it, draws one token a step, and leaves.
//!
//! Rows that write text and rows that draw image codes share the decoder's pass, in which the weights are read once. Each row has a
//! cache of keys and values of its own, as long as its longest answer, so that rows of different lengths need no padding and a row
//! that leaves gives back what it had. What a row draws does not depend on the others (`session_tests`).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::prefill::{pad_of, prefill};
use super::sampler::{Best, Sampler, draw};
use crate::error::{Error, ModelError, Result};
use crate::model::Janus;
use crate::model::decoder::{Cache, Held};
use crate::ops::SumOrder;
use crate::pass::{Mixture, Part, Pass, Route};

/// What a row draws.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Tokens of the text head.
    Text {
        /// Tokens that end an answer.
        stop: Vec<u32>,
        /// Ids the tokenizer knows; rows of the head beyond are padding and are never drawn at a temperature above 0.
        vocabulary: usize,
    },
    /// Codes of the generation head, as many as the row's most.
    Codes {
        /// Strength of the prompt; with 1 there is no unconditional branch.
        guidance: f64,
    },
}

/// How one row answers.
#[derive(Debug, Clone)]
pub struct RowOptions {
    /// What it draws.
    pub kind: Kind,
    /// Tokens at most.
    pub most: usize,
    /// 0 takes the best each time.
    pub temperature: f64,
    /// Seed of its draws.
    pub seed: u64,
}

impl RowOptions {
    /// Branches of the decoder that the row takes.
    pub fn branches(&self) -> usize {
        if self.is_guided() { 2 } else { 1 }
    }

    /// Whether it has an unconditional branch beside the one of its prompt.
    pub fn is_guided(&self) -> bool {
        matches!(self.kind, Kind::Codes { guidance } if guidance != 1.0)
    }

    /// Tokens whose keys and values a branch holds behind a prompt of so many: the last token that is drawn is not computed with.
    fn branch_tokens(&self, prompt: usize) -> usize {
        prompt.saturating_add(self.most.saturating_sub(1))
    }

    /// Tokens whose keys and values the row holds behind a prompt of so many.
    pub fn cache_tokens(&self, prompt: usize) -> usize {
        self.branch_tokens(prompt).saturating_mul(self.branches())
    }
}

/// Names a row of a session, in the order in which rows joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

/// What a row drew in a step.
#[derive(Debug)]
pub struct Drawn {
    /// The row.
    pub row: RowId,
    /// The token, or why none could be drawn.
    pub token: Result<u32>,
    /// Whether it was the row's last one.
    pub is_over: bool,
}

/// The logits that a row draws from, `[classes]` each, in f32.
#[derive(Debug)]
pub struct RowLogits<'a> {
    /// The row.
    pub row: RowId,
    /// Which of its tokens.
    pub step: usize,
    /// Given the prompt.
    pub conditional: &'a Tensor,
    /// Given none; absent without guidance.
    pub unconditional: Option<&'a Tensor>,
    /// What is drawn from.
    pub guided: &'a Tensor,
}

/// One way of a row through the decoder.
struct Branch {
    /// Normed hidden state of its last token, `[1, hidden]`.
    last: Tensor,
    cache: Cache,
}

struct Row {
    options: RowOptions,
    sampler: Sampler,
    branches: Vec<Branch>,
    /// What its tokens compute with, where the session's rows have routes.
    mixture: Option<Mixture>,
    drawn: Vec<u32>,
    reserved_tokens: usize,
    is_over: bool,
}

impl Row {
    /// What each of its branches computes with.
    fn mixtures(&self) -> impl Iterator<Item = &Option<Mixture>> {
        std::iter::repeat_n(&self.mixture, self.branches.len())
    }
}

/// Rows that answer side by side.
pub struct Session<'m> {
    model: &'m Janus,
    budget_tokens: usize,
    rows: BTreeMap<RowId, Row>,
    joined: u64,
    best: [Best; 2],
}

impl<'m> Session<'m> {
    /// A session whose rows hold keys and values of at most so many tokens together.
    pub fn new(model: &'m Janus, budget_tokens: usize) -> Self {
        Self { model, budget_tokens, rows: BTreeMap::new(), joined: 0, best: Default::default() }
    }

    /// Tokens that rows have reserved, each up to its longest answer.
    pub fn reserved_tokens(&self) -> usize {
        self.rows.values().map(|row| row.reserved_tokens).sum()
    }

    /// Whether no row is waiting for a step.
    pub fn is_idle(&self) -> bool {
        self.rows.values().all(|row| row.is_over)
    }

    /// Lets rows join behind their prompts, which are computed at once, together; `None` where there is no room for all of them
    /// now.
    ///
    /// `embeds: [branches, sequence, hidden]` and `mask: [branches][sequence]` (true = a token), left-padded: a branch of each row,
    /// then the unconditional ones of those rows that have one, both in the rows' order. The decoder's routes of `pass`, where it has
    /// some, are those of all these tokens; each row goes on as its last one. Rows of a session have all routes, or none.
    ///
    /// # Errors
    /// Shapes that do not fit, rows with and without routes, or rows that need more than the whole budget.
    pub fn join(
        &mut self,
        pass: &Pass,
        embeds: &Tensor,
        mask: &[Vec<bool>],
        rows: Vec<RowOptions>,
    ) -> Result<Option<Vec<RowId>>> {
        let (branches, sequence, _) = embeds.dims3()?;
        let lengths = lengths(mask, sequence)?;
        let places = places(&rows);
        if branches != lengths.len() || branches != places.iter().map(Vec::len).sum::<usize>() {
            let expected = format!("[branches of {} rows, sequence, hidden]", rows.len());
            return Err(ModelError::Shape { what: "prompts", expected, got: embeds.dims().to_vec() }.into());
        }
        // Both branches of a row have as many tokens.
        let needed: Vec<usize> =
            rows.iter().zip(&places).map(|(row, places)| row.cache_tokens(lengths[places[0]])).collect();
        let all = needed.iter().fold(0usize, |all, own| all.saturating_add(*own));
        if all > self.budget_tokens {
            return Err(ModelError::NoRoom { tokens: all, budget: self.budget_tokens }.into());
        }
        if all > self.budget_tokens - self.reserved_tokens() {
            return Ok(None);
        }
        let mixture = |place: usize| -> Result<Option<Mixture>> {
            let routing = pass.routing(Part::Decoder);
            routing.map(|routing| routing.of_row((place + 1) * sequence - 1).cloned()).transpose()
        };
        let decoder = self.model.decoder();
        // A single row without padding takes the prompts' cache as it is.
        let is_alone = branches == 1 && lengths[0] == sequence;
        let capacity = if is_alone { rows[0].branch_tokens(sequence) } else { sequence };
        let (last, cache) = prefill(decoder, pass, embeds, mask, capacity)?;
        let (mut own, mut ids) = (Some(cache), Vec::with_capacity(rows.len()));
        for ((options, places), reserved_tokens) in rows.into_iter().zip(places).zip(needed) {
            let mut branch = |place: &usize| -> Result<Branch> {
                let held = Held { row: *place, tokens: sequence - lengths[*place]..sequence };
                let cache = match own.take_if(|_| is_alone) {
                    Some(own) => own,
                    None => {
                        let cache = own.as_ref().expect("the prompts' cache is only taken by a row alone");
                        cache.picked(&[held], lengths[*place], options.branch_tokens(lengths[*place]))?
                    }
                };
                Ok(Branch { last: last.narrow(0, *place, 1)?, cache })
            };
            let id = RowId(self.joined);
            self.joined += 1;
            let row = Row {
                sampler: Sampler::new(options.temperature, options.seed),
                branches: places.iter().map(&mut branch).collect::<Result<_>>()?,
                mixture: mixture(places[0])?,
                drawn: Vec::new(),
                reserved_tokens,
                is_over: options.most == 0,
                options,
            };
            self.rows.insert(id, row);
            ids.push(id);
        }
        Ok(Some(ids))
    }

    /// Takes a row out, whether it is over or not, and gives what it drew; its room is free then.
    pub fn leave(&mut self, row: RowId) -> Option<Vec<u32>> {
        self.rows.remove(&row).map(|row| row.drawn)
    }

    /// Computes with the last token of every unfinished row that has one, and draws the next. `observe` sees the logits of every draw.
    ///
    /// # Errors
    /// Those of the model; a row of which nothing can be drawn is over and tells so by itself.
    pub fn step(&mut self, observe: &mut dyn FnMut(RowLogits<'_>)) -> Result<Vec<Drawn>> {
        self.advance()?;
        let mut drawn = self.draw_texts(observe)?;
        drawn.extend(self.draw_codes(observe)?);
        drawn.sort_by_key(|drawn| drawn.row);
        for own in &mut drawn {
            let Some(row) = self.rows.get_mut(&own.row) else { continue };
            match own.token {
                Ok(token) => {
                    row.drawn.push(token);
                    let stops = matches!(&row.options.kind, Kind::Text { stop, .. } if stop.contains(&token));
                    row.is_over = stops || row.drawn.len() == row.options.most;
                }
                Err(_) => row.is_over = true,
            }
            own.is_over = row.is_over;
        }
        Ok(drawn)
    }

    fn draw_texts(&mut self, observe: &mut dyn FnMut(RowLogits<'_>)) -> Result<Vec<Drawn>> {
        let mut rows = waiting(&mut self.rows, false);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let pass = pass_of(Part::Decoder, rows.iter().map(|(_, row)| &row.mixture))?;
        let last: Vec<&Tensor> = rows.iter().map(|(_, row)| &row.branches[0].last).collect();
        let logits = self.model.decoder().text_logits(&pass, &Tensor::cat(&last, 0)?)?.to_dtype(DType::F32)?;
        let mut samplers: Vec<(&mut Sampler, Option<usize>)> = Vec::with_capacity(rows.len());
        let mut ids = Vec::with_capacity(rows.len());
        for (place, (id, row)) in rows.iter_mut().enumerate() {
            let (own, step) = (logits.get(place)?, row.drawn.len());
            observe(RowLogits { row: *id, step, conditional: &own, unconditional: None, guided: &own });
            let within = match &row.options.kind {
                Kind::Text { vocabulary, .. } => Some(*vocabulary),
                Kind::Codes { .. } => None,
            };
            ids.push(*id);
            samplers.push((&mut row.sampler, within));
        }
        let tokens = draw(&mut samplers, &logits, &mut self.best[0])?;
        Ok(ids.into_iter().zip(tokens).map(|(row, token)| Drawn { row, token, is_over: false }).collect())
    }

    fn draw_codes(&mut self, observe: &mut dyn FnMut(RowLogits<'_>)) -> Result<Vec<Drawn>> {
        let mut rows = waiting(&mut self.rows, true);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let pass = pass_of(Part::Generation, rows.iter().flat_map(|(_, row)| row.mixtures()))?;
        let last: Vec<&Tensor> =
            rows.iter().flat_map(|(_, row)| row.branches.iter().map(|branch| &branch.last)).collect();
        let logits = self.model.generation()?.logits(&pass, &Tensor::cat(&last, 0)?)?.to_dtype(DType::F32)?;
        let mut place = 0;
        let (mut guided, mut ids) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (id, row) in &rows {
            let conditional = logits.get(place)?;
            let unconditional = if row.branches.len() == 2 { Some(logits.get(place + 1)?) } else { None };
            place += row.branches.len();
            let mixed = match (&unconditional, &row.options.kind) {
                (Some(other), Kind::Codes { guidance }) => (other + ((&conditional - other)? * *guidance)?)?,
                _ => conditional.clone(),
            };
            let (row, step) = (*id, row.drawn.len());
            let unconditional = unconditional.as_ref();
            observe(RowLogits { row, step, conditional: &conditional, unconditional, guided: &mixed });
            guided.push(mixed);
            ids.push(*id);
        }
        let mut samplers: Vec<_> = rows.iter_mut().map(|(_, row)| (&mut row.sampler, None)).collect();
        let codes = draw(&mut samplers, &Tensor::stack(&guided, 0)?, &mut self.best[1])?;
        Ok(ids.into_iter().zip(codes).map(|(row, token)| Drawn { row, token, is_over: false }).collect())
    }

    /// Computes the last tokens of all rows that are not over, texts before codes. What a row draws first is of its prompt.
    fn advance(&mut self) -> Result<()> {
        let model = self.model;
        let waiting = self.rows.values_mut().filter(|row| !row.is_over && !row.drawn.is_empty());
        let (mut of_text, mut of_codes): (Vec<_>, Vec<_>) =
            waiting.partition(|row| matches!(row.options.kind, Kind::Text { .. }));
        let last = |row: &&mut Row| row.drawn.last().copied().unwrap_or_default();
        let mut embeds = Vec::with_capacity(2);
        if !of_text.is_empty() {
            let pass = pass_of(Part::Decoder, of_text.iter().map(|row| &row.mixture))?;
            let ids: Vec<u32> = of_text.iter().map(last).collect();
            embeds.push(model.decoder().embed(&pass, &ids, ids.len())?);
        }
        if !of_codes.is_empty() {
            let pass = pass_of(Part::Generation, of_codes.iter().flat_map(|row| row.mixtures()))?;
            let of_row = |row: &&mut Row| std::iter::repeat_n(last(row), row.branches.len());
            let codes: Vec<u32> = of_codes.iter().flat_map(of_row).collect();
            embeds.push(model.generation()?.embed(&pass, &codes, codes.len())?);
        }
        if embeds.is_empty() {
            return Ok(());
        }
        let pass = pass_of(Part::Decoder, of_text.iter().chain(&of_codes).flat_map(|row| row.mixtures()))?;
        let mut branches: Vec<&mut Branch> =
            of_text.iter_mut().chain(&mut of_codes).flat_map(|row| row.branches.iter_mut()).collect();
        let mut caches: Vec<&mut Cache> = branches.iter_mut().map(|branch| &mut branch.cache).collect();
        let hidden = model.decoder().forward_each(&pass, &Tensor::cat(&embeds, 0)?, &mut caches)?;
        for (place, branch) in branches.into_iter().enumerate() {
            branch.last = hidden.narrow(0, place, 1)?;
        }
        Ok(())
    }
}

/// Where each row's branches lie: a branch of every row, then the unconditional ones.
fn places(rows: &[RowOptions]) -> Vec<Vec<usize>> {
    let mut next = rows.len();
    let mut second = |row: &RowOptions| {
        let is_there = row.is_guided();
        next += usize::from(is_there);
        is_there.then(|| next - 1)
    };
    rows.iter().enumerate().map(|(place, row)| std::iter::once(place).chain(second(row)).collect()).collect()
}

/// Tokens of each left-padded row.
fn lengths(mask: &[Vec<bool>], sequence: usize) -> Result<Vec<usize>> {
    let length = |row: &Vec<bool>| pad_of(row).filter(|_| row.len() == sequence).map(|pad| sequence - pad);
    let found: Option<Vec<usize>> = mask.iter().map(length).collect();
    found.ok_or_else(|| {
        let expected = format!("left-padded rows of {sequence} places, each with a token");
        ModelError::Shape { what: "mask", expected, got: mask.iter().map(Vec::len).collect() }.into()
    })
}

/// Rows that are not over, of those that draw codes or of the others.
fn waiting(rows: &mut BTreeMap<RowId, Row>, codes: bool) -> Vec<(RowId, &mut Row)> {
    let is_of = |row: &Row| !row.is_over && matches!(row.options.kind, Kind::Codes { .. }) == codes;
    rows.iter_mut().filter(|(_, row)| is_of(row)).map(|(id, row)| (*id, row)).collect()
}

/// The pass of one token of a part for each of these rows.
fn pass_of<'r>(part: Part, mixtures: impl Iterator<Item = &'r Option<Mixture>>) -> Result<Pass> {
    let mixtures: Vec<&Option<Mixture>> = mixtures.collect();
    let routed = mixtures.iter().filter(|mixture| mixture.is_some()).count();
    if routed != 0 && routed != mixtures.len() {
        return Err(ModelError::Unrouted { rows: mixtures.len(), routed }.into());
    }
    let pass = Pass::answering().in_order(SumOrder::Few);
    if routed == 0 {
        return Ok(pass);
    }
    let own = mixtures.into_iter().enumerate().filter_map(|(row, mixture)| Some((row, mixture.as_ref()?)));
    pass.with_routes(part, own.map(|(row, mixture)| Route { tokens: row..row + 1, mixture: mixture.clone() }).collect())
}

/// The error of a row by its place in a batch.
pub(super) fn row_error(error: Error, place: usize) -> Error {
    match error {
        Error::Model(ModelError::NotFinite { what, value, .. }) => {
            ModelError::NotFinite { what, row: place, value }.into()
        }
        other => other,
    }
}
