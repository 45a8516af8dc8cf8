//! What a client needs of RFC 6455: the upgrade, masked messages, and the heads of the server's frames.

const KEY: &str = "cm9vbWxvZy1jb21wYXJlIQ==";

/// The request that turns the connection into a WebSocket.
pub(super) fn upgrade(path: &str, protocol: Option<&str>, out: &mut Vec<u8>) {
    let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
    out.extend_from_slice(
        format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{protocol}\r\n"
        )
        .as_bytes(),
    );
}

/// The length of the answer to the upgrade; `None` while it is not all there.
pub(super) fn upgraded(input: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    if !input.starts_with(b"HTTP/1.1 101 ") {
        return Err(format!("no WebSocket: {}", String::from_utf8_lossy(&input[..end])));
    }
    Ok(Some(end + 4))
}

/// Appends a whole message.
pub(super) fn message(opcode: u8, body: &[u8], out: &mut Vec<u8>) {
    // Any key does between programs of ours on one machine; that it is not zero makes the server do its work.
    const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x88];
    out.push(0x80 | opcode);
    match (u8::try_from(body.len()), u16::try_from(body.len())) {
        (Ok(bytes @ ..=125), _) => out.push(0x80 | bytes),
        (_, Ok(bytes)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend_from_slice(body);
    let wide = u64::from_ne_bytes([MASK, MASK].concat().try_into().expect("8 bytes"));
    let (words, rest) = out[start..].as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}

/// A frame's head: opcode, bytes of its body, bytes of the head itself.
#[inline]
pub(super) fn head(input: &[u8]) -> Result<Option<(u8, usize, usize)>, String> {
    let &[first, second, ..] = input else { return Ok(None) };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(format!("a frame of the server begins with {first:#x} {second:#x}: fragmented or masked"));
    }
    let (bytes, head_bytes) = match second {
        126 => match input.get(2..4) {
            Some(bytes) => (u64::from(u16::from_be_bytes(bytes.try_into().expect("2 bytes"))), 4),
            None => return Ok(None),
        },
        127 => match input.get(2..10) {
            Some(bytes) => (u64::from_be_bytes(bytes.try_into().expect("8 bytes")), 10),
            None => return Ok(None),
        },
        bytes => (u64::from(bytes), 2),
    };
    let bytes = usize::try_from(bytes).map_err(|_| "a frame of the server is too long".to_owned())?;
    Ok(Some((first & 0x0f, bytes, head_bytes)))
}
