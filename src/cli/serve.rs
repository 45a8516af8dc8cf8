//! `roomlog serve`: configuration in, a running server, and a graceful end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use super::failure::Failure;
use super::output::{complain, say};
use crate::broker::Broker;
use crate::config::{Config, Durability, FlagValue, Level, LogFormat, Problem};
use crate::server::{Bound, Exporter, Options, Server, broker_options, raise_descriptor_limit};

#[derive(Args, Debug)]
#[command(after_help = "\
Without flags it listens on 127.0.0.1:7400 (WebSocket and QUIC) and 127.0.0.1:7401 (metrics and health), and keeps its \
data in ./roomlog-data. Every key of the configuration file can be set in the environment, as \
ROOMLOG__SERVER__LISTEN=127.0.0.1:7500; flags come last. SIGTERM and SIGINT end it gracefully, with exit code 0; a second \
one ends it at once.

Examples:
  roomlog serve
  roomlog serve --data /var/lib/roomlog --config /etc/roomlog/broker.toml
  roomlog serve --listen 127.0.0.1:7500 --quic off --admin off")]
pub(super) struct Arguments {
    /// The configuration file; `roomlog default-config` prints one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory; made if it is not there [default: ./roomlog-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where to listen for WebSocket and HTTP; off = nowhere [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where to listen for QUIC; off = nowhere [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    quic: Option<String>,
    /// Where to listen for metrics and health; off = nowhere [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

impl Arguments {
    fn flags(&self) -> Vec<FlagValue> {
        [
            ("--data", "storage.directory", &self.data),
            ("--listen", "server.listen", &self.listen),
            ("--quic", "server.quic_listen", &self.quic),
            ("--admin", "server.admin_listen", &self.admin),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some(FlagValue { flag, key, value: value.clone()? }))
        .collect()
    }
}

/// Every problem on a line of its own; the last one is the failure.
pub(super) fn tell(problems: &[Problem]) -> Failure {
    problems.iter().for_each(|problem| complain(&problem.to_string()));
    Failure::failed(match problems.len() {
        1 => "the configuration has a problem".to_owned(),
        count => format!("the configuration has {count} problems"),
    })
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = Config::load(arguments.config.as_deref(), std::env::vars_os(), &arguments.flags())
        .map_err(|problems| tell(&problems))?;
    log_to_standard_error(&config);
    raise_descriptor_limit();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.server.worker_threads > 0 {
        builder.worker_threads(config.server.worker_threads);
    }
    let runtime = builder.enable_all().build().map_err(|error| Failure::failed(format_args!("no runtime: {error}")))?;
    runtime.block_on(serve(&config))
}

async fn serve(config: &Config) -> Result<(), Failure> {
    // Before anything is open: a signal must not find us half way.
    let unheard = |error: std::io::Error| Failure::failed(format_args!("signals cannot be listened to: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(unheard)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unheard)?;

    let (exporter, metrics) = Exporter::new();
    let mut options = broker_options(config);
    options.metrics = metrics;
    let broker = Broker::open(options).await.map_err(Failure::failed)?;
    let mut options = Options::from_config(config);
    options.exporter = Some(exporter);
    let server = match Server::start(broker.clone(), options).await {
        Ok(server) => server,
        Err(error) => {
            broker.close().await;
            return Err(Failure::failed(error));
        }
    };
    welcome(config, &server.bound());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = server.stop() => Ok(()),
        () = again => Err(Failure::failed("stopped before all was done, as was asked for twice")),
    }
}

/// What a person at a terminal wants to know now.
fn welcome(config: &Config, bound: &Bound) {
    let secure = config.tls.certificate.is_some();
    let mut lines = Vec::new();
    if let Some(address) = bound.listen {
        let (ws, http) = if secure { ("wss", "https") } else { ("ws", "http") };
        lines.push(format!("page       {http}://{}/", named(address)));
        lines.push(format!("WebSocket  {ws}://{}", named(address)));
    }
    if let Some(address) = bound.quic {
        let directory = config.storage.directory.display();
        let trust = match (secure, config.storage.durability) {
            (true, _) => String::new(),
            (false, Durability::Memory) => "   (passing certificate: --insecure)".to_owned(),
            (false, _) => format!("   (development certificate: --ca {directory}/dev-cert.pem)"),
        };
        lines.push(format!("QUIC       quic://{}{trust}", named(address)));
    }
    if let Some(address) = bound.admin {
        lines.push(format!("metrics    http://{}/metrics", named(address)));
    }
    lines.push(match config.storage.durability {
        Durability::Fsync => format!("data       {}", config.storage.directory.display()),
        Durability::Os => format!("data       {} (a power cut may lose records)", config.storage.directory.display()),
        Durability::Memory => "data       in memory only: gone with this process".to_owned(),
    });
    if let Some(address) = bound.listen {
        let url = match address {
            address if address.port() == 7400 && address.ip().is_loopback() && !secure => String::new(),
            address => format!(" --url {}://{}", if secure { "wss" } else { "ws" }, named(address)),
        };
        lines.push(format!("try        roomlog sub kitchen --from earliest{url}"));
        lines.push(format!("           echo hello | roomlog pub kitchen{url}"));
    }
    say(&format!("roomlog {} is running\n  {}", env!("CARGO_PKG_VERSION"), lines.join("\n  ")));
}

/// An address to paste: where it listens everywhere, one that is reachable from here.
fn named(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn log_to_standard_error(config: &Config) {
    let level = match config.log.level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // Whoever runs two servers in one process has a logger already; that one stays.
    let _ = match config.log.format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
}

/// `roomlog check-config`
#[derive(Args, Debug)]
#[command(after_help = "\
Merges FILE with the environment as `serve` would and tells every problem. Nothing is opened.

Examples:
  roomlog check-config broker.toml
  roomlog check-config          # the environment alone")]
pub(super) struct CheckConfigArguments {
    /// The configuration file
    file: Option<PathBuf>,
}

pub(super) fn check_config(arguments: &CheckConfigArguments) -> Result<(), Failure> {
    Config::load(arguments.file.as_deref(), std::env::vars_os(), &[]).map_err(|problems| tell(&problems))?;
    say("the configuration is sound");
    Ok(())
}

/// `roomlog default-config`
#[derive(Args, Debug)]
#[command(after_help = "\
Every key is there with its default, its unit and its reason.

Examples:
  roomlog default-config > broker.toml")]
pub(super) struct DefaultConfigArguments {}

pub(super) fn default_config() -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    out.write_all(crate::config::DEFAULT_FILE.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// `roomlog check`
#[derive(Args, Debug)]
#[command(after_help = "\
Verifies every checksum, the order of all records and every chain, in the journal, the volumes, the manifest and the \
metadata. One line for each finding: file:position:what. No server may have the directory open. Nothing is repaired.
Exit codes: 0 intact, 1 damage, 2 could not be checked.

Examples:
  roomlog check ./roomlog-data")]
pub(super) struct CheckArguments {
    /// The data directory
    directory: PathBuf,
}

/// Its exit codes are its own: 0 intact, 1 damage, 2 could not run.
pub(super) fn check(arguments: &CheckArguments) -> ExitCode {
    let report = match crate::storage::check::check(&arguments.directory) {
        Ok(report) => report,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(2);
        }
    };
    for finding in &report.findings {
        say(&finding.to_string());
    }
    if let Some(torn) = &report.torn {
        complain(&format!("no damage: {torn} (never acknowledged; the next start cuts it off)"));
    }
    let found = format!(
        "{} rooms, {} records, {} commits in the journal, {} volumes",
        report.rooms, report.records, report.commits, report.volumes
    );
    if report.findings.is_empty() {
        say(&format!("intact: {found}"));
        ExitCode::SUCCESS
    } else {
        complain(&format!("damage: {} findings; {found}", report.findings.len()));
        ExitCode::FAILURE
    }
}
