//! What may be depended upon: deny.toml, enforced with cargo alone, so that the ordinary tests need no other tool.
//!
//! Not done here, because it needs the advisory database: looking for new advisories. `cargo deny check` does that
//! with the same file.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const POLICY: &str = include_str!("../deny.toml");

struct Package {
    name: String,
    version: String,
    licence: String,
    /// `None` for a package of this workspace.
    source: Option<String>,
}

/// Every package of the lock file, for all platforms and features.
fn packages() -> Vec<Package> {
    let metadata = |offline: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["metadata", "--locked", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .args(offline)
            .output()
            .expect("cargo can be started")
    };
    // A build fetches only what its own platform needs, so the manifests of the others may not be here yet.
    let mut output = metadata(&["--offline"]);
    if !output.status.success() {
        output = metadata(&[]);
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let packages = metadata["packages"].as_array().expect("a list of packages").iter();
    packages
        .map(|package| Package {
            name: text(&package["name"]).expect("a name"),
            version: text(&package["version"]).expect("a version"),
            licence: text(&package["license"]).unwrap_or_default(),
            source: text(&package["source"]),
        })
        .collect()
}

fn policy() -> toml::Table {
    POLICY.parse().expect("deny.toml is TOML")
}

fn strings<'a>(policy: &'a toml::Table, section: &str, key: &str) -> Vec<&'a str> {
    let list = policy[section][key].as_array().expect("a list").iter();
    list.map(|value| value.as_str().expect("a text")).collect()
}

/// Whether a licence expression is satisfied by the allowed ones. `OR` lets us choose, `AND` does not; some old
/// packages write `/` for `OR`.
fn satisfied(expression: &str, allowed: &[&str]) -> Result<bool, String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<_> = spaced.split_whitespace().rev().collect();
    let result = any(&mut words, allowed)?;
    if words.is_empty() { Ok(result) } else { Err(format!("cannot be read: {expression:?}")) }
}

fn any(words: &mut Vec<&str>, allowed: &[&str]) -> Result<bool, String> {
    let mut result = all(words, allowed)?;
    while words.pop_if(|word| *word == "OR").is_some() {
        result |= all(words, allowed)?;
    }
    Ok(result)
}

fn all(words: &mut Vec<&str>, allowed: &[&str]) -> Result<bool, String> {
    let mut result = one(words, allowed)?;
    while words.pop_if(|word| *word == "AND").is_some() {
        result &= one(words, allowed)?;
    }
    Ok(result)
}

fn one(words: &mut Vec<&str>, allowed: &[&str]) -> Result<bool, String> {
    match words.pop() {
        Some("(") => {
            let result = any(words, allowed)?;
            if words.pop() == Some(")") { Ok(result) } else { Err("a parenthesis is not closed".to_owned()) }
        }
        Some(word) if !["OR", "AND", "WITH", ")"].contains(&word) => {
            if words.pop_if(|word| *word == "WITH").is_none() {
                return Ok(allowed.contains(&word));
            }
            let exception = words.pop().ok_or("nothing follows WITH")?;
            Ok(allowed.contains(&format!("{word} WITH {exception}").as_str()))
        }
        other => Err(format!("a licence was expected, not {other:?}")),
    }
}

/// Orders versions as numbers; what follows `-` or `+` makes `1.0.0-rc` less than `1.0.0`, as it should.
fn compare(left: &str, right: &str) -> Ordering {
    let parts = |version: &str| {
        let version = version.split('+').next().unwrap_or_default();
        let (numbers, early) = version.split_once('-').map_or((version, false), |(numbers, _)| (numbers, true));
        let numbers: Vec<u64> = numbers.split('.').map(|part| part.parse().expect("a number")).collect();
        (numbers, !early)
    };
    parts(left).cmp(&parts(right))
}

/// Whether a version is in a range such as `>=0.9.0, <0.9.3`; an empty one holds all.
fn within(version: &str, range: &str) -> bool {
    range.split(',').map(str::trim).filter(|bound| !bound.is_empty()).all(|bound| {
        if let Some(least) = bound.strip_prefix(">=") {
            compare(version, least) != Ordering::Less
        } else {
            let above = bound.strip_prefix('<').unwrap_or_else(|| panic!("only < and >= are read here, not {bound:?}"));
            compare(version, above) == Ordering::Less
        }
    })
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "Apache-2.0", "ISC"];
    for (expression, expected) in [
        ("MIT", Ok(true)),
        ("GPL-3.0", Ok(false)),
        ("GPL-3.0 OR MIT", Ok(true)),
        ("MIT/GPL-3.0", Ok(true)),
        ("MIT AND GPL-3.0", Ok(false)),
        ("MIT AND ISC", Ok(true)),
        ("GPL-3.0 OR MIT AND ISC", Ok(true)),
        ("(GPL-3.0 OR MIT) AND BSD-4-Clause", Ok(false)),
        ("MIT OR Apache-2.0 AND GPL-3.0", Ok(true)),
        ("Apache-2.0 WITH LLVM-exception", Ok(false)),
        ("Apache-2.0 WITH LLVM-exception OR MIT", Ok(true)),
    ] {
        assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
    }
    for expression in ["", "MIT OR", "(MIT", "MIT ISC", "OR MIT", "MIT WITH"] {
        assert!(satisfied(expression, &allowed).is_err(), "{expression}");
    }
}

