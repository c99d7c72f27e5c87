//! Attention and its backward, one head and one block at a time: the score matrix of a head never exists.
//!
//! Forward in blocks of queries against all keys they may see; backward in blocks of keys, the scores transposed, with each
//! query's log-partition kept from the forward (as in Dao, arXiv:2307.08691, without the online softmax).

use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::finish::Finish;
use super::matrix::Matrix;
use super::product::{SumOrder, Term, product_alone};
use super::rows::{Rows, SharedRows};
use super::vector::{exp, sum, vectorized};

/// Queries or keys of a block, a multiple of a tile's rows: its scores over a thousand keys stay in the second-level cache.
/// An interpreter takes smaller ones.
const BLOCK: usize = if cfg!(miri) { 8 } else { 96 };

/// Tokens that see each other and no others: rows of the queries and of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Rows of the queries.
    pub(crate) queries: Range<usize>,
    /// Rows of keys and values; the last query stands at the last key.
    pub(crate) keys: Range<usize>,
}

/// Sizes of the heads, and who sees whom.
#[derive(Debug, Clone)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads, of which `heads` is a multiple.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Whether a query sees only keys up to its own place.
    pub(crate) causal: bool,
}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn columns(&self, head: usize) -> Range<usize> {
        head * self.head_dim..(head + 1) * self.head_dim
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

impl Segment {
    /// Keys before the first query's own.
    fn offset(&self) -> usize {
        self.keys.len().saturating_sub(self.queries.len())
    }

    /// Keys that some query of a block sees.
    fn reach(&self, causal: bool, block: &Range<usize>) -> usize {
        if causal { self.offset() + block.end } else { self.keys.len() }
    }
}

/// Whether no two segments share a query.
fn are_apart(segments: &[Segment]) -> bool {
    let mut queries: Vec<&Range<usize>> =
        segments.iter().map(|segment| &segment.queries).filter(|queries| !queries.is_empty()).collect();
    queries.sort_by_key(|queries| queries.start);
    queries.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// Blocks of at most [`BLOCK`] of `count`.
fn blocks(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(count))
}

/// Keys and values, by token or by head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyValues<'a, E> {
    keys: Rows<'a, E>,
    values: Rows<'a, E>,
    /// Tokens that a head of a batch row has room for, where rows are `[batch, kv_heads, capacity]`.
    capacity: Option<usize>,
}

impl<'a, E: Element> KeyValues<'a, E> {
    /// `[tokens, kv_heads · head_dim]` each.
    pub(crate) fn of(keys: Rows<'a, E>, values: Rows<'a, E>) -> Self {
        Self { keys, values, capacity: None }
    }

    /// `[batch · kv_heads · capacity, head_dim]` each; a segment's keys begin at a multiple of the capacity.
    pub(crate) fn head_major(keys: Rows<'a, E>, values: Rows<'a, E>, capacity: usize) -> Self {
        Self { keys, values, capacity: Some(capacity) }
    }

    /// Keys and values of one head for a range of tokens.
    fn part(&self, heads: &Heads, kv_head: usize, tokens: Range<usize>) -> (Rows<'a, E>, Rows<'a, E>) {
        let (rows, columns) = match self.capacity {
            None => (tokens, heads.columns(kv_head)),
            Some(capacity) => {
                let row = tokens.start / capacity.max(1);
                let first = (row * heads.kv_heads + kv_head) * capacity + (tokens.start - row * capacity);
                (first..first + tokens.len(), 0..heads.head_dim)
            }
        };
        (self.keys.part(rows.clone(), columns.clone()), self.values.part(rows, columns))
    }
}

/// What the forward leaves: the output `[tokens, heads · head_dim]`, and each query's log-partition, `[heads, tokens]`.
#[derive(Debug)]
pub(crate) struct Attended<E: Element> {
    pub(crate) out: Matrix<E>,
    pub(crate) log_partitions: Vec<f32>,
}

