//! Connections of clients: accepted, bounded, and read as HTTP of either version.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::guest::{Pool, Streams};
use super::headers::Origin;
use super::http2;
use super::informational::{Informed, Interim};
use super::proxy::{self, Client};
use super::registry::{Ingress, Settings};
use super::stream::{Framing, Movement, Watched};

/// With which a client begins that speaks HTTP/2 without asking.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_HEADERS: usize = 256;
const BUFFER_BYTES: usize = 64 * 1024;
/// Where accepting fails for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serve connections on this thread, for ever.
pub async fn serve(ingress: Arc<Ingress>, listener: TcpListener) {
    let pool = Arc::new(Pool::default());
    tokio::spawn(Arc::clone(&pool).tidy());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => accepted(&ingress, &pool, stream, peer),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn accepted(ingress: &Arc<Ingress>, pool: &Arc<Pool>, stream: TcpStream, peer: SocketAddr) {
    let Some(settings) = ingress.settings() else { return };
    let address = peer.ip().to_canonical();
    // What is too much is closed unread.
    let Some(admission) = ingress.admit(address, &settings) else {
        return;
    };
    let client = Client {
        ingress: Arc::clone(ingress),
        pool: Arc::clone(pool),
        streams: Streams::default(),
        origin: Origin {
            peer: address,
            https: settings.https,
        },
        conflict: Arc::new(AtomicBool::new(false)),
        movement: Arc::default(),
        settings,
        admission,
    };
    tokio::spawn(async move {
        let (movement, patience): (Arc<Movement>, _) = (Arc::clone(&client.movement), client.settings.idle_timeout);
        // How it ended is the client's to know.
        tokio::select! {
            _ = connection(client, stream) => {}
            () = movement.ceased(patience) => {}
        }
    });
}

async fn connection(client: Client, stream: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let settings = Arc::clone(&client.settings);
    let Some(acceptor) = &settings.tls else {
        return plain(client, stream).await;
    };
    let stream = timeout(settings.header_timeout, acceptor.accept(stream)).await??;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        second(client, stream, Bytes::new()).await
    } else {
        first(client, stream, Bytes::new()).await
    }
}

async fn plain(client: Client, mut stream: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let settings: Arc<Settings> = Arc::clone(&client.settings);
    let (ahead, is_second) = timeout(settings.header_timeout, sniffed(&mut stream)).await??;
    if is_second {
        second(client, stream, ahead).await
    } else {
        first(client, stream, ahead).await
    }
}

/// Read until it is clear whether this is HTTP/2.
async fn sniffed(stream: &mut TcpStream) -> io::Result<(Bytes, bool)> {
    let mut ahead = Vec::with_capacity(PREFACE.len());
    while ahead.len() < PREFACE.len() && PREFACE.starts_with(&ahead) {
        let mut piece = [0; 24];
        let room = PREFACE.len() - ahead.len();
        let count = stream.read(&mut piece[..room]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        ahead.extend_from_slice(&piece[..count]);
    }
    let is_second = ahead == PREFACE;
    Ok((ahead.into(), is_second))
}

async fn second<S>(client: Client, stream: S, ahead: Bytes) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Watched::new(
        stream,
        ahead,
        Arc::clone(&client.movement),
        Arc::clone(&client.ingress.counts),
        None,
    );
    Ok(http2::serve(client, stream).await?)
}

async fn first<S>(client: Client, stream: S, ahead: Bytes) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = Arc::clone(&client.settings);
    let framing = Framing::new(Arc::clone(&client.conflict));
    let movement = Arc::clone(&client.movement);
    let counts = Arc::clone(&client.ingress.counts);
    let client = Arc::new(client);
    let interim = Arc::<Interim>::default();
    let between = Arc::clone(&interim);
    let service = service_fn(move |request: Request<Incoming>| {
        let informed = if request.version() == Version::HTTP_11 {
            Informed::Connection(Arc::clone(&between))
        } else {
            Informed::Nobody
        };
        proxy::answer(
            Arc::clone(&client),
            request.map(|body| body.map_err(Into::into).boxed_unsync()),
            informed,
        )
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_header_size(settings.max_header_bytes)
        .max_buf_size(BUFFER_BYTES.max(settings.max_header_bytes))
        .serve_connection(
            TokioIo::new(Watched::new(stream, ahead, movement, counts, Some((framing, interim)))),
            service,
        )
        .with_upgrades()
        .await?;
    Ok(())
}
