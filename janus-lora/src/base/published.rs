//! The names of published bases, and which of them may have been meant by a name that is nearly theirs.

use super::builtin;
use crate::nearest::nearest;

/// The published bases, as their hub spells them.
pub(super) const PUBLISHED: [&str; 3] =
    ["deepseek-ai/Janus-1.3B", "deepseek-ai/Janus-Pro-1B", "deepseek-ai/Janus-Pro-7B"];

/// Whose the published bases are: the originals, and the same in the layout of transformers.
const OWNERS: [&str; 2] = ["deepseek-ai", "deepseek-community"];

/// The base that was meant by a name without an owner, or by a published one's that is spelt otherwise: a hub tells names of
/// unlike case apart. `None` of what can be looked for as it stands, or of what is like no name.
pub(super) fn misspelt(spec: &str) -> Option<String> {
    let (name, revision) = split(spec);
    let Some((owner, name)) = name.split_once('/') else {
        return meant(spec).filter(|meant| meant != spec);
    };
    let owner = OWNERS.into_iter().find(|known| known.eq_ignore_ascii_case(owner))?;
    let meant = format!("{owner}/{}{revision}", same_letters(name)?);
    (meant != spec).then_some(meant)
}

/// The published or built-in base whose name is the nearest to a name that was not found, whatever its owner.
pub(super) fn meant(spec: &str) -> Option<String> {
    let (path, _) = split(spec);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let names = PUBLISHED.map(name_of);
    let beginning = letters(name);
    // `Janus-Pro` is the beginning of two: the smaller one is named.
    let begun =
        || names.into_iter().find(|known| beginning.starts_with("januspro") && letters(known).starts_with(&beginning));
    let near =
        same_letters(name).or_else(begun).or_else(|| nearest(name, std::iter::once(builtin::NAME).chain(names)))?;
    let published = PUBLISHED.into_iter().find(|published| name_of(published) == near);
    Some(published.unwrap_or(near).to_owned())
}

/// The published name that differs from this one in case and separators at most, and in the makers' name before it.
fn same_letters(name: &str) -> Option<&'static str> {
    let letters = letters(name);
    let bare = letters.strip_prefix("deepseek").unwrap_or(&letters);
    PUBLISHED.into_iter().map(name_of).find(|published| self::letters(published) == bare)
}

fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn name_of(published: &'static str) -> &'static str {
    published.rsplit('/').next().unwrap_or(published)
}

/// A name and its revision with the `@` before it.
fn split(spec: &str) -> (&str, &str) {
    spec.split_at(spec.find('@').unwrap_or(spec.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_near_a_published_one_lead_to_its_id() {
        for (spec, expected) in [
            ("Janus-Pro-1B", "deepseek-ai/Janus-Pro-1B"),
            ("janus-pro-7b", "deepseek-ai/Janus-Pro-7B"),
            ("Janus-1.3B", "deepseek-ai/Janus-1.3B"),
            ("janus_pro_1b", "deepseek-ai/Janus-Pro-1B"),
            ("JanusPro7B", "deepseek-ai/Janus-Pro-7B"),
            ("deepseek-janus-pro-1b", "deepseek-ai/Janus-Pro-1B"),
            ("janus-pro-1", "deepseek-ai/Janus-Pro-1B"),
            ("Janus-Pro", "deepseek-ai/Janus-Pro-1B"),
            ("JanusPro", "deepseek-ai/Janus-Pro-1B"),
            ("janus-pro-7", "deepseek-ai/Janus-Pro-7B"),
            ("jnaus-nano", "janus-nano"),
            ("Janus-Nano", "janus-nano"),
            ("deepseek-ai/janus-pro-1b", "deepseek-ai/Janus-Pro-1B"),
            ("DeepSeek-AI/Janus-Pro-7B@main", "deepseek-ai/Janus-Pro-7B@main"),
            ("deepseek-ai/janus-1.3b", "deepseek-ai/Janus-1.3B"),
            ("deepseek-community/janus-pro-1b", "deepseek-community/Janus-Pro-1B"),
        ] {
            assert_eq!(misspelt(spec).as_deref(), Some(expected), "{spec}");
        }
        for spec in ["deepseek-ai/Janus-Pro-1B", "deepseek-community/Janus-Pro-7B@x", "me/janus-pro-1b", "llama", "x/y"]
        {
            assert_eq!(misspelt(spec), None, "{spec}");
        }
    }

    #[test]
    fn what_was_not_found_may_still_be_near_one() {
        for (spec, expected) in [
            ("me/Janus-Pro-1B", Some("deepseek-ai/Janus-Pro-1B")),
            ("deepseek/janus-pro-7b", Some("deepseek-ai/Janus-Pro-7B")),
            ("models/Janus-1.3B/", Some("deepseek-ai/Janus-1.3B")),
            ("me/my-own", None),
        ] {
            assert_eq!(meant(spec).as_deref(), expected, "{spec}");
        }
    }
}
