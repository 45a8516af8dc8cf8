//! A record as a line of output.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use serde::Serialize;

use crate::types::{Header, Record, RoomName, Time};

/// How records are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// The payload as it is, and a newline
    Payload,
    /// One JSON object a line: room, offset, prev, time, user, publisher, seq, kind, payload or payload_base64
    Json,
}

#[derive(Serialize)]
struct Line<'a> {
    room: &'a str,
    offset: u64,
    prev: u64,
    time: String,
    user: &'a str,
    publisher: String,
    seq: u64,
    kind: &'a str,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<HeaderLine<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// Bytes as text, or in base64 where they are none.
fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// A time as RFC 3339 with microseconds.
pub(super) fn rfc3339(time: Time) -> String {
    match i64::try_from(time.0).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok()) {
        Some(time) => format!("{time:.6}"),
        // Beyond the year 9999 there is no such form.
        None => format!("{}us", time.0),
    }
}

/// Writes one record as a line.
pub(super) fn write<'a>(out: &mut dyn Write, format: Format, room: &RoomName, record: &Record<'a>) -> io::Result<()> {
    let content = &record.content;
    match format {
        Format::Payload => out.write_all(content.payload)?,
        Format::Json => {
            let (payload, payload_base64) = text_or_base64(content.payload);
            let header = |header: &Header<'a>| {
                let (value, value_base64) = text_or_base64(header.value);
                HeaderLine { name: header.name, value, value_base64 }
            };
            let headers = content.headers.0.iter().map(header).collect();
            let line = Line {
                room: room.as_str(),
                offset: record.offset.0,
                prev: record.prev.0,
                time: rfc3339(record.time),
                user: record.user,
                publisher: record.publisher.to_string(),
                seq: record.seq,
                kind: content.kind,
                reference: (content.reference.0 != 0).then_some(content.reference.0),
                headers,
                payload,
                payload_base64,
            };
            serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
        }
    }
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Headers, NewRecord, Offset, PublisherId};

    fn record<'a>(content: NewRecord<'a>) -> Record<'a> {
        Record {
            offset: Offset(7),
            prev: Offset(5),
            time: Time(1_700_000_000_000_001),
            user: "",
            publisher: PublisherId([0xab; 16]),
            seq: 3,
            content,
        }
    }

    fn line(format: Format, content: NewRecord<'_>) -> String {
        let mut out = Vec::new();
        let room = RoomName::new("tea \"room\"").expect("a name");
        write(&mut out, format, &room, &record(content)).expect("written to memory");
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_record_is_one_line_of_json_with_its_fields_in_order() {
        assert_eq!(
            line(Format::Json, NewRecord::new("grüße\n".as_bytes())),
            "{\"room\":\"tea \\\"room\\\"\",\"offset\":7,\"prev\":5,\"time\":\"2023-11-14T22:13:20.000001Z\",\"user\":\"\",\
             \"publisher\":\"abababababababababababababababab\",\"seq\":3,\"kind\":\"\",\"payload\":\"grüße\\n\"}\n"
        );
    }

    #[test]
    fn what_is_not_text_is_in_base64_and_ref_and_headers_are_there_when_they_are() {
        let headers = Headers(vec![Header { name: "lang", value: b"de" }, Header { name: "raw", value: &[0xff, 0] }]);
        let content = NewRecord { kind: "edit", reference: Offset(4), headers, ..NewRecord::new(&[0xff, 0xfe]) };
        let line = line(Format::Json, content);
        let tail = "\"kind\":\"edit\",\"ref\":4,\"headers\":[{\"name\":\"lang\",\"value\":\"de\"},\
                    {\"name\":\"raw\",\"value_base64\":\"/wA=\"}],\"payload_base64\":\"//4=\"}\n";
        assert!(line.ends_with(tail), "{line}");
    }

    #[test]
    fn a_payload_is_printed_as_it_is() {
        assert_eq!(line(Format::Payload, NewRecord::new(b"two\r")), "two\r\n");
        assert_eq!(line(Format::Payload, NewRecord::new(b"")), "\n");
    }

    #[test]
    fn whole_seconds_keep_their_microseconds() {
        assert_eq!(rfc3339(Time(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(Time(u64::MAX)), "18446744073709551615us");
    }
}
