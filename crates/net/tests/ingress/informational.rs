//! Answers before the answer: early hints, 100 for who expects it, 101 for websockets alone.

use super::*;
use std::future::poll_fn;

const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nContent-Length: 5\r\nX-Hutch-Error: x\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A connection with a program that this test is itself.
struct Program(TcpListener);

impl Program {
    async fn new() -> (Self, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Self(listener), port)
    }

    /// The next connection, and the request's head.
    async fn asked(&self) -> (TcpStream, String) {
        let (mut stream, _) = timeout(PATIENCE, self.0.accept()).await.unwrap().unwrap();
        let head = until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let mut byte = [0];
        let count = timeout(PATIENCE, stream.read(&mut byte)).await.unwrap().unwrap();
        assert_eq!(count, 1, "{}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

async fn ask(world: &World, head: &str) -> TcpStream {
    let mut client = world.connect().await;
    client
        .write_all(head.replace("HOST", &world.host()).as_bytes())
        .await
        .unwrap();
    client
}

async fn informational(response: &mut h2::client::ResponseFuture) -> Option<Response<()>> {
    let next = poll_fn(|context| response.poll_informational(context));
    timeout(PATIENCE, next).await.unwrap().map(Result::unwrap)
}

fn flood(count: usize) -> &'static [u8] {
    Box::leak([HINT.repeat(count).as_slice(), OK].concat().into())
}

#[tokio::test]
async fn early_hints_arrive_before_the_answer() {
    let (program, port) = Program::new().await;
    let world = World::new(port, json!({})).await;
    let mut client = ask(&world, "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    let (mut guest, _) = program.asked().await;
    guest.write_all(HINT).await.unwrap();
    assert_eq!(
        until(&mut client, "\r\n\r\n").await,
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"
    );
    guest.write_all(OK).await.unwrap();
    assert!(until(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));

    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    tokio::spawn(connection);
    // No GET, so that it comes on another connection.
    let request = Request::delete(format!("http://{}/", world.host())).body(()).unwrap();
    let (mut response, _) = sender.send_request(request, true).unwrap();
    let (mut guest, _) = program.asked().await;
    guest.write_all(HINT).await.unwrap();
    let hint = informational(&mut response).await.unwrap();
    assert_eq!(hint.status(), 103);
    assert_eq!(
        (hint.headers().len(), &hint.headers()["link"]),
        (1, &"</a.css>".parse().unwrap())
    );
    guest.write_all(OK).await.unwrap();
    assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn each_of_several_requests_has_its_own_hints_in_order() {
    let world = World::new(saying(flood(2)).await, json!({})).await;
    let twice = "DELETE / HTTP/1.1\r\nHost: HOST\r\n\r\nDELETE / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";
    let answer = world.raw(twice).await;
    let statuses: Vec<_> = answer
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|rest| rest.split_once(' ').unwrap().0)
        .collect();
    assert_eq!(statuses, ["103", "103", "200", "103", "103", "200"]);
    let old = world.raw("GET / HTTP/1.0\r\nHost: HOST\r\n\r\n").await;
    assert!(!old.contains(" 103 ") && old.contains(" 200 "), "{old}");
}

#[tokio::test]
async fn a_flood_of_hints_is_no_answer() {
    let world = World::new(saying(flood(17)).await, json!({})).await;
    let answer = world
        .raw("GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(answer.matches("HTTP/1.1 103").count(), 16);
    assert!(answer.contains("SANDBOX_BAD_ANSWER"), "{answer}");
    let world = World::new(saying(flood(16)).await, json!({})).await;
    let mut sender = world.h2().await;
    let response = sender.send_request(world.request("/")).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_flood_of_hints_on_a_stream_ends_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        for _ in 0..100 {
            let hint = Response::builder()
                .status(103)
                .header("link", "</a.css>")
                .body(())
                .unwrap();
            respond.send_informational(hint).unwrap();
        }
        let mut ended = std::pin::pin!(poll_fn(|context| respond.poll_reset(context)));
        tokio::select! {
            reset = &mut ended => reset.unwrap(),
            end = connection.accept() => panic!("{end:?}"),
        }
    });
    let world = World::new(port, json!({})).await;
    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/", world.host()))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (mut response, _stream) = sender.send_request(request, false).unwrap();
    let mut count = 0;
    while let Some(hint) = informational(&mut response).await {
        assert_eq!(hint.status(), 103);
        count += 1;
    }
    assert_eq!(count, 16);
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(response.headers()["x-hutch-error"], "SANDBOX_BAD_ANSWER");
    assert_eq!(timeout(PATIENCE, guest).await.unwrap().unwrap(), h2::Reason::CANCEL);
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[tokio::test]
async fn a_body_waits_until_the_program_wants_it() {
    let (program, port) = Program::new().await;
    let world = World::new(port, json!({})).await;
    let mut client = ask(&world, EXPECTING).await;
    let (mut guest, head) = program.asked().await;
    assert!(head.contains("expect: 100-continue\r\n"), "{head}");
    guest.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert_eq!(until(&mut guest, "body").await, "body");
    guest.write_all(OK).await.unwrap();
    assert!(until(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));

    let (mut sender, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/", world.host()))
        .header("expect", "100-continue")
        .header("content-length", "4")
        .body(())
        .unwrap();
    let (mut response, mut stream) = sender.send_request(request, false).unwrap();
    let (mut guest, _) = program.asked().await;
    guest.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(informational(&mut response).await.unwrap().status(), 100);
    stream.send_data(Bytes::from_static(b"body"), true).unwrap();
    assert_eq!(until(&mut guest, "body").await, "body");
}

#[tokio::test]
async fn a_program_that_refuses_gets_no_body() {
    let (program, port) = Program::new().await;
    let world = World::new(port, json!({})).await;
    let mut client = ask(&world, EXPECTING).await;
    let (mut guest, _) = program.asked().await;
    guest
        .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        .await
        .unwrap();
    let answer = until(&mut client, "no").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, guest.read_to_end(&mut rest))
        .await
        .expect("its connection ends");
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_program_that_knows_nothing_of_it_gets_the_body_all_the_same() {
    let (program, port) = Program::new().await;
    let world = World::new(port, json!({})).await;
    let mut client = ask(&world, EXPECTING).await;
    let (mut guest, _) = program.asked().await;
    assert_eq!(until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert_eq!(until(&mut guest, "body").await, "body");
    guest.write_all(OK).await.unwrap();
    assert!(until(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn connections_become_websockets_and_nothing_else() {
    let switching: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let world = World::new(saying(switching).await, json!({})).await;
    for protocol in ["websocket", "h2c", "h2c, websocket", "tcp"] {
        let answer = world
            .raw(&format!(
                "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\n\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{protocol}: {answer}");
    }
    let world = World::new(program().await, json!({})).await;
    let answer = world
        .raw("GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, close\r\nUpgrade: tcp\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && !answer.contains("upgrade"),
        "{answer}"
    );
}
