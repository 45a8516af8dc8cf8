//! The systems that are compared: how each is started, and what its acknowledgement means.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::wire::{Driver, Mqtt, Nats, Raw, Redis, Roomlog, SocketIo};

/// How long a server may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an answer or a delivery promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// Kept nowhere, or in memory.
    Memory,
    /// Given to the kernel: it survives the process, not the machine.
    Kernel,
    /// On the disk.
    Disk,
}

impl Durability {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Kernel => "kernel",
            Self::Disk => "disk",
        }
    }
}

/// What of a peer is used: fan-out and what is kept may be different features, or differently configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Fanout,
    Kept,
}

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// The program, as `--peer-bin` names it; empty for what this program does itself.
    pub(crate) program: &'static str,
    /// Where packages put it.
    places: &'static [&'static str],
    /// How it is used for fan-out, and for what is kept; `None` where it does not take part.
    pub(crate) fanout: Option<Durability>,
    pub(crate) kept: Option<Durability>,
    /// Whether what it keeps can be read from the beginning by our driver.
    pub(crate) replays: bool,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Limit,
    Roomlog { durability: Option<&'static str> },
    RoomlogQuic,
    Redis { sync: &'static str },
    Nats,
    JetStream { sync: Option<&'static str> },
    Mosquitto,
    Rumqttd,
    SocketIo,
}

/// The one that `install-peers.sh` puts there is newer than Debian's.
const NATS_SERVER: &[&str] = &[concat!(env!("CARGO_MANIFEST_DIR"), "/peers/bin/nats-server"), "/usr/sbin/nats-server"];

pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "limit",
        program: "",
        places: &[],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Disk),
        replays: true,
        kind: Kind::Limit,
    },
    Peer {
        name: "roomlog-ws",
        program: "roomlog",
        places: &["target/release/roomlog"],
        fanout: Some(Durability::Disk),
        kept: Some(Durability::Disk),
        replays: true,
        kind: Kind::Roomlog { durability: None },
    },
    Peer {
        name: "roomlog-os",
        program: "roomlog",
        places: &["target/release/roomlog"],
        fanout: Some(Durability::Kernel),
        kept: Some(Durability::Kernel),
        replays: false,
        kind: Kind::Roomlog { durability: Some("os") },
    },
    Peer {
        name: "roomlog-quic",
        program: "roomlog",
        places: &["target/release/roomlog"],
        fanout: Some(Durability::Disk),
        kept: Some(Durability::Disk),
        replays: true,
        kind: Kind::RoomlogQuic,
    },
    Peer {
        name: "redis",
        program: "redis-server",
        places: &["/usr/bin/redis-server"],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Disk),
        replays: true,
        kind: Kind::Redis { sync: "always" },
    },
    Peer {
        name: "redis-everysec",
        program: "redis-server",
        places: &["/usr/bin/redis-server"],
        fanout: None,
        kept: Some(Durability::Kernel),
        replays: false,
        kind: Kind::Redis { sync: "everysec" },
    },
    Peer {
        name: "nats",
        program: "nats-server",
        places: NATS_SERVER,
        fanout: Some(Durability::Memory),
        kept: None,
        replays: false,
        kind: Kind::Nats,
    },
    Peer {
        name: "jetstream",
        program: "nats-server",
        places: NATS_SERVER,
        fanout: None,
        kept: Some(Durability::Kernel),
        replays: false,
        kind: Kind::JetStream { sync: None },
    },
    Peer {
        name: "jetstream-always",
        program: "nats-server",
        places: NATS_SERVER,
        fanout: None,
        kept: Some(Durability::Disk),
        replays: false,
        kind: Kind::JetStream { sync: Some("always") },
    },
    Peer {
        name: "mosquitto",
        program: "mosquitto",
        places: &["/usr/sbin/mosquitto"],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Memory),
        replays: false,
        kind: Kind::Mosquitto,
    },
    Peer {
        name: "rumqttd",
        program: "rumqttd",
        places: &[concat!(env!("CARGO_MANIFEST_DIR"), "/peers/bin/rumqttd")],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Memory),
        replays: false,
        kind: Kind::Rumqttd,
    },
    Peer {
        name: "socketio",
        program: "node",
        places: &["/usr/bin/node"],
        fanout: Some(Durability::Memory),
        kept: None,
        replays: false,
        kind: Kind::SocketIo,
    },
];

/// Where `install-peers.sh` puts Socket.IO.
const SOCKETIO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/server.js");

