//! Prompts and their pictures as the rows of one pass.

use candle_core::Tensor;
use janus_core::Janus;
use janus_core::pass::{Mixture, Part, Pass, Route};
use janus_core::processing::left_pad;

use crate::base::Base;
use crate::cache::{self, Image};
use crate::error::Result;

/// A row that joins.
pub(super) struct Prompt<'a> {
    /// Its ids.
    pub(super) ids: &'a [u32],
    /// Its pictures.
    pub(super) images: &'a [Image],
    /// Whether it has an unconditional branch.
    pub(super) is_guided: bool,
    /// What it computes with, where rows have adapters of their own.
    pub(super) adapters: Option<&'a Mixture>,
}

/// Prompts as a session takes them.
pub(super) struct Joining {
    /// The pass, with a route for each token where rows have adapters of their own.
    pub(super) pass: Pass,
    /// `[branches, sequence, hidden]`: a branch of each row, then the unconditional ones.
    pub(super) embeds: Tensor,
    /// `[branches][sequence]`, true = a token.
    pub(super) mask: Vec<Vec<bool>>,
}

impl Joining {
    /// Encodes the pictures of all rows together and embeds their prompts, padded on the left.
    pub(super) fn of(model: &Janus, base: &Base, prompts: &[Prompt<'_>]) -> Result<Self> {
        let special = base.tokenizer().special();
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids).collect();
        let padded = left_pad(&ids, special.pad);
        let routed = |pass: Pass, rows: &[usize]| of_tokens(pass, prompts, rows, padded.len);
        let all: Vec<usize> = (0..prompts.len()).collect();
        let guided: Vec<usize> = all.iter().copied().filter(|row| prompts[*row].is_guided).collect();
        let features = features(model, prompts)?;
        let pass = routed(Pass::answering(), &all)?;
        let mut embeds =
            model.embed_with_images(&pass, &padded.ids, prompts.len(), special.image_placeholder, features.as_ref())?;
        let mut mask: Vec<Vec<bool>> =
            padded.mask.chunks_exact(padded.len).map(|row| row.iter().map(|mask| *mask != 0).collect()).collect();
        if !guided.is_empty() {
            let unconditional: Vec<Vec<u32>> =
                guided.iter().map(|row| base.prompts().unconditional(prompts[*row].ids)).collect();
            let mut twins = vec![special.pad; guided.len() * padded.len];
            for (row, ids) in twins.chunks_exact_mut(padded.len).zip(&unconditional) {
                row[padded.len - ids.len()..].copy_from_slice(ids);
            }
            let own = routed(Pass::answering(), &guided)?;
            embeds = Tensor::cat(&[embeds, model.decoder().embed(&own, &twins, guided.len())?], 0)?;
            mask.extend(guided.iter().map(|row| mask[*row].clone()).collect::<Vec<_>>());
        }
        let branches: Vec<usize> = all.into_iter().chain(guided).collect();
        Ok(Self { pass: routed(Pass::answering(), &branches)?, embeds, mask })
    }
}

/// A pass over `length` tokens of each of these rows.
fn of_tokens(pass: Pass, prompts: &[Prompt<'_>], rows: &[usize], length: usize) -> Result<Pass> {
    routed(pass, Part::Decoder, rows.iter().map(|row| prompts[*row].adapters), length)
}

/// A pass over `length` rows of a part for each of these, each with its own adapters; as it is where they have none.
pub(super) fn routed<'a>(
    pass: Pass,
    part: Part,
    adapters: impl Iterator<Item = Option<&'a Mixture>>,
    length: usize,
) -> Result<Pass> {
    let route = |(place, adapters): (usize, Option<&'a Mixture>)| {
        Some(Route { tokens: place * length..(place + 1) * length, mixture: adapters?.clone() })
    };
    let routes: Vec<Route> = adapters.enumerate().filter_map(route).collect();
    Ok(if routes.is_empty() { pass } else { pass.with_routes(part, routes)? })
}

/// What the aligner gives of all pictures, in reading order, each by the adapters of its row.
fn features(model: &Janus, prompts: &[Prompt<'_>]) -> Result<Option<Tensor>> {
    let images: Vec<Image> = prompts.iter().flat_map(|prompt| prompt.images.iter().cloned()).collect();
    let patches = model.config().vision.num_patches();
    let adapters = prompts.iter().flat_map(|prompt| prompt.images.iter().map(|_| prompt.adapters));
    cache::features(model, &routed(Pass::answering(), Part::Vision, adapters, patches)?, &images)
}
