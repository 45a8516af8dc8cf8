//! MQTT 3.1.1: QoS 0 for fan-out, QoS 1 for what is acknowledged.

use super::{Event, Sink, Start, Wire};

pub(crate) struct Mqtt {
    id: u64,
    packet: u16,
}

impl Mqtt {
    /// `id` tells clients apart.
    pub(crate) fn new(id: u64) -> Self {
        Self { id, packet: 0 }
    }

    fn packet(&mut self) -> [u8; 2] {
        self.packet = self.packet % u16::MAX + 1;
        self.packet.to_be_bytes()
    }
}

impl Wire for Mqtt {
    fn open(&mut self, out: &mut Vec<u8>) {
        let id = format!("c{}", self.id);
        out.extend_from_slice(&[0x10, (12 + id.len()) as u8]);
        // A clean session; alive for long enough that no ping is needed.
        out.extend_from_slice(b"\0\x04MQTT\x04\x02\x0e\x10");
        text(&id, out);
    }

    fn join(&mut self, room: u32, _start: Start, out: &mut Vec<u8>) {
        let topic = format!("room{room}");
        out.extend_from_slice(&[0x82, (5 + topic.len()) as u8]);
        let packet = self.packet();
        out.extend_from_slice(&packet);
        text(&topic, out);
        out.push(0);
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        let topic = format!("room{room}");
        out.push(0x30);
        length(2 + topic.len() + payload.len(), out);
        text(&topic, out);
        out.extend_from_slice(payload);
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        let topic = format!("room{room}");
        out.push(0x32);
        length(4 + topic.len() + payload.len(), out);
        text(&topic, out);
        let packet = self.packet();
        out.extend_from_slice(&packet);
        out.extend_from_slice(payload);
    }

    fn read<S: Sink>(&mut self, input: &[u8], _out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut done = 0;
        loop {
            let rest = &input[done..];
            let Some((&kind, after)) = rest.split_first() else { return Ok(done) };
            let (mut bytes, mut head) = (0_usize, 1);
            loop {
                let Some(&byte) = after.get(head - 1) else { return Ok(done) };
                bytes |= usize::from(byte & 0x7f) << (7 * (head - 1));
                head += 1;
                if byte & 0x80 == 0 {
                    break;
                }
                if head > 4 {
                    return Err("a packet of MQTT is too long".to_owned());
                }
            }
            let Some(body) = rest.get(head..head + bytes) else { return Ok(done) };
            match (kind >> 4, body) {
                (2, [_, 0]) => sink.event(Event::Ready),
                (3, [high, low, more @ ..]) => {
                    let topic = usize::from(*high) << 8 | usize::from(*low);
                    // A packet's number stands in front of the payload for QoS 1 and 2.
                    let payload = more.get(topic + if kind & 0x06 == 0 { 0 } else { 2 }..);
                    sink.event(Event::Delivered(payload.ok_or("a publish of MQTT is too short")?));
                }
                (4, _) => sink.event(Event::Answered(1)),
                (9, [.., 0..=2]) => sink.event(Event::Joined),
                _ => return Err(format!("MQTT: {:?}", &rest[..rest.len().min(16)])),
            }
            done += head + bytes;
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn length(mut bytes: usize, out: &mut Vec<u8>) {
    while bytes >= 0x80 {
        out.push(bytes as u8 | 0x80);
        bytes >>= 7;
    }
    out.push(bytes as u8);
}
