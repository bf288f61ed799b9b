//! The ingress between clients and programs, all of them here: versions of HTTP, tunnels, limits, and clients that are slow or hostile.

mod informational;
mod streams;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hutch_net::ingress::registry::{Ingress, Target};
use hutch_net::ingress::serve;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
const SUBDOMAIN: &str = "sb-one";

struct World {
    ingress: Arc<Ingress>,
    address: SocketAddr,
}

fn configuration(changes: &Value) -> Value {
    let mut all = json!({
        "domain": "localhost", "https": false, "header_timeout_ms": 5000, "idle_timeout_ms": 60000, "connect_timeout_ms": 2000,
        "wake_timeout_ms": 2000, "listen_timeout_ms": 2000, "max_connections": 100, "max_connections_per_client": 100,
        "max_requests_per_sandbox": 100, "max_waiting": 10, "max_header_bytes": 16384, "max_body_bytes": 0,
    });
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

impl World {
    /// With a program on this port. Every address of 127/8 is a sandbox.
    async fn new(port: u16, changes: Value) -> Self {
        let ingress = Arc::new(Ingress::default());
        ingress
            .configure(serde_json::from_value(configuration(&changes)).unwrap())
            .unwrap();
        let routes = json!([{"sandbox": "one", "routes": [[SUBDOMAIN, port]]}]);
        ingress.put_routes(serde_json::from_value(routes).unwrap(), true);
        ingress.put_target("one", Target::new("session".to_owned(), Ipv4Addr::LOCALHOST));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve::serve(Arc::clone(&ingress), listener));
        Self { ingress, address }
    }

    fn host(&self) -> String {
        format!("{SUBDOMAIN}.localhost:{}", self.address.port())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What comes back for these bytes until the connection ends.
    async fn raw(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        stream
            .write_all(bytes.replace("HOST", &self.host()).as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection ends");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn h2(&self) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(self.connect().await))
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn request(&self, path: &str) -> Request<Full<Bytes>> {
        Request::get(format!("http://{}{path}", self.host()))
            .body(Full::default())
            .unwrap()
    }
}

/// A program that answers with what it was asked.
async fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?;
                let trailers = body.trailers().cloned();
                let text = format!(
                    "{} {} {:?} {:?} {} {:?}",
                    parts.method,
                    parts.uri,
                    parts.version,
                    parts.headers,
                    body.to_bytes().len(),
                    trailers
                );
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// A program that says this to whoever connects, once it was asked, and keeps the connection.
async fn saying(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer).await;
                let mut rest = [0; 4096];
                while let Ok(count) = stream.read(&mut rest).await {
                    if count == 0 || stream.write_all(&rest[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

#[tokio::test]
async fn both_versions_of_http_reach_the_program() {
    let world = World::new(program().await, json!({})).await;
    let answer = world
        .raw("GET /first HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("GET /first HTTP/1.1"), "{answer}");
    let mut sender = world.h2().await;
    let mut request = world.request("/second?a=1");
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        (response.status(), response.version()),
        (StatusCode::OK, Version::HTTP_2)
    );
    let said = text(response).await;
    assert!(said.starts_with("GET /second?a=1 HTTP/1.1"), "{said}");
    assert!(said.contains("\"cookie\": \"a=1; b=2\""), "{said}");
    assert!(said.contains(&format!("\"host\": \"{}\"", world.host())), "{said}");
}

#[tokio::test]
async fn requests_of_one_connection_go_to_the_sandbox_that_each_names() {
    let world = World::new(program().await, json!({})).await;
    let mut sender = world.h2().await;
    let other = Request::get("http://sb-two.localhost/").body(Full::default()).unwrap();
    assert_eq!(
        sender.send_request(other).await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    let mut both = world.request("/");
    both.headers_mut().insert("host", "sb-two.localhost".parse().unwrap());
    assert_eq!(
        sender.send_request(both).await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        sender.send_request(world.request("/")).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn trailers_of_requests_pass() {
    let world = World::new(program().await, json!({})).await;
    let answer = world
        .raw("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n")
        .await;
    assert!(answer.contains(" 3 Some({\"x-sum\": \"7\"})"), "{answer}");
}

#[tokio::test]
async fn a_websocket_of_http2_becomes_one_of_http1() {
    let port = saying(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n").await;
    let world = World::new(port, json!({})).await;
    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    tokio::spawn(connection);
    // The settings of the other end say that it may.
    let ready = sender.clone().ready().await.unwrap();
    timeout(PATIENCE, async {
        while !ready.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://{}/ws", world.host()))
        .body(())
        .unwrap();
    request
        .extensions_mut()
        .insert(h2::ext::Protocol::from_static("websocket"));
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    stream.send_data(Bytes::from_static(b"there and back"), false).unwrap();
    let mut body = response.into_body();
    let mut back = Vec::new();
    while back.len() < 14 {
        back.extend_from_slice(&timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap());
    }
    assert_eq!(back, b"there and back");
    // And ends with the session.
    world.ingress.remove_target("one", "session");
    let end = timeout(PATIENCE, body.data()).await.unwrap();
    assert!(!matches!(end, Some(Ok(ref data)) if !data.is_empty()), "{end:?}");
}

#[tokio::test]
async fn tls_speaks_both_versions_and_changes_its_certificate() {
    use rustls::pki_types::ServerName;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let port = program().await;
    let made = || rcgen::generate_simple_self_signed(vec![format!("{SUBDOMAIN}.localhost")]).unwrap();
    let (first, second) = (made(), made());
    let with = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| json!({"certificate": made.cert.pem(), "key": made.signing_key.serialize_pem()});
    let world = World::new(port, with(&first)).await;
    for (certificate, protocols) in [
        (&first, vec![b"h2".to_vec()]),
        (&first, vec![b"http/1.1".to_vec()]),
        (&second, vec![]),
    ] {
        world
            .ingress
            .configure(serde_json::from_value(configuration(&with(certificate))).unwrap())
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.cert.der().clone()).unwrap();
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols.clone_from(&protocols);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(format!("{SUBDOMAIN}.localhost")).unwrap();
        let stream = connector.connect(name, world.connect().await).await.unwrap();
        let said = if protocols == [b"h2".to_vec()] {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            text(sender.send_request(world.request("/tls")).await.unwrap()).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            let request = Request::get("/tls")
                .header("host", world.host())
                .body(Empty::<Bytes>::new())
                .unwrap();
            text(sender.send_request(request).await.unwrap()).await
        };
        assert!(said.contains("\"x-forwarded-proto\": \"https\""), "{said}");
    }
    let broken = configuration(&json!({"certificate": first.cert.pem(), "key": second.signing_key.serialize_pem()}));
    assert!(
        world
            .ingress
            .configure(serde_json::from_value(broken).unwrap())
            .is_err()
    );
}

#[tokio::test]
async fn slow_heads_and_silent_clients_are_not_waited_for() {
    let world = World::new(program().await, json!({"header_timeout_ms": 300})).await;
    for begun in [
        "",
        "GET / HT",
        "PRI * HTTP/2.0\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nx-slow: ",
    ] {
        let answer = world.raw(begun).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert_eq!(world.ingress.connections(), 0);
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_ends() {
    let world = World::new(
        saying(b"HTTP/1.1 200 OK\r\n\r\nbegun").await,
        json!({"idle_timeout_ms": 500}),
    )
    .await;
    let answer = world.raw("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    assert!(answer.contains("begun"), "{answer}");
}

#[tokio::test]
async fn connections_are_bounded_in_all_and_of_each_client() {
    for bound in [json!({"max_connections": 2}), json!({"max_connections_per_client": 2})] {
        let world = World::new(program().await, bound).await;
        let held = [world.connect().await, world.connect().await];
        timeout(PATIENCE, async {
            while world.ingress.connections() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let mut refused = world.connect().await;
        let mut byte = [0];
        assert!(!matches!(
            timeout(PATIENCE, refused.read(&mut byte)).await.unwrap(),
            Ok(1)
        ));
        drop(held);
        timeout(PATIENCE, async {
            while world.ingress.connections() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let answer = world
            .raw("GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn requests_of_one_sandbox_are_bounded() {
    let world = World::new(
        saying(b"HTTP/1.1 200 OK\r\n\r\nbegun").await,
        json!({"max_requests_per_sandbox": 1}),
    )
    .await;
    let mut sender = world.h2().await;
    let held = sender.send_request(world.request("/")).await.unwrap();
    let refused = sender.send_request(world.request("/")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["x-hutch-error"], "SANDBOX_BUSY");
    assert!(refused.headers().contains_key("retry-after"));
    drop(held);
}

#[tokio::test]
async fn heads_and_bodies_are_bounded() {
    let world = World::new(
        program().await,
        json!({"max_header_bytes": 8192, "max_body_bytes": 1000}),
    )
    .await;
    let long = "x".repeat(20_000);
    let answer = world
        .raw(&format!("GET / HTTP/1.1\r\nHost: HOST\r\nx-long: {long}\r\n\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = world
        .raw("POST / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\nContent-Length: 1001\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let answer = world
        .raw(&format!(
            "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut sender = world.h2().await;
    let mut large = world.request("/");
    large.headers_mut().insert("x-long", long.parse().unwrap());
    let refused = sender.send_request(large).await;
    assert!(refused.is_err() || refused.unwrap().status().is_client_error());
}

#[tokio::test]
async fn a_slow_reader_holds_the_program_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let piece = vec![b'x'; 64 * 1024];
        while let Ok(count) = stream.write(&piece).await {
            counted.fetch_add(count, Ordering::Relaxed);
        }
    });
    let world = World::new(port, json!({})).await;
    let mut sender = world.h2().await;
    let response = sender.send_request(world.request("/")).await.unwrap();
    // Until nothing more is taken.
    let mut before = usize::MAX;
    timeout(PATIENCE, async {
        while sent.load(Ordering::Relaxed) != before {
            before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
    .unwrap();
    // What the kernel keeps for connections of this machine is most of it.
    assert!(before < 32 << 20, "{before}");
    drop(response);
}

#[tokio::test]
async fn what_is_no_http_is_a_bad_answer() {
    for answer in [
        b"SSH-2.0-x\r\n".as_slice(),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let world = World::new(saying(answer).await, json!({})).await;
        let said = world
            .raw("GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
            .await;
        assert!(said.starts_with("HTTP/1.1 502"), "{said}");
        assert!(said.contains("SANDBOX_BAD_ANSWER"), "{said}");
    }
}

#[tokio::test]
async fn a_session_that_ends_takes_its_answers_along() {
    let world = World::new(saying(b"HTTP/1.1 200 OK\r\n\r\nbegun").await, json!({})).await;
    let mut sender = world.h2().await;
    let mut body = sender.send_request(world.request("/")).await.unwrap().into_body();
    let begun = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(begun.into_data().unwrap(), "begun");
    world
        .ingress
        .put_target("one", Target::new("next".to_owned(), Ipv4Addr::new(127, 0, 0, 2)));
    let end = timeout(PATIENCE, body.frame()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn a_flood_of_requests_that_are_taken_back_ends_the_connection() {
    let world = World::new(saying(b"").await, json!({})).await;
    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    let ended = tokio::spawn(connection);
    for _ in 0..2000 {
        let Ok(ready) = sender.ready().await else { break };
        sender = ready;
        let request = Request::get(format!("http://{}/", world.host())).body(()).unwrap();
        let Ok((_, mut stream)) = sender.send_request(request, true) else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
    }
    let outcome = timeout(PATIENCE, ended).await.expect("the connection ends").unwrap();
    assert!(outcome.is_err(), "{outcome:?}");
}

#[tokio::test]
async fn of_many_who_wait_one_is_passed_on_and_too_many_are_refused() {
    let world = World::new(program().await, json!({"max_waiting": 2, "wake_timeout_ms": 500})).await;
    let routes = json!([{"sandbox": "one", "routes": [[SUBDOMAIN, 1]], "wake": true}]);
    world.ingress.put_routes(serde_json::from_value(routes).unwrap(), false);
    world.ingress.remove_target("one", "session");
    let mut wakes = world.ingress.take_wakes().unwrap();
    let mut sender = world.h2().await;
    let asked: Vec<_> = (0..3).map(|_| sender.send_request(world.request("/"))).collect();
    let mut codes = Vec::new();
    for response in asked {
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        codes.push(response.headers()["x-hutch-error"].to_str().unwrap().to_owned());
    }
    codes.sort();
    assert_eq!(codes, ["SANDBOX_BUSY", "SANDBOX_NOT_RESUMED", "SANDBOX_NOT_RESUMED"]);
    assert_eq!(wakes.recv().await.as_deref(), Some("one"));
    assert!(wakes.try_recv().is_err());
    // The next one asks anew, and is told that it failed.
    let again = sender.send_request(world.request("/"));
    let again = tokio::spawn(again);
    assert_eq!(timeout(PATIENCE, wakes.recv()).await.unwrap().as_deref(), Some("one"));
    world.ingress.not_waked("one");
    let response = timeout(PATIENCE, again).await.unwrap().unwrap().unwrap();
    assert_eq!(response.headers()["x-hutch-error"], "SANDBOX_NOT_RESUMED");
}

#[tokio::test]
async fn a_program_that_answers_and_reads_no_further_keeps_no_connection() {
    const LENGTH: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(listener.local_addr().unwrap().port(), json!({})).await;
    let target = world.ingress.target("one").unwrap();
    let (mut from_client, mut to_client) = world.connect().await.into_split();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: {LENGTH}\r\n\r\n",
        world.host()
    );
    let sending = tokio::spawn(async move {
        to_client.write_all(head.as_bytes()).await.unwrap();
        // It may be told to stop.
        let _ = to_client.write_all(&vec![0; LENGTH]).await;
    });
    let (mut guest, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    guest.write_all(answer).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"ok") {
        got.push(timeout(PATIENCE, from_client.read_u8()).await.unwrap().unwrap());
    }
    let over = async {
        while target.requests.load(Ordering::Acquire) != 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, over).await.expect("the request keeps its place");
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, guest.read_to_end(&mut rest))
        .await
        .expect("the connection ends");
    assert!(rest.len() < LENGTH, "{}", rest.len());
    sending.await.unwrap();
}
