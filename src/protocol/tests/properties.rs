//! Whatever the bytes: no panic, nothing allocated for a length that is a lie, and one encoding per value.

use rand::RngCore;

use super::draw::{Stuff, body, for_seeds, frames};
use super::examples::{Example, examples};
use super::page::blocks;
use super::*;
use crate::protocol::*;
use crate::types::{Limits, Record};

#[test]
fn every_frame_is_read_as_it_was_written() {
    for_seeds(150, |draw| {
        let stuff = Stuff::draw(draw);
        for value in frames(draw, &stuff) {
            let bytes = value.bytes();
            assert_eq!(survives(&bytes), Some(value));
            let mut stream = Vec::new();
            frame_into(&mut stream, |out| out.extend_from_slice(&bytes));
            assert_eq!(split_frame(&stream, stream.len()), Ok(Some((&bytes[..], stream.len()))));
            assert!(matches!(split_frame(&stream, stream.len() - 1), Err(FrameError::TooLarge { .. })));
            assert_eq!(split_frame(&stream[..stream.len() - 1], stream.len()), Ok(None));
        }
    });
}

#[test]
fn batch_gives_the_records_it_was_made_of() {
    for_seeds(150, |draw| {
        let stuff = Stuff::draw(draw);
        let bytes = body(draw, &stuff);
        walk(&bytes);
        assert_eq!(hex(&rebuild(&bytes).expect("whole")), hex(&bytes));
        let batch = Batch::parse(&bytes).expect("whole");
        let mut prev = Offset::ZERO;
        for record in batch.records(prev) {
            let record = record.expect("whole");
            assert_eq!(record.prev, prev);
            prev = record.offset;
        }
        assert_eq!(prev, batch.header.last());
    });
}

#[test]
fn what_is_meant_of_a_batch_is_told_by_its_runs() {
    for_seeds(150, |draw| {
        let stuff = Stuff::draw(draw);
        let bytes = body(draw, &stuff);
        let batch = Batch::parse(&bytes).expect("whole");
        let all: Vec<_> = batch.records(Offset(0)).map(|record| record.expect("whole")).collect();
        for _ in 0..20 {
            let mut bound = || Offset((all[draw.below(all.len())].offset.0 + draw.u64() % 3).saturating_sub(1));
            let (after, to) = (bound(), bound());
            let wanted: Vec<_> = all.iter().filter(|it| it.offset > after && it.offset <= to).collect();
            let meant = batch.meant(Offset::ZERO, after, to).expect("whole");
            assert_eq!(meant.is_some(), !wanted.is_empty());
            if let (Some(meant), [first, ..]) = (meant, &wanted[..]) {
                let last = wanted[wanted.len() - 1].offset;
                let count = u32::try_from(wanted.len()).expect("few");
                assert_eq!(meant, Meant { from: first.offset, to: last, prev: first.prev, count });
            }
        }
        for (index, record) in all.iter().enumerate().take(all.len() - 1) {
            let newer = u32::try_from(all.len() - 1 - index).expect("few");
            assert_eq!(batch.before_last(newer), Ok(record.offset));
        }
    });
}

#[test]
fn a_length_is_read_as_any_other_integer() {
    for_seeds(2000, |draw| {
        let mut bytes = vec![0; draw.below(7)];
        bytes.iter_mut().for_each(|byte| *byte = draw.u8());
        if let (Some(first), true) = (bytes.first_mut(), draw.below(2) == 0) {
            *first = 249 + draw.u8() % 7;
        }
        assert_eq!(wire::decode_length("a length", &bytes), wire::decode_head::<u32>("a length", &bytes), "{bytes:?}");
    });
}

