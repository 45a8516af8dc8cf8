//! Publishes that are acknowledged: so many connections, each with so many on their way, into one room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Span, Times};
use crate::histogram::Histogram;
use crate::line::Lines;
use crate::payload::Payload;
use crate::peers::Target;
use crate::wire::{Event, Wire};

/// Without any answer for so long, what was not answered is lost.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) window: usize,
    pub(crate) payload_bytes: usize,
}

pub(crate) struct Measured {
    pub(crate) acks_per_s: f64,
    pub(crate) acks: u64,
    pub(crate) seconds: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
    /// From the write to the answer.
    pub(crate) latency: Histogram,
    pub(crate) lost: u64,
}

/// One run, over connections of its own.
pub(crate) fn run(target: &Target, shape: Shape, times: Times) -> Result<Measured, String> {
    let mut lines = Lines::new()?;
    for _ in 0..shape.connections {
        lines.open(target)?;
    }
    let mut payload = Payload::new(shape.payload_bytes);
    let mut latency = Histogram::new();
    let mut waiting: Vec<VecDeque<(Instant, u32)>> = (0..shape.connections).map(|_| VecDeque::new()).collect();
    let mut seq = 0_u32;
    let (mut acks, mut from) = (0_u64, 0);
    let (mut span, mut spent) = (None, None);

    let mut append = |lines: &mut Lines, waiting: &mut VecDeque<(Instant, u32)>, number: usize, count: u32| {
        let line = &mut lines.lines[number];
        for _ in 0..count {
            line.driver.append(0, payload.write(seq, 0), &mut line.out);
            seq = seq.wrapping_add(1);
        }
        line.driver.seal(&mut line.out);
        waiting.push_back((Instant::now(), count));
        lines.flush(number)
    };

    let start = Instant::now();
    for (number, waiting) in waiting.iter_mut().enumerate() {
        append(&mut lines, waiting, number, shape.window as u32)?;
    }
    let mut last_ack = Instant::now();
    loop {
        if span.is_none() && start.elapsed() >= times.warm_up {
            (span, from) = (Some(Span::begin(target.pid)?), acks);
        }
        let publishing = span.as_ref().is_none_or(|span: &Span| span.start.elapsed() < times.measured);
        let measuring = publishing && span.is_some();
        if let Some(span) = span.as_ref().filter(|_| !publishing && spent.is_none()) {
            spent = Some((span.end()?, acks - from));
        }
        if !publishing && (waiting.iter().all(VecDeque::is_empty) || last_ack.elapsed() > SILENCE) {
            break;
        }
        lines.wait(Duration::from_millis(20))?;
        let ready = std::mem::take(&mut lines.ready);
        for &(number, readable, writable) in &ready {
            if writable {
                lines.flush(number)?;
            }
            if !readable {
                continue;
            }
            let mut answered = 0;
            lines.read(number, &mut |event: Event<'_>| {
                if let Event::Answered(count) = event {
                    answered += count;
                }
            })?;
            if answered == 0 {
                lines.flush(number)?;
                continue;
            }
            last_ack = Instant::now();
            acks += u64::from(answered);
            let mut left = answered;
            while left > 0 {
                let (sent, count) = waiting[number].front_mut().ok_or("more answers than publishes")?;
                let part = left.min(*count);
                if measuring {
                    let ns = (last_ack - *sent).as_nanos() as u64;
                    (0..part).for_each(|_| latency.add(ns));
                }
                *count -= part;
                left -= part;
                if *count == 0 {
                    waiting[number].pop_front();
                }
            }
            if publishing {
                append(&mut lines, &mut waiting[number], number, answered)?;
            }
        }
        lines.ready = ready;
    }
    let (spent, measured) = spent.ok_or("nothing was measured")?;
    if measured == 0 {
        return Err(format!(
            "none of {} publishes was answered in {:.1} s",
            shape.connections * shape.window,
            spent.seconds
        ));
    }
    Ok(Measured {
        acks_per_s: measured as f64 / spent.seconds,
        acks: measured,
        seconds: spent.seconds,
        server_cpu_s: spent.server_cpu_s,
        client_cpu_s: spent.client_cpu_s,
        latency,
        lost: waiting.iter().flatten().map(|(_, count)| u64::from(*count)).sum(),
    })
}
