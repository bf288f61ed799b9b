//! What of heads goes on, in either direction.
//!
//! Every head is put together anew. What is about one connection (RFC 9110, section 7.6.1) stays on it; what says where a request
//! came from is said by us alone; what opens a private port is not the program's to know.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST,
    HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};

use super::answer::ERROR;
use super::name;

/// The parameter and the cookie that have a token.
pub const TOKEN: &str = "hutch_token";
/// The header that has one.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-hutch-ingress-token");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Begin names that only we, or the vendor's own front, may send.
const OURS: [&str; 4] = ["x-forwarded-", "x-hutch-", "x-vercel-forwarded-", "x-vercel-ip-"];

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether clients speak TLS, to us or to what stands in front of us.
    pub https: bool,
}

/// Tokens that a request carries.
pub fn tokens(headers: &HeaderMap, query: Option<&str>) -> Vec<String> {
    let named = headers
        .get(TOKEN_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let cookies = cookies(headers).filter_map(|cookie| token_of(cookie).map(str::to_owned));
    // Others below the domain may have set cookies of that name; they come last.
    named
        .into_iter()
        .chain(token_in(query))
        .chain(cookies)
        .take(8)
        .collect()
}

/// The token in a query.
pub fn token_in(query: Option<&str>) -> Option<String> {
    query?.split('&').find_map(|pair| token_of(pair).map(str::to_owned))
}

fn token_of(pair: &str) -> Option<&str> {
    pair.trim().strip_prefix(TOKEN)?.strip_prefix('=')
}

fn is_token(pair: &str) -> bool {
    let pair = pair.trim();
    pair == TOKEN || token_of(pair).is_some()
}

/// A target without the parameter.
pub fn without_token(path: &str, query: Option<&str>) -> String {
    let Some(query) = query else { return path.to_owned() };
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", rest.join("&"))
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
}

/// The one protocol that requests of HTTP/1.1 may go over to. With HTTP/2 (`h2c`, alone or in a list) a client would say more
/// to the program than it may.
pub const WEBSOCKET: &str = "websocket";

/// Whether a request of HTTP/1.1 wants to be a WebSocket, or an answer says that it is one.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let asked = options(headers).iter().any(|option| option == "upgrade");
    let mut protocols = headers.get_all(UPGRADE).iter();
    let websocket = protocols
        .next()
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()));
    asked && websocket && protocols.next().is_none()
}

/// Whether the body of a request waits for 100.
pub fn expects(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The names in `Connection`.
fn options(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|option| option.trim().to_ascii_lowercase())
        .collect()
}

fn of_connection(name: &HeaderName, options: &[String]) -> bool {
    let fixed = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ];
    // A length is the message's, whatever `Connection` says; without it the next request would begin elsewhere.
    fixed.contains(name)
        || (*name != CONTENT_LENGTH && *name != HOST && options.iter().any(|option| option == name.as_str()))
}

/// The headers that a program gets of a request.
pub fn request(headers: &HeaderMap, authority: &str, origin: Origin) -> Option<HeaderMap> {
    let options = options(headers);
    let mut kept = HeaderMap::with_capacity(headers.len() + 8);
    kept.insert(HOST, HeaderValue::from_str(authority).ok()?);
    for (name, value) in headers {
        let ours = OURS.iter().any(|prefix| name.as_str().starts_with(prefix));
        let said_by_us = [HOST, COOKIE, EXPECT, FORWARDED, REAL_IP].contains(name);
        if ours || said_by_us || of_connection(name, &options) {
            continue;
        }
        if *name == REFERER && memchr::memmem::find(value.as_bytes(), TOKEN.as_bytes()).is_some() {
            continue;
        }
        kept.append(name, value.clone());
    }
    if let Some(cookie) = cookie(headers) {
        kept.insert(COOKIE, cookie);
    }
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if trailers {
        kept.insert(TE, HeaderValue::from_static("trailers"));
    }
    let port = name::split(authority).1.unwrap_or(if origin.https { 443 } else { 80 });
    let said = [
        ("x-forwarded-for", origin.peer.to_canonical().to_string()),
        (
            "x-forwarded-proto",
            if origin.https { "https" } else { "http" }.to_owned(),
        ),
        ("x-forwarded-host", authority.to_owned()),
        ("x-forwarded-port", port.to_string()),
    ];
    for (name, value) in said {
        kept.insert(HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?);
    }
    Some(kept)
}

/// All cookies but ours, in one header: HTTP/2 splits them, and programs of HTTP/1.1 read one.
fn cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut joined = Vec::new();
    for value in headers.get_all(COOKIE) {
        for pair in value.as_bytes().split(|&byte| byte == b';') {
            let pair = pair.trim_ascii();
            if pair.is_empty() || std::str::from_utf8(pair).is_ok_and(is_token) {
                continue;
            }
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(pair);
        }
    }
    if joined.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&joined).ok()
}