#[test]
fn versions_are_compared_as_numbers() {
    for (left, right, expected) in [
        ("0.11.9", "0.11.18", Ordering::Less),
        ("0.11.18", "0.11.18", Ordering::Equal),
        ("1.0.0", "0.99.99", Ordering::Greater),
        ("1.0.0-rc.1", "1.0.0", Ordering::Less),
        ("1.2.1+spec-1.1.0", "1.2.1", Ordering::Equal),
    ] {
        assert_eq!(compare(left, right), expected, "{left} {right}");
    }
    for (version, range, expected) in [
        ("0.9.2", "<0.9.3", true),
        ("0.9.3", "<0.9.3", false),
        ("0.8.8", ">=0.9.0, <0.9.3", false),
        ("0.9.0", ">=0.9.0, <0.9.3", true),
        ("0.9.0", "", true),
    ] {
        assert_eq!(within(version, range), expected, "{version} {range}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let policy = policy();
    let allowed = strings(&policy, "licenses", "allow");
    let refused: Vec<_> = packages()
        .iter()
        .filter_map(|package| match satisfied(&package.licence, &allowed) {
            Ok(true) => None,
            Ok(false) => Some(format!("{} {}: {}", package.name, package.version, package.licence)),
            Err(why) => Some(format!("{} {}: {why}", package.name, package.version)),
        })
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn every_dependency_comes_from_a_source_that_deny_toml_allows() {
    let policy = policy();
    let allowed: Vec<_> = strings(&policy, "sources", "allow-registry");
    let refused: Vec<_> = packages()
        .iter()
        .filter_map(|package| Some((package, package.source.as_deref()?)))
        .filter(|(_, source)| !source.strip_prefix("registry+").is_some_and(|registry| allowed.contains(&registry)))
        .map(|(package, source)| format!("{} {}: {source}", package.name, package.version))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn nothing_that_deny_toml_bans_is_depended_upon() {
    let policy = policy();
    let packages = packages();
    let mut found = Vec::new();
    for ban in policy["bans"]["deny"].as_array().expect("a list") {
        let (spec, reason) = (ban["crate"].as_str().expect("a crate"), ban["reason"].as_str().expect("a reason"));
        let (name, range) = spec.split_once(':').unwrap_or((spec, ""));
        assert!(
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
            "cannot be read: {spec}"
        );
        for package in packages.iter().filter(|package| package.name == name && within(&package.version, range)) {
            found.push(format!("{name} {}: {reason}", package.version));
        }
    }
    assert!(found.is_empty(), "banned by deny.toml:\n{}", found.join("\n"));
}

#[test]
fn every_least_version_is_of_something_we_depend_upon() {
    let policy = policy();
    let names: BTreeSet<_> = packages().into_iter().map(|package| package.name).collect();
    for ban in policy["bans"]["deny"].as_array().expect("a list") {
        if let Some((name, _)) = ban["crate"].as_str().and_then(|spec| spec.split_once(':')) {
            assert!(names.contains(name), "{name} has a least version in deny.toml, but nothing depends on it");
        }
    }
}

#[test]
fn every_exception_to_an_advisory_says_of_what_and_why() {
    let policy = policy();
    let names: BTreeSet<_> = packages().into_iter().map(|package| package.name).collect();
    for exception in policy["advisories"]["ignore"].as_array().expect("a list") {
        let id = exception["id"].as_str().expect("an id");
        let reason = exception["reason"].as_str().expect("a reason");
        let name = reason.split([':', ',']).next().unwrap_or_default();
        assert!(id.starts_with("RUSTSEC-"), "{id}");
        assert!(names.contains(name), "{id} is excepted for {name}, but nothing depends on it");
    }
}

#[test]
fn the_rationale_names_every_dependency_of_the_manifest() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("Cargo.toml is TOML");
    let rationale = include_str!("../docs/rationale.md");
    let dependencies = rationale.split("## Dependencies").nth(1).expect("the section about dependencies");
    let words: BTreeSet<_> = dependencies.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).collect();
    for section in ["dependencies", "dev-dependencies"] {
        for name in manifest[section].as_table().expect("a table").keys() {
            assert!(words.contains(name.as_str()), "docs/rationale.md does not say why {name} is depended upon");
        }
    }
}

/// Not a failure: most of them come with the few libraries that are behind the others.
#[test]
fn packages_in_several_versions_are_reported() {
    let mut versions = BTreeMap::<_, Vec<_>>::new();
    for package in packages() {
        versions.entry(package.name).or_default().push(package.version);
    }
    assert!(versions.contains_key("roomlog"));
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        println!("warning: {name} in several versions: {}", versions.join(", "));
    }
}
