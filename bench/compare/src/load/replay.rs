//! What is kept, read back: all of a room by one reader, and the last records by many.

use std::time::{Duration, Instant};

use super::{Span, Spent};
use crate::line::Lines;
use crate::order::Order;
use crate::payload::{self, Payload};
use crate::peers::Target;
use crate::wire::{Event, Start, Wire};

/// Without anything for so long, what has not come is lost.
const SILENCE: Duration = Duration::from_secs(10);
/// Publishes on their way while the room is filled.
const WINDOW: u32 = 512;

pub(crate) struct Measured {
    pub(crate) spent: Spent,
    pub(crate) come: u64,
    pub(crate) order: Order,
}

/// Fills room 0 with numbered records, in order.
pub(crate) fn fill(target: &Target, records: u32, payload_bytes: usize) -> Result<(), String> {
    let mut lines = Lines::new()?;
    let number = lines.open(target)?;
    let mut payload = Payload::new(payload_bytes);
    let (mut sent, mut answered) = (0_u32, 0_u32);
    let mut last = Instant::now();
    while answered < records {
        let line = &mut lines.lines[number];
        if line.out.is_empty() && sent < records && sent - answered <= WINDOW / 2 {
            for _ in 0..(WINDOW - (sent - answered)).min(records - sent) {
                line.driver.append(0, payload.write(sent, 0), &mut line.out);
                sent += 1;
            }
            line.driver.seal(&mut line.out);
        }
        lines.flush(number)?;
        lines.wait(Duration::from_millis(20))?;
        let had = answered;
        lines.read(number, &mut |event: Event<'_>| {
            if let Event::Answered(count) = event {
                answered += count;
            }
        })?;
        if answered > had {
            last = Instant::now();
        } else if last.elapsed() > SILENCE {
            return Err(format!("{answered} of {sent} publishes were answered"));
        }
    }
    Ok(())
}

/// So many readers at once; the time is from their asking until all have had `each` records. Numbers are checked for
/// one that reads all.
pub(crate) fn run(target: &Target, readers: usize, start: Start, each: u64) -> Result<Measured, String> {
    let mut lines = Lines::new()?;
    for _ in 0..readers {
        lines.open(target)?;
    }
    let mut order = Order::default();
    let mut come = vec![0_u64; readers];
    let span = Span::begin(target.pid)?;
    for number in 0..readers {
        lines.ask(number, 0, start)?;
    }
    let mut last = Instant::now();
    let mut left = readers;
    while left > 0 && last.elapsed() < SILENCE {
        lines.wait(Duration::from_millis(20))?;
        let ready = std::mem::take(&mut lines.ready);
        for &(number, _, _) in &ready {
            let had = come[number];
            let come = &mut come[number];
            let order = &mut order;
            lines.read(number, &mut |event: Event<'_>| {
                if let Event::Delivered(bytes) = event {
                    *come += 1;
                    if readers == 1 {
                        order.take(payload::seq(bytes));
                    }
                }
            })?;
            lines.flush(number)?;
            if *come > had {
                last = Instant::now();
            }
            if had < each && *come >= each {
                left -= 1;
            }
        }
        lines.ready = ready;
    }
    Ok(Measured { spent: span.end()?, come: come.iter().sum(), order })
}
