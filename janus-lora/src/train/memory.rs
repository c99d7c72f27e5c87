//! Resident memory of a run, worked out from shapes before anything is loaded.
//!
//! Each term is what one place in the code holds at once; where a number of buffers is counted, the place is named. What
//! a run holds is largest at the start of a backward, or while it evaluates. The program's allocator keeps nothing beyond the
//! most that was in use, and the matrices of the blocks (`Matrix` of `janus-core`'s kernel room) are given back between steps and
//! evaluations, so that the larger of the two counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use janus_core::Parts;
use janus_core::checkpoint::expected_tensors;
use janus_core::config::JanusConfig;
use serde::Serialize;

use super::workload::TableLoad;
use crate::cache::Image;

/// Code, libraries and stacks that a run touches after it was planned: read off runs on x86-64 Linux, where 16 MB of them are
/// resident then and 20 MB during steps.
const LATER_CODE_BYTES: u64 = 4 << 20;
/// Holes between small buffers, which are the C library's: one to five of the six to twelve MB of them in runs over `janus-nano`.
const HOLES_BYTES: u64 = 5 << 19;
/// What a convolution under training lays out at a time, a band of pixels with their neighbours (`BAND_VALUES` of
/// `ops/unrolled.rs`), and the same of their gradients.
const BANDS_BYTES: u64 = 2 * (4 << 20);
/// Values between rows of a matrix whose width is a multiple of [`CROWDED_BYTES`] (`SPREAD` of the kernel room).
const SPREAD: u64 = 32;
const CROWDED_BYTES: u64 = 2048;
/// Most that the kernel room keeps of matrices for reuse.
const STORE_BYTES: u64 = 1 << 30;
/// Rows and classes whose logits a frozen head forms at a time (`ops/head_loss.rs`).
const HEAD_CHUNK: (u64, u64) = (256, 1024);
const F32_BYTES: u64 = 4;
const BF16_BYTES: u64 = 2;
/// Tokens an answer may have beyond the expected one's (`eval/mod.rs`).
const SPARE_TOKENS: u64 = 8;
/// Pictures that are drawn of a table's rows, each with and without its prompt (`report/samples.rs`).
const PICTURES: u64 = 2;

/// Predicted resident memory by what holds it, in bytes; the parts add up to the predicted peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PredictedMemory {
    /// The program with tokenizer and indices of rows, before weights are loaded.
    pub program: u64,
    /// Frozen weights.
    pub base: u64,
    /// Trainable values with their gradients of a micro-batch and of a step.
    pub adapters: u64,
    /// The optimiser's two moments.
    pub moments: u64,
    /// What the blocks of a micro-batch keep, and what one of them holds while it is computed.
    pub activations: u64,
    /// Rows that are shuffled among each other, and those that are decoded ahead of the step.
    pub rows: u64,
    /// What keys and values of generated answers and pictures, and the image tokenizer, need beyond what a step leaves.
    pub cache: u64,
}

impl PredictedMemory {
    /// The parts with their names, in the order in which a run takes them.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        let Self { program, base, adapters, moments, activations, rows, cache } = *self;
        [
            ("program", program),
            ("base", base),
            ("adapters", adapters),
            ("moments", moments),
            ("activations", activations),
            ("rows", rows),
            ("cache", cache),
        ]
    }

    /// Their sum.
    pub fn peak_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// All that a run's memory depends on.
