//! The port for operators: metrics, health, and what this server is.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, header};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;

use super::Inner;
use super::http::{Answer, FOREIGN_HOST, not_allowed, own_host, plain, set};
use crate::metrics::{BUCKETS, Metrics};
use crate::storage::{Durability, Health};

/// The metrics of one broker in the text form of Prometheus. Nothing global: each broker may have its own.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
}

impl Exporter {
    /// An exporter, and the metrics that it renders: those go into the broker's options.
    ///
    /// # Panics
    /// Never: the buckets are compiled in.
    #[must_use]
    pub fn new() -> (Self, Arc<Metrics>) {
        let mut builder = PrometheusBuilder::new();
        for (suffix, bounds) in BUCKETS {
            let matcher = Matcher::Suffix((*suffix).to_owned());
            builder = builder.set_buckets_for_metric(matcher, bounds).expect("buckets are not empty");
        }
        let recorder = builder.build_recorder();
        let metrics = Arc::new(Metrics::new(&recorder));
        (Self { handle: recorder.handle() }, metrics)
    }

    /// The metrics as text.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Takes over what histograms were given since the last time. Without it they grow: to be called every few
    /// seconds, which a [`super::Server`] does.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

/// Answers a request of an operator.
pub(super) fn answer<B>(request: &Request<B>, inner: &Inner) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed();
    }
    // On loopback only a browser would name another host, and only for a page that is none of ours.
    let on_loopback = inner.bound.admin.is_some_and(|address| address.ip().to_canonical().is_loopback());
    if on_loopback && own_host(request.headers(), &inner.options.allowed_hosts).is_none() {
        return plain(StatusCode::FORBIDDEN, FOREIGN_HOST);
    }
    match request.uri().path() {
        "/metrics" => match &inner.options.exporter {
            Some(exporter) => {
                let mut answer = Response::new(Full::new(Bytes::from(exporter.render())));
                set(&mut answer, header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
                answer
            }
            None => plain(StatusCode::NOT_FOUND, "This server has no exporter.\n"),
        },
        "/health/live" => plain(StatusCode::OK, "ok\n"),
        "/health/ready" => match unready(inner) {
            None => plain(StatusCode::OK, "ok\n"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
        },
        "/info" => {
            let mut answer = Response::new(Full::new(Bytes::from(info(inner).to_string() + "\n")));
            set(&mut answer, header::CONTENT_TYPE, "application/json");
            set(&mut answer, header::CACHE_CONTROL, "no-store");
            answer
        }
        _ => plain(StatusCode::NOT_FOUND, "There is /metrics, /health/live, /health/ready and /info.\n"),
    }
}

/// Why the server should get no new work, if it should not.
fn unready(inner: &Inner) -> Option<String> {
    if inner.stop.is_cancelled() {
        return Some("shutting down".to_owned());
    }
    match inner.broker.health() {
        Health::Ok => None,
        Health::Full(why) => Some(format!("storage is full: {why}")),
        Health::Failed(why) => Some(format!("storage has failed: {why}")),
        Health::Closed => Some("the broker has been closed".to_owned()),
    }
}

fn info(inner: &Inner) -> serde_json::Value {
    let limits = inner.broker.limits();
    json!({
        "name": "roomlog",
        "version": env!("CARGO_PKG_VERSION"),
        "epoch": inner.broker.epoch().0,
        "uptime_seconds": inner.started.elapsed().as_secs(),
        "durability": match inner.options.durability {
            Durability::Fsync => "fsync",
            Durability::Os => "os",
            Durability::Memory => "memory",
        },
        "listeners": {
            "tcp": inner.bound.listen,
            "quic": inner.bound.quic,
            "admin": inner.bound.admin,
            "tls": inner.tls.is_some(),
        },
        "limits": {
            "connections_max": inner.options.connections_max,
            "connections_per_address_max": inner.options.connections_per_address_max,
            "frame_bytes_max": limits.frame_bytes_max(),
            "payload_bytes_max": limits.payload_bytes_max,
            "publish_records_max": limits.publish_records_max,
            "publish_bytes_max": limits.publish_bytes_max,
            "page_bytes_max": limits.page_bytes_max,
            "rooms_per_session_max": limits.rooms_per_session_max,
            "requests_in_flight_max": limits.requests_in_flight_max,
            "bytes_in_flight_max": limits.bytes_in_flight_max,
            "idle_timeout_ms": limits.idle_timeout.as_millis() as u64,
            "stall_timeout_ms": limits.stall_timeout.as_millis() as u64,
        },
    })
}
