//! HTTP/2 to the program: gRPC.

use super::*;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::sync::mpsc;

/// What a program saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Connection,
    /// The request's head.
    Head(String, HeaderMap),
    /// How its body ended: with trailers, or reset.
    End(Result<Option<HeaderMap>, Option<Reason>>),
}

/// A program of HTTP/2 that says each piece again, and ends when it was told all; at `/reset` it resets instead, at
/// `/late-reset` when it is told to.
async fn echo() -> (u16, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                seen.send(Seen::Connection).unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let seen = seen.clone();
                    tokio::spawn(async move {
                        let (parts, body) = request.into_parts();
                        let path = parts.uri.path().to_owned();
                        seen.send(Seen::Head(parts.uri.to_string(), parts.headers)).unwrap();
                        if path == "/reset" {
                            return respond.send_reset(Reason::ENHANCE_YOUR_CALM);
                        }
                        let response = Response::builder().header("content-type", "application/grpc");
                        let stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        let end = echoed(body, stream, path == "/late-reset").await;
                        let _ = seen.send(Seen::End(end));
                    });
                }
            });
        }
    });
    (port, receiver)
}

async fn echoed(
    mut body: RecvStream,
    mut stream: SendStream<Bytes>,
    resets: bool,
) -> Result<Option<HeaderMap>, Option<Reason>> {
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.reason())?;
        body.flow_control().release_capacity(data.len()).unwrap();
        if resets && data == "reset" {
            stream.send_reset(Reason::ENHANCE_YOUR_CALM);
            return Ok(None);
        }
        let _ = stream.send_data(data, false);
    }
    let trailers = body.trailers().await.map_err(|error| error.reason())?;
    let mut said = HeaderMap::new();
    said.insert("grpc-status", "0".parse().unwrap());
    said.insert("x-hutch-error", "SANDBOX_STOPPED".parse().unwrap());
    stream.send_trailers(said).unwrap();
    Ok(trailers)
}

struct Caller {
    sender: h2::client::SendRequest<Bytes>,
    host: String,
}

