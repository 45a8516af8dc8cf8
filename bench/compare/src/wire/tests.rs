use super::*;

/// Feeds a stream in pieces of every size and returns what was delivered.
fn pieces(make: impl Fn() -> Driver, stream: &[u8], size: usize) -> (Vec<Vec<u8>>, u32, u32) {
    let (mut driver, mut out, mut kept) = (make(), Vec::new(), Vec::new());
    let (mut delivered, mut answered, mut other) = (Vec::new(), 0, 0);
    for piece in stream.chunks(size) {
        kept.extend_from_slice(piece);
        let mut sink = |event: Event<'_>| match event {
            Event::Delivered(payload) => delivered.push(payload.to_vec()),
            Event::Answered(count) => answered += count,
            Event::Ready | Event::Joined => other += 1,
            // The examples are of join 3.
            Event::Room(room) => assert_eq!(room, 2),
        };
        let done = driver.read(&kept, &mut out, &mut sink).expect("the stream is right");
        kept.drain(..done);
    }
    assert!(kept.is_empty(), "{} bytes were left", kept.len());
    (delivered, answered, other)
}

#[test]
fn redis_is_read_the_same_in_pieces_of_any_size() {
    let stream = b"+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$5\r\nroom1\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$5\r\nroom1\r\n$3\r\nabc\r\n:12\r\n$5\r\n1-234\r\n";
    for size in 1..=stream.len() {
        let read = pieces(|| Driver::Redis(Redis::new()), stream, size);
        assert_eq!(read, (vec![b"abc".to_vec()], 2, 2), "in pieces of {size}");
    }
}

#[test]
fn roomlog_is_read_the_same_in_pieces_of_any_size() {
    // The examples of docs/protocol.md: a welcome, an answer, and a delivery of one record.
    let welcome = "484001\
        0900fd0000ceeeb5400600fc00001100fc00000400201040fb0004fb0020fb0004fb0004fc00001000fc00001000fbe803fb0004\
        fc00001000fb60eafcc027090000fba86100";
    let published = "0e44080707fd0000ceeeb540060000";
    let delivery = "318003070705010107\
        00fd0000ceeeb540060000010000\
        00112233445566778899aabbccddeeff0101080700000002686900";
    let mut stream = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    for message in [welcome, published, delivery, delivery] {
        let bytes: Vec<u8> = (0..message.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&message[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        stream.extend_from_slice(&[0x82, bytes.len() as u8]);
        stream.extend_from_slice(&bytes);
    }
    for size in 1..=stream.len() {
        let read = pieces(|| Driver::Roomlog(Roomlog::new(1)), &stream, size);
        assert_eq!(read, (vec![b"hi".to_vec(); 2], 1, 1), "in pieces of {size}");
    }
}

#[test]
fn the_limits_frames_are_read_the_same_in_pieces_of_any_size() {
    let mut stream = Vec::new();
    raw::Head { bytes: 0, kind: raw::ANSWER, room: 0 }.write(&mut stream);
    Raw::new().publish(7, b"abc", &mut stream);
    raw::Head { bytes: 0, kind: raw::ANSWER, room: 0 }.write(&mut stream);
    for size in 1..=stream.len() {
        let read = pieces(|| Driver::Raw(Raw::new()), &stream, size);
        assert_eq!(read, (vec![b"abc".to_vec()], 1, 1), "in pieces of {size}");
    }
}
