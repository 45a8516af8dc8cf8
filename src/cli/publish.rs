//! `roomlog pub`: each line of standard input is a record.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{self, Connection, shown};
use super::failure::Failure;
use super::output::Output;
use crate::client::{Client, Receipt, State};
use crate::types::{Limits, NewRecord, PublisherId, RoomName};

/// Lines are handed over in portions of about so many bytes.
const PORTION_BYTES: usize = 64 << 10;
/// Portions that wait for the connection.
const PORTIONS_MAX: usize = 4;

#[derive(Args, Debug)]
#[command(after_help = "\
Every line is one payload, byte for byte, without its newline. The last line may lack one. Many are under way at a
time. A broker that is away is waited for as long as --timeout allows; nothing is lost or doubled by that. Exit code 0
means that every line has been acknowledged.

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

async fn acknowledge(mut receipts: mpsc::Receiver<Receipt>, print: bool) -> Result<(), Failure> {
    let mut output = print.then(Output::new);
    let mut count = 0_u64;
    while let Some(mut receipt) = receipts.recv().await {
        let published = tokio::select! {
            biased;
            published = &mut receipt => published,
            () = std::future::ready(()) => {
                // It will take a while: show what is there.
                quietly(&mut output, Output::flush)?;
                receipt.await
            }
        };
        let published = published.map_err(|error| {
            let failure = Failure::from(error);
            match failure {
                Failure::Failed(why) => Failure::failed(format_args!("line {} was not stored: {why}", count + 1)),
                other => other,
            }
        })?;
        count += 1;
        quietly(&mut output, |output| output.blocking(|out| writeln!(out, "{}", published.first)))?;
        if receipts.is_empty() {
            quietly(&mut output, Output::flush)?;
        }
    }
    quietly(&mut output, Output::flush)
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

    #[test]
    fn the_publisher_of_a_text_is_the_front_of_its_sha_256() {
        assert_eq!(publisher_of("abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
    }
}
