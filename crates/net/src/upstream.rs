//! Connections to servers, for intercepted flows.
//!
//! A connection belongs to one sandbox, one name and one set of rules and credentials; it is never shared beyond them
//! (`egress.md` T89). It is used again only after both messages of an exchange were fully sent and read, and everything
//! idle is dropped when the policy changes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use hutch_policy::{Defence, Reason, RuleId};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::cpu::CpuTime;
use crate::locks::lock;
use crate::tls::Verifiers;

const IDLE: Duration = Duration::from_secs(30);
const MAX_IDLE: usize = 128;
/// Over all names: under a wildcard there is no end of them.
const MAX_IDLE_OF_ALL: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Much longer than a slow server needs to open its window again, which it does when a part of its buffer is free.
const STALLED: Duration = Duration::from_secs(120);
/// Of a server that has nothing to acknowledge.
const PROBE_AFTER: Duration = Duration::from_secs(20);
const PROBE_AGAIN: Duration = Duration::from_secs(10);
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;
/// What a guest does not read is held here, for each of its connections: fixed, where windows that adapt grow to 16 MiB.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What makes two connections interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name or address in the URL.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether TLS is used.
    pub tls: bool,
    /// Whether HTTP/2 may be spoken.
    pub http2: bool,
    /// The rule that requests are sent under; idle connections end with the policy.
    pub rule: Option<RuleId>,
    /// The thread whose runtime drives the connection.
    pub thread: ThreadId,
}

/// A connection that takes a request.
pub enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<Body>),
    /// Many at once.
    Http2(http2::SendRequest<Body>),
}

/// A sender, and where what it sends goes: an update may deny the address while its name stays allowed.
pub struct Connection {
    /// Takes a request.
    pub sender: Sender,
    /// The address that was dialled.
    pub address: SocketAddr,
}

struct Idle {
    sender: http1::SendRequest<Body>,
    address: SocketAddr,
    since: Instant,
}

/// Connections of one sandbox that wait for a request.
#[derive(Default)]
pub struct Pool {
    epoch: AtomicU64,
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    shared: Mutex<HashMap<Key, Shared>>,
}

/// What all sandboxes would have in common; for tests of the tests.
pub fn everybodys() -> &'static Pool {
    static SHARED: std::sync::LazyLock<Pool> = std::sync::LazyLock::new(Pool::default);
    &SHARED
}

struct Shared {
    sender: http2::SendRequest<Body>,
    address: SocketAddr,
    used: Instant,
}

impl Pool {
    /// A waiting connection.
    pub fn take(&self, key: &Key) -> Option<Connection> {
        if key.http2 {
            let mut shared = lock(&self.shared);
            match shared.get_mut(key) {
                Some(known) if !known.sender.is_closed() => {
                    known.used = Instant::now();
                    return Some(Connection {
                        sender: Sender::Http2(known.sender.clone()),
                        address: known.address,
                    });
                }
                Some(_) => {
                    shared.remove(key);
                }
                None => {}
            }
        }
        let mut idle = lock(&self.idle);
        let waiting = idle.get_mut(key)?;
        while let Some(next) = waiting.pop() {
            if next.since.elapsed() < IDLE && next.sender.is_ready() && !next.sender.is_closed() {
                return Some(Connection {
                    sender: Sender::Http1(next.sender),
                    address: next.address,
                });
            }
        }
        None
    }

    /// Which connections may come back.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Keep a connection whose exchange is over, unless the policy changed since it was taken.
    pub fn give_back(&self, key: Key, sender: http1::SendRequest<Body>, address: SocketAddr, epoch: u64) {
        let mut idle = lock(&self.idle);
        if epoch != self.epoch() || sender.is_closed() {
            return;
        }
        if idle.values().map(Vec::len).sum::<usize>() >= MAX_IDLE_OF_ALL {
            expire(&mut idle, IDLE / 2);
            if idle.values().map(Vec::len).sum::<usize>() >= MAX_IDLE_OF_ALL {
                return;
            }
        }
        let waiting = idle.entry(key).or_default();
        if waiting.len() >= MAX_IDLE {
            waiting.remove(0);
        }
        waiting.push(Idle {
            sender,
            address,
            since: Instant::now(),
        });
    }

