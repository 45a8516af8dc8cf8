//! Bytes that were written once and stay readable for ever: `tests/golden/v1`. Never change one; add.

use super::*;
use crate::protocol::{Number, split_frame};
use crate::types::Limits;

const FRAMES: &str = include_str!("../../../tests/golden/v1/frames.hex");

const BATCHES: &[(&str, u32, &str)] = &[
    ("batch_one", 1, include_str!("../../../tests/golden/v1/batch_one.hex")),
    ("batch_runs", 6, include_str!("../../../tests/golden/v1/batch_runs.hex")),
    ("batch_step", 3, include_str!("../../../tests/golden/v1/batch_step.hex")),
    ("batch_headers", 1, include_str!("../../../tests/golden/v1/batch_headers.hex")),
    ("batch_extension", 1, include_str!("../../../tests/golden/v1/batch_extension.hex")),
    ("batch_reference", 2, include_str!("../../../tests/golden/v1/batch_reference.hex")),
    ("batch_greatest", 1, include_str!("../../../tests/golden/v1/batch_greatest.hex")),
];

/// The bytes of a file of lines `hex # meaning`.
pub(super) fn annotated(text: &str) -> Vec<u8> {
    text.lines().flat_map(|line| unhex(line.split('#').next().unwrap_or_default())).collect()
}

#[test]
fn batch_bodies_of_version_1_are_read_and_written_again_the_same() {
    for (name, count, text) in BATCHES {
        let body = annotated(text);
        assert_eq!(Batch::parse(&body).expect(name).header.count, *count, "{name}");
        assert_eq!(hex(&rebuild(&body).expect(name)), hex(&body), "{name}");
    }
}

#[test]
fn frames_of_version_1_are_read_and_written_again_the_same() {
    let mut numbers = Vec::new();
    for line in FRAMES.lines() {
        let (name, digits) = line.split_once(' ').expect("a name and its bytes");
        let bytes = unhex(digits);
        if name == "stream_head" {
            let (head, taken) = StreamHead::parse(&bytes).expect(name).expect("all of it is there");
            assert_eq!((Any::Head(head).bytes(), taken), (bytes.clone(), bytes.len()));
            continue;
        }
        let (frame, taken) = split_frame(&bytes, Limits::CEILINGS.frame_bytes).expect(name).expect("a whole frame");
        assert_eq!(taken, bytes.len(), "{name}");
        let value = Any::parse(frame).expect(name).expect("none of these is skipped");
        assert_eq!(hex(&value.bytes()), hex(frame), "{name}");
        numbers.push(frame[0]);
    }
    for number in Number::ALL {
        assert!(numbers.contains(&(*number as u8)), "no bytes are kept of {number:?}");
    }
}

#[test]
fn body_of_another_version_is_refused_before_anything_else_of_it_is_read() {
    for (name, _, text) in BATCHES {
        let mut body = annotated(text);
        for version in [0, 2, 250, 251, 255] {
            body[0] = version;
            let error = Batch::parse(&body).expect_err(name).to_string();
            assert!(error.contains(&format!("version {version}")), "{name}: {error}");
        }
    }
}
