//! What one filling of the panels holds, and how it gets there.

use std::ops::Range;

use super::element::Element;
use super::level::Level;
use super::panel::{self, LANES, LINES, Layout, Line, Panel, Side};
use super::product::Term;
#[cfg(target_arch = "x86_64")]
use super::weights::of_rows;

/// Bytes of one panel's chunk: those of two fillings and a block of sums share a core's second-level cache, which is 1 MiB or
/// more with AVX-512 and may be half of that without.
fn panel_bytes(level: Level) -> usize {
    if level >= Level::Avx512 { 128 << 10 } else { 32 << 10 }
}

/// Words of inner values laid out at a time: a line of a row of the matrix.
const UNIT_WORDS: usize = 16;

/// Whether the next chunk is laid out under the tiles of this one. AVX2 tiles are slow enough for that; AVX-512 tiles wait for
/// the lines under way, and lose what is gained (docs/decisions/0007).
pub(super) fn fills_under_tiles(level: Level) -> bool {
    level == Level::Avx2
}

/// Some inner steps of a term under the result columns of a block.
#[derive(Debug, Clone)]
pub(super) struct Chunk<'a, E> {
    pub(super) term: Term<'a, E>,
    pub(super) inner: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl<'a, E: Element> Chunk<'a, E> {
    /// The chunks of a term, in the order of the inner index.
    pub(super) fn of(level: Level, term: Term<'a, E>, columns: Range<usize>) -> impl Iterator<Item = Self> {
        let (width, depth) = (term.x.width(), panel_bytes(level) / (LANES * 4) * per_word::<E>(level));
        (0..width).step_by(depth).map(move |start| Self {
            term,
            inner: start..(start + depth).min(width),
            columns: columns.clone(),
        })
    }

    fn panels(&self) -> usize {
        self.columns.len().div_ceil(LANES)
    }

    /// Lines of one of its panels.
    fn lines(&self, level: Level) -> usize {
        self.inner.len().div_ceil(per_word::<E>(level)) * LINES
    }

    fn units(&self, level: Level) -> usize {
        self.inner.len().div_ceil(UNIT_WORDS * per_word::<E>(level))
    }

    /// Inner steps of a unit.
    fn unit(&self, level: Level, unit: usize) -> Range<usize> {
        let values = UNIT_WORDS * per_word::<E>(level);
        let start = self.inner.start + unit * values;
        start..(start + values).min(self.inner.end)
    }

    /// Its panels in `lines`, which hold them.
    pub(super) fn laid_out<'p>(&self, level: Level, lines: &'p [Line]) -> impl Iterator<Item = Panel<'p>> + Clone {
        let (depth, layout) = (self.inner.len(), self.layout(level));
        lines.chunks_exact(self.lines(level)).take(self.panels()).map(move |lines| Panel { lines, layout, depth })
    }

    fn layout(&self, level: Level) -> Layout {
        Layout::of(level, self.inner.len())
    }
}

/// Values in a word of a panel.
fn per_word<E: Element>(level: Level) -> usize {
    if E::PAIRED && level == Level::Avx512Bf16 { 2 } else { 1 }
}

/// A chunk on its way into the panels.
#[derive(Debug)]
pub(super) struct Filling<'c, 'a, E> {
    chunk: &'c Chunk<'a, E>,
    level: Level,
    lines: &'c mut Vec<Line>,
    units: usize,
    /// Units asked for from memory.
    asked: usize,
    /// Units laid out.
    done: usize,
}

impl<'c, 'a, E: Element> Filling<'c, 'a, E> {
    /// Nothing is laid out yet.
    pub(super) fn new(level: Level, chunk: &'c Chunk<'a, E>, lines: &'c mut Vec<Line>) -> Self {
        let needed = chunk.panels() * chunk.lines(level);
        if lines.len() < needed {
            lines.resize(needed, Line([0; 16]));
        }
        Self { chunk, level, lines, units: chunk.units(level), asked: 0, done: 0 }
    }

    /// Called before each of `count` tiles: it lays out what it asked for at the call before and asks for more. Little is under
    /// way at a time, because rows whole pages apart meet in the same few sets of the cache.
    pub(super) fn advance(&mut self, call: usize, count: usize) {
        let asked = self.asked;
        for unit in self.done..asked {
            self.lay_out(unit * UNIT_WORDS, self.chunk.unit(self.level, unit));
        }
        self.done = asked;
        self.asked = (self.units * (call + 1)).div_ceil(count).min(self.units);
        #[cfg(target_arch = "x86_64")]
        for unit in asked..self.asked {
            let (rows, columns) = self.chunk.term.area(self.chunk.unit(self.level, unit), self.chunk.columns.clone());
            of_rows!(self.chunk.term.matrix, |matrix| super::prefetch::bring(matrix, rows, columns));
        }
    }

    /// Lays out all that is missing.
    pub(super) fn complete(&mut self) {
        let first = self.done;
        self.done = self.units;
        match self.chunk.term.side {
            // Few rows at a time, each from end to end: the hardware foresees that.
            Side::Transposed if first < self.units => {
                let start = self.chunk.unit(self.level, first).start;
                self.lay_out(first * UNIT_WORDS, start..self.chunk.inner.end);
            }
            // What the panels take of a row lies side by side.
            _ => {
                for unit in first..self.units {
                    self.lay_out(unit * UNIT_WORDS, self.chunk.unit(self.level, unit));
                }
            }
        }
    }

    /// Lays out some inner steps, the first of which is the panels' step `first`.
    fn lay_out(&mut self, first: usize, inner: Range<usize>) {
        let (panel_lines, layout) = (self.chunk.lines(self.level), self.chunk.layout(self.level));
        for (number, lines) in self.lines.chunks_exact_mut(panel_lines).take(self.chunk.panels()).enumerate() {
            let start = self.chunk.columns.start + number * LANES;
            let columns = start..(start + LANES).min(self.chunk.columns.end);
            let (Term { matrix, side, .. }, lines) = (self.chunk.term, &mut lines[first * layout.step..]);
            of_rows!(matrix, |matrix| {
                panel::pack::<E, _>(self.level, matrix, side, inner.clone(), columns, lines, layout);
            });
        }
    }
}
