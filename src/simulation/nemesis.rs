//! All that can go wrong, one thing after the other or several at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep};

use super::World;
use super::network::Weather;
use super::server::{Ending, Server};
use crate::storage::disk::Fault;

/// Does its worst until a moment, and then leaves everything in order.
pub(super) async fn nemesis(world: Arc<World>, server: Arc<Server>, clients: usize, until: Instant) {
    let mut chance = world.chance(6000);
    // Some worlds are rougher than others.
    let pause_max = [500, 2000, 6000][chance.random_range(0..3)];
    let mut full_until = None;
    while Instant::now() < until {
        sleep(Duration::from_millis(chance.random_range(0..pause_max))).await;
        if full_until.is_some_and(|at| at <= Instant::now()) {
            full_until = None;
            heal_disk(&world, &server);
        }
        if server.has_failed() {
            world.count("looks at a log that has failed");
        }
        if server.has_failed() && chance.random_bool(0.5) {
            let how = if chance.random_bool(0.5) { Ending::Kill } else { Ending::PowerCut };
            server.end(how, Duration::from_millis(chance.random_range(0..2000)));
        }
        let pause = Duration::from_millis(chance.random_range(0..5000));
        let disk = server.disk();
        let soon = disk.operations() + 1 + chance.random_range(0..8);
        let any = chance.random_range(0..clients);
        match chance.random_range(0..24) {
            0..7 => world.network.cut_one(),
            7 | 8 => {
                world.say(format_args!("client {any} is cut off"));
                world.count("partitions");
                world.network.part(any, Duration::from_millis(chance.random_range(100..12_000)));
            }
            9 => {
                world.say(format_args!("everybody is cut off"));
                world.count("partitions");
                let time = Duration::from_millis(chance.random_range(100..8000));
                (0..clients).for_each(|who| world.network.part(who, time));
            }
            10 | 11 => {
                let weather = Weather {
                    way_ms: [1, 20, 200, 800][chance.random_range(0..4)],
                    loss: [0.0, 0.02, 0.2][chance.random_range(0..3)],
                    window: [700, 4096, 64 << 10][chance.random_range(0..3)],
                };
                world.say(format_args!("{weather:?}"));
                world.network.set_weather(weather);
            }
            12 => server.end(Ending::Kill, pause),
            13 => server.end(Ending::PowerCut, pause),
            14 | 15 if server.is_up() => {
                let how = if chance.random_bool(0.5) { Ending::PowerCut } else { Ending::Kill };
                world.say(format_args!("at disk operation {soon} comes the end: {how:?}"));
                world.count(if how == Ending::Kill { "kills at an operation" } else { "power cuts at an operation" });
                server.end_at_operation(soon, how, pause);
            }
            16 => server.end_after_commit(Ending::Kill, pause),
            17 => server.end_after_commit(Ending::PowerCut, pause),
            18 | 19 if server.is_up() => {
                let fault = match chance.random_range(0..4) {
                    0 => Fault::Torn,
                    1 => Fault::Short { bytes: chance.random_range(0..2000) },
                    2 => Fault::Enospc,
                    _ => Fault::Eio,
                };
                world.say(format_args!("disk operation {soon} is to fail with {fault:?}"));
                world.count("disk faults");
                disk.fail_at(soon, fault);
            }
            20 if server.is_up() && full_until.is_none() => {
                world.say(format_args!("the disk is full"));
                world.count("full disks");
                world.full.store(true, Ordering::SeqCst);
                disk.fill_at(disk.operations() + 1, chance.random_range(0..20_000));
                full_until = Some(Instant::now() + Duration::from_millis(chance.random_range(500..6000)));
            }
            21 => server.end(Ending::Stop, pause),
            22 => {
                let step = Duration::from_secs(chance.random_range(0..3600));
                let back = chance.random_bool(0.5);
                world.say(format_args!("the clock is set by {step:?}, back: {back}"));
                world.count("clock steps");
                world.clock.step(step, back);
            }
            _ => {}
        }
    }
    world.say(format_args!("calm"));
    heal_disk(&world, &server);
    world.network.heal();
    // What is still to befall the disk befalls one that is no longer in use.
    server.end(if chance.random_bool(0.5) { Ending::Kill } else { Ending::PowerCut }, Duration::from_millis(50));
    while !server.is_up() || server.has_failed() {
        sleep(Duration::from_millis(20)).await;
        heal_disk(&world, &server);
    }
}

fn heal_disk(world: &World, server: &Server) {
    let disk = server.disk();
    // It may not have come to be filled yet.
    disk.fill_at(u64::MAX, 0);
    disk.set_capacity(u64::MAX);
    world.full.store(false, Ordering::SeqCst);
}
