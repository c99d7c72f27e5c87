//! The prompts' pass, in which nothing is computed twice that rows have in common.
//!
//! Rows that are equal as a whole are computed once. Of the others the first columns are computed for one row of each
//! beginning, and its keys and values are copied to the rows that share it, which the remaining columns then continue; a
//! row that has nothing but padding there takes none. Rows are equal where no bit of their tokens' embeddings and nothing
//! of their routes differs: a token is the same text, the same patch of the same image, with the same corrections.
//!
//! Prompts make their sums in the order of many rows ([`SumOrder`]), whatever their number: a row's bits on the processor do not
//! depend on its neighbours, on what it shared with them, or on their corrections.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use crate::error::{ModelError, Result};
use crate::model::decoder::{Cache, Decoder, Held, Placement};
use crate::ops::SumOrder;
use crate::ops::values::Stored;
use crate::pass::{Mixture, Part, Pass};

/// Tokens whose computation takes about as long as a second pass reads the weights: less is not worth one.
const PASS_TOKENS: usize = 16;

/// The hidden state of each prompt's last token, `[batch, hidden]`, and a cache that holds all prompts, with room for
/// `capacity` tokens a row. `embeds: [batch, sequence, hidden]`, one row of `mask` for each row of it.
///
/// # Errors
/// Shapes that do not fit, or a route beyond the prompts.
pub(super) fn prefill(
    decoder: &Decoder,
    pass: &Pass,
    embeds: &Tensor,
    mask: &[Vec<bool>],
    capacity: usize,
) -> Result<(Tensor, Cache)> {
    let (batch, sequence, _) = embeds.dims3()?;
    let tokens = batch * sequence;
    let pass = &pass.clone().in_order(SumOrder::Many);
    if let Some(routing) = pass.routing(Part::Decoder)
        && routing.rows() != tokens
    {
        return Err(ModelError::Unrouted { rows: tokens, routed: routing.rows() }.into());
    }
    let Some(sharing) = prompts(pass, embeds, mask)?.and_then(|prompts| Sharing::of(&prompts, sequence)) else {
        let mut cache = decoder.cache(capacity);
        let last = decoder.forward_last(pass, embeds, &Placement::continued(mask, sequence), &mut cache)?;
        return Ok((last, cache));
    };
    let Sharing { distinct, row_of, cut, heads, beginnings } = sharing;
    let run = |rows: &[usize], columns: Range<usize>, cache: &mut Cache| -> Result<Tensor> {
        let part = select(&embeds.narrow(1, columns.start, columns.len())?, rows)?;
        let mask: Vec<Vec<bool>> = rows.iter().map(|row| mask[*row][..columns.end].to_vec()).collect();
        let tokens = rows.iter().flat_map(|row| columns.clone().map(move |column| row * sequence + column));
        let pass = pass.picked(Part::Decoder, tokens)?;
        decoder.forward_last(&pass, &part, &Placement::continued(&mask, columns.len()), cache)
    };
    let repeated = distinct.len() < batch;
    let room = if repeated { sequence } else { capacity };
    let mut cache = if cut > 0 {
        let mut begun = decoder.cache(cut);
        run(&heads, 0..cut, &mut begun)?;
        begun.picked(&beginnings, cut, room)?
    } else {
        decoder.cache(room)
    };
    let last = run(&distinct, cut..sequence, &mut cache)?;
    if !repeated {
        return Ok((last, cache));
    }
    let rows: Vec<Held> = row_of.iter().map(|row| Held { row: *row, tokens: 0..sequence }).collect();
    Ok((select(&last, &row_of)?, cache.picked(&rows, sequence, capacity)?))
}

/// Some rows of a tensor's first dimension.
fn select(tensor: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    let rows = Tensor::from_vec(rows.clone(), rows.len(), tensor.device())?;
    Ok(tensor.contiguous()?.index_select(&rows, 0)?)
}

/// A left-padded row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prompt {
    /// Columns before the first token.
    pad: usize,
    /// A number for each token, equal for equal tokens.
    tokens: Vec<u32>,
}

/// Columns before the first token of a left-padded row; `None` of a row that is no such.
pub(super) fn pad_of(row: &[bool]) -> Option<usize> {
    row.iter().position(|token| *token).filter(|pad| !row[*pad..].contains(&false))
}

/// The rows as prompts; `None` where they are to be computed as they are.
fn prompts(pass: &Pass, embeds: &Tensor, mask: &[Vec<bool>]) -> Result<Option<Vec<Prompt>>> {
    let (batch, sequence, _) = embeds.dims3()?;
    let fits = mask.len() == batch && mask.iter().all(|row| row.len() == sequence);
    // Noise is of each row's own.
    if batch < 2 || sequence == 0 || !fits || pass.train {
        return Ok(None);
    }
    let Some(pads) = mask.iter().map(|row| pad_of(row)).collect::<Option<Vec<usize>>>() else { return Ok(None) };
    Ok(match embeds.dtype() {
        DType::F32 => Some(numbered::<f32>(pass, embeds, &pads)?),
        DType::BF16 => Some(numbered::<bf16>(pass, embeds, &pads)?),
        _ => None,
    })
}

