//! A `roomlog serve` of its own, and other commands of the program.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roomlog::client::{self, Client};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};

use crate::scenarios::world::{PATIENCE, soon};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_roomlog");

/// What clients speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    WebSocket,
    Quic,
}

/// The random numbers of a test, whose seed it prints; `ROOMLOG_TEST_SEED` sets it.
pub(crate) fn random(test: &str) -> StdRng {
    let chosen = std::env::var("ROOMLOG_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = chosen.unwrap_or_else(rand::random::<u64>);
    println!("{test}: ROOMLOG_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Where a server runs and with what: its directory, its ports, its settings. They stay while processes come and go.
pub(crate) struct Site {
    pub(crate) directory: PathBuf,
    settings: Vec<(String, String)>,
    ports: [u16; 2],
    temporary: TempDir,
}

/// A port that nothing listens on, over TCP and UDP, and that no other test is given. It is below those that the system
/// gives to outgoing connections: while the server is down, none of them can take it.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = rand::random_range(10_000..32_000);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        if free && GIVEN.lock().expect("nobody panics with it").insert(port) {
            return port;
        }
    }
    panic!("no port is free");
}

impl Site {
    /// An empty directory. No space is reserved on the disk, a shutdown sends nobody away for long, and nobody is cut
    /// because the machine is slow.
    pub(crate) fn new() -> Self {
        let temporary = TempDir::new().expect("a temporary directory");
        let mut site = Self {
            directory: temporary.path().join("data"),
            settings: Vec::new(),
            ports: [free_port(), free_port()],
            temporary,
        };
        site.set("storage.disk_reserve_bytes", "0");
        site.set("limits.handshake_timeout", "60 s").set("limits.idle_timeout", "600 s");
        site.set("server.shutdown_deadline", "60 s");
        site.set("server.reconnect_spread", "100 ms");
        site
    }

    /// Sets a key of the configuration, as `storage.stretch_bytes`.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let name = format!("ROOMLOG__{}", key.to_uppercase().replace('.', "__"));
        self.variable(&name, value)
    }

    /// Sets a variable of the environment.
    pub(crate) fn variable(&mut self, name: &str, value: &str) -> &mut Self {
        self.unset(name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes a variable of the environment back.
    pub(crate) fn unset(&mut self, name: &str) {
        self.settings.retain(|(known, _)| known != name);
    }

    /// A file of configuration, which holds what no variable can: retention.
    pub(crate) fn configuration(&self, text: &str) {
        std::fs::write(self.configuration_path(), text).expect("a file can be written");
    }

    fn configuration_path(&self) -> PathBuf {
        self.temporary.path().join("broker.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.temporary.path().join("log")
    }

    /// What all servers of this site have logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `serve`, ready to be started.
    pub(crate) fn serve(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        let [clients, operators] = self.ports;
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).expect("a log");
        command.arg("serve").arg("--data").arg(&self.directory);
        command.args(["--listen", &format!("127.0.0.1:{clients}"), "--quic", &format!("127.0.0.1:{clients}")]);
        command.args(["--admin", &format!("127.0.0.1:{operators}")]);
        if self.configuration_path().exists() {
            command.arg("--config").arg(self.configuration_path());
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        command
    }

    /// Starts a server without waiting for anything.
    pub(crate) fn spawn(&self) -> Server {
        let mut command = tokio::process::Command::from(self.serve());
        let mut child = command.kill_on_drop(true).spawn().expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (clients, operators) = (self.clients(), self.operators());
        Server { child, output, clients, operators, banner: String::new(), log: self.log_path() }
    }

    /// Starts a server, and waits until it listens.
    pub(crate) async fn start(&self) -> Server {
        let mut server = self.spawn();
        if !soon("the server to listen", server.listens()).await {
            let status = server.exited().await;
            panic!("the server ended with {status}:\n{}", self.log());
        }
        server
    }

    /// Runs `serve` where it has to end by itself; its exit code and what it said.
    pub(crate) async fn refusal(&self) -> (Option<i32>, String) {
        let mut command = tokio::process::Command::from(self.serve());
        let command = command.stderr(Stdio::piped()).kill_on_drop(true);
        let output = soon("the server to refuse", command.output()).await.expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn clients(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    pub(crate) fn operators(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[1]).into()
    }

    pub(crate) fn url(&self, over: Over) -> String {
        match over {
            Over::WebSocket => format!("ws://{}", self.clients()),
            Over::Quic => format!("quic://{}", self.clients()),
        }
    }

    /// A client that comes back soon after a server does.
    pub(crate) fn client_with(&self, over: Over, change: impl FnOnce(&mut client::Options)) -> Client {
        let mut options = client::Options::default();
        options.insecure = true;
        options.backoff = Duration::from_millis(10);
        options.backoff_max = Duration::from_millis(100);
        options.connect_timeout = Duration::from_secs(5);
        options.request_timeout = PATIENCE;
        change(&mut options);
        Client::open(&self.url(over), options).expect("a good address")
    }

    pub(crate) fn client(&self, over: Over) -> Client {
        self.client_with(over, |_| {})
    }

    /// Bytes that the directory takes on the disk, as `du` counts them.
    pub(crate) fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.directory)
    }

    /// As [`Site::disk_bytes`], without the journal.
    pub(crate) fn disk_bytes_without_journal(&self) -> u64 {
        self.disk_bytes().saturating_sub(disk_bytes(&self.directory.join("journal")))
    }

    /// `roomlog check` of the directory: its exit code, and all that it said.
    pub(crate) fn check(&self) -> (Option<i32>, String) {
        let output = run(Command::new(PROGRAM).arg("check").arg(&self.directory), b"");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Fails unless `roomlog check` finds nothing.
    pub(crate) fn assert_intact(&self) {
        let (code, said) = self.check();
        assert_eq!(code, Some(0), "{said}");
    }
}

fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // What is deleted while we look takes nothing.
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| disk_bytes(&entry.path()));
    metadata.blocks() * 512 + if metadata.is_dir() { below.sum() } else { 0 }
}