#[derive(Debug, Clone)]
pub(super) struct Memory<'a> {
    pub(super) config: &'a JanusConfig,
    /// Resident memory of the process as the run is planned.
    pub(super) program_bytes: u64,
    /// The most that it was up to then: rows were looked through, pictures decoded.
    pub(super) planned_peak_bytes: u64,
    /// Parts of the model that are loaded with it.
    pub(super) parts: Parts,
    /// Bytes of a value of the base as it is computed.
    pub(super) value_bytes: u64,
    /// Weights that are held in bf16 under wider values.
    pub(super) narrow: Arc<BTreeSet<String>>,
    /// Values that training moves.
    pub(super) trainable: u64,
    /// Values of pairs that stand beside trained ones and are not moved.
    pub(super) beside: u64,
    /// Rank of the low-rank pairs.
    pub(super) rank: u64,
    /// Sites of a decoder block that have one.
    pub(super) sites_per_block: u64,
    /// Blocks of the vision tower at and above the first trained one.
    pub(super) vision_blocks: u64,
    /// Whether the text head or the generation head is trained, so that its logits are held whole.
    pub(super) trained_heads: [bool; 2],
    /// Whether a step has more micro-batches than one, whose gradients are summed.
    pub(super) accumulates: bool,
    /// Whether blocks compute again in the backward what they would have kept.
    pub(super) recompute: bool,
    /// Whether two micro-batches are computed at once.
    pub(super) side_by_side: bool,
    /// Whether two micro-batches one after the other may be of one table.
    pub(super) repeats_tables: bool,
    /// Rows of a micro-batch, and of a batch of an evaluation.
    pub(super) batch_size: u64,
    /// Whether it evaluates or draws samples between steps, with the rows of the steps beside.
    pub(super) evaluates_between: bool,
    /// Rows of each table that are made ready ahead, and threads that do so.
    pub(super) rows_ahead: u64,
    pub(super) row_threads: u64,
    /// What the rows of each table come to.
    pub(super) loads: Vec<TableLoad>,
}

/// Bytes of a micro-batch.
#[derive(Debug, Clone, Copy, Default)]
struct Activations {
    /// Tokens of the longest pass, the decoder's or the vision tower's.
    tokens: u64,
    /// Matrices that are kept for reuse afterwards.
    store: u64,
    /// What goes with the tape.
    tape: u64,
}