fn numbered<E: Stored>(pass: &Pass, embeds: &Tensor, pads: &[usize]) -> Result<Vec<Prompt>> {
    let (_, sequence, hidden) = embeds.dims3()?;
    let values = embeds.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<E>()?;
    let base = Mixture::base();
    let mixture = |place: usize| match pass.routing(Part::Decoder) {
        Some(routing) => routing.of_row(place),
        None => Ok(&base),
    };
    let mut numbers = HashMap::new();
    let mut prompt = |(row, pad): (usize, &usize)| {
        let token = |place: usize| {
            let next = numbers.len() as u32;
            let values = Bits(&values[place * hidden..(place + 1) * hidden]);
            Ok(*numbers.entry((values, mixture(place)?)).or_insert(next))
        };
        let tokens = (row * sequence + pad..(row + 1) * sequence).map(token).collect::<Result<_>>()?;
        Ok(Prompt { pad: *pad, tokens })
    };
    pads.iter().enumerate().map(&mut prompt).collect()
}

/// Values that are equal where no bit of them differs.
struct Bits<'a, E>(&'a [E]);

impl<E: Stored> Bits<'_, E> {
    fn bits(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|value| value.widen().to_bits())
    }
}

impl<E: Stored> PartialEq for Bits<'_, E> {
    fn eq(&self, other: &Self) -> bool {
        self.bits().eq(other.bits())
    }
}

impl<E: Stored> Eq for Bits<'_, E> {}

impl<E: Stored> Hash for Bits<'_, E> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let step = |sum: u64, bits| (sum ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3);
        state.write_u64(self.bits().fold(0xcbf2_9ce4_8422_2325, step));
    }
}

/// What is computed of a batch, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sharing {
    /// One row of each prompt, in order.
    distinct: Vec<usize>,
    /// For each row its prompt's place among them.
    row_of: Vec<usize>,
    /// Columns whose keys and values are computed before the others'.
    cut: usize,
    /// The rows they are computed of.
    heads: Vec<usize>,
    /// For each distinct prompt its tokens within these columns, as a part of one of the heads.
    beginnings: Vec<Held>,
}

impl Sharing {
    /// `None` where sharing saves nothing worth a second pass.
    fn of(prompts: &[Prompt], sequence: usize) -> Option<Self> {
        let mut places = HashMap::new();
        let mut distinct = Vec::new();
        let mut row_of = Vec::with_capacity(prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            let place = *places.entry(&prompt.tokens).or_insert_with(|| {
                distinct.push(row);
                distinct.len() - 1
            });
            row_of.push(place);
        }
        let own: Vec<&Prompt> = distinct.iter().map(|row| &prompts[*row]).collect();
        let common = Common::of(&own);
        let whole = own.len() * sequence;
        // With more columns before the cut the same heads cost less, until two of them part.
        let costs = common.cuts(&own, sequence).into_iter().map(|cut| {
            let heads = common.heads(&own, cut).0.len();
            (heads * cut + own.len() * (sequence - cut), cut)
        });
        let cut = costs.min().filter(|(cost, _)| cost + PASS_TOKENS < whole).map_or(0, |(_, cut)| cut);
        if cut == 0 {
            let sharing = Self { distinct, row_of, cut, heads: Vec::new(), beginnings: Vec::new() };
            return (sharing.distinct.len() < prompts.len()).then_some(sharing);
        }
        let (heads, beginnings) = common.heads(&own, cut);
        let heads = heads.into_iter().map(|head| distinct[head]).collect();
        Some(Self { distinct, row_of, cut, heads, beginnings })
    }
}

/// How many leading tokens each two prompts have in common.
struct Common(Vec<Vec<usize>>);

impl Common {
    fn of(prompts: &[&Prompt]) -> Self {
        let common = |a: &Prompt, b: &Prompt| a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
        Self(prompts.iter().map(|a| prompts.iter().map(|b| common(a, b)).collect()).collect())
    }

    /// The last columns up to which two prompts can still be one.
    fn cuts(&self, prompts: &[&Prompt], sequence: usize) -> BTreeSet<usize> {
        let pairs = (0..prompts.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let cut = |(a, b): (usize, usize)| self.0[a][b] + prompts[a].pad.max(prompts[b].pad);
        // The last column is computed for each: what follows is drawn from it.
        pairs.map(|pair| cut(pair).min(sequence - 1)).collect()
    }

    /// The prompts whose first `cut` columns hold those of all, and for each prompt where in them its own are found.
    fn heads(&self, prompts: &[&Prompt], cut: usize) -> (Vec<usize>, Vec<Held>) {
        let length = |prompt: usize| cut.saturating_sub(prompts[prompt].pad);
        let mut longest_first: Vec<usize> = (0..prompts.len()).collect();
        longest_first.sort_by_key(|prompt| std::cmp::Reverse(length(*prompt)));
        let mut heads: Vec<usize> = Vec::new();
        let mut beginnings = vec![Held { row: 0, tokens: 0..0 }; prompts.len()];
        for prompt in longest_first {
            let length = length(prompt);
            let row = heads.iter().position(|head| self.0[prompt][*head] >= length).unwrap_or_else(|| {
                heads.push(prompt);
                heads.len() - 1
            });
            let pad = prompts[heads[row]].pad.min(cut);
            beginnings[prompt] = Held { row, tokens: pad..pad + length };
        }
        (heads, beginnings)
    }
}

#[cfg(test)]
#[path = "prefill_tests.rs"]
mod tests;