#[test]
fn push_part_is_a_filter_of_records() {
    let plain =
        |record: &Record<'_>| (record.offset, record.time, record.publisher, record.seq, record.user.to_owned());
    for_seeds(150, |draw| {
        let stuff = Stuff::draw(draw);
        let bytes = body(draw, &stuff);
        let batch = Batch::parse(&bytes).expect("whole");
        let all: Vec<_> = batch.records(Offset::ZERO).map(|record| record.expect("whole")).collect();
        for _ in 0..20 {
            // Bounds on records, between them, before all and behind all.
            let mut bound = || Offset((all[draw.below(all.len())].offset.0 + draw.u64() % 3).saturating_sub(1));
            let (from, to) = (bound(), bound());
            let wanted: Vec<_> = all.iter().filter(|record| (from..=to).contains(&record.offset)).collect();
            let mut builder = BatchBuilder::new();
            builder.push_part(&batch, from, to).expect("whole");
            assert_eq!(builder.count() as usize, wanted.len());
            if wanted.is_empty() {
                assert!(builder.is_empty());
                continue;
            }
            let part = builder.finish().1;
            walk(&part);
            let part = Batch::parse(&part).expect("whole");
            part.check().expect("a part of a batch is a batch");
            let found: Vec<_> = part.records(Offset::ZERO).map(|record| record.expect("whole")).collect();
            assert_eq!(
                found.iter().map(plain).collect::<Vec<_>>(),
                wanted.iter().map(|r| plain(r)).collect::<Vec<_>>()
            );
            assert!(found.iter().zip(&wanted).all(|(found, wanted)| found.content == wanted.content));
        }
    });
}

#[test]
fn random_bytes_and_damaged_frames_are_refused_or_canonical() {
    for_seeds(60, |draw| {
        let stuff = Stuff::draw(draw);
        let mut originals: Vec<Vec<u8>> = frames(draw, &stuff).iter().map(Any::bytes).collect();
        originals.extend(examples().into_iter().filter_map(|(_, example)| match example {
            Example::Any(frame) => Some(frame.bytes()),
            _ => None,
        }));
        let header = DeliveryHeader { join: JoinId(1), from: Offset(1), to: Offset::MAX, prev: Offset::ZERO };
        let bytes = body(draw, &stuff);
        originals.push(Any::Server(ServerFrame::Delivery(Delivery { header, body: &bytes })).bytes());
        for mut bytes in originals {
            for _ in 0..8 {
                let at = draw.below(bytes.len());
                match draw.below(4) {
                    0 => bytes[at] = draw.u8(),
                    1 => bytes[at] ^= 1 << draw.below(8),
                    2 => bytes.insert(at, [0, 1, 250, 251, 252, 253, 254, 255][draw.below(8)]),
                    _ => bytes.truncate(at.max(1)),
                }
                survives(&bytes);
                walk(&bytes);
                let _ = split_frame(&bytes, Limits::CEILINGS.frame_bytes);
                let _ = StreamHead::parse(&bytes);
            }
        }
        let mut noise = vec![0; draw.below(200) + 1];
        draw.0.fill_bytes(&mut noise);
        for number in 0..=255 {
            noise[0] = number;
            survives(&noise);
        }
        noise[0] = 1;
        walk(&noise);
    });
}

#[test]
fn truncated_frame_is_refused_at_every_byte() {
    for (name, example) in examples() {
        let value = match example {
            Example::Any(value) if !matches!(value, Any::Head(_)) => value,
            _ => continue,
        };
        let bytes = value.bytes();
        assert!(ClientFrame::parse(&[]).is_err() && ServerFrame::parse(&[]).is_err() && Later::parse(&[]).is_err());
        // The rest of these two is what is left of the frame: another layer finds that it is cut.
        let open_from = match &value {
            Any::Client(ClientFrame::Publish(publish)) => bytes.len() - publish.records.0.len(),
            Any::Server(ServerFrame::Delivery(delivery)) => bytes.len() - delivery.body.len(),
            _ => bytes.len(),
        };
        for end in 1..bytes.len() {
            let cut = &bytes[..end];
            match survives(cut) {
                None => {}
                Some(Any::Client(ClientFrame::Publish(publish))) if end >= open_from => {
                    let (mut area, mut count) = (publish.records, 0);
                    let whole = loop {
                        match area.split_first() {
                            Ok(None) => break count == publish.count,
                            Ok(Some((record, rest))) if RecordArea::record(record).is_ok() => {
                                (area, count) = (rest, count + 1);
                            }
                            _ => break false,
                        }
                    };
                    assert!(!whole, "{name} cut at {end}");
                }
                Some(Any::Server(ServerFrame::Delivery(delivery))) if end >= open_from => {
                    assert!(Batch::parse(delivery.body).and_then(|batch| batch.check()).is_err(), "{name} at {end}");
                }
                Some(other) => panic!("{name} cut at {end} is {other:?}"),
            }
        }
        let mut longer = bytes;
        longer.push(0);
        if open_from == longer.len() - 1 {
            assert_eq!(survives(&longer), None, "{name} with a byte behind it");
        }
    }
}

