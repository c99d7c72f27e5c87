//! `DIR` and `DIR:factor`, as the command line names adapters.

use std::path::{Path, PathBuf};

use janus_core::home;
use janus_core::hub::RepoId;

use super::error::AdapterError;
use super::locate::hub_id;
use super::peft_config::cut;

/// Takes an adapter argument apart: what it names, a folder or a hub id, and the factor on all that the adapter shifts, 1 where
/// none is given. A folder that has the whole text for its name is meant before anything else; otherwise what follows the last
/// colon is a factor if it reads as a number. A leading `~` or `$HOME` is the home folder.
///
/// # Errors
/// An address, folders of both readings, folders of neither, a factor that is not finite, or a home folder that is not known.
pub fn parse_argument(argument: &str) -> Result<(PathBuf, f64), AdapterError> {
    if argument.contains("://") && !Path::new(argument).exists() {
        return Err(AdapterError::Address { argument: cut(argument), on_hub: hub_id_of(argument) });
    }
    let split = argument.rsplit_once(':').filter(|(folder, _)| !folder.is_empty());
    let Some((folder, number)) = split.and_then(|(folder, text)| Some((folder, (text, text.parse::<f64>().ok()?))))
    else {
        return Ok((home::expand(Path::new(argument))?, 1.0));
    };
    let (text, factor) = number;
    let cut = home::expand(Path::new(folder))?;
    let mut whole = cut.clone().into_os_string();
    whole.push(format!(":{text}"));
    let whole = PathBuf::from(whole);
    // `a/:2` is the way to say that `a` is meant: its name in the whole text ends before the colon.
    match (whole.is_dir(), cut.is_dir()) {
        (true, true) => Err(AdapterError::Ambiguous { folder: folder.into(), factor: text.into() }),
        (true, false) => Ok((whole, 1.0)),
        (false, _) if !factor.is_finite() => Err(AdapterError::Scale { argument: argument.into(), scale: text.into() }),
        (false, false) if cut.is_file() || whole.is_file() => {
            Err(AdapterError::AFile { path: if cut.is_file() { cut } else { whole } })
        }
        (false, false) if hub_id(&cut).is_none() => Err(AdapterError::NeitherFolder { whole, cut }),
        (false, _) => Ok((cut, factor)),
    }
}

