//! What a part of a load gave, as a raw line.

use serde_json::{Value, json};

use crate::histogram::Histogram;
use crate::load::{durable, fanout};
use crate::peers::Target;
use crate::process;

pub(crate) fn fanout_line(
    part: &str,
    rate: Option<f64>,
    measured: &fanout::Measured,
    target: &Target,
) -> Result<Value, String> {
    let mut line = json!({
        "part": part,
        "per_s": measured.deliveries_per_s,
        "count": measured.deliveries,
        "seconds": measured.seconds,
        "server_cpu_s": measured.server_cpu_s,
        "client_cpu_s": measured.client_cpu_s,
        "lost": measured.lost,
        "duplicated": measured.duplicated,
        "disordered": measured.disordered,
        "foreign": measured.foreign,
        "rss_kib": process::rss_kib(target.pid)?,
    });
    if let Some(rate) = rate {
        line["rate"] = json!(rate);
        quantiles(&measured.latency, &mut line);
    }
    Ok(line)
}

pub(crate) fn acks_line(part: &str, measured: &durable::Measured, target: &Target) -> Result<Value, String> {
    let mut line = json!({
        "part": part,
        "per_s": measured.acks_per_s,
        "count": measured.acks,
        "seconds": measured.seconds,
        "server_cpu_s": measured.server_cpu_s,
        "client_cpu_s": measured.client_cpu_s,
        "lost": measured.lost,
        "rss_kib": process::rss_kib(target.pid)?,
    });
    quantiles(&measured.latency, &mut line);
    Ok(line)
}

pub(crate) fn quantiles(latency: &Histogram, line: &mut Value) {
    for (name, part) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        line[name] = json!(latency.quantile_us(part));
    }
}
