//! Fills the directory of a server as fast as it takes records: each room once, or conversations in rooms at random.

use std::time::{Duration, Instant};

use crate::line::Lines;
use crate::payload::{Payload, Text};
use crate::peers::Target;
use crate::random::Random;
use crate::wire::{Event, Wire};

/// Each room has one publisher, so that what is remembered of publishers is not what is measured.
const CONNECTIONS: usize = 4;
/// Publishes on their way on one connection: with 1 KiB each less than a session may have in flight.
const WINDOW: usize = 900;
/// Without any answer for so long, a server does not take it.
const SILENCE: Duration = Duration::from_secs(60);

/// What is written. Room 0 stays out of it: that is where loads are measured.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rooms: u32,
    pub(crate) records: u64,
    pub(crate) payload_bytes: usize,
    /// Records in a row to one room before another is chosen at random; 0: the rooms in turn, one record each.
    pub(crate) burst: u32,
}

/// What one connection writes.
struct Writer {
    room: u32,
    left: u32,
    unanswered: usize,
}

/// Fills, and counts the records of each room from room 1 on into `next`. Returns the seconds that it took.
pub(crate) fn run(target: &Target, plan: Plan, next: &mut Vec<u32>) -> Result<f64, String> {
    let connections = CONNECTIONS.min(plan.rooms as usize);
    let mut lines = Lines::new()?;
    for _ in 0..connections {
        lines.open(target)?;
    }
    if next.len() < plan.rooms as usize {
        next.resize(plan.rooms as usize, 0);
    }
    let mut writers: Vec<_> =
        (0..connections).map(|number| Writer { room: number as u32, left: 0, unanswered: 0 }).collect();
    let mut random = Random::new(plan.records);
    let (mut payload, mut text) = (Payload::new(plan.payload_bytes), Text::new());
    let (mut sent, mut answered) = (0_u64, 0_u64);
    let begun = Instant::now();
    let mut last = begun;
    while answered < plan.records {
        for (number, writer) in writers.iter_mut().enumerate() {
            let line = &mut lines.lines[number];
            if line.out.is_empty() && writer.unanswered <= WINDOW / 2 {
                while writer.unanswered < WINDOW && sent < plan.records {
                    if writer.left == 0 && plan.burst > 0 {
                        let of_writer = (plan.rooms - number as u32).div_ceil(connections as u32);
                        writer.room = number as u32 + random.below(of_writer) * connections as u32;
                        writer.left = plan.burst;
                    }
                    payload.fill(&mut text);
                    let seq = &mut next[writer.room as usize];
                    line.driver.append(writer.room + 1, payload.write(*seq, 0), &mut line.out);
                    *seq += 1;
                    sent += 1;
                    writer.unanswered += 1;
                    if plan.burst > 0 {
                        writer.left -= 1;
                    } else {
                        writer.room += connections as u32;
                        if writer.room >= plan.rooms {
                            writer.room = number as u32;
                        }
                    }
                }
                line.driver.seal(&mut line.out);
            }
            lines.flush(number)?;
        }
        lines.wait(Duration::from_millis(20))?;
        let ready = std::mem::take(&mut lines.ready);
        for &(number, readable, _) in &ready {
            let had = answered;
            if readable {
                lines.read(number, &mut |event: Event<'_>| {
                    if let Event::Answered(count) = event {
                        answered += u64::from(count);
                    }
                })?;
            }
            if answered > had {
                writers[number].unanswered -= (answered - had) as usize;
                last = Instant::now();
            }
        }
        lines.ready = ready;
        if last.elapsed() > SILENCE {
            return Err(format!("{answered} of {sent} publishes were answered"));
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}