#[test]
fn length_of_2_to_the_60_is_refused_wherever_a_length_may_stand() {
    let lie = |length: u64| [&[253][..], &length.to_le_bytes()].concat();
    let mut places = 0;
    for (name, fields) in blocks() {
        let bytes: Vec<u8> = fields.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut at = 0;
        for (field, meaning) in &fields {
            let is_length = ["length: ", ": empty", " bytes", " element"].iter().any(|word| meaning.contains(word));
            if is_length && !name.starts_with("integers") {
                for length in [1 << 60, 1 << 32, u64::MAX] {
                    let lying = [&bytes[..at], &lie(length), &bytes[at + 1..]].concat();
                    places += 1;
                    if at == 0 && meaning.starts_with("length") {
                        assert!(matches!(split_frame(&lying, 1 << 21), Err(FrameError::TooLarge { .. })), "{name}");
                        continue;
                    }
                    // The frame's own length is left out: it is not what is tried here.
                    let prefix = if fields[0].1.starts_with("length") { fields[0].0.len() } else { 0 };
                    survives(&lying[prefix..]);
                    walk(&lying);
                    // A length of the frame itself, not of one that is nested in a body or an area.
                    if prefix > 0 && !bytes_are_nested(&fields, at) {
                        let error = Any::parse(&lying[prefix..]).expect_err(name);
                        assert!(matches!(error, WireError::Truncated { .. }), "{name}: {meaning}: {error}");
                    }
                }
            }
            at += field.len();
        }
    }
    assert!(places > 300, "only {places} lengths found on the page");
}

/// Whether what stands at a byte of an example is read later than the frame around it.
pub(super) fn bytes_are_nested(fields: &[(Vec<u8>, &str)], at: usize) -> bool {
    let mut place = 0;
    for (bytes, meaning) in fields {
        let opens = ["body's length", "batch: version", "record's length"].iter().any(|word| meaning.starts_with(word));
        if opens && (place < at || !meaning.starts_with("body's")) {
            return place <= at;
        }
        place += bytes.len();
    }
    false
}

/// Writes integers in their shortest form, but for one.
struct Widener {
    out: Vec<u8>,
    integers: usize,
    wide: usize,
    forms: u8,
}

impl Widener {
    fn new(wide: usize, forms: u8) -> Self {
        Self { out: Vec::new(), integers: 0, wide, forms }
    }

    fn int(&mut self, value: u64) -> &mut Self {
        let shortest = match value {
            0..=250 => 0,
            251..=0xffff => 1,
            0x1_0000..=0xffff_ffff => 2,
            _ => 3,
        };
        let form = if self.integers == self.wide { shortest + self.forms } else { shortest };
        self.integers += 1;
        let bytes = value.to_le_bytes();
        match form {
            0 => self.out.push(bytes[0]),
            1 => self.out.extend([&[251], &bytes[..2]].concat()),
            2 => self.out.extend([&[252], &bytes[..4]].concat()),
            _ => self.out.extend([&[253], &bytes[..]].concat()),
        }
        self
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.int(text.len() as u64).raw(text.as_bytes())
    }

    /// What `inner` writes, behind its real length.
    fn nested(&mut self, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let outer = std::mem::take(&mut self.out);
        // The length stands first, so it counts first; its own form is decided when the rest is known.
        let at = self.integers;
        self.integers += 1;
        inner(self);
        let inside = std::mem::replace(&mut self.out, outer);
        let after = std::mem::replace(&mut self.integers, at);
        self.int(inside.len() as u64);
        self.integers = after;
        self.raw(&inside)
    }

