//! Values that are readable, but cannot be: out of their range, or at odds with each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Config;

/// What cannot be together. The problem is told at the first of the keys that was set.
pub(super) struct Clash {
    pub(super) keys: Vec<&'static str>,
    pub(super) message: String,
}

fn clash(keys: &[&'static str], message: impl Into<String>) -> Clash {
    Clash { keys: keys.to_vec(), message: message.into() }
}

/// Every clash of the values.
pub(super) fn values(config: &Config) -> Vec<Clash> {
    let mut clashes = Vec::new();
    ranges(config, &mut clashes);
    listeners(config, &mut clashes);
    together(config, &mut clashes);
    if let Err(message) = config.limits.check()
        && clashes.is_empty()
    {
        clashes.push(clash(&["limits"], message));
    }
    clashes
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn ranges(config: &Config, clashes: &mut Vec<Clash>) {
    let Config { server, limits, storage, .. } = config;
    let ceilings = crate::types::Limits::CEILINGS;
    for (key, value, least, most) in [
        ("limits.payload_bytes_max", limits.payload_bytes_max, 1, ceilings.payload_bytes),
        ("limits.kind_bytes_max", limits.kind_bytes_max, 1, 255),
        ("limits.headers_max", limits.headers_max, 1, ceilings.headers),
        ("limits.header_name_bytes_max", limits.header_name_bytes_max, 1, 1 << 10),
        ("limits.header_value_bytes_max", limits.header_value_bytes_max, 1, 64 << 10),
        ("limits.headers_bytes_max", limits.headers_bytes_max, 1, 64 << 10),
        ("limits.extension_bytes_max", limits.extension_bytes_max, 0, 64 << 10),
        ("limits.publish_records_max", limits.publish_records_max, 1, ceilings.publish_records),
        ("limits.publish_bytes_max", limits.publish_bytes_max, 1, 2 * ceilings.payload_bytes),
        ("limits.page_bytes_max", limits.page_bytes_max, 1, 2 * ceilings.payload_bytes),
        ("limits.rooms_per_session_max", limits.rooms_per_session_max, 1, ceilings.rooms_per_session),
        ("limits.requests_in_flight_max", limits.requests_in_flight_max, 1, 1 << 20),
        ("server.worker_threads", server.worker_threads, 0, 1024),
        ("server.connections_max", server.connections_max, 1, 1_000_000),
        ("server.connections_per_address_max", server.connections_per_address_max, 1, 1_000_000),
        ("server.handshakes_max", server.handshakes_max, 1, 1_000_000),
        ("server.quic_retry_above", server.quic_retry_above, 0, 1_000_000),
        ("storage.rewrite_below_percent", usize::from(storage.rewrite_below_percent), 0, 90),
        ("storage.publisher_seqs", storage.publisher_seqs, 1, 1 << 20),
        ("storage.publishers_per_room", storage.publishers_per_room, 1, 10_000_000),
        ("storage.read_threads", storage.read_threads, 1, 256),
    ] {
        if value < least || value > most {
            clashes.push(clash(&[key], format!("is {value}, but must be from {least} to {most}")));
        }
    }
    for (key, value, least, most) in [
        ("limits.bytes_in_flight_max", limits.bytes_in_flight_max as u64, 64 * KIB, GIB),
        ("server.websocket_send_bytes_max", server.websocket_send_bytes_max as u64, 4 * KIB, 16 * MIB),
        ("server.quic_send_bytes_max", server.quic_send_bytes_max as u64, 16 * KIB, 64 * MIB),
        ("server.send_bytes_max", server.send_bytes_max as u64, MIB, TIB),
        ("server.receive_bytes_max", server.receive_bytes_max as u64, 16 * MIB, TIB),
        ("storage.commit_queue_bytes_max", storage.commit_queue_bytes_max as u64, 4 * MIB, 64 * GIB),
        ("storage.commit_bytes_max", storage.commit_bytes_max as u64, 4 * MIB, 256 * MIB),
        ("storage.disk_reserve_bytes", storage.disk_reserve_bytes, 0, TIB),
        ("storage.memory_bytes_max", storage.memory_bytes_max, MIB, 16 * TIB),
        ("storage.stretch_bytes", storage.stretch_bytes, MIB, 4 * GIB),
        ("storage.journal_bytes_max", storage.journal_bytes_max, 4 * MIB, 16 * TIB),
        ("storage.tails_bytes_max", storage.tails_bytes_max as u64, MIB, TIB),
        ("storage.block_cache_bytes_max", storage.block_cache_bytes_max as u64, MIB, TIB),
        ("storage.open_volumes_bytes_max", storage.open_volumes_bytes_max as u64, MIB, TIB),
    ] {
        if value < least || value > most {
            let (least, most) = (size(least), size(most));
            clashes.push(clash(&[key], format!("is {}, but must be from {least} to {most}", size(value))));
        }
    }
    let (second, hour, day) = (Duration::from_secs(1), Duration::from_secs(3600), Duration::from_secs(86_400));
    for (key, value, least, most) in [
        ("limits.handshake_timeout", limits.handshake_timeout, second / 10, hour),
        ("limits.idle_timeout", limits.idle_timeout, second, day),
        ("limits.ping_interval", limits.ping_interval, second / 10, day),
        ("limits.stall_timeout", limits.stall_timeout, second, 30 * day),
        ("server.shutdown_deadline", server.shutdown_deadline, Duration::ZERO, hour),
        ("server.reconnect_spread", server.reconnect_spread, Duration::ZERO, hour),
        ("storage.publisher_age_max", storage.publisher_age_max, second, 365 * day),
        ("storage.stretch_age_max", storage.stretch_age_max, second, 30 * day),
    ] {
        if value < least || value > most {
            let message = format!("is {value:?}, but must be from {least:?} to {most:?}");
            clashes.push(clash(&[key], message));
        }
    }
}

fn size(bytes: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

fn listeners(config: &Config, clashes: &mut Vec<Clash>) {
    let server = &config.server;
    if server.listen.is_none() && server.quic_listen.is_none() {
        let message = "clients have no way in: server.listen and server.quic_listen are both \"off\"";
        clashes.push(clash(&["server.listen", "server.quic_listen"], message));
    }
    if server.admin_listen.is_some()
        && server.admin_listen == server.listen
        && server.listen.map(|a| a.port()) != Some(0)
    {
        let message = "clients and operators need two ports: server.listen and server.admin_listen are the same";
        clashes.push(clash(&["server.admin_listen", "server.listen"], message));
    }
    let beyond_loopback = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    for (key, address) in [("server.listen", server.listen), ("server.quic_listen", server.quic_listen)] {
        if let Some(address) = address.filter(beyond_loopback)
            && !server.allow_anonymous
        {
            let message = format!(
                "{address} is beyond loopback, and nobody has to prove who they are; \
                 set server.allow_anonymous = true if that is meant"
            );
            clashes.push(clash(&[key, "server.allow_anonymous"], message));
        }
    }
}

fn together(config: &Config, clashes: &mut Vec<Clash>) {
    let Config { server, tls, limits, storage, .. } = config;
    if tls.certificate.is_some() != tls.key.is_some() {
        clashes
            .push(clash(&["tls.certificate", "tls.key"], "a certificate and its key are given together or not at all"));
    }
    let pairs = [
        (
            "limits.payload_bytes_max",
            limits.payload_bytes_max as u64,
            "limits.publish_bytes_max",
            limits.publish_bytes_max as u64,
        ),
        (
            "server.websocket_send_bytes_max",
            server.websocket_send_bytes_max as u64,
            "server.send_bytes_max",
            server.send_bytes_max as u64,
        ),
        (
            "server.quic_send_bytes_max",
            server.quic_send_bytes_max as u64,
            "server.send_bytes_max",
            server.send_bytes_max as u64,
        ),
        (
            "limits.bytes_in_flight_max",
            limits.bytes_in_flight_max as u64,
            "storage.commit_queue_bytes_max",
            storage.commit_queue_bytes_max as u64,
        ),
    ];
    for (lesser, value, greater, bound) in pairs {
        if value > bound {
            let message = format!("{lesser} is {}, but may be at most {greater}, {}", size(value), size(bound));
            clashes.push(clash(&[lesser, greater], message));
        }
    }
    if storage.journal_bytes_max < storage.stretch_bytes.saturating_mul(2) {
        let message = format!(
            "storage.journal_bytes_max is {}, but must be at least twice storage.stretch_bytes, {}: \
             one stretch is written while another becomes a volume",
            size(storage.journal_bytes_max),
            size(storage.stretch_bytes)
        );
        clashes.push(clash(&["storage.journal_bytes_max", "storage.stretch_bytes"], message));
    }
    if limits.ping_interval.saturating_mul(2) > limits.idle_timeout {
        let message = format!(
            "limits.ping_interval is {:?}, but may be at most half of limits.idle_timeout, {:?}: \
             one lost ping must not end a session",
            limits.ping_interval, limits.idle_timeout
        );
        clashes.push(clash(&["limits.ping_interval", "limits.idle_timeout"], message));
    }
}

/// Files that are named, but cannot be read.
pub(super) fn files(config: &Config) -> Vec<Clash> {
    let unreadable = |(key, path): (&'static str, &Option<PathBuf>)| {
        let path = path.as_ref()?;
        let error = std::fs::read(path).err()?;
        Some(clash(&[key], format!("{}: {error}", path.display())))
    };
    [("tls.certificate", &config.tls.certificate), ("tls.key", &config.tls.key)]
        .into_iter()
        .filter_map(unreadable)
        .collect()
}
