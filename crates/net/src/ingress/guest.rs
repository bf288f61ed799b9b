//! Connections to programs in sandboxes, of either version of HTTP.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest as StreamSender;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::http2::{CONNECTION_WINDOW_BYTES, MAX_RESETS, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS};
use super::proxy::Body;
use super::registry::Target;
use crate::locks::lock;

/// Shorter than what servers wait: Node's close what was idle for five seconds.
const IDLE: Duration = Duration::from_secs(3);
const MAX_IDLE: usize = 32;
const BUFFER_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 256;
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// Programs with which one client's connection has connections of HTTP/2.
const MAX_OPEN: usize = 16;

/// A connection that takes a request. Without it the connection is ended, not flushed: the program may never read.
pub struct Sender {
    requests: SendRequest<Body>,
    connection: Option<AbortHandle>,
}

impl Sender {
    /// Ask.
    pub fn send_request(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.requests.send_request(request)
    }

    /// Returns when another request is taken. The error is a connection that has ended.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        self.requests.ready().await
    }

    /// Leave the connection to who upgrades it.
    pub fn release(mut self) {
        self.connection = None;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abort();
        }
    }
}

/// An open connection without a request, and since when.
type Kept = (Arc<Target>, Sender, Instant);

/// Connections that are kept for the next request: of one thread, by session and port.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<HashMap<(Ipv4Addr, u16), Vec<Kept>>>,
}

impl Pool {
    /// One that is still open.
    pub fn take(&self, target: &Arc<Target>, port: u16) -> Option<Sender> {
        let mut idle = lock(&self.idle);
        let found = idle.get_mut(&(target.address, port))?;
        while let Some((of, sender, since)) = found.pop() {
            if Arc::ptr_eq(&of, target) && sender.requests.is_ready() && since.elapsed() < IDLE {
                return Some(sender);
            }
        }
        None
    }

    /// Keep one whose last answer was read.
    pub fn put(&self, target: Arc<Target>, port: u16, sender: Sender) {
        let mut idle = lock(&self.idle);
        let kept = idle.entry((target.address, port)).or_default();
        if kept.len() < MAX_IDLE {
            kept.push((target, sender, Instant::now()));
        }
    }

    /// Close what was kept too long, again and again.
    pub async fn tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE).await;
            lock(&self.idle).retain(|_, kept| {
                kept.retain(|(_, sender, since)| since.elapsed() < IDLE && !sender.requests.is_closed());
                !kept.is_empty()
            });
        }
    }
}

/// A new connection.
pub async fn connect(target: &Target, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let stream = timeout(patience, TcpStream::connect((target.address, port)))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Speak HTTP/1.1 on a connection. It ends with the session.
pub async fn first(stream: TcpStream, target: &Arc<Target>) -> hyper::Result<Sender> {
    let (requests, connection) = Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await?;
    let target = Arc::clone(target);
    let connection = tokio::spawn(async move {
        tokio::select! {
            _ = connection.with_upgrades() => {}
            () = target.ended() => {}
        }
    });
    Ok(Sender {
        requests,
        connection: Some(connection.abort_handle()),
    })
}

/// Speak HTTP/2 on a connection, without asking whether the program does. It ends with the session.
pub async fn second(stream: TcpStream, target: &Arc<Target>) -> Result<StreamSender<Bytes>, h2::Error> {
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(STREAMS as usize)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_local_error_reset_streams(Some(MAX_RESETS))
        .handshake(stream)
        .await?;
    let target = Arc::clone(target);
    tokio::spawn(async move {
        tokio::select! {
            _ = connection => {}
            () = target.ended() => {}
        }
    });
    Ok(sender)
}

type Open = (Arc<Target>, StreamSender<Bytes>);

/// Connections of HTTP/2 with programs, those of one client: what it does not read holds up nobody else.
#[derive(Default)]
pub struct Streams {
    open: Mutex<HashMap<(Ipv4Addr, u16), Open>>,
}

impl Streams {
    /// One that takes another request, as far as is known.
    pub fn take(&self, target: &Arc<Target>, port: u16) -> Option<StreamSender<Bytes>> {
        let open = lock(&self.open);
        let (of, sender) = open.get(&(target.address, port))?;
        Arc::ptr_eq(of, target).then(|| sender.clone())
    }

    /// Have the next request take it as well.
    pub fn put(&self, target: Arc<Target>, port: u16, sender: StreamSender<Bytes>) {
        let mut open = lock(&self.open);
        if open.len() >= MAX_OPEN {
            // They end with their requests.
            open.clear();
        }
        open.insert((target.address, port), (target, sender));
    }
}
