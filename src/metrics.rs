//! Every metric of a broker, in one place and one table; each broker has its own set of handles.
//!
//! Depends on the `metrics` facade alone. Handles are bound to a recorder once, when the broker is opened: two
//! brokers in one process stay apart, nothing is looked up by name later, and without a recorder an increment
//! costs next to nothing. A room or a user is never a label: series live for ever, rooms do not.
//!
//! Hot paths add once per batch, never per record, and pick what they time with [`Sampled`].

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::ops::Index;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, NoopRecorder, SharedString};
pub use metrics::{Recorder, Unit};

use crate::types::{Code, GapReason};

/// What a metric does over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// How often which value was seen; its bounds are in [`Metric::buckets`].
    Histogram,
}

impl Kind {
    /// The word of the exposition format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One line of the table: what a metric is called and what it means.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// The full name; it says the unit.
    pub name: &'static str,
    /// What it does over time.
    pub kind: Kind,
    /// What it counts in: always a base unit.
    pub unit: Unit,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence for a person.
    pub help: &'static str,
}

impl Metric {
    /// The upper bounds of a histogram's buckets; `None` for what is not a histogram.
    #[must_use]
    pub fn buckets(&self) -> Option<&'static [f64]> {
        if self.kind != Kind::Histogram {
            return None;
        }
        BUCKETS.iter().find(|(suffix, _)| self.name.ends_with(suffix)).map(|(_, bounds)| *bounds)
    }

    fn describe(&self, recorder: &dyn Recorder) {
        let (name, unit) = (KeyName::from_const_str(self.name), Some(self.unit));
        let help = SharedString::const_str(self.help);
        match self.kind {
            Kind::Counter => recorder.describe_counter(name, unit, help),
            Kind::Gauge => recorder.describe_gauge(name, unit, help),
            Kind::Histogram => recorder.describe_histogram(name, unit, help),
        }
    }
}

/// The bounds of every histogram, by the last part of its name. An exporter without them would show summaries,
/// which cannot be added up over servers.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (
        "_seconds",
        &[
            0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
            5.0, 10.0, 30.0,
        ],
    ),
    ("_bytes", &[512.0, 2_048.0, 8_192.0, 32_768.0, 131_072.0, 524_288.0, 2_097_152.0, 8_388_608.0, 33_554_432.0]),
    ("_records", &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0]),
];

/// A set of label values that is known when the program is compiled.
pub trait Labels: Copy + 'static {
    /// The names of the labels.
    const NAMES: &'static [&'static str];

    /// Every value, in the order of [`Labels::index`].
    fn all() -> Vec<Self>;

    /// The place in [`Labels::all`].
    fn index(self) -> usize;

    /// The texts of the value, one for each name.
    fn texts(self) -> Vec<&'static str>;
}

macro_rules! labels {
    ($(#[$doc:meta])* $type:ident = $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The text of the label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl Labels for $type {
            const NAMES: &'static [&'static str] = &[$label];

            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn index(self) -> usize {
                self as usize
            }

            fn texts(self) -> Vec<&'static str> {
                vec![self.name()]
            }
        }
    };
}

labels! {
    /// How a session reaches the broker.
    Transport = "transport" {
        /// Within the process: the embedding API.
        Embedded = "embedded",
        /// A WebSocket, with or without TLS.
        WebSocket = "websocket",
        /// A QUIC connection.
        Quic = "quic",
    }
}

labels! {
    /// Where delivered records were read from.
    Source = "source" {
        /// The recent part of the room, in memory.
        Tail = "tail",
        /// A journal file.
        Journal = "journal",
        /// A finished volume.
        Volume = "volume",
    }
}

labels! {
    /// A named bound on memory.
    Budget = "budget" {
        /// The recent parts of all rooms.
        Tails = "tails",
        /// Where in the journal each batch lies.
        JournalIndex = "journal_index",
        /// Blocks read of volumes.
        BlockCache = "block_cache",
        /// What sled keeps of the volumes it has open.
        OpenVolumes = "open_volumes",
        /// Publishes that wait for their commit.
        CommitQueue = "commit_queue",
        /// Bytes on their way to peers.
        SendBuffers = "send_buffers",
        /// What peers have sent of messages that are not complete.
        ReceiveBuffers = "receive_buffers",
    }
}

labels! {
    /// What the builder makes a volume of.
    Work = "work" {
        /// A closed stretch of the journal.
        Build = "build",
        /// Older volumes.
        Rewrite = "rewrite",
    }
}

