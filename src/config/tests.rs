//! What goes in, and what is said about it.

use std::collections::BTreeSet;

use super::source::Merge;
use super::*;

fn variables(pairs: &[(&str, &str)]) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn of_file(text: &str) -> Result<Config, Vec<String>> {
    Config::parse(Some(("broker.toml", text)), [], &[]).map_err(told)
}

fn of_environment(pairs: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    Config::parse(None, variables(pairs), &[]).map_err(told)
}

fn told(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_equals_the_built_in_defaults() {
    assert_eq!(of_file(DEFAULT_FILE), Ok(Config::default()));
    assert_eq!(of_file(""), Ok(Config::default()));
}

#[test]
fn the_shipped_file_holds_every_key_and_nothing_else() {
    let mut merge = Merge::default();
    merge.file("broker.toml", DEFAULT_FILE);
    let in_file: BTreeSet<_> = merge.origins.into_keys().collect();
    let known: BTreeSet<_> = keys().map(|key| format!("{}.{}", key.section, key.name)).collect();
    assert_eq!(in_file, known);
    let lines = DEFAULT_FILE.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
    assert_eq!(lines, known.len());
}

#[test]
fn every_key_of_the_shipped_file_is_explained() {
    let mut before = "";
    for line in DEFAULT_FILE.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with("# "), "no comment above: {line}");
        }
        before = line;
    }
}

#[test]
fn the_retention_example_of_the_shipped_file_is_valid() {
    let example: String = DEFAULT_FILE
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
        .map(|line| format!("{line}\n"))
        .collect();
    let config = of_file(&example).expect("the example is valid");
    let rule = |rooms: &str| RetentionRule { rooms: rooms.into(), ..RetentionRule::default() };
    let limited = RetentionRule {
        max_age: Some(Duration::from_secs(30 * 86_400)),
        max_bytes: Some(1 << 30),
        max_records: Some(100_000),
        ..rule("*")
    };
    assert_eq!(config.retention, [rule("audit/*"), limited]);
}

#[test]
fn a_later_source_overrides_an_earlier_one() {
    let file = "[storage]\ndurability = \"os\"\nread_threads = 3\nstretch_age_max = \"2 h\"";
    let environment = variables(&[
        ("ROOMLOG__STORAGE__READ_THREADS", "4"),
        ("ROOMLOG__STORAGE__STRETCH_AGE_MAX", "3 h"),
        ("ROOMLOG_TEST_SEED", "not ours to judge"),
    ]);
    let flags = [FlagValue { flag: "--stretch-age", key: "storage.stretch_age_max", value: "4h".into() }];
    let config = Config::parse(Some(("broker.toml", file)), environment, &flags).expect("all is valid");
    let storage = config.storage;
    assert_eq!(storage.durability, Durability::Os);
    assert_eq!(storage.read_threads, 4);
    assert_eq!(storage.stretch_age_max, Duration::from_secs(4 * 3600));
}