impl Caller {
    async fn new(world: &World) -> Self {
        let (sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
        tokio::spawn(connection);
        Self {
            sender,
            host: world.host(),
        }
    }

    async fn call(&mut self, path: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://{}{path}", self.host))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("x-forwarded-for", "203.0.113.1")
            .body(())
            .unwrap();
        let mut ready = timeout(PATIENCE, self.sender.clone().ready()).await.unwrap().unwrap();
        ready.send_request(request, false).unwrap()
    }
}

async fn next(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
    timeout(PATIENCE, seen.recv()).await.unwrap().unwrap()
}

async fn piece(body: &mut RecvStream) -> Bytes {
    let data = timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
    body.flow_control().release_capacity(data.len()).unwrap();
    data
}

#[tokio::test]
async fn grpc_is_a_stream_in_both_directions_with_trailers() {
    let (port, mut seen) = echo().await;
    let world = World::new(port, json!({})).await;
    let mut caller = Caller::new(&world).await;
    for call in 0..2 {
        let (response, mut stream) = caller.call("/package.Service/Method").await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        if call == 0 {
            // Calls of one client share a connection.
            assert_eq!(next(&mut seen).await, Seen::Connection);
        }
        let Seen::Head(uri, headers) = next(&mut seen).await else {
            panic!("no head")
        };
        assert_eq!(uri, format!("http://{}/package.Service/Method", world.host()));
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert!(!headers.contains_key("host"));
        let mut body = response.into_body();
        for said in ["one", "two"] {
            stream.send_data(Bytes::from(said), false).unwrap();
            assert_eq!(piece(&mut body).await, said);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        trailers.insert("x-forwarded-host", "other".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        let Seen::End(Ok(Some(trailers))) = next(&mut seen).await else {
            panic!("no trailers")
        };
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["x-sum"], "7");
        assert!(timeout(PATIENCE, body.data()).await.unwrap().is_none());
        let trailers = timeout(PATIENCE, body.trailers()).await.unwrap().unwrap().unwrap();
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["grpc-status"], "0");
    }
}

#[tokio::test]
async fn resets_are_those_of_the_other_end() {
    let (port, mut seen) = echo().await;
    let world = World::new(port, json!({})).await;
    let mut caller = Caller::new(&world).await;
    let (response, _stream) = caller.call("/reset").await;
    let error = timeout(PATIENCE, response).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let (response, mut stream) = caller.call("/late-reset").await;
    stream.send_data(Bytes::from_static(b"one"), false).unwrap();
    let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    assert_eq!(piece(&mut body).await, "one");
    stream.send_data(Bytes::from_static(b"reset"), false).unwrap();
    let error = timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let (response, mut stream) = caller.call("/").await;
    let _body = timeout(PATIENCE, response).await.unwrap().unwrap();
    stream.send_reset(Reason::CANCEL);
    loop {
        match next(&mut seen).await {
            Seen::End(Ok(None)) | Seen::Connection | Seen::Head(..) => {}
            end @ Seen::End(_) => {
                assert_eq!(end, Seen::End(Err(Some(Reason::CANCEL))));
                break;
            }
        }
    }
    // The connection is as good as it was.
    let (response, _stream) = caller.call("/").await;
    assert_eq!(
        timeout(PATIENCE, response).await.unwrap().unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn what_a_client_takes_back_does_not_look_whole_to_a_program() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(listener.local_addr().unwrap().port(), json!({})).await;
    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/", world.host())).body(()).unwrap();
    let (_response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let (mut guest, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"begun\r\n") {
        assert_ne!(timeout(PATIENCE, guest.read_buf(&mut got)).await.unwrap().unwrap(), 0);
    }
    stream.send_reset(Reason::CANCEL);
    let _ = timeout(PATIENCE, guest.read_to_end(&mut got)).await.unwrap();
    assert!(got.ends_with(b"begun\r\n"), "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn grpc_ends_with_the_session_and_goes_on_with_the_next_one() {
    let (port, mut seen) = echo().await;
    let world = World::new(port, json!({})).await;
    let mut caller = Caller::new(&world).await;
    let (response, _stream) = caller.call("/").await;
    let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    world
        .ingress
        .put_target("one", Target::new("next".to_owned(), Ipv4Addr::LOCALHOST));
    let end = timeout(PATIENCE, body.data()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    let (response, _stream) = caller.call("/").await;
    assert_eq!(
        timeout(PATIENCE, response).await.unwrap().unwrap().status(),
        StatusCode::OK
    );
    let mut connections = 0;
    while let Ok(seen) = seen.try_recv() {
        connections += usize::from(seen == Seen::Connection);
    }
    assert_eq!(connections, 2);
}

#[tokio::test]
async fn grpc_is_refused_where_no_program_speaks_it() {
    let (port, _seen) = echo().await;
    for (port, changes, status, code) in [
        (program().await, json!({}), 502, "SANDBOX_BAD_ANSWER"),
        (saying(b"SSH-2.0-x\r\n").await, json!({}), 502, "SANDBOX_BAD_ANSWER"),
        (1, json!({}), 502, "SANDBOX_NOT_LISTENING"),
        (port, json!({"max_requests_per_sandbox": 0}), 503, "SANDBOX_BUSY"),
    ] {
        let world = World::new(port, changes).await;
        let (response, _stream) = Caller::new(&world).await.call("/").await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-hutch-error"], code);
    }
}

#[tokio::test]
async fn messages_of_grpc_are_bounded_as_bodies_are_and_slow_readers_waited_for() {
    let (port, mut seen) = echo().await;
    let world = World::new(port, json!({"max_body_bytes": 4 << 20})).await;
    let mut caller = Caller::new(&world).await;
    let (response, mut stream) = caller.call("/").await;
    let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let writing = tokio::spawn(async move {
        let mut left = 5 << 20;
        while left > 0 {
            stream.reserve_capacity(left);
            match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
                Some(Ok(count)) => {
                    stream.send_data(vec![b'x'; count].into(), false).unwrap();
                    left -= count;
                }
                _ => break,
            }
        }
    });
    let mut count = 0;
    let end = timeout(PATIENCE, async {
        loop {
            match body.data().await {
                Some(Ok(data)) => {
                    count += data.len();
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                end => return end,
            }
        }
    })
    .await
    .unwrap();
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    assert!(count <= 4 << 20, "{count}");
    writing.abort();
    while let Ok(seen) = seen.try_recv() {
        assert!(!matches!(seen, Seen::End(Ok(_))));
    }
}

#[tokio::test]
async fn trailers_of_chunked_answers_pass() {
    let port = saying(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\nx-hutch-error: x\r\n\r\n",
    )
    .await;
    let world = World::new(port, json!({})).await;
    let mut sender = world.h2().await;
    let mut request = world.request("/");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let body = sender.send_request(request).await.unwrap().into_body();
    let trailers = timeout(PATIENCE, body.collect())
        .await
        .unwrap()
        .unwrap()
        .trailers()
        .cloned();
    let trailers = trailers.unwrap();
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"7".parse().unwrap()));
    let answer = world
        .raw("GET / HTTP/1.1\r\nHost: HOST\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n")
        .await;
    assert!(answer.contains("\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}
