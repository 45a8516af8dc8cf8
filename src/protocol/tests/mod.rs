//! The protocol's tests: the page against the codec, bytes of every version, and hostile input.

mod draw;
mod examples;
mod golden;
mod page;
mod properties;

use super::examine::{Any, rebuild, survives, walk};
use super::{Batch, ServerFrame, StreamHead};
use crate::types::Offset;

/// The bytes of hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|character| !character.is_whitespace())
        .map(|digit| u8::try_from(digit.to_digit(16).unwrap_or_else(|| panic!("{digit:?} in {text:?}"))).expect("< 16"))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
