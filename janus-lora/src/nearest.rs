//! The nearest legal name to a misspelt one.

/// Names longer than this are not compared: no legal name is near that length.
const MAX_COMPARED_CHARS: usize = 64;

/// The candidate nearest to `name`, where one is near enough to be what was meant: at most one edit for three
/// characters of `name`, three at most. Case and `-` against `_` do not count. Of equals, the first candidate wins.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = folded(name)?;
    let allowed = (name.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = folded(candidate)?;
            if name.len().abs_diff(other.len()) > allowed {
                return None;
            }
            let distance = edit_distance(&name, &other);
            // Two names of one character each are one edit apart whatever they are.
            (distance <= allowed && distance < name.len().max(other.len())).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn folded(name: &str) -> Option<Vec<char>> {
    let chars: Vec<char> = name
        .chars()
        .take(MAX_COMPARED_CHARS + 1)
        .map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() })
        .collect();
    (1..=MAX_COMPARED_CHARS).contains(&chars.len()).then_some(chars)
}

/// Insertions, deletions, substitutions and swaps of neighbours between two names (optimal string alignment).
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut before_last: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; width];
        for j in 1..width {
            let substitution = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitution.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(a: &str, b: &str) -> usize {
        edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>())
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("rank", "rank"), 0);
        assert_eq!(distance("rnk", "rank"), 1);
        assert_eq!(distance("rnak", "rank"), 1, "a swap is one edit");
        assert_eq!(distance("", "rank"), 4);
        assert_eq!(distance("learning", "warming"), 3);
    }

    #[test]
    fn only_near_names_are_offered() {
        let legal = ["rank", "scale", "dropout", "learning_rate"];
        assert_eq!(nearest("rnk", legal), Some("rank"));
        assert_eq!(nearest("Learning-Rate", legal), Some("learning_rate"));
        assert_eq!(nearest("learnin_rates", legal), Some("learning_rate"));
        assert_eq!(nearest("droput", legal), Some("dropout"));
        assert_eq!(nearest("temperature", legal), None);
        assert_eq!(nearest("r", ["a"]), None);
        assert_eq!(nearest("", legal), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), legal), None);
    }
}
