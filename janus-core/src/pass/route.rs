//! Routes: which token rows of a pass compute with which slots.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{ModelError, Result};

/// The number of a slot: a set of corrections that a model holds ready for passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What token rows compute with: slots, each with a factor on its shift. The base alone where there is none.
#[derive(Debug, Clone, Default)]
pub struct Mixture(Arc<[(Slot, f64)]>);

impl Mixture {
    /// No slot.
    pub fn base() -> Self {
        Self::default()
    }

    /// One slot as it is.
    pub fn of(slot: Slot) -> Self {
        Self::new([(slot, 1.0)])
    }

    /// Several slots; those of factor 0 are left out.
    pub fn new(parts: impl IntoIterator<Item = (Slot, f64)>) -> Self {
        Self(parts.into_iter().filter(|(_, factor)| *factor != 0.0).collect())
    }

    /// The slots and their factors.
    pub fn parts(&self) -> &[(Slot, f64)] {
        &self.0
    }

    fn bits(&self) -> impl Iterator<Item = (Slot, u64)> {
        self.0.iter().map(|(slot, factor)| (*slot, factor.to_bits()))
    }
}

impl PartialEq for Mixture {
    fn eq(&self, other: &Self) -> bool {
        self.bits().eq(other.bits())
    }
}

impl Eq for Mixture {}

impl Hash for Mixture {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().for_each(|part| part.hash(state));
    }
}

/// What a range of token rows computes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Rows of the part's flattened input.
    pub tokens: Range<usize>,
    /// What they compute with.
    pub mixture: Mixture,
}

/// Rows that follow each other and compute with the same, by its place in [`Routing::mixtures`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) rows: Range<usize>,
    pub(crate) mixture: usize,
}

impl Span {
    /// The span of a row.
    pub(crate) fn of_row(spans: &[Self], row: usize) -> Option<&Self> {
        spans.get(spans.partition_point(|span| span.rows.end <= row))
    }

    /// Spans of some rows, in their order.
    ///
    /// # Errors
    /// The first row that has no span.
    pub(crate) fn picked(spans: &[Self], rows: impl IntoIterator<Item = usize>) -> Result<Vec<Self>, usize> {
        let mut picked = Vec::new();
        for (place, row) in rows.into_iter().enumerate() {
            Self::append(&mut picked, place..place + 1, Self::of_row(spans, row).ok_or(row)?.mixture);
        }
        Ok(picked)
    }

    /// Adds rows behind the last ones.
    fn append(spans: &mut Vec<Self>, rows: Range<usize>, mixture: usize) {
        match spans.last_mut() {
            Some(last) if last.mixture == mixture => last.rows.end = rows.end,
            _ => spans.push(Self { rows, mixture }),
        }
    }
}

/// The routes of all rows of a part: every row has one.
#[derive(Debug)]
pub(crate) struct Routing {
    /// Each once.
    mixtures: Arc<[Mixture]>,
    /// From the first row to the last.
    spans: Vec<Span>,
}

impl Routing {
    pub(super) fn of(mut routes: Vec<Route>) -> Result<Self> {
        routes.retain(|route| !route.tokens.is_empty() || route.tokens.start > route.tokens.end);
        routes.sort_by_key(|route| route.tokens.start);
        let (mut mixtures, mut spans, mut end): (Vec<Mixture>, Vec<Span>, usize) = (Vec::new(), Vec::new(), 0);
        for Route { tokens, mixture } in routes {
            if tokens.start != end || tokens.end < tokens.start {
                return Err(
                    ModelError::Routes { row: end.min(tokens.start), start: tokens.start, end: tokens.end }.into()
                );
            }
            let place = mixtures.iter().position(|other| *other == mixture).unwrap_or_else(|| {
                mixtures.push(mixture);
                mixtures.len() - 1
            });
            end = tokens.end;
            Span::append(&mut spans, tokens, place);
        }
        Ok(Self { mixtures: mixtures.into(), spans })
    }