impl Memory<'_> {
    /// The prediction.
    pub(super) fn predicted(&self) -> PredictedMemory {
        let steps: Vec<Activations> = self.loads.iter().map(|load| self.micro_batch(load)).collect();
        // A run without batches side by side has one at a time; the two largest are beside each other otherwise, of which one
        // table's may be both.
        let at_once = |of: &dyn Fn(&Activations) -> u64| {
            let mut all: Vec<u64> = steps.iter().map(of).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            let largest = all.first().copied().unwrap_or(0);
            let second = if self.repeats_tables { largest } else { all.get(1).copied().unwrap_or(0) };
            largest + if self.side_by_side { second } else { 0 }
        };
        let largest = at_once(&|step| step.store);
        // What waits for its next use is bounded, what a step holds is not.
        let waiting = shared(steps.iter().map(|step| (step.tokens, step.store)).collect());
        let activations = waiting.min(STORE_BYTES).max(largest) + at_once(&|step| step.tape);
        let evaluation = self.evaluation();
        // Initial values, variables, the blocks' flat copies of them, their gradients, and one more set where micro-batches
        // are summed; all f32.
        let copies = if self.accumulates { 5 } else { 4 };
        // Two batches at once, and the gradients of one that waits for the other's.
        let copies = if self.side_by_side { copies + 2 } else { copies };
        let sum = |of: &dyn Fn(&TableLoad) -> u64| self.loads.iter().map(of).sum::<u64>();
        let made_ready = sum(&|load| self.made_ready(load));
        // The first windows are read before the first step, and threads that read ahead rest while evaluations go on.
        let read_first = sum(&|load| load.unpacking_bytes);
        let rows = sum(&|load| load.window_bytes + self.waiting_rows(load) * self.row_bytes(load));
        let absent = if self.evaluates_between { 0 } else { rows };
        let besides = read_first.max(evaluation.saturating_sub(absent));
        let mut predicted = PredictedMemory {
            program: self.program_bytes + LATER_CODE_BYTES + HOLES_BYTES,
            base: self.base_bytes(),
            // Those that are not moved have initial values and the blocks' copies.
            adapters: (self.trainable * copies + self.beside * 2) * F32_BYTES,
            moments: self.trainable * F32_BYTES * 2,
            activations,
            rows: made_ready + rows,
            cache: besides.saturating_sub(activations + made_ready),
        };
        // What was looked through before the run may have been more than the run ever is.
        predicted.rows += self.planned_peak_bytes.saturating_sub(predicted.peak_bytes());
        predicted
    }

    /// What is held beside a step: where another window is read, its pages beside the rows made of them; at other times pictures that are decoded, one on each of the threads that work ahead.
    fn made_ready(&self, load: &TableLoad) -> u64 {
        let read = if load.reads_on { load.unpacking_bytes } else { 0 };
        read.max(self.row_threads * load.decoded_bytes)
    }

    /// Changes of the recipe after which `fits` holds, alone or else together, each with what the run would take then.
    pub(super) fn remedies(&self, fits: &dyn Fn(&Self) -> bool) -> Vec<String> {
        let recompute = |memory: Self| Self { recompute: true, ..memory };
        let narrow = |memory: Self| Self { value_bytes: 2, ..memory };
        let smaller = |memory: Self, batch_size: u64| {
            // Rows are shared out as before, at least one to each table.
            let share = |load: &TableLoad| TableLoad {
                rows: (load.rows * batch_size).div_ceil(memory.batch_size.max(1)),
                ..load.clone()
            };
            Self { loads: memory.loads.iter().map(share).collect(), batch_size, ..memory }
        };
        let bytes = |memory: &Self| memory.predicted().peak_bytes();
        let mut single = Vec::new();
        if !self.recompute {
            single.push(("train.recompute=on".to_owned(), recompute(self.clone())));
        }
        let halves =
            std::iter::successors(Some(self.batch_size / 2), |size| Some(size / 2)).take_while(|size| *size > 0);
        let mut sizes = halves.map(|size| (size, smaller(self.clone(), size)));
        if let Some((size, memory)) = sizes.find(|(_, memory)| fits(memory)) {
            single.push((format!("train.batch_size={size}"), memory));
        }
        if self.value_bytes > 2 {
            single.push(("base.dtype=bf16".to_owned(), narrow(self.clone())));
        }
        let told = |what: &str, memory: &Self| format!("with {what} it takes {} bytes", bytes(memory));
        let helpful: Vec<String> =
            single.iter().filter(|(_, memory)| fits(memory)).map(|(what, memory)| told(what, memory)).collect();
        if !helpful.is_empty() {
            return helpful;
        }
        let least = narrow(recompute(smaller(self.clone(), 1)));
        let all = "train.recompute=on train.batch_size=1 base.dtype=bf16";
        let but = if fits(&least) { "" } else { ", which is too much, too: a machine with more memory is needed" };
        vec![told(all, &least) + but]
    }

    fn matrix(&self, rows: u64, width: u64) -> u64 {
        let crowded = (width * self.value_bytes).is_multiple_of(CROWDED_BYTES);
        rows * (width + if crowded { SPREAD } else { 0 }) * self.value_bytes
    }

    fn base_bytes(&self) -> u64 {
        // No part of the model: opened for codes that the cache does not have, and to draw pictures.
        let parts = Parts { image_tokenizer: self.parts.image_tokenizer || self.parts.generation, ..self.parts };
        let expected = expected_tensors(self.config, true);
        let bytes = |name: &str| if self.narrow.contains(name) { BF16_BYTES } else { self.value_bytes };
        expected.iter().map(|tensor| loaded_bytes(&tensor.name, &tensor.shape, parts, bytes(&tensor.name))).sum()
    }

    /// What a decoder block keeps of `tokens` tokens of which `kept` leave it (`Saved` of the block room): queries, keys,
    /// values and the attention's output, the second norm's input, gate and up, partitions, and what low-rank pairs make.
    fn decoder_block(&self, tokens: u64, kept: u64) -> u64 {
        let text = &self.config.text;
        let (hidden, inner) = (text.hidden_size as u64, text.intermediate_size as u64);
        let queries = (text.num_attention_heads * text.head_dim) as u64;
        let kv = (text.num_key_value_heads * text.head_dim) as u64;
        2 * self.matrix(tokens, queries)
            + 2 * self.matrix(tokens, kv)
            + self.matrix(kept, hidden)
            + 2 * self.matrix(kept, inner)
            + F32_BYTES * tokens * (text.num_attention_heads as u64 + self.rank * self.sites_per_block)
    }

    fn micro_batch(&self, load: &TableLoad) -> Activations {
        let (tokens, labels) = (load.rows * load.tokens, load.rows * load.labels);
        let (text, vision) = (&self.config.text, &self.config.vision);
        let (layers, hidden) = (text.num_hidden_layers as u64, text.hidden_size as u64);
        let kv = (text.num_key_value_heads * text.head_dim) as u64;
        let inner = self.matrix(tokens, text.intermediate_size as u64);
        let wide = self.matrix(tokens, hidden);
        // One block's backward: the activation's gradient with those of gate and up; then the gradients of the second norm's
        // input, of the attention's output, of queries, keys and values, and of the first norm's output.
        let backward = 3 * inner + 6 * wide;
        let mut store = if self.recompute {
            self.decoder_block(tokens, tokens) + backward
        } else {
            let below = layers.saturating_sub(1) * self.decoder_block(tokens, tokens);
            // The last block, of which few tokens leave, is done first: its four wide matrices serve the next.
            below + self.decoder_block(tokens, labels) + backward - 4 * wide
        };
        // Inputs of the blocks and of the first of them; the gradient that goes down, once as it comes and once as it goes;
        // head by head, the gradients of queries, and in f32 of keys and values.
        let mut tape = (layers + 3) * tokens * hidden * self.value_bytes
            + tokens * (hidden * self.value_bytes + 2 * kv * F32_BYTES)
            + self.head(load.is_generation, labels);
        let patches = load.rows * load.images * vision.num_patches() as u64;
        if self.vision_blocks > 0 && patches > 0 {
            let (width, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
            let block = 5 * self.matrix(patches, width)
                + self.matrix(patches, inner)
                + F32_BYTES * patches * vision.num_attention_heads as u64;
            // As in the decoder: of one block's backward, the gradients of fc2's and fc1's inputs, and of the second norm's
            // input, of the attention's output, of queries, keys and values, and of the first norm's output.
            let backward = 2 * self.matrix(patches, inner) + 6 * self.matrix(patches, width);
            store += backward + if self.recompute { block } else { self.vision_blocks * block };
            tape += (self.vision_blocks + 2) * patches * width * self.value_bytes;
            tape += self.stacked_pixels(load.rows * load.images);
        }
        tape += load.rows * load.head_values * F32_BYTES;
        if load.is_rebuilt {
            tape += BANDS_BYTES;
        }
        // The aligner's maps and what is between them, and their place among the tokens.
        tape += 4 * patches * hidden * self.value_bytes;
        // Of batches of different lengths a short one may have taken a buffer that a long one asks for next.
        let uneven = tokens.saturating_sub(load.rows * load.mean_tokens);
        store += store.min(store * uneven / tokens.max(1)).min(store / 8);
        Activations { tokens: tokens.max(patches), store, tape }
    }

    /// A head's loss over `labels` labels. Frozen: the gradient formed beside the loss, the hidden states in f32, their
    /// difference and its product. Trained: the logits as the frozen head and its low-rank pair give them and their sum, and in
    /// f32 themselves, what the loss makes of them and their gradient.
    fn head(&self, is_generation: bool, labels: u64) -> u64 {
        let (text, vq) = (&self.config.text, &self.config.vq);
        let (classes, width) = if is_generation {
            (vq.num_embeddings as u64, vq.projection_dim as u64)
        } else {
            (text.vocab_size as u64, text.hidden_size as u64)
        };
        if self.trained_heads[usize::from(is_generation)] {
            return labels * classes * 3 * (self.value_bytes + F32_BYTES);
        }
        let chunk = labels.min(HEAD_CHUNK.0) * classes.min(HEAD_CHUNK.1);
        4 * labels * width * F32_BYTES + chunk * (F32_BYTES + self.value_bytes)
    }

    /// The matrices of one block over a batch of an evaluation, of which nothing is kept.
    fn evaluated_block(&self, load: &TableLoad) -> u64 {
        let tokens = self.evaluated_rows(load) * load.tokens;
        let text = &self.config.text;
        let beside = self.matrix(tokens, text.intermediate_size as u64) + self.matrix(tokens, text.hidden_size as u64);
        self.decoder_block(tokens, tokens) + beside
    }

    fn evaluated_rows(&self, load: &TableLoad) -> u64 {
        load.eval_rows.min(self.batch_size)
    }

    /// The most that an evaluation, samples, or the codes of an image hold at once.
    fn evaluation(&self) -> u64 {
        let text = &self.config.text;
        let token = text.hidden_size as u64 * self.value_bytes;
        let kv_token =
            2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim) as u64 * self.value_bytes;
        // Embeddings, a block's input and its output, and keys and values, once more while rows take over those of a beginning
        // that they share.
        let answering = |rows: u64, length: u64| rows * length * (2 * kv_token + 3 * token);
        let of = |load: &TableLoad| {
            let rows = self.evaluated_rows(load);
            let loss = rows * load.tokens * 3 * token
                + self.head(load.is_generation, rows * load.labels)
                // Without gradients.
                + rows * load.head_values * F32_BYTES / 2;
            if load.is_generation {
                let drawn = answering(2 * PICTURES.min(load.eval_rows), load.tokens);
                return drawn.max(self.tokenizer()).max(loss);
            }
            // Pictures as they were read and side by side, a block's input, its output and that of the norm, and as in a
            // step what the aligner makes of them.
            let (vision, images) = (&self.config.vision, rows * load.images);
            let patches = images * vision.num_patches() as u64;
            let seen = images * self.pixel_bytes()
                + self.stacked_pixels(images)
                + patches * (3 * vision.hidden_size as u64 * self.value_bytes + 4 * token);
            seen + answering(rows, load.tokens + SPARE_TOKENS).max(loss)
        };
        // Its rows are read, then their pictures decoded, one at a time, then they are computed.
        let held = |load: &TableLoad| match load.eval_rows {
            0 => self.evaluated_block(load) + of(load),
            _ => {
                let read = load.eval_unpacking_bytes.max(load.decoded_bytes);
                load.eval_window_bytes + read.max(self.evaluated_block(load) + of(load))
            }
        };
        self.loads.iter().map(held).max().unwrap_or(0)
    }

    /// The image tokenizer at its finest level in f32: the level's input, and a residual block's input, middle and output.
    fn tokenizer(&self) -> u64 {
        let side = self.config.vision.image_size as u64;
        4 * F32_BYTES * side * side * self.config.vq.base_channels as u64
    }

    /// Rows that hold their pictures: those read ahead, and of a step under way those whose tower is still to see them; of
    /// pictures to draw only the codes are left by then.
    fn waiting_rows(&self, load: &TableLoad) -> u64 {
        self.rows_ahead + if load.is_generation { 0 } else { load.rows_per_step.ceil() as u64 }
    }

    /// A row as it waits: its pictures in f32.
    fn row_bytes(&self, load: &TableLoad) -> u64 {
        let pictures = if load.is_generation { 1 } else { load.images };
        pictures * (self.pixel_bytes() + size_of::<Image>() as u64)
    }

    /// A picture in f32.
    fn pixel_bytes(&self) -> u64 {
        let vision = &self.config.vision;
        (vision.num_channels * vision.image_size * vision.image_size) as u64 * F32_BYTES
    }

    /// Pictures side by side (`features` of the cache), and the same in the base's type (`Vision::embed`).
    fn stacked_pixels(&self, images: u64) -> u64 {
        let narrowed = if self.value_bytes < F32_BYTES { self.value_bytes } else { 0 };
        images * self.pixel_bytes() * (F32_BYTES + narrowed) / F32_BYTES
    }
}