    fn record(&mut self) -> &mut Self {
        self.nested(|out| {
            out.text("edit").int(3).int(1).text("lang").text("en").text("hello").text("");
        })
    }
}

/// Tries each integer in each longer form: only the shortest is read.
fn only_the_shortest(name: &str, write: impl Fn(&mut Widener), read: impl Fn(&[u8]) -> bool) {
    let mut plain = Widener::new(usize::MAX, 0);
    write(&mut plain);
    assert!(read(&plain.out), "{name} in its canonical form");
    for wide in 0..plain.integers {
        for forms in 1..=3 {
            let mut out = Widener::new(wide, forms);
            write(&mut out);
            if out.out != plain.out {
                assert!(!read(&out.out), "{name}: integer {wide} in a form {forms} steps too long was read");
            }
        }
    }
}

#[test]
fn integer_that_is_not_in_its_shortest_form_is_refused_everywhere() {
    let write_body = |out: &mut Widener| {
        out.raw(&[1]).int(2).int(300).int(5).int(1_760_000_000_000_000);
        for (offset_delta, time_delta, user) in [(0, 0, "ann"), (5, 70_000, "")] {
            out.int(offset_delta).int(1).int(time_delta).text(user).raw(&[7; 16]).int(9).int(1).nested(|out| {
                out.record();
            });
        }
    };
    only_the_shortest("a batch", write_body, |body| Batch::parse(body).and_then(|batch| batch.check()).is_ok());
    only_the_shortest(
        "a publish",
        |out| {
            out.raw(&[5]).int(8).text("tea").raw(&[7; 16]).int(1).raw(&[1]).int(5).int(2).record().record();
        },
        |bytes| {
            let Ok(ClientFrame::Publish(publish)) = ClientFrame::parse(bytes) else { return false };
            let mut area = publish.records;
            loop {
                match area.split_first() {
                    Ok(None) => return true,
                    Ok(Some((record, rest))) if RecordArea::record(record).is_ok() => area = rest,
                    _ => return false,
                }
            }
        },
    );
    only_the_shortest(
        "a hello",
        |out| {
            out.raw(b"\x01RLOG\x01\x01").nested(|out| {
                out.raw(&[1]).text("t").text("c").int(1).int(3).text("tea").int(77).int(9);
                out.raw(&[1]).int(65_536).raw(&[1, 0]).int(0).raw(&[0]);
            });
        },
        |bytes| match ClientFrame::parse(bytes) {
            Ok(ClientFrame::Hello(hello)) => HelloBody::parse(hello.body).is_ok(),
            _ => false,
        },
    );
    only_the_shortest(
        "the head of a stream",
        |out| {
            out.int(3).text("tea").int(6_000_000_000_000);
        },
        |bytes| matches!(StreamHead::parse(bytes), Ok(Some((_, taken))) if taken == bytes.len()),
    );
    only_the_shortest(
        "a frame's length",
        |out| {
            out.int(3).raw(&[9, 251, 0]);
        },
        |bytes| matches!(split_frame(bytes, 100), Ok(Some(_))),
    );
}

