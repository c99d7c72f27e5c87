use super::sheet::{Piece, Stretch, lines_of};
use super::stats::Counts;

#[test]
fn percentiles_are_nearest_ranks() {
    let mut counts = Counts::default();
    assert_eq!(counts.distribution(), None);
    for value in (1..=19).chain([1000]) {
        counts.add(value);
    }
    let found = counts.distribution().unwrap();
    assert_eq!((found.min, found.median, found.p95, found.max, found.total), (1, 10, 19, 1000, 1190));
    assert!((found.mean - 59.5).abs() < 1e-12);
    counts.add(1001);
    let found = counts.distribution().unwrap();
    assert_eq!((found.median, found.p95), (11, 1000));
}

fn piece(text: &str, learnt: bool) -> Piece {
    Piece { text: text.into(), learnt }
}

fn stretch(column: usize, text: &str, learnt: bool) -> Stretch {
    Stretch { column, text: text.into(), learnt }
}

#[test]
fn text_breaks_at_the_edge_and_keeps_its_colours() {
    let pieces = [piece("What?\n\nA:", false), piece(" yes", true)];
    assert_eq!(
        lines_of(&pieces, 4, 9),
        [
            vec![stretch(0, "What", false)],
            vec![stretch(0, "?↵", false)],
            vec![stretch(0, "↵", false)],
            vec![stretch(0, "A:", false), stretch(2, " y", true)],
            vec![stretch(0, "es", true)],
        ]
    );
    let cut = lines_of(&pieces, 4, 3);
    assert_eq!(cut.len(), 3);
    assert_eq!(cut[2], [stretch(0, "... and 7 more letters", false)]);
}