#[test]
fn every_form_of_value_is_read_from_the_file_and_from_the_environment() {
    let file = r#"
        [server]
        listen = "off"
        quic_listen = "[::1]:9"
        allow_anonymous = true
        allowed_origins = ["https://chat.example.org:8443"]
        allowed_hosts = ["Chat.example.org", "::1"]
        trusted_proxies = ["10.0.0.0/8", "::1"]
        connections_max = 20_001
        [tls]
        certificate = "a.pem"
        key = "b.pem"
        [limits]
        payload_bytes_max = "1KiB"
        page_bytes_max = 70000
        idle_timeout = "2 min"
        [storage]
        durability = "memory"
        compression = "none"
        [log]
        level = "trace"
        format = "json"
    "#;
    let environment = [
        ("ROOMLOG__SERVER__LISTEN", "off"),
        ("ROOMLOG__SERVER__QUIC_LISTEN", "[::1]:9"),
        ("ROOMLOG__SERVER__ALLOW_ANONYMOUS", "true"),
        ("ROOMLOG__SERVER__ALLOWED_ORIGINS", "https://chat.example.org:8443"),
        ("ROOMLOG__SERVER__ALLOWED_HOSTS", "Chat.example.org, ::1"),
        ("ROOMLOG__SERVER__TRUSTED_PROXIES", "10.0.0.0/8,::1"),
        ("ROOMLOG__SERVER__CONNECTIONS_MAX", "20001"),
        ("ROOMLOG__TLS__CERTIFICATE", "a.pem"),
        ("ROOMLOG__TLS__KEY", "b.pem"),
        ("ROOMLOG__LIMITS__PAYLOAD_BYTES_MAX", "1 KiB"),
        ("ROOMLOG__LIMITS__PAGE_BYTES_MAX", "70000"),
        ("ROOMLOG__LIMITS__IDLE_TIMEOUT", "120 s"),
        ("ROOMLOG__STORAGE__DURABILITY", "memory"),
        ("ROOMLOG__STORAGE__COMPRESSION", "none"),
        ("ROOMLOG__LOG__LEVEL", "trace"),
        ("ROOMLOG__LOG__FORMAT", "json"),
    ];
    let config = of_file(file).expect("all is valid");
    assert_eq!(Ok(&config), of_environment(&environment).as_ref());
    assert_eq!(config.server.listen, None);
    assert_eq!(config.server.allowed_hosts, ["chat.example.org", "::1"]);
    assert_eq!(config.limits.payload_bytes_max, 1024);
    assert_eq!(config.limits.page_bytes_max, 70_000);
    assert_eq!(config.limits.idle_timeout, Duration::from_secs(120));
    assert_eq!(config.tls.certificate, Some(PathBuf::from("a.pem")));
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_line_its_key_and_what_is_needed() {
    for (text, expected) in [
        (
            "[server]\nlisen = \"off\"",
            "broker.toml:2: server.lisen: unknown key; the nearest known key is server.listen",
        ),
        ("\n[servr]\nx = 1", "broker.toml:2: servr: unknown section; the nearest known section is server"),
        ("listen = 1", "broker.toml:1: listen: unknown key; the nearest known key is server.listen"),
        (
            "[server]\ndurability = \"fsync\"",
            "broker.toml:2: server.durability: unknown key; the nearest known key is storage.durability",
        ),
        (
            "[limits]\nmax_payload_bytes = 1",
            "broker.toml:2: limits.max_payload_bytes: unknown key; the nearest known key is limits.payload_bytes_max",
        ),
        ("server = 1", "broker.toml:1: server: found integer, needed a section [server]"),
        (
            "[server]\nallow_anonymous = \"true\"",
            "broker.toml:2: server.allow_anonymous: found the text \"true\", needed true or false",
        ),
        (
            "[server]\nconnections_max = \"many\"",
            "broker.toml:2: server.connections_max: found the text \"many\", needed a whole number",
        ),
        (
            "[server]\nconnections_max = -1",
            "broker.toml:2: server.connections_max: found the number -1, needed a whole number",
        ),
        (
            "[server]\nconnections_max = 1.5",
            "broker.toml:2: server.connections_max: found the number 1.5, needed a whole number",
        ),
        (
            "[server]\nconnections_max = 99999999999999999999",
            "broker.toml:2: server.connections_max: found the number 99999999999999999999, needed a whole number",
        ),
        (
            "[limits]\npayload_bytes_max = \"64 KB\"",
            "broker.toml:2: limits.payload_bytes_max: found the text \"64 KB\", needed a size such as \"64 KiB\" \
             (B, KiB, MiB, GiB, TiB) or a number of bytes",
        ),
        (
            "[limits]\nidle_timeout = 60",
            "broker.toml:2: limits.idle_timeout: found the number 60, needed a time such as \"30 s\" (ms, s, min, h, d)",
        ),
        (
            "[storage]\nstretch_age_max = \"99999999999999999999 d\"",
            "broker.toml:2: storage.stretch_age_max: found the text \"99999999999999999999 d\", needed a time such as \
             \"30 s\" (ms, s, min, h, d)",
        ),
        (
            "[server]\nlisten = \"localhost\"",
            "broker.toml:2: server.listen: found the text \"localhost\", needed an address such as \"127.0.0.1:7400\", \
             or \"off\"",
        ),
        (
            "[server]\nallowed_origins = [\"https://a.example\", 5]",
            "broker.toml:2: server.allowed_origins: found a list of [the text \"https://a.example\", the number 5], \
             needed a list of origins such as [\"https://chat.example.org\"]",
        ),
        (
            "[server]\nallowed_origins = [\"https://a.example/\"]",
            "broker.toml:2: server.allowed_origins: found a list of [the text \"https://a.example/\"], \
             needed a list of origins such as [\"https://chat.example.org\"]",
        ),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/33\"]",
            "broker.toml:2: server.trusted_proxies: found a list of [the text \"10.0.0.0/33\"], needed a list of \
             addresses or networks such as [\"10.0.0.0/8\"]",
        ),
        (
            "[storage]\ndurability = \"always\"",
            "broker.toml:2: storage.durability: found the text \"always\", needed \"fsync\", \"os\" or \"memory\"",
        ),
        ("[storage]\ndirectory = \"\"", "broker.toml:2: storage.directory: found the text \"\", needed a path"),
        (
            "[limits]\npayload_bytes_max = \"2 MiB\"\npublish_bytes_max = \"2 MiB\"",
            "broker.toml:2: limits.payload_bytes_max: is 2097152, but must be from 1 to 1048576",
        ),
        (
            "[limits]\npublish_bytes_max = \"1 KiB\"",
            "broker.toml:2: limits.publish_bytes_max: limits.payload_bytes_max is 256 KiB, but may be at most \
             limits.publish_bytes_max, 1 KiB",
        ),
        (
            "[limits]\nping_interval = \"50 s\"",
            "broker.toml:2: limits.ping_interval: limits.ping_interval is 50s, but may be at most half of \
             limits.idle_timeout, 60s: one lost ping must not end a session",
        ),
        (
            "[server]\nlisten = \"0.0.0.0:7400\"",
            "broker.toml:2: server.listen: 0.0.0.0:7400 is beyond loopback, and nobody has to prove who they are; \
             set server.allow_anonymous = true if that is meant",
        ),
        (
            "[server]\nadmin_listen = \"127.0.0.1:7400\"",
            "broker.toml:2: server.admin_listen: clients and operators need two ports: server.listen and \
             server.admin_listen are the same",
        ),
        (
            "[tls]\nkey = \"key.pem\"",
            "broker.toml:2: tls.key: a certificate and its key are given together or not at all",
        ),
        (
            "[storage]\nstretch_bytes = \"2 GiB\"",
            "broker.toml:2: storage.stretch_bytes: storage.journal_bytes_max is 2 GiB, but must be at least twice \
             storage.stretch_bytes, 2 GiB: one stretch is written while another becomes a volume",
        ),
        (
            "[[retention]]\nroms = \"*\"\nrooms = \"*\"",
            "broker.toml:2: retention.roms: unknown key; the nearest known key is retention.rooms",
        ),
        (
            "[[retention]]\nmax_records = 5",
            "broker.toml:1: retention.rooms: missing; each rule says which rooms it is for, and \"*\" is all",
        ),
        (
            "[[retention]]\nrooms = \"*\"\nmax_age = 30",
            "broker.toml:3: retention.max_age: found the number 30, needed a time such as \"30 s\" (ms, s, min, h, d)",
        ),
        ("[retention]\nrooms = \"*\"", "broker.toml:1: retention: needed rules, each beginning with [[retention]]"),
    ] {
        assert_eq!(of_file(text), Err(vec![expected.to_owned()]), "{text}");
    }
}