/// Whether a request is gRPC, which is HTTP/2 from end to end. gRPC-Web is not.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Leave of trailers, in either direction, what may be there (RFC 9110, section 6.5.1) and what others may say.
pub fn trailers(trailers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let ours = OURS.iter().any(|prefix| name.as_str().starts_with(prefix));
            let of_heads = [
                AUTHORIZATION,
                CONTENT_ENCODING,
                CONTENT_LENGTH,
                CONTENT_TYPE,
                COOKIE,
                EXPECT,
                FORWARDED,
                HOST,
                REAL_IP,
                SET_COOKIE,
                TRAILER,
            ];
            ours || of_heads.contains(name) || of_connection(name, &[])
        })
        .cloned()
        .collect();
    for name in gone {
        trailers.remove(name);
    }
}

/// Leave of an answer's headers what goes to the client.
pub fn response(headers: &mut HeaderMap) {
    let options = options(headers);
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| of_connection(name, &options) || **name == ERROR)
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn passed(lines: &[(&'static str, &str)]) -> HeaderMap {
        let origin = Origin {
            peer: "192.0.2.7".parse().unwrap(),
            https: false,
        };
        request(&map(lines), "sb-a.localhost:7071", origin).unwrap()
    }

    #[test]
    fn where_a_request_came_from_is_said_by_us_alone() {
        let headers = passed(&[
            ("x-forwarded-for", "203.0.113.1"),
            ("x-forwarded-anything", "x"),
            ("forwarded", "for=203.0.113.1"),
            ("x-real-ip", "203.0.113.1"),
            ("x-hutch-sandbox", "x"),
            ("x-vercel-forwarded-for", "203.0.113.1"),
            ("x-own", "kept"),
        ]);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "sb-a.localhost:7071");
        assert_eq!(headers["x-forwarded-port"], "7071");
        assert_eq!(headers["x-own"], "kept");
        assert_eq!(headers.len(), 6);
    }

    #[test]
    fn what_is_about_one_connection_stays_on_it() {
        let headers = passed(&[
            ("connection", "close, X-Private, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
            ("content-length", "3"),
            ("expect", "100-continue"),
        ]);
        assert_eq!(headers["content-length"], "3");
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers.len(), 1 + 4 + 2);
    }

    #[test]
    fn no_program_sees_a_token() {
        let headers = passed(&[
            ("cookie", "a=1; hutch_token=v1.x; b=2"),
            ("cookie", "hutch_token"),
            ("cookie", "c=3"),
            ("x-hutch-ingress-token", "v1.x"),
            ("referer", "http://sb-a.localhost/?hutch_token=v1.x"),
        ]);
        assert_eq!(headers["cookie"], "a=1; b=2; c=3");
        assert_eq!(headers.get_all("cookie").iter().count(), 1);
        assert!(!headers.contains_key("referer"));
        assert!(!headers.contains_key("x-hutch-ingress-token"));
        assert_eq!(without_token("/p", Some("a=1&hutch_token=v1.x&b=2")), "/p?a=1&b=2");
        assert_eq!(without_token("/p", Some("hutch_token=v1.x")), "/p");
        assert_eq!(without_token("/p", None), "/p");
    }

    #[test]
    fn tokens_are_found_wherever_they_may_be() {
        let headers = map(&[
            ("cookie", "hutch_token=bad; x=1; hutch_token=good"),
            ("x-hutch-ingress-token", "named"),
        ]);
        assert_eq!(
            tokens(&headers, Some("q=1&hutch_token=asked")),
            ["named", "asked", "bad", "good"]
        );
    }

    #[test]
    fn answers_can_not_pretend_to_be_ours() {
        let mut headers = map(&[
            ("x-hutch-error", "SANDBOX_STOPPED"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("server", "mine"),
            ("trailer", "x-sum"),
        ]);
        response(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["server"], "mine");
    }

    #[test]
    fn grpc_is_known_by_its_type() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&map(&[("content-type", kind)])), is, "{kind}");
        }
        assert!(!is_grpc(&map(&[])));
    }

    #[test]
    fn trailers_say_nothing_that_belongs_into_a_head() {
        let mut said = map(&[
            ("grpc-status", "0"),
            ("x-sum", "7"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("host", "other"),
            ("x-forwarded-for", "203.0.113.1"),
            ("x-hutch-error", "SANDBOX_STOPPED"),
            ("x-real-ip", "203.0.113.1"),
            ("set-cookie", "a=1"),
        ]);
        trailers(&mut said);
        assert_eq!(said.len(), 2);
        assert_eq!(
            (&said["grpc-status"], &said["x-sum"]),
            (&HeaderValue::from_static("0"), &HeaderValue::from_static("7"))
        );
    }

    #[test]
    fn an_upgrade_is_to_websocket_and_asked_for_in_both_headers() {
        assert!(is_upgrade(&map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket")
        ])));
        assert!(!is_upgrade(&map(&[("upgrade", "websocket")])));
        for other in ["h2c", "h2c, websocket", "websocket, h2c", "tcp"] {
            assert!(
                !is_upgrade(&map(&[("connection", "upgrade"), ("upgrade", other)])),
                "{other}"
            );
        }
        let two = [("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")];
        assert!(!is_upgrade(&map(&two)));
    }
}