    fn share(&self, key: &Key, sender: &http2::SendRequest<Body>, address: SocketAddr, epoch: u64) {
        let mut shared = lock(&self.shared);
        if epoch == self.epoch() && shared.len() < MAX_IDLE_OF_ALL {
            let sender = sender.clone();
            shared.insert(
                key.clone(),
                Shared {
                    sender,
                    address,
                    used: Instant::now(),
                },
            );
        }
    }

    /// Have the next request not use a connection on which one had no answer.
    pub fn forget(&self, key: &Key) {
        lock(&self.shared).remove(key);
    }

    /// Close what nobody used for long. To be called now and then: a connection that waits keeps a descriptor, and those are
    /// everybody's.
    pub fn expire(&self) {
        expire(&mut lock(&self.idle), IDLE);
        lock(&self.shared).retain(|_, known| !known.sender.is_closed() && known.used.elapsed() < IDLE);
    }

    /// Drop everything that waits; what is under way ends with its exchange and does not come back.
    pub fn drain(&self) {
        if !Defence::IdleServers.holds() {
            return;
        }
        let mut idle = lock(&self.idle);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        idle.clear();
        lock(&self.shared).clear();
    }

    /// Begin to speak HTTP on a connection that was dialled, at whose cost `cpu` says.
    pub async fn begin(
        &self,
        key: &Key,
        (stream, address): (TcpStream, SocketAddr),
        verifiers: &Verifiers,
        epoch: u64,
        cpu: &CpuTime,
    ) -> Result<Sender, Reason> {
        // Without it, everything but a server that vanishes or never reads is as before.
        let _ = expect_progress(&stream, STALLED);
        if !key.tls {
            return http1(stream, cpu).await;
        }
        let config = if key.http2 { &verifiers.http2 } else { &verifiers.http1 };
        let name = ServerName::try_from(key.host.clone()).map_err(|_| Reason::UpstreamTls)?;
        let connector = TlsConnector::from(std::sync::Arc::clone(config));
        let stream = timeout(HANDSHAKE, connector.connect(name, stream))
            .await
            .map_err(|_| Reason::UpstreamTimeout)?
            .map_err(|_| Reason::UpstreamTls)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return http1(stream, cpu).await;
        }
        let mut builder = http2::Builder::new(cpu.clone());
        builder
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, connection) = timeout(HANDSHAKE, builder.handshake(TokioIo::new(stream)))
            .await
            .map_err(|_| Reason::UpstreamTimeout)?
            .map_err(|_| Reason::UpstreamProtocol)?;
        cpu.spawn(async move {
            // Its requests say what went wrong.
            let _ = connection.await;
        });
        self.share(key, &sender, address, epoch);
        Ok(Sender::Http2(sender))
    }
}

/// Have the kernel end a connection whose other end has acknowledged nothing for so long, whether it vanished or keeps its window
/// shut: nothing else would end one whose exchange is over and that is still to be flushed. Pings of HTTP/2 would see less,
/// and servers of gRPC take them for an attack.
fn expect_progress(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(patience))?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AGAIN);
    socket.set_tcp_keepalive(&probes)
}

fn expire(idle: &mut HashMap<Key, Vec<Idle>>, age: Duration) {
    for waiting in idle.values_mut() {
        waiting.retain(|known| known.since.elapsed() < age && !known.sender.is_closed());
    }
    idle.retain(|_, waiting| !waiting.is_empty());
}