labels! {
    /// Why a connection was refused before it became a session.
    Refusal = "reason" {
        /// As many connections as are allowed were open, in all or from one address.
        TooMany = "too_many",
        /// The `Origin` is not allowed.
        Origin = "origin",
        /// The `Host` is not one of ours.
        Host = "host",
        /// The handshake or the hello was malformed, or of another protocol.
        Handshake = "handshake",
        /// The handshake or the hello took too long.
        Timeout = "timeout",
    }
}

labels! {
    /// What a client asked for.
    Operation = "operation" {
        /// A hello.
        Hello = "hello",
        /// A join, also one of a hello's resume list.
        Join = "join",
        /// A credit.
        Credit = "credit",
        /// A leave.
        Leave = "leave",
        /// A publish of one or many records.
        Publish = "publish",
        /// A page of history.
        History = "history",
        /// A list of rooms.
        Rooms = "rooms",
        /// Summaries of rooms.
        Summary = "summary",
        /// A ping.
        Ping = "ping",
        /// What this server does not offer.
        Other = "other",
    }
}

impl Labels for Code {
    const NAMES: &'static [&'static str] = &["code"];

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|code| *code == self).expect("ALL holds every code")
    }

    fn texts(self) -> Vec<&'static str> {
        vec![self.name()]
    }
}

impl Labels for GapReason {
    const NAMES: &'static [&'static str] = &["reason"];

    fn all() -> Vec<Self> {
        vec![Self::Retention]
    }

    fn index(self) -> usize {
        match self {
            Self::Retention => 0,
        }
    }

    fn texts(self) -> Vec<&'static str> {
        vec![self.name()]
    }
}

impl Labels for (Transport, Source) {
    const NAMES: &'static [&'static str] = &["transport", "source"];

    fn all() -> Vec<Self> {
        Transport::ALL.iter().flat_map(|from| Source::ALL.iter().map(|source| (*from, *source))).collect()
    }

    fn index(self) -> usize {
        self.0.index() * Source::ALL.len() + self.1.index()
    }

    fn texts(self) -> Vec<&'static str> {
        vec![self.0.name(), self.1.name()]
    }
}

/// This build of Roomlog, as labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Build;

impl Labels for Build {
    const NAMES: &'static [&'static str] = &["version"];

    fn all() -> Vec<Self> {
        vec![Self]
    }

    fn index(self) -> usize {
        0
    }

    fn texts(self) -> Vec<&'static str> {
        vec![env!("CARGO_PKG_VERSION")]
    }
}

/// One handle for each value of its labels: `metrics.errors[code]`.
pub struct By<L, H> {
    handles: Box<[H]>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels, H> Index<L> for By<L, H> {
    type Output = H;

    #[inline]
    fn index(&self, value: L) -> &H {
        &self.handles[Labels::index(value)]
    }
}

impl<L: Labels, H> Debug for By<L, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "By({})", L::NAMES.join(", "))
    }
}

/// What can stand in the table: a handle, or one for each value of labels.
trait Bind: Sized {
    const KIND: Kind;
    const LABELS: &'static [&'static str] = &[];

    fn bind(recorder: &dyn Recorder, name: &'static str, labels: Vec<Label>) -> Self;
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Bind for Counter {
    const KIND: Kind = Kind::Counter;

    fn bind(recorder: &dyn Recorder, name: &'static str, labels: Vec<Label>) -> Self {
        recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }
}

impl Bind for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn bind(recorder: &dyn Recorder, name: &'static str, labels: Vec<Label>) -> Self {
        recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }
}

impl Bind for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn bind(recorder: &dyn Recorder, name: &'static str, labels: Vec<Label>) -> Self {
        recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }
}