    /// What the rows compute with, each mixture once.
    pub(crate) fn mixtures(&self) -> &[Mixture] {
        &self.mixtures
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.rows.end)
    }

    /// What a row computes with.
    ///
    /// # Errors
    /// A row beyond the routes.
    pub(crate) fn of_row(&self, row: usize) -> Result<&Mixture> {
        let span = Span::of_row(&self.spans, row).ok_or_else(|| self.beyond(row))?;
        Ok(&self.mixtures[span.mixture])
    }

    fn beyond(&self, row: usize) -> ModelError {
        ModelError::Unrouted { rows: row + 1, routed: self.rows() }
    }

    pub(super) fn picked(&self, rows: impl IntoIterator<Item = usize>) -> Result<Self> {
        let spans = Span::picked(&self.spans, rows).map_err(|row| self.beyond(row))?;
        Ok(Self { mixtures: self.mixtures.clone(), spans })
    }

    /// The spans over `rows` rows, or over so many pieces of a part's rows of one size, such as pictures.
    ///
    /// # Errors
    /// Another number of rows, or a piece with rows of two routes.
    pub(crate) fn over(&self, rows: usize) -> Result<Vec<Span>> {
        let routed = self.rows();
        if routed == rows {
            return Ok(self.spans.clone());
        }
        let unfit = || ModelError::Unrouted { rows, routed };
        if rows == 0 || !routed.is_multiple_of(rows) {
            return Err(unfit().into());
        }
        let size = routed / rows;
        let shared = |span: &Span| {
            let Range { start, end } = span.rows;
            let whole = start.is_multiple_of(size) && end.is_multiple_of(size);
            whole.then(|| Span { rows: start / size..end / size, ..*span })
        };
        Ok(self.spans.iter().map(shared).collect::<Option<Vec<_>>>().ok_or_else(unfit)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(tokens: Range<usize>, slot: u32) -> Route {
        Route { tokens, mixture: Mixture::of(Slot(slot)) }
    }

    fn spans(routing: &Routing) -> Vec<(Range<usize>, usize)> {
        routing.spans.iter().map(|span| (span.rows.clone(), span.mixture)).collect()
    }

    #[test]
    fn routes_become_spans_in_the_order_of_rows_equal_ones_joined() {
        let routing = Routing::of(vec![route(5..7, 2), route(0..3, 1), route(4..4, 9), route(3..5, 1)]).unwrap();
        assert_eq!(spans(&routing), [(0..5, 0), (5..7, 1)]);
        assert_eq!((routing.rows(), routing.mixtures().len()), (7, 2));
        assert_eq!(*routing.of_row(6).unwrap(), Mixture::of(Slot(2)));
        assert!(routing.of_row(7).is_err());
        let picked = routing.picked([6, 0, 1, 5]).unwrap();
        assert_eq!(spans(&picked), [(0..1, 1), (1..3, 0), (3..4, 1)]);
        assert!(routing.picked([7]).is_err());
    }

    #[test]
    fn a_row_without_a_route_or_with_two_is_an_error() {
        let backwards = Range { start: 3, end: 2 };
        for routes in [
            vec![route(1..3, 1)],
            vec![route(0..2, 1), route(3..4, 1)],
            vec![route(0..2, 1), route(1..4, 2)],
            vec![route(0..3, 1), Route { tokens: backwards, mixture: Mixture::base() }],
        ] {
            assert!(Routing::of(routes.clone()).is_err(), "{routes:?}");
        }
    }

    #[test]
    fn pieces_of_rows_have_the_route_of_all_their_rows() {
        let routing = Routing::of(vec![route(0..8, 1), route(8..12, 2)]).unwrap();
        let over = |rows| routing.over(rows).map(|spans| spans.iter().map(|s| s.rows.clone()).collect::<Vec<_>>());
        assert_eq!(over(12).unwrap(), [0..8, 8..12]);
        assert_eq!(over(3).unwrap(), [0..2, 2..3]);
        for rows in [0, 2, 5, 24] {
            assert!(over(rows).is_err(), "{rows}");
        }
    }

    #[test]
    fn a_factor_of_nothing_is_no_part_and_factors_tell_mixtures_apart() {
        assert_eq!(Mixture::new([(Slot(1), 0.0)]), Mixture::base());
        assert_ne!(Mixture::new([(Slot(1), 0.5)]), Mixture::of(Slot(1)));
        assert_eq!(Mixture::new([(Slot(1), 1.0), (Slot(2), 0.0)]), Mixture::of(Slot(1)));
    }
}
