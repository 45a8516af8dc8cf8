//! Plain HTTP on the client port: our own page, and the checks before a request becomes a WebSocket.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::Options;
use crate::metrics::Refusal;
use crate::protocol::{SUB_PROTOCOL, WEBSOCKET_PATH};

/// What is said to a request that is meant for another host.
pub(super) const FOREIGN_HOST: &str =
    "Host must be given once, and be a loopback address, localhost, or a name in allowed_hosts.\n";

pub(super) type Answer = Response<Full<Bytes>>;

/// What a request is.
#[derive(Debug)]
pub(super) enum Asked {
    /// For something that this is the answer to.
    Answer(Answer, Option<Refusal>),
    /// To become a WebSocket, and it may.
    Upgrade,
}

/// Judges a request to the client port.
pub(super) fn judge<B>(request: &Request<B>, options: &Options, tls: bool) -> Asked {
    let refuse = |status, text: &str, why| Asked::Answer(plain(status, text), Some(why));
    let headers = request.headers();
    let Some(host) = own_host(headers, &options.allowed_hosts) else {
        return refuse(StatusCode::FORBIDDEN, FOREIGN_HOST, Refusal::Host);
    };
    if !origin_allowed(headers, host, &options.allowed_origins, tls) {
        return refuse(StatusCode::FORBIDDEN, "This Origin is not in allowed_origins.\n", Refusal::Origin);
    }
    match request.uri().path() {
        WEBSOCKET_PATH => match upgrade_fault(request) {
            None => Asked::Upgrade,
            Some(answer) => Asked::Answer(answer, Some(Refusal::Handshake)),
        },
        "/" => match *request.method() {
            Method::GET | Method::HEAD => Asked::Answer(page(host), None),
            _ => Asked::Answer(not_allowed(), None),
        },
        _ => Asked::Answer(plain(StatusCode::NOT_FOUND, "There is / and /v1/ws.\n"), None),
    }
}

/// Names the sub-protocol in the answer to an upgrade.
pub(super) fn name_protocol<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUB_PROTOCOL));
}

/// An answer in plain text.
pub(super) fn plain(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    set(&mut answer, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

pub(super) fn not_allowed() -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET is answered here.\n");
    set(&mut answer, header::ALLOW, "GET, HEAD");
    answer
}

pub(super) fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

/// Our own page. It may run its own script and talk to this server, and nothing else.
fn page(host: &str) -> Answer {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "There is no randomness to be had.\n");
    }
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    let text = include_str!("page.html").replacen("<script>", &format!("<script nonce=\"{nonce}\">"), 1).replacen(
        "<style>",
        &format!("<style nonce=\"{nonce}\">"),
        1,
    );
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    set(&mut answer, header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, header::REFERRER_POLICY, "no-referrer");
    let policy = HeaderValue::from_str(&policy).expect("a host and a nonce are plain text");
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    answer
}

/// The value of a header that is there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Whether a comma separated list, over all headers of the name, holds a word in any case.
fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// The `Host`, if the request is really meant for us: a page elsewhere cannot make a browser send another one, even
/// when the name it was loaded from now leads here.
pub(super) fn own_host<'a>(headers: &'a HeaderMap, allowed: &[String]) -> Option<&'a str> {
    let host = only(headers, header::HOST)?;
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let literal = name.parse::<IpAddr>();
    let ours = literal.as_ref().is_ok_and(|address| address.to_canonical().is_loopback())
        || name.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|allowed| match (allowed.parse::<IpAddr>(), &literal) {
            (Ok(allowed), Ok(literal)) => allowed == *literal,
            _ => allowed.eq_ignore_ascii_case(name),
        });
    (ours && port_is_one).then_some(host)
}

/// A browser says where a page comes from; what is not a browser says nothing.
fn origin_allowed(headers: &HeaderMap, host: &str, allowed: &[String], tls: bool) -> bool {
    if !headers.contains_key(header::ORIGIN) {
        return true;
    }
    let Some(origin) = only(headers, header::ORIGIN) else { return false };
    let own = |scheme: &str| origin.strip_prefix(scheme).is_some_and(|rest| rest.eq_ignore_ascii_case(host));
    // Behind a proxy that ends TLS our own page is https although we are not.
    own("https://") || (!tls && own("http://")) || allowed.iter().any(|allowed| allowed == origin)
}