impl<L: Labels, H: Bind> Bind for By<L, H> {
    const KIND: Kind = H::KIND;
    const LABELS: &'static [&'static str] = L::NAMES;

    fn bind(recorder: &dyn Recorder, name: &'static str, _: Vec<Label>) -> Self {
        let of = |value: L| {
            let labels = L::NAMES.iter().zip(value.texts()).map(|(name, text)| Label::from_static_parts(name, text));
            H::bind(recorder, name, labels.collect())
        };
        Self { handles: L::all().into_iter().map(of).collect(), labels: PhantomData }
    }
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $type:ty, $unit:ident, $name:literal;)*) => {
        /// The handles of one broker. Each field's text is the metric's help.
        #[derive(Debug)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $field: $type,)*
        }

        impl Metrics {
            /// Every metric: the one source of the help texts, of the page in `docs/operations.md` and of the tests.
            pub const ALL: &[Metric] = &[$(Metric {
                name: $name,
                kind: <$type as Bind>::KIND,
                unit: Unit::$unit,
                labels: <$type as Bind>::LABELS,
                help: concat!($($help),+).trim_ascii(),
            },)*];

            fn bind(recorder: &dyn Recorder) -> Self {
                Self { $($field: <$type as Bind>::bind(recorder, $name, Vec::new()),)* }
            }
        }
    };
}

metrics! {
    /// Connections accepted.
    connections_accepted: By<Transport, Counter>, Count, "roomlog_connections_accepted_total";
    /// Connections open now.
    connections: By<Transport, Gauge>, Count, "roomlog_connections";
    /// Connections refused before they became sessions.
    connections_refused: By<Refusal, Counter>, Count, "roomlog_connections_refused_total";
    /// Sessions opened: connections after their hello.
    sessions_opened: By<Transport, Counter>, Count, "roomlog_sessions_opened_total";
    /// Sessions open now.
    sessions: By<Transport, Gauge>, Count, "roomlog_sessions";
    /// Requests received.
    requests: By<Operation, Counter>, Count, "roomlog_requests_total";
    /// Refusals told to peers and to the application.
    errors: By<Code, Counter>, Count, "roomlog_errors_total";

    /// Rooms that the broker knows.
    rooms: Gauge, Count, "roomlog_rooms";
    /// Rooms whose state is in memory.
    rooms_loaded: Gauge, Count, "roomlog_rooms_loaded";
    /// Subscriptions open now.
    subscriptions: Gauge, Count, "roomlog_subscriptions";
    /// Subscriptions that need the store because the recent part has left memory.
    subscriptions_lagging: Gauge, Count, "roomlog_subscriptions_lagging";
    /// Records between the head of its room and the subscription that is furthest behind.
    subscription_lag: Gauge, Count, "roomlog_subscription_lag_records";

    /// Records published and acknowledged, duplicates not counted.
    published_records: By<Transport, Counter>, Count, "roomlog_published_records_total";
    /// Bytes of published records, as they are encoded.
    published_bytes: By<Transport, Counter>, Bytes, "roomlog_published_bytes_total";
    /// Records that were published before and answered with their original offset.
    duplicates: Counter, Count, "roomlog_duplicates_total";
    /// Records handed to subscribers and to pages of history.
    delivered_records: By<(Transport, Source), Counter>, Count, "roomlog_delivered_records_total";
    /// Bytes of delivered records, as they are encoded.
    delivered_bytes: By<(Transport, Source), Counter>, Bytes, "roomlog_delivered_bytes_total";
    /// Gaps told to subscribers.
    gaps: By<GapReason, Counter>, Count, "roomlog_gaps_total";
    /// From a publish's arrival to its acknowledgement; one in 64 is timed.
    publish_to_ack: Histogram, Seconds, "roomlog_publish_to_ack_seconds";
    /// From a publish's arrival to its delivery to a live subscriber; one in 64 is timed.
    publish_to_delivery: Histogram, Seconds, "roomlog_publish_to_delivery_seconds";

    /// Frames received from peers.
    frames_received: By<Transport, Counter>, Count, "roomlog_frames_received_total";
    /// Frames sent to peers.
    frames_sent: By<Transport, Counter>, Count, "roomlog_frames_sent_total";
    /// Write calls of the transports; one call carries many frames.
    write_calls: By<Transport, Counter>, Count, "roomlog_write_calls_total";
    /// Bytes given to the transports, before encryption.
    sent_bytes: By<Transport, Counter>, Bytes, "roomlog_sent_bytes_total";

    /// Commits: units of records that became durable together.
    commits: Counter, Count, "roomlog_commits_total";
    /// Records of a commit.
    commit_records: Histogram, Count, "roomlog_commit_records";
    /// Bytes that a commit takes in the journal, with its padding.
    commit_bytes: Histogram, Bytes, "roomlog_commit_bytes";
    /// From the moment a commit is gathered until it is durable.
    commit_duration: Histogram, Seconds, "roomlog_commit_duration_seconds";
    /// The part of a commit that waits for the disk.
    fsync_duration: Histogram, Seconds, "roomlog_fsync_duration_seconds";

    /// Bytes of journal files on the disk, reserved ones included.
    journal_bytes: Gauge, Bytes, "roomlog_journal_bytes";
    /// Bytes of volumes on the disk.
    volume_bytes: Gauge, Bytes, "roomlog_volume_bytes";
    /// Finished volumes.
    volumes: Gauge, Count, "roomlog_volumes";
    /// Bytes of the journal that are not yet in a volume.
    builder_backlog: Gauge, Bytes, "roomlog_builder_backlog_bytes";
    /// Volumes finished and taken into the manifest.
    builds: By<Work, Counter>, Count, "roomlog_builds_total";
    /// Volumes that could not be finished; the work is tried again.
    builds_failed: By<Work, Counter>, Count, "roomlog_builds_failed_total";
    /// From the start of the work on a volume until the manifest names it.
    build_duration: By<Work, Histogram>, Seconds, "roomlog_build_duration_seconds";
    /// One block read of a volume.
    volume_read_duration: Histogram, Seconds, "roomlog_volume_read_duration_seconds";
    /// Records that retention put below the floor of their room.
    retention_records: Counter, Count, "roomlog_retention_records_total";
    /// Bytes that retention gave back to the disk.
    retention_bytes: Counter, Bytes, "roomlog_retention_bytes_total";

    /// Bytes in use of a memory budget.
    budget_used: By<Budget, Gauge>, Bytes, "roomlog_budget_used_bytes";
    /// Bytes that a memory budget allows.
    budget_max: By<Budget, Gauge>, Bytes, "roomlog_budget_max_bytes";

    /// 0 the journal accepts records, 1 the disk is full, 2 the journal failed and the broker must be restarted.
    storage_state: Gauge, Count, "roomlog_storage_state";
    /// Bytes free in the file system of the data directory.
    disk_free: Gauge, Bytes, "roomlog_disk_free_bytes";
    /// 1 while the clock has stepped by more than ten minutes and retention by age is suspended.
    clock_alarm: Gauge, Count, "roomlog_clock_alarm";
    /// When this broker was opened, in seconds since 1970.
    start_time: Gauge, Seconds, "roomlog_start_time_seconds";
    /// 1; the labels say which build this is.
    build_info: By<Build, Gauge>, Count, "roomlog_build_info";
}