impl Peer {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        PEERS.iter().find(|peer| peer.name == name)
    }

    pub(crate) fn durability(&self, role: Role) -> Option<Durability> {
        match role {
            Role::Fanout => self.fanout,
            Role::Kept => self.kept,
        }
    }

    /// The program: as given, beside this one, on the search path, or where packages put it. The error says why the
    /// peer is missing.
    pub(crate) fn find(&self, given: &[(String, PathBuf)]) -> Result<PathBuf, String> {
        let own = std::env::current_exe().map_err(|error| format!("this program's place: {error}"))?;
        if self.program.is_empty() {
            return Ok(own);
        }
        // The peer's own name goes before that of a program that several peers share.
        let named = |wanted: &str| given.iter().find(|(name, _)| name == wanted).map(|(_, path)| path.clone());
        let found = named(self.name).or_else(|| named(self.program)).or_else(|| self.installed(&own));
        let found = found.ok_or_else(|| format!("{} is not installed", self.program))?;
        match self.kind {
            Kind::SocketIo if !Path::new(SOCKETIO).is_file() => Err("socket.io is not installed".to_owned()),
            Kind::JetStream { sync: Some(_) } if !self.accepts(&found) => {
                Err("this nats-server does not know sync_interval: always".to_owned())
            }
            _ => Ok(found),
        }
    }

    fn installed(&self, own: &Path) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = vec![own.with_file_name(self.program)];
        places.extend(self.places.iter().map(PathBuf::from));
        places.extend(std::env::split_paths(&path).map(|directory| directory.join(self.program)));
        places.into_iter().find(|place| place.is_file())
    }

    /// Whether the server takes its configuration.
    fn accepts(&self, program: &Path) -> bool {
        let directory = std::env::temp_dir().join(format!("roomlog-compare-{}", std::process::id()));
        let accepts = fs::create_dir_all(&directory).and_then(|()| self.configure(0, &directory)).and_then(|()| {
            let mut command = Command::new(program);
            command
                .args(["-t", "-c", self.configuration()])
                .current_dir(&directory)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status()
        });
        let _ = fs::remove_dir_all(&directory);
        accepts.is_ok_and(|status| status.success())
    }

    /// Its configuration file: one of them tells the format by the name.
    fn configuration(&self) -> &'static str {
        if matches!(self.kind, Kind::Rumqttd) { "conf.toml" } else { "conf" }
    }

    /// Writes the configuration file of those that need one.
    fn configure(&self, port: u16, directory: &Path) -> std::io::Result<()> {
        let text = match self.kind {
            Kind::Nats => format!("listen: 127.0.0.1:{port}\nmax_connections: 100000\n"),
            Kind::JetStream { sync } => {
                let sync = sync.map(|sync| format!(", sync_interval: {sync}")).unwrap_or_default();
                format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: js{sync} }}\n")
            }
            Kind::Mosquitto => format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n\
                 max_inflight_messages 0\nset_tcp_nodelay true\n"
            ),
            // The file that it ships, with another port and nothing for other listeners.
            Kind::Rumqttd => format!(
                "id = 0\n[router]\nid = 0\nmax_connections = 20000\nmax_outgoing_packet_count = 200\n\
                 max_segment_size = 104857600\nmax_segment_count = 10\n[v4.1]\nname = \"v4-1\"\n\
                 listen = \"127.0.0.1:{port}\"\nnext_connection_delay_ms = 0\n[v4.1.connections]\n\
                 connection_timeout_ms = 60000\nmax_payload_size = 20480\nmax_inflight_count = 500\ndynamic_filters = true\n"
            ),
            _ => return Ok(()),
        };
        fs::write(directory.join(self.configuration()), text)
    }

    /// Whether its connections are QUIC's; everybody else's are TCP's.
    pub(crate) fn is_quic(&self) -> bool {
        matches!(self.kind, Kind::RoomlogQuic)
    }

    /// A driver for a new connection.
    pub(crate) fn driver(&self) -> Driver {
        /// Publishers are told apart by it.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        match self.kind {
            Kind::Limit => Driver::Raw(Raw::new()),
            Kind::Roomlog { .. } => Driver::Roomlog(Roomlog::new(id)),
            Kind::RoomlogQuic => Driver::Roomlog(Roomlog::bare(id)),
            Kind::Redis { .. } => Driver::Redis(Redis::new()),
            Kind::Nats => Driver::Nats(Nats::core()),
            Kind::JetStream { .. } => Driver::Nats(Nats::jetstream(id)),
            Kind::Mosquitto | Kind::Rumqttd => Driver::Mqtt(Mqtt::new(id)),
            Kind::SocketIo => Driver::SocketIo(SocketIo::new()),
        }
    }

    /// Program and arguments, as a user would type them.
    fn command(&self, program: &Path, port: u16, role: Role, directory: &Path) -> Command {
        let mut command = Command::new(program);
        let port_text = port.to_string();
        match self.kind {
            Kind::Limit => {
                command.args(["limit", "--port", &port_text]);
                if role == Role::Kept {
                    command.args(["--log", "log"]);
                }
            }
            Kind::Roomlog { durability } => {
                command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--quic", "off", "--admin", "off"]);
                if let Some(durability) = durability {
                    command.env("ROOMLOG__STORAGE__DURABILITY", durability);
                }
            }
            // It listens on TCP as well: there one can see that it is ready.
            Kind::RoomlogQuic => {
                let address = format!("127.0.0.1:{port}");
                command.args(["serve", "--listen", &address, "--quic", &address, "--admin", "off"]);
            }
            Kind::Redis { sync } => {
                command.args(["--port", &port_text, "--save", "", "--maxclients", "60000"]);
                if role == Role::Kept {
                    command.args(["--appendonly", "yes", "--appendfsync", sync]);
                }
            }
            Kind::Nats | Kind::JetStream { .. } | Kind::Mosquitto | Kind::Rumqttd => {
                command.args(["-c", self.configuration()]);
            }
            Kind::SocketIo => drop(command.args([SOCKETIO, &port_text])),
        }
        command.current_dir(directory);
        command
    }
}
/// The server under load.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
    pub(crate) peer: &'static Peer,
}