#[test]
fn what_is_wrong_with_the_environment_is_said_with_the_variable() {
    for (name, value, expected) in [
        (
            "ROOMLOG__SERVER__LISEN",
            "off",
            "ROOMLOG__SERVER__LISEN: server.lisen: unknown key; the nearest known key is server.listen",
        ),
        ("ROOMLOG__NOTHING", "1", "ROOMLOG__NOTHING: nothing: unknown key; the nearest known key is server.listen"),
        (
            "ROOMLOG__SERVER__CONNECTIONS_MAX",
            "many",
            "ROOMLOG__SERVER__CONNECTIONS_MAX: server.connections_max: found the text \"many\", needed a whole number",
        ),
        (
            "ROOMLOG__RETENTION__ROOMS",
            "*",
            "ROOMLOG__RETENTION__ROOMS: retention.rooms: retention rules are given in the file only",
        ),
    ] {
        assert_eq!(of_environment(&[(name, value)]), Err(vec![expected.to_owned()]));
    }
}

#[test]
fn a_wrong_flag_is_named_as_it_was_written() {
    let flags = [FlagValue { flag: "--listen", key: "server.listen", value: "7400".into() }];
    let expected =
        "--listen: server.listen: found the text \"7400\", needed an address such as \"127.0.0.1:7400\", or \"off\"";
    assert_eq!(Config::parse(None, [], &flags).map_err(told), Err(vec![expected.to_owned()]));
}

