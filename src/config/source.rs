//! From texts to a configuration: which key a text is at, where it came from, and every problem with it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::form::{Bytes, Count, Form, Found, Needs, Pattern, Span};
use super::{Config, KeyOf, RetentionRule, check, keys};

/// Variables of the environment that begin so are configuration, all of them.
const PREFIX: &str = "ROOMLOG__";

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A line of the file.
    File {
        /// The file, as it was named.
        name: String,
        /// From 1; 0 for the file as a whole.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
    /// A built-in default.
    Default,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key, as `section.key`; empty if the text could not be read so far.
    pub key: String,
    /// What is wrong, and what is needed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { name, line: 0 } => write!(f, "{name}: ")?,
            Origin::File { name, line } => write!(f, "{name}:{line}: ")?,
            Origin::Environment(variable) => write!(f, "{variable}: ")?,
            Origin::Flag(flag) => write!(f, "{flag}: ")?,
            Origin::Default => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// A flag of the command line that sets a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlagValue {
    /// The flag, as `--listen`.
    pub flag: &'static str,
    /// The key it sets, as `server.listen`.
    pub key: &'static str,
    /// The value, as in the environment.
    pub value: String,
}

impl Config {
    /// Reads the file, if one is named, and merges all sources. Certificate files must be there, too.
    ///
    /// `environment` is usually [`std::env::vars_os`]; variables that do not begin with `ROOMLOG__` are passed over.
    ///
    /// # Errors
    /// Every problem, not just the first.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[FlagValue],
    ) -> Result<Self, Vec<Problem>> {
        let text = match file.map(|path| (path.display().to_string(), std::fs::read_to_string(path))) {
            None => None,
            Some((name, Ok(text))) => Some((name, text)),
            Some((name, Err(error))) => {
                let message = format!("cannot be read: {error}");
                return Err(vec![Problem { origin: Origin::File { name, line: 0 }, key: String::new(), message }]);
            }
        };
        let text = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        Self::merge(text, environment, flags, check::files)
    }

    /// Merges all sources; the file is given as its name and its text, and nothing is read from the disk.
    ///
    /// # Errors
    /// Every problem, not just the first.
    pub fn parse(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[FlagValue],
    ) -> Result<Self, Vec<Problem>> {
        Self::merge(file, environment, flags, |_| Vec::new())
    }

    fn merge(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[FlagValue],
        more_checks: fn(&Self) -> Vec<check::Clash>,
    ) -> Result<Self, Vec<Problem>> {
        let mut merge = Merge::default();
        if let Some((name, text)) = file {
            merge.file(name, text);
        }
        merge.environment(environment);
        for FlagValue { flag, key, value } in flags {
            merge.set(Origin::Flag(flag), key, &Found::Untyped(value.clone()));
        }
        merge.finish(more_checks)
    }
}

#[derive(Default)]
pub(super) struct Merge {
    config: Config,
    problems: Vec<Problem>,
    /// Where the value of each key that was set came from.
    pub(super) origins: HashMap<String, Origin>,
    /// Keys that hold their default because what was given could not be read.
    unread: HashSet<String>,
}

