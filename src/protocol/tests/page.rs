//! `docs/protocol.md` says what the code does: its examples, and its tables.

use std::collections::{BTreeMap, BTreeSet};

use super::examples::{Example, examples};
use super::properties::bytes_are_nested;
use super::*;
use crate::protocol::{Close, Number, WelcomeLimits, frame_into, split_frame};
use crate::types::{Advice, Code, Limits};

const PAGE: &str = include_str!("../../../docs/protocol.md");

/// The examples of the page: name → lines of (bytes, meaning).
pub(super) fn blocks() -> BTreeMap<&'static str, Vec<(Vec<u8>, &'static str)>> {
    let mut blocks = BTreeMap::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let mut fields: Vec<(Vec<u8>, &str)> = Vec::new();
        let mut pending = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != "```") {
            let (digits, meaning) = line.split_once('#').unwrap_or((line, ""));
            pending.extend(unhex(digits));
            if !meaning.is_empty() {
                fields.push((std::mem::take(&mut pending), meaning.trim()));
            }
        }
        assert!(pending.is_empty(), "the last line of {name} has no meaning");
        assert!(blocks.insert(name, fields).is_none(), "{name} is there twice");
    }
    blocks
}

/// The rows of the table behind a mark, as cells.
fn table(mark: &str) -> Vec<Vec<&'static str>> {
    let start = PAGE.find(&format!("<!-- {mark} -->")).unwrap_or_else(|| panic!("no table {mark}"));
    let end = start + PAGE[start..].find("<!-- end -->").expect("the table ends");
    let rows = PAGE[start..end].lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// `CursorSet` → `cursor_set`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (at, character) in name.char_indices() {
        if character.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(character.to_lowercase());
    }
    out
}

#[test]
fn every_example_is_what_the_codec_writes_and_reads() {
    let mut blocks = blocks();
    let (mut numbers, mut codes) = (Vec::new(), Vec::new());
    for (name, example) in examples() {
        let fields = blocks.remove(name).unwrap_or_else(|| panic!("the page has no example {name}"));
        let bytes: Vec<u8> = fields.into_iter().flat_map(|(bytes, _)| bytes).collect();
        match example {
            Example::Bytes(written) => assert_eq!(hex(&bytes), hex(&written), "{name}"),
            Example::Body { written, records } => {
                assert_eq!(hex(&bytes), hex(&written), "{name}");
                let batch = Batch::parse(&bytes).expect(name);
                batch.check().expect(name);
                let read: Result<Vec<_>, _> = batch.records(records[0].prev).collect();
                assert_eq!(read.expect(name), records, "{name}");
            }
            Example::Any(head @ Any::Head(_)) => {
                assert_eq!(hex(&bytes), hex(&head.bytes()), "{name}");
                for end in 0..bytes.len() {
                    assert_eq!(StreamHead::parse(&bytes[..end]), Ok(None), "{name}, {end} bytes of it");
                }
                let (read, taken) = StreamHead::parse(&bytes).expect(name).expect("all of it is there");
                assert_eq!((Any::Head(read), taken), (head, bytes.len()), "{name}");
            }
            Example::Any(value) => {
                let mut written = Vec::new();
                frame_into(&mut written, |out| out.extend(value.bytes()));
                assert_eq!(hex(&bytes), hex(&written), "{name}");
                let (frame, taken) = split_frame(&bytes, Limits::CEILINGS.frame_bytes).expect(name).expect("whole");
                assert_eq!(taken, bytes.len(), "{name}");
                assert_eq!(Any::parse(frame).expect(name), Some(value.clone()), "{name}");
                numbers.push(frame[0]);
                if let Any::Server(ServerFrame::Error(fault)) = value {
                    codes.push(fault.code);
                }
            }
        }
    }
    assert!(blocks.is_empty(), "examples without a value: {:?}", blocks.keys());
    for number in Number::ALL {
        assert!(numbers.contains(&(*number as u8)), "no example of {number:?}");
    }
    for code in Code::ALL {
        assert!(codes.contains(&code.number()), "no error of {code}");
    }
}

#[test]
fn table_of_numbers_is_that_of_the_code() {
    let written: Vec<_> = table("numbers").iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    let real: Vec<_> =
        Number::ALL.iter().map(|number| format!("{} {}", *number as u8, snake(&format!("{number:?}")))).collect();
    assert_eq!(written, real);
    for row in table("numbers") {
        let number: u8 = row[0].parse().expect("a number");
        let sender = if number < 64 { "client" } else { "server" };
        assert_eq!(row[2], sender, "{}", row[1]);
        assert_eq!(row[3].contains("skipped"), Number::ignorable(number), "{}", row[1]);
        assert_eq!(row[4] == "`not_supported`", (10..64).contains(&number), "{}", row[1]);
    }
}