#[test]
fn all_problems_are_told_at_once_and_none_twice() {
    let file = "[server]\nlisen = 1\nconnections_max = 0\n[limits]\npayload_bytes_max = true\npublish_bytes_max = 5\n";
    let problems = Config::parse(Some(("broker.toml", file)), variables(&[("ROOMLOG__LOG__LEVEL", "loud")]), &[]);
    let keys: Vec<_> = problems.expect_err("all of it is wrong").into_iter().map(|problem| problem.key).collect();
    assert_eq!(keys, ["server.lisen", "limits.payload_bytes_max", "log.level", "server.connections_max"]);
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let problems = of_file("[server]\nlisten = \n").expect_err("not TOML");
    assert!(problems[0].starts_with("broker.toml:2: "), "{problems:?}");
    let problems = of_file("[server]\nlisten = \"off\"\nlisten = \"off\"\n").expect_err("the key stands twice");
    assert!(problems[0].starts_with("broker.toml:3: "), "{problems:?}");
}

#[test]
fn a_file_or_a_certificate_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("broker.toml");
    let problems = Config::load(Some(&path), [], &[]).map_err(told).expect_err("there is no file");
    assert!(problems[0].starts_with(&format!("{}: cannot be read: ", path.display())), "{problems:?}");

    std::fs::write(&path, "[tls]\ncertificate = \"/nonexistent/a.pem\"\nkey = \"/nonexistent/b.pem\"\n")
        .expect("written");
    let problems = Config::load(Some(&path), [], &[]).map_err(told).expect_err("there are no certificates");
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with(&format!("{}:2: tls.certificate: /nonexistent/a.pem: ", path.display())));
}

#[test]
fn listening_beyond_loopback_needs_allow_anonymous() {
    for (address, beyond) in [
        ("127.8.8.8:1", false),
        ("[::1]:1", false),
        ("[::ffff:127.0.0.1]:1", false),
        ("0.0.0.0:1", true),
        ("[::]:1", true),
        ("192.0.2.1:1", true),
    ] {
        for key in ["listen", "quic_listen"] {
            let refused = of_file(&format!("[server]\n{key} = \"{address}\"")).is_err();
            assert_eq!(refused, beyond, "{key} {address}");
            let allowed = of_file(&format!("[server]\n{key} = \"{address}\"\nallow_anonymous = true"));
            assert!(allowed.is_ok(), "{key} {address}");
        }
    }
}

#[test]
fn a_network_contains_what_shares_its_prefix() {
    for (network, address, expected) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.0.0.0/8", "::ffff:10.1.1.1", true),
        ("0.0.0.0/0", "255.1.1.1", true),
        ("0.0.0.0/0", "::1", false),
        ("192.0.2.7", "192.0.2.7", true),
        ("192.0.2.7", "192.0.2.6", false),
        ("2001:db8::/32", "2001:db8:1::1", true),
        ("2001:db8::/32", "2001:db9::1", false),
        ("::/0", "2001:db9::1", true),
    ] {
        let network: Network = network.parse().expect("a network");
        assert_eq!(network.contains(address.parse().expect("an address")), expected, "{network:?} {address}");
    }
}

/// Defaults that would be out of range would make every start fail.
#[test]
fn the_defaults_fit_together() {
    assert_eq!(Config::parse(None, [], &[]), Ok(Config::default()));
}
