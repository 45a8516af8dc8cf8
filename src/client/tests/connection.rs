//! The connection: states, goodbyes, close codes, hostile frames, trust.

use std::time::Instant;

use super::super::{Error, ErrorKind, HistoryAt};
use super::peer::{framed, unreachable_address};
use super::*;
use crate::protocol::{ClientFrame, Fault, Goodbye, Pong, ServerFrame};
use crate::types::{Code, SessionId, Time};

/// One attempt, and no other for a long time.
fn reluctant() -> Options {
    Options { backoff: Duration::from_secs(3600), backoff_max: Duration::from_secs(3600), ..options() }
}

#[tokio::test]
async fn states_follow_each_other_from_connecting_to_closed() {
    let peer = Peer::web_socket().await;
    let client = Client::open(&peer.url(), reluctant()).expect("a client");
    assert_eq!(client.state(), State::Connecting { attempt: 0 });
    let (conn, _) = peer.welcome().await;
    let state = wait_for(&client, "the welcome", |state| matches!(state, State::Connected { .. })).await;
    assert_eq!(state, State::Connected { session: SessionId(5) });
    conn.close(4001).await;
    let state = wait_for(&client, "the wait", |state| matches!(state, State::Waiting { .. })).await;
    let State::Waiting { attempt: 1, why: Error::Disconnected { code: Some(4001), give_up: false, .. }, .. } = state
    else {
        panic!("{state:?}")
    };
    soon("the end", client.close()).await;
    assert_eq!(client.state(), State::Closed { why: None });
}

#[tokio::test]
async fn a_goodbye_is_waited_out_before_the_next_attempt() {
    let peer = Peer::web_socket().await;
    let _client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    let said = Instant::now();
    let goodbye = Goodbye { code: Code::ShuttingDown.number(), reason: "restart", reconnect: true, after_ms: 400 };
    conn.send(&ServerFrame::Goodbye(goodbye)).await;
    assert_eq!(conn.closed().await, Some(1000));
    let (_conn, _) = peer.welcome().await;
    assert!(said.elapsed() >= Duration::from_millis(400));
}

async fn gives_up(peer: Peer, code: u16) {
    let client = open(&peer);
    let (conn, _) = peer.welcome().await;
    conn.close(code).await;
    let state = wait_for(&client, "the end", |state| matches!(state, State::Closed { .. })).await;
    let State::Closed { why: Some(why) } = state else { panic!("{state:?}") };
    assert_eq!(why.kind(), ErrorKind::Change);
}

#[tokio::test]
async fn a_give_up_code_ends_the_client_for_good_over_web_socket() {
    gives_up(Peer::web_socket().await, 4500).await;
}

#[tokio::test]
async fn a_give_up_code_ends_the_client_for_good_over_quic() {
    gives_up(Peer::quic(), 500).await;
}

#[tokio::test]
async fn a_goodbye_that_forbids_to_come_again_ends_the_client_for_good() {
    let peer = Peer::quic();
    let client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    let goodbye = Goodbye { code: Code::NotAllowed.number(), reason: "go", reconnect: false, after_ms: 0 };
    conn.send(&ServerFrame::Goodbye(goodbye)).await;
    let state = wait_for(&client, "the end", |state| matches!(state, State::Closed { .. })).await;
    assert!(matches!(state, State::Closed { why: Some(Error::Goodbye { reconnect: false, .. }) }), "{state:?}");
}

#[tokio::test]
async fn a_refused_hello_is_final_if_there_was_no_session_yet() {
    let peer = Peer::web_socket().await;
    let url = peer.url();
    let (connected, _conn) = tokio::join!(Client::connect(&url, options()), async {
        let mut conn = peer.accept().await;
        conn.hello().await;
        conn.send(&ServerFrame::Error(Fault::new(0, Code::BadVersion, "version 9 here"))).await;
        conn
    });
    assert_eq!(connected.expect_err("refused").code(), Some(Code::BadVersion));
}

#[tokio::test]
async fn nobody_there_is_told_as_the_reason_when_time_is_up() {
    let options = Options { request_timeout: Duration::from_millis(300), ..reluctant() };
    let client = Client::open(&format!("ws://{}", unreachable_address()), options).expect("a client");
    wait_for(&client, "the first attempt", |state| matches!(state, State::Waiting { .. })).await;
    let error = client.connected().await.expect_err("nobody there");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Retry);
}

#[tokio::test]
async fn fragments_are_put_together_and_pings_between_them_answered() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    let (time, ()) = tokio::join!(client.ping(), async {
        let frame = conn.request().await;
        let Ok(ClientFrame::Ping(ping)) = ClientFrame::parse(&frame) else { panic!("no ping") };
        let bytes = framed(&ServerFrame::Pong(Pong { request: ping.request, time: Time(42) }));
        conn.message(false, 2, &bytes[..1]).await;
        conn.message(true, 9, b"still there?").await;
        conn.message(false, 0, &[]).await;
        conn.message(true, 0, &bytes[1..]).await;
    });
    assert_eq!(time.expect("a pong"), Time(42));
    let ((), code) = tokio::join!(client.close(), conn.closed());
    assert_eq!((code, &*conn.pongs), (Some(1000), &[b"still there?".to_vec()][..]));
}

