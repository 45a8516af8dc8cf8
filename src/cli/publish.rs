//! `roomlog pub`: each line of standard input is a record.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{self, Connection, shown};
use super::failure::Failure;
use super::output::Output;
use crate::client::{Client, Error, Published, Receipt, State};
use crate::types::{Code, Limits, NewRecord, Offset, PublisherId, RoomName};

/// Lines are handed over in portions of about so many bytes.
const PORTION_BYTES: usize = 64 << 10;
/// Portions that wait for the connection.
const PORTIONS_MAX: usize = 4;

#[derive(Args, Debug)]
#[command(after_help = "\
Every line is one payload, byte for byte, without its newline. The last line may lack one. Many are under way at a \
time. A broker that is away is waited for as long as --timeout allows; nothing is lost or doubled by that. Exit code 0 \
means that every line has been acknowledged. In a repeated run, lines that were stored too long ago to be compared \
count as stored if later ones are found to be the same; --ack needs their offsets and fails.

Examples:
  echo hello | roomlog pub kitchen
  roomlog pub logs --ack < app.log
  roomlog pub import --publisher import-2026-01 < data.txt   # run it again: nothing is stored twice
  tail -n +1001 data.txt | roomlog pub import --publisher import-2026-01 --first-seq 1001")]
pub(super) struct Arguments {
    /// The room; it comes into being with its first record
    #[arg(value_parser = connection::room)]
    room: RoomName,
    /// Print each record's offset on a line of its own as soon as it is acknowledged
    #[arg(long)]
    ack: bool,
    /// The identity of this input, any text: repeated with the same lines, nothing is stored twice
    #[arg(long, value_name = "ID")]
    publisher: Option<String>,
    /// The number of the first line within --publisher's input
    #[arg(long, value_name = "N", default_value_t = 1, requires = "publisher", value_parser = clap::value_parser!(u64).range(1..1 << 53))]
    first_seq: u64,
    #[command(flatten)]
    connection: Connection,
}

