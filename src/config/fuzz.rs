//! Whatever a configuration says: it is one, or every problem is told with its place.

use std::ffi::OsString;

use super::{Config, Origin};

/// See [`crate::fuzzing::config`].
pub(crate) fn read(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let environment: Vec<(OsString, OsString)> =
        parts.filter_map(|part| part.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
    let parse = || Config::parse(Some(("broker.toml", file)), environment.iter().cloned(), &[]);
    let parsed = parse();
    assert_eq!(parsed, parse(), "the same is read in two ways");
    let Err(problems) = parsed else { return };
    assert!(!problems.is_empty(), "a refusal without a reason");
    for problem in problems {
        assert!(!problem.message.is_empty() && !problem.to_string().is_empty(), "a problem without words");
        if let Origin::File { line, .. } = problem.origin {
            // A file may end within a value, behind its last line.
            assert!(line <= file.split('\n').count(), "a problem in line {line}");
        }
    }
}