impl Metrics {
    /// Binds every handle to a recorder, and gives it the help texts.
    #[must_use]
    pub fn new(recorder: &dyn Recorder) -> Self {
        Self::ALL.iter().for_each(|metric| metric.describe(recorder));
        let metrics = Self::bind(recorder);
        metrics.build_info[Build].set(1.0);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics.start_time.set(since_1970);
        metrics
    }

    /// Handles that lead nowhere.
    #[must_use]
    pub fn disabled() -> Self {
        Self::bind(&NoopRecorder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::disabled()
    }
}

/// What the storage can do, as [`Metrics::storage_state`] shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageState {
    /// It accepts records.
    Accepting,
    /// The disk is full: publishes are refused until space comes back.
    Full,
    /// The journal failed: nothing is accepted until a restart.
    Failed,
}

impl StorageState {
    /// The value of the gauge.
    #[must_use]
    pub const fn number(self) -> f64 {
        match self {
            Self::Accepting => 0.0,
            Self::Full => 1.0,
            Self::Failed => 2.0,
        }
    }
}

/// Chooses one event in [`Sampled::EVERY`] to be timed, so that a hot path pays for a clock and a histogram
/// only then.
///
/// Each user keeps its own, unshared. The first event is chosen, so that rare ones are seen at all.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    until_next: u32,
}

impl Sampled {
    /// One event in so many is chosen.
    pub const EVERY: u32 = 64;

    /// Begins with an event that is chosen.
    #[must_use]
    pub const fn new() -> Self {
        Self { until_next: 0 }
    }

    /// Whether this event is to be timed. To be called once for each event.
    #[inline]
    pub fn choose(&mut self) -> bool {
        let chosen = self.until_next == 0;
        self.until_next = if chosen { Self::EVERY - 1 } else { self.until_next - 1 };
        chosen
    }

    /// The time now, if this event is to be timed.
    #[inline]
    pub fn start(&mut self) -> Option<Instant> {
        self.choose().then(Instant::now)
    }
}

#[cfg(test)]
mod tests;
