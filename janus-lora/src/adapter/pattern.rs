//! Regular expressions as PEFT applies them: Python's `re` on module paths, matched whole or from the start.
//!
//! Python's syntax is translated where the two dialects differ; what the engine here cannot do (look-around,
//! back-references, possessive repetition) is refused, never approximated.

use regex::{Regex, RegexBuilder};

use super::error::AdapterError;

/// What the expressions of one field may take together once compiled; a name list of thousands stays far below.
const FIELD_BYTES: usize = 10 << 20;

/// What an expression may take in any case.
const LEAST_BYTES: usize = 64 << 10;

/// Most expressions in one field: more than any of these models has sites.
pub(super) const MOST_IN_A_FIELD: usize = 1024;

/// A compiled expression.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// What `re.fullmatch(pattern, name)` finds; `key` is the field it stands in.
    pub(super) fn whole(key: &str, pattern: &str) -> Result<Self, AdapterError> {
        Self::compile(key, pattern, r"\A(?:", r")\z", 1)
    }

    /// What `re.match(pattern, name)` finds, as one of `among` expressions in the field.
    pub(super) fn from_start(key: &str, pattern: &str, among: usize) -> Result<Self, AdapterError> {
        Self::compile(key, pattern, r"\A(?:", ")", among)
    }

    fn compile(key: &str, pattern: &str, before: &str, after: &str, among: usize) -> Result<Self, AdapterError> {
        let limit = (FIELD_BYTES / among.max(1)).max(LEAST_BYTES);
        let build = |text: &str| RegexBuilder::new(text).size_limit(limit).build();
        let refused = |problem: String| AdapterError::Pattern { key: key.into(), pattern: pattern.into(), problem };
        let translated = translate(pattern).map_err(|problem| refused(problem.into()))?;
        // Alone first: a stray `)` must not pair with the brackets put around it.
        build(&translated).map_err(|e| refused(reason(&e)))?;
        build(&format!("{before}{translated}{after}")).map(Self).map_err(|e| refused(reason(&e)))
    }

    pub(crate) fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The text of a named group in the match, absent where the match or the group is.
    pub(super) fn group<'n>(&self, name: &'n str, group: &str) -> Option<&'n str> {
        Some(self.0.captures(name)?.name(group)?.as_str())
    }
}

/// The last line of the engine's message, which says what is wrong; the lines before draw the place.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).to_string()
}

const LOOK_AROUND: &str = "look-around is not supported";
const POSSESSIVE: &str = "possessive or atomic matching is not supported";
const REPEATED: &str = "multiple repeat";

fn translate(pattern: &str) -> Result<String, &'static str> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut at = 0;
    // Whether a repetition may not be repeated once more here.
    let mut repeated = false;
    while let Some(&c) = chars.get(at) {
        at += 1;
        let repetition = match c {
            '*' | '+' | '?' => Some(c.to_string()),
            '{' => counted(&chars[at..]).map(|(length, text)| {
                at += length;
                text
            }),
            _ => None,
        };
        if let Some(text) = repetition {
            if repeated {
                return Err(if c == '+' { POSSESSIVE } else { REPEATED });
            }
            out.push_str(&text);
            if chars.get(at) == Some(&'?') {
                out.push('?');
                at += 1;
            }
            repeated = true;
            continue;
        }
        repeated = false;
        match c {
            '\\' => {
                let escaped = *chars.get(at).ok_or("it ends in a lone backslash")?;
                at += 1;
                escape(escaped, false, &mut out)?;
            }
            '[' => at = class(&chars, at, &mut out)?,
            '(' if chars.get(at) == Some(&'?') => {
                let rest: String = chars[at + 1..].iter().take(3).collect();
                if rest.starts_with('#') {
                    let length = chars[at..].iter().position(|c| *c == ')').ok_or("a comment does not end")?;
                    at += length + 1;
                    continue;
                }
                if rest.starts_with(['=', '!']) || rest.starts_with("<=") || rest.starts_with("<!") {
                    return Err(LOOK_AROUND);
                }
                if rest.starts_with('>') {
                    return Err(POSSESSIVE);
                }
                if rest.starts_with("P=") {
                    return Err("back-references are not supported");
                }
                if rest.starts_with('(') {
                    return Err("conditional groups are not supported");
                }
                out.push_str("(?");
                at += 1;
            }
            '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// What follows a `{` if it counts a repetition: how many characters, and the repetition in this engine's syntax.
/// Python takes a brace that does not for itself.
fn counted(rest: &[char]) -> Option<(usize, String)> {
    let end = rest.iter().position(|c| *c == '}')?;
    let inside: String = rest[..end].iter().collect();
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let text = match inside.split_once(',') {
        Some((low, high)) if digits(low) && digits(high) => {
            format!("{{{},{high}}}", if low.is_empty() { "0" } else { low })
        }
        None if !inside.is_empty() && digits(&inside) => format!("{{{inside}}}"),
        _ => return None,
    };
    Some((end + 1, text))
}

/// One escaped character.
fn escape(c: char, in_class: bool, out: &mut String) -> Result<(), &'static str> {
    match c {
        'Z' if !in_class => out.push_str(r"\z"),
        'A' | 'b' | 'B' if !in_class => out.extend(['\\', c]),
        'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'n' | 't' | 'r' | 'f' | 'v' | 'a' | 'x' | 'u' | 'U' => {
            out.extend(['\\', c]);
        }
        '0'..='9' => return Err("back-references and octal escapes are not supported"),
        c if c.is_alphabetic() => return Err("it has an unknown escape"),
        c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
    }
    Ok(())
}