/// The publisher of a text: the first 16 bytes of its SHA-256.
fn publisher_of(text: &str) -> PublisherId {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    PublisherId(*digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { room, ack, publisher, first_seq, connection } = arguments;
    let mut options = connection.options();
    options.publisher = publisher.as_deref().map(publisher_of);
    options.first_seq = first_seq;
    let queue = options.queue_publishes_max;
    let client = Client::open(&connection.url, options)?;

    let (portions, lines) = mpsc::channel(PORTIONS_MAX);
    std::thread::spawn(move || read_lines(io::stdin().lock(), &portions));
    let (receipts, receipts_taken) = mpsc::channel(queue);
    let done = async { tokio::try_join!(publish(&client, &room, lines, receipts), acknowledge(receipts_taken, ack)) };
    tokio::select! {
        biased;
        result = done => {
            result?;
        }
        failure = no_progress(&client, connection.timeout) => return Err(failure),
    }
    client.close().await;
    Ok(())
}

/// Reads lines until the end of the input; an error is the last thing it sends.
fn read_lines(input: impl Read, portions: &mpsc::Sender<io::Result<Vec<Vec<u8>>>>) {
    let mut input = io::BufReader::with_capacity(PORTION_BYTES, input);
    let line_bytes_max = Limits::CEILINGS.payload_bytes as u64;
    loop {
        let mut lines = Vec::new();
        let mut bytes = 0;
        let end = loop {
            let mut line = Vec::new();
            // One byte more than any broker takes, and its newline: more need not be read to know.
            match input.by_ref().take(line_bytes_max + 2).read_until(b'\n', &mut line) {
                Ok(0) => break Some(Ok(())),
                Ok(_) => {}
                Err(error) => break Some(Err(error)),
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() as u64 > line_bytes_max {
                let message = format!("a line of more than {line_bytes_max} bytes");
                break Some(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
            }
            bytes += line.len() + size_of::<Vec<u8>>();
            lines.push(line);
            // Whoever types wants each line sent; a file comes in portions.
            if bytes >= PORTION_BYTES || input.buffer().is_empty() {
                break None;
            }
        };
        let (lines, end) = (Some(lines).filter(|lines| !lines.is_empty()), end);
        if lines.is_some_and(|lines| portions.blocking_send(Ok(lines)).is_err()) {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => {
                let _ = portions.blocking_send(Err(error));
                return;
            }
        }
    }
}

async fn publish(
    client: &Client,
    room: &RoomName,
    mut lines: mpsc::Receiver<io::Result<Vec<Vec<u8>>>>,
    receipts: mpsc::Sender<Receipt>,
) -> Result<(), Failure> {
    while let Some(portion) = lines.recv().await {
        let portion = portion.map_err(|error| Failure::failed(format_args!("standard input: {error}")))?;
        for line in portion {
            let receipt = client.enqueue(room, &[NewRecord::new(&line)], None).await?;
            if receipts.send(receipt).await.is_err() {
                // Whoever takes them has failed, and says why.
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Takes the answers in the order of the lines.
async fn acknowledge(mut receipts: mpsc::Receiver<Receipt>, print: bool) -> Result<(), Failure> {
    let mut output = print.then(Output::new);
    let mut tally = Tally::default();
    while let Some(mut receipt) = receipts.recv().await {
        let answer = tokio::select! {
            biased;
            answer = &mut receipt => answer,
            () = std::future::ready(()) => {
                // It will take a while: show what is there.
                quietly(&mut output, Output::flush)?;
                receipt.await
            }
        };
        if let Some(offset) = tally.take(answer, print)? {
            quietly(&mut output, |output| output.blocking(|out| writeln!(out, "{offset}")))?;
        }
        if receipts.is_empty() {
            quietly(&mut output, Output::flush)?;
        }
    }
    quietly(&mut output, Output::flush)?;
    tally.finish()
}

/// What became of the lines so far.
#[derive(Default)]
struct Tally {
    acknowledged: u64,
    /// Lines of an earlier run that the broker has, but can no longer compare.
    old: u64,
}

impl Tally {
    /// The offset of the next line, if the broker knows it.
    fn take(&mut self, answer: Result<Published, Error>, offsets_needed: bool) -> Result<Option<Offset>, Failure> {
        let line = self.acknowledged + self.old + 1;
        match answer {
            Ok(published) => {
                self.acknowledged += 1;
                Ok(Some(published.first))
            }
            // A publisher's numbers are stored without a hole: this one is there.
            Err(error) if error.code() == Some(Code::TooOld) && !offsets_needed => {
                self.old += 1;
                Ok(None)
            }
            Err(error) if error.code() == Some(Code::TooOld) => Err(Failure::failed(format_args!(
                "line {line} was stored by an earlier run, too long ago for the broker to know its offset: leave --ack \
                 away, or begin later with --first-seq"
            ))),
            Err(error) => Err(match Failure::from(error) {
                Failure::Failed(why) => Failure::failed(format_args!("line {line} was not stored: {why}")),
                other => other,
            }),
        }
    }

    /// Old lines are believed to be these lines only if something behind them was the same, too.
    fn finish(&self) -> Result<(), Failure> {
        if self.old > 0 && self.acknowledged == 0 {
            let old = self.old;
            return Err(Failure::failed(format_args!(
                "nothing was stored: this publisher is far beyond these {old} lines, and whether it stored the same ones \
                 cannot be told any more"
            )));
        }
        Ok(())
    }
}

/// Writes, unless nobody reads any more: that does not stop the publishing.
fn quietly(output: &mut Option<Output>, write: impl FnOnce(&mut Output) -> Result<(), Failure>) -> Result<(), Failure> {
    match output.as_mut().map(write) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(Failure::OutputClosed)) => {
            *output = None;
            Ok(())
        }
        Some(Err(failure)) => Err(failure),
    }
}

/// Returns once something has waited for its acknowledgement for so long, and none has come.
async fn no_progress(client: &Client, timeout: Duration) -> Failure {
    let mut tick = tokio::time::interval((timeout / 20).clamp(Duration::from_millis(10), Duration::from_secs(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut acknowledged, mut since) = (client.acknowledged(), Instant::now());
    let mut why = None;
    loop {
        tick.tick().await;
        match client.state() {
            State::Waiting { why: last, .. } => why = Some(last),
            State::Connected { .. } => why = None,
            _ => {}
        }
        let now = client.acknowledged();
        if now != acknowledged || client.pending().publishes == 0 {
            (acknowledged, since) = (now, Instant::now());
        } else if since.elapsed() >= timeout {
            let pending = client.pending().publishes;
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let timeout = shown(timeout);
            return Failure::Failed(format!(
                "no acknowledgement for {timeout}, with {acknowledged} lines acknowledged and {pending} waiting{why}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> (Vec<Vec<u8>>, Option<String>) {
        let (portions, mut taken) = mpsc::channel(1000);
        read_lines(input, &portions);
        let (mut lines, mut error) = (Vec::new(), None);
        while let Ok(portion) = taken.try_recv() {
            match portion {
                Ok(portion) => lines.extend(portion),
                Err(fault) => error = Some(fault.to_string()),
            }
        }
        (lines, error)
    }

    #[test]
    fn lines_are_taken_byte_for_byte_without_their_newlines() {
        let (taken, error) = lines(b"one\n\ntwo\r\n\xff\0\n last");
        assert_eq!(taken, [&b"one"[..], b"", b"two\r", b"\xff\0", b" last"]);
        assert_eq!(error, None);
        assert_eq!(lines(b""), (vec![], None));
        assert_eq!(lines(b"\n"), (vec![vec![]], None));
    }

    #[test]
    fn a_line_that_no_broker_takes_ends_the_input_and_what_was_before_it_is_kept() {
        let longest = Limits::CEILINGS.payload_bytes;
        let mut input = b"before\n".to_vec();
        input.extend(vec![b'x'; longest]);
        input.push(b'\n');
        let (taken, error) = lines(&input);
        assert_eq!((taken.len(), taken[1].len(), error), (2, longest, None));
        input.pop();
        input.extend(b"x\nbehind\n");
        let (taken, error) = lines(&input);
        assert_eq!(taken, [b"before"]);
        assert!(error.expect("told").contains("1048576"));
    }

    fn answer(result: Result<u64, Code>) -> Result<Published, Error> {
        match result {
            Ok(offset) => {
                let (first, last) = (Offset(offset), Offset(offset));
                let (time, publisher) = (crate::types::Time(1), PublisherId([0; 16]));
                Ok(Published { first, last, time, duplicate: true, publisher, seq: offset })
            }
            Err(code) => Err(Error::Refused {
                code: code.number(),
                message: "as the test says".to_owned(),
                retry: false,
                retry_after: Duration::ZERO,
            }),
        }
    }

    #[test]
    fn lines_of_long_ago_count_as_stored_only_if_later_ones_were_the_same() {
        let mut tally = Tally::default();
        assert!(matches!(tally.take(answer(Err(Code::TooOld)), false), Ok(None)));
        assert!(tally.finish().is_err(), "nothing behind it was the same");
        assert!(matches!(tally.take(answer(Ok(9)), false), Ok(Some(Offset(9)))));
        assert!(tally.finish().is_ok());
    }

    #[test]
    fn a_line_without_an_offset_or_with_another_content_fails_by_its_number() {
        let mut tally = Tally::default();
        assert!(tally.take(answer(Ok(1)), true).is_ok());
        for code in [Code::TooOld, Code::PublisherConflict] {
            let Err(Failure::Failed(message)) = tally.take(answer(Err(code)), true) else { panic!("no failure") };
            assert!(message.starts_with("line 2 was"), "{message}");
        }
    }

    #[test]
    fn the_publisher_of_a_text_is_the_front_of_its_sha_256() {
        assert_eq!(publisher_of("abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
    }
}