impl Merge {
    fn problem(&mut self, origin: Origin, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { origin, key: key.into(), message: message.into() });
    }

    fn set(&mut self, origin: Origin, path: &str, found: &Found) {
        let Some(key) = keys().find(|key| key.is(path)) else {
            let message = format!("unknown key; the nearest known key is {}", nearest_key(path));
            return self.problem(origin, path, message);
        };
        if (key.set)(&mut self.config, found) {
            self.unread.remove(path);
            self.origins.insert(path.to_owned(), origin);
        } else {
            self.unread.insert(path.to_owned());
            self.problem(origin, path, format!("found {found}, needed {}", key.needed));
        }
    }

    pub(super) fn file(&mut self, name: &str, text: &str) {
        let at = |position: usize| {
            let line = 1 + text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count();
            Origin::File { name: name.to_owned(), line }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.problem(at(error.span().map_or(0, |span| span.start)), "", error.message().trim());
        }
        for (section, value) in table.get_ref() {
            let origin = at(section.span().start);
            let section: &str = section.get_ref();
            match value.get_ref() {
                DeValue::Array(rules) if section == "retention" => {
                    rules.iter().for_each(|rule| self.rule(&at, rule));
                }
                _ if section == "retention" => {
                    self.problem(origin, section, "needed rules, each beginning with [[retention]]");
                }
                DeValue::Table(entries) if is_section(section) => {
                    for (key, value) in entries {
                        self.set(at(key.span().start), &format!("{section}.{}", key.get_ref()), &found(value));
                    }
                }
                value if is_section(section) => {
                    self.problem(origin, section, format!("found {}, needed a section [{section}]", value.type_str()));
                }
                DeValue::Table(_) => {
                    let message = format!("unknown section; the nearest known section is {}", nearest_section(section));
                    self.problem(origin, section, message);
                }
                _ => {
                    let message = format!("unknown key; the nearest known key is {}", nearest_key(section));
                    self.problem(origin, section, message);
                }
            }
        }
        // The table is sorted by name; people read from top to bottom.
        self.problems.sort_by_key(|problem| match problem.origin {
            Origin::File { line, .. } => line,
            _ => 0,
        });
    }

    fn rule(&mut self, at: &impl Fn(usize) -> Origin, rule: &Spanned<DeValue<'_>>) {
        const NAMES: [&str; 4] = ["rooms", "max_age", "max_bytes", "max_records"];

        fn into<F: Form<T>, T>(place: &mut Option<T>, found: &Found) -> Result<(), &'static str> {
            *place = Some(F::read(found).ok_or(<F as Needs>::NEEDED)?);
            Ok(())
        }

        let DeValue::Table(entries) = rule.get_ref() else {
            return self.problem(at(rule.span().start), "retention", "needed rules, each beginning with [[retention]]");
        };
        let (mut rooms, mut rule_read) = (None, RetentionRule::default());
        for (name, value) in entries {
            let origin = at(name.span().start);
            let name: &str = name.get_ref();
            let found = found(value);
            let read = match name {
                "rooms" => into::<Pattern, String>(&mut rooms, &found),
                "max_age" => into::<Span, _>(&mut rule_read.max_age, &found),
                "max_bytes" => into::<Bytes, _>(&mut rule_read.max_bytes, &found),
                "max_records" => into::<Count, _>(&mut rule_read.max_records, &found),
                _ => {
                    let nearest = NAMES.into_iter().min_by_key(|known| distance(known, name)).unwrap_or_default();
                    let message = format!("unknown key; the nearest known key is retention.{nearest}");
                    self.problem(origin, format!("retention.{name}"), message);
                    continue;
                }
            };
            if let Err(needed) = read {
                self.problem(origin, format!("retention.{name}"), format!("found {found}, needed {needed}"));
            }
        }
        if !entries.iter().any(|(name, _)| name.get_ref() == "rooms") {
            let message = "missing; each rule says which rooms it is for, and \"*\" is all";
            self.problem(at(rule.span().start), "retention.rooms", message);
        }
        rule_read.rooms = rooms.unwrap_or_default();
        self.config.retention.push(rule_read);
    }

    fn environment(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut variables: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        variables.sort();
        for (name, value) in variables {
            let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Environment(name);
            if path == "retention" || path.starts_with("retention.") {
                self.problem(origin, path, "retention rules are given in the file only");
                continue;
            }
            match value.into_string() {
                Ok(value) => self.set(origin, &path, &Found::Untyped(value)),
                Err(_) => self.problem(origin, path, "the value is not UTF-8"),
            }
        }
    }

    fn finish(mut self, more_checks: fn(&Config) -> Vec<check::Clash>) -> Result<Config, Vec<Problem>> {
        let mut clashes = check::values(&self.config);
        clashes.extend(more_checks(&self.config));
        for check::Clash { keys, message } in clashes {
            // What a default in the place of an unreadable value would say is noise.
            if keys.iter().any(|key| self.unread.contains(*key)) {
                continue;
            }
            let culprit = keys.iter().find(|key| self.origins.contains_key(**key)).unwrap_or(&keys[0]);
            let origin = self.origins.get(*culprit).cloned().unwrap_or(Origin::Default);
            self.problem(origin, *culprit, message);
        }
        if self.problems.is_empty() { Ok(self.config) } else { Err(self.problems) }
    }
}

impl KeyOf {
    fn is(&self, path: &str) -> bool {
        path.split_once('.').is_some_and(|(section, name)| section == self.section && name == self.name)
    }
}

fn is_section(name: &str) -> bool {
    keys().any(|key| key.section == name)
}

fn nearest_section(name: &str) -> &'static str {
    let sections = keys().map(|key| key.section).chain(["retention"]);
    sections.min_by_key(|known| distance(known, name)).unwrap_or_default()
}

/// The known key with the nearest name; a name that is right but stands in another section is nearest of all.
fn nearest_key(path: &str) -> String {
    let (section, name) = path.split_once('.').unwrap_or(("", path));
    keys()
        .min_by_key(|key| 2 * distance(key.name, name) + usize::from(key.section != section))
        .map(|key| format!("{}.{}", key.section, key.name))
        .unwrap_or_default()
}

/// How many letters must be added, taken away or replaced to make one text of the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn found(value: &Spanned<DeValue<'_>>) -> Found {
    match value.get_ref() {
        DeValue::Boolean(value) => Found::Boolean(*value),
        DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
            .map_or_else(|_| Found::Other(format!("the number {}", value.as_str())), Found::Integer),
        DeValue::String(text) => Found::Text(text.clone().into_owned()),
        DeValue::Array(values) => Found::List(values.iter().map(found).collect()),
        DeValue::Float(value) => Found::Other(format!("the number {}", value.as_str())),
        DeValue::Datetime(value) => Found::Other(format!("the date {value}")),
        DeValue::Table(_) => Found::Other("a table".to_owned()),
    }
}