/// The hub id in an address of the hub's own or in the `hf://` that data sets are named with.
fn hub_id_of(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let rest = rest.split(['?', '#']).next()?;
    let path = match scheme.to_ascii_lowercase().as_str() {
        "hf" => rest.strip_prefix("models/").unwrap_or(rest),
        "http" | "https" => {
            let (host, path) = rest.split_once('/')?;
            let is_hub =
                ["huggingface.co", "www.huggingface.co", "hf.co"].iter().any(|hub| host.eq_ignore_ascii_case(hub));
            is_hub.then_some(path)?
        }
        _ => return None,
    };
    let (path, factor) = match path.rsplit_once(':') {
        Some((path, number)) if number.parse::<f64>().is_ok() => (path, format!(":{number}")),
        _ => (path, String::new()),
    };
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let (owner, name) = (parts.next()?, parts.next()?);
    // Of two parts, but no model.
    if ["datasets", "spaces"].contains(&owner) {
        return None;
    }
    let id: RepoId = format!("{owner}/{name}").parse().ok()?;
    let revision = parts.next().filter(|part| ["tree", "blob", "resolve"].contains(part)).and(parts.next());
    let has_own = name.contains('@');
    match revision.filter(|revision| *revision != "main" && !has_own) {
        Some(revision) => Some(format!("{}@{revision}{factor}", id.repository())),
        None => Some(format!("{owner}/{name}{factor}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with folders of these names in it, and the reading of an argument there.
    fn read(folders: &[&str], argument: &str) -> Result<(String, f64), AdapterError> {
        let place = tempfile::tempdir().unwrap();
        for folder in folders {
            std::fs::create_dir_all(place.path().join(folder)).unwrap();
        }
        let (path, factor) = parse_argument(&format!("{}/{argument}", place.path().display()))?;
        Ok((path.strip_prefix(place.path()).unwrap().to_str().unwrap().to_owned(), factor))
    }

    #[test]
    fn a_number_behind_the_last_colon_is_the_factor() {
        for (argument, path, factor) in [
            ("a", "a", 1.0),
            ("a:0.5", "a", 0.5),
            ("a:-2", "a", -2.0),
            ("a:1e-1", "a", 0.1),
            ("a:0", "a", 0.0),
            ("a/:2", "a", 2.0),
            ("a:b", "a:b", 1.0),
            ("a:", "a:", 1.0),
            ("C:\\a:2", "C:\\a", 2.0),
        ] {
            let (found, number) = read(&["a", "C:\\a"], argument).unwrap();
            assert_eq!((found.trim_end_matches('/'), number), (path, factor), "{argument}");
        }
        let of = |text: &str| parse_argument(text).unwrap();
        assert_eq!(of(":2"), (":2".into(), 1.0));
        assert_eq!(of("owner/name@v1:0.5"), ("owner/name@v1".into(), 0.5), "a hub id");
        assert_eq!(of("owner/name"), ("owner/name".into(), 1.0));
    }

    #[test]
    fn a_folder_of_the_whole_name_comes_first() {
        for name in ["2026-01-05T12:30", "r:16", "a:nan", "a:2:1", "a:1e3", "C:\\runs:2", "a:inf"] {
            assert_eq!(read(&[name], name).unwrap(), (name.to_owned(), 1.0));
            assert_eq!(read(&[name], &format!("{name}/")).unwrap(), (name.to_owned(), 1.0));
            assert_eq!(read(&[name], &format!("{name}:0.5")).unwrap(), (name.to_owned(), 0.5));
            assert_eq!(read(&[name], &format!("{name}/:0.5")).unwrap(), (name.to_owned(), 0.5));
        }
    }

    #[test]
    fn two_readings_are_refused_and_both_ways_out_work() {
        let both = ["a", "a:2"];
        let error = read(&both, "a:2").unwrap_err();
        assert!(matches!(error, AdapterError::Ambiguous { .. }), "{error}");
        let hint = janus_core::Diagnose::hints(&error).join(" ");
        assert!(hint.contains("a/:2`") && hint.contains("a:2:1`"), "{hint}");
        assert_eq!(read(&both, "a/:2").unwrap(), ("a".into(), 2.0));
        assert_eq!(read(&both, "a:2:1").unwrap(), ("a:2".into(), 1.0));
        assert_eq!(read(&both, "a:2/").unwrap(), ("a:2".into(), 1.0));
        assert_eq!(read(&both, "a:3").unwrap(), ("a".into(), 3.0));
        // A file is no folder of that name.
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("a")).unwrap();
        std::fs::write(place.path().join("a:2"), "").unwrap();
        let argument = format!("{}/a:2", place.path().display());
        assert_eq!(parse_argument(&argument).unwrap(), (place.path().join("a"), 2.0));
    }

    #[test]
    fn where_neither_is_there_both_are_named() {
        let error = read(&["runs"], "runs/2026-01-05T12:30").unwrap_err().to_string();
        assert!(error.contains("runs/2026-01-05T12:30`") && error.contains("runs/2026-01-05T12`"), "{error}");
    }

    #[test]
    fn a_factor_that_is_not_finite_is_refused() {
        for argument in ["a:nan", "a:inf", "a:-inf", "a:1e999"] {
            let error = read(&["a"], argument).unwrap_err().to_string();
            assert!(error.contains("is not finite") && error.contains(argument), "{error}");
        }
    }

    #[test]
    fn an_address_is_none_of_the_hubs_names_and_leads_to_one() {
        for (argument, leads_to) in [
            ("https://huggingface.co/owner/name", Some("owner/name")),
            ("https://huggingface.co/owner/name/tree/v2?x=1", Some("owner/name@v2")),
            ("http://HF.co/owner/name/resolve/main/adapter_model.safetensors", Some("owner/name")),
            ("hf://owner/name:0.5", Some("owner/name:0.5")),
            ("hf://owner/name@v1", Some("owner/name@v1")),
            ("https://huggingface.co/datasets/owner/name", None),
            ("https://huggingface.co/owner", None),
            ("https://example.com/owner/name", None),
            ("https://example.com:8080", None),
            ("s3://bucket/adapter:0.5", None),
            ("file:///runs/mine", None),
        ] {
            let error = parse_argument(argument).unwrap_err();
            let (text, hint) = (error.to_string(), janus_core::Diagnose::hints(&error).join(" "));
            assert!(text.contains(argument) && text.contains("is an address"), "{text}");
            match leads_to {
                Some(id) => assert!(hint.contains(&format!("`--adapter {id}`")), "{argument}: {hint}"),
                None => assert!(hint.contains("`owner/name`") && hint.contains("folder"), "{argument}: {hint}"),
            }
        }
        let long = format!("https://example.com/{}", "x".repeat(1 << 20));
        assert!(parse_argument(&long).unwrap_err().to_string().len() < 500);
    }

    #[test]
    fn the_home_folder_is_put_in() {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap());
        assert_eq!(parse_argument("~").unwrap(), (home.clone(), 1.0));
        assert_eq!(parse_argument("~:0.5").unwrap(), (home.clone(), 0.5));
        assert_eq!(parse_argument("$HOME/no-such-adapter").unwrap(), (home.join("no-such-adapter"), 1.0));
        assert!(matches!(parse_argument("~bob/run:2"), Err(AdapterError::Home(_))));
    }
}
