use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

#[cfg(feature = "client")]
mod echo;

const BYTES_MAX: usize = 1000;

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 250];
    let mut frame = vec![first];
    match payload.len() {
        length @ ..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close,
}

/// What a guard makes of bytes that come in these pieces.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Seen>, Result<(), Violation>, Guard) {
    let (mut guard, mut seen) = (Guard::new(BYTES_MAX), Vec::new());
    for piece in pieces {
        let read = guard.read(piece, |event| {
            seen.push(match event {
                Event::Message(message) => Seen::Message(message.to_vec()),
                Event::Ping(payload) => Seen::Ping(payload.to_vec()),
                Event::Pong => Seen::Pong,
                Event::Close => Seen::Close,
            });
            Ok(())
        });
        if read.is_err() {
            return (seen, read, guard);
        }
    }
    (seen, Ok(()), guard)
}

#[test]
fn however_the_bytes_are_cut_the_same_comes_out() {
    let seed = crate::session::tests::seed();
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..300 {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        let mut fragments: Option<Vec<u8>> = None;
        for _ in 0..random.random_range(1..12) {
            let length = [0, 1, 60, 125, 126, 400][random.random_range(0..6)];
            let payload: Vec<u8> = (0..length).map(|_| random.random()).collect();
            match random.random_range(0..5) {
                0 => {
                    let payload = &payload[..payload.len().min(125)];
                    bytes.extend(masked(0x89, payload));
                    expected.push(Seen::Ping(payload.to_vec()));
                }
                1 => {
                    bytes.extend(masked(0x8a, b""));
                    expected.push(Seen::Pong);
                }
                kind => {
                    let last = kind > 2;
                    let opcode = if fragments.is_some() { 0 } else { 2 };
                    let whole = fragments.get_or_insert_default();
                    if whole.len() + payload.len() > BYTES_MAX {
                        continue;
                    }
                    whole.extend_from_slice(&payload);
                    bytes.extend(masked(if last { 0x80 | opcode } else { opcode }, &payload));
                    if last {
                        expected.extend(fragments.take().map(Seen::Message));
                    }
                }
            }
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = random.random_range(1..300);
            let (piece, behind) = rest.split_at(random.random_range(1..=rest.len().min(most)));
            pieces.push(piece);
            rest = behind;
        }
        let (seen, result, guard) = read(pieces);
        assert_eq!(result, Ok(()));
        assert_eq!(seen, expected);
        assert_eq!(guard.within_message(), fragments.is_some());
    }
}

#[test]
fn a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let (seen, result, _) = read([&masked(0x82, &[7; BYTES_MAX])[..]]);
    assert_eq!((seen.len(), result), (1, Ok(())));
    let (seen, result, _) = read([&masked(0x82, &[7; BYTES_MAX + 1])[..]]);
    assert_eq!((seen, result), (Vec::new(), Err(TOO_LARGE)));
}

#[test]
fn a_length_that_is_only_announced_takes_no_memory() {
    let head = [0x82, 0xff, 0, 0, 0, 0, 0, 0, 3, 232, 1, 2, 3, 4, 5];
    let (_, result, guard) = read([&head[..]]);
    assert_eq!(result, Ok(()));
    assert!(guard.partial.capacity() < 64, "{}", guard.partial.capacity());
}

#[test]
fn a_head_is_judged_before_its_payload_has_come() {
    for (head, code) in [
        (vec![0x82, 0x05], 1002),
        (vec![0x81, 0x85], 1003),
        (vec![0x83, 0x85], 1002),
        (vec![0xc2, 0x85], 1002),
        (vec![0x89, 0xfe], 1002),
        (vec![0x09, 0x80], 1002),
        (vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0], 1009),
        (vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1009),
    ] {
        let (seen, result, _) = read(head.chunks(1));
        assert_eq!((seen, result.map_err(|violation| violation.code)), (Vec::new(), Err(code)), "{head:x?}");
    }
}

#[test]
fn what_comes_before_a_violation_is_told_and_nothing_behind_it() {
    let bytes = [masked(0x82, b"good"), masked(0x81, b"text"), masked(0x82, b"never")].concat();
    let (seen, result, _) = read([&bytes[..]]);
    assert_eq!((seen, result), (vec![Seen::Message(b"good".to_vec())], Err(TEXT)));
}

#[test]
fn fragments_are_bounded_in_bytes_and_in_number() {
    let flood = |payload: &[u8], count| {
        let mut bytes = masked(0x02, payload);
        bytes.extend(masked(0x00, payload).repeat(count));
        read([&bytes[..]]).1
    };
    assert_eq!(flood(b"", FRAGMENTS_MAX as usize - 1), Ok(()));
    assert_eq!(flood(b"", FRAGMENTS_MAX as usize), Err(FRAGMENTED));
    assert_eq!(flood(&[0; 100], 9), Ok(()));
    assert_eq!(flood(&[0; 100], 10), Err(TOO_LARGE));
}

#[test]
fn an_idle_reader_holds_nothing() {
    let frames: Vec<_> = (0..100).map(|_| masked(0x82, &[9; 600])).collect();
    let bytes = frames.concat();
    let (seen, result, guard) = read(bytes.chunks(77));
    assert_eq!((seen.len(), result), (100, Ok(())));
    assert!(guard.partial.capacity() <= KEPT_BYTES_MAX && guard.message.capacity() == 0);
}