/// `softmax(q·kᵀ / sqrt(head_dim) + mask)·v` of `q: [tokens, heads · head_dim]`, its products' sums made in an order. `all` are the
/// keys and values of all segments, or of each segment its own.
pub(crate) fn forward<E: Element>(
    q: Rows<'_, E>,
    all: &[KeyValues<'_, E>],
    heads: &Heads,
    segments: &[Segment],
    order: SumOrder,
) -> Attended<E> {
    let tokens = q.count();
    assert!(are_apart(segments), "a query is in two segments");
    assert!(all.len() == 1 || all.len() == segments.len(), "keys and values of other segments");
    let own = |number: usize| if all.len() == 1 { &all[0] } else { &all[number] };
    let items: Vec<(&Segment, &KeyValues<'_, E>, usize, Range<usize>)> = segments
        .iter()
        .enumerate()
        .flat_map(|(number, segment)| (0..heads.heads).map(move |head| (number, segment, head)))
        .flat_map(|(number, s, head)| blocks(s.queries.len()).map(move |block| (s, own(number), head, block)))
        .collect();
    let (width, dim) = (heads.heads * heads.head_dim, heads.head_dim);
    let mut out = Matrix::new(tokens, width);
    let mut log_partitions = vec![0f32; heads.heads * tokens];
    let stride = out.stride();
    let shared_out = SharedRows::new(out.values_mut(), tokens, width, stride);
    let shared_partitions = SharedRows::new(&mut log_partitions, heads.heads, tokens, tokens);
    items.par_iter().for_each_init(ForwardBuffers::default, |buffers, (segment, all, head, block)| {
        let ForwardBuffers { scores, probabilities, out } = buffers;
        let reach = segment.reach(heads.causal, block);
        let keys = segment.keys.start..segment.keys.start + reach;
        let (keys, values) = all.part(heads, heads.kv_head(*head), keys);
        let rows = segment.queries.start + block.start..segment.queries.start + block.end;
        scores.resize(scores.len().max(block.len() * reach), 0.0);
        probabilities.resize(probabilities.len().max(block.len() * reach), E::default());
        out.resize(out.len().max(block.len() * dim), E::default());
        let (scores, probabilities) = (&mut scores[..block.len() * reach], &mut probabilities[..block.len() * reach]);
        let finish = Finish { factor: heads.scale(), ..Finish::default() };
        let product = Term::transposed(q.part(rows.clone(), heads.columns(*head)), keys).in_order(order);
        product_alone(&[product], finish, scores, reach);
        // SAFETY: a query of a head is in one item only.
        let partitions = unsafe { shared_partitions.place(*head, rows.clone()) };
        let by_row = scores.chunks_exact_mut(reach).zip(probabilities.chunks_exact_mut(reach)).zip(partitions);
        for (i, ((scores, probabilities), partition)) in by_row.enumerate() {
            let end = if heads.causal { segment.offset() + block.start + i + 1 } else { reach };
            *partition = softmax(&mut scores[..end], &mut probabilities[..end]);
            probabilities[end..].fill(E::default());
        }
        let probabilities = Rows::dense(probabilities, block.len(), reach);
        product_alone(&[Term::plain(probabilities, values).in_order(order)], Finish::default(), out, dim);
        for (row, out) in rows.zip(out.chunks_exact(dim.max(1))) {
            // SAFETY: as above.
            unsafe { shared_out.place(row, heads.columns(*head)) }.copy_from_slice(out);
        }
    });
    Attended { out, log_partitions }
}

/// What a thread's items of the forward have in common.
#[derive(Default)]
struct ForwardBuffers<E> {
    scores: Vec<f32>,
    probabilities: Vec<E>,
    out: Vec<E>,
}

/// Gradients of [`forward`]'s inputs: `dq` as `q`, `dk` and `dv` as `k`.
///
/// With `p = exp(s - log-partition)`: `dv = pᵀ·do`, `ds = p·(do·vᵀ - Σ do·o)/sqrt(head_dim)`, `dq = ds·k`, `dk = dsᵀ·q`.
pub(crate) fn backward<E: Element>(
    [q, k, v]: [Rows<'_, E>; 3],
    attended: &Attended<E>,
    d_out: Rows<'_, E>,
    heads: &Heads,
    segments: &[Segment],
) -> [Matrix<E>; 3] {
    assert!(are_apart(segments), "a query is in two segments");
    assert!(k.width() == heads.kv_heads * heads.head_dim, "keys of another width than their heads");
    let groups = heads.heads / heads.kv_heads;
    let items: Vec<(&Segment, usize)> =
        segments.iter().flat_map(|s| (0..heads.kv_heads).map(move |kv_head| (s, kv_head))).collect();
    // Rows that no segment has are zero.
    let (mut dq, dim) = (Matrix::zeros(q.count(), q.width()), heads.head_dim);
    let stride = dq.stride();
    let shared_dq = SharedRows::new(dq.values_mut(), q.count(), q.width(), stride);
    let pieces: Vec<[Vec<f32>; 2]> = items
        .par_iter()
        .map_init(BackwardBuffers::default, |buffers, (segment, kv_head)| {
            let size = segment.keys.len() * heads.head_dim;
            let (mut dk, mut dv) = (vec![0f32; size], vec![0f32; size]);
            let columns = heads.columns(*kv_head);
            let keys = k.part(segment.keys.clone(), columns.clone());
            let values = v.part(segment.keys.clone(), columns);
            let turned_keys = keys.turned();
            for head in kv_head * groups..(kv_head + 1) * groups {
                let rows = |of: Rows<'_, E>| -> Vec<E> {
                    // Without gaps: the head's rows are met once for every block of keys.
                    let part = of.part(segment.queries.clone(), heads.columns(head));
                    let mut rows = Vec::with_capacity(part.count() * dim);
                    (0..part.count()).for_each(|i| rows.extend_from_slice(part.row(i)));
                    rows
                };
                let (q, d_out) = (rows(q), rows(d_out));
                let count = segment.queries.len();
                let partitions =
                    &attended.log_partitions[head * attended.out.rows() + segment.queries.start..][..count];
                let out = attended.out.view().part(segment.queries.clone(), heads.columns(head));
                let own = Head {
                    q: Rows::dense(&q, count, dim),
                    d_out: Rows::dense(&d_out, count, dim),
                    keys,
                    values,
                    turned_keys: &turned_keys,
                    partitions,
                    deltas: (0..count).map(|i| dot(out.row(i), &d_out[i * dim..][..dim])).collect(),
                };
                let turned_dq = own.gradients(heads, segment, buffers, &mut dk, &mut dv);
                let dq = Rows::dense(&turned_dq, dim, count).turned();
                for (row, dq) in segment.queries.clone().zip(dq.chunks_exact(dim.max(1))) {
                    // SAFETY: a query of a head is in one item only.
                    let place = unsafe { shared_dq.place(row, heads.columns(head)) };
                    place.iter_mut().zip(dq).for_each(|(place, dq)| *place = E::narrow(*dq));
                }
            }
            [dk, dv]
        })
        .collect();
    let summed = |which: usize| {
        let mut sums = Matrix::new(k.count(), k.width());
        let stride = sums.stride();
        let shared = SharedRows::new(sums.values_mut(), k.count(), k.width(), stride);
        (0..heads.kv_heads).into_par_iter().for_each(|kv_head| {
            // SAFETY: the columns of a head are this call's alone.
            let place = |row| unsafe { shared.place(row, heads.columns(kv_head)) };
            (0..k.count()).for_each(|row| place(row).fill(E::default()));
            // Padding behind a row sees keys of the row's own segment: these may have a share in several.
            for ((segment, _), piece) in items.iter().zip(&pieces).filter(|((_, own), _)| *own == kv_head) {
                for (row, piece) in segment.keys.clone().zip(piece[which].chunks_exact(dim.max(1))) {
                    let place = place(row).iter_mut().zip(piece);
                    place.for_each(|(value, piece)| *value = E::narrow(value.widen() + piece));
                }
            }
        });
        sums
    };
    let (dk, dv) = (summed(0), summed(1));
    [dq, dk, dv]
}

/// Scores and their gradients of one block of keys.
#[derive(Default)]
struct BackwardBuffers<E> {
    scores: Vec<f32>,
    d_probabilities: Vec<f32>,
    probabilities: Vec<E>,
    d_scores: Vec<E>,
}

/// One query head of one segment.
struct Head<'a, E> {
    q: Rows<'a, E>,
    d_out: Rows<'a, E>,
    keys: Rows<'a, E>,
    values: Rows<'a, E>,
    /// `[head_dim, keys]`.
    turned_keys: &'a [E],
    partitions: &'a [f32],
    /// `Σ do·o` of each query.
    deltas: Vec<f32>,
}

impl<E: Element> Head<'_, E> {
    /// Adds the head's share to `dk` and `dv` (`[keys, head_dim]`) and returns its `dq`, `[head_dim, queries]`.
    fn gradients(
        &self,
        heads: &Heads,
        segment: &Segment,
        buffers: &mut BackwardBuffers<E>,
        dk: &mut [f32],
        dv: &mut [f32],
    ) -> Vec<f32> {
        let (queries, dim, scale) = (self.q.count(), heads.head_dim, heads.scale());
        let mut turned_dq = vec![0f32; dim * queries];
        for block in blocks(self.keys.count()) {
            // The first query that sees a key of the block.
            let first = if heads.causal { block.start.saturating_sub(segment.offset()).min(queries) } else { 0 };
            let count = queries - first;
            if count == 0 {
                continue;
            }
            let size = block.len() * count;
            let BackwardBuffers { scores, d_probabilities, probabilities, d_scores } = buffers;
            scores.resize(size.max(scores.len()), 0.0);
            d_probabilities.resize(size.max(d_probabilities.len()), 0.0);
            probabilities.resize(size.max(probabilities.len()), E::default());
            d_scores.resize(size.max(d_scores.len()), E::default());
            let (q, d_out) = (self.q.part(first..queries, 0..dim), self.d_out.part(first..queries, 0..dim));
            let product = Term::transposed(self.keys.part(block.clone(), 0..dim), q);
            product_alone(&[product], Finish { factor: scale, ..Finish::default() }, &mut scores[..size], count);
            let product = Term::transposed(self.values.part(block.clone(), 0..dim), d_out);
            product_alone(&[product], Finish::default(), &mut d_probabilities[..size], count);
            for (j, key) in block.clone().enumerate() {
                let row = j * count..(j + 1) * count;
                let hidden = if heads.causal { key.saturating_sub(segment.offset() + first).min(count) } else { 0 };
                gradients_of_scores(
                    &scores[row.clone()],
                    &d_probabilities[row.clone()],
                    &self.partitions[first..],
                    &self.deltas[first..],
                    scale,
                    hidden,
                    &mut probabilities[row.clone()],
                    &mut d_scores[row],
                );
            }
            let probabilities = Rows::dense(&probabilities[..size], block.len(), count);
            let d_scores = Rows::dense(&d_scores[..size], block.len(), count);
            let add = Finish { accumulate: true, ..Finish::default() };
            let own = block.start * dim..block.end * dim;
            product_alone(&[Term::plain(probabilities, d_out)], add, &mut dv[own.clone()], dim);
            product_alone(&[Term::plain(d_scores, q)], add, &mut dk[own], dim);
            let turned_keys = Rows::dense(self.turned_keys, dim, self.keys.count()).part(0..dim, block);
            product_alone(&[Term::plain(turned_keys, d_scores)], add, &mut turned_dq[first..], queries);
        }
        turned_dq
    }
}

