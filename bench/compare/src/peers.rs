//! The systems that are compared: how each is started, and what its acknowledgement means.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::wire::{Driver, Raw, Redis, Roomlog};

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
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Limit,
    Roomlog { durability: Option<&'static str> },
    Redis { sync: &'static str },
}

pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "limit",
        program: "",
        places: &[],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Disk),
        kind: Kind::Limit,
    },
    Peer {
        name: "roomlog-ws",
        program: "roomlog",
        places: &["target/release/roomlog"],
        fanout: Some(Durability::Disk),
        kept: Some(Durability::Disk),
        kind: Kind::Roomlog { durability: None },
    },
    Peer {
        name: "roomlog-os",
        program: "roomlog",
        places: &["target/release/roomlog"],
        fanout: Some(Durability::Kernel),
        kept: Some(Durability::Kernel),
        kind: Kind::Roomlog { durability: Some("os") },
    },
    Peer {
        name: "redis",
        program: "redis-server",
        places: &["/usr/bin/redis-server"],
        fanout: Some(Durability::Memory),
        kept: Some(Durability::Disk),
        kind: Kind::Redis { sync: "always" },
    },
    Peer {
        name: "redis-everysec",
        program: "redis-server",
        places: &["/usr/bin/redis-server"],
        fanout: None,
        kept: Some(Durability::Kernel),
        kind: Kind::Redis { sync: "everysec" },
    },
];

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

    /// The program: as given, beside this one, on the search path, or where packages put it.
    pub(crate) fn find(&self, given: &[(String, PathBuf)]) -> Option<PathBuf> {
        let own = std::env::current_exe().ok()?;
        if self.program.is_empty() {
            return Some(own);
        }
        if let Some((_, path)) = given.iter().find(|(name, _)| name == self.program || name == self.name) {
            return Some(path.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = vec![own.with_file_name(self.program)];
        places.extend(self.places.iter().map(PathBuf::from));
        places.extend(std::env::split_paths(&path).map(|directory| directory.join(self.program)));
        places.into_iter().find(|place| place.is_file())
    }

    /// A driver for a new connection.
    pub(crate) fn driver(&self) -> Driver {
        /// Publishers are told apart by it.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        match self.kind {
            Kind::Limit => Driver::Raw(Raw::new()),
            Kind::Roomlog { .. } => Driver::Roomlog(Roomlog::new(NEXT.fetch_add(1, Ordering::Relaxed))),
            Kind::Redis { .. } => Driver::Redis(Redis::new()),
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
            Kind::Redis { sync } => {
                command.args(["--port", &port_text, "--save", "", "--maxclients", "60000"]);
                if role == Role::Kept {
                    command.args(["--appendonly", "yes", "--appendfsync", sync]);
                }
            }
        }
        command.current_dir(directory);
        command
    }
}

/// A running server, in a directory of its own that goes with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) command: String,
    directory: PathBuf,
}

impl Server {
    /// Starts a peer and waits until it listens.
    pub(crate) fn start(peer: &Peer, program: &Path, port: u16, role: Role, data: &Path) -> Result<Self, String> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        drop(TcpListener::bind(address).map_err(|error| format!("port {port} is not free: {error}"))?);
        let directory = data.join(peer.name);
        let world = |what: &str, error: std::io::Error| format!("{}: {what}: {error}", peer.name);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|error| world("removing old data", error))?;
        }
        fs::create_dir_all(&directory).map_err(|error| world("making its directory", error))?;
        let program = std::path::absolute(program).map_err(|error| world(&program.display().to_string(), error))?;
        let mut command = peer.command(&program, port, role, &directory);
        let output = File::create(directory.join("output")).map_err(|error| world("its output", error))?;
        let errors = output.try_clone().map_err(|error| world("its output", error))?;
        let text = words(&command);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(|error| world("starting it", error))?;
        let mut server = Self { child, address, command: text, directory };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("{} ended at once, {status}: {}", peer.name, server.output()));
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{} does not listen on {address}: {}", peer.name, server.output()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines that it wrote.
    pub(crate) fn output(&self) -> String {
        let text = fs::read_to_string(self.directory.join("output")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Asked first, so that it can close its files; what it has is thrown away in any case.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                drop(self.child.kill());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            drop(writeln!(std::io::stderr(), "{}: {error}", self.directory.display()));
        }
    }
}

/// A command as text: its settings, the program's name without its directory, the arguments.
fn words(command: &Command) -> String {
    let settings = command
        .get_envs()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy()));
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| {
        let argument = argument.to_string_lossy();
        if argument.is_empty() { "\"\"".to_owned() } else { argument.into_owned() }
    });
    settings.chain([program]).chain(arguments).collect::<Vec<_>>().join(" ")
}