#[tokio::test]
async fn what_a_server_may_not_send_is_answered_with_the_right_close_code_and_a_new_connection() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let masked = [0x82, 0x80 | 2, 1, 2, 3, 4, 0, 0];
    let announced = {
        let mut bytes = vec![0x82, 127];
        bytes.extend_from_slice(&(1_u64 << 40).to_be_bytes());
        bytes
    };
    let mut long_control = vec![0x8a, 126, 0, 126];
    long_control.extend_from_slice(&[0; 126]);
    let mut oversized_frame = vec![0x82, 9, 253];
    oversized_frame.extend_from_slice(&(1_u64 << 60).to_le_bytes()[..7]);
    let cases: [(&str, &[u8], u64); 11] = [
        ("a text message", &[0x81, 1, b'x'], 1003),
        ("text that is not UTF-8", &[0x81, 1, 0xff], 1003),
        ("a masked frame", &masked, 1002),
        ("a message of a terabyte", &announced, 1009),
        ("a long pong", &long_control, 1002),
        ("a continuation of nothing", &[0x80, 1, b'x'], 1002),
        ("reserved bits", &[0xc2, 1, b'x'], 1002),
        ("an unknown frame", &[0x82, 2, 1, 100], 1002),
        ("an empty frame", &[0x82, 1, 0], 1002),
        ("half a frame", &[0x82, 2, 5, 71], 1002),
        ("an answer to nothing", &[0x82, 3, 2, 67, 9], 1002),
    ];
    for (what, bytes, code) in cases {
        let (mut conn, _) = peer.welcome().await;
        conn.raw(bytes).await;
        assert_eq!(conn.closed().await, Some(code), "{what}");
    }
    // One that it may skip does no harm.
    let (mut conn, _) = peer.welcome().await;
    conn.raw(&[0x82, 3, 2, 250, 1]).await;
    let name = room("still here");
    let (page, ()) = tokio::join!(client.history(&name, HistoryAt::Before(None), 1), async {
        let frame = conn.request().await;
        let Ok(ClientFrame::History(history)) = ClientFrame::parse(&frame) else { panic!("no history") };
        conn.send(&ServerFrame::Error(Fault::new(history.request, Code::BadRoom, "no"))).await;
    });
    assert_eq!(page.expect_err("refused").code(), Some(Code::BadRoom));
}

#[tokio::test]
async fn endless_fragments_are_cut_off() {
    let peer = Peer::web_socket().await;
    let _client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    conn.message(false, 2, b"").await;
    for _ in 0..1024 {
        conn.message(false, 0, b"").await;
    }
    assert_eq!(conn.closed().await, Some(1009));
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    wait_for(&client, "the welcome", |state| matches!(state, State::Connected { .. })).await;
    ahead(PATIENCE / 2).await;
    let asked = conn.request().await;
    assert!(matches!(ClientFrame::parse(&asked), Ok(ClientFrame::Ping(_))), "{asked:?}");
    ahead(PATIENCE / 2).await;
    assert_eq!(conn.closed().await, Some(1000));
    let (_conn, _) = peer.welcome().await;
    wait_for(&client, "the next session", |state| matches!(state, State::Connected { .. })).await;
}

#[tokio::test]
async fn over_quic_a_server_that_was_killed_is_given_up() {
    let peer = Peer::quic();
    let client = Client::open(&peer.url(), reluctant()).expect("a client");
    let (_conn, _) = peer.welcome().await;
    wait_for(&client, "the welcome", |state| matches!(state, State::Connected { .. })).await;
    let Peer::Quic { endpoint, .. } = &peer else { panic!("made as QUIC") };
    // From now on it neither hears nor can be heard where it was.
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    endpoint.rebind(elsewhere).expect("bound");
    // Sooner than the silence that any server may keep.
    for _ in 0..15 {
        ahead(Duration::from_secs(1)).await;
    }
    let state = wait_for(&client, "the end", |state| matches!(state, State::Waiting { .. })).await;
    assert!(matches!(state, State::Waiting { why: Error::Disconnected { .. }, .. }), "{state:?}");
}

#[tokio::test]
async fn over_quic_only_a_trusted_certificate_will_do() {
    let peer = Peer::quic();
    let Peer::Quic { certificate, .. } = &peer else { panic!("made as QUIC") };
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = folder.path().join("ca.pem");
    std::fs::write(&trusted, certificate).expect("written");
    let options = Options { insecure: false, ca_file: Some(trusted), ..options() };
    let accept = async {
        let (conn, _) = peer.welcome().await;
        conn
    };
    let url = peer.url();
    let (client, _conn) = tokio::join!(Client::connect(&url, options.clone()), accept);
    client.expect("the certificate is trusted").close().await;

    let other = Peer::quic();
    let Peer::Quic { endpoint, .. } = &other else { panic!("made as QUIC") };
    let refuse = async {
        let incoming = soon("an attempt", endpoint.accept()).await.expect("open");
        assert!(incoming.await.is_err());
    };
    let url = other.url();
    let (client, ()) = tokio::join!(Client::connect(&url, options), refuse);
    let error = client.expect_err("not trusted");
    assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
}

#[tokio::test]
async fn dropping_every_handle_closes_the_connection() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let (mut conn, _) = peer.welcome().await;
    drop(client);
    assert_eq!(conn.closed().await, Some(1000));
}