/// Bytes of matrices that passes of so many tokens leave for reuse, `(tokens, bytes)` each: one serves passes down to half
/// as long (`Store::take` of the kernel room), so shorter ones have matrices of their own.
fn shared(mut passes: Vec<(u64, u64)>) -> u64 {
    passes.sort_unstable_by(|a, b| b.cmp(a));
    let (mut sum, mut own, mut longest) = (0, 0, 0);
    for (tokens, bytes) in passes {
        if tokens * 2 < longest || longest == 0 {
            sum += own;
            (own, longest) = (bytes, tokens);
        }
        own = own.max(bytes);
    }
    sum + own
}

/// Bytes of one parameter in memory, none where its part is not loaded.
fn loaded_bytes(name: &str, shape: &[usize], parts: Parts, size: u64) -> u64 {
    let (loaded, size) = if name.starts_with("model.vqmodel.") {
        (parts.image_tokenizer, F32_BYTES)
    } else if name.starts_with("model.vision_model.") || name.starts_with("model.aligner.") {
        (parts.vision, size)
    } else if name.starts_with("model.generation_") {
        (parts.generation, size)
    } else if name == "lm_head.weight" {
        (parts.text_head, size)
    } else {
        (true, size)
    };
    if loaded { shape.iter().map(|n| *n as u64).product::<u64>() * size } else { 0 }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