/// A set in square brackets, from behind the opening one; returns where it ends.
fn class(chars: &[char], mut at: usize, out: &mut String) -> Result<usize, &'static str> {
    out.push('[');
    if chars.get(at) == Some(&'^') {
        out.push('^');
        at += 1;
    }
    let first = at;
    while let Some(&c) = chars.get(at) {
        at += 1;
        match c {
            ']' if at - 1 > first => {
                out.push(']');
                return Ok(at);
            }
            '\\' => {
                let escaped = *chars.get(at).ok_or("it ends in a lone backslash")?;
                at += 1;
                escape(escaped, true, out)?;
            }
            // Set operations and nested sets in this engine, plain characters in Python.
            '[' | ']' | '&' | '~' => out.extend(['\\', c]),
            '-' if chars.get(at) == Some(&'-') => return Err("`--` in a set is ambiguous"),
            _ => out.push(c),
        }
    }
    Err("a set does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pattern: &str, name: &str) -> bool {
        Pattern::whole("target_modules", pattern).unwrap().is_match(name)
    }

    #[test]
    fn a_whole_match_is_not_a_search() {
        assert!(whole(r".*\.q_proj", "a.q_proj"));
        assert!(!whole(r"q_proj", "a.q_proj"));
        assert!(!whole(r".*\.q", "a.q_proj"));
        assert!(whole(r"a|b.*", "bc"), "the whole of an alternative");
        assert!(!whole(r"a|b", "ab"));
        assert!(whole(r".*proj$", "a.q_proj"));
        assert!(whole(r"^a\Z", "a"));
    }

    #[test]
    fn pythons_syntax_means_what_it_means_in_python() {
        assert!(whole(r"x{2}", "xx") && whole(r"x{,2}y", "xxy") && whole("x{1,}", "xxx"));
        assert!(whole(r"x{a}", "x{a}") && whole("{}", "{}"), "a brace that counts nothing is itself");
        assert!(whole(r"[[a]", "[") && whole(r"[]a]", "]") && whole(r"[a&&b]+", "a&b"));
        assert!(whole(r"layers\.[^.]+?\.fc1", "layers.3.fc1"));
        assert!(whole(r"a(?#a comment)b", "ab") && whole(r"(?P<l>\d+)", "12") && whole(r"(?i:Q)_proj", "q_proj"));
        assert!(whole(r"a\-b\_c\<", "a-b_c<"));
        assert!(whole(r"[\w.]+\.\d", "model_1.layers.2"));
    }

    #[test]
    fn a_match_from_the_start_may_end_anywhere() {
        let pattern = Pattern::from_start("layers_pattern", r".*?\.[^.]*\.(?P<idx>\d+)\.", 1).unwrap();
        assert_eq!(pattern.group("model.layers.1.experts.0.fc", "idx"), Some("1"));
        assert_eq!(pattern.group("model.norm", "idx"), None);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (pattern, reason) in [
            (r".*(?!vision)\.q", "look-around"),
            (r"(?<=a)b", "look-around"),
            (r"(?>a)b", "possessive"),
            (r"a*+b", "possessive"),
            (r"a**", "multiple repeat"),
            (r"(a)\1", "back-references"),
            (r"(?P<n>a)(?P=n)", "back-references"),
            (r"a\qb", "unknown escape"),
            (r"[a", "does not end"),
            (r"(a", "unclosed group"),
            (r"a)", "unopened group"),
            ("a\\", "backslash"),
            (r"*a", "missing expression"),
            (r"(?:a{1000}){1000}{2}", "multiple repeat"),
            (r"(?:(?:a{1000}){1000}){1000}", "size limit"),
        ] {
            let error = Pattern::whole("exclude_modules", pattern).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("`exclude_modules`"), "{pattern}: {error}");
        }
    }
}
