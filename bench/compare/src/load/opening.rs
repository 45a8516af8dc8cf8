//! Clients that arrive by the clock, and each open several rooms at their last records with one write.

use std::time::{Duration, Instant};

use super::{Span, Spent};
use crate::histogram::Histogram;
use crate::line::Lines;
use crate::order::Order;
use crate::payload;
use crate::peers::Target;
use crate::random::Random;
use crate::wire::{Event, Start, Wire};

/// Without anything for so long, what has not come is lost.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) clients: usize,
    pub(crate) rooms_each: usize,
    /// Records of each room, the newest ones.
    pub(crate) last: u32,
    pub(crate) clients_per_s: f64,
}

pub(crate) struct Measured {
    /// Of a client, from when it was due until all of its rooms are there.
    pub(crate) latency: Histogram,
    pub(crate) spent: Spent,
    pub(crate) records: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) disordered: u64,
    pub(crate) foreign: u64,
}

/// A room that a client opens, and what must come of it.
struct Opened {
    room: u32,
    order: Order,
    end: u32,
    left: u32,
}

/// `next` has the count of records of each room from room 1 on.
pub(crate) fn run(target: &Target, shape: Shape, next: &[u32], random: &mut Random) -> Result<Measured, String> {
    let mut lines = Lines::new()?;
    let mut clients = Vec::new();
    for _ in 0..shape.clients {
        lines.open(target)?;
        let rooms = random.distinct(shape.rooms_each, next.len() as u32);
        let opened = rooms.into_iter().map(|room| {
            let end = next[room as usize];
            let left = end.min(shape.last);
            Opened { room: room + 1, order: Order::starting(end - left), end, left }
        });
        clients.push(opened.collect::<Vec<_>>());
    }
    // An empty room has nothing to wait for.
    let mut rooms_left: Vec<_> =
        clients.iter().map(|rooms| rooms.iter().filter(|room| room.left > 0).count()).collect();
    // Of which of its rooms a client is being sent something: a delivery may come in parts.
    let mut sent = vec![None; shape.clients];
    let (mut latency, mut records) = (Histogram::new(), 0);
    let due = |client: usize| Duration::from_secs_f64(client as f64 / shape.clients_per_s);
    let (mut arrived, mut left) = (0, rooms_left.iter().filter(|rooms| **rooms > 0).count());
    let span = Span::begin(target.pid)?;
    let begun = Instant::now();
    let mut last = begun;
    while arrived < shape.clients || left > 0 && last.elapsed() < SILENCE {
        while arrived < shape.clients && due(arrived) <= begun.elapsed() {
            let line = &mut lines.lines[arrived];
            for opened in &clients[arrived] {
                line.driver.join(opened.room, Start::Last(shape.last), &mut line.out);
            }
            lines.flush(arrived)?;
            arrived += 1;
        }
        let pause = if arrived < shape.clients { due(arrived).saturating_sub(begun.elapsed()) } else { Duration::MAX };
        lines.wait(pause.min(Duration::from_millis(20)))?;
        let ready = std::mem::take(&mut lines.ready);
        for &(number, readable, _) in &ready {
            if readable {
                let rooms = &mut clients[number];
                let (had, sent) = (rooms_left[number], &mut sent[number]);
                lines.read(number, &mut |event: Event<'_>| match event {
                    Event::Room(room) => *sent = rooms.iter().position(|opened| opened.room == room),
                    Event::Delivered(bytes) => {
                        records += 1;
                        if let Some(opened) = sent.map(|index| &mut rooms[index]) {
                            opened.order.take(payload::seq(bytes));
                            rooms_left[number] -= usize::from(opened.left == 1);
                            opened.left = opened.left.saturating_sub(1);
                        }
                    }
                    _ => {}
                })?;
                last = Instant::now();
                if had > 0 && rooms_left[number] == 0 {
                    latency.add((begun.elapsed() - due(number)).as_nanos() as u64);
                    left -= 1;
                }
            }
            lines.flush(number)?;
        }
        lines.ready = ready;
    }
    let spent = span.end()?;
    let mut measured = Measured { latency, spent, records, lost: 0, duplicated: 0, disordered: 0, foreign: 0 };
    for opened in clients.iter().flatten() {
        measured.lost += opened.order.lost(opened.end);
        measured.duplicated += opened.order.duplicated;
        measured.disordered += opened.order.disordered;
        measured.foreign += opened.order.foreign;
    }
    Ok(measured)
}