/// Runs a command of the program with this input to its end.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // One that ends early leaves the rest unread, and says why by its exit code.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("the program ends")
    })
}

/// A server process. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    clients: SocketAddr,
    operators: SocketAddr,
    pub(crate) banner: String,
    log: PathBuf,
}

impl Server {
    /// Whether it has come so far as to listen; otherwise it has ended.
    pub(crate) async fn listens(&mut self) -> bool {
        while !self.banner.contains("\n  data ") {
            // Cancel-safe: what was read stays in the line.
            if self.output.read_line(&mut self.banner).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        assert!(self.banner.contains(&format!("ws://{}", self.clients)), "{}", self.banner);
        true
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it has not ended")
    }

    /// Kills it at once, as `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        soon("the end of the process", self.child.kill()).await.expect("it can be killed");
    }

    /// Waits until it has ended.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.expect("it can be waited for"),
            Err(_) => panic!("the process does not end:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default()),
        }
    }

    /// Asks it to stop, without waiting.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(status.expect("there is a kill command").success());
    }

    /// Asks it to stop, and waits until it has done so in good order.
    pub(crate) async fn stop(&mut self) {
        self.signal("TERM");
        let status = self.exited().await;
        assert_eq!(status.code(), Some(0), "a graceful stop ends with 0");
    }

    /// A value of `/proc/PID/status` in bytes, as `VmRSS`.
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the kernel says");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// What it answers to operators at a path.
    pub(crate) async fn page(&self, path: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.operators).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = soon("an answer to an operator", ask).await.expect("it listens for operators");
        String::from_utf8(answer).expect("text")
    }

    /// The sum of a metric over those of its lines that contain all of these words.
    pub(crate) async fn metric(&self, name: &str, with: &[&str]) -> f64 {
        let page = self.page("/metrics").await;
        let lines = page.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with([' ', '{']) && with.iter().all(|word| rest.contains(word))
        });
        lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
    }

    /// Waits until a metric is as it must become.
    pub(crate) async fn metric_until(&self, name: &str, with: &[&str], good: impl Fn(f64) -> bool) {
        let mut seen = f64::NAN;
        let look = async {
            loop {
                seen = self.metric(name, with).await;
                if good(seen) {
                    return;
                }
                pause().await;
            }
        };
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            panic!("{name} {with:?} is {seen}, and does not become what it must");
        }
    }
}

/// The time between two looks at something that tells nobody when it changes.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A moment up to so many milliseconds ahead.
pub(crate) fn within_ms(random: &mut StdRng, ms: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_micros(random.random_range(0..ms * 1000))
}