async fn http1<S>(stream: S, cpu: &CpuTime) -> Result<Sender, Reason>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_FIELDS);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Reason::UpstreamProtocol)?;
    cpu.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(Sender::Http1(sender))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use h2::server::SendResponse;
    use h2::{PingPong, SendStream};
    use http::{Request, Response};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{RootCertStore, ServerConfig};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::body;
    use crate::http2::credit::spent;

    const LONG: Duration = Duration::from_secs(60);
    const NAME: &str = "api.test";

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (client, server)
    }

    #[tokio::test]
    async fn a_connection_that_its_server_never_reads_from_ends() {
        let (mut client, _server) = connected().await;
        expect_progress(&client, Duration::from_millis(500)).unwrap();
        let writing = async {
            loop {
                if let Err(error) = client.write_all(&[0; 16 * 1024]).await {
                    break error;
                }
            }
        };
        let error = timeout(LONG, writing).await.expect("it is written on for ever");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    fn key(port: u16) -> Key {
        Key {
            host: NAME.to_owned(),
            port,
            tls: true,
            http2: true,
            rule: None,
            thread: std::thread::current().id(),
        }
    }

    /// A server of HTTP/2 that answers what it is told to.
    struct Server {
        requests: mpsc::UnboundedReceiver<SendResponse<Bytes>>,
        pings: PingPong,
    }

    impl Server {
        async fn answer(&mut self) -> SendStream<Bytes> {
            let mut request = self.requests.recv().await.unwrap();
            request.send_response(Response::new(()), false).unwrap()
        }
    }

    async fn serve(stream: TcpStream, config: ServerConfig) -> Server {
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let (came, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok((_, response))) = connection.accept().await {
                came.send(response).unwrap();
            }
        });
        Server { requests, pings }
    }

    /// A connection of `pool` to a server that vouches for its name.
    async fn begun(pool: &Pool, key: &Key, epoch: u64) -> (Sender, Server) {
        let vouched = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = vouched.cert.der().clone();
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(vouched.signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], secret)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (client, server) = connected().await;
        let dialled = (
            client.peer_addr().unwrap(),
            Verifiers::new(&Arc::new(roots)),
            CpuTime::default(),
        );
        let (address, verifiers, cpu) = &dialled;
        let beginning = pool.begin(key, (client, *address), verifiers, epoch, cpu);
        let (sender, server) = tokio::join!(beginning, serve(server, config));
        (sender.unwrap(), server)
    }

    async fn asked(pool: &Pool, key: &Key) -> Response<hyper::body::Incoming> {
        let Some(Connection {
            sender: Sender::Http2(mut sender),
            ..
        }) = pool.take(key)
        else {
            panic!("no connection waits");
        };
        let request = Request::get(format!("https://{NAME}/")).body(body::empty()).unwrap();
        sender.send_request(request).await.unwrap()
    }

    #[tokio::test]
    async fn what_no_guest_reads_is_held_up_to_the_window_and_no_further() {
        let (pool, key) = (Pool::default(), key(443));
        let (_sender, mut server) = begun(&pool, &key, pool.epoch()).await;
        let (stream_bytes, all_bytes) = (STREAM_WINDOW_BYTES as usize, CONNECTION_WINDOW_BYTES as usize);
        let filling = async {
            let mut streams = Vec::new();
            let mut unread = Vec::new();
            let mut sent = Vec::new();
            for most in [stream_bytes, all_bytes - stream_bytes, 0, 0] {
                let (response, stream) = tokio::join!(asked(&pool, &key), server.answer());
                unread.push(response);
                streams.push(stream);
                sent.push(spent(&mut streams, &mut server.pings, most).await);
            }
            sent
        };
        let sent = timeout(LONG, filling).await.expect("less than the window");
        assert_eq!(sent, [stream_bytes, all_bytes - stream_bytes, 0, 0]);
    }

    #[tokio::test]
    async fn what_was_forgotten_is_not_used_again() {
        let (pool, one, other) = (Pool::default(), key(443), key(8443));
        let (mut sender, _server) = begun(&pool, &one, pool.epoch()).await;
        let _other = begun(&pool, &other, pool.epoch()).await;
        assert!(pool.take(&one).is_some());
        pool.forget(&one);
        assert!(pool.take(&one).is_none());
        assert!(pool.take(&other).is_some(), "another name's");
        // Who has it goes on.
        let Sender::Http2(sender) = &mut sender else {
            panic!("no HTTP/2");
        };
        assert!(!sender.is_closed());
        // And the next one is shared as the first was.
        let _next = begun(&pool, &one, pool.epoch()).await;
        assert!(pool.take(&one).is_some());
    }

    #[tokio::test]
    async fn what_began_before_an_update_is_not_shared_after_it() {
        let (pool, key) = (Pool::default(), key(443));
        let before = pool.epoch();
        pool.drain();
        let _begun = begun(&pool, &key, before).await;
        assert!(pool.take(&key).is_none());
    }
}