/// How a server is brought to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is asked, and may close its files.
    Ask,
    /// It has no time for anything.
    Kill,
}

/// A running server, in a directory of its own that goes with it.
pub(crate) struct Server {
    peer: &'static Peer,
    program: PathBuf,
    port: u16,
    role: Role,
    child: Option<Child>,
    pub(crate) command: String,
    directory: PathBuf,
}

impl Server {
    /// Starts a peer on this directory, made empty, and waits until it listens.
    pub(crate) fn start(
        peer: &'static Peer,
        program: &Path,
        port: u16,
        role: Role,
        directory: PathBuf,
    ) -> Result<Self, String> {
        let world = |what: &str, error: std::io::Error| format!("{}: {what}: {error}", peer.name);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|error| world("removing old data", error))?;
        }
        fs::create_dir_all(&directory).map_err(|error| world("making its directory", error))?;
        peer.configure(port, &directory).map_err(|error| world("its configuration", error))?;
        let program = std::path::absolute(program).map_err(|error| world("its program", error))?;
        let mut server = Self { peer, program, port, role, child: None, command: String::new(), directory };
        server.spawn()?;
        Ok(server)
    }

    /// Starts it, waits until it listens, and says when it was started.
    fn spawn(&mut self) -> Result<Instant, String> {
        let (name, port) = (self.peer.name, self.port);
        let world = |what: &str, error: std::io::Error| format!("{name}: {what}: {error}");
        let address = self.address();
        drop(TcpListener::bind(address).map_err(|error| format!("port {port} is not free: {error}"))?);
        let mut command = self.peer.command(&self.program, port, self.role, &self.directory);
        let output = File::create(self.directory.join("output")).map_err(|error| world("its output", error))?;
        let errors = output.try_clone().map_err(|error| world("its output", error))?;
        self.command = words(self.peer, &command, &self.directory);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let start = Instant::now();
        self.child = Some(command.spawn().map_err(|error| world("starting it", error))?);
        while TcpStream::connect(address).is_err() {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(format!("{name} ended at once, {status}: {}", self.output()));
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{name} does not listen on {address}: {}", self.output()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start)
    }

    /// Stops it as asked and starts it on what it has kept. Returns when it was started.
    pub(crate) fn restart(&mut self, stop: Stop) -> Result<Instant, String> {
        if let (Stop::Kill, Some(child)) = (stop, self.child.as_mut()) {
            child.kill().map_err(|error| format!("{}: ending it: {error}", self.peer.name))?;
        }
        self.stop();
        self.spawn()
    }

    /// Stops it, drops its files from the page cache, and starts it on what it has kept.
    pub(crate) fn restart_cold(&mut self) -> Result<(), String> {
        self.stop();
        uncache(&self.directory).map_err(|error| format!("{}: {error}", self.directory.display()))?;
        self.spawn().map(drop)
    }

    pub(crate) fn target(&self) -> Target {
        let pid = self.child.as_ref().map_or(0, Child::id);
        Target { address: self.address(), pid, peer: self.peer }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The last lines that it wrote.
    fn output(&self) -> String {
        let text = fs::read_to_string(self.directory.join("output")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" / ")
    }

    /// An error, with what the server wrote.
    pub(crate) fn says(&self, error: &str) -> String {
        format!("{error} [{}]", self.output())
    }

    /// What its directory takes of the disk.
    pub(crate) fn disk_mib(&self) -> u64 {
        disk_bytes(&self.directory) >> 20
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Asked first, so that it can close its files.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM);
        let start = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

/// Drops all files of a directory from the page cache: only these, so that it needs no rights and disturbs nobody.
fn uncache(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            uncache(&path)?;
        } else if path.is_file() {
            let file = File::open(&path)?;
            // What is not on the disk yet cannot be dropped.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}
/// A command as text: its settings, the program, the arguments, and the configuration file if there is one.
fn words(peer: &Peer, command: &Command, directory: &Path) -> String {
    let settings = command
        .get_envs()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy()));
    let program = if peer.program.is_empty() { env!("CARGO_PKG_NAME") } else { peer.program };
    let arguments = command.get_args().map(|argument| {
        let argument = argument.to_string_lossy();
        match (argument.is_empty(), argument.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/"))) {
            (true, _) => "\"\"".to_owned(),
            (_, Some(inside)) => inside.to_owned(),
            _ => argument.into_owned(),
        }
    });
    let mut text = settings.chain([program.to_owned()]).chain(arguments).collect::<Vec<_>>().join(" ");
    if let Ok(configuration) = fs::read_to_string(directory.join(peer.configuration())) {
        text += &format!(" # {}: {}", peer.configuration(), configuration.trim_end().replace('\n', "; "));
    }
    text
}