vectorized! {
    /// Writes the softmax of a row of scores and returns its log-partition.
    fn softmax<E>(scores: &mut [f32], probabilities: &mut [E]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut blocks = scores.chunks_exact(16);
        for block in &mut blocks {
            for (lane, score) in lanes.iter_mut().zip(block) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        let largest = lanes.iter().chain(blocks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max);
        for score in scores.iter_mut() {
            *score = exp(*score - largest);
        }
        let total = sum(scores.len(), |i| scores[i]);
        let share = 1.0 / total;
        for (p, score) in probabilities.iter_mut().zip(scores.iter()) {
            *p = E::narrow(*score * share);
        }
        largest + total.ln()
    }

    /// Probabilities of one key's row of transposed scores and the scores' gradients; the first `hidden` queries do not
    /// see the key.
    fn gradients_of_scores<E>(
        scores: &[f32],
        d_probabilities: &[f32],
        partitions: &[f32],
        deltas: &[f32],
        scale: f32,
        hidden: usize,
        probabilities: &mut [E],
        d_scores: &mut [E],
    ) {
        let count = scores.len();
        probabilities[..hidden].fill(E::default());
        d_scores[..hidden].fill(E::default());
        let (scores, d_probabilities) = (&scores[hidden..], &d_probabilities[hidden..count]);
        let (partitions, deltas) = (&partitions[hidden..count], &deltas[hidden..count]);
        let (probabilities, d_scores) = (&mut probabilities[hidden..count], &mut d_scores[hidden..count]);
        for i in 0..scores.len() {
            let p = exp(scores[i] - partitions[i]);
            probabilities[i] = E::narrow(p);
            d_scores[i] = E::narrow(p * (d_probabilities[i] - deltas[i]) * scale);
        }
    }

    /// Dot product of two rows.
    fn dot<E>(a: &[E], b: &[E]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i].widen() * b[i].widen())
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::testing::{close, values};

    /// Output and gradients of `Σ out·d_out` by the definition, in f64.
    #[allow(clippy::type_complexity)]
    fn truth([q, k, v]: [&[f32]; 3], d_out: &[f32], heads: &Heads, segments: &[Segment]) -> (Vec<f32>, [Vec<f32>; 3]) {
        let (dim, width, kv_width) = (heads.head_dim, heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let mut out = vec![0f64; q.len()];
        let (mut dq, mut dk, mut dv) = (vec![0f64; q.len()], vec![0f64; k.len()], vec![0f64; v.len()]);
        let scale = 1.0 / (dim as f64).sqrt();
        for s in segments {
            for head in 0..heads.heads {
                let kv = heads.kv_head(head) * dim;
                for i in 0..s.queries.len() {
                    let at = (s.queries.start + i) * width + head * dim;
                    let end = if heads.causal { s.offset() + i + 1 } else { s.keys.len() };
                    let key = |j: usize| (s.keys.start + j) * kv_width + kv;
                    let dot = |a: &[f32], at: usize, b: &[f32], bt: usize| -> f64 {
                        (0..dim).map(|d| f64::from(a[at + d]) * f64::from(b[bt + d])).sum()
                    };
                    let scores: Vec<f64> = (0..end).map(|j| dot(q, at, k, key(j)) * scale).collect();
                    let total: f64 = scores.iter().map(|s| s.exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
                    let dp: Vec<f64> = (0..end).map(|j| dot(d_out, at, v, key(j))).collect();
                    let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                    for j in 0..end {
                        let ds = p[j] * (dp[j] - mean) * scale;
                        for d in 0..dim {
                            out[at + d] += p[j] * f64::from(v[key(j) + d]);
                            dv[key(j) + d] += p[j] * f64::from(d_out[at + d]);
                            dq[at + d] += ds * f64::from(k[key(j) + d]);
                            dk[key(j) + d] += ds * f64::from(q[at + d]);
                        }
                    }
                }
            }
        }
        let narrow = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect();
        (narrow(out), [narrow(dq), narrow(dk), narrow(dv)])
    }

    fn agree<E: Element>(bound: f32, heads: &Heads, segments: &[Segment]) {
        let tokens = segments.iter().map(|s| s.queries.end).max().unwrap_or(0);
        let keys = segments.iter().map(|s| s.keys.end).max().unwrap_or(0);
        let (width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let q: Vec<E> = values(tokens * width, 1);
        let (k, v): (Vec<E>, Vec<E>) = (values(keys * kv_width, 2), values(keys * kv_width, 3));
        let d_out: Vec<E> = values(tokens * width, 4);
        let wide = |v: &[E]| -> Vec<f32> { v.iter().map(|v| v.widen()).collect() };
        let rows = [Rows::dense(&q, tokens, width), Rows::dense(&k, keys, kv_width), Rows::dense(&v, keys, kv_width)];
        let attended = forward(rows[0], &[KeyValues::of(rows[1], rows[2])], heads, segments, SumOrder::ByCount);
        let gradients = backward(rows, &attended, Rows::dense(&d_out, tokens, width), heads, segments);
        let (out, truth) = truth([&wide(&q), &wide(&k), &wide(&v)], &wide(&d_out), heads, segments);
        let dense = |m: &Matrix<E>| -> Vec<f32> {
            (0..m.rows()).flat_map(|i| m.row(i).iter().map(|v| v.widen()).collect::<Vec<_>>()).collect()
        };
        close(&dense(&attended.out), &out, bound);
        for (got, truth) in gradients.iter().zip(&truth) {
            close(&dense(got), truth, bound * 4.0);
        }
    }

    #[test]
    fn a_query_in_two_segments_is_seen_in_any_order() {
        let segment = |queries: Range<usize>| Segment { keys: queries.clone(), queries };
        assert!(are_apart(&[]) && are_apart(&[segment(4..9), segment(0..4), segment(5..5)]));
        assert!(!are_apart(&[segment(4..9), segment(0..5)]) && !are_apart(&[segment(0..9), segment(2..3)]));
    }

    #[test]
    fn both_directions_agree_with_the_definition() {
        let segment = |queries: Range<usize>, keys: Range<usize>| Segment { queries, keys };
        for causal in [true, false] {
            // More than a block of queries, few enough for an interpreter.
            let (end, heads, head_dim) = if cfg!(miri) { (8 + BLOCK + 2, 2, 3) } else { (141, 6, 10) };
            let grouped = Heads { heads, kv_heads: heads / 2, head_dim, causal };
            let packed = [segment(0..7, 0..7), segment(7..8, 7..8), segment(8..end, 8..end)];
            agree::<f32>(1e-5, &grouped, &packed);
            agree::<bf16>(2e-2, &grouped, &packed);
            // Continued sequences: fewer queries than keys.
            let (keys, heads, head_dim) = if cfg!(miri) { (11, 1, 5) } else { (110, 3, 16) };
            let heads = Heads { heads, kv_heads: heads, head_dim, causal };
            let continued = [segment(0..5, 0..keys), segment(5..6, keys..keys + 20)];
            agree::<f32>(1e-5, &heads, &continued);
            agree::<bf16>(2e-2, &heads, &continued);
        }
    }
}
