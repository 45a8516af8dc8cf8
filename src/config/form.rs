//! The forms that values take in a configuration: sizes and times with units, addresses, choices, lists.
//!
//! A form reads what was found or says what it needs; the text that names the place is made elsewhere.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Compression, Durability, Level, LogFormat};

/// What stands at a key.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Found {
    Boolean(bool),
    Integer(i64),
    Text(String),
    List(Vec<Found>),
    /// From the environment or a flag: a text that may mean any of the others.
    Untyped(String),
    /// What no form takes, described.
    Other(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "the number {value}"),
            Self::Text(value) | Self::Untyped(value) => write!(f, "the text {value:?}"),
            Self::List(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                write!(f, "a list of [{}]", values.join(", "))
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl Found {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Untyped(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Untyped(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn list<T>(&self, item: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        match self {
            Self::List(items) => items.iter().map(|found| item(found.text()?)).collect(),
            Self::Untyped(text) => text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect(),
            _ => None,
        }
    }
}

/// What a form needs, for the message when it finds something else.
pub(crate) trait Needs {
    const NEEDED: &'static str;
}

/// Reads a value of type `T`.
pub(crate) trait Form<T>: Needs {
    fn read(found: &Found) -> Option<T>;
}

macro_rules! forms {
    ($($(#[$doc:meta])* $form:ident, $needed:literal;)*) => {
        $($(#[$doc])* pub(crate) struct $form; impl Needs for $form { const NEEDED: &'static str = $needed; })*
    };
}

forms! {
    /// Yes or no.
    Flag, "true or false";
    /// How many.
    Count, "a whole number";
    /// A size.
    Bytes, "a size such as \"64 KiB\" (B, KiB, MiB, GiB, TiB) or a number of bytes";
    /// A length of time.
    Span, "a time such as \"30 s\" (ms, s, min, h, d)";
    /// A socket to listen on.
    Listen, "an address such as \"127.0.0.1:7400\", or \"off\"";
    /// A directory.
    Directory, "a path";
    /// A file.
    Path, "a path, or \"\" for none";
    /// A pattern of room names.
    Pattern, "a pattern of room names such as \"support/*\"";
    /// Web origins.
    Origins, "a list of origins such as [\"https://chat.example.org\"]";
    /// Names of this server.
    Hosts, "a list of names without port such as [\"chat.example.org\"]";
    /// Addresses of others.
    Networks, "a list of addresses or networks such as [\"10.0.0.0/8\"]";
}

impl Form<bool> for Flag {
    fn read(found: &Found) -> Option<bool> {
        match found {
            Found::Boolean(value) => Some(*value),
            Found::Untyped(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

impl Form<u64> for Count {
    fn read(found: &Found) -> Option<u64> {
        found.number()
    }
}

impl Form<u8> for Count {
    fn read(found: &Found) -> Option<u8> {
        found.number()?.try_into().ok()
    }
}

impl Form<usize> for Count {
    fn read(found: &Found) -> Option<usize> {
        found.number()?.try_into().ok()
    }
}

impl Form<u64> for Bytes {
    fn read(found: &Found) -> Option<u64> {
        found.number().or_else(|| {
            with_unit(
                found.text()?,
                &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)],
            )
        })
    }
}

impl Form<usize> for Bytes {
    fn read(found: &Found) -> Option<usize> {
        <Self as Form<u64>>::read(found)?.try_into().ok()
    }
}

const MINUTE_MS: u64 = 60_000;

impl Form<Duration> for Span {
    fn read(found: &Found) -> Option<Duration> {
        let units = [("ms", 1), ("s", 1_000), ("min", MINUTE_MS), ("h", 60 * MINUTE_MS), ("d", 24 * 60 * MINUTE_MS)];
        with_unit(found.text()?, &units).map(Duration::from_millis)
    }
}

/// A whole number with one of the units behind it, with or without spaces between; `None` also if it overflows.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl Form<Option<SocketAddr>> for Listen {
    fn read(found: &Found) -> Option<Option<SocketAddr>> {
        match found.text()?.trim() {
            "off" => Some(None),
            address => address.parse().ok().map(Some),
        }
    }
}

impl Form<Option<PathBuf>> for Path {
    fn read(found: &Found) -> Option<Option<PathBuf>> {
        let text = found.text()?;
        Some((!text.is_empty()).then(|| PathBuf::from(text)))
    }
}

impl Form<PathBuf> for Directory {
    fn read(found: &Found) -> Option<PathBuf> {
        found.text().filter(|text| !text.is_empty()).map(PathBuf::from)
    }
}

impl Form<String> for Pattern {
    fn read(found: &Found) -> Option<String> {
        found.text().filter(|text| !text.is_empty()).map(str::to_owned)
    }
}

impl Form<Vec<String>> for Origins {
    fn read(found: &Found) -> Option<Vec<String>> {
        found.list(|text| {
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
            // A browser writes an origin in small letters, without a path and without a default port.
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
            (!host.is_empty() && host.bytes().all(plain)).then(|| text.to_owned())
        })
    }
}

impl Form<Vec<String>> for Hosts {
    fn read(found: &Found) -> Option<Vec<String>> {
        found.list(|text| {
            let literal = text.parse::<IpAddr>().is_ok();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            (literal || !text.is_empty() && text.bytes().all(plain)).then(|| text.to_ascii_lowercase())
        })
    }
}

impl Form<Vec<Network>> for Networks {
    fn read(found: &Found) -> Option<Vec<Network>> {
        found.list(|text| text.parse().ok())
    }
}

/// One of a fixed set of words.
pub(crate) struct Choice<W>(PhantomData<W>);

/// The words of a choice, and what they mean.
pub(crate) trait Words {
    type Value: Copy + 'static;
    const NEEDED: &'static str;
    const WORDS: &'static [(&'static str, Self::Value)];
}

impl<W: Words> Needs for Choice<W> {
    const NEEDED: &'static str = W::NEEDED;
}

impl<W: Words> Form<W::Value> for Choice<W> {
    fn read(found: &Found) -> Option<W::Value> {
        let text = found.text()?.trim();
        W::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }
}

macro_rules! words {
    ($($words:ident: $value:ty, $needed:literal, [$($word:literal => $variant:ident),*];)*) => {
        $(
            pub(crate) struct $words;
            impl Words for $words {
                type Value = $value;
                const NEEDED: &'static str = $needed;
                const WORDS: &'static [(&'static str, $value)] = &[$(($word, <$value>::$variant)),*];
            }
        )*
    };
}

words! {
    Durabilities: Durability, "\"fsync\", \"os\" or \"memory\"", ["fsync" => Fsync, "os" => Os, "memory" => Memory];
    Compressions: Compression, "\"lz4\" or \"none\"", ["lz4" => Lz4, "none" => None];
    Levels: Level, "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
        ["off" => Off, "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, "trace" => Trace];
    Styles: LogFormat, "\"text\" or \"json\"", ["text" => Text, "json" => Json];
}

/// A range of addresses: an address and how many of its leading bits count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl Network {
    /// Whether an address lies in it. An IPv4 address written as IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.prefix_bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.prefix_bits
            }
            _ => false,
        }
    }
}

/// The text is not an address, or the number behind the slash is larger than the address has bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an address or a network")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix.map_or(Ok(bits_max), str::parse).map_err(|_| NotANetwork)?;
        if prefix_bits > bits_max { Err(NotANetwork) } else { Ok(Self { address, prefix_bits }) }
    }
}