#[test]
fn impossible_runs_are_refused_by_every_reader_of_a_batch() {
    // count, first, span, then runs of (offset_delta, step, time_delta, seq, count, records)
    type Runs<'a> = &'a [(u64, u64, u64, u64, u64, usize)];
    let cases: &[(&str, u64, u64, u64, Runs<'_>)] = &[
        ("no run", 1, 1, 0, &[]),
        ("no record", 1, 1, 0, &[(0, 1, 0, 1, 0, 0)]),
        ("a run too few", 2, 1, 1, &[(0, 1, 0, 1, 1, 1)]),
        ("a run too many", 1, 1, 0, &[(0, 1, 0, 1, 1, 1), (1, 1, 0, 2, 1, 1)]),
        ("more records in the area", 1, 1, 0, &[(0, 1, 0, 1, 1, 2)]),
        ("fewer records in the area", 2, 1, 1, &[(0, 1, 0, 1, 2, 1)]),
        ("a first run that begins later", 1, 1, 1, &[(1, 1, 0, 1, 1, 1)]),
        ("a first run of a later time", 1, 1, 0, &[(0, 1, 1, 1, 1, 1)]),
        ("a span beyond the last record", 1, 1, 9, &[(0, 1, 0, 1, 1, 1)]),
        ("a record beyond the span", 2, 1, 1, &[(0, 2, 0, 1, 2, 2)]),
        ("an offset twice", 2, 1, 0, &[(0, 1, 0, 1, 1, 1), (0, 1, 0, 2, 1, 1)]),
        ("runs in the wrong order", 3, 1, 5, &[(0, 1, 0, 1, 1, 1), (5, 1, 0, 2, 1, 1), (3, 1, 0, 3, 1, 1)]),
        ("times in the wrong order", 3, 1, 2, &[(0, 1, 0, 1, 1, 1), (1, 1, 9, 2, 1, 1), (2, 1, 8, 3, 1, 1)]),
        ("a step of 0", 1, 1, 0, &[(0, 0, 0, 1, 1, 1)]),
        ("a step beyond all offsets", 1, 1, 0, &[(0, u64::MAX, 0, 1, 1, 1)]),
        ("a seq of 0", 1, 1, 0, &[(0, 1, 0, 0, 1, 1)]),
        ("a seq that overflows", 2, 1, 1, &[(0, 1, 0, u64::MAX, 2, 2)]),
        ("a time that overflows", 2, 1, 1, &[(0, 1, 0, 1, 1, 1), (1, 1, u64::MAX, 2, 1, 1)]),
        ("an offset that overflows", 2, 1, 1, &[(0, 1, 0, 1, 1, 1), (u64::MAX, 1, 0, 2, 1, 1)]),
        ("an offset beyond 2^53", 1, 1 << 53, 0, &[(0, 1, 0, 1, 1, 1)]),
        ("a span beyond 2^53", 2, 1, u64::MAX, &[(0, u64::MAX, 0, 1, 2, 2)]),
        ("a first offset of 0", 1, 0, 0, &[(0, 1, 0, 1, 1, 1)]),
        ("a count of 0", 0, 1, 0, &[]),
    ];
    for (name, count, first, span, runs) in cases {
        let mut out = Widener::new(usize::MAX, 0);
        out.raw(&[1]).int(*count).int(*first).int(*span).int(1_000);
        for &(offset_delta, step, time_delta, seq, count, records) in *runs {
            out.int(offset_delta).int(step).int(time_delta).text("").raw(&[7; 16]).int(seq).int(count).nested(|out| {
                (0..records).for_each(|_| {
                    out.record();
                });
            });
        }
        let Ok(batch) = Batch::parse(&out.out) else { continue };
        assert!(batch.check().is_err(), "{name}: check");
        let records: Vec<_> = batch.records(Offset::ZERO).take(100).collect();
        assert_eq!(records.iter().filter(|record| record.is_err()).count(), 1, "{name}: one error ends the records");
        assert!(records.last().is_some_and(Result::is_err), "{name}: the error is the last");
        for from in 0..4 {
            for to in from..4 {
                // What it does not look at it may copy; it may not panic.
                let _ = BatchBuilder::new().push_part(&batch, Offset(from), Offset(to));
            }
        }
    }
}

#[test]
fn list_longer_than_it_may_be_is_refused() {
    for (number, before) in [(8_u8, &[1_u8][..]), (74, &[1, 1, 0]), (196, &[1, 1, 0])] {
        let bytes = |count: usize| {
            let mut frame = Widener::new(usize::MAX, 0);
            frame.raw(&[number]).raw(before).int(count as u64).raw(&vec![0; count * 3]);
            frame.out
        };
        let too_long = bytes(Limits::CEILINGS.rooms_per_session + 1);
        let error = Any::parse(&too_long).expect_err("a list that is too long").to_string();
        assert!(error.contains("more elements"), "{number}: {error}");
    }
}