fn upgrade_fault<B>(request: &Request<B>) -> Option<Answer> {
    let headers = request.headers();
    if *request.method() != Method::GET {
        return Some(not_allowed());
    }
    if request.version() != Version::HTTP_11 {
        return Some(plain(StatusCode::BAD_REQUEST, "A WebSocket begins with HTTP/1.1.\n"));
    }
    if !lists(headers, header::UPGRADE, "websocket") || !lists(headers, header::CONNECTION, "upgrade") {
        let mut answer = plain(StatusCode::UPGRADE_REQUIRED, "This path is for WebSocket.\n");
        set(&mut answer, header::UPGRADE, "websocket");
        set(&mut answer, header::CONNECTION, "upgrade");
        return Some(answer);
    }
    if only(headers, header::SEC_WEBSOCKET_VERSION) != Some("13") {
        let mut answer = plain(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13.\n");
        set(&mut answer, header::SEC_WEBSOCKET_VERSION, "13");
        return Some(answer);
    }
    if !only(headers, header::SEC_WEBSOCKET_KEY).is_some_and(is_key) {
        return Some(plain(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64, once.\n"));
    }
    if !lists(headers, header::SEC_WEBSOCKET_PROTOCOL, SUB_PROTOCOL) {
        return Some(plain(StatusCode::BAD_REQUEST, "Sec-WebSocket-Protocol must offer roomlog.v1.\n"));
    }
    None
}

/// Whether a text is 16 bytes in base64.
fn is_key(text: &str) -> bool {
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    // The last letter holds 2 bits of the 16th byte, and 4 that are nothing.
    text.strip_suffix("==").is_some_and(|letters| {
        letters.len() == 22 && letters.bytes().all(|byte| in_alphabet(&byte)) && letters.ends_with(['A', 'Q', 'g', 'w'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri("/v1/ws")
            .header("host", "127.0.0.1:7400")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "other, roomlog.v1")
            .body(())
            .expect("a request");
        change(&mut request);
        request
    }

    fn status(change: impl FnOnce(&mut Request<()>)) -> u16 {
        let options = Options {
            allowed_origins: vec!["https://chat.example.org".to_owned()],
            allowed_hosts: vec!["broker.example.org".to_owned(), "192.0.2.7".to_owned()],
            ..Options::default()
        };
        match judge(&request(change), &options, false) {
            Asked::Upgrade => 101,
            Asked::Answer(answer, _) => answer.status().as_u16(),
        }
    }

    fn with(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |request| _ = request.headers_mut().insert(name, HeaderValue::from_static(value))
    }

    fn twice(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |request| _ = request.headers_mut().append(name, HeaderValue::from_static(value))
    }

    fn without(name: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |request| _ = request.headers_mut().remove(name)
    }

    #[test]
    fn a_proper_request_becomes_a_websocket() {
        assert_eq!(status(|_| {}), 101);
        for host in
            ["localhost", "LOCALHOST:7400", "[::1]:7400", "[::1]", "127.8.9.10", "Broker.example.org", "192.0.2.7:1"]
        {
            assert_eq!(status(with("host", host)), 101, "{host}");
        }
    }

    #[test]
    fn no_web_page_reaches_a_broker_that_does_not_know_it() {
        for host in [
            "evil.example.org",
            "192.0.2.8",
            "localhost.evil.example.org",
            "127.0.0.1.evil.org",
            "[::2]",
            "localhost:x",
            "",
        ] {
            assert_eq!(status(with("host", host)), 403, "{host}");
        }
        assert_eq!(status(without("host")), 403);
        assert_eq!(status(twice("host", "127.0.0.1:7400")), 403);
        for origin in
            ["https://evil.example.org", "null", "http://127.0.0.1:7401", "http://127.0.0.1:7400.evil.org", ""]
        {
            assert_eq!(status(with("origin", origin)), 403, "{origin}");
        }
        for origin in ["http://127.0.0.1:7400", "https://127.0.0.1:7400", "https://chat.example.org"] {
            assert_eq!(status(with("origin", origin)), 101, "{origin}");
        }
        assert_eq!(
            status(|request| {
                let headers = request.headers_mut();
                headers.append("origin", HeaderValue::from_static("https://chat.example.org"));
                headers.append("origin", HeaderValue::from_static("https://chat.example.org"));
            }),
            403
        );
    }

    #[test]
    fn every_other_handshake_is_refused_with_the_status_that_says_why() {
        assert_eq!(status(|request| *request.method_mut() = Method::POST), 405);
        assert_eq!(status(|request| *request.version_mut() = Version::HTTP_10), 400);
        assert_eq!(status(without("upgrade")), 426);
        assert_eq!(status(with("connection", "close")), 426);
        assert_eq!(status(with("sec-websocket-version", "8")), 426);
        assert_eq!(status(without("sec-websocket-key")), 400);
        assert_eq!(status(twice("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")), 400);
        for key in ["AAAA", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZ!==", "dGhlIHNhbXBsZSBub25jZR=="] {
            assert_eq!(status(with("sec-websocket-key", key)), 400, "{key}");
        }
        assert_eq!(status(without("sec-websocket-protocol")), 400);
        assert_eq!(status(with("sec-websocket-protocol", "roomlog.v2")), 400);
        assert_eq!(status(|request| *request.uri_mut() = "/v1/other".parse().expect("a path")), 404);
        assert_eq!(status(|request| *request.uri_mut() = "/".parse().expect("a path")), 200);
    }
}
