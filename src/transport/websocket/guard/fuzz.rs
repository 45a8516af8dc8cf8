//! Whatever a peer sends, and however it is cut: the same comes out, and no more is held than is allowed.

use super::{CONTROL_BYTES_MAX, Event, Guard, Violation};

const BYTES_MAX: usize = 1000;

#[derive(PartialEq, Eq, Debug)]
enum Seen {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close,
}

fn seen<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Seen>, Result<(), Violation>) {
    let (mut guard, mut seen) = (Guard::new(BYTES_MAX), Vec::new());
    for piece in pieces {
        let read = guard.read(piece, |event| {
            seen.push(match event {
                Event::Message(message) => {
                    assert!(message.len() <= BYTES_MAX, "a message of {} bytes", message.len());
                    Seen::Message(message.to_vec())
                }
                Event::Ping(payload) => {
                    assert!(payload.len() as u64 <= CONTROL_BYTES_MAX, "a ping of {} bytes", payload.len());
                    Seen::Ping(payload.to_vec())
                }
                Event::Pong => Seen::Pong,
                Event::Close => Seen::Close,
            });
            Ok(())
        });
        if let Err(Violation { code, reason }) = read {
            assert!(matches!(code, 1002 | 1003 | 1007 | 1009) && reason.len() <= 123, "{code} {reason}");
            return (seen, read);
        }
        // The head of a frame has at most 14 bytes.
        assert!(guard.partial.len() < 14 + BYTES_MAX && guard.message.len() <= BYTES_MAX, "more is held: {guard:?}");
    }
    (seen, Ok(()))
}

/// See [`crate::fuzzing::websocket`].
pub(crate) fn read(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    assert_eq!(seen(bytes.chunks(usize::from(cut).max(1))), seen(std::iter::once(bytes)));
}
