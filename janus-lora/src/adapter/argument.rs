//! `DIR` and `DIR:scale`, as the command line names adapters.

use std::path::PathBuf;

use super::error::AdapterError;

/// Takes an adapter argument apart: the folder, and the factor on its scale, 1 where none is given. What follows the last
/// colon is a scale only if it reads as a number.
///
/// # Errors
/// A scale that is not finite.
pub fn parse_argument(argument: &str) -> Result<(PathBuf, f64), AdapterError> {
    if let Some((folder, scale)) = argument.rsplit_once(':')
        && !folder.is_empty()
        && let Ok(factor) = scale.parse::<f64>()
    {
        if !factor.is_finite() {
            return Err(AdapterError::Scale { argument: argument.into(), scale: scale.into() });
        }
        return Ok((folder.into(), factor));
    }
    Ok((argument.into(), 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_the_last_colon_is_the_scale() {
        let path = |text: &str, scale: f64| (PathBuf::from(text), scale);
        assert_eq!(parse_argument("runs/a").unwrap(), path("runs/a", 1.0));
        assert_eq!(parse_argument("runs/a:0.5").unwrap(), path("runs/a", 0.5));
        assert_eq!(parse_argument("runs/a:-2").unwrap(), path("runs/a", -2.0));
        assert_eq!(parse_argument("runs/a:1e-1").unwrap(), path("runs/a", 0.1));
        assert_eq!(parse_argument("C:\\runs\\a").unwrap(), path("C:\\runs\\a", 1.0));
        assert_eq!(parse_argument("C:\\runs\\a:2").unwrap(), path("C:\\runs\\a", 2.0));
        assert_eq!(parse_argument("a:b").unwrap(), path("a:b", 1.0));
        assert_eq!(parse_argument("a:").unwrap(), path("a:", 1.0));
        assert_eq!(parse_argument(":2").unwrap(), path(":2", 1.0));
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused() {
        for argument in ["a:nan", "a:inf", "a:-inf", "a:1e999"] {
            let error = parse_argument(argument).unwrap_err().to_string();
            assert!(error.contains("is not finite") && error.contains(argument), "{error}");
        }
    }
}