#[test]
fn table_of_codes_is_that_of_the_code() {
    let written: Vec<_> = table("codes").into_iter().map(|row| row[..4].join(" | ")).collect();
    let real: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let retry = if code.advice() == Advice::Retry { "yes" } else { "no" };
            format!("{} | {} | {} | {retry}", code.number(), code.name(), code.sentence())
        })
        .collect();
    assert_eq!(written, real);
}

#[test]
fn table_of_close_codes_is_that_of_the_code() {
    for row in table("closes") {
        let code = *Code::ALL.iter().find(|code| code.name() == row[1]).unwrap_or_else(|| panic!("no code {}", row[1]));
        let close = Close { code, reconnect: row[2] == "yes" };
        assert_eq!((row[3], row[4]), (&*close.websocket().to_string(), &*close.quic().to_string()), "{}", row[0]);
    }
}

#[test]
fn table_of_limits_has_the_defaults_in_the_order_of_the_welcome() {
    // The names and values as the struct's own debug form tells them, in the order of its fields.
    let debug = format!("{:?}", WelcomeLimits::from(&Limits::default()));
    let fields = debug.trim_start_matches("WelcomeLimits { ").trim_end_matches(" }");
    let real: Vec<_> = fields.split(", ").map(str::to_owned).collect();
    let written: Vec<_> = table("limits").iter().map(|row| format!("{}: {}", row[0], row[1])).collect();
    assert_eq!(written, real);
}

#[test]
fn bounds_named_in_the_text_are_those_of_the_code() {
    let ceilings = Limits::CEILINGS;
    let grouped = |value: usize| {
        let digits = value.to_string();
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    };
    for sentence in [
        format!("| headers of a record, ceiling | {} |", ceilings.headers),
        format!("room_list, ceiling | {} |", grouped(ceilings.rooms_per_session)),
        format!("| deliveries of a page, ceiling | {} |", grouped(ceilings.page_deliveries)),
        format!("| any frame, with its length, ceiling | {} bytes |", grouped(ceilings.frame_bytes)),
        format!("and {} by default", grouped(Limits::default().frame_bytes_max())),
        format!("within {} seconds", Limits::default().handshake_timeout.as_secs()),
        format!("A body is at most {} bytes", grouped(crate::protocol::BATCH_BYTES_MAX)),
        format!("A stream head is at most {} bytes", StreamHead::BYTES_MAX),
    ] {
        assert!(PAGE.contains(&sentence), "the page does not say: {sentence}");
    }
}

/// The integers of the page's field tables: name → widths in bits that it has there.
fn widths() -> BTreeMap<&'static str, BTreeSet<u32>> {
    let mut widths: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for row in PAGE.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, ..] = cells[..] else { continue };
        let kind = kind.trim_matches('`').trim_start_matches("option<").trim_end_matches('>');
        match kind {
            "u16" | "u32" | "u64" => widths.entry(name).or_default().insert(kind[1..].parse().expect("a width")),
            "time" => widths.entry(name).or_default().insert(64),
            _ => continue,
        };
    }
    widths
}

#[test]
fn integers_are_as_wide_as_the_tables_say() {
    let widths = widths();
    let (mut tried, mut wide) = (BTreeSet::new(), 0);
    for (name, fields) in blocks() {
        if !fields[0].1.starts_with("length") {
            continue;
        }
        let bytes: Vec<u8> = fields.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut at = 0;
        for (field, meaning) in &fields {
            let place = at;
            at += field.len();
            let Some((label, value)) = meaning.split_once(": ") else { continue };
            let label = label.rsplit(", ").next().expect("a name");
            // A code stands with its name; the index of a variant stands with its name too, and is not meant.
            let digits = if label == "code" { value.split(' ').next().unwrap_or_default() } else { value };
            let is_integer = digits.parse::<u64>().is_ok();
            let Some(widths) = widths.get(label).filter(|widths| widths.len() == 1) else { continue };
            if !is_integer || value.contains(" byte") || value.contains(" element") || bytes_are_nested(&fields, place)
            {
                continue;
            }
            let width = *widths.first().expect("one");
            // The smallest value that is too wide for this type, or a value that only a u64 holds.
            let other = if width == 64 { 1_u64 << 32 } else { 1 << width };
            let mut changed = bytes[..place].to_vec();
            crate::protocol::encode_into(&mut changed, &other);
            changed.extend_from_slice(&bytes[at..]);
            let read = Any::parse(&changed[fields[0].0.len()..]);
            assert_eq!(read.is_ok(), width == 64, "{name}: {label} is not {width} bits wide: {read:?}");
            tried.insert(label);
            wide += u32::from(width == 64);
        }
    }
    assert!(tried.len() > 20 && wide > 40, "only {tried:?} were found, {wide} of them wide");
}
